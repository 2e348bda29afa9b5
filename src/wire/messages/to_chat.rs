//! A request for a message as a request for a chat completion.
//!
//! What the model is told goes over whole: texts, numbers and schemas keep their spelling. What only steers cost, speed or
//! effort is left out and named in [`Translated::dropped`]. What would change the answer if it were left out is refused.
//! Fields this form does not know travel untouched, as everywhere, unless chat gives them a meaning.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::json::{Writer, inside};
use super::{tools, turns};
use crate::wire::object::{Object, text};

/// A request a provider of chat completions understands.
#[derive(Clone, PartialEq, Eq)]
pub struct Translated {
    /// The chat request. It asks for token counts if it asks for a stream.
    pub body: Bytes,
    /// Where in it the model's name stands; `None` if that is spelled with escapes.
    pub model_at: Option<Range<usize>>,
    /// The fields that have no counterpart and were left out.
    pub dropped: Vec<&'static str>,
}

impl std::fmt::Debug for Translated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Translated")
            .field("bytes", &self.body.len())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

/// Why a request cannot be made a chat request, to be answered with 400. Repeats nothing of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Where it is, what is wrong and what to send instead.
    pub message: String,
    /// The top-level field it is about.
    pub param: &'static str,
}

impl Refusal {
    /// `place` is the way to it, such as `messages.0.content.2`; its first step is the field.
    pub(super) fn at(param: &'static str, place: &str, message: &str) -> Self {
        Self { message: format!("{place}: {message}"), param }
    }

    pub(super) fn of(param: &'static str, message: &str) -> Self {
        Self::at(param, param, message)
    }
}

/// What a thing must be that only the vendor's own servers have.
pub(super) const NATIVE_ONLY: &str =
    "needs a provider that speaks the messages form itself, and the candidates of this route do not; leave it out";

/// Fields both forms have, under one name and with one meaning.
const SAME: [&str; 4] = ["max_tokens", "temperature", "top_p", "stream"];

/// Fields that steer cost, speed or effort, or that chat has nothing for.
const LEFT_OUT: [&str; 11] = [
    "top_k",
    "thinking",
    "service_tier",
    "cache_control",
    "inference_geo",
    "speed",
    "diagnostics",
    "context_management",
    "user_profile_id",
    "workspace_id",
    "betas",
];

/// Fields without which the answer would be another.
const NEEDED: [&str; 2] = ["container", "mcp_servers"];

/// Fields with a meaning in chat only, some of which are written here.
const CHATS_OWN: [&str; 11] = [
    "n",
    "stop",
    "user",
    "stream_options",
    "parallel_tool_calls",
    "response_format",
    "functions",
    "function_call",
    "max_completion_tokens",
    "modalities",
    "audio",
];

/// Fields read one by one below.
const READ: [&str; 8] =
    ["model", "messages", "system", "tools", "tool_choice", "stop_sequences", "metadata", "output_config"];

/// Characters of `metadata.user_id` a chat provider takes. Coding assistants send some 150, and providers refuse more
/// than 128 (<https://github.com/looplj/axonhub/issues/1669>, May 2026); a part of an id would be another's.
const MAX_USER: usize = 64;

