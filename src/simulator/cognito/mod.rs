//! Vectra Cognito's REST API (`cognito.md` 3): hosts, tags, notes, groups, audits and the event feeds of one brain.
//!
//! One brain answers as both flavours at once: `/api/v2.x` as an appliance (QUX), `/api/v3.x` as the hosted service
//! (RUX), each with its own authentication and its own routes. [`Behaviour::versions`] says which of them exist.
//!
//! Refusals come in this order: version, token, script, rate, route, method, right, then the request itself.
//!
//! ```text
//! auth.rs    tokens, the OAuth2 token endpoint       state.rs  hosts, every write with its author
//! hosts.rs   hosts, entities, groups: reading, lists host.rs   one host as data and as JSON
//! tags.rs    reading and replacing tags              feeds.rs  audits and event feeds
//! notes.rs   listing, adding, changing notes         emit.rs   events to a webhook
//! story.rs   the story's hosts                       bulk.rs   hosts and machines by the thousand
//! control.rs, admin.rs                               the handle, and its routes under `/_simulator/cognito`
//! ```

pub(super) mod admin;
mod auth;
mod bulk;
mod control;
mod emit;
mod feeds;
mod host;
mod hosts;
mod notes;
mod state;
mod story;
mod tags;

use std::sync::{Mutex, MutexGuard};

use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, PLAIN_JSON};
use super::request::Incoming;
use super::world::{World, lock};

pub use self::bulk::{BULK_LIMIT, BulkHost, BulkKind, FIRST_BULK_HOST};
pub use self::control::Brain;
pub use self::emit::{Emit, EmitForm, Emitted};
pub use self::host::{Artifact, Host, Moment, Note};
pub use self::state::{TagWrite, Undone, Writer};
pub use self::story::{
    BRAIN_CLIENT_ID, BRAIN_CLIENT_SECRET, BRAIN_TOKEN, BRAIN_USER, BUILD_SERVER_HOST, DOMAIN_CONTROLLER_HOST,
    ENGINEERING_HOST, FILE_SERVER_HOST, FINANCE_HOST, FORGOTTEN_HOST, HR_HOST, KIOSK_HOST, MOVED_HOST, PRINTER_HOST,
    PROTECTED_GROUP, SHARED_ADDRESS_HOST,
};

use self::emit::Inbox;
use self::state::State;

/// What a brain's tokens may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Read hosts and entities.
    ReadHosts,
    /// Read tags by the tagging calls.
    ReadTags,
    /// Replace tags.
    WriteTags,
    /// List notes.
    ReadNotes,
    /// Add notes, change and delete one's own.
    WriteNotes,
    /// Change and delete notes of others.
    WriteOthersNotes,
    /// Read groups.
    ReadGroups,
    /// Read audits and the event feeds.
    ReadEvents,
}

/// How the list filter `tags` compares (`cognito.md` 3.4, call 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagFilter {
    /// Byte for byte.
    Exact,
    /// Without letter case.
    IgnoreCase,
    /// Any tag that contains the text, without letter case.
    Substring,
}

