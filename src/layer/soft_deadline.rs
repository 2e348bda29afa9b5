//! The promise of the risk route: an answer by the deadline, whatever is below. The promise is the timer's.
//!
//! It is a timer around a call of its own, not a cancellation: a verdict that was paid for is not thrown away. The call
//! goes on to its hard limit; what it learns reaches the idempotency store below and the metrics. What runs detached is
//! bounded by the hard limit and, towards the provider, by its bulkhead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use crate::domain::decision::{Action, Decision, DecisionSource};
use crate::domain::id::{DecisionId, TenantId};
use crate::flight::call::{Call, CallContext, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::audit::{Clerk, Paper};
use crate::layer::{BoxFuture, always_ready};
use crate::telemetry::metrics::Metrics;

/// Plain values for [`SoftDeadlineLayer`].
#[derive(Clone)]
pub struct Params {
    /// The answer leaves by then, counted from arrival.
    pub deadline: Duration,
    /// Keeps late verdicts; `None` where there is no record.
    pub clerk: Option<Clerk>,
    /// Counts late verdicts.
    pub metrics: Arc<Metrics>,
    /// Who is told of late verdicts that are worse than what was served; `None` if nobody wants to know.
    pub revise: Option<Arc<dyn Revise>>,
}

/// Tells somebody that an answer has been overtaken.
pub trait Revise: Send + Sync {
    /// Whether anybody is to be told of this tenant's.
    fn wants(&self, tenant: &TenantId) -> bool;

    /// Tells, for as long as that takes; it bounds its own time.
    fn revised(self: Arc<Self>, revision: Revision) -> BoxFuture<()>;
}

/// A verdict that is worse than the fallback that was served in its place.
pub struct Revision {
    /// The payment attempt.
    pub facts: Arc<RiskFacts>,
    /// Who asked.
    pub context: Arc<CallContext>,
    /// What was served.
    pub served: Served,
    /// What it should have been.
    pub decision: Arc<Decision>,
}

/// The answer in a verdict's stead.
pub struct Served {
    /// The decision.
    pub id: DecisionId,
    /// What it said.
    pub action: Action,
    /// Where it came from.
    pub source: DecisionSource,
}

/// What writing the answer may take after the timer fired.
const RESERVE: Duration = Duration::from_millis(5);

/// When a call that arrived then is answered at the latest, with or without a verdict.
pub(super) fn answered_by(arrived: Instant, deadline: Duration) -> Instant {
    arrived + deadline.saturating_sub(RESERVE)
}

/// Makes [`SoftDeadline`].
#[derive(Clone)]
pub struct SoftDeadlineLayer(pub Params);

/// Answers on time.
#[derive(Clone)]
pub struct SoftDeadline<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for SoftDeadlineLayer {
    type Service = SoftDeadline<S>;

    fn layer(&self, inner: S) -> SoftDeadline<S> {
        SoftDeadline { inner, params: self.0.clone() }
    }
}

impl<S> Service<Call> for SoftDeadline<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let hard = call.deadline.instant();
        let soft = answered_by(call.context.arrived, self.params.deadline).min(hard);
        let late = Late {
            category: category(&call),
            id: call.context.id.clone(),
            record: self.params.clerk.clone().zip(Paper::of(&call)),
            metrics: Arc::clone(&self.params.metrics),
        };
        let told = self.params.revise.clone().and_then(|revise| Told::new(revise, &call));
        let answer = self.inner.call(call);
        let (answered, waiting) = oneshot::channel();
        tokio::spawn(async move {
            let result = timeout_at(hard, answer).await.unwrap_or(Err(CallError::DeadlinePassed));
            if let Err(unheard) = answered.send(result) {
                // The reply itself is for nobody.
                let decision = unheard.ok().and_then(|reply| reply.decision);
                if let Some(decision) = decision {
                    late.note(&decision).await;
                    if let Some(revised) = told.and_then(|told| told.revised(decision)) {
                        revised.await;
                    }
                }
            }
        });
        Box::pin(async move {
            match timeout_at(soft, waiting).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(CallError::Internal),
                Err(_) => Err(CallError::DeadlinePassed),
            }
        })
    }
}

/// Takes note of a verdict nobody waits for any more.
struct Late {
    category: Option<String>,
    id: crate::domain::id::RequestId,
    record: Option<(Clerk, Paper)>,
    metrics: Arc<Metrics>,
}

impl Late {
    async fn note(&self, decision: &Decision) {
        self.metrics.decision(self.category.as_deref(), decision.action, DecisionSource::Late);
        tracing::info!(call.id = %self.id, action = decision.action.as_str(), "late verdict");
        if let Some((clerk, paper)) = &self.record {
            clerk.keep(paper, decision).await;
        }
    }
}

/// Who is told of a late verdict, and what the answer in its place was.
struct Told {
    revise: Arc<dyn Revise>,
    facts: Arc<RiskFacts>,
    context: Arc<CallContext>,
}

impl Told {
    fn new(revise: Arc<dyn Revise>, call: &Call) -> Option<Self> {
        Some(Self { revise, facts: Arc::clone(call.risk()?), context: Arc::clone(&call.context) })
    }

    /// Only the call that was made tells: those that waited for it are given the same decision. Where the route answers
    /// with an error the caller decided, and whoever had left was given nothing: there is nothing to revise.
    fn revised(self, decision: Arc<Decision>) -> Option<BoxFuture<()>> {
        let Self { revise, facts, context } = self;
        let story = context.trail.lock();
        let (id, action, source) = story.overtaken_by(&decision)?;
        drop(story);
        let served = Served { id, action, source };
        let own = decision.source == DecisionSource::Live;
        own.then(|| revise.revised(Revision { facts, context, served, decision }))
    }
}

fn category(call: &Call) -> Option<String> {
    call.risk().and_then(|facts| facts.assessment.merchant.category.clone())
}

#[cfg(test)]
mod tests;
