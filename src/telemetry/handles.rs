//! The sets of handles that a route, an upstream, a provider and the listener count with.
//!
//! Everything is resolved when the set is made; counting is an index and one addition, except [`UpstreamMetrics::cost`],
//! which takes a short lock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::catalog::{self, Row};
use super::cells::{Counter, Gauge, Histogram, Level};
use super::families::Families;
use super::genai::{self, GenAi, Series};
use super::labels::{
    AttemptOutcome, ConnectionEnd, ConnectionRefusal, HedgeOutcome, OddAnswer, QuotaReason, RequestOutcome, ShadowDrop,
    StreamEnd, Unrecorded, VelocityEvent,
};
use crate::domain::aftermath::Aftermath;
use crate::domain::agreement::Agreed;
use crate::domain::currency::Currency;
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::domain::outcome::FailureClass;
use crate::domain::reuse::Guard;
use crate::domain::usage::Usage;

/// Client connections.
pub struct ConnectionMetrics {
    /// Now open.
    pub open: Gauge,
    refused: Vec<Counter>,
    ended: Vec<Counter>,
}

/// What the record of decisions counts.
#[derive(Clone)]
pub struct AuditMetrics {
    /// How long commits take.
    pub commit: Histogram,
    /// Entries that wait.
    pub backlog: Gauge,
    /// Keys destroyed on schedule.
    pub expired: Counter,
    unrecorded: Vec<Counter>,
    outcomes: Vec<Counter>,
}

/// What one route counts.
pub struct RouteMetrics {
    /// From the first byte of a request to the last byte of its answer.
    pub duration: Histogram,
    /// Time spent in this process.
    pub overhead: Histogram,
    /// Calls whose answer has not ended.
    pub in_flight: Gauge,
    requests: Vec<Counter>,
    streams: Vec<Counter>,
}

/// What one upstream, a provider with a model, counts.
pub struct UpstreamMetrics {
    /// From sending an attempt to the end of its answer.
    pub duration: Histogram,
    /// From sending an attempt to its first content.
    pub first_content: Histogram,
    /// 0 closed, 1 half-open, 2 open.
    pub breaker: Level,
    /// Prompt tokens.
    pub tokens_in: Counter,
    /// Completion tokens.
    pub tokens_out: Counter,
    /// Events of streams that could not be read.
    pub malformed: Counter,
    ok: Counter,
    abandoned: Counter,
    outpaced: Counter,
    failed: Vec<Counter>,
    /// OpenTelemetry's names for the same.
    genai: Option<GenAi>,
    costs: Costs,
}

/// One budget of one caller, in micro-units of its currency. By default the levels are shown nowhere.
#[derive(Clone, Default)]
pub struct BudgetLevels {
    /// What it may be.
    pub limit: Level,
    /// What is spent in the window that runs now.
    pub spent: Level,
    /// What is held back for calls in flight.
    pub reserved: Level,
}

/// What one caller is refused.
pub struct CallerMetrics {
    refused: Vec<Counter>,
}

/// What one provider counts over all its models.
pub struct ProviderMetrics {
    /// Retries that the provider's budget refused.
    pub retry_budget_exhausted: Counter,
}

/// What one risk provider counts.
pub struct RiskProviderMetrics {
    /// How far its clock is ahead of ours, in milliseconds.
    pub clock_skew: Level,
    odd: Vec<Counter>,
}

/// What a route that hedges counts.
pub struct HedgeMetrics {
    outcomes: Vec<Counter>,
}

/// What a candidate on trial counts, apart from what it does for callers.
pub struct ShadowMetrics {
    /// From sending a copy to its first content.
    pub first_content: Histogram,
    ok: Counter,
    failed: Vec<Counter>,
    dropped: Vec<Counter>,
}

/// What one velocity counter tells.
pub struct VelocityMetrics {
    /// Users, devices and the like it keeps.
    pub keys: Level,
    events: Vec<Counter>,
}

/// A counter for each currency an upstream was billed in; in practice one.
struct Costs {
    families: Arc<Families>,
    provider: Box<str>,
    model: Box<str>,
    /// Locked once a call, for a search through one or two entries.
    by_currency: Mutex<Vec<(Currency, Counter)>>,
}

/// What is told about decisions given again.
pub struct ReuseMetrics {
    refused: Vec<Counter>,
    agreed: Counter,
    disagreed: Counter,
    bound: Level,
    off: Level,
}

