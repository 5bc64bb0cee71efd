//! Events to a webhook: form, signature, repeats, and what befalls them on the way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use defender_bridge::simulator::cognito::{Emit, EmitForm, Emitted};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Cognito, host, members, tags};

/// A webhook that keeps what comes and answers as told, 202 otherwise.
struct Webhook {
    url: String,
    book: Arc<Book>,
}

#[derive(Default)]
struct Book {
    taken: Mutex<Vec<(HeaderMap, Bytes)>>,
    answers: Mutex<VecDeque<u16>>,
    count: watch::Sender<usize>,
}

async fn take(State(book): State<Arc<Book>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    book.taken.lock().unwrap().push((headers, body));
    book.count.send_modify(|count| *count += 1);
    let answer = book.answers.lock().unwrap().pop_front().unwrap_or(202);
    StatusCode::from_u16(answer).unwrap()
}

impl Webhook {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks/cognito", listener.local_addr().unwrap());
        let book = Arc::new(Book::default());
        let router = Router::new().fallback(take).with_state(Arc::clone(&book));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, book }
    }

    fn answer(&self, statuses: &[u16]) {
        self.book.answers.lock().unwrap().extend(statuses);
    }

    /// Bodies in the order they came.
    fn bodies(&self) -> Vec<Value> {
        self.book.taken.lock().unwrap().iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect()
    }

    fn headers(&self, name: &str) -> Vec<String> {
        let taken = self.book.taken.lock().unwrap();
        taken.iter().map(|(headers, _)| headers[name].to_str().unwrap().to_owned()).collect()
    }

    async fn came(&self, count: usize) {
        self.book.count.subscribe().wait_for(|come| *come >= count).await.unwrap();
    }
}

