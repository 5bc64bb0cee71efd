//! Microsoft Defender for Endpoint, Graph hunting and Entra: one method per documented endpoint, named like it.
//!
//! [`Defender`] belongs to the process: connections, tokens and cached answers. A [`Session`] is one request's use of
//! it: credentials, a deadline, and how many calls may be in flight. Methods of a session answer in terms of [`model`];
//! what an answer means to a caller is decided elsewhere, and nothing here knows the relay.
//!
//! Calls are the currency (`DESIGN.md` 5), so nothing is asked twice: tokens, file profiles, machines and device
//! contexts are kept for a time, and those who want the same thing at the same moment share one call. Every key holds
//! tenant, client and a hash of the secret (or the thumbprint of the certificate): who does not know the secret never sees
//! a kept answer. What decides about isolating or releasing a machine uses no kept answers: `machines` and `actions` hold
//! the calls that never do. Nor is what is sure to fail asked again and again: see `circuit`.
//!
//! The hunting routes that stop answering in February 2027 (`/api/advancedqueries/run`, `/api/advancedhunting/run`) are
//! never called.

mod actions;
mod alerts;
mod batch;
mod call;
mod certificate;
mod circuit;
mod classify;
mod entra;
pub mod error;
mod hunting;
mod indicators;
mod machines;
pub mod model;
mod pages;
mod query;
#[cfg(test)]
mod query_forms;
mod rows;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;

pub use self::actions::{COMMENT_LIMIT_CHARS, IsolationType, ScanType};
pub use self::alerts::{Alerts, Plan};
use self::batch::Batches;
use self::call::{Spec, address};
pub use self::certificate::{Certificate, CertificateError};
use self::circuit::Circuits;
pub use self::circuit::Memory;
use self::entra::{Token, Tokens};
pub use self::error::{Audience, DefenderError, Family, Kind};
use self::hunting::{DEVICE_ID_DIGITS, Devices, Events, Evidence, RecentAlerts};
pub use self::indicators::{INDICATOR_BATCH, NewIndicator};
use self::model::{AlertDetails, DeviceContext, Event, File, Machine, Page, RecentAlert};
pub use self::query::Sort;
use crate::outbound::Outbound;
use crate::retry;
use crate::telemetry::metrics::Metrics;

/// The longest that one try of a REST or token call may take (`relay.md` 1.5).
pub const REST_LIMIT: Duration = Duration::from_secs(20);

/// Calls in flight at a time for one request (`relay.md` 4.3).
pub const CONCURRENT_CALLS: usize = 5;

/// How long a file profile, or that there is none, is believed (`relay.md` 5.5).
const FILE_TTL: Duration = Duration::from_secs(3600);

/// How long a machine or a device context, or that there is none, is believed (`relay.md` 5.5).
const MACHINE_TTL: Duration = Duration::from_secs(600);

/// A list of alerts is there for those who wait for it; this is for the case that whoever asked for it broke.
const ALERT_LIST_TTL: Duration = Duration::from_secs(1);

/// How long a tenant's refusal of an operator is believed: what the service understands changes rarely.
const REFUSAL_TTL: Duration = Duration::from_secs(24 * 3600);

/// Entries kept of each cache: of some 300 bytes for files and machines, and 1 KiB for devices with their adapters.
const FILES_KEPT: u64 = 10_000;
const MACHINES_KEPT: u64 = 10_000;
const DEVICES_KEPT: u64 = 5_000;
/// Lists of alerts are forgotten as soon as those who waited for them have them; refusals are of tenants.
const ALERT_LISTS_KEPT: u64 = 1_000;
const REFUSALS_KEPT: u64 = 1_000;

/// Where Microsoft is, and how it is called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Entra; the token path is added.
    pub entra_url: Url,
    /// Defender's REST API; `/api` is added.
    pub defender_url: Url,
    /// Graph; `/v1.0` is added.
    pub graph_url: Url,
    /// The scope of tokens for Defender (`defender.md` 1.2).
    pub defender_scope: String,
    /// The scope of tokens for Graph.
    pub graph_scope: String,
    /// The longest one try of a REST or token call may take. Hunting has no limit but the deadline.
    pub rest_limit: Duration,
    /// How failed calls are repeated.
    pub retry: retry::Policy,
    /// How long failures are remembered that would only be repeated.
    pub memory: Memory,
}

