//! Promise 3 (delays). Only earliness is asserted: how late a message may come is not promised.

use std::time::{Duration, Instant};

use bytes::Bytes;
use defender_bridge::broker::{Broker, Settlement};

use super::{TEST_TOPOLOGY, WORK, World, done, next, nothing, publish, receive, settle, text};

const HOUR: Duration = Duration::from_secs(3600);

/// Delays on both sides of the first step of a ladder of delays.
const DELAYS: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(700), Duration::from_millis(1_300)];

fn retry(after: Duration) -> Settlement {
    Settlement::Retry { after, body: None }
}

fn later(after: Duration) -> Settlement {
    Settlement::Later { after, body: None }
}

pub(crate) async fn promise_03_attempts_start_at_one_and_count_retries<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let id = publish(&world.broker(), &WORK, text("again")).await;
    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    // (how the delivery ends, the attempt that follows)
    let steps = [
        (retry(Duration::ZERO), 2),
        (later(Duration::ZERO), 2),
        (Settlement::GiveBack, 2),
        (retry(Duration::from_millis(10)), 3),
        (later(Duration::from_millis(10)), 3),
        (retry(Duration::ZERO), 4),
    ];
    let mut attempt = 1;
    let mut published = None;
    for (settlement, following) in steps {
        let delivery = next(&mut receiver).await;
        assert_eq!((delivery.message.id, delivery.attempt), (id, attempt));
        assert_eq!(*published.get_or_insert(delivery.published), delivery.published, "when it was first published");
        settle(delivery, settlement).await;
        attempt = following;
    }
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.attempt, attempt);
    done(delivery).await;
    world.close().await;
}

/// Settles with each of [`DELAYS`] and watches that the message does not come before.
async fn never_early<W: World>(settlement: fn(Duration) -> Settlement, counts: bool) {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &WORK, 5).await;
    let mut attempt = 1;
    publish(&world.broker(), &WORK, text("delayed")).await;
    for after in DELAYS {
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.attempt, attempt);
        let start = Instant::now();
        settle(delivery, settlement(after)).await;
        let delivery = next(&mut receiver).await;
        assert!(start.elapsed() >= after, "{:?} after {after:?}", start.elapsed());
        attempt += u32::from(counts);
        assert_eq!(delivery.attempt, attempt);
        // Back for the next step.
        settle(delivery, Settlement::GiveBack).await;
    }
    world.close().await;
}

pub(crate) async fn promise_03_a_retry_is_never_early<W: World>() {
    never_early::<W>(retry, true).await;
}

pub(crate) async fn promise_03_a_later_is_never_early_and_costs_no_attempt<W: World>() {
    never_early::<W>(later, false).await;
}

pub(crate) async fn promise_03_a_delayed_publish_is_never_early<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &WORK, 5).await;
    for after in DELAYS {
        let message = text("delayed");
        let id = message.id;
        let start = Instant::now();
        world.broker().publish(&WORK, message, after).await.expect("published");
        let delivery = next(&mut receiver).await;
        assert!(start.elapsed() >= after, "{:?} after {after:?}", start.elapsed());
        assert_eq!((delivery.message.id, delivery.attempt), (id, 1));
        done(delivery).await;
    }
    world.close().await;
}

pub(crate) async fn promise_03_many_delayed_messages_do_not_block_an_immediate_one<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let mut receiver = receive(&broker, &WORK, 2).await;
    for n in 0..100 {
        broker.publish(&WORK, text("delayed"), HOUR).await.expect("published");
        // Delays that come from settlements block as little as those that come from publishers.
        publish(&broker, &WORK, text("retried")).await;
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.body, "retried");
        settle(delivery, if n % 2 == 0 { retry(HOUR) } else { later(HOUR) }).await;
    }
    let id = publish(&broker, &WORK, text("immediate")).await;
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.id, id);
    done(delivery).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_03_a_short_delay_behind_a_long_one_comes_first<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    for (body, after) in [("long", 4_000), ("short", 200)] {
        broker.publish(&WORK, text(body), Duration::from_millis(after)).await.expect("published");
    }
    let mut receiver = receive(&broker, &WORK, 5).await;
    for expected in ["short", "long"] {
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.body, expected);
        done(delivery).await;
    }
    world.close().await;
}

pub(crate) async fn promise_03_retry_and_later_replace_the_body<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let id = publish(&world.broker(), &WORK, text("step 1")).await;
    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    let after = Duration::from_millis(20);
    let steps = [
        Settlement::Retry { after, body: Some(Bytes::from_static(b"step 2")) },
        Settlement::Later { after, body: Some(Bytes::from_static(b"step 3")) },
        Settlement::Retry { after: Duration::ZERO, body: Some(Bytes::new()) },
    ];
    for (settlement, body) in steps.into_iter().zip(["step 1", "step 2", "step 3"]) {
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.id, id);
        assert_eq!(delivery.message.body, body);
        settle(delivery, settlement).await;
    }
    let delivery = next(&mut receiver).await;
    assert_eq!((delivery.message.id, delivery.message.body.len()), (id, 0));
    done(delivery).await;
    world.close().await;
}

pub(crate) async fn promise_03_a_replaced_body_stays_replaced<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    publish(&world.broker(), &WORK, text("first")).await;
    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    let delivery = next(&mut receiver).await;
    let body = Some(Bytes::from_static(b"second"));
    settle(delivery, Settlement::Later { after: Duration::ZERO, body }).await;
    let endings = [retry(Duration::ZERO), later(Duration::from_millis(10)), Settlement::GiveBack];
    for settlement in endings {
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.body, "second");
        settle(delivery, settlement).await;
    }
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.body, "second");
    drop(delivery);
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.body, "second");
    done(delivery).await;
    world.close().await;
}

pub(crate) async fn promise_03_give_back_is_free_and_at_once<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(2).await;
    let id = publish(&world.broker(), &WORK, text("given back")).await;
    let mut leaving = receive(&links[0], &WORK, 1).await;
    let delivery = next(&mut leaving).await;
    let mut staying = receive(&links[1], &WORK, 1).await;
    leaving.close().await;
    settle(delivery, Settlement::GiveBack).await;
    let delivery = next(&mut staying).await;
    assert_eq!((delivery.message.id, delivery.attempt), (id, 1));
    // Any number of times: it never becomes a dead letter or a later attempt.
    let mut delivery = delivery;
    for _ in 0..40 {
        settle(delivery, Settlement::GiveBack).await;
        delivery = next(&mut staying).await;
        assert_eq!((delivery.message.id, delivery.attempt), (id, 1));
    }
    done(delivery).await;
    nothing(&mut staying).await;
    world.close().await;
}
