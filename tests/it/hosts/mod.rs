//! Host events from the webhook to tags, notes and machine actions: the product's second half against the simulated brain
//! and the simulated Defender, one file a subject.

mod containment;
mod enrichment;
mod failures;
mod guards;
mod outages;

use std::time::Duration;

use defender_bridge::config::{TokenDigest, WebhookSettings};
use defender_bridge::containment::Policy;
use defender_bridge::simulator::cognito::Brain;
use defender_bridge::simulator::scenario::DEMO_TENANT_ID;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::bridge::{Answer, Options, TestBridge};

/// What a sender that cannot sign has.
const TOKEN: &str = "a-token-of-more-than-thirty-two-characters";

/// Long enough for a busy machine; nothing is expected to take it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const TICK: Duration = Duration::from_millis(20);

/// Who sets tags in these stories.
const ANALYST: &str = "analyst.one";

/// A bridge whose hosts are worked by `policy`.
struct Hosts {
    bridge: TestBridge,
    brain: Brain,
}

/// The tags of the demo.
fn policy() -> Policy {
    let tag = |name: &str| Some(name.to_owned());
    Policy { enrich: tag("host_context"), block: tag("block"), unblock: tag("unblock"), ..Policy::default() }
}

impl Hosts {
    async fn start() -> Self {
        Self::start_with(policy()).await
    }

    async fn start_with(policy: Policy) -> Self {
        Self::start_as(Options { hosts: Some(policy), ..Options::default() }).await
    }

    async fn start_as(options: Options) -> Self {
        let webhook = WebhookSettings {
            secrets: Vec::new(),
            tokens: vec![TokenDigest::of(TOKEN.as_bytes())],
            rate: 100_000,
            peer_rate: 0,
            self_user: None,
        };
        let bridge = TestBridge::start_with(Options { webhook: Some(webhook), ..options }).await;
        let brain = bridge.control().brain();
        Self { bridge, brain }
    }

    /// An analyst sets a tag, and somebody tells the bridge.
    async fn tag(&self, host: u64, tag: &str) {
        self.brain.add_tag(host, tag, ANALYST).expect("the host has not got the tag yet");
        self.tell(host, tag).await;
    }

    async fn tell(&self, host: u64, tag: &str) {
        self.event(&json!({"type": "host.tag.added", "host": {"id": host}, "tag": tag})).await;
    }

    async fn event(&self, event: &Value) {
        let request = self.bridge.client.post(self.bridge.url("/webhooks/cognito")).bearer_auth(TOKEN).json(event);
        let answer = Answer::of(request.send().await.expect("the ingress answers")).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
    }

    /// Waits until events are refused, because the broker takes no messages.
    async fn is_refused(&self) {
        let until = Instant::now() + PATIENCE;
        // No such tag is there, so one that gets through does nothing.
        let event = json!({"type": "host.tag.added", "host": {"id": 1}, "tag": "host_context"});
        loop {
            let request = self.bridge.client.post(self.bridge.url("/webhooks/cognito")).bearer_auth(TOKEN).json(&event);
            if request.send().await.expect("the ingress answers").status() == 503 {
                return;
            }
            assert!(Instant::now() < until, "events are taken");
            sleep(TICK).await;
        }
    }

    /// Returns the host's tags once `wanted` holds for them.
    async fn tags_where(&self, host: u64, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let tags = self.brain.tags(host).expect("the host is there");
            if wanted(&tags) {
                return tags;
            }
            assert!(Instant::now() < until, "the tags stay {tags:?}; notes: {:#?}", self.notes(host));
            sleep(TICK).await;
        }
    }

    /// Returns the host's tags once `tag` is among them and no trigger is.
    async fn settled(&self, host: u64, tag: &str) -> Vec<String> {
        self.tags_where(host, |tags| {
            has(tags, tag) && !["block", "unblock", "host_context"].iter().any(|t| has(tags, t))
        })
        .await
    }

    fn notes(&self, host: u64) -> Vec<String> {
        self.brain.notes(host).into_iter().map(|note| note.text).collect()
    }

    /// Returns the host's notes once one of them holds `text`.
    async fn note_with(&self, host: u64, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(note) = self.notes(host).into_iter().find(|note| note.contains(text)) {
                return note;
            }
            assert!(Instant::now() < until, "no note with {text:?} among {:#?}", self.notes(host));
            sleep(TICK).await;
        }
    }

    fn is_isolated(&self, machine: &str) -> bool {
        self.bridge.control().isolation(DEMO_TENANT_ID, machine).isolated
    }

    /// How often the bridge asked for an isolation.
    fn isolate_posts(&self) -> usize {
        self.bridge.control().isolate_posts(DEMO_TENANT_ID).len()
    }

    /// Waits until the metrics say that `count` host jobs ended as `outcome`.
    async fn jobs_ended(&self, outcome: &str, count: u64) {
        let line = format!("bridge_job_duration_seconds_count{{job=\"host\",outcome=\"{outcome}\"}} ");
        let until = Instant::now() + PATIENCE;
        loop {
            let (_, text) = self.bridge.admin("/metrics").await;
            let ended = text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().expect("a number"));
            if ended >= count {
                return;
            }
            let jobs: Vec<_> =
                text.lines().filter(|line| line.starts_with("bridge_job_duration_seconds_count")).collect();
            assert!(Instant::now() < until, "{ended} of {count} host jobs ended as {outcome}: {jobs:#?}");
            sleep(TICK).await;
        }
    }

    async fn stop(self) {
        self.bridge.stop().await;
    }
}

fn has(tags: &[String], tag: &str) -> bool {
    tags.iter().any(|one| one == tag)
}

/// The foreign tags of a list, in order.
fn foreign(tags: &[String]) -> Vec<&str> {
    let trigger = |tag: &str| ["block", "unblock", "host_context"].contains(&tag);
    tags.iter().map(String::as_str).filter(|tag| !tag.starts_with("mde:") && !trigger(tag)).collect()
}
