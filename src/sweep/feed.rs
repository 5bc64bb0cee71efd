//! How far Cognito's feeds were read, and what their entries are worth. Pure.
//!
//! On-premises brains give audit entries by the day, without ids, and told to the second; so what was read already is
//! known by its time and, near the newest time, by a digest. Hosted brains give checkpoints.
//!
//! The first look begins at the present: what was done before the bridge came is the sweep's to find.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::publish::Event;
use crate::broker::Lane;
use crate::cognito::audit::TagChange;
use crate::cognito::model::{Audit, FeedStart, Scoring};
use crate::containment::Policy;
use crate::job::{self, Hint, Host, HostKind};

/// How the events of the feeds name their sender.
pub const SENDER: &str = "feed";

/// An entry that appears so long after newer ones is still taken. Entries of one second come in any order, and a brain
/// with several appliances writes them a little late.
const OVERLAP: Duration = Duration::from_secs(60);

/// Entries within the overlap that are known by their digests at most; bulk edits of more hosts in a minute are told twice.
const SEEN_LIMIT: usize = 10_000;

/// The longest text of Cognito's that goes into an event: an actor, a tag.
const TEXT_LIMIT_BYTES: usize = 1024;

/// How far all feeds were read, as retained under [`job::FEEDS`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// On-premises audits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audits: Option<Days>,
    /// Hosted audits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_events: Option<Checkpoint>,
    /// Hosted scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scoring_events: Option<Checkpoint>,
}

/// How far a hosted feed was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpoint {
    /// Nothing was told since then.
    Since(Timestamp),
    /// Go on here.
    At(u64),
}

/// How far on-premises audits were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Days {
    /// The newest entry's time, by the brain's clock.
    newest: Timestamp,
    /// Digests of the entries read that are at most [`OVERLAP`] older than it.
    seen: Vec<String>,
}

impl Positions {
    /// As retained.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        job::encode(self)
    }

    /// Reads what was retained.
    ///
    /// # Errors
    /// As with every job.
    pub fn decode(value: &[u8]) -> Result<Self, job::DecodeError> {
        job::decode(value)
    }
}

impl Checkpoint {
    /// Where to begin to read.
    #[must_use]
    pub fn start(self) -> FeedStart {
        match self {
            Self::Since(time) => FeedStart::Since(time),
            Self::At(checkpoint) => FeedStart::Checkpoint(checkpoint),
        }
    }

    /// Whether an entry of `at` is news: before there is a checkpoint, only what happened since is.
    #[must_use]
    pub fn is_news(self, at: Option<Timestamp>) -> bool {
        match self {
            // Cognito's times are whole seconds.
            Self::Since(since) => at.is_none_or(|at| at.as_second() >= since.as_second()),
            Self::At(_) => true,
        }
    }

    /// After a part of the feed that told to go on at `next`. A checkpoint never goes back.
    #[must_use]
    pub fn after(self, next: Option<u64>) -> Self {
        match (self, next) {
            (Self::At(at), Some(next)) => Self::At(at.max(next)),
            (Self::Since(_), Some(next)) => Self::At(next),
            (same, None) => same,
        }
    }
}

/// The days to ask for at `now` after what was read so far: from that of the newest entry, but never more than yesterday,
/// today and tomorrow, by whose clock ever. What is older is the sweep's to find.
#[must_use]
pub fn days(read: Option<&Days>, now: Timestamp) -> (Date, Date) {
    let day = |time: Timestamp| TimeZone::UTC.to_datetime(time).date();
    let today = day(now);
    let yesterday = today.yesterday().unwrap_or(today);
    let first = read.map_or(today, |read| day(earlier(read.newest)));
    (first.clamp(yesterday, today), today.tomorrow().unwrap_or(today))
}

