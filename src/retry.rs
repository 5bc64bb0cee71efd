//! When to call again, and how long to wait before it: for one call, inside one request.
//!
//! [`next_step`] is the whole policy as a pure function, [`run`] carries it out. What a failure *is* the error says
//! itself ([`Retryable`]); whether the call may be repeated is a property of the call ([`Call`], `defender.md` 3.4).
//! Redelivery of whole jobs is not here: that is the queue's ladder of delays.
//!
//! The waits come from the `backoff` crate, which nothing else uses and no signature shows.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use tokio::time::{Instant, sleep};
use tracing::info;

/// The longest wait a server can ask for. Defender's longest quota window is an hour (`defender.md` 3.1); a larger
/// number is a mistake of the server and must not put a caller to sleep for good.
pub const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// How often a hunting query is repeated after a 5xx or a lost connection: each try costs the tenant's CPU quota
/// (`defender.md` 3.4).
pub const HUNTING_REPEATS: u32 = 2;

/// What sort of call it is: decides what may be repeated (`defender.md` 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Any GET, and writes that may be repeated as they stand (submitting or deleting an indicator).
    Read,
    /// Fetching a token.
    Token,
    /// A hunting query: reads only, but is paid for.
    Hunting,
    /// A machine action, or tags and notes: a second one is harmful, so it is only repeated when the first was certainly
    /// not taken, as a 429 says.
    Write,
    /// The same for a caller who is told of every failure: repeated only when it was never sent (`relay.md` 7.3).
    Once,
}

/// What a failure says about the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 429: the call was not taken.
    Throttled,
    /// The call was certainly not carried out, for another reason: it was never sent, or the service says so.
    NotTaken,
    /// 5xx, a lost connection, a try that took too long: the call may have been carried out.
    Unavailable,
    /// The caller's own deadline ended the try.
    OutOfTime,
    /// The same call would fail again.
    Permanent,
}

impl Failure {
    /// What an HTTP status that is not a success says.
    #[must_use]
    pub fn of_status(status: u16) -> Failure {
        match status {
            429 => Failure::Throttled,
            500..=599 => Failure::Unavailable,
            _ => Failure::Permanent,
        }
    }
}

/// An error that can be judged without reading its text.
pub trait Retryable {
    /// What it says about the next try.
    fn failure(&self) -> Failure;

    /// How long the server asked to be left alone.
    fn retry_after(&self) -> Option<Duration>;

    /// Whether the same call may succeed later.
    fn is_transient(&self) -> bool {
        self.failure() != Failure::Permanent
    }

    /// The same error, knowing that there was no time for another try.
    #[must_use]
    fn out_of_time(self) -> Self
    where
        Self: Sized,
    {
        self
    }
}

/// How often and how fast to try (`defender.md` 3.4).
#[derive(Debug, Clone)]
pub struct Policy {
    /// The first wait is random between nothing and this; later ones between nothing and twice as much each time.
    pub first: Duration,
    /// The range of a wait grows no further, unless the server asks for more.
    pub cap: Duration,
    /// Tries in all, the first included; 1 is the least.
    pub tries: u32,
}

impl Default for Policy {
    /// 1 s, doubling, at most 60 s, 6 tries.
    fn default() -> Self {
        Policy { first: Duration::from_secs(1), cap: Duration::from_secs(60), tries: 6 }
    }
}

/// How far a call has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tries made, the one that just failed included.
    pub tries: u32,
    /// How many of them failed with [`Failure::Unavailable`].
    pub unavailable: u32,
}

/// What to do after a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Try again after this wait.
    Again(Duration),
    /// There is no point, or it is not allowed, or it was tried often enough.
    GiveUp,
    /// It would be worth another try, but the wait reaches past the deadline.
    NoTime,
}

