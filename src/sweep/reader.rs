//! One look into Cognito's feeds after the other.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::feed::{self, Checkpoint, Positions, SENDER};
use super::publish::{Event, publish};
use crate::broker::{Broker, BrokerError};
use crate::cognito::model::{Audit, Feed, Scoring};
use crate::cognito::{Cognito, CognitoError, EVENTS_LIMIT, Flavour, Kind, Priority, Session};
use crate::containment::Policy;
use crate::job::{self, DecodeError};
use crate::telemetry::metrics::Metrics;

/// How long one call may take, its repeats and the wait for permits included.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// Parts of a feed that are read in one look at most: ten thousand events; the next look goes on.
const PARTS_LIMIT: u32 = 10;

/// How long a feed that the brain does not offer, or not to this user, is left alone.
const OFF: Duration = Duration::from_secs(3600);

/// The feeds there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// On-premises audits.
    Audits,
    /// Hosted audits.
    AuditEvents,
    /// Hosted scores.
    ScoringEvents,
}

impl Source {
    /// In logs and metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::Audits => "audits",
            Self::AuditEvents => "audit_events",
            Self::ScoringEvents => "scoring_events",
        }
    }
}

/// What is known of a feed while this worker reads it.
#[derive(Debug, Clone, Copy)]
struct Reading {
    source: Source,
    /// Not before, after the brain said that it has no such feed for us.
    not_before: Option<Instant>,
    /// The last look failed, and that was said.
    failing: bool,
}

/// Reads the feeds for as long as it is allowed to.
pub(super) struct Reader<B> {
    broker: B,
    cognito: Cognito,
    policy: Arc<Policy>,
    self_user: Option<String>,
    metrics: Metrics,
    readings: Vec<Reading>,
    positions: Positions,
    /// What is retained.
    retained: Positions,
}

