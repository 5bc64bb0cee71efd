//! Secrets are planted in everything that the bridge is given, and searched for in everything that it leaves behind:
//! the queue's files, RabbitMQ's data, logs at `trace`, spans, metrics, answers, and `Debug` output.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use clap::Parser as _;
use defender_bridge::broker::{Headers, Message, rabbitmq};
use defender_bridge::cli::Cli;
use defender_bridge::config::{BrokerArgs, DefenderSettings, Findings, IngressSettings, KeyArgs, Routes};
use defender_bridge::credentials::{Credentials, SealKeys};
use defender_bridge::job::{Health, Job, Observe, TOPOLOGY};
use defender_bridge::relay::token::{self, Claims};
use defender_bridge::simulator::scenario::{C2_ADDRESS, DROPPED_SHA1, PHISHING_DOMAIN};
use defender_bridge::simulator::{self, Control, Fault, Simulator, Tenant, TenantData};
use defender_bridge::{defender, outbound};
use lapin::options::BasicGetOptions;
use lapin::{Connection, ConnectionProperties};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use url::form_urlencoded;

use super::breakable::Node;
use super::bridge::{Answer, client, observable_list};
use super::collector::Collector;
use super::spawned::{Deployment, PATIENCE, Role, Spawned, closed_port};

const TENANT: &str = "7d1f5c0e-1111-4222-8333-944445555666";
const CLIENT: &str = "c0ffee00-aaaa-4bbb-8ccc-9ddddeeeefff";
/// With everything that some encoding writes differently.
const CLIENT_SECRET: &str = "pl4nted~Client.of+the/tenant=\"quoted\"\\&%20é";
const SECRET_KEY: &str = "pl4nted-SECRET-KEY-0123456789abcdef0123456789abcdef0123456789abc";
const PREVIOUS_KEY: &str = "pl4nted-PREVIOUS-KEY-0123456789abcdef0123456789abcdef0123456789";
const SEAL_KEY: &[u8; 32] = b"pl4nted seal key, thirty-two by.";
const OLD_SEAL_KEY: &[u8; 32] = b"pl4nted old seal key, also 32 b.";
const BROKER_PASSWORD: &str = "pl4nted-broker-password";
const COLLECTOR_KEY: &str = "pl4nted-collector-key";
const WEBHOOK_KEY: &[u8; 32] = b"pl4nted webhook key, 32 bytes ..";
const WEBHOOK_TOKEN: &str = "pl4nted-webhook-token-0123456789abcdef";

const QUESTION: &[(&str, &str)] = &[("domain", PHISHING_DOMAIN), ("sha1", DROPPED_SHA1), ("ip", C2_ADDRESS)];

/// Requests that wait in the queue while it is searched.
const WAITING: usize = 30;

fn seal_keys() -> String {
    format!("k2={},k1={}", STANDARD.encode(SEAL_KEY), STANDARD.encode(OLD_SEAL_KEY))
}

fn bearer() -> String {
    mint(SECRET_KEY)
}

fn mint(key: &str) -> String {
    let claims = Claims {
        tenant_id: TENANT.to_owned(),
        client_id: CLIENT.to_owned(),
        client_secret: CLIENT_SECRET.into(),
        entities_limit: None,
    };
    token::mint(&claims, None, &key.into())
}

