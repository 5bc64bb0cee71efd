//! Functions of moments.

use super::super::value::{TICKS_PER_DAY, TICKS_PER_SECOND, Value, parse_datetime, ticks};
use super::strings::text;

/// Ticks per period that `datetime_diff` counts; `None` for a period that is not handled (months differ in length).
pub(in super::super) fn period_ticks(period: &str) -> Option<i64> {
    Some(match period.to_ascii_lowercase().as_str() {
        "day" => TICKS_PER_DAY,
        "hour" => 3600 * TICKS_PER_SECOND,
        "minute" => 60 * TICKS_PER_SECOND,
        "second" => TICKS_PER_SECOND,
        "millisecond" => TICKS_PER_SECOND / 1000,
        "microsecond" => TICKS_PER_SECOND / 1_000_000,
        _ => return None,
    })
}

/// How often a new period begins between two moments: `datetime_diff(period, later, earlier)`.
pub(super) fn datetime_diff(arguments: &[Value]) -> Value {
    let (Some(period), Value::DateTime(later), Value::DateTime(earlier)) =
        (period_ticks(text(&arguments[0])), &arguments[1], &arguments[2])
    else {
        return Value::Null;
    };
    let index = |moment| ticks(moment).div_euclid(period.into());
    i64::try_from(index(*later) - index(*earlier)).map_or(Value::Null, Value::Long)
}

pub(super) fn todatetime(arguments: &[Value]) -> Value {
    match arguments[0].unwrapped() {
        Value::DateTime(moment) => Value::DateTime(moment),
        Value::String(text) => parse_datetime(&text).map_or(Value::Null, Value::DateTime),
        _ => Value::Null,
    }
}
