//! Tags and notes: replacing, racing, authors, escapes.

use std::collections::HashSet;

use defender_bridge::simulator::cognito::{BRAIN_USER, Writer};
use serde_json::{Value, json};

use super::{Cognito, host, members, read, tags, tokens_of_hosted};

#[tokio::test]
async fn tags_are_replaced_as_a_whole_and_ids_change_their_type() {
    let cognito = Cognito::of(vec![host(7, &["VIP", "block"])]).await;
    let path = "/api/v2.5/tagging/host/7";
    let shown = json!({"status": "success", "tag_id": "7", "tags": ["VIP", "block"]});
    assert_eq!(cognito.get(path).await, (200, shown));
    let (status, answer) = cognito.ask("PATCH", path, Some(tags(&["b", "a", "b"]))).await;
    assert_eq!((status, answer), (200, json!({"status": "success", "tag_id": 7, "tags": ["b", "a", "b"]})));
    assert_eq!(cognito.get("/api/v2.5/hosts/7").await.1["tags"], json!(["b", "a", "b"]));
    assert_eq!(cognito.ask("PATCH", path, Some(tags(&[]))).await.1["tags"], json!([]));
    let missing = json!({"status": "failure", "message": "Could not find requested object"});
    assert_eq!(cognito.get("/api/v2.5/tagging/host/8").await, (404, missing.clone()));
    assert_eq!(cognito.ask("PATCH", "/api/v2.5/tagging/host/8", Some(tags(&[]))).await, (404, missing));
}

#[tokio::test]
async fn every_write_is_remembered_with_its_author_and_what_he_could_know() {
    let cognito = Cognito::of(vec![host(7, &["VIP"])]).await;
    let brain = cognito.brain();
    let path = "/api/v2.5/tagging/host/7";
    let added = brain.add_tag(7, "block", "analyst.one").unwrap();
    assert_eq!(brain.add_tag(7, "block", "analyst.one"), None);
    assert_eq!(brain.remove_tag(7, "nothing", "analyst.one"), None);
    assert_eq!(brain.add_tag(8, "block", "analyst.one"), None);
    cognito.get(path).await;
    brain.remove_tag(7, "VIP", "analyst.two").unwrap();
    cognito.ask("PATCH", path, Some(tags(&["VIP", "mde:agent=found"]))).await;
    let history = brain.history(7);
    let told: Vec<_> = history
        .iter()
        .map(|write| (write.actor.as_str(), write.writer, write.old.join(" "), write.new.join(" ")))
        .collect();
    assert_eq!(
        told,
        [
            ("analyst.one", Writer::Analyst, "VIP".to_owned(), "VIP block".to_owned()),
            ("analyst.two", Writer::Analyst, "VIP block".to_owned(), "block".to_owned()),
            (BRAIN_USER, Writer::Api, "block".to_owned(), "VIP mde:agent=found".to_owned()),
        ]
    );
    assert_eq!(history[2].known, Some(added.number));
    let undone = brain.undone(|tag| tag == "block" || tag.starts_with("mde:"));
    let undone: Vec<_> = undone.iter().map(|undone| (undone.tag.as_str(), undone.lost, undone.raced)).collect();
    assert_eq!(undone, [("VIP", false, true)]);
}

#[tokio::test]
async fn a_tag_can_come_into_the_gap_between_reading_and_writing() {
    let cognito = Cognito::of(vec![host(7, &["VIP"])]).await;
    let brain = cognito.brain();
    let path = "/api/v2.5/tagging/host/7";
    assert!(brain.add_tag_in_gap(7, "late", "analyst.one"));
    assert!(!brain.add_tag_in_gap(8, "late", "analyst.one"));
    for _ in 0..2 {
        assert_eq!(cognito.get(path).await.1["tags"], json!(["VIP"]), "readings do not show it yet");
    }
    assert_eq!(cognito.ask("PATCH", path, Some(tags(&["VIP", "mde:a=1"]))).await.1["tags"], json!(["VIP", "mde:a=1"]));
    let undone = brain.undone(|tag| tag.starts_with("mde:"));
    assert_eq!((undone.len(), undone[0].tag.as_str(), undone[0].lost, undone[0].raced), (1, "late", true, true));
    cognito.ask("PATCH", path, Some(tags(&["VIP"]))).await;
    assert_eq!(brain.history(7).len(), 3, "the gap is used once");
}

#[tokio::test]
async fn one_can_wait_for_what_somebody_writes() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    let brain = cognito.brain();
    let waiting = tokio::spawn(async move {
        brain.until(|brain| brain.tags(7).is_some_and(|tags| tags == ["b"]) && !brain.notes(7).is_empty()).await;
        brain.history(7).len()
    });
    for list in [["a"], ["b"]] {
        cognito.ask("PATCH", "/api/v2.5/tagging/host/7", Some(tags(&list))).await;
    }
    cognito.ask("POST", "/api/v2.5/hosts/7/notes", Some(json!({"note": "n"}))).await;
    assert_eq!(waiting.await.unwrap(), 2);
}

