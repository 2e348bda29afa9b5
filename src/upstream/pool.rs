//! Connections to one origin, kept per core.
//!
//! A small pool of our own on `hyper::client::conn` instead of hyper-util's pooled client: connections never cross cores,
//! and it knows exactly whether a byte of a request may have been written ([`Sent`]). The most recently used connection
//! is taken first, an idle one is dropped well before providers drop theirs, and a request that was handed to a
//! connection already dead is moved to a fresh one, because nothing of it was written.
//!
//! A request that finds no idle connection dials, and takes what comes first: its own connection, or one that another
//! request gives back. In a burst most are served by connections that are open already.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::config::tls::HttpVersion;
use crate::domain::outcome::Sent;
use crate::domain::worker;
use crate::upstream::body::RequestBody;
use crate::upstream::dial::{Dial, Io, Origin};
use crate::upstream::interim;

use alone::Alone;
use answer::Reader;
use line::{Line, is_ready, line};
use multiplex::{Lines, Which};

pub use answer::{Broken, UpstreamBody};

pub mod alone;
mod answer;
mod line;
pub mod multiplex;

/// Idle connections kept per core and origin.
const MOST_IDLE: usize = 64;
/// Below the 60 s after which common load balancers close theirs.
const IDLE_LIMIT: Duration = Duration::from_secs(50);
/// Connections tried before giving up on finding a live one.
const MOST_STALE: usize = 8;
/// Largest response head.
const HEAD_BYTES: usize = 64 * 1024;

/// A request on its way out. Boxed, because it is large and passes through many hands.
pub type Outgoing = Box<Request<RequestBody>>;

/// All connections to one origin.
pub struct Pool {
    origin: Origin,
    dial: Arc<dyn Dial>,
    shelves: Box<[Mutex<Shelf>]>,
    /// Present where HTTP/2 is spoken; then nothing else here is used.
    multiplexed: Option<Box<Lines>>,
}

/// One core's connections that wait for a request, and its requests that wait for a connection.
#[derive(Default)]
struct Shelf {
    idle: Vec<Idle>,
    waiting: VecDeque<oneshot::Sender<Box<Line>>>,
}

struct Idle {
    line: Box<Line>,
    since: Instant,
}

/// Why no response head came.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No connection in time.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// The connection broke before a response.
    #[error("the connection broke before a response")]
    Broken {
        /// What may have been written.
        sent: Sent,
        /// True if the connection had served before: it may just have been closed by its idle timer.
        reused: bool,
    },
    /// The provider went on saying that an answer would come.
    #[error("too many interim responses came before a response")]
    TooManyInterim,
    /// The head says in two ways where the body ends (R1).
    #[error("the response has both a length and a coding")]
    Ambiguous,
}

impl Pool {
    /// An empty pool.
    pub fn new(origin: Origin, dial: Arc<dyn Dial>) -> Self {
        let shelves = (0..worker::MOST_WORKERS).map(|_| Mutex::default()).collect();
        let multiplexed = (origin.http == HttpVersion::Two).then(|| Box::new(Lines::new()));
        Self { origin, dial, shelves, multiplexed }
    }

    /// Where it leads.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Connections of all cores that wait for a request. One that the other side has closed counts until it is found out.
    pub fn idle(&self) -> usize {
        let single: usize =
            self.shelves.iter().map(|shelf| shelf.lock().unwrap_or_else(PoisonError::into_inner).idle.len()).sum();
        single + self.multiplexed.as_ref().map_or(0, |lines| lines.idle())
    }

    /// Sends one request and waits for the head of its response. `connect` bounds the dialling; the caller bounds the rest.
    ///
    /// # Errors
    /// [`ExchangeError`], which knows what may have been sent.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection it was using.
    pub async fn exchange(
        self: &Arc<Self>,
        mut request: Outgoing,
        connect: Duration,
    ) -> Result<Response<UpstreamBody>, ExchangeError> {
        if let Some(lines) = &self.multiplexed {
            return Box::pin(lines.exchange(self, request, connect, Which::Any)).await;
        }
        for _ in 0..MOST_STALE {
            let Some(line) = self.take_idle().await else { break };
            match self.over(line, request).await {
                Err((error, Some(unsent))) if error.is_unsent() => request = unsent,
                Err((error, _)) => return Err(error),
                Ok(response) => return Ok(response),
            }
        }
        // Boxed because it is rare, and large with all that dialling takes.
        Box::pin(self.exchange_first(request, connect)).await
    }

