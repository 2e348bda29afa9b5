//! Errors as clients of this form read them.

use bytes::Bytes;
use serde::Serialize;

use super::json::written;
use crate::wire::sse::Event;

/// What went wrong, in the words of this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    /// `invalid_request_error`, `overloaded_error` and the like; [`kind_of`] has the one for a status.
    pub kind: &'a str,
    /// What happened and what to do.
    pub message: &'a str,
    /// The closed word programs compare. SDKs show it as `error_code`.
    pub code: Option<&'a str>,
    /// Names the call, empty if there is none to name.
    pub request_id: &'a str,
}

impl<'a> Failure<'a> {
    /// A failure of the type its status stands for, without a code.
    pub fn of(status: u16, message: &'a str, request_id: &'a str) -> Self {
        Self { kind: kind_of(status), message, code: None, request_id }
    }
}

/// The error type that goes with a status.
///
/// SDKs choose their exception by the status and show the type. For 503 there is no type of its own; the nearest, which
/// clients know as "not now, soon again", is that of 529 (<https://github.com/anthropics/anthropic-sdk-python> 2.12.0,
/// `types/shared/error_type.py`, and for 413 <https://docs.anthropic.com/en/api/errors>, Nov 2026).
pub fn kind_of(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    }
}

/// The body of an answer with an error status.
pub fn error_body(failure: &Failure<'_>) -> Bytes {
    written(&Body::of(failure)).into()
}

/// The one error event that ends a stream which cannot end well. No terminal event follows it.
pub fn error_event(failure: &Failure<'_>) -> Event {
    Event::named("error", &written(&Body::of(failure)))
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: Inner<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
}

#[derive(Serialize)]
struct Inner<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

#[derive(Serialize)]
struct Details<'a> {
    error_code: &'a str,
}

impl<'a> Body<'a> {
    fn of(failure: &Failure<'a>) -> Self {
        let details = failure.code.map(|error_code| Details { error_code });
        let error = Inner { kind: failure.kind, message: failure.message, details };
        Self { kind: "error", error, request_id: failure.request_id }
    }
}
