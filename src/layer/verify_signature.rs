//! Requests of callers who must sign: is this one theirs, whole, of now, and new?
//!
//! The `di-hmac` request form (`sign::di`), the other way round: here we are the receiver. The checks are made in the
//! documented order, and the nonce is looked at last, or whoever knows a caller's bearer key could fill the store with
//! requests it never signed. Everything up to the signature gets one and the same answer; which check it was is only
//! counted. A caller without `signature` costs one branch.

use std::sync::Arc;

use futures_util::future::Either;
use http::header::HOST;
use http::request::Parts;
use tower::{Layer, Service};

use crate::domain::clock;
use crate::domain::operation::Operation;
use crate::flight::arrival::{Arrival, LiveCaller, Secured};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::upload::Received;
use crate::layer::answering::Gated;
use crate::layer::authenticate::presented_key;
use crate::layer::{BoxFuture, always_ready};
use crate::sign::di::{self, RequestParts, SignError};
use crate::sign::hmac::sha256_hex;
use crate::sign::keyring::Keyring;
use crate::telemetry::labels::SignatureRefusal;
use crate::telemetry::metrics::Metrics;
use crate::upstream::apart::{LARGE, apart};

mod journal;
mod nonces;

pub use nonces::Nonces;

use nonces::{Nonce, Taken};

/// Ports that a host header leaves out: of a listener in the clear (whoever ends TLS in front of it passes the host on as
/// the client wrote it), and of one with TLS of our own.
const DEFAULT_PORT: u16 = 80;
const DEFAULT_TLS_PORT: u16 = 443;

/// Plain values for [`VerifySignatureLayer`].
#[derive(Clone)]
pub struct Params {
    /// Nonces used; survive reloads, and restarts where there is a folder for them.
    pub nonces: Nonces,
    /// Counts refusals.
    pub metrics: Arc<Metrics>,
}

/// Makes [`VerifySignature`].
#[derive(Clone)]
pub struct VerifySignatureLayer(pub Params);

/// Lets signed requests of those who must sign through, and everybody else's.
#[derive(Clone)]
pub struct VerifySignature<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for VerifySignatureLayer {
    type Service = VerifySignature<S>;

    fn layer(&self, inner: S) -> VerifySignature<S> {
        VerifySignature { inner, params: self.0.clone() }
    }
}

impl<S, P> Service<Arrival<P, Received>> for VerifySignature<S>
where
    S: Service<Arrival<P, Received>, Response = Reply, Error = CallError> + Clone + Send + 'static,
    S::Future: Send,
    P: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Either<Gated<S::Future, CallError>, BoxFuture<Result<Reply, CallError>>>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, Received>) -> Self::Future {
        let signs = arrival.caller.as_deref().is_some_and(|live| live.caller.signature.is_some());
        if !signs {
            return Either::Left(Gated::open(self.inner.call(arrival)));
        }
        let params = self.params.clone();
        if arrival.body.bytes.len() > LARGE {
            let mut inner = self.inner.clone();
            return Either::Right(Box::pin(async move {
                // A digest of megabytes would hold up every other connection of this core.
                let body = arrival.body.bytes.clone();
                let digest = apart(move || sha256_hex(&body)).await.ok_or(CallError::Internal)?;
                check(&params, &arrival, digest)?;
                inner.call(arrival).await
            }));
        }
        Either::Left(match check(&params, &arrival, sha256_hex(&arrival.body.bytes)) {
            Ok(()) => Gated::open(self.inner.call(arrival)),
            Err(error) => Gated::shut(error),
        })
    }
}

fn check<P>(params: &Params, arrival: &Arrival<P, Received>, digest: String) -> Result<(), CallError> {
    let Some((caller, operation)) = arrival.caller.as_deref().zip(arrival.operation) else {
        return Err(CallError::Internal);
    };
    let now_ms = clock::unix_ms();
    let message = Message { head: &arrival.head, operation, digest };
    let result = admit(&params.nonces, caller, &message, now_ms);
    result.map_err(|refusal| {
        params.metrics.signature_refused(refusal);
        match refusal {
            SignatureRefusal::Stale => CallError::StaleTimestamp { now_ms },
            SignatureRefusal::Replay => CallError::Replayed,
            SignatureRefusal::NoRoom => CallError::NoNonceRoom,
            SignatureRefusal::Header
            | SignatureRefusal::Key
            | SignatureRefusal::Content
            | SignatureRefusal::Mismatch => CallError::BadSignature,
        }
    })
}

/// What was signed, as it arrived.
struct Message<'a> {
    head: &'a Parts,
    operation: Operation,
    /// Hex SHA-256 of the body's exact bytes.
    digest: String,
}

fn admit(nonces: &Nonces, caller: &LiveCaller, message: &Message<'_>, now_ms: u64) -> Result<(), SignatureRefusal> {
    let Some(keys) = caller.caller.signature.as_deref() else { return Ok(()) };
    let signed = authenticate(keys, message, now_ms)?;
    let oldest_ms = nonces.oldest_ms();
    if signed.timestamp_ms < oldest_ms {
        // From before a start that remembers no nonces: it may have been used then.
        return Err(SignatureRefusal::Stale);
    }
    let nonce = Nonce::of(caller.caller.id.as_str(), signed.key_id, signed.nonce);
    match nonces.take(nonce, now_ms) {
        Taken::Fresh => Ok(()),
        Taken::Before => Err(SignatureRefusal::Replay),
        Taken::NoRoom => Err(SignatureRefusal::NoRoom),
    }
}

/// Everything up to the signature. Changes nothing, so a stranger leaves no trace.
fn authenticate<'a>(
    keys: &Keyring,
    message: &Message<'a>,
    now_ms: u64,
) -> Result<di::RequestHeader<'a>, SignatureRefusal> {
    let Message { head, operation, digest } = message;
    let malformed = |_: SignError| SignatureRefusal::Header;
    let value = di::only_value(&head.headers, di::REQUEST_HEADER).map_err(malformed)?;
    let header = di::parse_request_header(value.ok_or(SignatureRefusal::Header)?).map_err(malformed)?;
    let key = keys.verifier(header.key_id).ok_or(SignatureRefusal::Key)?;
    if now_ms.abs_diff(header.timestamp_ms) > di::WINDOW_MS {
        return Err(SignatureRefusal::Stale);
    }
    if di::only_value(&head.headers, di::CONTENT_HEADER).map_err(malformed)?.is_some_and(|told| told != digest) {
        return Err(SignatureRefusal::Content);
    }
    let host = di::only_value(&head.headers, HOST.as_str()).map_err(malformed)?;
    let host = host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str));
    let port = if Secured::of(head).is_some() { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
    let token = presented_key(*operation, &head.headers).ok_or(SignatureRefusal::Header)?;
    let parts = RequestParts {
        key_id: header.key_id,
        timestamp_ms: header.timestamp_ms,
        nonce: header.nonce,
        method: head.method.as_str(),
        host: &di::canonical_host(host.ok_or(SignatureRefusal::Header)?, port),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        token,
        body: &[],
    };
    let signed = di::verify_digested(key.secret.expose(), &parts, digest, header.tag);
    signed.map(|()| header).map_err(|_| SignatureRefusal::Mismatch)
}

#[cfg(test)]
mod tests;
