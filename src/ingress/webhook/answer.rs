//! What a sender reads (`cognito.md` 4.5): the list of what became of its events, or problem details (RFC 9457) with a
//! `code`.

use std::time::Duration;

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::super::body::BodyError;
use super::BODY_LIMIT_BYTES;
use super::event::Fault;

/// How soon a request should be sent again that the queue did not take: long enough for a broker's restart.
const QUEUE_PAUSE: Duration = Duration::from_secs(15);

/// What became of the events of a body, each list by index.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in crate::ingress) struct Outcome {
    pub(super) accepted: Vec<Accepted>,
    pub(super) ignored: Vec<Ignored>,
    pub(super) rejected: Vec<Rejected>,
}

/// An event that is in the queue.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Accepted {
    pub(super) index: usize,
    /// The sender's, or made from the request.
    pub(super) event_id: String,
    /// It was accepted before.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) duplicate: bool,
}

/// An event that asks for nothing.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Ignored {
    pub(super) index: usize,
    /// `unknown_kind`, `score_decrease` or `own_change`.
    pub(super) reason: &'static str,
}

/// A fault of an event.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in crate::ingress) struct Rejected {
    pub(super) index: usize,
    /// What is wrong, in one word.
    pub(super) code: &'static str,
    /// A JSON pointer to it, from the body.
    pub(super) pointer: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Rejected {
    /// A fault of the element at `index`, as one of an array or as the whole body.
    pub(super) fn new(index: usize, in_array: bool, fault: Fault) -> Self {
        let pointer = if in_array { format!("/{index}{}", fault.pointer) } else { fault.pointer };
        Self { index, code: fault.code, pointer }
    }
}

/// Why a request is not accepted.
#[derive(Debug)]
pub(in crate::ingress) enum Refusal {
    Method,
    Body(BodyError),
    Unauthorized,
    TooMany(Duration),
    MediaType,
    Json,
    EmptyArray,
    LongArray,
    NothingValid(Vec<Rejected>),
    Queue,
    Stopping,
    Unforeseen,
}

/// Problem details (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in crate::ingress) struct Problem {
    /// Always `about:blank`: the code says more than a page would.
    r#type: &'static str,
    title: &'static str,
    /// The HTTP status.
    pub(in crate::ingress) status: u16,
    /// Why, in one word of few.
    pub(in crate::ingress) code: &'static str,
    /// Why, for a person.
    pub(in crate::ingress) detail: String,
    /// Seconds until another try is worth it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    retry_after: Option<u64>,
    /// What is wrong with each event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rejected: Vec<Rejected>,
}

