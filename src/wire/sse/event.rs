//! One event: its bytes as received, and where in them its fields lie.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

const DONE: &[u8] = b"[DONE]";

/// Bytes of a line that [`Parts::note`] looks at: the longest is `event: `, rounded up.
pub(super) const HEAD: usize = 8;

/// Where in its raw bytes an event's fields lie.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Parts {
    /// Where the first line starts, after a byte order mark.
    pub(super) start: usize,
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
    pub(super) fn note(&mut self, head: &[u8], start: usize, end: usize) {
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
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
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
    pub(super) fn new(raw: Bytes, parts: Parts) -> Self {
        Self { raw, parts }
    }

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
        match self.parts.kind.clone() {
            Some(range) => Self::of_type(self.raw.get(range).unwrap_or_default(), json),
            None => Self::from_data(json),
        }
    }

    /// An event of one JSON text with an `event:` line.
    pub fn named(kind: &str, json: &[u8]) -> Self {
        Self::of_type(kind.as_bytes(), json)
    }

    fn of_type(kind: &[u8], json: &[u8]) -> Self {
        let fresh = Self::from_data(json);
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
