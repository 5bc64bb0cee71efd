//! CTIM 1.3.28 as far as it is sent (`relay.md` 6.1 and 6.2): only these members, because the platform's schemas forbid
//! unknown ones.
//!
//! A sighting's `observables` depends on how the caller spelled the observable, all else only on what Defender found.
//! So [`Sighting`] has no such member: it is rendered once, may be cached as text, and is completed for each request
//! ([`RenderedSighting::document`]) without being built or serialised again.

use std::{borrow::Cow, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;

use super::observable::Observable;

/// The version of CTIM that is spoken (`relay.md` 6.2).
pub const SCHEMA_VERSION: &str = "1.3.28";
/// The product, as the platform names it (`relay.md` 6.2).
pub const SOURCE: &str = "Microsoft Defender for Endpoint";
/// Longest title, in characters (`relay.md` 6.1).
pub const MAX_TITLE_CHARS: usize = 1024;
/// Longest description, in characters (`relay.md` 6.1).
pub const MAX_DESCRIPTION_CHARS: usize = 5000;
/// Longest URI, in characters (`relay.md` 6.1); a longer one is left out, since a cut one leads nowhere.
pub const MAX_URI_CHARS: usize = 2048;
/// Most relations in one sighting (`relay.md` 6.7).
pub const MAX_RELATIONS: usize = 1000;

/// A typed value: an observable, or one side of a relation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Typed {
    /// `ip`, `sha1`, `file_name`, ...
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Never empty in what is sent.
    pub value: String,
}

impl Typed {
    /// A value of a type.
    pub fn new(kind: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }
}

/// When something was seen. Both are UTC with three decimals and `Z`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ObservedTime {
    /// First.
    pub start_time: String,
    /// Last; not before the start.
    pub end_time: String,
}

/// The device on which it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Target {
    /// `endpoint`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Names and addresses of the device.
    pub observables: Vec<Typed>,
    /// The sighting's.
    pub observed_time: ObservedTime,
    /// Operating system, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub os: Option<String>,
}

/// How two values belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Relation {
    /// Who says so.
    pub origin: String,
    /// `Connected_To`, `File_Name_Of`, ...
    pub relation: &'static str,
    /// From.
    pub source: Typed,
    /// To.
    pub related: Typed,
}

/// A column of a [`DataTable`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(description = "A column of a table.", deny_unknown_fields)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// `string`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// A table of one column and one row: CTIM's checker wants as many rows as columns, and neither empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct DataTable {
    /// The column.
    pub columns: [Column; 1],
    /// The row.
    pub rows: [[String; 1]; 1],
}

impl DataTable {
    /// One text under its heading.
    pub fn single(name: &'static str, value: impl Into<String>) -> Self {
        Self { columns: [Column { name, kind: "string" }], rows: [[value.into()]] }
    }
}

/// A sighting without its `observables`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Sighting {
    /// `sighting`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "sighting"))]
    pub kind: &'static str,
    /// [`SCHEMA_VERSION`].
    #[schemars(description = "The version of CTIM.", extend("const" = SCHEMA_VERSION))]
    pub schema_version: &'static str,
    /// [`SOURCE`].
    #[schemars(description = "The product.", extend("const" = SOURCE))]
    pub source: &'static str,
    /// `High`.
    pub confidence: &'static str,
    /// `true`.
    pub internal: bool,
    /// `endpoint`.
    pub sensor: &'static str,
    /// 1: one alert or one event (defect 43).
    #[schemars(description = "One alert or one event.", extend("const" = 1))]
    pub count: u32,
    /// `transient:sighting-<uuid v5>`.
    pub id: String,
    /// When.
    pub observed_time: ObservedTime,
    /// Last change of the alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub timestamp: Option<String>,
    /// At most [`MAX_TITLE_CHARS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", description = "The alert's.", length(max = MAX_TITLE_CHARS))]
    pub title: Option<String>,
    /// At most [`MAX_DESCRIPTION_CHARS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", description = "The alert's.", length(max = MAX_DESCRIPTION_CHARS))]
    pub description: Option<String>,
    /// `Info`, `Low`, `Medium`, `High`, `Unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("enum" = ["Info", "Low", "Medium", "High", "Unknown"]))]
    pub severity: Option<&'static str>,
    /// At most [`MAX_URI_CHARS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", description = "The alert in the portal.", length(max = MAX_URI_CHARS))]
    pub source_uri: Option<String>,
    /// The alert's id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external_ids: Vec<String>,
    /// At most one.
    pub targets: Vec<Target>,
    /// What happened, for events.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DataTable")]
    pub data: Option<DataTable>,
    /// At most [`MAX_RELATIONS`].
    #[schemars(description = "How values belong together.", length(max = MAX_RELATIONS))]
    pub relations: Vec<Relation>,
}

