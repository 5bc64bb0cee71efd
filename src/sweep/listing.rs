//! Reading a list of hosts to its end.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::wanted::{self, Reasons};
use crate::cognito::model::HostsFilter;
use crate::cognito::{Cognito, CognitoError, Priority};
use crate::containment::Policy;

/// How long one page may take, its repeats and the wait for permits included: a sweep gives way to everything else.
const PAGE_LIMIT: Duration = Duration::from_secs(120);

/// The most pages that are read: a million hosts are more than any brain has.
const PAGES_LIMIT: u32 = 5_000;

/// A host that is worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Cognito's id.
    pub host: u64,
    /// Cognito's name.
    pub name: Option<String>,
    /// Why.
    pub reasons: Reasons,
    /// See [`wanted::is_untouched`].
    pub untouched: bool,
}

/// Reads all pages of the hosts that `filter` lets through, and returns those that matter, each once, in Cognito's order.
///
/// Pages shift while tags come and go, so a host may stand on two pages, or, between two, on none; the next sweep finds
/// that one.
///
/// # Errors
/// As every call to Cognito. A list that is not read to its end is none: what it did not show counts as gone.
pub async fn read(
    cognito: &Cognito,
    filter: &HostsFilter,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Found>, CognitoError> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for number in 1..=PAGES_LIMIT {
        let session = cognito.session(Priority::Normal, Instant::now() + PAGE_LIMIT);
        let page = session.hosts(filter, number).await?;
        let before = seen.len();
        for host in &page.hosts {
            if !seen.insert(host.id) {
                continue;
            }
            if let Some(reasons) = wanted::reasons(policy, host, now) {
                let untouched = wanted::is_untouched(policy, host);
                found.push(Found { host: host.id, name: host.name.clone(), reasons, untouched });
            }
        }
        if page.last {
            break;
        }
        if seen.len() == before {
            tracing::warn!(page = number, "Cognito lists the same hosts page after page; the list counts as ended");
            break;
        }
    }
    Ok(found)
}

/// The list of hosts by tags and states.
#[must_use]
pub fn by_tags(policy: &Policy) -> HostsFilter {
    HostsFilter { tags: wanted::listed_tags(policy), ..HostsFilter::default() }
}

/// The list of hosts by scores, if there are thresholds.
#[must_use]
pub fn by_scores(policy: &Policy) -> Option<HostsFilter> {
    let (threat, certainty) = policy.thresholds?;
    Some(HostsFilter { tags: Vec::new(), threat_gte: Some(threat), certainty_gte: Some(certainty) })
}
