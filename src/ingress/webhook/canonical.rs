//! Events in the bridge's own form (`cognito.md` 4.3, "canonical event"). A member that is null counts as absent; unknown
//! members are ignored; so are `host.name` and `host.ip`, which must only be texts. Pure.
//!
//! There is one brain: whatever an event's `brain` says, it is that one (`cognito.md` 4.3, "Which brain").

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::event::{Event, Fault, TEXT_LIMIT_BYTES, host_id, score, score_hint};
use crate::job::{Hint, HostKind};

const KINDS: [HostKind; 5] =
    [HostKind::TagAdded, HostKind::TagRemoved, HostKind::TagsChanged, HostKind::Scored, HostKind::Reconcile];

/// Longest id of an event.
const ID_LIMIT: usize = 128;

/// Reads an event; `None` when its `type` is none of ours.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn read(members: &Map<String, Value>) -> Option<Result<Event, Vec<Fault>>> {
    let name = members.get("type")?.as_str()?;
    let kind = KINDS.into_iter().find(|kind| kind.as_str() == name)?;
    let mut reader = Reader { members, faults: Vec::new() };
    let event = reader.event(kind);
    Some(if reader.faults.is_empty() { Ok(event) } else { Err(reader.faults) })
}

struct Reader<'a> {
    members: &'a Map<String, Value>,
    faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    fn event(&mut self, kind: HostKind) -> Event {
        let id = self.text("/id", "invalid_event_id", |id| {
            (1..=ID_LIMIT).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-'))
        });
        let host = self.at("/host/id").and_then(host_id);
        if host.is_none() {
            self.fault("invalid_host_id", "/host/id");
        }
        for (pointer, code) in
            [("/host/name", "invalid_host_name"), ("/host/ip", "invalid_host_ip"), ("/brain", "invalid_brain")]
        {
            self.text(pointer, code, |_| true);
        }
        let occurred_at = self.text("/occurred_at", "invalid_occurred_at", |time| time.parse::<Timestamp>().is_ok());
        let hint = match kind {
            HostKind::TagAdded | HostKind::TagRemoved => self.tag(),
            HostKind::TagsChanged => self.tags(),
            HostKind::Scored => self.scores(),
            HostKind::Reconcile => None,
        };
        let decreased = kind == HostKind::Scored && self.decreased();
        let actor = self.text("/actor", "invalid_actor", |_| true).map(str::to_owned);
        Event {
            id: id.map(str::to_owned),
            occurred_at: occurred_at.and_then(|time| time.parse().ok()),
            hint,
            actor,
            decreased,
            // Without one there is a fault.
            ..Event::of(kind, host.unwrap_or_default())
        }
    }

    fn tag(&mut self) -> Option<Hint> {
        let fits = |tag: &str| (1..=TEXT_LIMIT_BYTES).contains(&tag.len());
        let tag = self.text("/tag", "invalid_tag", fits);
        if self.at("/tag").is_none() {
            self.fault("invalid_tag", "/tag");
        }
        tag.map(|tag| Hint::Tag(tag.to_owned()))
    }

    fn tags(&mut self) -> Option<Hint> {
        match self.at("/tags")? {
            Value::Object(_) => {}
            _ => {
                self.fault("invalid_tags", "/tags");
                return None;
            }
        }
        self.list("/tags/before");
        self.list("/tags/after").map(Hint::Tags)
    }

    fn list(&mut self, pointer: &str) -> Option<Vec<String>> {
        let Value::Array(items) = self.at(pointer)? else {
            self.fault("invalid_tags", pointer);
            return None;
        };
        let mut tags = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.as_str() {
                Some(tag) => tags.push(tag.to_owned()),
                None => self.fault("invalid_tags", &format!("{pointer}/{index}")),
            }
        }
        Some(tags)
    }

    fn scores(&mut self) -> Option<Hint> {
        match self.at("/score")? {
            Value::Object(_) => {}
            _ => {
                self.fault("invalid_score", "/score");
                return None;
            }
        }
        let [threat, certainty, urgency] = ["/score/threat", "/score/certainty", "/score/urgency"].map(|pointer| {
            let given = self.at(pointer)?;
            let score = score(given);
            if score.is_none() {
                self.fault("invalid_score", pointer);
            }
            score
        });
        score_hint(threat, certainty, urgency)
    }

    fn decreased(&mut self) -> bool {
        match self.at("/score/decreased") {
            None => false,
            Some(Value::Bool(decreased)) => *decreased,
            Some(_) => {
                self.fault("invalid_score", "/score/decreased");
                false
            }
        }
    }

    /// The member at `pointer`, of one or two names; `None` when it is absent or null.
    fn at(&self, pointer: &str) -> Option<&'a Value> {
        let mut names = pointer.split('/').skip(1);
        let first = self.members.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name)).filter(|value| !value.is_null())
    }

    /// The text at `pointer`; a fault when it is there and is no text, or not one that `fits`.
    fn text(&mut self, pointer: &str, code: &'static str, fits: impl FnOnce(&str) -> bool) -> Option<&'a str> {
        let value = self.at(pointer)?;
        let text = value.as_str().filter(|text| fits(text));
        if text.is_none() {
            self.fault(code, pointer);
        }
        text
    }

    fn fault(&mut self, code: &'static str, pointer: &str) {
        self.faults.push(Fault::new(code, pointer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    fn event(value: &Value) -> Option<Result<Event, Vec<Fault>>> {
        read(value.as_object().unwrap())
    }

    fn faults(value: &Value) -> Vec<(&'static str, String)> {
        let Some(Err(faults)) = event(value) else { panic!("no faults in {value}") };
        faults.into_iter().map(|fault| (fault.code, fault.pointer)).collect()
    }

    fn example(text: &str) -> Event {
        event(&serde_json::from_str(text).unwrap()).unwrap().unwrap()
    }

    fn at(time: &str) -> Option<Timestamp> {
        Some(time.parse().unwrap())
    }

    #[test]
    fn the_examples_are_read() {
        let analyst = Some("analyst.one".to_owned());
        assert_eq!(
            example(include_str!("../../../tests/data/cognito/event.host.tag.added.json")),
            Event {
                id: Some("evt-2026-000001".into()),
                occurred_at: at("2026-02-03T10:30:45Z"),
                hint: Some(Hint::Tag("block".into())),
                actor: analyst.clone(),
                ..Event::of(HostKind::TagAdded, 4711)
            }
        );
        assert_eq!(
            example(include_str!("../../../tests/data/cognito/event.host.tag.removed.json")),
            Event {
                id: Some("evt-2026-000002".into()),
                occurred_at: at("2026-02-03T11:02:10Z"),
                hint: Some(Hint::Tag("block".into())),
                actor: analyst.clone(),
                ..Event::of(HostKind::TagRemoved, 4711)
            }
        );
        assert_eq!(
            example(include_str!("../../../tests/data/cognito/event.host.tags.changed.json")),
            Event {
                id: Some("evt-2026-000003".into()),
                occurred_at: at("2026-02-03T11:05:00Z"),
                hint: Some(Hint::Tags(vec!["VIP".into(), "unblock".into()])),
                actor: analyst,
                ..Event::of(HostKind::TagsChanged, 4711)
            }
        );
        assert_eq!(
            example(include_str!("../../../tests/data/cognito/event.host.scored.json")),
            Event {
                id: Some("evt-2026-000004".into()),
                occurred_at: at("2026-02-03T10:00:02Z"),
                hint: Some(Hint::Score { threat: Some(78), certainty: Some(66), urgency: None }),
                ..Event::of(HostKind::Scored, 4711)
            }
        );
        assert_eq!(
            example(include_str!("../../../tests/data/cognito/event.host.reconcile.json")),
            Event { occurred_at: at("2026-02-03T12:00:00Z"), ..Event::of(HostKind::Reconcile, 4711) }
        );
    }

    #[rstest]
    #[case::number(json!(1), Some(1))]
    #[case::largest(json!(u64::MAX), Some(u64::MAX))]
    #[case::digits(json!("4711"), Some(4711))]
    #[case::leading_zeros(json!("007"), Some(7))]
    #[case::zero(json!(0), None)]
    #[case::zero_in_digits(json!("0"), None)]
    #[case::negative(json!(-1), None)]
    #[case::sign(json!("+1"), None)]
    #[case::space(json!(" 1"), None)]
    #[case::whole_with_a_point(json!(319.0), Some(319))]
    #[case::fraction(json!(1.5), None)]
    #[case::too_large_with_a_point(json!(18_446_744_073_709_551_616.0), None)]
    #[case::words(json!("not-a-number"), None)]
    #[case::empty(json!(""), None)]
    #[case::too_large(json!("18446744073709551616"), None)]
    #[case::null(json!(null), None)]
    #[case::list(json!([1]), None)]
    fn a_host_has_an_id_from_one(#[case] id: Value, #[case] expected: Option<u64>) {
        let value = json!({"type": "host.reconcile", "host": {"id": id}});
        match expected {
            Some(id) => assert_eq!(event(&value), Some(Ok(Event::of(HostKind::Reconcile, id)))),
            None => assert_eq!(faults(&value), [("invalid_host_id", "/host/id".to_owned())]),
        }
    }

    /// An event with one member set; the pointer's path exists already but for its last name.
    fn with(kind: &str, pointer: &str, value: Value) -> Value {
        let mut event = json!({"type": kind, "host": {"id": 1}, "tag": "block", "tags": {}, "score": {}});
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        event.pointer_mut(parent).unwrap()[name] = value;
        event
    }

    #[rstest]
    #[case("/id", "invalid_event_id", json!(""))]
    #[case("/id", "invalid_event_id", json!("a.b"))]
    #[case("/id", "invalid_event_id", json!("ä"))]
    #[case("/id", "invalid_event_id", json!("i".repeat(129)))]
    #[case("/id", "invalid_event_id", json!(7))]
    #[case("/occurred_at", "invalid_occurred_at", json!("yesterday"))]
    #[case("/occurred_at", "invalid_occurred_at", json!("2026-02-30T00:00:00Z"))]
    #[case("/occurred_at", "invalid_occurred_at", json!(1_770_114_645))]
    #[case("/brain", "invalid_brain", json!(["hq"]))]
    #[case("/host/name", "invalid_host_name", json!(1))]
    #[case("/host/ip", "invalid_host_ip", json!({}))]
    #[case("/actor", "invalid_actor", json!(false))]
    #[case("/tag", "invalid_tag", json!(""))]
    #[case("/tag", "invalid_tag", json!(["block"]))]
    #[case("/tag", "invalid_tag", json!(null))]
    #[case("/tag", "invalid_tag", json!("t".repeat(1025)))]
    fn a_bad_member_is_named(#[case] pointer: &str, #[case] code: &'static str, #[case] value: Value) {
        assert_eq!(faults(&with("host.tag.added", pointer, value.clone())), [(code, pointer.to_owned())]);
        // A tag means nothing elsewhere.
        if pointer == "/tag" {
            assert!(event(&with("host.reconcile", pointer, value)).unwrap().is_ok());
        }
    }

    #[rstest]
    #[case("host.tags.changed", "/tags", json!(["block"]), "invalid_tags", "/tags")]
    #[case("host.tags.changed", "/tags/after", json!("block"), "invalid_tags", "/tags/after")]
    #[case("host.tags.changed", "/tags/before", json!(["a", 1]), "invalid_tags", "/tags/before/1")]
    #[case("host.scored", "/score", json!(78), "invalid_score", "/score")]
    #[case("host.scored", "/score/threat", json!(101), "invalid_score", "/score/threat")]
    #[case("host.scored", "/score/certainty", json!(-1), "invalid_score", "/score/certainty")]
    #[case("host.scored", "/score/urgency", json!("88"), "invalid_score", "/score/urgency")]
    #[case("host.scored", "/score/decreased", json!("yes"), "invalid_score", "/score/decreased")]
    fn a_bad_hint_is_named_where_it_means_something(
        #[case] kind: &str,
        #[case] pointer: &str,
        #[case] value: Value,
        #[case] code: &'static str,
        #[case] at: &str,
    ) {
        assert_eq!(faults(&with(kind, pointer, value.clone())), [(code, at.to_owned())]);
        assert!(event(&with("host.reconcile", pointer, value)).unwrap().is_ok());
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let value = json!({"type": "host.tag.removed", "id": "", "host": {"id": 0, "name": 1}, "actor": 1, "brain": 2});
        let codes: Vec<_> = faults(&value).into_iter().map(|(code, _)| code).collect();
        let expected = [
            "invalid_event_id",
            "invalid_host_id",
            "invalid_host_name",
            "invalid_brain",
            "invalid_tag",
            "invalid_actor",
        ];
        assert_eq!(codes, expected);
        assert_eq!(faults(&json!({"type": "host.reconcile", "host": 4711})).len(), 1);
        assert_eq!(faults(&json!({"type": "host.reconcile"})).len(), 1);
    }

    #[test]
    fn null_counts_as_absent_and_the_unknown_is_ignored() {
        let value = json!({
            "type": "host.scored", "id": null, "occurred_at": null, "brain": null, "actor": null, "score": null,
            "host": {"id": 1, "name": null, "ip": null, "more": []}, "more": {},
        });
        assert_eq!(event(&value), Some(Ok(Event::of(HostKind::Scored, 1))));
        let changed = with("host.tags.changed", "/tags/after", json!(null));
        assert_eq!(event(&changed), Some(Ok(Event::of(HostKind::TagsChanged, 1))));
    }

    #[test]
    fn any_brain_is_the_only_one() {
        for brain in ["hq", "branch", ""] {
            let value = with("host.reconcile", "/brain", json!(brain));
            assert_eq!(event(&value), Some(Ok(Event::of(HostKind::Reconcile, 1))));
        }
    }

    #[test]
    fn scores_lose_their_fractions_and_may_be_said_to_fall() {
        let value = json!({"type": "host.scored", "host": {"id": 1},
            "score": {"threat": 0, "certainty": 100, "urgency": 88.9, "decreased": true}});
        let expected = Event {
            hint: Some(Hint::Score { threat: Some(0), certainty: Some(100), urgency: Some(88) }),
            decreased: true,
            ..Event::of(HostKind::Scored, 1)
        };
        assert_eq!(event(&value), Some(Ok(expected)));
    }

    #[test]
    fn other_types_are_not_ours() {
        for kind in
            [json!("host"), json!("host."), json!("host.tag"), json!("Host.scored"), json!("account.scored"), json!(1)]
        {
            assert_eq!(event(&json!({"type": kind, "host": {"id": 1}})), None, "{kind}");
        }
        assert_eq!(event(&json!({"host": {"id": 1}})), None);
    }

    /// Any JSON, the members of events among it.
    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z0-9 :.T+-]{0,24}".prop_map(Value::from),
        ];
        let name = prop::sample::select(vec!["id", "name", "ip", "before", "after", "threat", "decreased", "x"]);
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((name.clone(), inner), 0..4)
                    .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_an_event_or_has_faults_with_pointers_to_what_is_there_or_missing(
            kind in prop::sample::select(KINDS.to_vec()),
            id in json_value(), host in json_value(), tag in json_value(), tags in json_value(), score in json_value(),
            actor in json_value(), occurred_at in json_value(),
        ) {
            let value = json!({
                "type": kind.as_str(), "id": id, "host": host, "tag": tag, "tags": tags, "score": score, "actor": actor,
                "occurred_at": occurred_at,
            });
            match event(&value) {
                Some(Ok(event)) => prop_assert!(event.hosts[0] >= 1),
                Some(Err(faults)) => {
                    prop_assert!(!faults.is_empty());
                    for fault in faults {
                        let known = value.pointer(&fault.pointer).is_some();
                        prop_assert!(known || matches!(fault.code, "invalid_host_id" | "invalid_tag"), "{:?}", fault);
                    }
                }
                None => prop_assert!(false, "a known kind"),
            }
        }
    }
}
