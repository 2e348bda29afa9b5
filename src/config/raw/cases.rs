//! `[[test]]`, key by key: what is asked, and what must come of it.
//!
//! A payment is given in the words of the request it stands for and read by the same reader, so that nothing can be tested
//! that could not be asked. What a test does not say has a value that means nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::policy::{RawSomeBands, some_bands};
use super::risk::score;
use super::routes::place;
use crate::config::cases::{ERRORS, NOON};
use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::config::units;
use crate::domain::decision::{Action, FallbackReason, Score};
use crate::domain::operation::Operation;
use crate::wire::risk::{self, Assessment};

/// Longest name of a test, in characters.
const LONGEST_NAME: usize = 100;
const LARGEST_BODY: usize = 32 << 20;
const DAY_MS: i64 = 86_400_000;
/// Most days that somebody can be known.
const MOST_DAYS: i64 = 36_500;
/// A body of this many bytes, unless a test says another size.
const USUAL_BODY: usize = 1_000;
const MOST_WORDS: usize = 64;

#[derive(Debug)]
pub(in crate::config) struct RawCase {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) given: Option<RawGiven>,
    pub(in crate::config) expected: Option<RawExpected>,
}

/// What is asked, and what is down then.
#[derive(Debug)]
pub(in crate::config) struct RawGiven {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) caller: Option<Field<String>>,
    pub(in crate::config) down: Vec<Field<String>>,
    /// `None` if it could not be read; that was reported.
    pub(in crate::config) asked: Option<RawAsked>,
}

#[derive(Debug)]
pub(in crate::config) enum RawAsked {
    Model(RawModelCall),
    Payment(Box<RawPayment>),
}

#[derive(Debug)]
pub(in crate::config) struct RawModelCall {
    pub(in crate::config) model: Field<String>,
    pub(in crate::config) operation: Operation,
    pub(in crate::config) bytes: usize,
    pub(in crate::config) stream: bool,
    pub(in crate::config) headers: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(in crate::config) struct RawPayment {
    pub(in crate::config) assessment: Assessment,
    pub(in crate::config) now_ms: u64,
    pub(in crate::config) score: Option<Score>,
    pub(in crate::config) recommendation: Option<String>,
    pub(in crate::config) fails: Option<FallbackReason>,
    pub(in crate::config) lists: Vec<Field<String>>,
    pub(in crate::config) velocity: Vec<(Field<String>, i64)>,
}

#[derive(Debug)]
pub(in crate::config) struct RawExpected {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) order: Option<Field<Vec<Field<String>>>>,
    pub(in crate::config) any_order: Option<Field<Vec<Field<String>>>>,
    pub(in crate::config) route: Option<Field<String>>,
    pub(in crate::config) error: Option<Field<&'static str>>,
    pub(in crate::config) action: Option<Field<Action>>,
    pub(in crate::config) policy: Option<Field<String>>,
    pub(in crate::config) bands: Option<Field<RawSomeBands>>,
}

impl RawCase {
    /// Reads every test of a file.
    pub(super) fn read_all(value: &Value<'_>) -> Vec<Self> {
        value.tables().iter().map(Self::read).collect()
    }

    fn read(table: &Table<'_>) -> Self {
        let table = table.clone().only(&["name", "given", "expect"], &[]);
        Self {
            at: place(&table),
            name: table.required("name").and_then(|value| name(&value)),
            given: table.required("given").and_then(|value| given(&value)),
            expected: table.required("expect").and_then(|value| expected(&value)),
        }
    }
}

/// A sentence for people; it appears in mistakes and logs.
fn name(value: &Value<'_>) -> Option<Field<String>> {
    let name = value.string()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_.,:;()%/+'".contains(c);
    let begins_well = name.value.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.value.len() <= LONGEST_NAME && name.value.chars().all(plain) && !name.value.ends_with(' ') {
        return Some(name);
    }
    let rule = "a test's name has 1 to 100 letters, digits, spaces and - _ . , : ; ( ) % / + ', and begins with a letter or digit";
    value.bad(rule)
}

const MODEL_KEYS: [&str; 7] = ["caller", "down", "model", "operation", "bytes", "stream", "headers"];
const PAYMENT_KEYS: [&str; 16] = [
    "caller",
    "down",
    "out_trade_no",
    "amount",
    "subject",
    "merchant",
    "user",
    "instrument",
    "device",
    "features",
    "at",
    "risk_score",
    "recommendation",
    "fails",
    "lists",
    "velocity",
];

fn given(value: &Value<'_>) -> Option<RawGiven> {
    let table = value.table()?;
    let asks_a_model = table.get("model").is_some();
    let is_payment = table.get("amount").is_some();
    let table = match (asks_a_model, is_payment) {
        (true, _) => table.only(&MODEL_KEYS, &[]),
        (false, true) => table.only(&PAYMENT_KEYS, &[]),
        (false, false) => {
            let mistake = table.mistake(Code::MissingKey, "nothing is asked");
            let hint = "give model = \"..\" for a call to a model, or amount = \"88.00 CNY\" for a payment";
            table.report().add(mistake.hint(hint));
            return None;
        }
    };
    let asked = if asks_a_model {
        model_call(&table).map(RawAsked::Model)
    } else {
        payment(&table).map(|payment| RawAsked::Payment(Box::new(payment)))
    };
    Some(RawGiven {
        at: place(&table),
        caller: table.get("caller").and_then(|value| value.string()),
        down: strings(&table, "down"),
        asked,
    })
}

