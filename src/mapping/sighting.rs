//! Alerts and events to sightings: ids, times, severity, targets and links (`relay.md` 6.2 to 6.6 and 6.8). Their
//! relations are in `relations`.

use std::collections::HashSet;

use jiff::Timestamp;
use uuid::{Uuid, uuid};

use super::{Device, Event, Lookups, instant, relations};
use crate::{
    defender::model::{Alert, FileEvent, NetworkEvent},
    relay::{
        Observable,
        ctim::{
            DataTable, MAX_DESCRIPTION_CHARS, MAX_TITLE_CHARS, MAX_URI_CHARS, ObservedTime, Sighting, Target, Typed,
        },
        observable::address,
    },
};

/// Namespace of sighting ids: the version-5 UUID of `urn:defender-bridge:sighting` in the URL namespace
/// (`relay.md` 6.3).
const NAMESPACE: Uuid = uuid!("7e0ccc77-5b26-5899-866b-e57261117d27");

/// An alert (6.4). `None` when it has no usable time, without which there is no sighting; the caller logs it.
pub fn from_alert(observable: &Observable, alert: &Alert, lookups: &Lookups) -> Option<Sighting> {
    let time = |text: &Option<String>| instant::parse(text.as_deref()?);
    let start = time(&alert.first_event_time).or_else(|| time(&alert.alert_creation_time))?;
    let end = time(&alert.last_event_time).filter(|end| *end >= start).unwrap_or(start);
    let observed_time = observed(start, end)?;

    let mut sighting = Sighting::new(id(observable, "alert", &[&alert.id]), observed_time);
    sighting.timestamp = alert.last_update_time.as_deref().and_then(instant::normalise);
    sighting.title = cut(alert.title.as_deref(), MAX_TITLE_CHARS);
    sighting.description = cut(alert.description.as_deref(), MAX_DESCRIPTION_CHARS);
    sighting.severity = Some(severity(alert.severity.as_deref()));
    sighting.source_uri = alert_link(&alert.id, lookups);
    sighting.external_ids = Some(alert.id.clone()).filter(|id| !id.is_empty()).into_iter().collect();
    let name = alert.computer_dns_name.as_deref().unwrap_or_default();
    let device_id = alert.machine_id.as_deref().unwrap_or_default();
    sighting.targets = target(name, device_id, &sighting.observed_time, lookups).into_iter().collect();
    sighting.relations = relations::of_alert(alert, lookups);
    Some(sighting)
}

/// An event (6.5). `None` when it has no usable time; the caller logs it.
pub fn from_event(observable: &Observable, event: &Event, lookups: &Lookups) -> Option<Sighting> {
    match event {
        Event::Network(event) => from_network_event(observable, event, lookups),
        Event::File(event) => from_file_event(observable, event, lookups),
    }
}

/// A row of `DeviceNetworkEvents` (6.5). `None` when it has no usable time.
pub fn from_network_event(observable: &Observable, event: &NetworkEvent, lookups: &Lookups) -> Option<Sighting> {
    let id = id(observable, "event", &["DeviceNetworkEvents", &event.device_id, &event.report_id, &event.timestamp]);
    let mut sighting = seen_once(id, &event.timestamp)?;
    sighting.data = action_table(&event.action_type);
    sighting.targets =
        target(&event.device_name, &event.device_id, &sighting.observed_time, lookups).into_iter().collect();
    sighting.relations = relations::of_network_event(event, lookups);
    Some(sighting)
}

/// A row of `DeviceFileEvents` (6.5). `None` when it has no usable time.
pub fn from_file_event(observable: &Observable, event: &FileEvent, lookups: &Lookups) -> Option<Sighting> {
    let id = id(observable, "event", &["DeviceFileEvents", &event.device_id, &event.report_id, &event.timestamp]);
    let mut sighting = seen_once(id, &event.timestamp)?;
    sighting.data = action_table(&event.action_type);
    sighting.targets =
        target(&event.device_name, &event.device_id, &sighting.observed_time, lookups).into_iter().collect();
    sighting.relations = relations::of_file_event(event, lookups);
    Some(sighting)
}

fn seen_once(id: String, timestamp: &str) -> Option<Sighting> {
    let at = instant::parse(timestamp)?;
    Some(Sighting::new(id, observed(at, at)?))
}

