//! Numbers that are counted on one core and read on another.
//!
//! A shared histogram costs 148 ns an observation as soon as two cores use it, its own cell 2 ns (PERFORMANCE.md). So
//! every number exists once per core, in *lanes*: all numbers of one core lie together, and a lane shares no cache line
//! with the next. Writers touch only the lane of [`worker::index`]; a scrape sums the lanes. Every operation is relaxed:
//! the numbers guard nothing, and a scrape may be an instant behind.
//!
//! It deliberately knows nothing about names or labels; that is `families.rs`.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::catalog::Buckets;
use crate::domain::worker;

/// Numbers in one cache line pair; x86 fetches lines in pairs.
const PER_LINE: usize = 16;
/// Numbers a lane of one block holds. A block that cannot hold the next metric is left behind, so it should be larger
/// than any histogram.
const PER_BLOCK: usize = 8 * PER_LINE;

#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; PER_LINE]);

/// `lanes` × [`PER_BLOCK`] numbers.
struct Block {
    lanes: usize,
    lines: Box<[Line]>,
}

impl Block {
    const LINES: usize = PER_BLOCK / PER_LINE;

    fn new(lanes: usize) -> Self {
        Self { lanes, lines: (0..lanes * Self::LINES).map(|_| Line::default()).collect() }
    }

    fn cell(&self, lane: usize, slot: usize) -> Option<&AtomicU64> {
        self.lines.get(lane * Self::LINES + slot / PER_LINE)?.0.get(slot % PER_LINE)
    }

    fn add(&self, slot: usize, amount: u64) {
        let index = worker::index();
        let lane = if index < self.lanes { index } else { index % self.lanes };
        if let Some(cell) = self.cell(lane, slot) {
            cell.fetch_add(amount, Relaxed);
        }
    }

    fn sum(&self, slot: usize) -> u64 {
        (0..self.lanes)
            .filter_map(|lane| self.cell(lane, slot))
            .fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// Hands out cells. Used at configuration time only.
pub struct Arena {
    lanes: usize,
    /// The block being filled and the next free slot in it. A lock, because handles are made by whichever thread builds
    /// a configuration, a few times a minute; no request ever takes it.
    current: Mutex<(Arc<Block>, usize)>,
}

impl Arena {
    /// Cells for this many cores, at least one and at most [`worker::MOST_WORKERS`]. Workers beyond share lanes, which
    /// is slower but loses nothing.
    pub fn new(lanes: usize) -> Self {
        let lanes = lanes.clamp(1, worker::MOST_WORKERS);
        Self { lanes, current: Mutex::new((Arc::new(Block::new(lanes)), 0)) }
    }

    fn slots(&self, wanted: usize) -> (Arc<Block>, usize) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1 + wanted > PER_BLOCK {
            *current = (Arc::new(Block::new(self.lanes)), 0);
        }
        let first = current.1;
        current.1 += wanted;
        (Arc::clone(&current.0), first)
    }

    /// A counter at zero.
    pub fn counter(&self) -> Counter {
        let (block, slot) = self.slots(1);
        Counter { block, slot }
    }

    /// A gauge at zero.
    pub fn gauge(&self) -> Gauge {
        let (block, slot) = self.slots(1);
        Gauge { block, slot }
    }

    /// An empty histogram. Bounds beyond the hundredth are not used.
    pub fn histogram(&self, buckets: &'static Buckets) -> Histogram {
        let bounds = buckets.bounds.get(..100).unwrap_or(buckets.bounds);
        // One slot for each bound, one for what is above the last, one for the sum.
        let (block, first) = self.slots(bounds.len() + 2);
        Histogram { block, first, bounds, scale: buckets.scale }
    }
}

/// A number that only grows. Clones count into the same cells.
#[derive(Clone)]
pub struct Counter {
    block: Arc<Block>,
    slot: usize,
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.block.add(self.slot, amount);
    }

    /// The sum over all cores.
    pub fn value(&self) -> u64 {
        self.block.sum(self.slot)
    }
}

/// A number that goes up and down. What one core adds another may subtract.
#[derive(Clone)]
pub struct Gauge {
    block: Arc<Block>,
    slot: usize,
}

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.block.add(self.slot, 1);
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.block.add(self.slot, u64::MAX);
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64) {
        self.block.add(self.slot, amount.cast_unsigned());
    }

    /// Adds one until the guard is dropped.
    pub fn hold(&self) -> Held {
        self.inc();
        Held(self.clone())
    }

    /// The sum over all cores.
    pub fn value(&self) -> i64 {
        self.block.sum(self.slot).cast_signed()
    }
}

