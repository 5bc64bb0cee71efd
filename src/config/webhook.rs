//! Settings of the webhook: who may send events, how many, and whose own changes are not worth looking at.

use std::fmt;
use std::path::PathBuf;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretSlice};

use super::{Findings, SelfUserArgs, parse};

/// `POST /webhooks/cognito`.
#[derive(Clone, Args)]
pub struct WebhookArgs {
    /// Secrets that sign webhook requests (Standard Webhooks): `whsec_` and base64 of 24 to 64 bytes; several, divided by
    /// spaces, while rotating. The route exists when this or the token is set
    #[arg(long, env = "BRIDGE_WEBHOOK_SECRET", value_name = "SECRETS", hide_env_values = true)]
    pub webhook_secret: Option<String>,
    /// File that holds BRIDGE_WEBHOOK_SECRET
    #[arg(long, env = "BRIDGE_WEBHOOK_SECRET_FILE", value_name = "PATH")]
    pub webhook_secret_file: Option<PathBuf>,
    /// Bearer token of senders that cannot sign, such as log forwarders: 32 characters or more; several, divided by
    /// spaces, while rotating
    #[arg(long, env = "BRIDGE_WEBHOOK_TOKEN", value_name = "TOKENS", hide_env_values = true)]
    pub webhook_token: Option<String>,
    /// File that holds BRIDGE_WEBHOOK_TOKEN
    #[arg(long, env = "BRIDGE_WEBHOOK_TOKEN_FILE", value_name = "PATH")]
    pub webhook_token_file: Option<PathBuf>,
    /// Webhook requests a second that each kind of sender (those that sign, those with a token) may make; twice as many at
    /// once
    #[arg(long, env = "BRIDGE_WEBHOOK_RATE", default_value = "50", value_name = "NUMBER")]
    pub webhook_rate: String,
    /// Webhook requests a second from one address that may fail to authenticate; twice as many at once; 0 = no limit, for
    /// an ingress behind a proxy, whose senders all have its address
    #[arg(long, env = "BRIDGE_WEBHOOK_PEER_RATE", default_value = "200", value_name = "NUMBER")]
    pub webhook_peer_rate: String,
}

/// Shows nothing of the secrets.
impl fmt::Debug for WebhookArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookArgs").field("webhook_rate", &self.webhook_rate).finish_non_exhaustive()
    }
}

/// See [`WebhookArgs`]. At least one secret or token is there.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Keys of signatures, 24 to 64 bytes each.
    pub secrets: Vec<SecretSlice<u8>>,
    /// SHA-256 of each bearer token.
    pub tokens: Vec<TokenDigest>,
    /// Requests a second of each kind of sender, from 1.
    pub rate: u32,
    /// Requests a second from one address that may fail to authenticate; 0 = no limit.
    pub peer_rate: u32,
    /// The bridge's own user in Cognito.
    pub self_user: Option<String>,
}

/// SHA-256 of a bearer token.
#[derive(Clone, Copy)]
pub struct TokenDigest(pub [u8; 32]);

impl TokenDigest {
    /// Of a token as it is sent.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, token);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// A token is random enough not to be found by its digest, yet nobody needs to see it.
impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

/// What every secret begins with (Standard Webhooks).
const PREFIX: &str = "whsec_";

/// The bytes a key may have (Standard Webhooks).
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A token of 32 random bytes has more characters in any text form.
const TOKEN_SHORT: usize = 32;

/// Rotating needs two. More make every wrong signature cost more.
const MOST_AT_ONCE: usize = 4;

impl WebhookArgs {
    /// Checks and reads the values; `None` when neither a secret nor a token is set: there is no webhook then.
    pub fn resolve(&self, self_user: &SelfUserArgs, findings: &mut Findings) -> Option<WebhookSettings> {
        let secrets = self.secrets(findings);
        let tokens = self.tokens(findings);
        let rate = parse::number(findings, "BRIDGE_WEBHOOK_RATE", &self.webhook_rate, (1, 100_000));
        let peer_rate = parse::number(findings, "BRIDGE_WEBHOOK_PEER_RATE", &self.webhook_peer_rate, (0, 100_000));
        let self_user = self_user.resolve();
        let there = !secrets.is_empty() || !tokens.is_empty();
        there.then_some(WebhookSettings { secrets, tokens, rate, peer_rate, self_user })
    }

    fn secrets(&self, findings: &mut Findings) -> Vec<SecretSlice<u8>> {
        const SETTING: &str = "BRIDGE_WEBHOOK_SECRET";
        let given = parse::secret(findings, SETTING, self.webhook_secret.as_ref(), self.webhook_secret_file.as_ref());
        let Some(given) = given else { return Vec::new() };
        let mut secrets = Vec::new();
        for (index, secret) in given.expose_secret().split_ascii_whitespace().enumerate() {
            match signing_key(secret) {
                Ok(key) => secrets.push(key),
                Err(rule) => findings.problem(SETTING, format_args!("entry {} {rule}", index + 1)),
            }
        }
        check_count(findings, SETTING, given.expose_secret().split_ascii_whitespace().count());
        secrets
    }

