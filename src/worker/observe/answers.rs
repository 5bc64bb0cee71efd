//! Whole answers for one observable, kept in memory for `BRIDGE_ANSWER_TTL`.
//!
//! The key holds tenant, client and a hash of the secret, so that nobody reads an answer without knowing the secret it
//! was made with (`DESIGN.md` 5). Only complete answers are kept.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

use crate::credentials::{Credentials, fingerprint};
use crate::relay::ctim::RenderedSighting;
use crate::relay::{Kind, Observable};

/// Memory for kept answers in bytes, counted by their text: many tenants' busy minutes, and still a small process.
const CAPACITY_BYTES: u64 = 16 * 1024 * 1024;

/// What an entry costs beside its text: key, list and bookkeeping.
const ENTRY_BYTES: usize = 400;

/// Whose answers, and with which limit they were cut.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    tenant_id: String,
    client_id: String,
    secret: String,
    limit: usize,
}

impl Owner {
    pub(super) fn new(credentials: &Credentials, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            tenant_id: credentials.tenant_id.clone(),
            client_id: credentials.client_id.clone(),
            secret: fingerprint(&credentials.client_secret),
            limit,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    owner: Arc<Owner>,
    kind: Kind,
    value: String,
}

/// All that is known of one observable.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    /// Alerts, then events.
    pub(super) sightings: Vec<RenderedSighting>,
    /// More alerts exist than the limit allows (E22).
    pub(super) more_alerts: bool,
}

/// The cache of a worker.
#[derive(Clone)]
pub struct Answers {
    cache: Option<Cache<Key, Arc<Answer>>>,
}

impl Answers {
    /// Keeps answers for `ttl`; zero keeps none.
    pub(in crate::worker) fn new(ttl: Duration) -> Self {
        let cache = Cache::builder()
            .max_capacity(CAPACITY_BYTES)
            .weigher(|_: &Key, answer: &Arc<Answer>| {
                let text: usize = answer.sightings.iter().map(RenderedSighting::len_bytes).sum();
                u32::try_from(text + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .time_to_live(ttl);
        Self { cache: (!ttl.is_zero()).then(|| cache.build()) }
    }

    pub(super) async fn get(&self, owner: &Arc<Owner>, observable: &Observable) -> Option<Arc<Answer>> {
        self.cache.as_ref()?.get(&key(owner, observable)).await
    }

    pub(super) async fn keep(&self, owner: &Arc<Owner>, observable: &Observable, answer: Arc<Answer>) {
        if let Some(cache) = &self.cache {
            cache.insert(key(owner, observable), answer).await;
        }
    }
}

fn key(owner: &Arc<Owner>, observable: &Observable) -> Key {
    Key { owner: Arc::clone(owner), kind: observable.kind, value: observable.value.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(secret: &str) -> Credentials {
        Credentials { tenant_id: "t".into(), client_id: "c".into(), client_secret: secret.to_owned().into() }
    }

    #[tokio::test]
    async fn an_answer_is_for_those_who_know_the_secret_and_ask_with_the_same_limit() {
        let answers = Answers::new(Duration::from_secs(60));
        let observable = Observable::parse("ip", "203.0.113.1").unwrap();
        let owner = Owner::new(&credentials("right"), 100);
        answers.keep(&owner, &observable, Arc::default()).await;
        assert!(answers.get(&Owner::new(&credentials("right"), 100), &observable).await.is_some());
        assert!(answers.get(&Owner::new(&credentials("wrong"), 100), &observable).await.is_none());
        assert!(answers.get(&Owner::new(&credentials("right"), 99), &observable).await.is_none());
        let other = Observable::parse("ip", "203.0.113.2").unwrap();
        assert!(answers.get(&owner, &other).await.is_none());
    }

    #[tokio::test]
    async fn a_lifetime_of_zero_keeps_nothing() {
        let answers = Answers::new(Duration::ZERO);
        let observable = Observable::parse("ip", "203.0.113.1").unwrap();
        let owner = Owner::new(&credentials("s"), 100);
        answers.keep(&owner, &observable, Arc::default()).await;
        assert!(answers.get(&owner, &observable).await.is_none());
    }
}
