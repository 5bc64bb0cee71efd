//! Cognito's rate.

use std::time::{Duration, Instant};

use defender_bridge::desk::Settings;
use defender_bridge::job::TOPOLOGY;

use super::{on, open, serve, settings};
use crate::broker_conformance::World;

on!(
    the_rate_holds_for_all_workers_together,
    containment_does_not_wait_behind_a_crowd,
    a_retry_after_holds_all_workers_back,
    workers_take_turns,
);

pub(crate) async fn the_rate_holds_for_all_workers_together<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { cognito_rate: 50, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let workers = [open(&world.broker(), settings.clone()).await, open(&world.beside().await, settings).await];
    let began = Instant::now();
    let calls = (0..150).map(|n| workers[n % 2].cognito_permit(n % 5 == 0));
    futures_util::future::join_all(calls).await;
    let took = began.elapsed();
    // A burst of what is kept for containment, a quarter of a second's, then the rate.
    assert!(took >= Duration::from_millis(2_700), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn containment_does_not_wait_behind_a_crowd<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { cognito_rate: 10, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let workers = [open(&world.broker(), settings.clone()).await, open(&world.beside().await, settings).await];
    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..300 {
        let desk = workers[n % 2].clone();
        crowd.spawn(async move { desk.cognito_permit(false).await });
    }
    workers[0].cognito_permit(false).await;
    // The crowd needs half a minute.
    let began = Instant::now();
    for _ in 0..8 {
        workers[1].cognito_permit(true).await;
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(!crowd.is_empty());
    crowd.shutdown().await;
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_retry_after_holds_all_workers_back<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let workers = [open(&world.broker(), settings()).await, open(&world.beside().await, settings()).await];
    workers[1].cognito_permit(true).await;
    let began = Instant::now();
    workers[0].cognito_throttled(Some(Duration::from_secs(2)));
    // The worker that was told keeps to it at once; the other as soon as the desk has heard.
    workers[0].cognito_permit(true).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let began = Instant::now();
    workers[0].cognito_throttled(Some(Duration::from_secs(2)));
    while began.elapsed() < Duration::from_secs(1) {
        workers[1].cognito_permit(true).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(1_900), "{:?}", began.elapsed());
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn workers_take_turns<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { cognito_rate: 40, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let workers = [open(&world.broker(), settings.clone()).await, open(&world.beside().await, settings).await];
    let end = tokio::time::Instant::now() + Duration::from_secs(3);
    let shares = futures_util::future::join_all(workers.iter().map(|desk| async move {
        let mut share = 0;
        // Many callers at a time, as a worker has them.
        while tokio::time::timeout_at(end, futures_util::future::join_all((0..10).map(|_| desk.cognito_permit(false))))
            .await
            .is_ok()
        {
            share += 10;
        }
        share
    }))
    .await;
    println!("shares of two workers: {shares:?}");
    assert!(shares.iter().all(|share| *share >= 20), "{shares:?}");
    assert!(shares.iter().sum::<u32>() <= 150, "{shares:?}");
    serving.stop().await;
    world.close().await;
}
