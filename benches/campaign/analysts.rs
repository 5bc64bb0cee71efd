//! What analysts do to the hosts meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use defender_bridge::simulator::cognito::{Brain, BulkHost};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::chance::Chance;
use super::stage::{BLOCK, CONTEXT, PREFIX, UNBLOCK};

/// Who edits.
const ANALYSTS: [&str; 4] = ["ana", "ben", "cleo", "dan"];

/// A tag of analysts that protects its host (`BRIDGE_GUARD_PROTECTED_TAGS`).
pub const PROTECTS: &str = "no-isolate";

/// Every so many hosts carry [`PROTECTS`] from the beginning.
const PROTECTED_EVERY: usize = 40;

/// Of so many hosts one is hot: half of all edits are of hot hosts, so that requests cross each other.
const HOT_EVERY: usize = 20;

/// The tags that hosts carry before anybody works on them.
pub fn prepare(brain: &Brain, hosts: &[BulkHost]) {
    for (index, host) in hosts.iter().enumerate() {
        brain.add_tag(host.id, "VIP", ANALYSTS[0]);
        if index % PROTECTED_EVERY == PROTECTED_EVERY - 1 {
            brain.add_tag(host.id, PROTECTS, ANALYSTS[0]);
        }
    }
}

/// Edits tags at random, `rate` times a second, until `end`; what was done how often.
pub async fn edit(
    brain: &Brain,
    hosts: &[BulkHost],
    rate: f64,
    end: Instant,
    mut chance: Chance,
) -> BTreeMap<&'static str, u64> {
    let mut done = BTreeMap::new();
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate.max(0.01)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0u64;
    while Instant::now() < end {
        ticks.tick().await;
        number += 1;
        *done.entry(one(brain, hosts, &mut chance, number)).or_default() += 1;
    }
    done
}

fn one(brain: &Brain, hosts: &[BulkHost], chance: &mut Chance, number: u64) -> &'static str {
    let hot = chance.fraction() < 0.5;
    let index = if hot { chance.below(hosts.len().div_ceil(HOT_EVERY)) * HOT_EVERY } else { chance.below(hosts.len()) };
    let id = hosts[index].id;
    let actor = ANALYSTS[chance.below(ANALYSTS.len())];
    let tags = brain.tags(id).unwrap_or_default();
    let has = |tag: &str| tags.iter().any(|one| one == tag);
    let added = |tag: &str, name: &'static str| match brain.add_tag(id, tag, actor) {
        Some(_) => name,
        None => "nothing",
    };
    match chance.below(100) {
        0..30 => added(BLOCK, "block"),
        30..52 => added(UNBLOCK, "unblock"),
        52..58 => {
            let there: Vec<&str> = [BLOCK, UNBLOCK].into_iter().filter(|tag| has(tag)).collect();
            match chance.pick(&there).and_then(|tag| brain.remove_tag(id, tag, actor)) {
                Some(_) => "request withdrawn",
                None => "nothing",
            }
        }
        58..75 => added(CONTEXT, "context"),
        75..90 => added(&format!("case-{number}"), "foreign tag added"),
        90..97 => {
            let foreign: Vec<&String> =
                tags.iter().filter(|tag| tag.starts_with("case-") && !tag.starts_with(PREFIX)).collect();
            match chance.pick(&foreign).and_then(|tag| brain.remove_tag(id, tag, actor)) {
                Some(_) => "foreign tag removed",
                None => "nothing",
            }
        }
        _ => {
            brain.add_tag_in_gap(id, &format!("gap-{number}"), actor);
            "foreign tag between a reading and a writing"
        }
    }
}
