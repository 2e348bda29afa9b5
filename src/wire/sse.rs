//! Server-sent events out of a byte stream, each with the very bytes it came in.
//!
//! The relay forwards events nobody edited as they are, so the decoder keeps raw bytes and only notes where the data
//! lies. It deliberately does not drop comments, does not reconnect (`id:` and `retry:` are read past) and does not
//! look into the data; a peer that never ends a line or an event is stopped by [`Limits`].

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

const BOM: &[u8] = b"\xef\xbb\xbf";
const DONE: &[u8] = b"[DONE]";

/// How much one peer may make us hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest line, in bytes without its line end.
    pub line_bytes: usize,
    /// The longest event, in bytes with its blank line.
    pub event_bytes: usize,
    /// The most lines in one event, the blank one not counted. Empty `data:` lines cost a peer nothing, so bytes alone
    /// would not stop them.
    pub lines_per_event: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: 1 << 20, event_bytes: 4 << 20, lines_per_event: 1_024 }
    }
}

/// Why a stream cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line is longer than [`Limits::line_bytes`].
    #[error("a line of the event stream is too long")]
    LineTooLong,
    /// An event is longer than [`Limits::event_bytes`].
    #[error("an event of the stream is too long")]
    EventTooLong,
    /// An event has more lines than [`Limits::lines_per_event`].
    #[error("an event of the stream has too many lines")]
    TooManyLines,
}

/// Cuts a stream of chunks into events, without copying where a chunk holds a whole event.
///
/// Every byte is looked at once and copied at most once, however the stream is chunked. A carriage return at the end
/// of a chunk is held until the next byte shows whether a line feed belongs to it, so a peer that ends lines with
/// carriage returns alone has its events delivered one byte late.
pub struct Decoder {
    limits: Limits,
    /// Chunks nobody looked at yet.
    waiting: VecDeque<Bytes>,
    /// The chunk being read, from the first byte that belongs to no delivered event and is not in `held`.
    chunk: Bytes,
    /// The open event's bytes from earlier chunks. Positions below count from its start.
    held: BytesMut,
    line_start: usize,
    lines: usize,
    /// `held` ends with a carriage return that ended a line.
    after_cr: bool,
    /// No line of the stream has ended yet, so a byte order mark may still come.
    at_start: bool,
    parts: Parts,
    error: Option<SseError>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            chunk: Bytes::new(),
            held: BytesMut::new(),
            line_start: 0,
            lines: 0,
            after_cr: false,
            at_start: true,
            parts: Parts::default(),
            error: None,
        }
    }

    /// Takes the next chunk. Call [`Decoder::next`] until it returns nothing before feeding more, else chunks pile up
    /// unbounded.
    pub fn feed(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() && self.waiting.is_empty() {
            self.chunk = chunk;
        } else {
            self.waiting.push_back(chunk);
        }
    }

    /// The next whole event, or nothing until more is fed.
    ///
    /// Blank lines between events come as events of their own, for which [`Event::is_comment`] holds.
    ///
    /// # Errors
    ///
    /// When a limit is passed; from then on always.
    #[expect(clippy::should_implement_trait, reason = "nothing now is not the end, so this is no iterator")]
    pub fn next(&mut self) -> Result<Option<Event>, SseError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        loop {
            if self.chunk.is_empty() {
                let Some(chunk) = self.waiting.pop_front() else { return Ok(None) };
                self.chunk = chunk;
                continue;
            }
            match self.scan() {
                Ok(Some(end)) => return Ok(Some(self.take(end))),
                Ok(None) => {}
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    /// The rest, once the stream has ended: like [`Decoder::next`], and in the end a last event that lacks its blank
    /// line. Whether that one was cut short is for whoever reads its data to tell.
    ///
    /// # Errors
    ///
    /// As [`Decoder::next`].
    pub fn finish(&mut self) -> Result<Option<Event>, SseError> {
        if let Some(event) = self.next()? {
            return Ok(Some(event));
        }
        let end = self.held.len();
        let line =
            if self.after_cr { Some(end.saturating_sub(1)) } else { Some(end).filter(|end| *end > self.line_start) };
        self.after_cr = false;
        if let Some(line_end) = line
            && let Err(error) = self.end_line(line_end, end)
        {
            return Err(self.fail(error));
        }
        Ok((end > 0).then(|| self.take(0)))
    }

    /// Reads the chunk up to the end of an event and returns that position in the chunk, or takes all of it into
    /// `held`.
    fn scan(&mut self) -> Result<Option<usize>, SseError> {
        let held = self.held.len();
        let mut at = 0;
        if self.after_cr {
            self.after_cr = false;
            at = usize::from(self.chunk.first() == Some(&b'\n'));
            if self.end_line(held.saturating_sub(1), held + at)? {
                return Ok(Some(at));
            }
        }
        while let Some(offset) = line_end(self.chunk.get(at..).unwrap_or_default()) {
            let end = at + offset;
            let next = match (self.chunk.get(end), self.chunk.get(end + 1)) {
                (Some(b'\r'), Some(b'\n')) => end + 2,
                (Some(b'\r'), None) => {
                    self.after_cr = true;
                    break;
                }
                _ => end + 1,
            };
            if self.end_line(held + end, held + next)? {
                return Ok(Some(next));
            }
            at = next;
        }
        let total = held + self.chunk.len();
        self.check(total - usize::from(self.after_cr), total)?;
        self.held.extend_from_slice(&self.chunk);
        self.chunk = Bytes::new();
        Ok(None)
    }

    /// Notes the line that ends at `end` and whose line end ends at `next`; true if it was the blank one.
    fn end_line(&mut self, end: usize, next: usize) -> Result<bool, SseError> {
        self.check(end, next)?;
        let mut start = self.line_start;
        self.line_start = next;
        if self.at_start {
            self.at_start = false;
            if self.head(start, end).get(..3) == Some(BOM) {
                start += BOM.len();
                self.parts.start = start;
            }
        }
        if start == end {
            return Ok(true);
        }
        self.lines += 1;
        if self.lines > self.limits.lines_per_event {
            return Err(SseError::TooManyLines);
        }
        let head = self.head(start, end);
        let head = head.get(..end - start).unwrap_or(&head);
        self.parts.note(head, start, end);
        Ok(false)
    }

    fn check(&self, line_end: usize, event_end: usize) -> Result<(), SseError> {
        if line_end - self.line_start > self.limits.line_bytes {
            return Err(SseError::LineTooLong);
        }
        if event_end > self.limits.event_bytes {
            return Err(SseError::EventTooLong);
        }
        Ok(())
    }

    /// The first bytes of a line, which may begin in `held` and end in the chunk. Enough to tell every field apart.
    fn head(&self, start: usize, end: usize) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        let held = self.held.get(start..end.min(self.held.len())).unwrap_or_default();
        let from = start.saturating_sub(self.held.len());
        let rest = self.chunk.get(from..end.saturating_sub(self.held.len())).unwrap_or_default();
        for (place, byte) in head.iter_mut().zip(held.iter().chain(rest)) {
            *place = *byte;
        }
        head
    }

    /// Hands out `held` and the first `end` bytes of the chunk as an event.
    fn take(&mut self, end: usize) -> Event {
        let tail = self.chunk.split_to(end);
        let raw = if self.held.is_empty() {
            tail
        } else {
            self.held.extend_from_slice(&tail);
            self.held.split().freeze()
        };
        self.line_start = 0;
        self.lines = 0;
        Event { raw, parts: std::mem::take(&mut self.parts) }
    }

    fn fail(&mut self, error: SseError) -> SseError {
        self.error = Some(error);
        self.waiting.clear();
        self.chunk = Bytes::new();
        self.held = BytesMut::new();
        error
    }
}

