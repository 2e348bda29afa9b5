//! How soon an upstream has lately shown its first content: a moving average that forgets.
//!
//! Recent answers weigh more, a failure counts as slowness, and an average that nothing was added to fades: who was slow
//! once is tried again, a little later, by the next call and not by all of them. Whole answers and streams are kept apart,
//! since a whole answer shows nothing until it is done. Pure but for its lock; the clock is passed in.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After this long the past has lost two thirds of its weight.
const MEMORY: Duration = Duration::from_secs(10);
/// However quickly samples come, each weighs at least this much.
const LEAST_WEIGHT: f64 = 0.1;
/// A failure says more than an answer does.
const FAILURE_WEIGHT: f64 = 0.5;
/// What a failure counts as, at least.
const FAILURE: Duration = Duration::from_secs(1);
/// No average is worse: from here it takes five minutes to fade to a hundredth.
const WORST: Duration = Duration::from_secs(60);
/// An average that nothing is added to loses two thirds of itself in this time.
const FADING: Duration = Duration::from_secs(60);

/// What an attempt is to bring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// An answer in one piece.
    Whole,
    /// A stream, of which the first content counts.
    Streamed,
}

impl Form {
    /// The form of a call with this `stream` flag.
    pub fn of(stream: bool) -> Self {
        if stream { Self::Streamed } else { Self::Whole }
    }
}

/// One upstream's averages, and who waits for it.
#[derive(Debug, Default)]
pub struct Latency {
    whole: Average,
    streamed: Average,
}

#[derive(Debug, Default)]
struct Average {
    /// A `std` mutex held for a few multiplications, never across an await.
    known: Mutex<Option<Known>>,
    waiting: AtomicU32,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    micros: f64,
    at: Instant,
}

/// An attempt that has shown nothing yet; it stops counting when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    latency: Arc<Latency>,
    form: Form,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.latency.average(self.form).waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Waiting {
    /// It showed content after `took`.
    pub fn answered(self, now: Instant, took: Duration) {
        self.latency.average(self.form).add(now, took, LEAST_WEIGHT);
    }

    /// It failed after `took`: slower than it was, whatever that is.
    pub fn failed(self, now: Instant, took: Duration) {
        let average = self.latency.average(self.form);
        let doubled = average.read(now).map_or(FAILURE, |before| before * 2);
        average.add(now, took.max(doubled).max(FAILURE), FAILURE_WEIGHT);
    }

    /// Nobody waited any longer after `took`: it would have taken more, so a shorter time says nothing.
    pub fn given_up(self, now: Instant, took: Duration) {
        let average = self.latency.average(self.form);
        if average.read(now).is_some_and(|before| took > before) {
            average.add(now, took, LEAST_WEIGHT);
        }
    }
}

impl Latency {
    /// An attempt begins.
    pub fn begin(self: &Arc<Self>, form: Form) -> Waiting {
        self.average(form).waiting.fetch_add(1, Ordering::AcqRel);
        Waiting { latency: Arc::clone(self), form }
    }

    /// What to expect, `None` before the first sample.
    pub fn expected(&self, now: Instant, form: Form) -> Option<Duration> {
        self.average(form).read(now)
    }

    /// Attempts that have shown nothing yet.
    pub fn waiting(&self, form: Form) -> u32 {
        self.average(form).waiting.load(Ordering::Acquire)
    }

    fn average(&self, form: Form) -> &Average {
        match form {
            Form::Whole => &self.whole,
            Form::Streamed => &self.streamed,
        }
    }
}

impl Average {
    fn read(&self, now: Instant) -> Option<Duration> {
        let known = (*self.known.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(Duration::from_secs_f64(known.faded(now) / 1e6))
    }

    fn add(&self, now: Instant, sample: Duration, least: f64) {
        let sample = sample.min(WORST).as_secs_f64() * 1e6;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = known.map_or(sample, |known| {
            let idle = now.saturating_duration_since(known.at).as_secs_f64();
            let weight = (1.0 - (-idle / MEMORY.as_secs_f64()).exp()).max(least);
            known.faded(now) * (1.0 - weight) + sample * weight
        });
        *known = Some(Known { micros, at: now });
    }
}

impl Known {
    fn faded(self, now: Instant) -> f64 {
        let idle = now.saturating_duration_since(self.at).as_secs_f64();
        self.micros * (-idle / FADING.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn fed(samples: &[u64], now: Instant) -> Arc<Latency> {
        let latency = Arc::new(Latency::default());
        for sample in samples {
            latency.begin(Form::Streamed).answered(now, MS * u32::try_from(*sample).unwrap());
        }
        latency
    }

    #[test]
    fn an_average_follows_its_samples_and_fades_when_there_are_none() {
        let now = Instant::now();
        let latency = fed(&[1_000; 5], now);
        assert_eq!(latency.expected(now, Form::Streamed), Some(1_000 * MS));
        assert_eq!(latency.expected(now, Form::Whole), None);
        let later = latency.expected(now + Duration::from_secs(300), Form::Streamed).unwrap();
        assert!(later < 10 * MS, "{later:?}");
        latency.begin(Form::Streamed).answered(now + Duration::from_secs(60), 100 * MS);
        let recovered = latency.expected(now + Duration::from_secs(60), Form::Streamed).unwrap();
        assert!(recovered < 110 * MS, "a minute later the new sample is nearly all: {recovered:?}");
    }

    #[test]
    fn failures_count_as_slowness_and_an_early_end_as_nothing() {
        let now = Instant::now();
        let latency = fed(&[100, 100], now);
        latency.begin(Form::Streamed).given_up(now, 50 * MS);
        assert_eq!(latency.expected(now, Form::Streamed), Some(100 * MS));
        latency.begin(Form::Streamed).given_up(now, 400 * MS);
        let outpaced = latency.expected(now, Form::Streamed).unwrap();
        assert!(outpaced > 100 * MS);
        latency.begin(Form::Streamed).failed(now, MS);
        assert!(latency.expected(now, Form::Streamed).unwrap() > 500 * MS, "quick failures are not fast answers");
    }

    #[test]
    fn who_waits_is_counted_until_it_is_dropped() {
        let latency = Arc::new(Latency::default());
        let (one, other) = (latency.begin(Form::Whole), latency.begin(Form::Whole));
        assert_eq!((latency.waiting(Form::Whole), latency.waiting(Form::Streamed)), (2, 0));
        drop(one);
        other.answered(Instant::now(), MS);
        assert_eq!(latency.waiting(Form::Whole), 0);
    }

    proptest! {
        #[test]
        fn an_average_stays_between_nothing_and_the_worst(steps in prop::collection::vec((0u64..100_000, 0u64..100_000, 0u8..3), 1..100)) {
            let (latency, mut now) = (Arc::new(Latency::default()), Instant::now());
            for (gap, took, kind) in steps {
                now += Duration::from_millis(gap);
                let waiting = latency.begin(Form::Whole);
                match kind {
                    0 => waiting.answered(now, took as u32 * MS),
                    1 => waiting.failed(now, took as u32 * MS),
                    _ => waiting.given_up(now, took as u32 * MS),
                }
                let expected = latency.expected(now, Form::Whole).unwrap_or_default();
                prop_assert!(expected <= WORST + MS);
            }
        }
    }
}
