//! The clients of Entra, Defender and Graph against a scripted server: tokens, retries, caches, paging, hunting; what
//! isolates and releases machines also against the simulator.

mod batching;
mod certificates;
mod circuits;
mod containment;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use defender_bridge::defender::model::{Adapter, DeviceContext, Event, File};
use defender_bridge::defender::{
    Audience, Credentials, Defender, DefenderError, Family, Kind, Limits, Permits, Purpose, Session, Settings, Sort,
    Sought,
};
use defender_bridge::outbound::Outbound;
use defender_bridge::retry::Policy;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use rstest::rstest;
use secrecy::SecretString;
use tokio::sync::{Barrier, Notify};
use tokio::time::Instant;

use crate::scripted::{Reply, Scripted, Seen, answer, answer_with, cut_answer, example};

const SECRET: &str = "planted~secret&with=signs+/%";
/// A deadline that is waited for; long enough for a busy machine to get as far as the test wants.
const SOON: Duration = Duration::from_secs(1);
const SHA1: &str = "0123456789abcdef0123456789abcdef01234567";
const SHA1_B: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn machine_id(n: usize) -> String {
    format!("{n:040x}")
}

fn settings(server: &Scripted) -> Settings {
    Settings {
        entra_url: server.url.clone(),
        defender_url: server.url.clone(),
        graph_url: server.url.clone(),
        retry: Policy { first: Duration::from_millis(1), cap: Duration::from_millis(2), tries: 6 },
        ..Settings::default()
    }
}

fn defender(server: &Scripted) -> Defender {
    Defender::new(settings(server), Outbound::new().unwrap())
}

fn credentials(secret: &str) -> Credentials {
    Credentials {
        tenant_id: "contoso.example".to_owned(),
        client_id: "client-1".to_owned(),
        proof: SecretString::from(secret).into(),
    }
}

fn session_until(defender: &Defender, deadline: Instant) -> Session {
    defender.session(credentials(SECRET), deadline, Limits::default())
}

fn session(defender: &Defender) -> Session {
    session_until(defender, Instant::now() + Duration::from_secs(60))
}