/// Bytes of a line that [`Parts::note`] looks at: the longest is `event: `, rounded up.
const HEAD: usize = 8;

/// Where in its raw bytes an event's fields lie.
#[derive(Clone, Default, PartialEq)]
struct Parts {
    /// Where the first line starts, after a byte order mark.
    start: usize,
    fields: bool,
    data: Data,
    kind: Option<Range<usize>>,
}

#[derive(Clone, Default, PartialEq)]
enum Data {
    #[default]
    None,
    One(Range<usize>),
    Many,
}

impl Parts {
    /// Notes the line between `start` and `end`, of which `head` is all or at least the first [`HEAD`] bytes.
    fn note(&mut self, head: &[u8], start: usize, end: usize) {
        if head.first() == Some(&b':') {
            return;
        }
        self.fields = true;
        if let Some(value) = value_at(head, b"data") {
            self.data = match self.data {
                Data::None => Data::One(start + value..end),
                Data::One(_) | Data::Many => Data::Many,
            };
        } else if let Some(value) = value_at(head, b"event") {
            self.kind = Some(start + value..end);
        }
    }
}

/// Where the value of the field `name` starts in a line, `None` if the line is another field.
fn value_at(line: &[u8], name: &[u8]) -> Option<usize> {
    match line.strip_prefix(name)? {
        [] => Some(name.len()),
        [b':', b' ', ..] => Some(name.len() + 2),
        [b':', ..] => Some(name.len() + 1),
        _ => None,
    }
}

/// The position of the first CR or LF. Blocks without one are passed over in a form the compiler can vectorise.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let ends = |byte: &u8| *byte == b'\n' || *byte == b'\r';
    let (blocks, _) = bytes.as_chunks::<16>();
    let clean = blocks.iter().take_while(|block| !block.iter().fold(false, |hit, byte| hit | ends(byte))).count() * 16;
    bytes.get(clean..)?.iter().position(ends).map(|offset| clean + offset)
}

