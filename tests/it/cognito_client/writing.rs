//! Writes: what results, and what is known of those that failed.

use defender_bridge::cognito::{Class, Kind};
use defender_bridge::simulator::{Fault, Matcher};
use rstest::rstest;

use super::{Client, SOON, World, host, lines};
use crate::scripted::{Scripted, answer};

fn patch() -> Matcher {
    Matcher { method: Some("PATCH".into()), ..Matcher::default() }
}

fn words(tags: &[&str]) -> Vec<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

#[tokio::test]
async fn the_resulting_tags_come_back_whatever_their_order() {
    let world = World::of(vec![host(7).tagged(&["VIP"])]).await;
    world.brain().behave(|behaviour| behaviour.shuffle_tags = true);
    let wanted = words(&["a", "b", "c", "d", " e ", "a \"b\" & <c> ü"]);
    let mut resulting = world.session().replace_tags(7, &wanted).await.unwrap();
    resulting.sort();
    let mut expected = wanted.clone();
    expected.sort();
    assert_eq!(resulting, expected);
    assert_eq!(world.brain().tags(7).unwrap(), wanted);
    assert_eq!(world.calls().len(), 1);
    assert_eq!(world.session().replace_tags(7, &[]).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn writing_to_what_is_gone_is_told() {
    let world = World::of(vec![host(7)]).await;
    let session = world.session();
    for error in [
        session.replace_tags(8, &words(&["x"])).await.unwrap_err(),
        session.add_note(8, "text").await.unwrap_err(),
        session.update_note(7, 1, "text").await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.class(), error.may_have_happened()), (&Kind::Gone, Class::Gone, false));
    }
}

#[rstest]
#[case::no_content(204, "")]
#[case::empty(200, "")]
#[case::other_json(201, "{\"status\":\"success\"}")]
#[tokio::test]
async fn a_write_whose_answer_says_nothing_is_read_back(#[case] status: u16, #[case] body: &'static str) {
    let server = Scripted::start(move |seen| async move {
        match seen.line.split(' ').next() {
            Some("PATCH") => answer(status, body),
            _ => answer(200, r#"{"tag_id":"7","tags":["as","read"]}"#),
        }
    })
    .await;
    let session = Client::of(&server.url).session();
    assert_eq!(session.replace_tags(7, &words(&["as", "written"])).await.unwrap(), ["as", "read"]);
    assert_eq!(lines(&server), ["PATCH /api/v2.5/tagging/host/7", "GET /api/v2.5/tagging/host/7"]);
    assert_eq!(server.seen()[0].body, r#"{"tags":["as","written"]}"#);
    session.update_note(7, 9, "text").await.unwrap();
}

#[tokio::test]
async fn an_added_note_need_not_come_back() {
    let server = Scripted::start(|_| async { answer(204, "") }).await;
    assert_eq!(Client::of(&server.url).session().add_note(7, "text").await.unwrap(), None);
    assert_eq!(server.seen()[0].body, r#"{"note":"text"}"#);
}

#[rstest]
#[case::cut_before_the_answer(Fault::applied(Fault::cut()), Kind::Connect)]
#[case::reset(Fault::applied(Fault::Reset), Kind::Connect)]
#[case::cut_in_the_answer(Fault::applied(Fault::cut_after(10)), Kind::BadAnswer)]
#[case::failed_after(Fault::applied(Fault::refuse(500)), Kind::ServerError)]
#[case::failed_in_between(Fault::applied(Fault::refuse(502)), Kind::ServerError)]
#[case::half_an_answer(Fault::applied(Fault::MalformedJson), Kind::BadAnswer)]
#[case::a_page_in_its_place(
    Fault::applied(Fault::Answer { status: 200, headers: vec![], body: "<html>sign in</html>".into() }),
    Kind::BadAnswer
)]
#[tokio::test]
async fn a_write_whose_answer_is_lost_may_have_happened_and_is_not_repeated(#[case] fault: Fault, #[case] kind: Kind) {
    let world = World::of(vec![host(7).tagged(&["VIP", "block"])]).await;
    world.control().fail_next(patch(), fault, 1);
    let session = world.session();
    let error = session.replace_tags(7, &words(&["VIP"])).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (&kind, Class::Transient), "{error}");
    assert!(error.may_have_happened());
    assert_eq!(world.calls().len(), 1);
    assert_eq!(world.brain().tags(7).unwrap(), ["VIP"]);
    // Whoever reads again sees it.
    assert_eq!(session.tags(7).await.unwrap().unwrap(), ["VIP"]);
}

