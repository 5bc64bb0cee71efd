//! Machines on the word of a trigger: guard, look, ask the desk where it isolates, post once.
//!
//! What to do is decided by the same pure code as for hosts ([`act`]). Nothing is followed: the answer says that Defender
//! took the request, and `GET /actions/{id}` what became of it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Done, NotDone, Run};
use crate::containment::act::{self, Sight, Step, Want};
use crate::containment::answer::Answer;
use crate::containment::comment::{self, Verb};
use crate::containment::once::{self, Look, Wish};
use crate::containment::state::State;
use crate::containment::{Reason, guard, matching};
use crate::defender::model::{Machine, MachineAction};
use crate::defender::{DefenderError, IsolationType, Limits, ScanType, Session};
use crate::desk::{POST_LIMIT, Reservation};
use crate::relay::trigger::MachineAct;
use crate::telemetry::audit::Outcome;
use crate::worker::host::answer_of;

/// How often the actions are read again when Defender says that one is open that it does not list yet.
const LOOKS: u32 = 3;

/// The wait between such looks, and until the desk is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// The wait before an action is looked for whose POST got no answer: the list lags behind.
const UNKNOWN: Duration = Duration::from_secs(2);

/// In Defender's words, for what it does not list.
const IN_PROGRESS: &str = "Action is already in progress";

