//! Names to columns, expressions to types: everything that can be refused before a row is read.
//!
//! The service wraps a semantic error in the name of the operator it happened in; [`Refusal`] carries the bare text up
//! to the nearest operator, which adds that frame once.

mod scalar;
mod steps;

use std::collections::HashMap;
use std::rc::Rc;

use jiff::Timestamp;

use super::ast::{LetValue, Pipeline, Query, Source as AstSource, Step as AstStep};
use super::eval::Place;
use super::functions::widen;
use super::plan::{Columns, Member, Plan, Source, Step};
use super::value::{Type, Value};
use super::{KqlError, Tables, ast};

/// Tables that a `let`, a nested pipeline or a union may unfold to, all in all: doubling a name a few dozen times must
/// not keep the interpreter busy for ever.
const MAX_REFERENCES: usize = 1_000;

/// The error of a name that is no table.
fn unresolved_table(name: &str) -> Refusal {
    Refusal::Bare(format!("Failed to resolve table or column expression named '{name}'"))
}

/// A refused query.
enum Refusal {
    /// A semantic error that no operator has put its name to yet.
    Bare(String),
    Final(KqlError),
}

impl Refusal {
    fn unsupported(what: impl Into<String>) -> Self {
        Self::Final(KqlError::Unsupported(what.into()))
    }

    fn within(self, operator: &str) -> Self {
        match self {
            Self::Bare(text) => Self::Final(KqlError::Semantic(format!(
                "'{operator}' operator: {text}. Fix semantic errors in your query."
            ))),
            done => done,
        }
    }
}

impl From<Refusal> for KqlError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Bare(text) => Self::Semantic(format!("{text}. Fix semantic errors in your query.")),
            Refusal::Final(error) => error,
        }
    }
}

type Bound<T> = Result<T, Refusal>;

/// What a `let` name stands for.
#[derive(Clone)]
enum Meaning {
    Scalar(Value, Type),
    Table(Rc<Plan>, usize),
}

/// Binds a query to the tables' columns.
pub(super) fn bind(query: &Query, tables: &dyn Tables, now: Timestamp) -> Result<Rc<Plan>, KqlError> {
    let mut binder = Binder { tables, now, names: HashMap::new() };
    for binding in &query.lets {
        let meaning = match &binding.value {
            LetValue::Scalar(ast::Expr::Name(name)) if !binder.is_scalar(name) => {
                let (plan, references) = binder.named(name)?;
                Meaning::Table(plan, references)
            }
            LetValue::Scalar(value) => {
                let (value, kind) = binder.constant(value)?;
                Meaning::Scalar(value, kind)
            }
            LetValue::Tabular(pipeline) => {
                let (plan, references) = binder.pipeline(pipeline)?;
                Meaning::Table(plan, references)
            }
        };
        if binder.names.insert(binding.name.clone(), meaning).is_some() {
            return Err(Refusal::Bare(format!("The name '{}' is defined twice", binding.name)).into());
        }
    }
    Ok(binder.pipeline(&query.body)?.0)
}

struct Binder<'a> {
    tables: &'a dyn Tables,
    now: Timestamp,
    names: HashMap<String, Meaning>,
}

/// The rows that an expression is about: their columns, and whether they have an order to count by.
#[derive(Clone, Default)]
struct Scope {
    columns: Columns,
    serialized: bool,
}

impl Scope {
    fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|(column, _)| column == name)
    }

    /// The position of a column that must be there.
    fn column(&self, name: &str) -> Bound<usize> {
        self.position(name).ok_or_else(|| Refusal::Bare(format!("Failed to resolve column named '{name}'")))
    }
}

