//! Tokens and cost, from what the provider reports. A price we do not know is `unknown`, never zero.
//!
//! Where the caller's tokens or money are counted, each attempt is paid for here, also one that was left behind or broke
//! off. What nobody counted is estimated then: the prompt as it was estimated before, the answer by what came of it. An
//! attempt that the provider refused or failed costs nothing.
//!
//! A decision has a price of its own, and providers bill what they decided, heard or not. So an attempt at one costs its
//! whole price unless nothing of it was sent or the provider's own 4xx says that nothing was decided.

use std::sync::Arc;

use tower::{Layer, Service};

use crate::config::table::Candidate;
use crate::domain::decision::Decision;
use crate::domain::money::TokenPrice;
use crate::domain::operation::Operation;
use crate::domain::outcome::{End, FailureClass, Sent};
use crate::domain::usage::Usage;
use crate::flight::call::RiskFacts;
use crate::flight::error::AttemptError;
use crate::flight::quota::{Claim, Payment, Size};
use crate::flight::reply::{Ended, Reply};
use crate::flight::trail::{CostNote, Trail};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::telemetry::handles::UpstreamMetrics;
use crate::telemetry::labels::ExtraCost;
use crate::telemetry::metrics::Metrics;
use crate::upstream::attempt::Attempt;

/// What a token takes of a whole answer, in bytes.
const BYTES_PER_TOKEN: u64 = 4;
/// What an answer nobody saw is taken to have had, or less where the caller set a limit.
const ORDINARY_ANSWER: u64 = 1_024;

/// Plain values for [`MeterLayer`].
#[derive(Clone)]
pub struct Params {
    /// Who is asked, and at what price.
    pub candidate: Candidate,
    /// The upstream's series.
    pub upstream: Arc<UpstreamMetrics>,
    /// Counts what has no price.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Meter`].
#[derive(Clone)]
pub struct MeterLayer(pub Params);

/// Meters one upstream.
#[derive(Clone)]
pub struct Meter<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter { inner, params: Arc::new(self.0.clone()) }
    }
}

impl Params {
    fn settle(&self, (trail, operation): (&Trail, Operation), usage: Usage, seen: Seen) {
        self.upstream.usage(operation, usage);
        let cost = self.price(usage);
        let claim = Self::note(trail, usage, cost);
        let counted = claim.is_none_or(|claim| self.pay(&claim, usage, cost, seen));
        self.count(cost, counted);
    }

    fn settle_decision(&self, trail: &Trail, decision: &Decision) {
        let verdict = decision.verdict.as_ref();
        let cost = verdict.and_then(|verdict| verdict.cost).map_or(CostNote::Unknown, CostNote::Known);
        let claim = Self::note(trail, Usage::default(), cost);
        let counted = claim.is_none_or(|claim| claim.pay(known(cost), 0));
        pay_for_merchant(trail, known(cost));
        self.count(cost, counted);
    }

    /// Pays for a decision that did not come and may have been made.
    fn abandoned_decision(&self, trail: &Trail, facts: &RiskFacts) {
        let (claim, assessment) = (trail.lock().claim.clone(), &facts.assessment);
        let price = self.candidate.provider.price.as_ref();
        let cost = price.and_then(|price| price.of(assessment, &assessment.features));
        let payment = cost.map_or(Payment::Unpriced, Payment::Estimated);
        let counted = claim.is_none_or(|claim| claim.pay(payment, 0));
        pay_for_merchant(trail, payment);
        match cost {
            Some(cost) => self.metrics.extra_cost(&self.candidate.provider.id, "", ExtraCost::NoVerdict, cost),
            None => self.metrics.unpriced.inc(),
        }
        if !counted && cost.is_some() {
            self.metrics.unpriced.inc();
        }
    }

    fn note(trail: &Trail, usage: Usage, cost: CostNote) -> Option<Arc<Claim>> {
        let mut story = trail.lock();
        story.usage = usage;
        story.cost = cost;
        story.claim.clone()
    }

    fn count(&self, cost: CostNote, counted: bool) {
        if let CostNote::Known(cost) = cost {
            self.upstream.cost(cost);
        }
        if !counted || !matches!(cost, CostNote::Known(_)) {
            self.metrics.unpriced.inc();
        }
    }

    fn price(&self, usage: Usage) -> CostNote {
        let price = self.candidate.model.as_ref().and_then(|model| model.price);
        // What costs nothing costs nothing however much of it was used.
        if price == Some(TokenPrice::FREE) {
            return CostNote::Known(TokenPrice::FREE.input_per_million);
        }
        let cached = usage.cached_input_tokens.unwrap_or(0);
        let cost = price.zip(usage.input_tokens);
        let cost = cost.and_then(|(price, input)| price.cost_with_cache(input, cached, usage.output_tokens?));
        cost.map_or(CostNote::Unknown, CostNote::Known)
    }

