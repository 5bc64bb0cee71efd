//! What a collector of traces gets from the real processes: one trace from the caller's span to every call to Microsoft
//! and back, each span where it belongs, and none that tells what was asked about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use defender_bridge::simulator::scenario::{
    BENIGN_SHA1, C2_ADDRESS, DEMO_CLIENT_SECRET, DROPPED_SHA256, FINANCE_WORKSTATION, PHISHING_DOMAIN, UNSEEN_DOMAIN,
};
use defender_bridge::simulator::{Fault, Matcher, Simulator};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::bridge::{Answer, SECRET_KEY, client, demo_token, observable_list};
use super::collector::{Collector, Span, roots_and_orphans};
use super::spawned::{self, Deployment, PATIENCE, Role, Spawned, closed_port};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const QUESTION: [(&str, &str); 4] =
    [("domain", PHISHING_DOMAIN), ("sha256", DROPPED_SHA256), ("ip", C2_ADDRESS), ("sha1", BENIGN_SHA1)];

/// A bridge of one process or of two.
struct Bridge {
    simulator: Simulator,
    collector: Collector,
    /// The process with the ingress first.
    processes: Vec<Spawned>,
    _folder: tempfile::TempDir,
}

impl Bridge {
    async fn on_sqlite() -> Self {
        let (simulator, collector) = (spawned::simulator().await, Collector::start().await);
        let folder = tempfile::tempdir().unwrap();
        let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
        let processes = vec![role.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).start().await];
        Self { simulator, collector, processes, _folder: folder }
    }

    async fn on_rabbitmq() -> Self {
        let (simulator, collector) = (spawned::simulator().await, Collector::start().await);
        let deployment = Deployment::new(&simulator.url()).set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
        let (ingress, [worker]) = tokio::join!(deployment.ingress(), deployment.workers());
        let folder = tempfile::tempdir().unwrap();
        Self { simulator, collector, processes: vec![ingress, worker], _folder: folder }
    }

    fn url(&self, path: &str) -> String {
        self.processes[0].url(path)
    }

    /// A question with these trace headers.
    async fn observe(&self, headers: &[(&str, &str)]) -> Answer {
        let mut request = client().post(self.url("/observe/observables")).bearer_auth(demo_token());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.json(&observable_list(&QUESTION)).send().await.expect("the ingress answers")).await
    }

    /// Stops the processes, and returns every span.
    async fn stop(mut self) -> Vec<Span> {
        for process in &mut self.processes {
            process.stop().await;
        }
        self.collector.spans()
    }
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

/// The only one of its kind.
fn only(spans: &[Span], kind: SpanKind) -> &Span {
    let found = of_kind(spans, kind);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0]
}

