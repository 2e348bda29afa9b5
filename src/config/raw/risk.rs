//! `[risk]`: payment decisions.

use std::time::Duration;

use crate::config::audit::OnUnrecorded;
use crate::config::read::{ANY_LIMIT, Value};
use crate::config::report::Field;
use crate::domain::decision::Score;
use crate::domain::policy::{FailureModes, VendorAction};

use super::budgets::RawSpending;
use super::lists::RawList;
use super::policy::{RawPolicy, on_exhausted};
use super::reuse::RawReuse;
use super::routes::place;
use super::velocity::RawVelocity;

const MOST_CANDIDATES: usize = 32;

#[derive(Debug)]
pub(in crate::config) struct RawRisk {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) candidates: Option<Field<Vec<Field<String>>>>,
    pub(in crate::config) deadline: Option<Field<Duration>>,
    pub(in crate::config) hard_limit: Option<Field<Duration>>,
    pub(in crate::config) connect: Option<Field<Duration>>,
    pub(in crate::config) max_attempts: Option<Field<u32>>,
    pub(in crate::config) bands: Option<RawBands>,
    pub(in crate::config) vendor_action: Option<Field<VendorAction>>,
    pub(in crate::config) velocity: Vec<RawVelocity>,
    pub(in crate::config) reuse: Option<RawReuse>,
    pub(in crate::config) audit: Option<Field<OnUnrecorded>>,
    pub(in crate::config) spending: RawSpending,
    pub(in crate::config) on_exhausted: Option<Field<FailureModes>>,
    pub(in crate::config) policies: Vec<RawPolicy>,
    pub(in crate::config) lists: Vec<RawList>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawBands {
    pub(in crate::config) pass_below: Field<Score>,
    pub(in crate::config) review_from: Field<Score>,
    pub(in crate::config) reject_from: Option<Field<Score>>,
}

pub(super) fn risk(value: &Value<'_>) -> Option<RawRisk> {
    const RISK_KEYS: [&str; 15] = [
        "candidates",
        "deadline",
        "hard_limit",
        "connect",
        "max_attempts",
        "bands",
        "vendor_action",
        "on_exhausted",
        "velocity",
        "reuse",
        "audit",
        "budget",
        "ladder",
        "policy",
        "list",
    ];
    const AUDIT: [(&str, OnUnrecorded); 2] = [("refuse", OnUnrecorded::Refuse), ("continue", OnUnrecorded::Continue)];
    let table = value.table()?.only(&RISK_KEYS, &[]);
    let time = |name: &str| table.get(name).and_then(|value| value.duration(ANY_LIMIT));
    Some(RawRisk {
        at: place(&table),
        candidates: table.required("candidates").and_then(|value| candidates(&value)),
        deadline: time("deadline"),
        hard_limit: time("hard_limit"),
        connect: time("connect"),
        max_attempts: table.get("max_attempts").and_then(|value| value.whole(1..=5)),
        bands: table.required("bands").and_then(|value| bands(&value)),
        vendor_action: table.get("vendor_action").and_then(|value| vendor_action(&value)),
        on_exhausted: table.get("on_exhausted").and_then(|value| on_exhausted(&value)),
        velocity: table.get("velocity").map(|value| RawVelocity::read_all(&value)).unwrap_or_default(),
        reuse: table.get("reuse").and_then(|value| RawReuse::read(&value)),
        audit: table.get("audit").and_then(|value| value.word(&AUDIT)),
        spending: RawSpending::read(&table),
        policies: table
            .get("policy")
            .map(|value| value.tables().iter().map(RawPolicy::read).collect())
            .unwrap_or_default(),
        lists: table.get("list").map(|value| value.tables().iter().map(RawList::read).collect()).unwrap_or_default(),
    })
}

pub(super) fn vendor_action(value: &Value<'_>) -> Option<Field<VendorAction>> {
    const VENDOR: [(&str, VendorAction); 2] = [("floor", VendorAction::Floor), ("advisory", VendorAction::Advisory)];
    value.word(&VENDOR)
}

fn bands(value: &Value<'_>) -> Option<RawBands> {
    let table = value.table()?.only(&["pass_below", "review_from", "reject_from"], &[]);
    let pass_below = table.required("pass_below").and_then(|value| score(&value));
    let review_from = table.required("review_from").and_then(|value| score(&value));
    let reject_from = table.get("reject_from").map(|value| score(&value));
    let reject_from = match reject_from {
        Some(None) => return None,
        Some(threshold) => threshold,
        None => None,
    };
    Some(RawBands { pass_below: pass_below?, review_from: review_from?, reject_from })
}

/// A threshold, from its own spelling: a seventh decimal would be cut, so it is refused.
pub(super) fn score(value: &Value<'_>) -> Option<Field<Score>> {
    let number = value.number()?;
    let decimals = number.value.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let plain = number.value.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if !plain || decimals > 6 {
        return value.bad("write a plain number between 0 and 1 with at most 6 decimals, as in 0.3");
    }
    match Score::parse(&number.value) {
        Some(score) => Some(number.with(score)),
        None => value.bad("must be between 0 and 1"),
    }
}

/// The route's candidates, each of which may be asked once per call.
fn candidates(value: &Value<'_>) -> Option<Field<Vec<Field<String>>>> {
    let candidates = value.string_list()?;
    if candidates.value.len() > MOST_CANDIDATES {
        return value.bad(format!("more than {MOST_CANDIDATES} candidates"));
    }
    Some(candidates)
}
