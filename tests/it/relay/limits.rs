//! `CTR_ENTITIES_LIMIT` (`relay.md` 5.3): how alerts and events share it, the order of both, E22, and the way of MD5
//! (5.2).

use defender_bridge::simulator::scenario::DEMO_TENANT_ID;
use defender_bridge::simulator::{Control, Data};
use serde_json::{Value, json};

use super::{alert, bridge_with, connection, file_event, warning, what};
use crate::bridge::{Options, TestBridge};

const SHA1: &str = "00000000000000000000000000000000000000c1";
const SHA256: &str = "00000000000000000000000000000000000000000000000000000000000000c2";
const MD5: &str = "000000000000000000000000000000c3";

fn limit(entities_limit: u32) -> Options {
    Options { entities_limit, ..Options::default() }
}

fn more(value: &str) -> (String, String, String) {
    warning(
        "too-many-messages-warning",
        &format!("There are more alerts for {value} in Microsoft Defender for Endpoint than are shown."),
    )
}

/// Alerts `a0` (newest) and on; events five minutes apart, each older than the one before.
fn data(alerts: usize, events: usize) -> Value {
    // Not in their order, for neither route promises one.
    let mut alerts: Vec<Value> =
        (0..alerts).map(|n| alert(&format!("a{n}"), 10 + n as i64, 1, &[("domain", "a.example")])).collect();
    alerts.reverse();
    let mut events: Vec<Value> =
        (0..events).map(|n| connection(n, 5 * n as i64, 1, "203.0.113.1", "a.example")).collect();
    let half = events.len() / 2;
    events.rotate_left(half);
    json!({"alerts": alerts, "tables": {"DeviceNetworkEvents": events}})
}

/// How many of an answer's sightings are alerts, and how many events; alerts come first and both newest first.
fn shares(sightings: &[Value]) -> (usize, usize) {
    let alerts = sightings.iter().take_while(|one| one.get("external_ids").is_some()).count();
    let (first, rest) = sightings.split_at(alerts);
    assert!(rest.iter().all(|one| one.get("external_ids").is_none()), "alerts come first");
    let ids: Vec<String> = first.iter().map(what).collect();
    let newest: Vec<String> = (0..alerts).map(|n| format!("a{n}")).collect();
    assert_eq!(ids, newest, "the newest alerts, newest first");
    let times: Vec<String> = rest.iter().map(what).collect();
    assert!(times.is_sorted_by(|one, next| one > next), "{times:?}");
    (alerts, rest.len())
}

#[tokio::test]
async fn alerts_fill_the_limit_first_and_events_the_rest() {
    // (L, alerts, events) -> (alerts shown, events shown, E22)
    for (l, alerts, events, shown, told) in [
        (3, 0, 0, (0, 0), false),
        (3, 0, 2, (0, 2), false),
        (3, 0, 5, (0, 3), false),
        (3, 1, 5, (1, 2), false),
        (3, 2, 5, (2, 1), false),
        (3, 3, 5, (3, 0), false),
        (3, 4, 5, (3, 0), true),
        (3, 9, 0, (3, 0), true),
        (1, 0, 5, (0, 1), false),
        (1, 1, 5, (1, 0), false),
        (1, 2, 0, (1, 0), true),
        (100, 4, 7, (4, 7), false),
        (2_000, 4, 7, (4, 7), false),
    ] {
        let bridge = bridge_with(data(alerts, events), limit(l)).await;
        let answer = bridge.observe(&[("domain", "a.example")]).await;
        let case = format!("L {l}, {alerts} alerts, {events} events");
        assert_eq!(shares(&answer.sightings()), shown, "{case}");
        assert_eq!(answer.errors(), if told { vec![more("a.example")] } else { vec![] }, "{case}");
        // The events that are shown are the newest there are.
        let newest: Vec<String> = answer.sightings().iter().skip(shown.0).map(what).collect();
        let all = bridge_with(data(0, events), limit(100)).await;
        let whole: Vec<String> = all.observe(&[("domain", "a.example")]).await.sightings().iter().map(what).collect();
        // Minutes may pass between the two.
        assert_eq!(newest.len(), whole.len().min(shown.1), "{case}");
        all.stop().await;
        let events_asked =
            bridge.control().hunting_queries().iter().filter(|query| query.contains("DeviceNetworkEvents")).count();
        assert_eq!(events_asked, usize::from(alerts < l as usize), "{case}: full of alerts, no hunting");
        bridge.stop().await;
    }
}

