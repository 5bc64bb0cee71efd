//! When to look or try again (`cognito.md` 5.8, `defender.md` 7.3, `DESIGN.md` 10, ruling 3).

use std::time::Duration;

/// Tries of an event before it becomes a dead letter (`cognito.md` 5.8).
pub const MAX_ATTEMPTS: u32 = 10;
/// The longest wait that a server can ask for: Defender's longest quota window. More is a mistake of the server.
pub const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);
/// The wait after a failure that only an operator can mend: a refused token, a missing permission.
pub const CONFIGURATION: Duration = Duration::from_secs(5 * 60);
/// The wait when the opposite action is open (`cognito.md` 5.7).
pub const CROSSED: Duration = Duration::from_secs(60);
/// The wait before the actions are read after a request whose fate is unknown (`defender.md` 7.3, no. 5).
pub const UNKNOWN: Duration = Duration::from_secs(10);
/// How often the actions are read before such a request may be repeated.
pub const UNKNOWN_LOOKS: u32 = 2;
/// How long Defender tries to reach a machine that is offline, and an hour more (`defender.md` 7.4).
pub const GIVE_UP_AFTER: Duration = Duration::from_secs((3 * 24 + 1) * 3600);

/// The waits after the first, second, ... failed try, in seconds; the last one again for all later tries.
const RETRIES: [u64; 7] = [15, 30, 60, 120, 300, 600, 1800];
/// How much longer a wait can become by chance, so that what failed together is not tried together.
const JITTER: f64 = 0.2;

/// The waits before the first looks at an action, in seconds.
const FIRST_LOOKS: [u64; 5] = [2, 5, 10, 20, 40];
const MINUTE: Duration = Duration::from_secs(60);
/// From here on looks are a quarter of an hour apart.
const MINUTES_END: Duration = Duration::from_secs(10 * 60);
const QUARTER: Duration = Duration::from_secs(15 * 60);

/// The wait after the `attempt`th try (from 1) failed; `None`: there is no further try.
///
/// `jitter`, from 0 to 1, is chance; it only lengthens, because a retry never comes early. What the server asked for wins
/// when it is longer.
#[must_use]
pub fn retry(attempt: u32, retry_after: Option<Duration>, jitter: f64) -> Option<Duration> {
    if attempt >= MAX_ATTEMPTS {
        return None;
    }
    let index = (attempt.max(1) as usize - 1).min(RETRIES.len() - 1);
    let own = Duration::from_secs(RETRIES[index]).mul_f64(1.0 + JITTER * chance(jitter));
    Some(own.max(retry_after.unwrap_or_default().min(RETRY_AFTER_LIMIT)))
}

/// The wait before the next look at an action that was looked at `looks` times; `None`: stop following it. It stays
/// visible in the host's tags, and the sweep still looks at it.
#[must_use]
pub fn look(looks: u32) -> Option<Duration> {
    if let Some(&seconds) = FIRST_LOOKS.get(looks as usize) {
        return Some(Duration::from_secs(seconds));
    }
    let first: Duration = Duration::from_secs(FIRST_LOOKS.iter().sum());
    let later = looks - FIRST_LOOKS.len() as u32;
    // Looks a minute apart, until ten minutes are reached or passed.
    let minutes = (MINUTES_END - first).as_secs().div_ceil(MINUTE.as_secs());
    let Some(quarters) = u64::from(later).checked_sub(minutes) else { return Some(MINUTE) };
    let elapsed = first.as_secs() + minutes * MINUTE.as_secs() + quarters.saturating_mul(QUARTER.as_secs());
    (elapsed < GIVE_UP_AFTER.as_secs()).then_some(QUARTER)
}

fn chance(jitter: f64) -> f64 {
    if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retries_of_an_event() {
        let seconds = |attempt| retry(attempt, None, 0.0).map(|wait| wait.as_secs());
        let waits: Vec<_> = (1..=10).map(seconds).collect();
        let expected = [15, 30, 60, 120, 300, 600, 1800, 1800, 1800].map(Some);
        assert_eq!(waits[..9], expected);
        assert_eq!(waits[9], None, "after ten attempts: dead letter");
        assert_eq!((seconds(0), seconds(u32::MAX)), (Some(15), None));
    }

    #[test]
    fn a_longer_retry_after_wins() {
        let with = |asked: u64| retry(1, Some(Duration::from_secs(asked)), 0.0).map(|wait| wait.as_secs());
        assert_eq!((with(3), with(15), with(90)), (Some(15), Some(15), Some(90)));
        assert_eq!(with(1_000_000), Some(3600), "a mistake of the server");
        assert_eq!(retry(10, Some(Duration::from_secs(90)), 0.0), None);
    }

    #[test]
    fn looks_at_an_action() {
        let seconds: Vec<u64> = (0..18).map(|looks| look(looks).unwrap().as_secs()).collect();
        let expected = [2, 5, 10, 20, 40, 60, 60, 60, 60, 60, 60, 60, 60, 60, 900, 900, 900, 900];
        assert_eq!(seconds, expected);
    }

    #[test]
    fn following_ends_after_three_days_and_an_hour() {
        let waits: Vec<Duration> = (0..).map_while(look).collect();
        let total: Duration = waits.iter().sum();
        assert!(total >= GIVE_UP_AFTER && total < GIVE_UP_AFTER + QUARTER, "{total:?}");
        assert_eq!(look(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn chance_only_lengthens(attempt in 1u32..10, jitter in prop_oneof![0.0..1.0f64, any::<f64>()]) {
            let least = retry(attempt, None, 0.0).unwrap();
            let wait = retry(attempt, None, jitter).unwrap();
            prop_assert!(least <= wait && wait <= least.mul_f64(1.21));
        }

        #[test]
        fn following_never_starts_again(looks in 0u32..10_000) {
            prop_assert!(look(looks).is_some() || look(looks + 1).is_none());
        }
    }
}
