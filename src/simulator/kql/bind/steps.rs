//! Operators: what each asks of its input and what columns it leaves.

use super::super::ast::{self, Item, JoinKind, Pipeline, Step as AstStep};
use super::super::plan::{Aggregate, Cell, Columns, Join, Node, Order, Scalar, Step};
use super::super::value::Type;
use super::{Binder, Bound, Refusal, Scope, sources};

/// Elements that `make_list` and `make_set` keep unless told otherwise; the service's own default.
const DEFAULT_LIST_LIMIT: usize = 1_048_576;

/// Adds a column whose name must be new.
pub(super) fn add_column(columns: &mut Columns, name: String, kind: Type) -> Bound<()> {
    if columns.iter().any(|(column, _)| *column == name) {
        return Err(Refusal::Bare(format!("A column named '{name}' already exists")));
    }
    columns.push((name, kind));
    Ok(())
}

impl Binder<'_> {
    /// Binds one operator; `scope` becomes what its result looks like. An operator that only renames leaves no step.
    pub(super) fn step(&self, step: &AstStep, scope: &mut Scope, references: &mut usize) -> Bound<Option<Step>> {
        Ok(Some(match step {
            AstStep::Where(condition) => Step::Where(self.condition(condition, scope)?),
            AstStep::Extend(items) => self.extend(items, scope)?,
            AstStep::Project(items) => self.project(items, scope)?,
            AstStep::ProjectAway(names) => {
                let away = names.iter().map(|name| scope.column(name)).collect::<Bound<Vec<_>>>()?;
                let kept = (0..scope.columns.len()).filter(|at| !away.contains(at)).collect::<Vec<_>>();
                let cells = kept.iter().map(|at| Cell::Plain(column(scope, *at))).collect();
                scope.columns = kept.into_iter().map(|at| scope.columns[at].clone()).collect();
                Step::Project(cells)
            }
            AstStep::ProjectRename(names) => {
                for (new, old) in names {
                    let at = scope.column(old)?;
                    if scope.position(new).is_some_and(|taken| taken != at) {
                        return Err(Refusal::Bare(format!("A column named '{new}' already exists")));
                    }
                    scope.columns[at].0.clone_from(new);
                }
                return Ok(None);
            }
            AstStep::MvExpand { item, to } => self.mv_expand(item, *to, scope)?,
            AstStep::Summarize { aggregates, by } => self.summarize(aggregates, by, scope)?,
            AstStep::Distinct(names) => {
                let by: Vec<Item> =
                    names.iter().map(|name| Item { name: None, value: ast::Expr::Name(name.clone()) }).collect();
                self.summarize(&[], &by, scope)?
            }
            AstStep::DistinctAll => {
                let names = scope.columns.iter().map(|(name, _)| name.clone()).collect();
                return self.step(&AstStep::Distinct(names), scope, references);
            }
            AstStep::Partition { native, by, steps } => {
                let at = scope.column(by)?;
                refuse_dynamic(scope.columns[at].1, "partition key")?;
                for step in steps {
                    if matches!(step, AstStep::Join { .. } | AstStep::Union(_) | AstStep::Partition { .. }) {
                        let text = format!("The operator '{}' is not allowed inside of partition", step.name());
                        return Err(Refusal::Bare(text));
                    }
                }
                let steps = self.steps(steps, scope, references)?;
                scope.serialized = false;
                Step::Partition { native: *native, by: at, steps }
            }
            AstStep::Join { kind, right, on } => self.join(*kind, right, on, scope, references)?,
            AstStep::Union(members) => {
                let (columns, members) = self.union(Some(&scope.columns), members, references)?;
                let own = sources(&columns, &scope.columns);
                *scope = Scope { columns, serialized: false };
                Step::Union { columns: own, members }
            }
            AstStep::Sort(orders) => {
                let orders = orders.iter().map(|order| self.order(order, scope)).collect::<Bound<_>>()?;
                scope.serialized = true;
                Step::Sort(orders)
            }
            AstStep::Top { rows, by } => {
                let (rows, by) = (self.row_count(rows)?, self.order(by, scope)?);
                scope.serialized = true;
                Step::Top { rows, by }
            }
            AstStep::Take(rows) => Step::Take(self.row_count(rows)?),
            AstStep::Count => {
                *scope = Scope { columns: vec![("Count".into(), Type::Long)], serialized: false };
                Step::Count
            }
        }))
    }

    fn condition(&self, value: &ast::Expr, scope: &Scope) -> Bound<Scalar> {
        let condition = self.scalar(value, scope)?;
        match condition.kind {
            Type::Bool => Ok(condition),
            other => Err(Refusal::Bare(format!("A condition must be of type bool, not {}", other.name()))),
        }
    }

    /// All items see the columns as they were before this operator, as in the service.
    fn extend(&self, items: &[Item], scope: &mut Scope) -> Bound<Step> {
        let mut columns = scope.columns.clone();
        let mut cells: Vec<(usize, Cell)> = Vec::with_capacity(items.len());
        for item in items {
            let name = item_name(item)?;
            let (cell, kind) = self.cell(&item.value, scope)?;
            let at = columns.iter().position(|(column, _)| *column == name).unwrap_or(columns.len());
            if cells.iter().any(|(taken, _)| *taken == at) {
                return Err(Refusal::Bare(format!("A column named '{name}' already exists")));
            }
            if at == columns.len() {
                columns.push((name, kind));
            } else {
                columns[at].1 = kind;
            }
            cells.push((at, cell));
        }
        scope.columns = columns;
        Ok(Step::Extend(cells))
    }

    fn project(&self, items: &[Item], scope: &mut Scope) -> Bound<Step> {
        let mut columns = Columns::new();
        let mut cells = Vec::with_capacity(items.len());
        for item in items {
            let (cell, kind) = self.cell(&item.value, scope)?;
            add_column(&mut columns, item_name(item)?, kind)?;
            cells.push(cell);
        }
        scope.columns = columns;
        Ok(Step::Project(cells))
    }

    /// What fills a column: an expression, or `row_number`, which counts rows and so must stand alone.
    fn cell(&self, value: &ast::Expr, scope: &Scope) -> Bound<(Cell, Type)> {
        let ast::Expr::Call(name, arguments) = value else {
            let scalar = self.scalar(value, scope)?;
            let kind = scalar.kind;
            return Ok((Cell::Plain(scalar), kind));
        };
        if name != "row_number" {
            let scalar = self.scalar(value, scope)?;
            let kind = scalar.kind;
            return Ok((Cell::Plain(scalar), kind));
        }
        if !scope.serialized {
            return Err(Refusal::Bare(
                "Function 'row_number' cannot be invoked. The row set must be serialized".into(),
            ));
        }
        let start = match arguments.first().map(|start| self.constant(start)).transpose()? {
            None => 1,
            Some((value, Type::Int | Type::Long)) => value.as_long().unwrap_or(1),
            Some(_) => return Err(Refusal::Bare("row_number(): argument #1 must be a whole number".into())),
        };
        let restart = arguments.get(1).map(|restart| self.condition(restart, scope)).transpose()?;
        if arguments.len() > 2 {
            return Err(Refusal::Bare("row_number(): wrong number of arguments".into()));
        }
        Ok((Cell::RowNumber { start, restart }, Type::Long))
    }

    fn mv_expand(&self, item: &Item, to: Option<Type>, scope: &mut Scope) -> Bound<Step> {
        let name = item_name(item)?;
        let value = self.scalar(&item.value, scope)?;
        if value.kind != Type::Dynamic {
            return Err(Refusal::Bare(format!("Expanded expression '{name}' expected to have dynamic type")));
        }
        let to = to.unwrap_or(Type::Dynamic);
        let at = scope.position(&name).unwrap_or(scope.columns.len());
        if at == scope.columns.len() {
            scope.columns.push((name, to));
        } else {
            scope.columns[at].1 = to;
        }
        Ok(Step::MvExpand { at, value, to })
    }

    fn summarize(&self, aggregates: &[Item], by: &[Item], scope: &mut Scope) -> Bound<Step> {
        // Neither keys nor aggregates see neighbours: groups have no order.
        let input = Scope { columns: scope.columns.clone(), serialized: false };
        let mut columns = Columns::new();
        let mut keys = Vec::with_capacity(by.len());
        for item in by {
            let key = self.scalar(&item.value, &input)?;
            refuse_dynamic(key.kind, "group key")?;
            add_column(&mut columns, item_name(item)?, key.kind)?;
            keys.push(key);
        }
        let groups = columns.len();
        let mut bound = Vec::with_capacity(aggregates.len());
        for item in aggregates {
            bound.push(self.aggregate(item, &input, groups, &mut columns)?);
        }
        *scope = Scope { columns, serialized: false };
        Ok(Step::Summarize { by: keys, aggregates: bound })
    }

    fn aggregate(&self, item: &Item, input: &Scope, groups: usize, columns: &mut Columns) -> Bound<Aggregate> {
        let ast::Expr::Call(function, arguments) = &item.value else {
            return Err(Refusal::Bare("An aggregate function is expected".into()));
        };
        let name = |default: String| item.name.clone().unwrap_or(default);
        let wrong_count = || Refusal::Bare(format!("{function}(): wrong number of arguments ({})", arguments.len()));
        if function == "count" {
            add_column(columns, name("count_".into()), Type::Long)?;
            return if arguments.is_empty() { Ok(Aggregate::Count(None)) } else { Err(wrong_count()) };
        }
        let first = arguments.first().ok_or_else(wrong_count)?;
        if matches!(function.as_str(), "arg_max" | "arg_min") {
            return self.extreme(item, function == "arg_max", arguments, input, groups, columns);
        }
        let value = match function.as_str() {
            "countif" => self.condition(first, input)?,
            "max" | "min" | "dcount" | "make_list" | "make_set" => self.scalar(first, input)?,
            other => return Err(Refusal::Bare(format!("Unknown aggregate function: '{other}'"))),
        };
        let limit = match (function.as_str(), arguments.get(1)) {
            (_, None) => DEFAULT_LIST_LIMIT,
            ("make_list" | "make_set", Some(limit)) if arguments.len() == 2 => self.row_count(limit)?,
            _ => return Err(wrong_count()),
        };
        let of = match first {
            ast::Expr::Name(name) => name.as_str(),
            _ => "",
        };
        if of.is_empty() && item.name.is_none() && function != "countif" {
            return Err(Refusal::unsupported(format!("{function}() of an expression without a name for the result")));
        }
        let (default, kind, aggregate) = match function.as_str() {
            "countif" => ("countif_".into(), Type::Long, Aggregate::Count(Some(value))),
            "max" => (format!("max_{of}"), ordered(&value, function)?, Aggregate::Max(value)),
            "min" => (format!("min_{of}"), ordered(&value, function)?, Aggregate::Min(value)),
            "dcount" => (format!("dcount_{of}"), Type::Long, Aggregate::DistinctCount(value)),
            _ => {
                let distinct = function == "make_set";
                let prefix = if distinct { "set" } else { "list" };
                (format!("{prefix}_{of}"), Type::Dynamic, Aggregate::List { value, limit, distinct })
            }
        };
        add_column(columns, name(default), kind)?;
        Ok(aggregate)
    }

    /// `arg_max(Extreme, A, B)` or `arg_max(Extreme, *)`; the columns keep their names.
    fn extreme(
        &self,
        item: &Item,
        largest: bool,
        arguments: &[ast::Expr],
        input: &Scope,
        groups: usize,
        columns: &mut Columns,
    ) -> Bound<Aggregate> {
        let function = if largest { "arg_max" } else { "arg_min" };
        let ast::Expr::Name(extreme) = &arguments[0] else {
            return Err(Refusal::unsupported(format!("{function}() of anything but a column")));
        };
        let value = self.scalar(&arguments[0], input)?;
        let kind = ordered(&value, function)?;
        add_column(columns, item.name.clone().unwrap_or_else(|| extreme.clone()), kind)?;
        let mut carried = Vec::new();
        for argument in &arguments[1..] {
            match argument {
                ast::Expr::Star => {
                    for (at, (name, kind)) in input.columns.iter().enumerate() {
                        if name != extreme && !columns[..groups].iter().any(|(key, _)| key == name) {
                            add_column(columns, name.clone(), *kind)?;
                            carried.push(column(input, at));
                        }
                    }
                }
                ast::Expr::Name(name) => {
                    let scalar = self.scalar(argument, input)?;
                    add_column(columns, name.clone(), scalar.kind)?;
                    carried.push(scalar);
                }
                _ => return Err(Refusal::unsupported(format!("{function}() returning anything but columns"))),
            }
        }
        Ok(Aggregate::Extreme { largest, value, carried })
    }

    fn join(
        &self,
        kind: JoinKind,
        right: &Pipeline,
        on: &[String],
        scope: &mut Scope,
        references: &mut usize,
    ) -> Bound<Step> {
        let (right, more) = self.pipeline(right).map_err(|refusal| refusal.within("join"))?;
        *references += more;
        let theirs = Scope { columns: right.columns.clone(), serialized: false };
        let mut left_keys = Vec::with_capacity(on.len());
        let mut right_keys = Vec::with_capacity(on.len());
        for name in on {
            let (ours_at, theirs_at) = (scope.column(name)?, theirs.column(name)?);
            let (our_kind, their_kind) = (scope.columns[ours_at].1, theirs.columns[theirs_at].1);
            if our_kind != their_kind {
                let text =
                    format!("Key '{name}' is {} on the left and {} on the right", our_kind.name(), their_kind.name());
                return Err(Refusal::Bare(text));
            }
            refuse_dynamic(our_kind, "join key")?;
            left_keys.push(ours_at);
            right_keys.push(theirs_at);
        }
        if matches!(kind, JoinKind::Inner | JoinKind::LeftOuter) {
            for (name, kind) in &right.columns {
                let fresh = (0_usize..)
                    .map(|suffix| if suffix == 0 { name.clone() } else { format!("{name}{suffix}") })
                    .find(|candidate| scope.position(candidate).is_none())
                    .expect("the names tried are endless, the columns are not");
                scope.columns.push((fresh, *kind));
            }
        }
        scope.serialized = false;
        let unmatched = right.columns.iter().map(|(_, kind)| kind.null()).collect();
        Ok(Step::Join(Join { kind, left_keys, right_keys, right, unmatched }))
    }

    fn order(&self, order: &ast::Order, scope: &Scope) -> Bound<Order> {
        let value = self.scalar(&order.value, scope)?;
        refuse_dynamic(value.kind, "sort key")?;
        Ok(Order { value, descending: order.descending, nulls_first: order.nulls_first })
    }

    /// A constant number of rows or elements.
    fn row_count(&self, value: &ast::Expr) -> Bound<usize> {
        let (value, _) = self.constant(value)?;
        let count = value.as_long().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| Refusal::Bare("A constant whole number that is not negative is expected".into()))
    }
}

fn column(scope: &Scope, at: usize) -> Scalar {
    Scalar { node: Node::Column(at), kind: scope.columns[at].1 }
}

/// The name of an item: given, or that of the column it is. The service makes up others; no query should rely on them.
fn item_name(item: &Item) -> Bound<String> {
    match (&item.name, &item.value) {
        (Some(name), _) | (None, ast::Expr::Name(name)) => Ok(name.clone()),
        _ => Err(Refusal::unsupported("an expression without a name for its column")),
    }
}

fn refuse_dynamic(kind: Type, what: &str) -> Bound<()> {
    if kind == Type::Dynamic {
        return Err(Refusal::Bare(format!("A {what} is of a 'dynamic' type. Please use an explicit cast")));
    }
    Ok(())
}

/// The type of a value that has a largest and a smallest.
fn ordered(value: &Scalar, function: &str) -> Bound<Type> {
    match value.kind {
        Type::Int | Type::Long | Type::Real | Type::DateTime | Type::Timespan => Ok(value.kind),
        other => Err(Refusal::unsupported(format!("{function}() of {}", other.name()))),
    }
}
