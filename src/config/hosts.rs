//! Settings of host events: whose machines, which tags ask for what, and what is never isolated.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::{ApplicationArgs, Applications, CognitoArgs, CognitoSettings, DefenderArgs, Findings, SelfUserArgs, parse};
use crate::cognito::Flavour;
use crate::containment::policy::{Setting, machine_id};
use crate::containment::{Guard, NameMatch, Policy};

const TAG_PREFIX: &str = "mde:";
const REFRESH_AFTER: &str = "24h";
const KEEP_ENRICH_TAG: &str = "false";
const NAME_MATCH: &str = "when_known";
const SWEEP_INTERVAL: &str = "60s";
const FEED_INTERVAL: &str = "15s";
const DRY_RUN: &str = "false";
const ALLOW_MISSING_GROUPS: &str = "false";
const PROTECTED_TAGS: &str = "no-isolate";
const PROTECT_KEY_ASSETS: &str = "true";
const MAX_PRIVILEGE: &str = "7";
const ISOLATE_SERVERS: &str = "false";
const MAX_ISOLATIONS_PER_HOUR: &str = "10";
const MAX_ISOLATED: &str = "100";
const ISOLATION_TTL: &str = "0";
const FIRST_SWEEP: &str = "3";

/// The word for an empty list, where a list that is not set has entries.
const NONE: &str = "none";

/// No more machines than this are counted: Defender's largest tenants have some hundred thousand.
const MOST_MACHINES: u32 = 1_000_000;

/// An interval longer than this is the same as off.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 3600);

