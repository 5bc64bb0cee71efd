//! `check` from outside against the simulator: what is missing is named, and nothing else.

use defender_bridge::simulator::cognito::{BRAIN_TOKEN, Right};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{self, Application, Fault, Matcher, Resource, Scripted, Simulator};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::bridge::{SECRET_KEY, demo_token, mint};

/// Every permission that a feature of the bridge wants, of Defender.
const DEFENDER: [&str; 8] = [
    "Alert.Read.All",
    "File.Read.All",
    "Machine.Read.All",
    "Machine.Isolate",
    "Machine.RestrictExecution",
    "Machine.Scan",
    "Machine.CollectForensics",
    "Ti.ReadWrite.All",
];

/// And of Graph.
const HUNTING: &str = "ThreatHunting.Read.All";

/// A deployment with everything switched on.
struct Deployment {
    simulator: Simulator,
    folder: TempDir,
    settings: Vec<(String, String)>,
}

/// What `check` said.
struct Told {
    code: Option<i32>,
    json: Value,
    text: String,
}

impl Told {
    /// Peer, subject and detail of each row that did not do.
    fn failed(&self) -> Vec<String> {
        let rows = self.json["checks"].as_array().unwrap_or_else(|| panic!("no rows in {}", self.text));
        let bad = rows.iter().filter(|row| row["state"] == "failed" || row["state"] == "unchecked");
        let text = |row: &Value, name: &str| row[name].as_str().expect("a text").to_owned();
        bad.map(|row| format!("{}|{}|{}", text(row, "peer"), text(row, "what"), text(row, "detail"))).collect()
    }

    /// The one row that did not do.
    fn only(&self) -> String {
        assert_eq!(self.code, Some(1), "{}", self.text);
        let [row] = self.failed().try_into().unwrap_or_else(|rows| panic!("{rows:#?}"));
        row
    }

    fn is_good(&self) {
        assert_eq!((self.code, self.failed()), (Some(0), Vec::new()), "{}", self.text);
        assert_eq!(self.json["ok"], true);
    }
}

impl Deployment {
    async fn start() -> Self {
        let simulator = Simulator::start(simulator::Settings::default()).await.expect("the simulator listens");
        let folder = tempfile::tempdir().expect("a folder");
        let url = simulator.url();
        let settings = [
            ("SECRET_KEY", SECRET_KEY),
            ("BRIDGE_BROKER_URL", &format!("sqlite:{}", folder.path().join("queue.sqlite").display())),
            ("BRIDGE_ENTRA_URL", &url),
            ("BRIDGE_DEFENDER_URL", &url),
            ("BRIDGE_GRAPH_URL", &url),
            ("BRIDGE_RELAY_ROUTES", "observe,refer,respond"),
            ("COGNITO_BRAIN", &url),
            ("COGNITO_TOKEN", BRAIN_TOKEN),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
            ("BRIDGE_TAG_ENRICH", "host_context"),
            ("BRIDGE_TAG_BLOCK", "block"),
            ("BRIDGE_TAG_UNBLOCK", "unblock"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { simulator, folder, settings }
    }

    /// `check --json` with some settings changed; an empty value takes one away.
    async fn check_with(&self, arguments: &[&str], changes: &[(&str, &str)]) -> Told {
        let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
        command.args(["check", "--json"]).args(arguments).env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR"));
        command.envs(self.settings.iter().map(|(name, value)| (name, value))).envs(changes.iter().copied());
        let output = command.output().await.expect("the binary runs");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            !text.contains(DEMO_CLIENT_SECRET) && !text.contains(SECRET_KEY) && !text.contains(BRAIN_TOKEN),
            "{text}"
        );
        Told { code: output.status.code(), json: serde_json::from_slice(&output.stdout).unwrap_or_default(), text }
    }

    async fn check(&self, changes: &[(&str, &str)]) -> Told {
        self.check_with(&[], changes).await
    }

    fn written(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }
}

#[tokio::test]
async fn a_deployment_in_which_everything_works_is_told_so_with_few_calls_and_no_write() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    let told = deployment.check(&[]).await;
    told.is_good();
    let rows = told.json["checks"].as_array().unwrap();
    for permission in DEFENDER.into_iter().chain([HUNTING]) {
        let row = rows.iter().find(|row| row["permission"] == permission);
        assert_eq!(row.map(|row| row["state"].as_str()), Some(Some("ok")), "{permission}");
    }
    let alerts = rows.iter().find(|row| row["permission"] == "Alert.Read.All").unwrap();
    assert_eq!(alerts["features"], json!(["observe", "enrich"]));
    for request in control.requests() {
        let reads = request.method == "GET" || matches!(request.route, "token" | "hunting");
        assert!(reads, "{} {}", request.method, request.path);
    }
    let calls = ["token", "machines", "hunting", "cognito"].map(|route| control.calls(route));
    assert_eq!(calls, [2, 1, 1, 4], "{:?}", control.all_calls());
    assert!(!deployment.folder.path().join("queue.sqlite").exists());
    // The queue of a deployment that runs, or ran, is opened beside it.
    deployment.written("queue.sqlite", "");
    deployment.check(&[]).await.is_good();

