//! The desk's process dies. On RabbitMQ, where another worker takes over; the embedded queue has one process, whose
//! restart `isolations` covers.

use std::time::{Duration, Instant};

use defender_bridge::broker::Broker as _;
use defender_bridge::broker::rabbitmq::RabbitMq;
use defender_bridge::desk::{FirstSweep, Reservation, Settings, operate};
use defender_bridge::job::{DESK, TOPOLOGY};
use jiff::Timestamp;

use super::{granted, isolate, open, serve, settings, silent};
use crate::broker_conformance::World as _;
use crate::broker_conformance::on_rabbitmq::{OnRabbitMq, Wire};
use crate::namespaces::rabbitmq_url;

/// A link that can be cut like the cable of a dead machine.
pub(super) async fn mortal(world: &OnRabbitMq) -> (Wire, RabbitMq) {
    let wire = Wire::lay(&rabbitmq_url()).await;
    let broker = OnRabbitMq::connect(&world.namespace, &TOPOLOGY, wire.url.clone()).await;
    (wire, broker)
}

/// Waits until so many receive the desk's questions.
pub(super) async fn receivers(broker: &RabbitMq, count: u64) {
    let end = Instant::now() + super::PATIENCE;
    loop {
        let health = broker.check().await;
        let receivers: u64 =
            health.queues.iter().filter(|depth| depth.queue == DESK.name).map(|depth| depth.receivers).sum();
        if receivers == count {
            return;
        }
        assert!(Instant::now() < end, "{receivers} receive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn the_caps_hold_when_the_desk_dies_among_questions() {
    const CAP: usize = 12;
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: CAP as u32, ..settings() };
    let (wire, victim) = mortal(&world).await;
    let first = serve(&victim, settings.clone());
    receivers(&world.broker(), 1).await;
    let second = serve(&world.broker(), settings.clone());
    receivers(&world.broker(), 2).await;
    let desk = open(&world.beside().await, settings).await;
    for host in 1..=4_u64 {
        let grant = granted(&desk, &format!("machine-{host}"), host).await;
        isolate(&desk, grant, host);
    }
    let mut crowd = tokio::task::JoinSet::new();
    for host in 5..=60_u64 {
        let desk = desk.clone();
        crowd.spawn(async move {
            tokio::time::sleep(Duration::from_millis(host * 4)).await;
            let machine = format!("machine-{host}");
            match desk.reserve(&machine, host).await {
                Reservation::Granted(grant) => {
                    isolate(&desk, grant, host);
                    true
                }
                Reservation::RateLimited { .. } => false,
                other => panic!("{other:?}"),
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(90)).await;
    wire.cut().await;
    let cut = Instant::now();
    let granted = 4 + crowd.join_all().await.into_iter().filter(|granted| *granted).count();
    println!("{granted} granted of {CAP}, all answered {:?} after the cut", cut.elapsed());
    assert!(granted <= CAP, "{granted}");
    desk.flush(super::PATIENCE).await;
    let ledger = operate::status(&world.broker()).await.expect("read").ledger;
    assert!(ledger.isolated().len() == granted, "{} and {granted}", ledger.isolated().len());
    assert!(ledger.within_hour(Timestamp::now()) <= CAP);
    first.task.abort();
    victim.close().await;
    second.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn another_worker_is_the_desk_within_seconds_and_knows_everything() {
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 3, ..settings() };
    let (wire, victim) = mortal(&world).await;
    let first = serve(&victim, settings.clone());
    receivers(&world.broker(), 1).await;
    let second = serve(&world.broker(), settings.clone());
    receivers(&world.broker(), 2).await;
    let desk = open(&world.beside().await, settings).await;
    let grant = granted(&desk, "a", 1).await;
    isolate(&desk, grant, 1);
    // Its holder is the process that dies with the desk.
    let dying = open(&victim, super::settings()).await;
    silent(granted(&dying, "b", 2).await);
    let interval = Duration::from_secs(3_600);
    desk.sweep_begin(interval, interval).await.expect("nobody sweeps");
    assert_eq!(desk.first_sweep(&[1]).await.expect("told"), FirstSweep::Go);
    wire.cut().await;

    let cut = Instant::now();
    let grant = granted(&desk, "c", 3).await;
    println!("granted {:?} after the cut", cut.elapsed());
    assert!(cut.elapsed() < Duration::from_secs(5), "{:?}", cut.elapsed());
    isolate(&desk, grant, 3);
    assert!(matches!(desk.reserve("d", 4).await, Reservation::RateLimited { .. }));
    desk.sweep_begin(interval, interval).await.expect_err("one sweeps");
    // It began while another served: this is no start.
    assert_eq!(desk.first_sweep(&(1..50).collect::<Vec<_>>()).await.expect("told"), FirstSweep::Go);
    first.task.abort();
    drop(dying);
    victim.close().await;
    second.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_desk_that_stops_in_order_leaves_its_questions_to_the_next() {
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let settings = Settings { cognito_rate: 4, ..settings() };
    let links = world.receiving(2).await;
    let first = serve(&links[0], settings.clone());
    receivers(&world.broker(), 1).await;
    let second = serve(&links[1], settings.clone());
    receivers(&world.broker(), 2).await;
    let desk = open(&world.broker(), settings).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let desk = desk.clone();
        calls.spawn(async move { desk.cognito_permit(false).await });
    }
    desk.cognito_permit(false).await;
    first.stop().await;
    let stopped = Instant::now();
    tokio::time::timeout(super::PATIENCE, calls.join_all()).await.expect("all are served");
    println!("all served {:?} after the first desk's end", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    second.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_pause_after_a_takeover_waits_for_what_the_dead_desk_may_have_granted() {
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let (wire, victim) = mortal(&world).await;
    let first = serve(&victim, settings());
    receivers(&world.broker(), 1).await;
    let second = serve(&world.broker(), settings());
    receivers(&world.broker(), 2).await;
    let desk = open(&world.beside().await, settings()).await;
    let granted_at = Instant::now();
    let grant = granted(&desk, "a", 1).await;
    wire.cut().await;
    let engaged = operate::engage(&world.beside().await, "ann", None).await.expect("on");
    let (_, waited) = operate::drain(&world.beside().await, &engaged).await;
    assert!(granted_at.elapsed() >= Duration::from_millis(14_900), "{:?}", granted_at.elapsed());
    assert!(waited < Duration::from_secs(17), "{waited:?}");
    assert!(grant.may_post().is_err());
    first.task.abort();
    victim.close().await;
    second.stop().await;
    world.close().await;
}
