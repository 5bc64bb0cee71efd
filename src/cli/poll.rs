//! `poll`: the flags of the cron script that the bridge replaces (`cognito.md` 1.2), with their meaning and without its
//! defects: lists are read to their end, scores count from the threshold on, tags are compared exactly.
//!
//! It finds hosts and publishes events, as the sweep inside `serve` and `worker` does. When nobody takes events from the
//! queue it works them itself, and ends when all are settled, as users of cron expect.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use super::roles;
use crate::broker::{Broker, BrokerError, Health, Lane, QueueDepth};
use crate::cognito::Cognito;
use crate::config::{
    BrokerArgs, BrokerUrl, CognitoArgs, DefenderArgs, DefenderSettings, Findings, HostArgs, HostSettings, LogArgs,
    QuotaArgs, SelfUserArgs,
};
use crate::desk::{self, Desk, FirstSweep};
use crate::job;
use crate::notify::Notifier;
use crate::quota;
use crate::shutdown::Shutdown;
use crate::sweep::listing::{self, Found};
use crate::sweep::memory::{Memory, room};
use crate::sweep::publish::{event, publish};
use crate::telemetry::metrics::Metrics;
use crate::worker::{self, Report, Standing};

/// How the events name their sender.
const SENDER: &str = "poll";

/// Events that are worked at a time, if they are worked here: Cognito's rate allows for no more at once.
const CONCURRENCY: u16 = 32;

/// What is in hand when the command is told to stop may take so long.
const GRACE: Duration = Duration::from_secs(60);

/// The longest that the command can be told to wait, or to pause.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub(super) struct PollArgs {
    /// Write Defender's context to hosts with this tag (in place of BRIDGE_TAG_ENRICH)
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Write Defender's context to hosts with at least threat T and certainty C, 0 to 100 (in place of BRIDGE_THREAT and
    /// BRIDGE_CERTAINTY)
    #[arg(long, num_args = 2, value_names = ["T", "C"])]
    tc: Option<Vec<String>>,
    /// Isolate the machines of hosts with this tag (in place of BRIDGE_TAG_BLOCK)
    #[arg(long, value_name = "TAG")]
    blocktag: Option<String>,
    /// Release the machines of hosts with this tag (in place of BRIDGE_TAG_UNBLOCK)
    #[arg(long, value_name = "TAG")]
    unblocktag: Option<String>,
    /// Go on for ever, with so much time between two looks
    #[arg(long, value_name = "DURATION")]
    every: Option<String>,
    /// Only publish events, even if nobody works them
    #[arg(long)]
    publish_only: bool,
    /// How long to wait until the events that are worked here are settled; what is not by then stays in the queue
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    wait: String,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    cognito: CognitoArgs,
    #[command(flatten)]
    self_user: SelfUserArgs,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    defender: DefenderArgs,
    #[command(flatten)]
    quota: QuotaArgs,
}

/// Some hosts are not done: the command's exit code says so.
#[derive(Debug, thiserror::Error)]
#[error("{open} of {found} hosts are not settled")]
pub(super) struct Unsettled {
    open: usize,
    found: usize,
}

/// What is to be done.
struct Plan {
    hosts: HostSettings,
    defender: DefenderSettings,
    quota: quota::Settings,
    /// This process is the whole deployment: nobody else calls Defender.
    alone: bool,
    every: Option<Duration>,
    publish_only: bool,
    wait: Duration,
}

impl Plan {
    fn desk_settings(&self) -> desk::Settings {
        roles::desk_settings(&self.hosts, self.quota.clone())
    }
}

impl PollArgs {
    /// Nothing was asked for, neither here nor in the environment: the script showed a hint then and ended well.
    fn asks_for_nothing(&self) -> bool {
        let own = [&self.tag, &self.blocktag, &self.unblocktag, &self.every];
        own.iter().all(|value| value.is_none()) && self.tc.is_none() && !self.publish_only && !self.hosts.is_on()
    }

    /// The settings of hosts, the flags in the place of their variables.
    fn hosts(&self) -> HostArgs {
        let mut hosts = self.hosts.clone();
        for (flag, setting) in [
            (&self.tag, &mut hosts.tag_enrich),
            (&self.blocktag, &mut hosts.tag_block),
            (&self.unblocktag, &mut hosts.tag_unblock),
        ] {
            if flag.is_some() {
                setting.clone_from(flag);
            }
        }
        if let Some([threat, certainty]) = self.tc.as_deref() {
            (hosts.threat, hosts.certainty) = (Some(threat.clone()), Some(certainty.clone()));
        }
        hosts
    }

