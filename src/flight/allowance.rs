//! What one caller has used of its limits: requests in flight, and requests a minute by the generic cell rate algorithm.
//!
//! Lock-free: two atomics, touched once per request. Limits are passed in at each check, so a reload changes them at
//! once and the use carries over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What a caller is told of its own rate limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Requests a minute.
    pub limit: u32,
    /// Requests that may be sent at once now.
    pub remaining: u32,
    /// Until nothing of the limit is used.
    pub reset: Duration,
}

/// One caller's use.
#[derive(Debug)]
pub struct Allowance {
    start: Instant,
    in_flight: AtomicU32,
    /// Theoretical arrival time of the next request, in nanoseconds after `start`.
    next_due: AtomicU64,
}

/// One request in flight; gives its place back when dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Allowance>);

impl Allowance {
    /// Nothing used yet.
    pub fn new(start: Instant) -> Self {
        Self { start, in_flight: AtomicU32::new(0), next_due: AtomicU64::new(0) }
    }

    /// Takes a place in flight, `None` when `limit` are taken.
    pub fn enter(self: &Arc<Self>, limit: u32) -> Option<InFlight> {
        let taken = self.in_flight.fetch_add(1, Ordering::AcqRel);
        if taken >= limit {
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(InFlight(Arc::clone(self)))
    }

    /// How many are in flight now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Spends one request of `per_minute`. A quiet caller may send a burst of one second's worth, at least one.
    ///
    /// # Errors
    /// How long to wait until a request fits.
    pub fn spend(&self, now: Instant, per_minute: u32) -> Result<Room, Duration> {
        let interval = 60_000_000_000 / u64::from(per_minute.max(1));
        let burst = interval.max(1_000_000_000);
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let step = |due: u64| {
            let next = due.max(now) + interval;
            (next - now <= burst).then_some(next)
        };
        match self.next_due.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) {
            Ok(due) => {
                let used = (due.max(now) + interval).saturating_sub(now);
                let remaining = (burst.saturating_sub(used)) / interval;
                let remaining = u32::try_from(remaining).unwrap_or(u32::MAX);
                Ok(Room { limit: per_minute, remaining, reset: Duration::from_nanos(used) })
            }
            Err(due) => Err(Duration::from_nanos((due + interval).saturating_sub(now + burst))),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_place_in_flight_comes_back_when_its_holder_is_dropped() {
        let allowance = Arc::new(Allowance::new(Instant::now()));
        let held = allowance.enter(1);
        assert!(held.is_some());
        assert!(allowance.enter(1).is_none());
        drop(held);
        assert!(allowance.enter(1).is_some());
        assert_eq!(allowance.in_flight(), 0);
    }

    #[test]
    fn the_wait_that_is_told_is_the_wait_that_is_needed() {
        let start = Instant::now();
        let allowance = Allowance::new(start);
        let room = Room { limit: 60, remaining: 0, reset: Duration::from_secs(1) };
        assert_eq!(allowance.spend(start, 60), Ok(room));
        let wait = allowance.spend(start, 60).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        assert_eq!(allowance.spend(start + wait, 60), Ok(room));
    }

    proptest! {
        #[test]
        fn no_window_ever_admits_more_than_rate_and_burst(per_minute in 1u32..6000, gaps in prop::collection::vec(0u64..200_000_000, 1..200)) {
            let start = Instant::now();
            let allowance = Allowance::new(start);
            let (mut at, mut admitted) = (0u64, 0u64);
            for gap in gaps {
                at += gap;
                admitted += u64::from(allowance.spend(start + Duration::from_nanos(at), per_minute).is_ok());
            }
            let interval = 60_000_000_000 / u64::from(per_minute);
            let most = (at + interval.max(1_000_000_000)) / interval;
            prop_assert!(admitted <= most, "{admitted} > {most}");
        }
    }
}
