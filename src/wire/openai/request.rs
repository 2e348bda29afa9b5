//! What a request says about how it is to be routed, read strictly.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess};

use super::lenient::{Lenient, Loose, Members, Shape};
use crate::wire::json_read;

/// Top-level keys one request may have. Real ones have a few dozen at most; each is compared with all before it.
const MAX_KEYS: usize = 256;
/// How many most requests have.
const USUAL_KEYS: usize = 16;

/// The fields routing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// The model as asked for, never empty.
    pub model: Cow<'a, str>,
    /// The caller wants events.
    pub stream: bool,
    /// The caller wants the chunk with the token counts.
    pub include_usage: bool,
    /// There is a `stream_options` object.
    pub has_stream_options: bool,
    /// How many answers, 1 unless the caller says otherwise.
    pub n: u64,
}

impl RequestFacts<'_> {
    /// Where in `body`, the text these facts were read from, the model's name stands; `None` if it is spelled with
    /// escapes and so is not a stretch of it.
    pub fn model_at(&self, body: &[u8]) -> Option<std::ops::Range<usize>> {
        place_of(&self.model, body)
    }
}

/// Where in `body` a text read from it stands; `None` if it was spelled with escapes and so had to be copied.
pub(in crate::wire) fn place_of(text: &str, body: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = text.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
    let range = start..start.checked_add(text.len())?;
    (body.get(range.clone())? == text.as_bytes()).then_some(range)
}

/// Why a request is refused with 400. Says nothing of the body's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// What is wrong and what to send instead.
    pub message: &'static str,
    /// The field it is about.
    pub param: Option<&'static str>,
    /// Line and column, both from 1, when the body is not JSON.
    pub position: Option<(usize, usize)>,
}

impl DecodeError {
    pub(in crate::wire) fn of(param: &'static str, message: &'static str) -> Self {
        Self { message, param: Some(param), position: None }
    }

    pub(in crate::wire) fn whole(message: &'static str) -> Self {
        Self { message, param: None, position: None }
    }
}

/// Reads the fields routing needs, in one pass over the body.
///
/// # Errors
///
/// When the body is not a UTF-8 JSON object, nests deeper than `max_depth`, has a top-level key twice or more than 256,
/// spells a field we read in other letter case, or gives one a wrong type.
pub fn peek_request(body: &[u8], max_depth: usize) -> Result<RequestFacts<'_>, DecodeError> {
    read_strictly::<Fields<'_>>(body, max_depth)?.facts()
}

/// The members of a request that are read, for [`read_strictly`].
pub(in crate::wire) trait Strict<'de>: Shape<'de> {
    /// The fields whose value is acted on. A second spelling of one of these could mean something else to the provider.
    const READ: &'static [&'static str];
}

/// Reads a request body whose top-level keys must each come once and in their own spelling.
pub(in crate::wire) fn read_strictly<'de, F: Strict<'de>>(body: &'de [u8], max_depth: usize) -> Result<F, DecodeError> {
    let text = simdutf8::basic::from_utf8(body).map_err(|_| DecodeError::whole("the body must be JSON in UTF-8"))?;
    let mut keyed = Keyed::<'_, F>::default();
    match json_read::fill_from_str(text, max_depth, Members(&mut keyed)) {
        Ok(true) => keyed.wrong.map_or(Ok(keyed.fields), Err),
        Ok(false) => Err(DecodeError::whole("the body must be a JSON object")),
        Err(json_read::Malformed) => Err(malformed(text, max_depth)),
    }
}

/// Reads it once more, slowly, to say what is wrong: it may be JSON and still not be ours to read.
fn malformed(text: &str, max_depth: usize) -> DecodeError {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(IgnoredAny) if json_read::from_str::<IgnoredAny>(text, max_depth).is_ok() => {
            DecodeError::whole("the body holds a text or a number that cannot be read")
        }
        Ok(IgnoredAny) => DecodeError::whole("the body is nested too deeply, send fewer levels"),
        Err(error) => {
            let position = Some((error.line(), error.column()));
            DecodeError { message: "the body is not valid JSON", param: None, position }
        }
    }
}

/// The fields of a request and the keys they came under.
#[derive(Default)]
struct Keyed<'de, F> {
    seen: Vec<Cow<'de, str>>,
    wrong: Option<DecodeError>,
    fields: F,
}