/// How a brain behaves: what the contract leaves open, and what clients must bear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// The API versions that exist, like `v2.5`; others answer 404.
    pub versions: Vec<String>,
    /// The rights that every token lacks.
    pub withheld: Vec<Right>,
    /// Errors say `details` where they say `detail` otherwise.
    pub plural_errors: bool,
    /// Lists of tags come in another order each time.
    pub shuffle_tags: bool,
    /// `next` and `previous` of lists begin with this base URL instead of where the client came from.
    pub foreign_next_link: Option<String>,
    /// How `tags=` compares; absent: without case on v2, with case on v3.
    pub tag_filter: Option<TagFilter>,
    /// The parameter `all` of the host list is unknown.
    pub refuse_all: bool,
    /// Pages hold at most this many entries, whatever was asked for.
    pub page_cap: Option<usize>,
    /// Calls in any second; more are answered 429. Token requests are not counted here.
    pub rate_per_second: Option<u32>,
    /// Token requests in any second; more are answered 429.
    pub token_rate_per_second: Option<u32>,
    /// Whether a 429 says `Retry-After`.
    pub retry_after: bool,
    /// How long OAuth2 access tokens are good, in seconds.
    pub token_lifetime_seconds: u64,
    /// Whether note texts come back HTML-escaped.
    pub escape_notes: bool,
    /// Whether tags that were written through the API show in the audits, as those of the user interface do.
    pub audit_api_writes: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            versions: ["v2.2", "v2.3", "v2.4", "v2.5", "v3.3", "v3.4", "v3.5"].map(str::to_owned).to_vec(),
            withheld: Vec::new(),
            plural_errors: false,
            shuffle_tags: false,
            foreign_next_link: None,
            tag_filter: None,
            refuse_all: false,
            page_cap: None,
            rate_per_second: None,
            token_rate_per_second: None,
            retry_after: true,
            token_lifetime_seconds: 21_600,
            escape_notes: true,
            audit_api_writes: true,
        }
    }
}

/// What a brain knows at the start.
#[derive(Debug, Clone)]
pub enum BrainData {
    /// The hosts of the story.
    Story,
    /// Nothing.
    Empty,
    /// These hosts. Groups they name are made.
    Given(Vec<Host>),
}

/// How a brain starts.
#[derive(Clone)]
pub struct BrainSettings {
    /// The personal token, for v2.
    pub token: String,
    /// The OAuth2 client's id.
    pub client_id: String,
    /// The OAuth2 client's secret.
    pub client_secret: String,
    /// The local user whom token and client belong to: the author of what they write.
    pub user: String,
    /// Its hosts.
    pub data: BrainData,
    /// How it behaves.
    pub behaviour: Behaviour,
}

impl std::fmt::Debug for BrainSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrainSettings").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Default for BrainSettings {
    fn default() -> Self {
        Self {
            token: BRAIN_TOKEN.to_owned(),
            client_id: BRAIN_CLIENT_ID.to_owned(),
            client_secret: BRAIN_CLIENT_SECRET.to_owned(),
            user: BRAIN_USER.to_owned(),
            data: BrainData::Story,
            behaviour: Behaviour::default(),
        }
    }
}

/// The brain behind a running simulator.
#[derive(Debug)]
pub(super) struct Cognito {
    state: Mutex<State>,
    inbox: Mutex<Option<Inbox>>,
}

impl Cognito {
    pub(super) fn new(settings: &BrainSettings) -> Self {
        let (outbox, inbox) = emit::mailbox();
        Self { state: Mutex::new(State::new(settings, outbox)), inbox: Mutex::new(Some(inbox)) }
    }

    /// Begins to send events in a task of its own, until `stop`. To be called within a runtime; once is enough.
    pub(super) fn begin(&self, stop: &CancellationToken) {
        if let Some(inbox) = lock(&self.inbox).take() {
            tokio::spawn(emit::run(inbox, stop.clone()));
        }
    }

    /// Back to how it started; access tokens that were issued stay good.
    pub(super) fn reset(&self, settings: &BrainSettings) {
        self.state().reset(settings);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The two flavours of brains (`cognito.md` 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// The appliance: v2.
    Qux,
    /// The hosted service: v3.
    Rux,
}

/// An API version in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    text: String,
    flavour: Flavour,
    minor: u32,
}

impl Version {
    /// The version of a path segment like `v2.5`; `v2` is 2.0. Other majors are not Cognito's.
    pub(super) fn read(segment: &str) -> Option<Self> {
        let number = segment.strip_prefix('v')?;
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        let flavour = match major {
            "2" => Flavour::Qux,
            "3" => Flavour::Rux,
            _ => return None,
        };
        Some(Self { text: segment.to_owned(), flavour, minor: minor.parse().ok()? })
    }
}

/// The two paths under which one kind of thing is found: hosts, and on v3 also entities (`cognito.md` 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Host,
    Entity,
}

