//! The broker, Cognito, the hosts of key sets, and whether Microsoft's services can be reached at all.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, header};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use url::Url;

use super::PROBE_LIMIT;
use super::microsoft::{Reached, SKEW_LIMIT};
use super::report::Row;
use crate::broker::rabbitmq::{self, RabbitMq};
use crate::broker::{Broker as _, BrokerError};
use crate::cognito::model::HostsFilter;
use crate::cognito::{self, Cognito, CognitoError, Kind, Priority};
use crate::config::{BrokerUrl, DefenderSettings, HostSettings};
use crate::job::TOPOLOGY;
use crate::key_sets;
use crate::outbound::{Outbound, OutboundError, Request};
use crate::retry::{self, http_date};

/// Of what a service answers to a bare request only the date is wanted.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// The longest that the broker is waited for. A busy one takes its time to let a user in: roles wait 15 s at their start.
const BROKER_LIMIT: Duration = Duration::from_secs(20);

/// The queue.
pub(super) async fn broker(url: &BrokerUrl) -> Row {
    const PEER: &str = "broker";
    match url {
        BrokerUrl::Sqlite(path) => match embedded(path).await {
            Ok(detail) => Row::ok(PEER, "embedded queue", detail),
            Err(error) => Row::failed(PEER, "embedded queue", format!("{error:#}")),
        },
        BrokerUrl::RabbitMq { urls, namespace } => {
            let settings = rabbitmq::Settings {
                urls: urls.iter().map(|url| url.expose_secret().to_owned()).collect(),
                namespace: namespace.clone(),
                connection_name: "defender-bridge check".to_owned(),
                topology: &TOPOLOGY,
            };
            let what = format!("RabbitMQ, namespace {namespace}");
            match RabbitMq::probe(settings, BROKER_LIMIT).await {
                Ok(()) => Row::ok(PEER, what, "declares, publishes and receives"),
                Err(BrokerError::Refused(reason)) => Row::failed(
                    PEER,
                    what,
                    format!(
                        "{reason}; the user needs to configure, write and read names that begin with {namespace}, and \
                         amq.rabbitmq.reply-to"
                    ),
                ),
                Err(error) => Row::failed(PEER, what, error.to_string()),
            }
        }
    }
}

