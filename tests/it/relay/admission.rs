//! Who would have to wait too long for a worker is refused at once (`DESIGN.md` 10, ruling 6).

use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::errors::options;
use super::{bridge_with, fatal};
use crate::bridge::Options;

/// More than are admitted whatever happens.
const CALLERS: usize = 20;

/// Long enough for a refusal, however busy the machine; those who are accepted wait for longer.
const A_MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_call_that_would_wait_too_long_is_refused_and_those_before_it_are_answered() {
    let slow = Options {
        concurrency: 1,
        max_wait: Duration::from_millis(100),
        deadline: Duration::from_secs(50),
        ..options()
    };
    let bridge = bridge_with(json!({}), slow).await;
    bridge.control().set_latency(Duration::from_millis(150));
    let names: Vec<String> = (0..CALLERS).map(|n| format!("d{n}.example")).collect();
    let accepted = join_all(names.iter().map(async |name| bridge.observe(&[("domain", name)]).await));
    let busy = [fatal("too many requests", "The relay is busy. Please, try again later.")];
    // Health goes through the same gate. One that is accepted is not waited for.
    let refused = async {
        loop {
            let answer = timeout(A_MOMENT, bridge.post("/health", &Value::Null)).await;
            if answer.is_ok_and(|answer| answer.errors() == busy) {
                break;
            }
        }
    };
    let (answers, ()) = join(accepted, refused).await;
    for answer in answers {
        assert_eq!(answer.errors(), [], "{}", answer.text);
    }
    bridge.control().set_latency(Duration::ZERO);
    let answer = bridge.post("/health", &Value::Null).await;
    assert_eq!(answer.json(), json!({"data": {"status": "ok"}}), "service is back by itself");
    bridge.stop().await;
}
