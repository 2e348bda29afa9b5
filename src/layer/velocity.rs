//! A counter over its limit makes a verdict more severe, never milder.
//!
//! The numbers are read before the call begins (`gateway/dispatch.rs`); this acts on what the provider said. Where there
//! is no verdict, [`fallback`](super::fallback) does the same to the route's failure mode.

use std::sync::Arc;

use tower::{Layer, Service};

use crate::domain::decision::Decision;
use crate::flight::call::{Call, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};

/// Makes [`Velocity`].
#[derive(Clone, Copy)]
pub struct VelocityLayer;

/// Raises verdicts.
#[derive(Clone)]
pub struct Velocity<S>(S);

impl<S> Layer<S> for VelocityLayer {
    type Service = Velocity<S>;

    fn layer(&self, inner: S) -> Velocity<S> {
        Velocity(inner)
    }
}

impl<S> Service<Call> for Velocity<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Touching<S::Future, Raise>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let raise = Raise(call.risk().cloned());
        Touching::new(self.0.call(call), raise)
    }
}

/// What the counters make of the answer.
pub struct Raise(Option<Arc<RiskFacts>>);

impl Touch<Result<Reply, CallError>> for Raise {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        let (Some(facts), Ok(reply)) = (self.0, answer) else { return };
        let Some(decision) = &mut reply.decision else { return };
        let (action, reasons) = facts.velocity.raise(decision.action);
        if !reasons.is_empty() {
            let mut raised = Decision::clone(decision);
            raised.action = action;
            raised.reasons.extend(reasons);
            *decision = Arc::new(raised);
        }
    }
}
