//! The calls for containment: what is sent, what is repeated, what an error says about whether it happened.

use defender_bridge::defender::model::{Machine, MachineAction};
use defender_bridge::defender::{COMMENT_LIMIT_CHARS, IsolationType};
use defender_bridge::simulator::scenario::{
    DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, ENGINEERING_WORKSTATION, FINANCE_WORKSTATION, HR_WORKSTATION,
    UNKNOWN_MACHINE,
};
use defender_bridge::simulator::{ActionBehaviour, ActionKind, Control, Fault, Outcome, Simulator};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;

const MACHINE: &str = "1111111111111111111111111111111111111111";
const ACTION: &str = "00000000-0000-4000-8000-000000000001";
const COMMENT: &str = "defender-bridge: isolate, Cognito host 17 (brain.example), tag isolate me, event e-1";

fn containing(defender: &Defender) -> Session {
    let deadline = Instant::now() + Duration::from_secs(60);
    defender.session(credentials(SECRET), deadline, Limits::containment())
}

fn body(seen: &Seen) -> Value {
    serde_json::from_str(&seen.body).unwrap()
}

fn ids(actions: &[MachineAction]) -> Vec<&str> {
    actions.iter().map(|action| action.id.as_str()).collect()
}

// ---- what is sent, and what comes back

