//! From a body to what is known of it: the model asked for, the few facts the stacks need, and, where some candidate
//! does not have the caller's form, the same call as chat completions.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::table::LlmRoute;
use crate::domain::id::TenantId;
use crate::domain::operation::{Dialect, Operation};
use crate::flight::carried::{Back, Carried};
use crate::flight::error::CallError;
use crate::flight::facts::{LlmFacts, Span};
use crate::flight::upload::Upload;
use crate::routing::order;
use crate::wire::openai::{self, DecodeError};
use crate::wire::session::conversation_of;
use crate::wire::{messages, responses};

/// Which version of the Messages form is spoken; providers refuse a call without one.
const VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// What a caller calls its conversation.
const SESSION: HeaderName = HeaderName::from_static("wb-session");
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");
/// What callers that do not say get, the form's first stable version
/// (<https://docs.anthropic.com/en/api/versioning>, read Nov 2026).
const FIRST_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// What a body says.
pub(super) struct Decoded<'b> {
    /// The model asked for: a route's name.
    pub(super) model: Cow<'b, str>,
    /// What else matters.
    pub(super) facts: LlmFacts,
}

/// Reads the facts of a call to a model.
pub(super) fn decode(operation: Operation, body: &[u8], depth: usize) -> Result<Decoded<'_>, CallError> {
    let decoded = match operation {
        Operation::Responses => responses::peek_request(body, depth).map(|facts| {
            let model_at = facts.model_at(body).map(span);
            let anchored = facts.has_previous_response || facts.has_conversation || facts.background;
            let facts = (LlmFacts { stream: facts.stream, anchored, model_at, ..LlmFacts::default() }, facts.model);
            Decoded { facts: facts.0, model: facts.1 }
        }),
        Operation::Messages | Operation::CountTokens => message(operation, body, depth),
        _ => openai::peek_request(body, depth).map(|facts| Decoded {
            facts: LlmFacts {
                stream: facts.stream,
                include_usage: facts.include_usage,
                keeps_usage: false,
                has_stream_options: facts.has_stream_options,
                plain: false,
                anchored: false,
                model_at: facts.model_at(body).map(span),
            },
            model: facts.model,
        }),
    };
    decoded.map_err(|error| CallError::BadRequest { message: error.to_string(), param: error.param.map(str::to_owned) })
}

/// Reads the facts of a form that is here or has begun to be.
pub(super) fn decode_form<'b>(body: &'b [u8], upload: &Upload) -> Result<Decoded<'b>, CallError> {
    let refused =
        |message: &str| CallError::BadRequest { message: message.to_owned(), param: Some("model".to_owned()) };
    let at = upload.fields.model.clone().ok_or_else(|| refused("model is missing"))?;
    let model = body.get(at.clone()).and_then(|name| std::str::from_utf8(name).ok());
    let model =
        model.filter(|name| !name.chars().any(char::is_control)).ok_or_else(|| refused("model is not a name"))?;
    let value = |place: &Option<Range<usize>>| body.get(place.clone()?).map(<[u8]>::trim_ascii);
    let plain = match value(&upload.fields.response_format) {
        Some(format) => !format.ends_with(b"json"),
        // It may lie in the part nobody has seen yet.
        None => !upload.is_whole(),
    };
    let stream = value(&upload.fields.stream).is_some_and(|wish| wish.eq_ignore_ascii_case(b"true") || wish == b"1");
    let facts = LlmFacts { stream, plain, model_at: Some(span(at)), ..LlmFacts::default() };
    Ok(Decoded { model: Cow::Borrowed(model), facts })
}

fn message(operation: Operation, body: &[u8], depth: usize) -> Result<Decoded<'_>, DecodeError> {
    let facts = messages::peek_request(body, depth)?;
    if operation == Operation::Messages {
        facts.needs_max_tokens()?;
    }
    let model_at = facts.model_at(body).map(span);
    Ok(Decoded { facts: LlmFacts { stream: facts.stream, model_at, ..LlmFacts::default() }, model: facts.model })
}

