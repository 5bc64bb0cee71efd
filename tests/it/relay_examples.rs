//! The worked examples of the relay contract, over HTTP through the queue, on both queues.

use std::time::Duration;

use defender_bridge::config::Routes;
use defender_bridge::simulator::{self, Scripted, Tenant, TenantData};
use serde_json::{Value, json};

use crate::bridge::{self, Answer, Options, Queue, TestBridge, mint};

/// What the examples' tokens say.
const TENANT: (&str, &str, &str) = ("11111111-2222-4333-8444-555555555555", "client-id-1", "client-secret-1");

fn options(queue: Queue) -> Options {
    let tenant = Tenant::reader(TENANT.0, TENANT.1, TENANT.2, TenantData::Empty);
    let simulator = simulator::Settings { tenants: vec![tenant], quota: None, ..simulator::Settings::default() };
    Options { queue, simulator, deadline: Duration::from_secs(10), ..Options::default() }
}

fn example(name: &str) -> Value {
    let path = format!("{}/tests/data/relay/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).expect("JSON")
}

async fn a_worked_pair_is_answered_as_expected(queue: Queue, name: &str) {
    let bridge = TestBridge::start_with(options(queue)).await;
    let input = example(&format!("{name}.input.json"));
    bridge.control().load_example(TENANT.0, &input).expect("the example fits");
    assert_eq!(input["tenant_id"], TENANT.0);
    let token = mint(TENANT.0, TENANT.1, TENANT.2, None);
    let answer = bridge.post_as(&token, "/observe/observables", &json!([input["observable"]])).await;
    // Text, not values: the order of relations and members is what the caller reads.
    let expected = example(&format!("{name}.expected.json"));
    assert_eq!(answer.json(), expected, "{name}");
    assert_eq!(bridge.control().calls("retired"), 0);
    bridge.stop().await;
}

/// Runs every envelope case.
async fn the_envelopes_are_as_written(queue: Queue) {
    let envelopes = example("04-envelopes.json");
    let cases = envelopes["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 69);
    for case in cases {
        run_case(queue, &envelopes, case).await;
    }
}

/// The machine that the triggers of the table are about.
const MACHINE: &str = "6035c8a86d4961346736ec90e668c8d2694b7f57";

/// What the world of a trigger needs beside the stubs of its case, which name the call that acts and no call that looks
/// before it (`DESIGN.md` 10, ruling 11): the machine exists, and so does the indicator that is to be removed.
fn world_of_triggers() -> (simulator::Data, Scripted) {
    let machine = json!({
        "id": MACHINE, "computerDnsName": "pc-1.corp.example", "osPlatform": "Windows11", "healthStatus": "Active",
        "onboardingStatus": "Onboarded", "ipAddresses": [],
    });
    let data = simulator::Data::from_json(&json!({"machines": [machine]})).expect("the data fits");
    let indicator =
        json!({"id": "13", "indicatorValue": "a.example", "indicatorType": "DomainName", "action": "Block"});
    (data, Scripted::get("/indicators", 200, json!({"value": [indicator]})))
}

async fn run_case(queue: Queue, envelopes: &Value, case: &Value) {
    let name = case["name"].as_str().expect("a name");
    let mut options = options(queue);
    // With a role for alerts in its token the application would still be of use, and healthy (`DESIGN.md` 10, ruling 7).
    if name == "health forbidden" {
        options.simulator.tenants[0].defender_roles.clear();
    }
    if let Some(key) = case["config"]["secret_key"].as_str() {
        options.token_keys = vec![key.to_owned()];
    }
    let is_trigger = case["request"]["path"] == "/respond/trigger";
    let (data, indicator) = world_of_triggers();
    if is_trigger {
        options.simulator.tenants[0].data = TenantData::Given(std::sync::Arc::new(data));
    }
    options.routes = Routes { observe: true, refer: true, respond: true };
    if let Some(disabled) = case["config"]["disabled_apis"].as_array() {
        let off = |api: &str| disabled.iter().any(|entry| entry == api);
        options.routes = Routes {
            observe: !off("observe/observables"),
            refer: !off("refer/observables"),
            respond: !off("respond/observables") && !off("respond/trigger"),
        };
    }
    let bridge = TestBridge::start_with(options).await;
    let mut script: Vec<Scripted> = match &case["defender"] {
        Value::Null => Vec::new(),
        stubs => serde_json::from_value(stubs.clone()).expect("stubs are scripted answers"),
    };
    if name == "trigger remove" {
        script.push(indicator);
    }
    bridge.control().script(script).expect("the stubs fit");

    let answer = send(&bridge, envelopes, &case["request"]).await;

    let expected = &case["response"];
    assert_eq!(answer.status, expected["status"].as_u64().expect("a status") as u16, "{name}: {}", answer.text);
    let body = expected["body"].to_string().replace("{crate version}", env!("CARGO_PKG_VERSION"));
    assert_eq!(parsed(answer.json()), parsed(serde_json::from_str(&body).expect("JSON")), "{name}");
    if let Some(calls) = case["defender_calls"].as_array() {
        assert_eq!(written(&bridge), expected_calls(calls), "{name}");
        if calls.is_empty() {
            assert_eq!(bridge.control().total(), 0, "{name}: {:?}", bridge.control().all_calls());
        }
    }
    bridge.stop().await;
}

/// The calls that wrote, in order, with the comment as it was before the marker of what is counted
/// (`DESIGN.md` 10, ruling 13).
fn written(bridge: &TestBridge) -> Vec<Value> {
    let writes = bridge
        .control()
        .requests()
        .into_iter()
        .filter(|request| request.path.starts_with("/api/") && request.method != "GET");
    let shown = |request: simulator::Recorded| {
        let mut body: Value = request.body.map_or(Value::Null, |body| serde_json::from_str(&body).expect("JSON"));
        if let Some(comment) = body["Comment"].as_str().and_then(|text| text.strip_prefix("defender-bridge: ")) {
            let (_, comment) = comment.split_once(", ").expect("a verb");
            body["Comment"] = json!(comment.rsplit_once(", event ").expect("a job").0);
        }
        let path = request.path.strip_prefix("/api").expect("filtered").to_owned();
        json!({"method": request.method, "path": path, "body": body})
    };
    writes.map(shown).collect()
}

/// The calls of the table in the same form.
fn expected_calls(calls: &[Value]) -> Vec<Value> {
    calls.iter().map(|call| json!({"method": call["method"], "path": call["path"], "body": call["body"]})).collect()
}

async fn send(bridge: &TestBridge, envelopes: &Value, request: &Value) -> Answer {
    let method = request["method"].as_str().expect("a method").parse().expect("a method");
    let mut sent = bridge.client.request(method, bridge.url(request["path"].as_str().expect("a path")));
    let token = |name: &str| envelopes["tokens"][name].as_str().expect("a token of the table").to_owned();
    if let Some(name) = request["authorization_token"].as_str() {
        sent = sent.bearer_auth(token(name));
    } else if let Some(header) = request["authorization"].as_str() {
        let header = match (header.find("{token:"), header.find('}')) {
            (Some(start), Some(end)) => header.replace(&header[start..=end], &token(&header[start + 7..end])),
            _ => header.to_owned(),
        };
        sent = sent.header("authorization", header);
    }
    if let Some(body) = request["raw_body"].as_str() {
        sent = sent.body(body.to_owned());
    } else if !request["body"].is_null() {
        sent = sent.json(&request["body"]);
    }
    Answer::of(sent.send().await.expect("the ingress answers")).await
}

/// The details of an E2 message are compared as JSON, because the order of their members is not fixed.
fn parsed(mut body: Value) -> Value {
    const PREFIX: &str = "Invalid JSON payload received. ";
    for error in body["errors"].as_array_mut().into_iter().flatten() {
        let message = error["message"].as_str().unwrap_or_default().to_owned();
        if let Some(details) = message.strip_prefix(PREFIX).and_then(|text| text.strip_suffix('.')) {
            error["message"] = json!([PREFIX, serde_json::from_str::<Value>(details).expect("details are JSON")]);
        }
    }
    if body["errors"].is_null() && body.get("errors").is_some() {
        body.as_object_mut().expect("an object").remove("errors");
    }
    body
}

macro_rules! on_both_queues {
    ($($case:ident: $name:literal),+ $(,)?) => {
        mod on_sqlite {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                a_worked_pair_is_answered_as_expected(Queue::Sqlite, $name).await;
            })+
            #[tokio::test]
            async fn envelopes() {
                the_envelopes_are_as_written(Queue::Sqlite).await;
            }
        }
        mod on_rabbitmq {
            use super::*;
            $(#[tokio::test]
            #[ignore = "needs RabbitMQ"]
            async fn $case() {
                a_worked_pair_is_answered_as_expected(Queue::RabbitMq, $name).await;
            })+
            #[tokio::test]
            #[ignore = "needs RabbitMQ"]
            async fn envelopes() {
                the_envelopes_are_as_written(Queue::RabbitMq).await;
            }
        }
    };
}

on_both_queues!(an_alert: "01-alert", network_events: "02-network-events", file_events: "03-file-events");

#[tokio::test]
async fn two_tokens_of_one_tenant_are_served_side_by_side() {
    let bridge = TestBridge::start().await;
    let right = bridge.post("/health", &Value::Null).await;
    assert_eq!(right.json(), json!({"data": {"status": "ok"}}));
    let (tenant, client) = (simulator::scenario::DEMO_TENANT_ID, simulator::scenario::DEMO_CLIENT_ID);
    let wrong = bridge.post_as(&bridge::mint(tenant, client, "not the secret", None), "/health", &Value::Null).await;
    assert_eq!(wrong.errors()[0].0, "authorization error", "{}", wrong.text);
    bridge.stop().await;
}
