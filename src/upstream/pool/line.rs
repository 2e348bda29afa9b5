//! One connection over HTTP/1.1: put into hyper's hands, driven there, and taken out of them for a stream that is read
//! without hyper ([`super::alone`]).
//!
//! It knows nothing of who may use a connection and when; that is the pool's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::{HEAD_BYTES, Pool};
use crate::upstream::body::RequestBody;
use crate::upstream::dial::Io;
use crate::upstream::hold::{Given, Hold};
use crate::upstream::interim::Interim;

/// What a kept connection may take to become ready for its next request.
const READY_LIMIT: Duration = Duration::from_millis(5);

/// A connection, boxed once, because every attempt carries it. Dropped, it is closed, even if its other side has stopped
/// reading what is still being written.
pub(super) struct Line {
    pub(super) sender: SendRequest<RequestBody>,
    driver: AbortHandle,
    /// How it is taken out of hyper's hands, for an answer that is read [`alone`].
    pub(super) hold: Arc<Hold>,
    /// True once it has served, or lain idle: its other side may just be closing it.
    pub(super) used: bool,
    /// Where it goes back to once its answer was read; absent while it waits, and if it serves nobody after this.
    pub(super) home: Option<Arc<Pool>>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What hyper makes of a connection over HTTP/1.1.
type InHyper = http1::Connection<TokioIo<Interim<Box<dyn Io>>>, RequestBody>;

/// A connection in hyper's hands, until it ends or is taken out of them.
struct Driver {
    connection: Option<InHyper>,
    hold: Arc<Hold>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.hold.is_on() && self.hold.is_leaving(cx.waker()) {
            if let Some(parts) = self.connection.take().map(InHyper::into_parts) {
                let (io, rest) = parts.io.into_inner().into_parts();
                // hyper was shown nothing beyond the head. Had it been, nobody could tell where the body goes on.
                if parts.read_buf.is_empty() {
                    self.hold.give(Given { io, rest });
                }
            }
            return Poll::Ready(());
        }
        // An end that is an error is told to whoever waits for the answer.
        self.connection.as_mut().map_or(Poll::Ready(()), |connection| Pin::new(connection).poll(cx).map(drop))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.hold.driver_ended();
    }
}

/// Puts a connection into hyper's hands.
pub(super) async fn line(io: Box<dyn Io>) -> io::Result<Box<Line>> {
    let hold = Arc::<Hold>::default();
    let io = TokioIo::new(Interim::new(io, Arc::clone(&hold)));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES.max(8192 * 8));
    let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
    // The driver ends with its line, or when the peer closes, or when the connection is taken from it.
    let driver = Driver { connection: Some(connection), hold: Arc::clone(&hold) };
    let driver = tokio::spawn(driver).abort_handle();
    Ok(Box::new(Line { sender, driver, hold, used: false, home: None }))
}

/// A connection whose request was answered before it was read to its end may never be ready again.
pub(super) async fn is_ready(sender: &mut SendRequest<RequestBody>) -> bool {
    sender.is_ready() || matches!(Box::pin(timeout(READY_LIMIT, sender.ready())).await, Ok(Ok(())))
}
