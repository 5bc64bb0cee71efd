//! What the sightings need besides: devices and file profiles (`relay.md` 5.5). Best effort.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::failures::Failures;
use super::gather::{Gatherer, Subject, ask, numbered};
use crate::defender::Family;
use crate::defender::model::Hashes;
use crate::mapping::{self, Device, Lookups};

/// Machines read by REST for one batch at most: those that hunting knows no operating system of.
const MACHINE_LIMIT: usize = 50;

/// Devices named in one batch's query for their context. An id takes 43 bytes of the query's 64 KB (`defender.md` 6.2).
const DEVICE_LIMIT: usize = 1_000;

impl Gatherer<'_> {
    /// Devices and file profiles that the sightings name; best effort. The second member says that nothing failed.
    pub(super) async fn lookups(&self, subjects: &[Subject<'_>], failures: &mut Failures) -> (Lookups, bool) {
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
        // Profiles share the alerts' quota, and alerts are worth more.
        let plan = self.hasty.plan_all(profiles.len());
        if plan.is_none() {
            cut = true;
            profiles.clear();
        }

        let stops = failures.stops();
        let hunting = stops.allows(Family::Hunting) && !devices.is_empty();
        let (files, (contexts, failed)) = tokio::join!(
            ask(
                numbered(profiles),
                &stops,
                |_| &[Family::Files],
                |hash| async move {
                    let file = self.hasty.file(&hash).await?;
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
