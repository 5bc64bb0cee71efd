//! One delivery in its holder's hands, and the ways it ends.
//!
//! A message that shall come again, or die, is published anew (confirmed) before the old one is acknowledged: the order
//! allows a duplicate and forbids a loss. If the new one is refused, the old one goes back to its queue. While the broker
//! takes nothing at all it stays in hands: put back it would come again at once, and again, until its tries are used up.
//! Settlements run in tasks of their own, so that a caller who stops waiting does not stop them half way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lapin::options::{BasicAckOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::ShortString;
use lapin::{Acker, BasicProperties, Channel};
use tokio::sync::{OwnedSemaphorePermit, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::envelope::{Envelope, Obituary, fits, now_ms};
use super::ladder::{Rung, next_rung};
use super::lease::Lease;
use super::link::{Session, limited};
use super::publisher::Parcel;
use crate::broker::message::Settler;
use crate::broker::{BODY_LIMIT_BYTES, BrokerError, Cause, PUBLISH_LIMIT, Queue, Settlement, Style};

/// Pause before a reply that could not be sent is tried again, while its caller still waits.
const REPLY_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a message could not be moved because the broker takes none at present.
const MOVE_PAUSE: Duration = Duration::from_millis(250);

/// A message handed out by the broker and not yet acknowledged, unless it may not come back.
pub(super) struct Held {
    pub(super) inner: Arc<Inner>,
    pub(super) session: Arc<Session>,
    /// Kept open until the end: with its last clone the channel would close, and the message come back.
    pub(super) channel: Channel,
    pub(super) acker: Acker,
    pub(super) window: Arc<Window>,
    pub(super) queue: &'static Queue,
    pub(super) envelope: Envelope,
    /// Acknowledged before it was handed over (at most once).
    pub(super) acknowledged: bool,
    pub(super) lease: Option<Lease>,
    /// A place within the receiver's prefetch.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// The receiver stops.
    pub(super) stop: CancellationToken,
}

/// What one consumer has of its prefetch.
///
/// A message that arrives behind the broker's answer to a cancellation is dropped by the AMQP library, and comes back
/// as if its holder had died. None is on its way when the prefetch is used up, so a closing receiver holds the
/// acknowledgements back for a moment, which would make room for more, and cancels then.
#[derive(Default)]
pub(super) struct Window {
    /// Messages received and not yet acknowledged.
    pub(super) outstanding: AtomicUsize,
    /// Read to acknowledge, written to hold that back.
    pub(super) gate: RwLock<()>,
}

impl Settler for Held {
    fn settle(self: Box<Self>, settlement: Settlement) -> BoxFuture<'static, Result<(), BrokerError>> {
        let (tasks, runtime) = (self.inner.settlements.clone(), self.inner.runtime.clone());
        let task = tasks.spawn_on(self.end(settlement), &runtime);
        Box::pin(async move {
            task.await.unwrap_or_else(|error| Err(BrokerError::Unknown(format!("the settlement was aborted: {error}"))))
        })
    }

    fn is_lost(&self) -> bool {
        !self.acknowledged && !self.acker.usable()
    }

    fn abandon(self: Box<Self>) {
        let (tasks, runtime) = (self.inner.settlements.clone(), self.inner.runtime.clone());
        tasks.spawn_on(
            async move {
                if let Err(error) = self.put_back().await {
                    tracing::debug!(error = %error, "a dropped message could not be put back now");
                }
                self.finish().await;
            },
            &runtime,
        );
    }
}

impl Held {
    async fn end(self: Box<Self>, settlement: Settlement) -> Result<(), BrokerError> {
        let outcome = self.carry_out(settlement).await;
        self.finish().await;
        outcome
    }

    async fn carry_out(&self, settlement: Settlement) -> Result<(), BrokerError> {
        let now = now_ms();
        match settlement {
            Settlement::Done { reply } => {
                let reply = reply.map(|body| fits(body.len(), BODY_LIMIT_BYTES).map(|()| body)).transpose();
                match reply {
                    Ok(reply) => self.done(reply).await,
                    Err(error) => {
                        // Working it again would give the same reply; the caller learns of it at its deadline.
                        self.acknowledge().await?;
                        Err(error)
                    }
                }
            }
            Settlement::Retry { after, body } => {
                self.come_again(self.again(after, body, self.envelope.attempt.saturating_add(1), now)).await
            }
            Settlement::Later { after, body } => {
                self.come_again(self.again(after, body, self.envelope.attempt, now)).await
            }
            Settlement::GiveBack => self.give_back().await,
            Settlement::DeadLetter(cause) => self.bury(cause).await,
        }
    }

