//! SIGTERM to each role under load: what was accepted is answered, what was taken and not worked goes to another worker,
//! and the process ends in time.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use defender_bridge::simulator::scenario::{C2_ADDRESS, DROPPED_SHA1, PHISHING_DOMAIN};
use defender_bridge::simulator::{Fault, Simulator};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::breakable::Cable;
use super::bridge::{Answer, client};
use super::collector::Collector;
use super::namespaces::rabbitmq_url;
use super::spawned::{self, Deployment, PATIENCE, Role, Spawned, ask};

const QUESTION: &[(&str, &str)] = &[("domain", PHISHING_DOMAIN), ("sha1", DROPPED_SHA1), ("ip", C2_ADDRESS)];

/// E20.
const NOT_IN_TIME: &str = "The request was not finished in time; the answer may be incomplete.";
/// E21.
const NOT_PROCESSED: &str = "The relay could not process the request.";

/// What the end of a process may take beyond its grace period: the last spans, the last bytes, a busy machine.
const SLACK: Duration = Duration::from_secs(8);

/// `count` callers at once, each on a connection of its own.
fn crowd(ingress: &Spawned, count: usize) -> JoinSet<Answer> {
    let url = ingress.url("/observe/observables");
    let mut callers = JoinSet::new();
    for _ in 0..count {
        let url = url.clone();
        callers.spawn(async move { ask(&client(), &url, QUESTION).await });
    }
    callers
}

fn assert_full(answer: &Answer, sightings: usize) {
    assert_eq!(answer.errors(), [], "{}", answer.text);
    assert_eq!(answer.sightings().len(), sightings);
}

fn assert_fails(answer: &Answer, message: &str) {
    let errors = answer.errors();
    assert!(errors.len() == 1 && errors[0].1 == message, "{}", answer.text);
}

/// How many sightings a full answer has. The worker has its token then, and the simulator its latency.
async fn warm_up(ingress: &Spawned, simulator: &Simulator) -> usize {
    let answer = ingress.observe(QUESTION).await;
    assert_eq!(answer.errors(), [], "{}", answer.text);
    let sightings = answer.sightings().len();
    assert!(sightings > 0);
    simulator.control().set_latency(Duration::from_millis(200));
    simulator.control().forget();
    sightings
}