impl ReuseMetrics {
    pub(super) fn new(f: &Families) -> Self {
        let guards: Vec<&str> = Guard::ALL.iter().map(|guard| guard.label()).collect();
        Self {
            refused: set(f, &catalog::REUSE_REFUSED, &[], &guards),
            agreed: f.counter(&catalog::REUSE_COMPARED, &["agreed"]),
            disagreed: f.counter(&catalog::REUSE_COMPARED, &["disagreed"]),
            bound: f.level(&catalog::REUSE_BOUND, &[]),
            off: f.level(&catalog::REUSE_OFF, &[]),
        }
    }

    /// Counts a decision that was not given again.
    pub fn refused(&self, guard: Guard) {
        self.refused.get(guard as usize).inspect(|counter| counter.inc());
    }

    /// Counts a comparison; the bound in millionths and how many merchants are off, with it.
    pub fn compared(&self, agreed: Agreed, bound: u32, off: usize) {
        match agreed {
            Agreed::Yes => self.agreed.inc(),
            Agreed::No => self.disagreed.inc(),
        }
        self.bound.set(bound.into());
        self.switched_off(off);
    }

    /// So many merchants are off.
    pub fn switched_off(&self, off: usize) {
        self.off.set(i64::try_from(off).unwrap_or(i64::MAX));
    }
}

impl VelocityMetrics {
    pub(super) fn new(f: &Families, counter: &str) -> Self {
        Self {
            keys: f.level(&catalog::VELOCITY_KEYS, &[counter]),
            events: set(f, &catalog::VELOCITY_EVENTS, &[counter], &VelocityEvent::labels()),
        }
    }

    /// Counts what it did.
    pub fn event(&self, event: VelocityEvent) {
        self.events.get(event as usize).inspect(|counter| counter.inc());
    }
}

impl ConnectionMetrics {
    pub(super) fn new(f: &Families) -> Self {
        Self {
            open: f.gauge(&catalog::CONNECTIONS_OPEN, &[]),
            refused: set(f, &catalog::CONNECTIONS_REFUSED, &[], &ConnectionRefusal::labels()),
            ended: set(f, &catalog::CONNECTIONS_ENDED, &[], &ConnectionEnd::labels()),
        }
    }

    /// The counter of one kind of refusal.
    pub fn refused(&self, reason: ConnectionRefusal) -> Option<&Counter> {
        self.refused.get(reason as usize)
    }

    /// The counter of one kind of end.
    pub fn ended(&self, reason: ConnectionEnd) -> Option<&Counter> {
        self.ended.get(reason as usize)
    }
}

impl RouteMetrics {
    pub(super) fn new(f: &Families, route: &str) -> Self {
        Self {
            duration: f.histogram(&catalog::REQUEST_DURATION, &[route]),
            overhead: f.histogram(&catalog::OVERHEAD, &[route]),
            in_flight: f.gauge(&catalog::IN_FLIGHT, &[route]),
            requests: set(f, &catalog::REQUESTS, &[route], &RequestOutcome::labels()),
            streams: set(f, &catalog::STREAM_OUTCOMES, &[route], &StreamEnd::labels()),
        }
    }

    /// Counts a call that ended.
    pub fn request(&self, outcome: RequestOutcome) {
        self.requests.get(outcome as usize).inspect(|counter| counter.inc());
    }

    /// Counts a streamed answer that ended; accepts a [`crate::domain::outcome::End`].
    pub fn stream(&self, end: impl Into<StreamEnd>) {
        self.streams.get(end.into() as usize).inspect(|counter| counter.inc());
    }
}

