//! What the analyst reads on the host's page in Cognito (`cognito.md` 5.8, "Notes").
//!
//! Two kinds, both of which begin with `[defender-bridge]` and end with a reference: one *context note* for each host,
//! changed in place, and *action notes*, one for each settled or final change, added once. The reference of an action
//! note is made from what it tells, so a message that is worked twice finds it there. A note is ours by its form and,
//! where the bridge's own user name is known, by who wrote it: what others quote of ours is never touched.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::act::Want;
use super::comment::Whose;
use super::matching::Context;
use super::policy::Policy;
use super::reason::{Fate, Reason};
use super::state::{Change, Outcome, State, until_text};
use crate::cognito::model::Note;
use crate::defender::model::{Machine, MachineAction};

/// What every note of ours begins with.
pub const MARKER: &str = "[defender-bridge]";
/// The reference of the context note.
pub const CONTEXT_REFERENCE: &str = "context";
/// Longest note, in characters: Cognito's limit is not known, 2000 is below what was seen (`cognito.md` 3.4).
const MAX_CHARS: usize = 1999;
/// Longest value of somebody else's in a note, in characters.
const MAX_VALUE_CHARS: usize = 300;
/// Bytes of the hash that the reference of an action note shows.
const REFERENCE_BYTES: usize = 6;
/// What stands before the time at which the context was read.
const READ_AT: &str = "Read at ";

/// How many alerts of a machine are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenAlerts {
    /// As far as they were counted.
    pub count: usize,
    /// There may be more.
    pub more: bool,
}

/// Whom an action note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Name of the brain.
    pub brain: &'a str,
    /// Cognito's id of the host.
    pub host_id: u64,
    /// The machine, if there is one.
    pub machine_id: Option<&'a str>,
    /// What Defender calls it.
    pub machine_name: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A host and its machine.
    #[must_use]
    pub fn of(brain: &'a str, host_id: u64, machine: Option<&'a Machine>) -> Self {
        Self {
            brain,
            host_id,
            machine_id: machine.map(|machine| machine.id.as_str()),
            machine_name: machine.and_then(|machine| machine.computer_dns_name.as_deref()),
        }
    }
}

/// What an action note tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Told<'a> {
    /// Defender took a request.
    Accepted {
        /// For what.
        want: Want,
        /// The action.
        action: &'a MachineAction,
        /// Whether the machine reports to Defender.
        is_active: bool,
        /// When the isolation ends by itself.
        until: Option<Timestamp>,
        /// The isolation's time was over.
        expired: bool,
        /// A release was asked for at the same time and lost.
        overrides_release: bool,
    },
    /// A request was open already and is followed; nothing was posted.
    Adopted {
        /// For what.
        want: Want,
        /// The open action.
        action: &'a MachineAction,
        /// Whose it is.
        whose: Whose,
        /// A release was asked for at the same time and lost.
        overrides_release: bool,
    },
    /// The machine is as wanted; nothing was posted.
    Settled {
        /// What was wanted.
        want: Want,
        /// What made it so.
        action: Option<&'a MachineAction>,
        /// Whose that is.
        whose: Whose,
        /// A release was asked for at the same time and lost.
        overrides_release: bool,
    },
    /// An isolation that was not carried out yet was taken back, because a release was asked for.
    TakenBack {
        /// The isolation.
        action: &'a MachineAction,
    },
    /// An action that was followed has ended.
    Ended {
        /// How.
        outcome: Outcome,
        /// The action.
        action: &'a MachineAction,
    },
    /// An action has not ended in three days, and is not followed any more.
    StillOpen {
        /// For what.
        want: Want,
        /// The action.
        action: &'a MachineAction,
    },
    /// Somebody else released the machine.
    ReleasedElsewhere {
        /// The release.
        action: &'a MachineAction,
    },
    /// A request was not carried out.
    NotDone {
        /// What was wanted.
        want: Want,
        /// Why.
        reason: Reason,
        /// What decided, in words; may be empty.
        detail: &'a str,
    },
    /// The end that somebody wrote into the tag cannot be read.
    EndUnreadable {
        /// As it stood there.
        text: &'a str,
    },
    /// The work on the host has failed too often and lies among the dead letters.
    GivenUp {
        /// What was wanted; `None`: context.
        want: Option<Want>,
        /// The last error, without secrets.
        error: &'a str,
    },
}

/// An action note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionNote {
    /// 12 hexadecimal digits; what [`is_there`] looks for.
    pub reference: String,
    /// The text, which ends with the reference.
    pub text: String,
}

/// The text of the context note.
#[must_use]
pub fn context(
    policy: &Policy,
    address: Option<&str>,
    context: &Context,
    alerts: Option<OpenAlerts>,
    now: Timestamp,
) -> String {
    let address = one_line(address.unwrap_or("no address"));
    // The time stands before all that others have written.
    let mut body =
        format!("What Microsoft Defender for Endpoint knows about this host.\n{READ_AT}{}\n", second_text(now));
    match context {
        Context::Found { machine, weak } => describe(&mut body, policy, machine, *weak, alerts),
        Context::None => line(
            &mut body,
            &format!(
                "Defender knows no machine for it ({address}): it has no agent, its sensor is not active, or it was not at \
                 this address lately."
            ),
        ),
        Context::Ambiguous(count) => line(
            &mut body,
            &format!("{count} machines had its address ({address}), and no name tells which of them it is."),
        ),
    }
    close(&body, CONTEXT_REFERENCE)
}

