//! A collector of traces: takes OTLP over HTTP as a real one does, and keeps every span.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A span, its ids in hexadecimal digits as headers show them.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    /// Lists and numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// (trace, span) of each link.
    pub links: Vec<(String, String)>,
    /// Everything in it that is text for people: names, attributes of events and links, the status.
    pub words: Vec<String>,
    pub failed: bool,
}

impl Span {
    /// An attribute, empty when it is not there.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    /// The bodies as they came.
    bodies: Vec<Bytes>,
}

/// See the module's documentation.
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    server: JoinHandle<()>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let received = Arc::<Mutex<Received>>::default();
        let kept = Arc::clone(&received);
        let take = move |headers: HeaderMap, body: Bytes| {
            let kept = Arc::clone(&kept);
            async move { take(&kept, &headers, body) }
        };
        let router = Router::new().route("/v1/traces", post(take));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the collector serves");
        });
        Self { address, received, server }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far. Those of a process are complete when it has ended.
    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().unwrap().spans.clone()
    }

    /// All requests so far, as they came.
    pub fn bodies(&self) -> Vec<Bytes> {
        self.received.lock().unwrap().bodies.clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn take(received: &Mutex<Received>, headers: &HeaderMap, body: Bytes) -> (StatusCode, HeaderMap, Vec<u8>) {
    assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("an export request");
    let mut received = received.lock().unwrap();
    received.bodies.push(body);
    for resource in request.resource_spans {
        let about = resource.resource.expect("a resource");
        let about = attributes(&about.attributes);
        assert_eq!(about["service.name"], "defender-bridge");
        for scope in resource.scope_spans {
            received.spans.extend(scope.spans.into_iter().map(read));
        }
    }
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, "application/x-protobuf".parse().expect("a value"))]);
    (StatusCode::OK, headers, ExportTraceServiceResponse::default().encode_to_vec())
}

fn read(span: Sent) -> Span {
    let attributes = attributes(&span.attributes);
    let mut words = vec![span.name.clone(), span.trace_state.clone()];
    words.extend(attributes.values().cloned());
    let status = span.status.clone().unwrap_or_default();
    words.push(status.message);
    for event in &span.events {
        words.push(event.name.clone());
        words.extend(self::attributes(&event.attributes).into_values());
    }
    for link in &span.links {
        words.extend(self::attributes(&link.attributes).into_values());
    }
    Span {
        kind: span.kind(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        attributes,
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        words,
        failed: status.code == 2,
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    list.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map_or_else(String::new, value))).collect()
}

fn value(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The roots among these spans, and those whose parent is neither here nor in `known`.
pub fn roots_and_orphans<'a>(spans: &'a [Span], known: &[&str]) -> (Vec<&'a Span>, Vec<&'a Span>) {
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).chain(known.iter().copied()).collect();
    let roots = spans.iter().filter(|span| span.parent.is_empty()).collect();
    let orphan = |span: &&Span| !span.parent.is_empty() && !ids.contains(span.parent.as_str());
    (roots, spans.iter().filter(orphan).collect())
}
