//! Machines for containment: by id, by address and by name (`defender.md` 5.6 to 5.8), never from what was kept.

use std::net::Ipv4Addr;

use jiff::Timestamp;

use super::call::Spec;
use super::hunting::DEVICE_ID_DIGITS;
use super::model::Machine;
use super::{DefenderError, Family, Session, query};

impl Session {
    /// The machine with this id, 40 hex digits, as Defender knows it now; `None` when it does not.
    /// `GET /machines/{id}` (`defender.md` 5.6).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind).
    pub async fn machine_now(&self, id: &str) -> Result<Option<Machine>, DefenderError> {
        let id = device_id(Family::Machines, id)?;
        let spec = Spec::get(Family::Machines, self.api(&["machines", &id], None), "/api/machines/{id}");
        match self.call::<Machine>(&spec).await {
            Ok(machine) => Ok(Some(machine)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The machines that reported this internal address within 15 minutes of `at`, in the service's order. A time in the
    /// future counts as now. `GET /machines/findbyip(ip='...',timestamp=...)` (`defender.md` 5.8).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind). A time that lies more than 30 days back is refused with status 400.
    pub async fn find_by_ip(&self, ip: Ipv4Addr, at: Timestamp) -> Result<Vec<Machine>, DefenderError> {
        let at = at.min(Timestamp::now()).strftime("%Y-%m-%dT%H:%M:%SZ");
        let mut url = self.api(&["machines"], None);
        // The quotes are the only characters of it that may be encoded.
        let path = format!("{}/findbyip(ip='{ip}',timestamp={at})", url.path());
        url.set_path(&path);
        let spec = Spec::get(Family::Machines, url, "/api/machines/findbyip(ip='{ip}',timestamp={timestamp})");
        self.listed(spec).await
    }

    /// The machines of this name: those whose full DNS name it is, else those whose first label is the name's first label.
    /// In the service's order; upper and lower case are the same. `GET /machines?$filter=...` (`defender.md` 5.7).
    ///
    /// # Errors
    /// As every call: see [`Kind`](super::Kind). A name that is no host name is refused and never sent.
    pub async fn machines_named(&self, name: &str) -> Result<Vec<Machine>, DefenderError> {
        let invalid = || DefenderError::invalid_value(Family::Machines);
        let name = query::domain(name.strip_suffix('.').unwrap_or(name)).ok_or_else(invalid)?;
        // A host name has no quotes, so it can stand in a literal as it is.
        if name.contains('.') {
            let mut found = self.machines_where(&format!("computerDnsName eq '{name}'")).await?;
            found.retain(|machine| dns_name(machine) == name);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let label = first_label(&name);
        // With the dot, so that `ws-1` does not fetch every machine from `ws-10` to `ws-1999`.
        let filter = format!("computerDnsName eq '{label}' or startswith(computerDnsName,'{label}.')");
        let mut found = self.machines_where(&filter).await?;
        found.retain(|machine| first_label(&dns_name(machine)) == label);
        Ok(found)
    }

    async fn machines_where(&self, filter: &str) -> Result<Vec<Machine>, DefenderError> {
        let spec = Spec::get(Family::Machines, self.api(&["machines"], Some(&filtered(filter))), "/api/machines");
        self.listed(spec).await
    }

    /// A list of machines; the service says 404 when there are none (`defender.md` 5.7).
    async fn listed(&self, spec: Spec) -> Result<Vec<Machine>, DefenderError> {
        match self.every(spec, |_| false).await {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            listed => listed,
        }
    }
}

/// `$filter=...` with the whole value percent-encoded (`defender.md` 5.0).
pub(super) fn filtered(filter: &str) -> String {
    let encoded: String = url::form_urlencoded::byte_serialize(filter.as_bytes()).collect();
    // In a form a blank is a plus, which an OData service need not know.
    format!("$filter={}", encoded.replace('+', "%20"))
}

/// `id` as a machine's id. The routes take computer names as well, so anything else could select another machine.
pub(super) fn device_id(family: Family, id: &str) -> Result<String, DefenderError> {
    query::hex(id, DEVICE_ID_DIGITS).ok_or_else(|| DefenderError::invalid_value(family))
}

/// The full DNS name in lower case without a dot at its end; empty when there is none.
fn dns_name(machine: &Machine) -> String {
    machine.computer_dns_name.as_deref().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase()
}

fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("type eq 'a'", "$filter=type%20eq%20%27a%27")]
    #[case("a&$top=1+1", "$filter=a%26%24top%3D1%2B1")]
    fn a_filter_stays_one_value(#[case] filter: &str, #[case] expected: &str) {
        assert_eq!(filtered(filter), expected);
    }
}