    fn plan(&self, findings: &mut Findings) -> Option<Plan> {
        let hosts = self.hosts();
        if !hosts.is_on() {
            findings.problem("--tag", "name a tag (--tag, --blocktag, --unblocktag) or scores (--tc) to look for");
        }
        let least = Duration::from_secs(1);
        let every = self.every.as_ref().map(|every| findings.duration("--every", every, (least, LONGEST)));
        let wait = findings.duration("--wait", &self.wait, (Duration::ZERO, LONGEST));
        let defender = self.defender.resolve(findings);
        let hosts = hosts.resolve(&self.cognito, &self.self_user, &self.defender, findings);
        // The one who looks is this command.
        let hosts = hosts.map(|hosts| HostSettings { sweep_interval: None, feed_interval: None, ..hosts });
        let quota = self.quota.resolve(findings);
        Some(Plan {
            hosts: hosts?,
            defender: defender?,
            quota,
            alone: false,
            every,
            publish_only: self.publish_only,
            wait,
        })
    }
}

pub(super) async fn run(args: PollArgs, log: &LogArgs) -> anyhow::Result<()> {
    if args.asks_for_nothing() {
        let mut command = super::Cli::command();
        command.build();
        let poll = command.find_subcommand_mut("poll").expect("this command is one of the program's");
        poll.print_help().context("the help cannot be shown")?;
        return Ok(());
    }
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let broker = args.broker.resolve(false, &mut findings);
    let plan = args.plan(&mut findings);
    let warnings = findings.check()?;
    let plan = plan.expect("a setting that cannot be read is a finding");
    let plan = Plan { alone: matches!(broker, BrokerUrl::Sqlite(_)), ..plan };

    let telemetry = super::begin(format, log, false, &warnings)?;
    let shutdown = Shutdown::new(GRACE);
    shutdown.on_signals()?;
    let done = match &broker {
        BrokerUrl::Sqlite(path) => match super::open_sqlite(path).await {
            Ok(broker) => poll(broker, plan, shutdown).await,
            Err(error) => Err(error),
        },
        BrokerUrl::RabbitMq { .. } => tokio::select! {
            link = super::connect_rabbitmq("poll", &broker) => match link {
                Ok(broker) => poll(broker, plan, shutdown).await,
                Err(error) => Err(error),
            },
            () = shutdown.begun() => Ok(()),
        },
    };
    telemetry.shutdown().await;
    done
}

/// Looks once, or again and again, and closes the queue in order.
async fn poll<B: Broker>(broker: B, plan: Plan, shutdown: Shutdown) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let desk = Desk::open(broker.clone(), plan.desk_settings(), metrics.clone());
    let desk = desk.await.context("the desk cannot be used")?;
    let cognito = roles::cognito_client(&plan.hosts, &desk)?.with_metrics(metrics.clone());
    let mut poll = Poll {
        broker: broker.clone(),
        cognito,
        desk,
        metrics,
        shutdown,
        plan,
        memory: Memory::default(),
        own: None,
        waiting: HashMap::new(),
        tally: Tally::default(),
        minded: false,
    };
    let looked = match poll.plan.every {
        None => poll.once().await,
        Some(every) => poll.for_ever(every).await,
    };
    let ended = match poll.own.take() {
        Some(own) => own.stop().await,
        None => Ok(()),
    };
    broker.close().await;
    looked.and(ended)
}

/// How many hosts came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    found: usize,
    published: usize,
    /// Found, but as many events wait in the queue already as there are hosts.
    put_off: usize,
    settled: usize,
    failed: usize,
    held: usize,
}

