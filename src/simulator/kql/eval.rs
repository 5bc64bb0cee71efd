//! The value of an expression for a row.
//!
//! Nothing here fails: names and types were settled before, and what cannot be computed is null. Truth has three values;
//! a condition that is null does not hold.

use std::borrow::Cow;

use super::ast::{Arithmetic, Comparison, TextTest};
use super::dynamic::Dynamic;
use super::functions::widen;
use super::plan::{Node, Scalar, Set};
use super::text::Needles;
use super::value::{Value, shifted, ticks};

/// A row: that of a table as it is, or one made on the way.
pub(super) type Row<'a> = Cow<'a, [Value]>;

/// Where an expression is evaluated: a row among its neighbours.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) rows: &'a [Row<'a>],
    pub(super) at: usize,
}

impl Place<'_> {
    /// No row at all, for constants.
    pub(super) const NOWHERE: Self = Self { rows: &[], at: 0 };
}

impl Scalar {
    /// Whether the condition holds.
    pub(super) fn holds(&self, place: Place<'_>) -> bool {
        matches!(*self.eval(place), Value::Bool(true))
    }

    /// The value at `place`.
    pub(super) fn eval<'a>(&'a self, place: Place<'a>) -> Cow<'a, Value> {
        let value = match &self.node {
            Node::Constant(value) => return Cow::Borrowed(value),
            Node::Column(at) => return Cow::Borrowed(&place.rows[place.at][*at]),
            Node::If(condition, then, otherwise) => {
                return if condition.holds(place) { then.eval(place) } else { otherwise.eval(place) };
            }
            Node::And(all) => connective(all, place, false),
            Node::Or(all) => connective(all, place, true),
            Node::Not(inner) => inner.eval(place).as_bool().map_or(Value::Null, |truth| Value::Bool(!truth)),
            Node::Compare(comparison, left, right) => compare(*comparison, &left.eval(place), &right.eval(place)),
            Node::Between { value, low, high } => {
                let value = value.eval(place);
                let above = compare(Comparison::GreaterOrEqual, &value, &low.eval(place));
                let below = compare(Comparison::LessOrEqual, &value, &high.eval(place));
                match (above.as_bool(), below.as_bool()) {
                    (Some(above), Some(below)) => Value::Bool(above && below),
                    _ => Value::Null,
                }
            }
            Node::Arithmetic(operator, left, right) => arithmetic(*operator, &left.eval(place), &right.eval(place)),
            Node::Text { test, fold, value, needle } => {
                Value::Bool(text_test(*test, *fold, &value.eval(place).text(), &needle.eval(place).text()))
            }
            Node::InSet(value, set) => Value::Bool(set.contains(&value.eval(place))),
            Node::InList { fold, value, items } => {
                let items: Vec<Value> = items.iter().flat_map(|item| members(&item.eval(place))).collect();
                Value::Bool(Set::new(&items, *fold).contains(&value.eval(place)))
            }
            Node::HasAny(value, needles) => Value::Bool(match &*value.eval(place) {
                Value::String(text) => needles.any_in(text),
                _ => false,
            }),
            Node::Member(value, name) => match &*value.eval(place) {
                Value::Dynamic(dynamic) => dynamic.member(name).into(),
                _ => Value::Null,
            },
            Node::Index(value, index) => match (&*value.eval(place), &*index.eval(place)) {
                (Value::Dynamic(dynamic), Value::String(name)) => dynamic.member(name).into(),
                (Value::Dynamic(dynamic), index) => {
                    index.as_long().map_or(Value::Null, |index| dynamic.element(index).into())
                }
                _ => Value::Null,
            },
            Node::Cast(value) => widen(&value.eval(place), self.kind),
            Node::Call(function, arguments) => {
                let arguments: Vec<Value> =
                    arguments.iter().map(|argument| argument.eval(place).into_owned()).collect();
                (function.run)(&arguments)
            }
            Node::Previous { value, offset, default } => match place.at.checked_sub(*offset) {
                Some(at) => return value.eval(Place { at, ..place }),
                None => default.clone(),
            },
        };
        Cow::Owned(value)
    }
}

