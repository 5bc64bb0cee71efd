//! What to do at Defender, from the machine's actions (`cognito.md` 5.7, `defender.md` 7.2 to 7.4).
//!
//! A second request while one is open is not harmless: it can hang, end after a release, and leave the machine isolated.
//! So an open action is adopted and followed wherever it stands in the list, and nothing is posted across it. What counts
//! besides is the newest action that ended; where that one failed, the machine is as the last one that succeeded left it.

use std::time::Duration;

use jiff::Timestamp;

use super::comment::Whose;
use super::delays::{CROSSED, GIVE_UP_AFTER};
use super::reason::Reason;
use super::state::{self, Change, Outcome, State};
use crate::defender::model::MachineAction;

/// An isolation that is open for longer is taken back before a release: the machine does not answer, and the isolation
/// could take three days (`defender.md` 7.4). A machine that is online is isolated within a minute or two.
const CANCEL_AFTER: Duration = Duration::from_secs(5 * 60);

/// What the machine should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// Isolated.
    Isolate,
    /// Released.
    Release,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask Defender for it.
    Post,
    /// Nothing: the machine is as wanted.
    Settled {
        /// What made it so; `None` where nobody ever isolated it.
        action: Option<MachineAction>,
    },
    /// Nothing: this action is on its way there. Follow it.
    Track {
        /// The open action.
        action: MachineAction,
    },
    /// Look again later: the opposite action is open, or one that Defender does not list yet.
    Wait {
        /// The open action, if it is listed.
        action: Option<MachineAction>,
        /// How long.
        after: Duration,
    },
    /// Take this isolation back, then look again.
    Cancel {
        /// The open isolation.
        action: MachineAction,
    },
}

/// What is known of a machine when its actions were read.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// The machine: 40 hexadecimal digits.
    pub machine_id: &'a str,
    /// Its actions in any order, of any kind; also the one of [`State::action_id`], read by its id, where Defender's list
    /// lacks it. One may stand there twice.
    pub actions: &'a [MachineAction],
    /// Whether it reports to Defender ([`super::matching::is_active`]).
    pub is_active: bool,
    /// What the host's tags say.
    pub state: &'a State,
    /// Defender has just refused a request because another one is open.
    pub already_open: bool,
    /// The present.
    pub now: Timestamp,
}

/// How far an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Not ended. So is one whose status is not known.
    Open,
    /// Ended.
    Ended(Outcome),
}

/// What to do to have the machine isolated or released.
#[must_use]
pub fn next(want: Want, sight: &Sight<'_>) -> Step {
    match want {
        Want::Isolate => isolate(sight),
        Want::Release => release(sight),
    }
}

fn isolate(sight: &Sight<'_>) -> Step {
    let history = History::of(sight.machine_id, sight.actions);
    match history.open(sight.now, sight.already_open) {
        Some(action) if is(action, Want::Isolate) => return Step::Track { action: action.clone() },
        Some(action) => return Step::Wait { action: Some(action.clone()), after: CROSSED },
        None if sight.already_open => return Step::Wait { action: None, after: CROSSED },
        None => {}
    }
    match history.0.first() {
        Some(newest) if is(newest, Want::Isolate) && succeeded(newest) => settled(newest),
        // A release that failed has released nothing.
        Some(newest) if is(newest, Want::Release) && !succeeded(newest) => match history.last_success() {
            Some(last) if is(last, Want::Isolate) => settled(last),
            _ => Step::Post,
        },
        _ => Step::Post,
    }
}

