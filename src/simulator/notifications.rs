//! A receiver of notifications (`/_notifications`) by the rules of Standard Webhooks: it verifies each signature, keeps what
//! it took once for each `webhook-id`, and refuses the rest.

use std::collections::BTreeMap;

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, PLAIN_JSON};
use super::world::{World, lock};

/// How far the sender's clock may be away.
const WINDOW_SECONDS: u64 = 300;

/// The receiver's state.
#[derive(Debug, Default)]
pub(super) struct Notifications {
    /// Its secret as it is configured, `whsec_...`.
    secret: String,
    /// What every request is answered in place of being looked at.
    refuse: Option<u16>,
    /// Bodies by `webhook-id`.
    taken: BTreeMap<String, Value>,
    /// Requests whose id had been taken before.
    repeated: u64,
    /// Requests that were not as they must be, and why.
    refused: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    secret: Option<String>,
    #[serde(default)]
    refuse: Option<u16>,
}

/// Takes a notification.
pub(super) fn receive(world: &World, method: &Method, headers: &HeaderMap, body: &[u8]) -> Answer {
    let mut state = lock(&world.notifications);
    if let Some(status) = state.refuse {
        return Answer::empty(status);
    }
    match verified(&state.secret, method, headers, body) {
        Ok((id, body)) => {
            if state.taken.insert(id, body).is_some() {
                state.repeated += 1;
            }
            Answer::empty(204)
        }
        Err(rule) => {
            state.refused.push(rule.to_owned());
            Answer::json(401, PLAIN_JSON, &json!({"error": rule}))
        }
    }
}

/// The id and body of a request that is as it must be.
fn verified(secret: &str, method: &Method, headers: &HeaderMap, body: &[u8]) -> Result<(String, Value), &'static str> {
    if method != Method::POST || headers.get("content-type").is_none_or(|kind| kind != "application/json") {
        return Err("not a POST of application/json");
    }
    let header = |name: &str| headers.get(name)?.to_str().ok();
    let (Some(id), Some(at), Some(signatures)) =
        (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"))
    else {
        return Err("a header is missing");
    };
    let seconds: i64 = at.parse().map_err(|_| "the timestamp is no number")?;
    if Timestamp::now().as_second().abs_diff(seconds) > WINDOW_SECONDS {
        return Err("the timestamp is too far away");
    }
    let key = secret.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok()).ok_or("no secret is set")?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let content = [id.as_bytes(), b".", at.as_bytes(), b".", body].concat();
    let good = signatures.split(' ').filter_map(|entry| STANDARD.decode(entry.strip_prefix("v1,")?).ok());
    if !good.into_iter().any(|tag| hmac::verify(&key, &content, &tag).is_ok()) {
        return Err("the signature does not match");
    }
    let body: Value = serde_json::from_slice(body).map_err(|_| "the body is not JSON")?;
    let whole = body["type"].is_string() && body["timestamp"].is_string() && body["data"].is_object();
    if whole { Ok((id.to_owned(), body)) } else { Err("the body lacks type, timestamp or data") }
}

/// The control: what was received, and how to receive.
pub(super) fn admin(world: &World, method: &Method, body: &[u8]) -> Result<Value, String> {
    let mut state = lock(&world.notifications);
    match *method {
        Method::GET => Ok(json!({"taken": state.taken, "repeated": state.repeated, "refused": state.refused})),
        Method::PUT => {
            let new: New = serde_json::from_slice(body).map_err(|error| error.to_string())?;
            if let Some(secret) = new.secret {
                state.secret = secret;
            }
            state.refuse = new.refuse;
            Ok(json!({"status": "ok"}))
        }
        _ => Err("GET or PUT".to_owned()),
    }
}