/// Makes a chat request of a body that [`super::peek_request`] accepted.
///
/// # Errors
///
/// When a field has a wrong type, or asks for what only providers of this form can do.
pub fn to_chat(body: &[u8]) -> Result<Translated, Refusal> {
    let whole = |error| Refusal { message: format!("the body {error}"), param: "messages" };
    let body = Object::read(body).map_err(whole)?;
    let model = body.get("model").ok_or_else(|| Refusal::of("model", "is missing, name the model to use"))?;
    let name = inside(model).ok_or_else(|| Refusal::of("model", "must be a string"))?;
    let mut chat = Writer::default();
    let mut dropped = left_out(&body)?;
    chat.open('{');
    chat.key("model");
    let start = chat.len() + 1;
    chat.raw(model.get());
    let model_at = (!name.contains('\\')).then(|| start..start + name.len());
    turns::write(&body, &mut chat)?;
    tools::write(&body, &mut chat)?;
    for name in SAME {
        if let Some(value) = body.get(name) {
            chat.member(name, value.get());
        }
    }
    if body.get("stream").is_some_and(|stream| stream.get() == "true") {
        chat.member("stream_options", r#"{"include_usage":true}"#);
    }
    stop(&body, &mut chat)?;
    dropped.extend(user(&body, &mut chat)?);
    dropped.extend(output(&body, &mut chat)?);
    for (name, value) in body.iter().filter(|(name, _)| !is_known(name)) {
        chat.member(name, value.get());
    }
    chat.close('}');
    Ok(Translated { body: chat.finish().into(), model_at, dropped })
}

fn is_known(name: &str) -> bool {
    let known: [&[&str]; 5] = [&READ, &SAME, &LEFT_OUT, &NEEDED, &CHATS_OWN];
    known.iter().any(|names| names.contains(&name))
}

/// What of the body is left out, once nothing in it must be refused.
fn left_out(body: &Object<'_>) -> Result<Vec<&'static str>, Refusal> {
    if !body.repeated().is_empty() {
        return Err(Refusal { message: "a top-level key appears twice, send it once".to_owned(), param: "messages" });
    }
    if let Some(needed) = NEEDED.into_iter().find(|name| body.get(name).is_some()) {
        return Err(Refusal::of(needed, NATIVE_ONLY));
    }
    if let Some(foreign) = CHATS_OWN.into_iter().find(|name| body.get(name).is_some()) {
        return Err(Refusal::of(foreign, "is no field of the messages form, leave it out"));
    }
    Ok(LEFT_OUT.into_iter().filter(|name| body.get(name).is_some()).collect())
}

fn stop(body: &Object<'_>, chat: &mut Writer) -> Result<(), Refusal> {
    let Some(value) = body.get("stop_sequences") else { return Ok(()) };
    let texts: Vec<&RawValue> = list(value).unwrap_or_default();
    let is_list = value.get().starts_with('[');
    if !is_list || texts.iter().any(|text| inside(text).is_none()) {
        return Err(Refusal::of("stop_sequences", "must be a list of strings"));
    }
    if !texts.is_empty() {
        chat.member("stop", value.get());
    }
    Ok(())
}

fn user(body: &Object<'_>, chat: &mut Writer) -> Result<Option<&'static str>, Refusal> {
    let Some(metadata) = body.get("metadata") else { return Ok(None) };
    let metadata = Object::of(metadata).map_err(|_| Refusal::of("metadata", "must be an object"))?;
    let Some(user) = metadata.get("user_id") else { return Ok(None) };
    let id = inside(user).ok_or_else(|| Refusal::at("metadata", "metadata.user_id", "must be a string"))?;
    if id.len() > MAX_USER {
        return Ok(Some("metadata.user_id"));
    }
    chat.member("user", user.get());
    Ok(None)
}

/// The form the answer must have, which chat knows by another name, and the effort, which many of its models refuse.
fn output(body: &Object<'_>, chat: &mut Writer) -> Result<Option<&'static str>, Refusal> {
    const PARAM: &str = "output_config";
    let Some(output) = body.get(PARAM) else { return Ok(None) };
    let output = Object::of(output).map_err(|_| Refusal::of(PARAM, "must be an object"))?;
    if let Some(format) = output.get("format") {
        let format = Object::of(format).unwrap_or_default();
        let schema = format.get("schema").filter(|_| is_kind(&format, "json_schema"));
        let schema = schema.ok_or_else(|| {
            Refusal::at(PARAM, "output_config.format", "must be an object of the type json_schema with a schema")
        })?;
        chat.key("response_format");
        chat.open('{');
        chat.word("type", "json_schema");
        chat.key("json_schema");
        chat.open('{');
        chat.word("name", "answer");
        chat.member("schema", schema.get());
        chat.member("strict", "true");
        chat.close('}');
        chat.close('}');
    }
    Ok(output.get("effort").map(|_| "output_config.effort"))
}

/// The elements of a list, if all of them are what is wanted.
pub(super) fn list<'a, T: serde::Deserialize<'a>>(value: &'a RawValue) -> Option<Vec<T>> {
    serde_json::from_str(value.get()).ok()
}

pub(super) fn is_kind(object: &Object<'_>, kind: &str) -> bool {
    kind_of(object).as_deref() == Some(kind)
}

pub(super) fn kind_of(object: &Object<'_>) -> Option<String> {
    object.get("type").and_then(text)
}
