//! The validated configuration: what the rest of the program may rely on without checking again.
//!
//! Only [`super::compile::compile`] makes a [`RoutingTable`]. Everything is compared with `==`, which is how a diff is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::asking::Asking;
use super::audit::OnUnrecorded;
use super::budgets::RiskBudgets;
use super::cases::Case;
use super::expr::Condition;
use super::jurisdictions::Jurisdictions;
use super::policy::Rules;
use super::prices::RiskPrice;
use super::reload::RollBack;
use super::reuse::ReusePolicy;
use super::tls::{HttpVersion, TlsSettings};
use super::velocity::VelocityRule;
use crate::domain::deadline::Timeouts;
use crate::domain::id::{CallerId, ProviderId, RouteId, TenantId, UpstreamId};
use crate::domain::money::{Cost, TokenPrice};
use crate::domain::operation::Operation;
use crate::domain::outcome::FailureClass;
use crate::domain::overload::Class;
use crate::domain::period::Period;
use crate::domain::policy::Ruling;
use crate::domain::secret::Secret;
use crate::sign::keyring::Keyring;
use crate::wire::json_edit::Shape;

/// SHA-256 over all configuration bytes and secret fingerprints; shown as 12 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConfigVersion(pub [u8; 32]);

impl fmt::Display for ConfigVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ConfigVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One consistent configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoutingTable {
    pub(super) version: ConfigVersion,
    pub(super) limits: Limits,
    pub(super) roll_back: Option<RollBack>,
    pub(super) callers: Vec<Arc<Caller>>,
    pub(super) providers: BTreeMap<ProviderId, Arc<Provider>>,
    pub(super) llm: BTreeMap<RouteId, Arc<LlmRoute>>,
    pub(super) risk: Option<Arc<RiskRoute>>,
    pub(super) facts: BTreeMap<ProviderId, ProviderFacts>,
    pub(super) webhooks: Webhooks,
    pub(super) traces: Option<Arc<Traces>>,
    pub(super) cases: Vec<Arc<Case>>,
    pub(super) disabled: Vec<String>,
}

impl Auth {
    /// Every secret in it.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let (one, several) = match self {
            Self::None => (None, None),
            Self::Bearer { secret } | Self::Header { secret, .. } => (Some(secret), None),
            Self::DiHmac { keys } => (None, Some(keys.keys())),
        };
        one.into_iter().chain(several.into_iter().flatten().map(|key| &key.secret))
    }
}

impl RoutingTable {
    /// The version of the text this came from.
    pub fn version(&self) -> ConfigVersion {
        self.version
    }

    /// Process-wide limits of the data listener.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// When the configuration from before is put back; `None` for never.
    pub fn roll_back(&self) -> Option<RollBack> {
        self.roll_back
    }

    /// Everyone who may call.
    pub fn callers(&self) -> &[Arc<Caller>] {
        &self.callers
    }

    /// Every known provider, used or not.
    pub fn providers(&self) -> &BTreeMap<ProviderId, Arc<Provider>> {
        &self.providers
    }

    /// LLM routes by public name, in name order.
    pub fn llm_routes(&self) -> &BTreeMap<RouteId, Arc<LlmRoute>> {
        &self.llm
    }

    /// The risk route, if the configuration has one.
    pub fn risk_route(&self) -> Option<&Arc<RiskRoute>> {
        self.risk.as_ref()
    }

    /// Where tenants want to be told of late verdicts.
    pub fn webhooks(&self) -> &Webhooks {
        &self.webhooks
    }

    /// Where traces go; `None` for nowhere.
    pub fn traces(&self) -> Option<&Arc<Traces>> {
        self.traces.as_ref()
    }

    /// Providers, and `provider/model`, that are switched off.
    pub fn disabled(&self) -> &[String] {
        &self.disabled
    }

    /// What it must come to, by its own word.
    pub fn cases(&self) -> &[Arc<Case>] {
        &self.cases
    }

    /// Where each provider's address and prices were read, and when.
    pub fn facts(&self) -> &BTreeMap<ProviderId, ProviderFacts> {
        &self.facts
    }
}

