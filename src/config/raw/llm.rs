//! `[model.NAME]` of `routes.toml`, key by key.

use std::time::Duration;

use super::cache::RawCache;
use super::heartbeat::heartbeat;
use super::overload;
use super::rule::RawRule;
use crate::config::asking::{HedgeAfter, Order, Sticky};
use crate::config::error::Code;
use crate::config::read::{ANY_LIMIT, Value};
use crate::config::report::Field;
use crate::domain::overload::Class;

const MOST_CANDIDATES: usize = 32;
const LARGEST_WEIGHT: u32 = 1000;

#[derive(Debug)]
pub(in crate::config) struct RawRoute {
    pub(in crate::config) name: Field<String>,
    pub(in crate::config) candidates: Option<Field<Vec<RawCandidate>>>,
    pub(in crate::config) order: Option<Field<Order>>,
    pub(in crate::config) sticky: Option<Field<Sticky>>,
    pub(in crate::config) fallback_on: Option<Field<Vec<Field<FallbackWord>>>>,
    pub(in crate::config) hedge: Option<RawHedge>,
    pub(in crate::config) shadow: Option<RawShadow>,
    pub(in crate::config) timeouts: RawTimeouts,
    pub(in crate::config) max_attempts: Option<Field<u32>>,
    pub(in crate::config) cache: Option<RawCache>,
    pub(in crate::config) class: Option<Field<Class>>,
    pub(in crate::config) rules: Vec<RawRule>,
}

impl RawRoute {
    /// One that says nothing.
    pub(in crate::config) fn named(name: Field<String>) -> Self {
        Self {
            name,
            candidates: None,
            order: None,
            sticky: None,
            fallback_on: None,
            hedge: None,
            shadow: None,
            timeouts: RawTimeouts::default(),
            max_attempts: None,
            cache: None,
            class: None,
            rules: Vec::new(),
        }
    }
}

/// `"provider/model"`, or `{ use = "provider/model", weight = 3 }`.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawCandidate {
    pub(in crate::config) upstream: Field<String>,
    pub(in crate::config) weight: Option<Field<u32>>,
}

/// One entry of `fallback_on`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::config) enum FallbackWord {
    TooLong,
    ContentPolicy,
}

#[derive(Debug)]
pub(in crate::config) struct RawHedge {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) after: Option<Field<HedgeAfter>>,
    /// Millionths.
    pub(in crate::config) max_share: Option<Field<u32>>,
    pub(in crate::config) max_spend: Option<Field<u32>>,
}

#[derive(Debug)]
pub(in crate::config) struct RawShadow {
    pub(in crate::config) upstream: Option<Field<String>>,
    /// Millionths.
    pub(in crate::config) share: Option<Field<u32>>,
    pub(in crate::config) in_flight: Option<Field<u32>>,
}

#[derive(Default, Debug)]
pub(in crate::config) struct RawTimeouts {
    pub(in crate::config) total: Option<Field<Duration>>,
    pub(in crate::config) connect: Option<Field<Duration>>,
    pub(in crate::config) first_content: Option<Field<Duration>>,
    pub(in crate::config) idle: Option<Field<Duration>>,
    /// `None` in it: none is wanted.
    pub(in crate::config) heartbeat: Option<Field<Option<Duration>>>,
}