/// The note of the host's context, if it has one. Of several the oldest, so that all workers change the same.
#[must_use]
pub fn find_context<'a>(notes: &'a [Note], self_user: Option<&str>) -> Option<&'a Note> {
    notes.iter().filter(|note| is_ours(note, CONTEXT_REFERENCE, self_user)).min_by_key(|note| note.id)
}

/// When the context in its note was read: as the text says, else when the note was last changed.
#[must_use]
pub fn context_read_at(note: &Note) -> Option<Timestamp> {
    let said = note.text.split_once(READ_AT).and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    said.or(note.modified).or(note.created)
}

/// The note of what was done or not done.
///
/// `cause` is the id of the event that asked; of an isolation that is over, its end ([`until_text`]), so that not every
/// sweep tells it again. An action's end is told once, whoever saw it.
#[must_use]
pub fn action(policy: &Policy, subject: &Subject<'_>, told: &Told<'_>, cause: &str) -> ActionNote {
    let reference = reference(subject, told, cause);
    let text = close(&body(policy, subject, told), &reference);
    ActionNote { reference, text }
}

/// Whether an action note stands there already.
#[must_use]
pub fn is_there(notes: &[Note], reference: &str, self_user: Option<&str>) -> bool {
    notes.iter().any(|note| is_ours(note, reference, self_user))
}

/// Whether a change is worth a note: all are, but that a request is still held back for the same reason.
#[must_use]
pub fn is_news(before: &State, change: &Change) -> bool {
    match change {
        Change::Unchanged => false,
        Change::NotDone(reason) if reason.holds() => before.request != Some((reason.fate(), Some(*reason))),
        _ => true,
    }
}

/// The page of a machine in Defender's portal.
#[must_use]
pub fn portal_link(policy: &Policy, machine_id: &str) -> String {
    let base = policy.portal_url.trim_end_matches('/');
    let is_plain =
        |text: &&str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let tenant = policy.tenant.as_deref().filter(is_plain).map(|tenant| format!("?tid={tenant}")).unwrap_or_default();
    format!("{base}/machines/v2/{machine_id}/overview{tenant}")
}

fn describe(body: &mut String, policy: &Policy, machine: &Machine, weak: bool, alerts: Option<OpenAlerts>) {
    let known = |value: Option<&str>| match value.map(one_line) {
        Some(value) if !value.is_empty() => value,
        _ => "not known".to_owned(),
    };
    if weak {
        line(body, "Weak match: nothing confirms that this machine is the host.");
    }
    line(body, &format!("Machine: {}", known(machine.computer_dns_name.as_deref())));
    line(body, &format!("Machine id: {}", machine.id));
    let system = [machine.os_platform.as_deref(), machine.version.as_deref()].into_iter().flatten().collect::<Vec<_>>();
    line(body, &format!("Operating system: {}", known(Some(&system.join(" ")))));
    line(body, &format!("Sensor health: {}", known(machine.health_status.as_deref())));
    line(body, &format!("Risk score: {}", known(machine.risk_score.as_deref())));
    line(body, &format!("Exposure level: {}", known(machine.exposure_level.as_deref())));
    line(body, &format!("Last full report: {}", known(machine.last_seen.as_deref())));
    let alerts = match alerts {
        None => "not known".to_owned(),
        Some(OpenAlerts { count, more: false }) => count.to_string(),
        Some(OpenAlerts { count, more: true }) => format!("{count} or more"),
    };
    line(body, &format!("Open alerts: {alerts}"));
    line(body, &portal_link(policy, &machine.id));
}

