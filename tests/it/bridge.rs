//! A whole bridge for one test: simulator, queue, ingress and worker in this process, ports by the system.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use defender_bridge::broker::Broker;
use defender_bridge::broker::rabbitmq::RabbitMq;
use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::cli::roles::{self, Roles, Running};
use defender_bridge::cognito;
use defender_bridge::config::{
    Applications, CognitoSettings, DefenderSettings, HostSettings, IngressSettings, Keys, RespondSettings, Routes,
    WebhookSettings, WorkerSettings,
};
use defender_bridge::containment::Policy;
use defender_bridge::credentials::SealKeys;
use defender_bridge::defender::{self, Credentials, Defender, Permits};
use defender_bridge::job::TOPOLOGY;
use defender_bridge::key_sets;
use defender_bridge::outbound::Outbound;
use defender_bridge::quota;
use defender_bridge::relay::token;
use defender_bridge::retry;
use defender_bridge::shutdown::Shutdown;
use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BRAIN_USER};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{self, Control, Simulator};
use defender_bridge::telemetry::metrics::Metrics;
use defender_bridge::worker;
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;

/// The key that the worked envelopes are signed with.
pub const SECRET_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// A file of the test's own.
    Sqlite,
    /// A namespace of the test's own at `TEST_RABBITMQ_URL`.
    RabbitMq,
}

/// How the bridge of a test differs from the product's defaults.
#[derive(Debug, Clone)]
pub struct Options {
    pub queue: Queue,
    /// In place of `TEST_RABBITMQ_URL`, for a broker of the test's own.
    pub rabbitmq: Option<String>,
    pub token_keys: Vec<String>,
    /// Whose key-set tokens are taken.
    pub key_sets: Option<key_sets::Settings>,
    /// `BRIDGE_SEAL_KEYS`; derived from the token keys when absent.
    pub seal_keys: Option<String>,
    pub routes: Routes,
    pub deadline: Duration,
    pub max_wait: Duration,
    pub grace: Duration,
    pub entities_limit: u32,
    pub answer_ttl: Duration,
    pub concurrency: u16,
    pub retry: retry::Policy,
    pub quota: quota::Settings,
    pub simulator: simulator::Settings,
    /// In place of the simulator's URL, for upstreams that are not there or speak no HTTP.
    pub upstream: Option<String>,
    /// In place of the upstream's URL, for Defender's REST API only.
    pub defender_url: Option<String>,
    /// In place of the upstream's URL, for Graph only.
    pub graph_url: Option<String>,
    pub worker: bool,
    /// Another worker with a connection of its own; on RabbitMQ only.
    pub second_worker: bool,
    /// Who may send host events; `None`: there is no webhook.
    pub webhook: Option<WebhookSettings>,
    /// What response actions keep to.
    pub respond: RespondSettings,
    /// What is done about hosts of the simulated brain; `None`: nothing.
    pub hosts: Option<Policy>,
    /// Another application that isolates.
    pub response: Option<Credentials>,
    /// How often the brain is searched and its feeds are read.
    pub sweep_interval: Option<Duration>,
    pub feed_interval: Option<Duration>,
    /// A key that the worker opens seals with in place of the ingress's.
    pub worker_key: Option<String>,
    /// What the worker asks before each call, in place of the product's own quota.
    pub permits: Option<Permitting>,
}

/// See [`Options::permits`].
#[derive(Clone)]
pub struct Permitting(pub Arc<dyn Permits>);

impl std::fmt::Debug for Permitting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permitting")
    }
}

impl Default for Options {
    /// Retries are quick, answers are not kept and no quota is in the way, so that each call of a test is seen.
    fn default() -> Self {
        Self {
            queue: Queue::Sqlite,
            rabbitmq: None,
            token_keys: vec![SECRET_KEY.to_owned()],
            key_sets: None,
            seal_keys: None,
            routes: Routes { observe: true, refer: true, respond: false },
            deadline: Duration::from_secs(20),
            max_wait: Duration::from_secs(20),
            grace: Duration::from_secs(20),
            entities_limit: 100,
            answer_ttl: Duration::ZERO,
            concurrency: 64,
            retry: retry::Policy { first: Duration::from_millis(5), cap: Duration::from_millis(20), tries: 3 },
            quota: quota::Settings::new(|_| quota::Limits { per_minute: 1_000_000, per_hour: None }),
            simulator: simulator::Settings { quota: None, ..simulator::Settings::default() },
            upstream: None,
            defender_url: None,
            graph_url: None,
            worker: true,
            second_worker: false,
            webhook: None,
            respond: RespondSettings::default(),
            hosts: None,
            response: None,
            sweep_interval: None,
            feed_interval: None,
            worker_key: None,
            permits: None,
        }
    }
}

