//! The call's total time: from arrival to the last byte, for whole answers and for streams.

use tokio::time::{sleep_until, timeout_at};
use tower::{Layer, Service};

use crate::domain::outcome::End;
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::{BoxFuture, always_ready};

/// Makes [`Deadline`].
#[derive(Clone, Copy)]
pub struct DeadlineLayer;

/// Ends calls on time.
#[derive(Clone)]
pub struct Deadline<S>(S);

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline(inner)
    }
}

impl<S> Service<Call> for Deadline<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let deadline = call.deadline.instant();
        let answer = self.0.call(call);
        Box::pin(async move {
            let mut reply = timeout_at(deadline, answer).await.unwrap_or(Err(CallError::DeadlinePassed))?;
            reply.body.end_when(sleep_until(deadline), End::DeadlinePassed);
            Ok(reply)
        })
    }
}

#[cfg(test)]
mod tests;
