//! The key sets of the platform (`relay.md` 2.3): read from the configured hosts, and kept.
//!
//! This stands apart from the ingress, which calls nobody by itself, and from `relay`, which is pure. Whom it calls is not
//! up to the caller: a host that is not in the configuration is never asked anything, whatever a token says, and the
//! address is built from the configuration, not from the token.
//!
//! A set is kept for an hour. An id that it does not hold makes it be read again, at most once a minute, so that neither a
//! flood of invented ids nor a platform that is down costs more than a request a minute and host; while that goes on,
//! tokens whose key is known are not held up. Those who wait for the same host share one request, which nobody who goes
//! away can break off.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use url::Url;

use crate::outbound::{Outbound, OutboundError, Request};
use crate::relay::key_set::{KeyName, KeySet, Rules};
use crate::relay::token::{Claims, TokenError, Unverified};

/// How long a set is believed (`relay.md` 2.3): as long as a key may be used after the platform took it away.
pub const LIFE: Duration = Duration::from_secs(3600);

/// How soon a set is read again for a key that it does not hold (`relay.md` 2.3).
pub const READ_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How soon a host is asked again that gave no set. Callers read a refusal until then, so it is short.
pub const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The longest one reading may take: callers wait for it.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// A set has a few KiB.
const BODY_LIMIT_BYTES: usize = 256 * 1024;

/// Whose signatures are taken, for what, and how long keys are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The hosts that may have key sets: base URLs without a path.
    pub hosts: Vec<Url>,
    /// What tokens have to say.
    pub rules: Rules,
    /// How long a set is believed: [`LIFE`].
    pub life: Duration,
    /// How soon a set is read again for an unknown key: [`READ_AGAIN_AFTER`].
    pub read_again_after: Duration,
    /// How soon a host is asked again that gave no set: [`TRY_AGAIN_AFTER`].
    pub try_again_after: Duration,
}

impl Settings {
    /// Settings with the contract's times.
    #[must_use]
    pub fn new(hosts: Vec<Url>, rules: Rules) -> Self {
        Self { hosts, rules, life: LIFE, read_again_after: READ_AGAIN_AFTER, try_again_after: TRY_AGAIN_AFTER }
    }
}

/// The key sets of one process.
pub struct KeySets {
    settings: Settings,
    /// By the host as tokens name it, in lower case.
    sources: HashMap<String, Arc<Source>>,
}

impl fmt::Debug for KeySets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySets").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why a host gave no key set.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// There was no whole answer.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// The answer was no success.
    #[error("the host answered {0}")]
    Status(StatusCode),
    /// The answer is not `{"keys": [...]}`.
    #[error("the answer is not a key set")]
    NoKeySet,
}

/// One host.
struct Source {
    outbound: Outbound,
    url: Url,
    read: RwLock<Option<Read>>,
    /// When the host was last asked. Held while it is.
    asked: Mutex<Option<Instant>>,
}

/// A set, and when it was read.
#[derive(Clone)]
struct Read {
    set: Arc<KeySet>,
    at: Instant,
}

impl KeySets {
    /// Sets that are read when they are first needed.
    #[must_use]
    pub fn new(settings: Settings, outbound: &Outbound) -> Self {
        let source = |url: &Url| {
            let source = Source {
                outbound: outbound.clone(),
                url: url.clone(),
                read: RwLock::default(),
                asked: Mutex::default(),
            };
            (host_of(url), Arc::new(source))
        };
        Self { sources: settings.hosts.iter().map(source).collect(), settings }
    }

    /// Verifies a key-set token now. Waits no longer than `limit` for its host.
    ///
    /// # Errors
    /// The row of `relay.md` 2.3 that applies, J1 to J6 and J8, or [`TokenError::UnlistedTenant`].
    pub async fn verify(&self, token: &Unverified<'_>, limit: Duration) -> Result<Claims, TokenError> {
        let KeyName { host, kid } = token.key_name()?;
        let source = self.sources.get(&host.to_ascii_lowercase()).ok_or(TokenError::WrongKeySet)?;
        let set = match source.kept(&self.settings, kid) {
            Some(set) => set,
            None => {
                let (source, settings) = (Arc::clone(source), self.settings.clone());
                let kid = kid.map(str::to_owned);
                // A task of its own: a caller who hangs up does not end the request that others wait for.
                let reading = tokio::spawn(async move { source.fetched(&settings, kid.as_deref()).await });
                let read = timeout(limit, reading).await;
                read.ok().and_then(Result::ok).flatten().ok_or(TokenError::WrongKeySet)?
            }
        };
        set.verify(token, &self.settings.rules, Timestamp::now())
    }
}

impl Source {
    /// The set, if it is fresh and holds the key. Without an id there is no key to look for.
    fn kept(&self, settings: &Settings, kid: Option<&str>) -> Option<Arc<KeySet>> {
        let read = self.last().filter(|read| read.at.elapsed() < settings.life)?;
        kid.is_none_or(|kid| read.set.holds(kid)).then_some(read.set)
    }

    fn last(&self) -> Option<Read> {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The set as it is now, read again if that is due; `None` if there is none.
    async fn fetched(&self, settings: &Settings, kid: Option<&str>) -> Option<Arc<KeySet>> {
        let mut asked = self.asked.lock().await;
        // Whoever was here before may have read it.
        if let Some(set) = self.kept(settings, kid) {
            return Some(set);
        }
        let fresh = self.last().filter(|read| read.at.elapsed() < settings.life).map(|read| read.set);
        let pause = if fresh.is_some() { settings.read_again_after } else { settings.try_again_after };
        if asked.is_some_and(|asked| asked.elapsed() < pause) {
            return fresh;
        }
        let read = read(&self.outbound, &self.url).await;
        *asked = Some(Instant::now());
        match read {
            Ok(set) => {
                let set = Arc::new(set);
                let read = Read { set: Arc::clone(&set), at: Instant::now() };
                *self.read.write().unwrap_or_else(PoisonError::into_inner) = Some(read);
                Some(set)
            }
            Err(error) => {
                tracing::warn!(error = %error, server.address = host_of(&self.url), "a key set could not be read");
                // The keys that are known are good for the rest of their hour.
                fresh
            }
        }
    }
}

/// Reads the key set of a host: `GET /.well-known/jwks`.
///
/// # Errors
/// When the host gives none.
pub async fn read(outbound: &Outbound, host: &Url) -> Result<KeySet, KeySetError> {
    let mut url = host.clone();
    url.set_path("/.well-known/jwks");
    let request = Request {
        method: Method::GET,
        url,
        template: "/.well-known/jwks",
        headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]),
        body: bytes::Bytes::new(),
        limit: None,
        body_limit_bytes: BODY_LIMIT_BYTES,
        resend_count: 0,
    };
    let answer = outbound.send(request, Instant::now() + READ_LIMIT).await?;
    if answer.status != StatusCode::OK {
        return Err(KeySetError::Status(answer.status));
    }
    KeySet::parse(&answer.body).ok_or(KeySetError::NoKeySet)
}

/// The host of a URL as tokens name it, in lower case, with its port unless that is the usual one.
#[must_use]
pub fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    host.to_ascii_lowercase()
}
