//! What became of a call: answers that are no success, and calls without an answer, as [`DefenderError`]s.
//!
//! Pure, `now` given. The status decides; a body only refines, for it may come from a proxy and be anything
//! (`defender.md` 3.2, 3.3, 4.3, 5.0; tokens: 1.4).

use std::time::Duration;

use http::header::RETRY_AFTER;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::error::DETAIL_LIMIT_CHARS;
use super::{DefenderError, Family, Kind};
use crate::outbound::{Answer, OutboundError};
use crate::retry::{Failure, parse_retry_after};

/// The hunting engine counts its processing quota in quarters of an hour (`defender.md` 3.1).
const HUNTING_CYCLE: Duration = Duration::from_secs(15 * 60);

impl DefenderError {
    /// A failure without an answer.
    fn new(family: Family, kind: Kind, failure: Failure) -> Self {
        DefenderError {
            family,
            kind,
            status: None,
            code: None,
            detail: None,
            failure,
            retry_after: None,
            out_of_time: false,
            maybe_done: false,
            permission: None,
        }
    }

    /// The deadline passed before anything was sent.
    pub(super) fn deadline(family: Family) -> Self {
        DefenderError { out_of_time: true, ..Self::new(family, Kind::Deadline, Failure::OutOfTime) }
    }

    /// A value that is not valid for its kind.
    pub(super) fn invalid_value(family: Family) -> Self {
        Self::new(family, Kind::InvalidValue, Failure::Permanent)
    }

    /// A list that goes on for more pages than are followed.
    pub(super) fn endless(family: Family) -> Self {
        Self::new(family, Kind::TooLarge, Failure::Permanent)
    }

    /// A success of a machine action that names no action.
    pub(super) fn no_action() -> Self {
        DefenderError { maybe_done: true, ..Self::new(Family::Actions, Kind::BadGateway, Failure::Unavailable) }
    }

    /// A tenant that cannot be put into an address, which no tenant's id is.
    pub(super) fn unknown_tenant(family: Family) -> Self {
        Self::new(family, Kind::TokenTenantUnknown, Failure::Permanent)
    }

    /// Our own quota has no room for this call.
    pub(super) fn not_permitted(family: Family, wait: Duration) -> Self {
        let kind = Kind::Throttled { hunting: family == Family::Hunting };
        let detail = Some(format!("There is room for another call in {} s.", wait.as_secs().max(1)));
        DefenderError { retry_after: Some(wait), detail, ..Self::new(family, kind, Failure::Throttled) }
    }

    /// No whole answer came.
    pub(super) fn from_outbound(family: Family, error: &OutboundError) -> Self {
        let classified = match error {
            OutboundError::Connect { .. } | OutboundError::Timeout => {
                Self::new(family, Kind::Connect, Failure::Unavailable)
            }
            OutboundError::Certificate { reason } => {
                // A certificate does not become valid while a request waits.
                Self::new(family, Kind::Certificate { reason: reason.clone() }, Failure::Permanent)
            }
            OutboundError::Tls { .. } => Self::new(family, Kind::Tls, Failure::Unavailable),
            OutboundError::Deadline => Self::deadline(family),
            OutboundError::Cut { .. } => Self::new(family, Kind::BadGateway, Failure::Unavailable),
            OutboundError::TooLarge { .. } => Self::new(family, Kind::TooLarge, Failure::Permanent),
            OutboundError::Invalid { .. } => Self::new(family, Kind::InvalidValue, Failure::Permanent),
        };
        DefenderError { maybe_done: error.may_have_been_sent(), ..classified }
    }

    /// An answer of Defender or Graph whose status is not a success (`defender.md` 3.2, 3.3, 4.3, 5.0). The status
    /// decides, for a proxy's body may be HTML; `now` is for a `Retry-After` that is a date.
    pub(super) fn from_answer(family: Family, answer: &Answer, now: Timestamp) -> Self {
        let status = answer.status.as_u16();
        let kind = match status {
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            429 => Kind::Throttled { hunting: family == Family::Hunting },
            400..=499 => Kind::InvalidRequest,
            500 => Kind::ServerError,
            // Redirects included: no call of ours answers with one, so it comes from something in between.
            _ => Kind::BadGateway,
        };
        let detail = detail(status, &answer.body);
        let retry_after = retry_after(answer, now).or_else(|| match kind {
            Kind::Throttled { hunting: true } => processing_quota_wait(&detail, now),
            _ => None,
        });
        DefenderError {
            status: Some(status),
            code: code(&answer.body),
            detail: Some(detail),
            retry_after,
            // Any other 4xx is a refusal; 408 may come from something in between that stopped waiting.
            maybe_done: status == 408 || !(400..500).contains(&status),
            ..Self::new(family, kind, Failure::of_status(status))
        }
    }

