//! Errors of Microsoft's services as the caller reads them: rows E5 to E14 and E23 of `relay.md` 3.3, with the data that
//! comes all the same, and how often each call was made. Tokens that are not given are in `grants`, time that is up in
//! `deadlines`, what an error stops in `stops`.

use std::time::Duration;

use defender_bridge::retry;
use defender_bridge::simulator::scenario::DEMO_TENANT_ID;
use defender_bridge::simulator::{self, Fault, Matcher, Resource, Scripted};
use serde_json::{Value, json};

use super::{alert, bridge_with, connection, device, fatal, file_event, minutes_ago, warning};
use crate::bridge::{Options, TestBridge};
use crate::scripted;

pub const SHA1: &str = "00000000000000000000000000000000000000b1";
pub const SHA256: &str = "00000000000000000000000000000000000000000000000000000000000000b2";
const MD5: &str = "000000000000000000000000000000b3";

pub const INTERNAL: &str = "Microsoft Defender for Endpoint internal error.";
pub const CONNECTION: &str = "Unable to connect to Microsoft Defender for Endpoint.";
const DETAILS: &str = "Some details could not be read from Microsoft Defender for Endpoint.";
pub const TOO_MANY: &str =
    "Too many requests to Microsoft Defender for Endpoint have been made. Please, try again later.";

pub fn permission(role: &str) -> String {
    format!("Microsoft Defender for Endpoint refused the request: the application needs the {role} permission.")
}

pub fn invalid(detail: &str) -> String {
    format!("Invalid request to Microsoft Defender for Endpoint. {detail}")
}

/// `a.example`: an alert and two events; `b.example`: an alert and an event; 203.0.113.1: an event on a machine that
/// hunting does not know; `SHA1`: an alert and an event, with hashes that a profile completes.
pub fn office() -> Value {
    json!({
        "alerts": [
            alert("a1", 10, 1, &[("domain", "a.example")]),
            alert("b1", 11, 1, &[("domain", "b.example")]),
            alert("s1", 12, 1, &[("sha1", SHA1)]),
        ],
        "files": [{"sha1": SHA1, "sha256": SHA256, "md5": MD5}],
        "machines": [
            {"id": device(1), "computerDnsName": "pc-1.corp.example", "osPlatform": "Windows11",
             "osArchitecture": "64-bit", "version": "24H2", "lastSeen": minutes_ago(5)},
            {"id": device(2), "computerDnsName": "pc-2.corp.example", "osPlatform": "Ubuntu", "_inventory": false},
        ],
        "tables": {
            "DeviceNetworkEvents": [
                connection(1, 20, 1, "203.0.113.1", "https://a.example/x"),
                connection(2, 21, 1, "203.0.113.9", "a.example"),
                connection(3, 22, 1, "203.0.113.9", "b.example"),
                connection(4, 23, 2, "203.0.113.2", ""),
            ],
            "DeviceFileEvents": [file_event(5, 24, 1, SHA1, "", "")],
        },
    })
}

/// Four tries of a read, so that they can be told from the three of a hunting query.
pub fn options() -> Options {
    let retry = retry::Policy { first: Duration::from_millis(2), cap: Duration::from_millis(5), tries: 4 };
    Options { retry, ..Options::default() }
}

pub async fn start() -> TestBridge {
    bridge_with(office(), options()).await
}

/// What goes wrong, what is asked, and what comes of it.
struct Case {
    name: &'static str,
    faults: Vec<(Matcher, Fault, u32)>,
    ask: Observables,
    errors: Vec<(String, String, String)>,
    sightings: usize,
    calls: &'static [(&'static str, u64)],
}

pub type Observables = &'static [(&'static str, &'static str)];

pub const A: Observables = &[("domain", "a.example")];
pub const AB: Observables = &[("domain", "a.example"), ("domain", "b.example")];
pub const IP: Observables = &[("ip", "203.0.113.2")];
const FILE: Observables = &[("sha1", SHA1)];

