//! Audits, event feeds, the search.

use defender_bridge::simulator::cognito::{BRAIN_USER, HR_HOST};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{Cognito, host, ids, members, tags, tokens_of_hosted};

fn example(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn messages(body: &Value, list: &str) -> Vec<String> {
    body[list].as_array().unwrap().iter().map(|audit| audit["message"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_change_of_tags_is_an_audit_with_the_lists_before_and_after() {
    let cognito = Cognito::of(vec![host(7, &["VIP"]), host(8, &["it's"])]).await;
    let brain = cognito.brain();
    brain.add_tag(7, "block", "analyst.one");
    cognito.ask("PATCH", "/api/v2.5/tagging/host/8", Some(tags(&["it's", "a"]))).await;
    cognito.ask("PATCH", "/api/v2.5/tagging/host/8", Some(tags(&["it's", "a"]))).await;
    brain.add_tag_to_many(&[7, 8, 9], "x", "analyst.two");
    brain.audit("analyst.two", "log in", false);
    let (status, body) = cognito.get("/api/v2.5/audits").await;
    let expected = example(include_str!("../../../data/cognito/audits.v2.json"));
    assert_eq!((status, members(&body)), (200, members(&expected)));
    assert_eq!(members(&body["audits"][0]), members(&expected["audits"][0]));
    assert_eq!(
        messages(&body, "audits"),
        [
            "[table:host][id:7] with tags ['VIP'] was changed to ['VIP', 'block']",
            "[table:host][id:8] with tags [\"it's\"] was changed to [\"it's\", 'a']",
            "Tag x has been added to hosts with ids [7, 8]",
            "log in",
        ]
    );
    let users: Vec<&Value> = body["audits"].as_array().unwrap().iter().map(|audit| &audit["user"]).collect();
    assert_eq!(users, ["analyst.one", BRAIN_USER, "analyst.two", "analyst.two"]);
    assert_eq!(body["audits"][3]["result"], "failure");
    let at: i64 = body["audits"][0]["vectra_timestamp"].as_str().unwrap().parse().unwrap();
    assert!((cognito.control().now().as_second() - at).abs() < 60);
    brain.behave(|behaviour| behaviour.audit_api_writes = false);
    cognito.ask("PATCH", "/api/v2.5/tagging/host/8", Some(tags(&[]))).await;
    assert_eq!(cognito.get("/api/v2.5/audits").await.1["audits"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn audits_are_asked_for_by_whole_days() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    let (control, brain) = (cognito.control(), cognito.brain());
    for (now, tag) in [("2026-02-03T23:59:59Z", "a"), ("2026-02-04T00:00:01Z", "b"), ("2026-02-05T12:00:00Z", "c")] {
        control.set_clock(Some(now.parse().unwrap()));
        brain.add_tag(7, tag, "analyst.one");
    }
    for (query, expected) in [
        ("start=2026-02-04&end=2026-02-04", "b"),
        ("start=2026-02-03&end=2026-02-04", "ab"),
        ("start=2026-02-04", "bc"),
        ("end=2026-02-03", "a"),
        ("", "abc"),
        ("start=2026-02-06", ""),
    ] {
        let (_, body) = cognito.get(&format!("/api/v2.5/audits?{query}")).await;
        let added: String = messages(&body, "audits").iter().map(|text| text.chars().rev().nth(2).unwrap()).collect();
        assert_eq!(added, expected, "{query}");
    }
    let (_, body) = cognito.get("/api/v2.5/audits?start=2026-02-04").await;
    assert_eq!((&body["start"], &body["end"]), (&json!("2026-02-04"), &json!("9999-12-31")));
    for query in ["start=yesterday", "start=2026-02-30", "from=1"] {
        assert_eq!(cognito.get(&format!("/api/v2.5/audits?{query}")).await.0, 400, "{query}");
    }
    assert_eq!(cognito.get("/api/v2.5/events/audits").await.0, 404, "only the hosted flavour has feeds");
}

#[tokio::test]
async fn the_hosted_audits_are_read_by_checkpoints_without_gaps_or_repeats() {
    let mut cognito = Cognito::of(vec![host(7, &["VIP"]), host(8, &[])]).await;
    cognito.token = tokens_of_hosted(&cognito).await;
    let brain = cognito.brain();
    brain.add_tag(7, "block", "analyst.one");
    brain.add_tag_to_many(&[7, 8], "x", "analyst.one");
    let expected = example(include_str!("../../../data/cognito/v3.events.audits.json"));
    let (status, first) = cognito.get("/api/v3.4/events/audits?limit=1").await;
    assert_eq!((status, members(&first)), (200, members(&expected)));
    assert_eq!(members(&first["events"][0]), members(&expected["events"][0]));
    assert_eq!(
        (first["events"][0]["event_object"].as_str(), first["remaining_count"].as_u64()),
        (Some("host_tags"), Some(1))
    );
    let read = async |checkpoint: &Value| cognito.get(&format!("/api/v3.4/events/audits?from={checkpoint}")).await.1;
    let second = read(&first["next_checkpoint"]).await;
    assert_eq!(messages(&second, "events"), ["Tag x has been added to hosts with ids [7, 8]"]);
    assert_eq!(second["events"][0]["event_action"], "created");
    let third = read(&second["next_checkpoint"]).await;
    assert_eq!((&third["events"], &third["next_checkpoint"]), (&json!([]), &second["next_checkpoint"]));
    brain.remove_tag(7, "x", "analyst.one");
    assert_eq!(messages(&read(&third["next_checkpoint"]).await, "events").len(), 1);
    let filtered = cognito.get("/api/v3.4/events/audits?event_object=host_tag").await.1;
    assert_eq!(filtered["events"].as_array().unwrap().len(), 1);
    for query in ["limit=0", "limit=1001", "limit=x", "from=x", "event_timestamp_gte=x", "start=2026-02-04"] {
        assert_eq!(cognito.get(&format!("/api/v3.4/events/audits?{query}")).await.0, 400, "{query}");
    }
    assert_eq!(cognito.get("/api/v3.4/audits").await.0, 404, "only appliances have audits");
}

#[tokio::test]
async fn changed_scores_show_in_the_host_and_in_the_hosted_feed() {
    let mut cognito = Cognito::of(vec![host(7, &[])]).await;
    cognito.token = tokens_of_hosted(&cognito).await;
    let brain = cognito.brain();
    assert!(brain.set_scores(7, 78, 66, 88));
    assert!(brain.set_scores(7, 70, 66, 80));
    assert!(!brain.set_scores(8, 1, 1, 1));
    let expected = example(include_str!("../../../data/cognito/v3.events.entity_scoring.json"));
    let (_, rises) = cognito.get("/api/v3.4/events/entity_scoring?type=host").await;
    assert_eq!(members(&rises["events"][0]), members(&expected["events"][0]));
    let urgencies = |body: &Value| -> Vec<u64> {
        body["events"].as_array().unwrap().iter().map(|event| event["urgency_score"].as_u64().unwrap()).collect()
    };
    assert_eq!(urgencies(&rises), [88]);
    let (_, all) = cognito.get("/api/v3.4/events/entity_scoring?type=host&include_score_decreases=true").await;
    assert_eq!(urgencies(&all), [88, 80]);
    let since = (cognito.control().now() + SignedDuration::from_hours(1)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let (_, none) =
        cognito.get(&format!("/api/v3.4/events/entity_scoring?type=host&event_timestamp_gte={since}")).await;
    assert_eq!(urgencies(&none), [0; 0]);
    assert_eq!(cognito.get("/api/v3.4/events/entity_scoring?type=account").await.1["events"], json!([]));
    assert_eq!(cognito.get("/api/v3.4/events/entity_scoring?type=machine").await.0, 400);
    let (_, shown) = cognito.get("/api/v3.4/hosts/7").await;
    assert_eq!(
        (&shown["threat"], &shown["certainty"], &shown["severity"]),
        (&json!(70), &json!(66), &json!("Critical"))
    );
    assert_eq!(cognito.get("/api/v3.4/entities/7?type=host").await.1["urgency_score"], 80);
}

#[tokio::test]
async fn the_search_finds_words_inside_tags() {
    let cognito =
        Cognito::of(vec![host(1, &["block"]), host(2, &["Manual block:2020-03-03"]), host(3, &["other"])]).await;
    let search = async |query: &str| {
        let call =
            cognito.call("GET", "/api/v2.5/search/hosts").query(&[("page_size", "100"), ("query_string", query)]);
        super::read(call).await
    };
    let (_, body) = search("host.state:\"active\" AND host.tags:\"block\"").await;
    assert_eq!(ids(&body), [1, 2]);
    let expected = example(include_str!("../../../data/cognito/hosts.search.json"));
    assert_eq!(members(&body["results"][0]), members(&expected["results"][0]));
    cognito.brain().set_scores(3, 50, 60, 0);
    assert_eq!(ids(&search("host.threat:>=50 AND host.certainty:>=50").await.1), [3]);
    assert_eq!(search("host.colour:red").await.0, 400);
}

#[tokio::test]
async fn the_story_has_a_past() {
    let cognito = Cognito::story().await;
    let (_, body) = cognito.get("/api/v2.5/audits").await;
    let about = |text: &str| messages(&body, "audits").iter().filter(|message| message.contains(text)).count();
    assert_eq!((about("log in"), about(&format!("[table:host][id:{HR_HOST}]")), about("[table:detection]")), (3, 2, 1));
}
