//! The bodies we write ourselves: errors and the list of models.

use bytes::Bytes;
use serde::Serialize;

use crate::wire::sse::Event;

/// An error as clients of this dialect read it. SDKs choose their exception by status and show the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody<'a> {
    /// What happened and what to do.
    pub message: &'a str,
    /// `invalid_request_error`, `rate_limit_error`, `api_error` and the like.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The request field it is about.
    pub param: Option<&'a str>,
    /// The closed word programs compare.
    pub code: Option<&'a str>,
}

#[derive(Serialize)]
struct Enveloped<T> {
    error: T,
}

#[derive(Serialize)]
struct InStream<'a> {
    #[serde(flatten)]
    body: &'a ErrorBody<'a>,
    request_id: &'a str,
}

/// `{"error":{"message":..,"type":..,"param":..,"code":..}}`, with real nulls.
pub fn error_body(body: &ErrorBody<'_>) -> Bytes {
    json(&Enveloped { error: body })
}

/// The one error event that ends a stream which cannot end well. No terminal event follows it.
pub fn error_event(body: &ErrorBody<'_>, request_id: &str) -> Event {
    Event::from_data(&json(&Enveloped { error: InStream { body, request_id } }))
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
}

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: T,
}

/// The body of `GET /v1/models`, from each model's id, seconds since 1970 of its making, and owner.
pub fn models_list(models: &[(&str, u64, &str)]) -> Bytes {
    let data: Vec<_> = models.iter().map(|(id, created, owned_by)| model(id, *created, owned_by)).collect();
    json(&List { object: "list", data })
}

/// The body of `GET /v1/models/{id}`.
pub fn model_object(id: &str, created: u64, owned_by: &str) -> Bytes {
    json(&model(id, created, owned_by))
}

fn model<'a>(id: &'a str, created: u64, owned_by: &'a str) -> Model<'a> {
    Model { id, object: "model", created, owned_by }
}

/// Strings and numbers under string keys always serialise, so there is no error to report.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}
