//! One configuration made runnable: the table, everything live in it, and one built service per route.
//!
//! There is one [`Live`] and one writer (`reload`). A request loads it once and keeps what it got; an old snapshot goes
//! with its last request. What must survive a reload is taken over from the previous snapshot by identity.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;

use crate::config::table::{Caller, ConfigVersion, Limits, RoutingTable};
use crate::domain::clock;
use crate::domain::id::{CallerId, ProviderId, RouteId, UpstreamId};
use crate::flight::allowance::Allowance;
use crate::flight::arrival::{LiveCaller, Pinned};
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::trail::RouteNames;
use crate::gateway::stack;
use crate::layer::admission::Gate;
use crate::layer::cache::Store;
use crate::layer::idempotency::Ledger;
use crate::telemetry::access::AccessLog;
use crate::telemetry::cells::Held;
use crate::telemetry::metrics::Metrics;
use crate::upstream::dial::Dial;
use crate::upstream::live::{Fleet, LiveProvider, LiveUpstream};

/// The configuration in force.
pub type Live = Arc<ArcSwap<Snapshot>>;

/// A route's whole stack, ready to be called.
pub type RouteService = BoxCloneSyncService<Call, Reply, CallError>;

/// What all snapshots share for the life of the process.
pub struct Shared {
    /// The one registry.
    pub metrics: Arc<Metrics>,
    /// Where access lines go.
    pub log: AccessLog,
    /// The seam to the network.
    pub dial: Arc<dyn Dial>,
    /// Cached answers; keys hold the route's fingerprint, so a changed route simply misses.
    pub store: Store,
    /// Decisions made and in the making.
    pub ledger: Ledger,
    /// Process-wide admission.
    pub gate: Arc<Gate>,
    /// Turns true when streams must end.
    pub drained: watch::Receiver<bool>,
}

/// A route, ready to be called.
pub struct ReadyRoute {
    /// Its name and series.
    pub names: Arc<RouteNames>,
    /// Its stack.
    pub service: RouteService,
}

/// One configuration version, runnable.
pub struct Snapshot {
    table: Arc<RoutingTable>,
    version: HeaderValue,
    loaded_at: u64,
    callers: HashMap<[u8; 32], Arc<LiveCaller>>,
    fleet: Fleet,
    llm: HashMap<RouteId, ReadyRoute>,
    risk: Option<ReadyRoute>,
    _alive: Held,
}

impl Snapshot {
    /// Makes `table` runnable, taking over live state from `previous`.
    pub fn build(table: RoutingTable, previous: Option<&Self>, shared: &Shared) -> Self {
        let fleet = Fleet::build(&table, previous.map_or(&Fleet::default(), |snapshot| &snapshot.fleet), &shared.dial);
        let lanes = |candidates: &[_]| stack::lanes(candidates, &fleet, shared);
        let llm = table.llm_routes().values().map(|route| {
            let names = names(&route.id, &shared.metrics);
            (route.id.clone(), ReadyRoute { names, service: stack::llm(route, lanes(&route.candidates), shared) })
        });
        let risk = table.risk_route().map(|route| {
            let names = names(&route.id, &shared.metrics);
            ReadyRoute { names, service: stack::risk(route, lanes(&route.candidates), shared) }
        });
        Self {
            version: HeaderValue::from_str(&table.version().to_string()).unwrap_or(HeaderValue::from_static("unknown")),
            loaded_at: clock::unix_seconds(),
            callers: callers(&table, previous),
            llm: llm.collect(),
            risk,
            fleet,
            table: Arc::new(table),
            _alive: shared.metrics.snapshots_alive.hold(),
        }
    }

    /// The configuration behind it.
    pub fn table(&self) -> &RoutingTable {
        &self.table
    }

    /// When it was built, seconds since 1970.
    pub fn loaded_at(&self) -> u64 {
        self.loaded_at
    }

    /// Every candidate, live.
    pub fn upstreams(&self) -> &BTreeMap<UpstreamId, Arc<LiveUpstream>> {
        &self.fleet.upstreams
    }

    /// Every provider in use, live.
    pub fn providers(&self) -> &BTreeMap<ProviderId, Arc<LiveProvider>> {
        &self.fleet.providers
    }

    /// Callers and how many requests each has in flight.
    pub fn callers_in_flight(&self) -> impl Iterator<Item = (CallerId, u32)> + '_ {
        self.callers.values().map(|live| (live.caller.id.clone(), live.allowance.in_flight()))
    }

    /// A route's name and service.
    pub fn llm(&self, id: &RouteId) -> Option<&ReadyRoute> {
        self.llm.get(id)
    }

    /// The risk route's name and service.
    pub fn risk(&self) -> Option<&ReadyRoute> {
        self.risk.as_ref()
    }
}

impl Pinned for Arc<Snapshot> {
    fn version(&self) -> ConfigVersion {
        self.table.version()
    }

    fn version_header(&self) -> &HeaderValue {
        &self.version
    }

    fn limits(&self) -> &Limits {
        self.table.limits()
    }

    fn caller(&self, key_digest: &[u8; 32]) -> Option<&Arc<LiveCaller>> {
        self.callers.get(key_digest)
    }
}

fn names(id: &RouteId, metrics: &Metrics) -> Arc<RouteNames> {
    let header = HeaderValue::from_str(id.as_str()).unwrap_or(HeaderValue::from_static("unknown"));
    Arc::new(RouteNames { id: id.clone(), header, metrics: metrics.route(id) })
}

fn callers(table: &RoutingTable, previous: Option<&Snapshot>) -> HashMap<[u8; 32], Arc<LiveCaller>> {
    let known: HashMap<_, _> = previous
        .into_iter()
        .flat_map(|snapshot| snapshot.callers.values())
        .map(|live| (live.caller.id.clone(), Arc::clone(&live.allowance)))
        .collect();
    let revive = |caller: &Arc<Caller>| {
        let allowance = known.get(&caller.id).map_or_else(|| Arc::new(Allowance::new(Instant::now())), Arc::clone);
        (caller.key_digest, Arc::new(LiveCaller { caller: Arc::clone(caller), allowance }))
    };
    table.callers().iter().map(revive).collect()
}
