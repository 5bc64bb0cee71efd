//! The caller's Azure credentials, and the one place that seals and opens them.
//!
//! A relay call brings its tenant's application id and secret in its token. They travel through the queue sealed with
//! AES-256-GCM, bound to the id of the message that carries them, so that a sealed text cannot be moved to another
//! message, and with the id of the key in front, so that keys can be rotated. There is no mode without a key.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{digest, hkdf};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

/// Length of a sealing key in bytes (AES-256).
pub const SEAL_KEY_BYTES: usize = 32;

/// Longest key id in characters: it stands in clear in every message.
const KEY_ID_LIMIT: usize = 32;

/// What a caller proved to have: an application of a Microsoft Entra tenant (`relay.md` 2.2).
#[derive(Clone)]
pub struct Credentials {
    /// Directory id or domain name, `[A-Za-z0-9.-]{1,255}`.
    pub tenant_id: String,
    /// Application id.
    pub client_id: String,
    /// The application's secret.
    pub client_secret: SecretString,
}

/// Never shows the secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("tenant_id", &self.tenant_id)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// How credentials look inside the seal.
#[derive(Serialize, Deserialize)]
struct Plain {
    tenant_id: String,
    client_id: String,
    client_secret: String,
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.client_secret.zeroize();
    }
}

/// Credentials as they travel: `<key id>.<base64 of nonce, ciphertext and tag>`. Safe to store and to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Why a sealed text could not be opened, or a key not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key it was sealed with is not among ours.
    #[error("credentials were sealed with key {0:?}, which is not configured here")]
    UnknownKey(String),
    /// Changed on the way, sealed for another message, or not a sealed text at all.
    #[error("sealed credentials do not open: changed, or sealed for another message")]
    Broken,
    /// There is no key to seal with.
    #[error("there is no key to seal credentials with")]
    NoKey,
    /// A configured key cannot be used.
    #[error("{0}")]
    BadKey(String),
}