fn span(range: std::ops::Range<usize>) -> Span {
    Span { start: range.start, end: range.end }
}

/// The call as chat completions, if a candidate of the route needs it and it can be said that way.
///
/// # Errors
/// [`CallError::BadRequest`] if no candidate could serve it, [`CallError::NotOffered`] if none has the operation at all.
pub(super) fn carry(
    operation: Operation,
    body: &[u8],
    stream: bool,
    route: &LlmRoute,
) -> Result<Option<Arc<Carried>>, CallError> {
    let offering = |wanted: Operation| {
        route.candidates.iter().filter(|candidate| candidate.provider.operations.contains(&wanted)).count()
    };
    let natives = offering(operation);
    let carriers = operation.carried_by().map_or(0, offering);
    if natives == route.candidates.len() {
        return Ok(None);
    }
    if natives == 0 && carriers == 0 {
        return Err(CallError::NotOffered { operation: operation.label() });
    }
    let carried = match operation {
        Operation::Responses => carry_response(body, stream),
        Operation::Messages => carry_message(body, stream),
        _ => return Ok(None),
    };
    match carried {
        Ok(carried) => Ok(Some(Arc::new(carried))),
        // A candidate that has the form itself may be able to.
        Err(_) if natives > 0 => Ok(None),
        Err(refused) => Err(refused),
    }
}

fn carry_response(body: &[u8], stream: bool) -> Result<Carried, CallError> {
    let said = responses::to_chat(body, responses::HostedTools::LeaveOut).map_err(|refusal| CallError::BadRequest {
        message: refusal.message.to_owned(),
        param: Some(refusal.param).filter(|param| !param.is_empty()),
    })?;
    let facts = carried_facts(stream, said.model_at);
    let back = Back::Responses(Arc::new(said.echo));
    Ok(Carried { body: said.body, facts, back, left_out: named(&said.left_out) })
}

fn carry_message(body: &[u8], stream: bool) -> Result<Carried, CallError> {
    let said = messages::to_chat(body).map_err(|refusal| CallError::BadRequest {
        message: refusal.message,
        param: Some(refusal.param.to_owned()).filter(|param| !param.is_empty()),
    })?;
    let facts = carried_facts(stream, said.model_at);
    Ok(Carried { body: said.body, facts, back: Back::Messages, left_out: named(&said.dropped) })
}

/// Streams that are carried always ask for the token counts, which the caller's form has in its events.
fn carried_facts(stream: bool, model_at: Option<std::ops::Range<usize>>) -> LlmFacts {
    LlmFacts {
        stream,
        include_usage: stream,
        keeps_usage: false,
        has_stream_options: stream,
        plain: false,
        anchored: false,
        model_at: model_at.map(span),
    }
}

fn named(words: &[&'static str]) -> Option<HeaderValue> {
    (!words.is_empty()).then(|| HeaderValue::from_str(&words.join(", ")).ok())?
}

/// The number of the call's conversation: what the caller says of it in a header, or what its body says. Another tenant's
/// is another one, whatever it is called.
pub(super) fn conversation((headers, body): (&HeaderMap, &[u8]), tenant: &TenantId) -> Option<u64> {
    let named = headers.get(&SESSION).map(|session| order::hash(session.as_bytes()));
    let number = named.or_else(|| conversation_of(body))?;
    Some(order::hash(&[tenant.as_str().as_bytes(), &number.to_be_bytes()].concat()))
}

/// The caller's headers that providers of this form need; nothing else of the caller's reaches one.
pub(super) fn forwarded(operation: Operation, theirs: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if operation.dialect() == Dialect::Anthropic {
        headers.insert(VERSION, theirs.get(&VERSION).cloned().unwrap_or(FIRST_VERSION));
        headers.extend(theirs.get(&BETA).map(|value| (BETA, value.clone())));
    }
    headers
}
