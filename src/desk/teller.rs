//! Where the desk grants permits for calls to Defender.
//!
//! # Taking over
//! What is granted is retained before it is answered, so the next desk knows every use that anybody may have. A desk
//! reads the value anew at its first question and after a time without any, in which another may have been the desk;
//! while it is asked it follows the value and merges what others write.
//!
//! What is left is a desk whose receiving link breaks, unknown to it yet, while its sending link holds: what it grants
//! in that moment the next desk hears of a little later, and may have granted as well. So a window can be exceeded by
//! what was in flight at a takeover, and by nothing else.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::budget::{ASKS_LIMIT, Clock, show};
use super::protocol::{Reply, Request};
use super::serve::{BATCH, IDLE, READ_LIMIT, answer};
use crate::broker::{Broker, BrokerError, Delivery};
use crate::job;
use crate::quota::{Book, Retained, Settings};
use crate::telemetry::metrics::Metrics;

/// Without questions for so long somebody else may be the desk, whose figures count then.
const QUIET: Duration = Duration::from_secs(15);

/// See the module's documentation.
pub(super) struct Teller<B> {
    broker: B,
    own: Uuid,
    book: Book,
    clock: Clock,
    /// The retained value, and when a question last came.
    seen: Option<(watch::Receiver<Option<Bytes>>, Duration)>,
    metrics: Metrics,
    answers: TaskTracker,
}

impl<B: Broker> Teller<B> {
    pub(super) fn new(broker: B, settings: Settings, metrics: Metrics, answers: TaskTracker) -> Self {
        let own = Uuid::now_v7();
        Self { broker, own, book: Book::new(own, settings), clock: Clock::new(), seen: None, metrics, answers }
    }

    /// Answers until nobody can ask any more.
    pub(super) async fn run(mut self, mut questions: mpsc::UnboundedReceiver<(Delivery, Request)>) {
        loop {
            let mut batch = Vec::new();
            match timeout(QUIET, questions.recv_many(&mut batch, BATCH)).await {
                Ok(0) => break,
                Ok(_) => self.work(batch).await,
                Err(_) => self.metrics.no_defender_quota(),
            }
        }
    }

    /// Decides a batch, retains what was granted, answers.
    async fn work(&mut self, batch: Vec<(Delivery, Request)>) {
        let ready = self.look().await;
        if let Err(error) = &ready {
            tracing::warn!(error = %error, "the desk cannot read what was used of the quota, and grants nothing of it");
        }
        let now = self.clock.now();
        let (mut decided, mut used) = (Vec::with_capacity(batch.len()), false);
        for (delivery, request) in batch {
            // In the next desk's hands, or nobody waits for it any more, and what it were granted would be lost.
            if delivery.is_lost() || delivery.deadline.is_some_and(|deadline| deadline <= Timestamp::now()) {
                continue;
            }
            let reply = match request {
                _ if ready.is_err() => Reply::NotCounted,
                Request::Quota { asker, asks } if asks.len() <= ASKS_LIMIT => {
                    let words: Vec<_> = asks
                        .iter()
                        .map(|ask| self.book.ask(asker, &ask.key.bounded(), ask.class, ask.count, now))
                        .collect();
                    used |= words.iter().any(|word| word.granted > 0);
                    Reply::Quota { words }
                }
                Request::QuotaThrottled { key, retry_after_ms } => {
                    used = true;
                    self.book.throttled(&key.bounded(), retry_after_ms.map(Duration::from_millis), now);
                    Reply::Noted
                }
                _ => Reply::NotCounted,
            };
            decided.push((delivery, reply));
        }
        show(&mut self.book, &self.metrics, now);
        if used && let Err(error) = self.broker.retain(job::QUOTA, job::encode(&self.book.retained())).await {
            tracing::warn!(error = %error, "the desk cannot note what is used of the quota, and grants nothing of it");
            // It stays counted here: it may be written after all.
            decided.iter_mut().for_each(|(_, reply)| *reply = Reply::NotCounted);
        }
        for (delivery, reply) in decided {
            answer(&self.answers, delivery, &reply);
        }
    }

    /// Learns what others wrote.
    async fn look(&mut self) -> Result<(), BrokerError> {
        let now = self.clock.now();
        let value = match &mut self.seen {
            Some((value, asked)) if now.saturating_sub(*asked) <= IDLE => {
                *asked = now;
                match value.has_changed() {
                    Ok(true) => value.borrow_and_update().clone(),
                    Ok(false) => return Ok(()),
                    Err(_) => {
                        self.seen = None;
                        return Err(BrokerError::Closed);
                    }
                }
            }
            _ => {
                self.seen = None;
                let read = timeout(READ_LIMIT, self.broker.watch(job::QUOTA)).await;
                let mut value = read.unwrap_or(Err(BrokerError::Timeout))?;
                let current = value.borrow_and_update().clone();
                self.seen = Some((value, self.clock.now()));
                current
            }
        };
        let Some(value) = value else { return Ok(()) };
        let retained = job::decode::<Retained>(&value);
        let retained = retained.map_err(|error| {
            self.seen = None;
            BrokerError::Storage(error.to_string())
        })?;
        if retained.writer != self.own {
            self.book.absorb(&retained, self.clock.now());
        }
        Ok(())
    }
}
