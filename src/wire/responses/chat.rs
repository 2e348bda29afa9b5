//! What a chat answer, or one chunk of it, says, piece by piece and in one pass.
//!
//! Only the first choice counts: a response has no place for others, and [`super::to_chat`] asks for one. It deliberately
//! does not read errors: what may be one is marked, and [`crate::wire::openai::peek_chunk`] knows all their forms.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::wire::json_read;
use crate::wire::openai::lenient::{Lenient, Loose, Shape};

/// An answer or a chunk.
#[derive(Default)]
pub(super) struct Chat<'de> {
    pub(super) model: Option<Cow<'de, str>>,
    pub(super) said: Said<'de>,
    pub(super) finish_reason: Option<Cow<'de, str>>,
    pub(super) usage: Option<Tokens>,
    /// There is a list of choices, however long.
    pub(super) has_choices: bool,
    /// There is at least one choice.
    pub(super) any: bool,
    /// It may be or hold an error.
    pub(super) suspect: bool,
}

impl<'de> Chat<'de> {
    /// `None` if the data is no JSON object.
    pub(super) fn read(data: &'de [u8]) -> Option<Self> {
        match json_read::from_slice::<Lenient<'_, Self>>(data) {
            Ok(Lenient::Map(chat)) => Some(chat),
            _ => None,
        }
    }
}

impl<'de> Shape<'de> for Chat<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "model" => self.model = map.next_value::<Loose<'_>>()?.text().filter(|model| !model.is_empty()),
            "choices" => {
                if let Lenient::List(Choices { first, any }) = map.next_value()? {
                    self.has_choices = true;
                    self.any = any;
                    self.suspect |= first.failed;
                    self.said = first.said;
                    self.finish_reason = first.finish_reason;
                }
            }
            "usage" => {
                if let Lenient::Map(tokens) = map.next_value()? {
                    self.usage = Some(tokens);
                }
            }
            "error" => self.suspect |= !matches!(map.next_value::<Loose<'_>>()?, Lenient::Null),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// The first choice of a list.
#[derive(Default)]
struct Choices<'de> {
    first: Choice<'de>,
    any: bool,
}

impl<'de> Shape<'de> for Choices<'de> {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(choice) = list.next_element::<Lenient<'_, Choice<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(choice) = choice
            && !self.any
            && matches!(choice.index, None | Some(0))
        {
            self.any = true;
            self.first = choice;
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Choice<'de> {
    index: Option<u64>,
    said: Said<'de>,
    finish_reason: Option<Cow<'de, str>>,
    failed: bool,
}

impl<'de> Shape<'de> for Choice<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "index" => self.index = map.next_value::<Loose<'_>>()?.unsigned(),
            "delta" | "message" => {
                if let Lenient::Map(said) = map.next_value()? {
                    self.said = said;
                }
            }
            "finish_reason" => {
                self.finish_reason = map.next_value::<Loose<'_>>()?.text().filter(|reason| !reason.is_empty());
                self.failed |= self.finish_reason.as_deref() == Some("error");
            }
            "error" => self.failed |= !matches!(map.next_value::<Loose<'_>>()?, Lenient::Null),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// A message, or a piece of one.
#[derive(Default)]
pub(super) struct Said<'de> {
    pub(super) text: Texts<'de>,
    pub(super) refusal: Texts<'de>,
    pub(super) calls: Vec<CallPiece<'de>>,
    reasoning_content: Texts<'de>,
    reasoning: Texts<'de>,
}

impl Said<'_> {
    /// What the model thought. Some providers send it under both names at once.
    pub(super) fn reasoning(&self) -> &[Cow<'_, str>] {
        if self.reasoning_content.0.is_empty() { &self.reasoning.0 } else { &self.reasoning_content.0 }
    }
}

impl<'de> Shape<'de> for Said<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "content" => self.text = Texts::of(map.next_value()?),
            "refusal" => self.refusal = Texts::of(map.next_value()?),
            "reasoning_content" => self.reasoning_content = Texts::of(map.next_value()?),
            "reasoning" => self.reasoning = Texts::of(map.next_value()?),
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

