//! From 202 to Defender's acceptance.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use defender_bridge::relay::token;
use defender_bridge::simulator::ActionKind;
use defender_bridge::simulator::cognito::{BulkHost, BulkKind};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, PHISHING_DOMAIN};
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::floor;
use crate::stage::{BLOCK, CONTEXT, SECRET_KEY, Stage, TENANT, UNBLOCK};

/// Between two requests.
const PACE: Duration = Duration::from_secs(1);

/// What is not answered by then is called unanswered.
const PATIENCE: Duration = Duration::from_secs(120);

/// Calls that the floor is taken from.
const FLOOR_SAMPLES: usize = 20;

/// When of all requests the desk is killed: this part of them is before.
const KILL_AFTER: f64 = 0.3;

/// How long a killed worker stays away.
const AWAY: Duration = Duration::from_secs(2);

/// Senders of the events of enrichments.
const SENDERS: usize = 16;

/// Plain hosts only, with their machines.
pub fn plain(stage: &Stage, count: usize) -> anyhow::Result<Vec<BulkHost>> {
    let hosts = stage.brain().add_bulk(TENANT, count, 0, 1).context("the tenant is not there")?;
    anyhow::ensure!(hosts.iter().all(|host| host.kind == BulkKind::Plain), "a bulk without odd hosts");
    Ok(hosts)
}

pub async fn idle(stage: &mut Stage, samples: usize) -> anyhow::Result<bool> {
    println!("\nat rest, {samples} hosts, one every {PACE:?}");
    let hosts = plain(stage, samples + FLOOR_SAMPLES)?;
    let (floor_hosts, hosts) = hosts.split_at(FLOOR_SAMPLES);
    let floor = print("floor: two calls to Cognito, three to Defender", &floor::isolate(stage, floor_hosts).await?, 0);
    let mut good = true;
    for (tag, kind) in [(BLOCK, ActionKind::Isolate), (UNBLOCK, ActionKind::Unisolate)] {
        let (took, unanswered) = ask(stage, hosts, tag, kind, None).await?;
        let p50 = print(tag, &took, unanswered);
        good &= unanswered == 0;
        ratio(p50, floor);
        settled(stage, hosts, kind).await;
    }
    Ok(good)
}

pub async fn loaded(stage: &mut Stage, samples: usize, enrichments: usize, callers: usize) -> anyhow::Result<bool> {
    println!(
        "\n{enrichments} enrichments waiting, {callers} callers of the relay, the desk killed; {samples} hosts, one every {PACE:?}"
    );
    let hosts = plain(stage, samples + FLOOR_SAMPLES + enrichments)?;
    let (floor_hosts, hosts) = hosts.split_at(FLOOR_SAMPLES);
    let (hosts, waiting) = hosts.split_at(samples);
    let mut background = JoinSet::new();
    enrich_all(stage, waiting).await?;
    relay_load(stage, callers, &mut background);
    println!("  waiting at the beginning: {:?}", stage.unsettled().await?);
    let floor = print("floor: two calls to Cognito, three to Defender", &floor::isolate(stage, floor_hosts).await?, 0);
    let mut good = true;
    for (tag, kind) in [(BLOCK, ActionKind::Isolate), (UNBLOCK, ActionKind::Unisolate)] {
        let (took, unanswered) = ask(stage, hosts, tag, kind, Some(KILL_AFTER)).await?;
        let p50 = print(tag, &took, unanswered);
        good &= unanswered == 0;
        ratio(p50, floor);
        settled(stage, hosts, kind).await;
    }
    println!("  waiting in the end: {:?}", stage.unsettled().await?);
    background.shutdown().await;
    Ok(good)
}

