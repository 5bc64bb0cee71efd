//! RabbitMQ when things break: a broker that is restarted, killed, frozen or out of memory under load, and a deployment
//! that does not fit its broker.
//!
//! Stories that break a broker share a node of their own, one after the other; the others use the broker of
//! `TEST_RABBITMQ_URL`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use defender_bridge::broker::rabbitmq::{RabbitMq, Settings};
use defender_bridge::broker::{
    Broker, BrokerError, Cause, DeadLetterFilter, LINK_PATIENCE, Lane, Message, PUBLISH_LIMIT, Queue, Receiver, Repeat,
    Settlement, Spread, Style, Topology,
};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use super::breakable::{TURN, Witness};
use super::namespaces::{rabbitmq_settings, rabbitmq_url};

static ASKS: Queue = Queue { name: "asks", style: Style::Ask, spread: Spread::Even };
static WORK: Queue = Queue { name: "work", style: Style::Durable, spread: Spread::Even };
static TOPOLOGY: Topology =
    Topology { queues: &[ASKS, WORK], retained: &["brake"], ask_limit: 1_000, durable_limit: 50_000 };
static NARROW: Topology = Topology { queues: &[WORK], retained: &[], ask_limit: 4, durable_limit: 4 };

/// The longest a story waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a busy machine may add to a limit of the service.
const SLACK: Duration = Duration::from_secs(3);
/// How soon the service is back after its broker, counted from when the broker works, as a [`Witness`] sees it.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// A node that may be broken.
struct Node {
    base: TempDir,
    ports: [u16; 3],
}

/// The node lives while a story has it or waits for it.
static NODE: Mutex<Weak<Node>> = Mutex::new(Weak::new());

impl Node {
    /// Waits for the story's turn. The node runs.
    async fn take() -> (Arc<Self>, tokio::sync::MutexGuard<'static, ()>) {
        let node = tokio::task::spawn_blocking(|| {
            let mut shared = NODE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let node = Arc::new(Self { base: tempfile::tempdir().expect("a folder"), ports: free_ports() });
                node.start();
                *shared = Arc::downgrade(&node);
                node
            })
        })
        .await
        .expect("no panic");
        let turn = TURN.lock().await;
        (node, turn)
    }

    fn run(&self, command: &str, arguments: &[&str]) -> String {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/rabbitmq-node");
        let output = Command::new(script)
            .arg(command)
            .arg(self.base.path())
            .arg("faults")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the script runs");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same without holding up the story's own tasks.
    async fn command(self: &Arc<Self>, command: &'static str, arguments: &'static [&'static str]) {
        let node = self.clone();
        tokio::task::spawn_blocking(move || node.run(command, arguments)).await.expect("it works");
    }

    /// Starts it, on its old data when it has some, and waits until it takes connections.
    fn start(&self) {
        let ports = self.ports.map(|port| port.to_string());
        self.run("start", &ports.each_ref().map(String::as_str));
        self.run("wait", &[]);
    }

    async fn start_again(self: &Arc<Self>) {
        let node = self.clone();
        tokio::task::spawn_blocking(move || node.start()).await.expect("it works");
    }

    fn signal(&self, signal: &str) {
        let pid = self.run("pid", &[]);
        assert!(Command::new("kill").args([signal, pid.trim()]).status().expect("kill runs").success());
    }

    /// Its witness; all that was declared before can be broken from here on.
    async fn witness(&self) -> Witness {
        Witness::at(&self.url(), self.base.path()).await
    }

    /// With a heartbeat that notices a frozen broker within some seconds.
    fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}/%2f?heartbeat=2", self.ports[0])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.run("stop", &[]);
    }
}

/// Below the range from which the kernel takes source ports.
fn free_ports() -> [u16; 3] {
    let start = 25_000 + u16::try_from(std::process::id() % 5_000).expect("small");
    let mut free = (start..32_000).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    [(); 3].map(|()| free.next().expect("a free port"))
}

/// At a node of the stories' own.
fn settings(url: &str, namespace: &str, topology: &'static Topology) -> Settings {
    Settings {
        urls: vec![url.to_owned()],
        namespace: namespace.to_owned(),
        connection_name: "faults".to_owned(),
        topology,
    }
}

async fn connect(url: &str, namespace: &str) -> RabbitMq {
    RabbitMq::connect(settings(url, namespace, &TOPOLOGY)).await.expect("it works")
}

