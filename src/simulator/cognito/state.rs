//! What the brain knows: hosts, groups, who wrote which tag, and how it behaves.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::super::answer::Answer;
use super::super::faults::Random;
use super::emit::{Emit, Happened, Outbox, Plan};
use super::feeds::{About, Audit, Scoring, printed};
use super::host::{Host, Moment, Note};
use super::{Behaviour, BrainData, BrainSettings, Flavour, story};

/// Rates are counted over this long.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// Where ids begin: apart, so that no two kinds of them look alike.
const FIRST_NOTE: u64 = 9_001;
const FIRST_GROUP: u64 = 21;
const FIRST_AUDIT: u64 = 71_001;
const FIRST_SCORING: u64 = 50_001;

/// Who wrote tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Writer {
    /// A person at the user interface, or another tool, by the controls.
    Analyst,
    /// A client of the API.
    Api,
}

/// One write of a host's tags, changed or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TagWrite {
    /// Counts the writes of the whole brain from 1.
    pub number: u64,
    /// The host.
    pub host: u64,
    /// When, by the story's clock.
    pub at: Timestamp,
    /// The user.
    pub actor: String,
    /// Through what.
    pub writer: Writer,
    /// The list just before.
    pub old: Vec<String>,
    /// The list from then on.
    pub new: Vec<String>,
    /// For writes through the API: the last write whose outcome a tagging answer had shown before this one, 0 if there
    /// was none yet; absent if the tags were never read. What was written in between, the writer could not know.
    pub known: Option<u64>,
}

/// A tag that somebody's write took away or brought back although it was not his.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Undone {
    /// The host.
    pub host: u64,
    /// The tag.
    pub tag: String,
    /// The [`TagWrite::number`] of the write that undid it.
    pub write: u64,
    /// The list lacks the tag since; otherwise the write brought a removed tag back.
    pub lost: bool,
    /// The undone change came between the last list that the API had shown and the write: the race of `cognito.md`
    /// 5.10. False: the writer was told and undid it all the same.
    pub raced: bool,
}

/// A change of one tag that somebody makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    Add(String),
    Remove(String),
}

/// An edit that waits for the gap between a reading of the tags and their replacement.
#[derive(Debug, Clone)]
pub(super) struct Race {
    pub(super) edit: Edit,
    pub(super) actor: String,
    /// Whether the tags were read since it was asked for.
    pub(super) read: bool,
}

/// A host with all that happened to it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) host: Host,
    pub(super) modified: Timestamp,
    pub(super) history: Vec<TagWrite>,
    /// The last write whose outcome a tagging answer has shown; 0: the list before any.
    pub(super) known: Option<u64>,
    pub(super) races: Vec<Race>,
}

/// A group of hosts. Who is in it is said by the hosts.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) name: String,
}

/// An access token that was issued.
#[derive(Debug, Clone, Copy)]
pub(super) struct Issued {
    pub(super) flavour: Flavour,
    pub(super) expires: Instant,
    /// Whether it only serves to get another.
    pub(super) refresh: bool,
}

/// The brain's memory.
pub(super) struct State {
    pub(super) token: String,
    pub(super) client_id: String,
    pub(super) client_secret: String,
    pub(super) user: String,
    pub(super) behaviour: Behaviour,
    pub(super) hosts: BTreeMap<u64, Entry>,
    pub(super) groups: Vec<Group>,
    pub(super) issued: HashMap<String, Issued>,
    /// In the order of their ids.
    pub(super) audits: Vec<Audit>,
    pub(super) next_audit: u64,
    /// In the order of their ids.
    pub(super) scorings: Vec<Scoring>,
    pub(super) next_scoring: u64,
    pub(super) plan: Option<Plan>,
    pub(super) outbox: Outbox,
    /// Ticks when a host, its tags or its notes change.
    pub(super) changes: watch::Sender<u64>,
    next_note: u64,
    next_write: u64,
    calls: VecDeque<Instant>,
    token_calls: VecDeque<Instant>,
    random: Random,
}

