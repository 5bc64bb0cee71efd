//! Settings of the workers: where Microsoft is, and how much work at a time.

use std::time::Duration;

use clap::Args;
use url::Url;

use super::{Findings, parse};

/// Where the portal is: all that the ingress needs of Microsoft.
#[derive(Debug, Clone, Args)]
pub struct PortalArgs {
    /// Cloud of the tenants: commercial, gcc, gcc-high or dod; sets the four URLs and the scopes
    #[arg(long, env = "BRIDGE_CLOUD", default_value = "commercial", value_name = "CLOUD")]
    pub cloud: String,
    /// The portal that links in answers lead to [default: the cloud's]
    #[arg(long, env = "BRIDGE_PORTAL_URL", value_name = "URL")]
    pub portal_url: Option<String>,
    /// Allow http:// to hosts other than this machine: secrets travel in clear. For a simulator in a private network
    #[arg(long, env = "BRIDGE_ALLOW_PLAIN_HTTP", default_value = "false", value_name = "BOOL")]
    pub allow_plain_http: String,
}

/// Where Entra, Defender, Graph and the portal are.
#[derive(Debug, Clone, Args)]
pub struct DefenderArgs {
    /// The cloud and its portal.
    #[command(flatten)]
    pub portal: PortalArgs,
    /// Microsoft Entra, where tokens come from [default: the cloud's]
    #[arg(long, env = "BRIDGE_ENTRA_URL", value_name = "URL")]
    pub entra_url: Option<String>,
    /// Defender for Endpoint, without /api [default: the cloud's]
    #[arg(long, env = "BRIDGE_DEFENDER_URL", value_name = "URL")]
    pub defender_url: Option<String>,
    /// Microsoft Graph, for hunting [default: the cloud's]
    #[arg(long, env = "BRIDGE_GRAPH_URL", value_name = "URL")]
    pub graph_url: Option<String>,
    /// Scope of tokens for Defender [default: the cloud's]
    #[arg(long, env = "BRIDGE_DEFENDER_SCOPE", value_name = "SCOPE")]
    pub defender_scope: Option<String>,
    /// Scope of tokens for Graph [default: the cloud's]
    #[arg(long, env = "BRIDGE_GRAPH_SCOPE", value_name = "SCOPE")]
    pub graph_scope: Option<String>,
    /// How long refused credentials are answered from memory, and missing roles a minute of it at most; 0 = never
    #[arg(long, env = "BRIDGE_REFUSAL_TTL", default_value = REFUSAL_TTL, value_name = "DURATION")]
    pub refusal_ttl: String,
}

/// See [`DefenderArgs`].
#[derive(Debug, Clone)]
pub struct DefenderSettings {
    /// Base of the token endpoint.
    pub entra_url: Url,
    /// Base of the REST API, without `/api`.
    pub defender_url: Url,
    /// Base of Graph, without the version.
    pub graph_url: Url,
    /// Base of links, without a final slash.
    pub portal_url: String,
    /// Scope of tokens for the REST API.
    pub defender_scope: String,
    /// Scope of tokens for Graph.
    pub graph_scope: String,
    /// How long a refusal is believed; zero: not.
    pub refusal_ttl: Duration,
}

/// The hosts and scopes of a cloud (`defender.md` 1.2 and 1.5).
struct Cloud {
    entra: &'static str,
    defender: &'static str,
    graph: &'static str,
    portal: &'static str,
    defender_scope: &'static str,
    graph_scope: &'static str,
}

const COMMERCIAL: Cloud = Cloud {
    entra: "https://login.microsoftonline.com",
    defender: "https://api.security.microsoft.com",
    graph: "https://graph.microsoft.com",
    portal: "https://security.microsoft.com",
    defender_scope: "https://api.securitycenter.microsoft.com/.default",
    graph_scope: "https://graph.microsoft.com/.default",
};
const GCC: Cloud = Cloud {
    defender: "https://api-gcc.securitycenter.microsoft.us",
    defender_scope: "https://api-gcc.securitycenter.microsoft.us/.default",
    ..COMMERCIAL
};
const GCC_HIGH: Cloud = Cloud {
    entra: "https://login.microsoftonline.us",
    defender: "https://api-gov.securitycenter.microsoft.us",
    graph: "https://graph.microsoft.us",
    portal: "https://security.microsoft.us",
    defender_scope: "https://api-gov.securitycenter.microsoft.us/.default",
    graph_scope: "https://graph.microsoft.us/.default",
};
const DOD: Cloud = Cloud {
    graph: "https://dod-graph.microsoft.us",
    portal: "https://security.apps.mil",
    graph_scope: "https://dod-graph.microsoft.us/.default",
    ..GCC_HIGH
};

