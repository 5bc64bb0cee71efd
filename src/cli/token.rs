//! `token`: makes a `SECRET_KEY`, mints and inspects relay tokens (`relay.md` 2.2).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use secrecy::SecretString;

use crate::config::{Findings, KeyArgs, Keys};
use crate::relay::{key_set, token};

/// Random bytes of a new key: 64 characters of base64url, as `relay.md` 2.2 recommends.
const KEY_BYTES: usize = 48;

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
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
    /// Directory (tenant) id
    #[arg(long, env = "TENANT_ID", value_name = "ID")]
    tenant_id: String,
    /// Application (client) id
    #[arg(long, env = "APP_ID", value_name = "ID")]
    app_id: String,
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
        Action::NewKey => {
            println!("{}", new_key()?);
            Ok(())
        }
        Action::Mint(args) => mint(args),
        Action::Inspect(args) => inspect(args),
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

fn mint(args: MintArgs) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let (keys, verifying) = keys(&args.keys, &mut findings);
    let secret = findings.secret("APP_SECRET", args.app_secret.as_ref(), args.app_secret_file.as_ref());
    let lifetime = args.expires_in.as_deref().map(|text| {
        findings.duration("--expires-in", text, (Duration::from_secs(60), Duration::from_secs(10 * 366 * 86_400)))
    });
    findings.check()?;
    let Some(key) = keys.token_keys.first() else {
        bail!("SECRET_KEY is not set; `defender-bridge token new-key` makes one");
    };
    let secret: SecretString = secret.context("APP_SECRET is not set")?;
    let claims = token::Claims {
        client_id: args.app_id,
        client_secret: secret,
        tenant_id: args.tenant_id,
        entities_limit: args.entities_limit,
    };
    let now = Timestamp::now();
    let minted = token::mint(&claims, lifetime.map(|lifetime| now + lifetime), key);
    // What the relay would refuse is not handed out.
    token::verify(&minted, &verifying, now)
        .map_err(|error| anyhow::anyhow!("the relay would refuse this token: {error}"))?;
    println!("{minted}");
    Ok(())
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
    match token::verify(token, &verifying, Timestamp::now()) {
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
