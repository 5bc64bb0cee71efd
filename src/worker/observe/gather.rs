//! The calls of one batch, in the order and number that `relay.md` 5.2 to 5.5 and `DESIGN.md` 5 allow: alerts by REST (or
//! as `screen` has it, when their quota would not last, or did not), two or three hunting queries (events of MD5s, whose newest names
//! the file that alerts are asked by; all other events; devices), and the best-effort lookups.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::answers::{Answer, Depth};
use super::failures::{Failures, Stops};
use super::file_alerts::FileAlerts;
use crate::defender::model::{Alert, Event};
use crate::defender::{Alerts, DefenderError, Family, Plan, Session, Sort, Sought};
use crate::mapping::{self, Lookups, sighting};
use crate::relay::limit::{self, Share};
use crate::relay::{Kind, Observable};

/// Calls of one request under way at a time; the session holds further ones back (`relay.md` 4.3).
const CALLS: usize = 5;

/// File profiles read for one request at most (`relay.md` 5.5): each costs a REST call.
const PROFILE_LIMIT: usize = 50;

/// The longest that alerts and file profiles wait for a permit; then hunting is asked for what it knows of them, and the rest
/// of the request's time is for its queries, which keep a pace. A fifth of the usual 50 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request that has less time than usual waits one in so many parts of it.
const PATIENCE_PART: u32 = 5;

/// One request's way of asking.
pub(super) struct Gatherer<'a> {
    pub(super) session: &'a Session,
    /// The same, where there is something else to do when the quota of alerts is used up.
    pub(super) hasty: Session,
    /// `L` of `relay.md` 5.3.
    pub(super) limit: usize,
    pub(super) portal_url: &'a str,
    pub(super) tenant_id: &'a str,
    pub(super) file_alerts: FileAlerts,
    /// File profiles that may still be read for this request.
    pub(super) profiles_left: AtomicUsize,
}

/// What was found of one observable.
pub(super) struct Found {
    pub(super) answer: Answer,
    /// Nothing failed that could have added to it.
    pub(super) complete: bool,
}

/// An observable on its way through the calls.
pub(super) struct Subject<'a> {
    pub(super) position: usize,
    pub(super) observable: &'a Observable,
    /// Newest first, cut to the limit.
    pub(super) alerts: Vec<Alert>,
    /// Newest first, cut to what the alerts leave of the limit.
    pub(super) events: Vec<Event>,
    pub(super) more_alerts: bool,
    /// How its alerts were asked for.
    pub(super) depth: Depth,
    /// How many events may still be shown.
    pub(super) room: usize,
    pub(super) complete: bool,
}

impl Subject<'_> {
    fn is_md5(&self) -> bool {
        self.observable.kind == Kind::Md5
    }

    /// How hunting is asked for the newest `top` rows about it.
    pub(super) fn sought(&self, top: usize) -> Sought {
        Sought { sort: sort_of(self.observable.kind), value: self.observable.value.clone(), top }
    }

    /// Keeps the newest of its alerts that the limit allows, and what they leave for events.
    pub(super) fn take_alerts(&mut self, limit: usize, found: Alerts) {
        let mut alerts = found.alerts;
        mapping::sort_alerts(&mut alerts);
        let Share { alerts: keep, events, more_alerts } =
            limit::share(u32::try_from(limit).unwrap_or(u32::MAX), alerts.len(), found.more);
        alerts.truncate(keep);
        self.alerts = alerts;
        self.more_alerts = more_alerts;
        self.room = events;
    }
}

impl<'a> Gatherer<'a> {
    /// A request's way of asking, with nothing asked yet. `limit` is `L` of `relay.md` 5.3.
    pub(super) fn new(session: &'a Session, limit: usize, portal_url: &'a str, tenant_id: &'a str) -> Self {
        let profiles_left = AtomicUsize::new(PROFILE_LIMIT);
        let hasty = session.hasty(PATIENCE_PART, PATIENCE);
        Self { session, hasty, limit, portal_url, tenant_id, file_alerts: FileAlerts::default(), profiles_left }
    }

    /// Asks about all observables of `batch`, which come with their positions in the request.
    pub(super) async fn gather(&self, batch: &[(usize, &Observable)], failures: &mut Failures) -> Vec<(usize, Found)> {
        let mut subjects: Vec<Subject<'_>> = batch
            .iter()
            .map(|(position, observable)| Subject {
                position: *position,
                observable,
                alerts: Vec::new(),
                events: Vec::new(),
                more_alerts: false,
                depth: Depth::All,
                room: self.limit,
                complete: true,
            })
            .collect();
        let calls = subjects.iter().map(|subject| alert_calls(subject.observable.kind)).sum();
        let late = match self.hasty.plan_all(calls) {
            Some(plan) => {
                let late = self.alerts(&mut subjects, plan, failures).await;
                let open = |subject: &Subject<'_>| subject.room > 0 && !subject.is_md5();
                self.events(&mut subjects, open, failures).await;
                late
            }
            None => {
                self.events(&mut subjects, |_| true, failures).await;
                (0..subjects.len()).collect()
            }
        };
        if !late.is_empty() {
            failures.stops().alerts_again();
            self.screened(&mut subjects, late, failures).await;
        }
        let (lookups, all_known) = self.lookups(&subjects, failures).await;
        subjects
            .into_iter()
            .map(|subject| {
                let complete = subject.complete && all_known;
                (subject.position, Found { answer: answer(subject, &lookups), complete })
            })
            .collect()
    }

