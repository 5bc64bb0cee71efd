//! Which tags are ours, and what they say (`cognito.md` 5.3).
//!
//! A tag is ours if and only if it begins with the prefix of the policy, with case. All others are foreign: nothing here
//! reads or makes one. No tag of ours may hold a value that differs between two runs in a row when nothing happened
//! (`cognito.md` 4.6), so none holds a count or the present time.

use super::matching::Context;
use super::state::State;

/// Longest value of a tag of ours, in characters.
const MAX_VALUE_CHARS: usize = 80;
/// Longest tag of ours, in characters (`cognito.md` 3.4).
const MAX_TAG_CHARS: usize = 100;

/// The names of the tags about the machine; all other names are about the isolation.
const CONTEXT: [&str; 8] = ["agent", "match", "name", "os", "health", "risk", "exposure", "id"];

/// Whether `tag` is ours.
#[must_use]
pub fn is_ours(prefix: &str, tag: &str) -> bool {
    !prefix.is_empty() && tag.starts_with(prefix)
}

/// Whether `c` may be in a value of ours.
#[must_use]
pub const fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-' | '/')
}

/// The tag `name` with `value`: characters other than `A-Z a-z 0-9 . _ : - /` become `_`, and what is too long is cut.
/// `None` for an empty value.
#[must_use]
pub fn own(prefix: &str, name: &str, value: &str) -> Option<String> {
    let mut tag = format!("{prefix}{name}=");
    let room = MAX_VALUE_CHARS.min(MAX_TAG_CHARS.saturating_sub(tag.chars().count()));
    let value = value.trim().chars().take(room).map(|c| if is_plain(c) { c } else { '_' });
    let before = tag.len();
    tag.extend(value);
    (tag.len() > before).then_some(tag)
}

/// The values that `tags` hold under `name`, sorted and without repeats, so that their order in Cognito says nothing.
pub(super) fn values<'a>(prefix: &str, name: &str, tags: &'a [String]) -> Vec<&'a str> {
    let value = |tag: &'a String| tag.strip_prefix(prefix)?.strip_prefix(name)?.strip_prefix('=');
    let mut values: Vec<&str> = tags.iter().filter_map(value).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// All tags of ours that a host should carry: what is said of its machine, or what `present` says of it when `context` is
/// `None`, and the state of its isolation.
#[must_use]
pub fn wanted(prefix: &str, context: Option<&Context>, state: &State, present: &[String]) -> Vec<String> {
    let mut wanted = match context {
        Some(context) => of_context(prefix, context),
        None => kept(prefix, present),
    };
    wanted.extend(state.tags(prefix));
    wanted
}

fn of_context(prefix: &str, context: &Context) -> Vec<String> {
    let tag = |name: &str, value: Option<&str>| own(prefix, name, value?);
    let tags: Vec<Option<String>> = match context {
        Context::Found { machine, weak } => vec![
            tag("agent", Some("found")),
            tag("match", weak.then_some("weak")),
            tag("name", machine.computer_dns_name.as_deref()),
            tag("os", machine.os_platform.as_deref()),
            tag("health", machine.health_status.as_deref()),
            tag("risk", machine.risk_score.as_deref()),
            tag("exposure", machine.exposure_level.as_deref()),
            tag("id", Some(&machine.id)),
        ],
        Context::None => vec![tag("agent", Some("none"))],
        Context::Ambiguous(_) => vec![tag("agent", Some("ambiguous"))],
    };
    tags.into_iter().flatten().collect()
}

