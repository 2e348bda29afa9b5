//! What a provider's message, or one event of its stream, says about itself, read leniently.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::domain::usage::Usage;
use crate::wire::json_read;
use crate::wire::openai::EmbeddedError;
use crate::wire::openai::failure::{ErrorParts, embedded};
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::sse::Event;

/// The type of the terminal event.
const LAST: &str = "message_stop";

/// What one event of a stream holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EventFacts {
    /// Something the model said: text, thinking, a tool call. Starts of messages and of empty blocks and pings are not.
    pub content: bool,
    /// Why the message ends.
    pub stop: Option<Stop>,
    /// The provider reports a failure in it.
    pub error: Option<EmbeddedError>,
    /// The token counts it has. They come in parts: [`Tokens::absorb`] puts them together.
    pub tokens: Tokens,
    /// It is the terminal event.
    pub terminal: bool,
    /// It is a JSON object. If not, the rest of these facts is empty.
    pub json: bool,
}

/// What a whole message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageFacts<'a> {
    /// Something the model said.
    pub content: bool,
    /// Why it ended.
    pub stop: Option<Stop>,
    /// The provider reports a failure in it, whatever the status said.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any.
    pub usage: Option<Usage>,
    /// The model as the provider names it.
    pub model: Option<Cow<'a, str>>,
}

/// The meaning of a stop reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// `end_turn`, `tool_use`, `stop_sequence`: the model said all it wanted.
    Complete,
    /// `max_tokens`, `refusal`, `pause_turn`, `model_context_window_exceeded`: it was cut, possibly before its first
    /// word, and that is the answer.
    CutOnPurpose,
    /// A reason nobody told us about.
    Unknown,
}

impl Stop {
    fn read(reason: &str) -> Self {
        match reason {
            "end_turn" | "tool_use" | "stop_sequence" => Self::Complete,
            "max_tokens" | "refusal" | "pause_turn" | "model_context_window_exceeded" => Self::CutOnPurpose,
            _ => Self::Unknown,
        }
    }
}

/// Token counts as this form splits them: what was read from or written to the prompt cache is not in `input`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tokens {
    /// Prompt tokens outside the cache.
    pub input: Option<u64>,
    /// Prompt tokens written to the cache.
    pub cache_creation: Option<u64>,
    /// Prompt tokens read from the cache.
    pub cache_read: Option<u64>,
    /// Answer tokens, thinking included.
    pub output: Option<u64>,
}

impl Tokens {
    /// Takes the counts of a later event of the same stream. They are running totals, and those left out still hold.
    pub fn absorb(&mut self, later: Self) {
        self.input = later.input.or(self.input);
        self.cache_creation = later.cache_creation.or(self.cache_creation);
        self.cache_read = later.cache_read.or(self.cache_read);
        self.output = later.output.or(self.output);
    }

    /// The counts as chat has them, the cache's share within the prompt; `None` if there are none.
    pub fn usage(&self) -> Option<Usage> {
        let parts = [self.input, self.cache_creation, self.cache_read];
        let input = parts.into_iter().flatten().reduce(u64::saturating_add);
        let usage = Usage { input_tokens: input, cached_input_tokens: self.cache_read, output_tokens: self.output };
        Some(usage).filter(|usage| !usage.is_empty())
    }
}

impl<'de> Shape<'de> for Tokens {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        let place = match key.as_ref() {
            "input_tokens" => &mut self.input,
            "cache_creation_input_tokens" => &mut self.cache_creation,
            "cache_read_input_tokens" => &mut self.cache_read,
            "output_tokens" => &mut self.output,
            _ => return map.next_value::<IgnoredAny>().map(drop),
        };
        *place = map.next_value::<Loose<'_>>()?.unsigned();
        Ok(())
    }
}

/// Reads a whole message; `None` if it is no JSON object.
pub fn peek_reply(body: &[u8]) -> Option<MessageFacts<'_>> {
    let Ok(Lenient::Map(message)) = json_read::from_slice::<Lenient<'_, Message<'_>>>(body) else { return None };
    let failed = message.kind.as_deref() == Some("error");
    Some(MessageFacts {
        content: message.content,
        stop: message.stop,
        error: embedded(message.error).or_else(|| failed.then(EmbeddedError::default)),
        usage: message.tokens.usage(),
        model: message.model,
    })
}

