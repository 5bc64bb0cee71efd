//! Roles of the real binary as processes of their own: ports by the system, addresses read from the log, everything
//! that is logged kept.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use defender_bridge::job::TOPOLOGY;
use defender_bridge::simulator::{self, Simulator};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::bridge::{Answer, SECRET_KEY, client, demo_token, observable_list};
use super::namespaces::{rabbitmq_settings, rabbitmq_url};

/// The longest a test waits for something that must happen, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A role that is about to be started.
pub struct Role {
    name: &'static str,
    arguments: Vec<String>,
    settings: BTreeMap<String, String>,
}

impl Role {
    /// A role with the keys of the tests, ports by the system, no cached answers, no quota in the way, and nothing of
    /// this process's own settings.
    pub fn new(name: &'static str) -> Self {
        let settings = [
            ("HOME", env!("CARGO_TARGET_TMPDIR")),
            ("BRIDGE_LOG", "json"),
            ("SECRET_KEY", SECRET_KEY),
            ("BRIDGE_LISTEN", "127.0.0.1:0"),
            ("BRIDGE_ADMIN_LISTEN", "127.0.0.1:0"),
            ("BRIDGE_ANSWER_TTL", "0s"),
            ("BRIDGE_QUOTA_ALERTS", "1000000/1000000"),
            ("BRIDGE_QUOTA_MACHINES", "1000000/1000000"),
            ("BRIDGE_QUOTA_ACTIONS", "1000000/1000000"),
            ("BRIDGE_QUOTA_MACHINEACTIONS", "1000000/1000000"),
            ("BRIDGE_QUOTA_HUNTING", "1000000"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { name, arguments: Vec::new(), settings }
    }

    /// What follows the role's name on the command line.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.insert(name.to_owned(), value.into());
        self
    }

    /// Sets what several roles have in common.
    #[must_use]
    pub fn set_all(mut self, settings: &[(&str, &str)]) -> Self {
        self.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// Microsoft is there.
    #[must_use]
    pub fn upstream(self, url: &str) -> Self {
        self.set_all(&[("BRIDGE_ENTRA_URL", url), ("BRIDGE_DEFENDER_URL", url), ("BRIDGE_GRAPH_URL", url)])
    }

    /// The queue is in this file.
    #[must_use]
    pub fn sqlite(self, path: &Path) -> Self {
        self.set("BRIDGE_BROKER_URL", format!("sqlite:{}", path.display()))
    }

    /// Starts the process, ready or not.
    pub fn spawn(self) -> Spawned {
        let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
        command.arg(self.name).args(self.arguments).env_clear().envs(&self.settings).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let log = watch::Sender::new(Log { open: 2, ..Log::default() });
        tokio::spawn(keep(child.stdout.take().expect("piped"), log.clone()));
        tokio::spawn(keep(child.stderr.take().expect("piped"), log.clone()));
        Spawned { name: self.name, child, log, client: client(), ingress: None, admin: None }
    }

    /// Starts the process and waits until it serves.
    pub async fn start(self) -> Spawned {
        let mut spawned = self.spawn();
        spawned.serving().await;
        spawned
    }
}

/// What a process has said.
#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
    /// Its outputs that have not ended.
    open: u8,
}

async fn keep(output: impl AsyncRead + Unpin, log: watch::Sender<Log>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.send_modify(|log| log.lines.push(line));
    }
    log.send_modify(|log| log.open -= 1);
}

/// A process. It is killed when dropped.
pub struct Spawned {
    name: &'static str,
    child: Child,
    log: watch::Sender<Log>,
    client: reqwest::Client,
    ingress: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

impl Spawned {
    /// Waits until it serves, and takes note of its addresses.
    pub async fn serving(&mut self) {
        let address = |line: &str| -> Option<SocketAddr> {
            match serde_json::from_str::<Value>(line) {
                Ok(line) => line["http.address"].as_str()?.parse().ok(),
                Err(_) => line.split_once("http.address=")?.1.split(' ').next()?.parse().ok(),
            }
        };
        if self.name != "worker" {
            self.ingress = address(&self.logged("the ingress listens").await);
        }
        self.admin = address(&self.logged("the admin port listens").await);
        if self.name != "ingress" {
            self.logged("the worker takes jobs").await;
        }
    }

