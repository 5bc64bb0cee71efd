//! Settings of the ingress: where it listens, whose tokens it takes, and what of the relay is switched on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Findings, KeySetArgs, parse};
use crate::credentials::SealKeys;
use crate::key_sets;

/// The keys of tokens and seals.
#[derive(Clone, Args)]
pub struct KeyArgs {
    /// Key that signs the relay's tokens (HS256); 64 random characters are recommended, see `token new-key`
    #[arg(long, env = "SECRET_KEY", value_name = "KEY", hide_env_values = true)]
    pub secret_key: Option<String>,
    /// File that holds SECRET_KEY
    #[arg(long, env = "SECRET_KEY_FILE", value_name = "PATH")]
    pub secret_key_file: Option<PathBuf>,
    /// The key before SECRET_KEY, still accepted while rotating
    #[arg(long, env = "SECRET_KEY_PREVIOUS", value_name = "KEY", hide_env_values = true)]
    pub secret_key_previous: Option<String>,
    /// File that holds SECRET_KEY_PREVIOUS
    #[arg(long, env = "SECRET_KEY_PREVIOUS_FILE", value_name = "PATH")]
    pub secret_key_previous_file: Option<PathBuf>,
    /// Keys that seal credentials on their way through the queue: `id=base64` of 32 bytes each, newest first, divided by
    /// commas. Derived from SECRET_KEY when not set
    #[arg(long, env = "BRIDGE_SEAL_KEYS", value_name = "KEYS", hide_env_values = true)]
    pub seal_keys: Option<String>,
    /// File that holds BRIDGE_SEAL_KEYS
    #[arg(long, env = "BRIDGE_SEAL_KEYS_FILE", value_name = "PATH")]
    pub seal_keys_file: Option<PathBuf>,
}

impl std::fmt::Debug for KeyArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyArgs").finish_non_exhaustive()
    }
}

/// See [`KeyArgs`].
#[derive(Debug, Clone)]
pub struct Keys {
    /// Keys that tokens may be signed with, newest first; empty when `SECRET_KEY` is not set.
    pub token_keys: Vec<SecretString>,
    /// Keys that seal and open credentials; empty when there is nothing to derive one from.
    pub seal_keys: Arc<SealKeys>,
}

/// Shorter keys can be guessed; RFC 7518 3.2 asks for as many bits as the hash has.
const SECRET_KEY_SHORT_BYTES: usize = 32;

impl KeyArgs {
    /// Checks and reads the values. `seals` says that the command has to make or open seals whatever `SECRET_KEY` is, so
    /// that having no key is a problem.
    pub fn resolve(&self, seals: bool, findings: &mut Findings) -> Keys {
        let current = parse::secret(findings, "SECRET_KEY", self.secret_key.as_ref(), self.secret_key_file.as_ref());
        let previous = parse::secret(
            findings,
            "SECRET_KEY_PREVIOUS",
            self.secret_key_previous.as_ref(),
            self.secret_key_previous_file.as_ref(),
        );
        if previous.is_some() && current.is_none() {
            findings.problem("SECRET_KEY_PREVIOUS", "is set, but SECRET_KEY is not");
        }
        if let Some(key) = &current
            && key.expose_secret().len() < SECRET_KEY_SHORT_BYTES
        {
            findings.warning(
                "SECRET_KEY",
                format_args!("is shorter than {SECRET_KEY_SHORT_BYTES} characters and could be guessed"),
            );
        }
        let given = parse::secret(findings, "BRIDGE_SEAL_KEYS", self.seal_keys.as_ref(), self.seal_keys_file.as_ref());
        let token_keys: Vec<SecretString> = current.into_iter().chain(previous).collect();
        let derived = || SealKeys::derive(&token_keys.iter().collect::<Vec<_>>());
        let seal_keys = match given {
            Some(keys) => SealKeys::parse(keys.expose_secret()).unwrap_or_else(|error| {
                findings.problem("BRIDGE_SEAL_KEYS", error);
                derived()
            }),
            None => derived(),
        };
        if seals && seal_keys.is_empty() {
            findings.problem(
                "BRIDGE_SEAL_KEYS",
                "set it, or SECRET_KEY, to the same on ingress and workers: credentials cannot travel without",
            );
        }
        Keys { token_keys, seal_keys: Arc::new(seal_keys) }
    }
}

