//! Which hosts of a listing matter, and why (`cognito.md` 5.9, "lost event"). Pure.
//!
//! Cognito's list filters are candidates only: they ignore case, match parts of tags, or compare scores strictly
//! (`cognito.md` 3.4). What is decided here is decided from the host as it was read, tag by tag and byte by byte.

use std::time::Duration;

use jiff::Timestamp;

use crate::broker::Lane;
use crate::cognito::model::Host;
use crate::containment::state::{Isolation, State};
use crate::containment::{Policy, Reason};

/// The states in which a host is followed although nobody asks for anything.
const FOLLOWED: [Isolation; 3] = [Isolation::Isolating, Isolation::Releasing, Isolation::Isolated];

/// Between two looks at a host that is calm.
pub const CALM_INTERVAL: Duration = Duration::from_secs(3600);

/// Between two looks at a host whose isolation is held back. Each look adds an event that is held as well, and they are
/// many when the brake is on for days.
pub const HELD_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Why a host is worth an event. Two sweeps that find the same reasons found the same thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Reasons {
    /// It carries the block tag.
    pub block: bool,
    /// It carries the unblock tag.
    pub unblock: bool,
    /// It carries the enrichment tag.
    pub enrich: bool,
    /// Its machine is isolated, or about to be isolated or released.
    pub state: Option<Isolation>,
    /// It is isolated and the time of that is over.
    pub expired: bool,
    /// Its scores reach the thresholds.
    pub score: bool,
    /// Its tags say that the brake or a cap holds the isolation back: the event that found so waits in the queue.
    pub held: bool,
    /// Scores or a tag that stays ask for context, and it carries some already: at most for newer context.
    pub context: bool,
}

/// The tags to list hosts by: those that trigger something, and the states that are followed.
#[must_use]
pub fn listed_tags(policy: &Policy) -> Vec<String> {
    let triggers = [&policy.block, &policy.unblock, &policy.enrich].into_iter().flatten().cloned();
    let states = FOLLOWED.iter().map(|state| format!("{}isolation={}", policy.tag_prefix, state.as_str()));
    triggers.chain(states).collect()
}

/// The reasons for an event about `host` at `now`; `None` when there are none.
#[must_use]
pub fn reasons(policy: &Policy, host: &Host, now: Timestamp) -> Option<Reasons> {
    let state = State::read(&policy.tag_prefix, &host.tags);
    let followed = state.isolation.filter(|state| FOLLOWED.contains(state));
    let enrich = carries(host, policy.enrich.as_ref());
    let score = policy.thresholds.is_some_and(|thresholds| reaches(host, thresholds));
    let block = carries(host, policy.block.as_ref());
    let holds = state.request.and_then(|(_, reason)| reason).is_some_and(Reason::holds);
    let has_context = || own(policy, host).any(|tag| tag.starts_with("agent="));
    let reasons = Reasons {
        block,
        unblock: carries(host, policy.unblock.as_ref()),
        enrich,
        state: followed,
        expired: followed == Some(Isolation::Isolated) && state.is_over(now),
        score,
        held: block && holds,
        context: (score || (enrich && policy.keep_enrich_tag)) && has_context(),
    };
    reasons.any().then_some(reasons)
}

/// Whether `host` carries the block tag and no trace of it having been worked on (`DESIGN.md` 10, ruling 17).
#[must_use]
pub fn is_untouched(policy: &Policy, host: &Host) -> bool {
    let traces = ["isolation", "request"];
    carries(host, policy.block.as_ref())
        && !own(policy, host).any(|tag| traces.iter().any(|trace| tag.starts_with(trace)))
}

/// Those of the host's tags that trigger something, for the event's hint.
#[must_use]
pub fn triggers(policy: &Policy, reasons: &Reasons) -> Vec<String> {
    let triggers =
        [(reasons.block, &policy.block), (reasons.unblock, &policy.unblock), (reasons.enrich, &policy.enrich)];
    triggers.into_iter().filter(|(present, _)| *present).filter_map(|(_, tag)| tag.clone()).collect()
}

/// Whether both scores are at their thresholds or above; a score that is not known is below.
fn reaches(host: &Host, (threat, certainty): (u8, u8)) -> bool {
    host.threat.is_some_and(|score| score >= threat) && host.certainty.is_some_and(|score| score >= certainty)
}

fn carries(host: &Host, trigger: Option<&String>) -> bool {
    trigger.is_some_and(|tag| host.tags.contains(tag))
}

