//! Measures the relay: requests per second and latency of `/observe/observables`, from the caller's socket through
//! ingress, queue and worker and back.
//!
//! ```text
//! cargo bench --bench relay                     about five minutes
//! cargo bench --bench relay -- --quick          about one, for a first look
//! cargo bench --bench relay -- --help
//! ```
//!
//! Nothing here is a test: no time is asserted. The exit code is not zero only when something could not be measured, or
//! when an answer was wrong.
//!
//! # What is compared
//! A machine's speed says little about a program, so every figure stands beside a floor of the same run: a bare lapin
//! request/reply echo on the same broker ([`echo`]), with as many callers and bodies of the same size. Floor and product
//! take turns in short cells (A B A B ...), so that a drift of the machine meets all alike. The kinds of cells:
//!
//! | kind | processes | answers |
//! |---|---|---|
//! | `echo` | this one asks, one more replies | the floor |
//! | `rabbitmq-cached` | `ingress`, `worker` | kept in memory (`BRIDGE_ANSWER_TTL` longer than the run) |
//! | `rabbitmq-fresh` | `ingress`, `worker` | never kept (`BRIDGE_ANSWER_TTL=0`): each asks the simulator |
//! | `sqlite-cached`, `sqlite-fresh` | `serve` | the same on the embedded queue |
//!
//! All are the real binary in processes of their own, as is the simulator, so that CPU time and memory of each can be
//! read from `/proc` (Linux; elsewhere those columns stay empty). A caller is a closed loop on a connection of its own:
//! it asks, reads the answer to its end, asks again ([`load`]).
//!
//! The binary that cargo builds for a benchmark has the features of the dev-dependencies too (tokio's `test-util`), which
//! cost next to nothing; `--binary` measures another one, a former version for instance.
//!
//! # The broker
//! The one of `TEST_RABBITMQ_URL`, where names of their own (`test-...`) are left behind; else a private node is started by
//! `tests/rabbitmq-node` on free ports and stopped at the end, also after an error or Ctrl-C.

mod echo;
mod load;
#[expect(dead_code, reason = "shared with the campaign, which breaks its broker")]
mod node;
mod process;
mod report;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};

use self::load::Cell;
use self::report::Report;
use self::stage::Stage;

/// What a cell measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Kind {
    Echo,
    #[value(name = "rabbitmq-cached")]
    RabbitCached,
    #[value(name = "rabbitmq-fresh")]
    RabbitFresh,
    SqliteCached,
    SqliteFresh,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::RabbitCached => "rabbitmq-cached",
            Self::RabbitFresh => "rabbitmq-fresh",
            Self::SqliteCached => "sqlite-cached",
            Self::SqliteFresh => "sqlite-fresh",
        }
    }

    const fn is_cached(self) -> bool {
        matches!(self, Self::RabbitCached | Self::SqliteCached)
    }

    const fn needs_broker(self) -> bool {
        matches!(self, Self::Echo | Self::RabbitCached | Self::RabbitFresh)
    }
}

/// Measures the relay against a bare request/reply echo.
#[derive(Debug, Parser)]
#[command(name = "relay", max_term_width = 110)]
struct Options {
    /// A first look in about a minute: short cells
    #[arg(long)]
    quick: bool,
    /// Measured seconds of a cell [default: 5; quick: 1]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Seconds of load before them [default: 1; quick: 0.3]
    #[arg(long, value_name = "SECONDS")]
    warm_up: Option<f64>,
    /// Turns that the kinds take for each number of callers [default: 2; quick: 1]
    #[arg(long, value_name = "COUNT")]
    rounds: Option<u32>,
    /// Callers at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256", value_name = "COUNTS")]
    callers: Vec<usize>,
    /// What to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "echo,rabbitmq-cached,rabbitmq-fresh,sqlite-cached,sqlite-fresh"
    )]
    kinds: Vec<Kind>,
    /// Measure this binary in place of the one that cargo built
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Keep the processes' logs and print where they are
    #[arg(long)]
    keep_logs: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a process that this program started does.
#[derive(Debug, Subcommand)]
enum Role {
    /// The replying end of the floor
    #[command(hide = true)]
    EchoServer { queue: String, reply_bytes: usize },
}

/// How long the parts of a run take.
#[derive(Debug, Clone, Copy)]
struct Timing {
    warm_up: Duration,
    measured: Duration,
    rounds: u32,
}

impl Options {
    fn timing(&self) -> anyhow::Result<Timing> {
        let seconds = |given: Option<f64>, usual: f64, quick: f64| {
            let seconds = given.unwrap_or(if self.quick { quick } else { usual });
            Duration::try_from_secs_f64(seconds).context("not a number of seconds")
        };
        Ok(Timing {
            warm_up: seconds(self.warm_up, 1.0, 0.3)?,
            measured: seconds(self.seconds, 5.0, 1.0)?,
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 2 }).max(1),
        })
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
            eprintln!("relay: the runtime did not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        if let Some(Role::EchoServer { queue, reply_bytes }) = &options.role {
            return echo::serve(queue, *reply_bytes).await.map(|()| true);
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
            eprintln!("relay: some requests were not answered, or wrongly; see `failed`");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("relay: {error:#}");
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

/// Measures and prints everything. Whether all requests were answered as they should be.
async fn run(options: &Options) -> anyhow::Result<bool> {
    let timing = options.timing()?;
    let mut kinds = options.kinds.clone();
    kinds.sort_unstable();
    kinds.dedup();
    let mut stage = Stage::set(&kinds, options.binary.as_deref()).await?;
    let mut report = Report::begin(&stage, timing);
    for &callers in &options.callers {
        for round in 0..timing.rounds {
            for &kind in &kinds {
                let cell = measure(&stage, kind, callers.max(1), timing).await?;
                eprintln!(
                    "{callers:>4} callers, round {}: {:<16} {:>7.0}/s",
                    round + 1,
                    kind.name(),
                    cell.per_second()
                );
                report.add(kind, callers, cell);
            }
        }
    }
    report.print(&stage);
    stage.clear().await?;
    if options.keep_logs {
        println!("logs: {}", stage.keep_logs().display());
    }
    Ok(report.all_answered())
}

async fn measure(stage: &Stage, kind: Kind, callers: usize, timing: Timing) -> anyhow::Result<Cell> {
    let meter = stage.meter(kind);
    match kind {
        Kind::Echo => {
            let client = stage.echo.as_ref().context("the echo was not set up")?;
            load::run(client.callers(callers), &meter, timing).await
        }
        _ => {
            let target = stage.target(kind).context("the product was not set up")?;
            load::run(target.callers(callers).await?, &meter, timing).await
        }
    }
}