    /// An answer of the token endpoint that holds no token (`relay.md` 2.4, `defender.md` 1.4).
    pub(super) fn from_token_answer(family: Family, answer: &Answer, now: Timestamp) -> Self {
        #[derive(Deserialize, Default)]
        struct TokenError {
            error: Option<Value>,
            error_description: Option<Value>,
        }
        let status = answer.status.as_u16();
        let body: TokenError = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |value: Option<Value>| match value {
            Some(Value::String(text)) if !text.is_empty() => Some(cut(&text)),
            _ => None,
        };
        let description = text(body.error_description);
        let busy = text(body.error).as_deref() == Some("temporarily_unavailable");
        let kind = match status {
            200 => Kind::TokenMissing,
            400 | 401 => Kind::TokenRefused { description },
            404 => Kind::TokenTenantUnknown,
            _ => Kind::TokenOther { description },
        };
        let failure = if busy { Failure::Unavailable } else { Failure::of_status(status) };
        DefenderError {
            status: Some(status),
            retry_after: retry_after(answer, now),
            ..Self::new(family, kind, failure)
        }
    }

    /// A success whose body is not the documented JSON (E10). A body that just ends is taken for a lost connection,
    /// which a close-delimited answer cannot tell apart; anything else would be the same again.
    pub(super) fn from_body(family: Family, status: u16, error: &serde_json::Error) -> Self {
        let failure = if error.is_eof() { Failure::Unavailable } else { Failure::Permanent };
        DefenderError {
            status: Some(status),
            detail: Some(format!("HTTP {status}")),
            maybe_done: true,
            ..Self::new(family, Kind::BadGateway, failure)
        }
    }
}

/// The `error.code` of an answer.
fn code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        error: Coded,
    }
    #[derive(Deserialize)]
    struct Coded {
        code: String,
    }
    serde_json::from_slice::<Envelope>(body).ok().map(|envelope| cut(&envelope.error.code))
}

/// `<detail>` of `relay.md` 3.4.
fn detail(status: u16, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        error: Value,
    }
    let text = serde_json::from_slice::<Envelope>(body).ok().and_then(|envelope| match envelope.error {
        Value::String(text) => Some(text),
        Value::Object(object) => ["message", "code"].iter().find_map(|member| match object.get(*member) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            _ => None,
        }),
        _ => None,
    });
    text.map_or_else(|| format!("HTTP {status}"), |text| cut(&text))
}

fn cut(text: &str) -> String {
    text.chars().take(DETAIL_LIMIT_CHARS).collect()
}

fn retry_after(answer: &Answer, now: Timestamp) -> Option<Duration> {
    parse_retry_after(answer.headers.get(RETRY_AFTER)?.to_str().ok()?, now)
}

/// How long hunting is closed because the tenant's processing quota is used up (`defender.md` 3.2): until the
/// `hh:mm:ss` that ends the message, else to the next quarter of an hour. `None` when `message` is not about that quota.
fn processing_quota_wait(message: &str, now: Timestamp) -> Option<Duration> {
    if !message.to_ascii_lowercase().contains("processing resources") {
        return None;
    }
    let last_word = message.rsplit(char::is_whitespace).next().unwrap_or_default().trim_end_matches('.');
    if let Some(wait) = hours_minutes_seconds(last_word) {
        return Some(wait.min(HUNTING_CYCLE));
    }
    let cycle = HUNTING_CYCLE.as_secs();
    let into_cycle = now.as_second().rem_euclid(cycle as i64) as u64;
    Some(Duration::from_secs(cycle - into_cycle))
}

