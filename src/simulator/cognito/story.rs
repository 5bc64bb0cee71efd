//! The story's hosts: what the brain saw of the machines in [`scenario`](super::super::scenario).

use jiff::{SignedDuration, Timestamp};

use super::host::Host;
use super::state::{Edit, State};

/// The personal token of the story's brain; good for the simulator only.
pub const BRAIN_TOKEN: &str = "simulated-brain-token-5e1f0c9b7a3d";
/// The id of its OAuth2 client.
pub const BRAIN_CLIENT_ID: &str = "simulated-brain-client-7c21";
/// The secret of its OAuth2 client, with what forms and headers must encode.
pub const BRAIN_CLIENT_SECRET: &str = "brain~secret:of+the/simulator=&%20only";
/// The local user of both.
pub const BRAIN_USER: &str = "svc-defender-bridge";

/// Patient zero, the finance workstation: one machine, every name agrees.
pub const FINANCE_HOST: u64 = 4711;
/// The HR workstation: tags of two other tools, notes of two analysts.
pub const HR_HOST: u64 = 4712;
/// The engineering workstation: in the group [`PROTECTED_GROUP`].
pub const ENGINEERING_HOST: u64 = 4713;
/// The file server.
pub const FILE_SERVER_HOST: u64 = 4714;
/// The build server, a key asset: Linux, known by its short name only.
pub const BUILD_SERVER_HOST: u64 = 4715;
/// A domain controller: privilege 9.
pub const DOMAIN_CONTROLLER_HOST: u64 = 4716;
/// A kiosk that Defender's inventory has lost.
pub const KIOSK_HOST: u64 = 4717;
/// An address with two machines behind it, and no name.
pub const SHARED_ADDRESS_HOST: u64 = 4718;
/// A printer: no agent, and no detection ever.
pub const PRINTER_HOST: u64 = 4719;
/// A laptop whose address has gone over to the HR workstation.
pub const MOVED_HOST: u64 = 4720;
/// Inactive, without traffic, never seen: only lists with `all=true` hold it.
pub const FORGOTTEN_HOST: u64 = 4721;
/// The group of hosts that are never isolated.
pub const PROTECTED_GROUP: &str = "NoBlock";

/// The hosts, with their times as distances.
pub(super) fn hosts() -> Vec<Host> {
    serde_json::from_str(include_str!("../data/hosts.json")).expect("the story's files are JSON, as a test checks")
}

/// What people did before the story is told: a login, a failed one, and tags that came and went.
pub(super) fn tell(state: &mut State, now: Timestamp) {
    let at = |minutes: i64| now.checked_sub(SignedDuration::from_mins(minutes)).unwrap_or(now);
    state.audit("analyst.two", "log in", false, at(26 * 60));
    state.audit("analyst.two", "log in", true, at(26 * 60 - 1));
    state.audit("analyst.one", "log in", true, at(185));
    state.edit(HR_HOST, &Edit::Add("triage".to_owned()), "analyst.one", at(180));
    state.edit(HR_HOST, &Edit::Remove("triage".to_owned()), "analyst.one", at(170));
    state.audit("analyst.one", "[table:detection][id:88120] with tags [] was changed to ['tp']", true, at(165));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_has_its_hosts_in_order() {
        let ids: Vec<u64> = hosts().iter().map(|host| host.id).collect();
        assert_eq!(ids, (FINANCE_HOST..=FORGOTTEN_HOST).collect::<Vec<_>>());
        let hosts = hosts();
        let of = |id: u64| hosts.iter().find(|host| host.id == id).unwrap();
        assert!(of(BUILD_SERVER_HOST).key_asset);
        assert_eq!(of(DOMAIN_CONTROLLER_HOST).privilege, Some(9));
        assert!(of(ENGINEERING_HOST).groups.iter().any(|group| group == PROTECTED_GROUP));
        assert_eq!(of(MOVED_HOST).address, of(HR_HOST).address);
        assert_eq!((of(PRINTER_HOST).last_detection, of(FORGOTTEN_HOST).last_seen), (None, None));
    }
}
