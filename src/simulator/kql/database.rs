//! A set of hunting tables with the documented columns, to be filled row by row.

use std::collections::BTreeMap;

use super::dynamic::Dynamic;
use super::value::{Type, Value};
use super::{Table, Tables};

/// Tables and columns of contract 6.1.
const SCHEMA: &str = include_str!("../data/hunting-schema.json");

/// Hunting tables by name, each with its documented columns in their documented order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Database {
    tables: BTreeMap<String, Table>,
}

/// Why a row was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// There is no such table.
    #[error("no table {0}")]
    NoTable(String),
    /// The table has no such column. Names are case-sensitive.
    #[error("table {table} has no column {column}")]
    NoColumn {
        /// Table.
        table: String,
        /// Column that it lacks.
        column: String,
    },
    /// The value has another type than the column.
    #[error("column {column} of table {table} holds {kind}", kind = .kind.name())]
    WrongType {
        /// Table.
        table: String,
        /// Column.
        column: String,
        /// Type of the column.
        kind: Type,
    },
}

impl Database {
    /// The documented tables, all empty.
    pub fn new() -> Self {
        Self { tables: schema() }
    }

    /// Takes a table away, as if the tenant lacked the product behind it. False if it was not there.
    pub fn remove(&mut self, table: &str) -> bool {
        self.tables.remove(table).is_some()
    }

    /// Adds a row. Columns not named stay empty: null, or the empty string.
    ///
    /// # Errors
    /// If the table or a column does not exist or a value does not fit; nothing is added then.
    pub fn insert<'a>(
        &mut self,
        table: &str,
        cells: impl IntoIterator<Item = (&'a str, Value)>,
    ) -> Result<(), InsertError> {
        let to = self.tables.get_mut(table).ok_or_else(|| InsertError::NoTable(table.into()))?;
        let mut row: Vec<Value> = to.columns.iter().map(|(_, kind)| kind.null()).collect();
        for (column, value) in cells {
            let at = position(table, to, column)?;
            let kind = to.columns[at].1;
            row[at] = match value.kind() {
                None => kind.null(),
                Some(given) if given == kind => value,
                Some(_) => return Err(wrong_type(table, column, kind)),
            };
        }
        to.rows.push(row);
        Ok(())
    }

    /// Adds a row given as JSON, one member per column, values as an answer of the service would hold them.
    ///
    /// # Errors
    /// As [`Database::insert`].
    pub fn insert_json(
        &mut self,
        table: &str,
        row: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), InsertError> {
        let to = self.tables.get(table).ok_or_else(|| InsertError::NoTable(table.into()))?;
        let mut cells = Vec::with_capacity(row.len());
        for (column, json) in row {
            let kind = to.columns[position(table, to, column)?].1;
            let value = Value::from_json(kind, json).ok_or_else(|| wrong_type(table, column, kind))?;
            cells.push((column.as_str(), value));
        }
        self.insert(table, cells)
    }
}

impl Tables for Database {
    fn scan(&self, name: &str) -> Option<&Table> {
        self.tables.get(name)
    }
}

fn position(table: &str, columns: &Table, column: &str) -> Result<usize, InsertError> {
    columns
        .columns
        .iter()
        .position(|(name, _)| name == column)
        .ok_or_else(|| InsertError::NoColumn { table: table.into(), column: column.into() })
}

fn wrong_type(table: &str, column: &str, kind: Type) -> InsertError {
    InsertError::WrongType { table: table.into(), column: column.into(), kind }
}

/// The tables of contract 6.1, empty, by name.
fn schema() -> BTreeMap<String, Table> {
    let schema: Dynamic = serde_json::from_str(SCHEMA).expect("the schema file is JSON");
    let Dynamic::Bag(tables) = schema.member("tables") else { panic!("the schema file names tables") };
    tables.into_iter().map(|(name, columns)| (name.to_string(), empty(&columns))).collect()
}

fn empty(columns: &Dynamic) -> Table {
    let Dynamic::Bag(columns) = columns else { panic!("a table of the schema file is a bag of columns") };
    let columns = columns
        .iter()
        .map(|(name, kind)| {
            let Dynamic::String(kind) = kind else { panic!("the type of a column is text") };
            (name.to_string(), Type::parse(kind).expect("the schema file uses known types"))
        })
        .collect();
    Table { columns, rows: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_tables_have_their_documented_number_of_columns() {
        let database = Database::new();
        for (table, columns) in [
            ("DeviceFileEvents", 59),
            ("DeviceNetworkEvents", 46),
            ("DeviceNetworkInfo", 18),
            ("DeviceInfo", 51),
            ("DeviceProcessEvents", 69),
            ("AlertInfo", 8),
            ("AlertEvidence", 42),
        ] {
            assert_eq!(database.scan(table).unwrap().columns.len(), columns, "{table}");
        }
        assert_eq!(database.scan("AlertInfo").unwrap().columns[0], ("Timestamp".into(), Type::DateTime));
        assert_eq!(database.scan("DeviceAlertEvents"), None);
    }

    #[test]
    fn a_row_is_taken_whole_or_not_at_all() {
        let mut database = Database::new();
        database.insert("DeviceInfo", [("DeviceId", "d1".into()), ("OSBuild", 26100_i64.into())]).unwrap();
        let refused = database.insert("DeviceInfo", [("OSBuild", "26100".into())]);
        assert_eq!(refused.unwrap_err().to_string(), "column OSBuild of table DeviceInfo holds long");
        let refused = database.insert("DeviceInfo", [("deviceId", "d1".into())]);
        assert_eq!(refused.unwrap_err().to_string(), "table DeviceInfo has no column deviceId");
        assert_eq!(database.insert("Nope", []).unwrap_err().to_string(), "no table Nope");
        let json = serde_json::json!({"Timestamp": "2026-11-20T09:00:00Z", "IsExcluded": false, "OSBuild": null});
        database.insert_json("DeviceInfo", json.as_object().unwrap()).unwrap();
        assert_eq!(database.scan("DeviceInfo").unwrap().rows.len(), 2);
    }
}
