//! `dead-letters`: looks at what nobody could work, sends it back, or deletes it. For the whole deployment, through its
//! queue: on RabbitMQ from anywhere, on the embedded queue's file beside the running `serve`.

mod shown;

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use uuid::Uuid;

use crate::broker::{Broker, DeadLetter, DeadLetterFilter};
use crate::config::{BrokerArgs, BrokerUrl, Findings, LogArgs};
use crate::job::{self, TOPOLOGY};
use crate::telemetry::propagation;

/// How far back a filter by age reaches: ten years, more than anybody keeps a queue.
const AGES: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(10 * 366 * 86_400));

/// The fastest redrive that a rate may ask for, per second; without a rate it is as fast as the broker.
const RATE_LIMIT: i64 = 10_000;

#[derive(Debug, Args)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List dead letters, oldest first
    List(ListArgs),
    /// Show all of one dead letter: cause, times, headers and body. Sealed credentials are left out
    Show(ShowArgs),
    /// Send dead letters back to their queues. Each keeps its id, its attempts begin at 1 again, and it begins a new
    /// trace, linked to its old one. May run while others do: each letter is sent once
    Redrive(RedriveArgs),
    /// Delete dead letters for good
    Discard(DiscardArgs),
}

/// Which dead letters. All that is given must hold.
#[derive(Debug, Args)]
#[group(id = "filter", multiple = true)]
struct FilterArgs {
    /// Of this queue
    #[arg(long, value_name = "NAME", value_parser = queue_names())]
    queue: Option<String>,
    /// With this cause, the first word of the cause that `show` prints: attempts, undecodable, ...
    #[arg(long, value_name = "WORD")]
    cause: Option<String>,
    /// Of this host, by Cognito's id
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    host: Option<u64>,
    /// With this id; may be given more than once
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<Uuid>,
    /// Dead for at least this long, such as 90s, 2h or 7d
    #[arg(long, value_name = "DURATION")]
    older_than: Option<String>,
    /// Dead for less than this long
    #[arg(long, value_name = "DURATION")]
    younger_than: Option<String>,
}

fn queue_names() -> clap::builder::PossibleValuesParser {
    TOPOLOGY.queues.iter().map(|queue| queue.name).collect::<Vec<_>>().into()
}

impl FilterArgs {
    /// The filter at `now`. `limit` as in [`DeadLetterFilter::limit`].
    fn resolve(self, limit: usize, now: Timestamp, findings: &mut Findings) -> DeadLetterFilter {
        let mut ago = |setting: &str, age: Option<String>| {
            let age = age.map(|age| findings.duration(setting, &age, AGES));
            age.map(|age| now.checked_sub(age).unwrap_or(Timestamp::MIN))
        };
        DeadLetterFilter {
            died_before: ago("--older-than", self.older_than),
            died_from: ago("--younger-than", self.younger_than),
            queue: self.queue,
            cause: self.cause,
            key: self.host.map(job::Host::key_of),
            ids: self.ids.into_iter().collect(),
            limit,
        }
    }
}

/// Everything, or what a filter selects: never everything by mistake.
#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    filter: FilterArgs,
    /// Every dead letter there is
    #[arg(long, required_unless_present = "filter", conflicts_with = "filter")]
    all: bool,
    /// At most this many, oldest first [default: no limit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

impl Which {
    fn resolve(self, findings: &mut Findings) -> DeadLetterFilter {
        self.filter.resolve(self.limit.map_or(0, |limit| limit as usize), Timestamp::now(), findings)
    }
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// At most this many; 0 = no limit
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    limit: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// The id that `list` shows
    #[arg(value_name = "ID")]
    id: Uuid,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RedriveArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    which: Which,
    /// At most this many each second [default: as fast as the queue takes them]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=RATE_LIMIT))]
    rate: Option<u32>,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct DiscardArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    which: Which,
    /// Do not ask; needed where nobody can be asked
    #[arg(long)]
    yes: bool,
}

