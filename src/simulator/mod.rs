//! Stand-ins for the vendors' services, for demos and tests: never part of a production path.
//!
//! Nothing here imports the product's clients, models or query builder. A simulator that shared code with what it
//! checks would agree with every mistake in it.
//!
//! One [`Simulator`] serves Entra, Defender for Endpoint, Graph, Vectra Cognito and Cisco's platform over HTTP under one
//! base URL, as `defender.md`, `cognito.md` and `module-registration.md` describe them: it refuses what they refuse (tokens, audiences, roles, malformed hashes,
//! names and queries), counts quotas, and answers from the data of the caller's tenant. The demo tenant's data tells a
//! story ([`scenario`]) whose times count back from now. Hunting queries are really evaluated ([`kql`]).
//!
//! Where the contract does not know the service's words, the answer's text ends in "(simulated)".
//!
//! ```text
//! POST /{tenant}/oauth2/v2.0/token               Entra      entra.rs
//! GET  /api/{files,domains,ips,alerts,machines}  Defender   defender.rs
//!      /api/machineactions, /api/machines/{id}/isolate, ... Defender   actions/
//!      /api/indicators                           Defender   indicators.rs
//! POST /v1.0/security/runHuntingQuery            Graph      graph.rs
//!      /api/v2.x/..., /api/v3.x/...              Cognito    cognito/
//! GET  /.well-known/jwks                         platform   key_set.rs
//!      /iroh/...                                 platform   platform.rs
//! POST /_notifications                           receives the bridge's own webhook, notifications.rs
//!      /_simulator/...                           controls   admin.rs
//! ```
//!
//! # Controls
//! In the same process through [`Control`]; from outside over HTTP, with JSON bodies:
//!
//! | call | does |
//! |---|---|
//! | `GET /_simulator/health` | says that it runs, and its time |
//! | `GET /_simulator/requests?route=R` | counters, 429s given, the most at once, the last requests (of one route) |
//! | `DELETE /_simulator/requests` | sets the counters to zero |
//! | `POST /_simulator/faults` | `{"match": {"route", "method", "contains", "tenant"}, "fault": {"kind": ...}, "times": 2}`, or `"rate": 0.1, "seed": 7` in place of `times`; kinds: [`Fault`] |
//! | `DELETE /_simulator/faults` | takes all faults back |
//! | `PUT /_simulator/script`, `DELETE` | a list of [`Scripted`] answers, in place of the last one; none |
//! | `PUT /_simulator/roles` | `{"tenant", "resource": "defender" or "graph", "roles": [...]}` for tokens from now on |
//! | `DELETE /_simulator/tokens` | makes all tokens issued so far worthless |
//! | `PUT /_simulator/tenants` | `{"id", "client_id", "client_secret"}`: one tenant more, with reading roles |
//! | `PUT /_simulator/data/{tenant}` | a worked example ([`Data::from_example`]) or plain data ([`Data::from_json`]) |
//! | `PUT /_simulator/clock` | `{"now": "2024-03-08T00:00:00Z"}`, or `null` for the real time |
//! | `PUT /_simulator/settings` | any of `quota` ([`Quota`] or `null`), `latency_ms`, `token_lifetime_seconds`, `page_size`, `foreign_next_link`, `odd_hunting`, `hidden_tables` |
//! | `GET /_simulator/actions?tenant=T` | how machine actions behave, every [`ActionPost`], and the [`Isolation`] of each machine |
//! | `PUT /_simulator/actions` | [`ActionBehaviour`]; members that are absent are as in the beginning |
//! | `PUT /_simulator/actions/machine` | `{"tenant", "machine", "offline": true, "refusal": "os_platform" or null, "outcomes": ["failed"]}`, any of the last three |
//! | `POST /_simulator/actions/portal` | `{"tenant", "machine", "kind": "Isolate" or "Unisolate", "user"}`: somebody does it in the portal |
//! | `POST /_simulator/actions/finish` | `{"tenant", "action", "outcome": "succeeded"}`: ends an open action now |
//! | `POST /_simulator/key-set/token` | the claims of a token: signs it with the platform's key (`relay.md` 2.3); `jwks_host` and `aud` are the caller's to name |
//! | `POST /_simulator/key-set/rotate` | another key in place of the one there is |
//! | `GET /_simulator/notifications` | notifications by `webhook-id`, how many came again, why others were refused |
//! | `PUT /_simulator/notifications` | `{"secret": "whsec_...", "refuse": 503 or null}`: what signs them; a status for all of them |
//! | `POST /_simulator/reset` | back to the start |
//!
//! Cognito's are under `/_simulator/cognito`; [`cognito::Brain`] has them all. `actor` and `author` are `analyst.one`
//! unless said otherwise.
//!
//! | call | does |
//! |---|---|
//! | `GET /hosts` | the ids of all hosts |
//! | `GET`, `PUT`, `DELETE /hosts/{id}` | a host as data ([`cognito::Host`]) |
//! | `GET /hosts/{id}/tags` | its tags, and every write of them with author, old and new list |
//! | `POST /hosts/{id}/tags` | `{"add": [...], "remove": [...], "actor", "in_gap"}`: as an analyst; with `in_gap` between the next reading and the replacement that follows |
//! | `POST /tags` | `{"hosts": [...], "tag", "remove", "actor"}`: one tag on many hosts |
//! | `GET`, `POST /hosts/{id}/notes` | its notes; `{"text", "author"}` |
//! | `PUT /hosts/{id}/scores` | `{"threat", "certainty", "urgency"}` |
//! | `GET /undone?prefix=mde:&tag=block` | tags that the API's clients took away or brought back, other than those named |
//! | `POST /audits` | `{"user", "message", "success"}`: one audit more |
//! | `GET`, `PUT /behaviour` | any members of [`cognito::Behaviour`] |
//! | `PUT /token`, `DELETE /tokens` | `{"token"}`: another personal token; no OAuth2 token is good any more |
//! | `GET`, `PUT /emit` | what became of the events; [`cognito::Emit`] or `null` |
//! | `POST /bulk` | `{"tenant", "count", "odd_percent", "seed"}`: hosts, with their machines in that tenant |

