//! Alerts when their quota would not last for all that waits, or did not (`DESIGN.md` 5): hunting says first which
//! observables have any, and REST is spent on those.
//!
//! Hunting sees 30 days; an observable that it knows no alert of is answered so, and the answer says that older ones were
//! not asked for. Where even the alerts that exist outrun the quota, the most recent ones get the calls, and of the others
//! is shown what hunting knows. It costs four hunting queries for a full batch: events (of everything, because they also
//! name the SHA-1 by which a file's alerts are known), alerts, evidence, and devices.

use std::collections::{HashMap, HashSet};

use super::answers::Depth;
use super::failures::Failures;
use super::gather::{Gatherer, Subject, ask, newest_sha1, numbered};
use crate::defender::model::{AlertDetails, RecentAlert};
use crate::defender::{Alerts, DefenderError, Family, Kind as Failed, Session, Sort, Sought};
use crate::mapping::hunted;
use crate::relay::Kind;

/// Alerts of one batch whose evidence is read at most: one query's worth. The most recent ones.
const EVIDENCE_LIMIT: usize = 500;

/// What screening found out about an observable that may have alerts.
struct Suspect {
    /// Among the subjects.
    at: usize,
    /// The file's, by which its alerts are asked for.
    sha1: Option<String>,
    /// The newest first, one more than the limit if there are more; `None` when hunting did not say.
    recent: Option<Vec<RecentAlert>>,
}

impl Suspect {
    /// When there was evidence of the last of its alerts; as text, which sorts well enough to say who goes first.
    fn newest(&self) -> Option<&str> {
        self.recent.as_ref()?.first().map(|alert| alert.last_evidence.as_str())
    }

    fn calls(&self, kind: Kind) -> usize {
        if kind == Kind::Sha256 && self.sha1.is_none() { 2 } else { 1 }
    }
}

