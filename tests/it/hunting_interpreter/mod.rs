//! The simulator's interpreter of hunting queries: the saved queries over small tables with every row asserted, then
//! operators and functions one by one.
//!
//! `tests/data/hunting` holds the queries as the contract saves them, with their sample sets.

mod functions;
mod limits;
mod literals;
mod operators;
mod saved_queries;

use std::time::Instant;

use defender_bridge::simulator::kql::{Database, KqlError, Type, Value, Window, run, run_within};
use jiff::Timestamp;
use serde_json::{Value as Json, json};

const FILES_BY_HASH: &str = include_str!("../../data/hunting/file_events_by_hash.kql");
const FILES_BY_HASH_ROWNUMBER: &str = include_str!("../../data/hunting/file_events_by_hash_rownumber.kql");
const NETWORK_BY_IP: &str = include_str!("../../data/hunting/network_events_by_ip.kql");
const NETWORK_BY_DOMAIN: &str = include_str!("../../data/hunting/network_events_by_domain.kql");
const ALERTS: &str = include_str!("../../data/hunting/alerts_by_observable.kql");
const ALERT_EVIDENCE: &str = include_str!("../../data/hunting/alert_evidence.kql");
const DEVICE_CONTEXT: &str = include_str!("../../data/hunting/device_context.kql");
const DEVICES_BY_IP: &str = include_str!("../../data/hunting/devices_by_ip.kql");
const ISOLATION: &str = include_str!("../../data/hunting/isolation_state.kql");
const HEALTH: &str = include_str!("../../data/hunting/health_probe.kql");

const SHA1_A: &str = "0123456789abcdef0123456789abcdef01234567";
const SHA1_B: &str = "89abcdef0123456789abcdef0123456789abcdef";
const SHA256: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const DEVICE_1: &str = "1111111111111111111111111111111111111111";
const DEVICE_2: &str = "2222222222222222222222222222222222222222";

fn now() -> Timestamp {
    "2026-11-20T10:00:00Z".parse().expect("a moment")
}

fn database(rows: &[(&str, Json)]) -> Database {
    let mut database = Database::new();
    for (table, row) in rows {
        let row = row.as_object().expect("a row is an object");
        database.insert_json(table, row).expect("a row of the schema");
    }
    database
}

/// Names and wire types of the result's columns, and its rows as JSON arrays.
fn answer(query: &str, database: &Database) -> (Vec<(String, &'static str)>, Vec<Json>) {
    let table = run(query, database, now()).unwrap_or_else(|error| panic!("{error}\n{query}"));
    let columns = table.columns.into_iter().map(|(name, kind)| (name, kind.wire_name())).collect();
    let rows = table.rows.iter().map(|row| row.iter().map(Value::to_json).collect()).collect();
    (columns, rows)
}

/// The rows of a query, each as the JSON of the columns named.
fn picked(query: &str, database: &Database, names: &[&str]) -> Vec<Json> {
    let (columns, rows) = answer(query, database);
    let at = |name: &&str| columns.iter().position(|(column, _)| column == name).expect("a column of the result");
    let places: Vec<usize> = names.iter().map(at).collect();
    rows.iter().map(|row| places.iter().map(|place| row[*place].clone()).collect()).collect()
}

fn column_names(query: &str) -> String {
    let (columns, _) = answer(query, &Database::new());
    let columns: Vec<String> = columns.into_iter().map(|(name, kind)| format!("{name}:{kind}")).collect();
    columns.join(" ")
}

/// The value of one expression.
fn value(expression: &str) -> Json {
    let (_, rows) = answer(&format!("print X = {expression}"), &Database::new());
    rows[0][0].clone()
}

/// Rows of a query over no tables.
fn rows(query: &str) -> Json {
    Json::Array(answer(query, &Database::new()).1)
}
