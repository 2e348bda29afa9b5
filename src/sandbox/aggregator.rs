//! A simulated OpenAI-compatible provider that also knows the Messages form, for demonstrations and tests of failover and streaming.
//!
//! One instance plays every provider: the first path segment says which, so `/tokenmix/v1/chat/completions` is tokenmix.
//! Its answers name the provider and the model, so that a person sees who answered, and its faults look on the wire as
//! they do with real providers. It understands nothing it is told and keeps no conversation.

mod ask;
mod asked;
mod audio;
mod data;
mod flow;
mod magic;
mod messages;
mod responses;
mod speech;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use self::ask::Ask;
use self::asked::Asked;
use self::audio::{Audio, Told};
use self::data::Plain;
use self::flow::{Flow, Pace, Progress, Step, Watch};
use self::magic::Magic;
use self::messages::Form;
use self::speech::Speech;
use super::fault::{Fault, Faults};
use super::{SandboxBody, refused, reset};
use crate::domain::secret::Secret;
use crate::wire::openai::{ErrorBody, ModelEntry, error_body, models_list};

pub use self::magic::MAGIC_MODELS;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";

/// The provider key of requests whose path has no prefix.
const NO_PREFIX: &str = "aggregator";

/// Requests remembered; the oldest go first.
const MAX_SEEN: usize = 10_000;

/// Bytes of request bodies remembered in all.
const MAX_SEEN_BYTES: usize = 64 << 20;

/// The longest request body read.
const MAX_BODY: usize = 64 << 20;

/// How an [`Aggregator`] behaves.
#[derive(Clone, Debug)]
pub struct AggregatorConfig {
    /// What `Authorization: Bearer` must carry, or in the Messages form `x-api-key`.
    pub api_key: Secret,
    /// Faults by provider key.
    pub faults: Faults,
    /// The time between two content chunks.
    pub pace: Duration,
    /// The time from the request to the first content chunk, or to a whole answer.
    pub first_token: Duration,
}

impl AggregatorConfig {
    /// Twenty milliseconds between chunks, the first at once, no faults.
    pub fn new(api_key: Secret) -> Self {
        Self { api_key, faults: Faults::new(), pace: Duration::from_millis(20), first_token: Duration::ZERO }
    }
}

/// One request as the simulated provider saw it. Debug output shows neither headers nor body.
#[derive(Clone)]
pub struct Seen {
    /// The provider that was being played.
    pub provider: String,
    /// The path with its prefix.
    pub path: String,
    /// The model asked for, empty if the body named none.
    pub model: String,
    /// Whether the key was the right one.
    pub authorization_ok: bool,
    /// All headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The caller left before the answer's end.
    pub cancelled: bool,
    /// Body chunks handed to the connection.
    pub chunks_sent: usize,
}

impl Seen {
    /// The first header of that name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("provider", &self.provider)
            .field("path", &self.path)
            .field("model", &self.model)
            .field("authorization_ok", &self.authorization_ok)
            .field("cancelled", &self.cancelled)
            .field("chunks_sent", &self.chunks_sent)
            .finish_non_exhaustive()
    }
}

/// The simulated provider; clones are the same one.
#[derive(Clone)]
pub struct Aggregator(Arc<Inner>);

struct Inner {
    config: AggregatorConfig,
    magic: Magic,
    requests: AtomicU64,
    // A blocking lock: held to push or copy, never across an await.
    seen: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    requests: VecDeque<(Seen, Arc<Progress>)>,
    bytes: usize,
}

impl fmt::Debug for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aggregator").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// What every answer to one request needs.
struct Turn {
    form: Form,
    provider: String,
    number: u64,
    watch: Watch,
}

impl Aggregator {
    /// A provider that has seen nothing yet.
    pub fn new(config: AggregatorConfig) -> Self {
        Self(Arc::new(Inner { config, magic: Magic::default(), requests: AtomicU64::new(0), seen: Mutex::default() }))
    }

