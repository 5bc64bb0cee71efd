//! Request bodies: the observable list and the action form (`relay.md` 1.4), and the details of E2 (3.5).
//!
//! Only the JSON shape is judged here; whether a value is valid for its type is [`super::observable`]'s question, and
//! its answer is never E2 (4.2). All problems of a body are reported at once, so that a caller can put them right in
//! one go.

use std::fmt;

use serde::Serialize as _;
use serde_json::{Map, Value, json, ser};

use super::MAX_OBSERVABLES;

/// Longest `indicator_id`, in digits: Defender's are 64-bit numbers.
const MAX_INDICATOR_ID_DIGITS: usize = 20;

const MISSING: &str = "Missing data for required field.";
const NULL: &str = "Field may not be null.";
const NOT_TEXT: &str = "Not a valid string.";
const BLANK: &str = "Field may not be blank.";
const NOT_INTEGER: &str = "Not a valid integer.";

/// What is wrong with a body, all problems at once. `Display` gives the JSON text of `<details>` with the separators
/// `", "` and `": "`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details(Map<String, Value>);

impl Details {
    fn schema(text: impl Into<Value>) -> Self {
        Self(Map::from_iter([("_schema".to_owned(), json!([text.into()]))]))
    }

    fn wrong_type() -> Self {
        Self::schema("Invalid input type.")
    }

    /// The body is larger than [`MAX_OBSERVABLES`] allows.
    fn too_long() -> Self {
        Self::schema(format!("Longer than maximum length {MAX_OBSERVABLES}."))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, member: &str, problem: &str) {
        self.0.insert(member.to_owned(), json!([problem]));
    }

