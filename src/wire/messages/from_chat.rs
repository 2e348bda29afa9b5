//! A whole chat completion as a message.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::chat::{Call, Completion, stop_reason};
use super::form::{Block, Input, Message, StopReason, call_id};
use super::json::written;

/// Makes a message of a chat completion. `model` is the name the caller is to see, `id` the message's own, which starts
/// with `msg_`.
///
/// `None` if it is no chat completion with a choice, or if it calls a tool with something that is no JSON object although
/// it was not cut. A call that was cut is left out: run with half its arguments it would do something else.
pub fn from_chat(reply: &[u8], model: &str, id: &str) -> Option<Bytes> {
    let completion = Completion::read(reply)?;
    let choice = completion.choice?;
    let said = choice.said;
    let refused = !said.refusal.is_empty();
    let stop = stop_reason(choice.finish_reason.as_deref(), refused, !said.calls.is_empty());
    let ids: Vec<_> = said.calls.iter().enumerate().map(|(number, call)| call_id(&call.id, id, number)).collect();
    let mut content = Vec::new();
    if !said.thinking.is_empty() {
        content.push(Block::Thinking { thinking: &said.thinking, signature: "" });
    }
    content.extend(
        [&said.text, &said.refusal].into_iter().filter(|text| !text.is_empty()).map(|text| Block::Text { text }),
    );
    for (call, id) in said.calls.iter().zip(&ids) {
        match input(call) {
            Some(input) => content.push(Block::ToolUse { id, name: &call.function.name, input: Input::Whole(input) }),
            None if stop == StopReason::MaxTokens => {}
            None => return None,
        }
    }
    let message = Message {
        stop_reason: Some(stop),
        usage: completion.usage.unwrap_or_default().into(),
        ..Message::new(id, model, &content)
    };
    Some(written(&message).into())
}

/// The arguments as they were spelt; a tool that takes none may be called with nothing.
fn input<'a>(call: &'a Call<'_>) -> Option<&'a RawValue> {
    let arguments = call.function.arguments.trim();
    let arguments = if matches!(arguments, "" | "null") { "{}" } else { arguments };
    let named = !call.function.name.is_empty();
    (named && arguments.starts_with('{')).then(|| serde_json::from_str(arguments).ok()).flatten()
}
