//! `token`: makes a `SECRET_KEY`, mints and inspects relay tokens (`relay.md` 2.2, `module-registration.md` 5).

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use super::prompt;
use crate::config::{Findings, KeyArgs, Keys, Region};
use crate::relay::key_set;
use crate::relay::token::{self, TokenError};

/// Random bytes of a new key: 64 characters of base64url, as `relay.md` 2.2 recommends.
const KEY_BYTES: usize = 48;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    whole: WholeArgs,
}

/// What is said without a subcommand: all that a new module needs.
#[derive(Debug, Args)]
struct WholeArgs {
    #[command(flatten)]
    mint: MintArgs,
    /// Print JSON instead of text
    #[arg(long, conflicts_with = "env")]
    json: bool,
    /// Print lines for an environment file, SECRET_KEY and JWT, instead of text
    #[arg(long)]
    env: bool,
    /// Write to this file, which must not exist, in place of standard output; only its owner can read it
    #[arg(long, short = 'o', value_name = "PATH")]
    output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print a new random SECRET_KEY of 64 characters
    NewKey,
    /// Print a relay token for an Azure application, signed with SECRET_KEY. Whoever has the token can read the
    /// application's secret in it: keep it like a password
    Mint(MintArgs),
    /// Show what a token says, its secrets masked, and whether it is accepted with SECRET_KEY
    Inspect(InspectArgs),
}

#[derive(Args)]
struct MintArgs {
    #[command(flatten)]
    keys: KeyArgs,
    /// Directory (tenant) id; asked for, as the next two, when it is not set and somebody is there
    #[arg(long, env = "TENANT_ID", value_name = "ID")]
    tenant_id: Option<String>,
    /// Application (client) id
    #[arg(long, env = "APP_ID", value_name = "ID")]
    app_id: Option<String>,
    /// The application's secret; better given by its variable or file than on the command line
    #[arg(long, env = "APP_SECRET", value_name = "SECRET", hide_env_values = true)]
    app_secret: Option<String>,
    /// File that holds APP_SECRET
    #[arg(long, env = "APP_SECRET_FILE", value_name = "PATH")]
    app_secret_file: Option<PathBuf>,
    /// How long the token is accepted, such as 720h [default: for ever]
    #[arg(long, value_name = "DURATION")]
    expires_in: Option<String>,
    /// Sightings for each observable at most, at or below the relay's own CTR_ENTITIES_LIMIT
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    entities_limit: Option<u32>,
}

impl std::fmt::Debug for MintArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MintArgs").finish_non_exhaustive()
    }
}

#[derive(Args)]
struct InspectArgs {
    #[command(flatten)]
    keys: KeyArgs,
    /// The token; read from standard input when it is `-`
    #[arg(value_name = "TOKEN", default_value = "-", hide_default_value = true)]
    token: String,
}

impl std::fmt::Debug for InspectArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InspectArgs").finish_non_exhaustive()
    }
}

pub(super) fn run(args: TokenArgs) -> anyhow::Result<()> {
    match args.action {
        None => whole(args.whole),
        Some(Action::NewKey) => {
            println!("{}", new_key()?);
            Ok(())
        }
        Some(Action::Mint(args)) => {
            println!("{}", mint(args, false)?.token);
            Ok(())
        }
        Some(Action::Inspect(args)) => inspect(args),
    }
}

/// A new random key.
pub(super) fn new_key() -> anyhow::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).context("there are no random numbers")?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn keys(args: &KeyArgs, findings: &mut Findings) -> (Keys, token::Keys) {
    let keys = args.resolve(false, findings);
    let mut tokens = keys.token_keys.clone().into_iter();
    let verifying = token::Keys::new(tokens.next(), tokens.next());
    (keys, verifying)
}

/// A token and the key that it is signed with.
struct Minted {
    token: String,
    key: SecretString,
    /// The key was made for it.
    is_new: bool,
}

