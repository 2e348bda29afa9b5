//! Chunks of chat completions, and of completions, which have texts in place of deltas, put together.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::{MapAccess, SeqAccess};
use serde_json::value::RawValue;

use super::parts::{Joined, Parts, elements, is_empty, list};
use super::{Ending, Form};
use crate::wire::json_read;
use crate::wire::object::Object;
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::sse::Event;

/// The texts of a message that come in pieces, in the order they are told again.
pub(super) const TEXTS: [&str; 4] = ["reasoning_content", "reasoning", "content", "refusal"];

/// An answer being put together.
#[derive(Default)]
struct Draft {
    top: Parts,
    choices: BTreeMap<u64, Choice>,
    usage: Option<String>,
}

#[derive(Default)]
struct Choice {
    other: Parts,
    role: Parts,
    texts: [Joined; 4],
    /// Of a completion.
    text: Joined,
    calls: BTreeMap<u64, Call>,
    function: Option<Function>,
    logprobs: BTreeMap<String, Vec<String>>,
    finish_reason: Option<String>,
}

#[derive(Default)]
struct Call {
    other: Parts,
    function: Function,
}

#[derive(Default)]
struct Function {
    name: Parts,
    arguments: Joined,
}

pub(super) fn assemble(form: Form, events: &[Event]) -> Option<Bytes> {
    let (last, chunks) = events.split_last()?;
    if !last.is_done() {
        return None;
    }
    let mut draft = Draft::default();
    for chunk in chunks {
        draft.take(&Object::read(&chunk.data()?).ok()?)?;
    }
    draft.finish(form).map(Bytes::from)
}

impl Draft {
    fn take(&mut self, chunk: &Object<'_>) -> Option<()> {
        for (key, value) in chunk.iter() {
            match key {
                "choices" => elements(value)?.into_iter().try_for_each(|choice| self.choice(choice))?,
                "usage" if value.get() != "null" => self.usage = Some(value.get().to_owned()),
                // Some say when each chunk was made: the first says when the answer was.
                "created" if self.top.get(key).is_none_or(|known| known == "0") => self.top.set(key, value.get()),
                // Padding is no part of an answer.
                "usage" | "created" | "obfuscation" => {}
                "object" => self.top.set(key, "null"),
                _ => self.top.once(key, value)?,
            }
        }
        Some(())
    }

    fn choice(&mut self, value: &RawValue) -> Option<()> {
        let object = Object::of(value).ok()?;
        let index = object.get("index").map_or(Some(0), |index| index.get().parse().ok())?;
        let choice = self.choices.entry(index).or_default();
        for (key, value) in object.iter() {
            match key {
                "index" => {}
                "delta" | "finish_reason" if value.get() == "null" => {}
                "delta" => choice.delta(&Object::of(value).ok()?)?,
                "text" => choice.text.add(value)?,
                "logprobs" => choice.logprobs(value)?,
                "finish_reason" => choice.finish_reason = Some(value.get().to_owned()),
                _ => choice.other.once(key, value)?,
            }
        }
        Some(())
    }

    fn finish(mut self, form: Form) -> Option<String> {
        let (object, of_chat) = if form == Form::Chat { ("chat.completion", true) } else { ("text_completion", false) };
        self.top.put("object", object);
        let choices: Option<Vec<_>> =
            self.choices.iter().map(|(index, choice)| choice.finish(*index, of_chat)).collect();
        self.top.set("choices", list(choices.filter(|choices| !choices.is_empty())?));
        if let Some(usage) = self.usage {
            self.top.set("usage", usage);
        }
        Some(self.top.json())
    }
}

impl Choice {
    fn delta(&mut self, delta: &Object<'_>) -> Option<()> {
        for (key, value) in delta.iter() {
            if let Some((_, text)) = TEXTS.iter().zip(&mut self.texts).find(|(name, _)| **name == key) {
                text.add(value)?;
                continue;
            }
            match key {
                "role" => self.role.once(key, value)?,
                _ if is_empty(value.get()) => {}
                "tool_calls" => elements(value)?.into_iter().try_for_each(|call| self.call(call))?,
                "function_call" => self.function.get_or_insert_default().take(&Object::of(value).ok()?)?,
                // Whether a later piece of it adds to it or takes its place is not known.
                _ => return None,
            }
        }
        Some(())
    }

