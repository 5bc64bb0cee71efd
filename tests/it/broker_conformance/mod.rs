//! The promises of `src/broker/mod.rs`, as cases that run on every implementation of the seam.
//!
//! A case is a generic function over a [`World`]: a queue of its own that nobody else sees. It is named after its
//! promise and asserts only what the seam promises, so it never looks at an implementation's insides and never asserts
//! how fast something was. `each!` at the foot lists all cases; a case that is missing there is unused code and does
//! not pass the lints.
//!
//! Not here: how an implementation behaves when its own infrastructure fails (a broker restarted, a full disk). Those
//! stories stand beside the implementation.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use defender_bridge::broker::{
    Broker, BrokerError, Cause, Delivery, Lane, Message, Queue, Receiver, Settlement, Spread, Style, Topology,
};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use uuid::Uuid;

mod asks;
mod dead_letters;
mod delays;
mod keys;
mod publishing;
mod receiving;
mod retained;

pub(crate) mod on_rabbitmq;
pub(crate) mod on_sqlite;

/// Requests whose caller waits.
pub(crate) static ASKS: Queue = Queue { name: "asks", style: Style::Ask, spread: Spread::Gather };
/// Durable work.
pub(crate) static WORK: Queue = Queue { name: "work", style: Style::Durable, spread: Spread::Even };
/// A second durable queue, to see that queues do not mix; its messages come together where they can.
pub(crate) static OTHER: Queue = Queue { name: "other-work", style: Style::Durable, spread: Spread::Gather };
/// One receiver at a time.
pub(crate) static SINGLE: Queue = Queue { name: "single", style: Style::Durable, spread: Spread::SingleActive };
/// Part of no topology.
pub(crate) static NOWHERE: Queue = Queue { name: "nowhere", style: Style::Durable, spread: Spread::Even };
/// Part of no topology, and asked.
pub(crate) static NOWHERE_ASKS: Queue = Queue { name: "nowhere-asks", style: Style::Ask, spread: Spread::Even };

const QUEUES: &[Queue] = &[ASKS, WORK, OTHER, SINGLE];

/// A retained value's name.
pub(crate) const PAUSE: &str = "pause";
/// Another one.
pub(crate) const BUDGET: &str = "budget";

/// The topology of most cases: its limits are out of their way.
pub(crate) static TEST_TOPOLOGY: Topology =
    Topology { queues: QUEUES, retained: &[PAUSE, BUDGET], ask_limit: 2_000, durable_limit: 5_000 };

/// How many messages wait in a lane of [`NARROW_TOPOLOGY`].
pub(crate) const NARROW_LIMIT: u32 = 8;

/// For cases about full queues.
pub(crate) static NARROW_TOPOLOGY: Topology =
    Topology { queues: QUEUES, retained: &[PAUSE, BUDGET], ask_limit: NARROW_LIMIT, durable_limit: NARROW_LIMIT };

/// Longest time a case waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a case watches that something does not happen. A wrong implementation would show it within milliseconds.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// A case that takes longer hangs.
pub(crate) const CASE_LIMIT: Duration = Duration::from_secs(120);

