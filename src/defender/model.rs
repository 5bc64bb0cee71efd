//! The JSON of Defender for Endpoint and of Graph hunting, as far as the bridge reads it (`defender.md` 5 and 6).
//!
//! Reading is tolerant, as `defender.md` 5.0 asks: unknown members are ignored, every member may be absent or null,
//! enumerations stay text, times stay text as received.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use serde::{Deserialize, Deserializer};

/// A list answer: `{"value": [...], "@odata.nextLink": "..."}`. A missing or null `value` is an empty list.
#[derive(Debug, Clone, Deserialize)]
pub struct Page<T> {
    /// The entries of this page.
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty", bound(deserialize = "T: Deserialize<'de>"))]
    pub value: Vec<T>,
    /// Where the next page is, if there is one.
    #[serde(default, rename = "@odata.nextLink")]
    pub next_link: Option<String>,
}

/// An alert (`defender.md` 5.5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Alert {
    /// Like `da638400000000000001_-1234567890`.
    #[serde(deserialize_with = "null_is_empty")]
    pub id: String,
    /// Short text.
    pub title: Option<String>,
    /// Long text.
    pub description: Option<String>,
    /// `UnSpecified`, `Informational`, `Low`, `Medium`, `High`.
    pub severity: Option<String>,
    /// The product part that raised it.
    pub detection_source: Option<String>,
    /// UTC, 0 to 7 fraction digits; so are the other times.
    pub alert_creation_time: Option<String>,
    /// First event.
    pub first_event_time: Option<String>,
    /// Last event.
    pub last_event_time: Option<String>,
    /// Last change of the alert.
    pub last_update_time: Option<String>,
    /// 40 hex digits.
    pub machine_id: Option<String>,
    /// Host name.
    pub computer_dns_name: Option<String>,
    /// May be absent, null or empty.
    #[serde(deserialize_with = "null_is_empty")]
    pub evidence: Vec<Evidence>,
}

/// One piece of evidence of an alert. There is no MD5 (`defender.md` 5.5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Evidence {
    /// `User`, `Process`, `File`, `Ip`, `Url`, and others.
    pub entity_type: Option<String>,
    /// Of the file or the process image.
    pub sha1: Option<String>,
    /// Of the file or the process image.
    pub sha256: Option<String>,
    /// Name without folder.
    pub file_name: Option<String>,
    /// Usually the folder, at times the full path.
    pub file_path: Option<String>,
    /// Processes only.
    pub process_id: Option<i64>,
    /// Processes only.
    pub process_creation_time: Option<String>,
    /// Processes only.
    pub parent_process_id: Option<i64>,
    /// Processes only.
    pub parent_process_creation_time: Option<String>,
    /// `Ip` only.
    pub ip_address: Option<String>,
    /// `Url` only: a URL or a host name.
    pub url: Option<String>,
}

/// A file profile (`defender.md` 5.1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct File {
    /// May be null or empty.
    pub sha1: Option<String>,
    /// May be null or empty.
    pub sha256: Option<String>,
    /// Not documented any more, present in some answers.
    pub md5: Option<String>,
}

/// A machine (`defender.md` 5.6), as far as sightings and containment need it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Machine {
    /// 40 hex digits.
    #[serde(deserialize_with = "null_is_empty")]
    pub id: String,
    /// Host name.
    pub computer_dns_name: Option<String>,
    /// `Windows11`, `Linux`, ...
    pub os_platform: Option<String>,
    /// Superseded by `os_architecture`.
    pub os_processor: Option<String>,
    /// `32-bit`, `64-bit`.
    pub os_architecture: Option<String>,
    /// `24H2`, ...
    pub version: Option<String>,
    /// The last full report: UTC, 0 to 7 fraction digits.
    pub last_seen: Option<String>,
    /// `Active`, `Inactive`, ...
    pub health_status: Option<String>,
    /// `Onboarded`, `CanBeOnboarded`, `Unsupported`, `InsufficientInfo`.
    pub onboarding_status: Option<String>,
    /// `None`, `Informational`, `Low`, `Medium`, `High`.
    pub risk_score: Option<String>,
    /// `None`, `Low`, `Medium`, `High`.
    pub exposure_level: Option<String>,
    /// Excluded from the inventory by an administrator.
    #[serde(deserialize_with = "null_is_empty")]
    pub is_excluded: bool,
    /// The machine that this one became part of.
    pub merged_into_machine_id: Option<String>,
    /// The adapters' addresses.
    #[serde(deserialize_with = "null_is_empty")]
    pub ip_addresses: Vec<MachineAddress>,
}

