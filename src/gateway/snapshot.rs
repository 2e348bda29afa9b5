//! One configuration made runnable: the table, everything live in it, and one built service per route.
//!
//! There is one [`Live`] and one writer (`reload`). A request loads it once and keeps what it got; an old snapshot goes
//! with its last request. What must survive a reload is taken over from the previous snapshot by identity.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::watch;

use crate::config::table::{ConfigVersion, Limits, RoutingTable, Traces};
use crate::domain::clock;
use crate::domain::id::{CallerId, ProviderId, RouteId, UpstreamId};
use crate::domain::overload::Class;
use crate::flight::arrival::{LiveCaller, Pinned};
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::merchants::Merchants;
use crate::flight::quota::Calendar;
use crate::flight::reply::Reply;
use crate::flight::showing::Showing;
use crate::flight::trail::RouteNames;
use crate::flight::velocity::Velocity;
use crate::gateway::notify::Notices;
use crate::layer::admission::Gate;
use crate::layer::audit::Clerk;
use crate::layer::cache::Store;
use crate::layer::decision_cache::DecisionCache;
use crate::layer::failover::tempo::Tempo;
use crate::layer::idempotency::Ledger;
use crate::layer::idempotency_key::Answers;
use crate::layer::recent::Recent;
use crate::layer::seam::Seam;
use crate::layer::shadow::Copies;
use crate::layer::verify_signature::Nonces;
use crate::telemetry::access::AccessLog;
use crate::telemetry::cells::Held;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{Plan, Spans};
use crate::upstream::dial::Dial;
use crate::upstream::live::{Fleet, LiveProvider, LiveUpstream};

/// The configuration in force.
pub type Live = Arc<ArcSwap<Snapshot>>;

/// A route's whole stack, ready to be called.
pub type RouteService = Seam<Call, Reply, CallError>;

/// What all snapshots share for the life of the process.
pub struct Shared {
    /// The one registry.
    pub metrics: Arc<Metrics>,
    /// Where access lines go.
    pub log: AccessLog,
    /// The last requests that somebody may ask about.
    pub recent: Arc<Recent>,
    /// The seam to the network.
    pub dial: Arc<dyn Dial>,
    /// Cached answers; keys hold the route's fingerprint, so a changed route simply misses.
    pub store: Store,
    /// Answers given under an idempotency key, and those on their way.
    pub answers: Answers,
    /// Decisions made and in the making.
    pub ledger: Ledger,
    /// What was counted about payment attempts.
    pub velocity: Arc<Velocity>,
    /// Decisions that may be given again for other payments.
    pub decisions: Arc<DecisionCache>,
    /// Who records decisions; `None` where there is no record.
    pub clerk: Option<Clerk>,
    /// Nonces of signed requests.
    pub nonces: Nonces,
    /// Process-wide admission.
    pub gate: Arc<Gate>,
    /// What day it is, for budgets.
    pub calendar: Calendar,
    /// Finished requests that wait to be told to a collector.
    pub spans: Arc<Spans>,
    /// What became of notices to webhooks.
    pub notices: Arc<Notices>,
    /// Turns true when streams must end.
    pub drained: watch::Receiver<bool>,
}

/// A route, ready to be called.
pub struct ReadyRoute {
    /// Its name and series.
    pub names: Arc<RouteNames>,
    /// Its stack.
    pub service: RouteService,
    /// What of it outlives a reload.
    pub kept: Kept,
    /// Its stacks for calls that come under one of its rules, in the order of the rules.
    pub rules: Vec<RouteService>,
    /// Present where its calls are worth less than their callers': asked once its name was read.
    pub doorkeeper: Option<Arc<Doorkeeper>>,
}

/// Turns calls away that are worth less by their route than they were admitted as.
pub struct Doorkeeper {
    /// What there is.
    pub gate: Arc<Gate>,
    /// Counts what is shed.
    pub metrics: Arc<Metrics>,
}

impl Doorkeeper {
    /// Lets the call stay, counted as it is already.
    ///
    /// # Errors
    /// [`CallError::Shed`].
    pub fn admit(&self, class: Class, limits: &Limits) -> Result<(), CallError> {
        self.gate.remains(class, limits).map_err(|reason| {
            self.metrics.shed(class, reason);
            CallError::shed(reason)
        })
    }
}

/// What a route remembers, made only where it is needed.
#[derive(Clone, Default)]
pub struct Kept {
    /// How long its calls take, where it hedges.
    pub tempo: Option<Arc<Tempo>>,
    /// Copies of its calls on their way, where it has a shadow.
    pub copies: Option<Arc<Copies>>,
    /// What merchants have spent, where they have budgets.
    pub merchants: Option<Arc<Merchants>>,
    /// What it counts about payment attempts, where it does.
    pub velocity: Option<Arc<Velocity>>,
}

