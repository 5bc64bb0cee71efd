//! The seam between the bridge and its queue.
//!
//! One trait, [`Broker`], and two implementations: [`rabbitmq`] for deployments with more than one worker, and
//! [`sqlite`] for one machine. Neither knows what a job is: bodies and headers are opaque here. What a message
//! *means* is decided in `job`, what becomes of it in `worker`.
//!
//! # The promises
//! Every case of the conformance suite (`tests/it/broker_conformance`) is named after one of these numbers and runs
//! on both implementations.
//!
//! 1. **Publish.** [`Broker::publish`] returns `Ok` only when the message is safe: confirmed and routed (RabbitMQ), or
//!    committed (SQLite). A queue that does not exist, a full queue, and a broker that cannot be reached or has blocked
//!    its publishers are errors, and the caller sees them within [`PUBLISH_LIMIT`].
//! 2. **At least once.** A message has one holder at a time. It comes back if its holder dies (attempt + 1) or drops
//!    the [`Delivery`] without settling it.
//! 3. **Delays.** [`Settlement::Retry`] (attempt + 1) and [`Settlement::Later`] (costs no attempt) never come early and
//!    block nobody; nor does a message published with a delay. Both may replace the body, so that a job can carry its
//!    progress. While the broker can be reached but takes no messages, what is settled so, or as a dead letter, stays with
//!    its holder, and costs no attempt. [`Settlement::GiveBack`] is at once and free. Attempts start at 1.
//! 4. **Opaque.** Body, headers, id, key and lane return byte for byte, the trace context among the headers.
//! 5. **Ask.** [`Broker::ask`] yields its own reply, or an error at its deadline, never another's reply. A late reply
//!    is dropped, an expired request is never handed to a worker. A full queue refuses at once. Requests and replies
//!    never share a queue. A request marked [`Repeat::AtMostOnce`] is acknowledged before it is handed over and never
//!    comes back.
//! 6. **Dead letters** keep id, body, headers, key, lane, cause and times. [`Broker::redrive`] keeps the id and
//!    restarts the attempts; two redrives at once work each dead letter once and lose none.
//! 7. **Receive** is cancel-safe and honours its prefetch. Closing a [`Receiver`] gives back what it had not handed
//!    out; closing loses nothing.
//! 8. **Lanes.** Urgent messages have a queue and a prefetch of their own, so they never wait behind normal ones.
//! 9. **Keys.** Of the messages of one queue that carry the same key, at most one is in some holder's hands at any
//!    time, in the whole deployment. Messages of other keys do not wait for it. Order within a key is not promised.
//! 10. **Single active consumer.** Of all receivers of a queue so marked one gets the messages; when it goes another
//!     takes over within seconds.
//! 11. **Retained values.** [`Broker::retain`] returns when the value is safe; every watcher in the deployment sees the
//!     last value when it begins and each change soon after. Values survive restarts.
//!
//! A handler may run twice for one message (2), so handlers must be safe to repeat unless they ask for
//! [`Repeat::AtMostOnce`].

pub mod message;
pub mod rabbitmq;
pub mod sqlite;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

pub use message::{
    BrokerError, Cause, DeadLetter, DeadLetterFilter, Delivery, Headers, Health, Lane, Message, Queue, QueueDepth,
    Receiver, Repeat, Settlement, Settler, Spread, Style, Topology,
};

/// The longest a caller of [`Broker::publish`] waits before it learns that the message could not be stored.
///
/// Less than the 5 s after which the webhook answers 503 (`cognito.md` 4.5), so that the refusal still reaches its
/// sender.
pub const PUBLISH_LIMIT: Duration = Duration::from_secs(4);

/// The longest a new [`Broker::ask`] waits for a lost link to the broker to come back before it gives up with
/// [`BrokerError::Unavailable`]. The broker's own restart is noticed in milliseconds and takes seconds; more than this
/// and the caller is better served by an error it can show.
pub const LINK_PATIENCE: Duration = Duration::from_secs(5);