/// Mints a token; with `make_key` also the key, if there is none.
fn mint(args: MintArgs, make_key: bool) -> anyhow::Result<Minted> {
    let mut findings = Findings::default();
    let (keys, mut verifying) = keys(&args.keys, &mut findings);
    let secret = findings.secret("APP_SECRET", args.app_secret.as_ref(), args.app_secret_file.as_ref());
    let lifetime = args.expires_in.as_deref().map(|text| {
        findings.duration("--expires-in", text, (Duration::from_secs(60), Duration::from_secs(10 * 366 * 86_400)))
    });
    if keys.token_keys.is_empty() && !make_key {
        findings.problem("SECRET_KEY", "is not set; `defender-bridge token new-key` makes one");
    }
    let (tenant_id, app_id) = (given(args.tenant_id), given(args.app_id));
    if !prompt::somebody_is_there() {
        let missing =
            [("TENANT_ID", tenant_id.is_none()), ("APP_ID", app_id.is_none()), ("APP_SECRET", secret.is_none())];
        for (setting, _) in missing.into_iter().filter(|(_, missing)| *missing) {
            findings.problem(setting, "is not set, and nobody is there to be asked");
        }
    }
    for warning in findings.check()? {
        eprintln!("defender-bridge: {warning}");
    }
    let claims = token::Claims {
        tenant_id: tenant_id.map_or_else(|| prompt::text("TENANT_ID, the directory (tenant) id"), Ok)?,
        client_id: app_id.map_or_else(|| prompt::text("APP_ID, the application (client) id"), Ok)?,
        client_secret: secret.map_or_else(|| prompt::secret("APP_SECRET, the application's secret"), Ok)?,
        entities_limit: args.entities_limit,
    };
    let is_new = keys.token_keys.is_empty();
    let key = match keys.token_keys.into_iter().next() {
        Some(key) => key,
        None => new_key()?.into(),
    };
    if is_new {
        verifying = token::Keys::new(Some(key.clone()), None);
    }
    let now = Timestamp::now();
    let token = token::mint(&claims, lifetime.map(|lifetime| now + lifetime), &key);
    // What the relay would refuse is not handed out.
    token::verify(&token, &verifying, now)
        .map_err(|error| anyhow::anyhow!("the relay would refuse this token: {error}"))?;
    Ok(Minted { token, key, is_new })
}

fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// The token, its key and what to do with them.
fn whole(args: WholeArgs) -> anyhow::Result<()> {
    let minted = mint(args.mint, true)?;
    let text = if args.json {
        let links: Map<String, Value> =
            Region::ALL.into_iter().map(|(region, name)| (name.to_owned(), region.new_module().into())).collect();
        let key = minted.is_new.then(|| minted.key.expose_secret());
        let whole = json!({"token": minted.token, "secret_key": key, "links": links});
        format!("{whole:#}\n")
    } else if args.env {
        let key = minted.key.expose_secret();
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=:@%^,".contains(&byte)) {
            bail!(
                "SECRET_KEY holds characters that readers of environment files take differently; use SECRET_KEY_FILE"
            );
        }
        format!("SECRET_KEY={key}\nJWT={}\n", minted.token)
    } else {
        told(&minted)
    };
    match args.output {
        Some(path) => keep(&path, &text).with_context(|| format!("{} cannot be made", path.display())),
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

fn told(minted: &Minted) -> String {
    let key = if minted.is_new {
        format!(
            "The SECRET_KEY that it is signed with is new. Set it for all roles:\n    {}\n",
            minted.key.expose_secret()
        )
    } else {
        "It is signed with the SECRET_KEY that is set.\n".to_owned()
    };
    let links: String = Region::ALL
        .into_iter()
        .map(|(region, name)| format!("    {:<4}  {}\n", name.to_uppercase(), region.new_module()))
        .collect();
    format!(
        "The relay's token. Who has it can read the application's secret in it: keep it like a password.\n    {}\n{key}\
         Add the module with `defender-bridge module add`, or here by hand with the relay's address and the token:\n{links}",
        minted.token
    )
}

/// A new file that only its owner can read.
fn keep(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let (_, verifying) = keys(&args.keys, &mut findings);
    findings.check()?;
    let token = if args.token == "-" {
        std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?
    } else {
        args.token
    };
    let token = token.trim();
    let inspection = token::inspect(token)?;
    println!("header: {}", serde_json::to_string_pretty(&inspection.header)?);
    println!("claims: {}", serde_json::to_string_pretty(&inspection.claims)?);
    if inspection.header.get("alg").is_some_and(|alg| alg == key_set::ALGORITHM) {
        println!("its signature is of a key set: `check --token-file` says whether the relay accepts it");
        return Ok(());
    }
    if verifying.is_empty() {
        println!("SECRET_KEY is not set: the signature was not checked");
        return Ok(());
    }
    let verified = token::verify(token, &verifying, Timestamp::now());
    // The signature is checked before what is signed.
    let fits = matches!(verified, Ok(_) | Err(TokenError::Expired | TokenError::WrongPayload));
    println!("SECRET_KEY {} it", if fits { "fits" } else { "does not fit" });
    match verified {
        Ok(_) => {
            println!("the relay accepts this token");
            Ok(())
        }
        Err(error) => bail!("the relay refuses this token: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_64_characters_and_is_new() {
        let (one, other) = (new_key().unwrap(), new_key().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
    }
}
