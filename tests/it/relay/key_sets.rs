//! Tokens that the platform signs, over HTTP: rows J1 to J8 of `relay.md` 2.3, which hosts are asked and how often, and
//! that the two kinds of token keep out of each other's way.

use std::time::Duration;

use defender_bridge::key_sets;
use defender_bridge::relay::key_set::Rules;
use defender_bridge::simulator::scenario::{
    DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, OTHER_TENANT_ID,
};
use defender_bridge::simulator::{self, Fault, Scripted, Simulator};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{alert, fatal, what};
use crate::bridge::{Answer, Options, SECRET_KEY, TestBridge, demo_token, observable_list};

/// Under which the platform knows the relay: not the address that requests come to.
const PUBLIC_URL: &str = "https://relay.example/base";
/// `BRIDGE_SEAL_KEYS`, for a deployment without `SECRET_KEY`.
const SEAL_KEYS: &str = "k1=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const KEY: &str = "Failed to decode JWT with provided key";
const HOST: &str = "Wrong jwks_host in JWT payload";
const KID: &str = "kid from JWT header not found in API response";
const OK: &str = "ok";

/// The platform, and a bridge that believes its keys.
struct Platform {
    simulator: Simulator,
    bridge: TestBridge,
}

impl Platform {
    /// A deployment of key-set tokens alone: it has no `SECRET_KEY`.
    async fn start() -> Self {
        Self::start_with(Options::default(), |_| {}).await
    }

    async fn start_with(options: Options, change: impl FnOnce(&mut key_sets::Settings)) -> Self {
        let simulator = Simulator::start(simulator::Settings::default()).await.expect("the simulator listens");
        let rules = Rules { audience: PUBLIC_URL.to_owned(), tenants: vec![DEMO_TENANT_ID.to_uppercase()] };
        let mut settings = key_sets::Settings::new(vec![simulator.url().parse().expect("a URL")], rules);
        change(&mut settings);
        let options = Options {
            token_keys: Vec::new(),
            seal_keys: Some(SEAL_KEYS.to_owned()),
            key_sets: Some(settings),
            ..options
        };
        Self { simulator, bridge: TestBridge::start_with(options).await }
    }

    fn host(&self) -> String {
        self.simulator.url().trim_start_matches("http://").to_owned()
    }

