//! How a call is made: token, slot, permit, try, retry, one renewal of the token; and lookups that cost one call for
//! all who want the same at the same time.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use moka::future::Cache;
use serde::de::{DeserializeOwned, Error as _};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::circuit::Pass;
use super::entra::Token;
use super::{Audience, DefenderError, Family, Inner, Purpose, Session};
use crate::outbound::{Answer, OutboundError, Request};
use crate::redact;
use crate::retry::{self, Failure, Retryable};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;

/// The largest REST answer that is read. A page of alerts has no published size limit; this is some thousand alerts
/// with all their evidence, far more than any limit of ours shows.
const REST_BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// The largest hunting answer that is read: the service stops at 50 MB (`defender.md` 3.1), JSON members included or
/// not is not said.
const HUNTING_BODY_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// How much longer than the deadline a lookup waits for itself: its own parts end at the deadline and know better what
/// went wrong, so they should be the ones to tell.
pub(super) const GRACE: Duration = Duration::from_millis(50);

/// One documented call.
pub(super) struct Spec {
    pub(super) family: Family,
    pub(super) url: Url,
    pub(super) template: &'static str,
    class: retry::Call,
    method: Method,
    /// JSON.
    body: Option<Bytes>,
}

impl Spec {
    /// A GET of Defender's REST API.
    pub(super) fn get(family: Family, url: Url, template: &'static str) -> Spec {
        Spec { family, url, template, class: retry::Call::Read, method: Method::GET, body: None }
    }

    /// A POST of Defender's REST API that changes something: repeated only where it certainly did not.
    pub(super) fn post(family: Family, url: Url, template: &'static str, body: &serde_json::Value) -> Spec {
        let body = Some(body.to_string().into());
        Spec { family, url, template, class: retry::Call::Write, method: Method::POST, body }
    }

    /// A DELETE of Defender's REST API.
    pub(super) fn delete(family: Family, url: Url, template: &'static str) -> Spec {
        Spec { family, url, template, class: retry::Call::Write, method: Method::DELETE, body: None }
    }

    /// A hunting query: `POST /v1.0/security/runHuntingQuery` (`defender.md` 4.1).
    pub(super) fn hunt(url: Url, query: &str) -> Spec {
        let body = serde_json::json!({ "Query": query }).to_string();
        Spec {
            family: Family::Hunting,
            url,
            template: "/v1.0/security/runHuntingQuery",
            class: retry::Call::Hunting,
            method: Method::POST,
            body: Some(body.into()),
        }
    }

    fn audience(&self) -> Audience {
        if self.hunts() { Audience::Graph } else { Audience::Defender }
    }

    fn hunts(&self) -> bool {
        self.class == retry::Call::Hunting
    }

    fn request(&self, token: &Token, rest_limit: Duration, resend_count: u32) -> Request {
        let mut headers = HeaderMap::from_iter([
            (ACCEPT, HeaderValue::from_static("application/json")),
            (AUTHORIZATION, token.authorization.clone()),
        ]);
        if self.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        }
        Request {
            method: self.method.clone(),
            url: self.url.clone(),
            template: self.template,
            headers,
            body: self.body.clone().unwrap_or_default(),
            // A hunting query may take as long as the request that wants it (`DESIGN.md` 10.9).
            limit: (!self.hunts()).then_some(rest_limit),
            body_limit_bytes: if self.hunts() { HUNTING_BODY_LIMIT_BYTES } else { REST_BODY_LIMIT_BYTES },
            resend_count,
        }
    }
}

/// What a try needs before it may go out.
pub(super) struct Ready {
    /// One of the request's calls in flight, until the answer is here.
    _slot: OwnedSemaphorePermit,
    /// When the permit is void.
    void_at: Instant,
}

/// The right to send one hunting query soon, to be had before the query's text is made: see [`Session::hunting_permit`].
pub(super) struct HuntingPermit {
    pass: Pass,
    token: Arc<Token>,
    ready: Ready,
}

impl Session {
    /// Waits until a hunting query may go out. The text is best made after that, from all that has gathered meanwhile,
    /// and sent with [`Session::call_with`]; it is a matter of moments, for a permit that has become void is asked for
    /// anew. Dropped, it is lost to the quota.
    ///
    /// # Errors
    /// An open circuit, no token, or no permit before the deadline.
    pub(super) async fn hunting_permit(&self) -> Result<HuntingPermit, DefenderError> {
        let pass = self.enter(Family::Hunting)?;
        // First the token: fetching one is a call too, which must not wait for the slot that is held here.
        let token = self.token(Audience::Graph).await?;
        Ok(HuntingPermit { pass, token, ready: self.ready(Family::Hunting).await? })
    }

    /// Makes a call and reads its JSON.
    pub(super) async fn call<T: DeserializeOwned>(&self, spec: &Spec) -> Result<T, DefenderError> {
        self.call_with(None, spec, |_| true).await
    }

