//! An upstream's event stream: held back until its first content (the commit point), relayed as it came from then on.
//!
//! Before the commit point nothing has reached the client, so any failure is an ordinary failed attempt. After it, the
//! stream ends in `[DONE]` or in one failure, which the reply's body turns into one error event. Upstream comments are
//! not forwarded: clients that parse every line as JSON choke on them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::carried::Teller;
use crate::flight::error::AttemptError;
use crate::flight::reply::UsageSlot;
use crate::upstream::form::{Form, Heard, wrote_nothing};
use crate::upstream::meaning::embedded;
use crate::upstream::pool::UpstreamBody;
use crate::wire::filtered::is_filtered;
use crate::wire::json_read::is_json;
use crate::wire::messages::Tokens;
use crate::wire::openai::without_usage;
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

/// Whether a stream reaches the client in its provider's form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Telling {
    /// Every event passes as it came, what we cannot read included.
    AsItCame,
    /// What cannot be read cannot be told: a chunk that is broken is a failure, what is no chunk at all is left out.
    InAnotherForm,
}

/// How a stream is to be read and shown.
#[derive(Clone, Copy)]
pub struct Reading {
    /// What the provider speaks.
    pub(super) form: Form,
    /// Whose the usage event is.
    pub(super) usage_event: UsageEvent,
    /// Whether it is told in another form.
    pub(super) telling: Telling,
    /// Longest silence.
    pub(super) idle: Duration,
}

/// What was heard so far.
struct Ear {
    reading: Reading,
    usage: UsageSlot,
    tokens: Tokens,
    /// It said that it is finished.
    finished: bool,
    /// All it said is that a filter stopped it.
    filtered: bool,
}

/// A stream that may be relayed: it starts with what was held back, and its content has begun.
pub struct Primed {
    /// Absent once nothing more is to be had from it.
    body: Option<UpstreamBody>,
    decoder: Decoder,
    held: VecDeque<Event>,
    /// The terminal event was relayed.
    done: bool,
    ear: Ear,
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
pub async fn prime(mut body: UpstreamBody, usage: UsageSlot, reading: Reading) -> Result<Primed, AttemptError> {
    let mut ear = Ear { reading, usage, tokens: Tokens::default(), finished: false, filtered: false };
    let mut decoder = Decoder::new(Limits::default());
    let mut held = VecDeque::new();
    let mut held_bytes = 0;
    loop {
        while let Some(event) = decoder.next().map_err(|_| bad_stream())? {
            if event.is_comment() {
                continue;
            }
            held_bytes += event.raw().len();
            let content = ear.starts_content(&event)?;
            held.extend(ear.shape(event));
            if content {
                let now = Instant::now();
                let alarm = Box::pin(tokio::time::sleep_until(now + reading.idle));
                return Ok(Primed { body: Some(body), decoder, held, done: false, ear, last_heard: now, alarm });
            }
            if held_bytes > MOST_HELD_BYTES {
                return Err(no_content("the stream held back its content behind too many other events"));
            }
        }
        match body.frame().await {
            None => return Err(ear.ended_early(&mut decoder)),
            Some(Err(_)) => return Err(no_content("the stream broke off before its first content")),
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    decoder.feed(chunk);
                }
            }
        }
    }
}

impl Ear {
    /// The last event may have come without its blank line, and may say why there is no more.
    fn ended_early(&mut self, decoder: &mut Decoder) -> AttemptError {
        let last = decoder.finish().ok().flatten();
        let said = last.and_then(|event| self.starts_content(&event).err());
        said.unwrap_or_else(|| no_content("the stream ended before its first content"))
    }

    /// True at the commit point; an error if the stream says so or ends first. A whole answer that was cut before its
    /// first word counts as one too.
    fn starts_content(&mut self, event: &Event) -> Result<bool, AttemptError> {
        let heard = self.reading.form.event(event, &mut self.tokens);
        if let Some(usage) = heard.usage {
            self.usage.set(usage);
        }
        self.count_if_malformed(event, &heard);
        if !heard.json && self.reading.telling == Telling::InAnotherForm && is_chunk(event) {
            return Err(bad_reply("a chunk of the stream cannot be read, so it cannot be told in another form"));
        }
        self.finished |= heard.finished;
        self.filtered |= heard.cut && !heard.content && event.data().is_some_and(|data| is_filtered(&data));
        match heard.error {
            Some(error) => Err(embedded(error)),
            None if heard.content || heard.cut => Ok(true),
            None if heard.last && self.finished && wrote_nothing(Some(self.usage.get())) => Ok(true),
            None if heard.last => Err(no_content("the stream ended before its first content")),
            None => Ok(false),
        }
    }

