//! `demo`: the whole product on one machine with nothing installed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::roles::{self, Roles, Running};
use crate::config::{DefenderSettings, Findings, IngressSettings, Keys, LogArgs, Routes, WorkerSettings};
use crate::credentials::SealKeys;
use crate::relay::token;
use crate::shutdown::Shutdown;
use crate::simulator::scenario::{
    C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, DROPPED_SHA256, PHISHING_DOMAIN,
};
use crate::simulator::{self, Simulator};

/// What a person at the keyboard waits for, at most, after Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);

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
    let running = serve(&args, &simulator, folder.path(), &secret_key, shutdown.clone()).await?;
    let address = running.ingress.context("the ingress has an address")?;

    println!("defender-bridge demo");
    println!("  Microsoft   {} (simulated Entra, Defender and Graph)", simulator.url());
    println!("  queue       {} (embedded, SQLite)", folder.path().join("queue.sqlite").display());
    println!("  relay       http://{address}");
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
    println!("Try it yourself. The token (it holds the demo application's secret; real ones are kept like passwords):");
    println!("  export TOKEN={token}");
    for (path, body) in [
        ("/health", String::new()),
        ("/version", String::new()),
        ("/observe/observables", format!(" -d '[{{\"type\":\"ip\",\"value\":\"{C2_ADDRESS}\"}}]'")),
    ] {
        println!("  curl -s -X POST -H \"Authorization: Bearer $TOKEN\" http://{address}{path}{body}");
    }
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
                entities_limit: crate::relay::limit::DEFAULT_LIMIT,
            },
            keys: Keys { token_keys: vec![secret_key.clone()], seal_keys: Arc::clone(&seal_keys) },
        }),
        worker: Some(roles::Worker {
            defender: DefenderSettings {
                entra_url: url.clone(),
                defender_url: url.clone(),
                graph_url: url,
                ..DefenderSettings::default()
            },
            settings: WorkerSettings::default(),
            seal_keys,
            retry: crate::retry::Policy::default(),
        }),
        admin_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
    };
    let broker = super::open_sqlite(&folder.join("queue.sqlite")).await?;
    roles::start(broker, roles, shutdown).await
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
