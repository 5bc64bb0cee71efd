//! The W3C trace context (`traceparent`, `tracestate`) into and out of HTTP and message headers, and the spans on both
//! sides of the queue. Attribute names follow the OpenTelemetry conventions for HTTP and messaging; the messaging ones
//! are still in development there, which is why they stand in this file only (`rabbitmq.md` 8).

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TraceState};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::broker::{Delivery, Headers, Message, Queue, Settlement};

/// Header of a redriven message: the `traceparent` that it had before.
const REDRIVEN_FROM: &str = "redriven-from";

/// The most values of observables in a span: a request holds up to 1,000, an exporter's batch hundreds of spans.
const SHOWN_VALUES: usize = 100;

/// Carries trace context in message headers.
struct MessageCarrier<'a>(&'a mut Headers);

impl Injector for MessageCarrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty `tracestate` says nothing.
        if !value.is_empty() {
            self.0.insert(key.to_owned(), value);
        }
    }
}

struct MessageReader<'a>(&'a Headers);

impl Extractor for MessageReader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

struct HttpReader<'a>(&'a HeaderMap);

impl Extractor for HttpReader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

fn extract(reader: &dyn Extractor) -> Context {
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(reader))
}

/// Makes `parent` the parent of `span`, which must be new. Fails only when no telemetry runs, as in some tests.
fn adopt(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        let _ = span.set_parent(parent);
    }
}

/// Where the present span stands in its trace. It outlives the span without holding it open.
#[must_use]
pub fn here() -> SpanContext {
    Span::current().context().span().span_context().clone()
}

/// The span of a call that several have a part in, within that of the `first` (`DESIGN.md` 10.19). It does not hold the
/// first's span open: whoever asked may be gone before the call ends.
#[must_use]
pub fn batch_span(first: SpanContext) -> Span {
    let span =
        tracing::info_span!(parent: None, "batch", otel.kind = "internal", batch.requests = Empty, trace_id = Empty);
    adopt(&span, Context::new().with_remote_span_context(first));
    record_trace_id(&span);
    span
}

/// Names who has a part in a batch: links to all but the first, whose child its span is.
pub fn shared_by(span: &Span, first: &SpanContext, parts: Vec<SpanContext>) {
    let mut seen = std::collections::HashSet::from([(first.trace_id(), first.span_id())]);
    for part in parts {
        if seen.insert((part.trace_id(), part.span_id())) && part.is_valid() {
            span.add_link(part);
        }
    }
    span.record("batch.requests", seen.len());
}

/// The current span gets what others make: each of them links to it, and it to them (`DESIGN.md` 10.19).
pub fn share(makers: impl Iterator<Item = Span>) {
    let current = Span::current();
    let mut seen = std::collections::HashSet::from([current.id()]);
    for maker in makers.filter(|maker| seen.insert(maker.id())) {
        link(&current, &maker.context());
        link(&maker, &current.context());
    }
}

/// A link from `span` to the span of `context`, if that is one.
fn link(span: &Span, context: &Context) {
    let to = context.span().span_context().clone();
    if to.is_valid() {
        span.add_link(to);
    }
}

fn record_trace_id(span: &Span) {
    let context = span.context();
    let context = context.span().span_context().clone();
    if context.is_valid() {
        span.record("trace_id", tracing::field::display(context.trace_id()));
    }
}

/// The server span of a request, a child of the caller's span if the request names one.
#[must_use]
pub fn server_span(method: &http::Method, route: &'static str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = %method,
        http.route = route,
        http.response.status_code = Empty,
        error.type = Empty,
        trace_id = Empty,
    );
    adopt(&span, extract(&HttpReader(headers)));
    record_trace_id(&span);
    span
}

/// `traceresponse` for the answer of a request: the ids of its server span. `None` without telemetry.
#[must_use]
pub fn trace_response(span: &Span) -> Option<http::HeaderValue> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| {
        let flags = context.trace_flags().to_u8();
        http::HeaderValue::from_str(&format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
            .expect("hexadecimal digits and dashes are a header value")
    })
}

/// The producer span of a message that is about to be sent through `system` ([`crate::broker::Broker::SYSTEM`]); its context is written into the message's headers.
#[must_use]
pub fn send_span(system: &'static str, queue: &Queue, message: &mut Message, kind: &'static str) -> Span {
    let span = tracing::info_span!(
        "send",
        otel.name = format!("send {}", queue.name),
        otel.kind = "producer",
        otel.status_code = Empty,
        messaging.system = system,
        messaging.operation.name = "send",
        messaging.operation.r#type = "send",
        messaging.destination.name = queue.name,
        messaging.message.id = %message.id,
        messaging.message.body.size = message.body.len(),
        job.kind = kind,
        error.type = Empty,
    );
    let context = span.context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut MessageCarrier(&mut message.headers));
    });
    span
}

