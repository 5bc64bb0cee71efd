//! The story hangs together, and both of its sides tell it alike.

use std::collections::HashSet;

use defender_bridge::simulator::scenario::{self, DEMO_TENANT_ID, FINANCE_WORKSTATION, UNKNOWN_MACHINE};

use serde_json::json;

use super::World;

#[tokio::test]
async fn the_story_is_told_anew_when_the_clock_is_moved() {
    let world = World::start().await;
    world.control().set_clock(Some("2031-05-06T07:08:09Z".parse().unwrap()));
    let (_, machine) = world.read(&format!("/api/machines/{FINANCE_WORKSTATION}")).await;
    assert_eq!(machine["lastSeen"], "2031-05-06T06:26:09.3622932Z");
}

#[tokio::test]
async fn every_alert_of_the_story_has_its_evidence_in_hunting_and_its_machine_in_the_inventory_but_one() {
    let world = World::start().await;
    let data = scenario::story(world.control().now());
    let evidence = data.table("AlertEvidence").unwrap();
    let column = |name: &str| evidence.columns.iter().position(|(column, _)| column == name).unwrap();
    let rows: HashSet<Vec<String>> = evidence
        .rows
        .iter()
        .map(|row| {
            ["AlertId", "EntityType", "SHA1", "RemoteIP", "RemoteUrl", "AccountName"]
                .map(|name| row[column(name)].to_json().as_str().unwrap_or_default().to_owned())
                .to_vec()
        })
        .collect();
    let (_, alerts) = world.read("/api/alerts?$expand=evidence").await;
    let mut unknown = HashSet::new();
    for alert in alerts["value"].as_array().unwrap() {
        for piece in alert["evidence"].as_array().into_iter().flatten() {
            let text = |member: &str| piece[member].as_str().unwrap_or_default().to_owned();
            let row = vec![
                alert["id"].as_str().unwrap().to_owned(),
                text("entityType"),
                text("sha1"),
                text("ipAddress"),
                text("url"),
                text("accountName"),
            ];
            assert!(rows.contains(&row), "{row:?}");
        }
        let machine = alert["machineId"].as_str().unwrap();
        if world.get(&format!("/api/machines/{machine}")).await.status() == 404 {
            unknown.insert(machine.to_owned());
        }
        let (_, one) = world.read(&format!("/api/alerts/{}", alert["id"].as_str().unwrap())).await;
        assert_eq!(one["title"], alert["title"]);
    }
    assert_eq!(unknown.into_iter().collect::<Vec<_>>(), [UNKNOWN_MACHINE]);
}

#[tokio::test]
async fn of_a_bulk_hunting_finds_exactly_what_is_known() {
    let world = World::start().await;
    let bulk = scenario::bulk(600, 40, 11, world.control().now());
    world.control().set_data(DEMO_TENANT_ID, bulk.data);
    let of_kind = |kind| bulk.observables.iter().filter(move |observable| observable.kind == kind);
    let hashes: Vec<&str> = of_kind("sha1").map(|observable| observable.value.as_str()).collect();
    let query =
        format!("DeviceFileEvents | where SHA1 in~ (dynamic({})) | summarize Events = count() by SHA1", json!(hashes));
    let (status, body) = world.hunt(&query).await;
    assert_eq!(status, 200, "{body}");
    let rows = body["results"].as_array().unwrap();
    let found: HashSet<&str> = rows.iter().map(|row| row["SHA1"].as_str().unwrap()).collect();
    let known: HashSet<&str> =
        of_kind("sha1").filter(|observable| observable.known).map(|observable| observable.value.as_str()).collect();
    assert!(!known.is_empty() && known.len() < hashes.len());
    assert_eq!(found, known);
    assert!(rows.iter().all(|row| row["Events"] == 2));
    for address in of_kind("ip").take(20) {
        let (_, alerts) = world.read(&format!("/api/ips/{}/alerts", address.value)).await;
        assert_eq!(alerts["value"].as_array().unwrap().len(), usize::from(address.known), "{address:?}");
    }
}
