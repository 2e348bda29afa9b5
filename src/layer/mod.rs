//! Floor 5: tower layers, each generic over the service inside.
//!
//! Every file has the same three parts, in this order: `Params` (plain values that `gateway/stack.rs` fills in),
//! `FooLayer` (makes it), `Foo<S>` (is it). Three rules hold for all:
//!
//! * **Always ready.** `poll_ready` returns `Ready(Ok)`. Capacity is taken inside `call`, and a full or open thing refuses
//!   with a typed error so that failover can try the next candidate. A queue in a payment path is latency in disguise.
//! * **Call first, wait later.** `call` invokes the inner service before the first await, so nothing is cloned per
//!   request that need not be.
//! * **The end is the body's end.** What must last as long as the reply goes into `ReplyBody::on_end`.
//!
//! Futures nest by value ([`answering`]); a layer that really waits for something of its own boxes its future once.

use std::future::Future;
use std::pin::Pin;

pub mod admission;
pub mod answering;
pub mod audit;
pub mod authenticate;
pub mod bulkhead;
pub mod cache;
pub mod catch_panic;
pub mod deadline;
pub mod decision_cache;
pub mod drain;
pub mod failover;
pub mod fallback;
pub mod idempotency;
pub mod idempotency_key;
pub mod join;
pub mod meter;
pub mod observe;
pub mod pace;
pub mod quota;
pub mod read_body;
pub mod recent;
pub mod record;
pub mod rescue;
pub mod seam;
pub mod shadow;
pub mod soft_deadline;
pub mod spend;
pub mod stamp;
pub mod stand_in;
pub mod strict;
pub mod tally;
#[cfg(test)]
pub(crate) mod testing;
pub mod throttle;
pub mod timeout;
pub mod traced;
pub mod trip;
pub mod velocity;
pub mod verify_signature;

/// The future of a layer that acts on its reply.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Implements the part of [`tower::Service`] that is the same everywhere: always ready.
macro_rules! always_ready {
    () => {
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            std::task::Poll::Ready(Ok(()))
        }
    };
}
pub(crate) use always_ready;