/// Waits until nobody listens at the ingress any more.
async fn refuses_connections(ingress: &Spawned) {
    ingress.logged("stopping").await;
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(ingress.ingress()).await.is_ok() {
        assert!(Instant::now() < end, "it still takes connections");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn serve_answers_what_it_accepted_and_takes_no_more() {
    let simulator = spawned::simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
    let mut serve = role.set("BRIDGE_WORKER_CONCURRENCY", "8").start().await;
    let sightings = warm_up(&serve, &simulator).await;

    let callers = crowd(&serve, 60);
    serve.reaches("bridge_queue_ready", 40.0).await;
    serve.signal("-TERM");
    refuses_connections(&serve).await;
    let in_flight = simulator.control().at_work();
    let ready = client().get(serve.admin_url("/readyz")).send().await.expect("the admin port stays to the end");
    assert_eq!((ready.status().as_u16(), ready.text().await.unwrap().as_str()), (503, "stopping\n"));
    let answers = callers.join_all().await;
    assert_eq!(answers.len(), 60);
    for answer in &answers {
        assert_full(answer, sightings);
    }
    println!("60 answers in full after SIGTERM, {in_flight} calls were under way when the listener closed");
    let status = serve.ends_within(PATIENCE + SLACK).await;
    assert!(status.success(), "{status}");
    assert!(!serve.log().contains("\"level\":\"ERROR\""), "{}", serve.log());
}

/// Makes connections with one request each until nobody listens any more: how many were answered, how many cut off.
async fn knocks(address: SocketAddr) -> (u32, u32) {
    let (mut answered, mut cut) = (0, 0);
    loop {
        let mut connection = match TcpStream::connect(address).await {
            Ok(connection) => connection,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return (answered, cut),
            Err(_) => {
                cut += 1;
                continue;
            }
        };
        let mut answer = Vec::new();
        let asked = connection.write_all(b"POST /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        match asked {
            Ok(()) if connection.read_to_end(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 200 ") => {
                answered += 1;
            }
            _ => cut += 1,
        }
    }
}

/// Connections that the system had taken for the process when it was told to stop are served too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_cut_off_by_the_stop() {
    let simulator = spawned::simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
    let mut serve = role.start().await;
    let callers: JoinSet<_> = (0..32).map(|_| knocks(serve.ingress())).collect();
    serve.reaches("bridge_request_duration_seconds_count{route=\"/version\"", 1_000.0).await;
    serve.signal("-TERM");
    let (answered, cut) = callers.join_all().await.into_iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!("{answered} connections answered, {cut} cut off");
    // Between the last look for connections and the end of the listener there is a moment that no program can close.
    assert!(cut <= 1, "{cut} of {answered}");
    assert!(serve.ends_within(PATIENCE).await.success());
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn an_ingress_answers_what_it_accepted_and_takes_no_more() {
    let simulator = spawned::simulator().await;
    let deployment = Deployment::new(&simulator.url()).set("BRIDGE_WORKER_CONCURRENCY", "8");
    let (mut ingress, [mut worker]) = tokio::join!(deployment.ingress(), deployment.workers::<1>());
    let sightings = warm_up(&ingress, &simulator).await;

    let callers = crowd(&ingress, 40);
    simulator.control().reached("hunting", 1).await;
    ingress.signal("-TERM");
    refuses_connections(&ingress).await;
    for answer in callers.join_all().await {
        assert_full(&answer, sightings);
    }
    let status = ingress.ends_within(PATIENCE + SLACK).await;
    assert!(status.success(), "{status}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_worker_that_stops_hands_its_jobs_to_another_at_no_cost() {
    let simulator = spawned::simulator().await;
    let collector = Collector::start().await;
    let deployment = Deployment::new(&simulator.url())
        .set("BRIDGE_WORKER_CONCURRENCY", "32")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    let (mut ingress, [mut first, mut second]) = tokio::join!(deployment.ingress(), deployment.workers::<2>());
    let sightings = warm_up(&ingress, &simulator).await;

    let callers = crowd(&ingress, 160);
    simulator.control().reached("hunting", 2).await;
    let in_hands = first.metric("bridge_jobs_in_hands").await;
    let before = first.jobs_worked().await;
    first.signal("-TERM");
    let status = first.ends_within(PATIENCE + SLACK).await;
    assert!(status.success(), "{status}");
    for answer in callers.join_all().await {
        assert_full(&answer, sightings);
    }
    let second_worked = second.jobs_worked().await;
    println!("stopped with {in_hands} jobs in hands after {before}; the other one worked {second_worked}");
    ingress.stop().await;
    second.stop().await;
    let attempts: Vec<_> = collector
        .spans()
        .into_iter()
        .filter(|span| span.get("messaging.operation.name") == "process")
        .map(|span| span.get("messaging.message.attempt").to_owned())
        .collect();
    assert_eq!(attempts.len(), 161);
    assert!(attempts.iter().all(|attempt| attempt == "1"), "{attempts:?}");
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn callers_still_waiting_at_the_end_of_a_short_grace_are_answered() {
    let simulator = spawned::simulator().await;
    let deployment = Deployment::new(&simulator.url()).set("BRIDGE_SHUTDOWN_GRACE", "3s");
    let mut ingress = deployment.ingress().await;
    // No worker: nobody will answer.
    let callers = crowd(&ingress, 20);
    ingress.reaches("bridge_queue_ready", 20.0).await;
    ingress.signal("-TERM");
    for answer in callers.join_all().await {
        assert_fails(&answer, NOT_IN_TIME);
    }
    let status = ingress.ends_within(Duration::from_secs(3) + SLACK).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn serve_answers_whom_it_keeps_waiting_before_a_short_grace_ends() {
    let simulator = spawned::simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let role = Role::new("serve").sqlite(&folder.path().join("queue")).upstream(&simulator.url());
    let mut serve = role.set("BRIDGE_SHUTDOWN_GRACE", "3s").start().await;
    simulator.control().fail_next("token", Fault::Hang, 1_000);
    let callers = crowd(&serve, 20);
    serve.reaches("bridge_jobs_in_hands", 20.0).await;
    let told = Instant::now();
    serve.signal("-TERM");
    for answer in callers.join_all().await {
        assert_fails(&answer, NOT_IN_TIME);
    }
    let status = serve.ends_within(Duration::from_secs(3) + SLACK).await;
    println!("ended {:?} after SIGTERM with a grace of 3 s", told.elapsed());
    assert!(status.success(), "{status}");
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn a_second_signal_ends_a_worker_at_once_and_gives_its_jobs_back() {
    let simulator = spawned::simulator().await;
    let collector = Collector::start().await;
    let deployment = Deployment::new(&simulator.url()).set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    let (mut ingress, [mut first]) = tokio::join!(deployment.ingress(), deployment.workers::<1>());
    let sightings = warm_up(&ingress, &simulator).await;
    simulator.control().fail_next("hunting", Fault::Hang, 1_000);

    let callers = crowd(&ingress, 10);
    first.reaches("bridge_jobs_in_hands", 10.0).await;
    simulator.control().reached("hunting", 1).await;
    first.signal("-TERM");
    first.logged("stopping").await;
    simulator.control().clear_faults();
    let told = Instant::now();
    first.signal("-TERM");
    // Far less than its grace period.
    let status = first.ends_within(SLACK).await;
    println!("ended {:?} after the second signal with {status}", told.elapsed());
    let [mut second] = deployment.workers::<1>().await;
    for answer in callers.join_all().await {
        assert_full(&answer, sightings);
    }
    ingress.stop().await;
    second.stop().await;
    let spans = collector.spans();
    let outcomes = |outcome: &str| spans.iter().filter(|span| span.get("job.outcome") == outcome).count();
    assert_eq!((outcomes("given_back"), outcomes("ok")), (10, 11));
    assert!(spans.iter().all(|span| ["", "1"].contains(&span.get("messaging.message.attempt"))));
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn processes_stop_in_time_while_the_broker_is_away() {
    let simulator = spawned::simulator().await;
    let mut cable = Cable::lay(&rabbitmq_url()).await;
    let deployment = Deployment::at(cable.url(), &simulator.url()).set("BRIDGE_SHUTDOWN_GRACE", "10s");
    let (mut ingress, [mut worker]) = tokio::join!(deployment.ingress(), deployment.workers::<1>());
    warm_up(&ingress, &simulator).await;
    simulator.control().fail_next("hunting", Fault::Hang, 1_000);
    let callers = crowd(&ingress, 5);
    simulator.control().reached("hunting", 1).await;
    cable.cut().await;
    ingress.logged("link to the broker was lost").await;
    worker.logged("link to the broker was lost").await;
    let told = Instant::now();
    ingress.signal("-TERM");
    worker.signal("-TERM");
    for answer in callers.join_all().await {
        assert_fails(&answer, NOT_IN_TIME);
    }
    let limit = Duration::from_secs(10) + SLACK;
    let (one, other) = tokio::join!(ingress.ends_within(limit), worker.ends_within(limit));
    println!("ingress and worker ended within {:?} with {one} and {other}", told.elapsed());
    assert!(one.success() && other.success(), "{one} {other}");
}

#[tokio::test]
#[ignore = "needs RabbitMQ"]
async fn a_broker_that_went_and_came_back_is_only_noticed_by_those_who_came_meanwhile() {
    let simulator = spawned::simulator().await;
    let mut cable = Cable::lay(&rabbitmq_url()).await;
    let deployment = Deployment::at(cable.url(), &simulator.url()).set("BRIDGE_RELAY_DEADLINE", "10s");
    let (mut ingress, [mut worker]) = tokio::join!(deployment.ingress(), deployment.workers::<1>());
    let sightings = warm_up(&ingress, &simulator).await;
    cable.cut().await;
    ingress.logged("link to the broker was lost\",\"link.role\":\"publishing").await;
    let refused = ingress.observe(QUESTION).await.errors();
    // A request that was sent at the very moment of the loss waits for the link until its deadline.
    let fits = refused.len() == 1 && [NOT_PROCESSED, NOT_IN_TIME].contains(&refused[0].1.as_str());
    assert!(fits, "{refused:?}");
    cable.mend().await;
    assert_full(&ingress.observe(QUESTION).await, sightings);
    ingress.stop().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_process_that_still_waits_for_its_broker_stops_when_told() {
    let nobody = spawned::closed_port();
    let mut worker = Role::new("worker").set("BRIDGE_BROKER_URL", format!("amqp://127.0.0.1:{nobody}/%2f")).spawn();
    worker.logged("no link to the broker").await;
    worker.signal("-TERM");
    // Less than it would go on trying.
    let status = worker.ends_within(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}\n{}", worker.log());
}
