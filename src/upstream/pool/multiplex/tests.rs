//! HTTP/2 against a peer that is told frame by frame what to do.

use std::collections::BTreeMap;

use h2::Reason;
use h2::server::{Connection as Served, SendResponse};
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::table::BaseUrl;
use crate::config::tls::HttpVersion;
use crate::upstream::dial::{Dial, Origin};
use crate::upstream::testing::Memory;

const CONNECT: Duration = Duration::from_secs(1);

type Asked = (Request<h2::RecvStream>, SendResponse<Bytes>);

fn pool(dial: &Arc<Memory>) -> Arc<Pool> {
    let url = BaseUrl { tls: false, host: "provider.example".into(), port: 8080, path: String::new() };
    let origin = Origin { http: HttpVersion::Two, ..Origin::usual(&url, false) };
    Arc::new(Pool::new(origin, Arc::clone(dial) as Arc<dyn Dial>))
}

fn question(text: &str) -> Outgoing {
    let builder = Request::builder().method("POST").uri("/v1/ask?x=1").header("host", "provider.example:8080");
    Box::new(builder.header("x-kept", "1").body(Bytes::copy_from_slice(text.as_bytes()).into()).unwrap())
}

async fn read(response: Response<UpstreamBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn shake(io: DuplexStream, most: u32) -> Served<DuplexStream, Bytes> {
    h2::server::Builder::new().max_concurrent_streams(most).handshake(io).await.unwrap()
}

fn answer((_, mut respond): Asked, text: &str) {
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    body.send_data(Bytes::copy_from_slice(text.as_bytes()), true).unwrap();
}

/// Answers each request with the number of its connection, after a second.
fn numbering(most: u32) -> Arc<Memory> {
    Memory::scripted(move |number, io| async move {
        let mut served = shake(io, most).await;
        while let Some(Ok(asked)) = served.accept().await {
            tokio::spawn(async move {
                sleep(Duration::from_secs(1)).await;
                answer(asked, &number.to_string());
            });
        }
    })
}

/// Sends this many at once; how many were answered on each connection.
async fn burst(pool: &Arc<Pool>, count: usize) -> BTreeMap<String, usize> {
    let calls: Vec<_> = (0..count)
        .map(|_| {
            let pool = Arc::clone(pool);
            tokio::spawn(async move { read(pool.exchange(question("q"), CONNECT).await.unwrap()).await })
        })
        .collect();
    let mut served = BTreeMap::new();
    for call in calls {
        *served.entry(call.await.unwrap()).or_default() += 1;
    }
    served
}

#[tokio::test(start_paused = true)]
async fn many_requests_share_one_connection_and_are_dialled_for_once() {
    let dial = numbering(100);
    let pool = pool(&dial);
    assert_eq!(burst(&pool, 50).await, BTreeMap::from([("0".to_owned(), 50)]));
    assert_eq!((dial.dialled(), pool.idle()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn more_connections_are_opened_once_the_streams_of_one_are_taken_and_not_without_end() {
    let dial = numbering(10);
    let pool = pool(&dial);
    burst(&pool, 1).await;
    // The limit is known from the second request on.
    burst(&pool, 1).await;
    let served = burst(&pool, 35).await;
    assert!(served.len() >= 4 && served.values().sum::<usize>() == 35, "{served:?}");
    burst(&pool, 400).await;
    assert!(dial.dialled() <= MOST_LINES, "{}", dial.dialled());
}

#[tokio::test]
async fn where_a_request_leads_is_its_authority_and_nothing_of_http_1_is_left() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let dial = Memory::scripted(move |_, io| {
        let tell = tell.clone();
        async move {
            let mut served = shake(io, 9).await;
            while let Some(Ok((request, respond))) = served.accept().await {
                tell.send((request.uri().to_string(), request.headers().clone())).unwrap();
                answer((request, respond), "yes");
            }
        }
    });
    let mut asked = question("q");
    asked.headers_mut().insert("connection", "close".parse().unwrap());
    let response = pool(&dial).exchange(asked, CONNECT).await.unwrap();
    assert_eq!((response.version(), read(response).await.as_str()), (Version::HTTP_2, "yes"));
    let (uri, headers) = told.recv().await.unwrap();
    assert_eq!(uri, "http://provider.example:8080/v1/ask?x=1");
    assert!(!headers.contains_key("host") && !headers.contains_key("connection"), "{headers:?}");
    assert_eq!((&headers["x-kept"], &headers["content-length"]), (&"1".parse().unwrap(), &"1".parse().unwrap()));
}

#[tokio::test]
async fn f3_a_stream_refused_unseen_is_moved_and_costs_no_connection() {
    let dial = Memory::scripted(|_, io| async move {
        let mut served = shake(io, 9).await;
        let mut asked = 0;
        while let Some(Ok((request, mut respond))) = served.accept().await {
            asked += 1;
            if asked < 3 {
                respond.send_reset(Reason::REFUSED_STREAM);
            } else {
                answer((request, respond), "third");
            }
        }
    });
    let pool = pool(&dial);
    assert_eq!(read(pool.exchange(question("q"), CONNECT).await.unwrap()).await, "third");
    assert_eq!(dial.dialled(), 1);
}

#[tokio::test]
async fn f3_a_provider_that_refuses_every_stream_is_left_with_nothing_sent() {
    let dial = Memory::scripted(|_, io| async move {
        let mut served = shake(io, 9).await;
        while let Some(Ok((_, mut respond))) = served.accept().await {
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    });
    let error = pool(&dial).exchange(question("q"), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Broken { sent: Sent::No, .. }), "{error:?}");
}

#[tokio::test]
async fn f3_a_stream_given_up_by_the_other_side_may_have_been_seen_and_the_others_go_on() {
    let dial = Memory::scripted(|_, io| async move {
        let mut served = shake(io, 9).await;
        let mut first = true;
        while let Some(Ok((request, mut respond))) = served.accept().await {
            if std::mem::take(&mut first) {
                respond.send_reset(Reason::INTERNAL_ERROR);
            } else {
                answer((request, respond), "well");
            }
        }
    });
    let pool = pool(&dial);
    let error = pool.exchange(question("q"), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Broken { sent: Sent::Maybe, reused: false }), "{error:?}");
    assert_eq!(read(pool.exchange(question("q"), CONNECT).await.unwrap()).await, "well");
    assert_eq!(dial.dialled(), 1);
}

/// Takes two requests on its first connection and says that it looked at the first of them only.
#[tokio::test]
async fn f3_streams_that_a_goaway_leaves_out_are_moved_and_those_it_names_are_finished() {
    let dial = Memory::scripted(|number, mut io| async move {
        if number > 0 {
            let mut served = shake(io, 9).await;
            while let Some(Ok(asked)) = served.accept().await {
                answer(asked, "moved");
            }
            return;
        }
        frames::serve_first_of_two(&mut io).await;
    });
    let pool = pool(&dial);
    let first = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { read(pool.exchange(question("q"), CONNECT).await.unwrap()).await }
    });
    sleep(Duration::from_millis(20)).await;
    let second = read(pool.exchange(question("q"), CONNECT).await.unwrap()).await;
    assert_eq!((first.await.unwrap().as_str(), second.as_str()), ("kept", "moved"));
    assert_eq!(read(pool.exchange(question("q"), CONNECT).await.unwrap()).await, "moved");
    assert_eq!(dial.dialled(), 2);
}

