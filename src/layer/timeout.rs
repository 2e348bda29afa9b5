//! Ends an attempt that has shown nothing by its limit. Dropping it closes its connection.
//!
//! A caller whose own deadline left less than a fair time learns nothing about the provider: that is nobody's failure.

use tokio::time::timeout_at;
use tower::{Layer, Service};

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::layer::{BoxFuture, always_ready};
use crate::upstream::attempt::Attempt;

/// Makes [`Timeout`].
#[derive(Clone, Copy)]
pub struct TimeoutLayer;

/// Limits attempts in time.
#[derive(Clone)]
pub struct Timeout<S>(S);

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout(inner)
    }
}

impl<S> Service<Attempt> for Timeout<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = BoxFuture<Result<Reply, AttemptError>>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let (limit, fair) = (attempt.limit, attempt.fair);
        let answer = self.0.call(attempt);
        Box::pin(async move {
            timeout_at(limit, answer).await.unwrap_or_else(|_| {
                let class = if limit < fair { FailureClass::DeadlinePassed } else { FailureClass::HeadersTimeout };
                Err(AttemptError::new(class, Sent::Maybe, "nothing was shown in time"))
            })
        })
    }
}

#[cfg(test)]
mod tests;
