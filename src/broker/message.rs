//! What travels through the seam: messages, deliveries, settlements and errors. No broker and no job is known here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Text headers of a message, the W3C trace context (`traceparent`, `tracestate`) among them. Names beginning with `x-`
/// belong to the broker and are refused from publishers in debug builds.
pub type Headers = BTreeMap<String, String>;

/// A queue of the topology. Its arguments follow from these members and are constants of the code, never settings:
/// a queue cannot change its arguments in place (`rabbitmq.md` 1, rule 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Name without the namespace: lower-case letters, digits and dashes.
    pub name: &'static str,
    /// How its messages are kept.
    pub style: Style,
    /// Which of its receivers gets a message.
    pub spread: Spread,
}

/// Which of a queue's receivers gets a message, where several have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each in its turn.
    Even,
    /// In the normal lane the one that is connected longest, for as long as it has room in a quarter of its prefetch;
    /// what goes beyond that in every receiver is spread evenly. For work that costs less where it meets its like. A
    /// preference of RabbitMQ's, not a promise.
    Gather,
    /// One receiver at a time gets all messages (promise 10).
    SingleActive,
}

/// How the messages of a queue are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Requests whose caller waits: bounded, refused when full, gone after a restart of the broker.
    Ask,
    /// Messages that survive a restart and end either done or among the dead letters.
    Durable,
}

/// Everything a deployment declares at its broker.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// All queues.
    pub queues: &'static [Queue],
    /// Names of retained values (promise 11).
    pub retained: &'static [&'static str],
    /// How many messages wait at most in each lane of an [`Style::Ask`] queue before new ones are refused.
    pub ask_limit: u32,
    /// How many messages wait at most in each lane of a [`Style::Durable`] queue before new ones are refused.
    pub durable_limit: u32,
}

/// Which of a queue's two lanes a message takes. Containment is urgent, everything else normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Never waits behind normal messages (promise 8).
    Urgent,
    /// The rest.
    Normal,
}

impl Lane {
    /// `urgent` or `normal`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Normal => "normal",
        }
    }
}

/// Whether a message may be handed out again after a holder began to work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The work is safe to repeat.
    AtLeastOnce,
    /// The outcome of a repeated act would be unknown: acknowledged before it is handed over.
    AtMostOnce,
}

/// A message as its publisher makes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Made by the publisher, UUID version 7; stable over retries, redeliveries and redrives.
    pub id: Uuid,
    /// Its lane.
    pub lane: Lane,
    /// Messages with equal keys are never in two hands at once (promise 9). At most [`Message::KEY_LIMIT_BYTES`].
    pub key: Option<String>,
    /// Opaque to the broker.
    pub headers: Headers,
    /// Opaque to the broker. At most [`super::BODY_LIMIT_BYTES`].
    pub body: Bytes,
    /// Whether it may be handed out again.
    pub repeat: Repeat,
}

impl Message {
    /// Longest key in bytes: it becomes part of a queue name, of which AMQP allows 255 bytes.
    pub const KEY_LIMIT_BYTES: usize = 120;

    /// A normal, repeatable message with a new id, without key and headers.
    #[must_use]
    pub fn new(body: Bytes) -> Self {
        Self {
            id: Uuid::now_v7(),
            lane: Lane::Normal,
            key: None,
            headers: Headers::new(),
            body,
            repeat: Repeat::AtLeastOnce,
        }
    }
}

/// Shows everything but headers and body, which may hold what must not be logged.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("lane", &self.lane)
            .field("key", &self.key)
            .field("body_bytes", &self.body.len())
            .field("repeat", &self.repeat)
            .finish_non_exhaustive()
    }
}

/// How the holder of a delivery ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Worked. The reply, if the message was asked, is sent first, then the message is acknowledged.
    Done {
        /// The answer for [`super::Broker::ask`]; ignored for published messages.
        reply: Option<Bytes>,
    },
    /// Failed for now: again after this time at the earliest, attempt + 1.
    Retry {
        /// Delay.
        after: Duration,
        /// Replaces the body, when the job has made progress.
        body: Option<Bytes>,
    },
    /// Not now: again after this time at the earliest, attempt unchanged (a delayed check is not a failure).
    Later {
        /// Delay.
        after: Duration,
        /// Replaces the body.
        body: Option<Bytes>,
    },
    /// This process is stopping: again at once, for anybody, attempt unchanged.
    GiveBack,
    /// Failed for good.
    DeadLetter(Cause),
}