fn case(name: &'static str, ask: Observables) -> Case {
    Case { name, faults: Vec::new(), ask, errors: Vec::new(), sightings: 0, calls: &[] }
}

impl Case {
    fn when(mut self, calls: impl Into<Matcher>, fault: Fault, times: u32) -> Self {
        self.faults.push((calls.into(), fault, times));
        self
    }

    fn says(mut self, error: (String, String, String)) -> Self {
        self.errors.push(error);
        self
    }

    fn shows(mut self, sightings: usize) -> Self {
        self.sightings = sightings;
        self
    }

    fn calls(self, calls: &'static [(&'static str, u64)]) -> Self {
        Self { calls, ..self }
    }

    async fn run(self) {
        let bridge = start().await;
        for (matcher, fault, times) in self.faults {
            bridge.control().fail_next(matcher, fault, times);
        }
        let answer = bridge.observe(self.ask).await;
        assert_eq!(answer.status, 200, "{}", self.name);
        assert_eq!(answer.errors(), self.errors, "{}: {}", self.name, answer.text);
        assert_eq!(answer.sightings().len(), self.sightings, "{}: {}", self.name, answer.text);
        let body = answer.json();
        match self.sightings {
            // Data and errors: never an empty member of either.
            0 => assert_eq!(body.get("data").is_none(), !self.errors.is_empty(), "{}", self.name),
            shown => assert_eq!(body["data"]["sightings"]["count"], shown, "{}", self.name),
        }
        assert_eq!(body.get("errors").is_none(), self.errors.is_empty(), "{}", self.name);
        for (route, times) in self.calls {
            let made = bridge.control().calls(route);
            assert_eq!(made, *times, "{}: calls of {route}, {:?}", self.name, bridge.control().all_calls());
        }
        assert_eq!(bridge.control().calls("retired"), 0);
        bridge.stop().await;
    }
}

pub fn html(status: u16) -> Fault {
    let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
    Fault::Answer { status, headers, body: "<html><body>no service</body></html>".to_owned() }
}

pub fn body(status: u16, body: &str) -> Fault {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Fault::Answer { status, headers, body: body.to_owned() }
}

async fn all(cases: Vec<Case>) {
    for case in cases {
        case.run().await;
    }
}

#[tokio::test]
async fn without_a_fault_all_is_found() {
    all(vec![
        case("one", A).shows(3).calls(&[("alerts", 1), ("hunting", 2), ("machines", 0), ("token", 2)]),
        case("two", AB).shows(5).calls(&[("alerts", 2), ("hunting", 2)]),
        case("address", IP).shows(1).calls(&[("alerts", 1), ("hunting", 2), ("machines", 1)]),
        case("file", FILE).shows(2).calls(&[("alerts", 1), ("hunting", 2), ("files", 1)]),
    ])
    .await;
}