fn body(policy: &Policy, subject: &Subject<'_>, told: &Told<'_>) -> String {
    let mut body = String::new();
    let machine = machine_text(subject);
    let prefix = &policy.tag_prefix;
    match *told {
        Told::Accepted { want: Want::Isolate, action, is_active, until, overrides_release, .. } => {
            line(&mut body, &format!("Isolation requested: Defender accepted it for {machine}."));
            line(&mut body, &action_text(action));
            line(
                &mut body,
                "Another note follows when Defender has carried it out. Until then the machine is not isolated.",
            );
            offline(&mut body, is_active);
            if let Some(until) = until {
                let until = until_text(until);
                line(&mut body, &format!("It ends by itself at {until} ({prefix}isolation-until)."));
            }
            overridden(&mut body, policy, overrides_release);
            to_release(&mut body, policy);
        }
        Told::Accepted { want: Want::Release, action, is_active, expired, .. } => {
            let why = if expired { " because the isolation's time is over" } else { "" };
            line(&mut body, &format!("Release requested{why}: Defender accepted it for {machine}."));
            line(&mut body, &action_text(action));
            line(
                &mut body,
                "Another note follows when Defender has carried it out. Until then the machine is isolated.",
            );
            offline(&mut body, is_active);
        }
        Told::Adopted { want, action, whose, overrides_release } => {
            let what = match want {
                Want::Isolate => "isolation",
                Want::Release => "release",
            };
            line(
                &mut body,
                &format!("Defender already works on the {what} of {machine}, asked for by {}.", who(action, whose)),
            );
            line(&mut body, &action_text(action));
            line(&mut body, "No second request was made. Another note follows when it has ended.");
            overridden(&mut body, policy, overrides_release);
        }
        Told::Settled { want: Want::Isolate, action, whose, overrides_release } => {
            line(&mut body, &format!("Nothing was asked of Defender: {machine} is isolated already."));
            if let Some(action) = action {
                line(&mut body, &format!("{} Asked for by {}.", action_text(action), who(action, whose)));
            }
            overridden(&mut body, policy, overrides_release);
            to_release(&mut body, policy);
        }
        Told::Settled { want: Want::Release, action, whose, .. } => {
            line(&mut body, &format!("Nothing was asked of Defender: {machine} is not isolated."));
            if let Some(action) = action {
                line(&mut body, &format!("{} Asked for by {}.", action_text(action), who(action, whose)));
            }
        }
        Told::TakenBack { action } => {
            line(&mut body, &format!("The isolation of {machine} was taken back before it was carried out."));
            line(&mut body, &action_text(action));
        }
        Told::Ended { outcome, action } => {
            let status = one_line(&action.status);
            line(
                &mut body,
                &match outcome {
                    Outcome::Isolated => format!("Isolated: Defender has isolated {machine}."),
                    Outcome::Released => format!("Released: Defender has released {machine} from isolation."),
                    Outcome::NotIsolated => {
                        format!("NOT isolated: Defender's isolation of {machine} ended with the status {status}.")
                    }
                    Outcome::StillIsolated => {
                        format!("STILL isolated: Defender's release of {machine} ended with the status {status}.")
                    }
                },
            );
            line(&mut body, &action_text(action));
            match outcome {
                Outcome::Isolated => to_release(&mut body, policy),
                Outcome::Released => {}
                Outcome::NotIsolated => again(&mut body, policy.block.as_deref(), "Check that the machine is online."),
                Outcome::StillIsolated => {
                    again(&mut body, policy.unblock.as_deref(), "Check that the machine is online.")
                }
            }
        }
        Told::StillOpen { want, action } => {
            let (what, is) = match want {
                Want::Isolate => ("isolation", "is not known to be isolated"),
                Want::Release => ("release", "is not known to be released"),
            };
            line(&mut body, &format!("Defender has not ended the {what} of {machine} in three days: it {is}."));
            line(&mut body, &action_text(action));
            line(&mut body, "Look at the machine's actions in Defender's portal.");
        }
        Told::ReleasedElsewhere { action } => {
            line(
                &mut body,
                &format!("Somebody else has released {machine} from isolation: {}.", who(action, Whose::Other)),
            );
            line(&mut body, &action_text(action));
        }
        Told::NotDone { want, reason, detail } => {
            not_done(&mut body, policy, &machine, want, reason, detail);
        }
        Told::EndUnreadable { text } => {
            line(
                &mut body,
                &format!("The end of the isolation cannot be read ({}), so it does not end by itself.", one_line(text)),
            );
            line(&mut body, &format!("An end looks so: {prefix}isolation-until=2026-02-03T14:30Z"));
        }
        Told::GivenUp { want, error } => {
            let what = match want {
                Some(Want::Isolate) => "The isolation that was asked for is NOT carried out",
                Some(Want::Release) => "The release that was asked for is NOT carried out",
                None => "Defender's context cannot be read",
            };
            line(&mut body, &format!("{what}: every try has failed."));
            line(&mut body, &format!("Last error: {}.", one_line(error)));
            line(
                &mut body,
                "It is tried again at most once an hour while the tag is set; the operator of the bridge can see more.",
            );
        }
    }
    if let Some(id) = subject.machine_id {
        line(&mut body, &portal_link(policy, id));
    }
    body
}

fn not_done(body: &mut String, policy: &Policy, machine: &str, want: Want, reason: Reason, detail: &str) {
    let (what, tag) = match want {
        Want::Isolate => ("Isolation", policy.block.as_deref()),
        Want::Release => ("Release", policy.unblock.as_deref()),
    };
    let fate = match reason.fate() {
        Fate::Failed => "NOT carried out",
        Fate::Denied if reason.holds() => "NOT carried out yet",
        Fate::Denied => "refused",
        Fate::DryRun => "not carried out (dry run)",
    };
    line(body, &format!("{what} {fate} for {machine}: {} ({reason}).", words(reason)));
    let detail = one_line(detail);
    if !detail.is_empty() {
        line(body, &format!("Because {}.", detail.trim_end_matches('.')));
    }
    let advice = advice(reason);
    if reason.holds() {
        line(body, advice);
    } else {
        again(body, tag, advice);
    }
}