/// A queue of one case's own: a namespace at the broker, a file.
pub(crate) trait World: Sized + Send + Sync + 'static {
    /// The implementation under test.
    type B: Broker;

    /// An empty queue.
    async fn open(topology: &'static Topology) -> Self;

    /// The link of the process that receives; always the same one.
    fn broker(&self) -> Self::B;

    /// A new link, as another process would have. It publishes, asks, redrives and watches; it does not receive.
    async fn beside(&self) -> Self::B;

    /// `count` links that may all receive at the same time. An implementation that serves one receiving process gives
    /// clones of one link.
    async fn receiving(&self, count: usize) -> Vec<Self::B>;

    /// Another process receives from `queue`, ends `done` messages with [`Settlement::Done`], takes `held` more, and
    /// dies without a word. Returns when it is dead. Call it while [`World::broker`] does not receive.
    async fn dying_worker(&self, queue: &'static Queue, lane: Lane, done: usize, held: usize) -> Died;

    /// Leaves nothing behind.
    async fn close(self);
}

/// What the victim of [`World::dying_worker`] did.
#[derive(Debug)]
pub(crate) struct Died {
    /// Settled before its death.
    pub done: Vec<Uuid>,
    /// In its hands when it died.
    pub held: Vec<Uuid>,
}

/// Runs one case, with a limit.
pub(crate) async fn run(case: impl Future<Output = ()>) {
    tokio::time::timeout(CASE_LIMIT, case).await.expect("the case hangs");
}

/// A normal message.
pub(crate) fn text(body: &str) -> Message {
    Message::new(Bytes::copy_from_slice(body.as_bytes()))
}

/// A normal message with a key.
pub(crate) fn keyed(key: &str) -> Message {
    Message { key: Some(key.to_owned()), ..text(key) }
}

/// An urgent message.
pub(crate) fn urgent(body: &str) -> Message {
    Message { lane: Lane::Urgent, ..text(body) }
}

/// Publishes at once; returns the id.
pub(crate) async fn publish<B: Broker>(broker: &B, queue: &Queue, message: Message) -> Uuid {
    let id = message.id;
    broker.publish(queue, message, Duration::ZERO).await.expect("published");
    id
}

/// Publishes `count` messages made by `make`, many at a time; returns their ids.
pub(crate) async fn publish_many<B: Broker>(
    broker: &B,
    queue: &Queue,
    count: usize,
    make: impl Fn(usize) -> Message,
) -> BTreeSet<Uuid> {
    stream::iter(0..count).map(|n| publish(broker, queue, make(n))).buffer_unordered(64).collect().await
}

/// Receives the normal lane.
pub(crate) async fn receive<B: Broker>(broker: &B, queue: &Queue, prefetch: u16) -> Receiver {
    broker.receive(queue, Lane::Normal, prefetch).await.expect("receiving")
}

/// The next delivery, which must come.
pub(crate) async fn next(receiver: &mut Receiver) -> Delivery {
    tokio::time::timeout(PATIENCE, receiver.next()).await.expect("a delivery in time").expect("the receiver is open")
}

/// Watches that nothing comes.
pub(crate) async fn nothing(receiver: &mut Receiver) {
    if let Ok(delivery) = tokio::time::timeout(QUIET, receiver.next()).await {
        panic!("nothing should have come: {delivery:?}");
    }
}

/// Ends the delivery as done, without a reply.
pub(crate) async fn done(delivery: Delivery) -> Uuid {
    let id = delivery.message.id;
    settle(delivery, Settlement::Done { reply: None }).await;
    id
}

/// Ends the delivery, which must succeed.
pub(crate) async fn settle(delivery: Delivery, settlement: Settlement) {
    delivery.settle(settlement).await.expect("settled");
}

/// Receives and ends `count` messages, in order of arrival.
pub(crate) async fn work(receiver: &mut Receiver, count: usize) -> Vec<Uuid> {
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let delivery = next(receiver).await;
        ids.push(done(delivery).await);
    }
    ids
}

/// Receives and ends messages until each of `wanted` came at least once.
pub(crate) async fn work_until(receiver: &mut Receiver, mut wanted: BTreeSet<Uuid>) {
    while !wanted.is_empty() {
        let delivery = next(receiver).await;
        wanted.remove(&done(delivery).await);
    }
}

/// Makes one dead letter of `message`.
pub(crate) async fn bury<B: Broker>(broker: &B, queue: &Queue, message: Message, code: &str) -> Uuid {
    let id = publish(broker, queue, message).await;
    let mut receiver = receive(broker, queue, 1).await;
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.id, id);
    settle(delivery, dead(code)).await;
    receiver.close().await;
    id
}

/// The settlement that makes a dead letter.
pub(crate) fn dead(code: &str) -> Settlement {
    Settlement::DeadLetter(Cause { code: code.to_owned(), detail: format!("it was {code}") })
}

/// The answer `Done { reply }`.
pub(crate) fn reply(body: impl Into<Bytes>) -> Settlement {
    Settlement::Done { reply: Some(body.into()) }
}

/// A deadline `after` from now.
pub(crate) fn deadline(after: Duration) -> Timestamp {
    Timestamp::now() + after
}

/// Asks from a task of its own.
pub(crate) fn ask<B: Broker>(
    broker: &B,
    message: Message,
    after: Duration,
) -> tokio::task::JoinHandle<Result<Bytes, BrokerError>> {
    let broker = broker.clone();
    tokio::spawn(async move { broker.ask(&ASKS, message, deadline(after)).await })
}

