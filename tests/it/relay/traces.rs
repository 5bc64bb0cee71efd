//! One trace from the caller to Microsoft, and its id on the answer (`DESIGN.md` 7).

use std::sync::LazyLock;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tracing_subscriber::layer::SubscriberExt as _;

use super::errors::start;
use crate::bridge::{Answer, TestBridge, demo_token};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// With a single subscriber in the process, a span's place in the code is judged by the thread that comes upon it first,
/// and may be switched off for all. Two that never end keep it from being single.
static KEPT: LazyLock<[tracing::Dispatch; 2]> =
    LazyLock::new(|| [(), ()].map(|()| tracing::Dispatch::new(tracing_subscriber::registry())));

/// Spans for this thread, which is the one that the whole bridge of a test runs in.
fn telemetry() -> tracing::subscriber::DefaultGuard {
    LazyLock::force(&KEPT);
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = SdkTracerProvider::builder().build();
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::set_default(tracing_subscriber::registry().with(spans))
}

async fn post(bridge: &TestBridge, path: &str, traceparent: &[&str]) -> Answer {
    let mut request = bridge.client.post(bridge.url(path)).bearer_auth(demo_token());
    for value in traceparent {
        request = request.header("traceparent", *value);
    }
    Answer::of(request.json(&Value::Null).send().await.expect("the ingress answers")).await
}

/// Version, trace id, span id, flags.
fn traceresponse(answer: &Answer) -> Vec<String> {
    let value = answer.headers["traceresponse"].to_str().expect("text");
    value.split('-').map(str::to_owned).collect()
}

#[tokio::test]
async fn the_answer_carries_the_callers_trace_id_whatever_it_is() {
    let _telemetry = telemetry();
    let bridge = start().await;
    let given = format!("00-{TRACE}-{SPAN}-01");
    for (path, status) in [("/health", 200), ("/version", 200), ("/observe/observables", 200), ("/nope", 404)] {
        let answer = post(&bridge, path, &[&given]).await;
        assert_eq!(answer.status, status);
        let parts = traceresponse(&answer);
        assert_eq!((parts.len(), parts[0].as_str(), parts[1].as_str()), (4, "00", TRACE), "{path}");
        assert_ne!(parts[2], SPAN, "{path}: its own span");
    }
    // Each call to Microsoft belongs to the same trace.
    let requests = bridge.control().requests();
    assert!(!requests.is_empty());
    for request in requests {
        let parent = request.headers.get("traceparent").map(String::as_str).unwrap_or_default();
        assert!(parent.starts_with(&format!("00-{TRACE}-")) && !parent.contains(SPAN), "{request:?}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_request_without_a_usable_trace_begins_one() {
    let _telemetry = telemetry();
    let bridge = start().await;
    let zero = format!("00-{}-{SPAN}-01", "0".repeat(32));
    let mut seen = std::collections::HashSet::new();
    for given in [vec![], vec!["nonsense"], vec![zero.as_str()], vec!["00-xyz-1-1"], vec![""]] {
        let answer = post(&bridge, "/version", &given).await;
        assert_eq!(answer.status, 200);
        let trace = traceresponse(&answer)[1].clone();
        assert!(trace.len() == 32 && trace != "0".repeat(32), "{given:?} {trace}");
        assert!(seen.insert(trace), "{given:?}");
    }
    bridge.stop().await;
}
