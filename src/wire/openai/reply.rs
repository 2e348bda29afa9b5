//! What an answer, or one chunk of it, says about itself, read leniently.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use super::failure::{EmbeddedError, ErrorParts, embedded};
use super::lenient::{Elements, Lenient, Loose, Members, Shape};
use crate::domain::usage::Usage;
use crate::wire::json_read;

/// What one chunk of a stream holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ChunkFacts {
    /// Something the model said: text, reasoning, a tool call, a refusal, audio.
    pub content: bool,
    /// Some choice has its finish reason.
    pub finished: bool,
    /// Some choice was cut by a limit or a filter.
    pub any_cut: bool,
    /// The provider reports a failure in it.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any.
    pub usage: Option<Usage>,
    /// Token counts and nothing said: the extra chunk of `include_usage`, which some send with an empty choice.
    pub usage_only: bool,
    /// It is a JSON object. If not, the rest of these facts is empty.
    pub json: bool,
}

/// What a whole answer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyFacts<'a> {
    /// Something the model said. Of other operations: a non-empty `data`, `output`, `results`, `content` or `text`.
    pub content: bool,
    /// Some choice has its finish reason.
    pub finished: bool,
    /// Every choice ended by itself, with its last word or a tool call.
    pub all_stopped: bool,
    /// Some choice was cut by a limit or a filter.
    pub any_cut: bool,
    /// The provider reports a failure in it, whatever the status said.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any.
    pub usage: Option<Usage>,
    /// The model as the provider names it.
    pub model: Option<Cow<'a, str>>,
}

/// Reads one chunk; whatever is odd about it, the rest is still read.
pub fn peek_chunk(data: &[u8]) -> ChunkFacts {
    let Some(top) = Top::read(data) else { return ChunkFacts::default() };
    let choices = top.choices;
    ChunkFacts {
        content: choices.content,
        finished: choices.finished,
        any_cut: choices.cut,
        usage: top.usage,
        usage_only: top.usage.is_some() && !choices.content && !choices.finished,
        json: true,
        error: failure(top.error, choices.error, top.flat),
    }
}

/// Reads a whole answer; `None` if it is no JSON object.
pub fn peek_reply(body: &[u8]) -> Option<ReplyFacts<'_>> {
    let top = Top::read(body)?;
    let choices = top.choices;
    Some(ReplyFacts {
        content: choices.content || top.content,
        finished: choices.finished,
        all_stopped: choices.any && !choices.going_on,
        any_cut: choices.cut,
        usage: top.usage,
        model: top.model,
        error: failure(top.error, choices.error, top.flat),
    })
}

/// The failure an answer reports: in its `error`, in a choice, or as vLLM does, by being an error itself.
fn failure(
    field: Lenient<'_, ErrorParts<'_>>,
    choice: Option<EmbeddedError>,
    flat: Option<ErrorParts<'_>>,
) -> Option<EmbeddedError> {
    embedded(field).or(choice).or_else(|| flat.map(ErrorParts::into_error))
}

/// The members of an answer or chunk.
#[derive(Default)]
struct Fields<'de> {
    object: Loose<'de>,
    flat: ErrorParts<'de>,
    error: Lenient<'de, ErrorParts<'de>>,
    choices: Choices,
    usage: Counts,
    model: Option<Cow<'de, str>>,
    content: bool,
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "choices" => drop(map.next_value_seed(Elements(&mut self.choices))?),
            "usage" => drop(map.next_value_seed(Members(&mut self.usage))?),
            "model" => self.model = map.next_value::<Loose<'_>>()?.text(),
            "error" => self.error = map.next_value()?,
            "object" => self.object = map.next_value()?,
            "data" | "output" | "results" | "content" | "text" => {
                self.content |= map.next_value::<Loose<'_>>()?.is_filled();
            }
            "message" | "type" | "code" => return self.flat.field(key, map),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// [`Fields`], sorted out.
struct Top<'de> {
    flat: Option<ErrorParts<'de>>,
    error: Lenient<'de, ErrorParts<'de>>,
    choices: Choices,
    usage: Option<Usage>,
    model: Option<Cow<'de, str>>,
    content: bool,
}

