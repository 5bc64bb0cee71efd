//! Logs, spans and metrics: started first, flushed last.
//!
//! Logs go to standard error as text or JSON (`BRIDGE_LOG`), filtered by `RUST_LOG`; libraries log nothing below `debug`,
//! whatever it says. Spans go out over OTLP/HTTP when the
//! standard variables name an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT`); without one nothing is recorded, but trace ids
//! still travel, so that a caller's trace is never cut. Metrics are read at `/metrics` (`metrics`).

pub mod audit;
mod load;
pub mod metrics;
pub mod propagation;

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The most that libraries may log.
const LIBRARY_LIMIT: Level = Level::DEBUG;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Keeps telemetry running. Call [`Telemetry::shutdown`] last.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

/// Starts logs and spans for the whole process. `verbose` lowers the default level of our own logs to `debug`, `quiet`
/// raises it to `error`; `RUST_LOG` overrides both. `exporting` says whether an OTLP endpoint is configured ([`otlp_is_configured`]).
///
/// # Errors
/// When the exporter's settings cannot be used, or telemetry was started before.
pub fn start(format: LogFormat, verbose: bool, quiet: bool, exporting: bool) -> anyhow::Result<Telemetry> {
    let provider = provider(exporting)?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    opentelemetry::global::set_tracer_provider(provider.clone());

    // lapin calls every channel that the broker closes an error; some are closed in the course of work, and the broker
    // module itself logs what matters.
    let default = match (verbose, quiet) {
        (true, _) => "warn,lapin=off,audit=info,defender_bridge=debug",
        (false, true) => "error,lapin=off",
        (false, false) => "warn,lapin=off,audit=info,defender_bridge=info",
    };
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse(std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()).as_deref().unwrap_or(default))?;
    // At `trace` libraries show what passes through them: lapin whole frames, its login and the bodies of messages among
    // them. No setting turns that on: it would not be noticed what the log holds then.
    let guarded = filter_fn(|metadata| {
        *metadata.level() <= LIBRARY_LIMIT || metadata.target().split("::").next() == Some("defender_bridge")
    })
    // Or the filter above would not tell the libraries' own checks which levels are off for good.
    .with_max_level_hint(LevelFilter::TRACE);
    // The span of a request or a job stands in each of its lines, with the trace id, whichever lines are left.
    let ours = filter_fn(|metadata| {
        metadata.is_span()
            && *metadata.level() <= Level::INFO
            && metadata.target().split("::").next() == Some("defender_bridge")
    })
    .with_max_level_hint(LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(true).boxed(),
    };
    // A filter of its own: else every library's spans would be exported, the exporter's own HTTP client among them.
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("defender-bridge"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target("defender_bridge", LevelFilter::INFO));
    tracing_subscriber::registry().with(lines.with_filter(filter.and(guarded).or(ours))).with(spans).try_init()?;
    Ok(Telemetry { provider })
}

/// Whether the standard variables ask for OTLP export of traces.
#[must_use]
pub fn otlp_is_configured() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value.eq_ignore_ascii_case("none"));
    !disabled && (set("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some())
}

fn provider(exporting: bool) -> anyhow::Result<SdkTracerProvider> {
    let builder = SdkTracerProvider::builder().with_resource(resource());
    if !exporting {
        // Nobody reads the spans: record none of our own, but keep a caller's decision for those behind us.
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        return Ok(builder.with_sampler(sampler).build());
    }
    // Endpoint, headers, timeout and compression come from the standard variables; so does the sampler.
    let exporter =
        SpanExporter::builder().with_http().with_protocol(opentelemetry_otlp::Protocol::HttpBinary).build()?;
    Ok(builder.with_batch_exporter(exporter).build())
}

fn resource() -> Resource {
    use opentelemetry::KeyValue;
    let named = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let mut attributes = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    if !named("OTEL_SERVICE_NAME")
        && !std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|v| v.contains("service.name="))
    {
        attributes.push(KeyValue::new("service.name", "defender-bridge"));
    }
    Resource::builder().with_attributes(attributes).build()
}

impl Telemetry {
    /// Sends what is left. The exporter blocks, so it is given a thread of its own.
    pub async fn shutdown(self) {
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(error = %error, "the last spans could not be exported");
        }
    }
}
