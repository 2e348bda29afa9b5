//! The access log: one line for each call, written when its answer has ended.
//!
//! It is on for every call, so it does not take `tracing`'s generic path: fields go straight into the buffer of the
//! current core. Every text is cut to 1 KiB and everything that could steer a terminal, break a line or reorder text is
//! escaped (S12). It holds names, numbers and closed words only: no body, no header, no key.

pub mod actions;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use super::labels::{AttemptOutcome, RequestOutcome};
use super::lines::Lines;
use super::logs::{LogFormat, field};
use super::tail::{Tail, Traits};
use super::traces::TraceId;
use crate::domain::clock;
use crate::domain::decision::{Action, DecisionSource};
use crate::domain::money::Cost;
use crate::domain::outcome::End;
use crate::domain::usage::Usage;

/// Longest text in one field, in bytes before escaping.
const LONGEST_FIELD: usize = 1_024;

/// What is said about one call. Absent fields are left out of the line.
#[derive(Clone, Debug)]
pub struct AccessRecord<'a> {
    /// The call's identity.
    pub call_id: &'a str,
    /// The call that was the cause of this one, if no client was.
    pub cause: Option<&'a str>,
    /// How it ended for the caller.
    pub outcome: RequestOutcome,
    /// The HTTP status sent; zero if none was.
    pub status: u16,
    /// Who called.
    pub caller: Option<&'a str>,
    /// Whose data it is.
    pub tenant: Option<&'a str>,
    /// The route that was chosen.
    pub route: Option<&'a str>,
    /// What was asked for.
    pub operation: Option<&'static str>,
    /// Every attempt, in order.
    pub attempts: &'a [AttemptNote<'a>],
    /// The provider that answered.
    pub provider: Option<&'a str>,
    /// The model that answered.
    pub model: Option<&'a str>,
    /// What the cache did.
    pub cache: Option<&'static str>,
    /// From the first byte of the request to the last byte of the answer.
    pub duration: Duration,
    /// Time spent in this process.
    pub overhead: Duration,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the answer's body.
    pub bytes_out: u64,
    /// Tokens as the provider counted them.
    pub usage: Usage,
    /// What it cost.
    pub cost: Option<Cost>,
    /// How the answer's body ended, for streamed ones.
    pub stream_end: Option<End>,
    /// What a risk call was answered, and where that came from.
    pub decision: Option<(Action, DecisionSource)>,
    /// The stable word for what went wrong.
    pub error_code: Option<&'static str>,
    /// The configuration's version in its short form.
    pub config_version: Option<&'a str>,
    /// How often the client says it has tried before.
    pub client_retries: Option<u32>,
    /// The trace it belongs to, where there are traces.
    pub trace: Option<TraceId>,
}

/// One attempt as the access log shows it.
#[derive(Clone, Copy, Debug)]
pub struct AttemptNote<'a> {
    /// Provider and model, or provider alone.
    pub upstream: &'a str,
    /// How it ended.
    pub outcome: AttemptOutcome,
}

/// Writes access lines. Clones write to the same log.
#[derive(Clone)]
pub struct AccessLog {
    format: LogFormat,
    lines: Lines,
    tail: Arc<Tail>,
}

impl<'a> AccessRecord<'a> {
    /// A record that says nothing but which call ended and how.
    pub fn new(call_id: &'a str, outcome: RequestOutcome) -> Self {
        Self {
            call_id,
            cause: None,
            outcome,
            status: 0,
            caller: None,
            tenant: None,
            route: None,
            operation: None,
            attempts: &[],
            provider: None,
            model: None,
            cache: None,
            duration: Duration::ZERO,
            overhead: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            usage: Usage::default(),
            cost: None,
            stream_end: None,
            decision: None,
            error_code: None,
            config_version: None,
            client_retries: None,
            trace: None,
        }
    }
}

impl AccessLog {
    /// An access log that writes to `lines`.
    pub fn new(format: LogFormat, lines: Lines) -> Self {
        Self { format, lines, tail: Arc::default() }
    }

    /// Writes one line. Never waits: if the log is full the line is dropped and counted.
    pub fn access(&self, record: &AccessRecord<'_>) {
        self.lines.append(|out| write_record(self.format, record, out));
        if self.tail.is_read() {
            let call = Traits { route: record.route, caller: record.caller, outcome: record.outcome };
            self.tail.offer(call, |out| write_record(LogFormat::Json, record, out));
        }
    }

