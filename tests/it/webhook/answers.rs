//! Every status of `cognito.md` 4.5, and the order of the checks behind them.

use defender_bridge::broker::{Broker as _, Lane};
use defender_bridge::config::WebhookSettings;
use defender_bridge::job::TOPOLOGY;
use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Hook, OnSqlite, PATIENCE, Place, TOKEN, example, named, on_both_queues, send, settings, tagged};
use crate::bridge::Answer;

const LIMIT: usize = 262_144;

on_both_queues! {
    accepted_ignored_and_rejected_events_are_told_apart,
    an_event_that_cannot_be_stored_is_to_be_sent_again,
}

fn assert_problem(answer: &Answer, name: &str) {
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!((answer.status, answer.json()), (answer.json()["status"].as_u64().unwrap() as u16, example(name)));
}

/// A request whose body has no declared length.
fn chunked(body: Vec<u8>) -> reqwest::Body {
    let pieces: Vec<_> = body.chunks(64 * 1024).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
}

fn spaces(bytes: usize) -> Vec<u8> {
    [b"{".as_slice(), &vec![b' '; bytes - 2], b"}"].concat()
}

async fn accepted_ignored_and_rejected_events_are_told_apart<P: Place>() {
    let hook = Hook::start::<P>().await;
    let answer = hook.post_signed("msg_7Yt2QpLx0aZk", &example("event.batch")).await;
    assert_eq!((answer.status, answer.json()), (202, example("webhook.202.mixed")));
    assert_eq!(answer.headers["content-type"], "application/json");
    let queued = hook.drain_all().await;
    let mut ids: Vec<&str> = queued.iter().map(|queued| queued.host.event_id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["evt-2026-000001", "msg_7Yt2QpLx0aZk.1"]);

    let answer = hook.post(&example("event.host.tag.added")).await;
    assert_eq!((answer.status, answer.json()), (202, example("webhook.202.single")));

    // Nothing but what is ignored is well.
    let answer = hook.post(&example("native.qux.audit.login")).await;
    let ignored = json!({"accepted": [], "ignored": [{"index": 0, "reason": "unknown_kind"}], "rejected": []});
    assert_eq!((answer.status, answer.json()), (202, ignored));

    let bad = json!({"type": "host.scored", "host": {"id": "not-a-number"}});
    let answer = hook.post(&bad).await;
    assert_eq!(answer.status, 422);
    assert_problem(&answer, "webhook.422");
    let answer = hook.post(&json!([bad, 7])).await;
    let rejected = json!([
        {"index": 0, "code": "invalid_host_id", "pointer": "/0/host/id"},
        {"index": 1, "code": "not_an_object", "pointer": "/1"},
    ]);
    assert_eq!((answer.status, &answer.json()["rejected"]), (422, &rejected));

    let metrics = hook.metrics().await;
    for line in [
        "bridge_webhook_events_total{outcome=\"accepted\",reason=\"host.tag.added\"} 2",
        "bridge_webhook_events_total{outcome=\"accepted\",reason=\"host.scored\"} 1",
        "bridge_webhook_events_total{outcome=\"ignored\",reason=\"unknown_kind\"} 2",
        "bridge_webhook_events_total{outcome=\"rejected\",reason=\"invalid_host_id\"} 3",
        "bridge_webhook_events_total{outcome=\"rejected\",reason=\"not_an_object\"} 1",
        "bridge_request_duration_seconds_count{route=\"/webhooks/cognito\",outcome=\"ok\"} 3",
        "bridge_request_duration_seconds_count{route=\"/webhooks/cognito\",outcome=\"no_valid_event\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    hook.stop().await;
}

async fn an_event_that_cannot_be_stored_is_to_be_sent_again<P: Place>() {
    let hook = Hook::start::<P>().await;
    hook.broker.close().await;
    let answer = hook.post(&tagged(1, "block")).await;
    assert_eq!(answer.status, 503);
    assert_problem(&answer, "webhook.503");
    assert_eq!(answer.headers["retry-after"], "15");
    // What needs no queue does not wait for it.
    assert_eq!(hook.post(&example("native.qux.audit.login")).await.status, 202);
    assert_eq!(hook.post(&json!({"type": "host.reconcile"})).await.status, 422);
    assert_eq!(hook.post(&json!([tagged(1, "block"), example("native.qux.audit.login")])).await.status, 503);
    hook.stop().await;
}

#[tokio::test]
async fn there_is_no_webhook_without_a_sender() {
    let hook = Hook::start_with::<OnSqlite>(None, &TOPOLOGY).await;
    for method in [Method::POST, Method::GET, Method::OPTIONS] {
        let url = format!("http://{}/webhooks/cognito", hook.address);
        let answer = send(hook.client.request(method, url).bearer_auth(TOKEN).json(&tagged(1, "block"))).await;
        let unknown = json!({"code": 404, "message": "The requested URL was not found.", "reason": "NotFound"});
        assert_eq!((answer.status, answer.json()), (404, unknown));
    }
    hook.stop().await;
}

#[tokio::test]
async fn only_post_is_allowed() {
    let hook = Hook::start::<OnSqlite>().await;
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND"] {
        for path in ["/webhooks/cognito", "/webhooks/cognito/", "/webhooks/cognito?a=b"] {
            let url = format!("http://{}{path}", hook.address);
            let request =
                hook.client.request(method.parse().unwrap(), url).bearer_auth(TOKEN).json(&tagged(1, "block"));
            let answer = send(request).await;
            assert_eq!((answer.status, &answer.headers["allow"]), (405, &"POST".parse().unwrap()), "{method} {path}");
            assert_eq!(answer.text.is_empty(), method == "HEAD", "{method} {path}: {}", answer.text);
        }
    }
    assert_eq!(hook.ready(Lane::Urgent).await, 0);
    // The relay's routes go by their own rules beside it.
    let answer = send(hook.client.post(format!("http://{}/version", hook.address))).await;
    assert_eq!(answer.status, 200);
    hook.stop().await;
}

