//! The caller's language: what Cisco Threat Response sends and what it may be answered (`relay.md` 1 to 4).
//!
//! Pure: values and `now` in, values out. Knows neither the queue nor Defender; what Defender found becomes a
//! [`ctim::Sighting`] in `mapping`. Every answer is a body of this module, so that no other place spells the envelope.

pub mod ctim;
pub mod error;
pub mod key_set;
pub mod limit;
pub mod observable;
pub mod payload;
pub mod refer;
pub mod respond;
pub mod token;
pub mod trigger;

pub use error::{ErrorType, RelayError};
pub use observable::{Kind, Observable};

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use self::ctim::Document;

/// Most observables that one request may carry (`DESIGN.md` 5); more is E2 with the limit in `_schema`.
pub const MAX_OBSERVABLES: usize = 1_000;
/// Longest request body in bytes (`relay.md` 4.3); longer is HTTP 413.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// An answer to `/observe/observables` (`relay.md` 1.2 and 3.1), also a partial one.
#[derive(Debug, Default, Clone)]
pub struct ObserveReply {
    /// The sightings, in request order.
    pub docs: Vec<Document>,
    /// What was not found out, and why.
    pub errors: Vec<RelayError>,
}

impl ObserveReply {
    /// The whole body, as JSON text. No two errors are equal in code and message, no two documents are the same text
    /// (`relay.md` 1.1 forbids repeats in `docs`); `data` is left out when there are errors and no documents.
    pub fn to_body(self) -> Vec<u8> {
        let mut seen = HashSet::with_capacity(self.docs.len());
        let docs: Vec<&str> = self.docs.iter().map(Document::as_str).filter(|doc| seen.insert(*doc)).collect();
        let errors = error::distinct(self.errors);
        let mut body = Vec::with_capacity(docs.iter().map(|doc| doc.len() + 1).sum::<usize>() + 256);
        body.push(b'{');
        if !errors.is_empty() {
            body.extend_from_slice(br#""errors":"#);
            serde_json::to_writer(&mut body, &errors).expect("a list of texts always serialises into memory");
        }
        if !docs.is_empty() {
            let comma = if errors.is_empty() { "" } else { "," };
            let count = docs.len();
            body.extend_from_slice(format!(r#"{comma}"data":{{"sightings":{{"count":{count},"docs":["#).as_bytes());
            for (position, doc) in docs.into_iter().enumerate() {
                if position > 0 {
                    body.push(b',');
                }
                body.extend_from_slice(doc.as_bytes());
            }
            body.extend_from_slice(b"]}}");
        } else if errors.is_empty() {
            body.extend_from_slice(br#""data":{}"#);
        }
        body.push(b'}');
        body
    }
}

/// `{"errors": [...]}` without data: the whole answer when nothing was found out.
pub fn failure(errors: &[RelayError]) -> Value {
    json!({ "errors": errors })
}

/// `/health`, when all is well.
pub fn health_ok() -> Value {
    json!({"data": {"status": "ok"}})
}

/// `/version`: no `data` around it.
pub fn version(version: &str) -> Value {
    json!({ "version": version })
}

/// `/observe` and `/deliberate` with nothing to say, also when switched off.
pub fn no_data() -> Value {
    json!({"data": {}})
}

/// `/refer` and `/respond/observables` with nothing to offer, also when switched off.
pub fn empty_list() -> Value {
    json!({"data": []})
}

/// `/refer` with these links.
pub fn links(links: &[refer::Link]) -> Value {
    json!({ "data": links })
}

/// `/respond/trigger` when the action was taken.
pub fn trigger_success() -> Value {
    json!({"data": {"status": "success"}})
}

/// `/respond/trigger` when it was not; for a switched-off route with [`RelayError::unsupported_action`].
pub fn trigger_failure(errors: &[RelayError]) -> Value {
    json!({"data": {"status": "failure"}, "errors": errors})
}

/// An answer below the relay protocol, with an HTTP status of its own (`relay.md` 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(description = "An answer from below the relay.", deny_unknown_fields)]
pub struct HttpError {
    /// The HTTP status.
    pub code: u16,
    /// What was wrong.
    pub message: &'static str,
    /// Its class.
    pub reason: &'static str,
}

impl HttpError {
    /// Unknown route.
    pub const NOT_FOUND: Self = Self { code: 404, message: "The requested URL was not found.", reason: "NotFound" };
    /// Known route, wrong method; goes with `Allow`.
    pub const METHOD_NOT_ALLOWED: Self =
        Self { code: 405, message: "The method is not allowed for the requested URL.", reason: "MethodNotAllowed" };
    /// What stands in the place of a machine action's id is none.
    pub const NO_ACTION_ID: Self =
        Self { code: 400, message: "The id of a machine action is letters, digits and dashes.", reason: "BadRequest" };
    /// Defender does not know the machine action.
    pub const UNKNOWN_ACTION: Self =
        Self { code: 404, message: "Defender does not know the machine action.", reason: "NotFound" };
    /// Body over [`MAX_BODY_BYTES`].
    pub const PAYLOAD_TOO_LARGE: Self =
        Self { code: 413, message: "The request body is too large.", reason: "PayloadTooLarge" };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents of sightings with these ids, which is all that tells them apart.
    fn body(ids: &[&str], errors: Vec<RelayError>) -> Value {
        let observable = Observable::parse("ip", "192.0.2.1").unwrap();
        let doc = |id: &&str| {
            let time = ctim::ObservedTime { start_time: "s".into(), end_time: "e".into() };
            ctim::Sighting::new((*id).into(), time).render().document(&observable)
        };
        let reply = ObserveReply { docs: ids.iter().map(doc).collect(), errors };
        let mut body: Value = serde_json::from_slice(&reply.to_body()).unwrap();
        if let Some(docs) = body.pointer_mut("/data/sightings/docs") {
            for doc in docs.as_array_mut().unwrap() {
                *doc = doc["id"].clone();
            }
        }
        body
    }

    #[test]
    fn nothing_found_is_an_empty_data_object() {
        assert_eq!(body(&[], vec![]), no_data());
    }

    #[test]
    fn sightings_come_with_their_count_and_without_repeats() {
        assert_eq!(body(&["1", "2", "1"], vec![]), json!({"data": {"sightings": {"count": 2, "docs": ["1", "2"]}}}));
    }

    #[test]
    fn an_error_without_sightings_comes_without_data() {
        assert_eq!(
            body(&[], vec![RelayError::unforeseen(), RelayError::unforeseen()]),
            json!({"errors": [{"code": "unknown", "message": "Something went wrong.", "type": "fatal"}]})
        );
    }

    /// Defects 14 and 66: what was found stays, as `count` and `docs`, beside the error.
    #[test]
    fn an_error_keeps_the_sightings_that_were_found() {
        assert_eq!(
            body(&["1"], vec![RelayError::deadline(true)]),
            json!({
                "errors": [{
                    "code": "deadline",
                    "message": "The request was not finished in time; the answer may be incomplete.",
                    "type": "warning",
                }],
                "data": {"sightings": {"count": 1, "docs": ["1"]}},
            })
        );
    }

    #[test]
    fn the_small_bodies_are_those_of_the_contract() {
        assert_eq!(health_ok(), json!({"data": {"status": "ok"}}));
        assert_eq!(version("1.2.3"), json!({"version": "1.2.3"}));
        assert_eq!(empty_list(), json!({"data": []}));
        assert_eq!(trigger_success(), json!({"data": {"status": "success"}}));
        // Defect 61: a switched-off trigger fails.
        assert_eq!(
            trigger_failure(&[RelayError::unsupported_action()]),
            json!({
                "data": {"status": "failure"},
                "errors": [{
                    "code": "invalid request",
                    "message": "Invalid request to Microsoft Defender for Endpoint. Unsupported action.",
                    "type": "fatal",
                }],
            })
        );
        assert_eq!(
            serde_json::to_value(HttpError::NOT_FOUND).unwrap(),
            json!({"code": 404, "message": "The requested URL was not found.", "reason": "NotFound"})
        );
        assert_eq!(
            serde_json::to_value(HttpError::METHOD_NOT_ALLOWED).unwrap(),
            json!({
                "code": 405,
                "message": "The method is not allowed for the requested URL.",
                "reason": "MethodNotAllowed",
            })
        );
        assert_eq!(
            serde_json::to_value(HttpError::PAYLOAD_TOO_LARGE).unwrap(),
            json!({"code": 413, "message": "The request body is too large.", "reason": "PayloadTooLarge"})
        );
    }
}
