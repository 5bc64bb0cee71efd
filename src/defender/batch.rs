//! Questions of different requests in one hunting query (`DESIGN.md` 5).
//!
//! What requests of one account want to know at the same moment waits in a [`Line`], each item once. A query is formed
//! only when its permit is there: whoever comes while it is awaited goes along, and where permits come at once nobody
//! is delayed. One query is formed at a time, so that no permit is taken for nothing, and at most [`FLIGHTS`] are under
//! way; an item that is under way already is not asked about again.
//!
//! Nobody answers for anybody else: every caller has its own deadline and its own number of rows, one that gives up
//! leaves the others what they asked for, and a failure that only means that the time of others was up is not passed
//! on. That is why queries run in tasks of their own; a caller that has gone is known by its closed channel.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use opentelemetry::trace::SpanContext;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span};

use super::call::{GRACE, HuntingPermit};
use super::{Account, DefenderError, Family, Session, Shared};
use crate::telemetry::propagation;

/// Queries of one sort that an account has under way at a time. Each may hold 200 questions, and a tenant has 45 a
/// minute: more side by side would only make them smaller.
const FLIGHTS: usize = 3;

/// What became of each item.
pub(super) type Answers<I, A> = Vec<(I, Result<A, DefenderError>)>;

/// A sort of hunting query that answers many items at once.
pub(super) trait Question: Send + Sync + Sized + 'static {
    /// What is asked about, in normal form.
    type Item: Ord + Hash + Clone + Send + Sync;
    /// What is known of one item. Cheap to clone, for several may want it.
    type Answer: Clone + Send + Sync;

    /// Where questions of this sort wait.
    fn batches(shared: &Shared) -> &Batches<Self>;

    /// What the item adds to a query's text, in bytes.
    fn bytes(item: &Self::Item) -> usize;

    /// Whether so many items, of so many bytes together, with up to `top` rows each, are one query.
    fn fits(items: usize, bytes: usize, top: usize) -> bool;

    /// Asks about all `items`, which fit one query, and answers each.
    fn ask(
        session: Session,
        items: Vec<Self::Item>,
        top: usize,
        permit: HuntingPermit,
    ) -> impl Future<Output = Answers<Self::Item, Self::Answer>> + Send;
}

type Answered<Q> = (usize, Result<<Q as Question>::Answer, DefenderError>);

/// Somebody who wants to know about one item.
struct Caller<Q: Question> {
    /// Its number among what the caller asked.
    at: usize,
    top: usize,
    until: Instant,
    answers: mpsc::UnboundedSender<Answered<Q>>,
    /// Where it stands in its trace.
    place: SpanContext,
}

impl<Q: Question> Caller<Q> {
    fn waits(&self, now: Instant) -> bool {
        self.until > now && !self.answers.is_closed()
    }
}

/// What one account wants to know.
struct Line<Q: Question> {
    /// In the order in which they came.
    waiting: BTreeMap<u64, (Q::Item, Vec<Caller<Q>>)>,
    places: HashMap<Q::Item, u64>,
    next_place: u64,
    /// Sent, with how many rows, and not answered yet.
    flying: HashMap<Q::Item, (usize, Vec<Caller<Q>>)>,
    flights: usize,
    /// Whether a permit is awaited for what waits.
    forming: bool,
}

impl<Q: Question> Default for Line<Q> {
    fn default() -> Self {
        Line {
            waiting: BTreeMap::new(),
            places: HashMap::new(),
            next_place: 0,
            flying: HashMap::new(),
            flights: 0,
            forming: false,
        }
    }
}

impl<Q: Question> Line<Q> {
    fn add(&mut self, item: Q::Item, caller: Caller<Q>) {
        if let Some((_, callers)) = self.flying.get_mut(&item).filter(|(top, _)| *top >= caller.top) {
            callers.push(caller);
            return;
        }
        let place = *self.places.entry(item.clone()).or_insert_with(|| {
            self.next_place += 1;
            self.next_place
        });
        self.waiting.entry(place).or_insert_with(|| (item, Vec::new())).1.push(caller);
    }

    /// Whether a query is to be formed now, and then by whom it is wanted first: the caller of this is to form it. What is
    /// under way with fewer rows waits until it is answered.
    fn forms(&mut self) -> Option<SpanContext> {
        if self.forming || self.flights == FLIGHTS {
            return None;
        }
        let (_, callers) = self.waiting.values().find(|(item, _)| !self.flying.contains_key(item))?;
        let first = callers.first()?.place.clone();
        self.forming = true;
        Some(first)
    }

