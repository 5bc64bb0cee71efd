//! Time that is up: row E20 of `relay.md` 3.3, by the worker and by the ingress.

use std::time::Duration;

use defender_bridge::simulator::{Control, Fault, Matcher};

use super::errors::{A, AB, CONNECTION, INTERNAL, IP, Observables, TOO_MANY, office, options};
use super::{bridge_with, fatal};
use crate::bridge::{Options, TestBridge};

const DEADLINE: &str = "The request was not finished in time; the answer may be incomplete.";

/// A deadline that leaves the worker some time, however busy the machine.
fn short() -> Options {
    Options { deadline: Duration::from_secs(4), ..options() }
}

fn hang(control: &Control, matcher: impl Into<Matcher>) {
    control.fail_next(matcher, Fault::Hang, 1);
}

/// Row E20. That data comes with it proves that the worker answered, before the ingress had to.
#[tokio::test]
async fn a_call_that_hangs_ends_with_the_deadline_and_what_was_found_is_kept() {
    // What hangs, what is asked, sightings, hunting calls.
    let cases: [(&str, Matcher, Observables, usize, u64); 5] = [
        ("hunting: the alert is there", "hunting".into(), A, 1, 1),
        (
            "an alert lookup: the other alert is there, and no time for hunting",
            Matcher::containing("b.example"),
            AB,
            1,
            0,
        ),
        ("a machine: all is there but its details", "machines".into(), IP, 1, 2),
        ("the only alert lookup", "alerts".into(), A, 0, 0),
        ("the token", "token".into(), A, 0, 0),
    ];
    let runs = cases.map(|(name, matcher, ask, sightings, hunting)| {
        // Five of them would be too much for a thread's stack.
        Box::pin(async move {
            let bridge = bridge_with(office(), short()).await;
            hang(bridge.control(), matcher);
            let answer = bridge.observe(ask).await;
            let kind = if sightings == 0 { "fatal" } else { "warning" };
            assert_eq!(answer.errors(), [super::error("deadline", DEADLINE, kind)], "{name}");
            assert_eq!(answer.sightings().len(), sightings, "{name}: {}", answer.text);
            assert_eq!(answer.json().get("data").is_some(), sightings > 0, "{name}");
            assert_eq!(bridge.control().calls("hunting"), hunting, "{name}");
            bridge.stop().await;
        })
    });
    futures_util::future::join_all(runs).await;
}

/// `DESIGN.md` 10.9.
#[tokio::test]
async fn a_deadline_during_a_retry_reports_what_microsoft_said_last() {
    let cases = [
        (Fault::refuse(500), fatal("internal error", INTERNAL)),
        (Fault::throttle(None), fatal("too many requests", TOO_MANY)),
        (Fault::Reset, fatal("connection error", CONNECTION)),
    ];
    let runs = cases.map(|(fault, expected)| async move {
        let bridge = bridge_with(office(), short()).await;
        bridge.control().fail_next("alerts", fault.clone(), 1);
        hang(bridge.control(), "alerts");
        let answer = bridge.observe(A).await;
        assert_eq!(answer.errors()[0], expected, "{fault:?}: {}", answer.text);
        assert_eq!(bridge.control().calls("alerts"), 2, "{fault:?}");
        bridge.stop().await;
    });
    futures_util::future::join_all(runs).await;
}

/// Row E20 by the ingress: nobody works, so nobody else can say it.
#[tokio::test]
async fn a_request_that_nobody_works_is_answered_at_its_deadline() {
    let options = Options { worker: false, deadline: Duration::from_secs(1), ..options() };
    let bridge = TestBridge::start_with(options).await;
    for path in ["/observe/observables", "/health"] {
        let answer = bridge.post(path, &crate::bridge::observable_list(A)).await;
        assert_eq!((answer.status, answer.errors()), (200, vec![fatal("deadline", DEADLINE)]), "{path}");
        assert_eq!(answer.json().get("data"), None);
    }
    bridge.stop().await;
}
