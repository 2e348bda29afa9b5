//! What of a provider outlives a reload, and what a snapshot makes of it.
//!
//! State is carried over from the previous snapshot by identity, never kept in a global map: what no snapshot knows any
//! more is dropped with the last snapshot that knew it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use tokio::time::Instant;
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::config::asking::Order;
use crate::config::table::{Auth, Candidate, Protocol, Provider, RoutingTable};
use crate::domain::id::{ProviderId, UpstreamId};
use crate::domain::jitter;
use crate::domain::operation::Operation;
use crate::flight::call::Call;
use crate::flight::trail::UpstreamNames;
use crate::routing::order::{Standing, hash};
use crate::sign::keyring::SigningKey;
use crate::telemetry::handles::RiskProviderMetrics;
use crate::telemetry::metrics::Metrics;
use crate::upstream::breaker::{Breaker, Lesson, Permit, State};
use crate::upstream::concurrency::Bounds;
use crate::upstream::dial::{Dial, Origin};
use crate::upstream::latency::Latency;
use crate::upstream::limiter::{Adaptive, Bulkhead, Pause};
use crate::upstream::pool::Pool;
use crate::upstream::skew::{Seldom, Skew};
use crate::upstream::token::TokenSource;

/// Retries of the same upstream: a tenth of its calls, and one a second.
const RETRY_SHARE: f32 = 0.1;
const RETRIES_A_SECOND: u32 = 1;
const RETRY_MEMORY: Duration = Duration::from_secs(10);
/// Refusals of our credential in a row that are no accident, and how long the first of them counts; it doubles to 32 times.
const UNWELCOME_FROM: u32 = 2;
const UNWELCOME_FOR: Duration = Duration::from_secs(10);

/// One provider made live.
pub struct LiveProvider {
    /// Its validated descriptor.
    pub provider: Arc<Provider>,
    /// Its connections; kept while scheme, host and port stay the same.
    pub pool: Arc<Pool>,
    /// Requests in flight to it; kept by id.
    pub bulkhead: Arc<Bulkhead>,
    /// How many of them it can take, if that is learned; kept by id.
    pub adaptive: Option<Arc<Adaptive>>,
    /// Its quota group's pause; kept by group name.
    pub pause: Arc<Pause>,
    /// How far its clock is from ours; kept while id and address stay the same.
    pub skew: Arc<Skew>,
    /// When the log last said that an answer was not authentic.
    pub forged: Seldom,
    /// When the log last said that there is no agreement on TLS or HTTP/2.
    pub estranged: Seldom,
    /// When the log last said that our time was refused.
    pub time_refused: Seldom,
    /// What it counts, if it gives risk decisions.
    pub judged: Option<Arc<RiskProviderMetrics>>,
    /// Its access token; kept while id and address stay the same and the same key signs.
    pub token: Arc<TokenSource>,
    /// Headers of every request, made once.
    pub headers: HeaderMap,
    /// `Host`, as it is signed.
    pub authority: String,
}

impl LiveProvider {
    /// What an adaptive limit moves between.
    pub fn bounds(&self) -> Bounds {
        let most = self.provider.in_flight;
        Bounds { least: self.provider.adaptive_least.unwrap_or(most), most }
    }

    /// How many requests may be in flight to it now.
    pub fn limit(&self) -> u32 {
        self.adaptive.as_ref().map_or(self.provider.in_flight, |adaptive| adaptive.limit(self.bounds()))
    }
}

/// One candidate made live.
pub struct LiveUpstream {
    /// What configuration says of it.
    pub candidate: Candidate,
    /// Its provider.
    pub provider: Arc<LiveProvider>,
    /// Its names in every form.
    pub names: Arc<UpstreamNames>,
    /// Its health; kept by id.
    pub health: Arc<Health>,
    /// How fast it is, if some route wants to know; kept by id.
    pub latency: Option<Arc<Latency>>,
    /// Its name as draws take it.
    pub drawn_as: u64,
    /// Where its requests go, by operation.
    uris: Vec<(Operation, Uri)>,
}