impl std::fmt::Debug for State {
    /// Without tokens and secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(settings: &BrainSettings, outbox: Outbox) -> Self {
        let mut state = Self {
            token: String::new(),
            client_id: String::new(),
            client_secret: String::new(),
            user: String::new(),
            behaviour: Behaviour::default(),
            hosts: BTreeMap::new(),
            groups: Vec::new(),
            issued: HashMap::new(),
            audits: Vec::new(),
            next_audit: FIRST_AUDIT,
            scorings: Vec::new(),
            next_scoring: FIRST_SCORING,
            plan: None,
            outbox,
            changes: watch::Sender::new(0),
            next_note: FIRST_NOTE,
            next_write: 1,
            calls: VecDeque::new(),
            token_calls: VecDeque::new(),
            random: Random(1),
        };
        state.reset(settings);
        state
    }

    pub(super) fn reset(&mut self, settings: &BrainSettings) {
        settings.token.clone_into(&mut self.token);
        settings.client_id.clone_into(&mut self.client_id);
        settings.client_secret.clone_into(&mut self.client_secret);
        settings.user.clone_into(&mut self.user);
        self.behaviour = settings.behaviour.clone();
        self.groups.clear();
        self.hosts.clear();
        self.audits.clear();
        self.scorings.clear();
        self.plan = None;
        (self.next_note, self.next_write) = (FIRST_NOTE, 1);
        (self.next_audit, self.next_scoring) = (FIRST_AUDIT, FIRST_SCORING);
        self.calls.clear();
        self.token_calls.clear();
        let hosts = match &settings.data {
            BrainData::Story => story::hosts(),
            BrainData::Empty => Vec::new(),
            BrainData::Given(hosts) => hosts.clone(),
        };
        let now = Timestamp::now();
        for host in hosts {
            self.put_host(host, now);
        }
        if matches!(settings.data, BrainData::Story) {
            story::tell(self, now);
        }
    }

    /// Sends events from now on, or no more.
    ///
    /// # Errors
    /// What is wrong with the settings; nothing changes then.
    pub(super) fn set_emit(&mut self, emit: Option<Emit>) -> Result<(), String> {
        self.plan = emit.map(Plan::new).transpose()?;
        Ok(())
    }

    /// Writes down what somebody did, besides tags.
    pub(super) fn audit(&mut self, user: &str, message: &str, success: bool, at: Timestamp) {
        self.note_down(user, message.to_owned(), success, About::Other, at);
    }

    fn note_down(&mut self, user: &str, message: String, success: bool, about: About, at: Timestamp) {
        let audit = Audit { id: self.next_audit, at, user: user.to_owned(), message, success, about };
        self.next_audit += 1;
        if let Some(plan) = &mut self.plan {
            self.outbox.tell(plan, Happened::Audit(&audit));
        }
        self.audits.push(audit);
    }

    /// Gives a host other scores. False if there is no such host.
    pub(super) fn score(&mut self, id: u64, threat: u8, certainty: u8, urgency: u8, now: Timestamp) -> bool {
        let Some(entry) = self.hosts.get_mut(&id) else { return false };
        let host = &mut entry.host;
        let decreased = threat < host.threat || certainty < host.certainty || urgency < host.urgency;
        (host.threat, host.certainty, host.urgency) = (threat, certainty, urgency);
        entry.modified = now;
        let scoring = Scoring {
            id: self.next_scoring,
            at: now,
            host: id,
            name: host.name.clone(),
            address: host.address.clone(),
            tags: host.tags.clone(),
            threat,
            certainty,
            urgency,
            privilege: host.privilege,
            severity: host.severity(),
            decreased,
        };
        self.next_scoring += 1;
        if let Some(plan) = &mut self.plan {
            self.outbox.tell(plan, Happened::Score(&scoring));
        }
        self.scorings.push(scoring);
        self.tick();
        true
    }

    /// Adds or removes one tag on many hosts in one step: one audit. The hosts that changed.
    pub(super) fn edit_many(&mut self, ids: &[u64], edit: &Edit, actor: &str, now: Timestamp) -> Vec<u64> {
        let mut changed = Vec::new();
        for &id in ids {
            if let Some(tags) = self.edited(id, edit) {
                self.store_tags(id, tags, actor, Writer::Analyst, now);
                changed.push(id);
            }
        }
        if !changed.is_empty() {
            let (tag, added) = match edit {
                Edit::Add(tag) => (tag.clone(), true),
                Edit::Remove(tag) => (tag.clone(), false),
            };
            let list: Vec<String> = changed.iter().map(u64::to_string).collect();
            let done = if added { "added to" } else { "removed from" };
            let message = format!("Tag {tag} has been {done} hosts with ids [{}]", list.join(", "));
            self.note_down(actor, message, true, About::Tag { hosts: changed.clone(), tag, added }, now);
        }
        changed
    }

    /// Adds a host, or replaces the one of its id with all its history.
    pub(super) fn put_host(&mut self, mut host: Host, now: Timestamp) {
        for note in &mut host.notes {
            if note.id == 0 {
                note.id = self.next_note;
            }
            self.next_note = self.next_note.max(note.id) + 1;
        }
        for name in &host.groups {
            if !self.groups.iter().any(|group| group.name == *name) {
                let id = FIRST_GROUP + self.groups.len() as u64;
                self.groups.push(Group { id, name: name.clone() });
            }
        }
        let entry = Entry { modified: now, history: Vec::new(), known: None, races: Vec::new(), host };
        self.hosts.insert(entry.host.id, entry);
        self.tick();
    }

    /// Tells who waits that something changed.
    pub(super) fn tick(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// A note's id.
    pub(super) fn note_id(&mut self) -> u64 {
        self.next_note += 1;
        self.next_note - 1
    }

    /// The tags of a host in the order they are shown.
    pub(super) fn shown_tags(&self, entry: &Entry) -> Vec<String> {
        let mut tags = entry.host.tags.clone();
        if self.behaviour.shuffle_tags {
            shuffle(&mut tags, &mut Random(self.random.0 ^ entry.host.id));
        }
        tags
    }

    /// Makes the next lists come in another order.
    pub(super) fn stir(&mut self) {
        self.random.bits();
    }

    /// Writes a host's list of tags, and writes down who did. None if there is no such host.
    pub(super) fn write_tags(
        &mut self,
        id: u64,
        new: Vec<String>,
        actor: &str,
        writer: Writer,
        now: Timestamp,
    ) -> Option<TagWrite> {
        let write = self.store_tags(id, new, actor, writer, now)?;
        if write.old != write.new && (writer == Writer::Analyst || self.behaviour.audit_api_writes) {
            let (old, new) = (printed(&write.old), printed(&write.new));
            let message = format!("[table:host][id:{id}] with tags {old} was changed to {new}");
            let about = About::Tags { host: id, old: write.old.clone(), new: write.new.clone() };
            self.note_down(actor, message, true, about, now);
        }
        Some(write)
    }

    fn store_tags(
        &mut self,
        id: u64,
        new: Vec<String>,
        actor: &str,
        writer: Writer,
        now: Timestamp,
    ) -> Option<TagWrite> {
        let entry = self.hosts.get_mut(&id)?;
        let number = self.next_write;
        self.next_write += 1;
        let write = TagWrite {
            number,
            host: id,
            at: now,
            actor: actor.to_owned(),
            writer,
            old: std::mem::replace(&mut entry.host.tags, new.clone()),
            new,
            known: entry.known.filter(|_| writer == Writer::Api),
        };
        if write.old != write.new {
            entry.modified = now;
        }
        if writer == Writer::Api {
            // The answer shows the outcome.
            entry.known = Some(number);
        }
        entry.history.push(write.clone());
        self.tick();
        Some(write)
    }

    /// The tags of a host after an edit. None if there is no such host, or nothing changes.
    fn edited(&self, id: u64, edit: &Edit) -> Option<Vec<String>> {
        let mut tags = self.hosts.get(&id)?.host.tags.clone();
        match edit {
            Edit::Add(tag) if tags.contains(tag) => return None,
            Edit::Add(tag) => tags.push(tag.clone()),
            Edit::Remove(tag) => {
                let before = tags.len();
                tags.retain(|found| found != tag);
                if tags.len() == before {
                    return None;
                }
            }
        }
        Some(tags)
    }

    /// Adds or removes one tag as a person does. None if there is no such host, or nothing changes.
    pub(super) fn edit(&mut self, id: u64, edit: &Edit, actor: &str, now: Timestamp) -> Option<TagWrite> {
        let tags = self.edited(id, edit)?;
        self.write_tags(id, tags, actor, Writer::Analyst, now)
    }

    /// Notes that a tagging answer shows the list as it stands.
    pub(super) fn show_tags(&mut self, id: u64) {
        if let Some(entry) = self.hosts.get_mut(&id) {
            entry.known = Some(entry.history.last().map_or(0, |write| write.number));
            for race in &mut entry.races {
                race.read = true;
            }
        }
    }

    /// Makes the edits that waited for a reading of this host's tags.
    pub(super) fn run_races(&mut self, id: u64, now: Timestamp) {
        let Some(entry) = self.hosts.get_mut(&id) else { return };
        let (due, waiting) = std::mem::take(&mut entry.races).into_iter().partition(|race| race.read);
        entry.races = waiting;
        let due: Vec<Race> = due;
        for race in due {
            self.edit(id, &race.edit, &race.actor, now);
        }
    }

    /// Adds a note. None if there is no such host.
    pub(super) fn add_note(&mut self, id: u64, text: &str, author: &str, now: Timestamp) -> Option<Note> {
        self.hosts.get(&id)?;
        let note = Note {
            id: self.note_id(),
            created: Moment::At(now),
            created_by: author.to_owned(),
            modified: None,
            modified_by: None,
            text: text.to_owned(),
        };
        self.hosts.get_mut(&id)?.host.notes.push(note.clone());
        self.tick();
        Some(note)
    }

    /// Counts a call against the rate.
    pub(super) fn take_call(&mut self) -> Result<(), Answer> {
        let limit = self.behaviour.rate_per_second;
        let free = take(&mut self.calls, limit, Instant::now());
        if free { Ok(()) } else { Err(self.throttled()) }
    }

    /// Counts a token request against its rate.
    pub(super) fn take_token_call(&mut self) -> Result<(), Answer> {
        let limit = self.behaviour.token_rate_per_second;
        let free = take(&mut self.token_calls, limit, Instant::now());
        if free { Ok(()) } else { Err(self.throttled()) }
    }

    fn throttled(&self) -> Answer {
        let seconds = RATE_WINDOW.as_secs();
        super::detail(&self.behaviour, 429, &format!("Request was throttled. Expected available in {seconds} second."))
            .with_retry_after(self.behaviour.retry_after.then_some(seconds))
    }
}

