//! The handle on the brain: what happened to its hosts, and what shall happen.

use std::sync::Arc;

use super::super::TenantData;
use super::super::data::Data;
use super::super::world::World;
use super::Behaviour;
use super::bulk::{self, BulkHost};
use super::emit::{Emit, Emitted};
use super::host::{Host, Note};
use super::state::{self, Edit, Race, TagWrite, Undone};

/// Reads and changes the brain of a simulator as its analysts and administrators do; got by
/// [`Control::brain`](super::super::Control::brain). All methods may be called at any time.
#[derive(Debug, Clone)]
pub struct Brain(pub(in super::super) Arc<World>);

impl Brain {
    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.0.brain.state().behaviour);
    }

    /// How it behaves.
    pub fn behaviour(&self) -> Behaviour {
        self.0.brain.state().behaviour.clone()
    }

    /// Replaces the personal token.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut self.0.brain.state().token);
    }

    /// Makes the OAuth2 access and refresh tokens issued so far worthless.
    pub fn revoke_tokens(&self) {
        self.0.brain.state().issued.clear();
    }

    /// Adds a host, or replaces the one of its id with all its history.
    pub fn put_host(&self, host: Host) {
        let now = self.0.clock.now();
        self.0.brain.state().put_host(host, now);
    }

    /// Takes a host away. False if there is none of that id.
    pub fn remove_host(&self, id: u64) -> bool {
        let mut state = self.0.brain.state();
        let found = state.hosts.remove(&id).is_some();
        state.tick();
        found
    }

    /// A host as it stands.
    pub fn host(&self, id: u64) -> Option<Host> {
        self.0.brain.state().hosts.get(&id).map(|entry| entry.host.clone())
    }

    /// The ids of all hosts, ascending.
    pub fn hosts(&self) -> Vec<u64> {
        self.0.brain.state().hosts.keys().copied().collect()
    }

    /// Changes anything of a host but its tags. False if there is none of that id.
    pub fn change_host(&self, id: u64, change: impl FnOnce(&mut Host)) -> bool {
        let mut state = self.0.brain.state();
        let Some(entry) = state.hosts.get_mut(&id) else { return false };
        let tags = entry.host.tags.clone();
        change(&mut entry.host);
        entry.host.id = id;
        entry.host.tags = tags;
        state.tick();
        true
    }

    /// The tags of a host; none if there is no such host.
    pub fn tags(&self, id: u64) -> Option<Vec<String>> {
        self.0.brain.state().hosts.get(&id).map(|entry| entry.host.tags.clone())
    }

    /// Adds a tag as the user `actor` does at the user interface. Nothing if the host has it, or there is no such host.
    pub fn add_tag(&self, id: u64, tag: &str, actor: &str) -> Option<TagWrite> {
        self.edit(id, &Edit::Add(tag.to_owned()), actor)
    }

    /// Removes a tag as the user `actor` does. Nothing if the host has it not, or there is no such host.
    pub fn remove_tag(&self, id: u64, tag: &str, actor: &str) -> Option<TagWrite> {
        self.edit(id, &Edit::Remove(tag.to_owned()), actor)
    }

    fn edit(&self, id: u64, edit: &Edit, actor: &str) -> Option<TagWrite> {
        let now = self.0.clock.now();
        self.0.brain.state().edit(id, edit, actor, now)
    }

    /// Lets `actor` add a tag in the gap between the next reading of the host's tags and the replacement that follows:
    /// the race of `cognito.md` 5.10. False if there is no such host.
    pub fn add_tag_in_gap(&self, id: u64, tag: &str, actor: &str) -> bool {
        self.race(id, Edit::Add(tag.to_owned()), actor)
    }

    /// As [`Brain::add_tag_in_gap`], removing a tag.
    pub fn remove_tag_in_gap(&self, id: u64, tag: &str, actor: &str) -> bool {
        self.race(id, Edit::Remove(tag.to_owned()), actor)
    }

    fn race(&self, id: u64, edit: Edit, actor: &str) -> bool {
        let mut state = self.0.brain.state();
        let Some(entry) = state.hosts.get_mut(&id) else { return false };
        entry.races.push(Race { edit, actor: actor.to_owned(), read: false });
        true
    }

    /// Every write of a host's tags since it was added, oldest first.
    pub fn history(&self, id: u64) -> Vec<TagWrite> {
        self.0.brain.state().hosts.get(&id).map(|entry| entry.history.clone()).unwrap_or_default()
    }

    /// What writes through the API did to tags that are not `ours`: the tags they took away, and those they put on a
    /// host that did not have them. By host, then oldest first.
    pub fn undone(&self, ours: impl Fn(&str) -> bool) -> Vec<Undone> {
        let state = self.0.brain.state();
        state.hosts.values().flat_map(|entry| state::undone(&entry.history, &ours)).collect()
    }

    /// Returns when `reached` is true of this brain: it is asked now, and whenever a host, its tags or its notes change.
    pub async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let mut changes = self.0.brain.state().changes.subscribe();
        while !reached(self) {
            // Whoever holds this handle keeps the other end.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The notes of a host, oldest first, not escaped.
    pub fn notes(&self, id: u64) -> Vec<Note> {
        self.0.brain.state().hosts.get(&id).map(|entry| entry.host.notes.clone()).unwrap_or_default()
    }

    /// Adds a note as the user `author` does. None if there is no such host.
    pub fn add_note(&self, id: u64, text: &str, author: &str) -> Option<Note> {
        let now = self.0.clock.now();
        self.0.brain.state().add_note(id, text, author, now)
    }

    /// Adds a tag to many hosts in one step, which the audits tell in one entry. The hosts that did not have it.
    pub fn add_tag_to_many(&self, ids: &[u64], tag: &str, actor: &str) -> Vec<u64> {
        let now = self.0.clock.now();
        self.0.brain.state().edit_many(ids, &Edit::Add(tag.to_owned()), actor, now)
    }

    /// Removes a tag from many hosts in one step. The hosts that had it.
    pub fn remove_tag_from_many(&self, ids: &[u64], tag: &str, actor: &str) -> Vec<u64> {
        let now = self.0.clock.now();
        self.0.brain.state().edit_many(ids, &Edit::Remove(tag.to_owned()), actor, now)
    }

    /// Gives a host other scores: threat and certainty 0 to 99, urgency 0 to 100. False if there is no such host.
    pub fn set_scores(&self, id: u64, threat: u8, certainty: u8, urgency: u8) -> bool {
        let now = self.0.clock.now();
        self.0.brain.state().score(id, threat, certainty, urgency, now)
    }

    /// Adds an entry to the audits, like `log in`.
    pub fn audit(&self, user: &str, message: &str, success: bool) {
        let now = self.0.clock.now();
        self.0.brain.state().audit(user, message, success, now);
    }

    /// Sends what happens from now on as events; `None`: no more. Events under way go on.
    ///
    /// # Errors
    /// What is wrong with the settings; nothing changes then.
    pub fn emit(&self, emit: Option<Emit>) -> Result<(), String> {
        self.0.brain.state().set_emit(emit)
    }

    /// The settings by which events are sent now.
    pub fn emitting(&self) -> Option<Emit> {
        self.0.brain.state().plan.as_ref().map(|plan| plan.emit().clone())
    }

    /// What became of the events since the start.
    pub fn emitted(&self) -> Emitted {
        *self.0.brain.state().outbox.tally().borrow()
    }

    /// Returns when no event is under way any more, or the simulator stops.
    pub async fn emission_settled(&self) {
        let mut tally = self.0.brain.state().outbox.tally();
        tokio::select! {
            _ = tally.wait_for(|tally| tally.waiting == 0) => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    /// Adds `count` hosts to the brain and their machines to a tenant, which keeps the rest of its data: for each plain
    /// host, an address lookup finds exactly its machine. About `odd_percent` per cent (0 to 100) of the hosts are of
    /// another [`BulkKind`](super::BulkKind). The same for the same `seed`. None if there is no such tenant.
    ///
    /// # Panics
    /// When there are more than [`BULK_LIMIT`](super::BULK_LIMIT).
    pub fn add_bulk(&self, tenant: &str, count: usize, odd_percent: u8, seed: u64) -> Option<Vec<BulkHost>> {
        let now = self.0.clock.now();
        self.0.tenant(tenant)?;
        let mut data = Data::clone(&self.0.data(tenant));
        let made = bulk::bulk(count, odd_percent, seed, now, &mut data);
        self.0.change_tenant(tenant, |tenant| tenant.data = TenantData::Given(Arc::new(data)));
        let mut state = self.0.brain.state();
        let put = |(host, shown)| {
            state.put_host(shown, now);
            host
        };
        Some(made.into_iter().map(put).collect())
    }
}
