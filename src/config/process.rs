//! Settings that every role has: logs, admin port, stopping, and the broker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Findings, parse};
use crate::telemetry::LogFormat;

const ADMIN_LISTEN: &str = "127.0.0.1:8081";
const SHUTDOWN_GRACE: &str = "60s";
const BROKER_NAMESPACE: &str = "bridge";

/// Logging.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Form of the log lines: text or json
    #[arg(long = "log", env = "BRIDGE_LOG", default_value = "text", value_name = "FORMAT", global = true)]
    pub log: String,
    /// Log more: our own lines from level debug (RUST_LOG overrides it)
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

impl LogArgs {
    /// The format; a problem if it is neither of the two.
    pub fn resolve(&self, findings: &mut Findings) -> LogFormat {
        match self.log.trim().to_ascii_lowercase().as_str() {
            "" | "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                findings.problem("BRIDGE_LOG", format_args!("{other:?} is neither text nor json"));
                LogFormat::Text
            }
        }
    }
}

/// The admin port.
#[derive(Debug, Clone, Args)]
pub struct AdminListenArgs {
    /// Address of the admin port (/livez, /readyz, /metrics); off = none
    #[arg(long, env = "BRIDGE_ADMIN_LISTEN", default_value = ADMIN_LISTEN, value_name = "ADDRESS")]
    pub admin_listen: String,
}

impl AdminListenArgs {
    /// Checks and reads the address; `None`: there is no admin port.
    pub fn resolve(&self, findings: &mut Findings) -> Option<SocketAddr> {
        parse::listen(findings, "BRIDGE_ADMIN_LISTEN", parse::or_default(&self.admin_listen, ADMIN_LISTEN))
    }
}

/// The admin port and stopping.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    #[command(flatten)]
    admin: AdminListenArgs,
    /// Time that running work gets after SIGTERM; should be more than the relay deadline
    #[arg(long, env = "BRIDGE_SHUTDOWN_GRACE", default_value = SHUTDOWN_GRACE, value_name = "DURATION")]
    pub shutdown_grace: String,
}

/// See [`ProcessArgs`].
#[derive(Debug, Clone)]
pub struct ProcessSettings {
    /// Where probes and metrics are served, if at all.
    pub admin_listen: Option<SocketAddr>,
    /// From the soft to the hard stop.
    pub shutdown_grace: Duration,
}

impl ProcessArgs {
    /// Checks and reads the values.
    pub fn resolve(&self, findings: &mut Findings) -> ProcessSettings {
        ProcessSettings {
            admin_listen: self.admin.resolve(findings),
            shutdown_grace: parse::duration(
                findings,
                "BRIDGE_SHUTDOWN_GRACE",
                parse::or_default(&self.shutdown_grace, SHUTDOWN_GRACE),
                (Duration::from_secs(1), Duration::from_secs(3600)),
            ),
        }
    }
}

/// The queue.
#[derive(Clone, Args)]
pub struct BrokerArgs {
    /// The queue: sqlite:PATH (a file; one machine), amqp:// or amqps:// (RabbitMQ; several comma-separated nodes of
    /// one cluster). `sqlite:` alone is a file in the state directory
    #[arg(long, env = "BRIDGE_BROKER_URL", default_value = "sqlite:", value_name = "URL", hide_env_values = true)]
    pub broker_url: String,
    /// File that holds BRIDGE_BROKER_URL
    #[arg(long, env = "BRIDGE_BROKER_URL_FILE", value_name = "PATH")]
    pub broker_url_file: Option<PathBuf>,
    /// Prefix of every queue and exchange, so that installations can share a broker
    #[arg(long, env = "BRIDGE_BROKER_NAMESPACE", default_value = BROKER_NAMESPACE, value_name = "NAME")]
    pub broker_namespace: String,
}

/// Never shows the URL: it holds a password.
impl std::fmt::Debug for BrokerArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerArgs").field("broker_namespace", &self.broker_namespace).finish_non_exhaustive()
    }
}

/// Which queue, and where.
#[derive(Clone)]
pub enum BrokerUrl {
    /// The embedded queue's file.
    Sqlite(PathBuf),
    /// Nodes of one RabbitMQ cluster. Hold passwords.
    RabbitMq {
        /// `amqp://` or `amqps://`, in the order given.
        urls: Vec<SecretString>,
        /// Prefix of all names.
        namespace: String,
    },
}

/// Never shows a URL of a broker: it holds a password.
impl std::fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            Self::RabbitMq { urls, namespace } => {
                f.debug_struct("RabbitMq").field("nodes", &urls.len()).field("namespace", namespace).finish()
            }
        }
    }
}

impl BrokerUrl {
    /// The word for logs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::RabbitMq { .. } => "rabbitmq",
        }
    }
}

/// Longest namespace: it is part of queue names, of which AMQP allows 255 bytes, most of them for host keys.
const NAMESPACE_LIMIT: usize = 40;

