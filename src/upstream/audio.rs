//! What an answer of the audio operations means: sound, events, or a transcript in one of its formats.
//!
//! The answer's own `content-type` decides how it is read, not what was asked for: some models ignore `stream`, and the
//! field that asks for events may lie in a part of the form nobody has seen yet. Sound is shown from its first byte on,
//! and after that there is no way back: what cannot be completed ends in the middle of its framing, never like a whole
//! answer. Nothing here listens to sound.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::domain::operation::{Dialect, Operation};
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::usage::Usage;
use crate::flight::error::AttemptError;
use crate::flight::facts::LlmFacts;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::upstream::exchange::{ReadError, read_whole};
use crate::upstream::form::Form;
use crate::upstream::meaning::embedded;
use crate::upstream::patience::within;
use crate::upstream::pool::UpstreamBody;
use crate::upstream::stream::{Reading, Telling, UsageEvent, prime};
use crate::wire::openai::{parse_error, peek_transcript};

/// Largest whole transcript.
const TRANSCRIPT_BYTES: usize = 32 * 1024 * 1024;
/// Largest text read where sound was expected: an error at best.
const TEXT_BYTES: usize = 64 * 1024;

/// A 200 whose body was not looked at.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: UpstreamBody,
    pub(super) idle: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Media {
    Events,
    Sound,
    /// JSON, text, or nothing that would say.
    Text,
    /// A page: whatever answers with one is not the provider's interface.
    Page,
}

/// Reads the answer as far as it must be read before it may be shown.
///
/// # Errors
/// [`AttemptError`] for every answer that is not one.
pub(super) async fn understand(operation: Operation, facts: LlmFacts, answer: Answer) -> Result<Reply, AttemptError> {
    let media = media(answer.headers.get(CONTENT_TYPE));
    match (operation, media) {
        (_, Media::Events) => events(answer).await,
        (Operation::Speech, Media::Sound) => sound(answer).await,
        (Operation::Speech, Media::Text | Media::Page) => Err(no_sound(answer).await),
        (_, Media::Text) => transcript(facts, answer).await,
        (_, Media::Sound | Media::Page) => Err(bad_reply("a transcript was asked for and something else came")),
    }
}

fn media(content_type: Option<&HeaderValue>) -> Media {
    const SOUND: [&str; 5] = ["audio/", "video/", "application/octet-stream", "binary/octet-stream", "application/ogg"];
    let text = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    if text.starts_with("text/event-stream") {
        Media::Events
    } else if text.starts_with("text/html") {
        Media::Page
    } else if SOUND.iter().any(|start| text.starts_with(start)) {
        Media::Sound
    } else {
        Media::Text
    }
}

async fn events(answer: Answer) -> Result<Reply, AttemptError> {
    let usage = UsageSlot::default();
    let (usage_event, telling) = (UsageEvent::Forward, Telling::AsItCame);
    let reading = Reading { form: Form::Audio, usage_event, telling, idle: answer.idle };
    let primed = prime(answer.body, usage.clone(), reading).await?;
    let mut headers = answer.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(reply(headers, ReplyBody::events(Box::pin(primed), Dialect::Audio), usage))
}

/// Waits for the first byte.
async fn sound(answer: Answer) -> Result<Reply, AttemptError> {
    let Answer { headers, mut body, idle } = answer;
    let length = body.size_hint().exact();
    loop {
        let frame = within(idle, body.frame()).await.map_err(|_| no_content("the sound did not begin"))?;
        let Some(frame) = frame else { return Err(no_content("the answer is empty")) };
        let frame = frame.map_err(|_| no_content("the answer broke off before its first byte"))?;
        if let Some(first) = frame.into_data().ok().filter(|first| !first.is_empty()) {
            let body = ReplyBody::bytes(Box::pin(rest_of(first, body, idle)), length);
            return Ok(reply(headers, body, UsageSlot::default()));
        }
    }
}

fn rest_of(first: Bytes, body: UpstreamBody, idle: Duration) -> impl Stream<Item = Result<Bytes, FailureClass>> + Send {
    stream::unfold((Some(first), Some(body)), move |(first, body)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (None, body)));
        }
        let mut body = body?;
        loop {
            let failure = match within(idle, body.frame()).await {
                Err(_) => FailureClass::NoContent,
                Ok(Some(Err(_))) => FailureClass::StreamCut,
                Ok(None) => return None,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Some((Ok(bytes), (None, Some(body)))),
                    _ => continue,
                },
            };
            return Some((Err(failure), (None, None)));
        }
    })
}

async fn no_sound(answer: Answer) -> AttemptError {
    let text = read_whole(answer.body, TEXT_BYTES, answer.idle).await.unwrap_or_default();
    if text.is_empty() {
        return no_content("the answer is empty");
    }
    let said = peek_transcript(&text).and_then(|facts| facts.error).or_else(|| parse_error(&text));
    said.map_or_else(|| bad_reply("sound was asked for and something else came"), embedded)
}

async fn transcript(facts: LlmFacts, answer: Answer) -> Result<Reply, AttemptError> {
    let read = read_whole(answer.body, TRANSCRIPT_BYTES, answer.idle).await;
    let bytes = read.map_err(ReadError::into_attempt_error)?;
    if bytes.is_empty() {
        return Err(no_content("the answer is empty"));
    }
    let usage = UsageSlot::default();
    match peek_transcript(&bytes) {
        Some(told) => {
            if let Some(error) = told.error {
                return Err(embedded(error));
            }
            if !told.text {
                return Err(no_content("the answer has no text"));
            }
            usage.set(told.usage.unwrap_or_else(Usage::default));
        }
        // Subtitles and bare text may say anything.
        None if facts.plain => {}
        None => return Err(bad_reply("the answer is not a JSON object")),
    }
    Ok(Reply { complete: true, ..reply(answer.headers, ReplyBody::whole(bytes), usage) })
}

fn reply(headers: HeaderMap, body: ReplyBody, usage: UsageSlot) -> Reply {
    Reply { status: StatusCode::OK, headers, body, usage, complete: false, decision: None }
}

fn no_content(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::NoContent, Sent::Yes, detail)
}

fn bad_reply(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::BadReply, Sent::Yes, detail)
}