impl Default for DefenderSettings {
    /// The commercial cloud.
    fn default() -> Self {
        let url = |text: &str| Url::parse(text).expect("the cloud's URLs are URLs");
        Self {
            entra_url: url(COMMERCIAL.entra),
            defender_url: url(COMMERCIAL.defender),
            graph_url: url(COMMERCIAL.graph),
            portal_url: COMMERCIAL.portal.to_owned(),
            defender_scope: COMMERCIAL.defender_scope.to_owned(),
            graph_scope: COMMERCIAL.graph_scope.to_owned(),
            refusal_ttl: Duration::from_secs(5 * 60),
        }
    }
}

impl PortalArgs {
    /// Whether `http://` is allowed to other machines.
    fn plain_http(&self, findings: &mut Findings) -> bool {
        parse::flag(findings, "BRIDGE_ALLOW_PLAIN_HTTP", parse::or_default(&self.allow_plain_http, "false"))
    }

    /// Checks and reads the values: the portal's base without a final slash; `None` when one of them is a problem.
    pub fn resolve(&self, findings: &mut Findings) -> Option<String> {
        let cloud = self.cloud(findings);
        let plain_http = self.plain_http(findings);
        self.portal(cloud, plain_http, findings)
    }

    fn portal(&self, cloud: &Cloud, plain_http: bool, findings: &mut Findings) -> Option<String> {
        let given = parse::given(self.portal_url.as_ref()).unwrap_or(cloud.portal);
        let url = parse::base_url(findings, "BRIDGE_PORTAL_URL", given, plain_http)?;
        Some(url.as_str().trim_end_matches('/').to_owned())
    }

    fn cloud(&self, findings: &mut Findings) -> &'static Cloud {
        match self.cloud.trim().to_ascii_lowercase().as_str() {
            "" | "commercial" => &COMMERCIAL,
            "gcc" => &GCC,
            "gcc-high" => &GCC_HIGH,
            "dod" => &DOD,
            other => {
                findings.problem("BRIDGE_CLOUD", format_args!("{other:?} is none of commercial, gcc, gcc-high, dod"));
                &COMMERCIAL
            }
        }
    }
}

impl DefenderArgs {
    /// Whether `http://` is allowed to other machines.
    pub(super) fn plain_http(&self, findings: &mut Findings) -> bool {
        self.portal.plain_http(findings)
    }

    /// Checks and reads the values; `None` when one of them is a problem.
    pub fn resolve(&self, findings: &mut Findings) -> Option<DefenderSettings> {
        let cloud = self.portal.cloud(findings);
        let plain_http = self.plain_http(findings);
        let mut url = |setting, value: &Option<String>, default| {
            parse::base_url(findings, setting, parse::given(value.as_ref()).unwrap_or(default), plain_http)
        };
        let entra_url = url("BRIDGE_ENTRA_URL", &self.entra_url, cloud.entra);
        let defender_url = url("BRIDGE_DEFENDER_URL", &self.defender_url, cloud.defender);
        let graph_url = url("BRIDGE_GRAPH_URL", &self.graph_url, cloud.graph);
        let portal_url = self.portal.portal(cloud, plain_http, findings);
        let refusal_ttl = parse::duration(
            findings,
            "BRIDGE_REFUSAL_TTL",
            parse::or_default(&self.refusal_ttl, REFUSAL_TTL),
            (Duration::ZERO, Duration::from_secs(3600)),
        );
        let scope = |value: &Option<String>, default: &str| parse::given(value.as_ref()).unwrap_or(default).to_owned();
        Some(DefenderSettings {
            entra_url: entra_url?,
            defender_url: defender_url?,
            graph_url: graph_url?,
            portal_url: portal_url?,
            defender_scope: scope(&self.defender_scope, cloud.defender_scope),
            graph_scope: scope(&self.graph_scope, cloud.graph_scope),
            refusal_ttl,
        })
    }
}

const WORKER_CONCURRENCY: &str = "64";
const ANSWER_TTL: &str = "60s";
/// `defender.md` 1.4.
const REFUSAL_TTL: &str = "5m";

