//! Machine actions: what the routes refuse and answer, what the controls tell and do.

use std::time::Duration;

use defender_bridge::simulator::scenario::{
    BUILD_HOST, DEMO_CLIENT_ID, DEMO_TENANT_ID, ENGINEERING_WORKSTATION, FILE_SERVER, FINANCE_WORKSTATION,
    HR_WORKSTATION, OTHER_TENANT_ID, SPARSE_MACHINE, UNKNOWN_MACHINE,
};
use defender_bridge::simulator::{
    ActionBehaviour, ActionKind, ActionRefusal, Data, Fate, Fault, Outcome, Quota, Resource, Settings, WhileOpen,
};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{World, ids};

/// Waits without an end are failures.
const PATIENCE: Duration = Duration::from_secs(20);

impl World {
    async fn act(&self, path: &str, body: &Value) -> (u16, Value) {
        let call = self.http.post(self.at(path)).bearer_auth(&self.defender).json(body);
        let response = call.send().await.expect("the simulator answers");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn isolate(&self, machine: &str) -> (u16, Value) {
        let body = json!({"Comment": "a test", "IsolationType": "Full"});
        self.act(&format!("/api/machines/{machine}/isolate"), &body).await
    }

    async fn release(&self, machine: &str) -> (u16, Value) {
        self.act(&format!("/api/machines/{machine}/unisolate"), &json!({"Comment": "a test"})).await
    }

    /// The status of an action once it is final.
    async fn ended(&self, action: &Value) -> String {
        let id = action["id"].as_str().expect("an id");
        let ended = self.control().action_ended(DEMO_TENANT_ID, id);
        tokio::time::timeout(PATIENCE, ended).await.expect("the action ends");
        let (_, action) = self.read(&format!("/api/machineactions/{id}")).await;
        action["status"].as_str().expect("a status").to_owned()
    }

    async fn becomes(&self, machine: &str, isolated: bool) {
        let becomes = self.control().isolation_where(DEMO_TENANT_ID, machine, |truth| truth.isolated == isolated);
        tokio::time::timeout(PATIENCE, becomes).await.expect("the machine changes");
    }

    fn behave(&self, change: impl FnOnce(&mut ActionBehaviour)) {
        let mut behaviour = self.control().action_behaviour();
        change(&mut behaviour);
        self.control().set_action_behaviour(behaviour);
    }
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_machine_is_isolated_and_released_and_the_actions_say_so() {
    let world = World::start().await;
    let (status, action) = world.isolate(FINANCE_WORKSTATION).await;
    assert_eq!(status, 201);
    for (member, expected) in [
        ("type", json!("Isolate")),
        ("status", json!("Pending")),
        ("scope", json!("Full")),
        ("requestor", json!(DEMO_CLIENT_ID)),
        ("requestorComment", json!("a test")),
        ("machineId", json!(FINANCE_WORKSTATION)),
        ("computerDnsName", json!("fin-ws-07.corp.example")),
        ("requestSource", json!("PublicApi")),
    ] {
        assert_eq!(action[member], expected, "{member}");
    }
    assert!(action["@odata.context"].as_str().unwrap().ends_with("#MachineActions/$entity"));
    assert_eq!(world.ended(&action).await, "Succeeded");
    assert!(world.control().isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION).isolated);

    let (status, release) = world.release(FINANCE_WORKSTATION).await;
    assert_eq!((status, &release["type"], &release["scope"]), (201, &json!("Unisolate"), &json!(null)));
    assert_eq!(world.ended(&release).await, "Succeeded");
    let truth = world.control().isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION);
    assert!(!truth.isolated);
    assert_eq!((truth.changes.len(), truth.most_open_isolates, truth.duplicates), (2, 1, 0));

    let posts = world.control().action_posts(DEMO_TENANT_ID);
    assert_eq!(
        posts.iter().map(|post| (post.kind, post.fate)).collect::<Vec<_>>(),
        [(ActionKind::Isolate, Fate::Created), (ActionKind::Unisolate, Fate::Created)]
    );
    assert_eq!((posts[0].comment.as_str(), posts[0].requestor.as_str()), ("a test", DEMO_CLIENT_ID));
    assert_eq!(world.control().isolate_posts(DEMO_TENANT_ID).len(), 1);
    assert_eq!(world.control().isolate_posts(OTHER_TENANT_ID), []);
}

