//! Defender's reading routes.

use std::collections::HashSet;

use defender_bridge::simulator::scenario::{
    C2_ADDRESS_V6, DROPPED_MD5, DROPPED_SHA1, DROPPED_SHA256, ENGINEERING_WORKSTATION, FINANCE_WORKSTATION,
    PHISHING_DOMAIN, UNKNOWN_MACHINE, UNSEEN_ADDRESS, UNSEEN_SHA1,
};
use serde_json::{Value, json};

use super::{World, ids};

#[tokio::test]
async fn defender_refuses_what_is_no_hash_domain_address_or_query() {
    let world = World::start().await;
    for (path, status, code) in [
        ("/api/files/nonsense".to_owned(), 400, "InvalidHashValue"),
        (format!("/api/files/{DROPPED_MD5}"), 400, "InvalidHashValue"),
        (format!("/api/files/{UNSEEN_SHA1}"), 404, "ResourceNotFound"),
        (format!("/api/files/{DROPPED_SHA256}/alerts"), 400, "InvalidHashValue"),
        (format!("/api/files/{DROPPED_MD5}/alerts"), 400, "InvalidHashValue"),
        ("/api/domains/bad_domain/alerts".to_owned(), 400, "InvalidDomainName"),
        ("/api/domains/https%3A%2F%2Fa.example/alerts".to_owned(), 400, "InvalidDomainName"),
        ("/api/ips/192.0.2.999/alerts".to_owned(), 400, "InvalidIpAddress"),
        (format!("/api/ips/{}/alerts", C2_ADDRESS_V6.replace(':', "%3A")), 400, "InvalidIpAddress"),
        (format!("/api/machines/{UNKNOWN_MACHINE}"), 404, "ResourceNotFound"),
        (format!("/api/machines/{UNKNOWN_MACHINE}/alerts"), 404, "ResourceNotFound"),
        ("/api/machines?$filter=nope%20eq%20'a'".to_owned(), 400, "ODataError"),
        ("/api/machines?$filter=computerDnsName%20eq%20a".to_owned(), 400, "ODataError"),
        ("/api/machines?$top=10001".to_owned(), 400, "ODataError"),
        ("/api/machines?$top=x".to_owned(), 400, "ODataError"),
        ("/api/machines?$select=id".to_owned(), 400, "ODataError"),
        ("/api/alerts?$filter=machineId%20eq%20'a'".to_owned(), 400, "ODataError"),
        ("/api/alerts/da1_1".to_owned(), 404, "ResourceNotFound"),
        ("/api/machines/findbyip(ip='192.0.2.41')".to_owned(), 400, "InvalidInput"),
        ("/api/machines/findbyip(ip='192.0.2.41',timestamp=yesterday)".to_owned(), 400, "InvalidInput"),
        ("/api/machines/findbyip(ip='192.0.2.41',timestamp=2020-01-01T00:00:00Z)".to_owned(), 400, "InvalidInput"),
        ("/api/indicators?$filter=nope%20eq%20'a'".to_owned(), 400, "ODataError"),
        ("/api/nowhere".to_owned(), 404, "ResourceNotFound"),
        ("/api/advancedqueries/run".to_owned(), 410, "Gone"),
    ] {
        let (found, body) = world.read(&path).await;
        assert_eq!((found, body["error"]["code"].as_str()), (status, Some(code)), "{path}");
        assert!(body["error"]["message"].is_string() && body["error"]["target"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn retired_routes_and_wrong_writes_are_refused_and_counted() {
    let world = World::start().await;
    for (path, status) in [
        ("/api/advancedqueries/run", 410),
        ("/api/advancedhunting/run", 410),
        ("/api/indicators", 400),
        ("/api/machines/abc/restrictCodeExecution", 400),
        ("/api/machines", 405),
    ] {
        let call = world.http.post(world.at(path)).bearer_auth(&world.defender).json(&json!({"Query": "x"}));
        assert_eq!(call.send().await.unwrap().status(), status, "{path}");
    }
    assert_eq!(world.control().calls("retired"), 2);
    assert_eq!(world.control().calls("advancedqueries/run"), 1);
}

#[tokio::test]
async fn defender_answers_from_the_story() {
    let world = World::start().await;
    let (status, file) = world.read(&format!("/api/files/{DROPPED_SHA256}")).await;
    assert_eq!((status, &file["sha1"]), (200, &json!(DROPPED_SHA1)));
    assert_eq!(ids(&world.read(&format!("/api/files/{DROPPED_SHA1}/alerts")).await.1).len(), 3);
    assert_eq!(ids(&world.read(&format!("/api/files/{UNSEEN_SHA1}/alerts")).await.1).len(), 0);
    assert_eq!(ids(&world.read(&format!("/api/domains/{PHISHING_DOMAIN}/alerts")).await.1).len(), 1);
    assert_eq!(ids(&world.read(&format!("/api/ips/{UNSEEN_ADDRESS}/alerts")).await.1).len(), 0);
    let (_, machine) = world.read(&format!("/api/machines/{FINANCE_WORKSTATION}")).await;
    assert_eq!(machine["computerDnsName"], "fin-ws-07.corp.example");
    let (_, by_name) = world.read("/api/machines/fin-ws-07.corp.example").await;
    assert_eq!(by_name["id"], FINANCE_WORKSTATION);
    let (_, of_machine) = world.read(&format!("/api/machines/{FINANCE_WORKSTATION}/alerts")).await;
    assert_eq!(ids(&of_machine).len(), 2);
    let (_, filtered) = world.read("/api/machines?$filter=startswith(computerDnsName,'eng-')").await;
    assert_eq!(ids(&filtered), [ENGINEERING_WORKSTATION]);
    let (_, none) = world.read("/api/machines?$filter=lastIpAddress%20eq%20'203.0.113.1'").await;
    assert_eq!(ids(&none).len(), 0);
    let (_, alerts) = world.read("/api/alerts?$top=2&$filter=severity%20eq%20'High'&$expand=evidence").await;
    assert_eq!(alerts["value"][0]["evidence"].as_array().unwrap().len(), 7);
    let (_, bare) = world.read("/api/alerts").await;
    assert_eq!(ids(&bare).len(), 6);
    assert_eq!(bare["value"][1]["evidence"], json!([]));
    let hour_ago =
        (world.control().now() - jiff::SignedDuration::from_mins(60)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let path = format!("/api/machines/findbyip(ip='192.0.2.63',timestamp={hour_ago})");
    assert_eq!(ids(&world.read(&path).await.1), [ENGINEERING_WORKSTATION]);
}

#[tokio::test]
async fn lists_come_in_pages_when_a_page_size_is_set() {
    let world = World::start().await;
    world.control().set_page_size(Some(2));
    let (mut seen, mut next) = (Vec::new(), Some(world.at("/api/machines?$top=5")));
    let mut pages = 0;
    while let Some(url) = next {
        let body: Value = world.http.get(url).bearer_auth(&world.defender).send().await.unwrap().json().await.unwrap();
        seen.extend(ids(&body).into_iter().map(str::to_owned));
        next = body["@odata.nextLink"].as_str().map(str::to_owned);
        pages += 1;
    }
    assert_eq!((pages, seen.len(), seen.iter().collect::<HashSet<_>>().len()), (3, 5, 5));
    world.control().set_foreign_next_link(Some("https://elsewhere.example"));
    let (_, body) = world.read(&format!("/api/files/{DROPPED_SHA1}/alerts")).await;
    let link = body["@odata.nextLink"].as_str().unwrap();
    assert!(link.starts_with("https://elsewhere.example/api/files/"), "{link}");
}
