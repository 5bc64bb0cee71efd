//! The quota of calls to Defender: what several workers and tenants make together against a service that counts.

use std::time::Duration;

use defender_bridge::broker::{Broker as _, Lane, Settlement};
use defender_bridge::cli::roles;
use defender_bridge::defender::{self, Credentials, Defender, Kind, Limits as Calls, Purpose, Session};
use defender_bridge::desk::{Budget, Desk, Reservation, Settings};
use defender_bridge::job::{DESK, TOPOLOGY};
use defender_bridge::outbound::Outbound;
use defender_bridge::quota::{self, Key, Limits, Row};
use defender_bridge::retry::Policy;
use defender_bridge::simulator::scenario::{
    DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, OTHER_TENANT_ID,
};
use defender_bridge::simulator::{self, Quota, Simulator};
use defender_bridge::telemetry::metrics::Metrics;
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::takeover::{mortal, receivers};
use super::{granted, isolate, on, open, serve, settings};
use crate::broker_conformance::World;
use crate::broker_conformance::on_rabbitmq::OnRabbitMq;

on!(a_retry_after_of_one_worker_holds_all);

/// Calls of a service whose minute lasts 2 s and whose hour lasts 6 s.
const PER_MINUTE: u32 = 30;
const PER_HOUR: u32 = 60;
const HUNTING: u32 = 10;

/// How long the load lasts: some of the service's hours.
const LOAD: Duration = Duration::from_secs(20);

/// So long that no slow machine lets it pass.
const HOUR: Duration = Duration::from_secs(3_600);

fn service() -> simulator::Settings {
    let quota = Quota {
        per_minute: PER_MINUTE,
        per_hour: PER_HOUR,
        hunting_per_minute: HUNTING,
        minute_seconds: 2.0,
        hour_seconds: 6.0,
        ..Quota::default()
    };
    simulator::Settings { quota: Some(quota), ..simulator::Settings::default() }
}

/// All of what that service allows.
fn ours() -> quota::Settings {
    let limits = |row| match row {
        Row::Hunting => Limits { per_minute: HUNTING, per_hour: None },
        _ => Limits { per_minute: PER_MINUTE, per_hour: Some(PER_HOUR) },
    };
    quota::Settings::new(limits).lasting(Duration::from_secs(2), Duration::from_secs(6))
}

fn tenants() -> [Credentials; 2] {
    let credentials = |tenant: &str, client: &str, secret: &str| Credentials {
        tenant_id: tenant.to_owned(),
        client_id: client.to_owned(),
        proof: SecretString::from(secret).into(),
    };
    [
        credentials(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET),
        credentials(OTHER_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET),
    ]
}

/// A worker's client of the simulator, within the deployment's quota.
fn client(simulator: &Simulator, desk: Option<&Desk>, quota: quota::Settings) -> Defender {
    let url: url::Url = simulator.url().parse().expect("a URL");
    let settings = defender::Settings {
        entra_url: url.clone(),
        defender_url: url.clone(),
        graph_url: url,
        retry: Policy { first: Duration::from_millis(5), cap: Duration::from_millis(20), tries: 3 },
        ..defender::Settings::default()
    };
    let permits = roles::permits(desk, quota, &Metrics::default());
    Defender::new(settings, Outbound::new().expect("a client")).with_permits(permits)
}