/// Our tags, without their prefix.
fn own<'a>(policy: &'a Policy, host: &'a Host) -> impl Iterator<Item = &'a str> {
    host.tags.iter().filter_map(|tag| tag.strip_prefix(policy.tag_prefix.as_str()))
}

impl Reasons {
    fn any(&self) -> bool {
        self.block || self.unblock || self.enrich || self.state.is_some() || self.score
    }

    /// The lane of the event: what isolates or releases a machine is urgent.
    #[must_use]
    pub fn lane(&self) -> Lane {
        if self.block || self.unblock || self.expired { Lane::Urgent } else { Lane::Normal }
    }

    /// How often a look is enough, where nothing is asked for, nothing is due, or an event waits for certain: `None` where
    /// an event is due at once. Calm are machines that are isolated (they may be released elsewhere), scores whose context
    /// may have become old, and isolations that are held back.
    #[must_use]
    pub fn calm(&self) -> Option<Duration> {
        let followed = matches!(self.state, Some(Isolation::Isolating | Isolation::Releasing));
        if self.unblock || self.expired || followed {
            None
        } else if self.block {
            self.held.then_some(HELD_INTERVAL)
        } else {
            (self.context || !(self.enrich || self.score)).then_some(CALM_INTERVAL)
        }
    }

    /// For logs and the lines of `poll`: `block, isolated`.
    #[must_use]
    pub fn words(&self) -> String {
        let words = [
            (self.block, "block"),
            (self.unblock, "unblock"),
            (self.enrich, "enrich"),
            (self.state.is_some(), self.state.map_or("", Isolation::as_str)),
            (self.expired, "expired"),
            (self.score, "score"),
        ];
        words.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            enrich: Some("host_context".into()),
            block: Some("block".into()),
            unblock: Some("unblock".into()),
            thresholds: Some((50, 60)),
            ..Policy::default()
        }
    }

    fn host(tags: &[&str], scores: (Option<u8>, Option<u8>)) -> Host {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Host { id: 1, tags, threat: scores.0, certainty: scores.1, ..Host::default() }
    }

    const NONE: Reasons = Reasons {
        block: false,
        unblock: false,
        enrich: false,
        state: None,
        expired: false,
        score: false,
        held: false,
        context: false,
    };

    fn now() -> Timestamp {
        "2026-02-03T10:30:00Z".parse().unwrap()
    }

    #[test]
    fn tags_count_when_they_are_exactly_those_named() {
        let isolated = Reasons { state: Some(Isolation::Isolated), ..NONE };
        for (tags, expected) in [
            (&["VIP", "block"][..], Some(Reasons { block: true, ..NONE })),
            (&["unblock"], Some(Reasons { unblock: true, ..NONE })),
            (&["host_context"], Some(Reasons { enrich: true, ..NONE })),
            (&["block", "unblock"], Some(Reasons { block: true, unblock: true, ..NONE })),
            (
                &["block", "mde:request=denied", "mde:request-reason=paused"],
                Some(Reasons { block: true, held: true, ..NONE }),
            ),
            (&["block", "mde:request=denied", "mde:request-reason=protected"], Some(Reasons { block: true, ..NONE })),
            // What a filter lets through that ignores case, splits words or compares parts.
            (&["Block", "BLOCK", " block", "Manual block:2026-02-03 10:30", "blocked"], None),
            (&["host_contexts", "mde:block"], None),
            (&["mde:isolation=isolating"], Some(Reasons { state: Some(Isolation::Isolating), ..NONE })),
            (&["mde:isolation=releasing"], Some(Reasons { state: Some(Isolation::Releasing), ..NONE })),
            (&["mde:isolation=isolated"], Some(isolated)),
            (&["mde:isolation=released", "mde:isolation-id=0a1b", "mde:agent=found"], None),
            (&["MDE:isolation=isolated", "mde:isolation=Isolated", "isolation=isolated"], None),
            (&["mde:isolation=isolated", "mde:isolation-until=2026-02-03T10:31Z"], Some(isolated)),
            (
                &["mde:isolation=isolated", "mde:isolation-until=2026-02-03T10:30Z"],
                Some(Reasons { expired: true, ..isolated }),
            ),
            // A value that does not parse counts as absent; a host that is not isolated does not expire.
            (&["mde:isolation=isolated", "mde:isolation-until=soon"], Some(isolated)),
            (&["mde:isolation-until=2026-02-03T10:30Z"], None),
            (&[], None),
        ] {
            assert_eq!(reasons(&policy(), &host(tags, (None, None)), now()), expected, "{tags:?}");
        }
    }

    #[test]
    fn scores_count_from_both_thresholds_on() {
        for (scores, reached) in [
            ((Some(50), Some(60)), true),
            ((Some(99), Some(99)), true),
            ((Some(49), Some(99)), false),
            ((Some(99), Some(59)), false),
            ((None, Some(99)), false),
            ((Some(99), None), false),
        ] {
            let found = reasons(&policy(), &host(&[], scores), now());
            assert_eq!(found, reached.then_some(Reasons { score: true, ..NONE }), "{scores:?}");
        }
        let off = Policy { thresholds: None, ..policy() };
        assert_eq!(reasons(&off, &host(&[], (Some(99), Some(99))), now()), None);
        let known = reasons(&policy(), &host(&["mde:agent=none"], (Some(50), Some(60))), now());
        assert_eq!(known, Some(Reasons { score: true, context: true, ..NONE }));
    }

    #[test]
    fn a_feature_without_a_tag_finds_nothing() {
        let none = Policy::default();
        assert_eq!(reasons(&none, &host(&["block", "unblock", "host_context", ""], (Some(99), Some(99))), now()), None);
        assert_eq!(
            listed_tags(&none),
            ["mde:isolation=isolating", "mde:isolation=releasing", "mde:isolation=isolated"],
            "machines that are isolated are followed whatever is switched off"
        );
        assert_eq!(listed_tags(&policy())[..3], ["block", "unblock", "host_context"]);
    }

    #[test]
    fn containment_is_urgent_and_quiet_hosts_are_calm() {
        let isolated = Reasons { state: Some(Isolation::Isolated), ..NONE };
        for (found, lane, calm) in [
            (Reasons { block: true, ..NONE }, Lane::Urgent, false),
            (Reasons { unblock: true, enrich: true, ..NONE }, Lane::Urgent, false),
            (Reasons { expired: true, ..isolated }, Lane::Urgent, false),
            (Reasons { enrich: true, ..NONE }, Lane::Normal, false),
            (Reasons { enrich: true, context: true, ..NONE }, Lane::Normal, true),
            (Reasons { state: Some(Isolation::Isolating), ..NONE }, Lane::Normal, false),
            (Reasons { state: Some(Isolation::Releasing), score: true, context: true, ..NONE }, Lane::Normal, false),
            (Reasons { score: true, ..NONE }, Lane::Normal, false),
            (Reasons { score: true, context: true, ..NONE }, Lane::Normal, true),
            (isolated, Lane::Normal, true),
            (Reasons { enrich: true, ..isolated }, Lane::Normal, false),
            (Reasons { block: true, ..isolated }, Lane::Urgent, false),
            (Reasons { block: true, held: true, ..NONE }, Lane::Urgent, true),
            (Reasons { block: true, unblock: true, held: true, ..NONE }, Lane::Urgent, false),
        ] {
            assert_eq!((found.lane(), found.calm().is_some()), (lane, calm), "{found:?}");
        }
    }

    #[test]
    fn a_tag_that_stays_is_calm_once_there_is_context() {
        let kept = Policy { keep_enrich_tag: true, ..policy() };
        let (bare, known) =
            (host(&["host_context"], (None, None)), host(&["host_context", "mde:agent=found"], (None, None)));
        let calm = |policy: &Policy, host: &Host| reasons(policy, host, now()).unwrap().calm().is_some();
        assert_eq!((calm(&kept, &bare), calm(&kept, &known)), (false, true));
        assert_eq!((calm(&policy(), &bare), calm(&policy(), &known)), (false, false));
    }

    #[test]
    fn a_block_tag_is_untouched_until_a_state_or_a_fate_stands_beside_it() {
        for (tags, untouched) in [
            (&["block"][..], true),
            (&["block", "VIP", "mde:agent=found"], true),
            (&["block", "mde:isolation=released"], false),
            (&["block", "mde:isolation-id=0a1b"], false),
            (&["block", "mde:request=denied", "mde:request-reason=rate_limit"], false),
            (&["Block"], false),
            (&[], false),
        ] {
            assert_eq!(is_untouched(&policy(), &host(tags, (None, None))), untouched, "{tags:?}");
        }
    }

    #[test]
    fn the_hint_names_the_triggers_and_the_words_say_why() {
        let reasons = Reasons { block: true, enrich: true, state: Some(Isolation::Isolated), ..NONE };
        assert_eq!(triggers(&policy(), &reasons), ["block", "host_context"]);
        assert_eq!(reasons.words(), "block, enrich, isolated");
    }
}
