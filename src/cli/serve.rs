//! `serve`: ingress and worker in one process.

use clap::Args;

use super::roles::{self, Roles};
use crate::config::{
    BrokerArgs, BrokerUrl, CognitoArgs, DefenderArgs, Findings, HostArgs, IngressArgs, KeyArgs, KeySetArgs, LogArgs,
    NotifyArgs, ProcessArgs, QuotaArgs, RespondArgs, SelfUserArgs, WebhookArgs, WorkerArgs,
};
use crate::shutdown::Shutdown;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    ingress: IngressArgs,
    #[command(flatten)]
    key_sets: KeySetArgs,
    #[command(flatten)]
    webhook: WebhookArgs,
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

pub(super) async fn run(args: ServeArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let process = args.process.resolve(&mut findings);
    let broker = args.broker.resolve(false, &mut findings);
    // Without a key no token of SECRET_KEY is accepted, so there is nothing to seal for one.
    let keys = args.keys.resolve(args.key_sets.is_on(), &mut findings);
    let ingress = args.ingress.resolve(&args.key_sets, &mut findings);
    let webhook = args.webhook.resolve(&args.self_user, &mut findings);
    let defender = args.defender.resolve(&mut findings);
    let worker = args.worker.resolve(&mut findings);
    let respond = args.respond.resolve(args.hosts.guard_of_machines(), &mut findings);
    let quota = args.quota.resolve(&mut findings);
    let hosts = args.hosts.resolve(&args.cognito, &args.self_user, &args.defender, &mut findings);
    let notify = args.notify.resolve(&args.defender, &mut findings);
    let warnings = findings.check()?;
    let defender = defender.expect("a setting that cannot be read is a finding");

    let telemetry = super::begin(format, log, false, &warnings)?;
    let shutdown = Shutdown::new(process.shutdown_grace);
    shutdown.on_signals()?;
    let portal_url = defender.portal_url.clone();
    let roles = Roles {
        worker: Some(roles::Worker {
            defender,
            settings: worker,
            seal_keys: keys.seal_keys.clone(),
            retry: crate::retry::Policy::default(),
            respond,
            quota,
            alone: matches!(broker, BrokerUrl::Sqlite(_)),
            hosts,
            notify,
        }),
        ingress: Some(roles::Ingress { settings: ingress, keys, portal_url, webhook }),
        admin_listen: process.admin_listen,
    };
    let done = match &broker {
        BrokerUrl::Sqlite(path) => super::work_on_sqlite(path, roles, shutdown).await,
        BrokerUrl::RabbitMq { .. } => super::work_on_rabbitmq("serve", &broker, roles, shutdown).await,
    };
    telemetry.shutdown().await;
    done
}
