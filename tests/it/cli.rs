//! The binary from outside, and its settings against what the documents say of them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use clap::CommandFactory as _;
use defender_bridge::cli::Cli;
use defender_bridge::config::ENVIRONMENT_ONLY;
use defender_bridge::telemetry::metrics::Metrics;

/// The binary, with nothing of this process's own settings.
fn bridge(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
    command.args(arguments).env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Every environment variable that some command reads, with its default.
fn variables() -> BTreeMap<String, Option<String>> {
    fn collect(command: &clap::Command, found: &mut BTreeMap<String, Option<String>>) {
        for argument in command.get_arguments() {
            if let Some(name) = argument.get_env() {
                let default =
                    argument.get_default_values().first().map(|value| value.to_str().expect("UTF-8").to_owned());
                found.insert(name.to_str().expect("UTF-8").to_owned(), default);
            }
        }
        command.get_subcommands().for_each(|command| collect(command, found));
    }
    let mut found = BTreeMap::new();
    collect(&Cli::command(), &mut found);
    found.extend(ENVIRONMENT_ONLY.map(|name| (name.to_owned(), None)));
    found
}

fn document(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).expect("a document")
}

#[test]
fn the_settings_table_of_the_readme_is_that_of_the_command_line() {
    let readme = document("README.md");
    let settings = readme.split("## Settings").nth(1).expect("a section").split("\n## ").next().expect("its end");
    let mut told = BTreeMap::new();
    for row in settings.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        told.insert(cells[0].trim_matches('`').to_owned(), cells[1].to_owned());
    }
    // Each secret has a file form, which one sentence above the table says.
    let known = variables();
    let is_file_form = |name: &str| name.strip_suffix("_FILE").is_some_and(|secret| known.contains_key(secret));
    for (name, default) in known.clone().into_iter().filter(|(name, _)| !is_file_form(name)) {
        let cell = told.remove(&name).unwrap_or_else(|| panic!("{name} is not in the README"));
        if let Some(default) = default {
            assert_eq!(cell, format!("`{default}`"), "{name}");
        } else {
            assert!(!cell.starts_with('`'), "{name} has no default: {cell}");
        }
    }
    assert!(told.is_empty(), "the README has settings that do not exist: {told:?}");
}

#[test]
fn the_metrics_table_of_the_readme_is_that_of_the_code() {
    let readme = document("README.md");
    let table = readme.split("## Metrics").nth(1).expect("a section").split("\n## ").next().expect("its end");
    let cell = |row: &str| row.trim_matches('|').split('|').next().expect("a cell").trim().trim_matches('`').to_owned();
    let mut told: Vec<String> = table.lines().filter(|line| line.starts_with("| `")).map(cell).collect();
    let mut known = Metrics::default().names().to_vec();
    told.sort();
    known.sort();
    assert_eq!(told, known);
}

#[test]
fn the_example_environment_file_names_every_setting_of_the_service() {
    let example = document("deploy/bridge.env.example");
    let known = variables();
    for (name, default) in &known {
        // The rest of these is an operator's, for a command that is run once.
        let commands = ["BRIDGE_SIMULATOR_LISTEN", "TENANT_ID", "APP_ID", "APP_SECRET", "APP_SECRET_FILE"];
        let module = ["URL", "JWT", "JWT_FILE", "BRIDGE_PLATFORM_URL", "BRIDGE_BROKER_URL_FILE"];
        if commands.contains(&name.as_str()) || module.contains(&name.as_str()) || name.starts_with("TR_API_") {
            continue;
        }
        let expected = format!("{name}={}", default.as_deref().unwrap_or_default());
        let fits = |line: &str| line.trim_start_matches('#').starts_with(&expected);
        assert!(example.lines().any(fits), "{expected}");
    }
    for line in example.lines() {
        let Some((name, _)) = line.trim_start_matches('#').split_once('=') else { continue };
        let standard = name.starts_with("OTEL_") || name == "RUST_LOG";
        assert!(standard || name.contains(' ') || known.contains_key(name), "{name} is no setting");
    }
}

#[test]
fn every_command_explains_every_flag() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    let mut command = Cli::command();
    command.build();
    command.get_subcommands().filter(|command| command.get_name() != "help").for_each(check);
}

#[test]
fn a_wrong_configuration_is_refused_with_all_its_problems() {
    let mut command = bridge(&["worker"]);
    command.envs([
        ("BRIDGE_BROKER_URL", "sqlite:queue"),
        ("BRIDGE_CLOUD", "mars"),
        ("BRIDGE_ANSWER_TTL", "soon"),
        ("BRIDGE_ENTRA_URL", "http://elsewhere.example"),
        ("BRIDGE_LOG", "xml"),
    ]);
    let output = output(&mut command);
    assert_eq!(output.status.code(), Some(78));
    let told = text(&output.stderr);
    for setting in
        ["BRIDGE_BROKER_URL", "BRIDGE_CLOUD", "BRIDGE_ANSWER_TTL", "BRIDGE_ENTRA_URL", "BRIDGE_LOG", "BRIDGE_SEAL_KEYS"]
    {
        assert!(told.contains(&format!("{setting}: ")), "{setting} is not in {told}");
    }
}

#[test]
fn an_address_in_use_is_named_with_its_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = bridge(&["serve"]);
    command.env("BRIDGE_LISTEN", taken.local_addr().expect("an address").to_string());
    command.env("BRIDGE_ADMIN_LISTEN", "off");
    command.env("BRIDGE_BROKER_URL", format!("sqlite:{}", folder.path().join("queue").display()));
    let output = output(&mut command);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("BRIDGE_LISTEN: cannot listen on"), "{}", text(&output.stderr));
}