/// Reads one section.
pub(super) fn route((name, value): &(Field<String>, Value<'_>)) -> Option<RawRoute> {
    const KEYS: [&str; 11] = [
        "order",
        "candidates",
        "timeouts",
        "max_attempts",
        "cache",
        "sticky",
        "fallback_on",
        "hedge",
        "shadow",
        "class",
        "rule",
    ];
    const STICKY: [(&str, Sticky); 1] = [("conversation", Sticky::Conversation)];
    let table = value.table()?.only(&KEYS, &["redact"]);
    Some(RawRoute {
        name: name.clone(),
        candidates: table.required("candidates").and_then(|value| candidates(&value)),
        order: table.get("order").and_then(|value| order(&value)),
        sticky: table.get("sticky").and_then(|value| value.word(&STICKY)),
        fallback_on: table.get("fallback_on").and_then(|value| fallback_on(&value)),
        hedge: table.get("hedge").and_then(|value| hedge(&value)),
        shadow: table.get("shadow").and_then(|value| shadow(&value)),
        timeouts: table.get("timeouts").and_then(|value| timeouts(&value)).unwrap_or_default(),
        max_attempts: table.get("max_attempts").and_then(|value| value.whole(1..=5)),
        cache: table.get("cache").and_then(|value| RawCache::read(&value)),
        class: table.get("class").and_then(|value| overload::class(&value)),
        rules: table.get("rule").map(|value| RawRule::read_all(&value)).unwrap_or_default(),
    })
}

pub(super) fn order(value: &Value<'_>) -> Option<Field<Order>> {
    const ORDERS: [(&str, Order); 4] = [
        ("as-listed", Order::AsListed),
        ("weighted", Order::Weighted),
        ("fastest", Order::Fastest),
        ("cheapest", Order::Cheapest),
    ];
    value.word(&ORDERS)
}

pub(super) fn candidates(value: &Value<'_>) -> Option<Field<Vec<RawCandidate>>> {
    let listed = value.list()?;
    if listed.len() > MOST_CANDIDATES {
        return value.bad(format!("more than {MOST_CANDIDATES} candidates"));
    }
    let candidates = listed.iter().filter_map(candidate).collect();
    Some(Field { value: candidates, at: value.at, key: value.key.clone() })
}

fn candidate(value: &Value<'_>) -> Option<RawCandidate> {
    if !value.is_table() {
        return Some(RawCandidate { upstream: value.string()?, weight: None });
    }
    let table = value.table()?.only(&["use", "weight"], &[]);
    let upstream = table.required("use").and_then(|value| value.string());
    let weight = table.get("weight").and_then(|value| value.whole(0..=LARGEST_WEIGHT));
    Some(RawCandidate { upstream: upstream?, weight })
}

fn fallback_on(value: &Value<'_>) -> Option<Field<Vec<Field<FallbackWord>>>> {
    const WORDS: [(&str, FallbackWord); 2] =
        [("context_length_exceeded", FallbackWord::TooLong), ("content_policy", FallbackWord::ContentPolicy)];
    let words = value.list()?.iter().filter_map(|word| word.word(&WORDS)).collect();
    Some(Field { value: words, at: value.at, key: value.key.clone() })
}

fn hedge(value: &Value<'_>) -> Option<RawHedge> {
    let table = value.table()?.only(&["after", "max_share", "max_spend"], &[]);
    Some(RawHedge {
        at: Field { value: (), at: table.at, key: table.key.clone() },
        after: table.required("after").and_then(|value| after(&value)),
        max_share: table.get("max_share").and_then(|value| share(&value)),
        max_spend: table.get("max_spend").and_then(|value| share(&value)),
    })
}

fn after(value: &Value<'_>) -> Option<Field<HedgeAfter>> {
    let text = value.string()?;
    if text.value == "p95" {
        return Some(text.with(HedgeAfter::P95));
    }
    if !text.value.starts_with(|first: char| first.is_ascii_digit()) {
        let mistake = value.mistake(Code::BadValue, "neither \"p95\" nor a length of time");
        value.report().add(mistake.hint("write \"p95\" for the route's own, or a time, as in \"1s\""));
        return None;
    }
    value.duration(ANY_LIMIT).map(|after| after.with(HedgeAfter::Fixed(after.value)))
}

/// A share above nothing, in millionths.
pub(super) fn share(value: &Value<'_>) -> Option<Field<u32>> {
    let number = value.number()?;
    match millionths(&number.value, 6).filter(|share| (1..=1_000_000).contains(share)) {
        Some(share) => Some(number.with(share)),
        None => value.bad("write a share above 0 and up to 1 with at most 6 decimals, as in 0.05"),
    }
}

fn shadow(value: &Value<'_>) -> Option<RawShadow> {
    let table = value.table()?.only(&["use", "percent", "in_flight"], &[]);
    Some(RawShadow {
        upstream: table.required("use").and_then(|value| value.string()),
        share: table.required("percent").and_then(|value| percent(&value)),
        in_flight: table.get("in_flight").and_then(|value| value.whole(1..=1000)),
    })
}

/// A percentage above nothing, in millionths of the whole.
fn percent(value: &Value<'_>) -> Option<Field<u32>> {
    let number = value.number()?;
    match millionths(&number.value, 4).filter(|share| (1..=1_000_000).contains(share)) {
        Some(share) => Some(number.with(share)),
        None => value.bad("write a percentage above 0 and up to 100 with at most 4 decimals, as in 2.5"),
    }
}

/// A plain decimal number times 10^`decimals`, nothing rounded.
pub(super) fn millionths(text: &str, decimals: usize) -> Option<u32> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || fraction.len() > decimals || !plain(whole) || !plain(fraction) {
        return None;
    }
    format!("{whole}{fraction:0<decimals$}").parse().ok()
}

pub(super) fn timeouts(value: &Value<'_>) -> Option<RawTimeouts> {
    let table = value.table()?.only(&["total", "connect", "first_content", "idle", "heartbeat"], &[]);
    let time = |name: &str| table.get(name).and_then(|value| value.duration(ANY_LIMIT));
    Some(RawTimeouts {
        total: time("total"),
        connect: time("connect"),
        first_content: time("first_content"),
        idle: time("idle"),
        heartbeat: table.get("heartbeat").and_then(|value| heartbeat(&value)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_read_from_its_own_spelling() {
        assert_eq!(millionths("0.05", 6), Some(50_000));
        assert_eq!(millionths("0.000001", 6), Some(1));
        assert_eq!(millionths("1", 6), Some(1_000_000));
        assert_eq!(millionths("2.5", 4), Some(25_000));
        assert_eq!(millionths("100", 4), Some(1_000_000));
        for bad in ["", ".5", "-1", "+1", "1e-3", "0.0000001", "nan", "99999999999"] {
            assert_eq!(millionths(bad, 6), None, "{bad}");
        }
    }
}
