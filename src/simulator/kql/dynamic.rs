//! Dynamic values: JSON with the language's own scalars inside.
//!
//! A bag keeps the order of its members, which `serde_json::Value` does not promise, because queries hand bags back as
//! text and the service keeps the order of `bag_pack`.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::value::{Value, real_text};

/// A dynamic value.
#[derive(Debug, Clone, PartialEq)]
pub enum Dynamic {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Long(i64),
    /// Any other number.
    Real(f64),
    /// Text.
    String(Arc<str>),
    /// A moment; text in JSON.
    DateTime(Timestamp),
    /// A span in ticks; text in JSON.
    Timespan(i64),
    /// An array.
    Array(Vec<Dynamic>),
    /// A property bag, in the order of its making.
    Bag(Vec<(Arc<str>, Dynamic)>),
}

impl Dynamic {
    /// What `parse_json` makes of `text`: text that is no JSON becomes a string, empty text nothing.
    pub(super) fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Null;
        }
        serde_json::from_str(text).unwrap_or_else(|_| Self::String(text.into()))
    }

    /// The value inside, if it is a scalar; arrays and bags stay dynamic.
    pub(super) fn to_scalar(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Long(number) => Value::Long(*number),
            Self::Real(number) => Value::Real(*number),
            Self::String(text) => Value::String(text.clone()),
            Self::DateTime(moment) => Value::DateTime(*moment),
            Self::Timespan(ticks) => Value::Timespan(*ticks),
            other => Value::Dynamic(Arc::new(other.clone())),
        }
    }

    /// The member `name` of a bag; null for anything else. Names are case-sensitive.
    pub(super) fn member(&self, name: &str) -> Self {
        let Self::Bag(members) = self else { return Self::Null };
        members.iter().find(|(key, _)| &**key == name).map_or(Self::Null, |(_, value)| value.clone())
    }

    /// The element `index` of an array, counted from the end if negative; null for anything else.
    pub(super) fn element(&self, index: i64) -> Self {
        let Self::Array(elements) = self else { return Self::Null };
        let length = i64::try_from(elements.len()).unwrap_or(i64::MAX);
        let index = if index < 0 { index.saturating_add(length) } else { index };
        usize::try_from(index).ok().and_then(|index| elements.get(index)).cloned().unwrap_or(Self::Null)
    }
}

impl From<&Value> for Dynamic {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Int(number) => Self::Long((*number).into()),
            Value::Long(number) => Self::Long(*number),
            Value::Real(number) => Self::Real(*number),
            Value::String(text) => Self::String(text.clone()),
            Value::DateTime(moment) => Self::DateTime(*moment),
            Value::Timespan(ticks) => Self::Timespan(*ticks),
            Value::Dynamic(dynamic) => (**dynamic).clone(),
        }
    }
}

/// Compact JSON.
impl fmt::Display for Dynamic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Long(number) => write!(f, "{number}"),
            Self::Real(number) if number.is_finite() => f.write_str(&real_text(*number)),
            Self::Real(number) => quoted(f, &real_text(*number)),
            Self::String(text) => quoted(f, text),
            Self::DateTime(moment) => quoted(f, &Value::DateTime(*moment).text()),
            Self::Timespan(ticks) => quoted(f, &Value::Timespan(*ticks).text()),
            Self::Array(elements) => {
                f.write_str("[")?;
                for (at, element) in elements.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    element.fmt(f)?;
                }
                f.write_str("]")
            }
            Self::Bag(members) => {
                f.write_str("{")?;
                for (at, (name, value)) in members.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { "," })?;
                    quoted(f, name)?;
                    f.write_str(":")?;
                    value.fmt(f)?;
                }
                f.write_str("}")
            }
        }
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&serde_json::Value::from(text).to_string())
}

impl<'de> Deserialize<'de> for Dynamic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Dynamic;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Dynamic, E> {
        Ok(Dynamic::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Dynamic, E> {
        Ok(Dynamic::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Dynamic, E> {
        Ok(Dynamic::Long(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Dynamic, E> {
        // Past the range of `long` the nearest real is as near as the language gets.
        Ok(i64::try_from(number).map_or(Dynamic::Real(number as f64), Dynamic::Long))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Dynamic, E> {
        Ok(Dynamic::Real(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Dynamic, E> {
        Ok(Dynamic::String(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dynamic, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(Dynamic::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dynamic, A::Error> {
        let mut members: Vec<(Arc<str>, Dynamic)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Dynamic>()? {
            members.push((name.into(), value));
        }
        Ok(Dynamic::Bag(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_order_and_reads_back_equal() {
        let text = r#"{"mac":"00","b":[1,2.5,-3,true,null,"ä\"\n"],"a":{"z":{},"y":[]}}"#;
        let dynamic = Dynamic::parse(text);
        assert_eq!(dynamic.to_string(), text);
        assert_eq!(Dynamic::parse(&dynamic.to_string()), dynamic);
    }

    #[test]
    fn text_that_is_no_json_becomes_a_string_and_empty_text_nothing() {
        assert_eq!(Dynamic::parse("plain"), Dynamic::String("plain".into()));
        assert_eq!(Dynamic::parse(""), Dynamic::Null);
    }

    #[test]
    fn members_and_elements_that_are_not_there_are_null() {
        let dynamic = Dynamic::parse(r#"{"Isolated":"true","list":[1,2]}"#);
        assert_eq!(dynamic.member("Isolated"), Dynamic::String("true".into()));
        assert_eq!(dynamic.member("isolated"), Dynamic::Null);
        assert_eq!(dynamic.element(0), Dynamic::Null);
        assert_eq!(dynamic.member("list").element(-1), Dynamic::Long(2));
        assert_eq!(dynamic.member("list").element(2), Dynamic::Null);
        assert_eq!(dynamic.member("list").element(i64::MIN), Dynamic::Null);
    }
}