/// The reason in words, to follow a colon.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::NoMachine => "Defender knows no such machine",
        Reason::NameUnknown => "no host name confirms that the machine at this address is the host",
        Reason::NameMismatch => "the machine at this address has another name than the host",
        Reason::Ambiguous => "several machines fit, and none of them stands out",
        Reason::DryRun => "the bridge only says what it would do",
        Reason::Protected => "the host or its machine is protected",
        Reason::Privileged => "the host's privilege level is too high",
        Reason::Server => "servers are not isolated",
        Reason::NotOnboarded => "the machine is not onboarded to Defender",
        Reason::Excluded => "the machine is excluded in Defender",
        Reason::Merged => "the machine became part of another one in Defender",
        Reason::Paused => "an operator has stopped all isolations",
        Reason::RateLimit => "as many machines as allowed were isolated within the last hour",
        Reason::MaxIsolated => "as many machines as allowed are isolated now",
        Reason::Refused => "Defender refused it",
        Reason::Forbidden => "Defender does not permit the bridge to do it",
        Reason::ActionFailed => "Defender took the request and did not carry it out",
    }
}

/// What to do next.
fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::NoMachine => "Check that the machine is onboarded to Defender and online.",
        Reason::NameUnknown | Reason::NameMismatch | Reason::Ambiguous | Reason::Merged => {
            "Find out which machine it is and act in Defender's portal."
        }
        Reason::DryRun => "Act in Defender's portal if it is needed.",
        Reason::Protected | Reason::Privileged | Reason::Server | Reason::NotOnboarded | Reason::Excluded => {
            "If it is needed all the same, act in Defender's portal."
        }
        Reason::Paused => {
            "The tag stays and is worked when isolations are resumed. Act in Defender's portal if it cannot wait."
        }
        Reason::RateLimit | Reason::MaxIsolated => {
            "The tag stays and is worked when there is room. An operator can raise the limit; act in Defender's portal if \
             it cannot wait."
        }
        Reason::Refused | Reason::Forbidden => "Tell the operator of the bridge, and act in Defender's portal.",
        Reason::ActionFailed => "Check that the machine is online.",
    }
}

fn again(body: &mut String, tag: Option<&str>, advice: &str) {
    match tag {
        Some(tag) => line(body, &format!("{advice} To try again, set the tag {} again.", one_line(tag))),
        None => line(body, advice),
    }
}

fn to_release(body: &mut String, policy: &Policy) {
    match policy.unblock.as_deref() {
        Some(tag) => line(body, &format!("To release the machine, set the tag {}.", one_line(tag))),
        None => line(body, "To release the machine, use Defender's portal."),
    }
}

fn overridden(body: &mut String, policy: &Policy, overrides_release: bool) {
    if let (true, Some(tag)) = (overrides_release, policy.unblock.as_deref()) {
        let tag = one_line(tag);
        line(body, &format!("The tag {tag} was set as well: isolation wins, and the release was not carried out."));
    }
}

fn offline(body: &mut String, is_active: bool) {
    if !is_active {
        line(body, "The machine does not report to Defender at present. Defender keeps trying for up to three days.");
    }
}

fn action_text(action: &MachineAction) -> String {
    format!("Action: {}.", one_line(&action.id))
}

fn who(action: &MachineAction, whose: Whose) -> String {
    match (whose, action.requestor.as_deref().map(one_line).filter(|requestor| !requestor.is_empty())) {
        (Whose::ThisEvent | Whose::Bridge, _) => "the bridge".to_owned(),
        (Whose::Other, Some(requestor)) => requestor,
        (Whose::Other, None) => "somebody else".to_owned(),
    }
}

fn machine_text(subject: &Subject<'_>) -> String {
    let id = subject.machine_id.map(one_line);
    match (subject.machine_name.map(one_line).filter(|name| !name.is_empty()), id) {
        (Some(name), Some(id)) => format!("{name} (machine {id})"),
        (None, Some(id)) => format!("machine {id}"),
        (Some(name), None) => name,
        (None, None) => "this host".to_owned(),
    }
}

