//! Plans over rows.
//!
//! A row of a table is borrowed until an operator changes it, so that a filter over ten thousand wide rows copies only
//! what it keeps. Each row an operator touches is counted, which bounds what a query can cost.

mod groups;

use std::borrow::Cow;
use std::cell::Cell as Counter;
use std::cmp::Ordering;
use std::collections::HashMap;

use super::ast::JoinKind;
use super::dynamic::Dynamic;
use super::eval::{Place, Row};
use super::plan::{Cell, Join, Member, Order, Plan, Source, Step};
use super::value::{Key, Type, Value};
use super::{KqlError, MAX_RESULT_BYTES, MAX_RESULT_ROWS, Table, Tables, Window};

/// Rows that the operators of a query may touch, all in all. The service stops by time and memory; this is the same for
/// every machine, and dozens of times what a query of the product needs over 10,000 rows.
const MAX_EFFORT: usize = 5_000_000;

/// Distinct keys that `partition` takes without `hint.strategy=native` (contract 6.2).
const MAX_LEGACY_PARTITIONS: usize = 64;

type Rows<'a> = Vec<Row<'a>>;

/// Runs the plan and checks what comes out against the limits of an answer.
pub(super) fn result(plan: &Plan, tables: &dyn Tables, window: Window) -> Result<Table, KqlError> {
    if let Some((name, _)) = plan.columns.iter().find(|(_, kind)| *kind == Type::Dynamic) {
        // How such a column goes over the wire is not documented (contract 4.2), so no query should return one.
        return Err(KqlError::Unsupported(format!("dynamic column in result: '{name}'")));
    }
    let run = Run { tables, window, effort: Counter::new(0) };
    let rows = run.plan(plan)?;
    let bytes: usize = rows.iter().flat_map(|row| row.iter()).map(size).sum();
    if rows.len() > MAX_RESULT_ROWS || bytes > MAX_RESULT_BYTES {
        return Err(KqlError::Limit(
            "Query execution has exceeded the allowed result size. Optimize your query by limiting the number of \
             results and try again"
                .into(),
        ));
    }
    Ok(Table { columns: plan.columns.clone(), rows: rows.into_iter().map(Cow::into_owned).collect() })
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        _ => size_of::<i64>(),
    }
}

struct Run<'a> {
    tables: &'a dyn Tables,
    window: Window,
    effort: Counter<usize>,
}

impl<'a> Run<'a> {
    fn charge(&self, rows: usize) -> Result<(), KqlError> {
        self.effort.set(self.effort.get().saturating_add(rows).saturating_add(1));
        if self.effort.get() > MAX_EFFORT {
            return Err(KqlError::Limit("Query stopped due to excessive resource consumption.".into()));
        }
        Ok(())
    }

    fn plan(&self, plan: &'a Plan) -> Result<Rows<'a>, KqlError> {
        let rows = match &plan.source {
            Source::Scan { table, timestamp } => self.scan(table, *timestamp),
            Source::Rows(rows) => rows.iter().map(|row| Cow::Borrowed(row.as_slice())).collect(),
            Source::Nested(inner) => self.plan(inner)?,
            Source::Union(members) => self.members(members)?,
        };
        self.steps(&plan.steps, rows)
    }

    fn scan(&self, table: &str, timestamp: Option<usize>) -> Rows<'a> {
        let rows = self.tables.scan(table).map_or(&[][..], |table| &table.rows);
        let Window { from, to } = self.window;
        let seen = |row: &&Vec<Value>| match timestamp.map(|at| &row[at]) {
            _ if from.is_none() && to.is_none() => true,
            None => true,
            Some(Value::DateTime(moment)) => {
                from.is_none_or(|from| *moment >= from) && to.is_none_or(|to| *moment <= to)
            }
            Some(_) => false,
        };
        rows.iter().filter(seen).map(|row| Cow::Borrowed(row.as_slice())).collect()
    }

    fn members(&self, members: &'a [Member]) -> Result<Rows<'a>, KqlError> {
        let mut all = Vec::new();
        for member in members {
            let rows = self.plan(&member.plan)?;
            self.charge(rows.len())?;
            all.extend(rows.iter().map(|row| rearranged(row, &member.columns)));
        }
        Ok(all)
    }

    fn steps(&self, steps: &'a [Step], mut rows: Rows<'a>) -> Result<Rows<'a>, KqlError> {
        for step in steps {
            self.charge(rows.len())?;
            rows = self.step(step, rows)?;
        }
        Ok(rows)
    }

