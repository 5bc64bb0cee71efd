//! Which tags to write, and whether they arrived (`cognito.md` 5.3, 5.4, 5.10).
//!
//! Foreign tags pass through byte for byte, in their order, never trimmed and never de-duplicated; only tags of ours and
//! the triggers that are consumed come and go. Lists are compared as sets, because Cognito promises no order.

use super::tags;

/// How often a write is made at most until its verification finds everything in place.
pub const MAX_WRITES: u32 = 3;

/// What to change in a host's tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Tags that are not there yet.
    pub add: Vec<String>,
    /// Tags that are there: ours, and consumed triggers.
    pub remove: Vec<String>,
}

/// What a list read after a write shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Tags of the list before the write that are gone although the write did not remove them.
    pub lost: Vec<String>,
    /// Tags of ours that did not arrive.
    pub missing: Vec<String>,
    /// Tags that should be gone and are not.
    pub remaining: Vec<String>,
}

impl Difference {
    /// From the tags of ours in `present` to the `wanted` ones, and without the `consumed` triggers.
    #[must_use]
    pub fn between(prefix: &str, present: &[String], wanted: &[String], consumed: &[String]) -> Self {
        let mut difference = Self::default();
        for tag in wanted.iter().filter(|tag| !present.contains(tag)) {
            push(&mut difference.add, tag);
        }
        let goes = |tag: &&String| consumed.contains(tag) || (tags::is_ours(prefix, tag) && !wanted.contains(tag));
        for tag in present.iter().filter(goes) {
            push(&mut difference.remove, tag);
        }
        difference
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// The list to write: `fresh`, which was read just before, with the changes. What was added stands at the end.
    #[must_use]
    pub fn apply(&self, fresh: &[String]) -> Vec<String> {
        let mut list: Vec<String> = fresh.iter().filter(|tag| !self.remove.contains(tag)).cloned().collect();
        for tag in &self.add {
            push(&mut list, tag);
        }
        list
    }

    /// Compares the list after the write, from its answer or from another read, with the one `before` it.
    #[must_use]
    pub fn verify(&self, before: &[String], after: &[String]) -> Verification {
        let mut found = Verification::default();
        for tag in before.iter().filter(|tag| !self.remove.contains(tag) && !after.contains(tag)) {
            push(&mut found.lost, tag);
        }
        for tag in self.add.iter().filter(|tag| !after.contains(tag)) {
            push(&mut found.missing, tag);
        }
        for tag in self.remove.iter().filter(|tag| after.contains(tag)) {
            push(&mut found.remaining, tag);
        }
        found
    }
}

impl Verification {
    /// Whether everything is in place.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.missing.is_empty() && self.remaining.is_empty()
    }

    /// What to write again, on a fresh list; `None` when everything is in place.
    ///
    /// Lost tags are put back only when `by_us`: when the list is the answer of our own write. In a list that was read
    /// later they may be gone because an analyst took them off, and to put them back would undo that.
    #[must_use]
    pub fn repeat(self, by_us: bool) -> Option<Difference> {
        if self.is_good() {
            return None;
        }
        let lost = if by_us { self.lost } else { Vec::new() };
        Some(Difference { add: lost.into_iter().chain(self.missing).collect(), remove: self.remaining })
    }
}

