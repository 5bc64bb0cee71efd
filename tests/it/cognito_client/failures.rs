//! Answers that are none, answers that come late, and what becomes of them.

use std::time::Duration;

use defender_bridge::cognito::{Class, Kind, Priority};
use defender_bridge::simulator::cognito::BRAIN_TOKEN;
use defender_bridge::simulator::{Fault, Matcher};
use rstest::rstest;
use tokio::time::Instant;

use super::{Client, LATER, SOON, World, example, host, policy, settings, token};
use crate::scripted::{Scripted, answer, answer_with};

#[rstest]
#[case::detail(401, "error.401.detail", Class::Configuration, "Invalid token.")]
#[case::details(401, "error.401.details", Class::Configuration, "Invalid token.")]
#[case::right(403, "error.403", Class::Configuration, "You do not have permission to perform this action.")]
#[case::query(400, "error.400.query", Class::Permanent, "The following query parameter(s) are invalid: colour.")]
#[case::title(422, "error.errors-title", Class::Permanent, "Unable to look up specified entity")]
#[case::field(
    400,
    "v3.error.type.400",
    Class::Permanent,
    "Invalid field(s) found; type: Invalid value for parameter 'type'. Valid values: ('account', 'host')."
)]
#[case::failure(409, "tags.404", Class::Permanent, "Could not find requested object")]
#[tokio::test]
async fn every_shape_of_an_error_is_read(
    #[case] status: u16,
    #[case] file: &'static str,
    #[case] class: Class,
    #[case] detail: &str,
) {
    let server = Scripted::start(move |_| async move { answer(status, example(file)) }).await;
    let error = Client::of(&server.url).session().host(7).await.unwrap_err();
    assert_eq!((error.status(), error.class(), error.detail()), (Some(status), class, Some(detail)));
    assert!(!error.may_have_happened(), "a reading changes nothing");
    assert_eq!(server.seen().len(), 1, "what is refused for good is not repeated");
}

#[rstest]
#[case::broken(Fault::refuse(500))]
#[case::page_of_a_proxy(Fault::refuse(502))]
#[case::busy(Fault::refuse(503))]
#[case::too_fast(Fault::throttle(None))]
#[case::cut_before_the_answer(Fault::cut())]
#[case::cut_in_the_answer(Fault::cut_after(10))]
#[case::reset(Fault::Reset)]
#[case::half_an_answer(Fault::MalformedJson)]
#[case::no_answer(Fault::EmptyBody)]
#[case::page(Fault::Answer { status: 200, headers: vec![], body: "<html>sign in</html>".into() })]
#[tokio::test]
async fn a_reading_is_tried_four_times(#[case] fault: Fault) {
    let world = World::of(vec![host(7)]).await;
    let all = Matcher::containing("/hosts/7");
    world.control().fail_next(all.clone(), fault.clone(), 3);
    assert!(world.session().host(7).await.unwrap().is_some());
    assert_eq!(world.client.book.asked().len(), 4, "every try takes a permit");

    world.control().fail_next(all, fault, 4);
    let error = world.session().host(7).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    assert_eq!(world.client.book.asked().len(), 8);
}

#[test]
fn the_waits_between_tries_are_those_of_the_contract() {
    let policy = policy();
    assert_eq!((policy.first, policy.cap), (Duration::from_millis(500), Duration::from_secs(2)));
    assert_eq!(policy.tries, 4);
}

#[tokio::test]
async fn being_too_fast_is_reported_to_the_rate() {
    let world = World::of(vec![host(7)]).await;
    let all = Matcher::containing("/hosts/7");
    world.control().fail_next(all.clone(), Fault::throttle(None), 1);
    world.control().fail_next(all.clone(), Fault::throttle(1), 1);
    let began = Instant::now();
    assert!(world.session().host(7).await.unwrap().is_some());
    assert!(began.elapsed() >= Duration::from_secs(1), "a wait that is asked for is waited");
    assert_eq!(world.client.book.told(), [None, Some(Duration::from_secs(1))]);

    // A long one is for the queue.
    world.control().fail_next(all, Fault::throttle(30), 1);
    let error = world.session().host(7).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (&Kind::Throttled, Class::Transient));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    assert_eq!(world.client.book.told().len(), 3);
    assert_eq!(world.calls().len(), 4);
}