/// The entries of `listed` that were not read before, each with its digest, and how far they were read with them. Without
/// `read` none is new.
#[must_use]
pub fn fresh(read: Option<&Days>, listed: Vec<Audit>, now: Timestamp) -> (Vec<(String, Audit)>, Days) {
    let mut alike: HashMap<String, u32> = HashMap::new();
    let mut entries: Vec<(Timestamp, String, Audit)> = Vec::with_capacity(listed.len());
    for entry in listed {
        // Without a time it cannot be told from those that were read.
        let Some(at) = entry.at else { continue };
        let what = format!("{}\0{}\0{}", at.as_second(), entry.user.as_deref().unwrap_or_default(), entry.message);
        let nth = alike.entry(what.clone()).or_default();
        *nth += 1;
        entries.push((at, digest_of(&format!("{what}\0{nth}")), entry));
    }
    let first_time =
        || TimeZone::UTC.to_datetime(now).date().to_zoned(TimeZone::UTC).map_or(now, |day| day.timestamp());
    let newest = entries.iter().map(|(at, ..)| *at).chain(read.map(|read| read.newest)).max();
    let newest = newest.unwrap_or_else(first_time);
    let mut seen: Vec<String> =
        entries.iter().filter(|(at, ..)| *at >= earlier(newest)).map(|(_, digest, _)| digest.clone()).collect();
    seen.truncate(SEEN_LIMIT);
    let fresh = match read {
        None => Vec::new(),
        Some(read) => {
            let known: std::collections::HashSet<&String> = read.seen.iter().collect();
            let horizon = earlier(read.newest);
            let news = entries.into_iter().filter(|(at, digest, _)| *at >= horizon && !known.contains(digest));
            news.map(|(_, digest, entry)| (digest, entry)).collect()
        }
    };
    (fresh, Days { newest, seen })
}

fn earlier(time: Timestamp) -> Timestamp {
    time.checked_sub(SignedDuration::try_from(OVERLAP).unwrap_or_default()).unwrap_or(Timestamp::MIN)
}

/// What tells an entry of a hosted feed from all others.
#[must_use]
pub fn id_of(entry: &Audit) -> String {
    let user = entry.user.as_deref().unwrap_or_default();
    entry.id.map_or_else(|| digest_of(&format!("{:?}\0{user}\0{}", entry.at, entry.message)), |id| id.to_string())
}

