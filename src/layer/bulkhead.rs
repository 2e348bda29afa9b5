//! At most so many requests in flight to one provider; a stream keeps its place until its body ends, a whole answer has
//! left the provider when it is here. Full means refused, never queued.

use std::sync::Arc;

use tower::{Layer, Service};

use crate::domain::outcome::FailureClass;
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Touch, Touching};
use crate::upstream::attempt::Attempt;
use crate::upstream::limiter;

/// Plain values for [`BulkheadLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all upstreams of a provider; survives reloads.
    pub places: Arc<limiter::Bulkhead>,
    /// How many there are.
    pub limit: u32,
}

/// Makes [`Bulkhead`].
#[derive(Clone)]
pub struct BulkheadLayer(pub Params);

/// Limits what is in flight.
#[derive(Clone)]
pub struct Bulkhead<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for BulkheadLayer {
    type Service = Bulkhead<S>;

    fn layer(&self, inner: S) -> Bulkhead<S> {
        Bulkhead { inner, params: self.0.clone() }
    }
}

impl<S> Service<Attempt> for Bulkhead<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Gated<Touching<S::Future, Occupy>, AttemptError>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let Some(place) = self.params.places.enter(self.params.limit) else {
            let full = AttemptError::local(FailureClass::Full, None, "the provider's bulkhead is full");
            return Gated::shut(full);
        };
        Gated::open(Touching::new(self.inner.call(attempt), Occupy { _place: place }))
    }
}

/// A place at the provider, taken for as long as this lives.
pub struct Occupy {
    _place: limiter::Place,
}

impl Touch<Result<Reply, AttemptError>> for Occupy {
    fn touch(self, answer: &mut Result<Reply, AttemptError>) {
        if let Ok(reply) = answer
            && reply.body.is_stream()
        {
            reply.body.on_end(move |_| drop(self));
        }
    }
}

#[cfg(test)]
mod tests;
