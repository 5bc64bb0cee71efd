//! What a deployment declares at its broker, at every new connection and before anybody uses it.
//!
//! Arguments are constants or come from the [`Topology`], never from settings: a queue cannot change its arguments in
//! place, so a change needs a new name (`rabbitmq.md` 1, rule 8).
//!
//! | per | exchange | queues |
//! |---|---|---|
//! | deployment | `work` (direct) | |
//! | queue of the topology | | one per lane (asks: classic, durable: quorum); one of dead letters (quorum) |
//! | rung of the ladder | `delay.RUNG` (fanout) | quorum; its messages expire back into `work` under their own key |
//! | retained value | | a stream |
//!
//! There is no alternate exchange: with one, a message that no queue wanted would be confirmed as stored.

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};

use super::ladder::RUNGS;
use super::link::limited;
use super::names::Names;
use crate::broker::{BrokerError, Lane, Queue, Spread, Style, Topology};

/// How many messages wait at most on one rung. A bound on disk, far above any expected number of delayed jobs.
const RUNG_LIMIT: i64 = 1_000_000;
/// How many dead letters one queue keeps. When it is full, the messages stay where they were (`DESIGN.md` 10, ruling
/// 2).
const DEAD_LIMIT: i64 = 100_000;
/// How often the broker hands a durable message out before it takes it for one that crashes every worker. A safety net
/// above the bounded attempts of the worker, not the retry policy. RabbitMQ 4 applies 20 when none is declared.
pub(super) const DELIVERY_LIMIT: u32 = 100;
/// Listing dead letters hands each of them out and takes it back, which counts as a delivery.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// Streams of retained values are cut back to this size; the last value is never cut.
const RETAINED_LIMIT_BYTES: i64 = 2_000_000;
/// A stream is cut by whole segments, so they must be smaller than the limit.
const RETAINED_SEGMENT_BYTES: i64 = 500_000;

/// Declares everything but the first entries of the streams (see `retained`).
///
/// # Errors
/// [`BrokerError::Refused`] when something exists with other arguments, or may not be declared by this user.
pub(super) async fn declare(connection: &Connection, names: &Names, topology: &Topology) -> Result<(), BrokerError> {
    let channel = limited("open a channel", connection.create_channel()).await?;
    exchange(&channel, names.work(), ExchangeKind::Direct).await?;
    for rung in RUNGS {
        let name = names.delay(rung);
        exchange(&channel, name.clone(), ExchangeKind::Fanout).await?;
        queue(&channel, name.clone(), rung_arguments(names, rung.millis)).await?;
        bind(&channel, name.clone(), name, ShortString::default()).await?;
    }
    for each in topology.queues {
        queue(&channel, names.dead(each.name), dead_arguments()).await?;
        for lane in [Lane::Normal, Lane::Urgent] {
            let name = names.queue(each.name, lane);
            queue(&channel, name.clone(), work_arguments(names, topology, each)).await?;
            bind(&channel, name, names.work(), names.key(each.name, lane)).await?;
        }
    }
    for name in topology.retained {
        queue(&channel, names.retained(name), stream_arguments()).await?;
    }
    // Nothing depends on the goodbye.
    let _ = limited("close a channel", channel.close(200, "declared".into())).await;
    Ok(())
}

/// Deletes all that [`declare`] and the streams' first entries made.
///
/// # Errors
/// [`BrokerError::Unavailable`].
pub(super) async fn delete(connection: &Connection, names: &Names, topology: &Topology) -> Result<(), BrokerError> {
    let channel = limited("open a channel", connection.create_channel()).await?;
    let lanes = [Lane::Normal, Lane::Urgent];
    let works = topology.queues.iter().flat_map(|each| lanes.map(|lane| names.queue(each.name, lane)));
    let deads = topology.queues.iter().map(|each| names.dead(each.name));
    let streams = topology.retained.iter().map(|name| names.retained(name));
    let rungs = RUNGS.into_iter().map(|rung| names.delay(rung));
    for name in works.chain(deads).chain(streams).chain(rungs.clone()) {
        limited("delete a queue", channel.queue_delete(name, QueueDeleteOptions::default())).await?;
    }
    let seeded = topology.retained.iter().map(|name| names.seeded(name));
    for name in rungs.chain(seeded).chain([names.work()]) {
        limited("delete an exchange", channel.exchange_delete(name, ExchangeDeleteOptions::default())).await?;
    }
    Ok(())
}

fn work_arguments(names: &Names, topology: &Topology, queue: &Queue) -> FieldTable {
    let mut arguments = match queue.style {
        Style::Ask => table([("x-max-length", i64::from(topology.ask_limit).into())]),
        Style::Durable => table([
            ("x-queue-type", text("quorum")),
            ("x-max-length", i64::from(topology.durable_limit).into()),
            ("x-delivery-limit", i64::from(DELIVERY_LIMIT).into()),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(names.dead(queue.name).as_str())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]),
    };
    arguments.insert("x-overflow".into(), text("reject-publish"));
    if queue.spread == Spread::SingleActive {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}

fn rung_arguments(names: &Names, millis: i64) -> FieldTable {
    // No routing key of its own: the message keeps the one it was published with, which is its work queue's.
    table([
        ("x-queue-type", text("quorum")),
        ("x-max-length", RUNG_LIMIT.into()),
        ("x-overflow", text("reject-publish")),
        ("x-message-ttl", millis.into()),
        ("x-dead-letter-exchange", text(names.work().as_str())),
        ("x-dead-letter-strategy", text("at-least-once")),
    ])
}

fn dead_arguments() -> FieldTable {
    table([
        ("x-queue-type", text("quorum")),
        ("x-max-length", DEAD_LIMIT.into()),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", DEAD_DELIVERY_LIMIT.into()),
    ])
}

fn stream_arguments() -> FieldTable {
    table([
        ("x-queue-type", text("stream")),
        ("x-max-length-bytes", RETAINED_LIMIT_BYTES.into()),
        ("x-stream-max-segment-size-bytes", RETAINED_SEGMENT_BYTES.into()),
    ])
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn exchange(channel: &Channel, name: ShortString, kind: ExchangeKind) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let what = format!("declare the exchange {name}");
    limited(&what, channel.exchange_declare(name, kind, options, FieldTable::default())).await
}

async fn queue(channel: &Channel, name: ShortString, arguments: FieldTable) -> Result<(), BrokerError> {
    let what = format!("declare the queue {name}");
    limited(&what, channel.queue_declare(name, QueueDeclareOptions::durable(), arguments)).await.map(drop)
}

async fn bind(
    channel: &Channel,
    queue: ShortString,
    exchange: ShortString,
    key: ShortString,
) -> Result<(), BrokerError> {
    let what = format!("bind the queue {queue}");
    limited(&what, channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default())).await
}
