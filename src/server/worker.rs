//! One core: a thread, a current_thread runtime, and the connections dealt to it.
//!
//! A connection stays on its core for life, so nothing on the path of a request crosses to another one. The tasks here
//! are the connections and the streams of HTTP/2 connections; all die with the runtime.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::TcpStream;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tower::Service;

use super::activity::{Activity, Command, Load};
use super::connection::{Settled, drive};
use super::limits::ConnectionLimits;
use super::shutdown::{ShutdownSignal, Stage};
use super::{TlsSource, tls};
use crate::telemetry::labels::ConnectionEnd;
use crate::telemetry::metrics::Metrics;

/// Below the time any attempt is given, and rare enough to cost nothing.
const TICK: Duration = Duration::from_millis(250);

/// A connection on its way to a worker.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) limits: ConnectionLimits,
    pub(super) place: Place,
}

/// A connection's place in the counts of its listener and of its worker; given back on drop.
pub(super) struct Place {
    open: Arc<AtomicUsize>,
    load: Arc<Load>,
}

impl Place {
    pub(super) fn take(open: &Arc<AtomicUsize>, load: &Arc<Load>) -> Self {
        open.fetch_add(1, Relaxed);
        load.connections.fetch_add(1, Relaxed);
        Self { open: Arc::clone(open), load: Arc::clone(load) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
        self.load.connections.fetch_sub(1, Relaxed);
    }
}

/// What the acceptor and the listener's owner see of a worker.
pub(super) struct Desk {
    pub(super) load: Arc<Load>,
    metrics: Arc<Metrics>,
    next_id: AtomicU64,
    /// Every open connection. Locked when one opens or closes and when all are told something, never for a request.
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    emptied: Notify,
    /// How many idle connections should make room.
    evictions: AtomicUsize,
    evict: Notify,
    born: Instant,
    /// Milliseconds from `born` to when the worker's runtime last ran.
    seen: AtomicU64,
}

impl Desk {
    pub(super) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            load: Arc::default(),
            metrics,
            next_id: AtomicU64::new(0),
            open: Mutex::default(),
            emptied: Notify::new(),
            evictions: AtomicUsize::new(0),
            evict: Notify::new(),
            born: Instant::now(),
            seen: AtomicU64::new(0),
        })
    }

    /// Notes that the worker's runtime runs.
    fn see(&self) {
        self.seen.store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// True if the worker's runtime has run so lately.
    pub(super) fn was_seen_within(&self, time: Duration) -> bool {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.seen.load(Relaxed))) < time
    }

    /// Asks for the connections that have been idle longest to be closed.
    pub(super) fn evict(&self, how_many: usize) {
        self.evictions.store(how_many, Relaxed);
        self.evict.notify_one();
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Activity>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(self: &Arc<Self>, activity: Arc<Activity>, place: Place) -> Registered {
        let id = self.next_id.fetch_add(1, Relaxed);
        self.open().insert(id, activity);
        self.metrics.connections.open.inc();
        Registered { desk: Arc::clone(self), id, end: None, _place: place }
    }

    fn command_all(&self, command: Command) {
        self.open().values().for_each(|activity| activity.command(command));
    }

    fn evict_oldest(&self) {
        let open = self.open();
        let mut idle: Vec<_> =
            open.values().filter_map(|activity| activity.idle_since().map(|since| (since, activity))).collect();
        let how_many = self.evictions.load(Relaxed).min(idle.len());
        if how_many > 0 {
            idle.select_nth_unstable_by_key(how_many - 1, |(since, _)| *since);
        }
        idle.iter().take(how_many).for_each(|(_, activity)| activity.command(Command::Evict));
    }
}

/// An open connection; counts its end on drop, also when its task panics or is dropped with the runtime.
struct Registered {
    desk: Arc<Desk>,
    id: u64,
    end: Option<ConnectionEnd>,
    _place: Place,
}

impl Registered {
    fn ended(mut self, end: ConnectionEnd) {
        self.end = Some(end);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let unfinished = if thread::panicking() { ConnectionEnd::Panicked } else { ConnectionEnd::Aborted };
        if thread::panicking() {
            self.desk.metrics.panics.inc();
        }
        self.desk.metrics.connections.open.dec();
        self.desk.metrics.connections.ended(self.end.unwrap_or(unfinished)).inspect(|counter| counter.inc());
        let mut open = self.desk.open();
        open.remove(&self.id);
        if open.is_empty() {
            self.desk.emptied.notify_one();
        }
    }
}

/// Keeps a timer close by at all times. A runtime that is told of a timer before the one it will wake for wakes itself
/// through the kernel, and with nothing but idle connections that was every fifth request's attempt. It is also how others
/// see that the worker is alive.
async fn keep_waking(desk: Arc<Desk>) {
    loop {
        sleep(TICK).await;
        desk.see();
    }
}

/// A worker's inside.
pub(super) struct Worker {
    pub(super) desk: Arc<Desk>,
    pub(super) incoming: mpsc::Receiver<Accepted>,
    pub(super) signal: ShutdownSignal,
    pub(super) tls: Option<TlsSource>,
}

impl Worker {
    /// Serves connections until the listener has drained or was stopped. Connections still open then die with the
    /// runtime that polls this.
    pub(super) async fn run<S, B>(mut self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        tokio::spawn(keep_waking(Arc::clone(&self.desk)));
        let signal = self.signal.clone();
        let (mut draining, mut stopped) = (pin!(signal.reached(Stage::Draining)), pin!(signal.reached(Stage::Stopped)));
        let mut leaving = pin!(signal.reached(Stage::Leaving));
        let mut command = Command::Serve;
        let mut accepting = true;
        while accepting || !self.desk.open().is_empty() {
            tokio::select! {
                biased;
                () = &mut stopped => {
                    self.desk.command_all(Command::Stop);
                    return;
                }
                () = &mut draining, if command < Command::Drain => {
                    command = Command::Drain;
                    self.desk.command_all(command);
                }
                () = &mut leaving, if command == Command::Serve => {
                    command = Command::Retire;
                    self.desk.command_all(command);
                }
                accepted = self.incoming.recv(), if accepting => match accepted {
                    Some(accepted) => self.spawn(accepted, service.clone(), command),
                    None => accepting = false,
                },
                () = self.desk.evict.notified() => self.desk.evict_oldest(),
                () = self.desk.emptied.notified() => {}
            }
        }
    }

    fn spawn<S, B>(&self, accepted: Accepted, service: S, command: Command)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Accepted { stream, limits, place } = accepted;
        // A socket that cannot be set up is one the client has left already.
        let Ok(stream) = stream.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) else {
            return;
        };
        let activity = Activity::new(Arc::clone(&self.desk.load));
        activity.command(command);
        if let Some(peer) = limits.tells_peer.then(|| stream.peer_addr().ok()).flatten() {
            activity.is_with(peer);
        }
        let registered = self.desk.register(Arc::clone(&activity), place);
        match self.tls.as_ref().map(|tls| tls()) {
            None => drop(tokio::spawn(async move {
                let end = drive(stream, service, limits, activity, Settled::default()).await;
                registered.ended(end);
            })),
            Some(tls) => drop(tokio::spawn(async move {
                let end = tls::drive(stream, tls, service, limits, activity).await;
                registered.ended(end);
            })),
        }
    }
}
