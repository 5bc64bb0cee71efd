//! The loop: receive, work, settle. It knows kinds of jobs only by their handlers; a handler knows only its job and what
//! it was given to work with.

mod action;
pub mod context;
mod health;
pub mod host;
mod notify;
mod observe;
mod relay;
mod report;
mod respond;
mod trigger;

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

pub use self::context::Context;
pub use self::host::Hosts;
pub use self::report::{Report, Standing};
pub use self::trigger::Triggers;
use crate::broker::{Broker, BrokerError, Delivery, Lane, Message, Queue, Receiver, Settlement};
use crate::job;
use crate::notify::Post;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::propagation;

/// Slots for urgent jobs beside those for normal ones, so that containment never waits for a free hand.
const URGENT_SLOTS: u16 = 8;

/// Notifications posted at a time: a receiver is not to be run over, and slow ones are not to hold up the rest.
const NOTIFY_SLOTS: u16 = 4;

/// How long a job of a newer version is put off, for a newer worker to take.
const NEWER_VERSION_DELAY: Duration = Duration::from_secs(1);

/// Works until the soft stop, at most `concurrency` normal jobs of each queue at a time; then finishes what is in hand,
/// and gives back what is not finished at the hard stop. Host events are taken only with `hosts`, notifications with `post`.
///
/// # Errors
/// When the broker does not let this process receive, or closes while it should work.
pub async fn run<B: Broker>(
    broker: B,
    context: Context,
    hosts: Option<Hosts>,
    post: Option<Post>,
    concurrency: u16,
    shutdown: Shutdown,
) -> Result<(), BrokerError> {
    let metrics = context.metrics.clone();
    let relay = take(&broker, &job::RELAY, concurrency, &metrics, &shutdown, |delivery: Taken| {
        let context = context.clone();
        async move { relay::step(&delivery.message, delivery.attempt, delivery.deadline, &context).await }
    });
    let hosts = async {
        let Some(hosts) = hosts else { return Ok(()) };
        take(&broker, &job::HOSTS, concurrency, &metrics, &shutdown, |delivery: Taken| {
            let hosts = hosts.clone();
            async move { host::step(&delivery.message, delivery.attempt, &hosts).await }
        })
        .await
    };
    let notifications = async {
        let Some(post) = post else { return Ok(()) };
        take(&broker, &job::NOTIFY, NOTIFY_SLOTS, &metrics, &shutdown, |delivery: Taken| {
            let post = post.clone();
            async move { notify::step(&delivery.message, delivery.attempt, &post).await }
        })
        .await
    };
    let (relay, hosts, notifications) = tokio::join!(relay, hosts, notifications);
    relay.and(hosts).and(notifications)
}

/// Works host events alone, as [`run`] does, and reports each look at a host to `reports` before it is settled.
///
/// # Errors
/// As [`run`].
pub async fn run_hosts<B: Broker>(
    broker: B,
    hosts: Hosts,
    concurrency: u16,
    reports: mpsc::UnboundedSender<Report>,
    metrics: Metrics,
    shutdown: Shutdown,
) -> Result<(), BrokerError> {
    take(&broker, &job::HOSTS, concurrency, &metrics, &shutdown, |delivery: Taken| {
        let (hosts, reports) = (hosts.clone(), reports.clone());
        async move {
            let worked = host::step(&delivery.message, delivery.attempt, &hosts).await;
            // Whoever waited for it may have gone.
            let _ = reports.send(Report::of(delivery.message.id, &worked));
            worked
        }
    })
    .await
}

/// What a handler sees of a delivery; settling it is not its business.
struct Taken {
    message: Message,
    attempt: u32,
    deadline: Option<Timestamp>,
}

/// Receives both lanes of `queue` and has each delivery worked by `handler`.
async fn take<B, H, F>(
    broker: &B,
    queue: &'static Queue,
    concurrency: u16,
    metrics: &Metrics,
    shutdown: &Shutdown,
    handler: H,
) -> Result<(), BrokerError>
where
    B: Broker,
    H: Fn(Taken) -> F,
    F: Future<Output = Worked> + Send + 'static,
{
    let mut normal = broker.receive(queue, Lane::Normal, concurrency).await?;
    let mut urgent = broker.receive(queue, Lane::Urgent, URGENT_SLOTS).await?;
    metrics.takes(queue, concurrency, *queue != job::NOTIFY);
    tracing::info!(queue = queue.name, concurrency, "the worker takes jobs");
    let jobs = TaskTracker::new();
    let ended = loop {
        let delivery = tokio::select! {
            biased;
            () = shutdown.begun() => break Ok(()),
            delivery = next(&mut urgent) => delivery,
            delivery = next(&mut normal) => delivery,
        };
        match delivery {
            Ok(delivery) => {
                let taken =
                    Taken { message: delivery.message.clone(), attempt: delivery.attempt, deadline: delivery.deadline };
                // A pointer: the task would hold several times what a job has in hands, and move it as often.
                let worked = Box::pin(handler(taken));
                jobs.spawn(work(B::SYSTEM, queue, delivery, worked, metrics.clone(), shutdown.clone()));
            }
            Err(error) => break Err(error),
        }
    };
    normal.close().await;
    urgent.close().await;
    jobs.close();
    jobs.wait().await;
    ended
}

async fn next(receiver: &mut Receiver) -> Result<Delivery, BrokerError> {
    receiver.next().await.ok_or(BrokerError::Closed)
}

/// Works one delivery to its settlement.
async fn work(
    system: &'static str,
    queue: &'static Queue,
    delivery: Delivery,
    worked: impl Future<Output = Worked>,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let now = Timestamp::now();
    let span = propagation::process_span(system, queue, &delivery, now);
    let in_hands = metrics.job_begins(queue, delivery.message.lane, delivery.published, delivery.attempt);
    let started = Instant::now();
    async {
        let worked = tokio::select! {
            worked = worked => worked,
            () = shutdown.hard() => {
                Worked { kind: queue.name, outcome: "given_back", failed: true, settlement: Settlement::GiveBack }
            }
        };
        let span = tracing::Span::current();
        span.record("job.kind", worked.kind);
        span.record("job.outcome", worked.outcome);
        if worked.failed {
            propagation::fail(&span, worked.outcome);
        }
        let died = match &worked.settlement {
            Settlement::DeadLetter(cause) => Some(cause.code.clone()),
            _ => None,
        };
        let settling = propagation::settle_span(system, queue, &delivery, &worked.settlement);
        match delivery.settle(worked.settlement).instrument(settling.clone()).await {
            Ok(()) => {
                if let Some(cause) = died {
                    metrics.job_died(queue.name, &cause);
                }
            }
            Err(error) => {
                propagation::fail(&settling, error.name());
                tracing::warn!(error = %error, "a settlement did not arrive; the job may be worked again");
            }
        }
        metrics.job(worked.kind, worked.outcome, started.elapsed());
        drop(in_hands);
    }
    .instrument(span)
    .await;
}

/// Names the machine action that the job in hand is about in its span.
fn name_action(id: &str) {
    tracing::Span::current().record("action.id", id);
}

/// What became of a delivery.
struct Worked {
    kind: &'static str,
    outcome: &'static str,
    failed: bool,
    settlement: Settlement,
}
