//! What metrics hold now, for whoever shows them without Prometheus in between. Names and labels are the catalogue's.

use super::catalog::Row;
use super::cells::Observed;

/// One series at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Which metric.
    pub row: &'static Row,
    /// Values of its labels, in the order of the row's.
    pub labels: Vec<String>,
    /// What it holds.
    pub reading: Reading,
}

/// What a series holds.
#[derive(Clone, PartialEq, Debug)]
pub enum Reading {
    /// A counter's or gauge's number.
    Number(f64),
    /// A histogram.
    Observed(Observed),
}

impl Reading {
    /// True if nothing was ever counted.
    pub fn is_nothing(&self) -> bool {
        match self {
            Self::Number(number) => *number == 0.0,
            Self::Observed(observed) => observed.count == 0,
        }
    }
}

impl Observed {
    /// The value that this share of all observations, in [0, 1], does not exceed: interpolated within its bucket, as
    /// Prometheus does, and the last bound for what lies above it. `None` without observations.
    #[expect(clippy::cast_precision_loss, reason = "shown to people; nothing is decided by it")]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = share.clamp(0.0, 1.0) * self.count as f64;
        let (mut below, mut counted) = (0.0, 0);
        for &(bound, count) in &self.cumulative {
            if count > counted && count as f64 >= wanted {
                let within = (wanted - counted as f64).max(0.0) / (count - counted) as f64;
                return Some(below + (bound - below) * within);
            }
            (below, counted) = (bound, count);
        }
        (self.count > 0).then_some(below)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observed(counts: &[u64]) -> Observed {
        let mut count = 0;
        let cumulative = counts.iter().zip(1u32..).map(|(more, bound)| {
            count += more;
            (f64::from(bound), count)
        });
        let cumulative: Vec<_> = cumulative.collect();
        Observed { cumulative, count, sum: 0.0 }
    }

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let four = observed(&[2, 0, 2]);
        assert_eq!(
            [0.25, 0.5, 0.75, 1.0].map(|share| four.quantile(share)),
            [Some(0.5), Some(1.0), Some(2.5), Some(3.0)]
        );
        assert_eq!(observed(&[0, 0]).quantile(0.5), None);
        // All above the last bound: no more is known.
        assert_eq!(Observed { count: 3, ..observed(&[0, 0]) }.quantile(0.99), Some(2.0));
    }

    proptest! {
        #[test]
        fn a_larger_share_is_no_smaller_value(counts in prop::collection::vec(0u64..9, 1..9), a in 0.0..1.0f64, b in 0.0..1.0f64) {
            let observed = observed(&counts);
            prop_assert!(observed.quantile(a.min(b)) <= observed.quantile(a.max(b)));
        }
    }
}
