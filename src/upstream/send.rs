//! One attempt, step by step: prepare, token, sign, exchange, read or prime, verify, classify.
//!
//! Steps and not layers, because they must be innermost, happen anew for every attempt, and cover the exact bytes: a
//! step cannot be put in the wrong place.

use std::sync::Arc;

use bytes::Bytes;

use crate::config::table::Protocol;
use crate::domain::operation::Safety;
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::upstream::alipay::di;
use crate::upstream::attempt::Attempt;
use crate::upstream::body::RequestBody;
use crate::upstream::exchange::exchange;
use crate::upstream::live::LiveUpstream;
use crate::upstream::openai;
use crate::upstream::upload;

/// Sends the call to one upstream and returns a whole answer, or a stream past its first content.
///
/// # Errors
/// [`AttemptError`], classified, with what may have been sent.
///
/// # Cancel safety
/// Dropping the future closes the upstream connection.
pub async fn send(attempt: Attempt, upstream: Arc<LiveUpstream>) -> Result<Reply, AttemptError> {
    match upstream.candidate.provider.protocol {
        Protocol::OpenAi => {
            let mut spoken = openai::Spoken::new(&attempt.call, &upstream)?;
            if let Some(form) = &attempt.call.upload {
                // Boxed because it is rare and large.
                return Box::pin(upload::send(form, &spoken, &attempt, &upstream)).await;
            }
            let pieces = openai::splice(&spoken, &upstream);
            let body = if pieces.is_some() {
                Bytes::new()
            } else if spoken.is_large() {
                let (body, dropped) = Box::pin(openai::prepare_apart(&attempt.call, &upstream)).await?;
                spoken.dropped = dropped;
                body
            } else {
                openai::prepare(&mut spoken, &upstream)?
            };
            let body = || pieces.clone().map_or_else(|| body.clone().into(), RequestBody::from);
            let request = || openai::request(body(), &spoken, &attempt.call, &upstream);
            let repeatable = attempt.call.operation.safety() != Safety::AtMostOnce;
            let response =
                exchange(&upstream.provider, request(), attempt.connect, repeatable.then_some(request)).await?;
            openai::read(response, &spoken, &attempt, &upstream).await
        }
        // Boxed, so that a chat call does not carry the room an assessment needs.
        Protocol::DiHmac => Box::pin(assess(attempt, upstream)).await,
    }
}

async fn assess(attempt: Attempt, upstream: Arc<LiveUpstream>) -> Result<Reply, AttemptError> {
    let token = di::token(&attempt, &upstream).await?;
    match di::assess(&attempt, &upstream, &token).await {
        // The one failure that proves nothing was processed: the token was refused at the door.
        Err(error) if di::is_stale_token(&error) => {
            upstream.provider.token.drop_token(&token);
            let token = di::token(&attempt, &upstream).await?;
            di::assess(&attempt, &upstream, &token).await
        }
        result => result,
    }
}

#[cfg(test)]
mod tests;
