//! What an organisation wants of the bridge for its hosts (`cognito.md` 5.2 and 6, `DESIGN.md` 3).

use std::fmt;
use std::time::Duration;

use super::network::Network;
use super::pattern::NamePattern;
use super::tags;

/// Highest threat, certainty and urgency score.
const MAX_SCORE: u8 = 100;
/// Highest privilege level.
const MAX_PRIVILEGE: u8 = 10;
/// The end of an isolation is written with minutes.
const MIN_TTL: Duration = Duration::from_secs(60);
/// An isolation that ends after more than a year is one without end.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// Bounds the prefix, so that the longest tag of ours stays under Cognito's 100 characters with an id in it.
const MAX_PREFIX_CHARS: usize = 20;

/// Settings of host events. A feature whose tag is not named is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The tag that asks for Defender's context.
    pub enrich: Option<String>,
    /// The tag that asks for isolation.
    pub block: Option<String>,
    /// The tag that asks for release.
    pub unblock: Option<String>,
    /// Threat and certainty, 0 to 100: a host at or above both is enriched.
    pub thresholds: Option<(u8, u8)>,
    /// Urgency, 0 to 100: a host of a hosted brain at or above it is enriched.
    pub urgency: Option<u8>,
    /// Context younger than this is not read again because of a score, or of an enrichment tag that stays.
    pub refresh_after: Duration,
    /// Leave the enrichment tag on the host: its context is then kept fresh.
    pub keep_enrich_tag: bool,
    /// What every tag of ours begins with, and no other tag does.
    pub tag_prefix: String,
    /// Whether the host name must agree before a machine is isolated.
    pub name_match: NameMatch,
    /// Base of the portal's links, with or without a final slash.
    pub portal_url: String,
    /// The tenant that the links lead to.
    pub tenant: Option<String>,
    /// What is never isolated, and how much at most.
    pub guard: Guard,
}

/// Whether the host name must agree before a machine is isolated (`cognito.md` 5.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NameMatch {
    /// Where Cognito knows one.
    #[default]
    WhenKnown,
    /// Always: a host without a known name is never isolated.
    Always,
    /// Never.
    Never,
}

impl NameMatch {
    /// The value of the setting.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WhenKnown => "when_known",
            Self::Always => "always",
            Self::Never => "never",
        }
    }

    /// Reads the value of the setting.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::WhenKnown, Self::Always, Self::Never].into_iter().find(|one| one.as_str() == text)
    }
}

/// What is never isolated, and how much at most (`cognito.md` 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Decide and say everything, ask Defender for nothing.
    pub dry_run: bool,
    /// Names of Cognito's groups whose members are never isolated. Letter case does not count.
    pub protected_groups: Vec<String>,
    /// Tags of hosts that are never isolated. Letter case does not count.
    pub protected_tags: Vec<String>,
    /// Networks whose hosts are never isolated.
    pub protected_networks: Vec<Network>,
    /// Names of machines that are never isolated.
    pub protected_names: Vec<NamePattern>,
    /// Machines that are never isolated: 40 hexadecimal digits, lower case ([`machine_id`]).
    pub protected_machine_ids: Vec<String>,
    /// Never isolate Cognito's key assets.
    pub protect_key_assets: bool,
    /// Hosts with a privilege level above it are never isolated; 0 to 10.
    pub max_privilege: u8,
    /// Whether servers may be isolated ([`super::guard::is_server`]).
    pub isolate_servers: bool,
    /// Isolations within an hour at most, in the whole deployment; from 1.
    pub max_isolations_per_hour: u32,
    /// Machines isolated by the bridge at the same time at most; from 1.
    pub max_isolated: u32,
    /// How long an isolation lasts; `None`: until somebody releases it.
    pub isolation_ttl: Option<Duration>,
    /// A start that finds more untouched block tags than this begins paused (`DESIGN.md` 10, ruling 17).
    pub first_sweep: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            enrich: None,
            block: None,
            unblock: None,
            thresholds: None,
            urgency: None,
            refresh_after: Duration::from_secs(24 * 3600),
            keep_enrich_tag: false,
            tag_prefix: "mde:".to_owned(),
            name_match: NameMatch::default(),
            portal_url: "https://security.microsoft.com".to_owned(),
            tenant: None,
            guard: Guard::default(),
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            dry_run: false,
            protected_groups: vec!["NoBlock".to_owned()],
            protected_tags: vec!["no-isolate".to_owned()],
            protected_networks: Vec::new(),
            protected_names: Vec::new(),
            protected_machine_ids: Vec::new(),
            protect_key_assets: true,
            max_privilege: 7,
            isolate_servers: false,
            max_isolations_per_hour: 10,
            max_isolated: 100,
            isolation_ttl: None,
            first_sweep: 3,
        }
    }
}

