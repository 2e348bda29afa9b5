//! `reuse` of `[risk]`, key by key.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::read::Value;
use crate::config::report::Field;
use crate::config::reuse::ReuseMode;
use crate::config::units;
use crate::domain::decision::Score;
use crate::domain::money::Money;

use super::llm::millionths;
use super::risk::score;
use super::routes::place;

const TTLS: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(86_400);
const KNOWN: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(3_650 * 86_400);

/// `reuse = { mode = "when-late", max_amount = "200.00 CNY" }`.
#[derive(Debug)]
pub(in crate::config) struct RawReuse {
    pub(in crate::config) at: Field<()>,
    /// `None` inside is "off".
    pub(in crate::config) mode: Option<Field<Option<ReuseMode>>>,
    pub(in crate::config) ttl: Option<Field<Duration>>,
    pub(in crate::config) max_amount: Option<Field<Money>>,
    pub(in crate::config) says_max_amount: bool,
    pub(in crate::config) max_sum: Option<Field<Money>>,
    pub(in crate::config) max_uses: Option<Field<u32>>,
    pub(in crate::config) max_score: Option<Field<Score>>,
    pub(in crate::config) known_device: Option<Field<Duration>>,
    pub(in crate::config) self_audit: Option<Field<u32>>,
    pub(in crate::config) max_disagreement: Option<Field<u32>>,
}

impl RawReuse {
    /// Reads it.
    pub(in crate::config) fn read(value: &Value<'_>) -> Option<Self> {
        const KEYS: [&str; 9] = [
            "mode",
            "ttl",
            "max_amount",
            "max_sum",
            "max_uses",
            "max_score",
            "known_device",
            "self_audit",
            "max_disagreement",
        ];
        const MODES: [(&str, Option<ReuseMode>); 3] =
            [("off", None), ("when-late", Some(ReuseMode::WhenLate)), ("first", Some(ReuseMode::First))];
        let table = value.table()?.only(&KEYS, &[]);
        let max_amount = table.get("max_amount");
        Some(Self {
            at: place(&table),
            mode: table.required("mode").and_then(|value| value.word(&MODES)),
            ttl: table.get("ttl").and_then(|value| value.duration(TTLS)),
            says_max_amount: max_amount.is_some(),
            max_amount: max_amount.and_then(|value| money(&value)),
            max_sum: table.get("max_sum").and_then(|value| money(&value)),
            max_uses: table.get("max_uses").and_then(|value| value.whole(1..=1_000)),
            max_score: table.get("max_score").and_then(|value| score(&value)),
            known_device: table.get("known_device").and_then(|value| value.duration(KNOWN)),
            self_audit: table.get("self_audit").and_then(|value| share(&value, 10_000..=1_000_000)),
            max_disagreement: table.get("max_disagreement").and_then(|value| share(&value, 5_000..=500_000)),
        })
    }
}

fn money(value: &Value<'_>) -> Option<Field<Money>> {
    let text = value.string()?;
    match units::money(&text.value) {
        Ok(money) => Some(text.with(money)),
        Err(error) => value.bad(error.to_string()),
    }
}

/// A share within bounds, in millionths.
fn share(value: &Value<'_>, bounds: RangeInclusive<u32>) -> Option<Field<u32>> {
    let number = value.number()?;
    if let Some(share) = millionths(&number.value, 6).filter(|share| bounds.contains(share)) {
        return Some(number.with(share));
    }
    let share = |millionths: &u32| f64::from(*millionths) / 1e6;
    let (least, most) = (share(bounds.start()), share(bounds.end()));
    value.bad(format!("write a share between {least} and {most}, as in 0.05"))
}
