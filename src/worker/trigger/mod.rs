//! `/respond/trigger`: does what an analyst asked for, once (`relay.md` 7.3; `DESIGN.md` 10, rulings 11 and 13).
//!
//! The message was acknowledged before it got here and never comes again; no call that changes something is sent twice.
//! What makes that safe to live with is the look before: what is open already is adopted, what stands already is reported
//! as done. Triggers of one machine have one key, so that no two of them look at the same time.

mod indicator;
mod machine;

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::Context;
use super::observe::failures;
use crate::config::RespondSettings;
use crate::containment::Reason;
use crate::containment::guard::Refusal;
use crate::credentials::Credentials;
use crate::defender::model::MachineAction;
use crate::defender::{DefenderError, Limits, Session};
use crate::desk::Desk;
use crate::job::{self, Reply};
use crate::notify::Notifier;
use crate::relay::trigger::{Act, MachineAct, REMOVE, Refused, Trigger};
use crate::relay::{self, RelayError};
use crate::telemetry::audit::{Entry, Outcome, Source};

/// The least time that is waited for a notification's way into its queue, when the order's own is over.
const TELL_LEAST: Duration = Duration::from_millis(500);

/// What triggers are worked with.
#[derive(Debug, Clone, Default)]
pub struct Triggers {
    /// What is never done, and in which words the rest.
    pub settings: RespondSettings,
    /// Who counts isolations and holds the brake. Without it nothing is isolated.
    pub desk: Option<Desk>,
    /// Who tells operators what is done.
    pub notifier: Notifier,
}

/// One trigger.
struct Run<'a> {
    job_id: Uuid,
    trigger: &'a Trigger,
    credentials: &'a Credentials,
    until: Instant,
    context: &'a Context,
    session: Session,
}

/// What was done.
struct Done {
    how: Outcome,
    action: Option<MachineAction>,
    indicator_id: Option<String>,
}

impl Done {
    fn action(how: Outcome, action: Option<MachineAction>) -> Self {
        Self { how, action, indicator_id: None }
    }

    fn indicator(id: &str) -> Self {
        Self { how: Outcome::Done, action: None, indicator_id: Some(id.to_owned()).filter(|id| !id.is_empty()) }
    }
}

/// Why nothing was done, or nobody knows.
enum NotDone {
    /// The guard, the brake, a cap or a rule of ours.
    Refused { reason: &'static str, detail: String },
    /// Defender's machine does not allow it now: another action is open that this one must not cross, or there is no such
    /// machine.
    Impossible { reason: &'static str, detail: String },
    /// Defender, or the way there.
    Failed(Box<DefenderError>),
    /// There is no time left.
    Late,
}

impl From<DefenderError> for NotDone {
    fn from(error: DefenderError) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl From<Refusal> for NotDone {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { reason: refusal.reason.as_str(), detail: refusal.detail }
    }
}

impl NotDone {
    fn refused(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::Refused { reason, detail: detail.into() }
    }

    fn error(&self) -> RelayError {
        match self {
            Self::Refused { detail, .. } => RelayError::refused(detail),
            Self::Impossible { detail, .. } => RelayError::invalid_request(detail),
            Self::Failed(error) => failures::relay_error(error, false),
            Self::Late => RelayError::deadline(false),
        }
    }

    /// The words of the audit line.
    fn told(&self) -> (Outcome, &'static str, String) {
        match self {
            Self::Refused { reason, detail } if *reason == Reason::DryRun.as_str() => {
                (Outcome::DryRun, reason, detail.clone())
            }
            Self::Refused { reason, detail } => (Outcome::Denied, reason, detail.clone()),
            Self::Impossible { reason, detail } => (Outcome::Failed, reason, detail.clone()),
            Self::Failed(error) if error.may_have_happened() => (Outcome::Unknown, "no_answer", error.to_string()),
            Self::Failed(error) => (Outcome::Failed, "defender", error.to_string()),
            Self::Late => (Outcome::Failed, "deadline", String::new()),
        }
    }

    /// Whether an operator has to see to it: the brake or a cap. Credentials are the caller's own, and so are their faults.
    fn alerts(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if Reason::parse(reason).is_some_and(Reason::holds))
    }
}

/// Carries out a trigger by `until` and says what came of it.
pub(super) async fn handle(
    job: job::Trigger,
    job_id: Uuid,
    credentials: &Credentials,
    until: Instant,
    context: &Context,
) -> Reply {
    // It passed these checks at the ingress; one of another version may see it otherwise.
    let trigger = match Trigger::of(&job.into_form()) {
        Ok(trigger) => trigger,
        Err(Refused::Failure(error)) => return Reply::ok(relay::trigger_failure(&[error])),
        Err(Refused::Bare(error)) => return Reply::ok(relay::failure(&[error])),
    };
    // Whatever an analyst asks for goes before lookups.
    let limits = Limits { containment: true, once: true, ..Limits::default() };
    let session = context.limited_session(credentials, until, limits);
    let run = Run { job_id, trigger: &trigger, credentials, until, context, session };
    let done = match &trigger.act {
        Act::Machine(act) => run.machine(*act).await,
        Act::Add(add) => run.add(*add).await,
        Act::Remove(id) => run.remove(id).await,
    };
    run.audit(&done).await;
    match done {
        Ok(Done { action, .. }) => {
            let action_id = action.map(|action| action.id).filter(|id| !id.is_empty());
            if let Some(id) = &action_id {
                super::name_action(id);
            }
            Reply { status: 200, action_id, body: relay::trigger_success() }
        }
        Err(not_done) => Reply::ok(relay::trigger_failure(&[not_done.error()])),
    }
}

impl Run<'_> {
    fn settings(&self) -> &RespondSettings {
        &self.context.triggers.settings
    }

