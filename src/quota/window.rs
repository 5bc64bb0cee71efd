//! One account's calls of one family: its windows, who goes first in them, and how evenly they are spent.
//!
//! # Pace
//! A hunting query answers all that waits for it, so calls that are spread over the minute answer many requests, and the
//! same calls made in its first seconds answer those that came first: whoever comes after them is refused until the minute
//! is over. Hence half of a window may be spent at once, and what is left is spent evenly until others leave the window.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::{AGAIN, Class, FREE_AT_SECONDS, Word, millis};

/// How far the clocks of two desks may be apart. Time services keep them within a second.
const SKEW: Duration = Duration::from_secs(1);

/// Permits that one asker is given in one turn while others may want some.
const TURN: u32 = 10;

/// An asker that comes so much later than it was told has lost its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// The part of a paced window that may be spent at once is one in this many: some requests of the largest size.
const AT_ONCE: u32 = 2;

/// Uses by slot and by who noted them.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) limit: u32,
    /// For containment alone.
    pub(super) kept: u32,
    /// Whether lookups are spent evenly.
    pub(super) paced: bool,
    /// How long a use counts after its slot has ended.
    pub(super) stay: Duration,
    pub(super) slot_ms: u64,
    pub(super) uses: BTreeMap<(u64, Uuid), u32>,
}

impl Window {
    pub(super) fn slot_at(&self, now: Duration) -> u64 {
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX) / self.slot_ms
    }

    /// When what is noted under `key` counts no more.
    fn end(&self, (slot, by): (u64, Uuid), own: Uuid) -> Duration {
        let over = Duration::from_millis((slot + 1).saturating_mul(self.slot_ms));
        over + self.stay + if by == own { Duration::ZERO } else { SKEW }
    }

    pub(super) fn prune(&mut self, own: Uuid, now: Duration) {
        let gone: Vec<_> = self.uses.keys().copied().filter(|key| self.end(*key, own) <= now).collect();
        for key in gone {
            self.uses.remove(&key);
        }
    }

    fn cap(&self, class: Class) -> u32 {
        match class {
            Class::Containment => self.limit,
            Class::Lookup => self.limit - self.kept,
        }
    }

    /// How many calls fit in at `at`, from `now` on, if none is made until then.
    pub(super) fn free(&self, class: Class, own: Uuid, now: Duration, at: Duration) -> u32 {
        let used = self.uses.iter().filter(|(key, _)| self.end(**key, own) > at).map(|(_, count)| *count);
        let free = self.cap(class).saturating_sub(used.fold(0, u32::saturating_add));
        if self.paced && class == Class::Lookup { free.min(self.pace(own, now).due(at)) } else { free }
    }

    /// When the last of `count` calls fits in, if no others are made until then.
    fn room_at(&self, class: Class, count: u32, own: Uuid, now: Duration) -> Duration {
        let cap = self.cap(class);
        let even = if self.paced && class == Class::Lookup { self.pace(own, now).at(count, now) } else { now };
        // More than fit in at once go in rounds.
        let rounds = count.saturating_sub(1) / cap;
        let count = count - rounds * cap;
        let mut lacking = self.used().saturating_add(count).saturating_sub(cap);
        let mut at = now;
        for (end, count) in self.ends(own) {
            if lacking == 0 {
                break;
            }
            lacking = lacking.saturating_sub(count);
            at = end;
        }
        even.max(at + (self.stay + Duration::from_millis(self.slot_ms)).saturating_mul(rounds))
    }

    fn used(&self) -> u32 {
        self.uses.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// When uses leave, and how many, in order.
    fn ends(&self, own: Uuid) -> Vec<(Duration, u32)> {
        let mut ends: Vec<_> = self.uses.iter().map(|(key, count)| (self.end(*key, own), *count)).collect();
        ends.sort_unstable();
        ends
    }

    /// How lookups are to be spent so that they last, by the uses that are noted.
    fn pace(&self, own: Uuid, now: Duration) -> Pace {
        let cap = self.cap(Class::Lookup);
        let used = self.used();
        let at_once = (cap / AT_ONCE).max(1).saturating_sub(used);
        let last = self.uses.keys().next_back().filter(|_| at_once == 0);
        // Another desk's clock may be ahead.
        let since = last.map_or(now, |(slot, _)| Duration::from_millis(slot.saturating_mul(self.slot_ms)).min(now));
        // Until a use leaves there is only what is free before it: the longest of these waits rules. The first call after
        // a use has left is not among them, hence the one more.
        let (mut free, mut every) = (cap.saturating_sub(used), self.stay / cap);
        for (end, count) in self.ends(own) {
            every = every.max(end.saturating_sub(since) / free.saturating_add(1));
            free = free.saturating_add(count);
        }
        Pace { at_once, since, every }
    }
}

/// An even pace.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Calls that need not keep to it.
    at_once: u32,
    /// When the last call was granted; now, as long as there are calls that need not keep to it.
    since: Duration,
    /// Between two calls; above zero.
    every: Duration,
}

