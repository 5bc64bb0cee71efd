//! `worker`: one worker alone.

use clap::Args;

use super::roles::{self, Roles};
use crate::config::{
    BrokerArgs, CognitoArgs, DefenderArgs, Findings, HostArgs, KeyArgs, LogArgs, NotifyArgs, ProcessArgs, QuotaArgs,
    RespondArgs, SelfUserArgs, WorkerArgs,
};
use crate::shutdown::Shutdown;

#[derive(Debug, Args)]
pub(super) struct WorkerRoleArgs {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    defender: DefenderArgs,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    respond: RespondArgs,
    #[command(flatten)]
    quota: QuotaArgs,
    #[command(flatten)]
    cognito: CognitoArgs,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    self_user: SelfUserArgs,
    #[command(flatten)]
    notify: NotifyArgs,
}

pub(super) async fn run(args: WorkerRoleArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let process = args.process.resolve(&mut findings);
    let broker = args.broker.resolve(true, &mut findings);
    let keys = args.keys.resolve(true, &mut findings);
    let defender = args.defender.resolve(&mut findings);
    let settings = args.worker.resolve(&mut findings);
    let respond = args.respond.resolve(args.hosts.guard_of_machines(), &mut findings);
    let quota = args.quota.resolve(&mut findings);
    let hosts = args.hosts.resolve(&args.cognito, &args.self_user, &args.defender, &mut findings);
    let notify = args.notify.resolve(&args.defender, &mut findings);
    let warnings = findings.check()?;
    let defender = defender.expect("a setting that cannot be read is a finding");

    let telemetry = super::begin(format, log, false, &warnings)?;
    let shutdown = Shutdown::new(process.shutdown_grace);
    shutdown.on_signals()?;
    let roles = Roles {
        ingress: None,
        worker: Some(roles::Worker {
            defender,
            settings,
            seal_keys: keys.seal_keys,
            retry: crate::retry::Policy::default(),
            respond,
            quota,
            alone: false,
            hosts,
            notify,
        }),
        admin_listen: process.admin_listen,
    };
    let done = super::work_on_rabbitmq("worker", &broker, roles, shutdown).await;
    telemetry.shutdown().await;
    done
}
