//! What is in the queue for each event.

use defender_bridge::broker::Repeat;
use defender_bridge::config::WebhookSettings;
use defender_bridge::job::{Hint, Host, HostKind, TOPOLOGY};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Hook, Place, Queued, accepted, example, on_both_queues, settings};

on_both_queues! {
    each_example_is_queued_as_what_it_means,
    a_bulk_change_is_an_event_for_each_host,
    our_own_changes_are_not_queued,
    a_batch_of_a_hundred_is_queued_whole,
}

/// What stays when times and the sender's name are taken for granted.
fn essence(queued: &Queued) -> (u64, HostKind, Option<Hint>, Option<&str>) {
    (queued.host.host_id, queued.host.kind, queued.host.hint.clone(), queued.host.actor.as_deref())
}

async fn each_example_is_queued_as_what_it_means<P: Place>() {
    use HostKind::{Reconcile, Scored, TagAdded, TagRemoved, TagsChanged};
    let tags = |tags: &[&str]| Some(Hint::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect()));
    let block = || Some(Hint::Tag("block".into()));
    let scores = || Some(Hint::Score { threat: Some(78), certainty: Some(66), urgency: None });
    let (analyst, hosted) = (Some("analyst.one"), Some("analyst.one@example.com"));
    let hook = Hook::start::<P>().await;
    for (name, kind, hint, actor, occurred_at) in [
        ("event.host.tag.added", TagAdded, block(), analyst, "2026-02-03T10:30:45Z"),
        ("event.host.tag.removed", TagRemoved, block(), analyst, "2026-02-03T11:02:10Z"),
        ("event.host.tags.changed", TagsChanged, tags(&["VIP", "unblock"]), analyst, "2026-02-03T11:05:00Z"),
        ("event.host.scored", Scored, scores(), None, "2026-02-03T10:00:02Z"),
        ("event.host.reconcile", Reconcile, None, None, "2026-02-03T12:00:00Z"),
        ("native.qux.host-scoring", Scored, scores(), None, "2026-02-03T10:00:02Z"),
        ("native.qux.host-scoring.stringified", Scored, scores(), None, "2026-02-03T10:00:02Z"),
        ("native.qux.audit.host-tags", TagsChanged, tags(&["VIP", "block"]), analyst, "2026-02-03T10:30:45Z"),
        ("native.qux.wrapped-syslog", TagsChanged, tags(&["VIP", "block"]), analyst, "2026-02-03T10:30:45Z"),
        ("native.qux.host-lockdown", Reconcile, None, analyst, "2026-02-03T10:40:00Z"),
        ("native.rux.audit.host-tags", TagsChanged, tags(&["VIP", "block"]), hosted, "2026-02-03T10:30:45Z"),
        (
            "native.rux.entity-scoring.host",
            Scored,
            Some(Hint::Score { threat: None, certainty: None, urgency: Some(88) }),
            None,
            "2026-02-03T10:00:02Z",
        ),
    ] {
        let before = Timestamp::now();
        let answer = hook.post_signed(&name.replace('.', "_"), &example(name)).await;
        let after = Timestamp::now();
        let [(id, false)] = &accepted(&answer)[..] else { panic!("{name}: {}", answer.text) };
        // The event's own id, if it is of the bridge's own form and has one; else that of the request.
        let own = example(name)["id"].as_str().map(str::to_owned);
        assert_eq!(*id, own.unwrap_or_else(|| name.replace('.', "_")));
        let queued = hook.drain_all().await;
        let [queued] = &queued[..] else { panic!("{name}: {queued:?}") };
        assert_eq!(essence(queued), (4711, kind, hint, actor), "{name}");
        assert_eq!(queued.host.event_id, *id, "{name}");
        assert_eq!(queued.host.occurred_at, occurred_at.parse().unwrap(), "{name}");
        assert!((before..=after).contains(&queued.host.received_at), "{name}");
        assert_eq!((queued.host.sender.as_str(), &queued.host.progress), ("webhook-signed", &None));
        let message = &queued.message;
        assert_eq!((message.key.as_deref(), message.repeat), (Some("host-4711"), Repeat::AtLeastOnce));
        assert_eq!((message.id.get_version_num(), message.lane), (7, queued.host.lane(None)));
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!((&body["v"], &body["kind"]), (&json!(1), &json!(kind.as_str())), "{name}");
    }
    hook.stop().await;
}

