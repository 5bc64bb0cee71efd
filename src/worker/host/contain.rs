//! Isolating and releasing (`cognito.md` 5.4 to 5.7, `defender.md` 7): guard, look, ask the desk, post once, follow.
//!
//! The order keeps three promises. Nothing is posted before Defender's own list of actions was read, and nothing twice when
//! the outcome of the first is unknown. What is posted was still wanted when the tags were read a moment before. And what
//! the tags say is what Defender said, never that something was asked for. What came of it is written in `settle`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::settle::{Acted, Tale};
use super::{Calls, Ended, Failed, Look};
use crate::cognito::model::Host;
use crate::containment::act::{self, Progress as Done, Sight, Step, Want};
use crate::containment::answer::Answer;
use crate::containment::comment::{self, Cause, Verb, Whose};
use crate::containment::decide::{self, Act, Decision, Facts};
use crate::containment::failure::Failure;
use crate::containment::matching::{self, Context, Match};
use crate::containment::reason::Reason;
use crate::containment::state::{Change, Outcome, State};
use crate::containment::{delays, guard};
use crate::defender::model::MachineAction;
use crate::defender::{DefenderError, IsolationType, Limits};
use crate::desk::{POST_LIMIT, Reservation};
use crate::job::Progress;

/// How often the actions are read again at once when Defender says that one is open that was not listed.
const LOOKS: u32 = 3;

/// How long an event waits when the desk has no answer.
const NO_DESK_AGAIN: Duration = Duration::from_secs(2);

/// How long an event waits while it is not known whether the protected groups exist.
const GROUPS_AGAIN: Duration = Duration::from_secs(5);

/// A host, its tags as just read, and what was decided from them.
pub(super) struct Case<'a> {
    pub(super) host: &'a Host,
    pub(super) tags: Vec<String>,
    pub(super) state: State,
    pub(super) decision: Decision,
}

