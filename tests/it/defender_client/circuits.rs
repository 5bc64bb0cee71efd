//! What is sure to fail is answered from memory for a while, and tried again after it.

use std::sync::atomic::AtomicBool;

use defender_bridge::defender::Memory;

use super::*;

/// Between two looks at a condition that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Entra, which takes the secret `right` and, once it is told so, `mended`.
async fn entra(mended: Arc<AtomicBool>) -> Scripted {
    Scripted::start(move |seen| {
        let known = seen.body.contains("client_secret=right")
            || (seen.body.contains("client_secret=mended") && mended.load(Ordering::SeqCst));
        async move {
            match (seen.is_token(), known) {
                (true, false) => answer(401, example("token_error_7000215_bad_secret.json")),
                (true, true) => answer(200, example("token_v2_ok.json")),
                (false, _) => answer(200, "{}"),
            }
        }
    })
    .await
}

fn with_secret(defender: &Defender, secret: &str) -> Session {
    defender.session(credentials(secret), Instant::now() + Duration::from_secs(60), Limits::default())
}

#[tokio::test]
async fn two_hundred_requests_with_a_wrong_secret_cost_one_token_call() {
    let server = entra(Arc::default()).await;
    let defender = defender(&server);
    // Half of them at once, half one after the other.
    let at_once = join_all((0..100).map(|n| {
        let session = with_secret(&defender, "wrong");
        async move { session.machine(&machine_id(n)).await }
    }));
    let mut answers = at_once.await;
    for n in 100..200 {
        answers.push(with_secret(&defender, "wrong").machine(&machine_id(n)).await);
    }
    for answer in answers {
        let error = answer.unwrap_err();
        let Kind::TokenRefused { description: Some(description) } = error.kind() else { panic!("{error:?}") };
        assert!(description.starts_with("AADSTS7000215:"), "{description}");
        assert!(!error.is_transient());
    }
    assert_eq!(server.counts(), (1, 0));
    // The other secret of the same application is another account.
    with_secret(&defender, "right").machine(&machine_id(1)).await.unwrap();
    assert_eq!(server.counts(), (2, 1));
}

#[tokio::test]
async fn credentials_that_are_mended_are_found_out_by_one_call() {
    let mended = Arc::new(AtomicBool::new(false));
    let server = entra(Arc::clone(&mended)).await;
    let memory = Memory { credentials: Duration::from_millis(100), ..Memory::default() };
    let defender = Defender::new(Settings { memory, ..settings(&server) }, Outbound::new().unwrap());
    with_secret(&defender, "mended").machine(&machine_id(1)).await.unwrap_err();
    mended.store(true, Ordering::SeqCst);
    let asked = server.counts().0;
    while with_secret(&defender, "mended").machine(&machine_id(1)).await.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
    assert_eq!(server.counts().0, asked + 1, "the first call to try it succeeded");
}

#[tokio::test]
async fn a_missing_role_is_remembered_for_its_family_and_containment_tries_all_the_same() {
    let server = service(|seen, _| match seen.line.contains("/machines/") {
        true => answer(403, example("mde_error_403_missing_role.json")),
        false => answer(200, "{}"),
    })
    .await;
    let defender = defender(&server);
    for _ in 0..10 {
        let error = session(&defender).machine(&machine_id(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.family(), error.status()), (&Kind::Forbidden, Family::Machines, Some(403)));
    }
    assert_eq!(server.counts(), (2, 2), "one renewal, then nothing");
    session(&defender).file(SHA1).await.unwrap();
    assert_eq!(server.counts(), (2, 3));
    let deadline = Instant::now() + Duration::from_secs(60);
    let containing = defender.session(credentials(SECRET), deadline, Limits::containment());
    containing.machine_now(&machine_id(1)).await.unwrap_err();
    assert_eq!(server.counts(), (3, 5), "it asked, with one renewal of its own");
}
