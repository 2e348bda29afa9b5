//! Takes connections from the listener and deals them to the least busy worker.
//!
//! One acceptor instead of a listener per core, because the kernel's own spreading leaves long streams piled up on one
//! core and resets an accept queue when a listener closes (PERFORMANCE.md). It runs on a thread of its own, so that
//! a busy worker does not delay the accepting for all. It reads no byte of a connection.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::LimitsSource;
use super::limits::ConnectionLimits;
use super::shutdown::{ShutdownSignal, Stage};
use super::worker::{Accepted, Desk, Place};
use crate::telemetry::labels::ConnectionRefusal;
use crate::telemetry::metrics::Metrics;

/// First and longest pause after the system could not give us a connection.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A queue that gives nothing for this long is empty.
const QUEUE_IS_EMPTY: Duration = Duration::from_millis(5);
/// How long a listener that is about to close goes on taking what is in its queue.
const LAST_ONES_TIME: Duration = Duration::from_millis(200);
/// The share of the connection limit at which idle connections begin to make room, counted from the top.
const HEADROOM: usize = 32;
/// Least time between two rounds of that.
const EVICTION_PAUSE: Duration = Duration::from_millis(100);
/// Least time between two lines of the log about the same trouble.
const TOLD_AGAIN: Duration = Duration::from_secs(1);
/// How long, and for how many at once, the close of a refused connection may take.
const REFUSAL_TIME: Duration = Duration::from_millis(500);
const REFUSALS_AT_ONCE: usize = 64;
/// Said to a connection there is no place for, whatever it was about to ask.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A worker as the acceptor sees it.
pub(super) struct Seat {
    pub(super) sender: mpsc::Sender<Accepted>,
    pub(super) desk: Arc<Desk>,
}

pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) seats: Vec<Seat>,
    pub(super) limits: LimitsSource,
    pub(super) open: Arc<AtomicUsize>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) signal: ShutdownSignal,
}

struct State {
    backoff: Backoff,
    last_eviction: Option<Instant>,
    last_told: Option<Instant>,
    refusals: Arc<Semaphore>,
    /// Given up for a moment when file descriptors run out, so that somebody can be told.
    spare: Option<File>,
}