/// What a snapshot is made of.
pub(super) struct Parts {
    pub(super) table: RoutingTable,
    pub(super) callers: BTreeMap<[u8; 32], Arc<LiveCaller>>,
    pub(super) fleet: Fleet,
    pub(super) llm: BTreeMap<RouteId, ReadyRoute>,
    pub(super) risk: Option<ReadyRoute>,
    pub(super) clerk: Option<Clerk>,
    pub(super) decisions: Arc<DecisionCache>,
}

/// One configuration version, runnable.
pub struct Snapshot {
    table: Arc<RoutingTable>,
    version: HeaderValue,
    loaded_at: u64,
    callers: BTreeMap<[u8; 32], Arc<LiveCaller>>,
    fleet: Fleet,
    llm: BTreeMap<RouteId, ReadyRoute>,
    risk: Option<ReadyRoute>,
    clerk: Option<Clerk>,
    decisions: Arc<DecisionCache>,
    traces: Option<Arc<Plan>>,
    /// Apart, because every core writes to it and reads the rest.
    showing: Option<Box<Showing>>,
    _alive: Held,
}

impl Snapshot {
    /// Puts the parts together; only `build` makes them.
    pub(super) fn assemble(parts: Parts, alive: Held) -> Self {
        let Parts { table, callers, fleet, llm, risk, clerk, decisions } = parts;
        Self {
            traces: table.traces().map(|traces| plan(traces, &table)),
            version: HeaderValue::from_str(&table.version().to_string()).unwrap_or(HeaderValue::from_static("unknown")),
            loaded_at: clock::unix_seconds(),
            callers,
            llm,
            risk,
            clerk,
            decisions,
            showing: table.roll_back().map(|_| Box::default()),
            fleet,
            table: Arc::new(table),
            _alive: alive,
        }
    }

    /// How its requests fare, where somebody wants to know.
    pub fn showing(&self) -> Option<&Showing> {
        self.showing.as_deref()
    }

    /// Everything live in it.
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Callers by the digest of their key.
    pub(super) fn callers(&self) -> &BTreeMap<[u8; 32], Arc<LiveCaller>> {
        &self.callers
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

    /// Everyone who may call, live.
    pub fn live_callers(&self) -> impl Iterator<Item = &Arc<LiveCaller>> {
        self.callers.values()
    }

    /// Begins the windows of budgets that are due, for those who only read.
    pub fn turn_budgets(&self) {
        self.callers.values().filter_map(|live| live.quota.as_ref()).for_each(|quota| quota.turn());
    }

    /// Callers and how many requests each has in flight.
    pub fn callers_in_flight(&self) -> impl Iterator<Item = (CallerId, u32)> + '_ {
        self.callers.values().map(|live| (live.caller.id.clone(), live.allowance.in_flight()))
    }

    /// What merchants have spent, if the risk route has budgets.
    pub fn merchants(&self) -> Option<&Arc<Merchants>> {
        self.risk.as_ref()?.kept.merchants.as_ref()
    }

    /// A route's name and service.
    pub fn llm(&self, id: &RouteId) -> Option<&ReadyRoute> {
        self.llm.get(id)
    }

    /// The risk route's name and service.
    pub fn risk(&self) -> Option<&ReadyRoute> {
        self.risk.as_ref()
    }

    /// Who records decisions.
    pub fn clerk(&self) -> Option<&Clerk> {
        self.clerk.as_ref()
    }

    /// Decisions that may be given again.
    pub fn decisions(&self) -> &DecisionCache {
        &self.decisions
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

    fn traces(&self) -> Option<&Arc<Plan>> {
        self.traces.as_ref()
    }

    fn caller(&self, key_digest: &[u8; 32]) -> Option<&Arc<LiveCaller>> {
        self.callers.get(key_digest)
    }

    fn showing(&self) -> Option<&Showing> {
        self.as_ref().showing()
    }
}

/// What requests need to know of where traces go.
fn plan(traces: &Traces, table: &RoutingTable) -> Arc<Plan> {
    let servers = table.providers().iter();
    let servers = servers.map(|(id, provider)| (id.clone(), (provider.base_url.host.clone(), provider.base_url.port)));
    Arc::new(Plan {
        share: traces.share,
        queue: traces.queue,
        forward_to: traces.forward_to.clone(),
        servers: servers.collect(),
    })
}
