//! Cisco's platform, as far as a relay is registered with it (`module-registration.md` 1).
//!
//! Used by an operator's command only, so no call is repeated by itself: who reads the error decides. The one exception
//! is a token that is not taken any more, which is renewed once.

mod error;
pub mod instance;
mod proof;

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

pub use self::error::PlatformError;
pub use self::instance::{Instance, Key};
pub use self::proof::{Unproven, prove};

use crate::outbound::{Answer, Outbound, Request};
use crate::redact;

/// How long one call may take: the platform's own pages answer within seconds.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// The largest answer that is read: an organisation's whole list, with room.
const BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// Path of the token endpoint.
const TOKEN: &str = "/iroh/oauth2/token";

/// Path of the module instances.
const INSTANCES: &str = "/iroh/iroh-int/module-instance";

/// Path of one of them.
const INSTANCE: &str = "/iroh/iroh-int/module-instance/{id}";

/// An organisation at the platform.
pub struct Platform {
    outbound: Outbound,
    base: Url,
    client_id: String,
    password: SecretString,
    token: Option<SecretString>,
    deadline: Instant,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Platform {
    /// The organisation of that API client at the platform at `base`. No call goes on past `deadline`.
    pub fn new(outbound: Outbound, base: Url, client_id: String, password: SecretString, deadline: Instant) -> Self {
        Self { outbound, base, client_id, password, token: None, deadline }
    }

    /// All module instances of the organisation.
    ///
    /// # Errors
    /// When the platform does not answer, or refuses.
    pub async fn list(&mut self) -> Result<Vec<Value>, PlatformError> {
        let doing = "listing the module instances";
        let answer = self.call(doing, Method::GET, None, None).await?;
        serde_json::from_slice(&answer.body).map_err(|_| PlatformError::Unreadable { doing })
    }

    /// Registers an instance and returns its id.
    ///
    /// # Errors
    /// As [`Platform::list`]. When there was no answer it may be registered all the same.
    pub async fn create(&mut self, instance: &Instance) -> Result<String, PlatformError> {
        let doing = "creating the module instance";
        let answer = self.call(doing, Method::POST, None, Some(&instance.to_body())).await?;
        let created: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        created["id"].as_str().map(str::to_owned).ok_or(PlatformError::Unreadable { doing })
    }

    /// Changes these members of an instance.
    ///
    /// # Errors
    /// As [`Platform::create`].
    pub async fn change(&mut self, id: &str, changes: &Map<String, Value>) -> Result<(), PlatformError> {
        let body = Value::Object(changes.clone());
        self.call("changing the module instance", Method::PATCH, Some(id), Some(&body)).await.map(drop)
    }

    /// Removes an instance.
    ///
    /// # Errors
    /// As [`Platform::create`].
    pub async fn delete(&mut self, id: &str) -> Result<(), PlatformError> {
        self.call("removing the module instance", Method::DELETE, Some(id), None).await.map(drop)
    }

    /// One call with a token, repeated once with another one when the first is not taken.
    async fn call(
        &mut self,
        doing: &'static str,
        method: Method,
        id: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, PlatformError> {
        let mut renewed = false;
        loop {
            let token = match self.token.clone() {
                Some(token) => token,
                None => self.renew().await?,
            };
            let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
            headers.insert(AUTHORIZATION, sensitive(&format!("Bearer {}", token.expose_secret()), doing)?);
            if body.is_some() {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            let (template, url) = match id {
                None => (INSTANCES, at(&self.base, INSTANCES, None)),
                Some(id) => (INSTANCE, at(&self.base, INSTANCES, Some(id))),
            };
            let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
            let answer = self.send(doing, method.clone(), url, template, headers, body).await?;
            if answer.status == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                self.token = None;
                continue;
            }
            if answer.status.is_success() {
                return Ok(answer);
            }
            let status = answer.status.as_u16();
            let secrets = [token.expose_secret(), self.password.expose_secret()];
            let detail = error::detail(&redact::without(&secrets, answer.body));
            return Err(PlatformError::Refused { doing, status, detail, hint: error::hint(status) });
        }
    }

    /// Asks for a token and keeps it.
    async fn renew(&mut self) -> Result<SecretString, PlatformError> {
        let doing = "asking for a token";
        let pair = format!("{}:{}", self.client_id, self.password.expose_secret());
        let headers = HeaderMap::from_iter([
            (ACCEPT, HeaderValue::from_static("application/json")),
            (CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")),
            (AUTHORIZATION, sensitive(&format!("Basic {}", BASE64.encode(pair)), doing)?),
        ]);
        let body = Bytes::from_static(b"grant_type=client_credentials");
        let url = at(&self.base, TOKEN, None);
        let answer = self.send(doing, Method::POST, url, TOKEN, headers, body).await?;
        let status = answer.status;
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            let detail = error::detail(&redact::without(&[self.password.expose_secret()], answer.body));
            return Err(PlatformError::Credentials { status: status.as_u16(), detail });
        }
        if !status.is_success() {
            let (status, detail) = (status.as_u16(), String::new());
            return Err(PlatformError::Refused { doing, status, detail, hint: error::hint(status) });
        }
        let answer: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let token = answer["access_token"].as_str().filter(|token| !token.is_empty());
        let token: SecretString = token.ok_or(PlatformError::Unreadable { doing })?.into();
        self.token = Some(token.clone());
        Ok(token)
    }

    async fn send(
        &self,
        doing: &'static str,
        method: Method,
        url: Url,
        template: &'static str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, PlatformError> {
        let request = Request {
            method,
            url,
            template,
            headers,
            body,
            limit: Some(CALL_LIMIT),
            body_limit_bytes: BODY_LIMIT_BYTES,
            resend_count: 0,
        };
        let sent = self.outbound.send(request, self.deadline).await;
        sent.map_err(|source| PlatformError::Unreachable { doing, source })
    }
}

/// A header's value that no log shows.
fn sensitive(text: &str, doing: &'static str) -> Result<HeaderValue, PlatformError> {
    let mut value = HeaderValue::try_from(text).map_err(|_| PlatformError::Unreadable { doing })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `path` below `base`, and `id` as one more segment.
fn at(base: &Url, path: &str, id: Option<&str>) -> Url {
    let mut url = base.clone();
    {
        let mut segments = url.path_segments_mut().expect("a base URL that was checked has a path");
        segments.pop_if_empty().extend(path.trim_start_matches('/').split('/')).extend(id);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_built_from_segments() {
        let base: Url = "https://platform.example/base/".parse().unwrap();
        assert_eq!(at(&base, TOKEN, None).as_str(), "https://platform.example/base/iroh/oauth2/token");
        let one = at(&base, INSTANCES, Some("a/../b?c"));
        assert_eq!(one.as_str(), "https://platform.example/base/iroh/iroh-int/module-instance/a%2F..%2Fb%3Fc");
    }
}
