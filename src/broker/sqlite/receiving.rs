//! Receivers of this process and what is in their hands.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::OPERATION_LIMIT;
use super::link::Link;
use super::store::{Again, Claimed, Hold, later};
use super::writer::{Effect, Shared, Work};
use crate::broker::BODY_LIMIT_BYTES;
use crate::broker::message::{BrokerError, Delivery, Lane, Queue, Repeat, Settlement, Settler, Spread};

/// A message in the hands of a receiver of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub hold: Hold,
    /// [`Entry::id`].
    pub receiver: u64,
}

/// One receiver.
#[derive(Clone)]
pub(super) struct Entry {
    pub id: u64,
    pub queue: Queue,
    pub lane: Lane,
    pub prefetch: usize,
    /// As large as the prefetch, so it is never full.
    pub deliveries: mpsc::Sender<Delivery>,
    pub link: Link,
    pub shared: Arc<Shared>,
}

struct Seat {
    entry: Entry,
    in_hands: usize,
}

/// All receivers of this process, in the order of their coming.
#[derive(Default)]
pub(super) struct Hall {
    seats: Vec<Seat>,
    /// Where the next distribution begins, so that the first receiver does not get everything.
    turn: usize,
}

impl Hall {
    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    pub(super) fn join(&mut self, entry: Entry) {
        self.seats.push(Seat { entry, in_hands: 0 });
    }

    pub(super) fn leave(&mut self, receiver: u64) {
        self.seats.retain(|seat| seat.entry.id != receiver);
    }

    /// Removes receivers that were dropped without being closed; whether there were any.
    pub(super) fn sweep(&mut self) -> bool {
        let before = self.seats.len();
        self.seats.retain(|seat| !seat.entry.deliveries.is_closed());
        self.seats.len() < before
    }

    fn seat(&mut self, receiver: u64) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| seat.entry.id == receiver)
    }

    pub(super) fn freed(&mut self, receiver: u64) {
        if let Some(seat) = self.seat(receiver) {
            seat.in_hands = seat.in_hands.saturating_sub(1);
        }
    }

    /// How many receivers a lane has here.
    pub(super) fn count(&self, queue: &Queue, lane: Lane) -> u64 {
        self.seats.iter().filter(|seat| seat.entry.queue.name == queue.name && seat.entry.lane == lane).count() as u64
    }

    /// Who may be given how many messages, `effects` being about to come to pass.
    pub(super) fn with_room(&self, effects: &[Effect]) -> Vec<(u64, &Entry, usize)> {
        let count = self.seats.len();
        let (before, after) = self.seats.split_at(if count == 0 { 0 } else { self.turn % count });
        let in_turn = after.iter().chain(before);
        in_turn
            .filter(|seat| self.is_served(seat))
            .filter_map(|seat| {
                let id = seat.entry.id;
                let freed = effects.iter().filter(|effect| matches!(effect, Effect::Freed(by) if *by == id)).count();
                let left = effects.iter().any(|effect| matches!(effect, Effect::Left(by) if *by == id));
                let room = (seat.entry.prefetch + freed).saturating_sub(seat.in_hands);
                (room > 0 && !left).then_some((id, &seat.entry, room))
            })
            .collect()
    }

    /// Whether a receiver gets messages at all: it is still there and, in a single active queue, the first.
    fn is_served(&self, seat: &Seat) -> bool {
        let entry = &seat.entry;
        let same_lane = |other: &&Seat| other.entry.queue.name == entry.queue.name && other.entry.lane == entry.lane;
        !entry.deliveries.is_closed()
            && (entry.queue.spread != Spread::SingleActive
                || self
                    .seats
                    .iter()
                    .filter(same_lane)
                    .find(|other| !other.entry.deliveries.is_closed())
                    .is_some_and(|first| first.entry.id == entry.id))
    }

    /// Hands a message over; back it comes if the receiver has gone.
    pub(super) fn hand_over(&mut self, receiver: u64, claimed: Claimed) -> Option<Delivery> {
        self.turn = self.turn.wrapping_add(1);
        let seat = self.seat(receiver)?;
        let Entry { queue, lane, deliveries, link, shared, .. } = &seat.entry;
        let settler = Hands {
            held: Held { hold: claimed.hold, receiver },
            link: link.clone(),
            shared: Arc::clone(shared),
            at_most_once: claimed.message.repeat == Repeat::AtMostOnce,
        };
        let delivery = Delivery::new(
            claimed.message,
            claimed.attempt,
            claimed.published,
            claimed.deadline,
            format!("{}.{}", queue.name, lane.as_str()),
            Box::new(settler),
        );
        seat.in_hands += 1;
        deliveries.try_send(delivery).err().map(|error| error.into_inner())
    }
}