impl Refusal {
    /// A short word for answers, metrics and spans, one of few.
    pub(in crate::ingress) const fn code(&self) -> &'static str {
        match self {
            Self::Method => "method_not_allowed",
            Self::Body(BodyError::TooLarge) => "body_too_large",
            Self::Body(BodyError::Broken) => "body_broken",
            Self::Body(BodyError::Slow) => "body_slow",
            Self::Unauthorized => "unauthorized",
            Self::TooMany(_) => "rate_limited",
            Self::MediaType => "unsupported_media_type",
            Self::Json => "malformed_json",
            Self::EmptyArray => "no_event",
            Self::LongArray => "too_many_events",
            Self::NothingValid(_) => "no_valid_event",
            Self::Queue => "queue_unavailable",
            Self::Stopping => "stopping",
            Self::Unforeseen => "internal_error",
        }
    }

    const fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
            Self::Body(BodyError::TooLarge) => (StatusCode::PAYLOAD_TOO_LARGE, "Content Too Large"),
            Self::Body(BodyError::Slow) => (StatusCode::REQUEST_TIMEOUT, "Request Timeout"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "Too Many Requests"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Media Type"),
            Self::Body(BodyError::Broken) | Self::Json | Self::EmptyArray | Self::LongArray => {
                (StatusCode::BAD_REQUEST, "Bad Request")
            }
            Self::NothingValid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Unprocessable Content"),
            Self::Queue | Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
            Self::Unforeseen => (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Method => "send events with POST".to_owned(),
            Self::Body(BodyError::TooLarge) => format!("the body is larger than {BODY_LIMIT_BYTES} bytes"),
            Self::Body(BodyError::Broken) => "the body could not be read".to_owned(),
            Self::Body(BodyError::Slow) => "the body did not arrive in time".to_owned(),
            // Always the same: nobody learns what was wrong.
            Self::Unauthorized => "authentication failed".to_owned(),
            Self::TooMany(_) => "try again later".to_owned(),
            Self::MediaType => "send application/json".to_owned(),
            Self::Json => "the body is not a JSON object or a JSON array of objects".to_owned(),
            Self::EmptyArray => "the array holds no event".to_owned(),
            Self::LongArray => format!("the array holds more than {} events", super::EVENTS_LIMIT),
            Self::NothingValid(_) => "no event in the body could be accepted".to_owned(),
            Self::Queue => "the event could not be stored; send it again".to_owned(),
            Self::Stopping => "the service is stopping; send it again".to_owned(),
            Self::Unforeseen => "something went wrong; send it again".to_owned(),
        }
    }

    /// Whole seconds until another try is worth it.
    fn retry_after(&self) -> Option<u64> {
        let pause = match self {
            Self::TooMany(pause) => *pause,
            Self::Queue | Self::Stopping => QUEUE_PAUSE,
            _ => return None,
        };
        Some((pause.as_secs() + u64::from(pause.subsec_nanos() > 0)).max(1))
    }

    /// The body of the answer.
    pub(in crate::ingress) fn problem(self) -> Problem {
        let (status, title) = self.status();
        let retry_after = self.retry_after();
        let (code, detail) = (self.code(), self.detail());
        let rejected = if let Self::NothingValid(rejected) = self { rejected } else { Vec::new() };
        Problem { r#type: "about:blank", title, status: status.as_u16(), code, detail, retry_after, rejected }
    }

    pub(in crate::ingress) fn into_response(self) -> Response {
        let (status, _) = self.status();
        let retry_after = self.retry_after();
        let allow = matches!(self, Self::Method).then_some("POST");
        let challenge = matches!(self, Self::Unauthorized).then_some("Bearer");
        let mut response = json(status, &self.problem(), "application/problem+json");
        let headers = response.headers_mut();
        for (name, value) in [(header::ALLOW, allow), (header::WWW_AUTHENTICATE, challenge)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl Outcome {
    /// 202, or 422 when there is nothing but faults.
    ///
    /// # Errors
    /// In the latter case.
    pub(super) fn into_response(self) -> Result<Response, Refusal> {
        if self.accepted.is_empty() && self.ignored.is_empty() {
            return Err(Refusal::NothingValid(self.rejected));
        }
        Ok(json(StatusCode::ACCEPTED, &self, "application/json"))
    }
}

fn json(status: StatusCode, body: &impl Serialize, kind: &'static str) -> Response {
    let mut response = Response::new(serde_json::to_vec(body).expect("plain members serialise").into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use serde_json::Value;

    async fn read(response: Response) -> (u16, Vec<(String, String)>, Value) {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        (head.status.as_u16(), headers.collect(), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn refusals_are_those_of_the_examples() {
        let host = || Fault::new("invalid_host_id", "/host/id");
        for (refusal, example, header) in [
            (Refusal::Json, include_str!("../../../tests/data/cognito/webhook.400.json"), None),
            (
                Refusal::Unauthorized,
                include_str!("../../../tests/data/cognito/webhook.401.json"),
                Some(("www-authenticate", "Bearer")),
            ),
            (Refusal::Body(BodyError::TooLarge), include_str!("../../../tests/data/cognito/webhook.413.json"), None),
            (Refusal::MediaType, include_str!("../../../tests/data/cognito/webhook.415.json"), None),
            (
                Refusal::NothingValid(vec![Rejected::new(0, false, host())]),
                include_str!("../../../tests/data/cognito/webhook.422.json"),
                None,
            ),
            (
                Refusal::TooMany(Duration::from_millis(6_001)),
                include_str!("../../../tests/data/cognito/webhook.429.json"),
                Some(("retry-after", "7")),
            ),
            (Refusal::Queue, include_str!("../../../tests/data/cognito/webhook.503.json"), Some(("retry-after", "15"))),
        ] {
            let expected: Value = serde_json::from_str(example).unwrap();
            let code = refusal.code();
            let (status, headers, body) = read(refusal.into_response()).await;
            assert_eq!(body, expected);
            assert_eq!((body["status"].as_u64(), body["code"].as_str()), (Some(status.into()), Some(code)));
            let has = |name: &str, value: &str| headers.contains(&(name.to_owned(), value.to_owned()));
            assert!(has("content-type", "application/problem+json"), "{headers:?}");
            assert!(header.is_none_or(|(name, value)| has(name, value)), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn the_other_refusals_have_their_status_and_headers() {
        for (refusal, status, header) in [
            (Refusal::Method, 405, Some(("allow", "POST"))),
            (Refusal::Body(BodyError::Broken), 400, None),
            (Refusal::Body(BodyError::Slow), 408, None),
            (Refusal::EmptyArray, 400, None),
            (Refusal::LongArray, 400, None),
            (Refusal::TooMany(Duration::ZERO), 429, Some(("retry-after", "1"))),
            (Refusal::Stopping, 503, Some(("retry-after", "15"))),
            (Refusal::Unforeseen, 500, None),
        ] {
            let (sent, headers, body) = read(refusal.into_response()).await;
            assert_eq!((sent, body["status"].as_u64()), (status, Some(status.into())), "{body}");
            let has = |(name, value): (&str, &str)| headers.contains(&(name.to_owned(), value.to_owned()));
            assert!(header.is_none_or(has), "{headers:?}");
        }
    }

    #[tokio::test]
    async fn outcomes_are_those_of_the_examples() {
        let accepted = |index, id: &str, duplicate| Accepted { index, event_id: id.to_owned(), duplicate };
        for (outcome, example) in [
            (
                Outcome { accepted: vec![accepted(0, "evt-2026-000001", false)], ..Outcome::default() },
                include_str!("../../../tests/data/cognito/webhook.202.single.json"),
            ),
            (
                Outcome { accepted: vec![accepted(0, "evt-2026-000001", true)], ..Outcome::default() },
                include_str!("../../../tests/data/cognito/webhook.202.duplicate.json"),
            ),
            (
                Outcome {
                    accepted: vec![accepted(0, "evt-2026-000001", false), accepted(1, "msg_7Yt2QpLx0aZk.1", false)],
                    ignored: vec![Ignored { index: 2, reason: "unknown_kind" }],
                    rejected: vec![Rejected::new(3, true, Fault::new("invalid_host_id", "/host/id"))],
                },
                include_str!("../../../tests/data/cognito/webhook.202.mixed.json"),
            ),
        ] {
            let (status, headers, body) = read(outcome.into_response().unwrap()).await;
            assert_eq!((status, body), (202, serde_json::from_str(example).unwrap()));
            assert!(headers.contains(&("content-type".to_owned(), "application/json".to_owned())), "{headers:?}");
        }
    }

    #[test]
    fn an_outcome_with_nothing_but_faults_is_a_refusal() {
        let rejected = || vec![Rejected::new(0, true, Fault::new("not_an_object", ""))];
        let outcome = Outcome { rejected: rejected(), ..Outcome::default() };
        assert!(matches!(outcome.into_response(), Err(Refusal::NothingValid(_))));
        let ignored = vec![Ignored { index: 1, reason: "unknown_kind" }];
        assert!(Outcome { rejected: rejected(), ignored, ..Outcome::default() }.into_response().is_ok());
    }
}