/// Defect 23: the newest events, taken inside the query.
#[tokio::test]
async fn the_events_that_are_shown_are_the_newest() {
    let events: Vec<Value> = [50, 3, 40, 1, 30, 2].map(|n| connection(n, n as i64, 1, "203.0.113.1", "")).to_vec();
    let reports = events.clone();
    let bridge = bridge_with(json!({"tables": {"DeviceNetworkEvents": events}}), limit(3)).await;
    let answer = bridge.observe(&[("ip", "203.0.113.1")]).await;
    let shown: Vec<String> = answer.sightings().iter().map(what).collect();
    let time = |index: usize| reports[index]["Timestamp"].as_str().expect("a time").replace('Z', ".000Z");
    assert_eq!(shown, [time(3), time(5), time(1)], "1, 2 and 3 minutes ago");
    bridge.stop().await;
}

#[tokio::test]
async fn each_observable_has_a_limit_of_its_own() {
    let mut data = data(2, 9);
    data["alerts"].as_array_mut().expect("a list").push(alert("b0", 1, 1, &[("domain", "b.example")]));
    for n in 0..4 {
        data["alerts"].as_array_mut().expect("a list").push(alert(&format!("c{n}"), n, 1, &[("ip", "203.0.113.9")]));
    }
    for n in 0..9 {
        let event = connection(100 + n, n as i64, 1, "203.0.113.9", "b.example");
        data["tables"]["DeviceNetworkEvents"].as_array_mut().expect("a list").push(event);
    }
    let bridge = bridge_with(data, limit(3)).await;
    let answer = bridge
        .observe(&[("ip", "203.0.113.9"), ("domain", "b.example"), ("domain", "none.example"), ("domain", "a.example")])
        .await;
    let mut of: Vec<(String, usize, usize)> = Vec::new();
    for sighting in answer.sightings() {
        let name = super::asked(&sighting).to_owned();
        if of.last().is_none_or(|last| last.0 != name) {
            of.push((name, 0, 0));
        }
        let last = of.last_mut().expect("one was pushed");
        *(if sighting.get("external_ids").is_some() { &mut last.1 } else { &mut last.2 }) += 1;
    }
    let expected = [("203.0.113.9", 3, 0), ("b.example", 1, 2), ("a.example", 2, 1)];
    assert_eq!(of, expected.map(|(name, alerts, events)| (name.to_owned(), alerts, events)));
    assert_eq!(answer.errors(), [more("203.0.113.9")]);
    // The one that alerts fill is not hunted for.
    assert!(bridge.control().hunting_queries().iter().all(|query| !query.contains("203.0.113.9")));
    bridge.stop().await;
}

/// Defect 28: pages are followed as far as the limit needs, and what is behind them is told.
#[tokio::test]
async fn pages_are_followed_until_the_limit_is_reached() {
    for (l, pages, shown, told) in
        [(3, 2, 3, true), (4, 3, 4, true), (5, 3, 5, true), (6, 3, 6, false), (100, 3, 6, false)]
    {
        let bridge = bridge_with(data(6, 0), limit(l)).await;
        bridge.control().set_page_size(Some(2));
        let answer = bridge.observe(&[("domain", "a.example")]).await;
        assert_eq!(answer.sightings().len(), shown, "L {l}");
        assert_eq!(answer.errors(), if told { vec![more("a.example")] } else { vec![] }, "L {l}");
        assert_eq!(bridge.control().calls("alerts"), pages, "L {l}");
        bridge.stop().await;
    }
    // A next page on another server is not asked: the token would go there.
    let bridge = bridge_with(data(6, 0), limit(100)).await;
    bridge.control().set_page_size(Some(2));
    bridge.control().set_foreign_next_link(Some("http://127.0.0.1:9"));
    let answer = bridge.observe(&[("domain", "a.example")]).await;
    assert_eq!((answer.sightings().len(), bridge.control().calls("alerts")), (2, 1));
    assert_eq!(answer.errors(), [more("a.example")], "they are not hidden");
    bridge.stop().await;
}

