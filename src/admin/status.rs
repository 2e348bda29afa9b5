//! `/status.json`: what is in force, what state it is in, and what the last reload said.

use std::sync::atomic::Ordering;

use serde::Serialize;
use tokio::time::Instant;

use crate::admin::Admin;
use crate::config::budgets::{MerchantBudget, Whose};
use crate::config::error::ConfigError;
use crate::config::table::{Budget, Candidate, Limits};
use crate::domain::clock;
use crate::domain::id::{ProviderId, UpstreamId};
use crate::domain::money::Cost;
use crate::domain::overload::{Class, Stage};
use crate::flight::arrival::LiveCaller;
use crate::flight::gate::Gate;
use crate::flight::quota::Spending;
use crate::gateway::certificates::{self, Certificates};
use crate::gateway::notify::{DeadLetter, Notices};
use crate::gateway::snapshot::{ReadyRoute, Shared, Snapshot};
use crate::layer::audit::Clerk;
use crate::telemetry::process::Used;
use crate::upstream::skew::Measured;

/// The whole page.
#[derive(Serialize)]
pub struct Status {
    version: &'static str,
    /// `on-disk`, or `last-good` while what is on disk is refused.
    config: &'static str,
    config_hash: String,
    config_age_seconds: u64,
    draining: bool,
    in_flight: u32,
    overload: Overload,
    routes: Vec<RouteStatus>,
    providers: Vec<ProviderStatus>,
    callers: Vec<CallerStatus>,
    /// As configured; absent without any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    merchant_budgets: Vec<MerchantStatus>,
    /// Absent where nobody is told of late verdicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    webhooks: Option<WebhookStatus>,
    /// Absent on listeners in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsStatus>,
    last_reload: LastReloadStatus,
}

/// The listeners' certificate.
#[derive(Serialize)]
struct TlsStatus {
    /// Whom it is for: host names and addresses, the first twenty.
    names: Vec<String>,
    /// SHA-256 of the certificate in use.
    certificate_sha256: String,
    /// RFC 3339.
    not_before: String,
    /// RFC 3339.
    not_after: String,
    /// Negative once it has expired.
    expires_in_seconds: i64,
    /// Whether clients must show a certificate: `none`, `optional`, `required`.
    client_auth: &'static str,
    /// When its files were last read again, RFC 3339; absent before the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    reloaded_at: Option<String>,
    /// Why what was read then is not in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct RouteStatus {
    id: String,
    /// How candidates are put in order; absent on the risk route, which goes by its list.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<&'static str>,
    in_flight: i64,
    candidates: Vec<CandidateStatus>,
}

#[derive(Serialize)]
struct CandidateStatus {
    upstream: String,
    breaker: &'static str,
    /// Whether it takes calls: `well`, `unwelcome` (it refuses our credential), `open`.
    standing: &'static str,
    paused_for_ms: u64,
}

#[derive(Serialize)]
struct ProviderStatus {
    id: String,
    in_flight: u32,
    /// Now; an adaptive one moves.
    limit: u32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    adaptive: bool,
    /// How far its clock is ahead of ours, by its authentic answers; absent without a recent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<ClockStatus>,
}

/// In milliseconds.
#[derive(Serialize)]
struct ClockStatus {
    skew_ms: i64,
    /// By how much that may be wrong, either way.
    doubt_ms: i64,
}

#[derive(Serialize)]
struct CallerStatus {
    id: String,
    in_flight: u32,
    /// Absent without a token limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<TokenStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    budgets: Vec<BudgetStatus>,
    /// Attempts that no budget could count, since the start; absent without a budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    unpriced: Option<u64>,
}

#[derive(Serialize)]
struct TokenStatus {
    limit: u32,
    remaining: u32,
    reset_ms: u64,
}

/// What there is of what can run out, and what is given up for want of it.
#[derive(Serialize)]
struct Overload {
    stage: &'static str,
    /// What the stage is for; absent in the normal one.
    #[serde(skip_serializing_if = "Option::is_none")]
    scarce: Option<&'static str>,
    in_flight: Amount,
    in_flight_bytes: Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptors: Option<Amount>,
    /// The file system of the data folder; absent without a record.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<Amount>,
    /// Who is let in, the least first.
    classes: Vec<ClassStatus>,
}

/// How far a class of calls may fill the process.
#[derive(Serialize)]
struct ClassStatus {
    class: &'static str,
    /// Calls of everybody that may be in flight when one of this class is let in.
    in_flight: u32,
    /// False while everybody of it is refused: for want of room, or by the stage.
    admitted: bool,
}

#[derive(Serialize)]
struct Amount {
    used: u64,
    limit: u64,
}

impl From<Used> for Amount {
    fn from(Used { used, limit }: Used) -> Self {
        Self { used, limit }
    }
}

/// Amounts are decimal strings in major units.
#[derive(Serialize)]
struct BudgetStatus {
    per: &'static str,
    currency: &'static str,
    limit: String,
    spent: String,
    /// The part of `spent` that no provider counted.
    estimated: String,
    /// For calls in flight.
    reserved: String,
    /// RFC 3339.
    resets_at: String,
}