    /// Frees what the delivery occupied.
    async fn finish(mut self: Box<Self>) {
        // The place first: somebody else's message may need it, and freeing the lease takes a round trip.
        drop(self.permit.take());
        if let Some(lease) = self.lease.take() {
            lease.release().await;
        }
    }

    async fn done(&self, reply: Option<Bytes>) -> Result<(), BrokerError> {
        let answered = match (reply, &self.envelope.reply) {
            (Some(body), Some((address, correlation))) => self.answer(body, address, correlation).await,
            _ => Ok(()),
        };
        // When the reply did not get through, its caller's deadline is over: nobody waits for a second try.
        self.acknowledge().await?;
        answered
    }

    /// Sends the reply, over again while its caller waits: the work is done, only the way is not free.
    async fn answer(&self, body: Bytes, address: &ShortString, correlation: &ShortString) -> Result<(), BrokerError> {
        let parcel = Parcel {
            exchange: ShortString::default(),
            routing_key: address.clone(),
            mandatory: false,
            properties: BasicProperties::default().with_correlation_id(correlation.clone()).with_delivery_mode(1),
            body,
        };
        // A stranger's request has no deadline; ours always do.
        let deadline = self.envelope.deadline_ms;
        let mut failed = None;
        loop {
            let left = deadline.map_or(PUBLISH_LIMIT, |deadline| millis(deadline.saturating_sub(now_ms())));
            if left.is_zero() {
                return failed.map_or(Ok(()), Err);
            }
            let until = Instant::now() + left.min(PUBLISH_LIMIT);
            match self.inner.publisher.publish(&self.inner.publishing, parcel.clone(), until).await {
                Ok(()) => return Ok(()),
                // No such address: the caller has gone.
                Err(BrokerError::Unroutable(_)) => return Ok(()),
                Err(error) if deadline.is_none() || matches!(error, BrokerError::Closed) => return Err(error),
                Err(error) => failed = Some(error),
            }
            tokio::time::sleep(REPLY_PAUSE.min(left)).await;
        }
    }

    fn again(&self, after: Duration, body: Option<Bytes>, attempt: u32, now: i64) -> Result<Envelope, BrokerError> {
        let mut again = self.envelope.clone();
        if let Some(body) = body {
            fits(body.len(), BODY_LIMIT_BYTES)?;
            again.message.body = body;
        }
        again.attempt = attempt;
        again.not_before_ms = not_before(after, now);
        Ok(again)
    }

    async fn come_again(&self, again: Result<Envelope, BrokerError>) -> Result<(), BrokerError> {
        match again {
            // Each try for itself: what has become due while it waited needs no delay any more.
            Ok(again) => self.replace(|| self.inner.parcel(&again, self.queue, now_ms()), true).await,
            Err(error) => self.failed(error).await,
        }
    }

    /// Back to its queue at once, for anybody, attempt unchanged.
    pub(super) async fn give_back(&self) -> Result<(), BrokerError> {
        let mut again = self.envelope.clone();
        again.not_before_ms = None;
        self.replace(|| self.inner.parcel(&again, self.queue, now_ms()), false).await
    }

    pub(super) async fn bury(&self, cause: Cause) -> Result<(), BrokerError> {
        let died_ms = now_ms();
        let parcel = || Parcel {
            exchange: ShortString::default(),
            routing_key: self.inner.names.dead(self.queue.name),
            mandatory: true,
            properties: self.envelope.dead_properties(&Obituary { cause: cause.clone(), died_ms }),
            body: self.envelope.message.body.clone(),
        };
        self.replace(parcel, true).await
    }

    /// Publishes `parcel` in place of the message; if that fails, the message goes back to its queue. Who is `patient` tries
    /// on while the broker takes no messages, and has the message in hands meanwhile.
    async fn replace(&self, parcel: impl Fn() -> Parcel, patient: bool) -> Result<(), BrokerError> {
        let mut told = false;
        loop {
            if self.is_lost() {
                // It is somebody else's by now; a copy would double it.
                return Err(lost());
            }
            let until = Instant::now() + PUBLISH_LIMIT;
            let error = match self.inner.publisher.publish(&self.inner.publishing, parcel(), until).await {
                Ok(()) => return self.acknowledge().await,
                Err(error) => error,
            };
            // A full queue is another matter: it may need this very place to get emptier.
            let takes_none = matches!(error, BrokerError::Unavailable(_) | BrokerError::Unknown(_));
            let is_awaited = self.envelope.deadline_ms.is_none_or(|deadline| deadline > now_ms());
            if !(patient && takes_none && is_awaited && self.pause().await) {
                return self.failed(error).await;
            }
            if !told {
                tracing::warn!(queue.name = self.queue.name, error = %error, "a message waits in hands to be put away");
                told = true;
            }
        }
    }

