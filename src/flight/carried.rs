//! A call in the form of chat completions, for providers that do not have its own form, and the way back.
//!
//! It is made once for a call; each attempt at such a provider sends it and turns what comes back.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use crate::domain::id::RequestId;
use crate::flight::facts::LlmFacts;
use crate::wire::sse::Event;
use crate::wire::{messages, responses};

/// The call as chat completions.
pub struct Carried {
    /// The chat request.
    pub body: Bytes,
    /// What there is to know of it.
    pub facts: LlmFacts,
    /// What its answers become.
    pub back: Back,
    /// Parts of the request that chat completions cannot say, in closed words, as a header value.
    pub left_out: Option<HeaderValue>,
}

/// The form the caller waits for.
#[derive(Clone)]
pub enum Back {
    /// `/v1/responses`, with what it repeats of the request.
    Responses(Arc<responses::Echo>),
    /// `/v1/messages`.
    Messages,
}

/// What a chat answer is turned for.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// The call.
    pub call: &'a RequestId,
    /// The model that answers.
    pub model: &'a str,
    /// When, seconds since 1970.
    pub created: u64,
}

impl Back {
    /// A whole chat answer in the caller's form; `None` if it is none.
    pub fn whole(&self, chat: &[u8], frame: &Frame<'_>) -> Option<Bytes> {
        match self {
            Self::Responses(echo) => responses::from_chat(chat, echo, &id("resp_", frame.call), frame.created),
            Self::Messages => messages::from_chat(chat, frame.model, &id("msg_", frame.call)),
        }
    }

    /// Turns a stream, event by event.
    pub fn stream(&self, frame: &Frame<'_>) -> Teller {
        match self {
            Self::Responses(echo) => Teller::Responses(Box::new(responses::StreamFromChat::new(
                Arc::clone(echo),
                &id("resp_", frame.call),
                frame.created,
            ))),
            Self::Messages => {
                Teller::Messages(Box::new(messages::StreamFromChat::new(frame.model, &id("msg_", frame.call))))
            }
        }
    }
}

fn id(prefix: &str, call: &RequestId) -> String {
    let call = call.as_str();
    format!("{prefix}{}", call.strip_prefix("req_").unwrap_or(call))
}

/// Tells a chat stream in the caller's form.
pub enum Teller {
    /// As Responses events.
    Responses(Box<responses::StreamFromChat>),
    /// As Messages events.
    Messages(Box<messages::StreamFromChat>),
}

/// The provider's stream is not what it says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Garbled;

impl Teller {
    /// Takes one chat event and puts what it means at the end of `out`.
    ///
    /// # Errors
    /// [`Garbled`]; nothing more can be told then.
    pub fn push(&mut self, event: &Event, out: &mut VecDeque<Event>) -> Result<(), Garbled> {
        match self {
            Self::Responses(stream) => {
                let pushed = stream.push(event).map_err(|_| Garbled);
                while let Some(event) = stream.next() {
                    out.push_back(event);
                }
                pushed
            }
            Self::Messages(stream) => stream.push(event, out).map_err(|_| Garbled),
        }
    }
}
