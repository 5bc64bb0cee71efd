//! Everything the simulated services share: tenants and their data, tokens, quotas, faults, the script, the clock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::actions::{Book, Moment};
use super::assertion::Seen;
use super::clock::Clock;
use super::cognito::Cognito;
use super::data::Data;
use super::entra::Tokens;
use super::faults::Faults;
use super::indicators::Indicators;
use super::key_set::KeySet;
use super::notifications::Notifications;
use super::platform::Registry;
use super::quota::{Ledger, Quota, Refusal};
use super::recorder::Recorder;
use super::scenario;
use super::script::{Hunting, Script, Scripted};
use super::{Settings, Tenant, TenantData};

/// How old the story may grow before it is told anew. Half a day: its youngest rows must stay within the last day,
/// which is all that a health probe looks at, and its ids and times should not change while somebody looks at them.
const STORY_AGE_LIMIT: SignedDuration = SignedDuration::from_hours(12);

/// Behaviour that can be changed while the simulator runs, beyond faults and scripts.
#[derive(Debug, Default)]
pub(super) struct Knobs {
    pub(super) quota: Option<Quota>,
    pub(super) latency: Duration,
    pub(super) token_lifetime: Duration,
    pub(super) page_size: Option<usize>,
    pub(super) foreign_next_link: Option<String>,
    pub(super) odd_hunting: bool,
    pub(super) hidden_tables: Vec<String>,
}

/// The state behind a running simulator.
#[derive(Debug)]
pub(super) struct World {
    initial: Settings,
    tenants: RwLock<HashMap<String, Tenant>>,
    story: Mutex<Option<(Timestamp, Arc<Data>)>>,
    nothing: Arc<Data>,
    knobs: RwLock<Knobs>,
    pub(super) clock: Clock,
    pub(super) tokens: Tokens,
    pub(super) assertions: Seen,
    pub(super) key_set: KeySet,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) faults: Mutex<Faults>,
    pub(super) brain: Cognito,
    pub(super) platform: Mutex<Registry>,
    script: RwLock<Script>,
    pub(super) actions: Mutex<Book>,
    pub(super) indicators: Mutex<Indicators>,
    /// Ticks when the actions change by a call, not by the passing of time.
    pub(super) actions_changed: watch::Sender<u64>,
    pub(super) recorder: Recorder,
    pub(super) notifications: Mutex<Notifications>,
    pub(super) stop: CancellationToken,
}

