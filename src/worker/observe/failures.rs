//! What failed during a request, and which relay errors that becomes (`relay.md` 3.1 and 3.3; `DESIGN.md` 10, rulings 8
//! and 9). Pure.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::defender::{Audience, DefenderError, Family, Kind};
use crate::relay::{RelayError, error};

/// More observables than this are not named one by one: the message then stands once, unnamed.
pub(super) const NAMED_LIMIT: usize = 20;

/// How far a failure reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Only what was asked about; the next call of the family is made.
    Observable,
    /// The same would happen again: no further call of this family.
    Family,
    /// No further call at all.
    Request,
}

/// How far a failure of this kind reaches.
pub(super) fn reach(error: &DefenderError) -> Reach {
    match error.kind() {
        Kind::TokenRefused { .. }
        | Kind::TokenTenantUnknown
        | Kind::TokenMissing
        | Kind::TokenOther { .. }
        | Kind::Unauthorized
        | Kind::Deadline => Reach::Request,
        // Without a token there is no call, and the token endpoint has had all its tries.
        _ if matches!(error.family(), Family::Token(_)) => Reach::Request,
        Kind::Forbidden | Kind::Throttled { .. } | Kind::Certificate { .. } => Reach::Family,
        _ if error.is_out_of_time() => Reach::Request,
        Kind::InvalidRequest
        | Kind::InvalidValue
        | Kind::ServerError
        | Kind::BadGateway
        | Kind::Connect
        | Kind::Tls
        | Kind::TooLarge => Reach::Observable,
    }
}

/// The relay error of a failure. `has_data` says whether sightings come with it: a role that is missing for hunting,
/// files or machines is then a warning that names it (`DESIGN.md` 5).
pub(in crate::worker) fn relay_error(error: &DefenderError, has_data: bool) -> RelayError {
    let detail = error.detail().unwrap_or("no answer");
    match error.kind() {
        Kind::TokenRefused { description: Some(description) } => RelayError::authorization(description),
        Kind::TokenRefused { description: None } => RelayError::authorization_at_defender(),
        Kind::TokenTenantUnknown => RelayError::unknown_tenant(),
        Kind::TokenMissing => RelayError::no_access_token(),
        Kind::TokenOther { description: Some(description) } => RelayError::entra_unexpected(description),
        Kind::TokenOther { description: None } | Kind::InvalidValue => RelayError::unforeseen(),
        Kind::Unauthorized => RelayError::authorization(detail),
        Kind::Forbidden => {
            let refused = error.permission().map_or_else(RelayError::unforeseen, RelayError::permission_denied);
            let detail_only = matches!(error.family(), Family::Hunting | Family::Machines | Family::Files);
            if has_data && detail_only { refused.as_warning() } else { refused }
        }
        Kind::Throttled { hunting: true } => RelayError::hunting_rate_limit(detail),
        Kind::Throttled { hunting: false } => RelayError::too_many_requests(),
        Kind::InvalidRequest => RelayError::invalid_request(detail),
        Kind::ServerError | Kind::BadGateway | Kind::TooLarge => RelayError::defender_internal(),
        Kind::Connect | Kind::Tls => RelayError::connection(),
        Kind::Certificate { reason } => RelayError::certificate(reason),
        Kind::Deadline => RelayError::deadline(has_data),
    }
}

/// E4 for a machine that Defender does not know, named as it was spelled.
pub(in crate::worker) fn unknown_machine(spelled: &str) -> RelayError {
    RelayError::invalid_request("The machine is not known.").about(spelled)
}

/// What is not called any more. Shared by the calls under way, so that the next one already knows.
#[derive(Debug, Default)]
pub(in crate::worker) struct Stops(Mutex<Stopped>);

#[derive(Debug, Default)]
struct Stopped {
    families: Vec<Family>,
    request: bool,
    /// There was no permit for alerts or file profiles, which share a quota, within the patience.
    alerts_late: bool,
}

