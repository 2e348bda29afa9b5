//! One client connection, from its first byte of HTTP to its close: HTTP/1.1 or HTTP/2, its caps and its deadlines.
//!
//! hyper parses; this decides how long anything may take. hyper's own header timer is left off because it cannot tell an
//! idle connection (60 s) from a dripping head (10 s) and costs a timer for each request. hyper-util's automatic choice of
//! protocol is not used either: it waits for the first byte without any deadline. Generic over the bytes and the service,
//! so that tests run in memory under a paused clock.
//!
//! A pipelined head that arrived with its predecessor is timed as idle until its next byte: its bound is `keep_alive`
//! plus `head_timeout`.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tower::Service;

use super::activity::{Activity, Command, Load, Phase};
use super::io_deadline::DeadlineIo;
use super::limits::ConnectionLimits;
use super::pieces::Pieces;
use super::service::Counted;
use super::shutdown::{ShutdownSignal, Stage};
use super::stream_stall::StreamExecutor;
use crate::flight::arrival::Secured;
use crate::telemetry::labels::ConnectionEnd;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What an HTTP/2 client says first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read: most heads fit, and it is given back once hyper has taken it.
const FIRST_READ: usize = 4 * 1024;
/// Most bytes hyper buffers in each direction of an HTTP/1 connection, and for each HTTP/2 stream's answer.
const BUFFER: usize = 64 * 1024;
/// How many header fields hyper parses without allocating.
const FIELDS_ON_STACK: usize = 100;
/// How long a draining connection waits for a request that may be on its way, and an evicted one for its close.
pub(super) const LAST_CHANCE: Duration = Duration::from_millis(100);
/// How long a draining connection waits for the rest of a request head, or of a handshake: some round trips.
pub(super) const LAST_HEAD: Duration = Duration::from_secs(1);
/// How long a client may take to acknowledge the end of an idle HTTP/2 connection.
const GOODBYE: Duration = Duration::from_secs(5);
/// The same in a drain, where somebody waits for the process to end.
const DRAIN_GOODBYE: Duration = Duration::from_secs(1);
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to answer.
const PING: Duration = Duration::from_secs(15);

/// Serves one connection until it ends and says why it did. For tests and anything else without a listener; a listener's
/// connections share their worker's view of `signal`.
///
/// # Cancel safety
/// Dropping the future drops the connection and, over HTTP/1, its request in flight. The streams of HTTP/2 are tasks of
/// their own and end at their next wake-up.
pub async fn serve<I, S, B>(io: I, service: S, limits: ConnectionLimits, signal: ShutdownSignal) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Error>,
{
    let activity = Activity::new(Arc::new(Load::default()));
    let obey = async {
        signal.reached(Stage::Leaving).await;
        activity.command(Command::Retire);
        signal.reached(Stage::Draining).await;
        activity.command(Command::Drain);
        signal.reached(Stage::Stopped).await;
        activity.command(Command::Stop);
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        end = drive(io, service, limits, Arc::clone(&activity), Settled::default()) => end,
        never = obey => match never {},
    }
}

/// What is known of a connection before its first byte of HTTP.
#[derive(Default)]
pub(super) struct Settled {
    /// True for HTTP/2; `None` if the first bytes will tell.
    pub(super) http2: Option<bool>,
    /// Present if the bytes come through our own TLS.
    pub(super) secured: Option<Arc<Secured>>,
}

/// Serves one connection under the commands that `activity` is given.
pub(super) async fn drive<I, S, B>(
    mut io: I,
    service: S,
    limits: ConnectionLimits,
    activity: Arc<Activity>,
    settled: Settled,
) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Error>,
{
    // Who has just gone through a handshake is about to ask.
    let last = if settled.secured.is_some() { LAST_HEAD } else { LAST_CHANCE };
    let (prefix, http2) = match first_bytes(&mut io, last, &limits, &activity).await {
        Ok(first) => first,
        Err(end) => return end,
    };
    let io = TokioIo::new(DeadlineIo::new(io, prefix, Arc::clone(&activity), limits.write_stall));
    let service = Counted::new(service, Arc::clone(&activity), limits.head_fields).secured(settled.secured);
    if settled.http2.unwrap_or(http2) {
        activity.speaks_http2();
        // Boxed so that the common HTTP/1 connection does not carry room for it.
        Box::pin(driven(http2_builder(&limits).serve_connection(io, Pieces(service)), limits, activity)).await
    } else {
        driven(http1_builder(&limits).serve_connection(io, service), limits, activity).await
    }
}