/// A member of [`Policy`] or [`Guard`] that has rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// [`Policy::enrich`].
    Enrich,
    /// [`Policy::block`].
    Block,
    /// [`Policy::unblock`].
    Unblock,
    /// The first of [`Policy::thresholds`].
    Threat,
    /// The second of [`Policy::thresholds`].
    Certainty,
    /// [`Policy::urgency`].
    Urgency,
    /// [`Policy::refresh_after`].
    RefreshAfter,
    /// [`Policy::tag_prefix`].
    TagPrefix,
    /// [`Policy::portal_url`].
    PortalUrl,
    /// [`Guard::protected_groups`].
    ProtectedGroups,
    /// [`Guard::protected_tags`].
    ProtectedTags,
    /// [`Guard::protected_machine_ids`].
    ProtectedMachineIds,
    /// [`Guard::max_privilege`].
    MaxPrivilege,
    /// [`Guard::max_isolations_per_hour`].
    MaxIsolationsPerHour,
    /// [`Guard::max_isolated`].
    MaxIsolated,
    /// [`Guard::isolation_ttl`].
    IsolationTtl,
}

/// A rule that a policy breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub setting: Setting,
    /// The rule, to follow the setting's name: `must not be empty`.
    pub rule: String,
}

impl Policy {
    /// Checks the rules of `cognito.md` 5.2 and 6.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the settings.
    pub fn validate(&self) -> Result<(), Vec<Problem>> {
        let mut problems = Problems(Vec::new());
        self.check_triggers(&mut problems);
        self.check_scores(&mut problems);
        if self.refresh_after.is_zero() {
            problems.add(Setting::RefreshAfter, "must be longer than nothing: each sweep would read every host again");
        }
        check_prefix(&self.tag_prefix, &mut problems);
        if !["https://", "http://"].iter().any(|scheme| self.portal_url.starts_with(scheme)) {
            problems.add(Setting::PortalUrl, "must be an http or https URL");
        }
        self.check_guard(&mut problems);
        if problems.0.is_empty() { Ok(()) } else { Err(problems.0) }
    }

    /// The tags that are named, with their settings.
    fn triggers(&self) -> impl Iterator<Item = (Setting, &str)> {
        [(Setting::Enrich, &self.enrich), (Setting::Block, &self.block), (Setting::Unblock, &self.unblock)]
            .into_iter()
            .filter_map(|(setting, tag)| Some((setting, tag.as_deref()?)))
    }

    fn check_triggers(&self, problems: &mut Problems) {
        let mut seen: Vec<&str> = Vec::new();
        for (setting, tag) in self.triggers() {
            if let Some(rule) = broken_tag_rule(tag) {
                problems.add(setting, rule);
            }
            if tags::is_ours(&self.tag_prefix, tag) {
                problems
                    .add(setting, format_args!("must not begin with {:?}, which marks our own tags", self.tag_prefix));
            }
            if seen.contains(&tag) {
                problems.add(setting, "must differ from the other two tags");
            }
            seen.push(tag);
        }
    }

    fn check_scores(&self, problems: &mut Problems) {
        let (threat, certainty) = self.thresholds.unzip();
        for (setting, score) in
            [(Setting::Threat, threat), (Setting::Certainty, certainty), (Setting::Urgency, self.urgency)]
        {
            if score.is_some_and(|score| score > MAX_SCORE) {
                problems.add(setting, format_args!("must be at most {MAX_SCORE}"));
            }
        }
    }

    fn check_guard(&self, problems: &mut Problems) {
        let guard = &self.guard;
        if guard.protected_groups.iter().any(|name| name.trim().is_empty()) {
            problems.add(Setting::ProtectedGroups, "must not hold an empty name");
        }
        for tag in &guard.protected_tags {
            if let Some(rule) = broken_tag_rule(tag) {
                problems.add(Setting::ProtectedTags, format_args!("{tag:?} {rule}"));
            }
            if tags::is_ours(&self.tag_prefix, tag) {
                problems.add(
                    Setting::ProtectedTags,
                    format_args!("{tag:?} must not begin with {:?}, which marks our own tags", self.tag_prefix),
                );
            }
            if self.triggers().any(|(_, trigger)| trigger.eq_ignore_ascii_case(tag)) {
                problems.add(Setting::ProtectedTags, format_args!("{tag:?} must not be one of the three tags"));
            }
        }
        for id in &guard.protected_machine_ids {
            if machine_id(id).as_deref() != Some(id) {
                problems.add(Setting::ProtectedMachineIds, format_args!("{id:?} must be 40 hexadecimal digits"));
            }
        }
        if guard.max_privilege > MAX_PRIVILEGE {
            problems.add(Setting::MaxPrivilege, format_args!("must be at most {MAX_PRIVILEGE}"));
        }
        for (setting, cap) in
            [(Setting::MaxIsolationsPerHour, guard.max_isolations_per_hour), (Setting::MaxIsolated, guard.max_isolated)]
        {
            if cap == 0 {
                problems.add(setting, "must be at least 1; to isolate nothing, name no block tag");
            }
        }
        if guard.isolation_ttl.is_some_and(|ttl| !(MIN_TTL..=MAX_TTL).contains(&ttl)) {
            problems.add(Setting::IsolationTtl, "must be between one minute and 366 days, or off");
        }
    }
}

