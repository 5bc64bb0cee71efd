//! Measures the webhook: host events accepted per second, and the time from a request to its 202, which is given when the
//! broker has confirmed.
//!
//! ```text
//! cargo bench --bench accept                    about two minutes
//! cargo bench --bench accept -- --quick         a minute, for a first look
//! cargo bench --bench accept -- --help
//! ```
//!
//! Nothing here is a test: no time is asserted. The exit code is not zero only when something could not be measured, or
//! when an event was not accepted.
//!
//! # What is compared
//! Every figure stands beside a floor of the same run: bare confirmed publishes, by as many callers, of bodies of the same
//! size, to the same kind of queue. On RabbitMQ that is lapin on a quorum queue with the arguments of the product's
//! (mandatory, persistent, one channel); on the embedded queue it is the queue itself, called in this process. Kinds:
//!
//! | kind | a caller's step |
//! |---|---|
//! | `floor` | publishes one message and waits for its confirm |
//! | `single` | posts one event with a bearer token on a connection of its own and waits for the 202 |
//! | `batch` | the same with an array of 100 events |
//!
//! Kinds take turns in short cells, each on a new queue that nobody reads, so that none is measured on what another left.
//! On RabbitMQ the ingress is the real binary; on the embedded queue, which serves one process, it is the ingress alone in
//! a process of its own, so that no worker takes part.
//!
//! The broker is that of `TEST_RABBITMQ_URL`, or a private node as for the benchmark of the relay.

#[path = "../relay/load.rs"]
#[expect(dead_code, reason = "shared with the benchmark of the relay, which uses all of it")]
mod load;
#[path = "../relay/node.rs"]
#[expect(dead_code, reason = "shared with the benchmark of the relay, which uses all of it")]
mod node;
#[path = "../relay/process.rs"]
#[expect(dead_code, reason = "shared with the benchmark of the relay, which uses all of it")]
mod process;

mod floor;
mod hook;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use self::load::Cell;
use self::node::Node;

/// Events in a request of the kind `batch`: the most that the webhook takes.
const BATCH: usize = 100;

/// Which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Queue {
    #[value(name = "rabbitmq")]
    RabbitMq,
    Sqlite,
}

/// What a caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Floor,
    Single,
    Batch,
}

impl Kind {
    /// Events in one step.
    const fn events(self) -> usize {
        match self {
            Self::Floor | Self::Single => 1,
            Self::Batch => BATCH,
        }
    }
}

