//! The story's clock: what the simulated services believe the time to be.
//!
//! Normally the real time. [`Clock::set`] moves it, so that data of years ago lies within the thirty days that hunting
//! can see; from there it runs on. Tokens and quotas do not follow it: the client's own clock counts those.

use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use jiff::Timestamp;

/// A clock that can be moved.
#[derive(Debug, Default)]
pub(super) struct Clock(RwLock<Option<(Timestamp, Instant)>>);

impl Clock {
    /// What time it is in the story.
    pub(super) fn now(&self) -> Timestamp {
        let set = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        match set {
            None => Timestamp::now(),
            Some((then, since)) => then.checked_add(since.elapsed()).unwrap_or(then),
        }
    }

    /// Makes it `now`, or the real time again.
    pub(super) fn set(&self, now: Option<Timestamp>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = now.map(|now| (now, Instant::now()));
    }
}
