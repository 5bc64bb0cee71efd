//! Receiving: a consumer (or two) on one lane of a queue, taken up again on every new link, and what happens to a message
//! between the broker and its holder.
//!
//! Most messages pass straight through. The others are prepared in tasks of their own, so that they hold nobody up: one
//! whose deadline is over is dropped, one that is not due goes to the next rung of the ladder, one with a key needs its
//! lease, and one that must not come back is acknowledged first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Inner;
use super::envelope::{Envelope, now_ms, timestamp};
use super::ladder::RUNGS;
use super::link::{Session, limited};
use super::settle::{Held, Window};
use super::topology;
use crate::broker::message::{Delivery, Settler};
use crate::broker::{
    BrokerError, Cause, LINK_PATIENCE, Lane, PUBLISH_LIMIT, Queue, Receiver, Repeat, Settlement, Spread, Style,
};

/// Pause after a consumer ended on a link that is up, e.g. because an operator deleted its queue.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);
/// The longest a closing receiver waits for the messages being prepared.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// A closing receiver whose prefetch is not used up takes the flow for stopped after this long without a message. If
/// one is on its way all the same, it costs that message an attempt, no more.
const QUIET: Duration = Duration::from_millis(100);
/// The part of its prefetch up to which a receiver is preferred for having been there longest ([`Spread::Gather`]): enough
/// to bring together what comes while little is asked, and little enough for many at once to be shared by all.
const GATHERED: u16 = 4;
/// From this, which lies in the year 2109, to when a program connected, in ms: the priority of its consumers.
const GATHER_UNTIL_MS: i64 = 1 << 42;
/// A message that is due within this time waits here instead of on a rung that would hold it for a second.
const NEARLY_DUE_MS: i64 = 50;

/// Begins to receive.
///
/// # Errors
/// As [`crate::broker::Broker::receive`].
pub(super) async fn receive(
    inner: &Arc<Inner>,
    queue: &'static Queue,
    lane: Lane,
    prefetch: u16,
) -> Result<Receiver, BrokerError> {
    // AMQP takes 0 for no bound at all.
    let prefetch = prefetch.max(1);
    let session = inner.consuming.wait(Instant::now() + LINK_PATIENCE).await?;
    let (deliveries, out) = mpsc::channel(prefetch.into());
    let stop = inner.closed.child_token();
    let mut firsts = Vec::with_capacity(2);
    for (prefetch, priority) in shares(queue, lane, prefetch, inner.since_ms) {
        let subscription = Arc::new(Subscription {
            inner: inner.clone(),
            queue,
            lane,
            prefetch,
            priority,
            deliveries: deliveries.clone(),
            hands: Arc::new(Semaphore::new(prefetch.into())),
            stop: stop.clone(),
            preparing: TaskTracker::new(),
        });
        firsts.push((subscription.subscribe(session.clone()).await?, subscription));
    }
    let tasks = TaskTracker::new();
    for (first, subscription) in firsts {
        inner.receivers.spawn(tasks.track_future(subscription.run(first)));
    }
    tasks.close();
    Ok(Receiver::new(
        out,
        Box::new(move || {
            Box::pin(async move {
                stop.cancel();
                // Each task bounds each of its own steps.
                tasks.wait().await;
            })
        }),
    ))
}

/// How many consumers a receiver has, where its prefetch can be shared out.
pub(super) fn consumers(queue: &Queue, lane: Lane) -> u64 {
    if queue.spread == Spread::Gather && lane == Lane::Normal { 2 } else { 1 }
}

/// The prefetch and the priority of each consumer of a receiver. RabbitMQ takes no account of a consumer that has no room.
fn shares(queue: &Queue, lane: Lane, prefetch: u16, since_ms: i64) -> Vec<(u16, i64)> {
    if consumers(queue, lane) == 1 || prefetch == 1 {
        return vec![(prefetch, 0)];
    }
    let first = (prefetch / GATHERED).max(1);
    vec![(first, (GATHER_UNTIL_MS - since_ms).max(1)), (prefetch - first, 0)]
}

struct Subscription {
    inner: Arc<Inner>,
    queue: &'static Queue,
    lane: Lane,
    prefetch: u16,
    /// Consumers with room and a higher one get a message before this one does.
    priority: i64,
    deliveries: mpsc::Sender<Delivery>,
    /// The prefetch: a place for each message handed out and not settled. The broker's own count does not see messages
    /// that are acknowledged first, nor those of an earlier link.
    hands: Arc<Semaphore>,
    stop: CancellationToken,
    preparing: TaskTracker,
}

