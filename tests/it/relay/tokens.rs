//! Tokens over HTTP: rows A1 to A14 of `relay.md` 2.2, rotation, the limit in the token, and the order of checks.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{Fault, Scripted};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{alert, bridge_with, fatal, what};
use crate::bridge::{Answer, Options, SECRET_KEY, TestBridge, demo_token, mint, observable_list};

/// A token with any header and payload, signed with HMAC of `algorithm` whatever the header says.
fn token_of(header: &Value, payload: &Value, key: &str, algorithm: hmac::Algorithm) -> String {
    let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(payload.to_string()));
    let key = hmac::Key::new(algorithm, key.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(hmac::sign(&key, signed.as_bytes())))
}

fn hs256(payload: &Value) -> String {
    token_of(&json!({"alg": "HS256", "typ": "JWT"}), payload, SECRET_KEY, hmac::HMAC_SHA256)
}

fn claims() -> Value {
    json!({"client_id": DEMO_CLIENT_ID, "client_secret": DEMO_CLIENT_SECRET, "tenant_id": DEMO_TENANT_ID})
}

/// The claims with `changes` in them; null takes a claim away.
fn claims_with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims
}

fn claims_without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

async fn post_with_header(bridge: &TestBridge, path: &str, authorization: Option<&[u8]>) -> Answer {
    let mut request = bridge.client.post(bridge.url(path)).json(&json!([{"type": "ip", "value": "192.0.2.1"}]));
    if let Some(value) = authorization {
        request = request.header("authorization", reqwest::header::HeaderValue::from_bytes(value).expect("a header"));
    }
    Answer::of(request.send().await.expect("the ingress answers")).await
}

fn refusal(reason: &str) -> Vec<(String, String, String)> {
    vec![fatal("authorization error", &format!("Authorization failed: {reason}"))]
}

