//! Types and values, with the service's ideas of null, equality, order and text form.
//!
//! A string is never null: "no value" is the empty string. All other types have a null. Moments and spans count in ticks
//! of 100 ns, which is all the service keeps.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::dynamic::Dynamic;

/// Nanoseconds in a tick, the smallest step of a `datetime` or `timespan`.
pub(super) const NANOS_PER_TICK: i128 = 100;

/// Ticks in a second.
pub(super) const TICKS_PER_SECOND: i64 = 10_000_000;

/// Ticks in a day.
pub(super) const TICKS_PER_DAY: i64 = 86_400 * TICKS_PER_SECOND;

/// A column's type. `decimal` and `guid` are left out: no hunting table of the product has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// `bool`; `SByte` in an answer.
    Bool,
    /// `int`, 32 bits.
    Int,
    /// `long`, 64 bits.
    Long,
    /// `real`.
    Real,
    /// `string`.
    String,
    /// `datetime`, always UTC.
    DateTime,
    /// `timespan`.
    Timespan,
    /// `dynamic`: any of the others, an array or a bag.
    Dynamic,
}

impl Type {
    /// The type of that name in a query or in the table reference; `None` for a name that is no type handled here.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "bool" | "boolean" => Self::Bool,
            "int" => Self::Int,
            "long" => Self::Long,
            "real" | "double" => Self::Real,
            "string" => Self::String,
            "datetime" | "date" => Self::DateTime,
            "timespan" | "time" => Self::Timespan,
            "dynamic" => Self::Dynamic,
            _ => return None,
        })
    }

    /// Name in a query.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Long => "long",
            Self::Real => "real",
            Self::String => "string",
            Self::DateTime => "datetime",
            Self::Timespan => "timespan",
            Self::Dynamic => "dynamic",
        }
    }

    /// Name in the `schema` of an answer (contract 4.2).
    pub fn wire_name(self) -> &'static str {
        match self {
            Self::Bool => "SByte",
            Self::Int => "Int32",
            Self::Long => "Int64",
            Self::Real => "Double",
            Self::String => "String",
            Self::DateTime => "DateTime",
            Self::Timespan => "TimeSpan",
            Self::Dynamic => "Object",
        }
    }

    /// The value of a cell that nothing was written to.
    pub fn null(self) -> Value {
        match self {
            Self::String => Value::from(""),
            _ => Value::Null,
        }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Long | Self::Real)
    }
}

