//! What to do at Defender for the actions beside isolation and release: restricting a machine, scanning it, collecting from
//! it (`defender.md` 5.10). The same rules: what is open is adopted, nothing is posted across its opposite, what was done
//! is not done again.

use jiff::Timestamp;

use super::act::{is_given_up, is_open, succeeded};
use crate::defender::model::MachineAction;

/// A kind of action, as it concerns others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Defender's word.
    pub kind: &'static str,
    /// What undoes it, or is undone by it.
    pub opposite: Option<&'static str>,
    /// `Quick` or `Full` of a scan.
    pub scope: Option<&'static str>,
}

/// What is known, and so what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look<'a> {
    /// Ask for it.
    Post,
    /// It is asked for already: adopt it.
    Open(&'a MachineAction),
    /// Another action is open that it must not cross.
    Crossed(&'a MachineAction),
    /// The machine is as wanted.
    Done(&'a MachineAction),
}

/// What to do about a wish, from the machine's actions of its kind and of the opposite, newest first.
#[must_use]
pub fn look<'a>(wish: &Wish, actions: &'a [MachineAction], now: Timestamp) -> Look<'a> {
    let same = |action: &MachineAction| action.kind.eq_ignore_ascii_case(wish.kind);
    let against = |action: &MachineAction| wish.opposite.is_some_and(|kind| action.kind.eq_ignore_ascii_case(kind));
    let of_wish = || actions.iter().filter(|action| same(action) || against(action));
    if let Some(open) = of_wish().find(|action| is_open(action) && !is_given_up(action, now)) {
        // A full scan does what a quick one would.
        let covers = |scope: &str| {
            scope.eq_ignore_ascii_case("Full") || wish.scope.is_none_or(|is| scope.eq_ignore_ascii_case(is))
        };
        return if same(open) && open.scope.as_deref().is_none_or(covers) {
            Look::Open(open)
        } else {
            Look::Crossed(open)
        };
    }
    match of_wish().find(|action| succeeded(action)) {
        Some(last) if wish.opposite.is_some() && same(last) => Look::Done(last),
        _ => Look::Post,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `RunAntiVirusScan Pending 90 Full`: kind, status, age in seconds, scope.
    fn actions(entries: &[&str], now: Timestamp) -> Vec<MachineAction> {
        let read = |entry: &&str| {
            let parts: Vec<&str> = entry.split(' ').collect();
            let age = std::time::Duration::from_secs(parts[2].parse().unwrap());
            MachineAction {
                id: (*entry).to_owned(),
                kind: parts[0].into(),
                status: parts[1].into(),
                scope: parts.get(3).map(|scope| (*scope).to_owned()),
                creation_date_time_utc: Some((now - age).to_string()),
                ..MachineAction::default()
            }
        };
        entries.iter().map(read).collect()
    }

    #[test]
    fn what_is_open_is_adopted_and_its_opposite_is_not_crossed() {
        let now: Timestamp = "2026-02-03T10:31:00Z".parse().unwrap();
        let restrict = Wish { kind: "RestrictCodeExecution", opposite: Some("UnrestrictCodeExecution"), scope: None };
        let unrestrict = Wish { kind: "UnrestrictCodeExecution", opposite: Some("RestrictCodeExecution"), scope: None };
        let scan = |scope| Wish { kind: "RunAntiVirusScan", opposite: None, scope: Some(scope) };
        let collect = Wish { kind: "CollectInvestigationPackage", opposite: None, scope: None };
        let rows: [(Wish, &[&str], &str); 13] = [
            (restrict, &[], "post"),
            (restrict, &["RestrictCodeExecution Pending 9"], "open"),
            (restrict, &["UnrestrictCodeExecution InProgress 9"], "crossed"),
            (restrict, &["RestrictCodeExecution Succeeded 9"], "done"),
            (restrict, &["RestrictCodeExecution Failed 5", "RestrictCodeExecution Succeeded 9"], "done"),
            (restrict, &["UnrestrictCodeExecution Succeeded 5", "RestrictCodeExecution Succeeded 9"], "post"),
            (unrestrict, &["UnrestrictCodeExecution Succeeded 5"], "done"),
            (unrestrict, &["RestrictCodeExecution Pending 300000"], "post"),
            (scan("Quick"), &["RunAntiVirusScan Pending 9 Full"], "open"),
            (scan("Full"), &["RunAntiVirusScan Pending 9 Quick"], "crossed"),
            (scan("Full"), &["RunAntiVirusScan Succeeded 9 Full"], "post"),
            (collect, &["CollectInvestigationPackage InProgress 9"], "open"),
            (collect, &["RunAntiVirusScan InProgress 9 Full"], "post"),
        ];
        for (wish, entries, expected) in rows {
            let actions = actions(entries, now);
            let word = match look(&wish, &actions, now) {
                Look::Post => "post",
                Look::Open(_) => "open",
                Look::Crossed(_) => "crossed",
                Look::Done(_) => "done",
            };
            assert_eq!(word, expected, "{wish:?} {entries:?}");
        }
    }
}
