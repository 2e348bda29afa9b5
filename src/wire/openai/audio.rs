//! What answers of the audio operations say about themselves: transcripts, and the events of transcripts and speech.
//!
//! Events are OpenAI's (`transcript.text.delta`, `speech.audio.delta` and their `.done`, as the official SDK 3.54 reads
//! them, Nov 2026), or chat chunks that end in `[DONE]`, which vLLM sends for transcripts. Sound itself is not looked at.

use std::borrow::Cow;

use serde::de::{IgnoredAny, MapAccess};

use super::failure::{EmbeddedError, parse_error};
use super::lenient::{Loose, Members, Shape};
use super::reply::{peek_chunk, peek_reply};
use crate::domain::usage::Usage;
use crate::wire::json_read;
use crate::wire::sse::Event;

/// What a whole transcript holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TranscriptFacts {
    /// There is a text, though it may be empty: silence has none.
    pub text: bool,
    /// The provider reports a failure in it.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any; some count seconds instead.
    pub usage: Option<Usage>,
}

/// What one event holds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AudioEventFacts {
    /// A piece of transcript or sound, or the end of one.
    pub content: bool,
    /// Nothing follows but perhaps `[DONE]`.
    pub last: bool,
    /// The provider reports a failure in it.
    pub error: Option<EmbeddedError>,
    /// The token counts, if it has any.
    pub usage: Option<Usage>,
    /// It is a JSON object.
    pub json: bool,
}

/// Reads a whole transcript; `None` if it is no JSON object.
pub fn peek_transcript(body: &[u8]) -> Option<TranscriptFacts> {
    let facts = peek_reply(body)?;
    let fields = Fields::read(body)?;
    Some(TranscriptFacts { text: fields.text, error: facts.error, usage: facts.usage })
}

/// Reads the data of one event.
pub fn peek_audio_event(data: &[u8]) -> AudioEventFacts {
    let Some(fields) = Fields::read(data) else { return AudioEventFacts::default() };
    let chunk = peek_chunk(data);
    let kind = fields.kind.as_deref().unwrap_or_default();
    let last = is_end(kind);
    let error = chunk.error.or_else(|| (kind == "error").then(|| parse_error(data).unwrap_or_default()));
    AudioEventFacts { content: chunk.content || fields.piece || last, last, error, usage: chunk.usage, json: true }
}

/// True for the event after which nothing follows.
pub fn is_last_audio_event(event: &Event) -> bool {
    // Most events are pieces of sound: only those that may be the end are read.
    event.is_done()
        || memchr::memmem::find(event.raw(), b".done\"").is_some()
            && event.data().and_then(|data| Some(is_end(&Fields::read(&data)?.kind?))).unwrap_or_default()
}

fn is_end(kind: &str) -> bool {
    matches!(kind, "transcript.text.done" | "speech.audio.done")
}

#[derive(Default)]
struct Fields<'de> {
    kind: Option<Cow<'de, str>>,
    text: bool,
    piece: bool,
}

impl<'de> Fields<'de> {
    fn read(json: &'de [u8]) -> Option<Self> {
        let mut fields = Self::default();
        json_read::fill_from_slice(json, Members(&mut fields)).ok()?.then_some(fields)
    }
}

impl<'de> Shape<'de> for Fields<'de> {
    fn field<A: MapAccess<'de>>(&mut self, key: Cow<'de, str>, map: &mut A) -> Result<(), A::Error> {
        match key.as_ref() {
            "type" => self.kind = map.next_value::<Loose<'_>>()?.text(),
            "text" => {
                let text = map.next_value::<Loose<'_>>()?;
                self.piece |= text.is_filled();
                self.text = text.text().is_some();
            }
            "delta" | "audio" => self.piece |= map.next_value::<Loose<'_>>()?.is_filled(),
            _ => map.next_value::<IgnoredAny>().map(drop)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_has_a_text_though_it_may_be_silence() {
        let facts = |text: &str| peek_transcript(text.as_bytes());
        assert!(facts(r#"{"text":""}"#).unwrap().text);
        assert!(!facts(r#"{"data":[]}"#).unwrap().text);
        assert!(!facts(r#"{"text":null}"#).unwrap().text);
        assert_eq!(facts("1\n00:00:00,000"), None);
        let usage =
            facts(r#"{"text":"a","usage":{"type":"tokens","input_tokens":14,"output_tokens":45}}"#).unwrap().usage;
        assert_eq!(usage, Some(Usage { input_tokens: Some(14), output_tokens: Some(45), ..Usage::default() }));
        assert_eq!(facts(r#"{"text":"a","usage":{"type":"duration","seconds":2}}"#).unwrap().usage, None);
        assert!(facts(r#"{"error":{"message":"no","code":503}}"#).unwrap().error.is_some());
    }

    #[test]
    fn events_are_pieces_ends_or_failures() {
        let facts = |text: &str| peek_audio_event(text.as_bytes());
        assert!(facts(r#"{"type":"transcript.text.delta","delta":"I"}"#).content);
        assert!(!facts(r#"{"type":"transcript.text.delta","delta":""}"#).content);
        assert!(facts(r#"{"type":"speech.audio.delta","audio":"AAAA"}"#).content);
        let end = facts(r#"{"type":"transcript.text.done","text":"","usage":{"input_tokens":1,"output_tokens":2}}"#);
        assert!(end.content && end.last && end.usage.is_some());
        assert!(facts(r#"{"type":"error","message":"no"}"#).error.is_some());
        assert!(facts(r#"{"object":"transcription.chunk","choices":[{"delta":{"content":"a"}}]}"#).content);
        assert!(!facts("no json").json);
        let last = |text: &str| is_last_audio_event(&Event::from_data(text.as_bytes()));
        assert!(last("[DONE]") && last(r#"{"type":"speech.audio.done"}"#));
        assert!(!last(r#"{"type":"transcript.text.delta","delta":"\"speech.audio.done\""}"#));
    }
}
