//! `demo`: the whole product on one machine with nothing installed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::roles::{self, Roles, Running};
use crate::cognito;
use crate::config::{
    Applications, CognitoSettings, DefenderSettings, Findings, HostSettings, IngressSettings, Keys, LogArgs,
    RespondSettings, Routes, TokenDigest, WebhookSettings, WorkerSettings,
};
use crate::containment::Policy;
use crate::credentials::SealKeys;
use crate::defender::Credentials;
use crate::quota;
use crate::relay::token;
use crate::shutdown::Shutdown;
use crate::simulator::cognito::{BRAIN_TOKEN, BRAIN_USER, Emit, FINANCE_HOST, HR_HOST, PROTECTED_GROUP};
use crate::simulator::scenario::{
    C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, DROPPED_SHA256, FINANCE_WORKSTATION,
    PHISHING_DOMAIN,
};
use crate::simulator::{self, Simulator};

/// What a person at the keyboard waits for, at most, after Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

/// How long the demo waits for one of its steps on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tags of the demo.
const ENRICH: &str = "host_context";
const BLOCK: &str = "block";
const UNBLOCK: &str = "unblock";

/// The deadline of the demo's relay calls: the product's default.
const DEADLINE: Duration = Duration::from_secs(50);

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Address of the relay; another free port is taken when this one is in use
    #[arg(long, env = "BRIDGE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Stop after the sample request instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(args: DemoArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    let warnings = findings.check()?;
    let telemetry = super::begin(format, log, true, &warnings)?;
    let shutdown = Shutdown::new(GRACE);
    shutdown.on_signals()?;
    let done = tell(args, shutdown).await;
    telemetry.shutdown().await;
    done
}

async fn tell(args: DemoArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let simulator = Simulator::start(simulator::Settings::default()).await.context("the simulator cannot listen")?;
    let folder = tempfile::Builder::new().prefix("defender-bridge-demo-").tempdir()?;
    let secret_key: SecretString = super::token::new_key()?.into();
    let webhook_token = super::token::new_key()?;
    let running = serve(&args, &simulator, folder.path(), &secret_key, &webhook_token, shutdown.clone()).await?;
    let address = running.ingress.context("the ingress has an address")?;

    println!("defender-bridge demo");
    println!("  Microsoft   {} (simulated Entra, Defender and Graph)", simulator.url());
    println!("  Cognito     the same (simulated)");
    println!("  queue       {} (embedded, SQLite)", folder.path().join("queue.sqlite").display());
    println!("  relay       http://{address}");
    println!("  webhook     http://{address}/webhooks/cognito");
    if let Some(admin) = running.admin {
        println!("  admin port  http://{admin}/metrics");
    }
    println!();

    let claims = token::Claims {
        client_id: DEMO_CLIENT_ID.to_owned(),
        client_secret: DEMO_CLIENT_SECRET.to_owned().into(),
        tenant_id: DEMO_TENANT_ID.to_owned(),
        entities_limit: None,
    };
    let token = token::mint(&claims, None, &secret_key);
    let question = json!([
        {"type": "domain", "value": PHISHING_DOMAIN},
        {"type": "sha256", "value": DROPPED_SHA256},
        {"type": "ip", "value": C2_ADDRESS},
    ]);
    println!("An analyst asks Threat Response about a domain, a file and an address. Threat Response asks the relay:");
    println!("  POST /observe/observables  {question}");
    let asked = std::time::Instant::now();
    let answer = ask(address, &token, &question).await?;
    println!("and gets, in {} ms:", asked.elapsed().as_millis());
    show(&answer);
    println!(
        "That took {} call(s) for tokens, {} to Defender and {} hunting queries.",
        simulator.control().calls("token"),
        ["alerts", "files", "machines"].map(|family| simulator.control().calls(family)).iter().sum::<u64>(),
        simulator.control().calls("hunting"),
    );
    println!();
    hosts(&simulator, address, &webhook_token).await?;
    println!();
    println!("Try it yourself. The token (it holds the demo application's secret; real ones are kept like passwords):");
    println!("  export TOKEN={token}");
    for (path, body) in [
        ("/health", String::new()),
        ("/version", String::new()),
        ("/observe/observables", format!(" -d '[{{\"type\":\"ip\",\"value\":\"{C2_ADDRESS}\"}}]'")),
    ] {
        println!("  curl -s -X POST -H \"Authorization: Bearer $TOKEN\" http://{address}{path}{body}");
    }
    println!("An analyst sets a tag in the simulated Cognito, which tells the webhook; then look at the host's tags:");
    let brain = format!("{}/_simulator/cognito/hosts/{HR_HOST}", simulator.url());
    println!("  curl -s -X POST -d '{{\"add\":[\"{ENRICH}\"],\"actor\":\"you\"}}' {brain}/tags");
    println!("  curl -s {brain}");
    if args.once {
        shutdown.begin();
    } else {
        println!();
        println!("Serving until Ctrl-C.");
    }
    running.wait().await?;
    simulator.stop().await;
    Ok(())
}

