//! Errors of the risk paths as RFC 9457 problem details.
//!
//! One type per status, so that a client may switch on either. Which status an error deserves is decided elsewhere.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use super::fields::{FieldError, FieldErrorKind};

/// What every problem type starts with. `.invalid` is reserved (RFC 2606): these are names, not pages.
const TYPES: &str = "https://weighbridge.invalid/problems/";

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    pointer: &'a str,
    message: &'a str,
}

/// What went wrong: a status, and the last part of the problem's type where the status alone would not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct What {
    status: StatusCode,
    slug: Option<&'static str>,
}

impl From<StatusCode> for What {
    fn from(status: StatusCode) -> Self {
        Self { status, slug: None }
    }
}

impl From<(StatusCode, Option<&'static str>)> for What {
    fn from((status, slug): (StatusCode, Option<&'static str>)) -> Self {
        Self { status, slug }
    }
}

/// Writes a problem body, `application/problem+json`. `instance` is the request id.
pub fn problem(what: impl Into<What>, title: &str, detail: &str, instance: &str, errors: &[FieldError]) -> Bytes {
    let What { status, slug: own } = what.into();
    let errors = errors.iter().map(|error| Entry { pointer: &error.pointer, message: &error.message }).collect();
    let r#type = own.or_else(|| slug(status)).map_or_else(|| "about:blank".to_owned(), |slug| format!("{TYPES}{slug}"));
    let problem = Problem { r#type, title, status: status.as_u16(), detail, instance, errors };
    #[expect(clippy::expect_used, reason = "texts and numbers without maps always serialise")]
    let body = serde_json::to_vec(&problem).expect("a problem always serialises");
    Bytes::from(body)
}

/// 422 if every mistake is a currency or country not known, else 400.
pub fn status_of(errors: &[FieldError]) -> StatusCode {
    let unknown = |error: &FieldError| error.kind == FieldErrorKind::Unknown;
    if !errors.is_empty() && errors.iter().all(unknown) {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::BAD_REQUEST
    }
}

/// The last part of a problem's type. These are part of the contract: never rename one.
fn slug(status: StatusCode) -> Option<&'static str> {
    Some(match status.as_u16() {
        400 => "bad-field",
        401 => "key-not-accepted",
        403 => "not-allowed",
        404 => "not-found",
        405 => "method-not-allowed",
        408 => "request-too-slow",
        409 => "id-reused",
        413 => "body-too-large",
        415 => "media-type",
        417 => "expectation",
        422 => "not-known",
        429 => "too-many-requests",
        431 => "head-too-large",
        500 => "internal",
        502 => "provider-failed",
        503 => "unavailable",
        504 => "deadline-passed",
        _ => return None,
    })
}
