//! From Cognito's JSON to [`model`](super::model), tolerantly (`cognito.md` 3.3): unknown members are ignored, members
//! may be absent or null, ids and numbers may be text, times may have fractions. What cannot be read counts as absent,
//! but for what may be written back: a list of tags is read whole or not at all.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use serde_json::Value;

use super::model::{Artifact, Audit, Feed, Group, Host, HostsPage, Note, Scoring};
use super::text;

/// A host or an entity (call 1).
pub(super) fn host(body: &Value) -> Option<Host> {
    Some(Host {
        id: id(body)?,
        name: words(body, "name"),
        address: words(body, "last_source").or_else(|| words(body, "ip")),
        previous_addresses: list(body, "previous_ips").filter_map(Value::as_str).map(str::to_owned).collect(),
        last_seen: time(body, "last_seen"),
        last_detection: time(body, "last_detection_timestamp"),
        state: words(body, "state"),
        threat: small(body, "threat", 99),
        certainty: small(body, "certainty", 99),
        urgency: small(body, "urgency_score", 100),
        severity: words(body, "severity"),
        tags: list(body, "tags").filter_map(Value::as_str).map(str::to_owned).collect(),
        // The older name is deprecated, not gone. Either will do: it protects.
        is_key_asset: truth(body, "is_key_asset") || truth(body, "key_asset"),
        privilege_level: small(body, "privilege_level", 10).filter(|level| *level > 0),
        groups: list(body, "groups")
            .filter_map(|group| group.as_str().map(str::to_owned).or_else(|| words(group, "name")))
            .collect(),
        artifacts: list(body, "host_artifact_set")
            .filter_map(|artifact| Some(Artifact { kind: words(artifact, "type")?, value: words(artifact, "value")? }))
            .collect(),
    })
}

/// The tags of host `id` (calls 2 and 3). A tag that is no text, or another host's list, is no answer: the list would be
/// written back without it, or to the wrong host.
pub(super) fn tags(body: &Value, id: u64) -> Option<Vec<String>> {
    if body.get("tag_id").is_some_and(|told| whole(told) != Some(id)) {
        return None;
    }
    body.get("tags")?.as_array()?.iter().map(|tag| tag.as_str().map(str::to_owned)).collect()
}

/// A page of hosts (call 4).
pub(super) fn hosts(body: &Value) -> Option<HostsPage> {
    let (results, last) = results(body)?;
    Some(HostsPage { hosts: results.iter().filter_map(host).collect(), count: number(body, "count"), last })
}

/// A page of groups, and whether it is the last (call 8).
pub(super) fn groups(body: &Value) -> Option<(Vec<Group>, bool)> {
    let (results, last) = results(body)?;
    let group = |group: &Value| Some(Group { id: id(group)?, name: words(group, "name")?, kind: words(group, "type") });
    Some((results.iter().filter_map(group).collect(), last))
}

/// What a page of a list holds, and whether there is no further page. Where there is no word of a next one, the empty page
/// or the 404 after it will tell, unless this page holds all there is. A page may hold less than was asked for, so the
/// count alone says nothing.
fn results(body: &Value) -> Option<(&[Value], bool)> {
    let results = body.get("results")?.as_array()?.as_slice();
    let last = match body.get("next") {
        _ if results.is_empty() => true,
        Some(next) => next.is_null(),
        None => number(body, "count").is_some_and(|count| count <= results.len() as u64),
    };
    Some((results, last))
}

/// The notes of a host (call 5): a plain list. One that cannot be read is passed over.
pub(super) fn notes(body: &Value) -> Option<Vec<Note>> {
    Some(body.as_array()?.iter().filter_map(note).collect())
}

/// One note.
pub(super) fn note(body: &Value) -> Option<Note> {
    Some(Note {
        id: id(body)?,
        created_by: words(body, "created_by"),
        created: time(body, "date_created"),
        modified: time(body, "date_modified"),
        text: text::unescape(body.get("note").and_then(Value::as_str).unwrap_or_default()),
    })
}

/// The audit entries of some days (call 9).
pub(super) fn audits(body: &Value) -> Option<Vec<Audit>> {
    let audit = |entry: &Value| {
        Some(Audit {
            id: None,
            user: words(entry, "user"),
            succeeded: is_success(entry, "result"),
            message: words(entry, "message")?,
            at: epoch(entry.get("vectra_timestamp")?),
        })
    };
    Some(body.get("audits")?.as_array()?.iter().filter_map(audit).collect())
}

