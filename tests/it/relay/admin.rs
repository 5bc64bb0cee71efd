//! The admin port beside a bridge at work.

use std::time::Duration;

use defender_bridge::simulator::Fault;
use serde_json::Value;

use super::bridge_with;
use super::errors::{office, options, start};
use crate::bridge::Options;

#[tokio::test]
async fn a_bridge_at_work_is_alive_and_ready() {
    let bridge = start().await;
    assert_eq!(bridge.admin("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(bridge.admin("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(bridge.admin("/nope").await.0, 404);
    bridge.stop().await;
}

/// What is in hand is finished, and the port tells that nothing more should be sent.
#[tokio::test]
async fn a_bridge_that_stops_is_alive_but_not_ready() {
    let deadline = Duration::from_secs(4);
    let bridge = bridge_with(office(), Options { deadline, ..options() }).await;
    bridge.control().fail_next("machines", Fault::Hang, 1);
    let asked = async {
        let answer = bridge.post("/health", &Value::Null).await;
        assert_eq!(answer.errors()[0].0, "deadline", "{}", answer.text);
    };
    let stopping = async {
        bridge.control().reached("machines", 1).await;
        bridge.shutdown.begin();
        assert_eq!(bridge.admin("/readyz").await, (503, "stopping\n".to_owned()));
        assert_eq!(bridge.admin("/livez").await, (200, "ok\n".to_owned()));
        assert_eq!(bridge.admin("/metrics").await.0, 200);
    };
    tokio::join!(asked, stopping);
    bridge.stop().await;
}

#[tokio::test]
async fn the_metrics_tell_of_requests_jobs_and_what_memory_answered() {
    let bridge = bridge_with(office(), Options { answer_ttl: Duration::from_secs(600), ..options() }).await;
    let a = [("domain", "a.example")];
    for _ in 0..2 {
        assert_eq!(bridge.observe(&a).await.sightings().len(), 3);
    }
    bridge.post("/health", &Value::Null).await;
    bridge.post_as("x", "/health", &Value::Null).await;
    bridge.post("/nope", &Value::Null).await;
    bridge.post("/observe/observables", &Value::Null).await;
    let (status, text) = bridge.admin("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "bridge_request_duration_seconds_count{route=\"/observe/observables\",outcome=\"ok\"} 2",
        "bridge_request_duration_seconds_count{route=\"/observe/observables\",outcome=\"invalid payload\"} 1",
        "bridge_request_duration_seconds_count{route=\"/health\",outcome=\"ok\"} 1",
        "bridge_request_duration_seconds_count{route=\"/health\",outcome=\"authorization error\"} 1",
        "bridge_request_duration_seconds_count{route=\"unmatched\",outcome=\"NotFound\"} 1",
        "bridge_job_duration_seconds_count{job=\"observe\",outcome=\"ok\"} 2",
        "bridge_job_duration_seconds_count{job=\"health\",outcome=\"ok\"} 1",
        "bridge_job_wait_seconds_count{queue=\"relay\",lane=\"normal\"} 3",
        "bridge_answers_from_cache_total{outcome=\"hit\"} 1",
        "bridge_answers_from_cache_total{outcome=\"miss\"} 1",
        "bridge_jobs_in_hands{queue=\"relay\"} 0",
        "bridge_broker_connected 1",
        "bridge_queue_ready{queue=\"relay\",lane=\"normal\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    // Nothing of what was asked, nor of whom, is in it.
    for secret in ["a.example", defender_bridge::simulator::scenario::DEMO_TENANT_ID] {
        assert!(!text.contains(secret), "{secret}");
    }
    bridge.stop().await;
}
