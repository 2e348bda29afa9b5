//! The input of a request as the messages of a chat.
//!
//! A response has one item for each thing said or called; a chat has one message for each turn. So calls join what the
//! assistant said before them, and instructions that stand first join the system message, of which many models take only
//! one. Reasoning has no place in a chat and is left out.

use serde::Serialize;
use serde_json::value::RawValue;

use super::to_chat::{Refusal, list_of};
use crate::wire::object::{Object, text};

#[derive(Serialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub(super) enum Message<'a> {
    System {
        content: String,
    },
    User {
        content: Content<'a>,
    },
    Assistant {
        content: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<Call<'a>>,
    },
    Tool {
        tool_call_id: &'a RawValue,
        content: Content<'a>,
    },
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Content<'a> {
    Verbatim(&'a RawValue),
    Text(String),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part<'a> {
    Text { text: &'a RawValue },
    ImageUrl { image_url: Image<'a> },
    File { file: File<'a> },
    InputAudio { input_audio: &'a RawValue },
}

#[derive(Serialize)]
pub(super) struct Image<'a> {
    url: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a RawValue>,
}

#[derive(Serialize)]
pub(super) struct File<'a> {
    file_data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<&'a RawValue>,
}

#[derive(Serialize)]
pub(super) struct Call<'a> {
    id: &'a RawValue,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a RawValue,
    arguments: &'a RawValue,
}

/// The messages so far.
struct Chat<'a> {
    messages: Vec<Message<'a>>,
    left_out: &'a mut Vec<&'static str>,
}

/// Reads `instructions` and `input`.
pub(super) fn read<'a>(request: &Object<'a>, left_out: &'a mut Vec<&'static str>) -> Result<Vec<Message<'a>>, Refusal> {
    let mut chat = Chat { messages: Vec::new(), left_out };
    if let Some(instructions) = request.get("instructions") {
        let instructions =
            text(instructions).ok_or_else(|| Refusal::malformed("instructions must be a string", "instructions"))?;
        chat.system(instructions);
    }
    let input = request.get("input").ok_or_else(|| Refusal::malformed("input is missing", "input"))?;
    if text(input).is_some() {
        chat.messages.push(Message::User { content: Content::Verbatim(input) });
        return Ok(chat.messages);
    }
    let items =
        list_of(input).ok_or_else(|| Refusal::malformed("input must be a string or a list of items", "input"))?;
    for (number, item) in items.into_iter().enumerate() {
        let at = format!("input[{number}]");
        let item = Object::of(item).map_err(|_| Refusal::malformed("an item of input must be an object", &*at))?;
        chat.item(&item, &at)?;
    }
    Ok(chat.messages)
}

impl<'a> Chat<'a> {
    fn item(&mut self, item: &Object<'a>, at: &str) -> Result<(), Refusal> {
        let kind = item.get("type").and_then(text);
        match kind.as_deref() {
            Some("message") => self.message(item, at),
            None if item.get("role").is_some() => self.message(item, at),
            Some("function_call") => self.call(item, at),
            Some("function_call_output") => self.result(item, at),
            Some("reasoning") => {
                self.left_out.push("input.reasoning");
                Ok(())
            }
            // What is referred to here was ours to name, and reasoning would be left out anyway. The AI SDK refers to it
            // by default.
            Some("item_reference") | None if item.get("id").and_then(text).is_some_and(|id| id.starts_with("rs_")) => {
                self.left_out.push("input.reasoning");
                Ok(())
            }
            Some("item_reference") | None => Err(Refusal::needs_native(
                "items are not kept here, ask with store false and send the item itself instead of a reference to it",
                at,
            )),
            Some(_) => Err(Refusal::needs_native(
                "this model's provider takes messages, function calls and their outputs only",
                format!("{at}.type"),
            )),
        }
    }

    fn message(&mut self, item: &Object<'a>, at: &str) -> Result<(), Refusal> {
        let role = item.get("role").and_then(text);
        let content_at = format!("{at}.content");
        let content = item.get("content").ok_or_else(|| Refusal::malformed("content is missing", &*content_at))?;
        match role.as_deref() {
            Some("user") => {
                let content = user_content(content, &content_at)?;
                self.messages.push(Message::User { content });
            }
            Some("system" | "developer") => self.system(joined(content, "\n", &content_at)?),
            Some("assistant") => self.assistant(joined(content, "", &content_at)?),
            _ => {
                let message = "role must be user, assistant, system or developer";
                return Err(Refusal::malformed(message, format!("{at}.role")));
            }
        }
        Ok(())
    }

    fn system(&mut self, text: String) {
        if let [Message::System { content }] = self.messages.as_mut_slice() {
            content.push_str("\n\n");
            content.push_str(&text);
        } else {
            self.messages.push(Message::System { content: text });
        }
    }

    /// What is said beside calls belongs to the message that makes them.
    fn assistant(&mut self, text: String) {
        match self.messages.last_mut() {
            Some(Message::Assistant { content, tool_calls }) if !tool_calls.is_empty() => match content {
                Some(content) => content.push_str(&text),
                None => *content = Some(text),
            },
            _ => self.messages.push(Message::Assistant { content: Some(text), tool_calls: Vec::new() }),
        }
    }

