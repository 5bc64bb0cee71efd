//! Functions of text. Positions and lengths count characters.

use super::super::dynamic::Dynamic;
use super::super::value::Value;

/// The text of an argument whose type has been checked.
pub(super) fn text(value: &Value) -> &str {
    match value {
        Value::String(text) => text,
        _ => "",
    }
}

pub(super) fn strcat(arguments: &[Value]) -> Value {
    let mut joined = String::new();
    for argument in arguments {
        joined.push_str(&argument.text());
    }
    joined.into()
}

pub(super) fn tolower(arguments: &[Value]) -> Value {
    text(&arguments[0]).to_lowercase().into()
}

pub(super) fn toupper(arguments: &[Value]) -> Value {
    text(&arguments[0]).to_uppercase().into()
}

pub(super) fn strlen(arguments: &[Value]) -> Value {
    count(text(&arguments[0]).chars().count())
}

pub(super) fn count(count: usize) -> Value {
    Value::Long(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Position of the first occurrence; -1 if there is none.
pub(super) fn indexof(arguments: &[Value]) -> Value {
    let source = text(&arguments[0]);
    source.find(text(&arguments[1])).map_or(Value::Long(-1), |at| count(source[..at].chars().count()))
}

pub(super) fn split(arguments: &[Value]) -> Value {
    let (source, delimiter) = (text(&arguments[0]), text(&arguments[1]));
    let piece = |piece: &str| Dynamic::String(piece.into());
    if delimiter.is_empty() {
        return Dynamic::Array(vec![piece(source)]).into();
    }
    Dynamic::Array(source.split(delimiter).map(piece).collect()).into()
}

/// `trim(what, source)`. The service takes a regular expression; `bind` lets only plain text through.
pub(super) fn trim(arguments: &[Value]) -> Value {
    let (what, source) = (text(&arguments[0]), text(&arguments[1]));
    if what.is_empty() {
        return source.into();
    }
    source.trim_start_matches(what).trim_end_matches(what).into()
}

pub(super) fn replace_string(arguments: &[Value]) -> Value {
    let (source, what) = (text(&arguments[0]), text(&arguments[1]));
    if what.is_empty() {
        return source.into();
    }
    source.replace(what, text(&arguments[2])).into()
}

/// `substring(source, start [, length])`; a negative start counts from the end.
pub(super) fn substring(arguments: &[Value]) -> Value {
    let source = text(&arguments[0]);
    let Some(start) = arguments[1].as_long() else { return "".into() };
    let skip = match usize::try_from(start) {
        Ok(start) => start,
        Err(_) => source.chars().count().saturating_sub(usize::try_from(start.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let length = arguments.get(2).map_or(Some(i64::MAX), Value::as_long).unwrap_or(0);
    source.chars().skip(skip).take(usize::try_from(length).unwrap_or(0)).collect::<String>().into()
}
