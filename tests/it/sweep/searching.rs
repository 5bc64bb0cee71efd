//! What a sweep finds and publishes, and who sweeps.

use std::time::Duration;

use defender_bridge::broker::{Broker as _, Lane};
use defender_bridge::containment::Policy;
use defender_bridge::job::{Hint, HostKind};
use defender_bridge::simulator::Fault;
use defender_bridge::simulator::cognito::TagFilter;
use tokio::time::Instant;

use super::{Place, Worker, World, host, on_both, once_each, scored, soon, until};

on_both!(
    two_thousand_hosts_are_published_once_each_and_not_again,
    thresholds_are_reached_by_equal_scores,
    only_the_exact_tags_count,
    containment_has_its_own_lane,
    a_lost_event_is_found,
    a_failing_brain_does_not_end_the_search,
    one_of_two_workers_sweeps,
    another_worker_takes_over,
    too_many_forgotten_block_tags_put_the_brake_on_before_anything_is_published,
);

/// Calls of the list of hosts.
fn listings(world: &World) -> u64 {
    world.control().calls("hosts")
}

async fn two_thousand_hosts_are_published_once_each_and_not_again<P: Place>(place: P) {
    let world = World::of((1..=2_000).map(|id| host(id, &["VIP", "host_context"])).collect()).await;
    let worker = world.worker(&place).await;
    worker.sweeps_more(1).await;
    let pages = listings(&world);
    assert!((10..=20).contains(&pages), "ten pages of two hundred hosts a sweep: {pages}");
    assert_eq!((worker.published("sweep"), worker.ready().await), (2_000, 2_000));
    worker.sweeps_more(3).await;
    assert_eq!(worker.published("sweep"), 2_000);
    // One that begins knows nothing of it; what waits tells it enough.
    worker.stop().await;
    let successor = world.worker(&place).await;
    successor.sweeps_more(3).await;
    assert_eq!(successor.published("sweep"), 0);
    // No sweep while they are taken: it would publish as room is made, and events of different hosts have no order.
    world.control().fail_next("hosts", Fault::refuse(503), u32::MAX);
    until("sweeps fail", async || successor.searches("sweep", "failed") > 0).await;
    let mut events = successor.events(Lane::Normal).await;
    assert_eq!(events.take(2_000).await, once_each(1..=2_000));
    // Nothing waits any more, and the tags are still there: their events may have been lost.
    world.control().clear_faults();
    successor.sweeps_more(2).await;
    assert_eq!(successor.published("sweep"), 2_000);
    successor.stop().await;
}

async fn thresholds_are_reached_by_equal_scores<P: Place>(place: P) {
    let hosts = vec![scored(1, 50, 60), scored(2, 49, 99), scored(3, 99, 59), scored(4, 99, 99)];
    let world = World {
        policy: Policy { thresholds: Some((50, 60)), ..Policy::default() },
        ..World::of([hosts, vec![brain_scored_with_tag()]].concat()).await
    };
    let worker = world.worker(&place).await;
    let mut events = worker.events(Lane::Normal).await;
    assert_eq!(events.take(2).await, once_each([1, 4]));
    worker.sweeps_more(2).await;
    assert_eq!(worker.published("sweep"), 2);
    let asked = world.control().requests_to("hosts");
    assert!(
        asked
            .iter()
            .any(|request| request.query.contains("threat_gte=50") && request.query.contains("certainty_gte=60")),
        "{asked:?}"
    );
    worker.stop().await;
}

/// Its tag triggers nothing where only scores count.
fn brain_scored_with_tag() -> defender_bridge::simulator::cognito::Host {
    host(5, &["block", "host_context"])
}

async fn only_the_exact_tags_count<P: Place>(place: P) {
    let world = World::of(vec![
        host(1, &["host_context"]),
        host(2, &["Host_Context"]),
        host(3, &["no host_context please"]),
        host(4, &["Manual block:2020-03-03 10:30"]),
        host(5, &["mde:isolation=isolating"]),
        host(6, &["mde:isolation=released"]),
        host(7, &["mde:isolation=releasing", "VIP"]),
    ])
    .await;
    world.brain().behave(|behaviour| behaviour.tag_filter = Some(TagFilter::Substring));
    let worker = world.worker(&place).await;
    let mut events = worker.events(Lane::Normal).await;
    let mut found = Vec::new();
    for _ in 0..3 {
        let event = events.next().await;
        assert_eq!((event.kind, event.sender.as_str()), (HostKind::Reconcile, "sweep"));
        found.push((event.host_id, event.hint));
    }
    found.sort_by_key(|(id, _)| *id);
    assert_eq!(found, [(1, Some(Hint::Tags(vec!["host_context".into()]))), (5, None), (7, None)]);
    worker.sweeps_more(2).await;
    assert_eq!((worker.published("sweep"), worker.ready().await), (3, 0));
    worker.stop().await;
}

async fn containment_has_its_own_lane<P: Place>(place: P) {
    let world = World::of(vec![
        host(1, &["host_context", "block"]),
        host(2, &["unblock", "mde:isolation=isolated"]),
        host(3, &["mde:isolation=isolated", "mde:isolation-until=2026-02-03T10:30Z"]),
        host(4, &["host_context"]),
        // Isolated and nothing due: looked at now and then, not at once.
        host(5, &["mde:isolation=isolated", "mde:isolation-until=2999-02-03T10:30Z"]),
    ])
    .await;
    let worker = world.worker(&place).await;
    assert_eq!(worker.events(Lane::Urgent).await.take(3).await, once_each([1, 2, 3]));
    assert_eq!(worker.events(Lane::Normal).await.take(1).await, once_each([4]));
    worker.sweeps_more(2).await;
    assert_eq!(worker.published("sweep"), 4);
    worker.stop().await;
}

