//! Callers of Cognito in this process, in line for their permits. One task for each class asks the desk on behalf of all
//! that wait, so that a permit costs a fraction of a round trip when many do, and the workers take turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::handle::{CONTAINMENT_LIMIT, Shared};
use super::permits::{Bucket, Class};
use super::protocol::{Reply, Request};
use crate::broker::BrokerError;

/// Permits that are asked for at once. What one worker is given in one go, the others wait for.
const BATCH: usize = 10;

/// How long a normal question waits for its answer: longer than the desk lets it wait, and than a takeover takes.
const NORMAL_LIMIT: Duration = Duration::from_secs(10);

/// The longest pause on the desk's word before it is asked again: what it knows may change.
const AGAIN: Duration = Duration::from_secs(5);

/// Pause after a question that failed at once.
const PAUSE: Duration = Duration::from_millis(500);

/// Without a desk for so long, normal calls go slowly.
const PATIENCE: Duration = Duration::from_secs(10);

/// How slowly: at this part of the rate in each worker, or one in two seconds. Deployments have a few workers.
const SLOW_SHARE: f64 = 10.0;
const SLOWEST: f64 = 0.5;

type Callers = mpsc::UnboundedReceiver<oneshot::Sender<()>>;

/// Those in line who still wait.
struct Queue {
    callers: Callers,
    waiting: VecDeque<oneshot::Sender<()>>,
}

impl Queue {
    fn new(callers: Callers) -> Self {
        Self { callers, waiting: VecDeque::new() }
    }

    /// Waits until somebody waits; how many, at most a batch. `None` when nobody can come any more.
    async fn wanted(&mut self) -> Option<u32> {
        loop {
            while let Ok(caller) = self.callers.try_recv() {
                self.waiting.push_back(caller);
            }
            self.waiting.retain(|caller| !caller.is_closed());
            if !self.waiting.is_empty() {
                return u32::try_from(self.waiting.len().min(BATCH)).ok();
            }
            let caller = self.callers.recv().await?;
            self.waiting.push_back(caller);
        }
    }

    /// Lets the first `count` go. Who has gone meanwhile leaves its permit to the next.
    fn release(&mut self, count: u32) {
        let mut left = count;
        while left > 0
            && let Some(caller) = self.waiting.pop_front()
        {
            if caller.send(()).is_ok() {
                left -= 1;
            }
        }
    }
}

impl Shared {
    /// Waits as long as Cognito said to this process.
    async fn obey_hold(&self) {
        let mut until = self.held_until.subscribe();
        loop {
            let Some(hold) = until.borrow_and_update().filter(|hold| *hold > Instant::now()) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(hold) => {}
                // Its sender is here.
                _ = until.changed() => {}
            }
        }
    }

    async fn permits(&self, containment: bool, count: u32, limit: Duration) -> Result<(u32, Duration), BrokerError> {
        match self.line.ask(&Request::Permits { containment, count }, limit).await? {
            Reply::Permits { granted, wait_ms } => Ok((granted, Duration::from_millis(wait_ms).min(AGAIN))),
            other => Err(BrokerError::Unavailable(format!("the desk answered another question: {other:?}"))),
        }
    }
}

/// Serves callers for containment.
pub(super) async fn containment(shared: Arc<Shared>, callers: Callers) {
    let origin = Instant::now();
    let mut queue = Queue::new(callers);
    // Without a desk this process keeps to the rate by itself.
    let mut local = Bucket::new(f64::from(shared.settings.cognito_rate), Duration::ZERO);
    while let Some(wanted) = queue.wanted().await {
        shared.obey_hold().await;
        let pause = if shared.is_silent() {
            let granted = local.take(Class::Containment, wanted, origin.elapsed());
            queue.release(granted);
            if granted > 0 { Duration::ZERO } else { local.wait(Class::Containment, origin.elapsed()) }
        } else {
            match shared.permits(true, wanted, CONTAINMENT_LIMIT).await {
                Ok((granted, wait)) => {
                    queue.release(granted);
                    wait
                }
                Err(error) => {
                    shared.fell_silent(&error);
                    local.restart(origin.elapsed());
                    Duration::ZERO
                }
            }
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Serves the others.
pub(super) async fn normal(shared: Arc<Shared>, callers: Callers) {
    let origin = Instant::now();
    let mut queue = Queue::new(callers);
    let slow = (f64::from(shared.settings.cognito_rate) / SLOW_SHARE).max(SLOWEST);
    let mut local = Bucket::new(slow, Duration::ZERO);
    let mut alone_since = None;
    while let Some(wanted) = queue.wanted().await {
        shared.obey_hold().await;
        let asked = Instant::now();
        let pause = match shared.permits(false, wanted, NORMAL_LIMIT).await {
            Ok((granted, wait)) => {
                alone_since = None;
                queue.release(granted);
                wait
            }
            Err(error) => {
                let since = *alone_since.get_or_insert(asked);
                tracing::debug!(error = %error, "no word from the desk about permits");
                if since.elapsed() >= PATIENCE {
                    queue.release(local.take(Class::Containment, wanted, origin.elapsed()));
                }
                PAUSE
            }
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}
