//! Proves that a relay answers with a token before it is registered: a module that cannot work alarms its analysts at
//! each of their investigations.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{AUTHORIZATION, HeaderMap};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;
use url::Url;

use super::{at, sensitive};
use crate::outbound::{Outbound, OutboundError, Request};

/// How long the relay may take: its own default deadline of 50 s, and a little for the way.
const PROOF_LIMIT: Duration = Duration::from_secs(55);

/// The largest answer of `/health` that is read: a relay's has some hundred bytes.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// The relay did not answer as one that works. Holds no part of the token.
#[derive(Debug, Error)]
pub enum Unproven {
    /// There was no answer.
    #[error("the relay did not answer")]
    Unreachable(#[source] OutboundError),
    /// Something else than a relay answered.
    #[error("what answered is no relay (HTTP {0})")]
    NoRelay(u16),
    /// The relay answered with an error.
    #[error("the relay answered: {0}")]
    Refused(String),
}

/// Asks the relay at `base` for its health with `token`.
///
/// # Errors
/// When it does not say that all is well.
pub async fn prove(outbound: &Outbound, base: &Url, token: &SecretString, deadline: Instant) -> Result<(), Unproven> {
    let header = format!("Bearer {}", token.expose_secret());
    let Ok(header) = sensitive(&header, "asking the relay") else {
        return Err(Unproven::Refused("the token holds characters that no header can".to_owned()));
    };
    let request = Request {
        method: Method::POST,
        url: at(base, "/health", None),
        template: "/health",
        headers: HeaderMap::from_iter([(AUTHORIZATION, header)]),
        body: Bytes::new(),
        limit: Some(PROOF_LIMIT),
        body_limit_bytes: BODY_LIMIT_BYTES,
        resend_count: 0,
    };
    let answer = outbound.send(request, deadline).await.map_err(Unproven::Unreachable)?;
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if answer.status.is_success() && body["data"]["status"] == "ok" {
        return Ok(());
    }
    match body["errors"][0]["message"].as_str() {
        Some(message) if answer.status.is_success() => {
            Err(Unproven::Refused(message.replace(token.expose_secret(), "***")))
        }
        _ => Err(Unproven::NoRelay(answer.status.as_u16())),
    }
}
