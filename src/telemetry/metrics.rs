//! Handles to every metric, resolved at configuration time.
//!
//! A reload asks for the same names again and gets the same handles back, so no number is lost. Names that configurations
//! used once stay for the life of the process; after [`MOST_NAMES`] distinct ones further names share the name `other`,
//! so that a million reloads cannot grow the process.
//!
//! It deliberately does not decide what counts as an outcome: callers do.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use super::catalog::{self, Row};
use super::cells::{Counter, Gauge, Histogram, Level};
use super::families::Families;
use super::handles::{
    AuditMetrics, BudgetLevels, CallerMetrics, ConnectionMetrics, HedgeMetrics, ProviderMetrics, ReuseMetrics,
    RiskProviderMetrics, RouteMetrics, ShadowMetrics, UpstreamMetrics, VelocityMetrics, pairs, set,
};
use super::labels::{
    BudgetOutcome, Cache, CacheEvent, CertificateReload, ExtraCost, Notice, ReloadResult, ShedReason, SignatureRefusal,
};
use super::pressure::PressureLevels;
use super::samples::Sample;
use super::traces::TraceMetrics;
use crate::domain::currency::Currency;
use crate::domain::decision::{Action, DecisionSource, FallbackReason, Score};
use crate::domain::id::{CallerId, ProviderId, RouteId, UpstreamId};
use crate::domain::money::Cost;
use crate::domain::outcome::FailureClass;
use crate::domain::overload::Class;
use crate::domain::period::Period;

/// Most distinct routes, and most distinct upstreams, that get series of their own.
pub const MOST_NAMES: usize = 1_024;
/// Most distinct pairs of upstreams in `failovers_total`.
const MOST_PAIRS: usize = 4_096;
/// Most distinct model versions a provider may report.
const MOST_VERSIONS: usize = 16;
/// Most merchant categories.
const MOST_CATEGORIES: usize = 64;
/// The name that everything beyond a bound shares.
const OTHER: &str = "other";

const ACTIONS: [Action; 4] = [Action::Pass, Action::Challenge, Action::Review, Action::Reject];
const SOURCES: [DecisionSource; 5] = [
    DecisionSource::Live,
    DecisionSource::Replayed,
    DecisionSource::Late,
    DecisionSource::Cached,
    DecisionSource::Fallback(FallbackReason::Deadline),
];

/// Every metric of the process.
pub struct Metrics {
    families: Arc<Families>,
    routes: Bounded<RouteId, RouteMetrics>,
    upstreams: Bounded<(ProviderId, Box<str>), UpstreamMetrics>,
    providers: Bounded<ProviderId, ProviderMetrics>,
    risk_providers: Bounded<ProviderId, RiskProviderMetrics>,
    callers: Bounded<CallerId, CallerMetrics>,
    budgets: Bounded<(CallerId, Period, Currency), BudgetLevels>,
    merchant_budgets: Bounded<([Box<str>; 3], Period, Currency), BudgetLevels>,
    merchant_calls: Vec<Counter>,
    features_dropped: Bounded<Box<str>, Counter>,
    hedges: Bounded<RouteId, HedgeMetrics>,
    shadows: Bounded<(ProviderId, Box<str>), ShadowMetrics>,
    velocity: Bounded<Arc<str>, VelocityMetrics>,
    extra_costs: Bounded<(ProviderId, Box<str>, Currency, ExtraCost), Counter>,
    failovers: Bounded<(UpstreamId, UpstreamId, FailureClass), Counter>,
    risk_scores: Bounded<Box<str>, Histogram>,
    decisions: HashMap<Box<str>, Vec<Counter>>,
    shed: Vec<Counter>,
    caches: Vec<Counter>,
    config_reloads: Vec<Counter>,
    signatures_refused: Vec<Counter>,
    notices: Vec<Counter>,
    config_last_success: Level,
    tls_reloads: Vec<Counter>,
    tls_expiry: OnceLock<Level>,
    config_not_in_force: Level,
    /// Configurations still held, the current one included.
    pub snapshots_alive: Gauge,
    /// Calls whose cost is unknown.
    pub unpriced: Counter,
    /// Payment attempts for which a policy's condition could not be evaluated.
    pub policy_unclear: Counter,
    /// Bugs contained to one request or connection.
    pub panics: Counter,
    /// Access log lines given up.
    pub log_dropped: Counter,
    /// The record of decisions.
    pub audit: AuditMetrics,
    /// Requests told to a collector.
    pub traces: TraceMetrics,
    /// Client connections.
    pub connections: ConnectionMetrics,
    /// Decisions given again.
    pub reuse: ReuseMetrics,
    /// What the process uses of what it may.
    pub pressure: PressureLevels,
}

