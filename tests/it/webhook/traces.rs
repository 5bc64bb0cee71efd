//! A host event belongs to its sender's trace, as far as the queue.

use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::broker::{Broker as _, Lane};
use defender_bridge::job;
use defender_bridge::job::TOPOLOGY;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use super::{PATIENCE, TOKEN, send, tagged};
use crate::bridge::client;
use crate::collector::Collector;
use crate::namespaces::rabbitmq_settings;
use crate::spawned::Role;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn each_event_of_a_batch_has_a_span_that_its_message_carries_on() {
    let collector = Collector::start().await;
    let link: rabbitmq::Settings = rabbitmq_settings("webhook", &TOPOLOGY);
    let mut ingress = Role::new("ingress")
        .set("BRIDGE_BROKER_URL", link.urls[0].clone())
        .set("BRIDGE_BROKER_NAMESPACE", link.namespace.clone())
        .set("BRIDGE_WEBHOOK_TOKEN", TOKEN)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .start()
        .await;
    let request = client().post(ingress.url("/webhooks/cognito")).bearer_auth(TOKEN);
    let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    let answer = send(request.json(&json!([tagged(1, "block"), tagged(2, "block")]))).await;
    assert_eq!(answer.status, 202, "{}", answer.text);

    let broker = RabbitMq::connect(link).await.expect("RabbitMQ is there");
    let mut receiver = broker.receive(&job::HOSTS, Lane::Urgent, 10).await.expect("receiving");
    let mut parents = Vec::new();
    for _ in 0..2 {
        let delivery = tokio::time::timeout(PATIENCE, receiver.next()).await.expect("in time").expect("a message");
        parents.push(delivery.message.headers["traceparent"].clone());
    }
    drop(receiver);
    broker.close().await;
    ingress.stop().await;

    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    let server: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Server).collect();
    let [server] = server[..] else { panic!("{spans:#?}") };
    assert_eq!((server.name.as_str(), server.parent.as_str()), ("POST /webhooks/cognito", CALLER));
    assert_eq!(server.get("http.response.status_code"), "202");
    assert_eq!(answer.headers["traceresponse"], format!("00-{TRACE}-{}-01", server.id).as_str());
    let mut sent: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Producer).collect();
    assert_eq!(sent.len(), 2, "{spans:#?}");
    for span in &sent {
        assert_eq!((span.name.as_str(), span.parent.as_str()), ("send hosts", server.id.as_str()));
        assert_eq!((span.get("job.kind"), span.get("messaging.system")), ("host.tag.added", "rabbitmq"));
        assert!(!span.failed);
    }
    sent.sort_by(|a, b| a.id.cmp(&b.id));
    parents.sort();
    let expected: Vec<String> = sent.iter().map(|span| format!("00-{TRACE}-{}-01", span.id)).collect();
    assert_eq!(parents, expected);
}
