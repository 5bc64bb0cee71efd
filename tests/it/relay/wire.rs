//! Routes, methods, bodies and connections (`relay.md` 1.1, 1.2, 3.2), spoken over a bare socket where a client library
//! would correct what the test says.

use std::time::Duration;

use defender_bridge::simulator::Fault;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::fatal;
use crate::bridge::{Options, TestBridge, demo_token};

const ROUTES: [&str; 7] = [
    "/health",
    "/version",
    "/observe/observables",
    "/deliberate/observables",
    "/refer/observables",
    "/respond/observables",
    "/respond/trigger",
];

const LIMIT: usize = 1024 * 1024;

/// Long enough for a busy machine; nothing is expected to take it.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection to the ingress.
struct Wire(TcpStream);

#[derive(Debug)]
struct Response {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl Wire {
    async fn open(bridge: &TestBridge) -> Self {
        Self(TcpStream::connect(bridge.address).await.expect("the ingress listens"))
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the ingress reads");
    }

    /// Sends a request with a body of its true length.
    async fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Response {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: {length}\r\n{headers}\r\n");
        self.write(&[head.as_bytes(), body].concat()).await;
        self.read(method != "HEAD").await.unwrap_or_else(|| panic!("{method} {path} is not answered"))
    }

    /// Reads an answer; `None` when the connection ends before one.
    async fn read(&mut self, has_body: bool) -> Option<Response> {
        tokio::time::timeout(PATIENCE, self.read_patiently(has_body)).await.expect("an answer or an end")
    }

    async fn read_patiently(&mut self, has_body: bool) -> Option<Response> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            match self.0.read_u8().await {
                Ok(byte) => bytes.push(byte),
                Err(_) => return None,
            }
        }
        let head = String::from_utf8(bytes).expect("a head of text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("a status");
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut response = Response { status, headers, body: String::new() };
        let length = response.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; if has_body { length } else { 0 }];
        self.0.read_exact(&mut body).await.ok()?;
        response.body = String::from_utf8(body).expect("a body of text");
        Some(response)
    }

    /// The connection is as good as new: it serves another request.
    async fn assert_still_serves(&mut self, after: &str) {
        let response = self.send("POST", "/version", "", b"").await;
        assert_eq!((response.status, response.json()), (200, json!({"version": env!("CARGO_PKG_VERSION")})), "{after}");
    }

    async fn ends(mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("the connection ends");
        rest.is_empty()
    }
}

fn bearer() -> String {
    format!("authorization: Bearer {}\r\n", demo_token())
}

fn not_allowed() -> Value {
    json!({"code": 405, "message": "The method is not allowed for the requested URL.", "reason": "MethodNotAllowed"})
}

fn not_found() -> Value {
    json!({"code": 404, "message": "The requested URL was not found.", "reason": "NotFound"})
}

fn too_large() -> Value {
    json!({"code": 413, "message": "The request body is too large.", "reason": "PayloadTooLarge"})
}

async fn without_worker() -> TestBridge {
    TestBridge::start_with(Options { worker: false, ..Options::default() }).await
}

