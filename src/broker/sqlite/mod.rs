//! The embedded queue: one SQLite file for one machine.
//!
//! One process receives from the file; a lock of the operating system sees to that. Other processes may publish, ask,
//! watch, and look after dead letters beside it: command line tools and scheduled jobs.
//!
//! # What is on disk when
//! A published message, a delay, a dead letter and a retained value are synced to the disk before the caller is told.
//! Requests (`ask`) and plain acknowledgements are committed without waiting for the disk: they survive the death of
//! the process, and of a machine that loses its power a request's caller is gone too, while an acknowledged message
//! comes once more (promise 2). A message marked [`Repeat::AtMostOnce`] stays in the file while it is in hands, noted
//! and synced as such before it is handed over; if its holder dies it is deleted and not handed out again.
//!
//! Requests are deleted when they are answered, expired or given up, overwritten in the file (`secure_delete`), and
//! gone from the write-ahead log within seconds.
//!
//! # Where it differs from RabbitMQ
//! The limits of a lane count everything that waits in it: ready, delayed, and waiting for its key, but not what is in
//! hands. There is no limit to dead letters but the disk. Receivers in [`Health`] are those of this process.
//!
//! # Files
//! `file` opens and locks, `store` and `dead` hold the statements, `writer` is the thread that runs them and `link` the
//! way to it, `receiving` and `asking` know who waits for messages and for replies. This file is the front door.

mod asking;
mod dead;
mod file;
mod link;
mod receiving;
mod store;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc as commands};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use self::asking::{Pending, Waiting};
use self::file::ConsumerLock;
use self::link::Link;
use self::receiving::Entry;
use self::store::{Arrival, later};
use self::writer::{Effect, Shared, Slot, Work, Writer};
use super::message::{
    BrokerError, DeadLetter, DeadLetterFilter, Headers, Health, Lane, Message, Queue, QueueDepth, Receiver, Repeat,
    Style, Topology,
};
use super::{BODY_LIMIT_BYTES, Broker, PUBLISH_LIMIT};

/// How long a caller waits for the file, publishers aside. Longer than another process may hold it.
const OPERATION_LIMIT: Duration = Duration::from_secs(10);

/// Dead letters sent back in one transaction at most: their bodies are in memory, and others wait meanwhile.
const REDRIVE_LIMIT: usize = 50;

/// A redrive without a rate leaves the file to others for as long as it has just had it, within these bounds: whoever
/// waits for SQLite's lock only looks now and then whether it is free.
const REDRIVE_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How long a look at dead letters, or one turn of a redrive, goes on trying while other processes write to the file.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries.
const OPERATOR_PAUSE: Duration = Duration::from_millis(250);

/// Where the queue is and what it has.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file. It and its folder are made, private to the user, where there are none. `-wal`, `-shm` and `.lock`
    /// files stand beside it.
    pub path: PathBuf,
    /// Its queues and limits.
    pub topology: &'static Topology,
}

/// The embedded queue. Clones share one connection.
#[derive(Clone)]
pub struct Sqlite {
    link: Link,
    shared: Arc<Shared>,
    topology: &'static Topology,
    next_receiver: Arc<AtomicU64>,
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Opens the queue and starts its thread.
    ///
    /// # Errors
    /// [`BrokerError::Storage`] when folder or file cannot be made or written, when the file is something else, or was
    /// written by a newer release; [`BrokerError::Unavailable`] when another process keeps it locked for seconds.
    pub async fn open(settings: Settings) -> Result<Self, BrokerError> {
        let Settings { path, topology } = settings;
        let slots = topology.retained.iter().map(|name| Slot {
            name,
            value: watch::Sender::new(None),
            version: AtomicI64::new(0),
        });
        let (_, random) = Uuid::now_v7().as_u64_pair();
        let shared = Arc::new(Shared {
            // Its lowest 62 bits are random: no two processes have the same, and none is negative.
            origin: i64::try_from(random & (u64::MAX >> 2)).unwrap_or_default(),
            pending: Pending::default(),
            slots: slots.collect(),
        });
        let (sender, commands) = commands::channel();
        let (opened, outcome) = oneshot::channel();
        let writers = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("queue-file".to_owned()).spawn(move || match file::open(&path) {
            Ok(connection) => {
                let writer = Writer::new(connection, commands, ConsumerLock::new(&path), writers);
                if opened.send(Ok(())).is_ok() {
                    writer.run();
                }
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        });
        thread.map_err(|error| BrokerError::Storage(format!("cannot start its thread: {error}")))?;
        match outcome.await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(BrokerError::Storage("its thread has ended".to_owned())),
        }
        Ok(Self { link: Link::new(sender), shared, topology, next_receiver: Arc::default() })
    }