fn strings(table: &Table<'_>, name: &str) -> Vec<Field<String>> {
    let Some(value) = table.get(name) else { return Vec::new() };
    let strings = value.strings().unwrap_or_default();
    if strings.len() > MOST_WORDS {
        let _: Option<()> = value.bad(format!("more than {MOST_WORDS} entries"));
    }
    strings.into_iter().take(MOST_WORDS).collect()
}

fn model_call(table: &Table<'_>) -> Option<RawModelCall> {
    let words: Vec<_> =
        Operation::ALL.into_iter().filter(|known| known.asks_a_model()).map(|known| (known.label(), known)).collect();
    let operation = table.get("operation").map(|value| value.word(&words));
    let bytes = table.get("bytes").map(|value| value.whole(1..=LARGEST_BODY));
    let stream = table.get("stream").map(|value| value.flag());
    let headers = table.get("headers").map(|value| headers(&value)).unwrap_or_default();
    Some(RawModelCall {
        model: table.get("model").and_then(|value| value.string())?,
        operation: operation.map_or(Some(Operation::ChatCompletions), |word| word.map(|word| word.value))?,
        bytes: bytes.map_or(Some(USUAL_BODY), |bytes| bytes.map(|bytes| bytes.value))?,
        stream: stream.map_or(Some(false), |stream| stream.map(|stream| stream.value))?,
        headers,
    })
}

