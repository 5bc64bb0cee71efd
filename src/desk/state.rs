//! What the desk decides, given the ledger, the brake and the time. Pure.
//!
//! # A reservation's life
//! Granted, it may be posted: begun within [`GRANT_LIFETIME`] and ended within [`POST_LIMIT`] after that, by its holder's
//! clock, which began to run before it asked. Until its holder says what became of it, or that time is over, it is
//! *outstanding*: a pause waits for it. After that it counts as posted, because it may have been.
//!
//! It counts for an hour from the latest moment at which it may have been posted, so in any hour no more are posted than
//! the cap says, wherever the hour begins. Asked for again by somebody who has seen that it was not posted (it was given
//! back, or its holder died and its time is over), it does not count twice.
//!
//! # Clocks
//! The ledger's times are those of the desk that wrote them, so the caps are as exact as the machines' clocks agree. What
//! must not depend on that (how long a grant may be outstanding) is measured by this process's own clock from when it
//! learned of the grant. A grant in another desk's ledger that is older than [`SKEW`] beyond its time is over for
//! certain.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::brake::Brake;
use super::ledger::{Entry, HOUR, Isolation, Ledger, Limits, Record, Sweeping, Use};
use super::protocol::{Answer, Report, What, millis};
use super::{GRANT_LIFETIME, POST_LIMIT, Settings};

/// After this nothing of a grant can be posted any more, counted from when it was given.
pub(super) const GRANT_LIMIT: Duration = GRANT_LIFETIME.saturating_add(POST_LIMIT);

/// How far the clocks of two machines may be apart. Time services keep them within a second.
const SKEW: Duration = Duration::from_secs(30);

/// The longest lease of a sweep.
const LEASE_LIMIT: Duration = Duration::from_secs(3_600);

/// The longest time between two sweeps.
const INTERVAL_LIMIT: Duration = Duration::from_secs(30 * 86_400);

/// Hosts that are remembered of a sweep. More than this have never been seen with a block tag at once; those beyond it
/// count as new at the next start, which is the safe side.
const UNTOUCHED_LIMIT: usize = 5_000;

/// A moment, by the calendar and by a clock of this process that only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) wall: Timestamp,
    pub(super) mono: Duration,
}

/// Who wants to isolate what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask<'a> {
    pub(super) id: Uuid,
    pub(super) machine_id: &'a str,
    pub(super) host_id: u64,
}

/// What a sweep is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Go on.
    Go,
    /// The brake is on because of the first sweep.
    Paused,
    /// The brake is to be put on now, because of so many new ones.
    Engage(usize),
}

/// Whether an entry may still be posted, by the calendar and with room for clocks that disagree, whatever was heard of it.
pub(super) fn may_be_open(entry: &Entry, now: Timestamp) -> bool {
    entry.granted + GRANT_LIMIT + SKEW > now
}

/// The ledger, and what only this process knows of it.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    /// Grants whose POST may still be under way: until when, by this process's clock.
    live: BTreeMap<Uuid, Duration>,
    /// The last word on each machine, when that is newer than what the ledger says but says the same.
    heard: HashMap<String, Timestamp>,
}

impl State {
    /// Takes over what others wrote.
    pub(super) fn absorb(&mut self, ledger: &Ledger, now: Now) {
        self.ledger.merge(ledger);
        self.learn(now);
    }

    /// Takes over reservations that were made without a desk.
    pub(super) fn absorb_entries(&mut self, entries: &BTreeMap<Uuid, Entry>, now: Now) {
        self.ledger.merge_entries(entries);
        self.learn(now);
    }

    /// Notes since when this process knows of grants, and which are over.
    fn learn(&mut self, now: Now) {
        for (id, entry) in &mut self.ledger.entries {
            // A clock that was far ahead must not block the cap for longer than the hour that is due.
            entry.at = entry.at.min(now.wall + GRANT_LIMIT + SKEW);
            if entry.state == Use::Granted && entry.at + SKEW > now.wall {
                self.live.entry(*id).or_insert(now.mono + GRANT_LIMIT);
            }
        }
        self.advance(now);
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, now: Now) {
        self.live.retain(|_, until| *until > now.mono);
        let entries = &mut self.ledger.entries;
        let silent: Vec<Uuid> = entries
            .iter()
            .filter(|(id, entry)| entry.state == Use::Granted && !self.live.contains_key(id))
            .map(|(id, _)| *id)
            .collect();
        for id in silent {
            let entry = &entries[&id];
            // Defender took a later one for the same machine, which it does not while another is open.
            let later = entries.values().any(|other| {
                other.machine_id == entry.machine_id && other.state == Use::Posted && other.granted > entry.granted
            });
            if let Some(entry) = entries.get_mut(&id) {
                entry.state = if later { Use::Withdrawn } else { Use::Lapsed };
            }
        }
        self.ledger.prune(now.wall);
        let machines = &self.ledger.machines;
        self.heard.retain(|machine_id, _| machines.contains_key(machine_id));
    }