/// A cell. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Null, of whatever type the column has; never used for strings.
    Null,
    /// A truth value.
    Bool(bool),
    /// 32 bits.
    Int(i32),
    /// 64 bits.
    Long(i64),
    /// A floating-point number.
    Real(f64),
    /// Text.
    String(Arc<str>),
    /// A moment.
    DateTime(Timestamp),
    /// A span, in ticks of 100 ns.
    Timespan(i64),
    /// An array, a bag or a scalar whose type is known only here.
    Dynamic(Arc<Dynamic>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Long(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl From<Timestamp> for Value {
    fn from(moment: Timestamp) -> Self {
        Self::DateTime(moment)
    }
}

impl From<Dynamic> for Value {
    /// Null stays null, so that a dynamic cell has one null only.
    fn from(dynamic: Dynamic) -> Self {
        match dynamic {
            Dynamic::Null => Self::Null,
            other => Self::Dynamic(Arc::new(other)),
        }
    }
}

impl Value {
    /// The value's type; `None` for null.
    pub fn kind(&self) -> Option<Type> {
        Some(match self {
            Self::Null => return None,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Long(_) => Type::Long,
            Self::Real(_) => Type::Real,
            Self::String(_) => Type::String,
            Self::DateTime(_) => Type::DateTime,
            Self::Timespan(_) => Type::Timespan,
            Self::Dynamic(_) => Type::Dynamic,
        })
    }

    /// The cell in the `results` of an answer: dates as UTC with `Z` and up to seven fraction digits, null as `null`.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(truth) => json!(truth),
            Self::Int(number) => json!(number),
            Self::Long(number) => json!(number),
            Self::Real(number) => json!(number),
            Self::String(text) => json!(&**text),
            Self::DateTime(moment) => json!(to_tick(*moment).to_string()),
            Self::Timespan(ticks) => json!(timespan_text(*ticks)),
            Self::Dynamic(dynamic) => json!(dynamic.to_string()),
        }
    }

    /// A cell of type `kind` out of JSON as [`Value::to_json`] writes it; `None` if it does not fit.
    pub fn from_json(kind: Type, json: &serde_json::Value) -> Option<Self> {
        use serde_json::Value as Json;
        Some(match (kind, json) {
            (_, Json::Null) => kind.null(),
            (Type::Bool, Json::Bool(truth)) => Self::Bool(*truth),
            (Type::Int, Json::Number(number)) => Self::Int(number.as_i64()?.try_into().ok()?),
            (Type::Long, Json::Number(number)) => Self::Long(number.as_i64()?),
            (Type::Real, Json::Number(number)) => Self::Real(number.as_f64()?),
            (Type::String, Json::String(text)) => Self::from(text.as_str()),
            (Type::DateTime, Json::String(text)) => Self::DateTime(parse_datetime(text)?),
            _ => return None,
        })
    }

    /// Text as `tostring` gives it; null becomes empty.
    pub(super) fn text(&self) -> Arc<str> {
        match self {
            Self::String(text) => text.clone(),
            other => other.printed().into(),
        }
    }

    fn printed(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Bool(truth) => truth.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Long(number) => number.to_string(),
            Self::Real(number) => real_text(*number),
            Self::String(text) => text.to_string(),
            Self::DateTime(moment) => datetime_text(*moment),
            Self::Timespan(ticks) => timespan_text(*ticks),
            Self::Dynamic(dynamic) => match &**dynamic {
                Dynamic::Array(_) | Dynamic::Bag(_) => dynamic.to_string(),
                scalar => scalar.to_scalar().printed(),
            },
        }
    }

    /// A dynamic scalar as the value inside it; everything else as it is. For comparisons.
    pub(super) fn unwrapped(&self) -> Self {
        match self {
            Self::Dynamic(dynamic) => dynamic.to_scalar(),
            other => other.clone(),
        }
    }

    /// Order of two values that are not null; `None` if they cannot be compared.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::DateTime(a), Self::DateTime(b)) => Some(a.cmp(b)),
            (Self::Timespan(a), Self::Timespan(b)) => Some(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Real(_), _) | (_, Self::Real(_)) => self.as_real()?.partial_cmp(&other.as_real()?),
            (Self::Int(_) | Self::Long(_), Self::Int(_) | Self::Long(_)) => {
                Some(self.as_long()?.cmp(&other.as_long()?))
            }
            (Self::Dynamic(_), _) | (_, Self::Dynamic(_)) => match (self.unwrapped(), other.unwrapped()) {
                (Self::Dynamic(_) | Self::Null, _) | (_, Self::Dynamic(_) | Self::Null) => None,
                (a, b) => a.compare(&b),
            },
            _ => None,
        }
    }

    pub(super) fn as_long(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some((*number).into()),
            Self::Long(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn as_real(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some((*number).into()),
            // The nearest real is what the service computes with, too.
            Self::Long(number) => Some(*number as f64),
            Self::Real(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// What the value counts as when rows are grouped, joined or looked up in a set.
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Null => Key::Null,
            Self::Bool(truth) => Key::Bool(*truth),
            Self::Int(number) => Key::Number((*number).into()),
            Self::Long(number) => Key::Number(*number),
            Self::Real(number) => Key::Real(number.to_bits()),
            Self::String(text) => Key::Text(text.clone()),
            Self::DateTime(moment) => Key::Moment(*moment),
            Self::Timespan(ticks) => Key::Span(*ticks),
            Self::Dynamic(dynamic) => match dynamic.to_scalar() {
                Self::Dynamic(dynamic) => Key::Json(dynamic.to_string()),
                scalar => scalar.key(),
            },
        }
    }
}

/// A hashable stand-in for a [`Value`]: equal exactly if the values are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Null,
    Bool(bool),
    Number(i64),
    Real(u64),
    Text(Arc<str>),
    Moment(Timestamp),
    Span(i64),
    Json(String),
}

