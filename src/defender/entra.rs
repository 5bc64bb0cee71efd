//! Tokens from Entra: client credentials, v2 (`defender.md` 1), one for each resource, kept until shortly before they end.
//!
//! A token is never validated here: it is not meant for us (`defender.md` 1.3). What it says of itself is read for
//! diagnostics only.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use moka::Expiry;
use moka::future::Cache;
use moka::ops::compute::Op;
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};
use url::{Url, form_urlencoded};

use super::call::address;
use super::certificate::ASSERTION_TYPE;
use super::{Account, Audience, DefenderError, Family, Proof, Session, TokenClaims};
use crate::outbound::{Answer, Request};
use crate::retry;

/// Tokens kept at a time: two for each pair of tenant and secret. Each is some 3 KiB, so this is at most 6 MiB.
const TOKENS_KEPT: u64 = 2000;

/// A token is renewed when this much of its life is left, or a tenth of it if that is less (`defender.md` 1.3).
const RENEWAL_MARGIN: Duration = Duration::from_secs(5 * 60);

/// How long a token is used whose life is not told. Entra always tells; a minute keeps one request from asking for
/// each of its calls.
const UNKNOWN_LIFE: Duration = Duration::from_secs(60);

/// No life is believed to be longer than the longest that Entra gives (28 hours, to resources that can revoke).
const LONGEST_LIFE: Duration = Duration::from_secs(28 * 3600);

/// Token answers are a few KiB.
const BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// An access token.
pub(super) struct Token {
    /// `Bearer ...`, marked as sensitive.
    pub(super) authorization: HeaderValue,
    pub(super) claims: TokenClaims,
    usable_for: Duration,
}

pub(super) type TokenKey = (Arc<Account>, Audience);

/// The tokens of one process. What was refused is remembered by the circuits.
pub(super) type Tokens = Cache<TokenKey, Arc<Token>>;

pub(super) fn tokens() -> Tokens {
    Cache::builder().max_capacity(TOKENS_KEPT).expire_after(RenewInTime).build()
}

struct RenewInTime;

impl Expiry<TokenKey, Arc<Token>> for RenewInTime {
    fn expire_after_create(&self, _: &TokenKey, token: &Arc<Token>, _: std::time::Instant) -> Option<Duration> {
        Some(token.usable_for)
    }
}

impl Session {
    /// The token for `audience`: kept, or fetched by one caller for all who wait for it.
    pub(super) async fn token(&self, audience: Audience) -> Result<Arc<Token>, DefenderError> {
        let key = (Arc::clone(&self.inner.account), audience);
        let tokens = &self.inner.defender.shared.tokens;
        if let Some(token) = tokens.get(&key).await {
            return Ok(token);
        }
        // Before the fetch, which containment may share.
        let pass = self.enter(Family::Token(audience))?;
        pass.learn(self.once(Family::Token(audience), tokens, key, || self.fetch_token(audience)).await)
    }

    /// Drops `used`, which an API refused, and says whether it is worth trying with another one: at most once a session
    /// and audience, for a permission that is really missing would otherwise cost a token with each call.
    pub(super) async fn renew_token(&self, audience: Audience, used: &Arc<Token>) -> bool {
        {
            let mut refused = self.inner.refused_tokens.lock().expect("nothing panics while holding this lock");
            match refused.get(&audience) {
                None => refused.insert(audience, Arc::clone(used)),
                // Calls that went out side by side are refused side by side.
                Some(before) if Arc::ptr_eq(before, used) => return true,
                Some(_) => return false,
            };
        }
        let key = (Arc::clone(&self.inner.account), audience);
        let drop_it = |entry: Option<moka::Entry<TokenKey, Arc<Token>>>| {
            // Another session may have renewed it already.
            let is_ours = entry.is_some_and(|entry| Arc::ptr_eq(entry.value(), used));
            std::future::ready(if is_ours { Op::Remove } else { Op::Nop })
        };
        self.inner.defender.shared.tokens.entry(key).and_compute_with(drop_it).await;
        true
    }

