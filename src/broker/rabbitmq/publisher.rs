//! Confirmed publishing: for everything that must be stored before its publisher may forget it.
//!
//! A pool of channels, each used by one publish at a time until its confirm is in: with several in flight on a channel,
//! the AMQP library attaches a returned message to the wrong confirm now and then, and an unroutable message looks
//! stored (`rabbitmq.md` 3.4). 64 such channels reach the throughput of pipelining.

use std::sync::Mutex;

use bytes::Bytes;
use lapin::Confirmation;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::link::{Link, Session, failure, limited};
use crate::broker::BrokerError;

/// Channels at most; opened when needed (`rabbitmq.md` 9.1: more only add latency).
const CHANNELS: usize = 64;

/// Something to be published.
#[derive(Clone)]
pub(super) struct Parcel {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// A message that no queue wants is an error. Only replies go without: their caller may have gone.
    pub(super) mandatory: bool,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// The pool.
pub(super) struct Publisher {
    slots: Semaphore,
    /// With the number of the session each channel belongs to.
    idle: Mutex<Vec<(u64, Channel)>>,
}

impl Publisher {
    pub(super) fn new() -> Self {
        Self { slots: Semaphore::new(CHANNELS), idle: Mutex::new(Vec::new()) }
    }

    /// Publishes and waits for the confirm; all waiting, for a link and for a free channel too, ends at `until`.
    ///
    /// # Errors
    /// [`BrokerError::Full`], [`BrokerError::Unroutable`], [`BrokerError::Unavailable`]: nothing was stored.
    /// [`BrokerError::Unknown`]: it may have been.
    pub(super) async fn publish(&self, link: &Link, parcel: Parcel, until: Instant) -> Result<(), BrokerError> {
        let (_slot, session, channel) = self.channel(link, until).await?;
        let options = BasicPublishOptions { mandatory: parcel.mandatory, ..Default::default() };
        let Parcel { exchange, routing_key, properties, body, .. } = parcel;
        let confirmed = async { channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await };
        // On every way out but the first two the channel is dropped, and so closed: its confirm may still come.
        let confirmation = tokio::select! {
            () = session.ended.cancelled() => return Err(BrokerError::Unknown("the link was lost".to_owned())),
            confirmation = timeout_at(until, confirmed) => confirmation,
        };
        match confirmation {
            Ok(Ok(Confirmation::Ack(None))) => {
                self.put_back(&session, channel);
                Ok(())
            }
            Ok(Ok(Confirmation::Ack(Some(returned)))) => {
                self.put_back(&session, channel);
                Err(BrokerError::Unroutable(returned.reply_text.to_string()))
            }
            Ok(Ok(Confirmation::Nack(_))) => {
                self.put_back(&session, channel);
                Err(BrokerError::Full)
            }
            Ok(Ok(Confirmation::NotRequested)) => Err(BrokerError::Unknown("the channel does not confirm".to_owned())),
            Ok(Err(error)) => Err(BrokerError::Unknown(failure("publish", &error).to_string())),
            Err(_) => Err(BrokerError::Unknown(session.blocked().map_or_else(
                || "no confirm in time".to_owned(),
                |reason| format!("no confirm in time, the broker has blocked its publishers: {reason}"),
            ))),
        }
    }

    async fn channel(
        &self,
        link: &Link,
        until: Instant,
    ) -> Result<(SemaphorePermit<'_>, std::sync::Arc<Session>, Channel), BrokerError> {
        let session = link.wait(until).await?;
        unblocked(&session)?;
        let slot = timeout_at(until, self.slots.acquire())
            .await
            .map_err(|_| BrokerError::Unavailable("all channels wait for their confirms".to_owned()))?
            .expect("the semaphore is never closed");
        // Things may have changed while waiting for the slot.
        let session = link.wait(until).await?;
        unblocked(&session)?;
        if let Some(channel) = self.take(&session) {
            return Ok((slot, session, channel));
        }
        let opened = timeout_at(until, async {
            let channel = session.channel().await?;
            limited("turn on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
            Ok(channel)
        });
        let channel = opened.await.map_err(|_| BrokerError::Unavailable("no channel in time".to_owned()))??;
        Ok((slot, session, channel))
    }

    fn take(&self, session: &Session) -> Option<Channel> {
        let mut idle = self.idle.lock().expect("nobody panics while holding it");
        // Those of an earlier session lie at the bottom. The others are looked at only when one is taken: asking each
        // for its state, every time, costs as many locks as there are channels.
        if idle.first().is_some_and(|(number, _)| *number != session.number) {
            idle.retain(|(number, _)| *number == session.number);
        }
        while let Some((number, channel)) = idle.pop() {
            if number == session.number && channel.status().connected() {
                return Some(channel);
            }
        }
        None
    }

    fn put_back(&self, session: &Session, channel: Channel) {
        self.idle.lock().expect("nobody panics while holding it").push((session.number, channel));
    }
}

/// # Errors
/// [`BrokerError::Unavailable`] while the broker has blocked its publishers.
pub(super) fn unblocked(session: &Session) -> Result<(), BrokerError> {
    match session.blocked() {
        None => Ok(()),
        Some(reason) => Err(BrokerError::Unavailable(format!("blocked by the broker: {reason}"))),
    }
}