#[tokio::test]
async fn actions_are_asked_for_as_documented() {
    let server = service(|seen, _| match seen.line.rsplit('/').next() {
        Some("isolate") => answer(201, example("machineaction_isolate_201.json")),
        Some("unisolate") => answer(201, example("machineaction_unisolate_201.json")),
        _ => answer(200, example("machineaction_isolate_cancelled.json")),
    })
    .await;
    let session = containing(&defender(&server));
    let full = session.isolate(&MACHINE.to_uppercase(), IsolationType::Full, COMMENT).await.unwrap();
    assert_eq!((full.id.as_str(), full.kind.as_str(), full.status.as_str()), (ACTION, "Isolate", "Pending"));
    assert_eq!(full.machine_id.as_deref(), Some(MACHINE));
    assert_eq!(full.requestor.as_deref(), Some("00000000-0000-4000-8000-00000000bbbb"));
    assert_eq!(full.created(), Some("2026-11-20T09:10:48.9132635Z".parse().unwrap()));
    assert!(full.is_isolate() && !full.is_final());
    session.isolate(MACHINE, IsolationType::Selective, COMMENT).await.unwrap();
    assert!(session.unisolate(MACHINE, "let go").await.unwrap().is_unisolate());
    let cancelled = session.cancel(ACTION, "not so").await.unwrap();
    assert!(cancelled.is_final() && !cancelled.has_succeeded());

    let seen = calls(&server);
    let sent: Vec<(&str, Value)> = seen.iter().map(|seen| (seen.line.as_str(), body(seen))).collect();
    let isolate = format!("POST /api/machines/{MACHINE}/isolate");
    assert_eq!(
        sent,
        [
            (isolate.as_str(), json!({"Comment": COMMENT, "IsolationType": "Full"})),
            (isolate.as_str(), json!({"Comment": COMMENT, "IsolationType": "Selective"})),
            (&format!("POST /api/machines/{MACHINE}/unisolate"), json!({"Comment": "let go"})),
            (&format!("POST /api/machineactions/{ACTION}/cancel"), json!({"Comment": "not so"})),
        ]
    );
    for seen in &seen {
        assert_eq!(seen.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(seen.header("authorization"), Some("Bearer token-1"));
    }
}

#[rstest]
#[case::succeeded("machineaction_isolate_succeeded.json", true, true)]
#[case::failed("machineaction_isolate_failed.json", true, false)]
#[case::timed_out("machineaction_isolate_timeout.json", true, false)]
#[case::cancelled("machineaction_isolate_cancelled.json", true, false)]
#[case::somebody_elses("machineaction_isolate_existing.json", false, false)]
#[tokio::test]
async fn an_action_is_read_anew_each_time(#[case] file: &'static str, #[case] is_final: bool, #[case] succeeded: bool) {
    let server = service(move |_, _| answer(200, example(file))).await;
    let session = containing(&defender(&server));
    for _ in 0..2 {
        let action = session.machine_action(ACTION).await.unwrap().unwrap();
        assert_eq!((action.is_isolate(), action.is_final(), action.has_succeeded()), (true, is_final, succeeded));
        assert!(action.updated() >= action.created() && action.created().is_some());
    }
    assert_eq!(
        lines(&server),
        [format!("GET /api/machineactions/{ACTION}"), format!("GET /api/machineactions/{ACTION}")]
    );
}

#[tokio::test]
async fn what_is_not_there_is_none_and_nothing_is_kept() {
    let server = service(|seen, call| match (seen.line.contains("/machineactions/"), call < 3) {
        (true, _) => answer(404, example("mde_error_404_action.json")),
        (false, true) => answer(404, example("mde_error_404_machine.json")),
        (false, false) => answer(200, example("machine_ok.json")),
    })
    .await;
    let defender = defender(&server);
    assert_eq!(containing(&defender).machine_action(ACTION).await.unwrap(), None);
    assert_eq!(containing(&defender).machine_now(MACHINE).await.unwrap(), None);
    // The cached lookup beside it believes the 404; the one for containment asks again, and does not change the former.
    assert_eq!(session(&defender).machine(MACHINE).await.unwrap(), None);
    let machine = containing(&defender).machine_now(MACHINE).await.unwrap().unwrap();
    assert_eq!((machine.id.as_str(), machine.computer_dns_name.as_deref()), (MACHINE, Some("ws-17.example.com")));
    assert_eq!(machine.onboarding_status.as_deref(), Some("Onboarded"));
    assert!(!machine.ip_addresses.is_empty() && machine.merged_into_machine_id.is_none());
    assert_eq!(session(&defender).machine(MACHINE).await.unwrap(), None);
    let gone = containing(&defender).cancel(ACTION, "c").await.unwrap_err();
    assert!(gone.is_not_found() && !gone.may_have_happened());
    assert_eq!(server.counts(), (1, 5));
}

#[rstest]
#[case::long("x".repeat(3 * COMMENT_LIMIT_CHARS), "x".repeat(COMMENT_LIMIT_CHARS))]
#[case::long_in_bytes("ä".repeat(COMMENT_LIMIT_CHARS + 1), "ä".repeat(COMMENT_LIMIT_CHARS))]
#[case::lines("  a\r\nb\tc\u{0}d\u{85}e ".to_owned(), "a  b c d e".to_owned())]
#[tokio::test]
async fn a_comment_is_one_line_of_bounded_length(#[case] comment: String, #[case] expected: String) {
    let server = service(|_, _| answer(201, example("machineaction_isolate_201.json"))).await;
    containing(&defender(&server)).isolate(MACHINE, IsolationType::Full, &comment).await.unwrap();
    assert_eq!(body(&calls(&server)[0])["Comment"], expected);
}

#[tokio::test]
async fn values_of_containment_that_are_not_of_their_kind_are_never_sent() {
    let server = service(|_, _| answer(200, "{}")).await;
    let session = containing(&defender(&server));
    let refused: [Result<(), DefenderError>; 14] = [
        session.machine_now("ws-17.example.com").await.map(drop),
        session.machine_now("../machineactions").await.map(drop),
        session.isolate("ws-17", IsolationType::Full, COMMENT).await.map(drop),
        session.isolate(MACHINE, IsolationType::Full, " \n ").await.map(drop),
        session.unisolate(&MACHINE[1..], COMMENT).await.map(drop),
        session.unisolate(MACHINE, "").await.map(drop),
        session.cancel(ACTION, "\u{7}").await.map(drop),
        session.cancel("a/../b", COMMENT).await.map(drop),
        session.machine_action("").await.map(drop),
        session.machine_action("..").await.map(drop),
        session.isolation_actions("x' or machineId ne '").await.map(drop),
        session.machines_named("a' or name ne 'b").await.map(drop),
        session.machines_named("..").await.map(drop),
        session.open_alerts("ws-17", 1).await.map(drop),
    ];
    for (index, refused) in refused.into_iter().enumerate() {
        let error = refused.unwrap_err();
        assert_eq!((error.kind(), error.may_have_happened()), (&Kind::InvalidValue, false), "{index}");
    }
    assert_eq!(server.counts(), (0, 0));
}

// ---- what is repeated, and what may have happened

/// One POST that is answered so: the kind of its error, how many were sent, and whether it may have happened.
#[rstest]
#[case::bad_request(400, "mde_error_400_os_not_supported.json", Kind::InvalidRequest, 1, false)]
#[case::old_client(400, "mde_error_400_client_version.json", Kind::InvalidRequest, 1, false)]
#[case::missing_parameter(400, "mde_error_400_missing_parameter.json", Kind::InvalidRequest, 1, false)]
#[case::in_progress(400, "mde_error_400_action_active.json", Kind::InvalidRequest, 1, false)]
#[case::licence(401, "mde_error_401_no_license.json", Kind::Unauthorized, 1, false)]
#[case::token(401, "mde_error_401.json", Kind::Unauthorized, 2, false)]
#[case::role(403, "mde_error_403_missing_role.json", Kind::Forbidden, 2, false)]
#[case::disallowed(403, "mde_error_403_disallowed.json", Kind::Forbidden, 2, false)]
#[case::unknown(404, "mde_error_404_machine.json", Kind::InvalidRequest, 1, false)]
#[case::gave_up_waiting(408, "", Kind::InvalidRequest, 1, true)]
#[case::throttled(429, "mde_error_429_quota.json", Kind::Throttled { hunting: false }, 6, false)]
#[case::broken(500, "mde_error_500.json", Kind::ServerError, 1, true)]
#[case::bad_gateway(502, "", Kind::BadGateway, 1, true)]
#[case::unavailable(503, "", Kind::BadGateway, 1, true)]
#[case::timed_out(504, "", Kind::BadGateway, 1, true)]
#[case::redirected(302, "", Kind::BadGateway, 1, true)]
#[case::no_json(201, "", Kind::BadGateway, 1, true)]
#[case::no_action(201, "mde_error_500.json", Kind::BadGateway, 1, true)]
#[case::a_list(201, "machineactions_empty.json", Kind::BadGateway, 1, true)]
#[tokio::test]
async fn a_post_is_repeated_only_where_it_certainly_did_nothing(
    #[case] status: u16,
    #[case] file: &'static str,
    #[case] kind: Kind,
    #[case] posts: usize,
    #[case] may_have_happened: bool,
) {
    let server = service(move |_, _| answer(status, if file.is_empty() { String::new() } else { example(file) })).await;
    let defender = defender(&server);
    let refused = [
        containing(&defender).isolate(MACHINE, IsolationType::Full, COMMENT).await,
        containing(&defender).unisolate(MACHINE, COMMENT).await,
        containing(&defender).cancel(ACTION, COMMENT).await,
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert_eq!((error.family(), error.kind()), (Family::Actions, &kind));
        assert_eq!(error.may_have_happened(), may_have_happened);
        assert_eq!(error.is_already_in_progress(), file == "mde_error_400_action_active.json");
    }
    assert_eq!(server.counts().1, 3 * posts);
}

#[rstest]
#[case::closed(Reply::Bytes(Vec::new()), Kind::Connect)]
#[case::closed_in_the_head(Reply::Bytes(b"HTTP/1.1 201 Crea".to_vec()), Kind::Connect)]
#[case::cut(cut_answer(201, "{\"id\":"), Kind::BadGateway)]
#[case::silent(Reply::Hang, Kind::Connect)]
#[case::stalled(Reply::Stall(b"HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\n{".to_vec()), Kind::Connect)]
#[tokio::test]
async fn a_post_without_an_answer_is_not_repeated_and_may_have_happened(#[case] reply: Reply, #[case] kind: Kind) {
    let reply = Mutex::new(Some(reply));
    let server = service(move |_, _| reply.lock().unwrap().take().expect("one POST is made")).await;
    let settings = Settings { rest_limit: SOON, ..settings(&server) };
    let session = containing(&Defender::new(settings, Outbound::new().unwrap()));
    let error = session.isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_happened()), (&kind, true));
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn a_post_that_the_deadline_ends_may_have_happened_whatever_was_answered_before() {
    // The first try is throttled, the second gets no answer: the error that is reported is the first.
    let server = service(|_, call| if call == 0 { answer(429, "") } else { Reply::Hang }).await;
    let session = defender(&server).session(credentials(SECRET), Instant::now() + SOON, Limits::containment());
    let error = session.unisolate(MACHINE, COMMENT).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::Throttled { hunting: false });
    assert!(error.is_out_of_time() && error.may_have_happened());
    assert_eq!(server.counts(), (1, 2));
}

