//! How many tokens a message has, on routes where no provider counts.
//!
//! Clients of the Messages form ask for it to know how full a context is, and many cannot go on if it is refused. So a
//! route that can answer messages answers this too: by the providers that count, or else by our own estimate, which says
//! in a header that it is one. A provider that counts but fails is deliberately not covered up by an estimate.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::config::table::LlmRoute;
use crate::domain::operation::Operation;
use crate::flight::reply::Reply;
use crate::wire::messages::estimated_tokens;

/// Says that an answer is our own estimate.
const ESTIMATE: HeaderName = HeaderName::from_static("wb-estimate");

/// True if the route can answer messages and nobody of it counts.
pub(super) fn is_estimated(route: &LlmRoute) -> bool {
    let offers = |operation: Operation| {
        route.candidates.iter().any(|candidate| candidate.provider.operations.contains(&operation))
    };
    let answers = offers(Operation::Messages) || Operation::Messages.carried_by().is_some_and(offers);
    answers && !offers(Operation::CountTokens)
}

/// The answer to `POST /v1/messages/count_tokens` on such a route.
pub(super) fn estimate(route: &LlmRoute, body: &[u8]) -> Option<Reply> {
    if !is_estimated(route) {
        return None;
    }
    let tokens = estimated_tokens(body)?;
    let mut reply = Reply::json(Bytes::from(format!("{{\"input_tokens\":{tokens}}}")));
    reply.headers.insert(ESTIMATE, HeaderValue::from_static("true"));
    Some(reply)
}
