//! What a received event is: one of the bridge's own form, one of Cognito's native messages, or nothing that matters
//! (`cognito.md` 4.3). Pure.

use jiff::Timestamp;
use serde_json::Value;

use super::{canonical, native};
use crate::job::{Hint, HostKind};

/// The longest tag or name of a user that is carried on, in bytes. One native message may become a thousand events, each
/// with the tag and the user in it.
pub(super) const TEXT_LIMIT_BYTES: usize = 1024;

/// An event that concerns hosts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// The sender's own id.
    pub(super) id: Option<String>,
    pub(super) kind: HostKind,
    /// Cognito's ids, each once; at least one.
    pub(super) hosts: Vec<u64>,
    /// When it happened, by the sender.
    pub(super) occurred_at: Option<Timestamp>,
    pub(super) hint: Option<Hint>,
    /// Who did it.
    pub(super) actor: Option<String>,
    /// The scores went down: the host needs no look.
    pub(super) decreased: bool,
    /// What of the message is not among `hosts`.
    pub(super) surplus: Option<Fault>,
}

impl Event {
    /// An event about one host, and no more than that.
    pub(super) fn of(kind: HostKind, host: u64) -> Self {
        Self {
            id: None,
            kind,
            hosts: vec![host],
            occurred_at: None,
            hint: None,
            actor: None,
            decreased: false,
            surplus: None,
        }
    }
}

/// What is wrong with a member of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// A short stable word.
    pub(super) code: &'static str,
    /// JSON pointer (RFC 6901) to the member, from the event.
    pub(super) pointer: String,
}

impl Fault {
    pub(super) fn new(code: &'static str, pointer: impl Into<String>) -> Self {
        Self { code, pointer: pointer.into() }
    }
}

/// What becomes of one element of a body.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Recognition {
    /// Hosts are to be looked at.
    Event(Event),
    /// Nothing to do, and why.
    Ignored(&'static str),
    /// An event that cannot be used: all its faults, at least one.
    Rejected(Vec<Fault>),
}

/// Says what `element` of a body is. `self_user` is whose changes are not worth a look.
pub(super) fn recognise(element: &Value, self_user: Option<&str>) -> Recognition {
    let Value::Object(members) = element else {
        return Recognition::Rejected(vec![Fault::new("not_an_object", "")]);
    };
    let read = match canonical::read(members) {
        Some(read) => Some(read),
        None => native::read(members),
    };
    match read {
        // Log forwarders cannot filter well, and an error would make them send it again for ever.
        None => Recognition::Ignored("unknown_kind"),
        Some(Err(faults)) => Recognition::Rejected(faults),
        Some(Ok(event)) if event.decreased => Recognition::Ignored("score_decrease"),
        Some(Ok(event)) if self_user.is_some() && event.actor.as_deref() == self_user => {
            Recognition::Ignored("own_change")
        }
        Some(Ok(mut event)) => {
            if let Some(actor) = &mut event.actor {
                actor.truncate(actor.floor_char_boundary(TEXT_LIMIT_BYTES));
            }
            Recognition::Event(event)
        }
    }
}

/// The first whole number that is too large for an id: 2^64.
const TOO_LARGE: f64 = 18_446_744_073_709_551_616.0;

/// A host's id: a whole number from 1, or its decimal digits as a text.
pub(super) fn host_id(value: &Value) -> Option<u64> {
    // `319.0` and `1e3` are whole numbers too.
    let whole = |number: f64| (number.fract() == 0.0 && (1.0..TOO_LARGE).contains(&number)).then_some(number as u64);
    match value {
        Value::Number(number) => number.as_u64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => decimal(text),
        _ => None,
    }
    .filter(|id| *id >= 1)
}

/// A whole number from 1 in decimal digits.
pub(super) fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|id| *id >= 1)
}

/// A score from 0 to 100; fractions are dropped.
pub(super) fn score(value: &Value) -> Option<u8> {
    let score = value.as_f64()?;
    // Truncation of what lies within the range of a byte.
    (0.0..=100.0).contains(&score).then_some(score as u8)
}

/// The hint of a score event, if it has one.
pub(super) fn score_hint(threat: Option<u8>, certainty: Option<u8>, urgency: Option<u8>) -> Option<Hint> {
    let there = threat.or(certainty).or(urgency).is_some();
    there.then_some(Hint::Score { threat, certainty, urgency })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tagged(actor: &str) -> Value {
        json!({"type": "host.tag.added", "host": {"id": 1}, "tag": "block", "actor": actor})
    }

    #[test]
    fn what_is_of_no_known_kind_is_ignored() {
        for value in [
            json!({}),
            json!({"type": "host.exploded", "host": {"id": 1}}),
            json!({"type": "account.scored", "account": {"id": 1}}),
            json!({"message": "vectra_json_health -: {\"version\": \"9.4\"}"}),
            json!({"category": "CAMPAIGNS", "host_id": 1}),
        ] {
            assert_eq!(recognise(&value, None), Recognition::Ignored("unknown_kind"), "{value}");
        }
    }

    #[test]
    fn an_element_is_an_object() {
        for value in [json!(null), json!(1), json!("host.reconcile"), json!([{"type": "host.reconcile"}])] {
            assert_eq!(
                recognise(&value, None),
                Recognition::Rejected(vec![Fault::new("not_an_object", "")]),
                "{value}"
            );
        }
    }

    #[test]
    fn a_fall_of_scores_is_ignored() {
        let value = json!({"type": "host.scored", "host": {"id": 1}, "score": {"decreased": true}});
        assert_eq!(recognise(&value, None), Recognition::Ignored("score_decrease"));
        let value = json!({"type": "host.scored", "host": {"id": 0}, "score": {"decreased": true}});
        assert!(matches!(recognise(&value, None), Recognition::Rejected(_)));
        // Elsewhere it says nothing.
        let value = json!({"type": "host.reconcile", "host": {"id": 1}, "score": {"decreased": true}});
        assert!(matches!(recognise(&value, None), Recognition::Event(_)));
    }

    #[test]
    fn only_our_own_changes_are_ignored() {
        for (actor, self_user, ignored) in [
            ("bridge", Some("bridge"), true),
            ("Bridge", Some("bridge"), false),
            ("analyst", Some("bridge"), false),
            ("bridge", None, false),
        ] {
            let recognition = recognise(&tagged(actor), self_user);
            assert_eq!(recognition == Recognition::Ignored("own_change"), ignored, "{actor} {self_user:?}");
        }
        let nobody = json!({"type": "host.reconcile", "host": {"id": 1}});
        assert!(matches!(recognise(&nobody, Some("bridge")), Recognition::Event(_)));
    }

    #[test]
    fn a_long_name_of_a_user_is_cut_between_characters() {
        let Recognition::Event(event) = recognise(&tagged(&"€".repeat(1000)), None) else { panic!("no event") };
        assert_eq!(event.actor, Some("€".repeat(341)));
    }
}
