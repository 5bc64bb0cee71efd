//! Which errors stop what (`relay.md` 3.3 as `DESIGN.md` 10.8 has it): a family that cannot work is left alone, what
//! happens to one observable happens to it alone.

use defender_bridge::simulator::{Fault, Matcher};
use serde_json::{Value, json};

use super::errors::options;
use super::{alert, bridge_with, connection, device, fatal, file_event, minutes_ago};
use crate::bridge::{Answer, TestBridge};

const DOMAINS: usize = 30;

/// Each domain has an alert and an event, on a machine of its own that hunting does not know.
async fn start() -> TestBridge {
    let name = |n: usize| format!("d{n}.example");
    let alerts: Vec<Value> =
        (0..DOMAINS).map(|n| alert(&format!("a{n}"), n as i64, n, &[("domain", &name(n))])).collect();
    let events: Vec<Value> = (0..DOMAINS).map(|n| connection(n, 60 + n as i64, n, "203.0.113.1", &name(n))).collect();
    let machines: Vec<Value> = (0..DOMAINS)
        .map(|n| json!({"id": device(n), "osPlatform": "Ubuntu", "lastSeen": minutes_ago(1), "_inventory": false}))
        .collect();
    let files: Vec<Value> = (0..DOMAINS).map(|n| file_event(n, 90, 0, &format!("{n:040x}"), "", "")).collect();
    let tables = json!({"DeviceNetworkEvents": events, "DeviceFileEvents": files});
    bridge_with(json!({"alerts": alerts, "machines": machines, "tables": tables}), options()).await
}

async fn ask_all(bridge: &TestBridge) -> Answer {
    let names: Vec<String> = (0..DOMAINS).map(|n| format!("d{n}.example")).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| ("domain", name.as_str())).collect();
    bridge.observe(&pairs).await
}

/// Which kinds of calls go on after one of them is refused for good. Five calls are under way at a time, so a few more
/// are made before all know.
#[tokio::test]
async fn a_family_that_is_refused_is_left_alone_and_the_others_go_on() {
    for (name, fault, at_most, code) in [
        ("E6", Fault::refuse(403), 10, "permission denied"),
        ("E7", Fault::throttle(3_600), 5, "too many requests"),
        ("E7 tried again", Fault::throttle(None), 20, "too many requests"),
    ] {
        let bridge = start().await;
        bridge.control().fail_next("alerts", fault, 10_000);
        let answer = ask_all(&bridge).await;
        let codes: Vec<String> = answer.errors().into_iter().map(|error| error.0).collect();
        assert_eq!(codes, [code], "{name}: told once");
        assert_eq!(answer.sightings().len(), DOMAINS, "{name}: every event is there");
        let calls = bridge.control().calls("alerts");
        assert!(calls <= at_most, "{name}: {calls} calls");
        assert_eq!(bridge.control().calls("hunting"), 2, "{name}");
        assert_eq!(bridge.control().calls("machines"), DOMAINS as u64, "{name}");
        bridge.stop().await;
    }
    // The same for details: 30 machines would be read.
    for (fault, at_most) in [(Fault::refuse(403), 10), (Fault::throttle(3_600), 5)] {
        let bridge = start().await;
        bridge.control().fail_next("machines", fault.clone(), 10_000);
        let answer = ask_all(&bridge).await;
        assert_eq!((answer.errors().len(), answer.sightings().len()), (1, 2 * DOMAINS), "{fault:?}");
        let calls = bridge.control().calls("machines");
        assert!(calls <= at_most, "{fault:?}: {calls} calls");
        bridge.stop().await;
    }
    // And for hunting: after the events no devices are asked for.
    for fault in [Fault::refuse(403), Fault::throttle(3_600)] {
        let bridge = start().await;
        bridge.control().fail_next("hunting", fault.clone(), 10_000);
        let answer = ask_all(&bridge).await;
        assert_eq!((answer.errors().len(), answer.sightings().len()), (1, DOMAINS), "{fault:?}");
        assert!(bridge.control().calls("hunting") <= 2, "{fault:?}");
        bridge.stop().await;
    }
}

