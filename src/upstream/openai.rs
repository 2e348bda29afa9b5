//! The OpenAI-compatible protocol: what is sent, and what an answer means.
//!
//! Providers differ only in their descriptors. An answer counts when it has content; a 200 that holds an error, is
//! empty or is of the wrong type is a failed attempt like any other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use crate::config::table::{Provider, StreamUsage};
use crate::domain::clock;
use crate::domain::operation::{Dialect, Operation};
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::usage::Usage;
use crate::flight::call::Call;
use crate::flight::carried::{Carried, Frame};
use crate::flight::error::AttemptError;
use crate::flight::facts::LlmFacts;
use crate::flight::reply::{EventStream, Reply, ReplyBody, UsageSlot};
use crate::telemetry::traces::Begun;
use crate::upstream::apart::{LARGE, apart};
use crate::upstream::attempt::Attempt;
use crate::upstream::audio;
use crate::upstream::body::RequestBody;
use crate::upstream::exchange::{ReadError, read_whole};
use crate::upstream::form::{Form, wrote_nothing};
use crate::upstream::live::LiveUpstream;
use crate::upstream::meaning::{classify, embedded, recoded, without_secret};
use crate::upstream::pool::alone::{AsksForStream, MOST_AHEAD};
use crate::upstream::pool::{Outgoing, UpstreamBody};
use crate::upstream::retry_after;
use crate::upstream::stream::{Reading, Retold, Telling, UsageEvent, prime};
use crate::wire::answered_by::answered_by;
use crate::wire::filtered::is_filtered;
use crate::wire::json_edit::{self, UsageRequest};
use crate::wire::openai::parse_error;

/// From here on a body is sent in pieces rather than copied; below, three pieces are dearer than one copy.
const LONG: usize = 32 * 1024;
/// Largest whole answer.
const ANSWER_BYTES: usize = 32 * 1024 * 1024;
/// Longest silence in an error body: the status has said the most important thing already.
const ERROR_PATIENCE: Duration = Duration::from_secs(1);
/// Largest error body read.
const ERROR_BYTES: usize = 64 * 1024;

/// What we need of a response's headers, found in one pass over them.
struct Sifted {
    /// Those that may reach the client; all others stay here.
    passed: HeaderMap,
    /// The provider's own id of the call.
    their_id: Option<HeaderValue>,
    is_stream: bool,
    is_json: bool,
    is_compressed: bool,
}

/// A call as one provider is asked: in its own form, or carried by another.
pub struct Spoken<'a> {
    operation: Operation,
    body: &'a Bytes,
    facts: LlmFacts,
    carried: Option<&'a Carried>,
    /// Which of the members that the provider refuses were there, a bit for each.
    pub(super) dropped: u32,
}

impl<'a> Spoken<'a> {
    /// How `upstream` is asked.
    ///
    /// # Errors
    /// [`FailureClass::Refused`] if it does not have the operation, which routing has already ruled out.
    pub fn new(call: &'a Call, upstream: &LiveUpstream) -> Result<Self, AttemptError> {
        let missing =
            || AttemptError::new(FailureClass::Refused, Sent::No, "the provider does not have this operation");
        let operation = upstream.speaks(call).ok_or_else(missing)?;
        Ok(match call.carried.as_deref().filter(|_| operation != call.operation) {
            Some(carried) => {
                Self { operation, body: &carried.body, facts: carried.facts, carried: Some(carried), dropped: 0 }
            }
            None => Self { operation, body: &call.body, facts: call.llm(), carried: None, dropped: 0 },
        })
    }

    /// True if its body is better worked on [`apart`].
    pub fn is_large(&self) -> bool {
        self.body.len() > LARGE
    }

    fn form(&self) -> Form {
        Form::of(self.operation)
    }
}

/// The caller's body with the provider's model name, and what else its file says of bodies.
///
/// # Errors
/// [`FailureClass::Refused`] if the body cannot be edited, which decoding it has already ruled out.
pub fn prepare(spoken: &mut Spoken<'_>, upstream: &LiveUpstream) -> Result<Bytes, AttemptError> {
    let refused =
        |_| AttemptError::new(FailureClass::Refused, Sent::No, "the body could not be prepared for the provider");
    if let Some(shape) = &upstream.candidate.provider.shape {
        let usage = usage_request(spoken, upstream);
        let shaped = shape.apply(spoken.body, &upstream.names.model, usage).map_err(refused)?;
        spoken.dropped = shaped.dropped.iter().fold(0, |bits, index| bits | 1 << index);
        return Ok(shaped.body);
    }
    let (body, model, usage) = (spoken.body, &upstream.names.model, usage_request(spoken, upstream));
    // Decoding has already found the model's place, and most requests need nothing else changed.
    let spliced = spoken.facts.model_at.filter(|_| usage == UsageRequest::AsIs);
    match spliced.and_then(|at| json_edit::splice_plain(body, at.start..at.end, model)) {
        Some(body) => Ok(body),
        None => json_edit::rewrite_request(body, model, usage).map_err(refused),
    }
}

