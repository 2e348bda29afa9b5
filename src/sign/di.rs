//! The `di-hmac` dialect: the exact texts that are signed, for a request and for its answer, and their headers.
//!
//! Both sides of the wire use this file, the proxy to sign and verify, the simulated provider to verify and sign, so it
//! is checked against vectors made elsewhere (`tests/golden/sign/di.json`). It does not remember nonces and does not
//! know which keys exist: replay and revocation need state, and this floor has none.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode};

use super::hmac::{mac, sha256_hex, verify};
use super::keyring::Keyring;

mod query;

#[cfg(test)]
mod tests;

pub use query::{canonical as canonical_query, decode as percent_decoded};

/// Carries the signature of a request.
pub const REQUEST_HEADER: &str = "di-signature";
/// Carries the hex SHA-256 of a request's body; redundant, but must match where it is present.
pub const CONTENT_HEADER: &str = "di-content-sha256";
/// Carries the signature of an answer.
pub const RESPONSE_HEADER: &str = "di-response-signature";
/// Carries the provider's own name for the call.
pub const TRACE_HEADER: &str = "di-trace-id";
/// Carries the version of the model that scored.
pub const MODEL_HEADER: &str = "di-model-version";
/// How far a signature's time may be from the verifier's clock, in milliseconds, either way.
pub const WINDOW_MS: u64 = 300_000;

const REQUEST_SCHEME: &str = "DI1-HMAC-SHA256";
const RESPONSE_SCHEME: &str = "DI1-HMAC-SHA256-RESPONSE";
/// Characters of a nonce: 16 bytes in base64url without padding.
const NONCE_LENGTH: usize = 22;
const LONGEST_KEY_ID: usize = 64;

/// Why something could not be signed or is not authentic. No variant carries a value: all of them end up in logs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum SignError {
    /// There is no signature header.
    #[error("the signature header is missing")]
    Missing,
    /// A header the signature needs is there more than once.
    #[error("a header of the signature is there more than once")]
    Repeated,
    /// The header does not follow the grammar.
    #[error("the signature header is malformed: write the keys in the documented order, each once")]
    Malformed,
    /// The header names a version other than 1.
    #[error("the signature version is not known: only v=1 is")]
    Version,
    /// The key id is not the one expected.
    #[error("the signature was made with another key id")]
    WrongKey,
    /// The signature's time is more than [`WINDOW_MS`] away from now.
    #[error("the signature's time is more than 300 s from this clock: check both clocks")]
    Stale,
    /// The tag is not the one of this message under this secret.
    #[error("the signature does not match: compare the two texts that were signed")]
    Mismatch,
    /// A signed field holds a character that would make the signed text ambiguous.
    #[error("a signed field holds a character it may not: use plain ids without line breaks or commas")]
    Separator,
    /// The operating system gave no random bytes.
    #[error("the operating system's random source failed: no nonce can be made")]
    Randomness,
}

/// Everything a request's signature covers.
#[derive(Clone, Copy)]
pub struct RequestParts<'a> {
    /// Names the secret: 1 to 64 characters of `[0-9A-Za-z._-]`.
    pub key_id: &'a str,
    /// When it was signed, milliseconds since 1970.
    pub timestamp_ms: u64,
    /// 22 characters of base64url, never used before; see [`fresh_nonce`].
    pub nonce: &'a str,
    /// The method; upper-cased before signing.
    pub method: &'a str,
    /// The authority without its default port (see [`canonical_host`]); lower-cased before signing.
    pub host: &'a str,
    /// The path as sent, percent-encoding untouched.
    pub path: &'a str,
    /// The query as sent, without `?`; empty if there is none.
    pub query: &'a str,
    /// The bearer token; empty if there is none.
    pub token: &'a [u8],
    /// The exact bytes of the body.
    pub body: &'a [u8],
}

/// The ten lines a request's signature covers.
pub fn request_string(parts: &RequestParts<'_>) -> String {
    request_lines(parts, &sha256_hex(parts.body))
}