/// The consumer span of a delivery: child of the span that sent it, and linked to it as the conventions ask.
#[must_use]
pub fn process_span(system: &'static str, queue: &Queue, delivery: &Delivery, now: jiff::Timestamp) -> Span {
    let waited = now.duration_since(delivery.published);
    let span = tracing::info_span!(
        "process",
        otel.name = format!("process {}", queue.name),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = system,
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = delivery.destination,
        messaging.message.id = %delivery.message.id,
        messaging.message.body.size = delivery.message.body.len(),
        messaging.message.attempt = delivery.attempt,
        messaging.message.waited_ms = waited.as_millis() as i64,
        job.kind = Empty,
        job.outcome = Empty,
        action.id = Empty,
        error.type = Empty,
        trace_id = Empty,
    );
    let sender = extract(&MessageReader(&delivery.message.headers));
    link(&span, &sender);
    if let Some(old) = delivery.message.headers.get(REDRIVEN_FROM) {
        link(&span, &extract(&MessageReader(&Headers::from([("traceparent".to_owned(), old.clone())]))));
    }
    adopt(&span, sender);
    record_trace_id(&span);
    span
}

/// The span of a settlement, a child of the delivery's own.
#[must_use]
pub fn settle_span(system: &'static str, queue: &Queue, delivery: &Delivery, settlement: &Settlement) -> Span {
    let operation = match settlement {
        Settlement::Done { .. } => "ack",
        Settlement::Retry { .. } => "retry",
        Settlement::Later { .. } => "delay",
        Settlement::GiveBack => "requeue",
        Settlement::DeadLetter(_) => "dead_letter",
    };
    tracing::info_span!(
        "settle",
        otel.name = format!("{operation} {}", queue.name),
        otel.kind = "client",
        otel.status_code = Empty,
        messaging.system = system,
        messaging.operation.name = operation,
        messaging.operation.r#type = "settle",
        messaging.destination.name = delivery.destination,
        messaging.message.id = %delivery.message.id,
        error.type = Empty,
    )
}

/// The current span waited so long for a permit: an event of it.
pub fn permit(family: &'static str, waited: Duration) {
    let attributes = vec![KeyValue::new("permit.family", family), KeyValue::new("permit.waited_ms", millis(waited))];
    Span::current().add_event("permit", attributes);
}

/// The current span looked into a cache: an event of it, with how many were found there.
pub fn cache(cache: &'static str, hits: usize, misses: usize) {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let attributes = vec![
        KeyValue::new("cache.name", cache),
        KeyValue::new("cache.hits", count(hits)),
        KeyValue::new("cache.misses", count(misses)),
    ];
    Span::current().add_event("cache", attributes);
}

/// The current span is about these observables (`BRIDGE_TRACE_VALUES`); the first hundred are shown.
pub fn values(values: &[&str]) {
    if values.is_empty() {
        return;
    }
    let shown = values.iter().take(SHOWN_VALUES).map(|value| StringValue::from((*value).to_owned())).collect();
    Span::current().set_attribute("observable.count", i64::try_from(values.len()).unwrap_or(i64::MAX));
    Span::current().set_attribute("observable.values", Value::Array(Array::String(shown)));
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Begins a new trace in the headers of a message that is redriven; the spans that process it link to its old one.
///
/// Whether anybody records the new trace was decided with the old one: the command that redrives may have no exporter.
pub fn restart(headers: &mut Headers) {
    let old = extract(&MessageReader(headers)).span().span_context().clone();
    if !old.is_valid() {
        return;
    }
    let span = tracing::info_span!(parent: None, "redrive", otel.kind = "producer");
    span.add_link(old.clone());
    let new = span.context().span().span_context().clone();
    if !new.is_valid() {
        return;
    }
    headers.remove("tracestate");
    if let Some(old) = headers.remove("traceparent") {
        headers.insert(REDRIVEN_FROM.to_owned(), old);
    }
    let flags = new.trace_flags() | old.trace_flags();
    let new = SpanContext::new(new.trace_id(), new.span_id(), flags, false, TraceState::NONE);
    opentelemetry::global::get_text_map_propagator(|propagator| {
        let context = Context::new().with_remote_span_context(new.clone());
        propagator.inject_context(&context, &mut MessageCarrier(headers));
    });
}

/// Marks `span` as failed with a class of error, never with its text.
pub fn fail(span: &Span, error_type: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error_type);
}
