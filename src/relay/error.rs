//! Relay errors: the exact codes and texts of `relay.md` 3.3 and 2.4, one constructor a row, so that no other place
//! spells one. Which row applies is decided where the failure happens (token, payload, call, queue), not here.
//!
//! An error about one observable names it through [`RelayError::about`] (`DESIGN.md` 10.8): the contract's text stays
//! as it is, the name follows.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{payload::Details, token::TokenError};

/// Longest part of a message that comes from outside (Defender's detail, Entra's description), in characters
/// (`relay.md` 3.4).
pub const MAX_DETAIL_CHARS: usize = 500;

/// How bad an error is, in the platform's words; ordered from harmless to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorType {
    /// The answer stands, with less in it.
    Warning,
    /// Known to the platform, not sent by us.
    Error,
    /// The platform reads it as "this module needs attention".
    Fatal,
}

/// One entry of `errors` (`relay.md` 3.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "Why something is not in the answer.", deny_unknown_fields)]
pub struct RelayError {
    /// Lower case, words divided by spaces.
    pub code: Cow<'static, str>,
    /// For the analyst.
    pub message: Cow<'static, str>,
    /// How bad it is.
    #[serde(rename = "type")]
    pub kind: ErrorType,
}

impl RelayError {
    fn fatal(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), message: message.into(), kind: ErrorType::Fatal }
    }

    /// E1: `reason` is a [`TokenError`]'s (A1 to A12), Entra's `error_description` (A13) or Defender's detail (A14).
    pub fn authorization(reason: &str) -> Self {
        Self::fatal("authorization error", format!("Authorization failed: {}", bounded(reason)))
    }

    /// E1, A13 where Entra gave no `error_description`.
    pub fn authorization_at_defender() -> Self {
        Self::authorization("on Microsoft Defender for Endpoint side")
    }

    /// E2: the body is not JSON, empty, or not of the schema.
    pub fn invalid_payload(details: &Details) -> Self {
        Self::fatal("invalid payload", format!("Invalid JSON payload received. {details}."))
    }

    /// E3, E4, E5: Defender refused a request; `detail` by `relay.md` 3.4.
    pub fn invalid_request(detail: &str) -> Self {
        Self::fatal(
            "invalid request",
            format!("Invalid request to Microsoft Defender for Endpoint. {}", bounded(detail)),
        )
    }

    /// E6: Defender answered 403; `permission` is the one that the call needs (`relay.md` 3.3, below the table).
    pub fn permission_denied(permission: &str) -> Self {
        Self::fatal(
            "permission denied",
            format!(
                "Microsoft Defender for Endpoint refused the request: the application needs the {} permission.",
                bounded(permission)
            ),
        )
    }

    /// E7: Defender answered 429, hunting apart.
    pub fn too_many_requests() -> Self {
        Self::fatal(
            "too many requests",
            "Too many requests to Microsoft Defender for Endpoint have been made. Please, try again later.",
        )
    }

    /// E8: hunting answered 429; `detail` by `relay.md` 3.4.
    pub fn hunting_rate_limit(detail: &str) -> Self {
        Self::fatal(
            "too many requests",
            format!("Advanced Hunting API rate limit has been exceeded. {}", bounded(detail)),
        )
    }

    /// E9, E10: Defender answered 5xx, or a body that is not the expected JSON.
    pub fn defender_internal() -> Self {
        Self::fatal("internal error", "Microsoft Defender for Endpoint internal error.")
    }

    /// E11, E13: no connection, or a TLS failure that is not about the certificate.
    pub fn connection() -> Self {
        Self::fatal("connection error", "Unable to connect to Microsoft Defender for Endpoint.")
    }

    /// E12: the certificate cannot be verified. The first letter of `reason` is made upper case.
    pub fn certificate(reason: &str) -> Self {
        let mut letters = bounded(reason).chars();
        let reason: String =
            letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect());
        Self::fatal("unknown", format!("Unable to verify SSL certificate: {reason}"))
    }

    /// E14, and E19's last row: anything unforeseen.
    pub fn unforeseen() -> Self {
        Self::fatal("unknown", "Something went wrong.")
    }

    /// E15: the action id is not known for this kind of observable, or the route is switched off.
    pub fn unsupported_action() -> Self {
        Self::invalid_request("Unsupported action.")
    }

    /// The relay itself does not do what a trigger asks for: the guard, the brake or a cap (`DESIGN.md` 10, ruling 13).
    pub fn refused(why: &str) -> Self {
        Self::fatal("refused", format!("The relay refused the action: {}.", bounded(why)))
    }

    /// E16: an indicator action on a type that has no indicator type.
    pub fn unsupported_type(type_as_received: &str) -> Self {
        Self::fatal("unsupported type", format!("Unsupported observable type {}", bounded(type_as_received)))
    }

    /// E17: the value is not valid for its type.
    pub fn invalid_value() -> Self {
        Self::invalid_request("Invalid observable value.")
    }

    /// E18: a remove action without `indicator_id`.
    pub fn indicator_id_missing() -> Self {
        Self::invalid_request("indicator_id is missing.")
    }

    /// E19: Entra answered 200 without a token.
    pub fn no_access_token() -> Self {
        Self::invalid_request("Access Token does not exist.")
    }

    /// E19: Entra answered 404.
    pub fn unknown_tenant() -> Self {
        Self::fatal("permission denied", "Invalid Authorization Bearer JWT.")
    }

    /// E19: Entra answered something else, with an `error_description`.
    pub fn entra_unexpected(error_description: &str) -> Self {
        Self::fatal(
            "unknown",
            format!(
                "Microsoft Defender for Endpoint returned unexpected error. Details: {}",
                bounded(error_description)
            ),
        )
    }

    /// E20: the deadline passed; a warning when there is data, otherwise fatal.
    pub fn deadline(has_data: bool) -> Self {
        let error = Self::fatal("deadline", "The request was not finished in time; the answer may be incomplete.");
        if has_data { error.as_warning() } else { error }
    }

    /// E21: the queue does not take or answer the job.
    pub fn not_processed() -> Self {
        Self::fatal("internal error", "The relay could not process the request.")
    }

    /// The queue is full, or the expected wait too long (`DESIGN.md` 10.6).
    pub fn busy() -> Self {
        Self::fatal("too many requests", "The relay is busy. Please, try again later.")
    }

    /// E22: more alerts exist for the observable's `value` than the limit allows.
    pub fn more_alerts(value: &str) -> Self {
        Self::fatal(
            "too-many-messages-warning",
            format!("There are more alerts for {value} in Microsoft Defender for Endpoint than are shown."),
        )
        .as_warning()
    }

    /// E23: a best-effort lookup failed for a reason other than "not found"; once per request.
    pub fn details_missing() -> Self {
        Self::fatal("warning", "Some details could not be read from Microsoft Defender for Endpoint.").as_warning()
    }

    /// Alerts were looked for in hunting only, which sees 30 days, because their quota would not have lasted for all
    /// that waited (`DESIGN.md` 5).
    pub fn older_alerts_not_asked() -> Self {
        Self::fatal(
            "warning",
            "Alerts older than 30 days could not be asked for: too many requests to Microsoft Defender for Endpoint are \
             waiting.",
        )
        .as_warning()
    }

    /// Alerts are shown as hunting knows them, because their quota did not last for those that exist (`DESIGN.md` 5).
    pub fn alerts_from_hunting() -> Self {
        Self::fatal(
            "warning",
            "Alerts are shown without descriptions, process relations and what is older than 30 days: too many requests \
             to Microsoft Defender for Endpoint are waiting.",
        )
        .as_warning()
    }

    /// Names the observable that the error is about: ` Observable: <value>.` after the contract's text. E22 names its
    /// observable already.
    #[must_use]
    pub fn about(mut self, value: &str) -> Self {
        self.message = format!("{} Observable: {value}.", self.message).into();
        self
    }

    /// The same as a warning, for what costs a part of the answer only (`DESIGN.md` 5, partial answers).
    #[must_use]
    pub fn as_warning(mut self) -> Self {
        self.kind = ErrorType::Warning;
        self
    }
}

