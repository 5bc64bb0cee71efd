//! Certificates in place of secrets, and an application of its own for machine actions, against the simulator, which checks
//! each assertion.

use std::sync::Arc;

use defender_bridge::defender::{Certificate, IsolationType, Proof};
use defender_bridge::simulator::scenario::{
    DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, DEMO_TENANT_ID, HR_WORKSTATION, OTHER_CLIENT_ID,
};
use defender_bridge::simulator::{self, Application, Fault, Resource, Simulator};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};

use super::*;

/// A certificate with its key, both in PEM form.
fn pair() -> (String, String) {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    (CertificateParams::default().self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn certificate((certificate, key): &(String, String)) -> Proof {
    Proof::Certificate(Arc::new(Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()))
}

fn credentials_of(client_id: &str, proof: Proof) -> Credentials {
    Credentials { tenant_id: DEMO_TENANT_ID.to_owned(), client_id: client_id.to_owned(), proof }
}

fn client_of(simulator: &Simulator) -> Defender {
    let url: url::Url = simulator.url().parse().unwrap();
    let settings = Settings {
        entra_url: url.clone(),
        defender_url: url.clone(),
        graph_url: url,
        retry: Policy { first: Duration::from_millis(1), cap: Duration::from_millis(2), tries: 6 },
        ..Settings::default()
    };
    Defender::new(settings, Outbound::new().unwrap())
}

fn session_of(defender: &Defender, credentials: Credentials) -> Session {
    defender.session(credentials, Instant::now() + Duration::from_secs(60), Limits::default())
}

#[tokio::test]
async fn a_registered_certificate_is_as_good_as_a_secret_and_each_try_has_an_assertion_of_its_own() {
    let simulator = Simulator::start(simulator::Settings::default()).await.unwrap();
    let (own, other) = (pair(), pair());
    assert!(simulator.control().add_certificate(DEMO_TENANT_ID, &own.0));
    let defender = client_of(&simulator);
    // The first answer is lost, after Entra took the assertion: it would not take it again.
    simulator.control().fail_next("token", Fault::applied(Fault::Reset), 1);
    let session = session_of(&defender, credentials_of(DEMO_CLIENT_ID, certificate(&own)));
    session.machines_top1().await.unwrap();
    session.hunting_probe().await.unwrap();
    assert_eq!(simulator.control().calls("token"), 3);

    // Whoever has another certificate gets nothing that was kept, and no token.
    let stranger = session_of(&defender, credentials_of(DEMO_CLIENT_ID, certificate(&other)));
    let refused = stranger.machines_top1().await.unwrap_err();
    let Kind::TokenRefused { description: Some(description) } = refused.kind() else { panic!("{refused}") };
    assert!(description.starts_with("AADSTS700027: "), "{description}");
    assert!(!refused.is_transient());
    simulator.stop().await;
}

#[tokio::test]
async fn machine_actions_are_posted_by_the_application_that_may() {
    let simulator = Simulator::start(simulator::Settings::default()).await.unwrap();
    let control = simulator.control();
    let responder = pair();
    assert!(control.set_roles(DEMO_TENANT_ID, Resource::Defender, &["Machine.Read.All"]));
    let application = Application {
        client_id: OTHER_CLIENT_ID.to_owned(),
        client_secret: String::new(),
        certificates: vec![responder.0.clone()],
        defender_roles: vec!["Machine.Isolate".to_owned()],
        graph_roles: Vec::new(),
    };
    assert!(control.put_application(DEMO_TENANT_ID, application));
    let defender = client_of(&simulator);
    let reading = credentials_of(DEMO_CLIENT_ID, SecretString::from(DEMO_CLIENT_SECRET).into());
    let alone = session_of(&defender, reading.clone());
    let refused = alone.isolate(HR_WORKSTATION, IsolationType::Full, "test").await.unwrap_err();
    assert_eq!(refused.kind(), &Kind::Forbidden);

    let acting = session_of(&defender, credentials_of(OTHER_CLIENT_ID, certificate(&responder)));
    let session = session_of(&defender, reading).acting_as(&acting);
    session.isolation_actions(HR_WORKSTATION).await.unwrap();
    let action = session.isolate(HR_WORKSTATION, IsolationType::Full, "test").await.unwrap();
    assert!(session.machine_action(&action.id).await.unwrap().is_some());
    session.cancel(&action.id, "test").await.unwrap();
    for request in control.requests() {
        // The one that was refused is the first application's.
        let acts = request.route == "actions" && request.status != Some(403);
        let expected = if acts { OTHER_CLIENT_ID } else { DEMO_CLIENT_ID };
        if request.route != "token" {
            assert_eq!(request.client.as_deref(), Some(expected), "{} {}", request.method, request.path);
        }
    }
    simulator.stop().await;
}
