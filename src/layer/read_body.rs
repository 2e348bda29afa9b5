//! Collects the request body into `Bytes`, within its size limit and without long silences.
//!
//! A body of one frame, which is most of them, is not copied. A form may hold a file, so of a large one only the beginning
//! is collected ([`form`]).

mod form;

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Layer, Service};

use crate::domain::operation::{Operation, TrafficClass};
use crate::flight::arrival::{Arrival, Pinned};
use crate::flight::error::CallError;
use crate::flight::gate::Growth;
use crate::flight::gathered::Gathered;
use crate::flight::reply::Reply;
use crate::flight::upload::Received;
use crate::layer::read_body::form::Keep;
use crate::layer::{BoxFuture, always_ready};
use crate::upstream::patience::within;
use crate::wire::multipart::Boundary;

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
    S: Service<Arrival<P, Received>, Response = Reply, Error = CallError> + Clone + Send + 'static,
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
            let idle = limits.body_idle;
            let limit_bytes = match arrival.operation.map(Operation::class) {
                Some(TrafficClass::Risk) => limits.risk_body_bytes,
                Some(TrafficClass::Llm) | None => limits.body_bytes,
            };
            if arrival.operation.is_some_and(Operation::takes_form) {
                // Boxed because it is rare and large.
                return Box::pin(upload(arrival, Room { limit_bytes, idle }, inner)).await;
            }
            check_head(&arrival.head, Kind::Json, limit_bytes)?;
            let room = Room { limit_bytes, idle };
            let growth = arrival.growth.take();
            let bytes = collect(&mut arrival.body, room, growth.as_deref()).await?;
            arrival.trail.lock().bytes_in = bytes.len() as u64;
            inner.call(arrival.with_body(Received { bytes, upload: None })).await
        })
    }
}

/// What a body may take.
#[derive(Clone, Copy)]
struct Room {
    /// Its size.
    limit_bytes: usize,
    /// Its longest silence.
    idle: Duration,
}

async fn upload<S, P, B>(arrival: Arrival<P, B>, room: Room, mut inner: S) -> Result<Reply, CallError>
where
    S: Service<Arrival<P, Received>, Response = Reply, Error = CallError>,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    const NO_FORM: CallError = CallError::MediaType("send content-type: multipart/form-data with a boundary");
    let headers = &arrival.head.headers;
    check_head(&arrival.head, Kind::Form, room.limit_bytes)?;
    let kind = headers.get(CONTENT_TYPE).ok_or(NO_FORM)?;
    let boundary = Boundary::of(kind.as_bytes()).ok_or(NO_FORM)?.map_err(form::refused)?;
    // A signature covers the whole of it.
    let signs = arrival.caller.as_deref().is_some_and(|live| live.caller.signature.is_some());
    let keep = if signs || headers.contains_key("idempotency-key") { Keep::All } else { Keep::Beginning };
    let growth = arrival.growth.clone();
    let (arrival, body) = arrival.split();
    let mut weigh = |bytes| growth.as_deref().map_or(Ok(()), |growth| growth.reach(bytes));
    let received = form::receive(body, &boundary, (room, keep, &mut weigh), &arrival.trail).await?;
    inner.call(arrival.with_body(received)).await
}

/// What a path takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Form,
}

fn check_head(head: &Parts, kind: Kind, limit_bytes: usize) -> Result<(), CallError> {
    // One pass: three look-ups would each hash a name.
    for (name, value) in &head.headers {
        let text = value.as_bytes();
        if name == CONTENT_ENCODING && !text.eq_ignore_ascii_case(b"identity") {
            return Err(CallError::MediaType("send the body without content-encoding"));
        }
        if name == CONTENT_TYPE && kind == Kind::Json && !is_json(text) {
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

async fn collect<B>(body: &mut B, room: Room, growth: Option<&Growth>) -> Result<Bytes, CallError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let Room { limit_bytes, idle } = room;
    let mut gathered = Gathered::default();
    while !body.is_end_stream() {
        let frame = within(idle, body.frame()).await.map_err(|_| CallError::BodyIncomplete)?;
        let Some(frame) = frame else { break };
        // Trailers are dropped: they are never merged into headers.
        let frame = frame.map_err(|_| CallError::Framing("the request body is malformed or broke off"))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if gathered.len() + chunk.len() > limit_bytes {
            return Err(CallError::BodyTooLarge { limit_bytes });
        }
        if let Some(growth) = growth {
            growth.reach(gathered.len() + chunk.len())?;
        }
        // What was declared is within the limit, and admission has counted it.
        gathered.push(chunk, usize::try_from(body.size_hint().lower()).unwrap_or(0).min(limit_bytes));
    }
    Ok(gathered.finish())
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
        let room = Room { limit_bytes: 4, idle: Duration::from_secs(1) };
        assert_eq!(collect(&mut chunks(&["ab", "c", "d"]), room, None).await.unwrap(), "abcd");
        for parts in [&["abcde"][..], &["abcd", "e"], &["a", "b", "c", "d", "e"]] {
            let result = collect(&mut chunks(parts), room, None).await;
            assert!(matches!(result, Err(CallError::BodyTooLarge { limit_bytes: 4 })), "{parts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p5_a_body_that_falls_silent_is_given_up() {
        let silent = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"a")))]);
        let mut body = StreamBody::new(silent.chain(futures_util::stream::pending()));
        let room = Room { limit_bytes: 10, idle: Duration::from_secs(10) };
        let result = collect(&mut body, room, None).await;
        assert!(matches!(result, Err(CallError::BodyIncomplete)));
    }

    #[test]
    fn p3_compressed_and_foreign_bodies_are_refused() {
        let head = |name: &str, value: &str| {
            let request = http::Request::builder().header(name, value).body(Full::<Bytes>::default()).unwrap();
            check_head(&request.into_parts().0, Kind::Json, 10)
        };
        assert!(matches!(head("content-encoding", "gzip"), Err(CallError::MediaType(_))));
        assert!(is_json(b"application/json; charset=utf-8") && !is_json(b"multipart/form-data; boundary=x"));
        assert!(matches!(head("content-length", "11"), Err(CallError::BodyTooLarge { .. })));
    }
}