/// Why a message is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// A short stable word to filter by: `undecodable`, `attempts`, `refused`, ...
    pub code: String,
    /// One sentence for the operator, without secrets. Cut at 1,000 bytes.
    pub detail: String,
}

/// Settles one delivery at its broker. Implemented by each broker; used through [`Delivery`].
pub trait Settler: Send + 'static {
    /// Carries out `settlement`. For [`Settlement::Done`] the reply goes first.
    fn settle(self: Box<Self>, settlement: Settlement) -> BoxFuture<'static, Result<(), BrokerError>>;

    /// The holder is gone without a word: the message comes back with attempt + 1. Must not block.
    fn abandon(self: Box<Self>);

    /// Whether the broker has taken the message back already, e.g. because the link it came by is gone: settling it
    /// would fail, and somebody else gets it. A receiver does not hand out such a one from its buffer (promise 2).
    fn is_lost(&self) -> bool {
        false
    }
}

/// A message in the hands of its holder. It is consumed by settling it; dropping it unsettled counts as the holder's
/// death (promise 2).
pub struct Delivery {
    /// The message as it was published, but for a body replaced by a settlement.
    pub message: Message,
    /// 1 for the first time; counts retries, and crashes of earlier holders.
    pub attempt: u32,
    /// When it was first published.
    pub published: Timestamp,
    /// When its caller stops waiting; `None` for published messages.
    pub deadline: Option<Timestamp>,
    /// How the broker names the place it came from, for spans: `messaging.destination.name`.
    pub destination: String,
    settler: Option<Box<dyn Settler>>,
}

impl Delivery {
    /// For brokers: hands a message over.
    #[must_use]
    pub fn new(
        message: Message,
        attempt: u32,
        published: Timestamp,
        deadline: Option<Timestamp>,
        destination: String,
        settler: Box<dyn Settler>,
    ) -> Self {
        Self { message, attempt, published, deadline, destination, settler: Some(settler) }
    }

    /// Whether the broker has taken the message back already, as far as this process knows: somebody else gets it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.settler.as_ref().is_some_and(|settler| settler.is_lost())
    }

    /// Ends the delivery. Takes as long as the broker takes no messages, when it needs one to come again or to be kept as a
    /// dead letter, unless its receiver is closed.
    ///
    /// # Errors
    /// The settlement may not have arrived; the message then comes back (at least once).
    pub async fn settle(mut self, settlement: Settlement) -> Result<(), BrokerError> {
        match self.settler.take() {
            Some(settler) => settler.settle(settlement).await,
            None => Ok(()),
        }
    }

    /// Gives it back without waiting, for brokers whose settling sends when it is called and not when it is awaited. Also
    /// outside the runtime.
    pub(super) fn give_back(mut self) {
        if let Some(settler) = self.settler.take() {
            drop(settler.settle(Settlement::GiveBack));
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(settler) = self.settler.take() {
            settler.abandon();
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("published", &self.published)
            .field("deadline", &self.deadline)
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

/// A stream of deliveries from one lane of one queue.
pub struct Receiver {
    deliveries: mpsc::Receiver<Delivery>,
    close: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

impl Receiver {
    /// For brokers: `close` stops the flow; it is awaited before the deliveries still buffered are given back.
    #[must_use]
    pub fn new(
        deliveries: mpsc::Receiver<Delivery>,
        close: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
    ) -> Self {
        Self { deliveries, close }
    }

    /// The next delivery; `None` only after the broker was closed. Cancel-safe.
    ///
    /// Let go here is what is no longer to be handed out: a request whose caller stopped waiting while it lay in the
    /// buffer (promise 5; the broker deletes it when it comes back), and a message that the broker has taken back
    /// meanwhile (promise 2).
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            let delivery = self.deliveries.recv().await?;
            let awaited = delivery.deadline.is_none_or(|deadline| deadline > Timestamp::now());
            if awaited && !delivery.is_lost() {
                return Some(delivery);
            }
        }
    }

    /// Stops receiving and gives back everything not yet handed out. Deliveries handed out before stay with their
    /// holders.
    pub async fn close(mut self) {
        (self.close)().await;
        self.deliveries.close();
        while let Some(delivery) = self.deliveries.recv().await {
            // On an error the broker hands the message out again by itself.
            let _ = delivery.settle(Settlement::GiveBack).await;
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// A message that nobody could work.
#[derive(Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message as it was last, with its id.
    pub message: Message,
    /// The queue it came from, by [`Queue::name`].
    pub queue: String,
    /// Why.
    pub cause: Cause,
    /// Attempts made.
    pub attempts: u32,
    /// When it was first published.
    pub published: Timestamp,
    /// When it became a dead letter.
    pub died: Timestamp,
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("message", &self.message)
            .field("queue", &self.queue)
            .field("cause", &self.cause)
            .field("attempts", &self.attempts)
            .field("published", &self.published)
            .field("died", &self.died)
            .finish()
    }
}

/// Which dead letters are meant. Members that are `None` or empty match all; the others must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// [`Queue::name`].
    pub queue: Option<String>,
    /// [`Cause::code`].
    pub cause: Option<String>,
    /// [`Message::key`].
    pub key: Option<String>,
    /// Died at this time or later.
    pub died_from: Option<Timestamp>,
    /// Died before this time.
    pub died_before: Option<Timestamp>,
    /// One of these ids.
    pub ids: BTreeSet<Uuid>,
    /// At most this many, oldest first; 0 = all.
    pub limit: usize,
}

impl DeadLetterFilter {
    /// Whether `letter` is meant; [`DeadLetterFilter::limit`] is the caller's to count.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        self.queue.as_ref().is_none_or(|queue| *queue == letter.queue)
            && self.cause.as_ref().is_none_or(|cause| *cause == letter.cause.code)
            && self.key.as_ref().is_none_or(|key| letter.message.key.as_ref() == Some(key))
            && self.died_from.is_none_or(|from| letter.died >= from)
            && self.died_before.is_none_or(|before| letter.died < before)
            && (self.ids.is_empty() || self.ids.contains(&letter.message.id))
    }
}

/// What a broker looks like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// The link is up (RabbitMQ) or the file is open (SQLite).
    pub connected: bool,
    /// Why the broker takes no messages at present, in its own words.
    pub blocked: Option<String>,
    /// Every lane of every queue; empty when the broker cannot be reached.
    pub queues: Vec<QueueDepth>,
}

