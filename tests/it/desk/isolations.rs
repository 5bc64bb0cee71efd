//! Reservations against the caps.

use std::time::{Duration, Instant};

use defender_bridge::broker::Broker as _;
use defender_bridge::desk::{Reservation, Settings, operate};
use defender_bridge::job::TOPOLOGY;
use jiff::Timestamp;

use super::{granted, isolate, isolation, on, open, serve, settings, silent};
use crate::broker_conformance::World;

on!(
    the_hourly_cap_counts_what_was_posted_by_any_worker,
    the_cap_of_isolated_machines_frees_with_each_release,
    what_was_given_back_is_free_at_once,
    one_machine_has_one_holder_at_a_time,
    a_crowd_gets_exactly_the_cap,
    the_ledger_survives_a_restart,
    a_cap_that_was_set_holds_in_the_whole_deployment,
    the_cost_of_a_question,
);

pub(crate) async fn the_hourly_cap_counts_what_was_posted_by_any_worker<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 3, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let workers = [open(&world.broker(), settings.clone()).await, open(&world.beside().await, settings).await];
    for (n, machine) in ["a", "b", "c"].into_iter().enumerate() {
        let worker = &workers[n % 2];
        let grant = granted(worker, machine, n as u64 + 1).await;
        isolate(worker, grant, n as u64 + 1);
    }
    for worker in &workers {
        let Reservation::RateLimited { free_at } = worker.reserve("d", 4).await else { panic!("a fourth was granted") };
        let wait = Duration::try_from(Timestamp::now().duration_until(free_at)).expect("in the future");
        assert!(wait > Duration::from_secs(3_500) && wait < Duration::from_secs(3_620), "{wait:?}");
        worker.flush(super::PATIENCE).await;
    }
    let status = operate::status(&world.broker()).await.expect("read");
    assert!(status.current);
    assert_eq!(status.ledger.within_hour(Timestamp::now()), 3);
    let isolated: Vec<_> = status.ledger.isolated().into_iter().map(|isolation| isolation.machine_id).collect();
    assert_eq!(isolated, ["a", "b", "c"]);
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn the_cap_of_isolated_machines_frees_with_each_release<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { max_isolated: 2, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings).await;
    for (machine, host) in [("a", 1), ("b", 2)] {
        let grant = granted(&desk, machine, host).await;
        isolate(&desk, grant, host);
    }
    assert!(matches!(desk.reserve("c", 3).await, Reservation::TooManyIsolated));
    desk.released("a", 1);
    desk.flush(super::PATIENCE).await;
    let grant = granted(&desk, "c", 3).await;
    isolate(&desk, grant, 3);
    assert!(matches!(desk.reserve("a", 1).await, Reservation::TooManyIsolated));
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn what_was_given_back_is_free_at_once<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 1, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings).await;
    for _ in 0..3 {
        let grant = granted(&desk, "a", 1).await;
        desk.not_posted(grant);
        // Whoever had it was stopped before the POST.
        drop(granted(&desk, "a", 1).await);
    }
    desk.flush(super::PATIENCE).await;
    let grant = granted(&desk, "b", 2).await;
    isolate(&desk, grant, 2);
    assert!(matches!(desk.reserve("a", 1).await, Reservation::RateLimited { .. }));
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn one_machine_has_one_holder_at_a_time<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let workers = [open(&world.broker(), settings()).await, open(&world.beside().await, settings()).await];
    let grant = granted(&workers[0], "a", 1).await;
    // The same host, whose events are in other hands now; and another host that is the same machine.
    for (host, least, most) in [(1, 3, 5), (2, 13, 15)] {
        let Reservation::Busy { wait } = workers[1].reserve("a", host).await else { panic!("two holders") };
        assert!(wait > Duration::from_secs(least) && wait <= Duration::from_secs(most), "{wait:?}");
    }
    workers[0].not_posted(grant);
    workers[0].flush(super::PATIENCE).await;
    let grant = granted(&workers[1], "a", 2).await;
    isolate(&workers[1], grant, 2);
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_crowd_gets_exactly_the_cap<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 10, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let workers = [open(&world.broker(), settings.clone()).await, open(&world.beside().await, settings).await];
    let mut crowd = tokio::task::JoinSet::new();
    for host in 1..=60_u64 {
        let desk = workers[(host % 2) as usize].clone();
        crowd.spawn(async move {
            match desk.reserve(&format!("machine-{host}"), host).await {
                Reservation::Granted(grant) => {
                    isolate(&desk, grant, host);
                    true
                }
                Reservation::RateLimited { .. } => false,
                other => panic!("{other:?}"),
            }
        });
    }
    let granted = crowd.join_all().await.into_iter().filter(|granted| *granted).count();
    assert_eq!(granted, 10);
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn the_ledger_survives_a_restart<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 2, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings.clone()).await;
    let grant = granted(&desk, "a", 1).await;
    isolate(&desk, grant, 1);
    silent(granted(&desk, "b", 2).await);
    desk.flush(super::PATIENCE).await;
    drop(desk);
    serving.stop().await;
    world.broker().close().await;

    let broker = world.receiving(1).await.remove(0);
    let serving = serve(&broker, settings.clone());
    let desk = open(&broker, settings).await;
    assert!(matches!(desk.reserve("c", 3).await, Reservation::RateLimited { .. }));
    let status = operate::status(&broker).await.expect("read");
    assert_eq!(status.ledger.isolated(), [isolation_of("a", 1, &status)]);
    assert_eq!(status.ledger.count_isolated(Timestamp::now()), 2);
    serving.stop().await;
    broker.close().await;
    world.close().await;
}

