//! What a worker holds of the deployment's quota: calls to Defender in line for their permits.
//!
//! Each account and family is a line of its own. In a line, calls for containment go first, and the others by request:
//! requests take turns, so one of a thousand calls does not hold up one of one call. Two tasks, one for each class, ask
//! for all lines at once: the book of this process where it is alone, else the desk. A call that cannot have a permit in
//! time is refused as soon as that is known.
//!
//! Without a word from the desk, containment goes on a second after it came, or after the moment for which it was told
//! to wait; uncounted, for its calls are few, and a part of each limit is kept for them. The others wait until their end.
//!
//! A desk of a version that keeps no quota yet says so: while it is there, in the middle of an upgrade, each worker counts
//! for itself, as the workers of that version do not count at all.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::handle::{CONTAINMENT_LIMIT, Desk};
use super::protocol::{QuotaAsk, Reply, Request, millis};
use crate::broker::BrokerError;
use crate::quota::{AGAIN, Book, Class, FREE_AT_SECONDS, Key, LIFETIME, Settings, Word, hold};
use crate::telemetry::metrics::Metrics;

/// How long a question about lookups waits for its answer: permits that come later are void. A question that was lost
/// with its desk is asked again.
const LOOKUP_LIMIT: Duration = LIFETIME;

/// Pause after a question that failed at once.
const PAUSE: Duration = Duration::from_millis(300);

/// Lines that one question carries; the others come next.
pub(super) const ASKS_LIMIT: usize = 64;

/// Permits that are asked for at once in a line: more than one turn gives.
const WANT_LIMIT: usize = 50;

/// A line is forgotten when nobody asked in it for so long.
const IDLE: Duration = Duration::from_secs(3_600);

/// Lines are looked through for idle ones when there are so many.
const LINES_LIMIT: usize = 1_000;

/// A way to the deployment's quota. Cheap to clone; clones share their lines.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
    _tasks: Arc<DropGuard>,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// Who counts.
enum Source {
    /// This process, which is the only one of its deployment.
    Alone,
    /// The desk of the deployment.
    Desk(Desk),
}

/// A book and the clock it is kept by.
struct Counter {
    book: Book,
    clock: Clock,
}

impl Counter {
    fn new(settings: &Settings) -> Counter {
        Counter { book: Book::new(Uuid::now_v7(), settings.clone()), clock: Clock::new() }
    }
}

/// The time since 1970 by a clock that only goes forward.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    begun: Instant,
    since_1970: Duration,
}

impl Clock {
    pub(super) fn new() -> Clock {
        let since_1970 = Duration::try_from(Timestamp::now().duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        Clock { begun: Instant::now(), since_1970 }
    }

    pub(super) fn now(&self) -> Duration {
        self.since_1970 + self.begun.elapsed()
    }
}

struct Inner {
    source: Source,
    /// What this process counts itself.
    counter: Mutex<Counter>,
    settings: Settings,
    /// This process among those that take turns.
    asker: Uuid,
    lines: Mutex<HashMap<Key, Line>>,
    containment: Notify,
    lookups: Notify,
    metrics: Metrics,
}

/// A call that waits.
struct Caller {
    go: oneshot::Sender<Result<Instant, Duration>>,
    until: Instant,
    /// Since when a word is overdue: it came then, or was to ask again.
    since: Instant,
}

/// What is asked at once.
struct Asking {
    asks: Vec<QuotaAsk>,
    /// Since when the first of those who are asked for wait for a word.
    since: Instant,
}

/// The last word on a line.
struct Told {
    at: Instant,
    wait: Duration,
    free: Vec<u32>,
}

impl Told {
    /// How many lookups fit in before `until`, if nobody else makes any. The word does not reach further than its last
    /// moment: who has more patience may wait.
    fn room(&self, until: Instant) -> u32 {
        let left = until.saturating_duration_since(self.at);
        if left < self.wait {
            return 0;
        }
        if FREE_AT_SECONDS.last().is_some_and(|last| left > Duration::from_secs(*last)) {
            return u32::MAX;
        }
        let known = FREE_AT_SECONDS.iter().zip(&self.free);
        let fits = known.take_while(|(after, _)| Duration::from_secs(**after) <= left).last();
        fits.map_or(1, |(_, free)| (*free).max(1))
    }
}

/// Those who wait in one line.
struct Line {
    containment: VecDeque<Caller>,
    lookups: Turns,
    /// When the desk is to be asked again, by class.
    ask_at: [Instant; 2],
    /// Until when the service wants no call, as this process heard.
    held_until: Instant,
    told: Option<Told>,
    used: Instant,
}

impl Line {
    fn new(now: Instant) -> Line {
        Line {
            containment: VecDeque::new(),
            lookups: Turns::default(),
            ask_at: [now; 2],
            held_until: now,
            told: None,
            used: now,
        }
    }

