//! `simulate`: the fakes over HTTP, for trying out a deployment without a tenant.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::config::{Findings, LogArgs};
use crate::shutdown::Shutdown;
use crate::simulator::cognito::{
    BRAIN_CLIENT_ID, BRAIN_CLIENT_SECRET, BRAIN_TOKEN, BRAIN_USER, BrainSettings, Emit, EmitForm,
};
use crate::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use crate::simulator::{PLATFORM_CLIENT_ID, PLATFORM_CLIENT_PASSWORD, Settings, Simulator};

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
    /// Personal token of Cognito's brain
    #[arg(long, default_value = BRAIN_TOKEN, hide_default_value = true, value_name = "TOKEN")]
    cognito_token: String,
    /// API versions that the brain has; others answer 404
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = ["v2.2", "v2.3", "v2.4", "v2.5", "v3.3", "v3.4", "v3.5"],
        default_values_t = BrainSettings::default().behaviour.versions,
        value_name = "VERSIONS"
    )]
    cognito_versions: Vec<String>,
    /// Webhook that gets the brain's changes of tags and scores as events, like http://127.0.0.1:8080/webhooks/cognito
    #[arg(long, value_name = "URL")]
    emit_to: Option<String>,
    /// Standard Webhooks secret (whsec_...) that signs those events
    #[arg(long, requires = "emit_to", value_name = "SECRET")]
    emit_secret: Option<String>,
    /// Bearer token that goes with those events
    #[arg(long, requires = "emit_to", value_name = "TOKEN")]
    emit_token: Option<String>,
    /// Form of those events
    #[arg(long, value_enum, default_value_t = Form::Native, requires = "emit_to", value_name = "FORM")]
    emit_form: Form,
}

/// The forms of [`EmitForm`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// The appliance's JSON
    Native,
    /// The hosted flavour's JSON
    Hosted,
    /// The appliance's syslog line as forwarders wrap it
    Syslog,
    /// The bridge's own events
    Canonical,
}

impl From<Form> for EmitForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Native => Self::Native,
            Form::Hosted => Self::Hosted,
            Form::Syslog => Self::Syslog,
            Form::Canonical => Self::Canonical,
        }
    }
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
    let own_token = args.cognito_token != BRAIN_TOKEN;
    settings.brain.token = args.cognito_token;
    settings.brain.behaviour.versions = args.cognito_versions;
    let simulator = Simulator::start(settings).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    if let Some(url) = &args.emit_to {
        let emit =
            Emit { token: args.emit_token, secret: args.emit_secret, form: args.emit_form.into(), ..Emit::to(url) };
        simulator.control().brain().emit(Some(emit)).map_err(|error| anyhow::anyhow!("--emit-to: {error}"))?;
    }
    let url = simulator.url();
    println!("Simulated Entra, Defender, Graph, Cognito and platform. Settings for a bridge that shall use them:");
    println!("  export BRIDGE_ENTRA_URL={url} BRIDGE_DEFENDER_URL={url} BRIDGE_GRAPH_URL={url}");
    // A token of the user's own is not printed.
    let token = if own_token { "" } else { BRAIN_TOKEN };
    println!("  export COGNITO_BRAIN={url} COGNITO_TOKEN={token}");
    println!("and the application to mint a token for:");
    println!("  export TENANT_ID={DEMO_TENANT_ID} APP_ID={DEMO_CLIENT_ID} APP_SECRET='{DEMO_CLIENT_SECRET}'");
    println!("Cognito's OAuth2 client: {BRAIN_CLIENT_ID}, secret '{BRAIN_CLIENT_SECRET}'; its user: {BRAIN_USER}");
    println!("Cisco's platform, for `module`:");
    println!(
        "  export BRIDGE_PLATFORM_URL={url} TR_API_CLIENT_ID={PLATFORM_CLIENT_ID} \
         TR_API_CLIENT_PASSWORD={PLATFORM_CLIENT_PASSWORD}"
    );
    println!("Requests seen, and more controls: {url}/_simulator/requests");
    shutdown.begun().await;
    simulator.stop().await;
    telemetry.shutdown().await;
    Ok(())
}