impl Settings {
    fn scope(&self, audience: Audience) -> &str {
        match audience {
            Audience::Defender => &self.defender_scope,
            Audience::Graph => &self.graph_scope,
        }
    }
}

impl Default for Settings {
    /// The commercial cloud.
    fn default() -> Self {
        let url = |text| Url::parse(text).expect("the address is a constant");
        Settings {
            entra_url: url("https://login.microsoftonline.com"),
            defender_url: url("https://api.security.microsoft.com"),
            graph_url: url("https://graph.microsoft.com"),
            defender_scope: "https://api.securitycenter.microsoft.com/.default".to_owned(),
            graph_scope: "https://graph.microsoft.com/.default".to_owned(),
            rest_limit: REST_LIMIT,
            retry: retry::Policy::default(),
            memory: Memory::default(),
        }
    }
}

/// Whose tenant is asked, as whom.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// GUID or domain name.
    pub tenant_id: String,
    /// The application's id.
    pub client_id: String,
    /// How the application proves who it is.
    pub proof: Proof,
}

/// How an application proves who it is (`defender.md` 1.1).
#[derive(Clone)]
pub enum Proof {
    /// It knows a secret.
    Secret(SecretString),
    /// It has the key of a certificate.
    Certificate(Arc<Certificate>),
}

/// Shows no secret.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::Secret(_) => f.write_str("Secret"),
            Proof::Certificate(certificate) => certificate.fmt(f),
        }
    }
}

impl From<SecretString> for Proof {
    fn from(secret: SecretString) -> Self {
        Proof::Secret(secret)
    }
}

impl Proof {
    /// The secret, where there is one.
    fn secret(&self) -> Option<&str> {
        match self {
            Proof::Secret(secret) => Some(secret.expose_secret()),
            Proof::Certificate(_) => None,
        }
    }

    /// What cache keys hold of it: a hash of the secret, or the certificate's thumbprint.
    fn sha256(&self) -> [u8; 32] {
        match self {
            Proof::Secret(secret) => {
                let hash = digest::digest(&digest::SHA256, secret.expose_secret().as_bytes());
                hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
            }
            Proof::Certificate(certificate) => certificate.thumbprint(),
        }
    }
}

/// What one request may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls in flight at a time.
    pub concurrent_calls: usize,
    /// Whether a machine is to be isolated or released: such calls come first where there is not room for all.
    pub containment: bool,
    /// Whether a call that changes something is sent once only, whatever is answered (`relay.md` 7.3): a caller waits who
    /// is told, and asks again. Not sent at all, it may be tried again.
    pub once: bool,
}

impl Limits {
    /// The default, for containment.
    #[must_use]
    pub fn containment() -> Self {
        Limits { containment: true, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { concurrent_calls: CONCURRENT_CALLS, containment: false, once: false }
    }
}

/// Says when a call may go out: where a quota that is shared by all workers has its say.
pub trait Permits: Send + Sync {
    /// Resolves when one try of `family` may go out for this tenant and client: with the moment by which it must have
    /// been sent, for a permit counts from when it was given. Each try needs its own.
    ///
    /// `Err(wait)` refuses it, at once when none can be had before `until`: work that cannot finish is not begun. The
    /// call is then taken for throttled with that `Retry-After`.
    fn permit<'a>(
        &'a self,
        tenant_id: &'a str,
        client_id: &'a str,
        family: Family,
        purpose: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>>;

    /// A try was answered 429, with this `Retry-After` if any; for hunting that may be how long the engine pauses
    /// (`defender.md` 3.2). Not said of tokens.
    fn throttled(&self, tenant_id: &str, client_id: &str, family: Family, retry_after: Option<Duration>) {
        let _ = (tenant_id, client_id, family, retry_after);
    }

