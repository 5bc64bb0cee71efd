//! Brokers that take nothing for a while, or are killed, while hosts are isolated and released.

use std::time::Duration;

use defender_bridge::containment::{Guard, Policy};
use defender_bridge::simulator::Fault;
use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BulkHost, FINANCE_HOST, HR_HOST};
use defender_bridge::simulator::scenario::{
    DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, FINANCE_WORKSTATION, HR_WORKSTATION,
};
use tokio::time::{Instant, sleep};

use super::{ANALYST, Hosts, TICK, policy};
use crate::breakable::{Node, TURN, Witness};
use crate::bridge::{Options, Queue};
use crate::spawned::Role;

/// Hosts worked by a bridge whose broker is `node`.
async fn hosts_at(node: &Node) -> Hosts {
    let guard = Guard { max_isolations_per_hour: 1_000, ..Guard::default() };
    Hosts::start_as(Options {
        queue: Queue::RabbitMq,
        rabbitmq: Some(node.url()),
        hosts: Some(Policy { guard, ..policy() }),
        sweep_interval: Some(Duration::from_millis(500)),
        ..Options::default()
    })
    .await
}

/// Hosts with a machine each.
fn plain(hosts: &Hosts, count: usize) -> Vec<BulkHost> {
    hosts.brain.add_bulk(DEMO_TENANT_ID, count, 0, 7).expect("the demo tenant")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn an_alarm_of_the_broker_holds_isolations_up_and_costs_none() {
    let _turn = TURN.lock().await;
    let node = Node::start().await;
    let hosts = hosts_at(&node).await;
    let untold = plain(&hosts, 1)[0].id;
    hosts.tag(HR_HOST, "block").await;
    hosts.settled(HR_HOST, "mde:isolation=isolated").await;

    // An isolation and a release are in hands when the broker blocks its publishers.
    let control = hosts.bridge.control();
    control.fail_rate("hosts/{id}", Fault::refuse(503), 1.0, 1);
    control.forget();
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.tag(HR_HOST, "unblock").await;
    control.reached("hosts/{id}", 2).await;
    node.alarm(true).await;
    hosts.is_refused().await;
    control.clear_faults();
    // Nobody can tell the bridge of this one.
    hosts.brain.add_tag(untold, "block", ANALYST).unwrap();

    // Twice as long as an event has tries, were they used.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        assert_eq!(hosts.isolate_posts(), 1, "none but the one before the alarm");
        sleep(TICK).await;
    }
    node.alarm(false).await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    hosts.settled(HR_HOST, "mde:isolation=released").await;
    hosts.settled(untold, "mde:isolation=isolated").await;
    assert!(hosts.is_isolated(FINANCE_WORKSTATION) && !hosts.is_isolated(HR_WORKSTATION));
    assert_eq!(hosts.isolate_posts(), 3);
    hosts.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_worker_that_starts_during_an_alarm_waits_for_its_end() {
    let _turn = TURN.lock().await;
    let node = Node::start().await;
    let simulator = crate::spawned::simulator().await;
    let url = simulator.url();
    let worker = || {
        Role::new("worker").upstream(&url).set("BRIDGE_BROKER_URL", node.url()).set_all(&[
            ("COGNITO_BRAIN", &url),
            ("COGNITO_TOKEN", BRAIN_TOKEN),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
            ("BRIDGE_TAG_BLOCK", "block"),
        ])
    };
    // What it needs at the broker is there since then.
    worker().start().await.stop().await;
    node.alarm(true).await;
    let mut started = worker().spawn();
    started.logged("the tags cannot be told to the ingress yet").await;
    node.alarm(false).await;
    started.serving().await;
    started.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_broker_killed_amid_isolations_costs_none_and_doubles_none() {
    const COUNT: usize = 40;
    let _turn = TURN.lock().await;
    let node = Node::start().await;
    let hosts = hosts_at(&node).await;
    let machines = plain(&hosts, COUNT);
    let witness = Witness::at(&node.url(), node.folder()).await;
    let control = hosts.bridge.control();
    control.set_latency(Duration::from_millis(100));
    for host in &machines {
        hosts.tag(host.id, "block").await;
    }
    control.reached("machines/{id}/isolate", COUNT as u64 / 4).await;
    node.kill().await;
    let before = hosts.isolate_posts();
    node.launch().await;
    witness.sees_it_work().await;
    control.set_latency(Duration::ZERO);
    for host in &machines {
        hosts.settled(host.id, "mde:isolation=isolated").await;
    }
    println!("{before} of {COUNT} were posted when the broker was killed");
    assert!(before < COUNT, "it was killed at rest");
    assert_eq!(hosts.isolate_posts(), COUNT);
    hosts.stop().await;
}