/// 16 hexadecimal digits: among the entries of a minute no two will agree by chance.
fn digest_of(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The events that an audit entry is worth: of each host one, when a tag that triggers something was set on it. `id` tells
/// the entry from all others.
///
/// A tag that was taken away asks for nothing (`cognito.md` 5.1), and what is done to other tags is nobody's business.
/// A list of tags that cannot be read may hold any tag.
#[must_use]
pub fn of_audit(policy: &Policy, self_user: Option<&str>, id: &str, entry: &Audit, now: Timestamp) -> Vec<Event> {
    let own = self_user.is_some() && entry.user.as_deref() == self_user;
    if own || !entry.succeeded {
        return Vec::new();
    }
    let triggers = triggers(policy);
    let event = |host: u64, event_id: String, kind: HostKind, hint: Option<Hint>| {
        let host = Host {
            event_id,
            sender: SENDER.to_owned(),
            host_id: host,
            kind,
            occurred_at: entry.at.unwrap_or(now),
            received_at: now,
            hint,
            actor: entry.user.as_deref().map(|user| cut(user).to_owned()),
            progress: None,
        };
        // What cannot be read may be about containment.
        let lane = if host.hint.is_none() { Lane::Urgent } else { host.lane(Some(&triggers)) };
        Event::new(host, lane)
    };
    let named = |tag: &String| triggers.urgent.contains(tag) || triggers.normal.contains(tag);
    match TagChange::parse(&entry.message) {
        None => Vec::new(),
        Some(TagChange::List { host, lists }) => {
            let Some(host) = host_id(&host) else { return Vec::new() };
            match lists {
                Some((_, after)) if !after.iter().any(named) => Vec::new(),
                Some((_, after)) => {
                    // Only what triggers is of use, and only that much fits for certain.
                    let tags = after.into_iter().filter(named).collect();
                    vec![event(host, id.to_owned(), HostKind::TagsChanged, Some(Hint::Tags(tags)))]
                }
                None => vec![event(host, id.to_owned(), HostKind::TagsChanged, None)],
            }
        }
        Some(TagChange::One { tag, added, hosts }) => {
            if !added || !named(&tag) {
                return Vec::new();
            }
            let hosts = hosts.iter().filter_map(|host| host_id(host));
            let one = |host| event(host, format!("{id}:{host}"), HostKind::TagAdded, Some(Hint::Tag(tag.clone())));
            hosts.map(one).collect()
        }
    }
}

/// The event that a changed score is worth. Thresholds are on scores that hosted feeds do not tell, so any change counts
/// for them; an urgency rule is held to the urgency told.
#[must_use]
pub fn of_scoring(policy: &Policy, scoring: &Scoring, now: Timestamp) -> Option<Event> {
    let is_host = scoring.kind.as_deref().is_none_or(|kind| kind.eq_ignore_ascii_case("host"));
    let urgent = policy.urgency.is_some_and(|least| scoring.urgency.is_none_or(|urgency| urgency >= least));
    if !is_host || !(urgent || policy.thresholds.is_some()) {
        return None;
    }
    let id =
        scoring.id.map_or_else(|| digest_of(&format!("{}\0{:?}", scoring.entity_id, scoring.at)), |id| id.to_string());
    let host = Host {
        event_id: format!("scoring-{id}"),
        sender: SENDER.to_owned(),
        host_id: scoring.entity_id,
        kind: HostKind::Scored,
        occurred_at: scoring.at.unwrap_or(now),
        received_at: now,
        hint: scoring.urgency.map(|urgency| Hint::Score { threat: None, certainty: None, urgency: Some(urgency) }),
        actor: None,
        progress: None,
    };
    Some(Event::new(host, Lane::Normal))
}

/// Of the events of one look, one for each host, the last, in the more urgent lane: the worker looks at the host as it is
/// by then.
#[must_use]
pub fn one_each(events: Vec<Event>) -> Vec<Event> {
    let mut last: BTreeMap<u64, Event> = BTreeMap::new();
    for mut event in events {
        if let Some(earlier) = last.get(&event.host.host_id) {
            event.lane = event.lane.min(earlier.lane);
        }
        last.insert(event.host.host_id, event);
    }
    let mut events: Vec<Event> = last.into_values().collect();
    events.sort_by_key(|event| event.lane);
    events
}

/// The tags that the policy acts on, by lane.
fn triggers(policy: &Policy) -> job::Triggers {
    let tags = |tags: &[&Option<String>]| tags.iter().copied().flatten().cloned().collect();
    job::Triggers { urgent: tags(&[&policy.block, &policy.unblock]), normal: tags(&[&policy.enrich]) }
}

fn host_id(digits: &str) -> Option<u64> {
    digits.parse().ok().filter(|id| *id > 0)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_LIMIT_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn now() -> Timestamp {
        at("2026-02-03T10:31:00Z")
    }

    fn policy() -> Policy {
        Policy {
            enrich: Some("host_context".into()),
            block: Some("block".into()),
            unblock: Some("unblock".into()),
            ..Policy::default()
        }
    }

    fn entry(time: &str, user: &str, message: &str) -> Audit {
        Audit { id: None, user: Some(user.into()), succeeded: true, message: message.into(), at: time.parse().ok() }
    }

    fn tagged(time: &str, host: u64, after: &str) -> Audit {
        entry(time, "analyst.one", &format!("[table:host][id:{host}] with tags [] was changed to [{after}]"))
    }

    /// (host, kind, lane, hint, event id) of the events of `entry`.
    fn worth(entry: &Audit) -> Vec<(u64, HostKind, Lane, Option<Hint>, String)> {
        let events = of_audit(&policy(), Some("bridge"), "audit-1", entry, now());
        events.into_iter().map(|e| (e.host.host_id, e.host.kind, e.lane, e.host.hint, e.host.event_id)).collect()
    }

    #[test]
    fn an_audit_entry_is_worth_an_event_when_a_trigger_was_set() {
        let time = "2026-02-03T10:30:45Z";
        let tags = |tags: &[&str]| Some(Hint::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect()));
        let id = || "audit-1".to_owned();
        use HostKind::{TagAdded, TagsChanged};
        use Lane::{Normal, Urgent};
        let change = "[table:host][id:4711] with tags";
        for (message, expected) in [
            (
                format!("{change} ['VIP'] was changed to ['VIP', 'block']"),
                vec![(4711, TagsChanged, Urgent, tags(&["block"]), id())],
            ),
            (
                format!("{change} [] was changed to ['host_context']"),
                vec![(4711, TagsChanged, Normal, tags(&["host_context"]), id())],
            ),
            (format!("{change} ['block'] was changed to ['VIP', 'Block']"), vec![]),
            (format!("{change} ['VIP'] was changed to ["), vec![(4711, TagsChanged, Urgent, None, id())]),
            (
                "Tag unblock has been added to hosts with ids [1, 2, 0]".into(),
                [1, 2]
                    .map(|host| (host, TagAdded, Urgent, Some(Hint::Tag("unblock".into())), format!("audit-1:{host}")))
                    .into(),
            ),
            ("Tag block has been removed from hosts with ids [1]".into(), vec![]),
            ("Tag VIP has been added to hosts with ids [1]".into(), vec![]),
            ("Tag block has been added to detections with ids [1]".into(), vec![]),
            ("User analyst.one logged in".into(), vec![]),
        ] {
            assert_eq!(worth(&entry(time, "analyst.one", &message)), expected, "{message}");
        }
        let set = format!("{change} [] was changed to ['block']");
        assert!(worth(&entry(time, "bridge", &set)).is_empty(), "our own change");
        assert!(
            worth(&Audit { succeeded: false, ..entry(time, "analyst.one", &set) }).is_empty(),
            "nothing was changed"
        );
        let event = &of_audit(&policy(), None, "audit-1", &entry(time, "bridge", &set), now())[0].host;
        assert_eq!((event.sender.as_str(), event.actor.as_deref()), ("feed", Some("bridge")));
        assert_eq!((event.occurred_at, event.received_at), (at(time), now()));
    }

    #[test]
    fn a_score_is_worth_an_event_when_a_rule_may_be_met() {
        let scoring = |urgency, kind: &str| Scoring {
            id: Some(50112),
            entity_id: 4711,
            kind: Some(kind.into()),
            name: None,
            urgency,
            at: Some(now()),
        };
        let with = |urgency, thresholds| Policy { urgency, thresholds, ..policy() };
        for (policy, scoring, expected) in [
            (with(None, None), scoring(Some(99), "host"), false),
            (with(Some(80), None), scoring(Some(80), "Host"), true),
            (with(Some(80), None), scoring(Some(79), "host"), false),
            (with(Some(80), None), scoring(None, "host"), true),
            (with(Some(80), None), scoring(Some(99), "account"), false),
            (with(None, Some((50, 50))), scoring(Some(1), "host"), true),
        ] {
            let event = of_scoring(&policy, &scoring, now());
            assert_eq!(event.is_some(), expected, "{policy:?} {scoring:?}");
            if let Some(Event { host, lane, .. }) = event {
                assert_eq!((host.host_id, host.kind, lane), (4711, HostKind::Scored, Lane::Normal));
                assert_eq!((host.event_id.as_str(), host.sender.as_str()), ("scoring-50112", "feed"));
            }
        }
    }

    #[test]
    fn the_first_look_begins_at_the_present() {
        let history = vec![tagged("2026-02-03T08:00:00Z", 1, "'block'"), tagged("2026-02-03T10:30:45Z", 2, "'block'")];
        let (fresh_entries, read) = fresh(None, history.clone(), now());
        assert!(fresh_entries.is_empty());
        assert_eq!(read.newest, at("2026-02-03T10:30:45Z"));
        assert!(fresh(Some(&read), history, now()).0.is_empty(), "what was there stays read");
        let (_, nothing) = fresh(None, vec![], now());
        assert_eq!(nothing.newest, at("2026-02-03T00:00:00Z"));
        let late = vec![tagged("2026-02-03T09:00:00Z", 1, "'block'")];
        assert_eq!(fresh(Some(&nothing), late, now()).0.len(), 1, "the brain's clock may be behind ours");
    }

    #[test]
    fn entries_of_one_second_are_told_apart_and_late_ones_are_taken() {
        let same = || tagged("2026-02-03T10:30:45Z", 1, "'block'");
        let (_, read) = fresh(None, vec![same()], now());
        let listed = vec![
            tagged("2026-02-03T10:28:00Z", 7, "'block'"),
            tagged("2026-02-03T10:30:00Z", 2, "'block'"),
            same(),
            same(),
            tagged("2026-02-03T10:30:45Z", 3, "'block'"),
            Audit { at: None, ..same() },
        ];
        let (news, read) = fresh(Some(&read), listed.clone(), now());
        let times: Vec<_> =
            news.iter().map(|(_, entry)| (entry.at.unwrap(), entry.message.contains("[id:1]"))).collect();
        assert_eq!(
            times,
            [
                (at("2026-02-03T10:30:00Z"), false),
                (at("2026-02-03T10:30:45Z"), true),
                (at("2026-02-03T10:30:45Z"), false)
            ]
        );
        assert!(fresh(Some(&read), listed, now()).0.is_empty());
    }

    #[test]
    fn the_days_reach_back_to_yesterday_and_forward_to_tomorrow() {
        let read = |time: &str| Days { newest: at(time), seen: vec![] };
        for (read, now, expected) in [
            (None, "2026-02-03T10:30:00Z", ("2026-02-03", "2026-02-04")),
            (Some(read("2026-02-03T10:29:00Z")), "2026-02-03T10:30:00Z", ("2026-02-03", "2026-02-04")),
            // Around midnight.
            (Some(read("2026-02-02T23:59:59Z")), "2026-02-03T00:00:01Z", ("2026-02-02", "2026-02-04")),
            (Some(read("2026-02-03T00:00:30Z")), "2026-02-03T00:00:31Z", ("2026-02-02", "2026-02-04")),
            (Some(read("2026-02-03T00:01:00Z")), "2026-02-03T00:02:00Z", ("2026-02-03", "2026-02-04")),
            // After a long stop, and with a brain whose clock is wrong.
            (Some(read("2026-01-01T00:00:00Z")), "2026-02-03T10:30:00Z", ("2026-02-02", "2026-02-04")),
            (Some(read("2026-03-01T00:00:00Z")), "2026-02-03T10:30:00Z", ("2026-02-03", "2026-02-04")),
        ] {
            let (first, last) = days(read.as_ref(), at(now));
            assert_eq!((first.to_string().as_str(), last.to_string().as_str()), expected, "{read:?} {now}");
        }
    }

    #[test]
    fn a_checkpoint_goes_forward_only() {
        let since = Checkpoint::Since(at("2026-02-03T10:30:45.7Z"));
        assert_eq!(since.after(None), since);
        assert_eq!(since.after(Some(7)), Checkpoint::At(7));
        assert_eq!(Checkpoint::At(7).after(None), Checkpoint::At(7));
        assert_eq!(Checkpoint::At(7).after(Some(9)), Checkpoint::At(9));
        assert_eq!(Checkpoint::At(7).after(Some(3)), Checkpoint::At(7));
        assert!(!since.is_news(Some(at("2026-02-03T10:30:44Z"))));
        assert!(since.is_news(Some(at("2026-02-03T10:30:45Z"))) && since.is_news(None));
        assert!(Checkpoint::At(7).is_news(Some(Timestamp::MIN)));
        assert_eq!(Checkpoint::At(7).start(), FeedStart::Checkpoint(7));
    }

    #[test]
    fn one_event_is_left_of_each_host_urgent_ones_first() {
        let event = |host, tag: &str| {
            let tagged = tagged("2026-02-03T10:30:45Z", host, &format!("'{tag}'"));
            of_audit(&policy(), None, "audit-1", &tagged, now()).remove(0)
        };
        let events =
            one_each(vec![event(1, "host_context"), event(2, "block"), event(2, "host_context"), event(3, "unblock")]);
        let left: Vec<_> = events.iter().map(|event| (event.host.host_id, event.lane)).collect();
        assert_eq!(left, [(2, Lane::Urgent), (3, Lane::Urgent), (1, Lane::Normal)]);
        assert_eq!(events[0].host.hint, Some(Hint::Tags(vec!["host_context".into()])));
    }

    #[test]
    fn positions_return_as_they_were_retained() {
        let (_, read) = fresh(None, vec![tagged("2026-02-03T10:30:45Z", 1, "'block'")], now());
        let positions = Positions {
            audits: Some(read),
            audit_events: Some(Checkpoint::At(71003)),
            scoring_events: Some(Checkpoint::Since(now())),
        };
        assert_eq!(Positions::decode(&positions.encode()), Ok(positions));
        assert_eq!(Positions::decode(br#"{"v":1,"unheard":"of"}"#), Ok(Positions::default()));
        assert!(Positions::decode(b"{}").is_err());
    }

    proptest! {
        /// A brain's log grows while it is read; entries of the last minute may come late.
        #[test]
        fn every_entry_is_read_once(batches in prop::collection::vec(prop::collection::vec((0_u64..50, 0_u64..5), 0..8), 1..12)) {
            let start = at("2026-02-03T09:00:00Z");
            let (mut log, mut read, mut told) = (Vec::new(), None, Vec::new());
            let (_, first) = fresh(None, vec![], start);
            read.replace(first);
            for (minute, batch) in batches.iter().enumerate() {
                for (second, host) in batch {
                    // Each batch's minute begins where the last one's ended.
                    let time = start + Duration::from_secs(minute as u64 * 50 + second);
                    log.push(Audit { at: Some(time), ..tagged("", *host, "'block'") });
                }
                let (news, after) = fresh(read.as_ref(), log.clone(), start);
                told.extend(news.into_iter().map(|(digest, _)| digest));
                read = Some(after);
            }
            prop_assert_eq!(told.len(), log.len());
            told.sort();
            told.dedup();
            prop_assert_eq!(told.len(), log.len(), "two entries have one digest");
        }
    }
}
