//! The error event that ends a stream of this dialect when it cannot end well.

use serde::Serialize;

use crate::wire::openai::ErrorBody;
use crate::wire::sse::Event;

/// Both forms clients look for: the members of the dialect's own `error` event, and the `error` object from which the
/// official SDKs raise, whatever the dialect.
#[derive(Serialize)]
struct ErrorEvent<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    code: Option<&'a str>,
    message: &'a str,
    param: Option<&'a str>,
    sequence_number: u64,
    error: &'a ErrorBody<'a>,
    request_id: &'a str,
}

/// One `event: error`, the stream's event of that number; no terminal event follows it.
pub fn error_event(body: &ErrorBody<'_>, request_id: &str, sequence_number: u64) -> Event {
    let event = ErrorEvent {
        kind: "error",
        code: body.code,
        message: body.message,
        param: body.param,
        sequence_number,
        error: body,
        request_id,
    };
    // Strings under string keys always serialise.
    Event::named("error", &serde_json::to_vec(&event).unwrap_or_default())
}
