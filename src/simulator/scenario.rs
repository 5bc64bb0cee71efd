//! The demo tenant's story, and data in bulk for load tests.
//!
//! Two days ago an employee opened a link in a message ([`PHISHING_DOMAIN`]); the browser fetched a program
//! ([`DROPPED_SHA1`]), which was started and began to talk to [`C2_ADDRESS`]. A day later the program appeared on a file
//! server, started as a service. A build host and a kiosk that has left the inventory talked to the same address.
//! Meanwhile, everyone updates an ordinary tool ([`BENIGN_SHA1`]) from an ordinary site.
//!
//! All of it is invented; `data/SOURCES.md` says how, and which oddities are in it on purpose. Times are kept as
//! distances from the moment the story is told, so it never ages.

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::data::{Data, Row};
use super::faults::Random;

/// The tenant with the story.
pub const DEMO_TENANT_ID: &str = "5f6c1a52-8d0e-4c53-9a39-6a1d0f2b7c10";
/// Its application.
pub const DEMO_CLIENT_ID: &str = "c0ffee00-1d3a-4b6e-9f10-2f6d8a7b5e01";
/// Its application's secret; good for the simulator only.
pub const DEMO_CLIENT_SECRET: &str = "demo~secret.of+the/simulator=&%20only";
/// A tenant without data.
pub const OTHER_TENANT_ID: &str = "9b1d7a30-2c44-4f0b-8a55-3e0c6d9f1b20";
/// Its application.
pub const OTHER_CLIENT_ID: &str = "c0ffee00-7c21-4d55-8a0e-90b1c2d3e402";
/// Its application's secret.
pub const OTHER_CLIENT_SECRET: &str = "other-secret-of-the-simulator-only";

/// The site the link in the message leads to: events on two machines, one alert.
pub const PHISHING_DOMAIN: &str = "invoices.phish.example";
/// The site the dropped file came from: events, no alert.
pub const DOWNLOAD_DOMAIN: &str = "files.phish.example";
/// The dropped file: downloaded, renamed, copied to a server, deleted; three alerts.
pub const DROPPED_SHA1: &str = "a3d32558ee63cf0dd34a5eef3e628efa7fd62f5e";
/// The same file.
pub const DROPPED_SHA256: &str = "0aa0e305011ac98900304ddea303600c438bd7e14693774cb816d6d83147e45c";
/// The same file.
pub const DROPPED_MD5: &str = "b1b7d388889ecde6d1c63ca2783c7332";
/// What the dropped file brought along. Its profile knows neither SHA-256 nor MD5.
pub const STAGE2_SHA1: &str = "e3c107deb2140d978dcb18e82be48849390afa86";
/// A file that alerts and events know and that has no profile.
pub const GHOST_SHA1: &str = "30795c4b6e1e381189fa4c3ac35633851ac23a35";
/// The address the intruder talks to: events on five machines, two alerts.
pub const C2_ADDRESS: &str = "203.0.113.66";
/// A name for [`C2_ADDRESS`]; in events with a port.
pub const C2_DOMAIN: &str = "cdn.sync-hub.example";
/// The intruder's second address: events on one machine. Its alert is out of reach, because the alert route refuses
/// IPv6.
pub const C2_ADDRESS_V6: &str = "2001:db8:bad::66";
/// A site all machines visit: events, no alert.
pub const BENIGN_DOMAIN: &str = "updates.vendor.example";
/// Its address.
pub const BENIGN_ADDRESS: &str = "198.51.100.80";
/// An ordinary tool: events, no alert.
pub const BENIGN_SHA1: &str = "a514fca1c6a5199284fe55b808da11361eb5ec0f";
/// The same tool.
pub const BENIGN_SHA256: &str = "7880f4dced8d8d7c8b0804065aec9aadf602b62b57602ba06f226ccdc483aaab";
/// The same tool.
pub const BENIGN_MD5: &str = "ea807c316976691c3d27e659652ce045";
/// Nobody has seen it.
pub const UNSEEN_DOMAIN: &str = "quiet.example";
/// Nobody has seen it.
pub const UNSEEN_ADDRESS: &str = "203.0.113.250";
/// Nobody has seen it.
pub const UNSEEN_SHA1: &str = "00000000000000000000000000000000000000ff";