impl LiveUpstream {
    /// The operation this call would be sent as: its own, or the one it can be carried by; `None` if it cannot be sent.
    pub fn speaks(&self, call: &Call) -> Option<Operation> {
        let offers = |operation| self.uri(operation).map(|_| operation);
        let carried = || call.carried.as_ref().and_then(|_| offers(call.operation.carried_by()?));
        offers(call.operation).or_else(carried)
    }

    /// Where this operation's requests go, if the provider has it.
    pub fn uri(&self, operation: Operation) -> Option<&Uri> {
        self.uris.iter().find(|(known, _)| *known == operation).map(|(_, uri)| uri)
    }
}

/// An upstream's breaker and retry budget, and whether it lets us in.
pub struct Health {
    /// A `std` mutex held for a few comparisons, never across an await.
    state: Mutex<Condition>,
    /// True if `state` has anything to say but "all is well": what most calls look at, without the lock and the clock.
    marked: AtomicBool,
    /// True from an answer that was not authentic until one that is.
    distrusted: AtomicBool,
    budget: TpsBudget,
}

struct Condition {
    breaker: Breaker,
    /// Refusals of our credential in a row.
    refusals: u32,
    /// Until when it is asked only after all others.
    unwelcome_until: Option<Instant>,
}

impl Health {
    fn new(now: Instant, seed: u64) -> Self {
        let budget = TpsBudget::new(RETRY_MEMORY, RETRIES_A_SECOND, RETRY_SHARE);
        let condition = Condition { breaker: Breaker::new(now, seed), refusals: 0, unwelcome_until: None };
        Self {
            state: Mutex::new(condition),
            marked: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
            budget,
        }
    }

    /// Asks the breaker.
    pub fn permit(&self, now: Instant) -> Permit {
        self.condition().breaker.permit(now)
    }

    /// Tells the breaker.
    pub fn learn(&self, now: Instant, permit: Permit, lesson: Lesson) {
        let mut condition = self.condition();
        condition.breaker.learn(now, permit, lesson);
        if lesson == Lesson::Success {
            (condition.refusals, condition.unwelcome_until) = (0, None);
        }
        self.mark(&condition);
    }

    /// As [`Breaker::resort`].
    pub fn resort(&self, now: Instant) -> Option<Duration> {
        self.condition().breaker.resort(now)
    }

    /// Opens the breaker at once.
    pub fn trip(&self, now: Instant, least: Duration) {
        let mut condition = self.condition();
        condition.breaker.trip(now, least);
        self.mark(&condition);
    }

    /// An answer of it was not authentic: somebody may speak in its place.
    pub fn distrust(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// It answered a probe, and the answer was believed.
    pub fn trust(&self) {
        self.distrusted.store(false, Ordering::Release);
    }

    /// True from an answer that was not authentic until a probe was answered by one that is; refusals and silence
    /// change nothing.
    pub fn is_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Acquire)
    }

    /// It refused our credential. Once may be this one request's doing; from the second time in a row on it is asked
    /// after all others for a while, which grows. It is not refused: if nobody else answers, its own word is worth more.
    pub fn refused_credential(&self, now: Instant) {
        let mut condition = self.condition();
        condition.refusals = condition.refusals.saturating_add(1);
        if condition.refusals >= UNWELCOME_FROM {
            let doublings = (condition.refusals - UNWELCOME_FROM).min(5);
            condition.unwelcome_until = Some(now + jitter::longer(UNWELCOME_FOR * (1 << doublings)));
        }
        self.mark(&condition);
    }

    /// The breaker's state.
    pub fn state(&self, now: Instant) -> State {
        self.condition().breaker.state(now)
    }

    /// True if nothing is known against it. One load; false only means that [`Health::standing`] has to be asked.
    pub fn is_unmarked(&self) -> bool {
        !self.marked.load(Ordering::Acquire)
    }

    /// Whether it takes calls now.
    pub fn standing(&self, now: Instant) -> Standing {
        let condition = self.condition();
        if condition.breaker.state(now) == State::Open {
            return Standing::Open;
        }
        let unwelcome = condition.unwelcome_until.is_some_and(|until| now < until);
        if unwelcome { Standing::Unwelcome } else { Standing::Well }
    }

    /// Every call adds a little to the retry budget.
    pub fn deposit(&self) {
        self.budget.deposit();
    }

    /// True if a retry of this same upstream may be afforded; takes it.
    pub fn withdraw(&self) -> bool {
        self.budget.withdraw()
    }

    fn mark(&self, condition: &Condition) {
        let marked = !condition.breaker.is_closed() || condition.unwelcome_until.is_some();
        // Most calls change nothing, and a store would take the line from the other cores.
        if self.marked.load(Ordering::Relaxed) != marked {
            self.marked.store(marked, Ordering::Release);
        }
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a fleet is built from beside the candidates.
struct Around<'a> {
    previous: &'a Fleet,
    dial: &'a Arc<dyn Dial>,
    metrics: &'a Metrics,
    /// Upstreams that some route puts in order by speed.
    timed: BTreeSet<&'a UpstreamId>,
}

