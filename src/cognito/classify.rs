//! What became of a call: answers that are no success, and calls without an answer, as [`CognitoError`]s.
//!
//! Pure, `now` given. The status decides, but for a 404, which ends work on a host for good: that takes Cognito's own
//! word, not that of a proxy or of another program at the address.

use std::time::Duration;

use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use jiff::Timestamp;
use serde_json::Value;
use url::Url;

use super::call::json;
use super::error::DETAIL_LIMIT_CHARS;
use super::{CognitoError, Family, Kind};
use crate::outbound::{Answer, OutboundError};
use crate::retry::{Failure, parse_retry_after};

/// The longest wait that a call sits out itself. When Cognito asks for more, the call fails, and the queue, which blocks
/// nobody, does the waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is said of a page in place of an answer: its text says nothing about Cognito.
const PAGE: &str = "a page, not an answer of the API; something in between may have made it";

impl CognitoError {
    /// A failure without an answer.
    fn new(family: Family, kind: Kind, failure: Failure) -> Self {
        CognitoError {
            family,
            kind,
            status: None,
            detail: None,
            failure,
            retry_after: None,
            out_of_time: false,
            maybe_done: false,
        }
    }

    /// The deadline passed before anything was sent.
    pub(super) fn deadline(family: Family) -> Self {
        CognitoError { out_of_time: true, ..Self::new(family, Kind::Deadline, Failure::OutOfTime) }
    }

    /// A value that cannot be sent.
    pub(super) fn invalid_value(family: Family) -> Self {
        Self::new(family, Kind::InvalidValue, Failure::Permanent)
    }

    /// A call that this version of the API does not have.
    pub(super) fn not_offered(family: Family) -> Self {
        Self::new(family, Kind::NotOffered, Failure::Permanent)
    }

    /// What was written to is gone.
    pub(super) fn gone(family: Family) -> Self {
        Self::new(family, Kind::Gone, Failure::Permanent)
    }

    /// The same failure of a list, which cannot be gone: where there is no list, there is no such call.
    pub(super) fn of_a_list(self) -> Self {
        if self.kind == Kind::Gone { CognitoError { kind: Kind::NotOffered, ..self } } else { self }
    }

    /// No whole answer came.
    pub(super) fn from_outbound(family: Family, error: &OutboundError) -> Self {
        let (kind, failure) = match error {
            OutboundError::Connect { .. } | OutboundError::Timeout => (Kind::Connect, Failure::Unavailable),
            // A certificate does not become valid while somebody waits.
            OutboundError::Certificate { reason } => (Kind::Certificate { reason: reason.clone() }, Failure::Permanent),
            OutboundError::Tls { .. } => (Kind::Tls, Failure::Unavailable),
            OutboundError::Deadline => (Kind::Deadline, Failure::OutOfTime),
            OutboundError::Cut { .. } => (Kind::BadAnswer, Failure::Unavailable),
            OutboundError::TooLarge { .. } => (Kind::TooLarge, Failure::Permanent),
            OutboundError::Invalid { .. } => (Kind::InvalidValue, Failure::Permanent),
        };
        let sent = error.may_have_been_sent();
        let failure = if failure == Failure::Unavailable && !sent { Failure::NotTaken } else { failure };
        CognitoError {
            detail: reason(error).map(cut),
            out_of_time: failure == Failure::OutOfTime,
            maybe_done: sent,
            ..Self::new(family, kind, failure)
        }
    }

