//! Tokens that the platform signs (RS256, `relay.md` 2.3): which key one names, and whether the key of a key set signed it.
//!
//! A token says itself where its key is, so nothing in it is believed before the place is known to be a good one: the host
//! is compared with the configured ones by whoever fetches (`key_sets`), the audience with the configured URL and never
//! with what the request says of itself, and only tenants on the deployment's list are served. The platform signs for all
//! its customers alike, so without that list any of them could use this relay's address and quota of queue places.
//!
//! The checks go signature, times, audience, claims, tenant.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::token::{self, Claims, TokenError, Unverified};

/// The algorithm of key-set tokens.
pub const ALGORITHM: &str = "RS256";

/// Keys that are read of one set. Platforms have two or three, while they change them some more.
const MOST_KEYS: usize = 100;

/// What tokens have to say besides naming a good key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The relay's public base URL without a final slash.
    pub audience: String,
    /// Tenants that are served, by id or domain name as tokens name them, in any case.
    pub tenants: Vec<String>,
}

/// Where a token says that its key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyName<'a> {
    /// `jwks_host`: the host, perhaps with a port.
    pub host: &'a str,
    /// `kid`, if the header has one.
    pub kid: Option<&'a str>,
}

/// The public keys of one host.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<(String, Option<PublicKey>)>);

/// An RSA key, big-endian and without leading zeros.
#[derive(Debug, Clone)]
struct PublicKey {
    n: Vec<u8>,
    e: Vec<u8>,
}

impl KeySet {
    /// Reads `{"keys": [...]}`; `None` if it is something else. What is no key with an id is passed over, and a key that
    /// cannot be one of RS256 verifies nothing.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let set: Map<String, Value> = serde_json::from_slice(body).ok()?;
        let keys = set.get("keys")?.as_array()?;
        let key = |key: &Value| Some((key.get("kid")?.as_str()?.to_owned(), PublicKey::read(key)));
        Some(Self(keys.iter().take(MOST_KEYS).filter_map(key).collect()))
    }

    /// Whether there is a key of this id.
    #[must_use]
    pub fn holds(&self, kid: &str) -> bool {
        self.0.iter().any(|(known, _)| known == kid)
    }

    /// Verifies a token at `now`.
    ///
    /// # Errors
    /// The row of `relay.md` 2.3 that applies, J3 to J6 and J8, or [`TokenError::UnlistedTenant`].
    pub fn verify(&self, token: &Unverified<'_>, rules: &Rules, now: Timestamp) -> Result<Claims, TokenError> {
        let kid = token.header.get("kid").and_then(Value::as_str);
        let mut named = self.0.iter().filter(|(known, _)| Some(known.as_str()) == kid).peekable();
        named.peek().ok_or(TokenError::UnknownKey)?;
        let is_rs256 = token.algorithm() == Some(ALGORITHM);
        // Two keys of one id are a mistake of the host's, but no reason to refuse what either of them signed.
        if !is_rs256 || !named.filter_map(|(_, key)| key.as_ref()).any(|key| key.signed(token)) {
            return Err(TokenError::WrongKey);
        }
        token::check_times(&token.payload, now)?;
        let is_ours = |audience: &Value| audience.as_str() == Some(&rules.audience);
        let audience = token.payload.get("aud").ok_or(TokenError::WrongAudience)?;
        // A JWT may be for several (RFC 7519 4.1.3).
        if !is_ours(audience) && !audience.as_array().is_some_and(|several| several.iter().any(is_ours)) {
            return Err(TokenError::WrongAudience);
        }
        let claims = token::claims(&token.payload)?;
        if !rules.tenants.iter().any(|tenant| tenant.eq_ignore_ascii_case(&claims.tenant_id)) {
            return Err(TokenError::UnlistedTenant);
        }
        Ok(claims)
    }
}

impl PublicKey {
    /// A JWK of type RSA that is not for something else.
    fn read(key: &Value) -> Option<Self> {
        let says = |member: &str, expected: &str| match key.get(member) {
            None | Some(Value::Null) => true,
            Some(value) => value.as_str() == Some(expected),
        };
        if key.get("kty")?.as_str()? != "RSA" || !says("alg", ALGORITHM) || !says("use", "sig") {
            return None;
        }
        let number = |member: &str| {
            let bytes = BASE64URL.decode(key.get(member)?.as_str()?).ok()?;
            let first = bytes.iter().position(|&byte| byte != 0)?;
            Some(bytes[first..].to_vec())
        };
        Some(Self { n: number("n")?, e: number("e")? })
    }

    /// Keys of fewer than 2048 bits verify nothing.
    fn signed(&self, token: &Unverified<'_>) -> bool {
        let key = RsaPublicKeyComponents { n: &self.n, e: &self.e };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, token.signed.as_bytes(), &token.signature).is_ok()
    }
}

impl Unverified<'_> {
    /// Where the token says that its key is. Nobody has vouched for that: compare the host before asking it.
    ///
    /// # Errors
    /// [`TokenError::KeySetMissing`] (J1).
    pub fn key_name(&self) -> Result<KeyName<'_>, TokenError> {
        let host = self.payload.get("jwks_host").and_then(Value::as_str).filter(|host| !host.is_empty());
        let kid = self.header.get("kid").and_then(Value::as_str);
        Ok(KeyName { host: host.ok_or(TokenError::KeySetMissing)?, kid })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::no_json("<html>", None)]
    #[case::no_keys("{}", None)]
    #[case::keys_no_list(r#"{"keys":{}}"#, None)]
    #[case::a_list(r#"[[]]"#, None)]
    #[case::empty(r#"{"keys":[]}"#, Some(0))]
    #[case::no_ids(r#"{"keys":[{"kty":"RSA"}, 7, null, {"kid":7}]}"#, Some(0))]
    #[case::other_kinds(r#"{"keys":[{"kid":"a","kty":"EC"},{"kid":"b"}]}"#, Some(2))]
    fn a_set_is_a_list_of_keys_with_ids(#[case] body: &str, #[case] keys: Option<usize>) {
        assert_eq!(KeySet::parse(body.as_bytes()).map(|set| set.0.len()), keys);
    }

    #[test]
    fn no_more_keys_are_read_than_any_platform_has() {
        let keys: Vec<Value> = (0..1_000).map(|n| json!({"kid": n.to_string()})).collect();
        let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
        assert_eq!(set.0.len(), MOST_KEYS);
        assert!(set.holds("0") && !set.holds("999"));
    }

    #[rstest]
    #[case::plain(json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}), true)]
    #[case::said_fully(json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RS256", "use": "sig"}), true)]
    #[case::for_encryption(json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc"}), false)]
    #[case::another_algorithm(json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "PS256"}), false)]
    #[case::another_kind(json!({"kty": "oct", "n": "AQAB", "e": "AQAB"}), false)]
    #[case::no_modulus(json!({"kty": "RSA", "e": "AQAB"}), false)]
    #[case::zero(json!({"kty": "RSA", "n": "AAAA", "e": "AQAB"}), false)]
    #[case::no_base64(json!({"kty": "RSA", "n": "*", "e": "AQAB"}), false)]
    fn only_keys_that_are_for_rs256_can_verify(#[case] key: Value, #[case] usable: bool) {
        assert_eq!(PublicKey::read(&key).is_some(), usable);
    }

    #[test]
    fn leading_zeros_of_a_number_do_not_matter() {
        let key = PublicKey::read(&json!({"kty": "RSA", "n": "AAABAg", "e": "AAEAAQ"})).unwrap();
        assert_eq!((key.n, key.e), (vec![1, 2], vec![1, 0, 1]));
    }
}
