//! What a sweeper remembers, so that a host whose event still waits is not published again by every sweep. Pure.
//!
//! The first find is published at once. As long as the reasons stay the same the next events follow after growing
//! intervals, because an event may be lost at any time: after [`FIRST_INTERVAL`], then twice as long each time, up to
//! [`LONGEST_INTERVAL`]. New reasons are published at once. A host that a whole sweep did not find is forgotten.
//!
//! A sweeper that begins knows nothing, while the events of its forerunner may still wait. So there is a second brake,
//! [`room`]: the queue is never filled up with more events than there are hosts to look at.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::wanted::Reasons;
use crate::broker::{Lane, QueueDepth};

/// From the first event of a host to its second, if nothing changed: the default interval of the sweep.
pub const FIRST_INTERVAL: Duration = Duration::from_secs(60);

/// What is due so soon is due now: sweeps do not begin to the millisecond.
const TOLERANCE: Duration = Duration::from_secs(1);

/// No host is published more often than this for long (`cognito.md` 5.8: at most once an hour after a dead letter).
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

/// So many events a lane gets from a sweep however much waits in it, so that a queue that never runs empty cannot keep
/// found hosts out: in the urgent lane more than the block tags of any day, in the normal lane a trickle.
pub const LEAST_ROOM: [(Lane, usize); 2] = [(Lane::Urgent, 100), (Lane::Normal, 20)];

/// That an event is due, and how pressing that is: the lesser the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// Nothing was published for these reasons yet.
    New,
    /// The last event for these reasons may be lost; the next is due since then.
    Again(Instant),
}

/// The hosts that were found and published. As large as the listing.
#[derive(Debug, Default)]
pub struct Memory {
    hosts: HashMap<u64, Known>,
    /// Counts sweeps.
    sweep: u64,
    /// Spreads the looks at calm hosts.
    spread: RandomState,
}

#[derive(Debug)]
struct Known {
    what: What,
    /// Nothing is published before.
    next: Instant,
    /// From the next event to the one after it.
    interval: Duration,
    /// The last sweep that found it.
    seen: u64,
    /// Since when it is found with these reasons.
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    /// Found with these reasons.
    Found(Reasons),
    /// Its event of this lane became a dead letter before this sweeper began: reasons of the same lane are the same.
    Died(Lane),
}

impl Memory {
    /// A sweep begins.
    pub fn begin(&mut self) {
        self.sweep += 1;
    }

    /// A host was found with `reasons`: whether an event is due at `now`.
    pub fn due(&mut self, host: u64, reasons: &Reasons, now: Instant) -> Option<Due> {
        let sweep = self.sweep;
        let known = match self.hosts.get_mut(&host) {
            Some(known) if known.what.is(reasons) => known,
            // Only a calm host can wait for its first look: by chance, so that a new sweeper does not publish them all at
            // once, and none of them waits for ever however often sweepers come and go.
            _ => {
                let Some(interval) = reasons.calm() else { return Some(Due::New) };
                let next = now + self.chance(host, interval);
                let known = Known { what: What::Found(*reasons), next, interval, seen: sweep, since: now };
                self.hosts.entry(host).insert_entry(known).into_mut()
            }
        };
        known.seen = sweep;
        (known.next <= now + TOLERANCE).then_some(Due::Again(known.next))
    }

    /// The event that was due is published.
    pub fn published(&mut self, host: u64, reasons: &Reasons, now: Instant) {
        let interval = match (reasons.calm(), self.hosts.get(&host)) {
            (Some(calm), _) => calm,
            (None, Some(known)) if known.what.is(reasons) => known.interval,
            (None, _) => FIRST_INTERVAL,
        };
        let following = reasons.calm().unwrap_or_else(|| (interval * 2).min(LONGEST_INTERVAL));
        let since = self.hosts.get(&host).filter(|known| known.what.is(reasons)).map_or(now, |known| known.since);
        let what = What::Found(*reasons);
        let known = Known { what, next: now + interval, interval: following, seen: self.sweep, since };
        self.hosts.insert(host, known);
    }

