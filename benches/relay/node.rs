//! The broker: the one that is named, or a private node.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

use super::process::free_port;

/// The variable that the tests use too.
const URL_VARIABLE: &str = "TEST_RABBITMQ_URL";

/// The node's name within its folder.
const NAME: &str = "bench";

/// A broker to measure on. A private node is stopped when this is dropped.
pub struct Node {
    pub url: String,
    /// What the broker says of itself.
    pub version: String,
    private: Option<Private>,
}

impl Node {
    pub async fn find() -> anyhow::Result<Self> {
        let (url, private) = match std::env::var(URL_VARIABLE) {
            Ok(url) if !url.is_empty() => (url, None),
            _ => {
                let private = tokio::task::spawn_blocking(Private::start).await??;
                (private.url.clone(), Some(private))
            }
        };
        let version = version(&url).await.context("RabbitMQ does not answer")?;
        Ok(Self { url, version, private })
    }

    /// Whether it was started for this run.
    pub fn is_private(&self) -> bool {
        self.private.is_some()
    }

    /// Turns the memory alarm of a private node on or off: while it is on the broker takes no messages.
    pub async fn alarm(&self, on: bool) -> anyhow::Result<()> {
        let watermark = if on { "0" } else { "0.8" };
        self.tell("ctl", &["set_vm_memory_high_watermark", watermark]).await
    }

    /// SIGKILL to a private node. Its data stays.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.tell("kill", &[]).await
    }

    /// Starts a private node that was killed and waits until it takes connections.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let ports = self.private.as_ref().context("the node is not ours")?.ports.each_ref().map(String::as_str);
        self.tell("start", &ports).await?;
        self.tell("wait", &[]).await
    }

    async fn tell(&self, command: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let private = self.private.as_ref().context("the node is not ours")?;
        let mut command = node(&[command], private.folder.path());
        command.args(arguments);
        tokio::task::spawn_blocking(move || run(&mut command)).await?
    }

    /// Its process, when it is on this machine and ours.
    pub fn process(&self) -> Option<u32> {
        let private = self.private.as_ref()?;
        let output = node(&["pid"], private.folder.path()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    }
}

/// A node that is this run's own, and may be broken.
struct Private {
    url: String,
    ports: [String; 3],
    folder: TempDir,
}

impl Private {
    fn start() -> anyhow::Result<Self> {
        eprintln!("starting a private RabbitMQ node");
        let folder = tempfile::Builder::new().prefix("relay-bench-node-").tempdir()?;
        let ports = [free_port()?, free_port()?, free_port()?].map(|port| port.to_string());
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", ports[0]);
        run(node(&["start"], folder.path()).args(&ports))?;
        // From here on dropping it stops the node.
        let private = Self { url, ports, folder };
        run(&mut node(&["wait"], private.folder.path()))?;
        Ok(private)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(error) = run(&mut node(&["stop"], self.folder.path())) {
            eprintln!("the private RabbitMQ node was not stopped: {error:#}");
        }
    }
}

/// `tests/rabbitmq-node COMMAND FOLDER NAME`.
fn node(command: &[&str], folder: &Path) -> Command {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "rabbitmq-node"].iter().collect();
    let mut process = Command::new(script);
    process.args(command).arg(folder).arg(NAME);
    process
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().context("tests/rabbitmq-node cannot be run")?;
    anyhow::ensure!(
        output.status.success(),
        "{} (or name a broker in {URL_VARIABLE})",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The version in the broker's greeting, which it sends before anybody has logged in.
async fn version(url: &str) -> anyhow::Result<String> {
    let url = Url::parse(url).with_context(|| format!("{URL_VARIABLE} is not a URL"))?;
    if url.scheme() != "amqp" {
        return Ok("over TLS".to_owned());
    }
    let host = url.host_str().context("the broker's URL has no host")?;
    let mut stream = tokio::net::TcpStream::connect((host, url.port().unwrap_or(5672))).await?;
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    let mut greeting = vec![0; 4096];
    let length = stream.read(&mut greeting).await?;
    // A short string as key, `S`, four bytes of length, text.
    let key = b"\x07versionS";
    let at = greeting[..length].windows(key.len()).position(|window| window == key).context("no version")?;
    let text = greeting.get(at + key.len() + 4..).unwrap_or_default();
    let text: Vec<u8> = text.iter().copied().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').collect();
    Ok(String::from_utf8(text)?)
}
