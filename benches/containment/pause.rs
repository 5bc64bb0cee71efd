//! `isolation pause` in a storm of block tags: when it has returned, nothing more is posted until `resume`.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::latency::plain;
use crate::stage::{BLOCK, Stage, TENANT};

const HOSTS: usize = 60;

/// Isolations that are let through before the pause.
const BEFORE: usize = 8;

/// Between two block tags: faster than Cognito's rate lets them be worked.
const PACE: Duration = Duration::from_millis(100);

/// How long is looked whether anything is posted after the pause.
const WATCH: Duration = Duration::from_secs(15);

/// For all to be worked after the brake is off: at Cognito's rate, and after the wait of those it held.
const PATIENCE: Duration = Duration::from_secs(180);

pub async fn measure(stage: &mut Stage) -> anyhow::Result<bool> {
    println!("\na storm of {HOSTS} block tags, one every {PACE:?}; paused after {BEFORE} isolations");
    let hosts = plain(stage, HOSTS)?;
    let stage = &*stage;
    let brain = stage.brain();
    let storm = async {
        for host in &hosts {
            brain.add_tag(host.id, BLOCK, "analyst.one");
            stage.tell(host.id, BLOCK).await?;
            sleep(PACE).await;
        }
        anyhow::Ok(())
    };
    let posted = || stage.control().isolate_posts(TENANT).len();
    let pausing = async {
        let end = Instant::now() + PATIENCE;
        while posted() < BEFORE {
            anyhow::ensure!(Instant::now() < end, "nothing is isolated");
            sleep(Duration::from_millis(5)).await;
        }
        let began = Instant::now();
        stage.command(&["isolation", "pause", "--by", "bench", "--reason", "storm"]).await?;
        anyhow::Ok((Timestamp::now(), began.elapsed()))
    };
    let ((), (returned, took)) = tokio::try_join!(storm, pausing)?;
    sleep(WATCH).await;
    let posts = stage.control().isolate_posts(TENANT);
    let late = posts.iter().filter(|post| post.at > returned).count();
    println!(
        "  pause returned after {:.0} ms with {} isolations posted; posted later: {late}, although {} tags asked for {WATCH:?}",
        took.as_secs_f64() * 1000.0,
        posts.len() - late,
        HOSTS - posts.len()
    );
    stage.command(&["isolation", "resume", "--by", "bench"]).await?;
    let began = Instant::now();
    let settled = || {
        let there = |tags: Vec<String>| tags.iter().any(|tag| tag == "mde:isolation=isolated");
        hosts.iter().filter(|host| there(brain.tags(host.id).unwrap_or_default())).count()
    };
    let mut last_post = None;
    while settled() < HOSTS && began.elapsed() < PATIENCE {
        if last_post.is_none() && posted() >= HOSTS {
            last_post = Some(began.elapsed());
        }
        sleep(Duration::from_millis(50)).await;
    }
    println!(
        "  after resume: all posted within {:.1} s, {} of {HOSTS} isolated after {:.1} s, {} posts in all",
        last_post.unwrap_or_default().as_secs_f64(),
        settled(),
        began.elapsed().as_secs_f64(),
        posted()
    );
    Ok(late == 0 && settled() == HOSTS && posted() == HOSTS)
}
