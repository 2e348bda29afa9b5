//! Streams read alone: what they give, when they are not, and what becomes of their connections.

use std::time::Duration;

use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::config::table::BaseUrl;
use crate::upstream::dial::{Dial, Dialling, Origin};
use crate::upstream::pool::{Outgoing, Reader, UpstreamBody};
use crate::upstream::testing::{Memory, answer, read_request};

const CONNECT: Duration = Duration::from_secs(1);
const HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
const CHUNKS: &str = "5\r\nfirst\r\n6;a=b\r\nsecond\r\n0\r\n\r\n";

fn pool(dial: &Arc<Memory>) -> Arc<Pool> {
    let url = BaseUrl { tls: false, host: "provider.example".into(), port: 80, path: String::new() };
    Arc::new(Pool::new(Origin::usual(&url, false), Arc::clone(dial) as Arc<dyn Dial>))
}

fn question() -> Outgoing {
    asking(Bytes::from("question"))
}

fn asking(body: impl Into<RequestBody>) -> Outgoing {
    let builder = Request::builder().method("POST").uri("/ask").header("host", "provider.example");
    Box::new(builder.extension(AsksForStream).body(body.into()).unwrap())
}

async fn ask(pool: &Arc<Pool>) -> Response<UpstreamBody> {
    pool.exchange(question(), CONNECT).await.unwrap()
}

async fn read(response: Response<UpstreamBody>) -> Result<String, Broken> {
    response.into_body().collect().await.map(|whole| String::from_utf8(whole.to_bytes().to_vec()).unwrap())
}

fn is_alone(response: &Response<UpstreamBody>) -> bool {
    matches!(response.body().body, Reader::Alone(_))
}

/// A provider that gives every request these pieces, one write each, and goes on listening.
fn giving(pieces: Vec<String>) -> Arc<Memory> {
    Memory::scripted(move |_, io| give(io, pieces.clone()))
}

