//! The floor: publishes that wait for their confirm, and nothing else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::broker::{Broker as _, Lane, Message};
use defender_bridge::job::{self, TOPOLOGY};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use uuid::Uuid;

use crate::Timing;
use crate::hook;
use crate::load::{self, Caller, Cell};
use crate::process::Meter;

/// Publishes to a queue of RabbitMQ.
struct Publisher {
    channel: Arc<Channel>,
    queue: Arc<str>,
    body: Bytes,
}

impl Caller for Publisher {
    async fn call(&mut self) -> anyhow::Result<()> {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(Uuid::now_v7().to_string().into())
            .with_content_type("application/json".into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let published =
            self.channel.basic_publish("".into(), (&*self.queue).into(), options, &self.body, properties).await?;
        match published.await? {
            Confirmation::Ack(None) => Ok(()),
            other => anyhow::bail!("not confirmed: {other:?}"),
        }
    }
}

/// The arguments of the product's durable queues.
fn arguments() -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-max-length", AMQPValue::LongLongInt(TOPOLOGY.durable_limit.into())),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
        ("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into())),
    ] {
        table.insert(name.into(), value);
    }
    table
}

pub async fn on_rabbitmq(url: &str, callers: usize, timing: Timing) -> anyhow::Result<Cell> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.context("RabbitMQ")?;
    let channel = Arc::new(connection.create_channel().await?);
    let queue: Arc<str> = format!("test-{}-floor", Uuid::now_v7().simple()).into();
    channel.queue_declare((&*queue).into(), QueueDeclareOptions::durable(), arguments()).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let body = hook::message();
    let publisher = || Publisher { channel: Arc::clone(&channel), queue: Arc::clone(&queue), body: body.clone() };
    let cell = load::run((0..callers).map(|_| publisher()).collect(), &Meter::default(), timing).await;
    channel.queue_delete((&*queue).into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "measured".into()).await?;
    cell
}

/// Publishes to the embedded queue.
struct Storer {
    broker: Sqlite,
    body: Bytes,
}

impl Caller for Storer {
    async fn call(&mut self) -> anyhow::Result<()> {
        let message = Message { lane: Lane::Urgent, ..Message::new(self.body.clone()) };
        Ok(self.broker.publish(&job::HOSTS, message, Duration::ZERO).await?)
    }
}

pub async fn on_sqlite(callers: usize, timing: Timing, folder: &Path) -> anyhow::Result<Cell> {
    let path = folder.join(format!("{}.sqlite", Uuid::now_v7().simple()));
    let broker = Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await?;
    let storers = (0..callers).map(|_| Storer { broker: broker.clone(), body: hook::message() }).collect();
    let cell = load::run(storers, &Meter::default(), timing).await;
    broker.close().await;
    cell
}
