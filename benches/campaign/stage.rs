//! What a run takes place on: the simulator in this process, so that it can be watched and steered, and one ingress and
//! some workers as processes of the real binary at a broker.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::broker::{Broker as _, DeadLetter, DeadLetterFilter};
use defender_bridge::job::TOPOLOGY;
use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BRAIN_USER, Brain, BrainData, BrainSettings};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{self, Control, Simulator};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::process::{Process, free_port};

/// The tenant whose machines the hosts are.
pub const TENANT: &str = DEMO_TENANT_ID;

/// What asks to isolate a host's machine.
pub const BLOCK: &str = "block";

/// What asks to release it.
pub const UNBLOCK: &str = "unblock";

/// What asks for context.
pub const CONTEXT: &str = "host_context";

/// What the bridge's own tags begin with.
pub const PREFIX: &str = "mde:";

/// The relay's key and the webhook's token; worth nothing outside this run.
pub const SECRET_KEY: &str = "benchmark-benchmark-benchmark-benchmark-benchmark-benchmark-0123";
pub const WEBHOOK_TOKEN: &str = "benchmark-webhook-token-of-more-than-32-characters";

/// How often a process is started until it is ready.
const STARTS: u32 = 8;

/// Before a process is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Within this time a busy broker answers.
const BROKER_PATIENCE: Duration = Duration::from_secs(60);

/// The rungs of the broker's ladder of delays, where messages wait for their time.
const RUNGS: [&str; 11] = ["1s", "5s", "15s", "30s", "1m", "2m", "5m", "10m", "15m", "30m", "1h"];

/// See the module's documentation. Dropping it ends everything.
pub struct Stage {
    pub simulator: Simulator,
    pub workers: Vec<Worker>,
    /// Where the ingress listens.
    pub ingress: SocketAddr,
    pub client: reqwest::Client,
    binary: PathBuf,
    environment: BTreeMap<String, String>,
    broker: RabbitMq,
    broker_settings: rabbitmq::Settings,
    ingress_process: Process,
    folder: Option<TempDir>,
}

/// One worker, and where its operators' port is.
pub struct Worker {
    process: Option<Process>,
    admin: SocketAddr,
    starts: u32,
}

impl Stage {
    /// Starts everything, with these settings of the product besides those that belong to the stage.
    pub async fn set(
        broker_url: &str,
        workers: usize,
        settings: &[(&str, String)],
        simulator: simulator::Settings,
    ) -> anyhow::Result<Self> {
        let brain = BrainSettings { data: BrainData::Empty, ..BrainSettings::default() };
        let simulator = Simulator::start(simulator::Settings { brain, ..simulator }).await?;
        let folder = tempfile::Builder::new().prefix("bridge-bench-").tempdir()?;
        let run = Uuid::now_v7().simple().to_string();
        let namespace = format!("test-{}-hosts", &run[run.len() - 12..]);
        let upstream = simulator.url();
        let ingress = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let own = [
            ("SECRET_KEY", SECRET_KEY),
            ("BRIDGE_BROKER_URL", broker_url),
            ("BRIDGE_BROKER_NAMESPACE", &namespace),
            ("BRIDGE_ENTRA_URL", &upstream),
            ("BRIDGE_DEFENDER_URL", &upstream),
            ("BRIDGE_GRAPH_URL", &upstream),
            ("COGNITO_BRAIN", &upstream),
            ("COGNITO_TOKEN", BRAIN_TOKEN),
            ("BRIDGE_COGNITO_SELF_USER", BRAIN_USER),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
            ("BRIDGE_WEBHOOK_TOKEN", WEBHOOK_TOKEN),
            ("BRIDGE_TAG_ENRICH", CONTEXT),
            ("BRIDGE_TAG_BLOCK", BLOCK),
            ("BRIDGE_TAG_UNBLOCK", UNBLOCK),
        ];
        let mut environment: BTreeMap<String, String> =
            own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_defender-bridge"));

        let mut for_ingress = environment.clone();
        for_ingress.insert("BRIDGE_LISTEN".to_owned(), ingress.to_string());
        let mut tries = 1;
        let ingress_process = loop {
            let label = format!("ingress-{tries}");
            let (mut process, admin) = start("ingress", &label, &binary, &for_ingress, folder.path())?;
            match process.ready(admin, "/readyz").await {
                Ok(_) => break process,
                Err(error) if tries == STARTS => return Err(error),
                Err(_) => tries += 1,
            }
            sleep(RESTART_PAUSE).await;
        };
        let broker_settings = rabbitmq::Settings {
            urls: vec![broker_url.to_owned()],
            namespace: namespace.clone(),
            connection_name: "bench".to_owned(),
            topology: &TOPOLOGY,
        };
        let broker = RabbitMq::connect(broker_settings.clone()).await?;
        let mut stage = Self {
            simulator,
            workers: Vec::new(),
            ingress,
            client: reqwest::Client::builder().no_proxy().build()?,
            binary,
            environment,
            broker,
            broker_settings,
            ingress_process,
            folder: Some(folder),
        };
        for worker in 0..workers {
            let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            stage.workers.push(Worker { process: None, admin, starts: 0 });
            stage.launch(worker)?;
        }
        for worker in 0..workers {
            stage.ready(worker).await?;
        }
        Ok(stage)
    }

