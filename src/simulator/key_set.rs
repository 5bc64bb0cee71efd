//! The platform's key set (`relay.md` 2.3), and tokens that its key signs. The key is made when it is first wanted.

use std::sync::{Mutex, PoisonError};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use super::answer::{Answer, PLAIN_JSON};
use super::world::World;

/// The key: it signs, and is told to whoever asks.
struct Key {
    pair: KeyPair,
    public: Value,
    number: u32,
}

/// The key of the platform, once it is wanted.
#[derive(Default)]
pub(super) struct KeySet(Mutex<Option<Key>>);

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").finish_non_exhaustive()
    }
}

impl Key {
    fn new(number: u32) -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("the system has randomness");
        let der: Pkcs8V1Der<'_> = pair.as_der().expect("a key that was made can be written");
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(der.as_ref()));
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).expect("the key is in the form of its kind");
        let jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).expect("an RSA key has a public half");
        let mut public = serde_json::to_value(jwk).expect("texts are JSON");
        public["kid"] = format!("simulated-key-{number}").into();
        public["use"] = "sig".into();
        Self { pair, public, number }
    }
}

impl KeySet {
    fn with<T>(&self, act: impl FnOnce(&mut Key) -> T) -> T {
        act(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| Key::new(1)))
    }

    /// Takes the key away and makes another one.
    pub(super) fn rotate(&self) {
        self.with(|key| *key = Key::new(key.number + 1));
    }

    /// The id of the key that signs.
    pub(super) fn kid(&self) -> String {
        self.with(|key| key.public["kid"].as_str().unwrap_or_default().to_owned())
    }

    /// Signs this header and payload, whatever they say.
    pub(super) fn sign(&self, header: &Value, payload: &Value) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(payload.to_string()));
        self.with(|key| {
            let mut signature = vec![0; key.pair.public_modulus_len()];
            key.pair
                .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
                .expect("the key is long enough for its signature");
            format!("{signed}.{}", BASE64URL.encode(signature))
        })
    }
}

/// `GET /.well-known/jwks`.
pub(super) fn answer(world: &World) -> Answer {
    let key = world.key_set.with(|key| key.public.clone());
    Answer::json(200, PLAIN_JSON, &json!({ "keys": [key] }))
}
