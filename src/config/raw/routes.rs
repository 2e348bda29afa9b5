//! `routes.toml`, key by key. The file itself is its documentation for people.

use std::time::Duration;

use super::callers::RawCaller;
use super::cases::RawCase;
use super::jurisdiction::RawJurisdiction;
use super::lint::{self, RawAllowed};
use super::llm::{self, RawRoute};
use super::overload;
use super::reload::RawReload;
use super::risk::{self, RawRisk};
use super::traces::RawTraces;
use super::webhook::RawWebhook;
use crate::config::error::Code;
use crate::config::read::{ANY_LIMIT, Table, Value};
use crate::config::report::Field;

const KEYS: [&str; 12] = [
    "version",
    "lint",
    "disabled",
    "limits",
    "reload",
    "caller",
    "model",
    "risk",
    "jurisdiction",
    "webhook",
    "traces",
    "test",
];
const PLANNED: [&str; 0] = [];
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// One file: `routes.toml` itself or an overlay.
#[derive(Default, Debug)]
pub(in crate::config) struct RawRoutes {
    pub(in crate::config) allowed: Vec<RawAllowed>,
    pub(in crate::config) disabled: Vec<Field<String>>,
    pub(in crate::config) limits: Option<RawLimits>,
    pub(in crate::config) reload: Option<RawReload>,
    pub(in crate::config) callers: Vec<RawCaller>,
    pub(in crate::config) models: Vec<RawRoute>,
    pub(in crate::config) risk: Option<RawRisk>,
    pub(in crate::config) webhooks: Vec<RawWebhook>,
    pub(in crate::config) traces: Option<RawTraces>,
    pub(in crate::config) jurisdictions: Vec<RawJurisdiction>,
    pub(in crate::config) cases: Vec<RawCase>,
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
    pub(in crate::config) handshake: Option<Field<Duration>>,
    pub(in crate::config) connections: Option<Field<usize>>,
    pub(in crate::config) in_flight: Option<Field<usize>>,
    pub(in crate::config) in_flight_bytes: Option<Field<usize>>,
    pub(in crate::config) memory: Option<Field<usize>>,
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
            allowed: root.get("lint").map(|value| lint::allowed(&value)).unwrap_or_default(),
            disabled: root.get("disabled").and_then(|value| value.strings()).unwrap_or_default(),
            limits: root.get("limits").and_then(|value| limits(&value)),
            reload: root.get("reload").and_then(|value| RawReload::read(&value)),
            callers: root
                .get("caller")
                .map(|value| value.tables().iter().map(RawCaller::read).collect())
                .unwrap_or_default(),
            models: models
                .map(|table| table.entries().filter_map(|entry| llm::route(&entry)).collect())
                .unwrap_or_default(),
            risk: root.get("risk").and_then(|value| risk::risk(&value)),
            webhooks: root
                .get("webhook")
                .map(|value| value.tables().iter().map(RawWebhook::read).collect())
                .unwrap_or_default(),
            traces: root.get("traces").and_then(|value| RawTraces::read(&value)),
            jurisdictions: root.get("jurisdiction").map(|value| RawJurisdiction::read_all(&value)).unwrap_or_default(),
            cases: root.get("test").map(|value| RawCase::read_all(&value)).unwrap_or_default(),
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
    const LIMIT_KEYS: [&str; 14] = [
        "body",
        "risk_body",
        "json_depth",
        "head",
        "head_fields",
        "head_timeout",
        "body_idle",
        "write_stall",
        "keep_alive",
        "handshake",
        "connections",
        "in_flight",
        "in_flight_bytes",
        "memory",
    ];
    let table = value.table()?.only(&LIMIT_KEYS, &[]);
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
        handshake: time("handshake"),
        connections: count("connections", 1..=1_000_000),
        in_flight: count("in_flight", 1..=1_000_000),
        in_flight_bytes: size("in_flight_bytes", MIB..=1024 * GIB),
        memory: table.get("memory").and_then(|value| overload::memory(&value)),
    })
}

pub(super) fn place(table: &Table<'_>) -> Field<()> {
    Field { value: (), at: table.at, key: table.key.clone() }
}
