//! HTTP/2 towards one origin: per core one connection for all requests, and a few more when its streams are taken.
//!
//! A stream is what a connection is in HTTP/1.1: it carries one request, it is given up alone (with RST_STREAM) when its
//! call leaves, and the others on its connection do not notice. What the other side refused before it looked at it
//! (REFUSED_STREAM, and streams above the last one a GOAWAY names: RFC 9113, section 8.7) was not sent as far as anybody
//! can tell, and is moved to another stream. Everything is bounded: connections, streams, heads, and what a slow reader
//! lets pile up; a connection's window has room for all its streams, so that those who stall hold up nobody.
//!
//! It deliberately has no server push, no priorities and no window that adapts.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, timeout_at};

use super::{ExchangeError, HEAD_BYTES, IDLE_LIMIT, Outgoing, Pool, UpstreamBody, late};
use crate::domain::outcome::Sent;
use crate::domain::worker;
use crate::upstream::body::RequestBody;
use crate::upstream::dial::Io;

/// Connections of one core.
const MOST_LINES: usize = 8;
/// Requests on one connection, however many the other side would take.
const MOST_STREAMS: u32 = 64;
/// Bytes of an answer that may come before somebody reads them.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection.
const LINE_WINDOW: u32 = MOST_STREAMS * STREAM_WINDOW;
/// Bytes of a request that lie ready to be written.
const SEND_BUFFER: usize = 256 * 1024;
/// While requests are on their way and nothing is heard, the other side is asked whether it is there, and has so long to say so.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_LIMIT: Duration = Duration::from_secs(10);
/// Streams tried for one request.
const MOST_MOVES: usize = 4;

/// All connections to one origin.
pub(super) struct Lines {
    cores: Box<[Core]>,
}

struct Core {
    /// A `std` mutex held for a look at a few connections, never across an await.
    lines: Mutex<Vec<Arc<Line>>>,
    /// Who holds it dials; the others wait for what comes of it.
    turn: tokio::sync::Mutex<()>,
    /// How many streams the other side allowed last: a new connection may have as many, until it says otherwise.
    allowed: AtomicU32,
}

impl Default for Core {
    fn default() -> Self {
        Self { lines: Mutex::default(), turn: tokio::sync::Mutex::default(), allowed: AtomicU32::new(MOST_STREAMS) }
    }
}

/// One connection. It ends when its last stream and its place among the lines are gone.
struct Line {
    sender: SendRequest<RequestBody>,
    streams: AtomicU32,
    /// What the other side allows, as it was known when the last request was sent.
    most: Arc<AtomicU32>,
    /// True once it takes no more requests.
    retired: AtomicBool,
    /// True once a request was sent: its other side may just be closing it.
    used: AtomicBool,
    /// When it last had a stream.
    since: Mutex<Instant>,
}

/// A place on a connection; the place is free again when it is gone.
pub(super) struct Stream(Arc<Line>);

/// A connection may be one that others use, or must be new.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Any,
    Fresh,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { cores: (0..worker::MOST_WORKERS).map(|_| Core::default()).collect() }
    }

    /// Connections that nobody uses just now.
    pub(super) fn idle(&self) -> usize {
        let idle = |core: &Core| core.lock().iter().filter(|line| line.streams.load(Ordering::Acquire) == 0).count();
        self.cores.iter().map(idle).sum()
    }

    /// As [`Pool::exchange`].
    pub(super) async fn exchange(
        &self,
        pool: &Pool,
        request: Outgoing,
        connect: Duration,
        mut which: Which,
    ) -> Result<Response<UpstreamBody>, ExchangeError> {
        let mut request = self::request(*request, pool.origin.tls);
        for _ in 0..MOST_MOVES {
            let stream = self.stream(pool, connect, which).await.map_err(ExchangeError::Connect)?;
            // A stream that was refused is no reason for a new connection; one that is closing was retired.
            which = Which::Any;
            let reused = stream.0.used.swap(true, Ordering::AcqRel);
            let spare = spare(&request);
            match stream.0.sender.clone().try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| UpstreamBody::multiplexed(body, stream))),
                Err(mut failed) => {
                    let unsent = failed.take_message();
                    let verdict = Verdict::of(failed.error());
                    if unsent.is_some() || verdict.ends_the_line() {
                        stream.0.retired.store(true, Ordering::Release);
                    }
                    let untouched = unsent.is_some() || verdict.is_untouched();
                    // A stream that was given up alone is no sign that its connection had been idle for too long.
                    let reused = reused && verdict == Verdict::Broken;
                    match unsent.or(spare).filter(|_| untouched) {
                        Some(again) => request = again,
                        None => return Err(ExchangeError::Broken { sent: Sent::Maybe, reused }),
                    }
                }
            }
        }
        Err(ExchangeError::Broken { sent: Sent::No, reused: false })
    }

    /// A place on a connection: one that is there, or one that is dialled by the first of those who need it.
    async fn stream(&self, pool: &Pool, connect: Duration, which: Which) -> io::Result<Stream> {
        let core = self.cores.get(worker::index()).ok_or_else(late)?;
        if which == Which::Any
            && let Some(stream) = core.free()
        {
            return Ok(stream);
        }
        let until = Instant::now() + connect;
        let _turn = timeout_at(until, core.turn.lock()).await.map_err(|_| late())?;
        if which == Which::Any
            && let Some(stream) = core.free()
        {
            return Ok(stream);
        }
        let left = until.saturating_duration_since(Instant::now());
        let allowed = core.allowed.load(Ordering::Relaxed);
        let line = timeout_at(until, open(pool, left, allowed)).await.unwrap_or_else(|_| Err(late()))?;
        Ok(core.add(line))
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on the first connection that has one. Where no more connections may be opened, one of the least busy, whose
    /// other side has to be waited for.
    fn free(&self) -> Option<Stream> {
        let mut lines = self.lock();
        lines.retain(|line| line.is_usable());
        if let Some(known) = lines.first() {
            self.allowed.store(known.most(), Ordering::Relaxed);
        }
        let free = lines.iter().find(|line| line.streams.load(Ordering::Acquire) < line.most());
        let least = || lines.iter().filter(|_| lines.len() >= MOST_LINES).min_by_key(|line| line.streams());
        free.or_else(least).map(Line::enter)
    }

    fn add(&self, line: Arc<Line>) -> Stream {
        let stream = Line::enter(&line);
        let mut lines = self.lock();
        // Beyond the bound it serves this one request only.
        if lines.len() < MOST_LINES {
            lines.push(line);
        }
        stream
    }
}

