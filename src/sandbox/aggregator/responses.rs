//! `POST /v1/responses`: what the simulated provider takes from such a request, and the same speech in that form.
//!
//! Written from the official types and not from [`crate::wire::responses`], so that each shows the other's mistakes. It
//! keeps no response, so it answers what it is sent and overlooks a `previous_response_id`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::Ask;
use super::messages::Form;
use super::speech::{Chunks, Speech};
use crate::wire::sse::Event;

/// Reads a request, or says what to answer with 400.
pub(super) fn read(body: &[u8], provider: &str) -> Result<Ask, String> {
    let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(body) else {
        return Err("the body must be a JSON object".to_owned());
    };
    if body.contains_key("messages") {
        return Err("messages is no field of a response, send input".to_owned());
    }
    let mut messages: Vec<Value> = match body.get("input") {
        Some(Value::String(text)) => vec![json!({"role": "user", "content": text})],
        Some(Value::Array(items)) => items.iter().filter_map(message).collect(),
        _ => return Err("input must be a string or a list".to_owned()),
    };
    if let Some(instructions) = body.get("instructions").filter(|value| !value.is_null()) {
        messages.insert(0, json!({"role": "system", "content": instructions}));
    }
    let offered = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let functions = offered.iter().filter(|tool| tool.get("type") == Some(&json!("function")));
    let tools: Vec<Value> = functions.map(tool).collect::<Result<_, _>>()?;
    let same = |key: &str| body.get(key).cloned().unwrap_or_default();
    let chat = json!({
        "model": same("model"), "stream": same("stream"), "tool_choice": same("tool_choice"),
        "sandbox_fault": same("sandbox_fault"), "max_completion_tokens": same("max_output_tokens"),
        "messages": messages, "tools": tools,
    });
    let ask = Ask::read(chat.to_string().as_bytes(), provider)?;
    Ok(Ask { form: Form::Responses, ..ask })
}

/// An item as a message; nothing for items that say nothing to the model here.
fn message(item: &Value) -> Option<Value> {
    match item.get("type").and_then(Value::as_str) {
        None | Some("message") => {
            let role = item.get("role")?;
            Some(json!({"role": role, "content": item.get("content")}))
        }
        Some("function_call") => Some(json!({"role": "assistant", "content": null})),
        Some("function_call_output") => Some(json!({"role": "tool", "content": item.get("output")})),
        Some(_) => None,
    }
}

fn tool(tool: &Value) -> Result<Value, String> {
    let name = tool.get("name").and_then(Value::as_str).ok_or("a function tool must have a name")?;
    Ok(json!({"type": "function", "function": {"name": name, "parameters": tool.get("parameters")}}))
}

/// The answer as one JSON body.
pub(super) fn whole(speech: &Speech) -> Bytes {
    response(speech, ended(speech), &[item(speech, &speech.pieces.concat(), ended(speech))]).to_string().into()
}

/// A failure dressed as an answer.
pub(super) fn failed(speech: &Speech, status: u16) -> Bytes {
    failure(speech, status).to_string().into()
}

/// A failure after a good beginning, as quota errors come.
pub(super) fn failed_events(speech: &Speech, status: u16) -> Bytes {
    let mut events = Events::default();
    events.begin(speech);
    events.tell("response.failed", &json!({"response": failure(speech, status)}));
    events.take()
}

/// The answer as a stream of events.
pub(super) fn chunks(speech: &Speech) -> Chunks {
    let mut events = Events::default();
    events.begin(speech);
    let mut content = Vec::with_capacity(speech.pieces.len() + 1);
    let added = json!({"output_index": 0, "item": item(speech, "", "in_progress")});
    let place = place(speech);
    let start = if speech.tool.is_some() {
        let start = events.take();
        events.tell("response.output_item.added", &added);
        content.push(events.take());
        start
    } else {
        events.tell("response.output_item.added", &added);
        events.tell("response.content_part.added", &with(&place, &json!({"part": part("")})));
        events.take()
    };
    for piece in &speech.pieces {
        match speech.tool {
            Some(_) => events.tell("response.function_call_arguments.delta", &with(&place, &json!({"delta": piece}))),
            None => events.tell("response.output_text.delta", &with(&place, &json!({"delta": piece, "logprobs": []}))),
        }
        content.push(events.take());
    }
    Chunks { start, content, end: vec![end(&mut events, speech)] }
}