#[tokio::test]
async fn a_body_has_at_most_262144_bytes() {
    let hook = Hook::start::<OnSqlite>().await;
    for (bytes, status) in [(LIMIT, 202), (LIMIT + 1, 413), (8 * LIMIT, 413)] {
        for (how, body) in [("declared", spaces(bytes).into()), ("chunked", chunked(spaces(bytes)))] {
            let request = hook.request().bearer_auth(TOKEN).header("content-type", "application/json");
            let answer = send(request.body::<reqwest::Body>(body)).await;
            assert_eq!(answer.status, status, "{bytes} {how}: {}", answer.text);
            if status == 413 {
                assert_problem(&answer, "webhook.413");
            }
        }
    }
    hook.stop().await;
}

#[tokio::test]
async fn a_body_is_json_that_says_so() {
    let hook = Hook::start::<OnSqlite>().await;
    let request = |kind: &str, body: &'static [u8]| {
        send(hook.request().bearer_auth(TOKEN).header("content-type", kind).body(body))
    };
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/problem+json", "json"] {
        let answer = request(kind, b"{}").await;
        assert_eq!(answer.status, 415, "{kind}");
        assert_problem(&answer, "webhook.415");
    }
    assert_eq!(send(hook.request().bearer_auth(TOKEN).body("{}")).await.status, 415);
    let compressed = hook.request().bearer_auth(TOKEN).json(&json!({})).header("content-encoding", "gzip");
    assert_eq!(send(compressed).await.status, 415);
    assert_eq!(request("application/json; charset=utf-8", b"{}").await.status, 202);
    for body in [&b""[..], b"{", b"null", b"7", b"\"{}\"", b"{\"a\": \"\xff\"}", b"{}{}"] {
        let answer = request("application/json", body).await;
        assert_eq!(answer.status, 400, "{body:?}");
        assert_problem(&answer, "webhook.400");
    }
    for (count, code) in [(0, "no_event"), (101, "too_many_events")] {
        let answer = hook.post(&vec![json!({}); count].into()).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(code)), "{count}");
    }
    assert_eq!(hook.post(&vec![json!({}); 100].into()).await.status, 202);
    hook.stop().await;
}

