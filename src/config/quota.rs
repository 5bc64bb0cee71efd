//! Settings of the quota: what Microsoft allows, and how much of it is the bridge's.

use clap::Args;

use super::{Findings, parse};
use crate::quota::{Limits, Row, Settings};

const REST: &str = "100/1500";
const HUNTING: &str = "45";
const SHARE: &str = "rest=80,hunting=50";

/// Larger limits than this nobody has; it is a typing error.
const MOST: u32 = 1_000_000;

/// The limits of `defender.md` 3.1 and the part of them that is ours. The same at all workers of a deployment.
#[derive(Debug, Clone, Args)]
pub struct QuotaArgs {
    /// How much of Microsoft's limits is the bridge's, in percent; other integrations and people use the rest
    #[arg(long, env = "BRIDGE_QUOTA_SHARE", default_value = SHARE, value_name = "rest=PERCENT,hunting=PERCENT")]
    pub quota_share: String,
    /// Calls for alerts and files that Microsoft allows an application in a tenant: per minute and per hour
    #[arg(long, env = "BRIDGE_QUOTA_ALERTS", default_value = REST, value_name = "MINUTE/HOUR")]
    pub quota_alerts: String,
    /// The same for machines
    #[arg(long, env = "BRIDGE_QUOTA_MACHINES", default_value = REST, value_name = "MINUTE/HOUR")]
    pub quota_machines: String,
    /// The same for what acts on machines: isolating, releasing, cancelling
    #[arg(long, env = "BRIDGE_QUOTA_ACTIONS", default_value = REST, value_name = "MINUTE/HOUR")]
    pub quota_actions: String,
    /// The same for reading machine actions
    #[arg(long, env = "BRIDGE_QUOTA_MACHINEACTIONS", default_value = REST, value_name = "MINUTE/HOUR")]
    pub quota_machineactions: String,
    /// The same for indicators
    #[arg(long, env = "BRIDGE_QUOTA_INDICATORS", default_value = REST, value_name = "MINUTE/HOUR")]
    pub quota_indicators: String,
    /// Hunting queries a minute that Microsoft allows a tenant; larger tenants have more
    #[arg(long, env = "BRIDGE_QUOTA_HUNTING", default_value = HUNTING, value_name = "MINUTE")]
    pub quota_hunting: String,
}

impl QuotaArgs {
    /// Checks and reads the values.
    pub fn resolve(&self, findings: &mut Findings) -> Settings {
        let share = share(findings, parse::or_default(&self.quota_share, SHARE));
        let hunting = parse::or_default(&self.quota_hunting, HUNTING);
        let per_minute = parse::number(findings, "BRIDGE_QUOTA_HUNTING", hunting, (1, MOST));
        let hunting = Limits { per_minute, per_hour: None };
        let mut rest = |setting, text| limits(findings, setting, parse::or_default(text, REST)).share(share.rest);
        let alerts = rest("BRIDGE_QUOTA_ALERTS", &self.quota_alerts);
        let machines = rest("BRIDGE_QUOTA_MACHINES", &self.quota_machines);
        let actions = rest("BRIDGE_QUOTA_ACTIONS", &self.quota_actions);
        let machine_actions = rest("BRIDGE_QUOTA_MACHINEACTIONS", &self.quota_machineactions);
        let indicators = rest("BRIDGE_QUOTA_INDICATORS", &self.quota_indicators);
        Settings::new(|row| match row {
            Row::Alerts => alerts,
            Row::Machines => machines,
            Row::Actions => actions,
            Row::MachineActions => machine_actions,
            Row::Indicators => indicators,
            Row::Hunting => hunting.share(share.hunting),
        })
    }
}

/// Percent of Microsoft's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    rest: u32,
    hunting: u32,
}

/// `rest=80,hunting=50`; what is not named has its default.
fn share(findings: &mut Findings, text: &str) -> Share {
    const SETTING: &str = "BRIDGE_QUOTA_SHARE";
    let (mut rest, mut hunting) = (None, None);
    for entry in parse::list(text) {
        let (name, percent) = entry.split_once('=').unwrap_or((entry, ""));
        let part = match name.trim() {
            "rest" => &mut rest,
            "hunting" => &mut hunting,
            _ => {
                findings.problem(SETTING, format_args!("{entry:?} is neither rest=PERCENT nor hunting=PERCENT"));
                continue;
            }
        };
        if part.is_some() {
            findings.problem(SETTING, format_args!("{:?} is named twice", name.trim()));
        }
        match percent.trim().parse() {
            Ok(percent @ 1..=100) => *part = Some(percent),
            _ => {
                findings.problem(SETTING, format_args!("{entry:?}: the share is a whole number from 1 to 100 percent"))
            }
        }
    }
    Share { rest: rest.unwrap_or(80), hunting: hunting.unwrap_or(50) }
}

