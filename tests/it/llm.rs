//! The LLM route as an application meets it: what it gets, what it is refused, and what of it travels on.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tower::{ServiceBuilder, service_fn};
use weighbridge::flight::arrival::Arrival;
use weighbridge::flight::error::CallError;
use weighbridge::flight::reply::Reply;
use weighbridge::gateway::pin::PinLayer;
use weighbridge::gateway::snapshot::Snapshot;
use weighbridge::layer::catch_panic::CatchPanicLayer;
use weighbridge::layer::record::{self, RecordLayer};
use weighbridge::layer::rescue::RescueLayer;
use weighbridge::layer::stamp::StampLayer;
use weighbridge::server::connection::serve;
use weighbridge::server::limits::ConnectionLimits;
use weighbridge::server::shutdown::ShutdownSignal;

use crate::harness::*;

const JSON: &str = r#"{"model":"duo","messages":[{"role":"user","content":"hello there"}]}"#;

/// A request as bytes: the line, these further header lines, the body.
fn raw(line: &str, headers: &str, body: &str) -> String {
    format!("{line}\r\nauthorization: Bearer {SHOP}\r\ncontent-type: application/json\r\n{headers}\r\n{body}")
}

fn raw_post(headers: &str, body: &str) -> String {
    raw("POST /v1/chat/completions HTTP/1.1", headers, body)
}

