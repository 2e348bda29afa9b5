//! Floor 8: starts everything, in order; stops it, in order.
//!
//! Start: configuration, snapshot, reloading thread, data listener, admin listener. Stop: unready, wait for the load
//! balancer to notice, stop accepting, let requests finish, end streams with one error each, flush logs. Where another
//! process takes over, it opens everything before this one stops accepting.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;

use crate::admin::guard::{Guard, Unguarded};
use crate::admin::{Admin, AdminService};
use crate::config::error::ConfigError;
use crate::config::table::RoutingTable;
use crate::domain::clock;
use crate::domain::secret::Secret;
use crate::flight::quota::Calendar;
use crate::flight::velocity::Velocity;
use crate::gateway::build::build;
use crate::gateway::handover::{self, ReadTo};
use crate::gateway::last_good::{self, Found, LastGood};
use crate::gateway::reload::{LastReload, Origin, ReloadWatch, Reloader, Reloads, remark};
use crate::gateway::snapshot::{Live, Shared};
use crate::gateway::spending::Keeper;
use crate::gateway::stack;
use crate::layer::admission::Gate;
use crate::layer::audit::Clerk;
use crate::layer::cache::Store;
use crate::layer::decision_cache::DecisionCache;
use crate::layer::idempotency::Ledger;
use crate::layer::idempotency_key::Answers;
use crate::layer::verify_signature::Nonces;
use crate::server::limits::ConnectionLimits;
use crate::server::shutdown::Shutdown;
use crate::server::takeover::{Heir, Listeners, Predecessor, Succession, TakeoverError};
use crate::server::{DrainReport, Server, ServerConfig, bind};
use crate::store::db::StoreError;
use crate::store::writer::{Faults, Records, RecordsConfig, Watch};
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::upstream::dial::{Dial, TcpDial};

