//! What goes wrong meanwhile: faults of Cognito and Defender, workers that are killed, and a broker that is, or that takes
//! no messages.

use std::time::Duration;

use defender_bridge::simulator::{ActionBehaviour, Control, Fault, Matcher};
use tokio::time::{Instant, sleep, sleep_until};

use super::chance::Chance;
use super::node::Node;
use super::stage::Stage;

/// The longest a killed worker stays away, in milliseconds.
const AWAY_MS: usize = 3_000;

/// The longest an alarm of the broker lasts, in milliseconds.
const ALARM_MS: usize = 8_000;

/// The longest a killed broker stays away before it is started again, in milliseconds.
const BROKER_AWAY_MS: usize = 2_000;

/// What is printed of the faults.
pub const FAULTS: &str = "Cognito: 429 0.2 % (each halves the rate for a while), 500 2 %, reset before the call 1 %, tag writes reset after they were applied 3 %, \
                          notes likewise 3 %, 200 ms slower 5 %; Defender: 429 2 %, 500 2 %, reset 1 %, isolations and \
                          releases reset after they were taken 6 %, 503 3 %, 300 ms slower 5 %; actions fail 2 %, time \
                          out 1 %, and end in another order than they were asked for";

/// Lets things go wrong at these rates.
pub fn begin(control: &Control, seed: u64) {
    let method = |method: &str, route: &str| Matcher { method: Some(method.to_owned()), ..Matcher::from(route) };
    let faults: [(Matcher, Fault, f64); 18] = [
        ("cognito".into(), Fault::throttle(1), 0.002),
        ("cognito".into(), Fault::refuse(500), 0.02),
        ("cognito".into(), Fault::Reset, 0.01),
        ("cognito".into(), Fault::slow(Duration::from_millis(200)), 0.05),
        (method("PATCH", "tagging/host/{id}"), Fault::applied(Fault::Reset), 0.03),
        (method("POST", "hosts/{id}/notes"), Fault::applied(Fault::Reset), 0.03),
        ("machines".into(), Fault::throttle(1), 0.02),
        ("machines".into(), Fault::refuse(500), 0.02),
        ("machines".into(), Fault::Reset, 0.01),
        ("machines".into(), Fault::slow(Duration::from_millis(300)), 0.05),
        ("machineactions".into(), Fault::throttle(1), 0.02),
        ("machineactions".into(), Fault::refuse(500), 0.02),
        ("machineactions".into(), Fault::cut_after(30), 0.01),
        ("machineactions".into(), Fault::slow(Duration::from_millis(300)), 0.05),
        ("machines/{id}/isolate".into(), Fault::applied(Fault::Reset), 0.06),
        ("machines/{id}/unisolate".into(), Fault::applied(Fault::Reset), 0.06),
        ("machines/{id}/isolate".into(), Fault::refuse(503), 0.03),
        ("machines/{id}/unisolate".into(), Fault::refuse(503), 0.03),
    ];
    for (index, (matcher, fault, rate)) in faults.into_iter().enumerate() {
        control.fail_rate(matcher, fault, rate, seed.wrapping_add(index as u64));
    }
    control.set_action_behaviour(ActionBehaviour {
        seed,
        pending_ms: 300,
        in_progress_ms: 700,
        spread: 3.0,
        failed: 0.02,
        timed_out: 0.01,
        list_delay_ms: 500,
        ..ActionBehaviour::default()
    });
}

/// From now on all goes well.
pub fn end(control: &Control) {
    control.clear_faults();
    let behaviour = ActionBehaviour { failed: 0.0, timed_out: 0.0, ..control.action_behaviour() };
    control.set_action_behaviour(behaviour);
}

/// What was killed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Killed {
    pub workers: u32,
    /// Of these, how many were the desk, which sweeps as well.
    pub desks: u32,
}

/// Kills a worker every `mean` on average until `end` and starts it again a little later. All run when this returns.
pub async fn kill(stage: &mut Stage, mean: Duration, end: Instant, mut chance: Chance) -> anyhow::Result<Killed> {
    let mut killed = Killed::default();
    loop {
        let next = Instant::now() + mean.mul_f64(0.3 + 1.4 * chance.fraction());
        if next >= end {
            break;
        }
        sleep_until(next).await;
        stage.check()?;
        let worker = chance.below(stage.workers.len());
        let desk = stage.is_desk(worker).await;
        stage.kill(worker);
        killed.workers += 1;
        killed.desks += u32::from(desk);
        sleep(Duration::from_millis(chance.below(AWAY_MS) as u64)).await;
        stage.launch(worker)?;
        stage.ready(worker).await?;
    }
    sleep_until(end).await;
    Ok(killed)
}

/// What was done to the broker.
#[derive(Debug, Default, Clone, Copy)]
pub struct Broken {
    /// SIGKILL.
    pub kills: u32,
    /// Memory alarms.
    pub alarms: u32,
}

/// Kills the broker or gives it an alarm, every `mean` on average, until `end`. It works when this returns.
pub async fn break_broker(node: &Node, mean: Duration, end: Instant, mut chance: Chance) -> anyhow::Result<Broken> {
    let mut broken = Broken::default();
    loop {
        let next = Instant::now() + mean.mul_f64(0.3 + 1.4 * chance.fraction());
        if next >= end {
            return Ok(broken);
        }
        sleep_until(next).await;
        if chance.below(2) == 0 {
            node.kill().await?;
            sleep(Duration::from_millis(chance.below(BROKER_AWAY_MS) as u64)).await;
            node.start_again().await?;
            broken.kills += 1;
        } else {
            node.alarm(true).await?;
            sleep(Duration::from_millis(chance.below(ALARM_MS) as u64)).await;
            node.alarm(false).await?;
            broken.alarms += 1;
        }
    }
}