impl UpstreamMetrics {
    pub(super) fn new(families: &Arc<Families>, provider: &str, model: &str) -> Self {
        let f = &**families;
        let names = &[provider, model];
        let attempt = |outcome: AttemptOutcome| {
            f.counter(&catalog::UPSTREAM_ATTEMPTS, &[provider, model, outcome.label(), outcome.reason()])
        };
        Self {
            duration: f.histogram(&catalog::UPSTREAM_DURATION, names),
            first_content: f.histogram(&catalog::FIRST_CONTENT, names),
            breaker: f.level(&catalog::BREAKER_STATE, names),
            tokens_in: f.counter(&catalog::TOKENS, &[provider, model, "input"]),
            tokens_out: f.counter(&catalog::TOKENS, &[provider, model, "output"]),
            malformed: f.counter(&catalog::MALFORMED_EVENTS, names),
            ok: attempt(AttemptOutcome::Ok),
            abandoned: attempt(AttemptOutcome::Abandoned),
            outpaced: attempt(AttemptOutcome::Outpaced),
            failed: FailureClass::ALL.map(|class| attempt(AttemptOutcome::Failed(class))).into(),
            genai: (!model.is_empty()).then(|| GenAi::new(families, provider, model)),
            costs: Costs {
                families: Arc::clone(families),
                provider: provider.into(),
                model: model.into(),
                by_currency: Mutex::default(),
            },
        }
    }

    /// Counts an attempt that ended.
    pub fn attempt(&self, outcome: impl Into<AttemptOutcome>) {
        match outcome.into() {
            AttemptOutcome::Ok => self.ok.inc(),
            AttemptOutcome::Abandoned => self.abandoned.inc(),
            AttemptOutcome::Outpaced => self.outpaced.inc(),
            AttemptOutcome::Failed(class) => {
                // `FailureClass::ALL` is in the order of declaration; a test holds it to that.
                self.failed.get(class as usize).inspect(|counter| counter.inc());
            }
        }
    }

    /// Observes a whole attempt, under both names.
    pub fn observe_duration(&self, operation: Operation, duration: Duration) {
        self.duration.observe(duration);
        if let Some(genai) = self.genai(operation) {
            genai.duration.observe(duration);
        }
    }

    /// Observes the time to first content, under both names.
    pub fn observe_first_content(&self, operation: Operation, duration: Duration) {
        self.first_content.observe(duration);
        if let Some(genai) = self.genai(operation) {
            genai.first_token.observe(duration);
        }
    }

    /// Counts what the provider reported, under both names; what it did not report is not counted as zero.
    pub fn usage(&self, operation: Operation, usage: Usage) {
        let genai = self.genai(operation);
        if let Some(tokens) = usage.input_tokens {
            self.tokens_in.add(tokens);
            if let Some(genai) = genai {
                genai.input.observe_units(tokens);
            }
        }
        if let Some(tokens) = usage.output_tokens {
            self.tokens_out.add(tokens);
            if let Some(genai) = genai {
                genai.output.observe_units(tokens);
            }
        }
    }

    /// Shows what it is asked most before anybody asks: chat where that is offered, else the first of `offered`.
    pub fn begin(&self, offered: impl IntoIterator<Item = Operation> + Clone) {
        let chat = offered.clone().into_iter().find(|operation| genai::operation_name(*operation) == Some("chat"));
        if let Some(operation) = chat.or_else(|| offered.into_iter().next()) {
            self.genai(operation);
        }
    }

    fn genai(&self, operation: Operation) -> Option<&Series> {
        self.genai.as_ref()?.of(operation)
    }

    /// Counts what a call cost; nothing is taken back, so a negative cost is ignored.
    pub fn cost(&self, cost: Cost) {
        if let Ok(micro) = u64::try_from(cost.micro) {
            self.costs.add(cost.currency, micro);
        }
    }
}

impl AuditMetrics {
    pub(super) fn new(f: &Families) -> Self {
        Self {
            commit: f.histogram(&catalog::AUDIT_COMMIT, &[]),
            backlog: f.gauge(&catalog::AUDIT_BACKLOG, &[]),
            expired: f.counter(&catalog::AUDIT_EXPIRED, &[]),
            unrecorded: set(f, &catalog::AUDIT_UNRECORDED, &[], &Unrecorded::labels()),
            outcomes: set(f, &catalog::OUTCOMES, &[], &Aftermath::ALL.map(Aftermath::as_str)),
        }
    }

    /// Counts a decision that is not on record.
    pub fn unrecorded(&self, result: Unrecorded) {
        self.unrecorded.get(result as usize).inspect(|counter| counter.inc());
    }

    /// Counts what became of a payment.
    pub fn outcome(&self, label: Aftermath) {
        let index = Aftermath::ALL.iter().position(|known| *known == label);
        index.and_then(|index| self.outcomes.get(index)).inspect(|counter| counter.inc());
    }
}