/// Everything live, for one configuration.
#[derive(Default)]
pub struct Fleet {
    /// Providers used by some route.
    pub providers: BTreeMap<ProviderId, Arc<LiveProvider>>,
    /// Candidates of all routes.
    pub upstreams: BTreeMap<UpstreamId, Arc<LiveUpstream>>,
}

impl Fleet {
    /// Makes `table` live, taking over from `previous` whatever kept its identity.
    pub fn build(table: &RoutingTable, previous: &Self, dial: &Arc<dyn Dial>, metrics: &Metrics) -> Self {
        let mut fleet = Self::default();
        let timed = table.llm_routes().values().flat_map(|route| route.variants());
        let timed = timed.filter(|route| route.asking.order == Order::Fastest);
        let timed = timed.flat_map(|route| &route.candidates).map(|candidate| &candidate.upstream).collect();
        let around = Around { previous, dial, metrics, timed };
        let routes = table.llm_routes().values().flat_map(|route| route.everybody());
        let shadows = table.llm_routes().values().filter_map(|route| Some(&route.shadow.as_ref()?.candidate));
        let risk = table.risk_route().into_iter().flat_map(|route| &route.candidates);
        for candidate in routes.chain(shadows).chain(risk) {
            fleet.add(candidate, &around);
        }
        fleet
    }

    fn add(&mut self, candidate: &Candidate, around: &Around<'_>) {
        if self.upstreams.contains_key(&candidate.upstream) {
            return;
        }
        let id = &candidate.provider.id;
        let provider = if let Some(provider) = self.providers.get(id) {
            Arc::clone(provider)
        } else {
            let provider = Arc::new(self.revive(&candidate.provider, around));
            self.providers.insert(id.clone(), Arc::clone(&provider));
            provider
        };
        // What is known of another place says nothing about this one.
        let same_place = |before: &&Arc<LiveUpstream>| before.provider.provider.base_url == candidate.provider.base_url;
        let before = around.previous.upstreams.get(&candidate.upstream).filter(same_place);
        let drawn_as = hash(candidate.upstream.as_str().as_bytes());
        let health =
            before.map_or_else(|| Arc::new(Health::new(Instant::now(), drawn_as)), |before| Arc::clone(&before.health));
        let known = || before.and_then(|before| before.latency.clone());
        let upstream = LiveUpstream {
            names: Arc::new(names(candidate)),
            uris: uris(&candidate.provider),
            candidate: candidate.clone(),
            latency: around.timed.contains(&candidate.upstream).then(|| known().unwrap_or_default()),
            drawn_as,
            provider,
            health,
        };
        self.upstreams.insert(candidate.upstream.clone(), Arc::new(upstream));
    }

