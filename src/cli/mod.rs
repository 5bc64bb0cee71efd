//! Wiring: the only place that picks concrete types. One file a subcommand.

mod action;
mod check;
mod dead_letters;
mod demo;
mod healthcheck;
mod ingress;
mod isolation;
mod module;
mod poll;
mod prompt;
pub mod roles;
mod serve;
mod simulate;
mod token;
mod worker;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use self::roles::Roles;
use crate::broker::rabbitmq::{self, RabbitMq};
use crate::broker::sqlite::{self, Sqlite};
use crate::config::{BrokerUrl, LogArgs, Refused};
use crate::job::TOPOLOGY;
use crate::shutdown::Shutdown;
use crate::telemetry::{self, LogFormat, Telemetry};

/// The configuration cannot be used: mend it before starting again (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIGURATION: u8 = 78;

/// `poll` did what it could, and some hosts are not settled. Another number than those of clap and of failures.
const EXIT_UNSETTLED: u8 = 3;

/// `module edit --exit-code` had nothing to change.
const EXIT_UNCHANGED: u8 = 4;

/// A bridge between Cisco Threat Response, Vectra Cognito and Microsoft Defender for Endpoint.
#[derive(Debug, Parser)]
#[command(name = "defender-bridge", version = env!("BRIDGE_VERSION"), propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ingress and worker in one process: the single-machine deployment
    Serve(Box<serve::ServeArgs>),
    /// The ingress alone, for scaling; needs RabbitMQ
    Ingress(Box<ingress::IngressRoleArgs>),
    /// A worker alone, for scaling; needs RabbitMQ
    Worker(Box<worker::WorkerRoleArgs>),
    /// Find hosts in Cognito by tags or scores, once or for ever, and have them worked: the flags of the cron script
    Poll(Box<poll::PollArgs>),
    /// Reach every peer with the configuration of a role, and say what would not work: permissions, secrets, clocks, hosts
    Check(Box<check::CheckArgs>),
    /// The emergency brake: who is isolated; pause, resume, release, and the hourly cap
    Isolation(isolation::IsolationArgs),
    /// How a machine action stands, asked of Defender
    Action(action::ActionArgs),
    /// What nobody could work: list, show, redrive, discard
    DeadLetters(dead_letters::DeadLettersArgs),
    /// Ask the role that runs here whether it is ready: the exit code says it, for container engines
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Try it out: simulated Microsoft, ingress and worker on this machine, one sample request, then keep serving
    Demo(demo::DemoArgs),
    /// The simulated Entra, Defender, Graph, Cognito and Cisco platform over HTTP
    Simulate(simulate::SimulateArgs),
    /// Make the relay's token, and a SECRET_KEY if there is none; mint and inspect tokens
    Token(Box<token::TokenArgs>),
    /// Register the relay as a module of Cisco Threat Response: add, edit, remove, list
    Module(Box<module::ModuleArgs>),
}

/// Runs the command to its end.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let done =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime did not start").and_then(
            |runtime| {
                let done = runtime.block_on(dispatch(cli));
                // A blocking call that is still under way (an upstream's name being resolved, say) does not hold up the end.
                runtime.shutdown_background();
                done
            },
        );
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("defender-bridge: {error:#}");
            if error.is::<Refused>() {
                ExitCode::from(EXIT_CONFIGURATION)
            } else if error.is::<poll::Unsettled>() {
                ExitCode::from(EXIT_UNSETTLED)
            } else if error.is::<module::Unchanged>() {
                ExitCode::from(EXIT_UNCHANGED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => serve::run(*args, &cli.log).await,
        Command::Ingress(args) => ingress::run(*args, &cli.log).await,
        Command::Worker(args) => worker::run(*args, &cli.log).await,
        Command::Poll(args) => poll::run(*args, &cli.log).await,
        Command::Check(args) => check::run(*args, &cli.log).await,
        Command::Isolation(args) => isolation::run(args, &cli.log).await,
        Command::Action(args) => action::run(args, &cli.log).await,
        Command::DeadLetters(args) => dead_letters::run(args, &cli.log).await,
        Command::Healthcheck(args) => healthcheck::run(args).await,
        Command::Demo(args) => demo::run(args, &cli.log).await,
        Command::Simulate(args) => simulate::run(args, &cli.log).await,
        Command::Token(args) => token::run(*args),
        Command::Module(args) => module::run(*args, &cli.log).await,
    }
}

/// Starts telemetry and shows the warnings of the configuration.
fn begin(format: LogFormat, log: &LogArgs, quiet: bool, warnings: &[String]) -> anyhow::Result<Telemetry> {
    let telemetry = telemetry::start(format, log.verbose, quiet, telemetry::otlp_is_configured())
        .context("telemetry did not start")?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(telemetry)
}

/// Opens the embedded queue's file.
async fn open_sqlite(path: &std::path::Path) -> anyhow::Result<Sqlite> {
    Sqlite::open(sqlite::Settings { path: path.to_owned(), topology: &TOPOLOGY })
        .await
        .with_context(|| format!("the queue's file {} cannot be used", path.display()))
}

/// Opens the embedded queue's file and runs `roles` on it to their end.
async fn work_on_sqlite(path: &std::path::Path, roles: Roles, shutdown: Shutdown) -> anyhow::Result<()> {
    roles::start(open_sqlite(path).await?, roles, shutdown).await?.wait().await
}

/// Connects to RabbitMQ under the name of this role and runs `roles` on it to their end. A process that is told to stop
/// before the broker is there just ends.
async fn work_on_rabbitmq(role: &str, broker: &BrokerUrl, roles: Roles, shutdown: Shutdown) -> anyhow::Result<()> {
    tokio::select! {
        broker = connect_rabbitmq(role, broker) => roles::start(broker?, roles, shutdown).await?.wait().await,
        () = shutdown.begun() => Ok(()),
    }
}

async fn connect_rabbitmq(role: &str, broker: &BrokerUrl) -> anyhow::Result<RabbitMq> {
    use secrecy::ExposeSecret as _;
    let BrokerUrl::RabbitMq { urls, namespace } = broker else {
        anyhow::bail!("{role} needs RabbitMQ");
    };
    let settings = rabbitmq::Settings {
        urls: urls.iter().map(|url| url.expose_secret().to_owned()).collect(),
        namespace: namespace.clone(),
        connection_name: format!("defender-bridge {role}"),
        topology: &TOPOLOGY,
    };
    RabbitMq::connect(settings).await.context("RabbitMQ cannot be used")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