#[tokio::test]
async fn lists_of_tags_may_come_in_any_order() {
    let names: Vec<String> = (0..8).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let cognito = Cognito::of(vec![host(7, &names)]).await;
    cognito.brain().behave(|behaviour| behaviour.shuffle_tags = true);
    let mut orders = HashSet::new();
    for _ in 0..5 {
        let (_, shown) = cognito.get("/api/v2.5/tagging/host/7").await;
        let mut list: Vec<String> = serde_json::from_value(shown["tags"].clone()).unwrap();
        orders.insert(list.clone());
        list.sort_unstable();
        assert_eq!(list, names);
    }
    assert!(orders.len() > 1);
    assert_eq!(cognito.brain().tags(7).unwrap(), names);
}

#[tokio::test]
async fn notes_are_added_changed_and_deleted_and_come_back_escaped() {
    let cognito = Cognito::of(vec![host(7, &[])]).await;
    let path = "/api/v2.5/hosts/7/notes";
    assert_eq!(cognito.get(path).await, (200, json!([])));
    cognito.brain().add_note(7, "Called the user.", "analyst.one");
    let text = "[defender-bridge] machine \"fin\" & 2 <alerts> [ref:0a1b2c3d4e5f]";
    let (status, added) = cognito.ask("POST", path, Some(json!({"note": text}))).await;
    let example: Value = serde_json::from_str(include_str!("../../../data/cognito/note.create.response.json")).unwrap();
    assert_eq!((status, members(&added)), (200, members(&example)));
    assert_eq!(added["note"], "[defender-bridge] machine &quot;fin&quot; &amp; 2 &lt;alerts&gt; [ref:0a1b2c3d4e5f]");
    assert_eq!((&added["created_by"], &added["date_modified"]), (&json!(BRAIN_USER), &Value::Null));
    assert!(added["date_created"].as_str().unwrap().contains('.'), "{added}");
    let (_, list) = cognito.get(path).await;
    let authors: Vec<&str> = list.as_array().unwrap().iter().map(|note| note["created_by"].as_str().unwrap()).collect();
    assert_eq!(authors, ["analyst.one", BRAIN_USER]);
    let fractions: Vec<bool> =
        list.as_array().unwrap().iter().map(|note| note["date_created"].as_str().unwrap().contains('.')).collect();
    assert_eq!(fractions, [false, true], "some times have fractions");

    let one = format!("{path}/{}", added["id"]);
    let (status, changed) = cognito.ask("PATCH", &one, Some(json!({"note": "new"}))).await;
    assert_eq!((status, &changed["note"], &changed["modified_by"]), (200, &json!("new"), &json!(BRAIN_USER)));
    assert!(changed["date_modified"].is_string());
    assert_eq!(cognito.ask("PATCH", &format!("{path}/1"), Some(json!({"note": "x"}))).await.0, 404);
    assert_eq!(cognito.ask("DELETE", &one, None).await, (204, Value::Null));
    assert_eq!(cognito.brain().notes(7).len(), 1);
    assert_eq!(cognito.ask("DELETE", &one, None).await.0, 404);
    assert_eq!(cognito.ask("POST", "/api/v2.5/hosts/8/notes", Some(json!({"note": "x"}))).await, (404, Value::Null));
    assert_eq!(cognito.get("/api/v2.5/hosts/8/notes").await.0, 404);
}

#[tokio::test]
async fn the_hosted_flavour_also_knows_hosts_as_entities() {
    let mut cognito = Cognito::of(vec![host(7, &["VIP"])]).await;
    cognito.token = tokens_of_hosted(&cognito).await;
    let example: Value = serde_json::from_str(include_str!("../../../data/cognito/v3.entity.get.json")).unwrap();
    let (status, entity) = cognito.get("/api/v3.4/entities/7?type=host").await;
    assert_eq!((status, members(&entity)), (200, members(&example)));
    assert_eq!(cognito.get("/api/v3.4/tagging/entity/7?type=host").await.1["tag_id"], "7");
    let wrong: Value = serde_json::from_str(include_str!("../../../data/cognito/v3.error.type.400.json")).unwrap();
    for path in ["/api/v3.4/tagging/entity/7", "/api/v3.4/tagging/entity/7?type=machine", "/api/v3.4/entities/7"] {
        assert_eq!(cognito.get(path).await, (400, wrong.clone()), "{path}");
    }
    assert_eq!(cognito.get("/api/v3.3/entities/7?entity_type=host").await.0, 200);
    assert_eq!(cognito.get("/api/v3.4/entities/7?entity_type=host").await.0, 400);
    let (_, patched) = cognito.ask("PATCH", "/api/v3.4/tagging/entity/7?type=host", Some(tags(&["a"]))).await;
    assert_eq!(patched, json!({"status": "success", "tag_id": 7, "tags": ["a"]}));
    let call = cognito.call("POST", "/api/v3.4/entities/7/notes?type=host").json(&json!({"note": "n"}));
    assert_eq!(read(call).await.0, 201);
    assert_eq!(cognito.get("/api/v3.4/hosts/7/notes").await.1.as_array().unwrap().len(), 1);
}
