//! `/respond/trigger` and `/actions/{id}`: one act for one order, whoever else gives it, and none that the guard forbids
//! (`relay.md` 7.3; `DESIGN.md` 10, rulings 4, 11, 13 and 14).

use std::time::Duration;

use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::config::RespondSettings;
use defender_bridge::containment::Guard;
use defender_bridge::desk::operate;
use defender_bridge::job::TOPOLOGY;
use defender_bridge::simulator::scenario::{
    BUILD_HOST, C2_ADDRESS, C2_DOMAIN, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, DROPPED_SHA1, FILE_SERVER,
    FINANCE_WORKSTATION, HR_WORKSTATION, OTHER_TENANT_ID, UNKNOWN_MACHINE,
};
use defender_bridge::simulator::{
    ActionBehaviour, ActionKind, Fate, Fault, Matcher, Outcome, Resource, Scripted, WhileOpen,
};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::process::Command;

use super::respond::responding;
use super::{fatal, minutes_ago};
use crate::bridge::{Answer, Options, Queue, TestBridge, mint};

const REFUSED: &str = "refused";

fn form(action: &str, kind: &str, value: &str) -> Value {
    json!({"action-id": format!("microsoft-defender-{action}"), "observable_type": kind, "observable_value": value})
}

async fn trigger(bridge: &TestBridge, form: &Value) -> Answer {
    bridge.post("/respond/trigger", form).await
}

async fn on_machine(bridge: &TestBridge, action: &str, machine: &str) -> Answer {
    trigger(bridge, &form(action, "ms_machine_id", machine)).await
}

fn is_success(answer: &Answer) -> bool {
    answer.json() == json!({"data": {"status": "success"}})
}

/// The code and message of a failure, which is one whole.
fn failure(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["data"], json!({"status": "failure"}), "{}", answer.text);
    let errors = answer.errors();
    assert_eq!(errors.len(), 1, "{}", answer.text);
    (errors[0].0.clone(), errors[0].1.clone())
}

fn with(respond: RespondSettings) -> Options {
    Options { respond, ..responding() }
}

fn guarded(guard: Guard) -> Options {
    with(RespondSettings { guard, ..RespondSettings::default() })
}

/// The requests of this kind that became actions of their own.
fn created(bridge: &TestBridge, kind: ActionKind) -> usize {
    let posts = bridge.control().action_posts(DEMO_TENANT_ID);
    posts.iter().filter(|post| post.kind == kind && post.fate == Fate::Created && !post.portal).count()
}

fn posts(bridge: &TestBridge) -> usize {
    bridge.control().action_posts(DEMO_TENANT_ID).iter().filter(|post| !post.portal).count()
}

// ---- one act

/// Every machine action, ordered by two callers at the same moment: one action at Defender, and both are told of it.
async fn one_action_each(options: Options) {
    let bridge = TestBridge::start_with(options).await;
    let behaviours = [WhileOpen::Refuse, WhileOpen::Return];
    for (machine, while_open) in [FINANCE_WORKSTATION, HR_WORKSTATION].into_iter().zip(behaviours) {
        for (action, kind) in [
            ("FullIsolation", ActionKind::Isolate),
            ("Unisolate", ActionKind::Unisolate),
            ("RestrictCodeExecution", ActionKind::RestrictCodeExecution),
            ("UnrestrictCodeExecution", ActionKind::UnrestrictCodeExecution),
            ("RunAntiVirusScanQuick", ActionKind::RunAntiVirusScan),
            ("RunAntiVirusScanFull", ActionKind::RunAntiVirusScan),
            ("CollectInvestigationPackage", ActionKind::CollectInvestigationPackage),
        ] {
            bridge.control().set_action_behaviour(ActionBehaviour {
                held: true,
                while_open,
                ..ActionBehaviour::default()
            });
            let before = created(&bridge, kind);
            let spelled = machine.to_uppercase();
            let (one, other) =
                tokio::join!(on_machine(&bridge, action, machine), on_machine(&bridge, action, &spelled));
            assert!(is_success(&one) && is_success(&other), "{action}: {} {}", one.text, other.text);
            assert_eq!(created(&bridge, kind) - before, 1, "{action}");
            let id = one.headers["x-machine-action-id"].to_str().expect("an id").to_owned();
            assert_eq!(other.headers["x-machine-action-id"], id.as_str(), "{action}");
            assert!(bridge.control().finish_action(DEMO_TENANT_ID, &id, Outcome::Succeeded), "{action}");
        }
    }
    for machine in [FINANCE_WORKSTATION, HR_WORKSTATION] {
        let truth = bridge.control().isolation(DEMO_TENANT_ID, machine);
        assert_eq!((truth.isolated, truth.restricted, truth.duplicates, truth.changes.len()), (false, false, 0, 2));
    }
    bridge.stop().await;
}

