//! Reading single values: durations, numbers, addresses, URLs, and secrets that may come from a file.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use secrecy::SecretString;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::Findings;

/// A secret's file holds at most this many bytes: more is not a secret but the wrong file.
const SECRET_FILE_LIMIT_BYTES: u64 = 64 * 1024;

/// `None` for text that counts as not set.
pub(super) fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.trim().is_empty())
}

/// `text`, or `default` when that counts as not set.
pub(super) fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.trim().is_empty() { default } else { text }
}

/// `true` or `false`; false when it is neither.
pub(super) fn flag(findings: &mut Findings, setting: &str, text: &str) -> bool {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" => true,
        "false" => false,
        other => {
            findings.problem(setting, format_args!("{other:?} is neither true nor false"));
            false
        }
    }
}

/// The entries of a list divided by commas, without the white space around them; empty ones are passed over.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// A duration such as `50s`, `2m`, `1h 30m`, `7d` (of 24 hours) or a plain number of seconds, within `range` (both ends
/// included).
pub(super) fn duration(findings: &mut Findings, setting: &str, text: &str, range: (Duration, Duration)) -> Duration {
    let (least, most) = range;
    let text = text.trim();
    let read = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok().map(Duration::from_secs)
    } else {
        let exact = |span: Span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
        text.parse().ok().and_then(exact).and_then(|duration| Duration::try_from(duration).ok())
    };
    match read {
        Some(duration) if (least..=most).contains(&duration) => duration,
        _ => {
            findings.problem(
                setting,
                format_args!("{text:?} is not a duration between {least:?} and {most:?}, such as 50s, 2m or 1h"),
            );
            least
        }
    }
}

/// A whole number within `range` (both ends included).
pub(super) fn number(findings: &mut Findings, setting: &str, text: &str, range: (u32, u32)) -> u32 {
    let (least, most) = range;
    match text.trim().parse() {
        Ok(number) if (least..=most).contains(&number) => number,
        _ => {
            findings.problem(setting, format_args!("{text:?} is not a whole number from {least} to {most}"));
            least
        }
    }
}

/// An address to listen on; `None` for `off`.
pub(super) fn listen(findings: &mut Findings, setting: &str, text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("off") {
        return None;
    }
    text.parse()
        .inspect_err(|_| {
            findings.problem(setting, format_args!("{text:?} is not an address and port, such as 127.0.0.1:8080"));
        })
        .ok()
}

/// A base URL: `https`, or `http` to this machine, or `http` anywhere when `plain_http` allows it.
pub(super) fn base_url(findings: &mut Findings, setting: &str, text: &str, plain_http: bool) -> Option<Url> {
    let url = match Url::parse(text.trim()) {
        Ok(url) => url,
        Err(error) => {
            findings.problem(setting, format_args!("{text:?} is not a URL: {error}"));
            return None;
        }
    };
    let loopback = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let rule = match url.scheme() {
        "https" | "http" if url.host().is_none() => "has no host",
        "http" if !loopback && !plain_http => {
            "would send secrets in clear; use https, or set BRIDGE_ALLOW_PLAIN_HTTP=true for a trusted network"
        }
        "https" | "http" => {
            let plain = url.username().is_empty() && url.password().is_none();
            if plain && url.query().is_none() && url.fragment().is_none() {
                return Some(url);
            }
            "must hold no user, password, query or fragment"
        }
        _ => "must begin with https://",
    };
    findings.problem(setting, format_args!("the URL {rule}"));
    None
}

/// A secret from its variable or from the file that `<setting>_FILE` names; a final line break of the file is dropped.
/// Both at once is a problem. `None` when neither is given.
pub(super) fn secret(
    findings: &mut Findings,
    setting: &str,
    value: Option<&String>,
    file: Option<&PathBuf>,
) -> Option<SecretString> {
    let file = file.filter(|path| !path.as_os_str().is_empty());
    match (value.filter(|value| !value.is_empty()), file) {
        (Some(_), Some(_)) => {
            findings.problem(setting, format_args!("give either {setting} or {setting}_FILE, not both"));
            None
        }
        (Some(value), None) => Some(value.as_str().into()),
        (None, Some(path)) => match secret_file(path) {
            Ok(text) => Some(text.as_str().into()),
            Err(error) => {
                findings.problem(&format!("{setting}_FILE"), format_args!("{}: {error}", path.display()));
                None
            }
        },
        (None, None) => None,
    }
}