    /// An event of this host and lane became a dead letter so long ago, as others saw it.
    pub fn died(&mut self, host: u64, lane: Lane, ago: Duration, now: Instant) {
        let left = LONGEST_INTERVAL.saturating_sub(ago);
        if left.is_zero() {
            return;
        }
        let (next, seen) = (now + left, self.sweep);
        match self.hosts.get_mut(&host) {
            Some(known) if known.what.lane() == lane => known.next = known.next.max(next),
            Some(_) => {}
            None => {
                let known = Known { what: What::Died(lane), next, interval: LONGEST_INTERVAL, seen, since: now };
                self.hosts.insert(host, known);
            }
        }
    }

    /// The sweep found all it could: hosts it did not find are forgotten, so that the next reason counts as new.
    pub fn end(&mut self) {
        let sweep = self.sweep;
        self.hosts.retain(|_, known| known.seen == sweep);
    }

    /// For how long the oldest block or unblock tag has been seen; `None`: there is none. A host is counted from when it was
    /// first published for its present reasons, by this sweeper.
    #[must_use]
    pub fn oldest_trigger(&self, now: Instant) -> Option<Duration> {
        let open = |known: &&Known| match &known.what {
            What::Found(reasons) => reasons.block || reasons.unblock,
            What::Died(lane) => *lane == Lane::Urgent,
        };
        self.hosts.values().filter(open).map(|known| now.saturating_duration_since(known.since)).max()
    }

    /// Another sweeper took over: what is known here is no longer true.
    pub fn forget(&mut self) {
        self.hosts.clear();
    }

    /// How many hosts are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    fn chance(&self, host: u64, longest: Duration) -> Duration {
        Duration::from_millis(self.spread.hash_one(host) % (longest.as_millis() as u64).max(1))
    }
}

impl What {
    fn is(&self, reasons: &Reasons) -> bool {
        match self {
            Self::Found(known) => known == reasons,
            Self::Died(lane) => *lane == reasons.lane(),
        }
    }

    fn lane(&self) -> Lane {
        match self {
            Self::Found(reasons) => reasons.lane(),
            Self::Died(lane) => *lane,
        }
    }
}

