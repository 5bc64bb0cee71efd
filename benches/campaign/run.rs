//! One campaign from its plan to its verdict.

use std::time::Duration;

use defender_bridge::simulator;
use defender_bridge::simulator::cognito::{Emit, EmitForm};
use tokio::time::{Instant, sleep};

use super::chance::Chance;
use super::node::Node;
use super::promises::{self, Verdict};
use super::stage::{BLOCK, CONTEXT, PREFIX, Stage, TENANT, UNBLOCK, Unsettled, WEBHOOK_TOKEN};
use super::trouble::Broken;
use super::{analysts, trouble};

/// How many hosts that broke a promise are shown in full.
const STORIES: usize = 10;

/// Between two looks at whether it is quiet.
const LOOK: Duration = Duration::from_millis(500);

/// How often in a row it must be quiet: a message that changes hands is nowhere for a moment.
const QUIET_LOOKS: u32 = 4;

/// What shall happen.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub hosts: usize,
    /// How long analysts edit and things go wrong.
    pub length: Duration,
    /// Edits a second of all analysts.
    pub edits: f64,
    /// Between two kills, on average.
    pub kills: Duration,
    /// Between two troubles of the broker, on average, where it is a private node.
    pub breaks: Duration,
    /// The longest wait for quiet afterwards. Failures are tried again after 15 s and more.
    pub quiet: Duration,
    pub workers: usize,
    pub odd_percent: u8,
    pub keep_logs: bool,
}

