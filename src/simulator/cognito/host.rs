//! One host: as data that stories, tests and controls write, and as the JSON of the API (`cognito.md` 3.4, call 1).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::scenario::distance;
use super::Version;
use super::state::{Entry, State};

/// A point in time: fixed, or so long before the story was told.
///
/// As JSON a time, or a distance like `@-40m` (`d`, `h`, `m`, `s`). Those follow the story when it is told anew, so
/// that a host and its machine in Defender stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Moment {
    /// Then.
    At(Timestamp),
    /// So long before the story was told.
    Ago(SignedDuration),
}

impl Moment {
    /// The time, if the story was told at `told`.
    pub(super) fn at(self, told: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(distance) => told.checked_sub(distance).unwrap_or(told),
        }
    }
}

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let read = match text.strip_prefix("@-") {
            Some(ago) => distance(ago).map(|seconds| Self::Ago(SignedDuration::from_secs(seconds))),
            None => text.parse().ok().map(Self::At),
        };
        read.ok_or_else(|| format!("'{text}' is neither a time nor a distance like @-40m"))
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        match moment {
            Moment::At(at) => at.to_string(),
            Moment::Ago(distance) => format!("@-{}s", distance.as_secs()),
        }
    }
}

/// What a brain knows of a host's names and hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// `kerberos`, `dns`, `rdns`, `mac`, `windows_defender_name`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Like `fin-ws-07.corp.example`.
    pub value: String,
}

/// A note as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// Given by the brain if 0.
    #[serde(default)]
    pub id: u64,
    /// When it was added.
    pub created: Moment,
    /// Who added it.
    pub created_by: String,
    /// When it was last changed.
    #[serde(default)]
    pub modified: Option<Moment>,
    /// Who changed it last.
    #[serde(default)]
    pub modified_by: Option<String>,
    /// Not escaped.
    pub text: String,
}

/// A host as data. In JSON only `id` and `name` are required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// From 1.
    pub id: u64,
    /// A hostname, `IP-a.b.c.d`, or a display name.
    pub name: String,
    /// Its present address.
    #[serde(default)]
    pub address: Option<String>,
    /// Addresses it had before.
    #[serde(default)]
    pub previous_addresses: Vec<String>,
    /// When it was last seen.
    #[serde(default)]
    pub last_seen: Option<Moment>,
    /// When something was last detected on it.
    #[serde(default)]
    pub last_detection: Option<Moment>,
    /// Whether it has active detections.
    #[serde(default)]
    pub active: bool,
    /// Whether it has traffic now.
    #[serde(default)]
    pub traffic: bool,
    /// 0 to 99.
    #[serde(default)]
    pub threat: u8,
    /// 0 to 99.
    #[serde(default)]
    pub certainty: u8,
    /// 0 to 100; what v3 shows in the entity and its feed.
    #[serde(default)]
    pub urgency: u8,
    /// Its tags, in their order.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Its notes, oldest first.
    #[serde(default)]
    pub notes: Vec<Note>,
    /// Marked as a key asset.
    #[serde(default)]
    pub key_asset: bool,
    /// 1 to 10.
    #[serde(default)]
    pub privilege: Option<u8>,
    /// Names of its groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What is known of its names.
    #[serde(default)]
    pub artifacts: Vec<Artifact>,
    /// Like `pat@corp.example`.
    #[serde(default)]
    pub owner: Option<String>,
}

impl Host {
    /// An active host that was seen under `address` at `seen`, known by its bare name only.
    pub fn new(id: u64, name: &str, address: &str, seen: Timestamp) -> Self {
        Self {
            id,
            name: name.to_owned(),
            address: Some(address.to_owned()),
            previous_addresses: Vec::new(),
            last_seen: Some(Moment::At(seen)),
            last_detection: Some(Moment::At(seen)),
            active: true,
            traffic: true,
            threat: 0,
            certainty: 0,
            urgency: 0,
            tags: Vec::new(),
            notes: Vec::new(),
            key_asset: false,
            privilege: None,
            groups: Vec::new(),
            artifacts: Vec::new(),
            owner: None,
        }
    }

