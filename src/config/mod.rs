//! Every setting once: name, default, unit, help, environment variable and checks.
//!
//! The argument structs hold text as given; `resolve` turns them into values and collects **all** problems before
//! anything starts. Nobody else reads the environment, but for the standard `OTEL_*` and `RUST_LOG` variables, which
//! their libraries read (`telemetry`). An empty value counts as not set, because compose files and unit files write those.

mod application;
mod cognito;
mod defender;
mod hosts;
mod key_sets;
mod module;
mod notify;
mod parse;
mod process;
mod quota;
mod relay;
mod respond;
mod webhook;

pub use application::{ApplicationArgs, Applications};
pub use cognito::{CognitoArgs, CognitoSettings, SelfUserArgs};
pub use defender::{DefenderArgs, DefenderSettings, PortalArgs, WorkerArgs, WorkerSettings};
pub use hosts::{HostArgs, HostSettings};
pub use key_sets::KeySetArgs;
pub use module::{ENVIRONMENT_ONLY, PlatformArgs, PlatformSettings, Region, RelayModule, RelayModuleArgs, environment};
pub use notify::{NotifyArgs, NotifySettings};
pub use process::{AdminListenArgs, BrokerArgs, BrokerUrl, LogArgs, ProcessArgs, ProcessSettings, operator};
pub use quota::QuotaArgs;
pub use relay::{IngressArgs, IngressSettings, KeyArgs, Keys, Routes};
pub use respond::{RespondArgs, RespondSettings};
pub use webhook::{TokenDigest, WebhookArgs, WebhookSettings};

/// What is wrong with a configuration, and what is odd but tolerated.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    pub(crate) fn problem(&mut self, setting: &str, rule: impl std::fmt::Display) {
        self.problems.push(format!("{setting}: {rule}"));
    }

    fn warning(&mut self, setting: &str, text: impl std::fmt::Display) {
        self.warnings.push(format!("{setting}: {text}"));
    }

    /// Reads a secret from its variable or its file, for commands with secrets of their own.
    pub fn secret(
        &mut self,
        setting: &str,
        value: Option<&String>,
        file: Option<&std::path::PathBuf>,
    ) -> Option<secrecy::SecretString> {
        parse::secret(self, setting, value, file)
    }

    /// Reads a duration within `range`, for commands with durations of their own.
    pub fn duration(
        &mut self,
        setting: &str,
        text: &str,
        range: (std::time::Duration, std::time::Duration),
    ) -> std::time::Duration {
        parse::duration(self, setting, text, range)
    }

    /// The warnings, if nothing is wrong.
    ///
    /// # Errors
    /// All problems at once, one a line.
    pub fn check(self) -> Result<Vec<String>, Refused> {
        if self.problems.is_empty() { Ok(self.warnings) } else { Err(Refused(self.problems)) }
    }
}

/// A configuration that cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used:\n  {}", .0.join("\n  "))]
pub struct Refused(Vec<String>);