struct Poll<B> {
    broker: B,
    cognito: Cognito,
    desk: Desk,
    metrics: Metrics,
    shutdown: Shutdown,
    plan: Plan,
    memory: Memory,
    /// The worker of this process, while nobody else works host events.
    own: Option<Own>,
    /// What was published to be worked here and is not settled, with what was last heard of it.
    waiting: HashMap<Uuid, (Found, Option<&'static str>)>,
    tally: Tally,
    /// The tags of the running workers were compared with these.
    minded: bool,
}

impl<B: Broker> Poll<B> {
    async fn once(&mut self) -> anyhow::Result<()> {
        self.look().await?;
        if self.own.is_some() {
            let end = Instant::now() + self.plan.wait;
            self.attend(Some(end), true).await?;
            for (found, last) in std::mem::take(&mut self.waiting).into_values() {
                line(&found, "open", last.unwrap_or("not worked yet"));
            }
        }
        let Tally { found, published, put_off, settled, failed, held } = self.tally;
        if self.own.is_none() {
            println!("{found} hosts found, {published} events published, {put_off} put off");
            return Ok(());
        }
        let open = found - settled;
        println!("{found} hosts found: {settled} settled, {failed} failed, {held} held, {} open", open - failed - held);
        if open > 0 { Err(Unsettled { open, found }.into()) } else { Ok(()) }
    }

    async fn for_ever(&mut self, every: Duration) -> anyhow::Result<()> {
        // What cannot work at all is said at once.
        self.staff().await?;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shutdown.has_begun() {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shutdown.begun() => break,
            }
            let started = Instant::now();
            if let Err(error) = self.look().await {
                tracing::warn!(error = format!("{error:#}"), "the look failed; the next one tries again");
            }
            self.attend(Some(started + every), false).await?;
        }
        Ok(())
    }

    /// Finds hosts and publishes events.
    async fn look(&mut self) -> anyhow::Result<()> {
        let staffed = self.staff().await?;
        let (now, instant) = (Timestamp::now(), Instant::now());
        let found = self.find(now).await.context("Cognito does not show its hosts")?;
        let untouched: Vec<u64> = found.iter().filter(|host| host.untouched).map(|host| host.host).collect();
        // Where nobody works, nobody may be there to answer; whoever works one day asks before.
        if staffed || !untouched.is_empty() {
            match self.desk.first_sweep(&untouched).await {
                Ok(FirstSweep::Go) => {}
                Ok(FirstSweep::Paused) => println!(
                    "isolations are paused: {} hosts carry a block tag that was never worked; see `isolation list` and \
                     `isolation resume`",
                    untouched.len()
                ),
                Err(error) if staffed => return Err(error).context("the desk does not answer; nothing was published"),
                Err(_) => {}
            }
        }
        self.memory.begin();
        self.tally.found += found.len();
        let health = self.broker.check().await;
        for lane in [Lane::Urgent, Lane::Normal] {
            let of_lane: Vec<&Found> = found.iter().filter(|host| host.reasons.lane() == lane).collect();
            let asked_again = self.plan.every.is_some();
            let memory = &mut self.memory;
            let mut due: Vec<&Found> = of_lane
                .iter()
                .copied()
                .filter(|host| !asked_again || memory.due(host.host, &host.reasons, instant).is_some())
                .collect();
            if self.own.is_none() && !due.is_empty() {
                let room = room(of_lane.len(), depth(&health, lane)?).min(due.len());
                for host in due.drain(room..) {
                    line(host, "put off", "as many events wait as hosts were found");
                    self.tally.put_off += 1;
                }
            }
            self.publish(&due, now, instant).await?;
        }
        self.memory.end();
        Ok(())
    }

    /// The hosts to be looked at, each once.
    async fn find(&self, now: Timestamp) -> anyhow::Result<Vec<Found>> {
        let policy = &self.plan.hosts.policy;
        let mut found = listing::read(&self.cognito, &listing::by_tags(policy), policy, now).await?;
        if let Some(filter) = listing::by_scores(policy) {
            let known: HashSet<u64> = found.iter().map(|host| host.host).collect();
            let scored = listing::read(&self.cognito, &filter, policy, now).await?;
            found.extend(scored.into_iter().filter(|host| !known.contains(&host.host)));
        }
        Ok(found)
    }

    async fn publish(&mut self, due: &[&Found], now: Timestamp, instant: Instant) -> anyhow::Result<()> {
        let by_id: HashMap<u64, &Found> = due.iter().map(|host| (host.host, *host)).collect();
        let events: Vec<_> = due.iter().map(|host| event(&self.plan.hosts.policy, host, SENDER, now)).collect();
        if self.own.is_some() {
            // A worker may be quicker than the broker's answer.
            for event in &events {
                self.waiting.insert(event.message_id, (by_id[&event.host.host_id].clone(), None));
            }
        }
        let (memory, tally, own) = (&mut self.memory, &mut self.tally, self.own.is_some());
        let published = publish(&self.broker, &self.metrics, SENDER, events, |event| {
            let host = by_id[&event.host.host_id];
            memory.published(host.host, &host.reasons, instant);
            tally.published += 1;
            if !own {
                line(host, "published", event.lane.as_str());
            }
        });
        published.await.context("the queue does not take the events")
    }

