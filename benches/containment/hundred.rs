//! A hundred hosts ask for context at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::latency::{enrich_all, plain};
use crate::stage::{CONTEXT, Stage};

const HOSTS: usize = 100;

/// At 20 calls a second and five a host it takes 25 s.
const PATIENCE: Duration = Duration::from_secs(180);

pub async fn measure(stage: &mut Stage) -> anyhow::Result<bool> {
    println!("\n{HOSTS} hosts ask for context at once");
    let hosts = plain(stage, HOSTS)?;
    let brain = stage.brain();
    stage.control().forget();
    let began = Instant::now();
    enrich_all(stage, &hosts).await?;
    println!("  all events accepted after {:.2} s", began.elapsed().as_secs_f64());
    let end = began + PATIENCE;
    let waiting = || {
        let done = |tags: &[String]| {
            tags.iter().any(|tag| tag.starts_with("mde:agent=")) && !tags.iter().any(|tag| tag == CONTEXT)
        };
        hosts.iter().filter(|host| !done(&brain.tags(host.id).unwrap_or_default())).count()
    };
    let mut first = None;
    while waiting() > 0 && Instant::now() < end {
        if first.is_none() && waiting() < HOSTS {
            first = Some(began.elapsed());
        }
        sleep(Duration::from_millis(10)).await;
    }
    let (left, calls) = (waiting(), stage.control().all_calls());
    let of = |route: &str| calls.get(route).copied().unwrap_or_default();
    println!(
        "  the first after {:.2} s, all after {:.2} s; not enriched: {left}",
        first.unwrap_or_default().as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    println!(
        "  calls a host: {:.2} to Cognito (the sweep's {} lists among them), {:.2} to Defender",
        of("cognito") as f64 / HOSTS as f64,
        of("hosts"),
        (of("machines") + of("machineactions")) as f64 / HOSTS as f64
    );
    println!("  by route: {calls:?}");
    println!("  (the script that ran by cron: 34.5 s, 6 to 8 calls to Cognito a host)");
    Ok(left == 0)
}