fn status_of(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").or(answer.strip_prefix("HTTP/1.0 ")).map_or(0, |rest| rest[..3].parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_answer_carries_our_headers_and_the_providers_body_untouched() {
    let world = World::new();
    for body in [chat("duo"), streamed("duo")] {
        let answer = world.chat(&body).await;
        answer.assert_served("alpha", 1);
        let headers = [
            ("wb-route", "duo"),
            ("wb-provider", "alpha"),
            ("wb-model", "alpha-fast-1"),
            ("wb-attempts", "1"),
            ("wb-cache", "bypass"),
            ("cache-control", "private, no-store"),
        ];
        for (name, value) in headers {
            assert_eq!(answer.header(name), value, "{name}");
        }
        assert!(answer.header("x-request-id").starts_with("req_"));
        assert!(answer.header("wb-upstream-request-id").starts_with("req_alpha_"));
        assert!(answer.header("wb-config").len() == 12 && answer.header("server-timing").contains("dur="));
        assert!(answer.header("wb-overhead-us").parse::<u64>().is_ok());
    }
    let answer = world.chat(&chat("duo")).await;
    // 2 words in at one dollar, 43 out at two, by the million.
    assert_eq!(answer.header("wb-cost"), "0.000088 USD");
    assert_eq!(answer.json()["usage"], json!({ "prompt_tokens": 2, "completion_tokens": 43, "total_tokens": 45 }));
    assert_eq!(answer.json()["system_fingerprint"], "fp_sandbox", "fields we do not know travel");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_we_do_not_know_of_a_request_travels_byte_for_byte() {
    let world = World::new();
    let body = "{ \"temperature\" : 1.00,\"model\":\"duo\", \"x\":{\"b\":1e0,\"a\":[1 ,2]},\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}]}";
    world.call(post("/v1/chat/completions", SHOP, body)).await.assert_served("alpha", 1);
    let seen = &world.seen("alpha")[0];
    assert_eq!(String::from_utf8_lossy(&seen.body), body.replace("\"duo\"", "\"alpha-fast-1\""));
    assert_eq!(seen.path, "/alpha/v1/chat/completions");
}

#[tokio::test(start_paused = true)]
async fn a_long_body_travels_byte_for_byte_but_for_the_model_whatever_stands_before_and_behind_it() {
    let world = World::new();
    let long = r#"x\u00e9 \" 1.50 "#.repeat(40_000);
    for (before, behind) in [
        (format!(r#"{{ "odd":"{long}","#), r#","messages":[{"role":"user","content":"hi"}]}"#.to_owned()),
        ("{".to_owned(), format!(r#","messages":[{{"role":"user","content":"{long}"}}],"n" : 1 }}"#)),
    ] {
        let asked = format!(r#"{before}"model": "duo"{behind}"#);
        world.call(post("/v1/chat/completions", SHOP, asked)).await.assert_served("alpha", 1);
        let sent = format!(r#"{before}"model": "alpha-fast-1"{behind}"#);
        let seen = world.seen("alpha");
        assert!(seen.last().is_some_and(|seen| seen.body == sent), "the provider saw something else");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_is_refused_in_openais_words_before_anybody_is_asked() {
    let world = World::new();
    let deep =
        |levels: usize| format!("{{\"model\":\"duo\",\"messages\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    let bodies: [(String, u16); 15] = [
        (String::new(), 400),
        ("{".to_owned(), 400),
        ("[]".to_owned(), 400),
        ("{\"model\":\"duo\"} {}".to_owned(), 400),
        ("\u{feff}{\"model\":\"duo\"}".to_owned(), 400),
        ("{\"messages\":[]}".to_owned(), 400),
        ("{\"model\":7,\"messages\":[]}".to_owned(), 400),
        ("{\"model\":\"duo\",\"stream\":\"yes\"}".to_owned(), 400),
        // S10: two readers might choose different ones.
        ("{\"model\":\"duo\",\"model\":\"solo\",\"messages\":[]}".to_owned(), 400),
        ("{\"model\":\"duo\",\"Model\":\"solo\",\"messages\":[]}".to_owned(), 400),
        ("{\"model\":\"duo\",\"\\u006dodel\":\"solo\",\"messages\":[]}".to_owned(), 400),
        (deep(64), 400),
        (deep(100_000), 400),
        ("{\"model\":\"dearest\",\"messages\":[]}".to_owned(), 404),
        ("{\"model\":\"gpt\\r\\nX-Evil: 1\",\"messages\":[]}".to_owned(), 404),
    ];
    for (body, status) in bodies {
        let answer = world.call(post("/v1/chat/completions", SHOP, body.clone())).await;
        assert_eq!(answer.status, status, "{} for {:.60}", answer.text(), body);
        answer.openai_error();
        assert!(!answer.text().contains("X-Evil") && !answer.headers.contains_key("x-evil"), "S1");
    }
    let unknown = world.chat(&chat("dearest")).await;
    assert_eq!(unknown.openai_error(), "model_not_found");
    assert_eq!(unknown.json()["error"]["param"], "model");
    let refused = world.call(chat_request(OFFICE, &chat("solo"))).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (403, Some("permission_error")));
    for (name, value) in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let mut request = chat_request(SHOP, &chat("duo"));
        request.headers_mut().insert(name, value.parse().unwrap());
        let answer = world.call(request).await;
        assert_eq!(answer.status, 415, "{name}");
        answer.openai_error();
    }
    assert_eq!((world.counts(), world.net.hosts().len()), ([0; 3], 0));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn errors_carry_our_headers_too() {
    let world = World::new();
    let answers = [
        world.chat(&chat("dearest")).await,
        world.call(chat_request("wb-nobody-knows-this-key", &chat("duo"))).await,
        world.call(get("/nowhere", SHOP)).await,
        world.call(post("/v1/risk/assessments", SHOP, "{}")).await,
    ];
    for answer in answers {
        for name in ["x-request-id", "wb-config", "wb-attempts", "wb-cache", "wb-overhead-us", "server-timing"] {
            assert!(!answer.header(name).is_empty(), "{name} of {}", answer.status);
        }
        assert_eq!((answer.header("cache-control"), answer.header("wb-attempts")), ("private, no-store", "0"), "G15");
    }
}

#[tokio::test(start_paused = true)]
async fn paths_and_methods_that_do_not_exist_say_so_in_openais_words() {
    let world = World::new();
    for path in [
        "/",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/v1/x/../models",
        "/v1/..%2fmodels",
        "/metrics",
        "/status.json",
        "/-/reload",
        "/v1/completion",
    ] {
        let answer = world.call(post(path, SHOP, JSON)).await;
        assert_eq!((answer.status, answer.openai_error().as_str()), (404, "unknown_path"), "{path}");
    }
    for method in ["GET", "PUT", "DELETE", "TRACE", "TRACK", "post", "QUERY"] {
        let request = Request::builder().method(method).uri("/v1/chat/completions").header("host", "proxy.test");
        let request = request.header("authorization", format!("Bearer {SHOP}")).body(Full::default()).unwrap();
        let answer = world.call(request).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "POST"), "{method}");
        answer.openai_error();
    }
    assert_eq!(world.net.hosts().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn p1_a_body_over_the_limit_is_refused_however_it_comes() {
    let world = World::with(&Plan::replacing("[limits]", "[limits]\nbody = \"64KiB\""));
    let exact = json!({ "model": "duo", "messages": [], "pad": "" }).to_string();
    let padded = exact.replace("\"pad\":\"\"", &format!("\"pad\":\"{}\"", "x".repeat(64 * 1024 - exact.len())));
    assert_eq!(padded.len(), 64 * 1024);
    world.call(post("/v1/chat/completions", SHOP, padded.clone())).await.assert_served("alpha", 1);
    let over = world.call(post("/v1/chat/completions", SHOP, padded.clone() + " ")).await;
    assert_eq!(over.status, 413);
    over.openai_error();

    // Declared: refused before a byte of it.
    let declared = world.exchange(raw_post("host: proxy.test\r\ncontent-length: 65537\r\n", "").as_bytes()).await;
    assert_eq!(status_of(&declared), 413, "{declared}");
    let half = padded.len() / 2;
    let (left, right) = (&padded[..half], &padded[half..]);
    let chunked = format!("{half:x}\r\n{left}\r\n{:x}\r\n{right} \r\n0\r\n\r\n", right.len() + 1);
    let chunked =
        world.exchange(raw_post("host: proxy.test\r\ntransfer-encoding: chunked\r\n", &chunked).as_bytes()).await;
    assert_eq!(status_of(&chunked), 413, "{chunked}");
    assert!(declared.contains("connection: close") && chunked.contains("connection: close"));
    assert_eq!(world.counts(), [1, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn ambiguous_framing_is_refused_and_reaches_nobody() {
    let length = format!("content-length: {}\r\n", JSON.len());
    let chunked = format!("{:x}\r\n{JSON}\r\n0\r\n\r\n", JSON.len());
    let host = |rest: &str| raw_post(&format!("host: proxy.test\r\n{length}{rest}"), JSON);
    let coded = |coding: &str| raw_post(&format!("host: proxy.test\r\n{coding}"), &chunked);
    let sized = |length: &str| raw_post(&format!("host: proxy.test\r\ncontent-length:{length}\r\n"), JSON);
    let cut = |body: &str| raw_post("host: proxy.test\r\ntransfer-encoding: chunked\r\n", body);
    let n = JSON.len();
    let vectors: Vec<(&str, String)> = vec![
        ("no host", raw_post(&length, JSON)),
        ("two hosts", raw_post(&format!("host: a\r\nhost: a\r\n{length}"), JSON)),
        ("a host with a path", raw_post(&format!("host: a/#@evil\r\n{length}"), JSON)),
        ("a host with a query", raw_post(&format!("host: x?\r\n{length}"), JSON)),
        ("an empty host", raw_post(&format!("host:\r\n{length}"), JSON)),
        (
            "absolute form, other host",
            raw("POST http://a/v1/chat/completions HTTP/1.1", &format!("host: b\r\n{length}"), JSON),
        ),
        ("identity, chunked", coded("transfer-encoding: identity, chunked\r\n")),
        ("gzip, chunked", coded("transfer-encoding: gzip, chunked\r\n")),
        ("chunked, chunked", coded("transfer-encoding: chunked, chunked\r\n")),
        ("chunked, identity", coded("transfer-encoding: chunked, identity\r\n")),
        ("xchunked", coded("transfer-encoding: xchunked\r\n")),
        ("vertical tab before chunked", coded("transfer-encoding: \x0bchunked\r\n")),
        ("two transfer-encodings", coded("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n")),
        ("chunked twice", coded("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n")),
        ("two lengths", raw_post(&format!("host: a\r\n{length}content-length: 3\r\n"), JSON)),
        ("a list of lengths", sized(&format!(" {n}, {n}"))),
        ("a plus", sized(&format!(" +{n}"))),
        ("a minus", sized(" -1")),
        ("no length at all", sized("")),
        ("a hexadecimal length", sized(" 0x10")),
        ("a length of two words", sized(" 3 a")),
        ("a length of 23 digits", sized(" 99999999999999999999999")),
        ("upgrade", host("upgrade: websocket\r\nconnection: upgrade\r\n")),
        ("odd expect", host("expect: y 100-continue\r\n")),
        ("a space before the colon", host("x-a : b\r\n")),
        ("a folded line", host("x-a: b\r\n c\r\n")),
        ("a line that begins with a space", host(" x-a: b\r\n")),
        ("an empty name", host(": b\r\n")),
        ("a zero byte", host("x-a: b\0c\r\n")),
        ("a bare carriage return", host("x-a: b\rc\r\n")),
        ("a later version", raw("POST /v1/chat/completions HTTP/1.2", &format!("host: a\r\n{length}"), JSON)),
        (
            "tabs in the request line",
            raw("POST\t/v1/chat/completions\tHTTP/1.1", &format!("host: a\r\n{length}"), JSON),
        ),
        ("HTTP/1.0 without length", raw("POST /v1/chat/completions HTTP/1.0", "host: a\r\n", JSON)),
        (
            "HTTP/1.0 in chunks",
            raw("POST /v1/chat/completions HTTP/1.0", "host: a\r\ntransfer-encoding: chunked\r\n", &chunked),
        ),
        ("GET with a body", raw("GET /v1/models HTTP/1.1", &format!("host: a\r\n{length}"), JSON)),
        ("a chunk size with 0x", cut(&format!("0x{n:x}\r\n{JSON}\r\n0\r\n\r\n"))),
        ("a chunk size with a plus", cut(&format!("+{n:x}\r\n{JSON}\r\n0\r\n\r\n"))),
        ("a chunk size after a space", cut(&format!(" {n:x}\r\n{JSON}\r\n0\r\n\r\n"))),
        ("a chunk size of 17 digits", cut(&format!("1{n:016x}\r\n{JSON}\r\n0\r\n\r\n"))),
        ("a chunk size ended by a line feed", cut(&format!("{n:x}\n{JSON}\r\n0\r\n\r\n"))),
        ("no line end after a chunk", cut(&format!("{n:x}\r\n{JSON}0\r\n\r\n"))),
    ];
    for (what, bytes) in vectors {
        let world = World::new();
        let (mut io, end) = world.raw();
        // A second request follows at once: whoever is confused by the first must not serve it.
        let bytes = bytes + &host("");
        tokio::io::AsyncWriteExt::write_all(&mut io, bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(std::time::Duration::from_secs(5), io.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!((400..500).contains(&status_of(&answer)), "{what}: {answer}");
        assert!(closed.is_ok(), "{what}: the connection goes on");
        drop((io, end));
        if what == "odd expect" {
            assert_eq!(status_of(&answer), 417);
        }
        let tolerated_next = usize::from(answer.matches("HTTP/1.1 ").count() > 1);
        assert_eq!((tolerated_next, world.counts(), world.net.hosts().len()), (0, [0; 3], 0), "{what}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_never_opened() {
    let world = World::new();
    let answer = world.exchange(raw("CONNECT evil.test:80 HTTP/1.1", "host: evil.test:80\r\n", "").as_bytes()).await;
    assert_eq!(status_of(&answer), 405, "{answer}");
    assert_eq!(world.net.hosts().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn both_lengths_at_once_never_smuggle_a_second_request() {
    let chunked = format!("{:x}\r\n{JSON}\r\n0\r\n\r\n", JSON.len());
    for headers in
        ["content-length: 5\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 5\r\n"]
    {
        let world = World::new();
        let first = raw_post(&format!("host: proxy.test\r\n{headers}"), &chunked);
        let second = raw_post(&format!("host: proxy.test\r\ncontent-length: {}\r\n", JSON.len()), JSON);
        let answer = world.exchange((first + &second).as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "closed after the first: {answer}");
        let seen = world.seen("alpha");
        assert!(seen.len() <= 1, "the second was never sent");
        for seen in seen {
            assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
            assert_eq!(
                (seen.header("transfer-encoding"), seen.body.len()),
                (None, JSON.len() + "alpha-fast-1".len() - 3)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tolerated_spellings_reach_the_provider_as_one_canonical_request() {
    let length = JSON.len();
    let half = length / 2;
    let (left, right) = JSON.split_at(half);
    let chunks = format!(
        "{half:x};ext=1\r\n{left}\r\n{:x} \r\n{right}\r\n0\r\nauthorization: Bearer evil\r\ncontent-length: 3\r\n\r\n",
        right.len()
    );
    let vectors = [
        (
            "bare line feeds",
            raw_post(&format!("host: a\r\ncontent-length: {length}\r\n"), "").replace("\r\n", "\n") + JSON,
        ),
        ("chunks with extensions and trailers", raw_post("host: a\r\ntransfer-encoding: chunked\r\n", &chunks)),
        ("an empty line first", format!("\r\n{}", raw_post(&format!("host: a\r\ncontent-length: {length}\r\n"), JSON))),
        (
            "the same length twice",
            raw_post(&format!("host: a\r\ncontent-length: {length}\r\ncontent-length: {length}\r\n"), JSON),
        ),
        (
            "absolute form",
            raw(
                "POST http://a:1/v1/chat/completions HTTP/1.1",
                &format!("host: a:1\r\ncontent-length: {length}\r\n"),
                JSON,
            ),
        ),
        ("expect", raw_post(&format!("host: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n"), JSON)),
    ];
    for (what, bytes) in vectors {
        let world = World::new();
        let answer = world.exchange(bytes.as_bytes()).await;
        assert!(answer.contains("HTTP/1.1 200 OK"), "{what}: {answer}");
        let seen = world.seen("alpha");
        assert_eq!(seen.len(), 1, "{what}");
        let names: Vec<_> = seen[0].headers.iter().map(|(name, _)| name.as_str()).collect();
        let allowed = ["host", "user-agent", "content-type", "accept-encoding", "authorization", "content-length"];
        assert_eq!(names.iter().collect::<BTreeSet<_>>(), allowed.iter().collect(), "{what}");
        assert_eq!(names.len(), allowed.len(), "{what}: no header twice");
        assert_eq!(seen[0].header("authorization"), Some(&*format!("Bearer {}", provider_key("alpha"))));
        assert_eq!(String::from_utf8_lossy(&seen[0].body), JSON.replace("duo", "alpha-fast-1"));
    }
}

#[tokio::test(start_paused = true)]
async fn f1_pipelined_requests_are_answered_in_order_up_to_the_first_bad_one() {
    let world = World::new();
    let good = raw_post(&format!("host: a\r\ncontent-length: {}\r\n", JSON.len()), JSON);
    let bad = raw_post(&format!("host: a\r\nhost: b\r\ncontent-length: {}\r\n", JSON.len()), JSON);
    let mut bytes = good.repeat(5);
    bytes.push_str(&bad);
    bytes.push_str(&good.repeat(5));
    let answer = world.exchange(bytes.as_bytes()).await;
    assert_eq!((answer.matches("HTTP/1.1 200 OK").count(), answer.matches("HTTP/1.1 400").count()), (5, 1));
    assert_eq!(world.counts(), [5, 0, 0], "nothing after the bad one reaches a provider");
}

#[tokio::test(start_paused = true)]
async fn s4_no_header_of_the_client_reaches_the_provider() {
    let world = World::new();
    let mut request = chat_request(SHOP, &chat("duo"));
    let hostile = [
        ("cookie", "session=CANARY"),
        ("proxy-authorization", "Basic CANARY"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-host", "evil.test"),
        ("forwarded", "for=1.2.3.4"),
        ("x-real-ip", "1.2.3.4"),
        ("x-tenant", "other"),
        ("x_tenant", "other"),
        ("x-user-id", "7"),
        ("te", "trailers"),
        ("connection", "authorization, x-tenant"),
        ("x-portkey-custom-host", "http://evil.test"),
        ("x-api-base", "http://evil.test"),
        ("accept-encoding", "gzip"),
        ("user-agent", "CANARY/1.0"),
        ("accept", "text/html"),
        ("origin", "http://evil.test"),
        ("idempotency-key", "k"),
        ("openai-organization", "org-evil"),
        ("x-stainless-lang", "js"),
        ("traceparent", "00-CANARY"),
    ];
    for (name, value) in hostile {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    world.call(request).await.assert_served("alpha", 1);
    let seen = &world.seen("alpha")[0];
    let names: BTreeSet<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    let allowed = ["host", "user-agent", "content-type", "accept-encoding", "authorization", "content-length"];
    assert_eq!(names, allowed.into_iter().collect());
    assert!(
        seen.headers.iter().all(|(_, value)| !value.contains("CANARY") || value.contains("sk-CANARY-alpha")),
        "{:?}",
        seen.headers
    );
    assert_eq!((seen.header("host"), seen.header("accept-encoding")), (Some("alpha.test"), Some("identity")));
}

#[tokio::test(start_paused = true)]
async fn g5_nothing_in_a_request_chooses_where_it_goes() {
    let world = World::new();
    let mut body = chat("duo");
    for field in ["api_base", "base_url", "custom_llm_provider", "api_key", "host", "url"] {
        body[field] = json!("http://evil.test/v1");
    }
    body["extra_headers"] = json!({ "authorization": "Bearer evil", "host": "evil.test" });
    world
        .call(post("/v1/chat/completions?api_base=http://evil.test", SHOP, body.to_string()))
        .await
        .assert_served("alpha", 1);
    assert_eq!(world.net.hosts(), ["alpha.test"]);
    let seen = &world.seen("alpha")[0];
    let sent: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(sent["api_base"], "http://evil.test/v1", "an unknown field is data");
    assert!(seen.authorization_ok && seen.path == "/alpha/v1/chat/completions");
}

#[tokio::test(start_paused = true)]
async fn s5_each_credential_goes_to_its_own_host_only() {
    let world = World::new();
    for number in 0..60 {
        let faults = ["status:500", "refuse", "status:429;retry-after=0", "empty", "unsigned", "cut:0"];
        world.faults("alpha", &[faults[number % faults.len()]]);
        if number % 3 == 0 {
            world.faults("beta", &["status:503"]);
        }
        let body = if number % 2 == 0 { chat("trio") } else { streamed("trio") };
        assert_eq!(world.chat(&body).await.status, 200);
        world.assess(&payment(&format!("T{number}"), "1.00")).await;
    }
    for provider in LLMS {
        let seen = world.seen(provider);
        assert!(!seen.is_empty());
        for seen in seen {
            assert!(seen.authorization_ok, "{provider} saw a strange key");
            assert_eq!(seen.header("host"), Some(&*format!("{provider}.test")));
        }
    }
    let known: BTreeSet<String> = world.net.hosts().into_iter().collect();
    assert!(known.is_subset(&["alpha", "beta", "gamma", "alipay"].map(|host| format!("{host}.test")).into()));
}

#[tokio::test(start_paused = true)]
async fn a_request_id_of_the_caller_is_kept_if_it_is_harmless() {
    let world = World::new();
    let with_id = async |id: &str| {
        let mut request = chat_request(SHOP, &chat("duo"));
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        world.call(request).await.header("x-request-id").to_owned()
    };
    for good in ["abc", "trace:1.2-3_4", &"x".repeat(128)] {
        assert_eq!(with_id(good).await, good);
    }
    for bad in ["a b", "a\"b", "{}", "", "a;b", &"x".repeat(129)] {
        let id = with_id(bad).await;
        assert!(id != bad && id.starts_with("req_"), "{bad:?} became {id:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_as_far_as_the_key_may_use_them() {
    let world = World::new();
    let ids = async |key: &str| -> Vec<String> {
        let list = world.call(get("/v1/models", key)).await;
        assert_eq!((list.status, list.json()["object"].as_str()), (200, Some("list")));
        list.json()["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(SHOP).await, ["duo", "kept", "solo", "trio"]);
    assert_eq!(ids(OFFICE).await, ["duo", "kept"]);
    let one = world.call(get("/v1/models/duo", OFFICE)).await;
    assert_eq!((one.status, &one.json()["id"]), (200, &json!("duo")));
    for hidden in ["/v1/models/solo", "/v1/models/nothing", "/v1/models/risk"] {
        let answer = world.call(get(hidden, OFFICE)).await;
        assert_eq!((answer.status, answer.openai_error().as_str()), (404, "model_not_found"), "{hidden}");
    }
    assert_eq!(world.net.hosts().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn http_2_by_prior_knowledge_serves_both_routes_at_once() {
    let world = World::new();
    let (io, _end) = world.raw();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = |path: &str, body: &Value| {
        let request =
            Request::post(format!("http://proxy.test{path}")).header("authorization", format!("Bearer {SHOP}"));
        request.body(Full::<Bytes>::from(body.to_string())).unwrap()
    };
    let mut asked = Vec::new();
    for number in 0..30 {
        asked.push(match number % 3 {
            0 => request("/v1/chat/completions", &chat("duo")),
            1 => request("/v1/chat/completions", &streamed("duo")),
            _ => request("/v1/risk/assessments", &payment(&format!("T{number}"), "88.13")),
        });
    }
    let answers = join_all(asked.into_iter().map(|request| {
        let mut sender = sender.clone();
        async move {
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            (head.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
        }
    }))
    .await;
    for (number, (status, text)) in answers.iter().enumerate() {
        let expected = ["\"finish_reason\":\"stop\"", "data: [DONE]", "\"action\":\"REVIEW\""][number % 3];
        assert!(*status == StatusCode::OK && text.contains(expected), "{number}: {text}");
    }
    drop(sender);
    driver.abort();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_33_a_panic_costs_one_request_and_says_nothing_of_itself() {
    let mut world = World::new();
    let metrics = Arc::clone(&world.metrics);
    let unrouted = metrics.route(&weighbridge::domain::id::RouteId::new("none"));
    let panics_at = |arrival: Arrival<Arc<Snapshot>, Incoming>| async move {
        assert!(arrival.head.uri.path() != "/panic", "CANARY");
        Err::<Reply, CallError>(CallError::NotFound)
    };
    let service = ServiceBuilder::new()
        .layer(PinLayer(Arc::clone(&world.live)))
        .layer(RecordLayer(record::Params {
            log: world.shared.log.clone(),
            unrouted,
            recent: Arc::default(),
            spans: Arc::clone(&world.shared.spans),
        }))
        .layer(StampLayer)
        .layer(RescueLayer)
        .layer(CatchPanicLayer { metrics })
        .service(service_fn(panics_at));
    let service = ServiceBuilder::new().map_err(|never: Infallible| match never {}).service(service);
    let (near, far) = tokio::io::duplex(PIPE);
    let server = tokio::spawn(serve(far, service, ConnectionLimits::default(), ShutdownSignal::never()));
    let mut client = Client::over(near).await;
    let broken = client.call(get("/panic", SHOP)).await;
    assert_eq!((broken.status, broken.openai_error().as_str()), (500, "internal"));
    assert!(!broken.text().contains("CANARY") && broken.header("x-request-id").starts_with("req_"));
    assert_eq!(client.call(get("/fine", SHOP)).await.status, 404, "the same connection goes on");
    drop(client);
    server.await.unwrap();
    let panics = world.metric("weighbridge_panics_total", &[]);
    assert!((panics - 1.0).abs() < f64::EPSILON);
    let log = world.log();
    assert_eq!((&log[0]["outcome"], &log[0]["status"], log.len()), (&json!("error"), &json!(500), 2), "{log:?}");
}
