//! Leaves a quota group alone for as long as it asked: a 429 pauses every upstream that shares the quota, not only the
//! one that met it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::jitter;
use crate::domain::outcome::FailureClass;
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Touch, Touching};
use crate::upstream::attempt::Attempt;
use crate::upstream::limiter::Pause;

/// A 429 without a word on when.
const UNTOLD: Duration = Duration::from_secs(1);

/// Plain values for [`PaceLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by the quota group; survives reloads.
    pub pause: Arc<Pause>,
}

/// Makes [`Pace`].
#[derive(Clone)]
pub struct PaceLayer(pub Params);

/// Respects pauses.
#[derive(Clone)]
pub struct Pace<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for PaceLayer {
    type Service = Pace<S>;

    fn layer(&self, inner: S) -> Pace<S> {
        Pace { inner, params: self.0.clone() }
    }
}

impl<S> Service<Attempt> for Pace<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Gated<Touching<S::Future, Heed>, AttemptError>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        if let Some(left) = self.params.pause.left(attempt.begun) {
            let paced = AttemptError::local(FailureClass::Paced, Some(left), "the provider asked for a pause");
            return Gated::shut(paced);
        }
        let heed = Heed(Arc::clone(&self.params.pause));
        Gated::open(Touching::new(self.inner.call(attempt), heed))
    }
}

/// Heeds what a provider asks for.
pub struct Heed(Arc<Pause>);

impl Touch<Result<Reply, AttemptError>> for Heed {
    fn touch(self, answer: &mut Result<Reply, AttemptError>) {
        if let Err(error) = answer
            && error.class == FailureClass::RateLimited
        {
            self.0.pause(Instant::now(), error.retry_after.unwrap_or_else(|| jitter::longer(UNTOLD)));
        }
    }
}

#[cfg(test)]
mod tests;
