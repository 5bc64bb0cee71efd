//! Batched hunting: many values in few queries, rows back to their values.
//!
//! The outcome is as if each value had been asked for alone: a batch that is too much for the service is halved until
//! the values that are too much stand alone, and only those fail. How queries read is in `query`, how rows do in `rows`.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use tracing::info;

use super::call::{Spec, address};
use super::model::{DeviceContext, FileEvent, NetworkEvent};
use super::query::{self, Newest, Sort, Value};
use super::rows::{Answer, DeviceRow, Observed, Row, sort_newest_first};
use super::{DefenderError, Devices, Family, HashSets, Hunted, Session};

/// Values in one query (`defender.md` 6.2).
const VALUES_PER_QUERY: usize = 200;

/// Bytes of one query's text (`defender.md` 6.2).
const QUERY_LIMIT_BYTES: usize = 64 * 1024;

/// What a query's text has beside its values; the longest has some 1.5 KiB.
const QUERY_FRAME_BYTES: usize = 2 * 1024;

/// Rows that a query may return. The service's limits are 100 000 rows and 50 MB, which at some 1.2 KB a row
/// (`defender.md` 6.3) is 41 000 rows; the rest is room for long paths and addresses. 200 values with 100 rows each fit.
const ROWS_PER_QUERY: usize = 25_000;

/// Devices in one query: 43 KB of text. They return one row each, so neither rows nor bytes are a concern.
const DEVICES_PER_QUERY: usize = 1000;

/// How often the batches of one lookup may be halved: enough to single out two values among 200, and at most 40 more
/// calls, which is less than a tenant's quota for a minute.
const HALVINGS_LIMIT: u32 = 20;

/// After as many answers of 504 a batch is held to be too expensive (`defender.md` 3.3).
const PATIENCE: u32 = 2;

impl Session {
    pub(super) async fn hunt_files(&self, hashes: HashSets<'_>, top: usize) -> Hunted<FileEvent> {
        let of = |sort, texts: &[String]| texts.iter().map(|text| (sort, text.clone())).collect::<Vec<_>>();
        let wanted = [of(Sort::Sha1, hashes.sha1), of(Sort::Sha256, hashes.sha256), of(Sort::Md5, hashes.md5)];
        self.hunt(&wanted.concat(), top, query::file_events, |row: &FileEvent| &row.timestamp).await
    }

    pub(super) async fn hunt_network(&self, sort: Sort, texts: &[String], top: usize) -> Hunted<NetworkEvent> {
        let wanted: Vec<_> = texts.iter().map(|text| (sort, text.clone())).collect();
        let build = if sort == Sort::Ip { query::network_events_by_ip } else { query::network_events_by_domain };
        self.hunt(&wanted, top, build, |row: &NetworkEvent| &row.timestamp).await
    }

    pub(super) async fn hunt_probe(&self) -> Result<(), DefenderError> {
        let _: Answer<FileEvent> = self.query(|| query::HEALTH_PROBE.to_owned(), u32::MAX).await?;
        Ok(())
    }

    async fn hunt<T: Row + Clone + Send>(
        &self,
        wanted: &[(Sort, String)],
        top: usize,
        build: fn(&[Value], usize, Newest) -> String,
        timestamp: fn(&T) -> &str,
    ) -> Hunted<T> {
        let top = top.min(ROWS_PER_QUERY);
        let values: BTreeSet<Value> = wanted.iter().filter_map(|(sort, text)| Value::new(*sort, text)).collect();
        let batches = if top == 0 { Vec::new() } else { batches(values, top) };
        let answers = divided(batches, |batch, patience| async move {
            let rows = self.newest::<T>(&batch, top, build, patience).await;
            (batch, rows)
        })
        .await;

        let mut found: Hunted<T> = HashMap::new();
        for (batch, answer) in answers {
            match answer {
                Ok(rows) => {
                    let mut groups: HashMap<String, Vec<T>> =
                        batch.iter().map(|value| (value.observable(), Vec::new())).collect();
                    for Observed { observable, row } in rows {
                        // Anything else belongs to nobody who asked.
                        if let Some(group) = groups.get_mut(&observable.to_ascii_lowercase()) {
                            group.push(row);
                        }
                    }
                    for (observable, mut rows) in groups {
                        sort_newest_first(&mut rows, timestamp);
                        rows.truncate(top);
                        found.insert(observable, Ok(rows));
                    }
                }
                Err(error) => found.extend(batch.iter().map(|value| (value.observable(), Err(error.clone())))),
            }
        }
        name_as_asked(found, wanted)
    }

    /// The newest rows of a batch. A tenant that refuses `partition` is asked without it from then on, for a day.
    async fn newest<T: Row + Send>(
        &self,
        batch: &[Value],
        top: usize,
        build: fn(&[Value], usize, Newest) -> String,
        patience: u32,
    ) -> Result<Vec<Observed<T>>, DefenderError> {
        let refusing = &self.inner.defender.shared.refusing_partition;
        if !refusing.contains_key(&self.inner.account) {
            match self.query::<Answer<Observed<T>>>(|| build(batch, top, Newest::Partition), patience).await {
                Err(error) if error.refuses_partition() => {
                    info!(%error, "the tenant's hunting refuses partition; using row numbers");
                    refusing.insert(Arc::clone(&self.inner.account), ()).await;
                }
                answer => return answer.map(|answer| answer.results),
            }
        }
        Ok(self.query::<Answer<Observed<T>>>(|| build(batch, top, Newest::RowNumber), patience).await?.results)
    }