const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Hosts of Cognito.
#[derive(Clone, Args)]
pub struct HostArgs {
    /// Whose machines, and as whom Defender is called
    #[command(flatten)]
    pub application: ApplicationArgs,
    /// Tag that asks for Defender's context of a host [default: none, and no tag asks for it]
    #[arg(long, env = "BRIDGE_TAG_ENRICH", value_name = "TAG")]
    pub tag_enrich: Option<String>,
    /// Tag that asks to isolate a host's machine [default: none, and nothing is isolated]
    #[arg(long, env = "BRIDGE_TAG_BLOCK", value_name = "TAG")]
    pub tag_block: Option<String>,
    /// Tag that asks to release a host's machine from isolation [default: none, and no tag releases]
    #[arg(long, env = "BRIDGE_TAG_UNBLOCK", value_name = "TAG")]
    pub tag_unblock: Option<String>,
    /// What the bridge's own tags begin with: every tag that begins with it is the bridge's to change and to remove
    #[arg(long, env = "BRIDGE_TAG_PREFIX", default_value = TAG_PREFIX, value_name = "TEXT")]
    pub tag_prefix: String,
    /// Write Defender's context to hosts with at least this threat score, 0 to 100, and --certainty
    #[arg(long, env = "BRIDGE_THREAT", value_name = "SCORE")]
    pub threat: Option<String>,
    /// Write Defender's context to hosts with at least this certainty score, 0 to 100, and --threat
    #[arg(long, env = "BRIDGE_CERTAINTY", value_name = "SCORE")]
    pub certainty: Option<String>,
    /// Write Defender's context to hosts with at least this urgency score, 0 to 100; hosted brains only
    #[arg(long, env = "BRIDGE_URGENCY", value_name = "SCORE")]
    pub urgency: Option<String>,
    /// Context younger than this is not read again because of a score
    #[arg(long, env = "BRIDGE_REFRESH_AFTER", default_value = REFRESH_AFTER, value_name = "DURATION")]
    pub refresh_after: String,
    /// Leave the enrichment tag on the host, whose context is then kept fresh
    #[arg(long, env = "BRIDGE_KEEP_ENRICH_TAG", default_value = KEEP_ENRICH_TAG, value_name = "BOOL")]
    pub keep_enrich_tag: String,
    /// Whether the host's name must agree with the machine's before it is isolated: when_known, always or never
    #[arg(long, env = "BRIDGE_NAME_MATCH", default_value = NAME_MATCH, value_name = "RULE")]
    pub name_match: String,
    /// How often Cognito is searched for hosts that no event named; 0 = not
    #[arg(long, env = "BRIDGE_SWEEP_INTERVAL", default_value = SWEEP_INTERVAL, value_name = "DURATION")]
    pub sweep_interval: String,
    /// How often Cognito's own audit entries and event feeds are read; 0 = not
    #[arg(long, env = "BRIDGE_FEED_INTERVAL", default_value = FEED_INTERVAL, value_name = "DURATION")]
    pub feed_interval: String,
    /// Decide, tag and note everything, but ask Defender for nothing, response actions included
    #[arg(long, env = "BRIDGE_GUARD_DRY_RUN", default_value = DRY_RUN, value_name = "BOOL")]
    pub guard_dry_run: String,
    /// Groups of Cognito whose members are never isolated, divided by commas; none = no group
    /// [default: NoBlock, if there is one]
    #[arg(long, env = "BRIDGE_GUARD_PROTECTED_GROUPS", value_name = "NAMES")]
    pub guard_protected_groups: Option<String>,
    /// Start even if a group of BRIDGE_GUARD_PROTECTED_GROUPS does not exist
    #[arg(long, env = "BRIDGE_GUARD_ALLOW_MISSING_GROUPS", default_value = ALLOW_MISSING_GROUPS, value_name = "BOOL")]
    pub guard_allow_missing_groups: String,
    /// Tags of hosts that are never isolated, divided by commas; none = no tag
    #[arg(long, env = "BRIDGE_GUARD_PROTECTED_TAGS", default_value = PROTECTED_TAGS, value_name = "TAGS")]
    pub guard_protected_tags: String,
    /// Addresses and networks (10.1.0.0/16) whose hosts are never isolated, divided by commas
    #[arg(long, env = "BRIDGE_GUARD_PROTECTED_NETWORKS", value_name = "NETWORKS")]
    pub guard_protected_networks: Option<String>,
    /// Names of machines that are never isolated, divided by commas; * and ? stand for any text and any character
    #[arg(long, env = "BRIDGE_GUARD_PROTECTED_NAMES", value_name = "PATTERNS")]
    pub guard_protected_names: Option<String>,
    /// Defender's ids of machines that are never isolated, divided by commas
    #[arg(long, env = "BRIDGE_GUARD_PROTECTED_MACHINE_IDS", value_name = "IDS")]
    pub guard_protected_machine_ids: Option<String>,
    /// Never isolate Cognito's key assets
    #[arg(long, env = "BRIDGE_GUARD_PROTECT_KEY_ASSETS", default_value = PROTECT_KEY_ASSETS, value_name = "BOOL")]
    pub guard_protect_key_assets: String,
    /// Never isolate hosts with a higher privilege level than this, 0 to 10
    #[arg(long, env = "BRIDGE_GUARD_MAX_PRIVILEGE", default_value = MAX_PRIVILEGE, value_name = "LEVEL")]
    pub guard_max_privilege: String,
    /// Isolate servers too
    #[arg(long, env = "BRIDGE_GUARD_ISOLATE_SERVERS", default_value = ISOLATE_SERVERS, value_name = "BOOL")]
    pub guard_isolate_servers: String,
    /// Isolations within an hour at most, of the whole deployment
    #[arg(long, env = "BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR", default_value = MAX_ISOLATIONS_PER_HOUR, value_name = "NUMBER")]
    pub guard_max_isolations_per_hour: String,
    /// Machines isolated by the bridge at the same time at most, of the whole deployment
    #[arg(long, env = "BRIDGE_GUARD_MAX_ISOLATED", default_value = MAX_ISOLATED, value_name = "NUMBER")]
    pub guard_max_isolated: String,
    /// How long an isolation lasts before it is released by itself; 0 = until somebody releases it
    #[arg(long, env = "BRIDGE_GUARD_ISOLATION_TTL", default_value = ISOLATION_TTL, value_name = "DURATION")]
    pub guard_isolation_ttl: String,
    /// A start that finds more untouched block tags than this isolates nothing until `isolation resume`
    #[arg(long, env = "BRIDGE_GUARD_FIRST_SWEEP", default_value = FIRST_SWEEP, value_name = "NUMBER")]
    pub guard_first_sweep: String,
}

/// Shows no secret.
impl fmt::Debug for HostArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostArgs")
            .field("application", &self.application)
            .field("tag_enrich", &self.tag_enrich)
            .field("tag_block", &self.tag_block)
            .field("tag_unblock", &self.tag_unblock)
            .finish_non_exhaustive()
    }
}

/// See [`HostArgs`].
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The brain.
    pub cognito: CognitoSettings,
    /// Whose machines, and as whom Defender is called.
    pub applications: Applications,
    /// What is done for which host; valid.
    pub policy: Policy,
    /// Groups that must exist in Cognito at the start: those of the setting, unless missing ones are allowed. The default
    /// is not among them, for who never named a group cannot have misspelt it.
    pub required_groups: Vec<String>,
    /// How often Cognito is searched, if it is.
    pub sweep_interval: Option<Duration>,
    /// How often Cognito's feeds are read, if they are.
    pub feed_interval: Option<Duration>,
}

