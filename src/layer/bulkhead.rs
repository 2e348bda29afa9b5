//! At most so many requests in flight to one provider; the place is kept until the body ends. Full means refused, never
//! queued.

use std::sync::Arc;

use tower::{Layer, Service};

use crate::domain::outcome::FailureClass;
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::layer::{BoxFuture, always_ready};
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
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = BoxFuture<Result<Reply, AttemptError>>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let Some(place) = self.params.places.enter(self.params.limit) else {
            let full = AttemptError::local(FailureClass::Full, None, "the provider's bulkhead is full");
            return Box::pin(std::future::ready(Err(full)));
        };
        let answer = self.inner.call(attempt);
        Box::pin(async move {
            let mut reply = answer.await?;
            reply.body.on_end(move |_| drop(place));
            Ok(reply)
        })
    }
}

#[cfg(test)]
mod tests;