/// An address of a machine's adapter (`defender.md` 5.6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineAddress {
    /// IPv4 or IPv6.
    pub ip_address: Option<String>,
    /// `Up`, `Down`.
    pub operational_status: Option<String>,
}

/// Something that can be done with a machine, or not (`defender.md` 5.11).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AvailableAction {
    /// `FullIsolation`, `RunAntiVirusScan`, ...
    #[serde(deserialize_with = "null_is_empty")]
    pub action: String,
    /// Whether it can be done now.
    #[serde(deserialize_with = "null_is_empty")]
    pub is_available: bool,
}

/// An indicator (`defender.md` 5.12).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Indicator {
    /// Digits.
    #[serde(deserialize_with = "null_is_empty")]
    pub id: String,
    /// Its value.
    #[serde(deserialize_with = "null_is_empty")]
    pub indicator_value: String,
    /// `FileSha1`, `IpAddress`, ...
    #[serde(deserialize_with = "null_is_empty")]
    pub indicator_type: String,
    /// `Allowed`, `Audit`, `Block`, ...; of old ones also `Alert` and `AlertAndBlock`.
    #[serde(deserialize_with = "null_is_empty")]
    pub action: String,
    /// May be absent in spite of being required when it is written.
    pub title: Option<String>,
    /// `User`, `AadApp`.
    pub source_type: Option<String>,
    /// The id of the application or person that made it.
    pub created_by: Option<String>,
}

impl Indicator {
    /// Whether it is of this value; letter case does not count.
    #[must_use]
    pub fn is_of(&self, value: &str) -> bool {
        self.indicator_value.eq_ignore_ascii_case(value)
    }

    /// Whether the application of this id made it; what does not tell is somebody else's.
    #[must_use]
    pub fn is_made_by(&self, client_id: &str) -> bool {
        let by_user = self.source_type.as_deref().is_some_and(|source| source.eq_ignore_ascii_case("User"));
        !by_user && self.created_by.as_deref().is_some_and(|maker| maker.eq_ignore_ascii_case(client_id))
    }
}

/// A machine action (`defender.md` 5.10).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MachineAction {
    /// GUID.
    #[serde(deserialize_with = "null_is_empty")]
    pub id: String,
    /// `Isolate`, `Unisolate`, ...
    #[serde(rename = "type", deserialize_with = "null_is_empty")]
    pub kind: String,
    /// `Pending`, `InProgress`, `Succeeded`, `Failed`, `TimeOut`, `Cancelled`.
    #[serde(deserialize_with = "null_is_empty")]
    pub status: String,
    /// Who asked: of an application its id.
    pub requestor: Option<String>,
    /// The comment it was asked with.
    pub requestor_comment: Option<String>,
    /// `Full`, `Selective` of an isolation; `Quick`, `Full` of a scan.
    pub scope: Option<String>,
    /// 40 hex digits.
    pub machine_id: Option<String>,
    /// Host name.
    pub computer_dns_name: Option<String>,
    /// UTC, 0 to 7 fraction digits.
    pub creation_date_time_utc: Option<String>,
    /// As the other times; see [`MachineAction::updated`].
    pub last_update_date_time_utc: Option<String>,
    /// The same under the name that it has in lists (`defender.md` 5.10).
    pub last_update_time_utc: Option<String>,
}

impl MachineAction {
    /// Whether it isolates.
    #[must_use]
    pub fn is_isolate(&self) -> bool {
        self.kind.eq_ignore_ascii_case("Isolate")
    }

    /// Whether it releases.
    #[must_use]
    pub fn is_unisolate(&self) -> bool {
        self.kind.eq_ignore_ascii_case("Unisolate")
    }

    /// Whether it was carried out.
    #[must_use]
    pub fn has_succeeded(&self) -> bool {
        self.status.eq_ignore_ascii_case("Succeeded")
    }

    /// Whether it will not change any more. A status that is not known may still become anything.
    #[must_use]
    pub fn is_final(&self) -> bool {
        ["Succeeded", "Failed", "TimeOut", "Cancelled"].iter().any(|status| self.status.eq_ignore_ascii_case(status))
    }

    /// When it was asked for; `None` where the service does not say, or not in a form that is known.
    #[must_use]
    pub fn created(&self) -> Option<Timestamp> {
        instant(self.creation_date_time_utc.as_deref()?)
    }