    fn count_if_malformed(&self, event: &Event, heard: &Heard) {
        if !heard.json && !heard.last && has_words(event) {
            self.usage.count_malformed();
        }
    }

    /// The event as the client may see it; `None` if it may not.
    fn shape(&self, event: Event) -> Option<Event> {
        let ours = self.reading.usage_event == UsageEvent::Strip && self.reading.form == Form::Chat;
        if ours { without_usage(event) } else { Some(event) }
    }
}

fn no_content(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::NoContent, Sent::Yes, detail)
}

fn bad_stream() -> AttemptError {
    bad_reply("the stream is not made of server-sent events")
}

fn bad_reply(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::BadReply, Sent::Yes, detail)
}

/// True for what was meant to be a chunk, whole or broken. A word between chunks, as some keep connections alive with, is
/// none, and nothing is lost with it.
fn is_chunk(event: &Event) -> bool {
    event.data().is_some_and(|data| data.trim_ascii_start().first() == Some(&b'{'))
}

/// False for an event without data, as a keep-alive is.
fn has_words(event: &Event) -> bool {
    event.data().is_some_and(|data| !data.trim_ascii().is_empty())
}

fn mentions(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

impl Primed {
    /// True if it begins, and so ends, with a filter's word.
    pub fn is_filtered(&self) -> bool {
        self.ear.filtered
    }

    /// The data of its first event.
    pub fn first_words(&self) -> Option<Cow<'_, [u8]>> {
        self.held.front()?.data()
    }

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
        let heard = self.ear.reading.form.event(&event, &mut self.ear.tokens);
        let whole = heard.last || heard.json;
        whole.then(|| event.closed())
    }

    /// Ready when nothing was heard for too long. The timer is moved only when it fires, not at every event.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            let due = self.last_heard + self.ear.reading.idle;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
        }
    }

    /// Most events are tokens: only those that may hold usage or an error are read, the others only looked over.
    fn relay(&mut self, event: Event) -> Result<Option<Event>, FailureClass> {
        let last = self.ear.reading.form.is_last(&event);
        self.done |= last;
        let raw = event.raw();
        let named_error = !raw.starts_with(b"data") && event.event_type() == Some("error");
        if mentions(raw, b"\"error\"") || mentions(raw, b"\"usage\"") || named_error {
            let heard = self.ear.reading.form.event(&event, &mut self.ear.tokens);
            self.ear.count_if_malformed(&event, &heard);
            if let Some(usage) = heard.usage {
                self.ear.usage.set(usage);
            }
            if heard.error.is_some() {
                return Err(FailureClass::ProviderFault);
            }
            return Ok(self.ear.shape(event));
        }
        if !last && event.data().is_some_and(|data| !is_json(&data)) && has_words(&event) {
            self.ear.usage.count_malformed();
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

/// A chat stream told in another form. What was held back is told first.
pub struct Retold {
    chat: Primed,
    teller: Teller,
    told: VecDeque<Event>,
    /// Nothing more can be told.
    garbled: bool,
}

impl Retold {
    /// Tells `chat` with `teller`.
    pub fn new(chat: Primed, teller: Teller) -> Self {
        Self { chat, teller, told: VecDeque::new(), garbled: false }
    }
}

impl Stream for Retold {
    type Item = Result<Event, FailureClass>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.told.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if this.garbled {
                return Poll::Ready(Some(Err(FailureClass::BadReply)));
            }
            match ready!(Pin::new(&mut this.chat).poll_next(cx)) {
                Some(Ok(event)) if is_chunk(&event) || event.is_done() => {
                    this.garbled = this.teller.push(&event, &mut this.told).is_err();
                }
                Some(Ok(_)) => {}
                other => return Poll::Ready(other),
            }
        }
    }
}

#[cfg(test)]
mod tests;