impl From<TokenError> for RelayError {
    fn from(error: TokenError) -> Self {
        Self::authorization(error.reason())
    }
}

/// Keeps the first of each (code, message), with the worst type among its repeats (`relay.md` 3.1).
pub fn distinct(errors: impl IntoIterator<Item = RelayError>) -> Vec<RelayError> {
    let mut kept: Vec<RelayError> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for error in errors {
        match places.entry((error.code.clone(), error.message.clone())) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(kept.len());
                kept.push(error);
            }
            std::collections::hash_map::Entry::Occupied(place) => {
                let earlier = &mut kept[*place.get()];
                earlier.kind = earlier.kind.max(error.kind);
            }
        }
    }
    kept
}

/// At most [`MAX_DETAIL_CHARS`] of a text from outside.
fn bounded(text: &str) -> &str {
    text.char_indices().nth(MAX_DETAIL_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::payload;

    #[test]
    fn every_row_has_the_exact_code_text_and_type() {
        let details = payload::observable_list(b"{").unwrap_err();
        let rows = [
            (
                RelayError::from(TokenError::HeaderMissing),
                "authorization error",
                "Authorization failed: Authorization header is missing",
            ),
            (
                RelayError::authorization_at_defender(),
                "authorization error",
                "Authorization failed: on Microsoft Defender for Endpoint side",
            ),
            (
                RelayError::invalid_payload(&details),
                "invalid payload",
                r#"Invalid JSON payload received. {"_schema": ["Invalid input type."]}."#,
            ),
            (
                RelayError::invalid_request("HTTP 409"),
                "invalid request",
                "Invalid request to Microsoft Defender for Endpoint. HTTP 409",
            ),
            (
                RelayError::permission_denied("ThreatHunting.Read.All"),
                "permission denied",
                "Microsoft Defender for Endpoint refused the request: the application needs the ThreatHunting.Read.All permission.",
            ),
            (
                RelayError::too_many_requests(),
                "too many requests",
                "Too many requests to Microsoft Defender for Endpoint have been made. Please, try again later.",
            ),
            (
                RelayError::hunting_rate_limit("m"),
                "too many requests",
                "Advanced Hunting API rate limit has been exceeded. m",
            ),
            (RelayError::defender_internal(), "internal error", "Microsoft Defender for Endpoint internal error."),
            (RelayError::connection(), "connection error", "Unable to connect to Microsoft Defender for Endpoint."),
            (RelayError::certificate("self signed"), "unknown", "Unable to verify SSL certificate: Self signed"),
            (RelayError::unforeseen(), "unknown", "Something went wrong."),
            (
                RelayError::unsupported_action(),
                "invalid request",
                "Invalid request to Microsoft Defender for Endpoint. Unsupported action.",
            ),
            (RelayError::refused("it is late"), "refused", "The relay refused the action: it is late."),
            (RelayError::unsupported_type("URL"), "unsupported type", "Unsupported observable type URL"),
            (
                RelayError::invalid_value(),
                "invalid request",
                "Invalid request to Microsoft Defender for Endpoint. Invalid observable value.",
            ),
            (
                RelayError::indicator_id_missing(),
                "invalid request",
                "Invalid request to Microsoft Defender for Endpoint. indicator_id is missing.",
            ),
            (
                RelayError::no_access_token(),
                "invalid request",
                "Invalid request to Microsoft Defender for Endpoint. Access Token does not exist.",
            ),
            (RelayError::unknown_tenant(), "permission denied", "Invalid Authorization Bearer JWT."),
            (
                RelayError::entra_unexpected("AADSTS1"),
                "unknown",
                "Microsoft Defender for Endpoint returned unexpected error. Details: AADSTS1",
            ),
            (
                RelayError::deadline(false),
                "deadline",
                "The request was not finished in time; the answer may be incomplete.",
            ),
            (RelayError::not_processed(), "internal error", "The relay could not process the request."),
            (RelayError::busy(), "too many requests", "The relay is busy. Please, try again later."),
        ];
        for (error, code, message) in rows {
            assert_eq!((&*error.code, &*error.message, error.kind), (code, message, ErrorType::Fatal));
        }
        let warnings = [
            (
                RelayError::deadline(true),
                "deadline",
                "The request was not finished in time; the answer may be incomplete.",
            ),
            (
                RelayError::more_alerts("192.0.2.1"),
                "too-many-messages-warning",
                "There are more alerts for 192.0.2.1 in Microsoft Defender for Endpoint than are shown.",
            ),
            (
                RelayError::details_missing(),
                "warning",
                "Some details could not be read from Microsoft Defender for Endpoint.",
            ),
        ];
        for (error, code, message) in warnings {
            assert_eq!((&*error.code, &*error.message, error.kind), (code, message, ErrorType::Warning));
        }
    }

    #[test]
    fn the_name_of_the_observable_follows_the_text_of_the_contract() {
        let error = RelayError::too_many_requests().about("192.0.2.1");
        assert_eq!(
            error.message,
            "Too many requests to Microsoft Defender for Endpoint have been made. Please, try again later. \
             Observable: 192.0.2.1."
        );
    }

    #[test]
    fn equal_errors_are_written_once_with_the_worst_type() {
        let errors = distinct([
            RelayError::deadline(true),
            RelayError::connection(),
            RelayError::deadline(false),
            RelayError::connection().about("a.example"),
            RelayError::connection(),
        ]);
        assert_eq!(
            errors,
            [RelayError::deadline(false), RelayError::connection(), RelayError::connection().about("a.example")]
        );
    }

    #[test]
    fn text_from_outside_is_cut_between_characters() {
        let error = RelayError::invalid_request(&"ü".repeat(501));
        assert!(error.message.ends_with(&format!("Endpoint. {}", "ü".repeat(500))));
    }

    #[test]
    fn an_empty_certificate_reason_does_no_harm() {
        assert_eq!(RelayError::certificate("").message, "Unable to verify SSL certificate: ");
    }

    #[test]
    fn an_error_survives_the_way_through_the_queue() {
        let error = RelayError::more_alerts("a.example");
        let text = serde_json::to_string(&error).unwrap();
        assert!(text.ends_with(r#""type":"warning"}"#));
        assert_eq!(serde_json::from_str::<RelayError>(&text).unwrap(), error);
    }
}
