//! The emergency brake.

use std::time::{Duration, Instant};

use defender_bridge::broker::Broker as _;
use defender_bridge::desk::operate::{self, Drained};
use defender_bridge::desk::{Reservation, Stop};
use defender_bridge::job::TOPOLOGY;

use super::{granted, isolate, on, open, sees, serve, settings};
use crate::broker_conformance::World;

on!(
    a_pause_waits_for_what_was_granted_and_stops_the_rest,
    a_pause_with_nothing_under_way_returns_at_once,
    a_pause_does_not_wait_for_ever_for_a_silent_holder,
    a_pause_without_a_desk_waits_its_time,
    the_brake_survives_a_restart_and_is_seen_by_all,
    nothing_is_posted_after_a_pause_in_a_storm,
);

pub(crate) async fn a_pause_waits_for_what_was_granted_and_stops_the_rest<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    let (first, second) = (granted(&desk, "a", 1).await, granted(&desk, "b", 2).await);
    let beside = world.beside().await;
    let engaged = operate::engage(&beside, "ann", Some("drill")).await.expect("on");
    assert!(!engaged.before.paused && engaged.now.paused);
    sees(&desk, true).await;
    // What was granted must not be begun any more, and nothing new is granted.
    assert_eq!(first.may_post(), Err(Stop::Paused));
    assert!(matches!(desk.reserve("c", 3).await, Reservation::Paused));

    let mut drain = Box::pin(operate::drain(&beside, &engaged));
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut drain).await.is_err(), "two are outstanding");
    desk.not_posted(first);
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut drain).await.is_err(), "one is outstanding");
    // It was begun before the brake was on.
    desk.posted(second);
    let (drained, waited) = drain.await;
    assert_eq!(drained, Drained::ByDesk);
    assert!(waited < Duration::from_secs(10), "{waited:?}");

    let (before, now) = operate::resume(&beside, "bob").await.expect("off");
    assert_eq!((before.by.as_deref(), before.reason.as_deref()), (Some("ann"), Some("drill")));
    assert!(before.paused && !now.paused);
    sees(&desk, false).await;
    let grant = granted(&desk, "c", 3).await;
    isolate(&desk, grant, 3);
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_pause_with_nothing_under_way_returns_at_once<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    let grant = granted(&desk, "a", 1).await;
    isolate(&desk, grant, 1);
    desk.flush(super::PATIENCE).await;
    let engaged = operate::engage(&world.beside().await, "ann", None).await.expect("on");
    let (drained, waited) = operate::drain(&world.beside().await, &engaged).await;
    assert_eq!(drained, Drained::ByDesk);
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_pause_does_not_wait_for_ever_for_a_silent_holder<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    let grant = granted(&desk, "a", 1).await;
    let asked = Instant::now();
    let engaged = operate::engage(&world.beside().await, "ann", None).await.expect("on");
    let (_, waited) = operate::drain(&world.beside().await, &engaged).await;
    // From the grant, not from the pause, and never less than its holder may need.
    assert!(asked.elapsed() >= Duration::from_millis(14_900), "{:?}", asked.elapsed());
    assert!(waited <= Duration::from_millis(16_500), "{waited:?}");
    assert_eq!(grant.may_post(), Err(Stop::Paused));
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_pause_without_a_desk_waits_its_time<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let engaged = operate::engage(&world.beside().await, "ann", None).await.expect("on");
    let (drained, waited) = operate::drain(&world.beside().await, &engaged).await;
    assert_eq!(drained, Drained::ByTime);
    assert!(waited >= Duration::from_secs(15) && waited < Duration::from_secs(18), "{waited:?}");
    world.close().await;
}

pub(crate) async fn the_brake_survives_a_restart_and_is_seen_by_all<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let workers = [open(&world.broker(), settings()).await, open(&world.beside().await, settings()).await];
    operate::engage(&world.beside().await, "ann", Some("drill")).await.expect("on");
    for desk in &workers {
        sees(desk, true).await;
        assert_eq!(desk.brake().reason.as_deref(), Some("drill"));
    }
    drop(workers);
    world.broker().close().await;
    let broker = world.receiving(1).await.remove(0);
    let serving = serve(&broker, settings());
    let desk = open(&broker, settings()).await;
    assert!(desk.brake().paused, "known from the first moment");
    assert!(matches!(desk.reserve("a", 1).await, Reservation::Paused));
    operate::resume(&broker, "bob").await.expect("off");
    sees(&desk, false).await;
    drop(granted(&desk, "a", 1).await);
    serving.stop().await;
    broker.close().await;
    world.close().await;
}

pub(crate) async fn nothing_is_posted_after_a_pause_in_a_storm<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let workers = [open(&world.broker(), settings()).await, open(&world.beside().await, settings()).await];
    let posts = tokio::sync::watch::Sender::new(Vec::new());
    let mut storm = tokio::task::JoinSet::new();
    for host in 1..=300_u64 {
        let (desk, posts) = (workers[(host % 2) as usize].clone(), posts.clone());
        storm.spawn(async move {
            tokio::time::sleep(Duration::from_millis(host * 7)).await;
            let Reservation::Granted(grant) = desk.reserve(&format!("machine-{host}"), host).await else { return };
            // The worker looks at the machine once more.
            tokio::time::sleep(Duration::from_millis(host % 40)).await;
            if grant.may_post().is_err() {
                return desk.not_posted(grant);
            }
            // The POST is on its way, and arrives.
            tokio::time::sleep(Duration::from_millis(host % 90)).await;
            posts.send_modify(|posts| posts.push(Instant::now()));
            desk.posted(grant);
        });
    }
    posts.subscribe().wait_for(|posts| posts.len() >= 20).await.expect("the sender is here");
    let beside = world.beside().await;
    let engaged = operate::engage(&beside, "ann", None).await.expect("on");
    let (drained, waited) = operate::drain(&beside, &engaged).await;
    let returned = Instant::now();
    storm.join_all().await;
    let posts = posts.borrow();
    let late = posts.iter().filter(|posted| **posted > returned).count();
    println!("{} posted, the pause waited {waited:?} ({drained:?})", posts.len());
    assert_eq!(late, 0);
    assert!(posts.len() >= 20 && posts.len() < 300, "{}", posts.len());
    serving.stop().await;
    world.close().await;
}