#[tokio::test]
async fn two_callers_at_once_lead_to_one_action_each() {
    one_action_each(responding()).await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn two_callers_at_once_lead_to_one_action_each_with_two_workers_on_rabbitmq() {
    one_action_each(Options { queue: Queue::RabbitMq, second_worker: true, ..responding() }).await;
}

#[tokio::test]
async fn what_stands_already_is_a_success_without_a_request() {
    let bridge = TestBridge::start_with(responding()).await;
    let id = bridge.control().isolate_in_portal(DEMO_TENANT_ID, HR_WORKSTATION, "analyst@example.com").unwrap();
    bridge.control().action_ended(DEMO_TENANT_ID, &id).await;
    for action in ["FullIsolation", "SelectiveIsolation"] {
        let answer = on_machine(&bridge, action, HR_WORKSTATION).await;
        assert!(is_success(&answer), "{}", answer.text);
        assert_eq!(answer.headers["x-machine-action-id"], id.as_str());
    }
    assert_eq!(posts(&bridge), 0);
    // Of this one Defender lists nothing, which is no proof.
    assert!(is_success(&on_machine(&bridge, "Unisolate", FINANCE_WORKSTATION).await));
    assert_eq!(posts(&bridge), 1);
    bridge.stop().await;
}

/// An isolation is not posted across an open release, nor a restriction across its end.
#[tokio::test]
async fn an_open_opposite_is_not_crossed() {
    let bridge = TestBridge::start_with(responding()).await;
    let id = bridge.control().isolate_in_portal(DEMO_TENANT_ID, HR_WORKSTATION, "analyst@example.com").unwrap();
    bridge.control().action_ended(DEMO_TENANT_ID, &id).await;
    bridge.control().set_action_behaviour(ActionBehaviour { held: true, ..ActionBehaviour::default() });
    assert!(is_success(&on_machine(&bridge, "Unisolate", HR_WORKSTATION).await));
    let (code, message) = failure(&on_machine(&bridge, "FullIsolation", HR_WORKSTATION).await);
    assert_eq!(code, "invalid request");
    assert!(message.contains("Action is already in progress: Unisolate"), "{message}");

    assert!(is_success(&on_machine(&bridge, "RunAntiVirusScanQuick", FINANCE_WORKSTATION).await));
    let (_, message) = failure(&on_machine(&bridge, "RunAntiVirusScanFull", FINANCE_WORKSTATION).await);
    assert!(message.contains("Action is already in progress: RunAntiVirusScan"), "{message}");
    assert_eq!(posts(&bridge), 2);
    bridge.stop().await;
}

/// Defender says that an action is open which was not there when its list was read: it is looked for and adopted.
#[tokio::test]
async fn an_action_that_somebody_else_opens_meanwhile_is_adopted() {
    let bridge = TestBridge::start_with(responding()).await;
    bridge.control().set_action_behaviour(ActionBehaviour {
        held: true,
        list_delay_ms: 1_500,
        ..ActionBehaviour::default()
    });
    let id = bridge.control().isolate_in_portal(DEMO_TENANT_ID, HR_WORKSTATION, "analyst@example.com").unwrap();
    let answer = on_machine(&bridge, "FullIsolation", HR_WORKSTATION).await;
    assert!(is_success(&answer), "{}", answer.text);
    assert_eq!(answer.headers["x-machine-action-id"], id.as_str());
    assert_eq!(created(&bridge, ActionKind::Isolate), 0);
    bridge.stop().await;
}

/// A request that is answered by nothing, or by an error that says nothing, is never sent again; whether it was taken is
/// looked up.
#[rstest]
#[case::an_error(Fault::Refuse { status: 500 })]
#[case::a_front_door(Fault::Refuse { status: 503 })]
#[case::a_lost_connection(Fault::Reset)]
#[tokio::test]
async fn an_isolation_whose_answer_is_lost_is_found_again_and_not_repeated(#[case] then: Fault) {
    let bridge = TestBridge::start_with(responding()).await;
    let post = Matcher { route: Some("machines/{id}/isolate".into()), ..Matcher::any() };
    bridge.control().fail_next(post, Fault::Applied { then: Box::new(then) }, 1);
    let answer = on_machine(&bridge, "FullIsolation", FINANCE_WORKSTATION).await;
    assert!(is_success(&answer), "{}", answer.text);
    assert_eq!((posts(&bridge), bridge.control().calls("actions")), (1, 1));
    bridge.stop().await;
}

#[rstest]
#[case::scan("RunAntiVirusScanQuick", 500, "internal error")]
#[case::throttled("RunAntiVirusScanQuick", 429, "too many requests")]
#[case::isolation("FullIsolation", 429, "too many requests")]
#[case::collection("CollectInvestigationPackage", 503, "internal error")]
#[tokio::test]
async fn a_refused_act_is_a_failure_and_is_not_repeated(#[case] action: &str, #[case] status: u16, #[case] code: &str) {
    let bridge = TestBridge::start_with(responding()).await;
    let acts = Matcher { route: Some("actions".into()), ..Matcher::any() };
    bridge.control().fail_next(acts, Fault::Refuse { status }, 1);
    assert_eq!(failure(&on_machine(&bridge, action, FINANCE_WORKSTATION).await).0, code);
    assert_eq!((posts(&bridge), bridge.control().calls("actions")), (0, 1));
    bridge.stop().await;
}

// ---- guards

#[rstest]
#[case::dry_run(Guard { dry_run: true, ..Guard::default() }, FINANCE_WORKSTATION, "this is a dry run")]
#[case::a_server(Guard::default(), FILE_SERVER, "counts as a server")]
#[case::a_machine_id(
    Guard { protected_machine_ids: vec![FINANCE_WORKSTATION.to_owned()], ..Guard::default() },
    FINANCE_WORKSTATION,
    "on the list of protected machine ids"
)]
#[case::a_name(
    Guard { protected_names: vec!["fin-*".parse().unwrap()], ..Guard::default() },
    FINANCE_WORKSTATION,
    "fits the protected pattern"
)]
#[tokio::test]
async fn what_the_guard_protects_is_neither_isolated_nor_restricted(
    #[case] guard: Guard,
    #[case] machine: &str,
    #[case] why: &str,
) {
    let bridge = TestBridge::start_with(guarded(guard)).await;
    for action in ["FullIsolation", "SelectiveIsolation", "RestrictCodeExecution"] {
        let (code, message) = failure(&on_machine(&bridge, action, machine).await);
        assert_eq!(code, REFUSED);
        assert!(message.contains(why), "{message}");
    }
    assert_eq!(bridge.control().calls("actions"), 0);
    bridge.stop().await;
}

