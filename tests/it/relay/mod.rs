//! The relay over HTTP through the queue, against the simulator: one file a subject. What is asked of the mapping alone
//! stands beside it in `src`; here it is what a caller sees and what Microsoft is asked.

mod admin;
mod admission;
mod batching;
mod calls;
mod deadlines;
mod defects;
mod errors;
mod grants;
mod key_sets;
mod limits;
mod payloads;
mod respond;
mod screening;
mod stops;
mod tokens;
mod traces;
mod triggers;
mod wire;

use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{self, Data, Recorded, Tenant, TenantData};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::bridge::{Options, TestBridge};

/// An error as [`crate::bridge::Answer::errors`] gives it.
fn error(code: &str, message: &str, kind: &str) -> (String, String, String) {
    (code.to_owned(), message.to_owned(), kind.to_owned())
}

fn fatal(code: &str, message: &str) -> (String, String, String) {
    error(code, message, "fatal")
}

fn warning(code: &str, message: &str) -> (String, String, String) {
    error(code, message, "warning")
}

/// A bridge whose demo tenant knows nothing but `data`.
async fn bridge_with(data: Value, options: Options) -> TestBridge {
    let data = Data::from_json(&data).expect("the data fits the hunting tables");
    bridge_with_data(data, options).await
}

async fn bridge_with_data(data: Data, options: Options) -> TestBridge {
    let data = TenantData::Given(std::sync::Arc::new(data));
    let tenant = Tenant::reader(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, data);
    let simulator = simulator::Settings { tenants: vec![tenant], ..options.simulator };
    TestBridge::start_with(Options { simulator, ..options }).await
}

/// So many minutes ago, as Defender writes times.
fn minutes_ago(minutes: i64) -> String {
    (Timestamp::now() - SignedDuration::from_mins(minutes)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A machine's id.
fn device(number: usize) -> String {
    format!("{:040x}", 0xd0_0000 + number)
}

/// An alert without evidence, created so many minutes ago, about each (kind, value) of `about`; kinds are `sha1`, `ip`
/// and `domain`.
fn alert(id: &str, minutes: i64, machine: usize, about: &[(&str, &str)]) -> Value {
    json!({
        "id": id, "title": format!("Alert {id}"), "severity": "High", "detectionSource": "WindowsDefenderAtp",
        "alertCreationTime": minutes_ago(minutes), "firstEventTime": minutes_ago(minutes + 1),
        "lastEventTime": minutes_ago(minutes), "lastUpdateTime": minutes_ago(minutes),
        "machineId": device(machine), "computerDnsName": format!("pc-{machine}.corp.example"), "evidence": [],
        "_related": about,
    })
}

/// A connection so many minutes ago.
fn connection(report: usize, minutes: i64, machine: usize, ip: &str, url: &str) -> Value {
    json!({
        "Timestamp": minutes_ago(minutes), "DeviceId": device(machine),
        "DeviceName": format!("pc-{machine}.corp.example"), "ActionType": "ConnectionSuccess", "RemoteIP": ip,
        "RemoteUrl": url, "LocalIP": "192.0.2.9", "InitiatingProcessFileName": "worker.exe", "ReportId": report,
    })
}

/// A file event so many minutes ago; an empty hash is not known.
fn file_event(report: usize, minutes: i64, machine: usize, sha1: &str, sha256: &str, md5: &str) -> Value {
    json!({
        "Timestamp": minutes_ago(minutes), "DeviceId": device(machine),
        "DeviceName": format!("pc-{machine}.corp.example"), "ActionType": "FileCreated",
        "FileName": format!("file-{report}.bin"), "FolderPath": "C:\\data", "SHA1": sha1, "SHA256": sha256, "MD5": md5,
        "ReportId": report,
    })
}

/// What a sighting is of: the id of its alert, or the time of its event.
fn what(sighting: &Value) -> String {
    let alert = sighting["external_ids"][0].as_str();
    alert.or_else(|| sighting["observed_time"]["start_time"].as_str()).expect("an alert or an event").to_owned()
}

/// The value that a sighting was asked for by.
fn asked(sighting: &Value) -> &str {
    sighting["observables"][0]["value"].as_str().expect("a value")
}

/// Asserts that no call was made twice, and that what Microsoft retires is not called.
fn assert_no_call_twice(requests: &[Recorded]) {
    let mut seen = std::collections::HashSet::new();
    for request in requests {
        assert_ne!(request.route, "retired", "{request:?}");
        assert_ne!(request.route, "unknown", "{request:?}");
        if request.route == "token" {
            continue;
        }
        let call = (&request.method, &request.path, &request.query, &request.hunting);
        assert!(seen.insert(call), "called twice: {request:?}");
    }
}
