//! Calls are the currency: how many a request makes, that none is made twice, what is kept and for whom
//! (`DESIGN.md` 5; `relay.md` 4.3 and 5.5).

use std::collections::BTreeMap;
use std::time::Duration;

use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_TENANT_ID};
use defender_bridge::simulator::{Control, scenario};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    alert, asked, assert_no_call_twice, bridge_with, bridge_with_data, connection, device, file_event, minutes_ago,
    warning,
};
use crate::bridge::{Options, TestBridge, mint, observable_list};

/// Hunting calls that a request of up to 200 observables may make (`DESIGN.md` 5).
const HUNTING_BOUND: u64 = 6;

const KINDS: [&str; 6] = ["sha1", "ip", "domain", "sha256", "ipv6", "md5"];

fn value_of(kind: &str, n: usize) -> String {
    match kind {
        "sha1" => format!("{:040x}", 0xa000 + n),
        "sha256" => format!("{:064x}", 0xa000 + n),
        "md5" => format!("{:032x}", 0xa000 + n),
        "ip" => format!("203.0.113.{n}"),
        "ipv6" => format!("2001:db8::{n:x}"),
        _ => format!("d{n}.example"),
    }
}

/// `count` observables of all types in turn, each with an alert (but IPv6, whose alerts nobody can ask for) and two
/// events, over `devices` machines. Hunting knows all of these but the last.
fn estate(count: usize, devices: usize) -> (Vec<(&'static str, String)>, Value) {
    let observables: Vec<(&'static str, String)> =
        (0..count).map(|n| (KINDS[n % 6], value_of(KINDS[n % 6], n))).collect();
    let (mut alerts, mut files, mut network, mut file_events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (n, (kind, value)) in observables.iter().enumerate() {
        let (sha1, sha256, md5) = (value_of("sha1", n), value_of("sha256", n), value_of("md5", n));
        let machine = n % devices;
        let about = match *kind {
            "sha1" | "sha256" | "md5" => ("sha1", sha1.as_str()),
            "ipv6" => ("ip", value.as_str()),
            kind => (kind, value.as_str()),
        };
        alerts.push(alert(&format!("a{n}"), 10 + n as i64, machine, &[about]));
        if *kind != "domain" && !kind.starts_with("ip") {
            // Hashes are complete, so that no profile is wanted but the one that a SHA-256 needs for its alerts.
            files.push(json!({"sha1": sha1, "sha256": sha256, "md5": md5}));
        }
        for event in 0..2 {
            let (report, minutes) = (2 * n + event, 500 + 2 * (n + event) as i64);
            match *kind {
                "domain" => network.push(connection(report, minutes, machine, "198.51.100.1", value)),
                "ip" | "ipv6" => network.push(connection(report, minutes, machine, value, "")),
                _ => file_events.push(file_event(report, minutes, machine, &sha1, &sha256, &md5)),
            }
        }
    }
    let machines: Vec<Value> = (0..devices)
        .map(|n| {
            json!({"id": device(n), "computerDnsName": format!("pc-{n}.corp.example"), "osPlatform": "Windows11",
                "lastSeen": minutes_ago(1), "_inventory": n + 1 < devices})
        })
        .collect();
    let tables = json!({"DeviceNetworkEvents": network, "DeviceFileEvents": file_events});
    (observables, json!({"alerts": alerts, "files": files, "machines": machines, "tables": tables}))
}

fn list(observables: &[(&str, String)]) -> Value {
    observables.iter().map(|(kind, value)| json!({"type": kind, "value": value})).collect()
}

/// How many observables of a type there are among the first `count` of [`estate`].
fn of_kinds(count: usize, kinds: &[&str]) -> u64 {
    (0..count).filter(|n| kinds.contains(&KINDS[n % 6])).count() as u64
}

/// Asks for `count` observables over `devices` machines, and checks every number of calls.
async fn costs(count: usize, devices: usize) {
    let (observables, data) = estate(count, devices);
    let bridge = bridge_with(data, Options::default()).await;
    let answer = bridge.post("/observe/observables", &list(&observables)).await;
    assert_eq!(answer.errors(), []);
    // Two events each, and an alert each but for IPv6.
    let expected: Vec<&str> = observables
        .iter()
        .flat_map(|(kind, value)| vec![value.as_str(); if *kind == "ipv6" { 2 } else { 3 }])
        .collect();
    let sightings = answer.sightings();
    assert_eq!(sightings.iter().map(asked).collect::<Vec<_>>(), expected, "all, in request order");
    // Each target carries what hunting or REST knows of its machine.
    assert!(sightings.iter().all(|sighting| sighting["targets"][0]["os"] == "Windows11"));

    let control = bridge.control();
    let calls = control.all_calls();
    println!("{count} observables over {devices} machines: {calls:?}, at most {} at a time", control.peak());
    assert_no_call_twice(&control.requests());
    assert!(control.calls("hunting") <= HUNTING_BOUND, "{calls:?}");
    assert_eq!(control.calls("hunting"), 3, "events of MD5s, all other events, devices: {calls:?}");
    assert_eq!(control.calls("token"), 2, "one for each service");
    assert_eq!(control.calls("alerts"), count as u64);
    assert_eq!(control.calls("files"), of_kinds(count, &["sha256"]));
    assert_eq!(control.calls("machines"), 1, "only the machine that hunting does not know");
    assert_eq!((control.calls("retired"), control.calls("unknown"), control.calls("exposureScore")), (0, 0, 0));
    bridge.stop().await;
}

#[tokio::test]
async fn twenty_observables_over_ten_machines_cost_three_hunting_calls() {
    costs(20, 10).await;
}

#[tokio::test]
async fn two_hundred_observables_cost_no_more_hunting_calls_than_twenty() {
    costs(200, 40).await;
}

/// `DESIGN.md` 5: batches of 200, in request order, nothing dropped.
#[tokio::test]
async fn a_thousand_observables_are_worked_in_batches() {
    let bulk = scenario::bulk(1_000, 100, 7, Timestamp::now());
    let options = Options { deadline: Duration::from_secs(60), ..Options::default() };
    let bridge = bridge_with_data(bulk.data, options).await;
    let body: Value = bulk.observables.iter().map(|one| json!({"type": one.kind, "value": one.value})).collect();
    let answer = bridge.post("/observe/observables", &body).await;
    let mut shown: Vec<String> = answer.sightings().iter().map(|sighting| asked(sighting).to_owned()).collect();
    shown.dedup();
    let wanted: Vec<String> = bulk.observables.into_iter().map(|one| one.value).collect();
    assert_eq!(shown, wanted, "every observable, in request order");
    let details = "Some details could not be read from Microsoft Defender for Endpoint.";
    assert!(answer.errors().iter().all(|error| *error == warning("warning", details)), "{:?}", answer.errors());
    let control = bridge.control();
    println!("1000 observables: {:?}", control.all_calls());
    assert_no_call_twice(&control.requests());
    assert!(control.calls("hunting") <= 5 * 3, "{:?}", control.all_calls());
    assert_eq!(control.calls("token"), 2);
    assert!(control.peak() <= 5, "{}", control.peak());
    bridge.stop().await;
}

#[tokio::test]
async fn at_most_five_calls_of_a_request_are_under_way_at_a_time() {
    let (observables, data) = estate(60, 10);
    let bridge = bridge_with(data, Options::default()).await;
    bridge.control().set_latency(Duration::from_millis(30));
    let answer = bridge.post("/observe/observables", &list(&observables)).await;
    assert_eq!(answer.errors(), []);
    let peak = bridge.control().peak();
    assert!((2..=5).contains(&peak), "{peak}");
    bridge.stop().await;
}

/// `relay.md` 5.5; the batches of a large request share the fifty.
#[tokio::test]
async fn at_most_fifty_file_profiles_are_read_for_a_request() {
    let details = warning("warning", "Some details could not be read from Microsoft Defender for Endpoint.");
    for (count, errors) in [(50, vec![]), (51, vec![details.clone()]), (450, vec![details])] {
        let hashes: Vec<String> = (0..count).map(|n| value_of("sha1", n)).collect();
        let events: Vec<Value> = hashes.iter().enumerate().map(|(n, hash)| file_event(n, 9, 1, hash, "", "")).collect();
        let files: Vec<Value> = hashes.iter().map(|hash| json!({"sha1": hash, "sha256": null, "md5": null})).collect();
        let data = json!({"files": files, "tables": {"DeviceFileEvents": events}});
        let bridge = bridge_with(data, Options::default()).await;
        let body: Value = hashes.iter().map(|hash| json!({"type": "sha1", "value": hash})).collect();
        let answer = bridge.post("/observe/observables", &body).await;
        assert_eq!((answer.errors(), answer.sightings().len()), (errors, count));
        assert_eq!(bridge.control().calls("files"), 50.min(count as u64), "{count}");
        bridge.stop().await;
    }
}

/// A file by three of its hashes is one alert lookup, and one profile.
#[tokio::test]
async fn a_file_that_is_named_by_all_its_hashes_is_asked_for_once() {
    let (sha1, sha256, md5) = (value_of("sha1", 1), value_of("sha256", 1), value_of("md5", 1));
    let data = json!({
        "alerts": [alert("a1", 5, 1, &[("sha1", &sha1)])],
        "files": [{"sha1": sha1, "sha256": sha256, "md5": md5}],
        "tables": {"DeviceFileEvents": [file_event(1, 9, 1, &sha1, &sha256, &md5)]},
    });
    let bridge = bridge_with(data, Options::default()).await;
    let answer = bridge.observe(&[("sha1", &sha1), ("sha256", &sha256), ("md5", &md5)]).await;
    assert_eq!((answer.errors(), answer.sightings().len()), (vec![], 6));
    let control = bridge.control();
    assert_eq!((control.calls("alerts"), control.calls("files")), (1, 1));
    assert_no_call_twice(&control.requests());
    bridge.stop().await;
}

/// The profile that leads from a SHA-256 to its alerts also completes the hashes of its events, which name the SHA-1.
#[tokio::test]
async fn a_profile_that_was_read_by_one_hash_is_not_read_again_by_the_other() {
    let (sha1, sha256, md5) = (value_of("sha1", 1), value_of("sha256", 1), value_of("md5", 1));
    for ask in [("sha256", &sha256), ("sha1", &sha1)] {
        let data = json!({
            "files": [{"sha1": sha1.to_ascii_uppercase(), "sha256": sha256, "md5": md5}],
            "tables": {"DeviceFileEvents": [
                file_event(1, 9, 1, &sha1, &sha256, ""),
                file_event(2, 10, 1, "", &sha256, ""),
                file_event(3, 11, 1, &sha1, "", ""),
            ]},
        });
        let bridge = bridge_with(data, Options::default()).await;
        bridge.observe(&[(ask.0, ask.1.as_str())]).await;
        let answer = bridge.observe(&[("sha256", &sha256), ("sha1", &sha1)]).await;
        assert_eq!((answer.errors(), answer.sightings().len()), (vec![], 4));
        assert_eq!(bridge.control().calls("files"), 1, "{ask:?}: {:?}", bridge.control().requests_to("files"));
        bridge.stop().await;
    }
}

#[tokio::test]
async fn machines_are_read_one_by_one_only_where_hunting_knows_no_operating_system() {
    let machine = |n: usize, os: Value, inventory: bool| {
        json!({"id": device(n), "computerDnsName": format!("pc-{n}"), "osPlatform": os, "osArchitecture": "64-bit",
            "version": "24H2", "lastSeen": minutes_ago(1), "_inventory": inventory})
    };
    let data = json!({
        "machines": [
            machine(1, json!("Windows11"), true),
            machine(2, json!("Windows10"), false),
            // Known to neither by its operating system.
            {"id": device(3), "osPlatform": null, "lastSeen": minutes_ago(1)},
        ],
        "tables": {"DeviceNetworkEvents": (1..=4).map(|n| connection(n, n as i64, n, "203.0.113.1", "")).collect::<Vec<_>>()},
    });
    let bridge = bridge_with(data, Options::default()).await;
    for round in 1..=2 {
        let answer = bridge.observe(&[("ip", "203.0.113.1")]).await;
        let systems: Vec<Value> = answer.sightings().iter().map(|one| one["targets"][0]["os"].clone()).collect();
        assert_eq!(
            systems,
            [
                json!("Windows11 64-bit version: 24H2"),
                json!("Windows10 64-bit version: 24H2"),
                Value::Null,
                Value::Null
            ]
        );
        assert_eq!(answer.errors(), [], "an unknown machine is no failure");
        let mut read: Vec<String> =
            bridge.control().requests_to("machines").into_iter().map(|request| request.path).collect();
        read.sort();
        let expected: Vec<String> = (2..=4).map(|n| format!("/api/machines/{}", device(n))).collect();
        assert_eq!(read, expected, "round {round}: what was found, and what was not, is kept");
    }
    bridge.stop().await;
}

/// Machines, adapters, profiles and tokens are kept beyond a request even when whole answers are not.
#[tokio::test]
async fn what_another_request_learned_is_not_asked_again() {
    let (observables, data) = estate(20, 10);
    let bridge = bridge_with(data, Options::default()).await;
    let body = list(&observables);
    let first = bridge.post("/observe/observables", &body).await;
    bridge.control().forget();
    let second = bridge.post("/observe/observables", &body).await;
    assert_eq!(second.json(), first.json());
    let control = bridge.control();
    let calls = ["token", "machines", "files", "hunting", "alerts"].map(|route| control.calls(route));
    assert_eq!(calls, [0, 0, 0, 2, 20], "no token, machine, profile or device query");
    bridge.stop().await;
}

/// Simultaneous requests share what they want at the same moment.
#[tokio::test]
async fn requests_side_by_side_share_tokens_machines_and_profiles() {
    let (observables, data) = estate(12, 4);
    let bridge = bridge_with(data, Options::default()).await;
    bridge.control().set_latency(Duration::from_millis(20));
    let body = list(&observables);
    let asks = (0..6).map(|_| bridge.post("/observe/observables", &body));
    let answers = futures_util::future::join_all(asks).await;
    assert!(answers.iter().all(|answer| answer.json() == answers[0].json() && answer.errors().is_empty()));
    let control = bridge.control();
    assert_eq!(
        ["token", "machines", "files"].map(|route| control.calls(route)),
        [2, 1, 2],
        "{:?}",
        control.all_calls()
    );
    bridge.stop().await;
}

fn counts(control: &Control) -> BTreeMap<&'static str, u64> {
    control.all_calls().into_iter().filter(|(_, calls)| *calls > 0).collect()
}

/// How many calls there were since the last [`Control::forget`].
fn made(control: &Control) -> u64 {
    ["token", "alerts", "files", "machines", "hunting"].iter().map(|route| control.calls(route)).sum()
}

fn keeping(ttl: Duration) -> Options {
    Options { answer_ttl: ttl, ..Options::default() }
}

#[tokio::test]
async fn the_same_question_within_the_time_to_live_makes_no_call() {
    let (observables, data) = estate(20, 10);
    let bridge = bridge_with(data, keeping(Duration::from_secs(600))).await;
    let body = list(&observables);
    let first = bridge.post("/observe/observables", &body).await;
    bridge.control().forget();
    let second = bridge.post("/observe/observables", &body).await;
    assert_eq!((second.json(), counts(bridge.control())), (first.json(), BTreeMap::new()));
    // A part of it, in another order, and one that nobody asked for yet.
    let part = json!([
        {"type": "domain", "value": "new.example"},
        {"type": "SHA1", "value": value_of("sha1", 6).to_ascii_uppercase()},
        {"type": "domain", "value": value_of("domain", 2)},
    ]);
    let third = bridge.post("/observe/observables", &part).await;
    assert_eq!((third.errors(), third.sightings().len()), (vec![], 6));
    assert_eq!(asked(&third.sightings()[0]), value_of("sha1", 6).to_ascii_uppercase(), "under its new spelling");
    assert_eq!(bridge.control().calls("alerts"), 1, "the new one only");
    bridge.stop().await;
}

#[tokio::test]
async fn an_answer_is_kept_for_its_own_limit_and_its_own_secret() {
    let (observables, data) = estate(6, 2);
    let bridge = bridge_with(data, keeping(Duration::from_secs(600))).await;
    let body = list(&observables);
    let secret = scenario::DEMO_CLIENT_SECRET;
    let ask = async |secret: &str, limit| {
        bridge.control().forget();
        let token = mint(DEMO_TENANT_ID, DEMO_CLIENT_ID, secret, limit);
        let answer = bridge.post_as(&token, "/observe/observables", &body).await;
        (answer, made(bridge.control()))
    };
    let (first, calls) = ask(secret, None).await;
    assert!(first.errors().is_empty() && calls > 0);
    assert_eq!(ask(secret, None).await.1, 0);
    assert_eq!(ask(secret, Some(100)).await.1, 0, "the same limit by another way");
    let (cut, calls) = ask(secret, Some(1)).await;
    assert!(calls > 0, "another limit");
    assert_eq!(cut.sightings().len(), 6);
    assert_eq!(ask(secret, Some(1)).await.1, 0);
    // A wrong secret learns nothing, not even that there is something.
    let (refused, calls) = ask("wrong", None).await;
    assert_eq!(refused.errors()[0].0, "authorization error");
    assert_eq!(refused.json().get("data"), None);
    assert!(calls > 0);
    // A new secret that is right asks for itself.
    bridge.control().set_secret(DEMO_TENANT_ID, "renewed");
    let (renewed, calls) = ask("renewed", None).await;
    assert_eq!(renewed.json(), first.json());
    assert!(calls > 0);
    assert!(bridge.control().calls("token") == 2 && bridge.control().calls("machines") == 1);
    bridge.stop().await;
}

/// The condition is waited for, not a time: each question within the time to live makes no call.
#[tokio::test]
async fn after_the_time_to_live_the_question_is_asked_again() {
    let data = json!({"alerts": [alert("a1", 5, 1, &[("domain", "a.example")])]});
    let bridge = bridge_with(data, keeping(Duration::from_millis(300))).await;
    let alerts = async || {
        assert_eq!(bridge.observe(&[("domain", "a.example")]).await.sightings().len(), 1);
        bridge.control().calls("alerts")
    };
    assert_eq!(alerts().await, 1);
    let asked_again = async {
        while alerts().await < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked_again).await.expect("it is asked again");
    bridge.stop().await;
}

/// Only complete answers are kept: what failed is asked again, what did not is not.
#[tokio::test]
async fn an_answer_with_something_missing_is_not_kept() {
    use defender_bridge::simulator::{Fault, Matcher};
    let data = json!({"alerts": [
        alert("a1", 5, 1, &[("domain", "a.example")]),
        alert("b1", 5, 1, &[("domain", "b.example")]),
    ]});
    let bridge = bridge_with(data, keeping(Duration::from_secs(600))).await;
    let both = [("domain", "a.example"), ("domain", "b.example")];
    bridge.control().fail_next(Matcher::containing("/b.example/"), Fault::refuse(500), 3);
    let answer = bridge.observe(&both).await;
    assert_eq!((answer.errors().len(), answer.sightings().len()), (1, 1));
    bridge.control().forget();
    let answer = bridge.observe(&both).await;
    assert_eq!((answer.errors(), answer.sightings().len()), (vec![], 2));
    let paths: Vec<String> = bridge.control().requests_to("alerts").into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/api/domains/b.example/alerts"]);
    bridge.stop().await;
}

/// Defect 2 and 30, seen from outside: tenants do not share what is kept.
#[tokio::test]
async fn tenants_do_not_share_what_is_kept() {
    let bridge = TestBridge::start_with(keeping(Duration::from_secs(600))).await;
    let mine = bridge.observe(&[("ip", scenario::C2_ADDRESS)]).await;
    assert!(!mine.sightings().is_empty());
    let other = mint(scenario::OTHER_TENANT_ID, scenario::OTHER_CLIENT_ID, scenario::OTHER_CLIENT_SECRET, None);
    let body = observable_list(&[("ip", scenario::C2_ADDRESS)]);
    let theirs = bridge.post_as(&other, "/observe/observables", &body).await;
    assert_eq!(theirs.json(), json!({"data": {}}));
    assert_eq!(bridge.control().calls_of(scenario::OTHER_TENANT_ID, "alerts"), 1);
    bridge.stop().await;
}
