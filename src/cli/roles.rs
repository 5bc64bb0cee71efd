//! Starts the roles of a process and stops them in an order that loses no answer: the ingress first, then the worker,
//! the admin port last.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle};

use crate::broker::Broker;
use crate::config::{DefenderSettings, IngressSettings, Keys, WorkerSettings};
use crate::credentials::SealKeys;
use crate::defender::{self, Defender};
use crate::outbound::Outbound;
use crate::relay::token;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;
use crate::{admin, ingress, listen, worker};

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
        Some(Ingress { settings, keys }) => {
            if keys.token_keys.is_empty() {
                tracing::warn!("SECRET_KEY is not set: every token will be refused");
            }
            let listener = bind(settings.listen, "BRIDGE_LISTEN").await?;
            addresses.0 = Some(listener.local_addr()?);
            let mut token_keys = keys.token_keys.into_iter();
            let settings = ingress::Settings {
                routes: settings.routes,
                deadline: settings.deadline,
                entities_limit: settings.entities_limit,
                token_keys: token::Keys::new(token_keys.next(), token_keys.next()),
                seal_keys: keys.seal_keys,
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
    let worker = match roles.worker {
        None => None,
        Some(worker) => {
            let context = context(&worker, metrics)?;
            let concurrency = worker.settings.concurrency;
            Some(tokio::spawn(worker::run(broker.clone(), context, concurrency, worker_shutdown.clone())))
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
        admin_shutdown.begin();
        if let Some(admin) = admin {
            ended(admin.await, "the admin port failed")?;
        }
        broker.close().await;
        worker.and(ingress)
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

fn context(worker: &Worker, metrics: Metrics) -> anyhow::Result<worker::Context> {
    let outbound = Outbound::new().context("the HTTP client cannot be set up")?;
    let settings = defender::Settings {
        entra_url: worker.defender.entra_url.clone(),
        defender_url: worker.defender.defender_url.clone(),
        graph_url: worker.defender.graph_url.clone(),
        defender_scope: worker.defender.defender_scope.clone(),
        graph_scope: worker.defender.graph_scope.clone(),
        retry: worker.retry.clone(),
        ..defender::Settings::default()
    };
    Ok(worker::Context::new(
        Defender::new(settings, outbound),
        &worker.defender.portal_url,
        Arc::clone(&worker.seal_keys),
        metrics,
        &worker.settings,
    ))
}
