//! What of a provider outlives a reload, and what a snapshot makes of it.
//!
//! State is carried over from the previous snapshot by identity, never kept in a global map: what no snapshot knows any
//! more is dropped with the last snapshot that knew it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use tokio::time::Instant;
use tower::retry::budget::{Budget as _, TpsBudget};

use crate::config::table::{Auth, Candidate, Protocol, Provider, RoutingTable};
use crate::domain::id::{ProviderId, UpstreamId};
use crate::domain::operation::Operation;
use crate::flight::call::Call;
use crate::flight::trail::UpstreamNames;
use crate::upstream::breaker::{Breaker, Lesson, Permit, State};
use crate::upstream::concurrency::Bounds;
use crate::upstream::dial::{Dial, Origin};
use crate::upstream::limiter::{Adaptive, Bulkhead, Pause};
use crate::upstream::pool::Pool;
use crate::upstream::token::TokenSource;

/// Retries of the same upstream: a tenth of its calls, and one a second.
const RETRY_SHARE: f32 = 0.1;
const RETRIES_A_SECOND: u32 = 1;
const RETRY_MEMORY: Duration = Duration::from_secs(10);

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
    /// Its access token; kept while id and credential stay the same.
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

/// An upstream's breaker and retry budget.
pub struct Health {
    /// A `std` mutex held for a few comparisons, never across an await.
    breaker: Mutex<Breaker>,
    budget: TpsBudget,
}

impl Health {
    fn new(now: Instant, seed: u64) -> Self {
        let budget = TpsBudget::new(RETRY_MEMORY, RETRIES_A_SECOND, RETRY_SHARE);
        Self { breaker: Mutex::new(Breaker::new(now, seed)), budget }
    }

    /// Asks the breaker.
    pub fn permit(&self, now: Instant) -> Permit {
        self.breaker().permit(now)
    }

    /// Tells the breaker.
    pub fn learn(&self, now: Instant, permit: Permit, lesson: Lesson) {
        self.breaker().learn(now, permit, lesson);
    }

    /// Opens the breaker at once.
    pub fn trip(&self, now: Instant, least: Duration) {
        self.breaker().trip(now, least);
    }

    /// The breaker's state.
    pub fn state(&self, now: Instant) -> State {
        self.breaker().state(now)
    }

    /// Every call adds a little to the retry budget.
    pub fn deposit(&self) {
        self.budget.deposit();
    }

    /// True if a retry of this same upstream may be afforded; takes it.
    pub fn withdraw(&self) -> bool {
        self.budget.withdraw()
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    pub fn build(table: &RoutingTable, previous: &Self, dial: &Arc<dyn Dial>) -> Self {
        let mut fleet = Self::default();
        let routes = table.llm_routes().values().map(|route| &route.candidates);
        let risk = table.risk_route().map(|route| &route.candidates);
        for candidate in routes.chain(risk).flatten() {
            fleet.add(candidate, previous, dial);
        }
        fleet
    }

    fn add(&mut self, candidate: &Candidate, previous: &Self, dial: &Arc<dyn Dial>) {
        if self.upstreams.contains_key(&candidate.upstream) {
            return;
        }
        let id = &candidate.provider.id;
        let provider = if let Some(provider) = self.providers.get(id) {
            Arc::clone(provider)
        } else {
            let provider = Arc::new(self.revive(&candidate.provider, previous, dial));
            self.providers.insert(id.clone(), Arc::clone(&provider));
            provider
        };
        let now = Instant::now();
        let health = previous.upstreams.get(&candidate.upstream).map_or_else(
            || Arc::new(Health::new(now, seed(candidate.upstream.as_str()))),
            |upstream| Arc::clone(&upstream.health),
        );
        let upstream = LiveUpstream {
            names: Arc::new(names(candidate)),
            uris: uris(&candidate.provider),
            candidate: candidate.clone(),
            provider,
            health,
        };
        self.upstreams.insert(candidate.upstream.clone(), Arc::new(upstream));
    }

    fn revive(&self, provider: &Arc<Provider>, previous: &Self, dial: &Arc<dyn Dial>) -> LiveProvider {
        let origin = Origin {
            tls: provider.base_url.tls,
            host: provider.base_url.host.clone(),
            port: provider.base_url.port,
            allow_private: provider.allow_private,
        };
        let known = || self.providers.values().chain(previous.providers.values());
        let pool = known().find(|live| *live.pool.origin() == origin).map(|live| Arc::clone(&live.pool));
        let group = known().find(|live| live.provider.quota_group == provider.quota_group);
        let before = previous.providers.get(&provider.id);
        let same_account =
            before.filter(|live| live.provider.auth == provider.auth && live.provider.base_url == provider.base_url);
        LiveProvider {
            pool: pool.unwrap_or_else(|| Arc::new(Pool::new(origin, Arc::clone(dial)))),
            adaptive: provider
                .adaptive_least
                .map(|_| before.and_then(|live| live.adaptive.clone()).unwrap_or_default()),
            bulkhead: before.map(|live| Arc::clone(&live.bulkhead)).unwrap_or_default(),
            pause: group.map_or_else(|| Arc::new(Pause::new(Instant::now())), |live| Arc::clone(&live.pause)),
            token: same_account.map(|live| Arc::clone(&live.token)).unwrap_or_default(),
            headers: headers(provider),
            authority: provider.base_url.authority(),
            provider: Arc::clone(provider),
        }
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

fn seed(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