#[tokio::test]
async fn only_being_too_fast_is_reported_to_the_rate() {
    let world = World::of(vec![host(7)]).await;
    world.control().fail_next(Matcher::any(), Fault::refuse(503), 2);
    assert!(world.session().host(7).await.unwrap().is_some());
    assert_eq!(world.client.book.told(), []);
}

#[tokio::test]
async fn every_try_takes_a_permit_of_its_priority_before_it_goes_out() {
    let world = World::of(vec![host(7)]).await;
    world.control().fail_next(Matcher::containing("tagging"), Fault::refuse(500), 1);
    let urgent = world.client.cognito.session(Priority::Containment, Instant::now() + LATER);
    urgent.tags(7).await.unwrap();
    world.session().host(7).await.unwrap();
    use Priority::{Containment, Normal};
    assert_eq!(world.client.book.asked(), [Containment, Containment, Normal]);
    assert_eq!(world.control().total(), 3);
}

#[tokio::test]
async fn nothing_is_sent_before_there_is_a_permit() {
    let world = World::of(vec![host(7)]).await;
    let book = &world.client.book;
    book.permits.forget_permits(usize::MAX >> 3);
    let session = world.client.session_for(LATER);
    let reading = tokio::spawn(async move { session.host(7).await });
    while book.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.control().total(), 0);
    book.permits.add_permits(1);
    assert!(reading.await.unwrap().unwrap().is_some());
}

#[tokio::test]
async fn no_call_lasts_longer_than_the_session() {
    let world = World::of(vec![host(7)]).await;
    world.control().fail_next(Matcher::containing("/hosts/7"), Fault::Hang, 1);
    let error = world.client.session_for(SOON).host(7).await.unwrap_err();
    assert_eq!((error.kind(), error.class(), error.is_out_of_time()), (&Kind::Deadline, Class::Transient, true));
    // After it nothing is asked at all.
    let before = world.control().total();
    let error = world.client.session_for(Duration::ZERO).host(7).await.unwrap_err();
    assert!(error.is_out_of_time());
    assert_eq!(world.control().total(), before);
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_followed_by_another() {
    let world = World::of(vec![host(7)]).await;
    let mut settings = settings(&world.simulator.url(), "v2.5", token());
    settings.call_limit = SOON;
    let client = Client::new(settings);
    world.control().fail_next(Matcher::containing("/hosts/7"), Fault::Hang, 1);
    assert!(client.session().host(7).await.unwrap().is_some());
    assert_eq!(world.calls().len(), 2);
}

#[tokio::test]
async fn an_answer_without_end_is_not_read() {
    let world = World::of(vec![host(7)]).await;
    world.control().fail_next(Matcher::containing("/hosts/7"), Fault::Gigantic { bytes: 40 * 1024 * 1024 }, 1);
    let error = world.session().host(7).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (&Kind::TooLarge, Class::Permanent));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_its_destination_is_told() {
    let elsewhere = Scripted::start(|_| async { answer(200, example("host.get.v2")) }).await;
    let location = format!("location: {}login?token=planted\r\n", elsewhere.url);
    let server = Scripted::start(move |_| {
        let reply = answer_with(302, &location, "");
        async { reply }
    })
    .await;
    let error = Client::of(&server.url).session().host(4711).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (&Kind::Redirected, Class::Configuration));
    assert_eq!(error.detail(), Some(format!("to {}", elsewhere.url.as_str().trim_end_matches('/')).as_str()));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn no_secret_is_shown_even_when_the_brain_says_it() {
    let server = Scripted::start(|seen| async move {
        let said = format!("no such token: {}", seen.header("authorization").unwrap());
        answer(401, serde_json::json!({ "detail": said }).to_string())
    })
    .await;
    let client = Client::of(&server.url);
    let session = client.session();
    let error = session.host(7).await.unwrap_err();
    assert_eq!(error.detail(), Some("no such token: Token ***"));
    let shown =
        format!("{error} {error:?} {session:?} {:?} {:?}", client.cognito, settings("http://x", "v2.5", token()));
    assert!(!shown.contains(BRAIN_TOKEN), "{shown}");
}
