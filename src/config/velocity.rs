//! What is counted about payment attempts, by whom, over how long: `[[risk.velocity]]`, validated.
//!
//! Definitions only: the numbers are in `flight/velocity.rs`.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::currency::Currency;
use crate::domain::decision::Action;

/// Different values a `distinct` counter tells apart for one key; more of them count as so many.
pub const MOST_DISTINCT: u32 = 256;

/// What an attempt is counted under.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dimension {
    /// `user.id`.
    User,
    /// `device.id`.
    Device,
    /// `device.ip`: an IPv4 address, or the /64 network of an IPv6 address.
    Ip,
    /// `instrument.bin`.
    Bin,
    /// `instrument.fingerprint`.
    Instrument,
}

impl Dimension {
    /// Every one, in the order of declaration.
    pub const ALL: [Self; 5] = [Self::User, Self::Device, Self::Ip, Self::Bin, Self::Instrument];

    /// The word in `routes.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Device => "device",
            Self::Ip => "ip",
            Self::Bin => "bin",
            Self::Instrument => "instrument",
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Measure {
    /// Attempts.
    Count,
    /// Their amounts in this currency, in minor units.
    Sum(Currency),
    /// How many different ones of these, up to [`MOST_DISTINCT`].
    Distinct(Dimension),
}

/// One counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VelocityRule {
    /// Its name in policies (`velocity.<name>`), reasons and metrics.
    pub name: Arc<str>,
    /// Whose attempts are counted together.
    pub by: Dimension,
    /// What is counted.
    pub measure: Measure,
    /// How long an attempt counts.
    pub window: Duration,
    /// More than this is over the limit; `None` if the number is only for policies.
    pub limit: Option<i64>,
    /// The mildest action an attempt over the limit may get.
    pub over: Option<Action>,
    /// Most keys kept.
    pub most: usize,
}

impl VelocityRule {
    /// True if this number is over its limit.
    pub fn is_over(&self, number: i64) -> bool {
        self.limit.is_some_and(|limit| number > limit)
    }

    /// The mildest action it allows at this number, `None` for one that could not be told. What nobody counted is for a
    /// person to look at, not for a machine to reject.
    pub fn demands(&self, number: Option<i64>) -> Option<Action> {
        match number {
            Some(number) => self.over.filter(|_| self.is_over(number)),
            None => self.over.map(|over| over.min(Action::Review)),
        }
    }

    /// True if the numbers of one are those of the other: limits and bounds may differ.
    pub fn counts_as(&self, other: &Self) -> bool {
        self.name == other.name && self.by == other.by && self.measure == other.measure && self.window == other.window
    }
}