fn observed(start: Timestamp, end: Timestamp) -> Option<ObservedTime> {
    Some(ObservedTime { start_time: instant::to_text(start)?, end_time: instant::to_text(end)? })
}

/// The same work done twice gives the same ids (6.3).
fn id(observable: &Observable, what: &str, key: &[&str]) -> String {
    let mut name = [observable.kind.as_str(), &observable.value, what].join("|");
    for part in key {
        name.push('|');
        name.push_str(part);
    }
    format!("transient:sighting-{}", Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}

/// At most `max_chars` characters; nothing for a blank text.
fn cut(text: Option<&str>, max_chars: usize) -> Option<String> {
    let text = text.filter(|text| !text.trim().is_empty())?;
    Some(text.chars().take(max_chars).collect())
}

/// 6.8; what is not known is `Unknown`, never null (defect 42).
fn severity(text: Option<&str>) -> &'static str {
    match text.unwrap_or_default().to_ascii_lowercase().as_str() {
        "informational" => "Info",
        "low" => "Low",
        "medium" => "Medium",
        "high" => "High",
        _ => "Unknown",
    }
}

/// The alert's page in the portal; the tenant is named, so that an analyst with several lands in the right one
/// (defect 53).
fn alert_link(alert_id: &str, lookups: &Lookups) -> Option<String> {
    let portal = lookups.portal_url.trim_end_matches('/');
    let link = format!("{portal}/alerts/{}?tid={}", encoded(alert_id), encoded(&lookups.tenant_id));
    (!alert_id.is_empty() && !portal.is_empty() && link.chars().count() <= MAX_URI_CHARS).then_some(link)
}

/// Percent-encodes all but the unreserved characters of RFC 3986: fits one path segment or query value.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// 6.6; nothing when neither the name nor the id of the device is known (defect 41).
fn target(name: &str, device_id: &str, observed_time: &ObservedTime, lookups: &Lookups) -> Option<Target> {
    let mut observables = vec![Typed::new("hostname", name), Typed::new("ms_machine_id", device_id)];
    observables.retain(|one| !one.value.trim().is_empty());
    if observables.is_empty() {
        return None;
    }
    let unknown = Device::default();
    let device = lookups.device(device_id).unwrap_or(&unknown);
    let mut adapters: Vec<_> = device.adapters.iter().collect();
    adapters.sort_by_key(|adapter| &adapter.mac_address);
    for adapter in adapters {
        observables.push(Typed::new("mac_address", &adapter.mac_address));
        let addresses = adapter.addresses.iter().filter_map(|text| address(text));
        observables.extend(addresses.map(|(kind, value)| Typed::new(kind.as_str(), value)));
    }
    let mut seen = HashSet::new();
    observables.retain(|one| !one.value.trim().is_empty() && seen.insert(one.clone()));
    Some(Target { kind: "endpoint", observables, observed_time: observed_time.clone(), os: device.os.clone() })
}