    /// The last 10,000 requests, oldest first; fewer if their bodies are large.
    pub fn seen(&self) -> Vec<Seen> {
        let current = |(seen, progress): &(Seen, Arc<Progress>)| Seen {
            cancelled: progress.is_cancelled(),
            chunks_sent: progress.chunks_sent(),
            ..seen.clone()
        };
        self.log().requests.iter().map(current).collect()
    }

    /// Answers one request.
    ///
    /// # Errors
    ///
    /// When the fault is to end the connection without an answer, or the request body breaks off.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, or later the body, is noted as the caller leaving.
    pub async fn handle(&self, request: Request<Incoming>) -> Result<Response<SandboxBody>, io::Error> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(io::Error::other)?.to_bytes();
        let path = head.uri.path();
        let (prefix, operation) = path.split_once("/v1/").unwrap_or((path, ""));
        let provider = prefix.split('/').find(|segment| !segment.is_empty()).unwrap_or(NO_PREFIX).to_owned();
        let form = Form::of(operation);
        let asked = Asked::read(operation, &head.headers, &body, &provider);
        let authorization_ok = self.is_authorized(&head.headers, form);
        let seen = Seen {
            provider: provider.clone(),
            path: path.to_owned(),
            model: asked.as_ref().map(|asked| asked.model().to_owned()).unwrap_or_default(),
            authorization_ok,
            headers: texts(&head.headers),
            body,
            cancelled: false,
            chunks_sent: 0,
        };
        let watch = self.remember(seen);
        let turn = Turn { form, provider, number: self.0.requests.fetch_add(1, Ordering::Relaxed) + 1, watch };
        if !authorization_ok {
            return Ok(turn.error(StatusCode::UNAUTHORIZED, "the api key is not the one this provider was given"));
        }
        match (&head.method, Asked::knows(operation), operation) {
            (&Method::POST, true, _) => match asked {
                Ok(asked) => self.answer(turn, &head.headers, operation, asked).await,
                Err(message) => Ok(turn.error(StatusCode::BAD_REQUEST, &message)),
            },
            (&Method::GET, _, "models") => self.models(turn).await,
            (_, true, _) | (_, _, "models") => {
                Ok(turn.error(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method"))
            }
            _ => {
                let message = "no such path, try /v1/chat/completions, /v1/messages, /v1/responses or /v1/models";
                Ok(turn.error(StatusCode::NOT_FOUND, message))
            }
        }
    }

    async fn answer(
        &self,
        turn: Turn,
        headers: &HeaderMap,
        operation: &str,
        asked: Asked,
    ) -> Result<Response<SandboxBody>, io::Error> {
        match asked {
            Asked::Chat(ask) if turn.form == Form::Messages => self.messages(turn, headers, operation, ask).await,
            Asked::Chat(ask) => self.chat(turn, ask).await,
            Asked::Data(ask) => self.data(turn, ask).await,
            Asked::Audio(ask) => self.audio(turn, ask).await,
        }
    }

    async fn chat(&self, turn: Turn, ask: Ask) -> Result<Response<SandboxBody>, io::Error> {
        let kind = if ask.stream { EVENTS } else { JSON };
        let (turn, fault) = match self.act_on(turn, ask.fault.clone(), &ask.model, kind).await? {
            Acted::Answered(answer) => return Ok(answer),
            Acted::Remaining(turn, fault) => (turn, fault),
        };
        let speech = Speech::new(&ask, &turn.provider, turn.number);
        if let Some(Fault::ErrorIn200 { status }) = fault {
            let body = if ask.stream { speech.error_event(status) } else { speech.error(status) };
            return Ok(turn.answer(kind, vec![Step::Send(body)]));
        }
        if ask.stream {
            return Ok(turn.answer(kind, flow::events(speech.chunks(), fault.as_ref(), self.pace())));
        }
        Ok(self.whole(turn, &speech.whole(), fault.as_ref()).await)
    }

    /// Shows the fault of a request: the one it asks for itself, else the next in line, else the one its model stands for.
    async fn act_on(
        &self,
        turn: Turn,
        own: Option<Fault>,
        model: &str,
        kind: &'static str,
    ) -> Result<Acted, io::Error> {
        let fault = own.or_else(|| self.0.config.faults.next(&turn.provider));
        let fault = fault.or_else(|| self.0.magic.fault(&turn.provider, model));
        act(turn, fault, kind).await
    }

    fn pace(&self) -> Pace {
        Pace { first: self.0.config.first_token, between: self.0.config.pace }
    }

    async fn whole(&self, turn: Turn, json: &Bytes, fault: Option<&Fault>) -> Response<SandboxBody> {
        self.whole_of(turn, JSON, json, fault).await
    }

    async fn whole_of(
        &self,
        turn: Turn,
        kind: &'static str,
        body: &Bytes,
        fault: Option<&Fault>,
    ) -> Response<SandboxBody> {
        tokio::time::sleep(self.0.config.first_token).await;
        let mut answer = turn.answer(kind, flow::whole(body, fault));
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        answer
    }

    async fn messages(
        &self,
        turn: Turn,
        headers: &HeaderMap,
        operation: &str,
        ask: Ask,
    ) -> Result<Response<SandboxBody>, io::Error> {
        if operation != "messages" {
            return Ok(turn.answer(JSON, vec![Step::Send(messages::count(&ask))]));
        }
        match messages::objection(headers, &ask) {
            Some(message) => Ok(turn.error(StatusCode::BAD_REQUEST, message)),
            None => self.chat(turn, ask).await,
        }
    }

    async fn audio(&self, turn: Turn, ask: Audio) -> Result<Response<SandboxBody>, io::Error> {
        let kind = ask.media_type();
        let (turn, fault) = match self.act_on(turn, ask.fault.clone(), &ask.model, kind).await? {
            Acted::Answered(answer) => return Ok(answer),
            Acted::Remaining(turn, fault) => (turn, fault),
        };
        if let Some(Fault::ErrorIn200 { status }) = fault {
            let kind = if kind == EVENTS { EVENTS } else { JSON };
            return Ok(turn.answer(kind, vec![Step::Send(ask.error(status))]));
        }
        match ask.answer() {
            Told::Pieces(pieces) => Ok(turn.answer(kind, flow::events(pieces, fault.as_ref(), self.pace()))),
            Told::Whole(bytes) => Ok(self.whole_of(turn, kind, &bytes, fault.as_ref()).await),
        }
    }

    async fn data(&self, turn: Turn, ask: Plain) -> Result<Response<SandboxBody>, io::Error> {
        let kind = if ask.stream { EVENTS } else { JSON };
        let (turn, fault) = match self.act_on(turn, ask.fault.clone(), &ask.model, kind).await? {
            Acted::Answered(answer) => return Ok(answer),
            Acted::Remaining(turn, fault) => (turn, fault),
        };
        if let Some(Fault::ErrorIn200 { status }) = fault {
            return Ok(turn.answer(kind, vec![Step::Send(ask.error(status))]));
        }
        let number = turn.number;
        if ask.stream {
            return Ok(turn.answer(kind, flow::events(ask.chunks(number), fault.as_ref(), self.pace())));
        }
        Ok(self.whole(turn, &ask.whole(number), fault.as_ref()).await)
    }

    async fn models(&self, turn: Turn) -> Result<Response<SandboxBody>, io::Error> {
        let fault = self.0.config.faults.next(&turn.provider);
        match act(turn, fault, JSON).await? {
            Acted::Answered(answer) => Ok(answer),
            Acted::Remaining(turn, _) => {
                let provider = turn.provider.clone();
                let models: Vec<_> = MAGIC_MODELS
                    .iter()
                    .map(|(id, ..)| ModelEntry { id, owned_by: &provider, ..ModelEntry::default() })
                    .collect();
                Ok(turn.answer(JSON, vec![Step::Send(models_list(&models))]))
            }
        }
    }

    fn is_authorized(&self, headers: &HeaderMap, form: Form) -> bool {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let presented = bearer.or_else(|| messages::api_key(headers).filter(|_| form == Form::Messages));
        presented.is_some_and(|key| Secret::new(key.to_vec()) == self.0.config.api_key)
    }

    fn remember(&self, seen: Seen) -> Watch {
        let progress = Arc::new(Progress::default());
        let mut log = self.log();
        log.bytes += seen.body.len();
        log.requests.push_back((seen, Arc::clone(&progress)));
        while log.requests.len() > MAX_SEEN || (log.bytes > MAX_SEEN_BYTES && log.requests.len() > 1) {
            let Some((oldest, _)) = log.requests.pop_front() else { break };
            log.bytes -= oldest.body.len();
        }
        Watch::new(progress)
    }

    /// A panic of another holder leaves whole entries behind, so the poison says nothing here.
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Acted {
    /// The fault was all of the answer.
    Answered(Response<SandboxBody>),
    /// What is left of the fault is for the body of an answer to show.
    Remaining(Turn, Option<Fault>),
}

/// Shows whatever of a fault does not depend on the answer, which would have been of the type `kind`.
async fn act(turn: Turn, fault: Option<Fault>, kind: &'static str) -> Result<Acted, io::Error> {
    let Some(fault) = fault else { return Ok(Acted::Remaining(turn, None)) };
    match fault {
        Fault::Refuse | Fault::Reset => {
            turn.watch.finish();
            Err(if fault == Fault::Refuse { refused() } else { reset() })
        }
        Fault::Stall => std::future::pending().await,
        Fault::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(Acted::Remaining(turn, None))
        }
        Fault::Status { code, headers, body } => Ok(Acted::Answered(turn.status(code, &headers, body))),
        Fault::Empty => Ok(Acted::Answered(turn.answer(kind, Vec::new()))),
        Fault::Garbage => {
            let page = Bytes::from_static(b"<html><body>It works!</body></html>");
            Ok(Acted::Answered(turn.answer("text/html", vec![Step::Send(page)])))
        }
        // Nothing is signed in this protocol, so there is no signature to spoil.
        Fault::BadSignature | Fault::Unsigned | Fault::Forged(_) => Ok(Acted::Remaining(turn, None)),
        Fault::ErrorIn200 { .. } | Fault::CutAfter(_) | Fault::StallAfter(_) => Ok(Acted::Remaining(turn, Some(fault))),
    }
}

impl Turn {
    fn request_id(&self) -> String {
        format!("req_{}_{:06}", self.provider, self.number)
    }