    /// Alerts of every observable. The alert route of a file takes SHA-1 only: a SHA-256 is looked up first, and of an
    /// MD5 only events are known, the newest of which may name a SHA-1 (`relay.md` 5.2). Returns whose alerts the quota had
    /// no room for.
    async fn alerts(&self, subjects: &mut [Subject<'_>], plan: Plan, failures: &mut Failures) -> Vec<usize> {
        let is_md5 = |subject: &Subject<'_>| subject.is_md5();
        let plain: Vec<(usize, &Observable)> = subjects
            .iter()
            .enumerate()
            .filter(|(_, subject)| !subject.is_md5())
            .map(|(at, subject)| (at, subject.observable))
            .collect();
        let md5s: Vec<Sought> = subjects.iter().filter(|s| is_md5(s)).map(|s| s.sought(self.limit)).collect();
        let stops = failures.stops();
        let plan = std::sync::Mutex::new(plan);
        let done = |kind| plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner).done(alert_calls(kind));
        // Nothing of the one depends on the other.
        let (found, hunted) =
            tokio::join!(self.alerts_of(plain, &stops, done), async { self.session.events(&md5s).await });
        let mut late = self.note_alerts(subjects, found, failures);
        self.note_events(subjects, is_md5, hunted, failures);

        let by_sha1 = subjects.iter().enumerate().filter(|(_, subject)| subject.is_md5());
        let by_sha1: Vec<_> = by_sha1.filter_map(|(at, subject)| Some((at, newest_sha1(&subject.events)?))).collect();
        let found = self.alerts_by_sha1(by_sha1, &stops).await;
        late.extend(self.note_alerts(subjects, found, failures));
        for subject in subjects.iter_mut().filter(|subject| subject.is_md5()) {
            subject.events.truncate(subject.room);
        }
        late
    }

