//! `simulate`: the fakes over HTTP, for trying out a deployment without a tenant.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::config::{Findings, LogArgs};
use crate::shutdown::Shutdown;
use crate::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use crate::simulator::{Settings, Simulator};

/// Connections are cut this long after a stop.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Address of the simulator; port 0 = any free port
    #[arg(long, env = "BRIDGE_SIMULATOR_LISTEN", default_value = "127.0.0.1:8090", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Answer without quotas (by default Microsoft's published ones are enforced)
    #[arg(long)]
    no_quota: bool,
    /// Count requests without keeping them: no list at /_simulator/requests, less time and memory for each
    #[arg(long)]
    no_record: bool,
    /// Time that each call takes at least
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    latency: String,
}

pub(super) async fn run(args: SimulateArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let latency = if args.latency.trim() == "0s" {
        Duration::ZERO
    } else {
        findings.duration("--latency", &args.latency, (Duration::ZERO, Duration::from_secs(600)))
    };
    let warnings = findings.check()?;
    let telemetry = super::begin(format, log, false, &warnings)?;
    let shutdown = Shutdown::new(GRACE);
    shutdown.on_signals()?;

    let mut settings = Settings { listen: args.listen, latency, ..Settings::default() };
    if args.no_quota {
        settings.quota = None;
    }
    if args.no_record {
        settings.record_limit = 0;
    }
    let simulator = Simulator::start(settings).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let url = simulator.url();
    println!("Simulated Entra, Defender and Graph. Settings for a bridge that shall use them:");
    println!("  export BRIDGE_ENTRA_URL={url} BRIDGE_DEFENDER_URL={url} BRIDGE_GRAPH_URL={url}");
    println!("and the application to mint a token for:");
    println!("  export TENANT_ID={DEMO_TENANT_ID} APP_ID={DEMO_CLIENT_ID} APP_SECRET='{DEMO_CLIENT_SECRET}'");
    println!("Requests seen, and more controls: {url}/_simulator/requests");
    shutdown.begun().await;
    simulator.stop().await;
    telemetry.shutdown().await;
    Ok(())
}
