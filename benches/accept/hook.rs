//! The product: an ingress with a webhook, and senders that post to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::cli::roles::{self, Roles};
use defender_bridge::config::{IngressSettings, Keys, Routes, TokenDigest, WebhookSettings};
use defender_bridge::credentials::SealKeys;
use defender_bridge::job::{Hint, Host, HostKind, TOPOLOGY};
use defender_bridge::shutdown::Shutdown;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::load::{self, Caller, Cell};
use crate::process::{Meter, Process, free_port};
use crate::{Kind, Timing};

/// Worth nothing outside this run.
const TOKEN: &str = "benchmark-benchmark-benchmark-benchmark";

/// No sender is refused for its rate.
const RATE: &str = "100000";

/// Each event has an id of its own.
static NEXT: AtomicU64 = AtomicU64::new(1);

fn event() -> Value {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    json!({
        "type": "host.tag.added", "id": format!("evt-{number:012}"), "host": {"id": number % 10_000 + 1},
        "tag": "block", "actor": "analyst.one",
    })
}

/// What the ingress puts into the queue for such an event, more or less.
pub fn message() -> Bytes {
    let host = Host {
        event_id: "evt-000000000001".to_owned(),
        sender: "webhook-token".to_owned(),
        host_id: 4711,
        kind: HostKind::TagAdded,
        occurred_at: Timestamp::now(),
        received_at: Timestamp::now(),
        hint: Some(Hint::Tag("block".to_owned())),
        actor: Some("analyst.one".to_owned()),
        progress: None,
    };
    host.encode()
}

pub fn message_bytes() -> usize {
    message().len()
}

/// A sender with its connection.
struct Poster {
    sender: SendRequest<Full<Bytes>>,
    kind: Kind,
}

impl Poster {
    async fn connect(address: SocketAddr, kind: Kind) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect to the ingress")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what went wrong is seen by the call.
        tokio::spawn(connection);
        Ok(Self { sender, kind })
    }
}

impl Caller for Poster {
    async fn call(&mut self) -> anyhow::Result<()> {
        let body = match self.kind {
            Kind::Batch => (0..self.kind.events()).map(|_| event()).collect::<Vec<_>>().into(),
            Kind::Floor | Kind::Single => event(),
        };
        let request = Request::post("/webhooks/cognito")
            .header("host", "bridge")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("content-type", "application/json")
            .body(Full::new(body.to_string().into()))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let accepted = body.windows(10).filter(|window| window == b"\"event_id\"").count();
        anyhow::ensure!(
            status == hyper::StatusCode::ACCEPTED && accepted == self.kind.events(),
            "status {status}: {}",
            String::from_utf8_lossy(&body[..body.len().min(300)])
        );
        Ok(())
    }
}

async fn post(address: SocketAddr, kind: Kind, callers: usize, timing: Timing) -> anyhow::Result<Cell> {
    let mut posters = Vec::with_capacity(callers);
    for _ in 0..callers {
        posters.push(Poster::connect(address, kind).await?);
    }
    load::run(posters, &Meter::default(), timing).await
}

fn addresses() -> anyhow::Result<[SocketAddr; 2]> {
    Ok([(Ipv4Addr::LOCALHOST, free_port()?).into(), (Ipv4Addr::LOCALHOST, free_port()?).into()])
}

pub async fn on_rabbitmq(url: &str, kind: Kind, callers: usize, timing: Timing, folder: &Path) -> anyhow::Result<Cell> {
    let namespace = format!("test-{}", Uuid::now_v7().simple());
    let [listen, admin] = addresses()?;
    let environment = [
        ("BRIDGE_BROKER_URL", url),
        ("BRIDGE_BROKER_NAMESPACE", &namespace),
        ("BRIDGE_LISTEN", &listen.to_string()),
        ("BRIDGE_ADMIN_LISTEN", &admin.to_string()),
        ("BRIDGE_WEBHOOK_TOKEN", TOKEN),
        ("BRIDGE_WEBHOOK_RATE", RATE),
    ];
    let binary = Path::new(env!("CARGO_BIN_EXE_defender-bridge"));
    let mut ingress = Process::start("ingress", &namespace, binary, &["ingress"], &environment, folder)?;
    ingress.ready(admin, "/readyz").await?;
    let cell = post(listen, kind, callers, timing).await;
    ingress.check()?;
    drop(ingress);
    let settings = rabbitmq::Settings {
        urls: vec![url.to_owned()],
        namespace,
        connection_name: "accept benchmark".to_owned(),
        topology: &TOPOLOGY,
    };
    RabbitMq::delete_namespace(&settings).await?;
    cell
}

pub async fn on_sqlite(kind: Kind, callers: usize, timing: Timing, folder: &Path) -> anyhow::Result<Cell> {
    let name = Uuid::now_v7().simple().to_string();
    let path = folder.join(format!("{name}.sqlite")).display().to_string();
    let [listen, admin] = addresses()?;
    let this = std::env::current_exe()?;
    let arguments = ["ingress", &path, &listen.to_string(), &admin.to_string()];
    let mut ingress = Process::start("ingress", &name, &this, &arguments, &[], folder)?;
    ingress.ready(admin, "/readyz").await?;
    let cell = post(listen, kind, callers, timing).await;
    ingress.check()?;
    cell
}

/// An ingress alone on an embedded queue. Runs until it is killed.
pub async fn serve(path: &Path, listen: SocketAddr, admin_listen: SocketAddr) -> anyhow::Result<()> {
    let broker = Sqlite::open(sqlite::Settings { path: path.to_owned(), topology: &TOPOLOGY }).await?;
    let rate = RATE.parse()?;
    let webhook = WebhookSettings {
        secrets: Vec::new(),
        tokens: vec![TokenDigest::of(TOKEN.as_bytes())],
        rate,
        peer_rate: 0,
        self_user: None,
    };
    let settings = IngressSettings {
        listen,
        routes: Routes::default(),
        deadline: Duration::from_secs(50),
        max_wait: Duration::from_secs(5),
        entities_limit: 100,
        key_sets: None,
    };
    let keys = Keys { token_keys: Vec::new(), seal_keys: Arc::new(SealKeys::derive(&[])) };
    let portal_url = "https://portal.example".to_owned();
    let ingress = roles::Ingress { settings, keys, portal_url, webhook: Some(webhook) };
    let roles = Roles { ingress: Some(ingress), worker: None, admin_listen: Some(admin_listen) };
    roles::start(broker, roles, Shutdown::new(Duration::from_secs(5))).await?.wait().await
}
