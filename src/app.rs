//! Floor 8: starts everything, in order; stops it, in order.
//!
//! Start: configuration, snapshot, reloading thread, data listener, admin listener. Stop: unready, wait for the load
//! balancer to notice, stop accepting, let requests finish, end streams with one error each, flush logs. Where another
//! process takes over, it opens everything before this one stops accepting.

mod parts;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use crate::admin::Admin;
use crate::admin::guard::{Guard, Unguarded};
use crate::config::error::ConfigError;
use crate::domain::clock;
use crate::domain::secret::Secret;
use crate::gateway::build::build;
use crate::gateway::certificates::{CertificateError, CertificateFiles};
use crate::gateway::counts;
use crate::gateway::courier::Courier;
use crate::gateway::handover::{self, ReadTo};
use crate::gateway::last_good::{self, Found, LastGood};
use crate::gateway::reload::{LastReload, Origin, ReloadWatch, Reloader, Reloads};
use crate::gateway::snapshot::{Live, Shared};
use crate::gateway::trial::Trial;
use crate::layer::audit::Clerk;
use crate::server::shutdown::Shutdown;
use crate::server::takeover::{Heir, Predecessor, Succession, TakeoverError};
use crate::server::{DrainReport, Server};
use crate::store::db::StoreError;
use crate::store::writer::Records;
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::upstream::dial::{Dial, TcpDial};

use parts::{
    carry_on, first_reload, keep_spending, listeners, load_certificates, look_over, open_record, remember,
    send_notices, send_traces, shared, start_admin, start_data, succession, tls, tls_sources, url, watch_pressure,
};

/// Bytes of cached answers.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of answers kept for repeated idempotency keys.
const ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// Descriptors for everything that is neither a client nor a provider: the record, listeners, runtimes, logs.
const OTHER_FILES: usize = 128;
/// How long a request to the admin listener may take to finish when another process takes over.
const ADMIN_LIMIT: Duration = Duration::from_secs(1);

/// What a start needs.
pub struct AppConfig {
    /// Where configuration comes from.
    pub origin: Origin,
    /// Where applications connect.
    pub listen: SocketAddr,
    /// Where people and machines that operate it connect.
    pub admin_listen: SocketAddr,
    /// Needed where the admin listener is reachable from elsewhere.
    pub admin_token: Option<Secret>,
    /// Where the listeners' certificate is; `None` for listeners in the clear.
    pub tls: Option<CertificateFiles>,
    /// Whether the admin listener uses it too.
    pub admin_tls: bool,
    /// Runtimes, one per core.
    pub workers: usize,
    /// Where what callers spent is kept over a restart; `None` for nowhere.
    pub data_dir: Option<PathBuf>,
    /// Where decisions are recorded; `None` for nowhere.
    pub record_dir: Option<PathBuf>,
    /// Where checkpoints of the record go, if not beside it.
    pub checkpoints: Option<PathBuf>,
    /// Where access lines go.
    pub log: AccessLog,
    /// The one registry.
    pub metrics: Arc<Metrics>,
    /// How this process follows another one, and is followed.
    pub life: Life,
}

/// How a process begins and ends among others.
#[derive(Default)]
pub struct Life {
    /// Listening sockets that were open before the process was.
    pub inherited: Inherited,
    /// Where the listening sockets are taken over from the process before, and offered to the one after.
    pub takeover: Option<PathBuf>,
    /// True to keep the last good configuration, and to serve from it where the files are refused.
    pub last_good: bool,
    /// Hears of each reload.
    pub watch: Option<ReloadWatch>,
}