/// The sealing keys, newest first. The first one seals, all of them open.
pub struct SealKeys {
    keys: Vec<(String, RandomizedNonceKey)>,
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl SealKeys {
    /// Reads `id=base64` keys divided by commas or white space, newest first (`BRIDGE_SEAL_KEYS`). Each key has
    /// [`SEAL_KEY_BYTES`] bytes.
    ///
    /// # Errors
    /// Names the first entry that is not of this form by its position or id, never by its key.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys: Vec<(String, RandomizedNonceKey)> = Vec::new();
        let entries = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            let (id, encoded) = entry
                .split_once('=')
                .ok_or_else(|| SealError::BadKey(format!("entry {} is not of the form id=base64", index + 1)))?;
            let id_is_plain = id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            if id.is_empty() || id.len() > KEY_ID_LIMIT || !id_is_plain {
                return Err(SealError::BadKey(format!(
                    "entry {}: the id must be 1 to {KEY_ID_LIMIT} letters, digits, '-' or '_'",
                    index + 1
                )));
            }
            if keys.iter().any(|(known, _)| known == id) {
                return Err(SealError::BadKey(format!("key {id:?} is there twice")));
            }
            let bytes = Zeroizing::new(
                BASE64.decode(encoded).map_err(|_| SealError::BadKey(format!("key {id:?} is not base64")))?,
            );
            if bytes.len() != SEAL_KEY_BYTES {
                return Err(SealError::BadKey(format!(
                    "key {id:?} has {} bytes, it needs {SEAL_KEY_BYTES}",
                    bytes.len()
                )));
            }
            keys.push((id.to_owned(), aead_key(&bytes)));
        }
        if keys.is_empty() { Err(SealError::NoKey) } else { Ok(Self { keys }) }
    }

    /// Derives a key from each secret, newest first: what a deployment uses that sets only `SECRET_KEY` (and
    /// `SECRET_KEY_PREVIOUS` while rotating it). Empty secrets are passed over.
    #[must_use]
    pub fn derive(secrets: &[&SecretString]) -> Self {
        let keys = secrets
            .iter()
            .filter(|secret| !secret.expose_secret().is_empty())
            .map(|secret| {
                let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"defender-bridge");
                let prk = salt.extract(secret.expose_secret().as_bytes());
                let mut key = Zeroizing::new([0; SEAL_KEY_BYTES]);
                let mut id = [0; SEAL_KEY_BYTES];
                for (info, out) in [(&b"seal key 1"[..], &mut *key), (&b"seal key id 1"[..], &mut id)] {
                    prk.expand(&[info], hkdf::HKDF_SHA256)
                        .and_then(|okm| okm.fill(out))
                        .expect("HKDF-SHA256 yields 32 bytes");
                }
                (format!("derived-{}", hex(&id[..4])), aead_key(&*key))
            })
            .collect();
        Self { keys }
    }

    /// Whether there is no key, so that nothing can be sealed or opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Seals `credentials` for the message with this id.
    ///
    /// # Errors
    /// [`SealError::NoKey`].
    pub fn seal(&self, credentials: &Credentials, message_id: Uuid) -> Result<Sealed, SealError> {
        let (id, key) = self.keys.first().ok_or(SealError::NoKey)?;
        let plain = Plain {
            tenant_id: credentials.tenant_id.clone(),
            client_id: credentials.client_id.clone(),
            client_secret: credentials.client_secret.expose_secret().to_owned(),
        };
        // Sealed in place: the buffer that held the plain text holds the ciphertext afterwards.
        let mut buffer = serde_json::to_vec(&plain).expect("three strings serialise");
        let nonce =
            key.seal_in_place_append_tag(bound_to(id, message_id), &mut buffer).map_err(|_| SealError::Broken)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut buffer);
        Ok(Sealed(format!("{id}.{}", BASE64.encode(bytes))))
    }

    /// Opens what was sealed for the message with this id.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`] while keys are being rotated or configured wrongly, else [`SealError::Broken`].
    pub fn open(&self, sealed: &Sealed, message_id: Uuid) -> Result<Credentials, SealError> {
        let (id, encoded) = sealed.0.split_once('.').ok_or(SealError::Broken)?;
        let (_, key) = self
            .keys
            .iter()
            .find(|(known, _)| known == id)
            .ok_or_else(|| SealError::UnknownKey(id.chars().take(KEY_ID_LIMIT).collect()))?;
        let mut bytes = Zeroizing::new(BASE64.decode(encoded).map_err(|_| SealError::Broken)?);
        if bytes.len() <= NONCE_LEN {
            return Err(SealError::Broken);
        }
        let (nonce, ciphertext) = bytes.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Broken)?;
        let plain = key.open_in_place(nonce, bound_to(id, message_id), ciphertext).map_err(|_| SealError::Broken)?;
        let mut plain: Plain = serde_json::from_slice(plain).map_err(|_| SealError::Broken)?;
        Ok(Credentials {
            tenant_id: std::mem::take(&mut plain.tenant_id),
            client_id: std::mem::take(&mut plain.client_id),
            client_secret: std::mem::take(&mut plain.client_secret).into(),
        })
    }
}

/// What a seal is bound to besides its key: purpose, key id and message.
fn bound_to(key_id: &str, message_id: Uuid) -> Aad<Vec<u8>> {
    Aad::from(format!("defender-bridge credentials 1|{key_id}|{message_id}").into_bytes())
}

fn aead_key(bytes: &[u8]) -> RandomizedNonceKey {
    RandomizedNonceKey::new(&AES_256_GCM, bytes).expect("the key has the length of AES-256")
}

