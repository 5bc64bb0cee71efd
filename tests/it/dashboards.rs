//! The dashboards' queries, run by a real Prometheus that scrapes a deployment at work: every panel shows something.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use defender_bridge::simulator::cognito::{BRAIN_TOKEN, BRAIN_USER, FINANCE_HOST, HR_HOST};
use defender_bridge::simulator::scenario::{C2_ADDRESS, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{self, Simulator};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::bridge::client;
use super::spawned::{PATIENCE, Role, Spawned, closed_port};

const WEBHOOK_TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Steps of a curve.
const COLUMNS: f64 = 40.0;

/// A query of a panel, and where it stands.
struct Query {
    panel: String,
    text: String,
}

fn queries() -> Vec<Query> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the dashboards") {
        let text = std::fs::read_to_string(entry.expect("a file").path()).expect("a dashboard");
        let dashboard: Value = serde_json::from_str(&text).expect("JSON");
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                found.push(Query {
                    panel: format!("{} / {}", dashboard["title"], panel["title"]),
                    text: target["expr"].as_str().expect("a query").to_owned(),
                });
            }
        }
    }
    found
}

/// A Prometheus that scrapes `admin` every second, with the recording rules.
struct Prometheus {
    /// Killed when dropped.
    _child: Child,
    url: String,
    client: reqwest::Client,
}

