//! The outgoing webhook: what is done to machines is told, signed and once; a receiver that is dead or slow holds nobody
//! up, and what it never takes is found among the dead letters.

use std::time::Duration;

use bytes::Bytes;
use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::broker::{Broker, Lane, Message, Settlement};
use defender_bridge::job::{NOTIFY, Notification, TOPOLOGY};
use defender_bridge::notify::Notifier;
use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BRAIN_USER, Brain};
use defender_bridge::simulator::scenario::{
    C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, FINANCE_WORKSTATION, HR_WORKSTATION,
    UNKNOWN_MACHINE,
};
use defender_bridge::simulator::{Fault, Matcher, Simulator};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use super::breakable::Cable;
use super::bridge::{SECRET_KEY, client, demo_token};
use super::namespaces::{rabbitmq_settings, rabbitmq_url};
use super::spawned::{self, PATIENCE, Role, Spawned, closed_port};

const SECRET: &str = "whsec_cGw0bnRlZHBsNG50ZWRwbDRudGVkcGw0bnRlZA==";
const WEBHOOK_TOKEN: &str = "a-token-of-more-than-thirty-two-characters";

/// The wait before a notification's second try.
const FIRST_RETRY: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Sqlite,
    RabbitMq,
}

struct World {
    simulator: Simulator,
    queue: Queue,
    /// Hosts with a plain machine each.
    hosts: Vec<u64>,
    settings: Vec<(String, String)>,
    folder: tempfile::TempDir,
    link: Option<rabbitmq::Settings>,
}

