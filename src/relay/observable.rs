//! Observables: types, validity, normal form and duplicates (`relay.md` 4.1 and 4.2).
//!
//! Every call to Defender and every sighting id uses the normal value, so this is also where injection ends (defect
//! 19): what is not valid for its type never becomes an [`Observable`].
//!
//! An IPv4 address written as IPv6 (`::ffff:203.0.113.7`, under either type) is taken as the `ip` it stands for.
//! Hunting folds the same addresses of dual-stack sockets back to IPv4 (`network_events_by_ip.kql`), so one address
//! has one normal form whoever wrote it, its answers are found, and asking for both spellings costs one lookup. The
//! caller's own spelling is listed beside the normal form, as with any other.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::ctim::Typed;

/// Longest value as received, in bytes: far above any valid one (253 characters, brackets and white space around it).
/// It bounds what a sighting repeats of the caller's own text.
const MAX_SPELLED_BYTES: usize = 1024;
/// Longest domain name, without its final dot.
const MAX_DOMAIN_CHARS: usize = 253;
/// Longest label of a domain name.
const MAX_LABEL_CHARS: usize = 63;

/// The types that the relay handles; any other is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `sha1`: 40 hexadecimal digits.
    #[serde(rename = "sha1")]
    Sha1,
    /// `sha256`: 64 hexadecimal digits.
    #[serde(rename = "sha256")]
    Sha256,
    /// `md5`: 32 hexadecimal digits.
    #[serde(rename = "md5")]
    Md5,
    /// `ip`: IPv4 only.
    #[serde(rename = "ip")]
    Ip,
    /// `ipv6`.
    #[serde(rename = "ipv6")]
    Ipv6,
    /// `domain`: a host name of any number of labels.
    #[serde(rename = "domain")]
    Domain,
    /// `ms_machine_id`: 40 hexadecimal digits. A computer name is not valid: Defender's machine routes take one too,
    /// so it could pick another device.
    #[serde(rename = "ms_machine_id")]
    MachineId,
}

impl Kind {
    /// The platform's name of the type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
            Self::Ip => "ip",
            Self::Ipv6 => "ipv6",
            Self::Domain => "domain",
            Self::MachineId => "ms_machine_id",
        }
    }

    /// Reads the platform's name of a type, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Sha1, Self::Sha256, Self::Md5, Self::Ip, Self::Ipv6, Self::Domain, Self::MachineId]
            .into_iter()
            .find(|kind| name.eq_ignore_ascii_case(kind.as_str()))
    }

    /// Whether `/observe` looks for it: all but machine ids (`relay.md` 4.1).
    pub const fn is_observable(self) -> bool {
        !matches!(self, Self::MachineId)
    }

    /// Whether it is a file hash.
    pub const fn is_hash(self) -> bool {
        matches!(self, Self::Sha1 | Self::Sha256 | Self::Md5)
    }
}

/// A valid observable: its normal form, and how the caller spelled it first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Observable {
    /// Type of the normal form.
    pub kind: Kind,
    /// Normal value: what every call to Defender uses. It never holds a quote, backslash, slash, space or control
    /// character.
    pub value: String,
    /// Type as received, lower case.
    pub spelled_type: String,
    /// Value as received.
    pub spelled_value: String,
}

impl Observable {
    /// Reads one item; `None` when the type is not handled or the value is not valid for it, which means "ignore it"
    /// (`relay.md` 4.2).
    pub fn parse(type_name: &str, value: &str) -> Option<Self> {
        if value.len() > MAX_SPELLED_BYTES {
            return None;
        }
        let spelled = Kind::parse(type_name)?;
        let (kind, normal) = normalise(spelled, value.trim())?;
        Some(Self { kind, value: normal, spelled_type: spelled.as_str().to_owned(), spelled_value: value.to_owned() })
    }

    /// Whether `/observe` looks for it.
    pub const fn is_observable(&self) -> bool {
        self.kind.is_observable()
    }