/// `fin-ws-07.corp.example`, where it begins: Windows 11, one adapter.
pub const FINANCE_WORKSTATION: &str = "267d30bb33dc9455ba401e652b4e352ba88cd20e";
/// `hr-ws-12.corp.example`: Windows 10.
pub const HR_WORKSTATION: &str = "0053da28edd05e5dfa9a34cc838fee37a734c93c";
/// `eng-ws-03.corp.example`: two adapters that are up, one with IPv6.
pub const ENGINEERING_WORKSTATION: &str = "0e67d073c13ae4d0d8b26031ea54b2e5e5344744";
/// `files-01.corp.example`: a server.
pub const FILE_SERVER: &str = "e2952bd215718bf98e09b99cd75b9b4e9437f2a8";
/// `build-lnx-02`: Linux.
pub const BUILD_HOST: &str = "c594fd3c0e41a3f97fb24014f7b27c5071113045";
/// In alerts and events, but unknown to the inventory.
pub const UNKNOWN_MACHINE: &str = "b8fe633867d58efb66a6b017b4cf450f6f6df334";
/// Known to the inventory by its id and little else.
pub const SPARSE_MACHINE: &str = "68b8aa4b58caa912aeaf06749a44d6326814f7d4";

/// The story with its times as distances.
static STORY: LazyLock<Value> = LazyLock::new(|| {
    let part =
        |text: &str| -> Value { serde_json::from_str(text).expect("the story's files are JSON, as a test checks") };
    json!({
        "machines": part(include_str!("data/machines.json")),
        "files": part(include_str!("data/files.json")),
        "alerts": part(include_str!("data/alerts.json")),
        "tables": part(include_str!("data/tables.json")),
    })
});

/// The story as told at `now`.
pub fn story(now: Timestamp) -> Data {
    let mut story = STORY.clone();
    tell(&mut story, now);
    Data::from_json(&story).expect("the story fits the hunting tables, as a test checks")
}