impl Acceptor {
    /// Accepts until the listener drains, then empties the accept queue and closes the listener: whoever was in the queue
    /// is served and not reset. Where another process accepts from the same queue, or will, it is left to that.
    pub(super) async fn run(self) {
        let mut state = State {
            backoff: Backoff::default(),
            last_eviction: None,
            last_told: None,
            refusals: Arc::new(Semaphore::new(REFUSALS_AT_ONCE)),
            spare: spare(),
        };
        let signal = self.signal.clone();
        let mut leaving = pin!(signal.reached(Stage::Leaving));
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut leaving => break,
                accepted = self.listener.accept() => accepted,
            };
            if let Some(pause) = self.take(accepted, &mut state).await {
                sleep(pause).await;
            }
        }
        let until = Instant::now() + LAST_ONES_TIME;
        while !signal.queue_is_kept()
            && signal.stage() != Stage::Leaving
            && Instant::now() < until
            && let Ok(accepted) = timeout(QUEUE_IS_EMPTY, self.listener.accept()).await
        {
            self.take(accepted, &mut state).await;
        }
        drop((self.listener, self.seats));
        // Refused clients get the rest of their goodbye.
        let all = u32::try_from(REFUSALS_AT_ONCE).unwrap_or(u32::MAX);
        let _ = timeout(REFUSAL_TIME, state.refusals.acquire_many(all)).await;
    }

    /// Deals one connection. Some pause means that the system is out of something.
    async fn take(&self, accepted: io::Result<(TcpStream, SocketAddr)>, state: &mut State) -> Option<Duration> {
        match accepted {
            Ok((stream, _)) => {
                state.backoff.reset();
                self.deal(stream, state);
                None
            }
            Err(err) => {
                let pause = state.backoff.pause_after(&err)?;
                self.exhausted(&err, state).await;
                Some(pause)
            }
        }
    }

    fn deal(&self, stream: TcpStream, state: &mut State) {
        let limits = (self.limits)();
        let open = self.open.load(Relaxed);
        if limits.connections.saturating_sub(open) <= limits.connections / HEADROOM {
            self.make_room(limits.connections, state);
        }
        if open >= limits.connections {
            return self.refuse(stream, ConnectionRefusal::Limit, state);
        }
        if let Err(stream) = self.seat(stream, limits) {
            self.refuse(stream, ConnectionRefusal::WorkersFull, state);
        }
    }

    /// Hands the connection to the worker with the fewest open requests, then connections, that has room.
    fn seat(&self, stream: TcpStream, limits: ConnectionLimits) -> Result<(), TcpStream> {
        let mut seats: Vec<&Seat> = self.seats.iter().collect();
        seats.sort_by_cached_key(|seat| seat.key());
        let Some((seat, permit)) = seats.into_iter().find_map(|seat| Some((seat, seat.sender.try_reserve().ok()?)))
        else {
            return Err(stream);
        };
        // It moves to the worker's reactor. A socket that cannot be moved is one the client has left already.
        if let Ok(stream) = stream.into_std() {
            permit.send(Accepted { stream, limits, place: Place::take(&self.open, &seat.desk.load) });
        }
        Ok(())
    }

    /// Asks the worker with most connections to close the ones that have been idle longest (P6).
    fn make_room(&self, limit: usize, state: &mut State) {
        let now = Instant::now();
        if state.last_eviction.is_some_and(|last| now - last < EVICTION_PAUSE) {
            return;
        }
        state.last_eviction = Some(now);
        let fullest = self.seats.iter().max_by_key(|seat| seat.desk.load.connections.load(Relaxed));
        fullest.inspect(|seat| seat.desk.evict((limit / HEADROOM).max(1)));
    }

    /// Uses the spare descriptor to turn one client away instead of leaving it waiting (row 31).
    async fn exhausted(&self, err: &io::Error, state: &mut State) {
        let now = Instant::now();
        if state.last_told.is_none_or(|last| now - last >= TOLD_AGAIN) {
            state.last_told = Some(now);
            tracing::warn!(%err, open = self.open.load(Relaxed), "connections cannot be accepted");
        }
        self.make_room(self.open.load(Relaxed), state);
        if state.spare.take().is_some()
            && let Ok(Ok((stream, _))) = timeout(QUEUE_IS_EMPTY, self.listener.accept()).await
        {
            self.count(ConnectionRefusal::Exhausted);
            say_at_once(&stream);
        }
        state.spare = spare();
    }

    /// Turns a connection away in good order: closing on a request we have not read would reset the connection, and the
    /// client would see that instead of the answer.
    fn refuse(&self, mut stream: TcpStream, reason: ConnectionRefusal, state: &State) {
        self.count(reason);
        let Ok(permit) = Arc::clone(&state.refusals).try_acquire_owned() else { return say_at_once(&stream) };
        tokio::spawn(async move {
            let goodbye = async {
                stream.write_all(REFUSAL).await?;
                stream.shutdown().await?;
                let mut scratch = [0; 1024];
                while stream.read(&mut scratch).await? > 0 {}
                io::Result::Ok(())
            };
            // However it went, the client is gone or has had its chance.
            let _ = timeout(REFUSAL_TIME, goodbye).await;
            drop(permit);
        });
    }

    fn count(&self, reason: ConnectionRefusal) {
        self.metrics.connections.refused(reason).inspect(|counter| counter.inc());
    }
}

impl Seat {
    fn key(&self) -> (usize, usize) {
        (self.desk.load.requests.load(Relaxed), self.desk.load.connections.load(Relaxed))
    }
}

/// Refuses without waiting for the client to have read it; one that cannot take a hundred bytes now does without.
fn say_at_once(stream: &TcpStream) {
    let _ = stream.try_write(REFUSAL);
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// How long to leave a listener alone that cannot give connections.
#[derive(Default)]
struct Backoff(Option<Duration>);

impl Backoff {
    /// The pause after an error: none if only that one connection is lost, longer and longer if the system is out of
    /// descriptors or memory, so that the acceptor does not spin on a queue it cannot take from.
    fn pause_after(&mut self, err: &io::Error) -> Option<Duration> {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, PermissionDenied};
        if matches!(
            err.kind(),
            ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | PermissionDenied
        ) {
            return None;
        }
        let pause = self.0.map_or(SHORTEST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
        self.0 = Some(pause);
        Some(pause)
    }

    fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `EMFILE` on Linux.
    const TOO_MANY_OPEN_FILES: i32 = 24;

    #[test]
    fn row_31_running_out_of_descriptors_pauses_longer_and_longer_up_to_half_a_second() {
        let mut backoff = Backoff::default();
        let exhausted = io::Error::from_raw_os_error(TOO_MANY_OPEN_FILES);
        let pauses: Vec<_> = (0..9).filter_map(|_| backoff.pause_after(&exhausted)).map(|p| p.as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.pause_after(&exhausted), Some(SHORTEST_PAUSE));
    }

    #[test]
    fn a_client_that_left_the_queue_costs_no_pause() {
        let mut backoff = Backoff::default();
        for kind in [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted] {
            assert_eq!(backoff.pause_after(&kind.into()), None);
        }
    }
}
