//! `routes.toml`, key by key. The file itself is its documentation for people.

use std::time::Duration;

use super::callers::RawCaller;
use super::llm::{self, RawRoute};
use crate::config::error::Code;
use crate::config::read::{ANY_LIMIT, Table, Value};
use crate::config::report::Field;
use crate::config::table::OnExhausted;
use crate::config::units;
use crate::domain::decision::Score;
use crate::domain::policy::VendorAction;

const KEYS: [&str; 5] = ["version", "limits", "caller", "model", "risk"];
const PLANNED: [&str; 2] = ["jurisdiction", "test"];
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const MOST_CANDIDATES: usize = 32;

/// One file: `routes.toml` itself or an overlay.
#[derive(Default, Debug)]
pub(in crate::config) struct RawRoutes {
    pub(in crate::config) limits: Option<RawLimits>,
    pub(in crate::config) callers: Vec<RawCaller>,
    pub(in crate::config) models: Vec<RawRoute>,
    pub(in crate::config) risk: Option<RawRisk>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawLimits {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) body: Option<Field<usize>>,
    pub(in crate::config) risk_body: Option<Field<usize>>,
    pub(in crate::config) json_depth: Option<Field<usize>>,
    pub(in crate::config) head: Option<Field<usize>>,
    pub(in crate::config) head_fields: Option<Field<usize>>,
    pub(in crate::config) head_timeout: Option<Field<Duration>>,
    pub(in crate::config) body_idle: Option<Field<Duration>>,
    pub(in crate::config) write_stall: Option<Field<Duration>>,
    pub(in crate::config) keep_alive: Option<Field<Duration>>,
    pub(in crate::config) connections: Option<Field<usize>>,
    pub(in crate::config) in_flight: Option<Field<usize>>,
    pub(in crate::config) in_flight_bytes: Option<Field<usize>>,
}

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
    pub(in crate::config) on_exhausted: Option<Field<OnExhausted>>,
}

#[derive(Clone, Debug)]
pub(in crate::config) struct RawBands {
    pub(in crate::config) pass_below: Field<Score>,
    pub(in crate::config) review_from: Field<Score>,
    pub(in crate::config) reject_from: Option<Field<Score>>,
}

/// Whether a file has to say `version = 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::config) enum Part {
    /// `routes.toml`: yes.
    Main,
    /// An overlay: it may.
    Overlay,
}

impl RawRoutes {
    /// Reads a whole file.
    pub(in crate::config) fn read(root: &Table<'_>, part: Part) -> Self {
        let root = root.clone().only(&KEYS, &PLANNED);
        let version = if part == Part::Main { root.required("version") } else { root.get("version") };
        if let Some(version) = version {
            check_version(&version);
        }
        let models = root.get("model").and_then(|value| value.table());
        Self {
            limits: root.get("limits").and_then(|value| limits(&value)),
            callers: root
                .get("caller")
                .map(|value| value.tables().iter().map(RawCaller::read).collect())
                .unwrap_or_default(),
            models: models
                .map(|table| table.entries().filter_map(|entry| llm::route(&entry)).collect())
                .unwrap_or_default(),
            risk: root.get("risk").and_then(|value| risk(&value)),
        }
    }
}

fn check_version(value: &Value<'_>) {
    if value.whole::<i64>(i64::MIN..=i64::MAX).is_some_and(|version| version.value != 1) {
        value
            .report()
            .add(value.mistake(Code::Unsupported, "not a known version of this format").hint("write version = 1"));
    }
}

fn limits(value: &Value<'_>) -> Option<RawLimits> {
    const LIMIT_KEYS: [&str; 12] = [
        "body",
        "risk_body",
        "json_depth",
        "head",
        "head_fields",
        "head_timeout",
        "body_idle",
        "write_stall",
        "keep_alive",
        "connections",
        "in_flight",
        "in_flight_bytes",
    ];
    let table = value.table()?.only(&LIMIT_KEYS, &["handshake"]);
    let size = |name: &str, bounds| table.get(name).and_then(|value| value.size(bounds));
    let count = |name: &str, bounds| table.get(name).and_then(|value| value.whole(bounds));
    let time = |name: &str| table.get(name).and_then(|value| value.duration(ANY_LIMIT));
    Some(RawLimits {
        at: place(&table),
        body: size("body", 1024..=GIB),
        risk_body: size("risk_body", 1024..=16 * MIB),
        json_depth: count("json_depth", 1..=512),
        head: size("head", 1024..=MIB),
        head_fields: count("head_fields", 8..=1000),
        head_timeout: time("head_timeout"),
        body_idle: time("body_idle"),
        write_stall: time("write_stall"),
        keep_alive: time("keep_alive"),
        connections: count("connections", 1..=1_000_000),
        in_flight: count("in_flight", 1..=1_000_000),
        in_flight_bytes: size("in_flight_bytes", MIB..=1024 * GIB),
    })
}

fn risk(value: &Value<'_>) -> Option<RawRisk> {
    const RISK_KEYS: [&str; 8] =
        ["candidates", "deadline", "hard_limit", "connect", "max_attempts", "bands", "vendor_action", "on_exhausted"];
    const VENDOR: [(&str, VendorAction); 2] = [("floor", VendorAction::Floor), ("advisory", VendorAction::Advisory)];
    let table = value.table()?.only(&RISK_KEYS, &["policy", "reuse"]);
    let time = |name: &str| table.get(name).and_then(|value| value.duration(ANY_LIMIT));
    Some(RawRisk {
        at: place(&table),
        candidates: table.required("candidates").and_then(|value| candidates(&value)),
        deadline: time("deadline"),
        hard_limit: time("hard_limit"),
        connect: time("connect"),
        max_attempts: table.get("max_attempts").and_then(|value| value.whole(1..=5)),
        bands: table.required("bands").and_then(|value| bands(&value)),
        vendor_action: table.get("vendor_action").and_then(|value| value.word(&VENDOR)),
        on_exhausted: table.get("on_exhausted").and_then(|value| on_exhausted(&value)),
    })
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
fn score(value: &Value<'_>) -> Option<Field<Score>> {
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

fn on_exhausted(value: &Value<'_>) -> Option<Field<OnExhausted>> {
    const WORDS: [(&str, OnExhausted); 3] =
        [("review", OnExhausted::Review), ("reject", OnExhausted::Reject), ("error", OnExhausted::Error)];
    if value.is_string() {
        let word = value.string()?;
        let meaning = WORDS.iter().find(|(known, _)| *known == word.value).map(|(_, meaning)| *meaning);
        if meaning.is_none() {
            let mistake = value.mistake(Code::BadValue, "not one of the known words");
            value.report().add(mistake.hint("known: review, reject, error, or { accept_up_to = \"50.00 CNY\" }"));
        }
        return Some(word.with(meaning?));
    }
    let amount = value.table()?.only(&["accept_up_to"], &[]).required("accept_up_to")?;
    let text = amount.string()?;
    match units::money(&text.value) {
        Ok(money) => Some(text.with(OnExhausted::AcceptUpTo(money))),
        Err(error) => amount.bad(error.to_string()),
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

fn place(table: &Table<'_>) -> Field<()> {
    Field { value: (), at: table.at, key: table.key.clone() }
}
