//! What a worker holds of the desk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::ledger::Retained;
use super::line::Line;
use super::protocol::{Answer, Reply, Request, What, millis};
use super::reports::Reports;
use super::state::Ask;
use super::{Brake, GRANT_LIFETIME, Isolation, Ledger, Settings, callers, deskless, reports};
use crate::broker::{Broker, BrokerError};
use crate::job;
use crate::telemetry::metrics::Metrics;

/// Containment waits no longer than this for a word (`DESIGN.md` 5).
pub(super) const CONTAINMENT_LIMIT: Duration = Duration::from_secs(1);

/// What is not urgent waits so long for an answer about sweeps.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// Pause before the desk is asked again whether it is there.
const PROBE_PAUSE: Duration = Duration::from_millis(300);

/// A way to the desk. Cheap to clone; clones share one line to it. Reports that are on their way go with the last clone:
/// see [`Desk::flush`].
#[derive(Clone)]
pub struct Desk {
    shared: Arc<Shared>,
    containment: mpsc::UnboundedSender<oneshot::Sender<()>>,
    normal: mpsc::UnboundedSender<oneshot::Sender<()>>,
    _tasks: Arc<DropGuard>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("brake", &*self.shared.brake.borrow()).finish_non_exhaustive()
    }
}

/// What the clones and their tasks share.
pub(super) struct Shared {
    pub(super) line: Line,
    pub(super) settings: Settings,
    pub(super) brake: watch::Sender<Brake>,
    pub(super) reports: Reports,
    /// Until when Cognito wants no call.
    pub(super) held_until: watch::Sender<Option<Instant>>,
    /// The desk gave no word in time; a task asks until it does.
    silent: AtomicBool,
    /// Held to reserve without a desk.
    alone: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    pub(super) metrics: Metrics,
}

/// The answer to [`Desk::reserve`].
#[derive(Debug)]
pub enum Reservation {
    /// The machine may be isolated: POST now, then say what became of it with [`Desk::posted`] or [`Desk::not_posted`].
    Granted(Grant),
    /// The hour's isolations are used up.
    RateLimited {
        /// When there may be room: the first of them is an hour old then, or another cap holds.
        free_at: Timestamp,
    },
    /// As many machines are isolated as may be at once.
    TooManyIsolated,
    /// The emergency brake is on.
    Paused,
    /// Somebody else may be isolating this very machine now.
    Busy {
        /// For so long at most. Look at the machine's actions before asking again.
        wait: Duration,
    },
    /// Neither the desk nor a current view of brake and ledger can be had: try again soon.
    Unavailable,
}

/// The right to post one isolation, for [`GRANT_LIFETIME`]. Dropped without a word it is given back when
/// [`Grant::may_post`] never said yes, and counts as used when it did.
#[must_use = "a grant is posted or given back"]
pub struct Grant {
    id: Uuid,
    machine_id: String,
    host_id: u64,
    /// Since when it is valid, from before it was asked for: by a clock that only goes forward, and by the calendar,
    /// which goes on while a machine is suspended.
    asked: Moment,
    /// The POST may have been begun.
    begun: AtomicBool,
    /// What became of it, once told.
    told: bool,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant")
            .field("machine_id", &self.machine_id)
            .field("host_id", &self.host_id)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if !self.told && !*self.begun.get_mut() {
            self.tell(false);
        }
    }
}

/// A moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    instant: Instant,
    wall: Timestamp,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::now() }
    }

    /// The longer of what the two clocks say.
    fn elapsed(&self) -> Duration {
        let calendar = Duration::try_from(Timestamp::now().duration_since(self.wall)).unwrap_or_default();
        self.instant.elapsed().max(calendar)
    }
}

/// Why a grant may not be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The emergency brake was put on meanwhile.
    #[error("isolations are paused")]
    Paused,
    /// The grant is too old.
    #[error("the reservation is too old")]
    Expired,
}

impl Grant {
    /// To be asked immediately before the POST, which must then end within [`super::POST_LIMIT`].
    ///
    /// # Errors
    /// The POST must not be made; give the grant back with [`Desk::not_posted`].
    pub fn may_post(&self) -> Result<(), Stop> {
        if self.shared.brake.borrow().paused {
            Err(Stop::Paused)
        } else if self.asked.elapsed() >= GRANT_LIFETIME {
            Err(Stop::Expired)
        } else {
            self.begun.store(true, Ordering::Relaxed);
            Ok(())
        }
    }

    fn tell(&mut self, posted: bool) {
        self.told = true;
        let (id, machine_id, host_id) = (self.id, self.machine_id.clone(), self.host_id);
        self.shared.reports.add(if posted {
            What::Posted { id, machine_id, host_id }
        } else {
            What::NotPosted { id, machine_id, host_id }
        });
    }

