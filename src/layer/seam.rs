//! Where a stack ends and its type is forgotten: what [`tower::util::BoxCloneSyncService`] is for, without copying the
//! whole stack to the heap for each request. The stack is shared; only the future is boxed.

use std::future::Future;
use std::sync::Arc;

use tower::Service;

use crate::layer::{BoxFuture, always_ready};

/// Any service that takes `A` and answers `T` or fails with `E`. Cloning shares it.
pub struct Seam<A, T, E>(Arc<dyn Ask<A, T, E>>);

trait Ask<A, T, E>: Send + Sync {
    fn ask(&self, request: A) -> BoxFuture<Result<T, E>>;
}

impl<S, A, T, E> Ask<A, T, E> for S
where
    S: Service<A, Response = T, Error = E, Future: Future<Output = Result<T, E>> + Send + 'static>
        + Clone
        + Send
        + Sync,
{
    fn ask(&self, request: A) -> BoxFuture<Result<T, E>> {
        // A clone on the stack: layers share what they hold, so that this counts references and moves nothing.
        Box::pin(self.clone().call(request))
    }
}

impl<A, T, E> Seam<A, T, E> {
    /// Forgets the type of `service`.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<A, Response = T, Error = E, Future: Send + 'static> + Clone + Send + Sync + 'static,
    {
        Self(Arc::new(service))
    }

    /// Calls it; services here are always ready.
    pub fn ask(&self, request: A) -> BoxFuture<Result<T, E>> {
        self.0.ask(request)
    }
}

impl<A, T, E> Clone for Seam<A, T, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A, T, E> Service<A> for Seam<A, T, E> {
    type Response = T;
    type Error = E;
    type Future = BoxFuture<Result<T, E>>;

    always_ready!();

    fn call(&mut self, request: A) -> Self::Future {
        self.ask(request)
    }
}