/// Measures accepted host events against bare confirmed publishes.
#[derive(Debug, Parser)]
#[command(name = "accept", max_term_width = 110)]
struct Options {
    /// A first look: short cells
    #[arg(long)]
    quick: bool,
    /// Measured seconds of a cell [default: 2; quick: 1.5]. A queue holds 100,000 events
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Turns that the kinds take for each number of callers [default: 2; quick: 1]
    #[arg(long, value_name = "COUNT")]
    rounds: Option<u32>,
    /// Callers at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_name = "COUNTS")]
    callers: Vec<usize>,
    /// On which queues
    #[arg(long, value_enum, value_delimiter = ',', default_value = "rabbitmq,sqlite")]
    queues: Vec<Queue>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a process that this program started does.
#[derive(Debug, Subcommand)]
enum Role {
    /// An ingress alone on an embedded queue
    #[command(hide = true)]
    Ingress { path: PathBuf, listen: SocketAddr, admin_listen: SocketAddr },
}

/// How long the parts of a cell take.
#[derive(Debug, Clone, Copy)]
struct Timing {
    warm_up: Duration,
    measured: Duration,
}

impl Options {
    fn timing(&self) -> anyhow::Result<Timing> {
        let seconds = self.seconds.unwrap_or(if self.quick { 1.5 } else { 2.0 });
        let measured = Duration::try_from_secs_f64(seconds).context("not a number of seconds")?;
        Ok(Timing { warm_up: measured / 5, measured })
    }
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks too, without arguments; `cargo bench` gives `--bench`.
    if std::env::args_os().len() == 1 {
        println!("nothing measured: run it with cargo bench");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("accept: the runtime did not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        if let Some(Role::Ingress { path, listen, admin_listen }) = &options.role {
            return hook::serve(path, *listen, *admin_listen).await.map(|()| true);
        }
        // A signal drops the run, and with it every process it started.
        tokio::select! {
            done = run(&options) => done,
            () = interrupted() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("accept: some events were not accepted (see `failed`), or none in the time of a cell");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("accept: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Measures and prints everything. Whether all events were accepted.
async fn run(options: &Options) -> anyhow::Result<bool> {
    let timing = options.timing()?;
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 2 }).max(1);
    let mut queues = options.queues.clone();
    queues.sort_unstable();
    queues.dedup();
    let node = if queues.contains(&Queue::RabbitMq) { Some(Node::find().await?) } else { None };
    let folder = tempfile::Builder::new().prefix("accept-bench-").tempdir()?;
    let mut cells: BTreeMap<(Queue, usize, Kind), Cell> = BTreeMap::new();
    for &queue in &queues {
        for &callers in &options.callers {
            for round in 0..rounds {
                for kind in [Kind::Floor, Kind::Single, Kind::Batch] {
                    let callers = callers.max(1);
                    let cell = measure(queue, kind, callers, timing, node.as_ref(), folder.path()).await?;
                    let per_second = cell.per_second() * kind.events() as f64;
                    eprintln!("{queue:?}, {callers:>3} callers, round {}: {kind:<8?} {per_second:>8.0}/s", round + 1);
                    cells.entry((queue, callers, kind)).or_default().merge(cell);
                }
            }
        }
    }
    Ok(print(cells, timing, rounds, node.as_ref()))
}

/// Measures one cell on a queue of its own.
async fn measure(
    queue: Queue,
    kind: Kind,
    callers: usize,
    timing: Timing,
    node: Option<&Node>,
    folder: &Path,
) -> anyhow::Result<Cell> {
    match (queue, node) {
        (Queue::RabbitMq, Some(node)) if kind == Kind::Floor => floor::on_rabbitmq(&node.url, callers, timing).await,
        (Queue::RabbitMq, Some(node)) => hook::on_rabbitmq(&node.url, kind, callers, timing, folder).await,
        (Queue::RabbitMq, None) => anyhow::bail!("there is no broker"),
        (Queue::Sqlite, _) if kind == Kind::Floor => floor::on_sqlite(callers, timing, folder).await,
        (Queue::Sqlite, _) => hook::on_sqlite(kind, callers, timing, folder).await,
    }
}

/// Prints a table. Whether all events were accepted.
fn print(mut cells: BTreeMap<(Queue, usize, Kind), Cell>, timing: Timing, rounds: u32, node: Option<&Node>) -> bool {
    println!(
        "\n{} build, {rounds} x {:.1} s a cell, {} bytes a message; RabbitMQ {}, SQLite {}",
        if cfg!(debug_assertions) { "DEBUG" } else { "release" },
        timing.measured.as_secs_f64(),
        hook::message_bytes(),
        node.map_or("not measured", |node| node.version.as_str()),
        rusqlite::version(),
    );
    println!("\n  queue     callers  kind      events/s   of floor   p50 ms   p99 ms   failed");
    let mut floor = f64::NAN;
    let mut all = true;
    for ((queue, callers, kind), cell) in &mut cells {
        let per_second = cell.per_second() * kind.events() as f64;
        if *kind == Kind::Floor {
            floor = per_second;
        }
        println!(
            "  {:<8}  {callers:>7}  {:<8}  {per_second:>8.0}   {:>8.2}   {:>6.2}   {:>6.2}   {:>6}",
            format!("{queue:?}").to_lowercase(),
            format!("{kind:?}").to_lowercase(),
            per_second / floor,
            cell.percentile_ms(0.5),
            cell.percentile_ms(0.99),
            cell.failed,
        );
        all &= cell.failed == 0 && !cell.latencies_us.is_empty();
    }
    println!("\n  p50 and p99 are of a caller's step: one confirm, or one request of 1 or {BATCH} events");
    println!("  aim: an event is accepted in under 10 ms at the median");
    all
}
