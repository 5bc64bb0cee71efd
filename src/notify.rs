//! Notifications: one outgoing webhook that tells operators what was done to machines, and what waits for them.
//!
//! [`Notifier`] puts a notification into the durable queue `notify`; a worker takes it from there and posts it ([`Post`]). So
//! a receiver that is slow or dead costs containment nothing: what it did not take is tried again by the ladder of delays,
//! and is a dead letter with its cause in the end. While the queue itself takes nothing, it is kept in memory, and lost with
//! the process. Requests are signed by the rules of
//! [Standard Webhooks](https://www.standardwebhooks.com/). `webhook-id` is made from what happened, not from the telling:
//! a worker that dies in between, or several that saw the same, tell it twice under one id, by which the receiver knows.
//!
//! The body holds what the audit line holds: words, ids and names, never a secret, and never what an observable was.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Message};
use crate::config::NotifySettings;
use crate::job::{self, Notification};
use crate::outbound::{Outbound, Request};
use crate::retry;
use crate::telemetry::audit::{Entry, Outcome};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;

/// How long one try may take. A receiver only has to store what it gets.
const POST_LIMIT: Duration = Duration::from_secs(10);

/// What is read of an answer, whose body means nothing.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;

/// The same thing that waits for an operator is told once in this time: a fault of the configuration fails every host.
const ALERT_INTERVAL: Duration = Duration::from_secs(3600);

/// Notifications that wait in memory for a queue that takes none at present. An incident has some hundreds of machines; more
/// are logged and lost.
const KEPT: usize = 1_000;

/// The wait between tries to put one of those into the queue.
const AGAIN: Duration = Duration::from_secs(2);

/// Ids of happenings are made in this namespace (UUID version 5).
const NAMESPACE: Uuid = Uuid::from_u128(0x8d0c_6f2e_41b7_4c58_9a3e_5b1f_27d6_e094);

/// Tells, if there is anybody to tell. Cheap to clone.
#[derive(Clone, Default)]
pub struct Notifier(Option<Arc<Telling>>);

struct Telling {
    publish: Box<dyn Publish>,
    /// When each kind of alert was last told.
    alerted: Mutex<HashMap<&'static str, Instant>>,
    /// [`KEPT`], less those that wait.
    places: Arc<Semaphore>,
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Notifier").field(&self.0.is_some()).finish()
    }
}

/// Publishes notifications, whatever the broker.
trait Publish: Send + Sync {
    /// The span of the first try, which the message is told to belong to.
    fn span(&self, message: &mut Message) -> Span;
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BrokerError>>;
}

impl<B: Broker> Publish for B {
    fn span(&self, message: &mut Message) -> Span {
        propagation::send_span(B::SYSTEM, &job::NOTIFY, message, Notification::KIND)
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BrokerError>> {
        Broker::publish(self, &job::NOTIFY, message, Duration::ZERO).boxed()
    }
}

/// What every body looks like.
#[derive(Serialize)]
struct Body<'a, T> {
    r#type: &'a str,
    timestamp: Timestamp,
    data: &'a T,
}

/// An act of containment, as the audit line has it.
#[derive(Serialize)]
struct Act<'a> {
    source: &'static str,
    action: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    brain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    indicator_id: Option<&'a str>,
    event_id: &'a str,
}

/// The brake was moved.
#[derive(Serialize)]
struct Moved<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// Something waits for an operator.
#[derive(Serialize)]
struct Alert<'a> {
    alert: &'static str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine_id: Option<&'a str>,
}

impl Notifier {
    /// Tells through `broker`.
    #[must_use]
    pub fn new<B: Broker>(broker: B) -> Self {
        let places = Arc::new(Semaphore::new(KEPT));
        Self(Some(Arc::new(Telling { publish: Box::new(broker), alerted: Mutex::default(), places })))
    }

    /// Tells what an audit line says, and that it waits for an operator if it does. It is never an error: an act is not
    /// undone for want of a notification.
    pub async fn act(&self, entry: &Entry<'_>) {
        let act = Act {
            source: entry.source.as_str(),
            action: entry.action,
            outcome: entry.outcome.as_str(),
            reason: entry.reason,
            detail: entry.detail,
            actor: entry.actor,
            cause: entry.cause,
            brain: entry.brain,
            host_id: entry.host_id,
            host_name: entry.host_name,
            machine_id: entry.machine_id,
            action_id: entry.action_id,
            indicator_id: entry.indicator_id,
            event_id: entry.event_id,
        };
        // When it is told is not part of what happened.
        let happening = serde_json::to_string(&act).expect("words and numbers serialise");
        self.tell(kind(entry), &happening, &act).await;
        if let Some(reason) = entry.reason.filter(|_| entry.alerts) {
            self.raise(reason, entry.detail.unwrap_or_default(), entry.host_id, entry.machine_id).await;
        }
    }