    /// An answer whose status is not a success; `now` is for a `Retry-After` that is a date.
    pub(super) fn from_answer(family: Family, answer: &Answer, now: Timestamp) -> Self {
        let status = answer.status.as_u16();
        let token = family == Family::Token;
        let (kind, failure) = match status {
            300..=399 => (Kind::Redirected, Failure::Permanent),
            401 => (Kind::Unauthorized, Failure::Permanent),
            // RFC 6749 5.2: a client that cannot be told, or may not ask in this way.
            400 if token => (Kind::Unauthorized, Failure::Permanent),
            403 => (Kind::Forbidden, Failure::Permanent),
            404 | 410 if !token && is_cognitos(answer) => (Kind::Gone, Failure::Permanent),
            404 | 405 | 410 => (Kind::NotOffered, Failure::Permanent),
            408 => (Kind::ServerError, Failure::Unavailable),
            429 => (Kind::Throttled, Failure::Throttled),
            503 => (Kind::ServerError, Failure::NotTaken),
            500..=599 => (Kind::ServerError, Failure::Unavailable),
            _ => (Kind::Refused, Failure::Permanent),
        };
        let retry_after =
            answer.headers.get(RETRY_AFTER).and_then(|value| parse_retry_after(value.to_str().ok()?, now));
        let impatient = retry_after.is_some_and(|wait| wait > PATIENCE);
        CognitoError {
            status: Some(status),
            detail: if kind == Kind::Redirected { destination(answer) } else { detail(answer) },
            retry_after,
            maybe_done: failure == Failure::Unavailable,
            ..Self::new(family, kind, if impatient { Failure::Permanent } else { failure })
        }
    }

    /// A success whose body is not what it should be. It may be another one the next time, for a brain that starts
    /// answers with pages too.
    pub(super) fn bad_answer(family: Family, answer: &Answer) -> Self {
        CognitoError {
            status: Some(answer.status.as_u16()),
            detail: detail(answer),
            maybe_done: true,
            ..Self::new(family, Kind::BadAnswer, Failure::Unavailable)
        }
    }
}

/// In the words of the library that failed.
fn reason(error: &OutboundError) -> Option<&str> {
    match error {
        OutboundError::Connect { reason, .. } | OutboundError::Tls { reason, .. } | OutboundError::Cut { reason } => {
            Some(reason)
        }
        // Part of the kind already.
        OutboundError::Certificate { .. } => None,
        OutboundError::Timeout => Some("no answer in time"),
        OutboundError::Deadline | OutboundError::TooLarge { .. } => None,
        OutboundError::Invalid { reason } => Some(reason),
    }
}

/// Whether a 404 is Cognito's: a JSON object, or nothing (`cognito.md` 3.4, call 6).
fn is_cognitos(answer: &Answer) -> bool {
    answer.body.trim_ascii().is_empty() || json(&answer.body).is_some_and(|body| body.is_object())
}

/// Where a redirect leads, as far as an operator needs it to mend the setting.
fn destination(answer: &Answer) -> Option<String> {
    let location = Url::parse(answer.headers.get(LOCATION)?.to_str().ok()?).ok()?;
    location.has_host().then(|| cut(format!("to {}", location.origin().ascii_serialization())))
}

