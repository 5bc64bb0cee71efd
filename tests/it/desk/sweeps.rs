//! One sweeper at a time, and the first sweep after a start.

use std::time::Duration;

use defender_bridge::broker::Broker as _;
use defender_bridge::desk::{FIRST_SWEEP, FirstSweep, Reservation, operate};
use defender_bridge::job::TOPOLOGY;
use tokio::time::Instant;

use super::{granted, on, open, sees, serve, settings};
use crate::broker_conformance::World;

on!(
    sweeps_come_one_at_a_time,
    a_start_that_finds_too_many_untouched_tags_is_paused_until_a_resume,
    tags_found_while_the_deployment_runs_pause_nothing,
);

pub(crate) async fn sweeps_come_one_at_a_time<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let workers = [open(&world.broker(), settings()).await, open(&world.beside().await, settings()).await];
    let (interval, lease) = (Duration::from_secs(2), Duration::from_secs(60));
    let (one, other) = tokio::join!(workers[0].sweep_begin(interval, lease), workers[1].sweep_begin(interval, lease));
    let (sweeper, sweep, wait) = match (one, other) {
        (Ok(sweep), Err(wait)) => (0, sweep, wait),
        (Err(wait), Ok(sweep)) => (1, sweep, wait),
        both => panic!("{both:?}"),
    };
    let left = sweep.until() - Instant::now();
    assert!(left > Duration::from_secs(50) && left <= lease, "{left:?}");
    assert!(wait > Duration::from_secs(50) && wait <= lease, "{wait:?}");
    workers[sweeper].sweep_done(sweep).await;
    // The interval counts from the beginning.
    let wait = workers[1 - sweeper].sweep_begin(interval, lease).await.expect_err("too early");
    assert!(wait <= interval, "{wait:?}");
    tokio::time::sleep(wait).await;
    let sweep = workers[1 - sweeper].sweep_begin(interval, lease).await.expect("its time has come");
    workers[sweeper].sweep_begin(interval, lease).await.expect_err("one sweeps");
    workers[1 - sweeper].sweep_done(sweep).await;
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_start_that_finds_too_many_untouched_tags_is_paused_until_a_resume<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    assert_eq!(desk.first_sweep(&[1, 2, 3, 4]).await.expect("told"), FirstSweep::Paused);
    sees(&desk, true).await;
    let brake = desk.brake();
    assert_eq!(brake.by.as_deref(), Some(FIRST_SWEEP));
    assert!(brake.reason.as_ref().is_some_and(|reason| reason.contains("4 hosts")), "{brake:?}");
    assert!(matches!(desk.reserve("a", 1).await, Reservation::Paused));
    assert_eq!(operate::status(&world.broker()).await.expect("read").ledger.held_by_first_sweep(), 4);
    drop(desk);
    serving.stop().await;
    world.broker().close().await;

    // A restart changes nothing; a resume answers for these hosts, now and at a later start.
    let broker = world.receiving(1).await.remove(0);
    let serving = serve(&broker, settings());
    let desk = open(&broker, settings()).await;
    assert_eq!(desk.first_sweep(&[1, 2, 3, 4]).await.expect("told"), FirstSweep::Paused);
    operate::resume(&broker, "ann").await.expect("off");
    sees(&desk, false).await;
    assert_eq!(desk.first_sweep(&[1, 2, 3, 4]).await.expect("told"), FirstSweep::Go);
    drop(granted(&desk, "a", 1).await);
    drop(desk);
    serving.stop().await;

    let serving = serve(&broker, settings());
    let desk = open(&broker, settings()).await;
    assert_eq!(desk.first_sweep(&[1, 2, 3, 4, 5, 6, 7]).await.expect("told"), FirstSweep::Go);
    drop(desk);
    serving.stop().await;

    let serving = serve(&broker, settings());
    let desk = open(&broker, settings()).await;
    assert_eq!(desk.first_sweep(&[5, 11, 12, 13, 14]).await.expect("told"), FirstSweep::Paused);
    sees(&desk, true).await;
    serving.stop().await;
    broker.close().await;
    world.close().await;
}

pub(crate) async fn tags_found_while_the_deployment_runs_pause_nothing<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    assert_eq!(desk.first_sweep(&[1]).await.expect("told"), FirstSweep::Go);
    let storm: Vec<u64> = (1..200).collect();
    assert_eq!(desk.first_sweep(&storm).await.expect("told"), FirstSweep::Go);
    assert!(!desk.brake().paused);
    serving.stop().await;
    world.close().await;
}
