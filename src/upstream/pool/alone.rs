//! An event stream read without hyper.
//!
//! A connection in hyper's hands holds 8 KiB to read into, 8 KiB to write from and 9 KiB for requests to come, also while a
//! stream is silent, and streams are silent most of the time. So hyper writes the request and reads the head, as always,
//! and then the connection is taken from it: what is held of a silent stream is its socket and a few numbers. At its end
//! the connection goes back to hyper and into the pool.
//!
//! It deliberately takes only what is simple and common: an answer over HTTP/1.1 that says it is an event stream, in
//! chunks, to a request of ours that asked for one and was written whole. Everything else stays with hyper. Chunks are
//! read as strictly as hyper does, trailers are passed over.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{Request, Response, Version};
use tokio::io::{AsyncRead, ReadBuf};

use super::{Broken, Pool};
use crate::upstream::body::RequestBody;
use crate::upstream::dial::Io;
use crate::upstream::hold::Given;

/// Most bytes of a request before its body's last piece, if its answer is to be read alone: so many hyper takes into its
/// buffers before it flushes, and the last piece with them however long it is, so that a flush says that everything was
/// written.
pub const MOST_AHEAD: usize = 48 * 1024;
/// Most bytes of one read.
const READ: usize = 8 * 1024;
/// Most bytes of chunk extensions and trailers, which say nothing to us.
const MOST_SAID: usize = 16 * 1024;

/// Marks a request whose answer will be an event stream.
#[derive(Clone, Copy)]
pub struct AsksForStream;

/// True if the answer to this request may be read alone.
pub(super) fn may_be(request: &Request<RequestBody>) -> bool {
    request.extensions().get::<AsksForStream>().is_some()
        && request.body().ahead().is_some_and(|bytes| bytes <= MOST_AHEAD)
}

/// True if this is an answer that can be.
pub(super) fn can_be<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let events = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..EVENTS.len()));
    response.version() == Version::HTTP_11
        && chunked
        && codings.next().is_none()
        && !headers.contains_key(CONTENT_LENGTH)
        && events.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}

const EVENTS: &[u8] = b"text/event-stream";

/// True if its connection may serve another request afterwards.
pub(super) fn stays_open<B>(response: &Response<B>) -> bool {
    response.headers().get_all(CONNECTION).iter().all(|word| word.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
}

/// Where in a chunk the next byte is. Numbers are what is left of the chunk, or its size as far as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Start,
    Size(u64),
    Blank(u64),
    Extension(u64),
    SizeEnd(u64),
    Body(u64),
    BodyEnd,
    BodyEndLine,
    /// True at the start of a line.
    Trailer(bool),
    TrailerEnd,
    LastLine,
    Over,
}

impl Place {
    /// The next one; `None` if no such byte may stand here.
    fn after(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Start, digit) => Self::Size(hex(digit)?),
            (Self::Size(size) | Self::Blank(size), b' ' | b'\t') => Self::Blank(size),
            (Self::Size(size) | Self::Blank(size), b';') => Self::Extension(size),
            (Self::Size(size) | Self::Blank(size) | Self::Extension(size), b'\r') => Self::SizeEnd(size),
            (Self::Size(size), digit) => Self::Size(size.checked_mul(16)?.checked_add(hex(digit)?)?),
            (Self::Extension(size), _) if byte != b'\n' => Self::Extension(size),
            (Self::SizeEnd(0) | Self::TrailerEnd, b'\n') => Self::Trailer(true),
            (Self::SizeEnd(size), b'\n') => Self::Body(size),
            (Self::BodyEnd, b'\r') => Self::BodyEndLine,
            (Self::BodyEndLine, b'\n') => Self::Start,
            (Self::Trailer(true), b'\r') => Self::LastLine,
            (Self::Trailer(false), b'\r') => Self::TrailerEnd,
            (Self::Trailer(_), _) if byte != b'\n' => Self::Trailer(false),
            (Self::LastLine, b'\n') => Self::Over,
            _ => return None,
        })
    }
}

fn hex(digit: u8) -> Option<u64> {
    char::from(digit).to_digit(16).map(u64::from)
}

/// A stream's body on a connection of its own. Dropped before its end, it closes the connection.
pub(super) struct Alone {
    /// Absent once it was given back, or has broken.
    io: Option<Box<dyn Io>>,
    /// Read and not yet looked at.
    rest: Bytes,
    place: Place,
    /// Bytes of extensions and trailers so far.
    said: usize,
    /// Where the connection goes at the end; absent if it may serve nobody.
    home: Option<Arc<Pool>>,
}

impl Alone {
    pub(super) fn new(given: Given, home: Option<Arc<Pool>>) -> Self {
        Self { io: Some(given.io), rest: given.rest, place: Place::Start, said: 0, home }
    }

    /// True if its connection is not needed any more.
    pub(super) fn is_free(&self) -> bool {
        self.io.is_none()
    }

    /// True if nothing follows.
    pub(super) fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            let piece = self.piece();
            if self.is_over() {
                self.go_home();
            }
            match piece {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if self.is_over() => return Poll::Ready(None),
                Ok(None) => {}
                Err(broken) => return Poll::Ready(Some(Err(self.breaks(broken)))),
            }
            if let Err(broken) = ready!(self.poll_more(cx)) {
                return Poll::Ready(Some(Err(self.breaks(broken))));
            }
        }
    }

    /// What is here of the body, and the place after all that is no body and follows it.
    fn piece(&mut self) -> Result<Option<Bytes>, Broken> {
        let mut piece = None;
        while !self.rest.is_empty() && !self.is_over() {
            if let Place::Body(left) = self.place {
                if piece.is_some() {
                    break;
                }
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(self.rest.len());
                piece = Some(self.rest.split_to(length));
                self.place = if left == length as u64 { Place::BodyEnd } else { Place::Body(left - length as u64) };
                continue;
            }
            self.place = self.place.after(self.rest.get_u8()).ok_or(Broken)?;
            if matches!(self.place, Place::Extension(_) | Place::Trailer(false)) {
                self.said += 1;
                if self.said > MOST_SAID {
                    return Err(Broken);
                }
            }
        }
        Ok(piece)
    }

    /// Reads once. The bytes are copied out, so that an event that is kept holds no more than itself.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Err(Broken)) };
        let mut room = [const { MaybeUninit::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(io).poll_read(cx, &mut read)).map_err(|_| Broken)?;
        if read.filled().is_empty() {
            return Poll::Ready(Err(Broken));
        }
        self.rest = Bytes::copy_from_slice(read.filled());
        Poll::Ready(Ok(()))
    }

    fn breaks(&mut self, broken: Broken) -> Broken {
        (self.io, self.home, self.rest) = (None, None, Bytes::new());
        broken
    }

    /// A connection that said more than was asked of it is closed.
    fn go_home(&mut self) {
        if let (Some(io), Some(pool), true) = (self.io.take(), self.home.take(), self.rest.is_empty()) {
            pool.adopt(io);
        }
    }
}

#[cfg(test)]
mod tests;