    /// Good claims with `changes` in them; null takes a claim away.
    fn claims(&self, changes: Value) -> Value {
        let now = Timestamp::now().as_second();
        let mut claims = json!({
            "client_id": DEMO_CLIENT_ID, "client_secret": DEMO_CLIENT_SECRET, "tenant_id": DEMO_TENANT_ID,
            "jwks_host": self.host(), "aud": PUBLIC_URL, "iss": "platform", "iat": now, "exp": now + 600,
        });
        for (name, value) in changes.as_object().expect("an object") {
            match value {
                Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims
    }

    fn token(&self, changes: Value) -> String {
        self.simulator.control().key_set_token(&self.claims(changes))
    }

    fn signed(&self, header: Value, changes: Value) -> String {
        self.simulator.control().key_set_signed(&header, &self.claims(changes))
    }

    /// What `/health` says of a token: `ok`, or the reason of its refusal.
    async fn judged(&self, token: &str) -> String {
        verdict(&self.bridge.post_as(token, "/health", &Value::Null).await)
    }

    /// How often the key set was asked for.
    fn readings(&self) -> u64 {
        self.simulator.control().calls("key-set")
    }

    async fn stop(self) {
        self.bridge.stop().await;
        self.simulator.stop().await;
    }
}

fn verdict(answer: &Answer) -> String {
    assert_eq!(answer.status, 200);
    if answer.json() == json!({"data": {"status": "ok"}}) {
        return OK.to_owned();
    }
    let [(code, message, kind)] = answer.errors().try_into().expect("one error");
    assert_eq!((code.as_str(), kind.as_str()), ("authorization error", "fatal"), "{message}");
    message.strip_prefix("Authorization failed: ").expect("a reason").to_owned()
}

/// Rows J1 to J8, with the readings of the key set that each costs a bridge that has not read it yet.
#[tokio::test]
async fn each_wrong_token_gets_its_reason_and_no_stranger_is_asked() {
    let platform = Platform::start().await;
    let kid = platform.simulator.control().key_set_kid();
    let stranger = Simulator::start(simulator::Settings::default()).await.expect("the simulator listens");
    let strange_host = stranger.url().trim_start_matches("http://").to_owned();
    let now = Timestamp::now().as_second();
    let good = platform.token(json!({}));
    let segments: Vec<&str> = good.split('.').collect();
    let by_stranger = stranger.control().key_set_token(&platform.claims(json!({"jwks_host": strange_host})));
    // Signed with a key of the same id that is not the platform's.
    let impostor = stranger.control().key_set_token(&platform.claims(json!({})));
    let header = |changes: Value| {
        let mut header = json!({"alg": "RS256", "typ": "JWT", "kid": kid});
        header.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        platform.signed(header, json!({}))
    };
    let with = |changes: Value| platform.token(changes);

    // Nothing of these is worth a request.
    let refused_unasked = [
        ("J7 structure", "abc".to_owned(), "Wrong JWT structure"),
        ("J7 no signature", format!("{}.{}", segments[0], segments[1]), "Wrong JWT structure"),
        ("J1 absent", with(json!({"jwks_host": null})), "jwks_host is missing in JWT payload"),
        ("J1 number", with(json!({"jwks_host": 7})), "jwks_host is missing in JWT payload"),
        ("J1 empty", with(json!({"jwks_host": ""})), "jwks_host is missing in JWT payload"),
        // Defect 70: the attacker's host with the attacker's key.
        ("J2 stranger", by_stranger, HOST),
        ("J2 path", with(json!({"jwks_host": format!("{}/x", platform.host())})), HOST),
        ("J2 user", with(json!({"jwks_host": format!("x@{}", platform.host())})), HOST),
        ("J2 scheme", with(json!({"jwks_host": platform.simulator.url()})), HOST),
    ];
    for (name, token, reason) in refused_unasked {
        assert_eq!(platform.judged(&token).await, reason, "{name}");
    }
    assert_eq!((platform.readings(), stranger.control().total()), (0, 0));

    for (name, token, reason) in [
        ("J3 absent", platform.signed(json!({"alg": "RS256"}), json!({})), KID),
        ("J3 unknown", header(json!({"kid": "another"})), KID),
        ("J3 number", header(json!({"kid": 1})), KID),
        ("J4 another key", impostor, KEY),
        ("J4 changed", format!("{}.{}.{}", segments[0], segments[1], "A".repeat(342)), KEY),
        ("J4 unsigned", format!("{}.{}.", segments[0], segments[1]), KEY),
        ("J5 absent", with(json!({"aud": null})), "Wrong configuration-token-audience"),
        ("J5 slash", with(json!({"aud": format!("{PUBLIC_URL}/")})), "Wrong configuration-token-audience"),
        ("J5 another", with(json!({"aud": "https://relay.example"})), "Wrong configuration-token-audience"),
        // Defect 71: what the request says of itself is not what the relay is called.
        ("J5 request", with(json!({"aud": platform.bridge.url("")})), "Wrong configuration-token-audience"),
        ("J5 number", with(json!({"aud": 7})), "Wrong configuration-token-audience"),
        ("J6 absent", with(json!({"client_secret": null})), "Wrong JWT payload structure"),
        ("J6 empty", with(json!({"client_id": ""})), "Wrong JWT payload structure"),
        ("J6 tenant", with(json!({"tenant_id": "a/b"})), "Wrong JWT payload structure"),
        ("J8 exp", with(json!({"exp": now - 61})), "JWT has expired"),
        ("J8 nbf", with(json!({"nbf": now + 3_600})), "JWT has expired"),
        ("not listed", with(json!({"tenant_id": OTHER_TENANT_ID})), "tenant_id is not allowed to use this relay"),
        ("good", good.clone(), OK),
        ("within leeway", with(json!({"exp": now - 30, "nbf": now + 30})), OK),
        ("for several", with(json!({"aud": ["https://other.example", PUBLIC_URL]})), OK),
        ("host in capitals", with(json!({"jwks_host": platform.host().to_uppercase()})), OK),
        ("no times", with(json!({"exp": null, "iat": null})), OK),
    ] {
        assert_eq!(platform.judged(&token).await, reason, "{name}");
    }
    assert_eq!(platform.readings(), 1, "a set that was just read is not read again");
    stranger.stop().await;
    platform.stop().await;
}

/// Every route that wants a token takes this kind; A1 to A3 hold, and `OPTIONS` and `/version` want none.
#[tokio::test]
async fn the_routes_are_the_same_for_key_set_tokens() {
    let platform = Platform::start().await;
    let bridge = &platform.bridge;
    let token = platform.token(json!({}));
    let list = observable_list(&[("ip", "192.0.2.1")]);
    for (path, body) in [
        ("/observe/observables", json!({"data": {}})),
        ("/deliberate/observables", json!({"data": {}})),
        ("/health", json!({"data": {"status": "ok"}})),
    ] {
        assert_eq!(bridge.post_as(&token, path, &list).await.json(), body, "{path}");
    }
    let request = bridge.client.post(bridge.url("/health"));
    assert_eq!(verdict(&Answer::of(request.send().await.unwrap()).await), "Authorization header is missing");
    let request = bridge.client.post(bridge.url("/health")).header("authorization", format!("Basic {token}"));
    assert_eq!(verdict(&Answer::of(request.send().await.unwrap()).await), "Wrong authorization type");
    let options = bridge.client.request(reqwest::Method::OPTIONS, bridge.url("/health")).send().await.unwrap();
    assert_eq!(options.status(), 200);
    let version = bridge.client.post(bridge.url("/version")).send().await.unwrap();
    assert_eq!(version.json::<Value>().await.unwrap()["version"], env!("CARGO_PKG_VERSION"));
    platform.stop().await;
}

/// Row J2: a host that is listed, and gives no key set.
#[tokio::test]
async fn a_host_without_a_key_set_is_a_wrong_host_until_it_has_one() {
    let patient = |settings: &mut key_sets::Settings| settings.try_again_after = Duration::ZERO;
    let platform = Platform::start_with(Options::default(), patient).await;
    let token = platform.token(json!({}));
    let answers = |status, body| {
        let scripted = Scripted { status: Some(status), ..Scripted::get("/.well-known/jwks", status, body) };
        platform.simulator.control().script(vec![scripted]).expect("a script");
    };
    for (status, body) in [
        (500, json!({})),
        (404, json!("<html>")),
        (200, json!("<html>")),
        (200, json!({"error": "x"})),
        (200, json!({"keys": {}})),
        (200, json!([])),
    ] {
        answers(status, body.clone());
        assert_eq!(platform.judged(&token).await, HOST, "{status} {body}");
    }
    answers(200, json!({"keys": []}));
    assert_eq!(platform.judged(&token).await, KID);
    platform.simulator.control().script(Vec::new()).expect("no script");
    platform.stop().await;

    let platform = Platform::start_with(Options::default(), patient).await;
    let token = platform.token(json!({}));
    let control = platform.simulator.control();
    control.fail_next("key-set", Fault::Redirect { status: 302, location: platform.simulator.url() }, 1);
    control.fail_next("key-set", Fault::Reset, 1);
    control.fail_next("key-set", Fault::Gigantic { bytes: 10_000_000 }, 1);
    for _ in 0..3 {
        assert_eq!(platform.judged(&token).await, HOST);
    }
    assert_eq!(platform.judged(&token).await, OK);
    platform.stop().await;
}

#[tokio::test]
async fn a_host_that_gave_nothing_is_not_asked_again_at_once() {
    let platform = Platform::start().await;
    let token = platform.token(json!({}));
    platform.simulator.control().fail_next("key-set", Fault::refuse(503), 1_000);
    for _ in 0..5 {
        assert_eq!(platform.judged(&token).await, HOST);
    }
    assert_eq!(platform.readings(), 1);
    platform.stop().await;
}

#[tokio::test]
async fn those_who_wait_for_one_key_set_share_its_reading() {
    let platform = Platform::start().await;
    let token = platform.token(json!({}));
    platform.simulator.control().fail_next("key-set", Fault::Slow { ms: 200 }, 1);
    let asked = (0..12).map(|_| platform.judged(&token));
    assert_eq!(futures_util::future::join_all(asked).await, vec![OK; 12]);
    assert_eq!(platform.readings(), 1);
    platform.stop().await;
}

#[tokio::test]
async fn a_new_key_is_found_and_the_old_one_forgotten() {
    let platform =
        Platform::start_with(Options::default(), |settings| settings.read_again_after = Duration::ZERO).await;
    let before = platform.token(json!({}));
    assert_eq!(platform.judged(&before).await, OK);
    platform.simulator.control().rotate_key_set();
    assert_eq!(platform.judged(&platform.token(json!({}))).await, OK);
    assert_eq!(platform.judged(&before).await, KID);
    platform.stop().await;

    // Within a minute an unknown id costs no second request, and the key that is known goes on.
    let platform = Platform::start().await;
    let before = platform.token(json!({}));
    assert_eq!(platform.judged(&before).await, OK);
    platform.simulator.control().rotate_key_set();
    for _ in 0..3 {
        assert_eq!(platform.judged(&platform.token(json!({}))).await, KID);
        assert_eq!(platform.judged(&before).await, OK);
    }
    assert_eq!(platform.readings(), 1);
    platform.stop().await;

    // A set that is too old is read again, and not believed when that fails.
    let platform = Platform::start_with(Options::default(), |settings| settings.life = Duration::ZERO).await;
    let token = platform.token(json!({}));
    assert_eq!(platform.judged(&token).await, OK);
    platform.simulator.control().fail_next("key-set", Fault::refuse(503), 1);
    assert_eq!(platform.judged(&token).await, HOST);
    platform.stop().await;
}

#[tokio::test]
async fn each_kind_of_token_is_taken_only_where_it_is_switched_on() {
    // Key sets alone: nothing else is accepted, whatever it is signed with.
    let platform = Platform::start().await;
    assert_eq!(platform.judged(&demo_token()).await, "<SECRET_KEY> is missing");
    platform.stop().await;

    // SECRET_KEY alone: RS256 is one of the algorithms that are not its own (A6), and no host is asked.
    let bridge = TestBridge::start().await;
    let simulator = Simulator::start(simulator::Settings::default()).await.expect("the simulator listens");
    let host = simulator.url().trim_start_matches("http://").to_owned();
    let claims = json!({
        "client_id": DEMO_CLIENT_ID, "client_secret": DEMO_CLIENT_SECRET, "tenant_id": DEMO_TENANT_ID,
        "jwks_host": host, "aud": PUBLIC_URL,
    });
    let token = simulator.control().key_set_token(&claims);
    assert_eq!(verdict(&bridge.post_as(&token, "/health", &Value::Null).await), KEY);
    assert_eq!(simulator.control().total(), 0);
    bridge.stop().await;

    // Both, the first of them with the key before still accepted.
    let rules = Rules { audience: PUBLIC_URL.to_owned(), tenants: vec![DEMO_TENANT_ID.to_owned()] };
    let options = Options {
        token_keys: vec!["the new key".to_owned(), SECRET_KEY.to_owned()],
        key_sets: Some(key_sets::Settings::new(vec![simulator.url().parse().expect("a URL")], rules)),
        ..Options::default()
    };
    let bridge = TestBridge::start_with(options).await;
    for token in [token, demo_token()] {
        assert_eq!(verdict(&bridge.post_as(&token, "/health", &Value::Null).await), OK);
    }
    // The list of tenants is for key-set tokens: who has SECRET_KEY says for whom it signs.
    let other = crate::bridge::mint(OTHER_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, None);
    assert_eq!(verdict(&bridge.post_as(&other, "/health", &Value::Null).await), OK);
    bridge.stop().await;
    simulator.stop().await;
}

#[tokio::test]
async fn the_limit_in_a_key_set_token_lowers_and_never_raises() {
    let about = [("domain", "many.example")];
    let alerts: Vec<Value> = (0..6).map(|n| alert(&format!("a{n}"), n, 1, &about)).collect();
    let data = simulator::Data::from_json(&json!({"alerts": alerts})).expect("the data fits");
    let platform = Platform::start_with(Options { entities_limit: 4, ..Options::default() }, |_| {}).await;
    assert!(platform.bridge.control().set_data(DEMO_TENANT_ID, data));
    for (claim, shown) in [(json!(1), 1), (json!("2"), 2), (json!(5), 4), (json!(0), 4), (json!("many"), 4)] {
        let token = platform.token(json!({"CTR_ENTITIES_LIMIT": claim}));
        let list = observable_list(&[("domain", "many.example")]);
        let answer = platform.bridge.post_as(&token, "/observe/observables", &list).await;
        let ids: Vec<String> = answer.sightings().iter().map(what).collect();
        assert_eq!(ids, ["a0", "a1", "a2", "a3"][..shown], "{claim}");
    }
    platform.stop().await;
}

/// The controls of the simulator over HTTP make a demo of this mode possible.
#[tokio::test]
async fn a_token_can_be_had_from_the_simulator_over_http() {
    let platform = Platform::start().await;
    let url = format!("{}/_simulator/key-set/token", platform.simulator.url());
    let request = platform.bridge.client.post(url).json(&platform.claims(json!({})));
    let token = request.send().await.unwrap().json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
    assert_eq!(platform.judged(&token).await, OK);
    let url = format!("{}/_simulator/key-set/rotate", platform.simulator.url());
    assert_eq!(platform.bridge.client.post(url).send().await.unwrap().status(), 200);
    assert_eq!(platform.judged(&platform.token(json!({}))).await, KID);
    platform.stop().await;
}

/// An error of the relay as this file's neighbours write it, so that the envelope is theirs too.
#[tokio::test]
async fn a_refusal_has_the_envelope_of_every_other() {
    let platform = Platform::start().await;
    let answer = platform.bridge.post_as(&platform.token(json!({"aud": "x"})), "/health", &Value::Null).await;
    let message = "Authorization failed: Wrong configuration-token-audience";
    assert_eq!(answer.errors(), vec![fatal("authorization error", message)]);
    assert_eq!(answer.json().get("data"), None);
    platform.stop().await;
}