/// Starts ingress and worker on an embedded queue in `folder`.
async fn serve(
    args: &DemoArgs,
    simulator: &Simulator,
    folder: &std::path::Path,
    secret_key: &SecretString,
    webhook_token: &str,
    shutdown: Shutdown,
) -> anyhow::Result<Running> {
    let url: url::Url = simulator.url().parse()?;
    let seal_keys = Arc::new(SealKeys::derive(&[secret_key]));
    let free = std::net::TcpListener::bind(args.listen).is_ok();
    let listen = if free { args.listen } else { SocketAddr::new(args.listen.ip(), 0) };
    let roles = Roles {
        ingress: Some(roles::Ingress {
            settings: IngressSettings {
                listen,
                routes: Routes { observe: true, refer: true, respond: false },
                deadline: DEADLINE,
                max_wait: DEADLINE / 2,
                entities_limit: crate::relay::limit::DEFAULT_LIMIT,
                key_sets: None,
            },
            keys: Keys { token_keys: vec![secret_key.clone()], seal_keys: Arc::clone(&seal_keys) },
            portal_url: DefenderSettings::default().portal_url,
            webhook: Some(WebhookSettings {
                secrets: Vec::new(),
                tokens: vec![TokenDigest::of(webhook_token.as_bytes())],
                rate: 1000,
                peer_rate: 0,
                self_user: Some(BRAIN_USER.to_owned()),
            }),
        }),
        worker: Some(roles::Worker {
            defender: DefenderSettings {
                entra_url: url.clone(),
                defender_url: url.clone(),
                graph_url: url.clone(),
                ..DefenderSettings::default()
            },
            settings: WorkerSettings::default(),
            seal_keys,
            retry: crate::retry::Policy::default(),
            respond: RespondSettings::default(),
            quota: quota::Settings::default(),
            alone: true,
            hosts: Some(host_settings(&url)?),
            notify: None,
        }),
        admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
    };
    let broker = super::open_sqlite(&folder.join("queue.sqlite")).await?;
    roles::start(broker, roles, shutdown).await
}

/// The story's brain, and the tags of the demo.
fn host_settings(url: &url::Url) -> anyhow::Result<HostSettings> {
    let auth = cognito::Auth::Token(BRAIN_TOKEN.to_owned().into());
    let tag = |name: &str| Some(name.to_owned());
    Ok(HostSettings {
        cognito: CognitoSettings {
            client: cognito::Settings::new(url.clone(), "v2.5".parse()?, auth),
            ca_file: None,
            rate: 20,
            self_user: Some(BRAIN_USER.to_owned()),
        },
        applications: Applications {
            credentials: Credentials {
                tenant_id: DEMO_TENANT_ID.to_owned(),
                client_id: DEMO_CLIENT_ID.to_owned(),
                proof: SecretString::from(DEMO_CLIENT_SECRET).into(),
            },
            response: None,
        },
        policy: Policy { enrich: tag(ENRICH), block: tag(BLOCK), unblock: tag(UNBLOCK), ..Policy::default() },
        required_groups: vec![PROTECTED_GROUP.to_owned()],
        sweep_interval: Some(Duration::from_secs(60)),
        feed_interval: None,
    })
}

