//! Observables answered completely per minute under the published quotas, and how much of the scarcer window is used when
//! there is always more to ask.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use defender_bridge::simulator::Quota;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use crate::ask::{Answer, observe};
use crate::stage::Stage;
use crate::universe::{KNOWN_AMONG, question, simulator, token};
use crate::windows;

/// Callers in closed loops, and what each asks for at a time.
const CALLERS: usize = 8;
const ASKED: usize = 100;

/// Of all observables, known to the tenant.
const KNOWN_PERCENTS: [usize; 3] = [2, 20, 80];

/// The quotas in full; answers are not kept, for no observable is asked for twice.
pub fn whole_share() -> Vec<(&'static str, String)> {
    vec![
        ("BRIDGE_QUOTA_SHARE", "rest=100,hunting=100".to_owned()),
        ("BRIDGE_ANSWER_TTL", "0".to_owned()),
        // What waits for its quota is what is measured.
        ("BRIDGE_RELAY_MAX_WAIT", "50s".to_owned()),
    ]
}

pub async fn measure(broker: &str, lasts: Duration) -> anyhow::Result<u64> {
    let mut violations = 0;
    for percent in KNOWN_PERCENTS {
        println!(
            "\nobservables answered, {percent} % known, {CALLERS} callers with {ASKED} observables each, one tenant, two \
             workers, for {lasts:?}"
        );
        let stage = Stage::set(broker, 2, &whole_share(), simulator(1, percent, Some(Quota::default()))?).await?;
        let answers = ask_on(&stage, lasts, ASKED).await;
        let minutes = lasts.as_secs_f64() / 60.0;
        let per_minute = |wanted: fn(&Answer) -> bool| {
            (ASKED * answers.iter().filter(|answer| wanted(answer)).count()) as f64 / minutes
        };
        let complete = per_minute(Answer::is_complete);
        println!(
            "    complete {complete:.0} a minute ({:.1} of one call each), in part {:.0}, without an answer {:.0}",
            complete / 100.0,
            per_minute(|answer| !answer.missing && !answer.errors.is_empty()),
            per_minute(|answer| answer.missing)
        );
        violations += windows::report(stage.control());
        bounds(&stage, minutes);
    }
    Ok(violations)
}

/// How much of each window is used at a load that never ends.
pub async fn steady(broker: &str, lasts: Duration) -> anyhow::Result<u64> {
    println!("\na steady load of small requests for {lasts:?}, half of the observables known, two workers");
    println!("    the hour's limit is lifted, so that the minute is the scarcer window (the part `hour` has both)");
    let quota = Quota { per_hour: 1_000_000, ..Quota::default() };
    let mut settings = whole_share();
    let rows = ["BRIDGE_QUOTA_ALERTS", "BRIDGE_QUOTA_MACHINES"];
    settings.extend(rows.map(|name| (name, "100/1000000".to_owned())));
    let stage = Stage::set(broker, 2, &settings, simulator(1, 50, Some(quota))?).await?;
    let answers = ask_on(&stage, lasts, 5).await;
    println!("    {} requests answered", answers.iter().filter(|answer| !answer.missing).count());
    let violations = windows::report(stage.control());
    bounds(&stage, lasts.as_secs_f64() / 60.0);
    Ok(violations)
}

/// One hour, and the time that the first permits of an hour need to come back.
const HOUR: Duration = Duration::from_secs(3600 + 90);

/// The hour is the scarcer window: five observables this often, half of them known, are 150 calls a minute, and it has 25.
const PACE: Duration = Duration::from_secs(2);
const SMALL: usize = 5;

/// A whole hour of the published quotas at a steady load that wants more than they allow.
pub async fn hour(broker: &str) -> anyhow::Result<u64> {
    println!("\na steady load for {HOUR:?}, {SMALL} observables every {PACE:?}, half of them known, two workers");
    let stage = Stage::set(broker, 2, &whole_share(), simulator(1, 50, Some(Quota::default()))?).await?;
    let (begin, token) = (Instant::now(), token(0));
    let mut asked = Vec::new();
    while begin.elapsed() < HOUR {
        let question = question(SMALL * asked.len() % (KNOWN_AMONG - SMALL), SMALL);
        let (client, ingress, token) = (stage.client.clone(), stage.ingress, token.clone());
        asked.push(tokio::spawn(async move { observe(&client, ingress, &token, &question).await }));
        sleep_until(begin + PACE * asked.len() as u32).await;
    }
    let answers: Vec<Answer> = join_all(asked).await.into_iter().filter_map(Result::ok).collect();
    let count = |wanted: fn(&Answer) -> bool| answers.iter().filter(|answer| wanted(answer)).count();
    let missing = count(|answer| answer.missing);
    println!("    {} requests, complete {}, without an answer {missing}", answers.len(), count(Answer::is_complete));
    Ok(windows::report(stage.control()) + windows::report_hours(stage.control()) + missing as u64)
}

/// Asks with every caller without a pause, never for the same twice.
async fn ask_on(stage: &Stage, lasts: Duration, asked: usize) -> Vec<Answer> {
    let next = AtomicUsize::new(0);
    let end = Instant::now() + lasts;
    let token = token(0);
    let callers = (0..CALLERS).map(async |_| {
        let mut answers = Vec::new();
        while Instant::now() < end {
            let first = next.fetch_add(asked, Ordering::Relaxed) % (KNOWN_AMONG - asked);
            answers.push(observe(&stage.client, stage.ingress, &token, &question(first, asked)).await);
        }
        answers
    });
    join_all(callers).await.concat()
}

/// What bounds it: the windows in parts of what they allow.
fn bounds(stage: &Stage, minutes: f64) {
    let used = windows::seen(stage.control())
        .into_iter()
        .map(|seen| format!("{} {:.0} %", seen.row, 100.0 * seen.most as f64 / seen.limit as f64));
    let used: Vec<String> = used.collect();
    let throughput: Vec<String> = windows::seen(stage.control())
        .into_iter()
        .map(|seen| format!("{} {:.0}", seen.row, seen.calls as f64 / minutes))
        .collect();
    println!("    fullest window: {}; calls a minute: {}", used.join(", "), throughput.join(", "));
}