/// Settings of the product that are not its defaults, and why.
pub fn settings() -> [(&'static str, String); 12] {
    [
        ("BRIDGE_COGNITO_RATE", "500".to_owned()),
        ("BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR", "1000000".to_owned()),
        ("BRIDGE_GUARD_MAX_ISOLATED", "1000000".to_owned()),
        ("BRIDGE_GUARD_FIRST_SWEEP", "1000000".to_owned()),
        ("BRIDGE_SWEEP_INTERVAL", "10s".to_owned()),
        // Lost events shall be lost until the sweep finds their hosts.
        ("BRIDGE_FEED_INTERVAL", "0".to_owned()),
        ("BRIDGE_WEBHOOK_RATE", "10000".to_owned()),
        // Defender has no quotas here.
        ("BRIDGE_QUOTA_ALERTS", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_MACHINES", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_ACTIONS", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_MACHINEACTIONS", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_HUNTING", "1000000".to_owned()),
    ]
}

/// Runs it and prints what happened. Whether every promise held.
pub async fn run(plan: &Plan, node: &Node) -> anyhow::Result<bool> {
    println!("campaign with --seed {}", plan.seed);
    println!(
        "  {} hosts ({} % odd), {:?} of edits at {} a second, {} workers, one killed every {:?} or so",
        plan.hosts, plan.odd_percent, plan.length, plan.edits, plan.workers, plan.kills
    );
    let scaled: Vec<String> = settings().iter().map(|(name, value)| format!("{name}={value}")).collect();
    println!("  scaled: {}", scaled.join(" "));
    println!("  Defender without quotas; actions end after 1 to 4 s and are missing from lists for 0.5 s");
    println!("  events: 10 % lost, 10 % twice, 10 % in another order, 10 % up to 2 s late");
    println!("  faults: {}", trouble::FAULTS);
    match node.is_private() {
        true => println!("  broker: killed, or without memory for some seconds, every {:?} or so", plan.breaks),
        false => println!("  broker: left alone, for it is not this run's own"),
    }

    let simulator = simulator::Settings { quota: None, record_limit: 0, ..simulator::Settings::default() };
    let mut stage = Stage::set(&node.url, plan.workers, &settings(), simulator).await?;
    let judged = play(plan, &mut stage, node).await;
    if plan.keep_logs || !judged.as_ref().is_ok_and(|held| *held) {
        println!("logs: {}", stage.keep_logs().display());
    }
    let struck = stage.strike().await;
    let held = judged?;
    struck?;
    Ok(held)
}

async fn play(plan: &Plan, stage: &mut Stage, node: &Node) -> anyhow::Result<bool> {
    let brain = stage.brain();
    let hosts = brain
        .add_bulk(TENANT, plan.hosts, plan.odd_percent, plan.seed)
        .ok_or_else(|| anyhow::anyhow!("the tenant is not there"))?;
    analysts::prepare(&brain, &hosts);
    brain
        .emit(Some(Emit {
            token: Some(WEBHOOK_TOKEN.to_owned()),
            form: EmitForm::Native,
            lost: 0.1,
            duplicated: 0.1,
            reordered: 0.1,
            delayed: 0.1,
            seed: plan.seed,
            ..Emit::to(&format!("http://{}/webhooks/cognito", stage.ingress))
        }))
        .map_err(anyhow::Error::msg)?;
    trouble::begin(stage.control(), plan.seed);

    let end = Instant::now() + plan.length;
    let editing = {
        let (brain, hosts) = (brain.clone(), hosts.clone());
        let (edits, chance) = (plan.edits, Chance::new(plan.seed, 1));
        tokio::spawn(async move { analysts::edit(&brain, &hosts, edits, end, chance).await })
    };
    let breaking = async {
        match node.is_private() {
            true => trouble::break_broker(node, plan.breaks, end, Chance::new(plan.seed, 3)).await,
            false => Ok(Broken::default()),
        }
    };
    let killing = trouble::kill(stage, plan.kills, end, Chance::new(plan.seed, 2));
    let (killed, broken) = tokio::try_join!(killing, breaking)?;
    let edits = editing.await?;
    trouble::end(stage.control());
    println!("edits: {edits:?}");
    println!("workers killed: {}, of which {} were the desk", killed.workers, killed.desks);
    println!("broker: killed {} times, {} alarms", broken.kills, broken.alarms);

    let since = Instant::now();
    brain.emission_settled().await;
    println!("events: {:?}", brain.emitted());
    let quiet = wait_for_quiet(plan, stage).await?;
    println!("calls: {:?}; answered 429: {}", stage.control().all_calls(), stage.control().throttled());
    let mut verdict = promises::judge(stage.control(), &hosts);
    match quiet {
        None => println!("quiet {:.0?} after the last edit", since.elapsed()),
        Some(left) => verdict.violations.push((0, format!("not quiet after {:?}: {left:?}", plan.quiet))),
    }
    let dead = stage.dead_letters().await?;
    println!("dead letters: {}", dead.len());
    for letter in &dead {
        println!("  {} {:?} after {} attempts: {:?}", letter.queue, letter.message.key, letter.attempts, letter.cause);
    }
    print(&verdict);
    for (host, what) in &verdict.violations {
        println!("VIOLATION host {host}: {what}");
    }
    let mut shown: Vec<u64> = verdict.violations.iter().map(|(host, _)| *host).collect();
    shown.dedup();
    for host in hosts.iter().filter(|host| shown.contains(&host.id)).take(STORIES) {
        println!("{}", promises::story(stage.control(), host));
    }
    if !verdict.violations.is_empty() {
        println!("{} promises broken; repeat with --seed {}", verdict.violations.len(), plan.seed);
    }
    Ok(verdict.violations.is_empty())
}

/// Waits until every host is answered and no event is left: what is left if that does not come.
async fn wait_for_quiet(plan: &Plan, stage: &mut Stage) -> anyhow::Result<Option<(usize, Unsettled)>> {
    let (brain, end) = (stage.brain(), Instant::now() + plan.quiet);
    let mut looks = 0;
    let mut told = Instant::now();
    loop {
        stage.check()?;
        let unsettled = stage.unsettled().await?;
        let waiting = brain.hosts().into_iter().filter_map(|id| brain.tags(id)).filter(|tags| waits(tags)).count();
        looks = if waiting == 0 && unsettled == Unsettled::NOTHING { looks + 1 } else { 0 };
        if looks >= QUIET_LOOKS {
            return Ok(None);
        }
        if Instant::now() > end {
            return Ok(Some((waiting, unsettled)));
        }
        if told.elapsed() > Duration::from_secs(20) {
            told = Instant::now();
            eprintln!("{waiting} hosts wait; {unsettled:?}");
        }
        sleep(LOOK).await;
    }
}

/// Whether something is asked for, or an action is being followed.
fn waits(tags: &[String]) -> bool {
    let followed = ["isolating", "releasing"].map(|state| format!("{PREFIX}isolation={state}"));
    tags.iter().any(|tag| [BLOCK, UNBLOCK, CONTEXT].contains(&tag.as_str()) || followed.contains(tag))
}

fn print(verdict: &Verdict) {
    for (what, count) in &verdict.counts {
        println!("  {count:>7}  {what}");
    }
    println!("explained:");
    for (why, count) in &verdict.explained {
        println!("  {count:>7}  {why}");
    }
    let of = |words: &[&str]| {
        verdict.violations.iter().filter(|(_, what)| words.iter().any(|word| what.contains(word))).count()
    };
    println!("promises (broken so often):");
    for (promise, broken) in [
        ("no foreign tag lost other than in the race", of(&["foreign tag", "had been shown"])),
        ("no machine isolated that was not asked for", of(&["nobody asked"])),
        ("no protected or unsure machine isolated", of(&["must not be isolated"])),
        ("one isolation open at most, and no harmful duplicate", of(&["open at once", "do harm"])),
        (
            "each host as the decision table says for its last tags",
            of(&["not answered", "twice", "still say", "the tags say", "another machine", "context was", "last asked"]),
        ),
        ("every accepted event done or a dead letter", of(&["not quiet"])),
    ] {
        println!("  {broken:>7}  {promise}");
    }
}
