//! Processes that the benchmark starts, and what `/proc` says of their CPU time and memory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// `/proc` counts CPU time in these, on every Linux that Rust runs on (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// A process that is not ready by then will never be.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How often readiness is looked at: fine enough for a start of some ten milliseconds.
const READY_PAUSE: Duration = Duration::from_millis(2);

/// A process of ours. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// What it is, for tables.
    pub name: &'static str,
    child: std::process::Child,
    log: PathBuf,
    started: Instant,
}

impl Process {
    /// Starts a program with nothing of this process's own settings; its output goes to a file in `folder`.
    pub fn start(
        name: &'static str,
        label: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let log = folder.join(format!("{label}.log"));
        let file = File::create(&log)?;
        let started = Instant::now();
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| (OsStr::new("PATH").to_owned(), path)))
            .env("HOME", folder)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name, child, log, started })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `path` at `address` answers 200; how long that took from the start of the process.
    pub async fn ready(&mut self, address: SocketAddr, path: &str) -> anyhow::Result<Duration> {
        while self.started.elapsed() < READY_LIMIT {
            if answers(address, path).await {
                return Ok(self.started.elapsed());
            }
            self.check()?;
            tokio::time::sleep(READY_PAUSE).await;
        }
        Err(self.failure("is not ready"))
    }

    /// An error when it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.failure(&format!("has ended ({status})"))),
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        anyhow::anyhow!("{} {what}; its last lines:\n{last}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a GET is answered 200.
async fn answers(address: SocketAddr, path: &str) -> bool {
    let get = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        Some(answer.starts_with(b"HTTP/1.1 200"))
    };
    tokio::time::timeout(Duration::from_secs(1), get).await.ok().flatten().unwrap_or(false)
}

/// A free port on loopback below 32768, where the kernel hands out no source ports.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let (_, random) = uuid::Uuid::now_v7().as_u64_pair();
        let port = 10_000 + (random % 20_000) as u16;
        if std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port found")
}

/// Memory of a process in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident now.
    pub resident: Option<u64>,
    /// The most ever.
    pub peak: Option<u64>,
    /// Of the resident memory, what is the process's own and not pages of its program file.
    pub own: Option<u64>,
    pub threads: Option<u64>,
}

impl Memory {
    pub fn of(process: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Self { resident: field("VmRSS"), peak: field("VmHWM"), own: field("RssAnon"), threads: field("Threads") }
    }
}

/// Whose CPU time a cell looks at: several processes may bear one name.
#[derive(Debug, Clone, Default)]
pub struct Meter(pub Vec<(&'static str, u32)>);

/// CPU time by name, and of the whole machine.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    pub parts: BTreeMap<&'static str, Duration>,
    /// All processors, everybody's work.
    pub busy: Duration,
    pub idle: Duration,
}

impl Meter {
    pub fn read(&self) -> Usage {
        let mut usage = Usage::default();
        for (name, process) in &self.0 {
            *usage.parts.entry(name).or_default() += cpu_time(*process).unwrap_or_default();
        }
        (usage.busy, usage.idle) = machine_time().unwrap_or_default();
        usage
    }
}

impl Usage {
    pub fn since(mut self, before: &Self) -> Self {
        for (name, time) in &mut self.parts {
            *time = time.saturating_sub(before.parts.get(name).copied().unwrap_or_default());
        }
        self.busy = self.busy.saturating_sub(before.busy);
        self.idle = self.idle.saturating_sub(before.idle);
        self
    }

    pub fn add(&mut self, other: &Self) {
        for (name, time) in &other.parts {
            *self.parts.entry(name).or_default() += *time;
        }
        self.busy += other.busy;
        self.idle += other.idle;
    }
}

fn ticks(field: &str) -> Option<Duration> {
    Some(TICK * u32::try_from(field.parse::<u64>().ok()?).ok()?)
}

/// User and system time of a process.
fn cpu_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything; after it utime and stime are the 12th and 13th field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(ticks(fields.next()?)? + ticks(fields.next()?)?)
}

/// Busy and idle time of all processors.
fn machine_time() -> Option<(Duration, Duration)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Option<Vec<Duration>> = stat.lines().next()?.split_whitespace().skip(1).take(8).map(ticks).collect();
    let fields = fields?;
    let idle = *fields.get(3)? + *fields.get(4)?;
    Some((fields.iter().sum::<Duration>().saturating_sub(idle), idle))
}