#[tokio::test]
async fn a_dry_run_asks_defender_for_nothing() {
    let bridge = TestBridge::start_with(guarded(Guard { dry_run: true, ..Guard::default() })).await;
    for form in [
        form("Unisolate", "ms_machine_id", HR_WORKSTATION),
        form("RunAntiVirusScanFull", "ms_machine_id", HR_WORKSTATION),
        form("CollectInvestigationPackage", "ms_machine_id", HR_WORKSTATION),
        form("add-indicator-alert", "domain", C2_DOMAIN),
        json!({"action-id": "microsoft-defender-remove-indicator", "observable_type": "domain",
               "observable_value": C2_DOMAIN, "indicator_id": 1}),
    ] {
        assert_eq!(failure(&trigger(&bridge, &form).await).0, REFUSED, "{form}");
    }
    assert_eq!(bridge.control().total(), 0);
    bridge.stop().await;
}

/// The brake and the cap are those of the whole deployment, without any setting of Cognito.
#[tokio::test]
async fn the_brake_and_the_cap_hold_for_triggers() {
    let guard = Guard { max_isolations_per_hour: 1, ..Guard::default() };
    let bridge = TestBridge::start_with(guarded(guard)).await;
    let path = bridge.folder.path().join("queue.sqlite");
    let operator = Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.expect("the queue opens");
    let engaged = operate::engage(&operator, "operator", Some("a test")).await.expect("the brake is on");
    operate::drain(&operator, &engaged).await;
    // Isolations are over with that; restrictions, of which the promise does not speak, when the worker has seen it.
    while !bridge.admin("/metrics").await.1.contains("bridge_isolations_paused 1") {}
    for action in ["FullIsolation", "RestrictCodeExecution"] {
        let (code, message) = failure(&on_machine(&bridge, action, FINANCE_WORKSTATION).await);
        assert_eq!((code.as_str(), message.contains("paused")), (REFUSED, true), "{message}");
    }
    // A release and a scan go on.
    assert!(is_success(&on_machine(&bridge, "Unisolate", BUILD_HOST).await));
    assert!(is_success(&on_machine(&bridge, "RunAntiVirusScanQuick", FINANCE_WORKSTATION).await));
    operate::resume(&operator, "operator").await.expect("the brake is off");
    // The worker sees it by itself.
    let mut first = on_machine(&bridge, "FullIsolation", FINANCE_WORKSTATION).await;
    while first.text.contains("paused") {
        first = on_machine(&bridge, "FullIsolation", FINANCE_WORKSTATION).await;
    }
    assert!(is_success(&first), "{}", first.text);
    let (code, message) = failure(&on_machine(&bridge, "FullIsolation", HR_WORKSTATION).await);
    assert_eq!((code.as_str(), message.contains("cap of isolations")), (REFUSED, true), "{message}");
    assert_eq!(created(&bridge, ActionKind::Isolate), 1);
    let post = bridge.control().isolate_posts(DEMO_TENANT_ID).remove(0);
    assert!(post.comment.starts_with("defender-bridge: isolate, Requested through a Cisco XDR"), "{}", post.comment);
    bridge.stop().await;
}

