//! The worked pairs of `relay.md` 9, answered from their inputs as the worker does it.

use rstest::rstest;
use serde_json::Value;

use super::{sighting::*, *};
use crate::{
    defender::model::{File, FileEvent, InitiatingProcess, NetworkEvent, Page},
    relay::{Observable, ObserveReply},
};

fn text(value: &Value, member: &str) -> String {
    match &value[member] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn hashes_of(row: &Value, prefix: &str) -> Hashes {
    let hash = |kind| text(row, &format!("{prefix}{kind}"));
    Hashes { sha1: hash("SHA1"), sha256: hash("SHA256"), md5: hash("MD5") }
}

fn process_of(row: &Value) -> InitiatingProcess {
    InitiatingProcess {
        hashes: hashes_of(row, "InitiatingProcess"),
        file_name: text(row, "InitiatingProcessFileName"),
        folder_path: text(row, "InitiatingProcessFolderPath"),
        parent_file_name: text(row, "InitiatingProcessParentFileName"),
    }
}

fn event_of(row: &Value, observable: &Observable) -> Event {
    if observable.kind.is_hash() {
        Event::File(FileEvent {
            timestamp: text(row, "Timestamp"),
            device_id: text(row, "DeviceId"),
            device_name: text(row, "DeviceName"),
            action_type: text(row, "ActionType"),
            file_name: text(row, "FileName"),
            folder_path: text(row, "FolderPath"),
            previous_file_name: text(row, "PreviousFileName"),
            hashes: hashes_of(row, ""),
            file_origin_url: text(row, "FileOriginUrl"),
            file_origin_referrer_url: text(row, "FileOriginReferrerUrl"),
            process: process_of(row),
            report_id: text(row, "ReportId"),
        })
    } else {
        Event::Network(NetworkEvent {
            timestamp: text(row, "Timestamp"),
            device_id: text(row, "DeviceId"),
            device_name: text(row, "DeviceName"),
            action_type: text(row, "ActionType"),
            remote_ip: text(row, "RemoteIP"),
            remote_url: text(row, "RemoteUrl"),
            local_ip: text(row, "LocalIP"),
            process: process_of(row),
            report_id: text(row, "ReportId"),
        })
    }
}

/// Answers a worked input as the worker does: newest first, and only from what was asked for.
fn answered(input: &Value) -> Value {
    let observable =
        Observable::parse(&text(&input["observable"], "type"), &text(&input["observable"], "value")).unwrap();
    let defender = &input["defender"];
    let mut alerts = serde_json::from_value::<Page<Alert>>(defender["alerts"].clone()).unwrap().value;
    let rows = defender["hunting_events"]["rows"].as_array().unwrap();
    let mut events: Vec<Event> = rows.iter().map(|row| event_of(row, &observable)).collect();
    sort_alerts(&mut alerts);
    sort_events(&mut events);
    let share = crate::relay::limit::share(
        u32::try_from(input["entities_limit"].as_u64().unwrap()).unwrap(),
        alerts.len(),
        false,
    );
    alerts.truncate(share.alerts);
    events.truncate(share.events);

    let profiles: Vec<File> = serde_json::from_value(defender["files"].clone()).unwrap();
    let machines: Vec<Machine> = serde_json::from_value(defender["machines"].clone()).unwrap();
    let mut lookups = Lookups {
        portal_url: "https://security.microsoft.com/".into(),
        tenant_id: text(input, "tenant_id"),
        ..Lookups::default()
    };
    for hash in wanted_profiles(&alerts, &events) {
        let known = |file: &&File| [&file.sha1, &file.sha256].into_iter().flatten().any(|known| *known == hash);
        if let Some(profile) = profiles.iter().find(known) {
            lookups.files.insert(hash, profile.into());
        }
    }
    for id in wanted_devices(&alerts, &events) {
        let adapters = defender["adapters"].as_array().unwrap().iter().filter(|row| row["DeviceId"] == id.as_str());
        let device = Device {
            os: machines.iter().find(|machine| machine.id == id).and_then(os_of_machine),
            adapters: adapters
                .map(|row| Adapter {
                    mac_address: text(row, "MacAddress"),
                    addresses: serde_json::from_value(row["IPAddresses"].clone()).unwrap(),
                })
                // A target puts them in order whatever the answer's order was.
                .rev()
                .collect(),
        };
        lookups.devices.insert(id, device);
    }
    let sightings = alerts
        .iter()
        .filter_map(|alert| from_alert(&observable, alert, &lookups))
        .chain(events.iter().filter_map(|event| from_event(&observable, event, &lookups)));
    let docs = sightings.map(|sighting| sighting.render().document(&observable)).collect();
    serde_json::from_slice(&ObserveReply { docs, errors: Vec::new() }.to_body()).unwrap()
}

#[rstest]
#[case::alert(include_str!("../../tests/data/relay/01-alert.input.json"), include_str!("../../tests/data/relay/01-alert.expected.json"))]
#[case::network_events(include_str!("../../tests/data/relay/02-network-events.input.json"), include_str!("../../tests/data/relay/02-network-events.expected.json"))]
#[case::file_events(include_str!("../../tests/data/relay/03-file-events.input.json"), include_str!("../../tests/data/relay/03-file-events.expected.json"))]
fn the_worked_pairs_are_answered_as_written(#[case] input: &str, #[case] expected: &str) {
    let answer = answered(&serde_json::from_str(input).unwrap());
    let expected: Value = serde_json::from_str(expected).unwrap();
    // Sighting by sighting first: a difference is easier to read than in the whole answer.
    let docs = |body: &Value| body["data"]["sightings"]["docs"].as_array().unwrap().clone();
    for (found, wanted) in docs(&answer).iter().zip(docs(&expected)) {
        assert_eq!(found["relations"], wanted["relations"]);
        assert_eq!(*found, wanted);
    }
    assert_eq!(answer, expected);
}