impl<'de> Top<'de> {
    fn read(json: &'de [u8]) -> Option<Self> {
        let mut fields = Fields::default();
        if !json_read::fill_from_slice(json, Members(&mut fields)).ok()? {
            return None;
        }
        let Fields { object, flat, error, choices, usage, model, content } = fields;
        let flat = (object.text().as_deref() == Some("error")).then_some(flat);
        let usage = Some(usage.0).filter(|usage| !usage.is_empty()).or(choices.usage);
        Some(Self { flat, error, choices, usage, model, content })
    }
}

/// All choices as one.
#[derive(Default)]
struct Choices {
    any: bool,
    content: bool,
    /// Some choice says how it ended.
    finished: bool,
    /// Some choice did not end by itself.
    going_on: bool,
    cut: bool,
    /// Where Moonshot puts the token counts of a stream that was not asked for them.
    usage: Option<Usage>,
    error: Option<EmbeddedError>,
}

impl<'de> Shape<'de> for Choices {
    fn element<A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let mut choice = Choice::default();
        let Some(object) = list.next_element_seed(Members(&mut choice))? else { return Ok(false) };
        self.any = true;
        if !object {
            self.going_on = true;
            return Ok(true);
        }
        let reason = choice.finish_reason.as_deref();
        self.finished |= reason.is_some();
        self.cut |= matches!(reason, Some("length" | "content_filter"));
        self.going_on |= !matches!(reason, Some("stop" | "tool_calls" | "function_call"));
        self.usage = self.usage.or(choice.usage);
        self.content |= choice.content;
        if self.error.is_none() {
            // OpenRouter ends a choice this way, with or without saying why.
            let ended = reason == Some("error");
            self.error = embedded(choice.error).or_else(|| ended.then(EmbeddedError::default));
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Choice<'de> {
    content: bool,
    usage: Option<Usage>,
    finish_reason: Option<Cow<'de, str>>,
    error: Lenient<'de, ErrorParts<'de>>,
}

impl<'de> Shape<'de> for Choice<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "delta" | "message" => {
                let mut said = Said::default();
                map.next_value_seed(Members(&mut said))?;
                self.content |= said.0;
            }
            "text" => self.content |= map.next_value::<Loose<'_>>()?.is_filled(),
            "usage" => {
                if let Lenient::Map(Counts(usage)) = map.next_value()? {
                    self.usage = Some(usage).filter(|usage| !usage.is_empty());
                }
            }
            "finish_reason" => self.finish_reason = map.next_value::<Loose<'_>>()?.text(),
            "error" => self.error = map.next_value()?,
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// Whether a message, or a piece of one, says anything: a role alone does not.
#[derive(Default)]
struct Said(bool);

impl<'de> Shape<'de> for Said {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "content" | "reasoning_content" | "reasoning" | "reasoning_details" | "tool_calls" | "function_call"
            | "refusal" | "audio" => self.0 |= map.next_value::<Loose<'_>>()?.is_filled(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// The share of a prompt that was in the provider's cache.
#[derive(Default)]
struct CachedTokens(Option<u64>);

impl<'de> Shape<'de> for CachedTokens {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "cached_tokens" => self.0 = map.next_value::<Loose<'_>>()?.unsigned(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

/// Token counts, under the names of chat completions or of the later operations.
#[derive(Default)]
pub(in crate::wire) struct Counts(pub(in crate::wire) Usage);

impl<'de> Shape<'de> for Counts {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "prompt_tokens" | "input_tokens" => {
                self.0.input_tokens = map.next_value::<Loose<'_>>()?.unsigned().or(self.0.input_tokens);
            }
            "prompt_tokens_details" | "input_tokens_details" => {
                if let Lenient::Map(CachedTokens(cached @ Some(_))) = map.next_value()? {
                    self.0.cached_input_tokens = cached;
                }
            }
            // DeepSeek's own name beside OpenAI's (<https://api-docs.deepseek.com/guides/kv_cache>, read Nov 2026).
            "prompt_cache_hit_tokens" => {
                self.0.cached_input_tokens = map.next_value::<Loose<'_>>()?.unsigned().or(self.0.cached_input_tokens);
            }
            "completion_tokens" | "output_tokens" => {
                self.0.output_tokens = map.next_value::<Loose<'_>>()?.unsigned().or(self.0.output_tokens);
            }
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}
