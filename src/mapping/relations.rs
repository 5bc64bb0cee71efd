//! Relations of a sighting, in writing order (`relay.md` 6.7). The order is part of the contract.
//!
//! Each sighting has its own [`Writer`], which keeps the common rules; nothing is shared between sightings (defect 31),
//! and each item or row is mapped from its own values only (defects 32 to 34).

use std::collections::{HashMap, HashSet};

use super::{
    Lookups, hashes, instant,
    place::{full_path, host_name, typed_address, typed_url},
};
use crate::{
    defender::model::{Alert, Evidence, FileEvent, Hashes, InitiatingProcess, NetworkEvent},
    relay::ctim::{MAX_RELATIONS, Relation, SOURCE, Typed},
};

/// Writes relations and leaves out those with an empty side or two equal sides, repeats, and what is beyond
/// [`MAX_RELATIONS`].
struct Writer {
    origin: String,
    written: Vec<Relation>,
    seen: HashSet<(&'static str, Typed, Typed)>,
}

impl Writer {
    fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), written: Vec::new(), seen: HashSet::new() }
    }

    fn is_full(&self) -> bool {
        self.written.len() >= MAX_RELATIONS
    }

    fn write(&mut self, relation: &'static str, source: &Typed, related: &Typed) {
        let empty = source.value.trim().is_empty() || related.value.trim().is_empty();
        if empty || source == related || self.is_full() {
            return;
        }
        if self.seen.insert((relation, source.clone(), related.clone())) {
            self.written.push(Relation {
                origin: self.origin.clone(),
                relation,
                source: source.clone(),
                related: related.clone(),
            });
        }
    }

    fn write_pairs(&mut self, relation: &'static str, from: &Hashes, to: &Hashes) {
        for (source, related) in hashes::pairs(from, to) {
            self.write(relation, &source, &related);
        }
    }

    /// Name, parent's name and path of the process, for one of its hashes (network and file step 3).
    fn write_process(&mut self, process: &InitiatingProcess, hash: &Typed) {
        self.write("File_Name_Of", &Typed::new("file_name", &process.file_name), hash);
        self.write("Parent_Of", &Typed::new("file_name", &process.parent_file_name), hash);
        let path = full_path(&process.folder_path, &process.file_name);
        self.write("File_Path_Of", &Typed::new("file_path", path), hash);
    }
}

/// An evidence item that is a process or a file, with all that is known of it.
struct Item<'a> {
    evidence: &'a Evidence,
    is_process: bool,
    hashes: Hashes,
}

/// Relations of an alert, from its evidence.
pub(super) fn of_alert(alert: &Alert, lookups: &Lookups) -> Vec<Relation> {
    let origin = alert.detection_source.as_deref().filter(|origin| !origin.trim().is_empty()).unwrap_or(SOURCE);
    let mut writer = Writer::new(origin);
    let items: Vec<Item<'_>> = alert.evidence.iter().filter_map(|evidence| item(evidence, lookups)).collect();

    for Item { evidence, hashes, .. } in &items {
        let name = evidence.file_name.as_deref().unwrap_or_default();
        let path = full_path(evidence.file_path.as_deref().unwrap_or_default(), name);
        for hash in hashes::typed(hashes) {
            writer.write("File_Name_Of", &Typed::new("file_name", name), &hash);
            writer.write("File_Path_Of", &Typed::new("file_path", &path), &hash);
        }
    }
    write_parents(&mut writer, &items);
    write_connections(&mut writer, &items, &remotes(&alert.evidence));
    write_resolution(&mut writer, &alert.evidence);
    writer.written
}

fn item<'a>(evidence: &'a Evidence, lookups: &Lookups) -> Option<Item<'a>> {
    has_hashes(evidence).then(|| Item {
        evidence,
        is_process: is_a(evidence, "Process"),
        hashes: hashes::completed(&hashes::of_evidence(evidence), &lookups.files),
    })
}

/// Whether the item is of a kind whose hashes are mapped: `User` and other items give nothing.
pub(super) fn has_hashes(evidence: &Evidence) -> bool {
    is_a(evidence, "Process") || is_a(evidence, "File")
}

fn is_a(evidence: &Evidence, entity_type: &str) -> bool {
    evidence.entity_type.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(entity_type))
}

