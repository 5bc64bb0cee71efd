//! `isolation`: who is isolated, the emergency brake, releases by hand. For the whole deployment, through its queue: on
//! RabbitMQ from anywhere, on the embedded queue's file beside the running `serve`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::broker::Broker;
use crate::config::{BrokerArgs, BrokerUrl, Findings, LogArgs, operator};
use crate::desk::operate::{self, Drained, Status};
use crate::desk::{Asked, Brake, Isolation};
use crate::job::{self, Hint, Host, HostKind};

#[derive(Debug, Args)]
pub(super) struct IsolationArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the machines that the bridge has isolated, the emergency brake, and what is left of the caps
    List(ListArgs),
    /// Put the emergency brake on: when this returns, not one more isolation is posted in the whole deployment until
    /// `resume`. Releases go on; block tags stay and are worked after it. Survives restarts
    Pause(PauseArgs),
    /// Take the emergency brake off; what waited for it is worked
    Resume(ResumeArgs),
    /// Order the release of machines and wait until the bridge has released them
    Release(ReleaseArgs),
    /// Replace the cap of isolations per hour for a time, in the whole deployment
    Cap(CapArgs),
}

/// What every action has.
#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    broker: BrokerArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Who gives an order.
#[derive(Debug, Args)]
struct Ordered {
    /// Who orders it, for those who look later [default: the user's login name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl Ordered {
    fn by(&self) -> String {
        self.by.clone().filter(|by| !by.trim().is_empty()).unwrap_or_else(operator)
    }
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct PauseArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    ordered: Ordered,
    /// Why, for those who look later
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
struct ResumeArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    ordered: Ordered,
}

#[derive(Debug, Args)]
struct ReleaseArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    ordered: Ordered,
    #[command(flatten)]
    whom: Whom,
    /// Why, for the note on the host
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// How long to wait for the release, up to 1h; 0 = only order it
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    wait: String,
}

/// Which machines.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// Cognito's ids of hosts
    #[arg(value_name = "HOST_ID", value_parser = clap::value_parser!(u64).range(1..))]
    hosts: Vec<u64>,
    /// Defender's id of a machine that `list` shows
    #[arg(long, value_name = "ID")]
    machine: Option<String>,
    /// Every host that `list` shows
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct CapArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    ordered: Ordered,
    /// Isolations in any hour
    #[arg(value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    number: u32,
    /// For how long, 1m to 168h
    #[arg(long = "for", value_name = "DURATION")]
    time: String,
}

/// What is to be done, its values read.
enum Order {
    List,
    Pause { by: String, reason: Option<String> },
    Resume { by: String },
    Release { by: String, reason: Option<String>, whom: Whom, wait: Duration },
    Cap { by: String, number: u32, time: Duration },
}

pub(super) async fn run(args: IsolationArgs, log: &LogArgs) -> anyhow::Result<()> {
    const MINUTE: Duration = Duration::from_secs(60);
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let (common, order) = match args.action {
        Action::List(ListArgs { common }) => (common, Order::List),
        Action::Pause(PauseArgs { common, ordered, reason }) => (common, Order::Pause { by: ordered.by(), reason }),
        Action::Resume(ResumeArgs { common, ordered }) => (common, Order::Resume { by: ordered.by() }),
        Action::Release(ReleaseArgs { common, ordered, whom, reason, wait }) => {
            let wait = findings.duration("--wait", &wait, (Duration::ZERO, 60 * MINUTE));
            (common, Order::Release { by: ordered.by(), reason, whom, wait })
        }
        Action::Cap(CapArgs { common, ordered, number, time }) => {
            let time = findings.duration("--for", &time, (MINUTE, 168 * 60 * MINUTE));
            (common, Order::Cap { by: ordered.by(), number, time })
        }
    };
    let broker = common.broker.resolve(false, &mut findings);
    let warnings = findings.check()?;
    let telemetry = super::begin(format, log, true, &warnings)?;
    let done = match &broker {
        BrokerUrl::Sqlite(path) => {
            // A new file would take every order and nobody would ever read it.
            if !path.exists() {
                bail!("there is no queue at {}; is BRIDGE_BROKER_URL the one that `serve` has?", path.display());
            }
            carry_out(&super::open_sqlite(path).await?, order, common.json).await
        }
        BrokerUrl::RabbitMq { .. } => {
            carry_out(&super::connect_rabbitmq("isolation", &broker).await?, order, common.json).await
        }
    };
    telemetry.shutdown().await;
    done
}

async fn carry_out<B: Broker>(broker: &B, order: Order, json: bool) -> anyhow::Result<()> {
    let done = match order {
        Order::List => list(broker, json).await,
        Order::Pause { by, reason } => pause(broker, &by, reason.as_deref(), json).await,
        Order::Resume { by } => resume(broker, &by, json).await,
        Order::Release { by, reason, whom, wait } => release(broker, &by, reason, whom, wait, json).await,
        Order::Cap { by, number, time } => cap(broker, number, time, &by, json).await,
    };
    broker.close().await;
    done
}

