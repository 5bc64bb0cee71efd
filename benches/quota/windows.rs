//! What the simulator saw, against Microsoft's windows: an account's calls of a row of `defender.md` 3.1.

use std::collections::BTreeMap;
use std::time::Duration;

use defender_bridge::simulator::Control;
use jiff::Timestamp;

/// Rows, and calls a minute of each (`defender.md` 3.1).
pub const ROWS: [(&str, usize); 5] =
    [("alerts", 100), ("machines", 100), ("actions", 100), ("machineactions", 100), ("hunting", 45)];

/// One window.
const MINUTE: Duration = Duration::from_secs(60);

/// An account's calls of one row.
#[derive(Debug)]
pub struct Row {
    pub tenant: String,
    pub row: &'static str,
    pub calls: usize,
    /// The most in any window.
    pub most: usize,
    pub limit: usize,
}

/// Every account and row that was called, and the most calls in any window of each.
pub fn seen(control: &Control) -> Vec<Row> {
    let mut calls: BTreeMap<(String, &'static str), Vec<Timestamp>> = BTreeMap::new();
    for request in control.requests() {
        let row = if request.route == "files" { "alerts" } else { request.route };
        if let (Some(tenant), Some((row, _))) = (request.tenant, ROWS.iter().find(|(name, _)| *name == row)) {
            calls.entry((tenant, *row)).or_default().push(request.at);
        }
    }
    let rows = calls.into_iter().map(|((tenant, row), mut at)| {
        at.sort_unstable();
        let limit = ROWS.iter().find(|(name, _)| *name == row).map_or(0, |(_, limit)| *limit);
        Row { tenant, row, calls: at.len(), most: most(&at), limit }
    });
    rows.collect()
}

/// The most of these, which are in order, within one window.
fn most(at: &[Timestamp]) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, end) in at.iter().enumerate() {
        while Duration::try_from(end.duration_since(at[first])).unwrap_or_default() >= MINUTE {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

/// Prints them; how often a limit was exceeded, or would have been had it not been refused.
pub fn report(control: &Control) -> u64 {
    let mut violations = 0;
    for Row { tenant, row, calls, most, limit } in seen(control) {
        let tenant = &tenant[tenant.len().saturating_sub(4)..];
        println!("    tenant ..{tenant}  {row:<15} {calls:>6} calls, at most {most:>3} of {limit} in a minute");
        violations += u64::from(most > limit);
    }
    println!("    answered 429: {}", control.throttled());
    violations + control.throttled()
}