/// E6 names what is missing for each act, and what it needs only to look is not blamed on it.
#[rstest]
#[case("FullIsolation", "Machine.Isolate")]
#[case("Unisolate", "Machine.Isolate")]
#[case("RestrictCodeExecution", "Machine.RestrictExecution")]
#[case("UnrestrictCodeExecution", "Machine.RestrictExecution")]
#[case("RunAntiVirusScanFull", "Machine.Scan")]
#[case("CollectInvestigationPackage", "Machine.CollectForensics")]
#[case("add-indicator-alert", "Ti.ReadWrite.All")]
#[tokio::test]
async fn a_missing_permission_is_named(#[case] action: &str, #[case] permission: &str) {
    const ALL: [&str; 6] = [
        "Machine.Read.All",
        "Machine.Isolate",
        "Machine.RestrictExecution",
        "Machine.Scan",
        "Machine.CollectForensics",
        "Ti.ReadWrite.All",
    ];
    let bridge = TestBridge::start_with(responding()).await;
    if action == "Unisolate" {
        let id = bridge.control().isolate_in_portal(DEMO_TENANT_ID, HR_WORKSTATION, "analyst@example.com").unwrap();
        bridge.control().action_ended(DEMO_TENANT_ID, &id).await;
    }
    let roles: Vec<&str> = ALL.into_iter().filter(|role| *role != permission).collect();
    bridge.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &roles);
    let form = match action {
        "add-indicator-alert" => form(action, "domain", C2_DOMAIN),
        _ => form(action, "ms_machine_id", HR_WORKSTATION),
    };
    let (code, message) = failure(&trigger(&bridge, &form).await);
    assert_eq!(code, "permission denied");
    assert!(message.ends_with(&format!("the application needs the {permission} permission.")), "{message}");
    bridge.stop().await;
}

#[tokio::test]
async fn a_machine_that_defender_does_not_know_is_a_failure() {
    let bridge = TestBridge::start_with(responding()).await;
    let (code, message) = failure(&on_machine(&bridge, "FullIsolation", UNKNOWN_MACHINE).await);
    assert_eq!(code, "invalid request");
    assert!(message.contains("was not found"), "{message}");
    bridge.stop().await;
}

