//! `isolation`, the real binary, beside a desk that serves.

use std::process::{Output, Stdio};
use std::time::Duration;

use defender_bridge::broker::{Broker, Lane, Settlement};
use defender_bridge::desk::{Desk, Isolation, Settings};
use defender_bridge::job::{HOSTS, Hint, Host, HostKind, TOPOLOGY};
use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::{granted, isolate, on, open, sees, serve, settings};
use crate::broker_conformance::World;
use crate::broker_conformance::on_rabbitmq::OnRabbitMq;
use crate::broker_conformance::on_sqlite::{OnSqlite, path};
use crate::namespaces::rabbitmq_url;

/// In the place of a host's id, for orders of the relay.
const RELAY: u64 = 0;

on!(
    the_list_shows_ledger_brake_and_caps,
    pause_and_resume_move_the_brake_of_the_deployment,
    a_cap_is_set_for_a_time,
    a_release_is_ordered_and_awaited,
    a_release_that_does_not_come_is_an_error,
);

/// How another process finds the queue.
pub(crate) trait Reach: World {
    fn settings(&self) -> Vec<(&'static str, String)>;
}

impl Reach for OnSqlite {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("BRIDGE_BROKER_URL", format!("sqlite:{}", path(&self.folder).display()))]
    }
}

impl Reach for OnRabbitMq {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("BRIDGE_BROKER_URL", rabbitmq_url()), ("BRIDGE_BROKER_NAMESPACE", self.namespace.clone())]
    }
}

