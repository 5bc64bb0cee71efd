//! What is not isolated, and the brake.

use std::time::Duration;

use defender_bridge::containment::{Guard, Policy};
use defender_bridge::simulator::cognito::{
    BUILD_SERVER_HOST, DOMAIN_CONTROLLER_HOST, ENGINEERING_HOST, FILE_SERVER_HOST, FINANCE_HOST, HR_HOST, MOVED_HOST,
    PRINTER_HOST, SHARED_ADDRESS_HOST,
};
use rstest::rstest;

use super::{Hosts, has, policy};

#[rstest]
#[case::a_protected_group(ENGINEERING_HOST, "mde:request=denied", "protected")]
#[case::a_key_asset(BUILD_SERVER_HOST, "mde:request=denied", "protected")]
#[case::privilege(DOMAIN_CONTROLLER_HOST, "mde:request=denied", "privileged")]
#[case::a_server(FILE_SERVER_HOST, "mde:request=denied", "server")]
#[case::no_agent(PRINTER_HOST, "mde:request=failed", "no_machine")]
#[case::a_shared_address(SHARED_ADDRESS_HOST, "mde:request=failed", "ambiguous")]
#[case::an_address_that_moved_on(MOVED_HOST, "mde:request=failed", "name_mismatch")]
#[tokio::test]
async fn is_not_isolated_and_says_why(#[case] host: u64, #[case] fate: &str, #[case] reason: &str) {
    let hosts = Hosts::start().await;
    hosts.tag(host, "block").await;
    let tags = hosts.settled(host, fate).await;
    assert!(has(&tags, &format!("mde:request-reason={reason}")), "{tags:?}");
    assert_eq!(hosts.isolate_posts(), 0);
    assert!(hosts.notes(host).iter().any(|note| note.starts_with("[defender-bridge]")), "{:?}", hosts.notes(host));
    hosts.stop().await;
}

#[tokio::test]
async fn a_dry_run_computes_everything_and_posts_nothing() {
    let guard = Guard { dry_run: true, ..Guard::default() };
    let hosts = Hosts::start_with(Policy { guard, ..policy() }).await;
    hosts.tag(FINANCE_HOST, "block").await;
    let tags = hosts.settled(FINANCE_HOST, "mde:request=dry-run").await;
    assert!(has(&tags, "mde:agent=found"), "{tags:?}");
    assert_eq!(hosts.bridge.control().calls("actions"), 0);
    hosts.stop().await;
}

#[tokio::test]
async fn above_the_cap_the_trigger_waits() {
    let guard = Guard { max_isolations_per_hour: 1, ..Guard::default() };
    let hosts = Hosts::start_with(Policy { guard, ..policy() }).await;
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    hosts.tag(HR_HOST, "block").await;
    let tags = hosts.tags_where(HR_HOST, |tags| has(tags, "mde:request=denied")).await;
    assert!(has(&tags, "mde:request-reason=rate_limit") && has(&tags, "block"), "{tags:?}");
    assert_eq!(hosts.isolate_posts(), 1);
    // A release has no cap.
    hosts.tag(FINANCE_HOST, "unblock").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=released").await;
    hosts.stop().await;
}

#[tokio::test]
async fn the_sweep_finds_what_no_event_told() {
    let options = crate::bridge::Options {
        hosts: Some(policy()),
        sweep_interval: Some(Duration::from_millis(500)),
        ..crate::bridge::Options::default()
    };
    let hosts = Hosts::start_as(options).await;
    hosts.brain.add_tag(FINANCE_HOST, "block", super::ANALYST).unwrap();
    hosts.brain.add_tag(HR_HOST, "host_context", super::ANALYST).unwrap();
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    hosts.settled(HR_HOST, "mde:agent=found").await;
    hosts.stop().await;
}