fn release(sight: &Sight<'_>) -> Step {
    let history = History::of(sight.machine_id, sight.actions);
    // However old: an isolation that is still open may yet be carried out.
    let hanging = || history.0.iter().copied().find(|action| is_open(action) && is(action, Want::Isolate));
    match history.open(sight.now, sight.already_open).or_else(hanging) {
        Some(action) if is(action, Want::Release) => return Step::Track { action: action.clone() },
        Some(action) => {
            let hangs = created(action).is_none_or(|created| age(created, sight.now) >= CANCEL_AFTER);
            return if hangs || !sight.is_active {
                Step::Cancel { action: action.clone() }
            } else {
                Step::Wait { action: Some(action.clone()), after: CROSSED }
            };
        }
        None if sight.already_open => return Step::Wait { action: None, after: CROSSED },
        None => {}
    }
    // What the tags know and Defender does not list, or not yet, is not told by the list. To ask for a release in vain
    // does no harm, to leave a machine isolated and call it released does.
    let tells_all = !history.0.is_empty() && history.knows(sight.state.action_id.as_deref());
    if sight.state.claims_isolation() && !tells_all {
        return Step::Post;
    }
    match (history.0.first(), history.last_success()) {
        (Some(newest), _) if is(newest, Want::Release) => {
            if succeeded(newest) {
                settled(newest)
            } else {
                Step::Post
            }
        }
        (_, Some(last)) if is(last, Want::Isolate) => Step::Post,
        (newest, _) => Step::Settled { action: newest.map(|&action| action.clone()) },
    }
}

/// The release by which somebody else ended the isolation that the tags claim (`cognito.md` 5.6, row 9): newer than the
/// recorded action, ended well, and with nothing open after it.
#[must_use]
pub fn released_elsewhere(sight: &Sight<'_>) -> Option<MachineAction> {
    let history = History::of(sight.machine_id, sight.actions);
    let recorded = sight.state.action_id.as_deref();
    if history.open(sight.now, false).is_some() || !history.knows(recorded) {
        return None;
    }
    let last = history.last_success().filter(|last| is(last, Want::Release))?;
    let position = |id: &str| history.0.iter().position(|action| same_id(&action.id, id));
    let is_newer = recorded.is_none_or(|recorded| position(&last.id) <= position(recorded));
    is_newer.then(|| last.clone())
}

/// How far a followed action is. `None` where it is no isolation or release of this machine, as when somebody changed
/// the tag that names it: then the machine's actions have to be read.
#[must_use]
pub fn follow(action: &MachineAction, machine_id: &str) -> Option<Progress> {
    let of_machine = is_of(action, machine_id);
    let outcome = match (is(action, Want::Isolate), is(action, Want::Release)) {
        (true, _) if succeeded(action) => Outcome::Isolated,
        (true, _) => Outcome::NotIsolated,
        (_, true) if succeeded(action) => Outcome::Released,
        (_, true) => Outcome::StillIsolated,
        _ => return None,
    };
    of_machine.then_some(if is_open(action) { Progress::Open } else { Progress::Ended(outcome) })
}

/// The newest isolation or release of the machine: what to follow where the tags do not name an action.
#[must_use]
pub fn newest(actions: &[MachineAction], machine_id: &str) -> Option<MachineAction> {
    let history = History::of(machine_id, actions);
    history.newest_open().or(history.0.first().copied()).cloned()
}

/// How the state changes with an action that Defender took or that was adopted. `until`: see [`expiry`].
#[must_use]
pub fn taken(want: Want, action: &MachineAction, machine_id: &str, until: Option<Timestamp>) -> Change {
    let (machine_id, action_id) = (machine_id.to_owned(), action.id.clone());
    match (want, is_open(action), succeeded(action)) {
        (Want::Isolate, true, _) => Change::Isolating { machine_id, action_id, until },
        (Want::Isolate, _, true) => Change::Isolated { machine_id, action_id, until },
        (Want::Release, true, _) => Change::Releasing { machine_id, action_id },
        (Want::Release, _, true) => Change::Released,
        (_, false, false) => Change::NotDone(Reason::ActionFailed),
    }
}

/// When an isolation ends by itself: `ttl` from now, if it is the bridge's. What somebody else isolated is not released
/// unless it is asked for (`cognito.md` 5.10, no. 5).
#[must_use]
pub fn expiry(whose: Whose, ttl: Option<Duration>, now: Timestamp) -> Option<Timestamp> {
    match whose {
        Whose::ThisEvent | Whose::Bridge => state::until(now, ttl?),
        Whose::Other => None,
    }
}

/// The isolations and releases of one machine, the newest first, each once.
struct History<'a>(Vec<&'a MachineAction>);