    /// How long until nothing that was granted can be posted any more, if nobody says a word.
    pub(super) fn outstanding(&self, now: Now) -> Option<Duration> {
        self.live.values().max().map(|until| until.saturating_sub(now.mono)).filter(|left| !left.is_zero())
    }

    /// Whether a machine may be isolated. Granting it is noted.
    pub(super) fn reserve(&mut self, ask: Ask<'_>, brake: &Brake, settings: &Settings, now: Now) -> Answer {
        if brake.paused {
            return Answer::Paused;
        }
        if self.ledger.entries.get(&ask.id).is_some_and(|entry| entry.state == Use::Granted) {
            // The answer to the first time did not arrive.
            return Answer::Granted;
        }
        if let Some(wait) = self.busy(ask, now) {
            return Answer::Busy { wait_ms: millis(wait) };
        }
        // Whoever asks has looked: what may have been posted for this machine was not, unless it still may be.
        let theirs = |entry: &Entry| entry.machine_id == ask.machine_id && entry.state < Use::Withdrawn;
        let (under_way, repeated): (Vec<Uuid>, Vec<Uuid>) = self
            .ledger
            .entries
            .iter()
            .filter(|(_, entry)| theirs(entry))
            .map(|(id, _)| *id)
            .partition(|id| self.live.contains_key(id));
        let mut counted: Vec<Timestamp> = self
            .ledger
            .entries
            .iter()
            .filter(|(id, entry)| entry.counts(now.wall) && !repeated.contains(id))
            .map(|(_, entry)| entry.at)
            .collect();
        let cap = brake.per_hour(settings.isolations_per_hour, now.wall) as usize;
        if counted.len() >= cap {
            if counted.len() - under_way.len() < cap {
                // Soon it is known to have been posted, or the same machine's place.
                let until = under_way.iter().filter_map(|id| self.live.get(id)).max();
                return Answer::Busy { wait_ms: until.map_or(0, |until| millis(until.saturating_sub(now.mono))) };
            }
            counted.sort_unstable();
            // When as many are an hour old as there are too many.
            let leaving = if cap == 0 { now.wall } else { counted[counted.len() - cap] };
            let free_at = leaving + HOUR;
            let other_cap = brake.cap_now(now.wall).map(|cap| cap.until);
            return Answer::RateLimited { free_at: other_cap.map_or(free_at, |until| free_at.min(until)) };
        }
        let isolated = self.ledger.maybe_isolated(now.wall);
        if !isolated.contains(ask.machine_id) && isolated.len() >= settings.max_isolated as usize {
            return Answer::TooManyIsolated;
        }
        for id in repeated {
            if let Some(entry) = self.ledger.entries.get_mut(&id) {
                entry.state = Use::Withdrawn;
            }
        }
        self.ledger.entries.insert(ask.id, granted(ask, now));
        self.live.insert(ask.id, now.mono + GRANT_LIMIT);
        Answer::Granted
    }

    /// How long somebody else may still isolate this machine. Events of one host have one holder at a time, so for the
    /// same host that holder is gone or cut off, and begins nothing once [`GRANT_LIFETIME`] is over: what it did begin
    /// shows among the machine's actions, or Defender refuses the second.
    fn busy(&self, ask: Ask<'_>, now: Now) -> Option<Duration> {
        let others =
            self.ledger.entries.iter().filter(|(id, entry)| **id != ask.id && entry.machine_id == ask.machine_id);
        let until = others.filter_map(|(id, entry)| {
            let until = *self.live.get(id)?;
            Some(if entry.host_id == ask.host_id { until.saturating_sub(POST_LIMIT) } else { until })
        });
        until.max().map(|until| until.saturating_sub(now.mono)).filter(|left| !left.is_zero())
    }

    /// Notes what became of an isolation. Reports may come twice, late, and for reservations that nobody knows.
    pub(super) fn report(&mut self, report: &Report, now: Now) {
        let happened = now.wall.checked_sub(Duration::from_millis(report.age_ms)).unwrap_or(now.wall);
        match &report.what {
            What::Posted { id, machine_id, host_id } => {
                self.used(Ask { id: *id, machine_id, host_id: *host_id }, Use::Posted, happened, now);
            }
            What::NotPosted { id, machine_id, host_id } => {
                self.used(Ask { id: *id, machine_id, host_id: *host_id }, Use::Withdrawn, happened, now);
            }
            What::Isolated { isolation } => self.isolated(isolation, happened),
            What::Released { machine_id, host_id } => self.released(machine_id, *host_id, happened),
        }
    }