/// A webhook that soon has enough of its senders.
fn strict() -> Option<WebhookSettings> {
    Some(WebhookSettings { rate: 1, peer_rate: 1, ..settings() })
}

fn code(answer: &Answer) -> String {
    answer.json()["code"].as_str().expect("a code").to_owned()
}

#[tokio::test]
async fn the_checks_have_an_order() {
    let hook = Hook::start_with::<OnSqlite>(strict(), &TOPOLOGY).await;
    let url = format!("http://{}/webhooks/cognito", hook.address);

    // Method before declared size.
    let answer = send(hook.client.put(&url).body(spaces(LIMIT + 1))).await;
    assert_eq!(code(&answer), "method_not_allowed");
    // Size, as read, before authentication; neither is free for the address.
    let answer = send(hook.request().body(chunked(spaces(LIMIT + 1)))).await;
    assert_eq!(code(&answer), "body_too_large");
    // Authentication before content type and JSON; the rate of the address before authentication.
    let mut codes = Vec::new();
    while codes.last().is_none_or(|last| last != "rate_limited") {
        codes.push(code(&send(hook.request().body("no JSON")).await));
    }
    assert!(codes.iter().rev().skip(1).all(|code| code == "unauthorized"), "{codes:?}");
    // Declared size before the rate of the address.
    let answer = send(hook.request().body(spaces(LIMIT + 1))).await;
    assert_eq!(code(&answer), "body_too_large");
    hook.stop().await;

    // The rate of the address before who it is, good token or not.
    let hook = Hook::start_with::<OnSqlite>(strict(), &TOPOLOGY).await;
    let limited = async {
        loop {
            while send(hook.request().body("{}")).await.status != 429 {}
            let answer = hook.post(&json!({})).await;
            if answer.status == 429 {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, limited).await.expect("one within the same second");
    assert_eq!((code(&answer).as_str(), &answer.headers["retry-after"]), ("rate_limited", &"1".parse().unwrap()));
    hook.stop().await;

    // The rate of the sender before the content type; content type before JSON.
    let hook = Hook::start_with::<OnSqlite>(strict(), &TOPOLOGY).await;
    let mut codes = Vec::new();
    while codes.last().is_none_or(|last| last != "rate_limited") {
        codes.push(code(&send(hook.request().bearer_auth(TOKEN).body("no JSON")).await));
    }
    assert!(codes.len() > 2 && codes.iter().rev().skip(1).all(|code| code == "unsupported_media_type"), "{codes:?}");
    // Authentication before the rate of the sender.
    let answer = send(hook.request().bearer_auth("somebody else's").body("no JSON")).await;
    assert_eq!(code(&answer), "unauthorized");
    hook.stop().await;
}

#[tokio::test]
async fn a_process_that_stops_takes_no_more_events() {
    let hook = Hook::start::<OnSqlite>().await;
    let mut wire = tokio::net::TcpStream::connect(hook.address).await.unwrap();
    hook.shutdown.begin();
    let body = named("evt-1", 1, "block").to_string();
    let request = format!(
        "POST /webhooks/cognito HTTP/1.1\r\nhost: bridge\r\nauthorization: Bearer {TOKEN}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    wire.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, wire.read_to_string(&mut answer)).await.expect("an answer in time");
    read.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"code\":\"stopping\""), "{answer}");
    assert!(answer.contains("retry-after: 15\r\n"), "{answer}");
    hook.running.wait().await.expect("the roles stop in order");
}
