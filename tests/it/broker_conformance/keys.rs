//! Promises 9 (keys) and 10 (single active consumer).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use defender_bridge::broker::{Broker, Lane, Message, Settlement};

use super::{
    SINGLE, TEST_TOPOLOGY, WORK, World, dead, done, keyed, next, nothing, publish, publish_many, receive, settle, text,
    work,
};

/// Who holds what at this moment, and what was wrong.
#[derive(Default)]
struct Watch {
    hands: HashMap<String, u32>,
    most_keys_at_once: usize,
    collisions: Vec<String>,
    finished: BTreeSet<uuid::Uuid>,
    given_back: BTreeSet<uuid::Uuid>,
}

impl Watch {
    fn take(&mut self, key: &str) {
        let holders = self.hands.entry(key.to_owned()).or_default();
        *holders += 1;
        if *holders > 1 {
            self.collisions.push(key.to_owned());
        }
        self.most_keys_at_once = self.most_keys_at_once.max(self.hands.values().filter(|count| **count > 0).count());
    }

    fn leave(&mut self, key: &str) {
        *self.hands.get_mut(key).expect("it was taken") -= 1;
    }
}

pub(crate) async fn promise_09_equal_keys_are_never_in_two_hands<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let watch: Arc<Mutex<Watch>> = Arc::default();
    let mut receivers = tokio::task::JoinSet::new();
    for link in world.receiving(3).await {
        for prefetch in [4, 12] {
            let mut receiver = receive(&link, &WORK, prefetch).await;
            let watch = Arc::clone(&watch);
            receivers.spawn(async move {
                while let Some(delivery) = receiver.next().await {
                    let key = delivery.message.key.clone().expect("all have keys");
                    watch.lock().expect("no panic").take(&key);
                    let watch = Arc::clone(&watch);
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        let id = delivery.message.id;
                        // Before the settlement: afterwards the next one may be in hands already.
                        let again = {
                            let mut watch = watch.lock().expect("no panic");
                            watch.leave(&key);
                            id.as_bytes()[15].is_multiple_of(8) && watch.given_back.insert(id)
                        };
                        if again {
                            settle(delivery, Settlement::GiveBack).await;
                        } else {
                            done(delivery).await;
                            watch.lock().expect("no panic").finished.insert(id);
                        }
                    });
                }
            });
        }
    }
    let ids = publish_many(&world.beside().await, &WORK, 300, |n| keyed(&format!("host-{}", n % 7))).await;
    super::eventually("all are done", || async { watch.lock().expect("no panic").finished.len() == 300 }).await;
    receivers.shutdown().await;
    {
        let watch = watch.lock().expect("no panic");
        assert_eq!(watch.collisions, Vec::<String>::new());
        assert_eq!(watch.finished, ids);
        assert!(watch.most_keys_at_once > 1, "keys ran one after the other");
    }
    world.close().await;
}

pub(crate) async fn promise_09_other_keys_do_not_wait<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(2).await;
    let mut first = receive(&links[0], &WORK, 10).await;
    let a = publish(&world.broker(), &WORK, keyed("a")).await;
    let held = next(&mut first).await;
    assert_eq!(held.message.id, a);
    let mut second = receive(&links[1], &WORK, 10).await;

    let second_a = publish(&world.broker(), &WORK, keyed("a")).await;
    let b = publish(&world.broker(), &WORK, keyed("b")).await;
    let keyless = publish(&world.broker(), &WORK, text("no key")).await;
    let mut arrived = BTreeSet::new();
    let mut hands = Vec::new();
    for _ in 0..2 {
        let delivery = tokio::select! {
            delivery = next(&mut first) => delivery,
            delivery = next(&mut second) => delivery,
        };
        arrived.insert(delivery.message.id);
        hands.push(delivery);
    }
    assert_eq!(arrived, [b, keyless].into());
    nothing(&mut first).await;
    nothing(&mut second).await;

    done(held).await;
    let delivery = tokio::select! {
        delivery = next(&mut first) => delivery,
        delivery = next(&mut second) => delivery,
    };
    assert_eq!((delivery.message.id, delivery.attempt), (second_a, 1));
    done(delivery).await;
    for delivery in hands {
        done(delivery).await;
    }
    world.close().await;
}

pub(crate) async fn promise_09_every_ending_frees_the_key<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let hour = Duration::from_secs(3600);
    let endings = [
        Settlement::Done { reply: None },
        Settlement::Retry { after: hour, body: None },
        Settlement::Later { after: hour, body: None },
        dead("refused"),
    ];
    for (n, settlement) in endings.into_iter().enumerate() {
        let key = format!("key-{n}");
        let mut receiver = receive(&world.broker(), &WORK, 10).await;
        publish(&world.broker(), &WORK, keyed(&key)).await;
        let held = next(&mut receiver).await;
        let waiting = publish(&world.broker(), &WORK, keyed(&key)).await;
        nothing(&mut receiver).await;
        settle(held, settlement).await;
        assert_eq!(done(next(&mut receiver).await).await, waiting);
        receiver.close().await;
    }
    world.close().await;
}

