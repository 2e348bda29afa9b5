//! A bug costs one request, not the process. Inside the record, so that even that request leaves its line and its
//! metric; above everything else, so that nothing is missed. What the panic said goes to the log, never to the caller.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;
use tower::{Layer, Service};

use crate::flight::error::CallError;
use crate::layer::{BoxFuture, always_ready};
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
    S::Future: Send + 'static,
    S::Response: 'static,
{
    type Response = S::Response;
    type Error = CallError;
    type Future = BoxFuture<Result<S::Response, CallError>>;

    always_ready!();

    fn call(&mut self, arrival: A) -> Self::Future {
        let metrics = Arc::clone(&self.metrics);
        let started = catch_unwind(AssertUnwindSafe(|| self.inner.call(arrival)));
        Box::pin(async move {
            let ended = match started {
                Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            ended.unwrap_or_else(|_| {
                metrics.panics.inc();
                Err(CallError::Internal)
            })
        })
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