/// An answer of the ingress.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(response: reqwest::Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.expect("the answer arrives whole"),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    /// The sightings; none when there are no data.
    pub fn sightings(&self) -> Vec<Value> {
        self.json()["data"]["sightings"]["docs"].as_array().cloned().unwrap_or_default()
    }

    /// (code, message, type) of each error.
    pub fn errors(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let errors = self.json()["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|e| (text(&e["code"]), text(&e["message"]), text(&e["type"]))).collect()
    }
}

/// See the module's documentation.
pub struct TestBridge {
    pub simulator: Simulator,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub shutdown: Shutdown,
    pub client: reqwest::Client,
    pub folder: TempDir,
    running: Running,
    second: Option<Running>,
}

impl TestBridge {
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let simulator = Simulator::start(options.simulator.clone()).await.expect("the simulator listens");
        let shutdown = Shutdown::new(options.grace);
        let upstream = options.upstream.clone().unwrap_or_else(|| simulator.url());
        let mut second = None;
        let running = match options.queue {
            Queue::Sqlite => {
                let path = folder.path().join("queue.sqlite");
                let broker =
                    Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.expect("the queue opens");
                start_roles(broker, &options, &upstream, shutdown.clone()).await
            }
            Queue::RabbitMq => {
                let mut settings = crate::namespaces::rabbitmq_settings("bridge", &TOPOLOGY);
                if let Some(url) = &options.rabbitmq {
                    settings.urls = vec![url.clone()];
                }
                let broker = RabbitMq::connect(settings.clone()).await.expect("RabbitMQ is there");
                let running = start_roles(broker, &options, &upstream, shutdown.clone()).await;
                if options.second_worker {
                    let broker = RabbitMq::connect(settings).await.expect("RabbitMQ is there");
                    let roles = Roles { ingress: None, ..roles_of(&options, &upstream) };
                    second = Some(roles::start(broker, roles, shutdown.clone()).await.expect("the worker starts"));
                }
                running
            }
        };
        Self {
            simulator,
            address: running.ingress.expect("the ingress listens"),
            admin: running.admin.expect("the admin port listens"),
            shutdown,
            client: client(),
            folder,
            running,
            second,
        }
    }

    pub fn control(&self) -> &Control {
        self.simulator.control()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// `POST path` with the demo tenant's token.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_as(&demo_token(), path, body).await
    }

    /// `POST path` with this token.
    pub async fn post_as(&self, token: &str, path: &str, body: &Value) -> Answer {
        let request = self.client.post(self.url(path)).bearer_auth(token).json(body);
        Answer::of(request.send().await.expect("the ingress answers")).await
    }

    /// `POST /observe/observables` with (type, value) pairs.
    pub async fn observe(&self, observables: &[(&str, &str)]) -> Answer {
        self.post("/observe/observables", &observable_list(observables)).await
    }

    /// `GET` of the admin port: status and text.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("http://{}{path}", self.admin)).send().await;
        let answer = Answer::of(response.expect("the admin port answers")).await;
        (answer.status, answer.text)
    }

    /// Stops everything in order.
    pub async fn stop(self) {
        self.shutdown.begin();
        self.running.wait().await.expect("the roles stop in order");
        if let Some(second) = self.second {
            second.wait().await.expect("the worker stops in order");
        }
        self.simulator.stop().await;
    }
}

async fn start_roles<B: Broker>(broker: B, options: &Options, upstream: &str, shutdown: Shutdown) -> Running {
    let seal_keys = seal_keys(options);
    if let Some(Permitting(permits)) = &options.permits {
        let upstream: url::Url = upstream.parse().expect("a URL");
        let settings = defender::Settings {
            entra_url: upstream.clone(),
            defender_url: upstream.clone(),
            graph_url: upstream,
            retry: options.retry.clone(),
            ..defender::Settings::default()
        };
        let defender = Defender::new(settings, Outbound::new().expect("a client")).with_permits(Arc::clone(permits));
        let settings = WorkerSettings {
            concurrency: options.concurrency,
            answer_ttl: options.answer_ttl,
            ..WorkerSettings::default()
        };
        let portal = DefenderSettings::default().portal_url;
        let context = worker::Context::new(defender, &portal, Arc::clone(&seal_keys), Metrics::default(), &settings);
        tokio::spawn(worker::run(broker.clone(), context, None, None, options.concurrency, shutdown.clone()));
    }
    roles::start(broker, roles_of(options, upstream), shutdown).await.expect("the roles start")
}