    fn used(&mut self, ask: Ask<'_>, state: Use, happened: Timestamp, now: Now) {
        self.live.remove(&ask.id);
        if state == Use::Withdrawn && !self.ledger.entries.contains_key(&ask.id) {
            // Given back is as never granted.
            return;
        }
        let entry = self.ledger.entries.entry(ask.id).or_insert_with(|| granted(ask, now));
        if state > entry.state {
            entry.state = state;
            entry.at = happened;
        }
    }

    fn isolated(&mut self, isolation: &Isolation, happened: Timestamp) {
        if !self.is_news(&isolation.machine_id, happened) {
            return;
        }
        // What may have been posted was. One that is outstanding stays so: its POST may be another than the one seen.
        for entry in self.ledger.entries.values_mut() {
            let theirs = entry.machine_id == isolation.machine_id && entry.granted <= happened;
            if theirs && matches!(entry.state, Use::Granted | Use::Lapsed) {
                entry.state = Use::Posted;
            }
        }
        let same = |record: &Record| !record.released && record.isolation == *isolation;
        if !self.ledger.machines.get(&isolation.machine_id).is_some_and(same) {
            let record = Record { isolation: isolation.clone(), heard: happened, released: false };
            self.ledger.machines.insert(isolation.machine_id.clone(), record);
        }
    }

    fn released(&mut self, machine_id: &str, host_id: u64, happened: Timestamp) {
        if !self.is_news(machine_id, happened) {
            return;
        }
        let record = self.ledger.machines.entry(machine_id.to_owned()).or_insert_with(|| Record {
            isolation: Isolation {
                machine_id: machine_id.to_owned(),
                host_id,
                host_name: String::new(),
                action_id: None,
                since: happened,
                until: None,
            },
            heard: happened,
            released: true,
        });
        (record.heard, record.released) = (happened, true);
    }

    /// Whether this is the latest word on the machine; it is remembered as such.
    fn is_news(&mut self, machine_id: &str, happened: Timestamp) -> bool {
        let known = self.ledger.machines.get(machine_id).map(|record| record.heard);
        let known = known.max(self.heard.get(machine_id).copied());
        let news = known.is_none_or(|known| known <= happened);
        if news {
            self.heard.insert(machine_id.to_owned(), happened);
        }
        news
    }

    /// Whether a sweep may begin: nobody sweeps, and the last one began `interval` ago; or how long to wait.
    pub(super) fn sweep_begin(
        &mut self,
        id: Uuid,
        interval: Duration,
        lease: Duration,
        now: Now,
    ) -> Result<(), Duration> {
        let interval = interval.min(INTERVAL_LIMIT);
        if let Some(last) = self.ledger.sweep.as_ref().filter(|last| last.id != id) {
            let left = |until: Timestamp| Duration::try_from(now.wall.duration_until(until)).unwrap_or_default();
            // Clocks that were ahead must not stop sweeps for longer than they last.
            let lease = if last.done { Duration::ZERO } else { left(last.until).min(LEASE_LIMIT) };
            let wait = lease.max(left(last.begun + interval).min(interval));
            if !wait.is_zero() {
                return Err(wait);
            }
        }
        let until = now.wall + lease.min(LEASE_LIMIT);
        self.ledger.sweep = Some(Sweeping { id, begun: now.wall, until, done: false });
        Ok(())
    }

    /// A sweep has ended.
    pub(super) fn sweep_done(&mut self, id: Uuid) {
        if let Some(sweep) = self.ledger.sweep.as_mut().filter(|sweep| sweep.id == id) {
            sweep.done = true;
        }
    }

    /// A sweep found these hosts with a block tag that nobody has touched. `begun` is when this process began to serve,
    /// if nobody in the deployment did then.
    ///
    /// The first sweep after that decides: hosts that no sweep of the deployment found before are new, and more of them
    /// than the setting allows put the brake on. They stay held until somebody takes it off, who answers for them: then
    /// they are known, and no later start asks about them again while their tags stay. A host is forgotten with its tag.
    pub(super) fn first_sweep(
        &mut self,
        hosts: &BTreeSet<u64>,
        begun: Option<Timestamp>,
        brake: &Brake,
        settings: &Settings,
        now: Now,
    ) -> Found {
        let hosts: BTreeSet<u64> = hosts.iter().copied().take(UNTOUCHED_LIMIT).collect();
        let told = self.ledger.untouched.told;
        let is_first = begun.is_some_and(|begun| told.is_none_or(|told| told < begun));
        let untouched = &mut self.ledger.untouched;
        // Later than before, whatever the clock says: the newer one wins when ledgers are merged.
        let next = told.map_or(now.wall, |told| now.wall.max(told + Duration::from_micros(1)));
        untouched.told = Some(next);
        if !untouched.held.is_empty() {
            if brake.paused {
                untouched.held = hosts;
                // All their tags are gone: nothing is held, though the brake stays on.
                return if untouched.held.is_empty() { Found::Go } else { Found::Paused };
            }
            untouched.known.append(&mut untouched.held);
        }
        let new = hosts.difference(&untouched.known).count();
        if is_first && new > settings.first_sweep as usize {
            untouched.held = hosts;
            return Found::Engage(new);
        }
        untouched.known = hosts;
        Found::Go
    }

