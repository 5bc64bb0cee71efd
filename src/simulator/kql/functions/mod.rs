//! Scalar functions: name, what they take, what they give, how they are computed.
//!
//! Functions never fail at run time; what cannot be computed is null, or empty for text. `iff`, `case`, `now`, `ago`,
//! `not`, `row_number` and `prev` are not here: they are syntax rather than functions of their values (`bind`).

mod json;
mod strings;
mod times;

use super::value::{Type, Value};

pub(super) use self::times::period_ticks;

/// A scalar function.
pub(super) struct Function {
    name: &'static str,
    parameters: &'static [Parameter],
    /// Parameters that may be left out, from the end.
    optional: usize,
    /// Whether the parameters may be repeated, as a group.
    repeated: bool,
    result: Gives,
    pub(super) run: fn(&[Value]) -> Value,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What an argument may be.
#[derive(Clone, Copy)]
enum Parameter {
    Any,
    Exactly(Type),
    Whole,
    /// A number or a span.
    Signed,
    /// Text, or something dynamic that holds text.
    Json,
    /// The same type as the first argument.
    Alike,
}

#[derive(Clone, Copy)]
enum Gives {
    Exactly(Type),
    TheFirst,
}

impl Parameter {
    fn takes(self, kind: Type, first: Type) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(wanted) => kind == wanted,
            Self::Whole => matches!(kind, Type::Int | Type::Long),
            Self::Signed => kind.is_number() || kind == Type::Timespan,
            Self::Json => matches!(kind, Type::String | Type::Dynamic),
            Self::Alike => kind == first,
        }
    }
}

impl Function {
    /// The type of the result for arguments of these types, or what is wrong with them.
    pub(super) fn check(&self, arguments: &[Type]) -> Result<Type, String> {
        let (most, given) = (self.parameters.len(), arguments.len());
        let least = most - self.optional;
        let fits =
            if self.repeated { given > 0 && given.is_multiple_of(most) } else { (least..=most).contains(&given) };
        let Some(first) = arguments.first().filter(|_| fits) else {
            return Err(format!("{}(): wrong number of arguments ({given})", self.name));
        };
        for (at, kind) in arguments.iter().enumerate() {
            if !self.parameters[at % most].takes(*kind, *first) {
                return Err(format!("{}(): argument #{} must not be of type {}", self.name, at + 1, kind.name()));
            }
        }
        Ok(match self.result {
            Gives::Exactly(kind) => kind,
            Gives::TheFirst => *first,
        })
    }
}

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    let name = match name {
        "todynamic" => "parse_json",
        "pack" => "bag_pack",
        "todouble" => "toreal",
        "tobool" => "toboolean",
        other => other,
    };
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// Whether the service has a function of that name although the interpreter has not; the usual ones only.
pub(super) fn is_known_elsewhere(name: &str) -> bool {
    const KNOWN: [&str; 24] = [
        "array_concat",
        "base64_decode_tostring",
        "bin",
        "countof",
        "dayofweek",
        "endofday",
        "extract",
        "extract_all",
        "format_datetime",
        "gettype",
        "hash_sha256",
        "ipv4_is_private",
        "ipv4_is_in_range",
        "make_datetime",
        "matches",
        "parse_ipv4",
        "replace_regex",
        "reverse",
        "round",
        "set_union",
        "startofday",
        "strcat_array",
        "strcat_delim",
        "toscalar",
    ];
    KNOWN.contains(&name)
}

use Parameter::{Alike, Any, Json, Signed, Whole};

const TEXT: Parameter = Parameter::Exactly(Type::String);
const TIME: Parameter = Parameter::Exactly(Type::DateTime);
const DYNAMIC: Parameter = Parameter::Exactly(Type::Dynamic);

const fn fixed(
    name: &'static str,
    parameters: &'static [Parameter],
    result: Type,
    run: fn(&[Value]) -> Value,
) -> Function {
    Function { name, parameters, optional: 0, repeated: false, result: Gives::Exactly(result), run }
}

const fn repeated(
    name: &'static str,
    parameters: &'static [Parameter],
    result: Type,
    run: fn(&[Value]) -> Value,
) -> Function {
    Function { name, parameters, optional: 0, repeated: true, result: Gives::Exactly(result), run }
}

