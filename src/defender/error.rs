//! What can go wrong between the bridge and Entra, Defender or Graph, and the questions one may ask about it.
//!
//! Which relay error a failure becomes is decided in the worker: it matches on [`Kind`], never on text. How answers become
//! errors is in `classify`.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::retry::{Failure, Retryable};

/// The longest `<detail>` (`relay.md` 3.4).
pub const DETAIL_LIMIT_CHARS: usize = 500;

/// The code of a 400 that means that another action of the machine is open (`defender.md` 5.0).
const ACTIVE_REQUEST: &str = "ActiveRequestAlreadyExists";

/// Which of the two APIs a token is for: one token serves one resource (`defender.md` 1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Defender for Endpoint's REST API.
    Defender,
    /// Microsoft Graph, for hunting.
    Graph,
}

/// A group of calls that share a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Alerts of a file, a domain, an address or a machine: `Alert.Read.All`.
    Alerts,
    /// File profiles: `File.Read.All`.
    Files,
    /// Machines: `Machine.Read.All`.
    Machines,
    /// What acts on machines, one quota for all of it. Isolating and releasing: `Machine.Isolate`; for the others see
    /// [`DefenderError::permission`].
    Actions,
    /// Machine actions, reading: `Machine.Read.All`.
    MachineActions,
    /// Indicators, reading and writing: `Ti.ReadWrite.All`.
    Indicators,
    /// Hunting queries through Graph: `ThreatHunting.Read.All`.
    Hunting,
    /// The token endpoint of Entra.
    Token(Audience),
}

impl Family {
    /// The application permission that a 403 on this family asks for (`relay.md` 3.3, E6); none for tokens.
    #[must_use]
    pub fn permission(self) -> Option<&'static str> {
        match self {
            Family::Alerts => Some("Alert.Read.All"),
            Family::Files => Some("File.Read.All"),
            Family::Machines | Family::MachineActions => Some("Machine.Read.All"),
            Family::Actions => Some("Machine.Isolate"),
            Family::Indicators => Some("Ti.ReadWrite.All"),
            Family::Hunting => Some("ThreatHunting.Read.All"),
            Family::Token(_) => None,
        }
    }
}

impl Family {
    /// Whether its calls count against the quota of alerts (`defender.md` 3.1).
    #[must_use]
    pub const fn shares_alerts_quota(self) -> bool {
        matches!(self, Family::Alerts | Family::Files)
    }

    /// Its name in messages and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::Alerts => "alerts",
            Family::Files => "files",
            Family::Machines => "machines",
            Family::Actions => "actions",
            Family::MachineActions => "machineactions",
            Family::Indicators => "indicators",
            Family::Hunting => "hunting",
            Family::Token(Audience::Defender) => "token for defender",
            Family::Token(Audience::Graph) => "token for graph",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What kind of failure it was: what the worker turns into the rows of `relay.md` 2.4 and 3.3.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Kind {
    /// The token endpoint answered 400 or 401: the credentials are no good (A13).
    #[error("the credentials were refused: {}", description.as_deref().unwrap_or("no reason given"))]
    TokenRefused {
        /// Entra's `error_description`, if it gave one.
        description: Option<String>,
    },
    /// The token endpoint answered 404.
    #[error("the tenant is not known")]
    TokenTenantUnknown,
    /// The token endpoint answered 200 and gave no `access_token`.
    #[error("the answer holds no access token")]
    TokenMissing,
    /// The token endpoint answered anything else.
    #[error("no token was given: {}", description.as_deref().unwrap_or("no reason given"))]
    TokenOther {
        /// Entra's `error_description`, if it gave one.
        description: Option<String>,
    },
    /// 401, after one renewal of the token where that can help (A14).
    #[error("not authorized")]
    Unauthorized,
    /// 403, after one renewal of the token (E6).
    #[error("the application lacks a permission")]
    Forbidden,
    /// 429, or no permit from our own quota (E7; E8 when `hunting`).
    #[error("throttled")]
    Throttled {
        /// The hunting quota, not that of the REST calls.
        hunting: bool,
    },
    /// Any other 4xx (E3, E4, E5).
    #[error("the request was refused")]
    InvalidRequest,
    /// A value that is not valid for its kind; nothing was sent.
    #[error("the value is not valid")]
    InvalidValue,
    /// 500 (E9).
    #[error("internal error")]
    ServerError,
    /// Another 5xx, a redirect, a body that was cut off or is not the documented JSON (E10).
    #[error("no proper answer")]
    BadGateway,
    /// No connection, no such host, connection reset (E11); also a try that took longer than its own limit.
    #[error("no connection")]
    Connect,
    /// The server's certificate cannot be verified (E12).
    #[error("the certificate cannot be verified: {reason}")]
    Certificate {
        /// Why, in the words of the TLS library.
        reason: String,
    },
    /// Any other TLS failure (E13).
    #[error("the TLS connection failed")]
    Tls,
    /// The request's deadline passed before there was any answer or failure (E20).
    #[error("the deadline passed")]
    Deadline,
    /// The answer is larger than the service, or the bridge, allows.
    #[error("the answer is too large")]
    TooLarge,
}

/// A call to Entra, Defender or Graph failed.
///
/// Cheap to clone, because simultaneous identical lookups share one failure. Holds no secret, no token and no query.
#[derive(Debug, Clone, Error)]
#[error("{family}: {kind}{}{}", Status(*status), Detail(detail.as_deref()))]
pub struct DefenderError {
    pub(super) family: Family,
    pub(super) kind: Kind,
    pub(super) status: Option<u16>,
    pub(super) code: Option<String>,
    pub(super) detail: Option<String>,
    pub(super) failure: Failure,
    pub(super) retry_after: Option<Duration>,
    pub(super) out_of_time: bool,
    pub(super) maybe_done: bool,
    pub(super) permission: Option<&'static str>,
}

impl DefenderError {
    /// Which calls failed.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The application permission that a 403 of this call asks for (`relay.md` 3.3, E6); none for tokens.
    #[must_use]
    pub fn permission(&self) -> Option<&'static str> {
        self.permission.filter(|_| self.family == Family::Actions).or(self.family.permission())
    }

