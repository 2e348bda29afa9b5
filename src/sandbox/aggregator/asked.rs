//! Which kind of request came in, by its path, and what it says.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::ask::Ask;
use super::audio::Audio;
use super::data::Plain;
use super::messages::{self, Form};
use super::responses;

/// A request, understood.
pub(super) enum Asked {
    /// Chat, Responses or Messages.
    Chat(Ask),
    /// Embeddings and the like.
    Data(Plain),
    /// Transcripts and speech.
    Audio(Audio),
}

impl Asked {
    /// True if there is such an operation, and it is asked for with POST.
    pub(super) fn knows(operation: &str) -> bool {
        let chat = ["chat/completions", "responses", "messages", "messages/count_tokens"];
        chat.contains(&operation) || Plain::knows(operation) || Audio::knows(operation)
    }

    /// Reads a request, or says what to answer with 400.
    pub(super) fn read(operation: &str, headers: &HeaderMap, body: &[u8], provider: &str) -> Result<Self, String> {
        if Plain::knows(operation) {
            return Plain::read(operation, body, provider).map(Self::Data);
        }
        if Audio::knows(operation) {
            let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            return Audio::read(operation, content_type, body, provider).map(Self::Audio);
        }
        match Form::of(operation) {
            Form::Chat => Ask::read(body, provider),
            Form::Messages => messages::read(body, provider),
            Form::Responses => responses::read(body, provider),
        }
        .map(Self::Chat)
    }

    /// The model asked for.
    pub(super) fn model(&self) -> &str {
        match self {
            Self::Chat(ask) => &ask.model,
            Self::Data(ask) => &ask.model,
            Self::Audio(ask) => &ask.model,
        }
    }
}
