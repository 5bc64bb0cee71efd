//! The protected groups are looked for at the start.

use defender_bridge::cognito::{Cognito, Priority};
use defender_bridge::shutdown::Shutdown;
use defender_bridge::simulator::Fault;
use defender_bridge::simulator::cognito::{Host, Right};
use defender_bridge::sweep::groups;
use defender_bridge::telemetry::metrics::Metrics;

use super::{World, host, soon};

async fn world() -> (World, Cognito) {
    let world =
        World::of(vec![Host { groups: vec!["NoBlock".into(), "Domain controllers".into()], ..host(1, &[]) }]).await;
    let cognito = world.cognito(&Metrics::default());
    (world, cognito)
}

fn required(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn groups_that_exist_let_isolations_go_on() {
    let (world, cognito) = world().await;
    let groups =
        groups::check(cognito.clone(), required(&["NoBlock", "Domain controllers"]), Shutdown::default()).await;
    assert!(groups.unwrap().are_known());
    let before = world.control().total();
    assert!(groups::check(cognito, vec![], Shutdown::default()).await.unwrap().are_known());
    assert_eq!(world.control().total(), before, "nothing to ask");
}

#[tokio::test]
async fn a_group_that_does_not_exist_stops_the_start_by_its_name() {
    let (_world, cognito) = world().await;
    let names = required(&["NoBlock", "Domain controlers", "noblock"]);
    let error = groups::check(cognito, names, Shutdown::default()).await.unwrap_err().to_string();
    assert!(error.contains("\"Domain controlers\"") && error.contains("\"noblock\""), "{error}");
    assert!(!error.contains("\"NoBlock\"") && error.contains("BRIDGE_GUARD_PROTECTED_GROUPS"), "{error}");
}

#[tokio::test]
async fn a_brain_that_cannot_be_asked_lets_workers_start_and_isolates_nothing() {
    let (world, cognito) = world().await;
    world.control().fail_next("groups", Fault::refuse(503), 1);
    let shutdown = Shutdown::default();
    let mut groups = groups::check(cognito, required(&["NoBlock"]), shutdown.clone()).await.unwrap();
    assert!(!groups.are_known());
    soon(groups.known()).await;
    assert!(groups.are_known());
    shutdown.begin_hard();
}

#[tokio::test]
async fn a_missing_right_is_no_missing_group() {
    let (world, cognito) = world().await;
    world.brain().behave(|behaviour| behaviour.withheld = vec![Right::ReadGroups]);
    let shutdown = Shutdown::default();
    let session = cognito.session(Priority::Normal, tokio::time::Instant::now() + super::PATIENCE);
    assert_eq!(session.groups_named("NoBlock").await.unwrap_err().status(), Some(403));
    let groups = groups::check(cognito, required(&["NoBlock"]), shutdown.clone()).await.unwrap();
    assert!(!groups.are_known());
    shutdown.begin_hard();
}