fn command(settings: &[(&'static str, String)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_defender-bridge"));
    command.arg("isolation").args(arguments).env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR")).env("USER", "ann");
    command.envs(settings.iter().map(|(name, value)| (name, value))).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn isolation<W: Reach>(world: &W, arguments: &[&str]) -> Output {
    command(&world.settings(), arguments).output().await.expect("the binary runs")
}

/// What a command that must succeed prints.
async fn told<W: Reach>(world: &W, arguments: &[&str]) -> String {
    let output = isolation(world, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

async fn json<W: Reach>(world: &W, arguments: &[&str]) -> Value {
    let told = told(world, &[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error} in {told}"))
}

pub(crate) async fn the_list_shows_ledger_brake_and_caps<W: Reach>() {
    let world = W::open(&TOPOLOGY).await;
    let empty = told(&world, &["list"]).await;
    assert!(empty.contains("no worker answers") && empty.contains("no machine is known to be isolated"), "{empty}");
    let settings = Settings { isolations_per_hour: 10, max_isolated: 100, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings).await;
    let grant = granted(&desk, "machine-b", 7).await;
    isolate(&desk, grant, 7);
    desk.posted(granted(&desk, "machine-a", 8).await);
    let strange = Isolation { host_name: "evil\u{1b}[2Jname".to_owned(), ..super::isolation("machine-c", 9) };
    desk.isolated(strange);
    desk.posted(granted(&desk, "machine-r", RELAY).await);
    desk.flush(super::PATIENCE).await;

    let list = json(&world, &["list"]).await;
    assert_eq!(list["brake"], serde_json::json!({ "paused": false }));
    assert_eq!(list["hour"], serde_json::json!({ "cap": 10, "used": 3, "left": 7 }));
    assert_eq!(list["isolated_at_once"], serde_json::json!({ "cap": 100, "used": 4 }));
    assert_eq!((&list["current"], &list["held_by_first_sweep"]), (&Value::Bool(true), &Value::from(0)));
    let isolated = list["isolated"].as_array().expect("a list");
    assert_eq!(isolated.len(), 2);
    assert_eq!(isolated[0]["machine_id"], "machine-b");
    assert_eq!((&isolated[0]["host_id"], &isolated[0]["host_name"]), (&Value::from(7), &Value::from("host 7")));
    assert_eq!(isolated[0]["action_id"], "action-machine-b");
    // Counted, and nothing more is known of them.
    let asked: Vec<_> = list["asked"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|asked| (&asked["machine_id"], &asked["host_id"]))
        .collect();
    assert_eq!(asked, [(&"machine-a".into(), &8.into()), (&"machine-r".into(), &Value::Null)]);

    let text = told(&world, &["list"]).await;
    for part in [
        "go on",
        "3 of 10, 7 left",
        "4 of 100",
        "HOST",
        "\nrelay  machine-r",
        "host 7",
        "machine-b",
        "action-machine-b",
        "evil?[2J",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn pause_and_resume_move_the_brake_of_the_deployment<W: Reach>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    let text = told(&world, &["pause", "--reason", "wrong list"]).await;
    assert!(text.contains("PAUSED since 2") && text.contains("by ann: wrong list"), "{text}");
    assert!(text.contains("nothing more is posted; waited"), "{text}");
    sees(&desk, true).await;
    assert_eq!(desk.brake().reason.as_deref(), Some("wrong list"));
    let text = told(&world, &["list"]).await;
    assert!(text.contains("PAUSED since 2"), "{text}");
    let again = json(&world, &["pause", "--by", "bob"]).await;
    assert_eq!((&again["before"]["by"], &again["brake"]["by"]), (&Value::from("ann"), &Value::from("bob")));
    assert_eq!(again["drained_by"], "desk");
    assert!(again["waited_ms"].is_u64(), "{again}");

    let text = told(&world, &["resume"]).await;
    assert!(text.contains("isolations were paused since 2") && text.contains("isolations go on since 2"), "{text}");
    sees(&desk, false).await;
    let text = told(&world, &["resume"]).await;
    assert!(text.contains("were not paused"), "{text}");
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_cap_is_set_for_a_time<W: Reach>() {
    let world = W::open(&TOPOLOGY).await;
    let settings = Settings { isolations_per_hour: 1, ..settings() };
    let serving = serve(&world.broker(), settings.clone());
    let desk = open(&world.broker(), settings).await;
    desk.posted(granted(&desk, "a", 1).await);
    let text = told(&world, &["cap", "5", "--for", "2h"]).await;
    assert!(text.contains("the cap was that of the settings"), "{text}");
    assert!(text.contains("the cap is 5 an hour (cap set by ann until 2"), "{text}");
    desk.posted(granted(&desk, "b", 2).await);
    desk.flush(super::PATIENCE).await;
    let list = json(&world, &["list"]).await;
    assert_eq!(list["hour"], serde_json::json!({ "cap": 5, "used": 2, "left": 3 }));
    let text = told(&world, &["cap", "2", "--for", "60"]).await;
    assert!(text.contains("the cap was 5 an hour"), "{text}");
    // It outlives a pause and a resume.
    told(&world, &["pause"]).await;
    told(&world, &["resume"]).await;
    assert_eq!(json(&world, &["list"]).await["brake"]["cap"]["per_hour"], 2);
    serving.stop().await;
    world.close().await;
}

/// A worker that does what it is told of releases, and nothing else.
async fn releasing<B: Broker>(broker: &B, desk: Desk) -> JoinHandle<Vec<Host>> {
    let mut receiver = broker.receive(&HOSTS, Lane::Urgent, 4).await.expect("receiving");
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(delivery) = receiver.next().await {
            let host = Host::decode(&delivery.message.body).expect("a host event");
            assert_eq!(delivery.message.key, Some(host.key()));
            desk.released(&format!("machine-{}", host.host_id), host.host_id);
            delivery.settle(Settlement::Done { reply: None }).await.expect("settled");
            let last = host.host_id == 99;
            seen.push(host);
            if last {
                break;
            }
        }
        receiver.close().await;
        seen
    })
}

pub(crate) async fn a_release_is_ordered_and_awaited<W: Reach>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    for host in 1..=5 {
        desk.isolated(super::isolation(&format!("machine-{host}"), host));
    }
    // Nobody knows yet what became of this one, and nobody will of that one.
    desk.posted(granted(&desk, "machine-6", 6).await);
    desk.posted(granted(&desk, "machine-r", RELAY).await);
    desk.flush(super::PATIENCE).await;
    let worker = releasing(&world.broker(), desk.clone()).await;
    // A pause never stops a release.
    told(&world, &["pause"]).await;
    let text = told(&world, &["release", "2", "--reason", "false alarm", "--by", "bob"]).await;
    assert!(text.contains("release ordered: host 2 (host 2), machine machine-2, isolated since 2"), "{text}");
    assert!(text.contains("released: 1 of 1"), "{text}");
    let one = json(&world, &["release", "--machine", "machine-4"]).await;
    assert_eq!(one, serde_json::json!({ "ordered": [4], "released": [4], "not_released": [], "of_the_relay": [] }));
    let unknown = isolation(&world, &["release", "--machine", "machine-4"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    let all = json(&world, &["release", "--all"]).await;
    assert_eq!(all["released"], serde_json::json!([1, 3, 5, 6]));
    assert_eq!(all["of_the_relay"][0]["machine_id"], "machine-r", "{all}");
    let none = told(&world, &["release", "--all"]).await;
    assert!(none.contains("no machine is isolated"), "{none}");
    assert!(none.contains("not ordered: machine machine-r, isolated by the relay at 2"), "{none}");
    // The ledger does not list it; what the worker says of it is enough.
    let text = told(&world, &["release", "99"]).await;
    assert!(text.contains("which the ledger does not list") && text.contains("released: 1 of 1"), "{text}");

    let seen = worker.await.expect("no panic");
    let hosts: Vec<u64> = seen.iter().map(|host| host.host_id).collect();
    assert_eq!(hosts[..2], [2, 4]);
    assert_eq!(hosts.len(), 7);
    let first = &seen[0];
    assert_eq!(first.hint, Some(Hint::Release { by: "bob".to_owned(), reason: Some("false alarm".to_owned()) }));
    assert_eq!((first.kind, first.actor.as_deref()), (HostKind::Reconcile, Some("bob")));
    serving.stop().await;
    world.close().await;
}

pub(crate) async fn a_release_that_does_not_come_is_an_error<W: Reach>() {
    let world = W::open(&TOPOLOGY).await;
    let serving = serve(&world.broker(), settings());
    let desk = open(&world.broker(), settings()).await;
    desk.isolated(super::isolation("machine-1", 1));
    desk.flush(super::PATIENCE).await;
    let output = isolation(&world, &["release", "1", "7", "--wait", "1s"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(text.contains("not released within 1s: host 1, 7; the orders stay in the queue"), "{text}");
    // Only to order it is no error.
    let ordered = json(&world, &["release", "1", "--wait", "0"]).await;
    assert_eq!(ordered["not_released"], serde_json::json!([1]));
    let health = world.broker().check().await;
    let waiting = health.queues.iter().find(|depth| depth.queue == HOSTS.name && depth.lane == Lane::Urgent);
    assert_eq!(waiting.expect("a lane").ready, 3);
    serving.stop().await;
    world.close().await;
}

#[tokio::test]
async fn orders_that_cannot_be_meant_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("queue");
    let settings = [("BRIDGE_BROKER_URL", format!("sqlite:{}", path.display()))];
    // There is no queue: a new one would swallow the order.
    for arguments in [&["pause"][..], &["list"], &["release", "1"]] {
        let output = command(&settings, arguments).output().await.expect("the binary runs");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("there is no queue at"), "{arguments:?}");
    }
    assert!(!path.exists());
    for (arguments, code) in [
        (&["release"][..], 2),
        (&["release", "1", "--all"], 2),
        (&["release", "0"], 2),
        (&["cap", "5"], 2),
        (&["cap", "20000", "--for", "1h"], 2),
        (&["cap", "5", "--for", "1s"], 78),
        (&["cap", "5", "--for", "9999h"], 78),
        (&["release", "1", "--wait", "soon"], 78),
    ] {
        let output =
            tokio::time::timeout(Duration::from_secs(30), command(&settings, arguments).output()).await.expect("ends");
        assert_eq!(output.expect("the binary runs").status.code(), Some(code), "{arguments:?}");
    }
}
