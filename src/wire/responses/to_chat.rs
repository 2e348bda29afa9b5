//! A request as chat completions take it.
//!
//! Values move as they are written, so numbers keep their spelling and schemas every key. Members that no chat provider
//! knows are left out by name; members that are in neither dialect are the provider's own and stay.

use std::ops::Range;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::echo::Echo;
use super::messages;
use super::tools::Tools;
use crate::wire::object::{Object, text};

/// What becomes of tools that are not functions. Providers that speak Responses run them; in a chat they have no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostedTools {
    /// The request is refused.
    Refuse,
    /// They are left out and named. Codex offers a web search and a namespace of agents by default, and works without.
    LeaveOut,
}

/// Whether another provider could do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// One that speaks Responses itself could.
    NeedsNative,
    /// No provider could.
    Malformed,
}

/// Why a request is refused with 400. Says nothing of the body's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What is wrong and what to send instead.
    pub message: &'static str,
    /// The field it is about, such as `input[2].content[0].type`; empty if it is about the whole body.
    pub param: String,
    /// Whose fault it is.
    pub kind: RefusalKind,
}

impl Refusal {
    pub(super) fn malformed(message: &'static str, param: impl Into<String>) -> Self {
        Self { message, param: param.into(), kind: RefusalKind::Malformed }
    }

    pub(super) fn needs_native(message: &'static str, param: impl Into<String>) -> Self {
        Self { message, param: param.into(), kind: RefusalKind::NeedsNative }
    }
}

/// A request in the other dialect.
#[derive(Clone, Debug)]
pub struct Translated {
    /// The chat completions request. Streams always ask for the token counts.
    pub body: Bytes,
    /// Where in `body` the model's name stands, for [`crate::wire::json_edit::splice_plain`]; `None` if it has escapes.
    pub model_at: Option<Range<usize>>,
    /// What the response repeats.
    pub echo: Echo,
    /// What chat completions cannot carry, each once, in words from a closed set such as `input.reasoning`.
    pub left_out: Vec<&'static str>,
}

/// Members that are read and written under another name or in another shape.
const READ: &[&str] = &[
    "model",
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_output_tokens",
    "text",
    "reasoning",
    "stream",
    "stream_options",
    "store",
    "background",
];

/// Members that refer to what only the provider that keeps it has.
const KEPT_ELSEWHERE: &[(&str, &str)] = &[
    ("previous_response_id", "responses are not kept here, send the whole conversation as input instead"),
    ("conversation", "conversations are not kept here, send the whole conversation as input instead"),
    ("prompt", "prompts are not kept here, send the text as instructions and input instead"),
];

/// Members that have no counterpart, and values that mean their absence.
const LEFT_OUT: &[(&str, &[&str])] = &[
    ("include", &["[]"]),
    ("truncation", &["\"disabled\""]),
    ("max_tool_calls", &[]),
    ("context_management", &["[]"]),
    ("moderation", &[]),
    ("image", &[]),
    ("access_programs", &[]),
    ("background_options", &[]),
    ("top_logprobs", &["0"]),
    // The next three are hints, and providers that check members refuse the request over them.
    ("prompt_cache_key", &[]),
    ("prompt_cache_options", &[]),
    ("prompt_cache_retention", &[]),
    // Says which installation is asking (Codex).
    ("client_metadata", &[]),
];

/// Members of chat completions only. Passed on, they would contradict what is written for others.
const OF_CHAT: &[&str] = &[
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "response_format",
    "reasoning_effort",
    "verbosity",
    "functions",
    "function_call",
    "n",
    "logprobs",
    "modalities",
    "audio",
];

