//! Containment first: the lane of an event follows from what the workers retain.

use defender_bridge::broker::{Broker, Lane, Topology};
use defender_bridge::job::{self, TOPOLOGY, Triggers};
use serde_json::{Value, json};

use super::{Hook, PATIENCE, Place, example, on_both_queues, settings, tagged};

on_both_queues! {
    the_workers_tags_decide_the_lane,
    values_that_cannot_be_read_make_tags_urgent,
    a_full_lane_does_not_hold_up_containment,
}

impl<B: Broker> Hook<B> {
    /// The lane that an event takes.
    async fn lane_of(&self, event: &Value) -> Lane {
        let answer = self.post(event).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let drained = self.drain().await;
        assert_eq!(drained.values().map(Vec::len).sum::<usize>(), 1, "{drained:?}");
        let (lane, queued) = drained.into_iter().next().expect("one");
        assert_eq!(queued[0].message.lane, lane);
        lane
    }

    /// Waits until an event takes this lane.
    async fn lane_becomes(&self, event: &Value, lane: Lane) {
        let becoming = async { while self.lane_of(event).await != lane {} };
        tokio::time::timeout(PATIENCE, becoming).await.expect("the ingress follows the retained value");
    }

    async fn retain(&self, urgent: &[&str], normal: &[&str]) {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let triggers = Triggers { urgent: words(urgent), normal: words(normal) };
        let value = serde_json::to_vec(&triggers).unwrap();
        self.broker.retain(job::TRIGGERS, value.into()).await.expect("retained");
    }
}

async fn the_workers_tags_decide_the_lane<P: Place>() {
    let hook = Hook::start::<P>().await;
    let context = tagged(1, "host_context");
    // Until a worker has said which tags there are, every tag may be about containment.
    assert_eq!(hook.lane_of(&context).await, Lane::Urgent);
    hook.retain(&["block", "unblock"], &["host_context"]).await;
    hook.lane_becomes(&context, Lane::Normal).await;
    let changed = |after: &[&str]| json!({"type": "host.tags.changed", "host": {"id": 1}, "tags": {"after": after}});
    for (event, lane) in [
        (tagged(1, "block"), Lane::Urgent),
        (tagged(1, "unblock"), Lane::Urgent),
        (tagged(1, "Block"), Lane::Normal),
        (tagged(1, "VIP"), Lane::Normal),
        (changed(&["VIP", "block"]), Lane::Urgent),
        (changed(&["VIP"]), Lane::Normal),
        (example("native.qux.audit.host-tags"), Lane::Urgent),
        (example("native.qux.host-scoring"), Lane::Normal),
        (example("native.qux.host-lockdown"), Lane::Normal),
        (example("event.host.reconcile"), Lane::Normal),
    ] {
        assert_eq!(hook.lane_of(&event).await, lane, "{event}");
    }
    // The workers are given other tags.
    hook.retain(&["isolieren"], &[]).await;
    hook.lane_becomes(&tagged(1, "block"), Lane::Normal).await;
    assert_eq!(hook.lane_of(&tagged(1, "isolieren")).await, Lane::Urgent);
    hook.stop().await;
}

async fn values_that_cannot_be_read_make_tags_urgent<P: Place>() {
    let hook = Hook::start::<P>().await;
    let context = tagged(1, "host_context");
    hook.retain(&["block"], &["host_context"]).await;
    hook.lane_becomes(&context, Lane::Normal).await;
    hook.broker.retain(job::TRIGGERS, "no JSON".into()).await.expect("retained");
    hook.lane_becomes(&context, Lane::Urgent).await;
    hook.stop().await;
}

/// Room for one message in each lane, more or less: what the broker takes beyond its limit is its own affair.
static SMALL: Topology = Topology { durable_limit: 1, ..TOPOLOGY };

async fn a_full_lane_does_not_hold_up_containment<P: Place>() {
    let hook = Hook::start_with::<P>(Some(settings()), &SMALL).await;
    let reconcile = |host: u64| json!({"type": "host.reconcile", "host": {"id": host}});
    let mut host = 1;
    while hook.post(&reconcile(host)).await.status == 202 {
        host += 1;
        assert!(host < 1_000, "the lane is never full");
    }
    let answer = hook.post(&reconcile(1)).await;
    assert_eq!((answer.status, answer.json()), (503, example("webhook.503")));
    // The block tag is the last of the batch, and is stored nevertheless.
    let answer = hook.post(&json!([reconcile(2), reconcile(3), tagged(4711, "block")])).await;
    assert_eq!(answer.status, 503);
    let urgent = hook.drain().await.remove(&Lane::Urgent).expect("an urgent message");
    assert_eq!(urgent.iter().map(|queued| queued.host.host_id).collect::<Vec<_>>(), [4711]);
    hook.stop().await;
}
