//! Measures what traces cost: requests per second of `/observe/observables` with every trace recorded and exported,
//! beside the same without any, taking turns in one run.
//!
//! ```text
//! cargo bench --bench tracing                   about two minutes
//! cargo bench --bench tracing -- --quick        half a minute, for a first look
//! cargo bench --bench tracing -- --help
//! ```
//!
//! Nothing here is a test: no time is asserted. The exit code is not zero only when something could not be measured, or
//! when an answer was wrong.
//!
//! # What is compared
//! Two deployments of the real binary, an ingress and a worker each, on the same broker and before the same simulator; no
//! answer is kept in memory, so each request makes its calls. One has no collector and records nothing, the other records
//! each trace and sends it over OTLP/HTTP to a sink in this process, which only takes it. They take turns in short cells
//! (A B A B ...), once before a simulator that answers at once and once before one that takes 100 ms for each call. A third
//! deployment has a collector that refuses everything: its figure and its memory show what a broken one costs.
//!
//! What arrived at the sink is counted after the measurement: fewer spans than were made would be a cheaper bargain than
//! the one that is claimed.
//!
//! The broker is that of `TEST_RABBITMQ_URL`, or a private node as for the benchmark of the relay.

#[path = "../relay/load.rs"]
mod load;
#[path = "../relay/node.rs"]
#[expect(dead_code, reason = "shared with the benchmark of the relay, which uses all of it")]
mod node;
#[path = "../relay/process.rs"]
#[expect(dead_code, reason = "shared with the benchmark of the relay, which uses all of it")]
mod process;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use clap::Parser;
use defender_bridge::broker::rabbitmq::{self, RabbitMq};
use defender_bridge::job::TOPOLOGY;
use defender_bridge::relay::token;
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, PHISHING_DOMAIN};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::net::TcpListener;

use self::load::{Cell, Target};
use self::node::Node;
use self::process::{Memory, Meter, Process, free_port};

/// The relay's key; worth nothing outside this run.
const SECRET_KEY: &str = "benchmark-benchmark-benchmark-benchmark-benchmark-benchmark-0123";

/// How long a call takes at the slow simulator.
const SLOW: Duration = Duration::from_millis(100);

/// How long the last spans may take to the sink after the load has ended.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// What becomes of traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Off,
    On,
    Refused,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Off, Self::On, Self::Refused];

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Refused => "refused",
        }
    }
}

/// Measures what traces cost.
#[derive(Debug, Parser)]
#[command(name = "tracing", max_term_width = 110)]
struct Options {
    /// A first look in half a minute: short cells
    #[arg(long)]
    quick: bool,
    /// Measured seconds of a cell [default: 5; quick: 1]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Turns that the kinds take before each simulator [default: 4; quick: 2]
    #[arg(long, value_name = "COUNT")]
    rounds: Option<u32>,
    /// Callers at once
    #[arg(long, default_value = "64", value_name = "COUNT")]
    callers: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long the parts of a cell take; `load` reads it.
#[derive(Debug, Clone, Copy)]
struct Timing {
    warm_up: Duration,
    measured: Duration,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs benchmarks too, without arguments; `cargo bench` gives `--bench`.
    if std::env::args_os().len() == 1 {
        println!("nothing measured: run it with cargo bench");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let done =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime did not start").and_then(
            |runtime| {
                // A signal drops the run, and with it every process it started.
                runtime.block_on(async {
                    tokio::select! {
                        done = run(&options) => done,
                        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
                    }
                })
            },
        );
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("tracing: some requests were not answered, or wrongly; see `failed`");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tracing: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes exports and keeps them as they came.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Bytes>>>);

impl Sink {
    /// Serves it, and one that refuses all; their addresses.
    async fn serve(&self) -> anyhow::Result<(String, String)> {
        let kept = self.clone();
        let take = move |body: Bytes| async move {
            kept.0.lock().unwrap_or_else(PoisonError::into_inner).push(body);
            StatusCode::OK
        };
        let refuse = async || StatusCode::INTERNAL_SERVER_ERROR;
        Ok((listen(post(take)).await?, listen(post(refuse)).await?))
    }