impl Pace {
    /// How many calls may have been granted by `at`.
    fn due(&self, at: Duration) -> u32 {
        let even = at.saturating_sub(self.since).as_nanos() / self.every.as_nanos().max(1);
        self.at_once.saturating_add(u32::try_from(even).unwrap_or(u32::MAX))
    }

    /// When the last of `count` calls may go.
    fn at(&self, count: u32, now: Duration) -> Duration {
        let even = self.every.saturating_mul(count.saturating_sub(self.at_once));
        if even.is_zero() { now } else { now.max(self.since + even) }
    }
}

/// One account's calls of one family.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) windows: Vec<Window>,
    pub(super) held_until: Duration,
    /// Askers that have been told to come again, and until when they keep their place.
    pub(super) turns: VecDeque<(Uuid, Duration)>,
    pub(super) asked: Duration,
}

impl Line {
    fn free(&self, class: Class, own: Uuid, now: Duration, at: Duration) -> u32 {
        if at < self.held_until {
            return 0;
        }
        self.windows.iter().map(|window| window.free(class, own, now, at)).min().unwrap_or_default()
    }

    fn room_at(&self, class: Class, count: u32, own: Uuid, now: Duration) -> Duration {
        let at = self.windows.iter().map(|window| window.room_at(class, count, own, now));
        at.max().unwrap_or(now).max(self.held_until)
    }

    fn take(&mut self, count: u32, own: Uuid, now: Duration) {
        for window in &mut self.windows {
            let key = (window.slot_at(now), own);
            let noted = window.uses.entry(key).or_default();
            *noted = noted.saturating_add(count);
        }
    }