impl Metrics {
    /// All metrics at zero, with a lane for each core; every merchant category counts as `other`.
    pub fn new() -> Arc<Self> {
        Self::with_merchant_categories(&[])
    }

    /// As [`Metrics::new`], with the merchant categories (at most 64) that decisions are counted by.
    pub fn with_merchant_categories(categories: &[&str]) -> Arc<Self> {
        let families = Arc::new(Families::new(thread::available_parallelism().map_or(1, usize::from)));
        let f = &*families;
        Arc::new(Self {
            decisions: decisions(f, categories),
            shed: pairs(f, &catalog::SHED, &Class::ALL.map(Class::label), &ShedReason::labels()),
            caches: pairs(f, &catalog::CACHE_EVENTS, &Cache::labels(), &CacheEvent::labels()),
            config_reloads: set(f, &catalog::CONFIG_RELOADS, &[], &ReloadResult::labels()),
            signatures_refused: set(f, &catalog::SIGNATURES_REFUSED, &[], &SignatureRefusal::labels()),
            notices: set(f, &catalog::WEBHOOK_NOTICES, &[], &Notice::labels()),
            tls_reloads: set(f, &catalog::TLS_RELOADS, &[], &CertificateReload::labels()),
            tls_expiry: OnceLock::new(),
            config_last_success: f.level(&catalog::CONFIG_LAST_SUCCESS, &[]),
            config_not_in_force: f.level(&catalog::CONFIG_NOT_IN_FORCE, &[]),
            snapshots_alive: f.gauge(&catalog::CONFIG_SNAPSHOTS, &[]),
            unpriced: f.counter(&catalog::UNPRICED, &[]),
            policy_unclear: f.counter(&catalog::POLICY_UNCLEAR, &[]),
            panics: f.counter(&catalog::PANICS, &[]),
            log_dropped: f.counter(&catalog::LOG_DROPPED, &[]),
            audit: AuditMetrics::new(f),
            traces: TraceMetrics::new(f),
            connections: ConnectionMetrics::new(f),
            reuse: ReuseMetrics::new(f),
            pressure: PressureLevels::new(f),
            routes: Bounded::new(MOST_NAMES),
            upstreams: Bounded::new(MOST_NAMES),
            providers: Bounded::new(MOST_NAMES),
            risk_providers: Bounded::new(MOST_NAMES),
            callers: Bounded::new(MOST_NAMES),
            budgets: Bounded::new(MOST_NAMES),
            merchant_budgets: Bounded::new(MOST_NAMES),
            merchant_calls: set(f, &catalog::MERCHANT_BUDGET_CALLS, &[], &BudgetOutcome::labels()),
            features_dropped: Bounded::new(MOST_NAMES),
            hedges: Bounded::new(MOST_NAMES),
            shadows: Bounded::new(MOST_NAMES),
            velocity: Bounded::new(MOST_NAMES),
            extra_costs: Bounded::new(MOST_NAMES),
            failovers: Bounded::new(MOST_PAIRS),
            risk_scores: Bounded::new(MOST_VERSIONS),
            families,
        })
    }

    /// The handles of a route; the same ones each time.
    pub fn route(&self, id: &RouteId) -> Arc<RouteMetrics> {
        self.routes
            .get(id.clone(), |overflow| RouteMetrics::new(&self.families, if overflow { OTHER } else { id.as_str() }))
    }

    /// The handles of a provider's model; the same ones each time. A provider on the risk side has no model: pass `""`.
    pub fn upstream(&self, provider: &ProviderId, model: &str) -> Arc<UpstreamMetrics> {
        self.upstreams.get((provider.clone(), model.into()), |overflow| {
            let (provider, model) = if overflow { (OTHER, OTHER) } else { (provider.as_str(), model) };
            UpstreamMetrics::new(&self.families, provider, model)
        })
    }

    /// The handles of a provider; the same ones each time.
    pub fn provider(&self, id: &ProviderId) -> Arc<ProviderMetrics> {
        self.providers.get(id.clone(), |overflow| {
            ProviderMetrics::new(&self.families, if overflow { OTHER } else { id.as_str() })
        })
    }

    /// The handles of a provider of risk decisions; the same ones each time.
    pub fn risk_provider(&self, id: &ProviderId) -> Arc<RiskProviderMetrics> {
        self.risk_providers.get(id.clone(), |overflow| {
            RiskProviderMetrics::new(&self.families, if overflow { OTHER } else { id.as_str() })
        })
    }

    /// Counts a request refused for its signature.
    pub fn signature_refused(&self, why: SignatureRefusal) {
        self.signatures_refused.get(why as usize).inspect(|counter| counter.inc());
    }

