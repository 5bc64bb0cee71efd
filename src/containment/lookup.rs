//! What to ask Defender to find a host's machine (`cognito.md` 5.5, nos. 2, 3 and 5; `defender.md` 5.8).

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::names;
use crate::cognito::model::Host;

/// Defender looks 30 days back; a day less leaves room for clocks and for the time until the call.
const OLDEST: Duration = Duration::from_secs(29 * 24 * 3600);
/// A lookup covers this much before and after its time.
const COVERED: Duration = Duration::from_secs(15 * 60);
/// Lookups by address for one host at most: each costs a call of 100 a minute.
const MAX_TIMES: usize = 3;
/// Lookups by name for one host at most.
const MAX_NAMES: usize = 4;

/// The questions for one host, to be asked in order until one is answered with usable machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The host's address; IPv4 addresses written as IPv6 are the IPv4 address.
    pub address: IpAddr,
    /// When to look for the address, at most three; none for IPv6, which Defender's lookup does not know.
    pub times: Vec<Moment>,
    /// Names to look for when the address gave nothing: full names first, at most four.
    pub names: Vec<NameQuery>,
}

/// A time to look for an address at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Within the last 29 days, never in the future.
    pub at: Timestamp,
    /// Cognito saw the host with its address then. At any other time the address may have been another machine's.
    pub anchored: bool,
}

/// A name to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameQuery {
    /// Machines with exactly this DNS name.
    Full(String),
    /// Machines with this first label: their name is the label alone, or begins with the label and a dot.
    Label(String),
}

/// The questions for `host`. `scored_at` is when a score event, if it was one that led here, says that it happened.
/// `None` where there is no address to look for: then there is no machine (`cognito.md` 5.5, no. 2).
#[must_use]
pub fn plan(host: &Host, scored_at: Option<Timestamp>, now: Timestamp) -> Option<Lookup> {
    let address = address(host)?;
    let times = if address.is_ipv4() { times(host, scored_at, now) } else { Vec::new() };
    Some(Lookup { address, times, names: name_queries(&names::known(host)) })
}

/// The host's address, when it is one that a single machine can have. Every machine has the loopback address, and many
/// have given themselves a link-local one.
#[must_use]
pub fn address(host: &Host) -> Option<IpAddr> {
    let address = host.address.as_deref()?.trim().parse::<IpAddr>().ok()?.to_canonical();
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    (!local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()).then_some(address)
}

fn times(host: &Host, scored_at: Option<Timestamp>, now: Timestamp) -> Vec<Moment> {
    let candidates = [(host.last_seen, true), (host.last_detection, true), (scored_at, false), (Some(now), false)];
    let mut times: Vec<Moment> = Vec::new();
    for (at, anchored) in candidates {
        let Some(at) = at.map(|at| at.min(now)) else { continue };
        let distance = |other: Timestamp| at.duration_since(other).unsigned_abs();
        if distance(now) <= OLDEST && times.iter().all(|tried| distance(tried.at) > COVERED) {
            times.push(Moment { at, anchored });
        }
    }
    times.truncate(MAX_TIMES);
    times
}

