//! Rows of a hunting answer, read straight into our types (`defender.md` 4.2).
//!
//! A row is an open object whose keys' case varies, with annotations among its members and nulls for what is not known.
//! It is read without a map in between: an answer may hold 25 000 rows of 23 columns.

use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::model::{
    Adapter, AlertDetails, DeviceContext, Event, Evidence, FileEvent, Hashes, InitiatingProcess, NetworkEvent,
    RecentAlert,
};

/// What a row is read into.
pub(super) trait Row: Default {
    /// The place for the column `name`, given in lower case; `None` for columns that are not wanted.
    fn column(&mut self, name: &str) -> Option<&mut String>;
}

/// A row about one observable of the query.
#[derive(Debug, Default)]
pub(super) struct Observed<T> {
    /// `type:value`, as the query made it.
    pub(super) observable: String,
    pub(super) row: T,
}

impl<T: Row> Row for Observed<T> {
    fn column(&mut self, name: &str) -> Option<&mut String> {
        if name == "observable" { Some(&mut self.observable) } else { self.row.column(name) }
    }
}

impl Row for FileEvent {
    fn column(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "timestamp" => &mut self.timestamp,
            "deviceid" => &mut self.device_id,
            "devicename" => &mut self.device_name,
            "actiontype" => &mut self.action_type,
            "filename" => &mut self.file_name,
            "folderpath" => &mut self.folder_path,
            "previousfilename" => &mut self.previous_file_name,
            "fileoriginurl" => &mut self.file_origin_url,
            "fileoriginreferrerurl" => &mut self.file_origin_referrer_url,
            "reportid" => &mut self.report_id,
            name => match name.strip_prefix("initiatingprocess") {
                Some(name) => return process_column(&mut self.process, name),
                None => return hash_column(&mut self.hashes, name),
            },
        })
    }
}

fn process_column<'a>(process: &'a mut InitiatingProcess, name: &str) -> Option<&'a mut String> {
    match name {
        "filename" => Some(&mut process.file_name),
        "folderpath" => Some(&mut process.folder_path),
        "parentfilename" => Some(&mut process.parent_file_name),
        name => hash_column(&mut process.hashes, name),
    }
}

fn hash_column<'a>(hashes: &'a mut Hashes, name: &str) -> Option<&'a mut String> {
    match name {
        "sha1" => Some(&mut hashes.sha1),
        "sha256" => Some(&mut hashes.sha256),
        "md5" => Some(&mut hashes.md5),
        _ => None,
    }
}

/// A row of either table of events: the columns of both, of which those of one table are filled.
#[derive(Debug, Default)]
pub(super) struct EventRow {
    /// What both tables have, and what file events have.
    file: FileEvent,
    remote_ip: String,
    remote_url: String,
    local_ip: String,
}

impl Row for EventRow {
    fn column(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "remoteip" => Some(&mut self.remote_ip),
            "remoteurl" => Some(&mut self.remote_url),
            "localip" => Some(&mut self.local_ip),
            name => self.file.column(name),
        }
    }
}

impl EventRow {
    /// The event, which is of a file or of a connection by what it was found by.
    pub(super) fn event(self, of_file: bool) -> Event {
        let file = self.file;
        if of_file {
            return Event::File(file);
        }
        Event::Network(NetworkEvent {
            timestamp: file.timestamp,
            device_id: file.device_id,
            device_name: file.device_name,
            action_type: file.action_type,
            remote_ip: self.remote_ip,
            remote_url: self.remote_url,
            local_ip: self.local_ip,
            process: file.process,
            report_id: file.report_id,
        })
    }
}

impl Row for RecentAlert {
    fn column(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "alertid" => &mut self.id,
            "timestamp" => &mut self.timestamp,
            "lastevidence" => &mut self.last_evidence,
            "sha1" => &mut self.sha1,
            "title" => &mut self.title,
            "category" => &mut self.category,
            "severity" => &mut self.severity,
            "detectionsource" => &mut self.detection_source,
            _ => return None,
        })
    }
}

/// A row of `alert_evidence.kql`.
#[derive(Debug, Default)]
pub(super) struct EvidenceRow {
    pub(super) alert_id: String,
    timestamp: String,
    entity_type: String,
    device_id: String,
    device_name: String,
    file_name: String,
    folder_path: String,
    sha1: String,
    sha256: String,
    remote_ip: String,
    remote_url: String,
}

