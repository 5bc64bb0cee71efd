//! Promises 7 (receive) and 8 (lanes).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use defender_bridge::broker::{Broker, BrokerError, Health, Lane, Settlement};
use uuid::Uuid;

use super::{
    ASKS, NOWHERE, OTHER, PATIENCE, TEST_TOPOLOGY, WORK, World, ask, dead, deadline, done, eventually, next, nothing,
    publish, publish_many, receive, reply, settle, text, urgent, work, work_until,
};

pub(crate) async fn promise_07_prefetch_bounds_what_is_handed_out<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    for queue in [&WORK, &OTHER] {
        publish_many(&world.broker(), queue, 20, |n| text(&n.to_string())).await;
        let mut receiver = receive(&world.broker(), queue, 5).await;
        let mut hands = Vec::new();
        for _ in 0..5 {
            hands.push(next(&mut receiver).await);
        }
        nothing(&mut receiver).await;
        // Each ending makes room for one more, whatever the ending.
        let hour = Duration::from_secs(3600);
        let endings = [
            Settlement::Done { reply: None },
            Settlement::Retry { after: hour, body: None },
            Settlement::Later { after: hour, body: None },
            dead("refused"),
        ];
        for settlement in endings {
            settle(hands.remove(0), settlement).await;
            hands.push(next(&mut receiver).await);
            nothing(&mut receiver).await;
        }
        drop(hands.remove(0));
        hands.push(next(&mut receiver).await);
        nothing(&mut receiver).await;
    }
    world.close().await;
}

