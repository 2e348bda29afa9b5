//! The rows of the table that are about when something ends. Limits are short here; that they are those of the table
//! where nothing is configured is asserted apart, and that they are kept to the second is tried in
//! `src/server/connection/tests.rs` under a paused clock.

use tokio::time::{Instant, sleep};
use weighbridge::server::limits::ConnectionLimits;

use weighbridge::flight::arrival::Pinned;

use super::*;

/// Rows told here.
pub const ROWS: usize = 4;
/// Their vectors.
pub const VECTORS: usize = 15;

const SHORT: Duration = Duration::from_secs(1);

/// A site that soon loses patience.
async fn impatient() -> Site {
    let routes = ROUTES.replace("head_timeout = \"10s\"", "body_idle = \"1s\"");
    let limits = ConnectionLimits { head_timeout: SHORT, keep_alive: SHORT, ..ConnectionLimits::default() };
    Site::with(&Plan { routes, limits, ..Plan::default() }).await
}

/// How long the listener bears with a client that writes this and then nothing, and what it answers.
async fn borne(site: &Site, bytes: &str) -> (Duration, Vec<u16>) {
    let begun = Instant::now();
    let (answer, closed) = site.said(bytes.as_bytes()).await;
    assert!(closed, "{bytes:?} is borne for ever");
    (begun.elapsed(), statuses(&answer))
}

#[tokio::test]
async fn vectors_of_silence_connecting_alone_half_a_head_and_an_idle_connection_end_at_their_limits() {
    let usual = ConnectionLimits::default();
    assert_eq!([usual.head_timeout, usual.keep_alive].map(|limit| limit.as_secs()), [10, 60]);
    let site = impatient().await;
    let whole = post(&length(BODY), BODY);
    let half = &whole[..whole.len() - BODY.len() - 10];
    for (what, bytes, answers) in
        [("connect only", "", vec![]), ("a partial head", half, vec![]), ("idle", &whole, vec![200])]
    {
        let (took, statuses) = borne(&site, bytes).await;
        assert!(took >= SHORT && took < PATIENCE, "{what}: {took:?}");
        assert!(statuses == answers || statuses == [408], "{what}: {statuses:?}");
        assert_eq!(requests(&site.sent()).unwrap().len(), usize::from(what == "idle"), "{what}");
    }
}

#[tokio::test]
async fn vectors_of_a_partial_body_end_at_a_deadline_of_our_own_and_reach_nobody() {
    assert_eq!(World::new().live.load().limits().body_idle.as_secs(), 10);
    let site = impatient().await;
    let half = &BODY[..BODY.len() / 2];
    let chunk = format!("{:x}\r\n{half}", BODY.len());
    for (what, bytes) in [("CL", post(&length(BODY), half)), ("TE", post("transfer-encoding: chunked\r\n", &chunk))] {
        let (took, statuses) = borne(&site, &bytes).await;
        assert!(took >= SHORT && took < PATIENCE, "{what}: {took:?}");
        assert_eq!((statuses, site.sent()), (vec![408], vec![]), "{what}");
    }
    site.world.assert_idle();
}

/// A provider that reads and says nothing, and how many connections it still has.
async fn mute(site: &Site) -> Peer {
    let mute = Peer::new(|io| async move { crate::harness::sockets::gone(&io).await }).await;
    site.world.net.always("alpha", mute.link());
    mute
}

/// A client whose question has come to a provider that says nothing, and that provider.
async fn waiting(site: &Site) -> (TcpStream, Peer) {
    let provider = mute(site).await;
    let mut io = TcpStream::connect(site.address()).await.unwrap();
    io.write_all(post(&length(BODY), BODY).as_bytes()).await.unwrap();
    until("the provider to be asked", || provider.taken() > 0).await;
    (io, provider)
}

