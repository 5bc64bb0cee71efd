//! Context on hosts that nobody wants isolated.

use defender_bridge::containment::Policy;
use defender_bridge::simulator::cognito::{BRAIN_USER, FINANCE_HOST, HR_HOST, PRINTER_HOST, SHARED_ADDRESS_HOST};
use defender_bridge::simulator::scenario::FINANCE_WORKSTATION;
use serde_json::json;

use super::{ANALYST, Hosts, foreign, has, policy};

#[tokio::test]
async fn a_tagged_host_gets_its_machines_context_in_five_calls_to_cognito() {
    let hosts = Hosts::start().await;
    hosts.bridge.control().forget();
    hosts.tag(FINANCE_HOST, "host_context").await;
    let tags = hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    for tag in ["mde:name=fin-ws-07.corp.example", "mde:os=Windows11", &format!("mde:id={FINANCE_WORKSTATION}")] {
        assert!(has(&tags, tag), "{tag} is not among {tags:?}");
    }
    assert!(!tags.iter().any(|tag| tag.starts_with("mde:isolation") || tag.starts_with("mde:request")), "{tags:?}");
    let note = hosts.note_with(FINANCE_HOST, "[ref:context]").await;
    assert!(note.starts_with("[defender-bridge]") && note.contains(FINANCE_WORKSTATION), "{note}");
    hosts.jobs_ended("enriched", 1).await;
    let calls = hosts.bridge.control().calls("cognito");
    assert!(calls <= 5, "{calls} calls to Cognito: {:?}", hosts.bridge.control().all_calls());
    assert_eq!(hosts.bridge.control().calls("actions"), 0);
    hosts.stop().await;
}

#[tokio::test]
async fn foreign_tags_and_notes_stay_as_they_are() {
    let hosts = Hosts::start().await;
    let (tags, notes) = (hosts.brain.tags(HR_HOST).unwrap(), hosts.notes(HR_HOST));
    assert!(tags.len() >= 2 && notes.len() >= 2, "{tags:?} {notes:?}");
    hosts.tag(HR_HOST, "host_context").await;
    let after = hosts.settled(HR_HOST, "mde:agent=found").await;
    assert_eq!(foreign(&after), foreign(&tags));
    assert_eq!(hosts.notes(HR_HOST)[..notes.len()], notes[..]);
    hosts.stop().await;
}

#[tokio::test]
async fn a_second_enrichment_changes_the_note_in_place_and_no_tag() {
    let hosts = Hosts::start().await;
    hosts.tag(FINANCE_HOST, "host_context").await;
    let first = hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    hosts.jobs_ended("enriched", 1).await;
    hosts.tag(FINANCE_HOST, "host_context").await;
    hosts.jobs_ended("enriched", 2).await;
    let mut second = hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    let mut first = first;
    first.sort();
    second.sort();
    assert_eq!(first, second);
    let context = hosts.notes(FINANCE_HOST).into_iter().filter(|note| note.contains("[ref:context]")).count();
    assert_eq!(context, 1);
    hosts.stop().await;
}

#[tokio::test]
async fn what_cannot_be_told_is_said() {
    let hosts = Hosts::start().await;
    hosts.tag(PRINTER_HOST, "host_context").await;
    hosts.tag(SHARED_ADDRESS_HOST, "host_context").await;
    hosts.settled(PRINTER_HOST, "mde:agent=none").await;
    hosts.tags_where(SHARED_ADDRESS_HOST, |tags| tags.iter().any(|tag| tag.starts_with("mde:agent="))).await;
    hosts.stop().await;
}

#[tokio::test]
async fn a_score_at_the_threshold_is_enriched_once_in_a_day() {
    let hosts = Hosts::start_with(Policy { thresholds: Some((60, 50)), ..policy() }).await;
    hosts.brain.change_host(FINANCE_HOST, |host| (host.threat, host.certainty) = (60, 50));
    hosts.brain.change_host(HR_HOST, |host| (host.threat, host.certainty) = (99, 49));
    for host in [FINANCE_HOST, HR_HOST] {
        hosts
            .event(&json!({"type": "host.scored", "host": {"id": host}, "score": {"threat": 60, "certainty": 50}}))
            .await;
    }
    hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    hosts.jobs_ended("nothing", 1).await;
    assert!(!hosts.brain.tags(HR_HOST).unwrap().iter().any(|tag| tag.starts_with("mde:")));
    let writes = hosts.brain.history(FINANCE_HOST).len();
    hosts
        .event(&json!({"type": "host.scored", "host": {"id": FINANCE_HOST}, "score": {"threat": 61, "certainty": 50}}))
        .await;
    hosts.jobs_ended("nothing", 2).await;
    assert_eq!(hosts.brain.history(FINANCE_HOST).len(), writes);
    hosts.stop().await;
}

#[tokio::test]
async fn a_host_that_is_gone_and_a_tag_that_nobody_acts_on_are_done_with() {
    let hosts = Hosts::start().await;
    hosts.tell(999_999, "host_context").await;
    hosts.jobs_ended("gone", 1).await;
    hosts.tag(FINANCE_HOST, "vip").await;
    hosts.jobs_ended("nothing", 1).await;
    assert!(hosts.brain.history(FINANCE_HOST).iter().all(|write| write.actor == ANALYST || write.actor != BRAIN_USER));
    hosts.stop().await;
}

#[tokio::test]
async fn a_quoted_note_of_ours_is_not_ours() {
    let hosts = Hosts::start().await;
    let quoted = "[defender-bridge] I saw this note elsewhere. [ref:context]";
    hosts.brain.add_note(FINANCE_HOST, quoted, ANALYST).unwrap();
    hosts.tag(FINANCE_HOST, "host_context").await;
    hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    hosts.jobs_ended("enriched", 1).await;
    assert!(hosts.notes(FINANCE_HOST).contains(&quoted.to_owned()));
    assert!(hosts.brain.notes(FINANCE_HOST).iter().any(|note| note.created_by == BRAIN_USER));
    hosts.stop().await;
}
