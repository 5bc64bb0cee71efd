//! Tokens: how they are refused and issued, and what the services make of them.

use std::time::Duration;

use defender_bridge::simulator::scenario::{
    C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, DROPPED_SHA1, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET,
    OTHER_TENANT_ID,
};
use defender_bridge::simulator::{Control, Resource};
use serde_json::{Value, json};

use super::{DEFENDER_SCOPE, GRAPH_SCOPE, World, ids};

#[tokio::test]
async fn each_wrong_token_request_gets_its_own_refusal() {
    let world = World::start().await;
    let good = [
        ("grant_type", "client_credentials"),
        ("client_id", DEMO_CLIENT_ID),
        ("client_secret", DEMO_CLIENT_SECRET),
        ("scope", DEFENDER_SCOPE),
    ];
    let but = |name: &str, value: Option<&'static str>| -> Vec<(&'static str, &'static str)> {
        good.iter()
            .filter(|(field, _)| *field != name)
            .copied()
            .chain(value.map(|value| match name {
                "grant_type" => ("grant_type", value),
                "client_id" => ("client_id", value),
                "client_secret" => ("client_secret", value),
                _ => ("scope", value),
            }))
            .collect()
    };
    let unknown = "00000000-0000-4000-8000-00000000aaaa";
    for (tenant, fields, status, error, code) in [
        (unknown, good.to_vec(), 400, "invalid_request", 90_002),
        (DEMO_TENANT_ID, but("client_id", Some(OTHER_CLIENT_ID)), 400, "unauthorized_client", 700_016),
        (OTHER_TENANT_ID, good.to_vec(), 400, "unauthorized_client", 700_016),
        (DEMO_TENANT_ID, but("client_secret", Some(OTHER_CLIENT_SECRET)), 401, "invalid_client", 7_000_215),
        (DEMO_TENANT_ID, but("client_secret", None), 401, "invalid_client", 7_000_218),
        (DEMO_TENANT_ID, but("client_secret", Some("")), 401, "invalid_client", 7_000_218),
        (DEMO_TENANT_ID, but("scope", Some("https://graph.microsoft.com")), 400, "invalid_scope", 70_011),
        (
            DEMO_TENANT_ID,
            but("scope", Some("https://graph.microsoft.com/.default https://api.security.microsoft.com/.default")),
            400,
            "invalid_scope",
            70_011,
        ),
        (DEMO_TENANT_ID, but("scope", Some("https://nowhere.example/.default")), 400, "invalid_resource", 500_011),
        (DEMO_TENANT_ID, but("scope", None), 400, "invalid_request", 900_144),
        (DEMO_TENANT_ID, but("grant_type", Some("password")), 400, "unsupported_grant_type", 70_003),
        (DEMO_TENANT_ID, but("grant_type", None), 400, "invalid_request", 900_144),
    ] {
        let response = world.ask_token(tenant, &fields).await;
        assert_eq!(response.status(), status, "{code}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"], error, "{code}");
        assert_eq!(body["error_codes"], json!([code]));
        assert!(body["error_description"].as_str().unwrap().starts_with(&format!("AADSTS{code}:")), "{body}");
        for member in ["timestamp", "trace_id", "correlation_id"] {
            assert!(body[member].is_string(), "{member} of {code}");
        }
    }
}

#[tokio::test]
async fn the_token_endpoint_takes_posted_forms_only() {
    let world = World::start().await;
    let url = world.at(&format!("/{DEMO_TENANT_ID}/oauth2/v2.0/token"));
    let got: Value = world.http.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(got["error_codes"], json!([900_561]));
    let body = json!({"grant_type": "client_credentials", "client_id": DEMO_CLIENT_ID,
        "client_secret": DEMO_CLIENT_SECRET, "scope": DEFENDER_SCOPE});
    let response = world.http.post(&url).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.json::<Value>().await.unwrap()["error_codes"], json!([900_144]));
}

#[tokio::test]
async fn a_token_names_its_resource_its_tenant_and_its_roles() {
    let world = World::start().await;
    for (token, audience, role) in [
        (&world.defender, "https://api.securitycenter.microsoft.com", "Alert.Read.All"),
        (&world.graph, "https://graph.microsoft.com", "ThreatHunting.Read.All"),
    ] {
        assert_eq!(token.split('.').count(), 3);
        let claims = Control::claims(token).unwrap();
        assert_eq!(claims["aud"], audience);
        assert_eq!((&claims["tid"], &claims["appid"]), (&json!(DEMO_TENANT_ID), &json!(DEMO_CLIENT_ID)));
        assert!(claims["roles"].as_array().unwrap().contains(&json!(role)), "{claims}");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3_599);
    }
    assert_ne!(world.defender, world.graph);
    assert_eq!(world.control().calls("token"), 2);
    assert_eq!(world.control().tokens().len(), 2);
    // The tenant's domain stands for its id.
    let _ = world.token("CORP.example", DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, GRAPH_SCOPE).await;
}