impl HostArgs {
    /// Whether a tag or a score is named, which switches host events on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        [&self.tag_enrich, &self.tag_block, &self.tag_unblock, &self.threat, &self.certainty, &self.urgency]
            .into_iter()
            .any(|value| parse::given(value.as_ref()).is_some())
    }

    /// What is never isolated whoever asks for it, also where no host of Cognito is worked. Its problems are left to
    /// [`HostArgs::resolve`].
    #[must_use]
    pub fn guard_of_machines(&self) -> Guard {
        self.guard(&mut Findings::default()).0
    }

    /// Checks and reads the values. `None` when no tag and no score is named, so that host events are off, and when
    /// something is a problem. `defender` is read for where links lead and whether plain HTTP is allowed; its own problems
    /// are left to whoever resolves it.
    pub fn resolve(
        &self,
        cognito: &CognitoArgs,
        self_user: &SelfUserArgs,
        defender: &DefenderArgs,
        findings: &mut Findings,
    ) -> Option<HostSettings> {
        let mut elsewhere = Findings::default();
        let plain_http = defender.plain_http(&mut elsewhere);
        let portal_url = defender.resolve(&mut elsewhere).map(|settings| settings.portal_url);
        let on = self.is_on();

        let before = findings.problems.len();
        let (policy, required_groups) = self.policy(portal_url, findings);
        let interval = |findings: &mut Findings, setting, text, default| {
            let text = parse::or_default(text, default);
            let interval = parse::duration(findings, setting, text, (Duration::ZERO, LONGEST_INTERVAL));
            Some(interval).filter(|interval| !interval.is_zero())
        };
        let sweep_interval = interval(findings, "BRIDGE_SWEEP_INTERVAL", &self.sweep_interval, SWEEP_INTERVAL);
        let feed_interval = interval(findings, "BRIDGE_FEED_INTERVAL", &self.feed_interval, FEED_INTERVAL);
        if !on {
            if cognito.is_given() {
                findings.warning(
                    "COGNITO_BRAIN",
                    "Cognito is set up, but neither a tag (BRIDGE_TAG_...) nor a score is named: no host is worked on",
                );
            }
            return None;
        }
        let cognito = cognito.resolve(plain_http, self_user, findings);
        let applications = self.application.resolve(findings);
        self.check_together(cognito.as_ref(), findings);
        if findings.problems.len() > before {
            return None;
        }
        Some(HostSettings {
            cognito: cognito?,
            policy: Policy { tenant: Some(applications.as_ref()?.credentials.tenant_id.clone()), ..policy },
            applications: applications?,
            required_groups,
            sweep_interval,
            feed_interval,
        })
    }

    /// What is wrong, or odd, with settings that are fine each by itself.
    fn check_together(&self, cognito: Option<&CognitoSettings>, findings: &mut Findings) {
        let given = |value: &Option<String>| parse::given(value.as_ref()).is_some();
        let on_premises = cognito.is_some_and(|cognito| cognito.client.version.flavour() == Flavour::Qux);
        if given(&self.urgency) && on_premises {
            findings.problem(
                "BRIDGE_URGENCY",
                "only hosted brains (v3) know urgency: set BRIDGE_THREAT and BRIDGE_CERTAINTY",
            );
        }
        if given(&self.tag_block) && !given(&self.tag_unblock) {
            findings.warning("BRIDGE_TAG_UNBLOCK", "is not set: no tag releases what BRIDGE_TAG_BLOCK isolates");
        }
    }

    /// The policy, and the groups that must exist.
    fn policy(&self, portal_url: Option<String>, findings: &mut Findings) -> (Policy, Vec<String>) {
        let tag = |value: &Option<String>| parse::given(value.as_ref()).map(str::to_owned);
        let score = |findings: &mut Findings, setting, value: &Option<String>| {
            parse::given(value.as_ref()).map(|text| small(findings, setting, text, 100))
        };
        let threat = score(findings, "BRIDGE_THREAT", &self.threat);
        let certainty = score(findings, "BRIDGE_CERTAINTY", &self.certainty);
        let thresholds = threat.zip(certainty);
        if threat.is_some() != certainty.is_some() {
            let (missing, other) = match threat {
                None => ("BRIDGE_THREAT", "BRIDGE_CERTAINTY"),
                Some(_) => ("BRIDGE_CERTAINTY", "BRIDGE_THREAT"),
            };
            findings.problem(missing, format_args!("is not set, but {other} is: hosts are enriched at or above both"));
        }
        let name_match = parse::or_default(&self.name_match, NAME_MATCH).trim().to_ascii_lowercase();
        let name_match = NameMatch::parse(&name_match).unwrap_or_else(|| {
            findings.problem("BRIDGE_NAME_MATCH", format_args!("{name_match:?} is none of when_known, always, never"));
            NameMatch::default()
        });
        let refresh_after = parse::or_default(&self.refresh_after, REFRESH_AFTER);
        let keep_enrich_tag = parse::or_default(&self.keep_enrich_tag, KEEP_ENRICH_TAG);
        let (guard, required_groups) = self.guard(findings);
        let default = Policy::default();
        let policy = Policy {
            enrich: tag(&self.tag_enrich),
            block: tag(&self.tag_block),
            unblock: tag(&self.tag_unblock),
            thresholds,
            urgency: score(findings, "BRIDGE_URGENCY", &self.urgency),
            refresh_after: parse::duration(findings, "BRIDGE_REFRESH_AFTER", refresh_after, (Duration::ZERO, YEAR)),
            keep_enrich_tag: parse::flag(findings, "BRIDGE_KEEP_ENRICH_TAG", keep_enrich_tag),
            tag_prefix: parse::or_default(&self.tag_prefix, TAG_PREFIX).trim().to_owned(),
            name_match,
            portal_url: portal_url.unwrap_or(default.portal_url),
            tenant: None,
            guard,
        };
        if let Err(problems) = policy.validate() {
            for problem in problems {
                findings.problem(variable(problem.setting), problem.rule);
            }
        }
        (policy, required_groups)
    }

    fn guard(&self, findings: &mut Findings) -> (Guard, Vec<String>) {
        let mut flag = |setting, text, default| parse::flag(findings, setting, parse::or_default(text, default));
        let dry_run = flag("BRIDGE_GUARD_DRY_RUN", &self.guard_dry_run, DRY_RUN);
        let allow_missing =
            flag("BRIDGE_GUARD_ALLOW_MISSING_GROUPS", &self.guard_allow_missing_groups, ALLOW_MISSING_GROUPS);
        let protect_key_assets =
            flag("BRIDGE_GUARD_PROTECT_KEY_ASSETS", &self.guard_protect_key_assets, PROTECT_KEY_ASSETS);
        let isolate_servers = flag("BRIDGE_GUARD_ISOLATE_SERVERS", &self.guard_isolate_servers, ISOLATE_SERVERS);

        let given_groups = parse::given(self.guard_protected_groups.as_ref()).map(names);
        let required_groups = given_groups.clone().filter(|_| !allow_missing).unwrap_or_default();
        let mut number = |setting, text, default| {
            parse::number(findings, setting, parse::or_default(text, default), (0, MOST_MACHINES))
        };
        let max_isolations_per_hour = number(
            "BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR",
            &self.guard_max_isolations_per_hour,
            MAX_ISOLATIONS_PER_HOUR,
        );
        let max_isolated = number("BRIDGE_GUARD_MAX_ISOLATED", &self.guard_max_isolated, MAX_ISOLATED);
        let first_sweep = number("BRIDGE_GUARD_FIRST_SWEEP", &self.guard_first_sweep, FIRST_SWEEP);
        let ttl = parse::or_default(&self.guard_isolation_ttl, ISOLATION_TTL);
        let ttl = parse::duration(findings, "BRIDGE_GUARD_ISOLATION_TTL", ttl, (Duration::ZERO, YEAR));
        let max_privilege = parse::or_default(&self.guard_max_privilege, MAX_PRIVILEGE);
        let protected_networks =
            entries(findings, "BRIDGE_GUARD_PROTECTED_NETWORKS", self.guard_protected_networks.as_ref());
        let protected_names = entries(findings, "BRIDGE_GUARD_PROTECTED_NAMES", self.guard_protected_names.as_ref());
        let machine_ids = parse::given(self.guard_protected_machine_ids.as_ref()).unwrap_or_default();
        let guard = Guard {
            dry_run,
            protected_groups: given_groups.unwrap_or_else(|| Guard::default().protected_groups),
            protected_tags: names(parse::or_default(&self.guard_protected_tags, PROTECTED_TAGS)),
            protected_networks,
            protected_names,
            // What is no machine's id is left as it is for the policy to find.
            protected_machine_ids: parse::list(machine_ids)
                .map(|id| machine_id(id).unwrap_or_else(|| id.to_owned()))
                .collect(),
            protect_key_assets,
            max_privilege: small(findings, "BRIDGE_GUARD_MAX_PRIVILEGE", max_privilege, 10),
            isolate_servers,
            max_isolations_per_hour,
            max_isolated,
            isolation_ttl: Some(ttl).filter(|ttl| !ttl.is_zero()),
            first_sweep,
        };
        (guard, required_groups)
    }
}

