//! `POST /webhooks/cognito`: events about hosts become messages (`cognito.md` 4.3 to 4.7).
//!
//! An event is a hint to look at a host; what is done is decided from the host itself, so a forged one causes some reading
//! at most. Senders authenticate all the same. A 202 means that every accepted event is confirmed by the broker; the rules
//! of the relay's routes (status 200 always) do not hold here.
//!
//! The route exists when a secret or a token is configured; else its path is as unknown as any other.

mod answer;
mod auth;
mod canonical;
mod event;
mod id;
mod limits;
mod native;
mod seen;
mod triggers;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{HeaderMap, Method, header};
use jiff::Timestamp;
use serde_json::Value;
use tracing::Instrument as _;

use self::answer::{Accepted, Ignored, Rejected};
pub(in crate::ingress) use self::answer::{Outcome, Problem, Refusal};
use self::auth::{Authenticated, Sender};
use self::event::{Event, Recognition};
use self::id::EventId;
use self::limits::{Addresses, Bucket};
use self::seen::Seen;
use super::body::{self, BodyError};
use super::error;
use crate::broker::{Broker, BrokerError, Lane};
use crate::config::WebhookSettings;
use crate::job;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;

/// The route's path, without a trailing slash.
pub(super) const PATH: &str = "/webhooks/cognito";

/// The largest body (`cognito.md` 4.3).
const BODY_LIMIT_BYTES: usize = 262_144;

/// Events in one array at most (`cognito.md` 4.3).
const EVENTS_LIMIT: usize = 100;

/// Messages of one request that wait for their confirm at a time. A confirm takes about as long for many messages as for
/// one, so a batch must not wait for each in turn. Half of what a link to RabbitMQ has under way at most, so that a large
/// batch does not crowd out other requests.
const UNCONFIRMED_LIMIT: usize = 32;

/// Whether a request's path is that of the webhook; one trailing slash does not matter.
pub(super) fn is_at(path: &str) -> bool {
    path.strip_suffix('/').unwrap_or(path) == PATH
}

/// The webhook of one process.
pub(super) struct Webhook<B> {
    keys: auth::Keys,
    rate: u32,
    self_user: Option<String>,
    buckets: Mutex<Buckets>,
    addresses: Mutex<Addresses>,
    seen: Mutex<Seen>,
    triggers: triggers::Known,
    broker: B,
    metrics: Metrics,
    shutdown: Shutdown,
}

/// The rates of authenticated senders.
struct Buckets {
    signed: Bucket,
    token: Bucket,
}

