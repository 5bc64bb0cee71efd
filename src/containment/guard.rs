//! What is never isolated (`cognito.md` 6.2 and 6.3, `defender.md` 7.5).
//!
//! The first refusal wins. A release is refused by the dry run only. The brake and the caps need the whole deployment's
//! count and are not here; their codes are ([`Reason::holds`]).

use std::net::IpAddr;

use super::matching::{self, Unfit};
use super::names;
use super::policy::Guard;
use super::reason::Reason;
use crate::cognito::model::Host;
use crate::defender::model::Machine;

/// Platforms of machines that people sit at, as Defender writes them, in lower case: these beginnings, and what follows
/// them is a version. Session hosts (`Windows10WVD`) are among them: they are their users' desktops.
const WORKSTATIONS: [&str; 9] =
    ["windows7", "windows8", "windowsvista", "windowsxp", "windows10", "windows11", "macos", "ios", "android"];

/// Why the guard does not let a request pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub reason: Reason,
    /// What decided, in words, to follow "refused:"; never empty.
    pub detail: String,
}

/// Whether the host's machine may be isolated. `tags` are those read just before acting, `machine` the one that would be
/// isolated, as Defender describes it now.
///
/// # Errors
/// Why not. In a dry run always, and what else would have refused is in the detail.
pub fn isolation(guard: &Guard, host: &Host, tags: &[String], machine: &Machine) -> Result<(), Refusal> {
    let refusal = refusal(guard, host, tags, machine);
    if guard.dry_run {
        let detail = match refusal {
            None => "this is a dry run; otherwise the machine would have been isolated".to_owned(),
            Some(refusal) => format!("this is a dry run; otherwise it would have been refused: {}", refusal.detail),
        };
        return Err(Refusal { reason: Reason::DryRun, detail });
    }
    refusal.map_or(Ok(()), Err)
}

/// Whether a machine may be released.
///
/// # Errors
/// In a dry run.
pub fn release(guard: &Guard) -> Result<(), Refusal> {
    if !guard.dry_run {
        return Ok(());
    }
    let detail = "this is a dry run; otherwise the machine would have been released".to_owned();
    Err(Refusal { reason: Reason::DryRun, detail })
}

/// Whether a relay trigger may do what it asks for. It knows no host of Cognito, so only the rules about machines count;
/// `machine` is the one that would be isolated or restricted, `None` where neither is asked for.
///
/// # Errors
/// Why not.
pub fn trigger(guard: &Guard, machine: Option<&Machine>) -> Result<(), Refusal> {
    if guard.dry_run {
        let detail = "this is a dry run, nothing is asked of Defender".to_owned();
        return Err(Refusal { reason: Reason::DryRun, detail });
    }
    machine.and_then(|machine| refusal(guard, &Host::default(), &[], machine)).map_or(Ok(()), Err)
}

/// What protects the host or its machine, if something does (`cognito.md` 6.3). Without a machine, the rules about
/// machines are left out.
#[must_use]
pub fn protection(guard: &Guard, host: &Host, tags: &[String], machine: Option<&Machine>) -> Option<String> {
    let same = |one: &str, other: &str| one.trim().to_lowercase() == other.trim().to_lowercase();
    if let Some(group) = guard.protected_groups.iter().find(|group| host.groups.iter().any(|of| same(of, group))) {
        return Some(format!("the host is in the protected group \"{group}\""));
    }
    if let Some(tag) = guard.protected_tags.iter().find(|tag| tags.iter().any(|on| same(on, tag))) {
        return Some(format!("the host has the protective tag \"{tag}\""));
    }
    let addresses = addresses(host, machine);
    for network in &guard.protected_networks {
        if let Some(address) = addresses.iter().find(|address| network.contains(**address)) {
            return Some(format!("the address {address} is in the protected network {network}"));
        }
    }
    let machine_name = machine.and_then(|machine| machine.computer_dns_name.clone());
    let all_names: Vec<String> = names::known(host).into_iter().chain(host.name.clone()).chain(machine_name).collect();
    for pattern in &guard.protected_names {
        if let Some(name) = all_names.iter().find(|name| pattern.fits(name)) {
            return Some(format!("the name {name} fits the protected pattern \"{pattern}\""));
        }
    }
    if machine.is_some_and(|machine| guard.protected_machine_ids.iter().any(|id| id.eq_ignore_ascii_case(&machine.id)))
    {
        return Some("the machine is on the list of protected machine ids".to_owned());
    }
    (guard.protect_key_assets && host.is_key_asset).then(|| "the host is a key asset".to_owned())
}