    /// Whose isolation it is.
    #[must_use]
    pub fn machine_id(&self) -> &str {
        &self.machine_id
    }
}

/// The right to sweep, until its lease is over.
#[derive(Debug)]
pub struct Sweep {
    id: Uuid,
    until: Instant,
}

impl Sweep {
    /// When the sweep must have ended, by this process's clock.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }
}

/// The answer to [`Desk::first_sweep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstSweep {
    /// Go on.
    Go,
    /// The brake is on because of what was found. Hosts may be published nevertheless: isolations wait.
    Paused,
}

impl Desk {
    /// Watches brake and ledger. Nothing is asked of the desk yet.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn open<B: Broker>(broker: B, settings: Settings, metrics: Metrics) -> Result<Self, BrokerError> {
        let (lever, cap, ledger) =
            tokio::try_join!(broker.watch(job::BRAKE), broker.watch(job::CAP), broker.watch(job::LEDGER))?;
        let brake = Brake::read(lever.borrow().as_ref(), cap.borrow().as_ref());
        metrics.isolations_paused(brake.paused);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            line: Line::new(broker),
            settings,
            brake: watch::Sender::new(brake),
            reports: Reports::default(),
            held_until: watch::Sender::new(None),
            silent: AtomicBool::new(false),
            alone: tokio::sync::Mutex::default(),
            stop: stop.clone(),
            metrics,
        });
        let (containment, urgent_callers) = mpsc::unbounded_channel();
        let (normal, normal_callers) = mpsc::unbounded_channel();
        shared.spawn(follow_brake(Arc::clone(&shared), lever, cap));
        shared.spawn(follow_ledger(Arc::clone(&shared), ledger));
        shared.spawn(callers::containment(Arc::clone(&shared), urgent_callers));
        shared.spawn(callers::normal(Arc::clone(&shared), normal_callers));
        shared.spawn(reports::send(Arc::clone(&shared)));
        Ok(Self { shared, containment, normal, _tasks: Arc::new(stop.drop_guard()) })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Waits until one call to Cognito may go. A call for containment that gets no word from the desk within 1 s goes on;
    /// other calls wait, and go slowly when there is no desk for long.
    pub async fn cognito_permit(&self, containment: bool) {
        let (line, class) = if containment { (&self.containment, "containment") } else { (&self.normal, "normal") };
        let began = Instant::now();
        let (go, word) = oneshot::channel();
        // The tasks end with the broker only, and then nothing goes far.
        if line.send(go).is_ok() {
            let _ = word.await;
        }
        self.shared.metrics.cognito_permit(class, began.elapsed());
    }

    /// Cognito answered 429, with this `Retry-After` if any.
    pub fn cognito_throttled(&self, retry_after: Option<Duration>) {
        let hold = retry_after.map(|hold| hold.min(super::permits::HOLD_LIMIT));
        self.shared.metrics.cognito_throttled(hold.unwrap_or_default());
        let hold = hold.map(|hold| Instant::now() + hold);
        self.shared.held_until.send_if_modified(|until| {
            let longer = hold > *until;
            *until = hold.max(*until);
            longer
        });
        let shared = Arc::clone(&self.shared);
        self.shared.spawn(async move {
            let request = Request::Throttled { retry_after_ms: retry_after.map(millis) };
            // Nobody there: then the workers keep to what each has heard itself.
            if let Err(error) = shared.line.ask(&request, CONTAINMENT_LIMIT).await {
                tracing::debug!(error = %error, "the desk was not told that Cognito throttles");
            }
        });
    }

    /// Asks for the right to isolate a machine. Ends within 3 s or so, with or without a desk; later when many ask at once
    /// and there is none.
    ///
    /// A worker that gets no word from the desk within 1 s decides by itself, from brake and ledger as they are retained
    /// at that moment, one machine at a time. Two workers that do so at once may together grant one more than the caps
    /// say.
    pub async fn reserve(&self, machine_id: &str, host_id: u64) -> Reservation {
        let ask = Ask { id: Uuid::now_v7(), machine_id, host_id };
        let reservation = self.shared.reserve(ask).await;
        self.shared.metrics.isolation_reservation(match &reservation {
            Reservation::Granted(_) => "granted",
            Reservation::RateLimited { .. } => "rate_limited",
            Reservation::TooManyIsolated => "too_many_isolated",
            Reservation::Paused => "paused",
            Reservation::Busy { .. } => "busy",
            Reservation::Unavailable => "unavailable",
        });
        reservation
    }

    /// The POST was made: it was accepted, or its outcome is unknown.
    pub fn posted(&self, mut grant: Grant) {
        grant.tell(true);
    }

    /// The POST was not made, or Defender refused it.
    pub fn not_posted(&self, mut grant: Grant) {
        grant.tell(false);
    }

    /// The machine is isolated, or about to be, by the bridge; to be said at each occasion.
    pub fn isolated(&self, isolation: Isolation) {
        self.shared.reports.add(What::Isolated { isolation });
    }

    /// The machine is not isolated by the bridge any more, or the isolation failed.
    pub fn released(&self, machine_id: &str, host_id: u64) {
        self.shared.reports.add(What::Released { machine_id: machine_id.to_owned(), host_id });
    }

    /// Waits until the desk has all reports, for `limit` at most: what is not told then is told by later reports.
    pub async fn flush(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.shared.reports.empty()).await;
    }

    /// Asks for the right to sweep: nobody else has it, and the last sweep of the deployment began `interval` ago. The
    /// sweep must end within `lease`.
    ///
    /// # Errors
    /// Not now; ask again after this time.
    pub async fn sweep_begin(&self, interval: Duration, lease: Duration) -> Result<Sweep, Duration> {
        self.sweep_ask(Uuid::now_v7(), interval, lease).await
    }

    async fn sweep_ask(&self, id: Uuid, interval: Duration, lease: Duration) -> Result<Sweep, Duration> {
        let until = Instant::now() + lease;
        let request = Request::SweepBegin { id, interval_ms: millis(interval), lease_ms: millis(lease) };
        match self.shared.line.ask(&request, SWEEP_LIMIT).await {
            Ok(Reply::Sweep { wait_ms: None }) => Ok(Sweep { id, until }),
            Ok(Reply::Sweep { wait_ms: Some(wait_ms) }) => Err(Duration::from_millis(wait_ms)),
            other => {
                tracing::debug!(answer = ?other, "no word from the desk about a sweep");
                Err(SWEEP_LIMIT.min(interval))
            }
        }
    }

    /// Asks for the right to go on sweeping, for another `lease` from now. Whoever may sweep keeps the right so, as long
    /// as the desk hears of it in time.
    ///
    /// # Errors
    /// There was no word, or somebody else has the right by now: it ends when it would have ended.
    pub async fn sweep_renew(&self, sweep: &mut Sweep, lease: Duration) -> Result<(), Duration> {
        let renewed = self.sweep_ask(sweep.id, Duration::ZERO, lease).await?;
        *sweep = renewed;
        Ok(())
    }

    /// The sweep has ended. If the desk does not hear of it, the next one waits for the end of the lease.
    pub async fn sweep_done(&self, sweep: Sweep) {
        let told = self.shared.line.ask(&Request::SweepDone { id: sweep.id }, SWEEP_LIMIT).await;
        if let Err(error) = told {
            tracing::debug!(error = %error, "the desk was not told that a sweep has ended");
        }
    }

    /// To be asked by every sweep before it publishes anything, with the hosts whose block tag is untouched (none of the
    /// bridge's own tags says what became of it): the first sweep after a start of the deployment may find too many of
    /// them (`DESIGN.md` 10, ruling 17).
    ///
    /// Too many are more than the setting says of hosts that no sweep of the deployment has found before. Tags that
    /// appear while it runs are somebody's word now and pass, however many. Taking the brake off answers for those that
    /// were found: a later start asks only about others.
    ///
    /// # Errors
    /// There was no word from the desk: nothing may be published, ask again.
    pub async fn first_sweep(&self, untouched: &[u64]) -> Result<FirstSweep, BrokerError> {
        let request = Request::FirstSweep { hosts: untouched.to_vec() };
        match self.shared.line.ask(&request, SWEEP_LIMIT).await? {
            Reply::FirstSweep { paused: true } => Ok(FirstSweep::Paused),
            Reply::FirstSweep { paused: false } => Ok(FirstSweep::Go),
            other => Err(BrokerError::Unavailable(format!("the desk answered another question: {other:?}"))),
        }
    }

    /// The brake, as last seen.
    #[must_use]
    pub fn brake(&self) -> Brake {
        self.shared.brake.borrow().clone()
    }

    /// Follows the brake.
    #[must_use]
    pub fn brake_changed(&self) -> watch::Receiver<Brake> {
        self.shared.brake.subscribe()
    }
}

