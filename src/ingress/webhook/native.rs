//! Cognito's own messages, as syslog and log forwarders carry them (`cognito.md` 4.2 and 4.3, steps 2 to 6). They are read
//! tolerantly: only an id that is none is a fault, everything else that cannot be read is a hint less. Pure.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::event::{Event, Fault, TEXT_LIMIT_BYTES, decimal, host_id, score, score_hint};
use crate::cognito::audit::TagChange;
use crate::job::{Hint, HostKind};

/// Hosts of one message at most (`cognito.md` 4.3, step 6b). The sweep finds the others.
const HOSTS_LIMIT: usize = 1000;

/// The word that all of Cognito's JSON messages begin with in syslog.
const SYSLOG_PREFIX: &str = "vectra_json_";

type Read = Option<Result<Event, Vec<Fault>>>;

/// Reads a message; `None` when it is of no kind that concerns hosts.
///
/// # Errors
/// What is wrong with its host.
pub(super) fn read(members: &Map<String, Value>) -> Read {
    match text(members, "message").and_then(unwrapped) {
        // Forwarders wrap the line that they got; once.
        Some(inner) => plain(&inner).map(|read| read.map_err(within_message)),
        None => plain(members),
    }
}

/// The JSON at the end of a syslog line: `vectra_json_<word> -: {...}`, or with `- :` in between.
fn unwrapped(line: &str) -> Option<Map<String, Value>> {
    line.match_indices(SYSLOG_PREFIX).find_map(|(at, _)| {
        let rest = &line[at + SYSLOG_PREFIX.len()..];
        let word = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let rest = rest[word..].trim_start();
        let rest = rest.strip_prefix("-:").or_else(|| rest.strip_prefix("- :"))?;
        if word == 0 { None } else { serde_json::from_str(rest).ok() }
    })
}

/// All that the sender wrote is the one text.
fn within_message(faults: Vec<Fault>) -> Vec<Fault> {
    faults.into_iter().map(|fault| Fault::new(fault.code, "/message")).collect()
}

fn plain(members: &Map<String, Value>) -> Read {
    let category = text(members, "category").map(|word| word.to_ascii_uppercase().replace('_', " "));
    let category = category.as_deref().unwrap_or_default();
    if category == "HOST SCORING"
        && let Some(id) = given(members, "host_id")
    {
        return Some(scoring(members, id));
    }
    if text(members, "type") == Some("host")
        && let Some(id) = given(members, "entity_id")
        && let Some(urgency) = given(members, "urgency_score")
    {
        return Some(entity_scoring(members, id, urgency));
    }
    if category == "HOST LOCKDOWN"
        && let Some(id) = given(members, "host_id")
    {
        return Some(lockdown(members, id));
    }
    audit(members)
}

fn scoring(members: &Map<String, Value>, id: &Value) -> Result<Event, Vec<Fault>> {
    let host = host_id(id).ok_or_else(|| bad_host("/host_id"))?;
    let score = |name| given(members, name).and_then(tolerant_score);
    let decreased = match members.get("score_decreases") {
        Some(Value::Bool(decreased)) => *decreased,
        // In samples whose members are texts.
        Some(Value::String(word)) => word.eq_ignore_ascii_case("true"),
        _ => false,
    };
    Ok(Event {
        occurred_at: epoch(members),
        hint: score_hint(score("threat"), score("certainty"), None),
        decreased,
        ..Event::of(HostKind::Scored, host)
    })
}

fn entity_scoring(members: &Map<String, Value>, id: &Value, urgency: &Value) -> Result<Event, Vec<Fault>> {
    let host = host_id(id).ok_or_else(|| bad_host("/entity_id"))?;
    let hint = score_hint(None, None, tolerant_score(urgency));
    Ok(Event { occurred_at: rfc3339(members), hint, ..Event::of(HostKind::Scored, host) })
}

fn lockdown(members: &Map<String, Value>, id: &Value) -> Result<Event, Vec<Fault>> {
    let host = host_id(id).ok_or_else(|| bad_host("/host_id"))?;
    let actor = text(members, "user").map(str::to_owned);
    Ok(Event { occurred_at: epoch(members), actor, ..Event::of(HostKind::Reconcile, host) })
}

