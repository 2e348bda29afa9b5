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
    use crate::domain::overload::Class;

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
    fn row_35_a_class_leaves_some_of_a_provider_to_those_above_it() {
        let bulkhead = Arc::new(Bulkhead::default());
        let enter = |class| bulkhead.enter(20, Standing { class, seat: 1 }, Instant::now());
        let mut held = Vec::new();
        for (class, places) in [(Class::Batch, 14), (Class::Low, 16), (Class::Normal, 20)] {
            while let Some(place) = enter(class) {
                held.push(place);
            }
            assert_eq!(held.len(), places, "{class:?}");
        }
    }

    /// Six simulated seconds at a provider of 20 places and 200 ms, of which the first does not count: one caller asks every
    /// millisecond, the other every `gap` ms. How many of each were served, and how many the other asked for.
    fn rivals(gap: u64) -> (u32, u32, u32) {
        let (bulkhead, start) = (Arc::new(Bulkhead::default()), Instant::now());
        let mut held = std::collections::VecDeque::new();
        let (mut greedy, mut modest, mut wanted) = (0, 0, 0);
        for ms in 0..6_000u64 {
            let now = start + Duration::from_millis(ms);
            while held.front().is_some_and(|(ends, _)| *ends <= ms) {
                held.pop_front();
            }
            let measured = u32::from(ms >= 1_000);
            let ask = |seat| bulkhead.enter(20, Standing { class: Class::Normal, seat }, now);
            if let Some(place) = ask(1) {
                greedy += measured;
                held.push_back((ms + 200, place));
            }
            if ms % gap == 0 {
                wanted += measured;
                if let Some(place) = ask(2) {
                    modest += measured;
                    held.push_back((ms + 200, place));
                }
            }
        }
        (greedy, modest, wanted)
    }

    #[test]
    fn row_36_one_that_asks_ten_times_as_often_does_not_starve_another() {
        // 100 a second are possible: 500 in the five seconds that count. The other asks for 10, 20, 40 and 100 a second.
        for (gap, least) in [(100, 1.0), (50, 0.95), (25, 0.9), (10, 0.45)] {
            let (greedy, modest, wanted) = rivals(gap);
            assert!(f64::from(modest) >= f64::from(wanted) * least, "every {gap} ms: {modest} of {wanted}");
            assert!(greedy + modest >= 450, "every {gap} ms: {} of 500", greedy + modest);
        }
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
