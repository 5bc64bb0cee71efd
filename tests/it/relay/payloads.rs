//! Payloads: E2 and its details (`relay.md` 3.5), what is ignored, and how observables are named (4.1, 4.2).

use serde_json::{Value, json};

use super::{alert, asked, bridge_with, connection, file_event};
use crate::bridge::{Answer, Options, TestBridge, demo_token};

const SHA1: &str = "00000000000000000000000000000000000000a1";
const SHA256: &str = "00000000000000000000000000000000000000000000000000000000000000a2";
const MD5: &str = "000000000000000000000000000000a3";

async fn post_raw(bridge: &TestBridge, path: &str, body: &[u8]) -> Answer {
    let request = bridge.client.post(bridge.url(path)).bearer_auth(demo_token()).body(body.to_vec());
    Answer::of(request.send().await.expect("the ingress answers")).await
}

/// The details of E2 as JSON, for the order of members is not fixed.
fn details(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200);
    let [(code, message, kind)] = answer.errors().try_into().expect("one error");
    assert_eq!((code.as_str(), kind.as_str()), ("invalid payload", "fatal"));
    assert_eq!(answer.json().get("data"), None);
    let text = message.strip_prefix("Invalid JSON payload received. ").and_then(|text| text.strip_suffix('.'));
    serde_json::from_str(text.unwrap_or_else(|| panic!("{message}"))).expect("the details are JSON")
}

