//! From Defender's models to the relay's types (`relay.md` 5.3, 5.5 and 6).
//!
//! Pure: no call is made here. What a mapping needs from elsewhere (file profiles, devices) is named by
//! [`wanted_profiles`] and [`wanted_devices`], read by the worker, and handed in as [`Lookups`]; what is missing there
//! is not known, and costs detail, never the sighting.

pub mod action;
#[cfg(test)]
mod fixtures;
mod hashes;
pub mod hunted;
mod instant;
mod place;
mod relations;
pub mod sighting;
#[cfg(test)]
mod worked_pairs;

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use crate::{
    defender::model::{Adapter, Alert, DeviceContext, Hashes, Machine},
    relay::observable::hex,
};

pub use crate::defender::model::Event;

/// What was looked up for a request, and where links go.
#[derive(Debug, Clone, Default)]
pub struct Lookups {
    /// File profiles by lower-case hash, the one that [`wanted_profiles`] named. Missing = unknown to Defender.
    pub files: HashMap<String, Hashes>,
    /// Devices by lower-case id, as [`wanted_devices`] named it. Missing = nothing known.
    pub devices: HashMap<String, Device>,
    /// Base of portal links, with or without a final slash.
    pub portal_url: String,
    /// Goes into portal links.
    pub tenant_id: String,
}

impl Lookups {
    /// What is known of the device with this id, as Defender wrote it.
    fn device(&self, id: &str) -> Option<&Device> {
        self.devices.get(&id.trim().to_ascii_lowercase())
    }
}

/// What is known of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// `Windows11 64-bit version: 23H2`; see [`os_of_machine`] and [`os_of_context`].
    pub os: Option<String>,
    /// In any order; a target lists them by MAC address.
    pub adapters: Vec<Adapter>,
}

impl Event {
    fn timestamp(&self) -> &str {
        match self {
            Self::Network(event) => &event.timestamp,
            Self::File(event) => &event.timestamp,
        }
    }

    fn device_id(&self) -> &str {
        match self {
            Self::Network(event) => &event.device_id,
            Self::File(event) => &event.device_id,
        }
    }

    fn report_id(&self) -> &str {
        match self {
            Self::Network(event) => &event.report_id,
            Self::File(event) => &event.report_id,
        }
    }

    /// The event's own hash sets, in writing order.
    fn hashes(&self) -> Vec<&Hashes> {
        match self {
            Self::Network(event) => vec![&event.process.hashes],
            Self::File(event) => vec![&event.hashes, &event.process.hashes],
        }
    }
}

/// The `os` text of a machine that was read over REST (`relay.md` 6.6): `Windows11 64-bit version: 23H2`.
pub fn os_of_machine(machine: &Machine) -> Option<String> {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let architecture = Some(given(&machine.os_architecture)).filter(|text| !text.trim().is_empty());
    os_text(
        &given(&machine.os_platform),
        &architecture.unwrap_or_else(|| given(&machine.os_processor)),
        &given(&machine.version),
    )
}

/// The `os` text of a device as hunting knows it (`relay.md` 6.6, `DESIGN.md` 10.10).
pub fn os_of_context(context: &DeviceContext) -> Option<String> {
    os_text(&context.os_platform, &context.os_architecture, &context.os_version_info)
}

fn os_text(platform: &str, architecture: &str, version: &str) -> Option<String> {
    let parts = [platform.trim(), architecture.trim()];
    let mut text = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return None;
    }
    if !version.trim().is_empty() {
        text.push_str(" version: ");
        text.push_str(version.trim());
    }
    Some(text)
}

/// Newest first by `alertCreationTime` as instants (defect 26), ties by id, descending (`relay.md` 5.3). An alert whose
/// time is missing goes last. Repeats of an id, as pages that shift under a reader give, are removed, so that the
/// length afterwards is A.
pub fn sort_alerts(alerts: &mut Vec<Alert>) {
    let mut seen = HashSet::new();
    alerts.retain(|alert| alert.id.is_empty() || seen.insert(alert.id.clone()));
    alerts.sort_by_cached_key(|alert| {
        let created = alert.alert_creation_time.as_deref().and_then(instant::parse);
        Reverse((created, alert.id.clone()))
    });
}

/// Newest first by `Timestamp` as instants (defect 26); ties by device and report, so that the order does not depend
/// on the answer's. Repeats of an event, told by device, time and report, are removed.
pub fn sort_events(events: &mut Vec<Event>) {
    let key =
        |event: &Event| (event.device_id().to_owned(), event.timestamp().to_owned(), event.report_id().to_owned());
    let mut seen = HashSet::new();
    events.retain(|event| event.report_id().is_empty() || seen.insert(key(event)));
    events.sort_by_cached_key(|event| (Reverse(instant::parse(event.timestamp())), key(event)));
}

/// Hashes (SHA-1, else SHA-256, never MD5) of the file profiles that complete hash sets, first needed first, each once
/// (`relay.md` 5.5 and 6.7). What is looked up goes into [`Lookups::files`] under the hash named here.
pub fn wanted_profiles<'a>(
    alerts: impl IntoIterator<Item = &'a Alert>,
    events: impl IntoIterator<Item = &'a Event>,
) -> Vec<String> {
    let evidence = alerts.into_iter().flat_map(|alert| &alert.evidence).filter(|item| relations::has_hashes(item));
    let of_evidence = evidence.filter_map(|item| hashes::profile_key(&hashes::of_evidence(item)));
    let of_events = events.into_iter().flat_map(Event::hashes).filter_map(hashes::profile_key);
    distinct(of_evidence.chain(of_events))
}

