//! One attempt, step by step: prepare, token, sign, exchange, read or prime, verify, classify.
//!
//! Steps and not layers, because they must be innermost, happen anew for every attempt, and cover the exact bytes: a
//! step cannot be put in the wrong place.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;

use crate::config::table::Protocol;
use crate::domain::operation::Safety;
use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::upstream::alipay::di;
use crate::upstream::attempt::Attempt;
use crate::upstream::live::{LiveProvider, LiveUpstream};
use crate::upstream::openai;
use crate::upstream::pool::{ExchangeError, UpstreamBody};

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
            let request = openai::prepare(&attempt, &upstream)?;
            let safety = attempt.call.operation.safety();
            let response = exchange(&upstream.provider, request, attempt.connect, safety).await?;
            openai::read(response, &attempt, &upstream).await
        }
        Protocol::DiHmac => {
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
    }
}

/// Exchanges one request for a response head. A kept connection that died under a call which may be repeated gets one
/// replacement, because an idle timer on the other side is nobody's failure.
pub(super) async fn exchange(
    provider: &LiveProvider,
    request: Request<Full<Bytes>>,
    connect: Duration,
    safety: Safety,
) -> Result<Response<UpstreamBody>, AttemptError> {
    let spare = (safety != Safety::AtMostOnce).then(|| request.clone());
    let result = match (provider.pool.exchange(request, connect).await, spare) {
        (Err(ExchangeError::Broken { reused: true, .. }), Some(spare)) => {
            provider.pool.exchange_fresh(spare, connect).await
        }
        (result, _) => result,
    };
    result.map_err(|error| match error {
        ExchangeError::Connect(_) => {
            AttemptError::new(FailureClass::Connect, Sent::No, "no connection to the provider")
        }
        ExchangeError::Broken { sent: Sent::No, .. } => {
            AttemptError::new(FailureClass::Connect, Sent::No, "the connection closed before the request was written")
        }
        ExchangeError::Broken { sent, .. } => {
            AttemptError::new(FailureClass::Connect, sent, "the connection broke before a response")
        }
    })
}

/// Why a whole body could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReadError {
    TooLarge,
    Stalled,
    Broken,
}

impl ReadError {
    pub(super) fn into_attempt_error(self) -> AttemptError {
        let (class, detail) = match self {
            Self::TooLarge => (FailureClass::BadReply, "the answer is larger than allowed"),
            Self::Stalled => (FailureClass::NoContent, "the answer stalled"),
            Self::Broken => (FailureClass::NoContent, "the answer broke off"),
        };
        AttemptError::new(class, Sent::Yes, detail)
    }
}

/// Reads a body to its end, at most `limit` bytes of it, with at most `idle` of silence.
pub(super) async fn read_whole(mut body: UpstreamBody, limit: usize, idle: Duration) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while !body.is_over() {
        let Some(frame) = timeout(idle, body.frame()).await.map_err(|_| ReadError::Stalled)? else { break };
        let Ok(chunk) = frame.map_err(|_| ReadError::Broken)?.into_data() else { continue };
        if first.len() + rest.len() + chunk.len() > limit {
            return Err(ReadError::TooLarge);
        }
        // Most answers come in one piece: keep it as it is.
        if first.is_empty() && rest.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                let hint = usize::try_from(body.size_hint().lower()).unwrap_or(0).min(limit);
                rest.reserve(first.len() + chunk.len() + hint);
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&chunk);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

#[cfg(test)]
mod tests;