fn seal_keys(options: &Options) -> Arc<SealKeys> {
    let secrets: Vec<SecretString> = options.token_keys.iter().map(|key| key.as_str().into()).collect();
    Arc::new(match &options.seal_keys {
        Some(keys) => SealKeys::parse(keys).expect("sealing keys"),
        None => SealKeys::derive(&secrets.iter().collect::<Vec<_>>()),
    })
}

fn roles_of(options: &Options, upstream: &str) -> Roles {
    let secrets = options.token_keys.iter().map(|key| key.as_str().into()).collect();
    let seal_keys = seal_keys(options);
    let url_of = |own: &Option<String>| -> url::Url { own.as_deref().unwrap_or(upstream).parse().expect("a URL") };
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    Roles {
        ingress: Some(roles::Ingress {
            settings: IngressSettings {
                listen: any_port,
                routes: options.routes,
                deadline: options.deadline,
                max_wait: options.max_wait,
                entities_limit: options.entities_limit,
                key_sets: options.key_sets.clone(),
            },
            keys: Keys { token_keys: secrets, seal_keys: Arc::clone(&seal_keys) },
            portal_url: DefenderSettings::default().portal_url,
            webhook: options.webhook.clone(),
        }),
        worker: (options.worker && options.permits.is_none()).then(|| roles::Worker {
            defender: DefenderSettings {
                entra_url: url_of(&None),
                defender_url: url_of(&options.defender_url),
                graph_url: url_of(&options.graph_url),
                ..DefenderSettings::default()
            },
            settings: WorkerSettings {
                concurrency: options.concurrency,
                answer_ttl: options.answer_ttl,
                ..WorkerSettings::default()
            },
            seal_keys: match &options.worker_key {
                Some(key) => Arc::new(SealKeys::derive(&[&key.as_str().into()])),
                None => seal_keys,
            },
            retry: options.retry.clone(),
            respond: options.respond.clone(),
            quota: options.quota.clone(),
            alone: options.queue == Queue::Sqlite,
            hosts: options.hosts.clone().map(|policy| host_settings(options, upstream, policy)),
            notify: None,
        }),
        admin_listen: Some(any_port),
    }
}

/// The story's brain, as the bridge's own user, faster than any brain.
fn host_settings(options: &Options, upstream: &str, policy: Policy) -> HostSettings {
    let version = "v2.5".parse().expect("a version");
    let auth = cognito::Auth::Token(BRAIN_TOKEN.to_owned().into());
    let brain = cognito::Settings::new(upstream.parse().expect("a URL"), version, auth);
    HostSettings {
        cognito: CognitoSettings {
            client: cognito::Settings { retry: options.retry.clone(), ..brain },
            ca_file: None,
            rate: 1000,
            self_user: Some(BRAIN_USER.to_owned()),
        },
        applications: Applications {
            credentials: Credentials {
                tenant_id: DEMO_TENANT_ID.to_owned(),
                client_id: DEMO_CLIENT_ID.to_owned(),
                proof: SecretString::from(DEMO_CLIENT_SECRET).into(),
            },
            response: options.response.clone(),
        },
        policy,
        required_groups: Vec::new(),
        sweep_interval: options.sweep_interval,
        feed_interval: options.feed_interval,
    }
}

/// A client that neither follows redirects nor uses a proxy.
pub fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    builder.build().expect("an HTTP client")
}

/// A token for the demo tenant.
pub fn demo_token() -> String {
    mint(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, None)
}

/// A token for any tenant.
pub fn mint(tenant: &str, client: &str, secret: &str, entities_limit: Option<u32>) -> String {
    let claims = token::Claims {
        tenant_id: tenant.to_owned(),
        client_id: client.to_owned(),
        client_secret: secret.into(),
        entities_limit,
    };
    token::mint(&claims, None, &SECRET_KEY.into())
}

/// The body of `/observe/observables`.
pub fn observable_list(observables: &[(&str, &str)]) -> Value {
    observables.iter().map(|(kind, value)| serde_json::json!({"type": kind, "value": value})).collect()
}