/// One event, or one comment, as it was received. Its content never shows in debug output.
#[derive(Clone, PartialEq)]
pub struct Event {
    raw: Bytes,
    parts: Parts,
}

impl Event {
    /// The bytes exactly as received, blank line included if there was one.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The data, its lines joined by line feeds; `None` if there is no data line.
    pub fn data(&self) -> Option<Cow<'_, [u8]>> {
        match &self.parts.data {
            Data::None => None,
            Data::One(range) => self.raw.get(range.clone()).map(Cow::Borrowed),
            Data::Many => Some(Cow::Owned(self.joined())),
        }
    }

    /// The value of the `event:` line; `None` if there is none or it is not UTF-8.
    pub fn event_type(&self) -> Option<&str> {
        let range = self.parts.kind.clone()?;
        std::str::from_utf8(self.raw.get(range)?).ok()
    }

    /// True if there is no field at all: only comments, or only a blank line.
    pub fn is_comment(&self) -> bool {
        !self.parts.fields
    }

    /// True if the data is `[DONE]`.
    pub fn is_done(&self) -> bool {
        matches!(&self.parts.data, Data::One(range) if self.raw.get(range.clone()).is_some_and(|data| data.trim_ascii() == DONE))
    }

    /// An event of one JSON text. Line ends inside it are white space to JSON and become data lines.
    pub fn from_data(json: &[u8]) -> Self {
        let mut raw = BytesMut::with_capacity(json.len() + 8);
        let mut parts = Parts { fields: true, ..Parts::default() };
        for line in json.split(|byte| *byte == b'\n' || *byte == b'\r') {
            let start = raw.len();
            raw.put_slice(b"data: ");
            raw.put_slice(line);
            parts.note(b"data: ", start, raw.len());
            raw.put_u8(b'\n');
        }
        raw.put_u8(b'\n');
        Self { raw: raw.freeze(), parts }
    }

    /// The terminal event of chat streams.
    pub fn done() -> Self {
        let parts = Parts { fields: true, data: Data::One(6..12), ..Parts::default() };
        Self { raw: Bytes::from_static(b"data: [DONE]\n\n"), parts }
    }

    /// The same event with other data; an `event:` line stays.
    pub fn with_data(&self, json: &[u8]) -> Self {
        let fresh = Self::from_data(json);
        let Some(range) = self.parts.kind.clone() else { return fresh };
        let kind = self.raw.get(range).unwrap_or_default();
        let mut raw = BytesMut::with_capacity(kind.len() + fresh.raw.len() + 8);
        raw.put_slice(b"event: ");
        raw.put_slice(kind);
        raw.put_u8(b'\n');
        let by = raw.len();
        raw.put_slice(&fresh.raw);
        let data = match fresh.parts.data {
            Data::One(range) => Data::One(range.start + by..range.end + by),
            other => other,
        };
        Self { raw: raw.freeze(), parts: Parts { start: 0, fields: true, data, kind: Some(7..by - 1) } }
    }

    /// The same event with its blank line, for a last event that came without.
    pub fn closed(self) -> Self {
        if ends_blank(self.raw.get(self.parts.start..).unwrap_or_default()) {
            return self;
        }
        let mut raw = BytesMut::with_capacity(self.raw.len() + 2);
        raw.put_slice(&self.raw);
        raw.put_slice(b"\n\n");
        Self { raw: raw.freeze(), parts: self.parts }
    }

    fn joined(&self) -> Vec<u8> {
        let mut rest = self.raw.get(self.parts.start..).unwrap_or_default();
        let mut joined = Vec::with_capacity(rest.len());
        let mut any = false;
        while !rest.is_empty() {
            let end = line_end(rest).unwrap_or(rest.len());
            let (line, tail) = rest.split_at(end);
            if let Some(value) = value_at(line, b"data") {
                if any {
                    joined.push(b'\n');
                }
                any = true;
                joined.extend_from_slice(line.get(value..).unwrap_or_default());
            }
            rest = tail.strip_prefix(b"\r\n").or_else(|| tail.get(1..)).unwrap_or_default();
        }
        joined
    }
}

/// True if the last line of an event is blank.
fn ends_blank(raw: &[u8]) -> bool {
    let without = |bytes: &'_ [u8]| -> Option<usize> {
        let bytes =
            bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).or_else(|| bytes.strip_suffix(b"\r"));
        bytes.map(<[u8]>::len)
    };
    let Some(before) = without(raw) else { return false };
    before == 0 || without(raw.get(..before).unwrap_or_default()).is_some()
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("bytes", &self.raw.len())
            .field("comment", &self.is_comment())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("held", &self.held.len()).field("error", &self.error).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