    /// What a sighting of it lists as `observables`: the first spelling, then the normal form if it differs, so that
    /// the platform can tie the sighting to its question and to the relations.
    pub fn spellings(&self) -> Vec<Typed> {
        let spelled = Typed::new(self.spelled_type.clone(), self.spelled_value.clone());
        let normal = Typed::new(self.kind.as_str(), self.value.clone());
        if spelled == normal { vec![normal] } else { vec![spelled, normal] }
    }
}

/// Drops every item equal in (type, normal value) to an earlier one; keeps the order and the first spelling.
pub fn dedup(observables: Vec<Observable>) -> Vec<Observable> {
    let mut seen = HashSet::with_capacity(observables.len());
    observables.into_iter().filter(|one| seen.insert((one.kind, one.value.clone()))).collect()
}

fn normalise(kind: Kind, value: &str) -> Option<(Kind, String)> {
    match kind {
        Kind::Sha1 | Kind::MachineId => Some((kind, hex(value, 40)?)),
        Kind::Sha256 => Some((kind, hex(value, 64)?)),
        Kind::Md5 => Some((kind, hex(value, 32)?)),
        Kind::Domain => Some((kind, domain(value)?)),
        Kind::Ip => address(value),
        // An IPv4 quad is no valid `ipv6`; one in IPv6 clothes is.
        Kind::Ipv6 if value.contains(':') => address(value),
        Kind::Ipv6 => None,
    }
}

/// Exactly `digits` hexadecimal digits, in lower case.
pub fn hex(value: &str, digits: usize) -> Option<String> {
    (value.len() == digits && value.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| value.to_ascii_lowercase())
}

/// An address in its canonical text (RFC 5952 for IPv6) with its type. Brackets and zone of an IPv6 literal are
/// removed; an IPv4-mapped one is the IPv4 address it stands for.
pub fn address(text: &str) -> Option<(Kind, String)> {
    let text = text.trim();
    if let Ok(v4) = text.parse::<Ipv4Addr>() {
        return Some((Kind::Ip, v4.to_string()));
    }
    let text = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'))?;
    let (literal, zone) = text.split_once('%').map_or((text, None), |(literal, zone)| (literal, Some(zone)));
    if zone.is_some_and(str::is_empty) {
        return None;
    }
    let v6: Ipv6Addr = literal.parse().ok()?;
    match IpAddr::V6(v6).to_canonical() {
        IpAddr::V4(v4) => Some((Kind::Ip, v4.to_string())),
        IpAddr::V6(v6) => Some((Kind::Ipv6, v6.to_string())),
    }
}