/// The text of a file that holds a secret, without its final line break.
pub(super) fn secret_file(path: &Path) -> Result<Zeroizing<String>, Box<dyn Display>> {
    let size = std::fs::metadata(path).map_err(|error| Box::new(error) as Box<dyn Display>)?.len();
    if size > SECRET_FILE_LIMIT_BYTES {
        return Err(Box::new("is too large for a secret"));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| Box::new(error) as Box<dyn Display>)?);
    let trimmed = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if trimmed.is_empty() { Err(Box::new("is empty")) } else { Ok(Zeroizing::new(trimmed.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    #[test]
    fn durations_have_units_and_bounds() {
        let range = (Duration::from_secs(1), Duration::from_secs(3600));
        for (text, expected) in [("50s", 50), ("2m", 120), ("1h", 3600), ("1m 30s", 90), ("0.5h", 1800), (" 7 ", 7)] {
            let mut findings = Findings::default();
            assert_eq!(duration(&mut findings, "X", text, range).as_secs(), expected, "{text}");
            assert_eq!(findings, Findings::default());
        }
        let (mut findings, days) = (Findings::default(), Duration::from_secs(7 * 86_400 + 43_200));
        assert_eq!(duration(&mut findings, "X", "1w 12h", (days, days)), days);
        assert_eq!(duration(&mut findings, "X", "7d12h", (days, days)), days);
        assert_eq!(findings, Findings::default());
        for text in ["", "0", "2h", "-5s", "soon", "1 month", "5 parsecs", "99999999999999999999"] {
            let mut findings = Findings::default();
            duration(&mut findings, "X", text, range);
            assert_eq!(findings.problems.len(), 1, "{text}");
            assert!(findings.problems[0].starts_with("X: "), "{:?}", findings.problems);
        }
    }

    #[test]
    fn flags_are_true_or_false() {
        for (text, value, problems) in [("true", true, 0), (" False ", false, 0), ("yes", false, 1), ("1", false, 1)] {
            let mut findings = Findings::default();
            assert_eq!((flag(&mut findings, "X", text), findings.problems.len()), (value, problems), "{text}");
        }
    }

    #[test]
    fn lists_are_divided_by_commas() {
        assert_eq!(list(" a, b c ,,d,").collect::<Vec<_>>(), ["a", "b c", "d"]);
        assert_eq!(list("").count(), 0);
    }

    #[test]
    fn plain_http_is_for_this_machine_unless_allowed() {
        for (text, plain_http, accepted) in [
            ("https://login.example", false, true),
            ("http://127.0.0.1:8090", false, true),
            ("http://[::1]:8090", false, true),
            ("http://localhost:8090/base", false, true),
            ("http://simulator:8090", false, false),
            ("http://simulator:8090", true, true),
            ("ftp://host", true, false),
            ("https://user:pl4nted@host", true, false),
            ("https://host/?q=1", true, false),
            ("https://host/#f", true, false),
            ("login.example", true, false),
            ("", true, false),
        ] {
            let mut findings = Findings::default();
            let url = base_url(&mut findings, "X", text, plain_http);
            assert_eq!((url.is_some(), findings.problems.is_empty()), (accepted, accepted), "{text}");
            assert!(!format!("{findings:?}").contains("pl4nted"), "{findings:?}");
        }
    }

    #[test]
    fn a_secret_comes_from_its_variable_or_its_file_but_not_from_both() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "from file\r\n").unwrap();
        let path = file.path().to_path_buf();
        let (value, empty) = ("from variable".to_owned(), String::new());
        let mut findings = Findings::default();
        let read = |findings: &mut Findings, value, file| {
            secret(findings, "S", value, file).map(|secret| secret.expose_secret().to_owned())
        };
        assert_eq!(read(&mut findings, Some(&value), None).as_deref(), Some("from variable"));
        assert_eq!(read(&mut findings, None, Some(&path)).as_deref(), Some("from file"));
        assert_eq!(read(&mut findings, Some(&empty), None), None);
        assert_eq!(findings, Findings::default());
        assert_eq!(read(&mut findings, Some(&value), Some(&path)), None);
        assert_eq!(read(&mut findings, None, Some(&"no such file".into())), None);
        assert_eq!(findings.problems.len(), 2);
        assert!(findings.problems[1].starts_with("S_FILE: no such file"), "{findings:?}");
    }
}
