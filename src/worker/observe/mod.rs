//! `/observe/observables`: what Defender has seen of each observable (`relay.md` 5 and 6).
//!
//! Observables whose answers are still in memory are not asked about. The others are worked in batches: alerts first,
//! then one hunting query for each kind of table, then what the sightings need besides (devices, file profiles), then the
//! mapping. What was found is returned, with one error for each thing that was not.

pub(super) mod answers;
pub(super) mod failures;
mod file_alerts;
mod gather;

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use self::answers::{Answer, Owner};
use self::failures::Failures;
use super::Context;
use crate::broker::BODY_LIMIT_BYTES;
use crate::credentials::Credentials;
use crate::job::Observe;
use crate::relay::{ErrorType, Observable, ObserveReply, RelayError};

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
    let mut answers: Vec<Option<Arc<Answer>>> = Vec::with_capacity(observables.len());
    for observable in &observables {
        answers.push(context.answers.get(&owner, observable).await);
    }
    let missing: Vec<usize> = (0..observables.len()).filter(|position| answers[*position].is_none()).collect();
    context.metrics.answers(observables.len() - missing.len(), missing.len());

    let mut failures = Failures::default();
    if !missing.is_empty() {
        let session = context.session(credentials, until);
        let gatherer = gather::Gatherer::new(&session, limit, &context.portal_url, &credentials.tenant_id);
        for batch in missing.chunks(BATCH) {
            let batch: Vec<(usize, &Observable)> = batch.iter().map(|at| (*at, &observables[*at])).collect();
            for (position, found) in gatherer.gather(&batch, &mut failures).await {
                let answer = Arc::new(found.answer);
                if found.complete {
                    context.answers.keep(&owner, &observables[position], Arc::clone(&answer)).await;
                }
                answers[position] = Some(answer);
            }
        }
    }
    reply(&observables, &answers, failures)
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
    errors.append(&mut warnings);
    ObserveReply { docs, errors }.to_body().into()
}

/// The answer for `value` did not fit into one message whole: nothing is dropped silently (`DESIGN.md` 5).
fn too_large(value: &str) -> RelayError {
    RelayError {
        code: "too-many-messages-warning".into(),
        message: format!("The answer is too large; sightings of {value} were left out.").into(),
        kind: ErrorType::Warning,
    }
}
