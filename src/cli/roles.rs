//! Starts the roles of a process and stops them in an order that loses no answer: the ingress first, then the worker,
//! the admin port last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::broker::{Broker, BrokerError};
use crate::cognito::{self, Cognito, Priority};
use crate::config::{
    DefenderSettings, HostSettings, IngressSettings, Keys, NotifySettings, RespondSettings, WebhookSettings,
    WorkerSettings,
};
use crate::credentials::SealKeys;
use crate::defender::{self, Defender, Family, Permits, Purpose};
use crate::desk::{self, Brake, Budget, Desk};
use crate::job::{self, Triggers};
use crate::key_sets::KeySets;
use crate::notify::{Notifier, Post};
use crate::outbound::Outbound;
use crate::quota::{self, Key, Row};
use crate::relay::token;
use crate::shutdown::Shutdown;
use crate::sweep;
use crate::telemetry::metrics::Metrics;
use crate::{admin, ingress, listen, worker};

/// How long a process that stops waits until the desk has heard what its last jobs came to.
pub(super) const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// What runs in this process.
#[derive(Debug)]
pub struct Roles {
    /// The ingress, if it does.
    pub ingress: Option<Ingress>,
    /// The worker, if it does.
    pub worker: Option<Worker>,
    /// Where the admin port listens, if it does.
    pub admin_listen: Option<SocketAddr>,
}

/// Settings of the ingress.
#[derive(Debug)]
pub struct Ingress {
    /// Where it listens and what it serves.
    pub settings: IngressSettings,
    /// Keys of tokens and seals.
    pub keys: Keys,
    /// Base of links into the portal, without a final slash.
    pub portal_url: String,
    /// Who may send host events; `None`: there is no webhook.
    pub webhook: Option<WebhookSettings>,
}

/// Settings of the worker.
#[derive(Debug)]
pub struct Worker {
    /// Where Microsoft is.
    pub defender: DefenderSettings,
    /// How much at a time.
    pub settings: WorkerSettings,
    /// Keys that open credentials.
    pub seal_keys: Arc<SealKeys>,
    /// How failed calls are repeated.
    pub retry: crate::retry::Policy,
    /// What response actions keep to.
    pub respond: RespondSettings,
    /// What may be called of Defender.
    pub quota: quota::Settings,
    /// No other process of the deployment calls Defender: the quota is counted in memory.
    pub alone: bool,
    /// Host events, if they are worked.
    pub hosts: Option<HostSettings>,
    /// Where notifications are posted, if anywhere.
    pub notify: Option<NotifySettings>,
}

/// Roles that were started.
#[derive(Debug)]
pub struct Running {
    /// Where the ingress listens.
    pub ingress: Option<SocketAddr>,
    /// Where the admin port listens.
    pub admin: Option<SocketAddr>,
    stopped: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Waits until all roles have stopped.
    ///
    /// # Errors
    /// When one of them failed; the others were stopped then.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.stopped.await.context("the process failed")?
    }
}

