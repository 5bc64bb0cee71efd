//! Proving who calls: personal tokens, and the access tokens of API clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use defender_bridge::cognito::{Auth, Class, Family, Kind, Priority};
use defender_bridge::simulator::cognito::{BRAIN_CLIENT_ID, BRAIN_CLIENT_SECRET, BRAIN_TOKEN};
use defender_bridge::simulator::{Fault, Matcher};
use futures_util::future::join_all;
use rstest::rstest;
use tokio::time::Instant;

use super::{Client, LATER, SOON, World, example, host, oauth2, settings, token};
use crate::scripted::{Scripted, Seen, answer};

fn is_for_a_token(seen: &Seen) -> bool {
    seen.line.ends_with("/oauth2/token")
}

fn tokens(world: &World) -> u64 {
    world.control().calls("cognito-token")
}

#[rstest]
#[case::on_premises("v2.5", "POST /api/v2.5/oauth2/token")]
#[case::hosted("v3.4", "POST /oauth2/token")]
#[tokio::test]
async fn an_access_token_is_asked_for_as_documented(#[case] version: &str, #[case] line: &str) {
    let server = Scripted::start(|seen| async move {
        answer(200, example(if is_for_a_token(&seen) { "v3.oauth2.token" } else { "host.get.v2" }))
    })
    .await;
    let client = Client::new(settings(server.url.as_str(), version, oauth2()));
    client.session().host(4711).await.unwrap().unwrap();
    let seen = server.seen();
    assert_eq!((seen[0].line.as_str(), seen[0].body.as_str()), (line, "grant_type=client_credentials"));
    let basic = BASE64.encode(format!("{BRAIN_CLIENT_ID}:{BRAIN_CLIENT_SECRET}"));
    assert_eq!(seen[0].header("authorization"), Some(format!("Basic {basic}").as_str()));
    assert_eq!(seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(seen[1].header("authorization"), Some("Bearer EXAMPLE-ACCESS-TOKEN"));
}

#[tokio::test]
async fn a_personal_token_is_sent_as_documented() {
    let server = Scripted::start(|_| async { answer(200, example("host.get.v2")) }).await;
    Client::of(&server.url).session().host(4711).await.unwrap().unwrap();
    assert_eq!(server.seen()[0].header("authorization"), Some(format!("Token {BRAIN_TOKEN}").as_str()));
}

#[tokio::test]
async fn many_calls_at_once_cost_one_token() {
    let world = World::with((1..=50).map(host).collect(), "v3.4", oauth2()).await;
    let readings = (1..=50).map(|id| {
        let session = world.session();
        tokio::spawn(async move { session.host(id).await })
    });
    for reading in join_all(readings).await {
        assert!(reading.unwrap().unwrap().is_some());
    }
    assert_eq!(tokens(&world), 1);
    // The token is for all, so nobody waits for it behind what is not urgent.
    let asked = world.client.book.asked();
    assert_eq!(asked.iter().filter(|priority| **priority == Priority::Containment).count(), 1);
    assert_eq!(asked.len(), 51);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_for_all() {
    let world = World::with((1..=20).map(host).collect(), "v2.5", oauth2()).await;
    world.session().host(1).await.unwrap().unwrap();
    world.brain().revoke_tokens();
    let readings = (1..=20).map(|id| {
        let session = world.session();
        async move { session.host(id).await }
    });
    for reading in join_all(readings).await {
        assert!(reading.unwrap().is_some());
    }
    assert_eq!(tokens(&world), 2);
}

#[tokio::test]
async fn a_token_is_renewed_once_in_a_session_and_no_more() {
    let world = World::with(vec![host(7)], "v3.4", oauth2()).await;
    world.control().fail_next(Matcher::containing("/hosts/7"), Fault::refuse(401), 100);
    let session = world.session();
    let error = session.host(7).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (&Kind::Unauthorized, Class::Configuration));
    assert_eq!((tokens(&world), world.calls().len()), (2, 2));
    session.host(7).await.unwrap_err();
    assert_eq!((tokens(&world), world.calls().len()), (2, 3));
}

#[tokio::test]
async fn a_write_is_repeated_after_a_renewal() {
    let world = World::with(vec![host(7)], "v3.4", oauth2()).await;
    let session = world.session();
    session.tags(7).await.unwrap();
    world.brain().revoke_tokens();
    assert_eq!(session.replace_tags(7, &["x".to_owned()]).await.unwrap(), ["x"]);
}

#[tokio::test]
async fn a_personal_token_cannot_be_renewed() {
    let world = World::of(vec![host(7)]).await;
    world.brain().set_token("another");
    let error = world.session().host(7).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.class(), error.detail()),
        (&Kind::Unauthorized, Class::Configuration, Some("Invalid token."))
    );
    assert_eq!(world.control().total(), 1);
}