#[tokio::test]
async fn a_body_that_is_no_list_is_a_wrong_input_type() {
    let bridge = TestBridge::start_with(Options { worker: false, ..Options::default() }).await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_item = format!(r#"[{{"type":"ip","value":"192.0.2.1","x":{}1{}}}]"#, "[".repeat(500), "]".repeat(500));
    let bodies: [&[u8]; 16] = [
        b"",
        b" \r\n",
        b"{",
        b"{}",
        b"null",
        b"true",
        b"7",
        br#""x""#,
        b"[1",
        b"[] []",
        b"[],",
        b"\xef\xbb\xbf[]",
        b"[\"\xff\xfe\"]",
        b"\x1f\x8b\x08\x00",
        deep.as_bytes(),
        deep_item.as_bytes(),
    ];
    for body in bodies {
        for path in ["/observe/observables", "/deliberate/observables"] {
            let answer = post_raw(&bridge, path, body).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!(details(&answer), json!({"_schema": ["Invalid input type."]}), "{path} {shown}");
        }
    }
    bridge.stop().await;
}

#[tokio::test]
async fn every_problem_of_every_item_is_named_in_one_answer() {
    const MISSING: &str = "Missing data for required field.";
    const NULL: &str = "Field may not be null.";
    const TEXT: &str = "Not a valid string.";
    const BLANK: &str = "Field may not be blank.";
    let bridge = TestBridge::start_with(Options { worker: false, ..Options::default() }).await;
    let cases = [
        (json!([{}]), json!({"0": {"type": [MISSING], "value": [MISSING]}})),
        (json!([{"type": "ip"}]), json!({"0": {"value": [MISSING]}})),
        (json!([{"value": "x"}]), json!({"0": {"type": [MISSING]}})),
        (json!([{"type": null, "value": null}]), json!({"0": {"type": [NULL], "value": [NULL]}})),
        (json!([{"type": 1, "value": true}]), json!({"0": {"type": [TEXT], "value": [TEXT]}})),
        (json!([{"type": [], "value": {}}]), json!({"0": {"type": [TEXT], "value": [TEXT]}})),
        (json!([{"type": "", "value": ""}]), json!({"0": {"type": [BLANK], "value": [BLANK]}})),
        (json!([{"Type": "ip", "VALUE": "x"}]), json!({"0": {"type": [MISSING], "value": [MISSING]}})),
        (json!([5]), json!({"0": {"_schema": ["Invalid input type."]}})),
        (
            json!([[], null, "x"]),
            json!({
                "0": {"_schema": ["Invalid input type."]},
                "1": {"_schema": ["Invalid input type."]},
                "2": {"_schema": ["Invalid input type."]},
            }),
        ),
        (
            json!([{"type": "ip", "value": "192.0.2.1"}, {"type": "ip", "value": ""}, 3, {"type": "odd", "value": null}]),
            json!({
                "1": {"value": [BLANK]},
                "2": {"_schema": ["Invalid input type."]},
                "3": {"value": [NULL]},
            }),
        ),
    ];
    for (body, expected) in cases {
        for path in ["/observe/observables", "/deliberate/observables"] {
            let answer = bridge.post(path, &body).await;
            assert_eq!(details(&answer), expected, "{path} {body}");
        }
    }
    // The separators of the text are part of the contract.
    let answer = bridge.post("/observe/observables", &json!([{"type": "ip", "value": ""}])).await;
    assert_eq!(
        answer.errors()[0].1,
        r#"Invalid JSON payload received. {"0": {"value": ["Field may not be blank."]}}."#
    );
    bridge.stop().await;
}

#[tokio::test]
async fn a_thousand_observables_are_taken_and_one_more_is_refused() {
    let bridge = TestBridge::start_with(Options { worker: false, ..Options::default() }).await;
    // Of no type that is asked for, so that no worker is needed.
    let list =
        |length: usize| -> Value { (0..length).map(|n| json!({"type": "url", "value": format!("u{n}")})).collect() };
    for path in ["/observe/observables", "/deliberate/observables"] {
        assert_eq!(bridge.post(path, &list(1_000)).await.json(), json!({"data": {}}), "{path}");
        let answer = bridge.post(path, &list(1_001)).await;
        assert_eq!(details(&answer), json!({"_schema": ["Longer than maximum length 1000."]}), "{path}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn members_beyond_type_and_value_are_ignored() {
    let bridge = TestBridge::start_with(Options { worker: false, ..Options::default() }).await;
    let body = json!([{"type": "url", "value": "x", "extra": {"a": [null]}, "id": 7}]);
    assert_eq!(bridge.post("/observe/observables", &body).await.json(), json!({"data": {}}));
    // Of two members of one name one counts, and neither breaks the relay.
    let twice = br#"[{"type":"url","type":"file","value":"x","value":"y"}]"#;
    assert_eq!(post_raw(&bridge, "/observe/observables", twice).await.json(), json!({"data": {}}));
    bridge.stop().await;
}

/// Defects 17 and 19: what is not valid for its type goes nowhere.
#[tokio::test]
async fn what_is_not_asked_for_costs_no_call_and_no_error() {
    let bridge = TestBridge::start().await;
    let long = format!("{}.example", "a".repeat(64));
    let items = [
        ("ip", " "),
        ("ip", "@#$%^&"),
        ("ip", "192.0.2.256"),
        ("ip", "192.0.2"),
        ("ip", "0300.0.2.1"),
        ("ip", "1' or 1==1 //"),
        ("ip", "192.0.2.1/24"),
        ("ipv6", "192.0.2.1"),
        ("ipv6", "2001:db8::/64"),
        ("ipv6", ":::"),
        ("domain", "../machines"),
        ("domain", "a b.example"),
        ("domain", "a..example"),
        ("domain", "evil.example/x"),
        ("domain", "evil.example:8443"),
        ("domain", "\" | union AlertInfo //"),
        ("domain", long.as_str()),
        ("sha1", "abc"),
        ("sha1", "../../machines"),
        ("sha1", "g000000000000000000000000000000000000000"),
        ("sha256", SHA1),
        ("md5", SHA1),
        ("ms_machine_id", "267d30bb33dc9455ba401e652b4e352ba88cd20e"),
        ("ms_machine_id", "m1/../../m2"),
        ("url", "http://evil.example/"),
        ("hostname", "evil"),
        ("email", "a@b.example"),
        ("SHA-1", SHA1),
        ("\u{fffd}", "x"),
    ];
    let body: Value = items.iter().map(|(kind, value)| json!({"type": kind, "value": value})).collect();
    let answer = bridge.post("/observe/observables", &body).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"data": {}})));
    assert_eq!(bridge.control().total(), 0, "{:?}", bridge.control().requests());
    bridge.stop().await;
}