#[tokio::test]
async fn an_observable_that_fails_does_not_stop_the_next() {
    const INTERNAL: &str = "Microsoft Defender for Endpoint internal error.";
    for (fault, tries) in [(Fault::refuse(500), 4), (Fault::refuse(503), 4), (Fault::Reset, 4), (Fault::EmptyBody, 4)] {
        let bridge = start().await;
        bridge.control().fail_next("alerts", fault.clone(), 10_000);
        let answer = ask_all(&bridge).await;
        assert_eq!((answer.errors().len(), answer.sightings().len()), (1, DOMAINS), "{fault:?}");
        assert_eq!(bridge.control().calls("alerts"), tries * DOMAINS as u64, "{fault:?}: each was tried");
        bridge.stop().await;
    }
    // Two of thirty are named, in request order.
    let bridge = start().await;
    for name in ["/d17.example", "/d4.example"] {
        bridge.control().fail_next(Matcher::containing(name), Fault::refuse(500), 4);
    }
    let answer = ask_all(&bridge).await;
    let about = |name: &str| fatal("internal error", &format!("{INTERNAL} Observable: {name}."));
    assert_eq!(answer.errors(), [about("d4.example"), about("d17.example")]);
    assert_eq!(answer.sightings().len(), 2 * DOMAINS - 2);
    bridge.stop().await;
    // So many that names would say nothing: once, without.
    let bridge = start().await;
    for n in 0..25 {
        bridge.control().fail_next(Matcher::containing(format!("/d{n}.example")), Fault::refuse(500), 4);
    }
    let answer = ask_all(&bridge).await;
    assert_eq!(answer.errors(), [fatal("internal error", INTERNAL)]);
    assert_eq!(answer.sightings().len(), 2 * DOMAINS - 25);
    bridge.stop().await;
}

#[tokio::test]
async fn credentials_that_are_refused_stop_the_whole_request() {
    // By Entra: no other call is made.
    for fault in [Fault::refuse(401), Fault::refuse(400), Fault::refuse(503)] {
        let bridge = start().await;
        bridge.control().fail_next("token", fault.clone(), 10_000);
        let answer = ask_all(&bridge).await;
        assert_eq!((answer.errors().len(), answer.json().get("data")), (1, None), "{fault:?}");
        let tokens = bridge.control().calls("token");
        assert_eq!(bridge.control().total(), tokens, "{fault:?}: nothing but tokens was asked for");
        assert!(tokens <= 4, "{fault:?}: {tokens}");
        bridge.stop().await;
    }
    // By Defender: A14, after one renewal for the request.
    let bridge = start().await;
    bridge.control().fail_next("alerts", Fault::refuse(401), 10_000);
    let answer = ask_all(&bridge).await;
    let reason = "Authorization failed: The authorization header is invalid or has expired (simulated).";
    assert_eq!(answer.errors(), [fatal("authorization error", reason)]);
    assert_eq!(answer.json().get("data"), None);
    let control = bridge.control();
    assert!(control.calls("alerts") <= 10, "{}", control.calls("alerts"));
    assert_eq!((control.calls("token"), control.calls("hunting")), (2, 0));
    bridge.stop().await;
}

/// A query of both tables that is refused is asked again for each of them: what can be read is.
#[tokio::test]
async fn a_query_that_fails_costs_the_events_of_its_own_table_only() {
    let bridge = start().await;
    let sha1 = format!("{:040x}", 3);
    // The query of both tables, and that of this one alone.
    bridge.control().fail_next(Matcher::containing("DeviceNetworkEvents"), Fault::refuse(400), 2);
    let answer = bridge.observe(&[("domain", "d1.example"), ("sha1", &sha1), ("sha1", &format!("{:040x}", 4))]).await;
    let message = "Invalid request to Microsoft Defender for Endpoint. The query is refused. Fix semantic errors in \
                   your query. (simulated) Observable: d1.example.";
    assert_eq!(answer.errors(), [fatal("invalid request", message)]);
    let asked: Vec<Value> =
        answer.sightings().iter().map(|sighting| sighting["observables"][0]["type"].clone()).collect();
    assert_eq!(asked, [json!("domain"), json!("sha1"), json!("sha1")], "{}", answer.text);
    bridge.stop().await;
}