fn http1_builder(limits: &ConnectionLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(limits.head_bytes).max_buf_size(BUFFER.max(limits.head_bytes));
    if limits.head_fields > FIELDS_ON_STACK {
        builder.max_headers(limits.head_fields);
    }
    builder
}

fn http2_builder(limits: &ConnectionLimits) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(StreamExecutor { write_stall: limits.write_stall });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(BUFFER)
        // Streams a client resets before we saw them, and streams reset for its mistakes: both are attacks when many.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Reads until the protocol is clear, for `last` once the process drains. True means HTTP/2.
async fn first_bytes<I: AsyncRead + Unpin>(
    io: &mut I,
    last: Duration,
    limits: &ConnectionLimits,
    activity: &Activity,
) -> Result<(Bytes, bool), ConnectionEnd> {
    let mut prefix = BytesMut::with_capacity(FIRST_READ);
    let late = pin!(sleep_until(Instant::now() + limits.head_timeout));
    let mut patience = Patience { late, too_late: ConnectionEnd::HeadTimeout, last };
    loop {
        let read = patience.with(io.read_buf(&mut prefix), activity).await?;
        if read.map_err(|_| ConnectionEnd::Failed)? == 0 {
            return Err(ConnectionEnd::Closed);
        }
        activity.bytes_arrived();
        let common = prefix.len().min(HTTP2_PREFACE.len());
        if prefix.get(..common) != HTTP2_PREFACE.get(..common) {
            return Ok((prefix.freeze(), false));
        }
        if common == HTTP2_PREFACE.len() {
            return Ok((prefix.freeze(), true));
        }
    }
}

/// How long a connection that has asked for nothing yet may take.
pub(super) struct Patience<'a> {
    pub(super) late: Pin<&'a mut Sleep>,
    pub(super) too_late: ConnectionEnd,
    /// How much of it a drain leaves.
    pub(super) last: Duration,
}

impl Patience<'_> {
    /// The client has begun with something that a drain gives more time.
    pub(super) fn has_begun(&mut self, last: Duration) {
        self.last = last;
        if self.too_late == ConnectionEnd::Drained {
            self.late.as_mut().reset(Instant::now() + last);
        }
    }

    /// Waits for a step, for as long as there is time and the worker has nothing against it.
    ///
    /// # Errors
    /// What the connection's end is called.
    pub(super) async fn with<T>(
        &mut self,
        step: impl Future<Output = T>,
        activity: &Activity,
    ) -> Result<T, ConnectionEnd> {
        let mut step = pin!(step);
        poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            match activity.commanded(cx.waker()) {
                Command::Evict => return Poll::Ready(Err(ConnectionEnd::Evicted)),
                Command::Drain if self.too_late != ConnectionEnd::Drained => {
                    self.too_late = ConnectionEnd::Drained;
                    self.late.as_mut().reset(Instant::now() + self.last);
                }
                Command::Serve | Command::Retire | Command::Drain => {}
                Command::Stop => return Poll::Ready(Err(ConnectionEnd::Aborted)),
            }
            self.late.as_mut().poll(cx).map(|()| Err(self.too_late))
        })
        .await
    }
}

/// What both of hyper's connections can do.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl<I, S, B> Graceful for http1::Connection<I, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Error>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Error>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Graceful for http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Error>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Error>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn driven<C: Graceful>(connection: C, limits: ConnectionLimits, activity: Arc<Activity>) -> ConnectionEnd {
    let mut connection = pin!(connection);
    let mut driver = Driver {
        limits,
        activity,
        timer: pin!(sleep_until(Instant::now())),
        armed: None,
        draining_since: None,
        finishing: None,
    };
    poll_fn(|cx| driver.poll(cx, connection.as_mut())).await
}

/// Polls a connection and ends it when it should.
struct Driver<'a> {
    limits: ConnectionLimits,
    activity: Arc<Activity>,
    timer: Pin<&'a mut Sleep>,
    /// When the timer fires. It may be too early: then it is set again, so that most requests never touch it.
    armed: Option<Instant>,
    draining_since: Option<Instant>,
    /// Set once the connection was told to finish: what its end will be called, and when it must have come.
    finishing: Option<(ConnectionEnd, Option<Instant>)>,
}

