//! Circuits: what is sure to fail is answered from memory for a while (`defender.md` 1.4), so that a queue full of jobs
//! with a wrong secret does not hammer the token endpoint, and jobs for a dead service do not wait for it one by one.
//!
//! Three things are remembered, each with the error that was got, which is answered word for word:
//! - credentials that Entra refuses and roles that Defender or Graph misses, after its one renewal of the token: of an
//!   account and a family, from the first failure on;
//! - a service that answers an account's calls of a family with 5xx, or not in time: after a row of such calls without any
//!   success between them, which lasted long enough not to be a moment's trouble;
//! - a host that cannot be reached: likewise, of all accounts together.
//!
//! An account holds a hash of its secret or certificate, so a new one is not concerned by what was said of the old one. When
//! the time is over one call goes out to try, while the others are still answered from memory; it closes the circuit or
//! opens it again. Calls for containment are never answered from memory, and what becomes of them is learned all the same.
//!
//! [`Book`] is pure, `now` given; [`Circuits`] locks it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::{Account, DefenderError, Family, Kind};
use crate::retry::Failure;

/// Circuits kept at a time, of some 500 bytes with their errors. When so many are open or counting, what fails further
/// is not remembered, and its calls go out.
const CIRCUITS_KEPT: usize = 10_000;

/// How long what is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// That credentials were refused (`defender.md` 1.4).
    pub credentials: Duration,
    /// That a role is missing. An administrator who has just granted it should not have to wait for long.
    pub roles: Duration,
    /// Calls that must fail in a row before a service is held to be dead.
    pub row: u32,
    /// From the first to the last of that row at least: a moment's trouble is the retries' business.
    pub row_lasts: Duration,
    /// That a service is dead, for the first time. Each try that fails doubles it.
    pub dead_first: Duration,
    /// It grows no further.
    pub dead_limit: Duration,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            credentials: Duration::from_secs(5 * 60),
            roles: Duration::from_secs(60),
            row: 5,
            row_lasts: Duration::from_secs(10),
            dead_first: Duration::from_secs(1),
            dead_limit: Duration::from_secs(30),
        }
    }
}

/// Who is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Host {
    Entra,
    Defender,
    Graph,
}

impl Host {
    fn of(family: Family) -> Host {
        match family {
            Family::Token(_) => Host::Entra,
            Family::Hunting => Host::Graph,
            _ => Host::Defender,
        }
    }
}

/// What is remembered of whom.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Refused(Arc<Account>, Family),
    Failing(Arc<Account>, Family),
    Unreachable(Host),
}

impl Key {
    /// Everything that can stand in the way of a call.
    fn all(account: &Arc<Account>, family: Family) -> [Key; 3] {
        [
            Key::Refused(Arc::clone(account), family),
            Key::Failing(Arc::clone(account), family),
            Key::Unreachable(Host::of(family)),
        ]
    }

    /// What a failure is about; `None` where it says nothing of the next call.
    fn of(error: &DefenderError, account: &Arc<Account>) -> Option<Key> {
        let family = error.family;
        let refused = || Some(Key::Refused(Arc::clone(account), family));
        let failing = || Some(Key::Failing(Arc::clone(account), family));
        match &error.kind {
            Kind::TokenRefused { .. } | Kind::TokenTenantUnknown | Kind::TokenOther { .. }
                if error.failure == Failure::Permanent && error.status.is_some() =>
            {
                refused()
            }
            Kind::Forbidden => refused(),
            Kind::Connect | Kind::Tls | Kind::Certificate { .. } if !error.maybe_done => {
                Some(Key::Unreachable(Host::of(family)))
            }
            // To hunting 500 and 504 are how it says that a query is too expensive (`defender.md` 3.3).
            Kind::ServerError | Kind::BadGateway if family == Family::Hunting => {
                matches!(error.status, Some(502 | 503)).then(failing).flatten()
            }
            Kind::Connect | Kind::Tls | Kind::ServerError | Kind::BadGateway | Kind::TokenOther { .. }
                if error.failure == Failure::Unavailable =>
            {
                failing()
            }
            _ => None,
        }
    }

    /// A word for logs.
    const fn name(&self) -> &'static str {
        match self {
            Key::Refused(_, Family::Token(_)) => "credentials",
            Key::Refused(..) => "role",
            Key::Failing(..) => "failing",
            Key::Unreachable(_) => "unreachable",
        }
    }
}

