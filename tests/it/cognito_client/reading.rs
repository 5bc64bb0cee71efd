//! Single hosts, their tags and their notes.

use std::time::Duration;

use defender_bridge::cognito::model::{Artifact, FeedStart};
use defender_bridge::cognito::{Auth, Kind};
use defender_bridge::simulator::cognito::Host;
use defender_bridge::simulator::{Fault, Matcher};
use jiff::tz::TimeZone;
use rstest::rstest;

use super::{Client, World, example, host, lines, oauth2, seen, token};
use crate::scripted::{Scripted, answer};

/// Before the first event.
const BEGINNING: FeedStart = FeedStart::Checkpoint(0);

#[rstest]
#[case::on_premises("v2.2", token())]
#[case::on_premises_newest("v2.5", token())]
#[case::on_premises_as_a_client("v2.5", oauth2())]
#[case::hosted("v3.3", oauth2())]
#[case::hosted_later("v3.5", oauth2())]
#[tokio::test]
async fn the_six_operations_are_the_same_for_every_brain(#[case] version: &str, #[case] auth: Auth) {
    let world = World::with(vec![host(4711).tagged(&["VIP", "block"])], version, auth).await;
    let session = world.session();

    assert_eq!(session.host(4711).await.unwrap().unwrap().name.as_deref(), Some("fin-lt-4711"));
    assert_eq!(session.tags(4711).await.unwrap().unwrap(), ["VIP", "block"]);
    let wanted = ["VIP".to_owned(), "mde:agent=found".to_owned()];
    assert_eq!(session.replace_tags(4711, &wanted).await.unwrap(), wanted);
    let note = session.add_note(4711, "first").await.unwrap().unwrap();
    session.update_note(4711, note.id, "second").await.unwrap();
    assert_eq!(session.notes(4711).await.unwrap()[0].text, "second");

    assert_eq!(world.brain().tags(4711).unwrap(), wanted);
    let calls = world.calls();
    let told: Vec<_> = calls.iter().map(|call| format!("{} {}", call.method, call.path)).collect();
    let expected = [
        format!("GET /api/{version}/hosts/4711"),
        format!("GET /api/{version}/tagging/host/4711"),
        format!("PATCH /api/{version}/tagging/host/4711"),
        format!("POST /api/{version}/hosts/4711/notes"),
        format!("PATCH /api/{version}/hosts/4711/notes/{}", note.id),
        format!("GET /api/{version}/hosts/4711/notes"),
    ];
    assert_eq!(told, expected);
    for call in calls {
        assert_eq!(call.query, "", "no parameter is sent that is not needed");
        assert_eq!(call.headers["accept"], "application/json");
        let kind = call.headers.get("content-type").map(String::as_str);
        assert_eq!(kind, (call.method != "GET").then_some("application/json"));
    }
}

#[tokio::test]
async fn a_host_arrives_with_all_that_is_decided_from() {
    let known = Host {
        previous_addresses: vec!["198.51.100.17".into()],
        threat: 78,
        certainty: 66,
        key_asset: true,
        privilege: Some(9),
        groups: vec!["NoBlock".into(), "Finance laptops".into()],
        ..host(4711).named("fin-lt-0042.corp.example").tagged(&["VIP"])
    };
    let world = World::of(vec![known]).await;
    let host = world.session().host(4711).await.unwrap().unwrap();
    assert_eq!((host.address.as_deref(), host.last_seen), (Some("192.0.2.42"), Some(seen())));
    assert_eq!(host.previous_addresses, ["198.51.100.17"]);
    assert_eq!((host.threat, host.certainty, host.state.as_deref()), (Some(78), Some(66), Some("active")));
    assert_eq!((host.is_key_asset, host.privilege_level), (true, Some(9)));
    assert_eq!(host.groups, ["NoBlock", "Finance laptops"]);
    assert_eq!(host.tags, ["VIP"]);
    let name = Artifact { kind: "windows_defender_name".into(), value: "fin-lt-0042.corp.example".into() };
    assert!(host.artifacts.contains(&name), "{:?}", host.artifacts);
}