/// Every token that is no good, with the contract's reason.
fn bad_tokens() -> Vec<(&'static str, String, &'static str)> {
    const STRUCTURE: &str = "Wrong JWT structure";
    const KEY: &str = "Failed to decode JWT with provided key";
    const PAYLOAD: &str = "Wrong JWT payload structure";
    const EXPIRED: &str = "JWT has expired";
    let now = Timestamp::now().as_second();
    let good = demo_token();
    let segments: Vec<&str> = good.split('.').collect();
    let alg = |alg: Value, algorithm| token_of(&json!({"alg": alg}), &claims(), SECRET_KEY, algorithm);
    let part = |text: &str| BASE64URL.encode(text);
    let mut tampered = good.clone();
    tampered.replace_range(..segments[0].len(), &part(r#"{"alg":"HS256","typ":"JWT","x":1}"#));
    let mut cases = vec![
        ("A4 one segment", "abc".to_owned(), STRUCTURE),
        ("A4 two segments", format!("{}.{}", segments[0], segments[1]), STRUCTURE),
        ("A4 four segments", format!("{good}.x"), STRUCTURE),
        ("A4 padding", format!("{good}="), STRUCTURE),
        ("A4 standard alphabet", format!("{}.{}.++//", segments[0], segments[1]), STRUCTURE),
        ("A4 header is a list", format!("{}.{}.{}", part("[]"), segments[1], segments[2]), STRUCTURE),
        ("A4 payload is a text", format!("{}.{}.{}", segments[0], part("\"x\""), segments[2]), STRUCTURE),
        ("A4 payload is no UTF-8", format!("{}.{}.x", segments[0], BASE64URL.encode([0xff, 0xfe])), STRUCTURE),
        ("A4 payload is nested deeply", format!("{}.{}.x", segments[0], part(&"[".repeat(4_000))), STRUCTURE),
        ("A4 longer than any token", format!("{good}{}", "A".repeat(8 * 1024)), STRUCTURE),
        ("A5 another key", token_of(&json!({"alg": "HS256"}), &claims(), "another", hmac::HMAC_SHA256), KEY),
        ("A5 empty key", token_of(&json!({"alg": "HS256"}), &claims(), "", hmac::HMAC_SHA256), KEY),
        ("A5 changed header", tampered, KEY),
        ("A5 no signature", format!("{}.{}.", segments[0], segments[1]), KEY),
        ("A5 none", format!("{}.{}.", part(r#"{"alg":"none"}"#), segments[1]), KEY),
        ("A5 none but signed", alg(json!("none"), hmac::HMAC_SHA256), KEY),
        ("A6 HS384", alg(json!("HS384"), hmac::HMAC_SHA384), KEY),
        ("A6 HS512", alg(json!("HS512"), hmac::HMAC_SHA512), KEY),
        ("A6 RS256", alg(json!("RS256"), hmac::HMAC_SHA256), KEY),
        ("A7 unknown", alg(json!("X"), hmac::HMAC_SHA256), KEY),
        ("A7 lower case", alg(json!("hs256"), hmac::HMAC_SHA256), KEY),
        ("A7 null", alg(Value::Null, hmac::HMAC_SHA256), KEY),
        ("A7 missing", token_of(&json!({"typ": "JWT"}), &claims(), SECRET_KEY, hmac::HMAC_SHA256), KEY),
        ("A12 exp", hs256(&claims_with(json!({"exp": now - 61}))), EXPIRED),
        ("A12 exp long ago", hs256(&claims_with(json!({"exp": 1}))), EXPIRED),
        ("A12 nbf", hs256(&claims_with(json!({"nbf": now + 3_600}))), EXPIRED),
        // Times come before claims: an expired token says nothing of what is wrong in it besides.
        ("A12 before A8", hs256(&json!({"exp": 1})), EXPIRED),
    ];
    for name in ["client_id", "client_secret", "tenant_id"] {
        cases.push(("A8", hs256(&claims_without(name)), PAYLOAD));
        for value in [Value::Null, json!(7), json!(""), json!(["x"]), json!({"x": 1}), json!(true)] {
            cases.push(("A9", hs256(&claims_with(json!({name: value}))), PAYLOAD));
        }
    }
    for tenant in ["a/b", "../x", "..", ".", "a b", "a%2fb", "a?b", "t\u{e4}st", "a_b", &"a".repeat(256)] {
        cases.push(("A9 tenant", hs256(&claims_with(json!({"tenant_id": tenant}))), PAYLOAD));
    }
    for exp in [json!("soon"), json!([1]), json!(true)] {
        cases.push(("A9 exp", hs256(&claims_with(json!({"exp": exp}))), PAYLOAD));
    }
    cases
}

/// Rows A1 to A9 and A12, and that nobody asked Microsoft anything for them.
#[tokio::test]
async fn a_bad_token_is_refused_with_its_reason_on_every_route_but_version() {
    let bridge = TestBridge::start().await;
    const TYPE: &str = "Wrong authorization type";
    let basic = format!("Basic {}", demo_token());
    let three = format!("Bearer {} x", demo_token());
    let headers: [(&str, Option<&[u8]>, &str); 8] = [
        ("A1", None, "Authorization header is missing"),
        ("A2 Basic", Some(basic.as_bytes()), TYPE),
        ("A2 Token", Some(b"Token abc"), TYPE),
        ("A3 empty", Some(b""), TYPE),
        ("A3 one part", Some(b"Bearer"), TYPE),
        ("A3 one part and a space", Some(b"Bearer "), TYPE),
        ("A3 three parts", Some(three.as_bytes()), TYPE),
        ("A3 no text", Some(b"Bearer \xff\xfe"), TYPE),
    ];
    let routes = [
        "/health",
        "/observe/observables",
        "/deliberate/observables",
        "/refer/observables",
        "/respond/observables",
        "/respond/trigger",
    ];
    for (name, header, reason) in headers {
        for route in routes {
            let answer = post_with_header(&bridge, route, header).await;
            assert_eq!((answer.status, answer.errors()), (200, refusal(reason)), "{name} {route}");
            assert_eq!(answer.json().get("data"), None, "{name} {route}");
        }
    }
    for (name, token, reason) in bad_tokens() {
        for route in ["/health", "/observe/observables"] {
            let answer = post_with_header(&bridge, route, Some(format!("Bearer {token}").as_bytes())).await;
            assert_eq!((answer.status, answer.errors()), (200, refusal(reason)), "{name} {token}");
        }
    }
    let version = post_with_header(&bridge, "/version", Some(b"Basic")).await;
    assert_eq!(version.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(bridge.control().total(), 0, "{:?}", bridge.control().all_calls());
    bridge.stop().await;
}

#[tokio::test]
async fn a_good_token_may_say_more_than_it_must() {
    let bridge = TestBridge::start().await;
    let now = Timestamp::now().as_second();
    for more in [
        json!({}),
        json!({"exp": now + 600, "nbf": now - 600, "iat": now}),
        json!({"exp": now - 30}),
        json!({"nbf": now + 30}),
        json!({"exp": now as f64 + 600.5}),
        json!({"exp": null, "nbf": null}),
        json!({"aud": "somebody else", "iss": 7, "jwks_host": "evil.example"}),
        json!({"tenant_id": "corp.example"}),
    ] {
        let token = hs256(&claims_with(more.clone()));
        let answer = post_with_header(&bridge, "/health", Some(format!("bearer {token}").as_bytes())).await;
        assert_eq!(answer.json(), json!({"data": {"status": "ok"}}), "{more}");
    }
    let header = json!({"alg": "HS256", "kid": "x", "typ": 5, "crit": ["nothing"]});
    let token = token_of(&header, &claims(), SECRET_KEY, hmac::HMAC_SHA256);
    assert_eq!(bridge.post_as(&token, "/health", &Value::Null).await.json(), json!({"data": {"status": "ok"}}));
    bridge.stop().await;
}

/// Rows A10 and A11.
#[tokio::test]
async fn without_a_key_every_token_is_refused() {
    for keys in [vec![], vec![String::new()]] {
        let options = Options { token_keys: keys.clone(), worker: false, ..Options::default() };
        let bridge = TestBridge::start_with(options).await;
        let empty = token_of(&json!({"alg": "HS256"}), &claims(), "", hmac::HMAC_SHA256);
        for token in [demo_token(), empty] {
            let answer = bridge.post_as(&token, "/health", &Value::Null).await;
            assert_eq!((answer.status, answer.errors()), (200, refusal("<SECRET_KEY> is missing")), "{keys:?}");
        }
        bridge.stop().await;
    }
}

/// Row A13.
#[tokio::test]
async fn a_refusal_of_entra_is_passed_on_in_its_own_words() {
    let bridge = TestBridge::start().await;
    let token = mint(DEMO_TENANT_ID, DEMO_CLIENT_ID, "wrong", None);
    for path in ["/health", "/observe/observables"] {
        let answer = bridge.post_as(&token, path, &observable_list(&[("ip", "192.0.2.1")])).await;
        let [(code, message, kind)] = answer.errors().try_into().expect("one error");
        assert_eq!((code.as_str(), kind.as_str()), ("authorization error", "fatal"), "{path}");
        assert!(message.starts_with("Authorization failed: AADSTS7000215: "), "{message}");
        assert!(!message.contains("wrong"), "the secret is not repeated: {message}");
        assert_eq!(answer.json().get("data"), None);
    }
    let refused = |status, body| Scripted {
        method: Some("POST".to_owned()),
        path: format!("/{DEMO_TENANT_ID}/oauth2/v2.0/token"),
        status: Some(status),
        body: Some(body),
        ..Scripted::default()
    };
    for status in [400, 401] {
        for body in [json!({"error": "x"}), json!({}), json!("<html>"), json!({"error_description": ""})] {
            bridge.control().script(vec![refused(status, body.clone())]).expect("a script");
            let answer = bridge.post("/health", &Value::Null).await;
            assert_eq!(answer.errors(), refusal("on Microsoft Defender for Endpoint side"), "{status} {body}");
        }
    }
    assert_eq!(bridge.control().calls("alerts") + bridge.control().calls("machines"), 0);
    bridge.stop().await;
}

/// Row A14, and defect 15: once renewed, the call is repeated once.
#[tokio::test]
async fn a_second_401_is_reported_and_a_first_one_is_not() {
    let bridge = TestBridge::start().await;
    bridge.control().fail_next("machines", Fault::refuse(401), 1);
    assert_eq!(bridge.post("/health", &Value::Null).await.json(), json!({"data": {"status": "ok"}}));
    assert_eq!((bridge.control().calls("token"), bridge.control().calls("machines")), (2, 2));

    bridge.control().forget();
    bridge.control().fail_next("machines", Fault::refuse(401), 2);
    let answer = bridge.post("/health", &Value::Null).await;
    let expected = refusal("The authorization header is invalid or has expired (simulated).");
    assert_eq!(answer.errors(), expected);
    assert_eq!((bridge.control().calls("token"), bridge.control().calls("machines")), (1, 2));
    bridge.stop().await;
}

#[tokio::test]
async fn a_token_of_the_previous_key_is_taken_while_rotating() {
    let keys = ["the new key", SECRET_KEY].map(str::to_owned).to_vec();
    let bridge = TestBridge::start_with(Options { token_keys: keys, ..Options::default() }).await;
    let signed = |key: &str| token_of(&json!({"alg": "HS256"}), &claims(), key, hmac::HMAC_SHA256);
    for key in ["the new key", SECRET_KEY] {
        let answer = bridge.post_as(&signed(key), "/health", &Value::Null).await;
        assert_eq!(answer.json(), json!({"data": {"status": "ok"}}), "{key}");
    }
    let answer = bridge.post_as(&signed("the key before"), "/health", &Value::Null).await;
    assert_eq!(answer.errors(), refusal("Failed to decode JWT with provided key"));
    bridge.stop().await;
}

#[tokio::test]
async fn the_limit_in_a_token_lowers_and_never_raises() {
    let about = [("domain", "many.example")];
    let alerts: Vec<Value> = (0..6).map(|n| alert(&format!("a{n}"), n, 1, &about)).collect();
    let options = Options { entities_limit: 4, ..Options::default() };
    let bridge = bridge_with(json!({"alerts": alerts}), options).await;
    for (claim, shown) in [
        (json!(1), 1),
        (json!("2"), 2),
        (json!(4), 4),
        (json!(5), 4),
        (json!(1_000_000), 4),
        (json!("99999999999999999999"), 4),
        (json!(0), 4),
        (json!(-1), 4),
        (json!("-1"), 4),
        (json!(1.5), 4),
        (json!("1.5"), 4),
        (json!(" 1"), 4),
        (json!(""), 4),
        (json!(true), 4),
        (json!([1]), 4),
        (Value::Null, 4),
    ] {
        let token = hs256(&claims_with(json!({"CTR_ENTITIES_LIMIT": claim})));
        let answer =
            bridge.post_as(&token, "/observe/observables", &observable_list(&[("domain", "many.example")])).await;
        let ids: Vec<String> = answer.sightings().iter().map(what).collect();
        assert_eq!(ids, ["a0", "a1", "a2", "a3"][..shown], "{claim}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn the_token_is_judged_before_the_payload_and_the_payload_before_anything_is_asked() {
    let bridge = TestBridge::start().await;
    // Each call of Microsoft would fail, and each payload is wrong.
    bridge.control().fail_next("token", Fault::refuse(500), 1_000);
    let wrong = json!([{"type": 1}]);
    for route in ["/observe/observables", "/deliberate/observables"] {
        let answer = bridge.post_as("x", route, &wrong).await;
        assert_eq!(answer.errors(), refusal("Wrong JWT structure"), "{route}");
        let answer = bridge.post(route, &wrong).await;
        assert_eq!(answer.errors()[0].0, "invalid payload", "{route}");
    }
    assert_eq!(bridge.control().total(), 0);
    let answer = bridge.observe(&[("ip", "192.0.2.1")]).await;
    assert_eq!(answer.errors()[0].0, "unknown", "{}", answer.text);
    assert!(bridge.control().total() > 0);
    bridge.stop().await;
}

/// What waits in the queue can be read by whoever reads the disk; the secret in it cannot (`DESIGN.md` 4).
#[tokio::test]
async fn no_secret_is_readable_in_the_queue_while_a_request_waits() {
    let deadline = std::time::Duration::from_secs(3);
    let bridge = TestBridge::start_with(Options { worker: false, deadline, ..Options::default() }).await;
    let asked = async { bridge.observe(&[("domain", "waiting.example")]).await };
    let looked = async {
        loop {
            let files = std::fs::read_dir(bridge.folder.path()).unwrap();
            let bytes: Vec<u8> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
            let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            if holds("waiting.example") {
                let token = demo_token();
                for secret in [DEMO_CLIENT_SECRET, DEMO_CLIENT_ID, DEMO_TENANT_ID, token.as_str(), SECRET_KEY] {
                    assert!(!holds(secret), "{secret}");
                }
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let looked = tokio::time::timeout(std::time::Duration::from_secs(20), looked);
    let (answer, looked) = tokio::join!(asked, looked);
    looked.expect("the request is seen in the queue");
    assert_eq!(answer.errors()[0].0, "deadline");
    bridge.stop().await;
}
