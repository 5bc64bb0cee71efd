//! Takes our own secrets out of what a server says in refusing a call, before its text goes anywhere: into an error,
//! from there into logs, spans and the caller's answer. No service repeats a secret on purpose; a proxy in between, or
//! tomorrow's wording, may.

use bytes::Bytes;
use serde_json::Value;
use url::form_urlencoded;

/// What stands in place of a secret.
const HIDDEN: &str = "***";

/// A shorter text is no secret that Entra made (they have 40 characters), and to hide it would garble what is said.
const SHORTEST_SECRET_CHARS: usize = 8;

/// `body` without `secrets` in the texts of its JSON. A body that is not JSON stays as it is: none of it is ever shown.
pub fn without(secrets: &[&str], body: Bytes) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<Value>(&body) else { return body };
    let mut forms: Vec<String> = secrets
        .iter()
        .filter(|secret| secret.chars().count() >= SHORTEST_SECRET_CHARS)
        .flat_map(|secret| [(*secret).to_owned(), form(secret), form(secret).replace('+', "%20")])
        .collect();
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms.dedup();
    if hide(&forms, &mut value) { value.to_string().into() } else { body }
}

/// Whether anything was hidden.
fn hide(forms: &[String], value: &mut Value) -> bool {
    match value {
        Value::String(text) => {
            let mut found = false;
            for form in forms.iter().filter(|form| !form.is_empty()) {
                if text.contains(form.as_str()) {
                    *text = text.replace(form.as_str(), HIDDEN);
                    found = true;
                }
            }
            found
        }
        // Not `any`: each has to be looked at.
        Value::Array(items) => items.iter_mut().fold(false, |found, item| hide(forms, item) | found),
        Value::Object(members) => members.values_mut().fold(false, |found, member| hide(forms, member) | found),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// As in a form, which is how the token endpoint gets it.
fn form(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const SECRET: &str = "pl4nted~secret \"of\"+the/tenant&\\é";

    #[test]
    fn a_secret_is_hidden_wherever_it_stands_and_however_it_is_written() {
        let escaped = serde_json::to_string(SECRET).unwrap().replace('/', "\\/").replace('é', "\\u00e9");
        let form = form(SECRET);
        let body = format!(
            r#"{{"error":{{"message":{escaped},"more":["a {form} b","a {} b"]}},"n":1}}"#,
            form.replace('+', "%20")
        );
        let shown = without(&[SECRET], body.into());
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        assert_eq!(shown, serde_json::json!({"error": {"message": "***", "more": ["a *** b", "a *** b"]}, "n": 1}));
    }

    #[rstest]
    #[case::no_secret(br#"{"error":"nothing to hide"}"#)]
    #[case::html(b"<html>pl4nted~secret</html>")]
    #[case::empty(b"")]
    #[case::not_utf8(b"\xff")]
    fn what_holds_no_secret_stays_byte_for_byte(#[case] body: &'static [u8]) {
        assert_eq!(without(&[SECRET, ""], Bytes::from_static(body)), body);
    }

    #[test]
    fn a_text_too_short_for_a_secret_garbles_nothing() {
        let body = Bytes::from_static(br#"{"error":"a word"}"#);
        assert_eq!(without(&["a"], body.clone()), body);
    }

    proptest! {
        #[test]
        fn no_text_shows_the_secret(before in ".{0,20}", after in ".{0,20}", secret in "[ -~]{8,40}") {
            prop_assume!(!HIDDEN.contains(&secret) && !secret.contains(HIDDEN));
            let body = serde_json::json!({"error": format!("{before}{secret}{after}")}).to_string();
            let shown: Value = serde_json::from_slice(&without(&[&secret], body.into())).unwrap();
            let shown = shown["error"].as_str().unwrap();
            // What stands around it may happen to make up another one with the stars; here only the planted one counts.
            prop_assert!(shown.contains(HIDDEN));
        }
    }
}
