//! Keeps the process within its means: requests in flight, the body bytes held by them, and what pressure leaves.
//!
//! Decided from the path and the key alone, before a body byte is read, so that refusing costs next to nothing: nothing is
//! parsed, nothing is kept, and nobody waits in a queue. The rules are in [`Gate`]; here they meet a request.
//!
//! A refused request's body is read and thrown away if it is small, so that its connection can be used again and its sender
//! sees the answer instead of a reset; of a large one the connection is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Method, Version};
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, Service};

use crate::domain::operation::{Operation, TrafficClass};
use crate::domain::overload::Class;
use crate::flight::arrival::{Arrival, Pinned};
use crate::flight::error::CallError;
pub use crate::flight::gate::Gate;
use crate::flight::gate::{Admitted, Wish};
use crate::flight::reply::Reply;
use crate::flight::shares::Standing;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Keep, Touching};
use crate::telemetry::metrics::Metrics;
use crate::upstream::patience::within;

/// Most of a refused body that is read to be thrown away, and how long that may take.
const WASTE_BYTES: u64 = 1024 * 1024;
const WASTE_TIME: Duration = Duration::from_secs(1);
/// How many may be at it at a time.
const WASTES_AT_ONCE: u32 = 64;

/// Plain values for [`AdmissionLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all workers.
    pub gate: Arc<Gate>,
    /// Counts what is shed.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Admission`].
#[derive(Clone)]
pub struct AdmissionLayer(pub Params);

/// Admits or sheds.
#[derive(Clone)]
pub struct Admission<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, params: self.0.clone() }
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Admission<S>
where
    S: Service<Arrival<P, B>, Response = Reply, Error = CallError>,
    P: Pinned,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Gated<Touching<S::Future, Keep<Admitted>>, CallError>;

    always_ready!();

    fn call(&mut self, mut arrival: Arrival<P, B>) -> Self::Future {
        let standing = standing(&arrival);
        let wish = Wish { standing, bytes: arrival.body.size_hint().exact(), now: arrival.arrived };
        match self.params.gate.enter(&wish, arrival.pinned.limits()) {
            Err(reason) => {
                self.params.metrics.shed(standing.class, reason);
                waste(arrival);
                Gated::shut(CallError::shed(reason))
            }
            Ok(mut admitted) => {
                if wish.bytes.is_none() {
                    arrival.growth = Some(admitted.grow(arrival.pinned.limits(), &self.params.metrics));
                }
                Gated::open(Touching::new(self.inner.call(arrival), Keep(admitted)))
            }
        }
    }
}

/// What a call is worth by its path, or else by its caller.
fn standing<P, B>(arrival: &Arrival<P, B>) -> Standing {
    let caller = arrival.caller.as_ref().map(|caller| caller.standing).unwrap_or_default();
    match arrival.operation.map(Operation::class) {
        Some(TrafficClass::Risk) => Standing { class: Class::Risk, ..caller },
        Some(TrafficClass::Llm) | None => caller,
    }
}

/// How many refused bodies are being read.
static WASTES: AtomicU32 = AtomicU32::new(0);

struct Waste;

impl Waste {
    fn begin() -> Option<Self> {
        let more = |count: u32| (count < WASTES_AT_ONCE).then_some(count + 1);
        WASTES.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Waste {
    fn drop(&mut self) {
        WASTES.fetch_sub(1, Relaxed);
    }
}

/// Reads the rest of a refused body, if that is worth it. Over HTTP/2 a stream ends without its connection.
fn waste<P, B>(arrival: Arrival<P, B>)
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    let (head, mut body) = (arrival.head, arrival.body);
    let size = body.size_hint().exact();
    let pointless = body.is_end_stream() || size.is_some_and(|size| size > WASTE_BYTES) || head.method != Method::POST;
    // Who asks before it sends is told no, and sends nothing.
    if pointless || head.version > Version::HTTP_11 || head.headers.contains_key(EXPECT) {
        return;
    }
    let Some(place) = Waste::begin() else { return };
    tokio::spawn(async move {
        let mut left = WASTE_BYTES;
        let all = async {
            while let Some(Ok(frame)) = body.frame().await {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                left = match left.checked_sub(size) {
                    Some(left) => left,
                    None => return,
                };
            }
        };
        // Whatever has not come by then, its sender has had time to read the answer.
        let _ = within(WASTE_TIME, all).await;
        drop((body, place));
    });
}

#[cfg(test)]
mod tests;
