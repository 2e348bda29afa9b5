//! What a provider's own response, or one event of it, says about itself, read leniently.
//!
//! A stream opens with events that hold nothing yet, and quota errors come after them: content is what the model said,
//! not that it is about to speak (maximhq/bifrost#5395).

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::domain::usage::Usage;
use crate::wire::json_read;
use crate::wire::openai::EmbeddedError;
use crate::wire::openai::failure::{ErrorParts, embedded};
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::openai::reply::Counts;
use crate::wire::sse::Event;

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Completed,
    /// Cut by the token limit or a content filter. What there is, counts.
    Incomplete,
    /// It failed or was cancelled.
    Failed,
}

/// What a whole response holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyFacts<'a> {
    /// Something the model said: text, a refusal, a reasoning summary, a call of any kind.
    pub content: bool,
    /// How it ended; `None` if it goes on or does not say.
    pub ending: Option<Ending>,
    /// The provider reports a failure in it, whatever the status said. Always there if it failed.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any.
    pub usage: Option<Usage>,
    /// The model as the provider names it.
    pub model: Option<Cow<'a, str>>,
}

/// What one event of a stream holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EventFacts {
    /// Something the model said: a filled delta, a call that begins, an item that is done and not empty.
    pub content: bool,
    /// It is the terminal event, and this is how the response ended.
    pub ending: Option<Ending>,
    /// The provider reports a failure in it. Always there if the ending is a failure.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any.
    pub usage: Option<Usage>,
    /// Its data is a JSON object. If not, the rest of these facts is empty.
    pub json: bool,
}

/// Reads a whole response; `None` if it is no JSON object.
pub fn peek_reply(body: &[u8]) -> Option<ReplyFacts<'_>> {
    let Ok(Lenient::Map(body)) = json_read::from_slice::<Lenient<'_, Body<'_>>>(body) else { return None };
    let ending = body.status.as_deref().and_then(ending_of);
    let error = embedded(body.error).or_else(|| (ending == Some(Ending::Failed)).then(EmbeddedError::default));
    let usage = Some(body.usage.0).filter(|usage| !usage.is_empty());
    Some(ReplyFacts { content: body.content, ending, error, usage, model: body.model })
}

/// Reads one event; whatever is odd about it, the rest is still read. The data says what it is, the `event:` line only
/// if the data does not.
pub fn peek_event(event: &Event) -> EventFacts {
    let Some(data) = event.data() else { return EventFacts::default() };
    let Ok(Lenient::Map(fields)) = json_read::from_slice::<Lenient<'_, Fields<'_>>>(&data) else {
        return EventFacts::default();
    };
    let kind = fields.kind.text();
    let kind = kind.as_deref().or_else(|| event.event_type()).unwrap_or_default();
    let Body { error: inner, content, usage, .. } = fields.response;
    let ending = match kind {
        "error" => Some(Ending::Failed),
        _ => kind.strip_prefix("response.").and_then(ending_of),
    };
    let flat = || (kind == "error").then(|| fields.flat.into_error());
    let error = embedded(inner).or_else(|| embedded(fields.error)).or_else(flat);
    let error = error.or_else(|| (ending == Some(Ending::Failed)).then(EmbeddedError::default));
    let verb = kind.rsplit('.').next();
    let speaks = matches!(verb, Some("delta" | "done" | "partial_image"));
    let content = content || fields.item || (speaks && fields.filled);
    EventFacts { content, ending, error, usage: Some(usage.0).filter(|usage| !usage.is_empty()), json: true }
}

fn ending_of(status: &str) -> Option<Ending> {
    match status {
        "completed" => Some(Ending::Completed),
        "incomplete" => Some(Ending::Incomplete),
        "failed" | "cancelled" => Some(Ending::Failed),
        _ => None,
    }
}

/// The members of an event.
#[derive(Default)]
struct Fields<'de> {
    kind: Loose<'de>,
    response: Body<'de>,
    item: bool,
    filled: bool,
    error: Lenient<'de, ErrorParts<'de>>,
    flat: ErrorParts<'de>,
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "type" => self.kind = map.next_value()?,
            "response" => {
                if let Lenient::Map(response) = map.next_value()? {
                    self.response = response;
                }
            }
            "item" => {
                if let Lenient::Map(item) = map.next_value::<Lenient<'_, Item<'_>>>()? {
                    self.item = item.says();
                }
            }
            "delta" | "text" | "refusal" | "arguments" | "input" | "code" | "transcript" | "partial_image_b64" => {
                return self.said(&key, map);
            }
            "error" => self.error = map.next_value()?,
            _ => return self.flat.field(key, map),
        }
        Ok(())
    }
}

impl<'de> Fields<'de> {
    /// A piece of content. `code` is one too, of a program, and besides that the word for an error.
    fn said<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let value: Loose<'_> = map.next_value()?;
        self.filled |= value.is_filled();
        if key == "code" {
            self.flat.set_code(value);
        }
        Ok(())
    }
}

/// The members of a response.
#[derive(Default)]
struct Body<'de> {
    status: Option<Cow<'de, str>>,
    model: Option<Cow<'de, str>>,
    content: bool,
    usage: Counts,
    error: Lenient<'de, ErrorParts<'de>>,
}

impl<'de> Shape<'de> for Body<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "status" => self.status = map.next_value::<Loose<'_>>()?.text(),
            "model" => self.model = map.next_value::<Loose<'_>>()?.text(),
            "error" => self.error = map.next_value()?,
            "output" => {
                if let Lenient::List(Output(content)) = map.next_value()? {
                    self.content = content;
                }
            }
            "usage" => {
                if let Lenient::Map(usage) = map.next_value()? {
                    self.usage = usage;
                }
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// Whether any item of a list says something.
#[derive(Default)]
struct Output(bool);

impl<'de> Shape<'de> for Output {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(item) = list.next_element::<Lenient<'_, Item<'_>>>()? else { return Ok(false) };
        if let Lenient::Map(item) = item {
            self.0 |= item.says();
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Item<'de> {
    kind: Option<Cow<'de, str>>,
    /// Some part of its content or summary is not empty.
    filled: bool,
}

impl Item<'_> {
    /// Messages and reasoning are announced empty; every other item is a call.
    fn says(&self) -> bool {
        self.filled || !matches!(self.kind.as_deref(), None | Some("message" | "reasoning"))
    }
}

impl<'de> Shape<'de> for Item<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "type" => self.kind = map.next_value::<Loose<'_>>()?.text(),
            "content" | "summary" => {
                let parts: Lenient<'_, Parts> = map.next_value()?;
                self.filled |= match parts {
                    Lenient::List(Parts(filled)) => filled,
                    Lenient::Text(text) => !text.is_empty(),
                    _ => false,
                };
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// Whether any part of a list is not empty.
#[derive(Default)]
struct Parts(bool);

impl<'de> Shape<'de> for Parts {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(part) = list.next_element::<Lenient<'_, Part>>()? else { return Ok(false) };
        if let Lenient::Map(Part(filled)) = part {
            self.0 |= filled;
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Part(bool);

impl<'de> Shape<'de> for Part {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "text" | "refusal" | "transcript" | "data" => self.0 |= map.next_value::<Loose<'_>>()?.is_filled(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}