#[tokio::test]
async fn a_post_is_refused_for_its_body_its_machine_and_its_role() {
    let mut world = World::start().await;
    let isolate = format!("/api/machines/{FINANCE_WORKSTATION}/isolate");
    let unisolate = format!("/api/machines/{FINANCE_WORKSTATION}/unisolate");
    let full = json!({"Comment": "c", "IsolationType": "Full"});
    let selective = json!({"Comment": "c", "IsolationType": "Selective"});
    let unmanaged = json!({"Comment": "c", "IsolationType": "UnManagedDevice"});
    let at = |machine: &str| format!("/api/machines/{machine}/isolate");
    for (path, body, status, error) in [
        (isolate.clone(), json!({"IsolationType": "Full"}), 400, "MissingRequiredParameter"),
        (isolate.clone(), json!({"Comment": null, "IsolationType": "Full"}), 400, "MissingRequiredParameter"),
        (isolate.clone(), json!({"Comment": " ", "IsolationType": "Full"}), 400, "MissingRequiredParameter"),
        (isolate.clone(), json!({"Comment": "c"}), 400, "MissingRequiredParameter"),
        (isolate.clone(), json!({"Comment": 1, "IsolationType": "Full"}), 400, "InvalidRequestBody"),
        (isolate.clone(), json!({"Comment": "c", "IsolationType": "full"}), 400, "InvalidRequestBody"),
        (isolate.clone(), json!({"comment": "c", "IsolationType": "Full"}), 400, "InvalidRequestBody"),
        (isolate.clone(), json!(["Comment"]), 400, "InvalidRequestBody"),
        (unisolate.clone(), json!({}), 400, "MissingRequiredParameter"),
        (unisolate.clone(), full.clone(), 400, "InvalidRequestBody"),
        (isolate.clone(), unmanaged.clone(), 400, "InvalidInput"),
        (at(SPARSE_MACHINE), full.clone(), 400, "InvalidInput"),
        (at(BUILD_HOST), selective.clone(), 400, "OsPlatformNotSupported"),
        (at(UNKNOWN_MACHINE), full.clone(), 404, "ResourceNotFound"),
        (format!("/api/machines/{UNKNOWN_MACHINE}/unisolate"), json!({"Comment": "c"}), 404, "ResourceNotFound"),
        ("/api/machineactions/none/cancel".to_owned(), json!({"Comment": "c"}), 404, "ResourceNotFound"),
        ("/api/machineactions/none/cancel".to_owned(), json!({}), 400, "MissingRequiredParameter"),
        ("/api/machineactions".to_owned(), full.clone(), 405, "BadRequest"),
    ] {
        let answer = world.act(&path, &body).await;
        assert_eq!(code(&answer), (status, error), "{path} {body}: {}", answer.1);
    }
    assert_eq!(world.control().action_posts(DEMO_TENANT_ID), []);
    assert_eq!(world.get(&isolate).await.status(), 405);
    for (machine, body) in [(BUILD_HOST, &full), (FILE_SERVER, &selective), (SPARSE_MACHINE, &unmanaged)] {
        assert_eq!(world.act(&at(machine), body).await.0, 201, "{machine}");
    }

    for (refusal, error) in [
        (ActionRefusal::OsPlatform, "OsPlatformNotSupported"),
        (ActionRefusal::ClientVersion, "ClientVersionNotSupported"),
    ] {
        world.control().set_action_refusal(DEMO_TENANT_ID, FINANCE_WORKSTATION, Some(refusal));
        assert_eq!(code(&world.isolate(FINANCE_WORKSTATION).await), (400, error));
    }

    world.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &["Machine.Read.All", "Machine.Scan"]);
    world.renew().await;
    let refused = world.isolate(HR_WORKSTATION).await;
    assert_eq!(code(&refused), (403, "Forbidden"));
    assert_eq!(
        refused.1["error"]["message"],
        "Missing application roles. API required roles: Machine.Isolate, application roles: Machine.Read.All,Machine.Scan."
    );
    assert_eq!(world.release(HR_WORKSTATION).await.0, 403);
    // Reading needs another role, and any of those for actions is enough to cancel.
    assert_eq!(world.get("/api/machineactions").await.status(), 200);
    assert_eq!(world.act("/api/machineactions/none/cancel", &json!({"Comment": "c"})).await.0, 404);
    world.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &["Machine.Isolate"]);
    world.renew().await;
    assert_eq!(world.get("/api/machineactions").await.status(), 403);
}