    /// False if no budget of the caller could count it.
    fn pay(&self, claim: &Claim, usage: Usage, cost: CostNote, seen: Seen) -> bool {
        let size = claim.size();
        let input = usage.input_tokens.unwrap_or(size.input);
        let output = seen.output(usage, size);
        // Of a recording nothing is known until it was counted.
        let sized = usage.input_tokens.is_some() || size.input > 0;
        let estimate = || self.candidate.model.as_ref()?.price?.cost(input, output).filter(|_| sized);
        let payment = match known(cost) {
            counted @ Payment::Counted(_) if usage.output_tokens == Some(output) => counted,
            _ => estimate().map_or(Payment::Unpriced, Payment::Estimated),
        };
        claim.pay(payment, input.saturating_add(output))
    }

    /// Pays for an attempt that was left while the provider may have been working on it.
    fn abandoned(&self, trail: &Trail) {
        let claim = trail.lock().claim.clone();
        if let Some(claim) = claim
            && !self.pay(&claim, Usage::default(), CostNote::Unknown, Seen::Nothing)
        {
            self.metrics.unpriced.inc();
        }
    }
}

fn pay_for_merchant(trail: &Trail, payment: Payment) {
    let claim = trail.lock().merchant.clone();
    if let Some(claim) = claim {
        claim.pay(payment);
    }
}

fn known(cost: CostNote) -> Payment {
    match cost {
        CostNote::Known(cost) => Payment::Counted(cost),
        CostNote::Unknown | CostNote::Nothing => Payment::Unpriced,
    }
}

/// What can be told of an answer's length where the provider did not count it to its end.
#[derive(Clone, Copy)]
enum Seen {
    /// All of it: as many tokens as its text or its events stand for.
    All(u64),
    /// It broke off: the provider's running count may be behind.
    Part(u64),
    /// Nothing: it never came.
    Nothing,
}

impl Seen {
    fn output(self, usage: Usage, size: Size) -> u64 {
        match (self, usage.output_tokens) {
            (Self::All(_) | Self::Nothing, Some(counted)) => counted,
            // What writes nothing has no tokens to be seen in its bytes.
            _ if size.output == 0 => usage.output_tokens.unwrap_or(0),
            (Self::Part(seen), counted) => counted.unwrap_or(0).max(seen),
            (Self::All(seen), None) => seen,
            (Self::Nothing, None) => size.output.min(ORDINARY_ANSWER),
        }
    }

    /// Providers put a token or little more into an event.
    fn of_stream(ended: &Ended) -> Self {
        if ended.end == End::Complete { Self::All(ended.frames) } else { Self::Part(ended.frames) }
    }
}

impl<S> Service<Attempt> for Meter<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Touching<S::Future, Bill>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let operation = attempt.call.operation;
        let (trail, assessed) = (attempt.call.context.trail.clone(), attempt.call.risk().cloned());
        let bill = Bill { operation, trail, assessed, params: Arc::clone(&self.params), open: true };
        Touching::new(self.inner.call(attempt), bill)
    }
}

/// What one attempt will have cost. Dropped open, nobody waits for the attempt any more.
pub struct Bill {
    trail: Trail,
    params: Arc<Params>,
    /// What is to be decided, on the risk side.
    assessed: Option<Arc<RiskFacts>>,
    open: bool,
    operation: Operation,
}

impl Bill {
    fn settle(&mut self, usage: Usage, seen: Seen) {
        self.open = false;
        // Embeddings are data: there are no completion tokens to be reported.
        let silent = self.operation == Operation::Embeddings;
        let none_written = usage.input_tokens.filter(|_| silent).map(|_| 0);
        let usage = Usage { output_tokens: usage.output_tokens.or(none_written), ..usage };
        self.params.settle((&self.trail, self.operation), usage, seen);
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        match &self.assessed {
            _ if !self.open => {}
            None => self.params.abandoned(&self.trail),
            Some(facts) => self.params.abandoned_decision(&self.trail, facts),
        }
    }
}

impl Touch<Result<Reply, AttemptError>> for Bill {
    fn touch(mut self, answer: &mut Result<Reply, AttemptError>) {
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) => {
                self.open = if self.assessed.is_none() { may_be_billed(error) } else { may_be_decided(error) };
                return;
            }
        };
        if let Some(decision) = &reply.decision {
            self.open = false;
            self.params.settle_decision(&self.trail, decision);
        } else if let Some(whole) = reply.body.as_whole() {
            let seen = Seen::All(whole.len() as u64 / BYTES_PER_TOKEN);
            self.settle(reply.usage.get(), seen);
        } else {
            let usage = reply.usage.clone();
            reply.body.on_end(move |ended| {
                self.params.upstream.malformed.add(usage.malformed());
                self.settle(usage.get(), Seen::of_stream(ended));
            });
        }
    }
}

/// True where it was us who left: whoever fails or refuses does not bill, whoever was still working may.
fn may_be_billed(error: &AttemptError) -> bool {
    matches!(error.class, FailureClass::HeadersTimeout | FailureClass::DeadlinePassed) && error.sent != Sent::No
}

/// True unless it is known that the provider decided nothing.
fn may_be_decided(error: &AttemptError) -> bool {
    error.sent != Sent::No && !error.status.is_some_and(|status| (400..500).contains(&status))
}

#[cfg(test)]
mod tests;
