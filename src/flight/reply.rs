//! The answer on its way to the client, and the one hook for whatever belongs to its end.
//!
//! A reply ends when its body ends. Permits, breaker verdicts, metering, metrics and log lines that belong to the end
//! go into [`ReplyBody::on_end`]; there is no second mechanism. The body is polled, never pumped through a channel, so a
//! slow reader slows the provider instead of filling our memory.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Frame, SizeHint};

use crate::domain::decision::Decision;
use crate::domain::id::RequestId;
use crate::domain::operation::Dialect;
use crate::domain::outcome::{End, FailureClass};
use crate::domain::usage::Usage;
use crate::flight::ending;
use crate::flight::heartbeat::Heartbeat;
use crate::wire::openai::ErrorBody;
use crate::wire::sse::Event;

/// A status, the few headers that may pass, and a body.
pub struct Reply {
    /// What the client sees.
    pub status: StatusCode,
    /// Allow-listed headers.
    pub headers: HeaderMap,
    /// The content.
    pub body: ReplyBody,
    /// Tokens, filled at the latest when the body ends.
    pub usage: UsageSlot,
    /// True if the answer is whole and final, and so may be stored.
    pub complete: bool,
    /// A risk reply's meaning; its bytes are made from it at the ingress.
    pub decision: Option<Arc<Decision>>,
}

impl Reply {
    /// An answer of our own in JSON.
    pub fn json(body: Bytes) -> Self {
        let mut headers = HeaderMap::with_capacity(16);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = ReplyBody::whole(body);
        Self { status: StatusCode::OK, headers, body, usage: UsageSlot::default(), complete: true, decision: None }
    }
}

/// Where whoever reads the provider's answer leaves the token counts. Cloning shares it.
#[derive(Clone, Default)]
pub struct UsageSlot(Arc<Slot>);

#[derive(Default)]
struct Slot {
    usage: Mutex<Usage>,
    malformed: AtomicU64,
}

