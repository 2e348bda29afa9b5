//! Limits that several upstreams share: requests in flight to one provider, and the pause a quota group was asked for.
//!
//! Both refuse: a queue in front of a full provider is latency in disguise. Who has nobody else to ask may wait for a place
//! for a short, bounded time, and no more of them than there are places.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::flight::shares::{Asking, Shares, Standing};
use crate::upstream::concurrency::{Bounds, Concurrency, Ended};

/// How often one that waits for a place looks by itself: a place that was freed may have gone to somebody it did not suit.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Requests in flight to one provider, and whose they are.
#[derive(Debug, Default)]
pub struct Bulkhead {
    taken: AtomicU32,
    shares: Shares,
    waiting: AtomicU32,
    freed: Notify,
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
    /// Takes a place. `None` if what the class may have of `limit` is taken, or if the rest is kept for callers with less:
    /// it is noted then that it wants more.
    pub fn enter(self: &Arc<Self>, limit: u32, whose: Standing, now: Instant) -> Option<Place> {
        let room = whose.class.share_of_provider(limit);
        let taken = self.taken.fetch_add(1, Ordering::AcqRel);
        let held = self.shares.add(whose.seat, 1);
        let fair = || self.shares.may_have(&Asking { seat: whose.seat, held, taken, room, now });
        if taken < Shares::crowded(room) || fair() {
            return Some(Place { bulkhead: Arc::clone(self), seat: whose.seat });
        }
        self.leave(whose.seat);
        None
    }

    fn leave(&self, seat: u8) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
        self.shares.sub(seat, 1);
    }

    /// As [`Bulkhead::enter`], and waits at most `patience` for a place, the longest waiting first. `None` as well, and at
    /// once, if as many wait as there are places: the last of them would wait in vain.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue.
    pub async fn wait(self: Arc<Self>, limit: u32, whose: Standing, patience: Duration) -> Option<Place> {
        let until = Instant::now() + patience;
        let queue = Queueing::behind(&self.waiting);
        if queue.before >= limit {
            return None;
        }
        let mut first = queue.before == 0;
        loop {
            // Registered before looking: what is freed in between is not missed.
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            let now = Instant::now();
            if first && let Some(place) = self.enter(limit, whose, now) {
                return Some(place);
            }
            first = true;
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return None;
            }
            let _ = timeout(left.min(LOOK_AGAIN), freed).await;
        }
    }

    /// True if somebody waits for a place.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }
}

/// One of those who wait.
struct Queueing<'b> {
    waiting: &'b AtomicU32,
    before: u32,
}

impl<'b> Queueing<'b> {
    fn behind(waiting: &'b AtomicU32) -> Self {
        Self { waiting, before: waiting.fetch_add(1, Ordering::AcqRel) }
    }
}

impl Drop for Queueing<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
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
        self.bulkhead.leave(self.seat);
        if self.bulkhead.is_awaited() {
            self.bulkhead.freed.notify_one();
        }
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

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_place_get_it_in_the_order_they_came() {
        let bulkhead = Arc::new(Bulkhead::default());
        let mut held: Vec<_> =
            (0..2).map(|_| bulkhead.enter(2, Standing::default(), Instant::now()).unwrap()).collect();
        let begun = Instant::now();
        let wait = || Arc::clone(&bulkhead).wait(2, Standing::default(), Duration::from_millis(200));
        let (first, second) = (tokio::spawn(wait()), tokio::spawn(wait()));
        tokio::task::yield_now().await;
        assert!(wait().await.is_none() && begun.elapsed().is_zero(), "no more wait than there are places");
        tokio::time::sleep(Duration::from_millis(50)).await;
        held.pop();
        let first = first.await.unwrap();
        assert!(first.is_some() && !second.is_finished() && begun.elapsed() == Duration::from_millis(50));
        assert!(second.await.unwrap().is_none(), "nobody left in time");
        assert_eq!(begun.elapsed(), Duration::from_millis(200));
        drop((first, held));
        assert_eq!((bulkhead.taken(), bulkhead.is_awaited()), (0, false));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_no_longer_waits_leaves_the_place_to_the_next() {
        let bulkhead = Arc::new(Bulkhead::default());
        let held = bulkhead.enter(2, Standing::default(), Instant::now());
        let other = bulkhead.enter(2, Standing::default(), Instant::now());
        let wait = || Arc::clone(&bulkhead).wait(2, Standing::default(), Duration::from_millis(200));
        let (gone, next) = (tokio::spawn(wait()), tokio::spawn(wait()));
        tokio::task::yield_now().await;
        drop(held);
        gone.abort();
        assert!(next.await.unwrap().is_some());
        drop(other);
        assert_eq!((bulkhead.taken(), bulkhead.is_awaited()), (0, false));
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

    /// Six simulated seconds at a provider of 20 places, of which the first does not count: one caller asks every
    /// millisecond, the other every `gap` ms or never. How long a call takes is by its number. How many of each were
    /// served, and how many the other asked for.
    fn rivals(gap: Option<u64>, takes: impl Fn(u64) -> u64) -> (u32, u32, u32) {
        let (bulkhead, start) = (Arc::new(Bulkhead::default()), Instant::now());
        let mut held = Vec::new();
        let (mut greedy, mut modest, mut wanted, mut number) = (0, 0, 0, 0);
        for ms in 0..6_000u64 {
            let now = start + Duration::from_millis(ms);
            held.retain(|(ends, _)| *ends > ms);
            let measured = u32::from(ms >= 1_000);
            let mut ask = |seat| {
                let place = bulkhead.enter(20, Standing { class: Class::Normal, seat }, now);
                let served = u32::from(place.is_some()) * measured;
                number += u64::from(place.is_some());
                held.extend(place.map(|place| (ms + takes(number), place)));
                served
            };
            greedy += ask(1);
            if gap.is_some_and(|gap| ms % gap == 0) {
                wanted += measured;
                modest += ask(2);
            }
        }
        (greedy, modest, wanted)
    }

    #[test]
    fn row_36_one_that_asks_ten_times_as_often_does_not_starve_another() {
        // 100 a second are possible: 500 in the five seconds that count. The other asks for 10, 20, 40 and 100 a second.
        for (gap, least) in [(100, 1.0), (50, 0.95), (25, 0.9), (10, 0.45)] {
            let (greedy, modest, wanted) = rivals(Some(gap), |_| 200);
            assert!(f64::from(modest) >= f64::from(wanted) * least, "every {gap} ms: {modest} of {wanted}");
            assert!(greedy + modest >= 450, "every {gap} ms: {} of 500", greedy + modest);
        }
    }

    #[test]
    fn row_34_no_more_places_stand_empty_for_others_than_they_have_shown_to_need() {
        // 200 to 205 ms, as answers do not end in step: 494 in the five seconds that count.
        let takes = |number: u64| 200 + number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 6;
        let (greedy, ..) = rivals(None, takes);
        assert!(greedy >= 485, "one alone has all: {greedy} of 494");
        // A tenth that is kept whatever they need leaves 445 of them.
        for (gap, least, all) in [(200, 0.98, 465), (100, 0.98, 460), (50, 0.95, 460), (25, 0.9, 450), (10, 0.45, 480)]
        {
            let (greedy, modest, wanted) = rivals(Some(gap), takes);
            assert!(f64::from(modest) >= f64::from(wanted) * least, "every {gap} ms: {modest} of {wanted}");
            assert!(greedy + modest >= all, "every {gap} ms: {} of 494", greedy + modest);
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