async fn a_lost_event_is_found<P: Place>(place: P) {
    let world = World::of(vec![host(1, &["VIP"])]).await;
    let worker = world.worker(&place).await;
    worker.sweeps_more(1).await;
    assert_eq!(worker.published("sweep"), 0);
    // Nobody tells the bridge.
    world.brain().add_tag(1, "block", "analyst.one").expect("a new tag");
    let tagged = Instant::now();
    let event = worker.events(Lane::Urgent).await.next().await;
    assert_eq!((event.host_id, event.hint), (1, Some(Hint::Tags(vec!["block".into()]))));
    println!("found after {:?}", tagged.elapsed());
    // Worked and asked for again: a new reason, though it reads the same.
    world.brain().remove_tag(1, "block", "bridge").expect("the tag");
    worker.sweeps_more(2).await;
    world.brain().add_tag(1, "block", "analyst.one").expect("a new tag");
    assert_eq!(worker.events(Lane::Urgent).await.next().await.host_id, 1);
    worker.stop().await;
}

async fn a_failing_brain_does_not_end_the_search<P: Place>(place: P) {
    let world = World::of(vec![host(1, &["host_context"])]).await;
    world.control().fail_next("hosts", Fault::refuse(503), 3);
    let worker = world.worker(&place).await;
    let mut events = worker.events(Lane::Normal).await;
    assert_eq!(events.next().await.host_id, 1);
    assert_eq!((worker.searches("sweep", "failed"), worker.published("sweep")), (3, 1));
    worker.stop().await;
}

async fn one_of_two_workers_sweeps<P: Place>(place: P) {
    let world = World::of(vec![host(1, &["host_context"])]).await;
    let workers = [world.worker(&place).await, world.worker(&place).await];
    // A sweep without a word of the desk is no sweep, but it has read its page.
    let begun = |worker: &Worker<P::B>| worker.sweeps() + worker.searches("sweep", "failed");
    let sweeps = || workers.iter().map(begun).sum::<u64>();
    // Longer than the right to search lasts without being renewed.
    let began = Instant::now();
    let whole = || workers.iter().any(|worker| worker.sweeps() > 0);
    let long = || began.elapsed() > Duration::from_secs(12);
    until("a dozen seconds of sweeps", async || long() && whole() && sweeps() > 10).await;
    let failed: u64 = workers.iter().map(|worker| worker.searches("sweep", "failed")).sum();
    println!("{} sweeps, {failed} of them without a word of the desk", sweeps());
    let idle = workers.iter().filter(|worker| begun(worker) == 0).count();
    assert_eq!(idle, 1, "one of them does all: {} and {}", begun(&workers[0]), begun(&workers[1]));
    let published: u64 = workers.iter().map(|worker| worker.published("sweep")).sum();
    assert_eq!(published, 1);
    // One page a sweep, and perhaps one that is just being read.
    assert!((sweeps()..=sweeps() + 1).contains(&listings(&world)), "{} for {} sweeps", listings(&world), sweeps());
    for worker in workers {
        worker.stop().await;
    }
}

async fn another_worker_takes_over<P: Place>(place: P) {
    let world = World::of(vec![host(1, &["host_context"])]).await;
    let first = world.worker(&place).await;
    first.sweeps_more(1).await;
    let second = world.worker(&place).await;
    first.kill();
    let killed = Instant::now();
    second.sweeps_more(1).await;
    println!("another worker swept {:?} after the kill", killed.elapsed());
    // At the end of its lease at the latest, and by then somebody asks within seconds.
    assert!(killed.elapsed() < Duration::from_secs(25), "{:?}", killed.elapsed());
    let third = world.worker(&place).await;
    let stopped = Instant::now();
    soon(second.stop()).await;
    third.sweeps_more(1).await;
    println!("another worker swept {:?} after the stop", stopped.elapsed());
    third.stop().await;
}

async fn too_many_forgotten_block_tags_put_the_brake_on_before_anything_is_published<P: Place>(place: P) {
    let touched = host(9, &["block", "mde:request=denied", "mde:request-reason=protected"]);
    let forgotten = (1..=4).map(|id| host(id, &["block"]));
    let world = World::of(forgotten.chain([touched]).collect()).await;
    let worker = world.worker(&place).await;
    let mut events = worker.events(Lane::Urgent).await;
    events.next().await;
    let brake = worker.desk.brake();
    assert!(brake.paused, "{brake:?}");
    assert_eq!(events.take(4).await.len(), 4);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_forgotten_block_tags_are_worked() {
    let world = World::of((1..=3).map(|id| host(id, &["block"])).collect()).await;
    let place = <super::File as Place>::new().await;
    let worker = world.worker(&place).await;
    assert_eq!(worker.events(Lane::Urgent).await.take(3).await, once_each(1..=3));
    assert!(!worker.desk.brake().paused);
    // More of them later are analysts at work.
    for id in 10..20 {
        world.brain().put_host(host(id, &["block"]));
    }
    assert_eq!(worker.events(Lane::Urgent).await.take(10).await, once_each(10..20));
    assert!(!worker.desk.brake().paused);
    worker.broker.close().await;
    worker.kill();
}