/// An audit entry of either kind of brain that tells of a change of tags and of its success.
fn audit(members: &Map<String, Value>) -> Read {
    let message = text(members, "message")?;
    let on_premises = given(members, "vectra_timestamp").and_then(|_| text(members, "result"));
    let hosted = given(members, "event_timestamp").and_then(|_| text(members, "result_status"));
    if on_premises.or(hosted)? != "success" {
        return None;
    }
    let entry = Event {
        occurred_at: epoch(members).or_else(|| rfc3339(members)),
        actor: text(members, "user").or_else(|| text(members, "username")).map(str::to_owned),
        ..Event::of(HostKind::TagsChanged, 0)
    };
    match TagChange::parse(message)? {
        TagChange::List { host, lists } => {
            let Some(host) = decimal(&host) else { return Some(Err(bad_host("/message"))) };
            let hint = lists.map(|(_, after)| Hint::Tags(after));
            Some(Ok(Event { hosts: vec![host], hint, ..entry }))
        }
        TagChange::One { tag, added, hosts } => {
            let kind = if added { HostKind::TagAdded } else { HostKind::TagRemoved };
            let hint = (tag.len() <= TEXT_LIMIT_BYTES).then_some(Hint::Tag(tag));
            let mut seen = HashSet::new();
            let Some(mut ids) = hosts.iter().map(|id| decimal(id)).collect::<Option<Vec<u64>>>() else {
                return Some(Err(bad_host("/message")));
            };
            ids.retain(|id| seen.insert(*id));
            let surplus = (ids.len() > HOSTS_LIMIT).then(|| Fault::new("too_many_hosts", "/message"));
            ids.truncate(HOSTS_LIMIT);
            Some(Ok(Event { kind, hosts: ids, hint, surplus, ..entry }))
        }
    }
}

fn bad_host(pointer: &str) -> Vec<Fault> {
    vec![Fault::new("invalid_host_id", pointer)]
}

/// A member that is neither absent nor null.
fn given<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    members.get(name).filter(|value| !value.is_null())
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name)?.as_str()
}

/// A score, as a number or in digits.
fn tolerant_score(value: &Value) -> Option<u8> {
    match value {
        Value::String(text) => score(&text.trim().parse::<f64>().ok()?.into()),
        other => score(other),
    }
}