/// A budget of `[risk]`.
#[derive(Serialize)]
struct MerchantStatus {
    /// `merchant` or `category`.
    whose: &'static str,
    /// As the configuration has it; `*` for each merchant.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    when_spent: &'static str,
    /// The sums of all merchants where each has its own `limit`.
    #[serde(flatten)]
    budget: BudgetStatus,
    /// How many merchants have spent, where each has its own; who they are is nobody's business here.
    #[serde(skip_serializing_if = "Option::is_none")]
    merchants: Option<usize>,
    /// Calls of merchants that found no room for a purse of their own and share one.
    #[serde(skip_serializing_if = "Option::is_none")]
    crowded: Option<u64>,
}

/// Notices of late verdicts since the start.
#[derive(Serialize)]
struct WebhookStatus {
    pending: usize,
    /// In the outbox and not under way.
    waiting: usize,
    /// When the oldest that is in the outbox and not settled was posted, RFC 3339; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_at: Option<String>,
    delivered: u64,
    /// The newest that were given up.
    dead: Vec<DeadLetterStatus>,
}

#[derive(Serialize)]
struct DeadLetterStatus {
    event: String,
    tenant: String,
    decision: String,
    /// RFC 3339.
    at: String,
    tries: usize,
    failure: String,
    /// In the outbox, where it can be sent again; the others are in memory alone.
    kept: bool,
}

#[derive(Serialize)]
struct LastReloadStatus {
    /// RFC 3339, absent before the first reload.
    at: Option<String>,
    /// `taken`, `refused`, or `rolled_back`; absent before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    errors: Vec<ConfigError>,
    /// The same for people, with carets.
    rendered: Vec<String>,
}

/// Describes the present.
pub fn status(admin: &Admin) -> Status {
    let snapshot = admin.live.load_full();
    let told = admin.last.get();
    let table = snapshot.table();
    let llm = table.llm_routes().values().filter_map(|of| {
        let order = Some(of.asking.order.label());
        Some(RouteStatus { order, ..route(&snapshot, snapshot.llm(&of.id)?, &of.candidates) })
    });
    let risk = table.risk_route().and_then(|of| Some(route(&snapshot, snapshot.risk()?, &of.candidates)));
    let routes = llm.chain(risk);
    Status {
        version: env!("CARGO_PKG_VERSION"),
        config: if told.refused() { "last-good" } else { "on-disk" },
        config_hash: table.version().to_string(),
        config_age_seconds: clock::unix_seconds().saturating_sub(snapshot.loaded_at()),
        draining: admin.draining.load(Ordering::Acquire),
        in_flight: admin.shared.gate.in_flight(),
        overload: overload(&admin.shared, table.limits()),
        routes: routes.collect(),
        providers: providers(&snapshot),
        callers: callers(&snapshot),
        merchant_budgets: merchant_budgets(&snapshot),
        webhooks: (!table.webhooks().is_empty()).then(|| webhooks(&admin.shared.notices)),
        tls: admin.certificates.as_deref().map(tls),
        last_reload: LastReloadStatus {
            at: (told.at_ms > 0).then(|| clock::rfc3339(told.at_ms)),
            result: (told.at_ms > 0).then(|| told.fate.label()),
            rendered: told.errors.iter().map(|error| error.rendered(crate::config::error::Style::Plain)).collect(),
            errors: told.errors,
        },
    }
}

fn overload(shared: &Shared, limits: &Limits) -> Overload {
    let (gate, reading) = (&shared.gate, shared.metrics.pressure.reading());
    let stage = gate.stage();
    Overload {
        stage: stage.label(),
        scarce: (stage > Stage::Normal).then(|| gate.scarce().label()),
        in_flight: Amount { used: gate.in_flight().into(), limit: limits.in_flight as u64 },
        in_flight_bytes: Amount { used: gate.held_bytes(), limit: gate.most_bytes(limits) },
        memory_bytes: reading.memory.map(Amount::from),
        descriptors: reading.descriptors.map(Amount::from),
        disk_bytes: shared.clerk.as_ref().and_then(disk),
        classes: Class::ALL.iter().map(|&class| admission(gate, class, limits)).collect(),
    }
}

fn disk(clerk: &Clerk) -> Option<Amount> {
    clerk.records().reader()?.disk().map(|disk| Amount { used: disk.used, limit: disk.limit })
}

fn admission(gate: &Gate, class: Class, limits: &Limits) -> ClassStatus {
    let in_flight = class.share(u32::try_from(limits.in_flight).unwrap_or(u32::MAX));
    let admitted = gate.remains(class, limits).is_ok() && gate.in_flight() < in_flight;
    ClassStatus { class: class.label(), in_flight, admitted }
}

