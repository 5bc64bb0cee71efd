//! The handle on a running simulator: what was called, and what shall happen next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cognito::Brain;
use super::data::{Data, Row};
use super::faults::{Fault, Matcher};
use super::kql::InsertError;
use super::quota::Quota;
use super::recorder::Recorded;
use super::script::{Script, Scripted};
use super::world::{World, lock};
use super::{Application, Tenant, TenantData, entra};

/// How long the calls that somebody waits for may take to come: longer than any deadline of the bridge.
const REACHED_PATIENCE: Duration = Duration::from_secs(60);

/// One of the two services that look at roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Defender for Endpoint.
    Defender,
    /// Microsoft Graph.
    Graph,
}

/// Counts, records and controls a simulator. Clones control the same one; all methods may be called at any time.
#[derive(Debug, Clone)]
pub struct Control(pub(super) Arc<World>);

impl Control {
    /// The brain of Vectra Cognito.
    pub fn brain(&self) -> Brain {
        Brain(Arc::clone(&self.0))
    }

    /// The module instances of the platform, oldest first.
    pub fn module_instances(&self) -> Vec<Value> {
        lock(&self.0.platform).instances()
    }

    /// Makes the platform's tokens worthless.
    pub fn revoke_platform_tokens(&self) {
        lock(&self.0.platform).revoke();
    }

    /// How many calls there were. `route` is a name (`token`, `alerts`, `files`, `machines`, `actions`, `machineactions`,
    /// `hunting`, `exposureScore`, `cognito`, `cognito-token`, `platform`, `platform-token`, `key-set`, `retired`,
    /// `unknown`) or a route's template
    /// (`files/{id}/alerts`, `machines/{id}`, `tagging/host/{id}`, ...).
    pub fn calls(&self, route: &str) -> u64 {
        self.0.recorder.calls(None, route)
    }

    /// As [`Control::calls`], of one tenant.
    pub fn calls_of(&self, tenant: &str, route: &str) -> u64 {
        self.0.recorder.calls(Some(&tenant.to_ascii_lowercase()), route)
    }