#[tokio::test]
async fn a_post_that_was_never_sent_did_not_happen() {
    // Nobody listens.
    let server = service(|_, _| answer(200, "{}")).await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nowhere = Settings { defender_url: format!("http://{gone}").parse().unwrap(), ..settings(&server) };
    let session = containing(&Defender::new(nowhere, Outbound::new().unwrap()));
    let error = session.isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap_err();
    assert_eq!((error.family(), error.kind(), error.may_have_happened()), (Family::Actions, &Kind::Connect, false));
    assert!(error.is_transient());

    // No token.
    let server = Scripted::start(|_| async { Reply::Bytes(Vec::new()) }).await;
    let error = containing(&defender(&server)).isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap_err();
    assert_eq!((error.family(), error.may_have_happened()), (Family::Token(Audience::Defender), false));

    // No permit in time.
    struct Never;
    impl Permits for Never {
        fn permit<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            family: Family,
            _: Purpose,
            until: Instant,
        ) -> BoxFuture<'a, Result<Instant, Duration>> {
            if family == Family::Actions { std::future::pending().boxed() } else { async move { Ok(until) }.boxed() }
        }
    }
    let server = service(|_, _| answer(200, "{}")).await;
    let defender = defender(&server).with_permits(Arc::new(Never));
    let session = defender.session(credentials(SECRET), Instant::now() + SOON, Limits::containment());
    let error = session.isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_happened()), (&Kind::Deadline, false));
    assert_eq!(server.counts(), (1, 0));
}