impl Gatherer<'_> {
    /// Alerts of the observables at `late`, whose events are known, with as few calls as that takes.
    pub(super) async fn screened(&self, subjects: &mut [Subject<'_>], late: Vec<usize>, failures: &mut Failures) {
        let mut suspects = self.screen(subjects, late, failures).await;
        suspects.sort_by(|one, next| next.newest().cmp(&one.newest()));

        // The most recent alerts first, as far as the calls last. What hunting could not say anything about is asked for
        // in any case: there is nothing else to show of it.
        let (known, unknown): (Vec<Suspect>, Vec<Suspect>) =
            suspects.into_iter().partition(|suspect| suspect.recent.is_some());
        let calls = |suspect: &Suspect| suspect.calls(subjects[suspect.at].observable.kind);
        let plan = self.hasty.plan(known.iter().map(calls).sum());
        let mut left = plan.calls();
        let (mut asked, mut shown) = (Vec::new(), Vec::new());
        for suspect in known {
            match left.checked_sub(calls(&suspect)) {
                Some(rest) if shown.is_empty() => {
                    left = rest;
                    asked.push(suspect);
                }
                _ => shown.push(suspect),
            }
        }
        shown.extend(self.ask_suspects(&self.hasty, subjects, asked, failures).await);
        drop(plan);
        failures.stops().alerts_again();
        self.ask_suspects(self.session, subjects, unknown, failures).await;
        self.show_hunted(subjects, shown, failures).await;
        for subject in subjects {
            subject.events.truncate(subject.room);
        }
    }

    /// Which observables have alerts. Those that have none are answered herewith.
    async fn screen(&self, subjects: &mut [Subject<'_>], late: Vec<usize>, failures: &mut Failures) -> Vec<Suspect> {
        let mut suspects = Vec::new();
        let mut sought = Vec::new();
        for at in late {
            let subject = &subjects[at];
            let sha1 = match subject.observable.kind {
                Kind::Sha1 => Some(subject.observable.value.clone()),
                Kind::Sha256 | Kind::Md5 => newest_sha1(&subject.events),
                _ => None,
            };
            // The evidence of alerts has no MD5, and that of a file need not name its SHA-256.
            match &sha1 {
                Some(sha1) => sought.push(Sought { sort: Sort::Sha1, value: sha1.clone(), top: self.limit + 1 }),
                None if subject.observable.kind == Kind::Md5 => continue,
                None => sought.push(subject.sought(self.limit + 1)),
            }
            suspects.push(Suspect { at, sha1, recent: None });
        }
        if !failures.stops().allows(Family::Hunting) {
            return suspects;
        }
        let found = self.session.recent_alerts(&sought).await;
        for (suspect, found) in suspects.iter_mut().zip(found) {
            match found {
                Ok(recent) => {
                    let of_evidence =
                        || recent.iter().find(|alert| alert.sha1.len() == 40).map(|alert| alert.sha1.clone());
                    if subjects[suspect.at].observable.kind == Kind::Sha256 {
                        suspect.sha1 = suspect.sha1.take().or_else(of_evidence);
                    }
                    suspect.recent = Some(recent);
                }
                // Then its alerts are asked for as if there were no screening, after those that are known of.
                Err(error) => failures.stops().note(&error),
            }
        }
        suspects.retain(|suspect| {
            let none = suspect.recent.as_ref().is_some_and(Vec::is_empty);
            if none {
                subjects[suspect.at].depth = Depth::Recent;
            }
            !none
        });
        suspects
    }

    /// Asks for the alerts of these. Returns those that were not answered because the quota had less room than it seemed,
    /// and of which hunting knows something.
    async fn ask_suspects(
        &self,
        session: &Session,
        subjects: &mut [Subject<'_>],
        suspects: Vec<Suspect>,
        failures: &mut Failures,
    ) -> Vec<Suspect> {
        let stops = failures.stops();
        let found = {
            let (subjects, suspects) = (&*subjects, &suspects);
            let needs = |at: &usize| -> &'static [Family] {
                let suspect = &suspects[*at];
                let both = suspect.calls(subjects[suspect.at].observable.kind) == 2;
                if both { &[Family::Files, Family::Alerts] } else { &[Family::Alerts] }
            };
            let call = |at: usize| async move {
                let suspect = &suspects[at];
                match &suspect.sha1 {
                    Some(sha1) => self.file_alerts.of(session, sha1, self.limit).await,
                    None => self.alerts_of_one(session, subjects[suspect.at].observable).await,
                }
            };
            ask(numbered((0..suspects.len()).collect()), &stops, needs, call).await
        };
        let mut left = Vec::new();
        for (suspect, (_, result)) in suspects.into_iter().zip(found) {
            let subject = &mut subjects[suspect.at];
            let throttled = |error: &DefenderError| matches!(error.kind(), Failed::Throttled { .. });
            match result {
                Some(Ok(found)) => subject.take_alerts(self.limit, found),
                Some(Err(error)) if suspect.recent.is_none() || !throttled(&error) => {
                    subject.complete = false;
                    failures.add(&error, [subject.position]);
                }
                None if suspect.recent.is_none() => {
                    subject.complete = false;
                    failures.add_skipped(Family::Alerts, subject.position);
                }
                Some(Err(_)) | None => left.push(suspect),
            }
        }
        left
    }

    /// Answers with what hunting knows of alerts.
    async fn show_hunted(&self, subjects: &mut [Subject<'_>], shown: Vec<Suspect>, failures: &mut Failures) {
        let alerts = || shown.iter().flat_map(|suspect| suspect.recent.iter().flatten().take(self.limit));
        let mut newest: Vec<&RecentAlert> = alerts().collect();
        newest.sort_by(|one, next| next.last_evidence.cmp(&one.last_evidence));
        let mut seen = HashSet::new();
        let mut ids: Vec<String> = newest.into_iter().map(|alert| alert.id.clone()).collect();
        ids.retain(|id| seen.insert(id.clone()));
        ids.truncate(EVIDENCE_LIMIT);
        let mut details: HashMap<String, AlertDetails> = HashMap::new();
        if failures.stops().allows(Family::Hunting) {
            let found = self.session.alert_evidence(&ids).await;
            for (id, found) in ids.into_iter().zip(found) {
                match found {
                    Ok(found) => drop(details.insert(id, found)),
                    Err(error) => failures.add_best_effort(&error),
                }
            }
        }
        for suspect in shown {
            let subject = &mut subjects[suspect.at];
            let recent = suspect.recent.unwrap_or_default();
            let alerts = recent.iter().map(|alert| hunted::alert(alert, details.get(&alert.id))).collect();
            subject.take_alerts(self.limit, Alerts { alerts, more: false });
            subject.depth = Depth::Hunted;
        }
    }
}