/// The second half of the story: an analyst sets tags in Cognito, which tells the webhook; the bridge does the rest.
async fn hosts(simulator: &Simulator, address: SocketAddr, webhook_token: &str) -> anyhow::Result<()> {
    let (control, brain) = (simulator.control(), simulator.control().brain());
    let told =
        Emit { token: Some(webhook_token.to_owned()), ..Emit::to(&format!("http://{address}/webhooks/cognito")) };
    brain.emit(Some(told)).map_err(anyhow::Error::msg)?;
    let name = brain.host(FINANCE_HOST).map(|host| host.name).unwrap_or_default();
    let isolated = || control.isolation(DEMO_TENANT_ID, FINANCE_WORKSTATION).isolated;
    println!(
        "An analyst works in Cognito on host {FINANCE_HOST}, {name}. Cognito's audit log tells the webhook of each tag:"
    );
    for (tag, until, what) in [
        (ENRICH, "mde:agent=found", "Defender's context is written"),
        (BLOCK, "mde:isolation=isolated", "the machine is isolated"),
        (UNBLOCK, "mde:isolation=released", "the machine is released"),
    ] {
        let began = std::time::Instant::now();
        println!("  tag {tag:?} is set by analyst.one");
        brain.add_tag(FINANCE_HOST, tag, "analyst.one");
        let tags = wait_for(|| {
            let tags = brain.tags(FINANCE_HOST).unwrap_or_default();
            let settled = tags.iter().any(|one| one == until) && !tags.iter().any(|one| one == tag);
            settled.then_some(tags)
        })
        .await
        .with_context(|| format!("the tag {tag:?} was not worked"))?;
        println!("    after {:.1} s: {what}; the tag is taken off", began.elapsed().as_secs_f64());
        println!("    tags      {}", tags.join("  "));
        println!("    Defender  the machine is {}isolated", if isolated() { "" } else { "not " });
    }
    println!("  notes on the host:");
    for note in brain.notes(FINANCE_HOST).iter().filter(|note| note.created_by == BRAIN_USER) {
        let text = note.text.strip_prefix("[defender-bridge]").unwrap_or(&note.text).trim();
        println!("    {}", text.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// What `look` finds, within the time that a person waits.
async fn wait_for<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        match look() {
            Some(found) => return Some(found),
            None if std::time::Instant::now() >= until => return None,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn ask(address: SocketAddr, token: &str, question: &Value) -> anyhow::Result<Value> {
    let request = reqwest::Client::builder().no_proxy().build()?.post(format!("http://{address}/observe/observables"));
    let response = request.bearer_auth(token).json(question).send().await.context("the relay did not answer")?;
    response.json().await.context("the relay's answer cannot be read")
}

/// Prints the sightings of an answer, one a line.
fn show(answer: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let docs = answer["data"]["sightings"]["docs"].as_array();
    for sighting in docs.into_iter().flatten() {
        let what = match &sighting["title"] {
            Value::String(title) => format!("alert  {} ({})", title, text(&sighting["severity"])),
            _ => format!("event  {}", text(&sighting["data"]["rows"][0][0])),
        };
        println!(
            "  {}  {:<22}  {:<58}  {:>3} relations  on {}",
            text(&sighting["observed_time"]["start_time"]),
            ellipsis(&text(&sighting["observables"][0]["value"]), 22),
            ellipsis(&what, 58),
            sighting["relations"].as_array().map_or(0, Vec::len),
            text(&sighting["targets"][0]["observables"][0]["value"]),
        );
    }
    for error in answer["errors"].as_array().into_iter().flatten() {
        println!("  {} ({}): {}", text(&error["type"]), text(&error["code"]), text(&error["message"]));
    }
    println!("  {} sightings", docs.map_or(0, Vec::len));
}

/// `text` in at most `width` characters.
fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::ellipsis;

    #[test]
    fn long_text_is_cut_with_an_ellipsis() {
        assert_eq!(ellipsis("short", 5), "short");
        assert_eq!(ellipsis("longer", 5), "long…");
        assert_eq!(ellipsis("äöüß€", 4), "äöü…");
    }
}
