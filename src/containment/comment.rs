//! The comment that every request to Defender carries, by which our own actions are known again and counted
//! (`cognito.md` 5.7 and 6.4): `defender-bridge: isolate, Cognito host 4711 (cognito.example.com), tag block, event e-1`.

use crate::defender::model::MachineAction;

/// What every comment of ours begins with.
const MARKER: &str = "defender-bridge: ";
/// Bounds of the parts, in characters; together with the words a comment stays under 500. Ids of events are shorter.
const MAX_BRAIN_CHARS: usize = 100;
const MAX_TAG_CHARS: usize = 100;
const MAX_EVENT_CHARS: usize = 200;

/// What Defender is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Isolate the machine.
    Isolate,
    /// Release it from isolation.
    Release,
    /// Take back a request that has not ended.
    Cancel,
}

impl Verb {
    /// All of them.
    const ALL: [Self; 3] = [Self::Isolate, Self::Release, Self::Cancel];

    /// The word in the comment.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Isolate => "isolate",
            Self::Release => "release",
            Self::Cancel => "cancel",
        }
    }
}

/// Why Defender is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause<'a> {
    /// A tag was set.
    Tag(&'a str),
    /// The isolation's time is over.
    Expiry,
    /// An operator asked for it on the command line.
    Operator,
}

/// A comment of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// What was asked for.
    pub verb: Verb,
    /// For which host of Cognito.
    pub host_id: u64,
    /// The event that led to it.
    pub event_id: String,
}

/// Whose an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// The bridge asked for it while it worked on this very event.
    ThisEvent,
    /// The bridge asked for it.
    Bridge,
    /// Somebody else did: the portal, another product, Defender itself.
    Other,
}

/// The comment of a request, at most 500 characters on one line.
#[must_use]
pub fn compose(verb: Verb, host_id: u64, brain: &str, cause: Cause<'_>, event_id: &str) -> String {
    let brain = plain(brain, MAX_BRAIN_CHARS);
    let cause = match cause {
        Cause::Tag(tag) => format!("tag {}", plain(tag, MAX_TAG_CHARS)),
        Cause::Expiry => "expired".to_owned(),
        Cause::Operator => "operator".to_owned(),
    };
    format!("{MARKER}{}, Cognito host {host_id} ({brain}), {cause}, event {}", verb.as_str(), event_text(event_id))
}

/// The comment of a request that a relay trigger asks for, at most 500 characters on one line; `job_id` is what it is known
/// again by (`DESIGN.md` 10, ruling 13).
#[must_use]
pub fn compose_trigger(verb: Verb, text: &str, job_id: &str) -> String {
    format!("{MARKER}{}, {}, event {}", verb.as_str(), plain(text, MAX_EVENT_CHARS), event_text(job_id))
}

/// Whether a comment of ours was made for this event or job.
#[must_use]
pub fn names_event(comment: &str, event_id: &str) -> bool {
    let event = event_text(event_id);
    is_ours(comment) && comment.trim_end().rsplit_once(", event ").is_some_and(|(_, named)| named == event)
}

/// Reads a comment of ours about a host.
#[must_use]
pub fn parse(comment: &str) -> Option<Marker> {
    let rest = comment.trim().strip_prefix(MARKER)?;
    let (verb, rest) = rest.split_once(", Cognito host ")?;
    let verb = Verb::ALL.into_iter().find(|one| one.as_str() == verb)?;
    let (host_id, rest) = rest.split_once(" (")?;
    let host_id = host_id.parse().ok()?;
    // A tag may hold these words itself; the event is what comes last, and holds no space.
    let (_, event_id) = rest.rsplit_once(", event ")?;
    Some(Marker { verb, host_id, event_id: event_id.to_owned() })
}

/// Whose `action` is. What begins as our comments do is ours even if the rest was cut or changed: it counts against the
/// caps (`cognito.md` 6.4).
#[must_use]
pub fn whose(action: &MachineAction, host_id: u64, event_id: &str) -> Whose {
    let Some(comment) = action.requestor_comment.as_deref() else { return Whose::Other };
    match parse(comment) {
        Some(marker) if marker.host_id == host_id && marker.event_id == event_text(event_id) => Whose::ThisEvent,
        _ if is_ours(comment) => Whose::Bridge,
        _ => Whose::Other,
    }
}

