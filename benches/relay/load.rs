//! The load: callers in closed loops, and what they saw. Callers of the relay are bounded asynchronous HTTP clients:
//! hyper's connection, one for each caller, kept alive; no pool, no redirects, no decoding, so that little of the
//! machine's time goes into asking.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use crate::Timing;
use crate::process::{Meter, Usage};

/// A call that takes longer counts as failed; the product answers within 50 s.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// One caller.
pub trait Caller: Send + 'static {
    /// Asks once and reads the whole answer.
    fn call(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What was measured in one cell, or in all cells of a kind.
#[derive(Debug, Default)]
pub struct Cell {
    /// Of each answered request, in microseconds.
    pub latencies_us: Vec<u32>,
    /// Requests not answered, or wrongly.
    pub failed: u64,
    /// How long was measured.
    pub elapsed: Duration,
    /// CPU time meanwhile.
    pub usage: Usage,
}

impl Cell {
    /// Answered requests per second.
    pub fn per_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// The latency that `share` of the requests stayed below, in milliseconds. Sorts.
    pub fn percentile_ms(&mut self, share: f64) -> f64 {
        self.latencies_us.sort_unstable();
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies_us.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }

    /// Takes in what another cell measured.
    pub fn merge(&mut self, other: Self) {
        self.latencies_us.extend(other.latencies_us);
        self.failed += other.failed;
        self.elapsed += other.elapsed;
        self.usage.add(&other.usage);
    }
}

/// Lets the callers ask for the time of a cell.
pub async fn run<C: Caller>(callers: Vec<C>, meter: &Meter, timing: Timing) -> anyhow::Result<Cell> {
    let begin = Instant::now() + timing.warm_up;
    let end = begin + timing.measured;
    let tasks: Vec<_> = callers.into_iter().map(|caller| tokio::spawn(ask(caller, begin, end))).collect();
    sleep_until(begin.into()).await;
    let before = meter.read();
    sleep_until(end.into()).await;
    let usage = meter.read().since(&before);
    let mut cell = Cell { elapsed: timing.measured, usage, ..Cell::default() };
    for seen in try_join_all(tasks).await? {
        cell.latencies_us.extend(seen.0);
        cell.failed += seen.1;
    }
    Ok(cell)
}

/// Asks until `end`; what was answered between `begin` and `end` counts.
async fn ask<C: Caller>(mut caller: C, begin: Instant, end: Instant) -> (Vec<u32>, u64) {
    let (mut latencies, mut failed) = (Vec::new(), 0);
    loop {
        let asked = Instant::now();
        if asked >= end {
            return (latencies, failed);
        }
        let outcome = timeout(CALL_LIMIT, caller.call()).await.context("no answer in time").flatten();
        let answered = Instant::now();
        match outcome {
            Ok(()) if answered >= begin && answered <= end => {
                let us = answered.duration_since(asked).as_micros();
                latencies.push(u32::try_from(us).unwrap_or(u32::MAX));
            }
            Ok(()) => {}
            Err(error) => {
                if failed == 0 {
                    eprintln!("a request failed: {error:#}");
                }
                failed += 1;
                // Not a second load of its own kind.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Where the relay listens and what to ask it.
#[derive(Debug, Clone)]
pub struct Target {
    address: SocketAddr,
    token: Arc<str>,
    question: Bytes,
    /// The least that a right answer has; times in it may be written shorter or longer.
    least_bytes: usize,
}

impl Target {
    pub fn new(address: SocketAddr, token: &str, question: Bytes) -> Self {
        Self { address, token: token.into(), question, least_bytes: 0 }
    }

    /// Asks once, takes the answer for the right one, and returns it.
    pub async fn probe(&mut self) -> anyhow::Result<Bytes> {
        let mut caller = self.callers(1).await?.pop().context("one caller")?;
        let body = caller.ask().await?;
        let text = String::from_utf8_lossy(&body);
        anyhow::ensure!(
            text.contains("\"sightings\"") && !text.contains("\"errors\""),
            "not the answer expected: {}",
            text.chars().take(500).collect::<String>()
        );
        self.least_bytes = body.len() * 9 / 10;
        Ok(body)
    }

    /// So many connections.
    pub async fn callers(&self, count: usize) -> anyhow::Result<Vec<Client>> {
        let mut callers = Vec::with_capacity(count);
        for _ in 0..count {
            callers.push(Client { target: self.clone(), sender: self.connect().await? });
        }
        Ok(callers)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.address).await.context("cannot connect to the ingress")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what went wrong is seen by the call.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A caller of the relay with its connection.
pub struct Client {
    target: Target,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    async fn ask(&mut self) -> anyhow::Result<Bytes> {
        if self.sender.ready().await.is_err() {
            self.sender = self.target.connect().await?;
        }
        let request = Request::post("/observe/observables")
            .header("host", "relay")
            .header("authorization", format!("Bearer {}", self.target.token))
            .header("content-type", "application/json")
            .body(Full::new(self.target.question.clone()))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status == hyper::StatusCode::OK, "status {status}");
        Ok(body)
    }
}

impl Caller for Client {
    async fn call(&mut self) -> anyhow::Result<()> {
        let body = self.ask().await?;
        if body.len() < self.target.least_bytes {
            anyhow::bail!("not the answer expected: {}", String::from_utf8_lossy(&body[..body.len().min(300)]));
        }
        Ok(())
    }
}
