//! `check`: reaches every peer with a role's configuration and says what would not work, and why.
//!
//! It changes nothing: what it declares at a broker nobody else sees and is gone a moment later, and Microsoft and Cognito
//! are only read, with a call or two for each right. What would show only in writing is said to be unknown. The
//! permissions are read out of the tokens, which costs no call of the services they are for.

mod microsoft;
mod peers;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::Timestamp;

use self::microsoft::Application;
use self::report::Row;
use crate::config::{
    BrokerArgs, BrokerUrl, CognitoArgs, DefenderArgs, DefenderSettings, Findings, HostArgs, HostSettings, IngressArgs,
    IngressSettings, KeyArgs, KeySetArgs, Keys, LogArgs, ProcessArgs, Routes, SelfUserArgs, WebhookArgs, WorkerArgs,
};
use crate::defender::{self, Credentials, Defender};
use crate::key_sets::KeySets;
use crate::outbound::Outbound;
use crate::relay::{key_set, token};
use crate::retry;

/// The longest that one look at one peer may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// A relay token has at most [`token::MAX_TOKEN_BYTES`]; its file may end in a line break or two.
const TOKEN_FILE_LIMIT_BYTES: u64 = token::MAX_TOKEN_BYTES as u64 + 8;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Whose configuration this is: what other roles do is not looked at
    #[arg(long, value_enum, default_value_t = Role::Serve)]
    role: Role,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
    /// File with a relay token, whose application is looked at for the relay [default: the application of APP_ID]
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
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
    cognito: CognitoArgs,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    self_user: SelfUserArgs,
}

/// The roles of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Ingress and worker in one process
    Serve,
    /// The ingress alone
    Ingress,
    /// A worker alone
    Worker,
    /// The search of `poll`, which works the hosts that it finds
    Poll,
}

impl Role {
    /// Whether it takes calls of the relay from others.
    fn listens(self) -> bool {
        matches!(self, Role::Serve | Role::Ingress)
    }

    /// Whether it asks or serves the relay's questions.
    fn relays(self) -> bool {
        self != Role::Poll
    }
}

/// Something would not work: the exit code says so.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {all} checks failed")]
struct NotReady {
    failed: usize,
    all: usize,
}

/// What is to be looked at.
struct Plan {
    role: Role,
    broker: BrokerUrl,
    keys: Keys,
    ingress: IngressSettings,
    defender: DefenderSettings,
    hosts: Option<HostSettings>,
    /// The deployment's own application, if it is set, hosts or not.
    own: Option<Credentials>,
}

pub(super) async fn run(args: CheckArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let plan = plan(&args, &mut findings);
    let token = args.token_file.as_deref().map(read_token);
    let warnings = findings.check()?;
    let plan = plan.expect("a setting that cannot be read is a finding");
    let token = token.transpose()?;
    // What goes wrong is in the table; libraries need not tell it as well.
    let telemetry = super::begin(format, log, true, &warnings)?;
    let rows = look(&plan, token.as_deref()).await?;
    telemetry.shutdown().await;
    if args.json {
        println!("{:#}", report::json(&rows));
    } else {
        print!("{}", report::table(&rows));
    }
    let failed = rows.iter().filter(|row| !row.is_good()).count();
    if failed == 0 { Ok(()) } else { Err(NotReady { failed, all: rows.len() }.into()) }
}

fn plan(args: &CheckArgs, findings: &mut Findings) -> Option<Plan> {
    let (role, works) = (args.role, args.role != Role::Ingress);
    args.process.resolve(findings);
    let broker = args.broker.resolve(matches!(role, Role::Ingress | Role::Worker), findings);
    let keys = args.keys.resolve(role == Role::Worker || args.key_sets.is_on(), findings);
    let ingress = args.ingress.resolve(&args.key_sets, findings);
    args.webhook.resolve(&args.self_user, findings);
    let defender = args.defender.resolve(findings);
    args.worker.resolve(findings);
    if role == Role::Poll && !args.hosts.is_on() {
        findings.problem("BRIDGE_TAG_ENRICH", "name a tag or scores to look for");
    }
    let hosts = args.hosts.resolve(&args.cognito, &args.self_user, &args.defender, findings);
    let own = match &hosts {
        Some(hosts) => Some(hosts.applications.credentials.clone()),
        // With hosts on it was looked at already, and did not do.
        None if args.hosts.is_on() || !args.hosts.application.is_given() => None,
        None => args.hosts.application.resolve(findings).map(|applications| applications.credentials),
    };
    Some(Plan { role, broker, keys, ingress, defender: defender?, hosts: hosts.filter(|_| works), own })
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let unreadable = || format!("--token-file: {} cannot be read", path.display());
    let size = std::fs::metadata(path).with_context(unreadable)?.len();
    anyhow::ensure!(size <= TOKEN_FILE_LIMIT_BYTES, "--token-file: {} is too large for a token", path.display());
    Ok(std::fs::read_to_string(path).with_context(unreadable)?.trim().to_owned())
}

