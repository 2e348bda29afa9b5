//! The `cache` of an LLM route, key by key.

use std::time::Duration;

use crate::config::read::Value;
use crate::config::report::Field;
use crate::config::table::{CachePolicy, CutAnswers};

const LONGEST: Duration = Duration::from_secs(30 * 86_400);
const SHORTEST: Duration = Duration::from_secs(1);

/// `cache = { ttl = "10m", stale_if_error = "1h", cut_by_length = "store" }`.
#[derive(Debug)]
pub(in crate::config) struct RawCache {
    ttl: Field<Duration>,
    stale_if_error: Option<Field<Duration>>,
    cut_by_length: Option<Field<CutAnswers>>,
}

impl RawCache {
    /// Reads it; `None` if there is no life to be had of it.
    pub(in crate::config) fn read(value: &Value<'_>) -> Option<Self> {
        const WORDS: [(&str, CutAnswers); 2] = [("pass", CutAnswers::Pass), ("store", CutAnswers::Store)];
        let table = value.table()?.only(&["ttl", "stale_if_error", "cut_by_length"], &[]);
        let ttl = table.required("ttl").and_then(|value| value.duration(SHORTEST..=LONGEST));
        let stale_if_error = table.get("stale_if_error").and_then(|value| value.duration(SHORTEST..=LONGEST));
        let cut_by_length = table.get("cut_by_length").and_then(|value| value.word(&WORDS));
        Some(Self { ttl: ttl?, stale_if_error, cut_by_length })
    }

    /// What it says, with what it leaves out.
    pub(in crate::config) fn policy(&self) -> CachePolicy {
        CachePolicy {
            ttl: self.ttl.value,
            stale_if_error: self.stale_if_error.as_ref().map_or(Duration::ZERO, |field| field.value),
            cut_by_length: self.cut_by_length.as_ref().map_or(CutAnswers::default(), |field| field.value),
        }
    }
}