    fn revive(&self, provider: &Arc<Provider>, around: &Around<'_>) -> LiveProvider {
        let Around { previous, dial, .. } = around;
        let origin = Origin::of(provider);
        let known = || self.providers.values().chain(previous.providers.values());
        let pool = known().find(|live| *live.pool.origin() == origin).map(|live| Arc::clone(&live.pool));
        let group = known().find(|live| live.provider.quota_group == provider.quota_group);
        let before = previous.providers.get(&provider.id);
        let same_place = before.filter(|live| live.provider.base_url == provider.base_url);
        // A token belongs to the key that signed for it: another one begins with a token of its own, and calls that are
        // still signed with the old one keep theirs.
        let same_account = same_place.filter(|live| signer(&live.provider.auth) == signer(&provider.auth));
        let judges = provider.protocol == Protocol::DiHmac;
        LiveProvider {
            pool: pool.unwrap_or_else(|| Arc::new(Pool::new(origin, Arc::clone(dial)))),
            adaptive: provider
                .adaptive_least
                .map(|_| before.and_then(|live| live.adaptive.clone()).unwrap_or_default()),
            bulkhead: before.map(|live| Arc::clone(&live.bulkhead)).unwrap_or_default(),
            pause: group.map_or_else(|| Arc::new(Pause::new(Instant::now())), |live| Arc::clone(&live.pause)),
            skew: same_place.map(|live| Arc::clone(&live.skew)).unwrap_or_default(),
            forged: Seldom::default(),
            estranged: Seldom::default(),
            time_refused: Seldom::default(),
            judged: judges.then(|| around.metrics.risk_provider(&provider.id)),
            token: same_account.map(|live| Arc::clone(&live.token)).unwrap_or_default(),
            headers: headers(provider),
            authority: provider.base_url.authority(),
            provider: Arc::clone(provider),
        }
    }
}

/// The key requests are signed with.
fn signer(auth: &Auth) -> Option<&SigningKey> {
    match auth {
        Auth::DiHmac { keys } => Some(keys.signer()),
        Auth::None | Auth::Bearer { .. } | Auth::Header { .. } => None,
    }
}

fn names(candidate: &Candidate) -> UpstreamNames {
    let model = candidate.model.as_ref().map(|model| model.name.clone()).unwrap_or_default();
    UpstreamNames {
        upstream: candidate.upstream.clone(),
        provider: candidate.provider.id.clone(),
        provider_header: header(candidate.provider.id.as_str()),
        model_header: header(&model),
        model,
    }
}

fn uris(provider: &Provider) -> Vec<(Operation, Uri)> {
    let uri = |operation: &Operation| {
        let path = match provider.protocol {
            Protocol::OpenAi => operation.path().strip_prefix("/v1").unwrap_or_default(),
            Protocol::DiHmac => "/gateway.do",
        };
        let own = provider.paths.get(operation).cloned();
        let path = own.unwrap_or_else(|| format!("{}{path}", provider.base_url.path));
        (*operation, path.parse().unwrap_or_default())
    };
    provider.operations.iter().map(uri).collect()
}

fn headers(provider: &Provider) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, header(&provider.base_url.authority()));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("weighbridge/", env!("CARGO_PKG_VERSION"))));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in &provider.headers {
        if let Ok(name) = HeaderName::try_from(name) {
            headers.insert(name, header(value));
        }
    }
    match &provider.auth {
        Auth::None | Auth::DiHmac { .. } => {}
        Auth::Bearer { secret } => drop(headers.insert(AUTHORIZATION, credential(b"Bearer ", secret.expose()))),
        Auth::Header { name, secret } => {
            if let Ok(name) = HeaderName::try_from(name) {
                headers.insert(name, credential(b"", secret.expose()));
            }
        }
    }
    headers
}

/// A header value that is never printed.
pub(crate) fn credential(prefix: &[u8], secret: &[u8]) -> HeaderValue {
    let mut value = HeaderValue::from_bytes(&[prefix, secret].concat()).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// Names from configuration are validated to be visible ASCII, so this does not lose anything.
fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests;