static FUNCTIONS: [Function; 27] = [
    repeated("strcat", &[Any], Type::String, strings::strcat),
    fixed("tolower", &[TEXT], Type::String, strings::tolower),
    fixed("toupper", &[TEXT], Type::String, strings::toupper),
    fixed("strlen", &[TEXT], Type::Long, strings::strlen),
    fixed("indexof", &[TEXT, TEXT], Type::Long, strings::indexof),
    fixed("split", &[TEXT, TEXT], Type::Dynamic, strings::split),
    fixed("trim", &[TEXT, TEXT], Type::String, strings::trim),
    fixed("replace_string", &[TEXT, TEXT, TEXT], Type::String, strings::replace_string),
    Function { optional: 1, ..fixed("substring", &[TEXT, Whole, Whole], Type::String, strings::substring) },
    fixed("isempty", &[Any], Type::Bool, |a| Value::Bool(a[0].text().is_empty())),
    fixed("isnotempty", &[Any], Type::Bool, |a| Value::Bool(!a[0].text().is_empty())),
    fixed("isnull", &[Any], Type::Bool, |a| Value::Bool(a[0] == Value::Null)),
    fixed("isnotnull", &[Any], Type::Bool, |a| Value::Bool(a[0] != Value::Null)),
    fixed("tostring", &[Any], Type::String, |a| Value::String(a[0].text())),
    fixed("toint", &[Any], Type::Int, |a| to_int(&a[0])),
    fixed("tolong", &[Any], Type::Long, |a| to_long(&a[0]).map_or(Value::Null, Value::Long)),
    fixed("toreal", &[Any], Type::Real, |a| to_real(&a[0])),
    fixed("toboolean", &[Any], Type::Bool, |a| to_bool(&a[0])),
    fixed("todatetime", &[Any], Type::DateTime, times::todatetime),
    fixed("datetime_diff", &[TEXT, TIME, TIME], Type::Long, times::datetime_diff),
    fixed("parse_json", &[Json], Type::Dynamic, json::parse_json),
    fixed("parse_url", &[TEXT], Type::Dynamic, json::parse_url),
    repeated("pack_array", &[Any], Type::Dynamic, json::pack_array),
    repeated("bag_pack", &[TEXT, Any], Type::Dynamic, json::bag_pack),
    fixed("array_length", &[DYNAMIC], Type::Long, json::array_length),
    Function { result: Gives::TheFirst, ..repeated("coalesce", &[Alike], Type::Dynamic, coalesce) },
    Function { result: Gives::TheFirst, ..fixed("abs", &[Signed], Type::Long, abs) },
];

fn coalesce(arguments: &[Value]) -> Value {
    let given =
        |value: &&Value| !matches!(value, Value::Null) && !matches!(value, Value::String(text) if text.is_empty());
    arguments.iter().find(given).or(arguments.last()).cloned().unwrap_or(Value::Null)
}

fn abs(arguments: &[Value]) -> Value {
    match &arguments[0] {
        Value::Int(number) => number.checked_abs().map_or(Value::Null, Value::Int),
        Value::Long(number) => number.checked_abs().map_or(Value::Null, Value::Long),
        Value::Real(number) => Value::Real(number.abs()),
        Value::Timespan(ticks) => ticks.checked_abs().map_or(Value::Null, Value::Timespan),
        _ => Value::Null,
    }
}

/// Converts to `kind` the way the language widens numbers.
pub(super) fn widen(value: &Value, kind: Type) -> Value {
    match kind {
        Type::Long => value.as_long().map_or(Value::Null, Value::Long),
        Type::Real => value.as_real().map_or(Value::Null, Value::Real),
        _ => value.clone(),
    }
}

fn to_long(value: &Value) -> Option<i64> {
    match value.unwrapped() {
        Value::Bool(truth) => Some(truth.into()),
        // The language cuts; the cast saturates past the range.
        Value::Real(number) if number.is_finite() => Some(number as i64),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_long(),
    }
}

fn to_int(value: &Value) -> Value {
    to_long(value).and_then(|number| i32::try_from(number).ok()).map_or(Value::Null, Value::Int)
}

fn to_real(value: &Value) -> Value {
    match value.unwrapped() {
        Value::Bool(truth) => Value::Real(f64::from(u8::from(truth))),
        Value::String(text) => text.trim().parse().map_or(Value::Null, Value::Real),
        other => other.as_real().map_or(Value::Null, Value::Real),
    }
}

fn to_bool(value: &Value) -> Value {
    match value.unwrapped() {
        Value::Bool(truth) => Value::Bool(truth),
        Value::String(text) if text.eq_ignore_ascii_case("true") || &*text == "1" => Value::Bool(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") || &*text == "0" => Value::Bool(false),
        other => other.as_real().map_or(Value::Null, |number| Value::Bool(number != 0.0)),
    }
}