impl Stops {
    /// Takes note of a failure that would happen again.
    pub(in crate::worker) fn note(&self, error: &DefenderError) {
        let mut stopped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reach(error) {
            Reach::Family if error.is_not_permitted() && error.family().shares_alerts_quota() => {
                stopped.alerts_late = true
            }
            Reach::Observable => {}
            Reach::Family => stopped.families.push(error.family()),
            Reach::Request => stopped.request = true,
        }
    }

    /// Whether calls of this family are still worth making.
    pub(in crate::worker) fn allows(&self, family: Family) -> bool {
        let audience = if family == Family::Hunting { Audience::Graph } else { Audience::Defender };
        let stopped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = stopped.alerts_late && family.shares_alerts_quota();
        !stopped.request && !late && !stopped.families.iter().any(|of| *of == family || *of == Family::Token(audience))
    }

    /// Whether alerts are not asked for because there was no permit, and for no other reason.
    pub(super) fn are_alerts_late(&self) -> bool {
        let stopped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = stopped.families.iter().any(|of| of.shares_alerts_quota() || matches!(of, Family::Token(_)));
        stopped.alerts_late && !stopped.request && !others
    }

    /// Alerts may be asked for again, with more patience.
    pub(super) fn alerts_again(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).alerts_late = false;
    }
}

/// The failures of one request.
#[derive(Debug, Default)]
pub(in crate::worker) struct Failures {
    /// Each with the positions of the observables it concerns.
    entries: Vec<(DefenderError, BTreeSet<usize>)>,
    /// A best-effort lookup failed (E23).
    details_missing: bool,
    stops: Arc<Stops>,
}

impl Failures {
    /// Notes the failure of a call that was made for the observables at `positions`.
    pub(in crate::worker) fn add(&mut self, error: &DefenderError, positions: impl IntoIterator<Item = usize>) {
        self.stops.note(error);
        let same = |known: &DefenderError| known.family() == error.family() && known.kind() == error.kind();
        // The token endpoint says the same to both audiences, with another trace id in its text each time.
        let token = |of: &DefenderError| matches!(of.family(), Family::Token(_));
        if token(error) && self.entries.iter().any(|(known, _)| token(known) && reach(known) == Reach::Request) {
            return;
        }
        match self.entries.iter_mut().find(|(known, _)| same(known)) {
            Some((_, known)) => known.extend(positions),
            None => self.entries.push((error.clone(), positions.into_iter().collect())),
        }
    }

    /// Notes that the observable at `position` was not asked about, because a failure before it ended the family.
    pub(super) fn add_skipped(&mut self, family: Family, position: usize) {
        for (_, positions) in self.entries.iter_mut().filter(|(error, _)| error.family() == family) {
            positions.insert(position);
        }
    }

    /// Notes the failure of a best-effort lookup: E23, or the name of the missing role, never an end of anything but
    /// its own family.
    pub(super) fn add_best_effort(&mut self, error: &DefenderError) {
        match error.kind() {
            Kind::Forbidden | Kind::Deadline => self.add(error, []),
            _ => {
                self.details_missing = true;
                self.stops.note(error);
            }
        }
    }

    /// Notes that details were left out without a call having failed (E23).
    pub(super) fn add_details_missing(&mut self) {
        self.details_missing = true;
    }

    /// What is not called any more.
    pub(in crate::worker) fn stops(&self) -> Arc<Stops> {
        Arc::clone(&self.stops)
    }

    /// The relay errors, in the order in which things failed. A message that concerns some of the request's observables
    /// names them; one that concerns all of them, or a whole family, does not.
    pub(in crate::worker) fn into_errors(self, values: &[&str], has_data: bool) -> Vec<RelayError> {
        let mut errors = Vec::new();
        for (failure, positions) in &self.entries {
            let error = relay_error(failure, has_data);
            let some = !positions.is_empty() && positions.len() < values.len() && positions.len() <= NAMED_LIMIT;
            // What our own quota had no room for concerns just those; what the service refuses, it refuses to all.
            if some && (reach(failure) == Reach::Observable || failure.is_not_permitted()) {
                errors.extend(positions.iter().map(|position| error.clone().about(values[*position])));
            } else {
                errors.push(error);
            }
        }
        if self.details_missing {
            errors.push(RelayError::details_missing());
        }
        error::distinct(errors)
    }
}
