//! `/refer/observables`: links into Defender's portal (`relay.md` 7.4, `defender.md` 2.2). Neither a worker nor Defender is
//! needed: the tenant is in the token, so that an analyst of several tenants lands in the right one.

use serde::Serialize;

use super::{Kind, Observable};

const CATEGORIES: [&str; 2] = ["Search", "Microsoft Defender for Endpoint"];

/// One link, with exactly the members that the platform knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// `ref-md-search-<type>-<value as received>`.
    pub id: String,
    /// For a menu.
    pub title: String,
    /// For a tooltip.
    pub description: String,
    /// Where it leads, with everything that was put in encoded.
    pub url: String,
    /// Without repeats.
    pub categories: [&'static str; 2],
}

/// The links of `observables` in their order; an MD5 has none, for the portal's page of a file takes SHA-1 and SHA-256.
/// `portal` is the portal's base without a final slash, `tenant` the tenant of the token.
#[must_use]
pub fn links(observables: &[Observable], portal: &str, tenant: &str) -> Vec<Link> {
    observables.iter().filter_map(|observable| link(observable, portal, tenant)).collect()
}

fn link(observable: &Observable, portal: &str, tenant: &str) -> Option<Link> {
    let value: String = url::form_urlencoded::byte_serialize(observable.value.as_bytes()).collect();
    let tenant: String = url::form_urlencoded::byte_serialize(tenant.as_bytes()).collect();
    let url = match observable.kind {
        Kind::Sha1 | Kind::Sha256 => format!("{portal}/file/{value}/?tid={tenant}"),
        Kind::Ip | Kind::Ipv6 => format!("{portal}/ip/{value}/overview?tid={tenant}"),
        Kind::Domain => format!("{portal}/domains/overview?urlDomain={value}&tid={tenant}"),
        Kind::MachineId => format!("{portal}/machines/v2/{value}/overview?tid={tenant}"),
        Kind::Md5 => return None,
    };
    let label = match Kind::parse(&observable.spelled_type)? {
        Kind::Sha1 => "SHA1",
        Kind::Sha256 => "SHA256",
        Kind::Ip => "IP",
        Kind::Ipv6 => "IPV6",
        Kind::Domain => "Domain",
        Kind::MachineId => "Device",
        Kind::Md5 => return None,
    };
    Some(Link {
        id: format!("ref-md-search-{}-{}", observable.spelled_type, observable.spelled_value),
        title: format!("Search for this {label}"),
        description: format!("Lookup this {label} on Microsoft Defender for Endpoint"),
        url,
        categories: CATEGORIES,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTAL: &str = "https://security.microsoft.com";

    /// Every type of the table in `relay.md` 7.4; defect 65.
    #[test]
    fn each_type_leads_to_its_page_with_its_value_encoded() {
        let sha1 = "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709";
        let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let rows = [
            ("SHA1", sha1, "SHA1", "/file/da39a3ee5e6b4b0d3255bfef95601890afd80709/?tid=t-1"),
            (
                "sha256",
                sha256,
                "SHA256",
                "/file/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/?tid=t-1",
            ),
            ("ip", " 192.0.2.1", "IP", "/ip/192.0.2.1/overview?tid=t-1"),
            ("ipv6", "[2001:DB8::1]", "IPV6", "/ip/2001%3Adb8%3A%3A1/overview?tid=t-1"),
            ("ip", "2001:db8::1", "IP", "/ip/2001%3Adb8%3A%3A1/overview?tid=t-1"),
            ("domain", "A_b.Example.", "Domain", "/domains/overview?urlDomain=a_b.example&tid=t-1"),
            ("ms_machine_id", sha1, "Device", "/machines/v2/da39a3ee5e6b4b0d3255bfef95601890afd80709/overview?tid=t-1"),
        ];
        for (kind, value, label, path) in rows {
            let observable = Observable::parse(kind, value).unwrap();
            let link = link(&observable, PORTAL, "t-1").unwrap();
            assert_eq!(link.id, format!("ref-md-search-{}-{value}", kind.to_lowercase()));
            assert_eq!(link.title, format!("Search for this {label}"));
            assert_eq!(link.description, format!("Lookup this {label} on Microsoft Defender for Endpoint"));
            assert_eq!(link.url, format!("{PORTAL}{path}"));
        }
    }

    #[test]
    fn what_has_no_page_is_skipped_and_the_order_is_kept() {
        let list = [("domain", "b.example"), ("md5", "d41d8cd98f00b204e9800998ecf8427e"), ("ip", "192.0.2.1")];
        let observables: Vec<_> = list.iter().filter_map(|(kind, value)| Observable::parse(kind, value)).collect();
        let ids: Vec<String> = links(&observables, PORTAL, "t").into_iter().map(|link| link.id).collect();
        assert_eq!(ids, ["ref-md-search-domain-b.example", "ref-md-search-ip-192.0.2.1"]);
    }
}