    /// `POST /v1.0/security/runHuntingQuery` (`defender.md` 4), given up after `patience` answers of 504. The text is
    /// made when it may be sent.
    async fn query<T: DeserializeOwned>(
        &self,
        text: impl FnOnce() -> String,
        patience: u32,
    ) -> Result<T, DefenderError> {
        let url =
            address(&self.inner.defender.shared.settings.graph_url, &["v1.0", "security", "runHuntingQuery"], None);
        let too_expensive = AtomicU32::new(0);
        let patient = |error: &DefenderError| {
            !error.is_answer(504) || too_expensive.fetch_add(1, Ordering::Relaxed) + 1 < patience
        };
        let permit = self.hunting_permit().await?;
        self.call_with(Some(permit), &Spec::hunt(url, &text()), patient).await
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
        let missing: Vec<String> = missing.into_iter().collect();
        let batches = missing.chunks(DEVICES_PER_QUERY).map(<[String]>::to_vec).collect();
        let answers = divided(batches, |batch, patience| async move {
            let devices = self.device_batch(&batch, patience).await;
            (batch, devices)
        })
        .await;
        for (_, answer) in answers {
            match answer {
                Ok(devices) => {
                    found.extend(devices.iter().map(|device| (device.device_id.clone(), (**device).clone())))
                }
                Err(error) => failure = Some(error),
            }
        }
        (found, failure)
    }

    /// The devices of one query, in the order of `ids`, kept for later one by one. Those who want the same devices at
    /// the same time share the call.
    async fn device_batch(&self, ids: &[String], patience: u32) -> Result<Devices, DefenderError> {
        let shared = &self.inner.defender.shared;
        let key = (Arc::clone(&self.inner.account), Arc::from(ids));
        let devices = self
            .once(Family::Hunting, &shared.device_batches, key.clone(), || async {
                let answer: Answer<DeviceRow> = self.query(|| query::device_context(ids), patience).await?;
                let mut known: HashMap<String, DeviceContext> = HashMap::new();
                for row in answer.results {
                    let mut device = DeviceContext::from(row);
                    device.device_id.make_ascii_lowercase();
                    known.insert(device.device_id.clone(), device);
                }
                let mut devices = Vec::with_capacity(ids.len());
                for id in ids {
                    let unknown = || DeviceContext { device_id: id.clone(), ..DeviceContext::default() };
                    let device = Arc::new(known.remove(id).unwrap_or_else(unknown));
                    let key = (Arc::clone(&self.inner.account), id.clone());
                    shared.devices.insert(key, Arc::clone(&device)).await;
                    devices.push(device);
                }
                Ok(devices.into())
            })
            .await?;
        // The devices are kept one by one; the batch was there to be waited for.
        shared.device_batches.invalidate(&key).await;
        Ok(devices)
    }
}

/// Gives the rows found for each value the name by which it was asked for; two spellings of one value share its rows.
fn name_as_asked<T: Clone>(mut found: Hunted<T>, wanted: &[(Sort, String)]) -> Hunted<T> {
    let mut named: Hunted<T> = HashMap::with_capacity(wanted.len());
    let mut taken: HashMap<String, String> = HashMap::new();
    for (sort, text) in wanted {
        let name = query::observable(*sort, text);
        if named.contains_key(&name) {
            continue;
        }
        let rows = match Value::new(*sort, text).map(|value| value.observable()) {
            None => Err(DefenderError::invalid_value(Family::Hunting)),
            Some(observable) => match (found.remove(&observable), taken.get(&observable)) {
                (Some(rows), _) => {
                    taken.insert(observable, name.clone());
                    rows
                }
                (None, Some(before)) => named[before].clone(),
                (None, None) => Ok(Vec::new()),
            },
        };
        named.insert(name, rows);
    }
    named
}

/// Device ids are SHA-1 sums in hexadecimal (`defender.md` 5.6).
pub(super) const DEVICE_ID_DIGITS: usize = 40;

/// Batches of values for queries of `top` rows each that stay within every limit.
fn batches(values: impl IntoIterator<Item = Value>, top: usize) -> Vec<Vec<Value>> {
    let most = VALUES_PER_QUERY.min(ROWS_PER_QUERY / top.max(1)).max(1);
    let mut batches: Vec<Vec<Value>> = Vec::new();
    let mut bytes = 0;
    for value in values {
        let added = value.query_bytes();
        match batches.last_mut() {
            Some(batch) if batch.len() < most && bytes + added <= QUERY_LIMIT_BYTES => {
                bytes += added;
                batch.push(value);
            }
            _ => {
                bytes = QUERY_FRAME_BYTES + added;
                batches.push(vec![value]);
            }
        }
    }
    batches
}

