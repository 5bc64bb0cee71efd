//! The name and unit of every metric, and the Prometheus text of `/metrics`. Label sets are bounded: routes, kinds,
//! outcomes and families are constants of the code. The README has a table of all of them ([`Metrics::names`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::load::Load;
use crate::broker::{Health, Lane, Queue, Style};

/// Upper bounds of the duration histograms in seconds: from an answer out of memory to the deadline of a relay call.
const SECONDS: [f64; 13] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 50.0];

/// Upper bounds of the time to containment in seconds: the goal is 10 s, and what fails is tried for half an hour and more.
const CONTAINMENT_SECONDS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 60.0, 300.0, 1800.0];

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    route: &'static str,
    outcome: &'static str,
}

/// Labels of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Job {
    job: &'static str,
    outcome: &'static str,
}

/// Labels of a call to a vendor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    family: &'static str,
    outcome: &'static str,
}

/// Labels of a host event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostEvent {
    outcome: &'static str,
    reason: &'static str,
}

/// Labels of a sweep or of a look into a feed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Search {
    search: &'static str,
    outcome: &'static str,
}

/// Labels of host events that the bridge publishes by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OwnEvent {
    source: &'static str,
    lane: &'static str,
}

/// Labels of one lane of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLane {
    queue: &'static str,
    lane: &'static str,
}

/// Labels of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueName {
    queue: &'static str,
}

/// Labels of a delivery: the first of its message, or another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    queue: &'static str,
    attempt: &'static str,
}

/// Labels of a message that nobody could work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dead {
    queue: &'static str,
    cause: String,
}

/// Labels of an act of containment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Containment {
    source: &'static str,
    action: &'static str,
    outcome: &'static str,
    reason: &'static str,
}

/// Labels of a time to containment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

/// Labels of a family of calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyName {
    family: &'static str,
}

/// Labels of a tag that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Repair {
    fault: &'static str,
}

/// Labels of an outcome alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Labels of a permit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Permit {
    class: &'static str,
}

/// Labels of an answer out of a circuit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Circuit {
    family: &'static str,
}

/// Labels of a window of the quota.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuotaWindow {
    family: &'static str,
    window: &'static str,
}

/// Labels of a family of calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallFamily {
    family: &'static str,
}

/// Labels of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cache {
    outcome: &'static str,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// The registries of a process, and the names in them.
#[derive(Debug)]
struct Registrar {
    /// Ours.
    bridge: Registry,
    /// What every program calls the same.
    process: Registry,
    names: Vec<String>,
}

impl Registrar {
    fn new() -> Self {
        Self { bridge: Registry::with_prefix("bridge"), process: Registry::default(), names: Vec::new() }
    }

    fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.names.push(format!("bridge_{name}{}", suffix(&metric)));
        self.bridge.register(name, help, metric);
    }

    fn register_of_process(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.names.push(format!("{name}{}", suffix(&metric)));
        self.process.register(name, help, metric);
    }
}

/// What the text form adds to a metric's name.
fn suffix(metric: &impl EncodeMetric) -> &'static str {
    match metric.metric_type().as_str() {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    }
}

