//! The seam on RabbitMQ, 3.10 and later, through the AMQP library `lapin`. `rabbitmq.md` has the measurements behind
//! it.
//!
//! Two connections, because an alarm at the broker stops everything on a connection that publishes, acknowledgements
//! included:
//!
//! - *publishing*: durable messages (`publisher`), requests and their replies (`asks`), replies of workers, moves to the
//!   ladder and to the dead letters;
//! - *consuming*: deliveries and acknowledgements (`consumer`, `settle`), leases (`lease`), looks at dead letters
//!   (`dead`), watches (`retained`), counts.
//!
//! Each is kept up by a task of its own (`link`), which declares the topology (`topology`) before anybody uses a new
//! connection. `envelope` is the form of a message on the wire, `ladder` the arithmetic of delays, `names` what things
//! are called.
//!
//! Every wait has a limit; nothing here waits for ever but the tasks that heal.

mod address;
mod asks;
mod consumer;
mod dead;
mod envelope;
mod ladder;
mod lease;
mod link;
mod names;
mod probe;
mod publisher;
mod retained;
mod settle;
mod topology;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ConnectionProperties};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::address::Address;
use self::asks::{Asks, Request};
use self::envelope::{Envelope, fits, now_ms};
use self::lease::Leases;
use self::link::{Link, Session, limited};
use self::names::Names;
use self::publisher::Publisher;
use super::message::{
    BrokerError, DeadLetter, DeadLetterFilter, Headers, Health, Lane, Message, Queue, QueueDepth, Receiver, Repeat,
    Style, Topology,
};
use super::{BODY_LIMIT_BYTES, Broker, PUBLISH_LIMIT};

/// The namespace when none is set.
pub const DEFAULT_NAMESPACE: &str = "bridge";

/// How long [`RabbitMq::connect`] goes on trying. A broker that starts together with this process takes about this
/// long.
const FIRST_LINK_LIMIT: Duration = Duration::from_secs(15);
/// How long [`Broker::close`] waits for settlements in flight, and for receivers to stop.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How long [`Broker::check`] waits for all counts. A probe asks more often than this.
const CHECK_LIMIT: Duration = Duration::from_secs(3);

/// How to reach the broker, and what is kept there.
#[derive(Clone)]
pub struct Settings {
    /// `amqp://` or `amqps://`, each a node of the same cluster, tried in turn. They hold the password.
    pub urls: Vec<String>,
    /// Prefix of everything declared, so that deployments can share a broker: 1 to 60 letters, digits, dashes,
    /// underscores or full stops. [`DEFAULT_NAMESPACE`] unless set.
    pub namespace: String,
    /// Shown in the broker's list of connections.
    pub connection_name: String,
    /// Everything that is declared.
    pub topology: &'static Topology,
}

/// Shows no URLs.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("nodes", &self.urls.len())
            .field("namespace", &self.namespace)
            .field("connection_name", &self.connection_name)
            .finish_non_exhaustive()
    }
}

/// The broker. Heals itself for ever; see [`Broker`] for its promises.
#[derive(Clone)]
pub struct RabbitMq {
    inner: Arc<Inner>,
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("names", &self.inner.names).field("connected", &self.connected()).finish()
    }
}

/// What all clones, receivers and deliveries share. With the last of them the links close.
struct Inner {
    names: Names,
    topology: &'static Topology,
    publishing: Arc<Link>,
    consuming: Link,
    publisher: Publisher,
    asks: Asks,
    leases: Arc<Leases>,
    /// Settlements in flight.
    settlements: TaskTracker,
    /// Receivers and watchers.
    receivers: TaskTracker,
    dead_letter_turns: dead::Turns,
    /// When it connected first, in ms since 1970.
    since_ms: i64,
    retain_turns: Mutex<()>,
    /// Where settlements of dropped deliveries run: a drop may happen anywhere.
    runtime: Handle,
    /// [`Broker::close`] was called.
    closed: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.publishing.stop();
        self.consuming.stop();
    }
}

