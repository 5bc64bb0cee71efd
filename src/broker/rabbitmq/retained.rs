//! Retained values (promise 11): a stream for each, whose last entry is the value.
//!
//! A stream has one order for all readers, keeps its last entry for good, and hands out its end on request, so a
//! watcher sees the last value and every change without a gap. What it cannot say is that it is empty: a reader of an
//! empty stream just waits, and the counts that the broker reports lag behind. So no stream is ever empty: before any
//! link is used, its first entry says "no value yet". It must not be written after a value, or it would hide it. Hence
//! an exchange stands for "this stream has its first entry": who finds it missing takes a lock, looks again, writes the
//! entry, and then declares the exchange. Values are written only through links that have done so.
//!
//! "Last" in a stream means its last chunk, the entries written together, so a reader first sees what came in the same
//! chunk before the last one. The entries of a chunk arrive together; a watcher reads on until it is quiet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ExchangeKind};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Inner;
use super::lease::{lock, unlock};
use super::link::{CALL_LIMIT, Session, failure, is_missing, limited};
use super::names::Names;
use super::publisher::Parcel;
use crate::broker::{BrokerError, LINK_PATIENCE, PUBLISH_LIMIT, Topology};

/// Marks the first entry.
const NONE: &str = "x-none";
/// How long no entry may come until the chunk counts as read. Its entries come in one go.
const QUIET: Duration = Duration::from_millis(60);
/// The longest a new watcher waits for the last value. A stream's leader may just be being elected.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// Entries on their way and not acknowledged; more than a chunk of entries written one by one has.
const PREFETCH: u16 = 200;
/// Pause before a broken watch is taken up again, and between looks at the lock.
const PAUSE: Duration = Duration::from_millis(200);

/// Writes the first entry of each stream that has none yet.
///
/// # Errors
/// [`BrokerError::Unavailable`] or [`BrokerError::Refused`].
pub(super) async fn seed(connection: &Connection, names: &Names, topology: &Topology) -> Result<(), BrokerError> {
    for name in topology.retained {
        if is_seeded(connection, names, name).await? {
            continue;
        }
        let lock_name = names.lock(&format!("retained.{name}"));
        // Whoever has it is about to seed; the caller's own limit ends this.
        let held = loop {
            if let Some(channel) = lock(connection, lock_name.clone()).await? {
                break channel;
            }
            tokio::time::sleep(PAUSE).await;
        };
        let seeded = match is_seeded(connection, names, name).await {
            Ok(false) => seed_one(connection, names, name).await,
            other => other.map(drop),
        };
        unlock(&held, lock_name).await;
        seeded?;
    }
    Ok(())
}

async fn is_seeded(connection: &Connection, names: &Names, name: &str) -> Result<bool, BrokerError> {
    // A channel of its own: the answer "no" closes it.
    let channel = limited("open a channel", connection.create_channel()).await?;
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let look = channel.exchange_declare(names.seeded(name), ExchangeKind::Fanout, options, FieldTable::default());
    match timeout(CALL_LIMIT, look).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) if is_missing(&error) => Ok(false),
        Ok(Err(error)) => Err(failure("look for a retained value", &error)),
        Err(_) => Err(BrokerError::Unavailable("could not look for a retained value: no answer in time".to_owned())),
    }
}

