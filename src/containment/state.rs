//! What the bridge knows of a host's isolation, kept in the host's tags (`cognito.md` 5.3, 5.7, 6.6).
//!
//! The state of the machine and the fate of the last request are two things: a refused second request, or a release that
//! failed, must not overwrite `isolated`.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};

use super::policy::machine_id;
use super::reason::{Fate, Reason};
use super::tags;

/// How long a release that was due and failed is put off, so that not every sweep asks Defender again.
const POSTPONED: Duration = Duration::from_secs(3600);
/// Longest id of a machine action: a GUID has 36 characters.
const MAX_ACTION_ID_CHARS: usize = 64;

/// State of the machine, as far as it is known (`mde:isolation=`). The more isolated, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// Released.
    Released,
    /// Defender took the request to release it.
    Releasing,
    /// Defender took the request to isolate it.
    Isolating,
    /// Isolated.
    Isolated,
}

impl Isolation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Released, Self::Releasing, Self::Isolating, Self::Isolated];

    /// The value of the tag.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Releasing => "releasing",
            Self::Isolating => "isolating",
            Self::Isolated => "isolated",
        }
    }

    /// Reads the value of the tag.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// What the tags say of a host's isolation. What cannot be read counts as absent, and so does an id that stands there
/// with two values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Absent: never acted on.
    pub isolation: Option<Isolation>,
    /// The machine acted on, until it is released: 40 hexadecimal digits.
    pub machine_id: Option<String>,
    /// Defender's id of the last request.
    pub action_id: Option<String>,
    /// When the isolation ends by itself.
    pub until: Option<Timestamp>,
    /// An end that somebody wrote and nobody can read; to be told, and not kept.
    pub unreadable_until: Option<String>,
    /// The fate of the last request that was not carried out.
    pub request: Option<(Fate, Option<Reason>)>,
}

/// What happened to the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Unchanged,
    /// Defender works on an isolation: it took ours, or had one open.
    Isolating {
        /// The machine.
        machine_id: String,
        /// Defender's id of the request.
        action_id: String,
        /// When it ends by itself.
        until: Option<Timestamp>,
    },
    /// The machine was isolated already.
    Isolated {
        /// The machine.
        machine_id: String,
        /// Defender's id of the action that did it.
        action_id: String,
        /// When it ends by itself.
        until: Option<Timestamp>,
    },
    /// Defender works on a release: it took ours, or had one open.
    Releasing {
        /// The machine.
        machine_id: String,
        /// Defender's id of the request.
        action_id: String,
    },
    /// The machine is not isolated: it was not, or somebody else released it.
    Released,
    /// An action that was followed came to its end.
    Ended(Outcome),
    /// A request was not carried out.
    NotDone(Reason),
}

/// How an action that was followed ended (`cognito.md` 5.7, "Tracking").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The isolation succeeded.
    Isolated,
    /// The release succeeded.
    Released,
    /// The isolation failed, timed out or was cancelled.
    NotIsolated,
    /// The release failed, timed out or was cancelled.
    StillIsolated,
}

impl State {
    /// Reads the state from a host's tags.
    #[must_use]
    pub fn read(prefix: &str, present: &[String]) -> Self {
        let values = |name| tags::values(prefix, name, present);
        let only = |name| match values(name)[..] {
            [one] => Some(one),
            _ => None,
        };
        let until = values("isolation-until");
        let reason = values("request-reason").into_iter().find_map(Reason::parse);
        Self {
            isolation: values("isolation").into_iter().filter_map(Isolation::parse).max(),
            machine_id: only("isolation-id").and_then(machine_id),
            action_id: only("isolation-action").filter(|id| is_action_id(id)).map(str::to_owned),
            // Of two ends the later: a release cannot be taken back, a longer isolation can be ended by anybody.
            until: until.iter().filter_map(|text| parse_until(text)).max(),
            unreadable_until: until.iter().find(|text| parse_until(text).is_none()).map(|&text| text.to_owned()),
            request: values("request").into_iter().filter_map(Fate::parse).max().map(|fate| (fate, reason)),
        }
    }

    /// The tags that say it.
    #[must_use]
    pub fn tags(&self, prefix: &str) -> Vec<String> {
        let until = self.until.map(until_text);
        let (fate, reason) = self.request.unzip();
        let rows = [
            ("isolation", self.isolation.map(Isolation::as_str)),
            ("isolation-id", self.machine_id.as_deref()),
            ("isolation-action", self.action_id.as_deref()),
            ("isolation-until", until.as_deref()),
            ("request", fate.map(Fate::as_str)),
            ("request-reason", reason.flatten().map(Reason::as_str)),
        ];
        rows.into_iter().filter_map(|(name, value)| tags::own(prefix, name, value?)).collect()
    }