impl Shared {
    /// Runs `task` until the last handle is dropped.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Whether the desk gave no word lately.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }

    /// The desk gave no word. Until it does, nobody waits for it who need not; a task asks on.
    pub(super) fn fell_silent(self: &Arc<Self>, error: &BrokerError) {
        if self.silent.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::warn!(error = %error, "no word from the desk; containment goes on without it");
        let shared = Arc::clone(self);
        self.spawn(async move {
            while shared.line.ask(&Request::Present, CONTAINMENT_LIMIT).await.is_err() {
                tokio::time::sleep(PROBE_PAUSE).await;
            }
            shared.silent.store(false, Ordering::Release);
            tracing::info!("the desk is back");
        });
    }

    async fn reserve(self: &Arc<Self>, ask: Ask<'_>) -> Reservation {
        // The safe side, and cheap for the thousands that wait for the brake. Taking it off is seen at once.
        if self.brake.borrow().paused {
            return Reservation::Paused;
        }
        if let Some(reservation) = self.ask_for(ask).await {
            return reservation;
        }
        // One at a time, each knowing of those before. Meanwhile the desk may be back.
        let turn = self.alone.lock().await;
        if let Some(reservation) = self.ask_for(ask).await {
            return reservation;
        }
        let asked = Moment::now();
        let decided = deskless::reserve(&self.line, &self.settings, ask).await;
        drop(turn);
        let reservation = match decided {
            Ok(answer) => {
                tracing::warn!(machine.id = ask.machine_id, host.id = ask.host_id, ?answer, "decided without the desk");
                self.reservation(ask, asked, answer)
            }
            Err(error) => {
                tracing::warn!(error = %error, "neither the desk nor brake and ledger can be reached");
                Reservation::Unavailable
            }
        };
        if !matches!(reservation, Reservation::Granted(_)) {
            // It may be noted somewhere: by a desk whose answer came too late, or by this worker before it saw a pause.
            let Ask { id, machine_id, host_id } = ask;
            self.reports.add(What::NotPosted { id, machine_id: machine_id.to_owned(), host_id });
        }
        reservation
    }