/// `100/1500`: calls a minute and an hour.
fn limits(findings: &mut Findings, setting: &str, text: &str) -> Limits {
    let read = |text: &str| text.trim().parse().ok().filter(|limit| (1..=MOST).contains(limit));
    let parts = text.split_once('/').and_then(|(minute, hour)| Some((read(minute)?, read(hour)?)));
    match parts {
        Some((per_minute, per_hour)) if per_minute <= per_hour => Limits { per_minute, per_hour: Some(per_hour) },
        Some(_) => {
            findings.problem(setting, format_args!("{text:?} allows fewer calls an hour than a minute"));
            Row::Alerts.published()
        }
        None => {
            findings.problem(
                setting,
                format_args!("{text:?} is not calls a minute and an hour, each from 1 to {MOST}, such as 100/1500"),
            );
            Row::Alerts.published()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> QuotaArgs {
        let rest = || REST.to_owned();
        QuotaArgs {
            quota_share: SHARE.to_owned(),
            quota_alerts: rest(),
            quota_machines: rest(),
            quota_actions: rest(),
            quota_machineactions: rest(),
            quota_indicators: rest(),
            quota_hunting: HUNTING.to_owned(),
        }
    }

    #[test]
    fn what_is_not_set_is_what_microsoft_publishes_at_our_share() {
        let mut findings = Findings::default();
        assert_eq!(args().resolve(&mut findings), Settings::default());
        let empty = QuotaArgs { quota_share: String::new(), quota_alerts: " ".to_owned(), ..args() };
        assert_eq!(empty.resolve(&mut findings), Settings::default());
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn limits_and_shares_are_read() {
        let mut findings = Findings::default();
        let given = QuotaArgs {
            quota_share: "hunting = 100, rest=10".to_owned(),
            quota_alerts: "200 / 3000".to_owned(),
            quota_hunting: "90".to_owned(),
            ..args()
        };
        let settings = given.resolve(&mut findings);
        assert_eq!(findings, Findings::default());
        assert_eq!(settings.limits(Row::Alerts), Limits { per_minute: 20, per_hour: Some(300) });
        assert_eq!(settings.limits(Row::Machines), Limits { per_minute: 10, per_hour: Some(150) });
        assert_eq!(settings.limits(Row::Hunting), Limits { per_minute: 90, per_hour: None });
        assert_eq!(share(&mut findings, "hunting=100"), Share { rest: 80, hunting: 100 });
    }

    #[test]
    fn every_problem_names_its_setting_and_rule() {
        let mut findings = Findings::default();
        let given = QuotaArgs {
            quota_share: "rest=101,graph=5,hunting,hunting=0".to_owned(),
            quota_alerts: "100".to_owned(),
            quota_machines: "0/1500".to_owned(),
            quota_actions: "100/50".to_owned(),
            quota_machineactions: "a/b".to_owned(),
            quota_hunting: "none".to_owned(),
            ..args()
        };
        given.resolve(&mut findings);
        let refused = findings.check().unwrap_err().to_string();
        for expected in [
            "BRIDGE_QUOTA_SHARE: \"rest=101\": the share is a whole number from 1 to 100 percent",
            "BRIDGE_QUOTA_SHARE: \"graph=5\" is neither rest=PERCENT nor hunting=PERCENT",
            "BRIDGE_QUOTA_SHARE: \"hunting\": the share is",
            "BRIDGE_QUOTA_SHARE: \"hunting=0\": the share is",
            "BRIDGE_QUOTA_ALERTS: \"100\" is not calls a minute and an hour",
            "BRIDGE_QUOTA_MACHINES: \"0/1500\" is not calls a minute and an hour",
            "BRIDGE_QUOTA_ACTIONS: \"100/50\" allows fewer calls an hour than a minute",
            "BRIDGE_QUOTA_MACHINEACTIONS: \"a/b\" is not calls a minute and an hour",
            "BRIDGE_QUOTA_HUNTING: \"none\" is not a whole number from 1 to 1000000",
        ] {
            assert!(refused.contains(expected), "{expected} is not in {refused}");
        }
        let mut findings = Findings::default();
        share(&mut findings, "rest=1,rest=2");
        assert_eq!(findings.problems, ["BRIDGE_QUOTA_SHARE: \"rest\" is named twice"]);
    }
}