    /// When the last of those gives up who wait for a query to be formed. Forgets those who did.
    fn latest(&mut self, now: Instant) -> Option<Instant> {
        self.waiting.retain(|_, (item, callers)| {
            callers.retain(|caller| caller.waits(now));
            if callers.is_empty() {
                self.places.remove(item);
            }
            !callers.is_empty()
        });
        let waiting = self.waiting.values().filter(|(item, _)| !self.flying.contains_key(item));
        waiting.flat_map(|(_, callers)| callers).map(|caller| caller.until).max()
    }

    /// Takes what fits one query, oldest first.
    fn take(&mut self, now: Instant) -> Option<Batch<Q>> {
        self.latest(now)?;
        let mut batch = Batch { items: Vec::new(), top: 0, until: now, parts: Vec::new() };
        let mut bytes = 0;
        let mut taken = Vec::new();
        for (place, (item, callers)) in &self.waiting {
            let wanted = callers.iter().map(|caller| caller.top).max().unwrap_or(0);
            let top = batch.top.max(wanted);
            let added = Q::bytes(item);
            let fits = batch.items.is_empty() || Q::fits(batch.items.len() + 1, bytes + added, top);
            if !fits || self.flying.contains_key(item) {
                continue;
            }
            bytes += added;
            batch.top = top;
            batch.items.push(item.clone());
            taken.push(*place);
        }
        for place in taken {
            let Some((item, callers)) = self.waiting.remove(&place) else { continue };
            self.places.remove(&item);
            batch.until = callers.iter().map(|caller| caller.until).fold(batch.until, Instant::max);
            batch.parts.extend(callers.iter().map(|caller| caller.place.clone()));
            self.flying.insert(item, (batch.top, callers));
        }
        (!batch.items.is_empty()).then_some(batch)
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty() && !self.forming && self.flights == 0
    }
}

/// What goes into one query.
struct Batch<Q: Question> {
    items: Vec<Q::Item>,
    /// The most rows that anybody wants of an item.
    top: usize,
    /// When the last of its callers gives up.
    until: Instant,
    /// Who has a part in it.
    parts: Vec<SpanContext>,
}

/// The lines of all accounts, of one sort of query.
pub(super) struct Batches<Q: Question>(Mutex<HashMap<Arc<Account>, Line<Q>>>);

impl<Q: Question> Default for Batches<Q> {
    fn default() -> Self {
        Batches(Mutex::default())
    }
}

impl<Q: Question> Batches<Q> {
    fn lines(&self) -> MutexGuard<'_, HashMap<Arc<Account>, Line<Q>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes an account's line; one that is idle afterwards is forgotten.
    fn with<T>(&self, account: &Arc<Account>, change: impl FnOnce(&mut Line<Q>) -> T) -> T {
        let mut lines = self.lines();
        let line = lines.entry(Arc::clone(account)).or_default();
        let result = change(line);
        if line.is_idle() {
            lines.remove(account);
        }
        result
    }
}

impl Session {
    /// What is known of each of the items, in their order; `top` says how many rows are wanted of an item at least.
    /// Shares queries with whoever of the same account asks at the same moment.
    pub(super) async fn ask_together<Q: Question>(
        &self,
        items: Vec<(Q::Item, usize)>,
    ) -> Vec<Result<Q::Answer, DefenderError>> {
        let late = || Err(DefenderError::deadline(Family::Hunting));
        let mut found: Vec<Option<_>> = items.iter().map(|_| None).collect();
        if items.is_empty() {
            return Vec::new();
        }
        let inner = &self.inner;
        // It is one call of this request, whoever else has a part in it.
        let Ok(_slot) = timeout_at(inner.deadline, inner.slots.acquire()).await else {
            return found.into_iter().map(|_| late()).collect();
        };
        let (answers, mut answered) = mpsc::unbounded_channel();
        let forms = Q::batches(&inner.defender.shared).with(&inner.account, |line| {
            for (at, (item, top)) in items.into_iter().enumerate() {
                let (answers, place) = (answers.clone(), propagation::here());
                line.add(item, Caller { at, top, until: inner.deadline, answers, place });
            }
            line.forms()
        });
        drop(answers);
        Flight::<Q>::begin(self, forms);
        let mut missing = found.len();
        while missing > 0 {
            let Ok(Some((at, answer))) = timeout_at(inner.deadline + GRACE, answered.recv()).await else { break };
            missing -= 1;
            found[at] = Some(answer);
        }
        // A query that broke has dropped its callers: they are as late as those whose time is up.
        found.into_iter().map(|answer| answer.unwrap_or_else(late)).collect()
    }
}

