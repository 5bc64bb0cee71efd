//! What the tenants know, and what is asked of them.

use std::sync::Arc;

use anyhow::Context as _;
use defender_bridge::relay::token;
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{Data, Quota, Settings, Tenant, TenantData};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::stage::SECRET_KEY;

/// Machines that have seen something.
const MACHINES: usize = 20;

/// Observables that tenants may know: as many as are asked for at most.
pub const KNOWN_AMONG: usize = 20_000;

/// One observable by number: domains, addresses and SHA-1 hashes in turn.
pub fn observable(n: usize) -> (&'static str, String) {
    match n % 3 {
        0 => ("domain", format!("d{n}.example")),
        1 => ("ip", format!("198.{}.{}.{}", 18 + n / 65_536, n / 256 % 256, n % 256)),
        _ => ("sha1", format!("{n:040x}")),
    }
}

/// A request for so many observables from `first` on.
pub fn question(first: usize, count: usize) -> Value {
    let one = |n| {
        let (kind, value) = observable(n);
        json!({ "type": kind, "value": value })
    };
    (first..first + count).map(one).collect()
}

/// Whether an observable is one of the `percent` of all that a tenant knows.
fn is_known(n: usize, percent: usize) -> bool {
    // The kinds are in turn, so every hundred has a like part of each.
    n * 37 % 100 < percent
}

/// One alert and one event for each observable that is known.
fn data(percent: usize) -> anyhow::Result<Data> {
    let minutes_ago = |minutes: usize| {
        let ago = SignedDuration::from_mins(minutes as i64);
        (Timestamp::now() - ago).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    let device = |n: usize| (format!("{:040x}", 0xd0_0000 + n % MACHINES), format!("pc-{}.corp.example", n % MACHINES));
    let (mut alerts, mut files, mut network) = (Vec::new(), Vec::new(), Vec::new());
    for n in (0..KNOWN_AMONG).filter(|&n| is_known(n, percent)) {
        let (kind, value) = observable(n);
        let (id, name) = device(n);
        let at = minutes_ago(n % 10_000 + 1);
        alerts.push(json!({
            "id": format!("a{n}"), "title": "Benchmark", "severity": "High", "detectionSource": "WindowsDefenderAtp",
            "alertCreationTime": at, "firstEventTime": at, "lastEventTime": at, "lastUpdateTime": at,
            "machineId": id, "computerDnsName": name, "evidence": [], "_related": [[kind, value]],
        }));
        let mut event = json!({
            "Timestamp": at, "DeviceId": id, "DeviceName": name, "ReportId": n,
            "InitiatingProcessFileName": "worker.exe",
        });
        if kind == "sha1" {
            event["ActionType"] = "FileCreated".into();
            event["SHA1"] = value.into();
            event["FileName"] = "sample.bin".into();
            files.push(event);
        } else {
            event["ActionType"] = "ConnectionSuccess".into();
            event[if kind == "ip" { "RemoteIP" } else { "RemoteUrl" }] = value.into();
            network.push(event);
        }
    }
    let tables = json!({ "DeviceFileEvents": files, "DeviceNetworkEvents": network });
    Data::from_json(&json!({ "alerts": alerts, "tables": tables })).context("the data do not fit the tables")
}

/// The ids of tenant and application; the first is the tenant of the hosts.
pub fn account(tenant: usize) -> (String, String) {
    match tenant {
        0 => (DEMO_TENANT_ID.to_owned(), DEMO_CLIENT_ID.to_owned()),
        n => (format!("00000000-0000-4000-8000-0000000001{n:02}"), format!("00000000-0000-4000-8000-0000000002{n:02}")),
    }
}

/// The relay token of a tenant.
pub fn token(tenant: usize) -> String {
    let (tenant_id, client_id) = account(tenant);
    let claims = token::Claims { tenant_id, client_id, client_secret: DEMO_CLIENT_SECRET.into(), entities_limit: None };
    token::mint(&claims, None, &SECRET_KEY.into())
}

/// A simulator of so many tenants that know `percent` of all observables, with the application's rights to contain.
pub fn simulator(tenants: usize, percent: usize, quota: Option<Quota>) -> anyhow::Result<Settings> {
    let data = Arc::new(data(percent)?);
    let tenant = |n| {
        let (id, client) = account(n);
        Tenant::reader(&id, &client, DEMO_CLIENT_SECRET, TenantData::Given(Arc::clone(&data)))
    };
    // Every request is kept, so that windows can be looked at afterwards.
    Ok(Settings { tenants: (0..tenants).map(tenant).collect(), quota, record_limit: 1_000_000, ..Settings::default() })
}