/// A guard whose holder panicked is still good: every change under these locks is a single step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let world = Self {
            tenants: RwLock::default(),
            story: Mutex::default(),
            nothing: Arc::default(),
            knobs: RwLock::default(),
            clock: Clock::default(),
            tokens: Tokens::default(),
            assertions: Seen::default(),
            key_set: KeySet::default(),
            ledger: Mutex::default(),
            faults: Mutex::default(),
            brain: Cognito::new(&settings.brain),
            platform: Mutex::default(),
            script: RwLock::default(),
            actions: Mutex::default(),
            indicators: Mutex::default(),
            actions_changed: watch::Sender::new(0),
            recorder: Recorder::new(settings.record_limit),
            notifications: Mutex::default(),
            stop: CancellationToken::new(),
            initial: settings,
        };
        world.reset();
        world
    }

    /// Back to how it started; tokens that were issued stay good.
    pub(super) fn reset(&self) {
        let settings = &self.initial;
        self.set_knobs(|knobs| {
            *knobs = Knobs {
                quota: settings.quota.clone(),
                latency: settings.latency,
                token_lifetime: settings.token_lifetime,
                ..Knobs::default()
            };
        });
        let tenants = settings.tenants.iter().map(|tenant| (tenant.id.to_ascii_lowercase(), tenant.clone())).collect();
        *self.tenants.write().unwrap_or_else(PoisonError::into_inner) = tenants;
        self.clock.set(None);
        *lock(&self.story) = None;
        lock(&self.ledger).clear();
        lock(&self.faults).clear();
        lock(&self.actions).clear();
        lock(&self.indicators).clear();
        self.set_script(Script::default());
        self.brain.reset(&settings.brain);
        lock(&self.platform).clear();
        self.recorder.clear();
        *lock(&self.notifications) = Notifications::default();
    }

    /// One of the knobs, without copying the others.
    pub(super) fn knob<T>(&self, read: impl FnOnce(&Knobs) -> T) -> T {
        read(&self.knobs.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.knobs.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds a tenant, or replaces the one of the same id.
    pub(super) fn put_tenant(&self, tenant: Tenant) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.id.to_ascii_lowercase(), tenant);
    }

    /// Changes a tenant. False if there is none of that id.
    pub(super) fn change_tenant(&self, id: &str, change: impl FnOnce(&mut Tenant)) -> bool {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.get_mut(&id.to_ascii_lowercase()).map(change).is_some()
    }

    /// The tenant of that id or domain.
    pub(super) fn tenant(&self, id_or_domain: &str) -> Option<Tenant> {
        let wanted = id_or_domain.to_ascii_lowercase();
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let by_id = tenants.get(&wanted);
        by_id.or_else(|| tenants.values().find(|tenant| tenant.domain.as_deref() == Some(&wanted))).cloned()
    }

    /// What that tenant's services know.
    pub(super) fn data(&self, tenant: &str) -> Arc<Data> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        match tenants.get(&tenant.to_ascii_lowercase()).map(|tenant| &tenant.data) {
            Some(TenantData::Given(data)) => Arc::clone(data),
            Some(TenantData::Story) => self.story().1,
            Some(TenantData::Empty) | None => Arc::clone(&self.nothing),
        }
    }

    /// The story, told as of now unless it was told less than half a day ago.
    fn story(&self) -> (Timestamp, Arc<Data>) {
        let now = self.clock.now();
        let mut story = lock(&self.story);
        match &*story {
            Some((told, data)) if now.duration_since(*told).abs() < STORY_AGE_LIMIT => (*told, Arc::clone(data)),
            _ => {
                let data = Arc::new(scenario::story(now));
                *story = Some((now, Arc::clone(&data)));
                (now, data)
            }
        }
    }

    /// When the story was told; it is told now if it was not, or too long ago.
    pub(super) fn story_told(&self) -> Timestamp {
        self.story().0
    }

    /// What the script says about a hunting query.
    pub(super) fn hunting_script(&self, query: &str) -> Hunting {
        self.script.read().unwrap_or_else(PoisonError::into_inner).hunting(query)
    }

    /// The scripted answer for a route.
    pub(super) fn route_script(&self, method: &str, path: &str, query: &[(String, String)]) -> Option<Scripted> {
        self.script.read().unwrap_or_else(PoisonError::into_inner).route(method, path, query).cloned()
    }

    /// Puts another script in force.
    pub(super) fn set_script(&self, script: Script) {
        *self.script.write().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// Moves the clock, and the story with it.
    pub(super) fn set_clock(&self, now: Option<Timestamp>) {
        self.clock.set(now);
        *lock(&self.story) = None;
    }

    /// Now, on all clocks.
    pub(super) fn moment(&self) -> Moment {
        Moment { instant: Instant::now(), date: Timestamp::now(), story: self.clock.now() }
    }

    /// Counts a call against its quota.
    pub(super) fn take(&self, tenant: &str, client: &str, family: &'static str) -> Result<(), Refusal> {
        let Some(quota) = self.knob(|knobs| knobs.quota.clone()) else { return Ok(()) };
        let hunting = family == HUNTING;
        // Hunting is counted for the whole tenant, REST for each application in it (`defender.md` 3.1).
        let client = if hunting { "" } else { client };
        let account = (tenant.to_owned(), client.to_owned(), family);
        lock(&self.ledger).take(&quota, account, hunting, Instant::now())
    }
}

/// The quota family of hunting, which is also the name its calls are counted under.
pub(super) const HUNTING: &str = "hunting";