#[tokio::test]
async fn a_token_is_not_used_to_its_end() {
    let world = World::with(vec![host(7)], "v2.5", oauth2()).await;
    // Nine tenths of its life are over before anybody can use it.
    world.brain().behave(|behaviour| behaviour.token_lifetime_seconds = 0);
    let session = world.session();
    session.host(7).await.unwrap_err();
    world.brain().behave(|behaviour| behaviour.token_lifetime_seconds = 3600);
    let before = tokens(&world);
    session.host(7).await.unwrap().unwrap();
    session.tags(7).await.unwrap().unwrap();
    assert_eq!(tokens(&world), before + 1);
}

#[tokio::test]
async fn a_wrong_secret_is_told_to_all_who_wait_at_the_price_of_one_call() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let server = {
        let gate = Arc::clone(&gate);
        Scripted::start(move |_| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                answer(401, r#"{"error":"invalid_client"}"#)
            }
        })
        .await
    };
    let client = Client::hosted(&server.url);
    let readings: Vec<_> = (1..=20)
        .map(|id| {
            let session = client.session();
            tokio::spawn(async move { session.host(id).await })
        })
        .collect();
    while server.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    gate.add_permits(100);
    for reading in join_all(readings).await {
        let error = reading.unwrap().unwrap_err();
        assert_eq!((error.family(), error.kind()), (Family::Token, &Kind::Unauthorized));
        assert_eq!((error.class(), error.may_have_happened()), (Class::Configuration, false));
    }
    assert!(server.seen().iter().all(is_for_a_token));
    assert!(server.seen().len() < 20, "{}", server.seen().len());
}

#[tokio::test]
async fn a_write_that_got_no_token_did_not_happen() {
    let world = World::with(vec![host(7)], "v3.4", oauth2()).await;
    let tokens = Matcher { route: Some("cognito-token".into()), ..Matcher::default() };
    world.control().fail_next(tokens, Fault::refuse(500), 4);
    let error = world.session().add_note(7, "text").await.unwrap_err();
    assert_eq!((error.family(), error.class()), (Family::Token, Class::Transient));
    assert!(!error.may_have_happened());
    assert_eq!(world.calls().len(), 0);
}

#[tokio::test]
async fn being_too_fast_for_tokens_is_reported_too() {
    let world = World::with(vec![host(7)], "v3.4", oauth2()).await;
    let fault = Fault::throttle(1);
    world.control().fail_next(Matcher { route: Some("cognito-token".into()), ..Matcher::default() }, fault, 1);
    assert!(world.session().host(7).await.unwrap().is_some());
    assert_eq!(world.client.book.told(), [Some(Duration::from_secs(1))]);
    assert_eq!(world.client.book.asked(), [Priority::Containment, Priority::Containment, Priority::Normal]);
}

#[tokio::test]
async fn who_has_more_time_does_not_give_up_with_who_has_less() {
    let given = Arc::new(AtomicUsize::new(0));
    let server = {
        let given = Arc::clone(&given);
        Scripted::start(move |seen| {
            let first = is_for_a_token(&seen) && given.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if first {
                    return crate::scripted::Reply::Hang;
                }
                answer(200, example(if is_for_a_token(&seen) { "v3.oauth2.token" } else { "host.get.v2" }))
            }
        })
        .await
    };
    let client = Client::hosted(&server.url);
    let (short, long) = (client.session_for(SOON), client.session());
    let hasty = tokio::spawn(async move { short.host(4711).await });
    while given.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert!(long.host(4711).await.unwrap().is_some());
    assert!(hasty.await.unwrap().unwrap_err().is_out_of_time());
    assert_eq!(given.load(Ordering::SeqCst), 2);
}

#[rstest]
#[case::token(Auth::Token("with\nline break".into()))]
#[case::client(Auth::OAuth2 { client_id: "client".into(), client_secret: "wrong-planted-secret".into() })]
#[tokio::test]
async fn credentials_that_are_no_good_are_not_shown(#[case] auth: Auth) {
    let world = World::with(vec![host(7)], "v2.5", auth).await;
    let session = world.client.cognito.session(Priority::Normal, Instant::now() + LATER);
    let error = session.host(7).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::InvalidValue | Kind::Unauthorized), "{error}");
    let shown = format!("{error} {error:?} {:?}", world.client.cognito);
    assert!(!shown.contains("line break") && !shown.contains("planted"), "{shown}");
}

#[tokio::test]
async fn a_brain_that_takes_no_clients_is_a_wrong_setting() {
    let world = World::with(vec![host(7)], "v3.4", oauth2()).await;
    world.brain().behave(|behaviour| behaviour.versions = vec!["v2.5".into()]);
    let error = world.session().host(7).await.unwrap_err();
    assert_eq!((error.family(), error.kind()), (Family::Token, &Kind::NotOffered));
    assert_eq!(error.class(), Class::Configuration);
    let other = Client::new(settings(&world.simulator.url(), "v2.4", token()));
    assert_eq!(other.session().host(7).await.unwrap_err().kind(), &Kind::NotOffered);
}
