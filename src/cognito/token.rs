//! How a call proves who it is: a personal token as it is, or an access token of an API client, which is fetched by one
//! caller for all who wait for it, kept in memory, and renewed shortly before it ends (`cognito.md` 3.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use moka::Expiry;
use moka::future::Cache;
use moka::ops::compute::Op;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::Url;
use zeroize::Zeroizing;

use super::call::{address, json};
use super::{Auth, CognitoError, Family, Flavour, Priority, Session, authorization};
use crate::outbound::{Answer, Request};
use crate::retry;

/// A token is renewed when this much of its life is left, or a tenth of it if that is less (`cognito.md` 3.2).
const RENEWAL_MARGIN: Duration = Duration::from_secs(300);

/// How long a token is used whose life is not told. Brains always tell; a minute keeps one reconcile from asking for each
/// of its calls.
const UNKNOWN_LIFE: Duration = Duration::from_secs(60);

/// No life is believed to be longer: brains give six hours.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Token answers are a few KiB.
const BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// How much longer than the deadline a lookup waits for itself: the call inside ends at the deadline and knows better what
/// went wrong, so it should be the one to tell.
const GRACE: Duration = Duration::from_millis(50);

/// An access token.
pub(super) struct Token {
    authorization: HeaderValue,
    usable_for: Duration,
}

/// The access token of the process, of which there is one at most. Failures are not kept: credentials may be repaired at
/// any time.
pub(super) type Tokens = Cache<(), Arc<Token>>;

pub(super) fn tokens() -> Tokens {
    Cache::builder().max_capacity(1).expire_after(RenewInTime).build()
}

struct RenewInTime;

impl Expiry<(), Arc<Token>> for RenewInTime {
    fn expire_after_create(&self, (): &(), token: &Arc<Token>, _: std::time::Instant) -> Option<Duration> {
        Some(token.usable_for)
    }
}

/// What goes into the `Authorization` header of a call.
pub(super) struct Proof {
    pub(super) authorization: HeaderValue,
    token: Option<Arc<Token>>,
}

impl Session {
    /// What proves who we are; for API clients that may cost a call of its own.
    pub(super) async fn proof(&self, family: Family) -> Result<Proof, CognitoError> {
        match &self.cognito.shared.settings.auth {
            Auth::Token(token) => {
                // A token that cannot stand in a header was never one.
                let authorization = authorization("Token", token.expose_secret());
                let authorization = authorization.ok_or_else(|| CognitoError::invalid_value(family))?;
                Ok(Proof { authorization, token: None })
            }
            Auth::OAuth2 { .. } => {
                let token = self.token().await?;
                Ok(Proof { authorization: token.authorization.clone(), token: Some(token) })
            }
        }
    }

    /// The secret that the settings hold.
    pub(super) fn secret(&self) -> &str {
        match &self.cognito.shared.settings.auth {
            Auth::Token(secret) | Auth::OAuth2 { client_secret: secret, .. } => secret.expose_secret(),
        }
    }

    /// Drops the token that Cognito refused, and says whether it is worth trying with another one: at most once a
    /// session, for credentials without rights would otherwise cost a token with each call.
    pub(super) async fn renew(&self, proof: &Proof) -> bool {
        let Some(used) = &proof.token else { return false };
        {
            let mut refused = self.refused_token.lock().expect("nothing panics while holding this lock");
            match &*refused {
                None => *refused = Some(Arc::clone(used)),
                // Calls that went out side by side are refused side by side.
                Some(before) if Arc::ptr_eq(before, used) => return true,
                Some(_) => return false,
            }
        }
        let drop_it = |entry: Option<moka::Entry<(), Arc<Token>>>| {
            // Another session may have renewed it already.
            let is_ours = entry.is_some_and(|entry| Arc::ptr_eq(entry.value(), used));
            std::future::ready(if is_ours { Op::Remove } else { Op::Nop })
        };
        self.cognito.shared.tokens.entry(()).and_compute_with(drop_it).await;
        true
    }

    /// The access token: kept, or fetched by one caller for all who wait for it. A failure is shared by those who wait.
    async fn token(&self) -> Result<Arc<Token>, CognitoError> {
        loop {
            let fetched_here = AtomicBool::new(false);
            let fetching = async {
                fetched_here.store(true, Ordering::Relaxed);
                self.fetch_token().await.map(Arc::new)
            };
            let lookup = self.cognito.shared.tokens.try_get_with((), fetching);
            match timeout_at(self.deadline + GRACE, lookup).await {
                Err(_) => return Err(CognitoError::deadline(Family::Token)),
                Ok(Ok(token)) => return Ok(token),
                Ok(Err(error)) => {
                    // Whoever fetched may have had less time than we have.
                    let theirs = !fetched_here.load(Ordering::Relaxed);
                    if theirs && error.is_out_of_time() && Instant::now() < self.deadline {
                        continue;
                    }
                    return Err(Arc::unwrap_or_clone(error));
                }
            }
        }
    }