    /// On the connection that comes first.
    async fn exchange_first(
        self: &Arc<Self>,
        request: Outgoing,
        connect: Duration,
    ) -> Result<Response<UpstreamBody>, ExchangeError> {
        let line = timeout(connect, self.first(connect)).await.unwrap_or_else(|_| Err(late()));
        match self.over(line.map_err(ExchangeError::Connect)?, request).await {
            // It was given back by somebody else, and is dead.
            Err((ExchangeError::Broken { sent: Sent::No, reused: true }, Some(unsent))) => {
                self.exchange_fresh(unsent, connect).await
            }
            result => result.map_err(|(error, _)| error),
        }
    }

    /// As [`Pool::exchange`], on a connection nobody used before.
    ///
    /// # Errors
    /// As [`Pool::exchange`].
    pub async fn exchange_fresh(
        self: &Arc<Self>,
        request: Outgoing,
        connect: Duration,
    ) -> Result<Response<UpstreamBody>, ExchangeError> {
        if let Some(lines) = &self.multiplexed {
            return Box::pin(lines.exchange(self, request, connect, Which::Fresh)).await;
        }
        let line = self.connect(connect).await.map_err(ExchangeError::Connect)?;
        self.over(line, request).await.map_err(|(error, _)| error)
    }

    /// As [`Pool::exchange_fresh`], on a connection that serves nobody afterwards: an answer may come before the request
    /// has ended, and then the rest of it need not be written.
    ///
    /// # Errors
    /// As [`Pool::exchange`].
    pub async fn exchange_once(
        self: &Arc<Self>,
        request: Outgoing,
        connect: Duration,
    ) -> Result<Response<UpstreamBody>, ExchangeError> {
        let mut response = self.exchange_fresh(request, connect).await?;
        if let Some(lease) = &mut response.body_mut().lease {
            lease.home = None;
        }
        Ok(response)
    }

    async fn over(
        self: &Arc<Self>,
        mut line: Box<Line>,
        request: Outgoing,
    ) -> Result<Response<UpstreamBody>, (ExchangeError, Option<Outgoing>)> {
        let reused = std::mem::replace(&mut line.used, true);
        let may_be_alone = alone::may_be(&request);
        if may_be_alone {
            line.hold.want();
        }
        match line.sender.try_send_request(*request).await {
            Ok(response) if is_ambiguous(&response) => Err((ExchangeError::Ambiguous, None)),
            Ok(response) if may_be_alone => Ok(Box::pin(self.alone(line, response)).await),
            Ok(response) => Ok(self.leased(line, response)),
            Err(mut err) => {
                if interim::is_flood(err.error()) {
                    return Err((ExchangeError::TooManyInterim, None));
                }
                let unsent = err.take_message().map(Box::new);
                let sent = if unsent.is_some() { Sent::No } else { Sent::Maybe };
                Err((ExchangeError::Broken { sent, reused }, unsent))
            }
        }
    }

    fn leased(self: &Arc<Self>, mut line: Box<Line>, response: Response<Incoming>) -> Response<UpstreamBody> {
        line.home = Some(Arc::clone(self));
        let mut response =
            response.map(|body| UpstreamBody { body: Reader::Hyper(body), lease: Some(line), stream: None });
        // Nobody reads a body that has nothing in it.
        if response.body().is_over() {
            response.body_mut().release();
        }
        response
    }