    /// Notes the settings, for people.
    pub(super) fn show_limits(&mut self, settings: &Settings) {
        let Settings { isolations_per_hour: per_hour, max_isolated: at_once, .. } = *settings;
        self.ledger.limits = Some(Limits { per_hour, at_once });
    }
}

fn granted(ask: Ask<'_>, now: Now) -> Entry {
    Entry {
        machine_id: ask.machine_id.to_owned(),
        host_id: ask.host_id,
        granted: now.wall,
        at: now.wall + GRANT_LIMIT,
        state: Use::Granted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desk::brake::Cap;

    const MINUTE: u64 = 60;

    /// So many seconds after the tests' beginning.
    fn at(second: u64) -> Now {
        let start = Timestamp::from_second(1_780_000_000).unwrap();
        Now { wall: start + Duration::from_secs(second), mono: Duration::from_secs(second) }
    }

    fn settings(per_hour: u32, at_once: u32) -> Settings {
        Settings { isolations_per_hour: per_hour, max_isolated: at_once, ..Settings::default() }
    }

    fn ask(id: u128, machine_id: &str) -> Ask<'_> {
        Ask { id: Uuid::from_u128(id), machine_id, host_id: 1 }
    }

    fn report(what: What) -> Report {
        Report { age_ms: 0, what }
    }

    fn posted(id: u128, machine_id: &str) -> Report {
        report(What::Posted { id: Uuid::from_u128(id), machine_id: machine_id.to_owned(), host_id: 1 })
    }

    fn not_posted(id: u128, machine_id: &str) -> Report {
        report(What::NotPosted { id: Uuid::from_u128(id), machine_id: machine_id.to_owned(), host_id: 1 })
    }

    fn isolation(machine_id: &str, now: Now) -> Isolation {
        Isolation {
            machine_id: machine_id.to_owned(),
            host_id: 1,
            host_name: "host".to_owned(),
            action_id: Some("action".to_owned()),
            since: now.wall,
            until: None,
        }
    }

    fn isolated(machine_id: &str, now: Now) -> Report {
        report(What::Isolated { isolation: isolation(machine_id, now) })
    }

    fn released(machine_id: &str) -> Report {
        report(What::Released { machine_id: machine_id.to_owned(), host_id: 1 })
    }

    /// A desk that does what it is told, at one brake.
    struct Desk {
        state: State,
        brake: Brake,
        settings: Settings,
    }

    impl Desk {
        fn new(per_hour: u32, at_once: u32) -> Self {
            Self { state: State::default(), brake: Brake::default(), settings: settings(per_hour, at_once) }
        }

        fn reserve(&mut self, ask: Ask<'_>, now: Now) -> Answer {
            self.state.advance(now);
            self.state.reserve(ask, &self.brake, &self.settings, now)
        }

        fn report(&mut self, report: &Report, now: Now) {
            self.state.advance(now);
            self.state.report(report, now);
        }

        /// Another desk, which knows what was retained, and a clock of its own.
        fn take_over(&mut self, now: Now) {
            let retained = self.state.ledger.clone();
            self.state = State::default();
            self.state.absorb(&retained, now);
        }
    }

    #[test]
    fn the_cap_counts_what_was_posted_or_may_have_been() {
        let mut desk = Desk::new(2, 100);
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Granted);
        desk.report(&posted(1, "a"), at(3));
        assert_eq!(desk.reserve(ask(2, "b"), at(10)), Answer::Granted);
        // One is outstanding, then it may have been posted: either way the hour is full until the first is an hour old.
        let free_at = at(3).wall + HOUR;
        for second in [11, 60, 30 * MINUTE, 60 * MINUTE + 2] {
            assert_eq!(desk.reserve(ask(3, "c"), at(second)), Answer::RateLimited { free_at }, "{second}");
        }
        assert_eq!(desk.reserve(ask(3, "c"), at(60 * MINUTE + 3)), Answer::Granted);
    }

    #[test]
    fn what_was_given_back_does_not_count() {
        let mut desk = Desk::new(1, 1);
        for n in 0..5 {
            assert_eq!(desk.reserve(ask(n, "a"), at(0)), Answer::Granted);
            desk.report(&not_posted(n, "a"), at(0));
        }
        assert_eq!(desk.reserve(ask(9, "b"), at(1)), Answer::Granted);
    }

    #[test]
    fn the_same_machine_asked_for_again_counts_once() {
        let mut desk = Desk::new(2, 100);
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Granted);
        // The same question, because its answer was lost.
        assert_eq!(desk.reserve(ask(1, "a"), at(1)), Answer::Granted);
        // Its holder died; the event came to somebody else.
        assert_eq!(desk.reserve(ask(2, "a"), at(2)), Answer::Busy { wait_ms: 3_000 });
        assert_eq!(desk.reserve(ask(2, "a"), at(5)), Answer::Granted);
        desk.report(&not_posted(2, "a"), at(6));
        // Its time is over.
        assert_eq!(desk.reserve(ask(3, "a"), at(60)), Answer::Granted);
        assert_eq!(desk.state.ledger.within_hour(at(60).wall), 1);
        // What is known to have been posted counts, and so does what is posted after it.
        desk.report(&posted(3, "a"), at(61));
        desk.report(&released("a"), at(90));
        assert_eq!(desk.reserve(ask(4, "a"), at(120)), Answer::Granted);
        assert!(matches!(desk.reserve(ask(5, "b"), at(121)), Answer::RateLimited { .. }));
    }

    #[test]
    fn another_host_of_the_same_machine_waits_until_nothing_can_be_posted() {
        let mut desk = Desk::new(10, 100);
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Granted);
        let other = Ask { host_id: 2, ..ask(2, "a") };
        assert_eq!(desk.reserve(other, at(5)), Answer::Busy { wait_ms: 10_000 });
        assert_eq!(desk.reserve(other, at(15)), Answer::Granted);
        desk.report(&posted(2, "a"), at(16));
        assert_eq!(desk.reserve(ask(3, "a"), at(17)), Answer::Granted);
    }

    #[test]
    fn the_last_place_goes_to_the_machine_whose_holder_died_in_it() {
        let mut desk = Desk::new(1, 100);
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Granted);
        // The place may be taken by what the dead holder posted: soon it cannot be any more.
        assert_eq!(desk.reserve(ask(2, "a"), at(6)), Answer::Busy { wait_ms: 9_000 });
        assert!(matches!(desk.reserve(ask(3, "b"), at(7)), Answer::RateLimited { .. }));
        assert_eq!(desk.reserve(ask(2, "a"), at(15)), Answer::Granted);
    }

    #[test]
    fn a_silent_grant_before_one_that_defender_took_was_not_posted() {
        let mut desk = Desk::new(2, 100);
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Granted);
        assert_eq!(desk.reserve(ask(2, "a"), at(6)), Answer::Granted);
        desk.report(&posted(2, "a"), at(7));
        assert!(matches!(desk.reserve(ask(3, "b"), at(8)), Answer::RateLimited { .. }));
        assert_eq!(desk.reserve(ask(3, "b"), at(15)), Answer::Granted);
    }

    #[test]
    fn a_late_word_of_a_holder_that_was_replaced_counts() {
        let mut desk = Desk::new(2, 100);
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Granted);
        assert_eq!(desk.reserve(ask(2, "a"), at(6)), Answer::Granted);
        // Both may still be under way.
        assert_eq!(desk.state.outstanding(at(6)), Some(Duration::from_secs(15)));
        desk.report(&not_posted(2, "a"), at(7));
        assert_eq!(desk.state.outstanding(at(7)), Some(Duration::from_secs(8)));
        desk.report(&posted(1, "a"), at(8));
        assert_eq!(desk.state.outstanding(at(8)), None);
        assert_eq!(desk.state.ledger.within_hour(at(8).wall), 1);
    }

    #[test]
    fn no_more_machines_are_isolated_at_once_than_allowed() {
        let mut desk = Desk::new(100, 2);
        desk.report(&isolated("a", at(0)), at(0));
        assert_eq!(desk.reserve(ask(1, "b"), at(1)), Answer::Granted);
        assert_eq!(desk.reserve(ask(2, "c"), at(2)), Answer::TooManyIsolated);
        // One that counts already may be posted again.
        assert_eq!(desk.reserve(ask(3, "a"), at(3)), Answer::Granted);
        desk.report(&not_posted(3, "a"), at(4));
        desk.report(&released("a"), at(5));
        assert_eq!(desk.reserve(ask(2, "c"), at(6)), Answer::Granted);
        desk.report(&posted(2, "c"), at(7));
        assert_eq!(desk.state.ledger.count_isolated(at(8).wall), 2);
        // Nobody ever said a word of `b`: after the hour it is taken for not isolated.
        assert_eq!(desk.state.ledger.count_isolated(at(2 * 60 * MINUTE).wall), 0);
    }

    #[test]
    fn isolations_count_until_they_are_over_however_long() {
        let mut desk = Desk::new(100, 1);
        desk.report(&isolated("a", at(0)), at(0));
        desk.take_over(at(90 * 86_400));
        assert_eq!(desk.reserve(ask(1, "b"), at(90 * 86_400)), Answer::TooManyIsolated);
        desk.report(&released("a"), at(90 * 86_400 + 1));
        assert_eq!(desk.reserve(ask(1, "b"), at(90 * 86_400 + 2)), Answer::Granted);
    }

    #[test]
    fn the_brake_and_the_cap_that_was_set_decide() {
        let mut desk = Desk::new(1, 100);
        desk.brake.paused = true;
        assert_eq!(desk.reserve(ask(1, "a"), at(0)), Answer::Paused);
        desk.brake.paused = false;
        let cap = Cap { per_hour: 3, at: at(0).wall, until: at(600).wall, by: "ann".to_owned() };
        desk.brake.cap = Some(cap);
        for (id, machine) in [(1, "a"), (2, "b"), (3, "c")] {
            assert_eq!(desk.reserve(ask(id, machine), at(1)), Answer::Granted);
            desk.report(&posted(id, machine), at(1));
        }
        // There may be room when the cap is over, which is sooner.
        assert_eq!(desk.reserve(ask(4, "d"), at(2)), Answer::RateLimited { free_at: at(600).wall });
        assert_eq!(desk.reserve(ask(4, "d"), at(600)), Answer::RateLimited { free_at: at(1).wall + HOUR });
        desk.brake.cap = None;
        desk.settings.isolations_per_hour = 0;
        assert_eq!(desk.reserve(ask(4, "d"), at(9_000)), Answer::RateLimited { free_at: at(9_000).wall + HOUR });
    }

    #[test]
    fn a_grant_is_outstanding_until_its_holder_speaks_or_its_time_is_over() {
        let mut desk = Desk::new(10, 100);
        assert_eq!(desk.state.outstanding(at(0)), None);
        desk.reserve(ask(1, "a"), at(0));
        desk.reserve(ask(2, "b"), at(2));
        assert_eq!(desk.state.outstanding(at(2)), Some(GRANT_LIMIT));
        desk.report(&posted(2, "b"), at(3));
        assert_eq!(desk.state.outstanding(at(3)), Some(Duration::from_secs(12)));
        // Somebody else sees it isolated: that may have been another request.
        desk.report(&isolated("a", at(4)), at(4));
        assert_eq!(desk.state.outstanding(at(4)), Some(Duration::from_secs(11)));
        // A new desk measures by its own clock, from when it learned of the grant.
        desk.reserve(ask(3, "c"), at(5));
        desk.take_over(at(10));
        assert_eq!(desk.state.outstanding(at(10)), Some(GRANT_LIMIT));
        desk.state.advance(at(25));
        assert_eq!(desk.state.outstanding(at(25)), None);
        assert_eq!(desk.state.ledger.within_hour(at(25).wall), 3);
    }

    #[test]
    fn a_clock_that_was_wrong_blocks_the_cap_no_longer_than_an_hour() {
        let mut desk = Desk::new(1, 100);
        desk.reserve(ask(1, "a"), at(86_400));
        desk.take_over(at(0));
        assert!(matches!(desk.reserve(ask(2, "b"), at(1)), Answer::RateLimited { .. }));
        assert_eq!(desk.reserve(ask(2, "b"), at(61 * MINUTE)), Answer::Granted);
    }

    #[test]
    fn reports_may_come_late_and_twice() {
        let mut desk = Desk::new(10, 100);
        let late = Report { age_ms: 5_000, what: isolated("a", at(5)).what };
        desk.report(&released("a"), at(8));
        // It happened before the release.
        desk.report(&late, at(10));
        assert_eq!(desk.state.ledger.isolated(), []);
        assert!(desk.state.ledger.was_released(1, at(8).wall));
        assert!(!desk.state.ledger.was_released(1, at(9).wall));
        desk.report(&isolated("a", at(12)), at(12));
        let before = desk.state.ledger.clone();
        desk.report(&isolated("a", at(12)), at(13));
        assert_eq!(desk.state.ledger, before, "nothing new is not worth writing");
        // The release happened before the isolation was last seen.
        desk.report(&Report { age_ms: 1_500, what: released("a").what }, at(14));
        assert_eq!(desk.state.ledger.isolated(), [isolation("a", at(12))]);
    }

    #[test]
    fn sweeps_come_one_at_a_time_and_at_their_interval() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (interval, lease) = (Duration::from_secs(60), Duration::from_secs(90));
        let mut desk = Desk::new(1, 1);
        assert_eq!(desk.state.sweep_begin(one, interval, lease, at(0)), Ok(()));
        // The answer was lost: the same right.
        assert_eq!(desk.state.sweep_begin(one, interval, lease, at(1)), Ok(()));
        assert_eq!(desk.state.sweep_begin(other, interval, lease, at(70)), Err(Duration::from_secs(21)));
        desk.take_over(at(70));
        desk.state.sweep_done(other);
        assert_eq!(desk.state.sweep_begin(other, interval, lease, at(70)), Err(Duration::from_secs(21)));
        desk.state.sweep_done(one);
        assert_eq!(desk.state.sweep_begin(other, interval, lease, at(70)), Ok(()));
        desk.state.sweep_done(other);
        assert_eq!(desk.state.sweep_begin(one, interval, lease, at(100)), Err(Duration::from_secs(30)));
        assert_eq!(desk.state.sweep_begin(one, interval, lease, at(130)), Ok(()));
        // Its holder died.
        assert_eq!(desk.state.sweep_begin(other, interval, lease, at(220)), Ok(()));
    }

    /// One sweep: which process asks (by when it began, if it was the first), what it found, and what it is told.
    fn sweep(desk: &mut Desk, begun: Option<u64>, found: &[u64], second: u64) -> Found {
        let begun = begun.map(|second| at(second).wall);
        let hosts = found.iter().copied().collect();
        let told = desk.state.first_sweep(&hosts, begun, &desk.brake, &desk.settings, at(second));
        desk.brake.paused |= matches!(told, Found::Engage(_));
        told
    }

    #[test]
    fn a_start_that_finds_too_many_untouched_tags_begins_paused_until_somebody_answers_for_them() {
        let mut desk = Desk::new(10, 100);
        let tags = [1, 2, 3, 4];
        assert_eq!(sweep(&mut desk, Some(0), &tags, 10), Found::Engage(4));
        assert_eq!(sweep(&mut desk, Some(0), &tags, 70), Found::Paused);
        // A restart changes nothing.
        desk.take_over(at(100));
        assert_eq!(sweep(&mut desk, Some(100), &tags, 110), Found::Paused);
        assert_eq!(desk.state.ledger.held_by_first_sweep(), 4);
        desk.brake.paused = false;
        assert_eq!(sweep(&mut desk, Some(100), &tags, 170), Found::Go);
        assert_eq!(desk.state.ledger.held_by_first_sweep(), 0);
        // A later start, the same tags and a few new ones: nothing to ask.
        desk.take_over(at(200));
        assert_eq!(sweep(&mut desk, Some(200), &[1, 2, 3, 4, 5, 6, 7], 210), Found::Go);
        // More new ones than allowed.
        desk.take_over(at(300));
        assert_eq!(sweep(&mut desk, Some(300), &[3, 4, 11, 12, 13, 14], 310), Found::Engage(4));
    }

    #[test]
    fn a_resume_while_nobody_served_counts_too() {
        let mut desk = Desk::new(10, 100);
        assert_eq!(sweep(&mut desk, Some(0), &[1, 2, 3, 4], 10), Found::Engage(4));
        desk.brake.paused = false;
        desk.take_over(at(100));
        assert_eq!(sweep(&mut desk, Some(100), &[1, 2, 3, 4, 5, 6, 7], 110), Found::Go);
    }

    #[test]
    fn few_tags_and_tags_of_a_running_deployment_are_let_through() {
        let mut desk = Desk::new(10, 100);
        assert_eq!(sweep(&mut desk, Some(0), &[1, 2, 3], 10), Found::Go);
        // A storm, whose events were lost.
        let storm: Vec<u64> = (1..100).collect();
        assert_eq!(sweep(&mut desk, Some(0), &storm, 70), Found::Go);
        // Another worker takes over: it began while others served, or was not the first to sweep.
        desk.take_over(at(80));
        assert_eq!(sweep(&mut desk, None, &(200..300).collect::<Vec<_>>(), 130), Found::Go);
        assert_eq!(sweep(&mut desk, Some(5), &(400..500).collect::<Vec<_>>(), 190), Found::Go);
    }

    #[test]
    fn a_host_is_forgotten_with_its_tag() {
        let mut desk = Desk::new(10, 100);
        assert_eq!(sweep(&mut desk, Some(0), &[1, 2, 3], 10), Found::Go);
        assert_eq!(sweep(&mut desk, Some(0), &[], 70), Found::Go);
        // The same hosts, tagged again while nobody looked, and one more.
        assert_eq!(sweep(&mut desk, Some(900), &[1, 2, 3, 4], 910), Found::Engage(4));
        // Somebody takes the tags away instead.
        assert_eq!(sweep(&mut desk, Some(900), &[], 970), Found::Go);
        assert_eq!(desk.state.ledger.held_by_first_sweep(), 0);
    }

    #[test]
    fn a_pause_by_hand_does_not_hide_what_a_start_found() {
        let mut desk = Desk::new(10, 100);
        desk.brake.paused = true;
        assert_eq!(sweep(&mut desk, Some(0), &[1, 2, 3, 4], 10), Found::Engage(4));
        assert_eq!(desk.state.ledger.held_by_first_sweep(), 4);
    }

    /// What a worker with a grant does.
    #[derive(Debug, Clone, Copy)]
    enum Holder {
        /// Posts after so many seconds and says so after so many more.
        Posts(u64, u64),
        /// Posts after so many seconds and dies.
        PostsAndDies(u64),
        /// Gives it back.
        Withdraws,
        /// Dies.
        Dies,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Reserve(u8, Holder),
        Release(u8),
        TakeOver,
    }

    fn step() -> impl Strategy<Value = (u64, Step)> {
        let holder = prop_oneof![
            (0_u64..15, 0_u64..4).prop_map(|(after, then)| Holder::Posts(after, then.min(14 - after.min(14)))),
            (0_u64..15).prop_map(Holder::PostsAndDies),
            Just(Holder::Withdraws),
            Just(Holder::Dies),
        ];
        let step = prop_oneof![
            8 => (0_u8..30, holder).prop_map(|(machine, holder)| Step::Reserve(machine, holder)),
            2 => (0_u8..30).prop_map(Step::Release),
            1 => Just(Step::TakeOver),
        ];
        (prop_oneof![0_u64..8, 0_u64..500], step)
    }

    proptest! {
        /// Whatever holders do and however often the desk dies: never more isolations in any hour than the cap, nor
        /// more machines isolated at once; and none that is not granted is outstanding.
        #[test]
        fn the_caps_hold_under_any_sequence(
            per_hour in 0_u32..6,
            at_once in 1_u32..8,
            steps in prop::collection::vec(step(), 1..150),
        ) {
            let mut desk = Desk::new(per_hour, at_once);
            // When each POST was made, and what is to be told when.
            let mut posts: Vec<(u64, String)> = Vec::new();
            let mut reports: Vec<(u64, Report)> = Vec::new();
            let mut isolated_now: BTreeMap<String, u64> = BTreeMap::new();
            let mut second = 0;
            for (id, (after, step)) in (1_u128..).zip(steps) {
                second += after;
                reports.sort_by_key(|(at, _)| *at);
                while reports.first().is_some_and(|(at, _)| *at <= second) {
                    let (when, report) = reports.remove(0);
                    desk.report(&report, at(when));
                }
                // A machine of which nobody says a word for an hour is not known to be isolated. Somebody looks in time.
                for (machine, posted) in &isolated_now {
                    if *posted <= second {
                        desk.report(&isolated(machine, at(second)), at(second));
                    }
                }
                match step {
                    Step::Reserve(machine, holder) => {
                        let machine = format!("m{machine}");
                        // Who asks has looked.
                        if isolated_now.get(&machine).is_some_and(|posted| *posted <= second) {
                            continue;
                        }
                        if desk.reserve(ask(id, &machine), at(second)) != Answer::Granted {
                            continue;
                        }
                        prop_assert!(desk.state.outstanding(at(second)) == Some(GRANT_LIMIT));
                        match holder {
                            // Defender refuses a second request for a machine.
                            Holder::Posts(after, then) if isolated_now.contains_key(&machine) => {
                                reports.push((second + after + then, not_posted(id, &machine)));
                            }
                            Holder::PostsAndDies(_) if isolated_now.contains_key(&machine) => {}
                            Holder::Posts(after, then) => {
                                posts.push((second + after, machine.clone()));
                                isolated_now.insert(machine.clone(), second + after);
                                reports.push((second + after + then, posted(id, &machine)));
                            }
                            Holder::PostsAndDies(after) => {
                                posts.push((second + after, machine.clone()));
                                isolated_now.insert(machine, second + after);
                            }
                            Holder::Withdraws => reports.push((second, not_posted(id, &machine))),
                            Holder::Dies => {}
                        }
                    }
                    Step::Release(machine) => {
                        let machine = format!("m{machine}");
                        if isolated_now.get(&machine).is_some_and(|posted| *posted <= second) {
                            isolated_now.remove(&machine);
                            desk.report(&released(&machine), at(second));
                        }
                    }
                    Step::TakeOver => desk.take_over(at(second)),
                }
                prop_assert!(isolated_now.len() <= at_once as usize);
            }
            posts.sort_unstable();
            for from in 0..posts.len() {
                let hour = posts[from..].iter().take_while(|(at, _)| *at < posts[from].0 + 3_600).count();
                prop_assert!(hour <= per_hour as usize, "{posts:?}");
            }
        }
    }
}