/// What is to be done, its values read.
enum Order {
    List { filter: DeadLetterFilter, limit: usize, json: bool },
    Show { id: Uuid, json: bool },
    Redrive { filter: DeadLetterFilter, per_second: u32, dry_run: bool },
    Discard { filter: DeadLetterFilter, ask: bool },
}

pub(super) async fn run(args: DeadLettersArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let (broker, order) = match args.action {
        Action::List(ListArgs { broker, filter, limit, json }) => {
            let limit = limit as usize;
            // One more, to know whether there are more.
            let taken = if limit == 0 { 0 } else { limit + 1 };
            let filter = filter.resolve(taken, Timestamp::now(), &mut findings);
            (broker, Order::List { filter, limit, json })
        }
        Action::Show(ShowArgs { broker, id, json }) => (broker, Order::Show { id, json }),
        Action::Redrive(RedriveArgs { broker, which, rate, dry_run }) => {
            let filter = which.resolve(&mut findings);
            (broker, Order::Redrive { filter, per_second: rate.unwrap_or(0), dry_run })
        }
        Action::Discard(DiscardArgs { broker, which, yes }) => {
            (broker, Order::Discard { filter: which.resolve(&mut findings), ask: !yes })
        }
    };
    let broker = broker.resolve(false, &mut findings);
    let warnings = findings.check()?;
    let telemetry = super::begin(format, log, true, &warnings)?;
    let done = match &broker {
        BrokerUrl::Sqlite(path) => {
            // A new file would have no dead letters, whatever happened to the deployment's.
            if !path.exists() {
                bail!("there is no queue at {}; is BRIDGE_BROKER_URL the one that `serve` has?", path.display());
            }
            carry_out(&super::open_sqlite(path).await?, order).await
        }
        BrokerUrl::RabbitMq { .. } => carry_out(&super::connect_rabbitmq("dead-letters", &broker).await?, order).await,
    };
    telemetry.shutdown().await;
    done
}

async fn carry_out<B: Broker>(broker: &B, order: Order) -> anyhow::Result<()> {
    let done = match order {
        Order::List { filter, limit, json } => list(broker, &filter, limit, json).await,
        Order::Show { id, json } => show(broker, id, json).await,
        Order::Redrive { filter, dry_run: true, .. } => would_redrive(broker, &filter).await,
        Order::Redrive { filter, per_second, dry_run: false } => redrive(broker, &filter, per_second).await,
        Order::Discard { filter, ask } => discard(broker, filter, ask).await,
    };
    broker.close().await;
    done
}

async fn look<B: Broker>(broker: &B, filter: &DeadLetterFilter) -> anyhow::Result<Vec<DeadLetter>> {
    broker.dead_letters(filter).await.context("the dead letters cannot be read")
}

async fn list<B: Broker>(broker: &B, filter: &DeadLetterFilter, limit: usize, json: bool) -> anyhow::Result<()> {
    let mut letters = look(broker, filter).await?;
    let more = limit > 0 && letters.len() > limit;
    if more {
        letters.truncate(limit);
    }
    let text = if json { shown::list_as_json(&letters) } else { shown::table(&letters, Timestamp::now()) };
    print(&text)?;
    if more {
        eprintln!("there are more; --limit 0 shows all");
    }
    Ok(())
}

async fn show<B: Broker>(broker: &B, id: Uuid, json: bool) -> anyhow::Result<()> {
    let letters = look(broker, &DeadLetterFilter { ids: [id].into(), ..DeadLetterFilter::default() }).await?;
    if letters.is_empty() {
        bail!("there is no dead letter with the id {id}");
    }
    for letter in &letters {
        print(&if json { shown::as_json(letter) } else { shown::whole(letter, Timestamp::now()) })?;
    }
    Ok(())
}

