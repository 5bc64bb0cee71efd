//! Cognito's rate, shared by the deployment: a bucket that fills at the rate, and two lines of waiting askers. Pure: time
//! is an argument, the time since some fixed moment.
//!
//! - **Containment first.** Normal askers get nothing while one for containment waits, and never the last quarter of the
//!   bucket, so that a call for containment finds a permit there however many others wait.
//! - **In turn.** Askers of a line are served in the order of their coming and get at most what they asked for. A worker
//!   asks once at a time and asks again when it was served, so the workers take turns.
//! - **Learning.** After a 429 the rate is halved, once in [`CUT_PAUSE`] at most, because many calls learn of the same
//!   limit; never below a twentieth of the setting (and 0.5/s). It comes back at a [`RECOVERY`]th of the setting each
//!   second: a minute from half of it. A `Retry-After` holds all permits back, those for containment too.

use std::collections::VecDeque;
use std::time::Duration;

/// How long the bucket takes to fill: the largest burst is what may go in this time.
const DEPTH: Duration = Duration::from_secs(1);

/// The smallest burst, so that a slow rate has a part to keep for containment too.
const LEAST_DEPTH: f64 = 2.0;

/// The part of the bucket that is kept for containment.
const RESERVED: f64 = 0.25;

/// 429s within this time of a cut are of the same cause.
const CUT_PAUSE: Duration = Duration::from_secs(1);

/// The part of the setting that comes back each second is one in this many.
const RECOVERY: f64 = 120.0;

/// The rate is never cut below the setting divided by this ...
const LEAST_SHARE: f64 = 20.0;

/// ... nor below this many a second: at that pace a recovery is noticed in seconds.
const LEAST_RATE: f64 = 0.5;

/// The longest a `Retry-After` is obeyed without asking again.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(300);

/// The longest an asker for containment waits for its answer, which then is "not yet". Less than the second after which
/// it takes the desk for gone.
const CONTAINMENT_WORD: Duration = Duration::from_millis(400);

/// The same for a normal one, which loses its place with it: so long that at the slowest rate some are served meanwhile.
const NORMAL_WORD: Duration = Duration::from_secs(8);

/// What a call to Cognito is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Containment,
    Normal,
}

/// The rate of calls, in permits a second.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    setting: f64,
    rate: f64,
    permits: f64,
    /// Up to when `permits` and `rate` are reckoned.
    at: Duration,
    held_until: Duration,
    cut: Option<Duration>,
}

impl Bucket {
    /// Holds only what is kept for containment: whoever granted before may just have granted a burst.
    pub(super) fn new(rate: f64, now: Duration) -> Self {
        let mut bucket = Self { setting: rate, rate, permits: 0.0, at: now, held_until: Duration::ZERO, cut: None };
        bucket.permits = bucket.reserved();
        bucket
    }

    fn depth(&self) -> f64 {
        (self.rate * DEPTH.as_secs_f64()).max(LEAST_DEPTH)
    }

    fn reserved(&self) -> f64 {
        (self.depth() * RESERVED).max(1.0)
    }

    fn least(&self) -> f64 {
        (self.setting / LEAST_SHARE).max(LEAST_RATE).min(self.setting)
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        if passed == 0.0 {
            return;
        }
        // With the rate from before: a little less than what the growing rate would give.
        self.permits = (self.permits + passed * self.rate).min(self.depth());
        self.rate = (self.rate + passed * self.setting / RECOVERY).min(self.setting);
        self.at = now;
    }

    /// Permits a second, as granted now.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Cognito refused a call for its rate.
    pub(super) fn throttled(&mut self, retry_after: Option<Duration>, now: Duration) {
        self.advance(now);
        if let Some(hold) = retry_after {
            self.held_until = self.held_until.max(now + hold.min(HOLD_LIMIT));
        }
        if self.cut.is_none_or(|cut| now.saturating_sub(cut) >= CUT_PAUSE) {
            self.cut = Some(now);
            self.rate = (self.rate / 2.0).max(self.least());
        }
        self.permits = 0.0;
    }

    /// After a time in which others may have granted: as [`Bucket::new`], what was learned of the rate is kept.
    pub(super) fn restart(&mut self, now: Duration) {
        self.advance(now);
        self.permits = self.permits.min(self.reserved());
    }

    fn kept_from(&self, class: Class) -> f64 {
        match class {
            Class::Containment => 0.0,
            Class::Normal => self.reserved(),
        }
    }