#[tokio::test]
async fn without_a_worker_a_trigger_fails_and_says_so_in_its_data() {
    let options = Options { worker: false, deadline: Duration::from_secs(2), ..responding() };
    let bridge = TestBridge::start_with(options).await;
    assert_eq!(failure(&on_machine(&bridge, "FullIsolation", HR_WORKSTATION).await).0, "deadline");
    bridge.stop().await;
}

// ---- indicators

fn removal(kind: &str, value: &str, id: &str) -> Value {
    json!({"action-id": "microsoft-defender-remove-indicator", "observable_type": kind, "observable_value": value,
           "indicator_id": id})
}

/// Defects 54 to 56 and 73: written as the service takes them today, found again, and removed.
#[tokio::test]
async fn an_indicator_is_written_offered_for_removal_and_removed() {
    let bridge = TestBridge::start_with(responding()).await;
    for (action, kind, value, expected) in [
        ("add-indicator-alert", "Domain", C2_DOMAIN, ("DomainName", "Audit")),
        ("add-indicator-alert-and-block", "ip", C2_ADDRESS, ("IpAddress", "Block")),
        ("add-indicator-alert-and-block", "SHA1", DROPPED_SHA1, ("FileSha1", "BlockAndRemediate")),
        ("add-indicator-allowed", "sha1", DROPPED_SHA1, ("FileSha1", "Allowed")),
    ] {
        let answer = trigger(&bridge, &form(action, kind, value)).await;
        assert!(is_success(&answer), "{action} {value}: {}", answer.text);
        let written =
            bridge.control().indicators(DEMO_TENANT_ID).into_iter().find(|one| one["indicatorValue"] == value);
        let written = written.expect("written");
        assert_eq!(
            (written["indicatorType"].as_str(), written["action"].as_str()),
            (Some(expected.0), Some(expected.1))
        );
    }
    let offered = bridge.post("/respond/observables", &json!([{"type": "ip", "value": C2_ADDRESS}])).await;
    let action = offered.json()["data"][0].clone();
    assert_eq!(action["title"], "Remove indicator: Block - Added through Cisco XDR");
    let mut form = action["query-params"].clone();
    form["action-id"] = action["id"].clone();
    assert!(is_success(&trigger(&bridge, &form).await));
    let left = bridge.control().indicators(DEMO_TENANT_ID);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|one| one["indicatorValue"] != C2_ADDRESS));
    bridge.stop().await;
}

#[tokio::test]
async fn an_indicator_of_somebody_else_is_written_over_only_when_that_is_allowed() {
    let analyst = |bridge: &TestBridge| {
        bridge.control().indicate_in_portal(DEMO_TENANT_ID, C2_DOMAIN, "DomainName", "Warn", "analyst@example.com")
    };
    let block = form("add-indicator-alert-and-block", "domain", C2_DOMAIN);
    let bridge = TestBridge::start_with(responding()).await;
    let id = analyst(&bridge);
    let (code, message) = failure(&trigger(&bridge, &block).await);
    assert_eq!((code.as_str(), message.contains(&format!("indicator {id} "))), (REFUSED, true), "{message}");
    assert_eq!(bridge.control().indicators(DEMO_TENANT_ID)[0]["action"], "Warn");
    bridge.stop().await;

    let overwriting = with(RespondSettings { overwrite: true, ..RespondSettings::default() });
    let bridge = TestBridge::start_with(overwriting).await;
    analyst(&bridge);
    assert!(is_success(&trigger(&bridge, &block).await));
    let indicators = bridge.control().indicators(DEMO_TENANT_ID);
    assert_eq!((indicators.len(), indicators[0]["action"].as_str()), (1, Some("Block")));
    bridge.stop().await;
}