/// How much waits in one lane of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDepth {
    /// [`Queue::name`].
    pub queue: &'static str,
    /// The lane.
    pub lane: Lane,
    /// Messages ready to be handed out (messages in hands and delayed messages not counted).
    pub ready: u64,
    /// Receivers in the whole deployment.
    pub receivers: u64,
    /// Dead letters of the queue, both lanes; the same number stands in both lanes' rows.
    pub dead: u64,
}

/// Why the broker did not do what was asked of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// The queue is at its limit. Nothing was stored.
    #[error("the queue is full")]
    Full,
    /// No such queue at the broker. Nothing was stored.
    #[error("the broker has no queue for the message: {0}")]
    Unroutable(String),
    /// The broker cannot be reached, or takes no messages at present. Nothing was stored.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// No answer in time or the link broke: the message may have been stored.
    #[error("the broker did not confirm the message: {0}")]
    Unknown(String),
    /// No reply before the deadline.
    #[error("no reply before the deadline")]
    Timeout,
    /// The body or the key of the message, or the reply, is larger than its limit. Nothing was stored.
    #[error("the message has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Size of the body or key.
        bytes: usize,
        /// [`super::BODY_LIMIT_BYTES`] or [`Message::KEY_LIMIT_BYTES`].
        limit: usize,
    },
    /// The storage of the embedded queue failed.
    #[error("the queue's file failed: {0}")]
    Storage(String),
    /// The broker will not have us as we are: wrong credentials, no such virtual host, or queues that exist with other
    /// arguments. Waiting does not help.
    #[error("the broker refuses this configuration: {0}")]
    Refused(String),
    /// Another process already receives from the embedded queue, which serves one.
    #[error("{0}")]
    InUse(String),
    /// [`super::Broker::close`] was called.
    #[error("the broker was closed by this process")]
    Closed,
}

impl BrokerError {
    /// Its class in spans: `error.type`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Unroutable(_) => "returned",
            Self::Unavailable(_) => "connection",
            Self::Unknown(_) => "unknown",
            Self::Timeout => "timeout",
            Self::TooLarge { .. } => "too_large",
            Self::Storage(_) => "storage",
            Self::Refused(_) => "refused",
            Self::InUse(_) => "in_use",
            Self::Closed => "closed",
        }
    }

    /// Whether the same call may succeed in a while.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Full | Self::Unavailable(_) | Self::Unknown(_) | Self::Timeout | Self::Storage(_))
    }
}
