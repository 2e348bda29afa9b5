//! What the simulated provider says, whole or in chunks.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::{Ask, ToolCall};
use super::messages::{self, Form};
use super::responses;
use crate::domain::clock;
use crate::wire::sse::Event;

/// One answer.
pub(super) struct Speech {
    form: Form,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    provider: String,
    /// The words of the text, or the pieces of a tool call's arguments; each counts as one token.
    pub(super) pieces: Vec<String>,
    pub(super) tool: Option<ToolCall>,
    pub(super) finish_reason: &'static str,
    pub(super) usage: Value,
    include_usage: bool,
}

/// A stream in three parts, of which only the middle one is paced and cut.
pub(super) struct Chunks {
    /// The role.
    pub(super) start: Bytes,
    pub(super) content: Vec<Bytes>,
    /// Finish reason, usage if it was asked for, terminal event.
    pub(super) end: Vec<Bytes>,
}

impl Speech {
    /// The answer of `provider` to its request of that number.
    pub(super) fn new(ask: &Ask, provider: &str, number: u64) -> Self {
        let mut pieces = match &ask.tool {
            Some(tool) => split(&tool.arguments),
            None => split(&text(ask, provider)),
        };
        let mut finish_reason = if ask.tool.is_some() { "tool_calls" } else { "stop" };
        if let Some(limit) = ask.max_tokens.filter(|limit| *limit < pieces.len()) {
            pieces.truncate(limit.max(1));
            finish_reason = "length";
        }
        let (prompt, completion) = (ask.prompt_words, pieces.len());
        let total = prompt.saturating_add(completion);
        let prefix = match ask.form {
            Form::Chat => "chatcmpl-",
            Form::Messages => "msg_",
            Form::Responses => "resp_",
        };
        Self {
            form: ask.form,
            id: format!("{prefix}{provider}-{number:06}"),
            created: clock::unix_seconds(),
            model: ask.model.clone(),
            provider: provider.to_owned(),
            pieces,
            tool: ask.tool.clone(),
            finish_reason,
            usage: json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}),
            include_usage: ask.include_usage,
        }
    }

    /// The answer as one JSON body.
    pub(super) fn whole(&self) -> Bytes {
        match self.form {
            Form::Chat => {}
            Form::Messages => return messages::whole(self),
            Form::Responses => return responses::whole(self),
        }
        let said = self.pieces.concat();
        let message = match &self.tool {
            Some(tool) => json!({"role": "assistant", "content": null, "tool_calls": [{
                "id": self.call_id(), "type": "function", "function": {"name": tool.name, "arguments": said},
            }]}),
            None => json!({"role": "assistant", "content": said, "refusal": null}),
        };
        let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": self.finish_reason});
        let body = json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": [choice], "usage": self.usage, "system_fingerprint": "fp_sandbox",
        });
        body.to_string().into()
    }

    /// The answer as a stream of events.
    pub(super) fn chunks(&self) -> Chunks {
        match self.form {
            Form::Chat => {}
            Form::Messages => return messages::chunks(self),
            Form::Responses => return responses::chunks(self),
        }
        let mut content = Vec::with_capacity(self.pieces.len() + 1);
        let start = match &self.tool {
            Some(tool) => {
                let function = json!({"name": tool.name, "arguments": ""});
                let call = json!({"index": 0, "id": self.call_id(), "type": "function", "function": function});
                content.push(self.delta(&json!({"tool_calls": [call]})));
                json!({"role": "assistant", "content": null})
            }
            None => json!({"role": "assistant", "content": "", "refusal": null}),
        };
        content.extend(self.pieces.iter().map(|piece| match self.tool {
            Some(_) => self.delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})),
            None => self.delta(&json!({"content": piece})),
        }));
        let last = json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": self.finish_reason}]);
        let mut end = vec![self.chunk(&last, &Value::Null)];
        if self.include_usage {
            end.push(self.chunk(&json!([]), &self.usage));
        }
        end.push(Event::done().raw().clone());
        Chunks { start: self.delta(&start), content, end }
    }

    /// A failure dressed as an answer.
    pub(super) fn error(&self, status: u16) -> Bytes {
        match self.form {
            Form::Chat => {}
            Form::Messages => return messages::failure(status, &self.failure_message(), ""),
            Form::Responses => return responses::failed(self, status),
        }
        json!({"error": self.failure(status)}).to_string().into()
    }

    /// A failure dressed as the first chunk of a stream.
    pub(super) fn error_event(&self, status: u16) -> Bytes {
        match self.form {
            Form::Chat => {}
            Form::Messages => return messages::failure_event(status, &self.failure_message()),
            Form::Responses => return responses::failed_events(self, status),
        }
        let choice = json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "error"});
        let body = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "error": self.failure(status), "choices": [choice],
        });
        Event::from_data(body.to_string().as_bytes()).raw().clone()
    }

    fn failure(&self, status: u16) -> Value {
        json!({"message": self.failure_message(), "type": "server_error", "param": null, "code": status})
    }

    pub(super) fn failure_message(&self) -> String {
        format!("{}: a simulated failure inside a 200", self.provider)
    }

    pub(super) fn call_id(&self) -> String {
        let prefix = if self.form == Form::Messages { "toolu" } else { "call" };
        format!("{prefix}_{}", self.id)
    }

    fn delta(&self, delta: &Value) -> Bytes {
        let choices = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]);
        self.chunk(&choices, &Value::Null)
    }

    /// One event. With usage asked for, every chunk has the field, and only the extra one has it filled.
    fn chunk(&self, choices: &Value, usage: &Value) -> Bytes {
        let mut body = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "system_fingerprint": "fp_sandbox", "choices": choices,
        });
        if let (true, Some(body)) = (self.include_usage, body.as_object_mut()) {
            body.insert("usage".to_owned(), usage.clone());
        }
        Event::from_data(body.to_string().as_bytes()).raw().clone()
    }
}

fn text(ask: &Ask, provider: &str) -> String {
    let Ask { model, excerpt, prompt_words, .. } = ask;
    format!(
        "This is {provider}, a simulated provider, answering as the model {model}. Your messages hold {prompt_words} \
         words, and the last of them begins: {excerpt}\n\nNo model thought about it; the words come one by one so that \
         streaming can be seen."
    )
}

/// Pieces that end after a space or a comma and together are the text again.
fn split(text: &str) -> Vec<String> {
    text.split_inclusive([' ', ',']).map(str::to_owned).collect()
}
