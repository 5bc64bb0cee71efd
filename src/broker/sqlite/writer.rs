//! The thread that owns the connection.
//!
//! Every operation is a closure that arrives over a channel. What waits there is done in one transaction (group commit:
//! 64 callers share one write), and completed when that is committed. In the same transaction the thread claims
//! messages for its receivers, so that nothing has to be told that something arrived. Three more things wake it: the
//! next delayed message, a slow look for what other processes wrote, and housekeeping. With nothing to wait for it
//! sleeps without a limit.
//!
//! A failed transaction is rolled back and its operations are repeated one by one, so that each caller learns what
//! became of its own. No savepoints: they would cost every operation what only a failing disk needs.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::watch;

use super::asking::Pending;
use super::file::{self, ConsumerLock};
use super::link::{Command, Operation};
use super::receiving::{Entry, Hall, Held};
use super::store::{Claimed, Store};
use crate::broker::message::BrokerError;

/// Operations in one transaction at most: more would make the first one wait without making the last one faster.
const BATCH_LIMIT: usize = 256;

/// Messages claimed in one transaction at most. Their bodies are in memory until they are handed over.
const CLAIM_LIMIT: usize = 256;

/// How often the thread looks whether another process wrote, while somebody here receives or watches. Writes of this
/// process need no look.
const POLL: Duration = Duration::from_millis(250);

/// The same while somebody here waits for replies from another process.
const REPLY_POLL: Duration = Duration::from_millis(20);

/// How soon the thread tries again what the file refused.
const MEND: Duration = Duration::from_secs(1);

/// How often expired requests are deleted and the write-ahead log is emptied, so that what was deleted is gone from
/// there too.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// What an operation may touch. Changes beside the tables go into `effects`, which come to pass with the commit.
pub(super) struct Work<'a> {
    pub store: Store<'a>,
    pub now: i64,
    pub lock: &'a mut ConsumerLock,
    /// Whether the former consumer's messages were brought back.
    pub recovered: bool,
    /// Receivers of this process, in each lane.
    pub hall: &'a Hall,
    /// Why the last write failed.
    pub blocked: Option<&'a BrokerError>,
    pub effects: &'a mut Vec<Effect>,
}

/// What a committed operation changes beside the tables.
pub(super) enum Effect {
    /// A message left the hands of this receiver.
    Freed(u64),
    /// A request of this process is answered.
    Answered { token: i64, body: Bytes },
    /// A retained value is known in this version.
    Retained { slot: usize, version: i64, value: Bytes },
    /// The former consumer's messages were brought back.
    Recovered,
    /// A receiver begins.
    Joined(Entry),
    /// A receiver ends.
    Left(u64),
}

/// A retained value as this process knows it.
pub(super) struct Slot {
    pub name: &'static str,
    pub value: watch::Sender<Option<Bytes>>,
    /// 0 = none known.
    pub version: AtomicI64,
}

/// The thread's side of what it shares with its callers.
pub(super) struct Shared {
    pub origin: i64,
    pub pending: Pending,
    pub slots: Vec<Slot>,
}

