//! The desk itself: one loop that counts Cognito's permits, one that keeps the ledger, and one that grants Defender's
//! (`teller`).
//!
//! # Taking over
//! All workers receive from the desk's queue, and the broker hands the questions to one of them; when that one is gone,
//! what it had not answered goes to the next. Nobody is told that it is the desk now. So nothing is decided from memory:
//! before each batch of questions about isolations the retained values are read anew and merged into what is known here,
//! and what was decided is retained before it is answered. A desk that lost its link in between does not answer: its
//! questions are in other hands.
//!
//! What is left is a desk whose receiving link breaks, unknown to it yet, after it read and before it answers, while its
//! sending link holds: the next desk may grant the same places to others. Then one hour may see more isolations than its
//! cap, by those that the first desk answered in that moment; a pause waits for them all the same (see below).
//!
//! Cognito's rate is not retained. A new desk begins with the part of the bucket that is kept for containment and with
//! the full rate, and learns of Cognito's limits from the next refusal.
//!
//! # Workers without hosts
//! know neither the rate nor the caps. They are the desk for Defender's permits only: at a question about hosts they leave
//! their place in line and come again at its end, so that the question goes to a worker that can answer it, which stays.
//!
//! # A pause
//! is retained first, then the desk is asked to drain. Every grant is decided on a brake that was read after the question
//! arrived, and its holder's time runs from before the question was sent. So what was decided before the pause can be
//! posted for [`GRANT_LIMIT`] after it at most; the desk answers sooner when all holders have spoken. It does not when it
//! took over within that time, or when somebody reserved without a desk: then it does not know all holders.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::brake::{Brake, FIRST_SWEEP, Lever};
use super::ledger::{Deskless, Ledger, Retained};
use super::permits::{Class, Permits, Word};
use super::protocol::{Answer, Reply, Request, millis};
use super::state::{Ask, Found, GRANT_LIMIT, Now, State};
use super::teller::Teller;
use super::{LANE, Settings};
use crate::broker::{Broker, BrokerError, Delivery, Settlement};
use crate::job;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::Metrics;

/// Questions in hand at once. Each worker has two open questions about permits, one batch of reports, and one
/// reservation for each of its slots for containment.
const PREFETCH: u16 = 500;

/// Questions that are decided together: one reading and one writing of the ledger serves them all.
pub(super) const BATCH: usize = 250;

/// Permits that one question may ask for.
const PERMITS_LIMIT: u32 = 100;

/// After a time without questions somebody else may have been the desk.
pub(super) const IDLE: Duration = Duration::from_secs(2);

/// The longest the retained values are waited for.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(3);

/// How long a worker without hosts stays away after a question about hosts. Where nobody works hosts, such questions come
/// from operators' commands, and fail.
const ASIDE: Duration = Duration::from_secs(1);

/// Why a desk stopped.
enum Ended {
    /// It was told to.
    Shutdown,
    /// Somebody else is to answer.
    Aside,
}

/// Answers the deployment's questions while this process is the one that gets them; until `shutdown` begins. A process
/// that still has jobs in hand stops this after them.
///
/// # Errors
/// When the broker does not let this process receive, or closes while it should.
pub async fn serve<B: Broker>(
    broker: B,
    settings: Settings,
    metrics: Metrics,
    shutdown: Shutdown,
) -> Result<(), BrokerError> {
    while let Ended::Aside = serve_once(broker.clone(), settings.clone(), metrics.clone(), &shutdown).await? {
        tokio::select! {
            () = shutdown.begun() => break,
            () = tokio::time::sleep(ASIDE) => {}
        }
    }
    Ok(())
}

