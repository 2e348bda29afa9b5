//! `timeouts.heartbeat` of a route: how long a stream may be silent before its client is told that it goes on.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::error::Code;
use crate::config::read::Value;
use crate::config::report::Field;

/// Shorter ones are traffic, longer ones keep no connection open.
const SENSIBLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// A time, or `"off"`.
pub(super) fn heartbeat(value: &Value<'_>) -> Option<Field<Option<Duration>>> {
    let text = value.string()?;
    if text.value == "off" {
        return Some(text.with(None));
    }
    if !text.value.starts_with(|first: char| first.is_ascii_digit()) {
        let mistake = value.mistake(Code::BadValue, "neither \"off\" nor a length of time");
        value.report().add(mistake.hint("write a time, as in \"15s\", or \"off\" for none"));
        return None;
    }
    value.duration(SENSIBLE).map(|every| every.with(Some(every.value)))
}
