//! The simulator's story, as an analyst would ask about it.

use defender_bridge::simulator::scenario::{C2_ADDRESS, DROPPED_SHA256, PHISHING_DOMAIN};

use crate::bridge::{Answer, TestBridge};

#[tokio::test]
async fn the_story_is_answered_in_request_order_and_leaves_its_marks() {
    let bridge = TestBridge::start().await;
    let asked = [("ip", C2_ADDRESS), ("domain", PHISHING_DOMAIN), ("sha256", DROPPED_SHA256)];
    let answer = bridge.observe(&asked).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.errors(), []);
    let mut order: Vec<String> = answer
        .sightings()
        .iter()
        .map(|sighting| sighting["observables"][0]["value"].as_str().expect("a value").to_owned())
        .collect();
    assert!(order.len() >= 6, "{order:?}");
    order.dedup();
    assert_eq!(order, asked.map(|(_, value)| value));
    let trace = answer.headers.get("content-type").expect("a content type");
    assert_eq!(trace, "application/json");

    let admin = |path: &str| bridge.client.get(format!("http://{}{path}", bridge.admin)).send();
    let ready = Answer::of(admin("/readyz").await.expect("the admin port answers")).await;
    assert_eq!((ready.status, ready.text.as_str()), (200, "ok\n"));
    let metrics = Answer::of(admin("/metrics").await.expect("the admin port answers")).await.text;
    for series in [
        "bridge_request_duration_seconds_count{route=\"/observe/observables\",outcome=\"ok\"} 1",
        "bridge_job_duration_seconds_count{job=\"observe\",outcome=\"ok\"} 1",
        "bridge_outbound_calls_total{family=\"hunting\",outcome=\"2xx\"}",
        "bridge_broker_connected 1",
    ] {
        assert!(metrics.contains(series), "{series} is not in\n{metrics}");
    }
    assert!(bridge.folder.path().join("queue.sqlite").exists());
    bridge.stop().await;
}