fn example(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn changes_by_analysts_and_by_the_api_become_events_of_the_form_asked_for() {
    let (cognito, webhook) = (Cognito::of(vec![host(7, &["VIP"]), host(8, &[])]).await, Webhook::start().await);
    let brain = cognito.brain();
    let mut seen = 0;
    for form in [EmitForm::Native, EmitForm::Hosted, EmitForm::Syslog, EmitForm::Canonical] {
        brain.emit(Some(Emit { form, ..Emit::to(&webhook.url) })).unwrap();
        brain.add_tag(7, "block", "analyst.one");
        brain.emission_settled().await;
        cognito.ask("PATCH", "/api/v2.5/tagging/host/7", Some(tags(&["VIP"]))).await;
        brain.emission_settled().await;
        brain.set_scores(7, 50, 60, 0);
        brain.emission_settled().await;
        let bodies = webhook.bodies().split_off(seen);
        seen += bodies.len();
        let [added, removed, scored] = bodies.as_slice() else { panic!("{form:?}: {bodies:?}") };
        let message = "[table:host][id:7] with tags ['VIP'] was changed to ['VIP', 'block']";
        let native = example(include_str!("../../../data/cognito/native.qux.audit.host-tags.json"));
        match form {
            EmitForm::Native => {
                assert_eq!((members(added), &added["message"]), (members(&native), &json!(message)));
                assert_eq!((&added["user"], &removed["user"]), (&json!("analyst.one"), &json!("svc-defender-bridge")));
                let scoring = example(include_str!("../../../data/cognito/native.qux.host-scoring.json"));
                assert_eq!((members(scored), &scored["host_id"]), (members(&scoring), &json!(7)));
            }
            EmitForm::Hosted => {
                assert_eq!((&added["message"], &added["result_status"]), (&json!(message), &json!("success")));
                assert_eq!((&scored["entity_id"], &scored["type"]), (&json!(7), &json!("host")));
            }
            EmitForm::Syslog => {
                let line = added["message"].as_str().unwrap();
                let inner = line.strip_prefix("vectra_json_audit -: ").unwrap();
                assert_eq!(members(&example(inner)), members(&native));
                assert!(scored["message"].as_str().unwrap().starts_with("vectra_json_v2 -: {"));
            }
            EmitForm::Canonical => {
                assert_eq!((&added["type"], &added["host"]["id"]), (&json!("host.tags.changed"), &json!(7)));
                assert_eq!(added["tags"], json!({"before": ["VIP"], "after": ["VIP", "block"]}));
                assert_eq!((&added["actor"], &scored["type"]), (&json!("analyst.one"), &json!("host.scored")));
                assert_ne!(added["id"], removed["id"]);
            }
        }
        brain.set_scores(7, 0, 0, 0);
        brain.emission_settled().await;
        seen += 1;
    }
    brain.add_tag_to_many(&[7, 8], "x", "analyst.one");
    brain.emission_settled().await;
    let hosts: Vec<Value> = webhook.bodies().split_off(seen).iter().map(|event| event["host"]["id"].clone()).collect();
    assert_eq!(hosts.len(), 2, "one event for each host: {hosts:?}");
    brain.emit(None).unwrap();
    brain.add_tag(8, "y", "analyst.one");
    brain.emission_settled().await;
    assert_eq!(webhook.bodies().len(), seen + 2);
    assert_eq!(cognito.get("/api/v2.5/audits").await.1["audits"].as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_with_the_same_id_and_a_good_signature() {
    let (cognito, webhook) = (Cognito::of(vec![host(7, &[])]).await, Webhook::start().await);
    let key = [7u8; 24];
    let secret = format!("whsec_{}", BASE64.encode(key));
    let emit = Emit { token: Some("bearer-token".into()), secret: Some(secret), retry_ms: 5, ..Emit::to(&webhook.url) };
    cognito.brain().emit(Some(emit)).unwrap();
    webhook.answer(&[503, 429, 500]);
    cognito.brain().add_tag(7, "block", "analyst.one");
    webhook.came(4).await;
    cognito.brain().emission_settled().await;
    let ids = webhook.headers("webhook-id");
    assert!(ids.len() == 4 && ids.iter().all(|id| *id == ids[0] && !id.contains('.')), "{ids:?}");
    assert_eq!(webhook.headers("authorization")[0], "Bearer bearer-token");
    for (headers, body) in webhook.book.taken.lock().unwrap().iter() {
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        let content = [text("webhook-id").as_bytes(), b".", text("webhook-timestamp").as_bytes(), b".", body].concat();
        let signature = text("webhook-signature");
        let signature = BASE64.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
        aws_lc_rs::hmac::verify(&key, &content, &signature).unwrap();
    }
    let emitted = cognito.brain().emitted();
    assert_eq!((emitted.made, emitted.accepted, emitted.tries, emitted.waiting), (1, 1, 4, 0));
}

#[tokio::test]
async fn an_event_that_nobody_takes_is_given_up_and_holds_up_no_other() {
    let (cognito, webhook) = (Cognito::of(vec![host(7, &[])]).await, Webhook::start().await);
    let brain = cognito.brain();
    brain.emit(Some(Emit { tries: 1, ..Emit::to(&webhook.url) })).unwrap();
    webhook.answer(&[400]);
    brain.add_tag(7, "a", "analyst.one");
    brain.emission_settled().await;
    assert_eq!(brain.emitted().abandoned, 1);
    brain.emit(Some(Emit { retry_ms: 600_000, tries: 2, ..Emit::to(&webhook.url) })).unwrap();
    webhook.answer(&[500]);
    brain.add_tag(7, "b", "analyst.one");
    brain.add_tag(7, "c", "analyst.one");
    webhook.came(3).await;
    let last = webhook.bodies().pop().unwrap();
    assert!(last["message"].as_str().unwrap().ends_with("['a', 'b', 'c']"), "{last}");
}

#[tokio::test]
async fn shares_of_the_events_are_lost_repeated_reordered_and_delayed() {
    const EVENTS: u64 = 400;
    let (cognito, webhook) = (Cognito::of((1..=20).map(|id| host(id, &[])).collect()).await, Webhook::start().await);
    let brain = cognito.brain();
    let emit = Emit {
        lost: 0.2,
        duplicated: 0.2,
        reordered: 0.2,
        delayed: 0.2,
        delay_ms: 50,
        seed: 7,
        form: EmitForm::Canonical,
        ..Emit::to(&webhook.url)
    };
    brain.emit(Some(emit)).unwrap();
    for number in 0..EVENTS {
        brain.add_tag(1 + number % 20, &format!("t{number}"), "analyst.one");
    }
    tokio::time::timeout(Duration::from_secs(60), brain.emission_settled()).await.unwrap();
    let emitted = brain.emitted();
    let Emitted { made, lost, accepted, duplicated, reordered, delayed, tries, abandoned, waiting } = emitted;
    assert_eq!((made, abandoned, waiting, lost + accepted), (EVENTS, 0, 0, EVENTS), "{emitted:?}");
    assert_eq!(tries, accepted + duplicated, "{emitted:?}");
    for share in [lost, duplicated, reordered, delayed] {
        assert!((40..120).contains(&share), "{emitted:?}");
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut longest: HashMap<u64, usize> = HashMap::new();
    let mut passed = 0;
    for body in webhook.bodies() {
        if std::mem::replace(seen.entry(body["id"].as_str().unwrap().to_owned()).or_default(), 1) == 1 {
            continue;
        }
        let (host, tags) = (body["host"]["id"].as_u64().unwrap(), body["tags"]["after"].as_array().unwrap().len());
        let most = longest.entry(host).or_default();
        passed += usize::from(tags < *most);
        *most = tags.max(*most);
    }
    assert_eq!(seen.len() as u64, accepted);
    assert!(passed > 20, "only {passed} events came after a later one of their host");
}

#[tokio::test]
async fn without_fates_the_events_of_a_host_come_in_order() {
    let (cognito, webhook) = (Cognito::of(vec![host(7, &[]), host(8, &[])]).await, Webhook::start().await);
    let brain = cognito.brain();
    brain.emit(Some(Emit { form: EmitForm::Canonical, ..Emit::to(&webhook.url) })).unwrap();
    for number in 0..50 {
        brain.add_tag(7 + number % 2, &format!("t{number}"), "analyst.one");
    }
    brain.emission_settled().await;
    for id in [7, 8] {
        let lengths: Vec<usize> = webhook
            .bodies()
            .iter()
            .filter(|body| body["host"]["id"] == id)
            .map(|body| body["tags"]["after"].as_array().unwrap().len())
            .collect();
        assert_eq!(lengths, (1..=25).collect::<Vec<_>>());
    }
}
