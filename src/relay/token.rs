//! Bearer tokens: HS256 over `SECRET_KEY` (`relay.md` 2.1 and 2.2), read, checked at a given `now`, and made. Tokens that
//! a key set's owner signed (RS256, 2.3) are read here too, and checked in [`key_set`](super::key_set).
//!
//! The JWT is taken apart here rather than by a library because every refusal has its own row and text in the
//! contract, and because each kind has one algorithm: what the header says is compared, never obeyed. The checks go
//! structure, key present, algorithm and signature, times, claims; so nothing is said about the content of a token
//! that nobody signed.
//!
//! Readings where the contract is silent: `exp` and `nbf` may be any JSON number (seconds since 1970, fractions
//! allowed), `null` counts as absent, anything else is A9. A token is accepted while `now < exp + 60 s` and from
//! `nbf - 60 s` on. The `tenant_id`s `.` and `..` match the contract's pattern but would climb out of the URL path they
//! are put into: A9.

use std::fmt;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

/// Longest token, in bytes: with the usual 8 KiB for all headers of a request, a longer one is no token of ours.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far the clocks of the token's maker and ours may be apart (`relay.md` 2.2).
const LEEWAY_SECONDS: f64 = 60.0;
/// Longest `tenant_id` (`relay.md` 2.2).
const MAX_TENANT_CHARS: usize = 255;
/// What a masked claim reads as.
const MASK: &str = "********";

/// Why a request is not let in (A1 to A12, J1 to J8); `Display` is the contract's `<reason>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum TokenError {
    /// A1
    HeaderMissing,
    /// A2, A3
    WrongScheme,
    /// A4, J7, and a token over [`MAX_TOKEN_BYTES`].
    WrongStructure,
    /// A5, A6, A7, J4
    WrongKey,
    /// A8, A9, J6
    WrongPayload,
    /// A10, A11
    KeyMissing,
    /// A12, J8
    Expired,
    /// J1
    KeySetMissing,
    /// J2
    WrongKeySet,
    /// J3
    UnknownKey,
    /// J5
    WrongAudience,
    /// A key-set token of a tenant that is not on the list of this deployment. Not a row of the contract, whose relay
    /// served whoever the platform signed for.
    UnlistedTenant,
}

impl TokenError {
    /// The contract's `<reason>`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::HeaderMissing => "Authorization header is missing",
            Self::WrongScheme => "Wrong authorization type",
            Self::WrongStructure => "Wrong JWT structure",
            Self::WrongKey => "Failed to decode JWT with provided key",
            Self::WrongPayload => "Wrong JWT payload structure",
            Self::KeyMissing => "<SECRET_KEY> is missing",
            Self::Expired => "JWT has expired",
            Self::KeySetMissing => "jwks_host is missing in JWT payload",
            Self::WrongKeySet => "Wrong jwks_host in JWT payload",
            Self::UnknownKey => "kid from JWT header not found in API response",
            Self::WrongAudience => "Wrong configuration-token-audience",
            Self::UnlistedTenant => "tenant_id is not allowed to use this relay",
        }
    }
}

/// The keys whose signatures are accepted: the current one, and the previous one while rotating.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<SecretString>);

impl Keys {
    /// `SECRET_KEY` and `SECRET_KEY_PREVIOUS`; an empty one counts as unset (defect 10).
    pub fn new(current: Option<SecretString>, previous: Option<SecretString>) -> Self {
        Self([current, previous].into_iter().flatten().filter(|key| !key.expose_secret().is_empty()).collect())
    }

    /// No key at all: every token is refused, and the start-up should warn (`DESIGN.md` 10.12).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a verified token says. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Claims {
    /// Azure application id; not empty.
    pub client_id: String,
    /// Its secret; not empty.
    pub client_secret: SecretString,
    /// Directory id; fits in a URL path segment as it is.
    pub tenant_id: String,
    /// `CTR_ENTITIES_LIMIT`, when it is a positive integer or the digits of one; may lower the limit of the request.
    pub entities_limit: Option<u32>,
}

/// Reads the `Authorization` header's value and takes its token apart. A request with several such headers is the edge's
/// to refuse: hand it on as two parts too many, or take the first.
///
/// # Errors
/// The row of `relay.md` 2.2 that applies, A1 to A4.
pub fn read(header: Option<&[u8]>) -> Result<Unverified<'_>, TokenError> {
    Unverified::parse(bearer(header)?)
}