    /// Sees to it that somebody works host events, unless they are only to be published. Returns whether somebody does.
    async fn staff(&mut self) -> anyhow::Result<bool> {
        if self.own.is_some() {
            return Ok(true);
        }
        let health = self.broker.check().await;
        if depth(&health, Lane::Urgent)?.receivers > 0 {
            self.mind_their_tags().await;
            return Ok(true);
        }
        if self.plan.publish_only {
            return Ok(false);
        }
        // The embedded queue knows only the receivers of its own process, and lets but one process have any.
        match self.broker.receive(&job::HOSTS, Lane::Normal, 1).await {
            Ok(receiver) => receiver.close().await,
            Err(BrokerError::InUse(_)) => {
                self.mind_their_tags().await;
                return Ok(true);
            }
            Err(error) => return Err(error).context("the queue cannot be used"),
        }
        tracing::info!("nobody works host events: this command does");
        self.own = Some(Own::start(&self.broker, &self.plan, &self.metrics, &self.shutdown).await?);
        Ok(true)
    }

    /// Workers act on the tags of their own settings: events about others do nothing. Said once.
    async fn mind_their_tags(&mut self) {
        if std::mem::replace(&mut self.minded, true) {
            return;
        }
        let Ok(value) = self.broker.watch(job::TRIGGERS).await else { return };
        let theirs = value.borrow().clone();
        let Some(theirs) = theirs.and_then(|value| serde_json::from_slice::<job::Triggers>(&value).ok()) else {
            return;
        };
        let policy = &self.plan.hosts.policy;
        for tag in [&policy.block, &policy.unblock].into_iter().flatten() {
            if !theirs.urgent.contains(tag) {
                tracing::warn!(tag, "the running workers neither isolate nor release for this tag");
            }
        }
        if let Some(tag) = policy.enrich.as_ref().filter(|tag| !theirs.normal.contains(tag)) {
            tracing::warn!(tag, "the running workers write no context for this tag");
        }
    }