    async fn alerts_of(
        &self,
        wanted: Vec<(usize, &Observable)>,
        stops: &Stops,
        done: impl Fn(Kind),
    ) -> Answers<Alerts> {
        let needs = |observable: &&Observable| -> &'static [Family] {
            if observable.kind == Kind::Sha256 { &[Family::Files, Family::Alerts] } else { &[Family::Alerts] }
        };
        let done = &done;
        ask(wanted, stops, needs, |observable| async move {
            let found = self.alerts_of_one(&self.hasty, observable).await;
            done(observable.kind);
            found
        })
        .await
    }

    pub(super) async fn alerts_of_one(
        &self,
        session: &Session,
        observable: &Observable,
    ) -> Result<Alerts, DefenderError> {
        let value = &observable.value;
        match observable.kind {
            Kind::Sha1 => self.file_alerts.of(session, value, self.limit).await,
            Kind::Sha256 => match session.file(value).await?.and_then(|file| file.sha1) {
                Some(sha1) if !sha1.is_empty() => self.file_alerts.of(session, &sha1, self.limit).await,
                _ => Ok(Alerts::default()),
            },
            Kind::Domain => session.domain_alerts(value, self.limit).await,
            Kind::Ip | Kind::Ipv6 => session.ip_alerts(value, self.limit).await,
            Kind::Md5 | Kind::MachineId => Ok(Alerts::default()),
        }
    }

    async fn alerts_by_sha1(&self, wanted: Vec<(usize, String)>, stops: &Stops) -> Answers<Alerts> {
        let call = |sha1: String| async move { self.file_alerts.of(&self.hasty, &sha1, self.limit).await };
        ask(wanted, stops, |_| &[Family::Alerts], call).await
    }

    /// Returns those that the quota had no room for.
    fn note_alerts(&self, subjects: &mut [Subject<'_>], found: Answers<Alerts>, failures: &mut Failures) -> Vec<usize> {
        let mut late = Vec::new();
        for (at, result) in found {
            let subject = &mut subjects[at];
            match result {
                Some(Ok(found)) => subject.take_alerts(self.limit, found),
                Some(Err(error)) if error.is_not_permitted() => late.push(at),
                None if failures.stops().are_alerts_late() => late.push(at),
                Some(Err(error)) => {
                    subject.complete = false;
                    failures.add(&error, [subject.position]);
                }
                // Not asked: the failure that stopped the family says so.
                None => {
                    subject.complete = false;
                    failures.add_skipped(Family::Alerts, subject.position);
                }
            }
        }
        late
    }

    /// Events of the observables that `wanted` holds for, as many as each has room for: one query for all.
    pub(super) async fn events(
        &self,
        subjects: &mut [Subject<'_>],
        wanted: impl Fn(&Subject<'_>) -> bool,
        failures: &mut Failures,
    ) {
        if !failures.stops().allows(Family::Hunting) {
            for subject in subjects.iter_mut().filter(|subject| wanted(subject)) {
                subject.complete = false;
                failures.add_skipped(Family::Hunting, subject.position);
            }
            return;
        }
        let sought: Vec<Sought> =
            subjects.iter().filter(|subject| wanted(subject)).map(|subject| subject.sought(subject.room)).collect();
        let hunted = self.session.events(&sought).await;
        self.note_events(subjects, wanted, hunted, failures);
    }

    fn note_events(
        &self,
        subjects: &mut [Subject<'_>],
        wanted: impl Fn(&Subject<'_>) -> bool,
        hunted: Vec<Result<Vec<Event>, DefenderError>>,
        failures: &mut Failures,
    ) {
        for (subject, events) in subjects.iter_mut().filter(|subject| wanted(subject)).zip(hunted) {
            match events {
                Ok(events) => {
                    subject.events = events;
                    mapping::sort_events(&mut subject.events);
                }
                Err(error) => {
                    subject.complete = false;
                    failures.add(&error, [subject.position]);
                }
            }
        }
    }
}

/// Calls that finding the alerts of an observable costs, all of one quota; those of an MD5 once its events are known.
fn alert_calls(kind: Kind) -> usize {
    match kind {
        Kind::Sha256 => 2,
        Kind::Sha1 | Kind::Md5 | Kind::Ip | Kind::Ipv6 | Kind::Domain => 1,
        Kind::MachineId => 0,
    }
}

/// How hunting calls this type: both address families are one there. Machines are not observed.
fn sort_of(kind: Kind) -> Sort {
    match kind {
        Kind::Sha1 => Sort::Sha1,
        Kind::Sha256 => Sort::Sha256,
        Kind::Md5 => Sort::Md5,
        Kind::Ip | Kind::Ipv6 => Sort::Ip,
        Kind::Domain | Kind::MachineId => Sort::Domain,
    }
}

/// Results by number; `None` where the call was not made because one before it ended its family.
pub(super) type Answers<T> = Vec<(usize, Option<Result<T, DefenderError>>)>;

/// Makes the calls, [`CALLS`] at a time and in order, as long as what they need has not been stopped.
pub(super) async fn ask<I, T, F>(
    wanted: Vec<(usize, I)>,
    stops: &Stops,
    needs: impl Fn(&I) -> &'static [Family],
    call: impl Fn(I) -> F,
) -> Answers<T>
where
    F: Future<Output = Result<T, DefenderError>>,
{
    let (call, needs) = (&call, &needs);
    stream::iter(wanted)
        .map(|(at, item)| async move {
            if !needs(&item).iter().all(|family| stops.allows(*family)) {
                return (at, None);
            }
            let result = call(item).await;
            if let Err(error) = &result {
                stops.note(error);
            }
            (at, Some(result))
        })
        .buffered(CALLS)
        .collect()
        .await
}

pub(super) fn numbered<T>(items: Vec<T>) -> Vec<(usize, T)> {
    items.into_iter().enumerate().collect()
}

/// The SHA-1 of the newest row that has one.
pub(super) fn newest_sha1(events: &[Event]) -> Option<String> {
    events.iter().find_map(|event| match event {
        Event::File(event) if event.hashes.sha1.len() == 40 => Some(event.hashes.sha1.to_ascii_lowercase()),
        _ => None,
    })
}

/// Maps what was found of one observable.
fn answer(subject: Subject<'_>, lookups: &Lookups) -> Answer {
    let mut seen = HashSet::new();
    let mut sightings = Vec::with_capacity(subject.alerts.len() + subject.events.len());
    let mut timeless = 0;
    let alerts = subject.alerts.iter().map(|alert| sighting::from_alert(subject.observable, alert, lookups));
    let events = subject.events.iter().map(|event| sighting::from_event(subject.observable, event, lookups));
    for mapped in alerts.chain(events) {
        match mapped {
            Some(sighting) if seen.insert(sighting.id.clone()) => sightings.push(sighting.render()),
            Some(_) => {}
            None => timeless += 1,
        }
    }
    if timeless > 0 {
        tracing::warn!(sightings = timeless, "alerts or events without a usable time were left out");
    }
    Answer { sightings, more_alerts: subject.more_alerts, depth: subject.depth }
}
