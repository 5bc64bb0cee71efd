//! Promise 5 (ask).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use defender_bridge::broker::{Broker, BrokerError, Lane, Message, Repeat, Settlement};

use super::{
    ASKS, NARROW_LIMIT, NARROW_TOPOLOGY, NOWHERE_ASKS, PATIENCE, TEST_TOPOLOGY, World, ask, deadline, next, nothing,
    receive, reply, settle, text,
};

/// Long enough for a worker to take the message, short enough to wait for its end.
const SHORT: Duration = Duration::from_millis(800);

fn at_most_once(body: &str) -> Message {
    Message { repeat: Repeat::AtMostOnce, ..text(body) }
}

pub(crate) async fn promise_05_an_ask_gets_its_reply<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    for n in 0..20 {
        let message = text(&format!("question {n}"));
        let id = message.id;
        let end = deadline(PATIENCE);
        let broker = world.broker();
        let asked = tokio::spawn(async move { broker.ask(&ASKS, message, end).await });
        let delivery = next(&mut receiver).await;
        assert_eq!((delivery.message.id, delivery.attempt), (id, 1));
        let seen = delivery.deadline.expect("an ask has a deadline");
        assert!(seen.duration_until(end).abs() <= jiff::SignedDuration::from_millis(1), "{seen} is not {end}");
        settle(delivery, reply(format!("answer {n}"))).await;
        assert_eq!(asked.await.expect("no panic").expect("answered"), format!("answer {n}"));
    }
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_05_an_ask_from_another_link_gets_its_reply<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    let beside = [world.beside().await, world.beside().await];
    for n in 0..10 {
        let asked = ask(&beside[n % 2], text("question"), PATIENCE);
        settle(next(&mut receiver).await, reply(format!("answer {n}"))).await;
        assert_eq!(asked.await.expect("no panic").expect("answered"), format!("answer {n}"));
    }
    world.close().await;
}

pub(crate) async fn promise_05_many_concurrent_asks_each_get_their_own_reply<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let beside = world.beside().await;
    let mut workers = Vec::new();
    for link in world.receiving(3).await {
        let mut receiver = receive(&link, &ASKS, 40).await;
        workers.push(tokio::spawn(async move {
            while let Some(delivery) = receiver.next().await {
                tokio::spawn(async move {
                    // Answers leave in another order than questions came.
                    let shuffled = u64::from(delivery.message.id.as_bytes()[15] % 50);
                    tokio::time::sleep(Duration::from_millis(shuffled)).await;
                    let answer = format!("re: {}", String::from_utf8_lossy(&delivery.message.body));
                    settle(delivery, reply(answer)).await;
                });
            }
        }));
    }
    let inside = world.broker();
    let asked: Vec<_> = (0..200)
        .map(|n| (n, ask(if n % 2 == 0 { &beside } else { &inside }, text(&n.to_string()), PATIENCE)))
        .collect();
    for (n, asked) in asked {
        assert_eq!(asked.await.expect("no panic").expect("answered"), format!("re: {n}"));
    }
    for worker in workers {
        worker.abort();
    }
    world.close().await;
}

pub(crate) async fn promise_05_an_ask_ends_at_its_deadline<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    for broker in [world.broker(), world.beside().await] {
        let start = Instant::now();
        let outcome = broker.ask(&ASKS, text("nobody answers"), deadline(SHORT)).await;
        assert!(matches!(outcome, Err(BrokerError::Timeout)), "{outcome:?}");
        assert!(start.elapsed() + Duration::from_millis(1) >= SHORT, "gave up early: {:?}", start.elapsed());
        // One whose deadline is over ends at once.
        let outcome = broker.ask(&ASKS, text("too late"), deadline(SHORT) - Duration::from_secs(60)).await;
        assert!(matches!(outcome, Err(BrokerError::Timeout)), "{outcome:?}");
    }
    world.close().await;
}

