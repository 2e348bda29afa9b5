//! Limits that several upstreams share: requests in flight to one provider, and the pause a quota group was asked for.
//!
//! Both refuse and never queue: a queue in front of a full provider is latency in disguise.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::flight::shares::{Shares, Standing};
use crate::upstream::concurrency::{Bounds, Concurrency, Ended};

/// Requests in flight to one provider, and whose they are.
#[derive(Debug, Default)]
pub struct Bulkhead {
    taken: AtomicU32,
    shares: Shares,
}

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
pub struct Place {
    bulkhead: Arc<Bulkhead>,
    seat: u8,
}

impl Bulkhead {
    /// Takes a place. `None` if what the class may have of `limit` is taken, or if the rest is nearly taken and the caller
    /// has its share of it: it is noted then that it wants more.
    pub fn enter(self: &Arc<Self>, limit: u32, whose: Standing, now: Instant) -> Option<Place> {
        let room = whose.class.share_of_provider(limit);
        let taken = self.taken.fetch_add(1, Ordering::AcqRel);
        let held = self.shares.add(whose.seat, 1);
        let place = Place { bulkhead: Arc::clone(self), seat: whose.seat };
        if taken < Shares::crowded(room) {
            return Some(place);
        }
        let fair = !self.shares.has_its_part(whose.seat, held, room, now);
        (taken < room && fair).then_some(place)
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }
}

impl Place {
    /// How many places of its bulkhead are taken, this one included.
    pub fn taken(&self) -> u32 {
        self.bulkhead.taken()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bulkhead.taken.fetch_sub(1, Ordering::AcqRel);
        self.bulkhead.shares.sub(self.seat, 1);
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
        let enter = || bulkhead.enter(1, Standing::default(), Instant::now());
        let place = enter();
        assert!(place.is_some() && enter().is_none());
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