impl RabbitMq {
    /// Connects, declares the topology, and returns when both links are up for the first time. From then on they heal
    /// themselves.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] at once for an unreadable URL or namespace, wrong credentials, a missing virtual host,
    /// or a queue that exists with other arguments; [`BrokerError::Unavailable`] when no node could be reached within
    /// 15 s.
    pub async fn connect(settings: Settings) -> Result<Self, BrokerError> {
        let Settings { urls, namespace, connection_name, topology } = settings;
        let names = Names::new(&namespace, topology)?;
        let nodes =
            urls.iter().zip(1..).map(|(url, n)| Address::parse(url, n)).collect::<Result<Arc<[Address]>, _>>()?;
        if nodes.is_empty() {
            return Err(BrokerError::Refused("no broker URL is given".to_owned()));
        }
        let until = Instant::now() + FIRST_LINK_LIMIT;
        let publishing = {
            let names = names.clone();
            let prepare: link::Prepare = Arc::new(move |connection| {
                let names = names.clone();
                Box::pin(async move {
                    topology::declare(connection, &names, topology).await?;
                    retained::seed(connection, &names, topology).await
                })
            });
            Arc::new(Link::open("publishing", &connection_name, nodes.clone(), prepare))
        };
        // One after the other: two connections that create the same queues at once only get in each other's way.
        if let Err(error) = publishing.first(until).await {
            publishing.stop();
            return Err(error);
        }
        let consuming = {
            let names = names.clone();
            let prepare: link::Prepare = Arc::new(move |connection| {
                let names = names.clone();
                Box::pin(async move { topology::declare(connection, &names, topology).await })
            });
            Link::open("consuming", &connection_name, nodes, prepare)
        };
        let first = consuming.first(until).await;
        let asks = Asks::open(publishing.clone());
        let inner = Arc::new(Inner {
            names,
            topology,
            publishing,
            consuming,
            publisher: Publisher::new(),
            asks,
            leases: Arc::default(),
            settlements: TaskTracker::new(),
            receivers: TaskTracker::new(),
            dead_letter_turns: dead::Turns::default(),
            since_ms: envelope::now_ms(),
            retain_turns: Mutex::default(),
            runtime: Handle::current(),
            closed: CancellationToken::new(),
        });
        first.map(|()| Self { inner })
    }

    /// Whether both links are up. Asks nobody, so it costs nothing; a frozen broker shows within about 20 s
    /// (heartbeats).
    #[must_use]
    pub fn connected(&self) -> bool {
        !self.inner.closed.is_cancelled()
            && self.inner.publishing.session().is_some()
            && self.inner.consuming.session().is_some()
    }

    /// Deletes everything of the namespace at the broker, messages included. For tests, which leave nothing behind.
    ///
    /// # Errors
    /// [`BrokerError::Refused`] as for [`RabbitMq::connect`]; [`BrokerError::Unavailable`]: what was deleted stays deleted.
    #[doc(hidden)]
    pub async fn delete_namespace(settings: &Settings) -> Result<(), BrokerError> {
        let names = Names::new(&settings.namespace, settings.topology)?;
        let url = settings.urls.first().ok_or_else(|| BrokerError::Refused("no broker URL is given".to_owned()))?;
        let properties = ConnectionProperties::default().with_connection_name("tidying up".into());
        let connecting = Connection::connect_uri(Address::parse(url, 1)?.uri(), properties);
        let connection = limited("connect", connecting).await?;
        topology::delete(&connection, &names, settings.topology).await?;
        // Nothing depends on the goodbye.
        let _ = limited("say goodbye", connection.close(200, "deleted".into())).await;
        Ok(())
    }

    /// Runs a call unless the broker is closed, and ends it when it is.
    async fn open<T>(&self, call: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
        tokio::select! {
            biased;
            () = self.inner.closed.cancelled() => Err(BrokerError::Closed),
            outcome = call => outcome,
        }
    }
}

impl Inner {
    fn queue(&self, queue: &Queue) -> Result<&'static Queue, BrokerError> {
        let known = self.topology.queues.iter().find(|known| known.name == queue.name);
        known.ok_or_else(|| BrokerError::Unroutable(format!("the queue {} is not part of the topology", queue.name)))
    }

    fn retained(&self, name: &'static str) -> Result<(), BrokerError> {
        let known = self.topology.retained.contains(&name);
        let unknown = || BrokerError::Unroutable(format!("the retained value {name} is not part of the topology"));
        known.then_some(()).ok_or_else(unknown)
    }

    async fn depths(&self, session: &Session) -> Result<Vec<QueueDepth>, BrokerError> {
        let channel = session.channel().await?;
        let count = async |name: ShortString| {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let queue = limited("count", channel.queue_declare(name, options, FieldTable::default())).await?;
            Ok((u64::from(queue.message_count()), u64::from(queue.consumer_count())))
        };
        let mut rows = Vec::with_capacity(2 * self.topology.queues.len());
        for queue in self.topology.queues {
            let (dead, _) = count(self.names.dead(queue.name)).await?;
            for lane in [Lane::Urgent, Lane::Normal] {
                let (ready, consumers) = count(self.names.queue(queue.name, lane)).await?;
                let receivers = consumers.div_ceil(consumer::consumers(queue, lane));
                rows.push(QueueDepth { queue: queue.name, lane, ready, receivers, dead });
            }
        }
        Ok(rows)
    }
}

