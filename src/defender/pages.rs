//! Lists that come in pages: which links are followed, and how far.

use serde::de::DeserializeOwned;
use url::Url;

use super::call::Spec;
use super::model::Page;
use super::{DefenderError, Session};

/// Pages of one list that are followed (`defender.md` 5.0).
pub(super) const PAGES_LIMIT: usize = 50;

impl Session {
    /// Every entry of a list, or as many as `stop` finds enough. What decides about a machine must not be decided from a
    /// part of a list, so one whose end is not reached is an error.
    ///
    /// A link that leads elsewhere is not followed, for the token must not travel; the rest of the list is then asked for
    /// with `$skip` (`defender.md` 5.0).
    pub(super) async fn every<T: DeserializeOwned>(
        &self,
        mut spec: Spec,
        stop: impl Fn(&[T]) -> bool,
    ) -> Result<Vec<T>, DefenderError> {
        let first = spec.url.clone();
        let mut found: Vec<T> = Vec::new();
        let mut not_followed = None;
        for _ in 0..PAGES_LIMIT {
            let page: Page<T> = self.call(&spec).await?;
            let empty = page.value.is_empty();
            found.extend(page.value);
            let Some(next) = page.next_link.filter(|link| !link.is_empty()) else { return Ok(found) };
            if stop(&found) {
                return Ok(found);
            }
            spec.url = match self.next_page(&next) {
                Some(url) if url != spec.url => url,
                // The same page again: the service does not take `$skip`.
                _ if empty || not_followed.as_ref() == Some(&next) => break,
                _ => skipping(&first, found.len()),
            };
            not_followed = Some(next);
        }
        Err(DefenderError::endless(spec.family))
    }

    /// The address of a next page, if it is where the token may go: on Defender's own server.
    pub(super) fn next_page(&self, link: &str) -> Option<Url> {
        let own = &self.inner.defender.shared.settings.defender_url;
        let url = own.join(link).ok()?;
        (url.origin() == own.origin() && url.username().is_empty() && url.password().is_none()).then_some(url)
    }
}

/// `first` without its first `entries` entries.
fn skipping(first: &Url, entries: usize) -> Url {
    let mut url = first.clone();
    let query = match first.query() {
        Some(query) if !query.is_empty() => format!("{query}&$skip={entries}"),
        _ => format!("$skip={entries}"),
    };
    url.set_query(Some(&query));
    url
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://api.example/api/machineactions", "https://api.example/api/machineactions?$skip=7")]
    #[case("https://api.example/a?$filter=x%20eq%20%27y%27", "https://api.example/a?$filter=x%20eq%20%27y%27&$skip=7")]
    fn the_rest_of_a_list_is_asked_for_by_its_first_address(#[case] first: Url, #[case] expected: &str) {
        assert_eq!(skipping(&first, 7).as_str(), expected);
    }
}
