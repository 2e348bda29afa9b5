//! What a connection is doing, as far as its deadlines are concerned.
//!
//! Reads, requests and answers note here what they do; the connection's driver turns the notes into a deadline. That way
//! a request pays two clock readings and a few plain stores, where a timer for each would cost over a thousand
//! instructions (PERFORMANCE.md). Everything runs on one thread; the atomics only satisfy `Send`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::limits::ConnectionLimits;
use crate::telemetry::labels::ConnectionEnd;

/// Requests and connections of one worker, read by the acceptor. Alone on its cache lines, because its own core writes it
/// at every request.
#[derive(Default, Debug)]
#[repr(align(128))]
pub(super) struct Load {
    pub(super) requests: AtomicUsize,
    pub(super) connections: AtomicUsize,
}

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Phase {
    /// Its first byte.
    Fresh,
    /// The rest of a request head.
    Head,
    /// The next request.
    Idle,
    /// Us, or the upstream.
    Busy,
}

/// What the worker wants of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum Command {
    /// Go on.
    Serve,
    /// Close if idle: the place is needed.
    Evict,
    /// Close after the next answer: another process takes new connections, so there is time to wait for a request.
    Retire,
    /// Finish what is in flight, then close.
    Drain,
    /// Close at once.
    Stop,
}

pub(super) struct Activity {
    born: Instant,
    load: Arc<Load>,
    phase: AtomicU8,
    command: AtomicU8,
    /// Zero, or one more than the place of a [`ConnectionEnd`] in its list.
    cause: AtomicU8,
    http2: AtomicBool,
    requests: AtomicU32,
    /// Microseconds from `born` to the start of the phase.
    since: AtomicU64,
    driver: AtomicWaker,
    peer: OnceLock<SocketAddr>,
}

/// A request in flight on a connection; lives until its answer's body is dropped.
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    pub(super) fn new(load: Arc<Load>) -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            load,
            phase: AtomicU8::new(Phase::Fresh as u8),
            command: AtomicU8::new(Command::Serve as u8),
            cause: AtomicU8::new(0),
            http2: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            since: AtomicU64::new(0),
            driver: AtomicWaker::new(),
            peer: OnceLock::new(),
        })
    }

    /// Notes who it is, for requests that must carry it.
    pub(super) fn is_with(&self, peer: SocketAddr) {
        // It is told once.
        let _ = self.peer.set(peer);
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer.get().copied()
    }

    /// HTTP/2 has no heads between requests that a connection would wait for; its frames do not start a head.
    pub(super) fn speaks_http2(&self) {
        self.http2.store(true, Relaxed);
        self.enter(Phase::Idle);
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Notes that the peer sent something.
    pub(super) fn bytes_arrived(&self) {
        match self.phase() {
            // The first head is timed from the connection's start.
            Phase::Fresh => self.phase.store(Phase::Head as u8, Relaxed),
            Phase::Idle if !self.is_http2() => self.enter(Phase::Head),
            Phase::Idle | Phase::Head | Phase::Busy => {}
        }
    }

    /// Notes that a request head is complete. The guard ends the request.
    pub(super) fn begin_request(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Relaxed);
        self.load.requests.fetch_add(1, Relaxed);
        self.phase.store(Phase::Busy as u8, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Notes why the connection is about to end; the first cause stays.
    pub(super) fn end_because(&self, end: ConnectionEnd) {
        let place = u8::try_from(end as usize + 1).unwrap_or(0);
        // A failure means that there is a cause already.
        let _ = self.cause.compare_exchange(0, place, Relaxed, Relaxed);
    }

    pub(super) fn cause(&self) -> Option<ConnectionEnd> {
        usize::from(self.cause.load(Relaxed)).checked_sub(1).and_then(|place| ConnectionEnd::ALL.get(place).copied())
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Fresh,
            1 => Phase::Head,
            2 => Phase::Idle,
            _ => Phase::Busy,
        }
    }

    /// When the phase will have lasted too long, and what the end is called then.
    pub(super) fn deadline(&self, limits: &ConnectionLimits) -> Option<(Instant, ConnectionEnd)> {
        let (allowed, end) = match self.phase() {
            Phase::Fresh | Phase::Head => (limits.head_timeout, ConnectionEnd::HeadTimeout),
            Phase::Idle => (limits.keep_alive, ConnectionEnd::Idle),
            Phase::Busy => return None,
        };
        Some((self.since() + allowed, end))
    }

    /// Since when the connection has been idle, `None` if it is not.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        matches!(self.phase(), Phase::Fresh | Phase::Idle).then(|| self.since())
    }

    /// Tells the driver what to do; a weaker command does not replace a stronger one.
    pub(super) fn command(&self, command: Command) {
        if self.command.fetch_max(command as u8, Relaxed) < command as u8 {
            self.driver.wake();
        }
    }

    /// The command in force; a later one wakes `waker`.
    pub(super) fn commanded(&self, waker: &Waker) -> Command {
        self.driver.register(waker);
        self.current_command()
    }

    /// True if answers should tell the client not to reuse the connection.
    pub(super) fn is_draining(&self) -> bool {
        self.current_command() >= Command::Retire
    }

    fn current_command(&self) -> Command {
        match self.command.load(Relaxed) {
            0 => Command::Serve,
            1 => Command::Evict,
            2 => Command::Retire,
            3 => Command::Drain,
            _ => Command::Stop,
        }
    }

    /// An eviction that found the connection busy is forgotten.
    pub(super) fn forget_eviction(&self) {
        // A failure means that a stronger command came.
        let _ = self.command.compare_exchange(Command::Evict as u8, Command::Serve as u8, Relaxed, Relaxed);
    }

    fn since(&self) -> Instant {
        self.born + Duration::from_micros(self.since.load(Relaxed))
    }

    fn enter(&self, phase: Phase) {
        let since = u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.since.store(since, Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }
}

impl InFlight {
    pub(super) fn activity(&self) -> &Activity {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.load.requests.fetch_sub(1, Relaxed);
        if self.0.requests.fetch_sub(1, Relaxed) == 1 {
            self.0.enter(Phase::Idle);
            if self.0.is_http2() {
                // The request ended in a task of its own; the driver has to see that its deadline changed.
                self.0.driver.wake();
            }
        }
    }
}