/// A server that gives tokens `token-1`, `token-2`, ... and answers everything else by `api`, which is told how many
/// such requests came before.
async fn service(api: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Scripted {
    let (tokens, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Scripted::start(move |seen| {
        let reply = if seen.is_token() { token(&tokens) } else { api(&seen, calls.fetch_add(1, Ordering::SeqCst)) };
        async { reply }
    })
    .await
}

fn token(given: &AtomicUsize) -> Reply {
    let number = given.fetch_add(1, Ordering::SeqCst) + 1;
    answer(200, format!(r#"{{"token_type":"Bearer","expires_in":3599,"access_token":"token-{number}"}}"#))
}

/// The requests that were not for tokens.
fn calls(server: &Scripted) -> Vec<Seen> {
    server.seen().into_iter().filter(|seen| !seen.is_token()).collect()
}

fn lines(server: &Scripted) -> Vec<String> {
    calls(server).into_iter().map(|seen| seen.line).collect()
}

fn query_of(seen: &Seen) -> String {
    let body: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
    body["Query"].as_str().unwrap().to_owned()
}

// ---- tokens

#[tokio::test]
async fn fifty_lookups_at_once_cost_one_token() {
    let server = service(|_, _| answer(200, "{}")).await;
    let defender = defender(&server);
    let lookups = (0..50).map(|n| {
        let session = session(&defender);
        tokio::spawn(async move { session.machine(&machine_id(n)).await })
    });
    for lookup in join_all(lookups).await {
        lookup.unwrap().unwrap();
    }
    assert_eq!(server.counts(), (1, 50));
}

#[tokio::test]
async fn a_token_is_asked_for_as_documented() {
    let server = service(|_, _| answer(200, example("machine_ok.json"))).await;
    let session = session(&defender(&server));
    session.machine(&machine_id(1)).await.unwrap();
    session.hunting_probe().await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].line, "POST /contoso.example/oauth2/v2.0/token");
    assert_eq!(seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(
        seen[0].body,
        "grant_type=client_credentials&client_id=client-1&client_secret=planted%7Esecret%26with%3Dsigns%2B%2F%25\
         &scope=https%3A%2F%2Fapi.securitycenter.microsoft.com%2F.default"
    );
    assert_eq!(seen[1].line, format!("GET /api/machines/{}", machine_id(1)));
    assert_eq!(seen[1].header("authorization"), Some("Bearer token-1"));
    // Graph has a token of its own.
    assert!(seen[2].body.ends_with("&scope=https%3A%2F%2Fgraph.microsoft.com%2F.default"), "{}", seen[2].body);
    assert_eq!(seen[3].line, "POST /v1.0/security/runHuntingQuery");
    assert_eq!(seen[3].header("authorization"), Some("Bearer token-2"));
    assert_eq!(seen[3].header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn another_secret_never_sees_what_was_kept_for_the_right_one() {
    let server = service(|_, _| answer(200, example("machine_ok.json"))).await;
    let defender = defender(&server);
    let deadline = Instant::now() + Duration::from_secs(60);
    for secret in ["right", "wrong", "right"] {
        let session = defender.session(credentials(secret), deadline, Limits::default());
        session.machine(&machine_id(1)).await.unwrap();
    }
    assert_eq!(server.counts(), (2, 2));
}

#[rstest]
#[case::expired(401, "mde_error_401.json")]
#[case::permission_granted_meanwhile(403, "mde_error_403_missing_role.json")]
#[tokio::test]
async fn a_refused_token_is_renewed_and_the_call_repeated_once(#[case] status: u16, #[case] body: &'static str) {
    let server = service(move |seen, _| match seen.header("authorization") {
        Some("Bearer token-1") => answer(status, example(body)),
        _ => answer(200, example("machine_ok.json")),
    })
    .await;
    let machine = session(&defender(&server)).machine(&machine_id(1)).await.unwrap().unwrap();
    assert!(!machine.id.is_empty());
    assert_eq!(server.counts(), (2, 2));
}

#[tokio::test]
async fn calls_refused_side_by_side_share_the_renewal() {
    // No call is answered before all five are there with the first token.
    let (tokens, all_there) = (AtomicUsize::new(0), Arc::new(Barrier::new(5)));
    let server = Scripted::start(move |seen| {
        let token = seen.is_token().then(|| token(&tokens));
        let all_there = Arc::clone(&all_there);
        async move {
            match (token, seen.header("authorization")) {
                (Some(token), _) => token,
                (None, Some("Bearer token-1")) => {
                    all_there.wait().await;
                    answer(401, "")
                }
                _ => answer(200, "{}"),
            }
        }
    })
    .await;
    let session = session(&defender(&server));
    let lookups = (0..5).map(|n| {
        let session = session.clone();
        async move { session.machine(&machine_id(n)).await }
    });
    for machine in join_all(lookups).await {
        machine.unwrap();
    }
    assert_eq!(server.counts(), (2, 10));
}

#[tokio::test]
async fn a_permission_that_is_really_missing_costs_one_renewal_for_a_request() {
    let server = service(|_, _| answer(403, example("mde_error_403_missing_role.json"))).await;
    let session = session(&defender(&server));
    let error = session.machine(&machine_id(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.family(), error.status()), (&Kind::Forbidden, Family::Machines, Some(403)));
    assert_eq!(error.family().permission(), Some("Machine.Read.All"));
    assert_eq!(server.counts(), (2, 2));
    session.file(SHA1).await.unwrap_err();
    assert_eq!(server.counts(), (2, 3));
}

#[tokio::test]
async fn a_missing_licence_is_not_a_matter_of_tokens() {
    let server = service(|_, _| answer(401, example("mde_error_401_no_license.json"))).await;
    let error = session(&defender(&server)).machine(&machine_id(1)).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::Unauthorized);
    assert_eq!(error.detail(), Some("Unauthorized request - reason of failure: No Tvm license"));
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn a_refused_secret_is_reported_at_once_and_remembered() {
    let server = Scripted::start(|seen| async move {
        if seen.body.contains("client_secret=wrong") {
            answer(401, example("token_error_7000215_bad_secret.json"))
        } else {
            answer(200, example("token_v2_ok.json"))
        }
    })
    .await;
    let defender = defender(&server);
    let deadline = Instant::now() + Duration::from_secs(60);
    let wrong = defender.session(credentials("wrong"), deadline, Limits::default());
    for _ in 1..=2 {
        let error = wrong.machine(&machine_id(1)).await.unwrap_err();
        let Kind::TokenRefused { description: Some(description) } = error.kind() else { panic!("{error:?}") };
        assert!(description.starts_with("AADSTS7000215:"), "{description}");
        assert_eq!(error.family(), Family::Token(Audience::Defender));
        assert_eq!(server.counts(), (1, 0));
    }
}

#[tokio::test]
async fn a_busy_directory_is_asked_again() {
    let asked = AtomicUsize::new(0);
    let server = Scripted::start(move |seen| {
        let busy = seen.is_token() && asked.fetch_add(1, Ordering::SeqCst) < 2;
        async move {
            match busy {
                true => answer(400, example("token_error_90033_unavailable.json")),
                false => answer(200, example("token_v2_ok.json")),
            }
        }
    })
    .await;
    session(&defender(&server)).roles(Audience::Graph).await.unwrap();
    assert_eq!(server.counts(), (3, 0));
}

#[tokio::test]
async fn a_tenant_cannot_name_another_path() {
    let server = service(|_, _| answer(200, "{}")).await;
    let defender = defender(&server);
    let deadline = Instant::now() + Duration::from_secs(60);
    let with_tenant = |tenant: &str| {
        let credentials = Credentials { tenant_id: tenant.to_owned(), ..credentials(SECRET) };
        defender.session(credentials, deadline, Limits::default())
    };
    let error = with_tenant("..").machine(&machine_id(1)).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::TokenTenantUnknown);
    assert!(server.seen().is_empty());
    with_tenant("a/../b?c#d").machine(&machine_id(1)).await.unwrap();
    assert_eq!(server.seen()[0].line, "POST /a%2F..%2Fb%3Fc%23d/oauth2/v2.0/token");
}

#[tokio::test]
async fn roles_are_read_from_the_token() {
    use base64::Engine as _;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(example("token_claims.json"));
    let body = format!(r#"{{"expires_in":"3599","access_token":"e30.{claims}.s"}}"#);
    let server = Scripted::start(move |_| {
        let reply = answer(200, &body);
        async { reply }
    })
    .await;
    let claims = session(&defender(&server)).roles(Audience::Defender).await.unwrap();
    assert_eq!(claims.audience.as_deref(), Some("https://api.securitycenter.microsoft.com"));
    assert!(claims.roles.contains(&"Alert.Read.All".to_owned()), "{claims:?}");
}

// ---- answers, retries, time

#[tokio::test]
async fn profiles_are_read_and_kept_also_when_there_is_none() {
    let server = service(|seen, _| match seen.line.as_str() {
        line if line.ends_with(SHA1) => answer(200, example("file_ok.json")),
        line if line.ends_with(SHA1_B) => answer(404, example("mde_error_404_file.json")),
        line if line.contains("/machines/") => answer(404, example("mde_error_404_machine.json")),
        _ => answer(200, example("file_ok_sparse.json")),
    })
    .await;
    let defender = defender(&server);
    for _ in 0..2 {
        let session = session(&defender);
        let file: File = session.file(SHA1).await.unwrap().unwrap();
        assert!(file.sha1.is_some() && file.sha256.is_some(), "{file:?}");
        assert_eq!(session.file(SHA1_B).await.unwrap(), None);
        assert!(session.file(&"0".repeat(64)).await.unwrap().is_some());
        assert_eq!(session.machine(&machine_id(3)).await.unwrap(), None);
    }
    assert_eq!(server.counts(), (1, 4));
}

#[tokio::test]
async fn one_profile_answers_for_both_of_its_hashes() {
    let sha256 = "ab".repeat(32);
    let profile = format!(r#"{{"sha1": "{}", "sha256": "{sha256}"}}"#, SHA1.to_uppercase());
    let server = service(move |_, _| answer(200, &profile)).await;
    let defender = defender(&server);
    let by_sha256 = session(&defender).file(&"ab".repeat(32)).await.unwrap();
    let by_sha1 = session(&defender).file(SHA1).await.unwrap();
    assert_eq!(by_sha1, by_sha256);
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn the_same_lookup_at_the_same_time_is_one_call() {
    let (tokens, go) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let opener = Arc::clone(&go);
    let server = Scripted::start(move |seen| {
        let token = seen.is_token().then(|| token(&tokens));
        let go = Arc::clone(&go);
        async move {
            let Some(token) = token else {
                go.notified().await;
                return answer(200, example("machine_ok.json"));
            };
            token
        }
    })
    .await;
    let defender = defender(&server);
    let lookups = join_all((0..20).map(|_| {
        let session = session(&defender);
        async move { session.machine(&machine_id(1)).await }
    }));
    // All twenty are waiting when the answer is let go, because they are polled together before the server is.
    let (machines, ()) = tokio::join!(lookups, async { opener.notify_one() });
    assert!(machines.into_iter().all(|machine| machine.unwrap().is_some()));
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn failures_are_not_kept() {
    let server = service(|_, call| match call {
        0 => answer(400, example("mde_error_400_invalid_hash.json")),
        _ => answer(200, example("file_ok.json")),
    })
    .await;
    let session = session(&defender(&server));
    let error = session.file(SHA1).await.unwrap_err();
    assert_eq!((error.kind(), error.is_transient()), (&Kind::InvalidRequest, false));
    assert!(session.file(SHA1).await.unwrap().is_some());
}

#[rstest]
#[case::throttled(|| answer_with(429, "retry-after: 0\r\n", example("mde_error_429_quota.json")))]
#[case::internal_error(|| answer(500, example("mde_error_500.json")))]
#[case::html_of_a_proxy(|| answer_with(502, "content-type: text/html\r\n", "<html>Bad gateway</html>"))]
#[case::lost_connection(|| Reply::Bytes(Vec::new()))]
#[case::cut_body(|| cut_answer(200, "{\"id\":\"1"))]
#[case::body_that_just_ends(|| answer(200, "{\"id\":\"1"))]
#[case::empty_body(|| answer(200, ""))]
#[tokio::test]
async fn what_may_pass_is_tried_again(#[case] failing: fn() -> Reply) {
    let server = service(move |_, call| match call {
        0..3 => failing(),
        _ => answer(200, example("machine_ok.json")),
    })
    .await;
    assert!(session(&defender(&server)).machine(&machine_id(1)).await.unwrap().is_some());
    assert_eq!(server.counts(), (1, 4));
}

#[rstest]
#[case::redirect(|| answer_with(302, "location: /elsewhere\r\n", ""), Kind::BadGateway, 1)]
#[case::html_on_success(|| answer(200, "<html>sign in</html>"), Kind::BadGateway, 1)]
#[case::list_on_success(|| answer(200, "[]"), Kind::BadGateway, 1)]
#[case::bad_request(|| answer(400, ""), Kind::InvalidRequest, 1)]
#[case::conflict(|| answer(409, "{}"), Kind::InvalidRequest, 1)]
#[case::throttled_for_good(|| answer(429, ""), Kind::Throttled { hunting: false }, 6)]
#[case::broken_for_good(|| answer(500, ""), Kind::ServerError, 6)]
#[case::unavailable_for_good(|| answer(503, ""), Kind::BadGateway, 6)]
#[case::gone_for_good(|| Reply::Bytes(Vec::new()), Kind::Connect, 6)]
#[tokio::test]
async fn failures_have_a_kind_and_a_number_of_tries(
    #[case] failing: fn() -> Reply,
    #[case] kind: Kind,
    #[case] tries: usize,
) {
    let server = service(move |_, _| failing()).await;
    let error = session(&defender(&server)).machine(&machine_id(1)).await.unwrap_err();
    assert_eq!(error.kind(), &kind);
    assert_eq!(error.family(), Family::Machines);
    assert!(!error.is_out_of_time());
    assert_eq!(server.counts(), (1, tries));
}

#[tokio::test]
async fn a_retry_after_past_the_deadline_is_reported_at_once() {
    let server = service(|_, _| answer_with(429, "retry-after: 300\r\n", "")).await;
    let error = session(&defender(&server)).machine(&machine_id(1)).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::Throttled { hunting: false });
    assert_eq!(error.retry_after(), Some(Duration::from_secs(300)));
    assert!(error.is_out_of_time() && error.is_transient());
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_at_the_deadline() {
    let server = service(|_, _| Reply::Hang).await;
    let session = session_until(&defender(&server), Instant::now() + SOON);
    let error = session.machine(&machine_id(1)).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::Deadline);
    assert!(error.is_out_of_time());
    let (_, failure) = session.device_contexts(&[machine_id(1)]).await;
    assert_eq!(failure.unwrap().kind(), &Kind::Deadline);
    assert_eq!(server.counts(), (1, 1));
}

#[tokio::test]
async fn a_deadline_during_a_retry_reports_the_failure_before_it() {
    let server = service(|_, call| if call == 0 { answer(503, "") } else { Reply::Hang }).await;
    let session = session_until(&defender(&server), Instant::now() + SOON);
    let error = session.machine(&machine_id(1)).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::BadGateway);
    assert!(error.is_out_of_time());
    assert_eq!(server.counts(), (1, 2));
}

#[tokio::test]
async fn a_caller_with_more_time_is_not_let_down_by_one_with_less() {
    let server = service(|_, call| if call == 0 { Reply::Hang } else { answer(200, "{}") }).await;
    let defender = defender(&server);
    let hasty = session_until(&defender, Instant::now() + SOON);
    let patient = session(&defender);
    let id = machine_id(1);
    // The first one fetches, the second one waits for it.
    let (first, second) = tokio::join!(biased; hasty.machine(&id), patient.machine(&id));
    assert_eq!(first.unwrap_err().kind(), &Kind::Deadline);
    assert!(second.unwrap().is_some());
    assert_eq!(server.counts(), (1, 2));
}

#[tokio::test]
async fn a_server_with_an_unknown_certificate_is_told_from_one_without_tls() {
    let server = Scripted::start_tls(|_| async { answer(200, "{}") }).await;
    let error = session(&defender(&server)).machine(&machine_id(1)).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Certificate { reason } if !reason.is_empty()), "{error:?}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn at_most_five_calls_of_a_request_are_in_flight() {
    let (tokens, five, now, most) =
        (AtomicUsize::new(0), Arc::new(Barrier::new(5)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen_most = Arc::clone(&most);
    let server = Scripted::start(move |seen| {
        let token = seen.is_token().then(|| token(&tokens));
        let (five, now, most) = (Arc::clone(&five), Arc::clone(&now), Arc::clone(&most));
        async move {
            let Some(token) = token else {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Nobody is answered before there are five.
                five.wait().await;
                now.fetch_sub(1, Ordering::SeqCst);
                return answer(200, "{}");
            };
            token
        }
    })
    .await;
    let session = session(&defender(&server));
    let lookups = (0..20).map(|n| {
        let session = session.clone();
        async move { session.machine(&machine_id(n)).await }
    });
    assert!(join_all(lookups).await.into_iter().all(|machine| machine.is_ok()));
    assert_eq!(seen_most.load(Ordering::SeqCst), 5);
}

#[derive(Default)]
struct Desk {
    asked: Mutex<Vec<(String, String, Family)>>,
    throttled: Mutex<Vec<(Family, Option<Duration>)>>,
}

impl Permits for Desk {
    fn permit<'a>(
        &'a self,
        tenant: &'a str,
        client: &'a str,
        family: Family,
        _: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>> {
        self.asked.lock().unwrap().push((tenant.to_owned(), client.to_owned(), family));
        let refused = family == Family::Files;
        async move { if refused { Err(Duration::from_secs(3600)) } else { Ok(until) } }.boxed()
    }

    fn throttled(&self, tenant: &str, client: &str, family: Family, retry_after: Option<Duration>) {
        assert_eq!((tenant, client), ("contoso.example", "client-1"));
        self.throttled.lock().unwrap().push((family, retry_after));
    }
}

#[tokio::test]
async fn each_try_asks_for_a_permit_first() {
    let server = service(|_, call| if call == 0 { answer(503, "") } else { answer(200, "{}") }).await;
    let desk = Arc::new(Desk::default());
    let session = session(&defender(&server).with_permits(desk.clone()));
    session.machine(&machine_id(1)).await.unwrap();
    let error = session.file(SHA1).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::Throttled { hunting: false });
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    let families: Vec<Family> = desk.asked.lock().unwrap().iter().map(|(_, _, family)| *family).collect();
    assert_eq!(families, [Family::Token(Audience::Defender), Family::Machines, Family::Machines, Family::Files]);
    assert_eq!(desk.asked.lock().unwrap()[0].0, "contoso.example");
    assert_eq!(server.counts(), (1, 2));
}

#[tokio::test]
async fn the_quota_hears_of_every_429_of_the_service_and_of_nothing_else() {
    let server = service(|_, call| match call {
        0 => answer_with(429, "retry-after: 0\r\n", example("mde_error_429_quota.json")),
        1 => answer(503, ""),
        _ => answer(200, "{}"),
    })
    .await;
    let desk = Arc::new(Desk::default());
    let session = session(&defender(&server).with_permits(desk.clone()));
    session.machine(&machine_id(1)).await.unwrap();
    session.file(SHA1).await.unwrap_err();
    let told = desk.throttled.lock().unwrap().clone();
    assert_eq!(told, [(Family::Machines, Some(Duration::ZERO))]);
}

#[tokio::test]
async fn values_that_are_not_of_their_kind_are_never_sent() {
    let server = service(|_, _| answer(200, "{}")).await;
    let session = session(&defender(&server));
    let refused: [Result<(), DefenderError>; 6] = [
        session.file("../machines").await.map(drop),
        session.machine("ws-17.example.com").await.map(drop),
        session.file_alerts(&"0".repeat(64), 1).await.map(drop),
        session.domain_alerts("a/b", 1).await.map(drop),
        session.ip_alerts("192.0.2.999", 1).await.map(drop),
        session.events(&sought(Sort::Ip, &["x\" or true //"], 1)).await.remove(0).map(drop),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), &Kind::InvalidValue);
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn no_debug_output_shows_the_secret() {
    let server = service(|_, _| answer(403, "")).await;
    let defender = defender(&server);
    let session = session(&defender);
    let error = session.machine(&machine_id(1)).await.unwrap_err();
    let shown = format!("{defender:?} {session:?} {:?} {error:?} {error}", credentials(SECRET));
    assert!(!shown.contains("planted") && !shown.contains("token-"), "{shown}");
}

// ---- alerts and health

#[tokio::test]
async fn alerts_are_read_for_every_kind_of_observable() {
    let server = service(|seen, _| {
        answer(
            200,
            match seen.line.as_str() {
                line if line.starts_with("GET /api/files/") => example("file_alerts_ok.json"),
                line if line.starts_with("GET /api/domains/") => example("domain_alerts_ok.json"),
                _ => example("ip_alerts_ok.json"),
            },
        )
    })
    .await;
    let session = session(&defender(&server));
    for found in [
        session.file_alerts(SHA1, 100).await,
        session.domain_alerts("bad.example.com", 100).await,
        session.ip_alerts("203.0.113.7", 100).await,
        session.ip_alerts("2001:db8::7", 100).await,
    ] {
        let found = found.unwrap();
        assert!(!found.alerts.is_empty() && !found.more);
        assert!(found.alerts.iter().all(|alert| !alert.id.is_empty()));
    }
    assert_eq!(
        lines(&server),
        [
            &format!("GET /api/files/{SHA1}/alerts"),
            "GET /api/domains/bad.example.com/alerts",
            "GET /api/ips/203.0.113.7/alerts",
            "GET /api/ips/2001%3Adb8%3A%3A7/alerts",
        ]
    );
}

#[rstest]
#[case::empty(200, "{\"value\":[]}")]
#[case::null(200, "{\"value\":null}")]
#[case::missing(200, "{}")]
#[case::empty_link(200, "{\"value\":[],\"@odata.nextLink\":\"\"}")]
#[case::not_found(404, "")]
#[case::refused(400, "{\"error\":{\"code\":\"InvalidIpAddress\",\"message\":\"no\"}}")]
#[tokio::test]
async fn there_are_ways_to_say_that_there_are_no_alerts(#[case] status: u16, #[case] body: &'static str) {
    let server = service(move |_, _| answer(status, body)).await;
    let session = session(&defender(&server));
    for ip in ["203.0.113.7", "2001:db8::7"] {
        let found = session.ip_alerts(ip, 100).await.unwrap();
        assert!(found.alerts.is_empty() && !found.more);
    }
    assert_eq!(server.counts(), (1, 2));
}

fn page(ids: std::ops::Range<usize>, next: Option<String>) -> Reply {
    let alerts: Vec<_> = ids.map(|id| serde_json::json!({"id": format!("da{id}_1")})).collect();
    answer(200, serde_json::json!({"value": alerts, "@odata.nextLink": next}).to_string())
}

fn host(seen: &Seen) -> String {
    format!("http://{}", seen.header("host").unwrap())
}

#[rstest]
#[case::all_are_wanted(100, 30, false, 3)]
#[case::just_all_are_wanted(30, 30, false, 3)]
#[case::one_more_is_there_and_was_read(29, 30, false, 3)]
#[case::the_second_page_is_enough(15, 20, true, 2)]
#[case::a_full_page_needs_a_look_at_the_next(10, 20, true, 2)]
#[case::the_first_page_is_enough(9, 10, true, 1)]
#[tokio::test]
async fn pages_are_followed_as_far_as_needed(
    #[case] want: usize,
    #[case] read: usize,
    #[case] more: bool,
    #[case] pages: usize,
) {
    let server = service(|seen, _| match seen.line.as_str() {
        line if line.ends_with("skip=10") => page(10..20, Some(format!("{}/api/next?skip=20", host(seen)))),
        line if line.ends_with("skip=20") => page(20..30, None),
        // Relative links are links as well.
        _ => page(0..10, Some("/api/next?skip=10".to_owned())),
    })
    .await;
    let found = session(&defender(&server)).file_alerts(SHA1, want).await.unwrap();
    assert_eq!((found.alerts.len(), found.more), (read, more));
    assert_eq!(server.counts(), (1, pages));
}

#[tokio::test]
async fn a_next_page_on_another_server_gets_no_token() {
    let elsewhere = service(|_, _| page(0..1, None)).await;
    let link = elsewhere.url.join("/api/next").unwrap().to_string();
    let server = service(move |_, _| page(0..1, Some(link.clone()))).await;
    let found = session(&defender(&server)).file_alerts(SHA1, 100).await.unwrap();
    assert_eq!((found.alerts.len(), found.more), (1, true));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn endless_pages_end() {
    let server = service(|_, call| page(call..call + 1, Some(format!("/api/next?skip={call}")))).await;
    let found = session(&defender(&server)).domain_alerts("bad.example.com", 100).await.unwrap();
    assert_eq!((found.alerts.len(), found.more), (50, true));
    let itself = service(|_, _| page(0..1, Some("/api/domains/bad.example.com/alerts".to_owned()))).await;
    session(&defender(&itself)).domain_alerts("bad.example.com", 100).await.unwrap();
    assert_eq!(itself.counts(), (1, 1));
}

#[rstest]
#[case::machines(200, "machines_list_ok.json")]
#[case::none(200, "machines_empty.json")]
#[case::none_of_late(404, "mde_error_404_machines_none.json")]
#[tokio::test]
async fn machines_can_be_read_even_when_there_are_none(#[case] status: u16, #[case] body: &'static str) {
    let server = service(move |_, _| answer(status, example(body))).await;
    session(&defender(&server)).machines_top1().await.unwrap();
    assert_eq!(lines(&server), ["GET /api/machines?$top=1"]);
}

// ---- hunting

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn sought(sort: Sort, values: &[&str], top: usize) -> Vec<Sought> {
    values.iter().map(|value| Sought { sort, value: (*value).to_owned(), top }).collect()
}

/// The times of the events.
fn times(events: &Result<Vec<Event>, DefenderError>) -> Vec<&str> {
    let events = events.as_ref().unwrap().iter();
    let times = events.map(|event| match event {
        Event::File(event) => event.timestamp.as_str(),
        Event::Network(event) => event.timestamp.as_str(),
    });
    times.collect()
}

#[tokio::test]
async fn hunting_answers_every_value_with_its_rows_newest_first() {
    let server = service(|_, _| answer(200, example("hunting_network_ip_ok.json"))).await;
    let session = session(&defender(&server));
    let ips = ["203.0.113.7", "2001:db8::7", "192.0.2.1", "::ffff:203.0.113.7", "nonsense"];
    let found = session.events(&sought(Sort::Ip, &ips, 100)).await;
    assert_eq!(times(&found[0]), ["2026-11-20T07:10:01.1Z", "2026-11-20T07:00:00Z"]);
    assert!(matches!(found[0].as_ref().unwrap()[0], Event::Network(_)));
    assert_eq!(times(&found[3]), times(&found[0]));
    assert_eq!((times(&found[1]).len(), times(&found[2]).len()), (1, 0));
    assert_eq!(found[4].as_ref().unwrap_err().kind(), &Kind::InvalidValue);
    assert_eq!((found.len(), server.counts()), (5, (1, 1)));
    let query = query_of(&calls(&server)[0]);
    assert!(query.contains("| partition hint.strategy=native by Observable"), "{query}");
    assert!(!query.contains("nonsense"), "{query}");
}

#[tokio::test]
async fn all_values_of_a_request_share_one_query() {
    let server = service(|_, _| answer(200, example("hunting_file_events_ok.json"))).await;
    let session = session(&defender(&server));
    let mut all = sought(Sort::Sha1, &[SHA1, SHA1_B], 7);
    all.extend(sought(Sort::Md5, &["0123456789abcdef0123456789abcdef"], 3));
    all.extend(sought(Sort::Ip, &["203.0.113.7"], 0));
    all.extend(sought(Sort::Domain, &["bad.example.com"], 5));
    let found = session.events(&all).await;
    assert!(found.len() == 5 && found.iter().all(Result::is_ok));
    assert!(matches!(found[0].as_ref().unwrap()[0], Event::File(_)));
    let query = query_of(&calls(&server)[0]);
    assert!(query.contains("top 7 by Timestamp desc"), "{query}");
    assert!(query.contains("\nunion FileRows, DomainRows\n"), "{query}");
    assert!(!query.contains("203.0.113.7"), "no row of it is wanted: {query}");
    assert_eq!(server.counts(), (1, 1));
    let nothing = session.events(&[]).await;
    assert!(nothing.is_empty() && server.counts() == (1, 1));
}

#[tokio::test]
async fn a_tenant_without_partition_is_asked_with_row_numbers_from_then_on() {
    let server = service(|seen, _| {
        if query_of(seen).contains("partition") {
            answer(400, r#"{"error":{"code":"BadRequest","message":"Operator 'partition' is not supported"}}"#)
        } else {
            answer(200, example("hunting_network_domain_ok.json"))
        }
    })
    .await;
    let defender = defender(&server);
    for calls in [2, 3] {
        let found = session(&defender).events(&sought(Sort::Domain, &["bad.example.com"], 5)).await;
        assert!(!times(&found[0]).is_empty());
        assert_eq!(server.counts(), (1, calls));
    }
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved_and_only_the_offender_fails() {
    let server = service(|seen, _| {
        if query_of(seen).contains(SHA1_B) {
            answer(400, example("graph_error_400_result_size.json"))
        } else {
            answer(200, example("hunting_file_events_ok.json"))
        }
    })
    .await;
    let hashes = [SHA1, SHA1_B, &machine_id(1), &machine_id(2)];
    let found = session(&defender(&server)).events(&sought(Sort::Sha1, &hashes, 100)).await;
    let error = found[1].as_ref().unwrap_err();
    assert_eq!((error.kind(), error.family()), (&Kind::InvalidRequest, Family::Hunting));
    assert!(!times(&found[0]).is_empty());
    assert_eq!(found.iter().filter(|rows| rows.is_ok()).count(), 3);
    // 4, 2 and 2, 1 and 1.
    assert_eq!(server.counts(), (1, 5));
}

#[tokio::test]
async fn a_batch_that_runs_out_of_time_twice_is_halved() {
    let server = service(|seen, _| {
        if query_of(seen).matches("\"000000").count() > 2 {
            answer(504, example("graph_error_504_unknown.json"))
        } else {
            answer(200, example("hunting_empty.json"))
        }
    })
    .await;
    let hashes: Vec<String> = (0..4).map(machine_id).collect();
    let hashes: Vec<&str> = hashes.iter().map(String::as_str).collect();
    let found = session(&defender(&server)).events(&sought(Sort::Sha1, &hashes, 100)).await;
    assert!(found.len() == 4 && found.iter().all(Result::is_ok));
    assert_eq!(server.counts(), (1, 4));
}

#[rstest]
#[case::unavailable(503, "", Kind::BadGateway, 3)]
#[case::timeout_of_a_single_value(504, "", Kind::BadGateway, 3)]
#[case::error(500, "", Kind::ServerError, 3)]
#[case::semantic(400, "", Kind::InvalidRequest, 1)]
#[case::throttled(429, "", Kind::Throttled { hunting: true }, 6)]
#[case::malformed(200, "{\"results\":7}", Kind::BadGateway, 1)]
#[tokio::test]
async fn a_hunting_query_is_repeated_sparingly(
    #[case] status: u16,
    #[case] body: &'static str,
    #[case] kind: Kind,
    #[case] tries: usize,
) {
    let server = service(move |_, _| answer(status, body)).await;
    let found = session(&defender(&server)).events(&sought(Sort::Domain, &["bad.example.com"], 5)).await;
    let error = found[0].as_ref().unwrap_err();
    assert_eq!(error.kind(), &kind);
    assert_eq!(server.counts(), (1, tries));
}

#[tokio::test]
async fn device_contexts_are_asked_for_once() {
    let server = service(|_, _| answer(200, example("hunting_device_context_ok.json"))).await;
    let defender = defender(&server);
    let ids = ["1".repeat(40), "2".repeat(40), "3".repeat(40)];
    let adapter = Adapter { mac_address: "00005E005311".to_owned(), addresses: owned(&["192.0.2.17", "2001:db8::17"]) };
    // The same three at once, then one of them alone.
    let (first, second) = (session(&defender), session(&defender));
    let ((found, failure), (again, _)) = tokio::join!(first.device_contexts(&ids), second.device_contexts(&ids));
    assert!(failure.is_none());
    assert_eq!(found, again);
    assert_eq!(found.len(), 3);
    assert_eq!(found[&ids[0]].adapters, [adapter]);
    assert_eq!(found[&ids[2]], DeviceContext { device_id: ids[2].clone(), ..DeviceContext::default() });
    let (one, _) = session(&defender).device_contexts(&ids[2..]).await;
    assert_eq!(one.len(), 1);
    assert_eq!(server.counts(), (1, 1));
    let query = query_of(&calls(&server)[0]);
    assert!(!query.contains("NetworkAdapterStatus =~"), "{query}");
}

#[tokio::test]
async fn devices_that_are_found_are_returned_beside_the_failure() {
    let server = service(|seen, _| {
        if query_of(seen).contains(&"1".repeat(40)) {
            answer(200, example("hunting_device_context_ok.json"))
        } else {
            answer(400, "")
        }
    })
    .await;
    let defender = defender(&server);
    let known = ["1".repeat(40)];
    session(&defender).device_contexts(&known).await;
    let (found, failure) = session(&defender).device_contexts(&["1".repeat(40), machine_id(9)]).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), [&known[0]]);
    assert_eq!(failure.unwrap().kind(), &Kind::InvalidRequest);
}