/// Listening sockets that a supervisor opened.
#[derive(Default)]
pub struct Inherited {
    /// Where applications connect.
    pub data: Option<TcpListener>,
    /// Where operators connect.
    pub admin: Option<TcpListener>,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration has mistakes.
    #[error("the configuration has {} mistake{}", .0.len(), if .0.len() == 1 { "" } else { "s" })]
    Config(Vec<ConfigError>),
    /// A listener cannot be had.
    #[error("cannot listen on {address}, choose another address with {option}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What says where.
        option: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The admin listener would be open to everybody.
    #[error(transparent)]
    Unguarded(#[from] Unguarded),
    /// No trust store for provider certificates.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The listener's own certificate cannot be used.
    #[error("the listener's certificate cannot be used, see --tls-cert and --tls-key")]
    Certificate(#[from] CertificateError),
    /// Decisions are to be recorded, and cannot be.
    #[error("decisions cannot be recorded, choose another folder with --data-dir")]
    Record(#[from] StoreError),
    /// The process before this one does not hand over, or the one after it could not ask.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// No threads or random bytes.
    #[error("the system refused a thread, a socket or random bytes")]
    System(#[source] io::Error),
}

/// A running proxy.
pub struct App {
    data: Server,
    admin: Server,
    live: Live,
    /// Whether data and admin listener speak TLS.
    secured: [bool; 2],
    shared: Arc<Shared>,
    last: Arc<LastReload>,
    reloads: Reloads,
    reloading: thread::JoinHandle<()>,
    spending: Option<Spending>,
    courier: Option<Sending>,
    collector: Option<Sending>,
    records: Option<Records>,
    /// Its thread ends when this is gone.
    _pressure: SyncSender<()>,
    record_dir: Option<PathBuf>,
    draining: Arc<AtomicBool>,
    succession: Option<Succession>,
    took_over: bool,
}

/// The thread that keeps what callers spent; it ends when its sender is gone.
struct Spending {
    stop: SyncSender<()>,
    thread: thread::JoinHandle<()>,
}

/// A thread that sends what the outbox holds, or what a collector is told; it ends when its sender is gone.
struct Sending {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl App {
    /// Starts everything.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(config: AppConfig) -> Result<Self, StartError> {
        let AppConfig { origin, life, metrics, record_dir, .. } = config;
        let Life { inherited, takeover, last_good, watch } = life;
        let admin_at = inherited.admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let guard = Guard::new(admin_at.unwrap_or(config.admin_listen), config.admin_token)?;
        let seen = origin.hash();
        let mut last_good = config.data_dir.as_deref().filter(|_| last_good).map(|data| LastGood::new(data, &origin));
        let Found { table, refused } = last_good::start(&origin, last_good.as_mut()).map_err(StartError::Config)?;
        let renewed = config.tls.map(|files| load_certificates(files, &metrics)).transpose()?;
        let certificates = renewed.as_ref().map(|(certificates, _)| Arc::clone(certificates));
        look_over(&table, certificates.as_deref());
        let (mut predecessor, offered) = takeover.as_deref().map(Predecessor::find).transpose()?.flatten().unzip();
        let data_shutdown = inherited.data.as_ref().map_or_else(Shutdown::new, |_| Shutdown::of_a_kept_queue());
        let listeners = listeners(inherited, offered, [config.listen, config.admin_listen])?;
        let dial: Arc<dyn Dial> = Arc::new(TcpDial::new(Arc::new(tls()?)));
        let records = open_record(record_dir.clone(), config.checkpoints, &metrics, &table)?;
        let mut shared = shared(metrics, config.log, dial, &data_shutdown, config.data_dir.as_deref())?;
        let read_to = records.as_ref().map_or(Ok(ReadTo(0)), |records| remember(&shared, records))?;
        shared.clerk = records.clone().map(|records| Clerk::new(records, Arc::clone(&shared.metrics)));
        let shared = Arc::new(shared);
        shared.metrics.config_in_use(&table.version().to_string(), clock::unix_seconds());
        let live: Live = Arc::new(ArcSwap::from_pointee(build(table, None, &shared)));
        let last = first_reload(refused, &shared);

        // From here on nobody else accepts.
        carry_on(predecessor.as_mut(), &shared, record_dir.as_deref(), read_to);
        // Before anybody can spend, and after the process before has written its last.
        let spending = keep_spending(config.data_dir.as_deref(), &live).map_err(StartError::System)?;
        let reloader = Reloader {
            origin: origin.clone(),
            live: Arc::clone(&live),
            shared: Arc::clone(&shared),
            last: Arc::clone(&last),
            seen,
            last_good,
            watch,
            certificates: renewed,
            trial: Trial::default(),
            rolled_back: None,
        };
        let (reloads, reloading) = reloader.start().map_err(StartError::System)?;

        let offers = takeover.is_some().then(|| listeners.try_clone()).transpose().map_err(StartError::System)?;
        let (data_tls, admin_tls) = tls_sources(certificates.as_ref(), config.admin_tls);
        let secured = [data_tls.is_some(), admin_tls.is_some()];
        let data = start_data((listeners.data, data_tls), config.workers, &live, &shared, data_shutdown)?;
        let pressure = watch_pressure(&data, &live, &shared).map_err(StartError::System)?;
        let courier = Courier::new(&live, &shared).map(send_notices).transpose().map_err(StartError::System)?;
        let (collector, draining) = (send_traces(&live, &shared)?, Arc::new(AtomicBool::new(false)));
        let admin = Admin {
            live: Arc::clone(&live),
            shared: Arc::clone(&shared),
            data: url(secured[0], data.address()),
            last: Arc::clone(&last),
            reloads: reloads.clone(),
            draining: Arc::clone(&draining),
            guard,
            certificates,
            origin,
        };
        let admin = start_admin((listeners.admin, admin_tls), admin)?;
        let took_over = predecessor.is_some();
        let succession = succession(takeover.zip(offers), predecessor, &shared)?;
        Ok(Self {
            data,
            admin,
            live,
            secured,
            shared,
            last,
            reloads,
            reloading,
            spending,
            courier,
            collector: Some(collector),
            records,
            _pressure: pressure,
            record_dir,
            draining,
            succession,
            took_over,
        })
    }

    /// Where applications connect.
    pub fn data_address(&self) -> SocketAddr {
        self.data.address()
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// The same as applications write it.
    pub fn data_url(&self) -> String {
        url(self.secured[0], self.data_address())
    }

    /// The same as operators write it.
    pub fn admin_url(&self) -> String {
        url(self.secured[1], self.admin_address())
    }

    /// The configuration in force.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Asks for reloads.
    pub fn reloads(&self) -> &Reloads {
        &self.reloads
    }

    /// True while the last good configuration is served in the place of the one on disk.
    pub fn serves_last_good(&self) -> bool {
        self.last.get().refused()
    }

    /// True if the listening sockets came from another process.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// True if every worker of the data listener is at work.
    pub fn is_alive(&self) -> bool {
        self.data.is_alive()
    }

    /// The process that is ready to serve in our place; waits for ever where none may come.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn heir(&mut self) -> Heir {
        match &mut self.succession {
            Some(succession) => succession.heir().await,
            None => std::future::pending().await,
        }
    }

    /// Stops in good order. Readiness goes first; the admin listener goes last, so that the drain can be watched.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything at once.
    pub async fn drain(mut self, delay: Duration, limit: Duration) -> DrainReport {
        self.draining.store(true, Ordering::Release);
        // Its copies of the sockets would leave clients in a queue that nobody empties.
        self.succession.take().inspect(|_| tracing::debug!("the listening sockets are offered no more"));
        let Self { data, admin, reloads, reloading, records, spending, courier, collector, shared, record_dir, .. } =
            self;
        let report = data.drain(delay, limit).await;
        reloads.stop();
        drop(admin);
        // It is asleep or reading files; it ends within a poll.
        drop(reloading);
        futures_util::future::join(end(courier), end(collector)).await;
        if let Some(data) = record_dir {
            let kept = move || {
                counts::keep(&shared.velocity, &data);
                counts::keep_standings(&shared.decisions, &data);
            };
            let _ = tokio::task::spawn_blocking(kept).await;
        }
        close(records, spending).await;
        report
    }

    /// Leaves the listening sockets to another process and finishes what is in flight here.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything at once.
    pub async fn hand_over(mut self, mut heir: Heir, limit: Duration) -> DrainReport {
        self.draining.store(true, Ordering::Release);
        self.data.accept_no_more();
        self.reloads.stop();
        self.succession.take().into_iter().for_each(Succession::leave_to_heir);
        // The file of what was spent is the heir's from here on.
        end(self.courier.take()).await;
        close(None, self.spending.take()).await;
        let (shared, data_dir) = (Arc::clone(&self.shared), self.record_dir.take());
        let given = tokio::task::spawn_blocking(move || handover::give(&shared, data_dir.as_deref())).await;
        if let Err(error) = heir.release(given.ok().flatten()) {
            tracing::error!(%error, "the process that was to take over is gone, and this one ends");
        }
        let Self { data, admin, reloading, records, collector, .. } = self;
        drop(reloading);
        let (report, _) = futures_util::future::join(data.leave(limit), admin.leave(ADMIN_LIMIT)).await;
        futures_util::future::join(close(records, None), end(collector)).await;
        // It goes on alone from here.
        drop(heir);
        report
    }
}

/// What the outbox still holds is the next process's; a collector is told what can be told in a few seconds.
async fn end(sending: Option<Sending>) {
    if let Some(Sending { stop, thread }) = sending {
        drop(stop);
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

/// After the last answer ended: whatever waits is recorded and a last checkpoint signed, and its cost is in what was spent.
async fn close(records: Option<Records>, spending: Option<Spending>) {
    if let Some(records) = records {
        let _ = tokio::task::spawn_blocking(move || records.stop()).await;
    }
    if let Some(Spending { stop, thread }) = spending {
        drop(stop);
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}