/// A GOAWAY that counts a stream among those looked at, and then nothing more: it must not be asked a second time.
#[tokio::test]
async fn f3_a_stream_that_a_goaway_names_and_leaves_unanswered_may_have_been_heard() {
    for reason in [0, 2, 11] {
        let dial =
            Memory::scripted(move |_, mut io| async move { frames::leave_after_the_first(&mut io, reason).await });
        let pool = pool(&dial);
        let error = pool.exchange(question("q"), CONNECT).await.err().unwrap();
        assert!(matches!(error, ExchangeError::Broken { sent: Sent::Maybe, .. }), "{reason}: {error:?}");
        assert_eq!(dial.dialled(), 1, "{reason}");
    }
}

#[tokio::test]
async fn f3_a_connection_that_breaks_under_a_request_may_have_been_heard() {
    let dial = Memory::scripted(|_, io| async move {
        let mut served = shake(io, 9).await;
        let _ = served.accept().await;
    });
    let error = pool(&dial).exchange(question("q"), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Broken { sent: Sent::Maybe, reused: false }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_leaves_gives_its_stream_up_and_leaves_the_connection_to_others() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let dial = Memory::scripted(move |_, io| {
        let tell = tell.clone();
        async move {
            let mut served = shake(io, 9).await;
            while let Some(Ok((request, mut respond))) = served.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    let mut body = None;
                    if request.uri().query() == Some("x=1") {
                        body = respond.send_response(Response::new(()), false).ok();
                    }
                    let given_up = match &mut body {
                        Some(body) => std::future::poll_fn(|cx| body.poll_reset(cx)).await,
                        None => std::future::poll_fn(|cx| respond.poll_reset(cx)).await,
                    };
                    tell.send(given_up.unwrap()).unwrap();
                });
            }
        }
    });
    let pool = pool(&dial);
    let streaming = pool.exchange(question("q"), CONNECT).await.unwrap();
    let mut unanswered = question("q");
    *unanswered.uri_mut() = "/v1/silence".parse().unwrap();
    assert!(timeout(CONNECT, pool.exchange(unanswered, CONNECT)).await.is_err());
    assert_eq!(told.recv().await, Some(Reason::CANCEL));
    assert_eq!(pool.idle(), 0, "the other one is still there");
    drop(streaming);
    assert_eq!(told.recv().await, Some(Reason::CANCEL));
    assert_eq!((pool.idle(), dial.dialled()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_without_a_word_is_noticed_while_it_is_waited_for() {
    let dial = Memory::scripted(|_, mut io| async move {
        // A preface and settings, and then nothing for ever.
        frames::begin(&mut io).await;
        std::future::pending::<()>().await;
    });
    let started = Instant::now();
    let error = pool(&dial).exchange(question("q"), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Broken { sent: Sent::Maybe, .. }), "{error:?}");
    assert!(started.elapsed() <= PING_EVERY + PING_LIMIT + CONNECT, "{:?}", started.elapsed());
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_up_nobody_else_and_a_head_has_a_bound() {
    let dial = Memory::scripted(|_, io| async move {
        let mut served = shake(io, 100).await;
        while let Some(Ok((request, mut respond))) = served.accept().await {
            if request.uri().path() == "/head" {
                let head = Response::builder().header("x-long", "y".repeat(2 * HEAD_BYTES)).body(()).unwrap();
                let _ = respond.send_response(head, true);
                continue;
            }
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            // More than a window: what does not fit waits here.
            let _ = body.send_data(vec![b'x'; 4 * STREAM_WINDOW as usize].into(), true);
        }
    });
    let pool = pool(&dial);
    let mut unread = Vec::new();
    for _ in 0..MOST_STREAMS - 2 {
        unread.push(pool.exchange(question("q"), CONNECT).await.unwrap());
    }
    sleep(Duration::from_millis(50)).await;
    let served = timeout(CONNECT, pool.exchange(question("q"), CONNECT)).await.unwrap().unwrap();
    assert_eq!(read(served).await.len(), 4 * STREAM_WINDOW as usize);
    assert_eq!(dial.dialled(), 1);
    let mut asked = question("q");
    *asked.uri_mut() = "/head".parse().unwrap();
    let answered = pool.exchange(asked, CONNECT).await;
    assert!(!matches!(answered, Ok(ref head) if head.status() == StatusCode::OK), "a head of that size is refused");
}

#[tokio::test(start_paused = true)]
async fn f4_those_who_wait_for_one_dialling_are_told_in_time_and_the_next_one_tries_again() {
    let dial = numbering(100);
    let pool = pool(&dial);
    dial.refuse(true);
    let started = Instant::now();
    let all: Vec<_> = (0..5)
        .map(|_| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.exchange(question("q"), CONNECT).await.is_ok() })
        })
        .collect();
    for one in all {
        assert!(!one.await.unwrap());
    }
    assert!(started.elapsed() <= CONNECT);
    dial.refuse(false);
    assert_eq!(burst(&pool, 2).await.len(), 1);
}

