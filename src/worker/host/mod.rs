//! A host event: look at the host, decide, act, write (`cognito.md` 5).
//!
//! Level-triggered: the event says which host to look at, never what to do, so any of it may be repeated. What is decided
//! is pure and lives in `containment`; here is the order of calls, and what becomes of the event afterwards.
//!
//! An event is done, put off at no cost (an open machine action, the brake, a cap), tried again (a failure that passes),
//! or a dead letter after [`delays::MAX_ATTEMPTS`] tries. A trigger tag is removed last, when its request is settled: whatever
//! dies before that is found again.

mod contain;
mod enrich;
mod lookup;
mod settle;
mod write;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

pub(in crate::worker) use self::contain::answer_of;
use super::{NEWER_VERSION_DELAY, Worked};
use crate::broker::{Broker, BrokerError, Cause, Lane, Message, Settlement};
use crate::cognito::{self, Cognito, CognitoError, Priority, Session};
use crate::containment::act::Want;
use crate::containment::decide::{self, Act};
use crate::containment::failure::{self, Failure, Message as Handled};
use crate::containment::notes::{Subject, Told};
use crate::containment::policy::Policy;
use crate::containment::{act, delays, notes};
use crate::defender::{self, Defender, DefenderError, Limits};
use crate::desk::Desk;
use crate::job::{self, DecodeError, Hint, Host, Progress};
use crate::notify::Notifier;
use crate::sweep::groups::Groups;
use crate::telemetry::metrics::Metrics;

/// The longest that one look at a host may take, waiting for permits included. It has to end well before the broker takes
/// the message back (RabbitMQ: 30 minutes), and leaves room for Cognito's rate when many hosts wait.
const LOOK_LIMIT: Duration = Duration::from_secs(300);

/// How often an event that the brake or a cap holds back is looked at while nothing has changed. Costs no call.
const HELD_AGAIN: Duration = Duration::from_secs(15);

/// Who works host events, and for whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is done when.
    pub policy: Policy,
    /// The brain's host name, for comments and note references.
    pub brain: String,
    /// The user name that the bridge writes notes with; notes of others are never changed.
    pub self_user: Option<String>,
    /// The tenant, and the application that reads.
    pub credentials: defender::Credentials,
    /// The application that isolates and releases, if it is another one.
    pub response: Option<defender::Credentials>,
    /// Who tells operators what is done.
    pub notifier: Notifier,
}

/// What handlers of host events work with. Cheap to clone.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

struct Inner {
    settings: Settings,
    cognito: Cognito,
    defender: Defender,
    desk: Desk,
    groups: Groups,
    publish: Box<dyn Publish>,
    metrics: Metrics,
    /// Cognito refused a tag write: an isolation could not be recorded, so none is begun (`cognito.md` 5.8).
    tags_refused: AtomicBool,
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosts").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// Publishes host events, whatever the broker.
trait Publish: Send + Sync {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BrokerError>>;
}

impl<B: Broker> Publish for B {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), BrokerError>> {
        Broker::publish(self, &job::HOSTS, message, Duration::ZERO).boxed()
    }
}

impl Hosts {
    /// Handlers that publish to `broker`, and count. Nothing is isolated before `groups` are known to exist.
    #[must_use]
    pub fn new<B: Broker>(
        settings: Settings,
        cognito: Cognito,
        defender: Defender,
        desk: Desk,
        groups: Groups,
        broker: B,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            settings,
            cognito: cognito.with_metrics(metrics.clone()),
            defender: defender.with_metrics(metrics.clone()),
            desk,
            groups,
            publish: Box::new(broker),
            metrics,
            tags_refused: AtomicBool::new(false),
        }))
    }
}

impl Worked {
    const fn passed(outcome: &'static str, settlement: Settlement) -> Self {
        Self { kind: "host", outcome, failed: false, settlement }
    }

    const fn failed(outcome: &'static str, settlement: Settlement) -> Self {
        Self { kind: "host", outcome, failed: true, settlement }
    }

    fn dead(code: &'static str, detail: String) -> Self {
        Self::failed(code, Settlement::DeadLetter(Cause { code: code.to_owned(), detail }))
    }
}

