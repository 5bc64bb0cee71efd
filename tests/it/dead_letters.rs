//! `dead-letters`, the real command, beside a process that receives, on both queues.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use defender_bridge::broker::rabbitmq::RabbitMq;
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::broker::{Broker, Cause, Delivery, Headers, Lane, Message, Queue, Receiver, Settlement};
use defender_bridge::job::{self, HOSTS, Host, HostKind, RELAY, TOPOLOGY};
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

use super::collector::Collector;
use super::namespaces::rabbitmq_settings;
use super::spawned::{self, PATIENCE, Role};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER: &str = "00f067aa0ba902b7";

/// How many are redriven twice at once.
const MANY: usize = 10_000;
/// In the hands of this process at a time.
const PREFETCH: u16 = 200;

/// A queue, and how the command finds it.
struct World<B> {
    broker: B,
    settings: Vec<(&'static str, String)>,
    _folder: TempDir,
}

impl World<Sqlite> {
    async fn on_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        let url = format!("sqlite:{}", path.display());
        let broker = Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.unwrap();
        Self { broker, settings: vec![("BRIDGE_BROKER_URL", url)], _folder: folder }
    }
}

impl World<RabbitMq> {
    async fn on_rabbitmq() -> Self {
        let link = rabbitmq_settings("dead letters", &TOPOLOGY);
        let broker = RabbitMq::connect(link.clone()).await.unwrap();
        let settings =
            vec![("BRIDGE_BROKER_URL", link.urls[0].clone()), ("BRIDGE_BROKER_NAMESPACE", link.namespace.clone())];
        Self { broker, settings, _folder: tempfile::tempdir().unwrap() }
    }
}

/// What the command said, and how it ended.
#[derive(Debug)]
struct Told {
    code: i32,
    out: String,
    err: String,
}

impl<B: Broker> World<B> {
    /// Runs `dead-letters ...` with nothing to read from.
    async fn tells(&self, line: &str) -> Told {
        self.tells_with(line, &[]).await
    }

    async fn tells_with(&self, line: &str, more: &[(&str, &str)]) -> Told {
        let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
        command.arg("dead-letters").args(line.split(' ')).env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR"));
        command.envs(self.settings.iter().map(|(name, value)| (name, value))).envs(more.iter().copied());
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(2 * PATIENCE, output).await.expect("it ends").expect("the binary runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Told { code: output.status.code().expect("an exit code"), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The same when it must succeed; returns what it printed.
    async fn prints(&self, line: &str) -> String {
        let told = self.tells(line).await;
        assert_eq!(told.code, 0, "{line}: {told:?}");
        told.out
    }

    /// The ids that `list --json` has.
    async fn listed(&self, filter: &str) -> Vec<Uuid> {
        let letters: Value = serde_json::from_str(&self.prints(&format!("list --json{filter}")).await).unwrap();
        letters.as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap().parse().unwrap()).collect()
    }

    async fn receive(&self, queue: &Queue, lane: Lane, prefetch: u16) -> Receiver {
        self.broker.receive(queue, lane, prefetch).await.unwrap()
    }

    async fn bury(&self, queue: &Queue, message: Message, code: &str) -> Uuid {
        let (id, lane) = (message.id, message.lane);
        self.broker.publish(queue, message, Duration::ZERO).await.unwrap();
        let mut receiver = self.receive(queue, lane, 1).await;
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.id, id);
        die(delivery, code).await;
        receiver.close().await;
        id
    }

    /// Publishes host events and lets all of them die. One in ten has its key: taking leases is most of the work then,
    /// and not what this is about.
    async fn bury_many(&self, count: usize) -> BTreeSet<Uuid> {
        let ids = stream::iter(1..=count).map(|host_id| async move {
            let message = event(host_id as u64).into_message(Lane::Normal);
            let message = if host_id % 10 == 0 { message } else { Message { key: None, ..message } };
            let id = message.id;
            self.broker.publish(&HOSTS, message, Duration::ZERO).await.unwrap();
            id
        });
        let ids = ids.buffer_unordered(64).collect().await;
        self.end_all(count, |delivery| async move { die(delivery, "attempts").await }).await;
        ids
    }

    /// Ends this many host events, many at a time, and looks that no more come. Returns their ids as they came.
    async fn end_all<F: Future<Output = ()> + Send + 'static>(
        &self,
        count: usize,
        end: impl Fn(Delivery) -> F,
    ) -> Vec<Uuid> {
        let mut receiver = self.receive(&HOSTS, Lane::Normal, PREFETCH).await;
        let mut ending = tokio::task::JoinSet::new();
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            let delivery = next(&mut receiver).await;
            ids.push(delivery.message.id);
            ending.spawn(end(delivery));
        }
        ending.join_all().await;
        let more = timeout(Duration::from_millis(500), receiver.next()).await;
        assert!(more.is_err(), "one more: {more:?}");
        receiver.close().await;
        ids
    }
}

