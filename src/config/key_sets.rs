//! Settings of key-set tokens: which hosts' keys are believed, what the relay is called, and which tenants are served.

use clap::Args;
use url::Url;

use super::{Findings, parse};
use crate::key_sets::{self, host_of};
use crate::relay::key_set::Rules;
use crate::relay::token;

const HOSTS: &str = "BRIDGE_RELAY_JWKS_HOSTS";
const PUBLIC_URL: &str = "BRIDGE_PUBLIC_URL";
const TENANTS: &str = "BRIDGE_RELAY_TENANTS";

/// Tokens that the platform signs (RS256).
#[derive(Debug, Clone, Default, Args)]
pub struct KeySetArgs {
    /// Hosts whose key sets sign relay tokens (RS256), divided by commas: HOST or HOST:PORT, always over HTTPS.
    /// http://HOST:PORT is taken for this machine only [default: none, and only tokens of SECRET_KEY are accepted]
    #[arg(long, env = "BRIDGE_RELAY_JWKS_HOSTS", value_name = "HOSTS")]
    pub relay_jwks_hosts: Option<String>,
    /// Base URL under which the platform knows this relay; key-set tokens must be made for it
    #[arg(long, env = "BRIDGE_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Tenants that key-set tokens may be for, by id or domain name as in the module's configuration, divided by commas
    #[arg(long, env = "BRIDGE_RELAY_TENANTS", value_name = "IDS")]
    pub relay_tenants: Option<String>,
}

impl KeySetArgs {
    /// Whether key-set tokens are accepted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        parse::given(self.relay_jwks_hosts.as_ref()).is_some()
    }

    /// Checks and reads the values. `None` when no host is named, so that this kind of token is off, and when something
    /// is a problem.
    pub fn resolve(&self, findings: &mut Findings) -> Option<key_sets::Settings> {
        let before = findings.problems.len();
        let audience = parse::given(self.public_url.as_ref()).map(|url| url.trim().trim_end_matches('/').to_owned());
        if let Some(url) = &audience {
            // It is only compared, so plain HTTP does no harm here.
            parse::base_url(findings, PUBLIC_URL, url, true);
        }
        let tenants: Vec<String> =
            parse::given(self.relay_tenants.as_ref()).into_iter().flat_map(parse::list).map(str::to_owned).collect();
        for tenant in tenants.iter().filter(|tenant| !token::is_tenant_id(tenant)) {
            findings.problem(TENANTS, format_args!("{tenant:?} is not 1 to 255 letters, digits, '.' or '-'"));
        }
        let Some(hosts) = parse::given(self.relay_jwks_hosts.as_ref()) else {
            if !tenants.is_empty() {
                findings.warning(TENANTS, format_args!("has no effect, for {HOSTS} is not set"));
            }
            return None;
        };
        let hosts: Vec<Url> = parse::list(hosts).filter_map(|host| self.host(host, findings)).collect();
        if hosts.is_empty() && findings.problems.len() == before {
            findings.problem(HOSTS, "names no host");
        }
        if audience.is_none() {
            findings
                .problem(PUBLIC_URL, format_args!("is not set, but {HOSTS} is: tokens must be made for this relay"));
        }
        if tenants.is_empty() {
            findings.problem(
                TENANTS,
                format_args!(
                    "is not set, but {HOSTS} is: the platform signs tokens for everybody, so say whom this relay serves"
                ),
            );
        }
        if findings.problems.len() > before {
            return None;
        }
        Some(key_sets::Settings::new(hosts, Rules { audience: audience?, tenants }))
    }

    /// An entry of the list, as a base URL.
    fn host(&self, entry: &str, findings: &mut Findings) -> Option<Url> {
        let url = if entry.contains("://") { entry.to_owned() } else { format!("https://{entry}") };
        let host = parse::base_url(findings, HOSTS, &url, false)?;
        if host.path() != "/" {
            findings.problem(HOSTS, format_args!("{:?} must be a host alone, with no path after it", host_of(&host)));
            return None;
        }
        Some(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(hosts: &str, url: &str, tenants: &str) -> (Option<key_sets::Settings>, Findings) {
        let set = |text: &str| Some(text.to_owned());
        let args = KeySetArgs { relay_jwks_hosts: set(hosts), public_url: set(url), relay_tenants: set(tenants) };
        let mut findings = Findings::default();
        (args.resolve(&mut findings), findings)
    }

    #[test]
    fn hosts_are_asked_over_https_unless_they_are_this_machine() {
        let (settings, findings) = resolve(
            "visibility.amp.cisco.com, Keys.example:8443,http://127.0.0.1:8090",
            "https://relay.example/base/",
            "t.example, 11111111-2222-4333-8444-555555555555",
        );
        assert_eq!(findings, Findings::default());
        let settings = settings.unwrap();
        let hosts: Vec<&str> = settings.hosts.iter().map(Url::as_str).collect();
        assert_eq!(
            hosts,
            ["https://visibility.amp.cisco.com/", "https://keys.example:8443/", "http://127.0.0.1:8090/"]
        );
        assert_eq!(settings.hosts.iter().map(host_of).next_back().as_deref(), Some("127.0.0.1:8090"));
        assert_eq!(settings.rules.audience, "https://relay.example/base");
        assert_eq!(settings.rules.tenants.len(), 2);
    }

    #[test]
    fn without_hosts_it_is_off() {
        let (settings, findings) = resolve(" ", "", "");
        assert!(settings.is_none() && findings == Findings::default());
        let (settings, findings) = resolve("", "https://relay.example", "t");
        assert!(settings.is_none() && findings.problems.is_empty() && findings.warnings.len() == 1, "{findings:?}");
    }

    #[test]
    fn what_cannot_work_names_its_setting() {
        for (hosts, url, tenants, problems) in [
            ("keys.example", "", "", &[PUBLIC_URL, TENANTS][..]),
            ("keys.example", "https://relay.example", "", &[TENANTS]),
            ("keys.example", "https://relay.example", ",", &[TENANTS]),
            ("keys.example", "relay.example", "t", &[PUBLIC_URL]),
            ("keys.example", "https://relay.example?x", "t", &[PUBLIC_URL]),
            ("keys.example", "https://relay.example", "a/b", &[TENANTS]),
            ("http://keys.example", "https://relay.example", "t", &[HOSTS]),
            ("https://keys.example/path", "https://relay.example", "t", &[HOSTS]),
            ("user@keys.example", "https://relay.example", "t", &[HOSTS]),
            (",", "https://relay.example", "t", &[HOSTS]),
        ] {
            let (settings, findings) = resolve(hosts, url, tenants);
            assert!(settings.is_none(), "{hosts}");
            let named: Vec<&str> = findings.problems.iter().map(|text| text.split(':').next().unwrap()).collect();
            assert_eq!(named, problems, "{findings:?}");
        }
    }
}