fn request_lines(parts: &RequestParts<'_>, body_digest: &str) -> String {
    [
        REQUEST_SCHEME,
        parts.key_id,
        &parts.timestamp_ms.to_string(),
        parts.nonce,
        &parts.method.to_ascii_uppercase(),
        &parts.host.to_ascii_lowercase(),
        parts.path,
        &canonical_query(parts.query),
        &sha256_hex(parts.token),
        body_digest,
    ]
    .join("\n")
}

/// A signature ready for the [`REQUEST_HEADER`].
#[derive(Clone, PartialEq, Eq)]
pub struct RequestSignature {
    key_id: String,
    timestamp_ms: u64,
    nonce: String,
    tag: String,
}

impl RequestSignature {
    /// `v=1,kid=..,ts=..,nonce=..,sig=..`
    pub fn header_value(&self) -> String {
        self.to_string()
    }

    /// The base64 tag alone.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for RequestSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key_id, timestamp_ms, nonce, tag } = self;
        write!(f, "v=1,kid={key_id},ts={timestamp_ms},nonce={nonce},sig={tag}")
    }
}

impl fmt::Debug for RequestSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestSignature").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// Signs a request.
///
/// # Errors
/// [`SignError::Separator`] if the key id or nonce does not follow its grammar, or another field holds a line break:
/// then two different requests could share one signed text (C6).
pub fn sign_request(secret: &[u8], parts: &RequestParts<'_>) -> Result<RequestSignature, SignError> {
    check_request(parts)?;
    let tag = STANDARD.encode(mac(secret, &[request_string(parts).as_bytes()]));
    Ok(RequestSignature {
        key_id: parts.key_id.to_owned(),
        timestamp_ms: parts.timestamp_ms,
        nonce: parts.nonce.to_owned(),
        tag,
    })
}

/// Checks a request's base64 tag in constant time. Time, key and nonce are the verifier's business.
///
/// # Errors
/// [`SignError::Separator`] as for signing, [`SignError::Malformed`] if the tag is not base64 of 32 bytes,
/// [`SignError::Mismatch`] if it is another request's.
pub fn verify_request(secret: &[u8], parts: &RequestParts<'_>, tag: &str) -> Result<(), SignError> {
    check_request(parts)?;
    check_tag(secret, &request_string(parts), tag)
}

/// As [`verify_request`], for whoever has the hex SHA-256 of the body already; `parts.body` is not looked at.
///
/// # Errors
/// As [`verify_request`].
pub fn verify_digested(secret: &[u8], parts: &RequestParts<'_>, body_digest: &str, tag: &str) -> Result<(), SignError> {
    check_request(parts)?;
    check_tag(secret, &request_lines(parts, body_digest), tag)
}

/// What a [`REQUEST_HEADER`] says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader<'a> {
    /// Which secret.
    pub key_id: &'a str,
    /// When, milliseconds since 1970.
    pub timestamp_ms: u64,
    /// The nonce.
    pub nonce: &'a str,
    /// The base64 tag.
    pub tag: &'a str,
}

impl fmt::Debug for RequestHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHeader").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// Reads a [`REQUEST_HEADER`]: exactly the keys `v`, `kid`, `ts`, `nonce`, `sig`, in that order, each once, no spaces.
///
/// # Errors
/// [`SignError::Version`] for another version, [`SignError::Malformed`] for every other deviation.
pub fn parse_request_header(value: &str) -> Result<RequestHeader<'_>, SignError> {
    let [key_id, timestamp, nonce, tag] = header_fields(value, ["kid=", "ts=", "nonce=", "sig="])?;
    if !is_key_id(key_id) || !is_nonce(nonce) {
        return Err(SignError::Malformed);
    }
    decode_tag(tag)?;
    Ok(RequestHeader { key_id, timestamp_ms: parse_timestamp(timestamp)?, nonce, tag })
}

/// Everything an answer's signature covers.
#[derive(Clone, Copy)]
pub struct ResponseParts<'a> {
    /// Names the secret.
    pub key_id: &'a str,
    /// When it was signed by the provider's clock, milliseconds since 1970.
    pub timestamp_ms: u64,
    /// The nonce of the request this answers.
    pub request_nonce: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// The value of [`TRACE_HEADER`], empty if there is none.
    pub trace_id: &'a str,
    /// The value of [`MODEL_HEADER`], empty if there is none.
    pub model_version: &'a str,
    /// The exact bytes of the body.
    pub body: &'a [u8],
}