/// The retry policy: what to do after a failed try of `call`.
///
/// `retry_after` is what the server asked for: it wins over `wait` unless it is zero, which asks for nothing. `wait` is
/// the next backoff interval; `left` is what is left until the deadline.
#[must_use]
pub fn next_step(
    policy: &Policy,
    call: Call,
    failure: Failure,
    progress: Progress,
    retry_after: Option<Duration>,
    wait: Duration,
    left: Duration,
) -> Step {
    let allowed = match (failure, call) {
        (Failure::Permanent, _) => false,
        (Failure::OutOfTime, _) => return Step::NoTime,
        (Failure::Throttled, Call::Once) => false,
        (Failure::Throttled | Failure::NotTaken, _) => true,
        (Failure::Unavailable, Call::Read | Call::Token) => true,
        (Failure::Unavailable, Call::Hunting) => progress.unavailable <= HUNTING_REPEATS,
        (Failure::Unavailable, Call::Write | Call::Once) => false,
    };
    if !allowed || progress.tries >= policy.tries {
        return Step::GiveUp;
    }
    let wait = match retry_after {
        Some(asked) if !asked.is_zero() => asked.min(RETRY_AFTER_LIMIT),
        _ => wait,
    };
    if wait < left { Step::Again(wait) } else { Step::NoTime }
}

/// Runs `attempt` until it succeeds, must not be repeated, or no time is left before `deadline`; it is given the number
/// of earlier tries.
///
/// # Errors
/// The last failure. When the deadline cut a try short that is the failure before it, if there was one
/// (`DESIGN.md` 10.9); [`Retryable::out_of_time`] has been called on it.
pub async fn run<T, E, F>(
    policy: &Policy,
    call: Call,
    deadline: Instant,
    mut attempt: impl FnMut(u32) -> F,
) -> Result<T, E>
where
    E: Retryable + fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut waits = Waits::new(policy);
    let mut progress = Progress::default();
    let mut last: Option<E> = None;
    loop {
        let error = match attempt(progress.tries).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let failure = error.failure();
        if failure == Failure::OutOfTime {
            return Err(last.unwrap_or(error).out_of_time());
        }
        progress.tries += 1;
        progress.unavailable += u32::from(failure == Failure::Unavailable);
        let left = deadline.saturating_duration_since(Instant::now());
        match next_step(policy, call, failure, progress, error.retry_after(), waits.next(), left) {
            Step::GiveUp => return Err(error),
            Step::NoTime => return Err(error.out_of_time()),
            Step::Again(wait) => {
                info!(retry.attempt = progress.tries, retry.wait_ms = wait.as_millis() as u64, %error, "call failed, will be repeated");
                sleep(wait).await;
                last = Some(error);
            }
        }
    }
}

/// Exponential waits with full jitter.
struct Waits(backoff::ExponentialBackoff);

impl Waits {
    fn new(policy: &Policy) -> Self {
        // The crate draws from `interval ± factor * interval`. Factor 1 on half the interval makes that
        // `0 ..= interval`: full jitter, which spreads callers that were throttled together best.
        Waits(backoff::ExponentialBackoff {
            current_interval: policy.first / 2,
            initial_interval: policy.first / 2,
            randomization_factor: 1.0,
            multiplier: 2.0,
            max_interval: policy.cap / 2,
            max_elapsed_time: None,
            ..Default::default()
        })
    }

    fn next(&mut self) -> Duration {
        self.0.next_backoff().expect("waits without a limit in time never end")
    }
}

/// Reads a `Retry-After` header: seconds or an HTTP date, both allowed by RFC 9110 10.2.3. A date that has passed is
/// zero. `None` when it is neither.
#[must_use]
pub fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for a number are still a wait, and the longest there is.
        return Some(value.parse().map_or(RETRY_AFTER_LIMIT, Duration::from_secs));
    }
    let wait = http_date(value)?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

