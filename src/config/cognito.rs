//! Settings of the brain: where Cognito is, who calls it, and how fast.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::{Findings, parse};
use crate::cognito::{self, Auth, Flavour, Version};

const API_VERSION: &str = "v2.5";
const RATE: &str = "20";
const LIST_ALL: &str = "true";

/// More requests a second than this no brain answers.
const MOST_REQUESTS_PER_SECOND: u32 = 1000;

/// A file with more bytes than this is not one of certificates.
const CA_FILE_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Who the bridge is in Cognito; ingress and workers both want to know.
#[derive(Debug, Clone, Default, Args)]
pub struct SelfUserArgs {
    /// User name or API client's name that the bridge has in Cognito: events about its own changes are ignored, and only
    /// its own notes are changed
    #[arg(long, env = "BRIDGE_COGNITO_SELF_USER", value_name = "NAME")]
    pub cognito_self_user: Option<String>,
}

impl SelfUserArgs {
    /// The name, if there is one.
    #[must_use]
    pub fn resolve(&self) -> Option<String> {
        parse::given(self.cognito_self_user.as_ref()).map(|name| name.trim().to_owned())
    }
}

/// Vectra Cognito.
#[derive(Clone, Args)]
pub struct CognitoArgs {
    /// Vectra Cognito's brain: https://HOST, or the host name alone
    #[arg(long, env = "COGNITO_BRAIN", value_name = "URL")]
    pub cognito_brain: Option<String>,
    /// Token of a local user of Cognito
    #[arg(long, env = "COGNITO_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub cognito_token: Option<String>,
    /// File that holds COGNITO_TOKEN
    #[arg(long, env = "COGNITO_TOKEN_FILE", value_name = "PATH")]
    pub cognito_token_file: Option<PathBuf>,
    /// Id of an API client of Cognito (OAuth2), in place of the token; from v2.5 on
    #[arg(long, env = "BRIDGE_COGNITO_CLIENT_ID", value_name = "ID")]
    pub cognito_client_id: Option<String>,
    /// Secret key of the API client
    #[arg(long, env = "BRIDGE_COGNITO_CLIENT_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub cognito_client_secret: Option<String>,
    /// File that holds BRIDGE_COGNITO_CLIENT_SECRET
    #[arg(long, env = "BRIDGE_COGNITO_CLIENT_SECRET_FILE", value_name = "PATH")]
    pub cognito_client_secret_file: Option<PathBuf>,
    /// Version of Cognito's API: v2.2 to v2.5 on premises; v3.3 or later v3.x hosted, which needs an API client
    #[arg(long, env = "BRIDGE_COGNITO_API_VERSION", default_value = API_VERSION, value_name = "VERSION")]
    pub cognito_api_version: String,
    /// File with certificates (PEM) that are trusted for the brain, besides those of the system: of authorities, or its own
    #[arg(long, env = "BRIDGE_COGNITO_CA_FILE", value_name = "PATH")]
    pub cognito_ca_file: Option<PathBuf>,
    /// Requests a second to the brain, of the whole deployment; lowered by itself when the brain says so
    #[arg(long, env = "BRIDGE_COGNITO_RATE", default_value = RATE, value_name = "NUMBER")]
    pub cognito_rate: String,
    /// List hosts without any activity too (all=true, on premises only); a brain that refuses it is asked without
    #[arg(long, env = "BRIDGE_COGNITO_LIST_ALL", default_value = LIST_ALL, value_name = "BOOL")]
    pub cognito_list_all: String,
}

/// Shows no secret.
impl fmt::Debug for CognitoArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CognitoArgs")
            .field("cognito_brain", &self.cognito_brain)
            .field("cognito_api_version", &self.cognito_api_version)
            .finish_non_exhaustive()
    }
}

/// See [`CognitoArgs`].
#[derive(Debug, Clone)]
pub struct CognitoSettings {
    /// Where the brain is, and who calls it.
    pub client: cognito::Settings,
    /// Certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Requests a second of the whole deployment, from 1.
    pub rate: u32,
    /// Who the bridge is in Cognito.
    pub self_user: Option<String>,
}

impl CognitoArgs {
    /// Whether it is said where the brain is, or who calls it.
    #[must_use]
    pub fn is_given(&self) -> bool {
        let given = |text: &Option<String>| parse::given(text.as_ref()).is_some();
        let file = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        [&self.cognito_brain, &self.cognito_token, &self.cognito_client_id, &self.cognito_client_secret]
            .into_iter()
            .any(given)
            || [&self.cognito_token_file, &self.cognito_client_secret_file].into_iter().any(file)
    }