    /// `POST /{tenant}/oauth2/v2.0/token` (`defender.md` 1.1).
    async fn fetch_token(&self, audience: Audience) -> Result<Arc<Token>, DefenderError> {
        let family = Family::Token(audience);
        let settings = &self.inner.defender.shared.settings;
        let tenant = self.inner.account.tenant_id.as_str();
        // An id or a domain name is never one of these; in an address they would name another path.
        if ["", ".", ".."].contains(&tenant) {
            return Err(DefenderError::unknown_tenant(family));
        }
        let request = Request {
            method: Method::POST,
            url: address(&settings.entra_url, &[tenant, "oauth2", "v2.0", "token"], None),
            template: "/{tenant}/oauth2/v2.0/token",
            headers: HeaderMap::from_iter([
                (ACCEPT, HeaderValue::from_static("application/json")),
                (CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
            ]),
            body: bytes::Bytes::new(),
            limit: Some(settings.rest_limit),
            body_limit_bytes: BODY_LIMIT_BYTES,
            resend_count: 0,
        };
        retry::run(&settings.retry, retry::Call::Token, self.inner.deadline, |resend_count| {
            // An assertion is for one request only.
            let body = self.form(settings.scope(audience), &request.url).into();
            let request = Request { resend_count, body, ..request.clone() };
            async move { read_token(family, &self.attempt(family, request, None).await?, Timestamp::now()).map(Arc::new) }
        })
        .await
    }

    fn form(&self, scope: &str, endpoint: &Url) -> String {
        let client_id = &self.inner.account.client_id;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials").append_pair("client_id", client_id);
        match &self.inner.proof {
            Proof::Secret(secret) => form.append_pair("client_secret", secret.expose_secret()),
            Proof::Certificate(certificate) => form
                .append_pair("client_assertion_type", ASSERTION_TYPE)
                .append_pair("client_assertion", &certificate.assertion(client_id, endpoint, Timestamp::now())),
        };
        form.append_pair("scope", scope).finish()
    }
}

/// Reads the answer of the token endpoint; `expires_in` may be a number or text (`defender.md` 1.3).
fn read_token(family: Family, answer: &Answer, now: Timestamp) -> Result<Token, DefenderError> {
    if !answer.status.is_success() {
        return Err(DefenderError::from_token_answer(family, answer, now));
    }
    let body: Map<String, Value> = serde_json::from_slice(&answer.body)
        .map_err(|error| DefenderError::from_body(family, answer.status.as_u16(), &error))?;
    let token = body.get("access_token").and_then(Value::as_str).filter(|token| !token.is_empty());
    let authorization = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
    let (Some(token), Some(mut authorization)) = (token, authorization) else {
        return Err(DefenderError::from_token_answer(family, answer, now));
    };
    authorization.set_sensitive(true);
    let life = match body.get("expires_in") {
        Some(Value::Number(seconds)) => seconds.as_f64(),
        Some(Value::String(seconds)) => seconds.trim().parse().ok(),
        _ => None,
    };
    let life = life.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(Token { authorization, claims: read_claims(token), usable_for: usable_for(life) })
}

fn usable_for(life: Option<Duration>) -> Duration {
    let life = life.unwrap_or(UNKNOWN_LIFE).min(LONGEST_LIFE);
    life - RENEWAL_MARGIN.min(life / 10)
}

/// What the token says of itself; nothing, if it cannot be read.
fn read_claims(token: &str) -> TokenClaims {
    let claims: Map<String, Value> = token
        .split('.')
        .nth(1)
        .and_then(|payload| URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok())
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    TokenClaims {
        audience: claims.get("aud").and_then(text),
        roles: claims.get("roles").and_then(Value::as_array).into_iter().flatten().filter_map(text).collect(),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::Kind;
    use super::*;

    fn read(status: u16, body: &[u8]) -> Result<Token, DefenderError> {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: bytes::Bytes::copy_from_slice(body),
        };
        read_token(Family::Token(Audience::Defender), &answer, Timestamp::UNIX_EPOCH)
    }

    #[rstest]
    #[case::v2(include_bytes!("../../tests/data/defender/token_v2_ok.json"))]
    #[case::v1_with_numbers_as_text(include_bytes!("../../tests/data/defender/token_v1_ok.json"))]
    fn both_generations_of_answers_are_read(#[case] body: &[u8]) {
        let token = read(200, body).ok().unwrap();
        assert_eq!(token.authorization, "Bearer eyJhbGciOiJub25lIn0.eyJhdWQiOiJleGFtcGxlIn0.invented");
        assert!(token.authorization.is_sensitive());
        assert_eq!(token.usable_for, Duration::from_secs(3599 - 300));
        assert_eq!(token.claims.audience.as_deref(), Some("example"));
    }

    #[rstest]
    #[case::long(Some(86_400), 86_100)]
    #[case::hour(Some(3600), 3300)]
    #[case::short(Some(100), 90)]
    #[case::none_left(Some(0), 0)]
    #[case::not_told(None, 54)]
    #[case::absurd(Some(u64::MAX), 28 * 3600 - 300)]
    fn a_token_is_renewed_before_it_ends(#[case] life: Option<u64>, #[case] expected: u64) {
        assert_eq!(usable_for(life.map(Duration::from_secs)), Duration::from_secs(expected));
    }

    #[rstest]
    #[case::no_token(b"{}", Kind::TokenMissing, false)]
    #[case::null_token(br#"{"access_token":null}"#, Kind::TokenMissing, false)]
    #[case::empty_token(br#"{"access_token":""}"#, Kind::TokenMissing, false)]
    #[case::token_with_line_break(br#"{"access_token":"a\r\nb"}"#, Kind::TokenMissing, false)]
    #[case::html(b"<html>sign in</html>", Kind::BadGateway, false)]
    #[case::list(b"[]", Kind::BadGateway, false)]
    #[case::empty(b"", Kind::BadGateway, true)]
    #[case::cut_off(br#"{"access_token":"abc"#, Kind::BadGateway, true)]
    fn a_success_without_a_token_is_a_failure(#[case] body: &[u8], #[case] kind: Kind, #[case] transient: bool) {
        let error = read(200, body).err().unwrap();
        assert_eq!(error.kind(), &kind);
        assert_eq!(error.is_transient(), transient);
    }

    #[test]
    fn claims_are_read_for_diagnostics() {
        let payload = URL_SAFE_NO_PAD.encode(include_bytes!("../../tests/data/defender/token_claims.json"));
        let claims = read_claims(&format!("eyJhbGciOiJub25lIn0.{payload}.signature"));
        assert_eq!(claims.audience.as_deref(), Some("https://api.securitycenter.microsoft.com"));
        assert_eq!(
            claims.roles,
            ["Alert.Read.All", "Machine.Read.All", "Machine.Isolate", "File.Read.All", "Ti.ReadWrite.All"]
        );
    }

    proptest! {
        #[test]
        fn no_token_breaks_the_reading_of_claims(token in ".{0,80}") {
            let _ = read_claims(&token);
        }
    }
}
