//! What this process has to tell the desk of isolations: kept in order, sent together, sent again until it is heard.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::handle::Shared;
use super::protocol::{Report, Request, What, millis};

/// Reports that wait at most. More are not made in an hour without a desk; the oldest go first, and are healed by what
/// later reports say of the same machines.
const LIMIT: usize = 10_000;

/// Reports that are sent together.
const BATCH: usize = 100;

/// How long the desk may take, and the pause after it did not answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Reports {
    waiting: Mutex<Waiting>,
    added: Notify,
    sent: Notify,
}

#[derive(Default)]
struct Waiting {
    reports: VecDeque<(Instant, What)>,
    /// How many were taken out from the front since the beginning, to tell after a question what it was about.
    gone: u64,
}

impl Waiting {
    fn drop_front(&mut self, count: usize) {
        self.reports.drain(..count);
        self.gone += count as u64;
    }
}

fn report((happened, what): &(Instant, What)) -> Report {
    Report { age_ms: millis(happened.elapsed()), what: what.clone() }
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here can panic half way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, what: What) {
        let mut waiting = self.lock();
        if waiting.reports.len() == LIMIT {
            tracing::warn!("reports to the desk are lost: it has not answered for long");
            waiting.drop_front(1);
        }
        waiting.reports.push_back((Instant::now(), what));
        drop(waiting);
        self.added.notify_one();
    }

    /// What waits and concerns this machine; it stays in line.
    pub(super) fn about(&self, machine_id: &str) -> Vec<Report> {
        self.lock().reports.iter().filter(|(_, what)| what.machine_id() == machine_id).map(report).collect()
    }

    /// Waits until there is nothing left to tell.
    pub(super) async fn empty(&self) {
        loop {
            let sent = self.sent.notified();
            tokio::pin!(sent);
            // From here on no word is missed.
            sent.as_mut().enable();
            if self.lock().reports.is_empty() {
                return;
            }
            sent.await;
        }
    }
}

/// Sends for ever.
pub(super) async fn send(shared: Arc<Shared>) {
    loop {
        let (first, batch) = {
            let waiting = shared.reports.lock();
            (waiting.gone, waiting.reports.iter().take(BATCH).map(report).collect::<Vec<_>>())
        };
        if batch.is_empty() {
            shared.reports.sent.notify_waiters();
            shared.reports.added.notified().await;
            continue;
        }
        let last = first + batch.len() as u64;
        match shared.line.ask(&Request::Report { reports: batch }, ASK_LIMIT).await {
            Ok(_) => {
                let mut waiting = shared.reports.lock();
                // Some may have been dropped for want of room meanwhile.
                let heard = usize::try_from(last.saturating_sub(waiting.gone)).unwrap_or(0);
                waiting.drop_front(heard);
            }
            Err(error) => {
                tracing::debug!(error = %error, "the desk has not heard what became of isolations; it is told again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
