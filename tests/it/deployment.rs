//! What `deploy/` says of the program against the program: settings, commands, metrics, alerts and their runbook.

use std::collections::BTreeSet;
use std::process::Command;

use clap::CommandFactory as _;
use defender_bridge::cli::Cli;

use super::spawned::{PATIENCE, Role};

fn document(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below a folder of the repository whose names end so, by their paths from its root.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"))).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = format!("{folder}/{}", entry.file_name().to_str().expect("UTF-8"));
            if entry.file_type().expect("a type").is_dir() {
                folders.push(path);
            } else if path.ends_with(ending) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {ending} in {folder}");
    found
}

/// The words in `text` that begin like this.
fn words<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(move |c| !part(c)).filter(move |word| word.starts_with(prefix))
}

/// Every name that `/metrics` may show: as registered, with the endings of its kind.
fn metric_names() -> BTreeSet<String> {
    let source = document("src/telemetry/metrics.rs");
    // A name stands first; a registration that is handed on has none.
    let registered = source.split(".register(").skip(1).filter_map(|rest| {
        let name = rest.trim_start().strip_prefix('"')?.split('"').next()?;
        Some(format!("bridge_{name}"))
    });
    let endings = ["", "_total", "_bucket", "_count", "_sum"];
    registered.flat_map(|name| endings.map(|ending| format!("{name}{ending}"))).collect()
}

#[test]
fn dashboards_and_rules_use_metrics_that_exist() {
    let mut known = metric_names();
    let recording = document("deploy/prometheus/recording.yaml");
    known.extend(recording.lines().filter_map(|line| line.trim().strip_prefix("- record: ").map(str::to_owned)));
    let mut used = 0;
    let mut unknown = Vec::new();
    let places =
        [("deploy/grafana/dashboards", ".json"), ("deploy/prometheus", ".yaml"), ("deploy/kubernetes/keda", ".yaml")];
    for path in places.map(|(folder, ending)| files(folder, ending)).concat() {
        let text = document(&path);
        for name in words(&text, "bridge_").chain(words(&text, "bridge:")) {
            used += 1;
            if !known.contains(name) {
                unknown.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(used > 50, "only {used} metrics are used");
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn every_alert_has_its_entry_in_the_runbook() {
    let alerts = document("deploy/prometheus/alerts.yaml");
    let runbook = document("deploy/runbook.md");
    let named: BTreeSet<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let told: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### Bridge")).collect();
    let told: BTreeSet<String> = told.into_iter().map(|name| format!("Bridge{name}")).collect();
    assert!(named.len() >= 15, "{named:?}");
    assert_eq!(named.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), told);
    for name in named {
        let link = format!("runbook_url: \"runbook.md#{}\"", name.to_lowercase());
        assert!(alerts.contains(&link), "{link}");
    }
}

/// The command lines of `defender-bridge` in the shell blocks of a document, without what stands before the name (`sudo`,
/// settings) and without comments.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let blocks = text.lines().filter_map(|line| line.strip_prefix("    "));
    let joined = blocks.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let mut found = Vec::new();
    for line in joined.lines() {
        let Some((before, rest)) = line.split_once("defender-bridge ") else { continue };
        let rest = rest.split(" #").next().unwrap_or(rest).split(" | ").next().unwrap_or(rest);
        let runs = before.split_whitespace().all(|word| {
            word.contains('=') || word == "sudo" || word == "-u" || word == "bridge" || word.starts_with("$(")
        });
        if !runs {
            continue;
        }
        let mut words = vec![String::new()];
        let mut quoted = None;
        for c in rest.chars() {
            match (quoted, c) {
                (Some(quote), c) if c == quote => quoted = None,
                (None, '"' | '\'') => quoted = Some(c),
                (None, ' ' | ')' | '>') => words.push(String::new()),
                (_, c) => words.last_mut().expect("one at least").push(c),
            }
        }
        found.push(words.into_iter().filter(|word| !word.is_empty() && word != "&").collect());
    }
    found
}

#[test]
fn every_command_in_the_runbook_can_be_typed() {
    let commands = command_lines(&document("deploy/runbook.md"));
    assert!(commands.len() >= 15, "{commands:?}");
    for command in commands {
        let line = [vec!["defender-bridge".to_owned()], command].concat();
        if let Err(error) = Cli::command().try_get_matches_from(&line) {
            assert!(!error.use_stderr(), "{line:?}: {error}");
        }
    }
}

#[test]
fn deployment_files_set_only_settings_that_exist() {
    fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
        found.extend(command.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())));
        command.get_subcommands().for_each(|command| collect(command, found));
    }
    let mut known = BTreeSet::new();
    collect(&Cli::command(), &mut known);
    // What the image's build is told.
    known.insert("BRIDGE_COMMIT".to_owned());
    let mut used = 0;
    let deploy = ["Dockerfile", ".yaml", ".service", ".default"].map(|ending| files("deploy", ending));
    for path in deploy.concat().into_iter().chain(["docker-compose.yml".to_owned()]) {
        let text = document(&path);
        for name in ["BRIDGE_", "COGNITO_", "CTR_"].into_iter().flat_map(|prefix| words(&text, prefix)) {
            used += 1;
            let name = name.trim_end_matches(':');
            assert!(known.contains(name), "{path}: {name} is no setting");
        }
    }
    assert!(used > 20, "only {used} settings are set");
}

