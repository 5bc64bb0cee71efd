//! The calls of one batch, in the order and number that `relay.md` 5.2 to 5.5 and `DESIGN.md` 5 allow: alerts by REST,
//! at most five hunting queries (events of MD5s, of other hashes, of addresses, of domains; devices), and the best-effort
//! lookups.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};

use super::answers::Answer;
use super::failures::{Failures, Stops};
use super::file_alerts::FileAlerts;
use crate::defender::model::{Alert, FileEvent, Hashes};
use crate::defender::{Alerts, DefenderError, Family, HashSets, Hunted, Session};
use crate::mapping::{self, Device, Event, Lookups, sighting};
use crate::relay::limit::{self, Share};
use crate::relay::{Kind, Observable};

/// Calls of one request under way at a time; the session holds further ones back (`relay.md` 4.3).
const CALLS: usize = 5;

/// File profiles read for one request at most (`relay.md` 5.5): each costs a REST call.
const PROFILE_LIMIT: usize = 50;

/// Machines read by REST for one batch at most: those that hunting knows no operating system of.
const MACHINE_LIMIT: usize = 50;

/// Devices named in one batch's query for their context. An id takes 43 bytes of the query's 64 KB (`defender.md` 6.2).
const DEVICE_LIMIT: usize = 1_000;

/// One request's way of asking.
pub(super) struct Gatherer<'a> {
    session: &'a Session,
    /// `L` of `relay.md` 5.3.
    limit: usize,
    portal_url: &'a str,
    tenant_id: &'a str,
    file_alerts: FileAlerts,
    /// File profiles that may still be read for this request.
    profiles_left: AtomicUsize,
}

/// What was found of one observable.
pub(super) struct Found {
    pub(super) answer: Answer,
    /// Nothing failed that could have added to it.
    pub(super) complete: bool,
}

/// An observable on its way through the calls.
struct Subject<'a> {
    position: usize,
    observable: &'a Observable,
    /// Newest first, cut to the limit.
    alerts: Vec<Alert>,
    /// Newest first, cut to what the alerts leave of the limit.
    events: Vec<Event>,
    more_alerts: bool,
    /// How many events may still be shown.
    room: usize,
    complete: bool,
}

