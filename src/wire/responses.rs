//! The Responses dialect of OpenAI, read, and carried over a provider that only speaks chat completions.
//!
//! Providers that speak it get the caller's bytes: [`peek_request`], [`peek_reply`] and [`peek_event`] read what routing
//! and metering need. For the others [`to_chat`] writes a chat request, and [`from_chat`] and [`StreamFromChat`] write the
//! answer the caller waits for. What chat completions cannot carry is refused or named in [`Translated::left_out`], never
//! dropped in silence. It deliberately keeps no response: whatever refers to a stored one is refused.
//!
//! Shapes and names are those of the types in the official Python package, openai 3.54.0
//! (<https://github.com/openai/openai-python>, read Nov 2026).

mod chat;
mod echo;
mod events;
mod failure;
mod messages;
mod output;
mod reply;
mod request;
mod stream;
mod to_chat;
mod tools;

pub use echo::Echo;
pub use failure::error_event;
pub use reply::{Ending, EventFacts, ReplyFacts, peek_event, peek_reply};
pub use request::{RequestFacts, peek_request};
pub use stream::{StreamError, StreamFromChat, from_chat};
pub use to_chat::{HostedTools, Refusal, RefusalKind, Translated, to_chat};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
