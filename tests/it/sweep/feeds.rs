//! Cognito's own feeds in place of a webhook.

use defender_bridge::broker::{Broker as _, Lane};
use defender_bridge::job::{FEEDS, Hint, HostKind};
use defender_bridge::simulator::Fault;
use defender_bridge::simulator::cognito::Right;
use defender_bridge::sweep::feed::Positions;

use super::{Place, Worker, World, host, on_both, once_each, until};

on_both!(
    a_tag_set_on_premises_is_told_by_the_audits,
    a_tag_set_in_a_hosted_brain_is_told_by_its_feed,
    a_successor_goes_on_where_the_audits_were_read_to,
    a_successor_goes_on_at_the_checkpoint,
    scores_are_told_by_their_feed,
    a_feed_that_is_not_offered_is_left_alone,
    what_was_not_published_is_read_again,
);

/// Waits until the feed was read once from its beginning, so that what follows is news.
async fn listening<B: defender_bridge::broker::Broker>(worker: &Worker<B>, feed: &str) {
    until("the feed is read", async || worker.searches(feed, "ok") > 0).await;
}

/// Waits until the feed was read once more, from beginning to end.
async fn read_again<B: defender_bridge::broker::Broker>(worker: &Worker<B>, feed: &str) {
    let before = worker.searches(feed, "ok");
    until("the feed is read again", async || worker.searches(feed, "ok") >= before + 2).await;
}

/// Tags are set as analysts and the bridge itself set them; only what an analyst asks for is told, once.
async fn told<P: Place>(place: &P, world: &World, feed: &str) {
    let worker = world.worker(place).await;
    listening(&worker, feed).await;
    assert_eq!(worker.published("feed"), 0, "what was there before is not told");
    let brain = world.brain();
    brain.add_tag(1, "block", "analyst.one").expect("a new tag");
    brain.add_tag(2, "VIP", "analyst.one").expect("a new tag");
    brain.add_tag(3, "host_context", "bridge").expect("a new tag");
    brain.remove_tag(4, "block", "analyst.one").expect("the tag");
    brain.add_tag(5, "host_context", "analyst.two").expect("a new tag");
    brain.add_tag_to_many(&[6, 7], "unblock", "analyst.two");
    brain.audit("analyst.one", "[table:host][id:9] with tags [] was changed to ['block']", false);
    // Events of different hosts have no order.
    let mut urgent = worker.events(Lane::Urgent).await;
    let mut events = [urgent.next().await, urgent.next().await, urgent.next().await];
    events.sort_by_key(|event| event.host_id);
    assert_eq!(events.each_ref().map(|event| event.host_id), [1, 6, 7]);
    let event = &events[0];
    assert_eq!((event.sender.as_str(), event.actor.as_deref()), ("feed", Some("analyst.one")));
    assert_eq!(event.kind, HostKind::TagsChanged);
    assert_eq!(event.hint, Some(Hint::Tags(vec!["block".into()])));
    assert_eq!(worker.events(Lane::Normal).await.take(1).await, once_each([5]));
    read_again(&worker, feed).await;
    assert_eq!((worker.published("feed"), worker.ready().await), (4, 0));
    worker.stop().await;
}

async fn hosts_of(version: &'static str) -> World {
    let mut hosts: Vec<_> = (1..=9).map(|id| host(id, &[])).collect();
    hosts[3] = host(4, &["block"]);
    let world = World { self_user: Some("bridge".into()), ..World::read(hosts, version).await };
    world.brain().add_tag(8, "block", "analyst.one").expect("history");
    world
}

async fn a_tag_set_on_premises_is_told_by_the_audits<P: Place>(place: P) {
    told(&place, &hosts_of("v2.5").await, "audits").await;
}