/// A part of a feed (call 10): an object, or just the events. Where it does not say how to go on, that is after the
/// newest event, for checkpoints are ids and include what they name.
pub(super) fn feed<T>(body: &Value, event: impl Fn(&Value) -> Option<T>) -> Option<Feed<T>> {
    let events = body.as_array().or_else(|| body.get("events")?.as_array())?;
    // Of those that cannot be read too, or the feed would come to them for ever.
    let after = || events.iter().filter_map(id).max().map(|newest| newest.saturating_add(1));
    Some(Feed {
        events: events.iter().filter_map(event).collect(),
        next_checkpoint: number(body, "next_checkpoint").or_else(after),
        remaining: number(body, "remaining_count"),
    })
}

/// A change of a score (call 10).
pub(super) fn scoring(body: &Value) -> Option<Scoring> {
    Some(Scoring {
        id: id(body),
        entity_id: number(body, "entity_id").filter(|id| *id > 0)?,
        kind: words(body, "type"),
        name: words(body, "name"),
        urgency: small(body, "urgency_score", 100),
        at: time(body, "event_timestamp"),
    })
}

/// An audit entry of a feed (call 10).
pub(super) fn audit_event(body: &Value) -> Option<Audit> {
    Some(Audit {
        id: id(body),
        user: words(body, "username"),
        succeeded: is_success(body, "result_status"),
        message: words(body, "message")?,
        at: time(body, "event_timestamp"),
    })
}

fn id(body: &Value) -> Option<u64> {
    number(body, "id").filter(|id| *id > 0)
}

/// Text that is not empty.
fn words(body: &Value, member: &str) -> Option<String> {
    body.get(member)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn list<'a>(body: &'a Value, member: &str) -> impl Iterator<Item = &'a Value> {
    body.get(member).and_then(Value::as_array).into_iter().flatten()
}

