//! From the keys of `[reload]` to their settings: what is left out gets its default here.

use std::time::Duration;

use super::raw::reload::{RawReload, RawRollBack};
use super::reload::RollBack;

const DEFAULT_WITHIN: Duration = Duration::from_secs(60);
const DEFAULT_LEAST: u32 = 50;

/// The setting; `None` where nothing is ever put back, or where it is mistaken.
pub(super) fn roll_back(raw: Option<&RawReload>) -> Option<RollBack> {
    let RawRollBack { worse_than, within, least } = raw?.roll_back.as_ref()?;
    Some(RollBack {
        worse_than: worse_than.as_ref()?.value,
        within: within.as_ref().map_or(DEFAULT_WITHIN, |within| within.value),
        least: least.as_ref().map_or(DEFAULT_LEAST, |least| least.value),
    })
}