fn headers(value: &Value<'_>) -> BTreeMap<String, String> {
    let entries: Vec<_> = value.table().map(|table| table.entries().collect()).unwrap_or_default();
    let text =
        |(name, value): (Field<String>, Value<'_>)| Some((name.value.to_ascii_lowercase(), value.string()?.value));
    entries.into_iter().take(MOST_WORDS).filter_map(text).collect()
}

const FAILURES: [(&str, FallbackReason); 5] = [
    ("deadline", FallbackReason::Deadline),
    ("unavailable", FallbackReason::Unavailable),
    ("no_verdict", FallbackReason::NoVerdict),
    ("not_authentic", FallbackReason::NotAuthentic),
    ("budget", FallbackReason::Budget),
];

fn payment(table: &Table<'_>) -> Option<RawPayment> {
    let now_ms = match table.get("at") {
        Some(value) => moment(&value),
        None => Some(NOON),
    };
    // Read whatever is wrong elsewhere, so that one run shows all.
    let score = table.get("risk_score").map(|value| score(&value));
    let recommendation = table.get("recommendation").map(|value| value.string());
    let fails = table.get("fails").map(|value| value.word(&FAILURES));
    let velocity = table.get("velocity").map(|value| counters(&value)).unwrap_or_default();
    let lists = strings(table, "lists");
    let assessment = assessment(table, now_ms?);
    let fails = fails.map_or(Some(None), |word| word.map(|word| Some(word.value)))?;
    let verdict = table.get("risk_score").or_else(|| table.get("recommendation"));
    if let Some(verdict) = verdict.filter(|_| fails.is_some()) {
        let mistake = verdict.mistake(Code::Conflict, "where no verdict comes there is no score and no recommendation");
        table.report().add(mistake.hint("remove it, or remove `fails`"));
    }
    Some(RawPayment {
        assessment: assessment?,
        now_ms: u64::try_from(now_ms?).ok()?,
        score: score.map_or(Some(None), |score| score.map(|score| Some(score.value)))?,
        recommendation: recommendation.map_or(Some(None), |word| word.map(|word| Some(word.value)))?,
        fails,
        lists,
        velocity,
    })
}

fn moment(value: &Value<'_>) -> Option<i64> {
    let text = value.string()?;
    let moment = OffsetDateTime::parse(&text.value, &Rfc3339).ok();
    let ms = moment.and_then(|moment| i64::try_from(moment.unix_timestamp_nanos().div_euclid(1_000_000)).ok());
    match ms.filter(|ms| (0..253_402_300_800_000).contains(ms)) {
        Some(ms) => Some(ms),
        None => value.bad("must be a moment as in RFC 3339, \"2026-01-31T00:00:00Z\""),
    }
}

fn counters(value: &Value<'_>) -> Vec<(Field<String>, i64)> {
    let entries: Vec<_> = value.table().map(|table| table.entries().collect()).unwrap_or_default();
    let number = |(name, value): (Field<String>, Value<'_>)| Some((name, value.whole(0..=i64::MAX)?.value));
    entries.into_iter().take(MOST_WORDS).filter_map(number).collect()
}

/// A key that is days, and the moment it stands for.
type Days = Option<(&'static str, &'static str)>;

/// Sections of a request, their keys, and what stands for days.
const SECTIONS: [(&str, &[&str], Days); 4] = [
    ("merchant", &["id", "category", "country"], None),
    (
        "user",
        &["id", "country", "email", "phone", "registered_at", "registered_days"],
        Some(("registered_days", "registered_at")),
    ),
    ("instrument", &["type", "fingerprint", "bin", "last4"], None),
    ("device", &["id", "ip", "known_since", "known_days"], Some(("known_days", "known_since"))),
];

/// The request the test stands for, read as a request is.
fn assessment(table: &Table<'_>, now_ms: i64) -> Option<Assessment> {
    let amount = table.get("amount")?;
    let money = amount.string()?;
    if let Err(error) = units::money(&money.value) {
        return amount.bad(error.to_string());
    }
    let (number, currency) = money.value.split_once(' ')?;
    let mut body = Map::new();
    let mut put = |name: &str, value: Json| body.insert(name.to_owned(), value);
    for (name, usual) in [("out_trade_no", "TEST"), ("subject", "test")] {
        put(name, table.get(name).map_or_else(|| Some(json!(usual)), |value| value.json(1))?);
    }
    put("total_amount", json!(number));
    put("currency", json!(currency));
    for (name, keys, days) in SECTIONS {
        let mut section = match table.get(name) {
            Some(value) => section(&value, keys, days, now_ms)?,
            None => Map::new(),
        };
        if matches!(name, "merchant" | "user") {
            section.entry("id").or_insert_with(|| json!("test"));
        }
        put(name, Json::Object(section));
    }
    if let Some(features) = table.get("features") {
        put("features", features.json(2)?);
    }
    let read = risk::decode(Json::Object(body).to_string().as_bytes());
    read.inspect_err(|mistakes| {
        for mistake in mistakes {
            let place = place_of(table, &mistake.pointer);
            // The reader never repeats a value.
            table.report().add(place.mistake(Code::BadValue, mistake.message.clone()));
        }
    })
    .ok()
}

fn section(value: &Value<'_>, keys: &[&str], days: Days, now_ms: i64) -> Option<Map<String, Json>> {
    let table = value.table()?.only(keys, &[]);
    let mut section = Map::new();
    for name in keys {
        let Some(value) = table.get(name) else { continue };
        match days.filter(|(days, _)| days == name) {
            None => section.insert((*name).to_owned(), value.json(1)?),
            Some((_, moment)) => {
                let then = now_ms - value.whole(0..=MOST_DAYS)?.value * DAY_MS;
                let then = OffsetDateTime::from_unix_timestamp(then.div_euclid(1_000)).ok()?;
                section.insert(moment.to_owned(), json!(then.format(&Rfc3339).ok()?))
            }
        };
    }
    Some(section)
}

/// Where a field of the request stands in the test, as near as can be said.
fn place_of(table: &Table<'_>, pointer: &str) -> Field<()> {
    let mut steps = pointer.trim_start_matches('/').split('/');
    let top = steps.next().map(|top| if matches!(top, "total_amount" | "currency") { "amount" } else { top });
    let Some(value) = top.and_then(|top| table.get(top)) else { return place(table) };
    let below = steps.next().filter(|_| value.is_table());
    let deeper = below.and_then(|name| value.table()?.get(name));
    let found = deeper.unwrap_or(value);
    Field { value: (), at: found.at, key: found.key }
}

fn expected(value: &Value<'_>) -> Option<RawExpected> {
    const KEYS: [&str; 7] = ["order", "any_order", "route", "error", "action", "policy", "bands"];
    const ACTIONS: [(&str, Action); 4] = [
        ("PASS", Action::Pass),
        ("CHALLENGE", Action::Challenge),
        ("REVIEW", Action::Review),
        ("REJECT", Action::Reject),
    ];
    let table = value.table()?.only(&KEYS, &["rule"]);
    if !table.entries().any(|_| true) {
        let mistake = table.mistake(Code::MissingKey, "nothing is expected, so the test can never fail");
        table.report().add(mistake.hint("write order = [..], action = \"REVIEW\", policy = \"..\" or error = \"..\""));
    }
    let errors = ERRORS.map(|(word, _)| (word, word));
    Some(RawExpected {
        at: place(&table),
        order: table.get("order").and_then(|value| value.string_list()),
        any_order: table.get("any_order").and_then(|value| value.string_list()),
        route: table.get("route").and_then(|value| value.string()),
        error: table.get("error").and_then(|value| value.word(&errors)),
        action: table.get("action").and_then(|value| value.word(&ACTIONS)),
        policy: table.get("policy").and_then(|value| value.string()),
        bands: table.get("bands").and_then(|value| {
            let (at, key) = (value.at, value.key.clone());
            some_bands(&value).map(|bands| Field { value: bands, at, key })
        }),
    })
}

/// Counters by name.
pub(in crate::config) fn by_name(counters: &[(Field<String>, i64)]) -> BTreeMap<String, i64> {
    counters.iter().map(|(name, number)| (name.value.clone(), *number)).collect()
}
