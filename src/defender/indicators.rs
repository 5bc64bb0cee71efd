//! Indicators (`defender.md` 5.12): what Defender blocks, allows or watches for.
//!
//! A POST is an upsert by value and type, so it may write over somebody else's: look before you write. Neither it nor a
//! DELETE is repeated once it was sent (`relay.md` 7.3), though either could be: whoever asked is told, and asks again.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::call::Spec;
use super::machines::filtered;
use super::model::Indicator;
use super::{DefenderError, Family, Session};

/// Values that one call of the list is asked for. The longest domain names then make an address of some 7 KB, which every
/// server takes.
pub const INDICATOR_BATCH: usize = 20;

/// An indicator's id: digits, of a number of 64 bits.
const ID_LIMIT_BYTES: usize = 20;

/// An indicator to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewIndicator<'a> {
    /// In normal form.
    pub indicator_value: &'a str,
    /// `FileSha1`, `FileSha256`, `FileMd5`, `IpAddress`, `DomainName`.
    pub indicator_type: &'a str,
    /// `Allowed`, `Audit`, `Block`, `BlockAndRemediate`.
    pub action: &'a str,
    /// Required by the service.
    pub title: &'a str,
    /// Required by the service.
    pub description: &'a str,
    /// `High`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<&'a str>,
    /// Must be true with `Audit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_alert: Option<bool>,
}

/// What a DELETE is answered with.
#[derive(Deserialize)]
struct Nothing {}

impl Session {
    /// Whether there is an indicator of this value, which is in normal form: the first that Defender lists.
    /// `GET /indicators?$filter=indicatorValue eq '...'&$top=1` (`relay.md` 7.1).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn indicator_of(&self, value: &str) -> Result<Option<Indicator>, DefenderError> {
        let query = format!("{}&$top=1", filtered(&is_value(value)));
        let spec = Spec::get(Family::Indicators, self.api(&["indicators"], Some(&query)), "/api/indicators");
        let page: super::model::Page<Indicator> = self.call(&spec).await?;
        // It was asked for this value: what names none is of it.
        Ok(page.value.into_iter().find(|found| found.indicator_value.is_empty() || found.is_of(value)))
    }

    /// The indicators of any of these values, at most [`INDICATOR_BATCH`] of them in normal form, in the service's order.
    /// `GET /indicators?$filter=indicatorValue eq '...' or ...` (`defender.md` 5.12).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn indicators_of(&self, values: &[&str]) -> Result<Vec<Indicator>, DefenderError> {
        let filter: Vec<String> = values.iter().map(|value| is_value(value)).collect();
        let url = self.api(&["indicators"], Some(&filtered(&filter.join(" or "))));
        let mut found: Vec<Indicator> =
            self.every(Spec::get(Family::Indicators, url, "/api/indicators"), |_| false).await?;
        // The filter is the service's; an indicator of another value must not decide about this one.
        found.retain(|indicator| values.iter().any(|value| indicator.is_of(value)));
        Ok(found)
    }

    /// Submits an indicator, or updates the one of the same value and type. `POST /indicators` (`defender.md` 5.12).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind). [`DefenderError::may_have_happened`] says whether it may be written
    /// nevertheless.
    pub async fn submit_indicator(&self, indicator: &NewIndicator<'_>) -> Result<Indicator, DefenderError> {
        let url = self.api(&["indicators"], None);
        self.call(&Spec::post(Family::Indicators, url, "/api/indicators", &json!(indicator))).await
    }

    /// Deletes an indicator. `DELETE /indicators/{id}` (`defender.md` 5.12).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind); [`DefenderError::is_not_found`] when there is none. An id that is no
    /// number is refused and never sent.
    pub async fn delete_indicator(&self, id: &str) -> Result<(), DefenderError> {
        if !(1..=ID_LIMIT_BYTES).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DefenderError::invalid_value(Family::Indicators));
        }
        let url = self.api(&["indicators", id], None);
        let Nothing {} = self.call(&Spec::delete(Family::Indicators, url, "/api/indicators/{id}")).await?;
        Ok(())
    }
}

/// A value in a literal, where a quote is doubled (`relay.md` 7.1).
fn is_value(value: &str) -> String {
    format!("indicatorValue eq '{}'", value.replace('\'', "''"))
}
