//! Hosts, lists, paging, filters, groups.

use defender_bridge::simulator::cognito::TagFilter;
use serde_json::{Value, json};

use super::{Cognito, host, ids, members};

#[tokio::test]
async fn a_host_has_exactly_the_members_of_the_documented_one() {
    let cognito = Cognito::story().await;
    let example: Value = serde_json::from_str(include_str!("../../../data/cognito/host.get.v2.json")).unwrap();
    let (status, shown) = cognito.get("/api/v2.5/hosts/4711").await;
    assert_eq!((status, &shown["id"], &shown["name"]), (200, &json!(4711), &json!("fin-ws-07")));
    assert_eq!(members(&shown), members(&example));
    let (_, trimmed) = cognito.get("/api/v2.5/hosts/4711?fields=id,tags").await;
    assert_eq!(members(&trimmed), ["id", "tags"]);
    assert_eq!(cognito.get("/api/v2.5/hosts/4799").await, (404, json!({"detail": "Not found."})));
    assert_eq!(cognito.get("/api/v2.5/hosts/x").await.0, 404);
}

#[tokio::test]
async fn lists_come_in_pages_that_end() {
    let cognito = Cognito::of((1..=5).map(|id| host(id, &["t"])).collect()).await;
    let (_, first) = cognito.get("/api/v2.5/hosts?page=1&page_size=2&tags=t&all=true").await;
    assert_eq!((first["count"].clone(), ids(&first), &first["previous"]), (json!(5), vec![1, 2], &Value::Null));
    let next = first["next"].as_str().unwrap();
    assert!(next.starts_with(&cognito.simulator.url()) && next.contains("page=2"), "{next}");
    assert!(first["results"][0].get("last_seen").is_none(), "lists do not say when a host was last seen");
    let path = next.strip_prefix(&cognito.simulator.url()).unwrap().to_owned();
    assert_eq!(ids(&cognito.get(&path).await.1), [3, 4]);
    let (_, last) = cognito.get("/api/v2.5/hosts?page=3&page_size=2&tags=t").await;
    assert_eq!((ids(&last), &last["next"]), (vec![5], &Value::Null));
    let (status, past) = cognito.get("/api/v2.5/hosts?page=4&page_size=2&tags=t").await;
    assert_eq!((status, past), (404, json!({"detail": "Invalid page \"4\": That page contains no results."})));
    let (status, empty) = cognito.get("/api/v2.5/hosts?tags=nobody").await;
    assert_eq!((status, empty), (200, json!({"count": 0, "next": null, "previous": null, "results": []})));
}

#[tokio::test]
async fn page_sizes_are_bounded_and_the_brain_may_give_less() {
    let cognito = Cognito::of((1..=60).map(|id| host(id, &[])).collect()).await;
    assert_eq!(ids(&cognito.get("/api/v2.5/hosts").await.1).len(), 50);
    assert_eq!(ids(&cognito.get("/api/v2.5/hosts?page_size=5000").await.1).len(), 60);
    for wrong in ["0", "5001", "-1", "many"] {
        let (status, body) = cognito.get(&format!("/api/v2.5/hosts?page_size={wrong}")).await;
        assert_eq!((status, &body["_meta"]["level"]), (400, &json!("error")), "{wrong}");
    }
    assert_eq!(cognito.get("/api/v2.5/hosts?page=0").await.0, 404);
    cognito.brain().behave(|behaviour| {
        behaviour.page_cap = Some(7);
        behaviour.foreign_next_link = Some("http://brain.elsewhere.example".to_owned());
    });
    let (_, page) = cognito.get("/api/v2.5/hosts?page=2&page_size=50").await;
    assert_eq!(ids(&page), [8, 9, 10, 11, 12, 13, 14]);
    assert!(page["next"].as_str().unwrap().starts_with("http://brain.elsewhere.example/api/v2.5/hosts?"));
}

#[tokio::test]
async fn the_filter_by_tags_finds_any_of_them_in_the_flavours_own_way() {
    let cognito = Cognito::of(vec![
        host(1, &["block"]),
        host(2, &["Block"]),
        host(3, &["unblock"]),
        host(4, &["mde:isolation=isolated"]),
        host(5, &["other"]),
    ])
    .await;
    let found = async |path: &str| ids(&cognito.get(path).await.1);
    assert_eq!(found("/api/v2.5/hosts?tags=block,mde%3Aisolation%3Disolated").await, [1, 2, 4]);
    for (filter, expected) in [
        (Some(TagFilter::Exact), vec![1]),
        (Some(TagFilter::IgnoreCase), vec![1, 2]),
        (Some(TagFilter::Substring), vec![1, 2, 3]),
        (None, vec![1, 2]),
    ] {
        cognito.brain().behave(|behaviour| behaviour.tag_filter = filter);
        assert_eq!(found("/api/v2.2/hosts?tags=block").await, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn lists_are_filtered_by_scores_state_and_more() {
    let mut hosts: Vec<_> = (1..=4).map(|id| host(id, &[])).collect();
    (hosts[0].threat, hosts[0].certainty) = (50, 49);
    (hosts[1].threat, hosts[1].certainty) = (50, 50);
    (hosts[2].active, hosts[2].traffic) = (false, false);
    (hosts[3].active, hosts[3].privilege, hosts[3].address) = (false, Some(8), Some("192.0.2.4".into()));
    let cognito = Cognito::of(hosts).await;
    for (query, expected) in [
        ("", vec![1, 2, 4]),
        ("all=true", vec![1, 2, 3, 4]),
        ("all=false", vec![1, 2, 4]),
        ("threat_gte=50", vec![1, 2]),
        ("threat_gte=50&certainty_gte=50", vec![2]),
        ("certainty=49", vec![1]),
        ("state=inactive&all=true", vec![3, 4]),
        ("privilege_level_gte=8", vec![4]),
        ("last_source=192.0.2.4", vec![4]),
        ("name=HOST-2", vec![2]),
        ("ordering=-t_score", vec![2, 1, 4]),
        ("ordering=name", vec![1, 2, 4]),
    ] {
        assert_eq!(ids(&cognito.get(&format!("/api/v2.5/hosts?{query}")).await.1), expected, "{query}");
    }
    for query in ["threat_gte=x", "state=gone", "all=perhaps", "ordering=colour"] {
        assert_eq!(cognito.get(&format!("/api/v2.5/hosts?{query}")).await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn groups_are_found_by_a_part_of_their_name() {
    let mut hosts = vec![host(1, &[]), host(2, &[])];
    hosts[0].groups = vec!["NoBlock".into()];
    hosts[1].groups = vec!["NoBlock of old".into(), "NoBlock".into()];
    let cognito = Cognito::of(hosts).await;
    let (_, body) = cognito.get("/api/v2.5/groups?name=NoBlock&type=host").await;
    let names: Vec<&str> =
        body["results"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!((body["count"].clone(), names), (json!(2), vec!["NoBlock", "NoBlock of old"]));
    let example: Value = serde_json::from_str(include_str!("../../../data/cognito/groups.list.json")).unwrap();
    assert_eq!(members(&body["results"][0]), members(&example["results"][0]));
    assert_eq!(members(&body["results"][0]["members"][0]), members(&example["results"][0]["members"][0]));
    assert_eq!(body["results"][0]["members"].as_array().unwrap().len(), 2);
    assert_eq!(cognito.get("/api/v2.5/groups?name=NoBlock&type=ip").await.1["count"], 0);
    let (_, host) = cognito.get("/api/v2.5/hosts/2").await;
    assert_eq!(host["groups"].as_array().unwrap().len(), 2);
}
