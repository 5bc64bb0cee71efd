//! Promises 1 (publish), 2 (at least once) and 4 (opaque).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use defender_bridge::broker::{BODY_LIMIT_BYTES, Broker, BrokerError, Headers, Lane, Message, Repeat};
use jiff::Timestamp;

use super::{
    ASKS, NARROW_LIMIT, NARROW_TOPOLOGY, NOWHERE, OTHER, TEST_TOPOLOGY, WORK, World, dead, deadline, done, next,
    nothing, publish, publish_many, receive, settle, text, urgent, work, work_until,
};

pub(crate) async fn promise_01_a_published_message_arrives<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let before = Timestamp::now();
    let id = publish(&world.broker(), &WORK, text("hello")).await;

    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    let delivery = next(&mut receiver).await;

    assert_eq!(delivery.message.id, id);
    assert_eq!(delivery.message.body, "hello");
    assert_eq!(delivery.message.lane, Lane::Normal);
    assert_eq!(delivery.attempt, 1);
    assert_eq!(delivery.deadline, None);
    assert!(!delivery.destination.is_empty());
    // An implementation may keep times in milliseconds.
    assert!(delivery.published >= before - Duration::from_millis(1), "{} < {before}", delivery.published);
    assert!(delivery.published <= Timestamp::now());
    done(delivery).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_01_an_unknown_queue_is_an_error<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    for message in [text("normal"), urgent("urgent")] {
        let refused = world.broker().publish(&NOWHERE, message, Duration::ZERO).await;
        assert!(matches!(refused, Err(BrokerError::Unroutable(_))), "{refused:?}");
    }
    let refused = world.broker().publish(&NOWHERE, text("delayed"), Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(BrokerError::Unroutable(_))), "{refused:?}");
    // The link is none the worse for it.
    publish(&world.broker(), &WORK, text("known")).await;
    world.close().await;
}

pub(crate) async fn promise_01_a_full_queue_refuses_and_stores_nothing_of_what_it_refused<W: World>() {
    let world = W::open(&NARROW_TOPOLOGY).await;
    let broker = world.broker();
    let mut accepted = BTreeSet::new();
    let refusal = loop {
        let message = text("one of many");
        let id = message.id;
        match broker.publish(&WORK, message, Duration::ZERO).await {
            Ok(()) => accepted.insert(id),
            Err(error) => break error,
        };
        // A quorum queue lets a few more in than its limit says.
        assert!(accepted.len() < 10 * NARROW_LIMIT as usize, "the queue has no limit");
    };
    assert!(matches!(refusal, BrokerError::Full), "{refusal:?}");
    assert!(refusal.is_transient());
    assert!(accepted.len() >= NARROW_LIMIT as usize, "refused after {}", accepted.len());

    // The other lane and the other queue have room of their own.
    publish(&broker, &WORK, urgent("urgent")).await;
    publish(&broker, &OTHER, text("other")).await;

    let mut receiver = receive(&broker, &WORK, 4).await;
    let arrived: BTreeSet<_> = work(&mut receiver, accepted.len()).await.into_iter().collect();
    assert_eq!(arrived, accepted);
    nothing(&mut receiver).await;
    publish(&broker, &WORK, text("there is room again")).await;
    work(&mut receiver, 1).await;
    world.close().await;
}

pub(crate) async fn promise_01_a_body_above_the_limit_is_refused<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let large = || Message::new(Bytes::from(vec![7; BODY_LIMIT_BYTES + 1]));
    let refused = [
        broker.publish(&WORK, large(), Duration::ZERO).await,
        broker.ask(&ASKS, large(), deadline(Duration::from_secs(5))).await.map(drop),
    ];
    for outcome in refused {
        assert!(
            matches!(outcome, Err(BrokerError::TooLarge { bytes, limit })
                if bytes == BODY_LIMIT_BYTES + 1 && limit == BODY_LIMIT_BYTES),
            "{outcome:?}"
        );
    }
    world.close().await;
}

pub(crate) async fn promise_01_a_key_above_the_limit_is_refused<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    // The limit counts bytes: "ö" has two.
    let long = || super::keyed(&"ö".repeat(Message::KEY_LIMIT_BYTES / 2 + 1));
    let refused = [
        broker.publish(&WORK, long(), Duration::ZERO).await,
        broker.ask(&ASKS, long(), deadline(Duration::from_secs(5))).await.map(drop),
    ];
    for outcome in refused {
        assert!(
            matches!(outcome, Err(BrokerError::TooLarge { limit, .. }) if limit == Message::KEY_LIMIT_BYTES),
            "{outcome:?}"
        );
    }
    world.close().await;
}

pub(crate) async fn promise_01_a_link_beside_the_receiving_one_publishes_too<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let beside = world.beside().await;
    // The receiver waits already, so the other link's message has to wake it.
    let mut receiver = receive(&world.broker(), &WORK, 10).await;
    let ids = publish_many(&beside, &WORK, 20, |n| text(&n.to_string())).await;
    let arrived: BTreeSet<_> = work(&mut receiver, 20).await.into_iter().collect();
    assert_eq!(arrived, ids);
    world.close().await;
}

pub(crate) async fn promise_01_published_messages_survive_a_reopening<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let first = world.beside().await;
    let ids = publish_many(&first, &WORK, 50, |n| text(&n.to_string())).await;
    first.close().await;
    world.broker().close().await;

    let mut again = world.receiving(1).await;
    let mut receiver = receive(&again.remove(0), &WORK, 10).await;
    let arrived: BTreeSet<_> = work(&mut receiver, 50).await.into_iter().collect();
    assert_eq!(arrived, ids);
    world.close().await;
}

