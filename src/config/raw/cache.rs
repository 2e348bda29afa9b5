//! The `cache` of an LLM route, key by key.

use std::time::Duration;

use crate::config::read::Value;
use crate::config::report::Field;
use crate::config::table::{CachePolicy, CutAnswers};

const LONGEST: Duration = Duration::from_secs(30 * 86_400);
const SHORTEST: Duration = Duration::from_secs(1);

/// `cache = { ttl = "10m", stale_if_error = "1h", stale_while_revalidate = "60s", cut_by_length = "store" }`.
#[derive(Debug)]
pub(in crate::config) struct RawCache {
    ttl: Field<Duration>,
    stale_if_error: Option<Field<Duration>>,
    stale_while_revalidate: Option<Field<Duration>>,
    cut_by_length: Option<Field<CutAnswers>>,
}

impl RawCache {
    /// Reads it; `None` if there is no life to be had of it.
    pub(in crate::config) fn read(value: &Value<'_>) -> Option<Self> {
        const WORDS: [(&str, CutAnswers); 2] = [("pass", CutAnswers::Pass), ("store", CutAnswers::Store)];
        let table = value.table()?.only(&["ttl", "stale_if_error", "stale_while_revalidate", "cut_by_length"], &[]);
        let ttl = table.required("ttl").and_then(|value| value.duration(SHORTEST..=LONGEST));
        let window = |name: &str| table.get(name).and_then(|value| value.duration(SHORTEST..=LONGEST));
        let (stale_if_error, stale_while_revalidate) = (window("stale_if_error"), window("stale_while_revalidate"));
        let cut_by_length = table.get("cut_by_length").and_then(|value| value.word(&WORDS));
        Some(Self { ttl: ttl?, stale_if_error, stale_while_revalidate, cut_by_length })
    }

    /// What it says, with what it leaves out.
    pub(in crate::config) fn policy(&self) -> CachePolicy {
        let window = |field: &Option<Field<Duration>>| field.as_ref().map_or(Duration::ZERO, |field| field.value);
        CachePolicy {
            ttl: self.ttl.value,
            stale_if_error: window(&self.stale_if_error),
            stale_while_revalidate: window(&self.stale_while_revalidate),
            cut_by_length: self.cut_by_length.as_ref().map_or(CutAnswers::default(), |field| field.value),
        }
    }
}
