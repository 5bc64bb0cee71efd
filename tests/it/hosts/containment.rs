//! Isolating, releasing, and what other people do meanwhile.

use std::time::Duration;

use defender_bridge::defender::Credentials;
use defender_bridge::simulator::cognito::{FINANCE_HOST, HR_HOST};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_TENANT_ID, FINANCE_WORKSTATION, HR_WORKSTATION};
use defender_bridge::simulator::{ActionBehaviour, Application, Outcome, Resource, WhileOpen};
use defender_bridge::simulator::{Fault, Matcher};
use secrecy::SecretString;
use serde_json::json;

use super::{ANALYST, Hosts, foreign, has, policy};
use crate::bridge::Options;

#[tokio::test]
async fn a_block_tag_isolates_and_an_unblock_tag_releases() {
    let hosts = Hosts::start().await;
    let before = hosts.brain.tags(HR_HOST).unwrap();
    hosts.tag(HR_HOST, "block").await;
    let tags = hosts.settled(HR_HOST, "mde:isolation=isolated").await;
    assert!(hosts.is_isolated(HR_WORKSTATION));
    assert!(has(&tags, &format!("mde:isolation-id={HR_WORKSTATION}")), "{tags:?}");
    assert!(tags.iter().any(|tag| tag.starts_with("mde:isolation-action=")), "{tags:?}");
    assert_eq!(foreign(&tags), foreign(&before));
    hosts.note_with(HR_HOST, "Isolation requested").await;
    let comment = hosts.bridge.control().isolate_posts(DEMO_TENANT_ID)[0].comment.clone();
    assert!(comment.starts_with("defender-bridge: isolate, Cognito host 4712 ("), "{comment}");

    hosts.tag(HR_HOST, "unblock").await;
    let tags = hosts.settled(HR_HOST, "mde:isolation=released").await;
    assert!(!hosts.is_isolated(HR_WORKSTATION));
    assert!(!tags.iter().any(|tag| tag.starts_with("mde:isolation-")), "{tags:?}");
    assert_eq!(foreign(&tags), foreign(&before));
    hosts.note_with(HR_HOST, "Release requested").await;
    assert_eq!(hosts.isolate_posts(), 1);
    hosts.stop().await;
}

#[tokio::test]
async fn the_same_event_many_times_is_one_isolation() {
    let hosts = Hosts::start().await;
    hosts.brain.add_tag(FINANCE_HOST, "block", ANALYST).unwrap();
    for n in 0..6 {
        hosts.event(&json!({"type": "host.tag.added", "id": format!("e-{n}"), "host": {"id": FINANCE_HOST}, "tag": "block"})).await;
    }
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    hosts.jobs_ended("as_it_was", 5).await;
    assert_eq!(hosts.isolate_posts(), 1);
    hosts.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_lost_is_looked_for_and_not_asked_again() {
    let hosts = Hosts::start().await;
    hosts.bridge.control().fail_next(Matcher::from("machines/{id}/isolate"), Fault::applied(Fault::Reset), 1);
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    assert_eq!(hosts.isolate_posts(), 1);
    hosts.stop().await;
}

/// Whether the request was withdrawn or not: what it did to the machine is said by the tags.
#[tokio::test]
async fn an_answer_that_is_lost_is_looked_for_although_nobody_asks_any_more() {
    let hosts = Hosts::start().await;
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    hosts.tag(FINANCE_HOST, "unblock").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=released").await;
    hosts.bridge.control().fail_next(Matcher::from("machines/{id}/isolate"), Fault::applied(Fault::Reset), 1);
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.jobs_ended("unknown", 1).await;
    hosts.brain.remove_tag(FINANCE_HOST, "block", ANALYST).unwrap();
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    assert!(hosts.is_isolated(FINANCE_WORKSTATION));
    assert_eq!(hosts.isolate_posts(), 2);
    hosts.stop().await;
}

/// The same when Defender's answer came and what came after it failed.
#[tokio::test]
async fn what_a_try_did_that_failed_later_is_found_although_nobody_asks_any_more() {
    let hosts = Hosts::start().await;
    let patch = Matcher { method: Some("PATCH".to_owned()), ..Matcher::from("tagging/host/{id}") };
    hosts.bridge.control().fail_next(patch, Fault::refuse(500), 1_000);
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.jobs_ended("failed", 1).await;
    assert_eq!(hosts.isolate_posts(), 1);
    hosts.brain.remove_tag(FINANCE_HOST, "block", ANALYST).unwrap();
    hosts.bridge.control().clear_faults();
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    assert!(hosts.is_isolated(FINANCE_WORKSTATION));
    assert_eq!(hosts.isolate_posts(), 1);
    hosts.stop().await;
}

#[tokio::test]
async fn a_lost_request_that_was_never_taken_is_forgotten_with_its_tag() {
    let hosts = Hosts::start().await;
    hosts.bridge.control().fail_next(Matcher::from("machines/{id}/isolate"), Fault::Reset, 1);
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.jobs_ended("unknown", 1).await;
    hosts.brain.remove_tag(FINANCE_HOST, "block", ANALYST).unwrap();
    // Looked for once more, then there is nothing to do.
    hosts.jobs_ended("nothing", 1).await;
    hosts.jobs_ended("unknown", 2).await;
    assert!(!hosts.is_isolated(FINANCE_WORKSTATION));
    assert_eq!(hosts.isolate_posts(), 0);
    hosts.stop().await;
}

#[tokio::test]
async fn an_open_action_of_somebody_else_is_adopted() {
    let hosts = Hosts::start().await;
    let held = ActionBehaviour { held: true, while_open: WhileOpen::Return, ..ActionBehaviour::default() };
    hosts.bridge.control().set_action_behaviour(held);
    let action = hosts.bridge.control().isolate_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, "portal.user").unwrap();
    hosts.tag(FINANCE_HOST, "block").await;
    let tags = hosts.settled(FINANCE_HOST, "mde:isolation=isolating").await;
    assert!(has(&tags, &format!("mde:isolation-action={action}")), "{tags:?}");
    hosts.bridge.control().finish_action(DEMO_TENANT_ID, &action, Outcome::Succeeded);
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    assert_eq!(hosts.isolate_posts(), 0);
    hosts.stop().await;
}

