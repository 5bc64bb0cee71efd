//! Everything that runs during a measurement: broker, simulator, the product in each of its forms, and the echo. What
//! is not measured at the moment is idle.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use defender_bridge::broker::rabbitmq::{RabbitMq, Settings};
use defender_bridge::credentials::{Credentials, SealKeys};
use defender_bridge::job::{Job, Observe, TOPOLOGY};
use defender_bridge::relay::token;
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, PHISHING_DOMAIN};
use secrecy::SecretString;
use tempfile::TempDir;
use uuid::Uuid;

use crate::Kind;
use crate::echo::{self, Echo};
use crate::load::Target;
use crate::node::Node;
use crate::process::{Memory, Meter, Process, free_port};

/// The relay's key; worth nothing outside this run.
const SECRET_KEY: &str = "benchmark-benchmark-benchmark-benchmark-benchmark-benchmark-0123";

/// Longer than any run, so that a cached answer stays one.
const CACHED_TTL: &str = "1h";

/// Between a process's readiness and the look at its idle memory.
const SETTLE: Duration = Duration::from_secs(1);

/// See the module's documentation. Dropping it ends everything.
pub struct Stage {
    pub echo: Option<Arc<Echo>>,
    pub node: Option<Node>,
    pub binary: PathBuf,
    pub request_bytes: usize,
    pub reply_bytes: usize,
    pub question: Bytes,
    simulator: Process,
    echo_server: Option<Process>,
    products: BTreeMap<Kind, Product>,
    folder: Option<TempDir>,
}

/// One deployment of the product.
pub struct Product {
    pub processes: Vec<Started>,
    target: Target,
    /// What it has at the broker.
    namespace: Option<Settings>,
}

/// A process of the product and what is known of its start.
pub struct Started {
    pub process: Process,
    pub ready: Duration,
    pub idle: Memory,
}

impl Stage {
    /// Starts what `kinds` need.
    pub async fn set(kinds: &[Kind], binary: Option<&Path>) -> anyhow::Result<Self> {
        let binary = binary.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_defender-bridge")), Path::to_owned);
        let folder = tempfile::Builder::new().prefix("relay-bench-").tempdir()?;
        let node = if kinds.iter().any(|kind| kind.needs_broker()) { Some(Node::find().await?) } else { None };
        let run = Uuid::now_v7().simple().to_string();

        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let arguments = ["simulate", "--no-quota", "--no-record", "--listen", &address.to_string()];
        let mut simulator = Process::start("simulator", "simulator", &binary, &arguments, &[], folder.path())?;
        simulator.ready(address, "/_simulator/health").await?;
        let upstream = format!("http://{address}");

        let question = Bytes::from(serde_json::json!([{"type": "domain", "value": PHISHING_DOMAIN}]).to_string());
        let mut stage = Self {
            echo: None,
            node,
            binary,
            request_bytes: job()?.len(),
            reply_bytes: 0,
            question,
            simulator,
            echo_server: None,
            products: BTreeMap::new(),
            folder: Some(folder),
        };
        for &kind in kinds.iter().filter(|kind| **kind != Kind::Echo) {
            let mut product = stage.start(kind, &upstream, &run).await?;
            let answer = product.target.probe().await.with_context(|| format!("asking {}", kind.name()))?;
            stage.reply_bytes = answer.len();
            stage.products.insert(kind, product);
        }
        if kinds.contains(&Kind::Echo) {
            stage.start_echo(&run).await?;
        }
        Ok(stage)
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().expect("there until the logs are kept at the end").path()
    }

