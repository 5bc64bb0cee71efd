//! Which events are one, and which are two (`DESIGN.md` 10, ruling 1).

use serde_json::json;

use super::{Hook, Place, accepted, example, named, on_both_queues, tagged};

on_both_queues! {
    what_is_sent_again_with_its_id_is_queued_once,
    what_has_no_id_is_never_suppressed,
    a_resent_request_is_known_by_its_webhook_id,
}

fn ids(known: &[(&str, bool)]) -> Vec<(String, bool)> {
    known.iter().map(|(id, duplicate)| ((*id).to_owned(), *duplicate)).collect()
}

async fn what_is_sent_again_with_its_id_is_queued_once<P: Place>() {
    let hook = Hook::start::<P>().await;
    assert_eq!(hook.post(&example("event.host.tag.added")).await.json(), example("webhook.202.single"));
    let again = hook.post(&example("event.host.tag.added")).await;
    assert_eq!((again.status, again.json()), (202, example("webhook.202.duplicate")));
    // The id counts, not what the event says; and the host, for which a sender may use an id again.
    assert_eq!(
        accepted(&hook.post(&named("evt-2026-000001", 4711, "unblock")).await),
        ids(&[("evt-2026-000001", true)])
    );
    assert_eq!(
        accepted(&hook.post(&named("evt-2026-000001", 4712, "block")).await),
        ids(&[("evt-2026-000001", false)])
    );
    // Another sender's ids are its own.
    let signed = hook.post_signed("msg_1", &example("event.host.tag.added")).await;
    assert_eq!(accepted(&signed), ids(&[("evt-2026-000001", false)]));
    // Twice in one body is once, too.
    let batch = json!([named("a", 1, "block"), named("a", 1, "block"), named("a", 2, "block"), named("b", 1, "block")]);
    let answer = hook.post(&batch).await;
    assert_eq!(accepted(&answer), ids(&[("a", false), ("a", true), ("a", false), ("b", false)]));
    let queued = hook.drain_all().await;
    let mut queued: Vec<(u64, &str)> = queued.iter().map(|q| (q.host.host_id, q.host.event_id.as_str())).collect();
    queued.sort_unstable();
    let first = "evt-2026-000001";
    assert_eq!(queued, [(1, "a"), (1, "b"), (2, "a"), (4711, first), (4711, first), (4712, first)]);
    let metrics = hook.metrics().await;
    let line = "bridge_webhook_events_total{outcome=\"duplicate\",reason=\"host.tag.added\"} 3";
    assert!(metrics.contains(line), "{metrics}");
    hook.stop().await;
}

async fn what_has_no_id_is_never_suppressed<P: Place>() {
    let hook = Hook::start::<P>().await;
    // Block, unblock, block are three events, however alike the first and the last are.
    let mut sent = Vec::new();
    for tag in ["block", "unblock", "block"] {
        sent.extend(accepted(&hook.post(&tagged(1, tag)).await));
    }
    assert!(sent.iter().all(|(id, duplicate)| id.starts_with("sha256:") && !duplicate), "{sent:?}");
    assert!(sent[0] == sent[2] && sent[0] != sent[1], "{sent:?}");
    let batch = hook.post(&json!([tagged(1, "block"), tagged(1, "block")])).await;
    assert_eq!(accepted(&batch), [sent[0].clone(), sent[0].clone()]);
    assert_eq!(hook.drain_all().await.len(), 5);
    hook.stop().await;
}

async fn a_resent_request_is_known_by_its_webhook_id<P: Place>() {
    let hook = Hook::start::<P>().await;
    assert_eq!(accepted(&hook.post_signed("msg_1", &tagged(1, "block")).await), ids(&[("msg_1", false)]));
    assert_eq!(accepted(&hook.post_signed("msg_1", &tagged(1, "block")).await), ids(&[("msg_1", true)]));
    assert_eq!(accepted(&hook.post_signed("msg_2", &tagged(1, "block")).await), ids(&[("msg_2", false)]));
    // An event of that name is another thing.
    assert_eq!(accepted(&hook.post_signed("msg_3", &named("msg_1", 1, "block")).await), ids(&[("msg_1", false)]));
    // One message about many hosts, some of which were accepted before.
    let bulk = |hosts: &str| {
        let mut message = example("native.rux.audit.bulk-tag");
        message["message"] = format!("Tag block has been added to hosts with ids [{hosts}]").into();
        json!([message, message])
    };
    let answer = hook.post_signed("msg_4", &bulk("7, 8")).await;
    assert_eq!(accepted(&answer), ids(&[("msg_4.0", false), ("msg_4.1", false)]));
    let answer = hook.post_signed("msg_4", &bulk("7, 8, 9")).await;
    assert_eq!(accepted(&answer), ids(&[("msg_4.0", false), ("msg_4.1", false)]));
    let answer = hook.post_signed("msg_4", &bulk("9, 8, 7")).await;
    assert_eq!(accepted(&answer), ids(&[("msg_4.0", true), ("msg_4.1", true)]));
    let hosts: Vec<u64> = hook.drain_all().await.iter().map(|queued| queued.host.host_id).collect();
    assert_eq!(hosts, [1, 1, 1, 7, 7, 8, 8, 9, 9]);
    hook.stop().await;
}