async fn serve_once<B: Broker>(
    broker: B,
    settings: Settings,
    metrics: Metrics,
    shutdown: &Shutdown,
) -> Result<Ended, BrokerError> {
    let begun = is_alone(&broker).await.then(Timestamp::now);
    let mut receiver = broker.receive(&job::DESK, LANE, PREFETCH).await?;
    let origin = Instant::now();
    let answers = TaskTracker::new();
    let (cases, rest) = mpsc::unbounded_channel();
    let (calls, callers) = mpsc::unbounded_channel();
    let teller = Teller::new(broker.clone(), settings.quota.clone(), metrics.clone(), answers.clone());
    let mut teller = tokio::spawn(teller.run(callers));
    let clerk = Clerk {
        broker,
        settings: settings.clone(),
        begun,
        origin,
        name: Uuid::now_v7(),
        state: State::default(),
        looked: false,
        since: None,
        drains: Vec::new(),
        refusing: false,
        answers: answers.clone(),
    };
    let mut clerk = tokio::spawn(clerk.run(rest));
    let mut aside = None;
    let mut window = Window {
        permits: Permits::new(settings.cognito_rate, Duration::ZERO),
        last: None,
        origin,
        metrics,
        answers: answers.clone(),
    };
    let ended = loop {
        let next = window.permits.next(origin.elapsed());
        tokio::select! {
            biased;
            () = shutdown.begun() => break Ok(Ended::Shutdown),
            delivery = receiver.next() => match delivery {
                None => break Err(BrokerError::Closed),
                Some(delivery) => match read(&delivery) {
                    request if !settings.cognito && request.is_about_cognito() => {
                        aside = Some(delivery);
                        break Ok(Ended::Aside);
                    }
                    Request::Permits { containment, count } => window.ask(delivery, containment, count),
                    Request::Throttled { retry_after_ms } => {
                        window.throttled(retry_after_ms.map(Duration::from_millis));
                        answer(&answers, delivery, &Reply::Noted);
                    }
                    // The teller ends as the clerk does.
                    request @ (Request::Quota { .. } | Request::QuotaThrottled { .. }) => {
                        let _ = calls.send((delivery, request));
                    }
                    Request::Present => answer(&answers, delivery, &Reply::Noted),
                    Request::Unknown => answer(&answers, delivery, &Reply::Unavailable),
                    request => {
                        // The clerk ends after this loop, or by a panic that this loop hears of next.
                        let _ = cases.send((delivery, request));
                    }
                },
            },
            () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => {}
            _ = &mut clerk => break Err(BrokerError::Unknown("the keeper of the ledger has failed".to_owned())),
            _ = &mut teller => break Err(BrokerError::Unknown("the keeper of the quota has failed".to_owned())),
        }
        window.tell();
    };
    // First nobody sends here any more, then what is left goes to the next desk.
    receiver.close().await;
    drop((cases, calls));
    for delivery in window.permits.dismiss().into_iter().chain(aside) {
        give_back(&answers, delivery);
    }
    if !clerk.is_finished() {
        let _ = clerk.await;
    }
    if !teller.is_finished() {
        let _ = teller.await;
    }
    answers.close();
    answers.wait().await;
    ended
}

/// Whether nobody in the deployment serves as its desk: the deployment starts. If that cannot be found out, it does.
async fn is_alone<B: Broker>(broker: &B) -> bool {
    let health = broker.check().await;
    let ours = health.queues.iter().find(|depth| depth.queue == job::DESK.name && depth.lane == LANE);
    ours.is_none_or(|depth| depth.receivers == 0)
}

fn read(delivery: &Delivery) -> Request {
    job::decode(&delivery.message.body).unwrap_or_else(|error| {
        tracing::warn!(error = %error, "a question to the desk cannot be read");
        Request::Unknown
    })
}

pub(super) fn answer(answers: &TaskTracker, delivery: Delivery, reply: &Reply) {
    let reply = Some(job::encode(reply));
    answers.spawn(async move {
        if let Err(error) = delivery.settle(Settlement::Done { reply }).await {
            tracing::debug!(error = %error, "an answer of the desk did not arrive");
        }
    });
}

fn give_back(answers: &TaskTracker, delivery: Delivery) {
    answers.spawn(async move {
        // On an error the broker hands it out again by itself.
        let _ = delivery.settle(Settlement::GiveBack).await;
    });
}

/// Where permits are given out.
struct Window {
    permits: Permits<Delivery>,
    /// When it was last asked.
    last: Option<Duration>,
    origin: Instant,
    metrics: Metrics,
    answers: TaskTracker,
}

impl Window {
    fn ask(&mut self, delivery: Delivery, containment: bool, count: u32) {
        let now = self.origin.elapsed();
        if self.last.is_none_or(|last| now.saturating_sub(last) > IDLE) {
            self.permits.bucket.restart(now);
        }
        self.last = Some(now);
        let class = if containment { Class::Containment } else { Class::Normal };
        self.permits.ask(delivery, class, count.min(PERMITS_LIMIT), now);
    }

    fn throttled(&mut self, retry_after: Option<Duration>) {
        let now = self.origin.elapsed();
        let before = self.permits.bucket.rate();
        self.permits.bucket.throttled(retry_after, now);
        if self.permits.bucket.rate() < before {
            tracing::warn!(
                cognito.rate = self.permits.bucket.rate(),
                retry_after_ms = retry_after.map(millis),
                "Cognito throttles: the deployment's rate is lowered"
            );
        }
    }

    fn tell(&mut self) {
        let due = self.permits.due(self.origin.elapsed());
        if !due.is_empty() {
            self.metrics.cognito_rate(self.permits.bucket.rate());
        }
        for (delivery, word) in due {
            let reply = match word {
                Word::Granted(granted) => Reply::Permits { granted, wait_ms: 0 },
                Word::NotYet(wait) => Reply::Permits { granted: 0, wait_ms: millis(wait) },
            };
            answer(&self.answers, delivery, &reply);
        }
    }
}