    /// `POST /oauth2/token`, on-premises below the version (`cognito.md` 3.2). It counts as containment: others, which may
    /// be about containment, wait for this token.
    async fn fetch_token(&self) -> Result<Token, CognitoError> {
        let settings = &self.cognito.shared.settings;
        let Auth::OAuth2 { client_id, client_secret } = &settings.auth else {
            return Err(CognitoError::not_offered(Family::Token));
        };
        let (url, template) = self.token_url();
        let pair = Zeroizing::new(format!("{client_id}:{}", client_secret.expose_secret()));
        let basic = Zeroizing::new(BASE64.encode(pair.as_bytes()));
        let basic = authorization("Basic", &basic).ok_or_else(|| CognitoError::invalid_value(Family::Token))?;
        let request = Request {
            method: Method::POST,
            url,
            template,
            headers: HeaderMap::from_iter([
                (ACCEPT, HeaderValue::from_static("application/json")),
                (CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
                (AUTHORIZATION, basic),
            ]),
            body: "grant_type=client_credentials".into(),
            limit: Some(settings.call_limit),
            body_limit_bytes: BODY_LIMIT_BYTES,
            resend_count: 0,
        };
        retry::run(&settings.retry, retry::Call::Token, self.deadline, |resend_count| {
            let request = Request { resend_count, ..request.clone() };
            async move { read_token(&self.attempt(Family::Token, Priority::Containment, request).await?) }
        })
        .await
        // A call that got no token was never made.
        .map_err(|error| CognitoError { maybe_done: false, ..error })
    }

    fn token_url(&self) -> (Url, &'static str) {
        let settings = &self.cognito.shared.settings;
        match settings.version.flavour() {
            Flavour::Rux => (address(&settings.base_url, &["oauth2", "token"]), "/oauth2/token"),
            Flavour::Qux => {
                let version = settings.version.to_string();
                let path = ["api", version.as_str(), "oauth2", "token"];
                (address(&settings.base_url, &path), "/api/{version}/oauth2/token")
            }
        }
    }
}

/// Reads a success of the token endpoint; `expires_in` may be a number or text.
fn read_token(answer: &Answer) -> Result<Token, CognitoError> {
    let bad = || CognitoError::bad_answer(Family::Token, answer);
    let body = json(&answer.body).ok_or_else(bad)?;
    let token = body.get("access_token").and_then(Value::as_str).filter(|token| !token.is_empty()).ok_or_else(bad)?;
    let authorization = authorization("Bearer", token).ok_or_else(bad)?;
    let life = match body.get("expires_in") {
        Some(Value::Number(seconds)) => seconds.as_f64(),
        Some(Value::String(seconds)) => seconds.trim().parse().ok(),
        _ => None,
    };
    let life = life.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(Token { authorization, usable_for: usable_for(life) })
}

fn usable_for(life: Option<Duration>) -> Duration {
    let life = life.unwrap_or(UNKNOWN_LIFE).min(LONGEST_LIFE);
    life - RENEWAL_MARGIN.min(life / 10)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use rstest::rstest;

    use super::super::Kind;
    use super::*;

    fn read(body: &[u8]) -> Result<Token, CognitoError> {
        let body = bytes::Bytes::copy_from_slice(body);
        read_token(&Answer { status: StatusCode::OK, headers: HeaderMap::new(), body })
    }

    #[test]
    fn the_documented_answer_is_read() {
        let token = read(include_bytes!("../../tests/data/cognito/v3.oauth2.token.json")).ok().unwrap();
        assert_eq!(token.authorization, "Bearer EXAMPLE-ACCESS-TOKEN");
        assert!(token.authorization.is_sensitive());
        assert_eq!(token.usable_for, Duration::from_secs(21_600 - 300));
    }

    #[rstest]
    #[case::long(Some(21_600), 21_300)]
    #[case::short(Some(100), 90)]
    #[case::none_left(Some(0), 0)]
    #[case::not_told(None, 54)]
    #[case::absurd(Some(u64::MAX), 24 * 3600 - 300)]
    fn a_token_is_renewed_before_it_ends(#[case] life: Option<u64>, #[case] expected: u64) {
        assert_eq!(usable_for(life.map(Duration::from_secs)), Duration::from_secs(expected));
    }

    #[rstest]
    #[case::no_token(b"{}")]
    #[case::null_token(br#"{"access_token":null}"#)]
    #[case::empty_token(br#"{"access_token":""}"#)]
    #[case::token_with_line_break(br#"{"access_token":"a\r\nb"}"#)]
    #[case::html(b"<html>sign in</html>")]
    #[case::list(b"[]")]
    #[case::empty(b"")]
    fn a_success_without_a_token_is_a_failure(#[case] body: &[u8]) {
        let error = read(body).err().unwrap();
        assert_eq!(error.kind(), &Kind::BadAnswer);
        assert!(error.is_transient());
    }
}
