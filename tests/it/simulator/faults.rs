//! Faults on request, and the book of requests.

use std::io::ErrorKind;

use defender_bridge::simulator::scenario::{
    C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, DROPPED_SHA1, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET,
    OTHER_TENANT_ID,
};
use defender_bridge::simulator::{Fault, Matcher, Settings, cpu_exhausted};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DEFENDER_SCOPE, World};

#[tokio::test]
async fn statuses_come_with_the_body_of_the_service_that_was_called() {
    let world = World::start().await;
    for (status, code) in [
        (400, "BadRequest"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "ResourceNotFound"),
        (500, "InternalServerError"),
    ] {
        world.control().fail_next("machines", Fault::refuse(status), 1);
        let (found, body) = world.read("/api/machines").await;
        assert_eq!((found, body["error"]["code"].as_str()), (status, Some(code)));
    }
    for status in [502, 503, 504] {
        world.control().fail_next("machines", Fault::refuse(status), 1);
        let response = world.get("/api/machines").await;
        assert_eq!(response.status(), status);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
        assert!(response.text().await.unwrap().contains("<html>"));
    }
    for (wait, header) in [(Some(7), Some("7")), (None, None)] {
        world.control().fail_next("machines", Fault::throttle(wait), 1);
        let response = world.get("/api/machines").await;
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers().get("retry-after").map(|value| value.to_str().unwrap()), header);
    }
    world.control().fail_next("hunting", Fault::refuse(504), 1);
    let (status, body) = world.hunt("DeviceInfo").await;
    assert_eq!((status, &body["error"]["code"], &body["error"]["message"]), (504, &json!("UnknownError"), &json!("")));
    world.control().fail_next("hunting", cpu_exhausted(450), 1);
    let (status, body) = world.hunt("DeviceInfo").await;
    assert_eq!(status, 429);
    assert!(body["error"]["message"].as_str().unwrap().ends_with("again in 00:07:30."));
    world.control().fail_next("token", Fault::refuse(500), 1);
    assert_eq!(world.ask_token(DEMO_TENANT_ID, &[]).await.status(), 500);
    assert_eq!(world.read("/api/machines").await.0, 200);
}

#[tokio::test]
async fn a_cut_connection_is_cut_and_a_reset_one_reset() {
    let world = World::start().await;
    let path = format!("/api/files/{DROPPED_SHA1}");
    for fault in [Fault::cut(), Fault::Reset] {
        world.control().fail_next("files", fault, 1);
        assert!(world.get_with(&world.defender, &path).await.is_err());
    }
    world.control().fail_next("files", Fault::cut_after(20), 1);
    let mut response = world.get(&path).await;
    assert_eq!(response.status(), 200);
    let first = response.chunk().await.unwrap().unwrap();
    assert_eq!(first.len(), 20);
    assert!(response.chunk().await.is_err(), "the body ends with an error, not in order");
    assert_eq!(world.get(&path).await.status(), 200);
    assert_eq!(world.control().calls("files"), 4);
}

#[tokio::test]
async fn on_the_wire_a_cut_is_an_early_end_and_a_reset_is_a_reset() {
    let world = World::start().await;
    let address = world.simulator.url().strip_prefix("http://").unwrap().to_owned();
    let request = format!("GET /api/machines HTTP/1.1\r\nhost: {address}\r\n\r\n");
    for (fault, reset) in [(Fault::cut(), false), (Fault::Reset, true)] {
        world.control().fail_next("machines", fault, 1);
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer).await;
        assert_eq!(ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), reset);
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn bodies_can_be_broken_in_several_ways() {
    let world = World::start().await;
    let control = world.control();
    control.fail_next("machines", Fault::MalformedJson, 1);
    let text = world.get("/api/machines").await.text().await.unwrap();
    assert!(text.starts_with('{') && serde_json::from_str::<Value>(&text).is_err());
    control.fail_next("machines", Fault::EmptyBody, 1);
    assert_eq!(world.get("/api/machines").await.text().await.unwrap(), "");
    control.fail_next("machines", Fault::ContentType { value: "text/plain".into() }, 1);
    assert_eq!(world.get("/api/machines").await.headers()["content-type"], "text/plain");
    control.fail_next("machines", Fault::Gigantic { bytes: 3_000_000 }, 1);
    let text = world.get("/api/machines").await.text().await.unwrap();
    assert!(text.len() > 3_000_000 && serde_json::from_str::<Value>(&text).is_ok());
    control.fail_next("machines", Fault::Redirect { status: 307, location: "https://elsewhere.example/".into() }, 1);
    let response = world.get("/api/machines").await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (307, &"https://elsewhere.example/".parse().unwrap())
    );
    let answer = Fault::Answer { status: 418, headers: vec![("x-odd".into(), "1".into())], body: "tea".into() };
    control.fail_next(Matcher::containing("/api/machines"), answer, 1);
    let response = world.get("/api/machines").await;
    assert_eq!((response.status().as_u16(), &response.headers()["x-odd"]), (418, &"1".parse().unwrap()));
    assert_eq!(response.text().await.unwrap(), "tea");
}