/// Somebody who waits until nothing that was granted can be posted any more.
struct Drain {
    delivery: Delivery,
    /// When that is so whatever holders say: it is so long that the brake is on.
    by: Duration,
    /// Not sooner: not all holders are known.
    strangers: bool,
}

/// What was read of the retained values.
struct View {
    brake: Brake,
    writer: Option<Uuid>,
    ledger: Ledger,
    deskless: Deskless,
}

/// Reads what is retained, as it is now.
async fn look<B: Broker>(broker: &B) -> Result<View, BrokerError> {
    let read = async |name| Ok::<Option<Bytes>, BrokerError>(broker.watch(name).await?.borrow().clone());
    let (lever, cap, ledger, deskless) =
        tokio::try_join!(read(job::BRAKE), read(job::CAP), read(job::LEDGER), read(job::DESKLESS))?;
    let unreadable = |error: job::DecodeError| BrokerError::Storage(error.to_string());
    let retained = ledger.map(|ledger| Retained::decode(&ledger)).transpose().map_err(unreadable)?;
    let deskless = deskless.map(|deskless| job::decode(&deskless)).transpose().map_err(unreadable)?;
    let (writer, ledger) = retained.map(|retained| (retained.writer, retained.ledger)).unzip();
    Ok(View {
        brake: Brake::read(lever.as_ref(), cap.as_ref()),
        writer,
        ledger: ledger.unwrap_or_default(),
        deskless: deskless.unwrap_or_default(),
    })
}

/// Keeps the ledger.
struct Clerk<B> {
    broker: B,
    settings: Settings,
    /// When this process began to serve, if nobody else did.
    begun: Option<Timestamp>,
    origin: Instant,
    /// How this desk signs the ledger.
    name: Uuid,
    state: State,
    /// The retained values were read at least once.
    looked: bool,
    /// When it took over from another desk, which may have granted until then.
    since: Option<Duration>,
    drains: Vec<Drain>,
    /// The last isolation that was asked for was refused for a cap.
    refusing: bool,
    answers: TaskTracker,
}