/// Why a look came to nothing, or to an early end.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Cognito(#[from] CognitoError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl<B: Broker> Reader<B> {
    pub(super) fn new(
        broker: B,
        cognito: Cognito,
        policy: Arc<Policy>,
        self_user: Option<String>,
        metrics: Metrics,
    ) -> Self {
        let scores = policy.thresholds.is_some() || policy.urgency.is_some();
        let sources = match cognito.version().flavour() {
            Flavour::Qux => vec![Source::Audits],
            Flavour::Rux if scores => vec![Source::AuditEvents, Source::ScoringEvents],
            Flavour::Rux => vec![Source::AuditEvents],
        };
        let reading = |source| Reading { source, not_before: None, failing: false };
        let readings = sources.into_iter().map(reading).collect();
        let (positions, retained) = Default::default();
        Self { broker, cognito, policy, self_user, metrics, readings, positions, retained }
    }

    /// Looks now and then every `every`, for ever.
    pub(super) async fn run(&mut self, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Where the worker before this one stopped.
        loop {
            ticks.tick().await;
            match self.broker.watch(job::FEEDS).await {
                Ok(value) => {
                    self.resume(value.borrow().as_deref());
                    break;
                }
                Err(error) => tracing::warn!(%error, "it is not known how far Cognito's feeds were read"),
            }
        }
        loop {
            self.look(Timestamp::now()).await;
            ticks.tick().await;
        }
    }

    fn resume(&mut self, retained: Option<&[u8]>) {
        let positions = retained.map_or(Ok(Positions::default()), Positions::decode);
        self.positions = positions.unwrap_or_else(|error: DecodeError| {
            tracing::warn!(%error, "how far Cognito's feeds were read cannot be understood; they are read from now on");
            Positions::default()
        });
        self.retained = self.positions.clone();
    }

    /// One look into each feed.
    async fn look(&mut self, now: Timestamp) {
        for index in 0..self.readings.len() {
            let reading = self.readings[index];
            if reading.not_before.is_some_and(|time| Instant::now() < time) {
                continue;
            }
            let name = reading.source.name();
            let looked = match reading.source {
                Source::Audits => self.audits(now).await,
                Source::AuditEvents => self.audit_events(now).await,
                Source::ScoringEvents => self.scoring_events(now).await,
            };
            let reading = &mut self.readings[index];
            match looked {
                Ok(()) => {
                    self.metrics.search(name, "ok");
                    if std::mem::take(&mut reading.failing) || reading.not_before.take().is_some() {
                        tracing::info!(feed = name, "the feed can be read again");
                    }
                }
                Err(ReadError::Cognito(error)) if matches!(error.kind(), Kind::NotOffered | Kind::Forbidden) => {
                    self.metrics.search(name, "off");
                    tracing::warn!(feed = name, %error, again_in_s = OFF.as_secs(), "Cognito does not offer this feed");
                    reading.not_before = Some(Instant::now() + OFF);
                }
                Err(error) => {
                    self.metrics.search(name, "failed");
                    if !std::mem::replace(&mut reading.failing, true) {
                        tracing::warn!(feed = name, %error, "the feed cannot be read; it is tried again and again");
                    }
                }
            }
        }
    }

    async fn audits(&mut self, now: Timestamp) -> Result<(), ReadError> {
        let (first, last) = feed::days(self.positions.audits.as_ref(), now);
        let listed = self.session().audits(first, last).await?;
        let (fresh, read) = feed::fresh(self.positions.audits.as_ref(), listed, now);
        let mut events = Vec::new();
        for (digest, entry) in &fresh {
            events.extend(self.of_audit(&format!("audit-{digest}"), entry, now));
        }
        self.publish(events).await?;
        self.positions.audits = Some(read);
        self.retain().await
    }

    async fn audit_events(&mut self, now: Timestamp) -> Result<(), ReadError> {
        for _ in 0..PARTS_LIMIT {
            let from = self.positions.audit_events.unwrap_or(Checkpoint::Since(now));
            let part: Feed<Audit> = self.session().audit_events(from.start(), EVENTS_LIMIT).await?;
            let mut events = Vec::new();
            for entry in part.events.iter().filter(|entry| from.is_news(entry.at)) {
                events.extend(self.of_audit(&format!("audit-{}", feed::id_of(entry)), entry, now));
            }
            self.publish(events).await?;
            let after = from.after(part.next_checkpoint);
            self.positions.audit_events = Some(after);
            self.retain().await?;
            if after == from || part.remaining.is_none_or(|remaining| remaining == 0) {
                break;
            }
        }
        Ok(())
    }

    async fn scoring_events(&mut self, now: Timestamp) -> Result<(), ReadError> {
        for _ in 0..PARTS_LIMIT {
            let from = self.positions.scoring_events.unwrap_or(Checkpoint::Since(now));
            let part: Feed<Scoring> = self.session().scoring_events(from.start(), EVENTS_LIMIT).await?;
            let news = part.events.iter().filter(|event| from.is_news(event.at));
            let events = news.filter_map(|event| feed::of_scoring(&self.policy, event, now)).collect();
            self.publish(events).await?;
            let after = from.after(part.next_checkpoint);
            self.positions.scoring_events = Some(after);
            self.retain().await?;
            if after == from || part.remaining.is_none_or(|remaining| remaining == 0) {
                break;
            }
        }
        Ok(())
    }

    fn session(&self) -> Session {
        self.cognito.session(Priority::Normal, Instant::now() + CALL_LIMIT)
    }

    fn of_audit(&self, id: &str, entry: &Audit, now: Timestamp) -> Vec<Event> {
        feed::of_audit(&self.policy, self.self_user.as_deref(), id, entry, now)
    }

    async fn publish(&self, events: Vec<Event>) -> Result<(), BrokerError> {
        let events = feed::one_each(events);
        if !events.is_empty() {
            tracing::debug!(hosts = events.len(), "Cognito's feed names hosts to look at");
        }
        publish(&self.broker, &self.metrics, SENDER, events, |_| {}).await
    }

    /// Retains how far the feeds were read, if that is news. Only after the events are published: what is read twice does
    /// no harm.
    async fn retain(&mut self) -> Result<(), ReadError> {
        if self.positions != self.retained {
            self.broker.retain(job::FEEDS, self.positions.encode()).await?;
            self.retained = self.positions.clone();
        }
        Ok(())
    }
}