#[tokio::test]
async fn the_list_is_filtered_cut_and_newest_first() {
    let world = World::start().await;
    world.behave(|behaviour| behaviour.held = true);
    let mut asked = Vec::new();
    for machine in [FINANCE_WORKSTATION, HR_WORKSTATION, FILE_SERVER] {
        asked.push(world.isolate(machine).await.1);
    }
    let id = |index: usize| asked[index]["id"].as_str().unwrap();
    world.control().finish_action(DEMO_TENANT_ID, id(1), Outcome::Succeeded);
    let now = world.control().now();
    let time = |minutes: i64| (now + SignedDuration::from_mins(minutes)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for (query, expected) in [
        (String::new(), vec![id(2), id(1), id(0)]),
        ("?$top=2".to_owned(), vec![id(2), id(1)]),
        ("?$skip=1&$top=1".to_owned(), vec![id(1)]),
        (format!("?$filter=machineId eq '{HR_WORKSTATION}'"), vec![id(1)]),
        (format!("?$filter=machineId eq '{FILE_SERVER}' and type in ('Isolate','Unisolate')"), vec![id(2)]),
        (format!("?$filter=machineId eq '{FILE_SERVER}' and (type eq 'Isolate' or type eq 'Unisolate')"), vec![id(2)]),
        (format!("?$filter=id eq '{}'", id(0)), vec![id(0)]),
        ("?$filter=status eq 'Pending' and type eq 'Isolate'".to_owned(), vec![id(2), id(0)]),
        (format!("?$filter=requestor eq '{DEMO_CLIENT_ID}'"), vec![id(2), id(1), id(0)]),
        (format!("?$filter=creationDateTimeUtc gt {}", time(-60)), vec![id(2), id(1), id(0)]),
        (format!("?$filter=creationDateTimeUtc gt {}", time(60)), vec![]),
        (format!("?$filter=machineId eq '{UNKNOWN_MACHINE}'"), vec![]),
    ] {
        let (status, list) = world.read(&format!("/api/machineactions{query}")).await;
        assert_eq!((status, ids(&list)), (200, expected), "{query}");
    }
    // In lists the last change has another name.
    let (_, list) = world.read("/api/machineactions?$top=1").await;
    assert!(list["value"][0]["lastUpdateTimeUtc"].is_string() && list["value"][0]["lastUpdateDateTimeUtc"].is_null());
    let (_, one) = world.read(&format!("/api/machineactions/{}", id(0))).await;
    assert!(one["lastUpdateDateTimeUtc"].is_string() && one["lastUpdateTimeUtc"].is_null());
    for (path, status) in [
        ("/api/machineactions?$filter=requestorComment eq 'a test'", 400),
        ("/api/machineactions?$filter=machineId eq 1", 400),
        ("/api/machineactions?$top=10001", 400),
        ("/api/machineactions/none", 404),
    ] {
        assert_eq!(world.get(path).await.status(), status, "{path}");
    }
    world.behave(|behaviour| behaviour.refuse_in = true);
    let refused = world.read("/api/machineactions?$filter=type in ('Isolate')").await;
    assert_eq!(code(&refused), (400, "ODataError"));

    world.control().set_page_size(Some(2));
    let (_, first) = world.read("/api/machineactions?$filter=type eq 'Isolate'").await;
    let next = first["@odata.nextLink"].as_str().unwrap();
    let second: Value = world.http.get(next).bearer_auth(&world.defender).send().await.unwrap().json().await.unwrap();
    assert_eq!((ids(&first), ids(&second)), (vec![id(2), id(1)], vec![id(0)]));
}

#[tokio::test]
async fn the_list_lags_behind_the_action() {
    let world = World::start().await;
    world.behave(|behaviour| behaviour.list_delay_ms = 3_600_000);
    let (_, action) = world.isolate(FINANCE_WORKSTATION).await;
    assert_eq!(world.ended(&action).await, "Succeeded");
    assert_eq!(ids(&world.read("/api/machineactions").await.1), [] as [&str; 0]);
}

#[tokio::test]
async fn a_request_while_one_is_open_is_refused_or_gets_the_open_one() {
    let world = World::start().await;
    world.behave(|behaviour| behaviour.held = true);
    let (_, first) = world.isolate(FINANCE_WORKSTATION).await;
    let refused = world.isolate(FINANCE_WORKSTATION).await;
    assert_eq!(code(&refused), (400, "ActiveRequestAlreadyExists"));
    assert_eq!(refused.1["error"]["message"], "Action is already in progress");
    assert_eq!(code(&world.release(FINANCE_WORKSTATION).await), (400, "ActiveRequestAlreadyExists"));
    world.behave(|behaviour| behaviour.while_open = WhileOpen::Return);
    let (status, returned) = world.isolate(FINANCE_WORKSTATION).await;
    assert_eq!((status, &returned["id"]), (201, &first["id"]));
    let truth = world.control().isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION);
    assert_eq!((truth.open_isolates, truth.most_open_isolates, truth.duplicates, truth.harmful), (1, 1, 2, 0));
    world.behave(|behaviour| behaviour.while_open = WhileOpen::Hang);
    assert_eq!(world.isolate(FINANCE_WORKSTATION).await.0, 201);
    let truth = world.control().isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION);
    assert_eq!((truth.open_isolates, truth.most_open_isolates, truth.duplicates, truth.harmful), (2, 2, 3, 1));
}

