//! The sweep and the reader of Cognito's feeds, against the simulated brain, on both queues.

mod feeds;
mod groups;
mod searching;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use defender_bridge::broker::rabbitmq::RabbitMq;
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::broker::{Broker, Health, Lane, QueueDepth, Receiver, Settlement};
use defender_bridge::cognito::{self, Auth, Cognito, Priority};
use defender_bridge::containment::Policy;
use defender_bridge::desk::{self, Desk};
use defender_bridge::job::{HOSTS, Host, TOPOLOGY};
use defender_bridge::notify::Notifier;
use defender_bridge::outbound::Outbound;
use defender_bridge::retry;
use defender_bridge::shutdown::Shutdown;
use defender_bridge::simulator::cognito as brain;
use defender_bridge::simulator::{self, Control, Simulator};
use defender_bridge::sweep;
use defender_bridge::telemetry::metrics::Metrics;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::namespaces::rabbitmq_settings;
use crate::spawned::PATIENCE;

/// A queue of a test's own, to which workers link.
trait Place: Sized {
    type B: Broker;

    async fn new() -> Self;

    /// The link of one more worker.
    async fn link(&self) -> Self::B;
}

/// A file; all workers are of this process.
struct File {
    broker: Sqlite,
    _folder: TempDir,
}

impl Place for File {
    type B = Sqlite;

    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("queue.sqlite");
        let broker = Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.expect("the queue opens");
        Self { broker, _folder: folder }
    }

    async fn link(&self) -> Sqlite {
        self.broker.clone()
    }
}

/// A namespace at the test broker.
struct Namespace(defender_bridge::broker::rabbitmq::Settings);

impl Place for Namespace {
    type B = RabbitMq;

    async fn new() -> Self {
        Self(rabbitmq_settings("sweep", &TOPOLOGY))
    }

    async fn link(&self) -> RabbitMq {
        RabbitMq::connect(self.0.clone()).await.expect("RabbitMQ is there")
    }
}

/// Each case on both queues.
macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(<$crate::sweep::File as $crate::sweep::Place>::new().await).await;
            })+
        }
        mod on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs RabbitMQ"]
            async fn $case() {
                super::$case(<$crate::sweep::Namespace as $crate::sweep::Place>::new().await).await;
            })+
        }
    };
}
use on_both;

/// The brain, and how workers are set up for it.
struct World {
    simulator: Simulator,
    policy: Policy,
    version: &'static str,
    sweep_interval: Option<Duration>,
    feed_interval: Option<Duration>,
    self_user: Option<String>,
}

impl World {
    /// A brain with these hosts; workers sweep five times a second and read no feeds.
    async fn of(hosts: Vec<brain::Host>) -> Self {
        let data = brain::BrainData::Given(hosts);
        let brain = brain::BrainSettings { data, ..brain::BrainSettings::default() };
        let settings = simulator::Settings { brain, ..simulator::Settings::default() };
        Self {
            simulator: Simulator::start(settings).await.expect("the simulator listens"),
            policy: Policy {
                enrich: Some("host_context".into()),
                block: Some("block".into()),
                unblock: Some("unblock".into()),
                ..Policy::default()
            },
            version: "v2.5",
            sweep_interval: Some(Duration::from_millis(200)),
            feed_interval: None,
            self_user: None,
        }
    }

    /// The same; workers read the feeds of a brain with this version and do not sweep.
    async fn read(hosts: Vec<brain::Host>, version: &'static str) -> Self {
        let feed_interval = Some(Duration::from_millis(200));
        Self { version, sweep_interval: None, feed_interval, ..Self::of(hosts).await }
    }

    fn control(&self) -> &Control {
        self.simulator.control()
    }

    fn brain(&self) -> brain::Brain {
        self.control().brain()
    }

    /// A client whose tries are repeated at once.
    fn cognito(&self, metrics: &Metrics) -> Cognito {
        let url = self.simulator.url().parse().expect("a URL");
        let auth = match self.version.strip_prefix("v2") {
            Some(_) => Auth::Token(brain::BRAIN_TOKEN.into()),
            None => Auth::OAuth2 {
                client_id: brain::BRAIN_CLIENT_ID.to_owned(),
                client_secret: brain::BRAIN_CLIENT_SECRET.into(),
            },
        };
        let settings = cognito::Settings {
            retry: retry::Policy { first: Duration::from_millis(1), cap: Duration::from_millis(1), tries: 1 },
            ..cognito::Settings::new(url, self.version.parse().expect("a version"), auth)
        };
        let outbound = Outbound::new().expect("a client");
        Cognito::new(settings, outbound, Arc::new(AtOnce)).with_metrics(metrics.clone())
    }