impl Binder<'_> {
    fn is_scalar(&self, name: &str) -> bool {
        matches!(self.names.get(name), Some(Meaning::Scalar(..)))
    }

    /// The plan behind a name, and how many tables it unfolds to.
    fn named(&self, name: &str) -> Bound<(Rc<Plan>, usize)> {
        match self.names.get(name) {
            Some(Meaning::Table(plan, references)) => return Ok((Rc::clone(plan), *references)),
            Some(Meaning::Scalar(..)) => return Err(Refusal::Bare(format!("'{name}' is no table"))),
            None => {}
        }
        let table = self.tables.scan(name).ok_or_else(|| unresolved_table(name))?;
        let timestamp = table.columns.iter().position(|(name, kind)| name == "Timestamp" && *kind == Type::DateTime);
        let source = Source::Scan { table: name.into(), timestamp };
        Ok((Rc::new(Plan { columns: table.columns.clone(), source, steps: Vec::new() }), 1))
    }

    fn pipeline(&self, pipeline: &Pipeline) -> Bound<(Rc<Plan>, usize)> {
        let first = pipeline.steps.first().map(AstStep::name);
        // The service blames a table it does not know on the operator that reads from it.
        let framed = |refusal: Refusal| match first {
            Some(operator) => refusal.within(operator),
            None => refusal,
        };
        let (mut scope, source, mut references) = self.source(&pipeline.source).map_err(framed)?;
        let steps = self.steps(&pipeline.steps, &mut scope, &mut references)?;
        if references > MAX_REFERENCES {
            return Err(Refusal::Final(KqlError::Limit("The query refers to too many tables.".into())));
        }
        Ok((Rc::new(Plan { columns: scope.columns, source, steps }), references))
    }

    fn steps(&self, steps: &[AstStep], scope: &mut Scope, references: &mut usize) -> Bound<Vec<Step>> {
        let mut bound = Vec::with_capacity(steps.len());
        for step in steps {
            let step = self.step(step, scope, references).map_err(|refusal| refusal.within(step.name()))?;
            bound.extend(step);
        }
        Ok(bound)
    }

    fn source(&self, source: &AstSource) -> Bound<(Scope, Source, usize)> {
        match source {
            AstSource::Name(name) => {
                let (plan, references) = self.named(name)?;
                let scope = Scope { columns: plan.columns.clone(), serialized: false };
                Ok((scope, Source::Nested(plan), references))
            }
            AstSource::Nested(inner) => {
                let (plan, references) = self.pipeline(inner)?;
                let scope = Scope { columns: plan.columns.clone(), serialized: false };
                Ok((scope, Source::Nested(plan), references))
            }
            AstSource::Union(members) => {
                let mut references = 0;
                let (columns, members) = self.union(None, members, &mut references)?;
                Ok((Scope { columns, serialized: false }, Source::Union(members), references))
            }
            AstSource::Print(items) => self.print(items).map_err(|refusal| refusal.within("print")),
            AstSource::Datatable { columns, cells } => {
                self.datatable(columns, cells).map_err(|refusal| refusal.within("datatable"))
            }
        }
    }

    fn print(&self, items: &[ast::Item]) -> Bound<(Scope, Source, usize)> {
        let mut scope = Scope::default();
        let mut row = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            let (value, kind) = self.constant(&item.value)?;
            let name = item.name.clone().unwrap_or_else(|| format!("print_{at}"));
            steps::add_column(&mut scope.columns, name, kind)?;
            row.push(value);
        }
        Ok((scope, Source::Rows(vec![row]), 1))
    }

    fn datatable(&self, columns: &[(String, Type)], cells: &[ast::Expr]) -> Bound<(Scope, Source, usize)> {
        let mut scope = Scope::default();
        for (name, kind) in columns {
            steps::add_column(&mut scope.columns, name.clone(), *kind)?;
        }
        if !cells.len().is_multiple_of(columns.len()) {
            return Err(Refusal::Bare("The number of values is no multiple of the number of columns".into()));
        }
        let mut rows = Vec::with_capacity(cells.len() / columns.len());
        for cells in cells.chunks_exact(columns.len()) {
            let mut row = Vec::with_capacity(columns.len());
            for (cell, (name, kind)) in cells.iter().zip(columns) {
                let (value, given) = self.constant(cell)?;
                row.push(fitted(value, given, *kind).ok_or_else(|| {
                    Refusal::Bare(format!("A value of type {} does not fit column '{name}'", given.name()))
                })?);
            }
            rows.push(row);
        }
        Ok((scope, Source::Rows(rows), 1))
    }

    /// The members of a union and their columns together; `first` are the columns of the rows to the left of it.
    fn union(
        &self,
        first: Option<&Columns>,
        members: &[Pipeline],
        references: &mut usize,
    ) -> Bound<(Columns, Vec<Member>)> {
        let mut plans = Vec::with_capacity(members.len());
        for member in members {
            let (plan, more) = self.pipeline(member).map_err(|refusal| refusal.within("union"))?;
            *references += more;
            plans.push(plan);
        }
        let mut columns: Columns = first.cloned().unwrap_or_default();
        for (name, kind) in plans.iter().flat_map(|plan| &plan.columns) {
            match columns.iter().find(|(column, _)| column == name) {
                None => columns.push((name.clone(), *kind)),
                Some((_, known)) if known == kind => {}
                Some(_) => return Err(Refusal::unsupported(format!("union with two types of column '{name}'"))),
            }
        }
        let members =
            plans.into_iter().map(|plan| Member { columns: sources(&columns, &plan.columns), plan }).collect();
        Ok((columns, members))
    }

    /// An expression that refers to no row, computed.
    fn constant(&self, value: &ast::Expr) -> Bound<(Value, Type)> {
        let scalar = self.scalar(value, &Scope::default())?;
        let value = scalar.constant().cloned();
        Ok((value.unwrap_or_else(|| scalar.eval(Place::NOWHERE).into_owned()), scalar.kind))
    }
}