    /// The handles of a caller whose tokens or money are counted; the same ones each time.
    pub fn caller(&self, id: &CallerId) -> Arc<CallerMetrics> {
        self.callers
            .get(id.clone(), |overflow| CallerMetrics::new(&self.families, if overflow { OTHER } else { id.as_str() }))
    }

    /// The levels of a caller's budget; the same ones each time. Beyond the bound they are shown nowhere: the sums of
    /// several callers in one level would be nobody's.
    pub fn budget(&self, caller: &CallerId, per: Period, currency: Currency) -> BudgetLevels {
        let levels = self.budgets.get((caller.clone(), per, currency), |overflow| {
            let names = [caller.as_str(), per.label(), currency.code()];
            if overflow { BudgetLevels::default() } else { BudgetLevels::new(&self.families, names) }
        });
        BudgetLevels::clone(&levels)
    }

    /// The levels of a budget of a merchant or a category (`whose`, its name, the tenant it is limited to), as
    /// [`Metrics::budget`] has those of callers.
    pub fn merchant_budget(&self, names: [&str; 3], per: Period, currency: Currency) -> BudgetLevels {
        let [whose, name, tenant] = names;
        let levels = self.merchant_budgets.get((names.map(Into::into), per, currency), |overflow| {
            let labels = [whose, name, tenant, per.label(), currency.code()];
            if overflow { BudgetLevels::default() } else { BudgetLevels::of_merchant(&self.families, labels) }
        });
        BudgetLevels::clone(&levels)
    }

    /// Counts a risk call that a merchant's budget held for.
    pub fn merchant_call(&self, outcome: BudgetOutcome) {
        self.merchant_calls.get(outcome as usize).inspect(|counter| counter.inc());
    }

    /// Counts a feature that a merchant's budget left out. Takes a short lock; the names are the ladder's.
    pub fn feature_dropped(&self, feature: &str) {
        let counter = self.features_dropped.get(feature.into(), |overflow| {
            self.families.counter(&catalog::FEATURES_DROPPED, &[if overflow { OTHER } else { feature }])
        });
        counter.inc();
    }

    /// The handles of a route that hedges; the same ones each time.
    pub fn hedges(&self, id: &RouteId) -> Arc<HedgeMetrics> {
        self.hedges
            .get(id.clone(), |overflow| HedgeMetrics::new(&self.families, if overflow { OTHER } else { id.as_str() }))
    }

    /// The handles of a candidate on trial; the same ones each time.
    pub fn shadow(&self, provider: &ProviderId, model: &str) -> Arc<ShadowMetrics> {
        self.shadows.get((provider.clone(), model.into()), |overflow| {
            let (provider, model) = if overflow { (OTHER, OTHER) } else { (provider.as_str(), model) };
            ShadowMetrics::new(&self.families, provider, model)
        })
    }

    /// The handles of a velocity counter; the same ones each time.
    pub fn velocity(&self, counter: &Arc<str>) -> Arc<VelocityMetrics> {
        self.velocity.get(Arc::clone(counter), |overflow| {
            VelocityMetrics::new(&self.families, if overflow { OTHER } else { counter })
        })
    }

    /// Counts what an answer cost that nobody was shown. Takes a short lock; a negative cost is ignored.
    pub fn extra_cost(&self, provider: &ProviderId, model: &str, purpose: ExtraCost, cost: Cost) {
        let key = (provider.clone(), model.into(), cost.currency, purpose);
        let counter = self.extra_costs.get(key, |overflow| {
            let labels = [provider.as_str(), model, cost.currency.code(), purpose.label()];
            self.families.counter(&catalog::EXTRA_COST, &if overflow { [OTHER; 4] } else { labels })
        });
        counter.add(u64::try_from(cost.micro).unwrap_or_default());
    }

    /// Counts a call's move from one upstream to another. Takes a short lock: failovers are not the common case.
    pub fn failover(&self, from: &UpstreamId, to: &UpstreamId, class: FailureClass) {
        let counter = self.failovers.get((from.clone(), to.clone(), class), |overflow| {
            let (from, to) = if overflow { (OTHER, OTHER) } else { (from.as_str(), to.as_str()) };
            self.families.counter(&catalog::FAILOVERS, &[from, to, if overflow { OTHER } else { class.label() }])
        });
        counter.inc();
    }

    /// Counts a risk decision. A category that was not declared at construction counts as `other`.
    pub fn decision(&self, merchant_category: Option<&str>, action: Action, source: DecisionSource) {
        let counters = self.decisions.get(merchant_category.unwrap_or(OTHER)).or_else(|| self.decisions.get(OTHER));
        let action = ACTIONS.iter().position(|known| *known == action);
        let source = SOURCES.iter().position(|known| known.as_str() == source.as_str());
        if let (Some(counters), Some(action), Some(source)) = (counters, action, source) {
            counters.get(action * SOURCES.len() + source).inspect(|counter| counter.inc());
        }
    }

