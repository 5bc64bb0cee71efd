//! Why a request was not carried out: the codes of `mde:request-reason=`, and what they mean to an analyst.

use std::fmt;

/// The fate of the last request when it was not carried out (`mde:request=`, `cognito.md` 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It could not be done.
    Failed,
    /// The guard, the brake or a cap refused it.
    Denied,
    /// The dry run would have done it.
    DryRun,
}

impl Fate {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Denied, Self::DryRun];

    /// The value of the tag.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::DryRun => "dry-run",
        }
    }

    /// Reads the value of the tag.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fate| fate.as_str() == text)
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Defender knows no machine that fits.
    NoMachine,
    /// Cognito knows no host name that could confirm the one machine at the address.
    NameUnknown,
    /// The one machine at the address has another name than Cognito's host.
    NameMismatch,
    /// Several machines fit.
    Ambiguous,
    /// The dry run is on.
    DryRun,
    /// A protected group, tag, network, name, machine id, or a key asset.
    Protected,
    /// The host's privilege level is above the limit.
    Privileged,
    /// The machine is a server, or Defender does not say what it is.
    Server,
    /// The machine is not onboarded to Defender.
    NotOnboarded,
    /// The machine is excluded from Defender's inventory.
    Excluded,
    /// The machine became part of another one.
    Merged,
    /// An operator has stopped isolations.
    Paused,
    /// As many isolations as allowed within the last hour.
    RateLimit,
    /// As many machines as allowed are isolated now.
    MaxIsolated,
    /// Defender refused the request.
    Refused,
    /// Defender lacks a permission for the bridge.
    Forbidden,
    /// Defender took the request and did not carry it out.
    ActionFailed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::NoMachine,
        Self::NameUnknown,
        Self::NameMismatch,
        Self::Ambiguous,
        Self::DryRun,
        Self::Protected,
        Self::Privileged,
        Self::Server,
        Self::NotOnboarded,
        Self::Excluded,
        Self::Merged,
        Self::Paused,
        Self::RateLimit,
        Self::MaxIsolated,
        Self::Refused,
        Self::Forbidden,
        Self::ActionFailed,
    ];

    /// The code: of the tag, of logs and of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoMachine => "no_machine",
            Self::NameUnknown => "name_unknown",
            Self::NameMismatch => "name_mismatch",
            Self::Ambiguous => "ambiguous",
            Self::DryRun => "dry_run",
            Self::Protected => "protected",
            Self::Privileged => "privileged",
            Self::Server => "server",
            Self::NotOnboarded => "not_onboarded",
            Self::Excluded => "excluded",
            Self::Merged => "merged",
            Self::Paused => "paused",
            Self::RateLimit => "rate_limit",
            Self::MaxIsolated => "max_isolated",
            Self::Refused => "refused",
            Self::Forbidden => "forbidden",
            Self::ActionFailed => "action_failed",
        }
    }

    /// Reads a code.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// The fate of a request that this ended.
    #[must_use]
    pub const fn fate(self) -> Fate {
        match self {
            Self::NoMachine
            | Self::NameUnknown
            | Self::NameMismatch
            | Self::Ambiguous
            | Self::Refused
            | Self::Forbidden
            | Self::ActionFailed => Fate::Failed,
            Self::Protected
            | Self::Privileged
            | Self::Server
            | Self::NotOnboarded
            | Self::Excluded
            | Self::Merged
            | Self::Paused
            | Self::RateLimit
            | Self::MaxIsolated => Fate::Denied,
            Self::DryRun => Fate::DryRun,
        }
    }

    /// Whether an operator has to be told (`cognito.md` 5.7, 5.8 and 6.4).
    #[must_use]
    pub const fn alerts(self) -> bool {
        self.holds() || matches!(self, Self::Refused | Self::Forbidden)
    }

    /// Whether the request waits, its trigger in place, until the brake is released or the cap has room (`cognito.md` 6.4).
    #[must_use]
    pub const fn holds(self) -> bool {
        matches!(self, Self::Paused | Self::RateLimit | Self::MaxIsolated)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_distinct_and_read_back() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        }
        for fate in Fate::ALL {
            assert_eq!(Fate::parse(fate.as_str()), Some(fate));
        }
        assert_eq!(Reason::parse("Protected"), None);
        assert_eq!(Fate::parse("conflict"), None);
    }

    #[test]
    fn only_the_brake_and_the_caps_leave_the_trigger() {
        let held: Vec<_> = Reason::ALL.into_iter().filter(|reason| reason.holds()).collect();
        assert_eq!(held, [Reason::Paused, Reason::RateLimit, Reason::MaxIsolated]);
        assert!(held.iter().all(|reason| reason.fate() == Fate::Denied));
    }
}