    /// Whether the bridge has isolated the machine, or asked for it, and has not seen its release.
    #[must_use]
    pub fn claims_isolation(&self) -> bool {
        matches!(self.isolation, Some(Isolation::Isolating | Isolation::Isolated | Isolation::Releasing))
    }

    /// Whether the isolation's end has come.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// The state after `change`.
    #[must_use]
    pub fn after(&self, change: &Change, now: Timestamp) -> Self {
        let acted = |isolation, machine: &String, action: &String, until| Self {
            isolation: Some(isolation),
            machine_id: Some(machine.clone()),
            action_id: Some(action.clone()),
            until,
            ..Self::default()
        };
        let failed = Some((Reason::ActionFailed.fate(), Some(Reason::ActionFailed)));
        match change {
            Change::Unchanged => self.clone(),
            Change::Isolating { machine_id, action_id, until } => {
                acted(Isolation::Isolating, machine_id, action_id, *until)
            }
            Change::Isolated { machine_id, action_id, until } => {
                acted(Isolation::Isolated, machine_id, action_id, *until)
            }
            Change::Releasing { machine_id, action_id } => {
                acted(Isolation::Releasing, machine_id, action_id, self.until)
            }
            Change::Released => Self { isolation: Some(Isolation::Released), ..Self::default() },
            Change::Ended(Outcome::Isolated) => Self { isolation: Some(Isolation::Isolated), ..self.clone() },
            Change::Ended(Outcome::Released) => {
                Self { isolation: Some(Isolation::Released), request: self.request, ..Self::default() }
            }
            Change::Ended(Outcome::NotIsolated) => Self { request: failed, ..Self::default() },
            Change::Ended(Outcome::StillIsolated) => {
                let still = Self { isolation: Some(Isolation::Isolated), request: failed, ..self.clone() };
                still.postponed(now)
            }
            Change::NotDone(reason) => {
                let not_done = Self { request: Some((reason.fate(), Some(*reason))), ..self.clone() };
                if reason.fate() == Fate::Failed { not_done.postponed(now) } else { not_done }
            }
        }
    }

    /// With a later end, when the end has come and the release failed.
    fn postponed(self, now: Timestamp) -> Self {
        let until = if self.is_over(now) { until(now, POSTPONED) } else { self.until };
        Self { until, ..self }
    }
}

/// The end of an isolation that lasts `ttl` from `now`, in whole minutes, never earlier; `None` beyond the calendar.
#[must_use]
pub fn until(now: Timestamp, ttl: Duration) -> Option<Timestamp> {
    let end = now.checked_add(ttl).ok()?;
    end.round(jiff::TimestampRound::new().smallest(Unit::Minute).mode(jiff::RoundMode::Ceil)).ok()
}

/// `2026-02-03T10:31Z`.
#[must_use]
pub fn until_text(until: Timestamp) -> String {
    until.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%MZ").to_string()
}

