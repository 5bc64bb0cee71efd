//! Which machine a host is (`cognito.md` 5.5, nos. 4, 7 and 8; `defender.md` 5.8).
//!
//! Enrichment takes the best guess and says so; isolation, and a release that has to look the machine up, never guess.
//! The narrowing of `defender.md` 5.8 (the adapter that holds the address, then health, then the last report) therefore
//! ranks machines for enrichment and never makes one of several good enough for isolation: only the name does.

use std::cmp::Reverse;
use std::net::IpAddr;

use jiff::Timestamp;

use super::names::{self, Score};
use super::policy::{NameMatch, machine_id};
use super::reason::Reason;
use crate::defender::model::Machine;

/// What the host's tags and note say of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Context {
    /// A machine.
    Found {
        /// As Defender describes it.
        machine: Box<Machine>,
        /// It may be another one: nothing confirms it.
        weak: bool,
    },
    /// Defender knows none.
    None,
    /// As many machines fit.
    Ambiguous(usize),
}

/// The machine of a host, for both purposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// For tags and note.
    pub for_context: Context,
    /// For isolation and release: a strong match, or why there is none.
    pub for_action: Result<Machine, Reason>,
}

/// What makes a machine unfit for any purpose of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// Its id is no machine id, so that nothing can be asked of it.
    NoId,
    /// Not onboarded: it has no sensor that could be asked.
    NotOnboarded,
    /// Excluded from the inventory.
    Excluded,
    /// Part of another machine now.
    Merged,
}

/// Why `machine` cannot be used, where its description says so.
#[must_use]
pub fn unfit(machine: &Machine) -> Option<Unfit> {
    if machine_id(&machine.id).is_none() {
        Some(Unfit::NoId)
    } else if machine.merged_into_machine_id.as_deref().is_some_and(|id| !id.trim().is_empty()) {
        Some(Unfit::Merged)
    } else if machine.is_excluded {
        Some(Unfit::Excluded)
    } else if machine.onboarding_status.as_deref().is_some_and(|status| !status.eq_ignore_ascii_case("Onboarded")) {
        Some(Unfit::NotOnboarded)
    } else {
        None
    }
}

/// The machine to act on in place of `machine`, when it became part of another one (`defender.md` 5.6).
#[must_use]
pub fn successor(machine: &Machine) -> Option<String> {
    machine_id(machine.merged_into_machine_id.as_deref()?.trim()).filter(|id| *id != machine.id)
}

/// Whether `machine` reports regularly. One that does not may take up to three days to carry out a request.
#[must_use]
pub fn is_active(machine: &Machine) -> bool {
    machine.health_status.as_deref().is_some_and(|status| status.eq_ignore_ascii_case("Active"))
}

/// The usable machines of one answer of Defender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates {
    machines: Vec<Machine>,
    by: By,
}

/// How they were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Address { address: IpAddr, anchored: bool },
    Name,
}

impl Candidates {
    /// Of a lookup by address. `anchored`: at a time when Cognito saw the host with this address.
    #[must_use]
    pub fn by_address(answer: Vec<Machine>, address: IpAddr, anchored: bool) -> Self {
        Self { machines: usable(answer), by: By::Address { address: address.to_canonical(), anchored } }
    }

    /// Of a lookup by name. Machines whose name does not agree with the `known` ones are dropped.
    #[must_use]
    pub fn by_name(answer: Vec<Machine>, known: &[String]) -> Self {
        let agrees = |machine: &Machine| names::score(known, machine.computer_dns_name.as_deref()).agrees();
        Self { machines: usable(answer).into_iter().filter(agrees).collect(), by: By::Name }
    }

    /// Whether the next question has to be asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// Whether one of the lookup's `machines` stands out (the table of `cognito.md` 5.5). `known`: the host names that
    /// Cognito knows ([`names::known`]).
    #[must_use]
    pub fn judge(self, known: &[String], rule: NameMatch) -> Match {
        let by = self.by;
        let mut ranked: Vec<(Score, Machine)> = self
            .machines
            .into_iter()
            .map(|machine| (names::score(known, machine.computer_dns_name.as_deref()), machine))
            .collect();
        ranked.sort_by_cached_key(|(score, machine)| rank(*score, machine, by));
        match ranked.len() {
            0 => Match::none(),
            1 => {
                let (score, machine) = ranked.remove(0);
                one(score, machine, by, rule)
            }
            _ => several(ranked),
        }
    }
}