pub(crate) async fn promise_05_a_late_reply_is_dropped<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    for broker in [world.broker(), world.beside().await] {
        let asked = ask(&broker, text("first"), SHORT);
        let held = next(&mut receiver).await;
        assert!(matches!(asked.await.expect("no panic"), Err(BrokerError::Timeout)));

        let asked = ask(&broker, text("second"), PATIENCE);
        let second = next(&mut receiver).await;
        assert_eq!(second.message.body, "second");
        settle(held, reply("for the first")).await;
        settle(second, reply("for the second")).await;
        assert_eq!(asked.await.expect("no panic").expect("answered"), "for the second");
    }
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_05_an_expired_ask_is_never_handed_out<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let expired: Vec<_> = (0..10).map(|_| ask(&world.broker(), text("expired"), SHORT)).collect();
    for asked in expired {
        assert!(matches!(asked.await.expect("no panic"), Err(BrokerError::Timeout)));
    }
    let mut receiver = receive(&world.broker(), &ASKS, 20).await;
    let asked = ask(&world.broker(), text("alive"), PATIENCE);
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.body, "alive");
    settle(delivery, reply("yes")).await;
    asked.await.expect("no panic").expect("answered");
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_05_an_ask_that_expires_before_next_is_never_handed_out<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    // All fit into the prefetch, so they may be in this process when they expire.
    let mut receiver = receive(&world.broker(), &ASKS, 20).await;
    let expired: Vec<_> = (0..10).map(|_| ask(&world.broker(), text("expired"), SHORT)).collect();
    for asked in expired {
        assert!(matches!(asked.await.expect("no panic"), Err(BrokerError::Timeout)));
    }
    let asked = ask(&world.broker(), text("alive"), PATIENCE);
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.body, "alive");
    settle(delivery, reply("yes")).await;
    asked.await.expect("no panic").expect("answered");
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_05_a_full_queue_refuses_asks_at_once<W: World>() {
    let world = W::open(&NARROW_TOPOLOGY).await;
    let broker = world.broker();
    let limit = NARROW_LIMIT as usize;
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..3 * limit {
        let broker = broker.clone();
        let message = text(&n.to_string());
        waiting.spawn(async move { (n, broker.ask(&ASKS, message, deadline(PATIENCE)).await) });
    }
    // With no worker about, only refusals end; they do not wait for the deadline.
    let mut refused = BTreeSet::new();
    while refused.len() < 2 * limit {
        let (n, outcome) = waiting.join_next().await.expect("asks are pending").expect("no panic");
        assert!(matches!(outcome, Err(BrokerError::Full)), "{outcome:?}");
        refused.insert(n);
    }
    // The other lane is not full.
    let urgent = ask(&broker, super::urgent("urgent"), PATIENCE);
    let mut lane = broker.receive(&ASKS, Lane::Urgent, 1).await.expect("receiving");
    settle(next(&mut lane).await, reply("at once")).await;
    assert_eq!(urgent.await.expect("no panic").expect("answered"), "at once");

    // Those accepted are answered.
    let mut receiver = receive(&broker, &ASKS, 2).await;
    for _ in 0..limit {
        let delivery = next(&mut receiver).await;
        let body = delivery.message.body.clone();
        settle(delivery, reply(body)).await;
    }
    while let Some(ended) = waiting.join_next().await {
        let (n, outcome) = ended.expect("no panic");
        assert_eq!(outcome.expect("answered"), n.to_string());
    }
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_05_an_ask_to_an_unknown_queue_is_an_error<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let outcome = world.broker().ask(&NOWHERE_ASKS, text("hello?"), deadline(PATIENCE)).await;
    assert!(matches!(outcome, Err(BrokerError::Unroutable(_))), "{outcome:?}");
    world.close().await;
}

pub(crate) async fn promise_05_an_ask_whose_worker_died_is_worked_by_another<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let asked = ask(&world.beside().await, text("question"), PATIENCE);
    let died = world.dying_worker(&ASKS, Lane::Normal, 0, 1).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    let delivery = next(&mut receiver).await;
    assert_eq!((delivery.message.id, delivery.attempt), (died.held[0], 2));
    assert!(delivery.deadline.is_some());
    settle(delivery, reply("answer")).await;
    assert_eq!(asked.await.expect("no panic").expect("answered"), "answer");
    world.close().await;
}

pub(crate) async fn promise_05_an_ask_whose_delivery_was_dropped_is_worked_again<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let asked = ask(&world.broker(), text("question"), PATIENCE);
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    drop(next(&mut receiver).await);
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.attempt, 2);
    settle(delivery, reply("answer")).await;
    assert_eq!(asked.await.expect("no panic").expect("answered"), "answer");
    world.close().await;
}