/// Bytes of cached answers.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of answers kept for repeated idempotency keys.
const ANSWER_BYTES: u64 = 64 * 1024 * 1024;

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
    shared: Arc<Shared>,
    last: Arc<LastReload>,
    reloads: Reloads,
    reloading: thread::JoinHandle<()>,
    spending: Option<Spending>,
    records: Option<Records>,
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
        remark(&table);
        let (mut predecessor, offered) = match takeover.as_deref().map(Predecessor::find).transpose()?.flatten() {
            Some((predecessor, listeners)) => (Some(predecessor), Some(listeners)),
            None => (None, None),
        };
        let listeners = listeners(inherited, offered, [config.listen, config.admin_listen])?;
        let dial: Arc<dyn Dial> = Arc::new(TcpDial::new(Arc::new(tls()?)));
        let data_shutdown = Shutdown::new();
        let records = open_record(record_dir.clone(), config.checkpoints, &metrics, &table)?;
        let mut shared = shared(metrics, config.log, dial, &data_shutdown, config.data_dir.as_deref())?;
        let read_to = records.as_ref().map_or(Ok(ReadTo(0)), |records| remember(&shared, records))?;
        shared.clerk = records.clone().map(|records| Clerk::new(records, Arc::clone(&shared.metrics)));
        let shared = Arc::new(shared);
        shared.metrics.config_in_use(&table.version().to_string(), clock::unix_seconds());
        let live: Live = Arc::new(ArcSwap::from_pointee(build(table, None, &shared)));
        let last = Arc::new(LastReload::default());
        if let Some(errors) = refused {
            shared.metrics.config_not_in_force(true);
            last.refused(errors);
        }

        // From here on nobody else accepts.
        match &mut predecessor {
            Some(predecessor) => handover::take(&shared, record_dir.as_deref(), read_to, predecessor.release()),
            None => record_dir.iter().for_each(|data| handover::forget(data)),
        }
        // Before anybody can spend, and after the process before has written its last.
        let spending = config.data_dir.as_deref().map(|folder| keep_spending(folder, &live)).transpose();
        let spending = spending.map_err(StartError::System)?;
        let (live_too, shared_too, last_too) = (Arc::clone(&live), Arc::clone(&shared), Arc::clone(&last));
        let reloader = Reloader { origin, live: live_too, shared: shared_too, last: last_too, seen, last_good, watch };
        let (reloads, reloading) = reloader.start().map_err(StartError::System)?;

        let offers = takeover.is_some().then(|| listeners.try_clone()).transpose().map_err(StartError::System)?;
        let data = start_data(listeners.data, config.workers, &live, &shared, data_shutdown)?;
        let draining = Arc::new(AtomicBool::new(false));
        let admin = Admin {
            live: Arc::clone(&live),
            shared: Arc::clone(&shared),
            last: Arc::clone(&last),
            reloads: reloads.clone(),
            draining: Arc::clone(&draining),
            guard,
        };
        let admin = start_admin(listeners.admin, admin)?;
        let took_over = predecessor.is_some();
        let busy = Arc::new(AtomicBool::new(took_over));
        let open = |(path, offers): (PathBuf, _)| Succession::open(&path, offers, Arc::clone(&busy));
        let succession = takeover.zip(offers).map(open).transpose()?;
        predecessor.map_or(Ok(()), |before| outlive(before, &shared, &busy)).map_err(StartError::System)?;
        let app = Self {
            data,
            admin,
            live,
            shared,
            last,
            reloads,
            reloading,
            spending,
            records,
            record_dir,
            draining,
            succession,
            took_over,
        };
        Ok(app)
    }

    /// Where applications connect.
    pub fn data_address(&self) -> SocketAddr {
        self.data.address()
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
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
        self.last.get().refused
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
        let Self { data, admin, reloads, reloading, records, spending, .. } = self;
        let report = data.drain(delay, limit).await;
        reloads.stop();
        drop(admin);
        // It is asleep or reading files; it ends within a poll.
        drop(reloading);
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
        close(None, self.spending.take()).await;
        let (shared, data_dir) = (Arc::clone(&self.shared), self.record_dir.take());
        let given = tokio::task::spawn_blocking(move || handover::give(&shared, data_dir.as_deref())).await;
        if let Err(error) = heir.release(given.ok().flatten()) {
            tracing::error!(%error, "the process that was to take over is gone, and this one ends");
        }
        let Self { data, admin, reloading, records, .. } = self;
        drop(reloading);
        let (report, _) = futures_util::future::join(data.leave(limit), admin.leave(ADMIN_LIMIT)).await;
        close(records, None).await;
        // It goes on alone from here.
        drop(heir);
        report
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

/// The sockets a supervisor opened, those the process before offers, or our own.
fn listeners(inherited: Inherited, offered: Option<Listeners>, at: [SocketAddr; 2]) -> Result<Listeners, StartError> {
    let (data, admin) = offered.map(|offered| (offered.data, offered.admin)).unzip();
    let [listen, admin_listen] = at;
    Ok(Listeners {
        data: one_listener(inherited.data, data, (listen, "--listen"))?,
        admin: one_listener(inherited.admin, admin, (admin_listen, "--admin-listen"))?,
    })
}

fn one_listener(
    inherited: Option<TcpListener>,
    offered: Option<TcpListener>,
    (address, option): (SocketAddr, &'static str),
) -> Result<TcpListener, StartError> {
    let fits = |listener: &TcpListener| {
        let at = listener.local_addr();
        at.is_ok_and(|at| at.ip() == address.ip() && (address.port() == 0 || at.port() == address.port()))
    };
    match inherited.or(offered.filter(fits)) {
        Some(listener) => Ok(listener),
        None => bind(address).map_err(|source| StartError::Listen { address, option, source }),
    }
}

/// Knows what earlier processes decided, and how far the record was read for that.
fn remember(shared: &Shared, records: &Records) -> Result<ReadTo, StoreError> {
    let Some(reader) = records.reader() else { return Ok(ReadTo(0)) };
    // First: what is recorded meanwhile is read twice, and not never.
    let read_to = ReadTo(reader.newest()?);
    shared.ledger.remember(reader)?;
    Ok(read_to)
}

/// Waits on a thread of its own until the process before this one has ended.
fn outlive(before: Predecessor, shared: &Arc<Shared>, busy: &Arc<AtomicBool>) -> io::Result<()> {
    let (shared, busy) = (Arc::clone(shared), Arc::clone(busy));
    let wait = move || {
        before.gone();
        handover::end(&shared);
        busy.store(false, Ordering::Release);
        tracing::info!("the process before this one has ended");
    };
    thread::Builder::new().name("takeover".to_owned()).spawn(wait).map(drop)
}

/// The record, if there is to be one. Where no decision can be asked for, a folder that cannot be used stops nothing.
fn open_record(
    folder: Option<PathBuf>,
    checkpoints: Option<PathBuf>,
    metrics: &Metrics,
    table: &RoutingTable,
) -> Result<Option<Records>, StartError> {
    let Some(folder) = folder else {
        tracing::warn!("decisions are not recorded: no data folder was given");
        return Ok(None);
    };
    let watch: Arc<dyn Watch> = Arc::new(metrics.audit.clone());
    let config = RecordsConfig { folder, checkpoints, watch: Arc::clone(&watch), faults: Faults::default() };
    match Records::open(config) {
        Ok(records) => Ok(Some(records)),
        Err(error) if table.risk_route().is_none() => {
            let cause = error.source().map(ToString::to_string);
            tracing::error!(%error, cause, "decisions cannot be recorded, so a risk route added later would refuse them");
            Ok(Some(Records::unavailable(watch)))
        }
        Err(error) => Err(error.into()),
    }
}

fn keep_spending(folder: &Path, live: &Live) -> io::Result<Spending> {
    let keeper = Keeper::new(folder, Arc::clone(live));
    keeper.restore();
    let (stop, stopped) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("spending".to_owned()).spawn(move || keeper.run(&stopped))?;
    Ok(Spending { stop, thread })
}

fn shared(
    metrics: Arc<Metrics>,
    log: AccessLog,
    dial: Arc<dyn Dial>,
    shutdown: &Shutdown,
    data_dir: Option<&Path>,
) -> Result<Shared, StartError> {
    let mut pepper = [0u8; 32];
    getrandom::fill(&mut pepper).map_err(|error| StartError::System(io::Error::other(error)))?;
    Ok(Shared {
        store: Store::new(CACHE_BYTES, pepper, &metrics),
        answers: Answers::new(ANSWER_BYTES),
        ledger: Ledger::default(),
        velocity: Arc::new(Velocity::new(pepper)),
        decisions: Arc::new(DecisionCache::new(pepper)),
        clerk: None,
        nonces: data_dir.map_or_else(Nonces::in_memory, Nonces::kept),
        notices: Arc::default(),
        gate: Arc::new(Gate::default()),
        calendar: Calendar::now(),
        drained: shutdown.signal().ending(),
        metrics,
        log,
        dial,
    })
}

/// The operating system's trust store, or the bundled roots where there is none.
fn tls() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    match builder()?.with_platform_verifier() {
        Ok(builder) => Ok(builder.with_no_client_auth()),
        Err(error) => {
            tracing::warn!(%error, "no system trust store, using the bundled roots");
            let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            Ok(builder()?.with_root_certificates(roots).with_no_client_auth())
        }
    }
}

fn start_data(
    listener: TcpListener,
    workers: usize,
    live: &Live,
    shared: &Arc<Shared>,
    shutdown: Shutdown,
) -> Result<Server, StartError> {
    let (for_limits, for_stack, for_ingress) = (Arc::clone(live), Arc::clone(live), Arc::clone(shared));
    let config = ServerConfig {
        listener,
        workers,
        limits: Arc::new(move || connection_limits(&for_limits)),
        metrics: Arc::clone(&shared.metrics),
        shutdown,
    };
    Server::start(config, move |_| stack::ingress(&for_stack, &for_ingress)).map_err(StartError::System)
}

fn start_admin(listener: TcpListener, admin: Admin) -> Result<Server, StartError> {
    let config = ServerConfig {
        listener,
        workers: 1,
        limits: Arc::new(|| ConnectionLimits { connections: 64, ..ConnectionLimits::default() }),
        // Its connections are not the applications': they are counted nowhere.
        metrics: Metrics::new(),
        shutdown: Shutdown::new(),
    };
    let service = AdminService(Arc::new(admin));
    Server::start(config, move |_| service.clone()).map_err(StartError::System)
}

fn connection_limits(live: &Live) -> ConnectionLimits {
    let snapshot = live.load();
    let limits = snapshot.table().limits();
    ConnectionLimits {
        head_bytes: limits.head_bytes,
        head_fields: limits.head_fields,
        head_timeout: limits.head_timeout,
        write_stall: limits.write_stall,
        keep_alive: limits.keep_alive,
        connections: limits.connections,
    }
}
