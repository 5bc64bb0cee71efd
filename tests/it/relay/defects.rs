//! The defects of the original relay (`relay.md` 8) and the tests that keep them away. Names without a path are tests of
//! this file; `an_alert`, `network_events` and `file_events` are the worked examples in `relay_examples::on_sqlite`.
//!
//! | defect | test |
//! |---|---|
//! | 1 | `a_token_is_asked_for_with_a_posted_form` |
//! | 2 | `calls::twenty_observables_over_ten_machines_cost_three_hunting_calls` |
//! | 3 | `deadlines::a_call_that_hangs_ends_with_the_deadline_and_what_was_found_is_kept`, `errors::a_defender_that_cannot_be_reached_costs_the_alerts` |
//! | 4 | `an_error_body_may_be_anything`, `errors::a_failed_alert_lookup_costs_the_alerts_and_is_told`, `grants::an_odd_answer_of_the_token_endpoint_is_told_in_its_own_words` |
//! | 5 | `an_error_body_may_be_anything`, `errors::health_is_what_the_machines_route_says` |
//! | 6 | `errors::a_failed_alert_lookup_costs_the_alerts_and_is_told`, `what_the_token_endpoint_says_is_not_what_defender_says` |
//! | 7 | `errors::a_failed_hunting_query_costs_the_events_and_is_told` |
//! | 8 | `errors::health_is_what_the_machines_route_says` |
//! | 9 to 11 | `tokens::a_bad_token_is_refused_with_its_reason_on_every_route_but_version`, `tokens::without_a_key_every_token_is_refused` |
//! | 12 | `errors::a_defender_that_cannot_be_reached_costs_the_alerts` |
//! | 13 | `a_request_with_nothing_to_ask_needs_a_token_all_the_same`, `tokens::the_token_is_judged_before_the_payload_and_the_payload_before_anything_is_asked` |
//! | 14 | `errors::what_nobody_foresaw_is_an_answer_all_the_same` |
//! | 15 | `tokens::a_second_401_is_reported_and_a_first_one_is_not` |
//! | 16 | `payloads::members_beyond_type_and_value_are_ignored` |
//! | 17, 19 | `payloads::what_is_not_asked_for_costs_no_call_and_no_error` |
//! | 18 | `payloads::spellings_of_one_observable_are_asked_once_and_named_as_spelled_first` |
//! | 20 | `an_ipv6_address_has_events_with_relations_of_their_own_types` |
//! | 21, 22 | `a_domain_is_found_by_the_host_of_an_address_whatever_stands_around_it` |
//! | 23 | `limits::the_events_that_are_shown_are_the_newest` |
//! | 24, 25, 40 | `a_device_with_many_adapters_is_one_target_with_its_latest_addresses` |
//! | 26 | `limits::alerts_are_sorted_as_instants_and_not_as_text` |
//! | 27 | `limits::a_sha256_finds_its_alerts_through_its_profile` |
//! | 28 | `limits::pages_are_followed_until_the_limit_is_reached` |
//! | 29 | `calls::two_hundred_observables_cost_no_more_hunting_calls_than_twenty` |
//! | 30 | `calls::requests_side_by_side_share_tokens_machines_and_profiles`, `calls::an_answer_is_kept_for_its_own_limit_and_its_own_secret`, `calls::tenants_do_not_share_what_is_kept` |
//! | 31 | `sightings_mapped_side_by_side_keep_their_relations_apart` |
//! | 32 to 36, 50, 51 | `an_alert`; in parts `mapping::relations` |
//! | 37 | `an_alert`, `errors::a_failed_lookup_of_details_is_one_warning` (profile unknown) |
//! | 38, 39 | `calls::machines_are_read_one_by_one_only_where_hunting_knows_no_operating_system` |
//! | 41, 42, 46, 52, 53 | `an_alert_or_event_with_next_to_nothing_in_it_is_a_sighting` |
//! | 43 to 45 | `every_sighting_counts_one_and_has_an_id_that_stays` |
//! | 47 | `network_events` |
//! | 48, 49 | `file_events` |
//! | 54 | `triggers::an_indicator_is_written_offered_for_removal_and_removed`, `relay_examples`, case "trigger remove" |
//! | 55, 56 | `triggers::an_indicator_is_written_offered_for_removal_and_removed`, `relay::trigger::every_action_is_known_for_its_kind_and_for_no_other` |
//! | 57 to 59 | `mapping::action::what_was_done_last_is_reversed_in_place_of_done_again`, `relay_examples`, cases "respond machine ..." |
//! | 60, 63 | `respond::what_cannot_be_found_out_is_an_error_and_the_rest_is_offered` |
//! | 61 | `triggers::without_response_actions_there_are_no_actions_to_ask_for`, `relay_examples`, case "disabled /respond/trigger" |
//! | 62 | `triggers::a_refused_act_is_a_failure_and_is_not_repeated`, `triggers::without_a_worker_a_trigger_fails_and_says_so_in_its_data` |
//! | 64 | `relay::respond::an_indicators_action_and_title_make_the_offer_to_remove_it`, as 57 |
//! | 65 | `relay::refer::each_type_leads_to_its_page_with_its_value_encoded`, `relay_examples`, case "refer" |
//! | 66 | `errors`: every case with data (`count` beside `docs`) |
//! | 67 | `tokens::a_bad_token_is_refused_with_its_reason_on_every_route_but_version` |
//! | 68 | as 15 |
//! | 69 | as 27, 38 and 42 |
//! | 70 | `key_sets::each_wrong_token_gets_its_reason_and_no_stranger_is_asked` (its host), `key_sets::a_host_without_a_key_set_is_a_wrong_host_until_it_has_one` |
//! | 71 | `key_sets::each_wrong_token_gets_its_reason_and_no_stranger_is_asked` (its audience) |
//! | 72 | as 71 (expired, without an audience) |
//! | 73 | as 55; `simulator::indicators` refuses the old names |
//! | 74 | `relay::trigger::the_checks_come_in_their_order`, `relay_examples`, cases "trigger InitiateInvestigation" and "respond machine all available" |
//! | 75 | `limits::an_md5_finds_its_alerts_through_its_events`, as 29 |

