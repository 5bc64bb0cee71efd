//! From what was found to events in the queue.

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use std::time::Duration;
use tracing::Instrument as _;
use uuid::Uuid;

use super::listing::Found;
use super::wanted;
use crate::broker::{Broker, BrokerError, Lane, Message};
use crate::containment::Policy;
use crate::job::{self, Hint, Host, HostKind};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;

/// Events that are on their way to the broker at a time: enough that neither the network nor a disk is waited for one
/// event after the other.
const AT_ONCE: usize = 32;

/// An event that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its message's id.
    pub message_id: Uuid,
    /// What the worker reads.
    pub host: Host,
    /// Where it waits.
    pub lane: Lane,
}

impl Event {
    /// A new one.
    #[must_use]
    pub fn new(host: Host, lane: Lane) -> Self {
        Self { message_id: Uuid::now_v7(), host, lane }
    }
}

/// The event about a host that `sender` found.
#[must_use]
pub fn event(policy: &Policy, found: &Found, sender: &'static str, now: Timestamp) -> Event {
    let triggers = wanted::triggers(policy, &found.reasons);
    let host = Host {
        event_id: format!("{sender}-{}", Uuid::now_v7()),
        sender: sender.to_owned(),
        host_id: found.host,
        kind: HostKind::Reconcile,
        occurred_at: now,
        received_at: now,
        hint: (!triggers.is_empty()).then_some(Hint::Tags(triggers)),
        actor: None,
        progress: None,
    };
    Event::new(host, found.reasons.lane())
}

/// Publishes `events`, about as many at a time as the broker can use, and tells `published` of each that is safe.
///
/// # Errors
/// The first refusal; the events that were not published by then are left.
pub async fn publish<B: Broker>(
    broker: &B,
    metrics: &Metrics,
    source: &'static str,
    events: Vec<Event>,
    mut published: impl FnMut(&Event),
) -> Result<(), BrokerError> {
    let mut sending = stream::iter(events).map(|event| send(broker, event)).buffer_unordered(AT_ONCE);
    while let Some(sent) = sending.next().await {
        let event = sent?;
        metrics.own_event(source, event.lane.as_str());
        published(&event);
    }
    Ok(())
}

async fn send<B: Broker>(broker: &B, event: Event) -> Result<Event, BrokerError> {
    let mut message = Message { id: event.message_id, ..event.host.clone().into_message(event.lane) };
    let span = propagation::send_span(B::SYSTEM, &job::HOSTS, &mut message, event.host.kind.as_str());
    let sent = broker.publish(&job::HOSTS, message, Duration::ZERO).instrument(span.clone()).await;
    if let Err(error) = sent {
        propagation::fail(&span, "publish");
        return Err(error);
    }
    Ok(event)
}