/// Defect 18, and `relay.md` 4.2: asked once, under the normal value; named as first spelled and in normal form.
#[tokio::test]
async fn spellings_of_one_observable_are_asked_once_and_named_as_spelled_first() {
    let alerts = vec![
        alert("of-domain", 1, 1, &[("domain", "evil.example")]),
        alert("of-sha1", 2, 1, &[("sha1", SHA1)]),
        alert("of-ip", 3, 1, &[("ip", "203.0.113.7")]),
    ];
    let files = json!([{"sha1": SHA1, "sha256": SHA256, "md5": MD5}]);
    let events = vec![connection(1, 5, 1, "2001:db8::7", "")];
    let data = json!({"alerts": alerts, "files": files,
        "tables": {"DeviceNetworkEvents": events, "DeviceFileEvents": [file_event(2, 6, 1, SHA1, SHA256, MD5)]}});
    let bridge = bridge_with(data, Options::default()).await;
    let upper = SHA1.to_ascii_uppercase();
    let answer = bridge
        .observe(&[
            ("Domain", " EVIL.example. "),
            ("domain", "evil.example"),
            ("DOMAIN", "Evil.Example"),
            ("sha1", &upper),
            ("SHA1", SHA1),
            ("ip", "203.0.113.7"),
            ("ip", " 203.0.113.7"),
            ("ipv6", "::ffff:203.0.113.7"),
            ("ipv6", "[2001:DB8:0:0::7%eth0]"),
            ("ip", "2001:db8::7"),
            ("sha256", &SHA256.to_ascii_uppercase()),
            ("md5", MD5),
        ])
        .await;
    assert_eq!(answer.errors(), []);
    let mut named: Vec<Value> = answer.sightings().iter().map(|sighting| sighting["observables"].clone()).collect();
    named.dedup();
    assert_eq!(
        named,
        [
            json!([{"type": "domain", "value": " EVIL.example. "}, {"type": "domain", "value": "evil.example"}]),
            json!([{"type": "sha1", "value": upper}, {"type": "sha1", "value": SHA1}]),
            json!([{"type": "ip", "value": "203.0.113.7"}]),
            json!([{"type": "ipv6", "value": "[2001:DB8:0:0::7%eth0]"}, {"type": "ipv6", "value": "2001:db8::7"}]),
            json!([{"type": "sha256", "value": SHA256.to_ascii_uppercase()}, {"type": "sha256", "value": SHA256}]),
            json!([{"type": "md5", "value": MD5}]),
        ],
        "{:?}",
        answer.sightings().iter().map(asked).collect::<Vec<_>>()
    );
    super::assert_no_call_twice(&bridge.control().requests());
    let paths: Vec<String> = bridge.control().requests_to("alerts").into_iter().map(|request| request.path).collect();
    for path in ["/api/domains/evil.example/alerts", "/api/ips/203.0.113.7/alerts", "/api/ips/2001:db8::7/alerts"] {
        assert!(paths.iter().any(|asked| asked == path), "{path} is not in {paths:?}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_request_with_nothing_to_ask_is_answered_without_a_worker() {
    let bridge = TestBridge::start_with(Options { worker: false, ..Options::default() }).await;
    for body in [json!([]), json!([{"type": "url", "value": "x"}])] {
        for (path, expected) in [
            ("/observe/observables", json!({"data": {}})),
            ("/deliberate/observables", json!({"data": {}})),
            ("/refer/observables", json!({"data": []})),
            ("/respond/observables", json!({"data": []})),
        ] {
            assert_eq!(bridge.post(path, &body).await.json(), expected, "{path} {body}");
        }
    }
    bridge.stop().await;
}