/// Frames written by hand (RFC 9113), for what a library would not do.
mod frames {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const DATA: u8 = 0;
    const GOAWAY: u8 = 7;

    async fn write(io: &mut DuplexStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        io.write_all(&[&head, payload].concat()).await.unwrap();
    }

    /// The next frame's kind, and its stream.
    async fn next(io: &mut DuplexStream) -> (u8, u32) {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        io.read_exact(&mut vec![0; length]).await.unwrap();
        (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]))
    }

    pub(super) async fn begin(io: &mut DuplexStream) {
        io.read_exact(&mut [0; 24]).await.unwrap();
        write(io, SETTINGS, 0, 0, &[]).await;
    }

    pub(super) async fn leave_after_the_first(io: &mut DuplexStream, reason: u32) {
        begin(io).await;
        loop {
            if let (HEADERS, stream) = next(io).await {
                write(io, GOAWAY, 0, 0, &[stream.to_be_bytes(), reason.to_be_bytes()].concat()).await;
                return;
            }
        }
    }

    pub(super) async fn serve_first_of_two(io: &mut DuplexStream) {
        begin(io).await;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            if let (HEADERS, stream) = next(io).await {
                seen.push(stream);
            }
        }
        // The last stream that was looked at, and NO_ERROR.
        write(io, GOAWAY, 0, 0, &[seen[0].to_be_bytes(), [0; 4]].concat()).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        // 0x88 is `:status: 200` (RFC 7541, appendix A).
        write(io, HEADERS, 4, seen[0], &[0x88]).await;
        write(io, DATA, 1, seen[0], b"kept").await;
        while io.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    }
}

