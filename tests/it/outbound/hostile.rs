//! Providers that frame their answers as an attacker would (R1 to R12): a test each. Before content another provider
//! answers; after it the caller's stream ends in an error and never looks complete. A connection on which that happened is
//! not used again, so nothing left on it becomes somebody else's answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use crate::harness::forms::chunk;
use crate::harness::*;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const WORD: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"ALPHA\"}}]}\n\n";

fn answer(content: &str) -> String {
    format!(
        r#"{{"id":"x","object":"chat.completion","model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}"}},"finish_reason":"stop"}}]}}"#
    )
}

/// A provider that says this to each connection's first request and keeps the connection open; how many requests it read.
fn keeps(world: &World, reply: impl Into<Vec<u8>>) -> Arc<AtomicUsize> {
    let (reply, read): (Arc<[u8]>, _) = (reply.into().into(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&read);
    let link = peer(move |mut io| {
        let (reply, counted) = (Arc::clone(&reply), Arc::clone(&counted));
        async move {
            while !read_request(&mut io).await.is_empty() {
                counted.fetch_add(1, Ordering::SeqCst);
                if io.write_all(&reply).await.is_err() {
                    return;
                }
            }
        }
    });
    world.net.always("alpha", link);
    read
}

/// A provider that says this and hangs up.
fn hangs_up(world: &World, reply: impl Into<Vec<u8>>) {
    world.net.always("alpha", says(reply));
}

/// Whole and streamed: another provider answers, nothing of the first one's is seen, and it is asked on a new connection.
async fn is_passed_over(what: &str, prepare: impl Fn(&World)) {
    for body in [chat("duo"), streamed("duo")] {
        let world = World::new();
        prepare(&world);
        for asked in 1..=2 {
            let answer = world.chat(&body).await;
            answer.assert_served("beta", 2);
            assert!(!answer.text().contains("ALPHA"), "{what}: {}", answer.text());
            assert_eq!(world.net.dialled("alpha"), asked, "{what}: a new connection each time");
        }
        world.assert_idle();
    }
}

/// After content there is no way back: the caller's stream ends in one error, is never complete, and nobody else is asked.
async fn is_cut_off(what: &str, after: &'static [u8]) {
    let world = World::new();
    let link = peer(move |mut io| async move {
        read_request(&mut io).await;
        io.write_all(&[EVENTS.as_bytes(), &chunk(WORD.as_bytes())].concat()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let _ = io.write_all(after).await;
    });
    world.net.always("alpha", link);
    let text = world.chat(&streamed("duo")).await.text();
    assert!(text.contains("ALPHA") && text.contains("\"error\"") && !text.contains("[DONE]"), "{what}: {text}");
    assert!(!text.contains("\"finish_reason\":\"stop\"") && world.seen("beta").is_empty(), "{what}: {text}");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn r1_both_a_length_and_a_coding_are_no_answer() {
    let (body, evil) = (answer("ALPHA"), answer("ALPHA-EVIL"));
    let hidden = format!("{HEAD}content-length: {}\r\n\r\n{evil}", evil.len());
    let chunks = [chunk(body.as_bytes()), b"0\r\n\r\n".to_vec()].concat();
    for fields in [
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n", chunks.len() + hidden.len()),
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n".to_owned(),
    ] {
        let reply = [HEAD.as_bytes(), fields.as_bytes(), &chunks, hidden.as_bytes()].concat();
        is_passed_over(&fields, |world| drop(keeps(world, reply.clone()))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r2_two_lengths_are_no_answer() {
    let body = answer("ALPHA");
    let two = |second: usize| format!("{HEAD}content-length: {}\r\ncontent-length: {second}\r\n\r\n{body}", body.len());
    is_passed_over("two lengths", |world| drop(keeps(world, two(3)))).await;
    is_passed_over("two lengths in one", |world| {
        drop(keeps(world, format!("{HEAD}content-length: {}, 3\r\n\r\n{body}", body.len())));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn r3_a_body_shorter_than_its_length_is_no_answer() {
    let body = answer("ALPHA");
    is_passed_over("a short body", |world| {
        hangs_up(world, format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len() + 10));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn r4_chunks_without_a_last_one_are_no_answer() {
    let cut = [HEAD.as_bytes(), b"transfer-encoding: chunked\r\n\r\n", &chunk(answer("ALPHA").as_bytes())].concat();
    is_passed_over("no last chunk", |world| hangs_up(world, cut.clone())).await;
    is_cut_off("no last chunk", b"").await;
}

#[tokio::test(start_paused = true)]
async fn r5_a_chunk_size_that_is_none_is_no_answer() {
    for size in ["xyz\r\n", "-1\r\n", "0x5\r\n", "11111111111111111\r\n", "5\nhello\r\n"] {
        let begin = format!("{HEAD}transfer-encoding: chunked\r\n\r\n{size}");
        is_passed_over(size, |world| drop(keeps(world, begin.clone()))).await;
        is_cut_off(size, size.as_bytes()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r6_bytes_behind_an_answer_never_become_the_next_ones() {
    let (body, evil) = (answer("ALPHA"), answer("ALPHA-EVIL"));
    let whole = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    let extra = format!("{HEAD}content-length: {}\r\n\r\n{evil}", evil.len());
    for behind in [extra.as_str(), "x", "\r\n\r\nHTTP/1.1 500 No\r\n\r\n"] {
        let world = World::new();
        keeps(&world, format!("{whole}{behind}"));
        for asked in 1..=4 {
            let answer = world.chat(&chat("duo")).await;
            assert_eq!(
                (answer.status, answer.header("wb-provider"), answer.header("wb-attempts")),
                (200, "alpha", "1")
            );
            assert!(!answer.text().contains("EVIL"), "{behind}");
            assert_eq!(world.net.dialled("alpha"), asked, "{behind}: a poisoned connection is used again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r7_ten_thousand_interim_responses_are_no_answer() {
    for interim in ["HTTP/1.1 103 Early Hints\r\nx-a: ALPHA\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        is_passed_over(interim, |world| hangs_up(world, interim.repeat(10_000))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r8_a_body_where_there_may_be_none_is_no_answer_and_stays_behind() {
    let evil = answer("ALPHA-EVIL");
    for status in ["204 No Content", "304 Not Modified"] {
        is_passed_over(status, |world| {
            drop(keeps(world, format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{evil}", evil.len())));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn r9_a_head_without_end_is_no_answer() {
    is_passed_over("a field of a megabyte", |world| {
        hangs_up(world, format!("{HEAD}x-a: {}\r\ncontent-length: 0\r\n\r\n", "b".repeat(1 << 20)));
    })
    .await;
    let fields: String = (0..10_000).map(|at| format!("x-{at}: b\r\n")).collect();
    is_passed_over("10,000 fields", |world| hangs_up(world, format!("{HEAD}{fields}content-length: 0\r\n\r\n"))).await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_status_that_is_none_is_no_answer() {
    let body = answer("ALPHA");
    for line in [
        "HTTP/1.1 99 Low",
        "HTTP/1.1 1000 High",
        "HTTP/1.1 200 OK\rX",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1",
        "HTTP/3.0 200 OK",
    ] {
        let reply = format!("{line}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        is_passed_over(line, |world| hangs_up(world, reply.clone())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r11_text_without_a_head_is_no_answer() {
    let body = answer("ALPHA");
    for text in ["<html>ALPHA</html>", &body, "ICY 200 OK\r\n\r\nALPHA"] {
        is_passed_over(text, |world| hangs_up(world, text)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r12_of_its_head_nothing_reaches_the_caller_that_is_not_on_the_list() {
    let body = answer("fine");
    let smuggled = "set-cookie: a=b\r\nconnection: x-secret, close\r\nx-secret: 7\r\nkeep-alive: timeout=5\r\nupgrade: h2c\r\n\
        trailer: x-late\r\nproxy-authenticate: Basic\r\nlocation: http://evil.test/\r\n";
    let whole = format!("{HEAD}{smuggled}content-length: {}\r\n\r\n{body}", body.len());
    let late = [HEAD.as_bytes(), smuggled.as_bytes(), b"transfer-encoding: chunked\r\n\r\n", &chunk(body.as_bytes())];
    let chunked = [&late.concat()[..], b"0\r\nx-late: 7\r\nset-cookie: c=d\r\n\r\n"].concat();
    for reply in [whole.into_bytes(), chunked] {
        let world = World::new();
        hangs_up(&world, reply);
        let raw = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SHOP}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{}",
            chat("duo").to_string().len(),
            chat("duo")
        );
        let text = world.exchange(raw.as_bytes()).await;
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK") && rest.contains("fine"), "{text}");
        let names: Vec<_> =
            head.lines().skip(1).filter_map(|line| line.split_once(':').map(|(name, _)| name)).collect();
        for name in
            ["set-cookie", "x-secret", "keep-alive", "upgrade", "trailer", "proxy-authenticate", "location", "x-late"]
        {
            assert!(!names.contains(&name) && !rest.contains("x-late"), "{name}: {text}");
        }
        let framed = names.iter().filter(|name| ["content-length", "transfer-encoding"].contains(name)).count();
        assert_eq!(framed, 1, "{head}");
    }
}
