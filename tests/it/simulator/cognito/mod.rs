//! The simulated Cognito, asked by a plain HTTP client (`cognito.md` 3 and 7).

mod emission;
mod feeds;
mod reading;
mod refusals;
mod story;
mod tokens;
mod writing;

use defender_bridge::simulator::cognito::{
    BRAIN_CLIENT_ID, BRAIN_CLIENT_SECRET, BRAIN_TOKEN, Brain, BrainData, BrainSettings, Host,
};
use defender_bridge::simulator::{Control, Settings, Simulator};
use jiff::Timestamp;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

/// A simulator whose brain knows some hosts, with a client that holds its personal token.
struct Cognito {
    simulator: Simulator,
    http: Client,
    token: String,
}

impl Cognito {
    /// The story's brain.
    async fn story() -> Self {
        Self::with(BrainSettings::default()).await
    }

    /// A brain with these hosts.
    async fn of(hosts: Vec<Host>) -> Self {
        Self::with(BrainSettings { data: BrainData::Given(hosts), ..BrainSettings::default() }).await
    }

    async fn with(brain: BrainSettings) -> Self {
        let simulator = Simulator::start(Settings { brain, ..Settings::default() }).await.expect("a free port");
        let http = Client::builder().no_proxy().build().expect("a client");
        Self { simulator, http, token: format!("Token {BRAIN_TOKEN}") }
    }

    fn control(&self) -> &Control {
        self.simulator.control()
    }

    fn brain(&self) -> Brain {
        self.control().brain()
    }

    /// A call without credentials.
    fn bare(&self, method: &str, path: &str) -> RequestBuilder {
        self.http.request(method.parse().expect("a method"), format!("{}{path}", self.simulator.url()))
    }

    /// A call with the token.
    fn call(&self, method: &str, path: &str) -> RequestBuilder {
        self.bare(method, path).header("authorization", &self.token)
    }

    /// Status and JSON of a call; null if there is no body.
    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let call = self.call(method, path);
        read(match body {
            Some(body) => call.json(&body),
            None => call,
        })
        .await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, None).await
    }

    async fn control_call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        read(self.bare(method, &format!("/_simulator{path}")).json(&body)).await
    }
}

async fn send(call: RequestBuilder) -> Response {
    call.send().await.expect("the simulator answers")
}

async fn read(call: RequestBuilder) -> (u16, Value) {
    let response = send(call).await;
    let status = response.status().as_u16();
    let body = response.bytes().await.expect("a body");
    (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") })
}

/// A host that was just seen.
fn host(id: u64, tags: &[&str]) -> Host {
    Host::new(id, &format!("host-{id}"), "192.0.2.1", Timestamp::now()).tagged(tags)
}

/// The ids of a list.
fn ids(body: &Value) -> Vec<u64> {
    body["results"].as_array().expect("a list").iter().map(|host| host["id"].as_u64().expect("an id")).collect()
}

/// An example's names of members, sorted.
fn members(value: &Value) -> Vec<String> {
    let mut names: Vec<String> = value.as_object().expect("an object").keys().cloned().collect();
    names.sort_unstable();
    names
}

fn tags(list: &[&str]) -> Value {
    json!({"tags": list})
}

/// An `Authorization` header for v3.
async fn tokens_of_hosted(cognito: &Cognito) -> String {
    let call = cognito.bare("POST", "/oauth2/token").basic_auth(BRAIN_CLIENT_ID, Some(BRAIN_CLIENT_SECRET));
    let (status, body) = read(call.form(&[("grant_type", "client_credentials")])).await;
    assert_eq!(status, 200, "{body}");
    format!("Bearer {}", body["access_token"].as_str().expect("a token"))
}