pub(crate) async fn promise_09_a_dropped_delivery_frees_the_key<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let mut receiver = receive(&world.broker(), &WORK, 10).await;
    let ids: BTreeSet<_> =
        [publish(&world.broker(), &WORK, keyed("a")).await, publish(&world.broker(), &WORK, keyed("a")).await].into();
    let held = next(&mut receiver).await;
    nothing(&mut receiver).await;
    drop(held);
    let arrived: BTreeSet<_> = work(&mut receiver, 2).await.into_iter().collect();
    assert_eq!(arrived, ids);
    world.close().await;
}

pub(crate) async fn promise_09_a_dead_worker_frees_its_key<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let ids = publish_many(&world.broker(), &WORK, 3, |_| keyed("a")).await;
    let died = world.dying_worker(&WORK, Lane::Normal, 0, 1).await;
    assert!(ids.contains(&died.held[0]));
    let mut receiver = receive(&world.broker(), &WORK, 10).await;
    let arrived: BTreeSet<_> = work(&mut receiver, 3).await.into_iter().collect();
    assert_eq!(arrived, ids);
    world.close().await;
}

pub(crate) async fn promise_09_a_key_holds_across_lanes<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let mut normal = receive(&broker, &WORK, 5).await;
    let mut urgent = broker.receive(&WORK, Lane::Urgent, 5).await.expect("receiving");
    publish(&broker, &WORK, keyed("a")).await;
    let held = next(&mut normal).await;
    let id = publish(&broker, &WORK, Message { lane: Lane::Urgent, ..keyed("a") }).await;
    nothing(&mut urgent).await;
    done(held).await;
    let held = next(&mut urgent).await;
    assert_eq!(held.message.id, id);
    publish(&broker, &WORK, keyed("a")).await;
    nothing(&mut normal).await;
    done(held).await;
    work(&mut normal, 1).await;
    world.close().await;
}

pub(crate) async fn promise_09_a_backlog_of_one_key_does_not_block_others<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    let backlog = publish_many(&broker, &WORK, 60, |_| keyed("busy")).await;
    let mut receiver = receive(&broker, &WORK, 4).await;
    let held = next(&mut receiver).await;
    // Far more of the busy key wait than the prefetch has room for, and others still pass.
    for n in 0..5 {
        let id = publish(&broker, &WORK, keyed(&format!("free-{n}"))).await;
        let delivery = next(&mut receiver).await;
        assert_eq!(delivery.message.id, id);
        done(delivery).await;
    }
    let mut arrived = BTreeSet::from([done(held).await]);
    arrived.extend(work(&mut receiver, 59).await);
    assert_eq!(arrived, backlog);
    world.close().await;
}

pub(crate) async fn promise_10_one_receiver_gets_all_messages<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(2).await;
    let mut one = receive(&links[0], &SINGLE, 10).await;
    let mut other = receive(&links[1], &SINGLE, 10).await;
    let mut ids = publish_many(&world.broker(), &SINGLE, 100, |n| text(&n.to_string())).await;
    let (first_came_to_one, delivery) = tokio::select! {
        delivery = next(&mut one) => (true, delivery),
        delivery = next(&mut other) => (false, delivery),
    };
    let (active, idle) = if first_came_to_one { (&mut one, &mut other) } else { (&mut other, &mut one) };
    ids.remove(&done(delivery).await);
    while !ids.is_empty() {
        tokio::select! {
            delivery = next(active) => assert!(ids.remove(&done(delivery).await)),
            _ = next(idle) => panic!("two receivers of a single active queue got messages"),
        }
    }
    nothing(idle).await;
    world.close().await;
}

pub(crate) async fn promise_10_another_takes_over_when_the_active_one_goes<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = world.receiving(3).await;
    let mut receivers = Vec::new();
    for link in &links {
        receivers.push(receive(link, &SINGLE, 2).await);
    }
    while !receivers.is_empty() {
        let mut ids = publish_many(&world.broker(), &SINGLE, 10, |n| text(&n.to_string())).await;
        // One of those left is active; find it by its first message.
        let firsts = receivers.iter_mut().map(|receiver| Box::pin(next(receiver)));
        let (delivery, active, _) = futures_util::future::select_all(firsts).await;
        ids.remove(&done(delivery).await);
        for id in work(&mut receivers[active], 9).await {
            assert!(ids.remove(&id));
        }
        receivers.remove(active).close().await;
    }
    world.close().await;
}