#[tokio::test]
async fn a_throttled_or_unauthorised_post_is_made_again_once_it_can_be() {
    let server = service(|seen, call| match (call, seen.header("authorization")) {
        (0, _) => answer_with(429, "retry-after: 0\r\n", example("mde_error_429_quota.json")),
        (_, Some("Bearer token-1")) => answer(401, example("mde_error_401.json")),
        _ => answer(201, example("machineaction_isolate_201.json")),
    })
    .await;
    let session = containing(&defender(&server));
    let action = session.isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap();
    assert_eq!(action.id, ACTION);
    assert_eq!(server.counts(), (2, 3));
}

#[rstest]
#[case::code(json!({"error": {"code": "ActiveRequestAlreadyExists", "message": "etwas anderes"}}), 400, true)]
#[case::message(json!({"error": {"code": "BadRequest", "message": "An Action is ALREADY IN PROGRESS here"}}), 400, true)]
#[case::code_alone(json!({"error": {"code": "ActiveRequestAlreadyExists"}}), 400, true)]
#[case::another(json!({"error": {"code": "BadRequest", "message": "no"}}), 400, false)]
#[case::another_status(json!({"error": {"code": "Conflict", "message": "already in progress"}}), 409, false)]
#[tokio::test]
async fn an_open_action_is_known_by_its_code_or_its_words(
    #[case] refusal: Value,
    #[case] status: u16,
    #[case] in_progress: bool,
) {
    let code = refusal["error"]["code"].as_str().unwrap().to_owned();
    let server = service(move |_, _| answer(status, refusal.to_string())).await;
    let error = containing(&defender(&server)).isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap_err();
    assert_eq!(error.is_already_in_progress(), in_progress);
    assert_eq!(error.code(), Some(code.as_str()));
}

#[tokio::test]
async fn reading_is_repeated_as_ever_and_never_may_have_happened() {
    let server =
        service(|_, call| if call < 2 { answer(503, "") } else { answer(200, example("machine_ok.json")) }).await;
    assert!(containing(&defender(&server)).machine_now(MACHINE).await.unwrap().is_some());
    assert_eq!(server.counts(), (1, 3));
    let server = service(|_, _| answer(500, "")).await;
    let error = containing(&defender(&server)).isolation_actions(MACHINE).await.unwrap_err();
    assert_eq!((error.family(), error.family().permission()), (Family::MachineActions, Some("Machine.Read.All")));
    assert!(!error.may_have_happened());
}

// ---- permits

#[derive(Default)]
struct Noting(Mutex<Vec<(Family, bool)>>);

impl Permits for Noting {
    fn permit<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        family: Family,
        purpose: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>> {
        self.0.lock().unwrap().push((family, purpose == Purpose::Containment));
        async move { Ok(until) }.boxed()
    }
}

#[tokio::test]
async fn permits_are_asked_by_family_and_know_what_serves_containment() {
    let server = service(|seen, _| match seen.line.as_str() {
        line if line.starts_with("POST") => answer(201, example("machineaction_isolate_201.json")),
        _ => answer(200, r#"{"value": []}"#),
    })
    .await;
    let noting = Arc::new(Noting::default());
    let defender = defender(&server).with_permits(noting.clone());
    let contain = containing(&defender);
    contain.isolate(MACHINE, IsolationType::Full, COMMENT).await.unwrap();
    contain.unisolate(MACHINE, COMMENT).await.unwrap();
    contain.cancel(ACTION, COMMENT).await.unwrap();
    contain.isolation_actions(MACHINE).await.unwrap();
    contain.machine_action(ACTION).await.unwrap();
    contain.machine_now(MACHINE).await.unwrap();
    contain.find_by_ip([192, 0, 2, 17].into(), Timestamp::now()).await.unwrap();
    contain.open_alerts(MACHINE, 5).await.unwrap();
    session(&defender).machine_now(MACHINE).await.unwrap();
    let token = Family::Token(Audience::Defender);
    let contained = [
        token,
        Family::Actions,
        Family::Actions,
        Family::Actions,
        Family::MachineActions,
        Family::MachineActions,
        Family::Machines,
        Family::Machines,
        Family::Alerts,
    ];
    let expected: Vec<_> =
        contained.into_iter().map(|family| (family, true)).chain([(Family::Machines, false)]).collect();
    assert_eq!(*noting.0.lock().unwrap(), expected);
    for (family, name, permission) in [
        (Family::Actions, "actions", "Machine.Isolate"),
        (Family::MachineActions, "machineactions", "Machine.Read.All"),
    ] {
        assert_eq!((family.name(), family.permission()), (name, Some(permission)));
    }
}

// ---- finding machines

#[tokio::test]
async fn machines_are_found_by_address_and_time() {
    let server = service(|_, call| match call {
        0 => answer(200, example("findbyip_one.json")),
        1 => answer(200, example("findbyip_many.json")),
        2 => answer(200, example("machines_empty.json")),
        3 => answer(404, example("mde_error_404_machines_none.json")),
        4 => answer(400, example("mde_error_400_old_timestamp.json")),
        _ => answer(200, example("machines_empty.json")),
    })
    .await;
    let session = containing(&defender(&server));
    let ip = [192, 0, 2, 17].into();
    let at: Timestamp = "2026-11-20T09:00:00.75Z".parse().unwrap();
    let mut found = Vec::new();
    for _ in 0..4 {
        found.push(session.find_by_ip(ip, at).await.unwrap());
    }
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 0, 0]);
    let machine: &Machine = &found[0][0];
    assert_eq!((machine.id.as_str(), machine.health_status.as_deref()), (MACHINE, Some("Active")));
    assert_eq!(machine.ip_addresses[0].ip_address.as_deref(), Some("192.0.2.17"));
    assert_eq!(machine.ip_addresses[0].operational_status.as_deref(), Some("Up"));
    assert_eq!(machine.last_seen.as_deref(), Some("2026-11-20T08:47:48.3622932Z"));
    let error = session.find_by_ip(ip, at).await.unwrap_err();
    assert_eq!((error.kind(), error.status(), error.code()), (&Kind::InvalidRequest, Some(400), Some("InvalidInput")));
    let before = Timestamp::now();
    session.find_by_ip(ip, before + SignedDuration::from_hours(5)).await.unwrap();
    let lines = lines(&server);
    let documented = "GET /api/machines/findbyip(ip='192.0.2.17',timestamp=2026-11-20T09:00:00Z)";
    assert_eq!(lines[0].replace("%27", "'"), documented);
    let asked = lines[5].split("timestamp=").nth(1).unwrap().trim_end_matches(')').parse::<Timestamp>().unwrap();
    assert!(asked <= Timestamp::now() && asked + SignedDuration::from_secs(1) >= before, "{asked}");
}