/// Nothing comes back but an ask made afterwards.
async fn only_a_new_ask_comes<W: World>(world: &W) {
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    let asked = ask(&world.broker(), text("a new one"), PATIENCE);
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.message.body, "a new one");
    settle(delivery, reply("answer")).await;
    asked.await.expect("no panic").expect("answered");
    nothing(&mut receiver).await;
}

pub(crate) async fn promise_05_an_at_most_once_ask_does_not_come_back_after_a_crash<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let asked = ask(&world.beside().await, at_most_once("isolate"), Duration::from_secs(8));
    let died = world.dying_worker(&ASKS, Lane::Normal, 0, 1).await;
    assert_eq!(died.held.len(), 1);
    only_a_new_ask_comes(&world).await;
    assert!(matches!(asked.await.expect("no panic"), Err(BrokerError::Timeout | BrokerError::Unknown(_))));
    world.close().await;
}

pub(crate) async fn promise_05_an_at_most_once_ask_does_not_come_back_when_dropped<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let asked = ask(&world.broker(), at_most_once("isolate"), Duration::from_secs(2));
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    drop(next(&mut receiver).await);
    nothing(&mut receiver).await;
    receiver.close().await;
    only_a_new_ask_comes(&world).await;
    assert!(matches!(asked.await.expect("no panic"), Err(BrokerError::Timeout | BrokerError::Unknown(_))));
    world.close().await;
}

pub(crate) async fn promise_05_an_at_most_once_ask_gets_its_reply<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    for broker in [world.broker(), world.beside().await] {
        let asked = ask(&broker, at_most_once("isolate"), PATIENCE);
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.repeat, Repeat::AtMostOnce);
        settle(delivery, reply("isolated")).await;
        assert_eq!(asked.await.expect("no panic").expect("answered"), "isolated");
    }
    world.close().await;
}

pub(crate) async fn promise_05_a_retried_ask_still_gets_its_reply<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    for broker in [world.broker(), world.beside().await] {
        let asked = ask(&broker, text("question"), PATIENCE);
        let start = Instant::now();
        let after = Duration::from_millis(300);
        let body = Some(Bytes::from_static(b"half way"));
        settle(next(&mut receiver).await, Settlement::Retry { after, body }).await;
        let delivery = next(&mut receiver).await;
        assert!(start.elapsed() >= after);
        assert_eq!((delivery.attempt, &*delivery.message.body), (2, &b"half way"[..]));
        settle(delivery, reply("answer")).await;
        assert_eq!(asked.await.expect("no panic").expect("answered"), "answer");
    }
    world.close().await;
}

pub(crate) async fn promise_05_a_given_back_ask_is_answered_by_another<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(2).await;
    let asked = ask(&world.beside().await, text("question"), PATIENCE);
    let mut leaving = receive(&links[0], &ASKS, 1).await;
    let delivery = next(&mut leaving).await;
    leaving.close().await;
    settle(delivery, Settlement::GiveBack).await;
    let mut staying = receive(&links[1], &ASKS, 1).await;
    let delivery = next(&mut staying).await;
    assert_eq!(delivery.attempt, 1);
    settle(delivery, reply("answer")).await;
    assert_eq!(asked.await.expect("no panic").expect("answered"), "answer");
    world.close().await;
}

pub(crate) async fn promise_05_done_without_a_reply_leaves_the_caller_to_its_deadline<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    let asked = ask(&world.broker(), text("question"), SHORT);
    settle(next(&mut receiver).await, Settlement::Done { reply: None }).await;
    assert!(matches!(asked.await.expect("no panic"), Err(BrokerError::Timeout)));
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_05_large_requests_and_replies_return_byte_for_byte<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &ASKS, 4).await;
    let large: Bytes = (0..500_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>().into();
    for broker in [world.broker(), world.beside().await] {
        for body in [large.clone(), Bytes::new(), (0..=255).collect::<Vec<u8>>().into()] {
            let asked = ask(&broker, Message::new(body.clone()), PATIENCE);
            let delivery = next(&mut receiver).await;
            assert!(delivery.message.body == body, "the request changed");
            settle(delivery, reply(body.clone())).await;
            assert!(asked.await.expect("no panic").expect("answered") == body, "the reply changed");
        }
    }
    world.close().await;
}
