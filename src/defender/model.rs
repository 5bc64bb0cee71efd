//! The JSON of Defender for Endpoint and of Graph hunting, as far as the bridge reads it (`defender.md` 5 and 6).
//!
//! Reading is tolerant, as `defender.md` 5.0 asks: unknown members are ignored, every member may be absent or null,
//! enumerations stay text, times stay text as received.

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

/// A machine (`defender.md` 5.6), as far as sightings need it.
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
