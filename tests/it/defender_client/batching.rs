//! Who shares a hunting query, and that nobody is worse off for it.

use defender_bridge::defender::Limits;
use tokio::sync::Semaphore;

use super::*;

/// Gives as many permits for hunting as it is told to.
struct Gate {
    permits: Semaphore,
    asked: Semaphore,
}

impl Gate {
    fn closed() -> Arc<Gate> {
        Arc::new(Gate { permits: Semaphore::new(0), asked: Semaphore::new(0) })
    }

    /// Returns when a permit for hunting is being asked for; each asking counts once.
    async fn asked(&self) {
        self.asked.acquire().await.unwrap().forget();
    }
}

impl Permits for Gate {
    fn permit<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        family: Family,
        _: Purpose,
        until: Instant,
    ) -> BoxFuture<'a, Result<Instant, Duration>> {
        async move {
            if family == Family::Hunting {
                self.asked.add_permits(1);
                self.permits.acquire().await.unwrap().forget();
            }
            Ok(until)
        }
        .boxed()
    }
}

/// A file event of each hash that the query names, in each of the last `count` minutes.
fn file_rows(query: &str, count: usize) -> String {
    let hashes = (1..9).map(machine_id).filter(|hash| query.contains(hash.as_str()));
    let rows = hashes.flat_map(|hash| {
        (0..count).map(move |minute| {
            serde_json::json!({"Observable": format!("sha1:{hash}"), "SHA1": hash, "ReportId": minute,
                "Timestamp": format!("2026-11-20T07:{:02}:00Z", 59 - minute)})
        })
    });
    serde_json::json!({"results": rows.collect::<Vec<_>>()}).to_string()
}

async fn files() -> Scripted {
    service(|seen, _| answer(200, file_rows(&query_of(seen), 9))).await
}

fn hashes(numbers: &[usize], top: usize) -> Vec<Sought> {
    numbers.iter().map(|n| Sought { sort: Sort::Sha1, value: machine_id(*n), top }).collect()
}

fn counts(found: &[Result<Vec<Event>, DefenderError>]) -> Vec<usize> {
    found.iter().map(|rows| rows.as_ref().unwrap().len()).collect()
}

#[tokio::test]
async fn callers_that_wait_for_a_permit_share_the_query_and_keep_their_order_and_limits() {
    let server = files().await;
    let gate = Gate::closed();
    let defender = defender(&server).with_permits(gate.clone());
    let (one, two) = (session(&defender), session(&defender));
    let comes = Notify::new();
    let (first, second, ()) = tokio::join!(
        async { one.events(&hashes(&[1, 2, 3], 2)).await },
        async {
            gate.asked().await;
            comes.notify_one();
            two.events(&hashes(&[4, 3, 9], 5)).await
        },
        async {
            comes.notified().await;
            gate.permits.add_permits(1);
        },
    );
    assert_eq!((counts(&first), counts(&second)), (vec![2, 2, 2], vec![5, 5, 0]));
    assert_eq!(server.counts(), (1, 1));
    let query = query_of(&calls(&server)[0]);
    assert!(query.contains("top 5 by") && query.matches(&machine_id(3)).count() == 1, "{query}");
}

/// What one asks about while it is under way for another is not asked about again, unless more of it is wanted.
#[tokio::test]
async fn what_is_under_way_is_waited_for() {
    let (go, sent, comes) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)), Semaphore::new(0));
    let (tokens, gate, arrived) = (AtomicUsize::new(0), Arc::clone(&go), Arc::clone(&sent));
    let server = Scripted::start(move |seen| {
        let token = seen.is_token().then(|| token(&tokens));
        let (gate, arrived) = (Arc::clone(&gate), Arc::clone(&arrived));
        async move {
            let Some(token) = token else {
                arrived.add_permits(1);
                gate.acquire().await.unwrap().forget();
                return answer(200, file_rows(&query_of(&seen), 9));
            };
            token
        }
    })
    .await;
    let defender = defender(&server);
    let (one, two, three) = (session(&defender), session(&defender), session(&defender));
    let (first, second, third, ()) = tokio::join!(
        async { one.events(&hashes(&[1], 5)).await },
        async {
            drop(sent.acquire().await.unwrap());
            comes.add_permits(1);
            two.events(&hashes(&[1, 2], 5)).await
        },
        async {
            drop(sent.acquire().await.unwrap());
            comes.add_permits(1);
            three.events(&hashes(&[1], 7)).await
        },
        async {
            comes.acquire_many(2).await.unwrap().forget();
            go.add_permits(10);
        },
    );
    assert_eq!((counts(&first), counts(&second), counts(&third)), (vec![5], vec![5, 5], vec![7]));
    let queries: Vec<String> = calls(&server).iter().map(query_of).collect();
    let about_one = queries.iter().filter(|query| query.contains(&machine_id(1))).count();
    // The first query, and that for what the third wants more.
    assert_eq!(about_one, 2, "{queries:?}");
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_others_what_they_asked_for() {
    let server = files().await;
    let gate = Gate::closed();
    let defender = defender(&server).with_permits(gate.clone());
    let hasty = session_until(&defender, Instant::now() + SOON);
    let patient = session(&defender);
    let (first, second) = tokio::join!(
        async {
            let found = hasty.events(&hashes(&[1, 2], 2)).await;
            gate.permits.add_permits(1);
            found
        },
        async { patient.events(&hashes(&[2, 3], 2)).await },
    );
    assert!(first.iter().all(|rows| rows.as_ref().is_err_and(|error| error.kind() == &Kind::Deadline)));
    assert_eq!(counts(&second), [2, 2]);
    assert_eq!(server.counts(), (1, 1));
    let query = query_of(&calls(&server)[0]);
    assert!(!query.contains(&machine_id(1)), "nobody waits for it any more: {query}");
}

