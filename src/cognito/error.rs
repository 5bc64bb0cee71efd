//! What can go wrong between the bridge and Cognito, and the questions one may ask about it (`cognito.md` 3.3 and 5.8).
//! How answers become errors is in `classify`.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::retry::{Failure, Retryable};

/// The longest text of Cognito's that an error holds (`cognito.md` 3.3).
pub const DETAIL_LIMIT_CHARS: usize = 300;

/// A group of calls, for messages and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Single hosts, and lists of them.
    Hosts,
    /// Tags of a host.
    Tags,
    /// Notes of a host.
    Notes,
    /// Entities, which carry the urgency of hosted brains.
    Entities,
    /// Groups.
    Groups,
    /// Audit entries of on-premises brains.
    Audits,
    /// Event feeds of hosted brains.
    Events,
    /// Access tokens of API clients.
    Token,
}

impl Family {
    /// Its name in messages and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::Hosts => "cognito hosts",
            Family::Tags => "cognito tags",
            Family::Notes => "cognito notes",
            Family::Entities => "cognito entities",
            Family::Groups => "cognito groups",
            Family::Audits => "cognito audits",
            Family::Events => "cognito events",
            Family::Token => "cognito token",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What kind of failure it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Kind {
    /// 404 or 410 in Cognito's own words: no such host, or no such note.
    #[error("there is no such object")]
    Gone,
    /// 401, for OAuth2 after one renewal of the token; or no token was given for the client's id and secret.
    #[error("the credentials were refused")]
    Unauthorized,
    /// 403: the user or API client lacks a right.
    #[error("a right is missing")]
    Forbidden,
    /// The brain does not know the call at all, or this version of the API has none: wrong address or version.
    #[error("there is no such call at this address in this version of the API")]
    NotOffered,
    /// A redirect, which no call of the API answers with.
    #[error("the address redirects elsewhere")]
    Redirected,
    /// 429.
    #[error("throttled")]
    Throttled,
    /// Any other 4xx.
    #[error("the request was refused")]
    Refused,
    /// 5xx, and 408.
    #[error("the server failed")]
    ServerError,
    /// A success whose body is not what it should be.
    #[error("no proper answer")]
    BadAnswer,
    /// A value that cannot be sent as it is; nothing was sent.
    #[error("the value is not valid")]
    InvalidValue,
    /// No connection, or one that broke; also a try that took longer than its own limit.
    #[error("no connection")]
    Connect,
    /// The server's certificate cannot be verified.
    #[error("the certificate cannot be verified: {reason}")]
    Certificate {
        /// Why, in the words of the TLS library.
        reason: String,
    },
    /// Any other TLS failure.
    #[error("the TLS connection failed")]
    Tls,
    /// The session's deadline passed before there was any answer or failure.
    #[error("the deadline passed")]
    Deadline,
    /// The answer is larger than the bridge reads.
    #[error("the answer is too large")]
    TooLarge,
}

/// What to do about a failure (`cognito.md` 5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What was asked for no longer exists: nothing is left to do.
    Gone,
    /// Somebody has to mend a setting or a right: try slowly, and tell the operator.
    Configuration,
    /// It passes by itself: try again.
    Transient,
    /// The same call would fail again.
    Permanent,
}

/// A call to Cognito failed. Holds no token, no secret and no body but Cognito's own words about the failure.
#[derive(Debug, Clone, Error)]
#[error("{family}: {kind}{}{}", Status(*status), Detail(detail.as_deref()))]
pub struct CognitoError {
    pub(super) family: Family,
    pub(super) kind: Kind,
    pub(super) status: Option<u16>,
    pub(super) detail: Option<String>,
    pub(super) failure: Failure,
    pub(super) retry_after: Option<Duration>,
    pub(super) out_of_time: bool,
    pub(super) maybe_done: bool,
}

impl CognitoError {
    /// Which calls failed.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// What kind of failure it was; when the deadline passed during a retry, the one before that.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.kind {
            Kind::Gone => Class::Gone,
            Kind::Unauthorized | Kind::Forbidden | Kind::NotOffered | Kind::Redirected | Kind::Certificate { .. } => {
                Class::Configuration
            }
            Kind::Throttled | Kind::ServerError | Kind::BadAnswer | Kind::Connect | Kind::Tls | Kind::Deadline => {
                Class::Transient
            }
            Kind::Refused | Kind::InvalidValue | Kind::TooLarge => Class::Permanent,
        }
    }

    /// The HTTP status, where there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// What Cognito says about it, at most [`DETAIL_LIMIT_CHARS`] characters.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// How long Cognito asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the same call may succeed later without anybody mending anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.class() == Class::Transient
    }

    /// Whether a write may have been carried out although it failed: there was no answer, or none that says. Whoever goes
    /// on has to read again first. False for reads, and where Cognito certainly did nothing: it refused the call, or never
    /// got it.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        self.maybe_done
    }

    /// Whether the deadline ended this call, with or without an earlier failure to report.
    #[must_use]
    pub fn is_out_of_time(&self) -> bool {
        self.out_of_time
    }
}

impl Retryable for CognitoError {
    fn failure(&self) -> Failure {
        self.failure
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    fn is_transient(&self) -> bool {
        CognitoError::is_transient(self)
    }

    fn out_of_time(self) -> Self {
        CognitoError { out_of_time: true, ..self }
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
