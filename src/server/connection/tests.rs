use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use http::StatusCode;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tower::service_fn;

use super::*;
use crate::server::shutdown::Shutdown;

type TestBody = UnsyncBoxBody<Bytes, Infallible>;

const LIMITS: fn() -> ConnectionLimits = ConnectionLimits::default;
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn whole(text: &'static str) -> Response<TestBody> {
    Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync())
}

/// An endless body of 1 KiB frames.
fn endless() -> Response<TestBody> {
    let frame = || Ok(Frame::data(Bytes::from_static(&[b'x'; 1024])));
    Response::new(StreamBody::new(stream::iter(std::iter::repeat_with(frame))).boxed_unsync())
}

/// One frame, then silence for ever.
fn silent() -> Response<TestBody> {
    let frames = stream::unfold(true, |first| async move {
        if !first {
            pending::<()>().await;
        }
        Some((Ok(Frame::data(Bytes::from_static(b"first"))), false))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// Counts how many of it were made and not dropped.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Serves `answer` over a pipe that holds `buffer` bytes each way.
fn serve_with<A, F>(buffer: usize, signal: ShutdownSignal, answer: A) -> (DuplexStream, JoinHandle<ConnectionEnd>)
where
    A: FnMut(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<TestBody>> + Send + 'static,
{
    let (client, server) = duplex(buffer);
    let mut answer = answer;
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok(answer.await) }
    });
    (client, tokio::spawn(serve(server, service, LIMITS(), signal)))
}

fn serve_ok() -> (DuplexStream, JoinHandle<ConnectionEnd>) {
    serve_with(64 * 1024, ShutdownSignal::never(), |_| async { whole("ok") })
}

/// Reads until `text` has come.
async fn read_until(client: &mut DuplexStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        assert_ne!(client.read_buf(&mut read).await.unwrap(), 0, "closed after {:?}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

async fn http2(client: DuplexStream, window: u32) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window).initial_connection_window_size(1024 * 1024);
    let (sender, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request() -> Request<Empty<Bytes>> {
    Request::get("http://a/").body(Empty::new()).unwrap()
}

fn seconds(started: Instant) -> u64 {
    started.elapsed().as_millis().div_ceil(1_000).try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn p5_a_client_that_only_connects_is_closed_after_ten_seconds() {
    let started = Instant::now();
    let (_client, server) = serve_ok();
    assert_eq!((server.await.unwrap(), seconds(started)), (ConnectionEnd::HeadTimeout, 10));
}

#[tokio::test(start_paused = true)]
async fn p5_a_dripping_first_head_is_closed_ten_seconds_after_connecting() {
    let started = Instant::now();
    let (mut client, server) = serve_ok();
    let drip = tokio::spawn(async move {
        for byte in GET {
            sleep(Duration::from_secs(1)).await;
            client.write_all(&[*byte]).await.unwrap();
        }
    });
    assert_eq!((server.await.unwrap(), seconds(started)), (ConnectionEnd::HeadTimeout, 10));
    drip.abort();
}

#[tokio::test(start_paused = true)]
async fn p5_a_dripping_later_head_is_closed_ten_seconds_after_its_first_byte() {
    let (mut client, server) = serve_ok();
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "ok").await;
    sleep(Duration::from_secs(30)).await;
    let started = Instant::now();
    let drip = tokio::spawn(async move {
        for byte in GET {
            client.write_all(&[*byte]).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
    });
    assert_eq!((server.await.unwrap(), seconds(started)), (ConnectionEnd::HeadTimeout, 10));
    drip.abort();
}

#[tokio::test(start_paused = true)]
async fn p6_an_idle_connection_is_closed_after_its_keep_alive() {
    let (mut client, server) = serve_ok();
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        read_until(&mut client, "ok").await;
        sleep(Duration::from_secs(40)).await;
    }
    assert!(!server.is_finished());
    sleep(Duration::from_secs(21)).await;
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "closed in good order");
    drop(client);
    assert_eq!(server.await.unwrap(), ConnectionEnd::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_not_an_idle_connection() {
    let (mut client, server) = serve_with(1024, ShutdownSignal::never(), |_| async {
        sleep(Duration::from_secs(300)).await;
        whole("late")
    });
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "late").await;
    assert!(!server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn p5_a_client_that_stops_reading_is_closed_after_the_write_stall() {
    let (mut client, server) = serve_with(4 * 1024, ShutdownSignal::never(), |_| async { endless() });
    client.write_all(GET).await.unwrap();
    let started = Instant::now();
    assert_eq!((server.await.unwrap(), seconds(started)), (ConnectionEnd::WriteStall, 30));
}

#[tokio::test(start_paused = true)]
async fn p5_a_client_that_reads_slowly_is_served() {
    let (mut client, server) = serve_with(4 * 1024, ShutdownSignal::never(), |_| async { endless() });
    client.write_all(GET).await.unwrap();
    for _ in 0..20 {
        sleep(Duration::from_secs(25)).await;
        client.read_exact(&mut [0; 4 * 1024]).await.unwrap();
    }
    assert!(!server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn t3_one_http2_stream_that_is_not_read_is_reset_and_the_others_go_on() {
    let (client, server) = serve_with(64 * 1024, ShutdownSignal::never(), |request| async move {
        if request.uri().path() == "/endless" { endless() } else { whole("ok") }
    });
    let mut sender = http2(client, 1_000).await;
    let endless = Request::get("http://a/endless").body(Empty::new()).unwrap();
    let mut unread = sender.send_request(endless).await.unwrap().into_body();
    sleep(Duration::from_secs(29)).await;
    let other = sender.send_request(request()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(other.to_bytes(), "ok");
    sleep(Duration::from_secs(3)).await;
    let mut received = 0;
    let reset = loop {
        match unread.frame().await {
            Some(Ok(frame)) => received += frame.into_data().unwrap().len(),
            other => break other,
        }
    };
    assert!(matches!(reset, Some(Err(_))) && received < 100_000, "{received} bytes, then {reset:?}");
    assert_eq!(sender.send_request(request()).await.unwrap().status(), StatusCode::OK);
    assert!(!server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn t3_a_window_of_one_byte_does_not_make_us_let_go_of_whole_answers() {
    let held = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&held);
    let (client, server) = serve_with(64 * 1024, ShutdownSignal::never(), move |request| {
        let held = Alive::new(&count);
        async move {
            if request.uri().path() == "/" {
                return whole("ok");
            }
            let mut frames = vec![Ok(Frame::data(Bytes::from(vec![b'x'; 1024 * 1024])))];
            let frames = stream::poll_fn(move |_| {
                let _ = &held;
                Poll::Ready(frames.pop())
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
    });
    let mut sender = http2(client, 1).await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        let large = Request::get("http://a/large").body(Empty::new()).unwrap();
        unread.push(sender.send_request(large).await.unwrap());
    }
    sleep(Duration::from_secs(29)).await;
    assert_eq!(held.load(Ordering::SeqCst), 20, "they are still ours, and so the deadline's");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(held.load(Ordering::SeqCst), 0);
    assert_eq!(sender.send_request(request()).await.unwrap().status(), StatusCode::OK);
    assert!(!server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_large_answer_arrives_whole_over_http2() {
    let (client, _server) = serve_with(64 * 1024, ShutdownSignal::never(), |_| async {
        let whole = Full::new(Bytes::from((0..1_000_000_u32).map(|at| (at % 251) as u8).collect::<Vec<_>>()));
        Response::new(whole.boxed_unsync())
    });
    let mut sender = http2(client, 64 * 1024).await;
    let answer = sender.send_request(request()).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "1000000");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.len() == 1_000_000 && body.iter().enumerate().all(|(at, byte)| (at % 251) as u8 == *byte));
}

#[tokio::test(start_paused = true)]
async fn an_http2_stream_that_waits_for_us_is_not_a_stalled_one() {
    let (client, _server) = serve_with(64 * 1024, ShutdownSignal::never(), |_| async { silent() });
    let mut sender = http2(client, 64 * 1024).await;
    let mut body = sender.send_request(request()).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert!(timeout(Duration::from_secs(300), body.frame()).await.is_err(), "still open");
}

#[tokio::test(start_paused = true)]
async fn p6_an_idle_http2_connection_is_closed_after_its_keep_alive() {
    let (client, server) = serve_with(64 * 1024, ShutdownSignal::never(), |_| async { whole("ok") });
    let mut sender = http2(client, 64 * 1024).await;
    sender.send_request(request()).await.unwrap();
    let started = Instant::now();
    assert_eq!(server.await.unwrap(), ConnectionEnd::Idle);
    assert!((60..=61).contains(&seconds(started)), "{}", seconds(started));
}

#[tokio::test(start_paused = true)]
async fn row_45_a_client_that_leaves_drops_its_request_at_once() {
    let alive = Arc::new(AtomicUsize::new(0));
    let held = Arc::clone(&alive);
    let (mut client, server) = serve_with(1024, ShutdownSignal::never(), move |_| {
        let held = Alive::new(&held);
        async move {
            sleep(Duration::from_secs(600)).await;
            drop(held);
            whole("never")
        }
    });
    client.write_all(GET).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(alive.load(Ordering::SeqCst), 1);
    let left = Instant::now();
    drop(client);
    assert_eq!(server.await.unwrap(), ConnectionEnd::Closed);
    assert_eq!((alive.load(Ordering::SeqCst), left.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn row_45_a_client_that_leaves_drops_its_streamed_answer_at_once() {
    for over_http2 in [false, true] {
        let alive = Arc::new(AtomicUsize::new(0));
        let held = Arc::clone(&alive);
        let (mut client, server) = serve_with(64 * 1024, ShutdownSignal::never(), move |_| {
            let held = Alive::new(&held);
            async move {
                silent().map(|body| {
                    body.map_frame(move |frame| {
                        let _ = &held;
                        frame
                    })
                    .boxed_unsync()
                })
            }
        });
        let left = if over_http2 {
            let mut sender = http2(client, 64 * 1024).await;
            let mut body = sender.send_request(request()).await.unwrap().into_body();
            body.frame().await.unwrap().unwrap();
            assert_eq!(alive.load(Ordering::SeqCst), 1);
            let left = Instant::now();
            drop((body, sender));
            left
        } else {
            client.write_all(GET).await.unwrap();
            read_until(&mut client, "first").await;
            assert_eq!(alive.load(Ordering::SeqCst), 1);
            let left = Instant::now();
            drop(client);
            left
        };
        sleep(Duration::from_millis(1)).await;
        assert_eq!(alive.load(Ordering::SeqCst), 0, "over HTTP/2: {over_http2}");
        assert_eq!(server.await.unwrap(), ConnectionEnd::Closed);
        assert!(left.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn row_42_draining_closes_idle_connections_and_finishes_requests() {
    let shutdown = Shutdown::new();
    let (mut idle, idle_server) = serve_with(1024, shutdown.signal(), |_| async { whole("ok") });
    idle.write_all(GET).await.unwrap();
    read_until(&mut idle, "ok").await;
    let (mut busy, busy_server) = serve_with(1024, shutdown.signal(), |_| async {
        sleep(Duration::from_secs(20)).await;
        whole("finished")
    });
    busy.write_all(GET).await.unwrap();
    sleep(Duration::from_secs(1)).await;

    shutdown.advance(Stage::Draining);
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
    // Pools do not notice the end of a connection before they use it again; that must not hold the drain.
    let unnoticed = timeout(Duration::from_secs(1), idle_server);
    assert_eq!(unnoticed.await.unwrap().unwrap(), ConnectionEnd::Drained);
    let answer = read_until(&mut busy, "finished").await;
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert_eq!(busy.read(&mut [0; 8]).await.unwrap(), 0);
    drop(busy);
    assert_eq!(busy_server.await.unwrap(), ConnectionEnd::Drained);
}

#[tokio::test(start_paused = true)]
async fn row_42_a_request_that_crosses_the_drain_is_answered() {
    let first_half = GET.split_at(10).0;
    for already_sent in [&b""[..], first_half] {
        let shutdown = Shutdown::new();
        let (mut client, server) = serve_with(1024, shutdown.signal(), |_| async { whole("ok") });
        client.write_all(already_sent).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        shutdown.advance(Stage::Draining);
        sleep(Duration::from_millis(50)).await;
        client.write_all(GET.strip_prefix(already_sent).unwrap()).await.unwrap();
        let answer = read_until(&mut client, "ok").await;
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
        drop(client);
        server.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn row_42_draining_http2_finishes_streams_and_refuses_new_ones() {
    let shutdown = Shutdown::new();
    let (client, server) = serve_with(64 * 1024, shutdown.signal(), |_| async {
        sleep(Duration::from_secs(20)).await;
        whole("finished")
    });
    let mut sender = http2(client, 64 * 1024).await;
    let answer = tokio::spawn(sender.send_request(request()));
    sleep(Duration::from_secs(1)).await;
    shutdown.advance(Stage::Draining);
    sleep(Duration::from_secs(1)).await;
    assert!(sender.send_request(request()).await.is_err());
    assert_eq!(answer.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes(), "finished");
    assert_eq!(server.await.unwrap(), ConnectionEnd::Drained);
}

#[tokio::test(start_paused = true)]
async fn row_42_an_idle_http2_client_that_does_not_read_does_not_hold_the_drain() {
    let shutdown = Shutdown::new();
    let (mut client, server) = serve_with(64 * 1024, shutdown.signal(), |_| async { whole("ok") });
    let (settings, acknowledged) = (b"\0\0\0\x04\0\0\0\0\0", b"\0\0\0\x04\x01\0\0\0\0");
    client.write_all(&[HTTP2_PREFACE, settings, acknowledged].concat()).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    shutdown.advance(Stage::Draining);
    let ended = timeout(Duration::from_secs(2), server).await;
    assert_eq!(ended.expect("a client that does not answer is not waited for").unwrap(), ConnectionEnd::Drained);
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn row_42_what_is_left_at_the_end_is_dropped() {
    let shutdown = Shutdown::new();
    let (mut client, server) = serve_with(1024, shutdown.signal(), |_| async { silent() });
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "first").await;
    shutdown.advance(Stage::Ending);
    sleep(Duration::from_secs(9)).await;
    assert!(!server.is_finished(), "ending a stream is the body's business");
    shutdown.advance(Stage::Stopped);
    assert_eq!(server.await.unwrap(), ConnectionEnd::Aborted);
}

#[tokio::test(start_paused = true)]
async fn too_many_or_too_large_header_fields_are_refused() {
    let many: String = (0..64).map(|n| format!("x-{n}: 1\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(16 * 1024));
    for (fields, end) in [(many, ConnectionEnd::HeadFields), (large, ConnectionEnd::Failed)] {
        let (mut client, server) = serve_ok();
        client.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        drop(client);
        assert_eq!(server.await.unwrap(), end);
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_header_fields_as_allowed_are_served() {
    let many: String = (0..63).map(|n| format!("x-{n}: 1\r\n")).collect();
    let (mut client, _server) = serve_ok();
    client.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes()).await.unwrap();
    assert!(read_until(&mut client, "ok").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn a_client_still_sending_its_body_reads_the_early_answer_before_the_close() {
    let (mut client, server) = serve_with(1024, ShutdownSignal::never(), |_| async { whole("early") });
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 500000\r\n\r\n").await.unwrap();
    for _ in 0..100 {
        client.write_all(&[b'x'; 1024]).await.unwrap();
    }
    read_until(&mut client, "early").await;
    drop(client);
    assert_eq!(server.await.unwrap(), ConnectionEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_stops_sending_is_left_behind() {
    let started = Instant::now();
    let (mut client, server) = serve_with(1024, ShutdownSignal::never(), |_| async { whole("early") });
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 500000000\r\n\r\n").await.unwrap();
    let flood = tokio::spawn(async move { while client.write_all(&[b'x'; 1024]).await.is_ok() {} });
    server.await.unwrap();
    assert!(started.elapsed() <= Duration::from_secs(1));
    flood.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn f1_pipelined_requests_are_answered_in_order() {
    let (mut client, _server) = serve_ok();
    client.write_all(&GET.repeat(10)).await.unwrap();
    let mut answers = String::new();
    while answers.matches("\r\n\r\nok").count() < 10 {
        answers += &read_until(&mut client, "ok").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_close_is_left_behind() {
    let shutdown = Shutdown::new();
    let (mut client, server) = serve_with(1024, shutdown.signal(), |_| async { whole("ok") });
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "ok").await;
    let started = Instant::now();
    shutdown.advance(Stage::Draining);
    assert_eq!(server.await.unwrap(), ConnectionEnd::Drained);
    assert!(started.elapsed() < Duration::from_secs(1));
}
