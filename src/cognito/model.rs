//! What Cognito says of hosts, as far as the bridge reads it (`cognito.md` 3.4).
//!
//! Reading is tolerant, as `cognito.md` 3.3 asks: unknown members are ignored, members may be absent or null, times may
//! have fractions, ids may be text, and what cannot be read counts as absent.

use jiff::Timestamp;

/// A host (call 1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Cognito's id.
    pub id: u64,
    /// A hostname, `IP-a.b.c.d`, or a display name.
    pub name: Option<String>,
    /// The address it was last seen with: `last_source`, else `ip`. As received.
    pub address: Option<String>,
    /// Addresses it had before.
    pub previous_addresses: Vec<String>,
    /// When Cognito last saw it.
    pub last_seen: Option<Timestamp>,
    /// When something was last detected on it.
    pub last_detection: Option<Timestamp>,
    /// `active` or `inactive`.
    pub state: Option<String>,
    /// 0 to 99.
    pub threat: Option<u8>,
    /// 0 to 99.
    pub certainty: Option<u8>,
    /// 0 to 100, of hosted brains.
    pub urgency: Option<u8>,
    /// `low`, `Critical`, ...: letter case varies.
    pub severity: Option<String>,
    /// A hint; the tagging call is authoritative.
    pub tags: Vec<String>,
    /// Marked as a key asset.
    pub is_key_asset: bool,
    /// 1 to 10.
    pub privilege_level: Option<u8>,
    /// Names of the groups it is in.
    pub groups: Vec<String>,
    /// What Cognito knows of its names, in the order received.
    pub artifacts: Vec<Artifact>,
}

/// One entry of `host_artifact_set`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Artifact {
    /// `kerberos`, `dns`, `rdns`, `mac`, `windows_defender_name`, ...
    pub kind: String,
    /// As received.
    pub value: String,
}

/// A note of a host (call 5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// Cognito's id.
    pub id: u64,
    /// User name.
    pub created_by: Option<String>,
    /// When.
    pub created: Option<Timestamp>,
    /// When it was last changed, if it was.
    pub modified: Option<Timestamp>,
    /// The text, HTML entities resolved.
    pub text: String,
}

/// Which hosts a list holds (call 4). Members that are empty or `None` restrict nothing.
///
/// A list is of candidates only: Cognito's comparison of tags is not exact, and its index may be late. Every hit is read
/// again before anything is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostsFilter {
    /// Hosts with any of these tags, none of which may hold a comma.
    pub tags: Vec<String>,
    /// Hosts with at least this threat score.
    pub threat_gte: Option<u8>,
    /// Hosts with at least this certainty score.
    pub certainty_gte: Option<u8>,
}

/// One page of a list of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostsPage {
    /// In Cognito's order.
    pub hosts: Vec<Host>,
    /// How many hosts all pages hold, as Cognito says.
    pub count: Option<u64>,
    /// Whether there is no further page.
    pub last: bool,
}

/// A group of hosts, addresses or domains (call 8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Cognito's id.
    pub id: u64,
    /// As received.
    pub name: String,
    /// `host`, `ip`, `domain`, `account`.
    pub kind: Option<String>,
}

/// One audit entry of either flavour (calls 9 and 10).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Cognito's id; on-premises entries have none.
    pub id: Option<u64>,
    /// Who did it.
    pub user: Option<String>,
    /// Whether it was done.
    pub succeeded: bool,
    /// What was done, in Cognito's words.
    pub message: String,
    /// When.
    pub at: Option<Timestamp>,
}

/// The score of an entity changed (call 10).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scoring {
    /// Cognito's id of the event.
    pub id: Option<u64>,
    /// Cognito's id of the entity, which for hosts is the host's.
    pub entity_id: u64,
    /// `host` or `account`.
    pub kind: Option<String>,
    /// The entity's name.
    pub name: Option<String>,
    /// 0 to 100.
    pub urgency: Option<u8>,
    /// When.
    pub at: Option<Timestamp>,
}

/// Where to begin with an event feed (call 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedStart {
    /// Where an earlier part told to go on.
    Checkpoint(u64),
    /// At the first event that happened then or later.
    Since(Timestamp),
}

/// A part of an event feed (call 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed<T> {
    /// Oldest first, as received.
    pub events: Vec<T>,
    /// Where to go on; `None` when Cognito did not say, and the same place holds.
    pub next_checkpoint: Option<u64>,
    /// How many events are left after these.
    pub remaining: Option<u64>,
}
