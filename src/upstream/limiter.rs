//! Limits that several upstreams share: requests in flight to one provider, and the pause a quota group was asked for.
//!
//! Both refuse and never queue: a queue in front of a full provider is latency in disguise.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::concurrency::{Bounds, Concurrency, Ended};

/// Requests in flight to one provider.
#[derive(Debug, Default)]
pub struct Bulkhead(AtomicU32);

/// A bulkhead's limit that moves with what becomes of requests; shared by all upstreams of a provider.
#[derive(Debug, Default)]
pub struct Adaptive {
    /// A `std` mutex held for a few sums, never across an await.
    learned: Mutex<Concurrency>,
}

impl Adaptive {
    /// How many may be in flight now.
    pub fn limit(&self, bounds: Bounds) -> u32 {
        self.learned().limit(bounds)
    }

    /// Learns from a request that ended just now.
    pub fn learn(&self, request: &Ended, bounds: Bounds) {
        self.learned().learn(Instant::now(), request, bounds);
    }

    fn learned(&self) -> MutexGuard<'_, Concurrency> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a bulkhead; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Bulkhead>);

impl Bulkhead {
    /// Takes a place, `None` if `limit` are taken.
    pub fn enter(self: &Arc<Self>, limit: u32) -> Option<Place> {
        if self.0.fetch_add(1, Ordering::AcqRel) >= limit {
            self.0.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place(Arc::clone(self)))
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

impl Place {
    /// How many places of its bulkhead are taken, this one included.
    pub fn taken(&self) -> u32 {
        self.0.taken()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Until when a quota group asked to be left alone.
#[derive(Debug)]
pub struct Pause {
    start: Instant,
    /// Nanoseconds after `start`: rounding could only ever end a pause early.
    until_ns: AtomicU64,
}

impl Pause {
    /// Not paused.
    pub fn new(start: Instant) -> Self {
        Self { start, until_ns: AtomicU64::new(0) }
    }

    /// Pauses the group for `span` from `now`; an earlier, longer pause stays.
    pub fn pause(&self, now: Instant, span: Duration) {
        let until = now.saturating_duration_since(self.start) + span;
        self.until_ns.fetch_max(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// How long it is still paused, `None` if it is not.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let until = Duration::from_nanos(self.until_ns.load(Ordering::Acquire));
        let left = until.saturating_sub(now.saturating_duration_since(self.start));
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bulkhead_refuses_and_a_dropped_place_is_free_again() {
        let bulkhead = Arc::new(Bulkhead::default());
        let place = bulkhead.enter(1);
        assert!(place.is_some() && bulkhead.enter(1).is_none());
        drop(place);
        assert_eq!(bulkhead.taken(), 0);
    }

    #[test]
    fn f9_a_pause_lasts_exactly_as_long_as_asked_and_is_never_shortened() {
        let now = Instant::now();
        let pause = Pause::new(now);
        pause.pause(now, Duration::from_secs(2));
        pause.pause(now, Duration::from_secs(1));
        assert_eq!(pause.left(now + Duration::from_millis(1_999)), Some(Duration::from_millis(1)));
        assert_eq!(pause.left(now + Duration::from_secs(2)), None);
    }
}