/// Rows E5 to E11 on the alert routes, and that hunting goes on without them.
#[tokio::test]
async fn a_failed_alert_lookup_costs_the_alerts_and_is_told() {
    let internal = || fatal("internal error", INTERNAL);
    let connection = || fatal("connection error", CONNECTION);
    all(vec![
        case("404 means none", A).when("alerts", Fault::refuse(404), 1).shows(2).calls(&[("alerts", 1)]),
        case("400 means none", A).when("alerts", Fault::refuse(400), 1).shows(2).calls(&[("alerts", 1)]),
        case("401 once", A).when("alerts", Fault::refuse(401), 1).shows(3).calls(&[("alerts", 2), ("token", 3)]),
        case("E6 403 once", A).when("alerts", Fault::refuse(403), 1).shows(3).calls(&[("alerts", 2), ("token", 3)]),
        case("E6 403 with an empty body", A)
            .when("alerts", body(403, ""), 2)
            .says(fatal("permission denied", &permission("Alert.Read.All")))
            .shows(2)
            .calls(&[("alerts", 2), ("token", 3)]),
        case("E7 three times", A).when("alerts", Fault::throttle(None), 3).shows(3).calls(&[("alerts", 4)]),
        case("E7 four times", A)
            .when("alerts", Fault::throttle(None), 4)
            .says(fatal("too many requests", TOO_MANY))
            .shows(2)
            .calls(&[("alerts", 4)]),
        case("E7 for longer than there is time", A)
            .when("alerts", Fault::throttle(3_600), 1)
            .says(fatal("too many requests", TOO_MANY))
            .shows(2)
            .calls(&[("alerts", 1)]),
        case("E7 with a wait of a second", A).when("alerts", Fault::throttle(1), 1).shows(3).calls(&[("alerts", 2)]),
        case("409 is no answer to a question", A)
            .when("alerts", body(409, r#"{"error":{"code":"Conflict","message":"Not now."}}"#), 1)
            .says(fatal("invalid request", &invalid("Not now.")))
            .shows(2)
            .calls(&[("alerts", 1)]),
        case("E9 three times", A).when("alerts", Fault::refuse(500), 3).shows(3).calls(&[("alerts", 4)]),
        case("E9", A).when("alerts", Fault::refuse(500), 4).says(internal()).shows(2).calls(&[("alerts", 4)]),
        case("E10 502", A).when("alerts", Fault::refuse(502), 4).says(internal()).shows(2).calls(&[("alerts", 4)]),
        case("E10 503", A).when("alerts", html(503), 4).says(internal()).shows(2).calls(&[("alerts", 4)]),
        case("E10 504", A).when("alerts", Fault::refuse(504), 4).says(internal()).shows(2).calls(&[("alerts", 4)]),
        case("E10 200 with HTML", A).when("alerts", html(200), 1).says(internal()).shows(2).calls(&[("alerts", 1)]),
        case("E10 a list", A).when("alerts", body(200, "[]"), 1).says(internal()).shows(2).calls(&[("alerts", 1)]),
        case("E10 an empty body", A)
            .when("alerts", Fault::EmptyBody, 4)
            .says(internal())
            .shows(2)
            .calls(&[("alerts", 4)]),
        case("E10 half a body", A).when("alerts", Fault::MalformedJson, 4).says(internal()).shows(2),
        case("E10 cut in its body", A)
            .when("alerts", Fault::cut_after(20), 4)
            .says(internal())
            .shows(2)
            .calls(&[("alerts", 4)]),
        case("cut in its body once", A).when("alerts", Fault::cut_after(20), 1).shows(3).calls(&[("alerts", 2)]),
        case("E10 a redirect", A)
            .when("alerts", Fault::Redirect { status: 302, location: "http://127.0.0.1:9/".to_owned() }, 1)
            .says(internal())
            .shows(2),
        case("another content type", A)
            .when("alerts", Fault::ContentType { value: "text/plain".to_owned() }, 1)
            .shows(3)
            .calls(&[("alerts", 1)]),
        case("E11 reset", A).when("alerts", Fault::Reset, 4).says(connection()).shows(2).calls(&[("alerts", 4)]),
        case("E11 cut", A).when("alerts", Fault::cut(), 4).says(connection()).shows(2),
        case("a reset once", A).when("alerts", Fault::Reset, 1).shows(3).calls(&[("alerts", 2)]),
    ])
    .await;
}

/// Rows E5, E6, E8 and E10 on hunting: the alerts are kept (defect 7), and a query is repeated less often.
#[tokio::test]
async fn a_failed_hunting_query_costs_the_events_and_is_told() {
    const REFUSED: &str = "The query is refused. Fix semantic errors in your query. (simulated)";
    let events = || Matcher::containing("DeviceNetworkEvents");
    all(vec![
        case("E5", A)
            .when("hunting", Fault::refuse(400), 1)
            .says(fatal("invalid request", &invalid(REFUSED)))
            .shows(1)
            .calls(&[("hunting", 2)]),
        case("E5 404", A)
            .when("hunting", Fault::refuse(404), 1)
            .says(fatal("invalid request", &invalid("Resource could not be discovered (simulated).")))
            .shows(1),
        case("E6", A)
            .when("hunting", Fault::refuse(403), 2)
            .says(warning("permission denied", &permission("ThreatHunting.Read.All")))
            .shows(1)
            .calls(&[("hunting", 2), ("token", 3)]),
        case("E6 once", A).when("hunting", Fault::refuse(403), 1).shows(3).calls(&[("hunting", 3), ("token", 3)]),
        case("E6 without data", IP)
            .when("hunting", Fault::refuse(403), 2)
            .says(fatal("permission denied", &permission("ThreatHunting.Read.All")))
            .calls(&[("hunting", 2), ("machines", 0)]),
        case("401 once", A).when("hunting", Fault::refuse(401), 1).shows(3).calls(&[("hunting", 3)]),
        case("A14", A)
            .when("hunting", Fault::refuse(401), 2)
            .says(fatal("authorization error", "Authorization failed: The access token has expired (simulated)."))
            .shows(1)
            .calls(&[("hunting", 2)]),
        case("E8", A)
            .when("hunting", Fault::throttle(None), 4)
            .says(fatal(
                "too many requests",
                "Advanced Hunting API rate limit has been exceeded. Please retry again later.",
            ))
            .shows(1)
            .calls(&[("hunting", 4)]),
        case("E8 three times", A).when("hunting", Fault::throttle(None), 3).shows(3).calls(&[("hunting", 5)]),
        case("E8 until the quarter is over", A)
            .when("hunting", simulator::cpu_exhausted(600), 1)
            .says(fatal(
                "too many requests",
                "Advanced Hunting API rate limit has been exceeded. You have exceeded processing resources allocated \
                 to this tenant. You can run queries again in 00:10:00.",
            ))
            .shows(1)
            .calls(&[("hunting", 1)]),
        case("E9", A)
            .when(events(), Fault::refuse(500), 3)
            .says(fatal("internal error", INTERNAL))
            .shows(1)
            .calls(&[("hunting", 4)]),
        case("E9 twice", A).when(events(), Fault::refuse(500), 2).shows(3).calls(&[("hunting", 4)]),
        case("E10 503", A).when(events(), Fault::refuse(503), 3).says(fatal("internal error", INTERNAL)).shows(1),
        case("E10 504", A).when(events(), Fault::refuse(504), 3).says(fatal("internal error", INTERNAL)).shows(1),
        case("E10 HTML", A)
            .when(events(), html(200), 1)
            .says(fatal("internal error", INTERNAL))
            .shows(1)
            .calls(&[("hunting", 2)]),
        case("E11", A)
            .when(events(), Fault::Reset, 3)
            .says(fatal("connection error", CONNECTION))
            .shows(1)
            .calls(&[("hunting", 4)]),
        case("no results at all", A).when(events(), body(200, r#"{"schema":[]}"#), 1).shows(1).calls(&[("hunting", 2)]),
        case("null results", A).when(events(), body(200, r#"{"results":null}"#), 1).shows(1),
    ])
    .await;
}

/// Row E23: what only adds details never costs a sighting.
#[tokio::test]
async fn a_failed_lookup_of_details_is_one_warning() {
    let details = || warning("warning", DETAILS);
    let devices = || Matcher::containing("DeviceNetworkInfo");
    all(vec![
        case("machine unknown", IP).when("machines", Fault::refuse(404), 1).shows(1).calls(&[("machines", 1)]),
        case("machine 500", IP)
            .when("machines", Fault::refuse(500), 4)
            .says(details())
            .shows(1)
            .calls(&[("machines", 4)]),
        case("machine 400", IP)
            .when("machines", Fault::refuse(400), 1)
            .says(details())
            .shows(1)
            .calls(&[("machines", 1)]),
        case("machine 429", IP).when("machines", Fault::throttle(3_600), 1).says(details()).shows(1),
        case("machine reset", IP).when("machines", Fault::Reset, 4).says(details()).shows(1),
        case("machine 403", IP)
            .when("machines", Fault::refuse(403), 2)
            .says(warning("permission denied", &permission("Machine.Read.All")))
            .shows(1)
            .calls(&[("machines", 2)]),
        case("profile unknown", FILE).when("files", Fault::refuse(404), 1).shows(2).calls(&[("files", 1)]),
        case("profile 500", FILE).when("files", Fault::refuse(500), 4).says(details()).shows(2),
        case("profile 403", FILE)
            .when("files", Fault::refuse(403), 2)
            .says(warning("permission denied", &permission("File.Read.All")))
            .shows(2),
        case("profile HTML", FILE).when("files", html(200), 1).says(details()).shows(2),
        case("devices 400", A).when(devices(), Fault::refuse(400), 1).says(details()).shows(3),
        case("devices 500", A).when(devices(), Fault::refuse(500), 3).says(details()).shows(3),
        case("both", FILE)
            .when("files", Fault::refuse(500), 4)
            .when(devices(), Fault::refuse(400), 1)
            .says(details())
            .shows(2),
    ])
    .await;
}

/// A message that concerns some of the observables names them, one that concerns all does not (`DESIGN.md` 10.8).
#[tokio::test]
async fn an_error_about_some_observables_names_them() {
    let of = |name: &str| Matcher { route: Some("alerts".to_owned()), ..Matcher::containing(name) };
    all(vec![
        case("one of two", AB)
            .when(of("b.example"), Fault::refuse(500), 4)
            .says(fatal("internal error", &format!("{INTERNAL} Observable: b.example.")))
            .shows(4),
        case("each in its own way", AB)
            .when(of("a.example"), Fault::Reset, 4)
            .when(of("b.example"), Fault::refuse(500), 4)
            .says(fatal("connection error", &format!("{CONNECTION} Observable: a.example.")))
            .says(fatal("internal error", &format!("{INTERNAL} Observable: b.example.")))
            .shows(3),
        case("both alike", AB).when("alerts", Fault::refuse(500), 8).says(fatal("internal error", INTERNAL)).shows(3),
        case("the only one", A).when("alerts", Fault::refuse(500), 4).says(fatal("internal error", INTERNAL)).shows(2),
    ])
    .await;
}

/// A server that answers a TLS greeting with a sentence. It ends with the test.
async fn speaks_no_tls() -> String {
    use tokio::io::AsyncWriteExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"this is not the protocol you are looking for\r\n").await;
        }
    });
    url
}

/// Rows E11 to E13, where there is no connection at all; the hunting half of the answer is kept.
#[tokio::test]
async fn a_defender_that_cannot_be_reached_costs_the_alerts() {
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let untrusted = scripted::Scripted::start_tls(|_| async { scripted::answer(200, "{}") }).await;
    let no_tls = speaks_no_tls().await;
    let certificate =
        "Unable to verify SSL certificate: The certificate is self-signed or its issuer is unknown".to_owned();
    for (name, url, expected) in [
        ("E11 refused", closed.clone(), fatal("connection error", CONNECTION)),
        ("E12", untrusted.url.to_string(), fatal("unknown", &certificate)),
        ("E13", no_tls, fatal("connection error", CONNECTION)),
    ] {
        let bridge = bridge_with(office(), Options { defender_url: Some(url.clone()), ..options() }).await;
        let answer = bridge.observe(A).await;
        assert_eq!(answer.errors(), std::slice::from_ref(&expected), "{name}");
        assert_eq!(answer.sightings().len(), 2, "{name}");
        assert_eq!(bridge.post("/health", &Value::Null).await.errors(), std::slice::from_ref(&expected), "{name}");
        bridge.stop().await;

        let bridge = bridge_with(office(), Options { graph_url: Some(url.clone()), ..options() }).await;
        // Hunting also knows the devices, so their details are missing too.
        let answer = bridge.observe(A).await;
        let mut told = answer.errors();
        told.retain(|error| *error != warning("warning", DETAILS));
        assert_eq!((told, answer.sightings().len()), (vec![expected.clone()], 1), "{name} hunting");
        bridge.stop().await;

        // Entra included: no token, no data.
        let bridge = bridge_with(office(), Options { upstream: Some(url), ..options() }).await;
        let answer = bridge.observe(A).await;
        assert_eq!((answer.errors(), answer.json().get("data")), (vec![expected], None), "{name} everything");
        bridge.stop().await;
    }
    assert_eq!(untrusted.seen().len(), 0, "nothing is sent to who is not trusted");
}

/// Row E14: a worker that has other keys cannot open a job, and says no more than that.
#[tokio::test]
async fn what_nobody_foresaw_is_an_answer_all_the_same() {
    let bridge = bridge_with(office(), Options { worker_key: Some("another key".to_owned()), ..options() }).await;
    for path in ["/observe/observables", "/health"] {
        let answer = bridge.post(path, &crate::bridge::observable_list(A)).await;
        assert_eq!((answer.status, answer.errors()), (200, vec![fatal("unknown", "Something went wrong.")]), "{path}");
    }
    assert_eq!(bridge.control().total(), 0);
    bridge.stop().await;
}

/// `relay.md` 1.3 and `DESIGN.md` 10.7; defect 8.
#[tokio::test]
async fn health_is_what_the_machines_route_says() {
    let ok = json!({"data": {"status": "ok"}});
    for (fault, errors) in [
        (Fault::refuse(404), vec![]),
        (Fault::refuse(500), vec![]),
        (body(400, "{}"), vec![fatal("invalid request", &invalid("HTTP 400"))]),
        (body(400, r#"{"error":"as a text"}"#), vec![fatal("invalid request", &invalid("as a text"))]),
        (
            body(400, r#"{"error":{"code":"OnlyCode","message":""}}"#),
            vec![fatal("invalid request", &invalid("OnlyCode"))],
        ),
        (body(400, r#"{"error":["list"]}"#), vec![fatal("invalid request", &invalid("HTTP 400"))]),
        (html(400), vec![fatal("invalid request", &invalid("HTTP 400"))]),
        (Fault::throttle(3_600), vec![fatal("too many requests", TOO_MANY)]),
        (html(200), vec![fatal("internal error", INTERNAL)]),
    ] {
        let bridge = start().await;
        bridge.control().fail_next("machines", fault.clone(), 1);
        let answer = bridge.post("/health", &Value::Null).await;
        assert_eq!(answer.errors(), errors, "{fault:?}");
        if errors.is_empty() {
            assert_eq!(answer.json(), ok, "{fault:?}");
        }
        assert_eq!(bridge.control().calls("hunting"), 0, "health spends no hunting quota");
        bridge.stop().await;
    }
    for (roles, healthy) in [
        (&["Alert.Read.All"][..], true),
        (&["Alert.ReadWrite.All", "File.Read.All"], true),
        (&["Machine.Read.All"], true),
        (&["File.Read.All"], false),
        (&[], false),
    ] {
        let bridge = start().await;
        bridge.control().set_roles(DEMO_TENANT_ID, Resource::Defender, roles);
        let answer = bridge.post("/health", &Value::Null).await;
        if healthy {
            assert_eq!(answer.json(), ok, "{roles:?}");
        } else {
            let expected = fatal("permission denied", &permission("Machine.Read.All"));
            assert_eq!(answer.errors(), [expected], "{roles:?}");
        }
        bridge.stop().await;
    }
    // No machine at all is no fault of anybody's.
    let bridge = bridge_with(json!({}), options()).await;
    assert_eq!(bridge.post("/health", &Value::Null).await.json(), ok);
    bridge.stop().await;
}

/// `relay.md` 3.4: the detail is text of Defender's, cut, and never an object in some language's notation.
#[tokio::test]
async fn the_detail_of_an_error_is_cut_at_five_hundred_characters() {
    let bridge = start().await;
    let long = "\u{e4}".repeat(600);
    let script = Scripted::get("/machines", 400, json!({"error": {"code": "Long", "message": long}}));
    bridge.control().script(vec![script]).expect("a script");
    let answer = bridge.post("/health", &Value::Null).await;
    assert_eq!(answer.errors(), [fatal("invalid request", &invalid(&"\u{e4}".repeat(500)))]);
    bridge.stop().await;
}
