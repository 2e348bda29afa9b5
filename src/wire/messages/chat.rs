//! What a chat completion, or one chunk of it, says, read leniently.
//!
//! Only the first choice is read: a request for a message asks for one.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess};
use serde_json::value::RawValue;

use super::form::StopReason;
use crate::wire::openai::lenient::{Lenient, Loose, Shape};

/// An answer or a chunk.
#[derive(Default)]
pub(super) struct Completion<'de> {
    /// The first choice, if there is any.
    pub(super) choice: Option<Choice<'de>>,
    pub(super) usage: Option<Counts>,
}

impl<'de> Completion<'de> {
    /// `None` if the text is no JSON object. Arguments are read raw, which only serde's own reader can do.
    pub(super) fn read(json: &'de [u8]) -> Option<Self> {
        match serde_json::from_slice::<Lenient<'_, Self>>(json) {
            Ok(Lenient::Map(completion)) => Some(completion),
            _ => None,
        }
    }
}

impl<'de> Shape<'de> for Completion<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "choices" => {
                if let Lenient::List(Choices(choice)) = map.next_value()? {
                    self.choice = choice;
                }
            }
            "usage" => {
                if let Lenient::Map(usage) = map.next_value()? {
                    self.usage = Some(usage);
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Choices<'de>(Option<Choice<'de>>);

impl<'de> Shape<'de> for Choices<'de> {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(choice) = list.next_element::<Lenient<'_, Choice<'_>>>()? else { return Ok(false) };
        if let (None, Lenient::Map(choice)) = (&self.0, choice) {
            self.0 = Some(choice).filter(|choice| choice.index.unsigned().unwrap_or_default() == 0);
        }
        Ok(true)
    }
}

#[derive(Default)]
pub(super) struct Choice<'de> {
    index: Loose<'de>,
    pub(super) said: Said<'de>,
    pub(super) finish_reason: Option<Cow<'de, str>>,
}

impl<'de> Shape<'de> for Choice<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "index" => self.index = map.next_value()?,
            "delta" | "message" => {
                if let Lenient::Map(said) = map.next_value()? {
                    self.said = said;
                }
            }
            "finish_reason" => self.finish_reason = map.next_value::<Loose<'_>>()?.text(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// A message or a piece of one.
#[derive(Default)]
pub(super) struct Said<'de> {
    /// `reasoning_content`, or `reasoning` of those that call it so. Some send both, with the same text.
    pub(super) thinking: Cow<'de, str>,
    pub(super) text: Cow<'de, str>,
    pub(super) refusal: Cow<'de, str>,
    pub(super) calls: Vec<Call<'de>>,
}

impl<'de> Shape<'de> for Said<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "content" => self.text = texts(map.next_value()?),
            "reasoning_content" | "reasoning" => {
                let thinking = texts(map.next_value()?);
                if self.thinking.is_empty() {
                    self.thinking = thinking;
                }
            }
            "refusal" => self.refusal = texts(map.next_value()?),
            "tool_calls" => {
                if let Lenient::List(Calls(calls)) = map.next_value()? {
                    self.calls = calls;
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// A text, or the texts of a list of parts.
fn texts(field: Lenient<'_, Parts>) -> Cow<'_, str> {
    match field {
        Lenient::Text(text) => text,
        Lenient::List(Parts(text)) => Cow::Owned(text),
        _ => Cow::default(),
    }
}

#[derive(Default)]
struct Parts(String);

impl<'de> Shape<'de> for Parts {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(part) = list.next_element::<Lenient<'_, Part<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(Part(text)) = part {
            self.0.push_str(&text);
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Part<'de>(Cow<'de, str>);

impl<'de> Shape<'de> for Part<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key != "text" {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        self.0 = map.next_value::<Loose<'_>>()?.text().unwrap_or_default();
        Ok(())
    }
}

#[derive(Default)]
struct Calls<'de>(Vec<Call<'de>>);

impl<'de> Shape<'de> for Calls<'de> {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(call) = list.next_element::<Lenient<'_, Call<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(call) = call {
            self.0.push(call);
        }
        Ok(true)
    }
}

/// A tool call or a piece of one.
#[derive(Default)]
pub(super) struct Call<'de> {
    pub(super) index: Option<u64>,
    pub(super) id: Cow<'de, str>,
    pub(super) function: Function<'de>,
}

impl<'de> Shape<'de> for Call<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "index" => self.index = map.next_value::<Loose<'_>>()?.unsigned(),
            "id" => self.id = map.next_value::<Loose<'_>>()?.text().unwrap_or_default(),
            "function" => {
                if let Lenient::Map(function) = map.next_value()? {
                    self.function = function;
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct Function<'de> {
    pub(super) name: Cow<'de, str>,
    /// JSON, or a piece of it. A few servers send the object itself instead of its text.
    pub(super) arguments: Cow<'de, str>,
}

impl<'de> Shape<'de> for Function<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "name" => self.name = map.next_value::<Loose<'_>>()?.text().unwrap_or_default(),
            "arguments" => {
                let raw: &'de RawValue = map.next_value()?;
                self.arguments = match raw.get().as_bytes().first() {
                    Some(b'"') => Loose::deserialize(raw).ok().and_then(Lenient::text).unwrap_or_default(),
                    Some(b'{') => Cow::Borrowed(raw.get()),
                    _ => Cow::default(),
                };
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// Token counts. What came from the provider's cache is within the prompt.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) prompt: u64,
    pub(super) cached: u64,
    pub(super) completion: u64,
}

impl<'de> Shape<'de> for Counts {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "prompt_tokens" => self.prompt = number(map)?,
            "completion_tokens" => self.completion = number(map)?,
            "prompt_tokens_details" => {
                if let Lenient::Map(Details(cached)) = map.next_value()? {
                    self.cached = cached;
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Details(u64);

impl<'de> Shape<'de> for Details {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key != "cached_tokens" {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        self.0 = number(map)?;
        Ok(())
    }
}

fn number<'de, A: MapAccess<'de>>(map: &mut A) -> Result<u64, A::Error> {
    Ok(map.next_value::<Loose<'_>>()?.unsigned().unwrap_or_default())
}

/// Why a message ends, from what chat said, whether it refused and whether it called a tool.
pub(super) fn stop_reason(finish_reason: Option<&str>, refused: bool, called: bool) -> StopReason {
    match finish_reason {
        Some("length") => StopReason::MaxTokens,
        Some("content_filter") => StopReason::Refusal,
        _ if refused => StopReason::Refusal,
        Some("tool_calls" | "function_call") => StopReason::ToolUse,
        // Some servers say `stop` whatever the model did, and clients run tools only on the right word.
        _ if called => StopReason::ToolUse,
        _ => StopReason::EndTurn,
    }
}
