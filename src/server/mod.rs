//! Floor 7: accepts connections and serves them, on one runtime per core.
//!
//! [`Server`] is a listener with its acceptor and workers, for the data plane (a worker per core) and the admin plane
//! (one worker) alike; [`connection::serve`] is one connection without any of that, for tests. What a request means is
//! none of this floor's business: it takes any service that always answers.

pub mod connection;
pub mod limits;
pub mod shutdown;
pub mod takeover;

mod acceptor;
mod activity;
mod blank_lines;
mod io_deadline;
mod pieces;
mod service;
mod stream_stall;
mod tls;
mod worker;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tower::Service;

use self::acceptor::{Acceptor, Seat};
use self::limits::ConnectionLimits;
use self::shutdown::{Shutdown, Stage};
use self::worker::{Desk, Worker};
use crate::domain;
use crate::telemetry::metrics::Metrics;

/// Connections waiting for a worker that is busy. More wait in the kernel.
const WAITING: usize = 256;
/// Connections waiting in the kernel.
const BACKLOG: i32 = 4_096;
/// What requests get to say their last words after the drain limit.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long idle connections may take to close once a listener has left.
const IDLE_ONES_TIME: Duration = Duration::from_millis(300);
/// A worker wakes four times a second, and may be busy for a moment.
const ALIVE: Duration = Duration::from_secs(5);

/// Where connection limits are read, at each accept: they change with the configuration.
pub type LimitsSource = Arc<dyn Fn() -> ConnectionLimits + Send + Sync>;

/// Where the configuration of a TLS handshake is read, at each accept: certificates are renewed.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// What a listener needs.
pub struct ServerConfig {
    /// Bound and listening; see [`bind`].
    pub listener: TcpListener,
    /// How many cores serve it, at least one.
    pub workers: usize,
    /// Bounds for each new connection.
    pub limits: LimitsSource,
    /// `None` for a listener in the clear.
    pub tls: Option<TlsSource>,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// Stops the listener; made outside so that services can hold its signal.
    pub shutdown: Shutdown,
}

/// A listener that serves. Dropping it stops it at once.
pub struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
    desks: Vec<Arc<Desk>>,
    /// Closed when the last thread has ended.
    threads: mpsc::Receiver<Infallible>,
}

/// The share of connections that [`Idle::close`] closes at a time.
const IDLE_PART: usize = 4;

/// Idle connections of a listener.
pub struct Idle(Vec<Arc<Desk>>);

impl Idle {
    /// Closes the connections that have been idle longest, up to a quarter of all: whoever owned them may come back.
    pub fn close(&self) {
        for desk in &self.0 {
            let open = desk.load.connections.load(Relaxed);
            if open > 0 {
                desk.evict(open.div_ceil(IDLE_PART));
            }
        }
    }
}

/// How a drain went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrainReport {
    /// Connections open when accepting stopped.
    pub connections: usize,
    /// Requests in flight then.
    pub in_flight: usize,
    /// Requests that had not finished at the limit and were told to end.
    pub ended: usize,
    /// Requests that had not ended a second later and were dropped.
    pub aborted: usize,
}