/// The entries of a list of names; the word for an empty list has none.
fn names(text: &str) -> Vec<String> {
    if text.trim().eq_ignore_ascii_case(NONE) {
        return Vec::new();
    }
    parse::list(text).map(str::to_owned).collect()
}

fn small(findings: &mut Findings, setting: &str, text: &str, most: u8) -> u8 {
    u8::try_from(parse::number(findings, setting, text, (0, u32::from(most)))).unwrap_or(most)
}

/// The entries of a list, each read; those that cannot be are problems that name them.
pub(super) fn entries<T: FromStr<Err: fmt::Display>>(
    findings: &mut Findings,
    setting: &str,
    value: Option<&String>,
) -> Vec<T> {
    let mut read = Vec::new();
    for entry in parse::list(parse::given(value).unwrap_or_default()) {
        match entry.parse() {
            Ok(value) => read.push(value),
            Err(rule) => findings.problem(setting, format_args!("{entry:?} {rule}")),
        }
    }
    read
}

/// The variable that a rule of the policy is about.
const fn variable(setting: Setting) -> &'static str {
    match setting {
        Setting::Enrich => "BRIDGE_TAG_ENRICH",
        Setting::Block => "BRIDGE_TAG_BLOCK",
        Setting::Unblock => "BRIDGE_TAG_UNBLOCK",
        Setting::Threat => "BRIDGE_THREAT",
        Setting::Certainty => "BRIDGE_CERTAINTY",
        Setting::Urgency => "BRIDGE_URGENCY",
        Setting::RefreshAfter => "BRIDGE_REFRESH_AFTER",
        Setting::TagPrefix => "BRIDGE_TAG_PREFIX",
        Setting::PortalUrl => "BRIDGE_PORTAL_URL",
        Setting::ProtectedGroups => "BRIDGE_GUARD_PROTECTED_GROUPS",
        Setting::ProtectedTags => "BRIDGE_GUARD_PROTECTED_TAGS",
        Setting::ProtectedMachineIds => "BRIDGE_GUARD_PROTECTED_MACHINE_IDS",
        Setting::MaxPrivilege => "BRIDGE_GUARD_MAX_PRIVILEGE",
        Setting::MaxIsolationsPerHour => "BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR",
        Setting::MaxIsolated => "BRIDGE_GUARD_MAX_ISOLATED",
        Setting::IsolationTtl => "BRIDGE_GUARD_ISOLATION_TTL",
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};
    use rstest::rstest;

    use super::*;

    /// The command line of a role.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        hosts: HostArgs,
        #[command(flatten)]
        cognito: CognitoArgs,
        #[command(flatten)]
        defender: DefenderArgs,
    }

    const MACHINE: &str = "0F3C9A5BE1D24786A9C0B7E85D4412F63BA8C71E";

    /// Everything that has no default.
    const NEEDED: [(&str, &str); 5] = [
        ("--cognito-brain", "https://cognito.example"),
        ("--cognito-token", "pl4nted-token"),
        ("--tenant-id", "t.example"),
        ("--app-id", "app"),
        ("--app-secret", "pl4nted-secret"),
    ];

    fn resolve(given: &[(&str, &str)]) -> (Option<HostSettings>, Findings) {
        // With `=`, for a value may begin with a dash.
        let words = given.iter().map(|(flag, value)| format!("{flag}={value}"));
        let command = Line::command().mut_args(|argument| argument.env(clap::builder::Resettable::Reset));
        let matches = command.try_get_matches_from(std::iter::once("x".to_owned()).chain(words)).unwrap();
        let line = Line::from_arg_matches(&matches).unwrap();
        let mut findings = Findings::default();
        let settings = line.hosts.resolve(&line.cognito, &SelfUserArgs::default(), &line.defender, &mut findings);
        let shown = format!("{:?} {settings:?} {findings:?}", line.hosts);
        assert!(!shown.contains("pl4nted"), "{shown}");
        (settings, findings)
    }

    /// With everything that is needed, and these.
    fn with(given: &[(&str, &str)]) -> (Option<HostSettings>, Findings) {
        resolve(&[&NEEDED, given].concat())
    }

    #[test]
    fn the_defaults_are_those_of_the_policy() {
        let (settings, findings) = with(&[("--tag-enrich", "host_context")]);
        let settings = settings.unwrap();
        let expected =
            Policy { enrich: Some("host_context".into()), tenant: Some("t.example".into()), ..Policy::default() };
        assert_eq!(settings.policy, expected);
        assert_eq!(settings.required_groups, [""; 0]);
        assert_eq!(settings.sweep_interval, Some(Duration::from_secs(60)));
        assert_eq!(settings.feed_interval, Some(Duration::from_secs(15)));
        assert!(settings.applications.response.is_none());
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn without_a_tag_or_a_score_host_events_are_off() {
        let (settings, findings) = resolve(&[]);
        assert!(settings.is_none());
        assert_eq!(findings, Findings::default());
        let (settings, findings) = with(&[("--tag-block", " ")]);
        assert!(settings.is_none() && findings.problems.is_empty());
        assert_eq!(findings.warnings.len(), 1, "{findings:?}");
    }

    #[rstest]
    #[case::enrich(&[("--tag-enrich", "e")])]
    #[case::block(&[("--tag-block", "b"), ("--tag-unblock", "u")])]
    #[case::unblock(&[("--tag-unblock", "u")])]
    #[case::scores(&[("--threat", "50"), ("--certainty", "50")])]
    fn a_tag_or_a_score_needs_the_brain_and_the_application(#[case] named: &[(&str, &str)]) {
        let (settings, findings) = resolve(named);
        assert!(settings.is_none());
        let missing: Vec<_> = findings.problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        assert_eq!(missing, ["COGNITO_BRAIN", "COGNITO_TOKEN", "TENANT_ID", "APP_ID", "APP_SECRET"]);
        let (settings, findings) = with(named);
        assert!(settings.is_some());
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn every_setting_arrives() {
        let (settings, findings) = with(&[
            ("--tag-enrich", "e"),
            ("--tag-block", "b"),
            ("--tag-unblock", "u"),
            ("--tag-prefix", "atp/"),
            ("--threat", "0"),
            ("--certainty", "100"),
            ("--refresh-after", "1h"),
            ("--keep-enrich-tag", "true"),
            ("--name-match", "Always"),
            ("--sweep-interval", "0"),
            ("--feed-interval", "5s"),
            ("--guard-dry-run", "true"),
            ("--guard-protected-groups", "NoBlock, Domain controllers"),
            ("--guard-protected-tags", "vip, no-isolate"),
            ("--guard-protected-networks", "10.1.0.0/16, 2001:db8::7"),
            ("--guard-protected-names", "dc-*, *.hospital.example"),
            ("--guard-protected-machine-ids", MACHINE),
            ("--guard-protect-key-assets", "false"),
            ("--guard-max-privilege", "10"),
            ("--guard-isolate-servers", "true"),
            ("--guard-max-isolations-per-hour", "11"),
            ("--guard-max-isolated", "12"),
            ("--guard-isolation-ttl", "8h"),
            ("--guard-first-sweep", "0"),
            ("--portal-url", "https://portal.example/"),
        ]);
        let settings = settings.unwrap();
        let expected = Policy {
            enrich: Some("e".into()),
            block: Some("b".into()),
            unblock: Some("u".into()),
            thresholds: Some((0, 100)),
            urgency: None,
            refresh_after: Duration::from_secs(3600),
            keep_enrich_tag: true,
            tag_prefix: "atp/".into(),
            name_match: NameMatch::Always,
            portal_url: "https://portal.example".into(),
            tenant: Some("t.example".into()),
            guard: Guard {
                dry_run: true,
                protected_groups: vec!["NoBlock".into(), "Domain controllers".into()],
                protected_tags: vec!["vip".into(), "no-isolate".into()],
                protected_networks: vec!["10.1.0.0/16".parse().unwrap(), "2001:db8::7".parse().unwrap()],
                protected_names: vec!["dc-*".parse().unwrap(), "*.hospital.example".parse().unwrap()],
                protected_machine_ids: vec![MACHINE.to_ascii_lowercase()],
                protect_key_assets: false,
                max_privilege: 10,
                isolate_servers: true,
                max_isolations_per_hour: 11,
                max_isolated: 12,
                isolation_ttl: Some(Duration::from_secs(8 * 3600)),
                first_sweep: 0,
            },
        };
        assert_eq!(settings.policy, expected);
        assert_eq!(settings.required_groups, ["NoBlock", "Domain controllers"]);
        assert_eq!((settings.sweep_interval, settings.feed_interval), (None, Some(Duration::from_secs(5))));
        assert_eq!(findings, Findings::default());
    }

    #[rstest]
    #[case::not_named(&[], &["NoBlock"], &[])]
    #[case::named(&[("--guard-protected-groups", "Servers")], &["Servers"], &["Servers"])]
    #[case::none(&[("--guard-protected-groups", " None ")], &[], &[])]
    #[case::may_be_missing(
        &[("--guard-protected-groups", "Servers"), ("--guard-allow-missing-groups", "true")],
        &["Servers"],
        &[]
    )]
    fn groups_that_were_named_must_exist(
        #[case] given: &[(&str, &str)],
        #[case] protected: &[&str],
        #[case] required: &[&str],
    ) {
        let settings = with(&[&[("--tag-enrich", "e")], given].concat()).0.unwrap();
        assert_eq!(settings.policy.guard.protected_groups, protected);
        assert_eq!(settings.required_groups, required);
    }

    #[test]
    fn a_list_of_tags_can_be_emptied() {
        let settings = with(&[("--tag-enrich", "e"), ("--guard-protected-tags", "none")]).0.unwrap();
        assert_eq!(settings.policy.guard.protected_tags, [""; 0]);
    }

    #[test]
    fn urgency_is_for_hosted_brains() {
        let (settings, findings) = with(&[("--urgency", "70")]);
        assert!(settings.is_none());
        assert!(findings.problems.len() == 1 && findings.problems[0].starts_with("BRIDGE_URGENCY: only hosted"));
        let hosted = [
            ("--cognito-brain", "000000000000.portal.example"),
            ("--cognito-api-version", "v3.4"),
            ("--cognito-client-id", "client"),
            ("--cognito-client-secret", "pl4nted-key"),
            ("--tenant-id", "t"),
            ("--app-id", "a"),
            ("--app-secret", "pl4nted-secret"),
            ("--urgency", "70"),
        ];
        let (settings, findings) = resolve(&hosted);
        assert_eq!(settings.unwrap().policy.urgency, Some(70));
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn an_isolation_that_no_tag_ends_is_odd() {
        let (settings, findings) = with(&[("--tag-block", "block")]);
        assert!(settings.is_some());
        assert!(
            findings.warnings.len() == 1 && findings.warnings[0].starts_with("BRIDGE_TAG_UNBLOCK: "),
            "{findings:?}"
        );
    }

    #[rstest]
    #[case::half_a_threshold(("--threat", "50"), "BRIDGE_CERTAINTY: is not set, but BRIDGE_THREAT is")]
    #[case::other_half(("--certainty", "50"), "BRIDGE_THREAT: is not set, but BRIDGE_CERTAINTY is")]
    #[case::score(("--urgency", "101"), "BRIDGE_URGENCY: \"101\" is not a whole number from 0 to 100")]
    #[case::same_tags(("--tag-block", "e"), "BRIDGE_TAG_BLOCK: must differ from the other two tags")]
    #[case::comma(("--tag-block", "a,b"), "BRIDGE_TAG_BLOCK: must not hold a comma")]
    #[case::own_tag(("--tag-unblock", "mde:x"), "BRIDGE_TAG_UNBLOCK: must not begin with")]
    #[case::prefix(("--tag-prefix", "m"), "BRIDGE_TAG_PREFIX: must be a word")]
    #[case::name_match(("--name-match", "sometimes"), "BRIDGE_NAME_MATCH: \"sometimes\" is none of")]
    #[case::refresh(("--refresh-after", "0"), "BRIDGE_REFRESH_AFTER: must be longer than nothing")]
    #[case::keep(("--keep-enrich-tag", "maybe"), "BRIDGE_KEEP_ENRICH_TAG: \"maybe\" is neither")]
    #[case::sweep(("--sweep-interval", "often"), "BRIDGE_SWEEP_INTERVAL: \"often\" is not a duration")]
    #[case::feed(("--feed-interval", "25h"), "BRIDGE_FEED_INTERVAL: \"25h\" is not a duration")]
    #[case::dry_run(("--guard-dry-run", "1"), "BRIDGE_GUARD_DRY_RUN: \"1\" is neither")]
    #[case::network(("--guard-protected-networks", "10.1.0.0/16, 10.1.2.3/16"), "BRIDGE_GUARD_PROTECTED_NETWORKS: \"10.1.2.3/16\" has")]
    #[case::machine(("--guard-protected-machine-ids", "fin-lt-0042"), "BRIDGE_GUARD_PROTECTED_MACHINE_IDS: \"fin-lt-0042\" must be")]
    #[case::protected_tag(("--guard-protected-tags", "mde:x"), "BRIDGE_GUARD_PROTECTED_TAGS: \"mde:x\" must not begin")]
    #[case::privilege(("--guard-max-privilege", "11"), "BRIDGE_GUARD_MAX_PRIVILEGE: \"11\" is not")]
    #[case::no_isolation(("--guard-max-isolated", "0"), "BRIDGE_GUARD_MAX_ISOLATED: must be at least 1")]
    #[case::per_hour(("--guard-max-isolations-per-hour", "0"), "BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR: must be at least 1")]
    #[case::ttl(("--guard-isolation-ttl", "30s"), "BRIDGE_GUARD_ISOLATION_TTL: must be between one minute")]
    #[case::first_sweep(("--guard-first-sweep", "-1"), "BRIDGE_GUARD_FIRST_SWEEP: \"-1\" is not")]
    fn what_cannot_work_names_its_variable(#[case] given: (&str, &str), #[case] expected: &str) {
        let (settings, findings) = with(&[("--tag-enrich", "e"), given]);
        assert!(settings.is_none());
        assert!(findings.problems.iter().any(|problem| problem.starts_with(expected)), "{findings:?}");
    }

    #[test]
    fn a_policy_that_cannot_work_is_refused_even_while_it_is_off() {
        let (settings, findings) = resolve(&[("--guard-max-privilege", "high"), ("--sweep-interval", "often")]);
        assert!(settings.is_none());
        assert_eq!(findings.problems.len(), 2, "{findings:?}");
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let given = [
            ("--tag-block", "a,b"),
            ("--threat", "50"),
            ("--guard-dry-run", "maybe"),
            ("--guard-protected-names", "dc-*"),
            ("--cognito-rate", "0"),
            ("--tenant-id", "no/tenant"),
            ("--app-secret-file", "no such file"),
        ];
        let (settings, findings) = resolve(&given);
        assert!(settings.is_none());
        let named: Vec<_> = findings.problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        let expected = [
            "BRIDGE_CERTAINTY",
            "BRIDGE_GUARD_DRY_RUN",
            "BRIDGE_TAG_BLOCK",
            "COGNITO_BRAIN",
            "COGNITO_TOKEN",
            "BRIDGE_COGNITO_RATE",
            "APP_ID",
            "APP_SECRET_FILE",
            "TENANT_ID",
        ];
        assert_eq!(named, expected, "{findings:?}");
    }

    #[test]
    fn empty_values_count_as_not_set() {
        let (settings, findings) = with(&[
            ("--tag-enrich", "e"),
            ("--tag-block", ""),
            ("--tag-prefix", ""),
            ("--threat", ""),
            ("--refresh-after", ""),
            ("--keep-enrich-tag", ""),
            ("--name-match", ""),
            ("--sweep-interval", ""),
            ("--feed-interval", ""),
            ("--guard-dry-run", ""),
            ("--guard-protected-groups", ""),
            ("--guard-allow-missing-groups", ""),
            ("--guard-protected-tags", ""),
            ("--guard-protected-networks", ""),
            ("--guard-protected-names", ""),
            ("--guard-protected-machine-ids", ""),
            ("--guard-protect-key-assets", ""),
            ("--guard-max-privilege", ""),
            ("--guard-isolate-servers", ""),
            ("--guard-max-isolations-per-hour", ""),
            ("--guard-max-isolated", ""),
            ("--guard-isolation-ttl", ""),
            ("--guard-first-sweep", ""),
        ]);
        let expected = Policy { enrich: Some("e".into()), tenant: Some("t.example".into()), ..Policy::default() };
        assert_eq!(settings.unwrap().policy, expected);
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn links_and_plain_http_follow_the_settings_of_defender() {
        let line = [
            ("--cognito-brain", "http://simulator:8090"),
            ("--cognito-token", "pl4nted-token"),
            ("--tenant-id", "t"),
            ("--app-id", "a"),
            ("--app-secret", "pl4nted-secret"),
            ("--tag-enrich", "e"),
            ("--cloud", "gcc-high"),
        ];
        let (settings, findings) = resolve(&line);
        assert!(settings.is_none());
        assert!(findings.problems.len() == 1 && findings.problems[0].starts_with("COGNITO_BRAIN: "), "{findings:?}");
        let settings = resolve(&[&line[..], &[("--allow-plain-http", "true")]].concat()).0.unwrap();
        assert_eq!(settings.policy.portal_url, "https://security.microsoft.us");
        // Problems of those settings are told by those settings.
        let (settings, findings) = with(&[("--tag-enrich", "e"), ("--cloud", "mars")]);
        assert!(settings.is_some());
        assert_eq!(findings, Findings::default());
    }
}
