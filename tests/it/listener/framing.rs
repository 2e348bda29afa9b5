//! The rest of the framing vectors of RELIABILITY section 1.2 over HTTP/1, in front of a provider that records raw bytes;
//! most of them are in `llm.rs`, where ambiguous requests are refused and tolerated ones rewritten.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::harness::*;

const JSON: &str = r#"{"model":"solo","messages":[{"role":"user","content":"hello there"}]}"#;
const ANSWER: &str = r#"{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;

/// Every byte that reached the provider.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Vec<u8>>>);

impl Recorded {
    fn of(world: &World) -> Self {
        let recorded = Self::default();
        let bytes = recorded.clone();
        let link = peer(move |mut io| {
            let bytes = bytes.clone();
            async move {
                let request = read_request(&mut io).await;
                bytes.0.lock().unwrap().extend(request.as_bytes());
                let _ = io.write_all(http_reply("200 OK", "connection: close\r\n", ANSWER).as_bytes()).await;
            }
        });
        world.net.always("alpha", link);
        recorded
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn raw(line: &str, headers: &str, body: &str) -> String {
    format!("{line}\r\nauthorization: Bearer {SHOP}\r\ncontent-type: application/json\r\n{headers}\r\n{body}")
}

fn post(headers: &str, body: &str) -> String {
    raw("POST /v1/chat/completions HTTP/1.1", headers, body)
}

fn chunked(body: &str) -> String {
    post("host: a\r\ntransfer-encoding: chunked\r\n", body)
}

/// Every status that came back, and whether the connection was closed.
async fn said(world: &World, bytes: &str) -> (Vec<u16>, bool) {
    let (mut io, _end) = world.raw_with(2 << 20);
    let _ = io.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(5), io.read_to_end(&mut answer)).await.is_ok();
    let text = String::from_utf8_lossy(&answer);
    let statuses = text.lines().filter_map(|line| line.strip_prefix("HTTP/1.").map(|rest| rest[2..5].parse().unwrap()));
    (statuses.collect(), closed)
}

#[tokio::test(start_paused = true)]
async fn framing_that_is_no_http_is_refused_and_closed_before_a_byte_reaches_the_provider() {
    let length = format!("host: a\r\ncontent-length: {}\r\n", JSON.len());
    let n = JSON.len();
    let many: String = (0..110).map(|at| format!("x-{at}: b\r\n")).collect();
    let line = |line: &str| raw(line, &length, JSON);
    let vectors = [
        ("a version of HTTP/2.0", line("POST /v1/chat/completions HTTP/2.0")),
        ("a version of HTTP/0.9", line("POST /v1/chat/completions HTTP/0.9")),
        ("no version", line("POST /v1/chat/completions")),
        ("a version in small letters", line("POST /v1/chat/completions http/1.1")),
        ("a second space in the line", line("POST  /v1/chat/completions HTTP/1.1")),
        ("a word after the version", line("POST /v1/chat/completions HTTP/1.1 x")),
        ("a chunk extension with a line feed", chunked(&format!("{n:x};a\nb\r\n{JSON}\r\n0\r\n\r\n"))),
        ("a chunk extension with a carriage return", chunked(&format!("{n:x};a\rb\r\n{JSON}\r\n0\r\n\r\n"))),
        ("chunk extensions of 20 KiB", chunked(&format!("{n:x};{}\r\n{JSON}\r\n0\r\n\r\n", "a".repeat(20 << 10)))),
        ("an empty chunk size", chunked(&format!("\r\n{JSON}\r\n0\r\n\r\n"))),
        ("a negative chunk size", chunked(&format!("-{n:x}\r\n{JSON}\r\n0\r\n\r\n"))),
        ("trailers of 20 KiB", chunked(&format!("{n:x}\r\n{JSON}\r\n0\r\nx-a: {}\r\n\r\n", "a".repeat(20 << 10)))),
        ("a trailer without a colon", chunked(&format!("{n:x}\r\n{JSON}\r\n0\r\njunk\r\n\r\n"))),
        ("more than 100 fields", post(&format!("{length}{many}"), JSON)),
        ("a field of 500 KB", post(&format!("{length}x-a: {}\r\n", "b".repeat(500_000)), JSON)),
        ("a method that is no word", line("P()ST /v1/chat/completions HTTP/1.1")),
    ];
    for (what, bytes) in vectors {
        let world = World::new();
        let recorded = Recorded::of(&world);
        // A second request follows at once: whoever is confused by the first must not serve it.
        let (statuses, closed) = said(&world, &(bytes + &post(&length, JSON))).await;
        assert!(closed && statuses.len() <= 1, "{what}: {statuses:?}, closed: {closed}");
        assert!(statuses.iter().all(|status| (400..500).contains(status)), "{what}: {statuses:?}");
        assert_eq!(recorded.text(), "", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn paths_are_never_made_simpler() {
    let length = format!("host: a\r\ncontent-length: {}\r\n", JSON.len());
    for path in [
        "/v1/x/..%2fchat/completions",
        "/v1/../v1/chat/completions",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/./chat/completions",
        "/v1/chat/completions/",
        "/v1\\chat\\completions",
        "/v1/chat%2Fcompletions",
        "/V1/chat/completions",
        "/v1/chat/completions;x=y",
        "/v1/chat/completions%00",
        "/%76%31/chat/completions",
    ] {
        let world = World::new();
        let recorded = Recorded::of(&world);
        let (statuses, _) = said(&world, &raw(&format!("POST {path} HTTP/1.1"), &length, JSON)).await;
        assert!(matches!(statuses[..], [400 | 404]), "{path}: {statuses:?}");
        assert_eq!(recorded.text(), "", "{path}");
    }
    // A fragment is cut off by the parser, and nothing of it travels.
    let world = World::new();
    let recorded = Recorded::of(&world);
    let (statuses, _) = said(&world, &raw("POST /v1/chat/completions#/x HTTP/1.1", &length, JSON)).await;
    assert!(matches!(statuses[..], [200 | 400 | 404]) && !recorded.text().contains('#'), "{statuses:?}");
}

#[tokio::test(start_paused = true)]
async fn f2_a_length_of_nothing_hides_no_second_request() {
    let world = World::new();
    let recorded = Recorded::of(&world);
    let hidden = post(&format!("host: a\r\ncontent-length: {}\r\n", JSON.len()), JSON);
    // What follows a body of no bytes is a request of its own, and is answered as one.
    let desync = [
        post("host: a\r\nexpect: 100-continue\r\ncontent-length: 0\r\n", &hidden),
        raw("GET /v1/models HTTP/1.1", &format!("host: a\r\ncontent-length: {}\r\n", hidden.len()), &hidden),
    ];
    let (statuses, _) = said(&world, &desync[0]).await;
    assert!(statuses == [400, 200] || statuses == [400], "{statuses:?}");
    let before = recorded.text();
    let (statuses, closed) = said(&world, &desync[1]).await;
    assert!(statuses == [400] && closed, "{statuses:?}");
    assert_eq!(recorded.text(), before, "the hidden one was never sent");
}

#[tokio::test(start_paused = true)]
async fn f4_only_known_methods_are_anything_else_than_refused() {
    let world = World::new();
    let recorded = Recorded::of(&world);
    let odd = (0..200).map(|at| format!("M{at}")).chain(
        ["TRACE", "TRACK", "post", "Get", "DEBUG", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"].map(str::to_owned),
    );
    for method in odd {
        let request = raw(&format!("{method} /v1/chat/completions HTTP/1.1"), "host: a\r\ncontent-length: 0\r\n", "");
        let (statuses, _) = said(&world, &request).await;
        assert!(matches!(statuses[..], [405]), "{method}: {statuses:?}");
    }
    assert_eq!(recorded.text(), "");
}

#[tokio::test(start_paused = true)]
async fn what_is_served_reaches_the_provider_as_one_request_with_one_length_and_line_ends_as_they_should_be() {
    let n = JSON.len();
    for (what, bytes) in [
        ("bare line feeds", post(&format!("host: a\r\ncontent-length: {n}\r\n"), "").replace("\r\n", "\n") + JSON),
        ("chunks", chunked(&format!("{n:X};q=\"1\"\r\n{JSON}\r\n0\r\nhost: evil\r\n\r\n"))),
        ("chunks with leading zeros", chunked(&format!("000{n:x}\r\n{JSON}\r\n000\r\n\r\n"))),
        ("spaces around a value", post(&format!("host: \t a \t\r\ncontent-length: \t{n} \r\n"), JSON)),
    ] {
        let world = World::new();
        let recorded = Recorded::of(&world);
        let (statuses, _) = said(&world, &bytes).await;
        assert_eq!(statuses, [200], "{what}");
        let text = recorded.text();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.matches('\n').count(), head.matches("\r\n").count(), "{what}: {head}");
        assert_eq!(head.to_ascii_lowercase().matches("content-length:").count(), 1, "{what}");
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding") && !text.contains("evil"), "{what}: {head}");
        assert_eq!(body, JSON.replace("solo", "alpha-fast-1"), "{what}");
    }
}
