//! Why the platform did not do what it was asked.

use bytes::Bytes;
use serde_json::Value;
use thiserror::Error;

use crate::outbound::OutboundError;

/// Longest part of what the platform says that is repeated, in characters.
const DETAIL_LIMIT_CHARS: usize = 300;

/// A call to the platform failed. Holds no secret.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// There was no answer.
    #[error("{doing}: the platform did not answer")]
    Unreachable {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: OutboundError,
    },
    /// It gives no token for the API client.
    #[error("the platform refuses TR_API_CLIENT_ID with TR_API_CLIENT_PASSWORD (HTTP {status}{detail})")]
    Credentials {
        /// Its status.
        status: u16,
        /// Its words, after a colon; or nothing.
        detail: String,
    },
    /// It refuses the call.
    #[error("{doing}: the platform answered HTTP {status}{detail}{hint}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Its status.
        status: u16,
        /// Its words, after a colon; or nothing.
        detail: String,
        /// What an operator can do about it, after a semicolon; or nothing.
        hint: &'static str,
    },
    /// Its answer cannot be read.
    #[error("{doing}: the platform's answer is not the JSON that was expected")]
    Unreadable {
        /// What was being done.
        doing: &'static str,
    },
}

/// What a refusal says of itself, after a colon; or nothing.
pub(super) fn detail(body: &Bytes) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let words = ["error_description", "message", "error"].into_iter().find_map(|member| body[member].as_str());
    words.map_or_else(String::new, |words| {
        let words: String = words.chars().filter(|c| !c.is_control()).take(DETAIL_LIMIT_CHARS).collect();
        format!(": {words}")
    })
}

/// What an operator can do about a status.
pub(super) const fn hint(status: u16) -> &'static str {
    match status {
        403 => "; the API client needs the rights to integrations and to administer its organisation",
        429 => "; try again later",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_repeated_in_few_words() {
        for (body, expected) in [
            (r#"{"error": "e", "error_description": "d"}"#, ": d".to_owned()),
            ("{\"error\": \"a\\u001b[0m\"}", ": a[0m".to_owned()),
            (r#"{"error": {"code": 1}}"#, String::new()),
            ("<html>", String::new()),
        ] {
            assert_eq!(detail(&Bytes::from(body)), expected);
        }
        let long = format!(r#"{{"message": "{}"}}"#, "x".repeat(1000));
        assert_eq!(detail(&Bytes::from(long)).len(), 2 + DETAIL_LIMIT_CHARS);
    }
}