/// Ids of the devices that targets name, first needed first, each once, in lower case. Only ids of 40 hexadecimal
/// digits: the machine route takes names too, and a name could mean another device.
pub fn wanted_devices<'a>(
    alerts: impl IntoIterator<Item = &'a Alert>,
    events: impl IntoIterator<Item = &'a Event>,
) -> Vec<String> {
    let of_alerts = alerts.into_iter().filter_map(|alert| alert.machine_id.as_deref());
    let of_events = events.into_iter().map(Event::device_id);
    distinct(of_alerts.chain(of_events).filter_map(|id| hex(id.trim(), 40)))
}

fn distinct(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{fixtures::*, *};
    use crate::defender::model::{FileEvent, InitiatingProcess, NetworkEvent};

    /// Defects 38 and 39.
    #[rstest]
    #[case(Some("Windows11"), Some("64-bit"), Some("x64"), Some("23H2"), Some("Windows11 64-bit version: 23H2"))]
    #[case(Some("Windows10"), None, Some("x64"), Some("1903"), Some("Windows10 x64 version: 1903"))]
    #[case(Some("Windows10"), Some(""), Some("x64"), None, Some("Windows10 x64"))]
    #[case(Some("Ubuntu"), None, None, None, Some("Ubuntu"))]
    #[case(None, Some("64-bit"), None, Some("7"), Some("64-bit version: 7"))]
    #[case(None, None, None, Some("23H2"), None)]
    #[case(Some(" "), Some(""), None, None, None)]
    fn the_operating_system_is_what_is_known_of_it(
        #[case] platform: Option<&str>,
        #[case] architecture: Option<&str>,
        #[case] processor: Option<&str>,
        #[case] version: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let machine = Machine {
            os_platform: own(platform),
            os_architecture: own(architecture),
            os_processor: own(processor),
            version: own(version),
            ..Machine::default()
        };
        assert_eq!(os_of_machine(&machine).as_deref(), expected);
        if processor.is_none() {
            let context = DeviceContext {
                os_platform: platform.unwrap_or_default().into(),
                os_architecture: architecture.unwrap_or_default().into(),
                os_version_info: version.unwrap_or_default().into(),
                ..DeviceContext::default()
            };
            assert_eq!(os_of_context(&context).as_deref(), expected);
        }
    }

    /// Defect 26: instants, not text.
    #[test]
    fn alerts_are_sorted_newest_first_by_instant_and_then_by_id() {
        let at = |id: &str, time: Option<&str>| Alert {
            id: id.into(),
            alert_creation_time: time.map(str::to_owned),
            ..Alert::default()
        };
        let mut alerts = vec![
            at("none", None),
            at("a", Some("2024-01-01T00:00:12Z")),
            at("b", Some("2024-01-01T00:00:12.9Z")),
            at("c", Some("2024-01-01T00:00:12.95Z")),
            at("e", Some("2024-01-01T00:00:12.900Z")),
            at("a", Some("2024-01-01T00:00:12Z")),
        ];
        sort_alerts(&mut alerts);
        assert_eq!(alerts.iter().map(|alert| alert.id.as_str()).collect::<Vec<_>>(), ["c", "e", "b", "a", "none"]);
    }

    /// Defects 24 and 26: newest first, and an event that comes twice is one.
    #[test]
    fn events_are_sorted_newest_first_by_instant_and_repeats_are_dropped() {
        let at = |report: &str, time: &str| -> Event {
            NetworkEvent { report_id: report.into(), timestamp: time.into(), ..network_event() }.into()
        };
        let mut events = vec![
            at("1", "2024-01-01T00:00:12Z"),
            at("2", "2024-01-01T00:00:12.9Z"),
            at("3", "2024-01-01T00:00:12.95Z"),
            at("1", "2024-01-01T00:00:12Z"),
            at("1", "2024-01-01T00:00:13Z"),
            at("4", ""),
        ];
        sort_events(&mut events);
        assert_eq!(events.iter().map(Event::report_id).collect::<Vec<_>>(), ["1", "3", "2", "1", "4"]);
    }

    #[test]
    fn profiles_and_devices_are_wanted_once_each_in_the_order_of_need() {
        let mut upper = file("A", "f");
        upper.sha256 = Some("b".repeat(64));
        let complete = Hashes { sha1: sha1("c"), sha256: "c".repeat(64), md5: "c".repeat(32) };
        let alerts = [alert(vec![user(), upper, file("a", "f"), file("", "g"), address("192.0.2.1")])];
        let events: [Event; 3] = [
            FileEvent { device_id: MACHINE.to_uppercase(), ..file_event() }.into(),
            NetworkEvent {
                device_id: "pc8".into(),
                process: InitiatingProcess { hashes: complete, ..InitiatingProcess::default() },
                ..network_event()
            }
            .into(),
            NetworkEvent {
                device_id: "1".repeat(40),
                process: InitiatingProcess {
                    hashes: Hashes { md5: "d".repeat(32), ..Hashes::default() },
                    ..InitiatingProcess::default()
                },
                ..network_event()
            }
            .into(),
        ];
        assert_eq!(wanted_profiles(&alerts, &events), [sha1("a"), sha1("f")]);
        assert_eq!(wanted_devices(&alerts, &events), [MACHINE.to_owned(), "1".repeat(40)]);
    }
}
