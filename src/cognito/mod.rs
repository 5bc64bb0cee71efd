//! Vectra Cognito's REST API, of both flavours (`cognito.md` 3): one method per documented call.
//!
//! [`Cognito`] belongs to the process: connections and the access token. A [`Session`] is one piece of work's use of it:
//! how urgent it is, and until when. Every try of every call first takes a permit from a [`Rate`], which is where the one
//! rate of the whole deployment has its say; what Cognito says about being called too fast is reported back to it.
//!
//! What the first version of this program did wrong is not done here (`cognito.md` 2): certificates are verified, values
//! get into addresses by the URL library only, every call has a time limit, lists are read to their end, and the pages
//! are counted by ourselves, so that no link of an answer is ever followed.

pub mod audit;
mod call;
mod classify;
mod error;
pub mod model;
mod read;
mod text;
mod token;
mod version;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderValue;
use jiff::civil::Date;
use secrecy::SecretString;
use serde_json::json;
use tokio::time::Instant;
use url::Url;

use self::call::Spec;
pub use self::error::{Class, CognitoError, DETAIL_LIMIT_CHARS, Family, Kind};
use self::model::{Audit, Feed, FeedStart, Group, Host, HostsFilter, HostsPage, Note, Scoring};
use self::token::{Token, Tokens};
pub use self::version::{Flavour, UnknownVersion, Version};
use crate::outbound::Outbound;
use crate::retry;
use crate::telemetry::metrics::Metrics;

/// The longest that one try may take (`cognito.md` 3.3: 5 s were too short for the vendor's own library).
pub const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Hosts on a page of a list (`cognito.md` 3.6).
pub const HOSTS_PER_PAGE: u32 = 200;

/// The most events that a feed gives at once (`cognito.md` 3.4, call 10).
pub const EVENTS_LIMIT: u32 = 1000;

/// Groups whose name resembles the one asked for are read up to this page. More than some hundred would mean that the
/// brain ignores the name.
const GROUP_PAGES: u32 = 10;

/// Where the brain is, and how it is called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The brain, without `/api`.
    pub base_url: Url,
    /// The version of the API; decides the flavour.
    pub version: Version,
    /// Who calls.
    pub auth: Auth,
    /// Ask on-premises brains for hosts without any activity as well, which lists leave out otherwise (`all=true`).
    pub list_all: bool,
    /// The longest that one try may take.
    pub call_limit: Duration,
    /// How failed tries are repeated inside one call.
    pub retry: retry::Policy,
}

impl Settings {
    /// Settings with the recommended limits (`cognito.md` 3.6): 30 s a try, and three repeats after 0.5, 1 and 2 s at most.
    #[must_use]
    pub fn new(base_url: Url, version: Version, auth: Auth) -> Settings {
        let retry = retry::Policy { first: Duration::from_millis(500), cap: Duration::from_secs(2), tries: 4 };
        Settings { base_url, version, auth, list_all: true, call_limit: CALL_LIMIT, retry }
    }
}

/// How the bridge proves who it is (`cognito.md` 3.2).
#[derive(Clone)]
pub enum Auth {
    /// A local user's personal token, of on-premises brains.
    Token(SecretString),
    /// An API client, of v2.5 and v3.x.
    OAuth2 {
        /// The client's id; holds no colon.
        client_id: String,
        /// The client's secret key.
        client_secret: SecretString,
    },
}

/// Shows no secret.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::Token(_) => f.write_str("Token"),
            Auth::OAuth2 { client_id, .. } => {
                f.debug_struct("OAuth2").field("client_id", client_id).finish_non_exhaustive()
            }
        }
    }
}

/// How urgent a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Isolating or releasing a machine: before everything else.
    Containment,
    /// All else.
    Normal,
}

/// Says when a try may go out: where the one rate of the whole deployment has its say.
pub trait Rate: Send + Sync {
    /// Resolves when one try may go out. It need not mind a deadline: the caller stops waiting by itself.
    fn permit(&self, priority: Priority) -> BoxFuture<'_, ()>;

    /// Cognito answered that it is called too fast, and asked to be left alone for `wait`, if it said so.
    fn throttled(&self, wait: Option<Duration>);
}

/// The client of one process. Cheap to clone; clones share connections and the access token.
#[derive(Clone)]
pub struct Cognito {
    shared: Arc<Shared>,
    metrics: Option<Metrics>,
}