    fn call(&mut self, item: &Object<'a>, at: &str) -> Result<(), Refusal> {
        let function = Function { name: string(item, "name", at)?, arguments: string(item, "arguments", at)? };
        let call = Call { id: string(item, "call_id", at)?, kind: "function", function };
        if let Some(Message::Assistant { tool_calls, .. }) = self.messages.last_mut() {
            tool_calls.push(call);
        } else {
            self.messages.push(Message::Assistant { content: None, tool_calls: vec![call] });
        }
        Ok(())
    }

    fn result(&mut self, item: &Object<'a>, at: &str) -> Result<(), Refusal> {
        let output_at = format!("{at}.output");
        let output = item.get("output").ok_or_else(|| Refusal::malformed("output is missing", &*output_at))?;
        let content = if output.get().starts_with('"') {
            Content::Verbatim(output)
        } else {
            Content::Text(joined(output, "\n", &output_at)?)
        };
        self.messages.push(Message::Tool { tool_call_id: string(item, "call_id", at)?, content });
        Ok(())
    }
}

/// A member that must be a string, as written.
fn string<'a>(item: &Object<'a>, key: &str, at: &str) -> Result<&'a RawValue, Refusal> {
    let value = item.get(key).filter(|value| value.get().starts_with('"'));
    value.ok_or_else(|| Refusal::malformed("a string is missing here", format!("{at}.{key}")))
}

fn parts<'a>(content: &'a RawValue, at: &str) -> Result<Vec<(Object<'a>, String)>, Refusal> {
    let wrong = || Refusal::malformed("content must be a string or a list of parts", at);
    let parts = list_of(content).ok_or_else(wrong)?;
    let read = |(number, part): (usize, &'a RawValue)| Some((Object::of(part).ok()?, format!("{at}[{number}]")));
    parts.into_iter().enumerate().map(read).collect::<Option<_>>().ok_or_else(wrong)
}

fn user_content<'a>(content: &'a RawValue, at: &str) -> Result<Content<'a>, Refusal> {
    if content.get().starts_with('"') {
        return Ok(Content::Verbatim(content));
    }
    let parts = parts(content, at)?;
    let parts: Vec<Part<'_>> = parts.iter().map(|(part, at)| user_part(part, at)).collect::<Result<_, _>>()?;
    match parts.as_slice() {
        // Not every provider takes lists, and for one text none is needed.
        [Part::Text { text }] => Ok(Content::Verbatim(text)),
        _ => Ok(Content::Parts(parts)),
    }
}

fn user_part<'a>(part: &Object<'a>, at: &str) -> Result<Part<'a>, Refusal> {
    match part.get("type").and_then(text).as_deref() {
        Some("input_text" | "output_text" | "text") => Ok(Part::Text { text: string(part, "text", at)? }),
        Some("input_image") => {
            kept_elsewhere(part, "image_url", at)?;
            // A chat does not know this one, and without any the model chooses.
            let detail = part.get("detail").filter(|detail| text(detail).as_deref() != Some("original"));
            Ok(Part::ImageUrl { image_url: Image { url: string(part, "image_url", at)?, detail } })
        }
        Some("input_file") => {
            kept_elsewhere(part, "file_data", at)?;
            Ok(Part::File { file: File { file_data: string(part, "file_data", at)?, filename: part.get("filename") } })
        }
        Some("input_audio") => {
            let audio = part.get("input_audio");
            let audio = audio.ok_or_else(|| Refusal::malformed("audio is missing", format!("{at}.input_audio")))?;
            Ok(Part::InputAudio { input_audio: audio })
        }
        _ => Err(Refusal::needs_native("this model's provider takes no such part of a message", format!("{at}.type"))),
    }
}

/// A file known to one provider, or at an address only that provider would fetch, is out of reach of another.
fn kept_elsewhere(part: &Object<'_>, inline: &str, at: &str) -> Result<(), Refusal> {
    if part.get(inline).is_some() {
        return Ok(());
    }
    let key = ["file_id", "file_url"].into_iter().find(|key| part.get(key).is_some());
    key.map_or(Ok(()), |key| {
        Err(Refusal::needs_native("send the file itself, this model's provider cannot fetch it", format!("{at}.{key}")))
    })
}

/// A string, or parts that are all text, as one text.
fn joined(content: &RawValue, between: &str, at: &str) -> Result<String, Refusal> {
    if content.get().starts_with('"') {
        return text(content).ok_or_else(|| Refusal::malformed("the text must be valid Unicode", at));
    }
    let parts = parts(content, at)?;
    let texts = parts.iter().map(|(part, at)| {
        let key = match part.get("type").and_then(text).as_deref() {
            Some("input_text" | "output_text" | "text") => "text",
            Some("refusal") => "refusal",
            _ => {
                return Err(Refusal::needs_native("this model's provider takes only text here", format!("{at}.type")));
            }
        };
        let value = part.get(key).and_then(text);
        value.ok_or_else(|| Refusal::malformed("a string is missing here", format!("{at}.{key}")))
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join(between))
}
