//! `[price]` of a provider file: what a risk call costs, key by key.

use std::collections::BTreeMap;

use super::RawFact;
use crate::config::error::Code;
use crate::config::prices::CrossBorder;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::domain::money::Cost;

/// A thousand million: sums of a call's prices stay far from what an integer holds.
const DEAREST_MICRO: i64 = 1_000_000_000_000_000;
const MOST_FEATURES: usize = 1_000;

#[derive(Clone, Debug)]
pub(in crate::config) struct RawRiskPrice {
    pub(in crate::config) version: Option<Field<String>>,
    pub(in crate::config) standard: Field<Cost>,
    pub(in crate::config) cross_border: Option<Field<Cost>>,
    pub(in crate::config) cross_border_when: Option<Field<CrossBorder>>,
    pub(in crate::config) features: BTreeMap<String, Field<Cost>>,
    pub(in crate::config) fact: RawFact,
}

pub(super) fn risk_price(value: &Value<'_>) -> Option<RawRiskPrice> {
    const PRICE_KEYS: [&str; 7] =
        ["version", "standard", "cross_border", "cross_border_when", "features", "source", "checked"];
    const WORDS: [(&str, CrossBorder); 2] =
        [("asked", CrossBorder::Asked), ("asked-or-abroad", CrossBorder::AskedOrAbroad)];
    let table = value.table()?.only(&PRICE_KEYS, &[]);
    let standard = table.required("standard").and_then(|value| price(&value));
    let cross_border = table.get("cross_border").and_then(|value| price(&value));
    let features = table.get("features").and_then(|value| value.table()).map(|table| features(&table));
    let fact = RawFact::read(&table, "source");
    Some(RawRiskPrice {
        version: table.get("version").and_then(|value| value.name("-_.")),
        standard: standard?,
        cross_border,
        cross_border_when: table.get("cross_border_when").and_then(|value| value.word(&WORDS)),
        features: features.unwrap_or_default(),
        fact: fact?,
    })
}

fn features(table: &Table<'_>) -> BTreeMap<String, Field<Cost>> {
    let mut entries = table.entries();
    let features = entries.by_ref().take(MOST_FEATURES).filter_map(|(name, value)| Some((name.value, price(&value)?)));
    let features = features.collect();
    if let Some((first_over, _)) = entries.next() {
        let message = format!("more than {MOST_FEATURES} features");
        table.report().add(first_over.mistake(Code::BadValue, message));
    }
    features
}

fn price(value: &Value<'_>) -> Option<Field<Cost>> {
    let price = value.cost()?;
    if price.value.micro > DEAREST_MICRO {
        value.bad("must be at most 10^9 of the currency's major unit")
    } else {
        Some(price)
    }
}
