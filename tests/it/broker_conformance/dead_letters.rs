//! Promise 6 (dead letters).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use defender_bridge::broker::{
    Broker, Cause, DeadLetter, DeadLetterFilter, Headers, Lane, Message, Repeat, Settlement,
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    OTHER, TEST_TOPOLOGY, WORK, World, bury, dead, done, keyed, next, nothing, publish, publish_many, receive, settle,
    text,
};

async fn list<B: Broker>(broker: &B, filter: &DeadLetterFilter) -> Vec<DeadLetter> {
    broker.dead_letters(filter).await.expect("listed")
}

fn ids(letters: &[DeadLetter]) -> Vec<Uuid> {
    letters.iter().map(|letter| letter.message.id).collect()
}

/// Leaves the headers of a redriven message alone.
const AS_IT_WAS: fn(&mut Headers) = |_| {};

fn all() -> DeadLetterFilter {
    DeadLetterFilter::default()
}

/// Publishes `count` messages and makes dead letters of all.
async fn bury_many<B: Broker>(broker: &B, count: usize) -> BTreeSet<Uuid> {
    let ids = publish_many(broker, &WORK, count, |n| text(&n.to_string())).await;
    let mut receiver = receive(broker, &WORK, 50).await;
    for _ in 0..count {
        settle(next(&mut receiver).await, dead("refused")).await;
    }
    receiver.close().await;
    ids
}

pub(crate) async fn promise_06_a_dead_letter_keeps_everything<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    for message in super::publishing::odd_messages() {
        let message = Message { repeat: Repeat::AtLeastOnce, ..message };
        let before = Timestamp::now() - Duration::from_millis(1);
        publish(&broker, &WORK, message.clone()).await;
        let mut receiver = broker.receive(&WORK, message.lane, 1).await.expect("receiving");
        let delivery = next(&mut receiver).await;
        let published = delivery.published;
        let cause = Cause { code: "undecodable".to_owned(), detail: "the body is not JSON: «…»".to_owned() };
        settle(delivery, Settlement::DeadLetter(cause.clone())).await;
        receiver.close().await;

        let mut letters = list(&world.beside().await, &all()).await;
        assert_eq!(letters.len(), 1);
        let letter = letters.remove(0);
        assert_eq!(letter.message, message);
        assert_eq!(letter.message.headers, message.headers);
        assert_eq!((letter.queue.as_str(), letter.cause, letter.attempts), (WORK.name, cause, 1));
        assert_eq!(letter.published, published);
        assert!(letter.died >= before && letter.died <= Timestamp::now(), "{}", letter.died);
        assert_eq!(broker.discard(&all()).await.expect("discarded"), 1);
    }
    world.close().await;
}

pub(crate) async fn promise_06_a_dead_letter_has_the_last_body_and_the_attempts_made<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    publish(&broker, &WORK, text("first")).await;
    let mut receiver = receive(&broker, &WORK, 1).await;
    let body = Some(Bytes::from_static(b"last"));
    settle(next(&mut receiver).await, Settlement::Retry { after: Duration::ZERO, body }).await;
    drop(next(&mut receiver).await);
    settle(next(&mut receiver).await, dead("attempts")).await;
    let letters = list(&broker, &all()).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].attempts, &*letters[0].message.body), (3, &b"last"[..]));
    world.close().await;
}

pub(crate) async fn promise_06_a_long_detail_is_cut<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    publish(&broker, &WORK, text("verbose")).await;
    let mut receiver = receive(&broker, &WORK, 1).await;
    // Two bytes a letter and one in front: the limit falls inside a letter.
    let detail = format!("a{}", "é".repeat(5_000));
    let cause = Cause { code: "refused".to_owned(), detail: detail.clone() };
    settle(next(&mut receiver).await, Settlement::DeadLetter(cause)).await;
    let letters = list(&broker, &all()).await;
    let kept = &letters[0].cause.detail;
    assert!(kept.len() <= 1_000 && kept.len() >= 900, "{} bytes", kept.len());
    assert!(detail.starts_with(kept.trim_end_matches('…')), "{kept}");
    world.close().await;
}