    fn answer(self, kind: &'static str, steps: Vec<Step>) -> Response<SandboxBody> {
        let id = self.request_id();
        let id_header = if self.form == Form::Messages { "request-id" } else { "x-request-id" };
        let mut answer = Response::new(Flow::new(steps, self.watch).boxed_unsync());
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(HeaderName::from_static(id_header), id);
        }
        answer
    }

    fn error(self, status: StatusCode, message: &str) -> Response<SandboxBody> {
        let (kind, code) = match status.as_u16() {
            401 => ("invalid_request_error", Some("invalid_api_key")),
            404 => ("invalid_request_error", Some("model_not_found")),
            429 => ("rate_limit_error", Some("rate_limit_exceeded")),
            400..=499 => ("invalid_request_error", None),
            _ => ("server_error", None),
        };
        let message = format!("{}: {message}", self.provider);
        let body = match self.form {
            Form::Chat | Form::Responses => error_body(&ErrorBody { message: &message, kind, param: None, code }),
            Form::Messages => messages::failure(status.as_u16(), &message, &self.request_id()),
        };
        let mut answer = self.answer(JSON, vec![Step::Send(body)]);
        *answer.status_mut() = status;
        answer
    }

    fn status(self, code: u16, headers: &[(String, String)], body: Option<String>) -> Response<SandboxBody> {
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = match body {
            Some(body) => self.answer("text/plain", vec![Step::Send(body.into())]),
            None => self.error(status, "a simulated failure"),
        };
        *answer.status_mut() = status;
        for (name, value) in headers {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                answer.headers_mut().insert(name, value);
            }
        }
        answer
    }
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

#[cfg(test)]
mod tests;