    /// Waits for a line with this text and returns the first one.
    pub async fn logged(&self, part: &str) -> String {
        let mut log = self.log.subscribe();
        let find = |log: &Log| log.lines.iter().find(|line| line.contains(part)).cloned();
        let found = timeout(PATIENCE, log.wait_for(|log| log.open == 0 || find(log).is_some())).await;
        let found = found.ok().and_then(|log| find(&log.expect("the sender is ours")));
        found.unwrap_or_else(|| panic!("{} never logged {part:?}:\n{}", self.name, self.log()))
    }

    /// Everything it has written so far to standard output and standard error.
    pub fn log(&self) -> String {
        self.log.borrow().lines.join("\n")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.ingress())
    }

    pub fn ingress(&self) -> SocketAddr {
        self.ingress.expect("an ingress that serves")
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin.expect("a role that serves"))
    }

    /// `POST /observe/observables` with the demo tenant's token.
    pub async fn observe(&self, observables: &[(&str, &str)]) -> Answer {
        ask(&self.client, &self.url("/observe/observables"), observables).await
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let response = self.client.get(self.admin_url("/metrics")).send().await.expect("the admin port answers");
        response.text().await.expect("text")
    }

    /// The sum of a metric's samples whose names, labels included, begin like this.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let samples = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit_once(' '));
        samples.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
    }

    /// Waits until a metric has at least this value.
    pub async fn reaches(&self, name: &str, value: f64) {
        let end = Instant::now() + PATIENCE;
        while self.metric(name).await < value {
            assert!(Instant::now() < end, "{} never reached {value} at {}", name, self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Jobs it has answered.
    pub async fn jobs_worked(&self) -> u64 {
        self.metric("bridge_job_duration_seconds_count{job=\"observe\",outcome=\"ok\"}").await as u64
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("a process that was not waited for")
    }

    /// Sends a signal, like `-TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = std::process::Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits for its end, at most `limit`. The log is complete then.
    pub async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let Ok(status) = timeout(limit, self.child.wait()).await else {
            panic!("{} did not end within {limit:?}:\n{}", self.name, self.log());
        };
        let mut log = self.log.subscribe();
        log.wait_for(|log| log.open == 0).await.expect("the sender is ours");
        status.expect("a child can be waited for")
    }

    /// SIGTERM, and an orderly end.
    pub async fn stop(&mut self) {
        self.signal("-TERM");
        let status = self.ends_within(PATIENCE).await;
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.log());
    }
}

/// `POST url` with observables and the demo tenant's token.
pub async fn ask(client: &reqwest::Client, url: &str, observables: &[(&str, &str)]) -> Answer {
    let request = client.post(url).bearer_auth(demo_token()).json(&observable_list(observables));
    Answer::of(request.send().await.expect("the ingress answers")).await
}

/// A port where nobody listens: below those that the system gives to others, so that nobody will.
pub fn closed_port() -> u16 {
    let free = (24_000..25_000).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a port that is free")
}

/// A simulator without quotas.
pub async fn simulator() -> Simulator {
    let settings = simulator::Settings { quota: None, ..simulator::Settings::default() };
    Simulator::start(settings).await.expect("the simulator listens")
}

/// Roles that share a broker, a namespace there and a simulator.
pub struct Deployment {
    settings: Vec<(String, String)>,
}

impl Deployment {
    /// At the broker of `TEST_RABBITMQ_URL`.
    pub fn new(upstream: &str) -> Self {
        Self::at(&rabbitmq_url(), upstream)
    }

    /// At this broker.
    pub fn at(broker: &str, upstream: &str) -> Self {
        let namespace = rabbitmq_settings("processes", &TOPOLOGY).namespace;
        let settings = [
            ("BRIDGE_BROKER_URL", broker),
            ("BRIDGE_BROKER_NAMESPACE", namespace.as_str()),
            ("BRIDGE_ENTRA_URL", upstream),
            ("BRIDGE_DEFENDER_URL", upstream),
            ("BRIDGE_GRAPH_URL", upstream),
        ];
        Self { settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into() }
    }

    /// For all roles.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    pub fn role(&self, name: &'static str) -> Role {
        self.settings.iter().fold(Role::new(name), |role, (name, value)| role.set(name, value))
    }

    pub async fn ingress(&self) -> Spawned {
        self.role("ingress").start().await
    }

    pub async fn workers<const N: usize>(&self) -> [Spawned; N] {
        let started = futures_util::future::join_all((0..N).map(|_| self.role("worker").start())).await;
        started.try_into().unwrap_or_else(|_| panic!("{N} workers"))
    }
}