/// Whether the platform is that of a server. Whatever is not known to be a workstation or a phone counts as one: Windows
/// Server, Azure Stack HCI, Linux of any kind, and what Defender does not name. A wrong isolation of a server does more
/// harm than a refusal that an analyst reads.
#[must_use]
pub fn is_server(machine: &Machine) -> bool {
    let platform = machine.os_platform.as_deref().unwrap_or_default();
    let platform: String = platform.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase();
    platform.contains("server") || !WORKSTATIONS.iter().any(|beginning| platform.starts_with(beginning))
}

fn refusal(guard: &Guard, host: &Host, tags: &[String], machine: &Machine) -> Option<Refusal> {
    let refused = |reason, detail: String| Some(Refusal { reason, detail });
    if let Some(detail) = protection(guard, host, tags, Some(machine)) {
        return refused(Reason::Protected, detail);
    }
    if let Some(level) = host.privilege_level.filter(|level| *level > guard.max_privilege) {
        let detail = format!("the host's privilege level is {level}, above the limit of {}", guard.max_privilege);
        return refused(Reason::Privileged, detail);
    }
    // Before the kind: of a machine without a sensor Defender does not know the kind.
    match matching::unfit(machine) {
        None => {}
        Some(Unfit::NoId) => return refused(Reason::NoMachine, "Defender's answer has no machine id".to_owned()),
        Some(Unfit::Merged) => {
            return refused(Reason::Merged, "the machine became part of another one in Defender".to_owned());
        }
        Some(Unfit::Excluded) => {
            return refused(Reason::Excluded, "the machine is excluded from Defender's inventory".to_owned());
        }
        Some(Unfit::NotOnboarded) => {
            return refused(Reason::NotOnboarded, "the machine is not onboarded to Defender".to_owned());
        }
    }
    if !guard.isolate_servers && is_server(machine) {
        let detail = match machine.os_platform.as_deref().filter(|platform| !platform.trim().is_empty()) {
            Some(platform) => format!("the machine counts as a server: its platform is {platform}"),
            None => "the machine counts as a server: Defender does not say which platform it is".to_owned(),
        };
        return refused(Reason::Server, detail);
    }
    None
}