/// The texts of a field that is a string or a list of parts; none of them is empty.
#[derive(Default)]
pub(super) struct Texts<'de>(pub(super) Vec<Cow<'de, str>>);

impl<'de> Texts<'de> {
    fn of(value: Lenient<'de, Self>) -> Self {
        match value {
            Lenient::Text(text) if !text.is_empty() => Self(vec![text]),
            Lenient::List(texts) => texts,
            _ => Self::default(),
        }
    }
}

impl<'de> Shape<'de> for Texts<'de> {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(part) = list.next_element::<Lenient<'_, TextPart<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(TextPart(Some(text))) = part {
            self.0.push(text);
        }
        Ok(true)
    }
}

#[derive(Default)]
struct TextPart<'de>(Option<Cow<'de, str>>);

impl<'de> Shape<'de> for TextPart<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key == "text" {
            self.0 = map.next_value::<Loose<'_>>()?.text().filter(|text| !text.is_empty());
            return Ok(());
        }
        map.next_value::<IgnoredAny>().map(drop)
    }
}

/// A call of a tool, or a piece of one. In a stream the first piece has the id and the name.
#[derive(Default)]
pub(super) struct CallPiece<'de> {
    pub(super) index: Option<u64>,
    pub(super) id: Option<Cow<'de, str>>,
    pub(super) name: Option<Cow<'de, str>>,
    pub(super) arguments: Option<Cow<'de, str>>,
}

#[derive(Default)]
struct Calls<'de>(Vec<CallPiece<'de>>);

impl<'de> Shape<'de> for Calls<'de> {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(call) = list.next_element::<Lenient<'_, CallPiece<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(call) = call {
            self.0.push(call);
        }
        Ok(true)
    }
}

impl<'de> Shape<'de> for CallPiece<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let filled = |value: Loose<'de>| value.text().filter(|text| !text.is_empty());
        match key.as_ref() {
            "index" => self.index = map.next_value::<Loose<'_>>()?.unsigned(),
            "id" => self.id = filled(map.next_value()?),
            "function" => {
                if let Lenient::Map(Function { name, arguments }) = map.next_value()? {
                    self.name = name.and_then(filled);
                    self.arguments = arguments.and_then(filled);
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Function<'de> {
    name: Option<Loose<'de>>,
    arguments: Option<Loose<'de>>,
}

impl<'de> Shape<'de> for Function<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "name" => self.name = Some(map.next_value()?),
            "arguments" => self.arguments = Some(map.next_value()?),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// Token counts with their breakdown.
#[derive(Clone, Copy, Default)]
pub(super) struct Tokens {
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) total: Option<u64>,
    pub(super) cached: u64,
    pub(super) cache_written: u64,
    pub(super) reasoning: u64,
}

impl<'de> Shape<'de> for Tokens {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "prompt_tokens" => self.input = map.next_value::<Loose<'_>>()?.unsigned(),
            "completion_tokens" => self.output = map.next_value::<Loose<'_>>()?.unsigned(),
            "total_tokens" => self.total = map.next_value::<Loose<'_>>()?.unsigned(),
            // DeepSeek's name for it, beside which it sends no details.
            "prompt_cache_hit_tokens" => self.cached = map.next_value::<Loose<'_>>()?.unsigned().unwrap_or(self.cached),
            "prompt_tokens_details" | "completion_tokens_details" => {
                if let Lenient::Map(Details { cached, cache_written, reasoning }) = map.next_value()? {
                    self.cached = cached.unwrap_or(self.cached);
                    self.cache_written = cache_written.unwrap_or(self.cache_written);
                    self.reasoning = reasoning.unwrap_or(self.reasoning);
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Details {
    cached: Option<u64>,
    cache_written: Option<u64>,
    reasoning: Option<u64>,
}

impl<'de> Shape<'de> for Details {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "cached_tokens" => self.cached = map.next_value::<Loose<'_>>()?.unsigned(),
            "cache_write_tokens" => self.cache_written = map.next_value::<Loose<'_>>()?.unsigned(),
            "reasoning_tokens" => self.reasoning = map.next_value::<Loose<'_>>()?.unsigned(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}
