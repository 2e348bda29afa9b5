//! `POST /-/explain` and `POST /-/diff`: questions with a body, answered from the configuration in force and what is alive
//! in it.
//!
//! Nothing that is asked changes anything: no call is made, no configuration is put in force, no secret is read. Bodies are
//! bounded in size and time, and one is only read for who may ask.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{Admin, json as answer_json, mistakes, text};
use crate::config::diff::TableDiff;
use crate::config::source::{ListSource, SourceFile, Sources};
use crate::gateway::explain::{self, Alive, LONGEST_QUESTION, Question, Unanswerable, past};

/// Most bytes of all files of a configuration together.
const LARGEST_CONFIGURATION: usize = 16 << 20;
/// Longest time that a question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most files in one question.
const MOST_FILES: usize = 1_100;

/// A configuration, as texts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    routes: File,
    #[serde(default)]
    providers: Vec<File>,
    #[serde(default)]
    lists: Vec<ListFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    text: String,
}

/// A list's file; without a text it could not be read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListFile {
    path: String,
    name: String,
    text: Option<String>,
}

/// True for the paths that take a body.
pub(super) fn is_one(path: &str) -> bool {
    matches!(path, "/-/explain" | "/-/diff")
}

/// Reads the question and answers it.
pub(super) async fn answer<B>(admin: Arc<Admin>, request: Request<()>, body: B) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // A form or a plain text is what a page of another origin could send unasked.
    let is_json = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/json");
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_json) {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send content-type: application/json\n");
    }
    let explains = request.uri().path() == "/-/explain";
    let most = if explains { LONGEST_QUESTION } else { LARGEST_CONFIGURATION };
    let body = match timeout(PATIENCE, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the question is too long, or broke off\n"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the question did not arrive in time\n"),
    };
    // Compiling takes milliseconds that no health check should wait for.
    let answered = move || if explains { explained(&admin, &body) } else { differs(&admin, &body) };
    tokio::task::spawn_blocking(answered)
        .await
        .unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "the question could not be answered\n"))
}

fn explained(admin: &Admin, body: &[u8]) -> Response<Full<Bytes>> {
    let snapshot = admin.live.load_full();
    let question = match Question::read(body) {
        Ok(question) => question,
        Err(error) => return unanswerable(&error),
    };
    if let Some(id) = &question.request_id {
        return match past::explain(&snapshot, &admin.shared.recent, id) {
            Ok(told) => answer_json(StatusCode::OK, &json!({ "explanation": told.facts, "text": told.text })),
            Err(error) => unanswerable(&error),
        };
    }
    let alive = Some(Alive { snapshot: &snapshot, store: &admin.shared.store });
    match explain::explain(snapshot.table(), alive, &question) {
        Ok(explanation) => {
            let text = explanation.to_string();
            answer_json(StatusCode::OK, &json!({ "explanation": explanation, "text": text }))
        }
        Err(error) => unanswerable(&error),
    }
}

fn unanswerable(error: &Unanswerable) -> Response<Full<Bytes>> {
    answer_json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "error": error.to_string() }))
}

fn differs(admin: &Admin, body: &[u8]) -> Response<Full<Bytes>> {
    let Ok(texts) = serde_json::from_slice::<Texts>(body) else {
        return text(StatusCode::UNPROCESSABLE_ENTITY, "the question is no configuration\n");
    };
    if texts.providers.len() + texts.lists.len() > MOST_FILES {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "too many files\n");
    }
    let file = |File { name, text }: File| SourceFile { name, text };
    let list = |ListFile { path, name, text }: ListFile| ListSource {
        path,
        content: text.map(|text| SourceFile { name, text }).ok_or("it could not be read where the question was asked"),
    };
    let sources = Sources {
        routes: vec![file(texts.routes)],
        providers: texts.providers.into_iter().map(file).collect(),
        lists: texts.lists.into_iter().map(list).collect(),
    };
    let in_force = admin.live.load_full();
    match admin.origin.would(sources) {
        Ok(table) => {
            let diff = TableDiff::between(in_force.table(), &table).but_secrets();
            let config = in_force.table().version().to_string();
            answer_json(StatusCode::OK, &json!({ "config": config, "diff": diff, "text": diff.in_full() }))
        }
        Err(errors) => answer_json(StatusCode::UNPROCESSABLE_ENTITY, &mistakes(&errors)),
    }
}