impl Run<'_> {
    pub(super) async fn machine(&self, act: MachineAct) -> Result<Done, NotDone> {
        match act {
            MachineAct::IsolateFull => self.isolate(IsolationType::Full).await,
            MachineAct::IsolateSelective => self.isolate(IsolationType::Selective).await,
            MachineAct::Release => self.release().await,
            MachineAct::Restrict => {
                // It stops a server's work as surely as an isolation does.
                guard::trigger(&self.settings().guard, Some(&self.known().await?))?;
                if self.desk().is_none_or(|desk| desk.brake().paused) {
                    return Err(paused());
                }
                let wish =
                    Wish { kind: "RestrictCodeExecution", opposite: Some("UnrestrictCodeExecution"), scope: None };
                self.other(act, wish).await
            }
            MachineAct::Unrestrict => {
                let wish =
                    Wish { kind: "UnrestrictCodeExecution", opposite: Some("RestrictCodeExecution"), scope: None };
                self.other(act, wish).await
            }
            MachineAct::ScanQuick => self.scan(act, ScanType::Quick).await,
            MachineAct::ScanFull => self.scan(act, ScanType::Full).await,
            MachineAct::Collect => {
                self.other(act, Wish { kind: "CollectInvestigationPackage", opposite: None, scope: None }).await
            }
        }
    }

    async fn scan(&self, act: MachineAct, scan: ScanType) -> Result<Done, NotDone> {
        self.other(act, Wish { kind: "RunAntiVirusScan", opposite: None, scope: Some(scan.as_str()) }).await
    }

    /// The machine as Defender knows it now.
    async fn known(&self) -> Result<Machine, NotDone> {
        let machine = self.session.machine_now(self.value()).await?;
        let detail = || format!("Machine {} was not found.", self.value());
        machine.ok_or_else(|| NotDone::Impossible { reason: Reason::NoMachine.as_str(), detail: detail() })
    }

    async fn isolate(&self, isolation: IsolationType) -> Result<Done, NotDone> {
        let id = self.value();
        let machine = self.known().await?;
        guard::trigger(&self.settings().guard, Some(&machine))?;
        let mut already_open = 0;
        loop {
            match self.next(Want::Isolate, matching::is_active(&machine), already_open > 0).await? {
                Step::Post | Step::Cancel { .. } => {}
                Step::Settled { action } => return Ok(Done::action(Outcome::Already, action)),
                Step::Track { action } => return Ok(Done::action(Outcome::Adopted, Some(action))),
                Step::Wait { action, .. } => {
                    self.look_again(action, already_open).await?;
                    already_open += 1;
                    continue;
                }
            }
            let Some(desk) = self.desk() else {
                return Err(NotDone::refused("no_desk", "this worker cannot count isolations"));
            };
            let grant = match desk.reserve(id, 0).await {
                Reservation::Granted(grant) => grant,
                Reservation::Paused => return Err(paused()),
                Reservation::RateLimited { free_at } => {
                    let detail = format!("the cap of isolations per hour is reached; there is room at {free_at}");
                    return Err(NotDone::refused(Reason::RateLimit.as_str(), detail));
                }
                Reservation::TooManyIsolated => {
                    let detail = "as many machines are isolated as may be at once";
                    return Err(NotDone::refused(Reason::MaxIsolated.as_str(), detail));
                }
                // Somebody else may be isolating this very machine: what came of it shows in the next look.
                Reservation::Busy { wait } => {
                    self.pause(wait.max(AGAIN)).await?;
                    continue;
                }
                Reservation::Unavailable => {
                    self.pause(AGAIN).await?;
                    continue;
                }
            };
            if let Err(stop) = grant.may_post() {
                desk.not_posted(grant);
                tracing::info!(machine.id = id, reason = %stop, "an isolation was stopped before it was posted");
                self.pause(AGAIN).await?;
                continue;
            }
            // The brake's promise counts on this POST to be over in time.
            let until = self.until.min(Instant::now() + POST_LIMIT);
            match self.writing(until).isolate(id, isolation, &self.marked(Verb::Isolate)).await {
                Ok(action) => {
                    desk.posted(grant);
                    return Ok(self.taken(action));
                }
                Err(error) => match answer_of(&error) {
                    Answer::Unknown => {
                        desk.posted(grant);
                        return self.look_for_ours(error).await;
                    }
                    Answer::AlreadyOpen => {
                        desk.not_posted(grant);
                        already_open += 1;
                    }
                    _ => {
                        desk.not_posted(grant);
                        return Err(error.into());
                    }
                },
            }
        }
    }

    async fn release(&self) -> Result<Done, NotDone> {
        let id = self.value();
        guard::trigger(&self.settings().guard, None)?;
        // An isolation that waits for a machine that does not answer is taken back, not waited for.
        let is_active = self.session.machine_now(id).await?.as_ref().is_some_and(matching::is_active);
        let mut already_open = 0;
        let mut taken_back = None;
        loop {
            let cancel = match self.next(Want::Release, is_active, already_open > 0).await? {
                Step::Post => None,
                Step::Cancel { .. } if taken_back.is_some() => return Err(in_progress(taken_back.as_ref())),
                Step::Cancel { action } => Some(action),
                Step::Settled { .. } if taken_back.is_some() => return Ok(Done::action(Outcome::Accepted, taken_back)),
                // The list may lack an isolation. A release in vain does no harm, one that is not asked for does.
                Step::Settled { action: None } => None,
                Step::Settled { action } => return Ok(Done::action(Outcome::Already, action)),
                Step::Track { action } => return Ok(Done::action(Outcome::Adopted, Some(action))),
                Step::Wait { action, .. } => {
                    self.look_again(action, already_open).await?;
                    already_open += 1;
                    continue;
                }
            };
            let session = self.writing(self.until);
            let asked = match &cancel {
                Some(action) => session.cancel(&action.id, &self.marked(Verb::Cancel)).await,
                None => session.unisolate(id, &self.marked(Verb::Release)).await,
            };
            match asked {
                // What was taken back may have been carried out at the last moment: the actions tell.
                Ok(action) if cancel.is_some() => taken_back = Some(action),
                Ok(action) => return Ok(self.taken(action)),
                Err(error) => match answer_of(&error) {
                    Answer::Unknown if cancel.is_none() => return self.look_for_ours(error).await,
                    Answer::AlreadyOpen => already_open += 1,
                    _ => return Err(error.into()),
                },
            }
        }
    }

    /// What neither isolates nor releases.
    async fn other(&self, act: MachineAct, wish: Wish) -> Result<Done, NotDone> {
        let id = self.value();
        guard::trigger(&self.settings().guard, None)?;
        let kinds: Vec<&str> = [Some(wish.kind), wish.opposite].into_iter().flatten().collect();
        let mut already_open = 0;
        loop {
            let actions = self.session.actions_of_kinds(id, &kinds).await?;
            match once::look(&wish, &actions, Timestamp::now()) {
                Look::Done(action) if already_open == 0 => {
                    return Ok(Done::action(Outcome::Already, Some(action.clone())));
                }
                Look::Open(action) => return Ok(Done::action(Outcome::Adopted, Some(action.clone()))),
                Look::Crossed(action) => return Err(in_progress(Some(action))),
                Look::Post if already_open == 0 => {}
                Look::Post | Look::Done(_) => {
                    self.look_again(None, already_open).await?;
                    already_open += 1;
                    continue;
                }
            }
            let (session, comment) = (self.writing(self.until), self.settings().comment.as_str());
            let asked = match act {
                MachineAct::Restrict => session.restrict(id, comment).await,
                MachineAct::Unrestrict => session.unrestrict(id, comment).await,
                MachineAct::ScanQuick => session.scan(id, ScanType::Quick, comment).await,
                MachineAct::ScanFull => session.scan(id, ScanType::Full, comment).await,
                _ => session.collect_package(id, comment).await,
            };
            match asked {
                Ok(action) => return Ok(Done::action(Outcome::Accepted, Some(action))),
                Err(error) if answer_of(&error) == Answer::AlreadyOpen => already_open += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Looks at the machine's isolations and releases, and says what to do.
    async fn next(&self, want: Want, is_active: bool, already_open: bool) -> Result<Step, NotDone> {
        let actions = self.session.isolation_actions(self.value()).await?;
        let (state, now) = (State::default(), Timestamp::now());
        let sight = Sight { machine_id: self.value(), actions: &actions, is_active, state: &state, already_open, now };
        Ok(act::next(want, &sight))
    }

    /// An action is open: the opposite one ends the trigger, one that is not listed yet is looked for a few times.
    async fn look_again(&self, open: Option<MachineAction>, looks: u32) -> Result<(), NotDone> {
        if open.is_some() || looks >= LOOKS {
            return Err(in_progress(open.as_ref()));
        }
        self.pause(AGAIN).await
    }

    /// Defender took a request, or gave back one of somebody else's that is open.
    fn taken(&self, action: MachineAction) -> Done {
        let ours = self.is_ours(&action) || action.requestor_comment.is_none();
        Done::action(if ours { Outcome::Accepted } else { Outcome::Adopted }, Some(action))
    }

    fn is_ours(&self, action: &MachineAction) -> bool {
        let names_us = |text: &str| comment::names_event(text, &self.job_id.to_string());
        action.requestor_comment.as_deref().is_some_and(names_us)
    }

    /// After a POST that may have been taken: it is never sent again; whether it was taken, the list tells.
    async fn look_for_ours(&self, error: DefenderError) -> Result<Done, NotDone> {
        tracing::warn!(machine.id = self.value(), error = %error, "nobody knows whether a request was taken; it is looked for");
        for _ in 0..LOOKS {
            if self.pause(UNKNOWN).await.is_err() {
                break;
            }
            let Ok(actions) = self.session.isolation_actions(self.value()).await else { break };
            if let Some(ours) = actions.into_iter().find(|action| self.is_ours(action)) {
                return Ok(Done::action(Outcome::Accepted, Some(ours)));
            }
        }
        Err(error.into())
    }

    /// A session for one call that changes something.
    fn writing(&self, until: Instant) -> Session {
        let limits = Limits { containment: true, once: true, ..Limits::default() };
        self.context.limited_session(self.credentials, until, limits)
    }

    /// The comment of what the deployment counts.
    fn marked(&self, verb: Verb) -> String {
        comment::compose_trigger(verb, &self.settings().comment, &self.job_id.to_string())
    }
}

fn paused() -> NotDone {
    NotDone::refused(Reason::Paused.as_str(), "isolations are paused by an operator")
}

fn in_progress(open: Option<&MachineAction>) -> NotDone {
    let which = open.map(|action| format!(": {} {} is {}", action.kind, action.id, action.status));
    let detail = format!("{IN_PROGRESS}{}", which.unwrap_or_default());
    NotDone::Impossible { reason: "in_progress", detail }
}
