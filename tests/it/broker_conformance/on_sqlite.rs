//! The suite on SQLite, and what only an embedded queue can be asked: processes that die, processes beside each other.
//! The other process is this test binary once more, running one ignored test that is told what to do by environment
//! variables.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use defender_bridge::broker::sqlite::{Settings, Sqlite};
use defender_bridge::broker::{Broker, BrokerError, Lane, Queue, Settlement, Topology};
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    ASKS, Died, PATIENCE, PAUSE, TEST_TOPOLOGY, WORK, World, ask, conformance, keyed, next, nothing, publish, receive,
    reply, run, settle, text,
};

conformance!(OnSqlite());

/// A file in a folder of its own.
pub(crate) struct OnSqlite {
    topology: &'static Topology,
    broker: Sqlite,
    pub(crate) folder: TempDir,
}

pub(crate) fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("queue.db")
}

async fn open(path: &Path, topology: &'static Topology) -> Sqlite {
    Sqlite::open(Settings { path: path.to_owned(), topology }).await.expect("opened")
}

impl World for OnSqlite {
    type B = Sqlite;

    async fn open(topology: &'static Topology) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = open(&path(&folder), topology).await;
        Self { topology, broker, folder }
    }

    fn broker(&self) -> Sqlite {
        self.broker.clone()
    }

    async fn beside(&self) -> Sqlite {
        open(&path(&self.folder), self.topology).await
    }

    async fn receiving(&self, count: usize) -> Vec<Sqlite> {
        // A case that closed the first process begins another one.
        let link = if self.broker.check().await.connected { self.broker() } else { self.beside().await };
        vec![link; count]
    }

    async fn dying_worker(&self, queue: &'static Queue, lane: Lane, done: usize, held: usize) -> Died {
        let path = path(&self.folder);
        tokio::task::spawn_blocking(move || {
            let task = format!("work {} {} {done} {held}", queue.name, lane.as_str());
            let mut victim = Victim::start(&path, &task);
            let mut died = Died { done: Vec::new(), held: Vec::new() };
            while died.done.len() < done || died.held.len() < held {
                let (what, id) = victim.says().expect("the child goes on");
                if what == "done" { &mut died.done } else { &mut died.held }.push(id);
            }
            victim.kill();
            died
        })
        .await
        .expect("no panic")
    }

    async fn close(self) {
        self.broker.close().await;
    }
}

/// The case that, told what to do by these variables, is the child of all the others.
const VICTIMS_CASE: &str = "broker_conformance::on_sqlite::what_a_killed_publisher_was_told_is_there";

/// What the child is told: the file, and what to do with it.
const CHILD_PATH: &str = "TEST_CHILD_QUEUE";
const CHILD_TASK: &str = "TEST_CHILD_TASK";

/// Another process that has the queue's file open.
struct Victim {
    child: Child,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Victim {
    fn start(path: &Path, task: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", VICTIMS_CASE, "--nocapture"])
            .env(CHILD_PATH, path)
            .env(CHILD_TASK, task)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, output }
    }

    /// The next thing the child did, and with which message; what the test harness prints is passed over.
    fn says(&mut self) -> Option<(String, Uuid)> {
        loop {
            let line = self.output.next()?.expect("text");
            if let Some((what, id)) = line.strip_prefix('@').and_then(|said| said.split_once(' ')) {
                return Some((what.to_owned(), id.parse().expect("an id")));
            }
        }
    }

