//! Spread for waits, so that those who were turned away together do not come back together.
//!
//! A wait of our own choosing is made longer, never shorter: whoever named it meant at least that. A wait that somebody
//! else named exactly (a provider's `Retry-After`) is not for this. The numbers need to differ, not to be secret.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A row of numbers that anybody may take the next one of.
#[derive(Debug)]
pub struct Jitter(AtomicU64);

impl Jitter {
    /// The same numbers for the same `seed`.
    pub const fn seeded(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// This process's own, another one in each.
    pub fn of_process() -> &'static Self {
        static PROCESS: OnceLock<Jitter> = OnceLock::new();
        PROCESS.get_or_init(|| Self::seeded(RandomState::new().hash_one(std::process::id())))
    }

    /// `span` and up to a quarter more.
    pub fn longer(&self, span: Duration) -> Duration {
        let quarter = u64::try_from(span.as_micros() / 4).unwrap_or(u64::MAX);
        span.saturating_add(Duration::from_micros(self.below(quarter.saturating_add(1))))
    }

    /// At least `least` and less than `most`, in whole milliseconds; `least` if there is nothing between them.
    pub fn between(&self, least: Duration, most: Duration) -> Duration {
        let room = u64::try_from(most.saturating_sub(least).as_millis()).unwrap_or(u64::MAX);
        least.saturating_add(Duration::from_millis(self.below(room)))
    }

    fn below(&self, bound: u64) -> u64 {
        // The mixing of SplitMix64 (https://prng.di.unimi.it/splitmix64.c, 2026-11-23): one addition is all that is shared.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(bound).unwrap_or(0)
    }
}

/// `span` and up to a quarter more, by this process's own row.
pub fn longer(span: Duration) -> Duration {
    Jitter::of_process().longer(span)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_waits_and_another_one_others() {
        let waits = |seed| {
            let jitter = Jitter::seeded(seed);
            (0..50).map(|_| jitter.longer(Duration::from_secs(1))).collect::<Vec<_>>()
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
        assert!(waits(7).iter().collect::<HashSet<_>>().len() > 45, "they are spread");
        let (early, late) = (Duration::from_millis(1_060), Duration::from_millis(1_190));
        assert!(waits(7).iter().any(|wait| *wait < early) && waits(7).iter().any(|wait| *wait > late));
    }

    proptest! {
        #[test]
        fn a_wait_is_never_shorter_than_it_was_meant_to_be(seed in any::<u64>(), ms in 0_u64..10_000_000, more in 0_u64..10_000) {
            let (jitter, span) = (Jitter::seeded(seed), Duration::from_millis(ms));
            let wait = jitter.longer(span);
            prop_assert!(span <= wait && wait <= span + span / 4);
            let most = span + Duration::from_millis(more);
            let wait = jitter.between(span, most);
            prop_assert!(span <= wait && (wait < most || more == 0));
        }
    }
}
