//! A 202 is given after the broker's confirm and never before: brokers that end, freeze and come back.

use std::collections::BTreeSet;
use std::time::Duration;

use defender_bridge::broker::Lane;
use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::job::TOPOLOGY;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Hook, PATIENCE, accepted, example, named, settings};
use crate::breakable::{Node, TURN};
use crate::bridge::Answer;
use crate::namespaces::rabbitmq_settings;

/// The 5 s of `cognito.md` 4.5, and what a busy machine needs to notice.
const REFUSED_WITHIN: Duration = Duration::from_secs(8);

impl Hook<RabbitMq> {
    async fn on(node: &Node) -> Self {
        let settings_of_link = rabbitmq::Settings { urls: vec![node.url()], ..rabbitmq_settings("webhook", &TOPOLOGY) };
        let broker = RabbitMq::connect(settings_of_link).await.expect("RabbitMQ is there");
        Self::start_on(broker, None, Some(settings())).await
    }

    async fn assert_refused_in_time(&self, event: &Value) {
        let asked = Instant::now();
        let answer = self.post(event).await;
        assert_eq!((answer.status, answer.json()), (503, example("webhook.503")));
        assert!(asked.elapsed() < REFUSED_WITHIN, "{:?}", asked.elapsed());
    }

    /// Sends it again and again, as senders do, until it is accepted.
    async fn resend(&self, event: &Value) -> Answer {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.post(event).await;
            if answer.status == 202 {
                return answer;
            }
            assert_eq!(answer.status, 503, "{}", answer.text);
            assert!(Instant::now() < end, "never accepted: {}", answer.text);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn nothing_is_accepted_while_the_broker_is_away_and_nothing_accepted_is_lost() {
    let _turn = TURN.lock().await;
    let node = Node::start().await;
    let hook = Hook::on(&node).await;
    // Streams that were declared in the second before a kill do not come back in RabbitMQ 3.10; an orderly restart leaves
    // them in order.
    node.ctl(&["stop_app"]).await;
    hook.assert_refused_in_time(&named("before", 1, "block")).await;
    node.ctl(&["start_app"]).await;
    assert_eq!(accepted(&hook.resend(&named("before", 1, "block")).await), [("before".to_owned(), false)]);

    node.kill().await;
    hook.assert_refused_in_time(&named("during", 2, "block")).await;
    hook.assert_refused_in_time(&json!([named("before", 1, "block"), named("during", 2, "block")])).await;
    // What was accepted before is safe already, so saying so again needs no broker.
    assert_eq!(accepted(&hook.post(&named("before", 1, "block")).await), [("before".to_owned(), true)]);

    node.launch().await;
    node.wait().await;
    // A refused event is not taken for a duplicate.
    assert_eq!(accepted(&hook.resend(&named("during", 2, "block")).await), [("during".to_owned(), false)]);
    assert_eq!(accepted(&hook.post(&named("during", 2, "block")).await), [("during".to_owned(), true)]);
    assert_eq!(accepted(&hook.post(&named("before", 1, "block")).await), [("before".to_owned(), true)]);

    let mut receiver = hook.receive(Lane::Urgent).await;
    let mut ids = BTreeSet::new();
    while ids.len() < 2 {
        ids.insert(hook.next(&mut receiver).await.host.event_id);
    }
    assert_eq!(ids, ["before", "during"].map(str::to_owned).into());
    receiver.close().await;
    hook.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_frozen_broker_confirms_nothing_so_nothing_is_accepted() {
    let _turn = TURN.lock().await;
    let node = Node::start().await;
    let hook = Hook::on(&node).await;
    node.signal("-STOP").await;
    hook.assert_refused_in_time(&named("frozen", 1, "block")).await;
    node.signal("-CONT").await;
    assert_eq!(accepted(&hook.resend(&named("frozen", 1, "block")).await), [("frozen".to_owned(), false)]);
    let mut receiver = hook.receive(Lane::Urgent).await;
    // Once or twice: what was not confirmed may have been stored all the same.
    assert_eq!(hook.next(&mut receiver).await.host.event_id, "frozen");
    receiver.close().await;
    hook.stop().await;
}
