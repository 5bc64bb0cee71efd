//! Scripts, data, the clock, and the controls over HTTP.

use defender_bridge::simulator::scenario::{BENIGN_ADDRESS, DEMO_TENANT_ID, DROPPED_SHA1, DROPPED_SHA256, UNSEEN_SHA1};
use defender_bridge::simulator::{Quota, Resource, Scripted, Settings};
use serde_json::{Value, json};

use super::{DEFENDER_SCOPE, World, ids};

#[tokio::test]
async fn a_scripted_answer_comes_before_story_quota_and_role_but_not_before_the_token() {
    let mut world = World::with(Settings {
        quota: Some(Quota { per_minute: 0, hunting_per_minute: 0, ..Quota::default() }),
        ..Settings::default()
    })
    .await;
    world.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &[]);
    world.renew().await;
    let script: Vec<Scripted> = serde_json::from_value(json!([
        {"method": "GET", "path": "/machines", "query": "$top=1", "status": 200, "body": {"value": [{"id": "scripted"}]}},
        {"method": "GET", "path": "/ips/192.0.2.2/alerts", "status": 429, "body": {"error": {"code": "TooManyRequests", "message": "m"}}},
        {"method": "DELETE", "path": "/indicators/13", "status": 204},
        {"hunting": true, "status": 403, "body": {"error": {"code": "Forbidden", "message": "m"}}},
    ]))
    .unwrap();
    world.control().script(script).unwrap();
    for _ in 0..2 {
        assert_eq!(ids(&world.read("/api/machines?$top=1").await.1), ["scripted"]);
    }
    assert_eq!(world.get("/api/machines?$top=2").await.status(), 429);
    assert_eq!(world.read("/api/ips/192.0.2.2/alerts").await.1["error"]["message"], "m");
    let deleted = world.http.delete(world.at("/api/indicators/13")).bearer_auth(&world.defender).send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    assert_eq!(world.hunt("DeviceInfo").await.1["error"]["message"], "m");
    assert_eq!(world.get_with("nonsense", "/api/machines?$top=1").await.unwrap().status(), 401);
    world.control().script(Vec::new()).unwrap();
    assert_eq!(world.get("/api/machines?$top=1").await.status(), 429);
    let wrong = json!({"RemoteIP": "192.0.2.1", "NoSuchColumn": 1});
    assert!(world.control().script(vec![Scripted::rows(vec![wrong.as_object().unwrap().clone()])]).is_err());
}

#[tokio::test]
async fn everything_can_be_controlled_over_http() {
    let world = World::start().await;
    let (status, health) = world.control_call("GET", "/health", json!(null)).await;
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    for (method, path, body, status) in [
        ("POST", "/faults", json!({"match": {"route": "machines"}, "fault": {"kind": "refuse", "status": 500}}), 200),
        ("POST", "/faults", json!({"fault": {"kind": "explode"}}), 400),
        ("POST", "/faults", json!({"fault": {"kind": "hang"}, "times": 1, "rate": 0.5}), 400),
        ("PUT", "/script", json!([{"path": "/alerts/x", "body": {"id": "x"}}]), 200),
        ("PUT", "/script", json!([{"hunting": true, "rows": [{"Nope": 1}]}]), 400),
        ("PUT", "/roles", json!({"tenant": DEMO_TENANT_ID, "resource": "graph", "roles": []}), 200),
        ("PUT", "/roles", json!({"tenant": "nobody", "resource": "graph", "roles": []}), 400),
        ("PUT", "/tenants", json!({"id": "t3", "client_id": "c", "client_secret": "s"}), 200),
        ("PUT", "/data/t3", json!({"files": [{"sha1": UNSEEN_SHA1}]}), 200),
        ("PUT", "/data/t4", json!({}), 400),
        ("PUT", "/clock", json!({"now": "2024-03-08T00:00:00Z"}), 200),
        (
            "PUT",
            "/settings",
            json!({"quota": null, "page_size": 1, "latency_ms": 0, "hidden_tables": ["DeviceInfo"]}),
            200,
        ),
        ("PUT", "/settings", json!({"quotas": null}), 400),
        ("GET", "/nothing", json!(null), 404),
    ] {
        let (found, answer) = world.control_call(method, path, body.clone()).await;
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
    }
    assert_eq!(world.read("/api/machines").await.0, 500);
    assert_eq!(world.read("/api/alerts/x").await.1, json!({"id": "x"}));
    assert_eq!(ids(&world.read("/api/machines").await.1).len(), 1);
    assert_eq!(world.control().now().strftime("%Y-%m-%d").to_string(), "2024-03-08");
    let token = world.token("t3", "c", "s", DEFENDER_SCOPE).await;
    assert_eq!(world.get_with(&token, &format!("/api/files/{UNSEEN_SHA1}")).await.unwrap().status(), 200);
    let (_, book) = world.control_call("GET", "/requests?route=machines", json!(null)).await;
    assert_eq!((&book["calls"]["machines"], book["requests"].as_array().unwrap().len()), (&json!(2), 2));
    assert_eq!(world.control_call("DELETE", "/tokens", json!(null)).await.0, 200);
    assert_eq!(world.get("/api/machines").await.status(), 401);
    assert_eq!(world.control_call("POST", "/reset", json!(null)).await.0, 200);
    assert_eq!(world.control().calls("machines"), 0);
    assert_ne!(world.control().now().strftime("%Y").to_string(), "2024");
}

#[tokio::test]
async fn worked_examples_become_a_tenants_data() {
    let world = World::start().await;
    let tenant = "11111111-2222-4333-8444-555555555555";
    let machine = "6035c8a86d4961346736ec90e668c8d2694b7f57";
    let example = json!({
        "tenant_id": tenant,
        "observable": {"type": "sha256", "value": DROPPED_SHA256.to_uppercase()},
        "defender": {
            "alerts": {"value": [{"id": "da1_1", "alertCreationTime": "2024-03-05T10:20:31.5Z", "evidence": []}]},
            "hunting_events": {"rows": [
                {"Timestamp": "2024-03-06T07:00:05.75Z", "DeviceId": machine, "RemoteIP": "203.0.113.77", "RemotePort": 443},
                {"Timestamp": "2024-03-07T12:00:02Z", "DeviceId": machine, "FileName": "a.exe", "SHA1": DROPPED_SHA1},
            ]},
            "files": [{"sha1": DROPPED_SHA1, "sha256": DROPPED_SHA256}],
            "machines": [{"id": machine, "computerDnsName": "finance-pc7.corp.example"}],
            "adapters": [{"DeviceId": machine, "MacAddress": "0A1B2C3D4E5F", "IPAddresses": ["192.0.2.41"]}],
        },
    });
    world.control().load_example(tenant, &example).unwrap();
    assert_eq!(world.control().now().strftime("%Y-%m-%dT%H").to_string(), "2024-03-07T13");
    let token = world.token(tenant, "client-id-1", "client-secret-1", DEFENDER_SCOPE).await;
    let (world, token) = (&world, &token);
    let read = |path: String| async move { world.get_with(token, &path).await.unwrap().json::<Value>().await.unwrap() };
    assert_eq!(read(format!("/api/files/{DROPPED_SHA256}")).await["sha1"], DROPPED_SHA1);
    assert_eq!(ids(&read(format!("/api/files/{DROPPED_SHA1}/alerts")).await), ["da1_1"]);
    assert_eq!(read(format!("/api/machines/{machine}")).await["computerDnsName"], "finance-pc7.corp.example");
    assert_eq!(read(format!("/api/ips/{BENIGN_ADDRESS}/alerts")).await["value"], json!([]));
}