    /// How many calls of `family` that are not for containment could still go out before `until`, as far as this
    /// process knows; `u32::MAX` when it knows of no limit.
    fn room(&self, tenant_id: &str, client_id: &str, family: Family, until: Instant) -> u32 {
        let _ = (tenant_id, client_id, family, until);
        u32::MAX
    }
}

/// What a call is for: who goes first where there is not room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Isolating or releasing a machine, or another response action; tokens for it included. Goes first.
    Containment,
    /// Anything else.
    Lookup {
        /// Who asks, by a number that is its own in this process: those who ask take turns, however many calls each
        /// wants to make.
        request: u64,
    },
}

/// Lets every call go at once.
struct Unlimited;

impl Permits for Unlimited {
    fn permit<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Family,
        _: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>> {
        std::future::ready(Ok(until)).boxed()
    }
}

/// Who asks: what every cache key begins with. Has no `Debug`, for a hash of a weak secret is a secret too.
#[derive(PartialEq, Eq, Hash)]
struct Account {
    tenant_id: String,
    client_id: String,
    proof_sha256: [u8; 32],
}

impl Account {
    fn new(credentials: &Credentials) -> Self {
        Account {
            tenant_id: credentials.tenant_id.clone(),
            client_id: credentials.client_id.clone(),
            proof_sha256: credentials.proof.sha256(),
        }
    }
}

type Kept<V> = Cache<(Arc<Account>, String), V>;

fn kept<V: Clone + Send + Sync + 'static>(entries: u64, ttl: Duration) -> Kept<V> {
    Cache::builder().max_capacity(entries).time_to_live(ttl).build()
}

/// The clients of one process: connections and caches. Cheap to clone; clones share both.
#[derive(Clone)]
pub struct Defender {
    shared: Arc<Shared>,
    permits: Arc<dyn Permits>,
    metrics: Option<Metrics>,
}

struct Shared {
    settings: Settings,
    outbound: Outbound,
    tokens: Tokens,
    circuits: Arc<Circuits>,
    files: Kept<Option<File>>,
    machines: Kept<Option<Machine>>,
    devices: Kept<Arc<DeviceContext>>,
    alert_lists: Kept<Alerts>,
    /// Calls for alerts and file profiles that are going to be made.
    planned: Mutex<HashMap<Arc<Account>, u32>>,
    events: Batches<Events>,
    recent_alerts: Batches<RecentAlerts>,
    evidence: Batches<Evidence>,
    device_questions: Batches<Devices>,
    refusing_partition: Cache<Arc<Account>, ()>,
    refusing_in: Cache<Arc<Account>, ()>,
    /// Sessions that were begun; their numbers.
    sessions: AtomicU64,
}

impl fmt::Debug for Defender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Defender").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Defender {
    /// A client that has nothing cached and lets every call go at once.
    #[must_use]
    pub fn new(settings: Settings, outbound: Outbound) -> Defender {
        let circuits = Arc::new(Circuits::new(settings.memory));
        let shared = Shared {
            settings,
            outbound,
            tokens: entra::tokens(),
            circuits,
            files: kept(FILES_KEPT, FILE_TTL),
            machines: kept(MACHINES_KEPT, MACHINE_TTL),
            devices: kept(DEVICES_KEPT, MACHINE_TTL),
            alert_lists: kept(ALERT_LISTS_KEPT, ALERT_LIST_TTL),
            planned: Mutex::default(),
            events: Batches::default(),
            recent_alerts: Batches::default(),
            evidence: Batches::default(),
            device_questions: Batches::default(),
            refusing_partition: Cache::builder().max_capacity(REFUSALS_KEPT).time_to_live(REFUSAL_TTL).build(),
            refusing_in: Cache::builder().max_capacity(REFUSALS_KEPT).time_to_live(REFUSAL_TTL).build(),
            sessions: AtomicU64::new(0),
        };
        Defender { shared: Arc::new(shared), permits: Arc::new(Unlimited), metrics: None }
    }

    /// The same client, counting each try that goes out.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Defender {
        Defender { metrics: Some(metrics), ..self }
    }

    /// The same client, asking `permits` before each try.
    #[must_use]
    pub fn with_permits(self, permits: Arc<dyn Permits>) -> Defender {
        Defender { permits, ..self }
    }

    /// One request's use of the client. No call of it lasts longer than `deadline`.
    #[must_use]
    pub fn session(&self, credentials: Credentials, deadline: Instant, limits: Limits) -> Session {
        let account = Arc::new(Account::new(&credentials));
        self.begin(account, credentials.proof, deadline, limits)
    }

    fn begin(&self, account: Arc<Account>, proof: Proof, deadline: Instant, limits: Limits) -> Session {
        let purpose = if limits.containment {
            Purpose::Containment
        } else {
            Purpose::Lookup { request: self.shared.sessions.fetch_add(1, Ordering::Relaxed) }
        };
        Session {
            actor: None,
            patience: None,
            inner: Arc::new(Inner {
                defender: self.clone(),
                account,
                proof,
                deadline,
                slots: Arc::new(Semaphore::new(limits.concurrent_calls.max(1))),
                purpose,
                once: limits.once,
                refused_tokens: Mutex::new(HashMap::new()),
            }),
        }
    }
}

