//! What `check` found, for people and for scripts. Pure.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It would work.
    Ok,
    /// It would not work.
    Failed,
    /// It is switched on, and there was nothing to check it with.
    Unchecked,
    /// Worth knowing; says nothing about whether it works.
    Note,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// How it stands.
    pub(super) state: State,
    /// Who was asked: `broker`, `entra`, `defender`, `graph`, `cognito`, `key set`.
    pub(super) peer: &'static str,
    /// What was looked at.
    pub(super) what: String,
    /// What came out, or what to do about it.
    pub(super) detail: String,
    /// The permission that this row is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) permission: Option<&'static str>,
    /// The features that need it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) features: Vec<&'static str>,
}

impl Row {
    fn new(state: State, peer: &'static str, what: impl Into<String>, detail: impl Into<String>) -> Self {
        let (what, detail) = (what.into(), detail.into());
        Self { state, peer, what, detail, permission: None, features: Vec::new() }
    }

    pub(super) fn ok(peer: &'static str, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Ok, peer, what, detail)
    }

    pub(super) fn failed(peer: &'static str, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Failed, peer, what, detail)
    }

    pub(super) fn unchecked(peer: &'static str, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Unchecked, peer, what, detail)
    }

    pub(super) fn note(peer: &'static str, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(State::Note, peer, what, detail)
    }

    /// Whether all that is switched on would still work.
    pub(super) fn is_good(&self) -> bool {
        matches!(self.state, State::Ok | State::Note)
    }
}

/// One line a row, with a heading.
pub(super) fn table(rows: &[Row]) -> String {
    let mut cells = vec![["STATE", "PEER", "WHAT", "DETAIL"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let state = match row.state {
            State::Ok => "ok",
            State::Failed => "FAILED",
            State::Unchecked => "UNCHECKED",
            State::Note => "note",
        };
        let features = if row.features.is_empty() { String::new() } else { format!(" [{}]", row.features.join(", ")) };
        // What others wrote does not move the cursor of an operator's terminal.
        [state, row.peer, &row.what, &format!("{}{features}", row.detail)]
            .map(|cell| cell.replace(char::is_control, " "))
    }));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (state, peer, what) = (width(0), width(1), width(2));
    let mut text = String::new();
    for row in &cells {
        let line = format!("{:state$}  {:peer$}  {:what$}  {}", row[0], row[1], row[2], row[3]);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The same for scripts.
pub(super) fn json(rows: &[Row]) -> Value {
    let missing: Vec<&str> = rows.iter().filter(|row| !row.is_good()).filter_map(|row| row.permission).collect();
    json!({ "ok": rows.iter().all(Row::is_good), "missing_permissions": missing, "checks": rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_a_row_and_says_who_needs_what() {
        let missing = Row {
            permission: Some("Alert.Read.All"),
            features: vec!["observe", "enrich"],
            ..Row::failed("defender", "Alert.Read.All", "is not granted\u{1b}[2J")
        };
        let rows = [Row::ok("broker", "rights", "can be used"), missing, Row::note("cognito", "tags", "no host")];
        assert_eq!(
            table(&rows),
            "STATE   PEER      WHAT            DETAIL\n\
             ok      broker    rights          can be used\n\
             FAILED  defender  Alert.Read.All  is not granted [2J [observe, enrich]\n\
             note    cognito   tags            no host\n"
        );
        let json = json(&rows);
        assert_eq!((&json["ok"], &json["missing_permissions"]), (&json!(false), &json!(["Alert.Read.All"])));
        assert_eq!(
            json["checks"][0],
            json!({"state": "ok", "peer": "broker", "what": "rights", "detail": "can be used"})
        );
    }

    #[test]
    fn what_could_not_be_checked_is_not_good() {
        let rows = [Row::ok("a", "b", "c"), Row::unchecked("a", "b", "c")];
        assert_eq!(json(&rows)["ok"], false);
        assert_eq!(json(&rows[..1])["ok"], true);
    }
}
