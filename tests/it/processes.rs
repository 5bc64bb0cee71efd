//! One ingress and three workers on RabbitMQ, each a process of the real binary: the load is shared, and what is killed
//! with SIGKILL, worker or broker, costs no caller its answer.

use std::collections::BTreeMap;
use std::time::Duration;

use defender_bridge::simulator::Simulator;
use defender_bridge::simulator::scenario::{
    BENIGN_ADDRESS, BENIGN_DOMAIN, BENIGN_SHA1, C2_ADDRESS, C2_ADDRESS_V6, C2_DOMAIN, DOWNLOAD_DOMAIN, DROPPED_MD5,
    DROPPED_SHA1, DROPPED_SHA256, GHOST_SHA1, PHISHING_DOMAIN, STAGE2_SHA1, UNSEEN_ADDRESS, UNSEEN_DOMAIN, UNSEEN_SHA1,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::breakable::{Node, TURN, Witness};
use super::bridge::{Answer, client};
use super::namespaces::rabbitmq_url;
use super::spawned::{self, Deployment, PATIENCE, Spawned, ask};

/// Callers at once.
const CALLERS: usize = 200;

/// What an answer may take: the product's default deadline.
const DEADLINE: Duration = Duration::from_secs(50);

/// What a busy machine may add to an answer that comes at the deadline: callers, ingress, workers and broker share it.
const SLACK: Duration = Duration::from_secs(30);

/// How soon the service is back after its broker, counted from when the broker works, as a [`Witness`] sees it.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// What callers ask about, in turn.
const QUESTIONS: [&[(&str, &str)]; 6] = [
    &[("domain", PHISHING_DOMAIN), ("sha1", DROPPED_SHA1), ("ip", C2_ADDRESS)],
    &[("sha256", DROPPED_SHA256), ("ipv6", C2_ADDRESS_V6)],
    &[("md5", DROPPED_MD5), ("domain", BENIGN_DOMAIN), ("ip", UNSEEN_ADDRESS)],
    &[("sha1", STAGE2_SHA1), ("sha1", GHOST_SHA1), ("domain", C2_DOMAIN)],
    &[("ip", BENIGN_ADDRESS), ("sha1", BENIGN_SHA1), ("domain", DOWNLOAD_DOMAIN)],
    &[("domain", UNSEEN_DOMAIN), ("sha1", UNSEEN_SHA1)],
];

/// What an answer says: the errors, and for each value how many sightings it has.
type Said = (Vec<(String, String, String)>, BTreeMap<String, usize>);

fn said(answer: &Answer) -> Said {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let mut sightings = BTreeMap::new();
    for sighting in answer.sightings() {
        let value = sighting["observables"][0]["value"].as_str().expect("a value").to_owned();
        *sightings.entry(value).or_default() += 1;
    }
    (answer.errors(), sightings)
}

/// The answers to all questions, asked one after the other of a service at rest.
async fn full_answers(ingress: &Spawned) -> Vec<Said> {
    let mut answers = Vec::new();
    for question in QUESTIONS {
        let answer = said(&ingress.observe(question).await);
        assert_eq!(answer.0, [], "{question:?}");
        answers.push(answer);
    }
    assert!(answers[..5].iter().all(|(_, sightings)| !sightings.is_empty()), "{answers:?}");
    assert!(answers[5].1.is_empty(), "{answers:?}");
    answers
}

/// An answer with the number of its question and the time it took.
type Answered = (usize, Said, Duration);

/// Asks `count` questions at once.
fn crowd(url: &str, count: usize) -> JoinSet<Answered> {
    let client = client();
    let mut callers = JoinSet::new();
    for caller in 0..count {
        let (client, url, question) = (client.clone(), url.to_owned(), caller % QUESTIONS.len());
        callers.spawn(async move {
            let asked = Instant::now();
            let answer = ask(&client, &url, QUESTIONS[question]).await;
            (question, said(&answer), asked.elapsed())
        });
    }
    callers
}

fn longest(answers: &[Answered]) -> Duration {
    answers.iter().map(|(_, _, took)| *took).max().unwrap_or_default()
}

/// One ingress and three workers with few enough slots that a crowd has to wait in the queue.
async fn deployment(broker: &str, simulator: &Simulator) -> (Spawned, [Spawned; 3]) {
    let deployment = Deployment::at(broker, &simulator.url()).set("BRIDGE_WORKER_CONCURRENCY", "16");
    let (ingress, workers) = tokio::join!(deployment.ingress(), deployment.workers());
    (ingress, workers)
}

async fn shares(workers: &[Spawned]) -> Vec<u64> {
    futures_util::future::join_all(workers.iter().map(Spawned::jobs_worked)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_crowd_is_shared_by_all_workers() {
    let _turn = TURN.lock().await;
    let simulator = spawned::simulator().await;
    let (mut ingress, mut workers) = deployment(&rabbitmq_url(), &simulator).await;
    let expected = full_answers(&ingress).await;
    let before = shares(&workers).await;
    simulator.control().set_latency(Duration::from_millis(200));

    let answers = crowd(&ingress.url("/observe/observables"), CALLERS).join_all().await;

    for (question, answer, took) in &answers {
        assert_eq!(answer, &expected[*question], "{:?}", QUESTIONS[*question]);
        assert!(*took < DEADLINE + SLACK, "{took:?}");
    }
    let shares: Vec<u64> = shares(&workers).await.iter().zip(before).map(|(now, before)| now - before).collect();
    println!("{CALLERS} requests, longest {:?}; jobs of each worker: {shares:?}", longest(&answers));
    assert_eq!(shares.iter().sum::<u64>(), CALLERS as u64, "{shares:?}");
    // A fair share is a third; a tenth is what no worker that takes part falls below.
    assert!(shares.iter().all(|share| *share >= CALLERS as u64 / 10), "{shares:?}");
    ingress.stop().await;
    for worker in &mut workers {
        worker.stop().await;
    }
}

/// So Defender is asked once, not once by each worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn what_comes_one_by_one_is_worked_by_one_worker() {
    let _turn = TURN.lock().await;
    let simulator = spawned::simulator().await;
    let deployment = Deployment::at(&rabbitmq_url(), &simulator.url())
        .set("BRIDGE_WORKER_CONCURRENCY", "16")
        .set("BRIDGE_ANSWER_TTL", "10m");
    let (mut ingress, workers) = tokio::join!(deployment.ingress(), deployment.workers::<3>());
    let mut workers = Vec::from(workers);
    let jobs = 3 * QUESTIONS.len() as u64;
    let expected = full_answers(&ingress).await;
    let calls = simulator.control().calls("hunting");
    for _ in 1..3 {
        assert_eq!(full_answers(&ingress).await, expected);
    }
    assert_eq!(
        simulator.control().calls("hunting"),
        calls,
        "what the first answers brought is kept where it is asked for"
    );
    let first = shares(&workers).await;
    let busy = first.iter().position(|share| *share == jobs).unwrap_or_else(|| panic!("all in one: {first:?}"));
    assert_eq!(first.iter().sum::<u64>(), jobs, "{first:?}");

    // The next one takes its place.
    let mut gone = workers.remove(busy);
    gone.signal("-KILL");
    gone.ends_within(PATIENCE).await;
    for _ in 0..3 {
        assert_eq!(full_answers(&ingress).await, expected);
    }
    let mut then = shares(&workers).await;
    then.sort_unstable();
    assert_eq!(then, [0, jobs]);
    ingress.stop().await;
    for worker in &mut workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_killed_worker_costs_no_caller_its_answer() {
    let _turn = TURN.lock().await;
    let simulator = spawned::simulator().await;
    let (ingress, mut workers) = deployment(&rabbitmq_url(), &simulator).await;
    let expected = full_answers(&ingress).await;
    simulator.control().set_latency(Duration::from_millis(200));
    simulator.control().forget();

    let callers = crowd(&ingress.url("/observe/observables"), CALLERS);
    simulator.control().reached("hunting", 4).await;
    let in_hands = workers[0].metric("bridge_jobs_in_hands").await;
    let worked = workers[0].jobs_worked().await;
    assert!(in_hands > 0.0, "it was killed at rest");
    workers[0].signal("-KILL");
    let status = workers[0].ends_within(PATIENCE).await;
    assert!(!status.success());

    let answers = callers.join_all().await;
    for (question, answer, took) in &answers {
        assert_eq!(answer, &expected[*question], "{:?}", QUESTIONS[*question]);
        assert!(*took < DEADLINE + SLACK, "{took:?}");
    }
    println!(
        "killed with {in_hands} jobs in hands after {worked}; the others worked {:?}; longest answer {:?}",
        shares(&workers[1..]).await,
        longest(&answers)
    );
}

async fn worked(workers: &[Spawned]) -> u64 {
    shares(workers).await.into_iter().sum()
}

/// What a caller may read when the broker was gone: E20, E21, busy.
const BROKER_ERRORS: [&str; 3] = [
    "The request was not finished in time; the answer may be incomplete.",
    "The relay could not process the request.",
    "The relay is busy. Please, try again later.",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_killed_broker_costs_no_caller_an_answer_and_the_service_comes_back_with_it() {
    let _turn = TURN.lock().await;
    let node = Node::start().await;
    let simulator = spawned::simulator().await;
    let (mut ingress, mut workers) = deployment(&node.url(), &simulator).await;
    let expected = full_answers(&ingress).await;
    let witness = Witness::at(&node.url(), node.folder()).await;
    simulator.control().set_latency(Duration::from_millis(200));
    simulator.control().forget();

    let url = ingress.url("/observe/observables");
    let mut callers = crowd(&url, CALLERS);
    let answered = "bridge_request_duration_seconds_count{route=\"/observe/observables\"";
    ingress.reaches(answered, (QUESTIONS.len() + CALLERS / 2) as f64).await;
    node.kill().await;
    let killed = Instant::now();
    // What counts from here is how soon the bridge is back, not how long Microsoft takes for what has piled up.
    simulator.control().set_latency(Duration::ZERO);
    // These find no broker.
    let late = crowd(&url, 20).join_all().await;
    println!("without a broker: 20 answers, the last after {:?}", longest(&late));
    let before = worked(&workers).await;
    node.launch().await;
    witness.sees_it_work().await;
    let works = Instant::now();
    // The first job counts, not the answer to a new question: that one waits behind all that has piled up.
    let first_job = async {
        while worked(&workers).await == before && works.elapsed() < BACK_WITHIN {
            sleep(Duration::from_millis(10)).await;
        }
        works.elapsed()
    };
    let (back, answer) = tokio::join!(first_job, ingress.observe(QUESTIONS[0]));
    println!("broker away for {:?}; a job was worked {back:?} after it worked again", works - killed);
    assert!(back < BACK_WITHIN, "{back:?}\n{}", ingress.log());
    assert_eq!(said(&answer), expected[0]);

    let (mut full, mut refused) = (0, 0);
    let mut slowest = Duration::ZERO;
    while let Some(answered) = callers.join_next().await {
        let (question, answer, took) = answered.expect("a caller ends");
        assert!(took < DEADLINE + SLACK, "{took:?}");
        slowest = slowest.max(took);
        if answer == expected[question] {
            full += 1;
        } else {
            let (errors, sightings) = answer;
            assert!(sightings.is_empty() && errors.len() == 1, "{errors:?} {sightings:?}");
            assert!(BROKER_ERRORS.contains(&errors[0].1.as_str()), "{errors:?}");
            refused += 1;
        }
    }
    println!("{full} answers in full, {refused} refused, the slowest after {slowest:?}");
    for (question, answer, took) in &late {
        assert!(*took < DEADLINE + SLACK, "{took:?}");
        let refused = answer.0.len() == 1 && BROKER_ERRORS.contains(&answer.0[0].1.as_str());
        assert!(refused || answer == &expected[*question], "{answer:?}");
    }
    ingress.stop().await;
    for worker in &mut workers {
        worker.stop().await;
    }
}