/// One request's use of [`Defender`]. Clones share its deadline and its calls in flight.
///
/// Values are expected in normal form (`relay.md` 4.2). One that is not valid for its kind is refused with
/// [`Kind::InvalidValue`] and never sent.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
    /// Who posts machine actions, if that is somebody else.
    actor: Option<Arc<Inner>>,
    /// The longest that a call for alerts or a file profile waits for its permit; else until the deadline.
    patience: Option<Duration>,
}

struct Inner {
    defender: Defender,
    account: Arc<Account>,
    proof: Proof,
    deadline: Instant,
    slots: Arc<Semaphore>,
    purpose: Purpose,
    once: bool,
    refused_tokens: Mutex<HashMap<Audience, Arc<Token>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tenant_id", &self.inner.account.tenant_id)
            .field("client_id", &self.inner.account.client_id)
            .finish_non_exhaustive()
    }
}

/// A value that hunting is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// What it is.
    pub sort: Sort,
    /// The value in any spelling that is valid for its sort.
    pub value: String,
    /// How many rows are wanted of it, the newest; 0 = none, and nothing is asked.
    pub top: usize,
}

/// What a token says of itself; not verified, for diagnostics only (`defender.md` 1.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenClaims {
    /// The resource it is for.
    pub audience: Option<String>,
    /// The application permissions it carries.
    pub roles: Vec<String>,
}

impl Session {
    /// The profile of a file by SHA-1 or SHA-256; `None` when Defender does not know it. Up to an hour old.
    /// `GET /files/{id}` (`defender.md` 5.1).
    ///
    /// # Errors
    /// As every call: see [`Kind`], and [`DefenderError::is_transient`] for whether it passes.
    pub async fn file(&self, hash: &str) -> Result<Option<File>, DefenderError> {
        let hash = query::hex(hash, 40).or_else(|| query::hex(hash, 64));
        let hash = hash.ok_or_else(|| DefenderError::invalid_value(Family::Files))?;
        let files = &self.inner.defender.shared.files;
        // A file that was read by one of its hashes is known by the other as well.
        let hashes = |file: &File| {
            let sha1 = file.sha1.as_deref().and_then(|hash| query::hex(hash, 40));
            let sha256 = file.sha256.as_deref().and_then(|hash| query::hex(hash, 64));
            sha1.into_iter().chain(sha256).collect()
        };
        self.profile(Family::Files, files, hash, "files", "/api/files/{id}", hashes).await
    }