/// `vectra_timestamp`: seconds since 1970, mostly as a text.
fn epoch(members: &Map<String, Value>) -> Option<Timestamp> {
    let seconds = match members.get("vectra_timestamp")? {
        Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    Timestamp::from_duration(jiff::SignedDuration::try_from_secs_f64(seconds).ok()?).ok()
}

/// `event_timestamp`.
fn rfc3339(members: &Map<String, Value>) -> Option<Timestamp> {
    text(members, "event_timestamp")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn event(value: &Value) -> Read {
        read(value.as_object().unwrap())
    }

    fn example(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn at(time: &str) -> Option<Timestamp> {
        Some(time.parse().unwrap())
    }

    fn tags(tags: &[&str]) -> Option<Hint> {
        Some(Hint::Tags(tags.iter().map(|tag| (*tag).to_owned()).collect()))
    }

    /// The form of a wrapped line, with what forwarders put around it.
    fn wrapped(inner: &str) -> Value {
        json!({"timestamp": "2026-02-03T10:30:45Z", "host": "cognito.example.com", "message": inner})
    }

    const AUDIT: &str = include_str!("../../../tests/data/cognito/native.qux.audit.host-tags.json");
    const SCORING: &str = include_str!("../../../tests/data/cognito/native.qux.host-scoring.json");
    const LOCKDOWN: &str = include_str!("../../../tests/data/cognito/native.qux.host-lockdown.json");

    fn changed() -> Event {
        Event {
            occurred_at: at("2026-02-03T10:30:45Z"),
            hint: tags(&["VIP", "block"]),
            actor: Some("analyst.one".into()),
            ..Event::of(HostKind::TagsChanged, 4711)
        }
    }

    fn scored() -> Event {
        Event {
            occurred_at: at("2026-02-03T10:00:02Z"),
            hint: Some(Hint::Score { threat: Some(78), certainty: Some(66), urgency: None }),
            ..Event::of(HostKind::Scored, 4711)
        }
    }

    #[test]
    fn the_examples_are_read() {
        let hosted = Some("analyst.one@example.com".to_owned());
        for (text, expected) in [
            (AUDIT, Some(changed())),
            (include_str!("../../../tests/data/cognito/native.qux.wrapped-syslog.json"), Some(changed())),
            (SCORING, Some(scored())),
            (include_str!("../../../tests/data/cognito/native.qux.host-scoring.stringified.json"), Some(scored())),
            (
                LOCKDOWN,
                Some(Event {
                    occurred_at: at("2026-02-03T10:40:00Z"),
                    actor: Some("analyst.one".into()),
                    ..Event::of(HostKind::Reconcile, 4711)
                }),
            ),
            (include_str!("../../../tests/data/cognito/native.qux.audit.login.json"), None),
            (
                include_str!("../../../tests/data/cognito/native.rux.audit.host-tags.json"),
                Some(Event { actor: hosted.clone(), ..changed() }),
            ),
            (
                include_str!("../../../tests/data/cognito/native.rux.audit.bulk-tag.json"),
                Some(Event {
                    kind: HostKind::TagAdded,
                    hosts: vec![4711, 4712],
                    hint: Some(Hint::Tag("block".into())),
                    actor: hosted,
                    ..changed()
                }),
            ),
            (
                include_str!("../../../tests/data/cognito/native.rux.entity-scoring.host.json"),
                Some(Event {
                    hint: Some(Hint::Score { threat: None, certainty: None, urgency: Some(88) }),
                    ..scored()
                }),
            ),
        ] {
            assert_eq!(event(&example(text)), expected.map(Ok), "{text}");
        }
    }

    #[test]
    fn a_wrapped_line_is_unwrapped_once() {
        let inner = example(AUDIT).to_string();
        for line in [
            format!("vectra_json_audit -: {inner}"),
            format!("vectra_json_audit - : {inner}\n"),
            format!("<13>1 2026-02-03T10:30:45Z cognito.example.com vectra_json_audit -:{inner}  "),
            format!("vectra_json_ vectra_json_x: vectra_json_audit -: {inner}"),
        ] {
            assert_eq!(event(&wrapped(&line)), Some(Ok(changed())), "{line}");
        }
        for line in [
            format!("vectra_json_ -: {inner}"),
            format!("vectra_json_audit: {inner}"),
            format!("vectra_json_audit -: {inner} and more"),
            format!("vectra_json_audit -: [{inner}]"),
            format!("vectra_json_audit -: {}", &inner[..inner.len() - 1]),
            format!("vectra_json_audit -: {}", wrapped(&format!("vectra_json_audit -: {inner}"))),
            inner.clone(),
        ] {
            assert_eq!(event(&wrapped(&line)), None, "{line}");
        }
        let canonical = r#"vectra_json_v2 -: {"type": "host.reconcile", "host": {"id": 1}}"#;
        assert_eq!(event(&wrapped(canonical)), None);
        let bad = SCORING.replace("4711,", "\"x\",");
        let line = format!("vectra_json_v2 -: {}", example(&bad));
        assert_eq!(event(&wrapped(&line)), Some(Err(vec![Fault::new("invalid_host_id", "/message")])));
    }

    /// An example with one member set.
    fn with(text: &str, name: &str, value: Value) -> Value {
        let mut event = example(text);
        event[name] = value;
        event
    }

    #[test]
    fn scores_are_read_tolerantly() {
        for (name, value, expected) in [
            ("category", json!("host_scoring"), Some(Ok(scored()))),
            ("category", json!("HOST_SCORING"), Some(Ok(scored()))),
            ("category", json!("ACCOUNT SCORING"), None),
            ("host_id", json!("4711"), Some(Ok(scored()))),
            ("host_id", json!(null), None),
            ("host_id", json!("fin-lt-0042"), Some(Err(bad_host("/host_id")))),
            ("host_id", json!(0), Some(Err(bad_host("/host_id")))),
            ("threat", json!("78"), Some(Ok(scored()))),
            (
                "threat",
                json!("high"),
                Some(Ok(Event {
                    hint: Some(Hint::Score { threat: None, certainty: Some(66), urgency: None }),
                    ..scored()
                })),
            ),
            ("score_decreases", json!(true), Some(Ok(Event { decreased: true, ..scored() }))),
            ("score_decreases", json!("True"), Some(Ok(Event { decreased: true, ..scored() }))),
            ("score_decreases", json!(null), Some(Ok(scored()))),
            ("vectra_timestamp", json!(1_770_112_802), Some(Ok(scored()))),
            ("vectra_timestamp", json!("soon"), Some(Ok(Event { occurred_at: None, ..scored() }))),
            ("vectra_timestamp", json!("1e300"), Some(Ok(Event { occurred_at: None, ..scored() }))),
            ("vectra_timestamp", json!("NaN"), Some(Ok(Event { occurred_at: None, ..scored() }))),
            ("detection_profile", json!(""), Some(Ok(scored()))),
            ("mac_address", json!(null), Some(Ok(scored()))),
        ] {
            assert_eq!(event(&with(SCORING, name, value.clone())), expected, "{name} {value}");
        }
    }

    #[test]
    fn entities_other_than_hosts_are_not_ours() {
        let text = include_str!("../../../tests/data/cognito/native.rux.entity-scoring.host.json");
        for (name, value) in
            [("type", json!("account")), ("entity_id", json!(null)), ("urgency_score", json!(null)), ("type", json!(1))]
        {
            assert_eq!(event(&with(text, name, value.clone())), None, "{name} {value}");
        }
        assert_eq!(event(&with(text, "entity_id", json!("x"))), Some(Err(bad_host("/entity_id"))));
    }

    #[test]
    fn lockdowns_are_looked_at_whatever_their_outcome() {
        let expected = event(&example(LOCKDOWN));
        assert!(matches!(&expected, Some(Ok(event)) if event.kind == HostKind::Reconcile));
        for (name, value) in
            [("success", json!(false)), ("action", json!("unlock")), ("category", json!("Host lockdown"))]
        {
            assert_eq!(event(&with(LOCKDOWN, name, value.clone())), expected, "{name} {value}");
        }
        assert_eq!(event(&with(LOCKDOWN, "host_id", json!([]))), Some(Err(bad_host("/host_id"))));
    }

    #[test]
    fn only_successful_audit_entries_about_hosts_count() {
        let unread = "[table:host][id:4711] with tags ? was changed to ?";
        for (name, value, expected) in [
            ("result", json!("failure"), None),
            ("result", json!(null), None),
            ("vectra_timestamp", json!(null), None),
            ("message", json!("[table:linked_account][id:1] with tags [] was changed to ['block']"), None),
            ("message", json!("Tag block has been added to detections with ids [1]"), None),
            ("message", json!(["log in"]), None),
            ("message", json!(unread), Some(Ok(Event { hint: None, ..changed() }))),
            (
                "message",
                json!("[table:host][id:99999999999999999999] with tags [] was changed to []"),
                Some(Err(bad_host("/message"))),
            ),
            ("message", json!("Tag a has been removed from hosts with ids [1, 0]"), Some(Err(bad_host("/message")))),
            ("user", json!(null), Some(Ok(Event { actor: None, ..changed() }))),
        ] {
            assert_eq!(event(&with(AUDIT, name, value.clone())), expected, "{name} {value}");
        }
        // A failed entry does not count because it has the members of the other kind too.
        let mut both = with(AUDIT, "result", json!("failure"));
        both["result_status"] = json!("success");
        both["event_timestamp"] = json!("2026-02-03T10:30:45Z");
        assert_eq!(event(&both), None);
    }

    fn bulk(tag: &str, ids: &[u64]) -> Event {
        let ids = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let message = format!("Tag {tag} has been added to hosts with ids [{ids}]");
        event(&with(AUDIT, "message", json!(message))).unwrap().unwrap()
    }

    #[test]
    fn a_bulk_change_is_one_event_for_each_host_up_to_a_thousand() {
        let read = bulk("block", &(1..=1000).collect::<Vec<_>>());
        assert_eq!((read.kind, read.hosts.len(), read.surplus), (HostKind::TagAdded, 1000, None));
        let read = bulk("block", &(1..=1001).collect::<Vec<_>>());
        assert_eq!(read.hosts, (1..=1000).collect::<Vec<_>>());
        assert_eq!(read.surplus, Some(Fault::new("too_many_hosts", "/message")));
        assert_eq!(bulk("block", &[2, 1, 2, 1]).hosts, [2, 1]);
        // A tag that no setting can hold is not carried a thousand times.
        assert_eq!(bulk(&"t".repeat(1024), &[1]).hint, Some(Hint::Tag("t".repeat(1024))));
        assert_eq!(bulk(&"t".repeat(1025), &[1]).hint, None);
    }

    proptest! {
        #[test]
        fn nothing_panics(
            message in "(vectra_json_v2 -: |\\[table:host\\]\\[id:|Tag |has been added to hosts with ids \\[|[0-9]{1,22}|\\]|\\{|\\}|\"|'| with tags | was changed to ){0,12}",
            word in any::<String>(), number in any::<f64>(), whole in any::<i64>(),
        ) {
            for value in [json!(word), json!(number), json!(whole), json!({}), json!([word]), json!(null)] {
                for text in [AUDIT, SCORING, LOCKDOWN] {
                    for name in ["host_id", "category", "threat", "score_decreases", "vectra_timestamp", "message", "result", "user"] {
                        let _ = event(&with(text, name, value.clone()));
                    }
                }
            }
            let _ = event(&with(AUDIT, "message", json!(message)));
            let _ = event(&json!({"message": message}));
        }
    }
}