fn hours_minutes_seconds(text: &str) -> Option<Duration> {
    let mut parts = text.split(':').map(|part| part.parse::<u8>().ok());
    let (Some(hours), Some(minutes), Some(seconds), None) = (parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    Some(Duration::from_secs(u64::from(hours) * 3600 + u64::from(minutes) * 60 + u64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::Audience;
    use super::*;

    const NOW: &str = "2026-11-20T09:31:49Z";

    fn answer(status: u16, body: &[u8]) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: bytes::Bytes::copy_from_slice(body),
        }
    }

    fn data(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/data/defender/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn of(family: Family, status: u16, body: &[u8]) -> DefenderError {
        DefenderError::from_answer(family, &answer(status, body), NOW.parse().unwrap())
    }

    #[rstest]
    #[case(
        400,
        "mde_error_400_invalid_hash.json",
        Kind::InvalidRequest,
        "Hash value 'not-a-hash' is not valid (invented wording).",
        false
    )]
    #[case(
        401,
        "mde_error_401_no_license.json",
        Kind::Unauthorized,
        "Unauthorized request - reason of failure: No Tvm license",
        false
    )]
    #[case(
        403,
        "mde_error_403_disabled_feature.json",
        Kind::Forbidden,
        "The tenant feature is not switched on (invented wording).",
        false
    )]
    #[case(
        404,
        "mde_error_404_file.json",
        Kind::InvalidRequest,
        "File 89abcdef0123456789abcdef0123456789abcdef was not found (invented wording).",
        false
    )]
    #[case(429, "mde_error_429_quota.json", Kind::Throttled { hunting: false }, "API calls quota exceeded! maximum allowed 100 per 00:01:00", true)]
    #[case(500, "mde_error_500.json", Kind::ServerError, "InternalServerError", true)]
    fn answers_of_defender_are_classified(
        #[case] status: u16,
        #[case] file: &str,
        #[case] kind: Kind,
        #[case] detail: &str,
        #[case] transient: bool,
    ) {
        let error = of(Family::Files, status, &data(file));
        assert_eq!(error.kind(), &kind);
        assert_eq!(error.status(), Some(status));
        assert_eq!(error.detail(), Some(detail));
        assert_eq!(error.is_transient(), transient);
        assert_eq!(error.retry_after(), None);
    }

    #[rstest]
    #[case(400, "graph_error_400_semantic.json", Kind::InvalidRequest, false, false)]
    #[case(400, "graph_error_400_table_missing.json", Kind::InvalidRequest, false, true)]
    #[case(400, "graph_error_400_result_size.json", Kind::InvalidRequest, true, false)]
    #[case(401, "graph_error_401.json", Kind::Unauthorized, false, false)]
    #[case(403, "graph_error_403_missing_role.json", Kind::Forbidden, false, false)]
    #[case(429, "graph_error_429_generic.json", Kind::Throttled { hunting: true }, false, false)]
    #[case(500, "graph_error_500_unknown.json", Kind::ServerError, false, false)]
    #[case(504, "graph_error_504_unknown.json", Kind::BadGateway, false, false)]
    fn answers_of_graph_are_classified(
        #[case] status: u16,
        #[case] file: &str,
        #[case] kind: Kind,
        #[case] asks_for_less: bool,
        #[case] lacks_table: bool,
    ) {
        let error = of(Family::Hunting, status, &data(file));
        assert_eq!(error.kind(), &kind);
        assert_eq!(error.asks_for_less(), asks_for_less);
        assert_eq!(error.lacks_table(), lacks_table);
        assert!(!error.refuses_partition());
    }

    #[test]
    fn a_refused_partition_is_recognised() {
        let body = br#"{"error":{"code":"BadRequest","message":"The operator 'partition' is not supported."}}"#;
        assert!(of(Family::Hunting, 400, body).refuses_partition());
        assert!(!of(Family::Hunting, 500, body).refuses_partition());
        assert!(!of(Family::Files, 400, body).refuses_partition());
    }

    #[rstest]
    #[case::text(br#"{"error":"plain"}"#, "plain")]
    #[case::message(br#"{"error":{"code":"C","message":"M"}}"#, "M")]
    #[case::empty_message(br#"{"error":{"code":"C","message":""}}"#, "C")]
    #[case::no_message(br#"{"error":{"code":"C"}}"#, "C")]
    #[case::null_message(br#"{"error":{"code":"C","message":null}}"#, "C")]
    #[case::neither(br#"{"error":{}}"#, "HTTP 418")]
    #[case::list(br#"{"error":["a"]}"#, "HTTP 418")]
    #[case::null(br#"{"error":null}"#, "HTTP 418")]
    #[case::no_error(b"{}", "HTTP 418")]
    #[case::html(b"<html><body>Bad gateway</body></html>", "HTTP 418")]
    #[case::empty(b"", "HTTP 418")]
    #[case::cut(br#"{"error":{"code":"C","mess"#, "HTTP 418")]
    #[case::not_utf8(b"\xff\xfe", "HTTP 418")]
    fn the_detail_is_never_a_printed_object(#[case] body: &[u8], #[case] expected: &str) {
        assert_eq!(of(Family::Alerts, 418, body).detail(), Some(expected));
    }

    #[test]
    fn the_detail_is_cut_at_500_characters() {
        let body = serde_json::json!({"error": "\u{e4}".repeat(600)}).to_string();
        let error = of(Family::Alerts, 400, body.as_bytes());
        assert_eq!(error.detail().unwrap(), "\u{e4}".repeat(500));
    }

    #[test]
    fn statuses_map_to_one_kind_each() {
        let kinds = |status| of(Family::Alerts, status, b"").kind().clone();
        for status in 300..400 {
            assert_eq!(kinds(status), Kind::BadGateway, "{status}");
        }
        for status in (400..500).filter(|status| ![401, 403, 429].contains(status)) {
            assert_eq!(kinds(status), Kind::InvalidRequest, "{status}");
        }
        for status in 501..600 {
            assert_eq!(kinds(status), Kind::BadGateway, "{status}");
        }
    }

    #[rstest]
    #[case::duration_at_the_end(
        "You have exceeded processing resources allocated to this tenant. You can run queries again in 00:07:30.",
        Some(450)
    )]
    #[case::longer_than_a_cycle("exceeded processing resources ... again in 10:00:00", Some(900))]
    #[case::no_duration("You have exceeded processing resources allocated to this tenant.", Some(13 * 60 + 11))]
    #[case::nonsense_duration("exceeded processing resources, again in 00:xx:30", Some(13 * 60 + 11))]
    #[case::another_quota("Please retry again later.", None)]
    fn the_processing_quota_says_when_it_is_open_again(#[case] message: &str, #[case] expected: Option<u64>) {
        let body = serde_json::json!({"error": {"code": "TooManyRequests", "message": message}}).to_string();
        assert_eq!(of(Family::Hunting, 429, body.as_bytes()).retry_after(), expected.map(Duration::from_secs));
        assert_eq!(of(Family::Files, 429, body.as_bytes()).retry_after(), None);
    }

    #[test]
    fn a_retry_after_header_wins_over_the_message() {
        let mut answer = answer(429, &data("graph_error_429_cpu.json"));
        answer.headers.insert(RETRY_AFTER, "17".parse().unwrap());
        let error = DefenderError::from_answer(Family::Hunting, &answer, NOW.parse().unwrap());
        assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
    }

    fn described(file: &str) -> Option<String> {
        let body: Value = serde_json::from_slice(&data(file)).unwrap();
        body["error_description"].as_str().map(str::to_owned)
    }

    #[rstest]
    #[case::wrong_secret(401, "token_error_7000215_bad_secret.json", Kind::TokenRefused { description: described("token_error_7000215_bad_secret.json") }, false)]
    #[case::unknown_tenant(400, "token_error_90002_unknown_tenant.json", Kind::TokenRefused { description: described("token_error_90002_unknown_tenant.json") }, false)]
    #[case::busy(400, "token_error_90033_unavailable.json", Kind::TokenRefused { description: described("token_error_90033_unavailable.json") }, true)]
    #[case::busy_503(503, "token_error_90033_unavailable.json", Kind::TokenOther { description: described("token_error_90033_unavailable.json") }, true)]
    #[case::not_found(404, "token_error_90002_unknown_tenant.json", Kind::TokenTenantUnknown, false)]
    #[case::conditional_access(403, "token_error_53003_conditional_access.json", Kind::TokenOther { description: described("token_error_53003_conditional_access.json") }, false)]
    fn answers_of_entra_are_classified(
        #[case] status: u16,
        #[case] file: &str,
        #[case] kind: Kind,
        #[case] transient: bool,
    ) {
        let family = Family::Token(Audience::Defender);
        let error = DefenderError::from_token_answer(family, &answer(status, &data(file)), NOW.parse().unwrap());
        assert_eq!(error.kind(), &kind);
        assert_eq!(error.is_transient(), transient);
    }

    #[rstest]
    #[case::html(b"<html>")]
    #[case::empty(b"")]
    #[case::bare_object(b"{}")]
    #[case::odd_types(br#"{"error":{"a":1},"error_description":[1]}"#)]
    fn entra_need_not_answer_in_json(#[case] body: &[u8]) {
        let of = |status| {
            DefenderError::from_token_answer(
                Family::Token(Audience::Graph),
                &answer(status, body),
                NOW.parse().unwrap(),
            )
        };
        assert_eq!(of(400).kind(), &Kind::TokenRefused { description: None });
        assert_eq!(of(502).kind(), &Kind::TokenOther { description: None });
        assert!(of(502).is_transient() && of(429).is_transient() && !of(400).is_transient());
    }

    #[test]
    fn errors_read_as_one_line() {
        let error = of(Family::Machines, 403, &data("mde_error_403_missing_role.json"));
        assert_eq!(
            error.to_string(),
            "machines: the application lacks a permission (HTTP 403): Missing application roles. API required roles: \
             Machine.Isolate, application roles: Machine.Read.All,Alert.Read.All."
        );
        let error = DefenderError::deadline(Family::Token(Audience::Graph));
        assert_eq!(error.to_string(), "token for graph: the deadline passed");
    }

    proptest! {
        #[test]
        fn no_body_breaks_the_classification(status in 300u16..600, body in prop::collection::vec(any::<u8>(), 0..200)) {
            for family in [Family::Alerts, Family::Hunting] {
                let error = of(family, status, &body);
                prop_assert_eq!(error.status(), Some(status));
            }
        }
    }
}
