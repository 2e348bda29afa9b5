//! Keeps the process within its means: requests in flight, and body bytes held by them.
//!
//! Decided from the path alone, before a body byte is read, so that refusing costs next to nothing. A share is reserved
//! for risk calls: LLM traffic is shed first and can never take the last place from a payment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header::CONTENT_LENGTH;
use tower::{Layer, Service};

use crate::domain::operation::{Operation, TrafficClass};
use crate::flight::arrival::{Arrival, Pinned};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Keep, Touching};
use crate::telemetry::labels::ShedReason;
use crate::telemetry::metrics::Metrics;

/// What a body of unknown length is taken to weigh until it is read; `read_body` enforces the real limit.
const UNDECLARED_BYTES: usize = 256 * 1024;

/// Plain values for [`AdmissionLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all workers.
    pub gate: Arc<Gate>,
    /// Counts what is shed.
    pub metrics: Arc<Metrics>,
}

/// What is taken now, process-wide.
#[derive(Debug, Default)]
pub struct Gate {
    in_flight: AtomicUsize,
    bytes: AtomicUsize,
}

/// One admitted request; gives back what it took when dropped.
pub struct Admitted {
    gate: Arc<Gate>,
    bytes: usize,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.gate.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Gate {
    /// Requests in flight now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Body bytes held now, or declared and awaited.
    pub fn held_bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    fn enter(self: &Arc<Self>, bytes: usize, most: Most) -> Result<Admitted, ShedReason> {
        let before = self.in_flight.fetch_add(1, Ordering::AcqRel);
        let held = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        let admitted = Admitted { gate: Arc::clone(self), bytes };
        if before >= most.in_flight {
            return Err(ShedReason::InFlight);
        }
        if held.saturating_add(bytes) > most.bytes {
            return Err(ShedReason::Bytes);
        }
        Ok(admitted)
    }
}

#[derive(Clone, Copy)]
struct Most {
    in_flight: usize,
    bytes: usize,
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
{
    type Response = Reply;
    type Error = CallError;
    type Future = Gated<Touching<S::Future, Keep<Admitted>>, CallError>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, B>) -> Self::Future {
        let class = arrival.operation.map_or(TrafficClass::Llm, Operation::class);
        let declared = arrival.head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let most = most(&arrival.pinned, class);
        match self.params.gate.enter(declared.unwrap_or(UNDECLARED_BYTES).min(most.bytes), most) {
            Err(reason) => {
                self.params.metrics.shed(class, reason);
                Gated::shut(CallError::Shed { what: reason.label() })
            }
            Ok(admitted) => Gated::open(Touching::new(self.inner.call(arrival), Keep(admitted))),
        }
    }
}

/// A tenth is reserved for risk, and at least one place where there is more than one.
fn most(pinned: &impl Pinned, class: TrafficClass) -> Most {
    let limits = pinned.limits();
    let share = |whole: usize| match class {
        TrafficClass::Risk => whole,
        TrafficClass::Llm => whole - (whole / 10).max(usize::from(whole > 1)),
    };
    Most { in_flight: share(limits.in_flight), bytes: share(limits.in_flight_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f35_the_last_tenth_is_kept_for_payments() {
        let gate = Arc::new(Gate::default());
        let llm = Most { in_flight: 9, bytes: 900 };
        let risk = Most { in_flight: 10, bytes: 1000 };
        let held: Vec<_> = (0..9).map(|_| gate.enter(10, llm).ok().unwrap()).collect();
        assert_eq!(gate.enter(10, llm).err(), Some(ShedReason::InFlight));
        assert!(gate.enter(10, risk).is_ok());
        drop(held);
        assert_eq!((gate.in_flight(), gate.bytes.load(Ordering::Acquire)), (0, 0));
    }

    #[test]
    fn a_body_that_does_not_fit_is_shed_and_leaves_nothing_behind() {
        let gate = Arc::new(Gate::default());
        let most = Most { in_flight: 9, bytes: 100 };
        assert_eq!(gate.enter(101, most).err(), Some(ShedReason::Bytes));
        assert_eq!((gate.in_flight(), gate.bytes.load(Ordering::Acquire)), (0, 0));
    }
}
