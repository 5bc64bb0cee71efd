//! What the ingress answers when it cannot do what was asked: a relay error (HTTP 200) or a status below the relay
//! protocol (`relay.md` 3.2).

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use super::body::BodyError;
use super::{json_response, relay_answer};
use crate::broker::BrokerError;
use crate::relay::{self, HttpError, RelayError};

/// What every known route allows.
pub(super) const ALLOW: &str = "OPTIONS, POST";
/// What a machine action allows.
pub(super) const ALLOW_GET: &str = "OPTIONS, GET";

/// The body did not arrive whole.
const BROKEN_BODY: HttpError =
    HttpError { code: 400, message: "The request body could not be read.", reason: "BadRequest" };

/// The body did not arrive in time.
const SLOW_BODY: HttpError =
    HttpError { code: 408, message: "The request body did not arrive in time.", reason: "RequestTimeout" };

#[derive(Debug)]
pub(super) enum IngressError {
    Relay(RelayError),
    Http(HttpError),
    /// A method that a path beside the relay's does not have.
    NotAllowed {
        /// Those that it has.
        allow: &'static str,
    },
}

impl From<RelayError> for IngressError {
    fn from(error: RelayError) -> Self {
        Self::Relay(error)
    }
}

impl From<BodyError> for IngressError {
    fn from(error: BodyError) -> Self {
        Self::Http(match error {
            BodyError::TooLarge => HttpError::PAYLOAD_TOO_LARGE,
            BodyError::Broken => BROKEN_BODY,
            BodyError::Slow => SLOW_BODY,
        })
    }
}

impl IngressError {
    /// A short word for metrics and spans, one of few.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Http(error) => error.reason,
            Self::NotAllowed { .. } => HttpError::METHOD_NOT_ALLOWED.reason,
            Self::Relay(error) => OUTCOMES.into_iter().find(|code| *code == error.code).unwrap_or("other"),
        }
    }

    pub(super) fn into_response(self) -> Response {
        match self {
            Self::Relay(error) => relay_answer(relay::failure(&[error]).to_string()),
            Self::Http(error) => {
                let mut response = below_the_relay(&error);
                if error == HttpError::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOW));
                }
                response
            }
            Self::NotAllowed { allow } => {
                let mut response = below_the_relay(&HttpError::METHOD_NOT_ALLOWED);
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
                response
            }
        }
    }
}

fn below_the_relay(error: &HttpError) -> Response {
    let status = StatusCode::from_u16(error.code).expect("the codes of HttpError are statuses");
    json_response(status, serde_json::to_vec(error).expect("three plain members serialise"))
}

/// The codes of relay errors that the ingress itself gives.
const OUTCOMES: [&str; 6] =
    ["authorization error", "invalid payload", "too many requests", "internal error", "deadline", "unknown"];

/// What the caller reads when the queue did not do its part (`DESIGN.md` 10, ruling 6).
pub(super) fn of_broker(error: &BrokerError) -> RelayError {
    match error {
        BrokerError::Full => RelayError::busy(),
        BrokerError::Timeout => RelayError::deadline(false),
        BrokerError::Unroutable(_)
        | BrokerError::Unavailable(_)
        | BrokerError::Unknown(_)
        | BrokerError::TooLarge { .. }
        | BrokerError::Storage(_)
        | BrokerError::InUse(_)
        | BrokerError::Refused(_)
        | BrokerError::Closed => RelayError::not_processed(),
    }
}

/// `error.type` of the producer span.
pub(super) const fn class(error: &BrokerError) -> &'static str {
    match error {
        BrokerError::Full => "nack",
        BrokerError::Unroutable(_) => "returned",
        BrokerError::Timeout => "timeout",
        BrokerError::Unavailable(_) | BrokerError::Unknown(_) | BrokerError::Refused(_) | BrokerError::Closed => {
            "connection"
        }
        BrokerError::TooLarge { .. } => "too_large",
        BrokerError::Storage(_) | BrokerError::InUse(_) => "storage",
    }
}
