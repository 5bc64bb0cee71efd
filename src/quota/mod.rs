//! The budget of Defender calls: how many of each family a tenant's application may still make. Pure: `now` is an
//! argument, the time since 1970 by a clock that only goes forward.
//!
//! # Windows
//! A family is a row of `defender.md` 3.1, with a window of a minute and one of an hour at the same time (hunting: a
//! minute, per tenant whatever the application). The service counts calls when they arrive, this book when it grants
//! them; in between a permit travels. So a permit is void [`LIFETIME`] after it was asked for, a call needs no longer
//! than [`SLACK`] to arrive, and a use stays in the book longer than in the service's window by both, and by the slot of
//! time that it is noted in. No window of the service ever holds more than its limit then, whatever the order of asks
//! and grants; and of a minute's limit 95 % can be used, of an hour's more than 99 %.
//!
//! # Who goes first
//! Of the families that containment uses, a part (`RESERVED`) is for containment alone. For the others the askers, one
//! for each worker, take turns: one that asks gets nothing of what those before it in line have been told to come for, and
//! no more than its part where others wait. Calls that many share are spent evenly (`window`).
//!
//! # Several books
//! Each desk writes its uses under a name of its own. Merging two books takes the larger figure of each (slot, name), so
//! it may be done in any order and any number of times. Uses that another desk wrote are kept `SKEW` longer, for its
//! clock may be ahead or behind.

mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::window::{Line, Window};

/// A permit that was not used so long after it was asked for is void. A round trip to the desk takes milliseconds, a
/// retained write among it some more.
pub const LIFETIME: Duration = Duration::from_millis(1_500);

/// From a call's start until the service counts it: connecting and sending take a few round trips.
pub const SLACK: Duration = Duration::from_secs(1);

/// A window's uses are noted in slots of this part of its length: 250 ms, and 15 s.
const SLOTS: u32 = 240;

/// The part of a limit that is kept for containment, where containment uses the family, is one in this many.
const RESERVED: u32 = 5;

/// The longest an asker waits before it asks again: what the desk knows may change.
pub const AGAIN: Duration = Duration::from_secs(5);

/// The longest a `Retry-After` is obeyed: the service's longest window.
const HOLD_LIMIT: Duration = Duration::from_secs(3_600);

/// Names are GUIDs or domain names. What is longer is cut, and shares the budget of others that begin alike.
const NAME_LIMIT_BYTES: usize = 128;

/// Lines that a book holds: some hundred tenants that are busy in all families. Beyond, the one that was silent for
/// longest is forgotten.
const LINES_LIMIT: usize = 1_000;

/// Names of desks that a book tells apart: takeovers of an hour. The uses of older ones go under one name; what is merged
/// twice because of that counts twice, which is the safe side.
const WRITERS_LIMIT: usize = 32;

/// When an asker is told how much is free, in seconds from now.
pub const FREE_AT_SECONDS: [u64; 11] = [0, 1, 2, 5, 10, 15, 20, 30, 40, 50, 60];

/// Calls that share a limit: a row of `defender.md` 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// File profiles, and alerts by every route.
    Alerts,
    /// Machines.
    Machines,
    /// What acts on machines.
    Actions,
    /// Machine actions, reading.
    MachineActions,
    /// Indicators.
    Indicators,
    /// Hunting through Graph.
    Hunting,
}

impl Row {
    /// All of them.
    pub const ALL: [Row; 6] =
        [Row::Alerts, Row::Machines, Row::Actions, Row::MachineActions, Row::Indicators, Row::Hunting];

    /// Its name in settings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Row::Alerts => "alerts",
            Row::Machines => "machines",
            Row::Actions => "actions",
            Row::MachineActions => "machineactions",
            Row::Indicators => "indicators",
            Row::Hunting => "hunting",
        }
    }

    /// What Microsoft publishes (`defender.md` 3.1).
    #[must_use]
    pub const fn published(self) -> Limits {
        match self {
            Row::Hunting => Limits { per_minute: 45, per_hour: None },
            _ => Limits { per_minute: 100, per_hour: Some(1_500) },
        }
    }

    /// Whether a part is kept for containment: isolating, releasing and other response actions use it.
    const fn serves_containment(self) -> bool {
        matches!(self, Row::Machines | Row::Actions | Row::MachineActions | Row::Indicators)
    }

    /// Whether one call answers whatever waits for it.
    const fn is_shared(self) -> bool {
        matches!(self, Row::Hunting)
    }
}