impl Prometheus {
    async fn start(folder: &Path, admin: &str) -> Self {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/recording.yaml");
        let settings = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "defender-bridge", "static_configs": [{"targets": [admin]}]}],
        });
        let file = folder.join("prometheus.yml");
        // JSON is YAML.
        std::fs::write(&file, settings.to_string()).expect("a file");
        let listen = format!("127.0.0.1:{}", closed_port());
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Prometheus is installed: apt-get install prometheus (tests/run does)");
        Self { _child: child, url: format!("http://{listen}"), client: client() }
    }

    /// Whether a query has a result, one number of it at least. `None` while it cannot be asked.
    async fn shows(&self, query: &str) -> Option<bool> {
        let result = self.ask(query).await?;
        Some(result.iter().any(|sample| sample["value"][1].as_str().is_some_and(|value| value != "NaN")))
    }

    /// The result of a query. `None` while it cannot be asked.
    async fn ask(&self, query: &str) -> Option<Vec<Value>> {
        let mut url: url::Url = format!("{}/api/v1/query", self.url).parse().expect("a URL");
        url.query_pairs_mut().append_pair("query", query);
        let answer: Value = self.client.get(url).send().await.ok()?.json().await.ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        Some(answer["data"]["result"].as_array().expect("a vector").clone())
    }

    /// The course of a query from `from` to now, a line for each of its series: labels, a curve of [`COLUMNS`] steps, the
    /// last value.
    async fn curves(&self, query: &str, from: Timestamp) -> Vec<String> {
        let now = Timestamp::now();
        let step = (now.duration_since(from).as_secs_f64() / COLUMNS).max(0.1);
        let mut url: url::Url = format!("{}/api/v1/query_range", self.url).parse().expect("a URL");
        url.query_pairs_mut()
            .append_pair("query", query)
            .append_pair("start", &from.to_string())
            .append_pair("end", &now.to_string())
            .append_pair("step", &step.to_string());
        let answer = self.client.get(url).send().await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        answer["data"]["result"].as_array().expect("a matrix").iter().map(curve).collect()
    }

    /// Waits until it has scraped the deployment once more than `seen` times, and returns how often it has.
    async fn scraped(&self, seen: u64) -> u64 {
        let end = Instant::now() + PATIENCE;
        loop {
            let result = self.ask("count_over_time(up[1h])").await.unwrap_or_default();
            let count = result.first().and_then(|sample| sample["value"][1].as_str()?.parse().ok()).unwrap_or(0);
            if count > seen {
                return count;
            }
            assert!(Instant::now() < end, "no scrape after {seen}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn curve(series: &Value) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let labels: Vec<&str> = series["metric"]
        .as_object()
        .expect("labels")
        .iter()
        .filter(|(name, _)| name.as_str() != "__name__")
        .filter_map(|(_, value)| value.as_str())
        .collect();
    let points = series["values"].as_array().expect("points").iter();
    let values: Vec<f64> = points.filter_map(|point| point[1].as_str()?.parse().ok()).collect();
    let most = values.iter().copied().fold(0.0, f64::max);
    let step = |value: &f64| STEPS[if most > 0.0 { (value / most * 7.0).round() as usize } else { 0 }];
    let drawn: String = values.iter().map(step).collect();
    format!("  {:<34} {drawn:>41}  {:.4}", labels.join(" "), values.last().copied().unwrap_or(f64::NAN))
}

async fn deployment(simulator: &Simulator, folder: &Path) -> Spawned {
    let url = simulator.url();
    let role = Role::new("serve").sqlite(&folder.join("queue.sqlite")).upstream(&url).set_all(&[
        ("COGNITO_BRAIN", url.as_str()),
        ("COGNITO_TOKEN", BRAIN_TOKEN),
        ("BRIDGE_COGNITO_SELF_USER", BRAIN_USER),
        ("TENANT_ID", DEMO_TENANT_ID),
        ("APP_ID", DEMO_CLIENT_ID),
        ("APP_SECRET", DEMO_CLIENT_SECRET),
        ("BRIDGE_TAG_ENRICH", "host_context"),
        ("BRIDGE_TAG_BLOCK", "block"),
        ("BRIDGE_TAG_UNBLOCK", "unblock"),
        ("BRIDGE_SWEEP_INTERVAL", "2s"),
        ("BRIDGE_FEED_INTERVAL", "2s"),
        ("BRIDGE_WEBHOOK_TOKEN", WEBHOOK_TOKEN),
        ("BRIDGE_ANSWER_TTL", "60s"),
    ]);
    role.start().await
}

#[tokio::test]
#[ignore = "needs Prometheus"]
async fn every_panel_of_the_dashboards_shows_something() {
    let simulator = Simulator::start(simulator::Settings::default()).await.expect("the simulator listens");
    let folder = tempfile::tempdir().unwrap();
    let mut serve = deployment(&simulator, folder.path()).await;
    let admin = serve.admin_url("").trim_start_matches("http://").to_owned();
    let (prometheus, began) = (Prometheus::start(folder.path(), &admin).await, Timestamp::now());

    // Work of every kind goes on until all panels show it.
    let mut open = queries();
    assert!(open.len() > 40, "only {} queries", open.len());
    let brain = simulator.control().brain();
    let (mut round, mut scrapes, end) = (0u32, 0, Instant::now() + PATIENCE * 3);
    while !open.is_empty() {
        assert!(
            Instant::now() < end,
            "these show nothing: {:#?}",
            open.iter().map(|query| format!("{}: {}", query.panel, query.text)).collect::<Vec<_>>()
        );
        round += 1;
        let address = format!("198.51.100.{}", round % 250);
        serve.observe(&[("ip", C2_ADDRESS), ("ip", &address)]).await;
        let event = json!({"type": "host.tag.added", "host": {"id": HR_HOST}, "tag": "host_context"});
        let sent = client().post(serve.url("/webhooks/cognito")).bearer_auth(WEBHOOK_TOKEN).json(&event).send();
        assert_eq!(sent.await.expect("an answer").status().as_u16(), 202);
        let (tag, host) = if round % 2 == 0 { ("block", FINANCE_HOST) } else { ("host_context", HR_HOST) };
        let _ = brain.add_tag(host, tag, "analyst.one");
        let mut still = Vec::new();
        for query in open {
            if prometheus.shows(&query.text).await != Some(true) {
                still.push(query);
            }
        }
        open = still;
        scrapes = prometheus.scraped(scrapes).await;
    }
    println!("every panel showed something after {round} rounds; the overview, from the start to now:");
    for query in queries().iter().filter(|query| query.panel.contains("overview")) {
        let curves = prometheus.curves(&query.text, began).await;
        assert!(!curves.is_empty(), "{}: {}", query.panel, query.text);
        println!("{}\n{}", query.panel, curves.join("\n"));
    }
    serve.stop().await;
    simulator.stop().await;
}