    /// Ends the processes and deletes what they had at the broker.
    pub async fn strike(self) -> anyhow::Result<()> {
        drop((self.workers, self.ingress_process));
        self.broker.close().await;
        Ok(RabbitMq::delete_namespace(&self.broker_settings).await?)
    }

    pub fn control(&self) -> &Control {
        self.simulator.control()
    }

    pub fn brain(&self) -> Brain {
        self.control().brain()
    }

    fn folder(&self) -> &Path {
        self.folder.as_ref().expect("there until the logs are kept at the end").path()
    }

    /// Starts a worker that does not run, ready or not.
    pub fn launch(&mut self, worker: usize) -> anyhow::Result<()> {
        let label = format!("worker-{worker}-{}", self.workers[worker].starts);
        let (process, admin) = start("worker", &label, &self.binary, &self.environment, self.folder())?;
        let worker = &mut self.workers[worker];
        worker.starts += 1;
        worker.admin = admin;
        worker.process = Some(process);
        Ok(())
    }

    /// Waits until a worker takes jobs. One that gives up because the broker is too busy is started again, as whatever runs
    /// the product does.
    pub async fn ready(&mut self, worker: usize) -> anyhow::Result<()> {
        let mut tries = 1;
        loop {
            let Worker { process, admin, .. } = &mut self.workers[worker];
            match process.as_mut().context("the worker does not run")?.ready(*admin, "/readyz").await {
                Ok(_) => return Ok(()),
                Err(error) if tries == STARTS => return Err(error),
                Err(_) => tries += 1,
            }
            sleep(RESTART_PAUSE).await;
            self.launch(worker)?;
        }
    }

    /// The product's processes that run, by role.
    pub fn processes(&self) -> Vec<(&'static str, u32)> {
        let workers = self.workers.iter().filter_map(|worker| worker.process.as_ref());
        std::iter::once(&self.ingress_process).chain(workers).map(|process| (process.name, process.id())).collect()
    }

    /// SIGKILL. False if it did not run.
    pub fn kill(&mut self, worker: usize) -> bool {
        self.workers[worker].process.take().is_some()
    }

    pub fn runs(&self, worker: usize) -> bool {
        self.workers[worker].process.is_some()
    }

