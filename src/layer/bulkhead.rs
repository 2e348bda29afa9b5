//! At most so many requests in flight to one provider; a stream keeps its place until its body ends, a whole answer has
//! left the provider when it is here. Full means refused; only an attempt that is given patience waits for a place.

use std::sync::Arc;

use futures_util::future::Either;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::outcome::FailureClass;
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::layer::answering::{Gated, Touch, Touching};
use crate::layer::{BoxFuture, always_ready};
use crate::upstream::attempt::Attempt;
use crate::upstream::concurrency::{Bounds, Ended, Outcome};
use crate::upstream::limiter::{self, Adaptive};

/// Plain values for [`BulkheadLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all upstreams of a provider; survives reloads.
    pub places: Arc<limiter::Bulkhead>,
    /// How many there are.
    pub limit: u32,
    /// What the limit is divided by: 1 for callers, more for what must leave them room.
    pub part: u32,
    /// Present if that moves with what becomes of requests, up to `limit`; survives reloads too.
    pub adaptive: Option<(Arc<Adaptive>, Bounds)>,
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
    S: Service<Attempt, Response = Reply, Error = AttemptError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Either<Gated<Touching<S::Future, Occupy>, AttemptError>, BoxFuture<Result<Reply, AttemptError>>>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let learner =
            self.params.adaptive.clone().map(|(learned, bounds)| Learner { learned, bounds, sent: Instant::now() });
        let limit = learner.as_ref().map_or(self.params.limit, |learner| learner.learned.limit(learner.bounds));
        let (limit, whose) = (limit.div_ceil(self.params.part.max(1)), attempt.call.context.standing);
        let places = &self.params.places;
        let waits = !attempt.patience.is_zero();
        // Behind those who wait already.
        let place = if waits && places.is_awaited() { None } else { places.enter(limit, whose, attempt.begun) };
        match place {
            Some(place) => {
                Either::Left(Gated::open(Touching::new(self.inner.call(attempt), Occupy { place, learner })))
            }
            None if waits => {
                let (mut inner, patience) = (self.inner.clone(), attempt.patience);
                let place = Arc::clone(places).wait(limit, whose, patience);
                Either::Right(Box::pin(async move {
                    let place = place.await.ok_or_else(full)?;
                    let learner = learner.map(|learner| Learner { sent: Instant::now(), ..learner });
                    Touching::new(inner.call(later(attempt)), Occupy { place, learner }).await
                }))
            }
            None => Either::Left(Gated::shut(full())),
        }
    }
}

fn full() -> AttemptError {
    AttemptError::local(FailureClass::Full, None, "the provider's bulkhead is full")
}

/// The attempt as it is after the wait: it must be done by the same time, and its provider is not blamed for having less.
fn later(attempt: Attempt) -> Attempt {
    let now = Instant::now();
    Attempt { fair: now + attempt.fair.saturating_duration_since(attempt.begun), begun: now, ..attempt }
}

/// A place at the provider, taken for as long as this lives.
pub struct Occupy {
    place: limiter::Place,
    learner: Option<Learner>,
}

/// Tells an adaptive limit what became of a request.
struct Learner {
    learned: Arc<Adaptive>,
    bounds: Bounds,
    sent: Instant,
}

impl Learner {
    fn learn(&self, in_flight: u32, answer: &Result<Reply, AttemptError>) {
        let outcome = match answer {
            Ok(reply) => Outcome::Answered(reply.body.is_stream().then(|| self.sent.elapsed())),
            Err(error) => match error.class {
                FailureClass::HeadersTimeout
                | FailureClass::Overloaded
                | FailureClass::RateLimited
                | FailureClass::ProviderFault => Outcome::Overloaded,
                // These say nothing of how busy it is: who cannot be reached, what cannot be understood, the account,
                // our key, the caller's request, our own refusals and deadlines.
                _ => return,
            },
        };
        self.learned.learn(&Ended { sent: self.sent, in_flight, outcome }, self.bounds);
    }
}

impl Touch<Result<Reply, AttemptError>> for Occupy {
    fn touch(self, answer: &mut Result<Reply, AttemptError>) {
        if let Some(learner) = &self.learner {
            learner.learn(self.place.taken(), answer);
        }
        if let Ok(reply) = answer
            && reply.body.is_stream()
        {
            reply.body.on_end(move |_| drop(self));
        }
    }
}

#[cfg(test)]
mod tests;
