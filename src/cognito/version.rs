//! Which generation of the API is spoken (`cognito.md` 3.1).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A version of the REST API: 2.2 to 2.5, or 3.3 and later 3.x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    major: u8,
    minor: u8,
}

/// The two products, which authenticate, score and report events differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Quadrant UX, on premises: v2.x, threat and certainty, audits by the day.
    Qux,
    /// Respond UX, hosted: v3.x, urgency, event feeds with checkpoints.
    Rux,
}

/// Not a version that the bridge can speak.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is none of v2.2, v2.3, v2.4, v2.5 and v3.3 or later v3.x")]
pub struct UnknownVersion(String);

impl Version {
    /// The newest of the on-premises API.
    pub const V2_5: Version = Version { major: 2, minor: 5 };

    /// The product that speaks it.
    #[must_use]
    pub const fn flavour(self) -> Flavour {
        if self.major == 2 { Flavour::Qux } else { Flavour::Rux }
    }

    /// Whether API clients with OAuth2 exist beside personal tokens (`cognito.md` 3.2).
    #[must_use]
    pub const fn has_oauth2(self) -> bool {
        self.major > 2 || self.minor >= 5
    }
}

impl fmt::Display for Version {
    /// As in paths: `v2.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    /// Reads `v2.5` or `2.5`.
    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let unknown = || UnknownVersion(text.chars().take(20).collect());
        let digits = text.trim().strip_prefix(['v', 'V']).unwrap_or(text.trim());
        let (major, minor) = digits.split_once('.').ok_or_else(unknown)?;
        if !minor.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unknown());
        }
        match (major, minor.parse()) {
            ("2", Ok(minor @ 2..=5)) => Ok(Version { major: 2, minor }),
            ("3", Ok(minor @ 3..)) => Ok(Version { major: 3, minor }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_with_the_six_operations_are_known() {
        for (text, shown, flavour, oauth2) in [
            ("v2.2", "v2.2", Flavour::Qux, false),
            ("2.4", "v2.4", Flavour::Qux, false),
            (" V2.5 ", "v2.5", Flavour::Qux, true),
            ("v3.3", "v3.3", Flavour::Rux, true),
            ("v3.14", "v3.14", Flavour::Rux, true),
        ] {
            let version: Version = text.parse().unwrap();
            assert_eq!(
                (version.to_string().as_str(), version.flavour(), version.has_oauth2()),
                (shown, flavour, oauth2)
            );
        }
        for text in
            ["", "v2", "v2.1", "v2.6", "v3.0", "v3.2", "v1.9", "v4.0", "v2.+3", "v2.", "v3.999", "v2.5.1", "latest"]
        {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
