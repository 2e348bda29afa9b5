//! Streams after their commit point: relayed byte for byte, ended honestly, and never read faster than the client reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};
use weighbridge::telemetry::labels::ConnectionEnd;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

/// A provider's answer up to its first content.
const BEGIN: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(bytes: &str) -> String {
    format!("{:x}\r\n{bytes}\r\n", bytes.len())
}

fn word(text: &str) -> String {
    format!("data: {{\"id\":\"s1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// A provider that streams these events, each in a chunk of its own, and ends the body well.
fn streams(events: &[&str]) -> Link {
    let body: String = events.iter().map(|event| chunk(event)).collect();
    says(format!("{BEGIN}{body}0\r\n\r\n"))
}

/// Fails unless the stream shows content, then exactly one error event of this code, and nothing that looks complete.
fn assert_ended_by(text: &str, code: &str, id: &str) {
    let events = events(text);
    let errors: Vec<Value> = events
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter(|event| event.get("error").is_some())
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    let error = &errors[0]["error"];
    assert_eq!((&error["code"], &error["request_id"]), (&json!(code), &json!(id)), "{text}");
    assert!(error["message"].is_string() && error["type"].is_string());
    assert!(events.last().unwrap().contains("\"error\""), "the error is the last event: {text}");
    assert!(!said(&events).is_empty(), "content came before: {text}");
    assert!(!text.contains("[DONE]") && !text.contains("\"finish_reason\":\"stop\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn row_7_a_cut_after_content_is_one_error_event_and_never_looks_complete() {
    for fault in ["cut:1", "cut:3"] {
        let world = World::new();
        world.fault("alpha", fault);
        let answer = world.chat(&streamed("duo")).await;
        assert_eq!((answer.status, answer.header("wb-provider")), (200, "alpha"));
        assert_ended_by(&answer.text(), "upstream_truncated", answer.header("x-request-id"));
        assert!(answer.took < Duration::from_secs(1));
        assert_eq!(world.counts(), [1, 0, 0], "there is no way back after content");
        let cut = world.metric("weighbridge_stream_outcomes_total", &["outcome=\"truncated\""]);
        assert!((cut - 1.0).abs() < f64::EPSILON);
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn row_7_a_stall_after_content_is_one_error_event_within_the_idle_limit() {
    let world = World::new();
    world.fault("alpha", "stall:3");
    let answer = world.chat(&streamed("duo")).await;
    assert_ended_by(&answer.text(), "upstream_stalled", answer.header("x-request-id"));
    assert!((10..11).contains(&answer.took.as_secs()), "{:?}", answer.took);
    let idle = world.metric("weighbridge_stream_outcomes_total", &["outcome=\"idle\""]);
    assert!((idle - 1.0).abs() < f64::EPSILON);
    sleep(Duration::from_millis(10)).await;
    assert!(world.seen("alpha")[0].cancelled, "the stalled connection is closed");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_7_an_orderly_end_without_the_terminal_event_is_an_error_too() {
    let world = World::new();
    world.net.always("alpha", streams(&[&word("half")]));
    let answer = world.chat(&streamed("duo")).await;
    assert_ended_by(&answer.text(), "upstream_truncated", answer.header("x-request-id"));
    let finished = "data: {\"id\":\"s1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
    world.net.always("alpha", streams(&[&word("half"), finished]));
    let answer = world.chat(&streamed("duo")).await;
    assert_ended_by(&answer.text(), "upstream_truncated", answer.header("x-request-id"));
}

#[tokio::test(start_paused = true)]
async fn an_error_event_in_mid_stream_becomes_our_one_error_event() {
    let errors = [
        "data: {\"error\":{\"message\":\"CANARY broke\",\"type\":\"server_error\",\"code\":500}}\n\n",
        "event: error\ndata: {\"error\":{\"message\":\"CANARY broke\"}}\n\n",
    ];
    for error in errors {
        let world = World::new();
        world.net.always("alpha", streams(&[&word("some"), error, &word("more"), "data: [DONE]\n\n"]));
        let answer = world.chat(&streamed("duo")).await;
        assert_ended_by(&answer.text(), "upstream_error", answer.header("x-request-id"));
        assert!(!answer.text().contains("more") && !answer.text().contains("CANARY"), "{}", answer.text());
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_stream_with_one_error_event() {
    let world =
        World::with(&Plan { pace: Duration::from_millis(300), ..Plan::replacing("total = \"30s\"", "total = \"6s\"") });
    let answer = world.chat(&streamed("solo")).await;
    assert_ended_by(&answer.text(), "deadline_exceeded", answer.header("x-request-id"));
    assert!(answer.took <= Duration::from_millis(6_010), "{:?}", answer.took);

    let mut request = chat_request(SHOP, &streamed("duo"));
    request.headers_mut().insert("wb-timeout-ms", "1000".parse().unwrap());
    let answer = world.call(request).await;
    assert_ended_by(&answer.text(), "deadline_exceeded", answer.header("x-request-id"));
    assert!(answer.took <= Duration::from_millis(1_010), "{:?}", answer.took);
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
    sleep(Duration::from_millis(10)).await;
    assert!(world.seen("alpha").iter().all(|seen| seen.cancelled));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_8_what_the_provider_sends_arrives_byte_for_byte() {
    let events = [
        "data: {\"id\":\"s1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        &word("h\u{e9}llo \u{1f600} \\\"error\\\" \\\"usage\\\" [DONE]"),
        "id: 7\nevent: message\ndata:{\"choices\":[{\"delta\":{\"content\":\"no space\"}}],\"x_vendor\":{\"b\":1.0,\"a\":1e0}}\n\n",
        "data: {\"choices\":[{\"delta\":\ndata: {\"content\":\"two lines\"}}]}\n\n",
        "data: {\"this is\": not json\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"crlf\"}}]}\r\n\r\n",
        "retry: 10\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
        "data: [DONE]\n\n",
    ];
    let text = events.concat();
    let mut body = streamed("duo");
    body["stream_options"] = json!({ "include_usage": true });
    for size in [1, 7, 64, text.len()] {
        let world = World::new();
        world.net.always("alpha", raw_chunks(&text, size));
        let answer = world.chat(&body).await;
        assert_eq!(answer.text(), text, "in chunks of {size}");
        let tokens = world.metric("weighbridge_tokens_total", &["provider=\"alpha\""]);
        assert!((tokens - 7.0).abs() < f64::EPSILON, "{tokens}");
    }
    let world = World::new();
    world.net.always(
        "alpha",
        streams(&[": keep-alive\n\n", &word("one"), ": processing\n\n", &word("two"), "data: [DONE]\n\n"]),
    );
    let answer = world.chat(&body).await;
    assert_eq!(answer.text(), [word("one"), word("two"), "data: [DONE]\n\n".to_owned()].concat(), "comments stay here");
}

/// A provider that streams `text` in chunks of so many bytes, wherever that cuts.
fn raw_chunks(text: &str, size: usize) -> Link {
    let mut reply = BEGIN.as_bytes().to_vec();
    for part in text.as_bytes().chunks(size) {
        reply.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        reply.extend_from_slice(part);
        reply.extend_from_slice(b"\r\n");
    }
    reply.extend_from_slice(b"0\r\n\r\n");
    says(reply)
}

#[tokio::test(start_paused = true)]
async fn every_event_arrives_when_it_is_sent() {
    let world = World::new();
    let mut open = world.open(&streamed("duo")).await;
    let (started, mut arrivals) = (Instant::now(), Vec::new());
    while open.next().await.is_some() {
        arrivals.push(started.elapsed().as_millis());
    }
    arrivals.dedup();
    let expected: Vec<u128> = (0..arrivals.len()).map(|number| 20 * number as u128).collect();
    assert!(arrivals.len() > 20, "{arrivals:?}");
    let close = arrivals.iter().zip(&expected).all(|(came, sent)| came.abs_diff(*sent) <= arrivals.len() as u128);
    assert!(close, "{arrivals:?}");
}

#[tokio::test(start_paused = true)]
async fn usage_is_counted_always_and_shown_when_asked_for() {
    let world = World::new();
    let plain = world.chat(&streamed("duo")).await;
    plain.assert_served("alpha", 1);
    assert!(!plain.text().contains("usage"), "{}", plain.text());
    let asked: Value = serde_json::from_slice(&world.seen("alpha")[0].body).unwrap();
    assert_eq!(asked["stream_options"]["include_usage"], true, "we ask for ourselves");
    let counted = world.metric("weighbridge_tokens_total", &["provider=\"alpha\"", "type=\"output\""]);
    assert!(counted > 20.0, "{counted}");

    let mut body = streamed("duo");
    body["stream_options"] = json!({ "include_usage": true });
    let with = world.chat(&body).await;
    with.assert_served("alpha", 1);
    let usages = with.events().iter().filter(|event| event.contains("\"usage\":{")).count();
    assert_eq!(usages, 1, "{}", with.text());
    assert_eq!(with.header("content-type"), "text/event-stream; charset=utf-8");
    world.assert_idle();
}

/// A provider that streams words for ever and counts the bytes it could write.
fn endless(written: &Arc<AtomicUsize>) -> Link {
    let written = Arc::clone(written);
    peer(move |mut io: DuplexStream| {
        let written = Arc::clone(&written);
        async move {
            read_request(&mut io).await;
            io.write_all(BEGIN.as_bytes()).await.unwrap();
            let bytes = chunk(&word(&"x".repeat(900)));
            while io.write_all(bytes.as_bytes()).await.is_ok() {
                written.fetch_add(bytes.len(), Ordering::SeqCst);
            }
            written.store(usize::MAX, Ordering::SeqCst);
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_slows_the_provider_and_one_that_never_reads_is_dropped() {
    let world = World::with(&Plan { upstream_pipe: 1024, ..Plan::replacing("total = \"30s\"", "total = \"600s\"") });
    let written = Arc::new(AtomicUsize::new(0));
    world.net.always("alpha", endless(&written));
    let (mut io, end) = world.raw_with(1024);
    let body = streamed("solo").to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {SHOP}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    io.write_all((head + &body).as_bytes()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let early = written.load(Ordering::SeqCst);
    assert!((1..400 * 1024).contains(&early), "{early} bytes were read for a client that reads nothing");
    sleep(Duration::from_secs(20)).await;
    assert_eq!(written.load(Ordering::SeqCst), early, "nothing more is read");

    // Reading makes room again.
    let mut some = vec![0; 200 * 1024];
    io.read_exact(&mut some).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let later = written.load(Ordering::SeqCst);
    assert!(later > early && later < early + 400 * 1024, "{early} then {later}");

    sleep(Duration::from_secs(35)).await;
    assert_eq!(end.await.unwrap(), ConnectionEnd::WriteStall);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(written.load(Ordering::SeqCst), usize::MAX, "the provider's connection is closed");
    assert_eq!(world.breaker("alpha/fast"), State::Closed);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_45_a_client_that_leaves_takes_its_upstream_call_along_in_every_phase() {
    let phases = [
        ("before the headers", "stall", streamed("duo")),
        ("while content is awaited", "stall:0", streamed("duo")),
        ("in mid-stream", "stall:2", streamed("duo")),
        ("while words come", "unsigned", streamed("duo")),
        ("before a whole answer", "stall", chat("duo")),
        ("in the middle of a whole answer", "stall:0", chat("duo")),
    ];
    for (phase, fault, body) in phases {
        let mut world = World::new();
        world.fault("alpha", fault);
        // More than enough departures to open a breaker, were they failures.
        for _ in 0..8 {
            let left = tokio::time::timeout(Duration::from_millis(100), async {
                let mut open = world.open(&body).await;
                open.rest().await;
            });
            assert!(left.await.is_err(), "{phase}: the answer came whole");
            sleep(Duration::from_millis(200)).await;
        }
        let seen = world.seen("alpha");
        assert_eq!(seen.len(), 8, "{phase}");
        assert!(seen.iter().all(|seen| seen.cancelled), "{phase}: {seen:?}");
        assert_eq!((world.breaker("alpha/fast"), world.seen("beta").len()), (State::Closed, 0), "{phase}");
        let failed = world.metric("weighbridge_upstream_attempts_total", &["outcome=\"failed\""]);
        assert!(failed.abs() < f64::EPSILON, "{phase}: {failed}");
        world.assert_idle();
        let log = world.log();
        assert!(log.iter().all(|line| line["outcome"] == "client_gone"), "{phase}: {log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_45_a_client_that_leaves_while_sending_its_body_reaches_nobody() {
    let world = World::new();
    let (mut io, end) = world.raw();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: proxy.test\r\nauthorization: Bearer {SHOP}\r\n\
         content-type: application/json\r\ncontent-length: 500\r\n\r\n{{\"model\""
    );
    io.write_all(head.as_bytes()).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    drop(io);
    end.await.unwrap();
    assert_eq!((world.counts(), world.net.hosts().len()), ([0; 3], 0));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_all_there_at_once_is_relayed_whole() {
    let world = World::new();
    let words: Vec<String> = (0..2_000).map(|number| word(&number.to_string())).collect();
    let text = words.concat() + "data: [DONE]\n\n";
    world.net.always("alpha", says(format!("{BEGIN}{}0\r\n\r\n", chunk(&text))));
    assert_eq!(world.chat(&streamed("duo")).await.text(), text);
}

#[tokio::test(start_paused = true)]
async fn p4_an_event_without_end_is_given_up_before_and_after_content() {
    let line = format!("data: {}", "x".repeat(5 << 20));
    let world = World::new();
    world.net.always("alpha", streams(&[&line]));
    world.chat(&streamed("duo")).await.assert_served("beta", 2);
    let world = World::new();
    world.net.always("alpha", streams(&[&word("some"), &line, "\n\n", "data: [DONE]\n\n"]));
    let answer = world.chat(&streamed("duo")).await;
    assert_ended_by(&answer.text(), "upstream_truncated", answer.header("x-request-id"));
    let world = World::new();
    world.net.always("alpha", streams(&[&"data:\n".repeat(1_000_000)]));
    world.chat(&streamed("duo")).await.assert_served("beta", 2);
}