fn truth(body: &Value, member: &str) -> bool {
    match body.get(member) {
        Some(Value::Bool(told)) => *told,
        Some(Value::String(told)) => told.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

fn is_success(body: &Value, member: &str) -> bool {
    body.get(member).and_then(Value::as_str).is_some_and(|result| result.eq_ignore_ascii_case("success"))
}

fn number(body: &Value, member: &str) -> Option<u64> {
    body.get(member).and_then(whole)
}

/// A whole number, written as one, with a fraction of zero, or as text.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
            // Up to here floats tell whole numbers apart.
            (0.0..9_007_199_254_740_992.0).contains(&float).then_some(float as u64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn small(body: &Value, member: &str, most: u8) -> Option<u8> {
    u8::try_from(number(body, member)?).ok().filter(|number| *number <= most)
}

/// An RFC 3339 time; one without an offset is UTC.
fn time(body: &Value, member: &str) -> Option<Timestamp> {
    let text = body.get(member)?.as_str()?.trim();
    text.parse().ok().or_else(|| Offset::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok())
}

/// Seconds since 1970 as number or text, with or without a fraction, which is dropped.
fn epoch(value: &Value) -> Option<Timestamp> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Timestamp::from_second(Some(seconds).filter(|seconds| seconds.is_finite())?.floor() as i64).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn data(name: &str) -> Value {
        let path = format!("{}/tests/data/cognito/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_slice(&text).unwrap()
    }

    fn at(text: &str) -> Option<Timestamp> {
        Some(text.parse().unwrap())
    }

    fn artifact(kind: &str, value: &str) -> Artifact {
        Artifact { kind: kind.into(), value: value.into() }
    }

    const MACHINE: &str = "0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e";

    #[test]
    fn a_host_is_read_whole() {
        let expected = Host {
            id: 4711,
            name: Some("fin-lt-0042".into()),
            address: Some("192.0.2.42".into()),
            previous_addresses: vec!["198.51.100.17".into()],
            last_seen: at("2026-02-03T10:31:07Z"),
            last_detection: at("2026-02-03T09:58:41Z"),
            state: Some("active".into()),
            threat: Some(78),
            certainty: Some(66),
            urgency: None,
            severity: Some("Critical".into()),
            tags: vec!["VIP".into(), "block".into(), "mde:agent=found".into()],
            is_key_asset: false,
            privilege_level: Some(3),
            groups: vec!["Finance laptops".into(), "User VLANs".into()],
            artifacts: vec![
                artifact("kerberos", "fin-lt-0042"),
                artifact("dns", "fin-lt-0042.corp.example.com"),
                artifact("mac", "00:00:5e:00:53:2a"),
                artifact("windows_defender_name", "fin-lt-0042.corp.example.com"),
            ],
        };
        assert_eq!(host(&data("host.get.v2")), Some(expected));
    }

    #[test]
    fn a_sparse_host_is_read_as_far_as_it_goes() {
        let expected = Host {
            id: 4712,
            name: Some("IP-203.0.113.9".into()),
            address: Some("203.0.113.9".into()),
            state: Some("inactive".into()),
            threat: Some(0),
            certainty: Some(0),
            severity: Some("low".into()),
            tags: vec!["unblock".into(), "mde:isolation=isolated".into(), format!("mde:isolation-id={MACHINE}")],
            ..Host::default()
        };
        assert_eq!(host(&data("host.get.v2.sparse")), Some(expected));
    }

    #[test]
    fn an_entity_carries_its_urgency() {
        let host = host(&data("v3.entity.get")).unwrap();
        assert_eq!((host.id, host.urgency, host.privilege_level), (4711, Some(88), Some(3)));
        assert_eq!(host.tags, ["VIP", "block"]);
    }

    #[rstest]
    #[case::id_as_text(json!({"id": "4711"}), Host { id: 4711, ..Host::default() })]
    #[case::all_null(
        json!({"id": 1, "name": null, "last_source": null, "ip": null, "last_seen": null, "threat": null, "tags": null,
               "groups": null, "host_artifact_set": null, "is_key_asset": null, "privilege_level": null}),
        Host { id: 1, ..Host::default() }
    )]
    #[case::other_types(
        json!({"id": 1, "name": 7, "ip": [], "last_seen": 1770114646, "threat": "x", "tags": "block", "groups": {},
               "host_artifact_set": [null, {"type": "dns"}, {"type": "dns", "value": ""}], "is_key_asset": 0}),
        Host { id: 1, ..Host::default() }
    )]
    #[case::numbers_as_text(
        json!({"id": 1, "threat": "78", "certainty": 66.0, "urgency_score": "100", "privilege_level": "10"}),
        Host { id: 1, threat: Some(78), certainty: Some(66), urgency: Some(100), privilege_level: Some(10), ..Host::default() }
    )]
    #[case::numbers_out_of_range(
        json!({"id": 1, "threat": 100, "certainty": -1, "urgency_score": 101, "privilege_level": 0}),
        Host { id: 1, ..Host::default() }
    )]
    #[case::address_of_the_older_member(
        json!({"id": 1, "last_source": "", "ip": "192.0.2.1"}),
        Host { id: 1, address: Some("192.0.2.1".into()), ..Host::default() }
    )]
    #[case::key_asset_of_the_older_member(
        json!({"id": 1, "is_key_asset": false, "key_asset": true}),
        Host { id: 1, is_key_asset: true, ..Host::default() }
    )]
    #[case::groups_by_name(
        json!({"id": 1, "groups": ["NoBlock", {"id": 2, "name": "Servers"}, {"id": 3}]}),
        Host { id: 1, groups: vec!["NoBlock".into(), "Servers".into()], ..Host::default() }
    )]
    #[case::times(
        json!({"id": 1, "last_seen": "2026-02-03T10:31:07.250Z", "last_detection_timestamp": "2026-02-03T10:31:07"}),
        Host { id: 1, last_seen: at("2026-02-03T10:31:07.25Z"), last_detection: at("2026-02-03T10:31:07Z"), ..Host::default() }
    )]
    fn a_host_is_read_tolerantly(#[case] body: Value, #[case] expected: Host) {
        assert_eq!(host(&body), Some(expected));
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"id": 0}))]
    #[case(json!({"id": -1}))]
    #[case(json!({"id": 1.5}))]
    #[case(json!({"id": null}))]
    #[case(json!([]))]
    #[case(json!("host"))]
    fn what_has_no_id_is_no_host(#[case] body: Value) {
        assert_eq!(host(&body), None);
    }

    #[rstest]
    #[case("tags.get", &["VIP", "block", "mde:agent=found"])]
    #[case("v3.tagging.entity.get", &["VIP", "block"])]
    #[case("v3.tagging.entity.patch.response", &["VIP", "mde:agent=found"])]
    fn tags_are_read_whether_the_id_is_text_or_a_number(#[case] file: &str, #[case] expected: &[&str]) {
        assert_eq!(tags(&data(file), 4711).unwrap(), expected);
    }

    #[test]
    fn the_answer_to_a_write_holds_the_resulting_tags() {
        let asked = data("tags.patch.request");
        let resulting = tags(&data("tags.patch.response"), 4711).unwrap();
        assert_eq!(json!(resulting), asked["tags"]);
        assert_eq!(resulting.len(), 11);
    }

    #[rstest]
    #[case::empty(json!({"tags": []}), Some(vec![]))]
    #[case::without_id(json!({"tags": ["a", "a", " b "]}), Some(vec!["a", "a", " b "]))]
    #[case::another_host(json!({"tag_id": 4712, "tags": ["a"]}), None)]
    #[case::a_tag_that_is_no_text(json!({"tag_id": "4711", "tags": ["a", 7]}), None)]
    #[case::no_list(json!({"status": "success", "tag_id": "4711"}), None)]
    #[case::null(json!({"tags": null}), None)]
    #[case::failure(json!({"status": "failure", "message": "Could not find requested object"}), None)]
    fn tags_are_read_whole_or_not_at_all(#[case] body: Value, #[case] expected: Option<Vec<&str>>) {
        let expected = expected.map(|tags| tags.into_iter().map(str::to_owned).collect());
        assert_eq!(tags(&body, 4711), expected);
    }

    #[test]
    fn pages_are_read_and_the_last_is_told() {
        let first = hosts(&data("hosts.list.page1")).unwrap();
        assert_eq!((first.hosts.len(), first.hosts[0].id, first.count, first.last), (1, 4711, Some(2), false));
        let second = hosts(&data("hosts.list.page2")).unwrap();
        assert_eq!((second.hosts.len(), second.hosts[0].id, second.count, second.last), (1, 4712, Some(2), true));
        let found = hosts(&data("hosts.search")).unwrap();
        assert_eq!(found.hosts[0].last_seen, at("2026-02-03T10:31:07Z"));
        let none = hosts(&data("hosts.search.empty")).unwrap();
        assert_eq!(none, HostsPage { hosts: Vec::new(), count: Some(0), last: true });
    }

    #[rstest]
    #[case::link(json!({"next": "http://elsewhere.example/", "results": [{"id": 1}]}), Some(false))]
    #[case::null(json!({"next": null, "results": [{"id": 1}]}), Some(true))]
    #[case::empty_page(json!({"next": "http://elsewhere.example/", "results": []}), Some(true))]
    #[case::no_link_but_more(json!({"count": 3, "results": [{"id": 1}]}), Some(false))]
    #[case::no_link_and_no_more(json!({"count": 1, "results": [{"id": 1}]}), Some(true))]
    #[case::nothing_told(json!({"results": [{"id": 1}]}), Some(false))]
    #[case::unreadable_hosts(json!({"next": null, "results": [{}, null]}), Some(true))]
    #[case::no_list(json!({"next": null}), None)]
    #[case::bare_list(json!([{"id": 1}]), None)]
    fn the_end_of_a_list_is_told_in_several_ways(#[case] body: Value, #[case] last: Option<bool>) {
        assert_eq!(hosts(&body).map(|page| page.last), last);
    }

    #[test]
    fn notes_are_read_without_their_escapes() {
        let listed = notes(&data("notes.list")).unwrap();
        assert_eq!(listed.len(), 2);
        let expected = Note {
            id: 9001,
            created_by: Some("analyst.one".into()),
            created: at("2026-02-03T10:12:44Z"),
            modified: None,
            text: "Called the user; laptop is in the office.".into(),
        };
        assert_eq!(listed[0], expected);
        let escaped = notes(&data("notes.list.escaped")).unwrap();
        assert_eq!(escaped[0].text, "[defender-bridge] machine \"fin-lt-0042\" & 2 alerts [ref:0a1b2c3d4e5f]");
    }

    #[test]
    fn a_written_note_is_read() {
        let made = note(&data("note.create.response")).unwrap();
        assert_eq!((made.id, made.created), (9002, at("2026-02-03T10:32:02.48192Z")));
        assert_eq!(json!(made.text), data("note.create.request")["note"]);
        let changed = note(&data("note.update.response")).unwrap();
        assert_eq!(changed.modified, at("2026-02-03T10:47:18Z"));
    }

    #[rstest]
    #[case(json!([{"id": 1, "note": null}, {"note": "no id"}, null]), Some(1))]
    #[case(json!([]), Some(0))]
    #[case(json!({"results": []}), None)]
    fn a_list_of_notes_is_a_plain_list(#[case] body: Value, #[case] expected: Option<usize>) {
        assert_eq!(notes(&body).map(|notes| notes.len()), expected);
    }

    #[test]
    fn groups_are_read() {
        let expected = Group { id: 55, name: "NoBlock".into(), kind: Some("host".into()) };
        assert_eq!(groups(&data("groups.list")), Some((vec![expected], true)));
    }

    #[test]
    fn audit_entries_of_both_flavours_are_read() {
        let message = "[table:host][id:4711] with tags ['VIP'] was changed to ['VIP', 'block']";
        let expected = Audit {
            id: None,
            user: Some("analyst.one".into()),
            succeeded: true,
            message: message.into(),
            at: at("2026-02-03T10:30:45Z"),
        };
        assert_eq!(audits(&data("audits.v2")), Some(vec![expected.clone()]));
        let part = feed(&data("v3.events.audits"), audit_event).unwrap();
        let user = Some("analyst.one@example.com".to_owned());
        assert_eq!(part.events[0], Audit { id: Some(71001), user, ..expected });
        assert_eq!((part.events.len(), part.next_checkpoint, part.remaining), (2, Some(71003), Some(0)));
    }

    #[rstest]
    #[case(json!("1770114645"), Some("2026-02-03T10:30:45Z"))]
    #[case(json!(1770114645), Some("2026-02-03T10:30:45Z"))]
    #[case(json!("1770114645.75"), Some("2026-02-03T10:30:45Z"))]
    #[case(json!("yesterday"), None)]
    #[case(json!("NaN"), None)]
    #[case(json!(1e300), None)]
    #[case(json!(null), None)]
    fn times_of_audits_are_seconds(#[case] value: Value, #[case] expected: Option<&str>) {
        assert_eq!(epoch(&value), expected.and_then(at));
    }

    #[test]
    fn changes_of_scores_are_read() {
        let expected = Scoring {
            id: Some(50112),
            entity_id: 4711,
            kind: Some("host".into()),
            name: Some("fin-lt-0042".into()),
            urgency: Some(88),
            at: at("2026-02-03T10:00:02Z"),
        };
        let part = feed(&data("v3.events.entity_scoring"), scoring).unwrap();
        assert_eq!(part, Feed { events: vec![expected], next_checkpoint: Some(50113), remaining: Some(0) });
    }

    #[rstest]
    #[case::bare_list(json!([{"id": 7, "entity_id": 1}, {"id": 6, "entity_id": 2}]), Some((2, Some(8))))]
    #[case::nothing_new(json!([]), Some((0, None)))]
    #[case::nothing_new_as_object(json!({"events": [], "next_checkpoint": 9}), Some((0, Some(9))))]
    #[case::checkpoint_as_text(json!({"events": [], "next_checkpoint": "9"}), Some((0, Some(9))))]
    #[case::no_checkpoint(json!({"events": [{"id": 7, "entity_id": 1}]}), Some((1, Some(8))))]
    #[case::unreadable_events(json!({"events": [{"id": 7}, null], "next_checkpoint": 9}), Some((0, Some(9))))]
    #[case::unreadable_events_alone(json!([{"id": 7}, null]), Some((0, Some(8))))]
    #[case::no_events(json!({"next_checkpoint": 9}), None)]
    #[case::text(json!("events"), None)]
    fn a_feed_says_where_to_go_on(#[case] body: Value, #[case] expected: Option<(usize, Option<u64>)>) {
        let part = feed(&body, scoring);
        assert_eq!(part.map(|part| (part.events.len(), part.next_checkpoint)), expected);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reading_of_times(text in ".{0,40}") {
            let _ = (time(&json!({"t": &text}), "t"), epoch(&json!(text)));
        }
    }
}
