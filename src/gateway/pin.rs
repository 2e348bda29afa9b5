//! The first layer of our own: one configuration version for the whole request, its clock, and its identity.
//!
//! Everything below sees the same snapshot, so a reload in the middle of a request cannot be seen. It is released at the
//! end of the body.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderName, Request};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::id::RequestId;
use crate::flight::arrival::Arrival;
use crate::flight::trail::Trail;
use crate::gateway::snapshot::Snapshot;
use crate::layer::always_ready;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Makes [`Pin`].
#[derive(Clone)]
pub struct PinLayer(pub Arc<ArcSwap<Snapshot>>);

/// Turns an HTTP request into an arrival.
#[derive(Clone)]
pub struct Pin<S> {
    inner: S,
    live: Arc<ArcSwap<Snapshot>>,
}

impl<S> Layer<S> for PinLayer {
    type Service = Pin<S>;

    fn layer(&self, inner: S) -> Pin<S> {
        Pin { inner, live: Arc::clone(&self.0) }
    }
}

impl<S, B> Service<Request<B>> for Pin<S>
where
    S: Service<Arrival<Arc<Snapshot>, B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    always_ready!();

    fn call(&mut self, request: Request<B>) -> S::Future {
        let (head, body) = request.into_parts();
        let theirs = head.headers.get(REQUEST_ID).and_then(|id| RequestId::parse(id.to_str().ok()?));
        self.inner.call(Arrival {
            id: theirs.unwrap_or_else(RequestId::fresh),
            arrived: Instant::now(),
            trail: Trail::default(),
            pinned: self.live.load_full(),
            operation: None,
            parameter: None,
            caller: None,
            growth: None,
            head: Box::new(head),
            body,
        })
    }
}