/// How a look at Defender ended.
enum Turn {
    /// There is something to write.
    Write(Box<Acted>),
    /// Nothing to write; come back.
    Later(&'static str, Duration, Progress),
    /// Nobody wants it any more.
    Withdrawn,
    /// All is as the tags say.
    Nothing,
}

impl Turn {
    fn refused(want: Want, reason: Reason, found: Option<&Match>, machine: Option<&str>, detail: String) -> Self {
        Self::Write(Box::new(Acted {
            context: found.map(|found| found.for_context.clone()),
            machine: machine.map(str::to_owned),
            change: Change::NotDone(reason),
            tale: Some(Tale::NotDone { want, reason, detail }),
        }))
    }
}

impl Look<'_> {
    /// A host with tags read a moment ago, decided.
    pub(super) fn case<'h>(&self, host: &'h Host, tags: Vec<String>, context_read: Option<Timestamp>) -> Case<'h> {
        let policy = &self.hosts.settings.policy;
        let state = State::read(&policy.tag_prefix, &tags);
        let facts = Facts { host, tags: &tags, state: &state, context_read, now: self.now };
        let mut decision = decide::decide(policy, &facts);
        if self.is_operators_release() {
            // Whoever pulls the emergency brake wants the machine back, whatever the tags say; they stay.
            decision = Decision { row: decision.row, act: Act::Release, enrich: true, consume: Vec::new() };
        }
        Case { host, tags, state, decision }
    }

    /// Does what the tags ask for, and writes what came of it.
    pub(super) async fn contain(&self, mut case: Case<'_>) -> Result<Ended, Failed> {
        let calls = self.calls(true);
        // A request may change while its machine is looked up: then it is decided once more (`cognito.md` 5.4).
        for _ in 0..2 {
            let turn = match case.decision.act {
                Act::Isolate => self.isolate(&calls, &case).await?,
                Act::Release | Act::Expire => self.release(&calls, &case).await?,
                Act::Follow => self.follow(&calls, &case).await?,
                Act::Check => self.check(&calls, &case).await?,
                Act::Leave => return Ok(Ended::Done("withdrawn")),
            };
            match turn {
                Turn::Write(acted) => return self.settle(&calls, &case, *acted).await,
                Turn::Later(outcome, after, progress) => return Ok(Ended::Later(outcome, after, progress)),
                Turn::Nothing => return self.nothing(&calls, &case).await,
                Turn::Withdrawn => {
                    let Some(tags) = calls.cognito.tags(case.host.id).await? else { return Ok(Ended::Done("gone")) };
                    case = self.case(case.host, tags, None);
                }
            }
        }
        Err(Failed::of(Failure::Unknown, "the tags changed again and again while the host was worked"))
    }

    /// Looks for a request that this event may have made, or a worker that died with it, although the tags ask for nothing
    /// any more (`cognito.md` 5.10, no. 2): what it does to the machine has to be said by the tags. `None`: there was none.
    pub(super) async fn seek(&self, case: &Case<'_>) -> Result<Option<Ended>, Failed> {
        let progress = self.progress();
        if progress.unknown == 0 && self.attempt <= 1 {
            return Ok(None);
        }
        let calls = self.calls(true);
        let (found, id) = match progress.unknown_machine {
            Some(id) => (Match::none(), id),
            None => {
                let found = self.find(&calls, case.host).await?;
                let Ok(machine) = &found.for_action else { return Ok(None) };
                let id = machine.id.clone();
                (found, id)
            }
        };
        let actions = calls.defender.isolation_actions(&id).await?;
        if !actions.iter().any(|action| self.whose(action) == Whose::ThisEvent) {
            return Ok(match self.after_unknown() {
                Some(Turn::Later(outcome, after, progress)) => Some(Ended::Later(outcome, after, progress)),
                _ => None,
            });
        }
        // Others may have gone on from there.
        let Some(action) = act::newest(&actions, &id) else { return Ok(None) };
        let want = if action.is_isolate() { Want::Isolate } else { Want::Release };
        let turn = match act::follow(&action, &id) {
            Some(Done::Open) => self.adopted(want, action, &found, &id),
            Some(Done::Ended(Outcome::Isolated | Outcome::Released)) => self.settled(want, Some(action), &found, &id),
            // The machine is as it was before.
            Some(Done::Ended(Outcome::NotIsolated | Outcome::StillIsolated)) | None => return Ok(None),
        };
        match turn {
            Turn::Write(acted) => self.settle(&calls, case, *acted).await.map(Some),
            Turn::Later(..) | Turn::Withdrawn | Turn::Nothing => Ok(None),
        }
    }

    /// All is as the tags say. What was asked for beside it is not forgotten, and an end that is ahead is waited for.
    async fn nothing(&self, calls: &Calls, case: &Case<'_>) -> Result<Ended, Failed> {
        if case.decision.enrich {
            let unchanged = Acted { context: None, machine: None, change: Change::Unchanged, tale: None };
            return self.settle(calls, case, unchanged).await;
        }
        match case.state.until.filter(|until| *until > self.now && self.event.progress.is_some()) {
            Some(until) => {
                let after = Duration::try_from(until.duration_since(self.now)).unwrap_or_default();
                Ok(Ended::Later("isolated", after, Progress::default()))
            }
            None => Ok(Ended::Done("as_it_was")),
        }
    }

    /// Rows 1, 3 and 4.
    async fn isolate(&self, calls: &Calls, case: &Case<'_>) -> Result<Turn, Failed> {
        let settings = &self.hosts.settings;
        let found = self.find(calls, case.host).await?;
        let machine = match &found.for_action {
            Ok(machine) => machine,
            Err(reason) => return Ok(Turn::refused(Want::Isolate, *reason, Some(&found), None, String::new())),
        };
        let id = machine.id.as_str();
        if let Err(refusal) = guard::isolation(&settings.policy.guard, case.host, &case.tags, machine) {
            return Ok(Turn::refused(Want::Isolate, refusal.reason, Some(&found), Some(id), refusal.detail));
        }
        let refused = |reason| Ok(Turn::refused(Want::Isolate, reason, Some(&found), Some(id), String::new()));
        let is_active = matching::is_active(machine);
        let mut already_open = false;
        for _ in 0..LOOKS {
            match self.next(calls, case, Want::Isolate, id, is_active, already_open).await? {
                Step::Post | Step::Cancel { .. } => {}
                Step::Settled { action } => return Ok(self.settled(Want::Isolate, action, &found, id)),
                Step::Track { action } => return Ok(self.adopted(Want::Isolate, action, &found, id)),
                Step::Wait { after, .. } => return Ok(self.waiting("another_action", after)),
            }
            if let Some(turn) = self.after_unknown() {
                return Ok(turn);
            }
            if !self.hosts.groups.are_known() {
                return Ok(Turn::Later("groups_unknown", GROUPS_AGAIN, self.progress()));
            }
            if self.hosts.tags_refused.load(Ordering::Relaxed) {
                let what = "Cognito refuses to let tags be written: isolations wait";
                return Err(Failed::of(Failure::CognitoWriteRefused, what));
            }
            let grant = match self.hosts.desk.reserve(id, case.host.id).await {
                Reservation::Granted(grant) => grant,
                Reservation::Paused => return refused(Reason::Paused),
                Reservation::RateLimited { .. } => return refused(Reason::RateLimit),
                Reservation::TooManyIsolated => return refused(Reason::MaxIsolated),
                Reservation::Busy { wait } => {
                    return Ok(Turn::Later("another_worker", wait.max(NO_DESK_AGAIN), self.progress()));
                }
                Reservation::Unavailable => return Ok(Turn::Later("no_desk", NO_DESK_AGAIN, self.progress())),
            };
            // The last look at the tags, after whatever the reservation took.
            match self.is_still_wanted(calls, case).await {
                Ok(true) => {}
                Ok(false) => {
                    self.hosts.desk.not_posted(grant);
                    return Ok(Turn::Withdrawn);
                }
                Err(failed) => {
                    self.hosts.desk.not_posted(grant);
                    return Err(failed);
                }
            }
            if let Err(stop) = grant.may_post() {
                self.hosts.desk.not_posted(grant);
                tracing::info!(host.id = case.host.id, reason = %stop, "an isolation was stopped before it was posted");
                return Ok(Turn::Later("stopped", NO_DESK_AGAIN, self.progress()));
            }
            // The brake's promise counts on this POST to be over in time, whatever belongs to it.
            let until = Instant::now() + POST_LIMIT;
            let actor = settings.response.as_ref().unwrap_or(&settings.credentials).clone();
            let session = self.hosts.defender.session(actor, until, Limits::containment());
            match session.isolate(id, IsolationType::Full, &self.comment(Verb::Isolate, case)).await {
                Ok(action) => {
                    self.hosts.desk.posted(grant);
                    return Ok(self.accepted(Want::Isolate, action, &found, id));
                }
                Err(error) => match answer_of(&error) {
                    Answer::Unknown => {
                        self.hosts.desk.posted(grant);
                        return Ok(self.unknown(&error, id));
                    }
                    answer => {
                        self.hosts.desk.not_posted(grant);
                        if let Some(turn) = self.refused_by_defender(Want::Isolate, answer, error, &found, id)? {
                            return Ok(turn);
                        }
                        already_open = true;
                    }
                },
            }
        }
        Ok(self.waiting("another_action", delays::CROSSED))
    }

    /// Rows 5, 6 and 8.
    async fn release(&self, calls: &Calls, case: &Case<'_>) -> Result<Turn, Failed> {
        // The machine that was isolated is released, wherever its address is now.
        let (found, id) = match &case.state.machine_id {
            Some(id) => match calls.defender.machine_now(id).await? {
                // A machine that became part of another one is released as that one (`defender.md` 5.6).
                Some(machine) => {
                    let id = matching::successor(&machine).unwrap_or_else(|| id.clone());
                    (Some(Match::by_id(machine)), id)
                }
                None => (None, id.clone()),
            },
            None => {
                let found = self.find(calls, case.host).await?;
                match &found.for_action {
                    Ok(machine) => {
                        let id = machine.id.clone();
                        (Some(found), id)
                    }
                    Err(reason) => return Ok(Turn::refused(Want::Release, *reason, Some(&found), None, String::new())),
                }
            }
        };
        let found = found.unwrap_or_else(Match::none);
        if let Err(refusal) = guard::release(&self.hosts.settings.policy.guard) {
            return Ok(Turn::refused(Want::Release, refusal.reason, Some(&found), Some(&id), refusal.detail));
        }
        let is_active = found.for_action.as_ref().is_ok_and(matching::is_active);
        let mut already_open = false;
        let mut taken_back = None;
        for _ in 0..LOOKS {
            let cancel = match self.next(calls, case, Want::Release, &id, is_active, already_open).await? {
                Step::Post => None,
                Step::Cancel { action } => Some(action),
                Step::Settled { .. } if let Some(action) = taken_back => {
                    return Ok(Turn::Write(Box::new(Acted {
                        context: Some(found.for_context.clone()),
                        machine: Some(id),
                        change: Change::Released,
                        tale: Some(Tale::TakenBack { action }),
                    })));
                }
                Step::Settled { action } => return Ok(self.settled(Want::Release, action, &found, &id)),
                Step::Track { action } => return Ok(self.adopted(Want::Release, action, &found, &id)),
                Step::Wait { after, .. } => return Ok(self.waiting("another_action", after)),
            };
            if let Some(turn) = self.after_unknown() {
                return Ok(turn);
            }
            if !self.is_still_wanted(calls, case).await? {
                return Ok(Turn::Withdrawn);
            }
            let asked = match &cancel {
                Some(action) => calls.defender.cancel(&action.id, &self.comment(Verb::Cancel, case)).await,
                None => calls.defender.unisolate(&id, &self.comment(Verb::Release, case)).await,
            };
            match asked {
                // What was taken back may have been carried out at the last moment: the actions tell.
                Ok(action) if cancel.is_some() => taken_back = Some(action),
                Ok(action) => return Ok(self.accepted(Want::Release, action, &found, &id)),
                Err(error) => match answer_of(&error) {
                    Answer::Unknown => return Ok(self.unknown(&error, &id)),
                    // An action that ended meanwhile cannot be taken back.
                    Answer::Refused | Answer::NoMachine if cancel.is_some() => {
                        return Ok(self.waiting("another_action", delays::UNKNOWN));
                    }
                    answer => {
                        if let Some(turn) = self.refused_by_defender(Want::Release, answer, error, &found, &id)? {
                            return Ok(turn);
                        }
                        already_open = true;
                    }
                },
            }
        }
        Ok(self.waiting("another_action", delays::CROSSED))
    }

    /// Row 7. An action that is still open is followed by the event that asked for it; others leave it alone.
    async fn follow(&self, calls: &Calls, case: &Case<'_>) -> Result<Turn, Failed> {
        let Some(machine_id) = case.state.machine_id.as_deref() else { return Ok(Turn::Nothing) };
        let action = match &case.state.action_id {
            Some(id) => calls.defender.machine_action(id).await?,
            None => None,
        };
        let action = match action {
            Some(action) if act::follow(&action, machine_id).is_some() => action,
            // The tags name no action, or none of this machine: Defender's newest is the one.
            _ => match act::newest(&calls.defender.isolation_actions(machine_id).await?, machine_id) {
                Some(action) => action,
                None => return Ok(Turn::Nothing),
            },
        };
        Ok(match act::follow(&action, machine_id) {
            Some(Done::Ended(outcome)) => Turn::Write(Box::new(Acted {
                context: None,
                machine: Some(machine_id.to_owned()),
                change: Change::Ended(outcome),
                tale: Some(Tale::Ended { outcome, action }),
            })),
            Some(Done::Open) | None => Turn::Nothing,
        })
    }

    /// Row 9: whether somebody else released what the tags call isolated.
    async fn check(&self, calls: &Calls, case: &Case<'_>) -> Result<Turn, Failed> {
        let Some(machine_id) = case.state.machine_id.as_deref() else { return Ok(Turn::Nothing) };
        if let Some(text) = case.state.unreadable_until.clone() {
            return Ok(Turn::Write(Box::new(Acted {
                context: None,
                machine: Some(machine_id.to_owned()),
                change: Change::Unchanged,
                tale: Some(Tale::EndUnreadable { text }),
            })));
        }
        let actions = self.actions(calls, case, machine_id).await?;
        let Some(action) = act::released_elsewhere(&self.sight(case, machine_id, &actions, true, false)) else {
            self.tell_desk(case, Some(machine_id), &Change::Unchanged);
            return Ok(Turn::Nothing);
        };
        Ok(Turn::Write(Box::new(Acted {
            context: None,
            machine: Some(machine_id.to_owned()),
            change: Change::Released,
            tale: Some(Tale::ReleasedElsewhere { action }),
        })))
    }

    /// Looks at the machine's actions, and says what to do.
    async fn next(
        &self,
        calls: &Calls,
        case: &Case<'_>,
        want: Want,
        machine_id: &str,
        is_active: bool,
        already_open: bool,
    ) -> Result<Step, Failed> {
        let actions = self.actions(calls, case, machine_id).await?;
        let step = act::next(want, &self.sight(case, machine_id, &actions, is_active, already_open));
        tracing::debug!(host.id = case.host.id, decision.row = case.decision.row_after(&step), step = ?step, "looked");
        Ok(step)
    }

    /// The machine's isolations and releases, and the one that the tags name if Defender's list lacks it.
    async fn actions(&self, calls: &Calls, case: &Case<'_>, machine_id: &str) -> Result<Vec<MachineAction>, Failed> {
        let mut actions = calls.defender.isolation_actions(machine_id).await?;
        if let Some(id) = &case.state.action_id
            && !actions.iter().any(|action| action.id.eq_ignore_ascii_case(id))
        {
            actions.extend(calls.defender.machine_action(id).await?);
        }
        Ok(actions)
    }

    fn sight<'s>(
        &self,
        case: &'s Case<'_>,
        machine_id: &'s str,
        actions: &'s [MachineAction],
        is_active: bool,
        already_open: bool,
    ) -> Sight<'s> {
        Sight { machine_id, actions, is_active, state: &case.state, already_open, now: self.now }
    }

    /// Defender took the request.
    fn accepted(&self, want: Want, action: MachineAction, found: &Match, machine_id: &str) -> Turn {
        let whose = self.whose(&action);
        if whose == Whose::Other {
            return self.adopted(want, action, found, machine_id);
        }
        let until = self.expiry(want, whose);
        let is_active = found.for_action.as_ref().is_ok_and(matching::is_active);
        let change = act::taken(want, &action, machine_id, until);
        self.written(found, machine_id, change, Tale::Accepted { want, action, is_active, until })
    }

    /// Defender works on what is wanted already.
    fn adopted(&self, want: Want, action: MachineAction, found: &Match, machine_id: &str) -> Turn {
        let whose = self.whose(&action);
        let change = act::taken(want, &action, machine_id, self.expiry(want, whose));
        self.written(found, machine_id, change, Tale::Adopted { want, action, whose })
    }

    /// The machine is as wanted; no action: nobody ever isolated it.
    fn settled(&self, want: Want, action: Option<MachineAction>, found: &Match, machine_id: &str) -> Turn {
        let whose = action.as_ref().map_or(Whose::Other, |action| self.whose(action));
        let change = match (want, &action) {
            (Want::Isolate, Some(action)) => {
                let until = self.expiry(want, whose);
                Change::Isolated { machine_id: machine_id.to_owned(), action_id: action.id.clone(), until }
            }
            _ => Change::Released,
        };
        self.written(found, machine_id, change, Tale::Settled { want, action, whose })
    }

    fn written(&self, found: &Match, machine_id: &str, change: Change, tale: Tale) -> Turn {
        let context = Some(found.for_context.clone()).filter(|context| *context != Context::None);
        Turn::Write(Box::new(Acted { context, machine: Some(machine_id.to_owned()), change, tale: Some(tale) }))
    }

    fn whose(&self, action: &MachineAction) -> Whose {
        comment::whose(action, self.event.host_id, &self.event.event_id)
    }

    fn expiry(&self, want: Want, whose: Whose) -> Option<Timestamp> {
        let ttl = self.hosts.settings.policy.guard.isolation_ttl.filter(|_| want == Want::Isolate);
        act::expiry(whose, ttl, self.now)
    }

    /// Whether the tags still ask for what is about to be posted (`cognito.md` 5.10, no. 2).
    async fn is_still_wanted(&self, calls: &Calls, case: &Case<'_>) -> Result<bool, Failed> {
        let Some(tags) = calls.cognito.tags(case.host.id).await? else { return Ok(false) };
        let now = self.case(case.host, tags, None);
        Ok(now.decision.act == case.decision.act && now.state.machine_id == case.state.machine_id)
    }

    fn comment(&self, verb: Verb, case: &Case<'_>) -> String {
        let policy = &self.hosts.settings.policy;
        let tag = if verb == Verb::Isolate { &policy.block } else { &policy.unblock };
        let cause = match tag {
            _ if self.is_operators_release() => Cause::Operator,
            _ if case.decision.act == Act::Expire => Cause::Expiry,
            Some(tag) => Cause::Tag(tag),
            None => Cause::Operator,
        };
        comment::compose(verb, case.host.id, &self.hosts.settings.brain, cause, &self.event.event_id)
    }

    /// Comes back at no cost, the later the more often it did.
    fn waiting(&self, outcome: &'static str, after: Duration) -> Turn {
        let progress = self.progress();
        let growing = delays::look(progress.looks).unwrap_or(after);
        Turn::Later(outcome, after.min(growing), Progress { looks: progress.looks + 1, held: false, ..progress })
    }

    /// After a POST that may have been taken: looks for it twice before it is posted again (`defender.md` 7.3, step 5).
    fn unknown(&self, error: &DefenderError, machine_id: &str) -> Turn {
        tracing::warn!(
            host.id = self.event.host_id,
            error = %error,
            "nobody knows whether a request was taken; it is looked for before it is posted again"
        );
        let unknown_machine = Some(machine_id.to_owned());
        Turn::Later("unknown", delays::UNKNOWN, Progress { unknown: 1, unknown_machine, ..self.progress() })
    }

    /// Nothing was found of a POST of unknown outcome: another look, or now it may be posted again.
    fn after_unknown(&self) -> Option<Turn> {
        let progress = self.progress();
        let again = Progress { unknown: progress.unknown + 1, ..progress };
        (2..=delays::UNKNOWN_LOOKS).contains(&again.unknown).then_some(Turn::Later("unknown", delays::UNKNOWN, again))
    }

    /// What to do after Defender refused; nothing when another action is open, which the next look finds.
    fn refused_by_defender(
        &self,
        want: Want,
        answer: Answer,
        error: DefenderError,
        found: &Match,
        machine_id: &str,
    ) -> Result<Option<Turn>, Failed> {
        match answer.failure() {
            Some(reason) => {
                tracing::error!(host.id = self.event.host_id, machine.id = machine_id, error = %error, "Defender refused a request");
                let detail = error.detail().unwrap_or_default().to_owned();
                Ok(Some(Turn::refused(want, reason, Some(found), Some(machine_id), detail)))
            }
            None if answer == Answer::AlreadyOpen => Ok(None),
            None => Err(error.into()),
        }
    }
}

/// What Defender's refusal, or silence, means.
pub(in crate::worker) fn answer_of(error: &DefenderError) -> Answer {
    match error.status() {
        Some(status) => Answer::of(status, error.code().unwrap_or_default(), error.detail().unwrap_or_default()),
        None => Answer::of_silence(error.may_have_happened()),
    }
}
