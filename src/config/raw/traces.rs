//! `[traces]`, key by key.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::llm::millionths;
use super::provider::{RawAuth, auth, headers};
use super::routes::place;
use crate::config::read::Value;
use crate::config::report::Field;

const KEYS: [&str; 7] = ["otlp", "sample", "auth", "headers", "queue", "timeout", "forward_to"];
/// One try to hand spans over.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// Traces that wait; each takes a kilobyte or two.
const QUEUE: RangeInclusive<usize> = 16..=65_536;

#[derive(Clone, Debug)]
pub(in crate::config) struct RawTraces {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) otlp: Option<Field<String>>,
    pub(in crate::config) sample: Option<Field<u32>>,
    pub(in crate::config) auth: Option<RawAuth>,
    pub(in crate::config) headers: Vec<(Field<String>, Field<String>)>,
    pub(in crate::config) queue: Option<Field<usize>>,
    pub(in crate::config) timeout: Option<Field<Duration>>,
    pub(in crate::config) forward_to: Vec<Field<String>>,
}

impl RawTraces {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?.only(&KEYS, &[]);
        Some(Self {
            at: place(&table),
            otlp: table.required("otlp").and_then(|value| value.string()),
            sample: table.get("sample").and_then(|value| share(&value)),
            auth: table.get("auth").and_then(|value| auth(&value)),
            headers: table.get("headers").map(|value| headers(&value)).unwrap_or_default(),
            queue: table.get("queue").and_then(|value| value.whole(QUEUE)),
            timeout: table.get("timeout").and_then(|value| value.duration(TIMEOUT)),
            forward_to: table.get("forward_to").and_then(|value| value.strings()).unwrap_or_default(),
        })
    }
}

/// A share in millionths; nothing at all is one too, for those who only go on with their callers' traces.
fn share(value: &Value<'_>) -> Option<Field<u32>> {
    let number = value.number()?;
    match millionths(&number.value, 6).filter(|share| *share <= 1_000_000) {
        Some(share) => Some(number.with(share)),
        None => value.bad("write a share from 0 to 1 with at most 6 decimals, as in 0.1"),
    }
}
