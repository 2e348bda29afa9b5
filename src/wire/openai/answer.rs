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

/// A model as it is listed. What is not known is left out.
#[derive(Clone, Copy, Default)]
pub struct ModelEntry<'a> {
    /// Its name.
    pub id: &'a str,
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Who made it.
    pub owned_by: &'a str,
    /// Tokens that prompt and answer may have together.
    pub context: Option<u32>,
    /// Tokens an answer may have.
    pub max_output: Option<u32>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
}

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: T,
}

/// The body of `GET /v1/models`.
pub fn models_list(models: &[ModelEntry<'_>]) -> Bytes {
    let data: Vec<_> = models.iter().map(model).collect();
    json(&List { object: "list", data })
}

/// The body of `GET /v1/models/{id}`.
pub fn model_object(entry: &ModelEntry<'_>) -> Bytes {
    json(&model(entry))
}

fn model<'a>(entry: &ModelEntry<'a>) -> Model<'a> {
    let ModelEntry { id, created, owned_by, context, max_output } = *entry;
    Model { id, object: "model", created, owned_by, context_length: context, max_output_tokens: max_output }
}

/// Strings and numbers under string keys always serialise, so there is no error to report.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}
