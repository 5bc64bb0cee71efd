//! Everything a handler may touch.

use std::sync::Arc;

use tokio::time::Instant;

use super::Triggers;
use super::observe::answers::Answers;
use crate::config::WorkerSettings;
use crate::credentials::{Credentials, SealKeys};
use crate::defender::{self, Defender, Limits, Session};
use crate::telemetry::metrics::Metrics;

/// Shared by all jobs of a worker. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The clients of Entra, Defender and Graph, with their caches.
    pub defender: Defender,
    /// Base of links into the portal.
    pub portal_url: Arc<str>,
    /// Keys that open credentials.
    pub seal_keys: Arc<SealKeys>,
    /// Where to count.
    pub metrics: Metrics,
    /// Whether spans show what was asked about.
    pub(super) trace_values: bool,
    pub(super) answers: Answers,
    pub(super) triggers: Arc<Triggers>,
}

impl Context {
    /// A context without cached answers.
    #[must_use]
    pub fn new(
        defender: Defender,
        portal_url: &str,
        seal_keys: Arc<SealKeys>,
        metrics: Metrics,
        settings: &WorkerSettings,
    ) -> Self {
        Self {
            defender: defender.with_metrics(metrics.clone()),
            portal_url: portal_url.into(),
            seal_keys,
            metrics,
            trace_values: settings.trace_values,
            answers: Answers::new(settings.answer_ttl),
            triggers: Arc::default(),
        }
    }

    /// The same context, working triggers by these rules.
    #[must_use]
    pub fn with_triggers(self, triggers: Triggers) -> Self {
        Self { triggers: triggers.into(), ..self }
    }

    /// One job's use of Defender, over by `until`.
    pub(super) fn session(&self, credentials: &Credentials, until: Instant) -> Session {
        self.limited_session(credentials, until, Limits::default())
    }

    /// The same with other limits.
    pub(super) fn limited_session(&self, credentials: &Credentials, until: Instant, limits: Limits) -> Session {
        let credentials = defender::Credentials {
            tenant_id: credentials.tenant_id.clone(),
            client_id: credentials.client_id.clone(),
            proof: credentials.client_secret.clone().into(),
        };
        self.defender.session(credentials, until, limits)
    }
}
