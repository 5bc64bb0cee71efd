//! What a simulated service answers, before it becomes bytes on a connection.

use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use serde_json::Value;

/// The content type of Defender's answers, with the parameters the service sends (`defender.md` 2.1).
pub(super) const DEFENDER_JSON: &str = "application/json; odata.metadata=minimal; odata.streaming=true; charset=utf-8";

/// The content type of Graph's answers.
pub(super) const GRAPH_JSON: &str =
    "application/json;odata.metadata=minimal;odata.streaming=true;IEEE754Compatible=false;charset=utf-8";

/// The content type of Entra's answers and of the controls.
pub(super) const PLAIN_JSON: &str = "application/json; charset=utf-8";

/// A whole answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Boxed, so that an answer is small enough to be the error of a `Result`.
    pub(super) headers: Box<HeaderMap>,
    pub(super) body: Bytes,
}

impl Answer {
    /// An answer without a body.
    pub(super) fn empty(status: u16) -> Self {
        Self { status, headers: Box::default(), body: Bytes::new() }
    }

    /// A JSON answer of that content type.
    pub(super) fn json(status: u16, content_type: &'static str, body: &Value) -> Self {
        Self::text(status, content_type, body.to_string())
    }

    /// Any text of that content type.
    pub(super) fn text(status: u16, content_type: &'static str, body: impl Into<String>) -> Self {
        let mut answer = Self { body: Bytes::from(body.into()), ..Self::empty(status) };
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        answer
    }

    /// The page a front door sends when nothing behind it answers (`defender.md` 3.3).
    pub(super) fn html(status: u16) -> Self {
        let body = format!(
            "<!DOCTYPE html>\n<html><head><title>{status}</title></head><body><h1>Service unavailable</h1>\
             <p>The request is blocked or the service behind this gateway did not answer. (simulated)</p></body></html>\n"
        );
        Self::text(status, "text/html; charset=utf-8", body)
    }

    /// The same with one header more. Names and values that HTTP forbids are left out.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The same with `Retry-After` in seconds, if there is one.
    pub(super) fn with_retry_after(self, seconds: Option<u64>) -> Self {
        match seconds {
            Some(seconds) => self.with("retry-after", &seconds.to_string()),
            None => self,
        }
    }
}
