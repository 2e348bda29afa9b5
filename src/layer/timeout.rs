//! Ends an attempt that has shown nothing by its limit. Dropping it closes its connection.
//!
//! A caller whose own deadline left less than a fair time learns nothing about the provider: that is nobody's failure, and
//! neither is an upload that the caller has not finished.

use std::sync::Arc;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::flight::upload::Upload;
use crate::layer::always_ready;
use crate::layer::answering::{Act, Answering};
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
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Answering<tokio::time::Timeout<S::Future>, Blame>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let blame = Blame { limit: attempt.limit, fair: attempt.fair, upload: attempt.call.upload.clone() };
        Answering::new(timeout_at(attempt.limit, self.0.call(attempt)), blame)
    }
}

/// Whose fault it is if nothing comes.
pub struct Blame {
    limit: Instant,
    fair: Instant,
    upload: Option<Arc<Upload>>,
}

impl Act<Result<Result<Reply, AttemptError>, Elapsed>> for Blame {
    type Output = Result<Reply, AttemptError>;

    fn act(self, answer: Result<Result<Reply, AttemptError>, Elapsed>) -> Self::Output {
        answer.unwrap_or_else(|_| {
            let waited = self.upload.as_ref().is_some_and(|upload| upload.waits_for_caller());
            let ours = self.limit < self.fair || waited;
            let class = if ours { FailureClass::DeadlinePassed } else { FailureClass::HeadersTimeout };
            Err(AttemptError::new(class, Sent::Maybe, "nothing was shown in time"))
        })
    }
}

#[cfg(test)]
mod tests;
