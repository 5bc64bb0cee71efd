//! The text of hunting queries (`defender.md` 6): values in, KQL out.
//!
//! Hunting knows no parameters, so values become text. They are validated first (a value that is not of its kind never
//! gets here, see [`Value`]) and written as escaped literals all the same. The texts are those of the contract's saved
//! queries; where they differ the place says why.

use std::fmt::Write as _;
use std::net::IpAddr;

/// What sort of observable a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sort {
    /// 40 hex digits.
    Sha1,
    /// 64 hex digits.
    Sha256,
    /// 32 hex digits.
    Md5,
    /// An address of either family.
    Ip,
    /// A host name.
    Domain,
}

/// A value that is valid for its sort, and how the query names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Value {
    sort: Sort,
    text: String,
}

impl Value {
    /// Checks `text` and brings it to the form that queries compare with (`defender.md` 6.6): lower case; addresses in
    /// canonical text, an IPv4 address inside an IPv6 one (`::ffff:a.b.c.d`) as the IPv4 address that it is.
    pub(super) fn new(sort: Sort, text: &str) -> Option<Value> {
        let text = match sort {
            Sort::Sha1 => hex(text, 40)?,
            Sort::Sha256 => hex(text, 64)?,
            Sort::Md5 => hex(text, 32)?,
            Sort::Ip => text.parse::<IpAddr>().ok()?.to_canonical().to_string(),
            Sort::Domain => domain(text)?,
        };
        Some(Value { sort, text })
    }

    /// What the query puts into the column `Observable` of the rows that belong to this value.
    pub(super) fn observable(&self) -> String {
        observable(self.sort, &self.text)
    }

    /// Whether the value is found in file events; else it is in network events.
    pub(super) fn is_of_file(&self) -> bool {
        matches!(self.sort, Sort::Sha1 | Sort::Sha256 | Sort::Md5)
    }

    /// How much the value adds to a query, in bytes; more for IPv4, which stands there three times.
    pub(super) fn query_bytes(&self) -> usize {
        const QUOTES_AND_COMMA: usize = 4;
        match self.sort {
            Sort::Ip => 3 * (self.text.len() + QUOTES_AND_COMMA) + "::ffff:".len(),
            _ => self.text.len() + QUOTES_AND_COMMA,
        }
    }
}

/// `type:value`, the name of a value among the rows.
pub(super) fn observable(sort: Sort, text: &str) -> String {
    let prefix = match sort {
        Sort::Sha1 => "sha1",
        Sort::Sha256 => "sha256",
        Sort::Md5 => "md5",
        Sort::Ip => "ip",
        Sort::Domain => "domain",
    };
    format!("{prefix}:{text}")
}

/// `text` in lower case if it is `digits` hexadecimal digits.
pub(super) fn hex(text: &str, digits: usize) -> Option<String> {
    let valid = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| text.to_ascii_lowercase())
}

/// `text` in lower case if it is a host name of the form that observables have (`relay.md` 4.2): labels of letters,
/// digits, `-` and `_`, of 1 to 63 characters, 253 in all.
pub(super) fn domain(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let valid = text.len() <= 253 && text.split('.').all(label);
    valid.then(|| text.to_ascii_lowercase())
}

/// How a query takes the newest rows of each observable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newest {
    /// With `partition`, which is cheaper.
    Partition,
    /// With `row_number`, for tenants whose service refuses `partition`: a full sort of the matches.
    RowNumber,
}

/// `file_events_by_hash.kql`, `network_events_by_ip.kql` and `network_events_by_domain.kql`, each for its values, or
/// their forms with row numbers: the newest `top` events of each value. Those that have values stand in one query, which
/// costs one call instead of three (`DESIGN.md` 5).
pub(super) fn events(values: &[Value], top: usize, newest: Newest) -> String {
    let has = |sort| values.iter().any(|value| value.sort == sort);
    let mut query = String::new();
    let mut parts = Vec::new();
    if values.iter().any(Value::is_of_file) {
        for (name, sort) in [("Sha1Set", Sort::Sha1), ("Sha256Set", Sort::Sha256), ("Md5Set", Sort::Md5)] {
            push_set(&mut query, name, texts(values, sort));
        }
        parts.push(("FileRows", FILE_EVENTS.to_owned()));
    }
    if has(Sort::Ip) {
        push_addresses(&mut query, values);
        parts.push(("IpRows", format!("{NETWORK_EVENTS_BY_IP}{NETWORK_COLUMNS}")));
    }
    if has(Sort::Domain) {
        push_set(&mut query, "Domains", texts(values, Sort::Domain));
        parts.push(("DomainRows", format!("{NETWORK_EVENTS_BY_DOMAIN}{NETWORK_COLUMNS}")));
    }
    match &parts[..] {
        [(_, only)] => query.push_str(only),
        parts => {
            for (name, part) in parts {
                writeln!(query, "let {name} = {};", part.trim_end()).expect("writing to a string cannot fail");
            }
            let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
            writeln!(query, "union {}", names.join(", ")).expect("writing to a string cannot fail");
        }
    }
    push_newest(&mut query, top, "Timestamp", newest);
    query
}