    fn waiting(&mut self, class: Class) -> usize {
        match class {
            Class::Containment => {
                self.containment.retain(|caller| !caller.go.is_closed());
                self.containment.len()
            }
            Class::Lookup => self.lookups.waiting(),
        }
    }

    fn next(&mut self, class: Class) -> Option<Caller> {
        match class {
            Class::Containment => self.containment.pop_front(),
            Class::Lookup => self.lookups.next(),
        }
    }

    /// Lets the first `count` go. Who has gone meanwhile leaves its permit to the next.
    fn release(&mut self, class: Class, count: u32, void_at: Instant) {
        let mut left = count;
        while left > 0
            && let Some(caller) = self.next(class)
        {
            if caller.go.send(Ok(void_at)).is_ok() {
                left -= 1;
            }
        }
    }

    fn hear(&mut self, class: Class, word: Word, at: Instant, now: Instant) {
        let void_at = at + LIFETIME;
        // Too late an answer is as none: what it grants is spent.
        if now < void_at {
            self.release(class, word.granted, void_at);
        }
        let wait = Duration::from_millis(word.wait_ms);
        self.ask_at[index(class)] = now + wait.min(AGAIN);
        match class {
            Class::Lookup => {
                let told = Told { at: now, wait, free: word.free };
                self.lookups.refuse(|until| told.room(until), wait);
                self.told = Some(told);
            }
            Class::Containment if !wait.is_zero() => {
                self.refuse_containment(now + wait, wait);
                let again = self.ask_at[index(class)];
                self.containment.iter_mut().for_each(|caller| caller.since = again);
            }
            Class::Containment => {}
        }
    }

    /// Refuses calls for containment that end before `free_at`.
    fn refuse_containment(&mut self, free_at: Instant, wait: Duration) {
        for _ in 0..self.containment.len() {
            let Some(caller) = self.containment.pop_front() else { break };
            if caller.until < free_at {
                let _ = caller.go.send(Err(wait));
            } else {
                self.containment.push_back(caller);
            }
        }
    }

    fn hold(&mut self, until: Instant, now: Instant) {
        self.held_until = self.held_until.max(until);
        let held = self.held_until;
        let wait = held.saturating_duration_since(now);
        self.lookups.refuse(|until| if until < held { 0 } else { u32::MAX }, wait);
        self.refuse_containment(held, wait);
    }
}

const fn index(class: Class) -> usize {
    match class {
        Class::Containment => 0,
        Class::Lookup => 1,
    }
}

/// Callers by request; requests take turns.
#[derive(Default)]
struct Turns(VecDeque<(u64, VecDeque<Caller>)>);

impl Turns {
    fn add(&mut self, request: u64, caller: Caller) {
        match self.0.iter_mut().find(|(other, _)| *other == request) {
            Some((_, callers)) => callers.push_back(caller),
            None => self.0.push_back((request, VecDeque::from([caller]))),
        }
    }

    fn next(&mut self) -> Option<Caller> {
        let (request, mut callers) = self.0.pop_front()?;
        let caller = callers.pop_front();
        if !callers.is_empty() {
            self.0.push_back((request, callers));
        }
        caller
    }