/// As [`prepare`], without copying: for a body too long for that of which nothing but the model's name changes.
pub fn splice(spoken: &Spoken<'_>, upstream: &LiveUpstream) -> Option<Box<[Bytes; 3]>> {
    let long = spoken.body.len() >= LONG;
    let plain = upstream.candidate.provider.shape.is_none() && usage_request(spoken, upstream) == UsageRequest::AsIs;
    let at = spoken.facts.model_at.filter(|_| long && plain)?;
    // In one piece its stream holds less for as long as it goes on (see [`crate::upstream::pool::alone`]), which is worth a copy.
    if spoken.facts.stream && at.start > MOST_AHEAD && !spoken.is_large() {
        return None;
    }
    json_edit::splice_pieces(spoken.body, at.start..at.end, &upstream.names.model).map(Box::new)
}

/// As [`prepare`], for a large body: with it, which members were left out.
///
/// # Errors
/// As there.
pub async fn prepare_apart(call: &Call, upstream: &Arc<LiveUpstream>) -> Result<(Bytes, u32), AttemptError> {
    let (call, upstream) = (call.clone(), Arc::clone(upstream));
    let prepared = apart(move || {
        let mut spoken = Spoken::new(&call, &upstream)?;
        let body = prepare(&mut spoken, &upstream)?;
        Ok((body, spoken.dropped))
    });
    let failed =
        || AttemptError::new(FailureClass::Refused, Sent::No, "the body could not be prepared for the provider");
    prepared.await.ok_or_else(failed)?
}

