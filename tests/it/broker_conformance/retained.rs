//! Promise 11 (retained values).

use bytes::Bytes;
use defender_bridge::broker::Broker;
use tokio::sync::watch;

use super::{BUDGET, PATIENCE, PAUSE, TEST_TOPOLOGY, World};

async fn until(watcher: &mut watch::Receiver<Option<Bytes>>, wanted: &[u8]) {
    tokio::time::timeout(PATIENCE, watcher.wait_for(|value| value.as_deref() == Some(wanted)))
        .await
        .expect("the value in time")
        .expect("the broker is open");
}

fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(crate) async fn promise_11_there_is_no_value_at_first<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    for broker in [world.broker(), world.beside().await] {
        assert_eq!(*broker.watch(PAUSE).await.expect("watching").borrow(), None);
    }
    world.close().await;
}

pub(crate) async fn promise_11_a_new_watcher_sees_the_last_value<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    for text in ["one", "two", "three"] {
        world.broker().retain(PAUSE, value(text)).await.expect("retained");
        for broker in [world.broker(), world.beside().await] {
            // At once, not some time later: a process must not act on a value it does not know yet.
            assert_eq!(broker.watch(PAUSE).await.expect("watching").borrow().as_deref(), Some(text.as_bytes()));
        }
    }
    world.close().await;
}

pub(crate) async fn promise_11_a_watcher_on_another_link_sees_each_change<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = [world.broker(), world.beside().await, world.beside().await];
    let mut watchers = Vec::new();
    for link in &links {
        watchers.push(link.watch(PAUSE).await.expect("watching"));
    }
    for (link, text) in links.iter().zip(["paused", "resumed", "paused again"]) {
        link.retain(PAUSE, value(text)).await.expect("retained");
        for watcher in &mut watchers {
            until(watcher, text.as_bytes()).await;
        }
    }
    world.close().await;
}

pub(crate) async fn promise_11_names_do_not_mix<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let beside = world.beside().await;
    let mut pause = world.broker().watch(PAUSE).await.expect("watching");
    let mut budget = world.broker().watch(BUDGET).await.expect("watching");
    beside.retain(BUDGET, value("half")).await.expect("retained");
    until(&mut budget, b"half").await;
    assert_eq!(*pause.borrow_and_update(), None);
    beside.retain(PAUSE, value("paused")).await.expect("retained");
    until(&mut pause, b"paused").await;
    assert_eq!(budget.borrow().as_deref(), Some(&b"half"[..]));
    world.close().await;
}

pub(crate) async fn promise_11_an_empty_value_is_a_value<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let beside = world.beside().await;
    let mut watcher = beside.watch(PAUSE).await.expect("watching");
    world.broker().retain(PAUSE, Bytes::new()).await.expect("retained");
    until(&mut watcher, b"").await;
    let every_byte: Vec<u8> = (0..=255).collect();
    world.broker().retain(PAUSE, every_byte.clone().into()).await.expect("retained");
    until(&mut watcher, &every_byte).await;
    world.close().await;
}

pub(crate) async fn promise_11_values_survive_a_reopening<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let broker = world.broker();
    broker.retain(PAUSE, value("paused")).await.expect("retained");
    broker.close().await;
    let again = world.beside().await;
    assert_eq!(again.watch(PAUSE).await.expect("watching").borrow().as_deref(), Some(&b"paused"[..]));
    assert_eq!(*again.watch(BUDGET).await.expect("watching").borrow(), None);
    world.close().await;
}

pub(crate) async fn promise_11_all_watchers_agree_in_the_end<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    let links = [world.broker(), world.beside().await, world.beside().await];
    let mut watchers = Vec::new();
    let mut writers = tokio::task::JoinSet::new();
    for (n, link) in links.iter().enumerate() {
        watchers.push(link.watch(PAUSE).await.expect("watching"));
        let link = link.clone();
        writers.spawn(async move {
            for m in 0..20 {
                link.retain(PAUSE, Bytes::from(format!("{n}-{m}"))).await.expect("retained");
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("no panic");
    }
    let last = links[1].watch(PAUSE).await.expect("watching").borrow().clone().expect("a value");
    for watcher in &mut watchers {
        until(watcher, &last).await;
    }
    links[2].retain(PAUSE, value("final")).await.expect("retained");
    for watcher in &mut watchers {
        until(watcher, b"final").await;
    }
    world.close().await;
}

pub(crate) async fn promise_11_an_unknown_name_is_an_error<W: World>() {
    let world = W::open(&TEST_TOPOLOGY).await;
    assert!(world.broker().watch("nothing").await.is_err());
    assert!(world.broker().retain("nothing", value("lost")).await.is_err());
    world.broker().retain(PAUSE, value("the link is well")).await.expect("retained");
    world.close().await;
}