/// Runs all batches side by side, halving those that are too much for the service until it takes them or they hold one
/// item. `run` is given a batch and how many answers of 504 it may get.
async fn divided<I: Clone, R, F>(
    batches: Vec<Vec<I>>,
    run: impl Fn(Vec<I>, u32) -> F,
) -> Vec<(Vec<I>, Result<R, DefenderError>)>
where
    F: Future<Output = (Vec<I>, Result<R, DefenderError>)>,
{
    // A single item cannot be halved, so it gets every try that the retry policy allows.
    let patience_for = |batch: &[I], patience| if batch.len() > 1 { patience } else { u32::MAX };
    let mut running: FuturesUnordered<F> = batches
        .into_iter()
        .map(|batch| {
            let patience = patience_for(&batch, PATIENCE);
            run(batch, patience)
        })
        .collect();
    let mut halvings = 0;
    let mut answers = Vec::new();
    while let Some((batch, answer)) = running.next().await {
        match answer {
            Err(error) if batch.len() > 1 && is_too_much(&error) && halvings < HALVINGS_LIMIT => {
                halvings += 1;
                info!(%error, hunting.batch_size = batch.len(), "a hunting query was too much, will be halved");
                let (first, second) = batch.split_at(batch.len() / 2);
                for half in [first, second] {
                    // Its whole was tried often enough: the first 504 is enough for a half.
                    running.push(run(half.to_vec(), patience_for(half, 1)));
                }
            }
            answer => answers.push((batch, answer)),
        }
    }
    answers
}

fn is_too_much(error: &DefenderError) -> bool {
    error.asks_for_less() || (error.is_answer(504) && !error.is_out_of_time())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    fn sha1(n: usize) -> Value {
        Value::new(Sort::Sha1, &format!("{n:040x}")).unwrap()
    }

    proptest! {
        // Each case builds some hundred kilobytes of text.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn batches_hold_every_value_once_and_keep_the_limits(
            hashes in 0usize..500,
            domains in prop::collection::btree_set("[a-z0-9]{1,63}(\\.[a-z0-9]{1,63}){0,2}", 0..300),
            top in 1usize..30_000,
        ) {
            let mut values: Vec<Value> = (0..hashes).map(sha1).collect();
            values.extend(domains.iter().map(|domain| Value::new(Sort::Domain, domain).unwrap()));
            let batches = batches(values.clone(), top);
            for batch in &batches {
                prop_assert!(!batch.is_empty() && batch.len() <= VALUES_PER_QUERY);
                prop_assert!(batch.len() == 1 || batch.len() * top <= ROWS_PER_QUERY);
                let text = query::network_events_by_domain(batch, top, Newest::RowNumber);
                prop_assert!(text.len() <= QUERY_LIMIT_BYTES, "{}", text.len());
            }
            prop_assert_eq!(batches.concat(), values);
        }

        #[test]
        fn queries_for_addresses_keep_the_limit_of_text(ips in prop::collection::btree_set(any::<std::net::Ipv4Addr>(), 1..250)) {
            for batch in batches(ips.iter().map(|ip| Value::new(Sort::Ip, &ip.to_string()).unwrap()), 1) {
                let text = query::network_events_by_ip(&batch, 1, Newest::Partition);
                let counted: usize = batch.iter().map(Value::query_bytes).sum();
                prop_assert!(text.len() <= QUERY_FRAME_BYTES + counted && text.len() <= QUERY_LIMIT_BYTES);
            }
        }
    }

    #[test]
    fn a_full_request_of_one_sort_is_one_query() {
        assert_eq!(batches((0..200).map(sha1), 100).len(), 1);
        assert_eq!(batches((0..201).map(sha1), 100).len(), 2);
        assert_eq!(batches((0..200).map(sha1), 250).len(), 2);
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

    /// Runs `batches` against a service that refuses those for which `refuses` holds; returns the calls and the answers.
    async fn against(
        batches: Vec<Vec<u32>>,
        refuses: impl Fn(&[u32]) -> bool,
    ) -> (usize, Vec<(Vec<u32>, Result<(), DefenderError>)>) {
        let calls = Mutex::new(0);
        let answers = divided(batches, |batch, _| {
            *calls.lock().unwrap() += 1;
            let answer = if refuses(&batch) { Err(too_large()) } else { Ok(()) };
            async move { (batch, answer) }
        })
        .await;
        (calls.into_inner().unwrap(), answers)
    }

    #[tokio::test]
    async fn a_batch_that_is_too_much_is_halved_until_only_the_offender_fails() {
        let (calls, mut answers) = against(vec![(0..200).collect()], |batch| batch.contains(&77)).await;
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
        let (calls, answers) = against(vec![(0..200).collect()], |_| true).await;
        assert_eq!(calls, 1 + 2 * HALVINGS_LIMIT as usize);
        assert!(answers.iter().all(|(_, answer)| answer.is_err()));
        assert_eq!(answers.iter().map(|(batch, _)| batch.len()).sum::<usize>(), 200);
    }
}