/// Whether a comment is one of ours.
#[must_use]
pub fn is_ours(comment: &str) -> bool {
    comment.trim_start().starts_with(MARKER)
}

fn event_text(event_id: &str) -> String {
    plain(event_id, MAX_EVENT_CHARS).replace(' ', "_")
}

/// On one line, cut, and never empty.
fn plain(text: &str, limit: usize) -> String {
    let odd = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    let text: String = text.trim().chars().take(limit).map(|c| if odd(c) { '_' } else { c }).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn comments_say_who_asked_for_what_and_why() {
        let brain = "cognito.example.com";
        assert_eq!(
            compose(Verb::Isolate, 4711, brain, Cause::Tag("block"), "evt-2026-000001"),
            "defender-bridge: isolate, Cognito host 4711 (cognito.example.com), tag block, event evt-2026-000001"
        );
        assert_eq!(
            compose(Verb::Release, 4711, brain, Cause::Expiry, "sweep-1"),
            "defender-bridge: release, Cognito host 4711 (cognito.example.com), expired, event sweep-1"
        );
        assert_eq!(
            compose(Verb::Cancel, 1, "", Cause::Operator, ""),
            "defender-bridge: cancel, Cognito host 1 (-), operator, event -"
        );
    }

    #[test]
    fn actions_are_known_again() {
        let own = compose(Verb::Isolate, 4711, "hq", Cause::Tag("cut, event x, off"), "e-1");
        let rows = [
            (Some(own.as_str()), Whose::ThisEvent),
            (Some("defender-bridge: isolate, Cognito host 4711 (hq), tag block, event e-2"), Whose::Bridge),
            (Some("defender-bridge: isolate, Cognito host 4712 (hq), tag block, event e-1"), Whose::Bridge),
            // Cut or changed on its way.
            (Some("defender-bridge: isolate, Cogn"), Whose::Bridge),
            (Some(" defender-bridge: something of a later version"), Whose::Bridge),
            (Some("isolated by hand, as defender-bridge: isolate would"), Whose::Other),
            (Some("event e-1"), Whose::Other),
            (Some(""), Whose::Other),
            (None, Whose::Other),
        ];
        for (comment, expected) in rows {
            let action = MachineAction { requestor_comment: comment.map(str::to_owned), ..MachineAction::default() };
            assert_eq!(whose(&action, 4711, "e-1"), expected, "{comment:?}");
        }
    }

    #[test]
    fn a_triggers_comment_is_ours_and_names_its_job() {
        let comment = compose_trigger(Verb::Isolate, "Requested\nthrough a relay", "01-ab");
        assert_eq!(comment, "defender-bridge: isolate, Requested_through a relay, event 01-ab");
        assert!(is_ours(&comment) && names_event(&comment, "01-ab") && !names_event(&comment, "01-a"));
        assert!(!names_event("somebody's, event 01-ab", "01-ab"));
        let action = MachineAction { requestor_comment: Some(comment), ..MachineAction::default() };
        assert_eq!(whose(&action, 4711, "e-1"), Whose::Bridge, "it counts");
    }

    proptest! {
        #[test]
        fn a_comment_is_bounded_and_read_back(
            verb in prop::sample::select(Verb::ALL.to_vec()),
            host_id: u64,
            brain in ".{0,150}",
            tag in prop_oneof![".{0,150}", "(, event |\\), tag | \\(|a){0,5}"],
            event_id in prop_oneof!["[!-~]{1,150}", ".{0,300}"],
        ) {
            let comment = compose(verb, host_id, &brain, Cause::Tag(&tag), &event_id);
            prop_assert!(comment.chars().count() <= 500 && !comment.contains(char::is_control));
            let marker = parse(&comment).expect("a comment of ours");
            prop_assert_eq!((marker.verb, marker.host_id), (verb, host_id));
            let action = MachineAction { requestor_comment: Some(comment), ..MachineAction::default() };
            prop_assert_eq!(whose(&action, host_id, &event_id), Whose::ThisEvent);
        }

        #[test]
        fn no_comment_is_a_panic(comment in any::<String>(), near in "defender-bridge: (isolate)?(, Cognito host )?[0-9]{0,25} ?\\(?.{0,20}") {
            let _ = (parse(&comment), parse(&near));
        }
    }
}
