//! `module`: registers the relay with Cisco's platform (`module-registration.md` 3 and 4), in place of the tool that
//! users of the first relay have.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::prompt;
use crate::config::{Findings, LogArgs, PlatformArgs, PlatformSettings, RelayModuleArgs, Routes, environment};
use crate::outbound::Outbound;
use crate::platform::instance::{self, CUSTOM_RELAY_TYPE, Faults, File};
use crate::platform::{Instance, Key, Platform, prove};

/// The name under which the first relay's users know it.
const NAME: &str = "Microsoft Defender for Endpoint";

/// How long a whole command may take: a proof and four calls at their own limits.
const LIMIT: Duration = Duration::from_secs(150);

/// A settings file holds at most this many bytes: more is the wrong file.
const FILE_LIMIT_BYTES: u64 = 256 * 1024;

#[derive(Debug, Args)]
pub(super) struct ModuleArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Register the relay, once it has answered `/health` with the token
    Add(AddArgs),
    /// Change what the platform knows of the relay where it differs: its address, token, routes
    Edit(EditArgs),
    /// Take the relay from the platform
    Remove(RemoveArgs),
    /// List the organisation's modules. Settings are left out but for addresses and routes: others may be secret
    List(ListArgs),
}

/// Which module.
#[derive(Debug, Args)]
struct KeyArgs {
    /// Name of the module [default: the settings file's, else "Microsoft Defender for Endpoint"]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A relay_settings.json, with $NAME and ${NAME} replaced from the environment; in place of the options that make
    /// up a module without it
    #[arg(long, short = 'f', value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Type of the module [default: the settings file's, else the generic relay]
    #[arg(long, value_name = "ID")]
    module_type_id: Option<String>,
}

#[derive(Debug, Args)]
struct AddArgs {
    #[command(flatten)]
    platform: PlatformArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    relay: RelayModuleArgs,
    /// Register the relay even if it does not answer
    #[arg(long)]
    force: bool,
    /// Do all but the registration, and print its request with the token cut
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct EditArgs {
    #[command(flatten)]
    platform: PlatformArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    relay: RelayModuleArgs,
    /// Exit with 4 in place of 0 when there is nothing to change
    #[arg(long)]
    exit_code: bool,
    /// Do all but the change, and print its request with the token cut
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    #[command(flatten)]
    platform: PlatformArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Exit with 0 when there is no such module
    #[arg(long)]
    if_exists: bool,
    /// Do all but the removal, and print its request
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    platform: PlatformArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// There was nothing to change, and a script wants to know.
#[derive(Debug, thiserror::Error)]
#[error("the module is registered as it should be: nothing was changed")]
pub(super) struct Unchanged;

pub(super) async fn run(args: ModuleArgs, log: &LogArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let format = log.resolve(&mut findings);
    match args.action {
        Action::Add(args) => {
            let settings = args.platform.resolve(&mut findings);
            let wanted = wanted(&args.key, &args.relay, &args.platform, &mut findings);
            let telemetry = super::begin(format, log, true, &findings.check()?)?;
            let done = add(args, settings, wanted.expect("a problem was found otherwise")).await;
            telemetry.shutdown().await;
            done
        }
        Action::Edit(args) => {
            let settings = args.platform.resolve(&mut findings);
            let wanted = wanted(&args.key, &args.relay, &args.platform, &mut findings);
            let telemetry = super::begin(format, log, true, &findings.check()?)?;
            let done = edit(args, settings, wanted.expect("a problem was found otherwise")).await;
            telemetry.shutdown().await;
            done
        }
        Action::Remove(args) => {
            let settings = args.platform.resolve(&mut findings);
            let key = args.key.resolve(&mut findings);
            let telemetry = super::begin(format, log, true, &findings.check()?)?;
            let done = remove(args, settings, key.expect("a problem was found otherwise")).await;
            telemetry.shutdown().await;
            done
        }
        Action::List(args) => {
            let settings = args.platform.resolve(&mut findings);
            let telemetry = super::begin(format, log, true, &findings.check()?)?;
            let done = list(args.json, settings).await;
            telemetry.shutdown().await;
            done
        }
    }
}

impl KeyArgs {
    fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.trim().is_empty())
    }

    /// The key with what was said on the command line in place of the file's.
    fn over(&self, key: Key) -> Key {
        Key {
            name: self.name().map_or(key.name, str::to_owned),
            module_type_id: self.module_type_id.clone().unwrap_or(key.module_type_id),
        }
    }

