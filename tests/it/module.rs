//! `module` from outside: the binary against the simulated platform and a relay that works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use defender_bridge::relay::token::{self, Claims};
use defender_bridge::simulator::{Fault, PLATFORM_CLIENT_ID, PLATFORM_CLIENT_PASSWORD};
use serde_json::{Value, json};
use tokio::process::Command;

use super::bridge::{TestBridge, demo_token};

/// What the first relay came with; its users have it so.
const FIRST_FORM: &str = r#"{
  "tags": ["default"], "name": "Microsoft Defender ATP", "record": "relay-module.module/RelayModule+Custom+CS",
  "config": {"url": "${URL}", "auth-type": "authorization-header", "authorization-header": "Bearer ${JWT}",
    "supported-apis": ["health", "observe/observables", "deliberate/observables", "refer/observables",
      "respond/observables", "respond/trigger"]}
}"#;

/// What its command line tool came with.
const SECOND_FORM: &str = r#"{
  "name": "${NAME}", "module_type_id": "a14ae422-01b6-5013-9876-695ff1b0ebe0", "visibility": "org",
  "settings": {"url": "$URL", "auth-type": "authorization-header", "authorization-header": "Bearer $JWT",
    "supported-apis": ["health", "observe/observables"]}
}"#;

/// An operator's shell beside a relay and a platform.
struct Desk {
    bridge: TestBridge,
    variables: BTreeMap<&'static str, String>,
}