/// An element of a body whose hosts are to be looked at.
struct Due {
    index: usize,
    id: EventId,
    event: Event,
    lane: Lane,
    /// Those that were not accepted lately.
    hosts: Vec<(u64, Option<seen::Key>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Broker> Webhook<B> {
    /// The webhook, which follows what the workers retain from now on. Call it in a runtime.
    pub(super) fn new(settings: &WebhookSettings, broker: B, metrics: Metrics, shutdown: Shutdown) -> Self {
        tracing::info!(
            http.route = PATH,
            secrets = settings.secrets.len(),
            tokens = settings.tokens.len(),
            "the webhook takes host events"
        );
        let bucket = Bucket::full(settings.rate, Instant::now());
        Self {
            keys: auth::Keys::new(settings),
            rate: settings.rate,
            self_user: settings.self_user.clone(),
            buckets: Mutex::new(Buckets { signed: bucket, token: bucket }),
            addresses: Mutex::new(Addresses::new(settings.peer_rate)),
            seen: Mutex::default(),
            triggers: triggers::follow(broker.clone(), shutdown.clone()),
            broker,
            metrics,
            shutdown,
        }
    }

    /// Answers a request. The checks and their order are those of `cognito.md` 4.5.
    ///
    /// # Errors
    /// Why its events were not accepted; some may be all the same, which does no harm when they are sent again.
    pub(super) async fn answer(&self, request: Request) -> Result<Response, Refusal> {
        let received_at = Timestamp::now();
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            body::drop_unread(&head.headers, body, BODY_LIMIT_BYTES).await;
            return Err(Refusal::Method);
        }
        if body::declared(&head.headers).is_some_and(|length| length > BODY_LIMIT_BYTES) {
            body::drop_unread(&head.headers, body, BODY_LIMIT_BYTES).await;
            return Err(Refusal::Body(BodyError::TooLarge));
        }
        if let Some(wait) = peer.and_then(|peer| lock(&self.addresses).take(peer, Instant::now()).err()) {
            body::drop_unread(&head.headers, body, BODY_LIMIT_BYTES).await;
            return Err(Refusal::TooMany(wait));
        }
        let body = body::read(&head.headers, body, BODY_LIMIT_BYTES).await.map_err(Refusal::Body)?;
        let authenticated = self.authenticate(&head.headers, &body, received_at, peer)?;
        self.admit(authenticated.sender)?;
        check_media_type(&head.headers)?;
        let (elements, in_array) = elements(&body)?;
        self.take(&elements, in_array, &authenticated, received_at).await?.into_response()
    }

    fn authenticate(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
        peer: Option<IpAddr>,
    ) -> Result<Authenticated, Refusal> {
        let authenticated = self.keys.authenticate(headers, body, now).map_err(|reason| {
            let peer = peer.map(tracing::field::display);
            tracing::warn!(reason, client.address = peer, "a webhook request was refused: nobody known sent it");
            Refusal::Unauthorized
        })?;
        if let Some(peer) = peer {
            lock(&self.addresses).give_back(peer);
        }
        Ok(authenticated)
    }

    /// Counts a request of a known sender.
    fn admit(&self, sender: Sender) -> Result<(), Refusal> {
        let mut buckets = lock(&self.buckets);
        let bucket = match sender {
            Sender::Signed => &mut buckets.signed,
            Sender::Token => &mut buckets.token,
        };
        bucket.take(self.rate, Instant::now()).map_err(Refusal::TooMany)
    }

    /// Accepts what can be accepted of a body, and waits until that is safe.
    async fn take(
        &self,
        elements: &[Value],
        in_array: bool,
        authenticated: &Authenticated,
        received_at: Timestamp,
    ) -> Result<Outcome, Refusal> {
        let sender = authenticated.sender;
        let mut outcome = Outcome::default();
        let mut due = Vec::new();
        // An event that is in a body twice is one.
        let mut here = HashSet::new();
        for (index, element) in elements.iter().enumerate() {
            let mut event = match event::recognise(element, self.self_user.as_deref()) {
                Recognition::Ignored(reason) => {
                    self.metrics.host_events("ignored", reason, 1);
                    outcome.ignored.push(Ignored { index, reason });
                    continue;
                }
                Recognition::Rejected(faults) => {
                    outcome.rejected.extend(faults.into_iter().map(|fault| Rejected::new(index, in_array, fault)));
                    continue;
                }
                Recognition::Event(event) => event,
            };
            outcome.rejected.extend(event.surplus.take().map(|fault| Rejected::new(index, in_array, fault)));
            let webhook_id = authenticated.webhook_id.as_deref();
            let id = EventId::of(event.id.take(), webhook_id, in_array.then_some(index), element);
            let hosts = self.fresh(sender, &id, &event.hosts, &mut here);
            let duplicate = hosts.is_empty();
            if duplicate {
                self.metrics.host_events("duplicate", event.kind.as_str(), 1);
            }
            outcome.accepted.push(Accepted { index, event_id: id.as_str().to_owned(), duplicate });
            let lane =
                host_event(sender, &id, &event, event.hosts[0], received_at).lane(self.triggers.borrow().as_deref());
            due.push(Due { index, id, event, lane, hosts });
        }
        for fault in &outcome.rejected {
            self.metrics.host_events("rejected", fault.code, 1);
        }
        if let Some(first) = outcome.rejected.first() {
            let count = outcome.rejected.len();
            tracing::warn!(
                sender = sender.name(),
                count,
                event.index = first.index,
                event.fault = first.code,
                event.pointer = first.pointer,
                "events were rejected: the first of their faults is shown"
            );
        }
        self.publish_all(sender, due, received_at).await?;
        Ok(outcome)
    }

    /// Those of an event's hosts for which it was not accepted lately.
    fn fresh(
        &self,
        sender: Sender,
        id: &EventId,
        hosts: &[u64],
        here: &mut HashSet<seen::Key>,
    ) -> Vec<(u64, Option<seen::Key>)> {
        let (seen, now) = (lock(&self.seen), Instant::now());
        let keyed = hosts.iter().map(|host| (*host, seen::key(sender, id, *host)));
        keyed.filter(|(_, key)| key.is_none_or(|key| !seen.contains(&key, now) && here.insert(key))).collect()
    }

    /// Publishes every event, containment first; after a failure no further one is begun.
    async fn publish_all(&self, sender: Sender, mut due: Vec<Due>, received_at: Timestamp) -> Result<(), Refusal> {
        due.sort_by_key(|due| due.lane);
        let mut messages = Vec::new();
        for due in &due {
            messages.extend(due.hosts.iter().map(|(host, key)| (due, *host, *key)));
        }
        if messages.is_empty() {
            return Ok(());
        }
        if self.shutdown.has_begun() {
            return Err(Refusal::Stopping);
        }
        let publishing = async {
            let (mut messages, mut waiting) = (messages.into_iter(), FuturesUnordered::new());
            let mut stored = true;
            loop {
                while stored && waiting.len() < UNCONFIRMED_LIMIT {
                    let Some((due, host, key)) = messages.next() else { break };
                    waiting.push(self.publish(sender, due, host, key, received_at));
                }
                match waiting.next().await {
                    Some(Ok(())) => {}
                    Some(Err(_)) => stored = false,
                    None => return stored,
                }
            }
        };
        tokio::select! {
            stored = publishing => if stored { Ok(()) } else { Err(Refusal::Queue) },
            // Those that are on their way may arrive; the sender sends them again.
            () = self.shutdown.last_call() => Err(Refusal::Stopping),
        }
    }

    async fn publish(
        &self,
        sender: Sender,
        due: &Due,
        host: u64,
        key: Option<seen::Key>,
        received_at: Timestamp,
    ) -> Result<(), BrokerError> {
        let kind = due.event.kind.as_str();
        let mut message = host_event(sender, &due.id, &due.event, host, received_at).into_message(due.lane);
        let message_id = message.id;
        let span = propagation::send_span(B::SYSTEM, &job::HOSTS, &mut message, kind);
        let published = self.broker.publish(&job::HOSTS, message, Duration::ZERO).instrument(span.clone()).await;
        match &published {
            Ok(()) => {
                if let Some(key) = key {
                    lock(&self.seen).enter(key, Instant::now());
                }
                self.metrics.host_events("accepted", kind, 1);
                tracing::debug!(
                    message.id = %message_id,
                    event.id = due.id.as_str(),
                    event.index = due.index,
                    event.kind = kind,
                    host.id = host,
                    sender = sender.name(),
                    lane = due.lane.as_str(),
                    "a host event was accepted"
                );
            }
            Err(error) => {
                propagation::fail(&span, error::class(error));
                tracing::warn!(error = %error, message.id = %message_id, host.id = host, "a host event was not stored");
            }
        }
        published
    }
}

/// What a worker gets to read.
fn host_event(sender: Sender, id: &EventId, event: &Event, host_id: u64, received_at: Timestamp) -> job::Host {
    job::Host {
        event_id: id.as_str().to_owned(),
        sender: sender.name().to_owned(),
        host_id,
        kind: event.kind,
        occurred_at: event.occurred_at.unwrap_or(received_at),
        received_at,
        hint: event.hint.clone(),
        actor: event.actor.clone(),
        progress: None,
    }
}

/// `application/json`, with parameters or without, and not compressed.
fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let kind = kinds.next().and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let plain = headers.get_all(header::CONTENT_ENCODING).iter().all(|encoding| {
        encoding
            .to_str()
            .is_ok_and(|encoding| encoding.split(',').all(|encoding| encoding.trim().eq_ignore_ascii_case("identity")))
    });
    if plain && kinds.next().is_none() && essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Refusal::MediaType)
    }
}