/// Defect 26: as instants, ties by id from the last.
#[tokio::test]
async fn alerts_are_sorted_as_instants_and_not_as_text() {
    let at = |id: &str, time: &str| {
        let mut alert = alert(id, 1, 1, &[("domain", "a.example")]);
        alert["alertCreationTime"] = if time.is_empty() { Value::Null } else { json!(time) };
        alert
    };
    let data = json!({"alerts": [
        at("plain", "2026-01-05T10:00:12Z"),
        at("point9", "2026-01-05T10:00:12.9Z"),
        at("point95", "2026-01-05T10:00:12.95Z"),
        at("same-1", "2026-01-05T10:00:11Z"),
        at("same-2", "2026-01-05T10:00:11.0000000Z"),
        at("offset", "2026-01-05T12:00:13+02:00"),
        at("absent", ""),
    ]});
    let bridge = bridge_with(data, Options::default()).await;
    let answer = bridge.observe(&[("domain", "a.example")]).await;
    let ids: Vec<String> = answer.sightings().iter().map(what).collect();
    assert_eq!(ids, ["offset", "point95", "point9", "plain", "same-2", "same-1", "absent"]);
    bridge.stop().await;
}

/// Replaces what the demo tenant knows of files: `alerts` alerts of `SHA1`, and `events` events of `MD5` of which the
/// newest `without` have no SHA-1.
fn know(control: &Control, alerts: usize, events: usize, without: usize) {
    let alerts: Vec<Value> = (0..alerts).map(|n| alert(&format!("a{n}"), n as i64, 1, &[("sha1", SHA1)])).collect();
    let events: Vec<Value> =
        (0..events).map(|n| file_event(n, n as i64, 1, if n < without { "" } else { SHA1 }, SHA256, MD5)).collect();
    let data = json!({"alerts": alerts, "tables": {"DeviceFileEvents": events}});
    control.set_data(DEMO_TENANT_ID, Data::from_json(&data).expect("it fits"));
}

/// `relay.md` 5.2: events first, for `L` rows; the newest SHA-1 among them leads to the alerts; then the events are cut.
#[tokio::test]
async fn an_md5_finds_its_alerts_through_its_events() {
    // L, alerts, events, how many of the newest have no SHA-1 -> alerts shown, events shown, E22, alert calls
    let cases = [
        (3, 0, 0, 0, (0, 0), false, 0),
        (3, 2, 0, 0, (0, 0), false, 0),
        (3, 0, 5, 0, (0, 3), false, 1),
        (3, 1, 5, 0, (1, 2), false, 1),
        (3, 3, 5, 0, (3, 0), false, 1),
        (3, 4, 5, 0, (3, 0), true, 1),
        (3, 1, 5, 2, (1, 2), false, 1),
        // None of the first three rows has one, so nobody knows the file.
        (3, 1, 5, 3, (0, 3), false, 0),
        (100, 2, 5, 4, (2, 5), false, 1),
    ];
    for (l, alerts, events, without, shown, told, alert_calls) in cases {
        let bridge = TestBridge::start_with(limit(l)).await;
        know(bridge.control(), alerts, events, without);
        let answer = bridge.observe(&[("md5", MD5)]).await;
        let case = format!("L {l}, {alerts} alerts, {events} events, {without} without");
        assert_eq!(shares(&answer.sightings()), shown, "{case}");
        assert_eq!(answer.errors(), if told { vec![more(MD5)] } else { vec![] }, "{case}");
        assert_eq!(bridge.control().calls("alerts"), alert_calls, "{case}");
        // Defect 75: the file route knows no MD5.
        assert!(bridge.control().requests().iter().all(|request| !request.path.contains(MD5)), "{case}");
        bridge.stop().await;
    }
}

/// Defect 27: a profile without a SHA-1, or none at all, means no alerts.
#[tokio::test]
async fn a_sha256_finds_its_alerts_through_its_profile() {
    let data = |profile: Value| {
        let files: Vec<Value> = if profile.is_null() { vec![] } else { vec![profile] };
        json!({
            "alerts": [alert("a0", 1, 1, &[("sha1", SHA1)])],
            "files": files,
            "tables": {"DeviceFileEvents": [file_event(1, 5, 1, SHA1, SHA256, MD5)]},
        })
    };
    for (profile, shown, alert_calls) in [
        (json!({"sha1": SHA1, "sha256": SHA256}), (1, 1), 1),
        (json!({"sha1": null, "sha256": SHA256}), (0, 1), 0),
        (json!({"sha1": "", "sha256": SHA256}), (0, 1), 0),
        (json!({"sha256": SHA256}), (0, 1), 0),
        (Value::Null, (0, 1), 0),
    ] {
        let bridge = bridge_with(data(profile.clone()), Options::default()).await;
        let answer = bridge.observe(&[("sha256", SHA256)]).await;
        assert_eq!((shares(&answer.sightings()), answer.errors()), (shown, vec![]), "{profile}");
        assert_eq!((bridge.control().calls("files"), bridge.control().calls("alerts")), (1, alert_calls), "{profile}");
        bridge.stop().await;
    }
}
