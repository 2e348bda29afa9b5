//! Floor 8: starts everything, in order; stops it, in order.
//!
//! Start: configuration, snapshot, reloading thread, data listener, admin listener. Stop: unready, wait for the load
//! balancer to notice, stop accepting, let requests finish, end streams with one error each, flush logs.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::oneshot;

use crate::admin::guard::{Guard, Unguarded};
use crate::admin::{Admin, AdminService};
use crate::config::error::ConfigError;
use crate::config::table::{Limits, RoutingTable};
use crate::domain::clock;
use crate::domain::secret::Secret;
use crate::flight::quota::Calendar;
use crate::flight::velocity::Velocity;
use crate::gateway::build::build;
use crate::gateway::certificates::{CertificateError, CertificateFiles, Certificates};
use crate::gateway::courier::Courier;
use crate::gateway::pressure::Watch as PressureWatch;
use crate::gateway::reload::{LastReload, Origin, Reloader, Reloads, Seen, remark, say_who_cannot_call};
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
use crate::server::{DrainReport, Server, ServerConfig, TlsSource, bind};
use crate::store::db::StoreError;
use crate::store::writer::{Faults, Records, RecordsConfig, Watch};
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process::{self, Meter};
use crate::upstream::dial::{Dial, TcpDial};

/// Bytes of cached answers.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of answers kept for repeated idempotency keys.
const ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// Descriptors for everything that is neither a client nor a provider: the record, listeners, runtimes, logs.
const OTHER_FILES: usize = 128;

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
    reloads: Reloads,
    reloading: thread::JoinHandle<()>,
    spending: Option<Spending>,
    courier: Option<Sending>,
    records: Option<Records>,
    /// Its thread ends when this is gone.
    _pressure: SyncSender<()>,
    draining: Arc<AtomicBool>,
}

/// The thread that keeps what callers spent; it ends when its sender is gone.
struct Spending {
    stop: SyncSender<()>,
    thread: thread::JoinHandle<()>,
}

