//! The pool against a real HTTP server and against peers that close at the worst moment.

use std::future::pending;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;
use crate::config::table::BaseUrl;
use crate::sandbox::{full, serve_connection};
use crate::upstream::dial::Dialling;
use crate::upstream::testing::{Memory, answer, read_request};

const CONNECT: Duration = Duration::from_secs(1);

fn pool(dial: &Arc<Memory>) -> Arc<Pool> {
    pool_over(Arc::clone(dial) as Arc<dyn Dial>)
}

fn pool_over(dial: Arc<dyn Dial>) -> Arc<Pool> {
    let url = BaseUrl { tls: false, host: "provider.example".into(), port: 80, path: String::new() };
    let origin = Origin::usual(&url, false);
    Arc::new(Pool::new(origin, dial))
}

fn request() -> Outgoing {
    let builder = Request::builder().method("POST").uri("/ask").header("host", "provider.example");
    Box::new(builder.body(Bytes::from("question").into()).unwrap())
}

/// A real server that answers with the number of the connection it was asked on.
fn numbering() -> Arc<Memory> {
    Memory::scripted(|number, io| {
        serve_connection(io, move |_| async move { Ok(Response::new(full(number.to_string()))) })
    })
}

async fn ask(pool: &Arc<Pool>) -> Response<UpstreamBody> {
    pool.exchange(request(), CONNECT).await.unwrap()
}

