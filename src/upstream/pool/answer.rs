//! An answer's body, whoever reads it, and what becomes of its connection.
//!
//! It looks at no byte of the body: what an answer means is for the protocols.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::alone::Alone;
use super::line::Line;
use super::multiplex::Stream;

/// How long the end of a body may come after its last word, and in how many pieces.
const LINGER: Duration = Duration::from_millis(500);
const MOST_LINGERING_FRAMES: usize = 8;

/// An answer's body that ended before it was complete, or is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct Broken;

/// A response body that gives its connection back when it was read to its end, and closes it when it was not.
pub struct UpstreamBody {
    pub(super) body: Reader,
    pub(super) lease: Option<Box<Line>>,
    /// Its place on a connection with others.
    pub(super) stream: Option<Stream>,
}

/// Who reads it.
pub(super) enum Reader {
    Hyper(Incoming),
    Alone(Box<Alone>),
}

impl UpstreamBody {
    pub(super) fn multiplexed(body: Incoming, stream: Stream) -> Self {
        let stream = (!body.is_end_stream()).then_some(stream);
        Self { body: Reader::Hyper(body), lease: None, stream }
    }

    /// True if nothing follows.
    pub fn is_over(&self) -> bool {
        match &self.body {
            Reader::Hyper(body) => body.is_end_stream(),
            Reader::Alone(body) => body.is_over(),
        }
    }

    /// True if its connection has been given back, or may serve nobody.
    fn is_free(&self) -> bool {
        match &self.body {
            Reader::Hyper(_) => self.lease.is_none() && self.stream.is_none(),
            Reader::Alone(body) => body.is_free(),
        }
    }

    /// Lets the little that follows a body's last word arrive on its own time, so that its connection can serve again.
    /// Providers often write the end of a stream after its last event, and nobody should wait for that.
    pub fn let_finish(mut self) {
        if self.is_free() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        tokio::spawn(timeout(LINGER, async move {
            for _ in 0..MOST_LINGERING_FRAMES {
                if !matches!(self.frame().await, Some(Ok(_))) {
                    break;
                }
            }
        }));
    }

    pub(super) fn release(&mut self) {
        self.stream = None;
        if let Some(mut line) = self.lease.take()
            && let Some(pool) = line.home.take()
        {
            pool.put_back(line);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = match &mut self.body {
            Reader::Alone(body) => return body.poll_data(cx).map_ok(Frame::data),
            Reader::Hyper(body) => body,
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if frame.is_none() || body.is_end_stream() {
            self.release();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|_| Broken)))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Reader::Hyper(body) => body.size_hint(),
            Reader::Alone(_) => SizeHint::default(),
        }
    }
}
