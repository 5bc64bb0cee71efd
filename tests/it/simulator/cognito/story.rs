//! The story's hosts beside Defender's machines, and hosts in bulk.

use std::collections::HashMap;

use defender_bridge::simulator::Settings;
use defender_bridge::simulator::cognito::{
    BUILD_SERVER_HOST, BulkKind, DOMAIN_CONTROLLER_HOST, ENGINEERING_HOST, FILE_SERVER_HOST, FINANCE_HOST,
    FORGOTTEN_HOST, HR_HOST, KIOSK_HOST, MOVED_HOST, PRINTER_HOST, PROTECTED_GROUP, SHARED_ADDRESS_HOST,
};
use defender_bridge::simulator::scenario::DEMO_TENANT_ID;
use serde_json::{Value, json};

use super::Cognito;
use crate::simulator::World;

/// The names of the machines that an address lookup finds for a host as Cognito shows it.
async fn machines(world: &World, host: &Value) -> Vec<String> {
    let path =
        format!("/api/machines/findbyip(ip={},timestamp={})", host["last_source"], host["last_seen"].as_str().unwrap())
            .replace('"', "'");
    let (status, body) = world.read(&path).await;
    assert_eq!(status, 200, "{path}: {body}");
    let found = body["value"].as_array().unwrap();
    found.iter().map(|machine| machine["computerDnsName"].as_str().unwrap().to_owned()).collect()
}

fn no_quota() -> Settings {
    Settings { quota: None, ..Settings::default() }
}

