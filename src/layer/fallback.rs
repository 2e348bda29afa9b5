//! No verdict could be had: the route's failure mode answers, and says so in every field.
//!
//! "Not evaluated" never reads as PASS by accident. `accept_up_to` passes small amounts of its own currency when the
//! provider was late or away; after an answer that was not authentic or not understandable, or for want of money, it never
//! does.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tower::{Layer, Service};

use crate::domain::clock;
use crate::domain::decision::{Decision, DecisionSource, FallbackReason, Reason};
use crate::domain::id::DecisionId;
use crate::domain::outcome::FailureClass;
use crate::flight::call::{Call, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::layer::{BoxFuture, always_ready};
use crate::telemetry::metrics::Metrics;

/// Plain values for [`FallbackLayer`].
#[derive(Clone)]
pub struct Params {
    /// Counts decisions.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Fallback`].
#[derive(Clone)]
pub struct FallbackLayer(pub Params);

/// Decides when nobody else did.
#[derive(Clone)]
pub struct Fallback<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for FallbackLayer {
    type Service = Fallback<S>;

    fn layer(&self, inner: S) -> Fallback<S> {
        Fallback { inner, params: self.0.clone() }
    }
}

impl<S> Service<Call> for Fallback<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let params = self.params.clone();
        let Some(facts) = call.risk().cloned() else {
            return Box::pin(std::future::ready(Err(CallError::Internal)));
        };
        if let Some(policy) = &facts.ruling.unclear {
            params.metrics.policy_unclear.inc();
            tracing::warn!(%policy, "the condition of a policy could not be evaluated, a person decides");
        }
        let trail = call.context.trail.clone();
        let answer = self.inner.call(call);
        Box::pin(async move {
            let reply = match answer.await {
                Ok(reply) => reply,
                Err(error) => fall_back(error, &facts)?,
            };
            if let Some(decision) = &reply.decision {
                let mut story = trail.lock();
                story.decision = Some((decision.action, decision.source));
                let stands_in = matches!(decision.source, DecisionSource::Fallback(_) | DecisionSource::Cached);
                story.stood_in = stands_in.then(|| decision.id.clone());
                drop(story);
                count(&params.metrics, facts.assessment.merchant.category.as_deref(), decision);
            }
            Ok(reply)
        })
    }
}

fn count(metrics: &Metrics, category: Option<&str>, decision: &Decision) {
    metrics.decision(category, decision.action, decision.source);
    if let (DecisionSource::Live, Some(verdict)) = (decision.source, &decision.verdict)
        && let Some(score) = verdict.score
    {
        metrics.risk_score(verdict.provider.model_version.as_deref(), score);
    }
}

/// The failure mode's answer; the caller's own mistakes stay errors.
fn fall_back(error: CallError, facts: &RiskFacts) -> Result<Reply, CallError> {
    let Some(reason) = reason(&error) else { return Err(error) };
    let action = facts.ruling.without_verdict(reason, facts.assessment.amount);
    let action = action.ok_or(CallError::NoDecision(reason))?;
    // Only a call that still goes on can bring one; an attempt that ended in a timeout cannot.
    let late_verdict_expected = matches!(error, CallError::DeadlinePassed);
    let (action, counted) = facts.velocity.raise(action);
    let unheard = Reason { code: reason.code().to_owned(), text: reason.text().to_owned() };
    let decision = Decision {
        id: DecisionId::fresh(),
        action,
        source: DecisionSource::Fallback(reason),
        verdict: None,
        reasons: std::iter::once(unheard).chain(facts.ruling.reasons()).chain(counted).collect(),
        applied: facts.ruling.applied.clone(),
        late_verdict_expected,
        created_at_ms: clock::unix_ms(),
        reused: None,
    };
    Ok(Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: ReplyBody::whole(Bytes::new()),
        usage: UsageSlot::default(),
        complete: false,
        decision: Some(Arc::new(decision)),
    })
}

/// Why there is no verdict; `None` for the caller's own mistakes.
pub(super) fn reason(error: &CallError) -> Option<FallbackReason> {
    match error {
        CallError::DeadlinePassed => Some(FallbackReason::Deadline),
        CallError::Exhausted { last, .. } => Some(match last.root() {
            FailureClass::BadSignature => FallbackReason::NotAuthentic,
            // A refusal is an answer: whoever can make a provider refuse must not be able to make a payment pass.
            FailureClass::BadReply | FailureClass::Refused => FallbackReason::NoVerdict,
            FailureClass::HeadersTimeout | FailureClass::DeadlinePassed => FallbackReason::Deadline,
            _ => FallbackReason::Unavailable,
        }),
        // A layer below that knew there was no use in asking.
        CallError::NoDecision(reason) => Some(*reason),
        CallError::Internal => Some(FallbackReason::OurFault),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_own_mistakes_stay_errors() {
        assert_eq!(reason(&CallError::Conflict), None);
        assert_eq!(reason(&CallError::BadKey), None);
    }
}