/// A route with what its path holds. Ids that are no number name nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Hosts,
    One(Kind, Option<u64>),
    Tags(Kind, Option<u64>),
    /// The delta tag writes, which this brain does not have.
    TagsOfMany,
    Notes(Kind, Option<u64>),
    Note(Kind, Option<u64>, Option<u64>),
    Groups,
    /// The appliance's audits.
    Audits,
    /// The hosted feeds.
    AuditEvents,
    ScoreEvents,
    /// The appliance's search.
    Search,
    Unknown,
}

/// What a path of Cognito's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// An OAuth2 token endpoint: that of an appliance's version, or the hosted one.
    Token(Option<Version>),
    Call(Version, Route),
}

impl Endpoint {
    /// The endpoint of these decoded segments, which follow `/api/{version}`.
    pub(super) fn find(version: Version, segments: &[&str]) -> Self {
        let id = |text: &str| text.parse().ok();
        let route = match segments {
            ["oauth2", "token"] => return Self::Token(Some(version)),
            ["hosts"] => Route::Hosts,
            ["hosts", host] => Route::One(Kind::Host, id(host)),
            ["hosts", host, "notes"] => Route::Notes(Kind::Host, id(host)),
            ["hosts", host, "notes", note] => Route::Note(Kind::Host, id(host), id(note)),
            ["tagging", "host"] => Route::TagsOfMany,
            ["tagging", "host", host] => Route::Tags(Kind::Host, id(host)),
            ["entities", host] => Route::One(Kind::Entity, id(host)),
            ["entities", host, "notes"] => Route::Notes(Kind::Entity, id(host)),
            ["entities", host, "notes", note] => Route::Note(Kind::Entity, id(host), id(note)),
            ["tagging", "entity", host] => Route::Tags(Kind::Entity, id(host)),
            ["groups"] => Route::Groups,
            ["audits"] => Route::Audits,
            ["events", "audits"] => Route::AuditEvents,
            ["events", "entity_scoring"] => Route::ScoreEvents,
            ["search", "hosts"] => Route::Search,
            _ => Route::Unknown,
        };
        Self::Call(version, route)
    }

    /// The name its calls are counted under.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Token(_) => "cognito-token",
            Self::Call(..) => "cognito",
        }
    }

    /// The template of the route.
    pub(super) fn template(&self) -> &'static str {
        match self {
            Self::Token(_) => "oauth2/token",
            Self::Call(_, route) => route.template(),
        }
    }
}

impl Route {
    fn template(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::One(Kind::Host, _) => "hosts/{id}",
            Self::One(Kind::Entity, _) => "entities/{id}",
            Self::Tags(Kind::Host, _) => "tagging/host/{id}",
            Self::Tags(Kind::Entity, _) => "tagging/entity/{id}",
            Self::TagsOfMany => "tagging/host",
            Self::Notes(Kind::Host, _) => "hosts/{id}/notes",
            Self::Notes(Kind::Entity, _) => "entities/{id}/notes",
            Self::Note(Kind::Host, ..) => "hosts/{id}/notes/{note}",
            Self::Note(Kind::Entity, ..) => "entities/{id}/notes/{note}",
            Self::Groups => "groups",
            Self::Audits => "audits",
            Self::AuditEvents => "events/audits",
            Self::ScoreEvents => "events/entity_scoring",
            Self::Search => "search/hosts",
            Self::Unknown => "cognito/unknown",
        }
    }

    /// Whether that flavour has it.
    fn exists(self, flavour: Flavour) -> bool {
        match self {
            Self::Unknown => false,
            Self::One(Kind::Entity, _)
            | Self::Tags(Kind::Entity, _)
            | Self::Notes(Kind::Entity, _)
            | Self::Note(Kind::Entity, ..)
            | Self::AuditEvents
            | Self::ScoreEvents => flavour == Flavour::Rux,
            Self::Audits | Self::Search => flavour == Flavour::Qux,
            _ => true,
        }
    }

    /// What the method does and the right it takes; none: the route does not have it.
    fn right(self, method: &Method) -> Option<Right> {
        match (self, method.as_str()) {
            (Self::Hosts | Self::One(..) | Self::Search, "GET") => Some(Right::ReadHosts),
            (Self::Tags(..), "GET") => Some(Right::ReadTags),
            (Self::Tags(..), "PATCH") => Some(Right::WriteTags),
            (Self::Notes(..), "GET") => Some(Right::ReadNotes),
            (Self::Notes(..), "POST") | (Self::Note(..), "PATCH" | "DELETE") => Some(Right::WriteNotes),
            (Self::Groups, "GET") => Some(Right::ReadGroups),
            (Self::Audits | Self::AuditEvents | Self::ScoreEvents, "GET") => Some(Right::ReadEvents),
            _ => None,
        }
    }
}