impl Driver<'_> {
    fn poll<C: Graceful>(&mut self, cx: &mut Context<'_>, mut connection: Pin<&mut C>) -> Poll<ConnectionEnd> {
        if let Some(end) = self.obey(cx, connection.as_mut()) {
            return Poll::Ready(end);
        }
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(self.verdict(ended));
            }
            let Some((at, end)) = self.deadline() else { return Poll::Pending };
            ready!(self.sleep_until(at, cx));
            match end {
                // An HTTP/2 client is told; the rest of the connection's life has a deadline of its own.
                ConnectionEnd::Idle if self.finishing.is_none() => {
                    self.finish(connection.as_mut(), end, Some(GOODBYE));
                }
                // Nothing came in the last chance. Half a head is not waited for any longer: hyper would, and so would we.
                ConnectionEnd::Drained if self.finishing.is_none() && self.activity.idle_since().is_some() => {
                    self.finish(connection.as_mut(), end, None);
                }
                late => return Poll::Ready(late),
            }
        }
    }

    /// Does what the worker wants. Some end means at once.
    fn obey<C: Graceful>(&mut self, cx: &mut Context<'_>, connection: Pin<&mut C>) -> Option<ConnectionEnd> {
        let command = self.activity.commanded(cx.waker());
        let idle = self.activity.idle_since().is_some();
        match command {
            Command::Serve => {}
            Command::Stop => return Some(ConnectionEnd::Aborted),
            _ if self.finishing.is_some() => self.note_drain(command),
            Command::Evict if idle => self.finish(connection, ConnectionEnd::Evicted, Some(LAST_CHANCE)),
            Command::Evict => self.activity.forget_eviction(),
            Command::Retire | Command::Drain => {
                self.note_drain(command);
                if self.activity.phase() == Phase::Busy || self.activity.is_http2() {
                    self.finish(connection, ConnectionEnd::Drained, None);
                }
            }
        }
        None
    }

    fn note_drain(&mut self, command: Command) {
        if command == Command::Drain {
            self.draining_since.get_or_insert_with(Instant::now);
        }
    }

    fn finish<C: Graceful>(&mut self, connection: Pin<&mut C>, end: ConnectionEnd, within: Option<Duration>) {
        connection.finish();
        self.finishing = Some((end, within.map(|within| Instant::now() + within)));
    }

    /// What has to happen next, and when. The end says why.
    fn deadline(&self) -> Option<(Instant, ConnectionEnd)> {
        if let Some((end, at)) = self.finishing {
            return at.or_else(|| self.farewell()).map(|at| (at, end));
        }
        let usual = self.activity.deadline(&self.limits);
        let chance = match self.activity.phase() {
            Phase::Fresh | Phase::Idle => Some(LAST_CHANCE),
            Phase::Head => Some(LAST_HEAD),
            Phase::Busy => None,
        };
        let drained = self.draining_since.zip(chance).map(|(since, chance)| (since + chance, ConnectionEnd::Drained));
        usual.into_iter().chain(drained).min_by_key(|(at, _)| *at)
    }

    /// How long a drain waits for an HTTP/2 client to answer its goodbye. One that does not read while it has nothing in
    /// flight would hold the drain to its limit; one whose last answer has just ended may still be taking it.
    fn farewell(&self) -> Option<Instant> {
        let idle = self.activity.idle_since().filter(|_| self.activity.is_http2())?;
        Some((idle + GOODBYE).max(self.draining_since? + DRAIN_GOODBYE))
    }

    fn sleep_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.armed.is_none_or(|armed| armed > at) {
                self.armed = Some(at);
                self.timer.as_mut().reset(at);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.armed.take() == Some(at) || Instant::now() >= at {
                return Poll::Ready(());
            }
        }
    }

    fn verdict(&self, ended: hyper::Result<()>) -> ConnectionEnd {
        let told = self.activity.cause().or(self.finishing.map(|(end, _)| end));
        match (told, ended) {
            (Some(end), _) => end,
            (None, Ok(())) => ConnectionEnd::Closed,
            (None, Err(err)) => {
                let closed = err.is_incomplete_message() || err.is_canceled() || is_disconnect(&err);
                if closed { ConnectionEnd::Closed } else { ConnectionEnd::Failed }
            }
        }
    }
}

fn is_disconnect(err: &hyper::Error) -> bool {
    let source = std::error::Error::source(err).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(has_left)
}

/// True if the peer just went away, which clients do; over TLS often without saying so.
pub(super) fn has_left(err: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(err.kind(), ConnectionReset | BrokenPipe | NotConnected | ConnectionAborted | UnexpectedEof)
}

#[cfg(test)]
mod tests;
