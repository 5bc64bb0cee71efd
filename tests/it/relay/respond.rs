//! `/respond/observables`: which actions are offered, and what of them when a part cannot be found out (`relay.md` 7.1, 7.2).

use defender_bridge::config::Routes;
use defender_bridge::simulator::scenario::{
    BUILD_HOST, C2_ADDRESS, DEMO_CLIENT_ID, DEMO_TENANT_ID, DROPPED_SHA256, FINANCE_WORKSTATION, UNKNOWN_MACHINE,
};
use defender_bridge::simulator::{Fault, Matcher, Resource};
use serde_json::{Value, json};

use super::fatal;
use crate::bridge::{Answer, Options, TestBridge, observable_list};

/// The defaults, with response actions.
pub fn responding() -> Options {
    Options { routes: Routes { observe: true, refer: true, respond: true }, ..Options::default() }
}

async fn ask(bridge: &TestBridge, observables: &[(&str, &str)]) -> Answer {
    bridge.post("/respond/observables", &observable_list(observables)).await
}

/// The ids of the offered actions, without what all of them begin with.
fn ids(answer: &Answer) -> Vec<String> {
    let actions = answer.json()["data"].as_array().cloned().unwrap_or_default();
    let id = |action: &Value| action["id"].as_str().expect("an id").to_owned();
    actions.iter().map(|action| id(action).strip_prefix("microsoft-defender-").expect("a prefix").to_owned()).collect()
}

const ADD: [&str; 3] = ["add-indicator-alert", "add-indicator-alert-and-block", "add-indicator-allowed"];

#[tokio::test]
async fn the_actions_of_many_observables_come_in_request_order_for_few_calls() {
    let bridge = TestBridge::start_with(responding()).await;
    let domains: Vec<String> = (0..45).map(|number| format!("host-{number}.example")).collect();
    let mut observables: Vec<(&str, &str)> = domains.iter().map(|domain| ("domain", domain.as_str())).collect();
    observables.insert(1, ("url", "http://ignored.example/"));
    observables.push(("SHA256", DROPPED_SHA256));
    bridge.control().indicate_in_portal(DEMO_TENANT_ID, "host-3.example", "DomainName", "Block", "analyst@example.com");
    let answer = ask(&bridge, &observables).await;
    let offered = ids(&answer);
    assert_eq!(offered.len(), 3 * 45 + 1, "{}", answer.text);
    assert_eq!(offered[..3], ADD);
    assert_eq!(offered[9], "remove-indicator");
    let actions = answer.json()["data"].clone();
    assert_eq!(actions[9]["title"], "Remove indicator: Block - By hand");
    assert_eq!(actions[9]["query-params"]["observable_value"], "host-3.example");
    assert!(actions[9]["query-params"]["indicator_id"].is_string());
    assert_eq!(actions[135]["query-params"], json!({"observable_type": "sha256", "observable_value": DROPPED_SHA256}));
    assert_eq!(bridge.control().calls("indicators"), 3);
    bridge.stop().await;
}

/// Defects 60 and 63: what failed is an error, and takes nothing else along.
#[tokio::test]
async fn what_cannot_be_found_out_is_an_error_and_the_rest_is_offered() {
    let observables = [("ip", C2_ADDRESS), ("ms_machine_id", FINANCE_WORKSTATION)];
    // A missing role is remembered for a while, so each has a bridge of its own.
    let with_roles = async |roles: &[&str]| {
        let bridge = TestBridge::start_with(responding()).await;
        bridge.control().set_roles(DEMO_TENANT_ID, Resource::Defender, roles);
        let answer = ask(&bridge, &observables).await;
        bridge.stop().await;
        answer
    };
    let machine = ["CollectInvestigationPackage", "FullIsolation", "SelectiveIsolation", "RestrictCodeExecution"];
    let scans = ["RunAntiVirusScanFull", "RunAntiVirusScanQuick"];
    let permission = |name: &str| {
        let text = "Microsoft Defender for Endpoint refused the request: the application needs the";
        fatal("permission denied", &format!("{text} {name} permission."))
    };

    let answer = with_roles(&["Machine.Read.All"]).await;
    assert_eq!(answer.errors(), [permission("Ti.ReadWrite.All")]);
    assert_eq!(ids(&answer), [&machine[..], &scans[..]].concat());

    let answer = with_roles(&["Ti.ReadWrite.All"]).await;
    assert_eq!(answer.errors(), [permission("Machine.Read.All")]);
    assert_eq!(ids(&answer), ADD);

    // Nothing at all: no data.
    let answer = with_roles(&[]).await;
    assert_eq!(answer.errors().len(), 2, "{}", answer.text);
    assert!(answer.json().get("data").is_none(), "{}", answer.text);
}