    /// It could not be put away: back to its queue. A failure of that changes nothing, for then the message comes back with
    /// the end of the link.
    async fn failed(&self, error: BrokerError) -> Result<(), BrokerError> {
        let _ = self.put_back().await;
        Err(error)
    }

    /// A pause before the next try to move the message. `false`: there is none, because its link is lost or its receiver
    /// stops.
    pub(super) async fn pause(&self) -> bool {
        tokio::select! {
            () = tokio::time::sleep(MOVE_PAUSE) => true,
            () = self.session.ended.cancelled() => false,
            () = self.stop.cancelled() => false,
        }
    }

    /// Ends the message at the broker.
    pub(super) async fn acknowledge(&self) -> Result<(), BrokerError> {
        if self.acknowledged {
            return Ok(());
        }
        let _open = self.window.gate.read().await;
        match limited("acknowledge", self.acker.ack(BasicAckOptions::default())).await {
            Ok(true) => {
                self.window.outstanding.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
            Ok(false) => Err(lost()),
            Err(error) => Err(BrokerError::Unknown(error.to_string())),
        }
    }

    /// Acknowledges and waits until the broker has read it: the round trip behind it on the same channel is answered
    /// only after it. Should the link break at this moment, the message is gone or comes back, but it is not handed
    /// over here. On a durable queue the broker may still lose the acknowledgement if it dies within the next moments;
    /// such messages are asked, not published.
    pub(super) async fn acknowledge_for_certain(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        self.acknowledge().await?;
        limited("acknowledge", self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        self.acknowledged = true;
        Ok(())
    }

    /// Back to the head of its queue; the broker counts the try. `reject`, because `nack` is not counted since 4.3.
    pub(super) async fn put_back(&self) -> Result<(), BrokerError> {
        if self.acknowledged {
            return Ok(());
        }
        let _open = self.window.gate.read().await;
        let rejected = limited("put back", self.acker.reject(BasicRejectOptions { requeue: true })).await?;
        if !rejected {
            return Err(lost());
        }
        self.window.outstanding.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Inner {
    /// The message for the next rung of the ladder, or for its queue when it is due.
    pub(super) fn parcel(&self, envelope: &Envelope, queue: &Queue, now_ms: i64) -> Parcel {
        let rung = envelope.not_before_ms.and_then(|not_before| next_rung(not_before, now_ms));
        self.parcel_on(rung, envelope, queue, now_ms)
    }

    /// The message for a rung of the ladder, or for its queue.
    pub(super) fn parcel_on(&self, rung: Option<Rung>, envelope: &Envelope, queue: &Queue, now_ms: i64) -> Parcel {
        let transient = rung.is_none() && queue.style == Style::Ask && envelope.deadline_ms.is_some();
        Parcel {
            exchange: rung.map_or_else(|| self.names.work(), |rung| self.names.delay(rung)),
            routing_key: self.names.key(queue.name, envelope.message.lane),
            mandatory: true,
            properties: envelope.properties(transient, now_ms),
            body: envelope.message.body.clone(),
        }
    }
}

/// The point in time that is `after` from now, rounded up; `None` for at once.
pub(super) fn not_before(after: Duration, now_ms: i64) -> Option<i64> {
    if after.is_zero() {
        return None;
    }
    // One more: `now_ms` was rounded down.
    let after = i64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
    Some(now_ms.saturating_add(after).saturating_add(1))
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn lost() -> BrokerError {
    BrokerError::Unknown("the link the message came by was lost; it comes back".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_rounded_up_and_none_at_all_stays_none() {
        let table = [
            (Duration::ZERO, None),
            (Duration::from_nanos(1), Some(1_002)),
            (Duration::from_millis(5), Some(1_006)),
            (Duration::from_micros(5_001), Some(1_007)),
            (Duration::MAX, Some(i64::MAX)),
        ];
        for (after, expected) in table {
            assert_eq!(not_before(after, 1_000), expected, "{after:?}");
        }
    }
}