/// The values that an item on the right of `in` stands for: the elements of an array, or itself.
pub(super) fn members(value: &Value) -> Vec<Value> {
    match value {
        Value::Dynamic(dynamic) => match &**dynamic {
            Dynamic::Array(elements) => elements.iter().map(Dynamic::to_scalar).collect(),
            scalar => vec![scalar.to_scalar()],
        },
        Value::Null => Vec::new(),
        scalar => vec![scalar.clone()],
    }
}

/// `or` if `decisive` is true, else `and`: the first decisive operand decides; otherwise null taints.
fn connective(all: &[Scalar], place: Place<'_>, decisive: bool) -> Value {
    let mut result = Value::Bool(!decisive);
    for operand in all {
        match operand.eval(place).as_bool() {
            Some(truth) if truth == decisive => return Value::Bool(decisive),
            Some(_) => {}
            None => result = Value::Null,
        }
    }
    result
}

/// Equality knows null against a value (unequal), but not null against null; order knows neither.
fn compare(comparison: Comparison, left: &Value, right: &Value) -> Value {
    let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
    match (left, right) {
        (Value::Null, Value::Null) => return Value::Null,
        (Value::Null, _) | (_, Value::Null) if equality => return Value::Bool(comparison == Comparison::NotEqual),
        (Value::Null, _) | (_, Value::Null) => return Value::Null,
        _ => {}
    }
    let Some(order) = left.compare(right) else {
        return if equality { Value::Bool(comparison == Comparison::NotEqual) } else { Value::Null };
    };
    Value::Bool(match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    })
}

fn text_test(test: TextTest, fold: bool, value: &str, needle: &str) -> bool {
    if fold {
        return text_test(test, false, &value.to_lowercase(), &needle.to_lowercase());
    }
    match test {
        TextTest::Equals => value == needle,
        TextTest::Contains => value.contains(needle),
        TextTest::StartsWith => value.starts_with(needle),
        TextTest::EndsWith => value.ends_with(needle),
        TextTest::Has => Needles::new([needle], false).any_in(value),
    }
}

fn arithmetic(operator: Arithmetic, left: &Value, right: &Value) -> Value {
    computed(operator, left, right).unwrap_or(Value::Null)
}

/// `None` on null, overflow and division by zero.
fn computed(operator: Arithmetic, left: &Value, right: &Value) -> Option<Value> {
    use Arithmetic::{Add, Divide, Multiply, Subtract};
    Some(match (left, operator, right) {
        (Value::DateTime(moment), Add, Value::Timespan(span))
        | (Value::Timespan(span), Add, Value::DateTime(moment)) => Value::DateTime(shifted(*moment, *span)?),
        (Value::DateTime(moment), Subtract, Value::Timespan(span)) => {
            Value::DateTime(shifted(*moment, span.checked_neg()?)?)
        }
        (Value::DateTime(later), Subtract, Value::DateTime(earlier)) => {
            Value::Timespan((ticks(*later) - ticks(*earlier)).try_into().ok()?)
        }
        (Value::Timespan(a), Add, Value::Timespan(b)) => Value::Timespan(a.checked_add(*b)?),
        (Value::Timespan(a), Subtract, Value::Timespan(b)) => Value::Timespan(a.checked_sub(*b)?),
        (Value::Timespan(span), Multiply, number) | (number, Multiply, Value::Timespan(span)) => {
            Value::Timespan(span.checked_mul(number.as_long()?)?)
        }
        (Value::Timespan(span), Divide, number) => Value::Timespan(span.checked_div(number.as_long()?)?),
        (Value::Real(_), _, _) | (_, _, Value::Real(_)) => {
            let (a, b) = (left.as_real()?, right.as_real()?);
            Value::Real(match operator {
                Add => a + b,
                Subtract => a - b,
                Multiply => a * b,
                Divide => a / b,
            })
        }
        _ => {
            let (a, b) = (left.as_long()?, right.as_long()?);
            let number = match operator {
                Add => a.checked_add(b),
                Subtract => a.checked_sub(b),
                Multiply => a.checked_mul(b),
                Divide => a.checked_div(b),
            }?;
            match (left, right) {
                (Value::Int(_), Value::Int(_)) => Value::Int(number.try_into().ok()?),
                _ => Value::Long(number),
            }
        }
    })
}
