//! Functions that make or read dynamic values.

use super::super::dynamic::Dynamic;
use super::super::value::Value;
use super::strings::{count, text};

pub(super) fn parse_json(arguments: &[Value]) -> Value {
    match &arguments[0] {
        Value::String(text) => Dynamic::parse(text).into(),
        Value::Dynamic(dynamic) => match &**dynamic {
            Dynamic::String(text) => Dynamic::parse(text).into(),
            _ => arguments[0].clone(),
        },
        other => other.clone(),
    }
}

pub(super) fn pack_array(arguments: &[Value]) -> Value {
    Dynamic::Array(arguments.iter().map(Dynamic::from).collect()).into()
}

pub(super) fn bag_pack(arguments: &[Value]) -> Value {
    let members = arguments.chunks_exact(2).map(|pair| (pair[0].text(), Dynamic::from(&pair[1])));
    Dynamic::Bag(members.collect()).into()
}

pub(super) fn array_length(arguments: &[Value]) -> Value {
    match &arguments[0] {
        Value::Dynamic(dynamic) => match &**dynamic {
            Dynamic::Array(elements) => count(elements.len()),
            _ => Value::Null,
        },
        _ => Value::Null,
    }
}

/// The parts of an absolute URL as a bag. Text without `://` has no parts: every member is empty.
///
/// Nothing is normalised or decoded: whatever a query wants in lower case it must ask for.
pub(super) fn parse_url(arguments: &[Value]) -> Value {
    let url = text(&arguments[0]);
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    // The colons of an IPv6 address stand in brackets, before the port's.
    let colon = host.rfind(':').filter(|colon| !host[*colon..].contains(']'));
    let (host, port) = colon.map_or((host, ""), |colon| (&host[..colon], &host[colon + 1..]));
    let parameters = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.into(), Dynamic::String(value.into()))
    });
    let member = |name: &str, value: &str| (name.into(), Dynamic::String(value.into()));
    Dynamic::Bag(vec![
        member("Scheme", scheme),
        member("Host", host),
        member("Port", port),
        member("Path", path),
        member("Username", user),
        member("Password", password),
        ("Query Parameters".into(), Dynamic::Bag(parameters.collect())),
        member("Fragment", fragment),
    ])
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_cut_out_of_a_url() {
        for (url, host, port) in [
            ("https://bad.example.com/a/b?c=d", "bad.example.com", ""),
            ("tcp://bad.example.com", "bad.example.com", ""),
            ("tcp://bad.example.com:8080", "bad.example.com", "8080"),
            ("https://user:p@ss@Bad.Example.com:443/x:y@z", "Bad.Example.com", "443"),
            ("https://bad.example.com?x=https://good.example.com", "bad.example.com", ""),
            ("https://bad.example.com#frag", "bad.example.com", ""),
            ("https://[2001:db8::7]:443/", "[2001:db8::7]", "443"),
            ("https://[2001:db8::7]/", "[2001:db8::7]", ""),
            ("bad.example.com", "", ""),
            ("", "", ""),
            ("tcp://", "", ""),
        ] {
            let Value::Dynamic(parts) = parse_url(&[url.into()]) else { panic!("parts of {url}") };
            assert_eq!(parts.member("Host"), Dynamic::String(host.into()), "{url}");
            assert_eq!(parts.member("Port"), Dynamic::String(port.into()), "{url}");
        }
    }

    #[test]
    fn bags_keep_their_order() {
        let bag = bag_pack(&["b".into(), 1_i64.into(), "a".into(), Value::Null]);
        assert_eq!(&*bag.text(), r#"{"b":1,"a":null}"#);
    }
}