fn namespace() -> String {
    format!("faults-{}", Uuid::now_v7().simple())
}

fn text(body: &str) -> Message {
    Message::new(Bytes::copy_from_slice(body.as_bytes()))
}

fn in_time(after: Duration) -> Timestamp {
    Timestamp::now() + after
}

/// Publishers, askers and a worker that go on whatever happens, and what they saw.
struct Load {
    ingress: RabbitMq,
    worker: RabbitMq,
    witness: Witness,
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    confirmed: Mutex<BTreeSet<Uuid>>,
    worked: Mutex<BTreeMap<Uuid, u32>>,
    answered: AtomicU64,
    failures: AtomicU64,
}

impl Load {
    async fn start(node: &Node) -> Self {
        let namespace = namespace();
        let ingress = connect(&node.url(), &namespace).await;
        let worker = connect(&node.url(), &namespace).await;
        let seen = Arc::<Seen>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            tasks.spawn(publish_on(ingress.clone(), seen.clone()));
            tasks.spawn(ask_on(ingress.clone(), seen.clone()));
        }
        let mut work = worker.receive(&WORK, Lane::Normal, 16).await.expect("it works");
        let mut asks = worker.receive(&ASKS, Lane::Normal, 16).await.expect("it works");
        let noted = seen.clone();
        tasks.spawn(async move {
            while let Some(delivery) = work.next().await {
                *noted.worked.lock().expect("no panic").entry(delivery.message.id).or_default() += 1;
                // May fail: the message then comes again.
                tokio::spawn(delivery.settle(Settlement::Done { reply: None }));
            }
        });
        tasks.spawn(async move {
            while let Some(delivery) = asks.next().await {
                let reply = Some(delivery.message.body.clone());
                tokio::spawn(delivery.settle(Settlement::Done { reply }));
            }
        });
        let witness = node.witness().await;
        let load = Self { ingress, worker, witness, seen, tasks };
        load.goes_on().await;
        load
    }

    /// Waits until both kinds of work have made progress.
    async fn goes_on(&self) {
        let (confirmed, answered) = self.progress();
        timeout(PATIENCE, async {
            loop {
                let now = self.progress();
                if now.0 > confirmed + 20 && now.1 > answered + 20 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("publishers and askers go on");
    }

    fn progress(&self) -> (usize, u64) {
        (self.seen.confirmed.lock().expect("no panic").len(), self.seen.answered.load(Ordering::Relaxed))
    }

    fn failures(&self) -> u64 {
        self.seen.failures.load(Ordering::Relaxed)
    }

    /// Waits until somebody was told that it does not work.
    async fn is_refused(&self) {
        let before = self.failures();
        timeout(PATIENCE, async {
            while self.failures() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("errors are seen");
    }

    /// Once the broker is back, so is the service, soon.
    async fn is_back(&self) {
        self.witness.sees_it_work().await;
        timeout(BACK_WITHIN, async {
            while self.ingress.publish(&WORK, text("back?"), Duration::ZERO).await.is_err()
                || self.ingress.ask(&ASKS, text("back?"), in_time(BACK_WITHIN)).await.is_err()
                || !self.worker.check().await.connected
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the service is back soon after its broker");
        self.goes_on().await;
    }

    /// Ends the load: every confirmed message has been worked or is worked now.
    async fn nothing_is_lost(mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        let missing = || {
            let worked = self.seen.worked.lock().expect("no panic");
            self.seen.confirmed.lock().expect("no panic").iter().filter(|id| !worked.contains_key(id)).count()
        };
        let emptied = timeout(PATIENCE, async {
            while missing() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(emptied.await.is_ok(), "{} confirmed messages are lost", missing());
        self.ingress.close().await;
        self.worker.close().await;
        while let Some(task) = self.tasks.join_next().await {
            task.expect("no panic");
        }
    }
}

async fn brake_on(load: &Load) -> watch::Receiver<Option<Bytes>> {
    load.worker.retain("brake", Bytes::from_static(b"on")).await.expect("it works");
    load.ingress.watch("brake").await.expect("it works")
}

/// The value outlived the broker, and the watch goes on.
async fn brake_off(load: &Load, brake: &mut watch::Receiver<Option<Bytes>>) {
    assert_eq!(brake.borrow_and_update().as_deref(), Some(&b"on"[..]));
    let mut fresh = timeout(PATIENCE, async {
        loop {
            match load.worker.watch("brake").await {
                Ok(watch) => return watch,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    })
    .await
    .expect("a new watch");
    assert_eq!(fresh.borrow_and_update().as_deref(), Some(&b"on"[..]));
    timeout(PATIENCE, async {
        while load.worker.retain("brake", Bytes::from_static(b"off")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("a new value");
    for watch in [brake, &mut fresh] {
        let released = watch.wait_for(|value| value.as_deref() == Some(b"off"));
        timeout(PATIENCE, released).await.expect("the watch goes on").expect("the broker is open");
    }
}

async fn publish_on(broker: RabbitMq, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let message = text("event");
        loop {
            let outcome = timeout(PUBLISH_LIMIT + SLACK, broker.publish(&WORK, message.clone(), Duration::ZERO)).await;
            match outcome.expect("a publisher learns its fate in time") {
                Ok(()) => {
                    seen.confirmed.lock().expect("no panic").insert(message.id);
                    break;
                }
                Err(BrokerError::Closed) => return,
                Err(BrokerError::Unknown(_) | BrokerError::Unavailable(_)) => {
                    seen.failures.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("unexpected: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn ask_on(broker: RabbitMq, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let limit = LINK_PATIENCE + Duration::from_secs(3);
        let question = Uuid::now_v7().to_string();
        let outcome = timeout(limit + SLACK, broker.ask(&ASKS, text(&question), in_time(limit))).await;
        match outcome.expect("a caller is answered by its deadline") {
            Ok(reply) => {
                assert_eq!(reply, question, "somebody else's reply");
                seen.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(BrokerError::Closed) => return,
            Err(BrokerError::Unknown(_) | BrokerError::Unavailable(_) | BrokerError::Timeout) => {
                seen.failures.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("unexpected: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn an_orderly_restart_of_the_broker_loses_nothing() {
    let (node, _turn) = Node::take().await;
    let load = Load::start(&node).await;
    let mut brake = brake_on(&load).await;
    node.command("stop", &[]).await;
    load.is_refused().await;
    node.start_again().await;
    load.is_back().await;
    brake_off(&load, &mut brake).await;
    load.nothing_is_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_killed_broker_loses_nothing_it_has_confirmed() {
    let (node, _turn) = Node::take().await;
    let load = Load::start(&node).await;
    let mut brake = brake_on(&load).await;
    node.command("kill", &[]).await;
    load.is_refused().await;
    node.start_again().await;
    load.is_back().await;
    brake_off(&load, &mut brake).await;
    load.nothing_is_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_frozen_broker_is_noticed_and_loses_nothing() {
    let (node, _turn) = Node::take().await;
    let load = Load::start(&node).await;
    node.signal("-STOP");
    load.is_refused().await;
    // The heartbeat has given the link up: the probe says so.
    let noticed = timeout(PATIENCE, async {
        while load.ingress.connected() || load.worker.check().await.connected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let noticed = noticed.await;
    node.signal("-CONT");
    noticed.expect("the links are given up");
    load.is_back().await;
    load.nothing_is_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn an_ask_under_way_is_repeated_after_a_restart_unless_it_may_not_be() {
    let (node, _turn) = Node::take().await;
    let namespace = namespace();
    let (ingress, worker) = (connect(&node.url(), &namespace).await, connect(&node.url(), &namespace).await);
    let mut asks = worker.receive(&ASKS, Lane::Normal, 4).await.unwrap();
    let ask = |message: Message| {
        let ingress = ingress.clone();
        tokio::spawn(async move { ingress.ask(&ASKS, message, in_time(PATIENCE)).await })
    };
    let repeated = ask(text("observe"));
    let first = timeout(PATIENCE, asks.next()).await.expect("a delivery").unwrap();
    let once = ask(Message { repeat: Repeat::AtMostOnce, ..text("isolate") });
    let second = timeout(PATIENCE, asks.next()).await.expect("a delivery").unwrap();
    node.witness().await;
    node.command("kill", &[]).await;
    let outcome = timeout(PATIENCE, once).await.expect("told at once").unwrap();
    assert!(matches!(outcome, Err(BrokerError::Unknown(_))), "{outcome:?}");
    drop((first, second));
    node.start_again().await;
    let again = timeout(PATIENCE, asks.next()).await.expect("asked again").unwrap();
    assert_eq!(again.message.body, "observe");
    again.settle(Settlement::Done { reply: Some(Bytes::from_static(b"seen")) }).await.unwrap();
    assert_eq!(timeout(PATIENCE, repeated).await.expect("answered").unwrap().unwrap(), "seen");
    worker.close().await;
    ingress.close().await;
}

/// Waits until a process knows of an alarm: the broker says so only once it sees a publish. From then on refusals are
/// immediate.
async fn is_blocked(broker: &RabbitMq) {
    let refused = timeout(PATIENCE, async {
        loop {
            let publish = broker.publish(&WORK, text("new"), Duration::ZERO);
            let outcome = timeout(PUBLISH_LIMIT + SLACK, publish).await.expect("an answer within the limit");
            match outcome {
                Err(BrokerError::Unavailable(reason)) if reason.contains("blocked") => return,
                Err(BrokerError::Unknown(_)) | Ok(()) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    });
    refused.await.expect("the alarm is noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_memory_alarm_refuses_what_is_new_while_settling_goes_on() {
    let (node, _turn) = Node::take().await;
    let namespace = namespace();
    let (ingress, worker) = (connect(&node.url(), &namespace).await, connect(&node.url(), &namespace).await);
    for n in 0..40 {
        ingress.publish(&WORK, text(&n.to_string()), Duration::ZERO).await.unwrap();
    }
    let mut work = worker.receive(&WORK, Lane::Normal, 4).await.unwrap();
    let witness = node.witness().await;
    node.command("ctl", &["set_vm_memory_high_watermark", "0"]).await;

    is_blocked(&ingress).await;
    let asked = timeout(SLACK, ingress.ask(&ASKS, text("new"), in_time(PATIENCE))).await.expect("refused at once");
    assert!(matches!(asked, Err(BrokerError::Unavailable(_))), "{asked:?}");
    assert!(ingress.check().await.blocked.is_some());

    // Those on the way before are worked and acknowledged, ten times the prefetch.
    for _ in 0..40 {
        let delivery = timeout(PATIENCE, work.next()).await.expect("consuming goes on").unwrap();
        delivery.settle(Settlement::Done { reply: None }).await.unwrap();
    }

    node.command("ctl", &["set_vm_memory_high_watermark", "0.8"]).await;
    witness.sees_it_work().await;
    timeout(BACK_WITHIN, async {
        while ingress.publish(&WORK, text("again"), Duration::ZERO).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("publishing is back soon after the alarm");
    assert_eq!(ingress.check().await.blocked, None);
    worker.close().await;
    ingress.close().await;
}

/// Put back it would come again at once, and again, until its tries are used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn what_shall_come_again_is_in_hands_while_an_alarm_lasts() {
    let (node, _turn) = Node::take().await;
    let namespace = namespace();
    let (leaving, staying) = (connect(&node.url(), &namespace).await, connect(&node.url(), &namespace).await);
    let mut hands = Vec::new();
    let mut take = async |receiver: &mut Receiver, body: &str| {
        staying.publish(&WORK, text(body), Duration::ZERO).await.unwrap();
        hands.push(timeout(PATIENCE, receiver.next()).await.expect("it comes").unwrap());
    };
    let mut left = leaving.receive(&WORK, Lane::Normal, 1).await.unwrap();
    take(&mut left, "left").await;
    let mut work = staying.receive(&WORK, Lane::Normal, 8).await.unwrap();
    for body in ["later", "retried", "dead"] {
        take(&mut work, body).await;
    }
    let witness = node.witness().await;
    node.command("ctl", &["set_vm_memory_high_watermark", "0"]).await;
    is_blocked(&leaving).await;
    is_blocked(&staying).await;

    let cause = Cause { code: "refused".to_owned(), detail: "by hand".to_owned() };
    let settlements = [
        Settlement::Later { after: Duration::ZERO, body: None },
        Settlement::Later { after: Duration::from_millis(100), body: None },
        Settlement::Retry { after: Duration::ZERO, body: None },
        Settlement::DeadLetter(cause.clone()),
    ];
    let mut settled: Vec<_> =
        hands.into_iter().zip(settlements).map(|(held, how)| tokio::spawn(held.settle(how))).collect();
    let quiet = timeout(SLACK, async {
        loop {
            let delivery = work.next().await.unwrap();
            assert_eq!(delivery.message.body, "new", "put back during the alarm");
            delivery.settle(Settlement::Done { reply: None }).await.unwrap();
        }
    });
    assert!(quiet.await.is_err());
    assert!(settled.iter().all(|settled| !settled.is_finished()));
    // One that stops does not wait for the end of the alarm: somebody else has its message soon.
    timeout(PATIENCE, left.close()).await.expect("it ends");
    let outcome = timeout(PATIENCE, settled.remove(0)).await.expect("it ends").unwrap();
    assert!(matches!(outcome, Err(BrokerError::Unavailable(_))), "{outcome:?}");

    node.command("ctl", &["set_vm_memory_high_watermark", "0.8"]).await;
    witness.sees_it_work().await;
    for settled in settled {
        timeout(PATIENCE, settled).await.expect("put away after the alarm").unwrap().unwrap();
    }
    let mut attempts = BTreeMap::new();
    while attempts.len() < 3 {
        let delivery = timeout(PATIENCE, work.next()).await.expect("it comes again").unwrap();
        if delivery.message.body != "new" {
            attempts.insert(delivery.message.body.clone(), delivery.attempt);
        }
        delivery.settle(Settlement::Done { reply: None }).await.unwrap();
    }
    assert_eq!(attempts, [("left", 2), ("later", 1), ("retried", 2)].map(|(body, n)| (Bytes::from(body), n)).into());
    let dead = staying.dead_letters(&DeadLetterFilter::default()).await.unwrap();
    assert_eq!(
        dead.iter().map(|letter| (&letter.message.body[..], &letter.cause)).collect::<Vec<_>>(),
        [(&b"dead"[..], &cause)]
    );
    staying.close().await;
    leaving.close().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn a_message_that_finds_its_queue_full_on_the_way_back_is_not_lost() {
    let broker = RabbitMq::connect(rabbitmq_settings("faults", &NARROW)).await.unwrap();
    let id = text("held").id;
    broker.publish(&WORK, Message { id, ..text("held") }, Duration::ZERO).await.unwrap();
    let mut receiver = broker.receive(&WORK, Lane::Normal, 1).await.unwrap();
    let held = timeout(PATIENCE, receiver.next()).await.unwrap().unwrap();
    let mut stored = 0;
    let full = loop {
        match broker.publish(&WORK, text("filler"), Duration::ZERO).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, BrokerError::Full), "{full:?}");
    assert!(matches!(held.settle(Settlement::GiveBack).await, Err(BrokerError::Full)));
    let mut worked = BTreeSet::new();
    for _ in 0..=stored {
        let delivery = timeout(PATIENCE, receiver.next()).await.unwrap().unwrap();
        worked.insert(delivery.message.id);
        delivery.settle(Settlement::Done { reply: None }).await.unwrap();
    }
    assert!(worked.contains(&id));
    broker.close().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn queues_that_exist_with_other_arguments_are_a_clear_error() {
    let settings = rabbitmq_settings("faults", &TOPOLOGY);
    let namespace = settings.namespace.clone();
    let broker = RabbitMq::connect(settings.clone()).await.unwrap();
    let outcome = RabbitMq::connect(Settings { topology: &NARROW, ..settings }).await;
    let Err(BrokerError::Refused(reason)) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains(&format!("{namespace}.work")) && reason.contains("x-max-length"), "{reason}");
    // The deployment that was there first is not disturbed.
    broker.publish(&WORK, text("still here"), Duration::ZERO).await.unwrap();
    broker.close().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn wrong_credentials_are_refused_without_showing_them() {
    let mut url = url::Url::parse(&rabbitmq_url()).unwrap();
    url.set_username("nobody").unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let settings = settings(url.as_str(), &namespace(), &TOPOLOGY);
    assert!(!format!("{settings:?}").contains("hunter2"));
    let outcome = RabbitMq::connect(settings).await;
    let Err(error @ BrokerError::Refused(_)) = outcome else { panic!("{outcome:?}") };
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn of_several_nodes_one_that_answers_is_enough() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("amqp://127.0.0.1:{}", silent.local_addr().unwrap().port());
    drop(silent);
    let mut settings = rabbitmq_settings("faults", &TOPOLOGY);
    settings.urls.insert(0, dead);
    let broker = RabbitMq::connect(settings).await.unwrap();
    broker.publish(&WORK, text("arrived"), Duration::ZERO).await.unwrap();
    broker.close().await;
}
