//! What the simulated provider answers where data is asked for and not speech: embeddings, moderations, images, and the
//! older text completions.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ask::{excerpt, own_fault};
use super::speech::Chunks;
use crate::domain::clock;
use crate::sandbox::fault::Fault;
use crate::wire::sse::Event;

/// Length of a vector nobody said the length of.
const DIMENSIONS: usize = 8;
const MOST_DIMENSIONS: usize = 4_096;
const MOST_INPUTS: usize = 2_048;
/// One transparent pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

/// A request of one of these kinds.
pub(super) struct Plain {
    kind: Kind,
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) fault: Option<Fault>,
    body: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Embeddings,
    Moderations,
    Images,
    Completions,
}

impl Plain {
    /// True if `operation` is one of these.
    pub(super) fn knows(operation: &str) -> bool {
        kind(operation).is_some()
    }

    /// Reads a request, or says what to answer with 400.
    pub(super) fn read(operation: &str, body: &[u8], provider: &str) -> Result<Self, String> {
        let kind = kind(operation).ok_or("no such operation")?;
        let body: Value = serde_json::from_slice(body).map_err(|_| "the body must be a JSON object")?;
        let model = body.get("model").and_then(Value::as_str).ok_or("model must be a string")?.to_owned();
        let wanted = if matches!(kind, Kind::Embeddings | Kind::Moderations) { "input" } else { "prompt" };
        if body.get(wanted).is_none_or(Value::is_null) {
            return Err(format!("{wanted} is missing"));
        }
        let stream = kind == Kind::Completions && body.get("stream").and_then(Value::as_bool).unwrap_or_default();
        let fault = own_fault(body.get("sandbox_fault"), provider)?;
        Ok(Self { kind, model, stream, fault, body })
    }

    /// The whole answer.
    pub(super) fn whole(&self, number: u64) -> Bytes {
        let created = clock::unix_seconds();
        let words = self.words();
        let usage = json!({"prompt_tokens": words, "total_tokens": words});
        let answer = match self.kind {
            Kind::Embeddings => {
                json!({"object": "list", "data": self.vectors(), "model": self.model, "usage": usage})
            }
            Kind::Moderations => {
                let one = json!({"flagged": false, "categories": {"violence": false},
                                 "category_scores": {"violence": 0.01}, "category_applied_input_types": {}});
                let results: Vec<_> = self.inputs().iter().map(|_| one.clone()).collect();
                json!({"id": format!("modr-{number:06}"), "model": self.model, "results": results})
            }
            Kind::Images => json!({"created": created, "data": [{"b64_json": PIXEL}]}),
            Kind::Completions => {
                let said = self.said();
                let completion = said.len();
                json!({"id": format!("cmpl-{number:06}"), "object": "text_completion", "created": created,
                       "model": self.model,
                       "choices": [{"text": said.concat(), "index": 0, "logprobs": null, "finish_reason": "stop"}],
                       "usage": {"prompt_tokens": words, "completion_tokens": completion,
                                 "total_tokens": words + completion}})
            }
        };
        answer.to_string().into()
    }

    /// An error that comes with status 200.
    pub(super) fn error(&self, status: u16) -> Bytes {
        let message = format!("simulated failure with status {status}");
        let error = json!({"error": {"message": message, "type": "server_error", "code": status}}).to_string();
        if self.stream { Event::from_data(error.as_bytes()).raw().clone() } else { error.into() }
    }

    /// The same as events; only completions have them.
    pub(super) fn chunks(&self, number: u64) -> Chunks {
        let created = clock::unix_seconds();
        let chunk = |text: &str, finish: Option<&str>| {
            let chunk = json!({"id": format!("cmpl-{number:06}"), "object": "text_completion", "created": created,
                "model": self.model, "choices": [{"text": text, "index": 0, "logprobs": null, "finish_reason": finish}]});
            Event::from_data(chunk.to_string().as_bytes()).raw().clone()
        };
        let done = Event::from_data(b"[DONE]").raw().clone();
        Chunks {
            start: Bytes::new(),
            content: self.said().iter().map(|word| chunk(word, None)).collect(),
            end: vec![chunk("", Some("stop")), done],
        }
    }

    fn said(&self) -> Vec<String> {
        let prompt = self.body.get("prompt").and_then(Value::as_str).unwrap_or_default();
        let text = format!("This continues: {}", excerpt(prompt));
        text.split_inclusive(' ').map(str::to_owned).collect()
    }

    fn inputs(&self) -> Vec<String> {
        match self.body.get("input") {
            Some(Value::Array(list)) => list.iter().take(MOST_INPUTS).map(ToString::to_string).collect(),
            Some(other) => vec![other.to_string()],
            None => Vec::new(),
        }
    }

    fn words(&self) -> usize {
        let prompt = self.body.get("prompt").and_then(Value::as_str).unwrap_or_default();
        self.inputs().iter().map(String::as_str).chain([prompt]).map(|text| text.split_whitespace().count()).sum()
    }

    /// The same text always has the same vector.
    fn vectors(&self) -> Vec<Value> {
        let wanted = self.body.get("dimensions").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let dimensions = wanted.unwrap_or(DIMENSIONS).clamp(1, MOST_DIMENSIONS);
        let packed = self.body.get("encoding_format").and_then(Value::as_str) == Some("base64");
        let vector = |(index, input): (usize, &String)| {
            let digest = Sha256::digest(input.as_bytes());
            let numbers: Vec<f32> =
                digest.iter().cycle().take(dimensions).map(|byte| f32::from(*byte) / 255.0 - 0.5).collect();
            let embedding = if packed {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            } else {
                json!(numbers)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        };
        self.inputs().iter().enumerate().map(vector).collect()
    }
}

fn kind(operation: &str) -> Option<Kind> {
    match operation {
        "embeddings" => Some(Kind::Embeddings),
        "moderations" => Some(Kind::Moderations),
        "images/generations" => Some(Kind::Images),
        "completions" => Some(Kind::Completions),
        _ => None,
    }
}
