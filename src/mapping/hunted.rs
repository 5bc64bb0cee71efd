//! Alerts that only hunting was asked about: what it knows of them, in the form that Defender's own alerts have.

use crate::defender::model::{Alert, AlertDetails, RecentAlert};

/// The alert as far as hunting knows it. There is no description in hunting, so the category stands in its place, and no
/// first event, so that the alert begins when it was raised.
pub fn alert(recent: &RecentAlert, details: Option<&AlertDetails>) -> Alert {
    let given = |text: &str| (!text.trim().is_empty()).then(|| text.to_owned());
    Alert {
        id: recent.id.clone(),
        title: given(&recent.title),
        description: given(&recent.category).map(|category| format!("Category: {category}")),
        severity: given(&recent.severity),
        detection_source: given(&recent.detection_source),
        alert_creation_time: given(&recent.timestamp),
        first_event_time: None,
        last_event_time: given(&recent.last_evidence),
        last_update_time: None,
        machine_id: details.and_then(|details| given(&details.device_id)),
        computer_dns_name: details.and_then(|details| given(&details.device_name)),
        evidence: details.map(|details| details.evidence.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures::*, *};
    use crate::mapping::{Lookups, sighting};

    #[test]
    fn what_hunting_knows_of_an_alert_is_shown_as_the_alert() {
        let recent = RecentAlert {
            id: "da1_1".into(),
            timestamp: "2026-11-20T08:00:00Z".into(),
            last_evidence: "2026-11-20T08:05:00Z".into(),
            title: "Dropper".into(),
            category: "Malware".into(),
            severity: "High".into(),
            ..RecentAlert::default()
        };
        let details = AlertDetails {
            device_id: MACHINE.into(),
            device_name: "pc7".into(),
            evidence: vec![file("a", "f"), address("192.0.2.1")],
        };
        let shown = sighting::from_alert(&ip(), &super::alert(&recent, Some(&details)), &Lookups::default()).unwrap();
        assert_eq!((shown.title.as_deref(), shown.severity), (Some("Dropper"), Some("High")));
        assert_eq!(shown.description.as_deref(), Some("Category: Malware"));
        assert_eq!(shown.observed_time.start_time, "2026-11-20T08:00:00.000Z");
        assert_eq!(shown.observed_time.end_time, "2026-11-20T08:05:00.000Z");
        assert_eq!(lines(&shown).len(), 3, "{:?}", lines(&shown));
        assert_eq!(shown.targets.len(), 1);
        // The id is the one that the same alert has when Defender itself tells of it.
        let told = Alert { id: "da1_1".into(), ..crate::mapping::fixtures::alert(vec![]) };
        assert_eq!(sighting::from_alert(&ip(), &told, &Lookups::default()).unwrap().id, shown.id);
        let bare = super::alert(&RecentAlert { id: "da2".into(), ..RecentAlert::default() }, None);
        assert_eq!((bare.title, bare.machine_id, bare.evidence.len()), (None, None, 0));
    }
}
