//! The end of the call's total time, from arrival to the last byte, for streams that are on their way.
//!
//! Until there is a reply, [`failover`](super::failover) keeps the same deadline: none of its attempts and none of its
//! pauses may outlive it, so a second timer here would only cost.

use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

use crate::domain::outcome::End;
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};

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
{
    type Response = Reply;
    type Error = CallError;
    type Future = Touching<S::Future, Until>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let until = Until(call.deadline.instant());
        Touching::new(self.0.call(call), until)
    }
}

/// When the time is up.
pub struct Until(Instant);

impl Touch<Result<Reply, CallError>> for Until {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        if let Ok(reply) = answer
            && reply.body.is_stream()
        {
            reply.body.end_when(sleep_until(self.0), End::DeadlinePassed);
        }
    }
}

#[cfg(test)]
mod tests;