/// The query that the hasty one began ends with it; whoever has more time asks again.
#[tokio::test]
async fn a_caller_with_more_time_asks_again_when_a_query_ran_out_of_it() {
    let (hung, sent) = (AtomicUsize::new(0), Arc::new(Semaphore::new(0)));
    let arrived = Arc::clone(&sent);
    let server = service(move |seen, _| {
        arrived.add_permits(1);
        match hung.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::Hang,
            _ => answer(200, file_rows(&query_of(seen), 9)),
        }
    })
    .await;
    let defender = defender(&server);
    let hasty = session_until(&defender, Instant::now() + SOON);
    let patient = session(&defender);
    let (first, second) = tokio::join!(async { hasty.events(&hashes(&[1], 2)).await }, async {
        sent.acquire().await.unwrap().forget();
        patient.events(&hashes(&[1], 2)).await
    });
    assert_eq!(first[0].as_ref().unwrap_err().kind(), &Kind::Deadline);
    assert_eq!(counts(&second), [2]);
    assert_eq!(server.counts(), (1, 2));
}

/// Who does not know the secret shares nothing.
#[tokio::test]
async fn accounts_do_not_share_queries() {
    let server = files().await;
    let gate = Gate::closed();
    let defender = defender(&server).with_permits(gate.clone());
    let until = Instant::now() + Duration::from_secs(60);
    let sessions = ["one", "two"].map(|secret| defender.session(credentials(secret), until, Limits::default()));
    let asks = sessions.iter().map(|session| async { session.events(&hashes(&[1], 2)).await });
    let open = async {
        gate.asked().await;
        gate.asked().await;
        gate.permits.add_permits(2);
    };
    let (found, ()) = tokio::join!(join_all(asks), open);
    assert!(found.iter().all(|found| counts(found) == [2]));
    assert_eq!(server.counts(), (2, 2));
}

/// More than one query holds goes in several, one after the other as permits come.
#[tokio::test]
async fn what_does_not_fit_one_query_takes_several() {
    let server = service(|_, _| answer(200, r#"{"results": []}"#)).await;
    let numbers: Vec<usize> = (0..450).collect();
    let found = session(&defender(&server)).events(&hashes(&numbers, 100)).await;
    assert!(found.len() == 450 && found.iter().all(Result::is_ok));
    assert_eq!(server.counts(), (1, 3));
    let queries: Vec<String> = calls(&server).iter().map(query_of).collect();
    assert!(numbers.iter().all(|n| queries.iter().filter(|query| query.contains(&machine_id(*n))).count() == 1));
}

/// One list of alerts, asked for by many at once.
#[tokio::test]
async fn the_same_alerts_at_the_same_time_are_one_call() {
    let server = service(|_, _| page(0..3, None)).await;
    let defender = defender(&server);
    let asks = (0..10).map(|_| {
        let session = session(&defender);
        async move { session.domain_alerts("bad.example.com", 5).await.unwrap().alerts.len() }
    });
    assert_eq!(join_all(asks).await, [3; 10]);
    assert_eq!(server.counts(), (1, 1));
    session(&defender).domain_alerts("bad.example.com", 5).await.unwrap();
    assert_eq!(server.counts(), (1, 2), "it is not kept");
}

/// Calls for alerts and profiles that are planned are counted together, and given back.
#[tokio::test]
async fn what_is_planned_is_not_planned_again() {
    struct Ten;
    impl Permits for Ten {
        fn permit<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            _: Family,
            _: Purpose,
            until: Instant,
        ) -> BoxFuture<'a, Result<Instant, Duration>> {
            async move { Ok(until) }.boxed()
        }
        fn room(&self, _: &str, _: &str, family: Family, _: Instant) -> u32 {
            assert_eq!(family, Family::Alerts);
            10
        }
    }
    let server = service(|_, _| answer(200, "{}")).await;
    let defender = defender(&server).with_permits(Arc::new(Ten));
    let (one, two) = (session(&defender), session(&defender));
    let mut plan = one.plan_all(6).unwrap();
    assert!(two.plan_all(5).is_none());
    assert_eq!(two.plan(5).calls(), 4);
    plan.done(2);
    assert_eq!(two.plan_all(6).map(|plan| plan.calls()), Some(6));
    drop(plan);
    assert!(two.plan_all(11).is_none() && two.plan_all(10).is_some());
}
