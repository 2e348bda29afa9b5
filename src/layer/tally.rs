//! Risk calls are paid from their caller's budgets too, and never refused over one: a payment does not wait for money
//! that somebody spent on prose.
//!
//! It only says who pays; [`meter`](super::meter) pays when a verdict came, also one that came late.

use tower::{Layer, Service};

use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;

/// Makes [`Tally`].
#[derive(Clone, Copy)]
pub struct TallyLayer;

/// Counts what calls cost.
#[derive(Clone)]
pub struct Tally<S>(S);

impl<S> Layer<S> for TallyLayer {
    type Service = Tally<S>;

    fn layer(&self, inner: S) -> Tally<S> {
        Tally(inner)
    }
}

impl<S> Service<Call> for Tally<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = S::Future;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        if let Some(quota) = &call.context.quota {
            let claim = quota.tally(&call.context.caller);
            call.context.trail.lock().claim = Some(claim);
        }
        self.0.call(call)
    }
}