    fn step(&self, step: &'a Step, mut rows: Rows<'a>) -> Result<Rows<'a>, KqlError> {
        Ok(match step {
            Step::Where(condition) => {
                let kept: Vec<bool> = places(&rows).map(|place| condition.holds(place)).collect();
                let mut kept = kept.into_iter();
                rows.retain(|_| kept.next() == Some(true));
                rows
            }
            Step::Project(cells) => {
                let mut columns: Vec<_> = cells.iter().map(|cell| filled(cell, &rows).into_iter()).collect();
                (0..rows.len()).map(|_| Cow::Owned(columns.iter_mut().filter_map(Iterator::next).collect())).collect()
            }
            Step::Extend(cells) => {
                let columns: Vec<_> = cells.iter().map(|(at, cell)| (*at, filled(cell, &rows))).collect();
                for (at, values) in columns {
                    for (row, value) in rows.iter_mut().zip(values) {
                        put(row, at, value);
                    }
                }
                rows
            }
            Step::MvExpand { at, value, to } => self.mv_expand(*at, value, *to, &rows)?,
            Step::Summarize { by, aggregates } => groups::summarize(by, aggregates, &rows),
            Step::Partition { native, by, steps } => self.partition(*native, *by, steps, rows)?,
            Step::Join(join) => self.join(join, &rows)?,
            Step::Union { columns, members } => {
                let mut all: Rows<'a> = rows.iter().map(|row| rearranged(row, columns)).collect();
                all.extend(self.members(members)?);
                all
            }
            Step::Sort(orders) => sorted(orders, rows),
            Step::Top { rows: count, by } => {
                let mut rows = sorted(std::slice::from_ref(by), rows);
                rows.truncate(*count);
                rows
            }
            Step::Take(count) => {
                rows.truncate(*count);
                rows
            }
            Step::Count => vec![Cow::Owned(vec![Value::Long(i64::try_from(rows.len()).unwrap_or(i64::MAX))])],
        })
    }

    /// One row per element; none for an empty array, one with null for null. Elements of another type become null: the
    /// operator casts and does not convert.
    fn mv_expand(
        &self,
        at: usize,
        value: &super::plan::Scalar,
        to: Type,
        rows: &Rows<'a>,
    ) -> Result<Rows<'a>, KqlError> {
        let mut expanded = Vec::new();
        for (row, place) in rows.iter().zip(places(rows)) {
            let elements = match &*value.eval(place) {
                Value::Dynamic(dynamic) => match &**dynamic {
                    Dynamic::Array(elements) => elements.clone(),
                    Dynamic::Bag(members) => members.iter().map(|member| Dynamic::Bag(vec![member.clone()])).collect(),
                    scalar => vec![scalar.clone()],
                },
                _ => vec![Dynamic::Null],
            };
            self.charge(elements.len())?;
            for element in &elements {
                let mut row = row.clone();
                put(&mut row, at, cast(element, to));
                expanded.push(row);
            }
        }
        Ok(expanded)
    }

    fn partition(&self, native: bool, by: usize, steps: &'a [Step], rows: Rows<'a>) -> Result<Rows<'a>, KqlError> {
        let mut positions: HashMap<Key, usize> = HashMap::new();
        let mut parts: Vec<Rows<'a>> = Vec::new();
        for row in rows {
            let at = *positions.entry(row[by].key()).or_insert(parts.len());
            if at == parts.len() {
                parts.push(Vec::new());
            }
            parts[at].push(row);
        }
        if !native && parts.len() > MAX_LEGACY_PARTITIONS {
            return Err(KqlError::Limit(format!(
                "'partition' operator: the number of distinct keys ({}) exceeds {MAX_LEGACY_PARTITIONS}. Use \
                 hint.strategy=native.",
                parts.len()
            )));
        }
        let mut all = Vec::new();
        for part in parts {
            all.extend(self.steps(steps, part)?);
        }
        Ok(all)
    }

    fn join(&self, join: &'a Join, left: &Rows<'a>) -> Result<Rows<'a>, KqlError> {
        let right = self.plan(&join.right)?;
        self.charge(right.len())?;
        let mut by_key: HashMap<Vec<Key>, Vec<usize>> = HashMap::new();
        for (at, row) in right.iter().enumerate() {
            by_key.entry(keys(row, &join.right_keys)).or_default().push(at);
        }
        let mut joined: Rows<'a> = Vec::new();
        for row in left {
            let key = keys(row, &join.left_keys);
            // A null equals nothing, itself included.
            let matches = if key.contains(&Key::Null) { None } else { by_key.get(&key) };
            let beside = |other: &[Value]| Cow::Owned(row.iter().chain(other).cloned().collect());
            match (join.kind, matches) {
                (JoinKind::Inner | JoinKind::LeftOuter, Some(matches)) => {
                    self.charge(matches.len())?;
                    joined.extend(matches.iter().map(|at| beside(&right[*at])));
                }
                (JoinKind::LeftOuter, None) => joined.push(beside(&join.unmatched)),
                (JoinKind::LeftSemi, Some(_)) | (JoinKind::LeftAnti, None) => joined.push(row.clone()),
                (JoinKind::Inner | JoinKind::LeftSemi, None) | (JoinKind::LeftAnti, Some(_)) => {}
            }
        }
        Ok(joined)
    }
}