async fn follows_one_request(bridge: Bridge) {
    // The first try of a hunting query fails, so that there is a second one.
    bridge.simulator.control().fail_next("hunting", Fault::refuse(503), 1);
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let answer = bridge.observe(&[("traceparent", &parent), ("tracestate", "vendor=abc")]).await;
    assert_eq!(answer.errors(), [], "{}", answer.text);
    let control = bridge.simulator.control().clone();
    let spans = bridge.stop().await;

    // One trace, nothing beside it, and everything hangs together.
    for span in &spans {
        assert_eq!(span.trace, TRACE, "{span:?}");
    }
    let (roots, orphans) = roots_and_orphans(&spans, &[CALLER]);
    assert!(roots.is_empty() && orphans.is_empty(), "{roots:#?} {orphans:#?}");
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    assert_eq!(ids.len(), spans.len());

    let server = only(&spans, SpanKind::Server);
    assert_eq!((server.name.as_str(), server.parent.as_str()), ("POST /observe/observables", CALLER));
    assert_eq!(server.get("http.request.method"), "POST");
    assert_eq!(server.get("http.route"), "/observe/observables");
    assert_eq!(server.get("http.response.status_code"), "200");
    assert_eq!(answer.headers["traceresponse"], format!("00-{TRACE}-{}-01", server.id).as_str());

    let send = only(&spans, SpanKind::Producer);
    assert_eq!((send.name.as_str(), send.parent.as_str()), ("send relay", server.id.as_str()));
    assert_eq!(send.get("messaging.operation.type"), "send");
    assert_eq!(send.get("messaging.destination.name"), "relay");
    let process = only(&spans, SpanKind::Consumer);
    assert_eq!((process.name.as_str(), process.parent.as_str()), ("process relay", send.id.as_str()));
    assert_eq!(process.links, [(TRACE.to_owned(), send.id.clone())]);
    assert_eq!(process.get("messaging.operation.type"), "process");
    assert_eq!(process.get("messaging.message.id"), send.get("messaging.message.id"));
    assert!(["rabbitmq", "sqlite"].contains(&send.get("messaging.system")), "{send:?}");
    assert_eq!(process.get("messaging.system"), send.get("messaging.system"));
    assert!(!process.get("messaging.destination.name").is_empty());

    // What the job waited for and what it had to ask for are events of its span.
    for event in ["permit", "cache"] {
        assert!(process.words.iter().any(|word| word == event), "{process:?}");
    }
    let (settled, sent): (Vec<&Span>, Vec<&Span>) = of_kind(&spans, SpanKind::Client)
        .into_iter()
        .partition(|span| span.get("messaging.operation.type") == "settle");
    assert_eq!(settled.len(), 1, "{settled:#?}");
    assert_eq!((settled[0].name.as_str(), settled[0].parent.as_str()), ("ack relay", process.id.as_str()));

    // Each call that arrived has a span of its own, which it named.
    let calls = control.requests();
    let clients: BTreeMap<String, &Span> =
        sent.into_iter().map(|span| (format!("00-{TRACE}-{}-01", span.id), span)).collect();
    assert_eq!(calls.len(), clients.len());
    for call in &calls {
        let span = clients.get(call.headers["traceparent"].as_str()).unwrap_or_else(|| panic!("{call:?}"));
        assert_eq!(call.headers["tracestate"], "vendor=abc");
        assert_eq!(span.get("http.request.method"), call.method);
        assert_eq!(span.name, format!("{} {}", call.method, span.get("url.template")));
        assert_eq!(span.get("http.response.status_code"), call.status.expect("answered").to_string());
        assert_eq!(span.get("server.address"), "127.0.0.1");
        let template = match call.route {
            "token" => "/{tenant}/oauth2/v2.0/token".to_owned(),
            "hunting" => "/v1.0/security/runHuntingQuery".to_owned(),
            _ => span.get("url.template").to_owned(),
        };
        assert_eq!(span.get("url.template"), template, "{call:?}");
    }
    let routes: BTreeSet<&str> = calls.iter().map(|call| call.route).collect();
    assert!(routes.is_superset(&["token", "alerts", "hunting"].into()), "{routes:?}");
    // The refused try and its successor are both there.
    let failed: Vec<_> = clients.values().filter(|span| span.failed && span.get("error.type") != "404").collect();
    let resent: Vec<_> = clients.values().filter(|span| !span.get("http.request.resend_count").is_empty()).collect();
    assert_eq!((failed.len(), resent.len()), (1, 1), "{failed:#?} {resent:#?}");
    assert_eq!((failed[0].get("error.type"), resent[0].get("http.request.resend_count")), ("503", "1"));
    assert_eq!((&failed[0].parent, &failed[0].name), (&resent[0].parent, &resent[0].name));
    tells_no_observable(&spans);
    println!("{} spans, {} of them calls", spans.len(), clients.len());
}