fn push(list: &mut Vec<String>, tag: &String) {
    if !list.contains(tag) {
        list.push(tag.clone());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: &str = "mde:";

    fn strings(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|&tag| tag.to_owned()).collect()
    }

    #[test]
    fn only_tags_of_ours_and_consumed_triggers_change() {
        let present = strings(&["VIP", "block", " spaced ", "VIP", "mde:os=Linux", "mde:unheard=of", "Block"]);
        let wanted = strings(&["mde:os=Windows11", "mde:agent=found"]);
        let difference = Difference::between(P, &present, &wanted, &strings(&["block", "unblock"]));
        assert_eq!(difference.add, ["mde:os=Windows11", "mde:agent=found"]);
        assert_eq!(difference.remove, ["block", "mde:os=Linux", "mde:unheard=of"]);
        assert_eq!(
            difference.apply(&present),
            ["VIP", " spaced ", "VIP", "Block", "mde:os=Windows11", "mde:agent=found"]
        );
    }

    #[test]
    fn nothing_is_written_when_nothing_differs() {
        let present = strings(&["mde:b=2", "VIP", "mde:a=1"]);
        let difference = Difference::between(P, &present, &strings(&["mde:a=1", "mde:b=2"]), &strings(&["block"]));
        assert!(difference.is_empty(), "{difference:?}");
        // Ours twice is as good as once.
        let twice = strings(&["mde:a=1", "mde:a=1"]);
        assert!(Difference::between(P, &twice, &strings(&["mde:a=1"]), &[]).is_empty());
    }

    #[test]
    fn a_tag_that_came_in_the_meantime_is_kept() {
        let difference = Difference { add: strings(&["mde:a=1"]), remove: strings(&["block"]) };
        let fresh = strings(&["block", "new", "mde:a=1"]);
        assert_eq!(difference.apply(&fresh), ["new", "mde:a=1"]);
    }

    #[test]
    fn a_trigger_goes_each_time_it_stands_there() {
        let present = strings(&["block", "VIP", "block", "mde:a=1"]);
        let difference = Difference::between(P, &present, &strings(&["mde:a=1"]), &strings(&["block", "unblock"]));
        assert_eq!((difference.add.len(), difference.remove.as_slice()), (0, &strings(&["block"])[..]));
        assert_eq!(difference.apply(&present), ["VIP", "mde:a=1"]);
    }

    #[test]
    fn verification_says_what_to_write_again() {
        let before = strings(&["VIP", "block", "mde:os=Linux"]);
        let difference = Difference { add: strings(&["mde:a=1"]), remove: strings(&["block", "mde:os=Linux"]) };
        let rows: [(&[&str], Verification); 5] = [
            (&["mde:a=1", "VIP"], Verification::default()),
            // Somebody added one: nothing to do.
            (&["VIP", "mde:a=1", "other"], Verification::default()),
            (&["mde:a=1"], Verification { lost: strings(&["VIP"]), ..Default::default() }),
            (&["VIP"], Verification { missing: strings(&["mde:a=1"]), ..Default::default() }),
            (
                &["VIP", "block", "mde:os=Linux"],
                Verification {
                    missing: strings(&["mde:a=1"]),
                    remaining: strings(&["block", "mde:os=Linux"]),
                    ..Default::default()
                },
            ),
        ];
        for (after, expected) in rows {
            let found = difference.verify(&before, &strings(after));
            assert_eq!(found, expected, "{after:?}");
            assert_eq!(found.clone().repeat(true).is_none(), found.is_good(), "{after:?}");
        }
    }

    #[test]
    fn lost_tags_are_put_back_only_after_our_own_write() {
        let found = Verification { lost: strings(&["VIP"]), missing: strings(&["mde:a=1"]), remaining: vec![] };
        assert_eq!(found.clone().repeat(true).unwrap().add, ["VIP", "mde:a=1"]);
        assert_eq!(found.repeat(false).unwrap().add, ["mde:a=1"]);
    }

    fn tag() -> impl Strategy<Value = String> {
        prop_oneof!["(mde:)?[ab]=[12]", "block|unblock|VIP| VIP|vip", ".{0,6}"]
    }

    fn list() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(tag(), 0..12)
    }

    fn ours() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("mde:[abc]=[123]", 0..5)
    }

    /// What nobody but its owner may touch.
    fn foreign<'a>(tags: &'a [String], consumed: &[String]) -> Vec<&'a String> {
        tags.iter().filter(|tag| !tag.starts_with(P) && !consumed.contains(tag)).collect()
    }

    proptest! {
        #[test]
        fn foreign_tags_are_never_lost_reordered_or_deduplicated(present in list(), fresh in list(), wanted in ours()) {
            let consumed = strings(&["block", "unblock"]);
            let difference = Difference::between(P, &present, &wanted, &consumed);
            let written = difference.apply(&fresh);
            // What the difference removes may be a trigger that stands in the fresh list only by chance.
            prop_assert_eq!(foreign(&written, &consumed), foreign(&fresh, &consumed));
            let written = difference.apply(&present);
            prop_assert_eq!(foreign(&written, &consumed), foreign(&present, &consumed));
            for tag in &wanted {
                prop_assert!(written.contains(tag));
            }
            prop_assert!(written.iter().all(|tag| !consumed.contains(tag)));
            prop_assert!(written.iter().all(|tag| !tag.starts_with(P) || wanted.contains(tag)));
        }

        #[test]
        fn applying_twice_changes_nothing(present in list(), wanted in ours()) {
            let consumed = strings(&["block"]);
            let difference = Difference::between(P, &present, &wanted, &consumed);
            let once = difference.apply(&present);
            prop_assert_eq!(&difference.apply(&once), &once);
            prop_assert!(Difference::between(P, &once, &wanted, &consumed).is_empty());
            prop_assert!(difference.verify(&present, &once).is_good());
        }

        #[test]
        fn verification_notices_any_loss(present in list(), wanted in ours(), which in any::<prop::sample::Index>()) {
            let difference = Difference::between(P, &present, &wanted, &strings(&["block"]));
            let mut after = difference.apply(&present);
            prop_assume!(!after.is_empty());
            let gone = after[which.index(after.len())].clone();
            after.retain(|tag| *tag != gone);
            let found = difference.verify(&present, &after);
            prop_assert!(!found.is_good());
            // Writing again, on what is there now, heals it.
            let again = found.repeat(true).unwrap().apply(&after);
            prop_assert!(difference.verify(&present, &again).is_good());
        }

        #[test]
        fn the_order_of_an_answer_says_nothing(present in list(), wanted in ours()) {
            let difference = Difference::between(P, &present, &wanted, &[]);
            let mut after = difference.apply(&present);
            after.reverse();
            prop_assert!(difference.verify(&present, &after).is_good());
        }
    }
}