    /// How many wait.
    fn waiting(&mut self) -> usize {
        for (_, callers) in &mut self.0 {
            callers.retain(|caller| !caller.go.is_closed());
        }
        self.0.retain(|(_, callers)| !callers.is_empty());
        self.0.iter().map(|(_, callers)| callers.len()).sum()
    }

    /// Refuses those whose turn does not come in time: more go before them than there is `room` for until their end.
    fn refuse(&mut self, room: impl Fn(Instant) -> u32, wait: Duration) {
        let rounds = self.0.iter().map(|(_, callers)| callers.len()).max().unwrap_or_default();
        let mut before = 0;
        let mut kept: VecDeque<(u64, VecDeque<Caller>)> =
            self.0.iter().map(|(request, _)| (*request, VecDeque::new())).collect();
        for _ in 0..rounds {
            for ((_, callers), (_, kept)) in self.0.iter_mut().zip(&mut kept) {
                let Some(caller) = callers.pop_front() else { continue };
                if room(caller.until) > before {
                    before += 1;
                    kept.push_back(caller);
                } else {
                    let _ = caller.go.send(Err(wait));
                }
            }
        }
        kept.retain(|(_, callers)| !callers.is_empty());
        self.0 = kept;
    }
}

impl Budget {
    /// For the only process of its deployment: counted in memory, so a restart forgets what was used before.
    #[must_use]
    pub fn alone(settings: Settings, metrics: Metrics) -> Budget {
        Budget::start(Source::Alone, settings, metrics)
    }

    /// For one process of several, which all ask the desk.
    #[must_use]
    pub fn shared(desk: &Desk) -> Budget {
        let (settings, metrics) = (desk.shared().settings.quota.clone(), desk.shared().metrics.clone());
        Budget::start(Source::Desk(desk.clone()), settings, metrics)
    }

