//! Tokens that Entra does not give, and roles that they lack: row E19 of `relay.md` 3.3 with 2.4, and E6 for everything at
//! once.

use defender_bridge::simulator::scenario::DEMO_TENANT_ID;
use defender_bridge::simulator::{Fault, Resource};
use serde_json::Value;

use super::errors::{A, AB, CONNECTION, INTERNAL, body, html, invalid, permission, start};
use super::fatal;

/// Rows of `relay.md` 2.4 (E19): nothing else is called, and there is no data.
#[tokio::test]
async fn an_odd_answer_of_the_token_endpoint_is_told_in_its_own_words() {
    let unexpected = "Microsoft Defender for Endpoint returned unexpected error. Details: Out of order.";
    let description = r#"{"error":"x","error_description":"Out of order."}"#;
    let all_tries = 8; // four for each of the two tokens
    let cases = vec![
        ("200 without a token", body(200, "{}"), fatal("invalid request", &invalid("Access Token does not exist."))),
        (
            "200 with an empty one",
            body(200, r#"{"access_token":""}"#),
            fatal("invalid request", &invalid("Access Token does not exist.")),
        ),
        ("200 with HTML", html(200), fatal("internal error", INTERNAL)),
        ("400", body(400, description), fatal("authorization error", "Authorization failed: Out of order.")),
        ("401", body(401, description), fatal("authorization error", "Authorization failed: Out of order.")),
        ("403", body(403, description), fatal("unknown", unexpected)),
        ("404", body(404, description), fatal("permission denied", "Invalid Authorization Bearer JWT.")),
        ("429", body(429, description), fatal("unknown", unexpected)),
        ("500", body(500, description), fatal("unknown", unexpected)),
        ("502 with HTML", html(502), fatal("unknown", "Something went wrong.")),
        ("503 without a body", body(503, ""), fatal("unknown", "Something went wrong.")),
        ("reset", Fault::Reset, fatal("connection error", CONNECTION)),
        ("cut", Fault::cut(), fatal("connection error", CONNECTION)),
    ];
    for (name, fault, expected) in cases {
        let bridge = start().await;
        bridge.control().fail_next("token", fault.clone(), all_tries);
        let answer = bridge.observe(AB).await;
        assert_eq!(answer.errors(), std::slice::from_ref(&expected), "{name}");
        assert_eq!(answer.json().get("data"), None, "{name}");
        let others: u64 =
            ["alerts", "hunting", "machines", "files"].iter().map(|route| bridge.control().calls(route)).sum();
        assert_eq!(others, 0, "{name}");
        bridge.control().clear_faults();
        bridge.control().fail_next("token", fault, all_tries);
        let health = bridge.post("/health", &Value::Null).await;
        assert_eq!(health.errors(), std::slice::from_ref(&expected), "{name}");
        // What Entra said of the credentials is remembered for a while, and nothing else.
        bridge.control().clear_faults();
        let answer = bridge.observe(A).await;
        match name {
            "400" | "401" | "403" | "404" => assert_eq!(answer.errors(), [expected], "{name}"),
            _ => assert_eq!(answer.sightings().len(), 3, "{name}"),
        }
        bridge.stop().await;
    }
}

#[tokio::test]
async fn a_busy_token_endpoint_is_asked_again_and_a_refusing_one_is_not() {
    for (fault, tries, found) in [
        (Fault::refuse(500), 3, true),
        (Fault::throttle(None), 3, true),
        (Fault::Reset, 3, true),
        (html(503), 3, true),
        (Fault::refuse(401), 1, false),
        (Fault::refuse(400), 1, false),
        (body(404, "{}"), 1, false),
        (body(200, "{}"), 1, false),
    ] {
        let bridge = start().await;
        bridge.control().fail_next("token", fault.clone(), tries);
        let answer = bridge.post("/health", &Value::Null).await;
        assert_eq!(answer.errors().is_empty(), found, "{fault:?} {}", answer.text);
        assert_eq!(bridge.control().calls("token"), if found { 4 } else { 1 }, "{fault:?}");
        bridge.stop().await;
    }
}

#[tokio::test]
async fn a_tenant_that_nobody_knows_is_an_authorization_error() {
    let bridge = start().await;
    let token = crate::bridge::mint("00000000-0000-4000-8000-000000000000", "x", "y", None);
    let answer = bridge.post_as(&token, "/observe/observables", &crate::bridge::observable_list(A)).await;
    let [(code, message, kind)] = answer.errors().try_into().expect("one error");
    assert_eq!((code.as_str(), kind.as_str()), ("authorization error", "fatal"));
    assert!(message.starts_with("Authorization failed: AADSTS90002: "), "{message}");
    bridge.stop().await;
}

#[tokio::test]
async fn a_token_without_roles_names_each_role_that_is_missing() {
    let bridge = start().await;
    bridge.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &[]);
    bridge.control().set_roles(DEMO_TENANT_ID, Resource::Graph, &[]);
    let answer = bridge.observe(A).await;
    assert_eq!(
        answer.errors(),
        [
            fatal("permission denied", &permission("Alert.Read.All")),
            fatal("permission denied", &permission("ThreatHunting.Read.All")),
        ]
    );
    assert_eq!(answer.json().get("data"), None);
    // Each was renewed once, in case the roles had been granted since.
    let control = bridge.control();
    assert_eq!((control.calls("alerts"), control.calls("hunting"), control.calls("token")), (2, 2, 4));
    // It is remembered for a while: the same question costs no call, and its answer is the same.
    let again = bridge.observe(A).await;
    assert_eq!(again.errors(), answer.errors());
    assert_eq!((control.calls("alerts"), control.calls("hunting"), control.calls("token")), (2, 2, 4));
    bridge.stop().await;
}
