//! A certificate in place of a secret (`defender.md` 1.1): the application proves that it has the key by signing a short
//! note to the token endpoint, the client assertion. Nothing that could be used again leaves this process.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use url::Url;
use uuid::Uuid;

/// `client_assertion_type` of a JWT (RFC 7523).
pub(super) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How long an assertion is good. Entra advises five to ten minutes; it is used at once.
const LIFE_SECONDS: i64 = 300;

/// An assertion is good from before it is made: Entra's clock may be behind ours.
const EARLY_SECONDS: i64 = 120;

/// A certificate that is registered with an application in Entra, and its private key.
pub struct Certificate {
    thumbprint: [u8; 32],
    key: KeyPair,
}

/// Why a certificate cannot be used. Shows nothing of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// There is no certificate.
    #[error("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// There is no key, or none that can be read; keys with a passphrase are not.
    #[error("holds no private key in PEM form (-----BEGIN PRIVATE KEY-----) that can be read without a passphrase")]
    NoKey,
    /// The key is of another kind, or too short.
    #[error("the private key is not an RSA key of 2048 to 8192 bits, which Entra wants")]
    NotRsa,
    /// The key is not that of the certificate.
    #[error("the private key does not belong to the certificate")]
    OtherKey,
}

/// Shows the thumbprint, which is public.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("thumbprint", &BASE64URL.encode(self.thumbprint)).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads the first certificate of `certificate` and the first private key of `key`, which may be the same text.
    ///
    /// # Errors
    /// What is missing, or does not fit.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let certificate = CertificateDer::from_pem_slice(certificate).map_err(|_| CertificateError::NoCertificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::NoKey)?;
        let pair = match &key {
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            _ => return Err(CertificateError::NotRsa),
        };
        let pair = pair.map_err(|_| CertificateError::NotRsa)?;
        let hash = digest::digest(&digest::SHA256, &certificate);
        let thumbprint = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let signing =
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| CertificateError::NotRsa)?;
        rustls::sign::CertifiedKey::new(vec![certificate], signing)
            .keys_match()
            .map_err(|_| CertificateError::OtherKey)?;
        Ok(Self { thumbprint, key: pair })
    }

    /// SHA-256 of the certificate: what cache keys hold in place of a secret's hash, and how Entra finds it.
    #[must_use]
    pub fn thumbprint(&self) -> [u8; 32] {
        self.thumbprint
    }

    /// A new assertion to `endpoint`, for one request: Entra may refuse to see it twice.
    pub(super) fn assertion(&self, client_id: &str, endpoint: &Url, now: Timestamp) -> String {
        let now = now.as_second();
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": BASE64URL.encode(self.thumbprint)});
        let claims = json!({
            "aud": endpoint.as_str(),
            "iss": client_id,
            "sub": client_id,
            "jti": Uuid::now_v7(),
            "iat": now,
            "nbf": now - EARLY_SECONDS,
            "exp": now + LIFE_SECONDS,
        });
        let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("the key is long enough for its signature");
        format!("{signed}.{}", BASE64URL.encode(signature))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
    use rcgen::{CertificateParams, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize};
    use serde_json::Value;

    use super::*;

    fn pair() -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        (CertificateParams::default().self_signed(&key).unwrap(), key)
    }

    #[test]
    fn an_assertion_is_signed_for_one_endpoint_by_one_application_for_minutes() {
        let (certificate, key) = pair();
        let read = Certificate::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let endpoint: Url = "https://login.example/t/oauth2/v2.0/token".parse().unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let assertion = read.assertion("app", &endpoint, now);
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let json = |part: &str| serde_json::from_slice::<Value>(&BASE64URL.decode(part).unwrap()).unwrap();
        let (header, claims) = (json(header), json(claims));
        let thumbprint = digest::digest(&digest::SHA256, certificate.der());
        assert_eq!(header, json!({"alg": "PS256", "typ": "JWT", "x5t#S256": BASE64URL.encode(thumbprint.as_ref())}));
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!("app"), &json!("app")));
        assert_eq!(claims["aud"], endpoint.as_str());
        let (begins, ends) = (claims["nbf"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
        assert!(begins < now.as_second() && now.as_second() < ends && ends - begins <= 600, "{claims}");
        let public = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.der_bytes());
        public.verify(signed.as_bytes(), &BASE64URL.decode(signature).unwrap()).unwrap();
        assert_ne!(read.assertion("app", &endpoint, now), assertion);
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_told_without_the_key() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        let elliptic = rcgen::KeyPair::generate().unwrap();
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        let both = format!("{certificate}{key}");
        let read = |certificate: &str, key: &str| {
            Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).map(|certificate| format!("{certificate:?}"))
        };
        assert!(!read(&both, &both).unwrap().contains("key"));
        for (certificate, key, error) in [
            (key.as_str(), key.as_str(), CertificateError::NoCertificate),
            (&certificate, &certificate, CertificateError::NoKey),
            (&certificate, "", CertificateError::NoKey),
            (&certificate, &key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"), CertificateError::NoKey),
            (&certificate, &elliptic.serialize_pem(), CertificateError::NotRsa),
            (&certificate, &other.serialize_pem(), CertificateError::OtherKey),
        ] {
            assert_eq!(read(certificate, key).unwrap_err(), error);
        }
    }
}