    /// The machine with this id, 40 hex digits; `None` when Defender does not know it. Up to ten minutes old.
    /// `GET /machines/{id}` (`defender.md` 5.6).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn machine(&self, id: &str) -> Result<Option<Machine>, DefenderError> {
        // The route takes computer names as well, so anything else could select another machine.
        let id = query::hex(id, DEVICE_ID_DIGITS).ok_or_else(|| DefenderError::invalid_value(Family::Machines))?;
        let machines = &self.inner.defender.shared.machines;
        self.profile(Family::Machines, machines, id, "machines", "/api/machines/{id}", |_| Vec::new()).await
    }

    async fn profile<T: DeserializeOwned + Clone + Send + Sync + 'static>(
        &self,
        family: Family,
        cache: &Kept<Option<T>>,
        id: String,
        collection: &str,
        template: &'static str,
        names: impl Fn(&T) -> Vec<String>,
    ) -> Result<Option<T>, DefenderError> {
        let spec = Spec::get(family, self.api(&[collection, &id], None), template);
        let (names, asked) = (&names, &id);
        let fetch = || async {
            match self.call::<T>(&spec).await {
                Ok(profile) => {
                    let names = names(&profile);
                    // One that does not know the name it was asked by is not believed about others.
                    let others = names.iter().filter(|name| *name != asked && names.contains(asked));
                    for name in others.cloned() {
                        cache.insert((Arc::clone(&self.inner.account), name), Some(profile.clone())).await;
                    }
                    Ok(Some(profile))
                }
                Err(error) if error.is_answer(404) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.once(family, cache, (Arc::clone(&self.inner.account), id.clone()), fetch).await
    }

    /// Succeeds when the credentials can read machines, whether there are any or not.
    /// `GET /machines?$top=1` (`defender.md` 5.7 and 5.13).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn machines_top1(&self) -> Result<(), DefenderError> {
        let spec = Spec::get(Family::Machines, self.api(&["machines"], Some("$top=1")), "/api/machines");
        match self.call::<Page<Machine>>(&spec).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_answer(404) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The alerts of a file by SHA-1, read until there are more than `want`. `GET /files/{sha1}/alerts` (`defender.md` 5.2).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn file_alerts(&self, sha1: &str, want: usize) -> Result<Alerts, DefenderError> {
        let sha1 = query::hex(sha1, 40).ok_or_else(|| DefenderError::invalid_value(Family::Alerts))?;
        self.alerts(&["files", &sha1, "alerts"], "/api/files/{id}/alerts", want, false).await
    }

    /// The alerts of a domain, read until there are more than `want`. `GET /domains/{domain}/alerts` (`defender.md` 5.3).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn domain_alerts(&self, domain: &str, want: usize) -> Result<Alerts, DefenderError> {
        let domain = query::domain(domain).ok_or_else(|| DefenderError::invalid_value(Family::Alerts))?;
        self.alerts(&["domains", &domain, "alerts"], "/api/domains/{domain}/alerts", want, false).await
    }

    /// The alerts of an address of either family, read until there are more than `want`.
    /// `GET /ips/{ip}/alerts` (`defender.md` 5.4).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn ip_alerts(&self, ip: &str, want: usize) -> Result<Alerts, DefenderError> {
        let ip: std::net::IpAddr = ip.parse().map_err(|_| DefenderError::invalid_value(Family::Alerts))?;
        self.alerts(&["ips", &ip.to_string(), "alerts"], "/api/ips/{ip}/alerts", want, ip.is_ipv6()).await
    }

    /// The newest events of each value, newest first, in the order of `sought` (`file_events_by_hash.kql`,
    /// `network_events_by_ip.kql`, `network_events_by_domain.kql`; `defender.md` 6.3). Whoever of the same account asks at
    /// the same moment shares the query; values that were asked for together can fail apart.
    pub async fn events(&self, sought: &[Sought]) -> Vec<Result<Vec<Event>, DefenderError>> {
        self.hunt::<Events, _>(sought).await
    }

    /// The alerts of the last 30 days of each value, which is no MD5, in the order of `sought` and with the newest
    /// evidence first (`alerts_by_observable.kql`). Queries are shared as for [`Session::events`].
    pub async fn recent_alerts(&self, sought: &[Sought]) -> Vec<Result<Vec<RecentAlert>, DefenderError>> {
        self.hunt::<RecentAlerts, _>(sought).await
    }

    /// What hunting knows of alerts, by their ids and in their order (`alert_evidence.kql`).
    pub async fn alert_evidence(&self, ids: &[String]) -> Vec<Result<AlertDetails, DefenderError>> {
        self.hunt_evidence(ids).await
    }

    /// What hunting knows of devices, by device id in lower case (`device_context.kql`); up to ten minutes old. Devices
    /// that hunting knows nothing of have empty members. A failure comes beside what was found all the same.
    pub async fn device_contexts(&self, ids: &[String]) -> (HashMap<String, DeviceContext>, Option<DefenderError>) {
        self.hunt_devices(ids).await
    }

    /// The cheapest proof that hunting works (`health_probe.kql`).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn hunting_probe(&self) -> Result<(), DefenderError> {
        self.hunt_probe().await
    }

    /// The roles and the audience in the token for `audience`, for diagnostics; fetches a token if there is none.
    ///
    /// # Errors
    /// When no token can be had.
    pub async fn roles(&self, audience: Audience) -> Result<TokenClaims, DefenderError> {
        Ok(self.token(audience).await?.claims.clone())
    }

    /// The same use, in which machine actions are posted by the application of `actor`, and everything is still read by
    /// that of this one (`defender.md` 8).
    #[must_use]
    pub fn acting_as(self, actor: &Session) -> Session {
        Session { actor: Some(Arc::clone(&actor.inner)), ..self }
    }

    /// The session that posts machine actions.
    fn actor(&self) -> Session {
        Session { inner: Arc::clone(self.actor.as_ref().unwrap_or(&self.inner)), actor: None, patience: None }
    }

    /// The same credentials for a call that others have a part in: it ends with the last of them, and takes its own
    /// turn among those who ask.
    fn until(&self, deadline: Instant) -> Session {
        let Inner { defender, account, proof, .. } = &*self.inner;
        defender.begin(Arc::clone(account), proof.clone(), deadline, Limits::default())
    }

    /// When this request ends.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.inner.deadline
    }

    /// This session for somebody who knows what else to do when alerts and file profiles must wait: their calls are refused
    /// with [`DefenderError::is_not_permitted`] when there is no permit within one in `part` of the time that the request
    /// has now, and within `most`.
    #[must_use]
    pub fn hasty(&self, part: u32, most: Duration) -> Session {
        let left = self.inner.deadline.saturating_duration_since(Instant::now());
        Session { patience: Some((left / part).min(most)), ..self.clone() }
    }

    /// How many calls of `family` could still go out before this request, or its patience, ends, as far as this process
    /// knows (see [`Permits::room`]).
    #[must_use]
    pub fn room(&self, family: Family) -> u32 {
        let Account { tenant_id, client_id, .. } = &*self.inner.account;
        self.inner.defender.permits.room(tenant_id, client_id, family, self.permit_until(family))
    }

    /// Until when a call that is about to be made waits for its permit.
    fn permit_until(&self, family: Family) -> Instant {
        let hasty = self.patience.filter(|_| family.shares_alerts_quota());
        hasty.map_or(self.inner.deadline, |patience| self.inner.deadline.min(Instant::now() + patience))
    }

    fn api(&self, segments: &[&str], query: Option<&str>) -> Url {
        let mut path = vec!["api"];
        path.extend_from_slice(segments);
        address(&self.inner.defender.shared.settings.defender_url, &path, query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_calls_may_be_made_from_spawned_tasks() {
        fn is_send(_: impl Send) {}
        fn check(session: &Session) {
            is_send(session.file(""));
            is_send(session.machine(""));
            is_send(session.machine_now(""));
            is_send(session.find_by_ip(std::net::Ipv4Addr::LOCALHOST, jiff::Timestamp::UNIX_EPOCH));
            is_send(session.machines_named(""));
            is_send(session.isolation_actions(""));
            is_send(session.machine_action(""));
            is_send(session.isolate("", IsolationType::Full, ""));
            is_send(session.unisolate("", ""));
            is_send(session.cancel("", ""));
            is_send(session.restrict("", ""));
            is_send(session.unrestrict("", ""));
            is_send(session.scan("", ScanType::Quick, ""));
            is_send(session.collect_package("", ""));
            is_send(session.available_actions(""));
            is_send(session.actions_of_kinds("", &[]));
            is_send(session.indicator_of(""));
            is_send(session.indicators_of(&[]));
            is_send(session.delete_indicator(""));
            is_send(session.open_alerts("", 1));
            is_send(session.machines_top1());
            is_send(session.file_alerts("", 1));
            is_send(session.domain_alerts("", 1));
            is_send(session.ip_alerts("", 1));
            is_send(session.events(&[]));
            is_send(session.recent_alerts(&[]));
            is_send(session.alert_evidence(&[]));
            is_send(session.device_contexts(&[]));
            is_send(session.hunting_probe());
            is_send(session.roles(Audience::Graph));
        }
        let _ = check;
    }
}
