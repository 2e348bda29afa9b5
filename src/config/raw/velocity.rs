//! `[[risk.velocity]]`, key by key.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::config::velocity::Dimension;
use crate::domain::currency::Currency;
use crate::domain::decision::Action;
use crate::domain::money::LARGEST_MINOR;

use super::routes::place;

const WINDOWS: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 86_400);
const KEYS: RangeInclusive<usize> = 100..=1_000_000;

/// What is counted, before it is known of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::config) enum MeasureWord {
    /// Attempts.
    Count,
    /// Amounts.
    Sum,
    /// Different values.
    Distinct,
}

/// One counter as it is written.
#[derive(Debug)]
pub(in crate::config) struct RawVelocity {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) by: Option<Field<Dimension>>,
    pub(in crate::config) measure: Option<Field<MeasureWord>>,
    pub(in crate::config) of: Option<Field<Dimension>>,
    pub(in crate::config) says_of: bool,
    pub(in crate::config) currency: Option<Field<Currency>>,
    pub(in crate::config) says_currency: bool,
    pub(in crate::config) window: Option<Field<Duration>>,
    pub(in crate::config) limit: Option<Field<i64>>,
    pub(in crate::config) over: Option<Field<Action>>,
    pub(in crate::config) most: Option<Field<usize>>,
}

impl RawVelocity {
    /// Reads a list of counters.
    pub(in crate::config) fn read_all(value: &Value<'_>) -> Vec<Self> {
        value.tables().into_iter().map(Self::read).collect()
    }

    fn read(table: Table<'_>) -> Self {
        const NAMES: [&str; 9] = ["name", "by", "measure", "of", "currency", "window", "limit", "over", "most"];
        const MEASURES: [(&str, MeasureWord); 3] =
            [("count", MeasureWord::Count), ("sum", MeasureWord::Sum), ("distinct", MeasureWord::Distinct)];
        const ACTIONS: [(&str, Action); 2] = [("REVIEW", Action::Review), ("REJECT", Action::Reject)];
        let table = table.only(&NAMES, &[]);
        let dimensions = Dimension::ALL.map(|dimension| (dimension.as_str(), dimension));
        let (of, currency) = (table.get("of"), table.get("currency"));
        Self {
            at: place(&table),
            name: table.required("name").and_then(|value| name(&value)),
            by: table.required("by").and_then(|value| value.word(&dimensions)),
            measure: table.required("measure").and_then(|value| value.word(&MEASURES)),
            says_of: of.is_some(),
            of: of.and_then(|value| value.word(&dimensions)),
            says_currency: currency.is_some(),
            currency: currency.and_then(|value| code(&value)),
            window: table.required("window").and_then(|value| value.duration(WINDOWS)),
            limit: table.get("limit").and_then(|value| value.whole(1..=LARGEST_MINOR)),
            over: table.get("over").and_then(|value| value.word(&ACTIONS)),
            most: table.get("most").and_then(|value| value.whole(KEYS)),
        }
    }
}

/// A name that a policy can write after `velocity.`.
fn name(value: &Value<'_>) -> Option<Field<String>> {
    let name = value.string()?;
    let letter = |b: &u8| b.is_ascii_lowercase() || *b == b'_';
    let plain = name.value.bytes().all(|b| letter(&b) || b.is_ascii_digit());
    let starts = name.value.as_bytes().first().is_some_and(letter);
    if !plain || !starts || name.value.len() > 64 {
        return value.bad("write a name of lower-case letters, digits and _, not beginning with a digit");
    }
    Some(name)
}

fn code(value: &Value<'_>) -> Option<Field<Currency>> {
    let text = value.string()?;
    match Currency::parse(&text.value) {
        Some(currency) => Some(text.with(currency)),
        None => value.bad("not an active currency; write three capital letters, as in \"CNY\""),
    }
}
