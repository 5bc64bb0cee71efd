//! Requests side by side: what they ask Microsoft together, and that each answer is the one it would have got alone.

use std::sync::Arc;
use std::time::Duration;

use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{Data, Fault, Matcher};
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use super::{alert, asked, bridge_with, bridge_with_data, connection, device, fatal, file_event, minutes_ago, what};
use crate::bridge::{Options, mint};

const KINDS: [&str; 6] = ["sha1", "sha256", "md5", "ip", "ipv6", "domain"];

/// A stampede of the same question costs one call of each kind, also when nothing is kept afterwards.
#[tokio::test]
async fn fifty_who_ask_the_same_at_once_cost_one_call_of_each_kind() {
    let sha1 = format!("{:040x}", 0xa1);
    let data = json!({
        "alerts": [alert("a1", 5, 1, &[("sha1", &sha1)])],
        "files": [{"sha1": sha1, "sha256": null, "md5": null}],
        "machines": [{"id": device(1), "osPlatform": "Windows11", "lastSeen": minutes_ago(1), "_inventory": false}],
        "tables": {"DeviceFileEvents": [file_event(1, 9, 1, &sha1, "", "")]},
    });
    let bridge = bridge_with(data, Options { answer_ttl: Duration::from_secs(600), ..Options::default() }).await;
    bridge.control().set_latency(Duration::from_millis(50));
    let ask = [("sha1", sha1.as_str()), ("domain", "nobody.example")];
    let answers = join_all((0..50).map(|_| bridge.observe(&ask))).await;
    assert_eq!((answers[0].errors(), answers[0].sightings().len()), (vec![], 2));
    assert!(answers.iter().all(|answer| answer.json() == answers[0].json()));
    let control = bridge.control();
    let calls = ["token", "alerts", "hunting", "files", "machines"].map(|route| control.calls(route));
    assert_eq!(calls, [2, 2, 2, 1, 1], "an alert lookup for each observable, one query of events and one of devices");
    bridge.stop().await;
}

/// Those whose leader failed ask themselves, each for its own answer.
#[tokio::test]
async fn who_waits_for_a_request_that_fails_asks_itself() {
    let data = json!({"alerts": [alert("a1", 5, 1, &[("domain", "a.example")])]});
    let bridge = bridge_with(data, Options::default()).await;
    bridge.control().set_latency(Duration::from_millis(50));
    // All tries of the first call.
    bridge.control().fail_next("alerts", Fault::refuse(500), 3);
    let answers = join_all((0..5).map(|_| bridge.observe(&[("domain", "a.example")]))).await;
    let failed = answers.iter().filter(|answer| !answer.errors().is_empty()).count();
    assert!(failed >= 1 && answers.iter().any(|answer| answer.sightings().len() == 1), "{failed}");
    bridge.stop().await;
}

/// Different questions of different requests at the same moment.
#[tokio::test]
async fn requests_side_by_side_share_their_hunting_queries() {
    const REQUESTS: usize = 30;
    let events: Vec<Value> =
        (0..REQUESTS).map(|n| connection(n, n as i64, n % 3, "203.0.113.1", &format!("d{n}.example"))).collect();
    let bridge = bridge_with(json!({"tables": {"DeviceNetworkEvents": events}}), Options::default()).await;
    bridge.control().set_latency(Duration::from_millis(200));
    let answers = join_all((0..REQUESTS).map(|n| {
        let bridge = &bridge;
        async move { bridge.observe(&[("domain", &format!("d{n}.example"))]).await }
    }))
    .await;
    for (n, answer) in answers.iter().enumerate() {
        let sightings = answer.sightings();
        assert_eq!((answer.errors(), sightings.len()), (vec![], 1), "{n}");
        assert_eq!(asked(&sightings[0]), format!("d{n}.example"));
    }
    let hunting = bridge.control().calls("hunting");
    println!("{REQUESTS} requests side by side: {hunting} hunting calls");
    assert!(hunting < REQUESTS as u64, "{hunting}");
    bridge.stop().await;
}

/// A query that is too much is halved, and only the observable that is too much has an error, for whoever asked for it.
#[tokio::test]
async fn a_shared_query_that_is_too_large_costs_only_whoever_asked_for_what_is() {
    let events: Vec<Value> =
        (0..4).map(|n| connection(n, n as i64, 1, "203.0.113.1", &format!("d{n}.example"))).collect();
    let bridge = bridge_with(json!({"tables": {"DeviceNetworkEvents": events}}), Options::default()).await;
    let too_large = Fault::Answer {
        status: 400,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: json!({"error": {"code": "BadRequest", "message": "Query exceeded the allowed result size."}})
            .to_string(),
    };
    bridge.control().fail_next(Matcher::containing("d3.example\""), too_large, 20);
    let message = "Invalid request to Microsoft Defender for Endpoint. Query exceeded the allowed result size.";
    let names = ["d0.example", "d1.example", "d2.example", "d3.example"];
    let all: Vec<(&str, &str)> = names.iter().map(|name| ("domain", *name)).collect();
    let (mixed, clean) = tokio::join!(bridge.observe(&all), bridge.observe(&all[..2]));
    assert_eq!(mixed.errors(), [fatal("invalid request", &format!("{message} Observable: d3.example."))]);
    assert_eq!((mixed.sightings().len(), clean.sightings().len()), (3, 2));
    assert_eq!(clean.errors(), []);
    bridge.stop().await;
}

