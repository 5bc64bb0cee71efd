//! Hunting through Graph.

use defender_bridge::simulator::scenario::{
    BENIGN_DOMAIN, BENIGN_MD5, BUILD_HOST, C2_ADDRESS, C2_ADDRESS_V6, DROPPED_SHA1, DROPPED_SHA256,
    ENGINEERING_WORKSTATION, FINANCE_WORKSTATION, PHISHING_DOMAIN, UNKNOWN_MACHINE, UNSEEN_ADDRESS, UNSEEN_SHA1,
};
use defender_bridge::simulator::{Row, Scripted};
use serde_json::{Value, json};

use super::{DEFENDER_SCOPE, GRAPH_SCOPE, World, ids};

#[tokio::test]
async fn hunting_refuses_wrong_bodies_and_wrong_queries() {
    let world = World::start().await;
    for (body, fragment) in [
        (json!({"query": "DeviceInfo"}), "'query'"),
        (json!({"Query": ""}), "'Query'"),
        (json!({"Query": 7}), "'Query'"),
        (json!({}), "'Query' is missing"),
        (json!([]), "no JSON object"),
        (json!({"Query": "DeviceInfo", "Timespan": "30d"}), "'30d'"),
        (json!({"Query": "DeviceInfo", "Timespan": "P30D", "More": 1}), "'More'"),
    ] {
        let response = world.hunt_with(&world.graph, body.clone()).await;
        assert_eq!(response.status(), 400, "{body}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "BadRequest");
        assert!(answer["error"]["message"].as_str().unwrap().contains(fragment), "{answer}");
        assert!(answer["error"]["innerError"]["request-id"].is_string());
    }
    let url = world.at("/v1.0/security/runHuntingQuery");
    let plain =
        world.http.post(&url).bearer_auth(&world.graph).body(r#"{"Query": "DeviceInfo"}"#).send().await.unwrap();
    assert_eq!(plain.status(), 415);
    let broken = world.http.post(&url).bearer_auth(&world.graph).header("content-type", "application/json").body("{");
    assert_eq!(broken.send().await.unwrap().status(), 400);
    assert_eq!(world.http.get(&url).bearer_auth(&world.graph).send().await.unwrap().status(), 405);
    let elsewhere = world.at("/v1.0/security/alerts");
    assert_eq!(world.http.get(elsewhere).bearer_auth(&world.graph).send().await.unwrap().status(), 400);
}

/// The saved queries with other values in the places the samples mark.
fn saved(name: &str, sets: &[(&str, &[&str])]) -> String {
    let path = format!("{}/tests/data/hunting/{name}.kql", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("a saved query");
    let line = |line: &str| {
        let own = sets.iter().find(|(set, _)| line.starts_with(&format!("let {set} = dynamic(")));
        own.map_or_else(|| line.to_owned(), |(set, values)| format!("let {set} = dynamic({});", json!(values)))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The cells of one column, sorted.
fn column(body: &Value, name: &str) -> Vec<String> {
    let text = |row: &Value| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
    let mut cells: Vec<String> = body["results"].as_array().expect("rows").iter().map(text).collect();
    cells.sort();
    cells
}

#[tokio::test]
async fn the_saved_queries_find_the_story() {
    let world = World::start().await;
    let files = saved(
        "file_events_by_hash",
        &[("Sha1Set", &[DROPPED_SHA1, UNSEEN_SHA1]), ("Sha256Set", &[DROPPED_SHA256]), ("Md5Set", &[BENIGN_MD5])],
    );
    let (status, body) = world.hunt(&files).await;
    assert_eq!(status, 200, "{body}");
    let by_sha1 = format!("sha1:{DROPPED_SHA1}");
    let by_sha256 = format!("sha256:{DROPPED_SHA256}");
    let by_md5 = format!("md5:{BENIGN_MD5}");
    // Four events of the dropped file; two of them carry the SHA-256; the one of 41 days ago is out of reach.
    assert_eq!(
        column(&body, "Observable"),
        [&*by_md5, &by_md5, &by_sha1, &by_sha1, &by_sha1, &by_sha1, &by_sha256, &by_sha256]
    );
    assert_eq!(body["schema"][0], json!({"name": "Observable", "type": "String"}));

    let ips = saved(
        "network_events_by_ip",
        &[
            ("Ips", &[C2_ADDRESS, C2_ADDRESS_V6, UNSEEN_ADDRESS]),
            ("Wanted", &[C2_ADDRESS, &format!("::ffff:{C2_ADDRESS}"), C2_ADDRESS_V6, UNSEEN_ADDRESS]),
        ],
    );
    let (status, body) = world.hunt(&ips).await;
    assert_eq!(status, 200, "{body}");
    let observables = column(&body, "Observable");
    assert_eq!(observables.iter().filter(|observable| **observable == format!("ip:{C2_ADDRESS}")).count(), 8);
    assert_eq!(observables.iter().filter(|observable| **observable == format!("ip:{C2_ADDRESS_V6}")).count(), 2);
    assert!(column(&body, "RemoteIP").contains(&format!("::ffff:{C2_ADDRESS}")));

    let (status, body) =
        world.hunt(&saved("network_events_by_domain", &[("Domains", &[PHISHING_DOMAIN, BENIGN_DOMAIN])])).await;
    assert_eq!(status, 200, "{body}");
    // Three visits as host, URL and URL in capitals; the mirror's longer name is another site.
    assert_eq!(
        column(&body, "Observable"),
        [
            format!("domain:{PHISHING_DOMAIN}"),
            format!("domain:{PHISHING_DOMAIN}"),
            format!("domain:{PHISHING_DOMAIN}"),
            format!("domain:{BENIGN_DOMAIN}"),
            format!("domain:{BENIGN_DOMAIN}"),
        ]
    );

    let alerts = saved(
        "alerts_by_observable",
        &[("Sha1Set", &[DROPPED_SHA1]), ("Sha256Set", &[]), ("Ips", &[C2_ADDRESS]), ("Domains", &[PHISHING_DOMAIN])],
    );
    let (status, body) = world.hunt(&alerts).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        column(&body, "Observable"),
        [format!("domain:{PHISHING_DOMAIN}"), format!("ip:{C2_ADDRESS}"), by_sha1.clone(), by_sha1.clone(), by_sha1,]
    );

    let (status, body) = world.hunt(&saved("health_probe", &[])).await;
    assert_eq!((status, body["results"].as_array().map(Vec::len)), (200, Some(1)));
}

#[tokio::test]
async fn device_context_tells_what_the_inventory_knows() {
    let world = World::start().await;
    let devices = [FINANCE_WORKSTATION, ENGINEERING_WORKSTATION, BUILD_HOST, UNKNOWN_MACHINE];
    let (status, body) = world.hunt(&saved("device_context", &[("DeviceIds", &devices)])).await;
    assert_eq!(status, 200, "{body}");
    let rows = body["results"].as_array().unwrap();
    let of = |id: &str| rows.iter().find(|row| row["DeviceId"] == id).unwrap();
    assert_eq!(rows.len(), 4);
    // The newest row of this machine has no platform; the one before it counts.
    assert_eq!(
        (&of(FINANCE_WORKSTATION)["OSPlatform"], &of(FINANCE_WORKSTATION)["OSVersionInfo"]),
        (&json!("Windows11"), &json!("24H2"))
    );
    let adapters: Value = serde_json::from_str(of(ENGINEERING_WORKSTATION)["Adapters"].as_str().unwrap()).unwrap();
    let mut macs: Vec<&str> =
        adapters.as_array().unwrap().iter().map(|adapter| adapter["mac"].as_str().unwrap()).collect();
    macs.sort_unstable();
    assert_eq!(macs, ["00005E005363", "00005E005364"]);
    assert_eq!((&of(UNKNOWN_MACHINE)["OSPlatform"], &of(UNKNOWN_MACHINE)["OSBuild"]), (&json!(""), &Value::Null));
    assert_eq!(of(BUILD_HOST)["OSPlatform"], "Ubuntu");
}

#[tokio::test]
async fn wrong_queries_are_refused_in_the_services_words() {
    let world = World::start().await;
    for (query, fragment) in [
        ("DeviceInfo | where NoSuchColumn == 1", "NoSuchColumn"),
        ("DeviceAlertEvents | take 1", "DeviceAlertEvents"),
        ("AlertEvidence | where MD5 == 'a'", "MD5"),
        ("DeviceInfo | whre DeviceId == 'a'", "whre"),
    ] {
        let (status, body) = world.hunt(query).await;
        assert_eq!((status, &body["error"]["code"]), (400, &json!("BadRequest")), "{query}");
        assert!(body["error"]["message"].as_str().unwrap().contains(fragment), "{body}");
    }
    world.control().set_hidden_tables(&["DeviceNetworkEvents"]);
    let (status, body) = world.hunt("DeviceNetworkEvents | take 1").await;
    assert_eq!(status, 400);
    assert!(body["error"]["message"].as_str().unwrap().contains("DeviceNetworkEvents"), "{body}");
    assert_eq!(world.hunt("DeviceInfo | take 1").await.0, 200);
}

#[tokio::test]
async fn a_time_span_narrows_what_a_query_sees() {
    let world = World::start().await;
    let count = async |timespan: Value| {
        let body = json!({"Query": "DeviceNetworkEvents | count", "Timespan": timespan});
        let answer: Value = world.hunt_with(&world.graph, body).await.json().await.unwrap();
        answer["results"][0]["Count"].as_u64().unwrap()
    };
    assert_eq!(count(Value::Null).await, 19);
    assert_eq!(count(json!("P30D")).await, 19);
    assert_eq!(count(json!("P365D")).await, 19);
    assert_eq!(count(json!("PT6H")).await, 3);
    assert_eq!(count(json!("2020-01-01T00:00:00Z/P1D")).await, 0);
}

#[tokio::test]
async fn odd_spellings_come_on_request() {
    let world = World::start().await;
    world.control().set_odd_hunting(true);
    let (_, body) =
        world.hunt("DeviceInfo | where isnotempty(DeviceName) | take 1 | project Timestamp, DeviceId").await;
    assert_eq!(body["schema"][1], json!({"Name": "DeviceId", "Type": "String"}));
    let row = &body["results"][0];
    assert!(row["deviceId"].is_string() && row["timestamp@odata.type"].is_string() && row["somethingNew"].is_object());
    assert!(row.get("DeviceId").is_none());
}

#[tokio::test]
async fn scripted_rows_stand_in_the_event_tables_and_leave_the_others_alone() {
    let world = World::start().await;
    let now = world.control().now().to_string();
    let rows: Vec<Row> = [
        json!({"Timestamp": now, "RemoteIP": UNSEEN_ADDRESS, "RemotePort": 443, "DeviceId": "d1"}),
        json!({"Timestamp": now, "FileName": "a.exe", "SHA1": UNSEEN_SHA1, "DeviceId": "d2"}),
    ]
    .iter()
    .map(|row| row.as_object().unwrap().clone())
    .collect();
    world.control().script(vec![Scripted::rows(rows)]).unwrap();
    let ips = |ip| saved("network_events_by_ip", &[("Ips", &[ip]), ("Wanted", &[ip])]);
    assert_eq!(column(&world.hunt(&ips(UNSEEN_ADDRESS)).await.1, "DeviceId"), ["d1"]);
    assert_eq!(column(&world.hunt(&ips(C2_ADDRESS)).await.1, "DeviceId"), [""; 0]);
    assert_eq!(column(&world.hunt("DeviceFileEvents | project DeviceId").await.1, "DeviceId"), ["d2"]);
    assert_eq!(world.hunt("DeviceInfo | take 2").await.1["results"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_worked_examples_are_found_on_their_own_clock() {
    for (name, query, set, value, events) in [
        ("01-alert", "network_events_by_ip", "Ips", "203.0.113.50", 0),
        ("02-network-events", "network_events_by_ip", "Ips", "203.0.113.77", 2),
        ("03-file-events", "file_events_by_hash", "Sha1Set", "ab17ea4c9176fb285dfc68c8bf7ace6d916a7a4b", 2),
    ] {
        let world = World::start().await;
        let path = format!("{}/tests/data/relay/{name}.input.json", env!("CARGO_MANIFEST_DIR"));
        let example: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tenant = example["tenant_id"].as_str().unwrap();
        world.control().load_example(tenant, &example).unwrap();
        let graph = world.token(tenant, "client-id-1", "client-secret-1", GRAPH_SCOPE).await;
        let defender = world.token(tenant, "client-id-1", "client-secret-1", DEFENDER_SCOPE).await;
        let rows = async |query: String| {
            let response = world.hunt_with(&graph, json!({"Query": query})).await;
            response.json::<Value>().await.unwrap()["results"].as_array().unwrap().clone()
        };
        assert_eq!(rows(saved(query, &[(set, &[value]), ("Wanted", &[value])])).await.len(), events, "{name}");
        let machine = "6035c8a86d4961346736ec90e668c8d2694b7f57";
        let context = rows(saved("device_context", &[("DeviceIds", &[machine])])).await;
        let adapters: Value = serde_json::from_str(context[0]["Adapters"].as_str().unwrap()).unwrap();
        assert_eq!((adapters.as_array().unwrap().len(), &context[0]["OSPlatform"]), (2, &json!("")), "{name}");
        let rest = world.get_with(&defender, &format!("/api/machines/{machine}")).await.unwrap();
        assert_eq!(rest.json::<Value>().await.unwrap()["osPlatform"], "Windows11", "{name}");
        if name == "01-alert" {
            let alerts = world.get_with(&defender, &format!("/api/ips/{value}/alerts")).await.unwrap();
            assert_eq!(ids(&alerts.json().await.unwrap()), ["da638400000000000001_-1234567890"]);
        }
    }
}