/// Calls in a window, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In any minute.
    pub per_minute: u32,
    /// In any hour; `None`: there is no such limit.
    pub per_hour: Option<u32>,
}

impl Limits {
    /// So many percent of them, at least 1 call.
    #[must_use]
    pub fn share(self, percent: u32) -> Limits {
        let part = |limit: u32| u32::try_from(u64::from(limit) * u64::from(percent) / 100).unwrap_or(limit).max(1);
        Limits { per_minute: part(self.per_minute), per_hour: self.per_hour.map(part) }
    }
}

/// What the budget keeps to. The same at all workers of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    limits: BTreeMap<Row, Limits>,
    /// How long the service's minute and hour last; other figures are for tests.
    minute: Duration,
    hour: Duration,
}

impl Settings {
    /// With these limits, each already reduced to the deployment's share.
    #[must_use]
    pub fn new(limits: impl Fn(Row) -> Limits) -> Settings {
        Settings {
            limits: Row::ALL.into_iter().map(|row| (row, limits(row))).collect(),
            minute: Duration::from_secs(60),
            hour: Duration::from_secs(3_600),
        }
    }

    /// The same for a service whose minute and hour last so long.
    #[must_use]
    pub fn lasting(self, minute: Duration, hour: Duration) -> Settings {
        Settings { minute, hour, ..self }
    }

    /// The limits of a family.
    #[must_use]
    pub fn limits(&self, row: Row) -> Limits {
        self.limits[&row]
    }

    /// How many calls that are not for containment fit into an unused window.
    #[must_use]
    pub fn most(&self, row: Row) -> u32 {
        let limits = self.limits(row);
        let free = |limit: u32| limit - kept(row, limit);
        free(limits.per_minute).min(limits.per_hour.map_or(u32::MAX, free))
    }

    fn windows(&self, row: Row) -> Vec<Window> {
        let limits = self.limits(row);
        let window = |limit: u32, length: Duration| Window {
            limit,
            kept: kept(row, limit),
            paced: row.is_shared(),
            stay: length + LIFETIME + SLACK,
            slot_ms: millis(length / SLOTS).max(1),
            uses: BTreeMap::new(),
        };
        let hour = limits.per_hour.map(|limit| window(limit, self.hour));
        std::iter::once(window(limits.per_minute, self.minute)).chain(hour).collect()
    }
}

impl Default for Settings {
    /// 80 % of Microsoft's figures, and half of the hunting, which human hunters share.
    fn default() -> Self {
        Settings::new(|row| row.published().share(if row == Row::Hunting { 50 } else { 80 }))
    }
}

/// How much of `limit` is for containment alone; less than all of it.
fn kept(row: Row, limit: u32) -> u32 {
    if row.serves_containment() { limit.div_ceil(RESERVED).min(limit.saturating_sub(1)) } else { 0 }
}

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Isolating, releasing, response actions.
    Containment,
    /// Anything else.
    Lookup,
}

/// Whose calls of what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    tenant_id: String,
    /// Empty for hunting, whose limit is the tenant's.
    client_id: String,
    row: Row,
}

impl Key {
    /// Neither GUIDs nor domain names mind the case.
    #[must_use]
    pub fn new(tenant_id: &str, client_id: &str, row: Row) -> Key {
        let name = |text: &str| text[..text.floor_char_boundary(NAME_LIMIT_BYTES)].to_ascii_lowercase();
        let client_id = if row == Row::Hunting { String::new() } else { name(client_id) };
        Key { tenant_id: name(tenant_id), client_id, row }
    }

    /// The same within the bounds that [`Key::new`] keeps, for one that came from outside.
    #[must_use]
    pub fn bounded(&self) -> Key {
        Key::new(&self.tenant_id, &self.client_id, self.row)
    }

