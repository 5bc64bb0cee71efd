//! `/respond/observables`: which response actions are offered (`relay.md` 7.1 and 7.2).
//!
//! Many values share a call for their indicators, and calls are made side by side as far as a request may. What could be
//! found out is offered; each thing that could not is one error (defects 60 and 63).

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use super::Context;
use super::observe::failures::{self, Failures, Stops};
use crate::credentials::Credentials;
use crate::defender::model::Indicator;
use crate::defender::{CONCURRENT_CALLS, DefenderError, Family, INDICATOR_BATCH, Session};
use crate::job::Respond;
use crate::mapping::action;
use crate::relay::respond::{self, Action};
use crate::relay::{Observable, RelayError};

/// What was found for some observables, by their positions.
type Found = Vec<(usize, Result<Vec<Action>, DefenderError>)>;

/// Answers `respond` by `until`.
pub(super) async fn handle(job: Respond, credentials: &Credentials, until: Instant, context: &Context) -> Bytes {
    // Valid when the ingress sent them; an ingress of another version may see it otherwise.
    let observables: Vec<Observable> =
        job.observables.iter().filter_map(|(kind, value)| Observable::parse(kind, value)).collect();
    let session = context.session(credentials, until);
    let all: Vec<(usize, &Observable)> = observables.iter().enumerate().collect();
    let (values, machines): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, observable)| observable.is_observable());

    let mut failed = Failures::default();
    let stops = failed.stops();
    // The futures are made first: a stream that makes them while it is polled cannot be sent between threads.
    let lookups: Vec<_> = values.chunks(INDICATOR_BATCH).map(|batch| of_values(&session, batch, &stops)).collect();
    let looked_up: Vec<Found> = stream::iter(lookups).buffer_unordered(CONCURRENT_CALLS).collect().await;
    let looks: Vec<_> = machines.iter().map(|(at, machine)| of_machine(&session, *at, machine, &stops)).collect();
    let looked_at: Vec<(Found, Option<RelayError>)> =
        stream::iter(looks).buffer_unordered(CONCURRENT_CALLS).collect().await;

    let mut offered: Vec<Vec<Action>> = vec![Vec::new(); observables.len()];
    let mut errors = Vec::new();
    let mut all: Found = looked_up.into_iter().flatten().collect();
    for (found, error) in looked_at {
        all.extend(found);
        errors.extend(error);
    }
    // Errors in request order, whichever call was over first.
    all.sort_by_key(|(at, _)| *at);
    for (at, found) in all {
        match found {
            Ok(mut actions) => offered[at].append(&mut actions),
            Err(error) => failed.add(&error, [at]),
        }
    }
    let actions: Vec<Action> = offered.into_iter().flatten().collect();
    let spelled: Vec<&str> = observables.iter().map(|observable| observable.spelled_value.as_str()).collect();
    errors.splice(0..0, failed.into_errors(&spelled, !actions.is_empty()));
    respond::body(&actions, errors).to_string().into()
}

/// What is offered for the values of one batch.
async fn of_values(session: &Session, batch: &[(usize, &Observable)], stops: &Stops) -> Found {
    let found = match batch {
        _ if !stops.allows(Family::Indicators) => return Vec::new(),
        // The one form that the platform's relays have always used.
        [_] => return one_by_one(session, batch, stops).await,
        many => {
            let values: Vec<&str> = many.iter().map(|(_, one)| one.value.as_str()).collect();
            match session.indicators_of(&values).await {
                // A service that does not take the longer filter takes the short one.
                Err(error) if error.status() == Some(400) => return one_by_one(session, many, stops).await,
                found => found,
            }
        }
    };
    match found {
        Ok(found) => {
            let mut first: HashMap<String, &Indicator> = HashMap::new();
            for indicator in &found {
                first.entry(indicator.indicator_value.to_ascii_lowercase()).or_insert(indicator);
            }
            let offer = |one: &Observable| action::of_indicator(one, first.get(one.value.as_str()).copied());
            batch.iter().map(|(at, one)| (*at, Ok(offer(one)))).collect()
        }
        Err(error) => {
            stops.note(&error);
            batch.iter().map(|(at, _)| (*at, Err(error.clone()))).collect()
        }
    }
}

async fn one_by_one(session: &Session, batch: &[(usize, &Observable)], stops: &Stops) -> Found {
    let mut all = Vec::with_capacity(batch.len());
    for (at, one) in batch {
        if !stops.allows(Family::Indicators) {
            break;
        }
        let found = session.indicator_of(&one.value).await;
        if let Err(error) = &found {
            stops.note(error);
        }
        all.push((*at, found.map(|found| action::of_indicator(one, found.as_ref()))));
    }
    all
}

/// What is offered for a machine, and what is wrong when Defender does not know it.
async fn of_machine(session: &Session, at: usize, machine: &Observable, stops: &Stops) -> (Found, Option<RelayError>) {
    if !stops.allows(Family::MachineActions) {
        return (Vec::new(), None);
    }
    let (available, history) = tokio::join!(
        session.available_actions(&machine.value),
        session.actions_of_kinds(&machine.value, &action::REVERSIBLE)
    );
    let mut found = Vec::new();
    let mut unknown = None;
    let available = match available {
        Ok(Some(listed)) => action::available(&listed),
        // The list is gone, or the machine is.
        Ok(None) => match session.machine(&machine.value).await {
            Ok(Some(known)) => action::by_platform(&known),
            Ok(None) => {
                unknown = Some(failures::unknown_machine(&machine.spelled_value));
                Vec::new()
            }
            Err(error) => {
                found.push((at, Err(error)));
                Vec::new()
            }
        },
        Err(error) => {
            found.push((at, Err(error)));
            Vec::new()
        }
    };
    let history = history.unwrap_or_else(|error| {
        found.push((at, Err(error)));
        Vec::new()
    });
    for (_, failed) in &found {
        if let Err(error) = failed {
            stops.note(error);
        }
    }
    found.push((at, Ok(action::of_machine(machine, &available, &history))));
    (found, unknown)
}
