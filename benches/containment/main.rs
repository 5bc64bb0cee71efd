//! Measures time to containment: from the webhook's 202 to a block tag's event until Defender took the isolation, and
//! likewise from an unblock tag to the release; at rest, and with the queue full, the relay busy and the desk killed.
//! Then how long a hundred hosts take to get their context, and whether `isolation pause` holds in a storm of block tags.
//!
//! ```text
//! cargo bench --bench containment                        about six minutes
//! cargo bench --bench containment -- --parts idle,pause
//! cargo bench --profile dev --bench containment          without a release build
//! ```
//!
//! No time is asserted. The exit code is not zero when something could not be measured, when a request was not answered at
//! all, or when an isolation was posted after the pause.
//!
//! One ingress and three workers are processes of the real binary on RabbitMQ, with the product's rates; what is scaled is
//! printed. The simulator in this process answers every call after the same time. The floor is what nobody can save: two
//! calls to Cognito and three to Defender, made one after the other by a plain HTTP client in the same run.
//!
//! The broker is the one of `TEST_RABBITMQ_URL`, where names of their own (`test-...`) are left behind; else a private node.

mod floor;
mod hundred;
mod latency;
#[path = "../relay/node.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod node;
mod pause;
#[path = "../relay/process.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod process;
#[path = "../campaign/stage.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use defender_bridge::simulator;

use self::node::Node;
use self::stage::Stage;

/// Workers of the deployment.
const WORKERS: usize = 3;

/// Settings of the product that are not its defaults.
fn settings() -> Vec<(&'static str, String)> {
    let many = || "1000000".to_owned();
    vec![
        ("BRIDGE_GUARD_MAX_ISOLATIONS_PER_HOUR", many()),
        ("BRIDGE_GUARD_MAX_ISOLATED", many()),
        ("BRIDGE_GUARD_FIRST_SWEEP", many()),
        ("BRIDGE_WEBHOOK_RATE", "10000".to_owned()),
        // Defender has no quotas here.
        ("BRIDGE_QUOTA_ALERTS", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_MACHINES", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_ACTIONS", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_MACHINEACTIONS", "1000000/1000000".to_owned()),
        ("BRIDGE_QUOTA_HUNTING", "1000000".to_owned()),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Time to containment, nothing else to do
    Idle,
    /// Time to containment under load, the desk killed
    Loaded,
    /// A hundred hosts get their context
    Hundred,
    /// The emergency brake in a storm
    Pause,
}

/// Measures time to containment.
#[derive(Debug, Parser)]
#[command(name = "containment", max_term_width = 110)]
struct Options {
    #[arg(long, value_enum, value_delimiter = ',', default_value = "idle,loaded,hundred,pause", value_name = "PARTS")]
    parts: Vec<Part>,
    /// How long every call to Cognito and Defender takes
    #[arg(long, default_value_t = 50, value_name = "MILLISECONDS")]
    latency: u64,
    /// Hosts that are blocked and unblocked, one a second
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    samples: usize,
    /// Enrichments that wait under load
    #[arg(long, default_value_t = 2_000, value_name = "COUNT")]
    enrichments: usize,
    /// Callers of the relay under load
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    callers: usize,
    /// Keep the processes' logs and print where they are
    #[arg(long)]
    keep_logs: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
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
            eprintln!("containment: the runtime did not start: {error}");
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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("containment: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<bool> {
    let node = Node::find().await?;
    let latency = Duration::from_millis(options.latency);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("RabbitMQ {}{}", node.version, if node.is_private() { ", a private node" } else { "" });
    println!(
        "{cores} cores, load {}; {} build",
        load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        if cfg!(debug_assertions) { "a debug" } else { "an optimized" }
    );
    println!("one ingress, {WORKERS} workers; every call to Cognito and Defender takes {latency:?}; no quotas there");
    let scaled: Vec<String> = settings().iter().map(|(name, value)| format!("{name}={value}")).collect();
    println!("scaled: {}; all else as by default", scaled.join(" "));
    let mut good = true;
    for part in &options.parts {
        // A stage of its own for each part: no events left over from another.
        let settings_of_simulator =
            simulator::Settings { quota: None, latency, record_limit: 0, ..simulator::Settings::default() };
        let mut stage = Stage::set(&node.url, WORKERS, &settings(), settings_of_simulator).await?;
        let done = match part {
            Part::Idle => latency::idle(&mut stage, options.samples).await,
            Part::Loaded => latency::loaded(&mut stage, options.samples, options.enrichments, options.callers).await,
            Part::Hundred => hundred::measure(&mut stage).await,
            Part::Pause => pause::measure(&mut stage).await,
        };
        if options.keep_logs || !matches!(done, Ok(true)) {
            println!("logs: {}", stage.keep_logs().display());
        }
        good &= done?;
    }
    Ok(good)
}
