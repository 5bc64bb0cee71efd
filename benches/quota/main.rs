//! Measures what Defender's quota is spent on, and whether it is ever exceeded: calls per request, observables answered
//! per minute, a steady load, tenants that share workers, the desk killed, and ten times more load than can be worked.
//!
//! ```text
//! cargo bench --bench quota                              about a quarter of an hour
//! cargo bench --bench quota -- --quick --parts calls,rate
//! cargo bench --bench quota -- --parts hour              a real hour of the published quotas
//! cargo bench --profile dev --bench quota                without a release build
//! ```
//!
//! No time is asserted. Violations are counted and make the exit code other than zero: a call that Microsoft would have
//! answered 429, a window that held more calls than its limit, a request that cost more than six hunting calls, one that
//! was accepted and not answered within its deadline, or an isolation that was not carried out.
//!
//! One ingress and the workers are processes of the real binary on RabbitMQ; the simulator in this process has the published
//! quotas, which the product may use in full, where a part does not say otherwise. The floor is one alert call for each
//! observable: 100 a minute.
//!
//! The broker is the one of `TEST_RABBITMQ_URL`, where names of their own (`test-...`) are left behind; else a private node.

mod ask;
mod calls;
#[path = "../relay/node.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod node;
mod overload;
#[path = "../relay/process.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod process;
mod rate;
#[path = "../campaign/stage.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod stage;
mod tenants;
mod universe;
mod windows;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use self::node::Node;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Calls per request, and of fifty callers with overlapping sets
    Calls,
    /// Observables answered per minute, with 2, 20 and 80 % of them known
    Rate,
    /// The scarcer window in full, for several of its lengths
    Steady,
    /// Both windows in full for a real hour; not among those that run by default
    Hour,
    /// Eight workers, three tenants, three times the quota, and containment
    Tenants,
    /// The same with the desk killed every few seconds
    Desk,
    /// Ten times more requests than can be worked
    Overload,
}

/// Measures what the quota is spent on.
#[derive(Debug, Parser)]
#[command(name = "quota", max_term_width = 110)]
struct Options {
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "calls,rate,steady,tenants,desk,overload",
        value_name = "PARTS"
    )]
    parts: Vec<Part>,
    /// A shorter time for each part: for a first look
    #[arg(long)]
    quick: bool,
    /// Keep the processes' logs and print where they are
    #[arg(long)]
    keep_logs: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// How long a part lasts: at least one window, and more than two where it is not for a first look.
    fn lasts(&self) -> Duration {
        Duration::from_secs(if self.quick { 65 } else { 150 })
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
            eprintln!("quota: the runtime did not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        // A signal drops the run, and with it every process it started.
        tokio::select! {
            done = run(&options) => done,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(violations) => {
            println!("\n{violations} violations");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("quota: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<u64> {
    let node = Node::find().await?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("RabbitMQ {}{}", node.version, if node.is_private() { ", a private node" } else { "" });
    println!(
        "{cores} cores, load {}; {} build",
        load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        if cfg!(debug_assertions) { "a debug" } else { "an optimized" }
    );
    let mut violations = 0;
    for part in &options.parts {
        violations += match part {
            Part::Calls => calls::measure(&node.url).await?,
            Part::Rate => rate::measure(&node.url, options.lasts()).await?,
            Part::Steady => rate::steady(&node.url, options.lasts()).await?,
            Part::Hour => rate::hour(&node.url).await?,
            Part::Tenants => tenants::measure(&node.url, options.lasts(), false, options.keep_logs).await?,
            Part::Desk => tenants::measure(&node.url, options.lasts(), true, options.keep_logs).await?,
            Part::Overload => overload::measure(&node.url, options.quick).await?,
        };
    }
    Ok(violations)
}