async fn seed_one(connection: &Connection, names: &Names, name: &str) -> Result<(), BrokerError> {
    let channel = limited("open a channel", connection.create_channel()).await?;
    limited("turn on confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let mut headers = FieldTable::default();
    headers.insert(NONE.into(), AMQPValue::Boolean(true));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let confirmed = async {
        channel.basic_publish(ShortString::default(), names.retained(name), options, &[], properties).await?.await
    };
    match limited("write the first entry of a retained value", confirmed).await? {
        Confirmation::Ack(None) => {}
        _ => return Err(BrokerError::Unavailable("the stream of a retained value takes no entry".to_owned())),
    }
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let mark = channel.exchange_declare(names.seeded(name), ExchangeKind::Fanout, options, FieldTable::default());
    limited("mark a retained value", mark).await
}

/// # Errors
/// As [`crate::broker::Broker::retain`].
pub(super) async fn retain(inner: &Inner, name: &'static str, value: Bytes) -> Result<(), BrokerError> {
    let parcel = Parcel {
        exchange: ShortString::default(),
        routing_key: inner.names.retained(name),
        mandatory: true,
        properties: BasicProperties::default().with_delivery_mode(2),
        body: value,
    };
    let until = Instant::now() + PUBLISH_LIMIT;
    // One at a time, so that the chunks of the stream have one entry each but for writers in several processes.
    let _turn = tokio::time::timeout_at(until, inner.retain_turns.lock())
        .await
        .map_err(|_| BrokerError::Unavailable("other values are still being written".to_owned()))?;
    inner.publisher.publish(&inner.publishing, parcel, until).await
}

/// # Errors
/// As [`crate::broker::Broker::watch`].
pub(super) async fn watch(
    inner: &Arc<Inner>,
    name: &'static str,
) -> Result<watch::Receiver<Option<Bytes>>, BrokerError> {
    let session = inner.consuming.wait(Instant::now() + LINK_PATIENCE).await?;
    let (values, out) = watch::channel(None);
    let mut stream = timeout(FIRST_LIMIT, Stream::open(session, inner.names.retained(name)))
        .await
        .unwrap_or_else(|_| Err(BrokerError::Unavailable("no answer about a retained value in time".to_owned())))?;
    let first = timeout(FIRST_LIMIT, stream.newest()).await;
    values.send_replace(first.map_err(|_| BrokerError::Unavailable("no retained value in time".to_owned()))??);
    let stop = inner.closed.clone();
    let inner_kept = inner.clone();
    inner.receivers.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = values.closed() => {}
            () = follow(&inner_kept, stream, name, &values) => {}
        }
    });
    Ok(out)
}

/// Passes values on for ever, on one link after the other.
async fn follow(inner: &Inner, first: Stream, name: &'static str, values: &watch::Sender<Option<Bytes>>) {
    let mut stream = first;
    loop {
        while let Ok(value) = stream.next().await {
            change(values, value);
        }
        stream = loop {
            tokio::time::sleep(PAUSE).await;
            let Ok(session) = inner.consuming.current().await else { return };
            let Ok(mut stream) = Stream::open(session, inner.names.retained(name)).await else { continue };
            // Not the entries before the last one: they are older than what watchers have seen.
            if let Ok(Ok(value)) = timeout(FIRST_LIMIT, stream.newest()).await {
                change(values, value);
                break stream;
            }
        };
    }
}

fn change(values: &watch::Sender<Option<Bytes>>, value: Option<Bytes>) {
    values.send_if_modified(|current| {
        let changed = *current != value;
        *current = value;
        changed
    });
}

/// A consumer at the end of a stream.
struct Stream {
    session: Arc<Session>,
    consumer: Consumer,
    _channel: Channel,
}

impl Stream {
    async fn open(session: Arc<Session>, name: ShortString) -> Result<Self, BrokerError> {
        let channel = session.channel().await?;
        limited("set the prefetch", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("last".into()));
        let consume = channel.basic_consume(name, ShortString::default(), BasicConsumeOptions::default(), arguments);
        let consumer = limited("watch a retained value", consume).await?;
        Ok(Self { session, consumer, _channel: channel })
    }

    /// The last value, once the entries have stopped coming.
    async fn newest(&mut self) -> Result<Option<Bytes>, BrokerError> {
        let mut newest = self.next().await?;
        while let Ok(value) = timeout(QUIET, self.next()).await {
            newest = value?;
        }
        Ok(newest)
    }

    /// The next value. Cancel-safe but for the acknowledgement, which only makes room for more.
    async fn next(&mut self) -> Result<Option<Bytes>, BrokerError> {
        let entry = tokio::select! {
            entry = self.consumer.next() => entry,
            () = self.session.ended.cancelled() => None,
        };
        let Delivery { acker, properties, data, .. } = match entry {
            Some(Ok(entry)) => entry,
            Some(Err(error)) => return Err(failure("watch a retained value", &error)),
            None => return Err(BrokerError::Unavailable("the watch of a retained value has ended".to_owned())),
        };
        tokio::spawn(async move {
            let _ = limited("acknowledge", acker.ack(BasicAckOptions::default())).await;
        });
        let none = properties.headers().as_ref().is_some_and(|headers| headers.contains_key(NONE));
        Ok((!none).then(|| Bytes::from(data)))
    }
}