/// A date as HTTP writes it: the three forms of RFC 9110 5.6.7, all of them in GMT.
#[must_use]
pub fn http_date(value: &str) -> Option<Timestamp> {
    const FORMS: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = FORMS.iter().find_map(|form| DateTime::strptime(form, value).ok())?;
    Offset::UTC.to_timestamp(date).ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fmt::Write as _;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Fake {
        failure: Failure,
        retry_after: Option<Duration>,
        number: u32,
        out_of_time: bool,
    }

    fn fake(failure: Failure) -> Fake {
        Fake { failure, retry_after: None, number: 0, out_of_time: false }
    }

    impl fmt::Display for Fake {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?}", self.failure)
        }
    }

    impl Retryable for Fake {
        fn failure(&self) -> Failure {
            self.failure
        }
        fn retry_after(&self) -> Option<Duration> {
            self.retry_after
        }
        fn out_of_time(mut self) -> Self {
            self.out_of_time = true;
            self
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    fn after_first_try(call: Call, failure: Failure) -> Step {
        let progress = Progress { tries: 1, unavailable: u32::from(failure == Failure::Unavailable) };
        next_step(&Policy::default(), call, failure, progress, None, Duration::from_secs(1), LONG)
    }

    #[test]
    fn the_statuses_that_are_retried_are_those_of_the_contract() {
        let mut screen = String::new();
        for call in [Call::Read, Call::Token, Call::Hunting, Call::Write, Call::Once] {
            let mut ranges: Vec<(u16, u16)> = Vec::new();
            for status in 100..=599 {
                let repeated = after_first_try(call, Failure::of_status(status)) == Step::Again(Duration::from_secs(1));
                match ranges.last_mut() {
                    _ if !repeated => {}
                    Some((_, last)) if *last + 1 == status => *last = status,
                    _ => ranges.push((status, status)),
                }
            }
            let ranges: Vec<_> = ranges.iter().map(|(from, to)| format!("{from}-{to}")).collect();
            writeln!(screen, "{call:?}: {}", ranges.join(" ")).unwrap();
        }
        assert_eq!(
            screen,
            "Read: 429-429 500-599\n\
             Token: 429-429 500-599\n\
             Hunting: 429-429 500-599\n\
             Write: 429-429\n\
             Once: \n"
        );
    }

    #[rstest]
    #[case::read_goes_on_to_the_last_try(Call::Read, Failure::Unavailable, 5, 5, Step::Again(Duration::from_secs(1)))]
    #[case::read_stops_at_the_last_try(Call::Read, Failure::Unavailable, 6, 6, Step::GiveUp)]
    #[case::hunting_is_repeated_twice(Call::Hunting, Failure::Unavailable, 2, 2, Step::Again(Duration::from_secs(1)))]
    #[case::hunting_is_not_repeated_thrice(Call::Hunting, Failure::Unavailable, 3, 3, Step::GiveUp)]
    #[case::throttled_hunting_goes_on(Call::Hunting, Failure::Throttled, 5, 2, Step::Again(Duration::from_secs(1)))]
    #[case::a_write_that_did_not_happen_is_repeated(
        Call::Write,
        Failure::NotTaken,
        1,
        0,
        Step::Again(Duration::from_secs(1))
    )]
    #[case::but_not_for_ever(Call::Write, Failure::NotTaken, 6, 0, Step::GiveUp)]
    #[case::a_write_may_have_happened(Call::Write, Failure::Unavailable, 1, 1, Step::GiveUp)]
    #[case::what_is_sent_once_is_repeated_when_it_was_never_sent(
        Call::Once,
        Failure::NotTaken,
        1,
        0,
        Step::Again(Duration::from_secs(1))
    )]
    #[case::but_not_when_it_was_refused(Call::Once, Failure::Throttled, 1, 0, Step::GiveUp)]
    #[case::nor_when_nobody_knows(Call::Once, Failure::Unavailable, 1, 1, Step::GiveUp)]
    #[case::a_deadline_is_no_failure_of_theirs(Call::Read, Failure::OutOfTime, 1, 0, Step::NoTime)]
    fn tries_are_counted(
        #[case] call: Call,
        #[case] failure: Failure,
        #[case] tries: u32,
        #[case] unavailable: u32,
        #[case] expected: Step,
    ) {
        let progress = Progress { tries, unavailable };
        let step = next_step(&Policy::default(), call, failure, progress, None, Duration::from_secs(1), LONG);
        assert_eq!(step, expected);
    }

    #[rstest]
    #[case::it_wins(Some(7), 600, Step::Again(Duration::from_secs(7)))]
    #[case::it_may_exceed_the_cap(Some(90), 600, Step::Again(Duration::from_secs(90)))]
    #[case::it_reaches_past_the_deadline(Some(601), 600, Step::NoTime)]
    #[case::it_reaches_the_deadline(Some(600), 600, Step::NoTime)]
    #[case::it_is_clamped(Some(1_000_000), 4000, Step::Again(RETRY_AFTER_LIMIT))]
    #[case::zero_asks_for_nothing(Some(0), 600, Step::Again(Duration::from_secs(1)))]
    #[case::none(None, 600, Step::Again(Duration::from_secs(1)))]
    #[case::no_sleep_reaches_past_the_deadline(None, 1, Step::NoTime)]
    fn retry_after_is_obeyed(#[case] asked: Option<u64>, #[case] left: u64, #[case] expected: Step) {
        let step = next_step(
            &Policy::default(),
            Call::Read,
            Failure::Throttled,
            Progress { tries: 1, unavailable: 0 },
            asked.map(Duration::from_secs),
            Duration::from_secs(1),
            Duration::from_secs(left),
        );
        assert_eq!(step, expected);
    }

    #[test]
    fn waits_double_with_full_jitter_up_to_the_cap() {
        let policy = Policy { first: Duration::from_secs(1), cap: Duration::from_secs(8), tries: 6 };
        let mut widest = [Duration::ZERO; 6];
        for _ in 0..2000 {
            let mut waits = Waits::new(&policy);
            for (n, widest) in widest.iter_mut().enumerate() {
                let wait = waits.next();
                let range = Duration::from_secs([1, 2, 4, 8, 8, 8][n]);
                assert!(wait <= range + Duration::from_nanos(1), "wait {n} was {wait:?}");
                *widest = (*widest).max(wait);
            }
        }
        // 2000 draws all in the lower three quarters of their range: 1e-250.
        assert!(widest[0] > Duration::from_millis(750) && widest[3] > Duration::from_secs(6), "{widest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_until_it_succeeds() {
        let seen = RefCell::new(Vec::new());
        let result = run(&Policy::default(), Call::Read, Instant::now() + LONG, |earlier| {
            seen.borrow_mut().push(earlier);
            async move { if earlier < 3 { Err(fake(Failure::Unavailable)) } else { Ok(earlier) } }
        })
        .await;
        assert_eq!(result, Ok(3));
        assert_eq!(*seen.borrow(), [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_after_past_the_deadline_ends_the_call_at_once() {
        let start = Instant::now();
        let throttled = Fake { retry_after: Some(Duration::from_secs(30)), ..fake(Failure::Throttled) };
        let result: Result<(), _> =
            run(&Policy::default(), Call::Read, start + Duration::from_secs(20), |_| async { Err(throttled.clone()) })
                .await;
        assert_eq!(result, Err(Fake { out_of_time: true, ..throttled }));
        assert_eq!(Instant::now(), start);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_upstream_failure_is_reported_when_time_is_up() {
        let deadline = Instant::now() + Duration::from_secs(20);
        let result: Result<(), _> = run(&Policy::default(), Call::Read, deadline, |earlier| async move {
            let failure = if earlier == 0 { Failure::Unavailable } else { Failure::OutOfTime };
            Err(Fake { number: earlier, ..fake(failure) })
        })
        .await;
        assert_eq!(result, Err(Fake { number: 0, out_of_time: true, ..fake(Failure::Unavailable) }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_first_try_is_itself_the_failure() {
        let deadline = Instant::now() + Duration::from_secs(20);
        let result: Result<(), _> =
            run(&Policy::default(), Call::Read, deadline, |_| async { Err(fake(Failure::OutOfTime)) }).await;
        assert_eq!(result, Err(Fake { out_of_time: true, ..fake(Failure::OutOfTime) }));
    }

    #[rstest]
    #[case::seconds("120", Some(120))]
    #[case::padded(" 5 ", Some(5))]
    #[case::absurd("99999999999999999999999", Some(3600))]
    #[case::date("Fri, 20 Nov 2026 09:31:49 GMT", Some(109))]
    #[case::date_of_rfc_850("Friday, 20-Nov-26 09:31:49 GMT", Some(109))]
    #[case::date_of_asctime("Fri Nov 20 09:31:49 2026", Some(109))]
    #[case::date_in_the_past("Fri, 20 Nov 2026 09:00:00 GMT", Some(0))]
    #[case::negative("-1", None)]
    #[case::fraction("1.5", None)]
    #[case::empty("", None)]
    #[case::words("soon", None)]
    fn retry_after_is_seconds_or_a_date(#[case] value: &str, #[case] expected: Option<u64>) {
        let now: Timestamp = "2026-11-20T09:30:00Z".parse().unwrap();
        assert_eq!(parse_retry_after(value, now), expected.map(Duration::from_secs));
    }

    proptest! {
        #[test]
        fn no_header_value_breaks_the_parser(value in ".{0,60}") {
            let _ = parse_retry_after(&value, Timestamp::UNIX_EPOCH);
        }
    }
}