impl Line {
    fn enter(line: &Arc<Self>) -> Stream {
        line.streams.fetch_add(1, Ordering::AcqRel);
        Stream(Arc::clone(line))
    }

    fn streams(&self) -> u32 {
        self.streams.load(Ordering::Acquire)
    }

    /// How many streams it may have. The other side says so once it has answered the handshake.
    fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed).clamp(1, MOST_STREAMS)
    }

    fn is_usable(&self) -> bool {
        let since = || self.since.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let out = self.retired.load(Ordering::Acquire) || self.sender.is_closed();
        !out && (self.streams() > 0 || since() < IDLE_LIMIT)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.0.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn open(pool: &Pool, within: Duration, allowed: u32) -> io::Result<Arc<Line>> {
    let io = pool.dial.dial(&pool.origin, within).await?;
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(LINE_WINDOW)
        .adaptive_window(false)
        .initial_max_send_streams(usize::try_from(allowed).ok())
        .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_LIMIT);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    let most = Arc::new(AtomicU32::new(allowed));
    // It ends with its line, once the streams on it have ended, or when the other side closes.
    tokio::spawn(watched(connection, Arc::clone(&most)));
    Ok(Arc::new(Line {
        sender,
        most,
        streams: AtomicU32::new(0),
        retired: AtomicBool::new(false),
        used: AtomicBool::new(false),
        since: Mutex::new(Instant::now()),
    }))
}

/// Drives a connection and notes how many streams its other side allows.
async fn watched(
    mut connection: Connection<TokioIo<Box<dyn Io>>, RequestBody, TokioExecutor>,
    most: Arc<AtomicU32>,
) -> hyper::Result<()> {
    poll_fn(move |cx| {
        let driven = Pin::new(&mut connection).poll(cx);
        let allowed = u32::try_from(connection.current_max_send_streams()).unwrap_or(u32::MAX);
        most.store(allowed, Ordering::Relaxed);
        driven
    })
    .await
}

/// What a failure says of the request and of its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// This one was refused unseen; the connection goes on.
    Refused,
    /// The other side takes no more, and has not seen this one.
    Closing,
    /// This one was given up, and may have been seen; the connection goes on.
    GivenUp,
    /// The connection is gone, and this one may have been seen.
    Broken,
}

impl Verdict {
    fn of(error: &hyper::Error) -> Self {
        let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else {
            return Self::Broken;
        };
        // The streams a GOAWAY counts among the processed ones go on, and end with their connection in another way.
        match (error.is_remote(), error.is_go_away(), error.is_reset()) {
            (true, true, _) => Self::Closing,
            (true, _, true) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => Self::Refused,
            (_, _, true) => Self::GivenUp,
            _ => Self::Broken,
        }
    }

    fn is_untouched(self) -> bool {
        matches!(self, Self::Refused | Self::Closing)
    }

    fn ends_the_line(self) -> bool {
        matches!(self, Self::Closing | Self::Broken)
    }
}

/// The same request once more, if its body is here.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let body: RequestBody = match request.body() {
        RequestBody::Whole(bytes) => Bytes::clone(bytes).into(),
        RequestBody::Pieces(pieces) => pieces.clone().into(),
        RequestBody::Upload(_) => return None,
    };
    let mut again = Request::new(body);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// A request as HTTP/2 has it: where it leads stands in its address and not in `host`.
pub fn request<B>(mut request: Request<B>, tls: bool) -> Request<B> {
    let host = request.headers_mut().remove(HOST);
    let mut parts = mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // All three are there, and without an authority the request is refused before it is sent.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request
}

#[cfg(test)]
mod tests;
