//! The log forwarder of `deploy/syslog-ng`: the very file there, run by a real syslog-ng, between lines as Cognito writes
//! them and a real ingress.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::time::Duration;

use defender_bridge::broker::{Broker, Lane, Receiver, Topology};
use defender_bridge::job::{Hint, HostKind, TOPOLOGY};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::breakable::{Cable, free_ports};
use crate::webhook::{Hook, OnSqlite, PATIENCE, TOKEN, example, settings};

/// Where Debian puts it.
const SYSLOG_NG: &str = "/usr/sbin/syslog-ng";

/// Between two looks at something that is expected.
const LOOK: Duration = Duration::from_millis(50);

/// A syslog-ng with the deployed configuration and settings of the test's own. What it keeps stays when the process goes.
struct Forwarder {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Forwarder {
    /// Starts one that posts to the ingress at this address.
    async fn start(ingress: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [port, ..] = free_ports();
        let buffer = folder.path().join("buffer");
        std::fs::create_dir(&buffer).expect("a folder");
        let settings = with_settings(
            &[
                ("cognito_listen_ip", "127.0.0.1"),
                ("cognito_listen_port", &port.to_string()),
                ("bridge_webhook_url", &format!("{ingress}/webhooks/cognito")),
                ("bridge_webhook_token", TOKEN),
                ("bridge_buffer_dir", &buffer.display().to_string()),
            ],
            &deployed(),
        );
        std::fs::write(folder.path().join("syslog-ng.conf"), settings).expect("written");
        let mut forwarder = Self { folder, port, process: None };
        forwarder.launch().await;
        forwarder
    }

    /// Starts the process, and waits until it takes connections.
    async fn launch(&mut self) {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(SYSLOG_NG);
        command.args(["--foreground", "--no-caps", "--cfgfile"]).arg(path("syslog-ng.conf"));
        command.arg("--persist-file").arg(path("persist")).arg("--pidfile").arg(path("pid"));
        command.arg("--control").arg(path("control")).kill_on_drop(true).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(std::fs::File::create(path("log")).expect("a log"));
        let process = command.spawn();
        let mut process = process.unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => {
                panic!("syslog-ng is not installed: apt-get install syslog-ng-core syslog-ng-mod-http (tests/run does)")
            }
            _ => panic!("{SYSLOG_NG}: {error}"),
        });
        let listening = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                let ended = process.try_wait().expect("a child can be asked");
                assert!(ended.is_none(), "syslog-ng ended with {ended:?}:\n{}", self.log());
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, listening).await.expect("it listens");
        self.process = Some(process);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// SIGKILL.
    async fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().await.expect("killed");
    }

    /// Sends lines as Cognito does, on one connection.
    async fn say(&self, lines: &[String]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("it listens");
        stream.write_all((lines.join("\n") + "\n").as_bytes()).await.expect("it reads");
        stream.shutdown().await.expect("closed");
    }

    /// How many messages wait to be sent; not those on their way, which wait again if they do not arrive.
    fn kept(&self) -> u64 {
        self.counter("queued")
    }

    /// A counter of its way to the ingress.
    fn counter(&self, name: &str) -> u64 {
        let mut command = StdCommand::new(format!("{SYSLOG_NG}-ctl"));
        let counters = format!("dst.http.*{name}");
        command.args(["query", "get", &counters, "--control"]).arg(self.folder.path().join("control"));
        let output = command.output().expect("syslog-ng-ctl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = text.lines().find_map(|line| line.split_once(&format!(".{name}="))?.1.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no such counter in {text:?}"))
    }

    /// Waits until it has heard that so many messages were taken, and has no other.
    async fn hears(&self, count: u64) {
        let heard = async {
            while self.counter("written") != count {
                tokio::time::sleep(LOOK).await
            }
        };
        let heard = tokio::time::timeout(PATIENCE, heard).await;
        heard.unwrap_or_else(|_| panic!("{} in place of {count} were taken:\n{}", self.counter("written"), self.log()));
        self.keeps(0).await;
    }

    async fn keeps(&self, count: u64) {
        let keeping = async {
            while self.kept() != count {
                tokio::time::sleep(LOOK).await
            }
        };
        let kept = tokio::time::timeout(PATIENCE, keeping).await;
        kept.unwrap_or_else(|_| panic!("{} in place of {count} are kept:\n{}", self.kept(), self.log()));
    }
}

