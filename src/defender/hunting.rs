//! Batched hunting: many values in few queries, rows back to their values.
//!
//! The outcome is as if each value had been asked for alone: a batch that is too much for the service is halved until
//! the values that are too much stand alone, and only those fail. Who shares a query is decided in `batch`, how queries
//! read is in `query`, how rows do in `rows`.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use tracing::info;

use super::batch::{Answers, Batches, Question};
use super::call::{HuntingPermit, Spec, address};
use super::model::{AlertDetails, DeviceContext, Event, FileEvent, RecentAlert};
use super::query::{self, Newest, Value};
use super::rows::{Answer, DeviceRow, EventRow, EvidenceRow, Observed, Row, read_details, sort_newest_first};
use super::{DefenderError, Family, Session, Shared, Sought};

/// Values in one query (`defender.md` 6.2).
const VALUES_PER_QUERY: usize = 200;

/// Bytes of one query's text (`defender.md` 6.2).
const QUERY_LIMIT_BYTES: usize = 64 * 1024;

/// What a query's text has beside its values; the longest has some 3 KiB.
const QUERY_FRAME_BYTES: usize = 4 * 1024;

/// Rows that a query may return. The service's limits are 100 000 rows and 50 MB, which at some 1.2 KB a row
/// (`defender.md` 6.3) is 41 000 rows; the rest is room for long paths and addresses. 200 values with 100 rows each fit.
const ROWS_PER_QUERY: usize = 25_000;

/// Devices in one query: 43 KB of text. They return one row each, so neither rows nor bytes are a concern.
const DEVICES_PER_QUERY: usize = 1000;

/// Alerts whose evidence one query returns: 20 rows of each fit its 10 000.
const ALERTS_PER_QUERY: usize = 500;

/// How often one batch may be halved: enough to single out two values among 200, and at most 40 more calls, which is
/// less than a tenant's quota for a minute.
const HALVINGS_LIMIT: u32 = 20;

/// After as many answers of 504 a batch is held to be too expensive (`defender.md` 3.3).
const PATIENCE: u32 = 2;

/// Whether values are one query.
fn values_fit(values: usize, bytes: usize, top: usize) -> bool {
    values <= VALUES_PER_QUERY
        && values.saturating_mul(top) <= ROWS_PER_QUERY
        && QUERY_FRAME_BYTES + bytes <= QUERY_LIMIT_BYTES
}

/// Events of observables.
pub(super) struct Events;

impl Question for Events {
    type Item = Value;
    type Answer = Arc<Vec<Event>>;

    fn batches(shared: &Shared) -> &Batches<Self> {
        &shared.events
    }

    fn bytes(item: &Value) -> usize {
        item.query_bytes()
    }

    fn fits(items: usize, bytes: usize, top: usize) -> bool {
        values_fit(items, bytes, top)
    }

    async fn ask(
        session: Session,
        items: Vec<Value>,
        top: usize,
        permit: HuntingPermit,
    ) -> Answers<Value, Arc<Vec<Event>>> {
        let answers = divided(items, permit, by_table, |batch, patience, permit| {
            let session = &session;
            async move {
                let rows = session.newest::<EventRow>(&batch, top, query::events, patience, permit).await;
                (batch, rows)
            }
        });
        let event = |value: &Value, row: EventRow| row.event(value.is_of_file());
        fn time(event: &Event) -> &str {
            match event {
                Event::File(event) => &event.timestamp,
                Event::Network(event) => &event.timestamp,
            }
        }
        by_value(answers.await, top, event, time)
    }
}

/// The newest alerts of observables, as hunting knows them.
pub(super) struct RecentAlerts;

impl Question for RecentAlerts {
    type Item = Value;
    type Answer = Arc<Vec<RecentAlert>>;

    fn batches(shared: &Shared) -> &Batches<Self> {
        &shared.recent_alerts
    }

    fn bytes(item: &Value) -> usize {
        item.query_bytes()
    }

    fn fits(items: usize, bytes: usize, top: usize) -> bool {
        values_fit(items, bytes, top)
    }

    async fn ask(
        session: Session,
        items: Vec<Value>,
        top: usize,
        permit: HuntingPermit,
    ) -> Answers<Value, Arc<Vec<RecentAlert>>> {
        let answers = divided(items, permit, in_half, |batch, patience, permit| {
            let session = &session;
            async move {
                let rows = session.newest::<RecentAlert>(&batch, top, query::recent_alerts, patience, permit).await;
                (batch, rows)
            }
        });
        by_value(answers.await, top, |_, alert| alert, |alert| &alert.last_evidence)
    }
}