    /// When it changed last; `None` as for [`MachineAction::created`].
    #[must_use]
    pub fn updated(&self) -> Option<Timestamp> {
        let text = self.last_update_date_time_utc.as_deref().or(self.last_update_time_utc.as_deref());
        instant(text?)
    }
}

/// A time as the service writes it. All are in UTC, whether they say so or not.
fn instant(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let zoneless = || text.parse::<DateTime>().ok().and_then(|time| Offset::UTC.to_timestamp(time).ok());
    text.parse().ok().or_else(zoneless)
}

/// A row of `DeviceFileEvents`. Text is empty when unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileEvent {
    /// As received: UTC, up to seven fraction digits.
    pub timestamp: String,
    /// 40 hex digits, or empty.
    pub device_id: String,
    /// Host name.
    pub device_name: String,
    /// `FileCreated`, `FileModified`, `FileRenamed`, `FileDeleted`, ...
    pub action_type: String,
    /// Name without folder.
    pub file_name: String,
    /// Usually the full path, at times the folder.
    pub folder_path: String,
    /// Renames only.
    pub previous_file_name: String,
    /// Of the file.
    pub hashes: Hashes,
    /// Where it was downloaded from.
    pub file_origin_url: String,
    /// The page that linked to the download.
    pub file_origin_referrer_url: String,
    /// Who did it.
    pub process: InitiatingProcess,
    /// As decimal text; unique only together with device and time.
    pub report_id: String,
}

/// A row of `DeviceNetworkEvents`. Text is empty when unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkEvent {
    /// As received: UTC, up to seven fraction digits.
    pub timestamp: String,
    /// 40 hex digits, or empty.
    pub device_id: String,
    /// Host name.
    pub device_name: String,
    /// `ConnectionSuccess`, `InboundConnectionAccepted`, ...
    pub action_type: String,
    /// Address of the other side, as received.
    pub remote_ip: String,
    /// URL or host name of the other side.
    pub remote_url: String,
    /// Address of the device.
    pub local_ip: String,
    /// Who did it.
    pub process: InitiatingProcess,
    /// As decimal text; unique only together with device and time.
    pub report_id: String,
}

/// An event of either hunting table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A row of `DeviceNetworkEvents`.
    Network(NetworkEvent),
    /// A row of `DeviceFileEvents`.
    File(FileEvent),
}

impl From<NetworkEvent> for Event {
    fn from(event: NetworkEvent) -> Self {
        Self::Network(event)
    }
}

impl From<FileEvent> for Event {
    fn from(event: FileEvent) -> Self {
        Self::File(event)
    }
}

/// An alert of the last 30 days as hunting knows it (`alerts_by_observable.kql`). Text is empty when unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecentAlert {
    /// As [`Alert::id`].
    pub id: String,
    /// When it was raised: UTC, up to seven fraction digits.
    pub timestamp: String,
    /// When the observable was last seen in its evidence.
    pub last_evidence: String,
    /// Of the file in that evidence: 40 hex digits, or empty.
    pub sha1: String,
    /// Short text.
    pub title: String,
    /// `Malware`, `LateralMovement`, ...
    pub category: String,
    /// As [`Alert::severity`].
    pub severity: String,
    /// The product part that raised it.
    pub detection_source: String,
}

/// What hunting knows about an alert beside [`RecentAlert`] (`alert_evidence.kql`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlertDetails {
    /// 40 hex digits, or empty.
    pub device_id: String,
    /// Host name.
    pub device_name: String,
    /// Without process ids, of which hunting has none.
    pub evidence: Vec<Evidence>,
}

/// The hashes that are known of one file; empty text when unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Hashes {
    /// 40 hex digits.
    pub sha1: String,
    /// 64 hex digits.
    pub sha256: String,
    /// 32 hex digits.
    pub md5: String,
}

/// The process that caused an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitiatingProcess {
    /// Of its image.
    pub hashes: Hashes,
    /// Name of its image.
    pub file_name: String,
    /// Usually the full path of its image.
    pub folder_path: String,
    /// Name of its parent's image.
    pub parent_file_name: String,
}

/// What hunting knows of a device (`device_context.kql`). Text is empty when unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceContext {
    /// 40 hex digits.
    pub device_id: String,
    /// `Windows11`, `Linux`, ...
    pub os_platform: String,
    /// `32-bit`, `64-bit`.
    pub os_architecture: String,
    /// `24H2`, ...
    pub os_version_info: String,
    /// Latest row of each adapter of any status, ordered by MAC address.
    pub adapters: Vec<Adapter>,
}