const LISTEN: &str = "127.0.0.1:8080";
pub(super) const RELAY_ROUTES: &str = "observe,refer";
const RELAY_DEADLINE: &str = "50s";
const RELAY_MAX_WAIT: &str = "4s";

/// The ingress.
#[derive(Debug, Clone, Args)]
pub struct IngressArgs {
    /// Address of the relay and of the webhook
    #[arg(long, env = "BRIDGE_LISTEN", default_value = LISTEN, value_name = "ADDRESS")]
    pub listen: String,
    /// Relay routes that are switched on, of observe, refer, respond; the others answer empty
    #[arg(long, env = "BRIDGE_RELAY_ROUTES", default_value = RELAY_ROUTES, value_name = "ROUTES")]
    pub relay_routes: String,
    /// Time from accepting a relay call to its answer, which may then be incomplete
    #[arg(long, env = "BRIDGE_RELAY_DEADLINE", default_value = RELAY_DEADLINE, value_name = "DURATION")]
    pub relay_deadline: String,
    /// Longest time that a relay call may be expected to wait for a worker; one that would wait longer is refused at once.
    /// Not more than the deadline, and by default not more than half of it
    #[arg(long, env = "BRIDGE_RELAY_MAX_WAIT", default_value = RELAY_MAX_WAIT, value_name = "DURATION")]
    pub relay_max_wait: String,
    /// Sightings for each observable at most (not a positive number: 100)
    #[arg(long, env = "CTR_ENTITIES_LIMIT", default_value = "100", value_name = "NUMBER")]
    pub ctr_entities_limit: String,
}

/// Which relay routes are switched on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Routes {
    /// `/observe/observables`.
    pub observe: bool,
    /// `/refer/observables`.
    pub refer: bool,
    /// `/respond/observables` and `/respond/trigger`.
    pub respond: bool,
}

impl Routes {
    /// Reads `BRIDGE_RELAY_ROUTES`.
    pub(super) fn read(text: &str, findings: &mut Findings) -> Self {
        let mut routes = Self::default();
        for name in parse::list(parse::or_default(text, RELAY_ROUTES)) {
            match name {
                "observe" => routes.observe = true,
                "refer" => routes.refer = true,
                "respond" => routes.respond = true,
                other => findings
                    .problem("BRIDGE_RELAY_ROUTES", format_args!("{other:?} is none of observe, refer, respond")),
            }
        }
        routes
    }
}

/// See [`IngressArgs`].
#[derive(Debug, Clone)]
pub struct IngressSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What is switched on.
    pub routes: Routes,
    /// From accepting a call to answering it.
    pub deadline: Duration,
    /// The longest that a call may be expected to wait for a worker.
    pub max_wait: Duration,
    /// `L` of `relay.md` 5.3, at least 1.
    pub entities_limit: u32,
    /// Whose key-set tokens are taken; `None`: nobody's.
    pub key_sets: Option<key_sets::Settings>,
}