impl<'a> History<'a> {
    fn of(machine_id: &str, actions: &'a [MachineAction]) -> Self {
        let mut history: Vec<&MachineAction> = Vec::new();
        let wanted = |action: &&MachineAction| is(action, Want::Isolate) || is(action, Want::Release);
        for action in actions.iter().filter(wanted).filter(|action| is_of(action, machine_id)) {
            match history.iter_mut().find(|other| same_id(&other.id, &action.id)) {
                // The newer of two readings is the one that has ended.
                Some(other) if is_open(other) => *other = action,
                Some(_) => {}
                None => history.push(action),
            }
        }
        history.sort_by_key(|action| std::cmp::Reverse(created(action)));
        Self(history)
    }

    /// The newest open action of any age.
    fn newest_open(&self) -> Option<&'a MachineAction> {
        self.0.iter().copied().find(|action| is_open(action))
    }

    /// The newest open action. One that is older than Defender keeps trying counts as ended, unless Defender has just
    /// said that one is open.
    fn open(&self, now: Timestamp, already_open: bool) -> Option<&'a MachineAction> {
        self.0.iter().copied().find(|action| is_open(action) && (already_open || !is_given_up(action, now)))
    }

    fn last_success(&self) -> Option<&'a MachineAction> {
        self.0.iter().copied().find(|action| succeeded(action))
    }

    /// Whether the action is listed; also when there is none to look for.
    fn knows(&self, id: Option<&str>) -> bool {
        id.is_none_or(|id| self.0.iter().any(|action| same_id(&action.id, id)))
    }
}

fn settled(action: &MachineAction) -> Step {
    Step::Settled { action: Some(action.clone()) }
}

fn is(action: &MachineAction, want: Want) -> bool {
    action.kind.eq_ignore_ascii_case(match want {
        Want::Isolate => "Isolate",
        Want::Release => "Unisolate",
    })
}

/// The list was asked for one machine, so an action that names none is that machine's.
fn is_of(action: &MachineAction, machine_id: &str) -> bool {
    action.machine_id.as_deref().is_none_or(|id| id.eq_ignore_ascii_case(machine_id))
}

