//! Where something was: addresses, URLs and paths in the typed forms of relations (`relay.md` 6.7, common rules).

use crate::relay::{
    Kind,
    ctim::Typed,
    observable::{address, domain},
};

/// An IPv4 or IPv6 address in canonical text; nothing else. An IPv4-mapped address, as hunting stores those of
/// dual-stack sockets, is the IPv4 address, as an observable is (`relay::observable`): so the relation meets it.
pub fn typed_address(text: &str) -> Option<Typed> {
    address(text).map(|(kind, value)| Typed::new(kind.as_str(), value))
}

/// A URL as it is, or what else a URL column holds: an address or a host name, with or without port and path (defect
/// 21). Nothing for what is none of these.
pub fn typed_url(text: &str) -> Option<Typed> {
    let (host, has_scheme) = host(text)?;
    if has_scheme {
        return Some(Typed::new("url", text));
    }
    typed_address(host).or_else(|| Some(Typed::new(Kind::Domain.as_str(), domain(host)?)))
}

/// The host of a URL column, when it is a name.
pub fn host_name(text: &str) -> Option<Typed> {
    let (host, _) = host(text)?;
    if address(host).is_some() {
        return None;
    }
    Some(Typed::new(Kind::Domain.as_str(), domain(host)?))
}

/// The host part, not empty, and whether a scheme came before it.
fn host(text: &str) -> Option<(&str, bool)> {
    let text = text.trim();
    let scheme = text.split_once("://").filter(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    });
    let rest = scheme.map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = if address(host).is_some() { host } else { without_port(host) };
    (!host.is_empty()).then_some((host, scheme.is_some()))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Folder and file name as one path; the folder as it is when it already ends with the name, or when there is no name.
