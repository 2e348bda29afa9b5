//! An earlier PASS of the same payer, given again within every guard of [`domain::reuse`](crate::domain::reuse).
//!
//! This half sits inside Idempotency. It asks memory before anybody else where the route says `first`, so that what it
//! gives is kept as the attempt's decision like any other; and it learns from every live verdict, late ones included. The
//! other half, [`stand_in`](super::stand_in), sits outside the deadline.
//!
//! Some attempts that memory could answer go live all the same, and whether the provider agrees decides if the merchant's
//! decisions are given again at all. Where memory is only asked when time is up, every verdict that memory could have
//! foretold is compared: it costs nothing.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http::{HeaderMap, StatusCode};
use tower::{Layer, Service};

pub use self::memory::DecisionCache;
pub(in crate::layer) use self::memory::{Asker, Found, Intent, Nothing};

use crate::config::reuse::{ReuseMode, ReusePolicy};
use crate::domain::agreement::Agreed;
use crate::domain::clock;
use crate::domain::decision::{Action, Decision, DecisionSource, Reason, Reused, ReusedBecause, Verdict};
use crate::domain::id::DecisionId;
use crate::domain::money::Cost;
use crate::domain::reuse::Guard;
use crate::flight::call::{Call, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::flight::trail::{CacheNote, Trail};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::telemetry::labels::{Cache, CacheEvent};
use crate::telemetry::metrics::Metrics;

mod lineage;
mod memory;

/// Plain values for [`DecisionCacheLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all workers and configurations.
    pub memory: Arc<DecisionCache>,
    /// Counts what memory did.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Remember`].
#[derive(Clone)]
pub struct DecisionCacheLayer(pub Params);

/// Asks memory first, and learns.
#[derive(Clone)]
pub struct Remember<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for DecisionCacheLayer {
    type Service = Remember<S>;

    fn layer(&self, inner: S) -> Remember<S> {
        Remember { inner, params: self.0.clone() }
    }
}

impl<S> Service<Call> for Remember<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Either<Touching<S::Future, Option<Learn>>, Ready<Result<Reply, CallError>>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let Some(facts) = call.risk().filter(|facts| facts.route.reuse.is_some()).cloned() else {
            return Either::Left(Touching::new(self.inner.call(call), None));
        };
        let params = self.params.clone();
        let asker = params.memory.asker(call.context.caller.tenant.as_str(), &facts);
        let expected = match facts.route.reuse.as_ref().map(|policy| (policy, policy.mode)) {
            Some((policy, ReuseMode::First)) => match params.first(policy, &asker, &facts) {
                First::Given(found) => {
                    note(&call.context.trail, &found);
                    let decision = given(&found, &facts, ReusedBecause::First);
                    return Either::Right(ready(Ok(reply(Arc::new(decision)))));
                }
                First::Live(expected) => expected,
            },
            Some((policy, ReuseMode::WhenLate)) => params.expects_pass(policy, &asker, &facts),
            None => Expected::Nothing,
        };
        Either::Left(Touching::new(self.inner.call(call), Some(Learn { params, asker, facts, expected })))
    }
}

/// What memory would have said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Pass,
    Nothing,
}

enum First {
    Given(Found),
    Live(Expected),
}

impl Params {
    fn first(&self, policy: &ReusePolicy, asker: &Asker, facts: &RiskFacts) -> First {
        let (off, audited) = (self.memory.is_off(asker), asker.draw < policy.self_audit);
        let intent = if off || audited { Intent::Compare } else { Intent::Give };
        match self.memory.find(&policy.terms, asker, facts, intent) {
            Ok(_) if off => {
                self.refused(Nothing::Refused(Guard::Disagreement));
                First::Live(Expected::Pass)
            }
            Ok(_) if audited => First::Live(Expected::Pass),
            Ok(found) => {
                self.metrics.cache(Cache::Decision, CacheEvent::Hit);
                First::Given(found)
            }
            Err(nothing) => {
                self.refused(nothing);
                First::Live(Expected::Nothing)
            }
        }
    }

    fn expects_pass(&self, policy: &ReusePolicy, asker: &Asker, facts: &RiskFacts) -> Expected {
        match self.memory.find(&policy.terms, asker, facts, Intent::Compare) {
            Ok(_) => Expected::Pass,
            Err(_) => Expected::Nothing,
        }
    }

    pub(super) fn refused(&self, nothing: Nothing) {
        match nothing {
            Nothing::Unknown => self.metrics.cache(Cache::Decision, CacheEvent::Miss),
            Nothing::Refused(guard) => {
                self.metrics.cache(Cache::Decision, CacheEvent::RefusedByGuard);
                self.metrics.reuse.refused(guard);
            }
        }
    }
}

/// What is learnt from a provider's verdict.
pub struct Learn {
    params: Params,
    asker: Asker,
    facts: Arc<RiskFacts>,
    expected: Expected,
}

impl Touch<Result<Reply, CallError>> for Option<Learn> {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        let (Some(Learn { params, asker, facts, expected }), Ok(reply)) = (self, answer) else { return };
        let (Some(policy), Some(decision)) = (&facts.route.reuse, &reply.decision) else { return };
        if expected == Expected::Pass && decision.source == DecisionSource::Live {
            let agreed = if decision.action == Action::Pass { Agreed::Yes } else { Agreed::No };
            params.memory.compare(&asker, agreed, policy, &params.metrics);
        }
        params.memory.learn(&policy.terms, &asker, &facts, decision);
    }
}

/// Says in the answer's headers what memory did.
pub(super) fn note(trail: &Trail, found: &Found) {
    let (age_seconds, left_seconds) = (found.age_ms / 1000, found.rest_ms / 1000);
    trail.lock().cache = CacheNote::Hit { age_seconds, left_seconds };
}

/// A decision of its own that names the other, by today's rules, for nothing.
pub(super) fn given(found: &Found, facts: &RiskFacts, because: ReusedBecause) -> Decision {
    let Found { decision: earlier, age_ms, rest_ms } = found;
    let free = |cost: Cost| Cost { micro: 0, ..cost };
    let verdict = earlier.verdict.clone().map(|verdict| Verdict { cost: verdict.cost.map(free), ..verdict });
    let text = "an earlier decision for the same payer, instrument and device was given again";
    Decision {
        id: DecisionId::fresh(),
        action: earlier.action,
        source: DecisionSource::Cached,
        verdict,
        reasons: vec![Reason { code: "decision_reused".to_owned(), text: text.to_owned() }],
        applied: facts.ruling.applied.clone(),
        late_verdict_expected: false,
        created_at_ms: clock::unix_ms(),
        reused: Some(Reused { of: earlier.id.clone(), age_ms: *age_ms, expires_in_ms: *rest_ms, because }),
    }
}

/// A reply that says this.
pub(super) fn reply(decision: Arc<Decision>) -> Reply {
    Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: ReplyBody::whole(Bytes::new()),
        usage: UsageSlot::default(),
        complete: true,
        decision: Some(decision),
    }
}