    /// The family.
    #[must_use]
    pub fn row(&self) -> Row {
        self.row
    }
}

/// What an asker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// So many calls may go now.
    pub granted: u32,
    /// When there may be more, in milliseconds; 0 when asking again at once is worth it.
    pub wait_ms: u64,
    /// How many more lookups fit in until each of [`FREE_AT_SECONDS`] if nobody else makes any.
    pub free: Vec<u32>,
}

/// Rounded up: who comes too early has to come again.
fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A book as it is retained: what a desk that takes over has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// The desk that wrote it last.
    pub writer: Uuid,
    /// The desks whose uses are in it.
    writers: Vec<Uuid>,
    lines: Vec<Kept>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    key: Key,
    #[serde(default, skip_serializing_if = "is_zero")]
    held_until_ms: u64,
    /// For each window: slot, index of the writer, calls.
    windows: Vec<Vec<(u64, usize, u32)>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// How full a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// The family.
    pub row: Row,
    /// `minute` or `hour`.
    pub window: &'static str,
    /// Calls that count now.
    pub used: u32,
    /// Calls that fit in now, containment's part included.
    pub left: u32,
}

/// The uses of every account.
#[derive(Debug)]
pub struct Book {
    own: Uuid,
    settings: Settings,
    lines: HashMap<Key, Line>,
}

impl Book {
    /// An empty one, whose own uses are noted under `own`; names of later desks must be larger.
    #[must_use]
    pub fn new(own: Uuid, settings: Settings) -> Book {
        Book { own, settings, lines: HashMap::new() }
    }

    fn line(&mut self, key: &Key, now: Duration) -> &mut Line {
        let own = self.own;
        if !self.lines.contains_key(key) && self.lines.len() >= LINES_LIMIT {
            let oldest = self.lines.iter().min_by_key(|(_, line)| line.asked).map(|(key, _)| key.clone());
            self.lines.remove(&oldest.unwrap_or_else(|| key.clone()));
        }
        let windows = || self.settings.windows(key.row);
        let line = self.lines.entry(key.clone()).or_insert_with(|| Line {
            windows: windows(),
            held_until: Duration::ZERO,
            turns: VecDeque::new(),
            asked: now,
        });
        for window in &mut line.windows {
            window.prune(own, now);
        }
        line
    }

    /// `asker` wants so many calls; what it is granted is noted.
    pub fn ask(&mut self, asker: Uuid, key: &Key, class: Class, want: u32, now: Duration) -> Word {
        let own = self.own;
        self.line(key, now).ask(asker, class, want, own, now)
    }

    /// The service answered 429: nobody calls for the time it said, containment included.
    pub fn throttled(&mut self, key: &Key, retry_after: Option<Duration>, now: Duration) {
        let line = self.line(key, now);
        line.held_until = line.held_until.max(now + hold(retry_after));
    }

    /// Forgets lines that say nothing any more: nothing was used for an hour.
    pub fn prune(&mut self, now: Duration) {
        let own = self.own;
        self.lines.retain(|_, line| {
            for window in &mut line.windows {
                window.prune(own, now);
            }
            line.turns.retain(|(_, until)| *until > now);
            let idle = line.windows.iter().all(|window| window.uses.is_empty()) && line.turns.is_empty();
            !idle || line.held_until > now
        });
    }

    /// What is to be retained. Prune first.
    #[must_use]
    pub fn retained(&mut self) -> Retained {
        let windows = |lines: &HashMap<Key, Line>| -> BTreeSet<Uuid> {
            let windows = lines.values().flat_map(|line| &line.windows);
            windows.flat_map(|window| window.uses.keys().map(|(_, by)| *by)).collect()
        };
        let writers = windows(&self.lines);
        for old in writers.iter().take(writers.len().saturating_sub(WRITERS_LIMIT)).copied() {
            self.fold(old);
        }
        let writers: Vec<Uuid> = windows(&self.lines).into_iter().collect();
        let index = |by: &Uuid| writers.binary_search(by).expect("every name is in the list");
        let kept = |line: &Line| -> Vec<Vec<(u64, usize, u32)>> {
            let window = |window: &Window| {
                window.uses.iter().map(|((slot, by), count)| (*slot, index(by), *count)).collect::<Vec<_>>()
            };
            line.windows.iter().map(window).collect()
        };
        let lines = self.lines.iter().map(|(key, line)| Kept {
            key: key.clone(),
            held_until_ms: millis(line.held_until),
            windows: kept(line),
        });
        Retained { writer: self.own, lines: lines.collect(), writers }
    }