fn same_id(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

pub(super) fn succeeded(action: &MachineAction) -> bool {
    action.status.eq_ignore_ascii_case("Succeeded")
}

pub(super) fn is_open(action: &MachineAction) -> bool {
    !["Succeeded", "Failed", "TimeOut", "Cancelled"].iter().any(|end| action.status.eq_ignore_ascii_case(end))
}

pub(super) fn is_given_up(action: &MachineAction, now: Timestamp) -> bool {
    created(action).is_some_and(|created| age(created, now) > GIVE_UP_AFTER)
}

fn created(action: &MachineAction) -> Option<Timestamp> {
    action.creation_date_time_utc.as_deref()?.trim().parse().ok()
}

/// Nothing for what lies ahead, as by a clock that is slow.
fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::containment::state::Isolation;

    const M: &str = "0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e";
    const NOW: &str = "2026-02-03T10:31:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// `Isolate Pending 90`: kind, status, age in seconds; its id is all of it.
    fn action(text: &str) -> MachineAction {
        let parts: Vec<&str> = text.split(' ').collect();
        let created = at(NOW) - Duration::from_secs(parts[2].parse().unwrap());
        MachineAction {
            id: text.replace(' ', "-"),
            kind: parts[0].into(),
            status: parts[1].into(),
            machine_id: Some(M.into()),
            creation_date_time_utc: Some(created.to_string()),
            ..MachineAction::default()
        }
    }

    fn shown(step: &Step) -> String {
        let id = |action: &MachineAction| action.id.replace('-', " ");
        match step {
            Step::Post => "post".into(),
            Step::Settled { action } => format!("settled {}", action.as_ref().map_or("never".into(), id)),
            Step::Track { action } => format!("track {}", id(action)),
            Step::Wait { action, after } => {
                format!("wait {} s for {}", after.as_secs(), action.as_ref().map_or("one unlisted".into(), id))
            }
            Step::Cancel { action } => format!("cancel {}", id(action)),
        }
    }

    struct Case {
        is_active: bool,
        already_open: bool,
        state: State,
    }

    const ONLINE: Case = Case {
        is_active: true,
        already_open: false,
        state: State {
            isolation: None,
            machine_id: None,
            action_id: None,
            until: None,
            unreadable_until: None,
            request: None,
        },
    };

    fn step(want: Want, actions: &[&str], case: &Case) -> String {
        let mut actions: Vec<MachineAction> = actions.iter().map(|text| action(text)).collect();
        let sight = |actions: &[MachineAction]| {
            let sight = Sight {
                machine_id: M,
                actions,
                is_active: case.is_active,
                state: &case.state,
                already_open: case.already_open,
                now: at(NOW),
            };
            shown(&next(want, &sight))
        };
        let result = sight(&actions);
        // The order of the list, and actions of other kinds and machines, say nothing.
        actions.reverse();
        actions.insert(0, action("RunAntiVirusScan Pending 1"));
        actions.push(MachineAction { machine_id: Some("b".repeat(40)), ..action("Isolate Pending 2") });
        actions.push(MachineAction { machine_id: Some("b".repeat(40)), ..action("Unisolate Succeeded 0") });
        assert_eq!(sight(&actions), result, "in another order");
        result
    }

    /// The table of 5.7, row by row, and what `defender.md` 7.2 and 7.3 add.
    #[test]
    fn isolating() {
        let rows: &[(&str, &[&str], &str)] = &[
            ("1 none", &[], "post"),
            ("1 Unisolate finished", &["Isolate Succeeded 900", "Unisolate Succeeded 600"], "post"),
            ("2 Isolate, succeeded", &["Isolate Succeeded 900"], "settled Isolate Succeeded 900"),
            (
                "2 Isolate, succeeded, after a release",
                &["Unisolate Succeeded 1200", "Isolate Succeeded 900"],
                "settled Isolate Succeeded 900",
            ),
            ("3 Isolate, pending", &["Isolate Pending 90"], "track Isolate Pending 90"),
            ("3 Isolate, in progress", &["Isolate InProgress 90"], "track Isolate InProgress 90"),
            ("3 Isolate, with a status of tomorrow", &["Isolate Queued 90"], "track Isolate Queued 90"),
            (
                "4 Unisolate, pending",
                &["Isolate Succeeded 900", "Unisolate Pending 90"],
                "wait 60 s for Unisolate Pending 90",
            ),
            ("4 Unisolate, in progress", &["Unisolate InProgress 9"], "wait 60 s for Unisolate InProgress 9"),
            ("5 Isolate, failed", &["Isolate Failed 90"], "post"),
            ("5 Isolate, timed out", &["Isolate TimeOut 90"], "post"),
            ("5 Isolate, cancelled", &["Unisolate Succeeded 900", "Isolate Cancelled 90"], "post"),
            (
                "a release that failed has released nothing",
                &["Isolate Succeeded 900", "Unisolate Failed 90"],
                "settled Isolate Succeeded 900",
            ),
            ("a release that failed on nothing", &["Isolate Failed 900", "Unisolate Failed 90"], "post"),
            (
                "an isolation that hangs behind a release is adopted",
                &["Isolate Pending 900", "Unisolate Succeeded 90"],
                "track Isolate Pending 900",
            ),
            ("one that Defender gave up is none", &["Isolate Pending 262801"], "post"),
            ("one that it did not", &["Isolate Pending 262800"], "track Isolate Pending 262800"),
            (
                "a release that it gave up",
                &["Isolate Succeeded 300000", "Unisolate Pending 262801"],
                "settled Isolate Succeeded 300000",
            ),
        ];
        for (name, actions, expected) in rows {
            assert_eq!(step(Want::Isolate, actions, &ONLINE), *expected, "{name}");
        }
    }

    /// The same mirrored, with `defender.md` 7.4.
    #[test]
    fn releasing() {
        let rows: &[(&str, &[&str], &str)] = &[
            ("1 none: nobody has it isolated", &[], "settled never"),
            ("1 Isolate finished", &["Isolate Succeeded 900"], "post"),
            (
                "2 Unisolate, succeeded",
                &["Isolate Succeeded 900", "Unisolate Succeeded 600"],
                "settled Unisolate Succeeded 600",
            ),
            ("3 Unisolate, pending", &["Isolate Succeeded 900", "Unisolate Pending 90"], "track Unisolate Pending 90"),
            ("3 Unisolate, in progress", &["Unisolate InProgress 90"], "track Unisolate InProgress 90"),
            ("4 Isolate, pending", &["Isolate Pending 90"], "wait 60 s for Isolate Pending 90"),
            ("4 Isolate, in progress", &["Isolate InProgress 299"], "wait 60 s for Isolate InProgress 299"),
            ("4 Isolate, pending for long", &["Isolate Pending 300"], "cancel Isolate Pending 300"),
            ("4 Isolate, pending for ever", &["Isolate Pending 999999"], "cancel Isolate Pending 999999"),
            (
                "4 an isolation that hangs behind a release",
                &["Isolate Pending 900", "Unisolate Succeeded 600"],
                "cancel Isolate Pending 900",
            ),
            ("5 Unisolate, failed", &["Isolate Succeeded 900", "Unisolate Failed 90"], "post"),
            ("5 Unisolate, timed out", &["Unisolate TimeOut 90"], "post"),
            ("5 Unisolate, cancelled", &["Unisolate Cancelled 90"], "post"),
            ("5 a release that Defender gave up", &["Unisolate Pending 262801"], "post"),
            ("an isolation that failed has isolated nothing", &["Isolate Failed 90"], "settled Isolate Failed 90"),
            (
                "one that was taken back",
                &["Unisolate Succeeded 900", "Isolate Cancelled 90"],
                "settled Isolate Cancelled 90",
            ),
            ("one that failed on an isolated machine", &["Isolate Succeeded 900", "Isolate Failed 90"], "post"),
            (
                "a release that Defender gave up, before it an isolation that hangs",
                &["Isolate Pending 300000", "Unisolate Pending 270000"],
                "cancel Isolate Pending 300000",
            ),
        ];
        for (name, actions, expected) in rows {
            assert_eq!(step(Want::Release, actions, &ONLINE), *expected, "{name}");
        }
        let offline = Case { is_active: false, ..ONLINE };
        assert_eq!(step(Want::Release, &["Isolate Pending 3"], &offline), "cancel Isolate Pending 3");
        assert_eq!(step(Want::Release, &["Unisolate Pending 3"], &offline), "track Unisolate Pending 3");
    }

    /// 5.7: 400 with "already in progress" -> read the actions again, then as above.
    #[test]
    fn after_defender_said_that_one_is_open() {
        let open = Case { already_open: true, ..ONLINE };
        let rows = [
            (Want::Isolate, "Isolate Pending 3", "track Isolate Pending 3"),
            (Want::Isolate, "Unisolate Pending 3", "wait 60 s for Unisolate Pending 3"),
            (Want::Isolate, "Isolate Pending 999999", "track Isolate Pending 999999"),
            (Want::Isolate, "Isolate Succeeded 3", "wait 60 s for one unlisted"),
            (Want::Isolate, "Unisolate Succeeded 3", "wait 60 s for one unlisted"),
            (Want::Release, "Unisolate Pending 999999", "track Unisolate Pending 999999"),
            (Want::Release, "Isolate Pending 3", "wait 60 s for Isolate Pending 3"),
            (Want::Release, "Isolate Succeeded 3", "wait 60 s for one unlisted"),
        ];
        for (want, actions, expected) in rows {
            assert_eq!(step(want, &[actions], &open), expected, "{want:?} {actions}");
        }
    }

    #[test]
    fn a_release_trusts_no_list_that_lacks_what_the_tags_know() {
        let state = |isolation, id: Option<&str>| Case {
            state: State { isolation: Some(isolation), action_id: id.map(str::to_owned), ..State::default() },
            ..ONLINE
        };
        let known = Some("Isolate-Succeeded-900");
        let stale = ["Isolate Succeeded 2000", "Unisolate Succeeded 1800"];
        assert_eq!(step(Want::Release, &stale, &state(Isolation::Isolated, known)), "post");
        assert_eq!(step(Want::Release, &[], &state(Isolation::Isolating, known)), "post");
        assert_eq!(step(Want::Release, &[], &state(Isolation::Isolated, None)), "post");
        assert_eq!(step(Want::Release, &stale, &state(Isolation::Isolated, None)), "settled Unisolate Succeeded 1800");
        // What the tags say is over is over.
        assert_eq!(step(Want::Release, &stale, &state(Isolation::Released, known)), "settled Unisolate Succeeded 1800");
        // And what they know is listed.
        let listed = ["Isolate Succeeded 900", "Unisolate Succeeded 600"];
        assert_eq!(step(Want::Release, &listed, &state(Isolation::Isolated, known)), "settled Unisolate Succeeded 600");
    }

    /// Row 9 of 5.6.
    #[test]
    fn a_release_by_somebody_else() {
        let of = |actions: &[&str], recorded: Option<&str>| {
            let actions: Vec<MachineAction> = actions.iter().map(|text| action(text)).collect();
            let state = State {
                isolation: Some(Isolation::Isolated),
                action_id: recorded.map(|id| id.replace(' ', "-")),
                ..State::default()
            };
            let sight = Sight {
                machine_id: M,
                actions: &actions,
                is_active: true,
                state: &state,
                already_open: false,
                now: at(NOW),
            };
            released_elsewhere(&sight).map(|action| action.id.replace('-', " "))
        };
        let ours = "Isolate Succeeded 900";
        let theirs = "Unisolate Succeeded 600";
        assert_eq!(of(&[ours, theirs], Some(ours)).as_deref(), Some(theirs));
        assert_eq!(of(&[ours, theirs], None).as_deref(), Some(theirs));
        assert_eq!(of(&[ours, theirs, "Isolate Failed 60"], Some(ours)).as_deref(), Some(theirs));
        assert_eq!(of(&[theirs, ours, "Unisolate Failed 60"], Some("Unisolate Failed 60")), None, "it failed");
        for (name, actions) in [
            ("still isolated", &[ours][..]),
            ("older than ours", &["Unisolate Succeeded 1000", ours]),
            ("not finished", &[ours, "Unisolate Pending 600"]),
            ("failed", &[ours, "Unisolate Failed 600"]),
            ("isolated again", &[ours, theirs, "Isolate Succeeded 60"]),
            ("being isolated again", &[ours, theirs, "Isolate Pending 60"]),
            ("ours is not listed yet", &["Unisolate Succeeded 1000"]),
            ("nothing listed", &[]),
        ] {
            assert_eq!(of(actions, Some(ours)), None, "{name}");
        }
    }

    /// "Tracking" of 5.7.
    #[test]
    fn following_an_action_to_its_end() {
        use Progress::{Ended, Open};
        let rows = [
            ("Isolate Pending 3", Some(Open)),
            ("Isolate InProgress 3", Some(Open)),
            ("Unisolate Pending 3", Some(Open)),
            ("Unisolate Unheard 3", Some(Open)),
            ("Isolate Succeeded 3", Some(Ended(Outcome::Isolated))),
            ("isolate succeeded 3", Some(Ended(Outcome::Isolated))),
            ("Unisolate Succeeded 3", Some(Ended(Outcome::Released))),
            ("Isolate Failed 3", Some(Ended(Outcome::NotIsolated))),
            ("Isolate TimeOut 3", Some(Ended(Outcome::NotIsolated))),
            ("Isolate Cancelled 3", Some(Ended(Outcome::NotIsolated))),
            ("Unisolate Failed 3", Some(Ended(Outcome::StillIsolated))),
            ("Unisolate TimeOut 3", Some(Ended(Outcome::StillIsolated))),
            ("Unisolate Cancelled 3", Some(Ended(Outcome::StillIsolated))),
            ("RunAntiVirusScan Succeeded 3", None),
        ];
        for (text, expected) in rows {
            assert_eq!(follow(&action(text), M), expected, "{text}");
        }
        assert_eq!(follow(&action("Isolate Succeeded 3"), &"b".repeat(40)), None, "another machine's");
    }

    #[test]
    fn without_a_recorded_action_the_newest_is_followed() {
        let of = |texts: &[&str]| {
            let actions: Vec<MachineAction> = texts.iter().map(|text| action(text)).collect();
            newest(&actions, M).map(|action| action.id.replace('-', " "))
        };
        assert_eq!(
            of(&["Isolate Failed 90", "Isolate Succeeded 9", "Unisolate Succeeded 60"]).unwrap(),
            "Isolate Succeeded 9"
        );
        assert_eq!(
            of(&["Isolate Pending 90", "Unisolate Succeeded 9"]).unwrap(),
            "Isolate Pending 90",
            "open ones first"
        );
        assert_eq!(of(&["RunAntiVirusScan Pending 1"]), None);
    }

    #[test]
    fn one_action_read_twice_counts_as_its_end() {
        let open = action("Isolate Pending 90");
        let ended = MachineAction { status: "Failed".into(), ..open.clone() };
        for actions in [[open.clone(), ended.clone()], [ended, open]] {
            let history = History::of(M, &actions);
            assert_eq!(history.0.len(), 1);
            assert!(history.newest_open().is_none());
        }
    }

    #[test]
    fn the_state_after_an_answer() {
        let until = Some(at("2026-02-03T14:31:00Z"));
        let (machine_id, id) = (M.to_owned(), |text: &str| text.replace(' ', "-"));
        let rows = [
            (
                Want::Isolate,
                "Isolate Pending 0",
                Change::Isolating { machine_id: machine_id.clone(), action_id: id("Isolate Pending 0"), until },
            ),
            (
                Want::Isolate,
                "Isolate Succeeded 0",
                Change::Isolated { machine_id: machine_id.clone(), action_id: id("Isolate Succeeded 0"), until },
            ),
            (Want::Isolate, "Isolate Failed 0", Change::NotDone(Reason::ActionFailed)),
            (
                Want::Release,
                "Unisolate InProgress 0",
                Change::Releasing { machine_id, action_id: id("Unisolate InProgress 0") },
            ),
            (Want::Release, "Unisolate Succeeded 0", Change::Released),
            (Want::Release, "Unisolate TimeOut 0", Change::NotDone(Reason::ActionFailed)),
        ];
        for (want, text, expected) in rows {
            assert_eq!(taken(want, &action(text), M, until), expected, "{want:?} {text}");
        }
    }

    #[test]
    fn only_what_the_bridge_isolated_ends_by_itself() {
        let ttl = Some(Duration::from_secs(4 * 3600));
        let until = Some(at("2026-02-03T14:31:00Z"));
        assert_eq!(expiry(Whose::ThisEvent, ttl, at(NOW)), until);
        assert_eq!(expiry(Whose::Bridge, ttl, at(NOW)), until);
        assert_eq!(expiry(Whose::Other, ttl, at(NOW)), None);
        assert_eq!(expiry(Whose::Bridge, None, at(NOW)), None);
    }

    proptest! {
        /// Nothing is posted across an open action, whatever else the list holds.
        #[test]
        fn at_most_one_request_is_open(
            rows in prop::collection::vec((any::<bool>(), 0usize..6, 0u64..200_000), 0..6),
            want in prop::sample::select(vec![Want::Isolate, Want::Release]),
            is_active: bool,
            already_open: bool,
        ) {
            const STATUS: [&str; 6] = ["Pending", "InProgress", "Succeeded", "Failed", "TimeOut", "Cancelled"];
            let actions: Vec<MachineAction> = rows
                .iter()
                .map(|(isolate, status, age)| {
                    action(&format!("{} {} {age}", if *isolate { "Isolate" } else { "Unisolate" }, STATUS[*status]))
                })
                .collect();
            let state = State::default();
            let sight =
                Sight { machine_id: M, actions: &actions, is_active, state: &state, already_open, now: at(NOW) };
            let step = next(want, &sight);
            let opened = actions.iter().any(is_open) || already_open;
            prop_assert!(step != Step::Post || !opened, "{}", shown(&step));
            // What is called settled is what somebody brought about, or what nobody undid.
            if let Step::Settled { action: Some(action) } = &step {
                prop_assert!(want == Want::Release || (is(action, Want::Isolate) && succeeded(action)));
            }
            if let Step::Track { action } = &step {
                prop_assert!(is(action, want) && is_open(action));
            }
        }
    }
}