    fn start(source: Source, settings: Settings, metrics: Metrics) -> Budget {
        let inner = Arc::new(Inner {
            source,
            counter: Mutex::new(Counter::new(&settings)),
            settings,
            asker: Uuid::now_v7(),
            lines: Mutex::default(),
            containment: Notify::new(),
            lookups: Notify::new(),
            metrics,
        });
        let stop = CancellationToken::new();
        for class in [Class::Containment, Class::Lookup] {
            let (inner, stop) = (Arc::clone(&inner), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = inner.serve(class) => {}
                }
            });
        }
        Budget { inner, _tasks: Arc::new(stop.drop_guard()) }
    }

    /// Waits for a permit for one call: the moment at which it is void. `request` is who asks, `None` for containment,
    /// which goes first; `until` is when the caller's patience ends.
    ///
    /// # Errors
    /// There is none before `until`, as far as is known: when there may be one again.
    pub async fn permit(&self, key: Key, request: Option<u64>, until: Instant) -> Result<Instant, Duration> {
        let began = Instant::now();
        let (go, word) = oneshot::channel();
        let class = if request.is_some() { "lookup" } else { "containment" };
        {
            let mut lines = self.inner.lock();
            if lines.len() >= LINES_LIMIT {
                lines.retain(|_, line| began.saturating_duration_since(line.used) < IDLE);
            }
            let line = lines.entry(key).or_insert_with(|| Line::new(began));
            line.used = began;
            if line.held_until > until {
                return Err(line.held_until.saturating_duration_since(began));
            }
            // An old word is not trusted: those who were before this process in line may have gone.
            let told = line.told.as_ref().filter(|told| began < told.at + AGAIN);
            let next = told.map_or(began, |told| told.at + told.wait);
            if request.is_some() && next > until {
                return Err(next.saturating_duration_since(began));
            }
            let caller = Caller { go, until, since: began };
            match request {
                None => {
                    line.containment.push_back(caller);
                    // Whatever was said before: its part may be free.
                    line.ask_at[index(Class::Containment)] = began;
                }
                Some(request) => line.lookups.add(request, caller),
            }
        }
        if request.is_some() {
            self.inner.lookups.notify_one()
        } else {
            self.inner.containment.notify_one()
        }
        // The tasks live as long as this handle.
        let told = word.await.unwrap_or(Err(PAUSE));
        self.inner.metrics.defender_permit(class, began.elapsed());
        told
    }

    /// The service answered 429, with this `Retry-After` if any: everybody's calls wait.
    pub fn throttled(&self, key: Key, retry_after: Option<Duration>) {
        let now = Instant::now();
        let rest = hold(retry_after);
        self.inner.metrics.defender_throttled(key.row().name(), rest);
        tracing::warn!(quota.family = key.row().name(), retry_after_ms = millis(rest), "Defender throttles");
        self.inner.lock().entry(key.clone()).or_insert_with(|| Line::new(now)).hold(now + rest, now);
        match &self.inner.source {
            Source::Alone => {
                let mut counter = locked(&self.inner.counter);
                let at = counter.clock.now();
                counter.book.throttled(&key, retry_after, at);
            }
            Source::Desk(desk) => {
                let desk = Arc::clone(desk.shared());
                desk.clone().spawn(async move {
                    let request = Request::QuotaThrottled { key, retry_after_ms: retry_after.map(millis) };
                    // Nobody there: then the workers keep to what each has heard itself.
                    if let Err(error) = desk.line.ask(&request, LOOKUP_LIMIT).await {
                        tracing::debug!(error = %error, "the desk was not told that Defender throttles");
                    }
                });
            }
        }
    }

    /// How many lookups could still go out before `until`, by the last word and less those that wait here.
    #[must_use]
    pub fn room(&self, key: &Key, until: Instant) -> u32 {
        let mut lines = self.inner.lock();
        let most = self.inner.settings.most(key.row());
        let Some(line) = lines.get_mut(key) else { return most };
        if line.held_until > until {
            return 0;
        }
        let room = line.told.as_ref().map_or(most, |told| told.room(until).min(most));
        room.saturating_sub(u32::try_from(line.waiting(Class::Lookup)).unwrap_or(u32::MAX))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Line>> {
        locked(&self.lines)
    }

    /// What is to be asked now, or when there may be something.
    fn due(&self, class: Class) -> Result<Asking, Option<Instant>> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (key, line) in self.lock().iter_mut() {
            let waiting = line.waiting(class);
            if waiting == 0 {
                continue;
            }
            let at = line.ask_at[index(class)].max(line.held_until);
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            let first = line.containment.front().map_or(now, |caller| caller.since.max(line.held_until));
            let count = u32::try_from(waiting.min(WANT_LIMIT)).unwrap_or(u32::MAX);
            due.push((at, first, QuotaAsk { key: key.clone(), class, count }));
        }
        if due.is_empty() {
            return Err(next);
        }
        // Those that are due for longest; the others come next.
        due.sort_by_key(|(at, ..)| *at);
        due.truncate(ASKS_LIMIT);
        let since = due.iter().map(|(_, first, _)| *first).min().unwrap_or(now);
        Ok(Asking { asks: due.into_iter().map(|(.., ask)| ask).collect(), since })
    }

    async fn serve(&self, class: Class) {
        let added = if class == Class::Containment { &self.containment } else { &self.lookups };
        loop {
            let Asking { asks, since } = match self.due(class) {
                Ok(asking) => asking,
                Err(None) => {
                    added.notified().await;
                    continue;
                }
                Err(Some(next)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(next) => {}
                        () = added.notified() => {}
                    }
                    continue;
                }
            };
            let asked = Instant::now();
            let answer = self.ask(class, &asks, since).await;
            let now = Instant::now();
            let mut lines = self.lock();
            match answer {
                Ok(words) => {
                    for (ask, word) in asks.iter().zip(words) {
                        if let Some(line) = lines.get_mut(&ask.key) {
                            line.hear(class, word, asked, now);
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %error, "no word from the desk about the quota");
                    for ask in &asks {
                        let Some(line) = lines.get_mut(&ask.key) else { continue };
                        if class == Class::Containment {
                            line.release(class, ask.count, now + LIFETIME);
                        } else {
                            line.ask_at[index(class)] = now + PAUSE;
                        }
                    }
                }
            }
        }
    }

    async fn ask(&self, class: Class, asks: &[QuotaAsk], since: Instant) -> Result<Vec<Word>, BrokerError> {
        let shared = match &self.source {
            Source::Desk(desk) => desk.shared(),
            Source::Alone => return Ok(self.count(asks)),
        };
        let containment = class == Class::Containment;
        if containment && shared.is_silent() {
            return Err(BrokerError::Timeout);
        }
        let request = Request::Quota { asker: self.asker, asks: asks.to_vec() };
        let limit = match class {
            // A question that went before may have taken its time.
            Class::Containment => CONTAINMENT_LIMIT.saturating_sub(since.elapsed()),
            Class::Lookup => LOOKUP_LIMIT,
        };
        match shared.line.hear(&request, limit).await {
            // It does not know the question: a desk that does says otherwise that it cannot answer.
            Ok(Reply::Unavailable) => Ok(self.count(asks)),
            Ok(Reply::Quota { words }) if words.len() == asks.len() => Ok(words),
            Ok(other) => Err(BrokerError::Unavailable(format!("the desk answered another question: {other:?}"))),
            Err(error) => {
                if containment {
                    shared.fell_silent(&error);
                }
                Err(error)
            }
        }
    }
}