/// A consumer on one session.
struct Flow {
    session: Arc<Session>,
    channel: Channel,
    consumer: Consumer,
    window: Arc<Window>,
}

impl Subscription {
    async fn subscribe(&self, session: Arc<Session>) -> Result<Flow, BrokerError> {
        let channel = session.channel().await?;
        limited("set the prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        let name = self.inner.names.queue(self.queue.name, self.lane);
        let what = format!("receive from {name}");
        let options = BasicConsumeOptions::default();
        let mut arguments = FieldTable::default();
        if self.priority != 0 {
            arguments.insert("x-priority".into(), AMQPValue::LongLongInt(self.priority));
        }
        let consume = channel.basic_consume(name, ShortString::default(), options, arguments);
        let consumer = limited(&what, consume).await?;
        Ok(Flow { session, channel, consumer, window: Arc::default() })
    }

    async fn run(self: Arc<Self>, first: Flow) {
        let mut flow = Some(first);
        while let Some(current) = flow.take() {
            self.pump(current).await;
            flow = self.resubscribe().await;
        }
        self.preparing.close();
        if timeout(STOP_LIMIT, self.preparing.wait()).await.is_err() {
            tracing::warn!(
                queue.name = self.queue.name,
                "messages are still being prepared while their receiver closes"
            );
        }
    }

    /// A new consumer, as soon as there can be one; `None` when the receiver stops.
    async fn resubscribe(&self) -> Option<Flow> {
        loop {
            let session = tokio::select! {
                () = self.stop.cancelled() => return None,
                session = self.inner.consuming.current() => session.ok()?,
            };
            match self.subscribe(session.clone()).await {
                Ok(flow) => return Some(flow),
                Err(error) => {
                    tracing::warn!(queue.name = self.queue.name, error = %error, "cannot receive now, trying on");
                    // Somebody may have deleted the queue.
                    if session.connection.status().connected() {
                        let _ = topology::declare(&session.connection, &self.inner.names, self.inner.topology).await;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(RESUBSCRIBE_PAUSE) => {}
            }
        }
    }

    /// Hands messages over until the consumer ends or the receiver stops.
    async fn pump(self: &Arc<Self>, mut flow: Flow) {
        loop {
            let message = tokio::select! {
                () = self.stop.cancelled() => break,
                // The receiver was dropped without closing it.
                () = self.deliveries.closed() => {
                    self.stop.cancel();
                    break;
                }
                () = flow.session.ended.cancelled() => return,
                message = flow.consumer.next() => message,
            };
            let message = match message {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    tracing::debug!(queue.name = self.queue.name, error = %error, "a consumer has ended");
                    return;
                }
                None => {
                    tracing::warn!(queue.name = self.queue.name, "the broker ended a consumer");
                    return tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
                }
            };
            let permit = tokio::select! {
                biased;
                // The message comes again on the next link, where it waits for its place anew.
                () = flow.session.ended.cancelled() => return,
                permit = self.hands.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
                () = self.stop.cancelled() => {
                    self.return_unused(&flow, message);
                    break;
                }
            };
            self.take(&flow, message, permit).await;
        }
        self.cancel(flow).await;
    }

    /// Ends the consumer and gives back what nobody had in hands.
    async fn cancel(self: &Arc<Self>, mut flow: Flow) {
        let window = flow.window.clone();
        let shut = window.gate.write().await;
        while window.outstanding.load(Ordering::Relaxed) < self.prefetch.into() {
            match timeout(QUIET, flow.consumer.next()).await {
                Ok(Some(Ok(message))) => self.return_unused(&flow, message),
                _ => break,
            }
        }
        let tag = flow.consumer.tag();
        let cancelled = limited("stop receiving", flow.channel.basic_cancel(tag, BasicCancelOptions::default())).await;
        drop(shut);
        if let Err(error) = cancelled {
            // What was on its way comes back with the end of the channel.
            tracing::debug!(queue.name = self.queue.name, error = %error, "a consumer could not be cancelled");
            return;
        }
        // The stream ends behind what was on its way when the broker confirmed the cancellation.
        while let Ok(Some(Ok(message))) = timeout(STOP_LIMIT, flow.consumer.next()).await {
            self.return_unused(&flow, message);
        }
    }

    /// Gives back a message that nobody had in hands.
    fn return_unused(self: &Arc<Self>, flow: &Flow, message: lapin::message::Delivery) {
        let (held, _) = self.open(flow, message, None);
        let held = match held {
            Ok(held) | Err(held) => held,
        };
        let settlement = (held as Box<dyn Settler>).settle(Settlement::GiveBack);
        self.preparing.spawn(async move {
            if let Err(error) = settlement.await {
                tracing::debug!(error = %error, "a message could not be given back; the broker hands it out again");
            }
        });
    }

    /// Reads a message; the destination is for spans. The error is a message that this program did not publish.
    fn open(
        &self,
        flow: &Flow,
        message: lapin::message::Delivery,
        permit: Option<OwnedSemaphorePermit>,
    ) -> (Result<Box<Held>, Box<Held>>, String) {
        flow.window.outstanding.fetch_add(1, Ordering::Relaxed);
        let destination = [message.exchange.as_str(), message.routing_key.as_str(), flow.consumer.queue().as_str()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(":");
        let read = Envelope::read(self.queue.name, self.lane, &message.properties, message.data);
        let held = |envelope| {
            Box::new(Held {
                inner: self.inner.clone(),
                session: flow.session.clone(),
                channel: flow.channel.clone(),
                acker: message.acker.clone(),
                window: flow.window.clone(),
                queue: self.queue,
                envelope,
                acknowledged: false,
                lease: None,
                permit,
                stop: self.stop.clone(),
            })
        };
        match read {
            Ok(envelope) => (Ok(held(envelope)), destination),
            Err(envelope) => (Err(held(*envelope)), destination),
        }
    }

    async fn take(self: &Arc<Self>, flow: &Flow, message: lapin::message::Delivery, permit: OwnedSemaphorePermit) {
        let redelivered = message.redelivered;
        let (held, destination) = self.open(flow, message, Some(permit));
        let mut held = match held {
            Ok(held) => held,
            Err(stranger) => {
                let cause = Cause {
                    code: "undecodable".to_owned(),
                    detail: "the message has no message id of this program".to_owned(),
                };
                let burial = (stranger as Box<dyn Settler>).settle(Settlement::DeadLetter(cause));
                self.preparing.spawn(async move {
                    if let Err(error) = burial.await {
                        tracing::warn!(error = %error, "a stranger's message could not be made a dead letter");
                    }
                });
                return;
            }
        };
        // Quorum queues count this themselves; classic ones only say that it happened.
        let uncounted = redelivered && self.queue.style == Style::Ask;
        let envelope = &mut held.envelope;
        if envelope.not_before_ms.is_some_and(|not_before| not_before <= now_ms()) {
            envelope.not_before_ms = None;
        }
        let plain = !uncounted
            && envelope.not_before_ms.is_none()
            && envelope.message.key.is_none()
            && envelope.message.repeat == Repeat::AtLeastOnce
            && envelope.deadline_ms.is_none_or(|deadline| deadline > now_ms());
        if plain {
            self.hand_over(held, destination).await;
        } else {
            let this = self.clone();
            self.preparing.spawn(async move {
                if let Some(held) = this.prepare(held, uncounted).await {
                    this.hand_over(held, destination).await;
                }
            });
        }
    }

    async fn hand_over(&self, held: Box<Held>, destination: String) {
        let envelope = &held.envelope;
        let (attempt, published) = (envelope.attempt, timestamp(envelope.published_ms));
        let deadline = envelope.deadline_ms.map(timestamp);
        let delivery = Delivery::new(envelope.message.clone(), attempt, published, deadline, destination, held);
        // There is room: the buffer has as many places as there are permits.
        if let Err(mpsc::error::SendError(delivery)) = self.deliveries.send(delivery).await {
            let _ = delivery.settle(Settlement::GiveBack).await;
        }
    }

    /// Does what a message needs before it may be handed over; `None` when it is not to be handed over now.
    async fn prepare(&self, mut held: Box<Held>, uncounted: bool) -> Option<Box<Held>> {
        if held.envelope.deadline_ms.is_some_and(|deadline| deadline <= now_ms()) {
            // Nobody waits for it. If the acknowledgement fails, it comes back and is dropped then.
            let _ = held.acknowledge().await;
            return None;
        }
        if held.envelope.not_before_ms.is_some() && !self.wait_until_due(&mut held).await {
            return None;
        }
        if held.envelope.message.key.is_some() && !self.lease(&mut held).await {
            return self.unused(held).await;
        }
        if uncounted {
            held.envelope.attempt = held.envelope.attempt.saturating_add(1);
            // A message that must not be doubled is not copied; nor has anybody had it, or it would not have come back.
            if held.envelope.message.repeat == Repeat::AtLeastOnce && self.recount(&held).await {
                return self.unused(held).await;
            }
        }
        if held.envelope.message.repeat == Repeat::AtMostOnce
            && held.acknowledge_for_certain(self.prefetch).await.is_err()
        {
            return self.unused(held).await;
        }
        Some(held)
    }

    /// Lets go of a message that went elsewhere, or comes back by itself.
    async fn unused(&self, mut held: Box<Held>) -> Option<Box<Held>> {
        if let Some(lease) = held.lease.take() {
            lease.release().await;
        }
        None
    }

    /// Sends a message that is not due to its next rung. `true` when it is due now.
    async fn wait_until_due(&self, held: &mut Held) -> bool {
        loop {
            let now = now_ms();
            let left = held.envelope.not_before_ms.map_or(0, |not_before| not_before.saturating_sub(now));
            if left <= 0 {
                held.envelope.not_before_ms = None;
                return true;
            }
            if left <= NEARLY_DUE_MS {
                tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0))).await;
                continue;
            }
            let parcel = self.inner.parcel(&held.envelope, self.queue, now);
            if self.moved(held, parcel).await || !self.pause(held).await {
                return false;
            }
        }
    }