/// `[limits]`: bounds that hold for everybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest LLM request body, in bytes.
    pub body_bytes: usize,
    /// Largest risk request body, in bytes.
    pub risk_body_bytes: usize,
    /// Deepest JSON nesting accepted.
    pub json_depth: usize,
    /// Largest request head, in bytes.
    pub head_bytes: usize,
    /// Most header fields.
    pub head_fields: usize,
    /// From the first byte of a request to the end of its head.
    pub head_timeout: Duration,
    /// Longest silence within a request body.
    pub body_idle: Duration,
    /// Longest time a client may accept no bytes of an answer.
    pub write_stall: Duration,
    /// Longest idle time of a kept-alive connection.
    pub keep_alive: Duration,
    /// Longest time a TLS handshake may take.
    pub handshake: Duration,
    /// Most open client connections.
    pub connections: usize,
    /// Most requests in flight in the process.
    pub in_flight: usize,
    /// Most body bytes held by requests in flight.
    pub in_flight_bytes: usize,
    /// Bytes of memory the process may use; `None` for what the system allows.
    pub memory: Option<u64>,
}

/// Who may call, and how much.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The name in logs and metrics.
    pub id: CallerId,
    /// Whose data it is.
    pub tenant: TenantId,
    /// SHA-256 of the caller's key.
    pub key_digest: [u8; 32],
    /// SHA-256 of the client certificates over whose connections alone the key counts; empty for over any connection.
    pub client_certs: Vec<[u8; 32]>,
    /// What its calls to models are worth when there is not enough for all.
    pub class: Class,
    /// Routes it may use: `risk`, public model names, `provider/model`.
    pub allow: Vec<RouteId>,
    /// Requests a minute, `None` for no limit.
    pub requests_per_minute: Option<u32>,
    /// Requests in flight, `None` for no limit.
    pub in_flight: Option<u32>,
    /// Tokens a minute, `None` for no limit.
    pub tokens_per_minute: Option<u32>,
    /// What its calls may cost; all of them hold. At most one for each currency and period.
    pub budgets: Vec<Budget>,
    /// What becomes of calls that no budget can count.
    pub unpriced: Unpriced,
    /// Present if every request must be signed, with one of these keys.
    pub signature: Option<Arc<Keyring>>,
}

/// What calls may cost before the window ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// More than zero.
    pub amount: Cost,
    /// When it begins again.
    pub per: Period,
}

/// What becomes of calls whose price is unknown, or known in no currency of the caller's budgets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Unpriced {
    /// They run, and are counted as unpriced.
    #[default]
    Allow,
    /// They are refused before they cost anything.
    Refuse,
}

impl Caller {
    /// True if tokens or money are counted for it.
    pub fn has_quota(&self) -> bool {
        self.tokens_per_minute.is_some() || !self.budgets.is_empty()
    }

    /// True if the caller may use the route.
    pub fn may_use(&self, route: &str) -> bool {
        self.allow.iter().any(|allowed| allowed.as_str() == route)
    }
}

/// One LLM route: what applications name in `model`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LlmRoute {
    /// The public name.
    pub id: RouteId,
    /// Never empty, without repeats.
    pub candidates: Vec<Candidate>,
    /// Phase limits.
    pub timeouts: Timeouts,
    /// Most attempts for one call.
    pub max_attempts: u32,
    /// What its calls are worth at most, whoever asks.
    pub class: Class,
    /// Absent: answers are never reused.
    pub cache: Option<CachePolicy>,
    /// Whose turn it is, and when it is another's.
    pub asking: Asking,
    /// Absent: nobody is asked but for the caller's sake.
    pub shadow: Option<Shadow>,
    /// Changes whenever anything that shapes an answer changes; part of the cache key.
    pub fingerprint: [u8; 32],
    /// Calls it is another route for, the first that matches first. Empty for most.
    pub rules: Vec<Arc<LlmRule>>,
}

