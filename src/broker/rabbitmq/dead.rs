//! Dead letters: list, redrive, discard.
//!
//! AMQP cannot look into a queue; it can only take messages out and put them back. So a look takes all letters of a
//! queue without acknowledging them, and its end puts back what is not wanted: if the process dies in between, the
//! broker puts them back. While one process looks, others would see an empty queue, so each queue has a lock: an
//! exclusive queue that vanishes with its owner.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout, timeout_at};

use super::Inner;
use super::envelope::{Envelope, now_ms};
use super::lease::{lock, unlock};
use super::link::{CALL_LIMIT, Session, failure, limited};
use crate::broker::{BrokerError, DeadLetter, DeadLetterFilter, Headers, LINK_PATIENCE, PUBLISH_LIMIT, Queue};

/// How many letters stream out at most before the rest is taken one by one: AMQP's largest prefetch.
const AT_ONCE: u16 = u16::MAX;
/// How many letters are published at a time.
const SENDS: usize = 64;
/// The longest a slow redrive keeps the letters of a queue to itself before it lets others look.
const ROUND: Duration = Duration::from_secs(15);
/// Between two rounds: longer than [`LOCK_PAUSE`], so that somebody who waits gets a turn.
const ROUND_PAUSE: Duration = Duration::from_millis(400);
/// How long a command waits for others to finish theirs.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Within one process commands take turns here; the lock at the broker is for other processes.
pub(super) type Turns = Mutex<()>;

/// All letters of the queues looked at, held until [`Look::end`].
struct Look<'a> {
    opened: Vec<Opened>,
    /// Those that match, oldest first.
    found: Vec<Found>,
    _turn: MutexGuard<'a, ()>,
}

struct Opened {
    channel: Channel,
    lock: Channel,
    lock_name: ShortString,
}

struct Found {
    queue: &'static Queue,
    acker: Acker,
    letter: DeadLetter,
    /// The message as a redrive sends it.
    envelope: Envelope,
}