/// The part about hashes: `Sha1Set`, `Sha256Set` and `Md5Set`.
const FILE_EVENTS: &str = r#"DeviceFileEvents
| where Timestamp > ago(30d)
| where SHA1 in~ (Sha1Set) or SHA256 in~ (Sha256Set) or MD5 in~ (Md5Set)
| extend Matched = pack_array(
    iff(SHA1 in~ (Sha1Set), strcat("sha1:", tolower(SHA1)), ""),
    iff(SHA256 in~ (Sha256Set), strcat("sha256:", tolower(SHA256)), ""),
    iff(MD5 in~ (Md5Set), strcat("md5:", tolower(MD5)), ""))
| mv-expand Observable = Matched to typeof(string)
| where isnotempty(Observable)
| project Observable, Timestamp, DeviceId, DeviceName, ActionType,
    FileName, FolderPath, SHA1, SHA256, MD5, FileSize,
    FileOriginUrl, FileOriginReferrerUrl, FileOriginIP, PreviousFileName, PreviousFolderPath,
    InitiatingProcessFileName, InitiatingProcessFolderPath,
    InitiatingProcessSHA1, InitiatingProcessSHA256, InitiatingProcessMD5,
    InitiatingProcessParentFileName, ReportId
"#;

/// The part about addresses: `Ips` and `Wanted`.
const NETWORK_EVENTS_BY_IP: &str = r#"DeviceNetworkEvents
| where Timestamp > ago(30d)
| where RemoteIP in~ (Wanted)
| extend Plain = iff(RemoteIP startswith "::ffff:" and RemoteIP has ".", substring(RemoteIP, 7), tolower(RemoteIP))
| where Plain in (Ips)
| extend Observable = strcat("ip:", Plain)
"#;

/// The part about hosts: `Domains`.
const NETWORK_EVENTS_BY_DOMAIN: &str = r#"DeviceNetworkEvents
| where Timestamp > ago(30d)
| where RemoteUrl has_any (Domains)
| extend RemoteHost = tolower(tostring(parse_url(iff(RemoteUrl contains "://", RemoteUrl, strcat("tcp://", RemoteUrl))).Host))
| where RemoteHost in (Domains)
| extend Observable = strcat("domain:", RemoteHost)
"#;

/// The columns of both parts about connections.
const NETWORK_COLUMNS: &str = "\
| project Observable, Timestamp, DeviceId, DeviceName, ActionType,
    RemoteIP, RemotePort, RemoteUrl, RemoteIPType, LocalIP, LocalPort, Protocol,
    InitiatingProcessFileName, InitiatingProcessFolderPath,
    InitiatingProcessSHA1, InitiatingProcessSHA256, InitiatingProcessMD5,
    InitiatingProcessParentFileName, ReportId
";

fn texts(values: &[Value], sort: Sort) -> impl Iterator<Item = &str> {
    values.iter().filter(move |value| value.sort == sort).map(|value| value.text.as_str())
}

fn push_set<'a>(query: &mut String, name: &str, texts: impl Iterator<Item = &'a str>) {
    writeln!(query, "let {name} = {};", literal_set(texts)).expect("writing to a string cannot fail");
}

/// `Ips`, and `Wanted` with the form that connections over a dual-stack socket are stored in.
fn push_addresses(query: &mut String, values: &[Value]) {
    let mut wanted = Vec::new();
    for ip in texts(values, Sort::Ip) {
        wanted.push(ip.to_owned());
        if ip.contains('.') {
            wanted.push(format!("::ffff:{ip}"));
        }
    }
    push_set(query, "Ips", texts(values, Sort::Ip));
    push_set(query, "Wanted", wanted.iter().map(String::as_str));
}

