//! `[jurisdiction.XX]`, key by key.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::error::Code;
use crate::config::read::Value;
use crate::config::report::Field;
use crate::domain::retention::{Redact, Withheld};

const DAY: Duration = Duration::from_secs(86_400);
/// A hundred years; beyond that nothing need be written.
const DAYS: RangeInclusive<Duration> = DAY..=Duration::from_secs(36_500 * 86_400);

/// One section.
#[derive(Debug)]
pub(in crate::config) struct RawJurisdiction {
    /// What stands behind the point.
    pub(in crate::config) name: Field<String>,
    /// In days.
    pub(in crate::config) retention: Option<u32>,
    pub(in crate::config) redact: Option<Redact>,
}

impl RawJurisdiction {
    /// Reads `[jurisdiction]` as a whole.
    pub(in crate::config) fn read_all(value: &Value<'_>) -> Vec<Self> {
        let sections = value.table();
        sections
            .map(|table| table.entries().filter_map(|(name, value)| Self::read(name, &value)).collect())
            .unwrap_or_default()
    }

    fn read(name: Field<String>, value: &Value<'_>) -> Option<Self> {
        let table = value.table()?.only(&["retention", "redact", "store"], &[]);
        if let Some(store) = table.get("store") {
            let mistake = store.mistake(Code::Unsupported, "`store` is not supported by this version");
            let hint =
                "remove it; the record lies in --data-dir, so run an instance of its own where it must lie elsewhere";
            store.report().add(mistake.hint(hint));
        }
        let (retention, redact) = (table.get("retention"), table.get("redact"));
        if retention.is_none() && redact.is_none() {
            let mistake = table.mistake(Code::MissingKey, "missing key `retention` or `redact`");
            table.report().add(mistake.hint("as in retention = \"180d\""));
        }
        Some(Self {
            name,
            retention: retention.and_then(|value| days(&value)),
            redact: redact.and_then(|value| withheld(&value)),
        })
    }
}

fn days(value: &Value<'_>) -> Option<u32> {
    let time = value.duration(DAYS)?.value;
    if time.as_secs() % DAY.as_secs() != 0 || time.subsec_nanos() != 0 {
        return value.bad("write whole days, as in \"180d\"");
    }
    u32::try_from(time.as_secs() / DAY.as_secs()).ok()
}

fn withheld(value: &Value<'_>) -> Option<Redact> {
    let words = value.list()?.iter().map(|word| word.word(&Withheld::WORDS)).collect::<Option<Vec<_>>>()?;
    Some(words.iter().fold(Redact::default(), |redact, word| redact.and(word.value)))
}
