//! Who may send, and how often.

use defender_bridge::broker::Lane;
use defender_bridge::config::WebhookSettings;
use defender_bridge::job::TOPOLOGY;
use jiff::Timestamp;
use serde_json::json;

use super::{Hook, OnSqlite, TOKEN, accepted, example, send, settings, signature, tagged};
use crate::bridge::Answer;

/// What of an answer could tell one refusal from another.
fn seen(answer: &Answer) -> (u16, String, Vec<String>) {
    let varying = ["date", "traceresponse"];
    let headers = answer.headers.iter().filter(|(name, _)| !varying.contains(&name.as_str()));
    (answer.status, answer.text.clone(), headers.map(|(name, value)| format!("{name}: {value:?}")).collect())
}

#[tokio::test]
async fn every_refusal_of_a_sender_reads_the_same() {
    let hook = Hook::start::<OnSqlite>().await;
    let body = tagged(1, "block").to_string();
    let now = Timestamp::now().as_second();
    let signed = |id: &str, timestamp: i64, signature: String| {
        let request = hook.request().header("content-type", "application/json").body(body.clone());
        request.header("webhook-id", id).header("webhook-timestamp", timestamp).header("webhook-signature", signature)
    };
    let good = |timestamp| signature("msg_1", timestamp, &body);
    let plain = || hook.request().header("content-type", "application/json").body(body.clone());
    let mut answers = Vec::new();
    for request in [
        plain(),
        plain().bearer_auth("somebody else's token of enough length"),
        plain().basic_auth("user", Some(TOKEN)),
        plain().header("authorization", TOKEN),
        plain().query(&[("token", TOKEN)]),
        signed("msg_1", now - 301, good(now - 301)),
        signed("msg_1", now + 400, good(now + 400)),
        signed("msg_2", now, good(now)),
        signed("msg_1", now, signature("msg_1", now, &tagged(2, "block").to_string())),
        signed("msg_1", now, good(now).replace("v1,", "v2,")),
        // A token does not rescue a signature.
        signed("msg_1", now - 301, good(now - 301)).bearer_auth(TOKEN),
        plain().bearer_auth(TOKEN).header("webhook-id", "msg_1"),
    ] {
        answers.push(send(request).await);
    }
    for answer in &answers {
        assert_eq!((answer.status, answer.json()), (401, example("webhook.401")));
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert_eq!(seen(answer), seen(&answers[0]));
    }
    assert_eq!((hook.ready(Lane::Urgent).await, hook.ready(Lane::Normal).await), (0, 0));
    // The same with a signature as it should be, a bad token beside it or not.
    assert_eq!(accepted(&send(signed("msg_1", now, good(now))).await).len(), 1);
    assert_eq!(accepted(&send(signed("msg_1", now, good(now)).bearer_auth("wrong")).await).len(), 1);
    hook.stop().await;
}

#[tokio::test]
async fn a_way_that_has_no_key_lets_nobody_in() {
    let body = tagged(1, "block");
    let token_only = WebhookSettings { secrets: Vec::new(), ..settings() };
    let hook = Hook::start_with::<OnSqlite>(Some(token_only), &TOPOLOGY).await;
    assert_eq!(hook.post_signed("msg_1", &body).await.status, 401);
    assert_eq!(hook.post(&body).await.status, 202);
    hook.stop().await;
    let secret_only = WebhookSettings { tokens: Vec::new(), ..settings() };
    let hook = Hook::start_with::<OnSqlite>(Some(secret_only), &TOPOLOGY).await;
    assert_eq!(hook.post_signed("msg_1", &body).await.status, 202);
    assert_eq!(hook.post(&body).await.status, 401);
    assert_eq!(send(hook.request().header("authorization", "Bearer ").json(&body)).await.status, 401);
    hook.stop().await;
}

#[tokio::test]
async fn each_sender_has_a_rate_of_its_own() {
    let hook = Hook::start_with::<OnSqlite>(Some(WebhookSettings { rate: 1, ..settings() }), &TOPOLOGY).await;
    let mut passed = 0;
    let refused = loop {
        let answer = hook.post(&json!({})).await;
        if answer.status == 429 {
            break answer;
        }
        assert_eq!(answer.status, 202);
        passed += 1;
    };
    // Twice the rate at once.
    assert!(passed >= 2, "{passed}");
    assert_eq!(refused.headers["retry-after"], "1");
    let mut expected = example("webhook.429");
    expected["retry_after"] = 1.into();
    assert_eq!(refused.json(), expected);
    assert_eq!(hook.post_signed("msg_1", &json!({})).await.status, 202);
    hook.stop().await;
}

#[tokio::test]
async fn an_address_whose_requests_authenticate_is_not_held_up() {
    let hook = Hook::start_with::<OnSqlite>(Some(WebhookSettings { peer_rate: 1, ..settings() }), &TOPOLOGY).await;
    for _ in 0..50 {
        assert_eq!(hook.post(&json!({})).await.status, 202);
    }
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) {
        statuses.push(send(hook.request().json(&json!({}))).await.status);
    }
    assert!(statuses.len() >= 3 && statuses[..statuses.len() - 1].iter().all(|status| *status == 401), "{statuses:?}");
    hook.stop().await;
}
