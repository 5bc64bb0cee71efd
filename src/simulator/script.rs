//! Scripted answers: a fixed answer for a route, or rows for the hunting tables, ahead of the story.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One scripted answer, in the form of the pairs that fixtures hold.
///
/// A route: `{"method": "GET", "path": "/machines", "query": "$top=1", "status": 200, "body": {...}}` answers exactly
/// that for as long as the script is in force. Hunting: `{"hunting": true, "status": 200, "rows": [...]}` puts the rows
/// into the event tables, where the queries find them or not; another status is answered as it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scripted {
    /// `GET` unless said otherwise.
    pub method: Option<String>,
    /// The whole path, or the part after `/api` of Defender's.
    pub path: String,
    /// The decoded query string, its members in any order; absent: any.
    pub query: Option<String>,
    /// Stands for the hunting call: `path`, `query` and `method` do not matter.
    pub hunting: bool,
    /// With `hunting`: only for queries that contain this text.
    pub contains: Option<String>,
    /// The status; 200 unless said otherwise.
    pub status: Option<u16>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// A text is sent as it is (and needs its own `content-type`), anything else as JSON. Absent with an error status:
    /// the service's own error.
    pub body: Option<Value>,
    /// With `hunting` and status 200: rows of network events (they have `RemoteIP`) and of file events (they have
    /// `FileName`), which replace those of the data.
    pub rows: Option<Vec<Map<String, Value>>>,
}

impl Scripted {
    /// A JSON answer to `GET path`.
    pub fn get(path: impl Into<String>, status: u16, body: Value) -> Self {
        Self { path: path.into(), status: Some(status), body: Some(body), ..Self::default() }
    }

    /// Rows for every hunting query.
    pub fn rows(rows: Vec<Map<String, Value>>) -> Self {
        Self { hunting: true, rows: Some(rows), ..Self::default() }
    }

    /// A refusal of every hunting query.
    pub fn no_hunting(status: u16) -> Self {
        Self { hunting: true, status: Some(status), ..Self::default() }
    }

    /// The status this answers with.
    pub(super) fn status_or_default(&self) -> u16 {
        self.status.unwrap_or(200)
    }

    fn answers_route(&self, method: &str, path: &str, query: &[(String, String)]) -> bool {
        if self.hunting || !self.method.as_deref().unwrap_or("GET").eq_ignore_ascii_case(method) {
            return false;
        }
        if self.path != path && path.strip_prefix("/api") != Some(self.path.as_str()) {
            return false;
        }
        self.query.as_deref().is_none_or(|wanted| {
            let mut wanted: Vec<(&str, &str)> = wanted
                .split('&')
                .filter(|part| !part.is_empty())
                .map(|part| part.split_once('=').unwrap_or((part, "")))
                .collect();
            let mut given: Vec<(&str, &str)> =
                query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            wanted.sort_unstable();
            given.sort_unstable();
            wanted == given
        })
    }
}

/// The script in force.
#[derive(Debug, Default)]
pub(super) struct Script(pub(super) Vec<Scripted>);

/// What the script says about a hunting call.
#[derive(Debug)]
pub(super) enum Hunting {
    /// Nothing: the data decides.
    Unscripted,
    /// Answered literally.
    Literal(Scripted),
    /// These rows stand in the event tables.
    Rows(Vec<Map<String, Value>>),
}

impl Script {
    /// The first scripted answer for this route.
    pub(super) fn route(&self, method: &str, path: &str, query: &[(String, String)]) -> Option<&Scripted> {
        self.0.iter().find(|scripted| scripted.answers_route(method, path, query))
    }

    /// The first refusal or literal body for this query; else the rows of all hunting entries.
    pub(super) fn hunting(&self, query: &str) -> Hunting {
        let entries: Vec<&Scripted> = self
            .0
            .iter()
            .filter(|entry| entry.hunting && entry.contains.as_deref().is_none_or(|text| query.contains(text)))
            .collect();
        if let Some(literal) = entries.iter().find(|entry| entry.status_or_default() != 200 || entry.body.is_some()) {
            return Hunting::Literal((*literal).clone());
        }
        if entries.is_empty() {
            return Hunting::Unscripted;
        }
        Hunting::Rows(entries.iter().flat_map(|entry| entry.rows.clone().unwrap_or_default()).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_route_is_found_by_method_path_and_query() {
        let script = Script(
            serde_json::from_value(json!([
                {"method": "GET", "path": "/machines", "query": "$top=1", "status": 200, "body": {"value": []}},
                {"method": "GET", "path": "/indicators", "query": "$filter=indicatorValue eq 'a.example'&$top=1"},
                {"method": "POST", "path": "/machines/x/isolate", "status": 201},
            ]))
            .unwrap(),
        );
        for (method, path, query, found) in [
            ("GET", "/api/machines", pairs(&[("$top", "1")]), true),
            ("GET", "/api/machines", pairs(&[("$top", "2")]), false),
            ("GET", "/api/machines", pairs(&[]), false),
            ("POST", "/api/machines", pairs(&[("$top", "1")]), false),
            ("GET", "/machines", pairs(&[("$top", "1")]), true),
            ("GET", "/api/indicators", pairs(&[("$top", "1"), ("$filter", "indicatorValue eq 'a.example'")]), true),
            ("POST", "/api/machines/x/isolate", pairs(&[]), true),
        ] {
            assert_eq!(script.route(method, path, &query).is_some(), found, "{method} {path} {query:?}");
        }
    }

    #[test]
    fn hunting_is_refused_before_rows_are_looked_at() {
        let row = json!({"RemoteIP": "192.0.2.1"}).as_object().unwrap().clone();
        let script = Script(vec![
            Scripted::rows(vec![row]),
            Scripted { contains: Some("DeviceFileEvents".into()), ..Scripted::no_hunting(403) },
        ]);
        assert!(
            matches!(script.hunting("DeviceFileEvents | take 1"), Hunting::Literal(entry) if entry.status == Some(403))
        );
        assert!(matches!(script.hunting("DeviceNetworkEvents"), Hunting::Rows(rows) if rows.len() == 1));
        assert!(matches!(Script::default().hunting("DeviceInfo"), Hunting::Unscripted));
    }
}