    fn tokens(&self, findings: &mut Findings) -> Vec<TokenDigest> {
        const SETTING: &str = "BRIDGE_WEBHOOK_TOKEN";
        let given = parse::secret(findings, SETTING, self.webhook_token.as_ref(), self.webhook_token_file.as_ref());
        let Some(given) = given else { return Vec::new() };
        let mut tokens = Vec::new();
        for (index, token) in given.expose_secret().split_ascii_whitespace().enumerate() {
            if token.len() < TOKEN_SHORT {
                findings.problem(
                    SETTING,
                    format_args!("entry {} is shorter than {TOKEN_SHORT} characters and could be guessed", index + 1),
                );
            } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                findings.problem(
                    SETTING,
                    format_args!("entry {} has characters that a header cannot carry; use ASCII", index + 1),
                );
            }
            tokens.push(TokenDigest::of(token.as_bytes()));
        }
        check_count(findings, SETTING, tokens.len());
        tokens
    }
}

/// The key of a Standard Webhooks secret; what is wrong with it never shows it.
pub(super) fn signing_key(secret: &str) -> Result<SecretSlice<u8>, String> {
    let key = secret.strip_prefix(PREFIX).ok_or_else(|| format!("does not begin with {PREFIX}"))?;
    // The decoder's error would show a character of the secret.
    let key = STANDARD.decode(key).map_err(|_| format!("is not base64 after {PREFIX}"))?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err(format!("has {} bytes, not {} to {}", key.len(), KEY_BYTES.start(), KEY_BYTES.end()));
    }
    Ok(key.into())
}

fn check_count(findings: &mut Findings, setting: &str, count: usize) {
    match count {
        0 => findings.problem(setting, "holds nothing but spaces"),
        1..=MOST_AT_ONCE => {}
        _ => findings.problem(setting, format_args!("has {count} entries; {MOST_AT_ONCE} at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn args(secret: &str, token: &str) -> WebhookArgs {
        WebhookArgs {
            webhook_secret: Some(secret.into()),
            webhook_secret_file: None,
            webhook_token: Some(token.into()),
            webhook_token_file: None,
            webhook_rate: "50".into(),
            webhook_peer_rate: "200".into(),
        }
    }

    fn resolve(secret: &str, token: &str) -> (Option<WebhookSettings>, Findings) {
        let mut findings = Findings::default();
        (args(secret, token).resolve(&SelfUserArgs::default(), &mut findings), findings)
    }

    #[test]
    fn without_secret_and_token_there_is_no_webhook() {
        let (settings, findings) = resolve("", "");
        assert!(settings.is_none());
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn secrets_and_tokens_are_read_one_by_one() {
        let (settings, findings) = resolve(&format!("{SECRET}  {SECRET}"), &format!(" {TOKEN} another-{TOKEN}\n"));
        let settings = settings.unwrap();
        assert_eq!(findings, Findings::default());
        let keys: Vec<Vec<u8>> = settings.secrets.iter().map(|key| key.expose_secret().to_vec()).collect();
        assert_eq!(keys, [(0..32).collect::<Vec<u8>>(), (0..32).collect()]);
        assert_eq!(settings.tokens[0].0, TokenDigest::of(TOKEN.as_bytes()).0);
        assert_eq!((settings.tokens.len(), settings.rate, settings.peer_rate), (2, 50, 200));
        assert!(settings.self_user.is_none());
    }

    #[test]
    fn what_cannot_work_is_refused_without_showing_it() {
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        let five = [SECRET; 5].join(" ");
        for (secret, token, problems) in [
            ("pl4nted", "", 1),
            ("whsec_pl4nted!", "", 1),
            ("whsec_", "", 1),
            (&short, "", 1),
            (&long, "", 1),
            (&five, "", 1),
            (" ", " ", 2),
            (SECRET, "pl4nted-too-short-for-a-token-31", 0),
            (SECRET, "pl4nted-too-short-for-a-token31", 1),
            ("", "pl4nted-that-is-long-enough-but-ümläüted", 1),
        ] {
            let (_, findings) = resolve(secret, token);
            assert_eq!(findings.problems.len(), problems, "{secret} {token}: {findings:?}");
            assert!(!format!("{findings:?}").contains("pl4nted"), "{findings:?}");
        }
        for bytes in [24, 64] {
            let secret = format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
            assert_eq!(resolve(&secret, "").1, Findings::default(), "{bytes}");
        }
    }

    #[test]
    fn rates_have_bounds() {
        for (rate, peer_rate, problems) in [("1", "0", 0), ("0", "200", 1), ("many", "-1", 2), ("100001", "", 2)] {
            let args =
                WebhookArgs { webhook_rate: rate.into(), webhook_peer_rate: peer_rate.into(), ..args(SECRET, TOKEN) };
            let mut findings = Findings::default();
            args.resolve(&SelfUserArgs::default(), &mut findings);
            assert_eq!(findings.problems.len(), problems, "{rate} {peer_rate}: {findings:?}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let args = args("whsec_cGw0bnRlZHBsNG50ZWRwbDRudGVkcGw0bnRlZA==", "pl4nted-pl4nted-pl4nted-pl4nted-pl4nted");
        let settings = args.resolve(&SelfUserArgs::default(), &mut Findings::default());
        for shown in [format!("{args:?}"), format!("{settings:?}"), format!("{settings:#?}")] {
            assert!(!shown.contains("pl4nted") && !shown.contains("cGw0") && !shown.contains("112, 108"), "{shown}");
        }
    }
}
