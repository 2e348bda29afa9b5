//! What a request says about how it is to be routed, read as strictly as chat's.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::{IgnoredAny, MapAccess};

use crate::wire::openai::DecodeError;
use crate::wire::openai::lenient::{Lenient, Loose, Shape};
use crate::wire::openai::request::{Strict, flag, model_name, place_of, read_strictly};

/// The fields routing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The model as asked for, never empty.
    pub model: Cow<'a, str>,
    /// The caller wants events.
    pub stream: bool,
    /// The most tokens the answer may have, if the caller says.
    pub max_tokens: Option<u64>,
}

impl Facts<'_> {
    /// Where in `body`, the text these facts were read from, the model's name stands; `None` if it is spelled with
    /// escapes and so is not a stretch of it.
    pub fn model_at(&self, body: &[u8]) -> Option<Range<usize>> {
        place_of(&self.model, body)
    }

    /// The number every request for a message must carry. Requests to count tokens do not.
    ///
    /// # Errors
    ///
    /// When it is missing.
    pub fn needs_max_tokens(&self) -> Result<u64, DecodeError> {
        self.max_tokens
            .ok_or(DecodeError::of("max_tokens", "max_tokens is missing, say how many tokens to write at most"))
    }
}

/// Reads the fields routing needs; a missing `max_tokens` is for [`Facts::needs_max_tokens`] to refuse.
///
/// # Errors
///
/// As [`crate::wire::openai::peek_request`].
pub fn peek_request(body: &[u8], max_depth: usize) -> Result<Facts<'_>, DecodeError> {
    let fields: Fields<'_> = read_strictly(body, max_depth)?;
    let model = model_name(fields.model)?;
    let stream = flag(&fields.stream).ok_or(DecodeError::of("stream", "stream must be true or false"))?;
    let max_tokens = match fields.max_tokens {
        Lenient::Null => None,
        Lenient::Unsigned(number) => Some(number),
        _ => return Err(DecodeError::of("max_tokens", "max_tokens must be a whole number of at least 0")),
    };
    Ok(Facts { model, stream, max_tokens })
}

#[derive(Default)]
struct Fields<'de> {
    model: Loose<'de>,
    stream: Loose<'de>,
    max_tokens: Loose<'de>,
}

impl<'de> Strict<'de> for Fields<'de> {
    const READ: &'static [&'static str] = &["model", "stream", "max_tokens"];
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "model" => self.model = map.next_value()?,
            "stream" => self.stream = map.next_value()?,
            "max_tokens" => self.max_tokens = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}
