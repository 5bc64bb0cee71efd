//! What is asked of the bridge for a host (`cognito.md` 5.6), decided from its tags and scores alone.
//!
//! Rows 4, 6 and 9 of the table need Defender's machine actions as well, which are read only when a row asks for them:
//! [`decide`] names the row as far as the tags tell, [`Decision::row_after`] once [`super::act`] has looked. Rows 7, 8 and
//! 9 hold whether or not an enrichment is asked for too, so a decision carries both.

use jiff::Timestamp;

use super::act::Step;
use super::policy::Policy;
use super::state::{Isolation, State};
use crate::cognito::model::Host;

/// What is known of a host.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The host, for its scores.
    pub host: &'a Host,
    /// Its tags, from the tagging call.
    pub tags: &'a [String],
    /// [`State::read`] of these tags.
    pub state: &'a State,
    /// When its context was last read ([`super::notes::context_read_at`]); `None`: never. Needed only where
    /// [`needs_context_age`] says so.
    pub context_read: Option<Timestamp>,
    /// The present.
    pub now: Timestamp,
}

/// What to do about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Isolate it: rows 1, 3 and 4.
    Isolate,
    /// Release it because an analyst asks: rows 5 and 6.
    Release,
    /// Release it because its time is over: row 8.
    Expire,
    /// Look how far the action is that Defender works on: row 7.
    Follow,
    /// Look whether somebody else released it: row 9.
    Check,
    /// Leave it: rows 10 to 12.
    Leave,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The row of the table in `cognito.md` 5.6, as far as the tags tell.
    pub row: u8,
    /// About the machine.
    pub act: Act,
    /// Whether to look the machine up for tags and note. Isolation and release always refresh them.
    pub enrich: bool,
    /// The triggers that this settles, to be removed last.
    pub consume: Vec<String>,
}

impl Decision {
    /// Whether an unblock tag was set as well and lost against the block tag: row 1.
    #[must_use]
    pub const fn overrides_release(&self) -> bool {
        self.row == 1
    }

    /// The row once Defender's actions were read.
    #[must_use]
    pub const fn row_after(&self, step: &Step) -> u8 {
        match (self.row, step) {
            // The tags said isolated, and the newest action does not agree.
            (4, Step::Post | Step::Wait { .. }) => 3,
            (5, Step::Settled { .. }) => 6,
            (row, _) => row,
        }
    }
}

/// Whether the decision depends on the age of the context, so that the notes have to be read first.
#[must_use]
pub fn needs_context_age(policy: &Policy, host: &Host, tags: &[String]) -> bool {
    policy.score_met(host) || (policy.keep_enrich_tag && has(tags, policy.enrich.as_ref()))
}

/// What is asked for the host.
#[must_use]
pub fn decide(policy: &Policy, facts: &Facts<'_>) -> Decision {
    let block = has(facts.tags, policy.block.as_ref());
    let unblock = has(facts.tags, policy.unblock.as_ref());
    let enrich = has(facts.tags, policy.enrich.as_ref());
    let is_old =
        facts.context_read.is_none_or(|read| facts.now.duration_since(read).unsigned_abs() >= policy.refresh_after);
    // A tag that stays would ask again at every sweep, so it asks for what a score asks for: context that is not old.
    let by_tag = enrich && (!policy.keep_enrich_tag || is_old);
    let by_score = is_old && policy.score_met(facts.host);
    let (row, act) = match (block, unblock, facts.state.isolation) {
        (true, true, _) => (1, Act::Isolate),
        (true, false, Some(Isolation::Isolated | Isolation::Isolating)) => (4, Act::Isolate),
        (true, false, _) => (3, Act::Isolate),
        (false, true, _) => (5, Act::Release),
        (false, false, Some(Isolation::Isolating | Isolation::Releasing)) => (7, Act::Follow),
        (false, false, Some(Isolation::Isolated)) if facts.state.is_over(facts.now) => (8, Act::Expire),
        (false, false, Some(Isolation::Isolated)) => (9, Act::Check),
        (false, false, _) if by_tag => (10, Act::Leave),
        (false, false, _) if by_score => (11, Act::Leave),
        (false, false, _) => (12, Act::Leave),
    };
    let refreshes = matches!(act, Act::Isolate | Act::Release | Act::Expire);
    let consume =
        [(block, &policy.block), (unblock, &policy.unblock), (enrich && !policy.keep_enrich_tag, &policy.enrich)];
    Decision {
        row,
        act,
        enrich: refreshes || by_tag || by_score,
        consume: consume.into_iter().filter(|(present, _)| *present).filter_map(|(_, tag)| tag.clone()).collect(),
    }
}

