//! Who sends: a signature by the rules of [Standard Webhooks](https://www.standardwebhooks.com/), or a bearer token
//! (`cognito.md` 4.4). Every comparison of secrets takes the same time whatever it finds. Pure.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use crate::config::{TokenDigest, WebhookSettings};

const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const SIGNATURE: &str = "webhook-signature";

/// How far the sender's clock and ours may be apart, in both directions, boundary included: that of the reference
/// libraries.
const WINDOW_SECONDS: u64 = 300;

/// Longest `webhook-id`.
const ID_LIMIT: usize = 128;

/// How a request was authenticated. Each way is one sender: it has one rate, and its events' ids are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// By a signature.
    Signed,
    /// By a bearer token.
    Token,
}

impl Sender {
    /// As in messages and logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Signed => "webhook-signed",
            Self::Token => "webhook-token",
        }
    }
}

/// A request whose sender is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authenticated {
    pub(super) sender: Sender,
    /// The same on every resend of the request; only signed ones have it.
    pub(super) webhook_id: Option<String>,
}

/// The keys of all senders.
pub(super) struct Keys {
    secrets: Vec<hmac::Key>,
    tokens: Vec<TokenDigest>,
}

impl Keys {
    pub(super) fn new(settings: &WebhookSettings) -> Self {
        let key = |secret: &secrecy::SecretSlice<u8>| hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret());
        Self { secrets: settings.secrets.iter().map(key).collect(), tokens: settings.tokens.clone() }
    }

    /// Who sends `body`, its bytes as received, at `now`.
    ///
    /// # Errors
    /// Why it is nobody, for logs; the answer never says.
    pub(super) fn authenticate(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Authenticated, &'static str> {
        // A good token does not rescue a bad signature.
        if [ID, TIMESTAMP, SIGNATURE].iter().any(|name| headers.contains_key(*name)) {
            let webhook_id = Some(self.verify(headers, body, now)?.to_owned());
            return Ok(Authenticated { sender: Sender::Signed, webhook_id });
        }
        self.recognise(headers)?;
        Ok(Authenticated { sender: Sender::Token, webhook_id: None })
    }

    /// Verifies a signature and returns the `webhook-id`.
    fn verify<'a>(&self, headers: &'a HeaderMap, body: &[u8], now: Timestamp) -> Result<&'a str, &'static str> {
        let only = |name: &str| {
            let mut values = headers.get_all(name).iter();
            let value = values.next().filter(|_| values.next().is_none())?;
            value.to_str().ok()
        };
        let (Some(id), Some(timestamp), Some(signatures)) = (only(ID), only(TIMESTAMP), only(SIGNATURE)) else {
            return Err("a signature header is missing, repeated or unreadable");
        };
        let well_formed =
            (1..=ID_LIMIT).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.');
        if !well_formed {
            return Err("the webhook-id is malformed");
        }
        if timestamp.is_empty() || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("the webhook-timestamp is malformed");
        }
        let sent: i64 = timestamp.parse().map_err(|_| "the webhook-timestamp is malformed")?;
        if now.as_second().abs_diff(sent) > WINDOW_SECONDS {
            return Err("the webhook-timestamp is too far from this clock");
        }
        // Once for each secret, however many signatures are tried.
        let expected: Vec<hmac::Tag> = self
            .secrets
            .iter()
            .map(|secret| {
                let mut content = hmac::Context::with_key(secret);
                for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                    content.update(part);
                }
                content.sign()
            })
            .collect();
        let given = signatures.split(' ').filter_map(|entry| STANDARD.decode(entry.strip_prefix("v1,")?).ok());
        let mut matches = false;
        for signature in given {
            for tag in &expected {
                matches |= verify_slices_are_equal(tag.as_ref(), &signature).is_ok();
            }
        }
        if matches { Ok(id) } else { Err("no signature is that of a known secret") }
    }

    /// Compares the bearer token.
    fn recognise(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or("there is neither a signature nor a token")?;
        if values.next().is_some() {
            return Err("there is more than one authorization");
        }
        let (_, token) = value
            .as_bytes()
            .split_at_checked(b"Bearer ".len())
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
            .ok_or("the authorization is no bearer token")?;
        let given = TokenDigest::of(token);
        let mut matches = false;
        for known in &self.tokens {
            matches |= verify_slices_are_equal(&known.0, &given.0).is_ok();
        }
        if matches { Ok(()) } else { Err("the bearer token is not known") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use serde_json::Value;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn vector() -> Value {
        let text = include_str!("../../../tests/data/cognito/standard-webhooks.vector.json");
        serde_json::from_str(text).expect("JSON")
    }

    fn text(value: &Value) -> String {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    fn keys(secrets: &[&Value], tokens: &[&str]) -> Keys {
        let key = |secret: &&Value| {
            let key = STANDARD.decode(text(secret).strip_prefix("whsec_").expect("a secret")).expect("base64");
            hmac::Key::new(hmac::HMAC_SHA256, &key)
        };
        Keys {
            secrets: secrets.iter().map(key).collect(),
            tokens: tokens.iter().map(|token| TokenDigest::of(token.as_bytes())).collect(),
        }
    }

    fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn at(second: &Value) -> Timestamp {
        Timestamp::from_second(second.as_i64().expect("a second")).unwrap()
    }

    #[test]
    fn every_case_of_the_vector_is_decided_as_it_says() {
        let vector = vector();
        let keys = keys(&[&vector["secret"]], &[]);
        let cases = vector["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 13);
        for case in cases {
            let member = |name: &str| case.get(name).unwrap_or(&vector[name]);
            let (id, timestamp) = (text(member(ID)), text(member(TIMESTAMP)));
            let given = [(ID, id.as_str()), (TIMESTAMP, &timestamp), (SIGNATURE, &text(member(SIGNATURE)))];
            let verdict = keys.authenticate(&headers(&given), text(member("body")).as_bytes(), at(member("now")));
            assert_eq!(verdict.is_ok(), case["accept"] == true, "{case}: {verdict:?}");
            if let Ok(authenticated) = verdict {
                let expected = Authenticated { sender: Sender::Signed, webhook_id: Some(id) };
                assert_eq!(authenticated, expected);
            }
        }
    }

    #[test]
    fn each_active_secret_is_tried() {
        let vector = vector();
        let given = |signature: &Value| {
            let (id, timestamp) = (text(&vector[ID]), text(&vector[TIMESTAMP]));
            headers(&[(ID, &id), (TIMESTAMP, &timestamp), (SIGNATURE, &text(signature))])
        };
        let body = text(&vector["body"]);
        for (secrets, signature, accepted) in [
            (vec!["secret", "second_secret"], SIGNATURE, true),
            (vec!["secret", "second_secret"], "second_signature", true),
            (vec!["second_secret"], "second_signature", true),
            (vec!["second_secret"], SIGNATURE, false),
            (vec![], SIGNATURE, false),
        ] {
            let keys = keys(&secrets.iter().map(|name| &vector[*name]).collect::<Vec<_>>(), &[]);
            let verdict = keys.authenticate(&given(&vector[signature]), body.as_bytes(), at(&vector["now"]));
            assert_eq!(verdict.is_ok(), accepted, "{secrets:?} {signature}");
        }
    }

    #[test]
    fn the_vector_of_the_reference_libraries_is_accepted() {
        let vector = &vector()["published_vector"];
        let (id, timestamp, signature) = (text(&vector[ID]), text(&vector[TIMESTAMP]), text(&vector[SIGNATURE]));
        let headers = headers(&[(ID, &id), (TIMESTAMP, &timestamp), (SIGNATURE, &signature)]);
        let keys = keys(&[&vector["secret"]], &[]);
        let verdict = keys.authenticate(&headers, text(&vector["body"]).as_bytes(), at(&vector[TIMESTAMP]));
        assert_eq!(verdict.map(|sender| sender.webhook_id), Ok(Some(id)));
    }

    #[test]
    fn malformed_and_repeated_headers_are_refused_though_the_signature_is_right() {
        let vector = vector();
        let keys = keys(&[&vector["secret"]], &[TOKEN]);
        let sign = |id: &str, timestamp: &str| {
            let content = format!("{id}.{timestamp}.{}", text(&vector["body"]));
            format!("v1,{}", STANDARD.encode(hmac::sign(&keys.secrets[0], content.as_bytes())))
        };
        let good = text(&vector[TIMESTAMP]);
        let (long, longest) = ("i".repeat(129), "i".repeat(128));
        for (id, timestamp, accepted) in [
            ("msg_1", good.as_str(), true),
            (&longest, &good, true),
            ("!\"#,/:;~", &good, true),
            (&long, &good, false),
            ("", &good, false),
            ("msg.1", &good, false),
            ("msg 1", &good, false),
            ("msg_1", "", false),
            ("msg_1", "+1770114646", false),
            ("msg_1", "1770114646.0", false),
            ("msg_1", "0x69", false),
            ("msg_1", "-1", false),
            ("msg_1", "99999999999999999999", false),
            ("msg_1", "9223372036854775807", false),
            ("msg_1", "0", false),
        ] {
            let headers = headers(&[(ID, id), (TIMESTAMP, timestamp), (SIGNATURE, &sign(id, timestamp))]);
            let verdict = keys.authenticate(&headers, text(&vector["body"]).as_bytes(), at(&vector["now"]));
            assert_eq!(verdict.is_ok(), accepted, "{id} {timestamp}: {verdict:?}");
        }
        let bearer = format!("Bearer {TOKEN}");
        let signature = sign("msg_1", &good);
        let all = [(ID, "msg_1"), (TIMESTAMP, good.as_str()), (SIGNATURE, signature.as_str())];
        for (index, repeated) in all.iter().enumerate() {
            let mut twice = all.to_vec();
            twice.push(*repeated);
            let mut without = all.to_vec();
            without.remove(index);
            for given in [twice, without] {
                let given = headers(&[&given[..], &[("authorization", bearer.as_str())]].concat());
                let verdict = keys.authenticate(&given, text(&vector["body"]).as_bytes(), at(&vector["now"]));
                assert!(verdict.is_err(), "{given:?}");
            }
        }
    }

    #[test]
    fn entries_that_do_not_decode_are_skipped() {
        let vector = vector();
        let keys = keys(&[&vector["secret"]], &[]);
        let good = text(&vector[SIGNATURE]);
        let unpadded = good.trim_end_matches('=').to_owned();
        for (signatures, accepted) in [
            (format!("v1,!!! v1, v1 , v2,x {good}"), true),
            (format!("  {good}  "), true),
            (unpadded.clone(), false),
            (good.replace("v1,", "V1,"), false),
            (good.replace("v1,", "v1, "), false),
            (good.replace("OU=", "OV="), false),
            (format!("{unpadded}=="), false),
            (good[..20].to_owned(), false),
        ] {
            let (id, timestamp) = (text(&vector[ID]), text(&vector[TIMESTAMP]));
            let headers = headers(&[(ID, &id), (TIMESTAMP, &timestamp), (SIGNATURE, &signatures)]);
            let verdict = keys.authenticate(&headers, text(&vector["body"]).as_bytes(), at(&vector["now"]));
            assert_eq!(verdict.is_ok(), accepted, "{signatures}");
        }
    }

    #[test]
    fn a_token_is_a_bearer_token_given_once() {
        let second = TOKEN.to_uppercase();
        let keys = keys(&[], &[TOKEN, &second]);
        let authorization = "authorization";
        let now = Timestamp::UNIX_EPOCH;
        for (given, accepted) in [
            (vec![format!("Bearer {TOKEN}")], true),
            (vec![format!("bearer {second}")], true),
            (vec![], false),
            (vec![format!("Bearer {TOKEN}"), format!("Bearer {TOKEN}")], false),
            (vec![format!("Basic {TOKEN}")], false),
            (vec![format!("Bearer  {TOKEN}")], false),
            (vec![format!("Bearer {TOKEN}x")], false),
            (vec![format!("Bearer {}", &TOKEN[1..])], false),
            (vec![TOKEN.to_owned()], false),
            (vec!["Bearer ".to_owned()], false),
            (vec!["Bearer".to_owned()], false),
            (vec![String::new()], false),
        ] {
            let given: Vec<_> = given.iter().map(|value| (authorization, value.as_str())).collect();
            let verdict = keys.authenticate(&headers(&given), b"", now);
            let expected = Authenticated { sender: Sender::Token, webhook_id: None };
            assert_eq!(verdict.as_ref().ok(), accepted.then_some(&expected), "{given:?}");
        }
    }

    #[test]
    fn without_a_token_of_its_own_nobody_is_let_in() {
        let keys = keys(&[], &[]);
        assert!(keys.authenticate(&headers(&[("authorization", "Bearer ")]), b"", Timestamp::UNIX_EPOCH).is_err());
    }
}