/// Answers a call, from the version on.
pub(super) fn answer(world: &World, endpoint: &Endpoint, request: &Incoming) -> Answer {
    match endpoint {
        Endpoint::Token(version) => auth::token(world, version.as_ref(), request),
        Endpoint::Call(version, route) => call(world, version, *route, request).unwrap_or_else(|refusal| refusal),
    }
}

/// A call that passed: who calls, how.
struct Call<'a> {
    world: &'a World,
    request: &'a Incoming,
    version: &'a Version,
    /// Who the token belongs to.
    user: String,
}

impl Call<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.world.brain.state()
    }

    fn refuse(&self, status: u16, text: &str) -> Answer {
        detail(&self.world.brain.state().behaviour, status, text)
    }

    /// Refuses parameters that are not among these.
    fn parameters(&self, known: &[&str]) -> Result<(), Answer> {
        let names = self.request.query.iter().map(|(name, _)| name.as_str());
        let unknown: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let text = format!("The following query parameter(s) are invalid: {}.", unknown.join(", "));
        Err(Answer::json(400, PLAIN_JSON, &json!({"details": text})))
    }

    /// A parameter's last value, as such services read them.
    fn parameter(&self, name: &str) -> Option<&str> {
        self.request.query.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body of a write: a JSON object.
    fn body(&self) -> Result<Value, Answer> {
        let media = self.request.header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
        if !media.trim().eq_ignore_ascii_case("application/json") {
            return Err(self.refuse(415, &format!("Unsupported media type \"{media}\" in request.")));
        }
        let body: Result<Value, _> = serde_json::from_slice(&self.request.body);
        match body {
            Ok(body) if body.is_object() => Ok(body),
            Ok(_) => Err(self.refuse(400, "Invalid data. Expected a dictionary.")),
            Err(error) => Err(self.refuse(400, &format!("JSON parse error - {error}"))),
        }
    }

    /// On the entity routes, `type=host` (`cognito.md` 3.5); v3.3 also knew it as `entity_type`.
    fn kind(&self, kind: Kind) -> Result<(), Answer> {
        if kind == Kind::Host {
            return self.parameters(&[]);
        }
        let names: &[&str] = if self.version.minor < 4 { &["type", "entity_type"] } else { &["type"] };
        self.parameters(names)?;
        if names.iter().find_map(|name| self.parameter(name)) == Some("host") {
            return Ok(());
        }
        Err(field_error("type", "Invalid value for parameter 'type'. Valid values: ('account', 'host')."))
    }
}