struct Shared {
    settings: Settings,
    outbound: Outbound,
    rate: Arc<dyn Rate>,
    tokens: Tokens,
    /// Whether lists may ask for all hosts: the parameter is deprecated and may be refused (`cognito.md` 9, point 9).
    list_all: AtomicBool,
}

impl fmt::Debug for Cognito {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cognito").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Cognito {
    /// A client that calls no faster than `rate` allows. `outbound` must trust the brain's certificate, which is often a
    /// private one ([`Outbound::with_ca_file`]).
    #[must_use]
    pub fn new(settings: Settings, outbound: Outbound, rate: Arc<dyn Rate>) -> Cognito {
        let list_all = AtomicBool::new(settings.list_all && settings.version.flavour() == Flavour::Qux);
        let shared = Shared { settings, outbound, rate, tokens: token::tokens(), list_all };
        Cognito { shared: Arc::new(shared), metrics: None }
    }

    /// The same client, counting each try that goes out.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Cognito {
        Cognito { metrics: Some(metrics), ..self }
    }

    /// The brain's address, without `/api`.
    #[must_use]
    pub fn base_url(&self) -> &Url {
        &self.shared.settings.base_url
    }

    /// The version that is spoken.
    #[must_use]
    pub fn version(&self) -> Version {
        self.shared.settings.version
    }

    /// One piece of work's use of the client. No call of it lasts longer than `deadline`.
    #[must_use]
    pub fn session(&self, priority: Priority, deadline: Instant) -> Session {
        Session { cognito: self.clone(), priority, deadline, refused_token: Arc::default() }
    }
}

/// One piece of work's use of [`Cognito`]. Cheap to clone.
///
/// Reads are repeated a few times, so a failure means that it was tried. Writes are repeated only when they were
/// certainly not carried out: one whose answer was lost fails with [`CognitoError::may_have_happened`], and whoever goes on
/// has to read again first.
#[derive(Clone)]
pub struct Session {
    cognito: Cognito,
    priority: Priority,
    deadline: Instant,
    /// The access token that was refused, once there was one: it is renewed once in a session.
    refused_token: Arc<Mutex<Option<Arc<Token>>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("priority", &self.priority).finish_non_exhaustive()
    }
}

impl Session {
    /// The host with this id; `None` when Cognito has no such host. `GET /hosts/{id}` (call 1).
    ///
    /// # Errors
    /// As every call: see [`Kind`], and [`CognitoError::class`] for what to do about it.
    pub async fn host(&self, id: u64) -> Result<Option<Host>, CognitoError> {
        let spec = self.spec(Family::Hosts, &["hosts", &id.to_string()], "/api/{version}/hosts/{id}");
        found(self.call(&spec, |body| read::host(body).filter(|host| host.id == id)).await)
    }