    /// The answer with its connection out of hyper's hands, if it is a stream that can be read so.
    async fn alone(self: &Arc<Self>, line: Box<Line>, response: Response<Incoming>) -> Response<UpstreamBody> {
        if alone::can_be(&response)
            && let Some(given) = line.hold.take().await
        {
            let home = alone::stays_open(&response).then(|| Arc::clone(self));
            let body = Reader::Alone(Box::new(Alone::new(given, home)));
            return response.map(|_| UpstreamBody { body, lease: None, stream: None });
        }
        line.hold.release();
        self.leased(line, response)
    }

    /// Takes a connection back whose stream was read [`alone`].
    fn adopt(&self, io: Box<dyn Io>) {
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        // Nothing is exchanged when a connection is handed to hyper: it is ready at once.
        if let Some(Ok(line)) = line(io).now_or_never() {
            self.put_back(line);
        }
    }

    /// A connection dialled for this request, or one that is given back before that is there; then the other is kept for
    /// those who come. A request that leaves takes its dialling along.
    async fn first(self: &Arc<Self>, limit: Duration) -> io::Result<Box<Line>> {
        let ((found, own), pool) = (oneshot::channel(), Arc::clone(self));
        let mut dialling = Dialling {
            task: Some(tokio::spawn(async move {
                if let Err(Ok(line)) = found.send(pool.connect(limit).await) {
                    pool.put_back(line);
                }
            })),
        };
        let mut own = own;
        loop {
            let given = self.queue();
            tokio::select! {
                biased;
                found = &mut own => return found.map_err(io::Error::other)?,
                Ok(mut line) = given => {
                    if is_ready(&mut line.sender).await {
                        dialling.task = None;
                        return Ok(line);
                    }
                }
            }
        }
    }

    async fn connect(&self, limit: Duration) -> io::Result<Box<Line>> {
        let open = async {
            let io = self.dial.dial(&self.origin, limit).await?;
            line(io).await
        };
        timeout(limit, open).await.unwrap_or_else(|_| Err(late()))
    }

    async fn take_idle(&self) -> Option<Box<Line>> {
        loop {
            let Idle { mut line, since } = self.shelf()?.idle.pop()?;
            if since.elapsed() < IDLE_LIMIT && !line.sender.is_closed() && is_ready(&mut line.sender).await {
                return Some(line);
            }
        }
    }

    /// To who has waited longest, or on the shelf.
    fn put_back(&self, mut line: Box<Line>) {
        let Some(mut shelf) = self.shelf() else { return };
        if line.sender.is_closed() {
            return;
        }
        line.used = true;
        while let Some(waiting) = shelf.waiting.pop_front() {
            match waiting.send(line) {
                Ok(()) => return,
                // That one has found another, or has left.
                Err(back) => line = back,
            }
        }
        let (now, idle) = (Instant::now(), &mut shelf.idle);
        // The oldest lie at the bottom: let go of what nobody will take again.
        let stale =
            idle.iter().take_while(|idle| now - idle.since >= IDLE_LIMIT || idle.line.sender.is_closed()).count();
        idle.drain(..stale);
        if idle.len() < MOST_IDLE {
            idle.push(Idle { line, since: now });
        }
    }

    /// Where a connection that is given back arrives. As many wait as dial, which the callers' own limits bound; of those
    /// who no longer do, the ones in front are let go of.
    fn queue(&self) -> oneshot::Receiver<Box<Line>> {
        let (give, given) = oneshot::channel();
        if let Some(mut shelf) = self.shelf() {
            while shelf.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                shelf.waiting.pop_front();
            }
            shelf.waiting.push_back(give);
        }
        given
    }

    /// This core's idle connections. A `std` mutex: only this core takes it, for a push or a pop.
    fn shelf(&self) -> Option<MutexGuard<'_, Shelf>> {
        Some(self.shelves.get(worker::index())?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A connection being made for a request; given up with it, unless it was left to others.
struct Dialling {
    task: Option<JoinHandle<()>>,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no connection in time")
}

/// One of the two is a lie, or somebody in between takes the other one for true.
fn is_ambiguous<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH)
}

impl ExchangeError {
    fn is_unsent(&self) -> bool {
        matches!(self, Self::Broken { sent: Sent::No, .. })
    }
}

#[cfg(test)]
mod tests;