    pub(super) fn ask(&mut self, asker: Uuid, class: Class, want: u32, own: Uuid, now: Duration) -> Word {
        self.asked = now;
        self.turns.retain(|(_, until)| *until > now);
        let free = self.free(class, own, now, now);
        let (granted, before) = match class {
            Class::Containment => (want.min(free), 0),
            Class::Lookup => {
                let place = self.turns.iter().position(|(other, _)| *other == asker).unwrap_or(self.turns.len());
                let before = u32::try_from(place).unwrap_or(u32::MAX);
                let waiting = u32::try_from(self.turns.len().max(place + 1)).unwrap_or(u32::MAX);
                let share = free.div_ceil(waiting).min(free.saturating_sub(before));
                (want.min(TURN).min(share), before)
            }
        };
        if granted > 0 {
            self.take(granted, own, now);
        }
        if granted > 0 && class == Class::Lookup {
            // It had its turn.
            self.turns.retain(|(other, _)| *other != asker);
        }
        let mut wait = Duration::ZERO;
        if granted < want {
            let before = if granted > 0 { u32::try_from(self.turns.len()).unwrap_or(u32::MAX) } else { before };
            let before = if class == Class::Lookup { before } else { 0 };
            wait = self.room_at(class, before.saturating_add(1), own, now).saturating_sub(now);
            if class == Class::Lookup {
                let until = now + wait.min(AGAIN) + PATIENCE;
                match self.turns.iter_mut().find(|(other, _)| *other == asker) {
                    Some(turn) => turn.1 = until,
                    None => self.turns.push_back((asker, until)),
                }
            }
        }
        let free =
            FREE_AT_SECONDS.iter().map(|after| self.free(Class::Lookup, own, now, now + Duration::from_secs(*after)));
        Word { granted, wait_ms: millis(wait), free: free.collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Book, Key, LIFETIME, Limits, Row, SLACK, Settings};
    use super::*;

    const BEGIN: Duration = Duration::from_secs(1_700_000_000);
    const ASKER: Uuid = Uuid::from_u128(7);

    /// How long a use counts: a minute, what a permit may travel, and its slot.
    const COUNTS: Duration = Duration::from_millis(60_250).saturating_add(LIFETIME).saturating_add(SLACK);

    /// How long properties are watched.
    const WINDOWS: u32 = 6;

    fn book(per_minute: u32) -> Book {
        Book::new(Uuid::from_u128(1), Settings::new(|_| Limits { per_minute, per_hour: None }))
    }

    fn hunting() -> Key {
        Key::new("T.example", "", Row::Hunting)
    }

    fn ask(book: &mut Book, want: u32, now: Duration) -> Word {
        book.ask(ASKER, &hunting(), Class::Lookup, want, now)
    }

    /// When each call goes of somebody who always wants `want`, and comes when told.
    fn calls(book: &mut Book, want: u32, from: Duration, lasts: Duration) -> Vec<Duration> {
        let (mut now, mut calls) = (from, Vec::new());
        while now < from + lasts {
            let word = ask(book, want, now);
            calls.extend((0..word.granted).map(|_| now));
            now += Duration::from_millis(word.wait_ms).min(AGAIN);
        }
        calls
    }

    #[test]
    fn half_of_a_paced_window_goes_at_once_and_the_rest_evenly() {
        let mut book = book(22);
        assert_eq!(ask(&mut book, 11, BEGIN).granted, 10, "a turn");
        assert_eq!(ask(&mut book, 11, BEGIN).granted, 1, "half of the window");
        let word = ask(&mut book, 11, BEGIN);
        assert_eq!(word.granted, 0);
        // Eleven are left until the others leave, and the one that may go then is the twelfth.
        let every = COUNTS / 12;
        assert!(Duration::from_millis(word.wait_ms).abs_diff(every) < Duration::from_millis(300), "{word:?}");
        let free = |after: u64| word.free[FREE_AT_SECONDS.iter().position(|at| *at == after).unwrap()];
        assert_eq!([free(5), free(10), free(30), free(60)], [0, 1, 5, 11]);
        let later = calls(&mut book, 1, BEGIN + every, COUNTS - every);
        assert_eq!(later.len(), 11);
        for pair in later.windows(2) {
            assert!((pair[1] - pair[0]).abs_diff(every) < Duration::from_millis(600), "{later:?}");
        }
    }

    #[test]
    fn what_was_not_called_in_time_may_be_called_later() {
        let mut book = book(22);
        ask(&mut book, 10, BEGIN);
        ask(&mut book, 1, BEGIN);
        // Half a minute in which nobody asks.
        assert_eq!(ask(&mut book, 10, BEGIN + COUNTS / 2).granted, 6);
        assert_eq!(ask(&mut book, 10, BEGIN + COUNTS / 2).granted, 0);
        // And after a whole one it is as if nothing had been.
        let rested = BEGIN + COUNTS * 2;
        assert_eq!(ask(&mut book, 10, rested).granted + ask(&mut book, 10, rested).granted, 11);
    }

    #[test]
    fn containment_and_calls_that_answer_one_observable_keep_no_pace() {
        let mut book = book(20);
        let key = Key::new("T.example", "app", Row::Alerts);
        let granted = [(); 2].map(|()| book.ask(ASKER, &key, Class::Lookup, 10, BEGIN).granted);
        assert_eq!(granted, [10, 10]);
        assert_eq!(book.ask(ASKER, &hunting(), Class::Containment, 20, BEGIN).granted, 20);
    }

    #[test]
    fn a_desk_that_takes_over_keeps_the_pace() {
        let mut first = book(22);
        ask(&mut first, 10, BEGIN);
        ask(&mut first, 1, BEGIN);
        let mut next = Book::new(Uuid::from_u128(2), Settings::new(|_| Limits { per_minute: 22, per_hour: None }));
        next.absorb(&first.retained(), BEGIN);
        let (here, there) = (ask(&mut first, 1, BEGIN), ask(&mut next, 1, BEGIN));
        assert_eq!((here.granted, there.granted), (0, 0));
        assert!(here.wait_ms.abs_diff(there.wait_ms) < 200, "{here:?} {there:?}");
    }

    proptest! {
        /// Whoever wants more than there is gets all of it, window after window, and never waits for a whole one.
        #[test]
        fn an_even_pace_loses_nothing(per_minute in 1_u32..60, want in 1_u32..15, begun in 0_u64..100_000) {
            let begin = BEGIN + Duration::from_millis(begun);
            let calls = calls(&mut book(per_minute), want, begin, COUNTS * WINDOWS);
            let most = per_minute * WINDOWS;
            prop_assert!(calls.len() as u32 >= most - most / 20 - per_minute / 2 - 1, "{} of {most}", calls.len());
            // The slots that uses are noted in, and a second call that is due at the same time.
            let longest = calls.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            prop_assert!(longest <= COUNTS * 2 / per_minute + Duration::from_secs(2), "{longest:?}");
            // The service's own count.
            for (first, from) in calls.iter().enumerate() {
                let inside = calls[first..].iter().take_while(|at| **at < *from + Duration::from_secs(60)).count();
                prop_assert!(inside <= per_minute as usize, "{inside} of {per_minute}");
            }
        }

        /// Several workers that always have something to ask share the pace.
        #[test]
        fn askers_share_an_even_pace(per_minute in 4_u32..50, askers in 2_u128..9) {
            let mut book = book(per_minute);
            let mut next = vec![BEGIN; askers as usize];
            let mut served = vec![0_u32; askers as usize];
            let mut now = BEGIN;
            while now < BEGIN + COUNTS * WINDOWS {
                let (asker, at) = next.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
                now = now.max(at);
                let word = book.ask(Uuid::from_u128(asker as u128 + 10), &hunting(), Class::Lookup, 3, now);
                served[asker] += word.granted;
                next[asker] = now + Duration::from_millis(word.wait_ms.max(1)).min(AGAIN);
            }
            let all: u32 = served.iter().sum();
            let most = per_minute * WINDOWS;
            prop_assert!(all >= most - most / 10 - per_minute, "{all} of {most}");
            let fair = all / askers as u32;
            for count in &served {
                prop_assert!(*count + 10 + fair / 4 >= fair, "{served:?}");
            }
        }
    }
}