    /// Takes the lease of the message's key. `false` when the message went to the ladder or is lost.
    async fn lease(&self, held: &mut Held) -> bool {
        let Some(key) = held.envelope.message.key.clone() else { return true };
        loop {
            let name = self.inner.names.lease(self.queue.name, &key);
            match self.inner.leases.take(&held.session, name).await {
                Ok(Some(lease)) => {
                    held.lease = Some(lease);
                    return true;
                }
                Ok(None) => {
                    // Somebody works on this key: a second on the ladder, at no cost.
                    let parcel = self.inner.parcel_on(Some(RUNGS[0]), &held.envelope, self.queue, now_ms());
                    if self.moved(held, parcel).await {
                        return false;
                    }
                }
                Err(error) => tracing::debug!(error = %error, "no answer about a lease, trying on"),
            }
            if !self.pause(held).await {
                return false;
            }
        }
    }

    /// Publishes the message with its new attempt and drops the old one, so that the count survives the next crash too.
    /// If that is not possible now, the message is handed over with the count as it is known here.
    async fn recount(&self, held: &Held) -> bool {
        let parcel = self.inner.parcel(&held.envelope, self.queue, now_ms());
        self.moved(held, parcel).await
    }

    /// Publishes the message elsewhere and drops it here.
    async fn moved(&self, held: &Held, parcel: super::publisher::Parcel) -> bool {
        let until = Instant::now() + PUBLISH_LIMIT;
        match self.inner.publisher.publish(&self.inner.publishing, parcel, until).await {
            Ok(()) => {
                // If the acknowledgement is lost, the message is doubled, which promise 2 allows.
                let _ = held.acknowledge().await;
                true
            }
            Err(error) => {
                tracing::debug!(queue.name = self.queue.name, error = %error, "a message could not be moved");
                false
            }
        }
    }

