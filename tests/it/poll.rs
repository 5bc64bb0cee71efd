//! `poll`, the real binary: finds hosts, works them itself when nobody else does, and says by its exit code how it went.

use std::time::Duration;

use defender_bridge::broker::sqlite::{self, Sqlite};
use defender_bridge::broker::{Broker as _, Lane};
use defender_bridge::job::{HOSTS, TOPOLOGY};
use defender_bridge::simulator::Simulator;
use defender_bridge::simulator::cognito::{
    BRAIN_TOKEN, BRAIN_USER, Brain, ENGINEERING_HOST, FINANCE_HOST, HR_HOST, Host, KIOSK_HOST,
};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use jiff::Timestamp;
use tempfile::TempDir;

use super::namespaces::{rabbitmq_settings, rabbitmq_url};
use super::spawned::{self, PATIENCE, Role, Spawned};

/// What `poll` ends with when some hosts are not settled.
const UNSETTLED: i32 = 3;

/// What it ends with when it cannot be used as it is configured.
const CONFIGURATION: i32 = 78;

struct World {
    simulator: Simulator,
    folder: TempDir,
    namespace: Option<String>,
}

impl World {
    /// The story's hosts and machines; the queue is a file.
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { simulator: spawned::simulator().await, folder, namespace: None }
    }

    /// The same; the queue is RabbitMQ.
    async fn on_rabbitmq() -> Self {
        Self { namespace: Some(rabbitmq_settings("poll", &TOPOLOGY).namespace), ..Self::new().await }
    }

    fn brain(&self) -> Brain {
        self.simulator.control().brain()
    }

    fn tag(&self, host: u64, tag: &str) {
        self.brain().add_tag(host, tag, "analyst.one").expect("a new tag");
    }

    fn tags(&self, host: u64) -> Vec<String> {
        self.brain().tags(host).expect("a host of the story")
    }

    /// A role of the binary with everything that host events need, but no tags.
    fn role(&self, name: &'static str) -> Role {
        let url = self.simulator.url();
        let role = Role::new(name).upstream(&url).set_all(&[
            ("COGNITO_BRAIN", url.as_str()),
            ("COGNITO_TOKEN", BRAIN_TOKEN),
            ("BRIDGE_COGNITO_SELF_USER", BRAIN_USER),
            ("BRIDGE_COGNITO_RATE", "1000"),
            ("TENANT_ID", DEMO_TENANT_ID),
            ("APP_ID", DEMO_CLIENT_ID),
            ("APP_SECRET", DEMO_CLIENT_SECRET),
        ]);
        match &self.namespace {
            None => role.sqlite(&self.folder.path().join("queue.sqlite")),
            Some(namespace) => role.set("BRIDGE_BROKER_URL", rabbitmq_url()).set("BRIDGE_BROKER_NAMESPACE", namespace),
        }
    }

    fn poll(&self, arguments: &[&str]) -> Role {
        self.role("poll").arguments(arguments)
    }

    /// Runs to its end; the exit code and everything that was printed.
    async fn polled(&self, arguments: &[&str]) -> (i32, String) {
        ended(self.poll(arguments).spawn()).await
    }

    /// Host events that wait in the file.
    async fn waiting(&self) -> u64 {
        let path = self.folder.path().join("queue.sqlite");
        let broker = Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.expect("the queue opens");
        let health = broker.check().await;
        broker.close().await;
        health.queues.iter().filter(|row| row.queue == HOSTS.name).map(|row| row.ready).sum()
    }
}

async fn ended(mut poll: Spawned) -> (i32, String) {
    let status = poll.ends_within(PATIENCE * 2).await;
    (status.code().expect("no signal"), poll.log())
}

fn has(printed: &str, line: &str) {
    assert!(printed.lines().any(|printed| printed == line), "{line:?} is not in\n{printed}");
}