/// What the service has, by the filter that is asked for.
fn named(seen: &Seen) -> Vec<&'static str> {
    let decoded: Vec<(String, String)> = seen
        .line
        .split_once('?')
        .map(|(_, query)| url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
        .unwrap_or_default();
    let [(name, filter)] = decoded.as_slice() else { panic!("{}", seen.line) };
    assert_eq!(name, "$filter");
    match filter.as_str() {
        "computerDnsName eq 'ws-17.corp.example'" => vec!["WS-17.corp.example", "ws-17.corp.example.evil"],
        "computerDnsName eq 'ws-17' or startswith(computerDnsName,'ws-17.')" => {
            vec!["ws-17", "ws-17.branch.example", "ws-170.corp.example", ""]
        }
        _ => vec![],
    }
}

#[rstest]
#[case::full("ws-17.corp.example", &["WS-17.corp.example"], 1)]
#[case::in_capitals_with_a_dot("WS-17.CORP.example.", &["WS-17.corp.example"], 1)]
#[case::of_another_domain("ws-17.lab.example", &["ws-17", "ws-17.branch.example"], 2)]
#[case::short("Ws-17", &["ws-17", "ws-17.branch.example"], 1)]
#[case::nobody("ws-99.corp.example", &[], 2)]
#[tokio::test]
async fn machines_are_found_by_their_full_name_else_by_their_first_label(
    #[case] name: &str,
    #[case] expected: &[&str],
    #[case] asked: usize,
) {
    let server = service(|seen, _| {
        let machines: Vec<Value> =
            named(seen).iter().map(|name| json!({"id": MACHINE, "computerDnsName": name})).collect();
        answer(200, json!({"value": machines}).to_string())
    })
    .await;
    let found = containing(&defender(&server)).machines_named(name).await.unwrap();
    let names: Vec<&str> = found.iter().filter_map(|machine| machine.computer_dns_name.as_deref()).collect();
    assert_eq!(names, expected);
    assert_eq!(server.counts(), (1, asked));
}

#[tokio::test]
async fn no_machines_at_all_is_an_empty_list() {
    let server = service(|_, _| answer(404, example("mde_error_404_machines_none.json"))).await;
    let session = containing(&defender(&server));
    assert_eq!(session.machines_named("ws-17.corp.example").await.unwrap(), []);
    let server = service(|seen, _| match seen.line.contains("$skip") {
        true => answer(200, example("machines_empty.json")),
        false => answer(200, example("machines_list_ok.json")),
    })
    .await;
    let found = containing(&defender(&server)).machines_named("ws-17.example.com").await.unwrap();
    assert_eq!(found.iter().map(|machine| machine.id.as_str()).collect::<Vec<_>>(), [MACHINE]);
}

// ---- actions of a machine

fn action(id: &str, kind: &str, machine: Option<&str>, created: Option<&str>) -> Value {
    json!({"id": id, "type": kind, "status": "Succeeded", "machineId": machine, "creationDateTimeUtc": created})
}