/// What a route is for some of its calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LlmRule {
    /// For people.
    pub name: Arc<str>,
    /// Which calls.
    pub when: Condition,
    /// The route for them: its own id, without rules.
    pub route: Arc<LlmRoute>,
}

impl LlmRoute {
    /// The route as it is for every call it may be asked.
    pub fn variants(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.rules.iter().map(|rule| &*rule.route))
    }

    /// Everybody who may be asked, some perhaps more than once.
    pub fn everybody(&self) -> impl Iterator<Item = &Candidate> {
        self.variants().flat_map(|route| &route.candidates)
    }
}

/// A candidate that gets copies of calls, to see how it does; nobody is shown its answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shadow {
    /// Who gets them.
    pub candidate: Candidate,
    /// How many, in millionths of the route's calls.
    pub share: u32,
    /// Most at a time.
    pub in_flight: u32,
}

/// How long an LLM answer may be reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachePolicy {
    /// Life of an entry, before jitter.
    pub ttl: Duration,
    /// How much longer an entry may stand in when every candidate fails; zero if it may not.
    pub stale_if_error: Duration,
    /// How much longer an entry is given at once while a fresh answer is asked for; zero if it is not.
    pub stale_while_revalidate: Duration,
    /// What becomes of answers that were cut by their token limit.
    pub cut_by_length: CutAnswers,
}

/// What a cache does with answers that were cut by their token limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CutAnswers {
    /// They pass by and are asked for again.
    #[default]
    Pass,
    /// They are stored like complete ones.
    Store,
}

/// The risk route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RiskRoute {
    /// Always `risk`.
    pub id: RouteId,
    /// Never empty, without repeats.
    pub candidates: Vec<Candidate>,
    /// The answer leaves by then, counted from arrival.
    pub deadline: Duration,
    /// A late verdict is awaited until then, counted from arrival.
    pub hard_limit: Duration,
    /// TCP and TLS to the provider.
    pub connect: Duration,
    /// Most attempts for one call.
    pub max_attempts: u32,
    /// What to do with a decision that is not on record in time.
    pub audit: OnUnrecorded,
    /// What decides an attempt that no policy matches.
    pub ruling: Arc<Ruling>,
    /// What merchants' calls may cost; `None` if nobody's are limited.
    pub budgets: Option<Arc<RiskBudgets>>,
    /// Policies and lists.
    pub rules: Rules,
    /// What is counted about attempts.
    pub velocity: Vec<Arc<VelocityRule>>,
    /// When earlier decisions are given again; `None` for never.
    pub reuse: Option<ReusePolicy>,
    /// What is kept of persons, by country.
    pub jurisdictions: Jurisdictions,
}

/// A provider and, on the LLM side, a model of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// `provider/model`, or the provider's id on the risk side.
    pub upstream: UpstreamId,
    /// Where to send.
    pub provider: Arc<Provider>,
    /// What to ask for; `None` on the risk side.
    pub model: Option<Arc<Model>>,
}

/// One provider file, validated, with its secret resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provider {
    /// Its name.
    pub id: ProviderId,
    /// How to speak to it.
    pub protocol: Protocol,
    /// Where it is.
    pub base_url: BaseUrl,
    /// How to prove who we are.
    pub auth: Auth,
    /// What it can do.
    pub operations: Vec<Operation>,
    /// Headers always sent, for example to switch an aggregator's own retries off. Lower-case names.
    pub headers: Vec<(String, String)>,
    /// Most requests in flight to it.
    pub in_flight: u32,
    /// Present if the limit moves between this, its least, and `in_flight`.
    pub adaptive_least: Option<u32>,
    /// Providers that share one quota pause together.
    pub quota_group: String,
    /// Whether a stream reports usage.
    pub stream_usage: StreamUsage,
    /// Statuses that mean something else here than in the protocol's table.
    pub errors: BTreeMap<u16, FailureClass>,
    /// Codes and types of its errors that mean something else; they are looked at before the status.
    pub error_codes: BTreeMap<String, FailureClass>,
    /// What it needs changed in request bodies.
    pub shape: Option<Arc<Shape>>,
    /// Whole paths of operations that are not below the address.
    pub paths: BTreeMap<Operation, String>,
    /// Models it offers; empty on the risk side.
    pub models: Vec<Arc<Model>>,
    /// What a risk call costs.
    pub price: Option<RiskPrice>,
    /// True lets the connected address be loopback or private.
    pub allow_private: bool,
    /// Whose certificates are believed and what is shown, if that is not as usual.
    pub tls: Option<Arc<TlsSettings>>,
    /// What is spoken to it.
    pub http: HttpVersion,
}

