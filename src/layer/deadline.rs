//! The end of the call's total time, from arrival to the last byte, for streams that are on their way, and their heartbeat:
//! silence in between must not look to the client, and to what stands before it, as if the end had come.
//!
//! Until there is a reply, [`failover`](super::failover) keeps the same deadline: none of its attempts and none of its
//! pauses may outlive it, so a second timer here would only cost.

use std::time::Duration;

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
pub struct DeadlineLayer {
    /// How long nothing may be said to the client of a stream.
    pub heartbeat: Option<Duration>,
}

/// Ends calls on time.
#[derive(Clone)]
pub struct Deadline<S> {
    inner: S,
    heartbeat: Option<Duration>,
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, heartbeat: self.heartbeat }
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
        let until = Until { time: call.deadline.instant(), heartbeat: self.heartbeat };
        Touching::new(self.inner.call(call), until)
    }
}

/// When the time is up, and how long it may be silent until then.
pub struct Until {
    time: Instant,
    heartbeat: Option<Duration>,
}

impl Touch<Result<Reply, CallError>> for Until {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        if let Ok(reply) = answer
            && reply.body.is_stream()
        {
            reply.body.end_when(sleep_until(self.time), End::DeadlinePassed);
            if let Some(every) = self.heartbeat {
                reply.body.beat(every);
            }
        }
    }
}

#[cfg(test)]
mod tests;
