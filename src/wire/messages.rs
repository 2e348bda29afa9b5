//! The Anthropic Messages form: read for providers that speak it, translated for those that speak chat completions.
//!
//! Towards a provider that speaks it, bodies stay the caller's bytes; what routing and supervision need is read out of
//! them with the strictness and the leniency of [`super::openai`]. Towards any other, requests become chat requests and
//! answers become messages again, whole ([`from_chat`]) or event by event ([`StreamFromChat`]).
//!
//! It deliberately does not run tools, does not count tokens ([`estimated_tokens`] is no count) and keeps nothing between calls, so the signatures of
//! thinking blocks and whatever only the vendor's own servers can do (server tools, containers, files) is refused or left
//! out, never imitated. Errors of providers that speak this form are read by [`super::openai::parse_error`], which knows
//! its words.
//!
//! Names, fields and the order of events were checked against the types of the official Python package 2.12.0
//! (<https://github.com/anthropics/anthropic-sdk-python>, read Nov 2026).

mod blocks;
mod chat;
mod estimate;
mod facts;
mod failure;
mod form;
mod from_chat;
mod json;
mod request;
mod stream;
mod to_chat;
mod tools;
mod turns;

pub use blocks::StreamError;
pub use estimate::estimated_tokens;
pub use facts::{EventFacts, MessageFacts, Stop, Tokens, is_last_event, peek_event, peek_reply};
pub use failure::{Failure, error_body, error_event, kind_of};
pub use from_chat::from_chat;
pub use request::{Facts, peek_request};
pub use stream::StreamFromChat;
pub use to_chat::{Refusal, Translated, to_chat};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