/// # Errors
/// As [`crate::broker::Broker::dead_letters`].
pub(super) async fn list(inner: &Inner, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>, BrokerError> {
    let mut look = look(inner, filter, None).await?;
    let letters = look.found.drain(..).map(|found| found.letter).collect();
    look.end().await;
    Ok(letters)
}

/// # Errors
/// As [`crate::broker::Broker::discard`].
pub(super) async fn discard(inner: &Inner, filter: &DeadLetterFilter) -> Result<u64, BrokerError> {
    let mut look = look(inner, filter, None).await?;
    let mut count = 0;
    let mut failed = None;
    for found in look.found.drain(..) {
        match acknowledge(&found.acker).await {
            Ok(()) => count += 1,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    look.end().await;
    failed.map_or(Ok(count), Err)
}

/// # Errors
/// As [`crate::broker::Broker::redrive`].
pub(super) async fn redrive(
    inner: &Inner,
    filter: &DeadLetterFilter,
    per_second: u32,
    readdress: fn(&mut Headers),
) -> Result<u64, BrokerError> {
    let mut ticks = (per_second > 0).then(|| {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    let started = Timestamp::now();
    let (mut filter, mut total, mut since) = (filter.clone(), 0, None);
    loop {
        let mut look = look(inner, &filter, since).await?;
        let wanted = look.found.len();
        let letters = look.found.drain(..).map(|mut found| {
            readdress(&mut found.envelope.message.headers);
            found
        });
        let round = send_all(inner, letters, &mut ticks).await;
        look.end().await;
        total += round.sent as u64;
        if let Some(error) = round.failed {
            tracing::warn!(redrive.sent = total, error = %error, "a redrive ended early");
            return Err(error);
        }
        if round.sent == wanted {
            return Ok(total);
        }
        // From now on without those that died again in the meantime, or this would never end.
        since = Some(started);
        if filter.limit > 0 {
            filter.limit -= round.sent;
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// What one round of a redrive came to.
struct Round {
    sent: usize,
    failed: Option<BrokerError>,
}

/// Sends letters, several at a time and no faster than the ticks come, until all are sent, one fails, or the round is
/// over.
async fn send_all(inner: &Inner, letters: impl Iterator<Item = Found>, ticks: &mut Option<Interval>) -> Round {
    let end = Instant::now() + ROUND;
    let mut round = Round { sent: 0, failed: None };
    let mut sending = FuturesUnordered::new();
    let mut note = |outcome: Result<(), BrokerError>| match outcome {
        Ok(()) => {
            round.sent += 1;
            true
        }
        Err(error) => {
            round.failed.get_or_insert(error);
            false
        }
    };
    'letters: for letter in letters {
        let tick = async {
            if let Some(ticks) = ticks.as_mut() {
                ticks.tick().await;
            }
        };
        tokio::pin!(tick);
        let mut ticked = false;
        while !ticked || sending.len() >= SENDS {
            tokio::select! {
                Some(outcome) = sending.next(), if !sending.is_empty() => if !note(outcome) { break 'letters },
                () = &mut tick, if !ticked => ticked = true,
            }
        }
        if Instant::now() >= end {
            break;
        }
        sending.push(resend(inner, letter));
    }
    while let Some(outcome) = sending.next().await {
        note(outcome);
    }
    drop(sending);
    round
}

/// Publishes a letter to its queue, then ends it as a letter.
async fn resend(inner: &Inner, found: Found) -> Result<(), BrokerError> {
    let parcel = inner.parcel(&found.envelope, found.queue, now_ms());
    inner.publisher.publish(&inner.publishing, parcel, Instant::now() + PUBLISH_LIMIT).await?;
    acknowledge(&found.acker).await
}

async fn acknowledge(acker: &Acker) -> Result<(), BrokerError> {
    if limited("end a dead letter", acker.ack(BasicAckOptions::default())).await? {
        Ok(())
    } else {
        Err(BrokerError::Unknown("the link was lost; the dead letter is back in its place".to_owned()))
    }
}

/// Takes everything out, keeps what matches. `died_by` leaves out younger letters.
async fn look<'a>(
    inner: &'a Inner,
    filter: &DeadLetterFilter,
    died_by: Option<Timestamp>,
) -> Result<Look<'a>, BrokerError> {
    let turn = inner.dead_letter_turns.lock().await;
    let session = inner.consuming.wait(Instant::now() + LINK_PATIENCE).await?;
    let mut look = Look { opened: Vec::new(), found: Vec::new(), _turn: turn };
    let queues = inner.topology.queues.iter();
    for queue in queues.filter(|queue| filter.queue.as_ref().is_none_or(|name| name == queue.name)) {
        if let Err(error) = look.take(inner, &session, queue, filter, died_by).await {
            look.end().await;
            return Err(error);
        }
    }
    look.found.sort_by_key(|found| found.letter.died);
    if filter.limit > 0 {
        look.found.truncate(filter.limit);
    }
    Ok(look)
}

impl Look<'_> {
    /// Takes out all letters of one queue.
    async fn take(
        &mut self,
        inner: &Inner,
        session: &Session,
        queue: &'static Queue,
        filter: &DeadLetterFilter,
        died_by: Option<Timestamp>,
    ) -> Result<(), BrokerError> {
        let lock_name = inner.names.lock(&format!("dead.{}", queue.name));
        let lock = await_lock(session, &lock_name).await?;
        let channel = match session.channel().await {
            Ok(channel) => channel,
            Err(error) => {
                unlock(&lock, lock_name).await;
                return Err(error);
            }
        };
        self.opened.push(Opened { channel: channel.clone(), lock, lock_name });
        let name = inner.names.dead(queue.name);
        let mut keep = |delivery: Delivery| {
            let (envelope, letter) = Envelope::read_dead(queue.name, &delivery.properties, delivery.data);
            if filter.matches(&letter) && died_by.is_none_or(|by| letter.died <= by) {
                self.found.push(Found { queue, acker: delivery.acker, letter, envelope });
            }
        };
        stream_out(&channel, &name, &mut keep).await?;
        // Until the broker says that there is none: only that is certain.
        while let Some(message) =
            limited("look at the dead letters", channel.basic_get(name.clone(), BasicGetOptions::default())).await?
        {
            keep(message.delivery);
        }
        Ok(())
    }

    /// Puts back what was not ended, and lets others look.
    async fn end(self) {
        for Opened { channel, lock, lock_name } in self.opened {
            let all = BasicNackOptions { multiple: true, requeue: true };
            // Whatever fails here, the end of the channel does it.
            let _ = limited("put the dead letters back", channel.basic_nack(0, all)).await;
            // The answer to a round trip says that everything before it was read.
            let _ = limited("put the dead letters back", channel.basic_qos(0, BasicQosOptions::default())).await;
            let _ = limited("close a channel", channel.close(200, "done".into())).await;
            unlock(&lock, lock_name).await;
        }
    }
}

/// Takes out as many letters as the broker counts now, by way of a consumer: one by one each would cost a round trip.
async fn stream_out(channel: &Channel, name: &ShortString, keep: &mut impl FnMut(Delivery)) -> Result<(), BrokerError> {
    limited("look at the dead letters", channel.basic_qos(AT_ONCE, BasicQosOptions::default())).await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let count = channel.queue_declare(name.clone(), options, FieldTable::default());
    let count = limited("look at the dead letters", count).await?.message_count().min(AT_ONCE.into());
    if count == 0 {
        return Ok(());
    }
    let options = BasicConsumeOptions::default();
    let consume = channel.basic_consume(name.clone(), ShortString::default(), options, FieldTable::default());
    let mut letters = limited("look at the dead letters", consume).await?;
    for _ in 0..count {
        match timeout(CALL_LIMIT, letters.next()).await {
            Ok(Some(Ok(letter))) => keep(letter),
            Ok(Some(Err(error))) => return Err(failure("look at the dead letters", &error)),
            // The count was too high: somebody else's look has just ended, or a letter was lost with an overdue lock.
            Ok(None) | Err(_) => break,
        }
    }
    let cancel = channel.basic_cancel(letters.tag(), BasicCancelOptions::default());
    limited("look at the dead letters", cancel).await
}

async fn await_lock(session: &Session, name: &ShortString) -> Result<Channel, BrokerError> {
    let until = Instant::now() + LOCK_PATIENCE;
    let taken = timeout_at(until, async {
        loop {
            if let Some(channel) = lock(&session.connection, name.clone()).await? {
                return Ok(channel);
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    });
    taken
        .await
        .unwrap_or_else(|_| Err(BrokerError::Unavailable("another command is busy with the dead letters".to_owned())))
}
