//! The two servers the product is compared through: an upstream that does nothing, and the least a proxy can do.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Interval, interval};

/// Chunks of one null stream, the one with `[DONE]` not counted; a request may say `"chunks":N`.
const CHUNKS: u64 = 50;
/// What a completion says; a request may say `"answer_bytes":N`.
const ANSWER_BYTES: usize = 720;
/// Milliseconds between them; a request may say `"every_ms":N`.
const EVERY_MS: u64 = 2;

/// Runs the null upstream until killed: a 1 KB chat completion, or [`CHUNKS`] events one by one.
pub fn null(listen: &str) {
    let answer = Bytes::from(completion(ANSWER_BYTES));
    let others = Rc::new(RefCell::new(HashMap::<usize, Bytes>::new()));
    serve(listen, move |request: Request<Incoming>| {
        let (answer, others) = (answer.clone(), Rc::clone(&others));
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let streaming = memchr::memmem::find(&body, b"\"stream\":true").is_some();
            let (kind, body) = if streaming {
                let every = Duration::from_millis(asked(&body, b"\"every_ms\":").unwrap_or(EVERY_MS).max(1));
                let left = asked(&body, b"\"chunks\":").unwrap_or(CHUNKS) + 1;
                ("text/event-stream", Either::Left(Chunks { left, timer: interval(every) }))
            } else {
                let asked = asked(&body, b"\"answer_bytes\":").and_then(|bytes| usize::try_from(bytes).ok());
                let other =
                    |bytes| others.borrow_mut().entry(bytes).or_insert_with(|| completion(bytes).into()).clone();
                ("application/json", Either::Right(Full::new(asked.map_or(answer, other))))
            };
            let mut response = Response::new(NullBody(body));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            Ok::<_, hyper::Error>(response)
        }
    });
}

/// A number that the load put into its request, which every proxy hands on untouched.
fn asked(body: &[u8], name: &[u8]) -> Option<u64> {
    let from = memchr::memmem::find(body, name)? + name.len();
    let digits = body[from..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Runs the bare proxy until killed: one core, connections kept per core, bodies streamed, nothing looked at.
pub fn bare(listen: &str, to: &str) {
    let senders = Rc::new(RefCell::new(Vec::new()));
    let to: Rc<str> = to.into();
    serve(listen, move |mut request: Request<Incoming>| {
        let (senders, to) = (Rc::clone(&senders), Rc::clone(&to));
        async move {
            request.headers_mut().insert(HOST, HeaderValue::from_str(&to).unwrap());
            let mut sender = ready_sender(&senders, &to).await;
            let response = sender.send_request(request).await?;
            Ok::<_, hyper::Error>(response.map(|body| Returning { body, home: Some((sender, senders)) }))
        }
    });
}

type Senders = Rc<RefCell<Vec<SendRequest<Incoming>>>>;

async fn ready_sender(senders: &Senders, to: &str) -> SendRequest<Incoming> {
    loop {
        let kept = senders.borrow_mut().pop();
        let Some(mut sender) = kept else { break };
        if sender.ready().await.is_ok() {
            return sender;
        }
    }
    let stream = TcpStream::connect(to).await.expect("the null upstream listens");
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("a new connection can be used");
    spawn_local(connection);
    sender
}

fn serve<S, F, B, E>(listen: &str, service: S)
where
    S: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Result<Response<B>, E>> + 'static,
    B: Body<Data = Bytes> + 'static,
    B::Error: std::error::Error + Send + Sync,
    E: std::error::Error + Send + Sync + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await.unwrap();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            stream.set_nodelay(true).unwrap();
            let service = service.clone();
            spawn_local(async move {
                let io = TokioIo::new(stream);
                // A client that goes away is no news to a benchmark.
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service_fn(service)).await);
            });
        }
    });
}

/// A chat completion that says so many bytes.
fn completion(bytes: usize) -> String {
    let content: String = "The quick brown fox jumps over the lazy dog. ".chars().cycle().take(bytes).collect();
    format!(
        concat!(
            r#"{{"id":"chatcmpl-0","object":"chat.completion","created":1767323045,"model":"model-1","choices":"#,
            r#"[{{"index":0,"message":{{"role":"assistant","content":"{}"}},"logprobs":null,"finish_reason":"stop"}}],"#,
            r#""usage":{{"prompt_tokens":21,"completion_tokens":160,"total_tokens":181}},"system_fingerprint":"fp_0"}}"#
        ),
        content
    )
}

/// A server-sent event every few milliseconds, then `[DONE]`.
struct Chunks {
    left: u64,
    timer: Interval,
}

struct NullBody(Either<Chunks, Full<Bytes>>);

impl Body for NullBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunks = match &mut self.0 {
            Either::Right(whole) => return Pin::new(whole).poll_frame(cx),
            Either::Left(chunks) => chunks,
        };
        if chunks.left == 0 {
            return Poll::Ready(None);
        }
        if chunks.timer.poll_tick(cx).is_pending() {
            return Poll::Pending;
        }
        chunks.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(if chunks.left == 0 {
            b"data: [DONE]\n\n"
        } else {
            EVENT
        })))))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Either::Left(_) => SizeHint::default(),
            Either::Right(whole) => whole.size_hint(),
        }
    }
}

const EVENT: &[u8] = b"data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1767323045,\
    \"model\":\"model-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}]}\n\n";

/// A response body that gives its connection back when it has ended.
struct Returning {
    body: Incoming,
    home: Option<(SendRequest<Incoming>, Senders)>,
}

impl Body for Returning {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let ended = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            _ => false,
        };
        if ended && let Some((sender, senders)) = self.home.take() {
            senders.borrow_mut().push(sender);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
