//! Alerts when their quota does not last (`DESIGN.md` 5): what is asked, what is shown, and what the caller is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use defender_bridge::defender::{Family, Permits, Purpose};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{alert, asked, bridge_with, connection, fatal, file_event, minutes_ago, warning};
use crate::bridge::{Options, Permitting, TestBridge};

const OLDER: &str = "Alerts older than 30 days could not be asked for: too many requests to Microsoft Defender for \
                     Endpoint are waiting.";
const HUNTED: &str = "Alerts are shown without descriptions, process relations and what is older than 30 days: too many \
                      requests to Microsoft Defender for Endpoint are waiting.";
const TOO_MANY: &str = "Too many requests to Microsoft Defender for Endpoint have been made. Please, try again later.";
const DETAILS: &str = "Some details could not be read from Microsoft Defender for Endpoint.";

/// Lets so many calls for alerts and profiles go, and hunting or not.
struct Scarce {
    left: AtomicU32,
    /// What is said to be left, where that is not the truth.
    said: Option<u32>,
    /// Who gets none is told nothing.
    silent: bool,
    hunting: bool,
}

impl Permits for Scarce {
    fn permit<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        family: Family,
        _: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>> {
        let take = || self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let granted = match family {
            Family::Alerts | Family::Files => take(),
            Family::Hunting => self.hunting,
            _ => true,
        };
        let silent = self.silent;
        async move {
            match granted {
                true => Ok(until),
                false if silent => std::future::pending().await,
                false => Err(Duration::from_secs(3_600)),
            }
        }
        .boxed()
    }

    fn room(&self, _: &str, _: &str, family: Family, _: Instant) -> u32 {
        match family {
            Family::Alerts | Family::Files => self.said.unwrap_or_else(|| self.left.load(Ordering::SeqCst)),
            _ => u32::MAX,
        }
    }
}

async fn scarce(data: Value, scarce: Scarce) -> TestBridge {
    bridge_with(data, Options { permits: Some(Permitting(Arc::new(scarce))), ..Options::default() }).await
}

fn calls(left: u32) -> Scarce {
    Scarce { left: AtomicU32::new(left), said: None, silent: false, hunting: true }
}

/// `count` names with an event each; the first `alarming` have an alert with evidence, that of the first the newest.
fn names(count: usize, alarming: usize) -> (Vec<String>, Value) {
    let names: Vec<String> = (0..count).map(|n| format!("d{n}.example")).collect();
    let alerts: Vec<Value> = names[..alarming]
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let mut alert = alert(&format!("a{n}_1"), 10 + n as i64, 1, &[]);
            alert["description"] = json!("What happened.");
            alert["category"] = json!("Malware");
            alert["evidence"] = json!([
                {"entityType": "Url", "url": format!("https://{name}/x"), "evidenceCreationTime": minutes_ago(10 + n as i64)},
                {"entityType": "Ip", "ipAddress": "203.0.113.1", "evidenceCreationTime": minutes_ago(10 + n as i64)},
            ]);
            alert
        })
        .collect();
    let events: Vec<Value> =
        names.iter().enumerate().map(|(n, name)| connection(n, 60 + n as i64, 1, "203.0.113.1", name)).collect();
    (names, json!({"alerts": alerts, "tables": {"DeviceNetworkEvents": events}}))
}

async fn ask(bridge: &TestBridge, names: &[String]) -> crate::bridge::Answer {
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| ("domain", name.as_str())).collect();
    bridge.observe(&pairs).await
}

/// The alerts of an answer: what was asked, the description, and how many relations.
fn alerts(answer: &crate::bridge::Answer) -> Vec<(String, Option<String>, usize)> {
    let sightings = answer.sightings();
    let alerts = sightings.iter().filter(|sighting| sighting.get("external_ids").is_some());
    let shown = |sighting: &Value| {
        let relations = sighting["relations"].as_array().map_or(0, Vec::len);
        (asked(sighting).to_owned(), sighting["description"].as_str().map(str::to_owned), relations)
    };
    alerts.map(shown).collect()
}

#[tokio::test]
async fn with_quota_to_spare_defender_is_asked_as_always() {
    let (names, data) = names(10, 3);
    let bridge = scarce(data, calls(10)).await;
    let answer = ask(&bridge, &names).await;
    assert_eq!((answer.errors(), answer.sightings().len()), (vec![], 13));
    assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("hunting")), (10, 2));
    bridge.stop().await;
}