    /// Tells that the emergency brake was moved, at this time.
    pub async fn brake(&self, paused: bool, at: Option<Timestamp>, by: Option<&str>, reason: Option<&str>) {
        let kind = if paused { "isolations.paused" } else { "isolations.resumed" };
        let at = at.map(|at| at.to_string()).unwrap_or_default();
        self.tell(kind, &format!("{kind} {at}"), &Moved { by, reason }).await;
    }

    /// Tells that something waits for an operator, once an hour for each `alert`; `host_id` is one of those that wait.
    pub async fn alert(&self, alert: &'static str, detail: &str, host_id: Option<u64>) {
        self.raise(alert, detail, host_id, None).await;
    }

    async fn raise(&self, alert: &'static str, detail: &str, host_id: Option<u64>, machine_id: Option<&str>) {
        let Some(telling) = &self.0 else { return };
        {
            let mut alerted = telling.alerted.lock().unwrap_or_else(PoisonError::into_inner);
            if alerted.get(alert).is_some_and(|told| told.elapsed() < ALERT_INTERVAL) {
                return;
            }
            alerted.insert(alert, Instant::now());
        }
        // Workers that find the same within the hour tell it under one id.
        let hour = Timestamp::now().as_second() / ALERT_INTERVAL.as_secs() as i64;
        let data = Alert { alert, detail, host_id, machine_id };
        if !self.tell("operator.alert", &format!("{alert} {hour}"), &data).await {
            telling.alerted.lock().unwrap_or_else(PoisonError::into_inner).remove(alert);
        }
    }