impl Broker for RabbitMq {
    const SYSTEM: &'static str = "rabbitmq";

    async fn publish(&self, queue: &Queue, message: Message, delay: Duration) -> Result<(), BrokerError> {
        let inner = &self.inner;
        self.open(async {
            let queue = inner.queue(queue)?;
            let now = now_ms();
            let mut envelope = Envelope::new(message, queue.name)?;
            envelope.not_before_ms = settle::not_before(delay, now);
            let parcel = inner.parcel(&envelope, queue, now);
            inner.publisher.publish(&inner.publishing, parcel, Instant::now() + PUBLISH_LIMIT).await
        })
        .await
    }

    async fn ask(&self, queue: &Queue, message: Message, deadline: Timestamp) -> Result<Bytes, BrokerError> {
        let inner = &self.inner;
        self.open(async {
            let queue = inner.queue(queue)?;
            let mut envelope = Envelope::new(message, queue.name)?;
            let now = Timestamp::now();
            let left = Duration::try_from(deadline.duration_since(now)).unwrap_or_default();
            if left.is_zero() {
                return Err(BrokerError::Timeout);
            }
            envelope.deadline_ms = Some(deadline.as_millisecond());
            let request = Request {
                exchange: inner.names.work(),
                routing_key: inner.names.key(queue.name, envelope.message.lane),
                body: envelope.message.body.clone(),
                repeatable: envelope.message.repeat == Repeat::AtLeastOnce,
                until: Instant::now() + left,
            };
            let transient = queue.style == Style::Ask;
            inner.asks.ask(&inner.publishing, &request, || envelope.properties(transient, now_ms())).await
        })
        .await
    }

    async fn receive(&self, queue: &Queue, lane: Lane, prefetch: u16) -> Result<Receiver, BrokerError> {
        self.open(async { consumer::receive(&self.inner, self.inner.queue(queue)?, lane, prefetch).await }).await
    }

    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>, BrokerError> {
        self.open(dead::list(&self.inner, filter)).await
    }

    async fn redrive(
        &self,
        filter: &DeadLetterFilter,
        per_second: u32,
        readdress: fn(&mut Headers),
    ) -> Result<u64, BrokerError> {
        self.open(dead::redrive(&self.inner, filter, per_second, readdress)).await
    }

    async fn discard(&self, filter: &DeadLetterFilter) -> Result<u64, BrokerError> {
        self.open(dead::discard(&self.inner, filter)).await
    }

    async fn retain(&self, name: &'static str, value: Bytes) -> Result<(), BrokerError> {
        self.open(async {
            self.inner.retained(name)?;
            fits(value.len(), BODY_LIMIT_BYTES)?;
            retained::retain(&self.inner, name, value).await
        })
        .await
    }

    async fn watch(&self, name: &'static str) -> Result<watch::Receiver<Option<Bytes>>, BrokerError> {
        self.open(async {
            self.inner.retained(name)?;
            retained::watch(&self.inner, name).await
        })
        .await
    }

    async fn check(&self) -> Health {
        if self.inner.closed.is_cancelled() {
            return Health::default();
        }
        let (publishing, consuming) = (self.inner.publishing.session(), self.inner.consuming.session());
        let blocked = publishing.as_ref().and_then(|session| session.blocked());
        let (Some(_), Some(session)) = (publishing, consuming) else {
            return Health { connected: false, blocked, queues: Vec::new() };
        };
        match timeout(CHECK_LIMIT, self.inner.depths(&session)).await {
            Ok(Ok(queues)) => Health { connected: true, blocked, queues },
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "the queues could not be counted");
                Health { connected: session.connection.status().connected(), blocked, queues: Vec::new() }
            }
            // Up as far as the link knows, yet nobody answers: a frozen broker, before the heartbeat shows it.
            Err(_) => Health { connected: false, blocked, queues: Vec::new() },
        }
    }

    async fn close(&self) {
        let inner = &self.inner;
        inner.closed.cancel();
        inner.receivers.close();
        inner.settlements.close();
        // Receivers give back what nobody had in hands, which are settlements too.
        let drained = timeout(CLOSE_LIMIT, async {
            inner.receivers.wait().await;
            inner.settlements.wait().await;
        });
        if drained.await.is_err() {
            tracing::warn!("some settlements did not end in time; their messages come back");
        }
        inner.consuming.close().await;
        inner.publishing.close().await;
    }
}