/// How a look at a host ended.
#[derive(Debug)]
enum Ended {
    /// Nothing is left to do.
    Done(&'static str),
    /// To be looked at again, at no cost: with this much progress.
    Later(&'static str, Duration, Progress),
    /// It has nothing to do with containment: to be worked in its turn.
    Normal,
}

/// Why a look at a host did not end, and what a server asked for.
#[derive(Debug)]
struct Failed {
    failure: Failure,
    what: String,
    after: Option<Duration>,
}

impl Failed {
    fn of(failure: Failure, what: impl fmt::Display) -> Self {
        Self { failure, what: what.to_string(), after: None }
    }
}

/// One look at one host.
struct Look<'a> {
    hosts: &'a Inner,
    event: &'a Host,
    message: &'a Message,
    attempt: u32,
    now: Timestamp,
    deadline: Instant,
}

/// Decides what becomes of a delivery.
pub(super) async fn step(message: &Message, attempt: u32, hosts: &Hosts) -> Worked {
    let hosts = &*hosts.0;
    let event = match Host::decode(&message.body) {
        Ok(event) => event,
        Err(DecodeError::Newer(version)) => {
            tracing::info!(job.version = version, "an event is left for a newer worker");
            return Worked::passed("newer_version", Settlement::Later { after: NEWER_VERSION_DELAY, body: None });
        }
        Err(error) => {
            tracing::error!(error = %error, message.id = %message.id, "a host event cannot be read");
            return Worked::dead("undecodable", error.to_string());
        }
    };
    if attempt > delays::MAX_ATTEMPTS {
        tracing::error!(
            host.id = event.host_id,
            event.id = event.event_id,
            "an event was given up: the workers that had it died"
        );
        return Worked::dead("crashed", format!("the workers that had it died or failed {} times", attempt - 1));
    }
    if event.progress.as_ref().is_some_and(|progress| progress.held) && hosts.desk.brake().paused {
        return Worked::passed("held", Settlement::Later { after: HELD_AGAIN, body: None });
    }
    let (now, deadline) = (Timestamp::now(), Instant::now() + LOOK_LIMIT);
    let look = Look { hosts, event: &event, message, attempt, now, deadline };
    let ended = match AssertUnwindSafe(look.run()).catch_unwind().await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::error!(host.id = event.host_id, event.id = event.event_id, "a handler panicked");
            Err(Failed::of(Failure::Unknown, "a handler panicked"))
        }
    };
    match ended {
        Ok(Ended::Done(outcome)) => Worked::passed(outcome, Settlement::Done { reply: None }),
        Ok(Ended::Later(outcome, after, progress)) => {
            let body = Host { progress: Some(progress), ..event }.encode();
            Worked::passed(outcome, Settlement::Later { after, body: Some(body) })
        }
        Ok(Ended::Normal) => match look_in_turn(hosts, message).await {
            Ok(()) => Worked::passed("in_turn", Settlement::Done { reply: None }),
            Err(error) => Worked::failed("in_turn", retry(message, attempt, None, &format!("not published: {error}"))),
        },
        Err(failed) => {
            let settlement = look.settlement(&failed, attempt);
            if let Some(alert) = alert(failed.failure) {
                hosts.settings.notifier.alert(alert, &failed.what, Some(event.host_id)).await;
            }
            if matches!(settlement, Settlement::DeadLetter(_)) {
                hosts.settings.notifier.alert("given_up", &failed.what, Some(event.host_id)).await;
                Look { deadline: Instant::now() + GIVEN_UP_LIMIT, ..look }.note_given_up(&failed.what).await;
            }
            let configuration = matches!(settlement, Settlement::Later { .. });
            Worked::failed(if configuration { "configuration" } else { "failed" }, settlement)
        }
    }
}

/// What an operator is told of a failure that waits for one (`cognito.md` 5.8). What the brake, a cap or Defender refused is
/// told with the act itself.
const fn alert(failure: Failure) -> Option<&'static str> {
    match failure {
        Failure::CognitoReadRefused => Some("cognito_read_refused"),
        Failure::CognitoWriteRefused => Some("cognito_write_refused"),
        Failure::DefenderConfiguration => Some("defender_configuration"),
        _ => None,
    }
}