    /// What kind of failure it was. When the deadline passed during a retry this is the last failure *before* that
    /// (`DESIGN.md` 10.9); [`DefenderError::is_out_of_time`] tells.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The HTTP status, where there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether the call itself was answered with `status`. A call that got no token was never made: what the token
    /// endpoint answered says nothing about it.
    pub(super) fn is_answer(&self, status: u16) -> bool {
        self.status == Some(status) && !matches!(self.family, Family::Token(_))
    }

    /// `<detail>` of `relay.md` 3.4: what the answer's `error` member says, or `HTTP <status>`; at most
    /// [`DETAIL_LIMIT_CHARS`] characters. `None` when there was no answer.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Whether a call that changes something may have been carried out all the same: there was no answer, or none that
    /// says. Such a call must not be repeated before what it would have done was looked for (`defender.md` 3.4 and 7.3).
    /// False only where the service certainly did nothing: it refused the call, or never got it. Ask this before
    /// [`DefenderError::is_transient`], which speaks of another try and knows nothing of this one's effect.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        self.maybe_done && matches!(self.family, Family::Actions | Family::Indicators)
    }

    /// Whether a machine action was refused because another one is open (`defender.md` 5.0 and 7.2).
    #[must_use]
    pub fn is_already_in_progress(&self) -> bool {
        self.is_answer(400) && (self.code.as_deref() == Some(ACTIVE_REQUEST) || self.says("already in progress"))
    }

    /// Whether the service answered that what the call names does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is_answer(404)
    }

    /// The code in the answer's `error` member, such as `OsPlatformNotSupported` (`defender.md` 5.0); at most
    /// [`DETAIL_LIMIT_CHARS`] characters. For messages and logs; texts may change.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        Retryable::is_transient(self)
    }

    /// How long the service asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the deadline ended this call, with or without an earlier failure to report.
    #[must_use]
    pub fn is_out_of_time(&self) -> bool {
        self.out_of_time
    }

    /// Whether hunting refused the query because it cannot see one of its tables: reported where the permission or the
    /// product is missing (`defender.md` 4.3), for our queries name no table that does not exist.
    #[must_use]
    pub fn lacks_table(&self) -> bool {
        self.is_refused_query() && self.says("failed to resolve table")
    }

    /// Whether the tenant's engine refused the `partition` operator.
    pub(super) fn refuses_partition(&self) -> bool {
        self.is_refused_query() && self.says("partition") && !self.says("result size")
    }

    /// Whether the same query over fewer values may succeed: the result was too large, or the engine says that the
    /// query took too much (`defender.md` 4.3; the texts are the engine's, their statuses are not documented).
    pub(super) fn asks_for_less(&self) -> bool {
        const TEXTS: [&str; 3] = ["allowed result size", "exceeded the timeout", "excessive resource consumption"];
        self.kind == Kind::TooLarge || (self.is_refused_query() && TEXTS.iter().any(|text| self.says(text)))
    }

    /// Whether a fresh token may help (`defender.md` 1.3 and 5.0; `DESIGN.md` 10.9): a 401, unless it is about the
    /// licence or the service, or a 403, which a permission granted since the token was made would cure.
    pub(super) fn asks_for_new_token(&self) -> bool {
        match self.kind {
            Kind::Unauthorized => !self.says("reason of failure"),
            Kind::Forbidden => true,
            _ => false,
        }
    }

    /// Whether it is our own quota that has no room for the call before it would be too late; the service was not asked.
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        matches!(self.kind, Kind::Throttled { .. }) && self.status.is_none()
    }

    /// Whether hunting refused the query itself.
    pub(super) fn is_refused_query(&self) -> bool {
        self.family == Family::Hunting && self.status == Some(400)
    }

    fn says(&self, text: &str) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.to_ascii_lowercase().contains(text))
    }
}

impl Retryable for DefenderError {
    fn failure(&self) -> Failure {
        self.failure
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    fn out_of_time(self) -> Self {
        DefenderError { out_of_time: true, ..self }
    }
}

struct Status(Option<u16>);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, " (HTTP {status})"))
    }
}

struct Detail<'a>(Option<&'a str>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}