/// Texts to search for, each in every form it may have been written in.
struct Planted(Vec<(&'static str, String)>);

/// Bytes as a text of one character each, so that what is not UTF-8 can be searched as well.
fn by_the_byte(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// The forms of a secret: as it is, and as encodings write it, alone or within a longer text.
fn forms(secret: &[u8]) -> Vec<String> {
    let mut forms = vec![by_the_byte(secret)];
    if let Ok(text) = std::str::from_utf8(secret) {
        let json = |text: &str| {
            let quoted = serde_json::to_string(text).expect("a text is JSON");
            quoted[1..quoted.len() - 1].to_owned()
        };
        let form: String = form_urlencoded::byte_serialize(secret).collect();
        let written = [
            json(text),
            json(&json(text)),
            json(text).replace('/', "\\/"),
            json(text).replace('é', "\\u00e9"),
            text.escape_debug().to_string(),
            text.escape_debug().to_string().escape_debug().to_string(),
            form.replace('+', "%20"),
            form.to_ascii_lowercase(),
            form,
        ];
        forms.extend(written.iter().map(|written| by_the_byte(written.as_bytes())));
    }
    for engine in [STANDARD, URL_SAFE] {
        // Within a longer text a secret begins at any of three places of a group; what its neighbours share is cut off.
        for before in 0..3 {
            let padded = [&vec![b'x'; before][..], secret].concat();
            let encoded = engine.encode(&padded);
            let whole = padded.len() / 3 * 4;
            let shared = if before == 0 { 0 } else { 4 };
            forms.push(encoded[shared..whole].to_owned());
        }
    }
    let (mut hex, mut list) = (String::new(), String::new());
    for byte in secret {
        write!(hex, "{byte:02x}").expect("a text takes all");
        write!(list, "{byte}, ").expect("a text takes all");
    }
    forms.extend([hex.to_ascii_uppercase(), hex, list.trim_end_matches(", ").to_owned()]);
    forms.sort();
    forms.dedup();
    forms
}

impl Planted {
    /// Everything that the bridge was given, and the access tokens that it got.
    fn new(tokens: &[String]) -> Self {
        let bearer = bearer();
        let mut planted: Vec<(&str, Vec<u8>)> = vec![
            ("the client secret", CLIENT_SECRET.into()),
            ("SECRET_KEY", SECRET_KEY.into()),
            ("SECRET_KEY_PREVIOUS", PREVIOUS_KEY.into()),
            ("the seal key", SEAL_KEY.into()),
            ("the old seal key", OLD_SEAL_KEY.into()),
            ("the seal key as written", STANDARD.encode(SEAL_KEY).into()),
            ("the broker's password", BROKER_PASSWORD.into()),
            ("the collector's key", COLLECTOR_KEY.into()),
            ("the webhook's key", WEBHOOK_KEY.into()),
            ("the webhook's key as written", STANDARD.encode(WEBHOOK_KEY).into()),
            ("the webhook's token", WEBHOOK_TOKEN.into()),
        ];
        for (name, token) in
            tokens.iter().map(|token| ("an access token", token)).chain([("the bearer token", &bearer)])
        {
            // The header is the same in all tokens; half a token is a leak too.
            planted.extend(token.split('.').skip(1).map(|part| (name, part.as_bytes().to_vec())));
        }
        Self(planted.iter().flat_map(|(name, secret)| forms(secret).into_iter().map(|form| (*name, form))).collect())
    }

    /// What is found in `hay`.
    fn found(&self, hay: &[u8]) -> Vec<&'static str> {
        let hay = by_the_byte(hay);
        let mut found: Vec<_> =
            self.0.iter().filter(|(_, form)| hay.contains(form.as_str())).map(|(name, _)| *name).collect();
        found.dedup();
        found
    }

    /// Fails if there is any secret in `hay`.
    fn absent(&self, place: &str, hay: impl AsRef<[u8]>) {
        let hay = hay.as_ref();
        let found = self.found(hay);
        if found.is_empty() {
            return;
        }
        let lines = by_the_byte(hay);
        let lines: Vec<&str> = lines
            .lines()
            .filter(|line| self.0.iter().any(|(_, form)| line.contains(form.as_str())))
            .take(5)
            .map(|line| &line[..line.floor_char_boundary(1_500)])
            .collect();
        panic!("{found:?} in {place}:\n{}", lines.join("\n"));
    }

    /// As [`Planted::absent`], for every file below a folder. Returns how many bytes there were.
    fn absent_below(&self, folder: &Path) -> usize {
        let mut bytes = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                bytes += self.absent_below(&path);
            // A file may go between the look at its folder and the look into it.
            } else if let Ok(content) = std::fs::read(&path) {
                bytes += content.len();
                self.absent(&path.display().to_string(), content);
            }
        }
        bytes
    }
}

