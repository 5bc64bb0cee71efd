//! Lists of hosts and groups: their pages are counted by us, and no link of an answer is followed.

use defender_bridge::cognito::model::{HostsFilter, HostsPage};
use defender_bridge::cognito::{Class, HOSTS_PER_PAGE, Kind, Session};
use defender_bridge::simulator::cognito::{Host, TagFilter};
use rstest::rstest;

use super::{Client, World, host, oauth2};
use crate::scripted::{Scripted, answer};

fn tagged(tags: &[&str]) -> HostsFilter {
    HostsFilter { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..HostsFilter::default() }
}

fn ids(page: &HostsPage) -> Vec<u64> {
    page.hosts.iter().map(|host| host.id).collect()
}

/// All pages, as a sweep reads them, and how many there were.
async fn all(session: &Session, filter: &HostsFilter) -> (Vec<u64>, u32) {
    let mut found = Vec::new();
    for page in 1.. {
        let read = session.hosts(filter, page).await.unwrap();
        found.extend(ids(&read));
        if read.last {
            return (found, page);
        }
    }
    unreachable!("a page is the last")
}

#[tokio::test]
async fn a_list_is_read_to_its_end() {
    let hosts = (1..=450).map(|id| host(id).tagged(&["block"])).collect();
    let world = World::of(hosts).await;
    let (found, pages) = all(&world.session(), &tagged(&["block"])).await;
    assert_eq!((found, pages), ((1..=450).collect(), 3));
    let query = |page| format!("tags=block&page={page}&page_size={HOSTS_PER_PAGE}&all=true");
    assert_eq!(world.queries(), [query(1), query(2), query(3)]);
    assert_eq!(world.session().hosts(&tagged(&["block"]), 1).await.unwrap().count, Some(450));
}

#[tokio::test]
async fn a_brain_with_smaller_pages_is_read_to_its_end_too() {
    let world = World::of((1..=50).map(host).collect()).await;
    world.brain().behave(|behaviour| behaviour.page_cap = Some(20));
    assert_eq!(all(&world.session(), &HostsFilter::default()).await, ((1..=50).collect(), 3));
}