#[tokio::test]
async fn isolations_and_releases_of_the_machine_come_newest_first() {
    let server = service(|_, _| {
        answer(
            200,
            json!({"value": [
                action("no-time", "Isolate", Some(MACHINE), None),
                action("a", "Isolate", Some(MACHINE), Some("2026-11-20T09:00:00Z")),
                action("c", "unisolate", Some(&MACHINE.to_uppercase()), Some("2026-11-20T09:00:00.0000002Z")),
                action("scan", "RunAntiVirusScan", Some(MACHINE), Some("2026-11-20T10:00:00Z")),
                action("other", "Isolate", Some(&"2".repeat(40)), Some("2026-11-20T11:00:00Z")),
                action("b", "Isolate", None, Some("2026-11-20T09:00:00.0000001")),
            ]})
            .to_string(),
        )
    })
    .await;
    let actions = containing(&defender(&server)).isolation_actions(MACHINE).await.unwrap();
    assert_eq!(ids(&actions), ["c", "b", "a", "no-time"]);
    let filter = lines(&server)[0].split_once("$filter=").unwrap().1.to_owned();
    assert!(!filter.contains('+'), "a plus is no blank everywhere: {filter}");
    let decoded: Vec<(String, String)> = url::form_urlencoded::parse(filter.as_bytes()).into_owned().collect();
    assert_eq!(decoded[0].0, format!("machineId eq '{MACHINE}' and type in ('Isolate','Unisolate')"));
}

#[rstest]
#[case("machineactions_list_ok.json", 1)]
#[case("machineactions_empty.json", 0)]
#[tokio::test]
async fn lists_of_actions_are_read(#[case] file: &'static str, #[case] expected: usize) {
    let server = service(move |_, _| answer(200, example(file))).await;
    assert_eq!(containing(&defender(&server)).isolation_actions(MACHINE).await.unwrap().len(), expected);
}

#[tokio::test]
async fn a_service_that_refuses_in_is_asked_with_or_and_not_again_with_in() {
    let server = service(|seen, _| match seen.line.contains("%20in%20") {
        true => answer(400, example("mde_error_400_bad_odata.json")),
        false => answer(200, example("machineactions_list_ok.json")),
    })
    .await;
    let defender = defender(&server);
    for _ in 0..2 {
        assert_eq!(containing(&defender).isolation_actions(MACHINE).await.unwrap().len(), 1);
    }
    let lines = lines(&server);
    assert_eq!(lines.len(), 3);
    let filters: Vec<String> = lines
        .iter()
        .map(|line| {
            url::form_urlencoded::parse(line.split_once('?').unwrap().1.as_bytes()).next().unwrap().1.into_owned()
        })
        .collect();
    let with_or = format!("machineId eq '{MACHINE}' and (type eq 'Isolate' or type eq 'Unisolate')");
    assert_eq!(filters[1..], [with_or.clone(), with_or]);
}

#[tokio::test]
async fn a_filter_that_is_refused_in_both_forms_is_an_error() {
    let server = service(|_, _| answer(400, example("mde_error_400_bad_odata.json"))).await;
    let session = containing(&defender(&server));
    for calls in [2, 4] {
        assert_eq!(session.isolation_actions(MACHINE).await.unwrap_err().status(), Some(400));
        assert_eq!(server.counts(), (1, calls));
    }
}

#[rstest]
#[case::own("/api/machineactions?page=", false)]
#[case::foreign("https://elsewhere.example/api/machineactions?page=", true)]
#[tokio::test]
async fn all_pages_of_actions_are_read_and_no_link_leads_away(#[case] link: &'static str, #[case] skips: bool) {
    let server = service(move |_, call| {
        let of_page = action(&format!("a{call}"), "Isolate", Some(MACHINE), Some("2026-11-20T09:00:00Z"));
        let mut page = json!({"value": [of_page.clone(), of_page]});
        if call < 2 {
            page["@odata.nextLink"] = json!(format!("{link}{}", call + 1));
        }
        answer(200, page.to_string())
    })
    .await;
    assert_eq!(containing(&defender(&server)).isolation_actions(MACHINE).await.unwrap().len(), 6);
    let lines = lines(&server);
    let ends: [&str; 2] = if skips { ["&$skip=2", "&$skip=4"] } else { ["?page=1", "?page=2"] };
    assert!(lines[1].ends_with(ends[0]) && lines[2].ends_with(ends[1]), "{lines:?}");
    assert_eq!(lines[1].contains("$filter=machineId"), skips);
}

#[tokio::test]
async fn a_service_that_gives_the_same_page_for_ever_is_not_asked_fifty_times() {
    let server = service(|_, _| {
        let of_page = action("a", "Isolate", Some(MACHINE), Some("2026-11-20T09:00:00Z"));
        answer(200, json!({"value": [of_page], "@odata.nextLink": "https://elsewhere.example/more"}).to_string())
    })
    .await;
    let error = containing(&defender(&server)).isolation_actions(MACHINE).await.unwrap_err();
    assert_eq!((error.kind(), server.counts()), (&Kind::TooLarge, (1, 2)));
}

#[tokio::test]
async fn a_list_of_actions_without_an_end_decides_nothing() {
    let server = service(|_, call| {
        answer(200, json!({"value": [], "@odata.nextLink": format!("/api/machineactions?page={call}")}).to_string())
    })
    .await;
    let error = containing(&defender(&server)).isolation_actions(MACHINE).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::TooLarge);
    assert_eq!(server.counts(), (1, 50));
}