pub(crate) async fn promise_01_a_closed_broker_refuses<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let beside = world.beside().await;
    let clone = beside.clone();
    beside.close().await;
    let refused = clone.publish(&WORK, text("too late"), Duration::ZERO).await;
    assert!(matches!(refused, Err(BrokerError::Closed)), "{refused:?}");
    // A second close is harmless.
    clone.close().await;
    world.close().await;
}

pub(crate) async fn promise_02_a_dropped_delivery_comes_back_with_the_next_attempt<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let id = publish(&world.broker(), &WORK, text("dropped")).await;
    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    for attempt in 1..=3 {
        let delivery = next(&mut receiver).await;
        assert_eq!((delivery.message.id, delivery.attempt), (id, attempt));
        assert_eq!(delivery.message.body, "dropped");
        drop(delivery);
    }
    let delivery = next(&mut receiver).await;
    assert_eq!(delivery.attempt, 4);
    done(delivery).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_02_what_a_dead_worker_held_comes_back_with_the_next_attempt<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let ids = publish_many(&world.beside().await, &WORK, 5, |n| text(&n.to_string())).await;
    let died = world.dying_worker(&WORK, Lane::Normal, 0, 5).await;
    assert_eq!(died.held.iter().copied().collect::<BTreeSet<_>>(), ids);

    let mut receiver = receive(&world.broker(), &WORK, 10).await;
    let mut again = BTreeMap::new();
    for _ in 0..5 {
        let delivery = next(&mut receiver).await;
        again.insert(delivery.message.id, delivery.attempt);
        done(delivery).await;
    }
    assert_eq!(again, ids.iter().map(|id| (*id, 2)).collect());
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_02_nothing_confirmed_is_lost_when_workers_die<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut ids = publish_many(&world.beside().await, &WORK, 500, |n| text(&n.to_string())).await;
    for (settled, held) in [(0, 1), (37, 20), (150, 64), (5, 0)] {
        let died = world.dying_worker(&WORK, Lane::Normal, settled, held).await;
        assert_eq!((died.done.len(), died.held.len()), (settled, held));
        // Settled is settled: a message may come again only if its settlement was lost with the worker.
        for id in died.done {
            ids.remove(&id);
        }
    }
    let mut receiver = receive(&world.broker(), &WORK, 50).await;
    work_until(&mut receiver, ids).await;
    world.close().await;
}

pub(crate) async fn promise_02_a_message_has_one_holder_at_a_time<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(2).await;
    let mut first = receive(&links[0], &WORK, 5).await;
    let id = publish(&world.broker(), &WORK, text("one holder")).await;
    let held = next(&mut first).await;
    let mut second = receive(&links[1], &WORK, 5).await;
    nothing(&mut second).await;
    assert_eq!(done(held).await, id);
    nothing(&mut second).await;
    world.close().await;
}

/// Headers as odd as the seam allows.
fn odd_headers() -> Headers {
    [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        ("empty", ""),
        ("größe", "наблюдаемый — 観測 🛰"),
        ("lines", "one\r\ntwo\ttab\u{0}nul"),
        ("quoted", r#"'; DROP TABLE messages; -- "\"#),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Messages whose every member is unusual.
pub(super) fn odd_messages() -> Vec<Message> {
    let every_byte: Vec<u8> = (0..=255).chain([0, 0, 255, 254]).collect();
    vec![
        Message {
            headers: odd_headers(), key: Some("höst/42 ключ".to_owned()), ..Message::new(every_byte.into())
        },
        Message { headers: odd_headers(), lane: Lane::Urgent, ..Message::new(Bytes::new()) },
        Message { key: Some("k".repeat(Message::KEY_LIMIT_BYTES)), ..text("a long key") },
        Message { repeat: Repeat::AtMostOnce, ..text("at most once") },
        text("nothing unusual"),
    ]
}

pub(crate) async fn promise_04_everything_returns_byte_for_byte<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    for message in odd_messages() {
        let mut receiver = world.broker().receive(&WORK, message.lane, 1).await.expect("receiving");
        publish(&world.broker(), &WORK, message.clone()).await;
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message, message);
        assert_eq!(delivery.message.headers, message.headers);

        // Nor does it change on its way back, when it may come back.
        if message.repeat == Repeat::AtLeastOnce {
            settle(delivery, super::Settlement::GiveBack).await;
            let delivery = next(&mut receiver).await;
            assert_eq!(delivery.message, message);
            settle(delivery, super::Settlement::Retry { after: Duration::from_millis(1), body: None }).await;
            let delivery = next(&mut receiver).await;
            assert_eq!(delivery.message, message);
            done(delivery).await;
        } else {
            done(delivery).await;
        }
        receiver.close().await;
    }
    world.close().await;
}

pub(crate) async fn promise_04_a_large_body_returns_byte_for_byte<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let body: Bytes = (0..2 * 1024 * 1024_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
    publish(&world.broker(), &WORK, Message::new(body.clone())).await;
    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    let delivery = next(&mut receiver).await;
    assert!(delivery.message.body == body, "the body changed");
    done(delivery).await;
    world.close().await;
}

pub(crate) async fn promise_04_debug_output_hides_body_and_headers<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut message = text("planted-secret-body");
    message.headers.insert("planted".to_owned(), "planted-secret-header".to_owned());
    let mut shown = format!("{message:?}");
    publish(&world.broker(), &WORK, message).await;
    let mut receiver = receive(&world.broker(), &WORK, 1).await;
    let delivery = next(&mut receiver).await;
    shown += &format!("{delivery:?}{receiver:?}");
    settle(delivery, dead("refused")).await;
    shown += &format!("{:?}", world.broker().dead_letters(&Default::default()).await.expect("listed"));
    assert!(shown.contains("DeadLetter"));
    assert!(!shown.contains("planted-secret"), "{shown}");
    world.close().await;
}
