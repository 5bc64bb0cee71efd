//! Events to a webhook: what a log forwarder or another tool makes of the brain's audits (`cognito.md` 4).
//!
//! Each event is POSTed in the background, signed as Standard Webhooks asks or with a bearer token, and sent again until
//! a 2xx answers it: with the same `webhook-id`, a new timestamp, and longer and longer waits. Some can be lost on the
//! way, sent twice, held back until a later event of their host has passed them, or delayed; who meets which fate is
//! drawn from a seed.
//!
//! The first tries of one host's events are sent in their order. Tries after the first do not hold up later events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::faults::Random;
use super::feeds::{About, Audit, BRAIN_NAME, Scoring};

/// Senders at once; the events of one host always go through the same one.
const LANES: usize = 8;

/// How long the receiver may take to answer a try.
const TRY_LIMIT: Duration = Duration::from_secs(15);

/// How long an event waits to be passed by another of its host.
const PASSING_LIMIT: Duration = Duration::from_secs(1);

/// The longest wait between two tries.
const RETRY_LIMIT: Duration = Duration::from_secs(30);

/// The form events are sent in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmitForm {
    /// The appliance's JSON: audits, host scoring.
    #[default]
    Native,
    /// The hosted flavour's JSON: audits, entity scoring.
    Hosted,
    /// The appliance's JSON syslog line as forwarders wrap it.
    Syslog,
    /// The bridge's own events: `host.tags.changed`, `host.tag.added`, `host.tag.removed`, `host.scored`.
    Canonical,
}

/// Where events go, and what becomes of them on the way.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emit {
    /// The webhook, like `http://127.0.0.1:8080/webhooks/cognito`.
    pub url: String,
    /// A bearer token.
    #[serde(default, skip_serializing)]
    pub token: Option<String>,
    /// A Standard Webhooks secret, `whsec_...`.
    #[serde(default, skip_serializing)]
    pub secret: Option<String>,
    /// The form.
    #[serde(default)]
    pub form: EmitForm,
    /// The share of events that are never sent, 0 to 1; as all shares.
    #[serde(default)]
    pub lost: f64,
    /// The share that is sent a second time once it was taken.
    #[serde(default)]
    pub duplicated: f64,
    /// The share that lets the host's next event pass, for a second at most.
    #[serde(default)]
    pub reordered: f64,
    /// The share that is sent up to [`Emit::delay_ms`] late.
    #[serde(default)]
    pub delayed: f64,
    /// The longest delay, in milliseconds.
    #[serde(default = "default_delay_ms")]
    pub delay_ms: u64,
    /// The wait before the second try, in milliseconds; it doubles up to 30 s.
    #[serde(default = "default_retry_ms")]
    pub retry_ms: u64,
    /// Tries before an event is given up.
    #[serde(default = "default_tries")]
    pub tries: u32,
    /// Decides the fates.
    #[serde(default)]
    pub seed: u64,
}

fn default_delay_ms() -> u64 {
    2_000
}

fn default_retry_ms() -> u64 {
    1_000
}

fn default_tries() -> u32 {
    20
}

impl std::fmt::Debug for Emit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emit").field("url", &self.url).field("form", &self.form).finish_non_exhaustive()
    }
}

impl Emit {
    /// Every event to `url`, once, in the appliance's form.
    pub fn to(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            token: None,
            secret: None,
            form: EmitForm::default(),
            lost: 0.0,
            duplicated: 0.0,
            reordered: 0.0,
            delayed: 0.0,
            delay_ms: default_delay_ms(),
            retry_ms: default_retry_ms(),
            tries: default_tries(),
            seed: 0,
        }
    }

    /// The key of the secret, if there is one.
    ///
    /// # Errors
    /// What is wrong with any of the settings.
    fn checked(&self) -> Result<Option<hmac::Key>, String> {
        reqwest::Url::parse(&self.url).map_err(|error| format!("'url': {error}"))?;
        for (name, share) in [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("delayed", self.delayed),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("'{name}' is a share from 0 to 1"));
            }
        }
        if self.tries == 0 {
            return Err("'tries' is at least 1".to_owned());
        }
        let Some(secret) = &self.secret else { return Ok(None) };
        let encoded = secret.strip_prefix("whsec_").ok_or("'secret' begins with whsec_")?;
        let key = BASE64.decode(encoded).map_err(|_| "'secret' is no Base64 after its prefix")?;
        Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }
}