impl Row for EvidenceRow {
    fn column(&mut self, name: &str) -> Option<&mut String> {
        Some(match name {
            "alertid" => &mut self.alert_id,
            "timestamp" => &mut self.timestamp,
            "entitytype" => &mut self.entity_type,
            "deviceid" => &mut self.device_id,
            "devicename" => &mut self.device_name,
            "filename" => &mut self.file_name,
            "folderpath" => &mut self.folder_path,
            "sha1" => &mut self.sha1,
            "sha256" => &mut self.sha256,
            "remoteip" => &mut self.remote_ip,
            "remoteurl" => &mut self.remote_url,
            _ => return None,
        })
    }
}

/// What the rows of one alert say: the first device that is named, and every piece of evidence, oldest first.
pub(super) fn read_details(mut rows: Vec<EvidenceRow>) -> AlertDetails {
    rows.sort_by_cached_key(|row| row.timestamp.parse::<Timestamp>().ok());
    let mut details = AlertDetails::default();
    for row in rows {
        if details.device_id.is_empty() && !row.device_id.is_empty() {
            details.device_id = row.device_id;
            details.device_name = row.device_name;
        }
        let given = |text: String| (!text.is_empty()).then_some(text);
        if row.entity_type.eq_ignore_ascii_case("Machine") {
            continue;
        }
        details.evidence.push(Evidence {
            entity_type: given(row.entity_type),
            sha1: given(row.sha1),
            sha256: given(row.sha256),
            file_name: given(row.file_name),
            file_path: given(row.folder_path),
            ip_address: given(row.remote_ip),
            url: given(row.remote_url),
            ..Evidence::default()
        });
    }
    details
}

/// A row of `device_context.kql`; the adapters are JSON inside of text.
#[derive(Debug, Default)]
pub(super) struct DeviceRow {
    device: DeviceContext,
    adapters: String,
}

impl Row for DeviceRow {
    fn column(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "deviceid" => Some(&mut self.device.device_id),
            "osplatform" => Some(&mut self.device.os_platform),
            "osarchitecture" => Some(&mut self.device.os_architecture),
            "osversioninfo" => Some(&mut self.device.os_version_info),
            "adapters" => Some(&mut self.adapters),
            _ => None,
        }
    }
}

impl From<DeviceRow> for DeviceContext {
    fn from(row: DeviceRow) -> Self {
        DeviceContext { adapters: read_adapters(&row.adapters), ..row.device }
    }
}

/// `[{"mac", "addresses": [{"IPAddress"}]}]`, ordered by MAC address. Anything that is not of this form is left out:
/// an adapter whose addresses cannot be read has none (`relay.md` 5.5).
fn read_adapters(text: &str) -> Vec<Adapter> {
    let list = |value: Option<&Value>| match value {
        Some(Value::Array(list)) => list.clone(),
        // The list of addresses is JSON text in its table; a service that leaves it so is understood as well.
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Vec::new(),
    };
    let text_of = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().trim().to_owned();
    let adapters = list(Some(&Value::String(text.to_owned())));
    let mut adapters: Vec<Adapter> = adapters
        .iter()
        .map(|adapter| Adapter {
            mac_address: text_of(member(adapter, "mac")),
            addresses: list(member(adapter, "addresses"))
                .iter()
                .map(|address| text_of(member(address, "ipaddress")))
                .filter(|address| !address.is_empty())
                .collect(),
        })
        .filter(|adapter| !adapter.mac_address.is_empty())
        .collect();
    adapters.sort_by(|a, b| a.mac_address.cmp(&b.mac_address));
    adapters
}

fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Puts the newest rows first, by instant: as text, fractions of different length sort wrongly (`relay.md` 8, 26).
/// Rows whose time cannot be read come last.
pub(super) fn sort_newest_first<T>(rows: &mut [T], timestamp: impl Fn(&T) -> &str) {
    rows.sort_by_cached_key(|row| std::cmp::Reverse(timestamp(row).parse::<Timestamp>().ok()));
}

/// The answer of `runHuntingQuery`; its `schema` is not needed, because columns are taken by name.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) results: Vec<T>,
}

impl<'de, T: Row> Deserialize<'de> for Answer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnswerVisitor(PhantomData))
    }
}

struct AnswerVisitor<T>(PhantomData<T>);

impl<'de, T: Row> Visitor<'de> for AnswerVisitor<T> {
    type Value = Answer<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer of a hunting query")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut results = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            if name == "results" {
                let rows: Option<Vec<AsRow<T>>> = map.next_value()?;
                results = rows.unwrap_or_default().into_iter().map(|AsRow(row)| row).collect();
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Answer { results })
    }
}