#[tokio::test]
async fn the_health_check_says_by_its_exit_code_whether_a_role_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Role::new("serve").sqlite(&folder.path().join("queue.sqlite")).start().await;
    let port = serve.admin_url("").rsplit_once(':').unwrap().1.to_owned();
    let check = |listen: String, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
        command.arg("healthcheck").args(arguments).env_clear().env("BRIDGE_ADMIN_LISTEN", listen);
        // A proxy of the environment has nothing to do with this machine's own port.
        command.env("http_proxy", "http://127.0.0.1:9");
        let output = command.output().expect("the binary runs");
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(told).expect("UTF-8"))
    };
    assert_eq!(check(format!("0.0.0.0:{port}"), &[]), (Some(0), "ok\n".to_owned()));
    assert_eq!(check(format!("127.0.0.1:{port}"), &["--live"]), (Some(0), "ok\n".to_owned()));
    serve.stop().await;
    let (code, told) = check(format!("127.0.0.1:{port}"), &[]);
    assert_eq!(code, Some(1));
    assert!(told.contains(&format!("http://127.0.0.1:{port}/readyz does not answer")), "{told}");
    let (code, told) = check("off".to_owned(), &[]);
    assert_eq!(code, Some(1));
    assert!(told.contains("BRIDGE_ADMIN_LISTEN is off"), "{told}");
    assert_eq!(check("nowhere".to_owned(), &[]).0, Some(78));
}

#[tokio::test]
async fn a_role_that_does_not_answer_is_not_well() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Role::new("serve").sqlite(&folder.path().join("queue.sqlite")).start().await;
    serve.signal("-STOP");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
    let listen = serve.admin_url("").trim_start_matches("http://").to_owned();
    command.arg("healthcheck").env_clear().env("BRIDGE_ADMIN_LISTEN", listen);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends by itself").unwrap();
    assert_eq!(output.status.code(), Some(1));
    serve.signal("-CONT");
    serve.stop().await;
}

#[test]
fn the_version_says_what_was_built() {
    let output = Command::new(env!("CARGO_BIN_EXE_defender-bridge")).arg("--version").output().expect("it runs");
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    let version = format!("defender-bridge {}", env!("CARGO_PKG_VERSION"));
    let build = told.trim().strip_prefix(&version).unwrap_or_else(|| panic!("{told}"));
    assert!(build.is_empty() || (build.starts_with(" (") && build.ends_with(')')), "{told}");
}