/// A moment out of text: ISO 8601, with `T` or a space, with or without time of day, UTC unless it names an offset.
pub(super) fn parse_datetime(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if !text.is_ascii() || text.len() < "2026-01-01".len() {
        return None;
    }
    let (date, time) = text.split_at("2026-01-01".len());
    let time = match time.strip_prefix(['T', 't', ' ']) {
        Some(time) => time,
        None if time.is_empty() => "00:00:00",
        None => return None,
    };
    let zoned = time.ends_with(['Z', 'z']) || time.contains(['+', '-']);
    let iso = format!("{date}T{time}{}", if zoned { "" } else { "Z" });
    iso.parse().ok().map(to_tick)
}

/// The moment, cut to whole ticks.
pub(super) fn to_tick(moment: Timestamp) -> Timestamp {
    let nanos = moment.as_nanosecond();
    Timestamp::from_nanosecond(nanos - nanos.rem_euclid(NANOS_PER_TICK)).unwrap_or(moment)
}

/// Ticks since 1970; fits because jiff's years end at 9999.
pub(super) fn ticks(moment: Timestamp) -> i128 {
    moment.as_nanosecond().div_euclid(NANOS_PER_TICK)
}

/// The moment `ticks` later; `None` past the ends of the calendar.
pub(super) fn shifted(moment: Timestamp, ticks: i64) -> Option<Timestamp> {
    let nanos = i128::from(ticks) * NANOS_PER_TICK;
    moment.checked_add(SignedDuration::try_from_nanos_i128(nanos)?).ok()
}

/// Text of a moment as `tostring` writes it: always seven fraction digits.
pub(super) fn datetime_text(moment: Timestamp) -> String {
    format!("{:.7}", to_tick(moment))
}

fn timespan_text(span: i64) -> String {
    let (sign, span) = (if span < 0 { "-" } else { "" }, span.unsigned_abs());
    let (day, second) = (TICKS_PER_DAY.unsigned_abs(), TICKS_PER_SECOND.unsigned_abs());
    let mut text = String::from(sign);
    if span >= day {
        let _ = write!(text, "{}.", span / day);
    }
    let seconds = span % day / second;
    let _ = write!(text, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if span % second != 0 {
        let _ = write!(text, ".{:07}", span % second);
    }
    text
}

/// Text of a real: a whole one keeps its `.0`, so that it stays a real when read back.
pub(super) fn real_text(number: f64) -> String {
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_the_forms_that_queries_and_columns_use() {
        for (text, expected) in [
            ("2026-11-20T09:00:00Z", Some("2026-11-20T09:00:00Z")),
            ("2026-11-20 09:00:00.5", Some("2026-11-20T09:00:00.5Z")),
            ("2026-11-20", Some("2026-11-20T00:00:00Z")),
            (" 2026-11-20T09:00:00.12345678Z ", Some("2026-11-20T09:00:00.1234567Z")),
            ("2026-11-20T09:00:00+02:00", Some("2026-11-20T07:00:00Z")),
            ("2026-13-20T09:00:00Z", None),
            ("2026-11-20x", None),
            ("äöüäöüäöü", None),
            ("", None),
        ] {
            let read = parse_datetime(text).map(|moment| moment.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn values_print_as_the_service_prints_them() {
        let moment: Timestamp = "2026-11-20T08:40:00Z".parse().unwrap();
        for (value, text) in [
            (Value::from(moment), "2026-11-20T08:40:00.0000000Z"),
            (Value::Timespan(2 * 3600 * TICKS_PER_SECOND), "02:00:00"),
            (Value::Timespan(-TICKS_PER_DAY - 5), "-1.00:00:00.0000005"),
            (Value::Real(2.0), "2.0"),
            (Value::Null, ""),
            (Value::Bool(true), "true"),
            (Value::from(Dynamic::String("x".into())), "x"),
        ] {
            assert_eq!(&*value.text(), text);
        }
        assert_eq!(Value::from(moment).to_json(), json!("2026-11-20T08:40:00Z"));
    }
}
