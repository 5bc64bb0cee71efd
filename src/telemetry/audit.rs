//! The audit line: who did what to which machine or indicator, why, and what came of it (`cognito.md` 6.7).
//!
//! One line for each isolation, release, refusal and indicator, at level `info` of the target `audit`, so that one filter
//! (`RUST_LOG=audit=info`) keeps them, and one count in `bridge_containments_total`. Everything that acts writes it through
//! [`Entry::write`]: hosts of Cognito and triggers of the relay look the same in it.

use super::metrics::Metrics;

/// Who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The tags of a host of Cognito, or an operator's order about one.
    Hosts,
    /// A trigger of the relay.
    Relay,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Defender took the request.
    Accepted,
    /// Defender was at it already, and what it does was adopted.
    Adopted,
    /// It was so already.
    Already,
    /// Defender has carried it out.
    Done,
    /// Somebody else has done it.
    Elsewhere,
    /// It could not be done, or Defender did not carry it out.
    Failed,
    /// The guard, the brake or a cap refused it.
    Denied,
    /// The dry run would have asked for it.
    DryRun,
    /// Nobody knows whether Defender took the request.
    Unknown,
}

impl Outcome {
    /// The word in logs, metrics and notifications.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Adopted => "adopted",
            Self::Already => "already",
            Self::Done => "done",
            Self::Elsewhere => "elsewhere",
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::DryRun => "dry_run",
            Self::Unknown => "unknown",
        }
    }
}

impl Source {
    /// The word in logs, metrics and notifications.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Relay => "relay",
        }
    }
}

/// One act. What is `None` is not known or does not apply; nothing here may be a secret.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Who asked for it.
    pub source: Source,
    /// What: `isolate`, `release`, or another of the code's few words for an action. A label of a metric.
    pub action: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// A code of the code's own, such as `protected`. A label of a metric.
    pub reason: Option<&'static str>,
    /// The reason in words.
    pub detail: Option<&'a str>,
    /// Who, as the sender of the event or the caller's token says.
    pub actor: Option<&'a str>,
    /// Why: `tag block`, `expiry`, the name of a trigger.
    pub cause: Option<&'a str>,
    /// Whether somebody has to see to it before it can be done (`cognito.md` 5.8 and 6.4).
    pub alerts: bool,
    /// Whose tenant.
    pub tenant_id: Option<&'a str>,
    /// The application whose credentials were used, where they came with the order.
    pub client_id: Option<&'a str>,
    /// Cognito's id of the host.
    pub host_id: Option<u64>,
    /// Cognito's name of it.
    pub host_name: Option<&'a str>,
    /// Host name of the brain.
    pub brain: Option<&'a str>,
    /// Defender's id of the machine.
    pub machine_id: Option<&'a str>,
    /// Defender's id of the machine action.
    pub action_id: Option<&'a str>,
    /// Defender's id of the indicator.
    pub indicator_id: Option<&'a str>,
    /// What the indicator is of: a type of the relay, and the value in normal form. In the line only, in no notification.
    pub observable: Option<(&'static str, &'a str)>,
    /// The event, or the relay's message, that asked for it.
    pub event_id: &'a str,
}

impl<'a> Entry<'a> {
    /// An act of which only this is known.
    #[must_use]
    pub const fn new(source: Source, action: &'static str, outcome: Outcome, event_id: &'a str) -> Self {
        Self {
            source,
            action,
            outcome,
            reason: None,
            detail: None,
            actor: None,
            cause: None,
            alerts: false,
            tenant_id: None,
            client_id: None,
            host_id: None,
            host_name: None,
            brain: None,
            machine_id: None,
            action_id: None,
            indicator_id: None,
            observable: None,
            event_id,
        }
    }

    /// Writes the line and counts it.
    pub fn write(&self, metrics: &Metrics) {
        let (source, outcome) = (self.source.as_str(), self.outcome.as_str());
        metrics.containment(source, self.action, outcome, self.reason.unwrap_or_default());
        tracing::info!(
            target: "audit",
            { audit.source = source, audit.action = self.action, audit.outcome = outcome, audit.reason = self.reason,
              audit.detail = self.detail, audit.actor = self.actor, audit.cause = self.cause,
              tenant.id = self.tenant_id, client.id = self.client_id, host.id = self.host_id,
              host.name = self.host_name, brain = self.brain, machine.id = self.machine_id,
              action.id = self.action_id, indicator.id = self.indicator_id,
              observable.type = self.observable.map(|(kind, _)| kind),
              observable.value = self.observable.map(|(_, value)| value), event.id = self.event_id },
            "{} {outcome}", self.action
        );
    }
}