#[tokio::test]
async fn a_duplicate_isolation_hangs_and_undoes_the_release() {
    let world = World::start().await;
    world.behave(|behaviour| (behaviour.pending_ms, behaviour.in_progress_ms) = (1, 1));
    world.isolate(FINANCE_WORKSTATION).await;
    world.becomes(FINANCE_WORKSTATION, true).await;
    let (status, duplicate) = world.isolate(FINANCE_WORKSTATION).await;
    assert_eq!(status, 201);
    let in_portal = world.control().release_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, "analyst@corp.example");
    assert_eq!(in_portal.unwrap_err(), "an isolation is open");
    let (_, release) = world.release(FINANCE_WORKSTATION).await;
    assert_eq!(world.ended(&release).await, "Succeeded");
    assert_eq!(world.ended(&duplicate).await, "Succeeded");
    let truth = world.control().isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION);
    assert!(truth.isolated && truth.harmful == 1);
    assert_eq!(truth.changes.iter().map(|change| change.isolated).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(truth.changes[2].action, duplicate["id"].as_str().unwrap());
}

#[tokio::test]
async fn an_action_can_be_cancelled_until_it_is_final() {
    let world = World::start().await;
    world.behave(|behaviour| behaviour.held = true);
    let (_, action) = world.isolate(FINANCE_WORKSTATION).await;
    let path = format!("/api/machineactions/{}/cancel", action["id"].as_str().unwrap());
    let (status, cancelled) = world.act(&path, &json!({"Comment": "not so"})).await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("Cancelled")));
    assert_eq!(cancelled["cancellationRequestor"], DEMO_CLIENT_ID);
    assert_eq!(cancelled["cancellationComment"], "not so");
    assert_eq!(code(&world.act(&path, &json!({"Comment": "not so"})).await), (400, "BadRequest"));
    assert!(!world.control().isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION).isolated);
}

#[tokio::test]
async fn a_post_can_be_carried_out_although_its_answer_is_lost() {
    let world = World::start().await;
    let machines = [FINANCE_WORKSTATION, HR_WORKSTATION, FILE_SERVER, ENGINEERING_WORKSTATION];
    let faults =
        [Fault::applied(Fault::cut()), Fault::applied(Fault::Reset), Fault::applied(Fault::refuse(504)), Fault::Reset];
    for (machine, fault) in machines.into_iter().zip(faults) {
        world.control().fail_next("machines/{id}/isolate", fault.clone(), 1);
        let body = json!({"Comment": "c", "IsolationType": "Full"});
        let call = world.http.post(world.at(&format!("/api/machines/{machine}/isolate")));
        let answer = call.bearer_auth(&world.defender).json(&body).send().await;
        assert_eq!(
            answer.ok().map(|answer| answer.status().as_u16()),
            match fault {
                Fault::Applied { ref then } if **then == Fault::refuse(504) => Some(504),
                _ => None,
            }
        );
    }
    let posted: Vec<String> =
        world.control().isolate_posts(DEMO_TENANT_ID).into_iter().map(|post| post.machine).collect();
    assert_eq!(posted, machines[..3]);
}