/// A network adapter of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adapter {
    /// As given, without separators.
    pub mac_address: String,
    /// As listed.
    pub addresses: Vec<String>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn data<T: for<'de> Deserialize<'de>>(name: &str) -> T {
        let path = format!("{}/tests/data/defender/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[rstest]
    #[case("machineaction_isolate_201.json", "Isolate", false, false)]
    #[case("machineaction_isolate_existing.json", "Isolate", false, false)]
    #[case("machineaction_isolate_succeeded.json", "Isolate", true, true)]
    #[case("machineaction_isolate_failed.json", "Isolate", true, false)]
    #[case("machineaction_isolate_timeout.json", "Isolate", true, false)]
    #[case("machineaction_isolate_cancelled.json", "Isolate", true, false)]
    #[case("machineaction_unisolate_201.json", "Unisolate", false, false)]
    #[case("machineaction_restrict_201.json", "RestrictCodeExecution", false, false)]
    #[case("machineaction_unrestrict_201.json", "UnrestrictCodeExecution", false, false)]
    #[case("machineaction_scan_201.json", "RunAntiVirusScan", false, false)]
    #[case("machineaction_collect_201.json", "CollectInvestigationPackage", false, false)]
    fn actions_are_read(#[case] file: &str, #[case] kind: &str, #[case] is_final: bool, #[case] succeeded: bool) {
        let action: MachineAction = data(file);
        assert_eq!((action.kind.as_str(), action.is_final(), action.has_succeeded()), (kind, is_final, succeeded));
        assert_eq!((action.is_isolate(), action.is_unisolate()), (kind == "Isolate", kind == "Unisolate"));
        assert!(!action.id.is_empty() && action.requestor.is_some() && action.requestor_comment.is_some());
        assert!(action.created() <= action.updated() && action.created().is_some());
    }

    #[rstest]
    #[case("machineactions_list_ok.json")]
    #[case("machine_machineactions_ok.json")]
    fn lists_of_actions_tell_their_last_change_under_either_name(#[case] file: &str) {
        let list: Page<MachineAction> = data(file);
        assert!(!list.value.is_empty() && list.value.iter().all(|action| action.updated().is_some()), "{list:?}");
        let both: MachineAction = serde_json::from_str(
            r#"{"lastUpdateDateTimeUtc": "2026-11-20T09:00:01Z", "lastUpdateTimeUtc": "2026-11-20T09:00:00Z"}"#,
        )
        .unwrap();
        assert_eq!(both.updated(), Some("2026-11-20T09:00:01Z".parse().unwrap()));
    }

    #[rstest]
    #[case::in_any_case("SUCCEEDED", true)]
    #[case::not_documented("Expired", false)]
    #[case::absent("", false)]
    fn an_unknown_status_may_still_become_anything(#[case] status: &str, #[case] is_final: bool) {
        let action = MachineAction { status: status.to_owned(), ..MachineAction::default() };
        assert_eq!(action.is_final(), is_final);
    }

    #[rstest]
    #[case("2026-11-20T09:10:48Z", Some("2026-11-20T09:10:48Z"))]
    #[case("2026-11-20T09:10:48.9132635Z", Some("2026-11-20T09:10:48.9132635Z"))]
    #[case("2026-11-20T10:10:48+01:00", Some("2026-11-20T09:10:48Z"))]
    #[case(" 2026-11-20T09:10:48.9 ", Some("2026-11-20T09:10:48.9Z"))]
    #[case("0001-01-01T00:00:00", Some("0001-01-01T00:00:00Z"))]
    #[case("soon", None)]
    #[case("", None)]
    fn times_are_in_utc_whether_they_say_so_or_not(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(instant(text), expected.map(|time| time.parse().unwrap()));
    }

    #[test]
    fn machines_are_read_however_sparse() {
        let machine: Machine = data("machine_ok.json");
        assert_eq!((machine.risk_score.as_deref(), machine.exposure_level.as_deref()), (Some("High"), Some("Medium")));
        assert!(machine.last_seen.is_some() && !machine.is_excluded);
        let sparse: Machine = data("machine_sparse.json");
        assert!(!sparse.id.is_empty() && sparse.ip_addresses.is_empty(), "{sparse:?}");
    }
}