/// All metrics of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registrar>,
    load: Load,
    requests: Durations<Request>,
    host_events: Family<HostEvent, Counter>,
    jobs: Durations<Job>,
    waits: Durations<QueueLane>,
    attempts: Family<Attempt, Counter>,
    died: Family<Dead, Counter>,
    calls: Family<Call, Counter>,
    call_times: Durations<FamilyName>,
    answers: Family<Cache, Counter>,
    circuits: Family<Circuit, Counter>,
    searches: Family<Search, Counter>,
    own_events: Family<OwnEvent, Counter>,
    in_hands: Family<QueueName, Gauge<i64, AtomicI64>>,
    slots: Family<QueueName, Gauge<i64, AtomicI64>>,
    oldest: Family<QueueLane, Gauge<f64, AtomicU64>>,
    useful_workers: Gauge<i64, AtomicI64>,
    permits_waiting: Gauge<i64, AtomicI64>,
    connected: Gauge<i64, AtomicI64>,
    ready: Family<QueueLane, Gauge<i64, AtomicI64>>,
    receivers: Family<QueueLane, Gauge<i64, AtomicI64>>,
    dead: Family<QueueName, Gauge<i64, AtomicI64>>,
    permits: Durations<Permit>,
    cognito_rate: Gauge<f64, AtomicU64>,
    cognito_throttled: Counter<f64, AtomicU64>,
    containments: Family<Containment, Counter>,
    containment_times: Durations<Action>,
    repairs: Family<Repair, Counter>,
    oldest_trigger: Gauge<f64, AtomicU64>,
    defender_permits: Durations<Permit>,
    defender_throttled: Family<CallFamily, Counter<f64, AtomicU64>>,
    quota_used: Family<QuotaWindow, Gauge<i64, AtomicI64>>,
    quota_left: Family<QuotaWindow, Gauge<i64, AtomicI64>>,
    notifications: Family<Outcome, Counter>,
    reservations: Family<Outcome, Counter>,
    isolated: Gauge<i64, AtomicI64>,
    paused: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut registry = Registrar::new();
        let metrics = Self {
            registry: Arc::new(Registrar::new()),
            load: Load::default(),
            requests: Family::new_with_constructor(histogram),
            host_events: Family::default(),
            jobs: Family::new_with_constructor(histogram),
            waits: Family::new_with_constructor(histogram),
            attempts: Family::default(),
            died: Family::default(),
            calls: Family::default(),
            call_times: Family::new_with_constructor(histogram),
            answers: Family::default(),
            circuits: Family::default(),
            searches: Family::default(),
            own_events: Family::default(),
            in_hands: Family::default(),
            slots: Family::default(),
            oldest: Family::default(),
            useful_workers: Gauge::default(),
            permits_waiting: Gauge::default(),
            connected: Gauge::default(),
            ready: Family::default(),
            receivers: Family::default(),
            dead: Family::default(),
            permits: Family::new_with_constructor(histogram),
            cognito_rate: Gauge::default(),
            cognito_throttled: Counter::default(),
            containments: Family::default(),
            containment_times: Family::new_with_constructor(|| Histogram::new(CONTAINMENT_SECONDS)),
            repairs: Family::default(),
            oldest_trigger: Gauge::default(),
            defender_permits: Family::new_with_constructor(histogram),
            defender_throttled: Family::default(),
            quota_used: Family::default(),
            quota_left: Family::default(),
            notifications: Family::default(),
            reservations: Family::default(),
            isolated: Gauge::default(),
            paused: Gauge::default(),
        };
        registry.register(
            "request_duration_seconds",
            "Requests to the ingress, by route and outcome (ok, or the code of the first error)",
            metrics.requests.clone(),
        );
        registry.register(
            "webhook_events",
            "Host events received, by outcome and reason (accepted, duplicate: their kind; ignored: why; rejected: the fault)",
            metrics.host_events.clone(),
        );
        registry.register(
            "job_duration_seconds",
            "Jobs worked, by kind and outcome, from receipt to settlement",
            metrics.jobs.clone(),
        );
        registry.register(
            "job_wait_seconds",
            "Time from a message's publishing until a worker took it for the first time, by queue and lane",
            metrics.waits.clone(),
        );
        registry.register(
            "job_attempts",
            "Jobs taken, by queue and attempt (first, again: after a failure or a worker's death)",
            metrics.attempts.clone(),
        );
        registry.register("jobs_died", "Messages that became dead letters, by queue and cause", metrics.died.clone());
        registry.register(
            "outbound_calls",
            "Calls that left for Microsoft or Cognito, each try counted, by family and outcome (a status class or an error)",
            metrics.calls.clone(),
        );
        registry.register(
            "outbound_call_duration_seconds",
            "Time of each try of a call, without its wait for a permit, by family",
            metrics.call_times.clone(),
        );
        registry.register(
            "answers_from_cache",
            "Observables looked up among answers kept in memory, by outcome (hit, miss)",
            metrics.answers.clone(),
        );
        registry.register(
            "circuit_answers",
            "Calls to Microsoft that were answered from memory because the same had just failed for good, by family",
            metrics.circuits.clone(),
        );
        registry.register(
            "searches",
            "Looks into Cognito for hosts, by kind (sweep, or the feed's name) and outcome (ok, failed, off)",
            metrics.searches.clone(),
        );
        registry.register(
            "own_events",
            "Host events that the bridge published by itself, by source (sweep, feed, poll) and lane",
            metrics.own_events.clone(),
        );
        registry.register("jobs_in_hands", "Jobs being worked now, by queue", metrics.in_hands.clone());
        registry.register("job_slots", "Jobs that this process works at a time, by queue", metrics.slots.clone());
        registry.register(
            "queue_oldest_age_seconds",
            "Bound of the age of the oldest new message that waits, as this worker knows it: the least of all workers holds",
            metrics.oldest.clone(),
        );
        registry.register(
            "useful_workers",
            "Workers that would be busy now: jobs that wait or are in hands, less the share held up by quotas",
            metrics.useful_workers.clone(),
        );
        registry.register(
            "permits_waiting",
            "Calls of this process that wait for a permit of Defender's quota or Cognito's rate",
            metrics.permits_waiting.clone(),
        );
        registry.register("broker_connected", "1 while the broker can be reached", metrics.connected.clone());
        registry.register("queue_ready", "Messages waiting for a worker", metrics.ready.clone());
        registry.register("queue_receivers", "Receivers in the whole deployment", metrics.receivers.clone());
        registry.register("dead_letters", "Messages that nobody could work", metrics.dead.clone());
        registry.register(
            "cognito_permit_wait_seconds",
            "Time that calls to Cognito waited for the deployment's rate, by class (containment, normal)",
            metrics.permits.clone(),
        );
        registry.register(
            "cognito_rate",
            "Calls to Cognito a second that this process grants, when it is the one that does",
            metrics.cognito_rate.clone(),
        );
        registry.register(
            "cognito_throttled_seconds",
            "Time that Cognito asked this process to be left alone",
            metrics.cognito_throttled.clone(),
        );
        registry.register(
            "containments",
            "What became of isolations and releases, by source (hosts, relay), action, outcome and reason",
            metrics.containments.clone(),
        );
        registry.register(
            "containment_seconds",
            "Time from the receipt of an event until Defender took the request, by action; without what brake or caps held back",
            metrics.containment_times.clone(),
        );
        registry.register(
            "tag_repairs",
            "Tags that were not as they had just been written, and were written again, by fault (lost, missing, remaining)",
            metrics.repairs.clone(),
        );
        registry.register(
            "oldest_trigger_seconds",
            "How long the sweep of this process has seen the oldest block or unblock tag that is still there",
            metrics.oldest_trigger.clone(),
        );
        registry.register(
            "defender_permit_wait_seconds",
            "Time that calls to Defender and Graph waited for the deployment's quota, by class (containment, lookup)",
            metrics.defender_permits.clone(),
        );
        registry.register(
            "defender_throttled_seconds",
            "Time for which Defender or Graph told this process to rest, by family",
            metrics.defender_throttled.clone(),
        );
        registry.register(
            "defender_quota_used",
            "Calls that count in a window (minute, hour) of a family's quota, of the account with least left in it; from \
             the process that counts for the deployment",
            metrics.quota_used.clone(),
        );
        registry.register(
            "defender_quota_left",
            "Calls that are left in a window of a family's quota, of the account with least left in it",
            metrics.quota_left.clone(),
        );
        registry.register(
            "notifications",
            "Notifications, by outcome of each try (sent, failed, given_up)",
            metrics.notifications.clone(),
        );
        registry.register(
            "isolation_reservations",
            "Isolations asked for, by outcome (granted, or why not)",
            metrics.reservations.clone(),
        );
        registry.register(
            "isolated_machines",
            "Machines that the bridge has isolated, in the whole deployment",
            metrics.isolated.clone(),
        );
        registry.register("isolations_paused", "1 while the emergency brake is on", metrics.paused.clone());
        registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_of_process(
            "process_start_time_seconds",
            "When the process began, in seconds since 1970",
            ConstGauge::new(Timestamp::now().as_millisecond() as f64 / 1000.0),
        );
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn request(&self, route: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&Request { route, outcome }).observe(took.as_secs_f64());
    }

    /// Host events were received: `accepted` and `duplicate` with their kind as the reason, `ignored` with why, `rejected`
    /// with the code of the fault.
    pub fn host_events(&self, outcome: &'static str, reason: &'static str, count: u64) {
        self.host_events.get_or_create(&HostEvent { outcome, reason }).inc_by(count);
    }

    /// The names of all metrics as `/metrics` shows them, without the suffixes of a histogram's parts.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.registry.names
    }

    /// This process takes jobs of `queue` from now on, so many at a time. `scales`: more workers would do them sooner.
    pub fn takes(&self, queue: &'static Queue, slots: u16, scales: bool) {
        self.slots.get_or_create(&QueueName { queue: queue.name }).set(slots.into());
        self.load.takes(queue.name, slots, scales);
    }

    /// A job is in this process's hands until the returned guard is dropped. `published` is when its message was;
    /// `attempt` begins at 1.
    #[must_use]
    pub fn job_begins(&self, queue: &'static Queue, lane: Lane, published: Timestamp, attempt: u32) -> InHands {
        let labels = QueueLane { queue: queue.name, lane: lane.as_str() };
        // A message that was taken before waited for other reasons than that nobody had time. Requests never do.
        let newer = self.load.taken(queue.name, lane, published);
        if attempt == 1 && (newer || queue.style == Style::Ask) {
            let waited = Duration::try_from(Timestamp::now().duration_since(published)).unwrap_or_default();
            self.waits.get_or_create(&labels).observe(waited.as_secs_f64());
        }
        let attempt = if attempt == 1 { "first" } else { "again" };
        self.attempts.get_or_create(&Attempt { queue: queue.name, attempt }).inc();
        let in_hands = self.in_hands.get_or_create(&QueueName { queue: queue.name }).clone();
        InHands::new(in_hands)
    }

    /// A message became a dead letter. `cause` is one of the code's constants.
    pub fn job_died(&self, queue: &'static str, cause: &str) {
        self.died.get_or_create(&Dead { queue, cause: cause.to_owned() }).inc();
    }

    /// A job was settled.
    pub fn job(&self, job: &'static str, outcome: &'static str, took: Duration) {
        self.jobs.get_or_create(&Job { job, outcome }).observe(took.as_secs_f64());
    }

    /// A call left for a vendor and came back, or did not.
    pub fn call(&self, family: &'static str, outcome: &'static str, took: Duration) {
        self.calls.get_or_create(&Call { family, outcome }).inc();
        self.call_times.get_or_create(&FamilyName { family }).observe(took.as_secs_f64());
    }

    /// A call waits for its permit until the returned guard is dropped.
    #[must_use]
    pub fn waits_for_permit(&self) -> InHands {
        InHands::new(self.permits_waiting.clone())
    }

    /// A look into Cognito for hosts has ended.
    pub fn search(&self, search: &'static str, outcome: &'static str) {
        self.searches.get_or_create(&Search { search, outcome }).inc();
    }

    /// A host event that nobody sent was published.
    pub fn own_event(&self, source: &'static str, lane: &'static str) {
        self.own_events.get_or_create(&OwnEvent { source, lane }).inc();
    }

    /// Answers were looked up in memory.
    pub fn answers(&self, hits: usize, misses: usize) {
        self.answers.get_or_create(&Cache { outcome: "hit" }).inc_by(hits as u64);
        self.answers.get_or_create(&Cache { outcome: "miss" }).inc_by(misses as u64);
    }

    /// A call was answered by an open circuit.
    pub fn circuit(&self, family: &'static str) {
        self.circuits.get_or_create(&Circuit { family }).inc();
    }

    /// A call to Cognito got its permit.
    pub fn cognito_permit(&self, class: &'static str, waited: Duration) {
        self.permits.get_or_create(&Permit { class }).observe(waited.as_secs_f64());
    }

    /// So many calls to Cognito a second are granted.
    pub fn cognito_rate(&self, per_second: f64) {
        self.cognito_rate.set(per_second);
    }

    /// Cognito asked to be left alone for so long.
    pub fn cognito_throttled(&self, hold: Duration) {
        self.cognito_throttled.inc_by(hold.as_secs_f64());
    }

    /// Something became of a wish to isolate or release; `super::audit` has the words.
    pub(super) fn containment(
        &self,
        source: &'static str,
        action: &'static str,
        outcome: &'static str,
        reason: &'static str,
    ) {
        self.containments.get_or_create(&Containment { source, action, outcome, reason }).inc();
    }

    /// Defender took a request so long after the event that asked for it was received.
    pub fn contained(&self, action: &'static str, took: Duration) {
        self.containment_times.get_or_create(&Action { action }).observe(took.as_secs_f64());
    }

    /// So many tags were not as they had been written: foreign ones lost, ours missing, ours remaining.
    pub fn tag_repairs(&self, lost: usize, missing: usize, remaining: usize) {
        for (fault, count) in [("lost", lost), ("missing", missing), ("remaining", remaining)] {
            self.repairs.get_or_create(&Repair { fault }).inc_by(count as u64);
        }
    }

    /// The oldest block or unblock tag that a sweep found was first seen so long ago; `None`: there is none.
    pub fn oldest_trigger(&self, age: Option<Duration>) {
        self.oldest_trigger.set(age.unwrap_or_default().as_secs_f64());
    }

    /// A call to Defender or Graph got its permit, or was refused one.
    pub fn defender_permit(&self, class: &'static str, waited: Duration) {
        self.defender_permits.get_or_create(&Permit { class }).observe(waited.as_secs_f64());
    }

    /// Defender or Graph throttled a family, for so long.
    pub fn defender_throttled(&self, family: &'static str, rest: Duration) {
        self.defender_throttled.get_or_create(&CallFamily { family }).inc_by(rest.as_secs_f64());
    }

    /// How full a window of the quota is, as the process that counts knows it.
    pub fn defender_quota(&self, family: &'static str, window: &'static str, used: u32, left: u32) {
        let labels = QuotaWindow { family, window };
        self.quota_used.get_or_create(&labels).set(i64::from(used));
        self.quota_left.get_or_create(&labels).set(i64::from(left));
    }

    /// This process does not count for the deployment any more.
    pub fn no_defender_quota(&self) {
        self.quota_used.clear();
        self.quota_left.clear();
    }

    /// A notification was tried.
    pub fn notification(&self, outcome: &'static str) {
        self.notifications.get_or_create(&Outcome { outcome }).inc();
    }

    /// An isolation was asked for.
    pub fn isolation_reservation(&self, outcome: &'static str) {
        self.reservations.get_or_create(&Outcome { outcome }).inc();
    }

    /// So many machines are isolated.
    pub fn isolated(&self, machines: usize) {
        self.isolated.set(i64::try_from(machines).unwrap_or(i64::MAX));
    }

    /// Whether isolations are paused.
    pub fn isolations_paused(&self, paused: bool) {
        self.paused.set(i64::from(paused));
    }

    /// The Prometheus text, with the queue as `health` shows it.
    #[must_use]
    pub fn render(&self, health: &Health) -> String {
        self.connected.set(i64::from(health.connected));
        for depth in &health.queues {
            let labels = QueueLane { queue: depth.queue, lane: depth.lane.as_str() };
            self.ready.get_or_create(&labels).set(i64::try_from(depth.ready).unwrap_or(i64::MAX));
            self.receivers.get_or_create(&labels).set(i64::try_from(depth.receivers).unwrap_or(i64::MAX));
            let labels = QueueName { queue: depth.queue };
            self.dead.get_or_create(&labels).set(i64::try_from(depth.dead).unwrap_or(i64::MAX));
        }
        self.show_load(health);
        let Registrar { bridge, process, .. } = &*self.registry;
        let mut text = String::new();
        encode_registry(&mut text, bridge)
            .and_then(|()| encode_registry(&mut text, process))
            .and_then(|()| encode_eof(&mut text))
            .expect("writing to a string does not fail");
        text
    }

    fn show_load(&self, health: &Health) {
        for (queue, lane, age) in self.load.ages(&health.queues, Timestamp::now()) {
            self.oldest.get_or_create(&QueueLane { queue, lane: lane.as_str() }).set(age.as_secs_f64());
        }
        let in_hands = |queue| self.in_hands.get_or_create(&QueueName { queue }).get().max(0) as u64;
        let waiting = self.permits_waiting.get().max(0) as u64;
        self.useful_workers
            .set(self.load.useful_workers(&health.queues, in_hands, waiting).try_into().unwrap_or(i64::MAX));
    }
}