/// First 12 hexadecimal digits of SHA-256 over brain, host id, what is told, machine id, action id or reason, and cause.
fn reference(subject: &Subject<'_>, told: &Told<'_>, cause: &str) -> String {
    let want_text = |want| match want {
        Want::Isolate => "isolate",
        Want::Release => "release",
    };
    // An action's end is the same whoever sees it, so the event says nothing there.
    let (what, about, cause) = match *told {
        Told::Accepted { want, action, .. } | Told::Adopted { want, action, .. } => {
            (want_text(want), action.id.as_str(), cause)
        }
        Told::Settled { want, action, whose: Whose::ThisEvent, .. } => {
            (ended_text(want), action.map_or("", |action| &action.id), "")
        }
        Told::Settled { want, action, .. } => (want_text(want), action.map_or("", |action| &action.id), cause),
        Told::TakenBack { action } => ("taken back", action.id.as_str(), ""),
        Told::Ended { outcome: Outcome::Isolated, action } => (ended_text(Want::Isolate), action.id.as_str(), ""),
        Told::Ended { outcome: Outcome::Released, action } => (ended_text(Want::Release), action.id.as_str(), ""),
        Told::Ended { outcome: Outcome::NotIsolated, action } => ("not isolated", action.id.as_str(), ""),
        Told::Ended { outcome: Outcome::StillIsolated, action } => ("still isolated", action.id.as_str(), ""),
        Told::StillOpen { action, .. } => ("still open", action.id.as_str(), ""),
        Told::ReleasedElsewhere { action } => ("released elsewhere", action.id.as_str(), ""),
        Told::NotDone { want, reason, .. } => (want_text(want), reason.as_str(), cause),
        Told::EndUnreadable { text } => ("end unreadable", text, ""),
        Told::GivenUp { want, .. } => ("given up", want.map_or("enrich", want_text), cause),
    };
    let host_id = subject.host_id.to_string();
    let parts = [subject.brain, &host_id, what, subject.machine_id.unwrap_or(""), about, cause];
    let hash = digest::digest(&digest::SHA256, parts.join("\0").as_bytes());
    hash.as_ref().iter().take(REFERENCE_BYTES).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const fn ended_text(want: Want) -> &'static str {
    match want {
        Want::Isolate => "isolated",
        Want::Release => "released",
    }
}

fn is_ours(note: &Note, reference: &str, self_user: Option<&str>) -> bool {
    let text = note.text.trim();
    let by_us = self_user.is_none_or(|user| {
        note.created_by.as_deref().is_some_and(|author| author.trim().eq_ignore_ascii_case(user.trim()))
    });
    by_us
        && text.starts_with(MARKER)
        && text
            .strip_suffix(']')
            .is_some_and(|rest| rest.strip_suffix(reference).is_some_and(|rest| rest.ends_with("[ref:")))
}

/// Marker, body, reference; the body is cut where the whole would be too long.
fn close(body: &str, reference: &str) -> String {
    let end = format!("[ref:{reference}]");
    let room = MAX_CHARS - MARKER.chars().count() - end.chars().count() - 2;
    let body: String = body.trim_end().chars().take(room).collect();
    format!("{MARKER} {body}\n{end}")
}

fn line(body: &mut String, text: &str) {
    body.push_str(text);
    body.push('\n');
}

/// Somebody else's text: on one line, cut.
fn one_line(text: &str) -> String {
    let space = |c: char| if c.is_whitespace() || c.is_control() { ' ' } else { c };
    text.trim().chars().take(MAX_VALUE_CHARS).map(space).collect()
}