fn name_queries(known: &[String]) -> Vec<NameQuery> {
    let full = known.iter().filter(|name| name.contains('.')).map(|name| NameQuery::Full(name.clone()));
    let label = known.iter().map(|name| NameQuery::Label(names::first_label(name).to_owned()));
    let mut queries: Vec<NameQuery> = Vec::new();
    // At least one place is left for a label: a machine may be known by its short name only.
    for query in full.take(MAX_NAMES - 1).chain(label) {
        if queries.len() < MAX_NAMES && !queries.contains(&query) {
            queries.push(query);
        }
    }
    queries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cognito::model::Artifact;

    const NOW: &str = "2026-02-03T10:31:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn host(last_seen: Option<&str>, last_detection: Option<&str>) -> Host {
        Host {
            id: 4711,
            address: Some("192.0.2.42".into()),
            last_seen: last_seen.map(at),
            last_detection: last_detection.map(at),
            ..Host::default()
        }
    }

    fn shown(times: &[Moment]) -> Vec<String> {
        times.iter().map(|time| format!("{}{}", if time.anchored { "" } else { "?" }, time.at)).collect()
    }

    /// No. 3 of 5.5, row by row.
    #[test]
    fn times_to_look_for_an_address() {
        let now = NOW;
        type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>, &'a [&'a str]);
        let rows: [Row<'_>; 13] = [
            ("nothing known", None, None, None, &["?2026-02-03T10:31:00Z"]),
            (
                "all four, far apart: at most three",
                Some("2026-02-03T08:00:00Z"),
                Some("2026-02-01T08:00:00Z"),
                Some("2026-02-02T08:00:00Z"),
                &["2026-02-03T08:00:00Z", "2026-02-01T08:00:00Z", "?2026-02-02T08:00:00Z"],
            ),
            (
                "last seen comes before the last detection, and now is last",
                Some("2026-02-01T08:00:00Z"),
                Some("2026-02-02T08:00:00Z"),
                None,
                &["2026-02-01T08:00:00Z", "2026-02-02T08:00:00Z", "?2026-02-03T10:31:00Z"],
            ),
            (
                "no detection",
                Some("2026-02-01T08:00:00Z"),
                None,
                None,
                &["2026-02-01T08:00:00Z", "?2026-02-03T10:31:00Z"],
            ),
            ("seen just now covers now", Some("2026-02-03T10:30:59Z"), None, None, &["2026-02-03T10:30:59Z"]),
            ("15 minutes are covered", Some("2026-02-03T10:16:00Z"), None, None, &["2026-02-03T10:16:00Z"]),
            (
                "a second more is not",
                Some("2026-02-03T10:15:59Z"),
                None,
                None,
                &["2026-02-03T10:15:59Z", "?2026-02-03T10:31:00Z"],
            ),
            (
                "covered on the other side too",
                Some("2026-02-01T08:00:00Z"),
                Some("2026-02-01T08:14:00Z"),
                None,
                &["2026-02-01T08:00:00Z", "?2026-02-03T10:31:00Z"],
            ),
            ("the future is now", Some("2026-02-04T00:00:00Z"), None, None, &["2026-02-03T10:31:00Z"]),
            (
                "29 days are not too old",
                Some("2026-01-05T10:31:00Z"),
                None,
                None,
                &["2026-01-05T10:31:00Z", "?2026-02-03T10:31:00Z"],
            ),
            ("more than 29 days are", Some("2026-01-05T10:30:59Z"), None, None, &["?2026-02-03T10:31:00Z"]),
            (
                "an old one does not take a place",
                Some("2025-01-01T00:00:00Z"),
                Some("2026-02-01T08:00:00Z"),
                Some("2026-02-02T08:00:00Z"),
                &["2026-02-01T08:00:00Z", "?2026-02-02T08:00:00Z", "?2026-02-03T10:31:00Z"],
            ),
            ("a score event is no anchor", None, None, Some("2026-02-03T10:30:00Z"), &["?2026-02-03T10:30:00Z"]),
        ];
        for (name, last_seen, last_detection, scored_at, expected) in rows {
            let plan = plan(&host(last_seen, last_detection), scored_at.map(at), at(now)).unwrap();
            assert_eq!(shown(&plan.times), expected, "{name}");
        }
    }

    /// No. 2 of 5.5.
    #[test]
    fn only_an_address_that_one_machine_can_have_is_looked_for() {
        let rows = [
            (Some("192.0.2.42"), Some("192.0.2.42")),
            (Some(" 192.0.2.42 "), Some("192.0.2.42")),
            (Some("::ffff:192.0.2.42"), Some("192.0.2.42")),
            (Some("2001:db8::42"), Some("2001:db8::42")),
            (Some("fin-lt-0042"), None),
            (Some("192.0.2.42:443"), None),
            (Some("192.0.2.0/24"), None),
            (Some(""), None),
            (None, None),
            (Some("127.0.0.1"), None),
            (Some("::1"), None),
            (Some("0.0.0.0"), None),
            (Some("169.254.1.1"), None),
            (Some("fe80::1"), None),
            (Some("224.0.0.1"), None),
            (Some("255.255.255.255"), None),
        ];
        for (text, expected) in rows {
            let host = Host { address: text.map(str::to_owned), ..host(Some(NOW), None) };
            let plan = plan(&host, None, at(NOW));
            assert_eq!(plan.map(|plan| plan.address.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn ipv6_is_looked_for_by_name_only() {
        let host =
            Host { address: Some("2001:db8::42".into()), name: Some("fin-lt-0042".into()), ..host(Some(NOW), None) };
        let plan = plan(&host, None, at(NOW)).unwrap();
        assert_eq!(plan.times, []);
        assert_eq!(plan.names, [NameQuery::Label("fin-lt-0042".into())]);
    }

    /// No. 5 of 5.5.
    #[test]
    fn names_are_asked_for_in_full_and_then_by_label() {
        let artifact = |value: &str| Artifact { kind: "dns".into(), value: value.into() };
        let names = ["a.x.example", "a.y.example", "b.x.example", "c.x.example", "d.x.example"];
        let host = Host { artifacts: names.map(artifact).to_vec(), name: Some("a".into()), ..host(None, None) };
        let plan = plan(&host, None, at(NOW)).unwrap();
        let full = |name: &str| NameQuery::Full(name.into());
        assert_eq!(
            plan.names,
            [full("a.x.example"), full("a.y.example"), full("b.x.example"), NameQuery::Label("a".into())]
        );
        let host = Host { artifacts: vec![artifact("a.x.example")], ..self::host(None, None) };
        assert_eq!(name_queries(&names::known(&host)), [full("a.x.example"), NameQuery::Label("a".into())]);
    }

    proptest! {
        #[test]
        fn times_are_few_recent_and_apart(
            seen in prop::option::of(-4_000_000i64..100_000),
            detected in prop::option::of(-4_000_000i64..100_000),
            scored in prop::option::of(-4_000_000i64..100_000),
        ) {
            let now = at(NOW);
            let after = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap();
            let host = Host { last_seen: seen.map(after), last_detection: detected.map(after), ..host(None, None) };
            let times = plan(&host, scored.map(after), now).unwrap().times;
            prop_assert!((1..=3).contains(&times.len()));
            for (index, time) in times.iter().enumerate() {
                prop_assert!(time.at <= now && now.duration_since(time.at).unsigned_abs() <= OLDEST);
                prop_assert!(times[..index].iter().all(|other| time.at.duration_since(other.at).unsigned_abs() > COVERED));
                prop_assert!(!time.anchored || seen.map(after).map(|at| at.min(now)) == Some(time.at)
                    || detected.map(after).map(|at| at.min(now)) == Some(time.at));
            }
            // Anchored ones first: they say the most.
            prop_assert!(times.windows(2).all(|pair| pair[0].anchored || !pair[1].anchored));
            // Now is covered, unless three others were more telling.
            prop_assert!(times.len() == 3 || times.iter().any(|time| now.duration_since(time.at).unsigned_abs() <= COVERED));
        }
    }
}