#[tokio::test]
async fn a_protected_observable_is_never_blocked() {
    let protected =
        ["203.0.113.0/24", "sync-hub.example", DROPPED_SHA1].map(|entry| entry.parse().expect("an entry")).to_vec();
    let bridge = TestBridge::start_with(with(RespondSettings { protected, ..RespondSettings::default() })).await;
    for (kind, value) in [("ip", C2_ADDRESS), ("domain", C2_DOMAIN), ("sha1", DROPPED_SHA1)] {
        let (code, message) = failure(&trigger(&bridge, &form("add-indicator-alert-and-block", kind, value)).await);
        assert_eq!((code.as_str(), message.contains("protected observables")), (REFUSED, true), "{message}");
        assert!(is_success(&trigger(&bridge, &form("add-indicator-alert", kind, value)).await), "{value}");
    }
    assert_eq!(bridge.control().indicators(DEMO_TENANT_ID).len(), 3);
    bridge.stop().await;
}

/// What an id names is looked up: one of another observable stays.
#[tokio::test]
async fn an_indicator_is_removed_for_its_own_observable_only() {
    let bridge = TestBridge::start_with(responding()).await;
    let id = bridge.control().indicate_in_portal(DEMO_TENANT_ID, C2_DOMAIN, "DomainName", "Block", DEMO_CLIENT_ID);
    for form in [removal("domain", "other.example", &id), removal("domain", C2_DOMAIN, "999")] {
        let (code, message) = failure(&trigger(&bridge, &form).await);
        assert_eq!((code.as_str(), message.contains("has no indicator")), (REFUSED, true), "{message}");
    }
    assert_eq!(bridge.control().indicators(DEMO_TENANT_ID).len(), 1);
    assert!(is_success(&trigger(&bridge, &removal("domain", C2_DOMAIN, &id)).await));
    assert_eq!(bridge.control().indicators(DEMO_TENANT_ID).len(), 0);
    bridge.stop().await;
}

/// E3: what Defender refuses is told in its words, and nothing is sent again.
#[tokio::test]
async fn defenders_refusal_of_an_indicator_is_told_in_its_words() {
    let bridge = TestBridge::start_with(responding()).await;
    let (code, message) = failure(&trigger(&bridge, &form("add-indicator-alert", "ip", "10.1.2.3")).await);
    assert_eq!(code, "invalid request");
    assert!(message.contains("Only public addresses"), "{message}");
    let written = bridge.control().requests_to("indicators").into_iter().filter(|request| request.method == "POST");
    assert_eq!(written.count(), 1);
    bridge.stop().await;
}

/// The machine's release takes back an isolation that waits for a machine that does not answer.
#[tokio::test]
async fn an_isolation_that_hangs_is_taken_back_by_a_release() {
    let bridge = TestBridge::start_with(responding()).await;
    let old = json!({
        "id": "00000000-0000-4000-8000-0000000000aa", "type": "Isolate", "status": "Pending",
        "machineId": FINANCE_WORKSTATION, "creationDateTimeUtc": minutes_ago(30), "requestorComment": "by hand",
    });
    let cancelled =
        json!({"id": old["id"], "type": "Isolate", "status": "Cancelled", "machineId": FINANCE_WORKSTATION});
    let cancel = format!("/machineactions/{}/cancel", old["id"].as_str().expect("an id"));
    let script = vec![
        Scripted::get("/machineactions", 200, json!({"value": [old]})),
        Scripted { method: Some("POST".into()), ..Scripted::get(cancel.as_str(), 200, cancelled) },
    ];
    bridge.control().script(script).expect("it fits");
    // The script shows the isolation as open for ever, so the release is not reported as done.
    let (code, message) = failure(&on_machine(&bridge, "Unisolate", FINANCE_WORKSTATION).await);
    assert_eq!(code, "invalid request");
    assert!(message.contains("already in progress"), "{message}");
    let sent: Vec<String> = bridge.control().requests_to("actions").into_iter().map(|request| request.path).collect();
    assert_eq!(sent, [format!("/api{cancel}")]);
    bridge.stop().await;
}

// ---- what became of it

async fn get(bridge: &TestBridge, token: Option<&str>, path: &str) -> Answer {
    let mut request = bridge.client.get(bridge.url(path));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Answer::of(request.send().await.expect("the ingress answers")).await
}

