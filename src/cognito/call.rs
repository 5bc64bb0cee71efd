//! How a call is made: credentials, permit, try, retry, one renewal of the token.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{CognitoError, Family, Kind, Priority, Session};
use crate::outbound::{Answer, OutboundError, Request};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;
use crate::{redact, retry};

/// The largest answer that is read. A page of 200 hosts is below 2 MiB; a day's audit entries of a large brain, which
/// come in one answer, are the largest: this is some 50,000 of them.
const BODY_LIMIT_BYTES: usize = 32 * 1024 * 1024;

/// One documented call.
pub(super) struct Spec {
    pub(super) family: Family,
    method: Method,
    url: Url,
    template: &'static str,
    body: Bytes,
}

impl Spec {
    /// A GET of `url`.
    pub(super) fn new(family: Family, url: Url, template: &'static str) -> Spec {
        Spec { family, method: Method::GET, url, template, body: Bytes::new() }
    }

    /// The same with a query parameter more, encoded as in a form.
    pub(super) fn query(mut self, name: &str, value: &str) -> Spec {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    /// A write to the same address.
    pub(super) fn write(self, method: Method, body: &Value) -> Spec {
        Spec { method, body: body.to_string().into(), ..self }
    }

    fn class(&self) -> retry::Call {
        if self.method == Method::GET { retry::Call::Read } else { retry::Call::Write }
    }
}

impl Session {
    /// Makes a call and reads its JSON.
    pub(super) async fn call<T>(&self, spec: &Spec, read: impl Fn(&Value) -> Option<T>) -> Result<T, CognitoError> {
        let read = |answer: &Answer| {
            let body = json(&answer.body).as_ref().and_then(&read);
            body.ok_or_else(|| CognitoError::bad_answer(spec.family, answer))
        };
        self.perform(spec, read).await
    }

    /// Makes a call whose status says that it was done. What else the answer says is `None` when it cannot be read:
    /// nothing at all is fine too (`cognito.md` 3.3), but a page of something in between is not.
    pub(super) async fn write<T>(
        &self,
        spec: &Spec,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, CognitoError> {
        let read = |answer: &Answer| match json(&answer.body) {
            Some(body) => Ok(read(&body)),
            None if answer.body.trim_ascii().is_empty() => Ok(None),
            None => Err(CognitoError::bad_answer(spec.family, answer)),
        };
        self.perform(spec, read).await
    }

    async fn perform<T>(
        &self,
        spec: &Spec,
        read: impl Fn(&Answer) -> Result<T, CognitoError>,
    ) -> Result<T, CognitoError> {
        let settings = &self.cognito.shared.settings;
        // Kept beside the error, for the last one is not always the one that was sent.
        let maybe_done = AtomicBool::new(false);
        let mut repeated = false;
        loop {
            let proof = self.proof(spec.family).await?;
            let result = retry::run(&settings.retry, spec.class(), self.deadline, |resend_count| {
                let mut headers = HeaderMap::from_iter([
                    (ACCEPT, HeaderValue::from_static("application/json")),
                    (AUTHORIZATION, proof.authorization.clone()),
                ]);
                if !spec.body.is_empty() {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                }
                let request = Request {
                    method: spec.method.clone(),
                    url: spec.url.clone(),
                    template: spec.template,
                    headers,
                    body: spec.body.clone(),
                    limit: Some(settings.call_limit),
                    body_limit_bytes: BODY_LIMIT_BYTES,
                    resend_count,
                };
                let (read, maybe_done) = (&read, &maybe_done);
                async move {
                    let result =
                        self.attempt(spec.family, self.priority, request).await.and_then(|answer| read(&answer));
                    result.inspect_err(|error| {
                        maybe_done.fetch_or(error.maybe_done, Ordering::Relaxed);
                    })
                }
            })
            .await;
            match result {
                Err(error) if !repeated && error.kind == Kind::Unauthorized && self.renew(&proof).await => {
                    repeated = true
                }
                Err(mut error) => {
                    let write = spec.class() == retry::Call::Write;
                    error.maybe_done = write && maybe_done.load(Ordering::Relaxed);
                    return Err(error);
                }
                Ok(value) => return Ok(value),
            }
        }
    }

    /// Makes one try when there is a permit for it. An answer that is no success is an error.
    pub(super) async fn attempt(
        &self,
        family: Family,
        priority: Priority,
        request: Request,
    ) -> Result<Answer, CognitoError> {
        let shared = &self.cognito.shared;
        let began = Instant::now();
        let waits = self.cognito.metrics.as_ref().map(Metrics::waits_for_permit);
        timeout_at(self.deadline, shared.rate.permit(priority)).await.map_err(|_| CognitoError::deadline(family))?;
        drop(waits);
        propagation::permit(family.name(), began.elapsed());
        // From here on a deadline may mean that the request was sent.
        if Instant::now() >= self.deadline {
            return Err(CognitoError::deadline(family));
        }
        let authorization = request.headers.get(AUTHORIZATION).cloned();
        let began = Instant::now();
        let sent = shared.outbound.send(request, self.deadline).await;
        if let Some(metrics) = &self.cognito.metrics {
            metrics.call(family.name(), outcome(&sent), began.elapsed());
        }
        let mut answer = sent.map_err(|error| CognitoError::from_outbound(family, &error))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let proof =
            authorization.as_ref().and_then(|value| value.to_str().ok()?.split_once(' ')).map(|(_, proof)| proof);
        answer.body = redact::without(&[self.secret(), proof.unwrap_or_default()], answer.body);
        let error = CognitoError::from_answer(family, &answer, Timestamp::now());
        if error.kind == Kind::Throttled {
            shared.rate.throttled(error.retry_after);
        }
        Err(error)
    }
}

/// What became of a try, in one of few words.
fn outcome(sent: &Result<Answer, OutboundError>) -> &'static str {
    match sent {
        Ok(answer) => match answer.status.as_u16() {
            429 => "429",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        },
        Err(error) => error.name(),
    }
}

pub(super) fn json(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)).ok()
}

/// `base` with `segments` added to its path, each percent-encoded as one segment.
pub(super) fn address(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    // Only addresses without a host have no path, and nothing can be sent to those.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url.set_query(None);
    url.set_fragment(None);
    url
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://brain.example", "https://brain.example/api/v2.5/hosts/4711")]
    #[case("https://brain.example/", "https://brain.example/api/v2.5/hosts/4711")]
    #[case("https://proxy.example/brain/", "https://proxy.example/brain/api/v2.5/hosts/4711")]
    #[case("https://[2001:db8::7]:8443/x?y#z", "https://[2001:db8::7]:8443/x/api/v2.5/hosts/4711")]
    fn addresses_are_built_from_segments(#[case] base: &str, #[case] expected: &str) {
        assert_eq!(address(&base.parse().unwrap(), &["api", "v2.5", "hosts", "4711"]).as_str(), expected);
    }

    #[test]
    fn no_value_leaves_its_parameter() {
        let url = address(&"https://brain.example".parse().unwrap(), &["hosts"]);
        let spec = Spec::new(Family::Hosts, url, "/hosts");
        let spec = spec.query("tags", "a&all=true#b+c%2C\"ü,mde:isolation=isolated").query("page", "1");
        let expected = "tags=a%26all%3Dtrue%23b%2Bc%252C%22%C3%BC%2Cmde%3Aisolation%3Disolated&page=1";
        assert_eq!(spec.url.query(), Some(expected));
    }
}