impl<'de, F: Strict<'de>> Shape<'de> for Keyed<'de, F> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if self.wrong.is_none() {
            self.wrong = self.objection(&key);
        }
        if self.wrong.is_none() {
            if self.seen.is_empty() {
                self.seen.reserve(USUAL_KEYS);
            }
            self.seen.push(key.clone());
        }
        self.fields.field(key, map)
    }
}

impl<'de, F: Strict<'de>> Keyed<'de, F> {
    /// What is wrong with one more key.
    fn objection(&self, key: &str) -> Option<DecodeError> {
        let read = F::READ.iter().copied().find(|read| folds_to(key, read));
        if self.seen.iter().any(|seen| seen == key) {
            return Some(DecodeError {
                param: read,
                ..DecodeError::whole("a top-level key appears twice, send it once")
            });
        }
        if let Some(read) = read.filter(|read| *read != key) {
            return Some(DecodeError::of(read, "a field is spelt in another letter case, write it in lower case"));
        }
        (self.seen.len() >= MAX_KEYS).then(|| DecodeError::whole("the body has too many top-level keys"))
    }
}

#[derive(Default)]
struct Fields<'de> {
    model: Loose<'de>,
    stream: Loose<'de>,
    stream_options: Lenient<'de, StreamOptions<'de>>,
    n: Loose<'de>,
}

impl<'de> Strict<'de> for Fields<'de> {
    const READ: &'static [&'static str] = &["model", "stream", "stream_options", "n"];
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "model" => self.model = map.next_value()?,
            "stream" => self.stream = map.next_value()?,
            "stream_options" => self.stream_options = map.next_value()?,
            "n" => self.n = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> {
    fn facts(self) -> Result<RequestFacts<'de>, DecodeError> {
        let model = model_name(self.model)?;
        let stream = flag(&self.stream).ok_or(DecodeError::of("stream", "stream must be true or false"))?;
        let (has_stream_options, include_usage) = match self.stream_options {
            Lenient::Null => (false, false),
            Lenient::Map(options) => (true, options.include_usage()?),
            _ => return Err(DecodeError::of("stream_options", "stream_options must be an object")),
        };
        let n = match self.n {
            Lenient::Null => 1,
            Lenient::Unsigned(n) if n > 0 => n,
            _ => return Err(DecodeError::of("n", "n must be a whole number of at least 1")),
        };
        Ok(RequestFacts { model, stream, include_usage, has_stream_options, n })
    }
}

#[derive(Default)]
struct StreamOptions<'de> {
    include_usage: Option<Loose<'de>>,
    twice: bool,
}

impl<'de> Shape<'de> for StreamOptions<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        if key != "include_usage" {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        self.twice |= self.include_usage.is_some();
        self.include_usage = Some(map.next_value()?);
        Ok(())
    }
}

impl StreamOptions<'_> {
    fn include_usage(self) -> Result<bool, DecodeError> {
        const PARAM: &str = "stream_options.include_usage";
        if self.twice {
            return Err(DecodeError::of(PARAM, "include_usage appears twice, send it once"));
        }
        flag(&self.include_usage.unwrap_or_default())
            .ok_or(DecodeError::of(PARAM, "include_usage must be true or false"))
    }
}

/// The model asked for.
pub(in crate::wire) fn model_name(value: Loose<'_>) -> Result<Cow<'_, str>, DecodeError> {
    match value {
        Lenient::Text(model) if !model.is_empty() => Ok(model),
        Lenient::Text(_) => Err(DecodeError::of("model", "model must not be empty")),
        Lenient::Null => Err(DecodeError::of("model", "model is missing, name the model to use")),
        _ => Err(DecodeError::of("model", "model must be a string")),
    }
}

/// A boolean, null meaning false; `None` for any other type.
pub(in crate::wire) fn flag(value: &Loose<'_>) -> Option<bool> {
    match value {
        Lenient::Null => Some(false),
        Lenient::Bool(value) => Some(*value),
        _ => None,
    }
}

/// True if a reader that ignores letter case takes `key` for `name`. Go's reader does, and it folds the long s into s and
/// the sign for kelvin into k (<https://go.dev/src/encoding/json/v2/fold.go>, read Nov 2026).
fn folds_to(key: &str, name: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(name);
    }
    let folded = key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars())
}