/// The settings of the example, each with the value given here.
fn with_settings(values: &[(&str, &str)], configuration: &Path) -> String {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/syslog-ng");
    let settings = std::fs::read_to_string(deploy.join("defender-bridge-settings.conf.example")).expect("an example");
    let mut lines = vec!["@version: 3.38".to_owned()];
    for line in settings.lines().filter_map(|line| line.strip_prefix("@define ")) {
        let name = line.split(' ').next().expect("a name");
        let (_, value) = values.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is new"));
        lines.push(format!("@define {name} \"{value}\""));
    }
    assert_eq!(lines.len(), 1 + values.len(), "{settings}");
    lines.push(format!("@include \"{}\"\n", configuration.display()));
    lines.join("\n")
}

fn deployed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/syslog-ng/defender-bridge.conf")
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A line of Cognito's syslog.
fn line(word: &str, json: &Value) -> String {
    format!("<13>Feb  3 10:30:45 cognito.example.com vectra_json_{word} -: {json}")
}

/// An audit entry about the tags of this host.
fn tagged(host: u64) -> String {
    let mut entry = example("native.qux.audit.host-tags");
    entry["message"] = format!("[table:host][id:{host}] with tags ['VIP'] was changed to ['VIP', 'block']").into();
    line("audit", &entry)
}

/// Takes messages until those of all these hosts were among them; some may be there twice.
async fn assert_arrive<B: Broker>(hook: &Hook<B>, receiver: &mut Receiver, hosts: impl Iterator<Item = u64>) {
    let mut missing: BTreeSet<u64> = hosts.collect();
    while !missing.is_empty() {
        let queued = hook.next(receiver).await;
        assert_eq!(queued.host.kind, HostKind::TagsChanged);
        missing.remove(&queued.host.host_id);
    }
}

#[tokio::test]
#[ignore = "needs syslog-ng"]
async fn what_cognito_says_of_hosts_arrives_as_events() {
    let hook = Hook::start::<OnSqlite>().await;
    let forwarder = Forwarder::start(&url(hook.address)).await;
    let mut bulk = example("native.qux.audit.host-tags");
    bulk["message"] = example("native.rux.audit.bulk-tag")["message"].clone();
    let mut awkward = example("native.qux.audit.host-tags");
    awkward["message"] =
        r#"[table:host][id:5] with tags [] was changed to ['\xe4', "it's", 'a\\b', 'ü', 'block']"#.into();
    forwarder
        .say(&[
            line("v2", &example("native.qux.host-scoring")),
            line("v2", &example("native.qux.host-scoring.stringified")),
            line("audit", &example("native.qux.audit.host-tags")),
            line("host_lockdown", &example("native.qux.host-lockdown")),
            line("audit", &bulk),
            line("audit", &awkward).replace(" -: ", " - : "),
            // None of these is about a host.
            line("audit", &example("native.qux.audit.login")),
            line("v2", &serde_json::json!({"category": "ACCOUNT SCORING", "account_id": 1})),
            line("health", &serde_json::json!({"type": "cpu", "host_id": 1})),
            "<13>Feb  3 10:30:45 other.example.com sshd[1]: [table:host][id:1] with tags".to_owned(),
        ])
        .await;
    let arriving = async {
        while hook.ready(Lane::Urgent).await + hook.ready(Lane::Normal).await < 7 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, arriving).await.unwrap_or_else(|_| panic!("they arrive:\n{}", forwarder.log()));
    forwarder.keeps(0).await;
    let mut arrived: Vec<_> = hook.drain_all().await.into_iter().map(|queued| queued.host).collect();
    assert!(arrived.iter().all(|host| host.sender == "webhook-token"));
    arrived.sort_by_key(|host| (host.host_id, host.kind.as_str()));
    let arrived: Vec<_> = arrived.into_iter().map(|host| (host.host_id, host.kind, host.hint)).collect();
    let scores = || Some(Hint::Score { threat: Some(78), certainty: Some(66), urgency: None });
    let tags = |tags: &[&str]| Some(Hint::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect()));
    let block = || Some(Hint::Tag("block".into()));
    assert_eq!(
        arrived,
        [
            (5, HostKind::TagsChanged, tags(&["ä", "it's", "a\\b", "ü", "block"])),
            (4711, HostKind::Reconcile, None),
            (4711, HostKind::Scored, scores()),
            (4711, HostKind::Scored, scores()),
            (4711, HostKind::TagAdded, block()),
            (4711, HostKind::TagsChanged, tags(&["VIP", "block"])),
            (4712, HostKind::TagAdded, block()),
        ]
    );
    // What does not matter did not even travel, and what travelled was understood.
    let metrics = hook.metrics().await;
    for outcome in ["ignored", "rejected"] {
        assert!(!metrics.contains(&format!("outcome=\"{outcome}\"")), "{metrics}");
    }
    hook.stop().await;
}

