//! Whether reused decisions agree with the provider, merchant by merchant, and when they are given up.
//!
//! Some calls that could have been answered from memory go live all the same, and the two answers are compared. Two rules
//! switch a merchant off: *enough evidence and not good enough* (the upper end of the 95 % Wilson interval is beyond the
//! limit once so many were compared that none disagreeing would be within it), and *little evidence but bad* (at least two
//! disagree and the lower end is beyond the limit). It is switched on again by as much evidence of the first kind, gathered
//! while everything went live.

/// The two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.96;
/// As many disagreements are no accident.
const NO_ACCIDENT: u32 = 2;

/// What was found out about one merchant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    compared: u32,
    disagreed: u32,
    off: bool,
}

impl Standing {
    /// Takes note of a comparison; the limit is in millionths.
    pub fn note(&mut self, agreed: Agreed, limit: u32) {
        self.compared = self.compared.saturating_add(1);
        self.disagreed = self.disagreed.saturating_add(u32::from(agreed == Agreed::No));
        let (lower, upper) = wilson(self.disagreed, self.compared);
        let enough = self.compared >= enough(limit);
        if self.off {
            self.off = !(enough && upper <= limit);
        } else if (enough && upper > limit) || (self.disagreed >= NO_ACCIDENT && lower > limit) {
            // What comes now is judged by itself.
            *self = Self { compared: 0, disagreed: 0, off: true };
        }
        // Old evidence weighs half, so that a change of mind is seen within a bounded number of calls.
        if self.compared >= enough_to_forget(limit) {
            (self.compared, self.disagreed) = (self.compared / 2, self.disagreed.div_ceil(2));
        }
    }

    /// What was found out, for the next process: comparisons, disagreements among them, and whether it is off.
    pub fn told(self) -> (u32, u32, bool) {
        (self.compared, self.disagreed, self.off)
    }

    /// What another process found out; `None` for numbers that none can have found.
    pub fn of((compared, disagreed, off): (u32, u32, bool)) -> Option<Self> {
        (disagreed <= compared).then_some(Self { compared, disagreed, off })
    }

    /// True if this merchant's decisions are not given again.
    pub fn is_off(self) -> bool {
        self.off
    }

    /// The upper end of the interval in millionths, once there is enough evidence to say.
    pub fn bound(self, limit: u32) -> Option<u32> {
        (self.compared >= enough(limit)).then(|| wilson(self.disagreed, self.compared).1)
    }
}

/// What a comparison said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agreed {
    /// The provider would have passed it too.
    Yes,
    /// It would not.
    No,
}

/// The least number of comparisons for which no disagreement at all is within the limit.
pub fn enough(limit: u32) -> u32 {
    let limit = f64::from(limit.clamp(1, 1_000_000)) / 1e6;
    let least = (Z * Z * (1.0 / limit - 1.0)).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 3,841,596")]
    let least = least as u32;
    least.max(1)
}

fn enough_to_forget(limit: u32) -> u32 {
    enough(limit).saturating_mul(2).max(512)
}

/// The Wilson interval of `found` out of `all`, in millionths: its ends are rounded away from each other.
pub fn wilson(found: u32, all: u32) -> (u32, u32) {
    if all == 0 {
        return (0, 1_000_000);
    }
    let (k, n) = (f64::from(found.min(all)), f64::from(all));
    let centre = (k + Z * Z / 2.0) / (n + Z * Z);
    let half = Z / (n + Z * Z) * (k * (n - k) / n + Z * Z / 4.0).sqrt();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a million")]
    let millionths = |share: f64| (share * 1e6).clamp(0.0, 1e6) as u32;
    (millionths(centre - half), (millionths(centre + half) + 1).min(1_000_000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 20_000;

    #[test]
    fn intervals_are_the_published_ones() {
        let near = |found, all, lower: u32, upper: u32| {
            let (l, u) = wilson(found, all);
            assert!(l.abs_diff(lower) <= 500 && u.abs_diff(upper) <= 500, "{found}/{all}: {l} {u}");
        };
        near(37, 120, 233_000, 396_000);
        near(0, 30, 0, 114_000);
        near(3, 10, 108_000, 603_000);
        assert_eq!(wilson(0, 0), (0, 1_000_000));
        assert_eq!(wilson(10, 10).1, 1_000_000);
    }

    #[test]
    fn enough_is_where_no_disagreement_is_just_within_the_limit() {
        assert_eq!(enough(LIMIT), 189);
        assert!(wilson(0, 189).1 <= LIMIT && wilson(0, 187).1 > LIMIT);
    }

    #[test]
    fn one_early_disagreement_is_no_evidence_and_two_are() {
        let mut standing = Standing::default();
        standing.note(Agreed::No, LIMIT);
        assert!(!standing.is_off());
        standing.note(Agreed::No, LIMIT);
        assert!(standing.is_off());
    }

    #[test]
    fn a_merchant_that_is_good_enough_stays_on_and_one_that_is_not_goes_off() {
        let mut good = Standing::default();
        for _ in 0..10_000 {
            good.note(Agreed::Yes, LIMIT);
            assert!(!good.is_off());
        }
        assert!(good.bound(LIMIT).is_some_and(|bound| bound <= LIMIT));
        let mut bad = Standing::default();
        let went = (1..2_000).find(|number| {
            bad.note(if number % 20 == 0 { Agreed::No } else { Agreed::Yes }, LIMIT);
            bad.is_off()
        });
        assert!(went.is_some_and(|number| number <= 200), "5 % against a limit of 2 %: {went:?}");
    }

    #[test]
    fn it_comes_back_only_with_as_much_evidence_as_it_takes() {
        let mut standing = Standing::default();
        for _ in 0..2 {
            standing.note(Agreed::No, LIMIT);
        }
        for number in 1..=188 {
            standing.note(Agreed::Yes, LIMIT);
            assert!(standing.is_off(), "{number}");
        }
        standing.note(Agreed::Yes, LIMIT);
        assert!(!standing.is_off());
    }

    #[test]
    fn a_change_is_seen_however_long_it_was_good_before() {
        let mut standing = Standing::default();
        for _ in 0..1_000_000 {
            standing.note(Agreed::Yes, LIMIT);
        }
        let went = (1..100).find(|_| {
            standing.note(Agreed::No, LIMIT);
            standing.is_off()
        });
        assert!(went.is_some_and(|number| number <= 6), "{went:?}");
    }

    proptest! {
        #[test]
        fn an_interval_holds_what_was_found(all in 1u32..100_000, share in 0u32..=1_000_000) {
            let found = (u64::from(all) * u64::from(share) / 1_000_000) as u32;
            let (lower, upper) = wilson(found, all);
            let exact = (u64::from(found) * 1_000_000 / u64::from(all)) as u32;
            prop_assert!(lower <= exact.saturating_add(1) && exact <= upper && upper <= 1_000_000);
        }
    }
}