/// How many events a sweep may publish into a lane: so many that no more wait there than `wanted`, the hosts it found for
/// the lane. Those that wait may well be theirs. While somebody works the queue, a few in any case ([`LEAST_ROOM`]).
#[must_use]
pub fn room(wanted: usize, depth: &QueueDepth) -> usize {
    let least = LEAST_ROOM.iter().find(|(lane, _)| *lane == depth.lane).map_or(0, |(_, least)| *least);
    let least = if depth.receivers == 0 { 0 } else { least };
    wanted.saturating_sub(usize::try_from(depth.ready).unwrap_or(usize::MAX)).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containment::state::Isolation;
    use proptest::prelude::*;

    const ENRICH: Reasons = Reasons {
        block: false,
        unblock: false,
        enrich: true,
        state: None,
        expired: false,
        score: false,
        held: false,
        context: false,
    };
    const BLOCK: Reasons = Reasons { block: true, ..ENRICH };
    const CALM: Reasons = Reasons { enrich: false, state: Some(Isolation::Isolated), ..ENRICH };

    const MINUTE: Duration = Duration::from_secs(60);

    /// Sweeps at these times, each finding host 1 for these reasons; the times at which it was published.
    fn published(memory: &mut Memory, start: Instant, sweeps: &[(Duration, Option<Reasons>)]) -> Vec<Duration> {
        let mut published = Vec::new();
        for (at, reasons) in sweeps {
            let now = start + *at;
            memory.begin();
            if let Some(reasons) = reasons
                && memory.due(1, reasons, now).is_some()
            {
                memory.published(1, reasons, now);
                published.push(*at);
            }
            memory.end();
        }
        published
    }

    fn every_minute(minutes: u32, reasons: Reasons) -> Vec<(Duration, Option<Reasons>)> {
        (0..minutes).map(|minute| (MINUTE * minute, Some(reasons))).collect()
    }

    #[test]
    fn the_same_reasons_are_published_after_growing_intervals() {
        let times = published(&mut Memory::default(), Instant::now(), &every_minute(245, ENRICH));
        let minutes: Vec<u64> = times.iter().map(|time| time.as_secs() / 60).collect();
        assert_eq!(minutes, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }

    #[test]
    fn new_reasons_are_published_at_once_and_begin_anew() {
        let mut sweeps = every_minute(10, ENRICH);
        sweeps.extend((10..20).map(|minute| (MINUTE * minute, Some(BLOCK))));
        let times = published(&mut Memory::default(), Instant::now(), &sweeps);
        let minutes: Vec<u64> = times.iter().map(|time| time.as_secs() / 60).collect();
        assert_eq!(minutes, [0, 1, 3, 7, 10, 11, 13, 17]);
    }

    #[test]
    fn a_host_that_was_not_found_is_new_when_it_is_found_again() {
        let mut sweeps = every_minute(6, ENRICH);
        sweeps.push((MINUTE * 6, None));
        sweeps.push((MINUTE * 6 + Duration::from_secs(1), Some(ENRICH)));
        let times = published(&mut Memory::default(), Instant::now(), &sweeps);
        assert_eq!(times.last(), Some(&(MINUTE * 6 + Duration::from_secs(1))));
    }

    #[test]
    fn what_was_not_published_stays_due() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        for minute in 0..5 {
            memory.begin();
            assert!(memory.due(1, &ENRICH, now + MINUTE * minute).is_some());
            memory.end();
        }
    }

    #[test]
    fn a_calm_host_is_looked_at_once_an_hour_and_not_all_at_the_same_time() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let mut looks: HashMap<u64, Vec<u32>> = HashMap::new();
        for minute in 0..180 {
            let now = start + MINUTE * minute;
            memory.begin();
            for host in 0..600 {
                if memory.due(host, &CALM, now).is_some() {
                    memory.published(host, &CALM, now);
                    looks.entry(host).or_default().push(minute);
                }
            }
            memory.end();
        }
        assert_eq!(looks.len(), 600);
        assert!(looks.values().all(|minutes| (2..=4).contains(&minutes.len())), "{looks:?}");
        assert!(looks.values().all(|minutes| minutes.windows(2).all(|pair| pair[1] - pair[0] == 60)), "{looks:?}");
        let busiest = (0..60).map(|minute| looks.values().filter(|looks| looks.contains(&minute)).count()).max();
        assert!(busiest < Some(60), "a tenth of all at once: {busiest:?}");
    }

    #[test]
    fn an_isolation_that_is_held_back_is_not_asked_for_again_and_again() {
        let held = Reasons { held: true, ..BLOCK };
        let mut sweeps = every_minute(3, BLOCK);
        // The first event found that the brake is on, and waits; a day later it is still on.
        sweeps.extend((3..1_440).map(|minute| (MINUTE * minute, Some(held))));
        sweeps.push((MINUTE * 1_440, Some(BLOCK)));
        let times = published(&mut Memory::default(), Instant::now(), &sweeps);
        let in_between = times.iter().filter(|time| **time >= MINUTE * 3 && **time < MINUTE * 1_440).count();
        assert!((3..=5).contains(&in_between), "{times:?}");
        assert_eq!(times.last(), Some(&(MINUTE * 1_440)), "held no more: asked for at once");
    }

    #[test]
    fn after_a_dead_letter_a_host_waits_out_its_hour() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.begin();
        memory.died(1, Lane::Normal, MINUTE * 20, now);
        memory.died(2, Lane::Normal, MINUTE * 60, now);
        memory.died(3, Lane::Normal, Duration::ZERO, now);
        assert_eq!(memory.due(1, &ENRICH, now), None);
        assert!(memory.due(2, &ENRICH, now).is_some(), "its hour is over");
        assert!(memory.due(3, &BLOCK, now).is_some(), "what died was about something else");
        assert_eq!(memory.due(1, &ENRICH, now + MINUTE * 39), None);
        assert!(memory.due(1, &ENRICH, now + MINUTE * 40).is_some());
        // One that is known already waits as well.
        memory.published(4, &ENRICH, now);
        memory.died(4, Lane::Normal, Duration::ZERO, now + MINUTE);
        assert_eq!(memory.due(4, &ENRICH, now + MINUTE * 60), None);
        assert!(memory.due(4, &ENRICH, now + MINUTE * 61).is_some());
    }

    #[test]
    fn the_queue_is_never_filled_beyond_the_hosts_that_were_found() {
        for (lane, receivers, wanted, ready, expected) in [
            (Lane::Normal, 1, 2_000, 0, 2_000),
            (Lane::Normal, 1, 2_000, 500, 1_500),
            (Lane::Normal, 1, 2_000, 2_000, 20),
            (Lane::Normal, 3, 2_000, 90_000, 20),
            (Lane::Urgent, 1, 10, 50_000, 100),
            (Lane::Urgent, 1, 500, u64::MAX, 100),
            // Nobody works it: nothing gets less.
            (Lane::Urgent, 0, 500, 500, 0),
            (Lane::Normal, 0, 2_000, 1_990, 10),
        ] {
            let depth = QueueDepth { queue: "hosts", lane, ready, receivers, dead: 0 };
            assert_eq!(room(wanted, &depth), expected, "{wanted} {depth:?}");
        }
    }

    /// A step of a story: so many seconds later a sweep finds these hosts with these reasons, and some of them cannot be
    /// published.
    fn step() -> impl Strategy<Value = (u64, Vec<(u64, u8, bool)>)> {
        (1_u64..2_000, prop::collection::vec((0_u64..4, 0_u8..4, prop::bool::weighted(0.9)), 0..6))
    }

    proptest! {
        #[test]
        fn no_host_is_published_too_often_nor_forgotten(steps in prop::collection::vec(step(), 1..80)) {
            let kinds = [ENRICH, BLOCK, CALM, Reasons { held: true, ..BLOCK }];
            let (mut memory, mut now) = (Memory::default(), Instant::now());
            // Of each host: its reasons in the last sweep, when they were last published, how often, since when known.
            let mut model: HashMap<u64, (Reasons, Option<Instant>, u32, Instant)> = HashMap::new();
            for (seconds, found) in steps {
                now += Duration::from_secs(seconds);
                memory.begin();
                let mut seen = HashMap::new();
                for (host, kind, works) in found {
                    if seen.contains_key(&host) {
                        continue;
                    }
                    let reasons = kinds[usize::from(kind)];
                    seen.insert(host, ());
                    let due = memory.due(host, &reasons, now).is_some();
                    let known = model.get(&host).filter(|known| known.0 == reasons).copied();
                    match known {
                        None => prop_assert!(due || reasons.calm().is_some(), "new reasons wait"),
                        Some((_, Some(last), times, _)) => {
                            let growing = || (FIRST_INTERVAL * 2_u32.pow(times.min(10) - 1)).min(LONGEST_INTERVAL);
                            let least = reasons.calm().unwrap_or_else(growing);
                            prop_assert_eq!(due, now - last + TOLERANCE >= least);
                        }
                        Some((_, None, _, since)) => {
                            let most = reasons.calm().unwrap_or_default();
                            prop_assert!(due || now - since < most, "what was never published is forgotten");
                        }
                    }
                    let (mut last, mut times, since) =
                        known.map_or((None, 0, now), |(_, last, times, since)| (last, times, since));
                    if due && works {
                        memory.published(host, &reasons, now);
                        (last, times) = (Some(now), times + 1);
                    }
                    model.insert(host, (reasons, last, times, since));
                }
                memory.end();
                model.retain(|host, _| seen.contains_key(host));
                // One that was due and could not be published is not kept: it is new in the next sweep as well.
                prop_assert!(memory.len() <= model.len());
            }
        }
    }
}