/// `BRIDGE_TRACE_VALUES=true`: the job's span shows what was asked about, and nothing shows a secret.
#[tokio::test]
async fn what_was_asked_about_is_shown_only_when_that_is_wanted() {
    for (setting, shown) in [("false", false), ("true", true)] {
        let (simulator, collector) = (spawned::simulator().await, Collector::start().await);
        let folder = tempfile::tempdir().unwrap();
        let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
        let role = role.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).set("BRIDGE_TRACE_VALUES", setting);
        let processes = vec![role.start().await];
        let bridge = Bridge { simulator, collector, processes, _folder: folder };
        assert_eq!(bridge.observe(&[]).await.errors(), []);
        let spans = bridge.stop().await;
        let process = only(&spans, SpanKind::Consumer);
        for (_, value) in QUESTION {
            assert_eq!(process.get("observable.values").contains(value), shown, "{process:?}");
        }
        assert_eq!(process.get("observable.count"), if shown { QUESTION.len().to_string() } else { String::new() });
        if !shown {
            tells_no_observable(&spans);
        }
        for secret in [DEMO_CLIENT_SECRET, SECRET_KEY, &demo_token()] {
            assert!(!format!("{spans:?}").contains(secret), "{spans:#?}");
        }
    }
}

/// Each line that is written in the course of a request or a job names its trace, in both forms, whatever is filtered.
#[tokio::test]
async fn each_line_of_a_request_names_its_trace() {
    let simulator = spawned::simulator().await;
    let few = "audit=info,defender_bridge::cli=info,defender_bridge::worker=info,defender_bridge::retry=info";
    for (format, filter) in [("json", ""), ("text", ""), ("json", few), ("text", few)] {
        let folder = tempfile::tempdir().unwrap();
        let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
        let role = role.set("BRIDGE_LOG", format).set("RUST_LOG", filter);
        let mut serve = role.set("BRIDGE_RELAY_ROUTES", "observe,refer,respond").start().await;
        let ask = |path: &str, body: serde_json::Value| {
            let request = client().post(serve.url(path)).bearer_auth(demo_token()).json(&body);
            async move {
                let answer = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01")).send().await;
                Answer::of(answer.expect("the ingress answers")).await
            }
        };
        simulator.control().fail_next("hunting", Fault::refuse(503), 1);
        assert_eq!(ask("/observe/observables", observable_list(&QUESTION)).await.errors(), []);
        let order = serde_json::json!({
            "action-id": "microsoft-defender-FullIsolation", "observable_type": "ms_machine_id",
            "observable_value": FINANCE_WORKSTATION,
        });
        let answer = ask("/respond/trigger", order).await;
        assert!(answer.text.contains("success"), "{}", answer.text);
        serve.stop().await;
        let log = serve.log();
        for part in ["call failed, will be repeated", "isolate "] {
            assert!(log.lines().any(|line| line.contains(part)), "{format} {filter:?}: no {part:?} in\n{log}");
        }
        // These modules have nothing to say but about requests and jobs, once the worker takes some.
        let about = |line: &&str| {
            let modules = ["worker", "ingress", "retry", "outbound", "defender", "mapping"];
            modules.iter().any(|module| line.contains(&format!("defender_bridge::{module}")))
                || line.contains("\"audit\"")
                || line.contains(" audit: ")
        };
        for line in log.lines().filter(about).filter(|line| !line.contains("the worker takes jobs")) {
            assert!(line.contains(TRACE), "{format} {filter:?}: {line}");
        }
        let audit = log.lines().find(|line| line.contains("isolate ")).expect("found above");
        for part in
            ["audit.source", "relay", "audit.cause", "FullIsolation", "machine.id", FINANCE_WORKSTATION, "action.id"]
        {
            assert!(audit.contains(part), "{part} is not in {audit}");
        }
    }
}

fn tells_no_observable(spans: &[Span]) {
    for span in spans {
        for (_, value) in QUESTION {
            let told = span.words.iter().find(|word| word.to_ascii_lowercase().contains(value));
            assert!(told.is_none(), "{told:?} in {span:?}");
        }
    }
}

