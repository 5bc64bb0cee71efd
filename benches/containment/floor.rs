//! What nobody can save: the calls that an isolation needs, one after the other, by a plain HTTP client.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BulkHost};
use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET};
use serde_json::{Value, json};

use crate::stage::{Stage, TENANT};

/// Isolates the machines of `hosts` by the barest calls; how long each took.
pub async fn isolate(stage: &Stage, hosts: &[BulkHost]) -> anyhow::Result<Vec<Duration>> {
    let (client, base) = (&stage.client, stage.simulator.url());
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", DEMO_CLIENT_ID),
        ("client_secret", DEMO_CLIENT_SECRET),
        ("scope", "https://api.securitycenter.microsoft.com/.default"),
    ];
    let token: Value = client
        .post(format!("{base}/{TENANT}/oauth2/v2.0/token"))
        .form(&form)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let token = token["access_token"].as_str().context("a token")?;
    let cognito = |path: String| {
        client.get(format!("{base}/api/v2.5/{path}")).header("authorization", format!("Token {BRAIN_TOKEN}"))
    };
    let defender = |path: String| client.get(format!("{base}/api/{path}")).bearer_auth(token);
    let mut took = Vec::with_capacity(hosts.len());
    for host in hosts {
        let began = Instant::now();
        let shown: Value = read(cognito(format!("hosts/{}", host.id))).await?;
        read(cognito(format!("tagging/host/{}", host.id))).await?;
        let (address, seen) = (shown["last_source"].as_str(), shown["last_seen"].as_str());
        let (address, seen) = (address.context("an address")?, seen.context("a time")?);
        let found: Value = read(defender(format!("machines/findbyip(ip='{address}',timestamp={seen})"))).await?;
        let machine = found["value"][0]["id"].as_str().context("a machine")?;
        read(defender(format!("machineactions?$filter=machineId eq '{machine}'"))).await?;
        let asked = client.post(format!("{base}/api/machines/{machine}/isolate")).bearer_auth(token);
        read(asked.json(&json!({"Comment": "floor", "IsolationType": "Full"}))).await?;
        took.push(began.elapsed());
    }
    Ok(took)
}

async fn read(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    Ok(request.send().await?.error_for_status()?.json().await?)
}