/// The token of an `Authorization` header: two parts, the first `Bearer` in any case.
fn bearer(header: Option<&[u8]>) -> Result<&str, TokenError> {
    let header = std::str::from_utf8(header.ok_or(TokenError::HeaderMissing)?).map_err(|_| TokenError::WrongScheme)?;
    let mut parts = header.split_whitespace();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(scheme), Some(token), None) if scheme.eq_ignore_ascii_case("bearer") => Ok(token),
        _ => Err(TokenError::WrongScheme),
    }
}

/// Verifies an HS256 token at `now`.
///
/// # Errors
/// The row of `relay.md` 2.2 that applies, A4 to A12.
pub fn verify(token: &str, keys: &Keys, now: Timestamp) -> Result<Claims, TokenError> {
    Unverified::parse(token)?.verify(keys, now)
}

/// The parts of a token that nobody has vouched for yet. Has no `Debug`, for it holds secrets.
pub struct Unverified<'a> {
    pub(super) header: Map<String, Value>,
    pub(super) payload: Map<String, Value>,
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// The algorithm that the header names: which kind of token this claims to be (`relay.md` 2.3).
    pub fn algorithm(&self) -> Option<&str> {
        self.header.get("alg").and_then(Value::as_str)
    }

    /// Verifies an HS256 token at `now`.
    ///
    /// # Errors
    /// The row of `relay.md` 2.2 that applies, A5 to A12.
    pub fn verify(&self, keys: &Keys, now: Timestamp) -> Result<Claims, TokenError> {
        if keys.is_empty() {
            return Err(TokenError::KeyMissing);
        }
        match self.algorithm() {
            Some("HS256") => self.check_hs256(keys)?,
            _ => return Err(TokenError::WrongKey),
        }
        check_times(&self.payload, now)?;
        claims(&self.payload)
    }

    fn parse(token: &'a str) -> Result<Self, TokenError> {
        Self::read(token).ok_or(TokenError::WrongStructure)
    }

    fn read(token: &'a str) -> Option<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        Some(Self {
            header: object(header)?,
            payload: object(payload)?,
            signed,
            signature: BASE64URL.decode(signature).ok()?,
        })
    }

    /// Compares in constant time, with each accepted key in turn.
    fn check_hs256(&self, keys: &Keys) -> Result<(), TokenError> {
        let signed_with = |key: &SecretString| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes());
            hmac::verify(&key, self.signed.as_bytes(), &self.signature).is_ok()
        };
        if keys.0.iter().any(signed_with) { Ok(()) } else { Err(TokenError::WrongKey) }
    }
}

/// A segment that holds a JSON object. A dot in it (a fourth segment) is no base64url.
fn object(segment: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&BASE64URL.decode(segment).ok()?).ok()
}

pub(super) fn check_times(payload: &Map<String, Value>, now: Timestamp) -> Result<(), TokenError> {
    let seconds = |name| match payload.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(TokenError::WrongPayload),
    };
    let now = now.as_duration().as_secs_f64();
    let expired = seconds("exp")?.is_some_and(|exp| now >= exp + LEEWAY_SECONDS);
    let too_early = seconds("nbf")?.is_some_and(|nbf| now + LEEWAY_SECONDS < nbf);
    if expired || too_early { Err(TokenError::Expired) } else { Ok(()) }
}

pub(super) fn claims(payload: &Map<String, Value>) -> Result<Claims, TokenError> {
    let text = |name| match payload.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        _ => Err(TokenError::WrongPayload),
    };
    let tenant_id = text("tenant_id")?;
    if !is_tenant_id(&tenant_id) {
        return Err(TokenError::WrongPayload);
    }
    Ok(Claims {
        client_id: text("client_id")?,
        client_secret: text("client_secret")?.into(),
        tenant_id,
        entities_limit: payload.get("CTR_ENTITIES_LIMIT").and_then(positive),
    })
}

