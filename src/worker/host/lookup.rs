//! Finding the machine of a host in Defender (`cognito.md` 5.5). Never from a cache.

use std::net::IpAddr;

use super::{Calls, Failed, Look};
use crate::cognito::model::Host;
use crate::containment::lookup::{self, NameQuery};
use crate::containment::matching::{Candidates, Match};
use crate::containment::names;
use crate::job::HostKind;

impl Look<'_> {
    /// Asks by address at each of the planned times until there are usable machines, then by name.
    pub(super) async fn find(&self, calls: &Calls, host: &Host) -> Result<Match, Failed> {
        let scored = (self.event.kind == HostKind::Scored).then_some(self.event.occurred_at);
        let Some(plan) = lookup::plan(host, scored, self.now) else { return Ok(Match::none()) };
        let (known, rule) = (names::known(host), self.hosts.settings.policy.name_match);
        if let IpAddr::V4(address) = plan.address {
            for moment in &plan.times {
                let machines = match calls.defender.find_by_ip(address, moment.at).await {
                    Ok(machines) => machines,
                    // The time is too old for Defender after all, or this is no address it can look for.
                    Err(error) if error.status() == Some(400) => continue,
                    Err(error) => return Err(error.into()),
                };
                let candidates = Candidates::by_address(machines, plan.address, moment.anchored);
                if !candidates.is_empty() {
                    return Ok(candidates.judge(&known, rule));
                }
            }
        }
        for NameQuery::Full(name) | NameQuery::Label(name) in &plan.names {
            let machines = match calls.defender.machines_named(name).await {
                Ok(machines) => machines,
                Err(error) if error.status().is_none_or(|status| status == 400) && !error.is_transient() => continue,
                Err(error) => return Err(error.into()),
            };
            let candidates = Candidates::by_name(machines, &known);
            if !candidates.is_empty() {
                return Ok(candidates.judge(&known, rule));
            }
        }
        Ok(Match::none())
    }
}