impl BudgetLevels {
    pub(super) fn new(f: &Families, names: [&str; 3]) -> Self {
        Self {
            limit: f.level(&catalog::BUDGET_LIMIT, &names),
            spent: f.level(&catalog::BUDGET_SPENT, &names),
            reserved: f.level(&catalog::BUDGET_RESERVED, &names),
        }
    }
}

impl BudgetLevels {
    pub(super) fn of_merchant(f: &Families, names: [&str; 5]) -> Self {
        Self {
            limit: f.level(&catalog::MERCHANT_BUDGET_LIMIT, &names),
            spent: f.level(&catalog::MERCHANT_BUDGET_SPENT, &names),
            reserved: f.level(&catalog::MERCHANT_BUDGET_RESERVED, &names),
        }
    }
}

impl CallerMetrics {
    pub(super) fn new(f: &Families, caller: &str) -> Self {
        Self { refused: set(f, &catalog::QUOTA_REFUSED, &[caller], &QuotaReason::labels()) }
    }

    /// Counts a call that the caller's own means did not suffice for.
    pub fn refused(&self, reason: QuotaReason) {
        self.refused.get(reason as usize).inspect(|counter| counter.inc());
    }
}

impl ProviderMetrics {
    pub(super) fn new(f: &Families, provider: &str) -> Self {
        Self { retry_budget_exhausted: f.counter(&catalog::RETRY_BUDGET_EXHAUSTED, &[provider]) }
    }
}

impl RiskProviderMetrics {
    pub(super) fn new(f: &Families, provider: &str) -> Self {
        Self {
            clock_skew: f.millis(&catalog::CLOCK_SKEW, &[provider]),
            odd: set(f, &catalog::ODD_ANSWERS, &[provider], &OddAnswer::labels()),
        }
    }

    /// Counts an answer that holds something nobody agreed on.
    pub fn odd(&self, what: OddAnswer) {
        self.odd.get(what as usize).inspect(|counter| counter.inc());
    }
}

impl HedgeMetrics {
    pub(super) fn new(f: &Families, route: &str) -> Self {
        Self { outcomes: set(f, &catalog::HEDGES, &[route], &HedgeOutcome::labels()) }
    }

    /// Counts a hedge.
    pub fn count(&self, outcome: HedgeOutcome) {
        self.outcomes.get(outcome as usize).inspect(|counter| counter.inc());
    }
}

impl ShadowMetrics {
    pub(super) fn new(f: &Families, provider: &str, model: &str) -> Self {
        let all =
            |outcome: &str, reasons: &[&str]| set(f, &catalog::SHADOW_ATTEMPTS, &[provider, model, outcome], reasons);
        Self {
            first_content: f.histogram(&catalog::SHADOW_FIRST_CONTENT, &[provider, model]),
            ok: f.counter(&catalog::SHADOW_ATTEMPTS, &[provider, model, "ok", "none"]),
            failed: all("failed", &FailureClass::ALL.map(FailureClass::label)),
            dropped: all("dropped", &ShadowDrop::labels()),
        }
    }

    /// Counts a copy that was answered, or was not.
    pub fn attempt(&self, failure: Option<FailureClass>) {
        match failure {
            None => self.ok.inc(),
            Some(class) => drop(self.failed.get(class as usize).inspect(|counter| counter.inc())),
        }
    }

    /// Counts a call that was not copied.
    pub fn dropped(&self, why: ShadowDrop) {
        self.dropped.get(why as usize).inspect(|counter| counter.inc());
    }
}

impl Costs {
    fn add(&self, currency: Currency, micro: u64) {
        let mut counters = self.by_currency.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = counters.iter().find(|(known, _)| *known == currency) {
            return counter.add(micro);
        }
        let counter = self.families.counter(&catalog::COST, &[&self.provider, &self.model, currency.code()]);
        counter.add(micro);
        counters.push((currency, counter));
    }
}

/// One counter for each value of the last label.
pub(super) fn set(f: &Families, row: &'static Row, first: &[&str], last: &[&str]) -> Vec<Counter> {
    last.iter().map(|value| f.counter(row, &[first, &[*value]].concat())).collect()
}

/// One counter for each pair of label values, the second varying fastest.
pub(super) fn pairs(f: &Families, row: &'static Row, first: &[&str], second: &[&str]) -> Vec<Counter> {
    first.iter().flat_map(|value| set(f, row, &[*value], second)).collect()
}