/// The request to the provider: our headers, its credential, nothing of the caller's but the body and what its form needs.
pub fn request(body: impl Into<RequestBody>, spoken: &Spoken<'_>, call: &Call, upstream: &LiveUpstream) -> Outgoing {
    let mut request = Box::new(Request::new(body.into()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = upstream.uri(spoken.operation).cloned().unwrap_or_default();
    *request.headers_mut() = upstream.provider.headers.clone();
    if spoken.facts.stream {
        request.extensions_mut().insert(AsksForStream);
    }
    if spoken.operation.dialect() == Dialect::Anthropic {
        let forwarded = call.context.forwarded.iter().map(|(name, value)| (name.clone(), value.clone()));
        request.headers_mut().extend(forwarded);
    }
    if let Some(begun) = &call.context.trace {
        tell_trace(begun, &mut request, (call, upstream));
    }
    request
}

/// Which model the answer is from, for the attempt's span if there will be one.
#[cold]
fn hear_model(begun: &Begun, said: &[u8], (attempt, upstream): (&Attempt, &LiveUpstream)) {
    let mut story = attempt.call.context.trail.lock();
    let number = story.flying_to(&upstream.names).map(|flying| flying.number);
    drop(story);
    let model = number.filter(|_| begun.context.is_taken(true)).and_then(|number| Some((number, answered_by(said)?)));
    if let Some((number, model)) = model {
        begun.answered.hear(number, model);
    }
}

/// The attempt's span, where the configuration trusts the provider with it.
#[cold]
fn tell_trace(begun: &Begun, request: &mut Request<RequestBody>, (call, upstream): (&Call, &LiveUpstream)) {
    if !begun.plan.forward_to.contains(&upstream.names.provider) {
        return;
    }
    let number = call.context.trail.lock().flying_to(&upstream.names).map(|flying| flying.number);
    request.headers_mut().extend(number.into_iter().flat_map(|number| begun.context.forwarded(number)));
}

fn usage_request(spoken: &Spoken<'_>, upstream: &LiveUpstream) -> UsageRequest {
    let facts = spoken.facts;
    if spoken.form() != Form::Chat {
        return UsageRequest::AsIs;
    }
    match upstream.candidate.provider.stream_usage {
        StreamUsage::OnRequest if facts.stream && !facts.include_usage => UsageRequest::Ask,
        StreamUsage::Always | StreamUsage::Never if facts.has_stream_options => UsageRequest::Remove,
        StreamUsage::OnRequest | StreamUsage::Always | StreamUsage::Never => UsageRequest::AsIs,
    }
}

/// Reads the answer as far as it must be read before it may be shown.
///
/// # Errors
/// [`AttemptError`] for every answer that is not one.
pub async fn read(
    response: Response<UpstreamBody>,
    spoken: &Spoken<'_>,
    attempt: &Attempt,
    upstream: &LiveUpstream,
) -> Result<Reply, AttemptError> {
    let provider = &upstream.candidate.provider;
    let hide = |error| without_secret(recoded(error, &provider.error_codes), &provider.auth);
    if spoken.carried.is_none() && spoken.dropped == 0 {
        return understand(response, spoken, attempt, upstream).await.map_err(hide);
    }
    let reply = understand(response, spoken, attempt, upstream).await.map_err(hide)?;
    attempt.call.context.trail.lock().heard_left_out(&upstream.names, left_out(spoken, provider));
    match spoken.carried {
        Some(carried) => bring_back(reply, carried, &frame(attempt, upstream)),
        None => Ok(reply),
    }
}

/// What the form of chat could not say, and what the provider refuses to hear.
fn left_out(spoken: &Spoken<'_>, provider: &Provider) -> Option<HeaderValue> {
    let told = spoken.carried.and_then(|carried| carried.left_out.as_ref());
    let names = provider.shape.iter().flat_map(|shape| shape.drop.iter().enumerate());
    let dropped = names.filter(|(index, _)| spoken.dropped >> index & 1 == 1).map(|(_, name)| name.as_str());
    let all: Vec<&str> = told.and_then(|told| told.to_str().ok()).into_iter().chain(dropped).collect();
    (!all.is_empty()).then(|| HeaderValue::from_str(&all.join(", ")).ok())?
}

fn frame<'a>(attempt: &'a Attempt, upstream: &'a LiveUpstream) -> Frame<'a> {
    Frame { call: &attempt.call.context.id, model: &upstream.names.model, created: clock::unix_seconds() }
}

/// The chat answer in the form the caller waits for.
fn bring_back(mut reply: Reply, carried: &Carried, frame: &Frame<'_>) -> Result<Reply, AttemptError> {
    if let Some(chat) = reply.body.as_whole() {
        let whole = carried.back.whole(chat, frame).ok_or_else(|| bad_reply("the answer is no chat completion"))?;
        reply.body.fill(whole);
    }
    Ok(reply)
}

async fn understand(
    response: Response<UpstreamBody>,
    spoken: &Spoken<'_>,
    attempt: &Attempt,
    upstream: &LiveUpstream,
) -> Result<Reply, AttemptError> {
    let (head, body) = response.into_parts();
    let mut sifted = sift(&head.headers);
    if sifted.is_stream {
        // It stays for as long as the stream does, and would keep all that the head was read into.
        sifted.their_id = sifted.their_id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok());
    }
    attempt.call.context.trail.lock().heard_id(&upstream.names, sifted.their_id);
    if head.status != StatusCode::OK {
        let patience = attempt.idle.min(ERROR_PATIENCE);
        let body = Box::pin(read_whole(body, ERROR_BYTES, patience)).await.unwrap_or_default();
        return Err(refusal(&head, &body, &upstream.candidate.provider));
    }
    if sifted.is_compressed {
        return Err(bad_reply("the answer is compressed though nobody asked for that"));
    }
    if spoken.form() == Form::Audio {
        let answer = audio::Answer { headers: sifted.passed, body, idle: attempt.idle };
        return Box::pin(audio::understand(spoken.operation, spoken.facts, answer)).await;
    }
    match (spoken.facts.stream, sifted.is_stream) {
        (true, true) => Box::pin(stream(sifted.passed, body, (spoken, attempt, upstream))).await,
        (false, false) => {
            // It will be JSON or no answer, and SDKs make a plain string of what is called otherwise.
            if !sifted.is_json {
                sifted.passed.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            whole(sifted.passed, body, (spoken, attempt, upstream)).await
        }
        (true, false) => {
            // Some aggregators answer a stream request with a plain error object and status 200.
            let body = Box::pin(read_whole(body, ERROR_BYTES, attempt.idle)).await.unwrap_or_default();
            Err(spoken
                .form()
                .whole(&body)
                .and_then(|facts| facts.error)
                .map_or_else(|| bad_reply("a stream was asked for and something else came"), embedded))
        }
        (false, true) => Err(bad_reply("a whole answer was asked for and a stream came")),
    }
}

async fn whole(
    headers: HeaderMap,
    body: UpstreamBody,
    (spoken, attempt, upstream): (&Spoken<'_>, &Attempt, &LiveUpstream),
) -> Result<Reply, AttemptError> {
    let bytes = read_whole(body, ANSWER_BYTES, attempt.idle).await.map_err(ReadError::into_attempt_error)?;
    if bytes.is_empty() {
        return Err(AttemptError::new(FailureClass::NoContent, Sent::Yes, "the answer is empty"));
    }
    let facts = spoken.form().whole(&bytes).ok_or_else(|| bad_reply("the answer is not a JSON object"))?;
    if let Some(error) = facts.error {
        return Err(embedded(error));
    }
    let said = facts.content || facts.cut || facts.finished && wrote_nothing(facts.usage);
    if !said {
        return Err(AttemptError::new(FailureClass::NoContent, Sent::Yes, "the answer has no content"));
    }
    if facts.cut && !facts.content && is_filtered(&bytes) {
        attempt.call.context.trail.lock().heard_filter(&upstream.names);
    }
    if let Some(begun) = &attempt.call.context.trace {
        hear_model(begun, &bytes, (attempt, upstream));
    }
    let usage = UsageSlot::default();
    usage.set(facts.usage.unwrap_or_else(Usage::default));
    let (body, complete) = (ReplyBody::whole(bytes), facts.complete);
    Ok(Reply { status: StatusCode::OK, headers, body, usage, complete, decision: None })
}

async fn stream(
    mut headers: HeaderMap,
    body: UpstreamBody,
    (spoken, attempt, upstream): (&Spoken<'_>, &Attempt, &LiveUpstream),
) -> Result<Reply, AttemptError> {
    let wanted = spoken.facts.include_usage || spoken.facts.keeps_usage;
    let usage_event = if wanted { UsageEvent::Forward } else { UsageEvent::Strip };
    let usage = UsageSlot::default();
    let telling = if spoken.carried.is_some() { Telling::InAnotherForm } else { Telling::AsItCame };
    let reading = Reading { form: spoken.form(), usage_event, telling, idle: attempt.idle };
    let primed = prime(body, usage.clone(), reading).await?;
    if primed.is_filtered() {
        attempt.call.context.trail.lock().heard_filter(&upstream.names);
    }
    if let Some(begun) = &attempt.call.context.trace
        && let Some(said) = primed.first_words()
    {
        hear_model(begun, &said, (attempt, upstream));
    }
    let events: EventStream = match spoken.carried {
        Some(carried) => {
            let teller = carried.back.stream(&frame(attempt, upstream));
            Box::pin(Retold::new(primed, teller))
        }
        None => Box::pin(primed),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    let body = ReplyBody::events(events, attempt.call.operation.dialect());
    Ok(Reply { status: StatusCode::OK, headers, body, usage, complete: false, decision: None })
}

fn refusal(head: &Parts, body: &[u8], provider: &Provider) -> AttemptError {
    let said = parse_error(body);
    let class = provider.errors.get(&head.status.as_u16()).copied();
    let class = class.unwrap_or_else(|| classify(head.status.as_u16(), said.as_ref()));
    AttemptError {
        class,
        sent: Sent::Yes,
        status: Some(head.status.as_u16()),
        retry_after: retry_after::parse(&head.headers),
        cause: None,
        said: said.map(Arc::new),
        detail: "the provider refused",
    }
}

fn bad_reply(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::BadReply, Sent::Yes, detail)
}

fn sift(headers: &HeaderMap) -> Sifted {
    // Room for ours, which are added later.
    let passed = HeaderMap::with_capacity(24);
    let mut sifted = Sifted { passed, their_id: None, is_stream: false, is_json: false, is_compressed: false };
    for (name, value) in headers {
        match name.as_str() {
            "content-type" => {
                sifted.is_stream = begins(value.as_bytes(), b"text/event-stream");
                sifted.is_json = begins(value.as_bytes(), b"application/json");
                sifted.passed.insert(CONTENT_TYPE, value.clone());
            }
            "content-encoding" => sifted.is_compressed |= value != "identity",
            "x-request-id" | "request-id" | "x-generation-id" | "x-litellm-call-id" => {
                sifted.their_id = Some(value.clone()).filter(|id| id.len() <= 256);
            }
            "openai-processing-ms"
            | "openai-version"
            | "openai-organization"
            | "x-ratelimit-limit-requests"
            | "x-ratelimit-limit-tokens"
            | "x-ratelimit-remaining-requests"
            | "x-ratelimit-remaining-tokens"
            | "x-ratelimit-reset-requests"
            | "x-ratelimit-reset-tokens" => drop(sifted.passed.insert(name.clone(), value.clone())),
            name_of if name_of.starts_with("anthropic-ratelimit-") => {
                drop(sifted.passed.insert(name.clone(), value.clone()));
            }
            _ => {}
        }
    }
    sifted
}

/// Without regard to case.
fn begins(media_type: &[u8], start: &[u8]) -> bool {
    media_type.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start))
}