#[test]
fn the_search_finds_a_secret_in_any_form() {
    let planted = Planted::new(&["head.cGF5bG9hZCBvZiBhIHRva2Vu.c2lnbmF0dXJl".to_owned()]);
    let debug = format!("{CLIENT_SECRET:?}");
    let form: String = form_urlencoded::byte_serialize(CLIENT_SECRET.as_bytes()).collect();
    let value = serde_json::json!({"a": {"b": CLIENT_SECRET}}).to_string();
    let mut hays: Vec<(Vec<u8>, &str)> = vec![
        (format!("x{CLIENT_SECRET}x").into(), "the client secret"),
        (debug.into(), "the client secret"),
        (format!("a=b&client_secret={form}&c").into(), "the client secret"),
        (serde_json::json!({ "nested": value }).to_string().into(), "the client secret"),
        (value.into(), "the client secret"),
        (format!("{:?}", CLIENT_SECRET.as_bytes()).into(), "the client secret"),
        (format!("{SEAL_KEY:?}").into(), "the seal key"),
        (seal_keys().into(), "the seal key as written"),
        (b"Bearer head.cGF5bG9hZCBvZiBhIHRva2Vu.c2lnbmF0dXJl".into(), "an access token"),
        (bearer().into(), "the bearer token"),
        ([&b"\xff\x00"[..], BROKER_PASSWORD.as_bytes(), b"\xfe"].concat(), "the broker's password"),
    ];
    for before in ["", "1", "12"] {
        let plain = format!("{before}{SECRET_KEY}{before}");
        hays.push((STANDARD.encode(&plain).into(), "SECRET_KEY"));
        hays.push((URL_SAFE.encode(&plain).into(), "SECRET_KEY"));
    }
    for (hay, name) in hays {
        let found = planted.found(&hay);
        assert!(found.contains(&name), "{name} was not found in {}: {found:?}", by_the_byte(&hay));
    }
    assert!(planted.found(b"nothing of that kind, cGxh and pl4nted").is_empty());
}

async fn simulator() -> Simulator {
    let tenant = Tenant::reader(TENANT, CLIENT, CLIENT_SECRET, TenantData::Story);
    let settings = simulator::Settings { quota: None, tenants: vec![tenant], ..simulator::Settings::default() };
    Simulator::start(settings).await.expect("the simulator listens")
}

