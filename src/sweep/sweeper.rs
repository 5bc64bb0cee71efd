//! One sweep after the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::listing::{self, Found};
use super::memory::{Due, Memory, room};
use super::publish::{event, publish};
use crate::broker::{Broker, BrokerError, DeadLetterFilter, Health, Lane, QueueDepth};
use crate::cognito::{Class, Cognito, CognitoError};
use crate::containment::Policy;
use crate::desk::{Desk, FirstSweep};
use crate::job;
use crate::notify::Notifier;
use crate::telemetry::metrics::Metrics;

/// How the events of the sweep name their sender.
pub const SENDER: &str = "sweep";

/// Dead letters are looked through while there are no more than this: a look takes all of them out of their queue and puts
/// them back. A larger heap is somebody's work, and the intervals of the memory hold as well.
const DEAD_LETTERS_LIMIT: u64 = 2_000;

/// How long a look at the dead letters may take: somebody else may be busy with them.
const DEAD_LETTERS_PATIENCE: Duration = Duration::from_secs(10);

/// Sweeps for as long as it is allowed to.
pub(super) struct Sweeper<B> {
    pub(super) broker: B,
    pub(super) cognito: Cognito,
    pub(super) desk: Desk,
    pub(super) policy: Arc<Policy>,
    pub(super) metrics: Metrics,
    notifier: Notifier,
    memory: Memory,
    /// The number of dead letters when they were last looked through.
    dead: u64,
}

/// What a sweep came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Hosts that matter.
    pub found: usize,
    /// Events published.
    pub published: usize,
    /// Hosts whose event was due and has no room in the queue at present.
    pub put_off: usize,
}