/// How one circuit stands.
enum State {
    /// Failures in a row, not enough yet.
    Counting { failures: u32, since: Instant },
    /// Answered from memory until then, and `trying` whether it is well again after that.
    Open { until: Instant, lasted: Duration, trying: bool, error: DefenderError },
}

/// What a circuit says to a call.
#[derive(Debug)]
enum Word {
    Go,
    /// Go, as the one that tries.
    Try,
    FromMemory(DefenderError),
}

/// All circuits; pure.
struct Book {
    memory: Memory,
    circuits: HashMap<Key, State>,
}

impl Book {
    fn new(memory: Memory) -> Book {
        Book { memory, circuits: HashMap::new() }
    }

    fn ask(&mut self, key: &Key, now: Instant) -> Word {
        match self.circuits.get_mut(key) {
            None | Some(State::Counting { .. }) => Word::Go,
            Some(State::Open { until, trying, .. }) if now >= *until && !*trying => {
                *trying = true;
                Word::Try
            }
            Some(State::Open { error, .. }) => Word::FromMemory(error.clone()),
        }
    }

    /// A call that was to try came to nothing that says anything.
    fn untried(&mut self, key: &Key) {
        if let Some(State::Open { trying, .. }) = self.circuits.get_mut(key) {
            *trying = false;
        }
    }

    fn succeeded(&mut self, key: &Key) {
        self.circuits.remove(key);
    }

    fn failed(&mut self, key: Key, error: &DefenderError, now: Instant) {
        let memory = self.memory;
        self.make_room(&key, now);
        let refused = match &key {
            Key::Refused(_, Family::Token(_)) => Some(memory.credentials),
            Key::Refused(..) => Some(memory.roles),
            Key::Failing(..) | Key::Unreachable(_) => None,
        };
        let lasted = match (refused, self.circuits.get(&key)) {
            (Some(lasts), _) => lasts,
            // A call that was on its way when the circuit opened: its failure is the one that is known.
            (None, Some(State::Open { until, .. })) if now < *until => return,
            (None, Some(State::Open { lasted, .. })) => (*lasted * 2).min(memory.dead_limit),
            (None, counting) => {
                let (failures, since) = match counting {
                    Some(State::Counting { failures, since }) => (failures + 1, *since),
                    _ => (1, now),
                };
                if failures < memory.row || now.duration_since(since) < memory.row_lasts {
                    self.insert(key, State::Counting { failures, since });
                    return;
                }
                memory.dead_first
            }
        };
        if lasted.is_zero() {
            return;
        }
        tracing::warn!(circuit = key.name(), error = %error, open_s = lasted.as_secs(), "calls like this are answered from memory for a while");
        // What a call that was not made could have done is known: nothing. When it may be tried again the circuit knows.
        let error = DefenderError { maybe_done: false, out_of_time: false, retry_after: None, ..error.clone() };
        self.insert(key, State::Open { until: now + lasted, lasted, trying: false, error });
    }

    fn insert(&mut self, key: Key, state: State) {
        if self.circuits.len() < CIRCUITS_KEPT || self.circuits.contains_key(&key) {
            self.circuits.insert(key, state);
        }
    }

    /// Forgets what no longer stands in anybody's way, when there is no room for `key`.
    fn make_room(&mut self, key: &Key, now: Instant) {
        if self.circuits.len() < CIRCUITS_KEPT || self.circuits.contains_key(key) {
            return;
        }
        let stale = self.memory.row_lasts * self.memory.row;
        self.circuits.retain(|_, state| match state {
            State::Counting { since, .. } => now.duration_since(*since) < stale,
            State::Open { until, trying, .. } => *trying || now < *until,
        });
    }
}

/// The circuits of one process.
pub(super) struct Circuits(Mutex<Book>);

impl Circuits {
    pub(super) fn new(memory: Memory) -> Circuits {
        Circuits(Mutex::new(Book::new(memory)))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("nothing panics while holding this lock")
    }