    /// Asks the desk for a reservation; `None` when there is no word from it.
    async fn ask_for(self: &Arc<Self>, ask: Ask<'_>) -> Option<Reservation> {
        if self.is_silent() {
            return None;
        }
        let asked = Moment::now();
        let Ask { id, machine_id, host_id } = ask;
        // What this process says of the machine must not arrive after the question.
        let reports = self.reports.about(machine_id);
        let request = Request::Reserve { id, machine_id: machine_id.to_owned(), host_id, reports };
        match self.line.ask(&request, CONTAINMENT_LIMIT).await {
            Ok(Reply::Reserved { answer }) => Some(self.reservation(ask, asked, answer)),
            Ok(other) => {
                tracing::error!(answer = ?other, "the desk answered another question");
                None
            }
            Err(error) => {
                self.fell_silent(&error);
                None
            }
        }
    }

    fn reservation(self: &Arc<Self>, ask: Ask<'_>, asked: Moment, answer: Answer) -> Reservation {
        match answer {
            Answer::Granted => Reservation::Granted(Grant {
                id: ask.id,
                machine_id: ask.machine_id.to_owned(),
                host_id: ask.host_id,
                asked,
                begun: AtomicBool::new(false),
                told: false,
                shared: Arc::clone(self),
            }),
            Answer::RateLimited { free_at } => Reservation::RateLimited { free_at },
            Answer::TooManyIsolated => Reservation::TooManyIsolated,
            Answer::Paused => Reservation::Paused,
            Answer::Busy { wait_ms } => Reservation::Busy { wait: Duration::from_millis(wait_ms) },
        }
    }
}

type Retaineds = watch::Receiver<Option<Bytes>>;

/// Keeps the brake as it is retained.
async fn follow_brake(shared: Arc<Shared>, mut lever: Retaineds, mut cap: Retaineds) {
    loop {
        let brake = Brake::read(lever.borrow_and_update().as_ref(), cap.borrow_and_update().as_ref());
        shared.metrics.isolations_paused(brake.paused);
        shared.brake.send_if_modified(|current| {
            let changed = *current != brake;
            if changed && current.paused != brake.paused {
                tracing::warn!(
                    paused = brake.paused,
                    by = brake.by.as_deref(),
                    reason = brake.reason.as_deref(),
                    "the emergency brake was moved"
                );
            }
            *current = brake;
            changed
        });
        let changed = tokio::select! {
            changed = lever.changed() => changed,
            changed = cap.changed() => changed,
        };
        // The broker was closed.
        if changed.is_err() {
            return;
        }
    }
}

/// Shows how many machines are isolated.
async fn follow_ledger(shared: Arc<Shared>, mut retained: Retaineds) {
    loop {
        let ledger = retained.borrow_and_update().as_ref().map(|value| Retained::decode(value));
        match ledger {
            None => shared.metrics.isolated(0),
            Some(Ok(Retained { ledger, .. })) => shared.metrics.isolated(Ledger::isolated(&ledger).len()),
            Some(Err(error)) => tracing::warn!(error = %error, "the ledger of isolations cannot be read"),
        }
        if retained.changed().await.is_err() {
            return;
        }
    }
}