/// The events of a body, and whether it is an array of them.
fn elements(body: &[u8]) -> Result<(Vec<Value>, bool), Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Array(elements)) if elements.is_empty() => Err(Refusal::EmptyArray),
        Ok(Value::Array(elements)) if elements.len() > EVENTS_LIMIT => Err(Refusal::LongArray),
        Ok(Value::Array(elements)) => Ok((elements, true)),
        Ok(element @ Value::Object(_)) => Ok((vec![element], false)),
        _ => Err(Refusal::Json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_path_may_end_with_one_slash() {
        for (path, expected) in [
            ("/webhooks/cognito", true),
            ("/webhooks/cognito/", true),
            ("/webhooks/cognito//", false),
            ("/webhooks", false),
            ("/Webhooks/cognito", false),
            ("/webhooks/cognito/x", false),
        ] {
            assert_eq!(is_at(path), expected, "{path}");
        }
    }

    #[test]
    fn bodies_are_plain_json() {
        for (headers, accepted) in [
            (vec![("content-type", "application/json")], true),
            (vec![("content-type", "Application/JSON; charset=utf-8")], true),
            (vec![("content-type", "application/json"), ("content-encoding", "identity")], true),
            (vec![("content-type", "application/json"), ("content-encoding", "Identity, identity")], true),
            (vec![("content-type", "application/json"), ("content-encoding", "gzip")], false),
            (vec![("content-type", "application/json"), ("content-encoding", "identity, br")], false),
            (vec![("content-type", "application/json"), ("content-encoding", "")], false),
            (vec![("content-type", "application/json"), ("content-type", "application/json")], false),
            (vec![("content-type", "application/problem+json")], false),
            (vec![("content-type", "text/plain")], false),
            (vec![("content-type", "")], false),
            (vec![], false),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(check_media_type(&map).is_ok(), accepted, "{headers:?}");
        }
    }

    #[test]
    fn a_body_is_one_event_or_up_to_a_hundred() {
        let array = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
        for (body, expected) in [
            ("{}".to_owned(), Ok((1, false))),
            (" [{}] ".to_owned(), Ok((1, true))),
            ("[1]".to_owned(), Ok((1, true))),
            (array(100), Ok((100, true))),
            (array(101), Err("too_many_events")),
            ("[]".to_owned(), Err("no_event")),
            (String::new(), Err("malformed_json")),
            ("null".to_owned(), Err("malformed_json")),
            ("\"{}\"".to_owned(), Err("malformed_json")),
            ("{} {}".to_owned(), Err("malformed_json")),
            ("[{},]".to_owned(), Err("malformed_json")),
            ("\u{feff}{}".to_owned(), Err("malformed_json")),
            ("[".repeat(100_000), Err("malformed_json")),
        ] {
            let read = elements(body.as_bytes()).map(|(elements, in_array)| (elements.len(), in_array));
            assert_eq!(read.map_err(|refusal| refusal.code()), expected, "{body:.40}");
        }
        assert!(matches!(elements(b"{\"a\": \"\xff\"}"), Err(Refusal::Json)));
    }
}