impl Desk {
    async fn start() -> Self {
        let bridge = TestBridge::start().await;
        let variables = BTreeMap::from([
            ("HOME", env!("CARGO_TARGET_TMPDIR").to_owned()),
            ("BRIDGE_PLATFORM_URL", bridge.simulator.url()),
            ("TR_API_CLIENT_ID", PLATFORM_CLIENT_ID.to_owned()),
            ("TR_API_CLIENT_PASSWORD", PLATFORM_CLIENT_PASSWORD.to_owned()),
            ("URL", bridge.url("")),
            ("JWT", demo_token()),
        ]);
        Self { bridge, variables }
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.insert(name, value.into());
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.bridge.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs `module` and returns its exit code, standard output and standard error, none of which shows a secret.
    async fn module(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
        command.arg("module").args(arguments).env_clear().envs(&self.variables).stdin(std::process::Stdio::null());
        let Output { status, stdout, stderr } = command.output().await.unwrap();
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        for secret in ["JWT", "TR_API_CLIENT_PASSWORD"].iter().filter_map(|name| self.variables.get(name)) {
            assert!(!stdout.contains(secret.as_str()) && !stderr.contains(secret.as_str()), "{stdout}{stderr}");
        }
        (status.code().unwrap(), stdout, stderr)
    }

    fn registered(&self) -> Vec<Value> {
        self.bridge.control().module_instances()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_module_is_added_edited_and_removed_from_the_configuration_alone() {
    let mut desk = Desk::start().await;
    let (code, told, _) = desk.module(&["add"]).await;
    assert_eq!(code, 0, "{told}");
    let [module] = desk.registered().try_into().unwrap();
    assert!(told.contains(module["id"].as_str().unwrap()), "{told}");
    assert_eq!(module["name"], "Microsoft Defender for Endpoint");
    assert_eq!(module["module_type_id"], "a14ae422-01b6-5013-9876-695ff1b0ebe0");
    assert_eq!((&module["visibility"], &module["enabled"]), (&json!("org"), &json!(true)));
    assert_eq!(
        module["settings"],
        json!({
            "url": desk.bridge.url(""), "auth-type": "authorization-header",
            "authorization-header": format!("Bearer {}", demo_token()),
            "supported-apis": ["health", "observe/observables", "refer/observables"],
        })
    );

    let (code, told, _) = desk.module(&["edit"]).await;
    assert_eq!((code, told.contains("nothing was changed")), (0, true), "{told}");
    assert_eq!(desk.module(&["edit", "--exit-code"]).await.0, 4);

    desk.set("BRIDGE_RELAY_ROUTES", "observe,respond");
    let (code, told, _) = desk.module(&["edit", "--dry-run"]).await;
    assert_eq!(code, 0);
    assert!(told.starts_with("PATCH ") && told.contains("Bearer ***") && !told.contains("\"name\""), "{told}");
    assert_eq!(desk.registered()[0]["settings"]["supported-apis"][1], "observe/observables");
    assert_eq!(desk.registered()[0]["settings"]["supported-apis"][2], "refer/observables");
    let (code, told, _) = desk.module(&["edit", "--exit-code"]).await;
    assert_eq!((code, told.contains("was changed: settings.")), (0, true), "{told}");
    assert_eq!(
        desk.registered()[0]["settings"]["supported-apis"],
        json!(["health", "observe/observables", "respond/observables", "respond/trigger"])
    );

    let (code, told, _) = desk.module(&["list"]).await;
    assert!(code == 0 && told.contains(&desk.bridge.url("")), "{told}");
    let (_, told, _) = desk.module(&["list", "--json"]).await;
    let listed: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(listed[0]["name"], "Microsoft Defender for Endpoint");

    assert_eq!(desk.module(&["remove", "--dry-run"]).await.0, 0);
    assert_eq!(desk.registered().len(), 1);
    assert_eq!(desk.module(&["remove"]).await.0, 0);
    assert!(desk.registered().is_empty());
    let (code, _, told) = desk.module(&["remove"]).await;
    assert!(code == 1 && told.contains("does not exist"), "{told}");
    assert_eq!(desk.module(&["remove", "--if-exists"]).await.0, 0);
    let (code, _, told) = desk.module(&["edit"]).await;
    assert!(code == 1 && told.contains("does not exist"), "{told}");
}

#[tokio::test]
async fn old_settings_files_work_unchanged() {
    let mut desk = Desk::start().await;
    desk.set("NAME", "Relay of the second form");
    let first = desk.file("relay_settings.json", FIRST_FORM);
    let second = desk.file("second.json", SECOND_FORM);
    for file in [&first, &second] {
        let (code, _, told) = desk.module(&["add", "-f", text(file)]).await;
        assert_eq!(code, 0, "{told}");
    }
    let registered = desk.registered();
    let names: Vec<&Value> = registered.iter().map(|module| &module["name"]).collect();
    assert_eq!(names, ["Microsoft Defender ATP", "Relay of the second form"]);
    for module in &registered {
        assert_eq!(module["settings"]["url"], desk.bridge.url(""));
        assert_eq!(module["settings"]["authorization-header"], format!("Bearer {}", demo_token()));
    }
    assert_eq!(registered[0]["settings"]["supported-apis"].as_array().unwrap().len(), 6);

    let (code, _, told) = desk.module(&["add", "--settings", text(&first)]).await;
    assert!(code == 1 && told.contains("already exists"), "{told}");
    assert_eq!(desk.registered().len(), 2);

    desk.set("URL", "https://elsewhere.example/relay/");
    assert_eq!(desk.module(&["edit", "--settings", text(&second)]).await.0, 0);
    assert_eq!(desk.registered()[1]["settings"]["url"], "https://elsewhere.example/relay");
    assert_eq!(desk.module(&["remove", "--settings", text(&first)]).await.0, 0);
    assert_eq!(desk.module(&["remove", "--settings", text(&second)]).await.0, 0);
    assert!(desk.registered().is_empty());
}

#[tokio::test]
async fn a_relay_that_does_not_take_the_token_is_not_registered() {
    let mut desk = Desk::start().await;
    let claims = Claims {
        client_id: "app".to_owned(),
        client_secret: "pl4nted".into(),
        tenant_id: "t.example".to_owned(),
        entities_limit: None,
    };
    desk.set("JWT", token::mint(&claims, None, &"another key than the relay's, as long as it".into()));
    let (code, _, told) = desk.module(&["add"]).await;
    assert!(code == 1 && told.contains("Failed to decode JWT with provided key"), "{told}");
    assert!(desk.registered().is_empty());
    assert_eq!(desk.bridge.control().calls("platform"), 0);
    assert_eq!(desk.module(&["add", "--force"]).await.0, 0);
    assert_eq!(desk.registered().len(), 1);

    for (url, part) in [
        (format!("{}/nowhere", desk.bridge.url("")), "what answered is no relay (HTTP 404)"),
        (format!("http://127.0.0.1:{}", super::spawned::closed_port()), "the relay did not answer"),
    ] {
        desk.set("URL", url);
        let (code, _, told) = desk.module(&["add", "--name", "Another"]).await;
        assert!(code == 1 && told.contains(part), "{told}");
    }
    assert_eq!(desk.registered().len(), 1);
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_told_before_anybody_is_called() {
    let mut desk = Desk::start().await;
    let file = desk.file("relay_settings.json", SECOND_FORM);
    let (code, _, told) = desk.module(&["add", "--settings", text(&file)]).await;
    assert!(code == 78 && told.contains("$NAME: the settings name this environment variable"), "{told}");
    let wrong = desk.file("wrong.json", r#"{"name": "n", "settings": {"url": "u", "supported-apis": ["all"]}}"#);
    let (code, _, told) = desk.module(&["add", "--settings", text(&wrong)]).await;
    assert_eq!(code, 78);
    for fault in ["module_type_id: is missing", "visibility: is missing", "settings.supported-apis: must be"] {
        assert!(told.contains(fault), "{told}");
    }
    let (code, _, told) = desk.module(&["remove", "--settings", "/no/such/file"]).await;
    assert!(code == 78 && told.contains("/no/such/file: "), "{told}");

    for name in ["URL", "JWT"] {
        let value = desk.variables.remove(name).unwrap();
        let (code, _, told) = desk.module(&["add"]).await;
        assert!(code == 78 && told.contains(&format!("{name}: is not set")), "{told}");
        desk.set(name, value);
    }
    desk.set("URL", "http://elsewhere.example");
    let (code, _, told) = desk.module(&["add"]).await;
    assert!(code == 78 && told.contains("URL: the URL would send secrets in clear"), "{told}");
    desk.set("URL", desk.bridge.url(""));
    desk.variables.remove("TR_API_CLIENT_PASSWORD");
    let (code, _, told) = desk.module(&["list"]).await;
    assert!(code == 78 && told.contains("TR_API_CLIENT_PASSWORD: is not set, and nobody is there"), "{told}");
    assert_eq!(desk.bridge.control().calls("platform-token"), 0);
}

#[tokio::test]
async fn a_dry_run_registers_nothing_and_shows_no_token() {
    let desk = Desk::start().await;
    let (code, told, _) = desk.module(&["add", "--dry-run", "--name", "Trial"]).await;
    assert_eq!(code, 0);
    let (first, body) = told.split_once('\n').unwrap();
    assert_eq!(first, "POST /iroh/iroh-int/module-instance");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["name"], &body["settings"]["authorization-header"]), (&json!("Trial"), &json!("Bearer ***")));
    assert!(desk.registered().is_empty());
}

#[tokio::test]
async fn secrets_come_from_files_too() {
    let mut desk = Desk::start().await;
    let (token, password) =
        (desk.file("jwt", &format!("{}\n", demo_token())), desk.file("password", PLATFORM_CLIENT_PASSWORD));
    desk.variables.remove("JWT");
    desk.variables.remove("TR_API_CLIENT_PASSWORD");
    let files = ["--jwt-file", text(&token), "--client-password-file", text(&password)];
    let (code, _, told) = desk.module(&[&["add"][..], &files[..]].concat()).await;
    assert_eq!(code, 0, "{told}");
    assert_eq!(desk.registered().len(), 1);
}

#[tokio::test]
async fn a_token_that_is_not_taken_any_more_is_renewed_once() {
    let desk = Desk::start().await;
    assert_eq!(desk.module(&["add"]).await.0, 0);
    for (times, expected) in [(1, 0), (2, 1)] {
        desk.bridge.control().forget();
        desk.bridge.control().fail_next("module-instance", Fault::Refuse { status: 401 }, times);
        let (code, _, told) = desk.module(&["list"]).await;
        assert!(code == expected && told.contains("HTTP 401") == (code == 1), "{told}");
        assert_eq!(desk.bridge.control().calls("platform-token"), 2);
    }
}

#[tokio::test]
async fn what_the_platform_refuses_is_told_in_its_words() {
    let mut desk = Desk::start().await;
    for (status, part) in [(403, "rights to integrations"), (429, "try again later"), (503, "HTTP 503")] {
        desk.bridge.control().fail_next("module-instance", Fault::Refuse { status }, 1);
        let (code, _, told) = desk.module(&["list"]).await;
        assert!(code == 1 && told.contains(part), "{told}");
    }
    desk.set("TR_API_CLIENT_PASSWORD", "pl4nted-wrong-password");
    let (code, _, told) = desk.module(&["list"]).await;
    assert!(code == 1 && told.contains("refuses TR_API_CLIENT_ID with TR_API_CLIENT_PASSWORD (HTTP 401"), "{told}");
}

/// Runs the binary at a pseudo terminal, where somebody types each answer once its question is shown; returns all that
/// was shown until `last` was.
async fn typed(arguments: &str, variables: &BTreeMap<&str, String>, answers: &[(&str, &str)], last: &str) -> String {
    use tokio::io::AsyncWriteExt as _;
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command"]);
    command.arg(format!("{} {arguments}", env!("CARGO_BIN_EXE_defender-bridge"))).arg("/dev/null");
    command.env_clear().envs(variables).env("PATH", "/usr/bin:/bin").env("SHELL", "/bin/sh");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("util-linux has script");
    let mut keyboard = child.stdin.take().unwrap();
    let mut screen = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut shown = String::new();
    for (question, answer) in answers {
        until(&mut screen, &mut shown, question).await;
        if question.contains("secret") || question.contains("PASSWORD") {
            until_unseen(child.id().expect("it runs")).await;
        }
        keyboard.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    }
    until(&mut screen, &mut shown, last).await;
    assert!(child.wait().await.unwrap().success(), "{shown}");
    shown
}

/// Waits until what is typed at the terminal that `script` has made is not shown. The question comes a moment sooner.
async fn until_unseen(script: u32) {
    let shows = || {
        let children = std::fs::read_to_string(format!("/proc/{script}/task/{script}/children")).ok()?;
        let child = children.split_whitespace().next()?.to_owned();
        let terminal = std::fs::read_link(format!("/proc/{child}/fd/0")).ok()?;
        let settings = std::process::Command::new("stty").arg("-F").arg(terminal).arg("-a").output().ok()?;
        Some(!String::from_utf8_lossy(&settings.stdout).split_whitespace().any(|word| word == "-echo"))
    };
    let end = std::time::Instant::now() + super::spawned::PATIENCE;
    while shows() != Some(false) {
        assert!(std::time::Instant::now() < end, "what is typed would be shown");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Reads on until `part` has been shown.
async fn until(screen: &mut (impl tokio::io::AsyncRead + Unpin), shown: &mut String, part: &str) {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = [0; 1024];
    while !shown.contains(part) {
        let read = tokio::time::timeout(super::spawned::PATIENCE, screen.read(&mut bytes)).await;
        let count = read.unwrap_or_else(|_| panic!("{part:?} never came: {shown}")).unwrap();
        assert!(count > 0, "{part:?} never came: {shown}");
        shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

#[tokio::test]
async fn a_missing_client_is_asked_for_at_the_terminal_and_its_password_typed_unseen() {
    let mut desk = Desk::start().await;
    desk.variables.remove("TR_API_CLIENT_ID");
    desk.variables.remove("TR_API_CLIENT_PASSWORD");
    let answers = [("TR_API_CLIENT_ID: ", PLATFORM_CLIENT_ID), ("TR_API_CLIENT_PASSWORD: ", PLATFORM_CLIENT_PASSWORD)];
    let shown = typed("module list --json", &desk.variables, &answers, "[]").await;
    assert!(shown.contains(PLATFORM_CLIENT_ID) && !shown.contains(PLATFORM_CLIENT_PASSWORD), "{shown}");
}

#[tokio::test]
async fn what_a_token_needs_is_asked_for_and_the_secret_typed_unseen() {
    let answers = [
        ("directory (tenant) id: ", "t.example"),
        ("(client) id: ", "app"),
        ("application's secret: ", "pl4nted-secret"),
    ];
    let shown = typed("token", &BTreeMap::new(), &answers, "APJC").await;
    assert!(shown.contains("eyJ") && shown.contains("is new") && !shown.contains("pl4nted-secret"), "{shown}");
}