    // For people.
    let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
    command.arg("check").env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR"));
    command.envs(deployment.settings.iter().map(|(name, value)| (name, value)));
    let output = command.output().await.unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && table.starts_with("STATE"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("ok") && line.contains("ThreatHunting.Read.All")), "{table}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn each_permission_that_is_taken_away_is_named_and_no_other() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    for permission in DEFENDER.into_iter().chain([HUNTING]) {
        let left: Vec<&str> = DEFENDER.into_iter().filter(|one| *one != permission).collect();
        assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &left));
        let hunting: &[&str] = if permission == HUNTING { &[] } else { &[HUNTING] };
        assert!(control.set_roles(DEMO_TENANT_ID, Resource::Graph, hunting));
        let told = deployment.check(&[]).await;
        let row = told.only();
        assert!(row.contains(&format!("|APP_ID: {permission}|is missing")), "{row}");
        assert_eq!(told.json["missing_permissions"], json!([permission]));
    }
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn what_is_switched_off_needs_no_permission_and_a_stronger_one_does() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    let stronger = ["Alert.ReadWrite.All", "Machine.ReadWrite.All", "File.Read.All"];
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &stronger));
    let off = [("BRIDGE_RELAY_ROUTES", "observe"), ("BRIDGE_TAG_BLOCK", ""), ("BRIDGE_TAG_UNBLOCK", "")];
    deployment.check(&off).await.is_good();
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &[]));
    let off = [
        ("BRIDGE_RELAY_ROUTES", "refer"),
        ("BRIDGE_TAG_BLOCK", ""),
        ("BRIDGE_TAG_UNBLOCK", ""),
        ("BRIDGE_TAG_ENRICH", ""),
        ("COGNITO_BRAIN", ""),
        ("COGNITO_TOKEN", ""),
    ];
    deployment.check(&off).await.is_good();
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn what_entra_refuses_is_put_in_words() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    let both = |told: Told, words: &str| {
        let rows = told.failed();
        assert_eq!((told.code, rows.len()), (Some(1), 2), "{rows:#?}");
        for (row, service) in rows.iter().zip(["defender", "graph"]) {
            assert!(row.starts_with(&format!("entra|APP_ID: token for {service}|")) && row.contains(words), "{row}");
        }
    };
    both(deployment.check(&[("APP_SECRET", "not-the-secret")]).await, "the secret is wrong");
    let nobody = "00000000-0000-4000-8000-00000000aaaa";
    both(deployment.check(&[("TENANT_ID", nobody)]).await, "there is no such tenant in this cloud");
    both(deployment.check(&[("APP_ID", nobody)]).await, "the application is not known in this tenant");
    for (number, words) in [
        (7_000_222, "the secret has expired"),
        (90_038, "the tenant is in another cloud: set BRIDGE_CLOUD"),
        (900_432, "the tenant is in another cloud: set BRIDGE_CLOUD"),
        (53_003, "Conditional Access"),
    ] {
        let body = json!({"error": "invalid_request", "error_description": format!("AADSTS{number}: so it is.\r\nTrace ID: x")});
        let refusal = Scripted {
            method: Some("POST".to_owned()),
            path: format!("/{DEMO_TENANT_ID}/oauth2/v2.0/token"),
            status: Some(400),
            body: Some(body),
            ..Scripted::default()
        };
        control.script(vec![refusal]).unwrap();
        both(deployment.check(&[]).await, words);
    }
    control.script(Vec::new()).unwrap();
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_the_one_thing_that_is_told() {
    let deployment = Deployment::start().await;
    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nowhere = format!("http://127.0.0.1:{port}");
    for (setting, peer) in
        [("BRIDGE_ENTRA_URL", "entra"), ("BRIDGE_DEFENDER_URL", "defender"), ("BRIDGE_GRAPH_URL", "graph")]
    {
        let row = deployment.check(&[(setting, &nowhere)]).await.only();
        assert!(row.starts_with(&format!("{peer}|127.0.0.1 can be reached|no connection")), "{row}");
    }
    let row = deployment.check(&[("COGNITO_BRAIN", &nowhere)]).await.only();
    assert!(row.starts_with("cognito|reads hosts|cannot be reached"), "{row}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_with_its_side() {
    let deployment = Deployment::start().await;
    for (hours, side) in [(2, "behind"), (-2, "ahead of")] {
        let date = Timestamp::now() + SignedDuration::from_hours(hours);
        let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = vec![("date".to_owned(), date)];
        let answer = Fault::Answer { status: 404, headers, body: String::new() };
        deployment.simulator.control().fail_next("unknown", answer, 1);
        let row = deployment.check(&[]).await.only();
        assert!(row.starts_with("entra|clock against 127.0.0.1|") && row.contains(side), "{row}");
    }
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn a_licence_that_is_missing_is_not_taken_for_a_wrong_token() {
    let deployment = Deployment::start().await;
    let body = json!({"error": {
        "code": "Unauthorized", "message": "Unauthorized request - reason of failure: Account mode is inactive",
    }});
    let refusal = Scripted::get("/machines", 401, body);
    deployment.simulator.control().script(vec![refusal]).unwrap();
    let row = deployment.check(&[]).await.only();
    assert!(row.starts_with("defender|APP_ID: reads machines|") && row.contains("a licence is missing"), "{row}");
    assert!(row.contains("Account mode is inactive"), "{row}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn what_cognito_refuses_is_told() {
    let deployment = Deployment::start().await;
    let brain = deployment.simulator.control().brain();
    let row = deployment.check(&[("COGNITO_TOKEN", "another-token")]).await.only();
    assert!(row.starts_with("cognito|reads hosts|COGNITO_TOKEN, or the API client, is refused"), "{row}");
    for (right, what) in
        [(Right::ReadTags, "reads tags"), (Right::ReadNotes, "reads notes"), (Right::ReadGroups, "reads groups")]
    {
        brain.behave(|behaviour| behaviour.withheld = [right].into());
        let row = deployment.check(&[]).await.only();
        assert!(row.starts_with(&format!("cognito|{what}|the user or API client lacks the right")), "{row}");
    }
    brain.behave(|behaviour| behaviour.withheld = [Right::ReadHosts].into());
    let row = deployment.check(&[]).await.only();
    assert!(row.starts_with("cognito|reads hosts|the user or API client lacks the right"), "{row}");
    brain.behave(|behaviour| behaviour.withheld.clear());
    let row = deployment.check(&[("BRIDGE_GUARD_PROTECTED_GROUPS", "No such group")]).await.only();
    assert!(row.contains("there is no group \"No such group\""), "{row}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_down_is_told() {
    let deployment = Deployment::start().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("amqp://user:pl4nted@127.0.0.1:{port}/%2f");
    let told = deployment.check(&[("BRIDGE_BROKER_URL", &url)]).await;
    assert!(told.only().starts_with("broker|RabbitMQ, namespace bridge|"), "{}", told.text);
    assert!(!told.text.contains("pl4nted"), "{}", told.text);
    let file = deployment.written("file", "");
    let row = deployment.check(&[("BRIDGE_BROKER_URL", &format!("sqlite:{file}/queue.sqlite"))]).await.only();
    assert!(row.starts_with("broker|embedded queue|"), "{row}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn poll_needs_what_hosts_need_and_nothing_of_the_relay() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    assert!(control.set_roles(
        DEMO_TENANT_ID,
        Resource::Defender,
        &["Alert.Read.All", "Machine.Read.All", "Machine.Isolate"]
    ));
    let without_relay = [("SECRET_KEY", "")];
    deployment.check_with(&["--role", "poll"], &without_relay).await.is_good();
    assert_eq!(deployment.check(&[]).await.code, Some(1), "the relay lacks its permissions");
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &["Alert.Read.All", "Machine.Read.All"]));
    let row = deployment.check_with(&["--role", "poll"], &without_relay).await.only();
    assert!(row.contains("Machine.Isolate|is missing"), "{row}");
    let nothing = [("BRIDGE_TAG_ENRICH", ""), ("BRIDGE_TAG_BLOCK", ""), ("BRIDGE_TAG_UNBLOCK", "")];
    let told = deployment.check_with(&["--role", "poll"], &nothing).await;
    assert!(told.code == Some(78) && told.text.contains("name a tag or scores"), "{}", told.text);
    deployment.simulator.stop().await;
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn rights_at_rabbitmq_are_tried_without_leaving_anything() {
    let deployment = Deployment::start().await;
    let url = crate::namespaces::rabbitmq_url();
    let namespace = format!("check-{}", uuid::Uuid::now_v7().simple());
    let settings = [("BRIDGE_BROKER_URL", url.as_str()), ("BRIDGE_BROKER_NAMESPACE", &namespace)];
    deployment.check(&settings).await.is_good();
    for role in ["serve", "ingress", "worker", "poll"] {
        deployment.check_with(&["--role", role], &settings).await.is_good();
    }
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = lapin::options::ExchangeDeclareOptions { passive: true, ..Default::default() };
    let work = format!("{namespace}.work");
    let found = channel
        .exchange_declare(
            work.as_str().into(),
            lapin::ExchangeKind::Direct,
            options,
            lapin::types::FieldTable::default(),
        )
        .await;
    assert!(found.is_err(), "{work} was declared");
    let mut wrong: url::Url = url.parse().expect("a URL");
    wrong.set_username("nobody").expect("a URL with a host");
    wrong.set_password(Some("pl4nted")).expect("a URL with a host");
    let row = deployment.check(&[("BRIDGE_BROKER_URL", wrong.as_str())]).await.only();
    assert!(row.starts_with("broker|RabbitMQ, namespace bridge|"), "{row}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn the_relays_application_is_that_of_a_token_if_one_is_given() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    let relay_alone = [
        ("TENANT_ID", ""),
        ("APP_ID", ""),
        ("APP_SECRET", ""),
        ("COGNITO_BRAIN", ""),
        ("COGNITO_TOKEN", ""),
        ("BRIDGE_TAG_ENRICH", ""),
        ("BRIDGE_TAG_BLOCK", ""),
        ("BRIDGE_TAG_UNBLOCK", ""),
    ];
    // The relay is on, and nobody says whose application to look at.
    let row = deployment.check(&relay_alone).await.only();
    assert!(row.starts_with("relay|permissions|give --token-file"), "{row}");
    let token = deployment.written("token", &format!("{}\n", demo_token()));
    deployment.check_with(&["--token-file", &token], &relay_alone).await.is_good();
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Graph, &[]));
    let row = deployment.check_with(&["--token-file", &token], &relay_alone).await.only();
    assert!(row.contains("|relay: ThreatHunting.Read.All|is missing"), "{row}");

    let expired = deployment.written("expired", "abc");
    let row = deployment.check_with(&["--token-file", &expired], &relay_alone).await.only();
    assert!(row.starts_with("relay|token|the relay refuses it: Wrong JWT structure"), "{row}");
    let wrong = deployment.written("wrong", &mint(DEMO_TENANT_ID, DEMO_CLIENT_ID, "not-the-secret", None));
    let told = deployment.check_with(&["--token-file", &wrong], &relay_alone).await;
    assert_eq!(told.failed().len(), 2, "{}", told.text);
    let missing = deployment.check_with(&["--token-file", "no such file"], &[]).await;
    assert!(missing.code == Some(1) && missing.text.contains("--token-file: no such file"), "{}", missing.text);
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn the_application_that_isolates_is_looked_at_by_itself() {
    let deployment = Deployment::start().await;
    let control = deployment.simulator.control();
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
    let file = deployment.written("responder.pem", &format!("{certificate}{}", key.serialize_pem()));
    let reading: Vec<&str> = DEFENDER.into_iter().filter(|role| *role != "Machine.Isolate").collect();
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &reading));
    let settings = [
        ("BRIDGE_RELAY_ROUTES", "observe"),
        ("RESPONSE_APP_ID", "responder"),
        ("RESPONSE_APP_CERTIFICATE_FILE", file.as_str()),
    ];
    let responder = |roles: &[&str], certificates: Vec<String>| Application {
        client_id: "responder".to_owned(),
        client_secret: String::new(),
        certificates,
        defender_roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        graph_roles: Vec::new(),
    };
    assert!(control.put_application(DEMO_TENANT_ID, responder(&["Machine.Isolate"], vec![certificate.clone()])));
    deployment.check(&settings).await.is_good();
    assert!(control.put_application(DEMO_TENANT_ID, responder(&["Machine.Read.All"], vec![certificate])));
    let row = deployment.check(&settings).await.only();
    assert!(row.contains("|RESPONSE_APP_ID: Machine.Isolate|is missing"), "{row}");
    assert!(control.put_application(DEMO_TENANT_ID, responder(&["Machine.Isolate"], Vec::new())));
    let row = deployment.check(&settings).await.only();
    assert!(row.contains("the certificate is not one of the application's"), "{row}");
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn hosts_of_key_sets_are_asked() {
    let deployment = Deployment::start().await;
    let settings = [
        ("BRIDGE_RELAY_JWKS_HOSTS", deployment.simulator.url()),
        ("BRIDGE_PUBLIC_URL", "https://relay.example".to_owned()),
        ("BRIDGE_RELAY_TENANTS", DEMO_TENANT_ID.to_owned()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    deployment.check(&settings).await.is_good();
    deployment.simulator.control().fail_next(Matcher::from("key-set"), Fault::refuse(503), 1);
    let row = deployment.check(&settings).await.only();
    assert!(row.starts_with("key set|127.0.0.1:") && row.contains("503"), "{row}");
    // A token that the platform signed is judged as the relay does.
    let host = deployment.simulator.url().trim_start_matches("http://").to_owned();
    let token = deployment.simulator.control().key_set_token(&json!({
        "client_id": DEMO_CLIENT_ID, "client_secret": DEMO_CLIENT_SECRET, "tenant_id": DEMO_TENANT_ID,
        "jwks_host": host, "aud": "https://relay.example",
    }));
    let token = deployment.written("token", &token);
    deployment.check_with(&["--token-file", &token], &settings).await.is_good();
    deployment.simulator.stop().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_before_anybody_is_asked() {
    let deployment = Deployment::start().await;
    for changes in [
        &[("BRIDGE_RELAY_JWKS_HOSTS", "keys.example")][..],
        &[("APP_SECRET", "")],
        &[("RESPONSE_APP_ID", "responder")],
        &[("BRIDGE_ANSWER_TTL", "soon")],
    ] {
        let told = deployment.check(changes).await;
        assert_eq!(told.code, Some(78), "{}", told.text);
    }
    let told = deployment.check_with(&["--role", "worker"], &[]).await;
    assert!(told.code == Some(78) && told.text.contains("BRIDGE_BROKER_URL"), "{}", told.text);
    // Without SECRET_KEY, key-set tokens need keys that seal.
    let key_sets = [
        ("SECRET_KEY", ""),
        ("BRIDGE_RELAY_JWKS_HOSTS", "keys.example"),
        ("BRIDGE_PUBLIC_URL", "https://relay.example"),
        ("BRIDGE_RELAY_TENANTS", DEMO_TENANT_ID),
    ];
    let told = deployment.check(&key_sets).await;
    assert!(told.code == Some(78) && told.text.contains("BRIDGE_SEAL_KEYS: set it, or SECRET_KEY"), "{}", told.text);
    assert_eq!(deployment.simulator.control().total(), 0);
    deployment.simulator.stop().await;
}