    /// The tags of a host, in Cognito's order; `None` when there is no such host. `GET /tagging/host/{id}` (call 2).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn tags(&self, id: u64) -> Result<Option<Vec<String>>, CognitoError> {
        let spec = self.spec(Family::Tags, &["tagging", "host", &id.to_string()], "/api/{version}/tagging/host/{id}");
        found(self.call(&spec, |body| read::tags(body, id)).await)
    }

    /// Makes `tags` the whole list of a host's tags and returns the list that resulted, which may differ from it.
    /// `PATCH /tagging/host/{id}` (call 3). An answer without a list costs a call of [`Session::tags`].
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::Gone`] when there is no such host. With
    /// [`CognitoError::may_have_happened`] the list may be written.
    pub async fn replace_tags(&self, id: u64, tags: &[String]) -> Result<Vec<String>, CognitoError> {
        let spec = self
            .spec(Family::Tags, &["tagging", "host", &id.to_string()], "/api/{version}/tagging/host/{id}")
            .write(http::Method::PATCH, &json!({ "tags": tags }));
        match self.write(&spec, |body| read::tags(body, id)).await? {
            Some(tags) => Ok(tags),
            None => self.tags(id).await?.ok_or_else(|| CognitoError::gone(Family::Tags)),
        }
    }

    /// The notes of a host, in Cognito's order. `GET /hosts/{id}/notes` (call 5).
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::Gone`] when there is no such host.
    pub async fn notes(&self, id: u64) -> Result<Vec<Note>, CognitoError> {
        let spec = self.spec(Family::Notes, &["hosts", &id.to_string(), "notes"], "/api/{version}/hosts/{id}/notes");
        self.call(&spec, read::notes).await
    }

    /// Adds a note to a host, and returns it as far as Cognito's answer tells. `POST /hosts/{id}/notes` (call 6).
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::Gone`] when there is no such host. With
    /// [`CognitoError::may_have_happened`] the note may be there.
    pub async fn add_note(&self, id: u64, text: &str) -> Result<Option<Note>, CognitoError> {
        let spec = self
            .spec(Family::Notes, &["hosts", &id.to_string(), "notes"], "/api/{version}/hosts/{id}/notes")
            .write(http::Method::POST, &json!({ "note": text }));
        self.write(&spec, read::note).await
    }

    /// Changes the text of a note. `PATCH /hosts/{id}/notes/{note_id}` (call 7).
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::Gone`] when there is no such host or note. With
    /// [`CognitoError::may_have_happened`] the note may be changed.
    pub async fn update_note(&self, id: u64, note_id: u64, text: &str) -> Result<(), CognitoError> {
        let path = ["hosts", &id.to_string(), "notes", &note_id.to_string()];
        let spec = self
            .spec(Family::Notes, &path, "/api/{version}/hosts/{id}/notes/{note_id}")
            .write(http::Method::PATCH, &json!({ "note": text }));
        // What the note says now is what was sent.
        self.write(&spec, |_| Some(())).await.map(drop)
    }

    /// The urgency of a host on a hosted brain, 0 to 100; `None` when there is no such host or it has none.
    /// `GET /entities/{id}?type=host` (`cognito.md` 3.5): the host itself does not tell.
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::NotOffered`] on-premises.
    pub async fn urgency(&self, id: u64) -> Result<Option<u8>, CognitoError> {
        self.only(Flavour::Rux, Family::Entities)?;
        let spec = self
            .spec(Family::Entities, &["entities", &id.to_string()], "/api/{version}/entities/{id}")
            .query("type", "host");
        let host = found(self.call(&spec, |body| read::host(body).filter(|host| host.id == id)).await)?;
        Ok(host.and_then(|host| host.urgency))
    }

    /// Page `page`, from 1, of the hosts that `filter` lets through; a page past the end is empty and the last.
    /// `GET /hosts` (call 4).
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::InvalidValue`] for a tag that holds a comma.
    pub async fn hosts(&self, filter: &HostsFilter, page: u32) -> Result<HostsPage, CognitoError> {
        // In the list, which is divided by commas, it would be two other tags.
        if filter.tags.iter().any(|tag| tag.contains(',')) {
            return Err(CognitoError::invalid_value(Family::Hosts));
        }
        let spec = || {
            let mut spec = self.spec(Family::Hosts, &["hosts"], "/api/{version}/hosts");
            if !filter.tags.is_empty() {
                spec = spec.query("tags", &filter.tags.join(","));
            }
            if let Some(threat) = filter.threat_gte {
                spec = spec.query("threat_gte", &threat.to_string());
            }
            if let Some(certainty) = filter.certainty_gte {
                spec = spec.query("certainty_gte", &certainty.to_string());
            }
            spec.query("page", &page.to_string()).query("page_size", &HOSTS_PER_PAGE.to_string())
        };
        let list_all = &self.cognito.shared.list_all;
        let all = list_all.load(Ordering::Relaxed);
        let mut result = self.call(&if all { spec().query("all", "true") } else { spec() }, read::hosts).await;
        if all && result.as_ref().is_err_and(|error| error.status() == Some(400)) {
            result = self.call(&spec(), read::hosts).await;
            if result.is_ok() && list_all.swap(false, Ordering::Relaxed) {
                tracing::warn!("this brain refuses all=true: hosts without any activity are not listed");
            }
        }
        match result {
            Err(error) if page > 1 && error.kind() == &Kind::Gone => {
                Ok(HostsPage { hosts: Vec::new(), count: None, last: true })
            }
            result => result.map_err(CognitoError::of_a_list),
        }
    }

    /// The groups with exactly this name, of any kind; there may be several. `GET /groups` (call 8).
    ///
    /// # Errors
    /// As every call: see [`Kind`].
    pub async fn groups_named(&self, name: &str) -> Result<Vec<Group>, CognitoError> {
        let mut named = Vec::new();
        for page in 1..=GROUP_PAGES {
            let spec = self
                .spec(Family::Groups, &["groups"], "/api/{version}/groups")
                .query("name", name)
                .query("page", &page.to_string())
                .query("page_size", &HOSTS_PER_PAGE.to_string());
            match self.call(&spec, read::groups).await {
                Ok((groups, last)) => {
                    named.extend(groups.into_iter().filter(|group| group.name == name));
                    if last {
                        break;
                    }
                }
                Err(error) if page > 1 && error.kind() == &Kind::Gone => break,
                Err(error) => return Err(error.of_a_list()),
            }
        }
        Ok(named)
    }

    /// The audit entries of an on-premises brain from the first to the last of these days (UTC), in Cognito's order.
    /// `GET /audits` (call 9). Days are all that can be asked for; the caller picks by the entries' times.
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::NotOffered`] on hosted brains.
    pub async fn audits(&self, day_start: Date, day_end: Date) -> Result<Vec<Audit>, CognitoError> {
        self.only(Flavour::Qux, Family::Audits)?;
        let spec = self
            .spec(Family::Audits, &["audits"], "/api/{version}/audits")
            .query("start", &day_start.to_string())
            .query("end", &day_end.to_string());
        self.call(&spec, read::audits).await.map_err(CognitoError::of_a_list)
    }

    /// Changes of hosts' scores on a hosted brain, from `from` on, at most `limit` (up to [`EVENTS_LIMIT`]).
    /// `GET /events/entity_scoring` (call 10).
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::NotOffered`] on-premises.
    pub async fn scoring_events(&self, from: FeedStart, limit: u32) -> Result<Feed<Scoring>, CognitoError> {
        let spec =
            self.feed("entity_scoring", "/api/{version}/events/entity_scoring", from, limit)?.query("type", "host");
        self.call(&spec, |body| read::feed(body, read::scoring)).await.map_err(CognitoError::of_a_list)
    }

    /// The audit entries of a hosted brain from the checkpoint `from` on, at most `limit` (up to [`EVENTS_LIMIT`]).
    /// `GET /events/audits` (call 10).
    ///
    /// # Errors
    /// As every call: see [`Kind`]; [`Kind::NotOffered`] on-premises.
    pub async fn audit_events(&self, from: FeedStart, limit: u32) -> Result<Feed<Audit>, CognitoError> {
        let spec = self.feed("audits", "/api/{version}/events/audits", from, limit)?;
        self.call(&spec, |body| read::feed(body, read::audit_event)).await.map_err(CognitoError::of_a_list)
    }

    /// When this piece of work ends.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    fn feed(&self, name: &str, template: &'static str, from: FeedStart, limit: u32) -> Result<Spec, CognitoError> {
        self.only(Flavour::Rux, Family::Events)?;
        let spec = self.spec(Family::Events, &["events", name], template);
        let spec = match from {
            FeedStart::Checkpoint(checkpoint) => spec.query("from", &checkpoint.to_string()),
            FeedStart::Since(time) => spec.query("event_timestamp_gte", &whole_seconds(time)),
        };
        Ok(spec.query("limit", &limit.clamp(1, EVENTS_LIMIT).to_string()))
    }

    fn only(&self, flavour: Flavour, family: Family) -> Result<(), CognitoError> {
        let fits = self.cognito.version().flavour() == flavour;
        if fits { Ok(()) } else { Err(CognitoError::not_offered(family)) }
    }

    fn spec(&self, family: Family, path: &[&str], template: &'static str) -> Spec {
        let Settings { base_url, version, .. } = &self.cognito.shared.settings;
        let version = version.to_string();
        let path = [&["api", version.as_str()], path].concat();
        Spec::new(family, call::address(base_url, &path), template)
    }
}

/// What Cognito does not have is no failure of the call.
fn found<T>(result: Result<T, CognitoError>) -> Result<Option<T>, CognitoError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == &Kind::Gone => Ok(None),
        Err(error) => Err(error),
    }
}

/// A time as Cognito writes it (`cognito.md` 3.3): `2026-02-03T10:30:45Z`.
fn whole_seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `scheme text` as the value of an `Authorization` header; `None` when it cannot be one.
fn authorization(scheme: &str, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("{scheme} {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
