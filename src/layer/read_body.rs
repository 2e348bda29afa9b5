//! Collects the request body into `Bytes`, within its size limit and without long silences.
//!
//! A body of one frame, which is most of them, is not copied.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, Service};

use crate::domain::operation::{Operation, TrafficClass};
use crate::flight::arrival::{Arrival, Pinned};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::layer::{BoxFuture, always_ready};
use crate::upstream::patience::within;

/// Makes [`ReadBody`].
#[derive(Clone, Copy)]
pub struct ReadBodyLayer;

/// Turns a streaming body into bytes.
#[derive(Clone)]
pub struct ReadBody<S>(S);

impl<S> Layer<S> for ReadBodyLayer {
    type Service = ReadBody<S>;

    fn layer(&self, inner: S) -> ReadBody<S> {
        ReadBody(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for ReadBody<S>
where
    S: Service<Arrival<P, Bytes>, Response = Reply, Error = CallError> + Clone + Send + 'static,
    S::Future: Send,
    P: Pinned,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, mut arrival: Arrival<P, B>) -> Self::Future {
        let mut inner = self.0.clone();
        Box::pin(async move {
            let limits = arrival.pinned.limits();
            let limit = match arrival.operation.map(Operation::class) {
                Some(TrafficClass::Risk) => limits.risk_body_bytes,
                Some(TrafficClass::Llm) | None => limits.body_bytes,
            };
            check_head(&arrival.head, limit)?;
            let body = collect(&mut arrival.body, limit, limits.body_idle).await?;
            arrival.trail.lock().bytes_in = body.len() as u64;
            inner.call(arrival.with_body(body)).await
        })
    }
}

fn check_head(head: &Parts, limit_bytes: usize) -> Result<(), CallError> {
    // One pass: three look-ups would each hash a name.
    for (name, value) in &head.headers {
        let text = value.as_bytes();
        if name == CONTENT_ENCODING && !text.eq_ignore_ascii_case(b"identity") {
            return Err(CallError::MediaType("send the body without content-encoding"));
        }
        if name == CONTENT_TYPE && !is_json(text) {
            return Err(CallError::MediaType("send content-type: application/json"));
        }
        let declared = || value.to_str().ok()?.parse::<u64>().ok();
        if name == CONTENT_LENGTH && declared().is_some_and(|declared| declared > limit_bytes as u64) {
            return Err(CallError::BodyTooLarge { limit_bytes });
        }
    }
    Ok(())
}

fn is_json(kind: &[u8]) -> bool {
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
}

async fn collect<B>(body: &mut B, limit_bytes: usize, idle: Duration) -> Result<Bytes, CallError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while !body.is_end_stream() {
        let frame = within(idle, body.frame()).await.map_err(|_| CallError::BodyIncomplete)?;
        let Some(frame) = frame else { break };
        // Trailers are dropped: they are never merged into headers.
        let frame = frame.map_err(|_| CallError::Framing("the request body is malformed or broke off"))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if first.len() + rest.len() + chunk.len() > limit_bytes {
            return Err(CallError::BodyTooLarge { limit_bytes });
        }
        if first.is_empty() && rest.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&chunk);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::StreamExt;
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn chunks(parts: &[&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frames: Vec<_> = parts.iter().map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes())))).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn p1_one_byte_over_the_limit_is_too_large_however_it_is_cut() {
        let idle = Duration::from_secs(1);
        assert_eq!(collect(&mut chunks(&["ab", "c", "d"]), 4, idle).await.unwrap(), "abcd");
        for parts in [&["abcde"][..], &["abcd", "e"], &["a", "b", "c", "d", "e"]] {
            let result = collect(&mut chunks(parts), 4, idle).await;
            assert!(matches!(result, Err(CallError::BodyTooLarge { limit_bytes: 4 })), "{parts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p5_a_body_that_falls_silent_is_given_up() {
        let silent = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"a")))]);
        let mut body = StreamBody::new(silent.chain(futures_util::stream::pending()));
        let result = collect(&mut body, 10, Duration::from_secs(10)).await;
        assert!(matches!(result, Err(CallError::BodyIncomplete)));
    }

    #[test]
    fn p3_compressed_and_foreign_bodies_are_refused() {
        let head = |name: &str, value: &str| {
            let request = http::Request::builder().header(name, value).body(Full::<Bytes>::default()).unwrap();
            check_head(&request.into_parts().0, 10)
        };
        assert!(matches!(head("content-encoding", "gzip"), Err(CallError::MediaType(_))));
        assert!(matches!(head("content-type", "multipart/form-data; boundary=x"), Err(CallError::MediaType(_))));
        assert!(head("content-type", "application/json; charset=utf-8").is_ok());
        assert!(matches!(head("content-length", "11"), Err(CallError::BodyTooLarge { .. })));
    }
}