/// A host as the brain of this world shows it.
async fn shown(world: &World, id: u64) -> Value {
    let token = format!("Token {}", defender_bridge::simulator::cognito::BRAIN_TOKEN);
    let call = world.http.get(world.at(&format!("/api/v2.5/hosts/{id}"))).header("authorization", token);
    call.send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn the_storys_hosts_lead_to_the_machines_they_should() {
    let world = World::with(no_quota()).await;
    for (id, expected) in [
        (FINANCE_HOST, vec!["fin-ws-07.corp.example"]),
        (HR_HOST, vec!["hr-ws-12.corp.example"]),
        (ENGINEERING_HOST, vec!["eng-ws-03.corp.example"]),
        (FILE_SERVER_HOST, vec!["files-01.corp.example"]),
        (BUILD_SERVER_HOST, vec!["build-lnx-02"]),
        (DOMAIN_CONTROLLER_HOST, vec!["dc-01.corp.example"]),
        (KIOSK_HOST, vec![]),
        (SHARED_ADDRESS_HOST, vec!["vdi-01.corp.example", "vdi-02.corp.example"]),
        (PRINTER_HOST, vec![]),
        (MOVED_HOST, vec!["hr-ws-12.corp.example"]),
    ] {
        let host = shown(&world, id).await;
        assert_eq!(machines(&world, &host).await, expected, "{id} {}", host["name"]);
    }
    let forgotten = shown(&world, FORGOTTEN_HOST).await;
    assert_eq!((forgotten.get("last_seen"), &forgotten["state"]), (None, &json!("inactive")));
    assert_eq!(shown(&world, ENGINEERING_HOST).await["groups"][0]["name"], PROTECTED_GROUP);
    assert_eq!(shown(&world, BUILD_SERVER_HOST).await["is_key_asset"], true);
    assert_eq!(shown(&world, DOMAIN_CONTROLLER_HOST).await["privilege_category"], "High");
    let authors: Vec<Value> = shown(&world, HR_HOST).await["notes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|note| note["created_by"].clone())
        .collect();
    assert_eq!(authors, ["analyst.one", "analyst.two"]);
}

#[tokio::test]
async fn hosts_and_machines_stay_together_when_the_clock_is_moved() {
    let world = World::with(no_quota()).await;
    let before = shown(&world, FINANCE_HOST).await["last_seen"].clone();
    world.control().set_clock(Some("2026-08-08T08:00:00Z".parse().unwrap()));
    let host = shown(&world, FINANCE_HOST).await;
    assert_ne!(host["last_seen"], before);
    assert_eq!(host["last_seen"], "2026-08-08T07:20:00Z");
    assert_eq!(machines(&world, &host).await, ["fin-ws-07.corp.example"]);
}

#[tokio::test]
async fn of_two_thousand_hosts_in_bulk_each_finds_its_own_machine() {
    let world = World::with(no_quota()).await;
    let bulk = world.control().brain().add_bulk(DEMO_TENANT_ID, 2_000, 20, 7).unwrap();
    assert_eq!(bulk.len(), 2_000);
    let mut seen: HashMap<String, u64> = HashMap::new();
    for host in bulk.iter().step_by(10) {
        let found = machines(&world, &shown(&world, host.id).await).await;
        assert_eq!(found.len(), host.machines.len(), "{host:?}");
        let expected = match host.kind {
            BulkKind::NoAgent => 0,
            BulkKind::SharedAddress => 2,
            _ => 1,
        };
        assert_eq!(found.len(), expected, "{host:?}");
        for name in found {
            assert_eq!(seen.insert(name, host.id), None);
        }
        for machine in &host.machines {
            assert_eq!(world.read(&format!("/api/machines/{machine}")).await.0, 200);
        }
    }
    assert_eq!(world.read("/api/machines/fin-ws-07.corp.example").await.0, 200, "the story is still there");
    assert_eq!(world.control().brain().add_bulk("nobody", 1, 0, 7), None);
}

#[tokio::test]
async fn everything_can_be_controlled_over_http() {
    let cognito = Cognito::story().await;
    let path = |rest: &str| format!("/cognito{rest}");
    let new = json!({"id": 5, "name": "new", "address": "192.0.2.5", "last_seen": "@-5m", "tags": ["a"]});
    for (method, rest, body, status) in [
        ("PUT", "/hosts/5", new.clone(), 200),
        ("PUT", "/hosts/6", new, 400),
        ("PUT", "/hosts/5x", json!({}), 404),
        ("POST", "/hosts/5/tags", json!({"add": ["b", "c"], "remove": ["a"], "actor": "analyst.two"}), 200),
        ("POST", "/hosts/5/tags", json!({"add": ["late"], "in_gap": true}), 200),
        ("POST", "/hosts/99/tags", json!({"add": ["b"]}), 404),
        ("POST", "/hosts/5/tags", json!({"tags": []}), 400),
        ("POST", "/tags", json!({"hosts": [5, FINANCE_HOST], "tag": "many"}), 200),
        ("POST", "/tags", json!({"hosts": [FINANCE_HOST], "tag": "many", "remove": true}), 200),
        ("POST", "/hosts/5/notes", json!({"text": "hello"}), 200),
        ("PUT", "/hosts/5/scores", json!({"threat": 60, "certainty": 61}), 200),
        ("POST", "/audits", json!({"user": "analyst.two", "message": "log in"}), 200),
        (
            "PUT",
            "/behaviour",
            json!({"rate_per_second": null, "shuffle_tags": false, "withheld": ["write_notes"]}),
            200,
        ),
        ("PUT", "/behaviour", json!({"colour": "red"}), 400),
        ("PUT", "/behaviour", json!([]), 400),
        ("PUT", "/emit", json!({"url": "http://127.0.0.1:1/", "lost": 1.0}), 200),
        ("PUT", "/emit", json!({"url": "http://127.0.0.1:1/", "lost": 2.0}), 400),
        ("POST", "/bulk", json!({"tenant": DEMO_TENANT_ID, "count": 3}), 200),
        ("POST", "/bulk", json!({"tenant": DEMO_TENANT_ID, "count": 200_000}), 400),
        ("POST", "/bulk", json!({"tenant": "nobody", "count": 3}), 400),
        ("DELETE", "/tokens", json!(null), 200),
        ("PUT", "/hosts/9", json!({"id": 9, "name": "gone"}), 200),
        ("DELETE", "/hosts/9", json!(null), 200),
        ("DELETE", "/hosts/9", json!(null), 404),
        ("GET", "/nothing", json!(null), 404),
    ] {
        let (found, answer) = cognito.control_call(method, &path(rest), body.clone()).await;
        assert_eq!(found, status, "{method} {rest} {body}: {answer}");
    }
    let (_, tags) = cognito.control_call("GET", &path("/hosts/5/tags"), json!(null)).await;
    assert_eq!((&tags["tags"], tags["history"].as_array().unwrap().len()), (&json!(["b", "c", "many"]), 4));
    assert_eq!(
        (&tags["history"][0]["actor"], &tags["history"][0]["writer"]),
        (&json!("analyst.two"), &json!("analyst"))
    );
    assert_eq!(cognito.control_call("GET", &path("/hosts/5/notes"), json!(null)).await.1["notes"][0]["text"], "hello");
    assert_eq!(cognito.control_call("GET", &path("/hosts/5"), json!(null)).await.1["threat"], 60);
    assert_eq!(
        cognito.control_call("GET", &path("/hosts"), json!(null)).await.1["hosts"].as_array().unwrap().len(),
        15
    );
    let (_, emit) = cognito.control_call("GET", &path("/emit"), json!(null)).await;
    assert_eq!((&emit["emit"]["url"], &emit["emitted"]["waiting"]), (&json!("http://127.0.0.1:1/"), &json!(0)));
    assert_eq!(
        cognito.control_call("GET", &path("/behaviour"), json!(null)).await.1["withheld"],
        json!(["write_notes"])
    );
    let host = "/api/v2.5/tagging/host/5";
    cognito.get(host).await;
    cognito.ask("PATCH", host, Some(json!({"tags": ["b", "mde:x=1"]}))).await;
    let (_, undone) = cognito.control_call("GET", &path("/undone?prefix=mde:&tag=many"), json!(null)).await;
    let undone: Vec<(&str, bool)> = undone["undone"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["tag"].as_str().unwrap(), one["raced"] == true))
        .collect();
    assert_eq!(undone, [("c", false), ("late", true)]);
    assert_eq!(cognito.control_call("PUT", &path("/token"), json!({"token": "t2"})).await.0, 200);
    assert_eq!(cognito.get(host).await.0, 401);
    assert_eq!(cognito.control_call("POST", "/reset", json!(null)).await.0, 200);
    assert_eq!(cognito.get(host).await.0, 404);
    assert_eq!(cognito.brain().hosts().len(), 11);
}