#[tokio::test]
async fn links_to_other_hosts_are_not_followed() {
    let elsewhere = Scripted::start(|_| async { answer(200, "{}") }).await;
    let link = elsewhere.url.as_str().trim_end_matches('/').to_owned();
    let world = World::of((1..=50).map(host).collect()).await;
    world.brain().behave(|behaviour| {
        behaviour.page_cap = Some(20);
        behaviour.foreign_next_link = Some(link);
    });
    assert_eq!(all(&world.session(), &HostsFilter::default()).await, ((1..=50).collect(), 3));
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn a_page_past_the_end_is_the_end() {
    let world = World::of((1..=3).map(host).collect()).await;
    let session = world.session();
    let page = session.hosts(&HostsFilter::default(), 2).await.unwrap();
    assert_eq!(page, HostsPage { hosts: Vec::new(), count: None, last: true });
    // Also when the list shrank meanwhile to nothing.
    (1..=3).for_each(|id| assert!(world.brain().remove_host(id)));
    let page = session.hosts(&HostsFilter::default(), 1).await.unwrap();
    assert_eq!(page, HostsPage { hosts: Vec::new(), count: Some(0), last: true });
}

#[tokio::test]
async fn hosts_with_any_of_the_tags_or_at_the_scores_are_listed() {
    let scored = |id, threat, certainty| Host { threat, certainty, ..host(id) };
    let hosts = vec![
        host(1).tagged(&["VIP", "block"]),
        host(2).tagged(&["mde:isolation=isolated"]),
        host(3).tagged(&["VIP"]),
        host(4).tagged(&["a \"b\" & c+d #1 100%=/ü"]),
        scored(5, 50, 50),
        scored(6, 49, 99),
        scored(7, 99, 49),
    ];
    let world = World::of(hosts).await;
    let session = world.session();
    let listed = async |filter: &HostsFilter| ids(&session.hosts(filter, 1).await.unwrap());
    assert_eq!(listed(&tagged(&["block", "mde:isolation=isolated"])).await, [1, 2]);
    assert_eq!(listed(&tagged(&["a \"b\" & c+d #1 100%=/ü"])).await, [4]);
    let scores = HostsFilter { threat_gte: Some(50), certainty_gte: Some(50), ..HostsFilter::default() };
    assert_eq!(listed(&scores).await, [5]);
    assert_eq!(listed(&HostsFilter { tags: vec!["VIP".into()], ..scores }).await, [0; 0]);
    assert_eq!(listed(&HostsFilter::default()).await, [1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn a_tag_with_a_comma_is_never_asked_for() {
    let world = World::of(vec![host(1).tagged(&["a,b", "a"])]).await;
    let error = world.session().hosts(&tagged(&["a,b"]), 1).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (&Kind::InvalidValue, Class::Permanent));
    assert_eq!(world.control().total(), 0);
}

#[tokio::test]
async fn hits_are_candidates_with_the_tags_that_they_have() {
    let world = World::of(vec![host(1).tagged(&["unblock"]), host(2).tagged(&["Block"])]).await;
    world.brain().behave(|behaviour| behaviour.tag_filter = Some(TagFilter::Substring));
    let page = world.session().hosts(&tagged(&["block"]), 1).await.unwrap();
    let tags: Vec<_> = page.hosts.iter().map(|host| host.tags.clone()).collect();
    assert_eq!(tags, [["unblock"], ["Block"]]);
}

#[tokio::test]
async fn hosts_without_any_activity_are_asked_for_while_the_brain_takes_it() {
    let still = Host { active: false, traffic: false, ..host(2) };
    let world = World::of(vec![host(1), still.clone()]).await;
    let session = world.session();
    let list = async || ids(&session.hosts(&HostsFilter::default(), 1).await.unwrap());
    assert_eq!(list().await, [1, 2]);
    world.brain().behave(|behaviour| behaviour.refuse_all = true);
    world.control().forget();
    // Once refused, it is not tried again.
    assert_eq!((list().await, list().await), (vec![1], vec![1]));
    let query = format!("page=1&page_size={HOSTS_PER_PAGE}");
    assert_eq!(world.queries(), [format!("{query}&all=true"), query.clone(), query.clone()]);

    let hosted = World::with(vec![host(1), still], "v3.4", oauth2()).await;
    assert_eq!(ids(&hosted.session().hosts(&HostsFilter::default(), 1).await.unwrap()), [1]);
    assert_eq!(hosted.queries(), [query]);
}

#[tokio::test]
async fn a_refused_filter_is_a_refusal_with_or_without_all() {
    let refusal = r#"{"details":"The following query parameter(s) are invalid: tags."}"#;
    let server = Scripted::start(move |_| async move { answer(400, refusal) }).await;
    let session = Client::of(&server.url).session();
    let error = session.hosts(&tagged(&["x"]), 1).await.unwrap_err();
    assert_eq!(error.detail(), Some("The following query parameter(s) are invalid: tags."));
    assert_eq!(server.seen().len(), 2);
    // It was not about `all`, which is asked for again.
    session.hosts(&tagged(&["x"]), 1).await.unwrap_err();
    assert!(server.seen()[2].line.ends_with("&all=true"));
}

#[rstest]
#[case::page("<html>not here</html>")]
#[case::own_words(r#"{"detail":"Not found."}"#)]
#[tokio::test]
async fn a_list_that_does_not_exist_is_a_wrong_setting(#[case] body: &'static str) {
    let server = Scripted::start(move |_| async move { answer(404, body) }).await;
    let session = Client::of(&server.url).session();
    let day = "2026-02-03".parse().unwrap();
    for error in [
        session.hosts(&HostsFilter::default(), 1).await.unwrap_err(),
        session.groups_named("NoBlock").await.unwrap_err(),
        session.audits(day, day).await.unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.class()), (&Kind::NotOffered, Class::Configuration));
    }
}

#[tokio::test]
async fn groups_are_found_by_their_exact_name() {
    let names = (0..30).map(|n| format!("NoBlock {n}")).chain(["noblock".into(), "NoBlock".into()]);
    let grouped = Host { groups: names.collect(), ..host(1) };
    let world = World::of(vec![grouped]).await;
    // The one that is meant comes on the last page.
    world.brain().behave(|behaviour| behaviour.page_cap = Some(10));
    let session = world.session();
    let found = session.groups_named("NoBlock").await.unwrap();
    assert_eq!(found.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["NoBlock"]);
    assert_eq!(found[0].kind.as_deref(), Some("host"));
    assert_eq!(world.calls().len(), 4);
    assert_eq!(session.groups_named("No & such = group").await.unwrap(), []);
}