/// Starts `roles` on `broker`. They run until `shutdown` begins or one of them fails; the broker is closed after them.
///
/// # Errors
/// When an address cannot be listened on, or the HTTP client cannot be set up.
pub async fn start<B: Broker>(broker: B, roles: Roles, shutdown: Shutdown) -> anyhow::Result<Running> {
    let metrics = Metrics::default();
    let mut addresses = (None, None);

    let ingress = match roles.ingress {
        None => None,
        Some(Ingress { settings, keys, portal_url, webhook }) => {
            if keys.token_keys.is_empty() && settings.key_sets.is_none() {
                tracing::warn!("SECRET_KEY is not set: every token will be refused");
            }
            let key_sets = match settings.key_sets {
                None => None,
                Some(settings) => {
                    let outbound = Outbound::new().context("the HTTP client for key sets cannot be set up")?;
                    Some(KeySets::new(settings, &outbound))
                }
            };
            let listener = bind(settings.listen, "BRIDGE_LISTEN").await?;
            addresses.0 = Some(listener.local_addr()?);
            let mut token_keys = keys.token_keys.into_iter();
            let settings = ingress::Settings {
                routes: settings.routes,
                deadline: settings.deadline,
                max_wait: settings.max_wait,
                entities_limit: settings.entities_limit,
                token_keys: token::Keys::new(token_keys.next(), token_keys.next()),
                key_sets,
                seal_keys: keys.seal_keys,
                portal_url,
                webhook,
            };
            let router = ingress::router(settings, broker.clone(), metrics.clone(), shutdown.clone());
            Some(tokio::spawn(listen::serve(listener, router, shutdown.clone())))
        }
    };
    let admin_shutdown = shutdown.child();
    let admin = match roles.admin_listen {
        None => None,
        Some(address) => {
            let listener = bind(address, "BRIDGE_ADMIN_LISTEN").await?;
            addresses.1 = Some(listener.local_addr()?);
            let router = admin::router(broker.clone(), metrics.clone(), shutdown.clone());
            Some(tokio::spawn(listen::serve(listener, router, admin_shutdown.clone())))
        }
    };
    let worker_shutdown = shutdown.child();
    // The desk answers as long as this process has jobs in hand that may ask it.
    let desk_shutdown = shutdown.child();
    let (worker, desk) = match roles.worker {
        None => (None, None),
        Some(mut worker) => {
            let settings = match &worker.hosts {
                Some(hosts) => desk_settings(hosts, worker.quota.clone()),
                None => desk_of_triggers(&worker.respond, worker.quota.clone()),
            };
            let (serving, desk) = desk(&broker, settings, &metrics, &desk_shutdown).await?;
            let shared = (!worker.alone).then_some(&desk);
            let permits = permits(shared, worker.quota.clone(), &metrics);
            let defender = defender(&worker.defender, worker.retry.clone())?.with_permits(permits);
            let context = worker::Context::new(
                defender.clone(),
                &worker.defender.portal_url,
                Arc::clone(&worker.seal_keys),
                metrics.clone(),
                &worker.settings,
            );
            let (notifier, post) = match worker.notify.take() {
                None => (Notifier::default(), None),
                Some(settings) => {
                    let outbound = Outbound::new().context("the HTTP client for notifications cannot be set up")?;
                    (Notifier::new(broker.clone()), Some(Post::new(settings, outbound, metrics.clone())))
                }
            };
            let hosts = match worker.hosts.take() {
                Some(settings) => {
                    let notifier = notifier.clone();
                    Some(hosts(settings, defender, &desk, &broker, &metrics, notifier, &worker_shutdown).await?)
                }
                None => None,
            };
            tokio::spawn(tell_of_brake(desk.brake_changed(), notifier.clone()));
            let triggers = worker::Triggers { settings: worker.respond, desk: Some(desk.clone()), notifier };
            let context = context.with_triggers(triggers);
            let concurrency = worker.settings.concurrency;
            let run = worker::run(broker.clone(), context, hosts, post, concurrency, worker_shutdown.clone());
            (Some(tokio::spawn(run)), Some((serving, desk)))
        }
    };
    if let Some(address) = addresses.0 {
        tracing::info!(http.address = %address, "the ingress listens");
    }
    if let Some(address) = addresses.1 {
        tracing::info!(http.address = %address, "the admin port listens");
    }

    let stopped = tokio::spawn(async move {
        let failed = shutdown.clone();
        let ingress = async {
            let ended = match ingress {
                Some(task) => ended(task.await, "the ingress failed"),
                None => {
                    failed.begun().await;
                    Ok(())
                }
            };
            if ended.is_err() {
                failed.begin();
            }
            // Nobody asks any more: now the workers of this process may stop.
            worker_shutdown.begin();
            ended
        };
        let worker = async {
            let ended = match worker {
                Some(task) => ended(task.await, "the worker failed"),
                None => Ok(()),
            };
            if ended.is_err() {
                failed.begin();
            }
            ended
        };
        let (ingress, worker) = tokio::join!(ingress, worker);
        if let Some((_, desk)) = &desk {
            desk.flush(FLUSH_LIMIT).await;
        }
        desk_shutdown.begin();
        let desk = match desk {
            Some((task, _)) => ended(task.await, "the desk failed"),
            None => Ok(()),
        };
        admin_shutdown.begin();
        if let Some(admin) = admin {
            ended(admin.await, "the admin port failed")?;
        }
        broker.close().await;
        worker.and(ingress).and(desk)
    });
    Ok(Running { ingress: addresses.0, admin: addresses.1, stopped })
}