    /// A pause before the next try. `false` when there is none: the message was put back, or comes back by itself.
    async fn pause(&self, held: &Held) -> bool {
        let again = held.pause().await;
        if !again {
            let _ = held.put_back().await;
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn queue(spread: Spread) -> Queue {
        Queue { name: "queue", style: Style::Ask, spread }
    }

    #[test]
    fn a_gathering_receiver_shares_out_its_prefetch() {
        for (prefetch, expected) in [(1, &[1][..]), (2, &[1, 1]), (3, &[1, 2]), (16, &[4, 12]), (64, &[16, 48])] {
            let shares = shares(&queue(Spread::Gather), Lane::Normal, prefetch, 1_700_000_000_000);
            assert_eq!(shares.iter().map(|(prefetch, _)| *prefetch).collect::<Vec<_>>(), expected);
            assert!(shares.is_sorted_by(|(_, one), (_, other)| one > other), "{shares:?}");
        }
    }

    #[test]
    fn who_is_there_longer_comes_first_and_only_in_the_normal_lane_of_a_gathering_queue() {
        let first = |since_ms| shares(&queue(Spread::Gather), Lane::Normal, 64, since_ms)[0].1;
        assert!(first(1_700_000_000_000) > first(1_700_000_000_001));
        assert!(first(i64::MAX) > 0, "a clock that is far ahead");
        for (spread, lane) in
            [(Spread::Gather, Lane::Urgent), (Spread::Even, Lane::Normal), (Spread::SingleActive, Lane::Normal)]
        {
            assert_eq!(shares(&queue(spread), lane, 64, 1_700_000_000_000), [(64, 0)], "{spread:?} {lane:?}");
        }
    }
}