    fn desk(&self) -> Option<&Desk> {
        self.context.triggers.desk.as_ref()
    }

    /// The value that the trigger is about, in normal form.
    fn value(&self) -> &str {
        &self.trigger.observable.value
    }

    /// Waits, if there is time for it and for something after it.
    async fn pause(&self, wait: Duration) -> Result<(), NotDone> {
        if Instant::now() + wait >= self.until {
            return Err(NotDone::Late);
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// One line for each trigger, and a notification: who asked for what, and what came of it (`DESIGN.md` 7).
    async fn audit(&self, done: &Result<Done, NotDone>) {
        let (action, cause) = words(&self.trigger.act);
        let (outcome, reason, detail) = match done {
            Ok(done) => (done.how, None, String::new()),
            Err(not_done) => {
                let (outcome, reason, detail) = not_done.told();
                (outcome, Some(reason), detail)
            }
        };
        let alerts = done.as_ref().is_err_and(NotDone::alerts);
        let done = done.as_ref().ok();
        let indicator_id = match &self.trigger.act {
            Act::Remove(id) => Some(id.as_str()),
            _ => done.and_then(|done| done.indicator_id.as_deref()),
        };
        let is_machine = matches!(self.trigger.act, Act::Machine(_));
        let job_id = self.job_id.to_string();
        let entry = Entry {
            reason,
            detail: Some(detail.as_str()).filter(|detail| !detail.is_empty()),
            cause: Some(cause),
            alerts,
            tenant_id: Some(&self.credentials.tenant_id),
            client_id: Some(&self.credentials.client_id),
            machine_id: is_machine.then(|| self.value()),
            action_id: done.and_then(|done| done.action.as_ref()).map(|action| action.id.as_str()),
            indicator_id,
            observable: (!is_machine).then(|| (self.trigger.observable.kind.as_str(), self.value())),
            ..Entry::new(Source::Relay, action, outcome, &job_id)
        };
        entry.write(&self.context.metrics);
        // Whoever waits for the answer is not to wait for the queue of notifications, which takes it all the same.
        let until = self.until.max(Instant::now() + TELL_LEAST);
        let _ = timeout_at(until, self.context.triggers.notifier.act(&entry)).await;
    }
}

/// The words of the audit line: what is done, and the action that was ordered.
const fn words(act: &Act) -> (&'static str, &'static str) {
    match act {
        Act::Machine(act) => {
            let action = match act {
                MachineAct::IsolateFull | MachineAct::IsolateSelective => "isolate",
                MachineAct::Release => "release",
                MachineAct::Restrict => "restrict",
                MachineAct::Unrestrict => "unrestrict",
                MachineAct::ScanQuick | MachineAct::ScanFull => "scan",
                MachineAct::Collect => "collect",
            };
            (action, act.id())
        }
        Act::Add(add) => ("add_indicator", add.id()),
        Act::Remove(_) => ("remove_indicator", REMOVE),
    }
}