#[tokio::test]
async fn somebody_else_isolates_and_releases_in_the_portal() {
    let world = World::start().await;
    let (control, user) = (world.control(), "analyst@corp.example");
    let action = control.isolate_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, user).unwrap();
    world.becomes(FINANCE_WORKSTATION, true).await;
    let (_, shown) = world.read(&format!("/api/machineactions/{action}")).await;
    assert_eq!((&shown["requestor"], &shown["requestSource"]), (&json!(user), &json!("Portal")));
    assert_eq!(
        control.isolate_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, user).unwrap_err(),
        "the machine is isolated"
    );
    control.release_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, user).unwrap();
    world.becomes(FINANCE_WORKSTATION, false).await;
    let again = control.release_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, user).unwrap_err();
    assert_eq!(again, "the machine is not isolated");
    assert!(control.isolate_in_portal(DEMO_TENANT_ID, UNKNOWN_MACHINE, user).is_err());
    // What people do is among the requests, but not among those of applications.
    assert_eq!((control.action_posts(DEMO_TENANT_ID).len(), control.isolate_posts(DEMO_TENANT_ID).len()), (2, 0));
}

#[tokio::test]
async fn actions_can_be_controlled_over_http() {
    let world = World::start().await;
    let of = |body: Value| {
        let mut body = body;
        body["tenant"] = json!(DEMO_TENANT_ID);
        body
    };
    let machine = |body: Value| {
        let mut body = of(body);
        body["machine"] = json!(FINANCE_WORKSTATION);
        body
    };
    for (method, path, body, status) in [
        ("PUT", "/actions", json!({"held": true, "while_open": "return"}), 200),
        ("PUT", "/actions", json!({"hold": true}), 400),
        ("PUT", "/actions/machine", machine(json!({"offline": true, "outcomes": ["failed"]})), 200),
        ("PUT", "/actions/machine", machine(json!({"refusal": "client_version"})), 200),
        ("PUT", "/actions/machine", machine(json!({"refusal": "mood"})), 400),
        ("POST", "/actions/portal", machine(json!({"kind": "Isolate", "user": "u"})), 400),
        ("PUT", "/actions/machine", machine(json!({"refusal": null})), 200),
        ("POST", "/actions/portal", machine(json!({"kind": "Isolate", "user": "u"})), 200),
        ("POST", "/actions/finish", of(json!({"action": "none", "outcome": "succeeded"})), 400),
        ("GET", "/actions", json!(null), 400),
        ("GET", "/actions/nothing", json!(null), 404),
    ] {
        let (found, answer) = world.control_call(method, path, body.clone()).await;
        assert_eq!(found, status, "{method} {path} {body}: {answer}");
    }
    let state = format!("/actions?tenant={DEMO_TENANT_ID}");
    let (_, told) = world.control_call("GET", &state, json!(null)).await;
    assert_eq!((&told["behaviour"]["held"], &told["posts"][0]["fate"]), (&json!(true), &json!("refused")));
    let truth = &told["machines"][FINANCE_WORKSTATION];
    assert_eq!(
        (&truth["isolated"], &truth["offline"], &truth["open_isolates"]),
        (&json!(false), &json!(true), &json!(1))
    );
    let finish = of(json!({"action": told["posts"][1]["action"], "outcome": "succeeded"}));
    assert_eq!(world.control_call("POST", "/actions/finish", finish).await.0, 200);
    let (_, told) = world.control_call("GET", &state, json!(null)).await;
    assert_eq!(told["machines"][FINANCE_WORKSTATION]["isolated"], json!(true));
    assert_eq!(world.control_call("POST", "/reset", json!(null)).await.0, 200);
    let (_, told) = world.control_call("GET", &state, json!(null)).await;
    assert_eq!(
        (&told["machines"], &told["posts"], &told["behaviour"]["held"]),
        (&json!({}), &json!([]), &json!(false))
    );
}

