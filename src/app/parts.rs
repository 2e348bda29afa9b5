//! The parts a process is made of, each started by itself: sockets, the record, certificates, threads beside the workers.
//!
//! In which order they start and stop is `app.rs`.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use rustls::ClientConfig;
use tokio::sync::oneshot;

use crate::admin::watched::Watched;
use crate::admin::{Admin, AdminService};
use crate::config::error::ConfigError;
use crate::config::table::{Limits, RoutingTable};
use crate::config::tls::Roots;
use crate::flight::gathered;
use crate::flight::quota::Calendar;
use crate::flight::velocity::Velocity;
use crate::gateway::certificates::{CertificateError, CertificateFiles, Certificates};
use crate::gateway::collector::Collector;
use crate::gateway::counts;
use crate::gateway::courier::Courier;
use crate::gateway::handover::{self, ReadTo};
use crate::gateway::pressure::{Comforts, Watch as PressureWatch};
use crate::gateway::reload::{LastReload, Seen, remark, say_who_cannot_call};
use crate::gateway::snapshot::{Live, Shared};
use crate::gateway::spending::Keeper;
use crate::gateway::stack;
use crate::layer::admission::Gate;
use crate::layer::cache::Store;
use crate::layer::decision_cache::DecisionCache;
use crate::layer::idempotency::Ledger;
use crate::layer::idempotency_key::Answers;
use crate::layer::verify_signature::Nonces;
use crate::server::limits::ConnectionLimits;
use crate::server::shutdown::Shutdown;
use crate::server::takeover::{Listeners, Predecessor, Succession};
use crate::server::{Server, ServerConfig, TlsSource, bind};
use crate::store::db::StoreError;
use crate::store::writer::{Faults, Records, RecordsConfig, Watch};
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process::{self, Meter};
use crate::telemetry::traces::Spans;
use crate::upstream::dial::Dial;
use crate::upstream::secure;

use super::{ANSWER_BYTES, CACHE_BYTES, Inherited, OTHER_FILES, Sending, Spending, StartError};

/// The sockets a supervisor opened, those the process before offers, or our own.
pub(super) fn listeners(
    inherited: Inherited,
    offered: Option<Listeners>,
    at: [SocketAddr; 2],
) -> Result<Listeners, StartError> {
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
pub(super) fn remember(shared: &Shared, records: &Records) -> Result<ReadTo, StoreError> {
    let Some(reader) = records.reader() else { return Ok(ReadTo(0)) };
    // First: what is recorded meanwhile is read twice, and not never.
    let read_to = ReadTo(reader.newest()?);
    shared.ledger.remember(reader)?;
    Ok(read_to)
}

/// Takes over from the process before, or from what one left that has ended. Blocks until that process accepts no more.
pub(super) fn carry_on(before: Option<&mut Predecessor>, shared: &Shared, data: Option<&Path>, read_to: ReadTo) {
    match before {
        Some(before) => handover::take(shared, data, read_to, before.release()),
        None => data.into_iter().for_each(handover::forget),
    }
    if let Some(data) = data {
        counts::go_on(shared, data);
    }
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
pub(super) fn open_record(
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
pub(super) fn watch_pressure(data: &Server, live: &Live, shared: &Arc<Shared>) -> io::Result<SyncSender<()>> {
    let (meter, idle) = (Meter::new(), data.idle());
    let measure = Box::new(move |memory| meter.read(memory));
    let comforts = Comforts { close_idle: Box::new(move || idle.close()), keep_spare: Box::new(gathered::keep_spare) };
    let mut watch = PressureWatch::new(Arc::clone(live), shared, measure, comforts);
    watch.look();
    let (stop, stopped) = mpsc::sync_channel(1);
    thread::Builder::new().name("pressure".to_owned()).spawn(move || watch.run(&stopped))?;
    Ok(stop)
}

/// Says of a configuration what may mean something else than its writer thinks, and what the system does not give it.
pub(super) fn look_over(table: &RoutingTable, certificates: Option<&Certificates>) {
    remark(table);
    enough_descriptors(table.limits());
    say_who_cannot_call(table, certificates);
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

pub(super) fn keep_spending(folder: Option<&Path>, live: &Live) -> io::Result<Option<Spending>> {
    let Some(folder) = folder else { return Ok(None) };
    let keeper = Keeper::new(folder, Arc::clone(live));
    keeper.restore();
    let (stop, stopped) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("spending".to_owned()).spawn(move || keeper.run(&stopped))?;
    Ok(Some(Spending { stop, thread }))
}

pub(super) fn send_notices(courier: Courier) -> io::Result<Sending> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("notices".to_owned()).spawn(move || {
        runtime.block_on(courier.run(stopped));
    })?;
    Ok(Sending { stop, thread })
}

pub(super) fn send_traces(live: &Live, shared: &Shared) -> Result<Sending, StartError> {
    let collector = Collector::new(live, shared);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::System)?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("traces".to_owned()).spawn(move || {
        runtime.block_on(collector.run(stopped));
    });
    Ok(Sending { stop, thread: thread.map_err(StartError::System)? })
}

pub(super) fn shared(
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
        spans: Arc::new(Spans::new(metrics.traces.clone())),
        notices: Arc::default(),
        gate: Arc::new(Gate::default()),
        calendar: Calendar::now(),
        drained: shutdown.signal().ending(),
        recent: Arc::default(),
        metrics,
        log,
        dial,
    })
}

