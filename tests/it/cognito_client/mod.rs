//! The client of Cognito against the simulated brain, and against scripted servers where no brain answers so.

mod failures;
mod lists;
mod reading;
mod tokens;
mod trust;
mod writing;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use defender_bridge::cognito::{Auth, Cognito, Priority, Rate, Session, Settings};
use defender_bridge::outbound::Outbound;
use defender_bridge::retry::Policy;
use defender_bridge::simulator::cognito::{
    BRAIN_CLIENT_ID, BRAIN_CLIENT_SECRET, BRAIN_TOKEN, Brain, BrainData, BrainSettings, Host,
};
use defender_bridge::simulator::{Control, Recorded, Simulator};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;

use crate::scripted::Scripted;

/// A deadline that is not reached.
const LATER: Duration = Duration::from_secs(60);

/// A deadline that is waited for; long enough for a busy machine to get as far as the test wants.
const SOON: Duration = Duration::from_secs(1);

/// Writes down what it is asked and told, and gives permits while there are any.
struct Book {
    permits: Semaphore,
    asked: Mutex<Vec<Priority>>,
    told: Mutex<Vec<Option<Duration>>>,
}

impl Default for Book {
    fn default() -> Self {
        Book { permits: Semaphore::new(Semaphore::MAX_PERMITS), asked: Mutex::default(), told: Mutex::default() }
    }
}

impl Book {
    /// The priorities of the tries so far.
    fn asked(&self) -> Vec<Priority> {
        self.asked.lock().unwrap().clone()
    }

    /// What was said about being too fast.
    fn told(&self) -> Vec<Option<Duration>> {
        self.told.lock().unwrap().clone()
    }
}

impl Rate for Book {
    fn permit(&self, priority: Priority) -> BoxFuture<'_, ()> {
        async move {
            self.asked.lock().unwrap().push(priority);
            self.permits.acquire().await.unwrap().forget();
        }
        .boxed()
    }

    fn throttled(&self, wait: Option<Duration>) {
        self.told.lock().unwrap().push(wait);
    }
}

fn token() -> Auth {
    Auth::Token(BRAIN_TOKEN.into())
}

fn oauth2() -> Auth {
    Auth::OAuth2 { client_id: BRAIN_CLIENT_ID.into(), client_secret: BRAIN_CLIENT_SECRET.into() }
}

/// As in production, but quick to try again.
fn settings(url: &str, version: &str, auth: Auth) -> Settings {
    let retry = Policy { first: Duration::from_millis(1), cap: Duration::from_millis(2), ..policy() };
    Settings { retry, ..Settings::new(url.parse().unwrap(), version.parse().unwrap(), auth) }
}

fn policy() -> Policy {
    Settings::new("https://brain.example".parse().unwrap(), "v2.5".parse().unwrap(), token()).retry
}

/// A client with its book.
struct Client {
    cognito: Cognito,
    book: Arc<Book>,
}

impl Client {
    fn new(settings: Settings) -> Self {
        let book = Arc::new(Book::default());
        let cognito = Cognito::new(settings, Outbound::new().unwrap(), Arc::clone(&book) as Arc<dyn Rate>);
        Client { cognito, book }
    }

    /// Of an on-premises brain, with a personal token.
    fn of(url: &Url) -> Self {
        Self::new(settings(url.as_str(), "v2.5", token()))
    }

    /// Of a hosted brain.
    fn hosted(url: &Url) -> Self {
        Self::new(settings(url.as_str(), "v3.4", oauth2()))
    }

    fn session(&self) -> Session {
        self.cognito.session(Priority::Normal, Instant::now() + LATER)
    }

    fn session_for(&self, time: Duration) -> Session {
        self.cognito.session(Priority::Normal, Instant::now() + time)
    }
}

/// A simulated brain and a client of it.
struct World {
    simulator: Simulator,
    client: Client,
}

impl World {
    /// A brain with these hosts, and a client with a personal token.
    async fn of(hosts: Vec<Host>) -> Self {
        Self::with(hosts, "v2.5", token()).await
    }

    async fn with(hosts: Vec<Host>, version: &str, auth: Auth) -> Self {
        let brain = BrainSettings { data: BrainData::Given(hosts), ..BrainSettings::default() };
        let settings = defender_bridge::simulator::Settings { brain, ..Default::default() };
        let simulator = Simulator::start(settings).await.unwrap();
        let client = Client::new(self::settings(&simulator.url(), version, auth));
        World { simulator, client }
    }

    fn session(&self) -> Session {
        self.client.session()
    }

    fn control(&self) -> &Control {
        self.simulator.control()
    }

    fn brain(&self) -> Brain {
        self.control().brain()
    }

    /// What the brain was asked, but for tokens.
    fn calls(&self) -> Vec<Recorded> {
        self.control().requests_to("cognito")
    }

    /// The query strings of the calls, decoded.
    fn queries(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.query).collect()
    }
}

fn seen() -> Timestamp {
    "2026-02-03T10:31:07Z".parse().unwrap()
}

fn host(id: u64) -> Host {
    Host::new(id, &format!("fin-lt-{id:04}"), "192.0.2.42", seen())
}

/// A file of the contract's examples.
fn example(name: &str) -> String {
    let path = format!("{}/tests/data/cognito/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The requests for anything but tokens.
fn lines(server: &Scripted) -> Vec<String> {
    let calls = server.seen().into_iter().map(|seen| seen.line).filter(|line| !line.ends_with("/oauth2/token"));
    calls.collect()
}