/// How long the note about a dead letter may take. It is a courtesy: the trigger is still there, and so is the log line.
const GIVEN_UP_LIMIT: Duration = Duration::from_secs(20);

/// The same event in the normal lane.
async fn look_in_turn(hosts: &Inner, message: &Message) -> Result<(), BrokerError> {
    hosts.publish.publish(Message { lane: Lane::Normal, ..message.clone() }).await
}

/// Another try after a while, or none.
fn retry(message: &Message, attempt: u32, asked: Option<Duration>, what: &str) -> Settlement {
    match delays::retry(attempt, asked, jitter(message)) {
        Some(after) => Settlement::Retry { after, body: None },
        None => Settlement::DeadLetter(Cause { code: "attempts".to_owned(), detail: what.to_owned() }),
    }
}

/// From 0 to 1, different from message to message: what failed together is not tried together.
fn jitter(message: &Message) -> f64 {
    // The last bytes of an id of version 7 are random.
    let [.., high, low] = *message.id.as_bytes();
    f64::from(u16::from_be_bytes([high, low])) / f64::from(u16::MAX)
}

/// The clients, for one look.
struct Calls {
    cognito: Session,
    defender: defender::Session,
}

impl Look<'_> {
    /// What becomes of the event after a failure (`cognito.md` 5.8).
    fn settlement(&self, failed: &Failed, attempt: u32) -> Settlement {
        let Failed { failure, what, after } = failed;
        let handling = failure::handling(*failure);
        let (host, event) = (self.event.host_id, self.event.event_id.as_str());
        if handling.suspends_isolation && !self.hosts.tags_refused.swap(true, Ordering::Relaxed) {
            tracing::error!("Cognito does not let tags be written; nothing is isolated until it does");
        }
        if handling.alerts {
            tracing::error!(host.id = host, event.id = event, attempt, error = what, "a host waits for an operator");
        } else {
            tracing::warn!(host.id = host, event.id = event, attempt, error = what, "a host could not be worked");
        }
        match handling.message {
            Handled::Settle | Handled::GoOn => Settlement::Done { reply: None },
            Handled::RetrySlowly => Settlement::Later { after: delays::CONFIGURATION, body: None },
            Handled::Hold => Settlement::Later { after: HELD_AGAIN, body: None },
            Handled::Retry => retry(self.message, attempt, *after, what),
        }
    }

    /// Looks at the host and does what is to be done.
    async fn run(&self) -> Result<Ended, Failed> {
        let urgent = self.message.lane == Lane::Urgent;
        let calls = self.calls(urgent);
        if let Some(ended) = self.still_open(&calls).await? {
            return Ok(ended);
        }
        let Some(mut host) = calls.cognito.host(self.event.host_id).await? else { return Ok(Ended::Done("gone")) };
        let policy = &self.hosts.settings.policy;
        if policy.urgency.is_some() {
            // The host itself does not tell.
            host.urgency = calls.cognito.urgency(host.id).await?;
        }
        let mut notes = None;
        let mut context_read = None;
        if !urgent && decide::needs_context_age(policy, &host, &host.tags) {
            notes = self.notes(&calls.cognito).await;
            let self_user = self.hosts.settings.self_user.as_deref();
            context_read = notes
                .as_deref()
                .and_then(|notes| notes::find_context(notes, self_user))
                .and_then(notes::context_read_at);
        }
        // What the host says of its tags is a hint (`cognito.md` 3.4): enough to save a call where an enrichment reads
        // them again before it writes.
        let hint = self.case(&host, host.tags.clone(), context_read);
        if !urgent && hint.decision.act == Act::Leave && hint.decision.enrich {
            return self.enrich(&calls, &host, notes).await;
        }
        let Some(tags) = calls.cognito.tags(host.id).await? else { return Ok(Ended::Done("gone")) };
        let case = self.case(&host, tags, context_read);
        if urgent
            && case.decision.act == Act::Leave
            && let Some(ended) = self.seek(&case).await?
        {
            return Ok(ended);
        }
        match (case.decision.act, case.decision.enrich) {
            (Act::Leave, true) if urgent => Ok(Ended::Normal),
            (Act::Leave, true) => self.enrich(&calls, &host, notes).await,
            (Act::Leave, false) => Ok(Ended::Done("nothing")),
            _ => self.contain(case).await,
        }
    }

    /// An event that follows an action asks Defender first: while the action is open nobody else need be asked.
    async fn still_open(&self, calls: &Calls) -> Result<Option<Ended>, Failed> {
        let progress = self.progress();
        let Some(id) = &progress.action_id else { return Ok(None) };
        let Some(action) = calls.defender.machine_action(id).await? else { return Ok(None) };
        let machine_id = action.machine_id.clone().unwrap_or_default();
        if act::follow(&action, &machine_id) != Some(act::Progress::Open) {
            return Ok(None);
        }
        let looks = progress.looks + 1;
        if let Some(after) = delays::look(looks) {
            return Ok(Some(Ended::Later("following", after, Progress { looks, ..progress })));
        }
        let want = if action.is_isolate() { Want::Isolate } else { Want::Release };
        let subject = Subject { machine_id: Some(&machine_id), ..Subject::of(self.brain(), self.event.host_id, None) };
        self.tell(calls, &subject, &Told::StillOpen { want, action: &action }).await;
        Ok(Some(Ended::Done("not_followed")))
    }

    /// Adds an action note to the host, unless it is there. Best effort.
    async fn tell(&self, calls: &Calls, subject: &Subject<'_>, told: &Told<'_>) {
        let Some(present) = self.notes(&calls.cognito).await else { return };
        let note = notes::action(&self.hosts.settings.policy, subject, told, &self.event.event_id);
        self.action_note(&calls.cognito, &present, &note).await;
    }

    fn brain(&self) -> &str {
        &self.hosts.settings.brain
    }

    /// The clients: containment's calls come before all others.
    fn calls(&self, containment: bool) -> Calls {
        let (priority, limits) = if containment {
            (Priority::Containment, Limits::containment())
        } else {
            (Priority::Normal, Limits::default())
        };
        let session = |credentials: &defender::Credentials| {
            self.hosts.defender.session(credentials.clone(), self.deadline, limits)
        };
        let (reading, response) = (session(&self.hosts.settings.credentials), &self.hosts.settings.response);
        Calls {
            cognito: self.hosts.cognito.session(priority, self.deadline),
            defender: match response {
                Some(response) => reading.acting_as(&session(response)),
                None => reading,
            },
        }
    }

    /// A dead letter leaves a note: the trigger is still there, and an analyst wonders why nothing happens. Best effort.
    async fn note_given_up(&self, what: &str) {
        let calls = self.calls(false);
        let Ok(Some(tags)) = calls.cognito.tags(self.event.host_id).await else { return };
        let policy = &self.hosts.settings.policy;
        let has = |tag: &Option<String>| tag.as_ref().is_some_and(|tag| tags.contains(tag));
        let want = match (has(&policy.block), has(&policy.unblock)) {
            (true, _) => Some(Want::Isolate),
            (false, true) => Some(Want::Release),
            (false, false) => None,
        };
        let subject = Subject::of(self.brain(), self.event.host_id, None);
        self.tell(&calls, &subject, &Told::GivenUp { want, error: what }).await;
    }

    fn progress(&self) -> Progress {
        self.event.progress.clone().unwrap_or_default()
    }

    /// Whether an operator asked for the release on the command line.
    fn is_operators_release(&self) -> bool {
        matches!(self.event.hint, Some(Hint::Release { .. }))
    }
}

impl From<CognitoError> for Failed {
    fn from(error: CognitoError) -> Self {
        let failure = match error.class() {
            cognito::Class::Configuration => Failure::CognitoReadRefused,
            cognito::Class::Gone => Failure::HostGone,
            cognito::Class::Transient | cognito::Class::Permanent => Failure::CognitoTransient,
        };
        Self { after: error.retry_after(), ..Self::of(failure, error) }
    }
}

impl From<DefenderError> for Failed {
    fn from(error: DefenderError) -> Self {
        use defender::Kind;
        let failure = match error.kind() {
            Kind::TokenRefused { .. }
            | Kind::TokenTenantUnknown
            | Kind::Unauthorized
            | Kind::Forbidden
            | Kind::Certificate { .. } => Failure::DefenderConfiguration,
            _ => Failure::DefenderTransient,
        };
        Self { after: error.retry_after(), ..Self::of(failure, error) }
    }
}