/// Settles one delivery.
struct Hands {
    held: Held,
    link: Link,
    shared: Arc<Shared>,
    at_most_once: bool,
}

impl Hands {
    /// Whether the settlement may be lost with the machine's power, which only brings the message back once more. Not
    /// so where it carries progress or a time, or where the message must not come back.
    fn is_durable(&self, settlement: &Settlement) -> bool {
        match settlement {
            Settlement::Done { .. } | Settlement::GiveBack => self.at_most_once,
            Settlement::Retry { .. } | Settlement::Later { .. } | Settlement::DeadLetter(_) => true,
        }
    }
}

/// The body that a settlement brings.
fn body(settlement: &Settlement) -> Option<usize> {
    match settlement {
        Settlement::Done { reply: body } | Settlement::Retry { body, .. } | Settlement::Later { body, .. } => {
            body.as_ref().map(|body| body.len())
        }
        Settlement::GiveBack | Settlement::DeadLetter(_) => None,
    }
}

impl Settler for Hands {
    fn settle(self: Box<Self>, settlement: Settlement) -> BoxFuture<'static, Result<(), BrokerError>> {
        if let Some(bytes) = body(&settlement).filter(|bytes| *bytes > BODY_LIMIT_BYTES) {
            self.abandon();
            return std::future::ready(Err(BrokerError::TooLarge { bytes, limit: BODY_LIMIT_BYTES })).boxed();
        }
        let (durable, held, origin) = (self.is_durable(&settlement), self.held, self.shared.origin);
        self.link
            .call(durable, Some(held), OPERATION_LIMIT, move |work| settle(work, held, &settlement, origin))
            .boxed()
    }

    fn abandon(self: Box<Self>) {
        let held = self.held;
        let abandoned = self.link.call(self.at_most_once, Some(held), OPERATION_LIMIT, move |work| {
            if let Some(row) = work.store.held(held.hold)? {
                work.store.abandon(held.hold, &row, work.now)?;
                work.effects.push(Effect::Freed(held.receiver));
            }
            Ok(Ok(()))
        });
        drop(abandoned);
    }
}

/// Settles inside a transaction. The reply of a request of this process goes through memory.
fn settle(
    work: &mut Work<'_>,
    held_by: Held,
    settlement: &Settlement,
    origin: i64,
) -> rusqlite::Result<Result<(), BrokerError>> {
    let (store, now, hold) = (work.store, work.now, held_by.hold);
    let Some(held) = store.held(hold)? else {
        return Ok(Err(BrokerError::Unknown("the message is no longer in these hands".to_owned())));
    };
    let again = |after: &Duration, counts, body: &Option<Bytes>| Again {
        not_before: (!after.is_zero()).then(|| later(now, *after)),
        counts,
        body: body.clone(),
    };
    match settlement {
        Settlement::Done { reply } => {
            if let (Some(reply), Some(asker)) = (reply, held.asker) {
                match held.deadline {
                    _ if asker.origin == origin => {
                        work.effects.push(Effect::Answered { token: asker.token, body: reply.clone() });
                    }
                    Some(deadline) if deadline > now => store.leave_reply(asker, deadline, reply)?,
                    _ => {}
                }
            }
            store.remove(hold, &held)?;
        }
        Settlement::Retry { after, body } => store.put_back(hold, &held, &again(after, true, body), now)?,
        Settlement::Later { after, body } => store.put_back(hold, &held, &again(after, false, body), now)?,
        Settlement::GiveBack => store.put_back(hold, &held, &again(&Duration::ZERO, false, &None), now)?,
        Settlement::DeadLetter(cause) => {
            store.bury(hold, cause, now)?;
            store.remove(hold, &held)?;
        }
    }
    work.effects.push(Effect::Freed(held_by.receiver));
    Ok(Ok(()))
}