async fn read(response: Response<UpstreamBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_body_read_to_its_end_gives_its_connection_back() {
    let dial = numbering();
    let pool = pool(&dial);
    for _ in 0..5 {
        assert_eq!(read(ask(&pool).await).await, "0");
    }
    assert_eq!(dial.dialled(), 1);
}

#[tokio::test]
async fn the_connection_used_last_is_taken_first() {
    let dial = numbering();
    let pool = pool(&dial);
    let (zero, one, two) = (ask(&pool).await, ask(&pool).await, ask(&pool).await);
    assert_eq!((read(one).await, read(zero).await, read(two).await), ("1".into(), "0".into(), "2".into()));
    let newest = ask(&pool).await;
    assert_eq!(read(ask(&pool).await).await, "0");
    assert_eq!(read(newest).await, "2");
    assert_eq!(dial.dialled(), 3);
}

#[tokio::test]
async fn an_answer_without_a_body_gives_its_connection_back_unread() {
    let dial = Memory::serving(|_| async { Ok(Response::new(full(""))) });
    let pool = pool(&dial);
    drop(ask(&pool).await);
    drop(ask(&pool).await);
    assert_eq!(dial.dialled(), 1);
}

#[tokio::test]
async fn f45_a_body_dropped_unread_closes_its_connection() {
    let (closed, on_close) = oneshot::channel();
    let closed = Mutex::new(Some(closed));
    let closed = Arc::new(closed);
    let dial = Memory::scripted(move |_, mut io| {
        let closed = Arc::clone(&closed);
        async move {
            read_request(&mut io).await;
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            let rest = io.read(&mut [0; 8]).await;
            if let Some(closed) = closed.lock().unwrap().take() {
                let _ = closed.send(rest.unwrap_or_default());
            }
        }
    });
    let pool = pool(&dial);
    let mut response = ask(&pool).await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert_eq!(on_close.await.unwrap(), 0, "the peer sees the end of the connection");
    drop(ask(&pool).await);
    assert_eq!(dial.dialled(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_not_kept_beyond_its_idle_limit() {
    let dial = numbering();
    let pool = pool(&dial);
    read(ask(&pool).await).await;
    // The sandbox closes an idle connection at 30 s, so the peer here must be one that never does.
    let patient = Memory::scripted(|_, mut io| async move {
        while read_request(&mut io).await.is_some() {
            answer(&mut io, "ok").await;
        }
    });
    let pool = pool_over(Arc::clone(&patient) as Arc<dyn Dial>);
    read(ask(&pool).await).await;
    tokio::time::sleep(IDLE_LIMIT - Duration::from_millis(1)).await;
    read(ask(&pool).await).await;
    assert_eq!(patient.dialled(), 1);
    tokio::time::sleep(IDLE_LIMIT).await;
    read(ask(&pool).await).await;
    assert_eq!(patient.dialled(), 2);
}

#[tokio::test]
async fn f21_a_kept_connection_that_was_closed_meanwhile_costs_nothing_but_a_new_one() {
    for notice in [true, false] {
        let dial = Memory::scripted(|_, mut io| async move {
            read_request(&mut io).await;
            answer(&mut io, "ok").await;
        });
        let pool = pool(&dial);
        for _ in 0..4 {
            assert_eq!(read(ask(&pool).await).await, "ok");
            if notice {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(dial.dialled(), 4);
    }
}

#[tokio::test]
async fn f2_a_connection_that_breaks_after_the_request_was_written_may_have_delivered_it() {
    let dial = Memory::scripted(|_, mut io| async move {
        read_request(&mut io).await;
        answer(&mut io, "ok").await;
        read_request(&mut io).await;
    });
    let pool = pool(&dial);
    read(ask(&pool).await).await;
    let error = pool.exchange(request(), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Broken { sent: Sent::Maybe, reused: true }), "{error:?}");
    assert_eq!(dial.dialled(), 1, "it is not the pool that repeats what may have been sent");
}

#[tokio::test]
async fn f3_half_a_head_is_no_answer() {
    let dial = Memory::scripted(|_, mut io| async move {
        read_request(&mut io).await;
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-").await.unwrap();
    });
    let error = pool(&dial).exchange(request(), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Broken { sent: Sent::Maybe, reused: false }), "{error:?}");
}

#[tokio::test]
async fn f1_nobody_at_home_is_told_apart_and_nothing_was_sent() {
    let dial = numbering();
    dial.refuse(true);
    let error = pool(&dial).exchange(request(), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Connect(ref err) if err.kind() == io::ErrorKind::ConnectionRefused));
}

#[tokio::test(start_paused = true)]
async fn f4_a_connection_that_never_opens_is_given_up_in_time() {
    struct BlackHole;
    impl Dial for BlackHole {
        fn dial<'a>(&'a self, _: &'a Origin, _: Duration) -> Dialling<'a> {
            Box::pin(pending())
        }
    }
    let started = Instant::now();
    let error = pool_over(Arc::new(BlackHole)).exchange(request(), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Connect(ref err) if err.kind() == io::ErrorKind::TimedOut));
    assert_eq!(started.elapsed(), CONNECT);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_came_before_the_request_was_read_does_not_hold_up_the_next_call() {
    let dial = Memory::scripted(|number, mut io| async move {
        if number == 0 {
            let _ = io.read(&mut [0; 64]).await.unwrap();
            io.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return pending().await;
        }
        read_request(&mut io).await;
        answer(&mut io, "ok").await;
    });
    let pool = pool(&dial);
    let mut large = request();
    *large.body_mut() = Bytes::from(vec![b'x'; 1 << 20]).into();
    assert_eq!(pool.exchange(large, CONNECT).await.unwrap().status(), 413);
    let started = Instant::now();
    assert_eq!(read(ask(&pool).await).await, "ok");
    assert!(started.elapsed() <= Duration::from_millis(10));
}

#[tokio::test]
async fn a_connection_stays_on_its_core() {
    let dial = numbering();
    let pool = pool(&dial);
    read(ask(&pool).await).await;
    worker::enter(1);
    assert_eq!(read(ask(&pool).await).await, "1");
    assert_eq!(read(ask(&pool).await).await, "1");
    worker::enter(0);
    assert_eq!(read(ask(&pool).await).await, "0");
}

#[tokio::test]
async fn no_more_than_64_idle_connections_are_kept() {
    let dial = numbering();
    let pool = pool(&dial);
    let mut answers = Vec::new();
    for _ in 0..70 {
        answers.push(ask(&pool).await);
    }
    for answer in answers {
        read(answer).await;
    }
    assert_eq!(pool.shelf().unwrap().idle.len(), MOST_IDLE);
}

/// Opens its first connection at once and each later one after an hour.
struct Slow(Arc<Memory>);

impl Dial for Slow {
    fn dial<'a>(&'a self, origin: &'a Origin, within: Duration) -> Dialling<'a> {
        let first = self.0.dialled() == 0;
        let dialling = self.0.dial(origin, within);
        Box::pin(async move {
            if !first {
                tokio::time::sleep(Duration::from_secs(3_600)).await;
            }
            dialling.await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_connection_take_those_that_are_given_back_in_the_order_they_came() {
    let dial = numbering();
    let pool = pool_over(Arc::new(Slow(Arc::clone(&dial))));
    let first = ask(&pool).await;
    let begun = Instant::now();
    let others: Vec<_> = (0..3)
        .map(|number| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(number)).await;
                let response = ask(&pool).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                (read(response).await, begun.elapsed().as_millis())
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    read(first).await;
    let mut ended = Vec::new();
    for other in others {
        ended.push(other.await.unwrap());
    }
    assert_eq!(ended, [("0".into(), 150), ("0".into(), 250), ("0".into(), 350)]);
    assert_eq!(dial.dialled(), 4, "each dialled for itself too");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_is_told_at_once_that_nobody_answers() {
    let dial = numbering();
    let pool = pool(&dial);
    let busy = ask(&pool).await;
    dial.refuse(true);
    let started = Instant::now();
    let error = pool.exchange(request(), CONNECT).await.err().unwrap();
    assert!(matches!(error, ExchangeError::Connect(ref err) if err.kind() == io::ErrorKind::ConnectionRefused));
    assert!(started.elapsed().is_zero());
    assert_eq!(read(busy).await, "0");
    assert_eq!(pool.idle(), 1, "what nobody waits for any more lies on the shelf");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_leaves_takes_its_dialling_along_and_one_that_was_served_leaves_it_to_others() {
    let dial = numbering();
    let pool = pool_over(Arc::new(Slow(Arc::clone(&dial))));
    let first = ask(&pool).await;
    let patient = Duration::from_secs(10_000);
    let left = timeout(CONNECT, pool.exchange(request(), patient)).await;
    assert!(left.is_err());
    let served = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { read(pool.exchange(request(), patient).await.unwrap()).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    read(first).await;
    assert_eq!(served.await.unwrap(), "0");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pool.idle(), 1);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!((pool.idle(), dial.dialled()), (1, 3), "the first connection is too old, the third is there");
}
