//! The caller's tokens and money: an estimate is held back before anybody is asked, and settled with what it really cost.
//!
//! Here a call's size and price are estimated and its claim is opened and closed; what an attempt cost is paid by
//! [`meter`](super::meter), which sees it, into the same claim; the sums are [`flight::quota`](crate::flight::quota)'s.
//! Decisions are paid from the same budgets in [`tally`](super::tally).

use std::sync::Arc;

use tower::{Layer, Service};

use crate::config::table::{Candidate, LlmRoute, Unpriced};
use crate::domain::jitter;
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::quota::{Claim, Quota, Refusal, Size, Wish};
use crate::flight::reply::Reply;
use crate::flight::trail::Trail;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Touch, Touching};
use crate::routing::lineup::{self, Carriable};
use crate::telemetry::labels::QuotaReason;
use crate::telemetry::metrics::Metrics;
use crate::wire::openai::peek_ceiling;

/// What a prompt token takes of a body, in bytes: the usual rule of thumb, JSON around it included.
const BYTES_PER_TOKEN: u64 = 4;
/// What an answer is taken to have where the caller sets no limit.
const ORDINARY_ANSWER: u64 = 1_024;
/// More than any model writes; keeps absurd limits of callers from being absurd amounts.
const LONGEST_ANSWER: u64 = 10_000_000;
const MOST_ANSWERS: u64 = 128;

/// Plain values for [`QuotaLayer`].
#[derive(Clone)]
pub struct Params {
    /// Who may be asked, and at what price.
    pub route: Arc<LlmRoute>,
    /// Counts refusals.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Quotas`].
#[derive(Clone)]
pub struct QuotaLayer(pub Params);

/// Holds callers to their tokens and money.
#[derive(Clone)]
pub struct Quotas<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for QuotaLayer {
    type Service = Quotas<S>;

    fn layer(&self, inner: S) -> Quotas<S> {
        Quotas { inner, params: Arc::new(self.0.clone()) }
    }
}

impl<S> Service<Call> for Quotas<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Gated<Touching<S::Future, Settling>, CallError>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        match call.context.quota.as_ref().map(|quota| self.params.open(quota, &call)).transpose() {
            Err(error) => Gated::shut(error),
            Ok(open) => Gated::open(Touching::new(self.inner.call(call), Settling(open.flatten()))),
        }
    }
}

impl Params {
    fn open(&self, quota: &Arc<Quota>, call: &Call) -> Result<Option<Open>, CallError> {
        // To count tokens is free, and what it answers are no tokens anybody used.
        if call.operation == Operation::CountTokens {
            return Ok(None);
        }
        let trail = &call.context.trail;
        let claim = self.claim(quota, call)?;
        let mut story = trail.lock();
        story.tokens = claim.room().or(story.tokens);
        story.claim = Some(Arc::clone(&claim));
        drop(story);
        Ok(Some(Open { claim, trail: trail.clone() }))
    }

    fn claim(&self, quota: &Arc<Quota>, call: &Call) -> Result<Arc<Claim>, CallError> {
        let caller = &call.context.caller;
        let size = size(call);
        let (costs, all_priced) = if caller.budgets.is_empty() { (Vec::new(), true) } else { self.costs(call, size) };
        let refuse = |reason, error| {
            self.metrics.caller(&caller.id).refused(reason);
            Err(error)
        };
        if !all_priced && caller.unpriced == Unpriced::Refuse {
            return refuse(QuotaReason::PriceUnknown, CallError::Unpriced { model: self.route.id.to_string() });
        }
        match quota.claim(&Wish { caller, size, costs: &costs }) {
            Ok(claim) => Ok(claim),
            Err(Refusal::Budget { per, ends }) => refuse(QuotaReason::Budget, CallError::OverBudget { per, ends }),
            Err(Refusal::Tokens(retry_after)) => {
                call.context.trail.lock().tokens = caller.tokens_per_minute.map(|limit| quota.room(limit));
                let retry_after = jitter::longer(retry_after);
                refuse(QuotaReason::Tokens, CallError::Throttled { what: "tokens per minute", retry_after })
            }
        }
    }

    /// The dearest candidate that can be asked for this, by currency; and whether the caller's budgets can count all of
    /// them.
    fn costs(&self, call: &Call, size: Size) -> (Vec<Cost>, bool) {
        let mut dearest: Vec<Cost> = Vec::new();
        let mut all_priced = true;
        for candidate in self.route.candidates.iter().filter(|candidate| can(candidate, call)) {
            let cost = price(candidate, size);
            // A price that is known comes to no sum only where the numbers end.
            let summed = cost.is_some() || lineup::is_free(candidate);
            all_priced &= summed && lineup::is_counted(candidate, &call.context.caller);
            let Some(cost) = cost else { continue };
            match dearest.iter_mut().find(|known| known.currency == cost.currency) {
                Some(known) => known.micro = known.micro.max(cost.micro),
                None => dearest.push(cost),
            }
        }
        (dearest, all_priced)
    }
}

fn price(candidate: &Candidate, size: Size) -> Option<Cost> {
    candidate.model.as_ref()?.price?.cost(size.input, size.output)
}

fn can(candidate: &Candidate, call: &Call) -> bool {
    let carriable = if call.carried.is_some() { Carriable::Yes } else { Carriable::No };
    lineup::speaks(&candidate.provider, call.operation, carriable).is_some()
}

/// How large the call is taken to be.
fn size(call: &Call) -> Size {
    // The bytes of a recording stand for no tokens; what it came to is counted when the provider says so.
    let input = if call.upload.is_some() { 0 } else { (call.body.len() as u64).div_ceil(BYTES_PER_TOKEN) };
    let writes = matches!(
        call.operation,
        Operation::ChatCompletions | Operation::Completions | Operation::Responses | Operation::Messages
    );
    if !writes {
        return Size { input, output: 0 };
    }
    let ceiling = peek_ceiling(&call.body);
    let each = ceiling.tokens.unwrap_or(ORDINARY_ANSWER).min(LONGEST_ANSWER);
    Size { input, output: each.saturating_mul(ceiling.answers.min(MOST_ANSWERS)) }
}

/// Closes the claim when the call is over: with a whole answer, at the end of a stream, or when nobody waits any more.
pub struct Settling(Option<Open>);

struct Open {
    claim: Arc<Claim>,
    trail: Trail,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.claim.close();
        if let Some(room) = self.claim.room() {
            self.trail.lock().tokens = Some(room);
        }
    }
}

impl Touch<Result<Reply, CallError>> for Settling {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        let Some(open) = self.0 else { return };
        if let Ok(reply) = answer
            && reply.body.is_stream()
        {
            reply.body.on_end(move |_| drop(open));
        }
    }
}

#[cfg(test)]
mod tests;