/// Counts a job, or a call that waits, while it lives.
#[derive(Debug)]
pub struct InHands(Gauge<i64, AtomicI64>);

impl InHands {
    fn new(gauge: Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InHands {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{QueueDepth, Spread};

    static RELAY: Queue = Queue { name: "relay", style: Style::Ask, spread: Spread::Gather };

    #[test]
    fn the_text_holds_what_was_counted() {
        let metrics = Metrics::default();
        metrics.request("/health", "ok", Duration::from_millis(3));
        metrics.host_events("ignored", "unknown_kind", 2);
        metrics.call("hunting", "2xx", Duration::from_millis(20));
        metrics.cognito_permit("containment", Duration::from_millis(3));
        metrics.defender_permit("lookup", Duration::from_millis(3));
        metrics.defender_throttled("hunting", Duration::from_secs(5));
        metrics.defender_quota("alerts", "minute", 7, 73);
        metrics.isolation_reservation("rate_limited");
        metrics.isolated(4);
        metrics.isolations_paused(true);
        metrics.takes(&RELAY, 64, true);
        let in_hands = metrics.job_begins(&RELAY, Lane::Normal, Timestamp::now(), 1);
        metrics.containment("hosts", "isolate", "denied", "protected");
        metrics.tag_repairs(2, 0, 1);
        let depth = QueueDepth { queue: "relay", lane: Lane::Normal, ready: 7, receivers: 2, dead: 0 };
        let health = Health { connected: true, blocked: None, queues: vec![depth] };
        let text = metrics.render(&health);
        for line in [
            "bridge_request_duration_seconds_count{route=\"/health\",outcome=\"ok\"} 1",
            "bridge_webhook_events_total{outcome=\"ignored\",reason=\"unknown_kind\"} 2",
            "bridge_outbound_calls_total{family=\"hunting\",outcome=\"2xx\"} 1",
            "bridge_jobs_in_hands{queue=\"relay\"} 1",
            "bridge_job_attempts_total{queue=\"relay\",attempt=\"first\"} 1",
            "bridge_job_wait_seconds_count{queue=\"relay\",lane=\"normal\"} 1",
            "bridge_containments_total{source=\"hosts\",action=\"isolate\",outcome=\"denied\",reason=\"protected\"} 1",
            "bridge_tag_repairs_total{fault=\"lost\"} 2",
            "bridge_useful_workers 1",
            concat!("bridge_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# TYPE process_start_time_seconds gauge",
            "bridge_cognito_permit_wait_seconds_count{class=\"containment\"} 1",
            "bridge_defender_permit_wait_seconds_count{class=\"lookup\"} 1",
            "bridge_defender_throttled_seconds_total{family=\"hunting\"} 5",
            "bridge_defender_quota_used{family=\"alerts\",window=\"minute\"} 7",
            "bridge_defender_quota_left{family=\"alerts\",window=\"minute\"} 73",
            "bridge_isolation_reservations_total{outcome=\"rate_limited\"} 1",
            "bridge_isolated_machines 4",
            "bridge_isolations_paused 1",
            "bridge_queue_ready{queue=\"relay\",lane=\"normal\"} 7",
            "bridge_broker_connected 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(in_hands);
        assert!(metrics.render(&Health::default()).contains("bridge_jobs_in_hands{queue=\"relay\"} 0"));
    }
}