#[tokio::test]
async fn tokens_that_are_absent_unknown_revoked_or_expired_are_refused() {
    let mut world = World::start().await;
    let path = "/api/machines?$top=1";
    let bare = world.http.get(world.at(path)).send().await.unwrap();
    assert_eq!(bare.status(), 401);
    assert_eq!(bare.json::<Value>().await.unwrap()["error"]["code"], "Unauthorized");
    assert_eq!(world.get_with("nonsense", path).await.unwrap().status(), 401);
    assert_eq!(world.get(path).await.status(), 200);
    world.control().revoke_tokens(None);
    assert_eq!(world.get(path).await.status(), 401);
    let (status, body) = world.hunt("DeviceInfo | take 1").await;
    assert_eq!((status, &body["error"]["code"]), (401, &json!("InvalidAuthenticationToken")));
    world.control().set_token_lifetime(Duration::ZERO);
    world.renew().await;
    assert_eq!(world.get(path).await.status(), 401);
    world.control().set_token_lifetime(Duration::from_secs(60));
    world.renew().await;
    assert_eq!(world.get(path).await.status(), 200);
}

#[tokio::test]
async fn a_token_for_the_other_service_is_refused() {
    let world = World::start().await;
    let response = world.get_with(&world.graph, "/api/machines").await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "Forbidden");
    let response = world.hunt_with(&world.defender, json!({"Query": "DeviceInfo"})).await;
    assert_eq!(response.status(), 401);
    // Both of Defender's resources open it.
    let scope = "https://api.security.microsoft.com/.default";
    let token = world.token(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, scope).await;
    assert_eq!(world.get_with(&token, "/api/machines").await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_missing_role_is_named_and_shows_in_new_tokens_only() {
    let mut world = World::start().await;
    assert!(world.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &["Alert.Read.All"]));
    assert_eq!(world.get("/api/machines").await.status(), 200);
    world.renew().await;
    let (status, body) = world.read("/api/machines").await;
    assert_eq!(status, 403);
    assert_eq!(
        body["error"]["message"],
        "Missing application roles. API required roles: Machine.Read.All,Machine.ReadWrite.All, application roles: \
         Alert.Read.All."
    );
    assert_eq!(world.read(&format!("/api/ips/{C2_ADDRESS}/alerts")).await.0, 200);
    assert_eq!(world.read(&format!("/api/files/{DROPPED_SHA1}")).await.0, 403);

    world.control().set_roles(DEMO_TENANT_ID, Resource::Graph, &[]);
    world.renew().await;
    assert!(Control::claims(&world.graph).unwrap().get("roles").is_none());
    let (status, body) = world.hunt("DeviceInfo | take 1").await;
    assert_eq!(status, 403);
    assert_eq!(body["error"]["message"], "Missing application roles. API required roles: ThreatHunting.Read.All");
    assert!(!world.control().set_roles("nobody", Resource::Graph, &[]));
    assert_eq!(world.read("/api/exposureScore").await.0, 403);
    world.control().set_roles(DEMO_TENANT_ID, Resource::Defender, &["Score.Read.All"]);
    world.renew().await;
    assert!(world.read("/api/exposureScore").await.1["score"].is_number());
}

#[tokio::test]
async fn each_tenant_sees_its_own_data() {
    let world = World::start().await;
    let token = world.token(OTHER_TENANT_ID, OTHER_CLIENT_ID, OTHER_CLIENT_SECRET, DEFENDER_SCOPE).await;
    let empty = world.get_with(&token, &format!("/api/ips/{C2_ADDRESS}/alerts")).await.unwrap();
    assert_eq!(empty.json::<Value>().await.unwrap()["value"], json!([]));
    assert_eq!(world.get_with(&token, "/api/machines").await.unwrap().status(), 404);
    assert_eq!(ids(&world.read(&format!("/api/ips/{C2_ADDRESS}/alerts")).await.1).len(), 2);
    assert_eq!(world.control().calls_of(OTHER_TENANT_ID, "alerts"), 1);
    assert_eq!(world.control().calls_of(DEMO_TENANT_ID, "alerts"), 1);
}