/// The rule for tags that Cognito's list filter and people can use without surprise; `None` when `tag` keeps it.
fn broken_tag_rule(tag: &str) -> Option<&'static str> {
    if tag.is_empty() {
        Some("must not be empty")
    } else if tag.trim() != tag {
        Some("must not begin or end with a space")
    } else if tag.contains(',') {
        Some("must not hold a comma")
    } else if tag.contains(['"', '\'', '`']) {
        Some("must not hold quotes")
    } else if tag.chars().any(char::is_control) {
        Some("must not hold control characters")
    } else {
        None
    }
}

/// Every tag that begins with the prefix counts as ours and may be removed, so a prefix that ordinary words begin with
/// would cost analysts their tags.
fn check_prefix(prefix: &str, problems: &mut Problems) {
    let setting = Setting::TagPrefix;
    if prefix.is_empty() {
        problems.add(setting, "must not be empty: every tag would count as ours");
        return;
    }
    if prefix.chars().count() > MAX_PREFIX_CHARS {
        problems.add(setting, format_args!("must have at most {MAX_PREFIX_CHARS} characters"));
    }
    if !prefix.chars().all(tags::is_plain) {
        problems.add(setting, "must hold only letters, digits and . _ : - /");
    }
    if prefix.len() < 2 || prefix.ends_with(|last: char| last.is_alphanumeric()) {
        problems.add(setting, "must be a word with a mark at its end, such as \"mde:\"");
    }
}