use std::time::Duration;

use defender_bridge::simulator::scenario::DEMO_TENANT_ID;
use defender_bridge::simulator::{Fault, Scripted};
use serde_json::{Value, json};

use super::errors::{self, SHA1, SHA256};
use super::{alert, bridge_with, connection, device, fatal, file_event, minutes_ago, what};
use crate::bridge::{Answer, Options, TestBridge, mint, observable_list};

/// Defect 1.
#[tokio::test]
async fn a_token_is_asked_for_with_a_posted_form() {
    let bridge = TestBridge::start().await;
    bridge.observe(&[("ip", "192.0.2.1")]).await;
    let requests = bridge.control().requests_to("token");
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!((request.method.as_str(), request.query.as_str()), ("POST", ""));
        assert_eq!(request.path, format!("/{DEMO_TENANT_ID}/oauth2/v2.0/token"));
        assert_eq!(request.headers["content-type"], "application/x-www-form-urlencoded");
    }
    bridge.stop().await;
}

/// Defects 4 and 5.
#[tokio::test]
async fn an_error_body_may_be_anything() {
    let internal = ("internal error", "Microsoft Defender for Endpoint internal error.");
    let refused = "Microsoft Defender for Endpoint refused the request: the application needs the Alert.Read.All \
                   permission.";
    let bodies = ["", "{}", "[]", "null", "<html>", r#"{"error":null}"#, r#"{"error":{"code":7}}"#, "\u{feff}{"];
    for (status, times, code, message) in [
        (401, 2, "authorization error", "Authorization failed: HTTP 401"),
        (403, 2, "permission denied", refused),
        (500, 4, internal.0, internal.1),
        (502, 4, internal.0, internal.1),
        (409, 1, "invalid request", "Invalid request to Microsoft Defender for Endpoint. HTTP 409"),
    ] {
        let bridge = errors::start().await;
        for body in bodies {
            bridge.control().clear_faults();
            let fault = Fault::Answer { status, headers: Vec::new(), body: body.to_owned() };
            bridge.control().fail_next("alerts", fault, times);
            let answer = bridge.observe(&[("domain", "none.example")]).await;
            assert_eq!(answer.errors(), [fatal(code, message)], "{status} {body:?}");
            assert!(!answer.text.contains("{'"), "{}", answer.text);
        }
        bridge.stop().await;
    }
}

/// Defect 6, for a call that was never made: a token refused with 400 or 404 is no answer of the alert route, nor one of
/// the machines route that would make health ok.
#[tokio::test]
async fn what_the_token_endpoint_says_is_not_what_defender_says() {
    for (status, expected) in [
        (400, fatal("authorization error", "Authorization failed: on Microsoft Defender for Endpoint side")),
        (404, fatal("permission denied", "Invalid Authorization Bearer JWT.")),
    ] {
        let bridge = errors::start().await;
        let no_token = Scripted {
            method: Some("POST".to_owned()),
            path: format!("/{DEMO_TENANT_ID}/oauth2/v2.0/token"),
            status: Some(status),
            body: Some(json!({})),
            ..Scripted::default()
        };
        bridge.control().script(vec![no_token]).expect("a script");
        assert_eq!(bridge.post("/health", &Value::Null).await.errors(), std::slice::from_ref(&expected), "{status}");
        for ask in [("domain", "a.example"), ("sha1", SHA1), ("sha256", SHA256), ("ipv6", "2001:db8::1")] {
            let answer = bridge.observe(&[ask]).await;
            assert_eq!(answer.errors(), std::slice::from_ref(&expected), "{status} {ask:?}");
        }
        bridge.stop().await;
    }
}

/// Defect 13.
#[tokio::test]
async fn a_request_with_nothing_to_ask_needs_a_token_all_the_same() {
    let bridge = TestBridge::start_with(Options { worker: false, ..Options::default() }).await;
    let missing = fatal("authorization error", "Authorization failed: Authorization header is missing");
    for path in [
        "/observe/observables",
        "/deliberate/observables",
        "/refer/observables",
        "/respond/observables",
        "/respond/trigger",
    ] {
        for body in ["[]", "", r#"[{"type":"url","value":"x"}]"#, r#"{"action-id":"x"}"#] {
            let request = bridge.client.post(bridge.url(path)).body(body);
            let answer = Answer::of(request.send().await.expect("the ingress answers")).await;
            assert_eq!((answer.status, answer.errors()), (200, vec![missing.clone()]), "{path} {body}");
        }
    }
    bridge.stop().await;
}

fn relations(sighting: &Value) -> Vec<(String, String, String, String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let of = |one: &Value| {
        (
            text(&one["relation"]),
            text(&one["source"]["type"]),
            text(&one["source"]["value"]),
            text(&one["related"]["type"]),
            text(&one["related"]["value"]),
        )
    };
    sighting["relations"].as_array().expect("relations").iter().map(of).collect()
}

fn relation(name: &str, source: (&str, &str), related: (&str, &str)) -> (String, String, String, String, String) {
    let [name, kind, value, other_kind, other] = [name, source.0, source.1, related.0, related.1].map(str::to_owned);
    (name, kind, value, other_kind, other)
}

/// Defect 20.
#[tokio::test]
async fn an_ipv6_address_has_events_with_relations_of_their_own_types() {
    let mut event = connection(1, 5, 1, "2001:DB8::7", "host.example");
    event["LocalIP"] = json!("2001:db8::1");
    let data = json!({"tables": {"DeviceNetworkEvents": [event]}});
    let bridge = bridge_with(data, Options::default()).await;
    let expected = [
        relation("Resolved_To", ("domain", "host.example"), ("ipv6", "2001:db8::7")),
        relation("Connected_To", ("ipv6", "2001:db8::1"), ("ipv6", "2001:db8::7")),
    ];
    for ask in [("ipv6", "2001:db8::7"), ("domain", "host.example"), ("ip", "2001:db8:0::7")] {
        let answer = bridge.observe(&[ask]).await;
        let [sighting] = answer.sightings().try_into().unwrap_or_else(|_| panic!("one event: {}", answer.text));
        assert_eq!(relations(&sighting), expected, "{ask:?}");
    }
    bridge.stop().await;
}

/// Defects 21 and 22.
#[tokio::test]
async fn a_domain_is_found_by_the_host_of_an_address_whatever_stands_around_it() {
    let found = [
        "evil.example",
        "EVIL.example",
        "evil.example:8443",
        "evil.example/a?b#c",
        "https://evil.example",
        "https://user:pass@evil.example:8443/x?y=z@w",
        "HTTP://EVIL.EXAMPLE/",
        "ftp://evil.example/",
    ];
    let not_found = [
        "mirror.evil.example",
        "notevil.example",
        "evil.example.org",
        "https://other.example/evil.example",
        "https://other.example/?x=https://evil.example/",
        "https://evil.example@other.example/",
        "",
    ];
    let events: Vec<Value> = found
        .iter()
        .chain(&not_found)
        .enumerate()
        .map(|(n, url)| connection(n, n as i64, 1, "203.0.113.1", url))
        .collect();
    let bridge = bridge_with(json!({"tables": {"DeviceNetworkEvents": events}}), Options::default()).await;
    let answer = bridge.observe(&[("domain", "evil.example")]).await;
    let sightings = answer.sightings();
    assert_eq!(sightings.len(), found.len(), "{}", answer.text);
    for (sighting, url) in sightings.iter().zip(found) {
        // The host alone stands for the name, without port, path or user.
        let name = relation("Resolved_To", ("domain", "evil.example"), ("ip", "203.0.113.1"));
        assert!(relations(sighting).contains(&name), "{url}: {sighting}");
    }
    bridge.stop().await;
}

/// Defects 24, 25 and 40.
#[tokio::test]
async fn a_device_with_many_adapters_is_one_target_with_its_latest_addresses() {
    let adapter = |minutes: i64, mac: &str, addresses: Value| {
        json!({"Timestamp": minutes_ago(minutes), "DeviceId": device(1), "MacAddress": mac,
            "NetworkAdapterStatus": "Up", "NetworkAdapterType": "Ethernet", "IPAddresses": addresses})
    };
    let list = |addresses: &[&str]| -> Value {
        let list: Vec<Value> = addresses.iter().map(|one| json!({"IPAddress": one, "SubnetPrefix": 24})).collect();
        json!(Value::from(list).to_string())
    };
    let data = json!({
        "alerts": [alert("a1", 4, 1, &[("ip", "203.0.113.1")])],
        "tables": {
            "DeviceNetworkEvents": [connection(1, 5, 1, "203.0.113.1", ""), connection(2, 6, 1, "203.0.113.1", "")],
            "DeviceNetworkInfo": [
                adapter(90, "00005E005302", list(&["192.0.2.99", "192.0.2.98"])),
                adapter(30, "00005E005302", list(&["192.0.2.2", "2001:db8::2", "nonsense", ""])),
                adapter(60, "00005E005302", list(&["192.0.2.97"])),
                adapter(30, "00005E005301", list(&["192.0.2.1"])),
                adapter(30, "00005E005303", json!("")),
                adapter(30, "00005E005304", json!("not JSON")),
                adapter(30, "00005E005305", json!("null")),
                adapter(30, "", list(&["192.0.2.96"])),
            ],
        },
    });
    let bridge = bridge_with(data, Options::default()).await;
    let answer = bridge.observe(&[("ip", "203.0.113.1")]).await;
    assert_eq!((answer.errors(), answer.sightings().len()), (vec![], 3), "one alert, two events");
    for sighting in answer.sightings() {
        assert_eq!(sighting["targets"].as_array().map(Vec::len), Some(1));
        assert_eq!(
            sighting["targets"][0]["observables"],
            json!([
                {"type": "hostname", "value": "pc-1.corp.example"},
                {"type": "ms_machine_id", "value": device(1)},
                {"type": "mac_address", "value": "00005E005301"},
                {"type": "ip", "value": "192.0.2.1"},
                {"type": "mac_address", "value": "00005E005302"},
                {"type": "ip", "value": "192.0.2.2"},
                {"type": "ipv6", "value": "2001:db8::2"},
                {"type": "mac_address", "value": "00005E005303"},
                {"type": "mac_address", "value": "00005E005304"},
                {"type": "mac_address", "value": "00005E005305"},
            ])
        );
    }
    bridge.stop().await;
}

/// Defect 31: each alert waits for the profile of its own file, all at the same time.
#[tokio::test]
async fn sightings_mapped_side_by_side_keep_their_relations_apart() {
    let (sha1, sha256) = (|n: usize| format!("{:040x}", 0xe0 + n), |n: usize| format!("{:064x}", 0xe0 + n));
    let alerts: Vec<Value> = (0..6)
        .map(|n| {
            let mut alert = alert(&format!("a{n}"), n as i64, n, &[("domain", "evil.example")]);
            alert["evidence"] = json!([
                {"entityType": "File", "sha1": sha1(n), "fileName": format!("f{n}.exe"), "filePath": "C:\\x"},
                // Defect 32: without hashes of its own it gets nobody else's.
                {"entityType": "File", "fileName": "bare.txt", "filePath": "C:\\x"},
            ]);
            alert
        })
        .collect();
    let files: Vec<Value> = (0..6).map(|n| json!({"sha1": sha1(n), "sha256": sha256(n)})).collect();
    let bridge = bridge_with(json!({"alerts": alerts, "files": files}), Options::default()).await;
    bridge.control().set_latency(Duration::from_millis(20));
    let answer = bridge.observe(&[("domain", "evil.example")]).await;
    let sightings = answer.sightings();
    assert_eq!(sightings.len(), 6);
    for (n, sighting) in sightings.iter().enumerate() {
        let (name, path) = (format!("f{n}.exe"), format!("C:\\x\\f{n}.exe"));
        let of = |hash: (&str, &str)| {
            [relation("File_Name_Of", ("file_name", &name), hash), relation("File_Path_Of", ("file_path", &path), hash)]
        };
        let expected = [of(("sha1", &sha1(n))), of(("sha256", &sha256(n)))].concat();
        assert_eq!(relations(sighting), expected, "{n}");
    }
    bridge.stop().await;
}

/// Defects 41, 42, 46, 52 and 53.
#[tokio::test]
async fn an_alert_or_event_with_next_to_nothing_in_it_is_a_sighting() {
    let created = "2026-01-05T10:00:00.1234567Z";
    let with = |id: &str, members: Value| {
        let mut alert = json!({"id": id, "alertCreationTime": created, "_related": [["domain", "evil.example"]]});
        alert.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        alert
    };
    let mut event = connection(1, 5, 1, "203.0.113.1", "evil.example");
    event["ActionType"] = json!("");
    let (long, longer) = ("t".repeat(1_100), "d".repeat(5_100));
    let data = json!({
        "alerts": [
            with("e-bare", json!({})),
            with("d-nulls", json!({"computerDnsName": null, "machineId": device(1), "evidence": null, "severity": null,
                "title": null, "firstEventTime": null})),
            with("c-odd", json!({"severity": "Catastrophic", "computerDnsName": "only-name", "title": long,
                "description": longer, "unknown": {"x": 1}})),
            with("b-times", json!({"severity": "medium", "firstEventTime": "2026-01-05T09:00:00.9999999Z",
                "lastEventTime": "2026-01-05T09:30:00Z", "lastUpdateTime": "2026-01-06T09:30:00.5Z"})),
            with("a /?#", json!({"lastEventTime": "2020-01-01T00:00:00Z"})),
        ],
        "tables": {"DeviceNetworkEvents": [event]},
    });
    let bridge = bridge_with(data, Options::default()).await;
    let answer = bridge.observe(&[("domain", "evil.example")]).await;
    assert_eq!(answer.errors(), []);
    let [bare, nulls, odd, times, encoded, event]: [Value; 6] =
        answer.sightings().try_into().unwrap_or_else(|_| panic!("six: {}", answer.text));
    let start = json!({"start_time": "2026-01-05T10:00:00.123Z", "end_time": "2026-01-05T10:00:00.123Z"});
    for sighting in [&bare, &nulls, &odd, &encoded] {
        assert_eq!(sighting["observed_time"], start);
    }
    assert_eq!((what(&bare).as_str(), &bare["targets"], &bare["severity"]), ("e-bare", &json!([]), &json!("Unknown")));
    for absent in ["title", "description", "timestamp", "data"] {
        assert_eq!(bare.get(absent), None, "{absent}");
        assert_eq!(nulls.get(absent), None, "{absent}");
    }
    assert_eq!(nulls["targets"][0]["observables"], json!([{"type": "ms_machine_id", "value": device(1)}]));
    assert_eq!(odd["targets"][0]["observables"], json!([{"type": "hostname", "value": "only-name"}]));
    assert_eq!((nulls["severity"].as_str(), odd["severity"].as_str()), (Some("Unknown"), Some("Unknown")));
    assert_eq!(
        (odd["title"].as_str().map(str::len), odd["description"].as_str().map(str::len)),
        (Some(1_024), Some(5_000))
    );
    assert_eq!(
        (&times["observed_time"], times["timestamp"].as_str(), times["severity"].as_str()),
        (
            &json!({"start_time": "2026-01-05T09:00:00.999Z", "end_time": "2026-01-05T09:30:00.000Z"}),
            Some("2026-01-06T09:30:00.500Z"),
            Some("Medium")
        )
    );
    let link = format!("https://security.microsoft.com/alerts/a%20%2F%3F%23?tid={DEMO_TENANT_ID}");
    assert_eq!(encoded["source_uri"], link);
    assert_eq!((event.get("data"), event.get("severity"), event.get("source_uri")), (None, None, None));
    bridge.stop().await;
}

/// Defects 43 to 45.
#[tokio::test]
async fn every_sighting_counts_one_and_has_an_id_that_stays() {
    let bridge = errors::start().await;
    let ask = [("domain", "a.example"), ("sha1", SHA1), ("domain", "b.example")];
    let first = bridge.observe(&ask).await;
    let sightings = first.sightings();
    assert_eq!(first.json()["data"]["sightings"]["count"], sightings.len());
    let mut ids = std::collections::HashSet::new();
    for sighting in &sightings {
        let id = sighting["id"].as_str().expect("an id");
        let uuid: uuid::Uuid = id.strip_prefix("transient:sighting-").expect("a transient id").parse().expect("a UUID");
        assert_eq!(uuid.get_version_num(), 5);
        assert!(ids.insert(id), "{id} twice");
        for (member, value) in [
            ("type", json!("sighting")),
            ("schema_version", json!("1.3.28")),
            ("source", json!("Microsoft Defender for Endpoint")),
            ("confidence", json!("High")),
            ("internal", json!(true)),
            ("sensor", json!("endpoint")),
            ("count", json!(1)),
        ] {
            assert_eq!(sighting[member], value, "{member}");
        }
    }
    assert_eq!(bridge.observe(&ask).await.json(), first.json(), "the same work done twice gives the same answer");
    bridge.stop().await;
}

/// What is read from Defender is told in JSON that no text of an attacker leaves.
#[tokio::test]
async fn text_from_outside_stays_text() {
    let nasty = "\"}],\"x\":[{\u{0}\u{1f}\u{2028}<script>\\";
    let mut alert = alert("a1", 1, 1, &[("sha1", SHA1)]);
    alert["title"] = json!(nasty);
    let mut event = file_event(1, 5, 1, SHA1, SHA256, "");
    event["FileName"] = json!("'; drop table x; --.exe");
    let data = json!({"alerts": [alert], "tables": {"DeviceFileEvents": [event]}});
    let bridge = bridge_with(data, Options::default()).await;
    let answer = bridge.observe(&[("sha1", SHA1)]).await;
    assert_eq!(answer.sightings().len(), 2);
    assert_eq!(answer.sightings()[0]["title"], nasty);
    let token = mint(DEMO_TENANT_ID, "not' the \"client", "x", None);
    let refused = bridge.post_as(&token, "/observe/observables", &observable_list(&[("sha1", SHA1)])).await;
    assert_eq!(refused.errors().len(), 1, "{}", refused.text);
    bridge.stop().await;
}

/// The table at the head of this file names every defect, and only tests that there are.
#[test]
fn every_defect_is_named_by_a_test() {
    let source = include_str!("defects.rs");
    let rows: Vec<&str> = source.lines().filter_map(|line| line.strip_prefix("//! | ")).skip(1).collect();
    let mut named = std::collections::BTreeSet::new();
    for row in &rows {
        let numbers = row.split('|').next().expect("a first cell");
        for part in numbers.split(", ") {
            let bounds: Vec<u32> = part.split(" to ").map(|n| n.trim().parse().expect("a number")).collect();
            named.extend(bounds[0]..=*bounds.last().expect("one at least"));
        }
    }
    assert_eq!(named, (1..=75).collect());
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut functions = String::new();
    let mut folders = vec![root.join("src"), root.join("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                functions += &std::fs::read_to_string(path).expect("a source file");
            }
        }
    }
    for row in rows {
        // A name that is a test of its own, or one of those that run on both queues or as worked examples.
        for name in row.split('`').skip(1).step_by(2).filter(|name| name.contains('_')) {
            let name = name.rsplit("::").next().expect("a name");
            let listed = [format!("fn {name}("), format!("fn {name}<"), format!("{name}: \""), format!("mod {name};")];
            assert!(listed.iter().any(|form| functions.contains(form)), "there is no {name}");
        }
    }
}