impl<B: Broker> Clerk<B> {
    async fn run(mut self, mut cases: mpsc::UnboundedReceiver<(Delivery, Request)>) {
        loop {
            let mut batch = Vec::new();
            let wait = self.drained_in();
            tokio::select! {
                count = cases.recv_many(&mut batch, BATCH) => if count == 0 { break },
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            if !batch.is_empty() {
                self.work(batch).await;
            }
            self.tell_drained();
        }
        for drain in self.drains {
            give_back(&self.answers, drain.delivery);
        }
    }

    fn now(&self) -> Now {
        Now { wall: Timestamp::now(), mono: self.origin.elapsed() }
    }

    /// Decides a batch: reads what is retained, decides, retains what was decided, answers.
    async fn work(&mut self, batch: Vec<(Delivery, Request)>) {
        let view = match timeout(READ_LIMIT, look(&self.broker)).await {
            Ok(Ok(view)) => view,
            failed => {
                let error = failed.ok().and_then(Result::err).unwrap_or(BrokerError::Timeout);
                tracing::warn!(error = %error, "the desk cannot read brake and ledger, and answers nothing about isolations");
                return self.unavailable(batch.into_iter().map(|(delivery, _)| delivery));
            }
        };
        let before = self.state.clone();
        let now = self.now();
        if view.writer != Some(self.name) && (self.looked || self.begun.is_none()) && view.writer.is_some() {
            self.since = Some(now.mono);
        }
        self.looked = true;
        self.state.absorb(&view.ledger, now);
        self.state.absorb_entries(&view.deskless.entries, now);
        self.state.show_limits(&self.settings);
        let strangers = self.has_strangers(&view, now);
        let mut decided = Vec::with_capacity(batch.len());
        let mut engaged = None;
        for (delivery, request) in batch {
            let reply = match request {
                Request::Drain { age_ms } => {
                    let by = now.mono + GRANT_LIMIT.saturating_sub(Duration::from_millis(age_ms));
                    self.drains.push(Drain { delivery, by, strangers });
                    continue;
                }
                Request::FirstSweep { hosts } => {
                    let hosts: BTreeSet<u64> = hosts.into_iter().collect();
                    let found = self.state.first_sweep(&hosts, self.begun, &view.brake, &self.settings, now);
                    if let Found::Engage(count) = found {
                        engaged = Some(count);
                    }
                    Reply::FirstSweep { paused: found != Found::Go }
                }
                Request::Reserve { id, machine_id, host_id, reports } => {
                    for report in &reports {
                        self.state.report(report, now);
                    }
                    let ask = Ask { id, machine_id: &machine_id, host_id };
                    // A brake that this batch is about to put on counts.
                    let answer = if engaged.is_some() {
                        Answer::Paused
                    } else {
                        self.state.reserve(ask, &view.brake, &self.settings, now)
                    };
                    self.log(ask, answer);
                    Reply::Reserved { answer }
                }
                Request::Report { reports } => {
                    for report in &reports {
                        self.state.report(report, now);
                    }
                    Reply::Noted
                }
                Request::SweepBegin { id, interval_ms, lease_ms } => {
                    let (interval, lease) = (Duration::from_millis(interval_ms), Duration::from_millis(lease_ms));
                    let wait = self.state.sweep_begin(id, interval, lease, now).err();
                    Reply::Sweep { wait_ms: wait.map(millis) }
                }
                Request::SweepDone { id } => {
                    self.state.sweep_done(id);
                    Reply::Noted
                }
                _ => Reply::Noted,
            };
            decided.push((delivery, reply));
        }
        if let Err(error) = self.keep(&view, engaged).await {
            tracing::warn!(error = %error, "the desk cannot write brake and ledger, and answers nothing about isolations");
            // As if nothing had been asked. What was written after all is read again.
            self.state = before;
            return self.unavailable(decided.into_iter().map(|(delivery, _)| delivery));
        }
        for (delivery, reply) in decided {
            if delivery.is_lost() {
                tracing::debug!("a question is in the next desk's hands; it is not answered here");
                continue;
            }
            answer(&self.answers, delivery, &reply);
        }
    }

    /// Retains what was decided.
    async fn keep(&mut self, view: &View, engaged: Option<usize>) -> Result<(), BrokerError> {
        if let Some(count) = engaged {
            let reason = format!(
                "a start found {count} hosts with an untouched block tag, more than the {} allowed",
                self.settings.first_sweep
            );
            tracing::error!(
                hosts = count,
                allowed = self.settings.first_sweep,
                "isolations are paused: the first sweep found more untouched block tags than allowed; look at them, then \
                 `isolation resume`"
            );
            // A pause by hand keeps its own words.
            if !view.brake.paused {
                let lever =
                    Lever { paused: true, by: FIRST_SWEEP.to_owned(), at: Timestamp::now(), reason: Some(reason) };
                self.broker.retain(job::BRAKE, lever.encode()).await?;
            }
        }
        if self.state.ledger != view.ledger {
            let retained = Retained { writer: self.name, ledger: self.state.ledger.clone() };
            self.broker.retain(job::LEDGER, retained.encode()).await?;
        }
        Ok(())
    }

    fn unavailable(&self, deliveries: impl Iterator<Item = Delivery>) {
        for delivery in deliveries {
            answer(&self.answers, delivery, &Reply::Unavailable);
        }
    }

    /// Whether somebody may hold a grant of which this desk does not know: another desk's, or one without a desk.
    fn has_strangers(&self, view: &View, now: Now) -> bool {
        let anew = self.since.is_some_and(|since| now.mono.saturating_sub(since) < GRANT_LIMIT);
        anew || view.deskless.entries.values().any(|entry| super::state::may_be_open(entry, now.wall))
    }

    /// How long until the next of those who wait can be told.
    fn drained_in(&self) -> Option<Duration> {
        let now = self.now();
        let outstanding = self.state.outstanding(now).unwrap_or_default();
        let wait = |drain: &Drain| {
            let by = drain.by.saturating_sub(now.mono);
            if drain.strangers { by } else { by.min(outstanding) }
        };
        self.drains.iter().map(wait).min()
    }

    fn tell_drained(&mut self) {
        let now = self.now();
        self.state.advance(now);
        let outstanding = self.state.outstanding(now).is_some();
        let (over, waiting) = std::mem::take(&mut self.drains)
            .into_iter()
            .partition::<Vec<_>, _>(|drain| drain.by <= now.mono || (!drain.strangers && !outstanding));
        self.drains = waiting;
        for drain in over {
            answer(&self.answers, drain.delivery, &Reply::Drained);
        }
    }

    fn log(&mut self, ask: Ask<'_>, answer: Answer) {
        let Ask { machine_id, host_id, .. } = ask;
        let refused = match answer {
            Answer::Granted => {
                tracing::info!(machine.id = machine_id, host.id = host_id, "an isolation is granted");
                self.refusing = false;
                return;
            }
            Answer::Paused | Answer::Busy { .. } => return,
            Answer::RateLimited { .. } => "the isolations of this hour are used up",
            Answer::TooManyIsolated => "as many machines are isolated as may be at once",
        };
        // The first refusal is worth a look; a storm has thousands.
        if self.refusing {
            tracing::debug!(machine.id = machine_id, host.id = host_id, "an isolation waits: {refused}");
        } else {
            tracing::warn!(machine.id = machine_id, host.id = host_id, "isolations wait: {refused}");
        }
        self.refusing = true;
    }
}