    /// Lets a call of `family` go out, unless it is sure to fail; one for `containment` always. What became of it is told to
    /// the pass.
    ///
    /// # Errors
    /// The remembered failure.
    pub(super) fn enter(
        self: &Arc<Self>,
        account: &Arc<Account>,
        family: Family,
        containment: bool,
    ) -> Result<Pass, DefenderError> {
        let mut pass = Pass { circuits: Arc::clone(self), account: Arc::clone(account), family, tries: Vec::new() };
        if containment {
            return Ok(pass);
        }
        let mut refusal = None;
        {
            let mut book = self.book();
            for key in Key::all(account, family) {
                match book.ask(&key, Instant::now()) {
                    Word::Go => {}
                    Word::Try => pass.tries.push(key),
                    Word::FromMemory(error) => {
                        refusal = Some(error);
                        break;
                    }
                }
            }
        }
        // A pass that is dropped gives back what it was to try.
        refusal.map_or(Ok(pass), Err)
    }
}

/// One call's way through the circuits.
pub(super) struct Pass {
    circuits: Arc<Circuits>,
    account: Arc<Account>,
    family: Family,
    tries: Vec<Key>,
}

impl Pass {
    /// Learns from what became of the call, and hands it on.
    pub(super) fn learn<T>(self, result: Result<T, DefenderError>) -> Result<T, DefenderError> {
        let mut book = self.circuits.book();
        match &result {
            Ok(_) => Key::all(&self.account, self.family).iter().for_each(|key| book.succeeded(key)),
            Err(error) => {
                if error.status.is_some() {
                    // Whatever it answered: it can be reached.
                    book.succeeded(&Key::Unreachable(Host::of(error.family)));
                }
                if let Some(key) = Key::of(error, &self.account) {
                    book.failed(key, error, Instant::now());
                }
            }
        }
        drop(book);
        result
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.tries.is_empty() {
            let mut book = self.circuits.book();
            self.tries.iter().for_each(|key| book.untried(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use jiff::Timestamp;
    use rstest::rstest;
    use secrecy::SecretString;

    use super::super::{Audience, Credentials};
    use super::*;
    use crate::outbound::{Answer, OutboundError};

    const TOKEN: Family = Family::Token(Audience::Defender);

    fn account(secret: &str) -> Arc<Account> {
        let (tenant_id, client_id) = ("t".to_owned(), "c".to_owned());
        Arc::new(Account::new(&Credentials { tenant_id, client_id, proof: SecretString::from(secret).into() }))
    }

    fn answered(family: Family, status: u16) -> DefenderError {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer { status, headers: HeaderMap::new(), body: bytes::Bytes::from_static(b"{}") };
        match family {
            Family::Token(_) => DefenderError::from_token_answer(family, &answer, Timestamp::UNIX_EPOCH),
            _ => DefenderError::from_answer(family, &answer, Timestamp::UNIX_EPOCH),
        }
    }

    fn timed_out(family: Family) -> DefenderError {
        DefenderError::from_outbound(family, &OutboundError::Timeout)
    }

    #[rstest]
    #[case::wrong_secret(answered(TOKEN, 401), Some("credentials"))]
    #[case::unknown_tenant(answered(TOKEN, 404), Some("credentials"))]
    #[case::conditional_access(answered(TOKEN, 403), Some("credentials"))]
    #[case::entra_busy(answered(TOKEN, 503), Some("failing"))]
    #[case::entra_throttles(answered(TOKEN, 429), None)]
    #[case::no_token_in_it(answered(TOKEN, 200), None)]
    #[case::never_asked(DefenderError::unknown_tenant(TOKEN), None)]
    #[case::missing_role(answered(Family::Alerts, 403), Some("role"))]
    #[case::bad_request(answered(Family::Alerts, 400), None)]
    #[case::throttled(answered(Family::Alerts, 429), None)]
    #[case::server_error(answered(Family::Alerts, 500), Some("failing"))]
    #[case::gateway(answered(Family::Machines, 502), Some("failing"))]
    #[case::redirect(answered(Family::Machines, 302), None)]
    #[case::slow(timed_out(Family::Machines), Some("failing"))]
    #[case::expensive_query(answered(Family::Hunting, 504), None)]
    #[case::expensive_query_too(answered(Family::Hunting, 500), None)]
    #[case::graph_down(answered(Family::Hunting, 503), Some("failing"))]
    #[case::out_of_time(DefenderError::deadline(Family::Alerts), None)]
    #[case::no_permit(DefenderError::not_permitted(Family::Alerts, Duration::from_secs(9)), None)]
    fn each_failure_is_remembered_as_what_it_is(#[case] error: DefenderError, #[case] expected: Option<&str>) {
        assert_eq!(Key::of(&error, &account("s")).map(|key| key.name()), expected, "{error}");
    }

    fn book() -> (Book, Instant) {
        (Book::new(Memory::default()), Instant::now())
    }

    /// What `ask` says at each second from `from` on, one letter each: goes, tries, or is answered from memory.
    fn words(book: &mut Book, key: &Key, start: Instant, seconds: impl IntoIterator<Item = u64>) -> String {
        let word = |second| match book.ask(key, start + Duration::from_secs(second)) {
            Word::Go => 'g',
            Word::Try => 't',
            Word::FromMemory(_) => 'm',
        };
        seconds.into_iter().map(word).collect()
    }

    #[test]
    fn refused_credentials_are_remembered_for_five_minutes_and_then_tried_by_one() {
        let (mut book, start) = book();
        let (key, other) = (Key::Refused(account("old"), TOKEN), Key::Refused(account("new"), TOKEN));
        book.failed(key.clone(), &answered(TOKEN, 401), start);
        assert_eq!(words(&mut book, &key, start, [0, 1, 299, 300, 300, 301]), "mmmtmm");
        assert_eq!(words(&mut book, &other, start, [0]), "g", "a new secret is a new account");
        let Word::FromMemory(error) = book.ask(&key, start) else { panic!("it is open") };
        assert_eq!(error.to_string(), answered(TOKEN, 401).to_string());
        // The one that tried was cut short: the next one tries.
        book.untried(&key);
        assert_eq!(words(&mut book, &key, start, [302, 302]), "tm");
        book.failed(key.clone(), &answered(TOKEN, 401), start + Duration::from_secs(302));
        assert_eq!(words(&mut book, &key, start, [303, 601, 602]), "mmt");
        book.succeeded(&key);
        assert_eq!(words(&mut book, &key, start, [602, 603]), "gg");
    }

    #[test]
    fn a_dead_service_is_remembered_after_a_row_that_lasted_and_for_longer_each_time() {
        let (mut book, start) = book();
        let key = Key::Failing(account("s"), Family::Alerts);
        let at = |second| start + Duration::from_secs(second);
        let error = answered(Family::Alerts, 503);
        (0..100).for_each(|_| book.failed(key.clone(), &error, at(4)));
        assert_eq!(words(&mut book, &key, start, [4]), "g", "many in a moment are a moment's trouble");
        book.failed(key.clone(), &error, at(14));
        assert_eq!(words(&mut book, &key, start, [14, 15, 15]), "mtm");
        // The one that tried makes it longer; those that were on their way before do not.
        book.failed(key.clone(), &error, at(15));
        book.failed(key.clone(), &error, at(16));
        assert_eq!(words(&mut book, &key, start, [16, 17]), "mt");
        let mut now = 17;
        for expected in [4, 8, 16, 30, 30] {
            book.failed(key.clone(), &error, at(now));
            assert_eq!(words(&mut book, &key, start, [now + expected - 1, now + expected]), "mt");
            now += expected;
        }
        book.succeeded(&key);
        (0..4).for_each(|second| book.failed(key.clone(), &error, at(now + 2 * second)));
        assert_eq!(words(&mut book, &key, start, [now + 8]), "g", "a success ends the row");
    }

    #[test]
    fn the_number_of_circuits_is_bounded() {
        let (mut book, start) = book();
        let fail = |book: &mut Book, n: usize, now| {
            book.failed(Key::Refused(account(&n.to_string()), TOKEN), &answered(TOKEN, 401), now);
        };
        (0..CIRCUITS_KEPT + 10).for_each(|n| fail(&mut book, n, start));
        assert_eq!(book.circuits.len(), CIRCUITS_KEPT);
        fail(&mut book, CIRCUITS_KEPT + 10, start + Duration::from_secs(301));
        assert_eq!(book.circuits.len(), 1, "those whose time was over made room");
    }

    #[tokio::test]
    async fn containment_is_never_answered_from_memory_and_heals_it() {
        let circuits = Arc::new(Circuits::new(Memory::default()));
        let account = account("s");
        let enter = |containment| circuits.enter(&account, TOKEN, containment);
        let first = enter(false).expect("nothing is known yet");
        assert!(first.learn(Err::<(), _>(answered(TOKEN, 401))).is_err());
        assert_eq!(enter(false).err().expect("it is open").status(), Some(401));
        let contains = enter(true).expect("containment may always try");
        assert!(contains.learn(Ok(())).is_ok());
        assert!(enter(false).is_ok());
    }
}