    /// Makes a call and reads its JSON, the first try with `permit` if there is one; every other try gets one of its own.
    /// A failure is only followed by another try while `patient` says so.
    pub(super) async fn call_with<T: DeserializeOwned>(
        &self,
        permit: Option<HuntingPermit>,
        spec: &Spec,
        patient: impl Fn(&DefenderError) -> bool,
    ) -> Result<T, DefenderError> {
        let settings = &self.inner.defender.shared.settings;
        // Whoever is told of every failure decides on another try.
        let class = match spec.class {
            retry::Call::Write if self.inner.once => retry::Call::Once,
            class => class,
        };
        let (pass, mut permitted) = match permit {
            Some(HuntingPermit { pass, token, ready }) => (pass, Some((token, ready))),
            None => (self.enter(spec.family)?, None),
        };
        let mut repeated = false;
        // The error that is reported need not be that of the last try, which the deadline may have ended.
        let maybe_done = AtomicBool::new(false);
        loop {
            let (token, mut ready) = match permitted.take() {
                Some((token, ready)) => (token, Some(ready)),
                None => (self.token(spec.audience()).await?, None),
            };
            let result = retry::run(&settings.retry, class, self.inner.deadline, |resend_count| {
                let request = spec.request(&token, settings.rest_limit, resend_count);
                let (patient, maybe_done) = (&patient, &maybe_done);
                let ready = ready.take();
                async move {
                    let answer = self.attempt(spec.family, request, ready).await;
                    answer.and_then(|answer| read(spec.family, &answer)).map_err(|error| {
                        self.tell_throttled(&error);
                        maybe_done.fetch_or(error.maybe_done, Ordering::Relaxed);
                        Tried::new(error, patient)
                    })
                }
            })
            .await
            .map_err(|Tried { error, .. }| DefenderError { maybe_done: maybe_done.load(Ordering::Relaxed), ..error });
            match result {
                Err(error)
                    if !repeated && error.asks_for_new_token() && self.renew_token(spec.audience(), &token).await =>
                {
                    repeated = true;
                }
                result => return pass.learn(result),
            }
        }
    }

    /// Lets a call of `family` go its way, unless it is sure to fail.
    pub(super) fn enter(&self, family: Family) -> Result<Pass, DefenderError> {
        let Inner { defender, account, purpose, .. } = &*self.inner;
        let entered = defender.shared.circuits.enter(account, family, *purpose == Purpose::Containment);
        if entered.is_err()
            && let Some(metrics) = &defender.metrics
        {
            metrics.circuit(family.name());
        }
        entered
    }

    /// Waits until a slot of this request and a permit are free.
    async fn ready(&self, family: Family) -> Result<Ready, DefenderError> {
        let inner = &self.inner;
        let ready = async {
            let slots = Arc::clone(&inner.slots);
            let slot = slots.acquire_owned().await.expect("the slots of a session are never closed");
            let (tenant, client) = (&inner.account.tenant_id, &inner.account.client_id);
            let until = self.permit_until(family);
            let permit = inner.defender.permits.permit(tenant, client, family, inner.purpose, until);
            // Refused means that there is none in time. Who is not patient does not try again either.
            let refused = |wait| {
                let refused = DefenderError::not_permitted(family, wait).out_of_time();
                let failure = if until < inner.deadline { Failure::OutOfTime } else { refused.failure };
                DefenderError { failure, ..refused }
            };
            let _waits = inner.defender.metrics.as_ref().map(Metrics::waits_for_permit);
            let began = Instant::now();
            let permitted = match timeout_at(until, permit).await {
                Ok(permitted) => permitted,
                Err(_) if until < inner.deadline => Err(Duration::ZERO),
                Err(_) => return Err(DefenderError::deadline(family)),
            };
            propagation::permit(family.name(), began.elapsed());
            let void_at = permitted.map_err(refused)?;
            Ok(Ready { _slot: slot, void_at })
        };
        timeout_at(inner.deadline, ready).await.map_err(|_| DefenderError::deadline(family))?
    }

    /// Tells the quota that the service throttles, if that is what happened.
    fn tell_throttled(&self, error: &DefenderError) {
        // Without a status it is our own quota that says so; a token's failure says nothing of this family.
        if error.is_answer(429) {
            let account = &self.inner.account;
            let permits = &self.inner.defender.permits;
            permits.throttled(&account.tenant_id, &account.client_id, error.family, error.retry_after);
        }
    }

    /// Makes one try: with what was made ready for it, or when that can be had.
    pub(super) async fn attempt(
        &self,
        family: Family,
        request: Request,
        mut ready: Option<Ready>,
    ) -> Result<Answer, DefenderError> {
        let inner = &self.inner;
        let _ready = loop {
            let ready = match ready.take() {
                Some(ready) => ready,
                None => self.ready(family).await?,
            };
            let now = Instant::now();
            if now >= inner.deadline {
                return Err(DefenderError::deadline(family));
            }
            if now < ready.void_at {
                break ready;
            }
        };
        let authorization = request.headers.get(AUTHORIZATION).cloned();
        let began = Instant::now();
        let sent = inner.defender.shared.outbound.send(request, inner.deadline).await;
        if let Some(metrics) = &inner.defender.metrics {
            metrics.call(family.name(), outcome(&sent), began.elapsed());
        }
        let mut answer = sent.map_err(|error| DefenderError::from_outbound(family, &error))?;
        if !answer.status.is_success() {
            let token = authorization.as_ref().and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
            let secrets = [inner.proof.secret().unwrap_or_default(), token.unwrap_or_default()];
            answer.body = redact::without(&secrets, answer.body);
        }
        Ok(answer)
    }