    /// Where people read along.
    pub fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }
}

fn write_record(format: LogFormat, record: &AccessRecord<'_>, out: &mut Vec<u8>) {
    let mut line = match format {
        LogFormat::Json => Line::json(out),
        LogFormat::Text => Line::text(out),
    };
    line.text_field(field::CALL_ID, Some(record.call_id));
    line.text_field(field::CAUSE, record.cause);
    line.text_field(field::CALLER_ID, record.caller);
    line.text_field(field::TENANT_ID, record.tenant);
    line.word(field::OPERATION, record.operation);
    line.text_field(field::ROUTE_ID, record.route);
    line.number(field::STATUS, u64::from(record.status));
    line.word(field::OUTCOME, Some(record.outcome.label()));
    line.word(field::ERROR_CODE, record.error_code);
    line.attempts(record.attempts);
    line.text_field(field::PROVIDER_ID, record.provider);
    line.text_field(field::MODEL, record.model);
    line.word(field::CACHE, record.cache);
    if let Some((action, source)) = record.decision {
        line.word(field::DECISION, Some(action.as_str()));
        line.word(field::DECISION_SOURCE, Some(source.as_str()));
    }
    line.milliseconds(field::DURATION_MS, record.duration);
    line.number(field::OVERHEAD_US, u64::try_from(record.overhead.as_micros()).unwrap_or(u64::MAX));
    line.number(field::BYTES_IN, record.bytes_in);
    line.number(field::BYTES_OUT, record.bytes_out);
    line.optional_number(field::TOKENS_IN, record.usage.input_tokens);
    line.optional_number(field::TOKENS_OUT, record.usage.output_tokens);
    if let Some(cost) = record.cost {
        line.text_field(field::COST, Some(cost.text().as_str()));
    }
    line.word(field::STREAM_END, record.stream_end.map(End::label));
    line.text_field(field::CONFIG_VERSION, record.config_version);
    line.optional_number(field::CLIENT_RETRIES, record.client_retries.map(u64::from));
    if let Some(trace) = record.trace {
        line.text_field(field::TRACE_ID, std::str::from_utf8(&trace.text()).ok());
    }
    line.end();
}

/// One line being written. Writing to a `Vec` cannot fail, so results of `write!` are dropped.
struct Line<'a> {
    format: LogFormat,
    out: &'a mut Vec<u8>,
}

impl<'a> Line<'a> {
    fn json(out: &'a mut Vec<u8>) -> Self {
        out.extend_from_slice(b"{\"timestamp\":\"");
        write_now(out);
        out.extend_from_slice(b"\",\"level\":\"INFO\",\"target\":\"access\"");
        Self { format: LogFormat::Json, out }
    }

    fn text(out: &'a mut Vec<u8>) -> Self {
        write_now(out);
        out.extend_from_slice(b"  INFO access:");
        Self { format: LogFormat::Text, out }
    }

    fn end(self) {
        match self.format {
            LogFormat::Json => self.out.extend_from_slice(b"}\n"),
            LogFormat::Text => self.out.push(b'\n'),
        }
    }

    /// Called with constants only: inlined, each name is a few stores instead of three copies of unknown length.
    #[expect(clippy::inline_always, reason = "without it the compiler keeps one copy for all names, which is slower")]
    #[inline(always)]
    fn name(&mut self, name: &'static str) {
        match self.format {
            LogFormat::Json => {
                self.out.extend_from_slice(b",\"");
                self.out.extend_from_slice(name.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            LogFormat::Text => {
                self.out.push(b' ');
                self.out.extend_from_slice(name.as_bytes());
                self.out.push(b'=');
            }
        }
    }

    #[expect(clippy::inline_always, reason = "as for the name")]
    #[inline(always)]
    fn text_field(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            self.text_value(value);
        }
    }

    fn text_value(&mut self, value: &str) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+@".contains(&byte);
        let quoted = self.format == LogFormat::Json || value.is_empty() || !value.bytes().all(plain);
        if quoted {
            self.out.push(b'"');
        }
        write_escaped(cut(value, LONGEST_FIELD), self.out);
        if quoted {
            self.out.push(b'"');
        }
    }