// ---- open alerts

#[rstest]
#[case::all(100, Some(5), 3)]
#[case::exactly(5, Some(5), 3)]
#[case::capped(3, Some(3), 2)]
#[case::one(1, Some(1), 1)]
#[tokio::test]
async fn open_alerts_are_counted_up_to_a_cap(
    #[case] cap: usize,
    #[case] expected: Option<usize>,
    #[case] pages: usize,
) {
    let server = service(|_, call| {
        let statuses =
            [[json!("New"), json!("Resolved")], [json!("InProgress"), json!(null)], [json!("Unknown"), json!("Other")]];
        let alerts: Vec<Value> = statuses[call].iter().map(|status| json!({"id": "da1", "status": status})).collect();
        let next = (call < 2).then(|| format!("/api/machines/{MACHINE}/alerts?$skip={}", call + 1));
        answer(200, json!({"value": alerts, "@odata.nextLink": next}).to_string())
    })
    .await;
    assert_eq!(containing(&defender(&server)).open_alerts(MACHINE, cap).await.unwrap(), expected);
    assert_eq!(lines(&server)[0], format!("GET /api/machines/{MACHINE}/alerts"));
    assert_eq!(server.counts(), (1, pages));
}

#[tokio::test]
async fn alerts_of_an_unknown_machine_are_not_none_open() {
    let server = service(|_, call| match call {
        0 => answer(404, example("mde_error_404_machine.json")),
        // Its link leads to another server.
        1 => answer(200, example("machine_alerts_ok.json")),
        2 | 3 => answer(200, example("alerts_empty.json")),
        _ => answer(400, example("mde_error_400_invalid_body.json")),
    })
    .await;
    let session = containing(&defender(&server));
    assert_eq!(session.open_alerts(MACHINE, 9).await.unwrap(), None);
    assert_eq!(session.open_alerts(MACHINE, 9).await.unwrap(), Some(1));
    assert_eq!(session.open_alerts(MACHINE, 9).await.unwrap(), Some(0));
    assert_eq!(session.open_alerts(MACHINE, 9).await.unwrap_err().family(), Family::Alerts);
}

// ---- against the simulator

/// Waits without an end are failures.
const PATIENCE: Duration = Duration::from_secs(20);

struct Lab {
    simulator: Simulator,
    defender: Defender,
}

impl Lab {
    async fn start() -> Self {
        let simulator = Simulator::start(defender_bridge::simulator::Settings::default()).await.unwrap();
        let url: url::Url = simulator.url().parse().unwrap();
        let settings = Settings {
            entra_url: url.clone(),
            defender_url: url.clone(),
            graph_url: url,
            retry: Policy { first: Duration::from_millis(1), cap: Duration::from_millis(2), tries: 6 },
            ..Settings::default()
        };
        Self { simulator, defender: Defender::new(settings, Outbound::new().unwrap()) }
    }

    fn control(&self) -> &Control {
        self.simulator.control()
    }

    fn session(&self) -> Session {
        let credentials = Credentials {
            tenant_id: DEMO_TENANT_ID.to_owned(),
            client_id: DEMO_CLIENT_ID.to_owned(),
            proof: SecretString::from(DEMO_CLIENT_SECRET).into(),
        };
        self.defender.session(credentials, Instant::now() + Duration::from_secs(60), Limits::containment())
    }

    async fn ended(&self, action: &str) -> MachineAction {
        let ended = self.control().action_ended(DEMO_TENANT_ID, action);
        tokio::time::timeout(PATIENCE, ended).await.expect("the action ends");
        self.session().machine_action(action).await.unwrap().expect("the action is known")
    }
}

