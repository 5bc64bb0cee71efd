//! What came of a request at Defender, written down: the desk, the audit line, the host's tags and notes (`cognito.md`
//! 5.4 and 6.7), and what is left to do afterwards.

use std::time::Duration;

use jiff::Timestamp;

use super::contain::Case;
use super::write::{Wanted, Written};
use super::{Calls, Ended, Failed, HELD_AGAIN, Look};
use crate::cognito::model::Note;
use crate::containment::act::Want;
use crate::containment::comment::Whose;
use crate::containment::decide::{Act, Decision};
use crate::containment::delays;
use crate::containment::matching::Context;
use crate::containment::notes::{self, Subject, Told};
use crate::containment::reason::{Fate, Reason};
use crate::containment::state::{self, Change, Outcome};
use crate::defender::model::MachineAction;
use crate::desk::Isolation;
use crate::job::{Hint, Progress};
use crate::telemetry::audit::{Entry, Outcome as Audited, Source};

/// The longest wait for room under a cap before it is looked at again: the operator may raise it.
const CAP_AGAIN: Duration = Duration::from_secs(60);

/// What became of a request at Defender, to be written to the host.
pub(super) struct Acted {
    /// What was found out about the machine, if it was looked up.
    pub(super) context: Option<Context>,
    pub(super) machine: Option<String>,
    pub(super) change: Change,
    /// `None`: nothing happened that is worth a note.
    pub(super) tale: Option<Tale>,
}

/// What the note tells ([`Told`], with values of its own).
pub(super) enum Tale {
    Accepted { want: Want, action: MachineAction, is_active: bool, until: Option<Timestamp> },
    Adopted { want: Want, action: MachineAction, whose: Whose },
    Settled { want: Want, action: Option<MachineAction>, whose: Whose },
    TakenBack { action: MachineAction },
    Ended { outcome: Outcome, action: MachineAction },
    ReleasedElsewhere { action: MachineAction },
    NotDone { want: Want, reason: Reason, detail: String },
    EndUnreadable { text: String },
}

impl Tale {
    fn told<'t>(&'t self, decision: &Decision) -> Told<'t> {
        let overrides_release = decision.overrides_release();
        match self {
            Self::Accepted { want, action, is_active, until } => Told::Accepted {
                want: *want,
                action,
                is_active: *is_active,
                until: *until,
                expired: decision.act == Act::Expire,
                overrides_release,
            },
            Self::Adopted { want, action, whose } => {
                Told::Adopted { want: *want, action, whose: *whose, overrides_release }
            }
            Self::Settled { want, action, whose } => {
                Told::Settled { want: *want, action: action.as_ref(), whose: *whose, overrides_release }
            }
            Self::TakenBack { action } => Told::TakenBack { action },
            Self::Ended { outcome, action } => Told::Ended { outcome: *outcome, action },
            Self::ReleasedElsewhere { action } => Told::ReleasedElsewhere { action },
            Self::NotDone { want, reason, detail } => Told::NotDone { want: *want, reason: *reason, detail },
            Self::EndUnreadable { text } => Told::EndUnreadable { text },
        }
    }

    /// What the audit line says; `None`: nothing was done or refused.
    fn audited(&self) -> Option<Verdict<'_>> {
        let plain = |want, outcome| Some((want, outcome, None, None));
        match self {
            Self::Accepted { want, .. } => plain(*want, Audited::Accepted),
            Self::Adopted { want, .. } => plain(*want, Audited::Adopted),
            Self::Settled { want, .. } => plain(*want, Audited::Already),
            Self::TakenBack { .. } => plain(Want::Release, Audited::Done),
            Self::Ended { outcome, .. } => match outcome {
                Outcome::Isolated => plain(Want::Isolate, Audited::Done),
                Outcome::Released => plain(Want::Release, Audited::Done),
                Outcome::NotIsolated => Some((Want::Isolate, Audited::Failed, Some(Reason::ActionFailed), None)),
                Outcome::StillIsolated => Some((Want::Release, Audited::Failed, Some(Reason::ActionFailed), None)),
            },
            Self::ReleasedElsewhere { .. } => plain(Want::Release, Audited::Elsewhere),
            Self::NotDone { want, reason, detail } => {
                let outcome = match reason.fate() {
                    Fate::Failed => Audited::Failed,
                    Fate::Denied => Audited::Denied,
                    Fate::DryRun => Audited::DryRun,
                };
                Some((*want, outcome, Some(*reason), Some(detail)))
            }
            Self::EndUnreadable { .. } => None,
        }
    }
}