/// What providers without settings of their own are connected with: the operating system's trust store, or the bundled
/// roots where there is none.
pub(super) fn tls() -> Result<ClientConfig, rustls::Error> {
    secure::client(secure::verifier(&Roots::Usual)?)
}

/// A bound listener and what its TLS is made of.
pub(super) type Socket = (TcpListener, Option<TlsSource>);

/// For the data listener, and for the admin listener if it is to have TLS as well.
pub(super) fn tls_sources(
    certificates: Option<&Arc<Certificates>>,
    admin_tls: bool,
) -> (Option<TlsSource>, Option<TlsSource>) {
    (certificates.map(for_data), certificates.filter(|_| admin_tls).cloned().map(for_operators))
}

/// What the first look at the files said: mistakes, if the last good configuration had to do.
pub(super) fn first_reload(refused: Option<Vec<ConfigError>>, shared: &Shared) -> Arc<LastReload> {
    let last = LastReload::default();
    if let Some(errors) = refused {
        shared.metrics.config_not_in_force(true);
        last.refused(errors);
    }
    Arc::new(last)
}

/// Offers the listening sockets to a next process, once the one before has ended.
pub(super) fn succession(
    offers: Option<(PathBuf, Listeners)>,
    predecessor: Option<Predecessor>,
    shared: &Arc<Shared>,
) -> Result<Option<Succession>, StartError> {
    let busy = Arc::new(AtomicBool::new(predecessor.is_some()));
    let open = |(path, offers): (PathBuf, _)| Succession::open(&path, offers, Arc::clone(&busy));
    let succession = offers.map(open).transpose()?;
    predecessor.map_or(Ok(()), |before| outlive(before, shared, &busy)).map_err(StartError::System)?;
    Ok(succession)
}

fn for_data(certificates: &Arc<Certificates>) -> TlsSource {
    let certificates = Arc::clone(certificates);
    Arc::new(move || Arc::clone(&certificates.now().data))
}

fn for_operators(certificates: Arc<Certificates>) -> TlsSource {
    Arc::new(move || Arc::clone(&certificates.now().admin))
}

pub(super) fn load_certificates(files: CertificateFiles, metrics: &Arc<Metrics>) -> Result<Seen, CertificateError> {
    // Before reading: what changes from here on is a change.
    let seen = files.hash();
    Ok((Arc::new(Certificates::load(files, Arc::clone(metrics))?), seen))
}

pub(super) fn url(secured: bool, address: SocketAddr) -> String {
    format!("{}://{address}", if secured { "https" } else { "http" })
}

pub(super) fn start_data(
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

pub(super) fn start_admin((listener, tls): Socket, admin: Admin) -> Result<Server, StartError> {
    let config = ServerConfig {
        listener,
        workers: 1,
        limits: Arc::new(|| ConnectionLimits { connections: 64, tells_peer: true, ..ConnectionLimits::default() }),
        tls,
        // Its connections are not the applications': they are counted nowhere.
        metrics: Metrics::new(),
        shutdown: Shutdown::new(),
    };
    let admin = Arc::new(admin);
    let service = Watched::new(AdminService(Arc::clone(&admin)), admin);
    Server::start(config, move |_| service.clone()).map_err(StartError::System)
}

pub(super) fn connection_limits(live: &Live) -> ConnectionLimits {
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
        tells_peer: false,
    }
}
