//! A connection's bytes: the ones already read while its protocol was found out, and a bound on how long a peer may
//! refuse to take ours (P5).
//!
//! hyper has no timer for writes, so a client that stops reading would hold its answer for ever. A timer is armed only
//! when a write has to wait, so a connection whose writes all succeed pays nothing. Closing also lives here: the last
//! bytes of a client that is still sending are read and thrown away for a moment, because closing on them makes the
//! kernel reset the connection and the client may lose our answer. And the blank lines before a head are counted here,
//! because nobody further in sees them.
//!
//! It deliberately does not bound reads: how long a silence may last depends on what is awaited, which only the driver
//! and the body reader know.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::activity::{Activity, Phase};
use super::blank_lines::BlankLines;
use crate::telemetry::labels::ConnectionEnd;

/// Longest time a closed connection goes on reading.
const LINGER: Duration = Duration::from_millis(500);
/// Most bytes it reads in that time.
const LINGER_BYTES: usize = 1024 * 1024;
/// What every parser refuses, wherever it stands in a head.
const NO_HEAD: &[u8] = b"\0";

/// A connection's bytes with a bound on stalled writes.
pub(super) struct DeadlineIo<I> {
    inner: I,
    /// Read before hyper took over.
    prefix: Bytes,
    activity: Arc<Activity>,
    write_stall: Duration,
    stalled: Timer,
    /// Not the same timer: hyper goes on flushing while we linger, and each flush disarms the other.
    lingering: Timer,
    closing: Closing,
    peer_closed: bool,
    blank_lines: BlankLines,
}

/// A sleep that is made when it is first needed.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

/// How far the close has come.
enum Closing {
    /// Our side is open.
    Open,
    /// Our side is closed; this many bytes may still be thrown away.
    Lingering(usize),
    /// Nothing more will be read.
    Done,
}

impl<I> DeadlineIo<I> {
    pub(super) fn new(inner: I, prefix: Bytes, activity: Arc<Activity>, write_stall: Duration) -> Self {
        Self {
            inner,
            prefix,
            activity,
            write_stall,
            stalled: Timer::default(),
            lingering: Timer::default(),
            closing: Closing::Open,
            peer_closed: false,
            blank_lines: BlankLines::default(),
        }
    }

    /// Replaces what was read from `before` on by a byte that is in no head, if it begins with too many blank lines: that
    /// way hyper refuses it, as it does whatever else is no HTTP.
    fn refuse_blank_lines(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.activity.is_http2() {
            return;
        }
        if self.activity.phase() == Phase::Busy {
            self.blank_lines.other();
        } else if self.blank_lines.too_many(buf.filled().get(before..).unwrap_or_default()) {
            buf.set_filled(before);
            buf.put_slice(NO_HEAD);
        }
    }

    /// Passes a write's result on, unless it has been waiting for too long.
    fn bounded<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            // hyper flushes at each of its polls: once our side is closed that must not put off the end of the linger.
            if let Closing::Open = self.closing {
                self.stalled.disarm();
            }
            return written;
        }
        ready!(self.stalled.poll(cx, self.write_stall));
        self.activity.end_because(ConnectionEnd::WriteStall);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client accepted no bytes for too long")))
    }
}

impl Timer {
    /// Ready when `after` has passed since the first poll after the last disarming.
    fn poll(&mut self, cx: &mut Context<'_>, after: Duration) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        if !self.armed {
            self.armed = true;
            sleep.as_mut().reset(Instant::now() + after);
        }
        sleep.as_mut().poll(cx)
    }

    /// A sleep left running wakes the connection once for nothing, which costs less than taking it out each time.
    fn disarm(&mut self) {
        self.armed = false;
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for DeadlineIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.prefix.has_remaining() {
            let length = self.prefix.remaining().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(length));
            if self.prefix.is_empty() {
                // Lets go of the buffer that the prefix was read into.
                self.prefix = Bytes::new();
            }
            self.refuse_blank_lines(buf, before);
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.refuse_blank_lines(buf, before);
            self.activity.bytes_arrived();
        } else {
            self.peer_closed = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for DeadlineIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Closing::Open = self.closing {
            let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
            ready!(self.bounded(cx, shut))?;
            self.closing = if self.peer_closed { Closing::Done } else { Closing::Lingering(LINGER_BYTES) };
        }
        let mut scratch = [0; 1024];
        while let Closing::Lingering(left) = self.closing {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && left > buf.filled().len() => {
                    self.closing = Closing::Lingering(left - buf.filled().len());
                }
                Poll::Ready(_) => self.closing = Closing::Done,
                Poll::Pending => {
                    ready!(self.lingering.poll(cx, LINGER));
                    self.closing = Closing::Done;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