#[tokio::test]
async fn a_machine_is_found_isolated_followed_and_released() {
    let lab = Lab::start().await;
    let session = lab.session();
    let hour_ago = lab.control().now() - SignedDuration::from_mins(60);
    let found = session.find_by_ip([192, 0, 2, 63].into(), hour_ago).await.unwrap();
    assert_eq!(found.iter().map(|machine| machine.id.as_str()).collect::<Vec<_>>(), [ENGINEERING_WORKSTATION]);
    let too_old = lab.control().now() - SignedDuration::from_hours(31 * 24);
    assert_eq!(session.find_by_ip([192, 0, 2, 63].into(), too_old).await.unwrap_err().status(), Some(400));
    let named = session.machines_named("ENG-ws-03").await.unwrap();
    assert_eq!(named, found);
    assert_eq!(session.machines_named("eng-ws-03.corp.example").await.unwrap(), found);
    assert_eq!(session.machines_named("eng-ws").await.unwrap(), []);
    assert_eq!(session.open_alerts(FINANCE_WORKSTATION, 1).await.unwrap(), Some(1));
    assert_eq!(session.open_alerts(UNKNOWN_MACHINE, 1).await.unwrap(), None);
    assert_eq!(session.isolation_actions(ENGINEERING_WORKSTATION).await.unwrap(), []);

    let isolate = session.isolate(ENGINEERING_WORKSTATION, IsolationType::Full, COMMENT).await.unwrap();
    assert!(!isolate.is_final());
    assert!(lab.ended(&isolate.id).await.has_succeeded());
    assert!(lab.control().isolation(DEMO_TENANT_ID, ENGINEERING_WORKSTATION).isolated);
    let release = session.unisolate(ENGINEERING_WORKSTATION, COMMENT).await.unwrap();
    let open = session.isolate(ENGINEERING_WORKSTATION, IsolationType::Full, COMMENT).await.unwrap_err();
    assert!(open.is_already_in_progress() && !open.may_have_happened());
    assert!(lab.ended(&release.id).await.has_succeeded());
    assert!(!lab.control().isolation(DEMO_TENANT_ID, ENGINEERING_WORKSTATION).isolated);
    for refuse_in in [false, true] {
        lab.control().set_action_behaviour(ActionBehaviour { refuse_in, ..ActionBehaviour::default() });
        let actions = session.isolation_actions(ENGINEERING_WORKSTATION).await.unwrap();
        assert_eq!(ids(&actions), [&release.id, &isolate.id]);
        assert_eq!(actions[0].requestor_comment.as_deref(), Some(COMMENT));
        assert!(actions.iter().all(|action| action.updated() > action.created()));
    }
    lab.control().set_page_size(Some(1));
    assert_eq!(session.isolation_actions(ENGINEERING_WORKSTATION).await.unwrap().len(), 2);
    lab.control().set_foreign_next_link(Some("https://elsewhere.example"));
    assert_eq!(session.isolation_actions(ENGINEERING_WORKSTATION).await.unwrap().len(), 2);
}

#[rstest]
#[case::cut(Fault::cut(), true)]
#[case::reset(Fault::Reset, true)]
#[case::server_error(Fault::refuse(500), true)]
#[case::gateway_timeout(Fault::refuse(504), true)]
#[case::half_an_answer(Fault::MalformedJson, true)]
#[case::throttled(Fault::throttle(None), false)]
#[tokio::test]
async fn what_an_applied_post_did_is_found_by_looking(#[case] fault: Fault, #[case] unknown: bool) {
    let lab = Lab::start().await;
    let session = lab.session();
    // The last case is the control: it is not applied, so it is made again.
    let fault = if unknown { Fault::applied(fault) } else { fault };
    lab.control().fail_next("machines/{id}/isolate", fault, 1);
    let answer = session.isolate(FINANCE_WORKSTATION, IsolationType::Full, COMMENT).await;
    assert_eq!(answer.is_err_and(|error| error.may_have_happened()), unknown);
    let actions = session.isolation_actions(FINANCE_WORKSTATION).await.unwrap();
    assert_eq!(actions.len(), 1);
    assert_eq!(actions[0].requestor_comment.as_deref(), Some(COMMENT));
    let posts = lab.control().action_posts(DEMO_TENANT_ID);
    assert_eq!(
        posts.iter().map(|post| (post.kind, post.duplicate)).collect::<Vec<_>>(),
        [(ActionKind::Isolate, false)]
    );
    // The same fault without having been applied leaves nothing behind.
    lab.control().fail_next("machines/{id}/isolate", Fault::Reset, 1);
    let error = session.isolate(HR_WORKSTATION, IsolationType::Full, COMMENT).await.unwrap_err();
    assert!(error.may_have_happened());
    assert_eq!(session.isolation_actions(HR_WORKSTATION).await.unwrap(), []);
}

#[tokio::test]
async fn an_action_can_be_cancelled_and_can_fail() {
    let lab = Lab::start().await;
    let session = lab.session();
    lab.control().set_machine_offline(DEMO_TENANT_ID, FINANCE_WORKSTATION, true);
    let waiting = session.isolate(FINANCE_WORKSTATION, IsolationType::Full, COMMENT).await.unwrap();
    let cancelled = session.cancel(&waiting.id, "not so").await.unwrap();
    assert_eq!((cancelled.id.as_str(), cancelled.status.as_str()), (waiting.id.as_str(), "Cancelled"));
    let again = session.cancel(&waiting.id, "not so").await.unwrap_err();
    assert_eq!((again.status(), again.may_have_happened()), (Some(400), false));
    lab.control().next_action_ends(DEMO_TENANT_ID, HR_WORKSTATION, Outcome::Failed);
    let failing = session.isolate(HR_WORKSTATION, IsolationType::Selective, COMMENT).await.unwrap();
    let failed = lab.ended(&failing.id).await;
    assert!(failed.is_final() && !failed.has_succeeded());
    assert!(!lab.control().isolation(DEMO_TENANT_ID, HR_WORKSTATION).isolated);
}
