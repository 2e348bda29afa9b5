//! Whole answers of chat completions and of completions, told in chunks.

use serde_json::value::RawValue;

use super::chat::TEXTS;
use super::parts::{Parts, elements, is_empty, list, written};
use super::pieces::pieces;
use crate::wire::object::{Object, text};
use crate::wire::sse::Event;

/// What all chunks of an answer have in common.
struct Chunks {
    common: Parts,
    usage: Option<String>,
    events: Vec<Event>,
}

impl Chunks {
    fn of(answer: &Object<'_>, object: &str) -> Self {
        let mut common = Parts::default();
        for (key, value) in answer.iter().filter(|(key, _)| !matches!(*key, "choices" | "usage")) {
            common.set(key, value.get());
        }
        common.put("object", object);
        let usage = answer.get("usage").map(|usage| usage.get().to_owned());
        Self { common, usage, events: Vec::new() }
    }

    fn push(&mut self, choices: &str) {
        let mut chunk = self.common.clone();
        chunk.set("choices", choices);
        self.events.push(Event::from_data(chunk.json().as_bytes()));
    }

    /// Everything is told: the token counts, if they are known, and the end.
    fn end(mut self) -> Vec<Event> {
        if let Some(usage) = self.usage.take() {
            self.common.set("choices", "[]");
            self.common.set("usage", usage);
            self.events.push(Event::from_data(self.common.json().as_bytes()));
        }
        self.events.push(Event::done());
        self.events
    }
}

pub(super) fn chat(whole: &[u8]) -> Option<Vec<Event>> {
    let answer = Object::read(whole).ok()?;
    let mut chunks = Chunks::of(&answer, "chat.completion.chunk");
    for choice in elements(answer.get("choices")?)? {
        tell(&Object::of(choice).ok()?, &mut chunks)?;
    }
    (!chunks.events.is_empty()).then(|| chunks.end())
}

fn tell(choice: &Object<'_>, chunks: &mut Chunks) -> Option<()> {
    let index = choice.get("index").map_or("0", RawValue::get);
    let message = Object::of(choice.get("message")?).ok()?;
    let told = |delta: &Parts, reason: &str, other: &Parts| {
        let mut said = Parts::default();
        said.set("index", index);
        said.set("delta", delta.json());
        said.extend(other);
        said.set("finish_reason", reason);
        list([said.json()])
    };
    let nothing = Parts::default();
    chunks.push(&told(&first_delta(&message)?, "null", &nothing));
    for name in TEXTS {
        let text = message.get(name).map_or(Some(String::new()), text)?;
        for piece in pieces(&text) {
            let mut delta = Parts::default();
            delta.put(name, piece);
            chunks.push(&told(&delta, "null", &nothing));
        }
    }
    for (number, call) in message.get("tool_calls").map_or(Some(Vec::new()), elements)?.into_iter().enumerate() {
        for delta in call_deltas(number, &Object::of(call).ok()?)? {
            chunks.push(&told(&delta, "null", &nothing));
        }
    }
    let mut other = Parts::default();
    for (key, value) in choice.iter() {
        if !matches!(key, "index" | "message" | "finish_reason") {
            other.set(key, value.get());
        }
    }
    chunks.push(&told(&nothing, choice.get("finish_reason")?.get(), &other));
    Some(())
}

/// The role, and what has no pieces.
fn first_delta(message: &Object<'_>) -> Option<Parts> {
    let mut delta = Parts::default();
    delta.set("role", message.get("role").map_or("\"assistant\"", RawValue::get));
    for (key, value) in message.iter() {
        match key {
            // An empty text says that the rest of it follows.
            _ if TEXTS.contains(&key) && value.get() != "null" => delta.set(key, "\"\""),
            "content" => delta.set(key, "null"),
            "role" | "tool_calls" => {}
            // Sound comes in pieces of its own kind.
            "audio" if value.get() != "null" => return None,
            _ if is_empty(value.get()) => {}
            _ => delta.set(key, value.get()),
        }
    }
    Some(delta)
}

/// A call begins with its name; its arguments follow.
fn call_deltas(number: usize, call: &Object<'_>) -> Option<Vec<Parts>> {
    let function = call.get("function").map_or_else(|| None, |function| Object::of(function).ok())?;
    let mut begun = Parts::default();
    begun.put("index", number);
    for (key, value) in call.iter().filter(|(key, _)| !matches!(*key, "index" | "function")) {
        begun.set(key, value.get());
    }
    let mut named = Parts::default();
    for (key, value) in function.iter() {
        named.set(key, if key == "arguments" { "\"\"" } else { value.get() });
    }
    begun.set("function", named.json());
    let arguments = function.get("arguments").map_or(Some(String::new()), text)?;
    let grown = pieces(&arguments).map(|piece| {
        let (mut call, mut function) = (Parts::default(), Parts::default());
        function.put("arguments", piece);
        call.put("index", number);
        call.set("function", function.json());
        call
    });
    let calls = std::iter::once(begun).chain(grown);
    let delta = |call: Parts| {
        let mut delta = Parts::default();
        delta.set("tool_calls", list([call.json()]));
        delta
    };
    Some(calls.map(delta).collect())
}

/// A completion's chunk with a piece of its text.
fn text_choice(index: &str, piece: &str, finish: Option<(&str, &Parts)>) -> String {
    let mut choice = Parts::default();
    choice.set("index", index);
    choice.set("text", written(piece));
    choice.set("logprobs", "null");
    if let Some((_, other)) = finish {
        choice.extend(other);
    }
    choice.set("finish_reason", finish.map_or("null", |(reason, _)| reason));
    list([choice.json()])
}

/// A completion: texts in place of deltas, and no role.
pub(super) fn completion(whole: &[u8]) -> Option<Vec<Event>> {
    let answer = Object::read(whole).ok()?;
    let mut chunks = Chunks::of(&answer, "text_completion");
    for choice in elements(answer.get("choices")?)? {
        let choice = Object::of(choice).ok()?;
        let index = choice.get("index").map_or("0", RawValue::get);
        for piece in pieces(&text(choice.get("text")?)?) {
            chunks.push(&text_choice(index, piece, None));
        }
        let mut other = Parts::default();
        for (key, value) in choice.iter() {
            if !matches!(key, "index" | "text" | "finish_reason") {
                other.set(key, value.get());
            }
        }
        chunks.push(&text_choice(index, "", Some((choice.get("finish_reason")?.get(), &other))));
    }
    (!chunks.events.is_empty()).then(|| chunks.end())
}