/// The evidence of alerts.
pub(super) struct Evidence;

impl Question for Evidence {
    type Item = String;
    type Answer = Arc<AlertDetails>;

    fn batches(shared: &Shared) -> &Batches<Self> {
        &shared.evidence
    }

    fn bytes(item: &String) -> usize {
        item.len() + QUOTES_AND_COMMA
    }

    fn fits(items: usize, bytes: usize, _: usize) -> bool {
        items <= ALERTS_PER_QUERY && QUERY_FRAME_BYTES + bytes <= QUERY_LIMIT_BYTES
    }

    async fn ask(
        session: Session,
        items: Vec<String>,
        _: usize,
        permit: HuntingPermit,
    ) -> Answers<String, Arc<AlertDetails>> {
        let answers = divided(items, permit, in_half, |batch, patience, permit| {
            let session = &session;
            async move {
                let text = query::alert_evidence(&batch);
                let answer = session.query::<Answer<EvidenceRow>>(&text, patience, permit).await;
                (batch, answer.map(|answer| answer.results))
            }
        });
        each(answers.await, |batch, rows| {
            let mut groups: HashMap<String, Vec<EvidenceRow>> = HashMap::new();
            for row in rows {
                groups.entry(row.alert_id.clone()).or_default().push(row);
            }
            let details = |id: &String| Arc::new(read_details(groups.remove(id).unwrap_or_default()));
            batch.iter().map(details).collect()
        })
    }
}

/// Operating system and adapters of devices.
pub(super) struct Devices;

impl Question for Devices {
    type Item = String;
    type Answer = Arc<DeviceContext>;

    fn batches(shared: &Shared) -> &Batches<Self> {
        &shared.device_questions
    }

    fn bytes(item: &String) -> usize {
        item.len() + QUOTES_AND_COMMA
    }

    fn fits(items: usize, _: usize, _: usize) -> bool {
        items <= DEVICES_PER_QUERY
    }

    /// Each device is kept for later as well.
    async fn ask(
        session: Session,
        items: Vec<String>,
        _: usize,
        permit: HuntingPermit,
    ) -> Answers<String, Arc<DeviceContext>> {
        let answers = divided(items, permit, in_half, |batch, patience, permit| {
            let session = &session;
            async move {
                let text = query::device_context(&batch);
                let answer = session.query::<Answer<DeviceRow>>(&text, patience, permit).await;
                (batch, answer.map(|answer| answer.results))
            }
        });
        let answers = each(answers.await, |batch, rows| {
            let mut known: HashMap<String, DeviceContext> = HashMap::new();
            for row in rows {
                let mut device = DeviceContext::from(row);
                device.device_id.make_ascii_lowercase();
                known.insert(device.device_id.clone(), device);
            }
            let unknown = |id: &String| DeviceContext { device_id: id.clone(), ..DeviceContext::default() };
            batch.iter().map(|id| Arc::new(known.remove(id).unwrap_or_else(|| unknown(id)))).collect()
        });
        let inner = &session.inner;
        for (id, device) in &answers {
            if let Ok(device) = device {
                let key = (Arc::clone(&inner.account), id.clone());
                inner.defender.shared.devices.insert(key, Arc::clone(device)).await;
            }
        }
        answers
    }
}

/// What a text costs in a list of literals beside itself.
const QUOTES_AND_COMMA: usize = 4;

/// Gives each item of each batch its part of the batch's rows.
fn each<I: Clone, R, A>(
    answers: Answers<Vec<I>, Vec<R>>,
    mut parts: impl FnMut(&[I], Vec<R>) -> Vec<A>,
) -> Answers<I, A> {
    let mut found = Vec::new();
    for (batch, answer) in answers {
        match answer {
            Ok(rows) => {
                let parts = parts(&batch, rows);
                found.extend(batch.into_iter().zip(parts).map(|(item, part)| (item, Ok(part))));
            }
            Err(error) => found.extend(batch.into_iter().map(|item| (item, Err(error.clone())))),
        }
    }
    found
}