    /// Takes up to `want` permits; how many there were.
    pub(super) fn take(&mut self, class: Class, want: u32, now: Duration) -> u32 {
        self.advance(now);
        if now < self.held_until {
            return 0;
        }
        let free = (self.permits - self.kept_from(class)).max(0.0);
        // Whole permits; the sum of many small parts may lack a trifle.
        let granted = want.min((free + 1e-6).floor() as u32);
        self.permits -= f64::from(granted);
        granted
    }

    /// How long until there is a permit of this class, if nobody else takes it.
    pub(super) fn wait(&self, class: Class, now: Duration) -> Duration {
        let lacking = (self.kept_from(class) + 1.0 - self.permits).max(0.0);
        let filled = self.at + Duration::from_secs_f64(lacking / self.rate);
        filled.max(self.held_until).saturating_sub(now)
    }
}

/// Somebody who waits.
#[derive(Debug)]
struct Asker<T> {
    who: T,
    want: u32,
    word_by: Duration,
}

/// What an asker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// So many calls may go now; from 1.
    Granted(u32),
    /// None yet: ask again after this time.
    NotYet(Duration),
}

/// The bucket and those who wait for it. `T` is how an asker is answered.
#[derive(Debug)]
pub(super) struct Permits<T> {
    pub(super) bucket: Bucket,
    containment: VecDeque<Asker<T>>,
    normal: VecDeque<Asker<T>>,
}

impl<T> Permits<T> {
    pub(super) fn new(rate: u32, now: Duration) -> Self {
        Self { bucket: Bucket::new(f64::from(rate), now), containment: VecDeque::new(), normal: VecDeque::new() }
    }

    /// Puts somebody in line.
    pub(super) fn ask(&mut self, who: T, class: Class, want: u32, now: Duration) {
        let (line, patience) = match class {
            Class::Containment => (&mut self.containment, CONTAINMENT_WORD),
            Class::Normal => (&mut self.normal, NORMAL_WORD),
        };
        line.push_back(Asker { who, want: want.max(1), word_by: now + patience });
    }

