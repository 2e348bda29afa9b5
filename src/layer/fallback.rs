//! No verdict could be had: the route's failure mode answers, and says so in every field.
//!
//! "Not evaluated" never reads as PASS by accident. `accept_up_to` passes small amounts of its own currency when the
//! provider was late or away; after an answer that was not authentic or not understandable it never does.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tower::{Layer, Service};

use crate::domain::clock;
use crate::domain::decision::{Action, Decision, DecisionSource, FallbackReason, Reason};
use crate::domain::id::DecisionId;
use crate::domain::money::Money;
use crate::domain::outcome::FailureClass;
use crate::domain::policy::OnExhausted;
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
                story.fallback = matches!(decision.source, DecisionSource::Fallback(_)).then(|| decision.id.clone());
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
    let action =
        action(facts.ruling.on_exhausted, reason, facts.assessment.amount).ok_or(CallError::NoDecision(reason))?;
    // Only a call that still goes on can bring one; an attempt that ended in a timeout cannot.
    let late_verdict_expected = matches!(error, CallError::DeadlinePassed);
    let (action, counted) = facts.velocity.raise(action);
    let unheard = Reason { code: reason.code().to_owned(), text: reason.text().to_owned() };
    let decision = Decision {
        id: DecisionId::fresh(),
        action,
        source: DecisionSource::Fallback(reason),
        verdict: None,
        reasons: std::iter::once(unheard).chain(counted).collect(),
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
        CallError::Internal => Some(FallbackReason::OurFault),
        _ => None,
    }
}

/// `None` where the route wants an error.
fn action(mode: OnExhausted, reason: FallbackReason, amount: Money) -> Option<Action> {
    match mode {
        OnExhausted::Review => Some(Action::Review),
        OnExhausted::Reject => Some(Action::Reject),
        OnExhausted::Error => None,
        OnExhausted::AcceptUpTo(most) => {
            let excused = matches!(reason, FallbackReason::Deadline | FallbackReason::Unavailable);
            let small = amount.currency() == most.currency() && amount.minor() <= most.minor();
            Some(if excused && small { Action::Pass } else { Action::Review })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::currency::Currency;

    fn money(text: &str, code: &str) -> Money {
        Money::parse(text, Currency::parse(code).unwrap()).unwrap()
    }

    #[test]
    fn c7_an_answer_that_cannot_be_trusted_is_never_accepted() {
        let mode = OnExhausted::AcceptUpTo(money("50.00", "CNY"));
        let action = |reason, text, code| action(mode, reason, money(text, code));
        assert_eq!(action(FallbackReason::Deadline, "50.00", "CNY"), Some(Action::Pass));
        assert_eq!(action(FallbackReason::Deadline, "50.01", "CNY"), Some(Action::Review));
        assert_eq!(action(FallbackReason::Unavailable, "1.00", "USD"), Some(Action::Review));
        assert_eq!(action(FallbackReason::NotAuthentic, "1.00", "CNY"), Some(Action::Review));
        assert_eq!(action(FallbackReason::NoVerdict, "1.00", "CNY"), Some(Action::Review));
        assert_eq!(action(FallbackReason::OurFault, "1.00", "CNY"), Some(Action::Review));
    }

    #[test]
    fn only_accept_up_to_can_ever_pass_without_a_verdict() {
        let reasons = [
            FallbackReason::OurFault,
            FallbackReason::Deadline,
            FallbackReason::Unavailable,
            FallbackReason::NotAuthentic,
            FallbackReason::NoVerdict,
        ];
        for reason in reasons {
            for mode in [OnExhausted::Review, OnExhausted::Reject, OnExhausted::Error] {
                assert_ne!(action(mode, reason, money("0.01", "CNY")), Some(Action::Pass));
            }
        }
    }

    #[test]
    fn the_callers_own_mistakes_stay_errors() {
        assert_eq!(reason(&CallError::Conflict), None);
        assert_eq!(reason(&CallError::BadKey), None);
    }
}