/// Reads what [`until_text`] wrote, or what an analyst wrote in its place, with seconds or without. A time without a zone
/// is none: who wrote it may have meant local time.
fn parse_until(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Ids go into the path of a call, so nothing else may pass for one.
fn is_action_id(text: &str) -> bool {
    (1..=MAX_ACTION_ID_CHARS).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: &str = "mde:";
    const M: &str = "0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e";
    const A: &str = "6b1f2f0e-3d0f-4a57-9c1c-2f7f0f6f1a11";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn read(tags: &[&str]) -> State {
        State::read(P, &tags.iter().map(|&tag| tag.to_owned()).collect::<Vec<_>>())
    }

    fn isolated() -> State {
        State {
            isolation: Some(Isolation::Isolated),
            machine_id: Some(M.into()),
            action_id: Some(A.into()),
            until: Some(at("2026-02-03T14:31:00Z")),
            ..State::default()
        }
    }

    #[test]
    fn every_tag_is_read_and_written_as_it_was() {
        let tags = [
            "mde:isolation=isolated".to_owned(),
            format!("mde:isolation-id={M}"),
            format!("mde:isolation-action={A}"),
            "mde:isolation-until=2026-02-03T14:31Z".to_owned(),
            "mde:request=denied".to_owned(),
            "mde:request-reason=protected".to_owned(),
        ];
        let state = State::read(P, &tags);
        let expected = State { request: Some((Fate::Denied, Some(Reason::Protected))), ..isolated() };
        assert_eq!(state, expected);
        assert_eq!(state.tags(P), tags);
        assert_eq!(State::default().tags(P), [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_counts_as_absent() {
        let rows = [
            "mde:isolation=blocked",
            "mde:isolation=Isolated",
            "mde:isolation",
            "isolation=isolated",
            // A name in place of an id would select another machine.
            "mde:isolation-id=fin-lt-0042",
            "mde:isolation-id=0f3c",
            "mde:isolation-action=../machines",
            "mde:isolation-action=",
            "mde:request=conflict",
            "mde:request-reason=protected",
        ];
        for tag in rows {
            assert_eq!(read(&[tag]), State::default(), "{tag}");
        }
        assert_eq!(read(&["mde:request=failed", "mde:request-reason=x"]).request, Some((Fate::Failed, None)));
    }

    #[test]
    fn an_end_that_does_not_parse_is_absent_and_told() {
        for text in ["tomorrow", "", "2026-02-30T10:00Z", "2026-02-03T10:31", "2026-02-03"] {
            let state = read(&["mde:isolation=isolated", &format!("mde:isolation-until={text}")]);
            assert_eq!((state.until, state.unreadable_until.as_deref()), (None, Some(text)), "{text:?}");
            assert!(!state.is_over(at("2100-01-01T00:00:00Z")));
            assert_eq!(state.tags(P), ["mde:isolation=isolated"]);
        }
    }

    #[test]
    fn an_end_may_be_written_by_hand() {
        for text in ["2026-02-03T14:31Z", "2026-02-03T14:31:00Z", "2026-02-03T15:31+01:00"] {
            let state = read(&[&format!("mde:isolation-until={text}")]);
            assert_eq!(state.until, Some(at("2026-02-03T14:31:00Z")), "{text}");
            assert_eq!(state.tags(P), ["mde:isolation-until=2026-02-03T14:31Z"], "{text}");
        }
    }

    #[test]
    fn of_two_values_the_safer_counts() {
        let other = "b".repeat(40);
        let two = ["mde:isolation=released", "mde:isolation=isolated", "mde:isolation-until=2026-02-03T14:31Z"];
        let state = read(&[&two[..], &["mde:isolation-until=2026-02-03T15:00Z"]].concat());
        assert_eq!((state.isolation, state.until), (Some(Isolation::Isolated), Some(at("2026-02-03T15:00:00Z"))));
        let state = read(&[&format!("mde:isolation-id={M}"), &format!("mde:isolation-id={other}")]);
        assert_eq!(state.machine_id, None);
    }

    #[test]
    fn changes_of_the_state() {
        let now = at("2026-02-03T10:30:30Z");
        let until = Some(at("2026-02-03T14:31:00Z"));
        let failed = Some((Fate::Failed, Some(Reason::ActionFailed)));
        let denied = State { request: Some((Fate::Denied, Some(Reason::Paused))), ..State::default() };
        let isolating = State { isolation: Some(Isolation::Isolating), ..isolated() };
        let releasing = State { isolation: Some(Isolation::Releasing), action_id: Some("r".into()), ..isolated() };
        let released = State { isolation: Some(Isolation::Released), ..State::default() };
        let on = |action: &str| (M.to_owned(), action.to_owned());
        let to_isolating = |(machine_id, action_id)| Change::Isolating { machine_id, action_id, until };
        let to_isolated = |(machine_id, action_id)| Change::Isolated { machine_id, action_id, until };
        let to_releasing = |(machine_id, action_id)| Change::Releasing { machine_id, action_id };
        let rows = [
            ("nothing", denied.clone(), Change::Unchanged, denied.clone()),
            ("accepted", denied.clone(), to_isolating(on(A)), isolating.clone()),
            ("after a release", released.clone(), to_isolating(on(A)), isolating.clone()),
            ("isolated already", denied, to_isolated(on(A)), isolated()),
            ("succeeded", isolating.clone(), Change::Ended(Outcome::Isolated), isolated()),
            (
                "failed",
                isolating.clone(),
                Change::Ended(Outcome::NotIsolated),
                State { request: failed, ..State::default() },
            ),
            ("release accepted", isolated(), to_releasing(on("r")), releasing.clone()),
            ("release succeeded", releasing.clone(), Change::Ended(Outcome::Released), released.clone()),
            (
                "release failed",
                releasing,
                Change::Ended(Outcome::StillIsolated),
                State { action_id: Some("r".into()), request: failed, ..isolated() },
            ),
            ("released by someone else", isolated(), Change::Released, released),
            (
                "refused while isolated",
                isolated(),
                Change::NotDone(Reason::Forbidden),
                State { request: Some((Fate::Failed, Some(Reason::Forbidden))), ..isolated() },
            ),
            (
                "refused at first",
                State::default(),
                Change::NotDone(Reason::Protected),
                State { request: Some((Fate::Denied, Some(Reason::Protected))), ..State::default() },
            ),
        ];
        for (name, before, change, expected) in rows {
            assert_eq!(before.after(&change, now), expected, "{name}");
        }
    }

    #[test]
    fn a_release_that_was_due_and_failed_is_put_off_by_an_hour() {
        let now = at("2026-02-03T14:31:20Z");
        let later = Some(at("2026-02-03T15:32:00Z"));
        for change in [Change::Ended(Outcome::StillIsolated), Change::NotDone(Reason::Refused)] {
            assert_eq!(isolated().after(&change, now).until, later, "{change:?}");
        }
        // A dry run changes nothing but the fate, and the same run later changes nothing at all.
        let dry = isolated().after(&Change::NotDone(Reason::DryRun), now);
        assert_eq!(dry.until, isolated().until);
        assert_eq!(dry.after(&Change::NotDone(Reason::DryRun), now), dry);
    }

    #[test]
    fn an_end_is_in_whole_minutes_and_never_early() {
        let rows = [
            ("2026-02-03T10:30:00Z", 3600, "2026-02-03T11:30Z"),
            ("2026-02-03T10:30:00.000000001Z", 3600, "2026-02-03T11:31Z"),
            ("2026-02-03T10:30:59Z", 60, "2026-02-03T10:32Z"),
            ("2026-12-31T23:59:30Z", 60, "2027-01-01T00:01Z"),
        ];
        for (now, seconds, expected) in rows {
            let until = until(at(now), Duration::from_secs(seconds)).unwrap();
            assert_eq!(until_text(until), expected, "{now}");
        }
        assert_eq!(until(Timestamp::MAX, Duration::from_secs(60)), None);
    }

    proptest! {
        #[test]
        fn a_state_is_read_as_it_was_written(
            isolation in prop::option::of(prop::sample::select(Isolation::ALL.to_vec())),
            machine in prop::option::of("[0-9a-f]{40}"),
            action in prop::option::of("[0-9a-zA-Z-]{1,64}"),
            minute in prop::option::of(0i64..200_000_000),
            fate in prop::option::of(prop::sample::select(Fate::ALL.to_vec())),
            reason in prop::option::of(prop::sample::select(Reason::ALL.to_vec())),
        ) {
            let state = State {
                isolation,
                machine_id: machine,
                action_id: action,
                until: minute.map(|minute| Timestamp::from_second(minute * 60).unwrap()),
                unreadable_until: None,
                request: fate.map(|fate| (fate, reason)),
            };
            let tags = state.tags(P);
            prop_assert_eq!(&State::read(P, &tags), &state);
            prop_assert!(tags.iter().all(|tag| tag.len() <= 100));
        }

        /// A message that is worked twice writes the same.
        #[test]
        fn a_change_that_happens_twice_happened_once(
            isolation in prop::option::of(prop::sample::select(Isolation::ALL.to_vec())),
            over in prop::option::of(any::<bool>()),
            which in 0usize..10,
        ) {
            let now = at("2026-02-03T10:31:20Z");
            let until = over.map(|over| if over { now } else { at("2026-02-04T00:00:00Z") });
            let state = State { isolation, until, machine_id: Some(M.into()), ..State::default() };
            let (machine_id, action_id) = (M.to_owned(), A.to_owned());
            let changes = [
                Change::Unchanged,
                Change::Isolating { machine_id: machine_id.clone(), action_id: action_id.clone(), until },
                Change::Isolated { machine_id: machine_id.clone(), action_id: action_id.clone(), until },
                Change::Releasing { machine_id, action_id },
                Change::Released,
                Change::Ended(Outcome::Isolated),
                Change::Ended(Outcome::Released),
                Change::Ended(Outcome::NotIsolated),
                Change::Ended(Outcome::StillIsolated),
                Change::NotDone(Reason::Refused),
            ];
            let once = state.after(&changes[which], now);
            prop_assert_eq!(once.after(&changes[which], now), once);
        }

        #[test]
        fn no_tag_is_a_panic(tags in prop::collection::vec("mde:(isolation|isolation-until|isolation-id|request)=.{0,30}", 0..5)) {
            let state = State::read(P, &tags);
            // What was read is written in one form only.
            let written = state.tags(P);
            let again = State::read(P, &written);
            prop_assert_eq!(again.tags(P), written);
        }

        #[test]
        fn an_end_comes_after_its_time_and_within_a_minute(second in 0i64..10_000_000_000, ttl in 60u64..40_000_000) {
            let now = Timestamp::from_second(second).unwrap();
            let until = until(now, Duration::from_secs(ttl)).unwrap();
            let late = until.as_second() - second - i64::try_from(ttl).unwrap();
            prop_assert!((0..60).contains(&late), "{late}");
        }
    }
}
