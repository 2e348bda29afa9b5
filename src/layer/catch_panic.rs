//! A bug costs one request, not the process. Inside the record, so that even that request leaves its line and its
//! metric; above everything else, so that nothing is missed. What the panic said goes to the log, never to the caller.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::flight::error::CallError;
use crate::layer::always_ready;
use crate::telemetry::metrics::Metrics;

/// Makes [`CatchPanic`].
#[derive(Clone)]
pub struct CatchPanicLayer {
    /// Counts panics.
    pub metrics: Arc<Metrics>,
}

/// Turns a panic into [`CallError::Internal`].
#[derive(Clone)]
pub struct CatchPanic<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> CatchPanic<S> {
        CatchPanic { inner, metrics: Arc::clone(&self.metrics) }
    }
}

impl<S, A> Service<A> for CatchPanic<S>
where
    S: Service<A, Error = CallError>,
{
    type Response = S::Response;
    type Error = CallError;
    type Future = Catching<S::Future>;

    always_ready!();

    fn call(&mut self, arrival: A) -> Self::Future {
        // After a panic there is nothing to ask, and the poll below answers for it.
        let inside = catch_unwind(AssertUnwindSafe(|| self.inner.call(arrival))).ok();
        Catching { inside, metrics: Arc::clone(&self.metrics) }
    }
}

pin_project! {
    /// The call inside, asked where a panic can be caught; `None` if it panicked at once.
    pub struct Catching<F> {
        #[pin]
        inside: Option<F>,
        metrics: Arc<Metrics>,
    }
}

impl<F, T> Future for Catching<F>
where
    F: Future<Output = Result<T, CallError>>,
{
    type Output = Result<T, CallError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let asked = this.inside.as_mut().as_pin_mut().map(|inside| catch_unwind(AssertUnwindSafe(|| inside.poll(cx))));
        if let Some(Ok(polled)) = asked {
            return polled;
        }
        this.metrics.panics.inc();
        // What panicked is dropped here, inside the same net.
        let gone = catch_unwind(AssertUnwindSafe(|| this.inside.set(None)));
        drop(gone);
        Poll::Ready(Err(CallError::Internal))
    }
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn f33_a_panic_costs_one_request() {
        let service = CatchPanicLayer { metrics: Metrics::new() }.layer(service_fn(|bad: bool| async move {
            assert!(!bad, "a bug");
            Ok::<_, CallError>(())
        }));
        assert!(matches!(service.clone().oneshot(true).await, Err(CallError::Internal)));
        assert!(service.oneshot(false).await.is_ok());
    }
}
