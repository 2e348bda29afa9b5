//! How far a provider's clock is from ours, as its authentic answers tell.
//!
//! An answer was signed between the moment its request left and the moment it came back, so the middle of that time and
//! the signature's time differ by the skew, give or take half of it: of the recent answers the quickest one knows best.
//! Times we sign are always our own clock: a wrong clock is to be mended, not hidden. Nothing here assumes that a
//! wall clock goes evenly: answers that contradict the newest one are forgotten.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Answers remembered.
const MOST_SAMPLES: usize = 16;
/// An older answer says nothing about now.
const LIFE: Duration = Duration::from_secs(300);
/// What a clock may drift within [`LIFE`], and what a signature's whole milliseconds hide.
const SLACK_MS: i64 = 50;
/// From here on somebody should look: a tenth of what a signature is accepted within.
const WORTH_A_WARNING_MS: i64 = 30_000;
/// A warning is repeated when the skew has moved by this much.
const ANOTHER_WARNING_MS: i64 = 30_000;
/// Larger numbers are no clock: ten years.
const LARGEST_MS: i64 = 315_360_000_000;
/// How often the same thing is told.
const TOLD_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    skew_ms: i64,
    /// Half of the round trip.
    doubt_ms: i64,
}

/// What is known about the skew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// How far the provider's clock is ahead of ours, in milliseconds; negative if it is behind.
    pub skew_ms: i64,
    /// By how much that may be wrong, either way.
    pub doubt_ms: i64,
}

/// What somebody should be told about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remark {
    /// The clocks are far apart, or further than when it was last said.
    Apart(Measured),
    /// They are near each other again.
    Mended(Measured),
}

/// One provider's clock.
#[derive(Default)]
pub struct Skew {
    /// Held for a walk over a few samples, never across an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    samples: VecDeque<Sample>,
    /// The skew as it was last warned of.
    warned_ms: Option<i64>,
}

/// Something that is told once a minute at most, however often it happens.
#[derive(Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// True if it should be told now.
    pub fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY);
        if due {
            *told = Some(now);
        }
        due
    }
}

impl Skew {
    /// Takes note of an authentic answer: when the provider signed it, what our clock says now that it is here (both in
    /// milliseconds since 1970), and how long the exchange took.
    pub fn observe(&self, signed_ms: u64, here_ms: u64, round_trip: Duration) -> Option<Remark> {
        let now = Instant::now();
        let doubt_ms = i64::try_from(round_trip.as_millis() / 2).unwrap_or(LARGEST_MS).min(LARGEST_MS);
        let apart = i128::from(signed_ms) - i128::from(here_ms) + i128::from(doubt_ms);
        let skew_ms = i64::try_from(apart).unwrap_or(LARGEST_MS).clamp(-LARGEST_MS, LARGEST_MS);
        let sample = Sample { at: now, skew_ms, doubt_ms };
        let mut state = self.state();
        state.samples.retain(|old| {
            let agrees = (old.skew_ms - skew_ms).abs() <= old.doubt_ms + doubt_ms + SLACK_MS;
            agrees && now.saturating_duration_since(old.at) <= LIFE
        });
        while state.samples.len() >= MOST_SAMPLES {
            state.samples.pop_front();
        }
        state.samples.push_back(sample);
        state.remark(now)
    }