/// For each column of `wanted`: where `given` has it, or its null.
fn sources(wanted: &Columns, given: &Columns) -> Vec<Result<usize, Value>> {
    wanted.iter().map(|(name, kind)| given.iter().position(|(column, _)| column == name).ok_or(kind.null())).collect()
}

/// A literal as a cell of a `datatable` column.
fn fitted(value: Value, given: Type, wanted: Type) -> Option<Value> {
    match (given, wanted) {
        _ if given == wanted => Some(value),
        (Type::Int | Type::Long, Type::Long | Type::Real) => Some(widen(&value, wanted)),
        (Type::Long, Type::Int) => value.as_long()?.try_into().ok().map(Value::Int),
        (_, Type::Dynamic) => Some(super::Dynamic::from(&value).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Database, run};
    use super::*;

    fn refused(query: &str) -> KqlError {
        run(query, &Database::new(), Timestamp::UNIX_EPOCH).expect_err(query)
    }

    #[test]
    fn what_does_not_resolve_is_named_in_the_words_of_the_service() {
        for (query, text) in [
            (
                "DeviceInfo | where NoSuchColumn == 1",
                "'where' operator: Failed to resolve scalar expression named 'NoSuchColumn'. \
                 Fix semantic errors in your query.",
            ),
            (
                "NoSuchTable | where A == 1",
                "'where' operator: Failed to resolve table or column expression named 'NoSuchTable'. \
                 Fix semantic errors in your query.",
            ),
            (
                "DeviceAlertEvents | take 1",
                "'take' operator: Failed to resolve table or column expression named 'DeviceAlertEvents'. \
                 Fix semantic errors in your query.",
            ),
            (
                "DeviceAlertEvents",
                "Failed to resolve table or column expression named 'DeviceAlertEvents'. \
                 Fix semantic errors in your query.",
            ),
            (
                "AlertEvidence | project MD5",
                "'project' operator: Failed to resolve scalar expression named 'MD5'. Fix semantic errors in your query.",
            ),
            (
                "AlertInfo | join kind=inner (AlertEvidence | where MD5 == '') on AlertId",
                "'where' operator: Failed to resolve scalar expression named 'MD5'. Fix semantic errors in your query.",
            ),
            (
                "AlertInfo | project-away alertId",
                "'project-away' operator: Failed to resolve column named 'alertId'. Fix semantic errors in your query.",
            ),
            (
                "let A = NoSuchTable; DeviceInfo",
                "Failed to resolve table or column expression named 'NoSuchTable'. Fix semantic errors in your query.",
            ),
        ] {
            assert_eq!(refused(query), KqlError::Semantic(text.into()), "{query}");
        }
    }

    #[test]
    fn types_that_do_not_fit_are_refused_before_any_row_is_read() {
        for query in [
            "DeviceInfo | where DeviceId == 1",
            "DeviceInfo | where Timestamp > 30d",
            "DeviceInfo | where Timestamp > '2026-11-20'",
            "DeviceInfo | where DeviceId",
            "DeviceInfo | where DeviceId and true",
            "DeviceInfo | where OSBuild in~ (1)",
            "DeviceInfo | where DeviceId in (1)",
            "DeviceInfo | where OSBuild has '1'",
            "DeviceInfo | extend A = DeviceId + 'x'",
            "DeviceInfo | extend A = Timestamp + Timestamp",
            "DeviceInfo | extend A = iff(true, 1, 'x')",
            "DeviceInfo | extend A = iff(1, 1, 2)",
            "DeviceInfo | extend A = tolower(OSBuild)",
            "DeviceInfo | extend A = tolower()",
            "DeviceInfo | extend A = strcat()",
            "DeviceInfo | extend A = substring('x')",
            "DeviceInfo | extend A = bag_pack('x')",
            "DeviceInfo | extend A = NoSuchFunction(1)",
            "DeviceInfo | extend A = MitigationStatus.Isolated",
            "DeviceInfo | extend A = ago(DeviceId)",
            "DeviceInfo | extend A = now(1)",
            "DeviceInfo | extend A = B, B = 1",
            "DeviceInfo | extend A = 1, A = 2",
            "DeviceInfo | project DeviceId, DeviceId",
            "DeviceInfo | project-rename DeviceId = DeviceName",
            "DeviceInfo | mv-expand DeviceId to typeof(string)",
            "DeviceInfo | take -1",
            "DeviceInfo | take 'x'",
            "DeviceInfo | top 1 by parse_json(DeviceId)",
            "DeviceInfo | extend A = parse_json(DeviceId) | summarize count() by A",
            "DeviceInfo | summarize DeviceId by DeviceName",
            "DeviceInfo | summarize nonsense(DeviceId) by DeviceName",
            "DeviceInfo | summarize count() by DeviceId, DeviceId",
            "DeviceInfo | extend A = row_number()",
            "DeviceInfo | sort by DeviceId | where true | summarize count() by DeviceId | extend A = row_number()",
            "DeviceInfo | extend A = prev(DeviceId)",
            "DeviceInfo | partition hint.strategy=native by DeviceId (join kind=inner DeviceInfo on DeviceId)",
            "DeviceInfo | partition hint.strategy=native by Nope (take 1)",
            "DeviceInfo | join kind=inner (DeviceInfo | project OSBuild = DeviceId) on OSBuild",
            "DeviceInfo | join kind=inner (AlertInfo) on DeviceId",
            "let A = 1; let A = 2; DeviceInfo",
            "let A = 1; A",
            "print A = null",
            "datatable(A: string, B: long)['x']",
            "datatable(A: string)[1]",
        ] {
            let error = refused(query);
            assert!(matches!(error, KqlError::Semantic(_)), "{query}: {error:?}");
            assert!(error.to_string().ends_with("Fix semantic errors in your query."), "{query}: {error}");
        }
    }

    #[test]
    fn what_lies_outside_the_subset_is_said_so() {
        for query in [
            "DeviceInfo | project tostring(OSBuild)",
            "DeviceInfo | summarize max(DeviceId)",
            "DeviceInfo | extend A = format_datetime(Timestamp, 'yyyy')",
            "print A = trim(@'\\s+', ' x ')",
            "print A = datetime_diff('month', now(), now())",
            "let T = DeviceInfo | project DeviceId; DeviceInfo | where DeviceId in (T)",
            "print A = dynamic([1])",
            "DeviceInfo | project A = parse_json(MitigationStatus)",
        ] {
            let error = refused(query);
            assert!(matches!(error, KqlError::Unsupported(_)), "{query}: {error:?}");
        }
    }

    #[test]
    fn names_that_double_over_and_over_are_stopped() {
        let mut query = String::from("let A0 = DeviceInfo;");
        for at in 1..=60 {
            query += &format!("let A{at} = union A{}, A{};", at - 1, at - 1);
        }
        assert!(matches!(refused(&(query + "A60")), KqlError::Limit(_)));
    }

    #[test]
    fn the_tallest_expression_that_parses_is_answered() {
        let nested = (0..28).fold("'x'".to_owned(), |inner, _| format!("tolower({inner})"));
        let chained = format!("1{}", "+1".repeat(60));
        let query = format!("print A = {nested}, B = {chained} | where A == 'x' and B == 61");
        assert_eq!(run(&query, &Database::new(), Timestamp::UNIX_EPOCH).expect("a row").rows.len(), 1);
    }

    #[test]
    fn a_long_ladder_of_names_is_climbed() {
        let mut query = String::from("let A0 = DeviceInfo;");
        for at in 1..150 {
            query += &format!("let A{at} = A{} | where OSBuild > {at};", at - 1);
        }
        assert!(run(&(query + "A149"), &Database::new(), Timestamp::UNIX_EPOCH).is_ok());
    }
}
