//! Calls per request. No quota is in the way here, so that nothing is screened or left out.

use futures_util::future::join_all;

use crate::ask::observe;
use crate::stage::Stage;
use crate::universe::{question, simulator, token};

/// Observables of a request.
const SIZES: [usize; 5] = [1, 5, 20, 100, 200];

/// What a request of any size may cost (`DESIGN.md` 5).
const HUNTING_BOUND: u64 = 6;

/// Callers at once, what each asks for, and how far the next one's questions begin after its own.
const CALLERS: usize = 50;
const ASKED: usize = 20;
const SHIFT: usize = 2;

/// Of all observables, known to the tenant.
const KNOWN_PERCENT: usize = 20;

/// No limit of ours either.
pub fn unlimited() -> Vec<(&'static str, String)> {
    let names = [
        "BRIDGE_QUOTA_ALERTS",
        "BRIDGE_QUOTA_MACHINES",
        "BRIDGE_QUOTA_ACTIONS",
        "BRIDGE_QUOTA_MACHINEACTIONS",
        "BRIDGE_QUOTA_INDICATORS",
    ];
    let mut settings = names.map(|name| (name, "1000000/1000000".to_owned())).to_vec();
    settings.push(("BRIDGE_QUOTA_HUNTING", "1000000".to_owned()));
    settings.push(("BRIDGE_ANSWER_TTL", "0".to_owned()));
    settings
}

pub async fn measure(broker: &str) -> anyhow::Result<u64> {
    println!("\ncalls per request, {KNOWN_PERCENT} % of the observables known, one worker, no answers kept");
    let stage = Stage::set(broker, 1, &unlimited(), simulator(1, KNOWN_PERCENT, None)?).await?;
    let token = token(0);
    let mut violations = 0;
    let mut first = 0;
    println!("  observables   hunting (bound {HUNTING_BOUND})   alerts   files   machines   tokens   floor");
    for size in SIZES {
        stage.control().forget();
        let answer = observe(&stage.client, stage.ingress, &token, &question(first, size)).await;
        first += size;
        violations += line(&stage, &size.to_string(), size, HUNTING_BOUND, &answer.errors, answer.missing);
    }
    stage.control().forget();
    let ask = (0..CALLERS).map(|caller| {
        let question = question(first + caller * SHIFT, ASKED);
        let (stage, token) = (&stage, &token);
        async move { observe(&stage.client, stage.ingress, token, &question).await }
    });
    let answers = join_all(ask).await;
    let errors: Vec<String> = answers.iter().flat_map(|answer| answer.errors.clone()).collect();
    let missing = answers.iter().any(|answer| answer.missing);
    let distinct = (CALLERS - 1) * SHIFT + ASKED;
    println!("  {CALLERS} callers at once, {ASKED} observables each, {distinct} different ones in all");
    violations += line(&stage, "together", distinct, HUNTING_BOUND * CALLERS as u64, &errors, missing);
    Ok(violations)
}

/// One line, and what is wrong with it.
fn line(stage: &Stage, what: &str, floor: usize, bound: u64, errors: &[String], missing: bool) -> u64 {
    let calls = |route| stage.control().calls(route);
    let hunting = calls("hunting");
    println!(
        "  {what:>11}   {hunting:>17}   {:>6}   {:>5}   {:>8}   {:>6}   {floor:>5}",
        calls("alerts"),
        calls("files"),
        calls("machines"),
        calls("token"),
    );
    if missing || !errors.is_empty() {
        println!("    not complete: {errors:?}");
    }
    u64::from(hunting > bound) + u64::from(missing || !errors.is_empty())
}
