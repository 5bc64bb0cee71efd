//! The id of an event (`cognito.md` 4.6). Pure.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use serde_json::{Map, Value};

/// Hexadecimal digits of the hash that are part of an id.
const HASH_DIGITS: usize = 32;

/// What an event is called, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EventId {
    /// By its sender, in the event.
    Given(String),
    /// By the request that brought it: `webhook-id`, with the index in an array.
    Delivery(String),
    /// By its content: good to find it again in logs, and no more. Two equal events are two.
    Content(String),
}

impl EventId {
    /// The id of an event: its own, or that of its request, or one made from `element`, the event as received.
    pub(super) fn of(given: Option<String>, webhook_id: Option<&str>, index: Option<usize>, element: &Value) -> Self {
        match (given, webhook_id, index) {
            (Some(id), _, _) => Self::Given(id),
            (None, Some(id), None) => Self::Delivery(id.to_owned()),
            (None, Some(id), Some(index)) => Self::Delivery(format!("{id}.{index}")),
            (None, None, _) => Self::Content(hash(element)),
        }
    }

    /// As in answers, messages and logs.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Given(id) | Self::Delivery(id) | Self::Content(id) => id,
        }
    }
}

/// `sha256:` and the first digits of the SHA-256 of the brain's name (the only brain has none), a zero byte and the
/// canonical event.
fn hash(element: &Value) -> String {
    let mut text = String::from("\0");
    canonical(element, &mut text);
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let mut id = String::from("sha256:");
    for byte in &digest.as_ref()[..HASH_DIGITS / 2] {
        write!(id, "{byte:02x}").expect("writing to a string does not fail");
    }
    id
}

/// Writes `value` as canonical JSON (RFC 8785).
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(yes) => text.push_str(if *yes { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&ecmascript(number.as_f64().unwrap_or_default())),
        Value::String(string) => quoted(string, text),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                canonical(item, text);
            }
            text.push(']');
        }
        Value::Object(members) => object(members, text),
    }
}

fn object(members: &Map<String, Value>, text: &mut String) {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    text.push('{');
    for (index, (name, value)) in members.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        quoted(name, text);
        text.push(':');
        canonical(value, text);
    }
    text.push('}');
}

/// The library escapes what RFC 8785 3.2.2.2 asks for, and nothing else.
fn quoted(string: &str, text: &mut String) {
    text.push_str(&serde_json::to_string(string).expect("a string serialises"));
}

/// A number as ECMAScript writes it (ECMA-262, `Number::toString`), from the shortest digits that mean it.
fn ecmascript(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    // The library's digits are the shortest, and of two that are equally near the even ones, as RFC 8785 asks.
    let shortest = Value::from(number.abs()).to_string();
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i32 = exponent.parse().expect("an exponent is a whole number");
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    // The decimal point stands after so many digits; below zero, so many zeros stand between.
    let point = places(whole) + exponent - places(&all) + places(digits);
    let digits = digits.trim_end_matches('0');
    let count = places(digits);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    let unsigned = if count <= point && point <= 21 {
        format!("{digits}{}", zeros(point - count))
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
        format!("{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{first}{dot}{rest}e{:+}", point - 1)
    };
    if number < 0.0 { format!("-{unsigned}") } else { unsigned }
}

fn places(digits: &str) -> i32 {
    i32::try_from(digits.len()).expect("a double is written with some hundred digits at most")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn written(json: &str) -> String {
        let mut text = String::new();
        canonical(&serde_json::from_str(json).unwrap(), &mut text);
        text
    }

    #[test]
    fn the_example_of_the_rfc_is_written_as_there() {
        let json = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let expected = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
                        \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(written(json), expected);
    }

    #[test]
    fn names_are_sorted_by_their_utf_16() {
        let json = r#"{"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\ud83d\ude00": 5, "\u0080": 6, "\u00f6": 7}"#;
        assert_eq!(written(json), "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}");
    }

    #[test]
    fn numbers_are_written_as_in_appendix_b() {
        for (bits, expected) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            assert_eq!(ecmascript(f64::from_bits(bits)), expected, "{bits:x}");
        }
    }

    #[test]
    fn an_id_comes_from_the_event_or_its_request_or_its_content() {
        let element = json!({"type": "host.reconcile", "host": {"id": 4711}});
        let given = || Some("evt-1".to_owned());
        for (own, webhook_id, index, expected) in [
            (given(), Some("msg_1"), Some(1), EventId::Given("evt-1".into())),
            (given(), None, None, EventId::Given("evt-1".into())),
            (None, Some("msg_1"), None, EventId::Delivery("msg_1".into())),
            (None, Some("msg_1"), Some(0), EventId::Delivery("msg_1.0".into())),
            // printf '\0{"host":{"id":4711},"type":"host.reconcile"}' | sha256sum
            (None, None, Some(3), EventId::Content("sha256:6f02050ab606c7000dd5f42b1a87ebc5".into())),
        ] {
            assert_eq!(EventId::of(own, webhook_id, index, &element), expected);
        }
    }

    proptest! {
        #[test]
        fn canonical_json_means_the_same(number in any::<f64>().prop_filter("finite", |n| n.is_finite()), text in any::<String>()) {
            let value = json!({"b": number, "a": [text, {"z": null}]});
            let again: Value = serde_json::from_str(&written(&value.to_string())).unwrap();
            prop_assert_eq!(&again["a"], &value["a"]);
            prop_assert_eq!(ecmascript(number).parse::<f64>().unwrap(), number);
        }
    }
}