    fn call(&mut self, value: &RawValue) -> Option<()> {
        let object = Object::of(value).ok()?;
        // Without a number, nobody can say which call a piece belongs to.
        let call = self.calls.entry(object.get("index")?.get().parse().ok()?).or_default();
        for (key, value) in object.iter() {
            match key {
                "index" => {}
                "function" => call.function.take(&Object::of(value).ok()?)?,
                _ if value.get() == "null" => {}
                _ => call.other.once(key, value)?,
            }
        }
        Some(())
    }

    fn logprobs(&mut self, value: &RawValue) -> Option<()> {
        if value.get() == "null" {
            return Some(());
        }
        for (key, value) in Object::of(value).ok()?.iter() {
            let known = self.logprobs.entry(key.to_owned()).or_default();
            if value.get() != "null" {
                known.extend(elements(value)?.into_iter().map(|element| element.get().to_owned()));
            }
        }
        Some(())
    }

    fn finish(&self, index: u64, of_chat: bool) -> Option<String> {
        let mut choice = Parts::default();
        choice.put("index", index);
        if of_chat {
            choice.set("message", self.message().json());
        } else {
            choice.put("text", self.text.text()?);
        }
        let lists = self.logprobs.iter().map(|(key, values)| (key, list(values)));
        let mut logprobs = Parts::default();
        lists.for_each(|(key, values)| logprobs.set(key, values));
        choice.set("logprobs", if self.logprobs.is_empty() { "null".to_owned() } else { logprobs.json() });
        choice.set("finish_reason", self.finish_reason.as_deref()?);
        choice.extend(&self.other);
        Some(choice.json())
    }

    fn message(&self) -> Parts {
        let mut message = Parts::default();
        message.set("role", self.role.get("role").unwrap_or("\"assistant\""));
        for (name, text) in TEXTS.iter().zip(&self.texts) {
            match text.text() {
                Some(text) => message.put(name, text),
                None if *name == "content" => message.set(name, "null"),
                None => {}
            }
        }
        if !self.calls.is_empty() {
            message.set("tool_calls", list(self.calls.values().map(Call::finish)));
        }
        if let Some(function) = &self.function {
            message.set("function_call", function.finish());
        }
        message
    }
}

impl Call {
    fn finish(&self) -> String {
        let mut call = self.other.clone();
        call.set("function", self.function.finish());
        call.json()
    }
}

impl Function {
    fn take(&mut self, function: &Object<'_>) -> Option<()> {
        for (key, value) in function.iter() {
            match key {
                "arguments" => self.arguments.add(value)?,
                _ => self.name.once(key, value)?,
            }
        }
        Some(())
    }

    fn finish(&self) -> String {
        let mut function = self.name.clone();
        function.put("arguments", self.arguments.text().unwrap_or_default());
        function.json()
    }
}

pub(super) fn ending(whole: &[u8]) -> Ending {
    match json_read::from_slice::<Lenient<'_, Endings>>(whole) {
        Ok(Lenient::Map(Endings(endings))) => endings.into_iter().max().unwrap_or(Ending::Otherwise),
        _ => Ending::Otherwise,
    }
}

/// How the choices of an answer ended.
#[derive(Default)]
struct Endings(Vec<Ending>);

impl<'de> Shape<'de> for Endings {
    fn field<A: MapAccess<'de>>(&mut self, key: std::borrow::Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key == "choices" {
            if let Lenient::List(choices) = map.next_value::<Lenient<'_, Self>>()? {
                self.0 = choices.0;
            }
            return Ok(());
        }
        map.next_value::<Loose<'_>>().map(drop)
    }

    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(choice) = list.next_element::<Lenient<'_, Finish>>()? else { return Ok(false) };
        self.0.push(if let Lenient::Map(Finish(Some(ending))) = choice { ending } else { Ending::Otherwise });
        Ok(true)
    }
}

#[derive(Default)]
struct Finish(Option<Ending>);

impl<'de> Shape<'de> for Finish {
    fn field<A: MapAccess<'de>>(&mut self, key: std::borrow::Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let value = map.next_value::<Loose<'_>>()?;
        if key == "finish_reason" {
            self.0 = Some(match value.text().as_deref() {
                Some("stop" | "tool_calls" | "function_call") => Ending::Complete,
                Some("length") => Ending::ByLength,
                _ => Ending::Otherwise,
            });
        }
        Ok(())
    }
}
