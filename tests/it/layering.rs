//! Reads `use` lines and paths of `src/` and holds each module to what it may import: the edges do not know each other,
//! and what is pure stays pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each module may import of the crate, besides itself. `telemetry` serves every edge.
const ALLOWED: [(&str, &[&str]); 28] = [
    ("admin", &["broker", "shutdown", "telemetry"]),
    ("broker", &[]),
    ("cognito", &["outbound", "redact", "retry", "telemetry"]),
    ("config", &["cognito", "containment", "credentials", "defender", "key_sets", "quota", "relay", "telemetry"]),
    ("containment", &["cognito::model", "defender::model"]),
    ("credentials", &[]),
    ("defender", &["outbound", "redact", "retry", "telemetry"]),
    ("desk", &["broker", "job", "quota", "shutdown", "telemetry"]),
    (
        "ingress",
        &["broker", "cognito::audit", "config", "credentials", "job", "key_sets", "relay", "shutdown", "telemetry"],
    ),
    ("job", &["broker", "credentials", "relay"]),
    // The platform's keys: the one thing the ingress may have fetched, and only from hosts of the configuration.
    ("key_sets", &["outbound", "relay"]),
    ("listen", &["shutdown"]),
    ("mapping", &["defender::model", "relay"]),
    ("notify", &["broker", "config", "job", "outbound", "retry", "telemetry"]),
    ("outbound", &["retry", "telemetry"]),
    ("platform", &["outbound", "redact"]),
    ("quota", &[]),
    ("redact", &[]),
    ("relay", &[]),
    ("retry", &[]),
    ("shutdown", &[]),
    ("simulator", &[]),
    ("sweep", &["broker", "cognito", "containment", "desk", "job", "notify", "shutdown", "telemetry"]),
    ("telemetry", &["broker"]),
    (
        "worker",
        &[
            "broker",
            "cognito",
            "config",
            "containment",
            "credentials",
            "defender",
            "desk",
            "job",
            "mapping",
            "notify",
            "relay",
            "retry",
            "shutdown",
            "sweep::groups",
            "telemetry",
        ],
    ),
    // The command picks concrete types, so it may import everything; nobody imports it.
    (
        "cli",
        &[
            "admin",
            "broker",
            "cognito",
            "config",
            "containment",
            "credentials",
            "defender",
            "desk",
            "ingress",
            "job",
            "key_sets",
            "listen",
            "mapping",
            "notify",
            "outbound",
            "platform",
            "quota",
            "relay",
            "retry",
            "shutdown",
            "simulator",
            "sweep",
            "telemetry",
            "worker",
        ],
    ),
    ("lib", &[]),
    ("main", &["cli"]),
];

/// Libraries that only the named modules use: what they are for has one home.
const HOMES: [(&str, &[&str]); 7] = [
    ("backoff", &["retry"]),
    // The demo is a client of its own relay; the simulated brain sends events to a webhook.
    ("reqwest", &["outbound", "cli", "simulator"]),
    ("lapin", &["broker"]),
    ("rusqlite", &["broker"]),
    ("axum", &["admin", "ingress", "listen", "simulator"]),
    ("moka", &["cognito", "defender", "ingress", "worker"]),
    ("jsonwebtoken", &["relay", "simulator"]),
];

/// Pure modules: no runtime, no network, no clock.
const PURE: [&str; 4] = ["relay", "mapping", "containment", "quota"];
const IMPURE: [&str; 6] = ["tokio::", "std::net::Tcp", "SystemTime::now", "Timestamp::now", "Instant::now", "std::fs"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The lines of each module that are code of the product: no comments, and nothing from the unit tests at a file's foot.
fn modules() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(&root).expect("inside src");
        let first = inside.iter().next().expect("a name").to_str().expect("UTF-8");
        let module = first.strip_suffix(".rs").unwrap_or(first).to_owned();
        let text = std::fs::read_to_string(&file).expect("a source file");
        let code = text.split("\n#[cfg(test)]\nmod tests").next().expect("a first part");
        let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        modules.entry(module).or_default().extend(lines.map(str::to_owned));
    }
    modules
}

/// The paths that follow `crate::` in `code`, as far as they are plain names: `defender::model::Alert`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        // `use crate::{a::B, c}` names a module after the brace and after each comma of the first depth.
        let starts: Vec<&str> = match rest.strip_prefix('{') {
            None => vec![rest],
            Some(list) => {
                let mut depth = 0;
                let mut starts = vec![list.trim_start()];
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => starts.push(list[at + 1..].trim_start()),
                        _ => {}
                    }
                }
                starts
            }
        };
        for start in starts {
            let path: String =
                start.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')).collect();
            if !path.is_empty() {
                found.insert(path);
            }
        }
    }
    found
}

#[test]
fn every_module_imports_only_what_it_may() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut broken = Vec::new();
    for (module, lines) in modules() {
        let Some(may) = allowed.get(module.as_str()) else {
            broken.push(format!("{module} is not in the table"));
            continue;
        };
        for path in imports(&lines.join("\n")) {
            let fits = |prefix: &str| path == prefix || path.starts_with(&format!("{prefix}::"));
            if !fits(&module) && !may.iter().any(|prefix| fits(prefix)) {
                broken.push(format!("{module} imports crate::{path}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_library_has_one_home() {
    let mut broken = Vec::new();
    for (module, lines) in modules() {
        for (library, homes) in HOMES {
            let uses = |line: &&String| {
                line.match_indices(&format!("{library}::")).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                })
            };
            if !homes.contains(&module.as_str())
                && let Some(line) = lines.iter().find(uses)
            {
                broken.push(format!("{module} uses {library}: {line}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn what_is_pure_knows_neither_runtime_nor_network_nor_clock() {
    let modules = modules();
    for module in PURE {
        for line in &modules[module] {
            assert!(!IMPURE.iter().any(|word| line.contains(word)), "{module}: {line}");
        }
    }
}

#[test]
fn the_retired_hunting_api_is_named_nowhere_in_the_product() {
    for (module, lines) in modules().into_iter().filter(|(module, _)| module != "simulator") {
        for line in lines {
            for path in ["advancedqueries", "advancedhunting/run"] {
                assert!(!line.contains(path), "{module}: {line}");
            }
        }
    }
}

#[test]
fn imports_are_found_in_lists_too() {
    let found = imports("use crate::{a::B, c::{d, e}, f}; crate::g::h(); pub(crate) fn x() {}");
    assert_eq!(found, ["a::B", "c::", "f", "g::h"].map(str::to_owned).into());
}
