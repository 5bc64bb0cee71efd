//! Invented alerts, evidence and events for the tests of this folder; a hash is one letter, repeated.

use super::{Lookups, sighting::from_alert};
use crate::{
    defender::model::{Alert, Evidence, FileEvent, Hashes, InitiatingProcess, NetworkEvent},
    relay::{
        Observable,
        ctim::{Relation, Sighting, Typed},
    },
};

pub(super) const MACHINE: &str = "6035c8a86d4961346736ec90e668c8d2694b7f57";
pub(super) const TIME: &str = "2024-03-05T10:14:02.5Z";

pub(super) fn ip() -> Observable {
    Observable::parse("ip", "203.0.113.50").unwrap()
}

pub(super) fn sha1(letter: &str) -> String {
    letter.repeat(40)
}

pub(super) fn alert(evidence: Vec<Evidence>) -> Alert {
    Alert {
        id: "da1".into(),
        alert_creation_time: Some(TIME.into()),
        computer_dns_name: Some("pc7.example".into()),
        machine_id: Some(MACHINE.into()),
        evidence,
        ..Alert::default()
    }
}

pub(super) fn process(hash: &str, id: i64, parent: i64) -> Evidence {
    Evidence {
        entity_type: Some("Process".into()),
        sha1: Some(sha1(hash)),
        process_id: Some(id),
        parent_process_id: Some(parent),
        ..Evidence::default()
    }
}

pub(super) fn file(hash: &str, name: &str) -> Evidence {
    Evidence {
        entity_type: Some("File".into()),
        sha1: (!hash.is_empty()).then(|| sha1(hash)),
        file_name: Some(name.into()),
        file_path: Some("/tmp".into()),
        ..Evidence::default()
    }
}

pub(super) fn address(ip: &str) -> Evidence {
    Evidence { entity_type: Some("Ip".into()), ip_address: Some(ip.into()), ..Evidence::default() }
}

pub(super) fn url(url: &str) -> Evidence {
    Evidence { entity_type: Some("Url".into()), url: Some(url.into()), ..Evidence::default() }
}

pub(super) fn user() -> Evidence {
    Evidence { entity_type: Some("User".into()), sha1: Some(sha1("9")), ..Evidence::default() }
}

/// Relations on one line each, hashes by their first letter.
pub(super) fn lines(sighting: &Sighting) -> Vec<String> {
    let short = |one: &Typed| match &*one.kind {
        "sha1" | "sha256" | "md5" => format!("{}:{}", one.kind, &one.value[..1]),
        _ => one.value.clone(),
    };
    let line = |one: &Relation| format!("{} {} {}", short(&one.source), one.relation, short(&one.related));
    sighting.relations.iter().map(line).collect()
}

pub(super) fn alert_lines(evidence: Vec<Evidence>) -> Vec<String> {
    lines(&from_alert(&ip(), &alert(evidence), &Lookups::default()).unwrap())
}

pub(super) fn network_event() -> NetworkEvent {
    NetworkEvent {
        timestamp: TIME.into(),
        device_id: MACHINE.into(),
        action_type: "ConnectionSuccess".into(),
        remote_ip: "203.0.113.50".into(),
        remote_url: "https://evil.example:8443/x".into(),
        local_ip: "192.0.2.1".into(),
        process: InitiatingProcess {
            hashes: Hashes { sha1: sha1("A"), ..Hashes::default() },
            file_name: "p".into(),
            folder_path: "/bin/p".into(),
            parent_file_name: "init".into(),
        },
        report_id: "7".into(),
        ..NetworkEvent::default()
    }
}

pub(super) fn file_event() -> FileEvent {
    FileEvent {
        timestamp: TIME.into(),
        device_id: MACHINE.into(),
        action_type: "FileCreated".into(),
        file_name: "f".into(),
        folder_path: "/tmp".into(),
        hashes: Hashes { sha1: sha1("f"), ..Hashes::default() },
        process: network_event().process,
        report_id: "7".into(),
        ..FileEvent::default()
    }
}
