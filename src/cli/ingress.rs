//! `ingress`: the HTTP edge alone.

use clap::Args;

use super::roles::{self, Roles};
use crate::config::{
    BrokerArgs, Findings, IngressArgs, KeyArgs, KeySetArgs, LogArgs, PortalArgs, ProcessArgs, SelfUserArgs, WebhookArgs,
};
use crate::shutdown::Shutdown;

#[derive(Debug, Args)]
pub(super) struct IngressRoleArgs {
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
    portal: PortalArgs,
    #[command(flatten)]
    webhook: WebhookArgs,
    #[command(flatten)]
    self_user: SelfUserArgs,
}

pub(super) async fn run(args: IngressRoleArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let process = args.process.resolve(&mut findings);
    let broker = args.broker.resolve(true, &mut findings);
    let keys = args.keys.resolve(args.key_sets.is_on(), &mut findings);
    let settings = args.ingress.resolve(&args.key_sets, &mut findings);
    let portal_url = args.portal.resolve(&mut findings);
    let webhook = args.webhook.resolve(&args.self_user, &mut findings);
    let warnings = findings.check()?;
    let portal_url = portal_url.expect("a setting that cannot be read is a finding");

    let telemetry = super::begin(format, log, false, &warnings)?;
    let shutdown = Shutdown::new(process.shutdown_grace);
    shutdown.on_signals()?;
    let roles = Roles {
        ingress: Some(roles::Ingress { settings, keys, portal_url, webhook }),
        worker: None,
        admin_listen: process.admin_listen,
    };
    let done = super::work_on_rabbitmq("ingress", &broker, roles, shutdown).await;
    telemetry.shutdown().await;
    done
}
