//! The ledger of isolations: what may have been posted within the hour, and which machines are isolated. A value that
//! can be merged: two desks that both wrote, each without knowing of the other, lose nothing of what either granted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::job;

/// Isolations are counted over this time; what was released is remembered as long.
pub(super) const HOUR: Duration = Duration::from_secs(3_600);

/// A machine that the bridge has isolated, as far as reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Defender's id of the machine.
    pub machine_id: String,
    /// Cognito's id of the host.
    pub host_id: u64,
    /// Cognito's name of the host.
    pub host_name: String,
    /// Defender's id of the machine action that isolates it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_id: Option<String>,
    /// When the isolation was accepted.
    pub since: Timestamp,
    /// When it ends by itself, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A machine whose isolation was asked for, or may have been, and of which nothing else is known (`DESIGN.md` 2, `isolation`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// Defender's id of the machine.
    pub machine_id: String,
    /// Cognito's id of the host; `None` for an order of the relay, which nobody follows.
    pub host_id: Option<u64>,
    /// The latest moment at which it was asked for, as far as known.
    pub at: Timestamp,
}

/// What became of a reservation. In the order of what is known better: a holder's word counts more than the desk's guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Use {
    /// Its holder may post.
    Granted,
    /// Its holder never said a word: it may have been posted.
    Lapsed,
    /// Not posted, or asked for anew by somebody who saw that it was not.
    Withdrawn,
    /// Posted, or posted with an unknown outcome.
    Posted,
}

/// One reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) machine_id: String,
    pub(super) host_id: u64,
    pub(super) granted: Timestamp,
    /// The latest moment at which the POST was made, as far as known.
    pub(super) at: Timestamp,
    pub(super) state: Use,
}

impl Entry {
    /// Whether it counts among the isolations of the hour before `now`.
    pub(super) fn counts(&self, now: Timestamp) -> bool {
        self.state != Use::Withdrawn && self.at + HOUR > now
    }

    /// What is known of it better, of the two.
    fn merge(&mut self, other: &Self) {
        if (other.state, other.at) > (self.state, self.at) {
            (self.state, self.at) = (other.state, other.at);
        }
    }
}

/// What is known of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) isolation: Isolation,
    /// When that was so.
    pub(super) heard: Timestamp,
    /// It is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) released: bool,
}

/// The right to sweep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sweeping {
    pub(super) id: Uuid,
    pub(super) begun: Timestamp,
    /// The lease's end.
    pub(super) until: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) done: bool,
}

/// What sweeps found of block tags that nobody had touched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Untouched {
    /// When a sweep last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) told: Option<Timestamp>,
    /// Hosts that were let through.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) known: BTreeSet<u64>,
    /// Hosts for which the brake was put on, until somebody takes it off.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) held: BTreeSet<u64>,
}

/// The settings of the desk that wrote last, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Isolations in any hour.
    pub per_hour: u32,
    /// Machines isolated at once.
    pub at_once: u32,
}

/// The ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) entries: BTreeMap<Uuid, Entry>,
    /// By machine id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) machines: BTreeMap<String, Record>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sweep: Option<Sweeping>,
    #[serde(default)]
    pub(super) untouched: Untouched,
}

/// The ledger as it is retained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Retained {
    /// Which desk wrote it.
    pub(super) writer: Uuid,
    #[serde(flatten)]
    pub(super) ledger: Ledger,
}

impl Retained {
    pub(super) fn encode(&self) -> Bytes {
        job::encode(self)
    }

    /// # Errors
    /// Written by a newer build, or not by this program at all: nobody knows then what was granted.
    pub(super) fn decode(value: &[u8]) -> Result<Self, job::DecodeError> {
        job::decode(value)
    }
}

/// Reservations that workers made without a desk, as they are retained.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deskless {
    pub(super) entries: BTreeMap<Uuid, Entry>,
}

