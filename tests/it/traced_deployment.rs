//! What a collector gets from a whole deployment under load, in three processes on RabbitMQ: each of a thousand mixed
//! requests and events is one trace with one root, in which every parent is there, that crosses the queue and reaches
//! the services behind it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::broker::{Broker as _, Message};
use defender_bridge::job::{HOSTS, TOPOLOGY};
use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BRAIN_USER, BrainData, BrainSettings};
use defender_bridge::simulator::scenario::{
    C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, PHISHING_DOMAIN, UNSEEN_DOMAIN,
};
use defender_bridge::simulator::{self, Fault, Matcher, Simulator};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::bridge::{client, demo_token, observable_list};
use super::collector::{Collector, Span, roots_and_orphans};
use super::namespaces::{rabbitmq_settings, rabbitmq_url};
use super::spawned::{PATIENCE, Role, Spawned};

const WEBHOOK_TOKEN: &str = "a-token-of-more-than-thirty-two-characters";

/// Requests and events in all, and how many of them are events about hosts.
const ALL: usize = 1_000;
const EVENTS: usize = 250;

/// Events that ask for an isolation, whose end takes delayed checks.
const BLOCKS: usize = 10;

/// Reads of hosts that Cognito refuses, so that as many events are tried again by their messages.
const REFUSED_READS: u32 = 3;

/// Messages that nobody can work, redriven once.
const DEAD: usize = 20;

/// Requests at a time.
const CALLERS: usize = 32;

/// Traces by their ids.
type Traces = BTreeMap<String, Vec<Span>>;

struct World {
    simulator: Simulator,
    collector: Collector,
    namespace: String,
    ingress: Spawned,
    workers: [Spawned; 2],
    /// Ids of the brain's hosts.
    hosts: Vec<u64>,
}

impl World {
    async fn start() -> Self {
        let brain = BrainSettings { data: BrainData::Empty, ..BrainSettings::default() };
        let settings = simulator::Settings { quota: None, record_limit: 200_000, brain, ..Default::default() };
        let (simulator, collector) = (Simulator::start(settings).await.expect("a simulator"), Collector::start().await);
        let hosts = simulator.control().brain().add_bulk(DEMO_TENANT_ID, EVENTS, 0, 7).expect("the demo tenant");
        let namespace = rabbitmq_settings("traces", &TOPOLOGY).namespace;
        let role = |name| Self::role(name, &simulator.url(), &namespace, &collector.url());
        let (ingress, one, two) = tokio::join!(role("ingress").start(), role("worker").start(), role("worker").start());
        let hosts = hosts.iter().map(|host| host.id).collect();
        Self { simulator, collector, namespace, ingress, workers: [one, two], hosts }
    }