/// Whether a tenant can have this id or domain name: `^[A-Za-z0-9.-]{1,255}$`, and no step in a path.
pub fn is_tenant_id(text: &str) -> bool {
    (1..=MAX_TENANT_CHARS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        && !matches!(text, "." | "..")
}

/// A positive integer, as a number or as digits; anything else is ignored (`relay.md` 5.3).
fn positive(value: &Value) -> Option<u32> {
    let number = match value {
        Value::Number(number) => number.as_u64()?,
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        _ => return None,
    };
    // What is beyond 32 bits is above every configured limit, so it would be ignored anyway.
    u32::try_from(number).ok().filter(|&number| number > 0)
}

/// Makes a token; without `expires_at` it never ends, as tokens that are pasted into the platform once do. The result
/// opens the tenant's data: it is as secret as its claims.
pub fn mint(claims: &Claims, expires_at: Option<Timestamp>, key: &SecretString) -> String {
    let mut payload = json!({
        "client_id": claims.client_id,
        "client_secret": claims.client_secret.expose_secret(),
        "tenant_id": claims.tenant_id,
    });
    if let Some(limit) = claims.entities_limit {
        payload["CTR_ENTITIES_LIMIT"] = limit.into();
    }
    if let Some(expires_at) = expires_at {
        payload["exp"] = expires_at.as_second().into();
    }
    sign(&json!({"alg": "HS256", "typ": "JWT"}).to_string(), &payload.to_string(), key)
}

fn sign(header: &str, payload: &str, key: &SecretString) -> String {
    let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(payload));
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose_secret().as_bytes());
    let signature = BASE64URL.encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A token taken apart without checking its signature, secrets masked. `Display` is for a person to read.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// Its header.
    pub header: Map<String, Value>,
    /// Its payload; `client_secret`, and every claim that is not known to be harmless, is masked.
    pub claims: Map<String, Value>,
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = json!({"header": self.header, "claims": self.claims});
        write!(f, "{whole:#}")
    }
}