/// Gives each value its rows, newest first.
fn by_value<R, T>(
    answers: Answers<Vec<Value>, Vec<Observed<R>>>,
    top: usize,
    read: impl Fn(&Value, R) -> T,
    timestamp: fn(&T) -> &str,
) -> Answers<Value, Arc<Vec<T>>> {
    each(answers, |batch, rows| {
        let mut groups: HashMap<String, Vec<R>> = batch.iter().map(|value| (value.observable(), Vec::new())).collect();
        for Observed { observable, row } in rows {
            // Anything else belongs to nobody who asked.
            if let Some(group) = groups.get_mut(&observable.to_ascii_lowercase()) {
                group.push(row);
            }
        }
        let part = |value: &Value| {
            let rows = groups.remove(&value.observable()).unwrap_or_default();
            let mut rows: Vec<T> = rows.into_iter().map(|row| read(value, row)).collect();
            sort_newest_first(&mut rows, timestamp);
            rows.truncate(top);
            Arc::new(rows)
        };
        batch.iter().map(part).collect()
    })
}

impl Session {
    /// Asks about values together with whoever asks at the same moment; each gets as many rows as it wants.
    pub(super) async fn hunt<Q, T>(&self, sought: &[Sought]) -> Vec<Result<Vec<T>, DefenderError>>
    where
        Q: Question<Item = Value, Answer = Arc<Vec<T>>>,
        T: Clone + Send + Sync + 'static,
    {
        let values: Vec<Option<Value>> = sought.iter().map(|one| Value::new(one.sort, &one.value)).collect();
        let wanted = values.iter().zip(sought).filter(|(_, one)| one.top > 0);
        let wanted = wanted.filter_map(|(value, one)| Some((value.clone()?, one.top.min(ROWS_PER_QUERY)))).collect();
        let mut answers = self.ask_together::<Q>(wanted).await.into_iter();
        let answer = |(value, one): (&Option<Value>, &Sought)| match value {
            None => Err(DefenderError::invalid_value(Family::Hunting)),
            Some(_) if one.top == 0 => Ok(Vec::new()),
            Some(_) => answers.next().unwrap_or_else(|| Err(DefenderError::deadline(Family::Hunting))).map(|rows| {
                // Others may have wanted more.
                let mut rows = Arc::unwrap_or_clone(rows);
                rows.truncate(one.top);
                rows
            }),
        };
        values.iter().zip(sought).map(answer).collect()
    }

    pub(super) async fn hunt_probe(&self) -> Result<(), DefenderError> {
        let permit = self.hunting_permit().await?;
        let _: Answer<FileEvent> = self.query(query::HEALTH_PROBE, u32::MAX, Some(permit)).await?;
        Ok(())
    }

    /// The newest rows of a batch. A tenant that refuses `partition` is asked without it from then on, for a day.
    async fn newest<T: Row + Send>(
        &self,
        batch: &[Value],
        top: usize,
        build: fn(&[Value], usize, Newest) -> String,
        patience: u32,
        permit: Option<HuntingPermit>,
    ) -> Result<Vec<Observed<T>>, DefenderError> {
        let refusing = &self.inner.defender.shared.refusing_partition;
        let mut permit = permit;
        if !refusing.contains_key(&self.inner.account) {
            let text = build(batch, top, Newest::Partition);
            match self.query::<Answer<Observed<T>>>(&text, patience, permit.take()).await {
                Err(error) if error.refuses_partition() => {
                    info!(%error, "the tenant's hunting refuses partition; using row numbers");
                    refusing.insert(Arc::clone(&self.inner.account), ()).await;
                }
                answer => return answer.map(|answer| answer.results),
            }
        }
        let text = build(batch, top, Newest::RowNumber);
        Ok(self.query::<Answer<Observed<T>>>(&text, patience, permit).await?.results)
    }

    /// `POST /v1.0/security/runHuntingQuery` (`defender.md` 4), given up after `patience` answers of 504.
    async fn query<T: DeserializeOwned>(
        &self,
        text: &str,
        patience: u32,
        permit: Option<HuntingPermit>,
    ) -> Result<T, DefenderError> {
        let url =
            address(&self.inner.defender.shared.settings.graph_url, &["v1.0", "security", "runHuntingQuery"], None);
        let too_expensive = AtomicU32::new(0);
        let patient = |error: &DefenderError| {
            !error.is_answer(504) || too_expensive.fetch_add(1, Ordering::Relaxed) + 1 < patience
        };
        self.call_with(permit, &Spec::hunt(url, text), patient).await
    }