    /// Checks and reads the values; `None` when one of them is a problem or missing. `plain_http` allows `http://` to
    /// other machines.
    pub fn resolve(
        &self,
        plain_http: bool,
        self_user: &SelfUserArgs,
        findings: &mut Findings,
    ) -> Option<CognitoSettings> {
        let base_url = self.brain(plain_http, findings);
        let version = self.version(findings);
        let auth = self.auth(version, findings);
        let ca_file = self.cognito_ca_file.clone().filter(|path| !path.as_os_str().is_empty());
        if let Some(path) = &ca_file
            && let Err(rule) = holds_certificates(path)
        {
            findings.problem("BRIDGE_COGNITO_CA_FILE", format_args!("{}: {rule}", path.display()));
        }
        let rate = parse::or_default(&self.cognito_rate, RATE);
        let rate = parse::number(findings, "BRIDGE_COGNITO_RATE", rate, (1, MOST_REQUESTS_PER_SECOND));
        let list_all = parse::or_default(&self.cognito_list_all, LIST_ALL);
        let list_all = parse::flag(findings, "BRIDGE_COGNITO_LIST_ALL", list_all);
        Some(CognitoSettings {
            client: cognito::Settings { list_all, ..cognito::Settings::new(base_url?, version?, auth?) },
            ca_file,
            rate,
            self_user: self_user.resolve(),
        })
    }

    fn brain(&self, plain_http: bool, findings: &mut Findings) -> Option<Url> {
        const SETTING: &str = "COGNITO_BRAIN";
        let Some(text) = parse::given(self.cognito_brain.as_ref()).map(str::trim) else {
            findings.problem(SETTING, "is not set: where is Cognito?");
            return None;
        };
        // What has no scheme is a host name, with or without a port.
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = parse::base_url(findings, SETTING, &url, plain_http)?;
        if url.path_segments().is_some_and(|mut segments| segments.any(|segment| segment == "api")) {
            findings.problem(SETTING, "the URL must end before /api, which is added with BRIDGE_COGNITO_API_VERSION");
            return None;
        }
        Some(url)
    }

    fn version(&self, findings: &mut Findings) -> Option<Version> {
        parse::or_default(&self.cognito_api_version, API_VERSION)
            .parse()
            .inspect_err(|error| findings.problem("BRIDGE_COGNITO_API_VERSION", error))
            .ok()
    }

    fn auth(&self, version: Option<Version>, findings: &mut Findings) -> Option<Auth> {
        const ID: &str = "BRIDGE_COGNITO_CLIENT_ID";
        const SECRET: &str = "BRIDGE_COGNITO_CLIENT_SECRET";
        const TOKEN: &str = "COGNITO_TOKEN";
        let before = findings.problems.len();
        let token = parse::secret(findings, TOKEN, self.cognito_token.as_ref(), self.cognito_token_file.as_ref());
        let (secret, file) = (self.cognito_client_secret.as_ref(), self.cognito_client_secret_file.as_ref());
        let client_secret = parse::secret(findings, SECRET, secret, file);
        let client_id = parse::given(self.cognito_client_id.as_ref()).map(|id| id.trim().to_owned());
        if findings.problems.len() > before {
            return None;
        }
        if token.is_some() && (client_id.is_some() || client_secret.is_some()) {
            findings.problem(TOKEN, format_args!("give either {TOKEN}, or {ID} and {SECRET}, not both"));
            return None;
        }
        match (token, client_id, client_secret) {
            (Some(token), ..) => {
                if version.is_some_and(|version| version.flavour() == Flavour::Rux) {
                    findings.problem(ID, "v3 takes no personal tokens: set the id and the secret of an API client");
                    return None;
                }
                check_plain(findings, TOKEN, &token)?;
                Some(Auth::Token(token))
            }
            (None, Some(client_id), Some(client_secret)) => {
                if let Some(version) = version.filter(|version| !version.has_oauth2()) {
                    findings.problem(ID, format_args!("{version} has no API clients: use {TOKEN}, or v2.5"));
                    return None;
                }
                // Both travel in one line, divided by a colon.
                if client_id.contains(':') || !client_id.bytes().all(|byte| byte.is_ascii_graphic()) {
                    findings.problem(ID, "must be visible ASCII characters without a colon");
                    return None;
                }
                check_plain(findings, SECRET, &client_secret)?;
                Some(Auth::OAuth2 { client_id, client_secret })
            }
            (None, Some(_), None) => {
                findings.problem(SECRET, format_args!("is not set, but {ID} is"));
                None
            }
            (None, None, Some(_)) => {
                findings.problem(ID, format_args!("is not set, but {SECRET} is"));
                None
            }
            (None, None, None) => {
                findings.problem(TOKEN, format_args!("is not set, nor are {ID} and {SECRET}: who calls Cognito?"));
                None
            }
        }
    }
}