async fn next(receiver: &mut Receiver) -> Delivery {
    timeout(PATIENCE, receiver.next()).await.expect("a delivery").expect("the receiver is open")
}

async fn die(delivery: Delivery, code: &str) {
    let cause = Cause { code: code.to_owned(), detail: format!("it was {code}") };
    delivery.settle(Settlement::DeadLetter(cause)).await.unwrap();
}

async fn done(delivery: Delivery) {
    delivery.settle(Settlement::Done { reply: None }).await.unwrap();
}

fn event(host_id: u64) -> Host {
    Host {
        event_id: format!("event-{host_id}"),
        sender: "tests".to_owned(),
        host_id,
        kind: HostKind::TagAdded,
        occurred_at: Timestamp::UNIX_EPOCH,
        received_at: Timestamp::UNIX_EPOCH,
        hint: None,
        actor: None,
        progress: None,
    }
}

fn traced(message: Message) -> Message {
    let headers = Headers::from([
        ("traceparent".to_owned(), format!("00-{TRACE}-{SENDER}-01")),
        ("tracestate".to_owned(), "vendor=1".to_owned()),
    ]);
    Message { headers, ..message }
}

async fn an_operator_looks_sends_back_and_deletes<B: Broker>(world: &World<B>) {
    assert_eq!(world.prints("list").await, "no dead letters\n");
    let first = world.bury(&HOSTS, traced(event(41).into_message(Lane::Urgent)), "attempts").await;
    let second = world.bury(&HOSTS, event(42).into_message(Lane::Normal), "refused").await;
    let sealed = r#"{"v":1,"job":"health","credentials":"k1.pl4nted"}"#;
    let third = world.bury(&RELAY, Message::new(Bytes::from(sealed)), "undecodable").await;

    let table = world.prints("list").await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["ID", "AGE", "QUEUE", "HOST", "KIND", "CAUSE", "ATTEMPTS"]);
    assert_eq!(lines[1][0], first.to_string());
    assert_eq!(lines[1][2..], ["hosts", "41", "host.tag.added", "attempts", "1"]);
    assert_eq!(lines[3][2..], ["relay", "-", "health", "undecodable", "1"]);
    assert_eq!(lines.len(), 4);

    for (filter, expected) in [
        ("", vec![first, second, third]),
        (" --queue hosts", vec![first, second]),
        (" --cause refused", vec![second]),
        (" --host 41", vec![first]),
        (" --host 4", vec![]),
        (&format!(" --id {third} --id {first}"), vec![first, third]),
        (" --older-than 1h", vec![]),
        (" --older-than 0s", vec![first, second, third]),
        (" --younger-than 1d", vec![first, second, third]),
        (" --younger-than 0s", vec![]),
        (" --queue hosts --cause undecodable", vec![]),
        (" --limit 3", vec![first, second, third]),
    ] {
        assert_eq!(world.listed(filter).await, expected, "{filter}");
    }
    let some = world.tells("list --limit 2").await;
    assert!(some.out.contains(&second.to_string()) && !some.out.contains(&third.to_string()), "{some:?}");
    assert!(some.err.contains("there are more"), "{some:?}");

    let shown = world.prints(&format!("show {first}")).await;
    for part in
        ["attempts: it was attempts", "(urgent)", "\"event_id\": \"event-41\"", &format!("00-{TRACE}-{SENDER}-01")]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    for line in [format!("show {third}"), format!("show {third} --json"), "list --json".to_owned()] {
        let shown = world.prints(&line).await;
        assert!(shown.contains("health") && !shown.contains("pl4nted"), "{shown}");
    }
    let missing = world.tells(&format!("show {}", Uuid::nil())).await;
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));

    // Never everything by mistake.
    for (line, code) in [("redrive", 2), ("discard --yes", 2), ("redrive --limit 1", 2), ("discard --all", 1)] {
        let told = world.tells(line).await;
        assert_eq!((told.code, told.out.as_str()), (code, ""), "{line}: {told:?}");
    }
    assert_eq!(world.tells("list --older-than soon").await.code, 78);
    let planned = world.prints("redrive --all --dry-run").await;
    assert!(planned.contains("1  hosts  refused") && planned.ends_with("would redrive 3\n"), "{planned}");
    assert_eq!(world.listed("").await, [first, second, third]);

    // Beside a process that receives.
    let mut urgent = world.receive(&HOSTS, Lane::Urgent, 1).await;
    assert_eq!(world.prints("redrive --host 41 --rate 5").await, "redriven 1\n");
    let delivery = next(&mut urgent).await;
    assert_eq!((delivery.message.id, delivery.attempt), (first, 1));
    assert_eq!(Host::decode(&delivery.message.body).unwrap(), event(41));
    let headers = &delivery.message.headers;
    assert_eq!(headers["redriven-from"], format!("00-{TRACE}-{SENDER}-01"));
    let trace: Vec<&str> = headers["traceparent"].split('-').collect();
    assert!(trace[1] != TRACE && trace[1].len() == 32 && trace[3] == "01", "{headers:?}");
    assert!(!headers.contains_key("tracestate"), "it belongs to the old trace");
    done(delivery).await;
    urgent.close().await;
    assert_eq!(world.listed("").await, [second, third]);

    assert_eq!(world.prints(&format!("discard --id {second} --yes")).await, "discarded 1\n");
    assert_eq!(world.prints(&format!("discard --id {second} --yes")).await, "discarded 0\n");
    assert_eq!(world.listed("").await, [third]);
    assert_eq!(world.prints("discard --all --yes").await, "discarded 1\n");
    assert_eq!(world.prints("redrive --all").await, "redriven 0\n");
    assert_eq!(world.prints("list --json").await, "[]\n");
}