/// A file that is there is opened as any command beside `serve` opens it; one that is not is not made.
async fn embedded(path: &Path) -> anyhow::Result<String> {
    if path.exists() {
        let broker = super::super::open_sqlite(path).await?;
        let health = broker.check().await;
        broker.close().await;
        anyhow::ensure!(health.connected, "the queue's file {} cannot be used", path.display());
        return Ok(format!("{} can be used", path.display()));
    }
    let folder = path.ancestors().skip(1).find(|folder| folder.exists() && !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // Has no name, so there is nothing to leave behind.
    tempfile::tempfile_in(folder).with_context(|| format!("nothing can be written in {}", folder.display()))?;
    Ok(format!("{} will be made at the first start", path.display()))
}

/// Whether Microsoft's services answer at all, and what time they think it is. Costs no quota: nobody is logged in.
pub(super) async fn microsoft(outbound: &Outbound, at: &DefenderSettings) -> (Vec<Row>, Reached) {
    let mut hosts: Vec<(&Url, Vec<&'static str>)> = Vec::new();
    for (url, peer) in [(&at.entra_url, "entra"), (&at.defender_url, "defender"), (&at.graph_url, "graph")] {
        match hosts.iter_mut().find(|(known, _)| *known == url) {
            Some((_, peers)) => peers.push(peer),
            None => hosts.push((url, vec![peer])),
        }
    }
    let answers = futures_util::future::join_all(hosts.iter().map(|(url, _)| reach(outbound, url))).await;
    let mut rows = Vec::new();
    let mut reached = Reached { entra: true, defender: true, graph: true };
    for ((url, peers), answer) in hosts.into_iter().zip(answers) {
        let host = url.host_str().unwrap_or_default();
        match answer {
            Ok(date) => rows.push(clock(peers[0], host, date, Timestamp::now())),
            Err(error) => {
                for peer in peers {
                    match peer {
                        "entra" => reached.entra = false,
                        "defender" => reached.defender = false,
                        _ => reached.graph = false,
                    }
                    rows.push(Row::failed(peer, format!("{host} can be reached"), error.to_string()));
                }
            }
        }
    }
    (rows, reached)
}

/// The date in the answer to a bare request; any answer will do.
async fn reach(outbound: &Outbound, url: &Url) -> Result<Option<Timestamp>, OutboundError> {
    let request = Request {
        method: Method::GET,
        url: url.clone(),
        template: "/",
        headers: HeaderMap::new(),
        body: bytes::Bytes::new(),
        limit: None,
        body_limit_bytes: BODY_LIMIT_BYTES,
        resend_count: 0,
    };
    match outbound.send(request, Instant::now() + PROBE_LIMIT).await {
        Ok(answer) => Ok(answer.headers.get(header::DATE).and_then(|date| http_date(date.to_str().ok()?))),
        // Somebody is there.
        Err(OutboundError::TooLarge { .. } | OutboundError::Cut { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn clock(peer: &'static str, host: &str, date: Option<Timestamp>, now: Timestamp) -> Row {
    let what = format!("{host} can be reached");
    let Some(date) = date else { return Row::ok(peer, what, "it does not tell its time") };
    let apart = now.duration_since(date);
    let seconds = apart.unsigned_abs().as_secs();
    let side = if apart.is_negative() { "behind" } else { "ahead of" };
    if apart.unsigned_abs() > SKEW_LIMIT {
        let detail = format!("this machine's clock is {seconds} s {side} it: tokens would be judged wrongly");
        return Row::failed(peer, format!("clock against {host}"), detail);
    }
    Row::ok(peer, what, format!("clocks agree within {} s", seconds.max(1)))
}

/// The key sets.
pub(super) async fn key_sets(outbound: &Outbound, settings: &key_sets::Settings) -> Vec<Row> {
    const PEER: &str = "key set";
    let read = settings.hosts.iter().map(async |host| {
        let what = key_sets::host_of(host);
        match key_sets::read(outbound, host).await {
            Ok(_) => Row::ok(PEER, what, "gives keys"),
            Err(error) => Row::failed(PEER, what, error.to_string()),
        }
    });
    futures_util::future::join_all(read).await
}

/// `check` makes a handful of calls, so it keeps to no rate.
struct AtOnce;

impl cognito::Rate for AtOnce {
    fn permit(&self, _: Priority) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn throttled(&self, _: Option<Duration>) {}
}

const COGNITO: &str = "cognito";

/// The brain: address, version, token, and the rights to read. What may be written shows in writing only.
pub(super) async fn cognito(settings: &HostSettings) -> Vec<Row> {
    let outbound = match &settings.cognito.ca_file {
        Some(file) => Outbound::with_ca_file(file),
        None => Outbound::new(),
    };
    let outbound = match outbound {
        Ok(outbound) => outbound,
        Err(error) => return vec![Row::failed(COGNITO, "certificates", format!("{:#}", anyhow::Error::from(error)))],
    };
    let once = retry::Policy { tries: 1, ..settings.cognito.client.retry.clone() };
    let client = cognito::Settings { call_limit: PROBE_LIMIT, retry: once, ..settings.cognito.client.clone() };
    let version = client.version;
    let cognito = Cognito::new(client, outbound, Arc::new(AtOnce));
    let session = cognito.session(Priority::Normal, Instant::now() + 4 * PROBE_LIMIT);
    let mut rows = Vec::new();
    let host = match session.hosts(&HostsFilter::default(), 1).await {
        Ok(page) => {
            rows.push(Row::ok(COGNITO, "reads hosts", format!("API {version}")));
            page.hosts.first().map(|host| host.id)
        }
        Err(error) => {
            rows.push(Row::failed(COGNITO, "reads hosts", refused(&error)));
            // Other rights can be looked at without this one; with anything else wrong it would be the same again.
            if error.kind() != &Kind::Forbidden {
                return rows;
            }
            None
        }
    };
    let mut right = |what: &'static str, asked: Result<(), CognitoError>| {
        rows.push(match asked {
            Ok(()) => Row::ok(COGNITO, what, "works"),
            Err(error) => Row::failed(COGNITO, what, refused(&error)),
        });
    };
    match host {
        Some(id) => {
            right("reads tags", session.tags(id).await.map(drop));
            right("reads notes", session.notes(id).await.map(drop));
        }
        None => rows.push(Row::note(COGNITO, "reads tags and notes", "there is no host to look at")),
    }
    for name in &settings.policy.guard.protected_groups {
        let required = settings.required_groups.contains(name);
        rows.push(match session.groups_named(name).await {
            Ok(groups) if groups.is_empty() && required => {
                Row::failed(COGNITO, "reads groups", format!("there is no group {name:?}, which is to be protected"))
            }
            Ok(groups) if groups.is_empty() => Row::ok(COGNITO, "reads groups", format!("there is no group {name:?}")),
            Ok(_) => Row::ok(COGNITO, "reads groups", format!("finds the group {name:?}")),
            Err(error) => Row::failed(COGNITO, "reads groups", refused(&error)),
        });
    }
    rows.push(Row::note(COGNITO, "writes tags and notes", "cannot be seen without writing"));
    rows
}

fn refused(error: &CognitoError) -> String {
    let hint = match error.kind() {
        Kind::Unauthorized => "COGNITO_TOKEN, or the API client, is refused",
        Kind::Forbidden => "the user or API client lacks the right",
        Kind::NotOffered | Kind::Gone | Kind::Redirected => {
            "no such call there: look at COGNITO_BRAIN and BRIDGE_COGNITO_API_VERSION"
        }
        Kind::Certificate { .. } => {
            "the certificate is not trusted: name its authority, or itself, in BRIDGE_COGNITO_CA_FILE"
        }
        Kind::Connect | Kind::Tls => "cannot be reached",
        Kind::Deadline => "no answer in time",
        Kind::Throttled => "called too fast at present",
        _ => "an answer that does not fit",
    };
    format!("{hint} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_side() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let row = |now| clock("entra", "login.example", Some(at(1_000)), at(now));
        assert!(row(1_060).is_good() && row(940).is_good());
        assert!(!row(1_061).is_good() && row(1_061).detail.contains("61 s ahead of"), "{:?}", row(1_061));
        assert!(!row(900).is_good() && row(900).detail.contains("100 s behind"), "{:?}", row(900));
        assert!(clock("entra", "login.example", None, at(0)).is_good());
    }
}