    pub(super) async fn hunt_devices(&self, ids: &[String]) -> (HashMap<String, DeviceContext>, Option<DefenderError>) {
        let devices = &self.inner.defender.shared.devices;
        let mut found = HashMap::new();
        let mut failure = None;
        let mut missing = BTreeSet::new();
        for id in ids {
            let Some(id) = query::hex(id, DEVICE_ID_DIGITS) else {
                failure = Some(DefenderError::invalid_value(Family::Hunting));
                continue;
            };
            match devices.get(&(Arc::clone(&self.inner.account), id.clone())).await {
                Some(device) => drop(found.insert(id, (*device).clone())),
                None => drop(missing.insert(id)),
            }
        }
        let missing: Vec<(String, usize)> = missing.into_iter().map(|id| (id, 1)).collect();
        for answer in self.ask_together::<Devices>(missing).await {
            match answer {
                Ok(device) => drop(found.insert(device.device_id.clone(), Arc::unwrap_or_clone(device))),
                Err(error) => failure = Some(error),
            }
        }
        (found, failure)
    }

    pub(super) async fn hunt_evidence(&self, ids: &[String]) -> Vec<Result<AlertDetails, DefenderError>> {
        let wanted = ids.iter().filter_map(|id| Some((query::alert_id(id)?.to_owned(), 1))).collect();
        let mut answers = self.ask_together::<Evidence>(wanted).await.into_iter();
        let answer = |id: &String| match query::alert_id(id) {
            None => Err(DefenderError::invalid_value(Family::Hunting)),
            Some(_) => answers
                .next()
                .unwrap_or_else(|| Err(DefenderError::deadline(Family::Hunting)))
                .map(Arc::unwrap_or_clone),
        };
        ids.iter().map(answer).collect()
    }
}

/// Device ids are SHA-1 sums in hexadecimal (`defender.md` 5.6).
pub(super) const DEVICE_ID_DIGITS: usize = 40;

/// How a batch is divided that failed in this way; `None`: not at all.
type Divide<I> = fn(&[I], &DefenderError) -> Option<(Vec<I>, Vec<I>)>;

/// In half, when it was too much for the service.
fn in_half<I: Clone>(batch: &[I], error: &DefenderError) -> Option<(Vec<I>, Vec<I>)> {
    let too_much = error.asks_for_less() || (error.is_answer(504) && !error.is_out_of_time());
    let (first, second) = batch.split_at(batch.len() / 2);
    (too_much && batch.len() > 1).then(|| (first.to_vec(), second.to_vec()))
}

/// By the tables they are found in, when a query of both was refused: the one may be readable without the other.
fn by_table(batch: &[Value], error: &DefenderError) -> Option<(Vec<Value>, Vec<Value>)> {
    in_half(batch, error).or_else(|| {
        let (files, connections): (Vec<Value>, Vec<Value>) = batch.iter().cloned().partition(Value::is_of_file);
        let both = !files.is_empty() && !connections.is_empty();
        (both && error.is_refused_query() && !error.refuses_partition()).then_some((files, connections))
    })
}