mod actions;
mod admin;
mod answer;
mod assertion;
mod clock;
pub mod cognito;
mod connection;
mod control;
mod data;
mod defender;
mod entra;
mod faults;
mod graph;
mod indicators;
mod key_set;
pub mod kql;
mod notifications;
mod odata;
mod platform;
mod quota;
mod recorder;
mod request;
pub mod scenario;
mod script;
mod server;
mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use self::actions::{
    ActionBehaviour, ActionKind, ActionPost, ActionRefusal, Fate, Isolation, IsolationChange, Outcome, WhenIsolated,
    WhileOpen,
};
pub use self::control::{Control, Resource};
pub use self::data::{Data, Row};
pub use self::faults::{Fault, Matcher};
pub use self::graph::cpu_exhausted;
pub use self::platform::{PLATFORM_CLIENT_ID, PLATFORM_CLIENT_PASSWORD};
pub use self::quota::Quota;
pub use self::recorder::{KEPT_HEADERS, Recorded};
pub use self::script::Scripted;

use self::cognito::BrainSettings;
use self::connection::{Breakable, Link};
use self::scenario::{
    DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, OTHER_TENANT_ID,
};
use self::world::World;

/// How long [`Simulator::stop`] waits for its connections to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The roles that reading needs, and those that later actions need (`defender.md` 8).
const DEFENDER_ROLES: [&str; 8] = [
    "Alert.Read.All",
    "File.Read.All",
    "Machine.Read.All",
    "Machine.Isolate",
    "Machine.RestrictExecution",
    "Machine.Scan",
    "Machine.CollectForensics",
    "Ti.ReadWrite.All",
];

/// What a tenant's services know.
#[derive(Debug, Clone)]
pub enum TenantData {
    /// The story of [`scenario`].
    Story,
    /// Nothing.
    Empty,
    /// This.
    Given(Arc<Data>),
}

/// One application more of a tenant.
#[derive(Clone)]
pub struct Application {
    /// Its id.
    pub client_id: String,
    /// Its secret; empty: it has none.
    pub client_secret: String,
    /// Its certificates in PEM form, each with an RSA key.
    pub certificates: Vec<String>,
    /// The roles in its tokens for Defender; none leaves the claim out.
    pub defender_roles: Vec<String>,
    /// The roles in its tokens for Graph.
    pub graph_roles: Vec<String>,
}

impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Application").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// A tenant with its application, and perhaps others.
#[derive(Clone)]
pub struct Tenant {
    /// Its GUID.
    pub id: String,
    /// The domain name that stands for the id in the token endpoint's path, in lower case.
    pub domain: Option<String>,
    /// The application's id.
    pub client_id: String,
    /// The application's secret.
    pub client_secret: String,
    /// The roles in its tokens for Defender; none leaves the claim out.
    pub defender_roles: Vec<String>,
    /// The roles in its tokens for Graph.
    pub graph_roles: Vec<String>,
    /// The application's certificates in PEM form, each with an RSA key.
    pub certificates: Vec<String>,
    /// Further applications.
    pub applications: Vec<Application>,
    /// What its services know.
    pub data: TenantData,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenant").field("id", &self.id).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Tenant {
    /// A tenant whose application holds every role the bridge asks for.
    pub fn reader(id: &str, client_id: &str, client_secret: &str, data: TenantData) -> Self {
        Self {
            id: id.to_owned(),
            domain: None,
            client_id: client_id.to_owned(),
            client_secret: client_secret.to_owned(),
            defender_roles: DEFENDER_ROLES.map(str::to_owned).to_vec(),
            graph_roles: vec!["ThreatHunting.Read.All".to_owned()],
            certificates: Vec::new(),
            applications: Vec::new(),
            data,
        }
    }

    /// The application of this id.
    fn application(&self, client_id: &str) -> Option<Application> {
        let own = Application {
            client_id: self.client_id.clone(),
            client_secret: self.client_secret.clone(),
            certificates: self.certificates.clone(),
            defender_roles: self.defender_roles.clone(),
            graph_roles: self.graph_roles.clone(),
        };
        let mut all = std::iter::once(own).chain(self.applications.iter().cloned());
        all.find(|application| application.client_id.eq_ignore_ascii_case(client_id))
    }
}

/// How a simulator starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Its tenants.
    pub tenants: Vec<Tenant>,
    /// The quotas; `None`: no limit.
    pub quota: Option<Quota>,
    /// How long each call takes at least.
    pub latency: Duration,
    /// How long tokens are good.
    pub token_lifetime: Duration,
    /// The brain of Vectra Cognito.
    pub brain: BrainSettings,
    /// How many requests are kept for [`Control::requests`]; counters are kept in any case.
    pub record_limit: usize,
}

impl Default for Settings {
    /// The demo tenant with the story and a second one without data, published quotas, a free port on loopback.
    fn default() -> Self {
        let demo = Tenant {
            domain: Some("corp.example".to_owned()),
            ..Tenant::reader(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, TenantData::Story)
        };
        let other = Tenant::reader(OTHER_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, TenantData::Empty);
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tenants: vec![demo, other],
            quota: Some(Quota::default()),
            latency: Duration::ZERO,
            token_lifetime: Duration::from_secs(3_599),
            brain: BrainSettings::default(),
            record_limit: 10_000,
        }
    }
}

impl Settings {
    /// For benchmarks: no quotas and no book of requests, so that the simulator costs as little as it can.
    pub fn instant() -> Self {
        Self { quota: None, record_limit: 0, ..Self::default() }
    }
}

/// A running simulator. Dropping it ends its connections.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    control: Control,
    server: JoinHandle<()>,
}

impl Simulator {
    /// Begins to listen and serve. It serves when this returns.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        let address = listener.local_addr()?;
        let world = Arc::new(World::new(settings));
        let service = server::router(Arc::clone(&world)).into_make_service_with_connect_info::<Link>();
        let stop = world.stop.clone();
        world.brain.begin(&stop);
        let server = tokio::spawn(async move {
            let serving = axum::serve(Breakable(listener), service).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the simulator stopped serving");
            }
        });
        tracing::debug!(server.address = %address, "the simulator serves");
        Ok(Self { address, control: Control(world), server })
    }

    /// The base URL of all its services: no path, no slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Counters and controls.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Ends its connections, those in work without an answer, and frees its port.
    pub async fn stop(mut self) {
        self.control.0.stop.cancel();
        if tokio::time::timeout(STOP_LIMIT, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.control.0.stop.cancel();
    }
}