/// The context tags of `present`, one of each name.
fn kept(prefix: &str, present: &[String]) -> Vec<String> {
    let one = |name: &&str| Some(format!("{prefix}{name}={}", values(prefix, name, present).first()?));
    CONTEXT.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::defender::model::Machine;

    const P: &str = "mde:";

    fn strings(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|&tag| tag.to_owned()).collect()
    }

    fn found(weak: bool) -> Context {
        let machine = Machine {
            id: "0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e".into(),
            computer_dns_name: Some("fin-lt-0042.corp.example.com".into()),
            os_platform: Some("Windows11".into()),
            health_status: Some("Active".into()),
            risk_score: Some("High".into()),
            exposure_level: Some("Medium".into()),
            last_seen: Some("2026-02-03T10:31:07Z".into()),
            ..Machine::default()
        };
        Context::Found { machine: Box::new(machine), weak }
    }

    #[test]
    fn a_tag_is_ours_by_its_prefix_with_case() {
        for (tag, expected) in [
            ("mde:os=Linux", true),
            ("mde:", true),
            ("mde:anything at all", true),
            ("MDE:os=Linux", false),
            (" mde:os=Linux", false),
            ("mde", false),
            ("VIP", false),
            ("id: 1", false),
        ] {
            assert_eq!(is_ours(P, tag), expected, "{tag}");
        }
        assert!(!is_ours("", "VIP"), "without a prefix nothing is ours");
    }

    #[test]
    fn the_context_of_a_machine() {
        let expected = [
            "mde:agent=found",
            "mde:name=fin-lt-0042.corp.example.com",
            "mde:os=Windows11",
            "mde:health=Active",
            "mde:risk=High",
            "mde:exposure=Medium",
            "mde:id=0f3c9a5be1d24786a9c0b7e85d4412f63ba8c71e",
        ];
        assert_eq!(wanted(P, Some(&found(false)), &State::default(), &[]), expected);
        let weak = wanted(P, Some(&found(true)), &State::default(), &[]);
        assert_eq!(weak[..2], ["mde:agent=found", "mde:match=weak"]);
        assert_eq!(weak[2..], expected[1..]);
    }

    #[test]
    fn a_null_or_empty_value_writes_no_tag() {
        let machine = Machine { id: "a".repeat(40), os_platform: Some(" ".into()), ..Machine::default() };
        let context = Context::Found { machine: Box::new(machine), weak: false };
        let tags = wanted(P, Some(&context), &State::default(), &[]);
        assert_eq!(tags, ["mde:agent=found".to_owned(), format!("mde:id={}", "a".repeat(40))]);
    }

    #[test]
    fn not_finding_a_machine_removes_its_context_and_never_the_isolation() {
        let present = strings(&["mde:agent=found", "mde:os=Windows11", "mde:isolation=isolated"]);
        let state = State::read(P, &present);
        let of = |context| wanted(P, Some(&context), &state, &present);
        assert_eq!(of(Context::None), ["mde:agent=none", "mde:isolation=isolated"]);
        assert_eq!(of(Context::Ambiguous(3)), ["mde:agent=ambiguous", "mde:isolation=isolated"]);
    }

    #[test]
    fn context_that_is_not_looked_up_stays_and_each_name_stands_once() {
        let present =
            strings(&["VIP", "mde:os=Windows11", "mde:agent=found", "mde:os=Linux", "mde:unheard=of", "mde:x"]);
        assert_eq!(wanted(P, None, &State::default(), &present), ["mde:agent=found", "mde:os=Linux"]);
    }

    #[test]
    fn values_are_plain_and_bounded() {
        assert_eq!(own(P, "name", "Büro PC,1\"#").as_deref(), Some("mde:name=B_ro_PC_1__"));
        assert_eq!(own(P, "name", &"x".repeat(200)).map(|tag| tag.len()), Some("mde:name=".len() + 80));
        assert_eq!(own("twenty-characters-x:", "name", &"x".repeat(200)).map(|tag| tag.len()), Some(100));
    }

    proptest! {
        #[test]
        fn a_value_never_holds_what_a_list_filter_divides_at(value in any::<String>()) {
            if let Some(tag) = own(P, "name", &value) {
                prop_assert!(tag.chars().all(|c| is_plain(c) || c == '=') && tag.len() <= MAX_TAG_CHARS);
                prop_assert!(is_ours(P, &tag));
                // Sanitising again changes nothing.
                let value = tag.strip_prefix("mde:name=").unwrap();
                prop_assert_eq!(own(P, "name", value), Some(tag.clone()));
            }
        }

        #[test]
        fn the_order_of_tags_says_nothing(
            tags in prop::collection::vec("(mde:)?(agent|os|name|isolation|isolation-id)=[a-c]{1,2}", 0..8),
        ) {
            let mut turned = tags.clone();
            turned.reverse();
            let of = |tags: &[String]| wanted(P, None, &State::read(P, tags), tags);
            prop_assert_eq!(of(&tags), of(&turned));
        }
    }
}