impl BrokerArgs {
    /// Checks and reads the values. `one_role` says that the command is one role of a deployment with several
    /// processes, which the embedded queue cannot serve.
    pub fn resolve(&self, one_role: bool, findings: &mut Findings) -> BrokerUrl {
        const SETTING: &str = "BRIDGE_BROKER_URL";
        // The variable has a default, so it counts as given beside a file only when it differs from it.
        let value = parse::given(Some(&self.broker_url)).filter(|url| *url != "sqlite:").map(str::to_owned);
        let url = parse::secret(findings, SETTING, value.as_ref(), self.broker_url_file.as_ref())
            .unwrap_or_else(|| "sqlite:".into());
        let url = url.expose_secret().trim();
        if let Some(path) = url.strip_prefix("sqlite:") {
            if one_role {
                findings.problem(
                    SETTING,
                    "a deployment of several processes needs RabbitMQ (amqp:// or amqps://); the embedded queue serves `serve`",
                );
            }
            return BrokerUrl::Sqlite(if path.is_empty() {
                state_directory(findings).join("queue.sqlite")
            } else {
                PathBuf::from(path)
            });
        }
        let urls: Vec<SecretString> =
            url.split(',').map(str::trim).filter(|node| !node.is_empty()).map(SecretString::from).collect();
        for (index, node) in urls.iter().enumerate() {
            let parsed = url::Url::parse(node.expose_secret());
            let fits = parsed.is_ok_and(|node| matches!(node.scheme(), "amqp" | "amqps") && node.host().is_some());
            if !fits {
                findings.problem(
                    SETTING,
                    format_args!("entry {} is not sqlite:PATH, amqp://HOST or amqps://HOST", index + 1),
                );
            }
        }
        if urls.is_empty() {
            findings.problem(SETTING, "names no broker");
        }
        let namespace = parse::or_default(&self.broker_namespace, BROKER_NAMESPACE).trim();
        let plain = namespace.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if namespace.is_empty() || namespace.len() > NAMESPACE_LIMIT || !plain {
            findings.problem(
                "BRIDGE_BROKER_NAMESPACE",
                format_args!("must be 1 to {NAMESPACE_LIMIT} letters, digits, '-' or '_'"),
            );
        }
        BrokerUrl::RabbitMq { urls, namespace: namespace.to_owned() }
    }
}

/// systemd's state directory, else XDG's, else its default below the home directory.
fn state_directory(findings: &mut Findings) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(directories) = set("STATE_DIRECTORY")
        && let Some(first) = std::env::split_paths(&directories).next()
    {
        return first;
    }
    if let Some(state) = set("XDG_STATE_HOME") {
        return PathBuf::from(state).join("defender-bridge");
    }
    if let Some(home) = set("HOME") {
        return PathBuf::from(home).join(".local/state/defender-bridge");
    }
    findings.problem("BRIDGE_BROKER_URL", "there is no state directory (HOME is not set); give sqlite:PATH");
    PathBuf::new()
}

/// Who runs this command, by the login name, for orders that others look at later.
#[must_use]
pub fn operator() -> String {
    let mut names = ["LOGNAME", "USER"].into_iter().filter_map(|name| std::env::var(name).ok());
    names.find(|name| !name.trim().is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str, one_role: bool) -> (BrokerUrl, Findings) {
        let args = BrokerArgs { broker_url: url.into(), broker_url_file: None, broker_namespace: "bridge".into() };
        let mut findings = Findings::default();
        (args.resolve(one_role, &mut findings), findings)
    }

    #[test]
    fn empty_values_count_as_not_set() {
        let mut findings = Findings::default();
        let admin = AdminListenArgs { admin_listen: String::new() };
        let args = ProcessArgs { admin, shutdown_grace: " ".into() };
        let settings = args.resolve(&mut findings);
        assert_eq!(settings.admin_listen, Some(([127, 0, 0, 1], 8081).into()));
        assert_eq!(settings.shutdown_grace, Duration::from_secs(60));
        let args = BrokerArgs {
            broker_url: "amqp://host".into(),
            broker_url_file: Some(PathBuf::new()),
            broker_namespace: String::new(),
        };
        let broker = args.resolve(true, &mut findings);
        assert!(matches!(broker, BrokerUrl::RabbitMq { namespace, .. } if namespace == "bridge"));
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn each_kind_of_broker_is_told_by_its_url() {
        let (url, findings) = resolve("sqlite:some/file", false);
        assert!(matches!(url, BrokerUrl::Sqlite(path) if path.as_os_str() == "some/file"));
        assert_eq!(findings, Findings::default());
        let (url, findings) = resolve("amqp://u:pl4nted@a:5672/%2f, amqps://u:pl4nted@b", false);
        assert!(matches!(&url, BrokerUrl::RabbitMq { urls, .. } if urls.len() == 2));
        assert!(!format!("{url:?}").contains("pl4nted"));
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn what_is_no_broker_is_refused_without_showing_it() {
        for url in ["http://pl4nted@host", "amqp:", "amqp://ok@host,pl4nted", ","] {
            let (_, findings) = resolve(url, false);
            assert_eq!(findings.problems.len(), 1, "{url}: {findings:?}");
            assert!(!format!("{findings:?}").contains("pl4nted"), "{findings:?}");
        }
    }

    #[test]
    fn one_role_of_many_is_refused_the_embedded_queue() {
        assert_eq!(resolve("sqlite:x", true).1.problems.len(), 1);
        assert_eq!(resolve("amqp://host", true).1, Findings::default());
    }
}