/// A host name: lower case, punycode, no final dot; letters, digits, `-` and `_` in labels of 1 to 63 characters,
/// 253 in all.
pub fn domain(text: &str) -> Option<String> {
    // The mapping of UTS 46 is for names beyond ASCII only: it would refuse ASCII names that exist in DNS and logs,
    // such as a label that begins with `xn--` and is no punycode.
    let name = if text.is_ascii() { text.to_ascii_lowercase() } else { idna::domain_to_ascii(text).ok()? };
    let name = name.strip_suffix('.').unwrap_or(&name);
    let fits = |label: &str| {
        (1..=MAX_LABEL_CHARS).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (name.len() <= MAX_DOMAIN_CHARS && name.split('.').all(fits)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(type_name: &str, value: &str) -> Option<(&'static str, String)> {
        Observable::parse(type_name, value).map(|found| (found.kind.as_str(), found.value))
    }

    #[test]
    fn values_have_one_normal_form() {
        let sha1 = "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709";
        let sha256 = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
        let md5 = "D41D8CD98F00B204E9800998ECF8427E";
        let long_label = format!("{}.example", "a".repeat(63));
        let longest = format!("{}.{}", "a".repeat(63), ["b"; 95].join("."));
        let rows: Vec<(&str, &str, &str, String)> = vec![
            ("sha1", sha1, "sha1", sha1.to_lowercase()),
            ("SHA256", sha256, "sha256", sha256.to_lowercase()),
            ("Md5", md5, "md5", md5.to_lowercase()),
            ("ms_machine_id", sha1, "ms_machine_id", sha1.to_lowercase()),
            ("ip", "\t 192.0.2.1\n", "ip", "192.0.2.1".into()),
            // Defect 20: a literal under `ip` is an `ipv6`.
            ("ip", "2001:DB8:0:0:0:0:0:1", "ipv6", "2001:db8::1".into()),
            ("ipv6", "2001:db8::0001", "ipv6", "2001:db8::1".into()),
            ("ipv6", "[2001:db8::1]", "ipv6", "2001:db8::1".into()),
            ("ipv6", "fe80::1%eth0", "ipv6", "fe80::1".into()),
            ("ipv6", "[fe80::1%25en0]", "ipv6", "fe80::1".into()),
            ("ipv6", "2001:db8:0:0:1:0:0:1", "ipv6", "2001:db8::1:0:0:1".into()),
            ("ipv6", "2001:db8:0:1:1:1:1:1", "ipv6", "2001:db8:0:1:1:1:1:1".into()),
            ("ipv6", "::", "ipv6", "::".into()),
            ("ipv6", "::FFFF:203.0.113.7", "ip", "203.0.113.7".into()),
            ("ip", "::ffff:cb00:7107", "ip", "203.0.113.7".into()),
            ("domain", "Evil.EXAMPLE", "domain", "evil.example".into()),
            ("domain", "evil.example.", "domain", "evil.example".into()),
            ("domain", "_dmarc.a-b.example", "domain", "_dmarc.a-b.example".into()),
            ("domain", "bücher.example", "domain", "xn--bcher-kva.example".into()),
            ("domain", "BÜCHER。example。", "domain", "xn--bcher-kva.example".into()),
            ("domain", "xn--zzzz-.example", "domain", "xn--zzzz-.example".into()),
            ("domain", "localhost", "domain", "localhost".into()),
            ("domain", &long_label, "domain", long_label.clone()),
            ("domain", &longest, "domain", longest.clone()),
        ];
        assert_eq!(longest.len(), 253);
        for (type_name, value, kind, expected) in rows {
            assert_eq!(normal(type_name, value), Some((kind, expected)), "{type_name} {value}");
        }
    }

    /// Defects 17 and 19: what is not valid is ignored, so it never reaches a path, a query or a filter.
    #[test]
    fn values_that_are_not_valid_for_their_type_are_ignored() {
        let sha1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        let long_label = format!("{}.example", "a".repeat(64));
        let too_long = format!("{}.{}", "a".repeat(63), ["b"; 96].join("."));
        let padded = format!("{}192.0.2.1", " ".repeat(1016));
        let rows = [
            ("ip", "@#$%^&"),
            ("ip", " "),
            ("ip", "1.2.3"),
            ("ip", "1.2.3.4.5"),
            ("ip", "01.2.3.4"),
            ("ip", "256.1.1.1"),
            ("ip", "192.0.2.1/24"),
            ("ip", "192.0.2.1:80"),
            ("ip", "1' or 1==1 //"),
            ("ip", &padded),
            ("ipv6", "192.0.2.1"),
            ("ipv6", "[2001:db8::1"),
            ("ipv6", "2001:db8::1]"),
            ("ipv6", "2001:db8::1%"),
            ("ipv6", "[2001:db8::1]:443"),
            ("ipv6", "2001:db8:::1"),
            ("sha1", &sha1[1..]),
            ("sha256", sha1),
            ("sha1", "ga39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("md5", ""),
            ("ms_machine_id", "finance-pc7"),
            ("ms_machine_id", "m1/../../m2"),
            ("domain", ""),
            ("domain", "."),
            ("domain", "a..example"),
            ("domain", "a.example.."),
            ("domain", ".example"),
            ("domain", "a b.example"),
            ("domain", "a\"b.example"),
            ("domain", "a.example/x"),
            ("domain", "../machines"),
            ("domain", "http://a.example"),
            ("domain", "a.example:8443"),
            ("domain", "℀.example"),
            ("domain", &long_label),
            ("domain", &too_long),
            ("url", "http://a.example/"),
            ("", "a.example"),
            (" ip", "192.0.2.1"),
        ];
        for (type_name, value) in rows {
            assert_eq!(normal(type_name, value), None, "{type_name} {value}");
        }
    }

    /// Defect 18.
    #[test]
    fn spellings_of_one_value_are_one_observable_with_the_first_spelling() {
        let list = [
            ("sha1", "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709"),
            ("ip", "::ffff:192.0.2.1"),
            ("SHA1", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("ms_machine_id", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("ip", "192.0.2.1"),
        ];
        let kept = dedup(list.iter().filter_map(|(name, value)| Observable::parse(name, value)).collect());
        let spelled: Vec<_> = kept.iter().map(|one| (one.spelled_type.as_str(), one.spelled_value.as_str())).collect();
        assert_eq!(spelled, [list[0], list[1], list[3]]);
    }

    #[test]
    fn a_sighting_lists_the_first_spelling_and_then_the_normal_form() {
        let spellings = |type_name, value| {
            let found = Observable::parse(type_name, value).unwrap();
            found.spellings().iter().map(|one| format!("{} {}", one.kind, one.value)).collect::<Vec<_>>()
        };
        assert_eq!(spellings("IP", "192.0.2.1"), ["ip 192.0.2.1"]);
        assert_eq!(spellings("domain", "A.example"), ["domain A.example", "domain a.example"]);
        assert_eq!(spellings("ip", "2001:db8::1"), ["ip 2001:db8::1", "ipv6 2001:db8::1"]);
    }

    #[test]
    fn machine_ids_are_not_observed() {
        let id = Observable::parse("ms_machine_id", "6035c8a86d4961346736ec90e668c8d2694b7f57").unwrap();
        assert!(!id.is_observable());
        assert!(Observable::parse("ip", "192.0.2.1").unwrap().is_observable());
    }

    #[test]
    fn an_observable_survives_the_way_through_the_queue() {
        let observable = Observable::parse("IP", "::ffff:192.0.2.1").unwrap();
        let text = serde_json::to_string(&observable).unwrap();
        assert!(text.contains(r#""kind":"ip""#), "{text}");
        assert_eq!(serde_json::from_str::<Observable>(&text).unwrap(), observable);
    }

    fn type_names() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["sha1", "sha256", "md5", "ip", "ipv6", "domain", "ms_machine_id"])
    }

    fn values() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}",
            any::<std::net::IpAddr>().prop_map(|ip| format!(" {ip}")),
            any::<Ipv4Addr>().prop_map(|ip| format!("[::ffff:{ip}%3]")),
            "[a-zA-Z0-9._-]{1,40}",
            "[\\PC]{1,12}\\.example\\.?",
        ]
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(type_name in type_names(), value in values()) {
            if let Some(once) = Observable::parse(type_name, &value) {
                let twice = Observable::parse(once.kind.as_str(), &once.value).expect("a normal form is valid");
                prop_assert_eq!((twice.kind, &twice.value), (once.kind, &once.value));
            }
        }

        #[test]
        fn a_normal_value_holds_nothing_that_could_leave_a_literal_or_a_path(type_name in type_names(), value in values()) {
            if let Some(found) = Observable::parse(type_name, &value) {
                prop_assert!(!found.value.is_empty());
                let harmless = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.:".contains(c);
                prop_assert!(found.value.chars().all(harmless), "{:?}", found.value);
            }
        }

        #[test]
        fn dropping_duplicates_keeps_one_of_each_in_order(
            values in proptest::collection::vec("[ab]\\.example|[AB]\\.EXAMPLE\\.?", 0..12)
        ) {
            let all: Vec<_> = values.iter().filter_map(|value| Observable::parse("domain", value)).collect();
            let kept = dedup(all.clone());
            let mut expected: Vec<Observable> = Vec::new();
            for one in all {
                if !expected.iter().any(|earlier| (earlier.kind, &earlier.value) == (one.kind, &one.value)) {
                    expected.push(one);
                }
            }
            prop_assert_eq!(dedup(kept.clone()), kept.clone());
            prop_assert_eq!(kept, expected);
        }
    }
}
