//! Server-sent events out of a byte stream, each with the very bytes it came in.
//!
//! The relay forwards events nobody edited as they are, so the decoder keeps raw bytes and only notes where the data
//! lies. It deliberately does not drop comments, does not reconnect (`id:` and `retry:` are read past) and does not
//! look into the data; a peer that never ends a line or an event is stopped by [`Limits`].

mod event;

use std::collections::VecDeque;
use std::fmt;

use bytes::{Bytes, BytesMut};

use self::event::{HEAD, Parts, line_end};

pub use self::event::Event;

const BOM: &[u8] = b"\xef\xbb\xbf";

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
        Event::new(raw, std::mem::take(&mut self.parts))
    }

    fn fail(&mut self, error: SseError) -> SseError {
        self.error = Some(error);
        self.waiting.clear();
        self.chunk = Bytes::new();
        self.held = BytesMut::new();
        error
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("held", &self.held.len()).field("error", &self.error).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
