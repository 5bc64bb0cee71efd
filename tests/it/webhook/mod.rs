//! Host events over HTTP into the queue, on both queues: one file a subject. What is asked of one event alone stands beside
//! the code in `src/ingress/webhook`; here it is what a sender sees, and what is in the queue afterwards.

mod answers;
mod duplicates;
mod events;
mod lanes;
mod outages;
mod senders;
mod traces;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use defender_bridge::broker::rabbitmq::RabbitMq;
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::broker::{Broker, Lane, Message, Receiver, Settlement, Topology};
use defender_bridge::cli::roles::{self, Roles, Running};
use defender_bridge::config::{IngressSettings, Keys, Routes, TokenDigest, WebhookSettings};
use defender_bridge::credentials::SealKeys;
use defender_bridge::job::{self, TOPOLOGY};
use defender_bridge::shutdown::Shutdown;
use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

use crate::bridge::{Answer, client};
use crate::namespaces::rabbitmq_settings;

/// A story on both queues.
macro_rules! on_both_queues {
    ($($story:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $story() {
                super::$story::<crate::webhook::OnSqlite>().await;
            })+
        }
        mod on_rabbitmq {
            $(#[tokio::test]
            #[ignore = "needs RabbitMQ"]
            async fn $story() {
                super::$story::<crate::webhook::OnRabbitMq>().await;
            })+
        }
    };
}
use on_both_queues;

/// Long enough for a busy machine; nothing is expected to take it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a sender that cannot sign has.
pub const TOKEN: &str = "a-token-of-more-than-thirty-two-characters";

/// What signs requests.
const KEY: &[u8; 32] = b"a key of exactly thirty-two byte";

/// Everybody may send, as often as they like.
pub fn settings() -> WebhookSettings {
    WebhookSettings {
        secrets: vec![KEY.to_vec().into()],
        tokens: vec![TokenDigest::of(TOKEN.as_bytes())],
        rate: 100_000,
        peer_rate: 0,
        self_user: None,
    }
}

/// A queue of one kind.
pub trait Place {
    type B: Broker;

    async fn open(topology: &'static Topology) -> (Self::B, Option<TempDir>);
}

/// A file of the test's own.
pub struct OnSqlite;

impl Place for OnSqlite {
    type B = Sqlite;

    async fn open(topology: &'static Topology) -> (Sqlite, Option<TempDir>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = sqlite::Settings { path: folder.path().join("queue.sqlite"), topology };
        (Sqlite::open(settings).await.expect("the queue opens"), Some(folder))
    }
}

/// A namespace of the test's own at `TEST_RABBITMQ_URL`.
struct OnRabbitMq;

impl Place for OnRabbitMq {
    type B = RabbitMq;

    async fn open(topology: &'static Topology) -> (RabbitMq, Option<TempDir>) {
        let settings = rabbitmq_settings("webhook", topology);
        (RabbitMq::connect(settings).await.expect("RabbitMQ is there"), None)
    }
}

/// An ingress with a webhook, and the end of the queue where a worker would be.
pub struct Hook<B> {
    broker: B,
    pub address: SocketAddr,
    admin: SocketAddr,
    client: reqwest::Client,
    shutdown: Shutdown,
    running: Running,
    _folder: Option<TempDir>,
}

/// What is in the queue: the message, and what it says.
#[derive(Debug)]
pub struct Queued {
    pub message: Message,
    pub host: job::Host,
}

impl<B: Broker> Hook<B> {
    pub async fn start<P: Place<B = B>>() -> Self {
        Self::start_with::<P>(Some(settings()), &TOPOLOGY).await
    }

    pub async fn start_with<P: Place<B = B>>(webhook: Option<WebhookSettings>, topology: &'static Topology) -> Self {
        let (broker, folder) = P::open(topology).await;
        Self::start_on(broker, folder, webhook).await
    }

    async fn start_on(broker: B, folder: Option<TempDir>, webhook: Option<WebhookSettings>) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = IngressSettings {
            listen: any_port,
            routes: Routes::default(),
            deadline: Duration::from_secs(20),
            max_wait: Duration::from_secs(5),
            entities_limit: 100,
            key_sets: None,
        };
        let keys = Keys { token_keys: Vec::new(), seal_keys: Arc::new(SealKeys::derive(&[])) };
        let roles = Roles {
            ingress: Some(roles::Ingress { settings, keys, portal_url: "https://portal.example".to_owned(), webhook }),
            worker: None,
            admin_listen: Some(any_port),
        };
        let shutdown = Shutdown::new(Duration::from_secs(20));
        let running = roles::start(broker.clone(), roles, shutdown.clone()).await.expect("the roles start");
        Self {
            broker,
            address: running.ingress.expect("the ingress listens"),
            admin: running.admin.expect("the admin port listens"),
            client: client(),
            shutdown,
            running,
            _folder: folder,
        }
    }