fn end(events: &mut Events, speech: &Speech) -> Bytes {
    let said = speech.pieces.concat();
    let place = place(speech);
    if let Some(tool) = &speech.tool {
        let members = json!({"arguments": said, "name": tool.name});
        events.tell("response.function_call_arguments.done", &with(&place, &members));
    } else {
        events.tell("response.output_text.done", &with(&place, &json!({"text": said, "logprobs": []})));
        events.tell("response.content_part.done", &with(&place, &json!({"part": part(&said)})));
    }
    let item = item(speech, &said, ended(speech));
    events.tell("response.output_item.done", &json!({"output_index": 0, "item": item}));
    let status = ended(speech);
    let kind = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
    events.tell(kind, &json!({"response": response(speech, status, &[item])}));
    events.take()
}

/// Events in order, as bytes that were not taken yet.
#[derive(Default)]
struct Events {
    number: u64,
    bytes: Vec<u8>,
}

impl Events {
    fn begin(&mut self, speech: &Speech) {
        for kind in ["response.created", "response.in_progress"] {
            self.tell(kind, &json!({"response": response(speech, "in_progress", &[])}));
        }
    }

    fn tell(&mut self, kind: &str, members: &Value) {
        let body = with(&json!({"type": kind, "sequence_number": self.number}), members);
        self.number += 1;
        self.bytes.extend_from_slice(Event::named(kind, body.to_string().as_bytes()).raw());
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes).into()
    }
}

/// The members of both objects.
fn with(first: &Value, second: &Value) -> Value {
    let members = [first, second].into_iter().filter_map(Value::as_object).flatten();
    Value::Object(members.map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn place(speech: &Speech) -> Value {
    let place = json!({"item_id": item_id(speech), "output_index": 0});
    if speech.tool.is_some() { place } else { with(&place, &json!({"content_index": 0})) }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
}

fn item_id(speech: &Speech) -> String {
    speech.id.replace("resp_", if speech.tool.is_some() { "fc_" } else { "msg_" })
}

fn item(speech: &Speech, said: &str, status: &str) -> Value {
    let id = item_id(speech);
    if let Some(tool) = &speech.tool {
        return json!({
            "id": id, "type": "function_call", "status": status, "arguments": said, "call_id": speech.call_id(),
            "name": tool.name,
        });
    }
    let content = if status == "in_progress" { json!([]) } else { json!([part(said)]) };
    json!({"id": id, "type": "message", "status": status, "content": content, "role": "assistant"})
}

fn ended(speech: &Speech) -> &'static str {
    if speech.finish_reason == "length" { "incomplete" } else { "completed" }
}

fn failure(speech: &Speech, status: u16) -> Value {
    let code = if status == 429 { "rate_limit_exceeded" } else { "server_error" };
    let error = json!({"code": code, "message": speech.failure_message()});
    with(&response(speech, "failed", &[]), &json!({"error": error}))
}

fn response(speech: &Speech, status: &str, output: &[Value]) -> Value {
    let usage = |chat: &str| speech.usage.get(chat).cloned().unwrap_or_default();
    let usage = matches!(status, "completed" | "incomplete").then(|| {
        json!({
            "input_tokens": usage("prompt_tokens"), "output_tokens": usage("completion_tokens"),
            "total_tokens": usage("total_tokens"), "output_tokens_details": {"reasoning_tokens": 0},
            "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        })
    });
    let details = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
    json!({
        "id": speech.id, "object": "response", "created_at": speech.created, "status": status, "background": false,
        "error": null, "incomplete_details": details, "instructions": null, "max_output_tokens": null,
        "metadata": {}, "model": speech.model, "output": output, "parallel_tool_calls": true,
        "previous_response_id": null, "reasoning": {"effort": null, "summary": null}, "store": false,
        "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "truncation": "disabled", "usage": usage, "user": null,
    })
}

#[cfg(test)]
mod tests;
