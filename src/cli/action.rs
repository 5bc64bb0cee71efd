//! `action show`: how a machine action stands, asked of Defender now. What `GET /actions/{id}` tells a caller of the relay,
//! for an operator with the application's credentials: neither queue nor worker is needed.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::Instant;

use super::roles;
use crate::config::{ApplicationArgs, DefenderArgs, Findings, LogArgs};
use crate::defender::Limits;

/// What a person at the keyboard waits for, at most.
const PATIENCE: Duration = Duration::from_secs(50);

#[derive(Debug, Args)]
pub(super) struct ActionArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show one machine action: what it does to which machine, who asked for it, and how far it is
    Show(Box<ShowArgs>),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Defender's id of the action, as in the audit line, in `isolation list` and in the relay's header
    /// `x-machine-action-id`
    #[arg(value_name = "ACTION_ID")]
    id: String,
    #[command(flatten)]
    defender: DefenderArgs,
    #[command(flatten)]
    applications: ApplicationArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ActionArgs, log: &LogArgs) -> anyhow::Result<()> {
    let Action::Show(args) = args.action;
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let settings = args.defender.resolve(&mut findings);
    let applications = args.applications.resolve(&mut findings);
    let warnings = findings.check()?;
    let telemetry = super::begin(format, log, true, &warnings)?;
    let shown = async {
        let defender = roles::defender(
            &settings.expect("a setting that cannot be read is a finding"),
            crate::retry::Policy::default(),
        )?;
        let credentials = applications.expect("a value that is missing is a finding").credentials;
        let session = defender.session(credentials, Instant::now() + PATIENCE, Limits::default());
        let action = session.machine_action(&args.id).await.context("Defender did not say")?;
        let Some(action) = action else { bail!("Defender does not know the machine action {}", args.id) };
        let updated = action.last_update_date_time_utc.as_ref().or(action.last_update_time_utc.as_ref());
        let rows = [
            ("id", Some(&action.id)),
            ("type", Some(&action.kind)),
            ("status", Some(&action.status)),
            ("scope", action.scope.as_ref()),
            ("machineId", action.machine_id.as_ref()),
            ("computerDnsName", action.computer_dns_name.as_ref()),
            ("requestor", action.requestor.as_ref()),
            ("requestorComment", action.requestor_comment.as_ref()),
            ("creationDateTimeUtc", action.creation_date_time_utc.as_ref()),
            ("lastUpdateDateTimeUtc", updated),
        ];
        if args.json {
            let members = rows.into_iter().map(|(name, value)| (name.to_owned(), json!(value)));
            println!("{}", serde_json::Value::Object(members.collect()));
        } else {
            for (name, value) in rows {
                // Comments are other people's text: nothing in it may steer the terminal.
                let text: String = value.map_or("-", String::as_str).chars().filter(|c| !c.is_control()).collect();
                println!("{name:<22} {text}");
            }
        }
        Ok(())
    };
    let done = shown.await;
    telemetry.shutdown().await;
    done
}