/// The host's address, and those of the machine's adapters that are up: who names a network means every machine in it.
fn addresses(host: &Host, machine: Option<&Machine>) -> Vec<IpAddr> {
    let up = |status: Option<&str>| status.is_none_or(|status| status.eq_ignore_ascii_case("Up"));
    let adapters = machine.map(|machine| machine.ip_addresses.as_slice()).unwrap_or_default();
    let of_adapters = adapters
        .iter()
        .filter(|adapter| up(adapter.operational_status.as_deref()))
        .filter_map(|adapter| adapter.ip_address.as_deref());
    host.address
        .as_deref()
        .into_iter()
        .chain(of_adapters)
        .filter_map(|text| text.trim().parse::<IpAddr>().ok())
        .map(|address| address.to_canonical())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cognito::model::Artifact;
    use crate::defender::model::MachineAddress;

    fn host() -> Host {
        Host {
            id: 4711,
            name: Some("fin-lt-0042".into()),
            address: Some("192.0.2.42".into()),
            privilege_level: Some(3),
            groups: vec!["Finance laptops".into()],
            ..Host::default()
        }
    }

    fn machine() -> Machine {
        let adapter = |address: &str, status: &str| MachineAddress {
            ip_address: Some(address.into()),
            operational_status: Some(status.into()),
        };
        Machine {
            id: "0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e".into(),
            computer_dns_name: Some("fin-lt-0042.corp.example.com".into()),
            os_platform: Some("Windows11".into()),
            onboarding_status: Some("Onboarded".into()),
            ip_addresses: vec![
                adapter("192.0.2.42", "Up"),
                adapter("198.51.100.7", "Up"),
                adapter("203.0.113.9", "Down"),
            ],
            ..Machine::default()
        }
    }

    type Change = fn(&mut Guard, &mut Host, &mut Vec<String>, &mut Machine);

    fn judged(change: Change) -> Result<(), Refusal> {
        let (mut guard, mut host, mut tags, mut machine) =
            (Guard::default(), host(), vec!["VIP".to_owned(), "block".to_owned()], machine());
        change(&mut guard, &mut host, &mut tags, &mut machine);
        isolation(&guard, &host, &tags, &machine)
    }

    /// 6.2 and 6.3, check by check.
    #[test]
    fn each_guard_refuses_what_it_is_for() {
        let rows: &[(&str, Change, Option<Reason>)] = &[
            ("an ordinary laptop", |_, _, _, _| {}, None),
            ("1 safe mode", |guard, _, _, _| guard.dry_run = true, Some(Reason::DryRun)),
            ("2 group", |_, host, _, _| host.groups.push("NoBlock".into()), Some(Reason::Protected)),
            ("2 group, other letter case", |_, host, _, _| host.groups.push("noblock".into()), Some(Reason::Protected)),
            ("2 group that only begins so", |_, host, _, _| host.groups.push("NoBlock 2".into()), None),
            ("2 tag", |_, _, tags, _| tags.push("no-isolate".into()), Some(Reason::Protected)),
            ("2 tag, other letter case", |_, _, tags, _| tags.push("No-Isolate".into()), Some(Reason::Protected)),
            ("2 tag that only begins so", |_, _, tags, _| tags.push("no-isolate-2".into()), None),
            (
                "2 network of the host",
                |guard, _, _, _| guard.protected_networks = vec!["192.0.2.0/24".parse().unwrap()],
                Some(Reason::Protected),
            ),
            (
                "2 network of another adapter",
                |guard, _, _, _| guard.protected_networks = vec!["198.51.100.0/24".parse().unwrap()],
                Some(Reason::Protected),
            ),
            (
                "2 network of an adapter that is down",
                |guard, _, _, _| guard.protected_networks = vec!["203.0.113.0/24".parse().unwrap()],
                None,
            ),
            (
                "2 network, the host's address mapped",
                |guard, host, _, machine| {
                    guard.protected_networks = vec!["192.0.2.0/24".parse().unwrap()];
                    host.address = Some("::ffff:192.0.2.42".into());
                    machine.ip_addresses.clear();
                },
                Some(Reason::Protected),
            ),
            (
                "2 name in Defender",
                |guard, _, _, _| guard.protected_names = vec!["*.corp.example.com".parse().unwrap()],
                Some(Reason::Protected),
            ),
            (
                "2 name in Cognito",
                |guard, _, _, machine| {
                    guard.protected_names = vec!["fin-*".parse().unwrap()];
                    machine.computer_dns_name = Some("other".into());
                },
                Some(Reason::Protected),
            ),
            (
                "2 name of an artifact",
                |guard, host, _, _| {
                    guard.protected_names = vec!["dc-??".parse().unwrap()];
                    host.artifacts.push(Artifact { kind: "dns".into(), value: "DC-01.corp.example.com".into() });
                },
                Some(Reason::Protected),
            ),
            (
                "2 display name",
                |guard, host, _, _| {
                    guard.protected_names = vec!["*(prod)".parse().unwrap()];
                    host.name = Some("Billing DB (Prod)".into());
                },
                Some(Reason::Protected),
            ),
            ("2 another name", |guard, _, _, _| guard.protected_names = vec!["dc-*".parse().unwrap()], None),
            (
                "2 machine id",
                |guard, _, _, machine| guard.protected_machine_ids = vec![machine.id.clone()],
                Some(Reason::Protected),
            ),
            ("2 key asset", |_, host, _, _| host.is_key_asset = true, Some(Reason::Protected)),
            (
                "2 key assets are not protected",
                |guard, host, _, _| (guard.protect_key_assets, host.is_key_asset) = (false, true),
                None,
            ),
            ("3 privilege above the limit", |_, host, _, _| host.privilege_level = Some(8), Some(Reason::Privileged)),
            ("3 privilege at the limit", |_, host, _, _| host.privilege_level = Some(7), None),
            ("3 privilege unknown", |_, host, _, _| host.privilege_level = None, None),
            (
                "4 server",
                |_, _, _, machine| machine.os_platform = Some("WindowsServer2022".into()),
                Some(Reason::Server),
            ),
            (
                "4 servers are allowed",
                |guard, _, _, machine| {
                    guard.isolate_servers = true;
                    machine.os_platform = Some("WindowsServer2022".into());
                },
                None,
            ),
            ("4 platform unknown", |_, _, _, machine| machine.os_platform = None, Some(Reason::Server)),
            (
                "Defender: not onboarded",
                |_, _, _, machine| {
                    machine.onboarding_status = Some("CanBeOnboarded".into());
                    machine.os_platform = None;
                },
                Some(Reason::NotOnboarded),
            ),
            ("Defender: excluded", |_, _, _, machine| machine.is_excluded = true, Some(Reason::Excluded)),
            (
                "Defender: merged",
                |_, _, _, machine| machine.merged_into_machine_id = Some("b".repeat(40)),
                Some(Reason::Merged),
            ),
            ("Defender: no id", |_, _, _, machine| machine.id = "fin-lt-0042".into(), Some(Reason::NoMachine)),
            (
                "servers that are allowed are still protected",
                |guard, host, _, machine| {
                    guard.isolate_servers = true;
                    machine.os_platform = Some("WindowsServer2022".into());
                    host.groups.push("NoBlock".into());
                },
                Some(Reason::Protected),
            ),
        ];
        for (name, change, expected) in rows {
            let result = judged(*change);
            assert_eq!(result.as_ref().err().map(|refusal| refusal.reason), *expected, "{name}");
            assert!(result.err().is_none_or(|refusal| !refusal.detail.is_empty()), "{name}");
        }
    }

    /// A trigger knows no host: what is known of the machine protects it.
    #[test]
    fn a_trigger_is_refused_for_what_its_machine_is() {
        type Change = fn(&mut Guard, &mut Machine);
        let rows: [(Change, Option<Reason>); 7] = [
            (|_, _| {}, None),
            (|guard, _| guard.dry_run = true, Some(Reason::DryRun)),
            (|guard, machine| guard.protected_machine_ids = vec![machine.id.clone()], Some(Reason::Protected)),
            (|guard, _| guard.protected_names = vec!["fin-*".parse().unwrap()], Some(Reason::Protected)),
            (|guard, _| guard.protected_networks = vec!["192.0.2.0/24".parse().unwrap()], Some(Reason::Protected)),
            (|_, machine| machine.os_platform = Some("WindowsServer2022".into()), Some(Reason::Server)),
            (|_, machine| machine.onboarding_status = Some("CanBeOnboarded".into()), Some(Reason::NotOnboarded)),
        ];
        for (at, (change, expected)) in rows.into_iter().enumerate() {
            let (mut guard, mut machine) = (Guard::default(), machine());
            change(&mut guard, &mut machine);
            assert_eq!(trigger(&guard, Some(&machine)).err().map(|refusal| refusal.reason), expected, "row {at}");
        }
        let dry = Guard { dry_run: true, ..Guard::default() };
        assert_eq!(trigger(&dry, None).unwrap_err().reason, Reason::DryRun);
        assert_eq!(trigger(&Guard::default(), None), Ok(()));
    }

    #[test]
    fn the_first_refusal_wins() {
        let all: [Change; 4] = [
            |guard, _, _, _| guard.dry_run = true,
            |_, host, _, _| host.is_key_asset = true,
            |_, host, _, _| host.privilege_level = Some(10),
            |_, _, _, machine| machine.os_platform = Some("Linux".into()),
        ];
        let order = [Reason::DryRun, Reason::Protected, Reason::Privileged, Reason::Server];
        for from in 0..all.len() {
            let (mut guard, mut host, mut tags, mut machine) = (Guard::default(), host(), vec![], machine());
            for change in &all[from..] {
                change(&mut guard, &mut host, &mut tags, &mut machine);
            }
            assert_eq!(isolation(&guard, &host, &tags, &machine).unwrap_err().reason, order[from]);
        }
    }

    #[test]
    fn a_dry_run_says_what_would_have_been() {
        let dry = judged(|guard, _, _, _| guard.dry_run = true).unwrap_err();
        assert!(dry.detail.contains("would have been isolated"), "{}", dry.detail);
        let dry = judged(|guard, host, _, _| (guard.dry_run, host.is_key_asset) = (true, true)).unwrap_err();
        assert_eq!(dry.reason, Reason::DryRun);
        assert!(dry.detail.contains("would have been refused: the host is a key asset"), "{}", dry.detail);
    }

    #[test]
    fn a_release_is_refused_by_a_dry_run_only() {
        let strict = Guard {
            max_privilege: 0,
            protected_networks: vec!["0.0.0.0/0".parse().unwrap()],
            protected_names: vec!["*".parse().unwrap()],
            ..Guard::default()
        };
        assert_eq!(release(&strict), Ok(()));
        assert_eq!(release(&Guard { dry_run: true, ..Guard::default() }).unwrap_err().reason, Reason::DryRun);
    }

    #[test]
    fn a_host_is_protected_without_its_machine_too() {
        let guard = Guard { protected_machine_ids: vec![machine().id], ..Guard::default() };
        assert_eq!(protection(&guard, &host(), &[], None), None);
        assert!(protection(&guard, &host(), &[], Some(&machine())).is_some());
        assert!(protection(&guard, &host(), &["no-isolate".to_owned()], None).is_some());
    }

    #[test]
    fn which_platforms_count_as_servers() {
        let rows = [
            ("Windows10", false),
            ("Windows11", false),
            ("windows 11", false),
            ("Windows10WVD", false),
            ("Windows7", false),
            ("Windows8.1", false),
            ("macOS", false),
            ("iOS", false),
            ("Android", false),
            ("WindowsServer2012R2", true),
            ("WindowsServer2025", true),
            ("Windows Server 2019", true),
            ("Windows10Server", true),
            ("AzureStackHCI", true),
            ("Linux", true),
            ("Ubuntu", true),
            ("RedHatEnterpriseLinux", true),
            ("Unix", true),
            ("Windows", true),
            ("SomethingNew", true),
            ("", true),
        ];
        for (platform, expected) in rows {
            let machine = Machine { os_platform: Some(platform.into()), ..machine() };
            assert_eq!(is_server(&machine), expected, "{platform:?}");
        }
    }
}