    /// An error when a process ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.ingress_process.check()?;
        for worker in &mut self.workers {
            if let Some(process) = &mut worker.process {
                process.check()?;
            }
        }
        Ok(())
    }

    /// The sum of a worker's samples whose names, labels included, begin like this; `None` while it cannot be asked.
    pub async fn metric(&self, worker: usize, name: &str) -> Option<f64> {
        let url = format!("http://{}/metrics", self.workers[worker].admin);
        let answer = self.client.get(url).timeout(Duration::from_secs(2)).send().await.ok()?;
        let text = answer.text().await.ok()?;
        let samples = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
        Some(samples.filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
    }

    /// Whether this worker is the desk at present.
    pub async fn is_desk(&self, worker: usize) -> bool {
        self.metric(worker, "bridge_cognito_rate").await.is_some_and(|rate| rate > 0.0)
    }

    /// Sends an event to the webhook; when its 202 came.
    pub async fn tell(&self, host: u64, tag: &str) -> anyhow::Result<jiff::Timestamp> {
        let event = serde_json::json!({"type": "host.tag.added", "host": {"id": host}, "tag": tag});
        let url = format!("http://{}/webhooks/cognito", self.ingress);
        let answer = self.client.post(url).bearer_auth(WEBHOOK_TOKEN).json(&event).send().await?;
        let now = jiff::Timestamp::now();
        anyhow::ensure!(answer.status() == 202, "the webhook answered {}", answer.status());
        Ok(now)
    }

    /// Runs a command of the product to its end.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::new(&self.binary);
        let names = ["BRIDGE_BROKER_URL", "BRIDGE_BROKER_NAMESPACE"];
        let environment = names.iter().map(|name| (*name, self.environment[*name].as_str()));
        command.args(arguments).env_clear().envs(environment).env("HOME", self.folder()).kill_on_drop(true);
        let output = command.output().await?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        anyhow::ensure!(output.status.success(), "{arguments:?} ended with {}:\n{text}", output.status);
        Ok(text)
    }

    /// Host events that are not settled: in both lanes and on the ladder, and those that workers have in hands.
    pub async fn unsettled(&self) -> anyhow::Result<Unsettled> {
        let end = Instant::now() + BROKER_PATIENCE;
        let health = loop {
            let health = self.broker.check().await;
            if health.connected && !health.queues.is_empty() {
                break health;
            }
            anyhow::ensure!(Instant::now() < end, "the broker cannot be reached");
            sleep(Duration::from_secs(1)).await;
        };
        let ready = health.queues.iter().filter(|lane| lane.queue == "hosts").map(|lane| lane.ready).sum();
        // The product does not show these queues.
        let link = Connection::connect(&self.broker_settings.urls[0], ConnectionProperties::default()).await?;
        let channel = link.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let mut delayed = 0;
        for rung in RUNGS {
            let name = format!("{}.delay.{rung}", self.broker_settings.namespace);
            let queue = channel.queue_declare(name.into(), passive, FieldTable::default()).await?;
            delayed += u64::from(queue.message_count());
        }
        link.close(200, "seen".into()).await?;
        let mut in_hands = 0;
        for worker in (0..self.workers.len()).filter(|&worker| self.runs(worker)) {
            in_hands += self.metric(worker, "bridge_jobs_in_hands").await.unwrap_or(1.0) as u64;
        }
        Ok(Unsettled { ready, delayed, in_hands })
    }

    /// All dead letters of host events.
    pub async fn dead_letters(&self) -> anyhow::Result<Vec<DeadLetter>> {
        let end = Instant::now() + BROKER_PATIENCE;
        loop {
            match self.broker.dead_letters(&DeadLetterFilter::default()).await {
                Ok(letters) => return Ok(letters),
                Err(error) if Instant::now() > end => return Err(error.into()),
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Leaves the logs of the processes where they are.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.folder.take().map(TempDir::keep).unwrap_or_default()
    }
}

/// See [`Stage::unsettled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsettled {
    pub ready: u64,
    pub delayed: u64,
    pub in_hands: u64,
}

impl Unsettled {
    pub const NOTHING: Self = Self { ready: 0, delayed: 0, in_hands: 0 };
}

fn start(
    role: &'static str,
    label: &str,
    binary: &Path,
    environment: &BTreeMap<String, String>,
    folder: &Path,
) -> anyhow::Result<(Process, SocketAddr)> {
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let admin_text = admin.to_string();
    let mut environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    environment.push(("BRIDGE_ADMIN_LISTEN", &admin_text));
    Ok((Process::start(role, label, binary, &[role], &environment, folder)?, admin))
}