/// The task that forms a query and sees it through. When it ends in the middle, by a defect or because the runtime stops,
/// those who wait for it learn it at once and the line goes on without it.
struct Flight<Q: Question> {
    session: Session,
    /// What was sent and is not answered yet; empty while it forms.
    items: Vec<Q::Item>,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Forming,
    Sent,
    Over,
}

impl<Q: Question> Flight<Q> {
    /// Begins a task of its own when `forms` says for whom.
    fn begin(session: &Session, forms: Option<SpanContext>) {
        if let Some(first) = forms {
            let span = propagation::batch_span(first.clone());
            let flight = Flight::<Q> { session: session.clone(), items: Vec::new(), state: State::Forming };
            // In a box, for it begins others of its kind.
            let run: BoxFuture<'static, ()> = Box::pin(flight.run(first).instrument(span));
            tokio::spawn(run);
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Line<Q>) -> T) -> T {
        Q::batches(&self.session.inner.defender.shared).with(&self.session.inner.account, change)
    }

    async fn run(mut self, first: SpanContext) {
        let next = match self.form().await {
            None => self.with(|line| {
                line.forming = false;
                line.forms()
            }),
            Some((batch, permit)) => {
                self.state = State::Sent;
                self.items.clone_from(&batch.items);
                let meanwhile = self.with(|line| {
                    line.forming = false;
                    line.flights += 1;
                    line.forms()
                });
                Self::begin(&self.session, meanwhile);
                propagation::shared_by(&Span::current(), &first, batch.parts);
                let session = self.session.until(batch.until);
                let answers = Q::ask(session, batch.items, batch.top, permit).await;
                self.with(|line| {
                    for (item, answer) in answers {
                        deliver(line, item, &answer, batch.until);
                    }
                    line.flights -= 1;
                    line.forms()
                })
            }
        };
        self.state = State::Over;
        Self::begin(&self.session, next);
    }

    /// Waits for a permit and takes what waits by then; `None` when there is none, or nobody waits any more.
    async fn form(&self) -> Option<(Batch<Q>, HuntingPermit)> {
        let until = self.with(|line| line.latest(Instant::now()))?;
        match self.session.until(until).hunting_permit().await {
            Ok(permit) => self.with(|line| line.take(Instant::now())).map(|batch| (batch, permit)),
            Err(error) => {
                self.with(|line| refuse(line, &error, until));
                None
            }
        }
    }
}

impl<Q: Question> Drop for Flight<Q> {
    fn drop(&mut self) {
        if self.state == State::Over {
            return;
        }
        let (sent, items) = (self.state == State::Sent, std::mem::take(&mut self.items));
        self.with(|line| {
            for item in &items {
                line.flying.remove(item);
            }
            if sent {
                line.flights -= 1;
            } else {
                line.forming = false;
                line.waiting.clear();
                line.places.clear();
            }
        });
    }
}

/// Gives everybody who wanted the item its answer. Those who have more time than the query had ask again when time was
/// what it lacked.
fn deliver<Q: Question>(line: &mut Line<Q>, item: Q::Item, answer: &Result<Q::Answer, DefenderError>, until: Instant) {
    let Some((_, callers)) = line.flying.remove(&item) else { return };
    let ended_early = matches!(answer, Err(error) if error.is_out_of_time() && error.retry_after().is_none());
    for caller in callers {
        if ended_early && caller.until > until {
            line.add(item.clone(), caller);
        } else {
            // One that has gone does not mind.
            let _ = caller.answers.send((caller.at, answer.clone()));
        }
    }
}

/// There is no permit before `until`, or no token at all.
fn refuse<Q: Question>(line: &mut Line<Q>, error: &DefenderError, until: Instant) {
    line.waiting.retain(|_, (item, callers)| {
        callers.retain(|caller| {
            let refused = !error.is_out_of_time() || caller.until <= until;
            if refused {
                let _ = caller.answers.send((caller.at, Err(error.clone())));
            }
            !refused
        });
        if callers.is_empty() {
            line.places.remove(item);
        }
        !callers.is_empty()
    });
}
