//! Settings of the outgoing webhook.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use secrecy::{ExposeSecret as _, SecretSlice};
use url::Url;

use super::webhook::signing_key;
use super::{DefenderArgs, Findings, parse};

/// Notifications.
#[derive(Clone, Args, Default)]
pub struct NotifyArgs {
    /// Where notifications are posted: machines isolated and released, requests refused and failed, the brake, and what
    /// waits for an operator [default: nowhere]
    #[arg(long, env = "BRIDGE_NOTIFY_URL", value_name = "URL")]
    pub notify_url: Option<String>,
    /// Secret that signs notifications (Standard Webhooks): `whsec_` and base64 of 24 to 64 bytes; required with the URL
    #[arg(long, env = "BRIDGE_NOTIFY_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub notify_secret: Option<String>,
    /// File that holds BRIDGE_NOTIFY_SECRET
    #[arg(long, env = "BRIDGE_NOTIFY_SECRET_FILE", value_name = "PATH")]
    pub notify_secret_file: Option<PathBuf>,
}

/// Shows nothing of the secret.
impl fmt::Debug for NotifyArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotifyArgs").field("notify_url", &self.notify_url).finish_non_exhaustive()
    }
}

/// See [`NotifyArgs`].
#[derive(Clone)]
pub struct NotifySettings {
    /// The receiver.
    pub url: Url,
    /// Key of the signatures, 24 to 64 bytes.
    pub secret: SecretSlice<u8>,
}

/// Shows no more than the host: the path of a receiver is often its password.
impl fmt::Debug for NotifySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotifySettings").field("server", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl NotifyArgs {
    /// Checks and reads the values; `None` when there is no receiver, or one of them is a problem.
    pub fn resolve(&self, defender: &DefenderArgs, findings: &mut Findings) -> Option<NotifySettings> {
        const URL: &str = "BRIDGE_NOTIFY_URL";
        const SECRET: &str = "BRIDGE_NOTIFY_SECRET";
        let secret = parse::secret(findings, SECRET, self.notify_secret.as_ref(), self.notify_secret_file.as_ref());
        let Some(url) = parse::given(self.notify_url.as_ref()) else {
            if secret.is_some() {
                findings.problem(URL, format_args!("is required with {SECRET}"));
            }
            return None;
        };
        // A value that is neither true nor false is reported once, by the settings of Defender.
        let plain_http = defender.plain_http(&mut Findings::default());
        let url = parse::base_url(findings, URL, url, plain_http);
        let Some(secret) = secret else {
            findings.problem(SECRET, format_args!("is required with {URL}: notifications are always signed"));
            return None;
        };
        match signing_key(secret.expose_secret().trim()) {
            Ok(secret) => Some(NotifySettings { url: url?, secret }),
            Err(rule) => {
                findings.problem(SECRET, rule);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PortalArgs;
    use super::*;

    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn resolve(url: &str, secret: &str, plain_http: &str) -> (Option<NotifySettings>, Findings) {
        let mut findings = Findings::default();
        let args = NotifyArgs {
            notify_url: Some(url.to_owned()),
            notify_secret: Some(secret.to_owned()),
            notify_secret_file: None,
        };
        let defender = DefenderArgs {
            portal: PortalArgs { cloud: String::new(), portal_url: None, allow_plain_http: plain_http.to_owned() },
            entra_url: None,
            defender_url: None,
            graph_url: None,
            defender_scope: None,
            graph_scope: None,
            refusal_ttl: String::new(),
        };
        (args.resolve(&defender, &mut findings), findings)
    }

    #[test]
    fn a_receiver_has_a_url_and_a_secret() {
        let (settings, findings) = resolve("https://hooks.example/T0/B1", SECRET, "false");
        assert_eq!(findings, Findings::default());
        let settings = settings.unwrap();
        assert_eq!(settings.secret.expose_secret(), (0..32).collect::<Vec<u8>>());
        assert_eq!(format!("{settings:?}"), "NotifySettings { server: Some(\"hooks.example\"), .. }");
        let (settings, findings) = resolve("", "", "false");
        assert!(settings.is_none() && findings == Findings::default());
    }

    #[test]
    fn what_cannot_work_is_refused_without_showing_it() {
        for (url, secret, plain_http, problems) in [
            ("https://hooks.example", "", "false", 1),
            ("", SECRET, "false", 1),
            ("http://hooks.example", SECRET, "false", 1),
            ("http://hooks.example", SECRET, "true", 0),
            ("http://127.0.0.1:9", SECRET, "false", 0),
            ("https://hooks.example", "pl4nted", "false", 1),
            ("https://hooks.example", "whsec_pl4nted!", "false", 1),
            ("https://hooks.example", "whsec_AAAA", "false", 1),
            ("ftp://hooks.example", "whsec_AAAA", "false", 2),
        ] {
            let (settings, findings) = resolve(url, secret, plain_http);
            assert_eq!(findings.problems.len(), problems, "{url} {findings:?}");
            assert_eq!(settings.is_some(), problems == 0, "{url}");
            assert!(!format!("{findings:?}").contains("pl4nted"), "{findings:?}");
        }
    }
}