/// What became of the events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Emitted {
    /// Made, whatever became of them.
    pub made: u64,
    /// Never sent on purpose.
    pub lost: u64,
    /// Answered with 2xx; duplicates are not counted again.
    pub accepted: u64,
    /// Sent once more although they had been taken.
    pub duplicated: u64,
    /// Held back for a later one.
    pub reordered: u64,
    /// Sent late.
    pub delayed: u64,
    /// Requests made.
    pub tries: u64,
    /// Given up after the last try.
    pub abandoned: u64,
    /// Not yet accepted, lost or given up.
    pub waiting: u64,
}

/// What to do with the events, from now on.
#[derive(Debug)]
pub(super) struct Plan {
    emit: Arc<Emit>,
    key: Option<hmac::Key>,
    random: Random,
}

impl Plan {
    /// # Errors
    /// What is wrong with the settings.
    pub(super) fn new(emit: Emit) -> Result<Self, String> {
        let key = emit.checked()?;
        Ok(Self { key, random: Random(emit.seed), emit: Arc::new(emit) })
    }

    pub(super) fn emit(&self) -> &Emit {
        &self.emit
    }
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Happened<'a> {
    Audit(&'a Audit),
    Score(&'a Scoring),
}

/// An event on its way.
#[derive(Debug)]
struct Parcel {
    emit: Arc<Emit>,
    key: Option<hmac::Key>,
    /// The same for every try.
    id: String,
    host: u64,
    body: String,
    delay: Duration,
    held: bool,
    twice: bool,
}

/// Makes events, and counts what becomes of them.
#[derive(Debug)]
pub(super) struct Outbox {
    parcels: mpsc::UnboundedSender<Parcel>,
    tally: watch::Sender<Emitted>,
}

/// The other end, until somebody begins to send.
#[derive(Debug)]
pub(super) struct Inbox {
    parcels: mpsc::UnboundedReceiver<Parcel>,
    tally: watch::Sender<Emitted>,
}

/// Both ends.
pub(super) fn mailbox() -> (Outbox, Inbox) {
    let (outgoing, parcels) = mpsc::unbounded_channel();
    let tally = watch::Sender::new(Emitted::default());
    (Outbox { parcels: outgoing, tally: tally.clone() }, Inbox { parcels, tally })
}

impl Outbox {
    pub(super) fn tally(&self) -> watch::Receiver<Emitted> {
        self.tally.subscribe()
    }

    /// Sends what `plan` makes of what happened.
    pub(super) fn tell(&self, plan: &mut Plan, happened: Happened<'_>) {
        for (host, body) in bodies(plan.emit.form, happened) {
            // Always as many numbers as there are fates, so that one share does not change what the others meet.
            let [lost, twice, held, late] = std::array::from_fn(|_| plan.random.fraction());
            let much = plan.random.fraction();
            let emit = &plan.emit;
            let parcel = Parcel {
                emit: Arc::clone(emit),
                key: plan.key.clone(),
                id: format!("msg_{}", Uuid::now_v7().simple()),
                host,
                body: body.to_string(),
                delay: if late < emit.delayed {
                    Duration::from_millis(emit.delay_ms).mul_f64(much)
                } else {
                    Duration::ZERO
                },
                held: held < emit.reordered,
                twice: twice < emit.duplicated,
            };
            let lost = lost < emit.lost;
            self.tally.send_modify(|tally| {
                tally.made += 1;
                if lost {
                    tally.lost += 1;
                    return;
                }
                tally.waiting += 1;
                tally.delayed += u64::from(!parcel.delay.is_zero());
                tally.reordered += u64::from(parcel.held);
            });
            if !lost {
                // Nobody receives only once the simulator has stopped.
                let _ = self.parcels.send(parcel);
            }
        }
    }
}

/// The events that something becomes, with the hosts they are about.
fn bodies(form: EmitForm, happened: Happened<'_>) -> Vec<(u64, Value)> {
    let line = |kind: &str, inner: String, at: Timestamp| json!({"timestamp": at.to_string(), "host": BRAIN_NAME, "message": format!("{kind} -: {inner}")});
    let entry = |audit: &Audit| serde_json::to_value(audit.entry()).expect("texts are JSON");
    match (form, happened) {
        (EmitForm::Native, Happened::Audit(audit)) => vec![(audit.host(), entry(audit))],
        (EmitForm::Hosted, Happened::Audit(audit)) => vec![(audit.host(), audit.event())],
        (EmitForm::Syslog, Happened::Audit(audit)) => {
            vec![(audit.host(), line("vectra_json_audit", entry(audit).to_string(), audit.at))]
        }
        (EmitForm::Native, Happened::Score(scoring)) => vec![(scoring.host, scoring.syslog())],
        (EmitForm::Hosted, Happened::Score(scoring)) => vec![(scoring.host, scoring.event())],
        (EmitForm::Syslog, Happened::Score(scoring)) => {
            vec![(scoring.host, line("vectra_json_v2", scoring.syslog().to_string(), scoring.at))]
        }
        (EmitForm::Canonical, Happened::Audit(audit)) => {
            let event = |kind: &str, host: u64, more: Value| {
                let mut event = json!({
                    "type": kind, "id": format!("evt-{}", Uuid::now_v7()), "occurred_at": audit.at.to_string(),
                    "host": {"id": host}, "actor": audit.user,
                });
                if let (Value::Object(event), Value::Object(more)) = (&mut event, more) {
                    event.extend(more);
                }
                (host, event)
            };
            match &audit.about {
                About::Tags { host, old, new } => {
                    vec![event("host.tags.changed", *host, json!({"tags": {"before": old, "after": new}}))]
                }
                About::Tag { hosts, tag, added } => {
                    let kind = if *added { "host.tag.added" } else { "host.tag.removed" };
                    hosts.iter().map(|host| event(kind, *host, json!({"tag": tag}))).collect()
                }
                About::Other => Vec::new(),
            }
        }
        (EmitForm::Canonical, Happened::Score(scoring)) => vec![(
            scoring.host,
            json!({
                "type": "host.scored", "id": format!("evt-{}", Uuid::now_v7()), "occurred_at": scoring.at.to_string(),
                "host": {"id": scoring.host, "name": scoring.name, "ip": scoring.address},
                "score": {"threat": scoring.threat, "certainty": scoring.certainty, "decreased": scoring.decreased},
            }),
        )],
    }
}

/// Sends what comes until `stop`.
pub(super) async fn run(mut inbox: Inbox, stop: CancellationToken) {
    let mut lanes: Vec<mpsc::UnboundedSender<Parcel>> = Vec::new();
    loop {
        let parcel = tokio::select! {
            parcel = inbox.parcels.recv() => parcel,
            () = stop.cancelled() => None,
        };
        let Some(parcel) = parcel else { return };
        if lanes.is_empty() {
            // Made at the first event: most simulators never send one.
            let sender = Sender { http: client(), tally: inbox.tally.clone(), stop: stop.clone() };
            lanes.extend((0..LANES).map(|_| {
                let (lane, parcels) = mpsc::unbounded_channel();
                tokio::spawn(work(parcels, sender.clone()));
                lane
            }));
        }
        let lane = (parcel.host % LANES as u64) as usize;
        let _ = lanes[lane].send(parcel);
    }
}

fn client() -> Option<reqwest::Client> {
    let client =
        reqwest::Client::builder().timeout(TRY_LIMIT).redirect(reqwest::redirect::Policy::none()).no_proxy().build();
    client.inspect_err(|error| tracing::error!(%error, "the simulated brain cannot send events")).ok()
}

/// One lane: first tries in order, held events after the next of their host.
async fn work(mut parcels: mpsc::UnboundedReceiver<Parcel>, sender: Sender) {
    let mut held: VecDeque<(Instant, Parcel)> = VecDeque::new();
    loop {
        let due = held.front().map(|(due, _)| *due);
        tokio::select! {
            () = sender.stop.cancelled() => return,
            parcel = parcels.recv() => match parcel {
                None => return,
                Some(parcel) if !parcel.delay.is_zero() => {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            () = tokio::time::sleep(parcel.delay) => sender.first_try(parcel).await,
                            () = sender.stop.cancelled() => {}
                        }
                    });
                }
                Some(parcel) if parcel.held => held.push_back((Instant::now() + PASSING_LIMIT, parcel)),
                Some(parcel) => {
                    let host = parcel.host;
                    sender.first_try(parcel).await;
                    while let Some(at) = held.iter().position(|(_, parcel)| parcel.host == host) {
                        if let Some((_, parcel)) = held.remove(at) {
                            sender.first_try(parcel).await;
                        }
                    }
                }
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some((_, parcel)) = held.pop_front() {
                    sender.first_try(parcel).await;
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Sender {
    http: Option<reqwest::Client>,
    tally: watch::Sender<Emitted>,
    stop: CancellationToken,
}

impl Sender {
    /// Tries once; if that fails, a task of its own tries on.
    async fn first_try(&self, parcel: Parcel) {
        match self.try_once(&parcel).await {
            Ok(()) => self.accepted(&parcel).await,
            Err(wait) => {
                let sender = self.clone();
                tokio::spawn(async move { sender.try_on(parcel, wait).await });
            }
        }
    }

    async fn try_on(&self, parcel: Parcel, mut asked: Option<Duration>) {
        let mut wait = Duration::from_millis(parcel.emit.retry_ms);
        for _ in 1..parcel.emit.tries {
            tokio::select! {
                () = tokio::time::sleep(wait.max(asked.unwrap_or_default()).min(RETRY_LIMIT)) => {}
                () = self.stop.cancelled() => return,
            }
            match self.try_once(&parcel).await {
                Ok(()) => return self.accepted(&parcel).await,
                Err(after) => asked = after,
            }
            wait = wait.saturating_mul(2).min(RETRY_LIMIT);
        }
        tracing::warn!(webhook.id = parcel.id, "the simulated brain gives an event up");
        self.tally.send_modify(|tally| {
            tally.abandoned += 1;
            tally.waiting = tally.waiting.saturating_sub(1);
        });
    }

    async fn accepted(&self, parcel: &Parcel) {
        if parcel.twice {
            self.tally.send_modify(|tally| tally.duplicated += 1);
            // Whatever answers the second, the first was taken.
            let _ = self.try_once(parcel).await;
        }
        self.tally.send_modify(|tally| {
            tally.accepted += 1;
            tally.waiting = tally.waiting.saturating_sub(1);
        });
    }

    /// One request; an error holds what `Retry-After` asked for.
    async fn try_once(&self, parcel: &Parcel) -> Result<(), Option<Duration>> {
        self.tally.send_modify(|tally| tally.tries += 1);
        let Some(http) = &self.http else { return Err(None) };
        let mut request = http.post(&parcel.emit.url).header("content-type", "application/json");
        if let Some(key) = &parcel.key {
            let timestamp = Timestamp::now().as_second();
            let signature = signature(key, &parcel.id, timestamp, &parcel.body);
            request = request
                .header("webhook-id", &parcel.id)
                .header("webhook-timestamp", timestamp.to_string())
                .header("webhook-signature", signature);
        }
        if let Some(token) = &parcel.emit.token {
            request = request.bearer_auth(token);
        }
        let answer = tokio::select! {
            answer = request.body(parcel.body.clone()).send() => answer,
            () = self.stop.cancelled() => return Err(None),
        };
        match answer {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => {
                tracing::debug!(
                    webhook.id = parcel.id,
                    http.response.status_code = answer.status().as_u16(),
                    "an event was not taken"
                );
                let asked = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
                Err(asked.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs))
            }
            Err(error) => {
                tracing::debug!(webhook.id = parcel.id, error = %error.without_url(), "an event could not be sent");
                Err(None)
            }
        }
    }
}

/// `v1,` and the Base64 of HMAC-SHA256 over id, timestamp and body (`cognito.md` 4.4).
fn signature(key: &hmac::Key, id: &str, timestamp: i64, body: &str) -> String {
    let tag = hmac::sign(key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64.encode(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_published_vector() {
        let secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned();
        let emit = Emit { secret: Some(secret), ..Emit::to("http://127.0.0.1/") };
        let body = r#"{"type":"host.tag.added","id":"evt-2026-000001","occurred_at":"2026-02-03T10:30:45Z","brain":"hq","host":{"id":4711,"name":"fin-lt-0042","ip":"192.0.2.42"},"tag":"block","actor":"analyst.one"}"#;
        let key = emit.checked().unwrap().unwrap();
        assert_eq!(
            signature(&key, "msg_7Yt2QpLx0aZk", 1_770_114_646, body),
            "v1,cZ3VKTKpnnK+tP4T2NTDeuNlKwTfW25yIOkIXaH5/OU="
        );
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let emit = || Emit::to("http://127.0.0.1:1/");
        for (emit, name) in [
            (Emit::to("nowhere"), "url"),
            (Emit { lost: 1.5, ..emit() }, "lost"),
            (Emit { delayed: f64::NAN, ..emit() }, "delayed"),
            (Emit { tries: 0, ..emit() }, "tries"),
            (Emit { secret: Some("abc".into()), ..emit() }, "secret"),
            (Emit { secret: Some("whsec_!".into()), ..emit() }, "secret"),
        ] {
            let error = Plan::new(emit).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        assert!(Plan::new(emit()).is_ok());
    }

    #[test]
    fn no_secret_shows_in_debug_or_json() {
        let emit =
            Emit { token: Some("T0ken".into()), secret: Some("whsec_AAAA".into()), ..Emit::to("http://a.example/") };
        let shown = format!("{emit:?} {}", serde_json::to_string(&emit).unwrap());
        assert!(!shown.contains("T0ken") && !shown.contains("AAAA"), "{shown}");
    }

    #[test]
    fn fates_repeat_with_their_seed() {
        let run = |seed| {
            let (outbox, mut inbox) = mailbox();
            let emit = Emit {
                seed,
                lost: 0.3,
                duplicated: 0.3,
                reordered: 0.3,
                delayed: 0.3,
                ..Emit::to("http://a.example/")
            };
            let mut plan = Plan::new(emit).unwrap();
            for id in 0..200 {
                let audit = Audit {
                    id,
                    at: Timestamp::UNIX_EPOCH,
                    user: String::new(),
                    message: String::new(),
                    success: true,
                    about: About::Other,
                };
                outbox.tell(&mut plan, Happened::Audit(&audit));
            }
            let mut fates = Vec::new();
            while let Ok(parcel) = inbox.parcels.try_recv() {
                fates.push((parcel.delay, parcel.held, parcel.twice));
            }
            let tally = *outbox.tally().borrow();
            assert_eq!(tally.lost + fates.len() as u64, 200);
            for share in [tally.lost, tally.delayed, tally.reordered] {
                assert!((20..90).contains(&share), "{tally:?}");
            }
            fates
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
