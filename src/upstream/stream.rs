//! An upstream's event stream: held back until its first content (the commit point), relayed as it came from then on.
//!
//! Before the commit point nothing has reached the client, so any failure is an ordinary failed attempt. After it, the
//! stream ends in `[DONE]` or in one failure, which the reply's body turns into one error event. Upstream comments are
//! not forwarded: clients that parse every line as JSON choke on them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::flight::reply::UsageSlot;
use crate::upstream::meaning::embedded;
use crate::upstream::pool::UpstreamBody;
use crate::wire::json_edit::{self, NullUsage};
use crate::wire::openai::{ChunkFacts, peek_chunk, peek_reply};
use crate::wire::sse::{Decoder, Event, Limits};

/// Most bytes of lifecycle events held back while waiting for content.
const MOST_HELD_BYTES: usize = 256 * 1024;

/// Whether the usage event is the client's or only ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UsageEvent {
    /// The client asked for it.
    Forward,
    /// Only we did: take it out.
    Strip,
}

/// A stream that may be relayed: it starts with what was held back, and its content has begun.
pub struct Primed {
    /// Absent once nothing more is to be had from it.
    body: Option<UpstreamBody>,
    decoder: Decoder,
    held: VecDeque<Event>,
    /// The terminal event was relayed.
    done: bool,
    usage: UsageSlot,
    usage_event: UsageEvent,
    idle: Duration,
    last_heard: Instant,
    alarm: Pin<Box<Sleep>>,
}

/// Waits for the first content.
///
/// # Errors
/// [`AttemptError`] if the stream ends, fails, reports an error or holds back too much before it. The caller bounds the
/// time.
///
/// # Cancel safety
/// Dropping the future closes the upstream connection.
pub async fn prime(
    mut body: UpstreamBody,
    usage: UsageSlot,
    usage_event: UsageEvent,
    idle: Duration,
) -> Result<Primed, AttemptError> {
    let mut decoder = Decoder::new(Limits::default());
    let mut held = VecDeque::new();
    let mut held_bytes = 0;
    loop {
        while let Some(event) = decoder.next().map_err(|_| bad_stream())? {
            if event.is_comment() {
                continue;
            }
            held_bytes += event.raw().len();
            let content = starts_content(&event, &usage)?;
            held.extend(shape(event, usage_event));
            if content {
                let now = Instant::now();
                let alarm = Box::pin(tokio::time::sleep_until(now + idle));
                let body = Some(body);
                return Ok(Primed {
                    body,
                    decoder,
                    held,
                    done: false,
                    usage,
                    usage_event,
                    idle,
                    last_heard: now,
                    alarm,
                });
            }
            if held_bytes > MOST_HELD_BYTES {
                return Err(no_content("the stream held back its content behind too many other events"));
            }
        }
        match body.frame().await {
            None => return Err(ended_early(&mut decoder, &usage)),
            Some(Err(_)) => return Err(no_content("the stream broke off before its first content")),
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    decoder.feed(chunk);
                }
            }
        }
    }
}

/// The last event may have come without its blank line, and may say why there is no more.
fn ended_early(decoder: &mut Decoder, usage: &UsageSlot) -> AttemptError {
    let last = decoder.finish().ok().flatten();
    let said = last.and_then(|event| starts_content(&event, usage).err());
    said.unwrap_or_else(|| no_content("the stream ended before its first content"))
}

/// True at the commit point; an error if the stream says so or ends first.
fn starts_content(event: &Event, usage: &UsageSlot) -> Result<bool, AttemptError> {
    if event.is_done() {
        return Err(no_content("the stream ended before its first content"));
    }
    let Some(data) = event.data() else { return Ok(false) };
    let facts = peek_chunk(&data);
    note_usage(&facts, usage);
    match facts.error {
        Some(error) => Err(embedded(error)),
        None => Ok(facts.content || facts.finished && is_cut_on_purpose(&data)),
    }
}

/// A whole answer that was cut before its first word counts as one too (`openai::whole`).
fn is_cut_on_purpose(data: &[u8]) -> bool {
    let reason = peek_reply(data).and_then(|facts| facts.finish_reason);
    matches!(reason.as_deref(), Some("length" | "content_filter"))
}

fn note_usage(facts: &ChunkFacts, usage: &UsageSlot) {
    if let Some(reported) = facts.usage {
        usage.set(reported);
    }
}

fn no_content(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::NoContent, Sent::Yes, detail)
}

fn bad_stream() -> AttemptError {
    AttemptError::new(FailureClass::BadReply, Sent::Yes, "the stream is not made of server-sent events")
}

/// The event as the client may see it; `None` if it may not.
fn shape(event: Event, usage_event: UsageEvent) -> Option<Event> {
    if usage_event == UsageEvent::Forward || !mentions(event.raw(), b"\"usage\"") {
        return Some(event);
    }
    let data = event.data()?;
    let facts = peek_chunk(&data);
    if facts.usage_only {
        return None;
    }
    if let Some(edited) = json_edit::rewrite_chunk(&data, None, NullUsage::Drop) {
        Some(event.with_data(&edited))
    } else {
        drop(data);
        Some(event)
    }
}

fn mentions(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

impl Primed {
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, FailureClass>> {
        loop {
            match self.decoder.next() {
                Err(_) => return Poll::Ready(Err(FailureClass::StreamCut)),
                Ok(Some(event)) if event.is_comment() => continue,
                Ok(Some(event)) => {
                    if let Some(event) = self.relay(event)? {
                        return Poll::Ready(Ok(Some(event)));
                    }
                    continue;
                }
                Ok(None) => {}
            }
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(None)) };
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.last_heard = Instant::now();
                    if let Ok(chunk) = frame.into_data() {
                        self.decoder.feed(chunk);
                    }
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(FailureClass::StreamCut)),
                Poll::Ready(None) => {
                    self.body = None;
                    if let Some(event) = self.last_event() {
                        return Poll::Ready(self.relay(event));
                    }
                }
                Poll::Pending => {
                    ready!(self.poll_idle(cx));
                    return Poll::Ready(Err(FailureClass::NoContent));
                }
            }
        }
    }

    /// What came after the last blank line, if it is whole: half an event would run into the error event that follows.
    fn last_event(&mut self) -> Option<Event> {
        let event = self.decoder.finish().ok().flatten()?;
        let whole = event.is_done() || event.data().is_some_and(|data| peek_chunk(&data).json);
        whole.then(|| event.closed())
    }

    /// Ready when nothing was heard for too long. The timer is moved only when it fires, not at every event.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            let due = self.last_heard + self.idle;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
        }
    }

    /// Most events are tokens: only those that may hold usage or an error are parsed.
    fn relay(&mut self, event: Event) -> Result<Option<Event>, FailureClass> {
        self.done |= event.is_done();
        let raw = event.raw();
        if mentions(raw, b"\"error\"") || mentions(raw, b"\"usage\"") {
            if let Some(data) = event.data() {
                let facts = peek_chunk(&data);
                note_usage(&facts, &self.usage);
                if facts.error.is_some() {
                    return Err(FailureClass::ProviderFault);
                }
            }
            return Ok(shape(event, self.usage_event));
        }
        Ok(Some(event))
    }
}

impl Drop for Primed {
    fn drop(&mut self) {
        if let (true, Some(body)) = (self.done, self.body.take()) {
            body.let_finish();
        }
    }
}

impl Stream for Primed {
    type Item = Result<Event, FailureClass>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(event) = self.held.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        self.poll_upstream(cx).map(Result::transpose)
    }
}

#[cfg(test)]
mod tests;
