//! Who may come in: the receiver's checks, in the documented order.
//!
//! The nonce is looked at only after the signature, or strangers could fill its store. Everything up to the signature is
//! refused with one and the same body; which check it was is only counted.

use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;

use super::reply::Signer;
use super::{Call, Shared};
use crate::domain::clock;
use crate::domain::secret::Secret;
use crate::sign::di::{self, RequestHeader, RequestParts, SignError};
use crate::sign::hmac::sha256_hex;

/// Which check a request failed, in the order in which they are made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Refusal {
    /// No signature header, two of them, or one that does not follow the grammar; the same for `authorization`.
    Header,
    /// A key id nobody knows.
    Key,
    /// More than 300 seconds from now.
    Stale,
    /// `di-content-sha256` is there and is not the body's.
    Content,
    /// The signature is not this request's.
    Signature,
    /// The nonce has been used.
    Replay,
    /// There is no room to remember another nonce.
    NonceRoom,
    /// No access token, or one that is not or no longer valid.
    Token,
    /// The token does not allow this call.
    Scope,
    /// The idempotency key came with another body before.
    Reused,
}

/// A request whose signature is right.
pub(super) struct Admitted {
    pub(super) key_id: String,
    pub(super) nonce: String,
    pub(super) token: String,
    secret: Secret,
}

impl Admitted {
    pub(super) fn signer(&self, number: u64, other: Option<(String, Secret)>) -> Signer {
        let trace_id = format!("tr-{number:08}");
        let (key_id, secret) = other.unwrap_or_else(|| (self.key_id.clone(), self.secret.clone()));
        Signer { key_id, secret, request_nonce: self.nonce.clone(), trace_id }
    }
}

/// What the signature header says, believed or not.
pub(super) fn claimed(parts: &Parts) -> Option<RequestHeader<'_>> {
    let value = di::only_value(&parts.headers, di::REQUEST_HEADER).ok()??;
    di::parse_request_header(value).ok()
}

/// Everything up to the signature. Changes nothing, so a stranger leaves no trace.
pub(super) fn authenticate(shared: &Shared, parts: &Parts, body: &[u8]) -> Result<Admitted, Refusal> {
    let header = claimed(parts).ok_or(Refusal::Header)?;
    let token = bearer(parts)?;
    let known = shared.known();
    let secret = known.by_id.get(header.key_id).ok_or(Refusal::Key)?;
    if clock::unix_ms().abs_diff(header.timestamp_ms) > di::WINDOW_MS {
        return Err(Refusal::Stale);
    }
    check_content(parts, body)?;
    let host = authority(parts).ok_or(Refusal::Header)?;
    let signed = RequestParts {
        key_id: header.key_id,
        timestamp_ms: header.timestamp_ms,
        nonce: header.nonce,
        method: parts.method.as_str(),
        // It is served without TLS, so the default port is that of plain HTTP.
        host: &di::canonical_host(host, 80),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        token: token.as_bytes(),
        body,
    };
    di::verify_request(secret.expose(), &signed, header.tag).map_err(|_| Refusal::Signature)?;
    let (key_id, nonce) = (header.key_id.to_owned(), header.nonce.to_owned());
    Ok(Admitted { key_id, nonce, token: token.to_owned(), secret: secret.clone() })
}

/// Everything after the signature.
pub(super) fn authorise(shared: &Shared, call: Call, admitted: &Admitted) -> Result<(), Refusal> {
    let mut memory = shared.memory();
    memory.use_nonce(&admitted.key_id, &admitted.nonce)?;
    match call {
        Call::Gateway if !memory.token_is_valid(admitted) => Err(Refusal::Token),
        Call::Gateway if !memory.token_may_score(admitted) => Err(Refusal::Scope),
        Call::Token | Call::Gateway => Ok(()),
    }
}

fn bearer(parts: &Parts) -> Result<&str, Refusal> {
    match di::only_value(&parts.headers, AUTHORIZATION.as_str()) {
        Ok(None) => Ok(""),
        Ok(Some(value)) => value.strip_prefix("Bearer ").filter(|token| !token.is_empty()).ok_or(Refusal::Header),
        Err(_) => Err(Refusal::Header),
    }
}

fn check_content(parts: &Parts, body: &[u8]) -> Result<(), Refusal> {
    match di::only_value(&parts.headers, di::CONTENT_HEADER) {
        Ok(None) => Ok(()),
        Ok(Some(value)) if value == sha256_hex(body) => Ok(()),
        Ok(Some(_)) | Err(SignError::Malformed) => Err(Refusal::Content),
        Err(_) => Err(Refusal::Header),
    }
}

fn authority(parts: &Parts) -> Option<&str> {
    let host = di::only_value(&parts.headers, HOST.as_str()).ok()?;
    host.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
}