fn tls(certificates: &Certificates) -> TlsStatus {
    let (now, told) = (certificates.now(), certificates.told());
    let seconds = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    TlsStatus {
        names: now.names.clone(),
        certificate_sha256: certificates::hex(&now.sha256),
        not_before: certificates::day(now.validity.not_before),
        not_after: certificates::day(now.validity.not_after),
        expires_in_seconds: now.validity.not_after.saturating_sub(seconds),
        client_auth: certificates.files().clients.as_ref().map_or("none", |clients| clients.auth.label()),
        reloaded_at: (told.at_ms > 0).then(|| clock::rfc3339(told.at_ms)),
        error: told.error.map(|error| error.to_string()),
    }
}

fn webhooks(notices: &Notices) -> WebhookStatus {
    let dead = notices.dead().into_iter().map(|letter| {
        let DeadLetter { event, tenant, decision, at_ms, tries, failure, kept } = letter;
        let (at, failure) = (clock::rfc3339(at_ms), failure.into_owned());
        DeadLetterStatus { event, tenant, decision, at, tries, failure, kept }
    });
    let (pending, waiting, delivered) = (notices.pending(), notices.waiting(), notices.delivered());
    let oldest_at = notices.oldest_ms().map(clock::rfc3339);
    WebhookStatus { pending, waiting, oldest_at, delivered, dead: dead.collect() }
}

fn route(snapshot: &Snapshot, ready: &ReadyRoute, candidates: &[Candidate]) -> RouteStatus {
    let now = Instant::now();
    let candidate = |candidate: &Candidate| {
        let live = snapshot.upstreams().get::<UpstreamId>(&candidate.upstream);
        CandidateStatus {
            upstream: candidate.upstream.to_string(),
            breaker: live.map_or("unknown", |live| live.health.state(now).label()),
            standing: live.map_or("unknown", |live| live.health.standing(now).label()),
            paused_for_ms: live
                .and_then(|live| live.provider.pause.left(now))
                .map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        }
    };
    RouteStatus {
        id: ready.names.id.to_string(),
        order: None,
        in_flight: ready.names.metrics.in_flight.value(),
        candidates: candidates.iter().map(candidate).collect(),
    }
}

fn providers(snapshot: &Snapshot) -> Vec<ProviderStatus> {
    let describe = |(id, live): (&ProviderId, &std::sync::Arc<crate::upstream::live::LiveProvider>)| ProviderStatus {
        id: id.to_string(),
        in_flight: live.bulkhead.taken(),
        limit: live.limit(),
        adaptive: live.adaptive.is_some(),
        clock: live.skew.measured().map(|Measured { skew_ms, doubt_ms }| ClockStatus { skew_ms, doubt_ms }),
    };
    snapshot.providers().iter().map(describe).collect()
}

fn callers(snapshot: &Snapshot) -> Vec<CallerStatus> {
    let mut callers: Vec<_> = snapshot.live_callers().map(|live| caller(live)).collect();
    callers.sort_by(|a, b| a.id.cmp(&b.id));
    callers
}

fn caller(live: &LiveCaller) -> CallerStatus {
    let limit = live.quota.as_ref().zip(live.caller.tokens_per_minute);
    let tokens = limit.map(|(quota, per_minute)| {
        let room = quota.room(per_minute);
        let reset_ms = u64::try_from(room.reset.as_millis()).unwrap_or(u64::MAX);
        TokenStatus { limit: room.limit, remaining: room.remaining, reset_ms }
    });
    let money = live.quota.as_ref().filter(|_| !live.caller.budgets.is_empty());
    CallerStatus {
        id: live.caller.id.to_string(),
        in_flight: live.allowance.in_flight(),
        tokens,
        budgets: money.map(|quota| quota.spending(&live.caller).iter().map(budget).collect()).unwrap_or_default(),
        unpriced: money.map(|quota| quota.unpriced()),
    }
}

fn merchant_budgets(snapshot: &Snapshot) -> Vec<MerchantStatus> {
    let budgets = snapshot.table().risk_route().and_then(|route| route.budgets.as_deref());
    let Some((merchants, budgets)) = snapshot.merchants().zip(budgets) else { return Vec::new() };
    let describe = |one: &MerchantBudget| {
        let (spending, each) = (merchants.spending(one), one.whose == Whose::Each);
        let ((whose, name), resets_at) = (one.whose.label(), spending.resets_at);
        let limit = Budget { amount: one.amount, per: one.per };
        MerchantStatus {
            whose,
            name: name.to_owned(),
            tenant: one.tenant.as_ref().map(ToString::to_string),
            when_spent: one.when_spent.label(),
            budget: budget(&Spending { budget: limit, sums: spending.sums, resets_at }),
            merchants: each.then_some(spending.merchants),
            crowded: each.then(|| merchants.crowded()),
        }
    };
    budgets.all().iter().map(describe).collect()
}

fn budget(spending: &Spending) -> BudgetStatus {
    let limit = spending.budget.amount;
    let amount = |micro| Cost { micro, ..limit }.amount();
    BudgetStatus {
        per: spending.budget.per.label(),
        currency: limit.currency.code(),
        limit: limit.amount(),
        spent: amount(spending.sums.spent),
        estimated: amount(spending.sums.estimated),
        reserved: amount(spending.sums.reserved),
        resets_at: clock::rfc3339(spending.resets_at),
    }
}