    /// The queue as the topology has it, and the limit of each of its lanes.
    fn known(&self, queue: &Queue) -> Result<(&'static Queue, u64), BrokerError> {
        let known = self.topology.queues.iter().find(|known| known.name == queue.name);
        let known = known.ok_or_else(|| BrokerError::Unroutable(queue.name.to_owned()))?;
        Ok((known, limit_of(self.topology, known)))
    }

    fn slot(&self, name: &'static str) -> Result<usize, BrokerError> {
        let slot = self.shared.slots.iter().position(|slot| slot.name == name);
        slot.ok_or_else(|| BrokerError::Unroutable(name.to_owned()))
    }
}

fn limit_of(topology: &Topology, queue: &Queue) -> u64 {
    u64::from(match queue.style {
        Style::Ask => topology.ask_limit,
        Style::Durable => topology.durable_limit,
    })
}

/// The file would take any size; a message that fits here must fit everywhere.
fn fits(bytes: usize, limit: usize) -> Result<(), BrokerError> {
    if bytes > limit { Err(BrokerError::TooLarge { bytes, limit }) } else { Ok(()) }
}

fn message_fits(message: &Message) -> Result<(), BrokerError> {
    fits(message.body.len(), BODY_LIMIT_BYTES)?;
    fits(message.key.as_ref().map_or(0, String::len), Message::KEY_LIMIT_BYTES)
}

