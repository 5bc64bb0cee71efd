//! The floor: what lapin and the broker need for a request and its reply, and nothing else.
//!
//! As near to the product's shape as a bare echo can be: requests go with confirms and `mandatory` to a durable classic
//! queue, not persistent and with an expiration; replies come by direct reply-to on the requests' channel; the server
//! consumes with acknowledgements and the product's prefetch, and replies on a connection of its own. It works inline,
//! one request after the other, which is the cheapest way there is. No HTTP, no JSON, no seal, no spans.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::sync::oneshot;

use crate::load::Caller;

const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Where the server finds the broker. In the environment: a URL holds a password, and arguments can be seen by all.
pub const URL_VARIABLE: &str = "BENCH_RABBITMQ_URL";

/// As `BRIDGE_WORKER_CONCURRENCY` of the product.
const PREFETCH: u16 = 64;

async fn connect(url: &str) -> anyhow::Result<Connection> {
    Connection::connect(url, ConnectionProperties::default()).await.context("cannot connect to RabbitMQ")
}

/// The replying end. Runs until it is killed.
pub async fn serve(queue: &str, reply_bytes: usize) -> anyhow::Result<()> {
    let url = std::env::var(URL_VARIABLE).with_context(|| format!("{URL_VARIABLE} is not set"))?;
    let reply = vec![b'x'; reply_bytes];
    let (consuming, publishing) = (connect(&url).await?, connect(&url).await?);
    let (requests, replies) = (consuming.create_channel().await?, publishing.create_channel().await?);
    requests.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut consumer =
        requests.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
    while let Some(request) = consumer.next().await {
        let request = request?;
        let asked = &request.properties;
        let (Some(address), Some(id)) = (asked.reply_to().clone(), asked.correlation_id().clone()) else {
            anyhow::bail!("a request without an address");
        };
        let properties = BasicProperties::default().with_correlation_id(id).with_delivery_mode(1);
        replies.basic_publish("".into(), address, BasicPublishOptions::default(), &reply, properties).await?;
        request.ack(BasicAckOptions::default()).await?;
    }
    anyhow::bail!("the broker ended the consumer")
}

/// The asking end, shared by all callers.
pub struct Echo {
    channel: Channel,
    queue: String,
    request: Bytes,
    reply_bytes: usize,
    next: AtomicU64,
    waiting: Mutex<HashMap<String, oneshot::Sender<usize>>>,
    _connection: Connection,
}

impl Echo {
    /// Connects and declares the queue.
    pub async fn open(url: &str, queue: &str, request: Bytes, reply_bytes: usize) -> anyhow::Result<Arc<Self>> {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
        let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut replies = channel.basic_consume(REPLY_TO.into(), "".into(), no_ack, FieldTable::default()).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let echo = Arc::new(Self {
            channel,
            queue: queue.to_owned(),
            request,
            reply_bytes,
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            _connection: connection,
        });
        let listener = Arc::clone(&echo);
        tokio::spawn(async move {
            while let Some(Ok(reply)) = replies.next().await {
                let id = reply.properties.correlation_id();
                let waiting = id.as_ref().and_then(|id| listener.waiting().remove(id.as_str()));
                if let Some(waiting) = waiting {
                    let _ = waiting.send(reply.data.len());
                }
            }
        });
        Ok(echo)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<usize>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many callers on the one channel.
    pub fn callers(self: &Arc<Self>, count: usize) -> Vec<Asker> {
        (0..count).map(|_| Asker(Arc::clone(self))).collect()
    }

    /// Takes the queue away again.
    pub async fn remove(&self) {
        let _ = self.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await;
    }

    async fn ask(&self) -> anyhow::Result<()> {
        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let (sender, reply) = oneshot::channel();
        self.waiting().insert(id.clone(), sender);
        let properties = BasicProperties::default()
            .with_reply_to(REPLY_TO.into())
            .with_correlation_id(id.as_str().into())
            .with_delivery_mode(1)
            .with_expiration("50000".into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let published =
            self.channel.basic_publish("".into(), self.queue.as_str().into(), options, &self.request, properties);
        let (confirmation, reply) = tokio::join!(published.await?, reply);
        match confirmation? {
            Confirmation::Ack(None) => {}
            other => anyhow::bail!("not confirmed: {other:?}"),
        }
        anyhow::ensure!(reply? == self.reply_bytes, "not the reply expected");
        Ok(())
    }
}

/// A caller of the echo.
pub struct Asker(Arc<Echo>);

impl Caller for Asker {
    async fn call(&mut self) -> anyhow::Result<()> {
        self.0.ask().await
    }
}
