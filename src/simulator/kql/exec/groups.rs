//! `summarize`: rows to groups, groups to rows.
//!
//! Groups come out in the order they were first seen. The service promises no order, and no query may rely on one.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::super::dynamic::Dynamic;
use super::super::eval::{Place, Row};
use super::super::plan::{Aggregate, Scalar};
use super::super::value::{Key, Value};
use super::{Rows, places};

/// One row per group; without keys one row in any case.
pub(super) fn summarize<'a>(by: &[Scalar], aggregates: &[Aggregate], rows: &[Row<'_>]) -> Rows<'a> {
    let mut positions: HashMap<Vec<Key>, usize> = HashMap::new();
    let mut groups: Vec<(Vec<Value>, Vec<Tally>)> = Vec::new();
    let empty = || aggregates.iter().map(Tally::new).collect::<Vec<_>>();
    if by.is_empty() {
        positions.insert(Vec::new(), 0);
        groups.push((Vec::new(), empty()));
    }
    for place in places(rows) {
        let values: Vec<Value> = by.iter().map(|key| key.eval(place).into_owned()).collect();
        let at = *positions.entry(values.iter().map(Value::key).collect()).or_insert(groups.len());
        if at == groups.len() {
            groups.push((values, empty()));
        }
        for (tally, aggregate) in groups[at].1.iter_mut().zip(aggregates) {
            tally.add(aggregate, place);
        }
    }
    let finished = groups.into_iter().map(|(mut row, tallies)| {
        row.extend(tallies.into_iter().zip(aggregates).flat_map(|(tally, aggregate)| tally.finish(aggregate)));
        row.into()
    });
    finished.collect()
}

/// What an aggregate has seen of its group so far.
enum Tally {
    Count(i64),
    /// The extreme; nulls do not take part.
    Value(Value),
    Keys(HashSet<Key>),
    List(Vec<Dynamic>, HashSet<Key>),
    /// The extreme and what else its row holds.
    Row(Option<(Value, Vec<Value>)>),
}

impl Tally {
    fn new(aggregate: &Aggregate) -> Self {
        match aggregate {
            Aggregate::Count(_) => Self::Count(0),
            Aggregate::Max(_) | Aggregate::Min(_) => Self::Value(Value::Null),
            Aggregate::DistinctCount(_) => Self::Keys(HashSet::new()),
            Aggregate::List { .. } => Self::List(Vec::new(), HashSet::new()),
            Aggregate::Extreme { .. } => Self::Row(None),
        }
    }

    fn add(&mut self, aggregate: &Aggregate, place: Place<'_>) {
        match (self, aggregate) {
            (Self::Count(count), Aggregate::Count(condition)) => {
                *count += i64::from(condition.as_ref().is_none_or(|condition| condition.holds(place)));
            }
            (Self::Value(extreme), Aggregate::Max(value)) => replace(extreme, &value.eval(place), Ordering::Greater),
            (Self::Value(extreme), Aggregate::Min(value)) => replace(extreme, &value.eval(place), Ordering::Less),
            (Self::Keys(keys), Aggregate::DistinctCount(value)) => {
                keys.insert(value.eval(place).key());
            }
            (Self::List(list, seen), Aggregate::List { value, limit, distinct }) => {
                let value = value.eval(place);
                let wanted = !matches!(*value, Value::Null) && list.len() < *limit;
                if wanted && (!distinct || seen.insert(value.key())) {
                    list.push(Dynamic::from(&*value));
                }
            }
            (Self::Row(best), Aggregate::Extreme { largest, value, carried }) => {
                let value = value.eval(place);
                let side = if *largest { Ordering::Greater } else { Ordering::Less };
                if best.as_ref().is_none_or(|(extreme, _)| is_beyond(&value, extreme, side)) {
                    let row = carried.iter().map(|value| value.eval(place).into_owned()).collect();
                    *best = Some((value.into_owned(), row));
                }
            }
            _ => unreachable!("a tally is made from its aggregate"),
        }
    }

    fn finish(self, aggregate: &Aggregate) -> Vec<Value> {
        match (self, aggregate) {
            (Self::Count(count), _) => vec![Value::Long(count)],
            (Self::Value(extreme), _) => vec![extreme],
            (Self::Keys(keys), _) => vec![Value::Long(i64::try_from(keys.len()).unwrap_or(i64::MAX))],
            (Self::List(list, _), _) => vec![Dynamic::Array(list).into()],
            (Self::Row(Some((extreme, mut row))), _) => {
                row.insert(0, extreme);
                row
            }
            (Self::Row(None), Aggregate::Extreme { value, carried, .. }) => {
                std::iter::once(value).chain(carried).map(|scalar| scalar.kind.null()).collect()
            }
            (Self::Row(None), _) => unreachable!("a tally is made from its aggregate"),
        }
    }
}

/// Whether `value` lies beyond `extreme` on that side. Anything lies beyond null; null beyond nothing.
fn is_beyond(value: &Value, extreme: &Value, side: Ordering) -> bool {
    match (value, extreme) {
        (Value::Null, _) => false,
        (_, Value::Null) => true,
        _ => value.compare(extreme) == Some(side),
    }
}

fn replace(extreme: &mut Value, value: &Value, side: Ordering) {
    if is_beyond(value, extreme, side) {
        *extreme = value.clone();
    }
}