async fn list<B: Broker>(broker: &B, json: bool) -> anyhow::Result<()> {
    let Status { brake, ledger, current } = operate::status(broker).await.context("brake and ledger cannot be read")?;
    let now = Timestamp::now();
    let isolated = ledger.isolated();
    let asked = ledger.asked(now);
    let (used, counted) = (ledger.within_hour(now), ledger.count_isolated(now));
    let limits = ledger.limits();
    let per_hour = brake.cap_now(now).map(|cap| cap.per_hour).or(limits.map(|limits| limits.per_hour));
    let left = per_hour.map(|cap| (cap as usize).saturating_sub(used));
    if json {
        print(&json!({
            "brake": brake,
            "current": current,
            "hour": { "cap": per_hour, "used": used, "left": left },
            "isolated_at_once": { "cap": limits.map(|limits| limits.at_once), "used": counted },
            "held_by_first_sweep": ledger.held_by_first_sweep(),
            "isolated": isolated,
            "asked": asked,
        }))?;
        return Ok(());
    }
    println!("isolations      {}", told(&brake));
    let of = |cap: Option<u32>| cap.map_or_else(|| "an unknown cap".to_owned(), |cap| cap.to_string());
    let left = left.map(|left| format!(", {left} left")).unwrap_or_default();
    println!("this hour       {used} of {}{left}{}", of(per_hour), replaced(&brake, now));
    println!("isolated now    {counted} of {}", of(limits.map(|limits| limits.at_once)));
    if brake.paused && ledger.held_by_first_sweep() > 0 {
        println!("first sweep     found {} hosts with an untouched block tag", ledger.held_by_first_sweep());
    }
    if !current {
        println!("no worker answers; this is what the last one left");
    }
    if isolated.is_empty() {
        println!("\nno machine is known to be isolated by the bridge");
    } else {
        println!();
        table(["HOST", "NAME", "MACHINE", "SINCE", "UNTIL", "ACTION"], isolated.iter().map(row));
    }
    if !asked.is_empty() {
        println!("\nasked for within the hour; what the relay ordered is released by the relay or in the portal");
        let row = |asked: &Asked| {
            let host = asked.host_id.map_or_else(|| "relay".to_owned(), |host_id| host_id.to_string());
            [host, shown(&asked.machine_id), time(asked.at)]
        };
        table(["HOST", "MACHINE", "ASKED"], asked.iter().map(row));
    }
    Ok(())
}

/// The brake in words.
fn told(brake: &Brake) -> String {
    let state = if brake.paused { "PAUSED" } else { "go on" };
    let at = brake.at.map(|at| format!(" since {}", time(at))).unwrap_or_default();
    let by = brake.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    let reason = brake.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{state}{at}{by}{reason}")
}

fn replaced(brake: &Brake, now: Timestamp) -> String {
    brake.cap_now(now).map(|cap| format!(" (cap set by {} until {})", cap.by, time(cap.until))).unwrap_or_default()
}

/// To the second; nobody reads the rest.
fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn row(isolation: &Isolation) -> [String; 6] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        isolation.host_id.to_string(),
        shown(&isolation.host_name),
        shown(&isolation.machine_id),
        time(isolation.since),
        or_dash(isolation.until.map(time)),
        or_dash(isolation.action_id.as_deref().map(shown)),
    ]
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// Names come from elsewhere: nothing in them moves the terminal's cursor.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn print(value: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

async fn pause<B: Broker>(broker: &B, by: &str, reason: Option<&str>, json: bool) -> anyhow::Result<()> {
    let engaged = operate::engage(broker, by, reason).await.context("isolations may not be paused")?;
    if !json {
        if engaged.before.paused {
            println!("isolations were paused already{}", told(&engaged.before).trim_start_matches("PAUSED"));
        }
        println!("isolations {}", told(&engaged.now));
    }
    let (drained, waited) = operate::drain(broker, &engaged).await;
    let by_desk = drained == Drained::ByDesk;
    if json {
        return print(&json!({
            "brake": engaged.now,
            "before": engaged.before,
            "drained_by": if by_desk { "desk" } else { "time" },
            "waited_ms": u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        }));
    }
    let seconds = waited.as_secs_f64();
    if by_desk {
        println!("nothing more is posted; waited {seconds:.1} s for what was under way");
    } else {
        println!(
            "no worker answered (is this the right queue?); waited {seconds:.1} s: what was granted before is over"
        );
    }
    Ok(())
}

