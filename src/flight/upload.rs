//! A form on its way in: its beginning is here, the rest may still be with the caller.
//!
//! A form holds a file, so it is neither collected whole nor pumped through a channel: the connection to the provider
//! polls the caller's body, and a provider that reads slowly slows the caller down. The beginning is kept, and as long as
//! nothing behind it was taken, the call can be repeated like any other. Once it was, what was taken is gone.
//!
//! The rest belongs to one attempt at a time. An attempt that ended cannot take another byte ([`Turn`]): a provider that
//! refuses at once does not go on swallowing the file the next one needs. Every byte is looked at before it leaves
//! ([`Scanner`]), within the limits of all request bodies. When something is wrong with what the caller sends, the upload
//! knows it ([`Fault`]), whatever it looks like from the provider's side.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use tokio::time::{Instant, Sleep};

use crate::flight::trail::Trail;
use crate::wire::multipart::{Fields, FormError, Scanner};

/// A request body as far as it is here, and what is still to come of it.
pub struct Received {
    /// The body, or its beginning.
    pub bytes: Bytes,
    /// Present if it is a form.
    pub upload: Option<Arc<Upload>>,
}

/// A form.
pub struct Upload {
    /// Its `content-type`, with the boundary.
    pub content_type: HeaderValue,
    /// Where the fields lie that were found in its beginning.
    pub fields: Fields,
    rest: Option<Mutex<Rest>>,
}

/// What the caller did wrong while it was sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It sent more than the limit.
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// It fell silent.
    Stalled,
    /// It broke off, or its framing is wrong.
    Broken,
    /// The form is none, or not one to every reader.
    Form(FormError),
}

/// The caller's body broke off.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request body broke off")]
pub struct BrokeOff;

/// The form cannot be sent on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the upload cannot be sent on")]
pub struct Stopped;

/// What is still with the caller, and the limits it comes in.
pub struct Coming {
    /// The caller's body.
    pub body: UnsyncBoxBody<Bytes, BrokeOff>,
    /// Has read the beginning.
    pub scanner: Scanner,
    /// Bytes that may still come.
    pub left: usize,
    /// The limit of the whole body, to be told.
    pub limit_bytes: usize,
    /// Longest silence.
    pub idle: Duration,
    /// Counts the bytes.
    pub trail: Trail,
}

struct Rest {
    coming: Coming,
    /// Which attempt may take of it.
    turn: u64,
    begun: bool,
    over: bool,
    /// Nothing was there when it was last asked for.
    waiting: bool,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Whoever polled last.
    taker: Option<Waker>,
    fault: Option<Fault>,
}

impl Upload {
    /// A form of which `coming` is still to come.
    pub fn new(content_type: HeaderValue, fields: Fields, coming: Option<Coming>) -> Self {
        let rest = coming.map(|coming| {
            Mutex::new(Rest {
                coming,
                turn: 0,
                begun: false,
                over: false,
                waiting: false,
                alarm: None,
                taker: None,
                fault: None,
            })
        });
        Self { content_type, fields, rest }
    }

    /// True if all of it was here from the start.
    pub fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// True if some of it is gone, so that it cannot be sent again.
    pub fn is_spent(&self) -> bool {
        self.rest().is_some_and(|rest| rest.begun)
    }

    /// True if a provider waits for more and the caller has not sent it.
    pub fn waits_for_caller(&self) -> bool {
        self.rest().is_some_and(|rest| rest.waiting && !rest.over)
    }

    /// What the caller did wrong.
    pub fn fault(&self) -> Option<Fault> {
        self.rest()?.fault
    }

    /// Begins an attempt: those before it get nothing more.
    pub fn turn(self: &Arc<Self>) -> Turn {
        Turn { number: self.pass_on(), upload: Arc::clone(self) }
    }

    fn pass_on(&self) -> u64 {
        let Some(mut rest) = self.rest() else { return 0 };
        rest.turn += 1;
        rest.alarm = None;
        if rest.begun && !rest.over {
            // Of no use to anybody: its caller need not go on sending.
            rest.coming.body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        }
        // Whoever waits for more must hear that nothing comes.
        if let Some(taker) = rest.taker.take() {
            taker.wake();
        }
        rest.turn
    }