    /// Notes the uses of `old` under no name.
    fn fold(&mut self, old: Uuid) {
        for window in self.lines.values_mut().flat_map(|line| &mut line.windows) {
            let theirs: Vec<_> = window.uses.keys().copied().filter(|(_, by)| *by == old).collect();
            for key in theirs {
                let count = window.uses.remove(&key).unwrap_or_default();
                let folded = window.uses.entry((key.0, Uuid::nil())).or_default();
                *folded = folded.saturating_add(count);
            }
        }
    }

    /// Takes over what others wrote.
    pub fn absorb(&mut self, retained: &Retained, now: Duration) {
        for kept in retained.lines.iter().take(LINES_LIMIT) {
            let line = self.line(&kept.key, now);
            // A clock that was far ahead must not hold anybody for longer than a 429 can.
            let held = Duration::from_millis(kept.held_until_ms).min(now + HOLD_LIMIT);
            line.held_until = line.held_until.max(held);
            for (window, uses) in line.windows.iter_mut().zip(&kept.windows) {
                let latest = window.slot_at(now);
                for (slot, by, count) in uses {
                    let by = retained.writers.get(*by).copied().unwrap_or_default();
                    if *slot > latest + u64::from(SLOTS) {
                        // Nor must it fill a window for longer than that lasts.
                        let noted = window.uses.entry((latest, by)).or_default();
                        *noted = noted.saturating_add(*count);
                    } else {
                        let noted = window.uses.entry((*slot, by)).or_default();
                        *noted = (*noted).max(*count);
                    }
                }
            }
        }
        self.prune(now);
    }

    /// How full each window of each family is, of the account that has least left in it.
    #[must_use]
    pub fn levels(&self, now: Duration) -> Vec<Level> {
        let mut levels: BTreeMap<(Row, usize), Level> = BTreeMap::new();
        for row in Row::ALL {
            let limits = self.settings.limits(row);
            let unused = |window, left| Level { row, window, used: 0, left };
            levels.insert((row, 0), unused("minute", limits.per_minute));
            levels.extend(limits.per_hour.map(|left| ((row, 1), unused("hour", left))));
        }
        for (key, line) in &self.lines {
            for (index, window) in line.windows.iter().enumerate() {
                let left = window.free(Class::Containment, self.own, now, now);
                let used = window.limit.saturating_sub(left);
                if let Some(shown) = levels.get_mut(&(key.row, index)).filter(|shown| left < shown.left) {
                    (shown.used, shown.left) = (used, left);
                }
            }
        }
        levels.into_values().collect()
    }
}