#[tokio::test]
#[ignore = "needs syslog-ng"]
async fn nothing_is_lost_while_the_bridge_cannot_be_reached_and_the_forwarder_dies() {
    const COUNT: u64 = 300;
    let hook = Hook::start::<OnSqlite>().await;
    let mut cable = Cable::lay(&url(hook.address)).await;
    let mut forwarder = Forwarder::start(cable.url().trim_end_matches('/')).await;
    let mut receiver = hook.receive(Lane::Urgent).await;
    forwarder.say(&[tagged(1)]).await;
    assert_arrive(&hook, &mut receiver, 1..=1).await;
    // Or it would send that one again, too.
    forwarder.hears(1).await;

    cable.cut().await;
    let lines: Vec<String> = (2..=COUNT).map(tagged).collect();
    forwarder.say(&lines).await;
    forwarder.keeps(COUNT - 1).await;
    forwarder.kill().await;
    forwarder.launch().await;
    cable.mend().await;
    assert_arrive(&hook, &mut receiver, 2..=COUNT).await;
    forwarder.keeps(0).await;
    receiver.close().await;
    hook.stop().await;
}

/// Room for 60 messages in each lane.
static SMALL: Topology = Topology { durable_limit: 60, ..TOPOLOGY };

#[tokio::test]
#[ignore = "needs syslog-ng"]
async fn what_was_refused_with_503_is_sent_again_until_it_is_accepted() {
    let hook = Hook::start_with::<OnSqlite>(Some(settings()), &SMALL).await;
    let forwarder = Forwarder::start(&url(hook.address)).await;
    // Two batches: one has room, both have not.
    let lines: Vec<String> = (1..=100).map(tagged).collect();
    forwarder.say(&lines).await;
    let refused = async {
        let line = "bridge_request_duration_seconds_count{route=\"/webhooks/cognito\",outcome=\"queue_unavailable\"}";
        while !hook.metrics().await.contains(line) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap_or_else(|_| panic!("a 503:\n{}", forwarder.log()));
    assert!(forwarder.kept() > 0);
    let mut receiver = hook.receive(Lane::Urgent).await;
    assert_arrive(&hook, &mut receiver, 1..=100).await;
    // What was stored of a refused batch came again, and makes room at once.
    let emptied = async {
        while forwarder.kept() > 0 {
            let _ = tokio::time::timeout(LOOK, hook.next(&mut receiver)).await;
        }
    };
    tokio::time::timeout(PATIENCE, emptied).await.unwrap_or_else(|_| panic!("the rest:\n{}", forwarder.log()));
    receiver.close().await;
    hook.stop().await;
}

#[test]
#[ignore = "needs syslog-ng"]
fn the_lines_about_tls_in_the_comments_are_well_formed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let certified = rcgen::generate_simple_self_signed(vec!["forwarder.example".to_owned()]).expect("a certificate");
    std::fs::write(path("crt"), certified.cert.pem()).expect("written");
    std::fs::write(path("key"), certified.signing_key.serialize_pem()).expect("written");
    let mut lines = Vec::new();
    for line in std::fs::read_to_string(deployed()).expect("a configuration").lines() {
        // The transport and its certificate, and the bridge's certification authority after a colon.
        let tls = line.trim_start().strip_prefix("#").and_then(|comment| {
            let at = comment.find("transport(\"tls\")").or_else(|| comment.find("tls("))?;
            Some(comment[at..].to_owned())
        });
        lines.push(match tls {
            Some(tls) => tls,
            None if line.trim() == "transport(\"tcp\")" => String::new(),
            None => line.to_owned(),
        });
    }
    let configuration = lines
        .join("\n")
        .replace("/etc/syslog-ng/cognito.key", &path("key"))
        .replace("/etc/syslog-ng/cognito.crt", &path("crt"))
        .replace("/etc/ssl/certs/private-ca.pem", &path("crt"));
    assert_eq!(configuration.matches(folder.path().to_str().expect("UTF-8")).count(), 3, "{configuration}");
    std::fs::write(path("tls.conf"), configuration).expect("written");
    let settings = with_settings(
        &[
            ("cognito_listen_ip", "127.0.0.1"),
            ("cognito_listen_port", "6514"),
            ("bridge_webhook_url", "https://bridge.example/webhooks/cognito"),
            ("bridge_webhook_token", TOKEN),
            ("bridge_buffer_dir", folder.path().to_str().expect("UTF-8")),
        ],
        &folder.path().join("tls.conf"),
    );
    std::fs::write(path("syslog-ng.conf"), settings).expect("written");
    let mut command = StdCommand::new(SYSLOG_NG);
    command.args(["--syntax-only", "--no-caps", "--cfgfile", &path("syslog-ng.conf")]);
    command.args(["--persist-file", &path("persist"), "--control", &path("control"), "--pidfile", &path("pid")]);
    let output = command.output().expect("syslog-ng is installed (tests/run does)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
