//! The document at `/openapi.json`, held to what the ingress really does.

use boon::{Compiler, Schemas};
use defender_bridge::config::Routes;
use defender_bridge::simulator::Fault;
use defender_bridge::simulator::scenario::{
    C2_ADDRESS, DEMO_TENANT_ID, DROPPED_SHA256, HR_WORKSTATION, PHISHING_DOMAIN,
};
use http::Method;
use serde_json::{Value, json};

use super::bridge::{Answer, Options, TestBridge, demo_token};
use super::webhook;

/// Where the document is for references in it.
const PLACE: &str = "https://bridge.example/openapi.json";

/// A bridge and its document.
struct Described {
    bridge: TestBridge,
    document: Value,
}

impl Described {
    async fn start() -> Self {
        let routes = Routes { observe: true, refer: true, respond: true };
        Self::with(Options { webhook: Some(webhook::settings()), routes, ..Options::default() }).await
    }

    async fn with(options: Options) -> Self {
        let bridge = TestBridge::start_with(options).await;
        let answer = bridge.client.get(bridge.url("/openapi.json")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(answer.headers()["cache-control"], "public, max-age=3600");
        let document = answer.json().await.unwrap();
        Self { bridge, document }
    }

    /// Holds `value` to the schema at `pointer`.
    fn fits(&self, pointer: &str, value: &Value) -> Result<(), String> {
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.enable_format_assertions();
        compiler.add_resource(PLACE, self.document.clone()).unwrap();
        // A pointer in a URL's fragment: what a path holds must not be taken for its syntax.
        let fragment = pointer.replace('{', "%7B").replace('}', "%7D");
        let schema =
            compiler.compile(&format!("{PLACE}#{fragment}"), &mut schemas).map_err(|error| format!("{error:#}"))?;
        schemas.validate(value, schema).map_err(|error| format!("{pointer}: {error:#}\n{value:#}"))
    }

    /// Holds an answer to what the document says of this status.
    fn check(&self, path: &str, method: &str, answer: &Answer) {
        let escaped = path.replace('/', "~1");
        let described = format!("/paths/{escaped}/{method}/responses/{}", answer.status);
        let media = answer.headers["content-type"].to_str().unwrap();
        assert!(self.document.pointer(&described).is_some(), "{described}: {}", answer.text);
        let schema = format!("{described}/content/{}/schema", media.replace('/', "~1"));
        assert!(self.document.pointer(&schema).is_some(), "{schema}: {}", answer.text);
        self.fits(&schema, &answer.json()).unwrap();
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        Answer::of(request.send().await.unwrap()).await
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.bridge.client.post(self.bridge.url(path))
    }

    /// A call of the relay with a token and this body, held to the document.
    async fn relay(&self, path: &str, body: &str) -> Answer {
        let answer = self.send(self.post(path).bearer_auth(demo_token()).body(body.to_owned())).await;
        assert_eq!(answer.status, 200);
        self.check(path, "post", &answer);
        answer
    }
}

#[tokio::test]
async fn every_operation_of_the_document_is_served_and_no_other() {
    let described = Described::start().await;
    let paths = described.document["paths"].as_object().unwrap();
    assert!(paths.len() >= 9, "{paths:?}");
    let methods = [Method::GET, Method::POST, Method::OPTIONS, Method::PUT, Method::PATCH, Method::DELETE];
    for (path, operations) in paths {
        let url = described.bridge.url(&path.replace("{id}", "00000000-0000-4000-8000-000000000001"));
        for method in &methods {
            let answer = described.send(described.bridge.client.request(method.clone(), &url)).await;
            let is_described = operations.get(method.as_str().to_ascii_lowercase()).is_some();
            assert_eq!(answer.status != 405, is_described, "{method} {path}: {}", answer.status);
            let allow = answer.headers.get("allow").map(|allow| allow.to_str().unwrap().to_owned());
            if answer.status == 405 {
                let allow = allow.expect("a 405 says what is allowed");
                for name in operations.as_object().unwrap().keys().filter(|name| *name != "parameters") {
                    assert!(allow.contains(&name.to_ascii_uppercase()), "{method} {path}: {allow}");
                }
            } else if *method == Method::OPTIONS {
                let said = &operations["options"]["responses"]["200"]["headers"]["Allow"]["schema"]["const"];
                assert_eq!(said.as_str(), allow.as_deref());
            }
        }
    }
    let nowhere = described.send(described.bridge.client.get(described.bridge.url("/openapi"))).await;
    assert_eq!(nowhere.status, 404);
    described.fits("/components/schemas/HttpError", &nowhere.json()).unwrap();
}

#[tokio::test]
async fn without_a_webhook_the_document_has_none() {
    let described = Described::with(Options::default()).await;
    assert!(described.document["paths"].get("/webhooks/cognito").is_none());
    let head = described.bridge.client.head(described.bridge.url("/openapi.json")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.bytes().await.unwrap().len()), (200, 0));
}

