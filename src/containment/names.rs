//! Host names: what Cognito knows, and how well a machine's name agrees with it (`cognito.md` 5.5, nos. 6 and 7).

use std::net::IpAddr;

use crate::cognito::model::Host;

/// Longest host name (RFC 1035).
const MAX_CHARS: usize = 253;
/// Artifacts that hold a host name, the most trustworthy first.
const ARTIFACTS: [&str; 4] = ["windows_defender_name", "dns", "rdns", "kerberos"];

/// How well a machine's name agrees with the host names that Cognito knows. The better, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Score {
    /// −1: names are known, and none agrees.
    Differs,
    /// 0: no name is known.
    Unknown,
    /// 2: the first labels are equal.
    Label,
    /// 3: the full names are equal.
    Full,
}

impl Score {
    /// Whether a name agrees: 2 or more.
    #[must_use]
    pub fn agrees(self) -> bool {
        self >= Self::Label
    }
}

/// The host names that Cognito knows, normalised and without repeats: artifacts first, then the host's own name.
#[must_use]
pub fn known(host: &Host) -> Vec<String> {
    let of_kind = |kind| host.artifacts.iter().filter(move |artifact| artifact.kind.eq_ignore_ascii_case(kind));
    let artifacts = ARTIFACTS.into_iter().flat_map(of_kind).map(|artifact| artifact.value.as_str());
    let mut names: Vec<String> = Vec::new();
    for name in artifacts.chain(host.name.as_deref()).filter_map(normal) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A host name in lower case without trailing dots; nothing for what is none: empty text, an address, `IP-` and an
/// address, a display name with spaces, `#` or parentheses, or more than 253 characters.
#[must_use]
pub fn normal(text: &str) -> Option<String> {
    let name = text.trim().to_lowercase();
    let name = name.trim_end_matches('.');
    let shown = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '#' | '(' | ')');
    let address = |text: &str| text.parse::<IpAddr>().is_ok();
    let none = name.is_empty()
        || name.starts_with('.')
        || name.chars().count() > MAX_CHARS
        || name.contains(shown)
        || address(name)
        || name.strip_prefix("ip-").is_some_and(|rest| address(rest) || address(&rest.replace('-', ".")));
    (!none).then(|| name.to_owned())
}

/// What comes before the first dot.
#[must_use]
pub fn first_label(name: &str) -> &str {
    name.split_once('.').map_or(name, |(label, _)| label)
}

/// How well the name that Defender gives a machine agrees with the `known` ones. A machine without a name agrees with
/// none.
#[must_use]
pub fn score(known: &[String], machine_name: Option<&str>) -> Score {
    if known.is_empty() {
        return Score::Unknown;
    }
    let Some(name) = machine_name.and_then(normal) else { return Score::Differs };
    let of = |one: &String| {
        if *one == name {
            Score::Full
        } else if first_label(one) == first_label(&name) {
            Score::Label
        } else {
            Score::Differs
        }
    };
    known.iter().map(of).max().unwrap_or(Score::Differs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cognito::model::Artifact;

    fn host(name: &str, artifacts: &[(&str, &str)]) -> Host {
        let artifact = |(kind, value): &(&str, &str)| Artifact { kind: (*kind).into(), value: (*value).into() };
        Host { name: Some(name.into()), artifacts: artifacts.iter().map(artifact).collect(), ..Host::default() }
    }

    #[test]
    fn names_come_in_the_order_of_trust_and_once() {
        let host = host(
            "Fin-LT-0042",
            &[
                ("kerberos", "fin-krb"),
                ("mac", "00:00:5e:00:53:2a"),
                ("vm_uuid", "4220-aa"),
                ("rdns", "fin-rdns.corp.example.com"),
                ("dns", "FIN-LT-0042.corp.example.com."),
                ("dns", "second.corp.example.com"),
                ("windows_defender_name", "fin-lt-0042.corp.example.com"),
            ],
        );
        let expected = [
            "fin-lt-0042.corp.example.com",
            "second.corp.example.com",
            "fin-rdns.corp.example.com",
            "fin-krb",
            "fin-lt-0042",
        ];
        assert_eq!(known(&host), expected);
        assert_eq!(known(&Host::default()), [""; 0]);
    }

    #[test]
    fn what_is_no_host_name() {
        let rows = [
            ("", None),
            (" ", None),
            (".", None),
            ("192.0.2.42", None),
            ("2001:db8::1", None),
            ("IP-192.0.2.42", None),
            ("ip-192-0-2-42", None),
            ("Billing DB", None),
            ("db#2", None),
            ("db(prod)", None),
            ("a\tb", None),
            // What only looks so.
            ("ip-phone", Some("ip-phone")),
            ("IP-192.0.2.42.example.com", Some("ip-192.0.2.42.example.com")),
            ("ip-192-0-2-42.eu.compute.internal", Some("ip-192-0-2-42.eu.compute.internal")),
            ("Fin-LT-0042.", Some("fin-lt-0042")),
            ("host_1", Some("host_1")),
            ("bücher", Some("bücher")),
        ];
        for (text, expected) in rows {
            assert_eq!(normal(text).as_deref(), expected, "{text:?}");
        }
        assert!(normal(&"a".repeat(253)).is_some() && normal(&"a".repeat(254)).is_none());
    }

    #[test]
    fn scores_of_names() {
        let rows: [(&[&str], Option<&str>, Score); 10] = [
            (&["fin-lt-0042.corp.example.com"], Some("FIN-LT-0042.corp.example.com"), Score::Full),
            (&["fin-lt-0042"], Some("fin-lt-0042"), Score::Full),
            (&["fin-lt-0042"], Some("fin-lt-0042.corp.example.com"), Score::Label),
            (&["fin-lt-0042.corp.example.com"], Some("fin-lt-0042.lab.example.com"), Score::Label),
            (&["other", "fin-lt-0042"], Some("fin-lt-0042.corp.example.com"), Score::Label),
            (&["fin-lt-0042", "fin-lt-0042.corp.example.com"], Some("fin-lt-0042.corp.example.com"), Score::Full),
            (&[], Some("fin-lt-0042"), Score::Unknown),
            (&["fin-lt-0042"], Some("fin-lt-00421"), Score::Differs),
            (&["fin-lt-0042"], None, Score::Differs),
            (&["fin-lt-0042"], Some(""), Score::Differs),
        ];
        for (known, machine, expected) in rows {
            let known: Vec<String> = known.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(score(&known, machine), expected, "{known:?} {machine:?}");
        }
        assert!(Score::Full > Score::Label && Score::Label > Score::Unknown && Score::Unknown > Score::Differs);
        assert!(Score::Label.agrees() && !Score::Unknown.agrees());
    }

    proptest! {
        #[test]
        fn a_normal_name_is_normal_and_safe_to_ask_for(text in any::<String>(), near in "[A-Za-z0-9.#( -]{0,20}") {
            for name in [normal(&text), normal(&near)].into_iter().flatten() {
                prop_assert!(!name.contains(char::is_whitespace) && !name.is_empty());
                prop_assert_eq!(score(std::slice::from_ref(&name), Some(&name)), Score::Full);
            }
        }
    }
}