/// Defender names the folder in some places and the whole path in others (defect 51).
pub fn full_path(folder: &str, file_name: &str) -> String {
    let drive = folder.as_bytes();
    let windows = folder.contains('\\') || (drive.len() >= 2 && drive[0].is_ascii_alphabetic() && drive[1] == b':');
    let is_separator = |c: char| c == '/' || (windows && c == '\\');
    let last = folder.rsplit(is_separator).next().unwrap_or(folder);
    if folder.is_empty() || file_name.is_empty() || last.to_lowercase() == file_name.to_lowercase() {
        return folder.to_owned();
    }
    let separator = match (folder.ends_with(is_separator), windows) {
        (true, _) => "",
        (false, true) => "\\",
        (false, false) => "/",
    };
    format!("{folder}{separator}{file_name}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(typed: Option<Typed>) -> String {
        typed.map_or_else(String::new, |typed| format!("{} {}", typed.kind, typed.value))
    }

    #[test]
    fn addresses_are_typed_by_what_they_are() {
        // Defect 20: an IPv6 address is no `ip`.
        let rows = [
            ("203.0.113.7", "ip 203.0.113.7"),
            ("2001:DB8::7", "ipv6 2001:db8::7"),
            ("::ffff:203.0.113.7", "ip 203.0.113.7"),
            ("fe80::1%4", "ipv6 fe80::1"),
            ("a.example", ""),
            ("203.0.113.7:80", ""),
            ("", ""),
        ];
        for (text, expected) in rows {
            assert_eq!(shown(typed_address(text)), expected, "{text}");
        }
    }

    /// Defect 21: a URL, an address or a name is told by its shape, with port and path out of the way.
    #[test]
    fn url_columns_are_typed_by_what_they_hold() {
        let rows = [
            // text, typed URL, host name
            (
                "http://updates.bad.example:8080/get?id=7",
                "url http://updates.bad.example:8080/get?id=7",
                "domain updates.bad.example",
            ),
            ("HTTPS://Evil.Example./x", "url HTTPS://Evil.Example./x", "domain evil.example"),
            ("https://user:pw@evil.example", "url https://user:pw@evil.example", "domain evil.example"),
            ("https://203.0.113.7/x", "url https://203.0.113.7/x", ""),
            ("https://[2001:db8::7]:8443/", "url https://[2001:db8::7]:8443/", ""),
            ("tcp://evil.example?a@b", "url tcp://evil.example?a@b", "domain evil.example"),
            ("evil.example", "domain evil.example", "domain evil.example"),
            ("Evil.Example.", "domain evil.example", "domain evil.example"),
            ("evil.example/a", "domain evil.example", "domain evil.example"),
            ("evil.example?next=http://x.example", "domain evil.example", "domain evil.example"),
            ("evil.example#a", "domain evil.example", "domain evil.example"),
            ("evil.example:8443", "domain evil.example", "domain evil.example"),
            ("bücher.example/x", "domain xn--bcher-kva.example", "domain xn--bcher-kva.example"),
            ("10.0.0.1", "ip 10.0.0.1", ""),
            ("10.0.0.1:80/x", "ip 10.0.0.1", ""),
            ("2001:db8::7", "ipv6 2001:db8::7", ""),
            ("[2001:db8::7]:443", "ipv6 2001:db8::7", ""),
            ("file:///etc/passwd", "", ""),
            ("http://", "", ""),
            ("http://:80/", "", ""),
            ("/path/only", "", ""),
            ("two words", "", ""),
            ("javascript:alert(1)", "", ""),
            (" ", "", ""),
            ("", "", ""),
        ];
        for (text, typed, name) in rows {
            assert_eq!(shown(typed_url(text)), typed, "{text}");
            assert_eq!(shown(host_name(text)), name, "{text}");
        }
    }

    /// Defect 51.
    #[test]
    fn a_folder_and_a_name_make_one_path() {
        let rows = [
            (r"C:\Windows\System32", "a.exe", r"C:\Windows\System32\a.exe"),
            (r"C:\Windows\System32\", "a.exe", r"C:\Windows\System32\a.exe"),
            (r"C:\ProgramData\A.EXE", "a.exe", r"C:\ProgramData\A.EXE"),
            ("C:", "a.exe", r"C:\a.exe"),
            ("c:/tools", "a.exe", r"c:/tools\a.exe"),
            ("c:/tools/a.exe", "a.exe", "c:/tools/a.exe"),
            (r"\\server\share", "a.exe", r"\\server\share\a.exe"),
            ("/usr/sbin", "sshd", "/usr/sbin/sshd"),
            ("/usr/sbin/sshd", "sshd", "/usr/sbin/sshd"),
            ("/", "sshd", "/sshd"),
            ("relative", "a", "relative/a"),
            ("/tmp/xsshd", "sshd", "/tmp/xsshd/sshd"),
            ("/tmp", "", "/tmp"),
            ("", "a.exe", ""),
            ("", "", ""),
        ];
        for (folder, file_name, expected) in rows {
            assert_eq!(full_path(folder, file_name), expected, "{folder} {file_name}");
        }
    }

    proptest! {
        #[test]
        fn a_full_path_names_the_file_and_is_made_once(folder in "[a-zA-Z:/\\\\.é ]{1,20}", file_name in "[a-zA-Z.é]{1,10}") {
            let path = full_path(&folder, &file_name);
            prop_assert!(path.starts_with(&folder));
            prop_assert!(path.to_lowercase().ends_with(&file_name.to_lowercase()));
            prop_assert_eq!(full_path(&path, &file_name), path);
        }

        #[test]
        fn any_text_is_typed_without_panic_or_empty_value(text in any::<String>(), near in "(https?://)?[a-z@:\\[\\]./?#%0-9]{0,20}") {
            for text in [&text, &near] {
                for typed in [typed_url(text), host_name(text), typed_address(text)].into_iter().flatten() {
                    prop_assert!(!typed.value.is_empty());
                    prop_assert!(["ip", "ipv6", "url", "domain"].contains(&&*typed.kind));
                }
            }
        }
    }
}