#[tokio::test]
async fn every_example_fits_its_schema() {
    let described = Described::start().await;
    let mut bodies = Vec::new();
    collect(&described.document["paths"], "/paths", &mut bodies);
    let mut count = 0;
    for body in &bodies {
        let Some(examples) = described.document.pointer(&format!("{body}/examples")) else { continue };
        for example in examples.as_object().unwrap().values() {
            described.fits(&format!("{body}/schema"), &example["value"]).unwrap();
            count += 1;
        }
    }
    assert!(count >= 40, "{count} examples");
    assert_eq!(described.document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// The pointers of all bodies that have a schema.
fn collect(value: &Value, pointer: &str, found: &mut Vec<String>) {
    let Some(members) = value.as_object() else { return };
    for (name, value) in members {
        let inner = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
        if pointer.ends_with("/content") && value.get("schema").is_some() {
            found.push(inner);
        } else {
            collect(value, &inner, found);
        }
    }
}

#[tokio::test]
async fn real_answers_of_the_relay_fit_the_document() {
    let described = Described::start().await;
    let seen = json!([
        {"type": "domain", "value": PHISHING_DOMAIN}, {"type": "sha256", "value": DROPPED_SHA256},
        {"type": "ip", "value": C2_ADDRESS}, {"type": "ip", "value": "not an address"}, {"type": "user", "value": "x"},
    ]);
    let answer = described.relay("/observe/observables", &seen.to_string()).await;
    assert!(answer.sightings().len() >= 3, "{}", answer.text);
    let asking = ["/observe/observables", "/deliberate/observables", "/refer/observables", "/respond/observables"];
    let bodies = ["[]", "{}", "", "not JSON", r#"[1, {"type": "", "value": null}]"#, &seen.to_string()];
    for path in ["/health", "/version", "/respond/trigger"].into_iter().chain(asking) {
        for body in bodies {
            described.relay(path, body).await;
        }
        for request in [described.post(path), described.post(path).bearer_auth("x.y.z")] {
            described.check(path, "post", &described.send(request).await);
        }
        let long = described.send(described.post(path).body(vec![b' '; 1024 * 1024 + 1])).await;
        assert_eq!(long.status, 413);
        described.check(path, "post", &long);
    }
    for (action, kind, value) in [
        ("microsoft-defender-FullIsolation", "ms_machine_id", "1e5bc9d7e413ddd7902c2932e418702b84d0cc07"),
        ("microsoft-defender-remove-indicator", "ip", "192.0.2.1"),
        ("nothing-known", "ip", "192.0.2.1"),
        ("microsoft-defender-add-indicator-alert", "hostname", "pc-1"),
    ] {
        let form = json!({"action-id": action, "observable_type": kind, "observable_value": value});
        described.relay("/respond/trigger", &form.to_string()).await;
    }
    let url = |id: &str| described.bridge.url(&format!("/actions/{id}"));
    let get = |id: &str| described.bridge.client.get(url(id));
    let action = described.bridge.control().isolate_in_portal(DEMO_TENANT_ID, HR_WORKSTATION, "ann").unwrap();
    for (request, status) in [
        (get(&action).bearer_auth(demo_token()), 200),
        (get("00000000-0000-4000-8000-00000000ffff").bearer_auth(demo_token()), 404),
        (get("a%20b").bearer_auth(demo_token()), 400),
        (get(&action), 401),
    ] {
        let answer = described.send(request).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        described.check("/actions/{id}", "get", &answer);
    }
    described.bridge.control().fail_next("alerts", Fault::Refuse { status: 403 }, 10);
    described.bridge.control().fail_next("hunting", Fault::Refuse { status: 403 }, 10);
    let answer = described.relay("/observe/observables", r#"[{"type": "ip", "value": "198.51.100.250"}]"#).await;
    assert!(!answer.errors().is_empty(), "{}", answer.text);
}

#[tokio::test]
async fn real_answers_of_the_webhook_fit_the_document() {
    let described = Described::start().await;
    let path = "/webhooks/cognito";
    let tagged = r#"{"type": "host.tag.added", "id": "one", "host": {"id": 4711}, "tag": "block"}"#;
    let fault = r#"{"type": "host.tag.added", "host": {"id": 0}}"#;
    let json = "application/json";
    for (status, media, body) in [
        (202, json, tagged.to_owned()),
        (202, json, tagged.to_owned()),
        (202, json, format!(r#"[{tagged}, {fault}, {{}}, 7]"#)),
        (400, json, "[]".to_owned()),
        (400, json, "{".to_owned()),
        (413, json, " ".repeat(262_145)),
        (415, "text/plain", tagged.to_owned()),
        (422, json, fault.to_owned()),
    ] {
        let request = described.post(path).bearer_auth(webhook::TOKEN).header("content-type", media).body(body);
        let answer = described.send(request).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        described.check(path, "post", &answer);
    }
    let answer = described.send(described.post(path).body(tagged)).await;
    assert_eq!(answer.status, 401);
    described.check(path, "post", &answer);

    let mut throttled = webhook::settings();
    throttled.rate = 1;
    let described = Described::with(Options { webhook: Some(throttled), ..Options::default() }).await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let request = described.post(path).bearer_auth(webhook::TOKEN).header("content-type", json).body(tagged);
        let answer = described.send(request).await;
        described.check(path, "post", &answer);
        statuses.push(answer.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    described.bridge.shutdown.begin();
}
