//! Keys: of the messages of one queue with the same key, at most one is in somebody's hands (promise 9).
//!
//! The lease is an exclusive queue named after the key, which needs nothing but the broker: only one connection can own
//! it, and it vanishes with its connection, so the lease of a dead worker is free at once. A connection may declare its
//! own exclusive queue twice, therefore the process also keeps a set of its own. A lease lost with its link stays in
//! that set until its holder ends, so that at least this process does not hand the key out twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::link::{CALL_LIMIT, Session, failure, is_locked, limited};
use crate::broker::BrokerError;

/// Pause between attempts to free a lease whose link is still there.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// The leases of one process, and the channel it takes them on.
#[derive(Default)]
pub(super) struct Leases {
    held: Arc<Mutex<HashSet<ShortString>>>,
    /// Idle channels by session. A refusal closes its channel, so some are used only once.
    idle: Mutex<Vec<(u64, Channel)>>,
}

/// Permission to hand out messages of one key.
pub(super) struct Lease {
    name: ShortString,
    session: Arc<Session>,
    leases: Arc<Leases>,
    /// Frees the place in the process's own set, last of all.
    _place: Place,
}

struct Place(Arc<Mutex<HashSet<ShortString>>>, ShortString);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().expect("nobody panics while holding it").remove(&self.1);
    }
}

impl Leases {
    /// Takes the lease; `None` when somebody else has it.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`].
    pub(super) async fn take(
        self: &Arc<Self>,
        session: &Arc<Session>,
        name: ShortString,
    ) -> Result<Option<Lease>, BrokerError> {
        if !self.held.lock().expect("nobody panics while holding it").insert(name.clone()) {
            return Ok(None);
        }
        let place = Place(self.held.clone(), name.clone());
        let channel = self.channel(session).await?;
        match timeout(CALL_LIMIT, declare(&channel, name.clone())).await {
            Ok(Ok(())) => {
                self.put_back(session, channel);
                Ok(Some(Lease { name, session: session.clone(), leases: self.clone(), _place: place }))
            }
            Ok(Err(error)) if is_locked(&error) => Ok(None),
            Ok(Err(error)) => Err(failure("take a lease", &error)),
            Err(_) => Err(BrokerError::Unavailable("could not take a lease: no answer in time".to_owned())),
        }
    }

    async fn channel(&self, session: &Session) -> Result<Channel, BrokerError> {
        let pooled = {
            let mut idle = self.idle.lock().expect("nobody panics while holding it");
            idle.retain(|(number, channel)| *number == session.number && channel.status().connected());
            idle.pop()
        };
        match pooled {
            Some((_, channel)) => Ok(channel),
            None => session.channel().await,
        }
    }

    fn put_back(&self, session: &Session, channel: Channel) {
        self.idle.lock().expect("nobody panics while holding it").push((session.number, channel));
    }
}

async fn declare(channel: &Channel, name: ShortString) -> lapin::Result<()> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    channel.queue_declare(name, options, FieldTable::default()).await.map(drop)
}

impl Lease {
    /// Frees the key. Goes on trying while the link is there; when it is gone, so is the lease.
    pub(super) async fn release(self) {
        while !self.session.ended.is_cancelled() {
            match self.delete().await {
                Ok(()) => return,
                Err(error) if self.session.connection.status().connected() => {
                    tracing::warn!(error = %error, "a lease could not be freed, trying on");
                }
                Err(_) => return,
            }
            tokio::time::sleep(RELEASE_PAUSE).await;
        }
    }

    async fn delete(&self) -> Result<(), BrokerError> {
        let channel = self.leases.channel(&self.session).await?;
        limited("free a lease", channel.queue_delete(self.name.clone(), QueueDeleteOptions::default())).await?;
        self.leases.put_back(&self.session, channel);
        Ok(())
    }
}

/// Takes an exclusive queue as a lock on a channel of its own, which is given back to hold on to; `None` when somebody
/// else has it. The process's own set does not apply: callers see to that themselves.
pub(super) async fn lock(connection: &Connection, name: ShortString) -> Result<Option<Channel>, BrokerError> {
    let channel = limited("open a channel", connection.create_channel()).await?;
    match timeout(CALL_LIMIT, declare(&channel, name)).await {
        Ok(Ok(())) => Ok(Some(channel)),
        Ok(Err(error)) if is_locked(&error) => Ok(None),
        Ok(Err(error)) => Err(failure("take a lock", &error)),
        Err(_) => Err(BrokerError::Unavailable("could not take a lock: no answer in time".to_owned())),
    }
}

/// Frees a lock of [`lock`]. If that fails it goes with the connection.
pub(super) async fn unlock(channel: &Channel, name: ShortString) {
    if let Err(error) = limited("free a lock", channel.queue_delete(name, QueueDeleteOptions::default())).await {
        tracing::debug!(error = %error, "a lock could not be freed");
    }
}