impl Ledger {
    /// Takes over what `other` knows better.
    pub(super) fn merge(&mut self, other: &Self) {
        self.merge_entries(&other.entries);
        for (machine_id, theirs) in &other.machines {
            match self.machines.get_mut(machine_id) {
                Some(ours) if ours.heard >= theirs.heard => {}
                Some(ours) => *ours = theirs.clone(),
                None => drop(self.machines.insert(machine_id.clone(), theirs.clone())),
            }
        }
        match (&mut self.sweep, &other.sweep) {
            (Some(ours), Some(theirs)) if ours.id == theirs.id => ours.done |= theirs.done,
            (Some(ours), Some(theirs)) if ours.begun >= theirs.begun => {}
            (ours, Some(theirs)) => *ours = Some(theirs.clone()),
            (_, None) => {}
        }
        if other.untouched.told > self.untouched.told {
            self.untouched = other.untouched.clone();
        }
        self.limits = self.limits.or(other.limits);
    }

    pub(super) fn merge_entries(&mut self, entries: &BTreeMap<Uuid, Entry>) {
        for (id, theirs) in entries {
            match self.entries.get_mut(id) {
                Some(ours) => ours.merge(theirs),
                None => drop(self.entries.insert(*id, theirs.clone())),
            }
        }
    }

    /// Forgets what is over for more than an hour.
    pub(super) fn prune(&mut self, now: Timestamp) {
        self.entries.retain(|_, entry| entry.at + HOUR > now);
        self.machines.retain(|_, record| !record.released || record.heard + HOUR > now);
    }

    /// The machines that the bridge has isolated, in the order of their isolation.
    #[must_use]
    pub fn isolated(&self) -> Vec<Isolation> {
        let mut isolated: Vec<_> =
            self.machines.values().filter(|record| !record.released).map(|record| record.isolation.clone()).collect();
        isolated.sort_by(|a, b| (a.since, &a.machine_id).cmp(&(b.since, &b.machine_id)));
        isolated
    }

    /// What counts as isolated besides: asked for within the hour before `now`, in that order, the last for each machine.
    #[must_use]
    pub fn asked(&self, now: Timestamp) -> Vec<Asked> {
        let isolated: BTreeSet<String> = self.isolated().into_iter().map(|isolation| isolation.machine_id).collect();
        let maybe = self.maybe_isolated(now).into_iter().filter(|machine_id| !isolated.contains(*machine_id));
        let last = |machine_id: &str| {
            let of_it = self.entries.values().filter(|entry| entry.machine_id == machine_id && entry.counts(now));
            of_it.max_by_key(|entry| entry.at)
        };
        let mut asked: Vec<_> = maybe
            .filter_map(last)
            .map(|entry| Asked {
                machine_id: entry.machine_id.clone(),
                host_id: (entry.host_id != 0).then_some(entry.host_id),
                at: entry.at,
            })
            .collect();
        asked.sort_by(|a, b| (a.at, &a.machine_id).cmp(&(b.at, &b.machine_id)));
        asked
    }

    /// Whether a host's machine was reported as released within the hour, at `since` or later.
    #[must_use]
    pub fn was_released(&self, host_id: u64, since: Timestamp) -> bool {
        self.machines
            .values()
            .any(|record| record.released && record.isolation.host_id == host_id && record.heard >= since)
    }

    /// How many isolations were posted in the hour before `now`, or may have been.
    #[must_use]
    pub fn within_hour(&self, now: Timestamp) -> usize {
        self.entries.values().filter(|entry| entry.counts(now)).count()
    }

    /// The caps as the last desk had them; `None` while there never was one.
    #[must_use]
    pub const fn limits(&self) -> Option<Limits> {
        self.limits
    }

    /// How many untouched block tags made a start put the brake on, until it is taken off.
    #[must_use]
    pub fn held_by_first_sweep(&self) -> usize {
        self.untouched.held.len()
    }