    /// How many spans came since the last time.
    fn spans(&self) -> anyhow::Result<usize> {
        let bodies = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut spans = 0;
        for body in bodies {
            let request = ExportTraceServiceRequest::decode(body).context("not an export")?;
            let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
            spans += scopes.map(|scope| scope.spans.len()).sum::<usize>();
        }
        Ok(spans)
    }
}

async fn listen(traces: axum::routing::MethodRouter) -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/v1/traces", traces);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

/// One deployment.
struct Product {
    processes: Vec<Process>,
    target: Target,
    /// What it has at the broker.
    namespace: rabbitmq::Settings,
}

impl Product {
    async fn start(
        kind: Kind,
        upstream: &str,
        broker: &str,
        collector: Option<&str>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let run = uuid::Uuid::now_v7().simple().to_string();
        let (listen_text, namespace) = (listen.to_string(), format!("test-{}-traces", &run[run.len() - 12..]));
        let mut environment = vec![
            ("SECRET_KEY", SECRET_KEY),
            ("BRIDGE_LISTEN", &listen_text),
            ("BRIDGE_BROKER_URL", broker),
            ("BRIDGE_BROKER_NAMESPACE", &namespace),
            ("BRIDGE_ANSWER_TTL", "0"),
            ("BRIDGE_ENTRA_URL", upstream),
            ("BRIDGE_DEFENDER_URL", upstream),
            ("BRIDGE_GRAPH_URL", upstream),
            // Microsoft's limits are not what is measured.
            ("BRIDGE_QUOTA_ALERTS", "1000000/1000000"),
            ("BRIDGE_QUOTA_MACHINES", "1000000/1000000"),
            ("BRIDGE_QUOTA_HUNTING", "1000000"),
        ];
        if let Some(collector) = collector {
            environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT", collector));
            environment.push(("OTEL_TRACES_SAMPLER", "always_on"));
            // What is made in a second at full speed; the default is for fewer.
            environment.push(("OTEL_BSP_MAX_QUEUE_SIZE", "32768"));
            environment.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"));
            environment.push(("OTEL_BSP_SCHEDULE_DELAY", "500"));
        }
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_defender-bridge"));
        let mut processes = Vec::new();
        for role in ["ingress", "worker"] {
            let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let admin_text = admin.to_string();
            let environment = [&environment[..], &[("BRIDGE_ADMIN_LISTEN", admin_text.as_str())]].concat();
            let mut process =
                Process::start(role, &format!("{}-{role}", kind.name()), &binary, &[role], &environment, folder)?;
            process.ready(admin, "/readyz").await?;
            processes.push(process);
        }
        let claims = token::Claims {
            tenant_id: DEMO_TENANT_ID.to_owned(),
            client_id: DEMO_CLIENT_ID.to_owned(),
            client_secret: DEMO_CLIENT_SECRET.into(),
            entities_limit: None,
        };
        let token = token::mint(&claims, None, &SECRET_KEY.into());
        let question = serde_json::json!([{"type": "domain", "value": PHISHING_DOMAIN}]).to_string();
        let mut target = Target::new(listen, &token, Bytes::from(question));
        target.probe().await.with_context(|| format!("asking {}", kind.name()))?;
        let namespace = rabbitmq::Settings {
            urls: vec![broker.to_owned()],
            namespace,
            connection_name: "traces benchmark".to_owned(),
            topology: &TOPOLOGY,
        };
        Ok(Self { processes, target, namespace })
    }

    /// Ends its processes and deletes what they had at the broker.
    async fn strike(mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::check)?;
        drop(self.processes);
        Ok(RabbitMq::delete_namespace(&self.namespace).await?)
    }

