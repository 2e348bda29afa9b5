//! What becomes of a configuration after it was put in force: `[reload]`, validated.

use std::fmt;
use std::time::Duration;

use super::raw::reload::{RawReload, RawRollBack};
use super::units::shown;
use super::words::Told;

const DEFAULT_WITHIN: Duration = Duration::from_secs(60);
const DEFAULT_LEAST: u32 = 50;

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

impl Told for Option<RollBack> {
    fn told(&self, setting: &str) -> Option<String> {
        self.filter(|_| setting == "roll_back").map(|terms| terms.to_string())
    }
}

/// The setting; `None` where nothing is ever put back, or where it is mistaken.
pub(super) fn roll_back(raw: Option<&RawReload>) -> Option<RollBack> {
    let RawRollBack { worse_than, within, least } = raw?.roll_back.as_ref()?;
    Some(RollBack {
        worse_than: worse_than.as_ref()?.value,
        within: within.as_ref().map_or(DEFAULT_WITHIN, |within| within.value),
        least: least.as_ref().map_or(DEFAULT_LEAST, |least| least.value),
    })
}