#[tokio::test]
async fn a_note_whose_answer_is_lost_is_not_added_twice() {
    let world = World::of(vec![host(7)]).await;
    let lost = Fault::applied(Fault::cut());
    world.control().fail_next(Matcher { method: Some("POST".into()), ..Matcher::default() }, lost, 1);
    let error = world.session().add_note(7, "once").await.unwrap_err();
    assert!(error.may_have_happened());
    assert_eq!(world.brain().notes(7).len(), 1);
}

#[rstest]
#[case::throttled(Fault::throttle(None))]
#[case::throttled_for_nothing(Fault::throttle(0))]
#[case::busy(Fault::refuse(503))]
#[tokio::test]
async fn a_write_that_was_certainly_not_taken_is_repeated(#[case] fault: Fault) {
    let world = World::of(vec![host(7)]).await;
    world.control().fail_next(patch(), fault, 3);
    assert_eq!(world.session().replace_tags(7, &words(&["x"])).await.unwrap(), ["x"]);
    assert_eq!(world.calls().len(), 4);
    assert_eq!(world.client.book.asked().len(), 4);
}

#[tokio::test]
async fn a_write_that_is_refused_for_good_did_not_happen() {
    for status in [400, 401, 403, 409, 413, 422] {
        let world = World::of(vec![host(7)]).await;
        world.control().fail_next(patch(), Fault::refuse(status), 1);
        let error = world.session().replace_tags(7, &words(&["x"])).await.unwrap_err();
        assert_eq!((error.status(), error.may_have_happened()), (Some(status), false));
        assert_eq!(world.calls().len(), 1, "{status}");
        assert_eq!(world.brain().tags(7).unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn a_write_to_a_brain_that_is_not_there_did_not_happen() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::of(&format!("http://{gone}").parse().unwrap());
    let error = client.session().replace_tags(7, &words(&["x"])).await.unwrap_err();
    assert_eq!((error.kind(), error.class(), error.may_have_happened()), (&Kind::Connect, Class::Transient, false));
    assert_eq!(client.book.asked().len(), 4, "it is tried as often as a reading");
}

#[tokio::test]
async fn what_was_sent_before_the_deadline_may_have_happened_and_what_was_not_did_not() {
    let world = World::of(vec![host(7)]).await;
    // First it is busy; the second try is carried out, and its answer does not come.
    world.control().fail_next(patch(), Fault::refuse(503), 1);
    world.control().fail_next(patch(), Fault::applied(Fault::Hang), 1);
    let error = world.client.session_for(SOON).replace_tags(7, &words(&["x"])).await.unwrap_err();
    assert_eq!((error.status(), error.is_out_of_time()), (Some(503), true), "the last failure before it is told");
    assert!(error.may_have_happened());
    assert_eq!(world.brain().tags(7).unwrap(), ["x"]);

    let client = Client::of(&world.simulator.url().parse().unwrap());
    client.book.permits.forget_permits(usize::MAX >> 3);
    let error = client.session_for(SOON / 10).replace_tags(7, &words(&["y"])).await.unwrap_err();
    assert_eq!((error.kind(), error.is_out_of_time(), error.may_have_happened()), (&Kind::Deadline, true, false));
    assert_eq!(world.brain().tags(7).unwrap(), ["x"]);
}
