//! What no indicator of ours ever blocks (`BRIDGE_GUARD_PROTECTED_OBSERVABLES`, `DESIGN.md` 10, ruling 13).

use std::net::IpAddr;
use std::str::FromStr;

use super::network::Network;

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protected {
    /// An address, or a whole network.
    Network(Network),
    /// A domain with everything below it, in lower case.
    Domain(String),
    /// A file's MD5, SHA-1 or SHA-256, in lower case.
    Hash(String),
}

impl FromStr for Protected {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().to_ascii_lowercase();
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        if [32, 40, 64].contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self::Hash(text));
        }
        let domain = text.strip_prefix("*.").unwrap_or(&text).trim_end_matches('.');
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        // An address that was mistyped is no domain.
        let ends_as_name = domain.rsplit('.').next().is_some_and(|top| !top.bytes().all(|byte| byte.is_ascii_digit()));
        if domain.len() <= 253 && domain.split('.').all(label) && ends_as_name {
            Ok(Self::Domain(domain.to_owned()))
        } else {
            Err("is no address, network, domain or hash (domains beyond ASCII in punycode)")
        }
    }
}

impl Protected {
    /// Whether an indicator that blocks `value`, which is in normal form, would block this. A blocked domain takes those
    /// below it along, so a protected one is protected from the block of a domain above it too.
    #[must_use]
    pub fn is_hit_by(&self, value: &str) -> bool {
        let below = |one: &str, other: &str| one.strip_suffix(other).is_some_and(|rest| rest.ends_with('.'));
        match self {
            Self::Network(network) => value.parse::<IpAddr>().is_ok_and(|address| network.contains(address)),
            Self::Domain(domain) => value == domain || below(value, domain) || below(domain, value),
            Self::Hash(hash) => value == hash,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_protects_what_it_names() {
        let rows = [
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("192.0.2.0/24", "192.0.2.200", true),
            ("2001:db8::/32", "2001:db8::1", true),
            ("2001:db8::/32", "192.0.2.1", false),
            ("Portal.Example.", "portal.example", true),
            ("portal.example", "www.portal.example", true),
            ("*.portal.example", "portal.example", true),
            // The block of what is above it would take it along.
            ("www.portal.example", "portal.example", true),
            ("portal.example", "myportal.example", false),
            ("portal.example", "portal.example.org", false),
            ("DA39A3EE5E6B4B0D3255BFEF95601890AFD80709", "da39a3ee5e6b4b0d3255bfef95601890afd80709", true),
            ("DA39A3EE5E6B4B0D3255BFEF95601890AFD80709", "0039a3ee5e6b4b0d3255bfef95601890afd80709", false),
        ];
        for (entry, value, hit) in rows {
            assert_eq!(entry.parse::<Protected>().unwrap().is_hit_by(value), hit, "{entry} {value}");
        }
    }

    #[test]
    fn what_protects_nothing_is_refused() {
        for entry in ["", "192.0.2.300", "192.0.2.0/33", "a b", "http://a.example", "bücher.example", "a..example"] {
            assert!(entry.parse::<Protected>().is_err(), "{entry}");
        }
    }
}