/// What became of a task, a panic included.
fn ended<E: std::error::Error + Send + Sync + 'static>(
    joined: Result<Result<(), E>, JoinError>,
    what: &'static str,
) -> anyhow::Result<()> {
    joined.context(what)?.context(what)
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{setting}: cannot listen on {address}"))
}

/// The client of Microsoft's services.
pub(super) fn defender(at: &DefenderSettings, retry: crate::retry::Policy) -> anyhow::Result<Defender> {
    let outbound = Outbound::new().context("the HTTP client cannot be set up")?;
    let memory = defender::Memory::default();
    let settings = defender::Settings {
        entra_url: at.entra_url.clone(),
        defender_url: at.defender_url.clone(),
        graph_url: at.graph_url.clone(),
        defender_scope: at.defender_scope.clone(),
        graph_scope: at.graph_scope.clone(),
        retry,
        memory: defender::Memory { credentials: at.refusal_ttl, roles: memory.roles.min(at.refusal_ttl), ..memory },
        ..defender::Settings::default()
    };
    Ok(Defender::new(settings, outbound))
}

/// The desk, which may answer for the whole deployment, and the way to it.
pub(super) async fn desk<B: Broker>(
    broker: &B,
    settings: desk::Settings,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> anyhow::Result<(JoinHandle<Result<(), BrokerError>>, Desk)> {
    let serving = desk::serve(broker.clone(), settings.clone(), metrics.clone(), shutdown.clone());
    let serving = tokio::spawn(serving);
    let desk = Desk::open(broker.clone(), settings, metrics.clone()).await.context("the desk cannot be used")?;
    Ok((serving, desk))
}

/// Between two tries to tell the ingress what the tags are.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// Tells the ingress which tags are urgent. Tries on while the broker takes no messages: a worker that ended would be kept
/// away by whatever starts it again, for longer each time.
async fn tell_triggers<B: Broker>(broker: &B, triggers: &Triggers, shutdown: &Shutdown) -> Result<(), BrokerError> {
    let triggers = Bytes::from(serde_json::to_vec(triggers).expect("lists of tags serialise"));
    loop {
        let error = match broker.retain(job::TRIGGERS, triggers.clone()).await {
            Err(error @ (BrokerError::Unavailable(_) | BrokerError::Unknown(_))) => error,
            told => return told,
        };
        tracing::warn!(error = %error, "the tags cannot be told to the ingress yet");
        tokio::select! {
            () = tokio::time::sleep(TELL_AGAIN) => {}
            () = shutdown.begun() => return Err(error),
        }
    }
}

/// Everything that host events need beside the desk: the search for hosts, and the handlers.
pub(super) async fn hosts<B: Broker>(
    settings: HostSettings,
    defender: Defender,
    desk: &Desk,
    broker: &B,
    metrics: &Metrics,
    notifier: Notifier,
    shutdown: &Shutdown,
) -> anyhow::Result<worker::Hosts> {
    let policy = &settings.policy;
    let cognito = cognito_client(&settings, desk)?.with_metrics(metrics.clone());
    let groups = sweep::groups::check(cognito.clone(), settings.required_groups.clone(), shutdown.clone()).await?;
    let triggers = Triggers {
        urgent: [&policy.block, &policy.unblock].into_iter().flatten().cloned().collect(),
        normal: policy.enrich.iter().cloned().collect(),
    };
    tell_triggers(broker, &triggers, shutdown).await.context("the tags cannot be told to the ingress")?;
    let searches = sweep::Settings {
        sweep_interval: settings.sweep_interval,
        feed_interval: settings.feed_interval,
        policy: Arc::new(policy.clone()),
        self_user: settings.cognito.self_user.clone(),
        notifier: notifier.clone(),
    };
    tokio::spawn(sweep::run(
        broker.clone(),
        cognito.clone(),
        desk.clone(),
        searches,
        metrics.clone(),
        shutdown.clone(),
    ));
    let brain = settings.cognito.client.base_url.host_str().unwrap_or_default().to_owned();
    let handled = worker::host::Settings {
        policy: settings.policy,
        brain,
        self_user: settings.cognito.self_user,
        credentials: settings.applications.credentials,
        response: settings.applications.response,
        notifier,
    };
    Ok(worker::Hosts::new(handled, cognito, defender, desk.clone(), groups, broker.clone(), metrics.clone()))
}

/// Tells when the emergency brake is moved; ends with the desk. Every worker tells it, under one id.
async fn tell_of_brake(mut brake: watch::Receiver<Brake>, notifier: Notifier) {
    let mut paused = brake.borrow_and_update().paused;
    while brake.changed().await.is_ok() {
        let now = brake.borrow_and_update().clone();
        if now.paused != paused {
            paused = now.paused;
            notifier.brake(paused, now.at, now.by.as_deref(), now.reason.as_deref()).await;
        }
    }
}

/// What the desk is to keep to.
pub(super) fn desk_settings(settings: &HostSettings, quota: quota::Settings) -> desk::Settings {
    let guard = &settings.policy.guard;
    desk::Settings {
        cognito: true,
        quota,
        cognito_rate: settings.cognito.rate,
        isolations_per_hour: guard.max_isolations_per_hour,
        max_isolated: guard.max_isolated,
        first_sweep: guard.first_sweep,
    }
}

/// The same where no host of Cognito is worked: triggers isolate all the same.
fn desk_of_triggers(settings: &RespondSettings, quota: quota::Settings) -> desk::Settings {
    desk::Settings {
        cognito: false,
        quota,
        isolations_per_hour: settings.guard.max_isolations_per_hour,
        max_isolated: settings.guard.max_isolated,
        ..desk::Settings::default()
    }
}

/// The client of Cognito, as fast as the desk allows.
pub(super) fn cognito_client(settings: &HostSettings, desk: &Desk) -> anyhow::Result<Cognito> {
    let outbound = match &settings.cognito.ca_file {
        Some(file) => Outbound::with_ca_file(file),
        None => Outbound::new(),
    };
    let outbound = outbound.context("the HTTP client for Cognito cannot be set up")?;
    Ok(Cognito::new(settings.cognito.client.clone(), outbound, Arc::new(Rate(desk.clone()))))
}

/// The deployment's rate of calls to Cognito is the desk's business.
struct Rate(Desk);

impl cognito::Rate for Rate {
    fn permit(&self, priority: Priority) -> BoxFuture<'_, ()> {
        self.0.cognito_permit(priority == Priority::Containment).boxed()
    }

    fn throttled(&self, wait: Option<Duration>) {
        self.0.cognito_throttled(wait);
    }
}