/// What happened, as a table of one cell; left out when it is not known (defect 52).
fn action_table(action_type: &str) -> Option<DataTable> {
    (!action_type.trim().is_empty()).then(|| DataTable::single("ActionType", action_type))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{super::fixtures::*, *};
    use crate::defender::model::Adapter;

    /// Defects 43 to 45: count is one, the version one constant, the id fits CTIM and is the same next time.
    #[test]
    fn shared_members_are_constants_and_ids_are_repeatable() {
        let found = from_alert(&ip(), &alert(vec![]), &Lookups::default()).unwrap();
        assert_eq!((found.count, found.schema_version, found.confidence), (1, "1.3.28", "High"));
        assert!(found.id.starts_with("transient:sighting-") && found.id.len() == 19 + 36, "{}", found.id);
        assert_eq!(from_alert(&ip(), &alert(vec![]), &Lookups::default()).unwrap().id, found.id);
        let other = Observable::parse("domain", "203.0.113.50").unwrap();
        assert_ne!(from_alert(&other, &alert(vec![]), &Lookups::default()).unwrap().id, found.id);
    }

    #[test]
    fn an_events_id_depends_on_table_device_report_and_time_as_received() {
        let id = |event: &NetworkEvent| from_network_event(&ip(), event, &Lookups::default()).unwrap().id;
        let event = network_event();
        let changed = [
            NetworkEvent { device_id: String::new(), ..event.clone() },
            NetworkEvent { report_id: "8".into(), ..event.clone() },
            NetworkEvent { timestamp: "2024-03-05T10:14:02.50Z".into(), ..event.clone() },
        ];
        for changed in changed {
            assert_ne!(id(&changed), id(&event), "{changed:?}");
        }
        assert_eq!(id(&NetworkEvent { device_name: "x".into(), ..event.clone() }), id(&event));
        let hash = Observable::parse("sha1", &sha1("f")).unwrap();
        assert_ne!(from_file_event(&hash, &file_event(), &Lookups::default()).unwrap().id, id(&event));
    }

    /// Defect 46: the last event ends the observation.
    #[rstest]
    #[case::both(Some("2024-03-05T10:00:00.1239Z"), Some("2024-03-05T11:00:00Z"), "10:00:00.123", "11:00:00.000")]
    #[case::end_before_start(
        Some("2024-03-05T10:00:00Z"),
        Some("2024-03-05T09:00:00Z"),
        "10:00:00.000",
        "10:00:00.000"
    )]
    #[case::no_end(Some("2024-03-05T10:00:00Z"), None, "10:00:00.000", "10:00:00.000")]
    #[case::no_start(None, Some("2024-03-05T11:00:00Z"), "10:14:02.500", "11:00:00.000")]
    #[case::odd_start(Some("soon"), Some("never"), "10:14:02.500", "10:14:02.500")]
    fn an_alert_is_observed_from_its_first_to_its_last_event(
        #[case] first: Option<&str>,
        #[case] last: Option<&str>,
        #[case] start: &str,
        #[case] end: &str,
    ) {
        let alert = Alert {
            first_event_time: first.map(str::to_owned),
            last_event_time: last.map(str::to_owned),
            ..alert(vec![])
        };
        let found = from_alert(&ip(), &alert, &Lookups::default()).unwrap();
        assert_eq!(found.observed_time.start_time, format!("2024-03-05T{start}Z"));
        assert_eq!(found.observed_time.end_time, format!("2024-03-05T{end}Z"));
        assert_eq!(found.targets[0].observed_time, found.observed_time);
    }

    #[test]
    fn what_has_no_time_is_skipped() {
        let alert = Alert { alert_creation_time: None, ..alert(vec![]) };
        assert_eq!(from_alert(&ip(), &alert, &Lookups::default()), None);
        let event = NetworkEvent { timestamp: String::new(), ..network_event() };
        assert_eq!(from_event(&ip(), &event.into(), &Lookups::default()), None);
    }

    /// Defects 42 and 53: an alert without most of its members is still a valid sighting, and long texts are cut.
    #[test]
    fn members_that_are_empty_are_left_out_and_long_ones_are_cut() {
        let bare = from_alert(&ip(), &alert(vec![]), &Lookups::default()).unwrap();
        let json = serde_json::to_value(&bare).unwrap();
        for member in ["title", "description", "timestamp", "source_uri", "data"] {
            assert!(json.get(member).is_none(), "{member}");
        }
        assert_eq!(json["severity"], "Unknown");
        assert_eq!(json["external_ids"], json!(["da1"]));

        let long = Alert {
            title: Some("ü".repeat(1025)),
            description: Some("d".repeat(5001)),
            last_update_time: Some("2024-03-05T11:00:00.1Z".into()),
            ..alert(vec![])
        };
        let long = from_alert(&ip(), &long, &Lookups::default()).unwrap();
        assert_eq!(long.title.unwrap().chars().count(), 1024);
        assert_eq!(long.description.unwrap().len(), 5000);
        assert_eq!(long.timestamp.unwrap(), "2024-03-05T11:00:00.100Z");
        let blank = Alert { title: Some(" ".into()), description: Some(String::new()), ..alert(vec![]) };
        let blank = from_alert(&ip(), &blank, &Lookups::default()).unwrap();
        assert_eq!((blank.title, blank.description), (None, None));
    }

    #[rstest]
    #[case("Informational", "Info")]
    #[case("LOW", "Low")]
    #[case("medium", "Medium")]
    #[case("High", "High")]
    #[case("UnSpecified", "Unknown")]
    #[case("Critical", "Unknown")]
    #[case("", "Unknown")]
    fn a_severity_is_never_null(#[case] defender: &str, #[case] ctim: &str) {
        // Defect 42.
        let alert = Alert { severity: Some(defender.into()), ..alert(vec![]) };
        assert_eq!(from_alert(&ip(), &alert, &Lookups::default()).unwrap().severity, Some(ctim));
    }

    /// Defect 53: the link leads to the portal of today, names the tenant, and holds no raw text.
    #[test]
    fn an_alerts_link_is_encoded_and_of_bounded_length() {
        let link = |id: &str| {
            let lookups =
                Lookups { portal_url: "https://p.example/".into(), tenant_id: "t&1".into(), ..Lookups::default() };
            from_alert(&ip(), &Alert { id: id.into(), ..alert(vec![]) }, &lookups).unwrap().source_uri
        };
        assert_eq!(link("da1_-2").unwrap(), "https://p.example/alerts/da1_-2?tid=t%261");
        assert_eq!(link("a/../b ü").unwrap(), "https://p.example/alerts/a%2F..%2Fb%20%C3%BC?tid=t%261");
        assert_eq!(link(""), None);
        assert_eq!(link(&"a".repeat(2048)), None);
    }

    /// Defect 52.
    #[test]
    fn an_events_action_is_a_table_of_one_cell_or_left_out() {
        let data = |action: &str| {
            let event = NetworkEvent { action_type: action.into(), ..network_event() };
            serde_json::to_value(from_network_event(&ip(), &event, &Lookups::default()).unwrap()).unwrap()["data"]
                .clone()
        };
        assert_eq!(
            data("ConnectionSuccess"),
            json!({"columns": [{"name": "ActionType", "type": "string"}], "rows": [["ConnectionSuccess"]]})
        );
        assert_eq!(data(""), Value::Null);
    }

    fn target_lines(target: &Target) -> Vec<String> {
        target.observables.iter().map(|one| format!("{} {}", one.kind, one.value)).collect()
    }

    fn with_adapters(adapters: Vec<(&str, Vec<&str>)>) -> Lookups {
        let adapter = |(mac, addresses): (&str, Vec<&str>)| Adapter {
            mac_address: mac.into(),
            addresses: addresses.into_iter().map(str::to_owned).collect(),
        };
        let device = Device { os: Some("Ubuntu".into()), adapters: adapters.into_iter().map(adapter).collect() };
        Lookups { devices: HashMap::from([(MACHINE.to_owned(), device)]), ..Lookups::default() }
    }

    /// Defects 25 and 40: adapters in order, addresses parsed, nothing empty, nothing twice.
    #[test]
    fn a_target_names_the_device_and_its_adapters_in_order() {
        let lookups = with_adapters(vec![
            ("0B", vec!["192.0.2.2", "192.0.2.2"]),
            ("", vec!["192.0.2.9"]),
            ("0A", vec!["FE80::1%3", "192.0.2.2", "", "none", "1.2.3.4.5"]),
        ]);
        let found = from_alert(&ip(), &alert(vec![]), &lookups).unwrap();
        assert_eq!(
            target_lines(&found.targets[0]),
            [
                "hostname pc7.example",
                &format!("ms_machine_id {MACHINE}"),
                "ip 192.0.2.9",
                "mac_address 0A",
                "ipv6 fe80::1",
                "ip 192.0.2.2",
                "mac_address 0B",
            ]
        );
        assert_eq!(found.targets[0].os.as_deref(), Some("Ubuntu"));
    }

    /// Defects 38, 40 and 41: a device that is not known costs detail only; its name or its id is enough for a target.
    #[rstest]
    #[case(Some("pc7.example"), Some(MACHINE), 2)]
    #[case(Some("pc7.example"), None, 1)]
    #[case(None, Some(MACHINE), 1)]
    #[case(Some(""), Some(" "), 0)]
    #[case(None, None, 0)]
    fn a_target_needs_a_name_or_an_id(
        #[case] name: Option<&str>,
        #[case] id: Option<&str>,
        #[case] observables: usize,
    ) {
        let alert =
            Alert { computer_dns_name: name.map(str::to_owned), machine_id: id.map(str::to_owned), ..alert(vec![]) };
        let found = from_alert(&ip(), &alert, &Lookups::default()).unwrap();
        assert_eq!(found.targets.iter().map(|target| target.observables.len()).sum::<usize>(), observables);
        assert_eq!(found.targets.len(), usize::from(observables > 0));
        assert!(found.targets.iter().all(|target| target.os.is_none()));
    }
}