    fn request(&self) -> reqwest::RequestBuilder {
        self.client.post(format!("http://{}/webhooks/cognito", self.address))
    }

    /// With the token.
    async fn post(&self, body: &Value) -> Answer {
        send(self.request().bearer_auth(TOKEN).json(body)).await
    }

    /// With a signature of now.
    async fn post_signed(&self, webhook_id: &str, body: &Value) -> Answer {
        let (body, timestamp) = (body.to_string(), Timestamp::now().as_second());
        let request = self.request().header("content-type", "application/json");
        let request = request
            .header("webhook-id", webhook_id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature(webhook_id, timestamp, &body));
        send(request.body(body)).await
    }

    /// Takes the next message of a lane for good.
    pub async fn next(&self, receiver: &mut Receiver) -> Queued {
        let delivery = tokio::time::timeout(PATIENCE, receiver.next()).await.expect("a message in time");
        let delivery = delivery.expect("the broker is open");
        assert_eq!(delivery.attempt, 1);
        let queued = Queued {
            message: delivery.message.clone(),
            host: job::Host::decode(&delivery.message.body).expect("a host event"),
        };
        delivery.settle(Settlement::Done { reply: None }).await.expect("settled");
        queued
    }

    pub async fn receive(&self, lane: Lane) -> Receiver {
        self.broker.receive(&job::HOSTS, lane, 100).await.expect("receiving")
    }

    /// Takes everything out of both lanes, and says in which each message was. The order within a lane is not promised.
    async fn drain(&self) -> BTreeMap<Lane, Vec<Queued>> {
        let mut drained = BTreeMap::new();
        for lane in [Lane::Urgent, Lane::Normal] {
            let count = self.ready(lane).await;
            if count == 0 {
                continue;
            }
            let mut receiver = self.receive(lane).await;
            let mut queued = Vec::new();
            for _ in 0..count {
                queued.push(self.next(&mut receiver).await);
            }
            receiver.close().await;
            drained.insert(lane, queued);
        }
        drained
    }

    /// Messages of both lanes, in the order of their hosts' ids.
    pub async fn drain_all(&self) -> Vec<Queued> {
        let mut all: Vec<Queued> = self.drain().await.into_values().flatten().collect();
        all.sort_by_key(|queued| queued.host.host_id);
        all
    }

    /// How many messages wait.
    pub async fn ready(&self, lane: Lane) -> u64 {
        let health = self.broker.check().await;
        let depth = health.queues.iter().find(|depth| depth.queue == job::HOSTS.name && depth.lane == lane);
        depth.unwrap_or_else(|| panic!("no such queue in {health:?}")).ready
    }

    pub async fn metrics(&self) -> String {
        let answer = send(self.client.get(format!("http://{}/metrics", self.admin))).await;
        assert_eq!(answer.status, 200);
        answer.text
    }

    pub async fn stop(self) {
        self.shutdown.begin();
        self.running.wait().await.expect("the roles stop in order");
    }
}

async fn send(request: reqwest::RequestBuilder) -> Answer {
    Answer::of(request.send().await.expect("the ingress answers")).await
}

/// `webhook-signature` of a request.
fn signature(webhook_id: &str, timestamp: i64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let content = format!("{webhook_id}.{timestamp}.{body}");
    format!("v1,{}", STANDARD.encode(hmac::sign(&key, content.as_bytes())))
}

/// One of the examples of the contract.
pub fn example(name: &str) -> Value {
    let path = format!("{}/tests/data/cognito/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).expect("JSON")
}

/// A tag was put on a host.
fn tagged(host: u64, tag: &str) -> Value {
    serde_json::json!({"type": "host.tag.added", "host": {"id": host}, "tag": tag})
}

/// The same with the sender's own id.
fn named(id: &str, host: u64, tag: &str) -> Value {
    let mut event = tagged(host, tag);
    event["id"] = id.into();
    event
}

/// `event_id` and `duplicate` of what was accepted.
fn accepted(answer: &Answer) -> Vec<(String, bool)> {
    assert_eq!(answer.status, 202, "{}", answer.text);
    let accepted = answer.json()["accepted"].as_array().cloned().expect("a list");
    let id = |entry: &Value| entry["event_id"].as_str().expect("an id").to_owned();
    accepted.iter().map(|entry| (id(entry), entry["duplicate"] == true)).collect()
}