pub(crate) async fn promise_07_next_is_cancel_safe<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &WORK, 10).await;
    let broker = world.broker();
    let publishing = tokio::spawn(async move { publish_many(&broker, &WORK, 300, |n| text(&n.to_string())).await });
    let mut arrived = BTreeSet::new();
    let mut cancelled = 0_u64;
    let start = std::time::Instant::now();
    while arrived.len() < 300 {
        assert!(start.elapsed() < PATIENCE, "{} arrived", arrived.len());
        tokio::select! {
            delivery = receiver.next() => {
                let delivery = delivery.expect("the receiver is open");
                assert_eq!(delivery.attempt, 1);
                arrived.insert(done(delivery).await);
            }
            () = tokio::task::yield_now() => cancelled += 1,
        }
    }
    assert!(cancelled > 0);
    assert_eq!(arrived, publishing.await.expect("no panic"));
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_07_closing_gives_back_what_was_not_handed_out<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(2).await;
    let mut ids = publish_many(&world.broker(), &WORK, 10, |n| text(&n.to_string())).await;
    let mut closing = receive(&links[0], &WORK, 10).await;
    let held = next(&mut closing).await;
    closing.close().await;

    let mut receiver = receive(&links[1], &WORK, 20).await;
    ids.remove(&held.message.id);
    let mut arrived = BTreeSet::new();
    for _ in 0..9 {
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.attempt, 1, "it was never in anybody's hands");
        arrived.insert(done(delivery).await);
    }
    assert_eq!(arrived, ids);
    nothing(&mut receiver).await;
    done(held).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_07_a_delivery_outlives_its_receiver<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    publish_many(&world.broker(), &WORK, 3, |n| text(&n.to_string())).await;
    let mut receiver = receive(&world.broker(), &WORK, 3).await;
    let mut hands = vec![next(&mut receiver).await, next(&mut receiver).await, next(&mut receiver).await];
    receiver.close().await;

    let mut receiver = receive(&world.broker(), &WORK, 3).await;
    nothing(&mut receiver).await;
    done(hands.remove(0)).await;
    let retried = hands.remove(0);
    let id = retried.message.id;
    settle(retried, Settlement::Retry { after: Duration::ZERO, body: None }).await;
    let delivery = next(&mut receiver).await;
    assert_eq!((delivery.message.id, delivery.attempt), (id, 2));
    done(delivery).await;
    let dropped = hands.remove(0);
    let id = dropped.message.id;
    drop(dropped);
    let delivery = next(&mut receiver).await;
    assert_eq!((delivery.message.id, delivery.attempt), (id, 2));
    done(delivery).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_07_closing_while_messages_flow_loses_nothing<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let publisher = world.beside().await;
    let publishing = tokio::spawn(async move { publish_many(&publisher, &WORK, 400, |n| text(&n.to_string())).await });
    let finished: Arc<Mutex<Vec<Uuid>>> = Arc::default();
    for round in 0..6 {
        let mut receiver = receive(&broker, &WORK, 16).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 + round {
            let delivery = next(&mut receiver).await;
            let finished = Arc::clone(&finished);
            tasks.spawn(async move {
                assert_eq!(delivery.attempt, 1, "given back, not lost");
                tokio::task::yield_now().await;
                let id = done(delivery).await;
                finished.lock().expect("no panic").push(id);
            });
        }
        // Closes with messages in hands, in the buffer and on their way.
        receiver.close().await;
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
    }
    let mut ids = publishing.await.expect("no panic");
    assert_eq!(ids.len(), 400);
    for id in finished.lock().expect("no panic").iter() {
        assert!(ids.remove(id), "done twice");
    }
    let mut receiver = receive(&broker, &WORK, 16).await;
    work_until(&mut receiver, ids).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_07_a_closed_broker_ends_its_receivers_and_refuses_calls<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let ids = publish_many(&broker, &WORK, 20, |n| text(&n.to_string())).await;
    let mut receiver = receive(&broker, &WORK, 3).await;
    let first = next(&mut receiver).await;
    let settled = first.message.id;
    let settling = tokio::spawn(first.settle(Settlement::Done { reply: None }));
    // Settled or on its way: the close waits for it.
    settling.await.expect("no panic").expect("settled");
    broker.close().await;

    // What was buffered may still come out; then the stream ends.
    let ended = tokio::time::timeout(PATIENCE, async { while receiver.next().await.is_some() {} }).await;
    assert!(ended.is_ok(), "the receiver goes on");
    let refused = [
        broker.publish(&WORK, text("late"), Duration::ZERO).await,
        broker.ask(&ASKS, text("late"), deadline(PATIENCE)).await.map(drop),
        broker.receive(&WORK, Lane::Normal, 1).await.map(drop),
        broker.dead_letters(&Default::default()).await.map(drop),
        broker.redrive(&Default::default(), 0, |_| {}).await.map(drop),
        broker.discard(&Default::default()).await.map(drop),
        broker.retain(super::PAUSE, text("late").body).await,
        broker.watch(super::PAUSE).await.map(drop),
    ];
    for (n, outcome) in refused.into_iter().enumerate() {
        assert!(matches!(outcome, Err(BrokerError::Closed)), "call {n}: {outcome:?}");
    }
    assert!(!broker.check().await.connected);

    let again = world.receiving(1).await.remove(0);
    let mut receiver = receive(&again, &WORK, 10).await;
    let mut left = BTreeSet::new();
    for _ in 0..19 {
        left.insert(done(next(&mut receiver).await).await);
    }
    assert!(!left.contains(&settled));
    assert_eq!(left.len(), ids.len() - 1);
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_07_receivers_share_the_messages<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(3).await;
    for queue in [&WORK, &OTHER] {
        let mut receivers = Vec::new();
        for link in &links {
            receivers.push(receive(link, queue, 2).await);
        }
        publish_many(&world.broker(), queue, 12, |n| text(&n.to_string())).await;
        // Each takes its prefetch and no more, so all three have some.
        let mut hands = Vec::new();
        for receiver in &mut receivers {
            for _ in 0..2 {
                hands.push(next(receiver).await);
            }
            nothing(receiver).await;
        }
        let distinct: BTreeSet<_> = hands.iter().map(|delivery| delivery.message.id).collect();
        assert_eq!(distinct.len(), 6);
        for delivery in hands {
            done(delivery).await;
        }
        for receiver in &mut receivers {
            work(receiver, 2).await;
        }
    }
    world.close().await;
}

pub(crate) async fn promise_07_an_unknown_queue_cannot_be_received<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let outcome = tokio::time::timeout(PATIENCE, world.broker().receive(&NOWHERE, Lane::Normal, 1)).await;
    assert!(outcome.expect("an answer in time").is_err());
    publish(&world.broker(), &WORK, text("the link is well")).await;
    work(&mut receive(&world.broker(), &WORK, 1).await, 1).await;
    world.close().await;
}

