//! Quotas.

use defender_bridge::simulator::scenario::{DROPPED_SHA1, UNSEEN_ADDRESS};
use defender_bridge::simulator::{Quota, Settings};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::World;

#[tokio::test]
async fn quotas_refuse_with_the_time_to_wait_and_count_each_family_alone() {
    let quota = Quota { per_minute: 3, hunting_per_minute: 2, ..Quota::default() };
    let world = World::with(Settings { quota: Some(quota), ..Settings::default() }).await;
    for _ in 0..3 {
        assert_eq!(world.get(&format!("/api/ips/{UNSEEN_ADDRESS}/alerts")).await.status(), 200);
    }
    // Files and alerts are one row of the table of limits, machines another.
    let refused = world.get(&format!("/api/files/{DROPPED_SHA1}")).await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "429");
    assert_eq!(body["error"]["message"], "API calls quota exceeded! maximum allowed 3 per 00:01:00");
    assert_eq!(world.get("/api/machines").await.status(), 200);
    for _ in 0..2 {
        let _ = world.hunt("DeviceInfo | take 1").await;
    }
    let response = world.hunt_with(&world.graph, json!({"Query": "DeviceInfo | take 1"})).await;
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "TooManyRequests");
    assert_eq!(world.control().throttled(), 2);
    world.control().set_quota(None);
    assert_eq!(world.get(&format!("/api/files/{DROPPED_SHA1}")).await.status(), 200);
}

#[tokio::test]
async fn a_short_window_passes() {
    let quota = Quota { per_minute: 1, minute_seconds: 0.05, ..Quota::default() };
    let world = World::with(Settings { quota: Some(quota), ..Settings::default() }).await;
    let mut refused = 0;
    // However slow the machine: the window passes, so a call is allowed again sooner or later.
    for allowed in 0..3 {
        while world.get("/api/machines").await.status() == StatusCode::TOO_MANY_REQUESTS {
            refused += 1;
            assert!(refused < 10_000, "still refused after {allowed} calls");
        }
    }
}
