//! What the simulated provider takes from a chat request. It is as strict as real ones about what they check.

use serde_json::{Map, Value, json};

use super::messages::Form;
use crate::sandbox::fault::Fault;

/// Characters of the prompt that an answer repeats.
const EXCERPT: usize = 80;

/// A request, whatever its form.
pub(super) struct Ask {
    pub(super) form: Form,
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_tokens: Option<usize>,
    /// The start of the last user message.
    pub(super) excerpt: String,
    /// Words in all messages, which is what is counted as prompt tokens.
    pub(super) prompt_words: usize,
    /// The tool to call instead of answering.
    pub(super) tool: Option<ToolCall>,
    /// The fault the request itself asks of this provider.
    pub(super) fault: Option<Fault>,
}

/// A call of a tool.
#[derive(Clone)]
pub(super) struct ToolCall {
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
}

impl Ask {
    /// Reads a chat request, or says what to answer with 400.
    pub(super) fn read(body: &[u8], provider: &str) -> Result<Self, String> {
        let Ok(Value::Object(body)) = serde_json::from_slice::<Value>(body) else {
            return Err("the body must be a JSON object".to_owned());
        };
        let model = body.get("model").and_then(Value::as_str).ok_or("model must be a string")?.to_owned();
        let messages = body.get("messages").and_then(Value::as_array).ok_or("messages must be a list")?;
        let role = |message: &Value| message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
        let prompt = messages.iter().rev().find(|message| role(message) == "user").map(text).unwrap_or_default();
        let limit = body.get("max_completion_tokens").or_else(|| body.get("max_tokens")).and_then(Value::as_u64);
        let options = body.get("stream_options");
        // Once a tool has answered, calling it again would go on for ever.
        let tool_answered = messages.last().is_some_and(|message| role(message) == "tool");
        Ok(Self {
            form: Form::Chat,
            model,
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or_default(),
            include_usage: options.and_then(|options| options.get("include_usage")) == Some(&Value::Bool(true)),
            max_tokens: limit.and_then(|limit| usize::try_from(limit).ok()),
            excerpt: excerpt(&prompt),
            prompt_words: messages.iter().map(|message| text(message).split_whitespace().count()).sum(),
            tool: if tool_answered { None } else { first_tool(&body) },
            fault: own_fault(body.get("sandbox_fault"), provider)?,
        })
    }
}

/// The start of a prompt, on one line.
pub(super) fn excerpt(prompt: &str) -> String {
    prompt.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(EXCERPT).collect()
}

/// The text of a message, whose content is a string or a list of parts.
fn text(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
            texts.collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

/// `"sandbox_fault": "status:503"` is for every provider, `{"tokenmix": "cut:3"}` for the one named.
pub(super) fn own_fault(field: Option<&Value>, provider: &str) -> Result<Option<Fault>, String> {
    let text = match field {
        Some(Value::String(text)) => Some(text),
        Some(Value::Object(by_provider)) => match by_provider.get(provider) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    };
    text.map(|text| Fault::parse(text)).transpose().map_err(|error| format!("sandbox_fault: {error}"))
}

/// A call of the first tool offered, with arguments its schema accepts.
fn first_tool(body: &Map<String, Value>) -> Option<ToolCall> {
    if body.get("tool_choice").and_then(Value::as_str) == Some("none") {
        return None;
    }
    let function = body.get("tools")?.as_array()?.first()?.get("function")?;
    let name = function.get("name")?.as_str()?.to_owned();
    let arguments = function.get("parameters").map_or_else(|| json!({}), |schema| sample(schema, 0));
    Some(ToolCall { name, arguments: arguments.to_string() })
}

/// The plainest value a JSON schema accepts, four levels deep at most.
pub(super) fn sample(schema: &Value, depth: usize) -> Value {
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return first.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => json!("sandbox"),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("null") => Value::Null,
        _ if depth < 4 => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let members =
                properties.into_iter().flatten().map(|(name, schema)| (name.clone(), sample(schema, depth + 1)));
            Value::Object(members.collect())
        }
        _ => json!({}),
    }
}