pub(crate) async fn promise_06_the_filter_selects<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let a = bury(&broker, &WORK, keyed("host-1"), "attempts").await;
    let b = bury(&broker, &WORK, keyed("host-2"), "refused").await;
    let c = bury(&broker, &OTHER, keyed("host-1"), "refused").await;
    let d = bury(&broker, &OTHER, text("no key"), "undecodable").await;
    let between = list(&broker, &all()).await[2].died;
    let some = |text: &str| Some(text.to_owned());
    let cases = [
        (all(), vec![a, b, c, d]),
        (DeadLetterFilter { queue: some("work"), ..all() }, vec![a, b]),
        (DeadLetterFilter { queue: some("other-work"), ..all() }, vec![c, d]),
        (DeadLetterFilter { queue: some("nowhere"), ..all() }, vec![]),
        (DeadLetterFilter { cause: some("refused"), ..all() }, vec![b, c]),
        (DeadLetterFilter { key: some("host-1"), ..all() }, vec![a, c]),
        (DeadLetterFilter { ids: [d, a, Uuid::now_v7()].into(), ..all() }, vec![a, d]),
        (DeadLetterFilter { queue: some("work"), key: some("host-1"), cause: some("attempts"), ..all() }, vec![a]),
        (DeadLetterFilter { queue: some("work"), key: some("host-1"), cause: some("refused"), ..all() }, vec![]),
        (DeadLetterFilter { died_before: Some(Timestamp::now() - Duration::from_secs(60)), ..all() }, vec![]),
        (DeadLetterFilter { died_before: Some(Timestamp::now() + Duration::from_secs(60)), ..all() }, vec![a, b, c, d]),
    ];
    for (filter, expected) in cases {
        assert_eq!(ids(&list(&broker, &filter).await), expected, "{filter:?}");
    }
    // The filter itself decides what is before and what is not.
    let before = list(&broker, &DeadLetterFilter { died_before: Some(between), ..all() }).await;
    assert!(before.iter().all(|letter| letter.died < between), "{before:?}");
    assert!(!ids(&before).contains(&c));
    let from = list(&broker, &DeadLetterFilter { died_from: Some(between), ..all() }).await;
    assert!(from.iter().all(|letter| letter.died >= between), "{from:?}");
    assert_eq!([ids(&before), ids(&from)].concat(), [a, b, c, d]);
    let within = DeadLetterFilter { died_from: Some(between), died_before: Some(between), ..all() };
    assert_eq!(list(&broker, &within).await, []);
    world.close().await;
}

pub(crate) async fn promise_06_the_limit_takes_the_oldest<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let mut buried = Vec::new();
    for n in 0..6 {
        // Times may be kept in milliseconds.
        tokio::time::sleep(Duration::from_millis(2)).await;
        buried.push(bury(&broker, if n % 2 == 0 { &WORK } else { &OTHER }, text("dead"), "refused").await);
    }
    let first = |limit| DeadLetterFilter { limit, ..all() };
    assert_eq!(ids(&list(&broker, &first(4)).await), buried[..4]);
    assert_eq!(ids(&list(&broker, &first(100)).await), buried);
    assert_eq!(broker.discard(&first(1)).await.expect("discarded"), 1);
    assert_eq!(broker.redrive(&first(2), 0, AS_IT_WAS).await.expect("redriven"), 2);
    assert_eq!(ids(&list(&broker, &all()).await), buried[3..]);
    world.close().await;
}

pub(crate) async fn promise_06_listing_leaves_them_where_they_are<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let buried = bury_many(&broker, 30).await;
    let beside = world.beside().await;
    let filter = DeadLetterFilter { cause: Some("refused".to_owned()), ..all() };
    // More often than any delivery limit a broker may have by default.
    for _ in 0..30 {
        let listed = list(&beside, &filter).await;
        assert_eq!(ids(&listed).into_iter().collect::<BTreeSet<_>>(), buried);
        assert!(listed.is_sorted_by_key(|letter| letter.died));
        assert!(listed.iter().all(|letter| letter.attempts == 1));
    }
    let mut receiver = receive(&broker, &WORK, 5).await;
    nothing(&mut receiver).await;
    world.close().await;
}

pub(crate) async fn promise_06_redrive_keeps_the_id_and_restarts_the_attempts<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    for message in super::publishing::odd_messages() {
        let message = Message { repeat: Repeat::AtLeastOnce, ..message };
        publish(&broker, &WORK, message.clone()).await;
        let mut receiver = broker.receive(&WORK, message.lane, 1).await.expect("receiving");
        settle(next(&mut receiver).await, Settlement::Retry { after: Duration::ZERO, body: None }).await;
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.attempt, 2);
        let published = delivery.published;
        settle(delivery, dead("attempts")).await;

        assert_eq!(world.beside().await.redrive(&all(), 0, AS_IT_WAS).await.expect("redriven"), 1);
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message, message);
        assert_eq!(delivery.attempt, 1);
        assert_eq!(delivery.published, published);
        assert_eq!(list(&broker, &all()).await, []);
        done(delivery).await;
        nothing(&mut receiver).await;
        receiver.close().await;
    }
    assert_eq!(broker.redrive(&all(), 0, AS_IT_WAS).await.expect("redriven"), 0);
    world.close().await;
}