    /// The same with what Kerberos, DNS and the connector to Defender say of its name.
    #[must_use]
    pub fn named(mut self, dns: &str) -> Self {
        let short = dns.split('.').next().unwrap_or(dns);
        self.artifacts = [("kerberos", short), ("dns", dns), ("windows_defender_name", dns)]
            .map(|(kind, value)| Artifact { kind: kind.to_owned(), value: value.to_owned() })
            .to_vec();
        self
    }

    /// The same with these tags.
    #[must_use]
    pub fn tagged(mut self, tags: &[&str]) -> Self {
        self.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self
    }

    /// Critical, High, Medium or low, in the varying case of the real service (`cognito.md` 3.3).
    pub(super) fn severity(&self) -> &'static str {
        match (self.threat >= 50, self.certainty >= 50) {
            (true, true) => "Critical",
            (true, false) => "High",
            (false, true) => "Medium",
            (false, false) => "low",
        }
    }
}

/// What decides how a host is shown.
pub(super) struct View<'a> {
    /// The base URL for links.
    pub(super) base: &'a str,
    pub(super) version: &'a Version,
    /// When the story was told.
    pub(super) told: Timestamp,
    /// Whether it is a list, which leaves `last_seen` out.
    pub(super) list: bool,
}

/// `2026-02-03T10:31:07Z`.
pub(super) fn whole(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-02-03T10:31:07.481920Z`.
pub(super) fn fractional(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// As text with HTML entities.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#x27;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A note as the API shows it. Times have fractions in the answer to adding it, and in every second note of a list.
pub(super) fn note(state: &State, note: &Note, told: Timestamp, fractions: bool) -> Value {
    let time = |moment: Moment| {
        let at = moment.at(told);
        if fractions { fractional(at) } else { whole(at) }
    };
    json!({
        "id": note.id,
        "date_created": time(note.created),
        "date_modified": note.modified.map(|moment| whole(moment.at(told))),
        "created_by": note.created_by,
        "modified_by": note.modified_by,
        "note": if state.behaviour.escape_notes { escape(&note.text) } else { note.text.clone() },
    })
}

/// The notes of a host, as lists show them.
pub(super) fn notes(state: &State, entry: &Entry, told: Timestamp) -> Vec<Value> {
    entry.host.notes.iter().map(|one| note(state, one, told, one.id.is_multiple_of(2))).collect()
}

/// The host as calls 1 and 4 show it.
pub(super) fn full(state: &State, entry: &Entry, view: &View<'_>) -> Value {
    let host = &entry.host;
    let api = format!("{}/api/{}", view.base, view.version.text);
    let url = format!("{api}/hosts/{}", host.id);
    let time = |moment: Option<Moment>| moment.map(|moment| whole(moment.at(view.told)));
    let notes = notes(state, entry, view.told);
    let newest = notes.last().cloned().unwrap_or_default();
    let artifacts: Vec<Value> = host
        .artifacts
        .iter()
        .map(|artifact| json!({"type": artifact.kind, "value": artifact.value, "source": null, "siem": false}))
        .collect();
    let groups: Vec<Value> = state
        .groups
        .iter()
        .filter(|group| host.groups.contains(&group.name))
        .map(|group| {
            json!({
                "id": group.id, "name": group.name, "description": "", "type": "host",
                "last_modified": whole(entry.modified), "last_modified_by": "soc-lead",
            })
        })
        .collect();
    let detections: Vec<String> =
        if host.active { vec![format!("{api}/detections/{}", 88_000 + host.id)] } else { vec![] };
    let mut shown = json!({
        "id": host.id,
        "name": host.name,
        "active_traffic": host.traffic,
        "has_active_traffic": host.traffic,
        "threat": host.threat,
        "t_score": host.threat,
        "certainty": host.certainty,
        "c_score": host.certainty,
        "severity": host.severity(),
        "last_source": host.address,
        "ip": host.address,
        "previous_ips": host.previous_addresses,
        "last_detection_timestamp": time(host.last_detection),
        "key_asset": host.key_asset,
        "is_key_asset": host.key_asset,
        "targets_key_asset": false,
        "is_targeting_key_asset": false,
        "state": if host.active { "active" } else { "inactive" },
        "detection_set": detections,
        "host_artifact_set": artifacts,
        "sensor": "k3v9q2xd",
        "sensor_name": "sensor-hq-01",
        "tags": state.shown_tags(entry),
    });
    let rest = json!({
        "note": newest["note"],
        "notes": notes,
        "note_modified_by": newest["created_by"],
        "note_modified_timestamp": newest["date_created"],
        "url": url,
        "host_url": url,
        "last_modified": whole(entry.modified),
        "assigned_to": null,
        "assigned_date": null,
        "groups": groups,
        "has_custom_model": false,
        "privilege_level": host.privilege,
        "privilege_category": category(host.privilege),
        "probable_owner": host.owner,
        "detection_profile": host.active.then_some("External Adversary"),
        "assignment": null,
        "past_assignments": [],
        "host_session_luids": [],
        "host_luid": format!("h{:07x}", host.id),
    });
    if let (Value::Object(shown), Value::Object(rest)) = (&mut shown, rest) {
        shown.extend(rest);
    }
    if !view.list
        && let Some(seen) = host.last_seen
    {
        let at = seen.at(view.told);
        // Some times come with fractions (`cognito.md` 3.3).
        shown["last_seen"] = json!(if host.id.is_multiple_of(2) { fractional(at) } else { whole(at) });
    }
    shown
}

/// The host as an entity of v3 (`cognito.md` 3.5).
pub(super) fn entity(state: &State, entry: &Entry, view: &View<'_>) -> Value {
    let host = &entry.host;
    let api = format!("{}/api/{}", view.base, view.version.text);
    json!({
        "id": host.id,
        "name": host.name,
        "type": "host",
        "importance": u8::from(host.key_asset) + 1,
        "is_prioritized": host.urgency >= 50,
        "severity": host.severity(),
        "urgency_score": host.urgency,
        "breadth_contrib": 1,
        "velocity_contrib": 2,
        "attack_rating": host.urgency / 10,
        "attack_profile": host.active.then_some("External Adversary"),
        "detection_set": if host.active { vec![format!("{api}/detections/{}", 88_000 + host.id)] } else { vec![] },
        "last_detection_timestamp": host.last_detection.map(|moment| whole(moment.at(view.told))),
        "last_modified_timestamp": whole(entry.modified),
        "notes": notes(state, entry, view.told),
        "privilege_level": host.privilege,
        "privilege_category": category(host.privilege),
        "sensors": ["k3v9q2xd"],
        "state": if host.active { "active" } else { "inactive" },
        "tags": state.shown_tags(entry),
        "url": format!("{api}/hosts/{}", host.id),
        "host_type": null,
        "account_type": null,
    })
}

/// Low 1-2, Medium 3-7, High 8-10.
fn category(privilege: Option<u8>) -> Option<&'static str> {
    privilege.map(|level| match level {
        0..=2 => "Low",
        3..=7 => "Medium",
        _ => "High",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_distances() {
        let told: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-11-20T10:00:00Z", Some("2026-11-20T10:00:00Z")),
            ("@-40m", Some("2026-11-21T11:20:00Z")),
            ("@-1d2h", Some("2026-11-20T10:00:00Z")),
            ("@-x", None),
            ("soon", None),
        ] {
            let read = Moment::try_from(text.to_owned()).ok().map(|moment| moment.at(told).to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
        let ago = Moment::Ago(SignedDuration::from_mins(40));
        assert_eq!(Moment::try_from(String::from(ago)), Ok(ago));
    }

    #[test]
    fn notes_are_escaped_as_in_the_example() {
        assert_eq!(
            escape("[defender-bridge] machine \"fin-lt-0042\" & 2 alerts [ref:0a1b2c3d4e5f]"),
            "[defender-bridge] machine &quot;fin-lt-0042&quot; &amp; 2 alerts [ref:0a1b2c3d4e5f]"
        );
        assert_eq!(escape("<i>it's</i>"), "&lt;i&gt;it&#x27;s&lt;/i&gt;");
    }
}