    async fn start(&self, kind: Kind, upstream: &str, run: &str) -> anyhow::Result<Product> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let listen_text = listen.to_string();
        let queue = match (&self.node, kind.needs_broker()) {
            (Some(node), true) => node.url.clone(),
            _ => format!("sqlite:{}", self.folder().join(kind.name()).join("queue.sqlite").display()),
        };
        let namespace = format!("test-{}-{}", &run[run.len() - 12..], kind.name());
        let ttl = if kind.is_cached() { CACHED_TTL } else { "0" };
        let environment = [
            ("SECRET_KEY", SECRET_KEY),
            ("BRIDGE_LISTEN", &listen_text),
            ("BRIDGE_BROKER_URL", &queue),
            ("BRIDGE_BROKER_NAMESPACE", &namespace),
            ("BRIDGE_ANSWER_TTL", ttl),
            ("BRIDGE_ENTRA_URL", upstream),
            ("BRIDGE_DEFENDER_URL", upstream),
            ("BRIDGE_GRAPH_URL", upstream),
            // The simulator has no quotas here.
            ("BRIDGE_QUOTA_ALERTS", "1000000/1000000"),
            ("BRIDGE_QUOTA_MACHINES", "1000000/1000000"),
            ("BRIDGE_QUOTA_ACTIONS", "1000000/1000000"),
            ("BRIDGE_QUOTA_MACHINEACTIONS", "1000000/1000000"),
            ("BRIDGE_QUOTA_HUNTING", "1000000"),
        ];
        let roles: &[&'static str] = if kind.needs_broker() { &["ingress", "worker"] } else { &["serve"] };
        let mut processes = Vec::with_capacity(roles.len());
        for role in roles {
            let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let admin_text = admin.to_string();
            let environment = [&environment[..], &[("BRIDGE_ADMIN_LISTEN", admin_text.as_str())]].concat();
            let label = format!("{}-{role}", kind.name());
            let mut process = Process::start(role, &label, &self.binary, &[role], &environment, self.folder())?;
            let ready = process.ready(admin, "/readyz").await?;
            processes.push(Started { process, ready, idle: Memory::default() });
        }
        tokio::time::sleep(SETTLE).await;
        for started in &mut processes {
            started.idle = Memory::of(started.process.id());
        }
        let claims = token::Claims {
            tenant_id: DEMO_TENANT_ID.to_owned(),
            client_id: DEMO_CLIENT_ID.to_owned(),
            client_secret: DEMO_CLIENT_SECRET.into(),
            entities_limit: None,
        };
        let token = token::mint(&claims, None, &SECRET_KEY.into());
        let namespace = kind.needs_broker().then(|| Settings {
            urls: vec![queue],
            namespace,
            connection_name: "relay benchmark".to_owned(),
            topology: &TOPOLOGY,
        });
        Ok(Product { processes, target: Target::new(listen, &token, self.question.clone()), namespace })
    }

    async fn start_echo(&mut self, run: &str) -> anyhow::Result<()> {
        let node = self.node.as_ref().context("the echo needs a broker")?;
        if self.reply_bytes == 0 {
            // Measured alone: about what the answer to our question has.
            self.reply_bytes = 12_000;
        }
        let queue = format!("test-{}-echo", &run[run.len() - 12..]);
        // The client declares the queue.
        let request = Bytes::from(vec![b'x'; self.request_bytes]);
        self.echo = Some(Echo::open(&node.url, &queue, request, self.reply_bytes).await?);
        let this = std::env::current_exe()?;
        let arguments = ["echo-server", &queue, &self.reply_bytes.to_string()];
        let environment = [(echo::URL_VARIABLE, node.url.as_str())];
        let server = Process::start("echo server", "echo-server", &this, &arguments, &environment, self.folder())?;
        self.echo_server = Some(server);
        Ok(())
    }

    /// Where to ask a product.
    pub fn target(&self, kind: Kind) -> Option<&Target> {
        self.products.get(&kind).map(|product| &product.target)
    }

    /// The product's processes by kind.
    pub fn products(&self) -> impl Iterator<Item = (Kind, &[Started])> {
        self.products.iter().map(|(kind, product)| (*kind, product.processes.as_slice()))
    }

    /// Whose CPU time a cell of this kind costs.
    pub fn meter(&self, kind: Kind) -> Meter {
        let mut parts = vec![("load", std::process::id())];
        let product = self.products.get(&kind).into_iter().flat_map(|product| &product.processes);
        parts.extend(product.map(|started| (started.process.name, started.process.id())));
        if kind == Kind::Echo {
            parts.extend(self.echo_server.as_ref().map(|server| (server.name, server.id())));
        } else {
            parts.push((self.simulator.name, self.simulator.id()));
        }
        if kind.needs_broker() {
            parts.extend(self.node.as_ref().and_then(Node::process).map(|process| ("broker", process)));
        }
        Meter(parts)
    }

    /// Ends the echo and the product, and takes away what they had at the broker.
    pub async fn clear(&mut self) -> anyhow::Result<()> {
        if let Some(echo) = &self.echo {
            echo.remove().await;
        }
        for (_, product) in std::mem::take(&mut self.products) {
            drop(product.processes);
            if let Some(namespace) = &product.namespace {
                RabbitMq::delete_namespace(namespace).await?;
            }
        }
        Ok(())
    }

    /// Leaves the logs of the processes where they are.
    pub fn keep_logs(mut self) -> PathBuf {
        self.folder.take().map(TempDir::keep).unwrap_or_default()
    }
}

/// A job as the ingress writes it for our question.
fn job() -> anyhow::Result<Bytes> {
    let credentials = Credentials {
        tenant_id: DEMO_TENANT_ID.to_owned(),
        client_id: DEMO_CLIENT_ID.to_owned(),
        client_secret: DEMO_CLIENT_SECRET.into(),
    };
    let key: SecretString = SECRET_KEY.into();
    let credentials = SealKeys::derive(&[&key]).seal(&credentials, Uuid::now_v7())?;
    let observables = vec![("domain".to_owned(), PHISHING_DOMAIN.to_owned())];
    Ok(Job::Observe(Observe { credentials, limit: 100, observables }).encode())
}
