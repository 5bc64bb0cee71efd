//! What Entra makes of a client assertion in place of a secret (`defender.md` 1.1): signed by a registered certificate, for
//! this endpoint, by this application, now, and never seen before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

/// `client_assertion_type` of a JWT.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How far the clocks may be apart, in seconds.
const LEEWAY_SECONDS: i64 = 300;

/// The longest life of an assertion, in seconds.
const LONGEST_LIFE_SECONDS: i64 = 600;

/// The ids of assertions that were taken, until they end.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<String, i64>>);

impl Seen {
    /// Whether this id is new.
    fn is_new(&self, id: &str, ends: i64, now: i64) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, ends| now < *ends + LEEWAY_SECONDS);
        seen.insert(id.to_owned(), ends).is_none()
    }
}

/// Looks at an assertion; `Err` is the number and the text of the refusal.
pub(super) fn check(
    kind: Option<&str>,
    assertion: &str,
    client: &str,
    endpoint: &str,
    certificates: &[String],
    seen: &Seen,
) -> Result<(), (u32, String)> {
    let refused = |number, text: &str| Err((number, format!("{text} (simulated).")));
    if kind != Some(JWT_BEARER) {
        return refused(900_144, "The request body must contain the following parameter: 'client_assertion_type'");
    }
    let header: Option<Value> =
        assertion.split('.').next().and_then(|header| serde_json::from_slice(&BASE64URL.decode(header).ok()?).ok());
    let Some(header) = header else { return refused(50_027, "JWT token is invalid or malformed") };
    let thumbprint = header["x5t#S256"].as_str().unwrap_or_default();
    let named = certificates.iter().find(|pem| thumbprint_of(pem).as_deref() == Some(thumbprint));
    let Some(certificate) = named else {
        return refused(700_027, "The certificate used to sign the client assertion is not registered on application");
    };
    let key = DecodingKey::from_rsa_pem(certificate.as_bytes()).expect("a registered certificate has an RSA key");
    let mut validation = Validation::new(Algorithm::PS256);
    validation.algorithms = vec![Algorithm::PS256, Algorithm::RS256];
    validation.required_spec_claims.clear();
    // The times and the audience have refusals of their own, below.
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    let Ok(claims) = jsonwebtoken::decode::<Value>(assertion, &key, &validation).map(|data| data.claims) else {
        return refused(700_027, "Client assertion contains an invalid signature");
    };
    if claims["iss"] != *client || claims["sub"] != *client {
        return refused(700_021, "Client assertion application identifier doesn't match 'client_id' parameter");
    }
    if claims["aud"] != *endpoint {
        return refused(700_023, "Client assertion audience claim does not match Realm issuer");
    }
    let now = Timestamp::now().as_second();
    let (Some(begins), Some(ends)) = (claims["nbf"].as_i64(), claims["exp"].as_i64()) else {
        return refused(700_024, "Client assertion has no valid time range");
    };
    if now + LEEWAY_SECONDS < begins || ends + LEEWAY_SECONDS <= now || ends - begins > LONGEST_LIFE_SECONDS {
        return refused(700_024, "Client assertion is not within its valid time range");
    }
    match claims["jti"].as_str() {
        Some(id) if !id.is_empty() && seen.is_new(id, ends, now) => Ok(()),
        _ => refused(700_025, "Client assertion was used before, or has no 'jti'"),
    }
}

/// The SHA-256 thumbprint of a certificate in PEM form, as `x5t#S256` has it.
fn thumbprint_of(pem: &str) -> Option<String> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
    let der = BASE64.decode(body).ok()?;
    Some(BASE64URL.encode(digest(&SHA256, &der).as_ref()))
}
