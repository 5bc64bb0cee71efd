//! Starts that cannot work end at once, with a reason that helps and holds no secret; those that work leave nothing open
//! to others.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use defender_bridge::simulator::Fault;
use defender_bridge::simulator::scenario::C2_ADDRESS;

use super::bridge::{client, demo_token, observable_list};
use super::namespaces::rabbitmq_url;
use super::spawned::{PATIENCE, Role, closed_port, simulator};

const PASSWORD: &str = "pl4nted-broker-password";

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

#[tokio::test]
async fn a_broker_that_is_away_ends_the_start_with_its_address_and_no_secret() {
    let port = closed_port();
    let url = format!("amqp://bridge:{PASSWORD}@127.0.0.1:{port}/%2f");
    let roles = ["ingress", "worker", "serve"].map(|name| Role::new(name).set("BRIDGE_BROKER_URL", url.as_str()));
    let mut processes = roles.map(Role::spawn);
    for process in &mut processes {
        let status = process.ends_within(PATIENCE).await;
        let log = process.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let last = log.lines().last().unwrap_or_default();
        assert!(last.starts_with("defender-bridge: RabbitMQ cannot be used: "), "{log}");
        assert!(last.contains("Connection refused"), "{last}");
        assert!(log.contains(&format!("127.0.0.1:{port}")), "{log}");
        assert!(!log.contains(PASSWORD), "{log}");
    }
    println!("{}", processes[0].log().lines().last().unwrap_or_default());
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn a_wrong_password_ends_the_start_at_once_and_is_not_shown() {
    let mut url: url::Url = rabbitmq_url().parse().unwrap();
    url.set_password(Some(PASSWORD)).unwrap();
    for name in ["ingress", "worker"] {
        let mut process = Role::new(name).set("BRIDGE_BROKER_URL", url.as_str()).set("RUST_LOG", "trace").spawn();
        // It does not try on for as long as it would with a broker that is away.
        let status = process.ends_within(Duration::from_secs(10)).await;
        let log = process.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let last = log.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("defender-bridge: RabbitMQ cannot be used: ") && last.contains("ACCESS_REFUSED"),
            "{last}"
        );
        assert!(!log.contains(PASSWORD), "{log}");
        println!("{last}");
    }
}

#[tokio::test]
async fn a_second_serve_on_the_same_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.sqlite");
    let mut first = Role::new("serve").sqlite(&file).start().await;
    let mut second = Role::new("serve").sqlite(&file).spawn();
    let status = second.ends_within(PATIENCE).await;
    let log = second.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("defender-bridge: ") && last.contains("another process"), "{log}");
    assert!(last.contains("queue.sqlite"), "{last}");
    println!("{last}");
    first.stop().await;
    // The first one left nothing behind that keeps others out.
    let mut third = Role::new("serve").sqlite(&file).start().await;
    third.stop().await;
}

#[tokio::test]
async fn a_serve_that_was_killed_at_work_starts_again_on_its_file() {
    let simulator = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let role = || Role::new("serve").sqlite(&folder.path().join("queue.sqlite")).upstream(&simulator.url());
    let mut first = role().start().await;
    simulator.control().fail_next("token", Fault::Hang, 100);
    let url = first.url("/observe/observables");
    let caller = tokio::spawn(async move {
        client().post(url).bearer_auth(demo_token()).json(&observable_list(&[("ip", C2_ADDRESS)])).send().await
    });
    first.reaches("bridge_jobs_in_hands", 1.0).await;
    first.signal("-KILL");
    assert!(!first.ends_within(PATIENCE).await.success());
    assert!(caller.await.unwrap().is_err());
    simulator.control().clear_faults();
    let mut second = role().start().await;
    let answer = second.observe(&[("ip", C2_ADDRESS)]).await;
    assert_eq!(answer.errors(), []);
    assert!(!answer.sightings().is_empty());
    second.stop().await;
}

#[tokio::test]
async fn the_queue_of_serve_is_its_users_alone() {
    let state = tempfile::tempdir().unwrap();
    let role = Role::new("serve").set("XDG_STATE_HOME", state.path().display().to_string());
    let mut serve = role.start().await;
    let folder = state.path().join("defender-bridge");
    assert_eq!(mode(&folder), 0o700);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        files.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    files.sort();
    assert_eq!(files, ["queue.sqlite", "queue.sqlite-shm", "queue.sqlite-wal", "queue.sqlite.lock"]);
    serve.stop().await;
}

#[tokio::test]
async fn a_setting_that_cannot_be_read_is_told_without_its_value() {
    let role = Role::new("serve")
        .set("SECRET_KEY", "")
        .set("BRIDGE_BROKER_URL", format!("http://bridge:{PASSWORD}@host"))
        .set("BRIDGE_ENTRA_URL", format!("https://bridge:{PASSWORD}@host"))
        .set("BRIDGE_SEAL_KEYS", format!("k1={PASSWORD}"));
    let mut process = role.spawn();
    let status = process.ends_within(PATIENCE).await;
    let log = process.log();
    assert_eq!(status.code(), Some(78), "{log}");
    for setting in ["BRIDGE_BROKER_URL", "BRIDGE_ENTRA_URL", "BRIDGE_SEAL_KEYS"] {
        assert!(log.contains(setting), "{log}");
    }
    assert!(!log.contains(PASSWORD), "{log}");
}