/// Looks at everything.
async fn look(plan: &Plan, token: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let outbound = Outbound::new().context("the HTTP client cannot be set up")?;
    let mut rows = vec![peers::broker(&plan.broker).await];
    if let Some(key_sets) = plan.ingress.key_sets.as_ref().filter(|_| plan.role.listens()) {
        rows.extend(peers::key_sets(&outbound, key_sets).await);
    }
    let of_token = match token {
        Some(token) => match judged(plan, token, &outbound).await {
            Ok(credentials) => {
                rows.push(Row::ok("relay", "token", "the relay accepts it"));
                Some(credentials)
            }
            Err(error) => {
                rows.push(Row::failed("relay", "token", format!("the relay refuses it: {error}")));
                None
            }
        },
        None => None,
    };
    if plan.role == Role::Ingress {
        // It calls nobody.
        return Ok(rows);
    }
    let (seen, reached) = peers::microsoft(&outbound, &plan.defender).await;
    rows.extend(seen);
    let once = retry::Policy { tries: 1, ..retry::Policy::default() };
    let settings = defender::Settings {
        entra_url: plan.defender.entra_url.clone(),
        defender_url: plan.defender.defender_url.clone(),
        graph_url: plan.defender.graph_url.clone(),
        defender_scope: plan.defender.defender_scope.clone(),
        graph_scope: plan.defender.graph_scope.clone(),
        rest_limit: PROBE_LIMIT,
        retry: once,
        ..defender::Settings::default()
    };
    let client = Defender::new(settings, outbound);
    let (applications, unknown) = applications(plan, of_token, token.is_some());
    rows.extend(unknown);
    for application in &applications {
        rows.extend(microsoft::application(&client, application, reached).await);
    }
    if let Some(hosts) = &plan.hosts {
        rows.extend(peers::cognito(hosts).await);
    }
    Ok(rows)
}

/// What the relay makes of a token.
async fn judged(plan: &Plan, token: &str, outbound: &Outbound) -> Result<Credentials, token::TokenError> {
    let header = format!("Bearer {token}");
    let unverified = token::read(Some(header.as_bytes()))?;
    let claims = match &plan.ingress.key_sets {
        Some(settings) if unverified.algorithm() == Some(key_set::ALGORITHM) => {
            KeySets::new(settings.clone(), outbound).verify(&unverified, PROBE_LIMIT).await?
        }
        _ => {
            let mut keys = plan.keys.token_keys.iter().cloned();
            unverified.verify(&token::Keys::new(keys.next(), keys.next()), Timestamp::now())?
        }
    };
    Ok(Credentials { tenant_id: claims.tenant_id, client_id: claims.client_id, proof: claims.client_secret.into() })
}

/// Whose applications are looked at for what; and what is on without anybody to look at.
fn applications(plan: &Plan, of_token: Option<Credentials>, token_given: bool) -> (Vec<Application>, Option<Row>) {
    let Routes { observe, respond, .. } = plan.ingress.routes;
    let (observe, respond) = (observe && plan.role.relays(), respond && plan.role.relays());
    let mut relay = Vec::new();
    if observe {
        relay.extend(microsoft::OBSERVE);
    }
    if respond {
        relay.extend(microsoft::RESPOND);
    }
    let mut all = Vec::new();
    let mut own_needs = Vec::new();
    let mut unknown = None;
    match of_token {
        Some(credentials) => all.push(Application { name: "relay".to_owned(), credentials, needs: relay }),
        // A token that is no good has its row.
        None if token_given => {}
        None if plan.own.is_some() => own_needs = relay,
        None if relay.is_empty() => {}
        None => {
            let detail = "give --token-file, or TENANT_ID, APP_ID and APP_SECRET of an application that uses the relay";
            unknown = Some(Row::unchecked("relay", "permissions", detail));
        }
    }
    let mut response = None;
    if let Some(hosts) = &plan.hosts {
        let policy = &hosts.policy;
        if policy.enrich.is_some() || policy.thresholds.is_some() || policy.urgency.is_some() {
            own_needs.extend(microsoft::ENRICH);
        }
        if policy.block.is_some() || policy.unblock.is_some() {
            own_needs.extend(microsoft::CONTAIN);
            match &hosts.applications.response {
                None => own_needs.extend(microsoft::ACT),
                Some(credentials) => {
                    response = Some(Application {
                        name: "RESPONSE_APP_ID".to_owned(),
                        credentials: credentials.clone(),
                        needs: microsoft::ACT.to_vec(),
                    });
                }
            }
        }
    }
    if let Some(credentials) = plan.own.clone().filter(|_| !own_needs.is_empty()) {
        all.push(Application { name: "APP_ID".to_owned(), credentials, needs: own_needs });
    }
    all.extend(response);
    (all, unknown)
}
