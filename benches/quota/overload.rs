//! Ten times more requests than can be worked, for two minutes.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until};

use crate::ask::{Answer, observe, percentile};
use crate::calls::unlimited;
use crate::process::Memory;
use crate::stage::Stage;
use crate::universe::{KNOWN_AMONG, question, simulator, token};

/// What the workers can do is bounded by these two, and little of it is the machine's.
const CONCURRENCY: usize = 4;
const LATENCY: Duration = Duration::from_millis(100);

/// Callers in closed loops that find out how much can be worked, and for how long.
const CALLERS: usize = 8;
const TRIAL: Duration = Duration::from_secs(10);

/// How many times more.
const TIMES: f64 = 10.0;

/// What is accepted is answered by then (`BRIDGE_RELAY_DEADLINE`).
const DEADLINE: Duration = Duration::from_secs(50);

/// A refusal should not take longer.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Normal service that is not back by then is said not to come back.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn measure(broker: &str, quick: bool) -> anyhow::Result<u64> {
    let lasts = Duration::from_secs(if quick { 30 } else { 120 });
    println!(
        "\n{TIMES:.0} times more than can be worked for {lasts:?}; one worker, {CONCURRENCY} jobs at a time, every call takes {LATENCY:?}"
    );
    let mut settings = unlimited();
    settings.push(("BRIDGE_WORKER_CONCURRENCY", CONCURRENCY.to_string()));
    let simulator = defender_bridge::simulator::Settings { latency: LATENCY, ..simulator(1, 2, None)? };
    let stage = Stage::set(broker, 1, &settings, simulator).await?;
    let mut next = 0;
    let mut fresh = || {
        next = (next + 1) % KNOWN_AMONG;
        question(next, 1)
    };
    let token = token(0);

    let end = Instant::now() + TRIAL;
    let questions: Vec<Vec<_>> = (0..CALLERS).map(|_| (0..1000).map(|_| fresh()).collect()).collect();
    let callers = questions.iter().map(async |questions| {
        let mut answered = 0;
        for question in questions {
            if Instant::now() >= end {
                break;
            }
            observe(&stage.client, stage.ingress, &token, question).await;
            answered += 1;
        }
        answered
    });
    let answered: usize = join_all(callers).await.into_iter().sum();
    let capacity = answered as f64 / TRIAL.as_secs_f64();
    let rate = TIMES * capacity;
    println!("    {capacity:.0} requests a second can be worked; {rate:.0} come");

    println!("    memory at the beginning: {}", memory(&stage));
    let begin = Instant::now();
    let mut asked = Vec::new();
    while begin.elapsed() < lasts {
        let (client, ingress, token, question) = (stage.client.clone(), stage.ingress, token.clone(), fresh());
        asked.push(tokio::spawn(async move { observe(&client, ingress, &token, &question).await }));
        sleep_until(begin + Duration::from_secs_f64(asked.len() as f64 / rate)).await;
    }
    println!("    memory at the end:       {}", memory(&stage));

    // Normal service: as many as before it, one after the other, are answered as fast as they can be.
    let over = Instant::now();
    let mut back = None;
    while back.is_none() && over.elapsed() < PATIENCE {
        let answer = observe(&stage.client, stage.ingress, &token, &fresh()).await;
        if answer.is_complete() && answer.took < 10 * LATENCY {
            back = Some(over.elapsed());
        }
        sleep(Duration::from_millis(50)).await;
    }

    let answers: Vec<Answer> = join_all(asked).await.into_iter().filter_map(Result::ok).collect();
    let (refused, accepted): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.busy);
    let late = accepted.iter().filter(|answer| answer.missing || answer.took > DEADLINE).count();
    let failed = accepted.iter().filter(|answer| !answer.missing && !answer.errors.is_empty()).count();
    let slow = refused.iter().filter(|answer| answer.took > AT_ONCE).count();
    let line = |what: &str, answers: &[Answer]| {
        let mut took: Vec<Duration> = answers.iter().map(|answer| answer.took).collect();
        println!(
            "    {what}: {}, p50 {:?}, p99 {:?}, most {:?}",
            took.len(),
            percentile(&mut took, 0.5),
            percentile(&mut took, 0.99),
            percentile(&mut took, 1.0)
        );
    };
    line("accepted", &accepted);
    line("refused ", &refused);
    println!("    accepted and late or lost {late}, accepted and failed {failed}, refusals above {AT_ONCE:?} {slow}");
    match back {
        Some(back) => println!("    normal service is back after {back:?}"),
        None => println!("    normal service does not come back within {PATIENCE:?}"),
    }
    Ok((late + failed) as u64 + u64::from(back.is_none()))
}

/// Resident memory of each process of the product.
fn memory(stage: &Stage) -> String {
    let one = |(name, id): (&str, u32)| {
        let megabytes = Memory::of(id).resident.map_or(f64::NAN, |kib| kib as f64 / 1024.0);
        format!("{name} {megabytes:.0} MB")
    };
    stage.processes().into_iter().map(one).collect::<Vec<_>>().join(", ")
}