#[tokio::test]
async fn an_action_that_fails_is_no_isolation() {
    let hosts = Hosts::start().await;
    hosts.bridge.control().next_action_ends(DEMO_TENANT_ID, FINANCE_WORKSTATION, Outcome::TimeOut);
    hosts.tag(FINANCE_HOST, "block").await;
    let tags = hosts.settled(FINANCE_HOST, "mde:request=failed").await;
    assert!(has(&tags, "mde:request-reason=action_failed"), "{tags:?}");
    assert!(!tags.iter().any(|tag| tag.starts_with("mde:isolation")), "{tags:?}");
    assert!(!hosts.is_isolated(FINANCE_WORKSTATION));
    hosts.stop().await;
}

#[tokio::test]
async fn a_release_in_the_portal_is_noticed() {
    let hosts = Hosts::start().await;
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    let control = hosts.bridge.control();
    control.release_in_portal(DEMO_TENANT_ID, FINANCE_WORKSTATION, "portal.user").unwrap();
    control.isolation_where(DEMO_TENANT_ID, FINANCE_WORKSTATION, |truth| !truth.isolated).await;
    hosts.event(&json!({"type": "host.reconcile", "host": {"id": FINANCE_HOST}})).await;
    hosts.settled(FINANCE_HOST, "mde:isolation=released").await;
    hosts.stop().await;
}

#[tokio::test]
async fn an_isolation_whose_time_is_over_is_released() {
    let hosts = Hosts::start().await;
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    hosts.brain.add_tag(FINANCE_HOST, "mde:isolation-until=2026-01-01T00:00Z", ANALYST).unwrap();
    hosts.event(&json!({"type": "host.reconcile", "host": {"id": FINANCE_HOST}})).await;
    hosts.settled(FINANCE_HOST, "mde:isolation=released").await;
    assert!(!hosts.is_isolated(FINANCE_WORKSTATION));
    hosts.note_with(FINANCE_HOST, "time is over").await;
    hosts.stop().await;
}

#[tokio::test]
async fn a_block_that_is_withdrawn_before_it_is_posted_is_not() {
    let hosts = Hosts::start().await;
    // The block is taken off while the machine is being looked up.
    hosts.bridge.control().fail_next(Matcher::from("machines/findbyip"), Fault::slow(Duration::from_millis(1500)), 1);
    let calls = hosts.bridge.control().calls("machines/findbyip");
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.bridge.control().reached("machines/findbyip", calls + 1).await;
    hosts.brain.remove_tag(FINANCE_HOST, "block", ANALYST).unwrap();
    hosts.jobs_ended("withdrawn", 1).await;
    assert_eq!(hosts.isolate_posts(), 0);
    hosts.stop().await;
}

#[tokio::test]
async fn block_wins_over_unblock_and_both_are_consumed() {
    let hosts = Hosts::start().await;
    hosts.brain.add_tag(FINANCE_HOST, "unblock", ANALYST).unwrap();
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    assert!(hosts.is_isolated(FINANCE_WORKSTATION));
    hosts.stop().await;
}

/// `defender.md` 8: with an application of its own for it, only that one can isolate, and it can do nothing else.
#[tokio::test]
async fn another_application_isolates_and_releases_while_the_first_one_reads() {
    let response = Credentials {
        tenant_id: DEMO_TENANT_ID.to_owned(),
        client_id: "responder".to_owned(),
        proof: SecretString::from("responder-secret").into(),
    };
    let options = Options { hosts: Some(policy()), response: Some(response), ..Options::default() };
    let hosts = Hosts::start_as(options).await;
    let control = hosts.bridge.control();
    let reading = ["Alert.Read.All", "File.Read.All", "Machine.Read.All"];
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &reading));
    let responder = Application {
        client_id: "responder".to_owned(),
        client_secret: "responder-secret".to_owned(),
        certificates: Vec::new(),
        defender_roles: vec!["Machine.Isolate".to_owned()],
        graph_roles: Vec::new(),
    };
    assert!(control.put_application(DEMO_TENANT_ID, responder));
    hosts.tag(HR_HOST, "block").await;
    hosts.settled(HR_HOST, "mde:isolation=isolated").await;
    hosts.tag(HR_HOST, "unblock").await;
    hosts.settled(HR_HOST, "mde:isolation=released").await;
    let posts = control.requests_to("actions");
    assert_eq!(posts.len(), 2, "{posts:?}");
    for request in control.requests().iter().filter(|request| request.route != "token" && request.tenant.is_some()) {
        let expected = if request.route == "actions" { "responder" } else { DEMO_CLIENT_ID };
        assert_eq!(request.client.as_deref(), Some(expected), "{} {}", request.method, request.path);
    }
    hosts.stop().await;
}
