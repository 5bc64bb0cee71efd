//! The name and unit of every metric, and the Prometheus text of `/metrics`. Label sets are bounded: routes, kinds,
//! outcomes and families are constants of the code.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::broker::Health;

/// Upper bounds of the duration histograms in seconds: from an answer out of memory to the deadline of a relay call.
const SECONDS: [f64; 13] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 50.0];

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

/// Labels of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cache {
    outcome: &'static str,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Durations<Request>,
    host_events: Family<HostEvent, Counter>,
    jobs: Durations<Job>,
    waits: Histogram,
    calls: Family<Call, Counter>,
    answers: Family<Cache, Counter>,
    circuits: Family<Circuit, Counter>,
    searches: Family<Search, Counter>,
    own_events: Family<OwnEvent, Counter>,
    in_hands: Gauge<i64, AtomicI64>,
    connected: Gauge<i64, AtomicI64>,
    ready: Family<QueueLane, Gauge<i64, AtomicI64>>,
    receivers: Family<QueueLane, Gauge<i64, AtomicI64>>,
    dead: Family<QueueName, Gauge<i64, AtomicI64>>,
    permits: Durations<Permit>,
    cognito_rate: Gauge<f64, AtomicU64>,
    reservations: Family<Outcome, Counter>,
    isolated: Gauge<i64, AtomicI64>,
    paused: Gauge<i64, AtomicI64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut registry = Registry::with_prefix("bridge");
        let metrics = Self {
            registry: Arc::default(),
            requests: Family::new_with_constructor(histogram),
            host_events: Family::default(),
            jobs: Family::new_with_constructor(histogram),
            waits: histogram(),
            calls: Family::default(),
            answers: Family::default(),
            circuits: Family::default(),
            searches: Family::default(),
            own_events: Family::default(),
            in_hands: Gauge::default(),
            connected: Gauge::default(),
            ready: Family::default(),
            receivers: Family::default(),
            dead: Family::default(),
            permits: Family::new_with_constructor(histogram),
            cognito_rate: Gauge::default(),
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
            "Time jobs spent in the queue before a worker took them",
            metrics.waits.clone(),
        );
        registry.register(
            "outbound_calls",
            "Calls that left for Microsoft, each try counted, by family and outcome (a status class or an error)",
            metrics.calls.clone(),
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
        registry.register("jobs_in_hands", "Jobs being worked now", metrics.in_hands.clone());
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

    /// A job is in this process's hands until the returned guard is dropped.
    #[must_use]
    pub fn job_begins(&self, waited: Duration) -> JobInHands {
        self.waits.observe(waited.as_secs_f64());
        self.in_hands.inc();
        JobInHands(self.in_hands.clone())
    }

    /// A job was settled.
    pub fn job(&self, job: &'static str, outcome: &'static str, took: Duration) {
        self.jobs.get_or_create(&Job { job, outcome }).observe(took.as_secs_f64());
    }

    /// A call left for a vendor and came back, or did not.
    pub fn call(&self, family: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&Call { family, outcome }).inc();
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
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

/// Counts a job as being in hands while it lives.
#[derive(Debug)]
pub struct JobInHands(Gauge<i64, AtomicI64>);

impl Drop for JobInHands {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Lane, QueueDepth};

    #[test]
    fn the_text_holds_what_was_counted() {
        let metrics = Metrics::default();
        metrics.request("/health", "ok", Duration::from_millis(3));
        metrics.host_events("ignored", "unknown_kind", 2);
        metrics.call("hunting", "2xx");
        metrics.cognito_permit("containment", Duration::from_millis(3));
        metrics.isolation_reservation("rate_limited");
        metrics.isolated(4);
        metrics.isolations_paused(true);
        let in_hands = metrics.job_begins(Duration::from_secs(1));
        let depth = QueueDepth { queue: "relay", lane: Lane::Normal, ready: 7, receivers: 2, dead: 0 };
        let health = Health { connected: true, blocked: None, queues: vec![depth] };
        let text = metrics.render(&health);
        for line in [
            "bridge_request_duration_seconds_count{route=\"/health\",outcome=\"ok\"} 1",
            "bridge_webhook_events_total{outcome=\"ignored\",reason=\"unknown_kind\"} 2",
            "bridge_outbound_calls_total{family=\"hunting\",outcome=\"2xx\"} 1",
            "bridge_jobs_in_hands 1",
            "bridge_cognito_permit_wait_seconds_count{class=\"containment\"} 1",
            "bridge_isolation_reservations_total{outcome=\"rate_limited\"} 1",
            "bridge_isolated_machines 4",
            "bridge_isolations_paused 1",
            "bridge_queue_ready{queue=\"relay\",lane=\"normal\"} 7",
            "bridge_broker_connected 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(in_hands);
        assert!(metrics.render(&Health::default()).contains("bridge_jobs_in_hands 0"));
    }
}