/// Reads one event; whatever is odd about it, the rest is still read.
pub fn peek_event(event: &Event) -> EventFacts {
    let Some(data) = event.data() else { return EventFacts::default() };
    let Ok(Lenient::Map(fields)) = json_read::from_slice::<Lenient<'_, Fields<'_>>>(&data) else {
        return EventFacts::default();
    };
    let kind = fields.kind.as_deref().or_else(|| event.event_type()).unwrap_or_default();
    let mut tokens = fields.message.tokens;
    tokens.absorb(fields.tokens);
    EventFacts {
        content: match kind {
            "content_block_start" => fields.block.is_content(),
            "content_block_delta" => fields.delta.said,
            _ => false,
        },
        stop: fields.delta.stop,
        error: embedded(fields.error).or_else(|| (kind == "error").then(EmbeddedError::default)),
        tokens,
        terminal: kind == LAST,
        json: true,
    }
}

/// True for the event that ends a stream well, as [`Event::is_done`] is for chat. Reads the `event:` line alone, which
/// every event of this form has.
pub fn is_last_event(event: &Event) -> bool {
    event.event_type() == Some(LAST)
}

/// A message, whole or as a stream starts it.
#[derive(Default)]
struct Message<'de> {
    kind: Option<Cow<'de, str>>,
    content: bool,
    stop: Option<Stop>,
    error: Lenient<'de, ErrorParts<'de>>,
    tokens: Tokens,
    model: Option<Cow<'de, str>>,
}

impl<'de> Shape<'de> for Message<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "type" => self.kind = map.next_value::<Loose<'_>>()?.text(),
            "content" => {
                if let Lenient::List(Blocks(content)) = map.next_value()? {
                    self.content = content;
                }
            }
            "stop_reason" => self.stop = stop(map)?,
            "error" => self.error = map.next_value()?,
            "usage" => self.tokens = tokens(map)?,
            "model" => self.model = map.next_value::<Loose<'_>>()?.text(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

fn stop<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Stop>, A::Error> {
    Ok(map.next_value::<Loose<'_>>()?.text().map(|reason| Stop::read(&reason)))
}

fn tokens<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Tokens, A::Error> {
    Ok(match map.next_value()? {
        Lenient::Map(tokens) => tokens,
        _ => Tokens::default(),
    })
}

/// Whether any of a message's blocks says something.
#[derive(Default)]
struct Blocks(bool);

impl<'de> Shape<'de> for Blocks {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(block) = list.next_element::<Lenient<'_, Block<'_>>>()? else { return Ok(false) };
        self.0 |= matches!(block, Lenient::Map(block) if block.is_content());
        Ok(true)
    }
}

#[derive(Default)]
struct Block<'de> {
    kind: Option<Cow<'de, str>>,
    said: bool,
}

impl Block<'_> {
    /// Text and thinking may be empty; a block of any other type is itself what the model did.
    fn is_content(&self) -> bool {
        self.said || self.kind.as_deref().is_some_and(|kind| !matches!(kind, "text" | "thinking"))
    }
}

impl<'de> Shape<'de> for Block<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "type" => self.kind = map.next_value::<Loose<'_>>()?.text(),
            "text" | "thinking" => self.said |= map.next_value::<Loose<'_>>()?.is_filled(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// The `delta` of a block or of the message.
#[derive(Default)]
struct Delta {
    said: bool,
    stop: Option<Stop>,
}

impl<'de> Shape<'de> for Delta {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "text" | "thinking" | "partial_json" => self.said |= map.next_value::<Loose<'_>>()?.is_filled(),
            "stop_reason" => self.stop = stop(map)?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// The members of an event.
#[derive(Default)]
struct Fields<'de> {
    kind: Option<Cow<'de, str>>,
    message: Message<'de>,
    block: Block<'de>,
    delta: Delta,
    tokens: Tokens,
    error: Lenient<'de, ErrorParts<'de>>,
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "type" => self.kind = map.next_value::<Loose<'_>>()?.text(),
            "message" => {
                if let Lenient::Map(message) = map.next_value()? {
                    self.message = message;
                }
            }
            "content_block" => {
                if let Lenient::Map(block) = map.next_value()? {
                    self.block = block;
                }
            }
            "delta" => {
                if let Lenient::Map(delta) = map.next_value()? {
                    self.delta = delta;
                }
            }
            "usage" => self.tokens = tokens(map)?,
            "error" => self.error = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}
