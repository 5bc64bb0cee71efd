//! Alerts of one observable or machine: what counts as none, and how far pages are followed.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use serde::Deserialize;
use tracing::warn;

use super::call::Spec;
use super::machines::device_id;
use super::model::{Alert, Page};
use super::pages::PAGES_LIMIT;
use super::{Account, DefenderError, Family, Session};

/// Alerts of one observable, in the order they came.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    /// All that were read; can be more than were wanted.
    pub alerts: Vec<Alert>,
    /// Whether there are further pages, which were not read.
    pub more: bool,
}

impl Session {
    /// The alerts at a path of the API, asked for once for all who want them now.
    pub(super) async fn alerts(
        &self,
        segments: &[&str],
        template: &'static str,
        want: usize,
        may_be_refused: bool,
    ) -> Result<Alerts, DefenderError> {
        let lists = &self.inner.defender.shared.alert_lists;
        let key = (Arc::clone(&self.inner.account), format!("{}|{want}", segments.join("/")));
        let fetch = || self.read_alerts(segments, template, want, may_be_refused);
        let found = self.once(Family::Alerts, lists, key.clone(), fetch).await;
        // It was there to be waited for; the next to want it gets what is true then.
        lists.invalidate(&key).await;
        found
    }

    /// The alerts at a path of the API; 404 means none, and so does 400 (`relay.md` 5.2).
    async fn read_alerts(
        &self,
        segments: &[&str],
        template: &'static str,
        want: usize,
        may_be_refused: bool,
    ) -> Result<Alerts, DefenderError> {
        let mut spec = Spec::get(Family::Alerts, self.api(segments, None), template);
        let mut found = Alerts::default();
        for _ in 0..PAGES_LIMIT {
            let page: Page<Alert> = match self.call(&spec).await {
                Ok(page) => page,
                Err(error) if error.is_answer(404) => return Ok(found),
                Err(error) if error.is_answer(400) => {
                    // Values are checked before, so this is a refusal of something well formed (`relay.md` 5.2).
                    // IPv6 is known to be refused.
                    if !may_be_refused {
                        warn!(url.template = template, "defender refused a well-formed value, taken for no alerts");
                    }
                    return Ok(found);
                }
                Err(error) => return Err(error),
            };
            found.alerts.extend(page.value);
            let next = page.next_link.filter(|link| !link.is_empty());
            found.more = next.is_some();
            let Some(next) = next.filter(|_| found.alerts.len() <= want) else {
                return Ok(found);
            };
            match self.next_page(&next) {
                Some(url) if url != spec.url => spec.url = url,
                _ => {
                    warn!(url.template = template, "the next page is not on the same server, not followed");
                    return Ok(found);
                }
            }
        }
        warn!(url.template = template, pages = PAGES_LIMIT, "too many pages, the rest is not read");
        Ok(found)
    }

    /// How many alerts of a machine are not resolved, `cap` standing for that many and more; `None` when Defender does not
    /// know the machine. Read until `cap` is reached. `GET /machines/{id}/alerts` (`defender.md` 5.9).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn open_alerts(&self, machine_id: &str, cap: usize) -> Result<Option<usize>, DefenderError> {
        let id = device_id(Family::Alerts, machine_id)?;
        let spec = Spec::get(Family::Alerts, self.api(&["machines", &id, "alerts"], None), "/api/machines/{id}/alerts");
        match self.every::<AlertStatus>(spec, |read| open(read) >= cap).await {
            Ok(read) => Ok(Some(open(&read).min(cap))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Calls for alerts and file profiles, which share a quota (`defender.md` 3.1), that are going to be made. Requests that
/// ask what there is room for count those of others in; dropped, what was not made is free again.
#[derive(Debug)]
pub struct Plan {
    session: Session,
    calls: u32,
}

impl Session {
    /// Plans so many calls, or none if the quota would not last for them before this request ends, beside those that are
    /// planned already.
    #[must_use]
    pub fn plan_all(&self, calls: usize) -> Option<Plan> {
        let plan = self.plan(calls);
        (plan.calls() >= calls).then_some(plan)
    }

    /// Plans as many of these calls as the quota has room for.
    #[must_use]
    pub fn plan(&self, calls: usize) -> Plan {
        let room = self.room(Family::Alerts);
        let mut planned = self.planned();
        let others = planned.entry(Arc::clone(&self.inner.account)).or_default();
        let calls = u32::try_from(calls).unwrap_or(u32::MAX).min(room.saturating_sub(*others));
        *others = others.saturating_add(calls);
        if *others == 0 {
            planned.remove(&self.inner.account);
        }
        drop(planned);
        Plan { session: self.clone(), calls }
    }

    fn planned(&self) -> MutexGuard<'_, HashMap<Arc<Account>, u32>> {
        self.inner.defender.shared.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    /// How many calls are planned still.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls as usize
    }

    /// So many calls were made, or will not be.
    pub fn done(&mut self, calls: usize) {
        let calls = u32::try_from(calls).unwrap_or(u32::MAX).min(self.calls);
        self.calls -= calls;
        let mut planned = self.session.planned();
        if let Some(all) = planned.get_mut(&self.session.inner.account) {
            *all = all.saturating_sub(calls);
            if *all == 0 {
                planned.remove(&self.session.inner.account);
            }
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        self.done(self.calls());
    }
}

/// As much of an alert as is needed to count it.
#[derive(Deserialize)]
struct AlertStatus {
    #[serde(default)]
    status: Option<String>,
}

fn open(alerts: &[AlertStatus]) -> usize {
    let resolved = |alert: &AlertStatus| alert.status.as_deref().is_some_and(|is| is.eq_ignore_ascii_case("Resolved"));
    alerts.iter().filter(|alert| !resolved(alert)).count()
}