impl<'a> Gatherer<'a> {
    /// A request's way of asking, with nothing asked yet. `limit` is `L` of `relay.md` 5.3.
    pub(super) fn new(session: &'a Session, limit: usize, portal_url: &'a str, tenant_id: &'a str) -> Self {
        let profiles_left = AtomicUsize::new(PROFILE_LIMIT);
        Self { session, limit, portal_url, tenant_id, file_alerts: FileAlerts::default(), profiles_left }
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
                room: self.limit,
                complete: true,
            })
            .collect();
        self.alerts(&mut subjects, failures).await;
        self.events(&mut subjects, failures).await;
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
    /// MD5 only events are known, the newest of which may name a SHA-1 (`relay.md` 5.2).
    async fn alerts(&self, subjects: &mut [Subject<'_>], failures: &mut Failures) {
        let md5s = values(subjects, |kind| kind == Kind::Md5);
        let plain: Vec<(usize, &Observable)> = subjects
            .iter()
            .enumerate()
            .filter(|(_, subject)| subject.observable.kind != Kind::Md5)
            .map(|(at, subject)| (at, subject.observable))
            .collect();
        let sets = HashSets { md5: &md5s, ..HashSets::default() };
        let stops = failures.stops();
        // Nothing of the one depends on the other.
        let (found, mut hunted) = tokio::join!(self.alerts_of(plain, &stops), async {
            if md5s.is_empty() { Hunted::new() } else { self.session.file_events(sets, self.limit).await }
        });
        self.note_alerts(subjects, found, failures);

        let mut by_sha1 = Vec::new();
        for (at, subject) in subjects.iter_mut().enumerate().filter(|(_, s)| s.observable.kind == Kind::Md5) {
            match hunted.remove(&hunting_key(subject.observable)) {
                Some(Ok(rows)) => {
                    subject.events = rows.into_iter().map(Event::File).collect();
                    mapping::sort_events(&mut subject.events);
                    if let Some(sha1) = newest_sha1(&subject.events) {
                        by_sha1.push((at, sha1));
                    }
                }
                Some(Err(error)) => {
                    subject.complete = false;
                    failures.add(&error, [subject.position]);
                }
                None => {}
            }
        }
        if by_sha1.is_empty() {
            return;
        }
        let found = ask(
            by_sha1,
            &stops,
            |_| &[Family::Alerts],
            |sha1| async move { self.file_alerts.of(self.session, &sha1, self.limit).await },
        )
        .await;
        self.note_alerts(subjects, found, failures);
        for subject in subjects.iter_mut().filter(|subject| subject.observable.kind == Kind::Md5) {
            subject.events.truncate(subject.room);
        }
    }

    async fn alerts_of(&self, wanted: Vec<(usize, &Observable)>, stops: &Stops) -> Answers<Alerts> {
        let needs = |observable: &&Observable| -> &'static [Family] {
            if observable.kind == Kind::Sha256 { &[Family::Files, Family::Alerts] } else { &[Family::Alerts] }
        };
        ask(wanted, stops, needs, |observable| async move {
            let value = &observable.value;
            match observable.kind {
                Kind::Sha1 => self.file_alerts.of(self.session, value, self.limit).await,
                Kind::Sha256 => match self.session.file(value).await?.and_then(|file| file.sha1) {
                    Some(sha1) if !sha1.is_empty() => self.file_alerts.of(self.session, &sha1, self.limit).await,
                    _ => Ok(Alerts::default()),
                },
                Kind::Domain => self.session.domain_alerts(value, self.limit).await,
                Kind::Ip | Kind::Ipv6 => self.session.ip_alerts(value, self.limit).await,
                Kind::Md5 | Kind::MachineId => Ok(Alerts::default()),
            }
        })
        .await
    }

    fn note_alerts(&self, subjects: &mut [Subject<'_>], found: Answers<Alerts>, failures: &mut Failures) {
        for (at, result) in found {
            let subject = &mut subjects[at];
            match result {
                Some(Ok(found)) => {
                    let mut alerts = found.alerts;
                    mapping::sort_alerts(&mut alerts);
                    let Share { alerts: keep, events, more_alerts } =
                        limit::share(u32::try_from(self.limit).unwrap_or(u32::MAX), alerts.len(), found.more);
                    alerts.truncate(keep);
                    subject.alerts = alerts;
                    subject.more_alerts = more_alerts;
                    subject.room = events;
                }
                Some(Err(error)) => {
                    subject.complete = false;
                    failures.add(&error, [subject.position]);
                }
                // Not asked: the failure that stopped the family says so.
                None => subject.complete = false,
            }
        }
    }

    /// Events of every observable whose alerts leave room: one query for each table and column.
    async fn events(&self, subjects: &mut [Subject<'_>], failures: &mut Failures) {
        let wanting = |subject: &Subject<'_>| subject.room > 0 && subject.observable.kind != Kind::Md5;
        if !failures.stops().allows(Family::Hunting) {
            for subject in subjects.iter_mut().filter(|subject| wanting(subject)) {
                subject.complete = false;
            }
            return;
        }
        let open = |wanted: fn(Kind) -> bool| -> Vec<String> {
            let open = subjects.iter().filter(|subject| wanting(subject) && wanted(subject.observable.kind));
            open.map(|subject| subject.observable.value.clone()).collect()
        };
        let (sha1s, sha256s) = (open(|kind| kind == Kind::Sha1), open(|kind| kind == Kind::Sha256));
        let (ips, domains) = (open(|kind| matches!(kind, Kind::Ip | Kind::Ipv6)), open(|kind| kind == Kind::Domain));
        let top = subjects.iter().filter(|subject| wanting(subject)).map(|subject| subject.room).max().unwrap_or(0);
        let hashes = HashSets { sha1: &sha1s, sha256: &sha256s, md5: &[] };
        let (files, by_ip, by_domain) = tokio::join!(
            async {
                if sha1s.is_empty() && sha256s.is_empty() {
                    Hunted::new()
                } else {
                    self.session.file_events(hashes, top).await
                }
            },
            async { if ips.is_empty() { Hunted::new() } else { self.session.network_events_by_ip(&ips, top).await } },
            async {
                if domains.is_empty() {
                    Hunted::new()
                } else {
                    self.session.network_events_by_domain(&domains, top).await
                }
            },
        );
        let mut hunted: HashMap<String, Result<Vec<Event>, DefenderError>> = HashMap::new();
        let events = |rows: Vec<FileEvent>| rows.into_iter().map(Event::File).collect();
        hunted.extend(files.into_iter().map(|(key, rows)| (key, rows.map(events))));
        for (key, rows) in by_ip.into_iter().chain(by_domain) {
            hunted.insert(key, rows.map(|rows| rows.into_iter().map(Event::Network).collect()));
        }
        for subject in subjects.iter_mut().filter(|subject| wanting(subject)) {
            match hunted.remove(&hunting_key(subject.observable)) {
                Some(Ok(mut events)) => {
                    mapping::sort_events(&mut events);
                    events.truncate(subject.room);
                    subject.events = events;
                }
                Some(Err(error)) => {
                    subject.complete = false;
                    failures.add(&error, [subject.position]);
                }
                None => {}
            }
        }
    }

    /// Devices and file profiles that the sightings name; best effort. The second member says that nothing failed.
    async fn lookups(&self, subjects: &[Subject<'_>], failures: &mut Failures) -> (Lookups, bool) {
        let alerts = || subjects.iter().flat_map(|subject| &subject.alerts);
        let events = || subjects.iter().flat_map(|subject| &subject.events);
        let mut devices = mapping::wanted_devices(alerts(), events());
        let mut profiles = mapping::wanted_profiles(alerts(), events());
        // Batches follow each other, so nobody else takes from what is left.
        let profiles_left = self.profiles_left.load(Ordering::Relaxed);
        let mut cut = devices.len() > DEVICE_LIMIT || profiles.len() > profiles_left;
        devices.truncate(DEVICE_LIMIT);
        profiles.truncate(profiles_left);
        self.profiles_left.fetch_sub(profiles.len(), Ordering::Relaxed);

        let stops = failures.stops();
        let hunting = stops.allows(Family::Hunting) && !devices.is_empty();
        let (files, (contexts, failed)) = tokio::join!(
            ask(
                numbered(profiles),
                &stops,
                |_| &[Family::Files],
                |hash| async move {
                    let file = self.session.file(&hash).await?;
                    Ok((hash, file))
                }
            ),
            async { if hunting { self.session.device_contexts(&devices).await } else { (HashMap::new(), None) } },
        );
        let mut all_known = true;
        let mut lookups = Lookups {
            portal_url: self.portal_url.to_owned(),
            tenant_id: self.tenant_id.to_owned(),
            ..Lookups::default()
        };
        for (_, result) in files {
            match result {
                Some(Ok((hash, Some(file)))) => {
                    lookups.files.insert(hash, Hashes::from(&file));
                }
                Some(Ok((_, None))) => {}
                Some(Err(error)) => {
                    all_known = false;
                    failures.add_best_effort(&error);
                }
                None => all_known = false,
            }
        }
        if let Some(error) = failed {
            all_known = false;
            failures.add_best_effort(&error);
        }
        let mut without_os = Vec::new();
        for id in devices {
            let device = contexts
                .get(&id)
                .map(|context| Device { os: mapping::os_of_context(context), adapters: context.adapters.clone() });
            let device = device.unwrap_or_default();
            if device.os.is_none() {
                without_os.push(id.clone());
            }
            lookups.devices.insert(id, device);
        }
        cut |= without_os.len() > MACHINE_LIMIT;
        without_os.truncate(MACHINE_LIMIT);
        let machines = ask(
            numbered(without_os),
            &stops,
            |_| &[Family::Machines],
            |id| async move {
                let machine = self.session.machine(&id).await?;
                Ok((id, machine))
            },
        );
        for (_, result) in machines.await {
            match result {
                Some(Ok((id, Some(machine)))) => {
                    if let Some(device) = lookups.devices.get_mut(&id) {
                        device.os = mapping::os_of_machine(&machine);
                    }
                }
                Some(Ok((_, None))) => {}
                Some(Err(error)) => {
                    all_known = false;
                    failures.add_best_effort(&error);
                }
                None => all_known = false,
            }
        }
        if cut {
            failures.add_details_missing();
        }
        (lookups, all_known && !cut)
    }
}

/// Results by number; `None` where the call was not made because one before it ended its family.
type Answers<T> = Vec<(usize, Option<Result<T, DefenderError>>)>;

/// Makes the calls, [`CALLS`] at a time and in order, as long as what they need has not been stopped.
async fn ask<I, T, F>(
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

fn numbered<T>(items: Vec<T>) -> Vec<(usize, T)> {
    items.into_iter().enumerate().collect()
}

fn values(subjects: &[Subject<'_>], wanted: impl Fn(Kind) -> bool) -> Vec<String> {
    let wanted = subjects.iter().filter(|subject| wanted(subject.observable.kind));
    wanted.map(|subject| subject.observable.value.clone()).collect()
}

/// How hunting rows name their observable: both address families are `ip`.
fn hunting_key(observable: &Observable) -> String {
    let kind = match observable.kind {
        Kind::Ipv6 => Kind::Ip,
        kind => kind,
    };
    format!("{}:{}", kind.as_str(), observable.value)
}

/// The SHA-1 of the newest row that has one.
fn newest_sha1(events: &[Event]) -> Option<String> {
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
    Answer { sightings, more_alerts: subject.more_alerts }
}