/// (ready, receivers, dead) of a lane.
fn depth(health: &Health, lane: Lane) -> (u64, u64, u64) {
    let row =
        health.queues.iter().find(|row| row.queue == WORK.name && row.lane == lane).expect("every lane is listed");
    (row.ready, row.receivers, row.dead)
}

pub(crate) async fn promise_07_the_depths_tell_what_waits<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let health = broker.check().await;
    assert!(health.connected);
    assert_eq!(health.blocked, None);
    assert_eq!(health.queues.len(), 2 * TEST_TOPOLOGY.queues.len());

    publish_many(&broker, &WORK, 7, |n| text(&n.to_string())).await;
    publish(&broker, &WORK, urgent("urgent")).await;
    broker.publish(&WORK, text("delayed"), Duration::from_secs(3600)).await.expect("published");
    eventually("seven normal and one urgent message are ready", || async {
        let health = broker.check().await;
        depth(&health, Lane::Normal) == (7, 0, 0) && depth(&health, Lane::Urgent) == (1, 0, 0)
    })
    .await;

    let mut receiver = receive(&broker, &WORK, 2).await;
    settle(next(&mut receiver).await, dead("refused")).await;
    let held = next(&mut receiver).await;
    // One dead, two in hands (one of them in the buffer), four left.
    eventually("four are ready, one receiver, one dead", || async {
        let health = broker.check().await;
        depth(&health, Lane::Normal) == (4, 1, 1) && depth(&health, Lane::Urgent) == (1, 0, 1)
    })
    .await;
    drop(held);

    let _gathering = receive(&broker, &OTHER, 4).await;
    eventually("a receiver is one, however it receives", || async {
        let health = broker.check().await;
        health.queues.iter().any(|row| row.queue == OTHER.name && row.lane == Lane::Normal && row.receivers == 1)
    })
    .await;
    world.close().await;
}

pub(crate) async fn promise_08_an_urgent_message_passes_a_thousand_normal_ones<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    publish_many(&broker, &WORK, 1_000, |n| text(&n.to_string())).await;
    let id = publish(&broker, &WORK, urgent("contain")).await;
    let mut normal = receive(&broker, &WORK, 10).await;
    let mut first = broker.receive(&WORK, Lane::Urgent, 10).await.expect("receiving");
    let delivery = next(&mut first).await;
    assert_eq!((delivery.message.id, delivery.message.lane), (id, Lane::Urgent));
    done(delivery).await;
    nothing(&mut first).await;
    let delivery = next(&mut normal).await;
    assert_eq!(delivery.message.lane, Lane::Normal);
    done(delivery).await;
    world.close().await;
}

pub(crate) async fn promise_08_an_urgent_message_arrives_while_normal_hands_are_full<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    publish_many(&broker, &WORK, 10, |n| text(&n.to_string())).await;
    let mut normal = receive(&broker, &WORK, 2).await;
    let mut lane = broker.receive(&WORK, Lane::Urgent, 2).await.expect("receiving");
    let _held = [next(&mut normal).await, next(&mut normal).await];
    for _ in 0..3 {
        let id = publish(&broker, &WORK, urgent("contain")).await;
        let delivery = next(&mut lane).await;
        assert_eq!(delivery.message.id, id);
        // A retried one stays in its lane.
        settle(delivery, Settlement::Retry { after: Duration::ZERO, body: None }).await;
        let delivery = next(&mut lane).await;
        assert_eq!((delivery.message.id, delivery.attempt), (id, 2));
        done(delivery).await;
    }
    nothing(&mut normal).await;
    world.close().await;
}

pub(crate) async fn promise_08_urgent_asks_have_their_own_lane<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let waiting: Vec<_> = (0..20).map(|n| ask(&broker, text(&n.to_string()), PATIENCE)).collect();
    let mut lane = broker.receive(&ASKS, Lane::Urgent, 2).await.expect("receiving");
    let asked = ask(&broker, urgent("release"), PATIENCE);
    let delivery = next(&mut lane).await;
    assert_eq!(delivery.message.body, "release");
    settle(delivery, reply("released")).await;
    assert_eq!(asked.await.expect("no panic").expect("answered"), "released");
    nothing(&mut lane).await;
    for asked in waiting {
        asked.abort();
    }
    world.close().await;
}