    /// All counters by name and by template.
    pub fn all_calls(&self) -> BTreeMap<&'static str, u64> {
        self.0.recorder.all_calls()
    }

    /// How many requests there were since the start, [`Control::forget`] or not.
    pub fn total(&self) -> u64 {
        self.0.recorder.total()
    }

    /// How many answers were 429, whatever the reason.
    pub fn throttled(&self) -> u64 {
        self.0.recorder.throttled()
    }

    /// The most requests that were in work at once.
    pub fn peak(&self) -> u64 {
        self.0.recorder.peak()
    }

    /// How many requests are in work now.
    pub fn at_work(&self) -> u64 {
        self.0.recorder.at_work()
    }

    /// The last requests, oldest first; how many is set by [`Settings::record_limit`](super::Settings::record_limit).
    pub fn requests(&self) -> Vec<Recorded> {
        self.0.recorder.recorded()
    }

    /// The last requests of one route, oldest first.
    pub fn requests_to(&self, route: &str) -> Vec<Recorded> {
        self.requests().into_iter().filter(|request| request.route == route || request.template == route).collect()
    }

    /// The texts of the hunting queries among the last requests, oldest first.
    pub fn hunting_queries(&self) -> Vec<String> {
        self.requests().into_iter().filter_map(|request| request.hunting).collect()
    }

    /// Returns when there have been at least `count` calls of `route`; they may still be in work.
    ///
    /// # Panics
    /// They do not come within a minute: a count that is never reached fails a test in place of hanging it.
    pub async fn reached(&self, route: &str, count: u64) {
        let mut ticks = self.0.recorder.watch();
        let all = ticks.wait_for(|_| self.calls(route) >= count);
        let in_time = tokio::time::timeout(REACHED_PATIENCE, all).await;
        assert!(in_time.is_ok(), "only {} of {count} calls of {route} came", self.calls(route));
    }

    /// Sets all counters to zero and forgets the requests.
    pub fn forget(&self) {
        self.0.recorder.clear();
    }

    /// Lets `fault` happen to the next `times` calls that match.
    pub fn fail_next(&self, matcher: impl Into<Matcher>, fault: Fault, times: u32) {
        lock(&self.0.faults).next(matcher.into(), fault, times);
    }

    /// Lets `fault` happen to each call that matches with this probability (0 to 1), the same way for the same `seed`.
    pub fn fail_rate(&self, matcher: impl Into<Matcher>, fault: Fault, probability: f64, seed: u64) {
        lock(&self.0.faults).rate(matcher.into(), fault, probability, seed);
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        lock(&self.0.faults).clear();
    }

    /// Replaces the script. A scripted answer comes before everything but the check of the token: quotas and roles do
    /// not matter to it.
    ///
    /// # Errors
    /// When rows do not fit the hunting tables; the old script stays in force then.
    pub fn script(&self, script: Vec<Scripted>) -> Result<(), InsertError> {
        let mut trial = Data::default();
        for row in script.iter().filter_map(|scripted| scripted.rows.as_ref()).flatten() {
            trial.add_event(row.clone())?;
        }
        self.0.set_script(Script(script));
        Ok(())
    }

    /// Makes the tokens issued so far worthless: those of one tenant, or all.
    pub fn revoke_tokens(&self, tenant: Option<&str>) {
        self.0.tokens.revoke(tenant);
    }

    /// How long tokens issued from now on are good.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.0.set_knobs(|knobs| knobs.token_lifetime = lifetime);
    }

    /// The texts of all tokens issued, in no order: to search for them where they must not be.
    pub fn tokens(&self) -> Vec<String> {
        self.0.tokens.texts()
    }

    /// The claims of a token, not verified.
    pub fn claims(token: &str) -> Option<Value> {
        entra::claims(token)
    }

    /// The roles of the tokens issued to this tenant from now on; none at all leaves the claim out. Tokens already
    /// issued keep theirs, as with the real service: [`Control::revoke_tokens`] makes clients fetch new ones.
    /// False if there is no such tenant.
    pub fn set_roles(&self, tenant: &str, resource: Resource, roles: &[&str]) -> bool {
        let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        self.0.change_tenant(tenant, |tenant| match resource {
            Resource::Defender => tenant.defender_roles = roles,
            Resource::Graph => tenant.graph_roles = roles,
        })
    }

    /// Changes a tenant's client secret. False if there is no such tenant.
    pub fn set_secret(&self, tenant: &str, secret: &str) -> bool {
        self.0.change_tenant(tenant, |tenant| secret.clone_into(&mut tenant.client_secret))
    }

    /// Registers a certificate (PEM, with an RSA key) for a tenant's application. False if there is no such tenant.
    pub fn add_certificate(&self, tenant: &str, pem: &str) -> bool {
        self.0.change_tenant(tenant, |tenant| tenant.certificates.push(pem.to_owned()))
    }

    /// Gives a tenant one application more, or replaces that of the same id. False if there is no such tenant.
    pub fn put_application(&self, tenant: &str, application: Application) -> bool {
        self.0.change_tenant(tenant, |tenant| {
            tenant.applications.retain(|one| one.client_id != application.client_id);
            tenant.applications.push(application);
        })
    }

    /// A token with these claims, as the platform signs it (RS256): for a relay that takes key-set tokens.
    pub fn key_set_token(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.key_set_kid()});
        self.key_set_signed(&header, claims)
    }

    /// Any header and payload, signed with the platform's key.
    pub fn key_set_signed(&self, header: &Value, payload: &Value) -> String {
        self.0.key_set.sign(header, payload)
    }

    /// The id of the key that the platform signs with.
    pub fn key_set_kid(&self) -> String {
        self.0.key_set.kid()
    }

    /// The platform takes another key in place of the one it has.
    pub fn rotate_key_set(&self) {
        self.0.key_set.rotate();
    }

    /// Adds a tenant, or replaces the one of the same id.
    pub fn put_tenant(&self, tenant: Tenant) {
        self.0.put_tenant(tenant);
    }

    /// Replaces what a tenant's services know. False if there is no such tenant.
    pub fn set_data(&self, tenant: &str, data: Data) -> bool {
        self.0.change_tenant(tenant, |tenant| tenant.data = TenantData::Given(Arc::new(data)))
    }

    /// Gives a tenant the data of a worked example ([`Data::from_example`]) and moves the clock to an hour after its
    /// newest time, so that its events are among the last 30 days. The tenant is added if there is none, with the
    /// credentials `client-id-1` and `client-secret-1` that the examples use.
    ///
    /// # Errors
    /// When a row does not fit its table.
    pub fn load_example(&self, tenant: &str, example: &Value) -> Result<(), InsertError> {
        let (data, newest) = Data::from_example(example)?;
        if self.0.tenant(tenant).is_none() {
            self.0.put_tenant(Tenant::reader(tenant, "client-id-1", "client-secret-1", TenantData::Empty));
        }
        self.set_data(tenant, data);
        if let Some(newest) = newest {
            self.set_clock(Some(newest + EXAMPLE_AGE));
        }
        Ok(())
    }

    /// Adds rows to one hunting table of a tenant, which keeps the rest of its data.
    ///
    /// # Errors
    /// When a row does not fit the table; nothing is added then.
    pub fn load_tables(&self, tenant: &str, table: &str, rows: Vec<Row>) -> Result<(), InsertError> {
        let mut data = Data::clone(&self.0.data(tenant));
        for row in rows {
            data.add_row(table, row)?;
        }
        self.set_data(tenant, data);
        Ok(())
    }

    /// The story's time now.
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Makes it that time in the story, from where the clock runs on; `None`: the real time. The story's events move
    /// with it. Quotas and tokens go by the real clock.
    pub fn set_clock(&self, now: Option<Timestamp>) {
        self.0.set_clock(now);
    }

    /// Sets the quotas; `None`: no limit. Calls counted so far are forgotten.
    pub fn set_quota(&self, quota: Option<Quota>) {
        self.0.set_knobs(|knobs| knobs.quota = quota);
        lock(&self.0.ledger).clear();
    }

    /// How long each call takes at least.
    pub fn set_latency(&self, latency: Duration) {
        self.0.set_knobs(|knobs| knobs.latency = latency);
    }

    /// Lists are cut into pages of this many entries with `@odata.nextLink`; `None`: never.
    pub fn set_page_size(&self, size: Option<usize>) {
        self.0.set_knobs(|knobs| knobs.page_size = size.map(|size| size.max(1)));
    }

    /// Links to further pages point to this base URL instead of where the client came from; `None`: as they should.
    pub fn set_foreign_next_link(&self, base: Option<&str>) {
        self.0.set_knobs(|knobs| knobs.foreign_next_link = base.map(str::to_owned));
    }

    /// Hunting answers in the odd spellings that clients must bear (`defender.md` 4.2).
    pub fn set_odd_hunting(&self, odd: bool) {
        self.0.set_knobs(|knobs| knobs.odd_hunting = odd);
    }

    /// Tables that hunting does not find, as when a product is missing.
    pub fn set_hidden_tables(&self, tables: &[&str]) {
        self.0.set_knobs(|knobs| knobs.hidden_tables = tables.iter().map(|table| (*table).to_owned()).collect());
    }

    /// Back to the settings it started with; counters, faults, script, data and clock included.
    pub fn reset(&self) {
        self.0.reset();
    }
}

/// How long ago the newest event of a worked example is once it is loaded.
const EXAMPLE_AGE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