    /// Starts a worker that does nothing but search, and serve the desk when it is its turn.
    async fn worker<P: Place>(&self, place: &P) -> Worker<P::B> {
        let (broker, metrics, shutdown) = (place.link().await, Metrics::default(), Shutdown::new(PATIENCE));
        let serving = desk::serve(broker.clone(), desk::Settings::default(), metrics.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { serving.await.expect("the desk serves") });
        let desk = Desk::open(broker.clone(), desk::Settings::default(), metrics.clone()).await.expect("a desk");
        let settings = sweep::Settings {
            sweep_interval: self.sweep_interval,
            feed_interval: self.feed_interval,
            policy: Arc::new(self.policy.clone()),
            self_user: self.self_user.clone(),
            notifier: Notifier::default(),
        };
        let cognito = self.cognito(&metrics);
        let searching = sweep::run(broker.clone(), cognito, desk.clone(), settings, metrics.clone(), shutdown.clone());
        Worker { broker, desk, metrics, shutdown, tasks: vec![serving, tokio::spawn(searching)] }
    }
}

/// No limit.
struct AtOnce;

impl cognito::Rate for AtOnce {
    fn permit(&self, _: Priority) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn throttled(&self, _: Option<Duration>) {}
}

struct Worker<B> {
    broker: B,
    desk: Desk,
    metrics: Metrics,
    shutdown: Shutdown,
    tasks: Vec<JoinHandle<()>>,
}

impl<B: Broker> Worker<B> {
    /// Looks into Cognito of this kind that ended so.
    fn searches(&self, search: &str, outcome: &str) -> u64 {
        self.counter(&format!("bridge_searches_total{{search=\"{search}\",outcome=\"{outcome}\"}} "))
    }

    fn sweeps(&self) -> u64 {
        self.searches("sweep", "ok")
    }

    /// Events published from this source.
    fn published(&self, source: &str) -> u64 {
        let count = |lane| self.counter(&format!("bridge_own_events_total{{source=\"{source}\",lane=\"{lane}\"}} "));
        count("urgent") + count("normal")
    }

    fn counter(&self, sample: &str) -> u64 {
        let text = self.metrics.render(&Health::default());
        let value = text.lines().find_map(|line| line.strip_prefix(sample));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// Waits until so many more sweeps have come to their end.
    async fn sweeps_more(&self, count: u64) {
        let before = self.sweeps();
        until("sweeps", async || self.sweeps() >= before + count).await;
    }

    async fn depth(&self, lane: Lane) -> QueueDepth {
        let health = self.broker.check().await;
        let row = health.queues.into_iter().find(|row| row.queue == HOSTS.name && row.lane == lane);
        row.expect("the broker knows its queues")
    }

    async fn ready(&self) -> u64 {
        self.depth(Lane::Urgent).await.ready + self.depth(Lane::Normal).await.ready
    }

    async fn events(&self, lane: Lane) -> Events {
        Events(self.broker.receive(&HOSTS, lane, 100).await.expect("a receiver"))
    }

    /// An orderly end.
    async fn stop(self) {
        self.shutdown.begin();
        for task in self.tasks {
            timeout(PATIENCE, task).await.expect("it ends in time").expect("it does not fail");
        }
    }

    /// The end of a process that was killed.
    fn kill(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Host events out of the queue.
struct Events(Receiver);

impl Events {
    /// The next one, done.
    async fn next(&mut self) -> Host {
        let delivery = timeout(PATIENCE, self.0.next()).await.expect("an event comes").expect("the queue is open");
        let host = Host::decode(&delivery.message.body).expect("a host event");
        assert_eq!(delivery.message.key.as_deref(), Some(host.key().as_str()));
        delivery.settle(Settlement::Done { reply: None }).await.expect("settled");
        host
    }

    /// So many; how often each host.
    async fn take(&mut self, count: usize) -> BTreeMap<u64, u32> {
        let mut hosts = BTreeMap::new();
        for _ in 0..count {
            *hosts.entry(self.next().await.host_id).or_default() += 1;
        }
        hosts
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A host that was just seen.
fn host(id: u64, tags: &[&str]) -> brain::Host {
    brain::Host::new(id, &format!("host-{id}"), "192.0.2.1", Timestamp::now()).tagged(tags)
}

fn scored(id: u64, threat: u8, certainty: u8) -> brain::Host {
    brain::Host { threat, certainty, ..host(id, &[]) }
}

fn once_each(ids: impl IntoIterator<Item = u64>) -> BTreeMap<u64, u32> {
    ids.into_iter().map(|id| (id, 1)).collect()
}

/// Waits for what must come, a good deal longer than it may take.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it happens in time")
}
