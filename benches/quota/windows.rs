//! What the simulator saw, against Microsoft's windows: an account's calls of a row of `defender.md` 3.1.

use std::collections::BTreeMap;
use std::time::Duration;

use defender_bridge::simulator::Control;
use jiff::Timestamp;

/// Rows, and calls a minute and an hour of each (`defender.md` 3.1; hunting has no hourly limit).
pub const ROWS: [(&str, usize, usize); 5] = [
    ("alerts", 100, 1500),
    ("machines", 100, 1500),
    ("actions", 100, 1500),
    ("machineactions", 100, 1500),
    ("hunting", 45, usize::MAX),
];

/// The windows.
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// An account's calls of one row.
#[derive(Debug)]
pub struct Row {
    pub tenant: String,
    pub row: &'static str,
    pub calls: usize,
    /// The most in any minute, and in any hour.
    pub most: usize,
    pub most_hour: usize,
    pub limit: usize,
    pub limit_hour: usize,
}

/// Every account and row that was called, and the most calls in any window of each.
pub fn seen(control: &Control) -> Vec<Row> {
    let mut calls: BTreeMap<(String, &'static str), Vec<Timestamp>> = BTreeMap::new();
    for request in control.requests() {
        let row = if request.route == "files" { "alerts" } else { request.route };
        if let (Some(tenant), Some((row, ..))) = (request.tenant, ROWS.iter().find(|(name, ..)| *name == row)) {
            calls.entry((tenant, *row)).or_default().push(request.at);
        }
    }
    let rows = calls.into_iter().map(|((tenant, row), mut at)| {
        at.sort_unstable();
        let limits = ROWS.iter().find(|(name, ..)| *name == row).map(|(_, minute, hour)| (*minute, *hour));
        let (limit, limit_hour) = limits.unwrap_or_default();
        Row { tenant, row, calls: at.len(), most: most(&at, MINUTE), most_hour: most(&at, HOUR), limit, limit_hour }
    });
    rows.collect()
}

/// The most of these, which are in order, within one window of this length.
fn most(at: &[Timestamp], window: Duration) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, end) in at.iter().enumerate() {
        while Duration::try_from(end.duration_since(at[first])).unwrap_or_default() >= window {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

/// Prints them; how often a minute's limit was exceeded, and how many calls were refused with 429.
pub fn report(control: &Control) -> u64 {
    let mut violations = 0;
    for Row { tenant, row, calls, most, limit, .. } in seen(control) {
        let tenant = &tenant[tenant.len().saturating_sub(4)..];
        println!("    tenant ..{tenant}  {row:<15} {calls:>6} calls, at most {most:>3} of {limit} in a minute");
        violations += u64::from(most > limit);
    }
    println!("    answered 429: {}", control.throttled());
    violations + control.throttled()
}

/// Prints how much of each hour was used, for accounts that have the published quotas; how often one was exceeded.
pub fn report_hours(control: &Control) -> u64 {
    let mut violations = 0;
    for Row { row, most_hour, limit_hour, .. } in seen(control).into_iter().filter(|row| row.limit_hour < usize::MAX) {
        let percent = 100.0 * most_hour as f64 / limit_hour as f64;
        println!("    {row:<15} at most {most_hour} of {limit_hour} in an hour: {percent:.1} %");
        violations += u64::from(most_hour > limit_hour);
    }
    violations
}
