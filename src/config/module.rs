//! Settings of `module`: the platform, the account there, and what is registered.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secrecy::SecretString;
use url::Url;

use super::relay::RELAY_ROUTES;
use super::{Findings, Routes, parse};

/// What is read from the environment or a file only: on a command line every user of the machine would see it.
pub const ENVIRONMENT_ONLY: [&str; 2] = ["JWT", "TR_API_CLIENT_PASSWORD"];

/// A variable of the environment; `None` when it is not set or not text.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where the organisation is (`module-registration.md` 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Region {
    /// North America
    Us,
    /// Europe
    Eu,
    /// Asia Pacific, Japan, China
    Apjc,
}

impl Region {
    /// All of them, with the names that people know.
    pub const ALL: [(Self, &str); 3] = [(Self::Us, "us"), (Self::Eu, "eu"), (Self::Apjc, "apjc")];

    /// The platform's host there.
    pub const fn host(self) -> &'static str {
        match self {
            Self::Us => "https://visibility.amp.cisco.com",
            Self::Eu => "https://visibility.eu.amp.cisco.com",
            Self::Apjc => "https://visibility.apjc.amp.cisco.com",
        }
    }

    /// The platform's page there on which somebody adds the Defender module by hand.
    pub fn new_module(self) -> String {
        let kind = match self {
            Self::Us => "564f6f99-b94a-4605-8280-a679c0e26074",
            Self::Eu => "63f880fc-2b04-4b4c-b48d-9c44d9cb4e02",
            Self::Apjc => "e6507218-ad69-4306-853f-dd5a37771f5e",
        };
        format!("{}/settings/modules/available/{kind}/new", self.host())
    }
}

/// The platform, and who asks.
#[derive(Debug, Clone, Args)]
pub struct PlatformArgs {
    /// Region of the organisation at the platform
    #[arg(long, value_enum, default_value_t = Region::Us)]
    pub region: Region,
    /// The platform itself, for tests and simulators [default: the region's]
    #[arg(long, env = "BRIDGE_PLATFORM_URL", value_name = "URL")]
    pub platform_url: Option<String>,
    /// Id of an API client of the platform; asked for when it is not set and somebody is there. Its password comes from
    /// the variable TR_API_CLIENT_PASSWORD, or is asked for
    #[arg(long, env = "TR_API_CLIENT_ID", value_name = "ID")]
    pub client_id: Option<String>,
    /// File that holds TR_API_CLIENT_PASSWORD
    #[arg(long, env = "TR_API_CLIENT_PASSWORD_FILE", value_name = "PATH")]
    pub client_password_file: Option<PathBuf>,
    /// Allow http:// to hosts other than this machine: secrets travel in clear. For a simulator in a private network
    #[arg(long, env = "BRIDGE_ALLOW_PLAIN_HTTP", default_value = "false", value_name = "BOOL")]
    pub allow_plain_http: String,
}

/// See [`PlatformArgs`].
#[derive(Debug)]
pub struct PlatformSettings {
    /// The platform; `None` when there was a problem with it.
    pub url: Option<Url>,
    /// The API client, if it is known.
    pub client_id: Option<String>,
    /// Its password, if it is known.
    pub password: Option<SecretString>,
}

impl PlatformArgs {
    fn plain_http(&self, findings: &mut Findings) -> bool {
        parse::flag(findings, "BRIDGE_ALLOW_PLAIN_HTTP", parse::or_default(&self.allow_plain_http, "false"))
    }

    /// Checks and reads the values.
    pub fn resolve(&self, findings: &mut Findings) -> PlatformSettings {
        let plain_http = self.plain_http(findings);
        let url = parse::given(self.platform_url.as_ref()).unwrap_or(self.region.host());
        let url = parse::base_url(findings, "BRIDGE_PLATFORM_URL", url, plain_http);
        let (value, file) = (environment("TR_API_CLIENT_PASSWORD"), self.client_password_file.as_ref());
        PlatformSettings {
            url,
            client_id: parse::given(self.client_id.as_ref()).map(str::to_owned),
            password: parse::secret(findings, "TR_API_CLIENT_PASSWORD", value.as_ref(), file),
        }
    }

    /// Checks the public address of a relay, which `setting` gave.
    pub fn relay_url(&self, setting: &str, text: &str, findings: &mut Findings) -> Option<Url> {
        // A problem of the flag itself is told once, by `resolve`.
        let plain_http = self.plain_http(&mut Findings::default());
        parse::base_url(findings, setting, text, plain_http)
    }
}

/// What is registered when there is no settings file.
#[derive(Debug, Clone, Args)]
pub struct RelayModuleArgs {
    /// Public base URL of the relay [default: BRIDGE_PUBLIC_URL]
    #[arg(long, env = "URL", value_name = "URL")]
    pub url: Option<String>,
    /// Public base URL of the ingress
    #[arg(long, env = "BRIDGE_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// File that holds the relay's token; without it the variable JWT has the token
    #[arg(long, env = "JWT_FILE", value_name = "PATH")]
    pub jwt_file: Option<PathBuf>,
    /// Relay routes that are switched on: the platform is told of these
    #[arg(long, env = "BRIDGE_RELAY_ROUTES", default_value = RELAY_ROUTES, value_name = "ROUTES")]
    pub relay_routes: String,
}

/// See [`RelayModuleArgs`].
#[derive(Debug)]
pub struct RelayModule {
    /// Where the relay is.
    pub url: Url,
    /// Its token.
    pub token: SecretString,
    /// What it answers.
    pub routes: Routes,
}

impl RelayModuleArgs {
    /// Checks and reads the values; `None` when one of them is a problem.
    pub fn resolve(&self, platform: &PlatformArgs, findings: &mut Findings) -> Option<RelayModule> {
        let given = parse::given(self.url.as_ref()).map(|url| ("URL", url));
        let given = given.or_else(|| parse::given(self.public_url.as_ref()).map(|url| ("BRIDGE_PUBLIC_URL", url)));
        let url = match given {
            Some((setting, text)) => platform.relay_url(setting, text, findings),
            None => {
                findings
                    .problem("URL", "is not set, nor is BRIDGE_PUBLIC_URL: the platform must know where the relay is");
                None
            }
        };
        let problems = findings.problems.len();
        let token = parse::secret(findings, "JWT", environment("JWT").as_ref(), self.jwt_file.as_ref());
        if token.is_none() && findings.problems.len() == problems {
            findings.problem("JWT", "is not set, nor is JWT_FILE; `defender-bridge token` makes the relay's token");
        }
        let routes = Routes::read(&self.relay_routes, findings);
        Some(RelayModule { url: url?, token: token?, routes })
    }
}