    /// The value of `key`: kept, or fetched once for all who want it now. Failures are shared by those who wait, and
    /// not kept.
    pub(super) async fn once<K, V, F>(
        &self,
        family: Family,
        cache: &Cache<K, V>,
        key: K,
        fetch: impl Fn() -> F,
    ) -> Result<V, DefenderError>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
        F: Future<Output = Result<V, DefenderError>>,
    {
        loop {
            let fetched_here = AtomicBool::new(false);
            let fetching = async {
                fetched_here.store(true, Ordering::Relaxed);
                fetch().await
            };
            let looked_up = timeout_at(self.inner.deadline + GRACE, cache.try_get_with(key.clone(), fetching)).await;
            match looked_up {
                Err(_) => return Err(DefenderError::deadline(family)),
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => {
                    // Whoever fetched may have had less time than we have.
                    let theirs = !fetched_here.load(Ordering::Relaxed);
                    let ended_early = error.is_out_of_time() && error.retry_after().is_none()
                        || family.shares_alerts_quota() && error.is_not_permitted() && self.patience.is_none();
                    if theirs && ended_early && Instant::now() < self.inner.deadline {
                        continue;
                    }
                    return Err(Arc::unwrap_or_clone(error));
                }
            }
        }
    }
}

/// A failed try, and whether the caller has the patience for another.
struct Tried {
    error: DefenderError,
    impatient: bool,
}

impl Tried {
    fn new(error: DefenderError, patient: impl Fn(&DefenderError) -> bool) -> Self {
        Tried { impatient: !patient(&error), error }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Retryable for Tried {
    fn failure(&self) -> Failure {
        if self.impatient { Failure::Permanent } else { self.error.failure() }
    }

    fn retry_after(&self) -> Option<Duration> {
        self.error.retry_after()
    }

    fn out_of_time(self) -> Self {
        Tried { error: self.error.out_of_time(), ..self }
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

/// Reads a success's JSON object; anything else is an error.
fn read<T: DeserializeOwned>(family: Family, answer: &Answer) -> Result<T, DefenderError> {
    if !answer.status.is_success() {
        return Err(DefenderError::from_answer(family, answer, Timestamp::now()));
    }
    let body = answer.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&answer.body);
    // A list would do for a struct, member by member, and an empty one for a struct with defaults.
    let object = match body.trim_ascii_start().first() {
        None if answer.status == StatusCode::NO_CONTENT => serde_json::from_slice(b"{}"),
        None | Some(b'{') => serde_json::from_slice(body),
        Some(_) => Err(serde_json::Error::custom("not an object")),
    };
    object.map_err(|error| DefenderError::from_body(family, answer.status.as_u16(), &error))
}

/// `base` with `segments` added to its path, each percent-encoded as one segment (`relay.md` 5.1), and `query` as it is.
pub(super) fn address(base: &Url, segments: &[&str], query: Option<&str>) -> Url {
    let mut path = base.path().trim_end_matches('/').to_owned();
    for segment in segments {
        path.push('/');
        for byte in segment.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
                _ => path.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    let mut url = base.clone();
    url.set_path(&path);
    url.set_query(query);
    url
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://api.example", &["api", "files", "ab12"], None, "https://api.example/api/files/ab12")]
    #[case("https://api.example/base/", &["x"], None, "https://api.example/base/x")]
    #[case("https://api.example", &["ips", "2001:db8::7", "alerts"], None, "https://api.example/ips/2001%3Adb8%3A%3A7/alerts")]
    #[case("https://api.example", &["a/../b", "c?d#e"], None, "https://api.example/a%2F..%2Fb/c%3Fd%23e")]
    #[case("https://api.example", &["machines"], Some("$top=1"), "https://api.example/machines?$top=1")]
    fn addresses_are_built_from_segments(
        #[case] base: &str,
        #[case] segments: &[&str],
        #[case] query: Option<&str>,
        #[case] expected: &str,
    ) {
        assert_eq!(address(&base.parse().unwrap(), segments, query).as_str(), expected);
    }

    proptest! {
        #[test]
        fn no_value_leaves_its_segment(value in "[^.].{0,40}") {
            let url = address(&"https://api.example/api".parse().unwrap(), &["files", &value, "alerts"], None);
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 4);
            prop_assert_eq!((segments[0], segments[1], segments[3]), ("api", "files", "alerts"));
            prop_assert!(url.query().is_none() && url.fragment().is_none());
        }
    }
}