    /// A required text: its value, or an empty text and one problem more.
    fn text(&mut self, object: &Map<String, Value>, member: &str) -> String {
        let problem = match object.get(member) {
            None => MISSING,
            Some(Value::Null) => NULL,
            Some(Value::String(text)) if text.is_empty() => BLANK,
            Some(Value::String(text)) => return text.clone(),
            Some(_) => NOT_TEXT,
        };
        self.add(member, problem);
        String::new()
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.0
            .serialize(&mut ser::Serializer::with_formatter(&mut text, Spaced))
            .expect("a JSON value always serialises into memory");
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// One line, with a space after each comma and colon.
struct Spaced;

impl ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Reads an observable list: (type, value) as received, in order. Members other than these two are ignored.
///
/// # Errors
/// The details of E2, unless it is a list of at most [`MAX_OBSERVABLES`] objects that each have both members.
pub fn observable_list(body: &[u8]) -> Result<Vec<(String, String)>, Details> {
    let Ok(Value::Array(items)) = serde_json::from_slice(body) else {
        return Err(Details::wrong_type());
    };
    if items.len() > MAX_OBSERVABLES {
        return Err(Details::too_long());
    }
    let mut details = Details::default();
    let mut list = Vec::with_capacity(items.len());
    for (position, item) in items.iter().enumerate() {
        let problems = match item.as_object() {
            None => Details::wrong_type(),
            Some(object) => {
                let mut problems = Details::default();
                list.push((problems.text(object, "type"), problems.text(object, "value")));
                problems
            }
        };
        if !problems.is_empty() {
            details.0.insert(position.to_string(), Value::Object(problems.0));
        }
    }
    if details.is_empty() { Ok(list) } else { Err(details) }
}

/// The body of `/respond/trigger`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionForm {
    /// `action-id`, as received.
    pub action_id: String,
    /// As received.
    pub observable_type: String,
    /// As received.
    pub observable_value: String,
    /// Digits, as text whether it came as a number or as text: the platform may turn one into the other.
    pub indicator_id: Option<String>,
}

/// Reads an action form. Members other than its own are ignored.
///
/// # Errors
/// The details of E2.
pub fn action_form(body: &[u8]) -> Result<ActionForm, Details> {
    let Ok(Value::Object(object)) = serde_json::from_slice(body) else {
        return Err(Details::wrong_type());
    };
    let mut details = Details::default();
    let form = ActionForm {
        action_id: details.text(&object, "action-id"),
        observable_type: details.text(&object, "observable_type"),
        observable_value: details.text(&object, "observable_value"),
        indicator_id: match object.get("indicator_id") {
            None => None,
            Some(Value::Null) => {
                details.add("indicator_id", NULL);
                None
            }
            Some(value) => {
                let digits = digits(value);
                if digits.is_none() {
                    details.add("indicator_id", NOT_INTEGER);
                }
                digits
            }
        },
    };
    if details.is_empty() { Ok(form) } else { Err(details) }
}

/// A whole number that is not negative, or a text of digits; it becomes a path segment, so nothing else may pass.
fn digits(value: &Value) -> Option<String> {
    let text = match value {
        Value::Number(number) => number.as_u64()?.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    (!text.is_empty() && text.len() <= MAX_INDICATOR_ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn details_of(body: &[u8]) -> Value {
        serde_json::from_str(&observable_list(body).unwrap_err().to_string()).unwrap()
    }

    #[test]
    fn a_list_is_read_in_order_and_as_spelled() {
        let list = observable_list(br#"[{"type":"IP","value":" 192.0.2.1 "},{"value":"B","type":"x"}]"#).unwrap();
        assert_eq!(list, [("IP".into(), " 192.0.2.1 ".into()), ("x".into(), "B".into())]);
        assert_eq!(observable_list(b"[]").unwrap(), []);
    }

    /// Defect 16.
    #[test]
    fn unknown_members_are_ignored() {
        assert_eq!(
            observable_list(br#"[{"type":"ip","value":"192.0.2.1","extra":{"a":[null]}}]"#).unwrap(),
            [("ip".into(), "192.0.2.1".into())]
        );
    }

    #[test]
    fn what_is_not_a_list_is_a_wrong_input_type() {
        let bodies: [&[u8]; 9] =
            [b"", b" ", b"{bad", b"{}", b"null", b"7", br#""x""#, b"[1", &[b'[', b'"', 0xff, b'"', b']']];
        for body in bodies {
            assert_eq!(details_of(body), json!({"_schema": ["Invalid input type."]}), "{body:?}");
        }
    }

    #[test]
    fn every_problem_of_every_item_is_named_at_once() {
        assert_eq!(
            details_of(
                br#"[{"type":"ip","value":"1"}, 5, {}, {"type":null,"value":""}, {"type":3,"value":["x"]}, {"type":"ip"}, null]"#
            ),
            json!({
                "1": {"_schema": ["Invalid input type."]},
                "2": {"type": ["Missing data for required field."], "value": ["Missing data for required field."]},
                "3": {"type": ["Field may not be null."], "value": ["Field may not be blank."]},
                "4": {"type": ["Not a valid string."], "value": ["Not a valid string."]},
                "5": {"value": ["Missing data for required field."]},
                "6": {"_schema": ["Invalid input type."]},
            })
        );
    }

    #[test]
    fn the_text_of_the_details_has_spaces_after_commas_and_colons() {
        let details = observable_list(br#"[{"type":"unknown","value":""},{"type":1,"value":""}]"#).unwrap_err();
        assert_eq!(
            details.to_string(),
            r#"{"0": {"value": ["Field may not be blank."]}, "1": {"type": ["Not a valid string."], "value": ["Field may not be blank."]}}"#
        );
    }

    #[test]
    fn a_list_over_the_limit_is_refused_with_the_limit_in_the_text() {
        let list = |length: usize| format!("[{}]", vec![r#"{"type":"a","value":"b"}"#; length].join(","));
        assert_eq!(observable_list(list(1000).as_bytes()).unwrap().len(), 1000);
        assert_eq!(details_of(list(1001).as_bytes()), json!({"_schema": ["Longer than maximum length 1000."]}));
    }

    #[test]
    fn an_action_form_is_read_and_its_indicator_id_is_always_text() {
        let form = |id: &str| {
            action_form(
                format!(r#"{{"action-id":"a","observable_type":"ip","observable_value":"v","other":1{id}}}"#)
                    .as_bytes(),
            )
        };
        assert_eq!(
            form("").unwrap(),
            ActionForm {
                action_id: "a".into(),
                observable_type: "ip".into(),
                observable_value: "v".into(),
                indicator_id: None
            }
        );
        for (id, text) in
            [("17", "17"), (r#""17""#, "17"), ("0", "0"), ("18446744073709551615", "18446744073709551615")]
        {
            let form = form(&format!(r#","indicator_id":{id}"#)).unwrap();
            assert_eq!(form.indicator_id.as_deref(), Some(text));
        }
        for id in ["-1", "1.5", "true", r#""""#, r#""1a""#, r#"" 1""#, r#""../1""#, "[]", r#""111111111111111111111""#]
        {
            assert_eq!(
                form(&format!(r#","indicator_id":{id}"#)).unwrap_err().to_string(),
                r#"{"indicator_id": ["Not a valid integer."]}"#,
                "{id}"
            );
        }
        assert_eq!(
            form(r#","indicator_id":null"#).unwrap_err().to_string(),
            r#"{"indicator_id": ["Field may not be null."]}"#
        );
    }

    #[test]
    fn an_action_form_names_every_problem() {
        let details = action_form(br#"{"wrong_key":"x","observable_type":"","observable_value":null}"#).unwrap_err();
        assert_eq!(
            serde_json::from_str::<Value>(&details.to_string()).unwrap(),
            json!({
                "action-id": ["Missing data for required field."],
                "observable_type": ["Field may not be blank."],
                "observable_value": ["Field may not be null."],
            })
        );
        for body in ["", "[]", "null", "{"] {
            assert_eq!(
                action_form(body.as_bytes()).unwrap_err().to_string(),
                r#"{"_schema": ["Invalid input type."]}"#
            );
        }
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_explained(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Err(details) = observable_list(&body) {
                prop_assert!(serde_json::from_str::<Value>(&details.to_string()).unwrap().is_object());
            }
            let _ = action_form(&body);
        }
    }
}