/// What all roles are given.
fn secrets(collector: &Collector) -> Vec<(&'static str, String)> {
    vec![
        ("SECRET_KEY", SECRET_KEY.to_owned()),
        ("SECRET_KEY_PREVIOUS", PREVIOUS_KEY.to_owned()),
        ("BRIDGE_SEAL_KEYS", seal_keys()),
        ("BRIDGE_WEBHOOK_SECRET", format!("whsec_{}", STANDARD.encode(WEBHOOK_KEY))),
        ("BRIDGE_WEBHOOK_TOKEN", WEBHOOK_TOKEN.to_owned()),
        ("RUST_LOG", "trace".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_EXPORTER_OTLP_HEADERS", format!("x-api-key={COLLECTOR_KEY}")),
        // A bad token, a wrong secret and a broken connection are answered within one retry or two.
        ("BRIDGE_RELAY_DEADLINE", "6s".to_owned()),
        // Each fault is met anew.
        ("BRIDGE_REFUSAL_TTL", "0s".to_owned()),
    ]
}

async fn post(url: String, token: &str) -> Answer {
    let request = client().post(url).bearer_auth(token).json(&observable_list(QUESTION));
    Answer::of(request.send().await.expect("the ingress answers")).await
}

/// Everything of an answer.
fn whole(answer: &Answer) -> String {
    format!("{:?} {}", answer.headers, answer.text)
}

/// Asks while everything that can go wrong does, with answers that repeat what they were sent. Returns the answers.
async fn fails(ingress: &Spawned, control: &Control) -> Vec<String> {
    let url = || ingress.url("/observe/observables");
    let mut answers = Vec::new();
    let json = |status: u16, body: serde_json::Value| Fault::Answer {
        status,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: body.to_string(),
    };
    let html = |status: u16, body: String| Fault::Answer {
        status,
        headers: vec![("content-type".to_owned(), "text/html".to_owned())],
        body: format!("<html><body>{body}</body></html>"),
    };
    let form: String = form_urlencoded::byte_serialize(CLIENT_SECRET.as_bytes()).collect();
    let entra = |what: &str| serde_json::json!({"error": "invalid_client", "error_description": what});

    // Entra, with a fresh token to fetch each time.
    for (fault, times) in [
        json(401, entra(&format!("AADSTS7000215: Invalid client secret provided: {CLIENT_SECRET}"))),
        json(400, entra(&format!("AADSTS9002: client_id={CLIENT}&client_secret={form}&scope=x"))),
        json(503, entra(&format!("{CLIENT_SECRET} {form}"))),
        json(200, serde_json::json!({"token": CLIENT_SECRET})),
        html(502, format!("{CLIENT_SECRET} {form}")),
        html(200, CLIENT_SECRET.to_owned()),
        Fault::MalformedJson,
        Fault::cut_after(200),
        Fault::Reset,
    ]
    .into_iter()
    // Twice is once for each audience, or a failure and a repetition; only one is kept up until nobody tries any more.
    .map(|fault| (fault.clone(), if matches!(fault, Fault::Answer { status: 503, .. }) { 50 } else { 2 }))
    {
        control.revoke_tokens(None);
        control.fail_next("token", fault, times);
        answers.push(whole(&post(url(), &bearer()).await));
        answers.push(whole(&post(ingress.url("/health"), &bearer()).await));
        control.clear_faults();
    }
    answers.push(whole(&post(url(), &bearer()).await));

    // Defender and Graph.
    let tokens = control.tokens().join(" ");
    for route in ["alerts", "files", "machines", "hunting"] {
        let refusal = |code: &str| serde_json::json!({"error": {"code": code, "message": format!("Bearer {tokens}")}});
        for fault in [
            json(400, refusal("BadRequest")),
            json(401, refusal("Unauthorized")),
            json(403, refusal("Forbidden")),
            json(403, serde_json::json!({"error": tokens})),
            json(429, refusal(&tokens)),
            json(500, refusal("InternalError")),
            json(200, refusal("None")),
            html(503, tokens.clone()),
            html(200, tokens.clone()),
            Fault::MalformedJson,
            Fault::Reset,
            Fault::Redirect { status: 302, location: format!("/elsewhere?token={form}") },
        ] {
            control.fail_next(route, fault, 2);
            answers.push(whole(&post(url(), &bearer()).await));
            control.clear_faults();
        }
    }

    // The caller's own mistakes.
    for token in [mint("another key that is long enough to sign something with it"), mint(PREVIOUS_KEY)] {
        answers.push(whole(&post(url(), &token).await));
    }
    for token in [CLIENT_SECRET.replace('é', "e"), format!("{}x", bearer()), format!("{}.", bearer())] {
        answers.push(whole(&post(url(), &token).await));
    }
    let request = client().post(url()).bearer_auth(bearer()).body(format!("[{{\"type\": \"{}\"", bearer()));
    let answer = Answer::of(request.send().await.expect("the ingress answers")).await;
    // What a caller sends in place of observables is never quoted either.
    answers.push(whole(&answer));
    answers.extend(events(ingress).await);
    answers
}

/// Sends host events as known senders and as nobody, good ones and bad ones. Returns the answers.
async fn events(ingress: &Spawned) -> Vec<String> {
    let body = r#"{"type": "host.reconcile", "host": {"id": 1}}"#;
    let key = hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_KEY);
    let now = jiff::Timestamp::now().as_second();
    let sign =
        |id: &str, at: i64| format!("v1,{}", STANDARD.encode(hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes())));
    let request = || client().post(ingress.url("/webhooks/cognito")).header("content-type", "application/json");
    let signed = |id: &str, at: i64| {
        let request = request().header("webhook-id", id).header("webhook-timestamp", at);
        request.header("webhook-signature", sign("msg_1", at)).body(body)
    };
    let with = |token: &str, body: String| request().bearer_auth(token).body(body);
    let mut answers = Vec::new();
    for (request, status) in [
        (signed("msg_1", now), 202),
        (signed("msg_1", now - 1_000), 401),
        (signed("msg_2", now).bearer_auth(WEBHOOK_TOKEN), 401),
        (with(WEBHOOK_TOKEN, body.to_owned()), 202),
        (with(&format!("{WEBHOOK_TOKEN}x"), body.to_owned()), 401),
        (with(WEBHOOK_TOKEN, format!("{{\"type\": \"{WEBHOOK_TOKEN}\"")), 400),
        (with(WEBHOOK_TOKEN, format!("{{\"type\": \"host.reconcile\", \"id\": \"{WEBHOOK_TOKEN}.\"}}")), 422),
    ] {
        let answer = Answer::of(request.send().await.expect("the ingress answers")).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        answers.push(whole(&answer));
    }
    answers
}