    /// Puts a notification into the queue, or keeps it until the queue takes it; whether it is not lost. Returns after the
    /// first try; whoever waits for less does not take it back.
    async fn tell(&self, kind: &'static str, happening: &str, data: &impl Serialize) -> bool {
        let Some(telling) = &self.0 else { return true };
        let body = Body { r#type: kind, timestamp: Timestamp::now(), data };
        let notification = Notification {
            webhook_id: Uuid::new_v5(&NAMESPACE, happening.as_bytes()),
            body: serde_json::to_string(&body).expect("words and numbers serialise"),
        };
        let Ok(place) = telling.places.clone().try_acquire_owned() else {
            tracing::warn!(notification.r#type = kind, "a notification is lost: too many wait for the queue");
            return false;
        };
        let mut message = Message::new(notification.encode());
        let span = telling.publish.span(&mut message);
        let (tried, first) = oneshot::channel();
        let telling = telling.clone();
        tokio::spawn(async move {
            telling.insist(kind, message, span, tried).await;
            drop(place);
        });
        first.await.unwrap_or(false)
    }
}

impl Telling {
    /// Tries until the queue has taken it. If a try was taken that seemed to fail, both have one id. After the first one
    /// it says in `tried` whether the notification is not lost.
    async fn insist(&self, kind: &'static str, message: Message, span: Span, tried: oneshot::Sender<bool>) {
        let mut next = self.publish.publish(message.clone()).instrument(span.clone()).await;
        if let Err(error) = &next {
            propagation::fail(&span, error.name());
        }
        drop(span);
        let lost = |error: &BrokerError| matches!(error, BrokerError::Closed | BrokerError::TooLarge { .. });
        let _ = tried.send(!next.as_ref().is_err_and(lost));
        let mut warned = false;
        while let Err(error) = next {
            if lost(&error) {
                tracing::warn!(error = %error, notification.r#type = kind, "a notification is lost");
                return;
            }
            if !warned {
                tracing::warn!(error = %error, notification.r#type = kind, "a notification waits for the queue");
                warned = true;
            }
            tokio::time::sleep(AGAIN).await;
            next = self.publish.publish(message.clone()).await;
        }
    }
}

/// The type of an act's notification.
fn kind(entry: &Entry<'_>) -> &'static str {
    match (entry.outcome, entry.action) {
        (Outcome::Denied | Outcome::DryRun, _) => "containment.refused",
        (Outcome::Failed | Outcome::Unknown, _) => "containment.failed",
        (Outcome::Accepted | Outcome::Adopted, "isolate") => "isolation.requested",
        (Outcome::Accepted | Outcome::Adopted, "release") => "release.requested",
        (Outcome::Done | Outcome::Already | Outcome::Elsewhere, "isolate") => "machine.isolated",
        (Outcome::Done | Outcome::Already | Outcome::Elsewhere, "release") => "machine.released",
        (Outcome::Accepted | Outcome::Adopted, _) => "action.requested",
        (Outcome::Done | Outcome::Already | Outcome::Elsewhere, _) => "action.done",
    }
}

/// Posts notifications to the receiver. Cheap to clone.
#[derive(Clone)]
pub struct Post {
    settings: Arc<NotifySettings>,
    key: hmac::Key,
    outbound: Outbound,
    metrics: Metrics,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The receiver did not take a notification.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct NotTaken {
    /// Why, without what was sent.
    pub what: String,
    /// How long it asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl Post {
    /// A sender to the receiver that is set.
    #[must_use]
    pub fn new(settings: NotifySettings, outbound: Outbound, metrics: Metrics) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, settings.secret.expose_secret());
        Self { settings: Arc::new(settings), key, outbound, metrics }
    }

    /// Posts once; `earlier` tries were made before.
    ///
    /// # Errors
    /// Anything but a 2xx; all of it passes, for all the sender can know.
    pub async fn send(&self, notification: &Notification, earlier: u32) -> Result<(), NotTaken> {
        let request = Request {
            method: Method::POST,
            url: self.settings.url.clone(),
            template: "/{notifications}",
            headers: self.headers(notification, Timestamp::now()),
            body: Bytes::from(notification.body.clone()),
            limit: Some(POST_LIMIT),
            body_limit_bytes: ANSWER_LIMIT_BYTES,
            resend_count: earlier,
        };
        let sent = self.outbound.send(request, Instant::now() + POST_LIMIT).await;
        let taken = match sent {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => {
                let asked = answer.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                let retry_after = asked.and_then(|value| retry::parse_retry_after(value, Timestamp::now()));
                Err(NotTaken { what: format!("the receiver answered {}", answer.status.as_u16()), retry_after })
            }
            Err(error) => Err(NotTaken { what: error.to_string(), retry_after: None }),
        };
        self.metrics.notification(if taken.is_ok() { "sent" } else { "failed" });
        taken
    }

    /// A notification is a dead letter now.
    pub fn given_up(&self) {
        self.metrics.notification("given_up");
    }

    fn headers(&self, notification: &Notification, now: Timestamp) -> HeaderMap {
        let (id, timestamp) = (notification.webhook_id.to_string(), now.as_second().to_string());
        let signed = format!("{id}.{timestamp}.{}", notification.body);
        let signature = format!("v1,{}", STANDARD.encode(hmac::sign(&self.key, signed.as_bytes())));
        let value = |text: String| HeaderValue::try_from(text).expect("letters, digits and base64 are a header value");
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        headers.insert("webhook-id", value(id));
        headers.insert("webhook-timestamp", value(timestamp));
        headers.insert("webhook-signature", value(signature));
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::audit::Source;

    #[test]
    fn a_notification_is_signed_as_standard_webhooks_ask() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let settings = NotifySettings { url: "https://hooks.example/x".parse().unwrap(), secret: secret.into() };
        let post = Post::new(settings, Outbound::new().unwrap(), Metrics::default());
        let notification = Notification { webhook_id: Uuid::nil(), body: "{\"test\": 2432232314}".to_owned() };
        let now = Timestamp::from_second(1_614_265_330).unwrap();
        let headers = post.headers(&notification, now);
        assert_eq!(headers["webhook-id"], "00000000-0000-0000-0000-000000000000");
        assert_eq!(headers["webhook-timestamp"], "1614265330");
        // Made with another implementation of HMAC.
        assert_eq!(headers["webhook-signature"], "v1,Y5/uRWupLQOPxe4D5mBYrd9dRGhY+xtWrnxDwy59WDE=");
        assert!(!format!("{post:?}").contains("MfKQ"));
    }

    #[test]
    fn each_act_has_a_type() {
        for (action, outcome, expected) in [
            ("isolate", Outcome::Accepted, "isolation.requested"),
            ("isolate", Outcome::Done, "machine.isolated"),
            ("isolate", Outcome::Denied, "containment.refused"),
            ("release", Outcome::Adopted, "release.requested"),
            ("release", Outcome::Elsewhere, "machine.released"),
            ("release", Outcome::Failed, "containment.failed"),
            ("scan", Outcome::Accepted, "action.requested"),
            ("add_indicator", Outcome::Done, "action.done"),
            ("add_indicator", Outcome::DryRun, "containment.refused"),
        ] {
            assert_eq!(kind(&Entry::new(Source::Hosts, action, outcome, "e")), expected, "{action} {outcome:?}");
        }
    }
}
