//! What the brain refuses, and how it says so.

use std::time::Duration;

use defender_bridge::simulator::Fault;
use defender_bridge::simulator::cognito::Right;
use serde_json::json;

use super::{Cognito, host, read, send, tags};

#[tokio::test]
async fn parameters_that_nobody_knows_are_named_in_a_400() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    for (path, names) in [
        ("/api/v2.5/hosts?colour=red&page=1", "colour"),
        ("/api/v2.5/hosts?colour=red&size=1", "colour, size"),
        ("/api/v2.5/hosts/7?page=1", "page"),
        ("/api/v2.5/tagging/host/7?type=host", "type"),
        ("/api/v2.5/hosts/7/notes?page=1", "page"),
        ("/api/v2.5/groups?tags=x", "tags"),
    ] {
        let expected = json!({"details": format!("The following query parameter(s) are invalid: {names}.")});
        assert_eq!(cognito.get(path).await, (400, expected), "{path}");
    }
    cognito.brain().behave(|behaviour| behaviour.refuse_all = true);
    assert_eq!(cognito.get("/api/v2.5/hosts?all=true").await.0, 400);
}

#[tokio::test]
async fn missing_rights_are_403_for_what_they_stand_for_alone() {
    let cognito = Cognito::of(vec![host(7, &["a"])]).await;
    let (_, foreign) = cognito.ask("POST", "/api/v2.5/hosts/7/notes", Some(json!({"note": "mine"}))).await;
    let others = cognito.brain().add_note(7, "theirs", "analyst.one").unwrap().id;
    let note = |id: &serde_json::Value| format!("/api/v2.5/hosts/7/notes/{id}");
    let calls = [
        (Right::ReadHosts, "GET", "/api/v2.5/hosts/7".to_owned(), None),
        (Right::ReadHosts, "GET", "/api/v2.5/hosts".to_owned(), None),
        (Right::ReadTags, "GET", "/api/v2.5/tagging/host/7".to_owned(), None),
        (Right::WriteTags, "PATCH", "/api/v2.5/tagging/host/7".to_owned(), Some(tags(&["a"]))),
        (Right::ReadNotes, "GET", "/api/v2.5/hosts/7/notes".to_owned(), None),
        (Right::WriteNotes, "PATCH", note(&foreign["id"]), Some(json!({"note": "again"}))),
        (Right::WriteOthersNotes, "PATCH", note(&json!(others)), Some(json!({"note": "changed"}))),
        (Right::ReadGroups, "GET", "/api/v2.5/groups".to_owned(), None),
    ];
    for (right, ..) in &calls {
        cognito.brain().behave(|behaviour| behaviour.withheld = vec![*right]);
        for (needed, method, path, body) in &calls {
            let (status, answer) = cognito.ask(method, path, body.clone()).await;
            if needed == right {
                let expected = json!({"detail": "You do not have permission to perform this action."});
                assert_eq!((status, answer), (403, expected), "{method} {path} without {right:?}");
            } else if !(*right == Right::WriteNotes && *needed == Right::WriteOthersNotes) {
                assert_eq!(status, 200, "{method} {path} without {right:?}: {answer}");
            }
        }
    }
}

#[tokio::test]
async fn versions_that_are_not_served_have_no_routes() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    for (path, status) in [
        ("/api/v2/hosts/7", 404),
        ("/api/v2.1/hosts/7", 404),
        ("/api/v2.2/hosts/7", 200),
        ("/api/v2.5/hosts/7", 200),
        ("/api/v2.6/hosts/7", 404),
        ("/api/v2.5/nothing", 404),
        ("/api/v2.5/entities/7?type=host", 404),
    ] {
        assert_eq!(send(cognito.call("GET", path)).await.status(), status, "{path}");
    }
    cognito.brain().behave(|behaviour| behaviour.versions = vec!["v2.3".to_owned()]);
    let gone = send(cognito.call("GET", "/api/v2.5/hosts/7")).await;
    assert_eq!(
        (gone.status().as_u16(), &gone.headers()["content-type"]),
        (404, &"text/html; charset=utf-8".parse().unwrap())
    );
}

