//! The caller's own limits: requests a minute, requests in flight. Before the body is read, so that a caller over its
//! limit never makes us buffer one.

use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::jitter;
use crate::flight::allowance::{InFlight, Room};
use crate::flight::arrival::{Arrival, LiveCaller};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::trail::Trail;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Keep, Touching};

/// How soon a caller over its in-flight limit may find room.
const SOON: Duration = Duration::from_secs(1);

/// Makes [`Throttle`].
#[derive(Clone, Copy)]
pub struct ThrottleLayer;

/// Holds callers to their limits.
#[derive(Clone)]
pub struct Throttle<S>(S);

impl<S> Layer<S> for ThrottleLayer {
    type Service = Throttle<S>;

    fn layer(&self, inner: S) -> Throttle<S> {
        Throttle(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Throttle<S>
where
    S: Service<Arrival<P, B>, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Gated<Touching<S::Future, Keep<Option<InFlight>>>, CallError>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, B>) -> Self::Future {
        match arrival.caller.as_deref().map(|caller| take(caller, &arrival.trail)).transpose() {
            Err(error) => Gated::shut(error),
            Ok(place) => Gated::open(Touching::new(self.0.call(arrival), Keep(place))),
        }
    }
}

fn take(caller: &LiveCaller, trail: &Trail) -> Result<InFlight, CallError> {
    // Without a limit they are counted all the same: the status page shows them, and a limit may come with a reload.
    let limit = caller.caller.in_flight.unwrap_or(u32::MAX);
    let full = || CallError::Throttled { what: "requests in flight", retry_after: jitter::longer(SOON) };
    let place = caller.allowance.enter(limit).ok_or_else(full)?;
    if let Some(per_minute) = caller.caller.requests_per_minute {
        let spent = caller.allowance.spend(Instant::now(), per_minute);
        let none = |reset| Room { limit: per_minute, remaining: 0, reset };
        trail.lock().room = Some(spent.unwrap_or_else(none));
        let late = |retry_after| CallError::Throttled {
            what: "requests per minute",
            retry_after: jitter::longer(retry_after),
        };
        spent.map_err(late)?;
    }
    if let Some((quota, per_minute)) = caller.quota.as_ref().zip(caller.caller.tokens_per_minute) {
        // They are taken once the call is known and no stored answer serves it; until then this is what there is.
        trail.lock().tokens = Some(quota.room(per_minute));
    }
    Ok(place)
}

#[cfg(test)]
mod tests;
