//! Hosts with their machines in Defender, by the thousand: for load tests and campaigns.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;

use super::super::data::Data;
use super::super::faults::Random;
use super::host::{Artifact, Host};
use super::story::PROTECTED_GROUP;

/// The first id of a bulk's hosts, far from the story's.
pub const FIRST_BULK_HOST: u64 = 100_001;

/// How many hosts a bulk can have: as many as there are addresses in 198.18.0.0/15, which is meant for such tests.
pub const BULK_LIMIT: usize = 131_072;

/// How long ago a bulk's machines and hosts were last seen. Less than the reach of an address lookup apart.
const MACHINE_SEEN: SignedDuration = SignedDuration::from_mins(6);
const HOST_SEEN: SignedDuration = SignedDuration::from_mins(4);

/// What there is about a host of a bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BulkKind {
    /// A workstation: its address finds exactly its machine, whose name agrees.
    Plain,
    /// As plain, but a server.
    Server,
    /// As plain, but a key asset.
    KeyAsset,
    /// As plain, but in the group [`PROTECTED_GROUP`].
    Protected,
    /// No machine.
    NoAgent,
    /// Two machines behind its address, and no name.
    SharedAddress,
    /// The machine on its address has another name.
    OtherName,
}

/// The odd kinds, in turn.
const ODD: [BulkKind; 6] = [
    BulkKind::Server,
    BulkKind::KeyAsset,
    BulkKind::Protected,
    BulkKind::NoAgent,
    BulkKind::SharedAddress,
    BulkKind::OtherName,
];

/// A host of a bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BulkHost {
    /// Cognito's id.
    pub id: u64,
    /// What there is about it.
    pub kind: BulkKind,
    /// The ids of the machines on its address.
    pub machines: Vec<String>,
}

/// `count` hosts, and their machines, which are added to `data`. About `odd_percent` per cent (0 to 100) are not plain.
/// The same for the same `seed`. Times count back from `now`.
///
/// # Panics
/// When there are more than [`BULK_LIMIT`].
pub(super) fn bulk(count: usize, odd_percent: u8, seed: u64, now: Timestamp, data: &mut Data) -> Vec<(BulkHost, Host)> {
    assert!(count <= BULK_LIMIT, "a bulk has at most {BULK_LIMIT} hosts");
    let mut random = Random(seed);
    let mut odd = ODD.into_iter().cycle();
    let machine_seen = now.checked_sub(MACHINE_SEEN).unwrap_or(now).to_string();
    let host_seen = now.checked_sub(HOST_SEEN).unwrap_or(now);
    (0..count)
        .map(|index| {
            let strange = random.bits() % 100 < u64::from(odd_percent);
            let kind = if strange { odd.next().unwrap_or(BulkKind::Plain) } else { BulkKind::Plain };
            let id = FIRST_BULK_HOST + index as u64;
            let address = format!("198.{}.{}.{}", 18 + (index >> 16 & 1), index >> 8 & 255, index & 255);
            let name = format!("bulk-{index:05}.corp.example");
            let names = match kind {
                BulkKind::NoAgent => vec![],
                BulkKind::SharedAddress => vec![format!("left-{name}"), format!("right-{name}")],
                BulkKind::OtherName => vec![format!("other-{name}")],
                _ => vec![name.clone()],
            };
            let machines: Vec<String> = names
                .into_iter()
                .map(|name| {
                    let machine = super::super::scenario::hex(&mut random, 40);
                    let server = kind == BulkKind::Server;
                    let shown = machine_json(&machine, &name, &address, server, &machine_seen);
                    data.add_machine(shown, false).expect("a machine outside the inventory has no row to fit");
                    machine
                })
                .collect();
            let mut host = Host::new(id, &format!("bulk-{index:05}"), &address, host_seen).named(&name);
            match kind {
                BulkKind::KeyAsset => host.key_asset = true,
                BulkKind::Protected => host.groups = vec![PROTECTED_GROUP.to_owned()],
                BulkKind::SharedAddress => {
                    host.name = format!("IP-{address}");
                    host.artifacts = Vec::<Artifact>::new();
                }
                _ => {}
            }
            (BulkHost { id, kind, machines }, host)
        })
        .collect()
}

fn machine_json(id: &str, name: &str, address: &str, server: bool, seen: &str) -> serde_json::Value {
    let (platform, version, build) =
        if server { ("WindowsServer2022", "21H2", 20_348) } else { ("Windows11", "24H2", 26_100) };
    json!({
        "id": id,
        "mergedIntoMachineId": null,
        "isPotentialDuplication": false,
        "isExcluded": false,
        "exclusionReason": null,
        "computerDnsName": name,
        "firstSeen": "2024-03-01T08:00:00.1618923Z",
        "lastSeen": seen,
        "osPlatform": platform,
        "osVersion": null,
        "osProcessor": "x64",
        "version": version,
        "lastIpAddress": address,
        "lastExternalIpAddress": "203.0.113.1",
        "agentVersion": "10.8760.26100.1000",
        "osBuild": build,
        "healthStatus": "Active",
        "deviceValue": "Normal",
        "rbacGroupId": 140,
        "rbacGroupName": if server { "Servers" } else { "Workstations" },
        "riskScore": "Low",
        "exposureLevel": "Low",
        "isAadJoined": true,
        "aadDeviceId": null,
        "machineTags": [],
        "onboardingStatus": "Onboarded",
        "osArchitecture": "64-bit",
        "managedBy": "Intune",
        "managedByStatus": "Success",
        "ipAddresses": [{
            "ipAddress": address, "macAddress": "00005E005300", "type": "Ethernet", "operationalStatus": "Up",
        }],
        "vmMetadata": null,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    #[test]
    fn a_bulk_repeats_with_its_seed_and_has_its_share_of_every_odd_kind() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let make = |seed| bulk(2_000, 30, seed, now, &mut Data::default());
        let (first, again) = (make(7), make(7));
        assert_eq!(first, again);
        assert_ne!(first, make(8));
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for (host, _) in &first {
            *kinds.entry(format!("{:?}", host.kind)).or_default() += 1;
        }
        assert_eq!(kinds.len(), 7);
        assert!((1_300..1_500).contains(&kinds["Plain"]), "{kinds:?}");
        assert!(kinds.values().all(|count| *count >= 80), "{kinds:?}");
        let addresses: HashSet<_> = first.iter().map(|(_, host)| host.address.clone()).collect();
        assert_eq!(addresses.len(), 2_000);
        let machines: HashSet<_> = first.iter().flat_map(|(host, _)| host.machines.clone()).collect();
        let expected = 2_000 + kinds["SharedAddress"] - kinds["NoAgent"];
        assert_eq!(machines.len(), expected);
    }
}