impl Policy {
    /// Whether the host's scores ask for enrichment: threat and certainty both at or above theirs, or urgency.
    #[must_use]
    pub fn score_met(&self, host: &Host) -> bool {
        let at_least = |score: Option<u8>, least: u8| score.is_some_and(|score| score >= least);
        let both = self
            .thresholds
            .is_some_and(|(threat, certainty)| at_least(host.threat, threat) && at_least(host.certainty, certainty));
        both || self.urgency.is_some_and(|urgency| at_least(host.urgency, urgency))
    }
}

fn has(tags: &[String], tag: Option<&String>) -> bool {
    tag.is_some_and(|tag| tags.contains(tag))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::defender::model::MachineAction;

    const NOW: &str = "2026-02-03T10:31:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn policy() -> Policy {
        Policy {
            enrich: Some("context".into()),
            block: Some("block".into()),
            unblock: Some("unblock".into()),
            thresholds: Some((50, 60)),
            ..Policy::default()
        }
    }

    /// A host with these tags, at or below the thresholds, whose context was read two days ago.
    fn decided(policy: &Policy, tags: &[&str], scored: bool, isolation: Option<Isolation>, over: bool) -> Decision {
        let tags: Vec<String> = tags.iter().map(|&tag| tag.to_owned()).collect();
        let host = Host { threat: Some(50), certainty: Some(if scored { 60 } else { 59 }), ..Host::default() };
        let until = over.then(|| at(NOW));
        let state = State { isolation, until, ..State::default() };
        let context_read = Some(at("2026-02-01T10:31:00Z"));
        decide(policy, &Facts { host: &host, tags: &tags, state: &state, context_read, now: at(NOW) })
    }

    /// The table of 5.6, row by row (row 2, `hold`, is left out by `DESIGN.md` 10, ruling 15).
    #[test]
    fn the_decision_table() {
        use Isolation::{Isolated, Isolating, Released, Releasing};
        type Row<'a> = (&'a [&'a str], bool, Option<Isolation>, bool, u8, Act, bool, &'a [&'a str]);
        let rows: &[Row<'_>] = &[
            // tags, S, I, until, row, act, enrich, consumed
            (&["block", "unblock"], false, None, false, 1, Act::Isolate, true, &["block", "unblock"]),
            (
                &["unblock", "block", "context"],
                true,
                None,
                false,
                1,
                Act::Isolate,
                true,
                &["block", "unblock", "context"],
            ),
            (&["block", "unblock"], false, Some(Isolated), true, 1, Act::Isolate, true, &["block", "unblock"]),
            (&["block"], false, None, false, 3, Act::Isolate, true, &["block"]),
            (&["block"], false, Some(Released), false, 3, Act::Isolate, true, &["block"]),
            (&["block"], false, Some(Releasing), false, 3, Act::Isolate, true, &["block"]),
            (&["block", "context"], true, None, false, 3, Act::Isolate, true, &["block", "context"]),
            (&["block"], false, Some(Isolated), false, 4, Act::Isolate, true, &["block"]),
            (&["block"], false, Some(Isolated), true, 4, Act::Isolate, true, &["block"]),
            (&["block", "context"], true, Some(Isolating), false, 4, Act::Isolate, true, &["block", "context"]),
            (&["unblock"], false, None, false, 5, Act::Release, true, &["unblock"]),
            (&["unblock", "context"], true, Some(Isolated), true, 5, Act::Release, true, &["unblock", "context"]),
            (&["unblock"], false, Some(Isolating), false, 5, Act::Release, true, &["unblock"]),
            (&[], false, Some(Isolating), false, 7, Act::Follow, false, &[]),
            (&[], false, Some(Releasing), true, 7, Act::Follow, false, &[]),
            (&["context"], false, Some(Isolating), false, 7, Act::Follow, true, &["context"]),
            (&[], true, Some(Releasing), false, 7, Act::Follow, true, &[]),
            (&[], false, Some(Isolated), true, 8, Act::Expire, true, &[]),
            (&["context"], true, Some(Isolated), true, 8, Act::Expire, true, &["context"]),
            (&[], false, Some(Isolated), false, 9, Act::Check, false, &[]),
            (&["context"], false, Some(Isolated), false, 9, Act::Check, true, &["context"]),
            (&[], true, Some(Isolated), false, 9, Act::Check, true, &[]),
            (&["context"], false, None, false, 10, Act::Leave, true, &["context"]),
            (&["context"], true, Some(Released), false, 10, Act::Leave, true, &["context"]),
            (&[], true, None, false, 11, Act::Leave, true, &[]),
            (&[], true, Some(Released), false, 11, Act::Leave, true, &[]),
            (&[], false, None, false, 12, Act::Leave, false, &[]),
            // This includes "the block tag was removed".
            (&["VIP", "Block", "blocked", "mde:x"], false, Some(Released), true, 12, Act::Leave, false, &[]),
        ];
        for (tags, scored, isolation, over, row, act, enrich, consumed) in rows {
            let decision = decided(&policy(), tags, *scored, *isolation, *over);
            let consume = consumed.iter().map(|&tag| tag.to_owned()).collect();
            let expected = Decision { row: *row, act: *act, enrich: *enrich, consume };
            assert_eq!(decision, expected, "{tags:?} scored {scored} {isolation:?} over {over}");
            assert_eq!(decision.overrides_release(), *row == 1, "row {row}");
        }
    }

    #[test]
    fn defenders_actions_complete_rows_4_6_and_9() {
        let step =
            |row: u8, step: &Step| Decision { row, act: Act::Isolate, enrich: true, consume: vec![] }.row_after(step);
        let settled = Step::Settled { action: None };
        let track = Step::Track { action: MachineAction::default() };
        assert_eq!((step(4, &settled), step(4, &track), step(4, &Step::Post)), (4, 4, 3));
        assert_eq!((step(5, &settled), step(5, &track), step(5, &Step::Post)), (6, 5, 5));
        assert_eq!((step(1, &settled), step(3, &settled), step(8, &settled)), (1, 3, 8));
    }

    #[test]
    fn a_feature_whose_tag_is_not_named_is_off() {
        let tags = ["block", "unblock", "context"];
        let off = |change: fn(&mut Policy)| {
            let mut policy = policy();
            change(&mut policy);
            let decision = decided(&policy, &tags, false, None, false);
            (decision.row, decision.consume.join(" "))
        };
        assert_eq!(off(|policy| policy.block = None), (5, "unblock context".into()));
        assert_eq!(off(|policy| policy.unblock = None), (3, "block context".into()));
        assert_eq!(off(|policy| policy.enrich = None), (1, "block unblock".into()));
        assert_eq!(off(|policy| *policy = Policy::default()), (12, String::new()));
    }

    #[test]
    fn scores_ask_at_or_above_both() {
        let met =
            |threat, certainty| policy().score_met(&Host { threat, certainty, urgency: Some(100), ..Host::default() });
        assert!(met(Some(50), Some(60)) && met(Some(99), Some(99)));
        assert!(!met(Some(49), Some(99)) && !met(Some(99), Some(59)));
        assert!(!met(None, Some(99)) && !met(Some(99), None));
        let urgent = Policy { thresholds: None, urgency: Some(70), ..policy() };
        let met =
            |urgency| urgent.score_met(&Host { urgency, threat: Some(99), certainty: Some(99), ..Host::default() });
        assert!(met(Some(70)) && !met(Some(69)) && !met(None));
        assert!(!Policy::default().score_met(&Host { threat: Some(99), certainty: Some(99), ..Host::default() }));
    }

    #[test]
    fn a_score_asks_again_only_when_the_context_is_old() {
        let host = Host { threat: Some(99), certainty: Some(99), ..Host::default() };
        let state = State::default();
        let row = |context_read: Option<&str>| {
            let context_read = context_read.map(at);
            decide(&policy(), &Facts { host: &host, tags: &[], state: &state, context_read, now: at(NOW) }).row
        };
        assert_eq!(row(None), 11, "never read");
        assert_eq!(row(Some("2026-02-02T10:31:00Z")), 11, "a day old");
        assert_eq!(row(Some("2026-02-02T10:31:01Z")), 12, "a second less");
        assert_eq!(row(Some("2026-02-03T10:40:00Z")), 12, "by a clock that is ahead");
        assert_eq!(row(Some("2027-01-01T00:00:00Z")), 11, "a time that nobody can have read at");
    }

    #[test]
    fn an_enrichment_tag_that_stays_keeps_the_context_fresh() {
        let keep = Policy { keep_enrich_tag: true, refresh_after: Duration::from_secs(3 * 86_400), ..policy() };
        // Two days old.
        let fresh = decided(&keep, &["context"], false, None, false);
        assert_eq!((fresh.row, fresh.consume.len()), (12, 0));
        let old = decided(
            &Policy { refresh_after: Duration::from_secs(86_400), ..keep.clone() },
            &["context"],
            false,
            None,
            false,
        );
        assert_eq!((old.row, old.enrich, old.consume.len()), (10, true, 0));
        let blocked = decided(&keep, &["context", "block"], false, None, false);
        assert_eq!((blocked.row, blocked.consume.as_slice()), (3, &["block".to_owned()][..]));
    }

    #[test]
    fn notes_are_read_only_when_the_age_counts() {
        let tags = ["context".to_owned(), "block".to_owned()];
        let low = Host::default();
        let high = Host { threat: Some(99), certainty: Some(99), ..Host::default() };
        assert!(!needs_context_age(&policy(), &low, &tags));
        assert!(needs_context_age(&policy(), &high, &tags));
        assert!(needs_context_age(&Policy { keep_enrich_tag: true, ..policy() }, &low, &tags));
        assert!(!needs_context_age(&Policy { keep_enrich_tag: true, ..policy() }, &low, &tags[1..]));
    }

    proptest! {
        /// Without a block tag nothing is ever isolated, and without an unblock tag or an end nothing is released.
        #[test]
        fn nothing_is_done_that_was_not_asked_for(
            tags in prop::collection::vec("block|unblock|context|VIP|Block|mde:isolation=isolated", 0..5),
            scored: bool,
            isolation in prop::option::of(prop::sample::select(Isolation::ALL.to_vec())),
            over: bool,
        ) {
            let borrowed: Vec<&str> = tags.iter().map(String::as_str).collect();
            let decision = decided(&policy(), &borrowed, scored, isolation, over);
            let has = |tag: &str| borrowed.contains(&tag);
            prop_assert_eq!(decision.act == Act::Isolate, has("block"));
            prop_assert_eq!(decision.act == Act::Release, has("unblock") && !has("block"));
            prop_assert!(decision.act != Act::Expire || (over && isolation == Some(Isolation::Isolated)));
            // What is consumed was there and is one of the three.
            prop_assert!(decision.consume.iter().all(|tag| has(tag) && ["block", "unblock", "context"].contains(&tag.as_str())));
            // A request that is present is consumed by whatever is decided.
            for tag in ["block", "unblock", "context"] {
                prop_assert!(!has(tag) || decision.consume.iter().any(|one| one == tag));
            }
        }
    }
}