/// The id of a machine in its normal form, when `text` is one: 40 hexadecimal digits. Defender's machine routes take a
/// computer's name as well, so nothing else may reach them (`defender.md` 5.6).
#[must_use]
pub fn machine_id(text: &str) -> Option<String> {
    (text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
}

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, setting: Setting, rule: impl fmt::Display) {
        self.0.push(Problem { setting, rule: rule.to_string() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Policy {
        Policy {
            enrich: Some("host_context".into()),
            block: Some("block".into()),
            unblock: Some("unblock".into()),
            ..Policy::default()
        }
    }

    fn problems(change: impl FnOnce(&mut Policy)) -> Vec<String> {
        let mut policy = named();
        change(&mut policy);
        let problems = policy.validate().err().unwrap_or_default();
        problems.into_iter().map(|problem| format!("{:?} {}", problem.setting, problem.rule)).collect()
    }

    #[test]
    fn every_feature_is_off_until_it_is_named_and_nothing_is_a_dry_run() {
        let policy = Policy::default();
        assert_eq!((&policy.enrich, &policy.block, &policy.unblock), (&None, &None, &None));
        assert_eq!((policy.thresholds, policy.urgency), (None, None));
        assert!(!policy.guard.dry_run && !policy.guard.isolate_servers && policy.guard.protect_key_assets);
        assert_eq!(policy.guard.isolation_ttl, None);
        assert_eq!(policy.guard.protected_groups, ["NoBlock"]);
        assert_eq!(policy.guard.protected_tags, ["no-isolate"]);
        assert_eq!((policy.guard.max_privilege, policy.guard.first_sweep), (7, 3));
        assert_eq!((policy.guard.max_isolations_per_hour, policy.guard.max_isolated), (10, 100));
        assert_eq!(policy.refresh_after, Duration::from_secs(86_400));
        assert_eq!(policy.tag_prefix, "mde:");
        assert_eq!(policy.name_match, NameMatch::WhenKnown);
        assert_eq!(policy.validate(), Ok(()));
        assert_eq!(named().validate(), Ok(()));
    }

    #[test]
    fn the_rules_of_tags() {
        let rows = [
            ("", "Block must not be empty"),
            (" block", "Block must not begin or end with a space"),
            ("block ", "Block must not begin or end with a space"),
            ("a,b", "Block must not hold a comma"),
            ("say \"x\"", "Block must not hold quotes"),
            ("it's", "Block must not hold quotes"),
            ("a\tb", "Block must not hold control characters"),
            ("mde:block", "Block must not begin with \"mde:\", which marks our own tags"),
        ];
        for (tag, expected) in rows {
            assert_eq!(problems(|policy| policy.block = Some(tag.into())), [expected], "{tag:?}");
        }
        // What analysts may well use.
        for tag in ["block", "Isolate now", "sperren/ja", "MDE:block", "ü"] {
            assert_eq!(problems(|policy| policy.block = Some(tag.into())), [""; 0], "{tag:?}");
        }
    }

    #[test]
    fn the_three_tags_are_distinct() {
        let expected = "Unblock must differ from the other two tags";
        assert_eq!(problems(|policy| policy.unblock = Some("block".into())), [expected]);
        assert_eq!(problems(|policy| policy.unblock = Some("host_context".into())), [expected]);
        // With case: these are two tags.
        assert_eq!(problems(|policy| policy.unblock = Some("Block".into())), [""; 0]);
    }

    #[test]
    fn the_rules_of_the_prefix() {
        let word = "TagPrefix must be a word with a mark at its end, such as \"mde:\"";
        let rows: [(&str, &[&str]); 8] = [
            ("", &["TagPrefix must not be empty: every tag would count as ours"]),
            ("m", &[word]),
            (":", &[word]),
            ("mde", &[word]),
            ("a b:", &["TagPrefix must hold only letters, digits and . _ : - /"]),
            ("a,b:", &["TagPrefix must hold only letters, digits and . _ : - /"]),
            ("twenty-one-characters:", &["TagPrefix must have at most 20 characters"]),
            ("atp/", &[]),
        ];
        for (prefix, expected) in rows {
            assert_eq!(problems(|policy| policy.tag_prefix = prefix.into()), expected, "{prefix:?}");
        }
    }

    #[test]
    fn scores_levels_and_caps_have_ranges() {
        assert_eq!(problems(|policy| policy.thresholds = Some((100, 0))), [""; 0]);
        assert_eq!(
            problems(|policy| (policy.thresholds, policy.urgency) = (Some((101, 255)), Some(101))),
            ["Threat must be at most 100", "Certainty must be at most 100", "Urgency must be at most 100"]
        );
        assert_eq!(problems(|policy| policy.guard.max_privilege = 11), ["MaxPrivilege must be at most 10"]);
        let cap = "must be at least 1; to isolate nothing, name no block tag";
        assert_eq!(
            problems(|policy| (policy.guard.max_isolations_per_hour, policy.guard.max_isolated) = (0, 0)),
            [format!("MaxIsolationsPerHour {cap}"), format!("MaxIsolated {cap}")]
        );
        let ttl = "IsolationTtl must be between one minute and 366 days, or off";
        for seconds in [0, 59, 366 * 86_400 + 1] {
            let ttl_of = |policy: &mut Policy| policy.guard.isolation_ttl = Some(Duration::from_secs(seconds));
            assert_eq!(problems(ttl_of), [ttl], "{seconds}");
        }
        assert_eq!(problems(|policy| policy.guard.isolation_ttl = Some(Duration::from_secs(60))), [""; 0]);
        assert_eq!(
            problems(|policy| policy.refresh_after = Duration::ZERO),
            ["RefreshAfter must be longer than nothing: each sweep would read every host again"]
        );
        assert_eq!(
            problems(|policy| policy.portal_url = "security".into()),
            ["PortalUrl must be an http or https URL"]
        );
    }

    #[test]
    fn what_protects_cannot_be_a_trigger_or_ours_or_nothing() {
        let rows = [
            ("", "ProtectedTags \"\" must not be empty"),
            ("mde:x", "ProtectedTags \"mde:x\" must not begin with \"mde:\", which marks our own tags"),
            ("Block", "ProtectedTags \"Block\" must not be one of the three tags"),
        ];
        for (tag, expected) in rows {
            assert_eq!(problems(|policy| policy.guard.protected_tags = vec![tag.into()]), [expected]);
        }
        assert_eq!(
            problems(|policy| policy.guard.protected_groups = vec![" ".into()]),
            ["ProtectedGroups must not hold an empty name"]
        );
        for id in ["", "fin-lt-0042", &"A".repeat(40), &"a".repeat(41)] {
            assert_eq!(
                problems(|policy| policy.guard.protected_machine_ids = vec![id.into()]),
                [format!("ProtectedMachineIds {id:?} must be 40 hexadecimal digits")]
            );
        }
        assert_eq!(machine_id(&"A".repeat(40)), Some("a".repeat(40)));
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let found = problems(|policy| {
            policy.enrich = Some(String::new());
            policy.tag_prefix = String::new();
            policy.guard.max_isolated = 0;
        });
        // An empty prefix begins every tag.
        assert!(found.len() >= 3, "{found:?}");
    }

    #[test]
    fn the_name_rule_is_read_as_it_is_written() {
        for one in [NameMatch::WhenKnown, NameMatch::Always, NameMatch::Never] {
            assert_eq!(NameMatch::parse(one.as_str()), Some(one));
        }
        assert_eq!(NameMatch::parse("sometimes"), None);
    }
}