struct AsRow<T>(T);

impl<'de, T: Row> Deserialize<'de> for AsRow<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RowVisitor(PhantomData))
    }
}

struct RowVisitor<T>(PhantomData<T>);

impl<'de, T: Row> Visitor<'de> for RowVisitor<T> {
    type Value = AsRow<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut row = T::default();
        while let Some(Name(name)) = map.next_key()? {
            // An annotation such as `timestamp@odata.type` matches no column either; this says that it is meant so.
            let column = if name.contains("@odata.") { None } else { row.column(&name) };
            match column {
                Some(column) => *column = map.next_value::<Text>()?.0,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(AsRow(row))
    }
}

/// A member's name in lower case.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut name = String::deserialize(deserializer)?;
        name.make_ascii_lowercase();
        Ok(Name(name))
    }
}

/// A column's value as text: null is empty, a number its digits, anything deeper its JSON.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor).map(Text)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column's value")
    }

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok(String::new())
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<String, A::Error> {
        let value = Value::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))?;
        Ok(value.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<String, A::Error> {
        let value = Value::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        Ok(value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn data<T: Row>(name: &str) -> Vec<T> {
        let path = format!("{}/tests/data/defender/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_str::<Answer<T>>(&text).unwrap_or_else(|error| panic!("{path}: {error}")).results
    }

    #[test]
    fn file_events_are_read() {
        let rows: Vec<Observed<FileEvent>> = data("hunting_file_events_ok.json");
        let first = &rows[0];
        assert_eq!(first.observable, "sha1:0123456789abcdef0123456789abcdef01234567");
        assert_eq!(
            first.row,
            FileEvent {
                timestamp: "2026-11-20T07:06:58.4340352Z".to_owned(),
                device_id: "1".repeat(40),
                device_name: "ws-17.example.com".to_owned(),
                action_type: "FileCreated".to_owned(),
                file_name: "tool.zip".to_owned(),
                folder_path: r"C:\Users\user1\Downloads\tool.zip".to_owned(),
                previous_file_name: String::new(),
                hashes: Hashes {
                    sha1: "0123456789abcdef0123456789abcdef01234567".to_owned(),
                    sha256: String::new(),
                    md5: "0123456789abcdef0123456789abcdef".to_owned(),
                },
                file_origin_url: "https://files.example.net/tool.zip".to_owned(),
                file_origin_referrer_url: "https://files.example.net/".to_owned(),
                process: first.row.process.clone(),
                report_id: first.row.report_id.clone(),
            }
        );
        assert_eq!(first.row.process.file_name, "browser.exe");
        assert!(first.row.report_id.parse::<u64>().is_ok(), "{}", first.row.report_id);
    }

    #[test]
    fn connections_are_read() {
        let mut rows: Vec<Observed<EventRow>> = data("hunting_network_ip_ok.json");
        assert_eq!(rows.len(), 3);
        let folded = rows.remove(1);
        assert_eq!(folded.observable, "ip:203.0.113.7");
        assert_eq!(
            folded.row.event(false),
            Event::Network(NetworkEvent {
                timestamp: "2026-11-20T07:00:00Z".to_owned(),
                device_id: "2".repeat(40),
                device_name: "srv-42.example.com".to_owned(),
                action_type: "ConnectionFailed".to_owned(),
                remote_ip: "::ffff:203.0.113.7".to_owned(),
                local_ip: "192.0.2.42".to_owned(),
                report_id: "15002".to_owned(),
                ..NetworkEvent::default()
            })
        );
        assert_eq!(rows[0].row.file.process.folder_path, r"c:\program files\browser\browser.exe");
        assert_eq!(rows[0].row.file.process.hashes.md5, "0123456789abcdef0123456789abcdef");
        let by_domain: Vec<Observed<EventRow>> = data("hunting_network_domain_ok.json");
        assert!(!by_domain.is_empty() && by_domain.iter().all(|row| row.observable.starts_with("domain:")));
    }

    #[test]
    fn devices_are_read_with_the_adapters_inside_their_text() {
        let rows: Vec<DeviceContext> =
            data::<DeviceRow>("hunting_device_context_ok.json").into_iter().map(Into::into).collect();
        let adapter = Adapter {
            mac_address: "00005E005311".to_owned(),
            addresses: vec!["192.0.2.17".to_owned(), "2001:db8::17".to_owned()],
        };
        assert_eq!(
            rows,
            [
                DeviceContext {
                    device_id: "1".repeat(40),
                    os_platform: "Windows11".to_owned(),
                    os_architecture: "64-bit".to_owned(),
                    os_version_info: "24H2".to_owned(),
                    adapters: vec![adapter],
                },
                DeviceContext { device_id: "2".repeat(40), ..DeviceContext::default() },
            ]
        );
    }

    #[test]
    fn an_odd_answer_is_understood() {
        let rows: Vec<Observed<EventRow>> = data("hunting_tolerance.json");
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].observable, "ip:203.0.113.7");
        assert_eq!(rows[0].row.file.timestamp, "2026-11-20T07:10:01Z");
        assert_eq!(rows[0].row.file.device_id, "1".repeat(40));
    }

    #[rstest]
    #[case::empty_object("{}")]
    #[case::null_results(r#"{"results":null}"#)]
    #[case::no_rows(r#"{"schema":[],"results":[]}"#)]
    #[case::other_case(r#"{"Schema":null,"Results":[]}"#)]
    fn no_rows_is_an_answer(#[case] text: &str) {
        assert!(serde_json::from_str::<Answer<FileEvent>>(text).unwrap().results.is_empty());
    }

    #[rstest]
    #[case::results_are_no_list(r#"{"results":{}}"#)]
    #[case::rows_are_no_objects(r#"{"results":[1]}"#)]
    #[case::cut(r#"{"results":[{"#)]
    fn other_shapes_are_refused(#[case] text: &str) {
        assert!(serde_json::from_str::<Answer<FileEvent>>(text).is_err());
    }

    #[rstest]
    #[case("null", "")]
    #[case(r#""text""#, "text")]
    #[case("15002", "15002")]
    #[case("-1", "-1")]
    #[case("18446744073709551615", "18446744073709551615")]
    #[case("true", "true")]
    #[case(r#"[1, {"a": null}]"#, r#"[1,{"a":null}]"#)]
    #[case(r#"{"a": [2]}"#, r#"{"a":[2]}"#)]
    fn any_value_becomes_text(#[case] value: &str, #[case] expected: &str) {
        let text = format!(r#"{{"results":[{{"REPORTID":{value}}}]}}"#);
        assert_eq!(serde_json::from_str::<Answer<FileEvent>>(&text).unwrap().results[0].report_id, expected);
    }

    #[rstest]
    #[case::none("", "")]
    #[case::null("null", "")]
    #[case::not_json("Ethernet", "")]
    #[case::not_a_list("{}", "")]
    #[case::no_addresses(r#"[{"mac":"B","addresses":null},{"mac":"A"}]"#, "A= B=")]
    #[case::no_mac(r#"[{"mac":"","addresses":[]},{"addresses":[]},7]"#, "")]
    #[case::odd_addresses(
        r#"[{"mac":"A","addresses":[{"IPAddress":"192.0.2.1"},{},null,{"ipaddress":"192.0.2.2"},{"IPAddress":""}]}]"#,
        "A=192.0.2.1,192.0.2.2"
    )]
    #[case::addresses_as_text(r#"[{"mac":"A","addresses":"[{\"IPAddress\":\"192.0.2.1\"}]"}]"#, "A=192.0.2.1")]
    #[case::addresses_as_other_text(r#"[{"mac":"A","addresses":"none"}]"#, "A=")]
    fn adapters_are_read_as_far_as_possible(#[case] text: &str, #[case] expected: &str) {
        let adapters: Vec<String> = read_adapters(text)
            .iter()
            .map(|adapter| format!("{}={}", adapter.mac_address, adapter.addresses.join(",")))
            .collect();
        assert_eq!(adapters.join(" "), expected);
    }

    #[test]
    fn rows_are_sorted_by_instant_and_not_by_text() {
        let mut rows = ["2026-11-20T07:00:12Z", "soon", "2026-11-20T07:00:12.9Z", "2026-11-20T07:00:12.95Z", ""];
        sort_newest_first(&mut rows, |row| row);
        assert_eq!(rows, ["2026-11-20T07:00:12.95Z", "2026-11-20T07:00:12.9Z", "2026-11-20T07:00:12Z", "soon", ""]);
    }

    proptest! {
        #[test]
        fn no_adapter_text_breaks_the_reading(text in r#"[\[\]{}":,a-z0-9 ]{0,60}"#) {
            let _ = read_adapters(&text);
        }
    }
}