/// Binds and listens, so that a restart need not wait for old connections to time out.
///
/// # Errors
/// The operating system's: the address is taken, not ours, or not allowed.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Server {
    /// Starts the threads. `make_service` runs once on each worker's thread, with the worker's index, after
    /// [`domain::worker::enter`]; the service is cloned for each connection and called without being polled for readiness.
    ///
    /// # Errors
    /// The operating system's, if it has no thread, descriptor or socket option left for us.
    pub fn start<F, S, B>(config: ServerConfig, make_service: F) -> io::Result<Self>
    where
        F: Fn(usize) -> S + Send + Sync + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let address = config.listener.local_addr()?;
        let make_service = Arc::new(make_service);
        let (alive, threads) = mpsc::channel(1);
        // Owns the threads from here on: an early return stops those that run already.
        let mut server = Self { address, shutdown: config.shutdown.clone(), desks: Vec::new(), threads };
        let mut seats = Vec::new();
        for index in 0..config.workers.clamp(1, domain::worker::MOST_WORKERS) {
            let (sender, incoming) = mpsc::channel(WAITING);
            let desk = Desk::new(Arc::clone(&config.metrics));
            let (signal, tls) = (config.shutdown.signal(), config.tls.clone());
            let worker = Worker { desk: Arc::clone(&desk), incoming, signal, tls };
            let (make_service, alive) = (Arc::clone(&make_service), alive.clone());
            let runtime = runtime()?;
            spawn(format!("worker-{index}"), move || {
                domain::worker::enter(index);
                runtime.block_on(worker.run(make_service(index)));
                drop((runtime, alive));
            })?;
            server.desks.push(Arc::clone(&desk));
            seats.push(Seat { sender, desk });
        }
        config.listener.set_nonblocking(true)?;
        let runtime = runtime()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(config.listener)?
        };
        let acceptor = Acceptor {
            listener,
            seats,
            limits: config.limits,
            open: Arc::new(AtomicUsize::new(0)),
            metrics: config.metrics,
            signal: config.shutdown.signal(),
        };
        spawn("acceptor".to_owned(), move || {
            runtime.block_on(acceptor.run());
            drop((runtime, alive));
        })?;
        Ok(server)
    }

    /// Where it listens; tells the port when it was bound to port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests whose answer has not ended.
    pub fn in_flight(&self) -> usize {
        self.desks.iter().map(|desk| desk.load.requests.load(Relaxed)).sum()
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.desks.iter().map(|desk| desk.load.connections.load(Relaxed)).sum()
    }

    /// Closes idle connections when it is called; outlives the listener.
    pub fn idle(&self) -> Idle {
        Idle(self.desks.clone())
    }

    /// Stops in good order: goes on for `delay` (the load balancer is noticing), stops accepting, closes idle
    /// connections and lets requests finish for up to `limit`; then tells the rest to end, and a second later drops it.
    ///
    /// # Cancel safety
    /// Dropping the future stops the listener at once.
    pub async fn drain(mut self, delay: Duration, limit: Duration) -> DrainReport {
        sleep(delay).await;
        let (connections, in_flight) = (self.connections(), self.in_flight());
        self.shutdown.advance(Stage::Draining);
        let mut report = DrainReport { connections, in_flight, ended: 0, aborted: 0 };
        if !self.ended_within(limit).await {
            report.ended = self.in_flight();
            self.shutdown.advance(Stage::Ending);
            if !self.ended_within(LAST_WORDS).await {
                report.aborted = self.in_flight();
                self.shutdown.advance(Stage::Stopped);
                self.ended_within(LAST_WORDS).await;
            }
        }
        report
    }

    /// Stops in good order where another process accepts from the same queue already: accepts no more, answers whatever
    /// still comes over open connections and closes each of them after that, for up to `limit`; then as [`Server::drain`].
    ///
    /// # Cancel safety
    /// Dropping the future stops the listener at once.
    pub async fn leave(mut self, limit: Duration) -> DrainReport {
        let (connections, in_flight) = (self.connections(), self.in_flight());
        self.shutdown.advance(Stage::Leaving);
        if self.ended_within(limit).await {
            return DrainReport { connections, in_flight, ended: 0, aborted: 0 };
        }
        // Idle connections have had their time.
        let report = self.drain(Duration::ZERO, IDLE_ONES_TIME).await;
        DrainReport { connections, in_flight, ..report }
    }

    /// Stops accepting, for a process that has taken the listener over; the rest is [`Server::leave`].
    pub fn accept_no_more(&self) {
        self.shutdown.advance(Stage::Leaving);
    }

    /// True if every worker has been seen at work lately; one that hangs serves nobody.
    pub fn is_alive(&self) -> bool {
        self.desks.iter().all(|desk| desk.was_seen_within(ALIVE))
    }

    /// True once every thread has ended.
    async fn ended_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.threads.recv()).await.is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.advance(Stage::Stopped);
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Threads end with the listener; nobody joins them, because one that hangs must not hang the exit.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(body).map(drop)
}

#[cfg(test)]
mod tests;