/// Turns every `@-2h.5` into the time so long before `now`.
fn tell(value: &mut Value, now: Timestamp) {
    match value {
        Value::String(text) => {
            if let Some(time) = text.strip_prefix("@-").and_then(|distance| moment(distance, now)) {
                *text = time;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| tell(item, now)),
        Value::Object(members) => members.values_mut().for_each(|member| tell(member, now)),
        _ => {}
    }
}

/// The time `distance` before `now`, with exactly the fraction digits that were written, because the service's own
/// times have none to seven.
fn moment(distance: &str, now: Timestamp) -> Option<String> {
    let (text, fraction) = distance.split_once('.').unwrap_or((distance, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = self::distance(text)?;
    let time = now.checked_sub(SignedDuration::from_secs(seconds)).ok()?.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{time}{point}{fraction}Z"))
}

/// The seconds of a distance like `1d2h3m4s`.
pub(super) fn distance(text: &str) -> Option<i64> {
    let mut seconds: i64 = 0;
    let mut number = String::new();
    for letter in text.chars() {
        let unit = match letter {
            '0'..='9' => {
                number.push(letter);
                continue;
            }
            'd' => 86_400,
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds += number.parse::<i64>().ok()? * unit;
        number.clear();
    }
    number.is_empty().then_some(seconds)
}

/// An observable of [`bulk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkObservable {
    /// `sha1`, `sha256`, `md5`, `ip`, `ipv6` or `domain`.
    pub kind: &'static str,
    /// In normal form.
    pub value: String,
    /// Whether the data has anything about it.
    pub known: bool,
}

/// Data for load tests.
#[derive(Debug, Clone)]
pub struct Bulk {
    /// As many as were asked for, of mixed types, no two the same.
    pub observables: Vec<BulkObservable>,
    /// Two events for each known one, and an alert for every known one that an alert route can be asked for.
    pub data: Data,
}

/// How many machines a bulk's events happen on.
const BULK_MACHINES: usize = 50;

/// The kinds of a bulk's observables, in turn.
const BULK_KINDS: [&str; 6] = ["sha1", "ip", "domain", "sha256", "ipv6", "md5"];

/// `count` observables, of which about `percent` per cent (0 to 100) are known, the same for the same `seed`. Times
/// count back from `now`.
pub fn bulk(count: usize, percent: u8, seed: u64, now: Timestamp) -> Bulk {
    let mut random = Random(seed);
    let mut data = Data::default();
    let machines: Vec<(String, String)> =
        (0..BULK_MACHINES).map(|index| (hex(&mut random, 40), format!("bulk-{index:02}.corp.example"))).collect();
    let at = |minutes: usize| (now - SignedDuration::from_mins(minutes as i64)).to_string();
    for (index, (id, name)) in machines.iter().enumerate() {
        let machine = json!({
            "id": id, "computerDnsName": name, "osPlatform": "Windows11", "osArchitecture": "64-bit",
            "version": "24H2", "osBuild": 26100, "lastSeen": at(30), "healthStatus": "Active",
            "onboardingStatus": "Onboarded", "lastIpAddress": format!("192.0.2.{}", index + 1), "ipAddresses": [],
        });
        data.add_machine(machine, true).expect("rows made here fit, as a test checks");
        let addresses = [format!("192.0.2.{}", index + 1)];
        data.add_adapter(id, &format!("00005E0053{index:02X}"), &addresses, &at(40))
            .expect("rows made here fit, as a test checks");
    }
    let mut observables = Vec::with_capacity(count);
    for index in 0..count {
        let kind = BULK_KINDS[index % BULK_KINDS.len()];
        let value = value_of(kind, index, &mut random);
        let known = random.bits() % 100 < u64::from(percent);
        if known {
            let (machine, name) = &machines[index % machines.len()];
            know(&mut data, kind, &value, index, machine, name, &at).expect("rows made here fit, as a test checks");
        }
        observables.push(BulkObservable { kind, value, known });
    }
    Bulk { observables, data }
}

/// Hexadecimal digits.
pub(super) fn hex(random: &mut Random, digits: usize) -> String {
    let mut text = String::with_capacity(digits + 16);
    while text.len() < digits {
        text.push_str(&format!("{:016x}", random.bits()));
    }
    text.truncate(digits);
    text
}

fn value_of(kind: &str, index: usize, random: &mut Random) -> String {
    match kind {
        "sha1" => hex(random, 40),
        "sha256" => hex(random, 64),
        "md5" => hex(random, 32),
        // The benchmarking range, 198.18.0.0/15, has room for 131 072 of them.
        "ip" => format!("198.{}.{}.{}", 18 + (index >> 16 & 1), index >> 8 & 255, index & 255),
        "ipv6" => format!("2001:db8:b::{:x}", index + 1),
        _ => format!("host-{index}.bulk.example"),
    }
}

fn know(
    data: &mut Data,
    kind: &str,
    value: &str,
    index: usize,
    machine: &str,
    name: &str,
    at: &dyn Fn(usize) -> String,
) -> Result<(), super::kql::InsertError> {
    // A file is known by all its hashes; those that were not asked about are made from its number.
    let of = |wanted: &str, digits: usize| {
        if kind == wanted { value.to_owned() } else { format!("{index:0digits$x}") }
    };
    let file = matches!(kind, "sha1" | "sha256" | "md5");
    let (sha1, sha256, md5) = (of("sha1", 40), of("sha256", 64), of("md5", 32));
    if file {
        data.add_file(json!({"sha1": sha1, "sha256": sha256, "md5": md5, "determinationType": "Unknown"}));
    }
    for event in 0..2 {
        let mut row = json!({
            "Timestamp": at(60 + index % 1_000 + event * 5), "DeviceId": machine, "DeviceName": name,
            "InitiatingProcessFileName": "worker.exe", "InitiatingProcessFolderPath": "c:\\bulk\\worker.exe",
            "InitiatingProcessSHA1": "b".repeat(40), "InitiatingProcessParentFileName": "services.exe",
            "ReportId": index * 2 + event,
        });
        let special = if file {
            json!({"ActionType": "FileCreated", "FileName": format!("file-{index}.bin"),
                "FolderPath": format!("c:\\bulk\\file-{index}.bin"), "SHA1": sha1, "SHA256": sha256, "MD5": md5,
                "FileSize": 1_024})
        } else {
            let (address, url) = if kind == "domain" { ("198.51.100.99", value) } else { (value, "") };
            json!({"ActionType": "ConnectionSuccess", "RemoteIP": address, "RemotePort": 443, "RemoteUrl": url,
                "LocalIP": "192.0.2.1", "LocalPort": 50_000, "Protocol": "Tcp"})
        };
        if let (Value::Object(row), Value::Object(special)) = (&mut row, special) {
            row.extend(special);
        }
        data.add_event(row.as_object().cloned().unwrap_or_else(Row::new))?;
    }
    let related = match kind {
        "sha1" | "sha256" | "md5" => ("sha1", sha1.as_str()),
        "ip" | "domain" => (kind, value),
        _ => return Ok(()),
    };
    // Hunting finds an alert by its evidence only.
    let evidence = match related.0 {
        "sha1" => json!({"entityType": "File", "fileName": format!("file-{index}.bin"), "filePath": "c:\\bulk",
            "sha1": sha1, "sha256": sha256}),
        "ip" => json!({"entityType": "Ip", "ipAddress": value}),
        _ => json!({"entityType": "Url", "url": value}),
    };
    let alert = json!({
        "id": format!("da{index:018}_1"), "title": "Bulk alert", "severity": "Low", "category": "Malware",
        "detectionSource": "WindowsDefenderAtp", "alertCreationTime": at(30 + index % 1_000), "machineId": machine,
        "computerDnsName": name, "evidence": [evidence],
    });
    data.add_alert(alert, &[related])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00.7Z".parse().unwrap()
    }

    #[test]
    fn distances_become_times_with_the_digits_that_were_written() {
        for (distance, expected) in [
            ("0s", Some("2026-11-21T12:00:00Z")),
            ("1d2h3m4s", Some("2026-11-20T09:56:56Z")),
            ("1h.1234567", Some("2026-11-21T11:00:00.1234567Z")),
            ("1h.5", Some("2026-11-21T11:00:00.5Z")),
            ("1", None),
            ("1w", None),
            ("x", None),
            ("1h.x", None),
        ] {
            assert_eq!(moment(distance, now()).as_deref(), expected, "{distance}");
        }
    }

    #[test]
    fn the_story_can_be_told_and_leaves_no_distance_untold() {
        let _ = story(now());
        let mut told = STORY.clone();
        tell(&mut told, now());
        assert!(!told.to_string().contains("\"@-"));
    }

    #[test]
    fn the_story_holds_what_its_constants_promise() {
        let data = story(now());
        for (kind, value, alerts) in [
            ("domain", PHISHING_DOMAIN, 1),
            ("domain", C2_DOMAIN, 1),
            ("domain", DOWNLOAD_DOMAIN, 0),
            ("domain", BENIGN_DOMAIN, 0),
            ("domain", UNSEEN_DOMAIN, 0),
            ("sha1", DROPPED_SHA1, 3),
            ("sha1", STAGE2_SHA1, 1),
            ("sha1", GHOST_SHA1, 1),
            ("sha1", BENIGN_SHA1, 0),
            ("ip", C2_ADDRESS, 2),
            ("ip", BENIGN_ADDRESS, 0),
        ] {
            assert_eq!(data.alerts_of(kind, value).len(), alerts, "{kind} {value}");
        }
        assert_eq!(data.file(DROPPED_SHA256).unwrap()["md5"], DROPPED_MD5);
        assert_eq!(data.file(STAGE2_SHA1).unwrap()["sha256"], Value::Null);
        assert!(data.file(GHOST_SHA1).is_none());
        for known in
            [FINANCE_WORKSTATION, HR_WORKSTATION, ENGINEERING_WORKSTATION, FILE_SERVER, BUILD_HOST, SPARSE_MACHINE]
        {
            assert!(data.machine(known).is_some(), "{known}");
        }
        assert!(data.machine(UNKNOWN_MACHINE).is_none());
    }

    #[test]
    fn a_bulk_repeats_with_its_seed_and_knows_about_its_share() {
        let (bulk, again) = (bulk(600, 30, 7, now()), bulk(600, 30, 7, now()));
        assert_eq!(bulk.observables, again.observables);
        let known = bulk.observables.iter().filter(|observable| observable.known).count();
        assert!((120..240).contains(&known), "{known}");
        let values: HashSet<_> = bulk.observables.iter().map(|observable| &observable.value).collect();
        assert_eq!(values.len(), 600);
        let events =
            ["DeviceFileEvents", "DeviceNetworkEvents"].map(|table| bulk.data.table(table).unwrap().rows.len());
        assert_eq!(events.iter().sum::<usize>(), known * 2);
    }
}