/// Tries again while another process writes to the file: nothing was done then, and operators can wait.
async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let begun = Instant::now();
    loop {
        match call().await {
            Err(BrokerError::Unavailable(_)) if begun.elapsed() < OPERATOR_PATIENCE => {
                tokio::time::sleep(OPERATOR_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Takes the lock and, the first time, brings back what was in the hands of the former holder.
fn take_over(work: &mut Work<'_>, origin: i64) -> rusqlite::Result<Result<(), BrokerError>> {
    if let Err(error) = work.lock.take() {
        return Ok(Err(error));
    }
    if !work.recovered {
        let returned = work.store.recover(origin, work.now)?;
        let expired = work.store.expire(work.now)?;
        if returned > 0 {
            tracing::warn!(messages = returned, expired, "messages of a process that died come back");
        }
        work.recovered = true;
        work.effects.push(Effect::Recovered);
    }
    Ok(Ok(()))
}

impl Broker for Sqlite {
    const SYSTEM: &'static str = "sqlite";

    async fn publish(&self, queue: &Queue, message: Message, delay: Duration) -> Result<(), BrokerError> {
        let (queue, limit) = self.known(queue)?;
        message_fits(&message)?;
        let published = self.link.call(true, None, PUBLISH_LIMIT, move |work| {
            if work.store.waiting(queue.name, message.lane)? >= limit {
                return Ok(Err(BrokerError::Full));
            }
            work.store.insert(&Arrival {
                queue: queue.name,
                message: &message,
                published: work.now,
                not_before: (!delay.is_zero()).then(|| later(work.now, delay)),
                deadline: None,
                asker: None,
            })?;
            Ok(Ok(()))
        });
        published.await
    }

    async fn ask(&self, queue: &Queue, message: Message, deadline: Timestamp) -> Result<Bytes, BrokerError> {
        let (queue, limit) = self.known(queue)?;
        message_fits(&message)?;
        let Ok(patience) = Duration::try_from(Timestamp::now().duration_until(deadline)) else {
            return Err(BrokerError::Timeout);
        };
        let end = tokio::time::Instant::now() + patience;
        let durable = message.repeat == Repeat::AtMostOnce;
        let mut waiting = Waiting::new(&self.link, &self.shared);
        let (asker, seq) = (waiting.asker, Arc::clone(&waiting.seq));
        let stored = self.link.call(durable, None, patience.min(OPERATION_LIMIT), move |work| {
            if work.store.waiting(queue.name, message.lane)? >= limit {
                return Ok(Err(BrokerError::Full));
            }
            let stored = work.store.insert(&Arrival {
                queue: queue.name,
                message: &message,
                published: work.now,
                not_before: None,
                deadline: Some(deadline.as_microsecond()),
                asker: Some(asker),
            })?;
            seq.store(stored, Ordering::Release);
            Ok(Ok(()))
        });
        match stored.await {
            // That long it may take when the disk hangs.
            Err(BrokerError::Unknown(_)) if tokio::time::Instant::now() >= end => return Err(BrokerError::Timeout),
            Err(refusal) => {
                waiting.was_refused(&refusal);
                return Err(refusal);
            }
            Ok(()) => {}
        }
        match tokio::time::timeout_at(end, &mut waiting.reply).await {
            Ok(Ok(body)) => Ok(body),
            // The thread ended under it.
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) => Err(BrokerError::Timeout),
        }
    }

    async fn receive(&self, queue: &Queue, lane: Lane, prefetch: u16) -> Result<Receiver, BrokerError> {
        let (queue, _) = self.known(queue)?;
        let prefetch = usize::from(prefetch.max(1));
        let (sender, deliveries) = mpsc::channel(prefetch);
        let id = self.next_receiver.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            id,
            queue: *queue,
            lane,
            prefetch,
            deliveries: sender,
            link: self.link.clone(),
            shared: Arc::clone(&self.shared),
        };
        let origin = self.shared.origin;
        let joined = self.link.call(true, None, OPERATION_LIMIT, move |work| {
            if let Err(error) = take_over(work, origin)? {
                return Ok(Err(error));
            }
            work.effects.push(Effect::Joined(entry.clone()));
            Ok(Ok(()))
        });
        joined.await?;
        let link = self.link.clone();
        let close = move || -> futures_util::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                let left = link.call(false, None, OPERATION_LIMIT, move |work| {
                    work.effects.push(Effect::Left(id));
                    Ok(Ok(()))
                });
                // If the file does not answer, the receiver's closed channel tells the thread.
                let _ = left.await;
            })
        };
        Ok(Receiver::new(deliveries, Box::new(close)))
    }

    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>, BrokerError> {
        let look = || {
            let filter = filter.clone();
            self.link.call(false, None, OPERATION_LIMIT, move |work| work.store.dead_letters(&filter).map(Ok))
        };
        patiently(look).await
    }

    async fn redrive(
        &self,
        filter: &DeadLetterFilter,
        per_second: u32,
        readdress: fn(&mut Headers),
    ) -> Result<u64, BrokerError> {
        // Ten times a second at most, so that a high rate does not become a transaction for each message.
        let step = if per_second == 0 { REDRIVE_LIMIT } else { REDRIVE_LIMIT.min(1.max(per_second as usize / 10)) };
        let pause = (per_second > 0).then(|| Duration::from_secs(1) * step as u32 / per_second);
        let newest = || self.link.call(false, None, OPERATION_LIMIT, |work| work.store.newest_dead().map(Ok));
        let newest = patiently(newest).await?;
        let mut left = if filter.limit == 0 { usize::MAX } else { filter.limit };
        let mut total = 0;
        loop {
            let begun = Instant::now();
            let (topology, limit) = (self.topology, left.min(step));
            let send = || {
                let filter = filter.clone();
                self.link.call(true, None, OPERATION_LIMIT, move |work| {
                    let admit = |queue: &str, waiting: u64| {
                        let known = topology.queues.iter().find(|known| known.name == queue);
                        match known.map(|known| waiting < limit_of(topology, known)) {
                            Some(true) => Ok(()),
                            Some(false) => Err(BrokerError::Full),
                            None => Err(BrokerError::Unroutable(queue.to_owned())),
                        }
                    };
                    work.store.redrive(&filter, newest, limit, work.now, admit, readdress).map(Ok)
                })
            };
            let (sent, refusal) = patiently(send).await?;
            total += sent;
            left -= usize::try_from(sent).unwrap_or(left);
            match refusal {
                Some(refusal) => return Err(refusal),
                None if left == 0 || sent < limit as u64 => return Ok(total),
                None => {
                    let turn = begun.elapsed().clamp(REDRIVE_PAUSE.0, REDRIVE_PAUSE.1);
                    tokio::time::sleep(pause.unwrap_or(turn)).await;
                }
            }
        }
    }

    async fn discard(&self, filter: &DeadLetterFilter) -> Result<u64, BrokerError> {
        let discard = || {
            let filter = filter.clone();
            self.link.call(true, None, OPERATION_LIMIT, move |work| work.store.discard(&filter).map(Ok))
        };
        patiently(discard).await
    }

    async fn retain(&self, name: &'static str, value: Bytes) -> Result<(), BrokerError> {
        let slot = self.slot(name)?;
        fits(value.len(), BODY_LIMIT_BYTES)?;
        let retained = self.link.call(true, None, PUBLISH_LIMIT, move |work| {
            let version = work.store.retain(name, &value)?;
            work.effects.push(Effect::Retained { slot, version, value: value.clone() });
            Ok(Ok(()))
        });
        retained.await
    }

    async fn watch(&self, name: &'static str) -> Result<watch::Receiver<Option<Bytes>>, BrokerError> {
        let slot = self.slot(name)?;
        // Before the thread decides how long to wait for its next command: it looks for others' writes while it has
        // watchers.
        let mut watcher = self.shared.slots[slot].value.subscribe();
        let known = self.link.call(false, None, OPERATION_LIMIT, move |work| {
            if let Some((version, value)) = work.store.retained(name, 0)? {
                work.effects.push(Effect::Retained { slot, version, value });
            }
            Ok(Ok(()))
        });
        known.await?;
        watcher.mark_unchanged();
        Ok(watcher)
    }

    async fn check(&self) -> Health {
        let topology = self.topology;
        let looked = self.link.call(false, None, OPERATION_LIMIT, move |work| {
            let blocked = work.blocked.map(ToString::to_string);
            let mut queues = Vec::with_capacity(2 * topology.queues.len());
            for queue in topology.queues {
                let dead = work.store.dead_count(queue.name)?;
                for lane in [Lane::Urgent, Lane::Normal] {
                    let ready = work.store.ready(queue.name, lane, work.now)?;
                    queues.push(QueueDepth {
                        queue: queue.name,
                        lane,
                        ready,
                        receivers: work.hall.count(queue, lane),
                        dead,
                    });
                }
            }
            Ok(Ok(Health { connected: true, blocked, queues }))
        });
        match looked.await {
            Ok(health) => health,
            Err(BrokerError::Closed) => Health::default(),
            Err(error) => Health { connected: true, blocked: Some(error.to_string()), queues: Vec::new() },
        }
    }

    async fn close(&self) {
        self.link.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::message::{Settlement, Spread};

    const WORK: Queue = Queue { name: "work", style: Style::Durable, spread: Spread::Even };
    static TOPOLOGY: Topology = Topology { queues: &[WORK], retained: &[], ask_limit: 100, durable_limit: 10_000 };

    async fn open(folder: &tempfile::TempDir) -> Sqlite {
        Sqlite::open(Settings { path: folder.path().join("queue.db"), topology: &TOPOLOGY }).await.unwrap()
    }

    fn of_size(bytes: usize) -> Message {
        Message::new(Bytes::from(vec![42; bytes]))
    }

    /// Runs a statement on the broker's own connection.
    async fn pragma(broker: &Sqlite, statement: &'static str) -> Result<(), BrokerError> {
        let run =
            broker.link.call(false, None, OPERATION_LIMIT, move |work| work.store.0.execute_batch(statement).map(Ok));
        run.await
    }

    async fn eventually(what: &str, mut question: impl AsyncFnMut() -> bool) {
        let start = Instant::now();
        while !question().await {
            assert!(start.elapsed() < Duration::from_secs(20), "never happened: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As the file's own thread does with what a receiver that has gone was to get.
    #[tokio::test]
    async fn what_is_given_back_outside_the_runtime_comes_again_and_is_no_attempt() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let mut receiver = broker.receive(&WORK, Lane::Normal, 1).await.unwrap();
        broker.publish(&WORK, of_size(10), Duration::ZERO).await.unwrap();
        let held = receiver.next().await.unwrap();
        let id = held.message.id;
        std::thread::spawn(move || held.give_back()).join().expect("no panic");
        let again = receiver.next().await.unwrap();
        assert_eq!((again.message.id, again.attempt), (id, 1));
        again.settle(Settlement::Done { reply: None }).await.unwrap();
        receiver.close().await;
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_that_passes() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let mut receiver = broker.receive(&WORK, Lane::Normal, 1).await.unwrap();
        broker.publish(&WORK, of_size(10), Duration::ZERO).await.unwrap();
        let held = receiver.next().await.unwrap();
        let id = held.message.id;

        pragma(&broker, "PRAGMA max_page_count = 40").await.unwrap();
        let refused = broker.publish(&WORK, of_size(1_000_000), Duration::ZERO).await;
        assert!(matches!(&refused, Err(BrokerError::Storage(reason)) if reason.contains("full")), "{refused:?}");
        assert!(broker.check().await.blocked.is_some());
        let body = Some(Bytes::from(vec![1; 1_000_000]));
        let refused = held.settle(Settlement::Retry { after: Duration::ZERO, body }).await;
        assert!(matches!(refused, Err(BrokerError::Storage(_))), "{refused:?}");
        // What needs no room goes on.
        assert_eq!(broker.dead_letters(&DeadLetterFilter::default()).await.unwrap(), []);

        pragma(&broker, "PRAGMA max_page_count = 1000000").await.unwrap();
        broker.publish(&WORK, of_size(1_000_000), Duration::ZERO).await.unwrap();
        // The settlement did not arrive, so the message comes back.
        let mut again = receiver.next().await.unwrap();
        if again.message.id != id {
            again.settle(Settlement::Done { reply: None }).await.unwrap();
            again = receiver.next().await.unwrap();
        }
        assert_eq!((again.message.id, again.attempt, again.message.body.len()), (id, 2, 10));
        eventually("the broker is well again", async || broker.check().await.blocked.is_none()).await;
        broker.close().await;
    }

    #[tokio::test]
    async fn one_bad_operation_does_not_spoil_the_others_of_its_transaction() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let mut receiver = broker.receive(&WORK, Lane::Normal, 100).await.unwrap();
        // Holds the thread until all others wait for it.
        let (release, released) = commands::channel::<()>();
        let mut released = Some(released);
        let block = broker.link.call(false, None, OPERATION_LIMIT, move |_| {
            if let Some(released) = released.take() {
                let _ = released.recv();
            }
            Ok(Ok(()))
        });
        let publish = |n: usize| broker.publish(&WORK, of_size(n), Duration::ZERO);
        let good = futures_util::future::join_all((0..20).map(publish));
        let bad = pragma(&broker, "INSERT INTO contents VALUES (NULL, 'half done', x''); SELECT * FROM nowhere");
        let more = futures_util::future::join_all((20..40).map(publish));
        let free = async {
            tokio::task::yield_now().await;
            release.send(()).unwrap();
        };
        let (_, good, bad, more, ()) = tokio::join!(block, good, bad, more, free);
        assert!(matches!(bad, Err(BrokerError::Storage(_))), "{bad:?}");
        assert!(good.iter().chain(&more).all(Result::is_ok));
        // Once each, and to a receiver that waited all the time.
        for _ in 0..40 {
            let delivery = tokio::time::timeout(Duration::from_secs(20), receiver.next()).await.unwrap().unwrap();
            delivery.settle(Settlement::Done { reply: None }).await.unwrap();
        }
        assert_eq!(broker.check().await.queues[1].ready, 0);
        let orphans = broker.link.call(false, None, OPERATION_LIMIT, |work| {
            work.store
                .0
                .query_row("SELECT count(*) FROM contents WHERE headers = 'half done'", [], |row| row.get::<_, i64>(0))
                .map(Ok)
        });
        assert_eq!(orphans.await.unwrap(), 0);
        broker.close().await;
    }

    #[tokio::test]
    async fn another_process_that_holds_the_file_is_an_error_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let other = rusqlite::Connection::open(folder.path().join("queue.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let outcomes =
            futures_util::future::join_all((0..20).map(|n| broker.publish(&WORK, of_size(n), Duration::ZERO)));
        for outcome in outcomes.await {
            assert!(matches!(outcome, Err(BrokerError::Unavailable(_))), "{outcome:?}");
        }
        other.execute_batch("COMMIT").unwrap();
        broker.publish(&WORK, of_size(1), Duration::ZERO).await.unwrap();
        assert_eq!(broker.check().await.queues[1].ready, 1);
        broker.close().await;
    }

    #[tokio::test]
    async fn a_broker_that_nobody_holds_lets_go_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let receiver = broker.receive(&WORK, Lane::Normal, 1).await.unwrap();
        drop((receiver, broker));
        let successor = open(&folder).await;
        eventually("the lock is free", async || successor.receive(&WORK, Lane::Normal, 1).await.is_ok()).await;
        successor.close().await;
    }

    #[tokio::test]
    async fn an_ask_that_is_given_up_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let deadline = Timestamp::now() + Duration::from_secs(60);
        let asked = tokio::spawn({
            let broker = broker.clone();
            async move { broker.ask(&WORK, of_size(1), deadline).await }
        });
        eventually("the request waits", async || broker.check().await.queues[1].ready == 1).await;
        asked.abort();
        eventually("the request is gone", async || broker.check().await.queues[1].ready == 0).await;
        broker.close().await;
    }

    #[tokio::test]
    async fn a_close_ends_those_who_wait_for_replies() {
        let folder = tempfile::tempdir().unwrap();
        let broker = open(&folder).await;
        let deadline = Timestamp::now() + Duration::from_secs(60);
        let asked = broker.ask(&WORK, of_size(1), deadline);
        let close = async {
            eventually("the request waits", async || broker.check().await.queues[1].ready == 1).await;
            broker.close().await;
        };
        let (asked, ()) = tokio::join!(asked, close);
        assert!(matches!(asked, Err(BrokerError::Closed)), "{asked:?}");
    }

    #[tokio::test]
    async fn a_successor_does_not_work_for_callers_who_died_with_the_former_consumer() {
        let folder = tempfile::tempdir().unwrap();
        let deadline = Timestamp::now() + Duration::from_secs(60);
        let (former, beside) = (open(&folder).await, open(&folder).await);
        let mut receiver = former.receive(&WORK, Lane::Normal, 2).await.unwrap();
        let tasks: Vec<_> = [&former, &former, &former, &beside]
            .into_iter()
            .cloned()
            .map(|broker| tokio::spawn(async move { broker.ask(&WORK, of_size(1), deadline).await }))
            .collect();
        // Two are in hands, two wait.
        let _held = [receiver.next().await.unwrap(), receiver.next().await.unwrap()];
        eventually("the others wait", async || former.check().await.queues[1].ready == 2).await;
        former.close().await;

        let successor = open(&folder).await;
        let mut receiver = successor.receive(&WORK, Lane::Normal, 10).await.unwrap();
        let delivery = receiver.next().await.unwrap();
        delivery.settle(Settlement::Done { reply: Some(Bytes::from_static(b"answer")) }).await.unwrap();
        let mut outcomes = futures_util::future::join_all(tasks).await;
        assert_eq!(outcomes.pop().unwrap().unwrap().unwrap(), "answer");
        assert!(outcomes.into_iter().all(|outcome| matches!(outcome.unwrap(), Err(BrokerError::Closed))));
        assert_eq!(successor.check().await.queues[1].ready, 0);
        successor.close().await;
    }
}