/// The thread's own state.
pub(super) struct Writer {
    connection: Connection,
    commands: mpsc::Receiver<Command>,
    lock: ConsumerLock,
    shared: Arc<Shared>,
    hall: Hall,
    recovered: bool,
    /// Whether transactions wait for the disk, as last set.
    synced: Option<bool>,
    /// Let go by their holders, but the file would not have it.
    orphans: Vec<Held>,
    blocked: Option<BrokerError>,
    last_failure: Option<Instant>,
    next_claim: i64,
    next_due: Option<i64>,
    data_version: i64,
    last_poll: Instant,
    last_housekeeping: Instant,
    /// Something was written since the last housekeeping.
    untidy: bool,
    /// The last claim took as much as it may: there may be more.
    more: bool,
}

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        commands: mpsc::Receiver<Command>,
        lock: ConsumerLock,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            connection,
            commands,
            lock,
            shared,
            hall: Hall::default(),
            recovered: false,
            synced: None,
            orphans: Vec::new(),
            blocked: None,
            last_failure: None,
            next_claim: 1,
            next_due: None,
            data_version: 0,
            last_poll: Instant::now(),
            last_housekeeping: Instant::now(),
            untidy: true,
            more: false,
        }
    }

    /// Works until the broker is closed or nobody holds it any more.
    pub(super) fn run(mut self) {
        let mut closing = None;
        while closing.is_none() {
            let mut batch = Vec::new();
            let first = match self.wait() {
                Some(wait) => self.commands.recv_timeout(wait),
                None => self.commands.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            };
            let mut next = match first {
                Ok(command) => Some(command),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            while let Some(command) = next.take() {
                match command {
                    Command::Run(operation) => batch.push(operation),
                    Command::Close(sender) => closing = Some(sender),
                }
                if closing.is_none() && batch.len() < BATCH_LIMIT {
                    next = self.commands.try_recv().ok();
                }
            }
            self.turn(batch, closing.is_some());
        }
        // Its callers go with this process, so their requests go too.
        if let Err(error) = Store(&self.connection).disown(self.shared.origin) {
            tracing::warn!(error = %error, "requests stay in the queue's file until they expire");
        }
        self.tidy();
        let Self { connection, commands, lock, shared, .. } = self;
        if let Err((_, error)) = connection.close() {
            tracing::warn!(error = %error, "the queue's file was not closed in order");
        }
        shared.pending.clear();
        // The file first, then the right to consume it; and the commands before the word that all is closed, so that
        // nobody can slip in and wait.
        drop((lock, commands));
        if let Some(sender) = closing {
            let _ = sender.send(());
        }
    }

    /// How long to wait for a command; `None` = until one comes.
    fn wait(&self) -> Option<Duration> {
        if self.more {
            return Some(Duration::ZERO);
        }
        let mut wait = None;
        let mut at_most = |limit: Duration| wait = Some(wait.map_or(limit, |wait: Duration| wait.min(limit)));
        if let Some(poll) = self.poll_interval() {
            at_most(poll.saturating_sub(self.last_poll.elapsed()));
        }
        if let (Some(due), false) = (self.next_due, self.hall.is_empty()) {
            at_most(Duration::from_micros(u64::try_from(due - now()).unwrap_or(0)));
        }
        if let Some(failure) = self.last_failure {
            let mend = MEND.saturating_sub(failure.elapsed());
            // While the file refuses, nothing else is tried more often.
            return Some(wait.map_or(mend, |wait| wait.max(mend)));
        }
        if self.untidy {
            at_most(HOUSEKEEPING.saturating_sub(self.last_housekeeping.elapsed()));
        }
        wait
    }

    fn poll_interval(&self) -> Option<Duration> {
        if self.shared.pending.is_waiting() && !self.lock.is_held() {
            Some(REPLY_POLL)
        } else if !self.hall.is_empty() || self.shared.slots.iter().any(|slot| slot.value.receiver_count() > 0) {
            Some(POLL)
        } else {
            None
        }
    }

    /// One round: what was asked, what others wrote, what is due.
    fn turn(&mut self, batch: Vec<Box<dyn Operation>>, closing: bool) {
        let mending = self.last_failure.is_some_and(|failure| failure.elapsed() >= MEND);
        let mut wanted = !batch.is_empty() || self.more || mending;
        wanted |= self.hall.sweep();
        wanted |= self.next_due.is_some_and(|due| due <= now()) && !self.hall.is_empty() && self.last_failure.is_none();
        if self.poll_interval().is_some_and(|interval| self.last_poll.elapsed() >= interval) {
            self.last_poll = Instant::now();
            match self.look_around() {
                Ok(changed) => wanted |= changed && !self.hall.is_empty(),
                Err(error) => self.failed(&error, "cannot read the queue's file"),
            }
        }
        if wanted {
            self.transact(batch, closing);
        }
        if self.untidy && self.last_failure.is_none() && self.last_housekeeping.elapsed() >= HOUSEKEEPING {
            self.tidy();
        }
    }

    /// Notices what other processes wrote: retained values and replies are taken at once; whether there is anything
    /// at all is the answer.
    fn look_around(&mut self) -> rusqlite::Result<bool> {
        let version = self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if version == self.data_version {
            return Ok(false);
        }
        let store = Store(&self.connection);
        let mut effects = Vec::new();
        for (slot, known) in self.shared.slots.iter().enumerate() {
            if let Some((version, value)) = store.retained(known.name, known.version.load(Ordering::Relaxed))? {
                effects.push(Effect::Retained { slot, version, value });
            }
        }
        if self.shared.pending.is_waiting() && store.replies_wait(self.shared.origin)? {
            let replies = store.take_replies(self.shared.origin)?;
            effects.extend(replies.into_iter().map(|(token, body)| Effect::Answered { token, body }));
        }
        self.apply(effects);
        self.data_version = version;
        Ok(true)
    }

    /// Does what was asked, and claims for the receivers.
    fn transact(&mut self, mut batch: Vec<Box<dyn Operation>>, closing: bool) {
        let claims = !closing;
        match self.attempt(&mut batch, claims) {
            Ok(claimed) => {
                for operation in batch {
                    operation.finish(None);
                }
                self.hand_over(claimed);
            }
            Err(error) => {
                self.failed(&error, "the queue's file refuses a write");
                let told = file::error(&error);
                // Waiting once for another process's lock is enough; waiting once for each operation is too much.
                let alone = !matches!(told, BrokerError::Unavailable(_));
                for operation in batch {
                    self.attempt_alone(operation, alone, &told);
                }
                // Nothing was claimed for the receivers; while the file refuses, mending does that.
                self.more = claims && self.last_failure.is_none();
            }
        }
    }

    fn attempt_alone(&mut self, operation: Box<dyn Operation>, try_it: bool, told: &BrokerError) {
        let mut alone = vec![operation];
        let failure = if try_it {
            self.attempt(&mut alone, false).err().map(|error| file::error(&error))
        } else {
            Some(told.clone())
        };
        for operation in alone {
            if failure.is_some() {
                self.orphans.extend(operation.hold());
            }
            operation.finish(failure.clone());
        }
    }

    /// One transaction. Its effects come to pass only with the commit.
    fn attempt(&mut self, batch: &mut [Box<dyn Operation>], claims: bool) -> rusqlite::Result<Vec<(u64, Claimed)>> {
        let claims = claims && !self.hall.is_empty();
        let synced = batch.iter().any(|operation| operation.is_durable())
            || (claims && Store(&self.connection).at_most_once_waits()?);
        self.set_synced(synced)?;
        // Rolls back when dropped.
        let transaction =
            rusqlite::Transaction::new_unchecked(&self.connection, rusqlite::TransactionBehavior::Immediate)?;
        let store = Store(&transaction);
        let now = now();
        let mut effects = Vec::new();
        let changes = transaction.total_changes();
        if batch.is_empty() && self.last_failure.is_some() {
            store.touch()?;
        }
        for orphan in &self.orphans {
            if let Some(held) = store.held(orphan.hold)? {
                store.abandon(orphan.hold, &held, now)?;
            }
            effects.push(Effect::Freed(orphan.receiver));
        }
        if self.lock.is_held() {
            store.expire(now)?;
        }
        let mut work = Work {
            store,
            now,
            lock: &mut self.lock,
            recovered: self.recovered,
            hall: &self.hall,
            blocked: self.blocked.as_ref(),
            effects: &mut effects,
        };
        for operation in &mut *batch {
            operation.run(&mut work)?;
        }
        let mut claimed = Vec::new();
        let mut more = false;
        let mut next_due = self.next_due;
        if claims {
            store.promote(now)?;
            let mut left = CLAIM_LIMIT;
            for (receiver, entry, room) in self.hall.with_room(&effects) {
                let taken = store.claim(entry.queue.name, entry.lane, room.min(left), self.next_claim, synced)?;
                left -= taken.len();
                claimed.extend(taken.into_iter().map(|claimed| (receiver, claimed)));
                if left == 0 {
                    more = true;
                    break;
                }
            }
            next_due = store.next_due()?;
        }
        let wrote = transaction.total_changes() > changes;
        transaction.commit()?;
        if wrote {
            self.succeeded();
        }
        self.untidy |= wrote;
        self.next_claim += 1;
        self.next_due = next_due;
        self.more = more;
        self.orphans.clear();
        // A new receiver was not there yet when messages were claimed.
        self.more |= effects.iter().any(|effect| matches!(effect, Effect::Joined(_) | Effect::Left(_)));
        self.apply(effects);
        Ok(claimed)
    }

    /// Whether commits from here on wait for the disk. Those that do not wait cannot harm those that do: the log is
    /// one, and is written in order.
    fn set_synced(&mut self, synced: bool) -> rusqlite::Result<()> {
        if self.synced != Some(synced) {
            let pragma = if synced { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            self.connection.execute_batch(pragma)?;
            self.synced = Some(synced);
        }
        Ok(())
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Freed(receiver) => self.hall.freed(receiver),
                Effect::Answered { token, body } => self.shared.pending.answer(token, body),
                Effect::Retained { slot, version, value } => {
                    let slot = &self.shared.slots[slot];
                    if slot.version.fetch_max(version, Ordering::Relaxed) < version {
                        slot.value.send_replace(Some(value));
                    }
                }
                Effect::Recovered => self.recovered = true,
                Effect::Joined(entry) => self.hall.join(entry),
                Effect::Left(receiver) => self.hall.leave(receiver),
            }
        }
    }

    /// Gives claimed messages to their receivers.
    fn hand_over(&mut self, claimed: Vec<(u64, Claimed)>) {
        for (receiver, claimed) in claimed {
            if let Some(delivery) = self.hall.hand_over(receiver, claimed) {
                // The receiver has gone; it never had the message, so this is no attempt.
                delivery.give_back();
            }
        }
    }

    fn succeeded(&mut self) {
        if self.last_failure.take().is_some() {
            tracing::info!("the queue's file takes writes again");
        }
        self.blocked = None;
    }

    fn failed(&mut self, error: &rusqlite::Error, what: &'static str) {
        let told = file::error(error);
        match (&self.last_failure, &told) {
            (Some(_), _) => {}
            // It passes by itself.
            (None, BrokerError::Unavailable(_)) => tracing::warn!(error = %told, "{what}"),
            (None, _) => tracing::error!(error = %told, "{what}"),
        }
        self.last_failure = Some(Instant::now());
        self.blocked = Some(told);
        self.more = false;
        // Unknown after a failed attempt to set it.
        self.synced = None;
    }

    /// Deletes what expired and empties the log.
    fn tidy(&mut self) {
        self.last_housekeeping = Instant::now();
        self.untidy = false;
        let now = now();
        let expired = match Store(&self.connection).something_expired(now) {
            Ok(true) => {
                rusqlite::Transaction::new_unchecked(&self.connection, rusqlite::TransactionBehavior::Immediate)
                    .and_then(|transaction| {
                        Store(&transaction).expire(now)?;
                        transaction.commit()
                    })
            }
            other => other.map(drop),
        };
        // Not worth waiting for a reader in another process: there is a next time.
        let emptied = self
            .connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
            .and_then(|()| self.connection.busy_timeout(file::BUSY_LIMIT));
        if let Err(error) = expired.and(emptied) {
            tracing::warn!(error = %error, "the queue's file was not tidied up");
            self.untidy = true;
        }
    }
}
