//! Nobody decided in time: an earlier decision stands in, if every guard allows it, before the route's failure mode does.
//!
//! It sits outside the deadline and inside Fallback, and answers only for lateness and absence: an answer that was not
//! authentic or not understandable is no reason to believe an older one. What it gives becomes the attempt's decision in the
//! ledger, so a repetition gets the same; the verdict that may still come is learnt from and counted as late, and whoever
//! asked at the same time gets one and the same decision.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::Either;
use tower::{Layer, Service};

use crate::domain::decision::{Decision, FallbackReason, ReusedBecause};
use crate::domain::reuse::Guard;
use crate::flight::call::{Call, CallContext, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Act, Answering};
use crate::layer::decision_cache::{self, Intent, Nothing};
use crate::layer::fallback::reason;
use crate::layer::idempotency::{Flight, Ledger, Settled};
use crate::telemetry::labels::{Cache, CacheEvent};

/// Plain values for [`StandInLayer`].
#[derive(Clone)]
pub struct Params {
    /// What is remembered.
    pub decisions: decision_cache::Params,
    /// Where the attempt's decision is kept.
    pub ledger: Ledger,
}

/// Makes [`StandIn`].
#[derive(Clone)]
pub struct StandInLayer(pub Params);

/// Lets memory answer for a provider.
#[derive(Clone)]
pub struct StandIn<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for StandInLayer {
    type Service = StandIn<S>;

    fn layer(&self, inner: S) -> StandIn<S> {
        StandIn { inner, params: self.0.clone() }
    }
}

impl<S> Service<Call> for StandIn<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Either<S::Future, Answering<S::Future, Waiting>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let Some(facts) = call.risk().filter(|facts| facts.route.reuse.is_some()).cloned() else {
            return Either::Left(self.inner.call(call));
        };
        let (context, body) = (Arc::clone(&call.context), call.body.clone());
        let waiting = Waiting { params: self.params.clone(), facts, context, body };
        Either::Right(Answering::new(self.inner.call(call), waiting))
    }
}

/// Whoever stands in, and for whom.
pub struct Waiting {
    params: Params,
    facts: Arc<RiskFacts>,
    context: Arc<CallContext>,
    body: Bytes,
}

impl Act<Result<Reply, CallError>> for Waiting {
    type Output = Result<Reply, CallError>;

    fn act(self, answer: Result<Reply, CallError>) -> Self::Output {
        match answer {
            Ok(reply) => Ok(reply),
            Err(error) => self.stand_in(&error).ok_or(error),
        }
    }
}

impl Waiting {
    fn stand_in(&self, error: &CallError) -> Option<Reply> {
        reason(error).filter(|reason| matches!(reason, FallbackReason::Deadline | FallbackReason::Unavailable))?;
        // The call goes on where time was up for its caller alone; anywhere else it is over.
        let flight = if matches!(error, CallError::DeadlinePassed) { Flight::GoesOn } else { Flight::Over };
        let whose = (self.context.caller.tenant.as_str(), &self.body);
        let settled = self.params.ledger.settle(&self.facts, whose, flight, || self.remembered(flight))?;
        Some(match settled {
            Settled::Now(decision) => decision_cache::reply(decision),
            Settled::Before(reply) => reply,
        })
    }

    fn remembered(&self, flight: Flight) -> Option<Arc<Decision>> {
        let policy = self.facts.route.reuse.as_ref()?;
        let decision_cache::Params { memory, metrics } = &self.params.decisions;
        let asker = memory.asker(self.context.caller.tenant.as_str(), &self.facts);
        let found = if memory.is_off(&asker) {
            Err(Nothing::Refused(Guard::Disagreement))
        } else {
            memory.find(&policy.terms, &asker, &self.facts, Intent::Give)
        };
        let found = found.map_err(|nothing| self.params.decisions.refused(nothing)).ok()?;
        metrics.cache(Cache::Decision, CacheEvent::Hit);
        decision_cache::note(&self.context.trail, &found);
        let given = decision_cache::given(&found, &self.facts, ReusedBecause::NoVerdict);
        Some(Arc::new(Decision { late_verdict_expected: flight == Flight::GoesOn, ..given }))
    }
}