    fn resident_mib(&self) -> u64 {
        self.processes.iter().filter_map(|process| Memory::of(process.id()).resident).sum::<u64>() / 1024
    }
}

/// Measures and prints everything. Whether all requests were answered as they should be.
async fn run(options: &Options) -> anyhow::Result<bool> {
    let seconds = options.seconds.unwrap_or(if options.quick { 1.0 } else { 5.0 });
    let measured = Duration::try_from_secs_f64(seconds).context("not a number of seconds")?;
    let timing = Timing { warm_up: measured / 4, measured };
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 4 }).max(1);
    let folder = tempfile::Builder::new().prefix("tracing-bench-").tempdir()?;
    let node = Node::find().await?;
    let sink = Sink::default();
    let (takes, refuses) = sink.serve().await?;

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let arguments = ["simulate", "--no-quota", "--no-record", "--listen", &address.to_string()];
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_defender-bridge"));
    let mut simulator = Process::start("simulator", "simulator", &binary, &arguments, &[], folder.path())?;
    simulator.ready(address, "/_simulator/health").await?;
    let upstream = format!("http://{address}");

    let mut products = BTreeMap::new();
    for kind in Kind::ALL {
        let collector = match kind {
            Kind::Off => None,
            Kind::On => Some(takes.as_str()),
            Kind::Refused => Some(refuses.as_str()),
        };
        products.insert(kind, Product::start(kind, &upstream, &node.url, collector, folder.path()).await?);
    }

    println!(
        "{} {} build, RabbitMQ {}, {} callers, {rounds} turns of {measured:?}",
        env!("CARGO_PKG_VERSION"),
        if cfg!(debug_assertions) { "DEBUG" } else { "release" },
        node.version,
        options.callers,
    );
    let mut well = true;
    for (latency, name) in [(Duration::ZERO, "instant"), (SLOW, "100 ms")] {
        let settings = serde_json::json!({"latency_ms": latency.as_millis() as u64});
        let client = reqwest::Client::builder().no_proxy().build()?;
        let told = client.put(format!("{upstream}/_simulator/settings")).json(&settings).send().await?;
        anyhow::ensure!(told.status().is_success(), "the simulator does not take its settings: {}", told.status());
        let mut cells: BTreeMap<Kind, Cell> = BTreeMap::new();
        tokio::time::sleep(LAST_EXPORT).await;
        sink.spans()?;
        let memory: BTreeMap<Kind, u64> =
            products.iter().map(|(kind, product)| (*kind, product.resident_mib())).collect();
        for _ in 0..rounds {
            for (kind, product) in &products {
                let meter = Meter(product.processes.iter().map(|process| (process.name, process.id())).collect());
                let cell = load::run(product.target.callers(options.callers).await?, &meter, timing).await?;
                cells.entry(*kind).or_default().merge(cell);
            }
        }
        tokio::time::sleep(LAST_EXPORT).await;
        let spans = sink.spans()?;
        let off = cells.get(&Kind::Off).map_or(f64::NAN, Cell::per_second);
        println!(
            "\nupstream {name}\n  traces     per second   ratio   p50 ms   p99 ms   failed   resident MiB before, after"
        );
        for (kind, cell) in &mut cells {
            let (rate, p50, p99) = (cell.per_second(), cell.percentile_ms(0.5), cell.percentile_ms(0.99));
            well &= cell.failed == 0 && !cell.latencies_us.is_empty();
            println!(
                "  {:<10} {rate:>10.1} {:>7.3} {p50:>8.1} {p99:>8.1} {:>8} {:>12}, {}",
                kind.name(),
                rate / off,
                cell.failed,
                memory[kind],
                products[kind].resident_mib(),
            );
        }
        println!("  {spans} spans arrived at the sink");
    }
    for product in products.into_values() {
        product.strike().await?;
    }
    Ok(well)
}