/// One unit of a [`Gauge`], given back on drop.
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A number that is set as a whole: a state or a time. One cell for all cores, because sets are rare and the last wins.
#[derive(Clone, Default)]
pub struct Level(Arc<AtomicI64>);

impl Level {
    /// Replaces the number.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The number last set.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Counts observations by size.
#[derive(Clone)]
pub struct Histogram {
    block: Arc<Block>,
    first: usize,
    bounds: &'static [u64],
    scale: u32,
}

/// What a histogram held at one moment, in exported units.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// Upper bound and how many were at most that large.
    pub cumulative: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Histogram {
    /// Observes a duration; for histograms whose unit is seconds.
    pub fn observe(&self, duration: Duration) {
        self.observe_units(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Observes a number in the histogram's own integer unit (nanoseconds, millionths, tokens).
    pub fn observe_units(&self, units: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < units);
        self.block.add(self.first + bucket, 1);
        self.block.add(self.first + self.bounds.len() + 1, units);
    }

    /// The sum over all cores.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus numbers are floats; nothing is decided by them")]
    pub fn value(&self) -> Observed {
        let scale = f64::from(self.scale);
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(self.bounds.len());
        for (index, &bound) in self.bounds.iter().enumerate() {
            count += self.block.sum(self.first + index);
            cumulative.push((bound as f64 / scale, count));
        }
        count += self.block.sum(self.first + self.bounds.len());
        let sum = self.block.sum(self.first + self.bounds.len() + 1) as f64 / scale;
        Observed { cumulative, count, sum }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    static STEPS: Buckets = Buckets { bounds: &[10, 20, 30], scale: 10 };

    #[test]
    fn what_many_cores_count_is_summed() {
        let arena = Arena::new(4);
        let (counter, gauge) = (arena.counter(), arena.gauge());
        thread::scope(|scope| {
            for index in 0..8 {
                let (counter, gauge) = (&counter, &gauge);
                scope.spawn(move || {
                    worker::enter(index);
                    (0..1_000).for_each(|_| counter.inc());
                    if index % 2 == 0 { gauge.add(5) } else { gauge.dec() }
                });
            }
        });
        assert_eq!((counter.value(), gauge.value()), (8_000, 4 * 5 - 4));
    }

    #[test]
    fn an_observation_on_a_bound_belongs_below_it() {
        let histogram = Arena::new(1).histogram(&STEPS);
        for units in [0, 10, 11, 30, 31, 1_000] {
            histogram.observe_units(units);
        }
        let observed = histogram.value();
        assert_eq!(observed.cumulative, [(1.0, 2), (2.0, 3), (3.0, 4)]);
        assert_eq!((observed.count, observed.sum), (6, 108.2));
    }

    #[test]
    fn a_held_unit_is_given_back_when_dropped() {
        let gauge = Arena::new(2).gauge();
        let held = gauge.hold();
        assert_eq!(gauge.value(), 1);
        drop(held);
        assert_eq!(gauge.value(), 0);
    }

    #[test]
    fn neighbours_do_not_share_cells() {
        let arena = Arena::new(2);
        let counters: Vec<_> = (0..3 * PER_BLOCK).map(|_| arena.counter()).collect();
        let histogram = arena.histogram(&STEPS);
        counters.iter().zip(0u64..).for_each(|(counter, n)| counter.add(n));
        histogram.observe_units(1);
        assert!(counters.iter().zip(0u64..).all(|(counter, n)| counter.value() == n));
    }

    proptest! {
        #[test]
        fn every_observation_is_counted_once(units in prop::collection::vec(0u64..50, 0..100)) {
            let histogram = Arena::new(1).histogram(&STEPS);
            units.iter().for_each(|&units| histogram.observe_units(units));
            let observed = histogram.value();
            prop_assert_eq!(observed.count, units.len() as u64);
            for (bound, count) in observed.cumulative {
                prop_assert_eq!(count, units.iter().filter(|&&units| units as f64 <= bound * 10.0).count() as u64);
            }
        }
    }
}
