//! Brains whose certificates only their own organisation knows.

use std::path::Path;
use std::sync::Arc;

use defender_bridge::cognito::{Class, Cognito, Kind, Priority};
use defender_bridge::outbound::Outbound;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rstest::rstest;
use tokio::time::Instant;

use super::{Book, LATER, example, settings, token};
use crate::scripted::{Scripted, answer};

/// An authority, and what it signs for this machine.
struct Authority {
    ca: Certificate,
    certificate: Certificate,
    key: KeyPair,
}

fn authority() -> Authority {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = leaf.signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
    Authority { ca, certificate, key }
}

async fn brain(certificate: &Certificate, key: &KeyPair) -> Scripted {
    Scripted::start_tls_as(|_| async { answer(200, example("host.get.v2")) }, certificate, key).await
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, content).unwrap();
    file
}

async fn read(server: &Scripted, outbound: Outbound) -> Result<bool, (Kind, Class)> {
    let cognito = Cognito::new(settings(server.url.as_str(), "v2.5", token()), outbound, Arc::new(Book::default()));
    let host = cognito.session(Priority::Normal, Instant::now() + LATER).host(4711).await;
    host.map(|host| host.is_some()).map_err(|error| (error.kind().clone(), error.class()))
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_its_file_is_given() {
    let authority = authority();
    let server = brain(&authority.certificate, &authority.key).await;
    let file = file(&authority.ca.pem());
    assert_eq!(read(&server, Outbound::with_ca_file(file.path()).unwrap()).await, Ok(true));
}

#[tokio::test]
async fn one_file_may_hold_several_authorities_and_comments() {
    let (first, second) = (authority(), authority());
    let server = brain(&second.certificate, &second.key).await;
    let file = file(&format!("# ours\n{}\nSubject: the other\n{}", first.ca.pem(), second.ca.pem()));
    assert_eq!(read(&server, Outbound::with_ca_file(file.path()).unwrap()).await, Ok(true));
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_when_it_is_given_itself() {
    let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let server = brain(&own.cert, &own.signing_key).await;
    let file = file(&own.cert.pem());
    assert_eq!(read(&server, Outbound::with_ca_file(file.path()).unwrap()).await, Ok(true));
}

const THIS_MACHINE: &str = "127.0.0.1";
const GOOD: [i32; 2] = [2001, 2999];

/// As the usual commands make one: it says of itself that it is an authority's.
fn self_made(name: &str, years: [i32; 2]) -> (Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    [params.not_before, params.not_after] = years.map(|year| rcgen::date_time_ymd(year, 1, 1));
    (params.self_signed(&key).unwrap(), key)
}

#[tokio::test]
async fn a_self_signed_certificate_of_an_authority_is_trusted_when_it_is_given_itself() {
    let ((own, key), (other, _)) = (self_made(THIS_MACHINE, GOOD), self_made(THIS_MACHINE, GOOD));
    let server = brain(&own, &key).await;
    let outbound = Outbound::with_ca_file(file(&format!("{}{}", other.pem(), own.pem())).path()).unwrap();
    assert_eq!(read(&server, outbound).await, Ok(true));
    let (kind, _) = read(&server, Outbound::with_ca_file(file(&other.pem()).path()).unwrap()).await.unwrap_err();
    assert!(matches!(&kind, Kind::Certificate { reason } if reason.contains("given itself")), "{kind:?}");
}

#[rstest]
#[case::other_name("brain.example", GOOD, "127.0.0.1")]
#[case::expired(THIS_MACHINE, [2001, 2002], "expired")]
#[case::not_yet(THIS_MACHINE, [2998, 2999], "not valid yet")]
#[tokio::test]
async fn its_name_and_its_dates_must_be_right(#[case] name: &str, #[case] years: [i32; 2], #[case] said: &str) {
    let (own, key) = self_made(name, years);
    let server = brain(&own, &key).await;
    let (kind, _) = read(&server, Outbound::with_ca_file(file(&own.pem()).path()).unwrap()).await.unwrap_err();
    assert!(matches!(&kind, Kind::Certificate { reason } if reason.contains(said)), "{kind:?}");
    assert!(server.seen().is_empty(), "no token goes to who is not known");
}

#[tokio::test]
async fn nobody_elses_certificate_is_trusted() {
    let (ours, theirs) = (authority(), authority());
    let server = brain(&theirs.certificate, &theirs.key).await;
    let file = file(&ours.ca.pem());
    for outbound in [Outbound::new().unwrap(), Outbound::with_ca_file(file.path()).unwrap()] {
        let (kind, class) = read(&server, outbound).await.unwrap_err();
        assert!(matches!(kind, Kind::Certificate { .. }), "{kind:?}");
        assert_eq!(class, Class::Configuration);
    }
    assert!(server.seen().is_empty(), "no token goes to who is not known");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_trusted() {
    let authority = authority();
    let own = rcgen::generate_simple_self_signed(vec!["brain.example".to_owned()]).unwrap();
    let server = brain(&own.cert, &own.signing_key).await;
    let file = file(&format!("{}{}", authority.ca.pem(), own.cert.pem()));
    let (kind, _) = read(&server, Outbound::with_ca_file(file.path()).unwrap()).await.unwrap_err();
    assert!(matches!(&kind, Kind::Certificate { reason } if !reason.is_empty()), "{kind:?}");
}

#[rstest]
#[case::empty("", "holds no certificate in PEM form")]
#[case::no_pem("certificate", "holds no certificate in PEM form")]
#[case::key("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no certificate in PEM form")]
#[case::no_base64("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n", "a certificate in")]
#[case::no_certificate("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate in")]
#[tokio::test]
async fn a_file_that_cannot_be_used_is_named(#[case] content: &str, #[case] said: &str) {
    let file = file(content);
    let error = Outbound::with_ca_file(file.path()).unwrap_err().to_string();
    assert!(error.contains(said) && error.contains(file.path().to_str().unwrap()), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Outbound::with_ca_file(Path::new("no/such/ca.pem")).unwrap_err();
    assert_eq!(error.to_string(), "the certificates in no/such/ca.pem cannot be read");
    assert!(std::error::Error::source(&error).is_some());
}