    /// A panic of another holder leaves whole values behind, so the poison says nothing here. The lock is held for a
    /// poll, never across an await; one attempt takes it at a time.
    fn rest(&self) -> Option<MutexGuard<'_, Rest>> {
        Some(self.rest.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One attempt's claim on an upload. Dropped, it ends what the attempt is still sending.
pub struct Turn {
    upload: Arc<Upload>,
    number: u64,
}

impl Turn {
    /// The form, whose beginning is now made of these parts.
    pub fn body(&self, parts: [Bytes; 3]) -> UploadBody {
        let rest = (!self.upload.is_whole()).then(|| Arc::downgrade(&self.upload));
        UploadBody { parts, rest, turn: self.number }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.upload.pass_on();
    }
}

/// A form as a request body. Yields [`Stopped`] if the turn is over or the caller does something wrong, so that a provider
/// never sees the end of a form that has none.
pub struct UploadBody {
    parts: [Bytes; 3],
    /// Absent if all of the form is in `parts`. Weak: a connection that is stuck does not keep the caller sending.
    rest: Option<Weak<Upload>>,
    turn: u64,
}

/// What there is behind the kept beginning.
enum Behind<T> {
    Nothing,
    /// It is nobody's any more.
    Gone,
    There(T),
}

impl UploadBody {
    fn behind<T>(&self, read: impl FnOnce(&mut Rest) -> T) -> Behind<T> {
        let Some(rest) = &self.rest else { return Behind::Nothing };
        let Some(upload) = rest.upgrade() else { return Behind::Gone };
        upload.rest().map_or(Behind::Nothing, |mut rest| Behind::There(read(&mut rest)))
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Stopped;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Stopped>>> {
        if let Some(part) = self.parts.iter_mut().find(|part| !part.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(part)))));
        }
        let polled = self.behind(|rest| {
            if rest.turn != self.turn || rest.fault.is_some() {
                return Poll::Ready(Err(()));
            }
            rest.poll(cx).map_err(|fault| rest.fault = Some(fault))
        });
        match polled {
            Behind::Nothing => Poll::Ready(None),
            Behind::There(Poll::Pending) => Poll::Pending,
            Behind::There(Poll::Ready(Ok(chunk))) => Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk)))),
            Behind::Gone | Behind::There(Poll::Ready(Err(()))) => Poll::Ready(Some(Err(Stopped))),
        }
    }

    fn is_end_stream(&self) -> bool {
        let over = matches!(self.behind(|rest| rest.over), Behind::Nothing | Behind::There(true));
        over && self.parts.iter().all(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        let kept: u64 = self.parts.iter().map(|part| part.len() as u64).sum();
        let left = |rest: &mut Rest| if rest.over { Some(0) } else { rest.coming.body.size_hint().exact() };
        match self.behind(left) {
            Behind::Nothing => SizeHint::with_exact(kept),
            Behind::There(Some(left)) => SizeHint::with_exact(kept + left),
            Behind::Gone | Behind::There(None) => SizeHint::default(),
        }
    }
}

impl Rest {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.coming.body).poll_frame(cx) else { return self.wait(cx) };
            self.waiting = false;
            self.alarm = None;
            match frame {
                // Trailers are dropped: they are never merged into headers.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) if !chunk.is_empty() => return Poll::Ready(self.take(chunk).map(Some)),
                    _ => {}
                },
                Some(Err(BrokeOff)) => return Poll::Ready(Err(Fault::Broken)),
                None => return Poll::Ready(self.end().map(|()| None)),
            }
        }
    }

    fn take(&mut self, chunk: Bytes) -> Result<Bytes, Fault> {
        self.begun = true;
        let too_large = Fault::TooLarge { limit_bytes: self.coming.limit_bytes };
        self.coming.left = self.coming.left.checked_sub(chunk.len()).ok_or(too_large)?;
        self.coming.scanner.feed(&chunk).map_err(Fault::Form)?;
        self.coming.trail.lock().bytes_in += chunk.len() as u64;
        // A body of known length is not asked again after its last byte: what is wrong must be found before that leaves.
        if self.coming.body.is_end_stream() {
            self.end()?;
        }
        Ok(chunk)
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.over = true;
        self.coming.scanner.finish().map_err(Fault::Form)
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        let idle = self.coming.idle;
        self.waiting = true;
        if !self.taker.as_ref().is_some_and(|taker| taker.will_wake(cx.waker())) {
            self.taker = Some(cx.waker().clone());
        }
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + idle)));
        alarm.as_mut().poll(cx).map(|()| Err(Fault::Stalled))
    }
}

#[cfg(test)]
mod tests;
