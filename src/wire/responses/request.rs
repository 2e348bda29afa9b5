//! What a request says about how it is to be routed, read strictly.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{IgnoredAny, MapAccess};

use crate::wire::openai::DecodeError;
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::openai::request::{Strict, flag, model_name, place_of, read_strictly};

/// The fields routing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// The model as asked for, never empty.
    pub model: Cow<'a, str>,
    /// The caller wants events.
    pub stream: bool,
    /// It continues a response the provider keeps, so only that provider can answer.
    pub has_previous_response: bool,
    /// It belongs to a conversation the provider keeps, so only that provider can answer.
    pub has_conversation: bool,
    /// Whether the provider is to keep the response; `None` leaves it to the provider, and OpenAI does.
    pub store: Option<bool>,
    /// The answer is to be made while nobody waits.
    pub background: bool,
}

impl RequestFacts<'_> {
    /// Where in `body`, the text these facts were read from, the model's name stands; `None` if it is spelled with
    /// escapes and so is not a stretch of it.
    pub fn model_at(&self, body: &[u8]) -> Option<Range<usize>> {
        place_of(&self.model, body)
    }
}

/// Reads the fields routing needs, as strictly as [`crate::wire::openai::peek_request`].
///
/// # Errors
///
/// When the body is not a UTF-8 JSON object, nests deeper than `max_depth`, has a top-level key twice or more than 256,
/// spells a field we read in other letter case, or gives one a wrong type.
pub fn peek_request(body: &[u8], max_depth: usize) -> Result<RequestFacts<'_>, DecodeError> {
    read_strictly::<Fields<'_>>(body, max_depth)?.facts()
}

#[derive(Default)]
struct Fields<'de> {
    model: Loose<'de>,
    stream: Loose<'de>,
    previous_response_id: Loose<'de>,
    conversation: Loose<'de>,
    store: Loose<'de>,
    background: Loose<'de>,
}

impl<'de> Strict<'de> for Fields<'de> {
    const READ: &'static [&'static str] =
        &["model", "stream", "previous_response_id", "conversation", "store", "background"];
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "model" => self.model = map.next_value()?,
            "stream" => self.stream = map.next_value()?,
            "previous_response_id" => self.previous_response_id = map.next_value()?,
            "conversation" => self.conversation = map.next_value()?,
            "store" => self.store = map.next_value()?,
            "background" => self.background = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> {
    fn facts(self) -> Result<RequestFacts<'de>, DecodeError> {
        let has_previous_response = match self.previous_response_id {
            Lenient::Null => false,
            Lenient::Text(_) => true,
            _ => return Err(DecodeError::of("previous_response_id", "previous_response_id must be a string")),
        };
        let has_conversation = match self.conversation {
            Lenient::Null => false,
            Lenient::Text(_) | Lenient::Map(_) => true,
            _ => return Err(DecodeError::of("conversation", "conversation must be a string or an object")),
        };
        let store = match self.store {
            Lenient::Null => None,
            Lenient::Bool(store) => Some(store),
            _ => return Err(DecodeError::of("store", "store must be true or false")),
        };
        Ok(RequestFacts {
            model: model_name(self.model)?,
            stream: flag(&self.stream).ok_or(DecodeError::of("stream", "stream must be true or false"))?,
            has_previous_response,
            has_conversation,
            store,
            background: flag(&self.background)
                .ok_or(DecodeError::of("background", "background must be true or false"))?,
        })
    }
}