#[tokio::test]
async fn without_any_argument_the_help_is_shown_and_all_is_well() {
    let world = World::new().await;
    for arguments in [&[][..], &["--verbose"]] {
        let (code, printed) = world.polled(arguments).await;
        assert_eq!(code, 0, "{printed}");
        for flag in ["--tag <TAG>", "--tc <T> <C>", "--blocktag <TAG>", "--unblocktag <TAG>", "--every <DURATION>"] {
            assert!(printed.contains(flag), "{flag} is not in\n{printed}");
        }
    }
    assert_eq!(world.simulator.control().total(), 0);
    let (code, printed) = world.polled(&["--every", "60s"]).await;
    assert_eq!(code, CONFIGURATION, "{printed}");
    assert!(printed.contains("--tag: name a tag"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_found_is_worked_and_then_it_ends() {
    let world = World::new().await;
    world.tag(FINANCE_HOST, "host_context");
    world.tag(HR_HOST, "host_context");
    let (code, printed) = world.polled(&["--tag", "host_context"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "fin-ws-07 (4711) [enrich] settled: enriched");
    has(&printed, "hr-ws-12 (4712) [enrich] settled: enriched");
    has(&printed, "2 hosts found: 2 settled, 0 failed, 0 held, 0 open");
    let tags = world.tags(FINANCE_HOST);
    assert!(tags.contains(&"mde:agent=found".to_owned()) && !tags.contains(&"host_context".to_owned()), "{tags:?}");
    assert!(tags.contains(&"VIP".to_owned()), "{tags:?}");
    let (code, printed) = world.polled(&["--tag", "host_context"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "0 hosts found: 0 settled, 0 failed, 0 held, 0 open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_refused_shows_in_the_exit_code_and_stops_no_other() {
    let world = World::new().await;
    world.tag(FINANCE_HOST, "isolate now");
    world.tag(ENGINEERING_HOST, "isolate now");
    // The flag stands for BRIDGE_TAG_BLOCK.
    let poll = world.poll(&["--blocktag", "isolate now", "--unblocktag", "unblock"]).set("BRIDGE_TAG_BLOCK", "block");
    let (code, printed) = ended(poll.spawn()).await;
    assert_eq!(code, UNSETTLED, "{printed}");
    has(&printed, "fin-ws-07 (4711) [block] settled: isolating");
    has(&printed, "eng-ws-03 (4713) [block] failed: protected");
    has(&printed, "2 hosts found: 1 settled, 1 failed, 0 held, 0 open");
    assert!(printed.contains("1 of 2 hosts are not settled"), "{printed}");
    assert!(world.tags(FINANCE_HOST).contains(&"mde:isolation=isolating".to_owned()));
    assert!(world.tags(ENGINEERING_HOST).contains(&"mde:request-reason=protected".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_count_from_the_threshold_on_and_on_every_page() {
    let world = World::new().await;
    // More than the hundred hosts at which the script stopped reading.
    for id in 1..=130 {
        let host = Host::new(id, &format!("host-{id}"), "192.0.2.201", Timestamp::now());
        world.brain().put_host(Host { threat: 90, certainty: 95, ..host });
    }
    world.brain().put_host(Host {
        threat: 89,
        certainty: 99,
        ..Host::new(999, "below", "192.0.2.202", Timestamp::now())
    });
    world.brain().behave(|behaviour| behaviour.page_cap = Some(50));
    let (code, printed) = world.polled(&["--tc", "90", "95", "--publish-only"]).await;
    assert_eq!(code, 0, "{printed}");
    for id in [1, 100, 101, 130] {
        has(&printed, &format!("host-{id} ({id}) [score] published: normal"));
    }
    has(&printed, "130 hosts found, 130 events published, 0 put off");
    assert_eq!(world.waiting().await, 130);
    // While nobody works them they do not become more.
    let (code, printed) = world.polled(&["--tc", "90", "95", "--publish-only"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "130 hosts found, 0 events published, 130 put off");
    assert_eq!(world.waiting().await, 130);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_service_it_only_publishes() {
    let world = World::new().await;
    // The service itself does not search.
    let serve = world.role("serve").set_all(&[
        ("BRIDGE_TAG_ENRICH", "host_context"),
        ("BRIDGE_SWEEP_INTERVAL", "0"),
        ("BRIDGE_FEED_INTERVAL", "0"),
    ]);
    let mut serve = serve.start().await;
    world.tag(FINANCE_HOST, "host_context");
    let (code, printed) = world.polled(&["--tag", "host_context", "--blocktag", "block"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "fin-ws-07 (4711) [enrich] published: normal");
    has(&printed, "1 hosts found, 1 events published, 0 put off");
    assert!(printed.contains("neither isolate nor release for this tag"), "{printed}");
    serve.reaches("bridge_job_duration_seconds_count{job=\"host\",outcome=\"enriched\"}", 1.0).await;
    assert!(world.tags(FINANCE_HOST).contains(&"mde:agent=found".to_owned()));
    serve.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_ever_it_finds_what_comes_and_stops_when_told() {
    let world = World::new().await;
    let mut poll = world.poll(&["--tag", "host_context", "--every", "1s"]).spawn();
    world.tag(FINANCE_HOST, "host_context");
    poll.logged("fin-ws-07 (4711) [enrich] settled: enriched").await;
    world.tag(KIOSK_HOST, "host_context");
    poll.logged("(4717) [enrich] settled: enriched").await;
    poll.stop().await;
    let printed = poll.log();
    assert_eq!(printed.matches("[enrich] settled").count(), 2, "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_settled_in_time_stays_in_the_queue() {
    let world = World::new().await;
    world.tag(FINANCE_HOST, "host_context");
    world.simulator.control().fail_rate("hosts/{id}", defender_bridge::simulator::Fault::refuse(500), 1.0, 1);
    let (code, printed) = world.polled(&["--tag", "host_context", "--wait", "10s"]).await;
    assert_eq!(code, UNSETTLED, "{printed}");
    has(&printed, "1 hosts found: 0 settled, 0 failed, 0 held, 1 open");
    world.simulator.control().clear_faults();
    assert!(world.tags(FINANCE_HOST).contains(&"host_context".to_owned()));
    let (code, printed) = world.polled(&["--tag", "host_context"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "fin-ws-07 (4711) [enrich] settled: enriched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brain_that_is_not_there_is_an_error_in_words() {
    let world = World::new().await;
    let nobody = format!("http://127.0.0.1:{}", spawned::closed_port());
    let poll = world.poll(&["--tag", "host_context", "--publish-only"]).set("COGNITO_BRAIN", nobody);
    let (code, printed) = ended(poll.spawn()).await;
    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("Cognito does not show its hosts"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn on_rabbitmq_it_works_while_nobody_else_does() {
    let world = World::on_rabbitmq().await;
    world.tag(FINANCE_HOST, "host_context");
    let (code, printed) = world.polled(&["--tag", "host_context"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "fin-ws-07 (4711) [enrich] settled: enriched");
    let worker = world.role("worker").set_all(&[
        ("BRIDGE_TAG_ENRICH", "host_context"),
        ("BRIDGE_SWEEP_INTERVAL", "0"),
        ("BRIDGE_FEED_INTERVAL", "0"),
    ]);
    let mut worker = worker.start().await;
    world.tag(HR_HOST, "host_context");
    let (code, printed) = world.polled(&["--tag", "host_context"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "hr-ws-12 (4712) [enrich] published: normal");
    worker.reaches("bridge_job_duration_seconds_count{job=\"host\",outcome=\"enriched\"}", 1.0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn of_two_workers_one_searches_and_when_it_is_killed_the_other_does() {
    let world = World::on_rabbitmq().await;
    let role = || {
        world.role("worker").set_all(&[
            ("BRIDGE_TAG_ENRICH", "host_context"),
            ("BRIDGE_SWEEP_INTERVAL", "1s"),
            ("BRIDGE_FEED_INTERVAL", "0"),
        ])
    };
    let (one, other) = tokio::join!(role().start(), role().start());
    let searches = "bridge_searches_total{search=\"sweep\",outcome=\"ok\"}";
    let of = async |worker: &Spawned| worker.metric(searches).await;
    let end = tokio::time::Instant::now() + PATIENCE;
    while of(&one).await + of(&other).await < 5.0 {
        assert!(tokio::time::Instant::now() < end, "nobody sweeps");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (searching, mut idle) = if of(&one).await > 0.0 { (one, other) } else { (other, one) };
    assert_eq!(of(&idle).await, 0.0, "both sweep");
    let swept = of(&searching).await as u64;
    let listed = world.simulator.control().calls("hosts");
    assert!((swept..=swept + 2).contains(&listed), "{listed} pages for {swept} sweeps");
    searching.signal("-KILL");
    world.tag(FINANCE_HOST, "host_context");
    idle.reaches("bridge_job_duration_seconds_count{job=\"host\",outcome=\"enriched\"}", 1.0).await;
    assert!(of(&idle).await > 0.0);
    assert_eq!(world.brain().tags(FINANCE_HOST).map(|tags| tags.contains(&"mde:agent=found".to_owned())), Some(true));
    idle.stop().await;
}

/// The lanes are those of the sweep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containment_is_published_into_its_own_lane() {
    let world = World::new().await;
    world.tag(FINANCE_HOST, "block");
    let (code, printed) = world.polled(&["--blocktag", "block", "--publish-only"]).await;
    assert_eq!(code, 0, "{printed}");
    has(&printed, "fin-ws-07 (4711) [block] published: urgent");
    let path = world.folder.path().join("queue.sqlite");
    let broker = Sqlite::open(sqlite::Settings { path, topology: &TOPOLOGY }).await.expect("the queue opens");
    let mut urgent = broker.receive(&HOSTS, Lane::Urgent, 1).await.expect("a receiver");
    let delivery = tokio::time::timeout(PATIENCE, urgent.next()).await.expect("an event").expect("the queue is open");
    assert_eq!(delivery.message.key.as_deref(), Some("host-4711"));
    drop(delivery);
    broker.close().await;
}