/// A request that makes calls until `end`, several at a time; how many were answered.
async fn request(session: Session, end: Instant, at_once: usize) -> u64 {
    let mut calls = JoinSet::new();
    for _ in 0..at_once {
        let session = session.clone();
        calls.spawn(async move {
            let mut answered = 0;
            while Instant::now() < end {
                match session.machine_now(&"a".repeat(40)).await {
                    Ok(_) => answered += 1,
                    Err(error) if matches!(error.kind(), Kind::Throttled { .. } | Kind::Deadline) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            answered
        });
    }
    calls.join_all().await.into_iter().sum()
}

/// Loads both tenants through all workers, with a large and a small request in each; how many calls each was answered,
/// by tenant. Meanwhile one call for containment after the other must come through.
async fn load(workers: Vec<Defender>) -> Vec<Vec<u64>> {
    let end = Instant::now() + LOAD;
    let mut requests = JoinSet::new();
    for (tenant, credentials) in tenants().into_iter().enumerate() {
        for worker in &workers {
            for at_once in [20, 1] {
                let limits = Calls { concurrent_calls: at_once, ..Calls::default() };
                let session = worker.session(credentials.clone(), end, limits);
                requests.spawn(async move { (tenant, request(session, end, at_once).await) });
            }
            let session = worker.session(credentials.clone(), end, Calls::default());
            requests.spawn(async move {
                while session.hunting_probe().await.is_ok() {}
                (2 + tenant, 1)
            });
        }
    }
    while Instant::now() + Duration::from_secs(6) < end {
        for credentials in tenants() {
            let until = Instant::now() + Duration::from_secs(6);
            let session = workers[0].session(credentials, until, Calls::containment());
            session.machine_now(&"b".repeat(40)).await.expect("containment comes through");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut answered = vec![Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for (tenant, count) in requests.join_all().await {
        answered[tenant].push(count);
    }
    answered.truncate(2);
    answered
}

/// Nobody starved: every request of every worker and tenant was answered something, and each tenant a good part of what
/// lookups may use.
fn assert_fair(answered: &[Vec<u64>]) {
    println!("calls answered by tenant and request: {answered:?}");
    for requests in answered {
        assert!(requests.iter().all(|count| *count > 0), "{answered:?}");
        assert!(requests.iter().sum::<u64>() >= u64::from(PER_HOUR), "{answered:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn workers_and_tenants_together_never_provoke_a_429() {
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let simulator = Simulator::start(service()).await.expect("the simulator listens");
    let settings = Settings { quota: ours(), ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let mut workers = Vec::new();
    for _ in 0..3 {
        let desk = open(&world.beside().await, settings.clone()).await;
        workers.push(client(&simulator, Some(&desk), ours()));
    }
    let answered = load(workers).await;
    assert_eq!(simulator.control().throttled(), 0);
    assert_fair(&answered);
    serving.stop().await;
    simulator.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_desk_that_dies_again_and_again_exceeds_nothing() {
    const DEATHS: usize = 4;
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let simulator = Simulator::start(service()).await.expect("the simulator listens");
    let settings = Settings { quota: ours(), ..settings() };
    let mut victims = Vec::new();
    for nth in 1..=DEATHS + 1 {
        let (wire, broker) = mortal(&world).await;
        victims.push((serve(&broker, settings.clone()), wire, broker));
        receivers(&world.broker(), nth as u64).await;
    }
    let mut workers = Vec::new();
    for _ in 0..3 {
        let desk = open(&world.beside().await, settings.clone()).await;
        workers.push(client(&simulator, Some(&desk), ours()));
    }
    let load = tokio::spawn(load(workers));
    let last = victims.pop();
    for (serving, wire, broker) in victims {
        tokio::time::sleep(LOAD / 7).await;
        wire.cut().await;
        serving.task.abort();
        broker.close().await;
    }
    let answered = load.await.expect("no panic");
    println!("{} answers of 429 with the desk killed {DEATHS} times", simulator.control().throttled());
    // What was in flight at a takeover may be granted twice.
    assert!(simulator.control().throttled() <= DEATHS as u64);
    assert_fair(&answered);
    if let Some((serving, _wire, _broker)) = last {
        serving.stop().await;
    }
    simulator.stop().await;
    world.close().await;
}

pub(crate) async fn a_retry_after_of_one_worker_holds_all<W: World>() {
    let world = W::open(&TOPOLOGY).await;
    // Only the hold can refuse anything here.
    let endless = quota::Settings::new(|_| Limits { per_minute: 1_000_000, per_hour: None });
    let settings = || Settings { quota: endless.clone(), ..settings() };
    let serving = serve(&world.broker(), settings());
    let desks = [open(&world.broker(), settings()).await, open(&world.beside().await, settings()).await];
    let workers = desks.each_ref().map(Budget::shared);
    let key = || Key::new("t.example", "app", Row::Alerts);
    let soon = || Instant::now() + Duration::from_secs(20);
    workers[1].permit(key(), Some(1), soon()).await.expect("there is room");
    workers[0].throttled(key(), Some(Duration::from_secs(600)));
    for request in [None, Some(1)] {
        let wait = workers[0].permit(key(), request, soon()).await.expect_err("held at once");
        assert!(wait > Duration::from_secs(500), "{wait:?}");
    }
    let heard = async { while workers[1].permit(key(), Some(1), soon()).await.is_ok() {} };
    tokio::time::timeout(super::PATIENCE, heard).await.expect("the other hears of it");
    assert_eq!(workers[0].room(&key(), soon()), 0);
    workers[1].permit(Key::new("t.example", "app", Row::Machines), Some(1), soon()).await.expect("another family");
    serving.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_worker_without_cognito_counts_isolations_and_leaves_cognito_to_those_that_know_it() {
    let world = OnRabbitMq::open(&TOPOLOGY).await;
    let capped = Settings { isolations_per_hour: 1, ..settings() };
    let relay_only = serve(&world.broker(), Settings { cognito: false, ..capped.clone() });
    receivers(&world.broker(), 1).await;
    let desk = open(&world.beside().await, settings()).await;
    let budget = Budget::shared(&desk);
    let key = || Key::new("t.example", "app", Row::Alerts);
    let soon = || Instant::now() + super::PATIENCE;
    budget.permit(key(), Some(1), soon()).await.expect("there is room");
    let grant = granted(&desk, "a", 1).await;
    isolate(&desk, grant, 1);
    let with_cognito = serve(&world.broker(), capped);
    receivers(&world.broker(), 2).await;
    // A question that waits long enough for any change of hands.
    let sweep = desk.sweep_begin(Duration::ZERO, Duration::from_secs(60)).await.expect("answered");
    desk.sweep_done(sweep).await;
    let second = desk.reserve("b", 2).await;
    assert!(matches!(second, Reservation::RateLimited { .. }), "{second:?}");
    // It came again, behind the other.
    receivers(&world.broker(), 2).await;
    budget.permit(key(), Some(1), soon()).await.expect("there is room");
    desk.flush(super::PATIENCE).await;
    relay_only.stop().await;
    with_cognito.stop().await;
    world.close().await;
}

#[tokio::test]
async fn a_deployment_without_a_desk_contains_and_refuses_lookups_at_their_end() {
    // Nobody serves on this queue.
    let world = crate::broker_conformance::on_sqlite::OnSqlite::open(&TOPOLOGY).await;
    let desk = open(&world.broker(), settings()).await;
    let permits = roles::permits(Some(&desk), ours(), &Metrics::default());
    let until = Instant::now() + Duration::from_secs(20);
    let contained =
        permits.permit("t", "c", defender::Family::Actions, Purpose::Containment, until).await.expect("goes on");
    assert!(contained > Instant::now());
    let lookup = permits.permit("t", "c", defender::Family::Alerts, Purpose::Lookup { request: 1 }, until);
    assert!(tokio::time::timeout(Duration::from_secs(2), lookup).await.is_err(), "it waits for a word");
    world.close().await;
}

#[tokio::test]
async fn a_desk_that_keeps_no_quota_yet_leaves_each_worker_to_count_for_itself() {
    let world = crate::broker_conformance::on_sqlite::OnSqlite::open(&TOPOLOGY).await;
    let mut questions = world.broker().receive(&DESK, Lane::Urgent, 8).await.expect("a receiver");
    let older = tokio::spawn(async move {
        while let Some(delivery) = questions.next().await {
            let reply = Some(br#"{"v":1,"desk":"unavailable"}"#.as_slice().into());
            delivery.settle(Settlement::Done { reply }).await.expect("settled");
        }
    });
    let desk = open(&world.broker(), Settings { quota: ours().lasting(HOUR, HOUR), ..settings() }).await;
    let budget = Budget::shared(&desk);
    let key = || Key::new("t.example", "app", Row::Alerts);
    for _ in 0..PER_MINUTE {
        budget.permit(key(), Some(1), Instant::now() + super::PATIENCE).await.expect("there is room");
    }
    let wait = budget.permit(key(), Some(1), Instant::now() + super::PATIENCE).await.expect_err("its own book is full");
    assert!(wait > super::PATIENCE, "{wait:?}");
    older.abort();
    world.close().await;
}

#[tokio::test]
async fn one_process_counts_by_itself_and_refuses_at_once_what_cannot_go_in_time() {
    let simulator = Simulator::start(service()).await.expect("the simulator listens");
    // Its own minute is a real one, which no slow machine lets pass in this test.
    let ours = ours().lasting(Duration::from_secs(60), Duration::from_secs(3_600));
    let worker = client(&simulator, None, ours);
    let [credentials, other] = tenants();
    let until = Instant::now() + Duration::from_secs(60);
    let session = worker.session(credentials.clone(), until, Calls { concurrent_calls: 100, ..Calls::default() });
    // Lookups have four fifths of the minute.
    let lookups = (0..PER_MINUTE * 4 / 5).map(|_| session.machine_now("0123456789012345678901234567890123456789"));
    assert!(futures_util::future::join_all(lookups).await.into_iter().all(|answer| answer.is_ok()));
    let soon = worker.session(credentials.clone(), Instant::now() + Duration::from_millis(900), Calls::default());
    let refused = soon.machine_now(&"c".repeat(40)).await.expect_err("the minute is used up");
    assert_eq!(refused.kind(), &Kind::Throttled { hunting: false });
    assert!(refused.retry_after().is_some() && refused.is_out_of_time());
    assert_eq!(soon.room(defender::Family::Machines), 0);
    let contain = worker.session(credentials, Instant::now() + Duration::from_secs(5), Calls::containment());
    contain.machine_now(&"c".repeat(40)).await.expect("its part is kept");
    let other = worker.session(other, Instant::now() + Duration::from_secs(5), Calls::default());
    other.machine_now(&"c".repeat(40)).await.expect("another tenant");
    assert_eq!(simulator.control().throttled(), 0);
    assert_eq!(simulator.control().calls("machines"), u64::from(PER_MINUTE * 4 / 5) + 2);
    simulator.stop().await;
}
