//! `/observe/observables`: what Defender has seen of each observable (`relay.md` 5 and 6).
//!
//! Observables whose answers are still in memory are not asked about, nor are those that another request is asking
//! about: its answer is waited for. The others are worked in batches: alerts first, then one hunting query for all events,
//! then what the sightings need besides (devices, file profiles), then the mapping. What was found is returned, with one
//! error for each thing that was not.

pub(super) mod answers;
pub(super) mod failures;
mod file_alerts;
mod gather;
mod lookups;
mod screen;

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use self::answers::{Answer, Begun, Depth, Lead, Owner};
use self::failures::{Failures, NAMED_LIMIT};
use self::gather::Gatherer;
use super::Context;
use crate::broker::BODY_LIMIT_BYTES;
use crate::credentials::Credentials;
use crate::job::Observe;
use crate::relay::{ErrorType, Observable, ObserveReply, RelayError};
use crate::telemetry::propagation;

/// Observables worked together: what one hunting query may name (`defender.md` 6.2, `DESIGN.md` 5).
const BATCH: usize = 200;

/// Room in a reply for what is not sightings.
const ENVELOPE_BYTES: usize = 512 * 1024;

/// Answers `observe` by `until`.
pub(super) async fn handle(job: Observe, credentials: &Credentials, until: Instant, context: &Context) -> Bytes {
    let limit = usize::try_from(job.limit).unwrap_or(usize::MAX);
    // Valid when the ingress sent them; an ingress of another version may see it otherwise.
    let observables: Vec<Observable> = job
        .observables
        .iter()
        .filter_map(|(kind, value)| Observable::parse(kind, value))
        .filter(Observable::is_observable)
        .collect();
    let owner = Owner::new(credentials, limit);
    let mut answers: Vec<Option<Arc<Answer>>> = vec![None; observables.len()];
    let (mut ours, mut awaited) = (Vec::new(), Vec::new());
    for (position, observable) in observables.iter().enumerate() {
        match context.answers.begin(&owner, observable).await {
            Begun::Known(answer) => answers[position] = Some(answer),
            Begun::Awaited(answer) => awaited.push((position, answer)),
            Begun::Ours(lead) => ours.push((position, Some(lead))),
        }
    }
    let missing = ours.len() + awaited.len();
    context.metrics.answers(observables.len() - missing, missing);
    propagation::cache("answers", observables.len() - missing, missing);
    propagation::share(awaited.iter_mut().filter_map(|(_, answer)| answer.take_maker()));

    let mut failures = Failures::default();
    if missing > 0 {
        let session = context.session(credentials, until);
        let gatherer = Gatherer::new(&session, limit, &context.portal_url, &credentials.tenant_id);
        let mut work = Work { gatherer, observables: &observables, answers: &mut answers, failures: &mut failures };
        // What others wait for comes first; then nobody waits for us, and we may wait for them.
        work.make(ours, context).await;
        let mut left = Vec::new();
        for (position, answer) in awaited {
            match answer.answer(until).await {
                Some(answer) => work.answers[position] = Some(answer),
                // It failed, or had less time: asked by everybody for itself, which shares its calls all the same.
                None => left.push((position, None)),
            }
        }
        work.make(left, context).await;
    }
    reply(&observables, &answers, failures)
}

/// What a request does about the observables that it has no answer of.
struct Work<'a> {
    gatherer: Gatherer<'a>,
    observables: &'a [Observable],
    answers: &'a mut [Option<Arc<Answer>>],
    failures: &'a mut Failures,
}

impl Work<'_> {
    /// Makes the answers for these positions, and gives the complete ones to those who wait for them.
    async fn make(&mut self, mut wanted: Vec<(usize, Option<Lead>)>, context: &Context) {
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(BATCH));
            let batch: Vec<(usize, &Observable)> =
                wanted.iter().map(|(position, _)| (*position, &self.observables[*position])).collect();
            let found = self.gatherer.gather(&batch, self.failures).await;
            for ((position, found), (_, lead)) in found.into_iter().zip(std::mem::replace(&mut wanted, rest)) {
                let answer = Arc::new(found.answer);
                if let Some(lead) = lead.filter(|_| found.complete) {
                    context.answers.finish(lead, Arc::clone(&answer)).await;
                }
                self.answers[position] = Some(answer);
            }
        }
    }
}

/// Puts the answers together in request order, within the size that a message may have.
fn reply(observables: &[Observable], answers: &[Option<Arc<Answer>>], failures: Failures) -> Bytes {
    let mut docs = Vec::new();
    let mut warnings = Vec::new();
    let mut bytes = 0;
    for (observable, answer) in observables.iter().zip(answers) {
        let Some(answer) = answer else { continue };
        if answer.more_alerts {
            warnings.push(RelayError::more_alerts(&observable.spelled_value));
        }
        for sighting in &answer.sightings {
            let document = sighting.document(observable);
            bytes += document.as_str().len() + 1;
            if bytes > BODY_LIMIT_BYTES - ENVELOPE_BYTES {
                warnings.push(too_large(&observable.spelled_value));
                break;
            }
            docs.push(document);
        }
    }
    let values: Vec<&str> = observables.iter().map(|observable| observable.spelled_value.as_str()).collect();
    let mut errors = failures.into_errors(&values, !docs.is_empty());
    for (depth, warning) in
        [(Depth::Recent, RelayError::older_alerts_not_asked()), (Depth::Hunted, RelayError::alerts_from_hunting())]
    {
        let of_depth = |answer: &Option<Arc<Answer>>| answer.as_ref().is_some_and(|answer| answer.depth == depth);
        let concerned = answers.iter().zip(&values).filter(|(answer, _)| of_depth(answer)).map(|(_, value)| *value);
        warnings.extend(named(warning, &concerned.collect::<Vec<_>>(), values.len()));
    }
    errors.append(&mut warnings);
    ObserveReply { docs, errors }.to_body().into()
}

/// The warning for each of the values concerned, by name; without names where they are all, or so many that names would
/// say nothing.
fn named(warning: RelayError, concerned: &[&str], all: usize) -> Vec<RelayError> {
    match concerned.len() {
        0 => Vec::new(),
        some if some < all && some <= NAMED_LIMIT => {
            concerned.iter().map(|value| warning.clone().about(value)).collect()
        }
        _ => vec![warning],
    }
}

/// The answer for `value` did not fit into one message whole: nothing is dropped silently (`DESIGN.md` 5).
fn too_large(value: &str) -> RelayError {
    RelayError {
        code: "too-many-messages-warning".into(),
        message: format!("The answer is too large; sightings of {value} were left out.").into(),
        kind: ErrorType::Warning,
    }
}