#[tokio::test(start_paused = true)]
async fn row_19_interim_responses_are_dropped_as_they_come_and_end_nothing_but_the_attempts_own_time() {
    let interim = || Response::builder().status(103).header("link", "</x>").body(()).unwrap();
    let dial = Memory::scripted(move |_, io| async move {
        let mut served = shake(io, 9).await;
        while let Some(Ok((request, mut respond))) = served.accept().await {
            tokio::spawn(async move {
                for _ in 0..1_000 {
                    respond.send_informational(interim()).unwrap();
                }
                // The second request gets no answer.
                if request.headers().contains_key("x-endless") {
                    while respond.send_informational(interim()).is_ok() {
                        sleep(Duration::from_millis(1)).await;
                    }
                } else {
                    answer((request, respond), "yes");
                }
            });
        }
    });
    let pool = pool(&dial);
    assert_eq!(read(pool.exchange(question("q"), CONNECT).await.unwrap()).await, "yes");
    let mut endless = question("q");
    endless.headers_mut().insert("x-endless", "1".parse().unwrap());
    let limit = timeout(Duration::from_secs(5), pool.exchange(endless, CONNECT)).await;
    assert!(limit.is_err(), "whoever waits for it decides how long");
    assert_eq!(read(pool.exchange(question("q"), CONNECT).await.unwrap()).await, "yes", "and the others do not notice");
    assert_eq!(dial.dialled(), 1);
}