/// The eight lines an answer's signature covers.
pub fn response_string(parts: &ResponseParts<'_>) -> String {
    [
        RESPONSE_SCHEME,
        parts.key_id,
        &parts.timestamp_ms.to_string(),
        parts.request_nonce,
        &parts.status.to_string(),
        parts.trace_id,
        parts.model_version,
        &sha256_hex(parts.body),
    ]
    .join("\n")
}

/// Signs an answer; the value of its [`RESPONSE_HEADER`].
///
/// # Errors
/// [`SignError::Separator`] if a field could make the signed text ambiguous.
pub fn sign_response(secret: &[u8], parts: &ResponseParts<'_>) -> Result<String, SignError> {
    check_response(parts)?;
    let tag = STANDARD.encode(mac(secret, &[response_string(parts).as_bytes()]));
    Ok(format!("v=1,kid={},ts={},sig={tag}", parts.key_id, parts.timestamp_ms))
}

/// An answer as it arrived, not yet trusted.
#[derive(Clone, Copy)]
pub struct ReceivedResponse<'a> {
    /// The nonce of our request.
    pub request_nonce: &'a str,
    /// Its status.
    pub status: StatusCode,
    /// All its headers.
    pub headers: &'a HeaderMap,
    /// The exact bytes of its body.
    pub body: &'a [u8],
}

/// What the signed headers of an authentic answer say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Authentic<'a> {
    /// The provider's own name for the call.
    pub trace_id: Option<&'a str>,
    /// The model that scored.
    pub model_version: Option<&'a str>,
}

/// An answer that somebody with one of our keys gave to this very request. What it says is handed out by
/// [`Signed::within`] alone: its time may still be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed<'a> {
    /// When it was signed by the provider's clock, milliseconds since 1970.
    pub timestamp_ms: u64,
    says: Authentic<'a>,
}

impl<'a> Signed<'a> {
    /// What it says, if it was signed at most [`WINDOW_MS`] away from now.
    ///
    /// # Errors
    /// [`SignError::Stale`]; the answer must be ignored.
    pub fn within(self, now_ms: u64) -> Result<Authentic<'a>, SignError> {
        if now_ms.abs_diff(self.timestamp_ms) > WINDOW_MS { Err(SignError::Stale) } else { Ok(self.says) }
    }
}

/// Accepts an answer only if it is signed, with a key that may be believed, for exactly this request, status, headers and
/// body. The signed headers are handed out by what it returns and nowhere else, so they cannot be used unverified.
///
/// The time is looked at last: only an authentic answer can say how far apart the two clocks are.
///
/// # Errors
/// Every [`SignError`] except [`SignError::Randomness`] and [`SignError::Stale`]; each of them means the answer must be
/// ignored.
pub fn authenticate_response<'a>(keys: &Keyring, received: &ReceivedResponse<'a>) -> Result<Signed<'a>, SignError> {
    let header = only_value(received.headers, RESPONSE_HEADER)?.ok_or(SignError::Missing)?;
    let trace_id = only_value(received.headers, TRACE_HEADER)?;
    let model_version = only_value(received.headers, MODEL_HEADER)?;
    let [kid, timestamp, tag] = header_fields(header, ["kid=", "ts=", "sig="])?;
    let timestamp_ms = parse_timestamp(timestamp)?;
    let Some(key) = keys.verifier(kid) else {
        return Err(if is_key_id(kid) { SignError::WrongKey } else { SignError::Malformed });
    };
    let parts = ResponseParts {
        key_id: &key.id,
        timestamp_ms,
        request_nonce: received.request_nonce,
        status: received.status.as_u16(),
        trace_id: trace_id.unwrap_or_default(),
        model_version: model_version.unwrap_or_default(),
        body: received.body,
    };
    check_response(&parts)?;
    check_tag(key.secret.expose(), &response_string(&parts), tag)?;
    Ok(Signed { timestamp_ms, says: Authentic { trace_id, model_version } })
}