fn call(world: &World, version: &Version, route: Route, request: &Incoming) -> Result<Answer, Answer> {
    if !world.brain.state().behaviour.versions.contains(&version.text) {
        return Err(unrouted());
    }
    let user = auth::check(world, version, request)?;
    if let Some(scripted) = super::server::scripted(world, request) {
        return Ok(scripted);
    }
    let call = Call { world, request, version, user };
    call.state().take_call()?;
    if !route.exists(version.flavour) {
        return Err(call.refuse(404, "Not found."));
    }
    let not_allowed = || call.refuse(405, &format!("Method \"{}\" not allowed.", request.method));
    let right = route.right(&request.method).ok_or_else(not_allowed)?;
    if call.state().behaviour.withheld.contains(&right) {
        return Err(forbidden(&call));
    }
    match (route, request.method.as_str()) {
        (Route::Hosts, _) => hosts::list(&call),
        (Route::One(Kind::Host, id), _) => hosts::one(&call, id),
        (Route::One(Kind::Entity, id), _) => hosts::entity(&call, id),
        (Route::Groups, _) => hosts::groups(&call),
        (Route::Search, _) => hosts::search(&call),
        (Route::Audits, _) => feeds::audits(&call),
        (Route::AuditEvents, _) => feeds::audit_events(&call),
        (Route::ScoreEvents, _) => feeds::score_events(&call),
        (Route::Tags(kind, id), "GET") => tags::read(&call, kind, id),
        (Route::Tags(kind, id), _) => tags::replace(&call, kind, id),
        (Route::Notes(kind, id), "GET") => notes::list(&call, kind, id),
        (Route::Notes(kind, id), _) => notes::add(&call, kind, id),
        (Route::Note(kind, id, note), "PATCH") => notes::change(&call, kind, id, note),
        (Route::Note(kind, id, note), _) => notes::delete(&call, kind, id, note),
        (Route::TagsOfMany | Route::Unknown, _) => Err(not_allowed()),
    }
}

fn forbidden(call: &Call<'_>) -> Answer {
    call.refuse(403, "You do not have permission to perform this action.")
}

fn not_found(call: &Call<'_>) -> Answer {
    call.refuse(404, "Not found.")
}

/// An error in the words of `detail`, or `details` (`cognito.md` 3.3).
fn detail(behaviour: &Behaviour, status: u16, text: &str) -> Answer {
    let member = if behaviour.plural_errors { "details" } else { "detail" };
    Answer::json(status, PLAIN_JSON, &json!({member: text}))
}

/// An error about one member of the request.
fn field_error(field: &str, text: &str) -> Answer {
    let body = json!({field: text, "_meta": {"message": "Invalid field(s) found", "level": "error"}});
    Answer::json(400, PLAIN_JSON, &body)
}

/// What a web server says of a path that no application has.
fn unrouted() -> Answer {
    let body = "<!doctype html>\n<html lang=\"en\"><head><title>Not Found</title></head><body><h1>Not Found</h1>\
                <p>The requested resource was not found on this server. (simulated)</p></body></html>\n";
    Answer::text(404, "text/html; charset=utf-8", body)
}

/// The brain's own error for a status asked for as a fault.
pub(super) fn fault(endpoint: &Endpoint, status: u16) -> Answer {
    let body = |body: Value| Answer::json(status, PLAIN_JSON, &body);
    match (endpoint, status) {
        (_, 502..=504) => Answer::html(status),
        (Endpoint::Call(_, Route::Tags(..)), 404) => tags::missing(),
        (_, 400) => body(json!({"_meta": {"level": "error", "message": "Invalid field(s) found"}})),
        (_, 401) => body(json!({"detail": "Invalid token."})),
        (_, 403) => body(json!({"detail": "You do not have permission to perform this action."})),
        (_, 404) => body(json!({"detail": "Not found."})),
        (_, 429) => body(json!({"detail": "Request was throttled."})),
        (_, 500) => body(json!({"errors": [{"title": "Internal server error (simulated)"}]})),
        _ => body(json!({"detail": "Refused (simulated)."})),
    }
}