/// Sets `tag` on one host after the other and tells the webhook. How long each took from its 202 until Defender took the
/// request, and how many it never took. The desk is killed after this part of them, and comes back.
async fn ask(
    stage: &mut Stage,
    hosts: &[BulkHost],
    tag: &str,
    kind: ActionKind,
    kill_after: Option<f64>,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let brain = stage.brain();
    let mut accepted: HashMap<&str, Timestamp> = HashMap::new();
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let kill_at = kill_after.map(|part| (part * hosts.len() as f64) as usize);
    let mut killed: Option<(usize, Instant)> = None;
    for (index, host) in hosts.iter().enumerate() {
        ticks.tick().await;
        if kill_at == Some(index) {
            let desk = find_desk(stage).await?;
            let jobs = stage.metric(desk, "bridge_jobs_in_hands").await.unwrap_or_default();
            println!("  killed worker {desk}, the desk, with {jobs:.0} jobs in hands");
            stage.kill(desk);
            killed = Some((desk, Instant::now()));
        }
        if let Some((worker, _)) = killed.take_if(|(_, since)| since.elapsed() > AWAY) {
            stage.launch(worker)?;
        }
        brain.add_tag(host.id, tag, "analyst.one").context("the host has the tag already")?;
        accepted.insert(host.machines[0].as_str(), stage.tell(host.id, tag).await?);
    }
    if let Some((worker, _)) = killed {
        stage.launch(worker)?;
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let mut took = Vec::new();
        for post in stage.control().action_posts(TENANT).iter().filter(|post| post.kind == kind) {
            if let Some(at) = accepted.get(post.machine.as_str()) {
                // Taken before the 202 was read: as fast as it can be.
                took.push(Duration::try_from(post.at.duration_since(*at)).unwrap_or_default());
            }
        }
        if took.len() >= hosts.len() || Instant::now() > end {
            let unanswered = hosts.len().saturating_sub(took.len());
            return Ok((took, unanswered));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The worker that is the desk.
async fn find_desk(stage: &Stage) -> anyhow::Result<usize> {
    let end = Instant::now() + PATIENCE;
    loop {
        for worker in 0..stage.workers.len() {
            if stage.is_desk(worker).await {
                return Ok(worker);
            }
        }
        anyhow::ensure!(Instant::now() < end, "no worker is the desk");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the tags say what came of the requests, so that the next one is a request of its own.
async fn settled(stage: &Stage, hosts: &[BulkHost], kind: ActionKind) {
    let wanted = if kind == ActionKind::Isolate { "mde:isolation=isolated" } else { "mde:isolation=released" };
    let brain = stage.brain();
    let end = Instant::now() + PATIENCE;
    let there = |host: &BulkHost| brain.tags(host.id).unwrap_or_default().iter().any(|tag| tag == wanted);
    while !hosts.iter().all(there) && Instant::now() < end {
        sleep(Duration::from_millis(100)).await;
    }
}

/// Asks for the context of all these hosts.
pub async fn enrich_all(stage: &Stage, hosts: &[BulkHost]) -> anyhow::Result<()> {
    let ids: Vec<u64> = hosts.iter().map(|host| host.id).collect();
    stage.brain().add_tag_to_many(&ids, CONTEXT, "analyst.one");
    let chunks = ids.chunks(ids.len().div_ceil(SENDERS).max(1));
    let tell_all = chunks.map(async |ids| {
        for id in ids {
            stage.tell(*id, CONTEXT).await?;
        }
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(tell_all).await?;
    Ok(())
}

/// Callers that ask the relay without a pause until they are dropped.
fn relay_load(stage: &Stage, callers: usize, tasks: &mut JoinSet<()>) {
    let claims = token::Claims {
        tenant_id: TENANT.to_owned(),
        client_id: DEMO_CLIENT_ID.to_owned(),
        client_secret: DEMO_CLIENT_SECRET.into(),
        entities_limit: None,
    };
    let token = token::mint(&claims, None, &SECRET_KEY.into());
    let question = Bytes::from(serde_json::json!([{"type": "domain", "value": PHISHING_DOMAIN}]).to_string());
    for _ in 0..callers {
        let request = stage
            .client
            .post(format!("http://{}/observe/observables", stage.ingress))
            .bearer_auth(&token)
            .header("content-type", "application/json")
            .body(question.clone());
        tasks.spawn(async move {
            while let Some(request) = request.try_clone() {
                // Load only; whether the relay answers rightly is measured elsewhere.
                if let Ok(answer) = request.send().await {
                    let _ = answer.bytes().await;
                }
            }
        });
    }
}

fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let index = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or_default()
}

/// One line; the median.
fn print(what: &str, took: &[Duration], unanswered: usize) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    let ms = |part| percentile(&sorted, part).as_secs_f64() * 1000.0;
    println!(
        "  {what:<48} p50 {:>7.0} ms  p99 {:>7.0} ms  most {:>7.0} ms  of {}, unanswered {unanswered}",
        ms(0.5),
        ms(0.99),
        ms(1.0),
        took.len()
    );
    percentile(&sorted, 0.5)
}

fn ratio(p50: Duration, floor: Duration) {
    println!("    median / floor: {:.2}", p50.as_secs_f64() / floor.as_secs_f64().max(f64::EPSILON));
}
