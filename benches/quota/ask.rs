//! Asking the relay, and what came back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The product answers within its deadline of 50 s; more is no answer.
const NO_ANSWER: Duration = Duration::from_secs(60);

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Answer {
    pub took: Duration,
    /// Codes of the errors; empty when everything was found out.
    pub errors: Vec<String>,
    /// Refused by the relay itself, at once.
    pub busy: bool,
    /// Nothing came, or nothing that is an answer.
    pub missing: bool,
}

impl Answer {
    /// Everything that was asked for was found out.
    pub fn is_complete(&self) -> bool {
        !self.missing && self.errors.is_empty()
    }
}

/// Asks `/observe/observables` with a tenant's token.
pub async fn observe(client: &reqwest::Client, ingress: SocketAddr, token: &str, question: &Value) -> Answer {
    let asked = Instant::now();
    let request = client
        .post(format!("http://{ingress}/observe/observables"))
        .bearer_auth(token)
        .json(question)
        .timeout(NO_ANSWER);
    let body: Option<Value> = async { request.send().await.ok()?.json().await.ok() }.await;
    let took = asked.elapsed();
    let Some(body) = body else {
        return Answer { took, errors: Vec::new(), busy: false, missing: true };
    };
    let errors = body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |error: &Value, member: &str| error[member].as_str().unwrap_or_default().to_owned();
    let busy = errors.iter().any(|error| text(error, "message").starts_with("The relay is busy"));
    // A warning says that there is more to know, or how it was found out; what was asked for is there.
    let fatal = errors.iter().filter(|error| text(error, "type") != "warning");
    Answer { took, errors: fatal.map(|error| text(error, "code")).collect(), busy, missing: false }
}

/// The duration that `share` of `took` stayed below. Sorts.
pub fn percentile(took: &mut [Duration], share: f64) -> Duration {
    took.sort_unstable();
    let index = (share * took.len() as f64).ceil() as usize;
    took.get(index.saturating_sub(1)).copied().unwrap_or_default()
}