/// Waits until `question` answers yes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut question: impl FnMut() -> F) {
    let start = Instant::now();
    while !question().await {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes a test of every case for one [`World`]; the attributes in parentheses are put on each.
macro_rules! conformance {
    ($world:ident $attributes:tt) => {
        $crate::broker_conformance::each! { $world $attributes
            publishing:
                promise_01_a_published_message_arrives,
                promise_01_an_unknown_queue_is_an_error,
                promise_01_a_full_queue_refuses_and_stores_nothing_of_what_it_refused,
                promise_01_a_body_above_the_limit_is_refused,
                promise_01_a_key_above_the_limit_is_refused,
                promise_01_a_link_beside_the_receiving_one_publishes_too,
                promise_01_published_messages_survive_a_reopening,
                promise_01_a_closed_broker_refuses,
                promise_02_a_dropped_delivery_comes_back_with_the_next_attempt,
                promise_02_what_a_dead_worker_held_comes_back_with_the_next_attempt,
                promise_02_nothing_confirmed_is_lost_when_workers_die,
                promise_02_a_message_has_one_holder_at_a_time,
                promise_04_everything_returns_byte_for_byte,
                promise_04_a_large_body_returns_byte_for_byte,
                promise_04_debug_output_hides_body_and_headers;
            delays:
                promise_03_attempts_start_at_one_and_count_retries,
                promise_03_a_retry_is_never_early,
                promise_03_a_later_is_never_early_and_costs_no_attempt,
                promise_03_a_delayed_publish_is_never_early,
                promise_03_many_delayed_messages_do_not_block_an_immediate_one,
                promise_03_a_short_delay_behind_a_long_one_comes_first,
                promise_03_retry_and_later_replace_the_body,
                promise_03_a_replaced_body_stays_replaced,
                promise_03_give_back_is_free_and_at_once;
            asks:
                promise_05_an_ask_gets_its_reply,
                promise_05_an_ask_from_another_link_gets_its_reply,
                promise_05_many_concurrent_asks_each_get_their_own_reply,
                promise_05_an_ask_ends_at_its_deadline,
                promise_05_a_late_reply_is_dropped,
                promise_05_an_expired_ask_is_never_handed_out,
                promise_05_an_ask_that_expires_before_next_is_never_handed_out,
                promise_05_a_full_queue_refuses_asks_at_once,
                promise_05_an_ask_to_an_unknown_queue_is_an_error,
                promise_05_an_ask_whose_worker_died_is_worked_by_another,
                promise_05_an_ask_whose_delivery_was_dropped_is_worked_again,
                promise_05_an_at_most_once_ask_does_not_come_back_after_a_crash,
                promise_05_an_at_most_once_ask_does_not_come_back_when_dropped,
                promise_05_an_at_most_once_ask_gets_its_reply,
                promise_05_a_retried_ask_still_gets_its_reply,
                promise_05_a_given_back_ask_is_answered_by_another,
                promise_05_done_without_a_reply_leaves_the_caller_to_its_deadline,
                promise_05_large_requests_and_replies_return_byte_for_byte;
            dead_letters:
                promise_06_a_dead_letter_keeps_everything,
                promise_06_a_dead_letter_has_the_last_body_and_the_attempts_made,
                promise_06_a_long_detail_is_cut,
                promise_06_the_filter_selects,
                promise_06_the_limit_takes_the_oldest,
                promise_06_listing_leaves_them_where_they_are,
                promise_06_redrive_keeps_the_id_and_restarts_the_attempts,
                promise_06_redrive_lets_the_headers_be_changed,
                promise_06_redrive_sends_each_to_its_own_queue_and_lane,
                promise_06_a_redriven_message_may_die_again,
                promise_06_two_redrives_at_once_work_each_dead_letter_once,
                promise_06_a_redrive_keeps_to_its_rate,
                promise_06_discard_deletes_what_matches,
                promise_06_dead_letters_survive_a_reopening;
            receiving:
                promise_07_prefetch_bounds_what_is_handed_out,
                promise_07_next_is_cancel_safe,
                promise_07_closing_gives_back_what_was_not_handed_out,
                promise_07_a_delivery_outlives_its_receiver,
                promise_07_closing_while_messages_flow_loses_nothing,
                promise_07_a_closed_broker_ends_its_receivers_and_refuses_calls,
                promise_07_receivers_share_the_messages,
                promise_07_an_unknown_queue_cannot_be_received,
                promise_07_the_depths_tell_what_waits,
                promise_08_an_urgent_message_passes_a_thousand_normal_ones,
                promise_08_an_urgent_message_arrives_while_normal_hands_are_full,
                promise_08_urgent_asks_have_their_own_lane;
            keys:
                promise_09_equal_keys_are_never_in_two_hands,
                promise_09_other_keys_do_not_wait,
                promise_09_every_ending_frees_the_key,
                promise_09_a_dropped_delivery_frees_the_key,
                promise_09_a_dead_worker_frees_its_key,
                promise_09_a_key_holds_across_lanes,
                promise_09_a_backlog_of_one_key_does_not_block_others,
                promise_10_one_receiver_gets_all_messages,
                promise_10_another_takes_over_when_the_active_one_goes;
            retained:
                promise_11_there_is_no_value_at_first,
                promise_11_a_new_watcher_sees_the_last_value,
                promise_11_a_watcher_on_another_link_sees_each_change,
                promise_11_names_do_not_mix,
                promise_11_an_empty_value_is_a_value,
                promise_11_values_survive_a_reopening,
                promise_11_all_watchers_agree_in_the_end,
                promise_11_an_unknown_name_is_an_error;
        }
    };
}

/// Takes the list apart.
macro_rules! each {
    ($world:ident $attributes:tt $($file:ident: $($case:ident),+ ;)+) => {
        $($($crate::broker_conformance::case!($attributes $world $file $case);)+)+
    };
}

/// One test.
macro_rules! case {
    (($($attribute:meta)?) $world:ident $file:ident $case:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $(#[$attribute])?
        async fn $case() {
            $crate::broker_conformance::run($crate::broker_conformance::$file::$case::<$world>()).await;
        }
    };
}

pub(crate) use {case, conformance, each};