/// Writes the chat completions request that asks for the same.
///
/// The limit is written as `max_tokens`, which every chat provider knows: one that does not know
/// `max_completion_tokens` and ignores it would go on without any.
///
/// # Errors
///
/// [`Refusal`] for what a chat cannot carry: anything the provider would have to have kept, work in the background, tools
/// that are not functions if so told, files that are not inline, and items of other kinds.
pub fn to_chat(body: &[u8], hosted: HostedTools) -> Result<Translated, Refusal> {
    let request = Object::read(body)
        .map_err(|_| Refusal::malformed("the body must be a JSON object of at most 64 levels", ""))?;
    let mut left_out = Vec::new();
    check(&request, &mut left_out)?;
    let model = request.get("model").filter(|model| text(model).is_some_and(|model| !model.is_empty()));
    let model = model.ok_or_else(|| Refusal::malformed("model must be a string that is not empty", "model"))?;
    let tools = Tools::read(&request, hosted, &mut left_out)?;
    let mut members = Members(String::with_capacity(body.len()));
    members.put("model", model);
    let model_at = members.inside_last_string(model.get());
    members.put("messages", &messages::read(&request, &mut left_out)?);
    if !tools.functions.is_empty() {
        members.put("tools", &tools.functions);
        members.put_some("parallel_tool_calls", request.get("parallel_tool_calls"));
    }
    members.put_some("tool_choice", tools.choice.as_ref());
    members.put_some("max_tokens", request.get("max_output_tokens"));
    text_config(&request, &mut members)?;
    reasoning(&request, &mut members, &mut left_out)?;
    for key in request.keys().filter(|key| is_carried(key)) {
        members.put_some(key, request.get(key));
    }
    if flag(&request, "stream")? {
        members.put("stream", &true);
        members.put("stream_options", &StreamOptions { include_usage: true });
    }
    left_out.sort_unstable();
    left_out.dedup();
    Ok(Translated { body: members.close(), model_at, echo: Echo::of(&request), left_out })
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// Refuses and notes what does not depend on a member's inside.
fn check(request: &Object<'_>, left_out: &mut Vec<&'static str>) -> Result<(), Refusal> {
    if !request.repeated().is_empty() {
        return Err(Refusal::malformed("a top-level key appears twice, send it once", ""));
    }
    if let Some((key, message)) = KEPT_ELSEWHERE.iter().find(|(key, _)| request.get(key).is_some()) {
        return Err(Refusal::needs_native(message, *key));
    }
    if flag(request, "background")? {
        let message = "this model's provider cannot answer in the background, wait for the answer or stream it";
        return Err(Refusal::needs_native(message, "background"));
    }
    if let Some(key) = OF_CHAT.iter().find(|key| request.get(key).is_some()) {
        return Err(Refusal::malformed(
            "this field is one of chat completions, see the Responses API for its name",
            *key,
        ));
    }
    let told = LEFT_OUT.iter().filter(|(key, idle)| request.get(key).is_some_and(|value| !idle.contains(&value.get())));
    left_out.extend(told.map(|(key, _)| *key));
    Ok(())
}

fn is_carried(key: &str) -> bool {
    !READ.contains(&key)
        && !LEFT_OUT.iter().any(|(other, _)| *other == key)
        && !KEPT_ELSEWHERE.iter().any(|(other, _)| *other == key)
        && !OF_CHAT.contains(&key)
}

#[derive(Serialize)]
struct ResponseFormat<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    json_schema: Option<JsonSchema<'a>>,
}

#[derive(Serialize)]
struct JsonSchema<'a> {
    name: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<&'a RawValue>,
}

fn text_config(request: &Object<'_>, members: &mut Members) -> Result<(), Refusal> {
    let Some(config) = object(request, "text")? else { return Ok(()) };
    members.put_some("verbosity", config.get("verbosity"));
    let Some(format) = config.get("format") else { return Ok(()) };
    let wrong = || Refusal::malformed("format must be text, json_object or json_schema", "text.format.type");
    let format = Object::of(format).map_err(|_| wrong())?;
    match format.get("type").and_then(text).as_deref() {
        Some("text") => {}
        Some("json_object") => {
            members.put("response_format", &ResponseFormat { kind: "json_object", json_schema: None });
        }
        Some("json_schema") => {
            let [name, description, schema, strict] =
                ["name", "description", "schema", "strict"].map(|key| format.get(key));
            let json_schema = Some(JsonSchema { name, description, schema, strict });
            members.put("response_format", &ResponseFormat { kind: "json_schema", json_schema });
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

fn reasoning(request: &Object<'_>, members: &mut Members, left_out: &mut Vec<&'static str>) -> Result<(), Refusal> {
    let Some(config) = object(request, "reasoning")? else { return Ok(()) };
    members.put_some("reasoning_effort", config.get("effort"));
    // Whether and how a chat tells its reasoning is up to the provider.
    if config.get("summary").is_some() || config.get("generate_summary").is_some() {
        left_out.push("reasoning.summary");
    }
    Ok(())
}

fn object<'a>(request: &Object<'a>, key: &'static str) -> Result<Option<Object<'a>>, Refusal> {
    let read = |value| Object::of(value).map_err(|_| Refusal::malformed("an object is expected here", key));
    request.get(key).map(read).transpose()
}

fn flag(request: &Object<'_>, key: &'static str) -> Result<bool, Refusal> {
    match request.get(key).map(RawValue::get) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Refusal::malformed("true or false is expected here", key)),
    }
}

/// The elements of a list; none if the key is absent.
pub(super) fn list<'a>(object: &Object<'a>, key: &'static str) -> Result<Vec<&'a RawValue>, Refusal> {
    let Some(value) = object.get(key) else { return Ok(Vec::new()) };
    list_of(value).ok_or_else(|| Refusal::malformed("a list is expected here", key))
}

/// The elements of a list; `None` if it is none.
pub(super) fn list_of(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}

/// The text of one member of an object.
pub(super) fn named(value: &RawValue, key: &str) -> Option<String> {
    Object::of(value).ok()?.get(key).and_then(text)
}

/// A JSON object being written.
struct Members(String);

impl Members {
    fn put(&mut self, key: &str, value: &(impl Serialize + ?Sized)) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        // Strings and JSON that was read before always serialise.
        self.0.push_str(&serde_json::to_string(key).unwrap_or_default());
        self.0.push(':');
        self.0.push_str(&serde_json::to_string(value).unwrap_or_default());
    }

    fn put_some(&mut self, key: &str, value: Option<&(impl Serialize + ?Sized)>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    /// Where the inside of the string last written stands; `None` if it has escapes.
    fn inside_last_string(&self, written: &str) -> Option<Range<usize>> {
        let end = self.0.len().checked_sub(1)?;
        let start = self.0.len().checked_sub(written.len())? + 1;
        (!written.contains('\\')).then_some(start..end)
    }

    fn close(mut self) -> Bytes {
        self.0.push('}');
        self.0.into()
    }
}
