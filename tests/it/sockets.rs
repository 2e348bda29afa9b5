//! What goes wrong on real connections (rows 2 to 5, 7, 20 and 21 of the fault matrix): resets, half-closed ends, silence
//! in every phase, SYNs without an answer, names without addresses, idle connections that close under a request.
//!
//! The in-memory tests say the same of pipes and know the time exactly; these say that sockets behave no worse, and look
//! at no clock. Limits are short only so that waiting for them is.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use weighbridge::upstream::breaker::State;

use crate::harness::sockets::{BlackHole, Dice, Entry, Leave, Peer, handshake, named, sockets};
use crate::harness::*;

/// Far more than anything here takes, on the slowest machine.
const EVER: Duration = Duration::from_secs(180);

const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const ROLE: &str =
    "data: {\"id\":\"s1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const WORD: &str = "data: {\"id\":\"s1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"half\"}}]}\n\n";

/// A world with these limits, whose simulated providers are quick.
fn world_of(limits: &str) -> World {
    let usual = r#"total = "30s", connect = "1s", first_content = "5s", idle = "10s""#;
    assert!(ROUTES.contains(usual));
    World::with(&Plan { routes: ROUTES.replace(usual, limits), pace: Duration::ZERO, ..Plan::default() })
}

/// Limits that are waited for: short, but not so short that a busy machine makes a quick provider a silent one.
fn impatient() -> World {
    world_of(r#"total = "30s", connect = "1500ms", first_content = "6s", idle = "6s""#)
}

/// What a provider does shows itself at once, unless it falls silent: then nothing but that is to be waited for.
fn as_patient_as_needed(leave: Leave) -> World {
    match leave {
        Leave::Silence => impatient(),
        _ => patient(),
    }
}

/// Limits that nothing here reaches, so that no answer but the one expected can come.
fn patient() -> World {
    world_of(r#"total = "60s", connect = "30s", first_content = "40s", idle = "40s""#)
}

fn chunk(bytes: &str) -> String {
    format!("{:x}\r\n{bytes}\r\n", bytes.len())
}

/// How far a provider goes before it leaves.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    /// It accepts the connection and no more.
    Accepted,
    /// It accepts a connection that is to become TLS, and never says hello.
    HelloHeard,
    /// It ends the TLS handshake.
    Secured,
    /// It reads the request.
    Asked,
    /// The same through TLS.
    AskedInSecret,
    /// It answers up to the end of the head.
    Headed,
    /// It answers up to the middle of a body, without content.
    Begun,
}

impl Stage {
    const ALL: [Self; 7] =
        [Self::Accepted, Self::HelloHeard, Self::Secured, Self::Asked, Self::AskedInSecret, Self::Headed, Self::Begun];

    fn link(self, peer: &Peer) -> Link {
        let secret = matches!(self, Self::HelloHeard | Self::Secured | Self::AskedInSecret);
        if secret { peer.tls_link() } else { peer.link() }
    }

    /// Goes as far, and returns what it leaves by.
    async fn reach(self, mut io: TcpStream, seen: Arc<AtomicUsize>) -> TcpStream {
        match self {
            Self::Accepted | Self::HelloHeard => io,
            Self::Secured => handshake(io).await.into_inner().0,
            Self::AskedInSecret => {
                let mut tls = handshake(io).await;
                count(&read_request(&mut tls).await, &seen);
                tls.into_inner().0
            }
            Self::Asked | Self::Headed | Self::Begun => {
                let request = read_request(&mut io).await;
                count(&request, &seen);
                let (head, half) = match request.contains("\"stream\":true") {
                    true => (EVENTS, chunk(ROLE)),
                    false => (WHOLE, "{\"choices\":[{\"message\":{\"content\":\"half".to_owned()),
                };
                match self {
                    Self::Headed => write(&mut io, head).await,
                    Self::Begun => write(&mut io, &format!("{head}{half}")).await,
                    _ => {}
                }
                io
            }
        }
    }
}

fn count(request: &str, seen: &AtomicUsize) {
    seen.fetch_add(usize::from(!request.is_empty()), Ordering::SeqCst);
}

/// The proxy may hang up in the middle, which is its right.
async fn write(io: &mut (impl AsyncWrite + Unpin), text: &str) {
    let _ = io.write_all(text.as_bytes()).await;
}

/// A provider that goes so far with every connection and then leaves like that, and how many requests it read.
async fn leaving(stage: Stage, leave: Leave) -> (Peer, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let peer = Peer::new(move |io| {
        let seen = Arc::clone(&counter);
        async move { leave.act(stage.reach(io, seen).await).await }
    });
    (peer.await, seen)
}

/// Both kinds of request survive it unseen where there is another provider, and are told where there is none.
async fn survived(stage: Stage, leave: Leave, model: &str, body: Value) {
    let what = format!("{leave:?} when {stage:?}, {model}, stream {}", body["stream"]);
    let (peer, seen) = leaving(stage, leave).await;
    let world = as_patient_as_needed(leave);
    world.net.always("alpha", stage.link(&peer));
    let answer = timeout(EVER, world.chat(&body)).await.expect(&what);
    let read = seen.load(Ordering::SeqCst);
    if model == "duo" {
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        answer.assert_served("beta", 2);
        assert_eq!((peer.taken(), world.seen("beta").len()), (1, 1), "{what}");
        let moved = world.metric("weighbridge_failovers_total", &["from=\"alpha/fast\"", "to=\"beta/fast\""]);
        assert!((moved - 1.0).abs() < f64::EPSILON, "{what}");
        assert!(read <= 1, "{what}: {read} requests");
    } else {
        assert!([502, 504].contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
        assert!(answer.openai_error().starts_with("upstream_"), "{what}");
        // Once more, if it was the connection and the budget allows.
        assert!(peer.taken() <= 2 && read <= 2, "{what}: {} connections, {read} requests", peer.taken());
    }
    timeout(EVER, peer.left_alone()).await.unwrap_or_else(|_| panic!("{what}: a connection is left"));
    world.assert_idle();
}

/// Every stage, all at once.
async fn survived_at_every_stage(leave: Leave) {
    let bodies = [("duo", chat("duo")), ("duo", streamed("duo")), ("solo", chat("solo")), ("solo", streamed("solo"))];
    let cases = Stage::ALL.iter().flat_map(|stage| bodies.iter().map(move |(model, body)| (*stage, *model, body)));
    join_all(cases.map(|(stage, model, body)| survived(stage, leave, model, body.clone()))).await;
}

/// Runs `test` and then waits until it has left no task behind.
async fn leaving_no_task(test: impl Future<Output = ()>) {
    let alive = || Handle::current().metrics().num_alive_tasks();
    let before = alive();
    test.await;
    let quiet = async {
        while alive() > before {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(EVER, quiet).await.is_ok(), "{} tasks before, {} after", before, alive());
}

#[tokio::test]
async fn row_2_a_reset_at_any_stage_is_invisible_and_never_a_success() {
    leaving_no_task(survived_at_every_stage(Leave::Reset)).await;
}

#[tokio::test]
async fn row_3_a_fin_at_any_stage_is_invisible_and_a_short_body_is_never_a_success() {
    leaving_no_task(survived_at_every_stage(Leave::Close)).await;
    leaving_no_task(survived_at_every_stage(Leave::HalfClose)).await;
}

#[tokio::test]
async fn row_5_silence_at_any_stage_ends_at_its_phases_limit_and_leaves_no_task_and_no_socket() {
    leaving_no_task(survived_at_every_stage(Leave::Silence)).await;
}

#[tokio::test]
async fn row_7_a_stream_that_is_cut_or_falls_silent_after_content_is_one_error_event() {
    join_all(Leave::ALL.map(|leave| async move {
        // It leaves once the client has its word, so that the word cannot be lost with the connection.
        let told = Arc::new(Notify::new());
        let waits = Arc::clone(&told);
        let peer = Peer::new(move |mut io| {
            let told = Arc::clone(&waits);
            async move {
                read_request(&mut io).await;
                write(&mut io, &format!("{EVENTS}{}", chunk(WORD))).await;
                told.notified().await;
                leave.act(io).await;
            }
        })
        .await;
        let world = as_patient_as_needed(leave);
        world.net.always("alpha", peer.link());
        let mut open = world.open(&streamed("duo")).await;
        let first = open.next().await.unwrap();
        told.notify_one();
        let rest = timeout(EVER, open.rest()).await.unwrap();
        let (text, code) = (
            format!("{first}{rest}"),
            match leave {
                Leave::Silence => "upstream_stalled",
                _ => "upstream_truncated",
            },
        );
        assert!(text.starts_with(WORD), "{leave:?}: {text}");
        let errors = events(&text).into_iter().filter(|event| event.starts_with("{\"error\"")).count();
        assert!(errors == 1 && text.contains(code), "{leave:?}: {text}");
        assert!(!text.contains("[DONE]") && !text.contains("\"stop\""), "{leave:?}: {text}");
        assert_eq!((peer.taken(), world.seen("beta").len()), (1, 0), "{leave:?}: nothing is switched after content");
        timeout(EVER, peer.left_alone()).await.unwrap();
        drop(open);
    }))
    .await;
}

#[tokio::test]
async fn row_4_a_port_that_answers_no_syn_costs_the_connect_limit_five_times_and_leaves_no_socket() {
    let hole = BlackHole::new();
    let Link::At(origin) = hole.link() else { panic!() };
    let before = sockets(&[origin.port]);
    let world = impatient();
    world.net.always("alpha", hole.link());
    for number in 0..8 {
        let answer = timeout(EVER, world.chat(&chat("duo"))).await.unwrap();
        let known = world.net.dialled("alpha");
        assert!(known <= 5, "{known}");
        answer.assert_served("beta", if number < 5 { 2 } else { 1 });
    }
    assert_eq!(world.breaker("alpha/fast"), State::Open);
    assert_eq!(sockets(&[origin.port]), before);
}

/// A provider that answers every request of every connection and keeps the connection, unless told to close it.
async fn obliging(at: &str, name: &'static str, keeps: bool) -> Peer {
    Peer::on(at, move |mut io| async move {
        let body = format!(r#"{{"id":"x","choices":[{{"message":{{"content":"{name}"}},"finish_reason":"stop"}}]}}"#);
        let reply = http_reply("200 OK", if keeps { "" } else { "connection: close\r\n" }, &body);
        while !read_request(&mut io).await.is_empty() {
            write(&mut io, &reply).await;
            if !keeps {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn row_20_a_name_that_cannot_be_resolved_is_invisible_where_there_is_another_provider() {
    for entry in [Entry::NoSuchName, Entry::Failure, Entry::Silence, Entry::Addresses(Vec::new())] {
        let world = impatient();
        world.net.book.write("alpha.names.test", entry);
        world.net.always("alpha", named("alpha.names.test", 80));
        for body in [chat("duo"), streamed("duo")] {
            timeout(EVER, world.chat(&body)).await.unwrap().assert_served("beta", 2);
        }
    }
}

#[tokio::test]
async fn row_20_a_name_known_before_goes_on_to_work_whatever_becomes_of_the_name_service() {
    let home: IpAddr = [127, 0, 0, 1].into();
    let peer = obliging("127.0.0.1:0", "known", false).await;
    let world = impatient();
    world.net.book.write("alpha.names.test", Entry::Addresses(vec![home]));
    world.net.always("alpha", named("alpha.names.test", peer.address.port()));
    let served = async |what: &str| {
        let answer = timeout(EVER, world.chat(&chat("duo"))).await.unwrap();
        assert_eq!((answer.said().as_str(), answer.header("wb-attempts")), ("known", "1"), "{what}");
    };
    served("at first").await;
    let broken = [
        ("no such name", Entry::NoSuchName),
        ("a failure", Entry::Failure),
        ("no address", Entry::Addresses(Vec::new())),
        ("silence", Entry::Silence),
    ];
    for (what, entry) in broken {
        world.net.book.write("alpha.names.test", entry);
        for _ in 0..3 {
            served(what).await;
        }
    }
    assert_eq!((peer.taken(), world.seen("beta").len(), world.breaker("alpha/fast")), (13, 0, State::Closed));
}

#[tokio::test]
async fn row_20_a_name_that_moves_is_followed_with_the_next_connection() {
    let here = obliging("127.0.0.1:0", "here", false).await;
    let there = obliging(&format!("127.0.0.2:{}", here.address.port()), "there", false).await;
    let world = impatient();
    world.net.always("alpha", named("alpha.names.test", here.address.port()));
    for number in 1..=6_u8 {
        let (last, name) = if number % 2 == 0 { (2, "there") } else { (1, "here") };
        world.net.book.write("alpha.names.test", Entry::Addresses(vec![[127, 0, 0, last].into()]));
        assert_eq!(world.chat(&chat("duo")).await.said(), name);
        assert_eq!(world.net.book.asked(), usize::from(number), "an answer is good for one connection");
    }
    // Of several addresses, one that refuses is passed over.
    let silent: IpAddr = [127, 0, 0, 3].into();
    world.net.book.write("alpha.names.test", Entry::Addresses(vec![silent, there.address.ip()]));
    assert_eq!(world.chat(&chat("duo")).await.said(), "there");
    assert_eq!((here.taken(), there.taken()), (3, 4));
}

#[tokio::test]
async fn row_20_while_a_connection_is_kept_nobody_is_asked_for_its_name() {
    let peer = obliging("127.0.0.1:0", "kept", true).await;
    let world = impatient();
    world.net.book.write("alpha.names.test", Entry::Addresses(vec![peer.address.ip()]));
    world.net.always("alpha", named("alpha.names.test", peer.address.port()));
    for _ in 0..50 {
        assert_eq!(world.chat(&chat("duo")).await.said(), "kept");
    }
    assert_eq!((world.net.book.asked(), peer.taken()), (1, 1));
}

/// A provider that answers well, and closes each connection after it was idle while 0 to 100 requests came over others, one
/// in four with a reset. By the clock, a busy machine would see every one of them closed.
async fn nervous(seen: &Arc<AtomicUsize>) -> Peer {
    let (seen, numbers) = (Arc::clone(seen), Arc::new(AtomicUsize::new(0)));
    let reply: Arc<str> =
        http_reply("200 OK", "", r#"{"id":"x","choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}"#)
            .into();
    Peer::new(move |mut io| {
        let (seen, reply, number) = (Arc::clone(&seen), Arc::clone(&reply), numbers.fetch_add(1, Ordering::SeqCst));
        async move {
            let mut dice = Dice::new(number as u64);
            // A connection that was just opened is not idle.
            let mut until = usize::MAX;
            loop {
                let others = async {
                    while seen.load(Ordering::SeqCst) < until {
                        sleep(Duration::from_millis(5)).await;
                    }
                };
                let asked = tokio::select! {
                    biased;
                    _ = io.readable() => true,
                    () = others => false,
                };
                if !asked {
                    let leave = if dice.roll(4) == 0 { Leave::Reset } else { Leave::Close };
                    return leave.act(io).await;
                }
                if read_request(&mut io).await.is_empty() {
                    return;
                }
                until = seen.fetch_add(1, Ordering::SeqCst) + 1 + dice.roll(101) as usize;
                write(&mut io, &reply).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn row_21_connections_that_close_when_they_like_cost_no_request_and_send_none_twice() {
    const CLIENTS: u64 = 100;
    const EACH: usize = 20;
    let seen = Arc::new(AtomicUsize::new(0));
    let peer = nervous(&seen).await;
    let world = patient();
    world.net.always("alpha", peer.link());
    let client = async |number| {
        let (mut client, mut dice) = (world.client().await, Dice::new(1_000 + number));
        for _ in 0..EACH {
            sleep(Duration::from_millis(dice.roll(50))).await;
            let answer = client.call(chat_request(SHOP, &chat("duo"))).await;
            assert_eq!((answer.status, answer.said().as_str()), (200, "ok"), "{}", answer.text());
            assert_eq!((answer.header("wb-provider"), answer.header("wb-attempts")), ("alpha", "1"));
        }
    };
    timeout(EVER, join_all((0..CLIENTS).map(client))).await.unwrap();
    let (asked, read) = (CLIENTS as usize * EACH, seen.load(Ordering::SeqCst));
    assert!(read >= asked && read - asked <= asked / 1_000, "{read} requests for {asked}");
    // Some were kept and used again, some had to be opened anew: otherwise nothing was tried.
    assert!((100..asked).contains(&peer.taken()), "{} connections", peer.taken());
    assert_eq!((world.breaker("alpha/fast"), world.seen("beta").len()), (State::Closed, 0));
    world.assert_idle();
}