/// SHA-256 as lower-case hex: what cache keys hold instead of a secret.
#[must_use]
pub fn fingerprint(secret: &SecretString) -> String {
    hex(digest::digest(&digest::SHA256, secret.expose_secret().as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY_1: &str = "k1=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const KEY_2: &str = "k2=ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

    fn credentials(secret: &str) -> Credentials {
        Credentials { tenant_id: "t.example".into(), client_id: "c".into(), client_secret: secret.to_owned().into() }
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_key_and_message_only() {
        let keys = SealKeys::parse(KEY_1).unwrap();
        let (message, other) = (Uuid::now_v7(), Uuid::now_v7());
        let sealed = keys.seal(&credentials("pl4nted"), message).unwrap();
        assert!(!sealed.0.contains("pl4nted"));
        assert_eq!(keys.open(&sealed, message).unwrap().client_secret.expose_secret(), "pl4nted");
        assert_eq!(keys.open(&sealed, other).unwrap_err(), SealError::Broken);
        let stranger = SealKeys::parse(&KEY_2.replace("k2", "k1")).unwrap();
        assert_eq!(stranger.open(&sealed, message).unwrap_err(), SealError::Broken);
        let rotated_away = SealKeys::parse(KEY_2).unwrap();
        assert_eq!(rotated_away.open(&sealed, message).unwrap_err(), SealError::UnknownKey("k1".into()));
    }

    #[test]
    fn old_keys_open_and_the_first_key_seals() {
        let message = Uuid::now_v7();
        let old = SealKeys::parse(KEY_1).unwrap().seal(&credentials("s"), message).unwrap();
        let both = SealKeys::parse(&format!("{KEY_2}, {KEY_1}")).unwrap();
        assert!(both.open(&old, message).is_ok());
        assert!(both.seal(&credentials("s"), message).unwrap().0.starts_with("k2."));
    }

    #[test]
    fn a_derived_key_follows_the_secret_through_its_rotation() {
        let (old, new) = (SecretString::from("old secret"), SecretString::from("new secret"));
        let message = Uuid::now_v7();
        let sealed = SealKeys::derive(&[&old]).seal(&credentials("s"), message).unwrap();
        assert!(SealKeys::derive(&[&new, &old]).open(&sealed, message).is_ok());
        assert!(matches!(SealKeys::derive(&[&new]).open(&sealed, message), Err(SealError::UnknownKey(_))));
        assert!(SealKeys::derive(&[&SecretString::from("")]).is_empty());
    }

    #[test]
    fn keys_of_the_wrong_form_are_refused_without_showing_them() {
        for (text, part) in [
            ("", "no key"),
            ("noequals", "entry 1 is not of the form"),
            ("=AAAA", "the id must be"),
            ("k=AAAA", "has 3 bytes"),
            ("k=*", "not base64"),
            (&format!("{KEY_1} {KEY_1}"), "twice"),
        ] {
            let error = SealKeys::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("AAEC"), "{error}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let shown = format!("{:?} {:?}", credentials("pl4nted"), SealKeys::parse(KEY_1).unwrap());
        assert!(!shown.contains("pl4nted") && !shown.contains("AAEC"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_credentials_return_as_they_were(secret in ".{0,200}", tenant in "[A-Za-z0-9.-]{1,60}") {
            let keys = SealKeys::parse(KEY_1).unwrap();
            let message = Uuid::now_v7();
            let given = Credentials { tenant_id: tenant, ..credentials(&secret) };
            let back = keys.open(&keys.seal(&given, message).unwrap(), message).unwrap();
            prop_assert_eq!(back.client_secret.expose_secret(), secret.as_str());
            prop_assert_eq!(back.tenant_id, given.tenant_id);
        }

        #[test]
        fn a_changed_seal_never_opens(at in 3usize..200, flip in 1u8..=255) {
            let keys = SealKeys::parse(KEY_1).unwrap();
            let message = Uuid::now_v7();
            let sealed = keys.seal(&credentials("s"), message).unwrap();
            let mut bytes = BASE64.decode(&sealed.0[3..]).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let changed = Sealed(format!("k1.{}", BASE64.encode(bytes)));
            prop_assert!(keys.open(&changed, message).is_err());
        }

        #[test]
        fn arbitrary_text_never_opens_and_never_panics(text in ".{0,100}") {
            prop_assert!(SealKeys::parse(KEY_1).unwrap().open(&Sealed(text), Uuid::now_v7()).is_err());
        }
    }
}
