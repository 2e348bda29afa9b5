//! One request to one provider and its response: the steps of an attempt that are the same for every protocol.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::domain::outcome::{FailureClass, Sent};
use crate::flight::error::AttemptError;
use crate::flight::gathered::Gathered;
use crate::upstream::live::LiveProvider;
use crate::upstream::patience::within;
use crate::upstream::pool::{ExchangeError, Outgoing, UpstreamBody};
use crate::upstream::secure;

/// Exchanges one request for a response head. A kept connection that died under a call which may be repeated gets one
/// replacement, because an idle timer on the other side is nobody's failure; `again` makes the request once more, and is
/// absent where that could decide something twice.
pub(super) async fn exchange(
    provider: &LiveProvider,
    request: Outgoing,
    connect: Duration,
    again: Option<impl FnOnce() -> Outgoing>,
) -> Result<Response<UpstreamBody>, AttemptError> {
    let result = match (provider.pool.exchange(request, connect).await, again) {
        (Err(ExchangeError::Broken { reused: true, .. }), Some(again)) => {
            // Boxed because it is rare: a future has room for its largest step, and every attempt carries that.
            Box::pin(provider.pool.exchange_fresh(again(), connect)).await
        }
        (result, _) => result,
    };
    result.map_err(|error| classified(provider, &error))
}

/// As [`exchange`], over a connection of its own and once.
pub(super) async fn exchange_once(
    provider: &LiveProvider,
    request: Outgoing,
    connect: Duration,
) -> Result<Response<UpstreamBody>, AttemptError> {
    provider.pool.exchange_once(request, connect).await.map_err(|error| classified(provider, &error))
}

fn classified(provider: &LiveProvider, error: &ExchangeError) -> AttemptError {
    let (sent, detail) = match error {
        ExchangeError::TooManyInterim => {
            let detail = "more than sixteen interim responses came before an answer";
            return AttemptError::new(FailureClass::BadReply, Sent::Yes, detail);
        }
        ExchangeError::Ambiguous => {
            let detail = "the answer has both a length and a coding, so nobody can tell where it ends";
            return AttemptError::new(FailureClass::BadReply, Sent::Yes, detail);
        }
        ExchangeError::Connect(error) => {
            let why = secure::why(error);
            // Waiting does not help against it: somebody has to do something.
            if why != secure::UNREACHED && provider.estranged.is_due() {
                tracing::warn!(provider = %provider.provider.id, "{why}");
            }
            (Sent::No, why)
        }
        ExchangeError::Broken { sent: Sent::No, .. } => {
            (Sent::No, "the connection closed before the request was written")
        }
        ExchangeError::Broken { sent, .. } => (*sent, "the connection broke before a response"),
    };
    AttemptError::new(FailureClass::Connect, sent, detail)
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
    let mut gathered = Gathered::default();
    while !body.is_over() {
        let Some(frame) = within(idle, body.frame()).await.map_err(|_| ReadError::Stalled)? else { break };
        let Ok(chunk) = frame.map_err(|_| ReadError::Broken)?.into_data() else { continue };
        if gathered.len() + chunk.len() > limit {
            return Err(ReadError::TooLarge);
        }
        gathered.push(chunk, usize::try_from(body.size_hint().lower()).unwrap_or(0).min(limit));
    }
    Ok(gathered.finish())
}