impl UsageSlot {
    /// Replaces what is known.
    pub fn set(&self, usage: Usage) {
        *self.0.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    /// What is known.
    pub fn get(&self) -> Usage {
        *self.0.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more event of the stream that could not be read and was passed on as it was.
    pub fn count_malformed(&self) {
        self.0.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn malformed(&self) -> u64 {
        self.0.malformed.load(Ordering::Relaxed)
    }
}

/// Events of a stream that is past its commit point. `Err` is the one failure that ends it.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, FailureClass>> + Send>>;

/// Bytes of an answer that is neither text nor events, such as sound. `Err` is the one failure that ends it.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, FailureClass>> + Send>>;

/// An answer that cannot be completed and has no way to say so: its connection ends in the middle, so that nobody takes
/// what came for all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the answer could not be completed")]
pub struct Aborted;

type Interrupt = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the end of a body looked like.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How.
    pub end: End,
    /// Body bytes handed to the connection.
    pub bytes: u64,
    /// Events of a stream among them, or 1 for a whole body.
    pub frames: u64,
}

type EndHook = Box<dyn FnOnce(&Ended) + Send>;

/// The only body type after `send`. Small, because an answer is handed through a dozen layers.
pub struct ReplyBody(Box<Inside>);

struct Inside {
    content: Content,
    interrupts: Vec<(Interrupt, End)>,
    hooks: Vec<EndHook>,
    bytes: u64,
    frames: u64,
    call: Option<RequestId>,
    heartbeat: Option<Box<Heartbeat>>,
    dialect: Dialect,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Aborted>>>;

enum Content {
    Whole(Bytes),
    Events(EventStream),
    /// With how many bytes are left, if the provider said so.
    Bytes(ByteStream, Option<u64>),
    /// The terminal event went out. The stream was let go with it: its connection finishes on its own time.
    Closing,
    Over,
}

impl ReplyBody {
    /// A body that is already here.
    pub fn whole(bytes: Bytes) -> Self {
        Self::new(Content::Whole(bytes))
    }

    /// A stream of events, from its first content on, that ends as `dialect` ends streams.
    pub fn events(events: EventStream, dialect: Dialect) -> Self {
        let mut body = Self::new(Content::Events(events));
        body.0.dialect = dialect;
        body
    }

    /// Bytes on their way, `length` in all if that is known. They end as they should or not at all: see [`Aborted`].
    pub fn bytes(bytes: ByteStream, length: Option<u64>) -> Self {
        Self::new(Content::Bytes(bytes, length))
    }

    fn new(content: Content) -> Self {
        Self(Box::new(Inside {
            content,
            interrupts: Vec::new(),
            hooks: Vec::with_capacity(8),
            bytes: 0,
            frames: 0,
            call: None,
            heartbeat: None,
            dialect: Dialect::OpenAi,
        }))
    }

    /// Runs `hook` exactly once when the body ends, also when it is dropped. Hooks run in the order they were added, from
    /// the innermost layer outwards: the record, which comes last, sees what the meter below it has settled.
    pub fn on_end(&mut self, hook: impl FnOnce(&Ended) + Send + 'static) {
        self.0.hooks.push(Box::new(hook));
    }

    /// Ends a stream with one error event, or one of bytes in the middle, once `moment` is ready. A whole body ignores it: it is already here.
    pub fn end_when(&mut self, moment: impl Future<Output = ()> + Send + 'static, end: End) {
        if self.is_stream() {
            self.0.interrupts.push((Box::pin(moment), end));
        }
    }

    /// Tells the client of a stream of events that it goes on, whenever it was told nothing else for `every`.
    pub fn beat(&mut self, every: Duration) {
        if matches!(self.0.content, Content::Events(_)) {
            self.0.heartbeat = Some(Box::new(Heartbeat::new(every)));
        }
    }

    /// Gives a whole body its bytes, once what they say is known.
    pub fn fill(&mut self, bytes: Bytes) {
        if let Content::Whole(content) = &mut self.0.content {
            *content = bytes;
        }
    }

    /// Names the call in an error event.
    pub fn name_call(&mut self, id: RequestId) {
        self.0.call = Some(id);
    }

    /// True for what is not here yet: server-sent events, or sound.
    pub fn is_stream(&self) -> bool {
        matches!(self.0.content, Content::Events(_) | Content::Bytes(..))
    }

    /// True for sound on its way.
    pub fn is_bytes(&self) -> bool {
        matches!(self.0.content, Content::Bytes(..))
    }

    /// The bytes of a whole body that has not been sent yet.
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.0.content {
            Content::Whole(bytes) => Some(bytes),
            Content::Events(_) | Content::Bytes(..) | Content::Closing | Content::Over => None,
        }
    }

    /// The next event of a stream that several share, or how it ended. Its hooks have run then; no error event is made,
    /// because every reader gets its own.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        let next = ready!(self.0.poll_next(cx));
        match &next {
            Ok(event) => self.0.count(event.raw()),
            Err(end) => self.0.finish(*end),
        }
        Poll::Ready(next)
    }

    /// True once the terminal event is out: there is nothing to read any more, only to end.
    pub fn has_told_all(&self) -> bool {
        matches!(self.0.content, Content::Closing | Content::Over)
    }

    /// The bytes of a whole body that several share; for whoever made it, the body has ended with that.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        let Content::Whole(bytes) = &mut self.0.content else { return None };
        let bytes = std::mem::take(bytes);
        self.0.count(&bytes);
        self.0.finish(End::Complete);
        Some(bytes)
    }
}

impl Inside {
    fn count(&mut self, bytes: &Bytes) {
        self.bytes += bytes.len() as u64;
        self.frames += 1;
    }

    fn finish(&mut self, end: End) {
        self.content = Content::Over;
        self.interrupts.clear();
        let ended = Ended { end, bytes: self.bytes, frames: self.frames };
        for hook in std::mem::take(&mut self.hooks) {
            hook(&ended);
        }
    }