#[tokio::test]
async fn a_hanging_call_hangs_until_the_client_gives_up() {
    let world = World::start().await;
    world.control().fail_next("machines", Fault::Hang, 1);
    let call = tokio::spawn({
        let call = world.http.get(world.at("/api/machines")).bearer_auth(&world.defender);
        async move { call.send().await }
    });
    world.control().reached("machines", 1).await;
    assert!(!call.is_finished());
    assert_eq!(world.control().requests_to("machines")[0].status, None);
    call.abort();
    // The simulator notices that nobody waits any more.
    while world.control().at_work() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.get("/api/machines").await.status(), 200);
}

#[tokio::test]
async fn stopping_ends_calls_in_work_and_frees_the_port() {
    let World { simulator, http, defender, .. } = World::start().await;
    simulator.control().fail_next("machines", Fault::Hang, 1);
    let url = format!("{}/api/machines", simulator.url());
    let call = tokio::spawn(http.get(&url).bearer_auth(&defender).send());
    simulator.control().reached("machines", 1).await;
    simulator.stop().await;
    assert!(call.await.unwrap().is_err());
    assert!(http.get(&url).send().await.is_err());
}

#[tokio::test]
async fn faults_can_be_limited_to_a_tenant_and_to_a_share() {
    let world = World::start().await;
    let other = world.token(OTHER_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, DEFENDER_SCOPE).await;
    let path = format!("/api/ips/{C2_ADDRESS}/alerts");
    world.control().fail_next(Matcher::from("alerts").of_tenant(OTHER_TENANT_ID), Fault::refuse(500), 1);
    assert_eq!(world.get(&path).await.status(), 200);
    assert_eq!(world.get_with(&other, &path).await.unwrap().status(), 500);
    world.control().fail_rate("alerts", Fault::refuse(500), 0.5, 7);
    let mut failed = 0;
    for _ in 0..40 {
        failed += u32::from(world.get(&path).await.status() == 500);
    }
    assert!((8..=32).contains(&failed), "{failed}");
    world.control().clear_faults();
    assert_eq!(world.get(&path).await.status(), 200);
}

#[tokio::test]
async fn requests_are_recorded_without_credentials() {
    let world = World::start().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let call =
        world.http.get(world.at("/api/machines?$filter=osPlatform%20eq%20'Linux'")).header("traceparent", parent);
    assert_eq!(call.bearer_auth(&world.defender).send().await.unwrap().status(), 200);
    let _ = world.hunt("DeviceInfo | take 1").await;
    let requests = world.control().requests();
    assert_eq!(
        requests.iter().map(|request| request.route).collect::<Vec<_>>(),
        ["token", "token", "machines", "hunting"]
    );
    let machines = &requests[2];
    assert_eq!(machines.query, "$filter=osPlatform eq 'Linux'");
    assert_eq!(machines.headers["traceparent"], parent);
    assert_eq!(machines.status, Some(200));
    assert_eq!((machines.tenant.as_deref(), machines.client.as_deref()), (Some(DEMO_TENANT_ID), Some(DEMO_CLIENT_ID)));
    assert_eq!(requests[0].client.as_deref(), Some(DEMO_CLIENT_ID));
    assert_eq!(world.control().hunting_queries(), ["DeviceInfo | take 1"]);
    let book = serde_json::to_string(&requests).unwrap();
    for secret in [DEMO_CLIENT_SECRET, &world.defender, &world.graph] {
        assert!(!book.contains(secret));
    }
    world.control().forget();
    assert_eq!((world.control().calls("machines"), world.control().requests().len()), (0, 0));
}

#[tokio::test]
async fn an_instant_simulator_counts_but_keeps_nothing_and_has_no_quota() {
    let world = World::with(Settings::instant()).await;
    for _ in 0..150 {
        assert_eq!(world.get("/api/machines").await.status(), 200);
    }
    assert_eq!((world.control().calls("machines"), world.control().requests().len()), (150, 0));
}

#[tokio::test]
async fn calls_in_work_at_once_are_counted() {
    let world = World::start().await;
    world.control().set_quota(None);
    world.control().fail_next("machines", Fault::Hang, 5);
    let calls: Vec<_> = (0..5)
        .map(|_| tokio::spawn(world.http.get(world.at("/api/machines")).bearer_auth(&world.defender).send()))
        .collect();
    world.control().reached("machines", 5).await;
    assert_eq!(world.control().peak(), 5);
    for call in calls {
        call.abort();
    }
}
