//! A response as the caller reads it: what was asked, repeated, and around it what came of it.

use std::fmt;

use serde::Serialize;
use serde_json::value::RawValue;

use super::chat::Tokens;
use super::output::{Item, ItemKind, Output, Part, PartKind, State};
use crate::wire::object::{Object, text};

/// What of a request its response repeats, without white space. Holds the caller's instructions, so debug output is empty.
#[derive(Clone, Serialize)]
pub struct Echo {
    #[serde(skip)]
    model: String,
    instructions: Option<Box<RawValue>>,
    max_output_tokens: Option<Box<RawValue>>,
    max_tool_calls: Option<Box<RawValue>>,
    metadata: Box<RawValue>,
    parallel_tool_calls: Box<RawValue>,
    prompt_cache_key: Option<Box<RawValue>>,
    reasoning: Box<RawValue>,
    safety_identifier: Option<Box<RawValue>>,
    service_tier: Option<Box<RawValue>>,
    temperature: Option<Box<RawValue>>,
    text: Box<RawValue>,
    tool_choice: Box<RawValue>,
    tools: Box<RawValue>,
    top_p: Option<Box<RawValue>>,
    user: Option<Box<RawValue>>,
}

impl fmt::Debug for Echo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Echo").finish_non_exhaustive()
    }
}