#[tokio::test]
async fn an_operator_looks_sends_back_and_deletes_on_sqlite() {
    an_operator_looks_sends_back_and_deletes(&World::on_sqlite().await).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn an_operator_looks_sends_back_and_deletes_on_rabbitmq() {
    let world = World::on_rabbitmq().await;
    an_operator_looks_sends_back_and_deletes(&world).await;
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_not_made() {
    let mut world = World::on_sqlite().await;
    let elsewhere = world._folder.path().join("elsewhere");
    world.settings = vec![("BRIDGE_BROKER_URL", format!("sqlite:{}", elsewhere.display()))];
    let told = world.tells("list").await;
    assert_eq!(told.code, 1);
    assert!(told.err.contains("there is no queue at"), "{told:?}");
    assert!(!elsewhere.exists());
}

/// Two commands redrive the same letters at the same time: each is sent once and none is lost.
async fn two_redrives_of_many_send_each_once<B: Broker>(world: &World<B>) {
    let begun = Instant::now();
    let buried = world.bury_many(MANY).await;
    assert_eq!(buried.len(), MANY);
    let died = begun.elapsed();
    let counts = async |line: &str| {
        let told = world.prints(line).await;
        told.trim().strip_prefix("redriven ").and_then(|count| count.parse::<usize>().ok()).expect(&told)
    };
    let (one, other) = tokio::join!(counts("redrive --all"), counts("redrive --all"));
    let sent = begun.elapsed() - died;
    assert_eq!(one + other, MANY, "{one} and {other}");
    assert!(world.listed("").await.is_empty());
    let arrived = world.end_all(MANY, done).await;
    assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>(), buried);
    println!(
        "{MANY} died within {died:?}; two redrives sent {one} and {other} within {sent:?}; worked within {:?}",
        begun.elapsed() - died - sent
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_redrives_of_ten_thousand_send_each_once_on_sqlite() {
    two_redrives_of_many_send_each_once(&World::on_sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn two_redrives_of_ten_thousand_send_each_once_on_rabbitmq() {
    let world = World::on_rabbitmq().await;
    two_redrives_of_many_send_each_once(&world).await;
}

/// What works a redriven message is a trace of its own, begun by the redrive and linked to the old one.
#[tokio::test]
async fn a_redriven_message_is_worked_in_a_new_trace_linked_to_its_old_one() {
    let (simulator, collector) = (spawned::simulator().await, Collector::start().await);
    let world = World::on_sqlite().await;
    let body = job::Job::Health(job::Health { credentials: serde_json::from_str("\"k.AAAA\"").unwrap() }).encode();
    world.bury(&RELAY, traced(Message::new(body)), "crashes").await;
    world.broker.close().await;
    let endpoint = collector.url();
    let told = world.tells_with("redrive --all", &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
    assert_eq!((told.code, told.out.as_str()), (0, "redriven 1\n"), "{told:?}");

    let role = Role::new("serve").set("BRIDGE_BROKER_URL", &world.settings[0].1).upstream(&simulator.url());
    let mut serve = role.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).start().await;
    serve.reaches("bridge_job_duration_seconds_count", 1.0).await;
    serve.stop().await;

    let spans = collector.spans();
    let only = |name: &str| {
        let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {spans:#?}");
        found[0]
    };
    let (redrive, process) = (only("redrive"), only("process relay"));
    let old = (TRACE.to_owned(), SENDER.to_owned());
    assert_eq!((redrive.parent.as_str(), &redrive.links), ("", &vec![old.clone()]));
    assert_ne!(redrive.trace, TRACE);
    assert_eq!((&process.trace, &process.parent), (&redrive.trace, &redrive.id));
    assert_eq!(process.links, [(redrive.trace.clone(), redrive.id.clone()), old]);
}
