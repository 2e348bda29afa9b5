//! Numbers that look random and are the same every time: one small generator, keyed by what it is asked for.
//!
//! Each thing that is drawn (a customer, one customer's day, one payment's device) has dice of its own, so any part of the
//! simulation can be made alone and in any order. It is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
//! number generators", 2014, <https://doi.org/10.1145/2714064.2660195>, read 2026-11-23): good enough for a simulation and
//! predictable by design, so never a source of keys or nonces. Draws that need a logarithm or a cosine depend on the
//! platform's mathematics in the last bit; everything else is exact.

use std::f64::consts::TAU;

/// What the dice are for: equal keys under different purposes have nothing to do with each other.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Customer = 1,
    Terminal,
    Day,
    CompromisedTerminals,
    CompromisedCustomers,
    Burst,
    Evidence,
    Disguise,
    Subject,
    Outcome,
    Merchant,
}

/// A stream of draws.
pub(super) struct Dice {
    state: u64,
}

/// The odd number nearest to 2^64 over the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Dice {
    /// Those of this purpose and key.
    pub(super) fn new(seed: u64, purpose: Purpose, key: [u32; 3]) -> Self {
        let words = [purpose as u64].into_iter().chain(key.into_iter().map(u64::from));
        let state = words.fold(mixed(seed.wrapping_add(STEP)), |state, word| mixed((state ^ word).wrapping_add(STEP)));
        Self { state }
    }

    pub(super) fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mixed(self.state)
    }

    /// At least 0 and below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a float exactly")]
    pub(super) fn share(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }

    /// Below `limit`; 0 if that is 0.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        ((self.word() >> 32).wrapping_mul(u64::from(limit)) >> 32) as u32
    }

    /// True once in so many times.
    pub(super) fn once_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller's transformation).
    pub(super) fn normal(&mut self) -> f64 {
        // 1 - share is never zero, so the logarithm is finite.
        (-2.0 * (1.0 - self.share()).ln()).sqrt() * (TAU * self.share()).cos()
    }

    /// A Poisson count, given e to the power of minus its mean; at most 64, which no mean here comes near.
    pub(super) fn count(&mut self, none: f64) -> u32 {
        let mut product = self.share();
        let mut count = 0;
        while product > none && count < 64 {
            product *= self.share();
            count += 1;
        }
        count
    }

    /// `wanted` different numbers below `limit`, fewer if there are not so many.
    pub(super) fn some_below(&mut self, limit: u32, wanted: u32) -> Vec<u32> {
        let mut chosen: Vec<u32> = Vec::new();
        while chosen.len() < wanted.min(limit) as usize {
            let candidate = self.below(limit);
            if !chosen.contains(&candidate) {
                chosen.push(candidate);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(seed: u64) -> Dice {
        Dice::new(seed, Purpose::Day, [1, 2, 3])
    }

    #[test]
    fn equal_keys_give_equal_numbers_and_others_do_not() {
        let first = |mut dice: Dice| [dice.word(), dice.word()];
        assert_eq!(first(dice(1)), first(dice(1)));
        assert_ne!(first(dice(1)), first(dice(2)));
        assert_ne!(first(dice(1)), first(Dice::new(1, Purpose::Day, [2, 1, 3])));
        assert_ne!(first(dice(1)), first(Dice::new(1, Purpose::Burst, [1, 2, 3])));
    }

    #[test]
    fn the_draws_have_the_means_and_deviations_they_should() {
        let mut dice = dice(7);
        let mut moments = |mut draw: Box<dyn FnMut(&mut Dice) -> f64>| {
            let drawn: Vec<f64> = (0..100_000).map(|_| draw(&mut dice)).collect();
            let mean = drawn.iter().sum::<f64>() / 1e5;
            (mean, drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5)
        };
        let close = |(mean, variance): (f64, f64), wanted: (f64, f64)| {
            assert!((mean - wanted.0).abs() < 0.02 && (variance - wanted.1).abs() < 0.05, "{mean} {variance}");
        };
        close(moments(Box::new(Dice::share)), (0.5, 1.0 / 12.0));
        close(moments(Box::new(Dice::normal)), (0.0, 1.0));
        close(moments(Box::new(|dice| f64::from(dice.count((-2.0f64).exp())))), (2.0, 2.0));
        close(moments(Box::new(|dice| f64::from(dice.below(3)))), (1.0, 2.0 / 3.0));
    }

    #[test]
    fn a_choice_has_no_number_twice_and_no_more_than_there_are() {
        let mut chosen = dice(3).some_below(5, 9);
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2, 3, 4]);
    }
}