#[tokio::test]
async fn a_throttled_lookup_is_told_and_a_failed_history_costs_the_reversal_only() {
    let bridge = TestBridge::start_with(responding()).await;
    let throttled = Fault::Throttle { retry_after: Some(120) };
    bridge.control().fail_next(Matcher { route: Some("indicators".into()), ..Matcher::any() }, throttled, 1);
    let answer = ask(&bridge, &[("ip", C2_ADDRESS)]).await;
    assert_eq!(answer.errors()[0].0, "too many requests", "{}", answer.text);

    let refused = Fault::Answer {
        status: 400,
        headers: vec![("content-type".into(), "application/json".into())],
        body: r#"{"error":{"code":"ODataError","message":"no such filter"}}"#.into(),
    };
    bridge.control().fail_next(Matcher { route: Some("machineactions".into()), ..Matcher::any() }, refused, 1);
    let answer = ask(&bridge, &[("ms_machine_id", FINANCE_WORKSTATION)]).await;
    let expected = "Invalid request to Microsoft Defender for Endpoint. no such filter";
    assert_eq!(answer.errors(), [fatal("invalid request", expected)]);
    assert_eq!(ids(&answer).len(), 6);
    bridge.stop().await;
}

/// `defender.md` 5.11: the route is not documented and may vanish.
#[tokio::test]
async fn without_the_list_of_available_actions_the_platform_decides() {
    let bridge = TestBridge::start_with(responding()).await;
    for status in [404, 405, 501] {
        let gone = Matcher { route: Some("availableMachineActions".into()), ..Matcher::any() };
        bridge.control().fail_next(gone, Fault::Refuse { status }, 1);
        let answer = ask(&bridge, &[("ms_machine_id", BUILD_HOST)]).await;
        assert_eq!(answer.errors(), [], "{status}");
        assert_eq!(ids(&answer), ["FullIsolation", "RunAntiVirusScanFull", "RunAntiVirusScanQuick"], "{status}");
    }
    let answer = ask(&bridge, &[("ms_machine_id", UNKNOWN_MACHINE), ("domain", "a.example")]).await;
    let unknown = format!(
        "Invalid request to Microsoft Defender for Endpoint. The machine is not known. Observable: {UNKNOWN_MACHINE}."
    );
    assert_eq!(answer.errors(), [fatal("invalid request", &unknown)]);
    assert_eq!(ids(&answer), ADD);
    bridge.stop().await;
}

/// The service that does not take several values in one filter takes them one by one.
#[tokio::test]
async fn a_refused_batch_is_asked_one_by_one() {
    let bridge = TestBridge::start_with(responding()).await;
    let batch = Matcher { route: Some("indicators".into()), ..Matcher::any() };
    bridge.control().fail_next(batch, Fault::Refuse { status: 400 }, 1);
    let answer = ask(&bridge, &[("domain", "a.example"), ("domain", "b.example")]).await;
    assert_eq!((answer.errors(), ids(&answer).len()), (vec![], 6));
    let requests = bridge.control().requests_to("indicators");
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[2].client.as_deref(), Some(DEMO_CLIENT_ID));
    assert_eq!(requests[2].query, "$filter=indicatorValue eq 'b.example'&$top=1");
    bridge.stop().await;
}
