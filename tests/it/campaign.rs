//! A small campaign (`benches/campaign`): every promise, on RabbitMQ, with faults, lost events and a killed worker.

#[path = "../../benches/campaign/analysts.rs"]
mod analysts;
#[path = "../../benches/campaign/chance.rs"]
mod chance;
#[path = "../../benches/relay/node.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod node;
#[path = "../../benches/relay/process.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod process;
#[path = "../../benches/campaign/promises.rs"]
mod promises;
#[path = "../../benches/campaign/run.rs"]
mod run;
#[path = "../../benches/campaign/stage.rs"]
#[allow(dead_code, reason = "shared with a benchmark that uses more of it")]
mod stage;
#[path = "../../benches/campaign/trouble.rs"]
mod trouble;

use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ"]
async fn a_small_campaign_breaks_no_promise() {
    let plan = run::Plan {
        seed: 7,
        hosts: 60,
        length: Duration::from_secs(20),
        edits: 6.0,
        // One, rarely two.
        kills: Duration::from_secs(10),
        // The broker of all tests is left alone.
        breaks: Duration::from_secs(3600),
        quiet: Duration::from_secs(300),
        workers: 3,
        odd_percent: 20,
        keep_logs: false,
    };
    let node = node::Node::find().await.unwrap();
    assert!(run::run(&plan, &node).await.unwrap(), "a promise was broken; see what is printed");
}