    /// Machines that are isolated, or may be because of what was granted within the hour.
    pub(super) fn maybe_isolated(&self, now: Timestamp) -> BTreeSet<&str> {
        let reported = self.machines.iter().filter(|(_, record)| !record.released).map(|(id, _)| id.as_str());
        let granted = self.entries.values().filter(|entry| {
            let over = self.machines.get(&entry.machine_id);
            entry.counts(now) && !over.is_some_and(|record| record.released && record.heard >= entry.granted)
        });
        reported.chain(granted.map(|entry| entry.machine_id.as_str())).collect()
    }

    /// How many machines are isolated, or may be.
    #[must_use]
    pub fn count_isolated(&self, now: Timestamp) -> usize {
        self.maybe_isolated(now).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + second).unwrap()
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let state = prop_oneof![Just(Use::Granted), Just(Use::Lapsed), Just(Use::Withdrawn), Just(Use::Posted)];
        // What does not change is the same wherever an entry is known.
        (0_i64..50, state).prop_map(|(second, state)| Entry {
            machine_id: "m".to_owned(),
            host_id: 1,
            granted: at(0),
            at: at(second),
            state,
        })
    }

    fn record() -> impl Strategy<Value = Record> {
        // Two reports of one moment do not differ.
        (0_i64..50).prop_map(|second| Record {
            isolation: Isolation {
                machine_id: "m".to_owned(),
                host_id: second.unsigned_abs(),
                host_name: String::new(),
                action_id: None,
                since: at(second),
                until: None,
            },
            heard: at(second),
            released: second % 2 == 0,
        })
    }

    fn ledger() -> impl Strategy<Value = Ledger> {
        let entries = prop::collection::btree_map((0_u128..5).prop_map(Uuid::from_u128), entry(), 0..4);
        let machines = prop::collection::btree_map("[a-c]", record(), 0..3);
        let sweep = prop::option::of((0_u128..20, any::<bool>()).prop_map(|(id, done)| Sweeping {
            id: Uuid::from_u128(id),
            begun: at(i64::try_from(id).unwrap()),
            until: at(100),
            done,
        }));
        let untouched = prop::option::of(0_i64..20).prop_map(|told| Untouched {
            told: told.map(at),
            known: told.map(i64::unsigned_abs).into_iter().collect(),
            held: BTreeSet::new(),
        });
        (entries, machines, sweep, untouched).prop_map(|(entries, machines, sweep, untouched)| Ledger {
            limits: None,
            entries,
            machines,
            sweep,
            untouched,
        })
    }

    fn merged(one: &Ledger, other: &Ledger) -> Ledger {
        let mut both = one.clone();
        both.merge(other);
        both
    }

    proptest! {
        /// Whoever merges what, in whatever order and however often, comes to the same.
        #[test]
        fn merging_is_an_order_of_knowing(a in ledger(), b in ledger(), c in ledger()) {
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            let known = merged(&a, &b);
            prop_assert_eq!(merged(&known, &a), known);
        }

        #[test]
        fn a_retained_ledger_returns_as_it_was(ledger in ledger()) {
            let retained = Retained { writer: Uuid::from_u128(9), ledger };
            prop_assert_eq!(Retained::decode(&retained.encode()), Ok(retained));
        }
    }

    #[test]
    fn what_is_isolated_is_never_forgotten_and_what_is_over_after_an_hour() {
        let record = |second: i64, released| Record {
            isolation: Isolation {
                machine_id: String::new(),
                host_id: 1,
                host_name: String::new(),
                action_id: None,
                since: at(second),
                until: None,
            },
            heard: at(second),
            released,
        };
        let machines = [("on", record(0, false)), ("off", record(0, true)), ("just off", record(10, true))];
        let machines = machines.map(|(id, record)| (id.to_owned(), record)).into();
        let mut ledger = Ledger { machines, ..Ledger::default() };
        ledger.prune(at(3_605));
        assert_eq!(ledger.machines.keys().collect::<Vec<_>>(), ["just off", "on"]);
        ledger.prune(at(1_000_000));
        assert_eq!(ledger.machines.keys().collect::<Vec<_>>(), ["on"]);
    }
}