    /// Who is to be told what now.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(T, Word)> {
        let mut told = Vec::new();
        for class in [Class::Containment, Class::Normal] {
            if class == Class::Normal && !self.containment.is_empty() {
                break;
            }
            let line = if class == Class::Containment { &mut self.containment } else { &mut self.normal };
            while let Some(first) = line.front() {
                let granted = self.bucket.take(class, first.want, now);
                if granted == 0 {
                    break;
                }
                told.extend(line.pop_front().map(|asker| (asker.who, Word::Granted(granted))));
            }
        }
        for (line, class) in [(&mut self.containment, Class::Containment), (&mut self.normal, Class::Normal)] {
            while line.front().is_some_and(|first| first.word_by <= now) {
                let wait = self.bucket.wait(class, now);
                told.extend(line.pop_front().map(|asker| (asker.who, Word::NotYet(wait))));
            }
        }
        told
    }

    /// How long until [`Permits::due`] may have something to say, without another asker.
    pub(super) fn next(&self, now: Duration) -> Option<Duration> {
        let line = |line: &VecDeque<Asker<T>>, class| {
            let first = line.front()?;
            Some(self.bucket.wait(class, now).min(first.word_by.saturating_sub(now)))
        };
        let containment = line(&self.containment, Class::Containment);
        // While one for containment waits, a normal asker can only run out of patience.
        let normal = match containment {
            Some(_) => self.normal.front().map(|first| first.word_by.saturating_sub(now)),
            None => line(&self.normal, Class::Normal),
        };
        containment.into_iter().chain(normal).min()
    }

    /// Everybody who waits, in no order; the lines are empty then.
    pub(super) fn dismiss(&mut self) -> Vec<T> {
        self.containment.drain(..).chain(self.normal.drain(..)).map(|asker| asker.who).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Lets `bucket` fill.
    fn full(rate: u32) -> Bucket {
        let mut bucket = Bucket::new(f64::from(rate), Duration::ZERO);
        bucket.advance(ms(5_000));
        bucket
    }

    #[test]
    fn a_new_bucket_holds_only_what_is_kept_for_containment() {
        let mut bucket = Bucket::new(20.0, Duration::ZERO);
        assert_eq!(bucket.take(Class::Normal, 10, Duration::ZERO), 0);
        assert_eq!(bucket.take(Class::Containment, 10, Duration::ZERO), 5);
        assert_eq!(bucket.wait(Class::Containment, Duration::ZERO), ms(50));
    }

    #[test]
    fn normal_calls_leave_a_quarter_for_containment() {
        let mut bucket = full(20);
        assert_eq!(bucket.take(Class::Normal, 100, ms(5_000)), 15);
        assert_eq!(bucket.take(Class::Containment, 100, ms(5_000)), 5);
    }

    #[test]
    fn the_slowest_rate_serves_both_classes() {
        let mut bucket = full(1);
        assert_eq!(bucket.take(Class::Normal, 9, ms(5_000)), 1);
        assert_eq!(bucket.take(Class::Containment, 9, ms(5_000)), 1);
        assert_eq!(bucket.wait(Class::Containment, ms(5_000)), ms(1_000));
        assert_eq!(bucket.wait(Class::Normal, ms(5_000)), ms(2_000));
        assert_eq!(bucket.take(Class::Normal, 9, ms(7_000)), 1);
    }

    #[test]
    fn many_429s_of_one_cause_cut_once_and_the_rate_comes_back_in_a_minute() {
        let mut bucket = full(20);
        for at in [5_000, 5_010, 5_900] {
            bucket.throttled(None, ms(at));
        }
        assert!((bucket.rate() - 10.0).abs() < 0.2, "{}", bucket.rate());
        bucket.advance(ms(30_000));
        assert!(bucket.rate() < 15.0, "{}", bucket.rate());
        bucket.advance(ms(65_500));
        assert!((bucket.rate() - 20.0).abs() < f64::EPSILON, "{}", bucket.rate());
    }

    #[test]
    fn the_rate_is_never_cut_below_a_twentieth() {
        for (setting, least) in [(200, 10.0), (20, 1.0), (4, 0.5), (1, 0.5)] {
            let mut bucket = full(setting);
            for second in 5..60 {
                bucket.throttled(None, Duration::from_secs(second));
            }
            // A second's recovery comes between two cuts.
            assert!(bucket.rate() >= least && bucket.rate() < least * 1.3, "{setting}: {}", bucket.rate());
        }
    }

    #[test]
    fn a_retry_after_holds_everybody_back_up_to_a_bound() {
        let mut bucket = full(20);
        bucket.throttled(Some(ms(3_000)), ms(5_000));
        // A shorter one does not shorten it.
        bucket.throttled(Some(ms(1)), ms(5_001));
        for at in [5_001, 7_999] {
            assert_eq!(bucket.take(Class::Containment, 1, ms(at)), 0, "{at}");
        }
        assert_eq!(bucket.wait(Class::Containment, ms(6_000)), ms(2_000));
        assert!(bucket.take(Class::Containment, 1, ms(8_000)) == 1);
        bucket.throttled(Some(Duration::from_secs(86_400)), ms(8_000));
        assert_eq!(bucket.wait(Class::Normal, ms(8_000)), HOLD_LIMIT);
    }

    #[test]
    fn an_asker_gets_a_word_before_it_takes_the_desk_for_gone() {
        let mut permits = Permits::new(20, Duration::ZERO);
        permits.bucket.throttled(Some(ms(30_000)), Duration::ZERO);
        permits.ask("containment", Class::Containment, 1, Duration::ZERO);
        permits.ask("normal", Class::Normal, 1, Duration::ZERO);
        assert_eq!(permits.due(Duration::ZERO), []);
        assert_eq!(permits.next(Duration::ZERO), Some(ms(400)));
        assert_eq!(permits.due(ms(400)), [("containment", Word::NotYet(ms(29_600)))]);
        assert_eq!(permits.next(ms(400)), Some(ms(7_600)));
        assert_eq!(permits.due(ms(8_000)), [("normal", Word::NotYet(ms(22_000)))]);
        assert_eq!(permits.next(ms(8_000)), None);
    }

    #[test]
    fn askers_take_turns() {
        let mut permits = Permits::new(1, Duration::ZERO);
        let mut served = Vec::new();
        for who in ["a", "b", "c"] {
            permits.ask(who, Class::Normal, 5, Duration::ZERO);
        }
        for second in 1..=7 {
            for (who, word) in permits.due(Duration::from_secs(second)) {
                if matches!(word, Word::Granted(_)) {
                    served.push(who);
                }
                permits.ask(who, Class::Normal, 5, Duration::from_secs(second));
            }
        }
        assert_eq!(served[..6], ["a", "b", "c", "a", "b", "c"], "{served:?}");
    }

    /// One thing that happens, `after` the one before.
    #[derive(Debug, Clone)]
    enum Event {
        Ask(Class, u32),
        Throttled(Option<Duration>),
        Restart,
        Nothing,
    }

    fn event() -> impl Strategy<Value = (Duration, Event)> {
        let event = prop_oneof![
            5 => (any::<bool>(), 1_u32..20).prop_map(|(containment, want)| {
                Event::Ask(if containment { Class::Containment } else { Class::Normal }, want)
            }),
            1 => prop::option::of((0_u64..3_000).prop_map(ms)).prop_map(Event::Throttled),
            1 => Just(Event::Restart),
            4 => Just(Event::Nothing),
        ];
        ((0_u64..700).prop_map(ms), event)
    }

    proptest! {
        /// In any span of time no more is granted than the burst and what the rate allows in it; and nothing that a
        /// normal asker gets is kept from one for containment.
        #[test]
        fn the_rate_is_kept_and_containment_never_waits_behind_others(
            rate in 1_u32..60,
            events in prop::collection::vec(event(), 1..200),
        ) {
            let mut permits = Permits::new(rate, Duration::ZERO);
            let mut now = Duration::ZERO;
            let mut granted: Vec<(Duration, u32)> = Vec::new();
            let mut held_until = Duration::ZERO;
            for (after, event) in events {
                now += after;
                match event {
                    Event::Ask(class, want) => permits.ask((class, want), class, want, now),
                    Event::Throttled(hold) => {
                        permits.bucket.throttled(hold, now);
                        held_until = held_until.max(now + hold.unwrap_or_default());
                    }
                    Event::Restart => permits.bucket.restart(now),
                    Event::Nothing => {}
                }
                let before = permits.bucket.clone();
                let containment_waits = !permits.containment.is_empty();
                let told = permits.due(now);
                let got: Vec<_> = told.iter().filter_map(|((class, want), word)| match word {
                    Word::Granted(count) => Some((*class, *want, *count)),
                    Word::NotYet(_) => None,
                }).collect();
                for (class, want, count) in &got {
                    prop_assert!(*count >= 1 && count <= want);
                    prop_assert!(now >= held_until);
                    if *class == Class::Normal {
                        prop_assert!(permits.containment.is_empty(), "normal served before containment");
                    } else {
                        granted.push((now, *count));
                    }
                }
                for (_, _, count) in got.iter().filter(|(class, ..)| *class == Class::Normal) {
                    granted.push((now, *count));
                }
                // Normal askers leave a whole permit for the next call for containment.
                if got.iter().any(|(class, ..)| *class == Class::Normal) {
                    prop_assert!(permits.bucket.clone().take(Class::Containment, 1, now) == 1);
                }
                // One for containment that waits gets what there is.
                if containment_waits && before.clone().take(Class::Containment, 1, now) == 1 {
                    prop_assert!(got.iter().any(|(class, ..)| *class == Class::Containment));
                }
                if let Some(next) = permits.next(now) {
                    prop_assert!(next <= NORMAL_WORD);
                }
            }
            let burst = f64::from(rate).max(LEAST_DEPTH);
            for from in 0..granted.len() {
                let mut sum = 0;
                for (at, count) in &granted[from..] {
                    sum += count;
                    let span = (*at - granted[from].0).as_secs_f64();
                    prop_assert!(f64::from(sum) <= burst + span * f64::from(rate) + 0.001, "{sum} in {span} s");
                }
            }
        }

        /// Waiting as long as [`Bucket::wait`] says is enough.
        #[test]
        fn the_wait_is_neither_too_short_nor_pointless(
            rate in 1_u32..60,
            taken in 0_u32..60,
            normal in any::<bool>(),
            cut in any::<bool>(),
        ) {
            let class = if normal { Class::Normal } else { Class::Containment };
            let mut bucket = full(rate);
            let now = ms(5_000);
            bucket.take(Class::Containment, taken, now);
            if cut {
                bucket.throttled(Some(ms(40)), now);
            }
            let wait = bucket.wait(class, now);
            if wait > ms(2) {
                prop_assert_eq!(bucket.clone().take(class, 1, now + wait - ms(2)), 0);
            }
            // While the rate comes back, so does the part kept for containment: more looks may be needed.
            let mut at = now + wait;
            let looks = (1..20).find(|_| {
                let granted = bucket.take(class, 1, at);
                at += bucket.wait(class, at);
                granted == 1
            });
            prop_assert!(looks.is_some_and(|looks| looks == 1 || cut), "{:?}", looks);
        }
    }
}
