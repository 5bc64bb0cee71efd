//! Alerts of one observable: what counts as none, and how far pages are followed.

use tracing::warn;
use url::Url;

use super::call::Spec;
use super::model::{Alert, Page};
use super::{DefenderError, Family, Session};

/// Pages of one list that are followed (`defender.md` 5.0).
const PAGES_LIMIT: usize = 50;

/// Alerts of one observable, in the order they came.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    /// All that were read; can be more than were wanted.
    pub alerts: Vec<Alert>,
    /// Whether there are further pages, which were not read.
    pub more: bool,
}

impl Session {
    /// The alerts at a path of the API; 404 means none, and so does 400 (`relay.md` 5.2).
    pub(super) async fn alerts(
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

    /// The address of a next page, if it is where the token may go: on Defender's own server.
    fn next_page(&self, link: &str) -> Option<Url> {
        let own = &self.inner.defender.shared.settings.defender_url;
        let url = own.join(link).ok()?;
        (url.origin() == own.origin() && url.username().is_empty() && url.password().is_none()).then_some(url)
    }
}