async fn a_bulk_change_is_an_event_for_each_host<P: Place>() {
    let hook = Hook::start::<P>().await;
    let answer = hook.post(&example("native.rux.audit.bulk-tag")).await;
    let [(id, false)] = &accepted(&answer)[..] else { panic!("{}", answer.text) };
    assert!(id.starts_with("sha256:") && id.len() == 39, "{id}");
    let queued = hook.drain_all().await;
    let hosts: Vec<(u64, &str)> = queued.iter().map(|q| (q.host.host_id, q.host.event_id.as_str())).collect();
    assert_eq!(hosts, [(4711, id.as_str()), (4712, id)]);
    assert!(queued.iter().all(|q| q.host.kind == HostKind::TagAdded && q.host.hint == Some(Hint::Tag("block".into()))));

    // More than a thousand: the rest is named, not lost without a word.
    let mut message = example("native.rux.audit.bulk-tag");
    let ids = (1..=1001).map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    message["message"] = format!("Tag block has been removed from hosts with ids [{ids}]").into();
    let answer = hook.post(&json!([message])).await;
    assert_eq!(accepted(&answer).len(), 1);
    assert_eq!(answer.json()["rejected"], json!([{"index": 0, "code": "too_many_hosts", "pointer": "/0/message"}]));
    let hosts: Vec<u64> = hook.drain_all().await.iter().map(|queued| queued.host.host_id).collect();
    assert_eq!(hosts, (1..=1000).collect::<Vec<_>>());
    hook.stop().await;
}

async fn our_own_changes_are_not_queued<P: Place>() {
    let own = WebhookSettings { self_user: Some("analyst.one".into()), ..settings() };
    let hook = Hook::start_with::<P>(Some(own), &TOPOLOGY).await;
    let decrease = json!({"type": "host.scored", "host": {"id": 1}, "score": {"threat": 1, "decreased": true}});
    let batch = json!([
        example("native.qux.audit.host-tags"),
        example("event.host.tag.added"),
        example("native.rux.audit.host-tags"),
        decrease,
    ]);
    let answer = hook.post(&batch).await;
    assert_eq!(accepted(&answer).len(), 1);
    let ignored = json!([
        {"index": 0, "reason": "own_change"},
        {"index": 1, "reason": "own_change"},
        {"index": 3, "reason": "score_decrease"},
    ]);
    assert_eq!(answer.json()["ignored"], ignored);
    let queued = hook.drain_all().await;
    assert_eq!(queued.len(), 1);
    assert_eq!(queued[0].host.actor.as_deref(), Some("analyst.one@example.com"));
    let metrics = hook.metrics().await;
    assert!(metrics.contains("bridge_webhook_events_total{outcome=\"ignored\",reason=\"own_change\"} 2"), "{metrics}");
    assert!(
        metrics.contains("bridge_webhook_events_total{outcome=\"ignored\",reason=\"score_decrease\"} 1"),
        "{metrics}"
    );
    hook.stop().await;
}

async fn a_batch_of_a_hundred_is_queued_whole<P: Place>() {
    let hook = Hook::start::<P>().await;
    let batch: Vec<Value> = (1..=100).map(|id| json!({"type": "host.reconcile", "host": {"id": id}})).collect();
    let answer = hook.post_signed("msg_1", &batch.into()).await;
    let expected: Vec<(String, bool)> = (0..100).map(|index| (format!("msg_1.{index}"), false)).collect();
    assert_eq!(accepted(&answer), expected);
    let queued: Vec<Host> = hook.drain_all().await.into_iter().map(|queued| queued.host).collect();
    let hosts: Vec<(u64, String)> = queued.into_iter().map(|host| (host.host_id, host.event_id)).collect();
    let expected: Vec<(u64, String)> = (0..100).map(|index| (index + 1, format!("msg_1.{index}"))).collect();
    assert_eq!(hosts, expected);
    hook.stop().await;
}
