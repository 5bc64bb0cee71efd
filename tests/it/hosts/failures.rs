//! Things that go wrong while a host is worked.

use defender_bridge::simulator::cognito::{FINANCE_HOST, HR_HOST, Right};
use defender_bridge::simulator::scenario::FINANCE_WORKSTATION;
use defender_bridge::simulator::{Fault, Matcher};

use super::{ANALYST, Hosts, foreign, has};

#[tokio::test]
async fn a_tag_write_whose_answer_is_lost_is_not_made_twice() {
    let hosts = Hosts::start().await;
    let patch = Matcher { method: Some("PATCH".to_owned()), ..Matcher::from("tagging/host/{id}") };
    hosts.bridge.control().fail_next(patch, Fault::applied(Fault::Reset), 1);
    hosts.tag(FINANCE_HOST, "host_context").await;
    hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    hosts.jobs_ended("enriched", 1).await;
    let writes = hosts.brain.history(FINANCE_HOST).iter().filter(|write| write.actor != ANALYST).count();
    assert_eq!(writes, 1);
    hosts.stop().await;
}

#[tokio::test]
async fn a_tag_set_between_reading_and_writing_is_the_only_one_that_can_be_lost() {
    let hosts = Hosts::start().await;
    let before = hosts.brain.tags(HR_HOST).unwrap();
    hosts.brain.add_tag_in_gap(HR_HOST, "set-in-the-gap", ANALYST);
    hosts.tag(HR_HOST, "host_context").await;
    let after = hosts.settled(HR_HOST, "mde:agent=found").await;
    assert_eq!(foreign(&after), foreign(&before));
    let undone = hosts.brain.undone(|tag| tag.starts_with("mde:") || tag == "host_context");
    assert_eq!(undone.len(), 1, "{undone:?}");
    hosts.stop().await;
}

#[tokio::test]
async fn notes_that_cannot_be_written_stop_nothing() {
    let hosts = Hosts::start().await;
    hosts.brain.behave(|behaviour| behaviour.withheld.extend([Right::ReadNotes, Right::WriteNotes]));
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.settled(FINANCE_HOST, "mde:isolation=isolated").await;
    assert!(hosts.is_isolated(FINANCE_WORKSTATION));
    hosts.stop().await;
}

#[tokio::test]
async fn once_tags_cannot_be_written_nothing_is_isolated() {
    let hosts = Hosts::start().await;
    hosts.brain.behave(|behaviour| behaviour.withheld.extend([Right::WriteTags]));
    // The first one learns it by its own failure.
    hosts.tag(HR_HOST, "host_context").await;
    hosts.jobs_ended("configuration", 1).await;
    hosts.tag(FINANCE_HOST, "block").await;
    hosts.jobs_ended("configuration", 2).await;
    assert_eq!(hosts.isolate_posts(), 0);
    assert!(has(&hosts.brain.tags(FINANCE_HOST).unwrap(), "block"));
    hosts.stop().await;
}

#[tokio::test]
async fn alerts_that_cannot_be_counted_stop_nothing() {
    let hosts = Hosts::start().await;
    hosts.bridge.control().fail_rate(Matcher::from("machines/{id}/alerts"), Fault::refuse(500), 1.0, 1);
    hosts.tag(FINANCE_HOST, "host_context").await;
    hosts.settled(FINANCE_HOST, "mde:agent=found").await;
    let note = hosts.note_with(FINANCE_HOST, "[ref:context]").await;
    assert!(note.contains("Open alerts: not known"), "{note}");
    hosts.stop().await;
}