#[tokio::test]
async fn a_scarce_quota_is_spent_on_observables_that_have_alerts() {
    let (names, data) = names(10, 3);
    let bridge = scarce(data, calls(9)).await;
    let answer = ask(&bridge, &names).await;
    let full = |n: usize| (format!("d{n}.example"), Some("What happened.".to_owned()), 1);
    assert_eq!(alerts(&answer), [full(0), full(1), full(2)]);
    assert_eq!(answer.sightings().len(), 13);
    let older: Vec<_> = (3..10).map(|n| warning("warning", &format!("{OLDER} Observable: d{n}.example."))).collect();
    assert_eq!(answer.errors(), older);
    assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("hunting")), (3, 3));
    bridge.stop().await;
}

#[tokio::test]
async fn where_nothing_has_alerts_no_call_is_spent_and_the_answer_says_so_once() {
    let (names, data) = names(5, 0);
    let bridge = scarce(data, calls(4)).await;
    let answer = ask(&bridge, &names).await;
    assert_eq!((answer.errors(), answer.sightings().len()), (vec![warning("warning", OLDER)], 5));
    assert_eq!(bridge.control().calls("alerts"), 0);
    bridge.stop().await;
}

#[tokio::test]
async fn alerts_beyond_the_quota_are_shown_as_hunting_knows_them_the_newest_are_asked_for() {
    let (names, data) = names(6, 5);
    let bridge = scarce(data, calls(2)).await;
    let answer = ask(&bridge, &names).await;
    let full = |n: usize| (format!("d{n}.example"), Some("What happened.".to_owned()), 1);
    let hunted = |n: usize| (format!("d{n}.example"), Some("Category: Malware".to_owned()), 1);
    assert_eq!(alerts(&answer), [full(0), full(1), hunted(2), hunted(3), hunted(4)]);
    let shown = answer.sightings().into_iter().find(|sighting| asked(sighting) == "d2.example").unwrap();
    assert_eq!((&shown["title"], &shown["severity"]), (&json!("Alert a2_1"), &json!("High")));
    assert_eq!(shown["targets"][0]["observables"][0]["value"], "pc-1.corp.example");
    let mut errors = vec![warning("warning", &format!("{OLDER} Observable: d5.example."))];
    errors.extend((2..5).map(|n| warning("warning", &format!("{HUNTED} Observable: d{n}.example."))));
    assert_eq!(answer.errors(), errors);
    // Events, alerts, evidence, devices.
    assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("hunting")), (2, 4));
    bridge.stop().await;
}

/// The desk had more to give when it was asked.
#[tokio::test]
async fn a_call_that_is_refused_all_the_same_shows_what_hunting_knows() {
    let (names, data) = names(4, 3);
    let bridge = scarce(data, Scarce { said: Some(3), ..calls(1) }).await;
    let answer = ask(&bridge, &names).await;
    assert_eq!(alerts(&answer).len(), 3, "{}", answer.text);
    assert_eq!(answer.errors().iter().filter(|(_, message, _)| message.starts_with(HUNTED)).count(), 2);
    bridge.stop().await;
}

/// Others have used what was left when the request began.
#[tokio::test]
async fn where_the_quota_does_not_last_hunting_says_what_it_knows_of_the_rest() {
    for silent in [false, true] {
        let (names, data) = names(7, 5);
        let permits = Scarce { said: Some(100), silent, ..calls(2) };
        let options = Options {
            permits: Some(Permitting(Arc::new(permits))),
            deadline: Duration::from_secs(10),
            ..Options::default()
        };
        let bridge = bridge_with(data, options).await;
        let answer = ask(&bridge, &names).await;
        let full = |n: usize| (format!("d{n}.example"), Some("What happened.".to_owned()), 1);
        let hunted = |n: usize| (format!("d{n}.example"), Some("Category: Malware".to_owned()), 1);
        assert_eq!(alerts(&answer), [full(0), full(1), hunted(2), hunted(3), hunted(4)], "{}", answer.text);
        assert_eq!(answer.sightings().len(), 12);
        let mut errors: Vec<_> =
            (5..7).map(|n| warning("warning", &format!("{OLDER} Observable: d{n}.example."))).collect();
        errors.extend((2..5).map(|n| warning("warning", &format!("{HUNTED} Observable: d{n}.example."))));
        assert_eq!(answer.errors(), errors);
        // Events, alerts, evidence, devices.
        assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("hunting")), (2, 4), "{silent}");
        bridge.stop().await;
    }
}

/// Then their own calls are waited for as long as the request lasts.
#[tokio::test]
async fn where_hunting_does_not_say_either_exactly_the_others_have_an_error() {
    let (names, data) = names(5, 5);
    let bridge = scarce(data, Scarce { said: Some(100), hunting: false, ..calls(2) }).await;
    let answer = ask(&bridge, &names).await;
    assert_eq!(alerts(&answer).len(), 2, "{}", answer.text);
    let named: Vec<_> =
        (2..5).map(|n| fatal("too many requests", &format!("{TOO_MANY} Observable: d{n}.example."))).collect();
    let errors = answer.errors();
    let of_alerts = |(_, message, _): &&(String, String, String)| message.starts_with(TOO_MANY);
    assert_eq!(errors.iter().filter(of_alerts).cloned().collect::<Vec<_>>(), named, "{errors:?}");
    bridge.stop().await;
}