    fn file(&self, findings: &mut Findings) -> Option<Option<File>> {
        let Some(path) = &self.settings else { return Some(None) };
        let read = read(path).map_err(|error| Faults(vec![error])).and_then(|text| File::parse(&text));
        told(path, read, findings).map(Some)
    }

    /// Which module; `None` when there was a problem.
    fn resolve(&self, findings: &mut Findings) -> Option<Key> {
        let key = match (self.file(findings)?, &self.settings) {
            (Some(file), Some(path)) => told(path, file.key(environment), findings)?,
            _ => Key { name: NAME.to_owned(), module_type_id: CUSTOM_RELAY_TYPE.to_owned() },
        };
        Some(self.over(key))
    }
}

/// The module as it should be: the settings file's, or made from the configuration; `None` when there was a problem.
fn wanted(
    key: &KeyArgs,
    relay: &RelayModuleArgs,
    platform: &PlatformArgs,
    findings: &mut Findings,
) -> Option<Instance> {
    if let (Some(file), Some(path)) = (key.file(findings)?, &key.settings) {
        let mut instance = told(path, file.instance(environment), findings)?;
        platform.relay_url(&format!("{}: settings.url", path.display()), instance.url(), findings)?;
        instance.key = key.over(instance.key);
        return Some(instance);
    }
    let key = key.resolve(findings)?;
    let relay = relay.resolve(platform, findings)?;
    Some(Instance::of_relay(key, relay.url.as_str(), &relay.token, &apis(relay.routes)))
}

/// What the platform is told of: a route that answers empty would only cost its analysts time.
fn apis(routes: Routes) -> Vec<&'static str> {
    let mut apis = vec!["health"];
    apis.extend(routes.observe.then_some("observe/observables"));
    apis.extend(routes.refer.then_some("refer/observables"));
    apis.extend(routes.respond.then_some("respond/observables"));
    apis.extend(routes.respond.then_some("respond/trigger"));
    apis
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(FILE_LIMIT_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_LIMIT_BYTES { Err("is too large for a settings file".to_owned()) } else { Ok(text) }
}

/// What was read of a settings file; its faults go to the findings.
fn told<T>(path: &Path, read: Result<T, Faults>, findings: &mut Findings) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(Faults(faults)) => {
            faults.iter().for_each(|fault| findings.problem(&path.display().to_string(), fault));
            None
        }
    }
}

/// The organisation, as the API client that is set or typed.
fn platform(settings: PlatformSettings, outbound: &Outbound, deadline: Instant) -> anyhow::Result<Platform> {
    let mut missing = Findings::default();
    if !prompt::somebody_is_there() {
        if settings.client_id.is_none() {
            missing.problem("TR_API_CLIENT_ID", "is not set, and nobody is there to be asked");
        }
        if settings.password.is_none() {
            missing.problem("TR_API_CLIENT_PASSWORD", "is not set, and nobody is there to be asked");
        }
    }
    missing.check()?;
    let client_id = settings.client_id.map_or_else(|| prompt::text("TR_API_CLIENT_ID"), Ok)?;
    let password = settings.password.map_or_else(|| prompt::secret("TR_API_CLIENT_PASSWORD"), Ok)?;
    let url = settings.url.expect("a URL that cannot be used is a problem");
    Ok(Platform::new(outbound.clone(), url, client_id, password, deadline))
}

/// The module of that key and its id, if there is one.
async fn find(platform: &mut Platform, key: &Key) -> anyhow::Result<Option<(String, Value)>> {
    let mut found: Vec<Value> = platform.list().await?;
    found.retain(|registered| key.fits(registered));
    if found.len() > 1 {
        let ids: Vec<&str> = found.iter().filter_map(|registered| registered["id"].as_str()).collect();
        bail!("{} modules are called {:?}: {}; take the wrong ones away there", ids.len(), key.name, ids.join(", "));
    }
    let Some(registered) = found.pop() else { return Ok(None) };
    let id = registered["id"].as_str().context("the platform's module has no id")?.to_owned();
    Ok(Some((id, registered)))
}

/// What would be asked.
fn show_request(method: &str, id: Option<&str>, body: Option<&Value>) {
    let id = id.map(|id| format!("/{id}")).unwrap_or_default();
    println!("{method} /iroh/iroh-int/module-instance{id}");
    if let Some(body) = body {
        println!("{:#}", instance::shown(body));
    }
}