impl Inner {
    /// What this process allows by its own book.
    fn count(&self, asks: &[QuotaAsk]) -> Vec<Word> {
        let mut counter = locked(&self.counter);
        let now = counter.clock.now();
        let book = &mut counter.book;
        let words = asks.iter().map(|ask| book.ask(self.asker, &ask.key, ask.class, ask.count, now)).collect();
        show(book, &self.metrics, now);
        words
    }
}

/// Shows how full the windows are, as the one who counts knows it.
pub(super) fn show(book: &mut Book, metrics: &Metrics, now: Duration) {
    book.prune(now);
    for level in book.levels(now) {
        metrics.defender_quota(level.row.name(), level.window, level.used, level.left);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::quota::{Limits, Row};

    fn budget(per_minute: u32) -> Budget {
        Budget::alone(Settings::new(|_| Limits { per_minute, per_hour: None }), Metrics::default())
    }

    fn key() -> Key {
        Key::new("t.example", "app", Row::Alerts)
    }

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_many_calls_does_not_hold_up_one_of_one_call() {
        let budget = budget(10);
        let (granted, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut calls = JoinSet::new();
        for request in std::iter::repeat_n(1, 100).chain([2]) {
            let (budget, granted, until) = (budget.clone(), granted.clone(), after(600));
            calls.spawn(async move {
                budget.permit(key(), Some(request), until).await.expect("there is time");
                granted.send(request).expect("the case listens");
            });
        }
        let mut place = 0;
        while order.recv().await.expect("the small one comes") != 2 {
            place += 1;
        }
        // A minute's worth may go before it has come, and one of the other's after.
        assert!(place <= 11, "{place}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_go_in_time_is_refused_at_once() {
        let budget = budget(3);
        let (began, until) = (Instant::now(), after(30));
        let calls = (0..5).map(|_| budget.permit(key(), Some(1), until));
        let told = futures_util::future::join_all(calls).await;
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 3);
        for refused in told.into_iter().filter_map(Result::err) {
            assert!(refused > Duration::from_secs(60), "{refused:?}");
        }
        assert!(budget.permit(key(), Some(2), until).await.is_err());
        assert_eq!((began.elapsed(), budget.room(&key(), until)), (Duration::ZERO, 0));
        // Who has the patience waits.
        budget.permit(key(), Some(2), after(90)).await.expect("there is time");
        assert!(began.elapsed() > Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_is_for_containment_too() {
        let budget = budget(3);
        budget.throttled(key(), Some(Duration::from_secs(60)));
        assert_eq!(budget.permit(key(), None, after(30)).await, Err(Duration::from_secs(60)));
        let began = Instant::now();
        budget.permit(key(), None, after(90)).await.expect("there is time");
        assert!(began.elapsed() >= Duration::from_secs(60));
    }
}
