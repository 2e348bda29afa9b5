//! How streams end, by dialect: the event after which nothing follows, and the one that says it went wrong.

use crate::domain::operation::Dialect;
use crate::wire::openai::ErrorBody;
use crate::wire::sse::Event;
use crate::wire::{messages, openai, responses};

/// True for the event that ends a stream well.
pub fn is_last(dialect: Dialect, event: &Event) -> bool {
    match dialect {
        Dialect::OpenAi | Dialect::Problem => event.is_done(),
        Dialect::Audio => openai::is_last_audio_event(event),
        Dialect::Responses => matches!(event.event_type(), Some("response.completed" | "response.incomplete")),
        Dialect::Anthropic => messages::is_last_event(event),
    }
}

/// The one event that ends a stream which cannot end well, after `before` others.
pub fn error_event(dialect: Dialect, body: &ErrorBody<'_>, request_id: &str, before: u64) -> Event {
    match dialect {
        Dialect::OpenAi | Dialect::Audio | Dialect::Problem => openai::error_event(body, request_id),
        Dialect::Responses => responses::error_event(body, request_id, before),
        Dialect::Anthropic => {
            let ErrorBody { message, kind, code, .. } = *body;
            messages::error_event(&messages::Failure { kind, message, code, request_id })
        }
    }
}