/// Why a sweep came to nothing, or to an early end.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Cognito did not show its hosts.
    #[error(transparent)]
    Cognito(#[from] CognitoError),
    /// The queue did not take events, or the desk gave no word.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl<B: Broker> Sweeper<B> {
    pub(super) fn new(
        broker: B,
        cognito: Cognito,
        desk: Desk,
        policy: Arc<Policy>,
        metrics: Metrics,
        notifier: Notifier,
    ) -> Self {
        Self { broker, cognito, desk, policy, metrics, notifier, memory: Memory::default(), dead: 0 }
    }

    /// Sweeps now and then every `every`, for ever. Sets `cleared` when the desk knows what the first sweep found.
    pub(super) async fn run(&mut self, every: Duration, cleared: &watch::Sender<bool>) {
        // Others may have swept in the meantime.
        self.memory.forget();
        self.metrics.oldest_trigger(None);
        self.dead = 0;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let started = Instant::now();
            match self.sweep(Timestamp::now(), started, cleared).await {
                Ok(swept) => {
                    self.metrics.search(SENDER, "ok");
                    let took_ms = started.elapsed().as_millis() as u64;
                    let Swept { found, published, put_off } = swept;
                    if published + put_off > 0 {
                        tracing::info!(found, published, put_off, took_ms, "the sweep found hosts to look at");
                    } else {
                        tracing::debug!(found, took_ms, "the sweep found nothing new");
                    }
                }
                Err(error) => {
                    self.metrics.search(SENDER, "failed");
                    tracing::warn!(%error, "the sweep failed; the next one tries again");
                    if matches!(&error, SweepError::Cognito(error) if error.class() == Class::Configuration) {
                        self.notifier.alert("cognito_read_refused", &error.to_string(), None).await;
                    }
                }
            }
        }
    }

    /// One sweep: hosts by tags first, because containment is among them, then hosts by scores.
    async fn sweep(
        &mut self,
        now: Timestamp,
        instant: Instant,
        cleared: &watch::Sender<bool>,
    ) -> Result<Swept, SweepError> {
        let policy = Arc::clone(&self.policy);
        self.memory.begin();
        let mut found = listing::read(&self.cognito, &listing::by_tags(&policy), &policy, now).await?;
        let untouched: Vec<u64> = found.iter().filter(|host| host.untouched).map(|host| host.host).collect();
        if self.desk.first_sweep(&untouched).await? == FirstSweep::Paused {
            tracing::debug!(hosts = untouched.len(), "isolations are paused because of what the first sweep found");
        }
        cleared.send_replace(true);
        let mut swept = Swept::default();
        self.publish(&found, &found, now, instant, &mut swept).await?;
        if let Some(filter) = listing::by_scores(&policy) {
            let by_tags = found.len();
            let known: HashSet<u64> = found.iter().map(|host| host.host).collect();
            let scored = listing::read(&self.cognito, &filter, &policy, now).await?;
            found.extend(scored.into_iter().filter(|host| !known.contains(&host.host)));
            self.publish(&found[by_tags..], &found, now, instant, &mut swept).await?;
        }
        self.memory.end();
        self.metrics.oldest_trigger(self.memory.oldest_trigger(instant));
        swept.found = found.len();
        Ok(swept)
    }

    /// Publishes those of `hosts` whose event is due, as far as there is room; `all` are the hosts found so far.
    async fn publish(
        &mut self,
        hosts: &[Found],
        all: &[Found],
        now: Timestamp,
        instant: Instant,
        swept: &mut Swept,
    ) -> Result<(), SweepError> {
        let health = self.broker.check().await;
        self.mind_dead_letters(&health, now, instant).await;
        for lane in [Lane::Urgent, Lane::Normal] {
            let of_lane = |host: &&Found| host.reasons.lane() == lane;
            let memory = &mut self.memory;
            let mut due: Vec<(Due, &Found)> = hosts
                .iter()
                .filter(of_lane)
                .filter_map(|host| Some((memory.due(host.host, &host.reasons, instant)?, host)))
                .collect();
            if due.is_empty() {
                continue;
            }
            let room = room(all.iter().filter(of_lane).count(), depth(&health, lane)?);
            due.sort_by_key(|(due, _)| *due);
            swept.put_off += due.len().saturating_sub(room);
            due.truncate(room);
            let events = due.iter().map(|(_, host)| event(&self.policy, host, SENDER, now)).collect();
            let by_id: HashMap<u64, &Found> = due.iter().map(|(_, host)| (host.host, *host)).collect();
            publish(&self.broker, &self.metrics, SENDER, events, |event| {
                if let Some(host) = by_id.get(&event.host.host_id) {
                    memory.published(host.host, &host.reasons, instant);
                    swept.published += 1;
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Lets the hosts whose events died within the last hour wait (`cognito.md` 5.8).
    async fn mind_dead_letters(&mut self, health: &Health, now: Timestamp, instant: Instant) {
        let dead = health.queues.iter().find(|row| row.queue == job::HOSTS.name).map_or(0, |row| row.dead);
        if dead == self.dead || dead > DEAD_LETTERS_LIMIT {
            return;
        }
        self.dead = dead;
        let filter = DeadLetterFilter { queue: Some(job::HOSTS.name.to_owned()), ..DeadLetterFilter::default() };
        match timeout(DEAD_LETTERS_PATIENCE, self.broker.dead_letters(&filter)).await {
            Ok(Ok(letters)) => {
                for letter in letters {
                    let key = letter.message.key.as_deref().unwrap_or_default();
                    if let Some(host) = key.strip_prefix("host-").and_then(|id| id.parse().ok()) {
                        let ago = Duration::try_from(now.duration_since(letter.died)).unwrap_or_default();
                        self.memory.died(host, letter.message.lane, ago, instant);
                    }
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "the dead letters could not be looked through"),
            Err(_) => tracing::debug!("somebody else is busy with the dead letters"),
        }
    }
}

/// How much waits in a lane of host events, and who works it.
///
/// # Errors
/// The broker does not say: publishing blindly could double what waits.
pub(super) fn depth(health: &Health, lane: Lane) -> Result<&QueueDepth, BrokerError> {
    let mut rows = health.queues.iter();
    let row = rows.find(|row| row.queue == job::HOSTS.name && row.lane == lane);
    row.ok_or_else(|| BrokerError::Unavailable("it does not say how much waits".to_owned()))
}