/// What an audit line tells of a tale: what was wanted, what became of it, and why not.
type Verdict<'t> = (Want, Audited, Option<Reason>, Option<&'t str>);

impl Look<'_> {
    /// Writes the state, then the notes, then takes the triggers off: whatever dies before the last step is found again
    /// and done again without harm.
    pub(super) async fn settle(&self, calls: &Calls, case: &Case<'_>, mut acted: Acted) -> Result<Ended, Failed> {
        self.tell_desk(case, acted.machine.as_deref(), &acted.change);
        if let Some(tale) = &acted.tale {
            self.audit(case, acted.machine.as_deref(), &acted.change, tale).await;
        }
        acted.context = match acted.context {
            None if case.decision.enrich => Some(self.find(calls, case.host).await?.for_context),
            context => context,
        };
        let mut wanted = Wanted { context: acted.context.as_ref(), change: &acted.change, consumed: &[] };
        if let Written::Gone = self.write_tags(&calls.cognito, &wanted, None).await? {
            return Ok(Ended::Done("gone"));
        }
        if let Some(present) = self.notes(&calls.cognito).await {
            if let Some(context) = &acted.context {
                self.write_context_note(calls, case.host, context, &present).await;
            }
            self.write_action_note(calls, case, &acted, &present).await;
        }
        match &acted.change {
            Change::NotDone(Reason::Paused) => {
                return Ok(Ended::Later("held", HELD_AGAIN, Progress { held: true, ..Progress::default() }));
            }
            Change::NotDone(reason) if reason.holds() => {
                return Ok(Ended::Later("held", CAP_AGAIN, Progress::default()));
            }
            _ => wanted.consumed = &case.decision.consume,
        }
        if !wanted.consumed.is_empty()
            && let Written::Gone = self.write_tags(&calls.cognito, &wanted, None).await?
        {
            return Ok(Ended::Done("gone"));
        }
        Ok(self.afterwards(case, &acted.change))
    }

    /// The action note, unless the host has it or there is no news.
    async fn write_action_note(&self, calls: &Calls, case: &Case<'_>, acted: &Acted, present: &[Note]) {
        let Some(tale) = &acted.tale else { return };
        if !notes::is_news(&case.state, &acted.change) && !matches!(tale, Tale::EndUnreadable { .. }) {
            return;
        }
        let settings = &self.hosts.settings;
        let machine_name = match &acted.context {
            Some(Context::Found { machine, .. }) => machine.computer_dns_name.as_deref(),
            _ => None,
        };
        let subject = Subject {
            brain: &settings.brain,
            host_id: case.host.id,
            machine_id: acted.machine.as_deref(),
            machine_name,
        };
        // Every sweep after its end sees the same isolation that is over: told once.
        let cause = match (case.decision.act, case.state.until) {
            (Act::Expire, Some(until)) => state::until_text(until),
            _ => self.event.event_id.clone(),
        };
        let note = notes::action(&settings.policy, &subject, &tale.told(&case.decision), &cause);
        self.action_note(&calls.cognito, present, &note).await;
    }

    /// What is left to do once everything is written.
    fn afterwards(&self, case: &Case<'_>, change: &Change) -> Ended {
        match change {
            Change::Isolating { action_id, .. } | Change::Releasing { action_id, .. } => {
                let progress = Progress { action_id: Some(action_id.clone()), ..Progress::default() };
                let outcome = if matches!(change, Change::Isolating { .. }) { "isolating" } else { "releasing" };
                Ended::Later(outcome, delays::look(0).unwrap_or(delays::UNKNOWN), progress)
            }
            Change::Isolated { .. } | Change::Ended(Outcome::Isolated) => {
                // The sweep would find its end too; this is to the minute.
                match case.state.after(change, self.now).until {
                    Some(until) => {
                        let after = Duration::try_from(until.duration_since(self.now)).unwrap_or_default();
                        Ended::Later("isolated", after, Progress::default())
                    }
                    None => Ended::Done("isolated"),
                }
            }
            Change::Released | Change::Ended(Outcome::Released) => Ended::Done("released"),
            Change::Ended(Outcome::NotIsolated | Outcome::StillIsolated) => Ended::Done("action_failed"),
            Change::NotDone(reason) => Ended::Done(reason.as_str()),
            Change::Unchanged => Ended::Done("unchanged"),
        }
    }

    /// The desk counts who is isolated.
    pub(super) fn tell_desk(&self, case: &Case<'_>, machine: Option<&str>, change: &Change) {
        let Some(machine_id) = machine else { return };
        let after = case.state.after(change, self.now);
        match change {
            Change::NotDone(_) => {}
            Change::Released | Change::Ended(Outcome::Released | Outcome::NotIsolated) => {
                self.hosts.desk.released(machine_id, case.host.id);
            }
            _ => self.hosts.desk.isolated(Isolation {
                machine_id: machine_id.to_owned(),
                host_id: case.host.id,
                host_name: case.host.name.clone().unwrap_or_default(),
                action_id: after.action_id,
                since: self.now,
                until: after.until,
            }),
        }
    }

    /// One line for each change that somebody may have to answer for (`cognito.md` 6.7), and its figures.
    async fn audit(&self, case: &Case<'_>, machine: Option<&str>, change: &Change, tale: &Tale) {
        // An isolation that is held back is looked at again and again, and is told of once.
        let Some((want, outcome, reason, detail)) = tale.audited().filter(|_| notes::is_news(&case.state, change))
        else {
            return;
        };
        let after = case.state.after(change, self.now);
        let cause = self.cause(want, case);
        let by = match &self.event.hint {
            Some(Hint::Release { by, .. }) => Some(by.as_str()),
            _ => self.event.actor.as_deref(),
        };
        let action = verb(want);
        let entry = Entry {
            reason: reason.map(Reason::as_str),
            detail: detail.filter(|detail| !detail.is_empty()),
            actor: by,
            cause: Some(&cause),
            alerts: reason.is_some_and(Reason::alerts),
            tenant_id: Some(&self.hosts.settings.credentials.tenant_id),
            host_id: Some(case.host.id),
            host_name: case.host.name.as_deref(),
            brain: Some(&self.hosts.settings.brain),
            machine_id: machine,
            action_id: after.action_id.as_deref().or(case.state.action_id.as_deref()),
            ..Entry::new(Source::Hosts, action, outcome, &self.event.event_id)
        };
        entry.write(&self.hosts.metrics);
        // What the brake or a cap held back measures the operator, not the bridge.
        let was_held = case.state.request.and_then(|(_, reason)| reason).is_some_and(Reason::holds);
        if outcome == Audited::Accepted && !was_held {
            let took = Timestamp::now().duration_since(self.event.received_at);
            self.hosts.metrics.contained(action, Duration::try_from(took).unwrap_or_default());
        }
        self.hosts.settings.notifier.act(&entry).await;
    }

    /// Why it is done, for the audit line.
    fn cause(&self, want: Want, case: &Case<'_>) -> String {
        let policy = &self.hosts.settings.policy;
        let tag = if want == Want::Isolate { &policy.block } else { &policy.unblock };
        match tag {
            _ if self.is_operators_release() => "operator".to_owned(),
            _ if case.decision.act == Act::Expire => "expiry".to_owned(),
            Some(tag) => format!("tag {tag}"),
            None => "operator".to_owned(),
        }
    }
}

/// The word of logs and metrics.
const fn verb(want: Want) -> &'static str {
    match want {
        Want::Isolate => "isolate",
        Want::Release => "release",
    }
}