/// Writes these pieces so far apart that each is read alone, and reads until the other side closes.
async fn dripped(site: &Site, pieces: &[&str]) -> Vec<u16> {
    let io = TcpStream::connect(site.address()).await.unwrap();
    io.set_nodelay(true).unwrap();
    let (mut from, mut to) = io.into_split();
    let pieces: Vec<_> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    let writing = tokio::spawn(async move {
        for piece in pieces {
            if to.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(30)).await;
        }
        to
    });
    let mut answer = Vec::new();
    timeout(PATIENCE, from.read_to_end(&mut answer)).await.expect("borne for ever").ok();
    drop(writing.await);
    statuses(&answer)
}

#[tokio::test]
async fn vectors_of_leading_crlfs_that_drip_are_counted_like_those_that_come_at_once() {
    let site = Site::new().await;
    let (whole, last) = (post(&length(BODY), BODY), next());
    let cut = whole.find("\r\n\r\n").unwrap();
    let (head, rest) = (&whole[..cut], &whole[cut + 4..]);
    let served: &[&[&str]] = &[
        &["\r", "\n", &last],
        // The end of a head in pieces is no blank line, neither the first head's nor a later one's.
        &[head, "\r", "\n", "\r", "\n", rest, "\r\n", head, "\r\n\r\n", rest, "\r\n", &last],
    ];
    for (pieces, answers) in served.iter().zip([1, 3]) {
        assert_eq!(dripped(&site, pieces).await, vec![200; answers], "{pieces:?}");
        assert_eq!(requests(&site.sent()).unwrap().len(), answers, "{pieces:?}");
    }
    let refused: &[&[&str]] = &[&["\r", "\n", "\r", "\n", &last], &[&whole, "\r\n\r\n", "\r\n", "\r\n", &last]];
    for (pieces, answers) in refused.iter().zip([vec![400], vec![200, 400]]) {
        assert_eq!(dripped(&site, pieces).await, answers, "{pieces:?}");
        assert_eq!(requests(&site.sent()).unwrap().len(), answers.len() - 1, "{pieces:?}");
    }
    site.world.assert_idle();
}

#[tokio::test]
async fn vectors_of_early_answers_whose_body_comes_later_end_the_connection_and_nothing_in_the_body_is_a_request() {
    let site = Site::new().await;
    let hidden = post(&length(BODY), BODY);
    let framing = format!("host: a\r\n{}", length(&hidden));
    for (status, head) in [
        (404, raw("POST /v1/nothing HTTP/1.1", &framing, "")),
        (405, raw("PUT /v1/chat/completions HTTP/1.1", &framing, "")),
        (401, post(&length(&hidden), "").replace(SHOP, "wb-nobody-knows-this-key")),
    ] {
        assert_eq!(dripped(&site, &[&head, &hidden, &next()]).await, [status], "{head}");
        assert!(site.sent().is_empty(), "{head}");
    }
    site.world.assert_idle();
}

/// hyper takes the end of what a client writes for the end of the client. That is kept on purpose: it is how a client that
/// leaves is noticed. README tells clients not to do it.
#[tokio::test]
async fn vectors_of_half_a_close_are_the_end_of_the_connection() {
    let site = Site::new().await;
    let (mut io, provider) = waiting(&site).await;
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.is_empty(), "the answer is lost");
    timeout(PATIENCE, provider.left_alone()).await.unwrap();

    // In the middle of its body, nobody has been asked.
    let site = Site::new().await;
    let mut io = TcpStream::connect(site.address()).await.unwrap();
    io.write_all(post(&length(BODY), &BODY[..9]).as_bytes()).await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(matches!(statuses(&answer)[..], [] | [400]) && site.sent().is_empty());
}

#[tokio::test]
async fn vector_of_a_client_that_closes_while_it_is_served_ends_the_providers_work_too() {
    let site = Site::new().await;
    let (io, provider) = waiting(&site).await;
    sleep(Duration::from_millis(50)).await;
    let left = Instant::now();
    drop(io);
    timeout(PATIENCE, provider.left_alone()).await.unwrap();
    // A candidate's own limits are seconds: it was the client that ended it.
    assert!(left.elapsed() < Duration::from_secs(3), "{:?}", left.elapsed());
    until("every place to be free", || site.world.shared.gate.in_flight() == 0).await;
    site.world.assert_idle();
}
