//! How a configuration does: how many of its requests ended, and how many of those failed.
//!
//! It counts only what says something about a configuration: complete answers, failures of ours or of a provider, and what a
//! provider refused. What we refused because callers were wrong, and who went away, says nothing either way. When it is asked, and what follows, is `gateway/trial.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Quantile of the normal distribution for an interval that holds for 99.7 % at each look. It is wide because there are
/// many looks at one trial, and each could be wrong.
const Z: f64 = 3.0;

/// Counts one configuration's requests as they end.
#[derive(Default, Debug)]
pub struct Showing {
    ended: AtomicU64,
    failed: AtomicU64,
}

/// What ended requests say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// Those that say something.
    pub ended: u64,
    /// Of them, those that failed.
    pub failed: u64,
}

/// What one request that ended says of its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fared {
    /// It was answered.
    Well,
    /// We or a provider failed it, or a provider refused it.
    Badly,
    /// Nothing: its caller was wrong, over a limit, or gone.
    Neither,
}

impl Showing {
    /// Counts a request that ended.
    pub fn count(&self, fared: Fared) {
        match fared {
            Fared::Well => {}
            // First: whoever reads in between sees a failure too many rather than one too few.
            Fared::Badly => drop(self.failed.fetch_add(1, Ordering::Relaxed)),
            Fared::Neither => return,
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn counted(&self) -> Counted {
        let failed = self.failed.load(Ordering::Relaxed);
        Counted { ended: self.ended.load(Ordering::Relaxed).max(failed), failed }
    }
}

impl Counted {
    /// What was counted since an earlier look at the same counts.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let ended = self.ended.saturating_sub(earlier.ended);
        Self { ended, failed: self.failed.saturating_sub(earlier.failed).min(ended) }
    }

    /// True if the share of failures is above that of `before` by more than `limit` millionths, beyond what chance explains:
    /// the lower end of the interval of the difference (Newcombe's, of two Wilson intervals) is above the limit. Where
    /// little is known of either side, it is not.
    pub fn is_worse(self, before: Self, limit: u32) -> bool {
        let (now, was) = (self.share(), before.share());
        let doubt = (now.at - now.low).hypot(was.high - was.at);
        now.at - was.at - doubt > f64::from(limit) / 1e6
    }

    fn share(self) -> Share {
        if self.ended == 0 {
            return Share { low: 0.0, at: 0.0, high: 1.0 };
        }
        #[expect(clippy::cast_precision_loss, reason = "no process ends as many requests as a float cannot hold")]
        let (k, n) = (self.failed.min(self.ended) as f64, self.ended as f64);
        let centre = (k + Z * Z / 2.0) / (n + Z * Z);
        let reach = Z / (n + Z * Z) * (k * (n - k) / n + Z * Z / 4.0).sqrt();
        let at = k / n;
        Share { low: (centre - reach).clamp(0.0, at), at, high: (centre + reach).clamp(at, 1.0) }
    }
}

/// A share and its Wilson interval.
struct Share {
    low: f64,
    at: f64,
    high: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(failed: u64, ended: u64) -> Counted {
        Counted { ended, failed }
    }

    #[test]
    fn seven_failures_of_fifty_may_be_chance_and_nine_are_not() {
        let before = of(0, 1_000);
        let worse = |failed, ended| of(failed, ended).is_worse(before, 50_000);
        assert!(!worse(1, 3) && !worse(7, 50) && worse(9, 50) && worse(50, 50));
        assert!(!worse(60, 1_000), "six percent may be five");
        assert!(worse(100, 1_000));
    }

    #[test]
    fn what_was_bad_before_is_no_reason_to_go_back_to_it() {
        assert!(!of(300, 1_000).is_worse(of(300, 1_000), 50_000));
        assert!(!of(320, 1_000).is_worse(of(280, 1_000), 50_000));
        assert!(of(600, 1_000).is_worse(of(300, 1_000), 50_000));
    }

    #[test]
    fn where_nothing_was_counted_before_nothing_is_worse() {
        assert!(!of(1_000, 1_000).is_worse(of(0, 0), 1));
        assert!(!of(0, 0).is_worse(of(0, 1_000), 1));
    }

    #[test]
    fn what_callers_did_wrong_is_not_counted() {
        let showing = Showing::default();
        for fared in [Fared::Well, Fared::Badly, Fared::Neither, Fared::Neither] {
            showing.count(fared);
        }
        assert_eq!(showing.counted(), of(1, 2));
        assert_eq!(of(5, 12).since(of(1, 2)), of(4, 10));
    }

    proptest! {
        #[test]
        fn nothing_is_worse_than_itself(ended in 0u64..100_000, failed in 0u64..100_000) {
            let counted = of(failed.min(ended), ended);
            prop_assert!(!counted.is_worse(counted, 0));
        }

        #[test]
        fn more_failures_never_look_better(ended in 1u64..10_000, failed in 0u64..10_000, more in 0u64..100) {
            let (few, many) = (of(failed.min(ended), ended), of((failed + more).min(ended), ended));
            let before = of(3, 500);
            prop_assert!(!few.is_worse(before, 50_000) || many.is_worse(before, 50_000));
        }
    }
}