async fn resume<B: Broker>(broker: &B, by: &str, json: bool) -> anyhow::Result<()> {
    let (before, now) = operate::resume(broker, by).await.context("isolations may still be paused")?;
    if json {
        return print(&json!({ "brake": now, "before": before }));
    }
    if before.paused {
        println!("isolations were paused{}", told(&before).trim_start_matches("PAUSED"));
    } else {
        println!("isolations were not paused");
    }
    println!("isolations {}", told(&now));
    Ok(())
}

async fn cap<B: Broker>(broker: &B, number: u32, time: Duration, by: &str, json: bool) -> anyhow::Result<()> {
    let at = Timestamp::now();
    let (before, now) = operate::set_cap(broker, number, time, by).await.context("the cap may not be set")?;
    if json {
        return print(&json!({ "brake": now, "before": before }));
    }
    match before.cap_now(at) {
        Some(cap) => println!("the cap was {} an hour{}", cap.per_hour, replaced(&before, at)),
        None => println!("the cap was that of the settings"),
    }
    println!("the cap is {number} an hour{}", replaced(&now, at));
    if now.paused {
        println!("isolations {}", told(&now));
    }
    Ok(())
}

async fn release<B: Broker>(
    broker: &B,
    by: &str,
    reason: Option<String>,
    whom: Whom,
    wait: Duration,
    json: bool,
) -> anyhow::Result<()> {
    let ledger = operate::status(broker).await.context("the ledger cannot be read")?.ledger;
    // Of some that were asked for nobody knows yet whether they are isolated.
    let asked = if whom.all { ledger.asked(Timestamp::now()) } else { Vec::new() };
    let listed: BTreeMap<u64, Isolation> =
        ledger.isolated().into_iter().map(|isolation| (isolation.host_id, isolation)).collect();
    let hosts: BTreeSet<u64> = match whom {
        Whom { all: true, .. } => {
            listed.keys().copied().chain(asked.iter().filter_map(|asked| asked.host_id)).collect()
        }
        Whom { machine: Some(machine), .. } => {
            let host = listed.values().find(|isolation| isolation.machine_id == machine);
            let Some(host) = host else {
                bail!("the bridge has not isolated a machine {machine}; give the host's id in Cognito instead");
            };
            [host.host_id].into()
        }
        Whom { hosts, .. } => hosts.into_iter().collect(),
    };
    // Times in the ledger are those of the desk, whose clock may be a little behind.
    let since = Timestamp::now() - Duration::from_secs(5);
    for host_id in &hosts {
        let event = event(*host_id, by, reason.clone());
        let lane = event.lane(None);
        broker
            .publish(&job::HOSTS, event.into_message(lane), Duration::ZERO)
            .await
            .with_context(|| format!("the release of host {host_id} is not ordered"))?;
        if !json {
            match listed.get(host_id) {
                Some(Isolation { host_name, machine_id, since, .. }) => println!(
                    "release ordered: host {host_id} ({}), machine {}, isolated since {}",
                    shown(host_name),
                    shown(machine_id),
                    time(*since)
                ),
                None => println!("release ordered: host {host_id}, which the ledger does not list as isolated"),
            }
        }
    }
    let left = if wait.is_zero() {
        hosts.clone()
    } else {
        let listed = listed.keys().copied().collect();
        let awaited = operate::wait_released(broker, &hosts, &listed, since, wait).await;
        awaited.context("the releases are ordered; what became of them is not known")?
    };
    let released: BTreeSet<u64> = hosts.difference(&left).copied().collect();
    let others: Vec<_> = asked.iter().filter(|asked| asked.host_id.is_none()).collect();
    if json {
        print(&json!({ "ordered": hosts, "released": released, "not_released": left, "of_the_relay": others }))?;
    } else if hosts.is_empty() {
        println!("no machine is isolated by the bridge");
    } else if !wait.is_zero() {
        println!("released: {} of {}", released.len(), hosts.len());
    }
    if !json {
        for Asked { machine_id, at, .. } in others {
            let (machine_id, at) = (shown(machine_id), time(*at));
            println!(
                "not ordered: machine {machine_id}, isolated by the relay at {at}; release it there or in the portal"
            );
        }
    }
    if !wait.is_zero() && !left.is_empty() {
        let left: Vec<String> = left.iter().map(u64::to_string).collect();
        bail!("not released within {wait:?}: host {}; the orders stay in the queue", left.join(", "));
    }
    Ok(())
}

fn event(host_id: u64, by: &str, reason: Option<String>) -> Host {
    let now = Timestamp::now();
    Host {
        event_id: Uuid::now_v7().to_string(),
        sender: "isolation release".to_owned(),
        host_id,
        kind: HostKind::Reconcile,
        occurred_at: now,
        received_at: now,
        hint: Some(Hint::Release { by: by.to_owned(), reason }),
        actor: Some(by.to_owned()),
        progress: None,
    }
}