    fn role(name: &'static str, upstream: &str, namespace: &str, collector: &str) -> Role {
        Role::new(name).upstream(upstream).set_all(&[
            ("BRIDGE_BROKER_URL", rabbitmq_url().as_str()),
            ("BRIDGE_BROKER_NAMESPACE", namespace),
            ("COGNITO_BRAIN", upstream),
            ("COGNITO_TOKEN", BRAIN_TOKEN),
            ("BRIDGE_COGNITO_SELF_USER", BRAIN_USER),
            ("BRIDGE_COGNITO_RATE", "1000"),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
            ("BRIDGE_TAG_ENRICH", "host_context"),
            ("BRIDGE_TAG_BLOCK", "block"),
            ("BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR", "1000"),
            // The events are told by the webhook alone, so that each host has one.
            ("BRIDGE_SWEEP_INTERVAL", "0"),
            ("BRIDGE_FEED_INTERVAL", "0"),
            ("BRIDGE_WEBHOOK_TOKEN", WEBHOOK_TOKEN),
            ("BRIDGE_WEBHOOK_RATE", "100000"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector),
            // A thousand traces at once are more than the exporter's queue holds unless told.
            ("OTEL_BSP_MAX_QUEUE_SIZE", "200000"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
            ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ])
    }

    /// Request number `number` of [`ALL`].
    fn request(&self, number: usize) -> reqwest::RequestBuilder {
        let post = |path: &str| client().post(self.ingress.url(path)).bearer_auth(demo_token());
        if number < EVENTS {
            let (host, tag) = (self.hosts[number], if number < BLOCKS { "block" } else { "host_context" });
            self.simulator.control().brain().add_tag(host, tag, "analyst.one").expect("a new tag");
            let event =
                json!({"type": "host.tag.added", "id": format!("e-{number}"), "host": {"id": host}, "tag": tag});
            return client().post(self.ingress.url("/webhooks/cognito")).bearer_auth(WEBHOOK_TOKEN).json(&event);
        }
        match number % 10 {
            0 => post("/health"),
            1 => post("/version"),
            2 => post("/observe/observables").body("{"),
            3 => client().post(self.ingress.url("/observe/observables")).bearer_auth("no.such.token").body("[]"),
            4 | 5 => post("/observe/observables").json(&observable_list(&[("domain", UNSEEN_DOMAIN)])),
            6 => post("/observe/observables").json(&observable_list(&[("ip", C2_ADDRESS)])),
            _ => post("/observe/observables").json(&observable_list(&[("domain", PHISHING_DOMAIN)])),
        }
    }

    /// Sends everything, [`CALLERS`] at a time; which number has which trace.
    async fn send_all(&self) -> BTreeMap<usize, String> {
        let mut told = BTreeMap::new();
        let mut callers = JoinSet::new();
        for number in 0..ALL {
            if callers.len() == CALLERS {
                let (number, trace) = callers.join_next().await.expect("one of them").expect("no panic");
                told.insert(number, trace);
            }
            let request = self.request(number);
            callers.spawn(async move {
                let answer = request.send().await.expect("the ingress answers");
                (number, answer.headers()["traceresponse"].to_str().expect("ASCII")[3..35].to_owned())
            });
        }
        told.extend(callers.join_all().await);
        told
    }

    /// Buries messages that nobody can work, each of a trace of its own, and redrives them; returns their old traces.
    async fn redrive(&self) -> BTreeSet<String> {
        let broker = RabbitMq::connect(rabbitmq::Settings {
            urls: vec![rabbitmq_url()],
            namespace: self.namespace.clone(),
            connection_name: "test".to_owned(),
            topology: &TOPOLOGY,
        })
        .await
        .expect("the broker");
        let dead =
            async || broker.check().await.queues.iter().find(|row| row.queue == HOSTS.name).map_or(0, |row| row.dead);
        let mut old = BTreeSet::new();
        for number in 0..DEAD {
            let trace = format!("{:032x}", 0xdead_0000 + number);
            let mut message = Message::new(Bytes::from_static(b"nothing that a worker can read"));
            message.headers.insert("traceparent".to_owned(), format!("00-{trace}-00f067aa0ba902b7-01"));
            broker.publish(&HOSTS, message, std::time::Duration::ZERO).await.expect("published");
            old.insert(trace);
        }
        self.until("the messages are dead", async || dead().await == DEAD as u64).await;
        let role = Self::role("dead-letters", &self.simulator.url(), &self.namespace, &self.collector.url());
        let mut redrive = role.arguments(&["redrive", "--all"]).spawn();
        let status = redrive.ends_within(PATIENCE).await;
        assert!(status.success(), "{}", redrive.log());
        self.until("they died again", async || {
            self.worked("undecodable").await >= 2.0 * DEAD as f64 && dead().await == DEAD as u64
        })
        .await;
        broker.close().await;
        old
    }

    /// Host events that both workers have settled with this outcome.
    async fn worked(&self, outcome: &str) -> f64 {
        let name = format!("bridge_job_duration_seconds_count{{job=\"host\",outcome=\"{outcome}\"");
        let [one, two] = &self.workers;
        one.metric(&name).await + two.metric(&name).await
    }

    async fn until(&self, what: &str, reached: impl AsyncFn() -> bool) {
        let end = Instant::now() + PATIENCE * 5;
        while !reached().await {
            assert!(Instant::now() < end, "not in time: {what}");
            sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

/// Every trace is complete: one root, all parents there.
fn hang_together(traces: &Traces) {
    let mut ids = BTreeSet::new();
    for (trace, spans) in traces {
        let (roots, orphans) = roots_and_orphans(spans, &[]);
        assert!(roots.len() == 1 && orphans.is_empty(), "{trace}: {roots:#?} {orphans:#?} of {spans:#?}");
        for span in spans {
            assert!(ids.insert(span.id.clone()), "two spans are {}", span.id);
        }
    }
}

/// A span: its trace and its id.
type Id = (String, String);

/// The traces that reach a service by these calls: those of the calls, each that a batch between a call and its root links
/// to, and each that a job links to which made the same answer for both.
fn reached(traces: &Traces, calls: &BTreeSet<Id>) -> BTreeSet<String> {
    let mut reached: BTreeSet<String> = calls.iter().map(|(trace, _)| trace.clone()).collect();
    for (trace, id) in calls {
        let spans: BTreeMap<&str, &Span> = traces[trace].iter().map(|span| (span.id.as_str(), span)).collect();
        let mut at = spans.get(id.as_str());
        while let Some(span) = at {
            if span.name == "batch" {
                reached.extend(span.links.iter().map(|(trace, _)| trace.clone()));
            }
            at = spans.get(span.parent.as_str());
        }
    }
    let mut left: Vec<String> = reached.iter().cloned().collect();
    while let Some(trace) = left.pop() {
        for process in of(traces.get(&trace).map_or(&[], Vec::as_slice), "process relay") {
            left.extend(
                process.links.iter().map(|(trace, _)| trace.clone()).filter(|trace| reached.insert(trace.clone())),
            );
        }
    }
    reached
}

fn of<'s>(spans: &'s [Span], name: &'static str) -> impl Iterator<Item = &'s Span> {
    spans.iter().filter(move |span| span.name == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn each_of_a_thousand_requests_and_events_is_one_whole_trace() {
    let mut world = World::start().await;
    // Some tries fail, so that there are others, of calls and of messages.
    world.simulator.control().fail_next("hosts/{id}", Fault::refuse(400), REFUSED_READS);
    world.simulator.control().fail_rate(Matcher::any(), Fault::refuse(503), 0.03, 7);
    let told = world.send_all().await;
    assert_eq!(told.values().collect::<BTreeSet<_>>().len(), ALL);
    let brain = world.simulator.control().brain();
    world
        .until("every host is worked", async || {
            world.hosts.iter().enumerate().all(|(number, host)| {
                let tags = brain.tags(*host).expect("a host");
                let isolated = tags.iter().any(|tag| tag == "mde:isolation=isolated");
                !tags.iter().any(|tag| tag == "block" || tag == "host_context") && (number >= BLOCKS || isolated)
            })
        })
        .await;
    world.simulator.control().clear_faults();
    let old = world.redrive().await;
    world
        .until("nothing is in hands", async || {
            let [one, two] = &world.workers;
            one.metric("bridge_jobs_in_hands").await + two.metric("bridge_jobs_in_hands").await == 0.0
        })
        .await;
    world.ingress.stop().await;
    for worker in &mut world.workers {
        worker.stop().await;
    }

    let mut traces: Traces = BTreeMap::new();
    for span in world.collector.spans() {
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    let of_old: Traces = old.iter().filter_map(|id| traces.remove_entry(id)).collect();
    let ours: Traces = told.values().filter_map(|id| traces.remove_entry(id)).collect();
    assert_eq!(ours.len(), ALL, "traces were told and are not there");
    hang_together(&ours);
    // What is left are redrives, and what the workers do by themselves.
    hang_together(&traces);

    // Calls name the span that made them, whatever service they go to.
    let whole: Traces = ours.into_iter().chain(traces).collect();
    let requests = world.simulator.control().requests();
    let id_of = |header: &str| -> Id { (header[3..35].to_owned(), header[36..52].to_owned()) };
    let calls: BTreeSet<Id> = requests.iter().map(|call| id_of(&call.headers["traceparent"])).collect();
    assert_eq!(calls.len() as u64, world.simulator.control().total(), "each call has a span of its own");
    let clients: BTreeSet<Id> = whole
        .values()
        .flatten()
        .filter(|span| span.kind == SpanKind::Client)
        .map(|span| (span.trace.clone(), span.id.clone()))
        .collect();
    let strangers: Vec<_> = calls.difference(&clients).collect();
    assert!(strangers.is_empty(), "calls whose span is nowhere: {strangers:?}");

    // Whatever has to be worked crosses the queue and reaches Defender, or Graph beside it, in its own trace or in a batch.
    let of_defender = |route: &str| !route.starts_with("cognito") && route != "token";
    let defender = requests.iter().filter(|call| of_defender(call.route));
    let reached = reached(&whole, &defender.map(|call| id_of(&call.headers["traceparent"])).collect());
    let (mut resent, mut again, mut checked, mut queued) = (0, 0, 0, 0);
    for (number, trace) in &told {
        let spans = &whole[trace];
        let works = *number < EVENTS || !matches!(number % 10, 1..=3);
        let sent: BTreeSet<&str> =
            of(spans, "send relay").chain(of(spans, "send hosts")).map(|span| span.id.as_str()).collect();
        let processed: Vec<_> = of(spans, "process relay").chain(of(spans, "process hosts")).collect();
        assert_eq!(!sent.is_empty(), works, "{number}: {spans:#?}");
        resent += spans.iter().filter(|span| !span.get("http.request.resend_count").is_empty()).count();
        if !works {
            continue;
        }
        queued += 1;
        assert!(!processed.is_empty() && reached.contains(trace), "{number}: {spans:#?}");
        for process in &processed {
            // Another try and a delayed check stay in the trace, below the span that sent the message, and linked to it.
            assert!(sent.contains(process.parent.as_str()), "{process:?}");
            assert!(process.links.contains(&(trace.clone(), process.parent.clone())), "{process:?}");
        }
        again += usize::from(processed.iter().any(|process| process.get("messaging.message.attempt") == "2"));
        checked += usize::from(*number < BLOCKS && processed.len() > 1);
    }
    assert_eq!(checked, BLOCKS, "isolations are followed in the trace of their event");
    assert!(again >= REFUSED_READS as usize && resent > 0, "{again} messages and {resent} calls were tried again");

    // A redrive begins a trace that names the old one, and so does what works it.
    let mut redriven = BTreeSet::new();
    for spans in whole.values() {
        for process in of(spans, "process hosts") {
            let known = process.links.iter().find(|(trace, _)| old.contains(trace));
            redriven.extend(known.map(|(trace, _)| trace.clone()));
        }
    }
    assert_eq!((redriven.len(), of_old.len()), (DEAD, DEAD), "{redriven:?}");
    println!(
        "{ALL} traces whole, {queued} of them through the queue, {} spans, {} calls, {resent} of them and {again} messages \
         tried again, {DEAD} redrives linked",
        whole.values().map(Vec::len).sum::<usize>(),
        calls.len(),
    );
}
