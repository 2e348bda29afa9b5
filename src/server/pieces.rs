//! HTTP/2 answers in small pieces.
//!
//! h2 takes a frame as soon as the client's window lets one byte of it through, keeps the rest, and tells nobody when the
//! last of it left. So a client that opens its window by one byte would make a hundred streams hold a hundred whole
//! answers for as long as the connection lives, out of reach of the write deadline (T3). In pieces, no more than one of
//! them per stream is out of our hands; the rest waits here, where [`super::stream_stall`] sees that it waits. HTTP/1
//! answers do not come this way: there a write that waits is seen by the connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;

use super::stream_stall;

/// Most bytes of a piece: a DATA frame of the size that every client accepts.
const PIECE: usize = 16 * 1024;

/// A service whose answers come in pieces.
pub(super) struct Pieces<S>(pub(super) S);

impl<S, B> hyper::service::Service<Request<Incoming>> for Pieces<S>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<PiecesBody<B>>;
    type Error = S::Error;
    type Future = PiecesFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        PiecesFuture { answer: self.0.call(request) }
    }
}

pin_project! {
    /// An answer to come.
    pub(super) struct PiecesFuture<F> {
        #[pin]
        answer: F,
    }
}

impl<F, B, E> Future for PiecesFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<PiecesBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.project().answer.poll(cx))?;
        Poll::Ready(Ok(answer.map(|body| PiecesBody { body, rest: Bytes::new() })))
    }
}

pin_project! {
    /// An answer's body in pieces.
    pub(super) struct PiecesBody<B> {
        #[pin]
        body: B,
        rest: Bytes,
    }
}

impl<B: Body<Data = Bytes>> Body for PiecesBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let mut frame = Poll::Ready(None);
        if this.rest.is_empty() {
            frame = match this.body.poll_frame(cx).map_ok(Frame::into_data) {
                Poll::Ready(Some(Ok(Ok(bytes)))) if bytes.len() > PIECE => {
                    *this.rest = bytes;
                    Poll::Ready(None)
                }
                Poll::Ready(Some(Ok(Ok(bytes)))) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Poll::Ready(Some(Ok(Err(trailers)))) => Poll::Ready(Some(Ok(trailers))),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
        if !this.rest.is_empty() {
            frame = Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(this.rest.len().min(PIECE))))));
        }
        stream_stall::body_polled(matches!(frame, Poll::Ready(Some(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        // In this order: the upper bound must never be below the lower one.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}
