//! HTTP/2 in memory, with the real stack behind it. Most of it is written frame by frame, because client libraries refuse
//! to be as wrong as attackers are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};
use weighbridge::server::limits::ConnectionLimits;
use weighbridge::telemetry::labels::ConnectionEnd;

use crate::harness::frames::*;
use crate::harness::*;

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = r#"{"model":"duo","messages":[{"role":"user","content":"hello there"}]}"#;

async fn client(world: &World) -> SendRequest<Full<Bytes>> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(world.raw().0)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn over_http2(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    *request.uri_mut() = format!("http://proxy.test{}", request.uri()).parse().unwrap();
    request.headers_mut().remove("host");
    request
}

async fn frames(world: &World) -> Frames<DuplexStream> {
    Frames::hello(world.raw().0, &[]).await
}

/// A whole request; what `edit` does to the fields, and this body.
fn request(stream: u32, body: &[u8], edit: impl FnOnce(&mut Fields)) -> Vec<u8> {
    let mut fields = post_fields(CHAT, SHOP, body.len());
    edit(&mut fields);
    let head = frame(HEADERS, END_HEADERS, stream, &block(&fields));
    [head, frame(DATA, END_STREAM, stream, body)].concat()
}

/// Providers that read and never answer: how many requests they read, and how many connections they still have.
#[derive(Clone, Default)]
struct Hanging {
    asked: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Hanging {
    fn of(world: &World) -> Self {
        let seen = Self::default();
        for provider in LLMS {
            let seen = seen.clone();
            let link = peer(move |mut io| {
                let seen = seen.clone();
                async move {
                    seen.open.fetch_add(1, Ordering::SeqCst);
                    let asked = !read_request(&mut io).await.is_empty();
                    seen.asked.fetch_add(usize::from(asked), Ordering::SeqCst);
                    let _ = io.read(&mut [0; 16]).await;
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                }
            });
            world.net.always(provider, link);
        }
        seen
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

fn set(fields: &mut Fields, name: &str, value: &[u8]) {
    fields.iter_mut().find(|(known, _)| *known == name).unwrap().1 = value.to_vec();
}

fn add<'a>(fields: &mut Fields<'a>, name: &'a str, value: &[u8]) {
    fields.push((name, value.to_vec()));
}

fn add_first<'a>(fields: &mut Fields<'a>, name: &'a str, value: &[u8]) {
    fields.insert(0, (name, value.to_vec()));
}

fn remove(fields: &mut Fields, name: &str) {
    fields.retain(|(known, _)| *known != name);
}

#[tokio::test(start_paused = true)]
async fn http2_by_prior_knowledge_is_served_beside_http1_and_many_at_a_time() {
    let world = World::new();
    let sender = client(&world).await;
    let calls = (0..50).map(|_| {
        let mut sender = sender.clone();
        async move {
            let answer = sender.send_request(over_http2(chat_request(SHOP, &chat("duo")))).await.unwrap();
            let status = answer.status();
            (status, answer.into_body().collect().await.unwrap().to_bytes())
        }
    });
    for (status, body) in futures_util::future::join_all(calls).await {
        assert!(status == 200 && body.starts_with(b"{"), "{status}");
    }
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    assert_eq!(world.counts(), [51, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_over_http2_arrives_word_by_word_and_waits_for_its_reader() {
    let world = World::new();
    let mut sender = client(&world).await;
    let answer = sender.send_request(over_http2(chat_request(SHOP, &streamed("duo")))).await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let (mut body, mut text, mut pieces) = (answer.into_body(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        text.extend(frame.unwrap().into_data().unwrap());
        pieces += 1;
    }
    assert!(pieces > 5, "not collected first: {pieces}");
    assert_eq!(events(&String::from_utf8(text).unwrap()).last().unwrap(), "[DONE]");
}

/// F3: what would mean something else once it is written as HTTP/1. Refused by h2 with RST_STREAM or by us with a 400.
#[tokio::test(start_paused = true)]
async fn f3_what_would_change_its_meaning_on_the_way_to_http1_is_refused_and_reaches_nobody() {
    type Edit = fn(&mut Fields);
    let vectors: Vec<(&str, Edit)> = vec![
        ("a space in the path", |f| set(f, ":path", b"/v1/chat/completions HTTP/1.1")),
        ("a line end in the path", |f| set(f, ":path", b"/v1/models\r\nx: y")),
        ("a zero byte in the path", |f| set(f, ":path", b"/v1/chat/completions\0")),
        ("an empty path", |f| set(f, ":path", b"")),
        ("a path without a slash", |f| set(f, ":path", b"v1/chat/completions")),
        ("a star as path", |f| set(f, ":path", b"*")),
        ("a path that is an address", |f| set(f, ":path", b"http://evil.test/v1/chat/completions")),
        ("a carriage return in a value", |f| add(f, "x-a", b"b\rc")),
        ("a line feed in a value", |f| add(f, "x-a", b"b\nc: d")),
        ("both in a value", |f| add(f, "x-a", b"b\r\ntransfer-encoding: chunked")),
        ("a zero byte in a value", |f| add(f, "x-a", b"b\0c")),
        ("a colon in a name", |f| add(f, "x-a: b", b"c")),
        ("a line end in a name", |f| add(f, "x-a\r\nx-b", b"c")),
        ("a space in a name", |f| add(f, "x a", b"c")),
        ("an empty name", |f| add(f, "", b"c")),
        ("capitals in a name", |f| add(f, "X-A", b"c")),
        ("transfer-encoding", |f| add(f, "transfer-encoding", b"chunked")),
        ("connection", |f| add(f, "connection", b"close")),
        ("keep-alive", |f| add(f, "keep-alive", b"timeout=5")),
        ("proxy-connection", |f| add(f, "proxy-connection", b"keep-alive")),
        ("upgrade", |f| add(f, "upgrade", b"h2c")),
        ("te other than trailers", |f| add(f, "te", b"gzip")),
        ("a length that is too long", |f| set(f, "content-length", b"1000")),
        ("a length that is too short", |f| set(f, "content-length", b"3")),
        ("a second length", |f| add(f, "content-length", b"3")),
        ("a length with a plus", |f| set(f, "content-length", b"+68")),
        ("a list of lengths", |f| set(f, "content-length", b"68, 68")),
        ("a second authority", |f| add_first(f, ":authority", b"evil.test")),
        ("a second path", |f| add_first(f, ":path", b"/v1/models")),
        ("a second method", |f| add_first(f, ":method", b"GET")),
        ("a host that is not the authority", |f| add(f, "host", b"evil.test")),
        ("two hosts", |f| {
            add(f, "host", b"proxy.test");
            add(f, "host", b"proxy.test");
        }),
        ("a host with a path", |f| {
            remove(f, ":authority");
            add(f, "host", b"proxy.test/x");
        }),
        ("an authority with a user", |f| set(f, ":authority", b"user:secret@proxy.test")),
        ("an authority with a path", |f| set(f, ":authority", b"proxy.test/x")),
        ("an empty authority", |f| set(f, ":authority", b"")),
        ("no host at all", |f| remove(f, ":authority")),
        ("no method", |f| remove(f, ":method")),
        ("no path", |f| remove(f, ":path")),
        ("no scheme", |f| remove(f, ":scheme")),
        ("a status", |f| add_first(f, ":status", b"200")),
        ("an unknown pseudo field", |f| add_first(f, ":protocol2", b"x")),
        ("a pseudo field after the others", |f| add(f, ":authority", b"proxy.test")),
        ("an odd expectation", |f| add(f, "expect", b"y 100-continue")),
        ("a tunnel", |f| {
            set(f, ":method", b"CONNECT");
            remove(f, ":path");
            remove(f, ":scheme");
        }),
        ("a tunnel without a body", |f| {
            set(f, ":method", b"CONNECT");
            [":path", ":scheme", "content-length"].iter().for_each(|name| remove(f, name));
        }),
        ("a method with a space", |f| set(f, ":method", b"POST /x")),
        ("a method in small letters", |f| set(f, ":method", b"post")),
    ];
    for (what, edit) in vectors {
        let world = World::new();
        let mut frames = frames(&world).await;
        frames.send(&request(1, JSON.as_bytes(), edit)).await;
        let verdict = match frames.verdict(1).await {
            Some(verdict) => verdict,
            // For a tunnel that brings a body hyper hangs up without a word.
            None if what == "a tunnel" => continue,
            None => panic!("{what}: silence"),
        };
        assert!(verdict.status() != 200, "{what}: {verdict:?}");
        if verdict.kind == RST_STREAM {
            assert_eq!(verdict.code(), PROTOCOL_ERROR, "{what}");
        }
        assert_eq!((world.counts(), world.net.hosts().len()), ([0; 3], 0), "{what}");
        if verdict.kind != GOAWAY {
            frames.send(&request(3, JSON.as_bytes(), |_| ())).await;
            assert_eq!(frames.verdict(3).await.unwrap().status(), 200, "{what}: its neighbour is served");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f3_what_is_only_spelt_otherwise_reaches_the_provider_as_one_canonical_request() {
    type Edit = fn(&mut Fields);
    let vectors: Vec<(&str, Edit)> = vec![
        ("no length", |f| remove(f, "content-length")),
        ("a host that is the authority", |f| add(f, "host", b"proxy.test")),
        ("a host instead of it", |f| {
            remove(f, ":authority");
            add(f, "host", b"proxy.test");
        }),
        ("te: trailers", |f| add(f, "te", b"trailers")),
        ("cookies in crumbs", |f| {
            add(f, "cookie", b"a=b");
            add(f, "cookie", b"c=d");
        }),
        ("an expectation", |f| add(f, "expect", b"100-continue")),
    ];
    for (what, edit) in vectors {
        let world = World::new();
        let mut frames = frames(&world).await;
        frames.send(&request(1, JSON.as_bytes(), edit)).await;
        assert_eq!(frames.verdict(1).await.unwrap().status(), 200, "{what}");
        let seen = world.seen("alpha");
        assert_eq!(seen.len(), 1, "{what}");
        let names: Vec<_> = seen[0].headers.iter().map(|(name, _)| name.as_str()).collect();
        let allowed = ["host", "user-agent", "content-type", "accept-encoding", "authorization", "content-length"];
        assert!(names.len() == allowed.len() && names.iter().all(|name| allowed.contains(name)), "{what}: {names:?}");
        assert_eq!(String::from_utf8_lossy(&seen[0].body), JSON.replace("duo", "alpha-fast-1"), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn f3_trailers_of_a_request_go_nowhere() {
    let world = World::new();
    let mut frames = frames(&world).await;
    let trailers = block(&[("authorization", b"Bearer evil".to_vec()), ("x-a", b"b".to_vec())]);
    let bytes = [
        frame(HEADERS, END_HEADERS, 1, &block(&post_fields(CHAT, SHOP, JSON.len()))),
        frame(DATA, 0, 1, JSON.as_bytes()),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers),
    ];
    frames.send(&bytes.concat()).await;
    assert_eq!(frames.verdict(1).await.unwrap().status(), 200);
    let seen = &world.seen("alpha")[0];
    assert_eq!(seen.header("x-a"), None);
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {}", provider_key("alpha"))));
}

#[tokio::test(start_paused = true)]
async fn row_45_a_reset_stream_takes_its_call_along_and_leaves_its_neighbours() {
    for body in [chat("duo"), streamed("duo")] {
        let world = World::new();
        let hanging = Hanging::of(&world);
        let mut frames = frames(&world).await;
        frames.send(&request(1, body.to_string().as_bytes(), |_| ())).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!((hanging.asked(), hanging.open()), (1, 1));
        frames.send(&frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())).await;
        let since = Instant::now();
        while hanging.open() > 0 {
            assert!(since.elapsed() < Duration::from_millis(200), "the provider still sees a connection");
            sleep(Duration::from_millis(5)).await;
        }
        world.net.always("alpha", Link::Simulator);
        frames.send(&request(3, JSON.as_bytes(), |_| ())).await;
        assert_eq!(frames.verdict(3).await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn p5_a_body_that_stops_over_http2_ends_its_stream_and_not_its_connection() {
    let world = World::new();
    let mut frames = frames(&world).await;
    let started = Instant::now();
    let head = frame(HEADERS, END_HEADERS, 1, &block(&post_fields(CHAT, SHOP, JSON.len())));
    frames.send(&[head, frame(DATA, 0, 1, &JSON.as_bytes()[..10])].concat()).await;
    let verdict = loop {
        if let Some(frame) = frames.verdict(1).await {
            break frame;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "it waits for ever");
    };
    assert!((9..=15).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert!(verdict.kind == HEADERS && verdict.status() != 200, "{verdict:?}");
    frames.send(&request(3, JSON.as_bytes(), |_| ())).await;
    assert_eq!(frames.verdict(3).await.unwrap().status(), 200);
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn p5_a_preface_that_drips_is_closed_at_the_deadline_of_a_head() {
    let world = World::new();
    let (mut io, end) = world.raw();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let started = Instant::now();
    for byte in preface.iter().take(20) {
        let _ = io.write_all(&[*byte]).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(end.await.unwrap(), ConnectionEnd::HeadTimeout);
    assert!(started.elapsed() <= Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn t3_a_client_that_never_opens_its_window_loses_its_streams_after_the_write_stall() {
    let world = World::new();
    // SETTINGS_INITIAL_WINDOW_SIZE 0.
    let mut frames = Frames::hello(world.raw().0, &[(4, 0)]).await;
    let streams: Vec<u32> = (0..20).map(|at| at * 2 + 1).collect();
    for stream in &streams {
        frames.send(&request(*stream, streamed("duo").to_string().as_bytes(), |_| ())).await;
    }
    let started = Instant::now();
    let mut reset = 0;
    while reset < streams.len() && started.elapsed() < Duration::from_secs(60) {
        if let Some(Frame { kind: RST_STREAM, .. }) = frames.next().await {
            reset += 1;
        }
    }
    assert!(reset == streams.len() && started.elapsed() < Duration::from_secs(40), "{reset}, {:?}", started.elapsed());
    timeout(Duration::from_secs(5), async {
        while world.shared.gate.in_flight() > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("their calls end too");
}

#[tokio::test(start_paused = true)]
async fn t3_heads_that_are_small_on_the_wire_and_large_in_memory_are_refused() {
    let world = World::new();
    let mut frames = frames(&world).await;
    // One entry of the dynamic table, then one byte each: HPACK counts 32 bytes more for every field.
    let mut bomb = block(&post_fields(CHAT, SHOP, JSON.len()));
    bomb.extend([0x40, 6]);
    bomb.extend(b"cookie");
    bomb.push(100);
    bomb.extend([b'c'; 100]);
    bomb.extend([0xbe; 496]);
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    let verdict = frames.verdict(1).await.unwrap();
    assert_ne!(verdict.status(), 200, "{verdict:?}");
    assert_eq!(world.counts(), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn rule_45_more_fields_or_bytes_than_allowed_are_refused_over_http2_as_over_http1() {
    let world = World::with(&Plan {
        limits: ConnectionLimits { head_fields: 20, ..ConnectionLimits::default() },
        ..Plan::default()
    });
    let mut frames = frames(&world).await;
    let many = request(1, JSON.as_bytes(), |fields| (0..30).for_each(|_| add(fields, "x-a", b"b")));
    frames.send(&many).await;
    let verdict = frames.verdict(1).await.unwrap();
    assert!(verdict.kind == HEADERS && verdict.status() != 200, "{verdict:?}");
    let mut fields = post_fields(CHAT, SHOP, 0);
    add(&mut fields, "x-a", &[b'x'; 17_000]);
    let large = block(&fields);
    let (first, rest) = large.split_at(10_000);
    frames.send(&[frame(HEADERS, END_STREAM, 3, first), frame(CONTINUATION, END_HEADERS, 3, rest)].concat()).await;
    assert_ne!(frames.verdict(3).await.unwrap().status(), 200);
    frames.send(&request(5, JSON.as_bytes(), |_| ())).await;
    assert_eq!(frames.verdict(5).await.unwrap().status(), 200);
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn rule_45_no_more_than_a_hundred_streams_are_open_at_a_time() {
    let world = World::new();
    let hanging = Hanging::of(&world);
    let mut frames = frames(&world).await;
    for at in 0..101 {
        frames.send(&request(at * 2 + 1, JSON.as_bytes(), |_| ())).await;
    }
    let refused = frames.verdict(201).await.unwrap();
    assert!(refused.kind == RST_STREAM && refused.code() == 7, "REFUSED_STREAM: {refused:?}");
    sleep(Duration::from_millis(100)).await;
    assert_eq!(hanging.asked(), 100);
}

/// T1: a stream that is reset as soon as it is opened.
#[tokio::test(start_paused = true)]
async fn t1_streams_reset_as_fast_as_they_are_opened_end_the_connection() {
    let world = World::new();
    let hanging = Hanging::of(&world);
    let mut frames = frames(&world).await;
    let mut bytes = Vec::new();
    for at in 0..1_000 {
        bytes.extend(request(at * 2 + 1, JSON.as_bytes(), |_| ()));
        bytes.extend(frame(RST_STREAM, 0, at * 2 + 1, &CANCEL.to_be_bytes()));
    }
    frames.send(&bytes).await;
    let mut goaway = None;
    while let Some(frame) = frames.next().await {
        if frame.kind == GOAWAY {
            goaway = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
        }
    }
    assert_eq!(goaway, Some(0xb), "ENHANCE_YOUR_CALM");
    sleep(Duration::from_millis(200)).await;
    assert_eq!(hanging.open(), 0, "no call goes on for it");
    assert!(hanging.asked() <= 100, "{}", hanging.asked());
}

/// T1, the other way round: the client makes us reset its streams (MadeYouReset).
#[tokio::test(start_paused = true)]
async fn t1_streams_that_we_are_made_to_reset_end_the_connection() {
    let world = World::new();
    let hanging = Hanging::of(&world);
    let mut frames = frames(&world).await;
    let mut bytes = Vec::new();
    for at in 0..1_000 {
        bytes.extend(request(at * 2 + 1, JSON.as_bytes(), |_| ()));
        // A window update of nothing is a stream error.
        bytes.extend(frame(WINDOW_UPDATE, 0, at * 2 + 1, &0u32.to_be_bytes()));
    }
    frames.send(&bytes).await;
    let mut goaway = false;
    while let Some(frame) = frames.next().await {
        goaway |= frame.kind == GOAWAY;
    }
    assert!(goaway, "it may go on for ever");
    sleep(Duration::from_millis(200)).await;
    assert!(hanging.open() == 0 && hanging.asked() <= 200, "{}", hanging.asked());
}

/// T2, T4, T5: each is a connection error, and soon.
#[tokio::test(start_paused = true)]
async fn t2_t4_t5_frames_that_only_cost_end_the_connection() {
    let open = frame(HEADERS, END_HEADERS, 1, &block(&post_fields(CHAT, SHOP, JSON.len())));
    let begun = frame(HEADERS, 0, 1, &block(&post_fields(CHAT, SHOP, JSON.len())));
    let vectors: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("t2 continuation without end", begun.clone(), frame(CONTINUATION, 0, 1, &block(&[("x-a", vec![b'b'; 100])]))),
        ("t2 empty continuation without end", begun.clone(), frame(CONTINUATION, 0, 1, b"")),
        ("t2 something else in between", begun, frame(PING, 0, 0, &[0; 8])),
        ("t4 empty data without end", open.clone(), frame(DATA, 0, 1, b"")),
        (
            "t5 a stream with an even number",
            Vec::new(),
            frame(HEADERS, END_HEADERS, 2, &block(&post_fields(CHAT, SHOP, 0))),
        ),
        ("t5 a stream number that goes back", request(5, JSON.as_bytes(), |_| ()), request(3, JSON.as_bytes(), |_| ())),
        ("t5 data on a stream that was never opened", Vec::new(), frame(DATA, 0, 7, b"x")),
        ("t5 data on stream 0", Vec::new(), frame(DATA, 0, 0, b"x")),
        ("t5 a window beyond 2^31", Vec::new(), frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())),
        ("t5 a window update of nothing", Vec::new(), frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("t5 a setting that cannot be", Vec::new(), frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("t5 settings of an odd length", Vec::new(), frame(SETTINGS, 0, 0, &[0, 4, 0])),
        ("t5 a ping of an odd length", Vec::new(), frame(PING, 0, 0, &[0; 7])),
        ("t5 a frame larger than allowed", Vec::new(), frame(DATA, 0, 1, &[0; 20_000])),
        ("t5 a promise", Vec::new(), frame(5, END_HEADERS, 1, &[0; 8])),
    ];
    for (what, first, again) in vectors {
        let world = World::new();
        let (io, end) = world.raw();
        let mut frames = Frames::hello(io, &[]).await;
        frames.send(&first).await;
        let mut sent = 0usize;
        'abuse: while !end.is_finished() && sent < 100_000 {
            frames.send(&again).await;
            sent += 1;
            tokio::task::yield_now().await;
            while let Ok(Some(frame)) = timeout(Duration::ZERO, frames.next()).await {
                if frame.kind == GOAWAY {
                    break 'abuse;
                }
            }
        }
        let ended = timeout(Duration::from_secs(20), end).await.unwrap_or_else(|_| panic!("{what}: still open"));
        assert!(sent < 100_000, "{what}: {sent} frames were taken, {ended:?}");
        assert!(world.counts()[0] <= 1, "{what}");
    }
}