/// Whether one call more fits into the window that ends now; it is counted if so.
fn take(calls: &mut VecDeque<Instant>, limit: Option<u32>, now: Instant) -> bool {
    let Some(limit) = limit else { return true };
    while calls.front().is_some_and(|&call| now.duration_since(call) >= RATE_WINDOW) {
        calls.pop_front();
    }
    let free = calls.len() < limit as usize;
    if free {
        calls.push_back(now);
    }
    free
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for last in (1..items.len()).rev() {
        items.swap(last, (random.bits() % (last as u64 + 1)) as usize);
    }
}

/// The tags among `history` that writes through the API undid, other than those that are `ours`.
pub(super) fn undone(history: &[TagWrite], ours: &dyn Fn(&str) -> bool) -> Vec<Undone> {
    let mut found = Vec::new();
    for (index, write) in history.iter().enumerate().filter(|(_, write)| write.writer == Writer::Api) {
        // Whether an earlier write that the API had not shown made the change that this one undoes.
        let unseen = |fits: &dyn Fn(&TagWrite) -> bool| {
            history[..index]
                .iter()
                .any(|earlier| write.known.is_some_and(|known| earlier.number > known) && fits(earlier))
        };
        for (from, to, lost) in [(&write.old, &write.new, true), (&write.new, &write.old, false)] {
            for tag in from.iter().filter(|tag| !to.contains(tag) && !ours(tag)) {
                let raced = unseen(&|earlier| {
                    earlier.writer == Writer::Analyst
                        && earlier.old.contains(tag) != lost
                        && earlier.new.contains(tag) == lost
                });
                found.push(Undone { host: write.host, tag: tag.clone(), write: write.number, lost, raced });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    fn state() -> State {
        let host = Host::new(7, "a", "192.0.2.1", Timestamp::UNIX_EPOCH).tagged(&["VIP"]);
        let settings = BrainSettings { data: BrainData::Given(vec![host]), ..BrainSettings::default() };
        State::new(&settings, super::super::emit::mailbox().0)
    }

    #[test]
    fn a_foreign_tag_that_came_after_the_reading_was_raced_and_a_known_one_was_lost() {
        let now = Timestamp::UNIX_EPOCH;
        let ours = |tag: &str| tag.starts_with("mde:");
        let mut state = state();
        state.show_tags(7);
        state.edit(7, &Edit::Add("late".into()), "ana", now);
        state.write_tags(7, list(&["VIP", "mde:x=1"]), "svc", Writer::Api, now);
        let found = undone(&state.hosts[&7].history, &ours);
        assert_eq!(found, [Undone { host: 7, tag: "late".into(), write: 2, lost: true, raced: true }]);

        // The answer to the first write showed what is there.
        state.write_tags(7, list(&["mde:x=1"]), "svc", Writer::Api, now);
        let found = undone(&state.hosts[&7].history, &ours);
        assert_eq!(found[1], Undone { host: 7, tag: "VIP".into(), write: 3, lost: true, raced: false });
    }

    #[test]
    fn who_writes_without_reading_has_no_excuse() {
        let now = Timestamp::UNIX_EPOCH;
        let mut state = state();
        state.edit(7, &Edit::Add("late".into()), "ana", now);
        state.write_tags(7, list(&["VIP"]), "svc", Writer::Api, now);
        let found = undone(&state.hosts[&7].history, &|_| false);
        assert_eq!(found, [Undone { host: 7, tag: "late".into(), write: 2, lost: true, raced: false }]);
    }

    #[test]
    fn a_removed_tag_that_is_brought_back_is_undone_too() {
        let now = Timestamp::UNIX_EPOCH;
        let mut state = state();
        state.show_tags(7);
        state.edit(7, &Edit::Remove("VIP".into()), "ana", now);
        state.write_tags(7, list(&["VIP"]), "svc", Writer::Api, now);
        let found = undone(&state.hosts[&7].history, &|_| false);
        assert_eq!(found, [Undone { host: 7, tag: "VIP".into(), write: 2, lost: false, raced: true }]);
    }

    #[test]
    fn an_edit_that_waits_for_the_gap_comes_between_reading_and_writing() {
        let now = Timestamp::UNIX_EPOCH;
        let mut state = state();
        let race = Race { edit: Edit::Add("late".into()), actor: "ana".into(), read: false };
        state.hosts.get_mut(&7).unwrap().races.push(race);
        state.run_races(7, now);
        assert_eq!(state.hosts[&7].host.tags, ["VIP"]);
        state.show_tags(7);
        assert_eq!(state.hosts[&7].host.tags, ["VIP"]);
        state.run_races(7, now);
        assert_eq!(state.hosts[&7].host.tags, ["VIP", "late"]);
        assert_eq!(state.hosts[&7].known, Some(0));
    }

    #[test]
    fn no_second_holds_more_calls_than_the_rate() {
        let (mut calls, start) = (VecDeque::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let taken: Vec<bool> =
            [0, 10, 20, 990, 1_000, 1_005, 1_010].map(|ms| take(&mut calls, Some(2), at(ms))).to_vec();
        assert_eq!(taken, [true, true, false, false, true, false, true]);
        assert!((0..100).all(|_| take(&mut calls, None, at(0))));
    }
}
