//! Streams that outlive the drain limit end with one error event instead of a cut connection.

use tokio::sync::watch;
use tower::{Layer, Service};

use crate::domain::outcome::End;
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};

/// Plain values for [`DrainLayer`].
#[derive(Clone)]
pub struct Params {
    /// Turns true when streams must end.
    pub over: watch::Receiver<bool>,
}

/// Makes [`Drain`].
#[derive(Clone)]
pub struct DrainLayer(pub Params);

/// Ends streams at shutdown.
#[derive(Clone)]
pub struct Drain<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for DrainLayer {
    type Service = Drain<S>;

    fn layer(&self, inner: S) -> Drain<S> {
        Drain { inner, params: self.0.clone() }
    }
}

impl<S, A> Service<A> for Drain<S>
where
    S: Service<A, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Touching<S::Future, Recall>;

    always_ready!();

    fn call(&mut self, arrival: A) -> Self::Future {
        let recall = Recall { over: self.params.over.clone() };
        Touching::new(self.inner.call(arrival), recall)
    }
}

/// Calls a stream back when the time comes.
pub struct Recall {
    over: watch::Receiver<bool>,
}

impl Touch<Result<Reply, CallError>> for Recall {
    fn touch(self, answer: &mut Result<Reply, CallError>) {
        if let Ok(reply) = answer
            && reply.body.is_stream()
        {
            reply.body.end_when(wait(self.over), End::ShuttingDown);
        }
    }
}

async fn wait(mut over: watch::Receiver<bool>) {
    if over.wait_for(|over| *over).await.is_err() {
        // Whoever could say so is gone without saying it: the process is not shutting down in order, so never.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
