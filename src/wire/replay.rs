//! A streamed answer as the whole answer it amounts to, and a whole answer as the stream that would have told it.
//!
//! A cache keeps one of them and serves both. What is told again is as the provider said it: identities, texts, numbers
//! and members we do not know keep their spelling. Where putting a stream together would lose or guess something
//! ([`assemble`]), or a whole answer has parts of which nobody knows how they are streamed ([`replay`]), there is none:
//! then the answer is simply not used that way.

mod chat;
mod chunks;
mod messages;
mod parts;
mod pieces;
mod responses;

use bytes::Bytes;

use crate::domain::operation::Operation;
use crate::wire::sse::Event;

/// How the answer to an operation is streamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Chunks of chat completions.
    Chat,
    /// Chunks of completions.
    Completion,
    /// Events of a response.
    Responses,
    /// Events of a message.
    Messages,
}

/// How a whole answer ended; the worse, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ending {
    /// By itself, in every choice.
    Complete,
    /// Some choice was cut by the token limit, and none otherwise.
    ByLength,
    /// In another way, or it does not say.
    Otherwise,
}

impl Form {
    /// The form of an operation's answers; `None` for those that are data and not speech.
    pub fn of(operation: Operation) -> Option<Self> {
        match operation {
            Operation::ChatCompletions => Some(Self::Chat),
            Operation::Completions => Some(Self::Completion),
            Operation::Responses => Some(Self::Responses),
            Operation::Messages => Some(Self::Messages),
            _ => None,
        }
    }
}

/// The whole answer that these events, from the first to the last one, amount to; `None` if something would be lost.
pub fn assemble(form: Form, events: &[Event]) -> Option<Bytes> {
    match form {
        Form::Chat | Form::Completion => chat::assemble(form, events),
        Form::Responses => responses::assemble(events),
        Form::Messages => messages::assemble(events),
    }
}

/// The events that tell a whole answer, the terminal one included, and the token counts as a caller sees them who asked
/// for them; `None` if it has parts of which it is not known how they are streamed.
pub fn replay(form: Form, whole: &[u8]) -> Option<Vec<Event>> {
    match form {
        Form::Chat => chunks::chat(whole),
        Form::Completion => chunks::completion(whole),
        Form::Responses => responses::replay(whole),
        Form::Messages => messages::replay(whole),
    }
}

/// How a whole answer ended.
pub fn ending(form: Form, whole: &[u8]) -> Ending {
    match form {
        Form::Chat | Form::Completion => chat::ending(whole),
        Form::Responses => responses::ending(whole),
        Form::Messages => messages::ending(whole),
    }
}

#[cfg(test)]
mod tests;
