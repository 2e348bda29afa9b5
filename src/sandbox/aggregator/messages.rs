//! The Messages form of the simulated provider: the same answers, faults and magic models in other words.
//!
//! What it writes is spelt out here rather than made by the codec under test, but for error bodies, as chat's are.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

use super::ask::{Ask, ToolCall, excerpt, own_fault, sample};
use super::speech::{Chunks, Speech};
use crate::wire::messages::{Failure, error_body, error_event};
use crate::wire::sse::Event;

/// The dialect a request came in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Chat,
    Messages,
    Responses,
}

impl Form {
    pub(super) fn of(operation: &str) -> Self {
        match operation {
            "messages" | "messages/count_tokens" => Self::Messages,
            "responses" => Self::Responses,
            _ => Self::Chat,
        }
    }
}

/// The key a caller of this form may present instead of a bearer key.
pub(super) fn api_key(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get("x-api-key").map(HeaderValue::as_bytes)
}

/// What real providers of this form refuse with 400 before they look at the rest.
pub(super) fn objection(headers: &HeaderMap, ask: &Ask) -> Option<&'static str> {
    if !headers.contains_key("anthropic-version") {
        return Some("anthropic-version: header is required");
    }
    ask.max_tokens.is_none().then_some("max_tokens: Field required")
}

/// Reads a body, or says what to answer with 400.
pub(super) fn read(body: &[u8], provider: &str) -> Result<Ask, String> {
    let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(body) else {
        return Err("the body must be a JSON object".to_owned());
    };
    let model = body.get("model").and_then(Value::as_str).ok_or("model: Field required")?.to_owned();
    let messages = body.get("messages").and_then(Value::as_array).ok_or("messages: Field required")?;
    // Instructions may stand among the turns
    // (<https://platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages>, read Nov 2026).
    let known = |message: &Value| ["user", "assistant", "system"].iter().any(|role| message["role"] == *role);
    if let Some(number) = messages.iter().position(|message| !known(message)) {
        return Err(format!("messages.{number}.role: must be user, assistant or system"));
    }
    let asked =
        messages.iter().rev().filter(|message| message["role"] == "user").map(|message| text(&message["content"]));
    let system = body.get("system").map(text).unwrap_or_default();
    let texts = messages.iter().map(|message| text(&message["content"])).chain([system]);
    // Once a tool has answered, calling it again would go on for ever.
    let last = messages.iter().rev().find(|message| message["role"] != "system");
    let tool_answered = last.is_some_and(|message| blocks(message).any(|block| block["type"] == "tool_result"));
    Ok(Ask {
        form: Form::Messages,
        model,
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or_default(),
        include_usage: true,
        max_tokens: body.get("max_tokens").and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok()),
        excerpt: excerpt(&asked.into_iter().find(|text| !text.is_empty()).unwrap_or_default()),
        prompt_words: texts.map(|text| text.split_whitespace().count()).sum(),
        tool: if tool_answered { None } else { first_tool(&body) },
        fault: own_fault(body.get("sandbox_fault"), provider)?,
    })
}

fn blocks(message: &Value) -> impl Iterator<Item = &Value> {
    message["content"].as_array().into_iter().flatten()
}

/// The text of a content, which is a string or a list of blocks.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts = blocks.iter().filter_map(|block| block["text"].as_str());
            texts.collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

/// A call of the first tool offered, with an input its schema accepts.
fn first_tool(body: &Map<String, Value>) -> Option<ToolCall> {
    if body.get("tool_choice").is_some_and(|choice| choice["type"] == "none") {
        return None;
    }
    let tool = body.get("tools")?.as_array()?.first()?;
    Some(ToolCall { name: tool["name"].as_str()?.to_owned(), arguments: sample(&tool["input_schema"], 0).to_string() })
}

/// The answer to a request to count tokens.
pub(super) fn count(ask: &Ask) -> Bytes {
    json!({"input_tokens": ask.prompt_words}).to_string().into()
}

/// The answer as one JSON body.
pub(super) fn whole(speech: &Speech) -> Bytes {
    let said = speech.pieces.concat();
    let block = match &speech.tool {
        Some(tool) => {
            // An input cut short by max_tokens is no JSON any more; real providers close it somehow as well.
            let input = serde_json::from_str(&said).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": speech.call_id(), "name": tool.name, "input": input})
        }
        None => json!({"type": "text", "text": said}),
    };
    message(speech, &json!([block]), Some(stop_reason(speech)), speech.pieces.len()).to_string().into()
}

/// The answer as a stream of events.
pub(super) fn chunks(speech: &Speech) -> Chunks {
    let block = match &speech.tool {
        Some(tool) => json!({"type": "tool_use", "id": speech.call_id(), "name": tool.name, "input": {}}),
        None => json!({"type": "text", "text": ""}),
    };
    let delta = |piece: &String| {
        let delta = match speech.tool {
            Some(_) => json!({"type": "input_json_delta", "partial_json": piece}),
            None => json!({"type": "text_delta", "text": piece}),
        };
        event("content_block_delta", json!({"index": 0, "delta": delta}))
    };
    let start = [
        event("message_start", json!({"message": message(speech, &json!([]), None, 1)})),
        event("content_block_start", json!({"index": 0, "content_block": block})),
        event("ping", json!({})),
    ];
    let ending = json!({"stop_reason": stop_reason(speech), "stop_sequence": null});
    let usage = json!({"output_tokens": speech.pieces.len()});
    Chunks {
        start: start.concat().into(),
        content: speech.pieces.iter().map(delta).collect(),
        end: vec![
            event("content_block_stop", json!({"index": 0})),
            event("message_delta", json!({"delta": ending, "usage": usage})),
            event("message_stop", json!({})),
        ],
    }
}

/// A message of which so much was said.
fn message(speech: &Speech, content: &Value, stop_reason: Option<&str>, output_tokens: usize) -> Value {
    let usage = json!({
        "input_tokens": speech.usage.get("prompt_tokens"), "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0, "output_tokens": output_tokens,
    });
    json!({
        "id": speech.id, "type": "message", "role": "assistant", "model": speech.model, "content": content,
        "stop_reason": stop_reason, "stop_sequence": null, "usage": usage,
    })
}

fn stop_reason(speech: &Speech) -> &'static str {
    match speech.finish_reason {
        "tool_calls" => "tool_use",
        "length" => "max_tokens",
        _ => "end_turn",
    }
}

fn event(kind: &str, members: Value) -> Bytes {
    let mut body = Map::from_iter([("type".to_owned(), json!(kind))]);
    if let Value::Object(members) = members {
        body.extend(members);
    }
    Event::named(kind, Value::Object(body).to_string().as_bytes()).raw().clone()
}

/// The body of an error status, or a failure dressed as an answer.
pub(super) fn failure(status: u16, message: &str, request_id: &str) -> Bytes {
    error_body(&Failure::of(status, message, request_id))
}

/// A failure dressed as the first event of a stream.
pub(super) fn failure_event(status: u16, message: &str) -> Bytes {
    error_event(&Failure::of(status, message, "")).raw().clone()
}

#[cfg(test)]
mod tests;