/// What the body says of the failure: the first of the shapes of `cognito.md` 3.3 that it has, and those of RFC 6749.
fn detail(answer: &Answer) -> Option<String> {
    let Some(body) = json(&answer.body) else {
        let declared = answer.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let page = declared.to_ascii_lowercase().contains("html") || answer.body.trim_ascii_start().starts_with(b"<");
        return page.then(|| PAGE.to_owned());
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let said = text(body.get("detail"))
        .or_else(|| text(body.get("details")))
        .or_else(|| text(body.pointer("/errors/0/title")))
        .or_else(|| fields(&body))
        .or_else(|| text(body.get("message")))
        .or_else(|| text(body.get("error_description")))
        .or_else(|| text(body.get("error")))?;
    Some(cut(&said))
}

/// `{"_meta":{"level","message"}, ...field: s}`: the message, and what is wrong with which field.
fn fields(body: &Value) -> Option<String> {
    let mut said = body.pointer("/_meta/message")?.as_str()?.to_owned();
    for (field, value) in body.as_object()?.iter().filter(|(field, _)| *field != "_meta") {
        if let Some(value) = value.as_str() {
            said.push_str(&format!("; {field}: {value}"));
        }
    }
    (!said.is_empty()).then_some(said)
}

/// The beginning of `text`, on one line.
fn cut(text: impl AsRef<str>) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.as_ref().chars().take(DETAIL_LIMIT_CHARS).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::Class;
    use super::*;
    use crate::retry::Retryable as _;

    const NOW: &str = "2026-11-20T09:30:00Z";

    fn answer(status: u16, body: impl AsRef<[u8]>) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: bytes::Bytes::copy_from_slice(body.as_ref()),
        }
    }

    fn of(family: Family, status: u16, body: impl AsRef<[u8]>) -> CognitoError {
        CognitoError::from_answer(family, &answer(status, body), NOW.parse().unwrap())
    }

    fn data(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/data/cognito/{name}.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[rstest]
    #[case(404, "host.get.404", Kind::Gone, Class::Gone, "Not found.")]
    #[case(404, "tags.404", Kind::Gone, Class::Gone, "Could not find requested object")]
    #[case(
        404,
        "hosts.list.invalid-page.404",
        Kind::Gone,
        Class::Gone,
        "Invalid page \"3\": That page contains no results."
    )]
    #[case(401, "error.401.detail", Kind::Unauthorized, Class::Configuration, "Invalid token.")]
    #[case(401, "error.401.details", Kind::Unauthorized, Class::Configuration, "Invalid token.")]
    #[case(
        403,
        "error.403",
        Kind::Forbidden,
        Class::Configuration,
        "You do not have permission to perform this action."
    )]
    #[case(
        400,
        "error.400.query",
        Kind::Refused,
        Class::Permanent,
        "The following query parameter(s) are invalid: colour."
    )]
    #[case(404, "error.errors-title", Kind::Gone, Class::Gone, "Unable to look up specified entity")]
    #[case(
        400,
        "v3.error.type.400",
        Kind::Refused,
        Class::Permanent,
        "Invalid field(s) found; type: Invalid value for parameter 'type'. Valid values: ('account', 'host')."
    )]
    fn the_documented_bodies_are_told(
        #[case] status: u16,
        #[case] file: &str,
        #[case] kind: Kind,
        #[case] class: Class,
        #[case] detail: &str,
    ) {
        let error = of(Family::Hosts, status, data(file));
        assert_eq!((error.kind(), error.class(), error.detail()), (&kind, class, Some(detail)));
        assert_eq!(error.status(), Some(status));
    }

    #[test]
    fn each_status_has_one_class() {
        let class = |status| of(Family::Tags, status, "{}").class();
        let mut found: Vec<(Class, Vec<u16>)> = Vec::new();
        for status in 300..600 {
            match found.iter_mut().find(|(known, _)| *known == class(status)) {
                Some((_, statuses)) => statuses.push(status),
                None => found.push((class(status), vec![status])),
            }
        }
        let of_class =
            |class| found.iter().find(|(known, _)| *known == class).map(|(_, statuses)| statuses.as_slice()).unwrap();
        assert_eq!(of_class(Class::Gone), [404, 410]);
        let redirects: Vec<u16> = (300..400).collect();
        assert_eq!(of_class(Class::Configuration), [redirects.as_slice(), &[401, 403, 405]].concat());
        let failures: Vec<u16> = (500..600).collect();
        assert_eq!(of_class(Class::Transient), [&[408, 429], failures.as_slice()].concat());
        assert!([400, 409, 413, 422].iter().all(|status| of_class(Class::Permanent).contains(status)));
    }

    #[rstest]
    #[case::too_fast(429, Failure::Throttled, false)]
    #[case::busy(503, Failure::NotTaken, false)]
    #[case::broken(500, Failure::Unavailable, true)]
    #[case::broken_behind(502, Failure::Unavailable, true)]
    #[case::slow_behind(504, Failure::Unavailable, true)]
    #[case::gone(404, Failure::Permanent, false)]
    #[case::refused(400, Failure::Permanent, false)]
    #[case::no_right(403, Failure::Permanent, false)]
    fn what_a_status_says_of_a_write(#[case] status: u16, #[case] failure: Failure, #[case] maybe_done: bool) {
        let error = of(Family::Tags, status, "");
        assert_eq!((error.failure(), error.maybe_done), (failure, maybe_done));
    }

    #[rstest]
    #[case::not_connected(OutboundError::Connect { reason: "refused".into(), sent: false }, Kind::Connect, Failure::NotTaken, false)]
    #[case::broken(OutboundError::Connect { reason: "reset".into(), sent: true }, Kind::Connect, Failure::Unavailable, true)]
    #[case::silent(OutboundError::Timeout, Kind::Connect, Failure::Unavailable, true)]
    #[case::no_handshake(OutboundError::Tls { reason: "alert".into(), sent: false }, Kind::Tls, Failure::NotTaken, false)]
    #[case::tampered(OutboundError::Tls { reason: "bad record".into(), sent: true }, Kind::Tls, Failure::Unavailable, true)]
    #[case::cut(OutboundError::Cut { reason: "eof".into() }, Kind::BadAnswer, Failure::Unavailable, true)]
    #[case::deadline(OutboundError::Deadline, Kind::Deadline, Failure::OutOfTime, true)]
    #[case::too_large(OutboundError::TooLarge { limit_bytes: 1 }, Kind::TooLarge, Failure::Permanent, true)]
    #[case::unsendable(OutboundError::Invalid { reason: "header".into() }, Kind::InvalidValue, Failure::Permanent, false)]
    #[case::not_trusted(
        OutboundError::Certificate { reason: "unknown issuer".into() },
        Kind::Certificate { reason: "unknown issuer".into() },
        Failure::Permanent,
        false
    )]
    fn what_no_answer_says_of_a_write(
        #[case] error: OutboundError,
        #[case] kind: Kind,
        #[case] failure: Failure,
        #[case] maybe_done: bool,
    ) {
        let error = CognitoError::from_outbound(Family::Notes, &error);
        assert_eq!((error.kind(), error.failure(), error.maybe_done), (&kind, failure, maybe_done));
        assert_eq!(error.is_out_of_time(), failure == Failure::OutOfTime);
    }

    #[rstest]
    #[case::html("<!DOCTYPE html><title>404</title>")]
    #[case::text("page not found")]
    #[case::list("[]")]
    #[case::word("\"Not found.\"")]
    fn only_cognitos_own_404_ends_the_work_on_a_host(#[case] body: &str) {
        for status in [404, 410] {
            assert_eq!(of(Family::Hosts, status, body).class(), Class::Configuration);
        }
    }

    #[test]
    fn an_empty_404_is_cognitos() {
        assert_eq!(of(Family::Notes, 404, " \n").kind(), &Kind::Gone);
    }

    #[test]
    fn a_list_is_never_gone() {
        let error = of(Family::Audits, 404, data("host.get.404")).of_a_list();
        assert_eq!((error.kind(), error.class()), (&Kind::NotOffered, Class::Configuration));
        assert_eq!(of(Family::Audits, 403, "").of_a_list().kind(), &Kind::Forbidden);
    }

    #[rstest]
    #[case(400, r#"{"error":"invalid_client"}"#, Kind::Unauthorized, Some("invalid_client"))]
    #[case(
        400,
        r#"{"error":"invalid_client","error_description":"Unknown client"}"#,
        Kind::Unauthorized,
        Some("Unknown client")
    )]
    #[case(401, r#"{"detail":"Invalid token."}"#, Kind::Unauthorized, Some("Invalid token."))]
    #[case(404, r#"{"detail":"Not found."}"#, Kind::NotOffered, Some("Not found."))]
    #[case(405, "", Kind::NotOffered, None)]
    fn the_token_endpoint_refuses_in_its_own_way(
        #[case] status: u16,
        #[case] body: &str,
        #[case] kind: Kind,
        #[case] detail: Option<&str>,
    ) {
        let error = of(Family::Token, status, body);
        assert_eq!((error.kind(), error.detail()), (&kind, detail));
        assert_eq!(error.class(), Class::Configuration);
    }

    #[rstest]
    #[case::empty("", None)]
    #[case::no_member("{}", None)]
    #[case::not_text(r#"{"detail":["a"],"message":7}"#, None)]
    #[case::empty_text(r#"{"detail":"","details":"second"}"#, Some("second"))]
    #[case::first_of_many(r#"{"message":"m","details":"d2","detail":"d1"}"#, Some("d1"))]
    #[case::fields_before_message(r#"{"message":"m","_meta":{"message":"f"}}"#, Some("f; message: m"))]
    #[case::no_title(r#"{"errors":[{}],"message":"m"}"#, Some("m"))]
    #[case::line_breaks("{\"detail\":\"a\\nb\\u001bc\"}", Some("a b c"))]
    #[case::html("<html><body>Bad gateway: https://user:secret@proxy</body></html>", Some(PAGE))]
    #[case::text("upstream failed", None)]
    #[case::cut("{\"detail\":\"a", None)]
    #[case::not_utf8("\u{fffd}", None)]
    fn the_detail_is_what_cognito_says(#[case] body: &str, #[case] expected: Option<&str>) {
        assert_eq!(of(Family::Hosts, 502, body).detail(), expected);
    }

    #[test]
    fn a_declared_page_is_a_page() {
        let mut answer = answer(502, "oops");
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static("Text/HTML; charset=utf-8"));
        assert_eq!(CognitoError::from_answer(Family::Hosts, &answer, NOW.parse().unwrap()).detail(), Some(PAGE));
    }

    #[test]
    fn the_detail_is_cut() {
        let body = serde_json::json!({"detail": "\u{e4}".repeat(400)}).to_string();
        assert_eq!(of(Family::Hosts, 400, body).detail(), Some("\u{e4}".repeat(300).as_str()));
    }

    #[test]
    fn a_redirect_is_told_with_its_destination_but_no_more() {
        let mut answer = answer(302, "<html>moved</html>");
        let location = HeaderValue::from_static("https://new.example:8443/login?next=planted");
        answer.headers.insert(LOCATION, location);
        let error = CognitoError::from_answer(Family::Token, &answer, NOW.parse().unwrap());
        assert_eq!(
            error.to_string(),
            "cognito token: the address redirects elsewhere (HTTP 302): to https://new.example:8443"
        );
        answer.headers.insert(LOCATION, HeaderValue::from_static("/elsewhere"));
        assert_eq!(CognitoError::from_answer(Family::Token, &answer, NOW.parse().unwrap()).detail(), None);
    }

    #[rstest]
    #[case("3", Some(3), true)]
    #[case("5", Some(5), true)]
    #[case("6", Some(6), false)]
    #[case("Fri, 20 Nov 2026 09:30:02 GMT", Some(2), true)]
    #[case("soon", None, true)]
    fn a_long_wait_is_left_to_the_queue(
        #[case] header: &'static str,
        #[case] wait: Option<u64>,
        #[case] repeated: bool,
    ) {
        let mut answer = answer(429, "");
        answer.headers.insert(RETRY_AFTER, HeaderValue::from_static(header));
        let error = CognitoError::from_answer(Family::Hosts, &answer, NOW.parse().unwrap());
        assert_eq!(error.retry_after(), wait.map(Duration::from_secs));
        assert_eq!(error.failure() == Failure::Throttled, repeated);
        assert_eq!((error.class(), error.is_transient()), (Class::Transient, true));
    }

    #[test]
    fn a_success_that_cannot_be_read_may_have_been_carried_out() {
        let error = CognitoError::bad_answer(Family::Tags, &answer(200, "<html>sign in</html>"));
        assert_eq!((error.class(), error.failure(), error.maybe_done), (Class::Transient, Failure::Unavailable, true));
        assert_eq!(error.to_string(), format!("cognito tags: no proper answer (HTTP 200): {PAGE}"));
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_classification(status in 300u16..600, body in prop::collection::vec(any::<u8>(), 0..200)) {
            for family in [Family::Hosts, Family::Token] {
                prop_assert_eq!(of(family, status, &body).status(), Some(status));
            }
        }
    }
}