#[tokio::test]
async fn one_trace_leads_from_the_caller_to_each_call_and_back_on_sqlite() {
    follows_one_request(Bridge::on_sqlite().await).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn one_trace_leads_from_the_caller_to_each_call_and_back_on_rabbitmq() {
    follows_one_request(Bridge::on_rabbitmq().await).await;
}

async fn counts_roots(bridge: Bridge) {
    const REQUESTS: usize = 100;
    bridge.simulator.control().fail_rate(Matcher::any(), Fault::refuse(503), 0.1, 7);
    let mut callers = JoinSet::new();
    for number in 0..REQUESTS {
        let (path, token, body) = match number % 10 {
            0 => ("/health", demo_token(), String::new()),
            1 => ("/version", String::new(), String::new()),
            2 => ("/observe/observables", "no.such.token".to_owned(), "[]".to_owned()),
            3 => ("/observe/observables", demo_token(), "{".to_owned()),
            4 => ("/no/such/route", demo_token(), String::new()),
            5 => ("/deliberate/observables", demo_token(), observable_list(&QUESTION).to_string()),
            6 => ("/observe/observables", demo_token(), observable_list(&[("domain", UNSEEN_DOMAIN)]).to_string()),
            _ => ("/observe/observables", demo_token(), observable_list(&QUESTION).to_string()),
        };
        let request = client().post(bridge.url(path)).bearer_auth(token).body(body);
        callers.spawn(async move {
            let answer = request.send().await.expect("the ingress answers");
            answer.headers()["traceresponse"].to_str().unwrap()[3..35].to_owned()
        });
    }
    let told: BTreeSet<String> = callers.join_all().await.into_iter().collect();
    assert_eq!(told.len(), REQUESTS);
    let spans = bridge.stop().await;
    let mut traces: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in spans {
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    assert_eq!(traces.keys().collect::<BTreeSet<_>>(), told.iter().collect());
    for (trace, spans) in &traces {
        let (roots, orphans) = roots_and_orphans(spans, &[]);
        assert!(roots.len() == 1 && orphans.is_empty(), "{trace}: {roots:#?} {orphans:#?}");
        assert_eq!(roots[0].kind, SpanKind::Server);
        assert!(!roots[0].name.contains("/no/such"), "{roots:?}");
        tells_no_observable(spans);
    }
    println!("{REQUESTS} traces, {} spans", traces.values().map(Vec::len).sum::<usize>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_trace_is_a_root_and_no_span_is_an_orphan_on_sqlite() {
    counts_roots(Bridge::on_sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_request_without_a_trace_is_a_root_and_no_span_is_an_orphan_on_rabbitmq() {
    counts_roots(Bridge::on_rabbitmq().await).await;
}

/// The caller decides what is recorded; the trace goes on all the same.
#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn a_trace_that_is_not_sampled_is_passed_on_and_not_recorded() {
    let bridge = Bridge::on_rabbitmq().await;
    let answer = bridge.observe(&[("traceparent", &format!("00-{TRACE}-{CALLER}-00"))]).await;
    assert_eq!(answer.errors(), []);
    let response = answer.headers["traceresponse"].to_str().unwrap();
    assert!(response.starts_with(&format!("00-{TRACE}-")) && response.ends_with("-00"), "{response}");
    for call in bridge.simulator.control().requests() {
        let parent = &call.headers["traceparent"];
        assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
    }
    assert_eq!(bridge.stop().await.len(), 0);
}

/// How much a process may grow after its first wave of requests while its collector does not do its part, in KiB: its queue
/// of spans is full by then, and what is left is the allocator's doing.
const GROWTH_KIB: u64 = 4 * 1024;

/// Waves, and requests in each. What they leave in a queue without an end is several times [`GROWTH_KIB`].
const WAVES: usize = 4;
const WAVE: usize = 4_000;

/// Requests at a time.
const CALLERS: usize = 32;

/// Resident memory of a process in KiB.
fn resident_kib(process: &Spawned) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// A bridge whose spans go to `endpoint`, with room for so many of them.
async fn exporting(simulator: &Simulator, folder: &Path, endpoint: &str, room: &str) -> Spawned {
    let role = Role::new("serve").sqlite(&folder.join("queue")).upstream(&simulator.url());
    let role = role
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .set("OTEL_BSP_SCHEDULE_DELAY", "100")
        .set("OTEL_BSP_MAX_QUEUE_SIZE", room);
    role.set("BRIDGE_SHUTDOWN_GRACE", "20s").start().await
}

/// Sends the waves, each request a trace that is recorded and none of which fails, and returns what the process has grown
/// by since the first, in KiB.
async fn grows(serve: &Spawned) -> u64 {
    // As long as a caller may make it: what the queue holds is to be seen.
    let state = format!("vendor={}", "x".repeat(240));
    let client = client();
    let mut resident = Vec::new();
    for _ in 0..WAVES {
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let request = client.post(serve.url("/version")).header("tracestate", &state);
            callers.spawn(async move {
                for _ in 0..WAVE / CALLERS {
                    let trace = uuid::Uuid::now_v7().simple().to_string();
                    let request = request.try_clone().expect("no body that streams");
                    let answer = request.header("traceparent", format!("00-{trace}-{CALLER}-01")).send().await;
                    assert_eq!(answer.expect("the ingress answers").status(), StatusCode::OK);
                }
            });
        }
        callers.join_all().await;
        resident.push(resident_kib(serve));
    }
    println!("resident after each wave: {resident:?} KiB");
    resident[WAVES - 1].saturating_sub(resident[0])
}

/// With a collector that does not do its part every request is answered, memory stays flat, and the process ends in time.
async fn bears(endpoint: &str) {
    let simulator = spawned::simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let mut serve = exporting(&simulator, folder.path(), endpoint, "512").await;
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let request = client().post(serve.url("/observe/observables")).bearer_auth(demo_token());
        let request = request.json(&observable_list(&QUESTION));
        callers.spawn(async move { Answer::of(request.send().await.expect("the ingress answers")).await });
    }
    for answer in callers.join_all().await {
        assert_eq!(answer.errors(), [], "{}", answer.text);
        assert!(!answer.sightings().is_empty());
    }
    let grown = grows(&serve).await;
    assert!(grown < GROWTH_KIB, "grown by {grown} KiB");
    let told = Instant::now();
    serve.signal("-TERM");
    let status = serve.ends_within(PATIENCE).await;
    let took = told.elapsed();
    println!("ended {took:?} after SIGTERM");
    assert!(status.success() && took < Duration::from_secs(20), "{status} after {took:?}\n{}", serve.log());
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_request_and_no_memory() {
    bears(&format!("http://127.0.0.1:{}", closed_port())).await;
}

/// A collector that takes connections and says nothing.
async fn silent() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    (url, holding)
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_no_request_and_no_more_than_the_grace() {
    let (url, holding) = silent().await;
    bears(&url).await;
    holding.abort();
}

/// What the others assert of memory is not true of every queue: one that holds all spans grows by more.
#[tokio::test]
async fn spans_that_are_all_kept_are_seen_in_memory() {
    let (simulator, folder) = (spawned::simulator().await, tempfile::tempdir().unwrap());
    let (url, holding) = silent().await;
    let serve = exporting(&simulator, folder.path(), &url, "50000").await;
    let grown = grows(&serve).await;
    assert!(grown > GROWTH_KIB, "grown by {grown} KiB");
    holding.abort();
}

/// A collector that answers every export with `status`, after `delay`.
async fn unwilling(status: StatusCode, delay: Duration) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let refuse = move || async move {
        tokio::time::sleep(delay).await;
        status
    };
    let router = Router::new().route("/v1/traces", post(refuse));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    (url, serving)
}

#[tokio::test]
async fn a_collector_that_fails_costs_no_request_and_no_memory() {
    let (url, serving) = unwilling(StatusCode::INTERNAL_SERVER_ERROR, Duration::ZERO).await;
    bears(&url).await;
    serving.abort();
}

#[tokio::test]
async fn a_collector_that_is_slow_costs_no_request_and_no_memory() {
    let (url, serving) = unwilling(StatusCode::OK, Duration::from_secs(3)).await;
    bears(&url).await;
    serving.abort();
}