#[tokio::test]
async fn what_a_brain_does_not_have_is_nothing() {
    let world = World::of(Vec::new()).await;
    let session = world.session();
    assert_eq!(session.host(4711).await.unwrap(), None);
    assert_eq!(session.tags(4711).await.unwrap(), None);
    assert_eq!(session.notes(4711).await.unwrap_err().kind(), &Kind::Gone);
    assert_eq!(world.calls().len(), 3);
}

#[rstest]
#[case::host("hosts/4711")]
#[case::tags("tagging/host/4711")]
#[tokio::test]
async fn a_404_of_something_in_between_says_nothing_of_a_host(#[case] path: &str) {
    let world = World::of(vec![host(4711)]).await;
    let page = Fault::Answer {
        status: 404,
        headers: vec![("content-type".into(), "text/html".into())],
        body: "<html>no such page</html>".into(),
    };
    world.control().fail_next(Matcher::containing(path), page, 1);
    let session = world.session();
    let error = match path {
        "hosts/4711" => session.host(4711).await.unwrap_err(),
        _ => session.tags(4711).await.unwrap_err(),
    };
    assert_eq!(error.kind(), &Kind::NotOffered);
}

#[tokio::test]
async fn another_hosts_answer_is_not_taken() {
    let server = Scripted::start(|_| async { answer(200, example("host.get.v2")) }).await;
    let error = Client::of(&server.url).session().host(4712).await.unwrap_err();
    assert_eq!(error.kind(), &Kind::BadAnswer);
    let server = Scripted::start(|_| async { answer(200, example("tags.get")) }).await;
    let session = Client::of(&server.url).session();
    assert_eq!(session.tags(4712).await.unwrap_err().kind(), &Kind::BadAnswer);
    assert_eq!(session.tags(4711).await.unwrap().unwrap().len(), 3);
}

#[tokio::test]
async fn notes_arrive_without_their_escapes() {
    let world = World::of(vec![host(7)]).await;
    let text = "<b>\"quoted\" & 'said'</b> &amp; äöü";
    world.brain().add_note(7, text, "analyst.one").unwrap();
    let notes = world.session().notes(7).await.unwrap();
    assert_eq!((notes[0].text.as_str(), notes[0].created_by.as_deref()), (text, Some("analyst.one")));
    assert!(notes[0].created.is_some() && notes[0].modified.is_none());
}

#[tokio::test]
async fn urgency_is_read_from_the_entity_of_a_hosted_brain() {
    let world = World::with(vec![Host { urgency: 88, ..host(7) }], "v3.4", oauth2()).await;
    assert_eq!(world.session().urgency(7).await.unwrap(), Some(88));
    assert_eq!(world.session().urgency(8).await.unwrap(), None);
    assert_eq!(world.queries(), ["type=host", "type=host"]);
}

#[tokio::test]
async fn what_a_flavour_does_not_have_is_not_asked_for() {
    let world = World::of(vec![host(7)]).await;
    let session = world.session();
    let day = "2026-02-03".parse().unwrap();
    for error in [
        session.urgency(7).await.unwrap_err(),
        session.scoring_events(FeedStart::Checkpoint(1), 10).await.unwrap_err(),
        session.audit_events(FeedStart::Checkpoint(1), 10).await.unwrap_err(),
        Client::hosted(&world.simulator.url().parse().unwrap()).session().audits(day, day).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), &Kind::NotOffered);
    }
    assert_eq!(world.control().total(), 0);
    assert_eq!(world.client.book.asked(), []);
}

#[tokio::test]
async fn audit_entries_are_read_by_the_day() {
    let server = Scripted::start(|_| async { answer(200, example("audits.v2")) }).await;
    let (from, to) = ("2026-02-03".parse().unwrap(), "2026-02-04".parse().unwrap());
    let audits = Client::of(&server.url).session().audits(from, to).await.unwrap();
    assert_eq!((audits.len(), audits[0].user.as_deref()), (1, Some("analyst.one")));
    assert_eq!(lines(&server), ["GET /api/v2.5/audits?start=2026-02-03&end=2026-02-04"]);
}

