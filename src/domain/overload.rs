//! What is given up first when there is not enough for everybody, and when that begins.
//!
//! Two orders and one rule, all pure: classes of calls by what they are worth, stages of pressure by how little memory or
//! how few descriptors are left, and how a stage follows from a measured level. Who measures and who obeys is elsewhere.

/// What a call is worth beside others. The order is the order of shedding: the least goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(u8)]
pub enum Class {
    /// Nobody waits for it: it may come again tonight.
    Batch,
    /// Somebody waits, and could do without.
    Low,
    /// What nobody called anything else.
    #[default]
    Normal,
    /// Payment decisions: a reserved share, shed last.
    Risk,
}

impl Class {
    /// Every class, in the order of shedding.
    pub const ALL: [Self; 4] = [Self::Batch, Self::Low, Self::Normal, Self::Risk];

    /// The word in configuration, logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::Risk => "risk",
        }
    }

    /// How much of `whole` the class may fill where risk calls and others share it: 70, 80, 90 and 100 per cent. What is
    /// left above belongs to the classes above; each class has at least one where there is one for it.
    pub fn share(self, whole: u32) -> u32 {
        match self {
            Self::Risk => whole,
            Self::Normal => left_of(whole, 1),
            Self::Low => left_of(whole, 2),
            Self::Batch => left_of(whole, 3),
        }
    }

    /// How much of `whole` the class may fill where risk calls have one of their own: 70, 80 and 100 per cent.
    pub fn share_of_provider(self, whole: u32) -> u32 {
        match self {
            Self::Risk | Self::Normal => whole,
            Self::Low => left_of(whole, 2),
            Self::Batch => left_of(whole, 3),
        }
    }
}

/// What is left when so many tenths are set aside, and at least one of several; never nothing of something.
fn left_of(whole: u32, tenths: u32) -> u32 {
    let aside = whole / 10 * tenths + whole % 10 * tenths / 10;
    (whole - aside.max(u32::from(whole > 1))).max(u32::from(whole > 0))
}

/// How far the process is from the end of its memory or descriptors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(u8)]
pub enum Stage {
    /// There is enough.
    #[default]
    Normal,
    /// From 80 %: nothing optional, no batch.
    Lean,
    /// From 90 %: no low either, and idle connections are closed.
    Tight,
    /// From 95 %: payments only.
    RiskOnly,
}

/// A stage is left this far below where it is entered, in thousandths.
const HYSTERESIS: u32 = 50;

impl Stage {
    /// Every stage, as it gets worse.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Lean, Self::Tight, Self::RiskOnly];

    /// The word in logs and on the status page.
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Lean => "lean",
            Self::Tight => "tight",
            Self::RiskOnly => "risk-only",
        }
    }

    /// Where it begins, in thousandths of what there is.
    fn begins(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::Lean => 800,
            Self::Tight => 900,
            Self::RiskOnly => 950,
        }
    }

    /// The stage at `level` thousandths after this one: entered at once, left a little later, so that a level that
    /// hovers at a threshold changes nothing twice.
    #[must_use]
    pub fn after(self, level: u32) -> Self {
        let entered = Self::ALL.into_iter().filter(|stage| level >= stage.begins()).max();
        let kept = Self::ALL.into_iter().filter(|stage| *stage <= self && level + HYSTERESIS >= stage.begins()).max();
        entered.max(kept).unwrap_or_default()
    }

    /// True if calls of this class are turned away.
    pub fn sheds(self, class: Class) -> bool {
        match self {
            Self::Normal => false,
            Self::Lean => class <= Class::Batch,
            Self::Tight => class <= Class::Low,
            Self::RiskOnly => class <= Class::Normal,
        }
    }

    /// The stage with this number.
    pub fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|stage| *stage as u8 == number).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn row_35_the_least_is_shed_first_and_payments_last() {
        assert_eq!(Class::ALL.map(|class| class.share(2000)), [1400, 1600, 1800, 2000]);
        assert_eq!(Class::ALL.map(|class| class.share(10)), [7, 8, 9, 10]);
        assert_eq!(Class::ALL.map(|class| class.share(2)), [1, 1, 1, 2]);
        assert_eq!(Class::ALL.map(|class| class.share(1)), [1, 1, 1, 1]);
        assert_eq!(Class::ALL.map(|class| class.share_of_provider(20)), [14, 16, 20, 20]);
        assert_eq!(Class::ALL.map(|class| class.share_of_provider(1)), [1, 1, 1, 1]);
        let shed = |stage: Stage| Class::ALL.into_iter().filter(|class| stage.sheds(*class)).count();
        assert_eq!(Stage::ALL.map(shed), [0, 1, 2, 3]);
    }

    #[test]
    fn row_32_a_stage_is_entered_at_its_threshold_and_left_five_per_cent_below() {
        let walk = [700, 799, 800, 760, 749, 900, 870, 851, 849, 960, 901, 899, 100];
        let mut stage = Stage::Normal;
        let stages = walk.map(|level| {
            stage = stage.after(level);
            stage as u8
        });
        assert_eq!(stages, [0, 0, 1, 1, 0, 2, 2, 2, 1, 3, 3, 2, 0]);
    }

    proptest! {
        #[test]
        fn a_level_that_stays_changes_the_stage_once_at_most(from in 0u8..4, level in 0u32..1200) {
            let once = Stage::from_number(from).after(level);
            prop_assert_eq!(once.after(level), once);
        }

        #[test]
        fn shares_never_shrink_as_classes_rise(whole in 0u32..100_000) {
            let shares = Class::ALL.map(|class| class.share(whole));
            prop_assert!(shares.is_sorted() && shares[3] == whole);
            prop_assert!(whole == 0 || shares[0] >= 1);
            prop_assert!(whole < 2 || shares[2] < whole, "one place is the payments' own");
        }
    }
}