/// A SHA-1 is known from the events of a SHA-256 or an MD5, or from an alert's evidence.
#[tokio::test]
async fn files_are_screened_by_their_sha1() {
    let (sha1, sha256, md5) = (format!("{:040x}", 1), format!("{:064x}", 1), format!("{:032x}", 1));
    let other = format!("{:064x}", 2);
    let mut about_file = alert("f1_1", 5, 1, &[]);
    about_file["evidence"] = json!([{"entityType": "File", "sha1": sha1, "fileName": "x"}]);
    let mut about_other = alert("f2_1", 6, 1, &[]);
    let other_sha1 = format!("{:040x}", 2);
    about_other["evidence"] = json!([{"entityType": "File", "sha1": other_sha1, "sha256": other, "fileName": "y"}]);
    let data = json!({
        "alerts": [about_file, about_other],
        "tables": {"DeviceFileEvents": [file_event(1, 9, 1, &sha1, &sha256, &md5)]},
    });
    let bridge = scarce(data, calls(3)).await;
    let ask =
        [("sha256", sha256.as_str()), ("md5", &md5), ("sha256", &other), ("md5", "00000000000000000000000000000009")];
    let answer = bridge.observe(&ask).await;
    assert_eq!(alerts(&answer).iter().map(|(asked, ..)| asked.as_str()).collect::<Vec<_>>(), [&sha256, &md5, &other]);
    // Both names of the one file, and the other; profiles get nothing.
    assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("files")), (2, 0));
    bridge.stop().await;
}

/// What hunting cannot say is asked for as far as the quota lasts, and exactly the others have an error.
#[tokio::test]
async fn without_hunting_the_quota_is_spent_in_order_and_the_rest_is_named() {
    let (names, data) = names(5, 5);
    let bridge = scarce(data, Scarce { hunting: false, ..calls(2) }).await;
    let answer = ask(&bridge, &names).await;
    assert_eq!(alerts(&answer).len(), 2, "{}", answer.text);
    let errors = answer.errors();
    let named: Vec<_> =
        (2..5).map(|n| fatal("too many requests", &format!("{TOO_MANY} Observable: d{n}.example."))).collect();
    assert_eq!(errors[1..], named, "{errors:?}");
    assert!(errors[0].1.starts_with("Advanced Hunting API rate limit has been exceeded."), "{errors:?}");
    assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("hunting")), (2, 0));
    bridge.stop().await;
}

/// Best effort comes last.
#[tokio::test]
async fn file_profiles_take_nothing_from_a_quota_that_alerts_need() {
    let hashes: Vec<String> = (0..3).map(|n| format!("{:040x}", 0xb0 + n)).collect();
    let events: Vec<Value> = hashes.iter().enumerate().map(|(n, hash)| file_event(n, 9, 1, hash, "", "")).collect();
    let files: Vec<Value> = hashes.iter().map(|hash| json!({"sha1": hash, "sha256": null, "md5": null})).collect();
    for (quota, profiles) in [(6, 3), (5, 0)] {
        let data = json!({"files": files, "tables": {"DeviceFileEvents": events}});
        let bridge = scarce(data, calls(quota)).await;
        let pairs: Vec<(&str, &str)> = hashes.iter().map(|hash| ("sha1", hash.as_str())).collect();
        let answer = bridge.observe(&pairs).await;
        let told = if profiles == 0 { vec![warning("warning", DETAILS)] } else { vec![] };
        assert_eq!((answer.errors(), answer.sightings().len()), (told, 3), "{quota}");
        assert_eq!((bridge.control().calls("alerts"), bridge.control().calls("files")), (3, profiles), "{quota}");
        bridge.stop().await;
    }
}

/// `DESIGN.md` 5: at most six hunting calls, whatever happens.
#[tokio::test]
async fn two_hundred_observables_cost_at_most_six_hunting_calls_however_scarce_alerts_are() {
    for (left, alarming) in [(1_000, 50), (60, 50), (10, 50), (0, 200)] {
        let (names, data) = names(200, alarming);
        let bridge = scarce(data, calls(left)).await;
        let answer = ask(&bridge, &names).await;
        assert_eq!(answer.sightings().len(), 200 + alarming, "{left}");
        let hunting = bridge.control().calls("hunting");
        println!("200 observables, {alarming} with alerts, room for {left}: {:?}", bridge.control().all_calls());
        assert!(hunting <= 4, "{left}: {hunting}");
        bridge.stop().await;
    }
}