#[tokio::test]
async fn known_routes_take_no_method_but_post() {
    let bridge = without_worker().await;
    let mut wire = Wire::open(&bridge).await;
    for route in ROUTES {
        for method in ["GET", "PUT", "DELETE", "PATCH", "TRACE", "post", "Post", "POSTS", "PROPFIND", "*"] {
            let response = wire.send(method, route, &bearer(), b"[]").await;
            assert_eq!((response.status, response.json()), (405, not_allowed()), "{method} {route}");
            assert_eq!(response.header("allow"), Some("OPTIONS, POST"), "{method} {route}");
            assert_eq!(response.header("content-type"), Some("application/json"), "{method} {route}");
        }
        let response = wire.send("HEAD", route, &bearer(), b"").await;
        assert_eq!((response.status, response.header("allow")), (405, Some("OPTIONS, POST")), "HEAD {route}");
        let response = wire.send("OPTIONS", route, "", b"").await;
        assert_eq!((response.status, response.body.as_str()), (200, ""), "OPTIONS {route}");
        assert_eq!(response.header("allow"), Some("OPTIONS, POST"), "OPTIONS {route}");
    }
    // No HEAD answer had a body, or it would have been read as the next answer.
    wire.assert_still_serves("all methods").await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_path_is_a_route_or_not_found_whatever_its_query() {
    let bridge = without_worker().await;
    let mut wire = Wire::open(&bridge).await;
    for route in ROUTES {
        let slashed = format!("{route}/");
        let (queried, both) = (format!("{route}?limit=1&x=%ff"), format!("{slashed}?"));
        let whole = format!("http://{}{route}", bridge.address);
        let plain = wire.send("POST", route, "", b"[]").await;
        assert_eq!(plain.status, 200, "{route}");
        for path in [slashed.as_str(), &queried, &both, &whole] {
            let response = wire.send("POST", path, "", b"[]").await;
            assert_eq!((response.status, &response.body), (200, &plain.body), "{path}");
            assert_eq!(response.header("location"), None, "{path}");
        }
        let variants = [
            format!("/{route}"),
            format!("{route}//"),
            format!("{route}/x"),
            route.to_ascii_uppercase(),
            format!("{route}%2f"),
            format!("/.{route}"),
            format!("/api{route}"),
            format!("{route};a=b"),
        ];
        for path in variants {
            for method in ["POST", "GET", "OPTIONS"] {
                let response = wire.send(method, &path, &bearer(), b"[]").await;
                assert_eq!((response.status, response.json()), (404, not_found()), "{method} {path}");
                assert_eq!(response.header("content-type"), Some("application/json"), "{path}");
            }
        }
    }
    for path in
        ["/", "/nope", "/observe", "/respond", "/observe/observable", "/metrics", "/livez", "/%68ealth", "/?/health"]
    {
        let response = wire.send("POST", path, &bearer(), b"").await;
        assert_eq!((response.status, response.json()), (404, not_found()), "{path}");
    }
    let head = wire.send("HEAD", "/nope", "", b"").await;
    assert_eq!(head.status, 404);
    wire.assert_still_serves("HEAD of an unknown route").await;
    bridge.stop().await;
}

#[tokio::test]
async fn the_content_type_of_a_request_does_not_matter() {
    let bridge = without_worker().await;
    let mut wire = Wire::open(&bridge).await;
    for kind in [
        "",
        "content-type: application/json\r\n",
        "content-type: text/plain\r\n",
        "content-type: application/x-www-form-urlencoded\r\n",
        "content-type: multipart/form-data\r\n",
        "content-type: application/json; charset=utf-16\r\n",
        "content-type: \r\n",
        "content-type: application/json\r\ncontent-type: text/xml\r\n",
        "content-encoding: gzip\r\n",
        "accept: text/html\r\n",
    ] {
        let headers = bearer() + kind;
        let response = wire.send("POST", "/observe/observables", &headers, br#"[{"type":"url","value":"x"}]"#).await;
        assert_eq!((response.status, response.json()), (200, json!({"data": {}})), "{kind}");
        assert_eq!(response.header("content-type"), Some("application/json"), "{kind}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_body_of_one_mebibyte_is_read_and_one_byte_more_is_not() {
    let bridge = without_worker().await;
    let body = |bytes: usize| [b"[".as_slice(), &vec![b' '; bytes - 2], b"]"].concat();
    let chunked = |body: Vec<u8>| {
        let pieces = body.chunks(64 * 1024).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    };
    for (bytes, status) in [(LIMIT, 200), (LIMIT + 1, 413), (8 * LIMIT, 413)] {
        for (how, body) in [("declared", body(bytes).into()), ("chunked", chunked(body(bytes)))] {
            // Every route reads its body first, so that the answer does not depend on the token.
            let path = if status == 413 { "/version" } else { "/observe/observables" };
            let request = bridge.client.post(bridge.url(path)).bearer_auth(demo_token()).body::<reqwest::Body>(body);
            let answer = crate::bridge::Answer::of(request.send().await.expect("an answer, not a reset")).await;
            assert_eq!(answer.status, status, "{bytes} {how}");
            let expected = if status == 200 { json!({"data": {}}) } else { too_large() };
            assert_eq!(answer.json(), expected, "{bytes} {how}");
            assert_eq!(answer.headers["content-type"], "application/json");
        }
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_long_body_does_not_hide_the_answer_of_a_request_that_takes_none() {
    let bridge = without_worker().await;
    for (method, path, status) in
        [("POST", "/nope", 404), ("PUT", "/nope", 404), ("PUT", "/health", 405), ("DELETE", "/version", 405)]
    {
        let request = bridge.client.request(method.parse().unwrap(), bridge.url(path)).body(vec![b' '; 8 * LIMIT]);
        let answer = crate::bridge::Answer::of(request.send().await.expect("an answer, not a reset")).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.json()["code"], status, "{method} {path}");
    }
    bridge.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_before_sending_too_much_is_told_at_once() {
    let bridge = without_worker().await;
    let mut wire = Wire::open(&bridge).await;
    let head = format!(
        "POST /observe/observables HTTP/1.1\r\nhost: relay\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        100 * LIMIT
    );
    wire.write(head.as_bytes()).await;
    let response = wire.read(true).await.expect("an answer");
    assert_eq!((response.status, response.json()), (413, too_large()));
    bridge.stop().await;
}

#[tokio::test]
async fn a_wrong_content_length_ends_the_connection_and_nothing_else() {
    let bridge = without_worker().await;
    for length in [
        "content-length: x",
        "content-length: -1",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 99999999999999999999999",
    ] {
        let mut wire = Wire::open(&bridge).await;
        wire.write(format!("POST /version HTTP/1.1\r\nhost: relay\r\n{length}\r\n\r\n[]").as_bytes()).await;
        let response = wire.read(true).await.expect("an answer");
        assert_eq!(response.status, 400, "{length}");
        assert!(wire.ends().await, "{length}");
    }
    // Shorter than the body: the rest is no request.
    let mut wire = Wire::open(&bridge).await;
    wire.write(b"POST /version HTTP/1.1\r\nhost: relay\r\ncontent-length: 2\r\n\r\n[] and more\r\n\r\n").await;
    assert_eq!(wire.read(true).await.expect("the answer to the first").status, 200);
    assert_eq!(wire.read(true).await.expect("the answer to the rest").status, 400);
    assert!(wire.ends().await);
    // Longer than the body, and then the client goes: nobody waits for the rest.
    let mut wire = Wire::open(&bridge).await;
    wire.write(b"POST /version HTTP/1.1\r\nhost: relay\r\ncontent-length: 20\r\n\r\n[]").await;
    wire.0.shutdown().await.expect("half of the connection ends");
    let response = wire.read(true).await;
    assert!(response.is_none_or(|response| response.status == 400));
    // Garbage in place of a request.
    let mut wire = Wire::open(&bridge).await;
    wire.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await;
    assert_eq!(wire.read(true).await.expect("an answer").status, 400);
    // The others are served all the while.
    Wire::open(&bridge).await.assert_still_serves("broken requests").await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_connection_serves_on_after_every_kind_of_error() {
    let bridge = TestBridge::start().await;
    let mut wire = Wire::open(&bridge).await;
    let code = |response: &Response| response.json()["errors"][0]["code"].as_str().unwrap_or("none").to_owned();

    let response = wire.send("POST", "/nope", "", b"some body").await;
    assert_eq!(response.status, 404);
    wire.assert_still_serves("404").await;

    let response = wire.send("GET", "/health", "", b"some body").await;
    assert_eq!(response.status, 405);
    wire.assert_still_serves("405").await;

    let response = wire.send("POST", "/health", "", b"").await;
    assert_eq!((response.status, code(&response).as_str()), (200, "authorization error"));
    wire.assert_still_serves("a missing token").await;

    let response = wire.send("POST", "/observe/observables", &bearer(), b"{").await;
    assert_eq!((response.status, code(&response).as_str()), (200, "invalid payload"));
    wire.assert_still_serves("a wrong payload").await;

    bridge.control().fail_next("machines", Fault::refuse(500), 10);
    let response = wire.send("POST", "/health", &bearer(), b"").await;
    assert_eq!((response.status, code(&response).as_str()), (200, "internal error"));
    wire.assert_still_serves("an error of Defender").await;

    let long = vec![b' '; LIMIT + 1];
    let response = wire.send("POST", "/health", &bearer(), &long).await;
    assert_eq!(response.status, 413);
    wire.assert_still_serves("413").await;
    bridge.stop().await;
}

#[tokio::test]
async fn two_authorization_headers_are_no_authorization() {
    let bridge = without_worker().await;
    let mut wire = Wire::open(&bridge).await;
    let wrong = fatal("authorization error", "Authorization failed: Wrong authorization type");
    for headers in
        [bearer() + &bearer(), bearer() + "authorization: Basic eDp5\r\n", "authorization:\r\n".to_owned() + &bearer()]
    {
        let response = wire.send("POST", "/health", &headers, b"").await;
        assert_eq!(response.status, 200);
        let error = &response.json()["errors"][0];
        assert_eq!(
            (error["code"].as_str(), error["message"].as_str()),
            (Some(wrong.0.as_str()), Some(wrong.1.as_str()))
        );
    }
    bridge.stop().await;
}

#[tokio::test]
async fn the_header_of_a_token_may_be_spelled_in_any_case_and_space() {
    let bridge = without_worker().await;
    let mut wire = Wire::open(&bridge).await;
    let token = demo_token();
    for header in [
        format!("AUTHORIZATION: bearer {token}\r\n"),
        format!("Authorization:BEARER {token}\r\n"),
        format!("authorization: Bearer   {token}  \r\n"),
        format!("authorization: bEaReR\t{token}\r\n"),
    ] {
        let response = wire.send("POST", "/deliberate/observables", &header, b"[]").await;
        assert_eq!(response.json(), json!({"data": {}}));
    }
    bridge.stop().await;
}