/// How long a family rests after a 429. Where it does not say how long, nobody else is held back: whoever heard it pauses
/// before its own next try (`defender.md` 3.4).
#[must_use]
pub fn hold(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_default().min(HOLD_LIMIT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The clock of tests begins at some moment.
    const BEGIN: Duration = Duration::from_secs(1_700_000_000);

    fn name(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn key() -> Key {
        Key::new("T.example", "app", Row::Alerts)
    }

    fn limited(per_minute: u32, per_hour: u32) -> Settings {
        Settings::new(|_| Limits { per_minute, per_hour: Some(per_hour) })
    }

    /// Asks for one lookup.
    fn ask(book: &mut Book, asker: u128, now: Duration) -> Word {
        book.ask(name(asker), &key(), Class::Lookup, 1, now)
    }

    #[test]
    fn the_defaults_are_the_published_figures_and_our_share_of_them() {
        let settings = Settings::default();
        assert_eq!(settings.limits(Row::Alerts), Limits { per_minute: 80, per_hour: Some(1_200) });
        assert_eq!(settings.limits(Row::Hunting), Limits { per_minute: 22, per_hour: None });
        assert_eq!((settings.most(Row::Alerts), settings.most(Row::Machines)), (80, 64));
        assert_eq!(Row::Hunting.published().share(1), Limits { per_minute: 1, per_hour: None });
    }

    #[test]
    fn accounts_do_not_mind_case_and_hunting_is_the_tenants() {
        assert_eq!(Key::new("A.example", "X", Row::Alerts), Key::new("a.example", "x", Row::Alerts));
        assert_eq!(Key::new("a", "x", Row::Hunting), Key::new("a", "y", Row::Hunting));
        assert_ne!(Key::new("a", "x", Row::Machines), Key::new("a", "y", Row::Machines));
        let long = Key::new(&"\u{e4}".repeat(500), "x", Row::Alerts);
        assert!(long.tenant_id.len() <= NAME_LIMIT_BYTES);
    }

    #[test]
    fn a_full_window_is_free_again_when_its_first_calls_have_left_it() {
        let mut book = Book::new(name(1), limited(3, 100));
        for second in 0..3 {
            assert_eq!(ask(&mut book, 1, BEGIN + Duration::from_secs(second)).granted, 1);
        }
        let full = ask(&mut book, 1, BEGIN + Duration::from_secs(3));
        assert_eq!(full.granted, 0);
        // A minute from the first, what a permit may travel, and its slot.
        let expected = Duration::from_secs(57) + LIFETIME + SLACK + Duration::from_millis(250);
        assert_eq!(Duration::from_millis(full.wait_ms), expected);
        assert_eq!(full.free.last(), Some(&1));
        assert_eq!(ask(&mut book, 1, BEGIN + Duration::from_secs(3) + expected).granted, 1);
    }

    #[test]
    fn nearly_all_of_either_limit_can_be_used() {
        for (settings, calls, least) in [(limited(100, 1_000_000), 6_000, 95), (limited(100, 1_500), 1_500, 99)] {
            let mut book = Book::new(name(1), settings);
            // From the second hour on, so that the first burst does not count for more than it is.
            let (mut now, mut used) = (BEGIN, 0);
            while now < BEGIN + Duration::from_secs(5 * 3_600) {
                let word = book.ask(name(1), &key(), Class::Lookup, 100, now);
                if now >= BEGIN + Duration::from_secs(3_600) {
                    used += word.granted;
                }
                now += Duration::from_millis(word.wait_ms).min(AGAIN);
            }
            assert!(used >= 4 * calls / 100 * least, "{used} of {}", 4 * calls);
        }
    }

    #[test]
    fn a_part_is_for_containment_alone_where_it_uses_the_family() {
        let mut book = Book::new(name(1), limited(10, 100));
        let machines = Key::new("t", "app", Row::Machines);
        assert_eq!(book.ask(name(1), &machines, Class::Lookup, 10, BEGIN).granted, 8);
        assert_eq!(book.ask(name(1), &machines, Class::Containment, 10, BEGIN).granted, 2);
        assert_eq!(book.ask(name(1), &key(), Class::Lookup, 10, BEGIN).granted, 10);
    }

    #[test]
    fn a_hold_is_for_everybody_and_survives_a_takeover() {
        let mut book = Book::new(name(1), limited(10, 100));
        book.throttled(&key(), Some(Duration::from_secs(30)), BEGIN);
        book.throttled(&key(), Some(Duration::ZERO), BEGIN);
        let mut next = Book::new(name(2), limited(10, 100));
        next.absorb(&book.retained(), BEGIN);
        for book in [&mut book, &mut next] {
            let word = book.ask(name(1), &key(), Class::Containment, 1, BEGIN + Duration::from_secs(29));
            assert_eq!((word.granted, word.wait_ms), (0, 1_000));
            assert_eq!(ask(book, 1, BEGIN + Duration::from_secs(30)).granted, 1);
        }
        book.throttled(&key(), Some(Duration::from_secs(86_400)), BEGIN);
        assert_eq!(ask(&mut book, 1, BEGIN).wait_ms, 3_600_000);
    }

    #[test]
    fn askers_take_turns_and_one_that_does_not_come_loses_its_place() {
        let mut book = Book::new(name(1), limited(1, 1_000));
        assert_eq!(ask(&mut book, 1, BEGIN).granted, 1);
        for asker in [2, 3, 1] {
            assert_eq!(ask(&mut book, asker, BEGIN).granted, 0);
        }
        let mut served = Vec::new();
        // All look very often; 3 comes no more.
        for tick in 0..5_000_u64 {
            for asker in [1, 2] {
                let now = BEGIN + Duration::from_millis(tick * 50);
                if ask(&mut book, asker, now).granted == 1 {
                    served.push(asker);
                }
            }
        }
        assert_eq!(served, [2, 1, 2]);
    }

    #[test]
    fn books_are_merged_in_any_order_and_any_number_of_times() {
        let mut books: Vec<Book> = (1..=3).map(|n| Book::new(name(n), limited(100, 1_000))).collect();
        for (n, book) in books.iter_mut().enumerate() {
            book.ask(name(9), &key(), Class::Lookup, u32::try_from(n).unwrap() + 1, BEGIN);
        }
        let written: Vec<Retained> = books.iter_mut().map(Book::retained).collect();
        let free = |order: &[usize]| {
            let mut book = Book::new(name(9), limited(100, 1_000));
            for n in order {
                book.absorb(&written[*n], BEGIN);
            }
            let again = book.retained();
            book.absorb(&again, BEGIN);
            book.ask(name(9), &key(), Class::Lookup, 0, BEGIN).free[0]
        };
        assert_eq!((free(&[0, 1, 2]), free(&[2, 1, 0, 1, 2])), (94, 94));
    }

    #[test]
    fn what_is_retained_is_bounded_and_idle_accounts_leave() {
        let mut book = Book::new(name(1_000), limited(1_000, 1_000));
        for n in 0..100_u128 {
            let mut other = Book::new(name(n + 1), limited(1_000, 1_000));
            ask(&mut other, 1, BEGIN);
            book.absorb(&other.retained(), BEGIN);
            assert!(book.retained().writers.len() <= WRITERS_LIMIT + 1);
        }
        assert_eq!(ask(&mut book, 1, BEGIN).free[0], 899);
        for tenant in 0..LINES_LIMIT + 10 {
            book.ask(name(1), &Key::new(&tenant.to_string(), "c", Row::Alerts), Class::Lookup, 1, BEGIN);
        }
        assert_eq!(book.lines.len(), LINES_LIMIT);
        book.prune(BEGIN + Duration::from_secs(3_700));
        assert!(book.lines.is_empty());
    }

    #[test]
    fn a_clock_that_was_far_ahead_blocks_no_longer_than_a_window() {
        let mut book = Book::new(name(1), limited(10, 100));
        ask(&mut book, 1, BEGIN + Duration::from_secs(86_400));
        let mut next = Book::new(name(2), limited(10, 100));
        next.absorb(&book.retained(), BEGIN);
        assert_eq!(ask(&mut next, 1, BEGIN).free[0], 8);
        next.prune(BEGIN + Duration::from_secs(3_700));
        assert!(next.lines.is_empty());
    }

    #[test]
    fn levels_show_the_account_that_has_least_left() {
        let mut book = Book::new(name(1), limited(10, 100));
        book.ask(name(1), &key(), Class::Lookup, 7, BEGIN);
        book.ask(name(1), &Key::new("other", "app", Row::Alerts), Class::Lookup, 2, BEGIN);
        let level = |window, used, left| Level { row: Row::Alerts, window, used, left };
        assert_eq!(book.levels(BEGIN)[..2], [level("minute", 7, 3), level("hour", 7, 93)]);
        assert_eq!(book.levels(BEGIN).len(), 12);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Ask {
            asker: u8,
            contains: bool,
            want: u32,
        },
        /// Another desk takes over, whose clock differs by so many milliseconds.
        TakeOver(i64),
        Throttled(u64),
    }

    fn step() -> impl Strategy<Value = (u64, u64, Step)> {
        let step = prop_oneof![
            8 => (0_u8..4, any::<bool>(), 1_u32..6)
                .prop_map(|(asker, contains, want)| Step::Ask { asker, contains, want }),
            1 => (-500_i64..500).prop_map(Step::TakeOver),
            1 => (0_u64..20_000).prop_map(Step::Throttled),
        ];
        (prop_oneof![0_u64..300, 0_u64..20_000, 0_u64..400_000], 0_u64..2_500, step)
    }

    proptest! {
        /// Whatever is asked, however long each permit travels and however often the desk changes: no window of the
        /// service ever holds more calls than its limit, and containment is never refused for what lookups used.
        #[test]
        fn no_window_is_exceeded(
            per_minute in 1_u32..8,
            per_hour in 1_u32..40,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let settings = limited(per_minute, per_hour);
            let machines = Key::new("t", "app", Row::Machines);
            let mut book = Book::new(name(1), settings.clone());
            let (mut now, mut clock, mut desks) = (BEGIN, 0_i64, 1);
            let mut arrivals: Vec<Duration> = Vec::new();
            for (after, travel, step) in steps {
                now += Duration::from_millis(after);
                let shown = BEGIN + Duration::from_millis(
                    u64::try_from(i64::try_from((now - BEGIN).as_millis()).unwrap() + 1_000 + clock).unwrap(),
                );
                match step {
                    Step::Ask { asker, contains, want } => {
                        let class = if contains { Class::Containment } else { Class::Lookup };
                        let word = book.ask(name(u128::from(asker)), &machines, class, want, shown);
                        prop_assert!(word.granted <= want);
                        for _ in 0..word.granted {
                            arrivals.push(now + Duration::from_millis(travel));
                        }
                    }
                    Step::TakeOver(skew) => {
                        desks += 1;
                        clock = skew;
                        let written = book.retained();
                        book = Book::new(name(desks), settings.clone());
                        let shown = BEGIN + Duration::from_millis(
                            u64::try_from(i64::try_from((now - BEGIN).as_millis()).unwrap() + 1_000 + clock).unwrap(),
                        );
                        book.absorb(&written, shown);
                    }
                    Step::Throttled(millis) => book.throttled(&machines, Some(Duration::from_millis(millis)), shown),
                }
            }
            arrivals.sort_unstable();
            for (limit, length) in [(per_minute, 60), (per_hour, 3_600)] {
                for (first, from) in arrivals.iter().enumerate() {
                    let until = *from + Duration::from_secs(length);
                    let inside = arrivals[first..].iter().take_while(|at| **at < until).count();
                    prop_assert!(inside <= limit as usize, "{inside} in {length} s");
                }
            }
        }

        /// Who comes when it is told to gets its permit, whatever the others do.
        #[test]
        fn no_permit_is_lost_and_nobody_starves(
            limit in 1_u32..5,
            askers in 1_u128..6,
            wants in prop::collection::vec(1_u32..20, 6),
        ) {
            let mut book = Book::new(name(1), limited(limit, 1_000));
            let mut served = [0_u32; 6];
            let mut next = [BEGIN; 6];
            let mut now = BEGIN;
            let end = BEGIN + Duration::from_secs(1_200);
            while now < end {
                let (asker, at) = (0..usize::try_from(askers).unwrap()).map(|n| (n, next[n])).min_by_key(|(_, at)| *at).unwrap();
                now = now.max(at);
                let word = book.ask(name(asker as u128 + 1), &key(), Class::Lookup, wants[asker], now);
                served[asker] += word.granted;
                next[asker] = now + Duration::from_millis(word.wait_ms.max(1)).min(AGAIN);
            }
            // 1 200 s hold 19 windows of less than 63.25 s and a rest.
            let all: u32 = served.iter().sum();
            prop_assert!(all >= 18 * limit, "{all} of {limit}");
            let fair = all / u32::try_from(askers).unwrap();
            for count in &served[..usize::try_from(askers).unwrap()] {
                prop_assert!(*count + 10 + fair / 2 >= fair, "{served:?}");
            }
        }
    }
}