    fn hand_out(&mut self, bytes: Bytes) -> Polled {
        self.count(&bytes);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn fail(&mut self, end: End) -> Polled {
        let call = self.call.as_ref().map_or("", RequestId::as_str);
        let event = ending::error_event(self.dialect, &describe(end), call, self.frames);
        let frame = self.hand_out(event.raw().clone());
        self.finish(end);
        frame
    }

    fn poll_events(&mut self, cx: &mut Context<'_>) -> Polled {
        match self.poll_next(cx) {
            Poll::Ready(Ok(event)) => self.hand_out(event.raw().clone()),
            Poll::Ready(Err(end)) => self.fail(end),
            Poll::Pending => self.poll_heartbeat(cx),
        }
    }

    /// A comment is no event: it counts among the bytes alone.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Polled {
        let Some(heartbeat) = &mut self.heartbeat else { return Poll::Pending };
        let comment = ready!(heartbeat.poll(self.frames, cx));
        self.bytes += comment.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(comment))))
    }

    /// The next event, or how the stream ends.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        let Content::Events(events) = &mut self.content else { return Poll::Ready(Err(End::Complete)) };
        match events.as_mut().poll_next(cx) {
            Poll::Ready(Some(Ok(event))) => {
                if ending::is_last(self.dialect, &event) {
                    self.content = Content::Closing;
                }
                Poll::Ready(Ok(event))
            }
            Poll::Ready(Some(Err(class))) => Poll::Ready(Err(End::UpstreamFailed(class))),
            Poll::Ready(None) => Poll::Ready(Err(End::UpstreamFailed(FailureClass::StreamCut))),
            Poll::Pending => match self.interrupted(cx) {
                Some(end) => Poll::Ready(Err(end)),
                None => Poll::Pending,
            },
        }
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Polled {
        let Content::Bytes(bytes, left) = &mut self.content else { return Poll::Ready(None) };
        let end = match bytes.as_mut().poll_next(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                *left = left.map(|left| left.saturating_sub(bytes.len() as u64));
                return self.hand_out(bytes);
            }
            Poll::Ready(None) => {
                self.finish(End::Complete);
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(class))) => End::UpstreamFailed(class),
            Poll::Pending => match self.interrupted(cx) {
                Some(end) => end,
                None => return Poll::Pending,
            },
        };
        self.finish(end);
        Poll::Ready(Some(Err(Aborted)))
    }

    fn interrupted(&mut self, cx: &mut Context<'_>) -> Option<End> {
        self.interrupts.iter_mut().find_map(|(moment, end)| moment.as_mut().poll(cx).is_ready().then_some(*end))
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self.0;
        match &mut this.content {
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.content = Content::Over;
                if bytes.is_empty() {
                    this.finish(End::Complete);
                    return Poll::Ready(None);
                }
                let frame = this.hand_out(bytes);
                this.finish(End::Complete);
                frame
            }
            Content::Events(_) => this.poll_events(cx),
            Content::Bytes(..) => this.poll_bytes(cx),
            Content::Closing => {
                this.finish(End::Complete);
                Poll::Ready(None)
            }
            Content::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0.content {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Over => true,
            Content::Bytes(_, left) => *left == Some(0),
            Content::Events(_) | Content::Closing => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Over => SizeHint::with_exact(0),
            Content::Bytes(_, Some(left)) => SizeHint::with_exact(*left),
            Content::Bytes(_, None) | Content::Events(_) | Content::Closing => SizeHint::default(),
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // An empty body is never asked for: hyper lets go of it as soon as the head is written.
        let all_sent = match &self.0.content {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Closing | Content::Bytes(_, Some(0)) => true,
            Content::Events(_) | Content::Bytes(..) | Content::Over => false,
        };
        self.0.finish(if all_sent { End::Complete } else { End::ClientGone });
    }
}

/// The words of the one error event.
fn describe(end: End) -> ErrorBody<'static> {
    let (code, message) = match end {
        End::UpstreamFailed(FailureClass::StreamCut) => {
            ("upstream_truncated", "the provider's stream ended before its answer was complete")
        }
        End::UpstreamFailed(FailureClass::NoContent | FailureClass::HeadersTimeout) => {
            ("upstream_stalled", "the provider stopped sending before its answer was complete")
        }
        End::DeadlinePassed => ("deadline_exceeded", "the call's total time was up before the answer was complete"),
        End::FellBehind => {
            ("reader_too_slow", "others were told the same answer and this client fell too far behind; ask again")
        }
        End::ShuttingDown => ("shutting_down", "the proxy is restarting and could not wait any longer; try again"),
        End::UpstreamFailed(_) | End::Complete | End::ClientGone => {
            ("upstream_error", "the provider reported an error before its answer was complete")
        }
    };
    ErrorBody { message, kind: "api_error", param: None, code: Some(code) }
}

#[cfg(test)]
mod tests;