/// Takes a token apart for a person to read. It says nothing of who signed it.
///
/// # Errors
/// [`TokenError::WrongStructure`].
pub fn inspect(token: &str) -> Result<Inspection, TokenError> {
    const HARMLESS: [&str; 11] =
        ["client_id", "tenant_id", "CTR_ENTITIES_LIMIT", "exp", "nbf", "iat", "iss", "sub", "aud", "jti", "jwks_host"];
    let Unverified { header, payload, .. } = Unverified::parse(token.trim())?;
    let shown = |(name, value): (String, Value)| {
        let value = if HARMLESS.contains(&name.as_str()) { value } else { MASK.into() };
        (name, value)
    };
    Ok(Inspection { header, claims: payload.into_iter().map(shown).collect() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Key and token of the contract's worked examples (`04-envelopes.json`).
    const KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJjbGllbnRfaWQiOiJjbGllbnQtaWQtMSIsImNsaWVudF9zZWNyZXQiOiJjbGllbnQtc2VjcmV0LTEiLCJ0ZW5hbnRfaWQiOiIxMTExMTExMS0yMjIyLTQzMzMtODQ0NC01NTU1NTU1NTU1NTUifQ.er7gBHsr9tTPf79uI_3AlR5PKSCGhiRfS2fz24NSinc";
    const WRONG_KEY: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJjbGllbnRfaWQiOiJjbGllbnQtaWQtMSIsImNsaWVudF9zZWNyZXQiOiJjbGllbnQtc2VjcmV0LTEiLCJ0ZW5hbnRfaWQiOiIxMTExMTExMS0yMjIyLTQzMzMtODQ0NC01NTU1NTU1NTU1NTUifQ.wyif92v78TJ-yxmqzEp0HCfPhtUomOIV4odGMxdV0vM";
    const ALG_NONE: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJjbGllbnRfaWQiOiJjbGllbnQtaWQtMSIsImNsaWVudF9zZWNyZXQiOiJjbGllbnQtc2VjcmV0LTEiLCJ0ZW5hbnRfaWQiOiIxMTExMTExMS0yMjIyLTQzMzMtODQ0NC01NTU1NTU1NTU1NTUifQ.";
    const ALG_HS512: &str = "eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9.eyJjbGllbnRfaWQiOiJjbGllbnQtaWQtMSIsImNsaWVudF9zZWNyZXQiOiJjbGllbnQtc2VjcmV0LTEiLCJ0ZW5hbnRfaWQiOiIxMTExMTExMS0yMjIyLTQzMzMtODQ0NC01NTU1NTU1NTU1NTUifQ.5E1iaEpUPJg_Sxi4yZ3-KVV4duUIiByTyZrTS7f0cEPuMda0GpyV132QRMU0Eu2cqFYjjzmQ0MaZ-JUTYmI_KQ";
    const NOW: i64 = 1_700_000_000;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn keys() -> Keys {
        Keys::new(Some(KEY.into()), None)
    }

    fn authenticate(header: Option<&[u8]>, keys: &Keys, now: Timestamp) -> Result<Claims, TokenError> {
        read(header)?.verify(keys, now)
    }

    fn signed(payload: &str) -> String {
        sign(r#"{"alg":"HS256"}"#, payload, &KEY.into())
    }

    /// The reason for which a token with this payload is refused, or `ok`.
    fn judged(payload: &str) -> &'static str {
        verify(&signed(payload), &keys(), now()).map_or_else(TokenError::reason, |_| "ok")
    }

    fn with(members: &str) -> String {
        format!(r#"{{"client_id":"c","client_secret":"s","tenant_id":"t"{members}}}"#)
    }

    #[test]
    fn the_token_of_the_worked_examples_is_accepted_and_minted_alike() {
        let claims = verify(TOKEN, &keys(), now()).unwrap();
        assert_eq!(claims.client_id, "client-id-1");
        assert_eq!(claims.client_secret.expose_secret(), "client-secret-1");
        assert_eq!(claims.tenant_id, "11111111-2222-4333-8444-555555555555");
        assert_eq!(claims.entities_limit, None);
        assert_eq!(mint(&claims, None, &KEY.into()), TOKEN);
    }

    #[rstest]
    #[case::a1(None, TokenError::HeaderMissing)]
    #[case::a2(Some("Basic abc"), TokenError::WrongScheme)]
    #[case::a3_empty(Some(""), TokenError::WrongScheme)]
    #[case::a3_blank(Some("  "), TokenError::WrongScheme)]
    #[case::a3_scheme_only(Some("Bearer"), TokenError::WrongScheme)]
    #[case::a3_three_parts(Some("Bearer a b"), TokenError::WrongScheme)]
    #[case::a4(Some("Bearer abc"), TokenError::WrongStructure)]
    fn a_header_that_is_no_bearer_token_is_refused(#[case] header: Option<&str>, #[case] error: TokenError) {
        // Defect 9: a header of one or three words is refused like any other.
        assert_eq!(authenticate(header.map(str::as_bytes), &keys(), now()).unwrap_err(), error);
    }

    #[test]
    fn a_header_is_read_whatever_its_case_and_spaces() {
        for scheme in ["Bearer ", "bearer ", "BEARER\t  ", " Bearer "] {
            assert!(authenticate(Some(format!("{scheme}{TOKEN}").as_bytes()), &keys(), now()).is_ok(), "{scheme:?}");
        }
        let not_text = [b"Bearer ".as_slice(), &[0xff]].concat();
        assert_eq!(authenticate(Some(&not_text), &keys(), now()).unwrap_err(), TokenError::WrongScheme);
    }

    #[test]
    fn a4_what_is_no_jwt_is_a_wrong_structure() {
        let list = BASE64URL.encode("[]");
        let empty = BASE64URL.encode("{}");
        let tokens = [
            String::new(),
            "a.b".into(),
            "..".into(),
            TOKEN.rsplit_once('.').unwrap().0.into(),
            format!("{TOKEN}.x"),
            format!("{TOKEN}="),
            format!("{TOKEN}!"),
            format!("{list}.{empty}."),
            format!("{empty}.{list}."),
            format!("{}.{empty}.", BASE64URL.encode("{\"alg\"")),
            format!("{empty}.{}.", BASE64URL.encode([0xff, 0xfe])),
            // Longer than any header, though signed.
            signed(&with(&format!(r#","x":"{}""#, "a".repeat(MAX_TOKEN_BYTES)))),
        ];
        for token in tokens {
            assert_eq!(verify(&token, &keys(), now()).unwrap_err(), TokenError::WrongStructure, "{token}");
        }
    }

    /// Defect 10: one algorithm only, whatever the header says and whichever key made the signature.
    #[test]
    fn a5_a6_a7_a_wrong_key_or_algorithm_is_a_failed_decoding() {
        let mut tokens = vec![WRONG_KEY.to_owned(), ALG_NONE.into(), ALG_HS512.into()];
        let headers = [
            r#"{}"#,
            r#"{"alg":null}"#,
            r#"{"alg":"none"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS384"}"#,
            r#"{"alg":"RS256","kid":"k"}"#,
            r#"{"alg":"XX"}"#,
            r#"{"alg":["HS256"]}"#,
        ];
        tokens.extend(headers.map(|header| sign(header, &with(""), &KEY.into())));
        let (unsigned, _) = TOKEN.rsplit_once('.').unwrap();
        tokens.push(format!("{unsigned}."));
        for token in tokens {
            assert_eq!(verify(&token, &keys(), now()).unwrap_err(), TokenError::WrongKey, "{token}");
        }
    }

    #[rstest]
    #[case::a8_no_claims("{}")]
    #[case::a8_no_secret(r#"{"client_id":"c","tenant_id":"t"}"#)]
    #[case::a9_empty_secret(r#"{"client_id":"c","client_secret":"","tenant_id":"t"}"#)]
    #[case::a9_null(r#"{"client_id":null,"client_secret":"s","tenant_id":"t"}"#)]
    #[case::a9_number(r#"{"client_id":"c","client_secret":"s","tenant_id":7}"#)]
    #[case::a9_tenant_with_slash(r#"{"client_id":"c","client_secret":"s","tenant_id":"a/b"}"#)]
    #[case::a9_tenant_with_line(r#"{"client_id":"c","client_secret":"s","tenant_id":"a\n"}"#)]
    #[case::a9_tenant_not_ascii(r#"{"client_id":"c","client_secret":"s","tenant_id":"ä"}"#)]
    #[case::a9_tenant_climbs(r#"{"client_id":"c","client_secret":"s","tenant_id":".."}"#)]
    fn a8_a9_claims_that_are_missing_or_malformed_are_refused(#[case] payload: &str) {
        // Defect 11: claims are checked before they go anywhere.
        assert_eq!(judged(payload), "Wrong JWT payload structure");
    }

    #[test]
    fn a9_a_tenant_id_has_at_most_255_characters() {
        let tenant =
            |length| format!(r#"{{"client_id":"c","client_secret":"s","tenant_id":"{}"}}"#, "a".repeat(length));
        assert_eq!(judged(&tenant(255)), "ok");
        assert_eq!(judged(&tenant(256)), "Wrong JWT payload structure");
    }

    /// Defect 10: a token signed with the empty key is not accepted when the key is empty.
    #[test]
    fn a10_a11_without_a_key_every_token_is_refused() {
        let signed_with_nothing = sign(r#"{"alg":"HS256"}"#, &with(""), &"".into());
        for keys in [Keys::new(None, None), Keys::new(Some("".into()), None), Keys::new(None, Some("".into()))] {
            assert!(keys.is_empty());
            for token in [TOKEN, &signed_with_nothing] {
                let error = verify(token, &keys, now()).unwrap_err();
                assert_eq!(error.to_string(), "<SECRET_KEY> is missing");
            }
        }
        assert_eq!(verify(&signed_with_nothing, &keys(), now()).unwrap_err(), TokenError::WrongKey);
    }

    #[rstest]
    #[case::none("", "ok")]
    #[case::null(r#","exp":null,"nbf":null"#, "ok")]
    #[case::ahead(r#","exp":1700000001"#, "ok")]
    #[case::within_leeway(r#","exp":1699999941"#, "ok")]
    #[case::at_the_end_of_leeway(r#","exp":1699999940"#, "JWT has expired")]
    #[case::long_ago(r#","exp":1"#, "JWT has expired")]
    #[case::negative(r#","exp":-1e300"#, "JWT has expired")]
    #[case::fraction(r#","exp":1699999940.5"#, "ok")]
    #[case::far_ahead(r#","exp":1e300"#, "ok")]
    #[case::begun(r#","nbf":1700000000"#, "ok")]
    #[case::begins_within_leeway(r#","nbf":1700000060"#, "ok")]
    #[case::begins_later(r#","nbf":1700000061"#, "JWT has expired")]
    #[case::text(r#","exp":"1800000000""#, "Wrong JWT payload structure")]
    #[case::list(r#","nbf":[]"#, "Wrong JWT payload structure")]
    fn a12_times_are_checked_where_present(#[case] members: &str, #[case] expected: &str) {
        assert_eq!(judged(&with(members)), expected);
    }

    #[test]
    fn the_times_of_an_unsigned_token_are_not_looked_at() {
        let token = sign(r#"{"alg":"HS256"}"#, &with(r#","exp":1"#), &"other".into());
        assert_eq!(verify(&token, &keys(), now()).unwrap_err(), TokenError::WrongKey);
    }

    #[test]
    fn while_rotating_both_keys_are_accepted() {
        let rotating = Keys::new(Some("new".into()), Some(KEY.into()));
        assert!(verify(TOKEN, &rotating, now()).is_ok());
        assert!(verify(&sign(r#"{"alg":"HS256"}"#, &with(""), &"new".into()), &rotating, now()).is_ok());
        assert!(verify(WRONG_KEY, &rotating, now()).is_err());
    }

    #[rstest]
    #[case("5", Some(5))]
    #[case(r#""50""#, Some(50))]
    #[case("0", None)]
    #[case("-1", None)]
    #[case("1.5", None)]
    #[case("null", None)]
    #[case(r#""""#, None)]
    #[case(r#""+5""#, None)]
    #[case(r#""ten""#, None)]
    #[case("99999999999999999999", None)]
    #[case("true", None)]
    fn the_limit_claim_is_a_positive_integer_or_ignored(#[case] value: &str, #[case] expected: Option<u32>) {
        let token = signed(&with(&format!(r#","CTR_ENTITIES_LIMIT":{value}"#)));
        assert_eq!(verify(&token, &keys(), now()).unwrap().entities_limit, expected);
    }

    #[test]
    fn a_minted_token_can_end() {
        let claims =
            Claims { client_id: "c".into(), client_secret: "s".into(), tenant_id: "t".into(), entities_limit: Some(7) };
        let token = mint(&claims, Some(now()), &KEY.into());
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(verify(&token, &keys(), at(NOW)).unwrap().entities_limit, Some(7));
        assert_eq!(verify(&token, &keys(), at(NOW + 60)).unwrap_err(), TokenError::Expired);
    }

    #[test]
    fn an_inspection_shows_what_is_harmless_and_masks_the_rest() {
        let token = signed(&with(r#","exp":5,"custom_password":"hidden""#));
        let shown = inspect(&token).unwrap();
        assert_eq!(shown.claims["tenant_id"], "t");
        assert_eq!(shown.claims["exp"], 5);
        assert_eq!(shown.claims["client_secret"], MASK);
        assert_eq!(shown.claims["custom_password"], MASK);
        assert_eq!(shown.header["alg"], "HS256");
        let text = format!("{shown} {shown:?}");
        assert!(!text.contains("hidden") && text.contains("********"), "{text}");
        assert_eq!(inspect("abc").unwrap_err(), TokenError::WrongStructure);
    }

    #[test]
    fn no_secret_is_in_debug_output() {
        let text = format!("{:?} {:?}", verify(TOKEN, &keys(), now()).unwrap(), keys());
        assert!(!text.contains("client-secret-1") && !text.contains(KEY), "{text}");
    }

    proptest! {
        #[test]
        fn any_header_is_judged(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(authenticate(Some(&header), &keys(), now()).is_err());
        }

        #[test]
        fn a_changed_token_is_refused(at in 0..TOKEN.len(), letter in "[A-Za-z0-9_.-]") {
            let mut changed = TOKEN.to_owned();
            changed.replace_range(at..=at, &letter);
            prop_assume!(changed != TOKEN);
            prop_assert!(verify(&changed, &keys(), now()).is_err());
        }

        #[test]
        fn what_is_minted_is_read_back(client_id in ".{1,20}", secret in ".{1,20}", tenant_id in "[A-Za-z0-9-]{1,36}", limit in proptest::option::of(1u32..)) {
            let claims = Claims { client_id: client_id.clone(), client_secret: secret.clone().into(), tenant_id: tenant_id.clone(), entities_limit: limit };
            let read = verify(&mint(&claims, None, &KEY.into()), &keys(), now()).unwrap();
            prop_assert_eq!(read.client_id, client_id);
            prop_assert_eq!(read.client_secret.expose_secret(), secret.as_str());
            prop_assert_eq!(read.tenant_id, tenant_id);
            prop_assert_eq!(read.entities_limit, limit);
        }
    }
}
