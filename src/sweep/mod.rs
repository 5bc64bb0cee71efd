//! Finding hosts in Cognito without being told: the sweep, by which every event that was lost is caught
//! (`cognito.md` 5.9), and the reader of Cognito's own feeds (3.4, calls 9 and 10), which stand in for the webhook that
//! Cognito does not have.
//!
//! Both only publish events: which host to look at. What is done is decided by the worker, from the host itself.
//!
//! Every worker runs [`run`]; the desk lets one of them search. That one renews its right every few seconds, so another
//! takes over soon after it dies. It stays the same one while it lives, because it remembers what it has published
//! ([`memory`]).

pub mod feed;
pub mod groups;
pub mod listing;
pub mod memory;
pub mod publish;
mod reader;
mod sweeper;
pub mod wanted;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::reader::Reader;
use self::sweeper::Sweeper;
use crate::broker::Broker;
use crate::cognito::Cognito;
use crate::containment::Policy;
use crate::desk::{self, Desk};
use crate::notify::Notifier;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;

/// How long the right to search lasts unless it is renewed, and so how long nobody searches after a worker died.
const LEASE: Duration = Duration::from_secs(10);

/// How often the right is renewed, and how often those that do not have it ask for it: twice may fail.
const RENEWAL: Duration = Duration::from_secs(3);

/// What to search for, and how often.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Between the beginnings of two sweeps; `None`: no sweeps.
    pub sweep_interval: Option<Duration>,
    /// Between two looks into Cognito's feeds; `None`: no looks.
    pub feed_interval: Option<Duration>,
    /// Tags, thresholds and prefix.
    pub policy: Arc<Policy>,
    /// The bridge's own user in Cognito, whose changes are nothing new.
    pub self_user: Option<String>,
    /// Who tells operators that Cognito refuses to be searched.
    pub notifier: Notifier,
}

/// Searches whenever the desk grants it, until `shutdown` begins. Failures are logged and counted and end nothing.
pub async fn run<B: Broker>(
    broker: B,
    cognito: Cognito,
    desk: Desk,
    settings: Settings,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    if settings.sweep_interval.is_none() && settings.feed_interval.is_none() {
        return;
    }
    let policy = Arc::clone(&settings.policy);
    let mut sweeper = Sweeper::new(
        broker.clone(),
        cognito.clone(),
        desk.clone(),
        Arc::clone(&policy),
        metrics.clone(),
        settings.notifier.clone(),
    );
    let mut reader = Reader::new(broker, cognito, policy, settings.self_user.clone(), metrics);
    loop {
        let granted = tokio::select! {
            () = shutdown.begun() => return,
            granted = desk.sweep_begin(Duration::ZERO, LEASE) => granted,
        };
        let mut right = match granted {
            Ok(right) => right,
            Err(_) => tokio::select! {
                () = shutdown.begun() => return,
                () = sleep(RENEWAL) => continue,
            },
        };
        tracing::info!("this worker searches Cognito for hosts");
        // Nothing is published before the desk knows what the first sweep found.
        let cleared = watch::Sender::new(settings.sweep_interval.is_none());
        let sweeps = async {
            match settings.sweep_interval {
                None => pending().await,
                Some(every) => sweeper.run(every, &cleared).await,
            }
        };
        let feeds = async {
            match settings.feed_interval {
                None => pending().await,
                Some(every) => {
                    let mut cleared = cleared.subscribe();
                    let _ = cleared.wait_for(|cleared| *cleared).await;
                    reader.run(every).await;
                }
            }
        };
        tokio::select! {
            () = shutdown.begun() => {}
            () = hold(&desk, &mut right) => tracing::info!("another worker searches Cognito from now on"),
            () = sweeps => {}
            () = feeds => {}
        }
        // Whoever searches next shows it.
        sweeper.metrics.oldest_trigger(None);
        desk.sweep_done(right).await;
    }
}

/// Renews the right to search for as long as the desk does; ends with the right.
async fn hold(desk: &Desk, right: &mut desk::Sweep) {
    while Instant::now() < right.until() {
        sleep_until(right.until().min(Instant::now() + RENEWAL)).await;
        let renewed = timeout_at(right.until(), desk.sweep_renew(right, LEASE)).await;
        if !matches!(renewed, Ok(Ok(()))) {
            tracing::debug!("the right to search could not be renewed");
        }
    }
}