#[tokio::test]
async fn an_actions_outcome_is_asked_of_defender_with_the_callers_own_token() {
    let bridge = TestBridge::start_with(responding()).await;
    let token = crate::bridge::demo_token();
    bridge.control().set_action_behaviour(ActionBehaviour { held: true, ..ActionBehaviour::default() });
    let answer = on_machine(&bridge, "RunAntiVirusScanFull", HR_WORKSTATION).await;
    let id = answer.headers["x-machine-action-id"].to_str().expect("an id").to_owned();
    let path = format!("/actions/{id}");
    let open = get(&bridge, Some(&token), &path).await;
    assert_eq!((open.status, open.json()["data"]["status"].as_str()), (200, Some("Pending")), "{}", open.text);
    assert!(bridge.control().finish_action(DEMO_TENANT_ID, &id, Outcome::Failed));
    let ended = get(&bridge, Some(&token), &path).await.json();
    assert_eq!((ended["data"]["status"].as_str(), ended["data"]["scope"].as_str()), (Some("Failed"), Some("Full")));

    let rows = [
        (None, path.as_str(), 401),
        (Some("nonsense"), path.as_str(), 401),
        (Some(token.as_str()), "/actions/00000000-0000-4000-8000-00000000ffff", 404),
        (Some(token.as_str()), "/actions/..%2Fmachines", 400),
        (Some(token.as_str()), "/actions/a%20b", 400),
        (Some(token.as_str()), "/actions/", 404),
    ];
    for (token, path, status) in rows {
        let answer = get(&bridge, token, path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
    assert_eq!(bridge.post(&path, &json!({})).await.status, 405);
    // Another tenant's token sees nothing of it.
    let (client, secret) = (DEMO_CLIENT_ID, DEMO_CLIENT_SECRET);
    let strange = get(&bridge, Some(&mint(OTHER_TENANT_ID, client, secret, None)), &path).await;
    assert_eq!(strange.status, 401, "{}", strange.text);
    bridge.stop().await;
}

/// The same for an operator, who has no token but the application's credentials.
#[tokio::test]
async fn an_operator_is_told_of_an_action_on_the_command_line() {
    let bridge = TestBridge::start_with(responding()).await;
    let answer = on_machine(&bridge, "FullIsolation", HR_WORKSTATION).await;
    let id = answer.headers["x-machine-action-id"].to_str().expect("an id");
    let show = async |arguments: &[&str]| {
        let url = bridge.simulator.url();
        let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
        command.args(["action", "show"]).args(arguments).env_clear().envs([
            ("BRIDGE_ENTRA_URL", url.as_str()),
            ("BRIDGE_DEFENDER_URL", &url),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
        ]);
        let output = command.output().await.expect("the binary runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, told, problem) = show(&[id, "--json"]).await;
    assert_eq!(code, Some(0), "{problem}");
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((told["id"].as_str(), told["type"].as_str()), (Some(id), Some("Isolate")));
    let comment = told["requestorComment"].as_str().expect("a comment");
    assert!(comment.starts_with("defender-bridge: isolate, "), "{comment}");
    let (code, told, _) = show(&[id]).await;
    assert_eq!(code, Some(0));
    assert!(told.lines().any(|line| line.starts_with("machineId ") && line.ends_with(HR_WORKSTATION)), "{told}");
    for (unknown, why) in
        [("00000000-0000-4000-8000-00000000ffff", "does not know the machine action"), ("../machines", "not valid")]
    {
        let (code, told, problem) = show(&[unknown]).await;
        assert_eq!((code, told.as_str()), (Some(1), ""), "{unknown}");
        assert!(problem.contains(why), "{problem}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn without_response_actions_there_are_no_actions_to_ask_for() {
    let bridge = TestBridge::start().await;
    let answer =
        get(&bridge, Some(&crate::bridge::demo_token()), "/actions/00000000-0000-4000-8000-00000000ffff").await;
    assert_eq!(answer.status, 404);
    let answer = on_machine(&bridge, "FullIsolation", HR_WORKSTATION).await;
    let text = "Invalid request to Microsoft Defender for Endpoint. Unsupported action.";
    assert_eq!(answer.errors(), [fatal("invalid request", text)]);
    assert_eq!(bridge.control().total(), 0);
    bridge.stop().await;
}