    /// A word of ours, which has nothing to escape.
    #[expect(clippy::inline_always, reason = "as for the name")]
    #[inline(always)]
    fn word(&mut self, name: &'static str, word: Option<&'static str>) {
        let Some(word) = word else { return };
        self.name(name);
        if self.format == LogFormat::Json {
            self.out.push(b'"');
        }
        self.out.extend_from_slice(word.as_bytes());
        if self.format == LogFormat::Json {
            self.out.push(b'"');
        }
    }

    #[expect(clippy::inline_always, reason = "as for the name")]
    #[inline(always)]
    fn number(&mut self, name: &'static str, value: u64) {
        self.name(name);
        digits(value, self.out);
    }

    fn optional_number(&mut self, name: &'static str, value: Option<u64>) {
        if let Some(value) = value {
            self.number(name, value);
        }
    }

    fn milliseconds(&mut self, name: &'static str, value: Duration) {
        self.name(name);
        digits(u64::try_from(value.as_millis()).unwrap_or(u64::MAX), self.out);
        self.out.push(b'.');
        three_digits(value.subsec_micros() % 1_000, self.out);
    }

    /// `a/m:overloaded,b/m:ok`, whole attempts only, up to the longest field.
    fn attempts(&mut self, attempts: &[AttemptNote<'_>]) {
        if attempts.is_empty() {
            return;
        }
        self.name(field::ATTEMPTS);
        self.out.push(b'"');
        let start = self.out.len();
        for (index, attempt) in attempts.iter().enumerate() {
            let label = match attempt.outcome {
                AttemptOutcome::Failed(_) | AttemptOutcome::Outpaced => attempt.outcome.reason(),
                AttemptOutcome::Ok | AttemptOutcome::Abandoned => attempt.outcome.label(),
            };
            if self.out.len() - start + attempt.upstream.len() + label.len() + 2 > LONGEST_FIELD {
                break;
            }
            if index > 0 {
                self.out.push(b',');
            }
            write_escaped(attempt.upstream, self.out);
            self.out.push(b':');
            self.out.extend_from_slice(label.as_bytes());
        }
        self.out.push(b'"');
    }
}

/// Numbers without the machinery of `format!`, which would be most of the work of a line.
fn digits(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// A number below 1,000 with its leading zeros.
fn three_digits(value: u32, out: &mut Vec<u8>) {
    out.extend([value / 100, value / 10 % 10, value % 10].map(|digit| b'0' + (digit % 10) as u8));
}

/// The longest beginning of `text` that is at most `longest` bytes.
fn cut(text: &str, longest: usize) -> &str {
    if text.len() <= longest {
        return text;
    }
    let end = (0..=longest).rev().find(|&end| text.is_char_boundary(end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

/// Escapes for JSON, and also what JSON allows but a terminal or an editor would obey.
fn write_escaped(text: &str, out: &mut Vec<u8>) {
    if is_plain(text.as_bytes()) {
        return out.extend_from_slice(text.as_bytes());
    }
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            hidden if hidden.is_control() || steers_text(hidden) => {
                let _ = write!(out, "\\u{:04x}", u32::from(hidden));
            }
            visible => out.extend_from_slice(visible.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// True if every byte is visible ASCII and none needs a backslash. Eight bytes at a time: most fields are short names.
fn is_plain(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    let any_is = |word: u64, byte: u8| {
        let other = word ^ (ONES * u64::from(byte));
        other.wrapping_sub(ONES) & !other
    };
    let telling = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
        (word | control | any_is(word, b'"') | any_is(word, b'\\') | any_is(word, b'\x7f')) & (ONES << 7)
    };
    let (words, rest) = text.as_chunks::<8>();
    words.iter().all(|word| telling(word) == 0)
        && rest.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

/// Line and paragraph separators, zero-width characters, bidirectional controls. All are in the basic plane, so four
/// hex digits name them.
fn steers_text(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The present moment, `2026-11-22T10:00:00.123Z`.
fn write_now(out: &mut Vec<u8>) {
    use std::cell::RefCell;
    thread_local! {
        /// The second that was last written and its text: formatting a date costs more than the rest of the line.
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = clock::unix_ms();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now / 1_000 {
            *second = now / 1_000;
            *text = clock::rfc3339(*second * 1_000);
            text.truncate("2026-11-22T10:00:00".len());
        }
        out.extend_from_slice(text.as_bytes());
        out.push(b'.');
        three_digits((now % 1_000) as u32, out);
        out.push(b'Z');
    });
}

#[cfg(test)]
mod tests;
