//! What becomes of a configuration after it was put in force: `[reload]`, validated.

use std::fmt;
use std::time::Duration;

use super::units::shown;

/// When the configuration from before is put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RollBack {
    /// By how much the share of failed requests may be above that of the minute before, in millionths.
    pub worse_than: u32,
    /// How long a configuration is on trial.
    pub within: Duration,
    /// As many of its requests must have ended before anything is said about it.
    pub least: u32,
}

impl fmt::Display for RollBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (worse, within) = (f64::from(self.worse_than) / 1e6, shown(self.within));
        write!(f, "worse than before by {worse} within {within}, of {} requests at least", self.least)
    }
}