/// How much a worker does at a time.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// Jobs that this process works on at a time
    #[arg(long, env = "BRIDGE_WORKER_CONCURRENCY", default_value = WORKER_CONCURRENCY, value_name = "NUMBER")]
    pub worker_concurrency: String,
    /// How long the answer for one observable is kept in memory; 0 = not at all
    #[arg(long, env = "BRIDGE_ANSWER_TTL", default_value = ANSWER_TTL, value_name = "DURATION")]
    pub answer_ttl: String,
    /// Show the values of observables in traces: what people look for may be personal data
    #[arg(long, env = "BRIDGE_TRACE_VALUES", default_value = "false", value_name = "BOOL")]
    pub trace_values: String,
}

/// See [`WorkerArgs`].
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Jobs at a time.
    pub concurrency: u16,
    /// Zero: answers are not kept.
    pub answer_ttl: Duration,
    /// Whether spans show what was asked about.
    pub trace_values: bool,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { concurrency: 64, answer_ttl: Duration::from_secs(60), trace_values: false }
    }
}

impl WorkerArgs {
    /// Checks and reads the values.
    pub fn resolve(&self, findings: &mut Findings) -> WorkerSettings {
        let most = u32::from(u16::MAX);
        let concurrency = parse::or_default(&self.worker_concurrency, WORKER_CONCURRENCY);
        let concurrency = parse::number(findings, "BRIDGE_WORKER_CONCURRENCY", concurrency, (1, most));
        WorkerSettings {
            concurrency: u16::try_from(concurrency).unwrap_or(1),
            answer_ttl: parse::duration(
                findings,
                "BRIDGE_ANSWER_TTL",
                parse::or_default(&self.answer_ttl, ANSWER_TTL),
                (Duration::ZERO, Duration::from_secs(3600)),
            ),
            trace_values: parse::flag(findings, "BRIDGE_TRACE_VALUES", parse::or_default(&self.trace_values, "false")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cloud: &str) -> DefenderArgs {
        DefenderArgs {
            portal: PortalArgs { cloud: cloud.into(), portal_url: None, allow_plain_http: "false".into() },
            entra_url: None,
            defender_url: None,
            graph_url: None,
            defender_scope: None,
            graph_scope: None,
            refusal_ttl: String::new(),
        }
    }

    #[test]
    fn each_cloud_has_its_hosts_and_scopes() {
        for (cloud, entra, graph_scope, portal) in [
            (
                "commercial",
                "https://login.microsoftonline.com/",
                "https://graph.microsoft.com/.default",
                "https://security.microsoft.com",
            ),
            (
                "GCC",
                "https://login.microsoftonline.com/",
                "https://graph.microsoft.com/.default",
                "https://security.microsoft.com",
            ),
            (
                "gcc-high",
                "https://login.microsoftonline.us/",
                "https://graph.microsoft.us/.default",
                "https://security.microsoft.us",
            ),
            (
                "dod",
                "https://login.microsoftonline.us/",
                "https://dod-graph.microsoft.us/.default",
                "https://security.apps.mil",
            ),
        ] {
            let mut findings = Findings::default();
            let settings = args(cloud).resolve(&mut findings).unwrap();
            assert_eq!(findings, Findings::default());
            assert_eq!(settings.entra_url.as_str(), entra);
            assert_eq!(settings.graph_scope, graph_scope);
            assert_eq!(settings.portal_url, portal);
        }
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let mut findings = Findings::default();
        let given = DefenderArgs {
            entra_url: Some("http://elsewhere.example".into()),
            graph_url: Some("nonsense".into()),
            portal: PortalArgs { allow_plain_http: "maybe".into(), ..args("mars").portal },
            ..args("mars")
        };
        assert!(given.resolve(&mut findings).is_none());
        assert_eq!(findings.problems.len(), 4, "{findings:?}");
        let refused = findings.check().unwrap_err().to_string();
        assert_eq!(refused.lines().count(), 5, "{refused}");
    }

    #[test]
    fn empty_values_count_as_not_set() {
        let mut findings = Findings::default();
        let args =
            WorkerArgs { worker_concurrency: String::new(), answer_ttl: String::new(), trace_values: String::new() };
        let settings = args.resolve(&mut findings);
        assert_eq!((settings.concurrency, settings.answer_ttl), (64, Duration::from_secs(60)));
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn an_empty_url_means_the_clouds_own() {
        let mut findings = Findings::default();
        let settings = DefenderArgs { entra_url: Some(String::new()), ..args("") }.resolve(&mut findings).unwrap();
        assert_eq!(settings.entra_url.as_str(), "https://login.microsoftonline.com/");
    }
}