#[tokio::test]
async fn feeds_are_read_from_a_checkpoint_on() {
    let server = Scripted::start(|seen| async move {
        answer(
            200,
            example(match seen.line.as_str() {
                line if line.contains("oauth2") => "v3.oauth2.token",
                line if line.contains("entity_scoring") => "v3.events.entity_scoring",
                _ => "v3.events.audits",
            }),
        )
    })
    .await;
    let session = Client::hosted(&server.url).session_for(Duration::from_secs(30));
    let scores =
        session.scoring_events(FeedStart::Since("2026-02-03T10:00:00.5+01:00".parse().unwrap()), 5_000).await.unwrap();
    assert_eq!((scores.events[0].entity_id, scores.next_checkpoint), (4711, Some(50113)));
    let audits = session.audit_events(FeedStart::Checkpoint(71001), 100).await.unwrap();
    assert_eq!((audits.events.len(), audits.next_checkpoint, audits.remaining), (2, Some(71003), Some(0)));
    let expected = [
        "GET /api/v3.4/events/entity_scoring?event_timestamp_gte=2026-02-03T09%3A00%3A00Z&limit=1000&type=host",
        "GET /api/v3.4/events/audits?from=71001&limit=100",
    ];
    assert_eq!(lines(&server), expected);
}

#[tokio::test]
async fn what_analysts_did_is_found_among_the_audits_of_the_day() {
    let world = World::of(vec![host(7).tagged(&["VIP"])]).await;
    world.brain().add_tag(7, "block", "analyst.one").unwrap();
    let today = world.control().now().to_zoned(TimeZone::UTC).date();
    let session = world.session();
    let found = session.audits(today, today).await.unwrap();
    let change = found.iter().find(|audit| audit.user.as_deref() == Some("analyst.one")).unwrap();
    assert_eq!(change.message, "[table:host][id:7] with tags ['VIP'] was changed to ['VIP', 'block']");
    assert!(change.succeeded && change.at.is_some());
    let long_ago = "2001-01-01".parse().unwrap();
    assert_eq!(session.audits(long_ago, long_ago).await.unwrap(), []);
}

#[tokio::test]
async fn a_feed_is_read_on_from_where_the_last_part_ended() {
    let world = World::with(vec![host(7)], "v3.4", oauth2()).await;
    let tags = ["a", "b", "c", "d", "e"];
    for tag in tags {
        world.brain().add_tag(7, tag, "analyst.one").unwrap();
    }
    let session = world.session();
    let (mut from, mut read) = (None, Vec::new());
    loop {
        let part = session.audit_events(from.map_or(BEGINNING, FeedStart::Checkpoint), 2).await.unwrap();
        from = part.next_checkpoint;
        read.extend(part.events);
        if part.remaining == Some(0) {
            break;
        }
    }
    let added: Vec<_> = read.iter().map(|audit| audit.message.rsplit('\'').nth(1).unwrap()).collect();
    assert_eq!(added, tags);
    let ids: Vec<_> = read.iter().map(|audit| audit.id.unwrap()).collect();
    assert!(ids.is_sorted() && from > ids.last().copied(), "{ids:?} {from:?}");
    // Nothing new; then one more.
    let part = session.audit_events(from.map_or(BEGINNING, FeedStart::Checkpoint), 2).await.unwrap();
    assert_eq!((part.events.len(), part.next_checkpoint), (0, from));
    world.brain().add_tag(7, "f", "analyst.one").unwrap();
    assert_eq!(session.audit_events(from.map_or(BEGINNING, FeedStart::Checkpoint), 2).await.unwrap().events.len(), 1);
}

#[tokio::test]
async fn changes_of_scores_are_read_from_the_feed() {
    let world = World::with(vec![host(7), host(8)], "v3.4", oauth2()).await;
    assert!(world.brain().set_scores(7, 10, 20, 88));
    let session = world.session();
    let part = session.scoring_events(BEGINNING, 100).await.unwrap();
    let found: Vec<_> = part.events.iter().map(|event| (event.entity_id, event.urgency)).collect();
    assert_eq!(found, [(7, Some(88))]);
    assert_eq!(part.events[0].kind.as_deref(), Some("host"));
    let part =
        session.scoring_events(part.next_checkpoint.map_or(BEGINNING, FeedStart::Checkpoint), 100).await.unwrap();
    assert_eq!((part.events.len(), part.remaining), (0, Some(0)));
}