#[tokio::test]
async fn actions_and_reading_them_have_quotas_of_their_own() {
    let quota = Quota { per_minute: 2, ..Quota::default() };
    let world = World::with(Settings { quota: Some(quota), ..Settings::default() }).await;
    assert_eq!(world.isolate(FINANCE_WORKSTATION).await.0, 201);
    assert_eq!(world.act("/api/machineactions/none/cancel", &json!({"Comment": "c"})).await.0, 404);
    assert_eq!(world.isolate(HR_WORKSTATION).await.0, 429);
    assert_eq!(world.release(HR_WORKSTATION).await.0, 429);
    for (path, status) in [
        ("/api/machineactions".to_owned(), 200),
        ("/api/machineactions/none".to_owned(), 404),
        ("/api/machineactions".to_owned(), 429),
        ("/api/machines".to_owned(), 200),
        (format!("/api/machines/{FINANCE_WORKSTATION}/alerts"), 200),
    ] {
        assert_eq!(world.get(&path).await.status(), status, "{path}");
    }
    assert_eq!(world.control().calls("machineactions"), 3);
    assert_eq!(world.control().calls("actions"), 4);
    assert_eq!(world.control().calls("machines/{id}/unisolate"), 1);
    assert_eq!(world.control().isolate_posts(DEMO_TENANT_ID).len(), 1);
}

#[tokio::test]
async fn machines_are_found_among_thousands() {
    let world = World::start().await;
    let now = world.control().now();
    let shown = |ago: i64| (now - SignedDuration::from_mins(ago)).to_string();
    let mut data = Data::default();
    for n in 0..3_000_u32 {
        let address = format!("10.0.{}.{}", n / 250, n % 250);
        let id = format!("{n:040x}");
        data.add_machine(
            json!({
                "id": id, "computerDnsName": format!("ws-{n}.corp.example"), "osPlatform": "Windows11",
                "onboardingStatus": "Onboarded", "healthStatus": "Active", "lastSeen": shown(5),
                "lastIpAddress": address, "ipAddresses": [{"ipAddress": address, "operationalStatus": "Up"}],
            }),
            false,
        )
        .unwrap();
        // A day ago everyone had the address of somebody else.
        data.add_adapter(&id, "00005E005301", &[format!("10.1.{}.{}", n / 250, n % 250)], &shown(24 * 60)).unwrap();
    }
    data.add_machine(json!({"id": "a".repeat(40), "computerDnsName": "WS-17"}), false).unwrap();
    world.control().set_data(DEMO_TENANT_ID, data);
    let id = |n: u32| format!("{n:040x}");
    let at = |ago: i64| (now - SignedDuration::from_mins(ago)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for (path, expected) in [
        ("?$filter=computerDnsName eq 'ws-17.corp.example'".to_owned(), vec![id(17)]),
        ("?$filter=startswith(computerDnsName,'ws-299')&$top=3".to_owned(), vec![id(299), id(2_990), id(2_991)]),
        (
            "?$filter=startswith(computerDnsName,'ws-17.') or computerDnsName eq 'WS-17'".to_owned(),
            vec![id(17), "a".repeat(40)],
        ),
        ("?$filter=computerDnsName eq 'ws-17.corp.example' and healthStatus eq 'Inactive'".to_owned(), vec![]),
        (format!("?$filter=id eq '{}'", id(5)), vec![id(5)]),
        (format!("/findbyip(ip='10.0.1.2',timestamp={})", at(0)), vec![id(252)]),
        (format!("/findbyip(ip='10.0.1.2',timestamp={})", at(19)), vec![id(252)]),
        (format!("/findbyip(ip='10.0.1.2',timestamp={})", at(60)), vec![]),
        (format!("/findbyip(ip='10.1.1.2',timestamp={})", at(24 * 60)), vec![id(252)]),
        (format!("/findbyip(ip='10.1.1.2',timestamp={})", at(0)), vec![]),
    ] {
        let (status, list) = world.read(&format!("/api/machines{path}")).await;
        assert_eq!((status, ids(&list)), (200, expected.iter().map(String::as_str).collect()), "{path}");
    }
}