/// The largest body a message or a reply may have, in bytes. RabbitMQ 4 refuses messages above 16 MiB
/// (`rabbitmq.md` 10); the rest is room for headers.
pub const BODY_LIMIT_BYTES: usize = 15 * 1024 * 1024;

/// A queue with the promises of the module's documentation.
///
/// Cheap to clone; clones share one link. The methods take `&self`, may be called from many tasks at once, and each has
/// a time limit of its own.
pub trait Broker: Clone + Send + Sync + 'static {
    /// What it is called in spans: `messaging.system` of the OpenTelemetry conventions.
    const SYSTEM: &'static str;

    /// Stores `message` durably in `queue`, to be handed out no earlier than `delay` from now.
    ///
    /// # Errors
    /// [`BrokerError::Unknown`] means that the message may have been stored: publish it again with the same id.
    /// All other errors mean that it was not.
    fn publish(
        &self,
        queue: &Queue,
        message: Message,
        delay: Duration,
    ) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Sends `message` to `queue` and waits for its reply until `deadline`.
    ///
    /// The request is not written to disk for longer than it is wanted. If the link breaks while the reply is
    /// awaited, a request marked [`Repeat::AtLeastOnce`] is sent once more when the link is back, with the same id.
    ///
    /// # Errors
    /// [`BrokerError::Full`] at once when the queue is at its limit, [`BrokerError::Timeout`] at the deadline,
    /// [`BrokerError::Unknown`] when the link broke under a request that may not be repeated.
    fn ask(
        &self,
        queue: &Queue,
        message: Message,
        deadline: Timestamp,
    ) -> impl Future<Output = Result<Bytes, BrokerError>> + Send;

    /// Begins to receive one lane of `queue`, with at most `prefetch` messages handed out and not yet settled.
    ///
    /// The receiver outlives interruptions of the link: it resumes by itself when the broker is back.
    ///
    /// # Errors
    /// When the broker cannot be reached at first, or the queue is not part of the topology.
    fn receive(
        &self,
        queue: &Queue,
        lane: Lane,
        prefetch: u16,
    ) -> impl Future<Output = Result<Receiver, BrokerError>> + Send;

    /// The dead letters that match `filter`, oldest first. They stay where they are.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, BrokerError>> + Send;

    /// Sends the dead letters that match `filter` back to their queues, with their ids, attempts starting at 1 again,
    /// at most `per_second` each second (0 = no limit). Returns how many. `readdress` is given the headers of each on
    /// its way, so that it can begin a new trace.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses one; those already sent stay sent, the others stay dead letters.
    fn redrive(
        &self,
        filter: &DeadLetterFilter,
        per_second: u32,
        readdress: fn(&mut Headers),
    ) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Deletes the dead letters that match `filter`. Returns how many.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    fn discard(&self, filter: &DeadLetterFilter) -> impl Future<Output = Result<u64, BrokerError>> + Send;

    /// Stores `value` as the deployment's last value of `name`, which must be one of [`Topology::retained`].
    ///
    /// # Errors
    /// As [`Broker::publish`].
    fn retain(&self, name: &'static str, value: Bytes) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Follows the retained value of `name`: `None` while there never was one. Returns when the last stored value is
    /// known.
    ///
    /// # Errors
    /// When the broker cannot be reached at first, or `name` is not part of the topology.
    fn watch(
        &self,
        name: &'static str,
    ) -> impl Future<Output = Result<watch::Receiver<Option<Bytes>>, BrokerError>> + Send;

    /// What the broker looks like now: reachable or not, blocked or not, and how much waits in each queue.
    fn check(&self) -> impl Future<Output = Health> + Send;

    /// Closes the link in order: waits for settlements in flight, ends every receiver. Later calls fail with
    /// [`BrokerError::Closed`].
    fn close(&self) -> impl Future<Output = ()> + Send;
}
