//! Personal tokens and OAuth2, with their refusals (`cognito.md` 3.2).

use defender_bridge::simulator::cognito::{BRAIN_CLIENT_ID, BRAIN_CLIENT_SECRET, BRAIN_TOKEN};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::{Cognito, host, members, read, send};

fn credentials(call: RequestBuilder) -> RequestBuilder {
    call.basic_auth(BRAIN_CLIENT_ID, Some(BRAIN_CLIENT_SECRET)).form(&[("grant_type", "client_credentials")])
}

async fn token(cognito: &Cognito, path: &str) -> Value {
    let (status, body) = read(credentials(cognito.bare("POST", path))).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn status(cognito: &Cognito, path: &str, authorization: &str) -> u16 {
    send(cognito.bare("GET", path).header("authorization", authorization)).await.status().as_u16()
}

#[tokio::test]
async fn wrong_and_missing_tokens_are_refused_in_both_forms() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    let path = "/api/v2.5/hosts/7";
    let missing = json!({"detail": "Authentication credentials were not provided."});
    assert_eq!(read(cognito.bare("GET", path)).await, (401, missing));
    let wrong = |token: &str| read(cognito.bare("GET", path).header("authorization", token));
    assert_eq!(wrong("Token nonsense").await, (401, json!({"detail": "Invalid token."})));
    assert_eq!(wrong("Bearer nonsense").await, (401, json!({"detail": "Invalid token."})));
    assert_eq!(wrong(&format!("Bearer {BRAIN_TOKEN}")).await.0, 401);
    assert_eq!(wrong(&format!("Basic {BRAIN_TOKEN}")).await.0, 401);
    cognito.brain().behave(|behaviour| behaviour.plural_errors = true);
    assert_eq!(wrong("Token nonsense").await, (401, json!({"details": "Invalid token."})));
    assert_eq!(status(&cognito, path, &format!("Token {BRAIN_TOKEN}")).await, 200);
    assert_eq!(status(&cognito, "/api/v3.4/hosts/7", &format!("Token {BRAIN_TOKEN}")).await, 401);
    cognito.brain().set_token("another");
    assert_eq!(status(&cognito, path, &format!("Token {BRAIN_TOKEN}")).await, 401);
}

#[tokio::test]
async fn each_flavour_gives_tokens_of_its_own() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    let example: Value = serde_json::from_str(include_str!("../../../data/cognito/v3.oauth2.token.json")).unwrap();
    let hosted = token(&cognito, "/oauth2/token").await;
    assert_eq!((members(&hosted), &hosted["expires_in"]), (members(&example), &json!(21_600)));
    let appliance = token(&cognito, "/api/v2.5/oauth2/token").await;
    assert_eq!(members(&appliance), ["access_token", "expires_in", "token_type"]);
    let bearer = |answer: &Value, member: &str| format!("Bearer {}", answer[member].as_str().unwrap());
    for (path, authorization, expected) in [
        ("/api/v3.4/hosts/7", bearer(&hosted, "access_token"), 200),
        ("/api/v2.5/hosts/7", bearer(&hosted, "access_token"), 401),
        ("/api/v2.5/hosts/7", bearer(&appliance, "access_token"), 200),
        ("/api/v2.4/hosts/7", bearer(&appliance, "access_token"), 401),
        ("/api/v3.4/hosts/7", bearer(&appliance, "access_token"), 401),
        ("/api/v3.4/hosts/7", bearer(&hosted, "refresh_token"), 401),
    ] {
        assert_eq!(status(&cognito, path, &authorization).await, expected, "{path}");
    }
    assert_eq!(send(cognito.bare("POST", "/api/v2.4/oauth2/token")).await.status(), 404);
    assert_eq!(cognito.control().calls("cognito-token"), 3);
}

#[tokio::test]
async fn token_requests_must_be_posts_of_forms_with_the_right_secret() {
    let cognito = Cognito::of(Vec::new()).await;
    let post = || cognito.bare("POST", "/oauth2/token");
    let grant = [("grant_type", "client_credentials")];
    for (call, expected) in [
        (post().basic_auth(BRAIN_CLIENT_ID, Some("wrong")).form(&grant), 401),
        (post().basic_auth("wrong", Some(BRAIN_CLIENT_SECRET)).form(&grant), 401),
        (post().form(&grant), 401),
        (post().basic_auth(BRAIN_CLIENT_ID, Some(BRAIN_CLIENT_SECRET)).form(&[("a", "b")]), 400),
        (post().basic_auth(BRAIN_CLIENT_ID, Some(BRAIN_CLIENT_SECRET)).form(&[("grant_type", "password")]), 400),
        (post().basic_auth(BRAIN_CLIENT_ID, Some(BRAIN_CLIENT_SECRET)).json(&json!({"grant_type": "x"})), 415),
        (cognito.bare("GET", "/oauth2/token"), 405),
    ] {
        assert_eq!(read(call).await.0, expected);
    }
    cognito.brain().behave(|behaviour| behaviour.token_rate_per_second = Some(0));
    let refused = send(credentials(post())).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
}

#[tokio::test]
async fn tokens_are_refreshed_expire_and_can_be_revoked() {
    let mut cognito = Cognito::of(vec![host(7, &[])]).await;
    let first = token(&cognito, "/oauth2/token").await;
    let refresh = |refresh: &str| {
        cognito.bare("POST", "/oauth2/token").form(&[("grant_type", "refresh_token"), ("refresh_token", refresh)])
    };
    let (status, second) = read(refresh(first["refresh_token"].as_str().unwrap())).await;
    assert_eq!(status, 200);
    assert_eq!(read(refresh(first["access_token"].as_str().unwrap())).await.0, 401);
    cognito.token = format!("Bearer {}", second["access_token"].as_str().unwrap());
    assert_eq!(cognito.get("/api/v3.4/hosts/7").await.0, 200);
    cognito.brain().revoke_tokens();
    assert_eq!(cognito.get("/api/v3.4/hosts/7").await, (401, json!({"detail": "Invalid token."})));
    cognito.brain().behave(|behaviour| behaviour.token_lifetime_seconds = 0);
    let expired = token(&cognito, "/oauth2/token").await;
    assert_eq!(expired["expires_in"], 0);
    cognito.token = format!("Bearer {}", expired["access_token"].as_str().unwrap());
    assert_eq!(cognito.get("/api/v3.4/hosts/7").await.0, 401);
}
