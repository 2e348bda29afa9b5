//! Messages and the events of their streams as clients of this form read them. Only shapes: what goes into them is
//! decided elsewhere.

use serde::Serialize;
use serde_json::value::RawValue;

use super::chat::Counts;
use super::json::written;
use crate::wire::sse::Event;

#[derive(Serialize)]
pub(super) struct Message<'a> {
    pub(super) id: &'a str,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) role: &'static str,
    pub(super) model: &'a str,
    pub(super) content: &'a [Block<'a>],
    pub(super) stop_reason: Option<StopReason>,
    /// Chat does not say which of them it was, so it is always null.
    pub(super) stop_sequence: Option<&'a str>,
    pub(super) usage: Usage,
}

impl<'a> Message<'a> {
    pub(super) fn new(id: &'a str, model: &'a str, content: &'a [Block<'a>]) -> Self {
        let usage = Usage::default();
        Self { id, kind: "message", role: "assistant", model, content, stop_reason: None, stop_sequence: None, usage }
    }
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub(super) enum StopReason {
    EndTurn,
    MaxTokens,
    ToolUse,
    Refusal,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block<'a> {
    Text {
        text: &'a str,
    },
    Thinking {
        thinking: &'a str,
        /// Required, and nothing we could sign with would be worth anything.
        signature: &'static str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: Input<'a>,
    },
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Input<'a> {
    /// An empty object, to which pieces will be added.
    Awaited {},
    /// An object as it was spelt.
    Whole(&'a RawValue),
}

/// What was read from the cache is not in the input, other than in chat.
#[derive(Serialize, Default, Clone, Copy)]
pub(super) struct Usage {
    #[serde(rename = "input_tokens")]
    input: u64,
    #[serde(rename = "cache_creation_input_tokens")]
    cache_creation: u64,
    #[serde(rename = "cache_read_input_tokens")]
    cache_read: u64,
    #[serde(rename = "output_tokens")]
    output: u64,
}

impl From<Counts> for Usage {
    fn from(counts: Counts) -> Self {
        Self {
            input: counts.prompt.saturating_sub(counts.cached),
            cache_creation: 0,
            cache_read: counts.cached,
            output: counts.completion,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum StreamEvent<'a> {
    MessageStart { message: Message<'a> },
    ContentBlockStart { index: usize, content_block: Block<'a> },
    ContentBlockDelta { index: usize, delta: Delta<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: Ending, usage: Usage },
    MessageStop,
}

#[derive(Serialize)]
#[serde(tag = "type")]
pub(super) enum Delta<'a> {
    #[serde(rename = "text_delta")]
    Text { text: &'a str },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: &'a str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: &'a str },
}

#[derive(Serialize)]
pub(super) struct Ending {
    pub(super) stop_reason: StopReason,
    pub(super) stop_sequence: Option<&'static str>,
}

impl StreamEvent<'_> {
    pub(super) fn event(&self) -> Event {
        let kind = match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        };
        Event::named(kind, &written(self))
    }
}

/// The identity of a tool call whose provider gave it none.
pub(super) fn call_id<'a>(given: &'a str, message: &str, number: usize) -> std::borrow::Cow<'a, str> {
    if given.is_empty() { format!("toolu_{message}_{number}").into() } else { given.into() }
}