/// The wire protocols this program speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// OpenAI-compatible HTTP.
    OpenAi,
    /// The `di-hmac` dialect of the Decision Intelligence API.
    DiHmac,
}

/// A provider's address, taken apart once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BaseUrl {
    /// True for `https`.
    pub tls: bool,
    /// Lower-case host name or address, without brackets.
    pub host: String,
    /// The port, the scheme's default filled in.
    pub port: u16,
    /// Path prefix without a trailing slash; empty or starting with `/`.
    pub path: String,
}

impl BaseUrl {
    /// The `Host` header: the default port is left out, an IPv6 address is bracketed.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default_port = if self.tls { 443 } else { 80 };
        if self.port == default_port { host } else { format!("{host}:{}", self.port) }
    }
}

/// One tenant's webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Webhook {
    /// Whose.
    pub tenant: TenantId,
    /// Where to; its path is the whole path.
    pub url: BaseUrl,
    /// True lets the connected address be loopback or private.
    pub allow_private: bool,
    /// Which key signs.
    pub keys: Keyring,
    /// False if some secret is a placeholder.
    pub(super) secret_is_real: bool,
}

/// All webhooks by tenant.
pub type Webhooks = BTreeMap<TenantId, Arc<Webhook>>;

/// `[traces]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Traces {
    /// Where spans are posted; its path is the whole path.
    pub url: BaseUrl,
    /// How many of the traces that begin here are taken, in millionths.
    pub share: u32,
    /// What the collector wants to see.
    pub auth: Auth,
    /// Headers that are always sent. Lower-case names.
    pub headers: Vec<(String, String)>,
    /// Most requests whose spans wait to be sent.
    pub queue: usize,
    /// Longest time one try may take.
    pub timeout: Duration,
    /// Providers whose requests carry `traceparent` and `tracestate`.
    pub forward_to: BTreeSet<ProviderId>,
    /// False if the secret is a placeholder.
    pub(super) secret_is_real: bool,
}

/// A provider's credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Auth {
    /// None is needed.
    None,
    /// `Authorization: Bearer …`
    Bearer {
        /// The key.
        secret: Secret,
    },
    /// The key alone in a header of the provider's choice.
    Header {
        /// Lower-case header name.
        name: String,
        /// The key.
        secret: Secret,
    },
    /// Signed requests and an OAuth token.
    DiHmac {
        /// Which key signs, and which ones answers may be signed with.
        keys: Keyring,
    },
}

/// Whether a provider reports token usage on streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamUsage {
    /// When `stream_options.include_usage` asks for it.
    OnRequest,
    /// Always, and it refuses to be asked.
    Always,
    /// Never, and it refuses to be asked.
    Never,
}

/// One model of a provider.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// What `routes.toml` says.
    pub id: String,
    /// What the provider wants to hear.
    pub name: String,
    /// Its price; `None` is unknown, never free.
    pub price: Option<TokenPrice>,
    /// Tokens that prompt and answer may have together; `None` is unknown.
    pub context: Option<u32>,
    /// Tokens an answer may have; `None` is unknown.
    pub max_output: Option<u32>,
}

/// A page, and the day somebody looked at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fact {
    /// An https address.
    pub url: String,
    /// `2026-11-22`
    pub checked: String,
}

/// Where a provider file's facts come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProviderFacts {
    /// The provider itself: its address and protocol.
    pub source: Fact,
    /// Token prices, by the model's id; models of unknown price are absent.
    pub model_prices: BTreeMap<String, Fact>,
    /// The price of a risk call.
    pub price: Option<Fact>,
}