#[tokio::test]
async fn methods_and_bodies_that_do_not_fit_are_refused_and_change_nothing() {
    let cognito = Cognito::of(vec![host(7, &["a"])]).await;
    for (method, path, body, status) in [
        ("PUT", "/api/v2.5/tagging/host/7", tags(&[]), 405),
        ("POST", "/api/v2.5/tagging/host", json!({"objectIds": [7], "tag": "block"}), 405),
        ("DELETE", "/api/v2.5/tagging/host", json!({"objectIds": [7], "tag": "a"}), 405),
        ("PATCH", "/api/v2.5/hosts/7", json!({"note": "overwritten"}), 405),
        ("PATCH", "/api/v2.5/tagging/host/7", json!([]), 400),
        ("PATCH", "/api/v2.5/tagging/host/7", json!({}), 400),
        ("PATCH", "/api/v2.5/tagging/host/7", json!({"tags": "a"}), 400),
        ("PATCH", "/api/v2.5/tagging/host/7", json!({"tags": [1]}), 400),
        ("PATCH", "/api/v2.5/tagging/host/7", json!({"tags": [""]}), 400),
        ("POST", "/api/v2.5/hosts/7/notes", json!({"note": ""}), 400),
        ("POST", "/api/v2.5/hosts/7/notes", json!({"text": "x"}), 400),
    ] {
        assert_eq!(cognito.ask(method, path, Some(body)).await.0, status, "{method} {path}");
    }
    let form =
        cognito.call("PATCH", "/api/v2.5/tagging/host/7").header("content-type", "text/plain").body("{\"tags\":[]}");
    assert_eq!(read(form).await.0, 415);
    let broken = cognito.call("PATCH", "/api/v2.5/tagging/host/7").header("content-type", "application/json").body("{");
    assert_eq!(read(broken).await.0, 400);
    assert_eq!(cognito.brain().tags(7).unwrap(), ["a"]);
    assert_eq!(cognito.brain().history(7), []);
    assert!(cognito.brain().notes(7).is_empty());
}

#[tokio::test]
async fn the_rate_counts_the_calls_of_a_second() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    cognito.brain().behave(|behaviour| behaviour.rate_per_second = Some(2));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(cognito.get("/api/v2.5/hosts/7").await.0);
    }
    assert_eq!(statuses, [200, 200, 429]);
    let refused = send(cognito.call("GET", "/api/v2.5/hosts/7")).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    cognito.brain().behave(|behaviour| behaviour.retry_after = false);
    let refused = send(cognito.call("GET", "/api/v2.5/hosts/7")).await;
    assert_eq!((refused.status().as_u16(), refused.headers().get("retry-after")), (429, None));
    assert_eq!(cognito.control().throttled(), 3);
    cognito.brain().behave(|behaviour| behaviour.rate_per_second = None);
    assert_eq!(cognito.get("/api/v2.5/hosts/7").await.0, 200);
}

#[tokio::test]
async fn faults_meet_routes_and_single_hosts_before_or_after_the_work() {
    let cognito = Cognito::of(vec![host(7, &[]), host(8, &[])]).await;
    let control = cognito.control();
    control.fail_next("tagging/host/{id}", Fault::refuse(404), 1);
    let (status, body) = cognito.get("/api/v2.5/tagging/host/7").await;
    assert_eq!((status, body), (404, json!({"status": "failure", "message": "Could not find requested object"})));
    control.fail_next("cognito", Fault::throttle(7), 1);
    let refused = send(cognito.call("GET", "/api/v2.5/hosts/7")).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    control.fail_next(defender_bridge::simulator::Matcher::containing("/tagging/host/8"), Fault::cut(), 1);
    assert_eq!(cognito.get("/api/v2.5/tagging/host/7").await.0, 200);
    assert!(cognito.call("GET", "/api/v2.5/tagging/host/8").send().await.is_err());
    control.fail_next("hosts/{id}", Fault::refuse(502), 1);
    let html = send(cognito.call("GET", "/api/v2.5/hosts/7")).await;
    assert!(html.headers()["content-type"].to_str().unwrap().starts_with("text/html"));

    let patch = |list: &[&str]| cognito.call("PATCH", "/api/v2.5/tagging/host/7").json(&tags(list)).send();
    control.fail_next("tagging/host/{id}", Fault::cut(), 1);
    assert!(patch(&["lost"]).await.is_err());
    assert_eq!(cognito.brain().tags(7).unwrap(), [""; 0]);
    for (number, fault) in [Fault::cut(), Fault::Reset, Fault::cut_after(3)].into_iter().enumerate() {
        control.fail_next("tagging/host/{id}", Fault::applied(fault.clone()), 1);
        let tag = format!("done-{number}");
        let answer = match patch(&[&tag]).await {
            Ok(response) => response.bytes().await,
            Err(error) => Err(error),
        };
        assert!(answer.is_err(), "{fault:?}");
        assert_eq!(cognito.brain().tags(7).unwrap(), [tag], "{fault:?}");
    }
    control.fail_next("tagging/host/{id}", Fault::applied(Fault::refuse(500)), 1);
    assert_eq!(patch(&["done-500"]).await.unwrap().status(), 500);
    assert_eq!(cognito.brain().tags(7).unwrap(), ["done-500"]);
    control.fail_next("hosts/{id}/notes", Fault::applied(Fault::slow(Duration::from_millis(50))), 1);
    let began = std::time::Instant::now();
    assert_eq!(cognito.ask("POST", "/api/v2.5/hosts/7/notes", Some(json!({"note": "n"}))).await.0, 200);
    assert!(began.elapsed() >= Duration::from_millis(50));
}
