//! Settings of response actions: what an indicator never blocks, and the texts that Defender is given.

use clap::Args;

use super::hosts::entries;
use super::{Findings, parse};
use crate::containment::Guard;
use crate::containment::observables::Protected;

const OVERWRITE: &str = "false";
const COMMENT: &str = "Requested through a Cisco XDR response action";
const TITLE: &str = "Added through Cisco XDR";
const DESCRIPTION: &str = "Indicator added by a Cisco XDR response action";

/// The longest text that is given to Defender, in characters: with the marker it stays within a comment of the bridge.
const TEXT_LIMIT_CHARS: usize = 200;

/// Response actions of the relay.
#[derive(Debug, Clone, Args)]
pub struct RespondArgs {
    /// Addresses, networks, domains (with all below them) and file hashes that no indicator of a response action blocks,
    /// divided by commas
    #[arg(long, env = "BRIDGE_GUARD_PROTECTED_OBSERVABLES", value_name = "OBSERVABLES")]
    pub guard_protected_observables: Option<String>,
    /// Let a response action write over an indicator that somebody else made
    #[arg(long, env = "BRIDGE_INDICATOR_OVERWRITE", default_value = OVERWRITE, value_name = "BOOL")]
    pub indicator_overwrite: String,
    /// Title of indicators, up to 200 characters
    #[arg(long, env = "BRIDGE_INDICATOR_TITLE", default_value = TITLE, value_name = "TEXT")]
    pub indicator_title: String,
    /// Description of indicators, up to 200 characters
    #[arg(long, env = "BRIDGE_INDICATOR_DESCRIPTION", default_value = DESCRIPTION, value_name = "TEXT")]
    pub indicator_description: String,
    /// Comment of machine actions, up to 200 characters
    #[arg(long, env = "BRIDGE_ACTION_COMMENT", default_value = COMMENT, value_name = "TEXT")]
    pub action_comment: String,
}

/// See [`RespondArgs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RespondSettings {
    /// What is never isolated, and how much at most: the same for hosts and triggers.
    pub guard: Guard,
    /// What no indicator blocks.
    pub protected: Vec<Protected>,
    /// Whether somebody else's indicator may be written over.
    pub overwrite: bool,
    /// Comment of machine actions.
    pub comment: String,
    /// Title of indicators.
    pub title: String,
    /// Description of indicators.
    pub description: String,
}

impl Default for RespondSettings {
    fn default() -> Self {
        Self {
            guard: Guard::default(),
            protected: Vec::new(),
            overwrite: false,
            comment: COMMENT.to_owned(),
            title: TITLE.to_owned(),
            description: DESCRIPTION.to_owned(),
        }
    }
}

impl RespondArgs {
    /// Checks and reads the values; `guard` is that of [`super::HostArgs::guard_of_machines`].
    pub fn resolve(&self, guard: Guard, findings: &mut Findings) -> RespondSettings {
        let mut text = |setting: &str, text: &str, default: &str| {
            let text = parse::or_default(text, default).trim().to_owned();
            if text.chars().count() > TEXT_LIMIT_CHARS || text.contains(char::is_control) {
                findings.problem(setting, format_args!("must be one line of up to {TEXT_LIMIT_CHARS} characters"));
            }
            text
        };
        let title = text("BRIDGE_INDICATOR_TITLE", &self.indicator_title, TITLE);
        let description = text("BRIDGE_INDICATOR_DESCRIPTION", &self.indicator_description, DESCRIPTION);
        let comment = text("BRIDGE_ACTION_COMMENT", &self.action_comment, COMMENT);
        let overwrite = parse::or_default(&self.indicator_overwrite, OVERWRITE);
        RespondSettings {
            guard,
            protected: entries(
                findings,
                "BRIDGE_GUARD_PROTECTED_OBSERVABLES",
                self.guard_protected_observables.as_ref(),
            ),
            overwrite: parse::flag(findings, "BRIDGE_INDICATOR_OVERWRITE", overwrite),
            comment,
            title,
            description,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RespondArgs {
        RespondArgs {
            guard_protected_observables: None,
            indicator_overwrite: String::new(),
            indicator_title: String::new(),
            indicator_description: " ".into(),
            action_comment: String::new(),
        }
    }

    #[test]
    fn empty_values_count_as_not_set() {
        let mut findings = Findings::default();
        assert_eq!(args().resolve(Guard::default(), &mut findings), RespondSettings::default());
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn every_entry_that_protects_nothing_is_named() {
        let mut findings = Findings::default();
        let given = RespondArgs {
            guard_protected_observables: Some("192.0.2.0/24, intranet.example, nonsense!, 10.0.0.300".into()),
            indicator_title: "t".repeat(201),
            action_comment: "two\nlines".into(),
            indicator_overwrite: "perhaps".into(),
            ..args()
        };
        let settings = given.resolve(Guard::default(), &mut findings);
        assert_eq!(settings.protected.len(), 2);
        assert_eq!(findings.problems.len(), 5, "{findings:?}");
    }
}