fn places<'a>(rows: &'a [Row<'a>]) -> impl Iterator<Item = Place<'a>> {
    (0..rows.len()).map(move |at| Place { rows, at })
}

/// The values of a cell for every row.
fn filled(cell: &Cell, rows: &[Row<'_>]) -> Vec<Value> {
    match cell {
        Cell::Plain(scalar) => places(rows).map(|place| scalar.eval(place).into_owned()).collect(),
        Cell::RowNumber { start, restart } => {
            let mut number = *start;
            places(rows)
                .map(|place| {
                    let again = restart.as_ref().is_some_and(|restart| restart.holds(place));
                    number = if place.at == 0 || again { *start } else { number.saturating_add(1) };
                    Value::Long(number)
                })
                .collect()
        }
    }
}

/// Writes a cell of a row, or adds it at the end.
fn put(row: &mut Row<'_>, at: usize, value: Value) {
    let row = row.to_mut();
    if at < row.len() {
        row[at] = value;
    } else {
        row.push(value);
    }
}

fn rearranged<'a>(row: &Row<'a>, columns: &[Result<usize, Value>]) -> Row<'a> {
    columns
        .iter()
        .map(|column| match column {
            Ok(at) => row[*at].clone(),
            Err(null) => null.clone(),
        })
        .collect()
}

fn keys(row: &Row<'_>, columns: &[usize]) -> Vec<Key> {
    columns.iter().map(|at| row[*at].key()).collect()
}

fn cast(element: &Dynamic, to: Type) -> Value {
    match (element.to_scalar(), to) {
        (_, Type::Dynamic) => element.clone().into(),
        (Value::Long(number), Type::Int) => number.try_into().map_or(Value::Null, Value::Int),
        (value, _) if value.kind() == Some(to) => value,
        _ => to.null(),
    }
}

/// Rows in order; equal ones stay as they were.
fn sorted<'a>(orders: &[Order], rows: Rows<'a>) -> Rows<'a> {
    let keys: Vec<Vec<Value>> =
        places(&rows).map(|place| orders.iter().map(|order| order.value.eval(place).into_owned()).collect()).collect();
    let mut keyed: Vec<(Vec<Value>, Row<'a>)> = keys.into_iter().zip(rows).collect();
    keyed.sort_by(|(left, _), (right, _)| {
        let by_column = orders.iter().zip(left.iter().zip(right)).map(|(order, (left, right))| order.of(left, right));
        by_column.fold(Ordering::Equal, Ordering::then)
    });
    keyed.into_iter().map(|(_, row)| row).collect()
}

impl Order {
    fn of(&self, left: &Value, right: &Value) -> Ordering {
        match (left, right) {
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => {
                if self.nulls_first {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
            (_, Value::Null) => {
                if self.nulls_first {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            _ => {
                let order = left.compare(right).unwrap_or(Ordering::Equal);
                if self.descending { order.reverse() } else { order }
            }
        }
    }
}