impl IngressArgs {
    /// Checks and reads the values.
    pub fn resolve(&self, key_sets: &KeySetArgs, findings: &mut Findings) -> IngressSettings {
        let listen = parse::or_default(&self.listen, LISTEN);
        let listen = parse::listen(findings, "BRIDGE_LISTEN", listen).unwrap_or_else(|| {
            if self.listen.trim().eq_ignore_ascii_case("off") {
                findings.problem("BRIDGE_LISTEN", "the ingress cannot be off");
            }
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        let routes = Routes::read(&self.relay_routes, findings);
        let deadline = parse::duration(
            findings,
            "BRIDGE_RELAY_DEADLINE",
            parse::or_default(&self.relay_deadline, RELAY_DEADLINE),
            (Duration::from_secs(2), Duration::from_secs(600)),
        );
        let given = parse::or_default(&self.relay_max_wait, RELAY_MAX_WAIT);
        let mut max_wait = parse::duration(
            findings,
            "BRIDGE_RELAY_MAX_WAIT",
            given,
            (Duration::from_millis(100), Duration::from_secs(600)),
        );
        if given == RELAY_MAX_WAIT {
            max_wait = max_wait.min(deadline / 2);
        } else if max_wait > deadline {
            findings.problem("BRIDGE_RELAY_MAX_WAIT", "is more than BRIDGE_RELAY_DEADLINE");
        }
        let (entities_limit, warning) = crate::relay::limit::from_setting(parse::given(Some(&self.ctr_entities_limit)));
        if let Some(warning) = warning {
            findings.warning("CTR_ENTITIES_LIMIT", warning);
        }
        let key_sets = key_sets.resolve(findings);
        IngressSettings { listen, routes, deadline, max_wait, entities_limit, key_sets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &str, previous: &str, seal: &str, seals: bool) -> (Keys, Findings) {
        let set = |text: &str| Some(text.to_owned());
        let args = KeyArgs {
            secret_key: set(secret),
            secret_key_file: None,
            secret_key_previous: set(previous),
            secret_key_previous_file: None,
            seal_keys: set(seal),
            seal_keys_file: None,
        };
        let mut findings = Findings::default();
        (args.resolve(seals, &mut findings), findings)
    }

    const LONG: &str = "0123456789abcdef0123456789abcdef";
    const SEAL: &str = "k1=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn keys_are_newest_first_and_seal_keys_derive_from_them() {
        let (keys, findings) = keys(LONG, "previous", "", true);
        assert_eq!(keys.token_keys.len(), 2);
        assert!(!keys.seal_keys.is_empty());
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn empty_values_count_as_not_set() {
        let args = IngressArgs {
            listen: String::new(),
            relay_routes: " ".into(),
            relay_deadline: String::new(),
            relay_max_wait: String::new(),
            ctr_entities_limit: String::new(),
        };
        let mut findings = Findings::default();
        let settings = args.resolve(&KeySetArgs::default(), &mut findings);
        assert!(settings.key_sets.is_none());
        assert_eq!(settings.listen, SocketAddr::from(([127, 0, 0, 1], 8080)));
        assert_eq!(settings.routes, Routes { observe: true, refer: true, respond: false });
        assert_eq!((settings.deadline, settings.entities_limit), (Duration::from_secs(50), 100));
        assert_eq!(settings.max_wait, Duration::from_secs(4));
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn the_wait_for_a_worker_fits_into_the_deadline() {
        for (deadline, max_wait, expected_ms, problems) in
            [("50s", "20s", 20_000, 0), ("4s", "4s", 2_000, 0), ("4s", "", 2_000, 0), ("4s", "6s", 6_000, 1)]
        {
            let args = IngressArgs {
                listen: String::new(),
                relay_routes: String::new(),
                relay_deadline: deadline.into(),
                relay_max_wait: max_wait.into(),
                ctr_entities_limit: String::new(),
            };
            let mut findings = Findings::default();
            let settings = args.resolve(&KeySetArgs::default(), &mut findings);
            assert_eq!(settings.max_wait, Duration::from_millis(expected_ms), "{deadline} {max_wait}");
            assert_eq!(findings.problems.len(), problems, "{deadline} {max_wait}");
        }
    }

    #[test]
    fn what_cannot_work_is_a_problem_and_what_is_odd_a_warning() {
        for (secret, previous, seal, seals, problems, warnings) in [
            ("", "", "", false, 0, 0),
            ("", "", "", true, 1, 0),
            ("", "", SEAL, true, 0, 0),
            ("", "previous", SEAL, true, 1, 0),
            ("short", "", "", true, 0, 1),
            (LONG, "", "k=nonsense", true, 1, 0),
        ] {
            let (_, findings) = keys(secret, previous, seal, seals);
            assert_eq!(
                (findings.problems.len(), findings.warnings.len()),
                (problems, warnings),
                "{secret} {previous} {seal}: {findings:?}"
            );
        }
    }
}