async fn would_redrive<B: Broker>(broker: &B, filter: &DeadLetterFilter) -> anyhow::Result<()> {
    let letters = look(broker, filter).await?;
    print(&format!("{}would redrive {}\n", shown::summary(&letters), letters.len()))
}

async fn redrive<B: Broker>(broker: &B, filter: &DeadLetterFilter, per_second: u32) -> anyhow::Result<()> {
    let sent = broker.redrive(filter, per_second, propagation::restart).await;
    let sent = sent.context("the redrive ended early; what was not sent is still a dead letter")?;
    print(&format!("redriven {sent}\n"))
}

async fn discard<B: Broker>(broker: &B, mut filter: DeadLetterFilter, ask: bool) -> anyhow::Result<()> {
    if ask {
        if !std::io::stdin().is_terminal() {
            bail!("nobody can be asked whether to delete them; say --yes");
        }
        let letters = look(broker, &filter).await?;
        if letters.is_empty() {
            return print("discarded 0\n");
        }
        print(&format!("{}Delete {} for good? [y/N] ", shown::summary(&letters), letters.len()))?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).context("the answer cannot be read")?;
        if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            bail!("nothing was deleted");
        }
        // Those that were counted, not what has died since.
        filter.ids = letters.iter().map(|letter| letter.message.id).collect::<BTreeSet<_>>();
    }
    let deleted = broker.discard(&filter).await.context("the dead letters cannot be deleted")?;
    print(&format!("discarded {deleted}\n"))
}

/// To standard output. A reader that has gone (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: DeadLettersArgs,
    }

    fn parse(line: &str) -> Result<Action, clap::Error> {
        Line::try_parse_from(format!("x {line}").split(' ')).map(|line| line.args.action)
    }

    #[test]
    fn nothing_is_redriven_or_deleted_without_saying_which() {
        let id = Uuid::nil();
        for command in ["redrive", "discard"] {
            for (rest, accepted) in [
                (String::new(), false),
                (" --limit 5".to_owned(), false),
                (" --all".to_owned(), true),
                (" --all --limit 5".to_owned(), true),
                (" --cause attempts".to_owned(), true),
                (" --all --cause attempts".to_owned(), false),
                (format!(" --id {id} --id {id}"), true),
                (" --older-than 2h --younger-than 7d --host 42 --queue hosts".to_owned(), true),
                (" --host 0".to_owned(), false),
                (" --queue nowhere".to_owned(), false),
                (" --id 42".to_owned(), false),
            ] {
                let parsed = parse(&format!("{command}{rest}"));
                assert_eq!(parsed.is_ok(), accepted, "{command}{rest}: {parsed:?}");
            }
        }
        assert!(parse("redrive --all --rate 0").is_err());
        assert!(parse("list").is_ok() && parse("show 42").is_err());
    }

    #[test]
    fn a_filter_says_what_was_given() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let line = "list --queue hosts --cause attempts --host 42 --older-than 2h --younger-than 7d12h";
        let Ok(Action::List(args)) = parse(line) else { panic!("not a list") };
        let mut findings = Findings::default();
        let filter = args.filter.resolve(7, now, &mut findings);
        assert_eq!(findings, Findings::default());
        let expected = DeadLetterFilter {
            queue: Some("hosts".to_owned()),
            cause: Some("attempts".to_owned()),
            key: Some("host-42".to_owned()),
            died_from: Some("2026-11-15T00:00:00Z".parse().unwrap()),
            died_before: Some("2026-11-22T10:00:00Z".parse().unwrap()),
            ids: BTreeSet::new(),
            limit: 7,
        };
        assert_eq!(filter, expected);
    }

    #[test]
    fn an_age_that_is_none_is_named() {
        let Ok(Action::List(args)) = parse("list --older-than soon") else { panic!("not a list") };
        let mut findings = Findings::default();
        args.filter.resolve(0, Timestamp::UNIX_EPOCH, &mut findings);
        let refused = findings.check().unwrap_err().to_string();
        assert!(refused.contains("--older-than: "), "{refused}");
    }
}
