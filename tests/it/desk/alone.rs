//! Workers without a desk.

use std::time::{Duration, Instant};

use defender_bridge::desk::operate::{self, Drained};
use defender_bridge::desk::{Reservation, Settings};
use defender_bridge::job::TOPOLOGY;
use jiff::Timestamp;

use super::{granted, isolate, on, open, sees, serve, settings};
use crate::broker_conformance::World;

on!(
    containment_goes_on_within_a_second,
    what_was_reserved_without_a_desk_counts,
    the_brake_holds_without_a_desk,
    a_pause_waits_for_what_was_reserved_without_a_desk,
    nothing_is_granted_when_the_broker_is_gone,
    a_ledger_of_a_newer_version_grants_nothing,
);

pub(crate) async fn containment_goes_on_within_a_second<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let desk = open(&world.broker(), settings()).await;
    let began = Instant::now();
    desk.cognito_permit(true).await;
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    // From then on nobody waits for it.
    let began = Instant::now();
    for _ in 0..20 {
        desk.cognito_permit(true).await;
    }
    let grant = granted(&desk, "a", 1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(grant.may_post(), Ok(()));
    // Others wait.
    let normal = tokio::time::timeout(Duration::from_secs(2), desk.cognito_permit(false)).await;
    assert!(normal.is_err());
    // A desk comes: they go.
    let serving = serve(&world.broker(), settings());
    tokio::time::timeout(super::PATIENCE, desk.cognito_permit(false)).await.expect("served");
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn what_was_reserved_without_a_desk_counts<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 3, ..settings() };
    // A desk was there, and has gone.
    let serving = serve(&world.broker(), settings.clone());
    let workers = [open(&world.broker(), settings.clone()).await, open(&world.beside().await, settings.clone()).await];
    let grant = granted(&workers[0], "a", 1).await;
    isolate(&workers[0], grant, 1);
    workers[0].flush(super::PATIENCE).await;
    serving.stop().await;

    let began = Instant::now();
    let grant = granted(&workers[0], "b", 2).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    isolate(&workers[0], grant, 2);
    let last = granted(&workers[1], "c", 3).await;
    for desk in &workers {
        assert!(matches!(desk.reserve("d", 4).await, Reservation::RateLimited { .. }));
    }
    // A new desk counts them, reported or not.
    let serving = serve(&world.broker(), settings);
    for desk in &workers {
        assert!(matches!(desk.reserve("d", 4).await, Reservation::RateLimited { .. }));
    }
    workers[0].flush(super::PATIENCE).await;
    let ledger = operate::status(&world.broker()).await.expect("read").ledger;
    assert_eq!(ledger.within_hour(Timestamp::now()), 3);
    assert_eq!(ledger.isolated().len(), 2);
    workers[1].not_posted(last);
    workers[1].flush(super::PATIENCE).await;
    drop(granted(&workers[1], "d", 4).await);
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn the_brake_holds_without_a_desk<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let desk = open(&world.broker(), settings()).await;
    let grant = granted(&desk, "a", 1).await;
    operate::engage(&world.beside().await, "ann", None).await.expect("on");
    assert!(matches!(desk.reserve("b", 2).await, Reservation::Paused));
    sees(&desk, true).await;
    assert!(grant.may_post().is_err());
    operate::resume(&world.beside().await, "ann").await.expect("off");
    sees(&desk, false).await;
    drop(granted(&desk, "b", 2).await);
    world.close().await;
}

pub(crate) async fn a_pause_waits_for_what_was_reserved_without_a_desk<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    let desk = open(&world.broker(), settings()).await;
    let reserved = Instant::now();
    let grant = granted(&desk, "a", 1).await;
    // Now there is one, which has not heard of it.
    let serving = serve(&world.broker(), settings());
    let engaged = operate::engage(&world.beside().await, "ann", None).await.expect("on");
    let (drained, _) = operate::drain(&world.beside().await, &engaged).await;
    assert!(reserved.elapsed() >= Duration::from_secs(15), "{drained:?} after {:?}", reserved.elapsed());
    assert!(grant.may_post().is_err());
    assert!(matches!(drained, Drained::ByDesk | Drained::ByTime));
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn nothing_is_granted_when_the_broker_is_gone<W: World>() {
    use defender_bridge::broker::Broker as _;
    let world = W::open(&TOPOLOGY).await;
    let broker = world.beside().await;
    let desk = open(&broker, settings()).await;
    broker.close().await;
    assert!(matches!(desk.reserve("a", 1).await, Reservation::Unavailable));
    world.close().await;
}

pub(crate) async fn a_ledger_of_a_newer_version_grants_nothing<W: World>() {
    use defender_bridge::broker::Broker as _;
    use defender_bridge::job::LEDGER;
    let world = W::open(&TOPOLOGY).await;
    let newer = bytes::Bytes::from_static(b"{\"v\":99,\"what\":\"is this\"}");
    world.broker().retain(LEDGER, newer.clone()).await.expect("retained");
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    assert!(matches!(desk.reserve("a", 1).await, Reservation::Unavailable));
    assert!(operate::status(&world.broker()).await.is_err());
    // And it is left as it is.
    assert_eq!(world.broker().watch(LEDGER).await.expect("watched").borrow().clone(), Some(newer));
    serving.stop().await;
    world.close().await;
}