    /// The best estimate, `None` while no recent answer was authentic.
    pub fn measured(&self) -> Option<Measured> {
        self.state().best(Instant::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn best(&self, now: Instant) -> Option<Measured> {
        let recent = self.samples.iter().filter(|sample| now.saturating_duration_since(sample.at) <= LIFE);
        // The newest of equals: clocks drift.
        let best = recent.rev().min_by_key(|sample| sample.doubt_ms)?;
        Some(Measured { skew_ms: best.skew_ms, doubt_ms: best.doubt_ms })
    }

    /// Only what is certain counts: a slow answer alone warns of nothing.
    fn remark(&mut self, now: Instant) -> Option<Remark> {
        let measured = self.best(now)?;
        let at_least = measured.skew_ms.abs() - measured.doubt_ms;
        let moved = |warned: i64| (measured.skew_ms - warned).abs() >= ANOTHER_WARNING_MS;
        if at_least > WORTH_A_WARNING_MS {
            let news = self.warned_ms.is_none_or(moved);
            return news.then(|| {
                self.warned_ms = Some(measured.skew_ms);
                Remark::Apart(measured)
            });
        }
        let near = measured.skew_ms.abs() + measured.doubt_ms <= WORTH_A_WARNING_MS;
        self.warned_ms.take_if(|_| near).map(|_| Remark::Mended(measured))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: u64 = 1_796_083_140_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn c3_of_several_answers_the_quickest_one_is_believed() {
        let skew = Skew::default();
        assert_eq!(skew.measured(), None);
        // Signed 10 ms before it was here, after an exchange of 600: anything between -290 and 310 is possible.
        skew.observe(NOON - 10, NOON, ms(600));
        assert_eq!(skew.measured(), Some(Measured { skew_ms: 290, doubt_ms: 300 }));
        skew.observe(NOON + 95, NOON, ms(10));
        skew.observe(NOON + 50, NOON, ms(400));
        assert_eq!(skew.measured(), Some(Measured { skew_ms: 100, doubt_ms: 5 }));
    }

    #[tokio::test(start_paused = true)]
    async fn c3_a_clock_that_was_set_is_noticed_at_once_and_an_old_answer_says_nothing() {
        let skew = Skew::default();
        skew.observe(NOON, NOON, ms(2));
        skew.observe(NOON + 60_000, NOON, ms(40));
        assert_eq!(skew.measured().unwrap().skew_ms, 60_020);
        tokio::time::advance(LIFE + ms(1)).await;
        assert_eq!(skew.measured(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn c3_a_skew_of_more_than_half_a_minute_is_told_once_for_each_change() {
        let skew = Skew::default();
        let observe = |apart: i64| skew.observe(NOON.saturating_add_signed(apart), NOON, ms(0));
        let apart = |skew_ms| Some(Remark::Apart(Measured { skew_ms, doubt_ms: 0 }));
        assert_eq!(observe(30_000), None);
        assert_eq!(observe(30_001), apart(30_001));
        assert_eq!(observe(31_000), None);
        assert_eq!(observe(-70_000), apart(-70_000));
        assert_eq!(observe(-70_010), None);
        assert_eq!(observe(20), Some(Remark::Mended(Measured { skew_ms: 20, doubt_ms: 0 })));
        assert_eq!(observe(0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_alone_warns_of_nothing() {
        assert_eq!(Skew::default().observe(NOON, NOON, ms(90_000)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_thing_is_told_once_a_minute() {
        let told = Seldom::default();
        assert!(told.is_due() && !told.is_due());
        tokio::time::advance(TOLD_EVERY).await;
        assert!(told.is_due());
    }

    proptest! {
        /// Whatever is heard, it is bounded, and right if the answers are.
        #[test]
        fn c3_the_true_skew_is_within_the_doubt(apart in -400_000i64..400_000, trips in prop::collection::vec((0u64..5_000, 0u64..=100), 1..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let skew = Skew::default();
                for (trip, share) in trips {
                    // Signed somewhere on its way.
                    let signed = NOON - trip + trip * share / 100;
                    skew.observe(signed.saturating_add_signed(apart), NOON, ms(trip));
                    let measured = skew.measured().unwrap();
                    assert!((measured.skew_ms - apart).abs() <= measured.doubt_ms + SLACK_MS, "{measured:?}");
                }
                assert!(skew.state().samples.len() <= MOST_SAMPLES);
            });
        }

        #[test]
        fn no_number_makes_it_overflow(signed: u64, here: u64, trip: u64) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let skew = Skew::default();
                skew.observe(signed, here, ms(trip));
                skew.observe(here, signed, ms(trip));
            });
        }
    }
}