impl Sighting {
    /// A sighting with the members that all share, and nothing else yet.
    pub fn new(id: String, observed_time: ObservedTime) -> Self {
        Self {
            kind: "sighting",
            schema_version: SCHEMA_VERSION,
            source: SOURCE,
            confidence: "High",
            internal: true,
            sensor: "endpoint",
            count: 1,
            id,
            observed_time,
            timestamp: None,
            title: None,
            description: None,
            severity: None,
            source_uri: None,
            external_ids: Vec::new(),
            targets: Vec::new(),
            data: None,
            relations: Vec::new(),
        }
    }

    /// Its JSON, once and for all callers.
    pub fn render(&self) -> RenderedSighting {
        let text = serde_json::to_string(self).expect("a plain struct with text keys always serialises");
        RenderedSighting(text.into())
    }
}

/// The JSON of a [`Sighting`]; cheap to clone and to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedSighting(Arc<str>);

impl RenderedSighting {
    /// The whole document, for the caller that spelled the observable so.
    pub fn document(&self, observable: &Observable) -> Document {
        let spellings = serde_json::to_string(&observable.spellings()).expect("a list of texts always serialises");
        let members = self.0.strip_prefix('{').expect("a struct is rendered as an object");
        Document(format!(r#"{{"observables":{spellings},{members}"#))
    }

    /// Size of the JSON text, for a cache that counts bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

/// A whole sighting as JSON text. It is one by the way it is made, so it goes into the answer as it is: checking it
/// again would read every cached answer once more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Document(String);

impl Document {
    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sighting() -> Sighting {
        let time = "2024-03-06T09:30:00.000Z".to_owned();
        Sighting::new("transient:sighting-1".into(), ObservedTime { start_time: time.clone(), end_time: time })
    }

    #[test]
    fn members_that_are_not_known_are_not_sent() {
        assert_eq!(
            serde_json::to_value(sighting()).unwrap(),
            json!({
                "type": "sighting", "schema_version": "1.3.28", "source": "Microsoft Defender for Endpoint",
                "confidence": "High", "internal": true, "sensor": "endpoint", "count": 1, "id": "transient:sighting-1",
                "observed_time": {"start_time": "2024-03-06T09:30:00.000Z", "end_time": "2024-03-06T09:30:00.000Z"},
                "targets": [], "relations": [],
            })
        );
    }

    #[test]
    fn one_rendered_sighting_serves_every_spelling() {
        let rendered = sighting().render();
        let document = |value| -> Value {
            let observable = Observable::parse("domain", value).unwrap();
            serde_json::from_str(rendered.document(&observable).as_str()).unwrap()
        };
        let mut lower = document("a.example");
        let mut upper = document("A.example");
        assert_eq!(lower["observables"], json!([{"type": "domain", "value": "a.example"}]));
        assert_eq!(
            upper["observables"],
            json!([{"type": "domain", "value": "A.example"}, {"type": "domain", "value": "a.example"}])
        );
        for document in [&mut lower, &mut upper] {
            document.as_object_mut().unwrap().remove("observables");
            assert_eq!(*document, serde_json::to_value(sighting()).unwrap());
        }
        assert_eq!(rendered.len_bytes(), serde_json::to_string(&sighting()).unwrap().len());
    }

    #[test]
    fn a_spelling_is_escaped_as_json() {
        let observable = Observable::parse("ipv6", "fe80::1%\"\\\u{1}").unwrap();
        let document: Value = serde_json::from_str(sighting().render().document(&observable).as_str()).unwrap();
        assert_eq!(document["observables"][0]["value"], "fe80::1%\"\\\u{1}");
    }
}
