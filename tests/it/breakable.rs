//! Brokers that a test may break: a RabbitMQ node of its own, a witness of when a node works, and a cable to any broker.

use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use url::Url;
use uuid::Uuid;

/// Stories that load the machine with several processes, or ask how soon something is back, take turns.
pub static TURN: Mutex<()> = Mutex::const_new(());

/// A RabbitMQ node of one test's own. It ends with this value; its data too.
pub struct Node {
    base: TempDir,
    ports: [u16; 3],
}

impl Node {
    /// Starts a node and waits until it takes connections.
    pub async fn start() -> Self {
        let node = Self { base: tempfile::tempdir().expect("a folder"), ports: free_ports() };
        node.launch().await;
        node.wait().await;
        node
    }

    /// Begins to start it, on its old data when it has some.
    pub async fn launch(&self) {
        let ports = self.ports.map(|port| port.to_string());
        self.run("start", ports.to_vec()).await;
    }

    /// Waits until it takes connections.
    pub async fn wait(&self) {
        self.run("wait", Vec::new()).await;
    }

    /// SIGKILL.
    pub async fn kill(&self) {
        self.run("kill", Vec::new()).await;
    }

    /// Sends the node a signal, like `-STOP`.
    pub async fn signal(&self, signal: &str) {
        let pid = self.run("pid", Vec::new()).await;
        let sent = Command::new("kill").args([signal, pid.trim()]).status().expect("kill runs");
        assert!(sent.success(), "{signal} {pid}");
    }

    /// Turns its memory alarm on or off: while it is on the node takes no messages.
    pub async fn alarm(&self, on: bool) {
        self.ctl(&["set_vm_memory_high_watermark", if on { "0" } else { "0.8" }]).await;
    }

    /// `rabbitmqctl`.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        self.run("ctl", arguments.iter().map(|argument| (*argument).to_owned()).collect()).await
    }

    pub const fn port(&self) -> u16 {
        self.ports[0]
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port())
    }

    /// Its data and its logs.
    pub fn folder(&self) -> &Path {
        self.base.path()
    }

    async fn run(&self, command: &'static str, arguments: Vec<String>) -> String {
        let base = self.base.path().to_owned();
        spawn_blocking(move || script(&base, command, &arguments)).await.expect("the script runs")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Also at the end of a test that failed, whose message must not be lost by a second panic.
        let _ = std::panic::catch_unwind(|| script(self.base.path(), "stop", &[]));
    }
}

fn script(base: &Path, command: &str, arguments: &[String]) -> String {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/rabbitmq-node");
    let mut process = Command::new(script);
    process.arg(command).arg(base).arg("own").args(arguments).stdin(Stdio::null());
    let output = process.output().expect("the script runs");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Below the range from which the kernel takes source ports; each call of a process begins elsewhere.
pub fn free_ports() -> [u16; 3] {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % 4_000).expect("below 4,000");
    let start = 12_000 + process + CALLS.fetch_add(1, Ordering::Relaxed) * 100;
    let mut free = (start..24_000).filter(|port| StdListener::bind(("127.0.0.1", *port)).is_ok());
    [(); 3].map(|()| free.next().expect("a free port"))
}

/// The longest a witness waits, for the broker's disk or for the broker.
const WITNESS_PATIENCE: Duration = Duration::from_secs(90);
/// The longest one look of a witness takes; a node that is just starting may swallow what it was sent.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Says when a node may be killed, and when it works again. It has queues of its own there, one of each kind that the
/// product uses, and shares no code with the product: what the broker itself needs until its queues work, some time
/// after its port has opened, is not the product's.
pub struct Witness {
    url: String,
    queues: [(String, &'static str); 3],
}

impl Witness {
    /// Declares the queues, and waits until SIGKILL costs the node neither these nor any declared before them.
    ///
    /// A node has the directory of its quorum queues and streams in a file that RabbitMQ before 4.0 writes only when
    /// there was nothing new for half a second (rabbitmq/ra#443). Killed before, it never finds the newest again: they
    /// are "down or inaccessible", or take no message, until they are deleted.
    pub async fn at(url: &str, folder: &Path) -> Self {
        let id = Uuid::now_v7().simple();
        let queues = ["classic", "quorum", "stream"].map(|kind| (format!("witness-{id}-{kind}"), kind));
        let witness = Self { url: url.to_owned(), queues };
        witness.look().await.expect("the node works");
        let quorum = &witness.queues[1].0;
        let written = timeout(WITNESS_PATIENCE, async {
            while !holds(folder, "quorum", quorum) || !holds(folder, "coordination", "rabbit_stream_coordinator") {
                sleep(LOOK_PAUSE).await;
            }
        });
        written.await.expect("the node writes down which queues it has");
        witness
    }

    /// Waits until every queue stores a message.
    pub async fn sees_it_work(&self) {
        let works = timeout(WITNESS_PATIENCE, async {
            while !matches!(timeout(LOOK_LIMIT, self.look()).await, Ok(Ok(()))) {
                sleep(LOOK_PAUSE).await;
            }
        });
        works.await.expect("the broker works again");
    }

    async fn look(&self) -> Result<(), String> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await;
        let connection = connection.map_err(|error| error.to_string())?;
        for (name, kind) in &self.queues {
            let stored = store(&connection, name, kind).await;
            match stored {
                Ok(Confirmation::Ack(None)) => {}
                other => return Err(format!("{name}: {other:?}")),
            }
        }
        let _ = connection.close(200, "seen".into()).await;
        Ok(())
    }
}

async fn store(connection: &Connection, name: &str, kind: &str) -> lapin::Result<Confirmation> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2);
    channel.basic_publish("".into(), name.into(), options, b"seen", properties).await?.await
}

/// Whether the node's directory of this kind of queues, as it is on disk, holds a name.
fn holds(folder: &Path, kind: &str, name: &str) -> bool {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    // BASE/NAME/mnesia/NODE/KIND/NODE/names.dets; one node a folder.
    let databases = entries(folder).flat_map(|node| entries(&node.join("mnesia")).collect::<Vec<_>>());
    let directories = databases.flat_map(|database| entries(&database.join(kind)).collect::<Vec<_>>());
    directories.map(|directory| directory.join("names.dets")).any(|file| {
        let bytes = std::fs::read(file).unwrap_or_default();
        bytes.windows(name.len()).any(|window| window == name.as_bytes())
    })
}

/// A relay of bytes on the loopback between a link and its broker. Cut, it says nothing in parting, and nobody connects
/// through it until it is mended.
pub struct Cable {
    target: (String, u16),
    port: u16,
    relay: Option<JoinHandle<()>>,
    url: String,
}

impl Cable {
    /// To the broker at this `amqp://` URL.
    pub async fn lay(url: &str) -> Self {
        let mut url = Url::parse(url).expect("an amqp URL");
        let target = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        url.set_host(Some("127.0.0.1")).expect("an address");
        url.set_port(Some(port)).expect("a port");
        let relay = Some(tokio::spawn(carry(listener, target.clone())));
        Self { target, port, relay, url: url.into() }
    }

    /// The broker's URL by way of this cable.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Cuts it.
    pub async fn cut(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.abort();
            let _ = timeout(Duration::from_secs(5), relay).await;
        }
    }

    /// Mends it.
    pub async fn mend(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port is still free");
        self.relay = Some(tokio::spawn(carry(listener, self.target.clone())));
    }
}

async fn carry(listener: TcpListener, target: (String, u16)) {
    // Dropped with the task, and every connection with it.
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let target = target.clone();
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(target).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
