//! The HTTP client against a server that behaves and misbehaves on request.

use std::time::Duration;

use bytes::Bytes;
use defender_bridge::outbound::{Answer, Outbound, OutboundError, Request};
use http::{HeaderMap, Method};
use opentelemetry::trace::{SpanKind, Status, TracerProvider as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use rstest::rstest;
use tokio::time::Instant;
use tracing_subscriber::layer::SubscriberExt as _;
use url::Url;

use crate::scripted::{Reply, Scripted, answer, answer_with, cut_answer};

const LIMIT_BYTES: usize = 1000;

fn request(url: &Url) -> Request {
    Request {
        method: Method::GET,
        url: url.join("/api/files/planted?key=value").unwrap(),
        template: "/api/files/{id}",
        headers: HeaderMap::new(),
        body: Bytes::new(),
        limit: Some(Duration::from_secs(20)),
        body_limit_bytes: LIMIT_BYTES,
        resend_count: 0,
    }
}

async fn send(request: Request) -> Result<Answer, OutboundError> {
    Outbound::new().unwrap().send(request, Instant::now() + Duration::from_secs(30)).await
}

#[tokio::test]
async fn an_answer_of_any_status_is_returned_whole() {
    let server = Scripted::start(|_| async { answer_with(404, "retry-after: 7\r\n", "not here") }).await;
    let answer = send(request(&server.url)).await.unwrap();
    assert_eq!(answer.status, 404);
    assert_eq!(answer.headers["retry-after"], "7");
    assert_eq!(answer.body, "not here");
    let seen = &server.seen()[0];
    assert_eq!(seen.line, "GET /api/files/planted?key=value");
    assert_eq!(seen.header("user-agent"), Some(concat!("defender-bridge/", env!("CARGO_PKG_VERSION"))));
    // Compressed answers could not be read (`defender.md` 2.1).
    assert_eq!(seen.header("accept-encoding"), None);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Scripted::start(|_| async { answer(200, "{}") }).await;
    let location = format!("location: {}\r\n", elsewhere.url);
    let server = Scripted::start(move |_| {
        let reply = answer_with(307, &location, "");
        async { reply }
    })
    .await;
    assert_eq!(send(request(&server.url)).await.unwrap().status, 307);
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn nobody_listening_is_no_connection() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = send(request(&format!("http://{gone}").parse().unwrap())).await.unwrap_err();
    assert!(matches!(error, OutboundError::Connect { sent: false, .. }), "{error:?}");
    assert!(!error.may_have_been_sent());
    assert_not_shown(&error);
}

#[tokio::test]
async fn a_connection_closed_before_the_answer_is_no_connection() {
    let server = Scripted::start(|_| async { Reply::Bytes(Vec::new()) }).await;
    let error = send(request(&server.url)).await.unwrap_err();
    assert!(matches!(error, OutboundError::Connect { sent: true, .. }), "{error:?}");
    assert!(error.may_have_been_sent());
    assert_not_shown(&error);
}

#[tokio::test]
async fn a_body_that_ends_early_is_cut() {
    let server = Scripted::start(|_| async { cut_answer(200, "{\"value\":[") }).await;
    let error = send(request(&server.url)).await.unwrap_err();
    assert!(matches!(error, OutboundError::Cut { .. }), "{error:?}");
    assert_not_shown(&error);
}

#[rstest]
#[case::announced(answer(200, vec![b'x'; LIMIT_BYTES + 1]))]
#[case::unannounced(Reply::Bytes([b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[b'x'; LIMIT_BYTES + 1]].concat()))]
#[tokio::test]
async fn a_body_over_the_limit_is_refused(#[case] reply: Reply) {
    let reply = std::sync::Mutex::new(Some(reply));
    let server = Scripted::start(move |_| {
        let reply = reply.lock().unwrap().take().expect("one request is made");
        async { reply }
    })
    .await;
    let error = send(request(&server.url)).await.unwrap_err();
    assert_eq!(error, OutboundError::TooLarge { limit_bytes: LIMIT_BYTES });
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_read() {
    let server = Scripted::start(|_| async { answer(200, vec![b'x'; LIMIT_BYTES]) }).await;
    assert_eq!(send(request(&server.url)).await.unwrap().body.len(), LIMIT_BYTES);
}

#[tokio::test]
async fn silence_ends_at_the_limit_of_the_try_or_at_the_deadline() {
    let server = Scripted::start(|_| async { Reply::Hang }).await;
    let outbound = Outbound::new().unwrap();
    let short = Duration::from_millis(500);
    let limited = Request { limit: Some(short), ..request(&server.url) };
    let later = Instant::now() + Duration::from_secs(60);
    assert_eq!(outbound.send(limited, later).await.unwrap_err(), OutboundError::Timeout);
    let soon = Instant::now() + short;
    assert_eq!(outbound.send(request(&server.url), soon).await.unwrap_err(), OutboundError::Deadline);
    assert_eq!(server.seen().len(), 2);
    // Nothing is sent after the deadline.
    assert_eq!(outbound.send(request(&server.url), soon).await.unwrap_err(), OutboundError::Deadline);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_body_that_stalls_ends_at_the_deadline() {
    let server = Scripted::start(|_| async { Reply::Stall(b"HTTP/1.1 200 OK\r\n\r\n{".to_vec()) }).await;
    let outbound = Outbound::new().unwrap();
    let soon = Instant::now() + Duration::from_millis(500);
    let unlimited = Request { limit: None, ..request(&server.url) };
    assert_eq!(outbound.send(unlimited, soon).await.unwrap_err(), OutboundError::Deadline);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_certificate_that_nobody_trusts_is_named_as_the_reason() {
    let server = Scripted::start_tls(|_| async { answer(200, "{}") }).await;
    let error = send(request(&server.url)).await.unwrap_err();
    let OutboundError::Certificate { reason } = &error else { panic!("{error:?}") };
    assert!(!reason.is_empty() && !reason.contains("planted"), "{reason}");
    assert!(server.seen().is_empty(), "nothing may be sent before the server is known");
}

#[tokio::test]
async fn a_server_without_tls_is_another_tls_failure() {
    // It answers whatever it is sent, as a plain HTTP server would.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        // Stays open until the other side has read it.
        let _ = stream.read(&mut [0; 1024]).await;
    });
    let error = send(request(&format!("https://{address}").parse().unwrap())).await.unwrap_err();
    assert!(matches!(error, OutboundError::Tls { sent: false, .. }), "{error:?}");
    assert_not_shown(&error);
    server.await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_no_connection_long_before_the_limit_of_the_try() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    // The kernel takes the connection, nobody answers the handshake.
    let error = send(request(&silent)).await.unwrap_err();
    assert!(matches!(error, OutboundError::Connect { sent: false, .. }), "{error:?}");
    assert_not_shown(&error);
}

#[tokio::test]
async fn each_try_is_a_client_span_whose_context_travels() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    // While there is only one subscriber, a span that another test's thread meets first is taken for unwanted for good.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let server = Scripted::start(|_| async { answer(503, "") }).await;
    send(Request { resend_count: 2, ..request(&server.url) }).await.unwrap();
    let cut = Scripted::start(|_| async { cut_answer(200, "") }).await;
    send(request(&cut.url)).await.unwrap_err();
    drop(guard);

    let spans = exporter.get_finished_spans().unwrap();
    assert_eq!(spans.len(), 2);
    let attribute = |n: usize, name: &str| {
        spans[n].attributes.iter().find(|pair| pair.key.as_str() == name).map(|pair| pair.value.to_string())
    };
    assert_eq!(spans[0].name, "GET /api/files/{id}");
    assert_eq!(spans[0].span_kind, SpanKind::Client);
    assert!(matches!(spans[0].status, Status::Error { .. }), "{:?}", spans[0].status);
    for (name, value) in [
        ("http.request.method", "GET"),
        ("server.address", "127.0.0.1"),
        ("server.port", &server.url.port().unwrap().to_string()),
        ("url.template", "/api/files/{id}"),
        ("http.response.status_code", "503"),
        ("http.request.resend_count", "2"),
        ("error.type", "503"),
    ] {
        assert_eq!(attribute(0, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(attribute(1, "error.type").as_deref(), Some("cut"));
    assert_eq!(attribute(1, "http.request.resend_count"), None);
    assert_eq!(attribute(1, "http.response.status_code"), None);
    let context = &spans[0].span_context;
    assert_eq!(
        server.seen()[0].header("traceparent"),
        Some(format!("00-{}-{}-01", context.trace_id(), context.span_id()).as_str())
    );
    let all = format!("{spans:?}");
    assert!(!all.contains("planted") && !all.contains("key=value"), "{all}");
}

/// Neither what is asked for nor how is part of an error.
fn assert_not_shown(error: &OutboundError) {
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("planted") && !shown.contains("value") && !shown.contains("http:"), "{shown}");
}
