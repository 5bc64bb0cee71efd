//! A campaign against the bridge: thousands of hosts, random edits of their tags, events that are lost, sent twice or out of
//! order, faults of Cognito and Defender, workers and the broker killed at random. In the end every promise is looked at.
//!
//! ```text
//! cargo bench --bench campaign                                             about a quarter of an hour
//! cargo bench --bench campaign -- --seed 7 --hosts 200 --minutes 1         one that was seen before, smaller
//! cargo bench --profile dev --bench campaign                               without a release build
//! ```
//!
//! One ingress and three workers are processes of the real binary on RabbitMQ; the simulator runs in this process, which
//! therefore knows what is true of every machine and who wrote which tag. The seed decides hosts, edits, fates and faults;
//! processes and networks keep their own time, so the same seed is the same campaign but not the same run.
//!
//! The exit code is not zero when a promise was broken; each host concerned is printed with all its history.
//!
//! The broker is a private node, which is killed and has memory alarms meanwhile; or the one of `TEST_RABBITMQ_URL`, which is
//! left alone.

mod analysts;
mod chance;
#[path = "../relay/node.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod node;
#[path = "../relay/process.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod process;
mod promises;
mod run;
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod stage;
mod trouble;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use self::node::Node;
use self::run::Plan;

/// Looks for broken promises.
#[derive(Debug, Parser)]
#[command(name = "campaign", max_term_width = 110)]
struct Options {
    /// Decides everything that is random [default: another one each time]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    #[arg(long, default_value_t = 2_000, value_name = "COUNT")]
    hosts: usize,
    /// How long analysts edit and things go wrong
    #[arg(long, default_value_t = 5.0, value_name = "MINUTES")]
    minutes: f64,
    /// Edits a second
    #[arg(long, default_value_t = 15.0, value_name = "NUMBER")]
    edits: f64,
    /// Seconds between two kills, on average
    #[arg(long, default_value_t = 12.0, value_name = "SECONDS")]
    kills: f64,
    /// Seconds between two troubles of a private broker, on average
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    breaks: f64,
    /// The longest wait for quiet afterwards
    #[arg(long, default_value_t = 15.0, value_name = "MINUTES")]
    quiet: f64,
    /// Keep the processes' logs and print where they are; kept in any case when a promise was broken
    #[arg(long)]
    keep_logs: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks too, without arguments; `cargo bench` gives `--bench`.
    if std::env::args_os().len() == 1 {
        println!("nothing done: run it with cargo bench");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("campaign: the runtime did not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        // A signal drops the run, and with it every process it started.
        tokio::select! {
            done = campaign(&options) => done,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("campaign: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn campaign(options: &Options) -> anyhow::Result<bool> {
    let plan = Plan {
        seed: options.seed.unwrap_or_else(|| uuid::Uuid::now_v7().as_u64_pair().1 % 1_000_000),
        hosts: options.hosts.max(1),
        length: Duration::try_from_secs_f64(options.minutes * 60.0)?,
        edits: options.edits,
        kills: Duration::try_from_secs_f64(options.kills)?,
        breaks: Duration::try_from_secs_f64(options.breaks)?,
        quiet: Duration::try_from_secs_f64(options.quiet * 60.0)?,
        workers: 3,
        odd_percent: 20,
        keep_logs: options.keep_logs,
    };
    let node = Node::find().await?;
    println!("RabbitMQ {}{}", node.version, if node.is_private() { ", a private node" } else { "" });
    run::run(&plan, &node).await
}