/// Requests that nobody answers yet.
fn crowd(ingress: &Spawned) -> JoinSet<Answer> {
    let mut callers = JoinSet::new();
    for _ in 0..WAITING {
        let url = ingress.url("/observe/observables");
        callers.spawn(async move { post(url, &bearer()).await });
    }
    callers
}

async fn assert_full(callers: JoinSet<Answer>) {
    for answer in callers.join_all().await {
        assert_eq!(answer.errors(), [], "{}", answer.text);
        assert!(!answer.sightings().is_empty());
    }
}

fn assert_spans_hold_nothing(planted: &Planted, collector: &Collector) {
    let bodies = collector.bodies();
    assert!(!bodies.is_empty());
    for body in bodies {
        planted.absent("an export of spans", body);
    }
    for span in collector.spans() {
        planted.absent("a span", format!("{span:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_left_behind_on_sqlite() {
    let (simulator, collector) = (simulator().await, Collector::start().await);
    let control = simulator.control();
    let folder = tempfile::tempdir().unwrap();
    let role = || {
        let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
        secrets(&collector).into_iter().fold(role, |role, (name, value)| role.set(name, value))
    };
    // One job in the worker's hands holds the others up.
    let mut first = role().set("BRIDGE_WORKER_CONCURRENCY", "1").set("BRIDGE_RELAY_DEADLINE", "50s").start().await;

    control.fail_next("hunting", Fault::slow(Duration::from_secs(5)), 1);
    let callers = crowd(&first);
    control.reached("hunting", 1).await;
    first.reaches("bridge_queue_ready", (WAITING - 1) as f64).await;
    let held = Planted::new(&control.tokens());
    let bytes = held.absent_below(folder.path());
    println!("{bytes} bytes of a queue with {WAITING} jobs");
    let mut queue = String::new();
    for file in ["queue", "queue-wal"] {
        queue += &by_the_byte(&std::fs::read(folder.path().join(file)).unwrap());
    }
    assert!(queue.contains(PHISHING_DOMAIN), "the jobs are not where they were looked for");
    assert_full(callers).await;

    held.absent_below(folder.path());
    first.stop().await;

    let mut serve = role().start().await;
    let answers = fails(&serve, control).await;
    let metrics = serve.metrics().await;
    let planted = Planted::new(&control.tokens());
    planted.absent_below(folder.path());
    serve.stop().await;
    planted.absent_below(folder.path());
    for answer in answers {
        planted.absent("an answer", answer);
    }
    planted.absent("the metrics", metrics);
    assert_spans_hold_nothing(&planted, &collector);
    for process in [&first, &serve] {
        let log = process.log();
        println!("{} bytes of log", log.len());
        assert!(log.contains("\"level\":\"DEBUG\""), "nothing was logged in detail");
        planted.absent("a log", log);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn no_secret_is_left_behind_on_rabbitmq() {
    let node = Node::start().await;
    node.ctl(&["add_user", "bridge", BROKER_PASSWORD]).await;
    node.ctl(&["set_permissions", "bridge", ".*", ".*", ".*"]).await;
    let url = format!("amqp://bridge:{BROKER_PASSWORD}@127.0.0.1:{}/%2f", node.port());
    let (simulator, collector) = (simulator().await, Collector::start().await);
    let control = simulator.control();
    let deployment = secrets(&collector)
        .into_iter()
        .fold(Deployment::at(&url, &simulator.url()), |deployment, (name, value)| deployment.set(name, value));
    let mut ingress = deployment.role("ingress").set("BRIDGE_RELAY_DEADLINE", "50s").start().await;

    // No worker: they wait.
    let callers = crowd(&ingress);
    ingress.reaches("bridge_queue_ready", WAITING as f64).await;
    let planted = Planted::new(&[]);
    let bytes = planted.absent_below(node.folder());
    println!("{bytes} bytes of a node with {WAITING} jobs");
    let looked_at = look_into_queues(&node, &planted).await;
    assert!(looked_at >= WAITING, "{looked_at}");
    let [mut worker] = deployment.workers().await;
    assert_full(callers).await;
    ingress.stop().await;

    let mut ingress_2 = deployment.ingress().await;
    let answers = fails(&ingress_2, control).await;
    let metrics = [ingress_2.metrics().await, worker.metrics().await];
    let planted = Planted::new(&control.tokens());
    // The node goes away and comes back once, because that is when links say most.
    node.kill().await;
    node.launch().await;
    node.wait().await;
    let end = Instant::now() + PATIENCE;
    while !post(ingress_2.url("/observe/observables"), &bearer()).await.errors().is_empty() {
        assert!(Instant::now() < end, "the service does not come back");
        sleep(Duration::from_millis(100)).await;
    }
    ingress_2.stop().await;
    worker.stop().await;
    planted.absent_below(node.folder());
    for answer in answers {
        planted.absent("an answer", answer);
    }
    for text in metrics {
        planted.absent("the metrics", text);
    }
    assert_spans_hold_nothing(&planted, &collector);
    for process in [&ingress, &ingress_2, &worker] {
        let log = process.log();
        println!("{} bytes of log", log.len());
        planted.absent("a log", log);
    }
    // A start that fails tells more than others.
    for url in [
        url.replace(BROKER_PASSWORD, &format!("{BROKER_PASSWORD}x")),
        url.replace(&node.port().to_string(), &closed_port().to_string()),
    ] {
        let mut process = deployment.role("worker").set("BRIDGE_BROKER_URL", url).spawn();
        assert_eq!(process.ends_within(PATIENCE).await.code(), Some(1));
        planted.absent("the log of a start that failed", process.log());
    }
}

/// Takes every message out of every queue, searches it, and puts it back. Returns how many there were.
async fn look_into_queues(node: &Node, planted: &Planted) -> usize {
    let queues = node.ctl(&["list_queues", "--quiet", "--no-table-headers", "name", "type"]).await;
    let connection = Connection::connect(&node.url(), ConnectionProperties::default()).await.unwrap();
    let mut count = 0;
    // Streams cannot be read this way, and to try ends the connection. Their files are searched like all others.
    let read = queues.lines().filter(|line| !line.contains("stream"));
    for queue in read.filter_map(|line| line.split_whitespace().next()) {
        let channel = connection.create_channel().await.unwrap();
        while let Ok(Some(message)) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await {
            count += 1;
            planted.absent(queue, &message.data);
            planted.absent(queue, format!("{:?}", message.properties));
        }
        let _ = channel.close(200, "looked".into()).await;
    }
    connection.close(200, "looked".into()).await.unwrap();
    count
}

#[test]
fn debug_output_shows_no_secret() {
    let planted = Planted::new(&[]);
    let absent = |what: &dyn std::fmt::Debug| {
        planted.absent("Debug output", format!("{what:?}"));
        planted.absent("Debug output", format!("{what:#?}"));
    };
    let broker = format!("amqp://bridge:{BROKER_PASSWORD}@127.0.0.1/%2f");
    let keys = seal_keys();
    let given = ["--secret-key", SECRET_KEY, "--secret-key-previous", PREVIOUS_KEY, "--seal-keys", &keys];
    for (command, more) in [
        ("serve", &["--broker-url", &broker][..]),
        ("ingress", &["--broker-url", &broker]),
        ("worker", &["--broker-url", &broker]),
    ] {
        absent(&Cli::parse_from(["defender-bridge", command].iter().chain(&given).chain(more)));
    }
    let secret = format!("whsec_{}", STANDARD.encode(WEBHOOK_KEY));
    for command in ["serve", "ingress"] {
        let webhook = ["defender-bridge", command, "--webhook-secret", &secret, "--webhook-token", WEBHOOK_TOKEN];
        absent(&Cli::parse_from(webhook));
    }
    let mint = ["token", "mint", "--tenant-id", TENANT, "--app-id", CLIENT, "--app-secret", CLIENT_SECRET];
    absent(&Cli::parse_from(["defender-bridge"].iter().chain(&mint).chain(&given[..4])));
    let bearer = bearer();
    absent(&Cli::parse_from(["defender-bridge", "token", "inspect", &bearer, "--secret-key", SECRET_KEY]));

    let args = KeyArgs {
        secret_key: Some(SECRET_KEY.into()),
        secret_key_file: None,
        secret_key_previous: Some(PREVIOUS_KEY.into()),
        secret_key_previous_file: None,
        seal_keys: Some(keys.clone()),
        seal_keys_file: None,
    };
    let mut findings = Findings::default();
    let resolved = args.resolve(true, &mut findings);
    absent(&args);
    absent(&resolved);
    absent(&findings);
    let args = BrokerArgs { broker_url: broker.clone(), broker_url_file: None, broker_namespace: "bridge".to_owned() };
    absent(&args);
    absent(&args.resolve(false, &mut findings));
    absent(&rabbitmq::Settings {
        urls: vec![broker],
        namespace: "bridge".to_owned(),
        connection_name: "bridge".to_owned(),
        topology: &TOPOLOGY,
    });
    absent(&DefenderSettings::default());
    absent(&IngressSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        routes: Routes::default(),
        deadline: Duration::from_secs(1),
        max_wait: Duration::from_secs(1),
        entities_limit: 1,
        key_sets: None,
    });

    let claims = Claims {
        tenant_id: TENANT.to_owned(),
        client_id: CLIENT.to_owned(),
        client_secret: CLIENT_SECRET.into(),
        entities_limit: None,
    };
    absent(&claims);
    absent(&token::Keys::new(Some(SECRET_KEY.into()), Some(PREVIOUS_KEY.into())));
    absent(&token::verify(&format!("{bearer}x"), &token::Keys::new(None, None), jiff::Timestamp::now()));
    let credentials =
        Credentials { tenant_id: TENANT.to_owned(), client_id: CLIENT.to_owned(), client_secret: CLIENT_SECRET.into() };
    absent(&credentials);
    absent(&defender::Credentials {
        tenant_id: TENANT.to_owned(),
        client_id: CLIENT.to_owned(),
        proof: secrecy::SecretString::from(CLIENT_SECRET).into(),
    });
    let seal_keys = Arc::new(SealKeys::parse(&keys).unwrap());
    absent(&seal_keys);
    let mut message = Message::new(Bytes::new());
    let sealed = seal_keys.seal(&credentials, message.id).unwrap();
    absent(&sealed);
    let observables = vec![("domain".to_owned(), PHISHING_DOMAIN.to_owned())];
    for job in [
        Job::Observe(Observe { credentials: sealed.clone(), limit: 100, observables }),
        Job::Health(Health { credentials: sealed }),
    ] {
        absent(&job);
        message.body = job.encode();
        planted.absent("a job", &message.body);
        absent(&Job::decode(&message.body));
    }
    absent(&message);
    message.headers = Headers::from([("authorization".to_owned(), bearer.clone())]);
    absent(&message);
    absent(&Job::decode(bearer.as_bytes()));

    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::AUTHORIZATION, format!("Bearer {bearer}").parse().unwrap());
    let form: String = form_urlencoded::byte_serialize(CLIENT_SECRET.as_bytes()).collect();
    absent(&outbound::Request {
        method: http::Method::POST,
        url: format!("https://host/path/{form}?token={bearer}").parse().unwrap(),
        template: "/path/{id}",
        headers: headers.clone(),
        body: Bytes::from(format!("client_secret={form}")),
        limit: None,
        body_limit_bytes: 1,
        resend_count: 0,
    });
    absent(&outbound::Answer { status: http::StatusCode::OK, headers, body: Bytes::from(bearer) });
}