/// Runs a batch, dividing what the service does not take until it does or they hold one item. `run` is given a batch, how
/// many answers of 504 it may get, and the first time the permit.
async fn divided<I: Clone, P, R, F>(
    batch: Vec<I>,
    permit: P,
    divide: Divide<I>,
    run: impl Fn(Vec<I>, u32, Option<P>) -> F,
) -> Answers<Vec<I>, R>
where
    F: Future<Output = (Vec<I>, Result<R, DefenderError>)>,
{
    // A single item cannot be divided, so it gets every try that the retry policy allows.
    let patience_for = |batch: &[I], patience| if batch.len() > 1 { patience } else { u32::MAX };
    let mut running = FuturesUnordered::new();
    let patience = patience_for(&batch, PATIENCE);
    running.push(run(batch, patience, Some(permit)));
    let mut divisions = 0;
    let mut answers = Vec::new();
    while let Some((batch, answer)) = running.next().await {
        let parts = match &answer {
            Err(error) if divisions < HALVINGS_LIMIT => divide(&batch, error),
            _ => None,
        };
        match (parts, answer) {
            (Some((first, second)), Err(error)) => {
                divisions += 1;
                info!(%error, hunting.batch_size = batch.len(), "a hunting query was not taken, will be divided");
                for part in [first, second] {
                    // Its whole was tried often enough: the first 504 is enough for a part.
                    let patience = patience_for(&part, 1);
                    running.push(run(part, patience, None));
                }
            }
            (_, answer) => answers.push((batch, answer)),
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::super::query::Sort;
    use super::*;

    fn sha1(n: usize) -> Value {
        Value::new(Sort::Sha1, &format!("{n:040x}")).unwrap()
    }

    proptest! {
        // Each case builds some hundred kilobytes of text.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_fits_one_query_keeps_the_limit_of_text_in_every_form(
            hashes in 0usize..120,
            domains in prop::collection::btree_set("[a-z0-9]{1,63}(\\.[a-z0-9]{1,63}){0,2}", 0..120),
            ips in prop::collection::btree_set(any::<std::net::IpAddr>(), 0..120),
        ) {
            let mut values: Vec<Value> = (0..hashes).map(sha1).collect();
            values.extend(domains.iter().map(|domain| Value::new(Sort::Domain, domain).unwrap()));
            values.extend(ips.iter().map(|ip| Value::new(Sort::Ip, &ip.to_string()).unwrap()));
            let bytes = values.iter().map(Value::query_bytes).sum();
            if !values.is_empty() && values_fit(values.len(), bytes, 100) {
                for newest in [Newest::Partition, Newest::RowNumber] {
                    for text in [query::events(&values, 100, newest), query::recent_alerts(&values, 100, newest)] {
                        prop_assert!(text.len() <= QUERY_FRAME_BYTES + bytes && text.len() <= QUERY_LIMIT_BYTES);
                    }
                }
            }
        }
    }

    #[test]
    fn a_full_request_is_one_query() {
        let bytes = 200 * sha1(0).query_bytes();
        for (values, bytes, top, fits) in [
            (200, bytes, 100, true),
            (201, bytes, 100, false),
            (200, bytes, 125, true),
            (200, bytes, 126, false),
            (2, bytes, usize::MAX, false),
            (1, QUERY_LIMIT_BYTES, 1, false),
        ] {
            assert_eq!(values_fit(values, bytes, top), fits, "{values} {bytes} {top}");
        }
    }

    #[test]
    fn a_refused_query_of_both_tables_is_divided_by_them() {
        let values =
            [sha1(1), Value::new(Sort::Ip, "192.0.2.1").unwrap(), Value::new(Sort::Md5, &"0".repeat(32)).unwrap()];
        let refused = DefenderError {
            status: Some(400),
            ..DefenderError::from_body(Family::Hunting, 400, &serde::de::Error::custom("x"))
        };
        let (files, connections) = by_table(&values, &refused).unwrap();
        assert_eq!((files, connections), (vec![values[0].clone(), values[2].clone()], vec![values[1].clone()]));
        assert!(by_table(&values[..1], &refused).is_none());
        let (first, second) = by_table(&values, &too_large()).unwrap();
        assert_eq!((first.len(), second.len()), (1, 2));
    }

    #[test]
    fn the_largest_query_for_devices_keeps_the_limit_of_text() {
        let ids = vec!["0".repeat(40); DEVICES_PER_QUERY];
        assert!(query::device_context(&ids).len() <= QUERY_LIMIT_BYTES);
    }

    fn too_large() -> DefenderError {
        let error = crate::outbound::OutboundError::TooLarge { limit_bytes: 1 };
        DefenderError::from_outbound(Family::Hunting, &error)
    }

    /// Runs a batch against a service that refuses those for which `refuses` holds; returns the calls and the answers.
    async fn against(
        batch: Vec<u32>,
        refuses: impl Fn(&[u32]) -> bool,
    ) -> (usize, Vec<(Vec<u32>, Result<(), DefenderError>)>) {
        let calls = Mutex::new(0);
        let answers = divided(batch, (), in_half, |batch, _, _| {
            *calls.lock().unwrap() += 1;
            let answer = if refuses(&batch) { Err(too_large()) } else { Ok(()) };
            async move { (batch, answer) }
        })
        .await;
        (calls.into_inner().unwrap(), answers)
    }

    #[tokio::test]
    async fn a_batch_that_is_too_much_is_halved_until_only_the_offender_fails() {
        let (calls, mut answers) = against((0..200).collect(), |batch| batch.contains(&77)).await;
        // 200, then two halves for each of 8 levels: 100, 50, 25, 13, 7, 4, 2, 1 at most.
        assert!(calls <= 17, "{calls}");
        answers.sort_by_key(|(batch, _)| batch[0]);
        let failed: Vec<_> = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(batch, _)| batch).collect();
        assert_eq!(failed, [&vec![77]]);
        let all: Vec<u32> = answers.iter().flat_map(|(batch, _)| batch.clone()).collect();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn halving_ends_at_its_limit() {
        let (calls, answers) = against((0..200).collect(), |_| true).await;
        assert_eq!(calls, 1 + 2 * HALVINGS_LIMIT as usize);
        assert!(answers.iter().all(|(_, answer)| answer.is_err()));
        assert_eq!(answers.iter().map(|(batch, _)| batch.len()).sum::<usize>(), 200);
    }
}