impl Match {
    /// No machine fits, or there was nothing to look for.
    #[must_use]
    pub fn none() -> Self {
        Self { for_context: Context::None, for_action: Err(Reason::NoMachine) }
    }

    /// The machine that was acted on before, read by its id (`cognito.md` 5.5, no. 1).
    #[must_use]
    pub fn by_id(machine: Machine) -> Self {
        Self::strong(machine)
    }

    fn strong(machine: Machine) -> Self {
        Self {
            for_context: Context::Found { machine: Box::new(machine.clone()), weak: false },
            for_action: Ok(machine),
        }
    }
}

fn usable(answer: Vec<Machine>) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::with_capacity(answer.len());
    for mut machine in answer.into_iter().filter(|machine| unfit(machine).is_none()) {
        machine.id.make_ascii_lowercase();
        if !machines.iter().any(|other| other.id == machine.id) {
            machines.push(machine);
        }
    }
    machines
}

/// Sorts the best first; the id makes the order the same at every run.
fn rank(score: Score, machine: &Machine, by: By) -> impl Ord + use<> {
    let holds = match by {
        By::Address { address, .. } => holds_address(machine, address),
        By::Name => false,
    };
    let last_seen = machine.last_seen.as_deref().and_then(|text| text.trim().parse::<Timestamp>().ok());
    (Reverse((score, holds, is_active(machine), last_seen)), machine.id.clone())
}

/// Whether an adapter that is up still holds the address.
fn holds_address(machine: &Machine, address: IpAddr) -> bool {
    machine.ip_addresses.iter().any(|adapter| {
        let up = adapter.operational_status.as_deref().is_some_and(|status| status.eq_ignore_ascii_case("Up"));
        let held = adapter.ip_address.as_deref().and_then(|text| text.trim().parse::<IpAddr>().ok());
        up && held.is_some_and(|held| held.to_canonical() == address)
    })
}

fn one(score: Score, machine: Machine, by: By, rule: NameMatch) -> Match {
    // Without a name that agrees, only the address speaks for the machine; that counts when Cognito saw it there.
    let anchored = matches!(by, By::Address { anchored: true, .. });
    let refused = match (score, rule) {
        (Score::Full | Score::Label, _) => None,
        (Score::Unknown, NameMatch::WhenKnown | NameMatch::Never) if anchored => None,
        (Score::Unknown, _) => Some(Reason::NameUnknown),
        (Score::Differs, NameMatch::Never) if anchored => None,
        (Score::Differs, _) => Some(Reason::NameMismatch),
    };
    let for_action = refused.map_or_else(|| Ok(machine.clone()), Err);
    Match { for_context: Context::Found { machine: Box::new(machine), weak: score == Score::Differs }, for_action }
}