    /// SIGKILL. What it said before may still be read.
    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(what: &str, id: Uuid) {
    let mut output = std::io::stdout().lock();
    // The harness leaves its line open.
    write!(output, "\n@{what} {id}\n").and_then(|()| output.flush()).expect("said");
}

/// Does what it is told until it is killed.
async fn be_the_victim(path: &str, task: &str) {
    let broker = open(Path::new(path), &TEST_TOPOLOGY).await;
    let words: Vec<_> = task.split(' ').collect();
    match words[..] {
        ["work", queue, lane, done, held] => {
            let queue = TEST_TOPOLOGY.queues.iter().find(|known| known.name == queue).expect("a known queue");
            let lane = if lane == "urgent" { Lane::Urgent } else { Lane::Normal };
            let held: usize = held.parse().expect("a number");
            let prefetch = u16::try_from(held.max(1)).expect("a small number");
            let mut receiver = broker.receive(queue, lane, prefetch).await.expect("receiving");
            for _ in 0..done.parse::<usize>().expect("a number") {
                let delivery = next(&mut receiver).await;
                say("done", super::done(delivery).await);
            }
            let mut hands = Vec::new();
            for _ in 0..held {
                let delivery = next(&mut receiver).await;
                say("held", delivery.message.id);
                hands.push(delivery);
            }
            std::future::pending::<()>().await;
        }
        ["publish"] => {
            let publishers = (0..8).map(|_| async {
                loop {
                    say("published", publish(&broker, &WORK, text("from a dying process")).await);
                }
            });
            futures_util::future::join_all(publishers).await;
        }
        _ => panic!("an unknown task: {task}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_publisher_was_told_is_there() {
    if let (Ok(path), Ok(task)) = (std::env::var(CHILD_PATH), std::env::var(CHILD_TASK)) {
        be_the_victim(&path, &task).await;
        panic!("the victim outlived its task");
    }
    run(async {
        let world = OnSqlite::open(&TEST_TOPOLOGY).await;
        let file = path(&world.folder);
        let mut confirmed = tokio::task::spawn_blocking(move || {
            let mut victim = Victim::start(&file, "publish");
            let mut confirmed: Vec<_> = (0..200).map(|_| victim.says().expect("the child goes on").1).collect();
            victim.kill();
            while let Some((_, id)) = victim.says() {
                confirmed.push(id);
            }
            confirmed
        })
        .await
        .expect("no panic");
        let mut receiver = receive(&world.broker(), &WORK, 100).await;
        while !confirmed.is_empty() {
            let id = super::done(next(&mut receiver).await).await;
            confirmed.retain(|other| *other != id);
        }
        world.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_consumer_is_refused_until_the_first_has_gone() {
    run(async {
        let world = OnSqlite::open(&TEST_TOPOLOGY).await;
        let _receiver = receive(&world.broker(), &WORK, 1).await;
        let other = world.beside().await;
        let refused = other.receive(&WORK, Lane::Normal, 1).await;
        let Err(BrokerError::InUse(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("RabbitMQ"), "{text}");
        assert!(!BrokerError::InUse(text).is_transient());

        // Everything else it may.
        publish(&other, &WORK, self::text("beside")).await;
        other.retain(PAUSE, self::text("paused").body).await.expect("retained");
        other.dead_letters(&Default::default()).await.expect("listed");

        world.broker().close().await;
        let mut receiver = receive(&other, &WORK, 1).await;
        super::done(next(&mut receiver).await).await;
        other.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumer_frees_the_queue_for_a_waiting_one() {
    run(async {
        let world = OnSqlite::open(&TEST_TOPOLOGY).await;
        for n in 0..6 {
            publish(&world.broker(), &WORK, keyed(&format!("host-{}", n % 2))).await;
        }
        let file = path(&world.folder);
        let mut victim = tokio::task::spawn_blocking(move || {
            let mut victim = Victim::start(&file, "work work normal 1 2");
            for _ in 0..3 {
                victim.says().expect("the child goes on");
            }
            victim
        })
        .await
        .expect("no panic");
        assert!(matches!(world.broker().receive(&WORK, Lane::Normal, 1).await, Err(BrokerError::InUse(_))));
        victim.kill();
        let mut receiver = receive(&world.broker(), &WORK, 10).await;
        let mut attempts = Vec::new();
        for _ in 0..5 {
            let delivery = next(&mut receiver).await;
            attempts.push(delivery.attempt);
            super::done(delivery).await;
        }
        attempts.sort_unstable();
        assert_eq!(attempts, [1, 1, 1, 2, 2]);
        nothing(&mut receiver).await;
        world.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begun_in_an_idle_process_sees_what_others_write() {
    run(async {
        let world = OnSqlite::open(&TEST_TOPOLOGY).await;
        let other = world.beside().await;
        // Longer than its housekeeping: nothing wakes its thread any more but a command.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let mut watcher = other.watch(PAUSE).await.expect("watching");
        assert!(!watcher.has_changed().expect("open"), "what was there at the beginning is no change");
        world.broker().retain(PAUSE, text("paused").body).await.expect("retained");
        let seen = tokio::time::timeout(PATIENCE, watcher.wait_for(Option::is_some)).await;
        assert_eq!(seen.expect("in time").expect("open").as_deref(), Some(&b"paused"[..]));
        other.close().await;
        world.close().await;
    })
    .await;
}

/// Whether the file or what stands beside it holds `needle`.
fn on_disk(folder: &TempDir, needle: &[u8]) -> bool {
    std::fs::read_dir(folder.path()).expect("listed").any(|entry| {
        let content = std::fs::read(entry.expect("listed").path()).expect("read");
        content.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_no_trace_on_the_disk() {
    run(async {
        let world = OnSqlite::open(&TEST_TOPOLOGY).await;
        let mut receiver = receive(&world.broker(), &ASKS, 4).await;
        let mut message = text(&"planted-request ".repeat(1_000));
        message.headers.insert("note".to_owned(), "planted-header".to_owned());
        let asked = ask(&world.beside().await, message, PATIENCE);
        let delivery = next(&mut receiver).await;
        assert!(on_disk(&world.folder, b"planted-request"), "the test looks in the wrong place");
        settle(delivery, reply("planted-reply")).await;
        asked.await.expect("no panic").expect("answered");
        let given_up = ask(&world.broker(), text("planted-request"), Duration::from_millis(300));
        let held = next(&mut receiver).await;
        assert!(given_up.await.expect("no panic").is_err());
        settle(held, Settlement::GiveBack).await;
        // The thread empties its log within seconds, with no close.
        super::eventually("nothing is left", || async {
            !["planted-request", "planted-header", "planted-reply"]
                .iter()
                .any(|needle| on_disk(&world.folder, needle.as_bytes()))
        })
        .await;
        world.close().await;
    })
    .await;
}