async fn a_tag_set_in_a_hosted_brain_is_told_by_its_feed<P: Place>(place: P) {
    // Its times are whole seconds: what happened within this one cannot be told from what is to come.
    let world = hosts_of("v3.4").await;
    let second = jiff::Timestamp::now().as_second();
    until("another second", async || jiff::Timestamp::now().as_second() > second + 1).await;
    told(&place, &world, "audit_events").await;
}

/// Two workers one after the other; between them a tag is set.
async fn resumed<P: Place>(place: &P, world: &World, feed: &str) {
    let first = world.worker(place).await;
    listening(&first, feed).await;
    world.brain().add_tag(1, "block", "analyst.one").expect("a new tag");
    assert_eq!(first.events(Lane::Urgent).await.next().await.host_id, 1);
    read_again(&first, feed).await;
    first.stop().await;
    world.brain().add_tag(2, "block", "analyst.one").expect("a new tag");
    let second = world.worker(place).await;
    assert_eq!(second.events(Lane::Urgent).await.next().await.host_id, 2);
    read_again(&second, feed).await;
    assert_eq!(second.published("feed"), 1);
    second.stop().await;
}

async fn a_successor_goes_on_where_the_audits_were_read_to<P: Place>(place: P) {
    resumed(&place, &World::read(vec![host(1, &[]), host(2, &[])], "v2.5").await, "audits").await;
}

async fn a_successor_goes_on_at_the_checkpoint<P: Place>(place: P) {
    resumed(&place, &World::read(vec![host(1, &[]), host(2, &[])], "v3.4").await, "audit_events").await;
}

async fn scores_are_told_by_their_feed<P: Place>(place: P) {
    let mut world = World::read(vec![host(1, &[]), host(2, &[])], "v3.4").await;
    world.policy.urgency = Some(80);
    let worker = world.worker(&place).await;
    listening(&worker, "scoring_events").await;
    assert!(world.brain().set_scores(1, 50, 50, 79));
    assert!(world.brain().set_scores(2, 50, 50, 80));
    let event = worker.events(Lane::Normal).await.next().await;
    assert_eq!((event.host_id, event.kind), (2, HostKind::Scored));
    assert_eq!(event.hint, Some(Hint::Score { threat: None, certainty: None, urgency: Some(80) }));
    read_again(&worker, "scoring_events").await;
    assert_eq!(worker.published("feed"), 1);
    worker.stop().await;
}

async fn a_feed_that_is_not_offered_is_left_alone<P: Place>(place: P) {
    for (version, feed) in [("v2.5", "audits"), ("v3.4", "audit_events")] {
        let world = World::read(vec![host(1, &[])], version).await;
        world.brain().behave(|behaviour| behaviour.withheld = vec![Right::ReadEvents]);
        let worker = world.worker(&place).await;
        until("the feed is off", async || worker.searches(feed, "off") == 1).await;
        let asked = world.control().total();
        let began = tokio::time::Instant::now();
        // Five times the interval.
        until("a second", async || began.elapsed() > std::time::Duration::from_secs(1)).await;
        assert_eq!((worker.searches(feed, "off"), world.control().total()), (1, asked), "{feed}");
        worker.stop().await;
    }
}

async fn what_was_not_published_is_read_again<P: Place>(place: P) {
    let world = World::read(vec![host(1, &[])], "v2.5").await;
    let worker = world.worker(&place).await;
    listening(&worker, "audits").await;
    world.control().fail_next("audits", Fault::refuse(500), 2);
    world.brain().add_tag(1, "block", "analyst.one").expect("a new tag");
    assert_eq!(worker.events(Lane::Urgent).await.next().await.host_id, 1);
    assert_eq!(worker.searches("audits", "failed"), 2);
    // The checkpoint is retained behind the event, and a worker that knows nothing else starts there.
    let retained = worker.broker.watch(FEEDS).await.unwrap();
    until("the position is retained", async || {
        let value = retained.borrow().clone();
        value.is_some_and(|value| Positions::decode(&value).unwrap().audits.is_some())
    })
    .await;
    worker.stop().await;
}