/// Step 2: parent to child (defect 35), told by process id and, since ids are used again, by creation time
/// (defect 36).
fn write_parents(writer: &mut Writer, items: &[Item<'_>]) {
    let mut by_id: HashMap<i64, Vec<usize>> = HashMap::new();
    for (place, item) in items.iter().enumerate().filter(|(_, item)| item.is_process) {
        if let Some(id) = item.evidence.process_id {
            by_id.entry(id).or_default().push(place);
        }
    }
    for (place, child) in items.iter().enumerate().filter(|(_, item)| item.is_process) {
        let parents = child.evidence.parent_process_id.and_then(|id| by_id.get(&id)).into_iter().flatten();
        for &parent in parents.filter(|&&parent| parent != place) {
            if writer.is_full() {
                return;
            }
            let parent = &items[parent];
            if may_be_equal(
                parent.evidence.process_creation_time.as_deref(),
                child.evidence.parent_process_creation_time.as_deref(),
            ) {
                writer.write_pairs("Parent_Of", &parent.hashes, &child.hashes);
            }
        }
    }
}

/// Equal as instants when both are times, as text when not; a missing one does not decide.
fn may_be_equal(one: Option<&str>, other: Option<&str>) -> bool {
    let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    match (given(one), given(other)) {
        (Some(one), Some(other)) => match (instant::parse(&one), instant::parse(&other)) {
            (Some(one), Some(other)) => one == other,
            _ => one == other,
        },
        _ => true,
    }
}

/// The distinct addresses and URLs of the evidence, in order.
fn remotes(evidence: &[Evidence]) -> Vec<Typed> {
    let mut seen = HashSet::new();
    evidence
        .iter()
        .filter_map(|item| {
            if is_a(item, "Ip") {
                typed_address(item.ip_address.as_deref()?)
            } else if is_a(item, "Url") {
                typed_url(item.url.as_deref()?)
            } else {
                None
            }
        })
        .filter(|remote| seen.insert(remote.clone()))
        .collect()
}

/// Step 3: each process and file with each address and URL, wherever they stand in the evidence (defects 33 and 34).
fn write_connections(writer: &mut Writer, items: &[Item<'_>], remotes: &[Typed]) {
    for item in items {
        let relation = if item.is_process { "Connected_To" } else { "Related_To" };
        for hash in hashes::typed(&item.hashes) {
            for remote in remotes {
                if writer.is_full() {
                    return;
                }
                writer.write(relation, &hash, remote);
            }
        }
    }
}

/// Step 4: only when there is one name and one address to choose from (defect 50).
fn write_resolution(writer: &mut Writer, evidence: &[Evidence]) {
    let names: HashSet<Typed> =
        evidence.iter().filter(|item| is_a(item, "Url")).filter_map(|item| host_name(item.url.as_deref()?)).collect();
    let addresses: HashSet<Typed> = evidence
        .iter()
        .filter(|item| is_a(item, "Ip"))
        .filter_map(|item| typed_address(item.ip_address.as_deref()?))
        .collect();
    if let (1, 1) = (names.len(), addresses.len()) {
        for (name, address) in names.iter().zip(&addresses) {
            writer.write("Resolved_To", name, address);
        }
    }
}

/// Relations of a row of `DeviceNetworkEvents`.
pub(super) fn of_network_event(event: &NetworkEvent, lookups: &Lookups) -> Vec<Relation> {
    let mut writer = Writer::new(SOURCE);
    let inbound = event.action_type.starts_with("Inbound");
    let remote = typed_address(&event.remote_ip);
    let url = typed_url(&event.remote_url);

    if let (Some(name), Some(remote)) = (host_name(&event.remote_url), &remote) {
        writer.write("Resolved_To", &name, remote);
    }
    if let (Some(local), Some(remote)) = (typed_address(&event.local_ip), &remote) {
        let (from, to) = if inbound { (remote, &local) } else { (&local, remote) };
        writer.write("Connected_To", from, to);
    }
    let connected = if inbound { "Connected_From" } else { "Connected_To" };
    for hash in hashes::typed(&hashes::completed(&event.process.hashes, &lookups.files)) {
        for peer in [&url, &remote].into_iter().flatten() {
            writer.write(connected, &hash, peer);
        }
        writer.write_process(&event.process, &hash);
    }
    writer.written
}

/// Relations of a row of `DeviceFileEvents`.
pub(super) fn of_file_event(event: &FileEvent, lookups: &Lookups) -> Vec<Relation> {
    let mut writer = Writer::new(SOURCE);
    let file = hashes::completed(&event.hashes, &lookups.files);
    let process = hashes::completed(&event.process.hashes, &lookups.files);
    let name = Typed::new("file_name", &event.file_name);
    let path = Typed::new("file_path", full_path(&event.folder_path, &event.file_name));
    let origin = Typed::new("url", &event.file_origin_url);

    for hash in hashes::typed(&file) {
        writer.write("File_Name_Of", &name, &hash);
        writer.write("File_Path_Of", &path, &hash);
        writer.write("Downloaded_From", &hash, &origin);
    }
    writer.write("Refers_To", &Typed::new("url", &event.file_origin_referrer_url), &origin);
    for hash in hashes::typed(&process) {
        writer.write_process(&event.process, &hash);
    }
    let did = match event.action_type.as_str() {
        "FileCreated" => "Created",
        "FileModified" => "Wrote_To",
        "FileRenamed" => "Renamed",
        "FileDeleted" => "Deleted",
        _ => "Related_To",
    };
    writer.write_pairs(did, &process, &file);
    if event.action_type == "FileRenamed" {
        writer.write("Renamed_To", &Typed::new("file_name", &event.previous_file_name), &name);
    }
    writer.written
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::{
        fixtures::*,
        sighting::{from_alert, from_file_event, from_network_event},
    };
    use super::*;
    use crate::relay::Observable;

    #[test]
    fn an_alerts_relations_name_their_source() {
        let origin = |source: Option<&str>| {
            let alert = Alert { detection_source: source.map(str::to_owned), ..alert(vec![file("a", "f")]) };
            from_alert(&ip(), &alert, &Lookups::default()).unwrap().relations[0].origin.clone()
        };
        assert_eq!(origin(Some("CustomerTI")), "CustomerTI");
        assert_eq!(origin(Some("")), "Microsoft Defender for Endpoint");
        assert_eq!(origin(None), "Microsoft Defender for Endpoint");
    }

    /// Defect 32: a file without hashes does not take those of the item before it.
    #[test]
    fn an_item_without_hashes_gets_no_relations() {
        assert_eq!(
            alert_lines(vec![file("a", "one"), file("", "two")]),
            ["one File_Name_Of sha1:a", "/tmp/one File_Path_Of sha1:a"]
        );
    }

    /// Defects 31, 33 and 34: each pair once, wherever the items stand, and nothing from users.
    #[test]
    fn processes_and_files_are_tied_to_every_address_and_url_once() {
        let wanted = [
            "sha1:a Connected_To 192.0.2.1",
            "sha1:a Connected_To 192.0.2.2",
            "sha1:b Connected_To 192.0.2.1",
            "sha1:b Connected_To 192.0.2.2",
        ];
        let (a, b) = (process("a", 1, 0), process("b", 2, 0));
        let (one, two) = (address("192.0.2.1"), address("192.0.2.2"));
        let orders = [
            vec![one.clone(), two.clone(), a.clone(), b.clone(), user(), user()],
            vec![a.clone(), b.clone(), user(), one.clone(), one.clone(), two.clone()],
            vec![a, one, b, address("nowhere"), two, address("")],
        ];
        for evidence in orders {
            assert_eq!(alert_lines(evidence), wanted);
        }
    }

    #[test]
    fn files_are_related_and_processes_connected_in_evidence_order() {
        let evidence = vec![file("f", ""), process("a", 1, 0), url("evil.example/x")];
        assert_eq!(
            alert_lines(evidence),
            ["/tmp File_Path_Of sha1:f", "sha1:f Related_To evil.example", "sha1:a Connected_To evil.example"]
        );
    }

    /// Defects 35 and 36: parent to child, by id and by creation time where both are given.
    #[test]
    fn a_parent_is_told_by_process_id_and_creation_time() {
        let created = |evidence: Evidence, own: &str, parents: &str| Evidence {
            process_creation_time: Some(own.into()),
            parent_process_creation_time: Some(parents.into()),
            ..evidence
        };
        let (parent, child) = (process("a", 1, 0), process("b", 2, 1));
        assert_eq!(alert_lines(vec![child.clone(), parent.clone()]), ["sha1:a Parent_Of sha1:b"]);
        // The same instant, written in two ways.
        assert_eq!(
            alert_lines(vec![
                created(parent.clone(), "2024-03-05T10:14:00.25Z", ""),
                created(child.clone(), "", "2024-03-05T10:14:00.2500000Z"),
            ]),
            ["sha1:a Parent_Of sha1:b"]
        );
        // The id was used again.
        assert_eq!(
            alert_lines(vec![
                created(parent.clone(), "2024-03-05T10:14:00Z", ""),
                created(child.clone(), "", "2024-03-05T09:00:00Z"),
            ]),
            [""; 0]
        );
        // An item without a process id, a process that is its own parent, a file with a process id.
        let own_parent = process("c", 3, 3);
        let nameless = Evidence { process_id: None, ..parent.clone() };
        let a_file = Evidence { entity_type: Some("File".into()), file_path: None, ..parent };
        assert_eq!(alert_lines(vec![nameless, own_parent, a_file, child]), [""; 0]);
    }

    /// Defect 50: only one name and one address can be told to belong together.
    #[rstest]
    #[case(&["https://a.example/x", "a.example:80"], &["192.0.2.1", "192.0.2.1"], true)]
    #[case(&["a.example", "b.example"], &["192.0.2.1"], false)]
    #[case(&["a.example"], &["192.0.2.1", "192.0.2.2"], false)]
    #[case(&["https://192.0.2.7/x"], &["192.0.2.1"], false)]
    #[case(&["https://192.0.2.7/x", "a.example"], &["192.0.2.1"], true)]
    #[case(&[], &["192.0.2.1"], false)]
    #[case(&["a.example"], &[], false)]
    fn a_name_resolves_to_an_address_only_when_unambiguous(
        #[case] urls: &[&str],
        #[case] addresses: &[&str],
        #[case] resolved: bool,
    ) {
        let evidence = urls.iter().map(|text| url(text)).chain(addresses.iter().map(|text| address(text))).collect();
        let expected: &[&str] = if resolved { &["a.example Resolved_To 192.0.2.1"] } else { &[] };
        assert_eq!(alert_lines(evidence), expected);
    }

    #[test]
    fn at_most_1000_relations_are_written() {
        let mut evidence = vec![process("a", 1, 0)];
        evidence.extend((0..1200).map(|n| address(&format!("198.51.{}.{}", n / 250, n % 250))));
        let lines = alert_lines(evidence);
        assert_eq!(lines.len(), 1000);
        assert_eq!(lines[999], "sha1:a Connected_To 198.51.3.249");
    }

    /// Defect 31: relations of one sighting never turn up in another.
    #[test]
    fn sightings_share_no_relations() {
        let one = alert_lines(vec![process("a", 1, 0), address("192.0.2.1")]);
        let other = alert_lines(vec![process("b", 1, 0), address("192.0.2.2")]);
        assert_eq!(one, ["sha1:a Connected_To 192.0.2.1"]);
        assert_eq!(other, ["sha1:b Connected_To 192.0.2.2"]);
    }

    /// Defects 21 and 47: names of CTIM's list, direction from the action, the host without scheme, port and path.
    #[rstest]
    #[case("ConnectionSuccess", "192.0.2.1 Connected_To 203.0.113.50", "Connected_To")]
    #[case("InboundConnectionAccepted", "203.0.113.50 Connected_To 192.0.2.1", "Connected_From")]
    #[case("", "192.0.2.1 Connected_To 203.0.113.50", "Connected_To")]
    fn a_network_events_direction_comes_from_its_action(
        #[case] action: &str,
        #[case] connection: &str,
        #[case] connected: &str,
    ) {
        let event = NetworkEvent { action_type: action.into(), ..network_event() };
        assert_eq!(
            lines(&from_network_event(&ip(), &event, &Lookups::default()).unwrap()),
            [
                "evil.example Resolved_To 203.0.113.50".to_owned(),
                connection.to_owned(),
                format!("sha1:a {connected} https://evil.example:8443/x"),
                format!("sha1:a {connected} 203.0.113.50"),
                "p File_Name_Of sha1:a".to_owned(),
                "init Parent_Of sha1:a".to_owned(),
                "/bin/p File_Path_Of sha1:a".to_owned(),
            ]
        );
    }

    /// Defect 20: an `ipv6` observable has relations, its addresses are typed as what they are, and an address that
    /// hunting stores in IPv6 clothes meets its observable.
    #[test]
    fn addresses_of_network_events_are_typed_by_what_they_are() {
        let event = NetworkEvent {
            remote_ip: "2001:DB8::7".into(),
            local_ip: "::ffff:192.0.2.1".into(),
            remote_url: String::new(),
            process: InitiatingProcess::default(),
            ..network_event()
        };
        let observable = Observable::parse("ipv6", "2001:db8::7").unwrap();
        let found = from_network_event(&observable, &event, &Lookups::default()).unwrap();
        assert_eq!(lines(&found), ["192.0.2.1 Connected_To 2001:db8::7"]);
        assert_eq!((&*found.relations[0].source.kind, &*found.relations[0].related.kind), ("ip", "ipv6"));
        let same = NetworkEvent { local_ip: "2001:db8:0::7".into(), ..event };
        assert_eq!(lines(&from_network_event(&observable, &same, &Lookups::default()).unwrap()), [""; 0]);
    }

    /// Defects 48 and 49: the process acts on the file, and downloads point from the file to where it came from.
    #[test]
    fn a_file_events_relations_point_the_right_way() {
        let event = FileEvent {
            file_origin_url: "https://dl.example/f".into(),
            file_origin_referrer_url: "https://www.example/".into(),
            previous_file_name: "ignored".into(),
            ..file_event()
        };
        let hash = Observable::parse("sha1", &sha1("f")).unwrap();
        assert_eq!(
            lines(&from_file_event(&hash, &event, &Lookups::default()).unwrap()),
            [
                "f File_Name_Of sha1:f",
                "/tmp/f File_Path_Of sha1:f",
                "sha1:f Downloaded_From https://dl.example/f",
                "https://www.example/ Refers_To https://dl.example/f",
                "p File_Name_Of sha1:a",
                "init Parent_Of sha1:a",
                "/bin/p File_Path_Of sha1:a",
                "sha1:a Created sha1:f",
            ]
        );
    }

    #[rstest]
    #[case("FileCreated", &["sha1:a Created sha1:f"])]
    #[case("FileModified", &["sha1:a Wrote_To sha1:f"])]
    #[case("FileDeleted", &["sha1:a Deleted sha1:f"])]
    #[case("FileRenamed", &["sha1:a Renamed sha1:f", "old Renamed_To f"])]
    #[case("SomethingNew", &["sha1:a Related_To sha1:f"])]
    #[case("", &["sha1:a Related_To sha1:f"])]
    fn what_a_process_did_to_a_file_is_named(#[case] action: &str, #[case] expected: &[&str]) {
        let event = FileEvent { action_type: action.into(), previous_file_name: "old".into(), ..file_event() };
        let found = lines(&from_file_event(&ip(), &event, &Lookups::default()).unwrap());
        assert_eq!(&found[5..], expected);
    }

    #[test]
    fn a_rename_without_both_names_or_to_the_same_name_is_not_written() {
        for (previous, name) in [("", "f"), ("old", ""), ("f", "f")] {
            let event = FileEvent {
                action_type: "FileRenamed".into(),
                previous_file_name: previous.into(),
                file_name: name.into(),
                ..file_event()
            };
            let found = lines(&from_file_event(&ip(), &event, &Lookups::default()).unwrap());
            assert!(!found.iter().any(|line| line.contains("Renamed_To")), "{found:?}");
        }
    }

    #[test]
    fn an_event_without_hashes_keeps_what_needs_none() {
        let event = FileEvent {
            hashes: Hashes::default(),
            process: InitiatingProcess::default(),
            file_origin_url: "https://dl.example/f".into(),
            file_origin_referrer_url: "https://www.example/".into(),
            ..file_event()
        };
        assert_eq!(
            lines(&from_file_event(&ip(), &event, &Lookups::default()).unwrap()),
            ["https://www.example/ Refers_To https://dl.example/f"]
        );
    }
}
