//! Defender's machine actions and indicators -> the response actions that are offered (`relay.md` 7.1 and 7.2). Pure.

use super::instant;
use crate::defender::model::{AvailableAction, Indicator, Machine, MachineAction};
use crate::relay::Observable;
use crate::relay::respond::Action;
use crate::relay::trigger::{Add, MachineAct};

/// The kinds of machine actions that tell what can be reversed.
pub const REVERSIBLE: [&str; 4] = ["Isolate", "Unisolate", "RestrictCodeExecution", "UnrestrictCodeExecution"];

/// What is offered for a value that may have an indicator.
#[must_use]
pub fn of_indicator(observable: &Observable, indicator: Option<&Indicator>) -> Vec<Action> {
    match indicator {
        Some(found) => vec![Action::remove(observable, &found.action, found.title.as_deref(), &found.id)],
        None => Add::ALL.into_iter().map(|add| Action::add(add, observable)).collect(),
    }
}

/// What is offered for a machine: what Defender says is available, with what was done last reversed in place of done again
/// (defects 57 to 59). In the order of the titles. `history` holds actions of the [`REVERSIBLE`] kinds in any order.
#[must_use]
pub fn of_machine(observable: &Observable, available: &[MachineAct], history: &[MachineAction]) -> Vec<Action> {
    let mut offered = available.to_vec();
    if last_succeeded(history, &["Isolate", "Unisolate"]).is_some_and(MachineAction::is_isolate) {
        offered.retain(|act| !act.isolates());
        offered.push(MachineAct::Release);
    }
    let restricted = last_succeeded(history, &["RestrictCodeExecution", "UnrestrictCodeExecution"])
        .is_some_and(|action| action.kind.eq_ignore_ascii_case("RestrictCodeExecution"));
    if restricted {
        offered.retain(|act| *act != MachineAct::Restrict);
        offered.push(MachineAct::Unrestrict);
    }
    offered.sort_by_key(|act| act.title());
    offered.dedup();
    offered.into_iter().map(|act| Action::machine(act, observable)).collect()
}

/// What Defender's list says is available, in our words. What is not offered is left out: investigations, which ended
/// (defect 74), and what needs more than a machine.
#[must_use]
pub fn available(listed: &[AvailableAction]) -> Vec<MachineAct> {
    let acts = |action: &AvailableAction| -> &'static [MachineAct] {
        match action.action.as_str() {
            "FullIsolation" => &[MachineAct::IsolateFull],
            "SelectiveIsolation" => &[MachineAct::IsolateSelective],
            "RunAntiVirusScan" => &[MachineAct::ScanQuick, MachineAct::ScanFull],
            "CollectInvestigationPackage" => &[MachineAct::Collect],
            "RestrictCodeExecution" => &[MachineAct::Restrict],
            _ => &[],
        }
    };
    listed.iter().filter(|action| action.is_available).flat_map(acts).copied().collect()
}

/// What a machine can do by its platform, where Defender's list is gone (`defender.md` 5.10, 5.11 and 7.1).
#[must_use]
pub fn by_platform(machine: &Machine) -> Vec<MachineAct> {
    let onboarded = machine.onboarding_status.as_deref().is_some_and(|is| is.eq_ignore_ascii_case("Onboarded"));
    let platform = machine.os_platform.as_deref().unwrap_or_default().to_ascii_lowercase();
    if !onboarded || ["", "ios", "android"].contains(&platform.as_str()) {
        return Vec::new();
    }
    let windows = platform.starts_with("windows");
    let restricts = ["windows10", "windows11", "windowsserver2019", "windowsserver2022", "windowsserver2025"];
    let mut acts = vec![MachineAct::IsolateFull, MachineAct::ScanQuick, MachineAct::ScanFull];
    if windows || platform == "macos" {
        acts.push(MachineAct::IsolateSelective);
    }
    if windows {
        acts.push(MachineAct::Collect);
    }
    if restricts.iter().any(|name| platform.starts_with(name)) {
        acts.push(MachineAct::Restrict);
    }
    acts
}

/// The newest of these kinds that was carried out; the order of the list means nothing (defect 58).
fn last_succeeded<'a>(history: &'a [MachineAction], kinds: &[&str]) -> Option<&'a MachineAction> {
    let of_kind = |action: &&MachineAction| kinds.iter().any(|kind| action.kind.eq_ignore_ascii_case(kind));
    let done = |action: &&MachineAction| action.status.eq_ignore_ascii_case("Succeeded");
    let created = |action: &&MachineAction| action.creation_date_time_utc.as_deref().and_then(instant::parse);
    history.iter().filter(of_kind).filter(done).max_by_key(created)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Observable {
        Observable::parse("ms_machine_id", "6035c8a86d4961346736ec90e668c8d2694b7f57").unwrap()
    }

    fn titles(actions: &[Action]) -> Vec<String> {
        let title = |action: &Action| serde_json::to_value(action).unwrap()["title"].as_str().unwrap().to_owned();
        actions.iter().map(title).collect()
    }

    /// `Isolate Succeeded 3`: kind, status, day of the month.
    fn history(entries: &[&str]) -> Vec<MachineAction> {
        let read = |entry: &&str| {
            let parts: Vec<&str> = entry.split(' ').collect();
            MachineAction {
                kind: parts[0].into(),
                status: parts[1].into(),
                creation_date_time_utc: Some(format!("2024-03-{:0>2}T00:00:00Z", parts[2])),
                ..MachineAction::default()
            }
        };
        entries.iter().map(read).collect()
    }

    /// Defects 57, 58, 59 and 64.
    #[test]
    fn what_was_done_last_is_reversed_in_place_of_done_again() {
        let all = [MachineAct::IsolateFull, MachineAct::IsolateSelective, MachineAct::Restrict];
        let (full, selective) = ("Isolate Device: Full", "Isolate Device: Selective");
        let (restrict, release, unrestrict) =
            ("Restrict app execution", "Release from isolation", "Remove app restrictions");
        let rows: [(&[MachineAct], &[&str], &[&str]); 7] = [
            (&all, &[], &[full, selective, restrict]),
            (&all, &["Isolate Succeeded 2"], &[release, restrict]),
            (&all, &["Isolate Succeeded 2", "Unisolate Succeeded 3"], &[full, selective, restrict]),
            (&all, &["Unisolate Succeeded 1", "Isolate Succeeded 3", "Unisolate Failed 4"], &[release, restrict]),
            (&all, &["RestrictCodeExecution Succeeded 2"], &[full, selective, unrestrict]),
            (&all[..1], &["Isolate Succeeded 2"], &[release]),
            (&[], &["Isolate Succeeded 2", "RestrictCodeExecution Succeeded 1"], &[release, unrestrict]),
        ];
        for (available, entries, expected) in rows {
            assert_eq!(titles(&of_machine(&machine(), available, &history(entries))), expected, "{entries:?}");
        }
    }

    #[test]
    fn without_defenders_list_the_platform_says_what_is_offered() {
        let of = |platform: &str, status: &str| {
            let machine = Machine {
                os_platform: Some(platform.into()),
                onboarding_status: Some(status.into()),
                ..Machine::default()
            };
            by_platform(&machine).len()
        };
        let rows = [
            ("Windows11", "onboarded", 6),
            ("WindowsServer2012R2", "Onboarded", 5),
            ("macOS", "Onboarded", 4),
            ("Ubuntu", "Onboarded", 3),
            ("Android", "Onboarded", 0),
            ("Windows11", "CanBeOnboarded", 0),
        ];
        for (platform, status, offered) in rows {
            assert_eq!(of(platform, status), offered, "{platform} {status}");
        }
    }
}
