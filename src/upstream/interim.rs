//! A bound on the interim responses (1xx) that a provider may put before an answer.
//!
//! hyper's client passes over them by itself, one after the other and without a bound, and keeps nothing of them; a
//! provider that sends them without end would keep an attempt busy until its time is over. So they are counted below
//! hyper, in the bytes themselves: sixteen are ignored, with the next one the connection fails, and the attempt with it.
//!
//! Only the first bytes of an answer are looked at: once it says that it is a final one, everything passes untouched until
//! the next request is written. Where its [`Hold`] asks for that, its head is looked over too, and what follows the head is
//! kept back. HTTP/2 has frames of its own and does not come by here.

use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::hold::Hold;

/// Most interim responses before an answer.
pub const MOST_INTERIM: u8 = 16;

/// How a status line begins that is not the last, whatever the minor version.
const INTERIM: [&[u8]; 10] = [b"H", b"T", b"T", b"P", b"/", b"1", b".", b"01", b" ", b"1"];

/// More interim responses than anybody needs.
#[derive(Debug, thiserror::Error)]
#[error("more than {MOST_INTERIM} interim responses came before an answer")]
pub struct TooManyInterim;

/// True if that is why an exchange failed.
pub fn is_flood(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref::<TooManyInterim>()).is_some()
}

/// Where in an answer the connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// So many bytes into a status line that may be an interim one's.
    Line(u8),
    /// In the head of an interim response; true at the start of a line.
    Head(bool),
    /// In the head of a final one, what follows being wanted without hyper; true at the start of a line.
    Last(bool),
    /// In the answer.
    Answer,
}

/// A connection that counts what comes before each answer.
pub struct Interim<T> {
    io: T,
    place: Place,
    heard: u8,
    /// All that was written was flushed: hyper does so when its buffers are empty.
    flushed: bool,
    hold: Arc<Hold>,
    /// What was kept back.
    rest: Bytes,
}

impl<T> Interim<T> {
    /// Counts on `io`.
    pub fn new(io: T, hold: Arc<Hold>) -> Self {
        Self { io, place: Place::Line(0), heard: 0, flushed: false, hold, rest: Bytes::new() }
    }

    /// The connection, and what was kept back of it.
    pub fn into_parts(self) -> (T, Bytes) {
        (self.io, self.rest)
    }

    /// A request is on its way, so a head comes next.
    fn asked(&mut self) {
        self.flushed = false;
        if self.place == Place::Answer {
            (self.place, self.heard) = (Place::Line(0), 0);
        }
    }

    /// How many of these bytes hyper may see now.
    fn hear(&mut self, bytes: &[u8]) -> Result<usize, TooManyInterim> {
        for (at, byte) in bytes.iter().enumerate() {
            self.place = match self.place {
                Place::Answer => return Ok(bytes.len()),
                // hyper takes an empty line or two before a status line.
                Place::Line(0) if matches!(byte, b'\r' | b'\n') => Place::Line(0),
                Place::Line(at) => match INTERIM.get(usize::from(at)) {
                    Some(expected) if expected.contains(byte) && usize::from(at) + 1 == INTERIM.len() => {
                        self.heard += 1;
                        if self.heard > MOST_INTERIM {
                            return Err(TooManyInterim);
                        }
                        Place::Head(false)
                    }
                    Some(expected) if expected.contains(byte) => Place::Line(at + 1),
                    // Of a request that is still being written the connection cannot be taken.
                    _ if self.flushed && self.hold.is_wanted() => Place::Last(*byte == b'\n'),
                    _ => Place::Answer,
                },
                Place::Last(true) if *byte == b'\n' => {
                    self.place = Place::Answer;
                    self.hold.head_is_over();
                    return Ok(at + 1);
                }
                Place::Last(starts) => Place::Last(*byte == b'\n' || (starts && *byte == b'\r')),
                Place::Head(true) if *byte == b'\n' => Place::Line(0),
                Place::Head(starts) => Place::Head(*byte == b'\n' || (starts && *byte == b'\r')),
            };
        }
        Ok(bytes.len())
    }

    /// Nothing while it is held, and then first what was kept back; false if there is nothing of that.
    fn poll_kept(&mut self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<bool> {
        ready!(self.hold.poll_open(cx));
        let length = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(length));
        Poll::Ready(length > 0)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Interim<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if (self.hold.is_on() || self.rest.has_remaining()) && ready!(self.poll_kept(cx, buf)) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.place != Place::Answer {
            let fresh = buf.filled().get(before..).unwrap_or_default();
            let seen = self.hear(fresh).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if let Some(kept) = fresh.get(seen..).filter(|kept| !kept.is_empty()) {
                self.rest = Bytes::copy_from_slice(kept);
                buf.set_filled(before + seen);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Interim<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.asked();
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.asked();
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    const FINAL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    /// True if all of `pieces` may pass.
    fn passes(pieces: &[&[u8]]) -> bool {
        let mut interim = Interim::new((), Arc::default());
        pieces.iter().all(|piece| interim.hear(piece).is_ok())
    }

    #[test]
    fn row_19_sixteen_interim_responses_pass_and_the_next_one_does_not() {
        assert!(passes(&[(HINT.repeat(16) + FINAL).as_bytes()]));
        assert!(!passes(&[HINT.repeat(17).as_bytes()]));
        assert!(!passes(&["HTTP/1.0 100\n\n".repeat(17).as_bytes()]));
        assert!(!passes(&["\r\nHTTP/1.1 199 x\na: b\n\r\n".repeat(17).as_bytes()]));
    }

    #[test]
    fn row_19_an_answer_that_speaks_of_interim_responses_is_an_answer() {
        assert!(passes(&[(FINAL.to_owned() + &HINT.repeat(40)).as_bytes()]));
        assert!(passes(&[HINT.as_bytes(), FINAL.as_bytes(), HINT.repeat(40).as_bytes()]));
    }

    #[tokio::test]
    async fn row_19_every_request_on_a_kept_connection_has_sixteen_of_its_own() {
        let (ours, mut theirs) = duplex(64 * 1024);
        let mut ours = Interim::new(ours, Arc::default());
        let whole = HINT.repeat(16) + FINAL;
        for _ in 0..3 {
            ours.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            theirs.write_all(whole.as_bytes()).await.unwrap();
            let mut heard = vec![0; whole.len()];
            ours.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, whole.as_bytes());
        }
        theirs.write_all(HINT.repeat(17).as_bytes()).await.unwrap();
        ours.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let error = ours.read_exact(&mut vec![0; HINT.len() * 17]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn row_19_it_counts_the_same_however_the_bytes_are_cut(count in 0_usize..20, cuts in prop::collection::vec(1_usize..90, 0..40)) {
            let text = HINT.repeat(count) + FINAL;
            let (mut rest, mut pieces) = (text.as_bytes(), Vec::new());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(passes(&pieces), count <= 16);
        }
    }
}
