//! Requests of this process that wait for their replies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::OPERATION_LIMIT;
use super::link::Link;
use super::store::Asker;
use super::writer::Shared;
use crate::broker::message::BrokerError;

/// Who waits, by token.
#[derive(Default)]
pub(super) struct Pending {
    waiting: Mutex<HashMap<i64, oneshot::Sender<Bytes>>>,
    count: AtomicUsize,
    next_token: AtomicI64,
}

impl Pending {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<i64, oneshot::Sender<Bytes>>) -> T) -> T {
        // Nothing in here can panic half way.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = act(&mut waiting);
        self.count.store(waiting.len(), Ordering::Relaxed);
        outcome
    }

    /// Whether anybody waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// The thread ends: nobody will answer.
    pub(super) fn clear(&self) {
        self.with(HashMap::clear);
    }

    /// Passes a reply on; a late one finds nobody.
    pub(super) fn answer(&self, token: i64, body: Bytes) {
        if let Some(sender) = self.with(|waiting| waiting.remove(&token)) {
            let _ = sender.send(body);
        }
    }
}

/// One request that waits. However the wait ends, the request is taken back if nobody works on it yet.
pub(super) struct Waiting {
    pub asker: Asker,
    pub reply: oneshot::Receiver<Bytes>,
    /// The request's number in the file; 0 before it is stored.
    pub seq: Arc<AtomicI64>,
    link: Link,
    shared: Arc<Shared>,
}

impl Waiting {
    pub(super) fn new(link: &Link, shared: &Arc<Shared>) -> Self {
        let token = shared.pending.next_token.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        shared.pending.with(|waiting| waiting.insert(token, sender));
        Self {
            asker: Asker { origin: shared.origin, token },
            reply,
            seq: Arc::default(),
            link: link.clone(),
            shared: Arc::clone(shared),
        }
    }

    /// The request was not stored, so there is nothing to take back; unless that is not known.
    pub(super) fn was_refused(&self, refusal: &BrokerError) {
        if !matches!(refusal, BrokerError::Unknown(_)) {
            self.shared.pending.with(|waiting| waiting.remove(&self.asker.token));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let unanswered = self.shared.pending.with(|waiting| waiting.remove(&self.asker.token)).is_some();
        if unanswered {
            let (seq, asker) = (Arc::clone(&self.seq), self.asker);
            // Runs after the operation that stores the request, so the number is known by then if there is one.
            let forgotten = self.link.call(false, None, OPERATION_LIMIT, move |work| {
                let seq = seq.load(Ordering::Acquire);
                if seq > 0 {
                    work.store.forget(seq, asker)?;
                }
                Ok(Ok(()))
            });
            drop(forgotten);
        }
    }
}