/// As reported, at the time that the ledger says.
fn isolation_of(machine: &str, host: u64, status: &operate::Status) -> defender_bridge::desk::Isolation {
    let since = status.ledger.isolated().first().expect("one").since;
    defender_bridge::desk::Isolation { since, ..isolation(machine, host) }
}

pub(crate) async fn a_cap_that_was_set_holds_in_the_whole_deployment<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 1, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings).await;
    let grant = granted(&desk, "a", 1).await;
    isolate(&desk, grant, 1);
    assert!(matches!(desk.reserve("b", 2).await, Reservation::RateLimited { .. }));
    let beside = world.beside().await;
    let (before, now) = operate::set_cap(&beside, 2, Duration::from_secs(600), "ann").await.expect("set");
    assert_eq!(before.cap, None);
    let cap = now.cap.expect("set");
    assert_eq!((cap.per_hour, cap.until), (2, cap.at + Duration::from_secs(600)));
    let grant = granted(&desk, "b", 2).await;
    isolate(&desk, grant, 2);
    // There may be room when that cap is over, which is before the hour is.
    let Reservation::RateLimited { free_at } = desk.reserve("c", 3).await else { panic!("a third was granted") };
    assert_eq!(free_at, cap.until);
    operate::set_cap(&beside, 1, Duration::from_secs(600), "ann").await.expect("set");
    assert!(matches!(desk.reserve("c", 3).await, Reservation::RateLimited { .. }));
    serving.stop().await;
    world.close().await;
}

/// Not a limit, but seen: how long a permit and a reservation take.
pub(crate) async fn the_cost_of_a_question<W: World>() {
    const TIMES: u32 = 50;
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { cognito_rate: 100_000, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings).await;
    desk.cognito_permit(true).await;
    let began = Instant::now();
    for _ in 0..TIMES {
        desk.cognito_permit(true).await;
    }
    let permit = began.elapsed() / TIMES;
    let began = Instant::now();
    for host in 1..=u64::from(TIMES) {
        let grant = granted(&desk, &format!("machine-{host}"), host).await;
        desk.posted(grant);
    }
    let reservation = began.elapsed() / TIMES;
    println!("a permit: {permit:?}, a reservation: {reservation:?}");
    assert!(permit < Duration::from_secs(1) && reservation < Duration::from_secs(1));
    serving.stop().await;
    world.close().await;
}