async fn give(mut io: DuplexStream, pieces: Vec<String>) {
    while read_request(&mut io).await.is_some() {
        for piece in &pieces {
            io.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_stream_is_read_alone_however_its_bytes_come_and_its_connection_serves_again() {
    let whole = HEAD.to_owned() + CHUNKS;
    for cut in 0..whole.len() {
        let (one, two) = whole.split_at(cut);
        let dial = giving(vec![one.to_owned(), two.to_owned()]);
        let pool = pool(&dial);
        for _ in 0..3 {
            let response = ask(&pool).await;
            assert!(is_alone(&response), "cut at {cut}");
            assert_eq!(read(response).await.unwrap(), "firstsecond", "cut at {cut}");
        }
        assert_eq!((dial.dialled(), pool.idle()), (1, 1), "cut at {cut}");
    }
}

#[tokio::test]
async fn interim_responses_before_a_stream_are_passed_over() {
    let dial = giving(vec![format!("HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n{HEAD}"), CHUNKS.into()]);
    let response = ask(&pool(&dial)).await;
    assert!(is_alone(&response));
    assert_eq!(read(response).await.unwrap(), "firstsecond");
}

#[tokio::test]
async fn an_answer_that_is_no_chunked_stream_stays_with_hyper_and_its_connection_serves_again() {
    let plain = "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let counted = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 2\r\n\r\n{}";
    let empty = "HTTP/1.1 204 No Content\r\n\r\n";
    for (whole, body) in [(plain, "{}"), (counted, "{}"), (empty, "")] {
        let dial = giving(vec![whole.to_owned()]);
        let pool = pool(&dial);
        for _ in 0..3 {
            let response = ask(&pool).await;
            assert!(!is_alone(&response));
            assert_eq!(timeout(CONNECT, read(response)).await.unwrap().unwrap(), body);
        }
        assert_eq!(dial.dialled(), 1, "{whole}");
    }
}

#[tokio::test]
async fn requests_that_ask_for_no_stream_are_left_to_hyper() {
    let dial = giving(vec![HEAD.to_owned() + CHUNKS]);
    let pool = pool(&dial);
    let builder = Request::builder().method("POST").uri("/ask").header("host", "provider.example");
    let plain = Box::new(builder.body(Bytes::from("question").into()).unwrap());
    let response = pool.exchange(plain, CONNECT).await.unwrap();
    assert!(!is_alone(&response));
    assert_eq!(read(response).await.unwrap(), "firstsecond");
    assert_eq!(read(ask(&pool).await).await.unwrap(), "firstsecond");
    assert_eq!(dial.dialled(), 1);
}

#[tokio::test]
async fn a_request_too_large_to_be_known_written_is_left_to_hyper() {
    let dial = giving(vec![HEAD.to_owned() + CHUNKS]);
    let pool = pool(&dial);
    let long = Bytes::from(vec![b'x'; MOST_AHEAD + 1]);
    let body = Box::new([long.clone(), Bytes::from("model"), Bytes::from("end")]);
    let response = pool.exchange(asking(body), CONNECT).await.unwrap();
    assert!(!is_alone(&response));
    assert_eq!(read(response).await.unwrap(), "firstsecond");
}

#[tokio::test]
async fn a_large_request_is_known_written_if_its_length_is_in_its_last_piece() {
    let dial = giving(vec![HEAD.to_owned() + CHUNKS]);
    let pool = pool(&dial);
    let long = Bytes::from(vec![b'x'; 2 * MOST_AHEAD]);
    let pieces = Box::new([Bytes::from("begin"), Bytes::from("model"), long.clone()]);
    for body in [RequestBody::from(long), RequestBody::from(pieces)] {
        let response = pool.exchange(asking(body), CONNECT).await.unwrap();
        assert!(is_alone(&response));
        assert_eq!(read(response).await.unwrap(), "firstsecond");
    }
    assert_eq!(dial.dialled(), 1);
}

#[tokio::test]
async fn an_answer_that_comes_before_its_request_was_written_is_left_to_hyper() {
    // The other side's buffer takes 1 KiB, so that most of the request cannot have been written.
    let url = BaseUrl { tls: false, host: "provider.example".into(), port: 80, path: String::new() };
    let pool = Arc::new(Pool::new(Origin::usual(&url, false), Arc::new(Narrow)));
    let response = pool.exchange(asking(Bytes::from(vec![b'x'; 40_000])), CONNECT).await.unwrap();
    assert!(!is_alone(&response));
}

/// A provider that answers the first bytes of a request and takes no more.
struct Narrow;

impl Dial for Narrow {
    fn dial<'a>(&'a self, _: &'a Origin, _: Duration) -> Dialling<'a> {
        let (near, mut far) = duplex(1024);
        tokio::spawn(async move {
            far.read_exact(&mut [0; 16]).await.unwrap();
            far.write_all((HEAD.to_owned() + CHUNKS).as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        Box::pin(async { Ok(Box::new(near) as Box<dyn Io>) })
    }
}

#[tokio::test]
async fn a_connection_that_says_more_than_was_asked_or_wants_to_close_serves_nobody_else() {
    let chatty = vec![format!("{HEAD}{CHUNKS}HTTP/1.1 200 OK\r\n\r\n")];
    let closing = vec![HEAD.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n") + CHUNKS];
    for pieces in [chatty, closing] {
        let dial = giving(pieces);
        let pool = pool(&dial);
        for _ in 0..2 {
            assert_eq!(read(ask(&pool).await).await.unwrap(), "firstsecond");
        }
        assert_eq!((dial.dialled(), pool.idle()), (2, 0));
    }
}

#[tokio::test]
async fn row_7_a_stream_that_breaks_off_is_no_end_of_it() {
    for cut in 0..CHUNKS.len() {
        let sent = HEAD.to_owned() + &CHUNKS[..cut];
        let dial = Memory::scripted(move |_, mut io| {
            let sent = sent.clone();
            async move {
                read_request(&mut io).await;
                io.write_all(sent.as_bytes()).await.unwrap();
            }
        });
        let pool = pool(&dial);
        assert_eq!(read(ask(&pool).await).await, Err(Broken), "cut at {cut}");
        assert_eq!(pool.idle(), 0);
    }
}

#[tokio::test]
async fn f45_a_stream_dropped_in_its_midst_closes_its_connection() {
    let (closed, on_close) = oneshot::channel();
    let closed = std::sync::Mutex::new(Some(closed));
    let dial = Memory::scripted(move |_, mut io| {
        let closed = closed.lock().unwrap().take();
        async move {
            read_request(&mut io).await;
            io.write_all((HEAD.to_owned() + "5\r\nfirst\r\n").as_bytes()).await.unwrap();
            let rest = io.read(&mut [0; 8]).await;
            closed.unwrap().send(rest.unwrap_or_default()).unwrap();
        }
    });
    let mut response = ask(&pool(&dial)).await;
    assert_eq!(response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(response);
    assert_eq!(timeout(CONNECT, on_close).await.unwrap().unwrap(), 0, "the peer sees the end of the connection");
}

#[tokio::test]
async fn plain_requests_and_streams_share_connections() {
    let dial = Memory::scripted(|_, mut io| async move {
        let mut turn = 0;
        while read_request(&mut io).await.is_some() {
            turn += 1;
            if turn % 2 == 1 {
                io.write_all((HEAD.to_owned() + CHUNKS).as_bytes()).await.unwrap();
            } else {
                answer(&mut io, "whole").await;
            }
        }
    });
    let pool = pool(&dial);
    for turn in 1..7 {
        let body = read(ask(&pool).await).await.unwrap();
        assert_eq!(body, if turn % 2 == 1 { "firstsecond" } else { "whole" });
    }
    assert_eq!(dial.dialled(), 1);
}

/// Reads these pieces as if each came with a read of its own: what was given, and whether that was all.
fn decoded(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Broken> {
    let io = Box::new(duplex(1).0);
    let mut alone = Alone::new(Given { io, rest: Bytes::new() }, None);
    let mut body = Vec::new();
    for piece in pieces {
        assert!(alone.rest.is_empty());
        alone.rest = Bytes::copy_from_slice(piece);
        while let Some(data) = alone.piece()? {
            body.extend_from_slice(&data);
        }
    }
    Ok((body, alone.is_over()))
}

#[test]
fn chunks_are_read_as_strictly_as_by_hyper() {
    let well = [
        ("0\r\n\r\n", ""),
        ("1\r\na\r\n0\r\n\r\n", "a"),
        ("01 ;x=\"y\"\r\na\r\nA\t\r\n0123456789\r\n0;last\r\nx-trailer: 1\r\ny: 2\r\n\r\n", "a0123456789"),
    ];
    for (text, body) in well {
        assert_eq!(decoded(&[text.as_bytes()]), Ok((body.as_bytes().to_vec(), true)), "{text:?}");
    }
    let badly = [
        "\r\n",
        "g\r\n",
        ";x\r\n",
        "-1\r\n",
        "0x1\r\na\r\n",
        "1\na\r\n",
        "1;x\na\r\n",
        "1 2\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1\r\na\rx",
        "1\r\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\n\n",
        "0\r\n\rx",
        "10000000000000000\r\n",
    ];
    for text in badly {
        assert_eq!(decoded(&[text.as_bytes()]), Err(Broken), "{text:?}");
    }
}

#[test]
fn extensions_and_trailers_without_end_are_not_read_on() {
    let flood = "x".repeat(MOST_SAID + 1);
    assert_eq!(decoded(&[format!("1;{flood}").as_bytes()]), Err(Broken));
    assert_eq!(decoded(&[format!("0\r\n{flood}").as_bytes()]), Err(Broken));
}

proptest! {
    #[test]
    fn a_stream_is_the_same_however_it_is_chunked_and_cut(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        cuts in prop::collection::vec(1_usize..30, 0..60),
    ) {
        let mut text = Vec::new();
        for chunk in &chunks {
            text.extend_from_slice(format!("{:X};e\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"000\r\nt: 1\r\n\r\n");
        let (mut rest, mut pieces) = (text.as_slice(), Vec::new());
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(decoded(&pieces), Ok((chunks.concat(), true)));
    }
}