    /// Counts what became of a notice to a webhook.
    pub fn notice(&self, notice: Notice) {
        self.notices.get(notice as usize).inspect(|counter| counter.inc());
    }

    /// Counts a score a provider reported; after 16 distinct model versions, further ones count as `other`.
    pub fn risk_score(&self, model_version: Option<&str>, score: Score) {
        let version = model_version.filter(|version| version.len() <= 128).unwrap_or("unknown");
        let histogram = self.risk_scores.get(version.into(), |overflow| {
            self.families.histogram(&catalog::RISK_SCORE, &[if overflow { OTHER } else { version }])
        });
        histogram.observe_units(u64::from(score.micro()));
    }

    /// Counts a call refused because the process was full.
    pub fn shed(&self, class: Class, reason: ShedReason) {
        self.shed.get(class as usize * ShedReason::ALL.len() + reason as usize).inspect(|counter| counter.inc());
    }

    /// Counts what a cache did.
    pub fn cache(&self, cache: Cache, event: CacheEvent) {
        self.caches.get(cache as usize * CacheEvent::ALL.len() + event as usize).inspect(|counter| counter.inc());
    }

    /// Tells whether what is on disk is not what is in use.
    pub fn config_not_in_force(&self, refused: bool) {
        self.config_not_in_force.set(i64::from(refused));
    }

    /// Tells which configuration is in use, by the short form of its version, and when it was loaded.
    pub fn config_in_use(&self, hash: &str, unix_seconds: u64) {
        self.families.info(&catalog::CONFIG_INFO, &[hash]);
        self.config_last_success.set(i64::try_from(unix_seconds).unwrap_or(i64::MAX));
    }

    /// Counts a reload.
    pub fn config_reload(&self, result: ReloadResult) {
        self.config_reloads.get(result as usize).inspect(|counter| counter.inc());
    }

    /// Counts what became of certificate files that changed.
    pub fn tls_reload(&self, result: CertificateReload) {
        self.tls_reloads.get(result as usize).inspect(|counter| counter.inc());
    }

    /// Tells when the certificate in use expires. Without TLS there is no such series: 0 would alarm somebody.
    pub fn tls_expiry(&self, unix_seconds: i64) {
        self.tls_expiry.get_or_init(|| self.families.level(&catalog::TLS_EXPIRY, &[])).set(unix_seconds);
    }

    /// What these metrics hold now, without the series that never counted anything.
    pub fn samples(&self, wanted: &[&'static Row]) -> Vec<Sample> {
        self.families.samples(wanted)
    }

    /// Everything in Prometheus' text format. An error is logged and gives an empty text.
    pub fn render(&self) -> String {
        self.families.render().unwrap_or_else(|err| {
            tracing::error!(%err, "metrics cannot be rendered");
            String::new()
        })
    }
}

/// Handles by key. Beyond `most` keys every new key gets the same, shared handles.
struct Bounded<K, V> {
    most: usize,
    /// Locked while a configuration is built, and on the rare paths that say so; never while a request waits for I/O.
    known: Mutex<Known<K, V>>,
}

struct Known<K, V> {
    by_key: HashMap<K, Arc<V>>,
    shared: Option<Arc<V>>,
}

impl<K: Eq + Hash, V> Bounded<K, V> {
    fn new(most: usize) -> Self {
        Self { most, known: Mutex::new(Known { by_key: HashMap::new(), shared: None }) }
    }

    /// The handles of `key`, made on first use; `make(true)` makes the shared ones.
    fn get(&self, key: K, make: impl FnOnce(bool) -> V) -> Arc<V> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { by_key, shared } = &mut *known;
        if let Some(handles) = by_key.get(&key) {
            return Arc::clone(handles);
        }
        if by_key.len() >= self.most {
            return Arc::clone(shared.get_or_insert_with(|| Arc::new(make(true))));
        }
        let handles = Arc::new(make(false));
        by_key.insert(key, Arc::clone(&handles));
        handles
    }
}

fn decisions(f: &Families, categories: &[&str]) -> HashMap<Box<str>, Vec<Counter>> {
    let sources = SOURCES.map(DecisionSource::as_str);
    let counters = |category: &str| {
        let of_action = |action: &Action| set(f, &catalog::DECISIONS, &[category, action.as_str()], &sources);
        ACTIONS.iter().flat_map(of_action).collect()
    };
    let mut all = HashMap::new();
    for category in categories.iter().take(MOST_CATEGORIES).chain([&OTHER]) {
        all.entry((*category).into()).or_insert_with(|| counters(category));
    }
    all
}

#[cfg(test)]
mod tests;
