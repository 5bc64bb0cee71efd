//! Eight workers, three tenants, three times the quota, and hosts that are isolated meanwhile; with the desk killed every
//! few seconds or not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use defender_bridge::simulator::{ActionKind, Quota};
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::ask::{Answer, observe, percentile};
use crate::rate::whole_share;
use crate::stage::{BLOCK, Stage, TENANT};
use crate::universe::{KNOWN_AMONG, question, simulator, token};
use crate::windows;

const WORKERS: usize = 8;
const TENANTS: usize = 3;

/// Requests of each tenant: five observables every second are 300 alert calls a minute, three times the quota.
const ASKED: usize = 5;
const PACE: Duration = Duration::from_secs(1);

/// Between two hosts that are blocked.
const BLOCKS: Duration = Duration::from_secs(5);

/// Between two deaths of the desk, and how long its process stays away.
const KILLS: Duration = Duration::from_secs(6);
const AWAY: Duration = Duration::from_secs(1);

/// Of an isolation that has not come by then it is said that it never did.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn measure(broker: &str, lasts: Duration, kills: bool, keep_logs: bool) -> anyhow::Result<u64> {
    let killed = if kills { ", the desk killed every few seconds" } else { "" };
    println!(
        "\n{WORKERS} workers, {TENANTS} tenants, three times the quota for {lasts:?}, a host blocked every {BLOCKS:?}{killed}"
    );
    let mut settings = whole_share();
    settings.retain(|(name, _)| *name != "BRIDGE_RELAY_MAX_WAIT");
    let many = || "1000000".to_owned();
    settings.extend([
        ("BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR", many()),
        ("BRIDGE_GUARD_MAX_ISOLATED", many()),
        ("BRIDGE_GUARD_FIRST_SWEEP", many()),
    ]);
    let simulator = simulator(TENANTS, 20, Some(Quota::default()))?;
    let mut stage = Stage::set(broker, WORKERS, &settings, simulator).await?;
    let hosts = stage.brain().add_bulk(TENANT, (lasts.as_secs() / BLOCKS.as_secs()) as usize, 0, 1);
    let hosts = hosts.context("the tenant of the hosts is not there")?;
    let end = Instant::now() + lasts;

    let mut asking = tokio::task::JoinSet::new();
    for tenant in 0..TENANTS {
        let (client, ingress) = (stage.client.clone(), stage.ingress);
        asking.spawn(async move { (tenant, open_loop(&client, ingress, tenant, end).await) });
    }
    let mut accepted: HashMap<String, Timestamp> = HashMap::new();
    let mut deaths = 0;
    let mut away: Option<(usize, Instant)> = None;
    let (mut next_block, mut next_kill) = (Instant::now(), Instant::now() + KILLS);
    let mut waiting = hosts.iter();
    while Instant::now() < end {
        if Instant::now() >= next_block
            && let Some(host) = waiting.next()
        {
            next_block += BLOCKS;
            stage.brain().add_tag(host.id, BLOCK, "analyst.one").context("the host has the tag already")?;
            accepted.insert(host.machines[0].clone(), stage.tell(host.id, BLOCK).await?);
        }
        if let Some((worker, _)) = away.take_if(|(_, since)| since.elapsed() >= AWAY) {
            stage.launch(worker)?;
        }
        if kills && away.is_none() && Instant::now() >= next_kill {
            next_kill = Instant::now() + KILLS;
            for worker in 0..WORKERS {
                if stage.runs(worker) && stage.is_desk(worker).await {
                    stage.kill(worker);
                    deaths += 1;
                    away = Some((worker, Instant::now()));
                    break;
                }
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    if let Some((worker, _)) = away {
        stage.launch(worker)?;
    }

    let mut violations = 0;
    for (tenant, answers) in asking.join_all().await {
        let count = |wanted: fn(&Answer) -> bool| answers.iter().filter(|answer| wanted(answer)).count();
        let missing = count(|answer| answer.missing);
        println!(
            "    tenant {tenant}: {} requests, complete {}, in part {}, refused {}, without an answer {missing}",
            answers.len(),
            count(Answer::is_complete),
            count(|answer| !answer.errors.is_empty() && !answer.busy),
            count(|answer| answer.busy)
        );
        violations += missing as u64;
        // A tenant that got nothing at all starved.
        violations += u64::from(count(Answer::is_complete) == 0);
    }
    if kills {
        println!("    the desk died {deaths} times");
    }
    violations += isolations(&stage, &accepted).await;
    violations += windows::report(stage.control());
    if keep_logs || violations > 0 {
        println!("    logs: {}", stage.keep_logs().display());
    }
    Ok(violations)
}

/// Asks at a pace of its own, whether there are answers or not.
async fn open_loop(client: &reqwest::Client, ingress: SocketAddr, tenant: usize, end: Instant) -> Vec<Answer> {
    let token = token(tenant);
    let mut asked = Vec::new();
    let mut next = Instant::now();
    let mut first = 0;
    while Instant::now() < end {
        let question = question(first % (KNOWN_AMONG - ASKED), ASKED);
        first += ASKED;
        let (client, token) = (client.clone(), token.clone());
        asked.push(tokio::spawn(async move { observe(&client, ingress, &token, &question).await }));
        next += PACE;
        tokio::time::sleep_until(next).await;
    }
    join_all(asked).await.into_iter().filter_map(Result::ok).collect()
}

/// How long the isolations took from their 202; how many never came.
async fn isolations(stage: &Stage, accepted: &HashMap<String, Timestamp>) -> u64 {
    let end = Instant::now() + PATIENCE;
    let mut took = loop {
        let posts = stage.control().action_posts(TENANT);
        let posts = posts.iter().filter(|post| post.kind == ActionKind::Isolate);
        let took: Vec<Duration> = posts
            .filter_map(|post| {
                Some(Duration::try_from(post.at.duration_since(*accepted.get(&post.machine)?)).unwrap_or_default())
            })
            .collect();
        if took.len() >= accepted.len() || Instant::now() > end {
            break took;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let never = accepted.len().saturating_sub(took.len());
    println!(
        "    containment: {} isolations, p50 {:?}, p99 {:?}, most {:?}; never {never}",
        took.len(),
        percentile(&mut took, 0.5),
        percentile(&mut took, 0.99),
        percentile(&mut took, 1.0)
    );
    never as u64
}
