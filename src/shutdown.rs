//! How a process stops: a soft token ends accepting and receiving, a hard one ends waiting.
//!
//! The first SIGTERM or SIGINT cancels the soft token. What runs may finish within the grace period; then, or at a
//! second signal, the hard token is cancelled and what is left is given back. Telemetry is flushed after both, by the
//! caller.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The two tokens every role is handed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    grace: Duration,
}

impl Shutdown {
    /// Nothing is cancelled yet. After [`Shutdown::begin`] at most `grace` passes until the hard stop.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { soft: CancellationToken::new(), hard: CancellationToken::new(), grace }
    }

    /// A shutdown for one role among several in a process: it stops when told by itself, hard no later than `self`.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { soft: CancellationToken::new(), hard: self.hard.child_token(), grace: self.grace }
    }

    /// Begins to stop. The hard stop follows when the grace period is over; it counts from the first call.
    pub fn begin(&self) {
        if self.soft.is_cancelled() {
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

    /// The time that running work gets after stopping began.
    #[must_use]
    pub const fn grace(&self) -> Duration {
        self.grace
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
    async fn a_child_stops_softly_by_itself_and_hard_with_its_parent() {
        let parent = Shutdown::new(Duration::from_secs(7));
        let child = parent.child();
        parent.begin();
        assert!(!child.has_begun());
        parent.hard().await;
        child.hard().await;
    }
}