/// As [`authenticate_response`], and signed now.
///
/// # Errors
/// Every [`SignError`] except [`SignError::Randomness`]; each of them means the answer must be ignored.
pub fn verify_response<'a>(
    keys: &Keyring,
    received: &ReceivedResponse<'a>,
    now_ms: u64,
) -> Result<Authentic<'a>, SignError> {
    authenticate_response(keys, received)?.within(now_ms)
}

/// The one value of a header that a signature depends on, `None` if it is absent. Two values are refused rather than
/// one of them chosen: the other side may choose differently (C7).
///
/// # Errors
/// [`SignError::Repeated`] for a second value, [`SignError::Malformed`] if it is not visible ASCII.
pub fn only_value<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, SignError> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    match values.next() {
        Some(_) => Err(SignError::Repeated),
        None => first.to_str().map(Some).map_err(|_| SignError::Malformed),
    }
}

/// An authority as it is signed: lower case, without `default_port` (80 or 443, that of the scheme in use).
pub fn canonical_host(authority: &str, default_port: u16) -> String {
    let lower = authority.to_ascii_lowercase();
    match lower.rsplit_once(':') {
        Some((host, port)) if port.parse() == Ok(default_port) && !host.is_empty() => host.to_owned(),
        _ => lower,
    }
}

/// 16 bytes from the operating system as 22 characters of base64url. Every attempt takes its own (C4).
///
/// # Errors
/// [`SignError::Randomness`] if the operating system has none to give; then nothing may be sent.
pub fn fresh_nonce() -> Result<String, SignError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| SignError::Randomness)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// True for 1 to 64 characters of `[0-9A-Za-z._-]`.
pub fn is_key_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=LONGEST_KEY_ID).contains(&text.len()) && text.bytes().all(plain)
}

/// A nonce is opaque text once signed, so the bits its last character has to spare are not looked at.
fn is_nonce(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    text.len() == NONCE_LENGTH && text.bytes().all(plain)
}

fn check_request(parts: &RequestParts<'_>) -> Result<(), SignError> {
    let one_line = [parts.method, parts.host, parts.path].into_iter().all(is_one_line);
    let unambiguous = is_key_id(parts.key_id) && is_nonce(parts.nonce) && one_line;
    unambiguous.then_some(()).ok_or(SignError::Separator)
}

fn check_response(parts: &ResponseParts<'_>) -> Result<(), SignError> {
    let one_line = [parts.trace_id, parts.model_version].into_iter().all(is_one_line);
    let unambiguous = is_key_id(parts.key_id) && is_nonce(parts.request_nonce) && one_line;
    unambiguous.then_some(()).ok_or(SignError::Separator)
}

fn is_one_line(text: &str) -> bool {
    !text.bytes().any(|b| b.is_ascii_control())
}

fn header_fields<'a, const N: usize>(value: &'a str, keys: [&str; N]) -> Result<[&'a str; N], SignError> {
    let mut pieces = value.split(',');
    match pieces.next().and_then(|first| first.strip_prefix("v=")) {
        Some("1") => {}
        Some(version) if is_key_id(version) => return Err(SignError::Version),
        _ => return Err(SignError::Malformed),
    }
    let mut fields = [""; N];
    for (field, key) in fields.iter_mut().zip(keys) {
        *field = pieces.next().and_then(|piece| piece.strip_prefix(key)).ok_or(SignError::Malformed)?;
    }
    if pieces.next().is_some() {
        return Err(SignError::Malformed);
    }
    Ok(fields)
}

/// Digits without sign or leading zero, so that the number has one spelling and the signed text is the sent one.
fn parse_timestamp(text: &str) -> Result<u64, SignError> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().ok_or(SignError::Malformed)
}

fn check_tag(secret: &[u8], message: &str, tag: &str) -> Result<(), SignError> {
    let tag = decode_tag(tag)?;
    verify(secret, message.as_bytes(), &tag).then_some(()).ok_or(SignError::Mismatch)
}

fn decode_tag(tag: &str) -> Result<[u8; 32], SignError> {
    let bytes = STANDARD.decode(tag).map_err(|_| SignError::Malformed)?;
    bytes.try_into().map_err(|_| SignError::Malformed)
}