#[test]
fn a_token_is_made_inspected_and_refused_with_another_key() {
    let key = text(&output(&mut bridge(&["token", "new-key"])).stdout);
    let key = key.trim();
    let mut mint = bridge(&["token", "mint", "--entities-limit", "50", "--expires-in", "720h"]);
    mint.envs([("SECRET_KEY", key), ("TENANT_ID", "t.example"), ("APP_ID", "app"), ("APP_SECRET", "pl4nted")]);
    let token = text(&output(&mut mint).stdout);
    let token = token.trim();
    assert_eq!(token.split('.').count(), 3, "{token}");

    let inspected = output(bridge(&["token", "inspect", token]).env("SECRET_KEY", key));
    let told = text(&inspected.stdout);
    assert!(inspected.status.success() && told.contains("the relay accepts this token"), "{told}");
    assert!(told.contains("t.example") && !told.contains("pl4nted"), "{told}");

    let refused =
        output(bridge(&["token", "inspect", token]).env("SECRET_KEY", "another key that is long enough to be one"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("Failed to decode JWT with provided key"), "{}", text(&refused.stderr));
}

#[test]
fn a_token_that_the_relay_would_refuse_is_not_handed_out() {
    let mut mint = bridge(&["token", "mint", "--tenant-id", "no/tenant", "--app-id", "app"]);
    mint.envs([("SECRET_KEY", "0123456789abcdef0123456789abcdef"), ("APP_SECRET", "pl4nted")]);
    let output = output(&mut mint);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(text(&output.stderr).contains("Wrong JWT payload structure"), "{}", text(&output.stderr));
}

#[test]
fn the_whole_token_command_makes_a_key_and_says_where_to_go() {
    let credentials = [("TENANT_ID", "t.example"), ("APP_ID", "app"), ("APP_SECRET", "pl4nted")];
    let made = output(bridge(&["token", "--json"]).envs(credentials));
    let whole: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let (key, token) = (whole["secret_key"].as_str().expect("a key"), whole["token"].as_str().expect("a token"));
    assert_eq!(key.len(), 64);
    let inspected = output(bridge(&["token", "inspect", token]).env("SECRET_KEY", key));
    let told = text(&inspected.stdout);
    assert!(told.contains("SECRET_KEY fits it") && told.contains("the relay accepts this token"), "{told}");
    let inspected = output(bridge(&["token", "inspect", token]).env("SECRET_KEY", "0123456789abcdef0123456789abcdef"));
    assert!(text(&inspected.stdout).contains("SECRET_KEY does not fit it"));

    let told = text(&output(bridge(&["token"]).envs(credentials).env("SECRET_KEY", key)).stdout);
    assert!(told.contains(token) && !told.contains(key), "{told}");
    for (region, host) in [("us", "visibility.amp"), ("eu", "visibility.eu.amp"), ("apjc", "visibility.apjc.amp")] {
        let link = whole["links"][region].as_str().expect("a link");
        assert!(link.starts_with(&format!("https://{host}.cisco.com/settings/modules/available/")), "{link}");
        assert!(told.contains(link), "{told}");
    }
}

#[test]
fn the_environment_file_of_a_token_is_its_owners_alone_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("relay.env");
    let run = |key: &str| {
        let mut command = bridge(&["token", "--env", "--output", path.to_str().expect("UTF-8")]);
        command.envs([("TENANT_ID", "t.example"), ("APP_ID", "app"), ("APP_SECRET", "pl4nted"), ("SECRET_KEY", key)]);
        output(&mut command)
    };
    let odd = run("a key with spaces and \"quotes\", long enough");
    assert!(odd.status.code() == Some(1) && !path.exists(), "{}", text(&odd.stderr));
    let made = run("0123456789abcdef0123456789abcdef");
    assert!(made.status.success() && made.stdout.is_empty(), "{}", text(&made.stderr));
    let written = std::fs::read_to_string(&path).expect("a file");
    assert!(written.starts_with("SECRET_KEY=0123456789abcdef0123456789abcdef\nJWT=ey"), "{written}");
    assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
    assert_eq!(run("0123456789abcdef0123456789abcdef").status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), written);
}

#[test]
fn what_a_token_needs_is_named_when_nobody_can_be_asked() {
    for arguments in [&["token"][..], &["token", "mint"]] {
        let refused = output(bridge(arguments).stdin(Stdio::null()));
        assert_eq!(refused.status.code(), Some(78));
        let told = text(&refused.stderr);
        assert!(["TENANT_ID", "APP_ID", "APP_SECRET"].iter().all(|name| told.contains(&format!("{name}: "))), "{told}");
    }
}

#[test]
fn the_demo_tells_its_story_and_ends_when_told() {
    let output = output(&mut bridge(&["demo", "--once", "--listen", "127.0.0.1:0"]));
    let told = text(&output.stdout);
    assert!(output.status.success(), "{told}{}", text(&output.stderr));
    assert!(told.contains("sightings") && told.contains("curl -s -X POST"), "{told}");
    let count: usize = told
        .lines()
        .find_map(|line| line.trim().strip_suffix(" sightings")?.parse().ok())
        .expect("a line that counts the sightings");
    assert!(count >= 3, "{told}");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_simulator_says_how_to_use_it_and_stops_at_sigterm() {
    let mut child =
        bridge(&["simulate", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let settings = lines.find_map(|line| line.ok().filter(|line| line.contains("BRIDGE_ENTRA_URL=http://127.0.0.1:")));
    assert!(settings.is_some());
    let brain = lines.find_map(|line| line.ok().filter(|line| line.contains("COGNITO_BRAIN=http://127.0.0.1:")));
    assert!(brain.is_some_and(|line| line.contains(" COGNITO_TOKEN=")));
    let killed = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
    assert!(killed.success());
    assert!(child.wait().expect("it ends").success());
}
