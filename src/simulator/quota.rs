//! The quotas of `defender.md` 3.1: calls of one application in one tenant and family, per minute and per hour.
//!
//! The windows slide: a call is allowed when fewer than the limit were allowed in the minute, and in the hour, before
//! it. That is never more generous than windows with fixed ends, so who keeps within these keeps within both kinds.
//! A refused call costs nothing. Time is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How many calls are allowed. The default is what Microsoft publishes (`defender.md` 3.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Calls per minute of each REST family, for each application in each tenant.
    pub per_minute: u32,
    /// Calls per hour of each REST family, for each application in each tenant.
    pub per_hour: u32,
    /// Hunting calls per minute, for each tenant.
    pub hunting_per_minute: u32,
    /// How long "a minute" lasts, in seconds. Shorter ones let tests see a window pass.
    pub minute_seconds: f64,
    /// How long "an hour" lasts, in seconds.
    pub hour_seconds: f64,
    /// Whether a refused hunting call carries `Retry-After`; the contract leaves it open (`defender.md` 3.2).
    pub hunting_retry_after: bool,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            per_minute: 100,
            per_hour: 1_500,
            hunting_per_minute: 45,
            minute_seconds: 60.0,
            hour_seconds: 3_600.0,
            hunting_retry_after: true,
        }
    }
}

impl Quota {
    /// Every limit multiplied by `factor`, at least 1: for load tests with the proportions of the real service.
    pub fn scaled(&self, factor: f64) -> Self {
        let scale = |limit: u32| (f64::from(limit) * factor).round().max(1.0) as u32;
        Self {
            per_minute: scale(self.per_minute),
            per_hour: scale(self.per_hour),
            hunting_per_minute: scale(self.hunting_per_minute),
            ..self.clone()
        }
    }

    fn windows(&self, hunting: bool) -> Vec<Window> {
        let minute = seconds(self.minute_seconds);
        if hunting {
            return vec![Window { limit: self.hunting_per_minute, length: minute, name: "00:01:00" }];
        }
        vec![
            Window { limit: self.per_minute, length: minute, name: "00:01:00" },
            Window { limit: self.per_hour, length: seconds(self.hour_seconds), name: "01:00:00" },
        ]
    }
}

/// A length that came from outside: nonsense counts as no time at all.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

struct Window {
    limit: u32,
    length: Duration,
    name: &'static str,
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    /// When to try again, in whole seconds from now, at least 1.
    pub(super) retry_after_seconds: u64,
    /// As the service words it: `maximum allowed 100 per 00:01:00`.
    pub(super) limit: u32,
    /// The window's name in that sentence.
    pub(super) window: &'static str,
}

/// Who is counted: tenant, application (empty for hunting, which is counted per tenant), family.
pub(super) type Account = (String, String, &'static str);

/// The calls that were allowed, by account.
#[derive(Debug, Default)]
pub(super) struct Ledger(HashMap<Account, VecDeque<Instant>>);

impl Ledger {
    /// Allows one call of `account` at `now` and counts it, or says when it would be allowed.
    pub(super) fn take(&mut self, quota: &Quota, account: Account, hunting: bool, now: Instant) -> Result<(), Refusal> {
        let windows = quota.windows(hunting);
        let calls = self.0.entry(account).or_default();
        let longest = windows.iter().map(|window| window.length).max().unwrap_or_default();
        while calls.front().is_some_and(|&call| now.duration_since(call) >= longest) {
            calls.pop_front();
        }
        let mut refusal: Option<(Duration, &Window)> = None;
        for window in &windows {
            let used = calls.len() - calls.partition_point(|&call| now.duration_since(call) >= window.length);
            if used < window.limit as usize {
                continue;
            }
            // The call that has to leave the window before another fits in.
            let oldest = calls.len() - (window.limit as usize).min(calls.len());
            let wait = calls.get(oldest).map_or(window.length, |&call| window.length - now.duration_since(call));
            if refusal.as_ref().is_none_or(|(longest, _)| wait > *longest) {
                refusal = Some((wait, window));
            }
        }
        match refusal {
            None => {
                calls.push_back(now);
                Ok(())
            }
            Some((wait, window)) => Err(Refusal {
                retry_after_seconds: (wait.as_secs_f64().ceil() as u64).max(1),
                limit: window.limit,
                window: window.name,
            }),
        }
    }

    /// Forgets every call.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        ("tenant".to_owned(), "app".to_owned(), "alerts")
    }

    #[test]
    fn the_hundred_and_first_call_of_a_minute_waits_for_the_first_to_leave_the_window() {
        let (quota, mut ledger, start) = (Quota::default(), Ledger::default(), Instant::now());
        for second in 0..100 {
            let at = start + Duration::from_millis(second * 100);
            assert_eq!(ledger.take(&quota, account(), false, at), Ok(()));
        }
        let refusal = ledger.take(&quota, account(), false, start + Duration::from_secs(20)).unwrap_err();
        assert_eq!(refusal, Refusal { retry_after_seconds: 40, limit: 100, window: "00:01:00" });
        assert_eq!(ledger.take(&quota, account(), false, start + Duration::from_secs(60)), Ok(()));
        assert!(ledger.take(&quota, account(), false, start + Duration::from_secs(60)).is_err());
    }

    #[test]
    fn the_hour_counts_beside_the_minute() {
        let (quota, mut ledger, start) = (Quota::default(), Ledger::default(), Instant::now());
        for minute in 0..15u64 {
            for _ in 0..100 {
                assert_eq!(ledger.take(&quota, account(), false, start + Duration::from_secs(minute * 61)), Ok(()));
            }
        }
        let refusal = ledger.take(&quota, account(), false, start + Duration::from_secs(1_000)).unwrap_err();
        assert_eq!(refusal, Refusal { retry_after_seconds: 2_600, limit: 1_500, window: "01:00:00" });
    }

    #[test]
    fn accounts_do_not_share_and_hunting_has_no_hour() {
        let (quota, mut ledger, start) = (Quota::default(), Ledger::default(), Instant::now());
        let hunting: Account = ("tenant".to_owned(), String::new(), "hunting");
        for minute in 0..100u64 {
            for _ in 0..45 {
                let at = start + Duration::from_secs(minute * 60);
                assert_eq!(ledger.take(&quota, hunting.clone(), true, at), Ok(()));
            }
        }
        let at = start + Duration::from_secs(99 * 60);
        assert_eq!(ledger.take(&quota, hunting, true, at).unwrap_err().limit, 45);
        assert_eq!(ledger.take(&quota, account(), false, at), Ok(()));
    }

    #[test]
    fn scaling_keeps_the_proportions() {
        let quota = Quota::default().scaled(10.0);
        assert_eq!((quota.per_minute, quota.per_hour, quota.hunting_per_minute), (1_000, 15_000, 450));
        assert_eq!(Quota::default().scaled(0.000_1).per_minute, 1);
    }
}
