//! How a process stops: a soft token ends accepting and receiving, a hard one ends waiting.
//!
//! The first SIGTERM or SIGINT cancels the soft token. What runs may finish within the grace period; then, or at a
//! second signal, the hard token is cancelled and what is left is given back. Telemetry is flushed after both, by the
//! caller.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The two tokens every role is handed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    begun_at: Arc<OnceLock<Instant>>,
    grace: Duration,
}

/// How long before the hard stop waiting callers are answered, so that the answer still leaves.
const LAST_CALL: Duration = Duration::from_secs(1);

impl Shutdown {
    /// Nothing is cancelled yet. After [`Shutdown::begin`] at most `grace` passes until the hard stop.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// A shutdown for one role among several in a process: it stops when told by itself, hard no later than `self`.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { hard: self.hard.child_token(), grace: self.grace, ..Self::default() }
    }

    /// Begins to stop. The hard stop follows when the grace period is over; it counts from the first call.
    pub fn begin(&self) {
        if self.begun_at.set(Instant::now()).is_err() {
            return;
        }
        self.soft.cancel();
        let (hard, grace) = (self.hard.clone(), self.grace);
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(grace) => hard.cancel(),
                () = hard.cancelled() => {}
            }
        });
    }

    /// Ends all waiting now.
    pub fn begin_hard(&self) {
        let _ = self.begun_at.set(Instant::now());
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Whether stopping has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Waits until stopping begins.
    pub async fn begun(&self) {
        self.soft.cancelled().await;
    }

    /// Waits until waiting is over.
    pub async fn hard(&self) {
        self.hard.cancelled().await;
    }

    /// Waits until it is time to answer whoever still waits: shortly before the hard stop.
    pub async fn last_call(&self) {
        self.begun().await;
        let begun = self.begun_at.get().copied().unwrap_or_else(Instant::now);
        // A tenth of a short grace period, so that some of it is left to wait in.
        let margin = LAST_CALL.min(self.grace / 10);
        tokio::select! {
            () = tokio::time::sleep_until(begun + self.grace.saturating_sub(margin)) => {}
            () = self.hard() => {}
        }
    }

    /// Turns signals into stops, for ever: the first begins, the second means now.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            for first in [true, false] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if first {
                    tracing::info!(grace_seconds = shutdown.grace.as_secs(), "stopping");
                    shutdown.begin();
                } else {
                    tracing::warn!("stopping now, at a second signal");
                    shutdown.begin_hard();
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_hard_stop_follows_when_the_grace_period_is_over() {
        let shutdown = Shutdown::new(Duration::from_secs(7));
        shutdown.begin();
        let begun = tokio::time::Instant::now();
        shutdown.begun().await;
        shutdown.hard().await;
        assert_eq!(begun.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_call_comes_before_the_hard_stop() {
        let shutdown = Shutdown::new(Duration::from_secs(7));
        let begun = Instant::now();
        shutdown.begin();
        shutdown.last_call().await;
        assert_eq!(begun.elapsed().as_millis(), 6_300);
        shutdown.hard().await;
        assert_eq!(begun.elapsed().as_millis(), 7_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_stops_softly_by_itself_and_hard_with_its_parent() {
        let parent = Shutdown::new(Duration::from_secs(7));
        let child = parent.child();
        parent.begin();
        assert!(!child.has_begun());
        parent.hard().await;
        child.hard().await;
    }
}
