//! What is sent to a provider: bytes that are here, or a form whose rest is still with the caller.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::flight::upload::{Stopped, UploadBody};

/// A request's body.
pub enum RequestBody {
    /// Bytes; none once they were handed out.
    Whole(Bytes),
    /// A large body with another model's name in its midst, in order; empty once they were handed out. Nothing of it was
    /// copied.
    Pieces(Box<[Bytes; 3]>),
    /// A form. Boxed because it is large and rare.
    Upload(Box<UploadBody>),
}

impl RequestBody {
    /// Bytes that are handed out before the last piece; `None` if that is not known.
    pub fn ahead(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => Some(0),
            Self::Pieces(pieces) => {
                let (mut ahead, mut last) = (0, 0);
                for length in pieces.iter().map(Bytes::len).filter(|length| *length > 0) {
                    (ahead, last) = (ahead + last, length);
                }
                Some(ahead)
            }
            Self::Upload(_) => None,
        }
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl From<Box<[Bytes; 3]>> for RequestBody {
    fn from(pieces: Box<[Bytes; 3]>) -> Self {
        Self::Pieces(pieces)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Stopped;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Stopped>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Pieces(pieces) => {
                let next = pieces.iter_mut().find(|piece| !piece.is_empty());
                Poll::Ready(next.map(|piece| Ok(Frame::data(std::mem::take(piece)))))
            }
            Self::Upload(form) => Pin::new(form.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Pieces(pieces) => pieces.iter().all(Bytes::is_empty),
            Self::Upload(form) => form.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Self::Upload(form) => form.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn pieces_are_sent_in_their_order_and_say_their_length_before() {
        for pieces in [["{\"model\":\"", "m", "\"}"], ["", "m", ""], ["a", "", "b"], ["", "", ""]] {
            let whole: String = pieces.concat();
            let body = RequestBody::from(Box::new(pieces.map(|piece| Bytes::from_static(piece.as_bytes()))));
            assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
            assert_eq!(body.is_end_stream(), whole.is_empty());
            let last = pieces.iter().rfind(|piece| !piece.is_empty()).map_or(0, |piece| piece.len());
            assert_eq!(body.ahead(), Some(whole.len() - last));
            assert_eq!(body.collect().await.unwrap().to_bytes(), whole);
        }
    }
}