impl World {
    /// Notifications go to `receiver`, or to the simulator.
    async fn new(queue: Queue, receiver: Option<String>) -> Self {
        let simulator = spawned::simulator().await;
        let folder = tempfile::tempdir().unwrap();
        let hosts = simulator.control().brain().add_bulk(DEMO_TENANT_ID, 3, 0, 7).expect("the demo tenant");
        let url = simulator.url();
        let link = match queue {
            Queue::Sqlite => None,
            Queue::RabbitMq => Some(rabbitmq_settings("notifications", &TOPOLOGY)),
        };
        let (broker, namespace) = match &link {
            None => (format!("sqlite:{}", folder.path().join("queue").display()), "unused"),
            Some(link) => (link.urls[0].clone(), link.namespace.as_str()),
        };
        let receiver = receiver.unwrap_or_else(|| format!("{url}/_notifications"));
        let settings = [
            ("BRIDGE_BROKER_URL", broker.as_str()),
            ("BRIDGE_BROKER_NAMESPACE", namespace),
            ("COGNITO_BRAIN", &url),
            ("COGNITO_TOKEN", BRAIN_TOKEN),
            ("BRIDGE_COGNITO_SELF_USER", BRAIN_USER),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
            ("BRIDGE_RELAY_ROUTES", "observe,refer,respond"),
            ("BRIDGE_TAG_BLOCK", "block"),
            ("BRIDGE_TAG_UNBLOCK", "unblock"),
            ("BRIDGE_SWEEP_INTERVAL", "0"),
            ("BRIDGE_FEED_INTERVAL", "0"),
            ("BRIDGE_WEBHOOK_TOKEN", WEBHOOK_TOKEN),
            ("BRIDGE_NOTIFY_URL", &receiver),
            ("BRIDGE_NOTIFY_SECRET", SECRET),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let hosts = hosts.iter().map(|host| host.id).collect();
        let world = Self { simulator, queue, hosts, settings, folder, link };
        world.control(json!({"secret": SECRET})).await;
        world
    }

    fn role(&self, name: &'static str) -> Role {
        let role = Role::new(name).upstream(&self.simulator.url());
        self.settings.iter().fold(role, |role, (name, value)| role.set(name, value))
    }

    /// The whole bridge, the process with the ingress first.
    async fn start(&self) -> Vec<Spawned> {
        match self.queue {
            Queue::Sqlite => vec![self.role("serve").start().await],
            Queue::RabbitMq => {
                let (ingress, worker) = tokio::join!(self.role("ingress").start(), self.role("worker").start());
                vec![ingress, worker]
            }
        }
    }

    /// Runs a command beside the bridge to its end and returns what it wrote.
    async fn command(&self, name: &'static str, arguments: &[&str]) -> String {
        let mut command = self.role(name).arguments(arguments).spawn();
        let status = command.ends_within(PATIENCE).await;
        assert!(status.success(), "{name} {arguments:?}: {}", command.log());
        command.log()
    }

    /// Sets how the simulator receives.
    async fn control(&self, settings: Value) {
        let url = format!("{}/_simulator/notifications", self.simulator.url());
        assert!(client().put(url).json(&settings).send().await.unwrap().status().is_success());
    }

    /// What the simulator received.
    async fn received(&self) -> Value {
        let url = format!("{}/_simulator/notifications", self.simulator.url());
        serde_json::from_str(&client().get(url).send().await.unwrap().text().await.unwrap()).unwrap()
    }

    /// Waits until a notification of this type, with this in its data, has come, and returns its data.
    async fn told(&self, kind: &str, part: Value) -> Value {
        let part = part.as_object().expect("members");
        let end = Instant::now() + PATIENCE;
        loop {
            let received = self.received().await;
            assert_eq!(received["refused"], json!([]), "{received}");
            let taken = received["taken"].as_object().expect("by id");
            let fits =
                |body: &&Value| body["type"] == kind && part.iter().all(|(name, value)| body["data"][name] == *value);
            if let Some(found) = taken.values().find(fits) {
                return found["data"].clone();
            }
            assert!(Instant::now() < end, "no {kind} with {part:?} among {received}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// An analyst sets a tag and the webhook hears of it.
    async fn tag(&self, ingress: &Spawned, host: u64, tag: &str) {
        self.simulator.control().brain().add_tag(host, tag, "analyst.one").expect("a new tag");
        let event = json!({"type": "host.tag.added", "host": {"id": host}, "tag": tag, "actor": "analyst.one"});
        let request = client().post(ingress.url("/webhooks/cognito")).bearer_auth(WEBHOOK_TOKEN).json(&event);
        assert_eq!(request.send().await.unwrap().status().as_u16(), 202);
    }

    /// Waits until the host's machine is isolated by its tags, and the last of them is written.
    async fn until_settled(&self, host: u64) {
        let brain = self.simulator.control().brain();
        let settled = |brain: &Brain| {
            let tags = brain.tags(host).expect("a host");
            let has = |tag: &str| tags.iter().any(|found| found == tag);
            has("mde:isolation=isolated") && !has("block")
        };
        timeout(PATIENCE, brain.until(settled)).await.expect("the last tag is written");
    }

    async fn until_tagged(&self, host: u64, tag: &str) {
        let brain = self.simulator.control().brain();
        let has = |brain: &Brain| brain.tags(host).expect("a host").iter().any(|found| found == tag);
        timeout(PATIENCE, brain.until(has)).await.expect(tag);
    }

    /// A response action of the relay; its answer's status.
    async fn trigger(&self, ingress: &Spawned, action: &str, kind: &str, value: &str) -> Value {
        let form = json!({
            "action-id": format!("microsoft-defender-{action}"), "observable_type": kind, "observable_value": value,
        });
        let request = client().post(ingress.url("/respond/trigger")).bearer_auth(demo_token()).json(&form);
        let answer = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()["data"]["status"].clone()
    }
}

/// Isolated, failed, released, paused, refused and resumed are told; what hosts and what the relay asked for alike.
async fn tells(queue: Queue) {
    let world = World::new(queue, None).await;
    let mut processes = world.start().await;
    let ingress = &processes[0];
    let [host, forbidden, held] = world.hosts[..] else { panic!("three hosts") };

    world.tag(ingress, host, "block").await;
    let asked = world.told("isolation.requested", json!({"host_id": host})).await;
    let of_asked = json!({
        "source": "hosts", "action": "isolate", "outcome": "accepted", "actor": "analyst.one", "cause": "tag block",
    });
    for (name, value) in of_asked.as_object().unwrap() {
        assert_eq!(asked[name], *value, "{asked}");
    }
    assert!(asked["machine_id"].is_string() && asked["action_id"].is_string(), "{asked}");
    let isolated = world.told("machine.isolated", json!({"host_id": host})).await;
    assert_eq!(isolated["action_id"], asked["action_id"]);
    // It is told before the tags are written, and a tag set in that moment may be lost (`cognito.md` 5.10).
    world.until_settled(host).await;
    world.tag(ingress, host, "unblock").await;
    world.told("release.requested", json!({"host_id": host})).await;
    world.told("machine.released", json!({"host_id": host})).await;

    // Defender forbids it: it failed, and an operator has to see to it.
    let isolate = Matcher { method: Some("POST".to_owned()), ..Matcher::containing("/isolate") };
    world.simulator.control().fail_next(isolate, Fault::refuse(403), 10);
    world.tag(ingress, forbidden, "block").await;
    let failed = world.told("containment.failed", json!({"host_id": forbidden, "action": "isolate"})).await;
    assert_eq!((&failed["outcome"], &failed["reason"]), (&json!("failed"), &json!("forbidden")));
    let alert = world.told("operator.alert", json!({"alert": "forbidden"})).await;
    assert_eq!(alert["host_id"], json!(forbidden), "{alert}");
    world.simulator.control().clear_faults();

    // The relay's triggers.
    assert_eq!(world.trigger(ingress, "FullIsolation", "ms_machine_id", FINANCE_WORKSTATION).await, "success");
    let asked = world.told("isolation.requested", json!({"source": "relay"})).await;
    assert_eq!((&asked["machine_id"], &asked["cause"]), (&json!(FINANCE_WORKSTATION), &json!("FullIsolation")));
    assert!(asked["action_id"].is_string(), "{asked}");
    assert_eq!(world.trigger(ingress, "FullIsolation", "ms_machine_id", UNKNOWN_MACHINE).await, "failure");
    world.told("containment.failed", json!({"source": "relay", "reason": "no_machine"})).await;
    assert_eq!(world.trigger(ingress, "add-indicator-alert-and-block", "ip", C2_ADDRESS).await, "success");
    let indicator = world.told("action.done", json!({"action": "add_indicator"})).await;
    assert!(indicator["indicator_id"].is_string(), "{indicator}");

    // The brake.
    world.command("isolation", &["pause", "--reason", "drill"]).await;
    assert_eq!(world.told("isolations.paused", json!({})).await["reason"], "drill");
    world.tag(ingress, held, "block").await;
    let refused = world.told("containment.refused", json!({"source": "hosts"})).await;
    assert_eq!((&refused["reason"], &refused["outcome"]), (&json!("paused"), &json!("denied")));
    world.told("operator.alert", json!({"alert": "paused"})).await;
    assert_eq!(world.trigger(ingress, "FullIsolation", "ms_machine_id", HR_WORKSTATION).await, "failure");
    let refused = world.told("containment.refused", json!({"source": "relay"})).await;
    assert_eq!((&refused["reason"], &refused["machine_id"]), (&json!("paused"), &json!(HR_WORKSTATION)));
    world.command("isolation", &["resume"]).await;
    world.told("isolations.resumed", json!({})).await;
    world.until_tagged(held, "mde:isolation=isolated").await;
    world.told("machine.isolated", json!({"host_id": held})).await;

    for process in &mut processes {
        process.stop().await;
    }
    let received = world.received().await;
    let text = received.to_string();
    for secret in [SECRET, BRAIN_TOKEN, DEMO_CLIENT_SECRET, WEBHOOK_TOKEN, SECRET_KEY, &demo_token(), C2_ADDRESS] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let logs: String = processes.iter().map(Spawned::log).collect();
    assert!(!logs.contains(SECRET), "{logs}");
    assert_eq!(received["repeated"], 0, "{received}");
}

#[tokio::test]
async fn what_is_done_to_machines_is_told_on_sqlite() {
    tells(Queue::Sqlite).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn what_is_done_to_machines_is_told_on_rabbitmq() {
    tells(Queue::RabbitMq).await;
}

/// The receiver refuses at first: the machine is isolated all the same, and the receiver is told later.
async fn tries_again(queue: Queue) {
    let world = World::new(queue, None).await;
    world.control(json!({"refuse": 503})).await;
    let mut processes = world.start().await;
    let (host, began) = (world.hosts[0], Instant::now());
    world.tag(&processes[0], host, "block").await;
    world.until_tagged(host, "mde:isolation=isolated").await;
    let worker = processes.last().expect("a worker");
    worker.reaches("bridge_notifications_total{outcome=\"failed\"}", 2.0).await;
    assert_eq!(world.received().await["taken"], json!({}));
    world.control(json!({})).await;
    world.told("isolation.requested", json!({"host_id": host})).await;
    world.told("machine.isolated", json!({"host_id": host})).await;
    assert!(began.elapsed() >= FIRST_RETRY, "a retry came early, after {:?}", began.elapsed());
    worker.reaches("bridge_notifications_total{outcome=\"sent\"}", 2.0).await;
    for process in &mut processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_that_was_away_is_told_later_on_sqlite() {
    tries_again(Queue::Sqlite).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn a_receiver_that_was_away_is_told_later_on_rabbitmq() {
    tries_again(Queue::RabbitMq).await;
}

/// A brain that refuses to be searched waits for an operator, who is told of it once and not with each sweep.
#[tokio::test]
async fn a_brain_that_refuses_to_be_searched_is_told_once() {
    let world = World::new(Queue::Sqlite, None).await;
    let mut serve = world.role("serve").set("COGNITO_TOKEN", "not-it").set("BRIDGE_SWEEP_INTERVAL", "1s").start().await;
    world.told("operator.alert", json!({"alert": "cognito_read_refused"})).await;
    serve.reaches("bridge_searches_total{search=\"sweep\",outcome=\"failed\"}", 3.0).await;
    serve.stop().await;
    let received = world.received().await;
    assert_eq!(received["taken"].as_object().expect("by id").len(), 1, "{received}");
}

/// Nobody listens, or somebody who never answers: hosts are isolated all the same, and sooner than a notification's try
/// could have ended.
async fn holds_up_nobody(receiver: String) {
    let world = World::new(Queue::Sqlite, Some(receiver)).await;
    let mut serve = world.role("serve").start().await;
    for host in &world.hosts {
        world.tag(&serve, *host, "block").await;
    }
    for host in &world.hosts {
        world.until_tagged(*host, "mde:isolation=isolated").await;
    }
    serve.reaches("bridge_notifications_total{outcome=\"failed\"}", 3.0).await;
    assert_eq!(serve.metric("bridge_notifications_total{outcome=\"sent\"}").await, 0.0);
    serve.stop().await;
}

#[tokio::test]
async fn a_dead_receiver_holds_up_no_isolation() {
    holds_up_nobody(format!("http://127.0.0.1:{}/", closed_port())).await;
}

#[tokio::test]
async fn a_silent_receiver_holds_up_no_isolation() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            held.push(connection);
        }
    });
    holds_up_nobody(format!("http://{address}/")).await;
    held.abort();
}

/// The queue is away for longer than the try to put a notification into it.
#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn what_happens_while_the_queue_is_away_is_told_when_it_is_back() {
    let link = rabbitmq_settings("notifications", &TOPOLOGY);
    let mut cable = Cable::lay(&rabbitmq_url()).await;
    let through_cable = rabbitmq::Settings { urls: vec![cable.url().to_owned()], ..link.clone() };
    let cut_off = RabbitMq::connect(through_cable).await.expect("the broker");
    let broker = RabbitMq::connect(link).await.expect("the broker");
    let mut receiver = broker.receive(&NOTIFY, Lane::Normal, 10).await.expect("a receiver");
    let notifier = Notifier::new(cut_off.clone());

    cable.cut().await;
    notifier.brake(true, Some(Timestamp::now()), Some("analyst.one"), Some("drill")).await;
    cable.mend().await;

    let delivery = timeout(PATIENCE, receiver.next()).await.expect("in time").expect("a delivery");
    let notification = Notification::decode(&delivery.message.body).expect("a notification");
    let body: Value = serde_json::from_str(&notification.body).expect("JSON");
    assert_eq!((&body["type"], &body["data"]["reason"]), (&json!("isolations.paused"), &json!("drill")));
    delivery.settle(Settlement::Done { reply: None }).await.expect("settled");
    receiver.close().await;
    cut_off.close().await;
    broker.close().await;
}

/// Puts a notification that has failed nine times, and a body that nobody can read, into the queue.
async fn wear_out<B: Broker>(broker: B) {
    let body = json!({"type": "machine.isolated", "timestamp": "2026-03-01T10:00:07Z", "data": {}}).to_string();
    let notification = Notification { webhook_id: uuid::Uuid::now_v7(), body };
    broker.publish(&NOTIFY, Message::new(notification.encode()), Duration::ZERO).await.expect("published");
    let mut receiver = broker.receive(&NOTIFY, Lane::Normal, 1).await.expect("a receiver");
    for attempt in 1..10 {
        let delivery = timeout(PATIENCE, receiver.next()).await.expect("in time").expect("a delivery");
        assert_eq!(delivery.attempt, attempt);
        delivery.settle(Settlement::Retry { after: Duration::ZERO, body: None }).await.expect("settled");
    }
    receiver.close().await;
    let unreadable = Message::new(Bytes::from_static(b"no notification"));
    broker.publish(&NOTIFY, unreadable, Duration::ZERO).await.expect("published");
    broker.close().await;
}

/// What the receiver never takes is a dead letter after the tenth try, and shown as one.
async fn gives_up(queue: Queue) {
    let world = World::new(queue, Some(format!("http://127.0.0.1:{}/", closed_port()))).await;
    match queue {
        Queue::Sqlite => {
            let path = world.folder.path().join("queue");
            wear_out(Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.expect("a file")).await;
        }
        Queue::RabbitMq => {
            let link = world.link.clone().expect("it is on RabbitMQ");
            wear_out(RabbitMq::connect(link).await.expect("the broker")).await;
        }
    }
    let mut processes = world.start().await;
    let worker = processes.last().expect("a worker");
    worker.reaches("bridge_jobs_died_total{queue=\"notify\"", 2.0).await;
    assert_eq!(worker.metric("bridge_notifications_total{outcome=\"failed\"}").await, 1.0);
    assert_eq!(worker.metric("bridge_notifications_total{outcome=\"given_up\"}").await, 2.0);
    let listed = world.command("dead-letters", &["list", "--queue", "notify"]).await;
    for word in ["attempts", "undecodable", Notification::KIND] {
        assert!(listed.contains(word), "{word} is not in {listed}");
    }
    for process in &mut processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn what_the_receiver_never_takes_is_a_dead_letter_on_sqlite() {
    gives_up(Queue::Sqlite).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn what_the_receiver_never_takes_is_a_dead_letter_on_rabbitmq() {
    gives_up(Queue::RabbitMq).await;
}
