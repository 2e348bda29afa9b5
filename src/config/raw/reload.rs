//! `[reload]`, key by key: what becomes of a configuration after it was put in force.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::read::Value;
use crate::config::report::Field;

use super::llm::share;
use super::routes::place;

/// Shorter shows nothing; longer is no trial any more.
const WITHIN: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(600);
/// Fewer are chance.
const LEAST: RangeInclusive<u32> = 10..=1_000_000;

/// `[reload]`.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawReload {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) roll_back: Option<RawRollBack>,
}

/// `roll_back = { worse_than = 0.05, within = "60s", least = 50 }`.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawRollBack {
    /// In millionths.
    pub(in crate::config) worse_than: Option<Field<u32>>,
    pub(in crate::config) within: Option<Field<Duration>>,
    pub(in crate::config) least: Option<Field<u32>>,
}

impl RawReload {
    /// Reads it.
    pub(in crate::config) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?.only(&["roll_back"], &[]);
        Some(Self { at: place(&table), roll_back: table.get("roll_back").and_then(|value| RawRollBack::read(&value)) })
    }
}

impl RawRollBack {
    fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?.only(&["worse_than", "within", "least"], &[]);
        Some(Self {
            worse_than: table.required("worse_than").and_then(|value| share(&value)),
            within: table.get("within").and_then(|value| value.duration(WITHIN)),
            least: table.get("least").and_then(|value| value.whole(LEAST)),
        })
    }
}