/// Small numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

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

/// Files, addresses and names 0 to 3, each with some alerts and events on some machines. No two events are of one time.
fn data(dice: &mut Dice) -> Value {
    let (mut alerts, mut files, mut network, mut file_events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut minute = 10;
    for n in 0..4 {
        let (sha1, sha256, md5) = (value_of("sha1", n), value_of("sha256", n), value_of("md5", n));
        if dice.roll(4) > 0 {
            let sha256 = (dice.roll(3) > 0).then_some(&sha256);
            files.push(json!({"sha1": sha1, "sha256": sha256, "md5": md5}));
        }
        let (ip, ipv6, domain) = (value_of("ip", n), value_of("ipv6", n), value_of("domain", n));
        for (kind, value) in [("sha1", &sha1), ("ip", &ip), ("domain", &domain)] {
            for _ in 0..dice.roll(4) {
                minute += 1;
                alerts.push(alert(&format!("al{minute}"), minute, dice.roll(5), &[(kind, value)]));
            }
        }
        for _ in 0..dice.roll(7) {
            minute += 1;
            let known = |dice: &mut Dice, hash: &str| if dice.roll(3) > 0 { hash.to_owned() } else { String::new() };
            let (sha1, sha256, md5) = (known(dice, &sha1), known(dice, &sha256), known(dice, &md5));
            file_events.push(file_event(minute as usize, minute, dice.roll(5), &sha1, &sha256, &md5));
        }
        for _ in 0..dice.roll(9) {
            minute += 1;
            let (ip, url) = match dice.roll(4) {
                0 => (ip.as_str(), ""),
                1 => (ipv6.as_str(), ""),
                2 => ("198.51.100.1", domain.as_str()),
                _ => (ip.as_str(), domain.as_str()),
            };
            network.push(connection(minute as usize, minute, dice.roll(5), ip, url));
        }
    }
    let machines: Vec<Value> = (0..4)
        .map(|n| {
            json!({"id": device(n), "computerDnsName": format!("pc-{n}"), "osPlatform": "Windows11",
                "lastSeen": minutes_ago(1), "_inventory": n > 1})
        })
        .collect();
    let tables = json!({"DeviceNetworkEvents": network, "DeviceFileEvents": file_events});
    json!({"alerts": alerts, "files": files, "machines": machines, "tables": tables})
}

/// Random observables under a random limit, as the token and the body that ask for them.
fn request(dice: &mut Dice) -> (String, Value) {
    let limit = [1, 2, 3, 5, 100][dice.roll(5)];
    let token = mint(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, Some(limit));
    let body = (0..1 + dice.roll(10))
        .map(|_| {
            let kind = KINDS[dice.roll(6)];
            json!({"type": kind, "value": value_of(kind, dice.roll(5))})
        })
        .collect();
    (token, body)
}

async fn together_equals_alone(seed: u64) -> Result<(), TestCaseError> {
    let mut dice = Dice(seed);
    let data = Arc::new(Data::from_json(&data(&mut dice)).expect("the data fits the hunting tables"));
    let requests: Vec<(String, Value)> = (0..2 + dice.roll(5)).map(|_| request(&mut dice)).collect();
    let together = bridge_with_data(Data::clone(&data), Options::default()).await;
    // So that they meet; and the service may refuse the operator that queries prefer.
    together.control().set_latency(Duration::from_millis(10));
    if dice.roll(2) == 0 {
        let refused = json!({"error": {"code": "BadRequest", "message": "Operator 'partition' is not supported"}});
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        let fault = Fault::Answer { status: 400, headers, body: refused.to_string() };
        together.control().fail_next(Matcher::containing("| partition"), fault, 1_000);
    }
    let answers =
        join_all(requests.iter().map(|(token, body)| together.post_as(token, "/observe/observables", body))).await;
    together.stop().await;
    for (answer, (token, body)) in answers.into_iter().zip(&requests) {
        let alone = bridge_with_data(Data::clone(&data), Options::default()).await;
        let expected = alone.post_as(token, "/observe/observables", body).await;
        alone.stop().await;
        let shown: Vec<String> = answer.sightings().iter().map(what).collect();
        let wanted: Vec<String> = expected.sightings().iter().map(what).collect();
        prop_assert_eq!(shown, wanted, "{}", body);
        prop_assert_eq!(answer.json(), expected.json(), "{}", body);
    }
    Ok(())
}

proptest! {
    // Each case runs several bridges.
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_side_by_side_get_what_each_would_get_alone(seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(together_equals_alone(seed))?;
    }
}