/// The thread that sends what the outbox holds; it ends when its sender is gone.
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
        let guard = Guard::new(config.admin_listen, config.admin_token)?;
        let seen = config.origin.hash();
        let table = config.origin.load().map_err(StartError::Config)?;
        remark(&table);
        enough_descriptors(table.limits());
        let renewed = config.tls.map(|files| load_certificates(files, &config.metrics)).transpose()?;
        let certificates = renewed.as_ref().map(|(certificates, _)| Arc::clone(certificates));
        say_who_cannot_call(&table, certificates.as_deref());
        let listen = |address, option| bind(address).map_err(|source| StartError::Listen { address, option, source });
        let data_listener = listen(config.listen, "--listen")?;
        let admin_listener = listen(config.admin_listen, "--admin-listen")?;
        let dial: Arc<dyn Dial> = Arc::new(TcpDial::new(Arc::new(tls()?)));
        let data_shutdown = Shutdown::new();
        let records = open_record(config.record_dir, config.checkpoints, &config.metrics, &table)?;
        let mut shared = shared(config.metrics, config.log, dial, &data_shutdown, config.data_dir.as_deref())?;
        if let Some(records) = &records {
            records.reader().map_or(Ok(()), |reader| shared.ledger.remember(reader))?;
            shared.clerk = Some(Clerk::new(records.clone(), Arc::clone(&shared.metrics)));
        }
        let shared = Arc::new(shared);
        shared.metrics.config_in_use(&table.version().to_string(), clock::unix_seconds());
        let live: Live = Arc::new(ArcSwap::from_pointee(build(table, None, &shared)));

        // Before anybody can spend.
        let spending = config.data_dir.as_deref().map(|folder| keep_spending(folder, &live)).transpose();
        let spending = spending.map_err(StartError::System)?;
        let courier = Courier::new(&live, &shared).map(send_notices).transpose().map_err(StartError::System)?;

        let last = Arc::new(LastReload::default());
        let reloader = Reloader {
            origin: config.origin,
            live: Arc::clone(&live),
            shared: Arc::clone(&shared),
            last: Arc::clone(&last),
            seen,
            certificates: renewed,
        };
        let (reloads, reloading) = reloader.start().map_err(StartError::System)?;

        let for_admin = certificates.clone().filter(|_| config.admin_tls);
        let secured = [certificates.is_some(), for_admin.is_some()];
        let (data_tls, admin_tls) = (certificates.as_ref().map(for_data), for_admin.map(for_operators));
        let data = (data_listener, data_tls);
        let data = start_data(data, config.workers, &live, &shared, data_shutdown)?;
        let pressure = watch_pressure(&data, &live, &shared).map_err(StartError::System)?;
        let draining = Arc::new(AtomicBool::new(false));
        let admin = Admin {
            live: Arc::clone(&live),
            shared,
            last,
            reloads: reloads.clone(),
            draining: Arc::clone(&draining),
            guard,
            certificates,
        };
        let admin = start_admin((admin_listener, admin_tls), admin)?;
        let _pressure = pressure;
        Ok(Self { data, admin, live, secured, reloads, reloading, spending, courier, records, _pressure, draining })
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

    /// Stops in good order. Readiness goes first; the admin listener goes last, so that the drain can be watched.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything at once.
    pub async fn drain(self, delay: Duration, limit: Duration) -> DrainReport {
        self.draining.store(true, Ordering::Release);
        let report = self.data.drain(delay, limit).await;
        self.reloads.stop();
        drop(self.admin);
        // It is asleep or reading files; it ends within a poll.
        drop(self.reloading);
        if let Some(Sending { stop, thread }) = self.courier {
            drop(stop);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        // After the last answer ended: whatever waits is recorded, and a last checkpoint signed.
        if let Some(records) = self.records {
            let _ = tokio::task::spawn_blocking(move || records.stop()).await;
        }
        // After the last answer ended, so that its cost is in it.
        if let Some(Spending { stop, thread }) = self.spending {
            drop(stop);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        report
    }
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

/// Looks once before anybody is served, and then once a second.
fn watch_pressure(data: &Server, live: &Live, shared: &Arc<Shared>) -> io::Result<SyncSender<()>> {
    let (meter, idle) = (Meter::new(), data.idle());
    let measure = Box::new(move |memory| meter.read(memory));
    let mut watch = PressureWatch::new(Arc::clone(live), shared, measure, Box::new(move || idle.close()));
    watch.look();
    let (stop, stopped) = mpsc::sync_channel(1);
    thread::Builder::new().name("pressure".to_owned()).spawn(move || watch.run(&stopped))?;
    Ok(stop)
}

/// Raises the limit of open files, and says so where it is too low all the same: a connection of a client and one to a
/// provider each need one.
fn enough_descriptors(limits: &Limits) {
    let needed = limits.connections.saturating_add(limits.in_flight).saturating_add(OTHER_FILES);
    if let Some(limit) = process::raise_descriptors().filter(|limit| *limit < needed as u64) {
        let (connections, in_flight) = (limits.connections, limits.in_flight);
        tracing::warn!(
            limit,
            needed,
            connections,
            in_flight,
            "the limit of open files is too low for [limits] connections and in_flight, raise it (ulimit -n) or lower them"
        );
    }
}

fn keep_spending(folder: &Path, live: &Live) -> io::Result<Spending> {
    let keeper = Keeper::new(folder, Arc::clone(live));
    keeper.restore();
    let (stop, stopped) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("spending".to_owned()).spawn(move || keeper.run(&stopped))?;
    Ok(Spending { stop, thread })
}

fn send_notices(courier: Courier) -> io::Result<Sending> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("notices".to_owned()).spawn(move || {
        runtime.block_on(courier.run(stopped));
    })?;
    Ok(Sending { stop, thread })
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

/// A bound listener and what its TLS is made of.
type Socket = (std::net::TcpListener, Option<TlsSource>);

fn for_data(certificates: &Arc<Certificates>) -> TlsSource {
    let certificates = Arc::clone(certificates);
    Arc::new(move || Arc::clone(&certificates.now().data))
}

fn for_operators(certificates: Arc<Certificates>) -> TlsSource {
    Arc::new(move || Arc::clone(&certificates.now().admin))
}

fn load_certificates(files: CertificateFiles, metrics: &Arc<Metrics>) -> Result<Seen, CertificateError> {
    // Before reading: what changes from here on is a change.
    let seen = files.hash();
    Ok((Arc::new(Certificates::load(files, Arc::clone(metrics))?), seen))
}

fn url(secured: bool, address: SocketAddr) -> String {
    format!("{}://{address}", if secured { "https" } else { "http" })
}

fn start_data(
    (listener, tls): Socket,
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
        tls,
        metrics: Arc::clone(&shared.metrics),
        shutdown,
    };
    Server::start(config, move |_| stack::ingress(&for_stack, &for_ingress)).map_err(StartError::System)
}

fn start_admin((listener, tls): Socket, admin: Admin) -> Result<Server, StartError> {
    let config = ServerConfig {
        listener,
        workers: 1,
        limits: Arc::new(|| ConnectionLimits { connections: 64, ..ConnectionLimits::default() }),
        tls,
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
        handshake: limits.handshake,
        connections: limits.connections,
    }
}