pub(crate) async fn promise_06_redrive_lets_the_headers_be_changed<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let headers = Headers::from([("kept".to_owned(), "1".to_owned()), ("replaced".to_owned(), "2".to_owned())]);
    let id = bury(&broker, &WORK, Message { headers, ..keyed("host-1") }, "attempts").await;
    let replaced = |headers: &mut Headers| {
        headers.insert("replaced".to_owned(), "3".to_owned());
    };
    assert_eq!(world.beside().await.redrive(&all(), 0, replaced).await.expect("redriven"), 1);
    let mut receiver = receive(&broker, &WORK, 1).await;
    let delivery = next(&mut receiver).await;
    let expected = Headers::from([("kept".to_owned(), "1".to_owned()), ("replaced".to_owned(), "3".to_owned())]);
    assert_eq!((delivery.message.id, &delivery.message.headers), (id, &expected));
    done(delivery).await;
    world.close().await;
}

pub(crate) async fn promise_06_redrive_sends_each_to_its_own_queue_and_lane<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let mut places = Vec::new();
    for queue in [&WORK, &OTHER] {
        for lane in [Lane::Urgent, Lane::Normal] {
            let mut receiver = broker.receive(queue, lane, 1).await.expect("receiving");
            let id = publish(&broker, queue, Message { lane, ..text("dead") }).await;
            settle(next(&mut receiver).await, dead("refused")).await;
            places.push((receiver, id));
        }
    }
    assert_eq!(broker.redrive(&all(), 0, AS_IT_WAS).await.expect("redriven"), 4);
    for (receiver, id) in &mut places {
        assert_eq!(done(next(receiver).await).await, *id);
        nothing(receiver).await;
    }
    world.close().await;
}

pub(crate) async fn promise_06_a_redriven_message_may_die_again<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let id = bury(&broker, &WORK, text("dead"), "attempts").await;
    for _ in 0..3 {
        assert_eq!(broker.redrive(&all(), 0, AS_IT_WAS).await.expect("redriven"), 1);
        let mut receiver = receive(&broker, &WORK, 1).await;
        settle(next(&mut receiver).await, dead("refused")).await;
        receiver.close().await;
        let letters = list(&broker, &all()).await;
        assert_eq!(ids(&letters), [id]);
        assert_eq!((letters[0].cause.code.as_str(), letters[0].attempts), ("refused", 1));
    }
    world.close().await;
}

pub(crate) async fn promise_06_two_redrives_at_once_work_each_dead_letter_once<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let buried = bury_many(&broker, 500).await;
    let (one, other) = (world.beside().await, world.beside().await);
    let filter = all();
    let (one, other) = tokio::join!(one.redrive(&filter, 0, AS_IT_WAS), other.redrive(&filter, 0, AS_IT_WAS));
    assert_eq!(one.expect("redriven") + other.expect("redriven"), 500);
    assert_eq!(list(&broker, &all()).await, []);

    let mut receiver = receive(&broker, &WORK, 50).await;
    let mut arrived = Vec::new();
    for _ in 0..500 {
        arrived.push(done(next(&mut receiver).await).await);
    }
    nothing(&mut receiver).await;
    assert_eq!(arrived.iter().copied().collect::<BTreeSet<_>>(), buried);
    world.close().await;
}

pub(crate) async fn promise_06_a_redrive_keeps_to_its_rate<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    bury_many(&broker, 15).await;
    let start = Instant::now();
    assert_eq!(broker.redrive(&all(), 5, AS_IT_WAS).await.expect("redriven"), 15);
    // Five in each second: the last five leave in the third one at the earliest.
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    let mut receiver = receive(&broker, &WORK, 5).await;
    super::work(&mut receiver, 15).await;
    world.close().await;
}

pub(crate) async fn promise_06_discard_deletes_what_matches<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let a = bury(&broker, &WORK, keyed("host-1"), "attempts").await;
    let b = bury(&broker, &WORK, keyed("host-2"), "attempts").await;
    let c = bury(&broker, &OTHER, keyed("host-1"), "attempts").await;
    let filter = DeadLetterFilter { ids: [b].into(), ..all() };
    assert_eq!(world.beside().await.discard(&filter).await.expect("discarded"), 1);
    assert_eq!(broker.discard(&filter).await.expect("discarded"), 0);
    assert_eq!(ids(&list(&broker, &all()).await), [a, c]);
    let filter = DeadLetterFilter { queue: Some("work".to_owned()), ..all() };
    assert_eq!(broker.discard(&filter).await.expect("discarded"), 1);
    assert_eq!(ids(&list(&broker, &all()).await), [c]);
    assert_eq!(broker.discard(&all()).await.expect("discarded"), 1);
    assert_eq!(broker.redrive(&all(), 0, AS_IT_WAS).await.expect("redriven"), 0);
    world.close().await;
}

pub(crate) async fn promise_06_dead_letters_survive_a_reopening<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let buried = bury_many(&broker, 20).await;
    broker.close().await;
    let again = world.beside().await;
    assert_eq!(ids(&list(&again, &all()).await).into_iter().collect::<BTreeSet<_>>(), buried);
    world.close().await;
}