/// The deployment's quota of calls to Defender: counted by the desk, or by this process where it is the only one.
pub fn permits(desk: Option<&Desk>, quota: quota::Settings, metrics: &Metrics) -> Arc<dyn Permits> {
    Arc::new(Quota(match desk {
        Some(desk) => Budget::shared(desk),
        None => Budget::alone(quota, metrics.clone()),
    }))
}

struct Quota(Budget);

impl Quota {
    /// The row of `defender.md` 3.1; none for tokens, whose limit is not published.
    fn row(family: Family) -> Option<Row> {
        match family {
            Family::Alerts | Family::Files => Some(Row::Alerts),
            Family::Machines => Some(Row::Machines),
            Family::Actions => Some(Row::Actions),
            Family::MachineActions => Some(Row::MachineActions),
            Family::Indicators => Some(Row::Indicators),
            Family::Hunting => Some(Row::Hunting),
            Family::Token(_) => None,
        }
    }
}

impl Permits for Quota {
    fn permit<'a>(
        &'a self,
        tenant_id: &'a str,
        client_id: &'a str,
        family: Family,
        purpose: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>> {
        let Some(row) = Self::row(family) else { return std::future::ready(Ok(until)).boxed() };
        let request = match purpose {
            Purpose::Containment => None,
            Purpose::Lookup { request } => Some(request),
        };
        self.0.permit(Key::new(tenant_id, client_id, row), request, until).boxed()
    }

    fn throttled(&self, tenant_id: &str, client_id: &str, family: Family, retry_after: Option<Duration>) {
        if let Some(row) = Self::row(family) {
            self.0.throttled(Key::new(tenant_id, client_id, row), retry_after);
        }
    }

    fn room(&self, tenant_id: &str, client_id: &str, family: Family, until: Instant) -> u32 {
        Self::row(family).map_or(u32::MAX, |row| self.0.room(&Key::new(tenant_id, client_id, row), until))
    }
}