/// What Cognito hands out is plain text; anything else is a slip of the paste.
fn check_plain(findings: &mut Findings, setting: &str, secret: &SecretString) -> Option<()> {
    let plain = secret.expose_secret().bytes().all(|byte| byte.is_ascii_graphic());
    if !plain {
        findings.problem(setting, "must be visible ASCII characters without spaces");
    }
    plain.then_some(())
}

/// Whether the file can be read and looks like certificates; what they are worth shows when the client is set up.
fn holds_certificates(path: &Path) -> Result<(), Box<dyn fmt::Display>> {
    let failed = |error| Box::new(error) as Box<dyn fmt::Display>;
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(CA_FILE_LIMIT_BYTES).read_to_end(&mut pem).map_err(failed)?;
    let begins = b"-----BEGIN CERTIFICATE-----";
    let holds = pem.windows(begins.len()).any(|window| window == begins);
    if holds { Ok(()) } else { Err(Box::new("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn args() -> CognitoArgs {
        CognitoArgs {
            cognito_brain: Some("https://cognito.example".into()),
            cognito_token: Some("pl4nted-token".into()),
            cognito_token_file: None,
            cognito_client_id: None,
            cognito_client_secret: None,
            cognito_client_secret_file: None,
            cognito_api_version: API_VERSION.into(),
            cognito_ca_file: None,
            cognito_rate: RATE.into(),
            cognito_list_all: LIST_ALL.into(),
        }
    }

    fn oauth2() -> CognitoArgs {
        CognitoArgs {
            cognito_token: None,
            cognito_client_id: Some("client".into()),
            cognito_client_secret: Some("pl4nted-secret".into()),
            ..args()
        }
    }

    fn resolve(args: &CognitoArgs) -> Result<CognitoSettings, Vec<String>> {
        let mut findings = Findings::default();
        let settings = args.resolve(false, &SelfUserArgs::default(), &mut findings);
        assert_eq!(settings.is_none(), !findings.problems.is_empty(), "{findings:?}");
        let shown = format!("{args:?} {settings:?} {findings:?}");
        assert!(!shown.contains("pl4nted"), "{shown}");
        settings.ok_or(findings.problems)
    }

    #[test]
    fn the_settings_of_the_script_are_enough() {
        let settings = resolve(&args()).unwrap();
        assert_eq!(settings.client.base_url.as_str(), "https://cognito.example/");
        assert_eq!(settings.client.version, Version::V2_5);
        assert!(matches!(settings.client.auth, Auth::Token(_)) && settings.client.list_all);
        assert_eq!((settings.rate, settings.ca_file, settings.self_user), (20, None, None));
    }

    #[rstest]
    #[case("cognito.example", "https://cognito.example/")]
    #[case(" cognito.example:8443/ ", "https://cognito.example:8443/")]
    #[case("192.0.2.10", "https://192.0.2.10/")]
    #[case("[2001:db8::10]", "https://[2001:db8::10]/")]
    #[case("https://proxy.example/brain/", "https://proxy.example/brain/")]
    #[case("http://127.0.0.1:8090", "http://127.0.0.1:8090/")]
    fn a_brain_is_a_url_or_a_host_name(#[case] brain: &str, #[case] expected: &str) {
        let settings = resolve(&CognitoArgs { cognito_brain: Some(brain.into()), ..args() }).unwrap();
        assert_eq!(settings.client.base_url.as_str(), expected);
    }

    #[rstest]
    #[case("http://cognito.example", "COGNITO_BRAIN: the URL would send secrets in clear")]
    #[case("https://cognito.example/api/v2.1", "COGNITO_BRAIN: the URL must end before /api")]
    #[case("https://me:pl4nted@cognito.example", "COGNITO_BRAIN: the URL must hold no user")]
    #[case("ftp://cognito.example", "COGNITO_BRAIN: the URL must begin with https://")]
    #[case("cognito example", "COGNITO_BRAIN: \"https://cognito example\" is not a URL")]
    #[case(" ", "COGNITO_BRAIN: is not set")]
    fn what_is_no_brain_is_refused(#[case] brain: &str, #[case] expected: &str) {
        let args = CognitoArgs { cognito_brain: Some(brain.into()), ..args() };
        let problems = match args.resolve(false, &SelfUserArgs::default(), &mut Findings::default()) {
            Some(settings) => panic!("{settings:?}"),
            None => {
                let mut findings = Findings::default();
                args.resolve(false, &SelfUserArgs::default(), &mut findings);
                findings.problems
            }
        };
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{problems:?}");
        assert!(!problems[0].contains("pl4nted"), "{problems:?}");
    }

    #[test]
    fn plain_http_to_other_machines_has_to_be_allowed() {
        let args = CognitoArgs { cognito_brain: Some("http://simulator:8090".into()), ..args() };
        assert!(args.resolve(true, &SelfUserArgs::default(), &mut Findings::default()).is_some());
    }

    #[test]
    fn an_api_client_takes_the_tokens_place() {
        for version in ["v2.5", "v3.4"] {
            let settings = resolve(&CognitoArgs { cognito_api_version: version.into(), ..oauth2() }).unwrap();
            assert!(matches!(&settings.client.auth, Auth::OAuth2 { client_id, .. } if client_id == "client"));
        }
    }

    #[rstest]
    #[case::both(CognitoArgs { cognito_token: Some("x".into()), ..oauth2() }, "COGNITO_TOKEN: give either")]
    #[case::neither(CognitoArgs { cognito_token: None, ..args() }, "COGNITO_TOKEN: is not set, nor are")]
    #[case::empty(CognitoArgs { cognito_token: Some(String::new()), ..args() }, "COGNITO_TOKEN: is not set, nor are")]
    #[case::no_secret(CognitoArgs { cognito_client_secret: None, ..oauth2() }, "BRIDGE_COGNITO_CLIENT_SECRET: is not set, but")]
    #[case::no_id(CognitoArgs { cognito_client_id: None, ..oauth2() }, "BRIDGE_COGNITO_CLIENT_ID: is not set, but")]
    #[case::token_for_v3(CognitoArgs { cognito_api_version: "v3.4".into(), ..args() }, "BRIDGE_COGNITO_CLIENT_ID: v3 takes no")]
    #[case::client_for_v2_4(CognitoArgs { cognito_api_version: "v2.4".into(), ..oauth2() }, "BRIDGE_COGNITO_CLIENT_ID: v2.4 has no")]
    #[case::unknown_version(CognitoArgs { cognito_api_version: "v2.1".into(), ..args() }, "BRIDGE_COGNITO_API_VERSION: \"v2.1\" is none")]
    #[case::colon(CognitoArgs { cognito_client_id: Some("a:b".into()), ..oauth2() }, "BRIDGE_COGNITO_CLIENT_ID: must be visible")]
    #[case::space(CognitoArgs { cognito_token: Some("pl4nted x".into()), ..args() }, "COGNITO_TOKEN: must be visible")]
    #[case::line_break(CognitoArgs { cognito_client_secret: Some("pl4nted\n".into()), ..oauth2() }, "BRIDGE_COGNITO_CLIENT_SECRET: must be visible")]
    #[case::no_such_file(CognitoArgs { cognito_token: None, cognito_token_file: Some("no such file".into()), ..args() }, "COGNITO_TOKEN_FILE: no such file")]
    #[case::rate(CognitoArgs { cognito_rate: "0".into(), ..args() }, "BRIDGE_COGNITO_RATE: \"0\" is not a whole number")]
    #[case::list_all(CognitoArgs { cognito_list_all: "maybe".into(), ..args() }, "BRIDGE_COGNITO_LIST_ALL: \"maybe\" is neither")]
    #[case::ca_file(CognitoArgs { cognito_ca_file: Some("no/such/ca.pem".into()), ..args() }, "BRIDGE_COGNITO_CA_FILE: no/such/ca.pem: ")]
    #[case::ca_folder(CognitoArgs { cognito_ca_file: Some("src".into()), ..args() }, "BRIDGE_COGNITO_CA_FILE: src: ")]
    #[case::not_ca(CognitoArgs { cognito_ca_file: Some("Cargo.toml".into()), ..args() }, "BRIDGE_COGNITO_CA_FILE: Cargo.toml: holds no certificate")]
    fn what_cannot_work_is_one_problem_each(#[case] args: CognitoArgs, #[case] expected: &str) {
        let mut findings = Findings::default();
        args.resolve(false, &SelfUserArgs::default(), &mut findings);
        assert!(findings.problems.len() == 1 && findings.problems[0].starts_with(expected), "{findings:?}");
        assert!(!format!("{findings:?}").contains("pl4nted"), "{findings:?}");
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let args = CognitoArgs {
            cognito_brain: None,
            cognito_token: None,
            cognito_api_version: "latest".into(),
            cognito_rate: "fast".into(),
            ..args()
        };
        assert_eq!(resolve(&args).unwrap_err().len(), 4);
    }

    #[test]
    fn empty_values_count_as_not_set() {
        let args = CognitoArgs {
            cognito_client_id: Some(" ".into()),
            cognito_client_secret: Some(String::new()),
            cognito_token_file: Some(PathBuf::new()),
            cognito_api_version: String::new(),
            cognito_ca_file: Some(PathBuf::new()),
            cognito_rate: String::new(),
            cognito_list_all: String::new(),
            ..args()
        };
        let settings = resolve(&args).unwrap();
        assert_eq!((settings.rate, settings.ca_file, settings.self_user), (20, None, None));
        let nothing = CognitoArgs { cognito_brain: None, cognito_token: Some(String::new()), ..args.clone() };
        assert!(args.is_given() && !nothing.is_given());
    }
}
