//! The desk on both queues: what one worker grants, all keep to, whoever dies.
//!
//! A case is a generic function over the conformance suite's [`World`], with the product's own topology. `on!` at the
//! foot makes a test of it for each queue.

mod alone;
mod brake;
mod command;
mod isolations;
mod quota;
mod rate;
mod sweeps;
mod takeover;

use std::time::Duration;

use defender_bridge::broker::{Broker, BrokerError};
use defender_bridge::desk::{self, Desk, Grant, Isolation, Reservation, Settings};
use defender_bridge::shutdown::Shutdown;
use defender_bridge::telemetry::metrics::Metrics;
use jiff::Timestamp;
use tokio::task::JoinHandle;

/// The longest a case waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Caps out of the way of a case, but for those it sets.
fn settings() -> Settings {
    Settings { cognito_rate: 200, isolations_per_hour: 1_000, max_isolated: 1_000, ..Settings::default() }
}

/// A desk that runs in a task.
struct Serving {
    shutdown: Shutdown,
    task: JoinHandle<Result<(), BrokerError>>,
}

/// Serves on `broker`.
fn serve<B: Broker>(broker: &B, settings: Settings) -> Serving {
    let shutdown = Shutdown::new(Duration::from_secs(5));
    let task = tokio::spawn(desk::serve(broker.clone(), settings, Metrics::default(), shutdown.clone()));
    Serving { shutdown, task }
}

impl Serving {
    /// Ends in order.
    async fn stop(self) {
        self.shutdown.begin();
        self.task.await.expect("no panic").expect("it served");
    }
}

/// A worker's handle.
async fn open<B: Broker>(broker: &B, settings: Settings) -> Desk {
    Desk::open(broker.clone(), settings, Metrics::default()).await.expect("opened")
}

/// Must be granted.
async fn granted(desk: &Desk, machine: &str, host: u64) -> Grant {
    match desk.reserve(machine, host).await {
        Reservation::Granted(grant) => grant,
        other => panic!("{machine} was not granted: {other:?}"),
    }
}

fn isolation(machine: &str, host: u64) -> Isolation {
    Isolation {
        machine_id: machine.to_owned(),
        host_id: host,
        host_name: format!("host {host}"),
        action_id: Some(format!("action-{machine}")),
        since: Timestamp::now(),
        until: None,
    }
}

/// Posts, and says so as a worker does.
fn isolate(desk: &Desk, grant: Grant, host: u64) {
    let machine = grant.machine_id().to_owned();
    grant.may_post().expect("in time");
    desk.posted(grant);
    desk.isolated(isolation(&machine, host));
}

/// Begins to post, and dies.
fn silent(grant: Grant) {
    grant.may_post().expect("in time");
    drop(grant);
}

/// Waits until `desk` sees the brake like this.
async fn sees(desk: &Desk, paused: bool) {
    let mut brake = desk.brake_changed();
    tokio::time::timeout(PATIENCE, brake.wait_for(|brake| brake.paused == paused))
        .await
        .expect("in time")
        .expect("open");
}

/// A test for each queue.
macro_rules! on {
    ($($case:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use $crate::broker_conformance::{on_sqlite::OnSqlite, run};
                run(super::$case::<OnSqlite>()).await;
            })+
        }
        mod on_rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs RabbitMQ"]
            async fn $case() {
                use $crate::broker_conformance::{on_rabbitmq::OnRabbitMq, run};
                run(super::$case::<OnRabbitMq>()).await;
            })+
        }
    };
}

pub(crate) use on;
