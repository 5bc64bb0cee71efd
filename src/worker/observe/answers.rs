//! Whole answers for one observable, kept in memory for `BRIDGE_ANSWER_TTL`, and made once for all who ask at the same
//! time.
//!
//! The key holds tenant, client and a hash of the secret, so that nobody reads an answer without knowing the secret it
//! was made with (`DESIGN.md` 5). Only complete answers are kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

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
    /// How the alerts were asked for.
    pub(super) depth: Depth,
}

/// How the alerts of an observable were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Depth {
    /// By the alert routes.
    #[default]
    All,
    /// Hunting, which sees 30 days, knows of none.
    Recent,
    /// They are shown as hunting knows them.
    Hunted,
}

/// The answers of a worker. Clones share them.
#[derive(Clone)]
pub struct Answers {
    cache: Option<Cache<Key, Arc<Answer>>>,
    making: Making,
}

/// What is being made, where it comes out, and the span of the job that makes it.
type Making = Arc<Mutex<HashMap<Key, (watch::Receiver<Option<Arc<Answer>>>, Span)>>>;

/// How an observable's answer comes about.
pub(super) enum Begun {
    /// It was there.
    Known(Arc<Answer>),
    /// Another request is making it.
    Awaited(Awaited),
    /// The caller is to make it.
    Ours(Lead),
}

/// The wait for an answer that another request makes.
pub(super) struct Awaited {
    made: watch::Receiver<Option<Arc<Answer>>>,
    maker: Option<Span>,
}

impl Awaited {
    /// The span of the job that makes it. To be let go at once: it does not end before.
    pub(super) fn take_maker(&mut self) -> Option<Span> {
        self.maker.take()
    }

    /// The answer, if it comes by `until` and is complete.
    pub(super) async fn answer(mut self, until: Instant) -> Option<Arc<Answer>> {
        timeout_at(until, self.made.wait_for(Option::is_some)).await.ok()?.ok()?.clone()
    }
}

/// The task of making an answer; given up when dropped, which those who wait for it learn at once.
pub(super) struct Lead {
    key: Key,
    made: watch::Sender<Option<Arc<Answer>>>,
    making: Making,
}

impl Drop for Lead {
    fn drop(&mut self) {
        lock(&self.making).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        Self { cache: (!ttl.is_zero()).then(|| cache.build()), making: Making::default() }
    }

    /// The answer if it is kept or being made; else the task of making it.
    pub(super) async fn begin(&self, owner: &Arc<Owner>, observable: &Observable) -> Begun {
        let key = Key { owner: Arc::clone(owner), kind: observable.kind, value: observable.value.clone() };
        if let Some(answer) = self.kept(&key).await {
            return Begun::Known(answer);
        }
        let lead = {
            let mut making = lock(&self.making);
            if let Some((made, maker)) = making.get(&key) {
                return Begun::Awaited(Awaited { made: made.clone(), maker: Some(maker.clone()) });
            }
            let (made, receiver) = watch::channel(None);
            making.insert(key.clone(), (receiver, Span::current()));
            Lead { key, made, making: Arc::clone(&self.making) }
        };
        // Whoever made it before may have finished between the two looks.
        match self.kept(&lead.key).await {
            Some(answer) => Begun::Known(answer),
            None => Begun::Ours(lead),
        }
    }

    async fn kept(&self, key: &Key) -> Option<Arc<Answer>> {
        self.cache.as_ref()?.get(key).await
    }

    /// Keeps a complete answer, and gives it to those who wait for it.
    pub(super) async fn finish(&self, lead: Lead, answer: Arc<Answer>) {
        if let Some(cache) = &self.cache {
            cache.insert(lead.key.clone(), Arc::clone(&answer)).await;
        }
        // Nobody may be waiting.
        let _ = lead.made.send(Some(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(secret: &str) -> Credentials {
        Credentials { tenant_id: "t".into(), client_id: "c".into(), client_secret: secret.to_owned().into() }
    }

    fn observable(ip: &str) -> Observable {
        Observable::parse("ip", ip).unwrap()
    }

    async fn lead(answers: &Answers, owner: &Arc<Owner>, ip: &str) -> Lead {
        match answers.begin(owner, &observable(ip)).await {
            Begun::Ours(lead) => lead,
            Begun::Known(_) | Begun::Awaited(_) => panic!("{ip} is known or being made"),
        }
    }

    #[tokio::test]
    async fn an_answer_is_for_those_who_know_the_secret_and_ask_with_the_same_limit() {
        let answers = Answers::new(Duration::from_secs(60));
        let owner = Owner::new(&credentials("right"), 100);
        let mut ours = Some(lead(&answers, &owner, "203.0.113.1").await);
        // While it is made as well as afterwards.
        for kept in [false, true] {
            for other in [Owner::new(&credentials("wrong"), 100), Owner::new(&credentials("right"), 99)] {
                drop(lead(&answers, &other, "203.0.113.1").await);
            }
            drop(lead(&answers, &owner, "203.0.113.2").await);
            let begun = answers.begin(&Owner::new(&credentials("right"), 100), &observable("203.0.113.1")).await;
            assert_eq!(matches!(begun, Begun::Known(_)), kept);
            assert_eq!(matches!(begun, Begun::Awaited(_)), !kept);
            if let Some(ours) = ours.take() {
                answers.finish(ours, Arc::default()).await;
            }
        }
    }

    #[tokio::test]
    async fn a_lifetime_of_zero_keeps_nothing() {
        let answers = Answers::new(Duration::ZERO);
        let owner = Owner::new(&credentials("s"), 100);
        for _ in 0..2 {
            let lead = lead(&answers, &owner, "203.0.113.1").await;
            answers.finish(lead, Arc::default()).await;
        }
    }

    #[tokio::test]
    async fn who_waits_gets_the_answer_or_learns_that_there_will_be_none() {
        let answers = Answers::new(Duration::ZERO);
        let owner = Owner::new(&credentials("s"), 100);
        let until = Instant::now() + Duration::from_secs(60);
        for finished in [true, false] {
            let ours = lead(&answers, &owner, "203.0.113.1").await;
            let Begun::Awaited(awaited) = answers.begin(&owner, &observable("203.0.113.1")).await else {
                panic!("it is being made");
            };
            let make = async {
                if finished {
                    answers.finish(ours, Arc::default()).await;
                } else {
                    drop(ours);
                }
            };
            let (answer, ()) = tokio::join!(awaited.answer(until), make);
            assert_eq!(answer.is_some(), finished);
        }
    }
}
