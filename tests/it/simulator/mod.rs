//! The simulator, asked by a plain HTTP client: what it refuses, how it fails, that its story hangs together.

mod actions;
mod cognito;
mod controls;
mod faults;
mod hunting;
mod quotas;
mod reading;
mod story;
mod tokens;

use defender_bridge::simulator::scenario::{DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID};
use defender_bridge::simulator::{Control, Settings, Simulator};
use reqwest::{Client, Response, redirect};
use serde_json::{Value, json};

const DEFENDER_SCOPE: &str = "https://api.securitycenter.microsoft.com/.default";
const GRAPH_SCOPE: &str = "https://graph.microsoft.com/.default";

/// A simulator with a client that holds both tokens of the demo tenant.
struct World {
    simulator: Simulator,
    http: Client,
    defender: String,
    graph: String,
}

impl World {
    async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let simulator = Simulator::start(settings).await.expect("the simulator answers");
        let http = Client::builder().redirect(redirect::Policy::none()).no_proxy().build().expect("a client");
        let mut world = Self { simulator, http, defender: String::new(), graph: String::new() };
        world.renew().await;
        world
    }

    async fn renew(&mut self) {
        self.defender = self.token(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEFENDER_SCOPE).await;
        self.graph = self.token(DEMO_TENANT_ID, DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, GRAPH_SCOPE).await;
    }

    fn control(&self) -> &Control {
        self.simulator.control()
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.simulator.url())
    }

    async fn ask_token(&self, tenant: &str, fields: &[(&str, &str)]) -> Response {
        let url = self.at(&format!("/{tenant}/oauth2/v2.0/token"));
        self.http.post(url).form(fields).send().await.expect("the simulator answers")
    }

    async fn token(&self, tenant: &str, client: &str, secret: &str, scope: &str) -> String {
        let fields =
            [("grant_type", "client_credentials"), ("client_id", client), ("client_secret", secret), ("scope", scope)];
        let response = self.ask_token(tenant, &fields).await;
        assert_eq!(response.status(), 200);
        let body: Value = response.json().await.expect("JSON");
        body["access_token"].as_str().expect("a token").to_owned()
    }

    async fn get_with(&self, token: &str, path: &str) -> reqwest::Result<Response> {
        self.http.get(self.at(path)).bearer_auth(token).send().await
    }

    async fn get(&self, path: &str) -> Response {
        self.get_with(&self.defender, path).await.expect("the simulator answers")
    }

    /// Status and JSON of a call to Defender.
    async fn read(&self, path: &str) -> (u16, Value) {
        let response = self.get(path).await;
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn hunt_with(&self, token: &str, body: Value) -> Response {
        let url = self.at("/v1.0/security/runHuntingQuery");
        self.http.post(url).bearer_auth(token).json(&body).send().await.expect("the simulator answers")
    }

    async fn hunt(&self, query: &str) -> (u16, Value) {
        let response = self.hunt_with(&self.graph, json!({"Query": query})).await;
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    async fn control_call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let url = self.at(&format!("/_simulator{path}"));
        let response = self
            .http
            .request(method.parse().expect("a method"), url)
            .json(&body)
            .send()
            .await
            .expect("the simulator answers");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }
}

fn ids(body: &Value) -> Vec<&str> {
    body["value"].as_array().expect("a list").iter().map(|entry| entry["id"].as_str().expect("an id")).collect()
}