    /// Hears what becomes of the events that are worked here, until `end`, or until all are settled if `all` says so.
    async fn attend(&mut self, end: Option<Instant>, all: bool) -> anyhow::Result<()> {
        let end = end.unwrap_or_else(|| Instant::now() + LONGEST);
        while !(all && self.waiting.is_empty()) {
            let Some(own) = &mut self.own else {
                tokio::select! {
                    () = tokio::time::sleep_until(end) => return Ok(()),
                    () = self.shutdown.begun() => return Ok(()),
                }
            };
            let report = tokio::select! {
                report = own.reports.recv() => report,
                () = tokio::time::sleep_until(end) => return Ok(()),
                () = self.shutdown.begun() => return Ok(()),
            };
            match report {
                Some(report) => self.hear(&report),
                None => {
                    let own = self.own.take().context("the worker of this command is there")?;
                    return own.stop().await.and(Err(anyhow::anyhow!("the worker of this command ended")));
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, report: &Report) {
        let Some((found, last)) = self.waiting.get_mut(&report.message_id) else { return };
        let word = match report.standing {
            Standing::Open => {
                *last = Some(report.outcome);
                return;
            }
            Standing::Settled => {
                self.tally.settled += 1;
                "settled"
            }
            Standing::Failed => {
                self.tally.failed += 1;
                "failed"
            }
            Standing::Held => {
                self.tally.held += 1;
                "held"
            }
        };
        line(found, word, report.outcome);
        self.waiting.remove(&report.message_id);
    }
}

/// One line for a host.
fn line(found: &Found, word: &str, detail: &str) {
    let name = found.name.as_deref().unwrap_or("host");
    println!("{name} ({}) [{}] {word}: {detail}", found.host, found.reasons.words());
}

fn depth(health: &Health, lane: Lane) -> anyhow::Result<&QueueDepth> {
    let mut rows = health.queues.iter();
    let row = rows.find(|row| row.queue == job::HOSTS.name && row.lane == lane);
    row.context("the broker does not say how much waits in its queues")
}

/// A worker of host events in this process, and the desk it needs.
struct Own {
    worker: JoinHandle<Result<(), BrokerError>>,
    serving: JoinHandle<Result<(), BrokerError>>,
    desk: Desk,
    stop_worker: Shutdown,
    stop_desk: Shutdown,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Own {
    async fn start<B: Broker>(broker: &B, plan: &Plan, metrics: &Metrics, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let (stop_worker, stop_desk) = (shutdown.child(), shutdown.child());
        let (serving, desk) =
            roles::desk(broker, plan.desk_settings(), metrics, &stop_desk).await.inspect_err(|_| {
                // It may serve already.
                stop_desk.begin();
            })?;
        let permits = roles::permits((!plan.alone).then_some(&desk), plan.quota.clone(), metrics);
        let defender = roles::defender(&plan.defender, crate::retry::Policy::default())?.with_permits(permits);
        let hosts =
            roles::hosts(plan.hosts.clone(), defender, &desk, broker, metrics, Notifier::default(), &stop_worker).await;
        let hosts = hosts.inspect_err(|_| {
            stop_worker.begin();
            stop_desk.begin();
        })?;
        let (reporter, reports) = mpsc::unbounded_channel();
        let working =
            worker::run_hosts(broker.clone(), hosts, CONCURRENCY, reporter, metrics.clone(), stop_worker.clone());
        Ok(Self { worker: tokio::spawn(working), serving, desk, stop_worker, stop_desk, reports })
    }

    /// Lets the worker finish what it has in hand.
    async fn stop(self) -> anyhow::Result<()> {
        self.stop_worker.begin();
        let worked = self.worker.await.context("the worker failed")?.context("the worker failed");
        self.desk.flush(roles::FLUSH_LIMIT).await;
        self.stop_desk.begin();
        let served = self.serving.await.context("the desk failed")?.context("the desk failed");
        worked.and(served)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn args(line: &[&str]) -> PollArgs {
        let line = ["defender-bridge", "poll"].iter().chain(line);
        match Cli::parse_from(line).command {
            Command::Poll(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_flags_of_the_script_stand_for_the_settings() {
        let poll = args(&[
            "--tag",
            "host_context",
            "--tc",
            "50",
            "60",
            "--blocktag",
            "block",
            "--unblocktag",
            "unblock",
            "--verbose",
            "--cognito-brain",
            "https://cognito.example",
            "--cognito-token",
            "t",
            "--tenant-id",
            "t.example",
            "--app-id",
            "a",
            "--app-secret",
            "s",
        ]);
        let plan = poll.plan(&mut Findings::default()).unwrap();
        let policy = plan.hosts.policy;
        assert_eq!((policy.enrich.as_deref(), policy.block.as_deref()), (Some("host_context"), Some("block")));
        assert_eq!((policy.unblock.as_deref(), policy.thresholds), (Some("unblock"), Some((50, 60))));
        assert_eq!((plan.hosts.sweep_interval, plan.hosts.feed_interval), (None, None));
        assert_eq!((plan.every, plan.publish_only, plan.wait), (None, false, Duration::from_secs(600)));
    }

    #[test]
    fn a_flag_comes_before_its_variable_and_leaves_the_others() {
        let mut poll = args(&["--blocktag", "isolate"]);
        poll.hosts.tag_block = Some("block".into());
        poll.hosts.tag_enrich = Some("host_context".into());
        let hosts = poll.hosts();
        assert_eq!((hosts.tag_block.as_deref(), hosts.tag_enrich.as_deref()), (Some("isolate"), Some("host_context")));
    }

    #[test]
    fn nothing_asked_for_is_told_from_something_missing() {
        assert!(args(&[]).asks_for_nothing() && args(&["--verbose"]).asks_for_nothing());
        for line in [&["--every", "60s"][..], &["--publish-only"], &["--tag", "x"], &["--tc", "1", "2"]] {
            assert!(!args(line).asks_for_nothing(), "{line:?}");
        }
        let mut findings = Findings::default();
        assert!(args(&["--every", "1d"]).plan(&mut findings).is_none());
        let refused = findings.check().unwrap_err().to_string();
        assert!(refused.contains("--tag: name a tag") && !refused.contains("--every"), "{refused}");
        assert!(Cli::try_parse_from(["defender-bridge", "poll", "--tc", "50"]).is_err());
    }
}