/// `2026-02-03T10:31:07Z`.
fn second_text(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::containment::reason::Fate;

    const M: &str = "0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e";
    const A: &str = "6b1f2f0e-3d0f-4a57-9c1c-2f7f0f6f1a11";
    const NOW: &str = "2026-02-03T10:31:07Z";
    const US: &str = "svc-defender-bridge";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn policy() -> Policy {
        Policy {
            block: Some("block".into()),
            unblock: Some("unblock".into()),
            tenant: Some("00000000-0000-4000-8000-00000000aaaa".into()),
            ..Policy::default()
        }
    }

    fn machine() -> Machine {
        Machine {
            id: M.into(),
            computer_dns_name: Some("fin-lt-0042.corp.example.com".into()),
            os_platform: Some("Windows11".into()),
            version: Some("24H2".into()),
            health_status: Some("Active".into()),
            risk_score: Some("High".into()),
            exposure_level: Some("Medium".into()),
            last_seen: Some("2026-02-03T08:47:48.3622932Z".into()),
            ..Machine::default()
        }
    }

    fn done() -> MachineAction {
        MachineAction {
            id: A.into(),
            kind: "Isolate".into(),
            status: "TimeOut".into(),
            requestor: Some("analyst@example.com".into()),
            ..MachineAction::default()
        }
    }

    fn note(id: u64, created_by: Option<&str>, text: &str) -> Note {
        Note { id, created_by: created_by.map(str::to_owned), text: text.into(), ..Note::default() }
    }

    fn told(told: &Told<'_>) -> String {
        let machine = machine();
        action(&policy(), &Subject::of("hq", 4711, Some(&machine)), told, "e-1").text
    }

    const LINK: &str = "https://security.microsoft.com/machines/v2/0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e/overview?tid=00000000-0000-4000-8000-00000000aaaa";

    #[test]
    fn the_context_note_of_a_machine() {
        let found = Context::Found { machine: Box::new(machine()), weak: false };
        let alerts = Some(OpenAlerts { count: 2, more: false });
        let expected = format!(
            "[defender-bridge] What Microsoft Defender for Endpoint knows about this host.\n\
             Read at 2026-02-03T10:31:07Z\n\
             Machine: fin-lt-0042.corp.example.com\n\
             Machine id: {M}\n\
             Operating system: Windows11 24H2\n\
             Sensor health: Active\n\
             Risk score: High\n\
             Exposure level: Medium\n\
             Last full report: 2026-02-03T08:47:48.3622932Z\n\
             Open alerts: 2\n\
             {LINK}\n\
             [ref:context]"
        );
        assert_eq!(context(&policy(), Some("192.0.2.42"), &found, alerts, at(NOW)), expected);
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let machine = Machine { id: M.into(), ..Machine::default() };
        let found = Context::Found { machine: Box::new(machine), weak: true };
        let text = context(&policy(), None, &found, None, at(NOW));
        for part in ["Weak match:", "Machine: not known", "Operating system: not known", "Open alerts: not known"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let many = Some(OpenAlerts { count: 100, more: true });
        assert!(context(&policy(), None, &found, many, at(NOW)).contains("Open alerts: 100 or more"));
        let none = context(&policy(), Some("192.0.2.42"), &Context::None, None, at(NOW));
        assert!(none.contains("knows no machine for it (192.0.2.42)") && !none.contains("http"), "{none}");
        let several = context(&policy(), Some("192.0.2.42"), &Context::Ambiguous(3), None, at(NOW));
        assert!(several.contains("3 machines had its address (192.0.2.42)"), "{several}");
    }

    #[test]
    fn the_time_of_reading_is_read_back() {
        let found = Context::Found { machine: Box::new(machine()), weak: false };
        let text = context(&policy(), Some("192.0.2.42"), &found, None, at("2026-02-03T10:31:07.9Z"));
        let mut note = note(1, None, &text);
        (note.created, note.modified) = (Some(at("2026-01-01T00:00:00Z")), Some(at("2026-01-02T00:00:00Z")));
        assert_eq!(context_read_at(&note), Some(at(NOW)));
        // Cognito may have joined the lines.
        note.text = text.replace('\n', " ");
        assert_eq!(context_read_at(&note), Some(at(NOW)));
        note.text = "[defender-bridge] Read at noon [ref:context]".into();
        assert_eq!(context_read_at(&note), Some(at("2026-01-02T00:00:00Z")));
        note.modified = None;
        assert_eq!(context_read_at(&note), Some(at("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn our_notes_are_known_by_form_and_author() {
        let ours = "[defender-bridge] x [ref:context]";
        let rows = [
            (note(1, Some(US), ours), true, true),
            (note(1, Some("SVC-defender-bridge"), ours), true, true),
            (note(1, Some("analyst.one"), ours), true, false),
            (note(1, None, ours), true, false),
            (note(1, Some(US), &format!("  {ours}\n")), true, true),
            // Notes of others that quote ours, whoever is known to write them.
            (note(1, Some(US), &format!("seen: {ours}")), false, false),
            (note(1, Some(US), &format!("{ours} - done")), false, false),
            (note(1, Some(US), "[defender-bridge] x [ref:5d1c0e7ab932]"), false, false),
            (note(1, Some(US), "[defender-bridge] x ref:context]"), false, false),
            (note(1, Some(US), "[ref:context]"), false, false),
            (note(1, Some(US), ""), false, false),
        ];
        for (note, by_form, by_author) in rows {
            let notes = [note];
            assert_eq!(find_context(&notes, None).is_some(), by_form, "{notes:?}");
            assert_eq!(find_context(&notes, Some(US)).is_some(), by_author, "{notes:?}");
        }
    }

    /// The notes of the contract's `notes.list`.
    #[test]
    fn an_action_note_is_found_by_its_reference() {
        let text = "[defender-bridge] isolate accepted for fin-lt-0042.corp.example.com (machine \
                    0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e, action 6b1f2f0e-3d0f-4a57-9c1c-2f7f0f6f1a11). [ref:5d1c0e7ab932]";
        let notes =
            [note(9001, Some("analyst.one"), "Called the user; laptop is in the office."), note(9002, Some(US), text)];
        assert!(is_there(&notes, "5d1c0e7ab932", Some(US)));
        assert!(!is_there(&notes, "0a1b2c3d4e5f", Some(US)));
        assert!(!is_there(&notes, "5d1c0e7ab932", Some("somebody")));
        assert_eq!(find_context(&notes, Some(US)), None);
    }

    #[test]
    fn of_two_context_notes_all_workers_change_the_same() {
        let text = "[defender-bridge] x [ref:context]";
        let notes = [note(7, Some(US), text), note(5, Some(US), text), note(3, Some("analyst.one"), text)];
        assert_eq!(find_context(&notes, Some(US)).map(|note| note.id), Some(5));
    }

    #[test]
    fn the_note_of_an_isolation_that_was_accepted() {
        let action = done();
        let accepted = |is_active, until, overrides_release| {
            told(&Told::Accepted {
                want: Want::Isolate,
                action: &action,
                is_active,
                until,
                expired: false,
                overrides_release,
            })
        };
        let expected = format!(
            "[defender-bridge] Isolation requested: Defender accepted it for fin-lt-0042.corp.example.com (machine {M}).\n\
             Action: {A}.\n\
             Another note follows when Defender has carried it out. Until then the machine is not isolated.\n\
             To release the machine, set the tag unblock.\n\
             {LINK}\n\
             [ref:847669cf8081]"
        );
        assert_eq!(accepted(true, None, false), expected);
        let all = accepted(false, Some(at("2026-02-03T14:31:00Z")), true);
        for part in ["keeps trying for up to three days", "ends by itself at 2026-02-03T14:31Z", "isolation wins"] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }

    /// Every kind names the machine, the action or the reason, and what to do next.
    #[test]
    fn notes_say_what_and_what_next() {
        let action = done();
        let action = &action;
        let whose = Whose::Other;
        let overrides_release = false;
        let rows: &[(Told<'_>, &[&str])] = &[
            (
                Told::Accepted {
                    want: Want::Release,
                    action,
                    is_active: true,
                    until: None,
                    expired: true,
                    overrides_release,
                },
                &["Release requested because the isolation's time is over", A],
            ),
            (
                Told::Adopted { want: Want::Isolate, action, whose, overrides_release },
                &["already works on the isolation of fin-lt-0042", "analyst@example.com", A, "No second request"],
            ),
            (
                Told::Settled { want: Want::Isolate, action: Some(action), whose, overrides_release: true },
                &["is isolated already", "analyst@example.com", "isolation wins", "set the tag unblock"],
            ),
            (
                Told::Settled { want: Want::Release, action: None, whose, overrides_release },
                &["fin-lt-0042.corp.example.com", "is not isolated"],
            ),
            (Told::TakenBack { action }, &["was taken back before it was carried out", A]),
            (Told::Ended { outcome: Outcome::Isolated, action }, &["Isolated: Defender has isolated fin-lt-0042", A]),
            (Told::Ended { outcome: Outcome::Released, action }, &["Released: Defender has released fin-lt-0042", A]),
            (
                Told::Ended { outcome: Outcome::NotIsolated, action },
                &["NOT isolated", "the status TimeOut", "set the tag block again", A],
            ),
            (
                Told::Ended { outcome: Outcome::StillIsolated, action },
                &["STILL isolated", "the status TimeOut", "set the tag unblock again", A],
            ),
            (Told::StillOpen { want: Want::Isolate, action }, &["in three days", A, "portal"]),
            (Told::ReleasedElsewhere { action }, &["Somebody else has released fin-lt-0042", "analyst@example.com", A]),
            (
                Told::NotDone { want: Want::Isolate, reason: Reason::Protected, detail: "the host is a key asset" },
                &[
                    "Isolation refused",
                    "(protected)",
                    "Because the host is a key asset.",
                    "portal",
                    "set the tag block again",
                ],
            ),
            (
                Told::NotDone { want: Want::Release, reason: Reason::Ambiguous, detail: "" },
                &["Release NOT carried out", "(ambiguous)", "set the tag unblock again"],
            ),
            (
                Told::NotDone {
                    want: Want::Isolate,
                    reason: Reason::DryRun,
                    detail: "this is a dry run; otherwise ...",
                },
                &["dry run", "(dry_run)"],
            ),
            (
                Told::NotDone { want: Want::Isolate, reason: Reason::RateLimit, detail: "10 of 10 within the hour" },
                &["NOT carried out yet", "(rate_limit)", "10 of 10", "The tag stays"],
            ),
            (Told::EndUnreadable { text: "tomorrow" }, &["(tomorrow)", "mde:isolation-until=2026-02-03T14:30Z"]),
            (
                Told::GivenUp { want: Some(Want::Isolate), error: "Defender answered 503" },
                &["NOT carried out", "Defender answered 503", "once an hour"],
            ),
            (Told::GivenUp { want: None, error: "x" }, &["context cannot be read"]),
        ];
        for (one, parts) in rows {
            let text = told(one);
            for part in *parts {
                assert!(text.contains(part), "{part:?} in {text}");
            }
            assert!(text.contains(LINK), "{text}");
        }
    }

    #[test]
    fn every_reason_has_words_and_advice_and_a_tag_to_set_again_unless_it_waits() {
        for reason in Reason::ALL {
            let text = told(&Told::NotDone { want: Want::Isolate, reason, detail: "" });
            assert!(text.contains(words(reason)) && text.contains(advice(reason)), "{text}");
            assert_eq!(text.contains("set the tag block again"), !reason.holds(), "{text}");
            assert!(text.contains("refused for") || text.contains("carried out"), "{text}");
            assert_eq!(reason.fate() == Fate::DryRun, text.contains("(dry run)"), "{text}");
        }
    }

    #[test]
    fn without_tags_and_machine_the_words_still_fit() {
        let none = Policy { tenant: None, ..Policy::default() };
        let subject = Subject::of("hq", 4711, None);
        let not_done = Told::NotDone { want: Want::Isolate, reason: Reason::NoMachine, detail: "" };
        let text = action(&none, &subject, &not_done, "e-1").text;
        assert!(text.contains("for this host: Defender knows no such machine (no_machine)"), "{text}");
        assert!(!text.contains("http") && !text.contains("set the tag"), "{text}");
    }

    #[test]
    fn references_tell_what_differs_and_only_that() {
        let (one, other) = (done(), MachineAction { id: "b".into(), ..done() });
        let reference = |told: &Told<'_>, cause: &str| {
            let machine = machine();
            action(&policy(), &Subject::of("hq", 4711, Some(&machine)), told, cause).reference
        };
        let accepted = |action| Told::Accepted {
            want: Want::Isolate,
            action,
            is_active: true,
            until: None,
            expired: false,
            overrides_release: false,
        };
        // Worked out with another implementation of SHA-256.
        assert_eq!(reference(&accepted(&one), "e-1"), "847669cf8081");
        assert_ne!(reference(&accepted(&one), "e-1"), reference(&accepted(&one), "e-2"));
        assert_ne!(reference(&accepted(&one), "e-1"), reference(&accepted(&other), "e-1"));
        // The same event worked again finds its own action open, then ended: told already, and told by the end.
        let adopted =
            Told::Adopted { want: Want::Isolate, action: &one, whose: Whose::ThisEvent, overrides_release: false };
        assert_eq!(reference(&adopted, "e-1"), reference(&accepted(&one), "e-1"));
        let settled =
            |whose| Told::Settled { want: Want::Isolate, action: Some(&one), whose, overrides_release: false };
        let ended = |outcome| Told::Ended { outcome, action: &one };
        assert_eq!(reference(&settled(Whose::ThisEvent), "e-1"), reference(&ended(Outcome::Isolated), "e-9"));
        assert_ne!(reference(&settled(Whose::Other), "e-1"), reference(&ended(Outcome::Isolated), "e-1"));
        let ends = [Outcome::Isolated, Outcome::Released, Outcome::NotIsolated, Outcome::StillIsolated];
        for (index, outcome) in ends.into_iter().enumerate() {
            assert_eq!(reference(&ended(outcome), "e-1"), reference(&ended(outcome), "e-2"));
            assert!(ends[..index].iter().all(|other| reference(&ended(*other), "") != reference(&ended(outcome), "")));
        }
        let not_done = |want, reason| Told::NotDone { want, reason, detail: "a" };
        assert_ne!(
            reference(&not_done(Want::Isolate, Reason::Server), "e-1"),
            reference(&not_done(Want::Isolate, Reason::Protected), "e-1")
        );
        assert_ne!(
            reference(&not_done(Want::Isolate, Reason::DryRun), "e-1"),
            reference(&not_done(Want::Release, Reason::DryRun), "e-1")
        );
    }

    #[test]
    fn a_request_that_is_still_held_back_is_no_news() {
        let held = |reason: Reason| Change::NotDone(reason);
        let before = State::default();
        let now = at(NOW);
        assert!(is_news(&before, &held(Reason::Paused)));
        let paused = before.after(&held(Reason::Paused), now);
        assert!(!is_news(&paused, &held(Reason::Paused)));
        assert!(is_news(&paused, &held(Reason::RateLimit)) && is_news(&paused, &Change::Released));
        let denied = before.after(&held(Reason::Server), now);
        assert!(is_news(&denied, &held(Reason::Server)), "a second request that was refused");
        assert!(!is_news(&before, &Change::Unchanged));
    }

    #[test]
    fn links_lead_to_the_machine_and_hold_nothing_strange() {
        let link = |portal: &str, tenant: Option<&str>| {
            let policy = Policy { portal_url: portal.into(), tenant: tenant.map(str::to_owned), ..policy() };
            portal_link(&policy, M)
        };
        let plain = format!("https://security.microsoft.us/machines/v2/{M}/overview");
        assert_eq!(link("https://security.microsoft.us/", None), plain);
        assert_eq!(
            link("https://security.microsoft.us", Some("corp.example.com")),
            format!("{plain}?tid=corp.example.com")
        );
        assert_eq!(link("https://security.microsoft.us", Some("a&b")), plain);
    }

    proptest! {
        #[test]
        fn a_note_is_bounded_and_ours(name in ".{0,400}", error in any::<String>(), tag in ".{0,300}", id in ".{0,400}") {
            let policy = Policy { block: Some(tag.clone()), unblock: Some(tag), ..policy() };
            let machine = Machine { computer_dns_name: Some(name.clone()), os_platform: Some(name), ..machine() };
            let subject = Subject::of("hq", 4711, Some(&machine));
            let done = MachineAction { id, requestor: Some(error.clone()), status: error.clone(), ..done() };
            let notes = [
                Told::GivenUp { want: Some(Want::Isolate), error: &error },
                Told::NotDone { want: Want::Isolate, reason: Reason::Protected, detail: &error },
                Told::Settled { want: Want::Isolate, action: Some(&done), whose: Whose::Other, overrides_release: true },
                Told::Ended { outcome: Outcome::StillIsolated, action: &done },
            ];
            for told in &notes {
                let ActionNote { reference, text } = action(&policy, &subject, told, "e-1");
                prop_assert!(text.chars().count() < 2000);
                prop_assert_eq!(reference.len(), 12);
                prop_assert!(is_there(&[note(1, Some(US), &text)], &reference, Some(US)));
            }
            let found = Context::Found { machine: Box::new(machine), weak: true };
            let text = context(&policy, Some(&error), &found, None, at(NOW));
            prop_assert!(text.chars().count() < 2000);
            let notes = [note(1, None, &text)];
            prop_assert_eq!(find_context(&notes, None).and_then(context_read_at), Some(at(NOW)));
        }
    }
}
