//! What an answer or an event means, in whichever form a provider speaks: one set of facts for all of them.
//!
//! The forms are `wire`'s; what counts as content, as a cut and as an end is decided here, the same way for each.

use crate::domain::operation::{Dialect, Operation};
use crate::domain::usage::Usage;
use crate::flight::ending;
use crate::wire::openai::{self, EmbeddedError};
use crate::wire::sse::Event;
use crate::wire::{messages, responses};

/// How a provider's answers are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// Chat completions and completions.
    Chat,
    /// Whole answers that are data, not speech: embeddings, moderations, images.
    Data,
    /// A number.
    Count,
    /// Sound and transcripts; whole ones are [`audio`](super::audio)'s to read.
    Audio,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
}

/// What a whole answer says.
#[derive(Default)]
pub(super) struct Whole {
    /// It has something in it.
    pub(super) content: bool,
    /// It was cut by a limit or a filter, possibly before its first word.
    pub(super) cut: bool,
    /// It says that it is finished.
    pub(super) finished: bool,
    /// It ended by itself, so it may be used again.
    pub(super) complete: bool,
    /// It is a failure, whatever its status said.
    pub(super) error: Option<EmbeddedError>,
    pub(super) usage: Option<Usage>,
}

/// What one event says.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) content: bool,
    pub(super) cut: bool,
    pub(super) finished: bool,
    /// Nothing follows.
    pub(super) last: bool,
    pub(super) error: Option<EmbeddedError>,
    pub(super) usage: Option<Usage>,
    /// Its data can be read.
    pub(super) json: bool,
}

/// True if tokens were paid for an answer of no words. A model may end at once, and that is its answer: asking another, or
/// blaming the provider, would let one prompt close a model to everybody.
pub(super) fn wrote_nothing(usage: Option<Usage>) -> bool {
    usage.and_then(|usage| usage.output_tokens).is_some_and(|tokens| tokens > 0)
}

impl Form {
    pub(super) fn of(operation: Operation) -> Self {
        match operation {
            Operation::Responses => Self::Responses,
            Operation::Messages => Self::Messages,
            Operation::ChatCompletions | Operation::Completions => Self::Chat,
            Operation::CountTokens => Self::Count,
            Operation::Transcriptions | Operation::Translations | Operation::Speech => Self::Audio,
            _ => Self::Data,
        }
    }

    /// How its streams end.
    pub(super) fn dialect(self) -> Dialect {
        match self {
            Self::Chat | Self::Data | Self::Count => Dialect::OpenAi,
            Self::Audio => Dialect::Audio,
            Self::Responses => Dialect::Responses,
            Self::Messages => Dialect::Anthropic,
        }
    }

    /// True for the event after which nothing follows.
    pub(super) fn is_last(self, event: &Event) -> bool {
        ending::is_last(self.dialect(), event)
    }

    /// Reads a whole answer; `None` if it is no JSON object.
    pub(super) fn whole(self, body: &[u8]) -> Option<Whole> {
        Some(match self {
            Self::Chat => {
                let facts = openai::peek_reply(body)?;
                Whole {
                    content: facts.content,
                    cut: facts.any_cut,
                    finished: facts.finished,
                    complete: facts.all_stopped,
                    error: facts.error,
                    usage: facts.usage,
                }
            }
            Self::Data | Self::Count | Self::Audio => {
                let facts = openai::peek_reply(body)?;
                let content = facts.content || self == Self::Count;
                Whole { content, complete: content, error: facts.error, usage: facts.usage, ..Whole::default() }
            }
            Self::Responses => {
                let facts = responses::peek_reply(body)?;
                Whole {
                    content: facts.content,
                    cut: facts.ending == Some(responses::Ending::Incomplete),
                    finished: facts.ending.is_some(),
                    complete: facts.ending == Some(responses::Ending::Completed),
                    error: facts.error,
                    usage: facts.usage,
                }
            }
            Self::Messages => {
                let facts = messages::peek_reply(body)?;
                Whole {
                    content: facts.content,
                    cut: facts.stop == Some(messages::Stop::CutOnPurpose),
                    finished: facts.stop.is_some(),
                    complete: facts.stop == Some(messages::Stop::Complete),
                    error: facts.error,
                    usage: facts.usage,
                }
            }
        })
    }

    /// Reads one event. `tokens` gathers counts that come in parts.
    pub(super) fn event(self, event: &Event, tokens: &mut messages::Tokens) -> Heard {
        let last = self.is_last(event);
        match self {
            Self::Chat | Self::Data | Self::Count => {
                let Some(data) = event.data().filter(|_| !last) else { return Heard { last, ..Heard::default() } };
                let facts = openai::peek_chunk(&data);
                // The official Node SDK takes an event of this name for an error, whatever it holds.
                let named = || (event.event_type() == Some("error")).then(EmbeddedError::default);
                Heard {
                    content: facts.content,
                    cut: facts.any_cut && !facts.content,
                    finished: facts.finished,
                    last,
                    error: facts.error.or_else(named),
                    usage: facts.usage,
                    json: facts.json,
                }
            }
            Self::Audio => {
                let Some(data) = event.data().filter(|_| !event.is_done()) else {
                    return Heard { last, ..Heard::default() };
                };
                let facts = openai::peek_audio_event(&data);
                let (content, error, usage, json) = (facts.content, facts.error, facts.usage, facts.json);
                Heard { content, last, error, usage, json, ..Heard::default() }
            }
            Self::Responses => {
                let facts = responses::peek_event(event);
                let cut = facts.ending == Some(responses::Ending::Incomplete);
                let (content, error, usage, json) = (facts.content, facts.error, facts.usage, facts.json);
                Heard { content, cut, finished: facts.ending.is_some(), last, error, usage, json }
            }
            Self::Messages => {
                let facts = messages::peek_event(event);
                tokens.absorb(facts.tokens);
                let cut = facts.stop == Some(messages::Stop::CutOnPurpose);
                let (content, error, json) = (facts.content, facts.error, facts.json);
                Heard { content, cut, finished: facts.stop.is_some(), last, error, usage: tokens.usage(), json }
            }
        }
    }
}