/// `alerts_by_observable.kql`, or its form with row numbers: the newest `top` alerts of each value, which is no MD5.
///
/// Unlike the contract's text it finds addresses of dual-stack sockets too, as the queries of events do, names the SHA-1
/// that the alert route needs for a SHA-256, and leaves out the conditions that nothing is asked by.
pub(super) fn recent_alerts(values: &[Value], top: usize, newest: Newest) -> String {
    let has = |sort| values.iter().any(|value| value.sort == sort);
    let mut query = String::new();
    let (mut matches, mut names) = (Vec::new(), Vec::new());
    if has(Sort::Sha1) {
        push_set(&mut query, "Sha1Set", texts(values, Sort::Sha1));
        matches.push("SHA1 in~ (Sha1Set)");
        names.push(r#"iff(SHA1 in~ (Sha1Set), strcat("sha1:", tolower(SHA1)), "")"#);
    }
    if has(Sort::Sha256) {
        push_set(&mut query, "Sha256Set", texts(values, Sort::Sha256));
        matches.push("SHA256 in~ (Sha256Set)");
        names.push(r#"iff(SHA256 in~ (Sha256Set), strcat("sha256:", tolower(SHA256)), "")"#);
    }
    if has(Sort::Ip) {
        push_addresses(&mut query, values);
        matches.push("RemoteIP in~ (Wanted)");
        names.push(r#"iff(Plain in (Ips), strcat("ip:", Plain), "")"#);
    }
    if has(Sort::Domain) {
        push_set(&mut query, "Domains", texts(values, Sort::Domain));
        matches.push("RemoteUrl has_any (Domains)");
        names.push(r#"iff(RemoteHost in (Domains), strcat("domain:", RemoteHost), "")"#);
    }
    query.push_str("AlertEvidence\n| where Timestamp > ago(30d)\n");
    query.push_str("| where ServiceSource == \"Microsoft Defender for Endpoint\"\n");
    writeln!(query, "| where {}", matches.join(" or ")).expect("writing to a string cannot fail");
    query.push_str(
        r#"| extend Plain = iff(RemoteIP startswith "::ffff:" and RemoteIP has ".", substring(RemoteIP, 7), tolower(RemoteIP)),
    RemoteHost = tolower(tostring(parse_url(iff(RemoteUrl contains "://", RemoteUrl, strcat("tcp://", RemoteUrl))).Host))
"#,
    );
    writeln!(query, "| extend Matched = pack_array(\n    {})", names.join(",\n    "))
        .expect("writing to a string cannot fail");
    query.push_str(
        "| mv-expand Observable = Matched to typeof(string)
| where isnotempty(Observable)
| summarize arg_max(Timestamp, SHA1) by Observable, AlertId
| project-rename LastEvidence = Timestamp
",
    );
    push_newest(&mut query, top, "LastEvidence", newest);
    query.push_str(
        r#"| join kind=inner (
    AlertInfo
    | where Timestamp > ago(30d)
    | where ServiceSource == "Microsoft Defender for Endpoint"
    | summarize arg_max(Timestamp, Title, Category, Severity, DetectionSource) by AlertId
    ) on AlertId
| project Observable, AlertId, Timestamp, LastEvidence, SHA1, Title, Category, Severity, DetectionSource
"#,
    );
    query
}

/// The most rows of evidence that one query returns.
const EVIDENCE_ROWS: usize = 10_000;

/// `alert_evidence.kql`: the evidence of the alerts with these ids, which are valid ones.
///
/// Unlike the contract's text it returns only the columns that sightings show.
pub(super) fn alert_evidence(ids: &[String]) -> String {
    let mut query = String::new();
    push_set(&mut query, "AlertIds", ids.iter().map(String::as_str));
    query.push_str(
        "AlertEvidence
| where Timestamp > ago(30d)
| where AlertId in (AlertIds)
| project AlertId, Timestamp, EntityType, DeviceId, DeviceName,
    FileName, FolderPath, SHA1, SHA256, RemoteIP, RemoteUrl
",
    );
    writeln!(query, "| take {EVIDENCE_ROWS}").expect("writing to a string cannot fail");
    query
}

/// `text` if it can be an alert's id (`defender.md` 6.6).
pub(super) fn alert_id(text: &str) -> Option<&str> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    ((1..=128).contains(&text.len()) && text.bytes().all(valid)).then_some(text)
}

/// Leaves the newest `top` rows of each observable by the column `by`.
fn push_newest(query: &mut String, top: usize, by: &str, newest: Newest) {
    let written = match newest {
        Newest::Partition => {
            write!(query, "| partition hint.strategy=native by Observable\n    (\n    top {top} by {by} desc\n    )\n")
        }
        Newest::RowNumber => write!(
            query,
            "| sort by Observable asc, {by} desc\n\
             | extend Rank = row_number(1, Observable != prev(Observable))\n\
             | where Rank <= {top}\n\
             | project-away Rank\n"
        ),
    };
    written.expect("writing to a string cannot fail");
}

/// The most adapters that are returned for a device. Devices that make up a new MAC address for each network have
/// dozens in thirty days; more than this is no inventory any more.
const ADAPTERS_LIMIT: usize = 256;

/// `device_context.kql`: operating system and adapters, one row for each id in `ids`, which are valid device ids.
///
/// Unlike the contract's text it keeps adapters of any status (`DESIGN.md` 10.10), and so has room for more of them.
pub(super) fn device_context(ids: &[String]) -> String {
    let mut query = format!("let DeviceIds = {};\n", literal_set(ids.iter().map(String::as_str)));
    query.push_str(
        r#"let Wanted = print DeviceId = DeviceIds
    | mv-expand DeviceId to typeof(string);
let OsRows = DeviceInfo
    | where Timestamp > ago(30d)
    | where DeviceId in (DeviceIds)
    | where isnotempty(OSPlatform)
    | summarize arg_max(Timestamp, DeviceName, OSPlatform, OSArchitecture, OSVersion, OSVersionInfo, OSBuild,
        PublicIP, OnboardingStatus, SensorHealthState, ExposureLevel, MachineGroup, MitigationStatus) by DeviceId
    | project-rename OsTimestamp = Timestamp;
let AdapterRows = DeviceNetworkInfo
    | where Timestamp > ago(30d)
    | where DeviceId in (DeviceIds)
    | where isnotempty(MacAddress)
    | summarize arg_max(Timestamp, IPAddresses, NetworkAdapterStatus, NetworkAdapterType) by DeviceId, MacAddress
    | extend Adapter = bag_pack("mac", MacAddress, "type", NetworkAdapterType, "seen", Timestamp, "addresses", parse_json(IPAddresses))
"#,
    );
    writeln!(query, "    | summarize Adapters = make_list(Adapter, {ADAPTERS_LIMIT}) by DeviceId;")
        .expect("writing to a string cannot fail");
    query.push_str(
        r#"Wanted
| join kind=leftouter OsRows on DeviceId
| join kind=leftouter AdapterRows on DeviceId
| project DeviceId, DeviceName, OSPlatform, OSArchitecture, OSVersion, OSVersionInfo, OSBuild,
    PublicIP, OnboardingStatus, SensorHealthState, ExposureLevel, MachineGroup, MitigationStatus, OsTimestamp,
    Adapters = tostring(Adapters)
"#,
    );
    query
}

/// `health_probe.kql`: the cheapest query that proves the token, the permission and the tables.
pub(super) const HEALTH_PROBE: &str = "\
DeviceInfo
| where Timestamp > ago(1d)
| project Timestamp
| take 1
";

/// `dynamic(["...", ...])`.
fn literal_set<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let literals: Vec<String> = texts.map(literal).collect();
    format!("dynamic([{}])", literals.join(", "))
}

/// `text` as a string literal that holds exactly it (`defender.md` 6.6).
pub(super) fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for character in text.chars() {
        match character {
            '\\' => literal.push_str("\\\\"),
            '"' => literal.push_str("\\\""),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            // All of them are below U+10000, so four digits do.
            '\u{2028}' | '\u{2029}' => {
                write!(literal, "\\u{:04x}", u32::from(character)).expect("writing to a string cannot fail");
            }
            control if control.is_control() => {
                write!(literal, "\\u{:04x}", u32::from(control)).expect("writing to a string cannot fail");
            }
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn contract(name: &str) -> String {
        let path = format!("{}/tests/data/defender/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        // Comments are for the readers of the files; the last line has no line break there.
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("//")).collect();
        lines.join("\n") + "\n"
    }

    fn values(sort: Sort, texts: &[&str]) -> Vec<Value> {
        texts.iter().map(|text| Value::new(sort, text).unwrap()).collect()
    }

    fn sample_hashes() -> Vec<Value> {
        let mut hashes = values(
            Sort::Sha1,
            &["0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"],
        );
        hashes.extend(values(Sort::Sha256, &["00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"]));
        hashes
    }

    #[test]
    fn file_events_are_asked_for_with_the_texts_of_the_contract() {
        assert_eq!(events(&sample_hashes(), 100, Newest::Partition), contract("file_events_by_hash.kql"));
        assert_eq!(events(&sample_hashes(), 100, Newest::RowNumber), contract("file_events_by_hash_rownumber.kql"));
    }

    #[test]
    fn connections_are_asked_for_with_the_texts_of_the_contract() {
        let ips = values(Sort::Ip, &["203.0.113.7", "198.51.100.23", "2001:db8::7"]);
        assert_eq!(events(&ips, 100, Newest::Partition), contract("network_events_by_ip.kql"));
        let domains = values(Sort::Domain, &["bad.example.com", "files.example.net"]);
        assert_eq!(events(&domains, 100, Newest::Partition), contract("network_events_by_domain.kql"));
        let row_number = events(&domains, 7, Newest::RowNumber);
        assert!(row_number.contains("| where Rank <= 7\n") && !row_number.contains("partition"), "{row_number}");
    }

    #[test]
    fn devices_are_asked_for_with_the_text_of_the_contract_but_for_the_status_of_adapters() {
        let ids = ["1".repeat(40), "2".repeat(40)];
        let expected = contract("device_context.kql")
            .replace("    | where NetworkAdapterStatus =~ \"Up\"\n", "")
            .replace("make_list(Adapter, 32)", "make_list(Adapter, 256)");
        assert_eq!(device_context(&ids), expected);
        assert_eq!(HEALTH_PROBE, contract("health_probe.kql"));
    }

    #[rstest]
    #[case(
        Sort::Sha1,
        "0123456789ABCDEF0123456789abcdef01234567",
        Some("sha1:0123456789abcdef0123456789abcdef01234567")
    )]
    #[case(Sort::Sha1, "0123456789abcdef0123456789abcdef0123456", None)]
    #[case(Sort::Sha1, "0123456789abcdef0123456789abcdef0123456g", None)]
    #[case(Sort::Md5, "0123456789abcdef0123456789abcdef", Some("md5:0123456789abcdef0123456789abcdef"))]
    #[case(Sort::Md5, "0123456789abcdef0123456789abcde\u{e9}", None)]
    #[case(Sort::Sha256, "", None)]
    #[case(Sort::Ip, "203.0.113.7", Some("ip:203.0.113.7"))]
    #[case(Sort::Ip, "2001:DB8:0:0::7", Some("ip:2001:db8::7"))]
    #[case(Sort::Ip, "::ffff:203.0.113.7", Some("ip:203.0.113.7"))]
    #[case(Sort::Ip, "203.0.113.7/24", None)]
    #[case(Sort::Ip, "fe80::1%eth0", None)]
    #[case(Sort::Domain, "Bad_host.Example.com", Some("domain:bad_host.example.com"))]
    #[case(Sort::Domain, "bad..example.com", None)]
    #[case(Sort::Domain, "bad.example.com.", None)]
    #[case(Sort::Domain, "b\u{e4}d.example", None)]
    #[case(Sort::Domain, "a\"]) or true //", None)]
    #[case(Sort::Domain, "", None)]
    fn only_valid_values_become_part_of_a_query(
        #[case] sort: Sort,
        #[case] text: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(Value::new(sort, text).map(|value| value.observable()).as_deref(), expected);
    }

    /// Reads a literal as the language's reference describes it; `None` if it ends early or holds anything bare.
    fn read_literal(literal: &str) -> Option<String> {
        let mut text = String::new();
        let mut characters = literal.strip_prefix('"')?.chars();
        loop {
            match characters.next()? {
                '"' => return characters.next().is_none().then_some(text),
                '\\' => match characters.next()? {
                    'n' => text.push('\n'),
                    'r' => text.push('\r'),
                    't' => text.push('\t'),
                    'u' => {
                        let digits: String = characters.by_ref().take(4).collect();
                        text.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                    }
                    same @ ('\\' | '"') => text.push(same),
                    _ => return None,
                },
                bare if bare.is_control() || bare == '\u{2028}' || bare == '\u{2029}' => return None,
                other => text.push(other),
            }
        }
    }

    proptest! {
        #[test]
        fn every_text_survives_as_a_literal(text in r#"[\x00-\x20"'\\\u{7f}-\u{9f}\u{2028}\u{2029}a-z\PC]{0,60}"#) {
            prop_assert_eq!(read_literal(&literal(&text)), Some(text));
        }

        #[test]
        fn no_valid_value_holds_anything_that_could_end_a_literal(text in ".{0,60}") {
            for sort in [Sort::Sha1, Sort::Sha256, Sort::Md5, Sort::Ip, Sort::Domain] {
                if let Some(value) = Value::new(sort, &text) {
                    prop_assert!(value.text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'));
                }
            }
        }
    }
}