impl Echo {
    pub(super) fn of(request: &Object<'_>) -> Self {
        let said = |key: &str| request.get(key).and_then(|value| raw(compact(value.get())));
        let or = |key: &str, default: &str| said(key).or_else(|| raw(default.to_owned())).unwrap_or_default();
        Self {
            model: request.get("model").and_then(text).unwrap_or_default(),
            instructions: said("instructions"),
            max_output_tokens: said("max_output_tokens"),
            max_tool_calls: said("max_tool_calls"),
            metadata: or("metadata", "{}"),
            parallel_tool_calls: or("parallel_tool_calls", "true"),
            prompt_cache_key: said("prompt_cache_key"),
            reasoning: or("reasoning", r#"{"effort":null,"summary":null}"#),
            safety_identifier: said("safety_identifier"),
            service_tier: said("service_tier"),
            temperature: said("temperature"),
            text: raw(text_config(request)).unwrap_or_default(),
            tool_choice: or("tool_choice", r#""auto""#),
            tools: or("tools", "[]"),
            top_p: said("top_p"),
            user: said("user"),
        }
    }

    /// The model as asked for.
    pub(super) fn model(&self) -> &str {
        &self.model
    }
}

fn raw(json: String) -> Option<Box<RawValue>> {
    RawValue::from_string(json).ok()
}

/// What was asked about the text. Readers expect a format in it, which callers may leave out.
fn text_config(request: &Object<'_>) -> String {
    let asked = request.get("text").and_then(|config| Object::of(config).ok());
    let member = |key: &str| asked.as_ref().and_then(|asked| asked.get(key)).map(|value| compact(value.get()));
    let format = member("format").unwrap_or_else(|| r#"{"type":"text"}"#.to_owned());
    match member("verbosity") {
        Some(verbosity) => format!(r#"{{"format":{format},"verbosity":{verbosity}}}"#),
        None => format!(r#"{{"format":{format}}}"#),
    }
}

/// The same JSON without the white space between its tokens, so that it fits on one line of an event.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |letter: &char| {
        if in_string {
            let ends = *letter == '"' && !escaped;
            escaped = *letter == '\\' && !escaped;
            in_string = !ends;
            return true;
        }
        in_string = *letter == '"';
        !matches!(letter, ' ' | '\t' | '\r' | '\n')
    };
    json.chars().filter(keep).collect()
}

/// How a response stands.
#[derive(Clone, Copy)]
pub(super) enum Status<'a> {
    InProgress,
    Completed,
    Incomplete(&'static str),
    Failed { code: &'a str, kind: &'a str, message: &'a str },
}

/// What is constant over a response's life.
pub(super) struct Identity<'a> {
    pub(super) id: &'a str,
    pub(super) created_at: u64,
    pub(super) model: &'a str,
    pub(super) echo: &'a Echo,
}

/// The response object. Members we cannot know are null, as the official one has them.
#[derive(Serialize)]
pub(super) struct ResponseView<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    completed_at: Option<u64>,
    error: Option<Failure<'a>>,
    incomplete_details: Option<Incomplete>,
    model: &'a str,
    output: Vec<ItemView<'a>>,
    previous_response_id: Option<&'a str>,
    store: bool,
    truncation: &'static str,
    usage: Option<UsageView>,
    #[serde(flatten)]
    echo: &'a Echo,
}

#[derive(Serialize)]
struct Failure<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

#[derive(Serialize)]
struct Incomplete {
    reason: &'static str,
}

impl<'a> ResponseView<'a> {
    /// While a response is in progress its items come as events of their own.
    pub(super) fn new(whose: &Identity<'a>, status: Status<'a>, output: &'a Output, tokens: Option<&Tokens>) -> Self {
        let (word, error, incomplete_details) = match status {
            Status::InProgress => ("in_progress", None, None),
            Status::Completed => ("completed", None, None),
            Status::Incomplete(reason) => ("incomplete", None, Some(Incomplete { reason })),
            Status::Failed { code, kind, message } => ("failed", Some(Failure { code, message, kind }), None),
        };
        let items: &[Item] = if matches!(status, Status::InProgress) { &[] } else { &output.items };
        Self {
            id: whose.id,
            object: "response",
            created_at: whose.created_at,
            status: word,
            background: false,
            completed_at: None,
            error,
            incomplete_details,
            model: whose.model,
            output: items.iter().map(ItemView::so_far).collect(),
            previous_response_id: None,
            store: false,
            truncation: "disabled",
            usage: tokens.and_then(UsageView::of),
            echo: whose.echo,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ItemView<'a> {
    Message { id: &'a str, status: &'static str, role: &'static str, content: Vec<PartView<'a>> },
    FunctionCall { id: &'a str, status: &'static str, call_id: &'a str, name: &'a str, arguments: &'a str },
    Reasoning { id: &'a str, summary: Vec<PartView<'a>> },
}

impl<'a> ItemView<'a> {
    /// As it was when it was announced.
    pub(super) fn empty(item: &'a Item) -> Self {
        Self::with(item, &[], "in_progress")
    }

    /// With all it has.
    pub(super) fn so_far(item: &'a Item) -> Self {
        let status = match item.state {
            State::Completed => "completed",
            State::Open | State::Cut => "incomplete",
        };
        Self::with(item, &item.parts, status)
    }

    fn with(item: &'a Item, parts: &'a [Part], status: &'static str) -> Self {
        let id = item.id.as_str();
        let views = || parts.iter().map(PartView::whole).collect();
        match item.kind {
            ItemKind::Message => Self::Message { id, status, role: "assistant", content: views() },
            ItemKind::Reasoning => Self::Reasoning { id, summary: views() },
            ItemKind::Call => {
                let arguments = parts.first().map_or("", |part| part.text.as_str());
                Self::FunctionCall { id, status, call_id: &item.call_id, name: &item.name, arguments }
            }
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum PartView<'a> {
    OutputText { annotations: [(); 0], logprobs: [(); 0], text: &'a str },
    Refusal { refusal: &'a str },
    SummaryText { text: &'a str },
}

impl<'a> PartView<'a> {
    pub(super) fn whole(part: &'a Part) -> Self {
        Self::with(part.kind, &part.text)
    }

    pub(super) fn with(kind: PartKind, text: &'a str) -> Self {
        match kind {
            PartKind::Refusal => Self::Refusal { refusal: text },
            PartKind::Summary => Self::SummaryText { text },
            PartKind::Text | PartKind::Arguments => Self::OutputText { annotations: [], logprobs: [], text },
        }
    }
}

#[derive(Serialize)]
struct UsageView {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cache_write_tokens: u64,
    cached_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl UsageView {
    /// Nothing unless both counts are known: a missing one is not zero.
    fn of(tokens: &Tokens) -> Option<Self> {
        let (input_tokens, output_tokens) = (tokens.input?, tokens.output?);
        Some(Self {
            input_tokens,
            input_tokens_details: InputDetails {
                cache_write_tokens: tokens.cache_written,
                cached_tokens: tokens.cached,
            },
            output_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: tokens.reasoning },
            total_tokens: tokens.total.unwrap_or(input_tokens.saturating_add(output_tokens)),
        })
    }
}