/// `ranked`: two or more, the best first.
fn several(ranked: Vec<(Score, Machine)>) -> Match {
    let agreeing: Vec<&Machine> = ranked.iter().filter(|(score, _)| score.agrees()).map(|(_, one)| one).collect();
    if let [one] = agreeing[..] {
        return Match::strong(one.clone());
    }
    // A machine that was onboarded again stands there twice; the record that still reports is the machine.
    let name = |machine: &Machine| machine.computer_dns_name.as_deref().and_then(names::normal);
    let same_name = agreeing.windows(2).all(|pair| name(pair[0]) == name(pair[1]));
    let active: Vec<&Machine> = agreeing.iter().copied().filter(|machine| is_active(machine)).collect();
    if let ([one], true) = (&active[..], same_name) {
        return Match::strong((*one).clone());
    }
    let count = ranked.len();
    let for_context = match ranked.into_iter().next() {
        Some((Score::Differs, _)) | None => Context::Ambiguous(count),
        Some((_, machine)) => Context::Found { machine: Box::new(machine), weak: true },
    };
    Match { for_context, for_action: Err(Reason::Ambiguous) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::defender::model::MachineAddress;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 17));

    /// `a active ws-17.example.com 2026-11-20`: the id's digit, the health, the name (`-` for none), the last report.
    fn machine(text: &str) -> Machine {
        let parts: Vec<&str> = text.split(' ').collect();
        Machine {
            id: parts[0].repeat(40),
            health_status: Some(if parts[1] == "active" { "Active" } else { "Inactive" }.into()),
            computer_dns_name: (parts[2] != "-").then(|| parts[2].to_owned()),
            last_seen: Some(format!("{}T08:00:00.1234567Z", parts[3])),
            onboarding_status: Some("Onboarded".into()),
            ..Machine::default()
        }
    }

    fn known(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn shown(found: &Match) -> (String, String) {
        let digit = |machine: &Machine| machine.id[..1].to_owned();
        let context = match &found.for_context {
            Context::Found { machine, weak } => format!("{}{}", digit(machine), if *weak { " weak" } else { "" }),
            Context::None => "none".to_owned(),
            Context::Ambiguous(count) => format!("ambiguous {count}"),
        };
        let action = match &found.for_action {
            Ok(machine) => digit(machine),
            Err(reason) => reason.as_str().to_owned(),
        };
        (context, action)
    }

    fn judged(machines: &[&str], names: &[&str], anchored: bool, rule: NameMatch) -> (String, String) {
        let machines = machines.iter().map(|text| machine(text)).collect();
        shown(&Candidates::by_address(machines, ADDRESS, anchored).judge(&known(names), rule))
    }

    const A: &str = "a active ws-17.example.com 2026-11-20";
    const B: &str = "b active ws-18.example.com 2026-11-19";
    const OLD: &str = "c inactive ws-17.example.com 2026-11-02";

    /// The table of 5.5, row by row, under each rule, with and without an anchor.
    #[test]
    fn candidates_for_enrichment_and_for_isolation() {
        use NameMatch::{Always, Never, WhenKnown};
        type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], bool, NameMatch, &'a str, &'a str);
        let rows: &[Row<'_>] = &[
            ("1 none", &[], &["ws-17"], true, WhenKnown, "none", "no_machine"),
            ("2 one, full name", &[A], &["ws-17.example.com"], true, WhenKnown, "a", "a"),
            ("2 one, first label", &[A], &["ws-17"], true, Always, "a", "a"),
            ("2 one, found without an anchor", &[A], &["ws-17"], false, WhenKnown, "a", "a"),
            ("3 one, no name known", &[A], &[], true, WhenKnown, "a", "a"),
            ("3 one, no name known, always", &[A], &[], true, Always, "a", "name_unknown"),
            ("3 one, no name known, never", &[A], &[], true, Never, "a", "a"),
            ("3 one, no name known, no anchor", &[A], &[], false, WhenKnown, "a", "name_unknown"),
            ("3 one, no name known, no anchor, never", &[A], &[], false, Never, "a", "name_unknown"),
            ("4 one, other name", &[A], &["fin-1"], true, WhenKnown, "a weak", "name_mismatch"),
            ("4 one, other name, always", &[A], &["fin-1"], true, Always, "a weak", "name_mismatch"),
            ("4 one, other name, never", &[A], &["fin-1"], true, Never, "a weak", "a"),
            ("4 one, other name, never, no anchor", &[A], &["fin-1"], false, Never, "a weak", "name_mismatch"),
            ("5 several, one agrees", &[B, A], &["ws-17"], true, WhenKnown, "a", "a"),
            ("5 several, one agrees, no anchor", &[B, A], &["ws-17"], false, Always, "a", "a"),
            ("5 several, the one that agrees is inactive", &[B, OLD], &["ws-17"], true, WhenKnown, "c", "c"),
            ("6 onboarded again", &[OLD, A], &["ws-17"], true, WhenKnown, "a", "a"),
            ("6 onboarded again, beside another", &[OLD, B, A], &["ws-17.example.com"], true, Always, "a", "a"),
            (
                "6 both active: not exactly one",
                &[A, "d active ws-17.example.com 2026-11-18"],
                &["ws-17"],
                true,
                WhenKnown,
                "a weak",
                "ambiguous",
            ),
            (
                "6 none active",
                &[OLD, "d inactive ws-17.example.com 2026-11-03"],
                &["ws-17"],
                true,
                WhenKnown,
                "d weak",
                "ambiguous",
            ),
            (
                "6 not the same full name, though one is active",
                &[A, "d inactive ws-17.lab.example.com 2026-11-21"],
                &["ws-17"],
                true,
                WhenKnown,
                "a weak",
                "ambiguous",
            ),
            (
                "6 the full name of one, the label of another",
                &["d active ws-17.lab.example.com 2026-11-21", A],
                &["ws-17.example.com"],
                true,
                WhenKnown,
                "a weak",
                "ambiguous",
            ),
            ("7 same rank, no name known: the newest", &[B, A], &[], true, WhenKnown, "a weak", "ambiguous"),
            ("7 no name known, one active", &[OLD, B], &[], true, WhenKnown, "b weak", "ambiguous"),
            ("7 not even with never", &[OLD, B], &[], true, Never, "b weak", "ambiguous"),
            ("8 several, none agrees", &[A, B], &["fin-1"], true, WhenKnown, "ambiguous 2", "ambiguous"),
            ("8 not even with never", &[A, B, OLD], &["fin-1"], true, Never, "ambiguous 3", "ambiguous"),
            (
                "8 several without names",
                &["a active - 2026-11-20", "b active - 2026-11-19"],
                &["fin-1"],
                true,
                WhenKnown,
                "ambiguous 2",
                "ambiguous",
            ),
        ];
        for (name, machines, names, anchored, rule, context, action) in rows {
            let expected = ((*context).to_owned(), (*action).to_owned());
            assert_eq!(judged(machines, names, *anchored, *rule), expected, "{name}");
            let mut turned = machines.to_vec();
            turned.reverse();
            assert_eq!(judged(&turned, names, *anchored, *rule), expected, "{name}, turned around");
        }
    }

    /// No. 4 of 5.5.
    #[test]
    fn machines_that_cannot_be_used_are_dropped() {
        type Row<'a> = (&'a str, fn(&mut Machine), Option<Unfit>);
        let rows: [Row<'_>; 9] = [
            ("as it is", |_| {}, None),
            ("status in small letters", |one| one.onboarding_status = Some("onboarded".into()), None),
            ("status unknown", |one| one.onboarding_status = None, None),
            (
                "could be onboarded",
                |one| one.onboarding_status = Some("CanBeOnboarded".into()),
                Some(Unfit::NotOnboarded),
            ),
            ("unsupported", |one| one.onboarding_status = Some("Unsupported".into()), Some(Unfit::NotOnboarded)),
            ("excluded", |one| one.is_excluded = true, Some(Unfit::Excluded)),
            ("merged", |one| one.merged_into_machine_id = Some("b".repeat(40)), Some(Unfit::Merged)),
            ("merged into nothing", |one| one.merged_into_machine_id = Some(String::new()), None),
            ("a name for an id", |one| one.id = "ws-17".into(), Some(Unfit::NoId)),
        ];
        for (name, change, expected) in rows {
            let mut one = machine(A);
            change(&mut one);
            assert_eq!(unfit(&one), expected, "{name}");
            let candidates = Candidates::by_address(vec![one], ADDRESS, true);
            assert_eq!(candidates.is_empty(), expected.is_some(), "{name}");
        }
        // What is left decides: the other one is no candidate.
        let mut excluded = machine(B);
        excluded.is_excluded = true;
        let found = Candidates::by_address(vec![excluded, machine(A)], ADDRESS, true).judge(&[], NameMatch::WhenKnown);
        assert_eq!(shown(&found), ("a".into(), "a".into()));
    }

    #[test]
    fn one_machine_twice_is_one_machine() {
        let mut capital = machine(A);
        capital.id.make_ascii_uppercase();
        let found = Candidates::by_address(vec![capital, machine(A)], ADDRESS, true).judge(&[], NameMatch::WhenKnown);
        assert_eq!(shown(&found), ("a".into(), "a".into()));
    }

    /// `defender.md` 5.8: the adapter that still holds the address, then health, then the last report.
    #[test]
    fn narrowing_ranks_for_enrichment_and_decides_no_isolation() {
        let holding = |text: &str, address: &str, status: &str| {
            let adapter = MachineAddress { ip_address: Some(address.into()), operational_status: Some(status.into()) };
            Machine { ip_addresses: vec![MachineAddress::default(), adapter], ..machine(text) }
        };
        let newest = "a active - 2026-11-20";
        let inactive = "b inactive - 2026-11-02";
        let rows = [
            (
                "the address beats health",
                holding(newest, "192.0.2.99", "Up"),
                holding(inactive, "192.0.2.17", "up"),
                "b",
            ),
            (
                "not when the adapter is down",
                holding(newest, "192.0.2.99", "Up"),
                holding(inactive, "192.0.2.17", "Down"),
                "a",
            ),
            (
                "both hold it: health",
                holding(newest, "192.0.2.17", "Up"),
                holding(inactive, "::ffff:192.0.2.17", "Up"),
                "a",
            ),
            ("both the same: the last report", machine("b active - 2026-11-19"), machine(newest), "a"),
            ("a report that cannot be read is the oldest", machine("b active - soon"), machine(newest), "a"),
        ];
        for (name, one, other, expected) in rows {
            let found = Candidates::by_address(vec![one, other], ADDRESS, true).judge(&[], NameMatch::WhenKnown);
            assert_eq!(shown(&found), (format!("{expected} weak"), "ambiguous".into()), "{name}");
        }
    }

    /// No. 5 of 5.5.
    #[test]
    fn by_name_only_what_agrees_is_a_candidate() {
        let names = known(&["ws-17.example.com"]);
        let of = |texts: &[&str]| {
            let machines = texts.iter().map(|text| machine(text)).collect();
            Candidates::by_name(machines, &names)
        };
        assert!(of(&[B, "d active - 2026-11-20", "e active ws-170.example.com 2026-11-20"]).is_empty());
        let judged = |texts: &[&str]| shown(&of(texts).judge(&names, NameMatch::Always));
        assert_eq!(judged(&[B, A]), ("a".into(), "a".into()));
        assert_eq!(judged(&[OLD, A]), ("a".into(), "a".into()));
        let other_domain = "d active ws-17.lab.example.com 2026-11-20";
        assert_eq!(judged(&[A, other_domain]), ("a weak".into(), "ambiguous".into()));
        // Without a known name nothing agrees.
        assert!(Candidates::by_name(vec![machine(A)], &[]).is_empty());
    }

    /// No. 1 of 5.5.
    #[test]
    fn a_machine_acted_on_before_is_taken_by_its_id() {
        assert_eq!(shown(&Match::by_id(machine(A))), ("a".into(), "a".into()));
        assert_eq!(shown(&Match::none()), ("none".into(), "no_machine".into()));
        let mut merged = machine(A);
        assert_eq!(successor(&merged), None);
        merged.merged_into_machine_id = Some("B".repeat(40));
        assert_eq!(successor(&merged), Some("b".repeat(40)));
        for odd in ["ws-18", "", &"a".repeat(40)] {
            merged.merged_into_machine_id = Some(odd.into());
            assert_eq!(successor(&merged), None, "{odd}");
        }
    }

    proptest! {
        /// Isolation never guesses: among several machines it takes one only when no other agrees as well, or when the
        /// others that agree have the same name and do not report.
        #[test]
        fn isolation_never_guesses(
            machines in prop::collection::vec((0usize..4, 0usize..3, any::<bool>(), 1u32..28), 2..6),
            anchored: bool,
            rule in prop::sample::select(vec![NameMatch::WhenKnown, NameMatch::Always, NameMatch::Never]),
            named: bool,
        ) {
            const NAMES: [&str; 4] = ["ws-17.example.com", "ws-17.lab.example.com", "ws-18.example.com", "-"];
            let texts: Vec<String> = machines
                .iter()
                .map(|(name, id, active, day)| {
                    let health = if *active { "active" } else { "inactive" };
                    format!("{} {health} {} 2026-11-{day:02}", ["a", "b", "c"][*id], NAMES[*name])
                })
                .collect();
            let names = if named { known(&["ws-17"]) } else { Vec::new() };
            let machines: Vec<Machine> = texts.iter().map(|text| machine(text)).collect();
            let candidates = Candidates::by_address(machines, ADDRESS, anchored);
            let all = candidates.machines.clone();
            let found = candidates.judge(&names, rule);
            if let (Ok(taken), true) = (&found.for_action, all.len() > 1) {
                prop_assert!(names::score(&names, taken.computer_dns_name.as_deref()).agrees());
                for other in all.iter().filter(|other| other.id != taken.id) {
                    let agrees = names::score(&names, other.computer_dns_name.as_deref()).agrees();
                    let same = other.computer_dns_name == taken.computer_dns_name;
                    prop_assert!(!agrees || (same && !is_active(other) && is_active(taken)));
                }
            }
            // What is acted on is what the tags show.
            if let Ok(taken) = &found.for_action {
                let shown_too = matches!(&found.for_context, Context::Found { machine, .. } if **machine == *taken);
                prop_assert!(shown_too);
            }
        }
    }
}