async fn add(args: AddArgs, settings: PlatformSettings, wanted: Instance) -> anyhow::Result<()> {
    let (outbound, deadline) = (Outbound::new()?, Instant::now() + LIMIT);
    let mut platform = platform(settings, &outbound, deadline)?;
    if !args.force {
        let Some(token) = wanted.token() else {
            bail!("the settings hold no `Bearer` token to try the relay with; --force registers it untried");
        };
        let url = wanted.url().parse().context("the relay's URL")?;
        prove(&outbound, &url, &token, deadline).await.with_context(|| {
            format!("{url}: not registered, because the relay was tried and failed (--force registers it all the same)")
        })?;
    }
    if find(&mut platform, &wanted.key).await?.is_some() {
        bail!("a module called {:?} already exists; `module edit` changes it", wanted.key.name);
    }
    if args.dry_run {
        show_request("POST", None, Some(&wanted.to_body()));
        return Ok(());
    }
    let id = platform.create(&wanted).await?;
    println!("The module {:?} is registered as {id}.", wanted.key.name);
    Ok(())
}

async fn edit(args: EditArgs, settings: PlatformSettings, wanted: Instance) -> anyhow::Result<()> {
    let mut platform = platform(settings, &Outbound::new()?, Instant::now() + LIMIT)?;
    let Some((id, registered)) = find(&mut platform, &wanted.key).await? else {
        bail!("a module called {:?} does not exist; `module add` makes it", wanted.key.name);
    };
    let changes = wanted.changes(&registered);
    if changes.is_empty() {
        if args.exit_code {
            return Err(Unchanged.into());
        }
        println!("The module {:?} is registered as it should be: nothing was changed.", wanted.key.name);
        return Ok(());
    }
    if args.dry_run {
        show_request("PATCH", Some(&id), Some(&Value::Object(changes)));
        return Ok(());
    }
    platform.change(&id, &changes).await?;
    let names: Vec<&str> = changes.keys().map(String::as_str).collect();
    println!("The module {:?} was changed: {}.", wanted.key.name, names.join(", "));
    Ok(())
}

async fn remove(args: RemoveArgs, settings: PlatformSettings, key: Key) -> anyhow::Result<()> {
    let mut platform = platform(settings, &Outbound::new()?, Instant::now() + LIMIT)?;
    let Some((id, _)) = find(&mut platform, &key).await? else {
        if args.if_exists {
            println!("A module called {:?} does not exist.", key.name);
            return Ok(());
        }
        bail!("a module called {:?} does not exist", key.name);
    };
    if args.dry_run {
        show_request("DELETE", Some(&id), None);
        return Ok(());
    }
    platform.delete(&id).await?;
    println!("The module {:?} was removed.", key.name);
    Ok(())
}

async fn list(as_json: bool, settings: PlatformSettings) -> anyhow::Result<()> {
    let mut platform = platform(settings, &Outbound::new()?, Instant::now() + LIMIT)?;
    let modules: Vec<Value> = platform.list().await?.iter().map(harmless).collect();
    if as_json {
        println!("{:#}", Value::Array(modules));
        return Ok(());
    }
    let text = |value: &Value| match value {
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    println!("{:<36}  {:<36}  {:<7}  {:<40}  URL", "ID", "TYPE", "ENABLED", "NAME");
    for module in &modules {
        let [id, kind, enabled, name, url] =
            ["id", "module_type_id", "enabled", "name", "url"].map(|member| text(&module[member]));
        println!("{id:<36}  {kind:<36}  {enabled:<7}  {name:<40}  {url}");
    }
    Ok(())
}

/// What of a module is no secret, whatever its type.
fn harmless(module: &Value) -> Value {
    let mut shown = json!({"url": module["settings"]["url"], "supported-apis": module["settings"]["supported-apis"]});
    for member in ["id", "name", "module_type_id", "visibility", "enabled", "created_at"] {
        shown[member] = module[member].clone();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_is_told_of_routes_that_are_switched_on() {
        assert_eq!(apis(Routes::default()), ["health"]);
        let all = apis(Routes { observe: true, refer: true, respond: true });
        assert_eq!(
            all,
            ["health", "observe/observables", "refer/observables", "respond/observables", "respond/trigger"]
        );
    }
}
