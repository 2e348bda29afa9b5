//! Answers: built, spoilt if a fault says so, signed, and sent whole, in part or not at all.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::super::fault::Forgery;
use super::super::{SandboxBody, full, refused, reset};
use super::admit::Refusal;
use super::{Fault, MODEL_VERSION};
use crate::domain::clock;
use crate::domain::secret::Secret;
use crate::sign::di::{self, ResponseParts};
use crate::sign::hmac::mac;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PAGE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// What is needed to sign one answer.
pub(super) struct Signer {
    pub(super) key_id: String,
    pub(super) secret: Secret,
    pub(super) request_nonce: String,
    pub(super) trace_id: String,
}

/// An answer that is not signed yet.
pub(super) struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

#[derive(Clone, Copy)]
enum Signature {
    Right,
    Wrong,
    None,
    Forged(Forgery),
}

#[derive(Clone, Copy)]
enum Ending {
    Whole,
    CutAfter(usize),
    StallAfter(usize),
}

impl Reply {
    fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, JSON)]);
        Self { status, headers, body: body.into() }
    }

    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status, body.to_string())
    }

    /// A 200 with a body that is already written.
    pub(super) fn raw_json(body: String) -> Self {
        Self::new(StatusCode::OK, body)
    }

    pub(super) fn error(status: StatusCode, code: &str) -> Self {
        Self::json(status, &json!({ "error": code }))
    }

    pub(super) fn refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Header | Refusal::Key | Refusal::Stale | Refusal::Content | Refusal::Signature => {
                Self::error(StatusCode::UNAUTHORIZED, "unauthorized")
            }
            Refusal::Replay => Self::error(StatusCode::CONFLICT, "REPLAYED_NONCE"),
            Refusal::NonceRoom => Self::error(StatusCode::SERVICE_UNAVAILABLE, "NONCE_STORE_FULL"),
            Refusal::Token => {
                let mut reply = Self::error(StatusCode::UNAUTHORIZED, "invalid_token");
                let challenge = HeaderValue::from_static(r#"Bearer error="invalid_token""#);
                reply.headers.insert(WWW_AUTHENTICATE, challenge);
                reply
            }
            Refusal::Scope => Self::error(StatusCode::FORBIDDEN, "insufficient_scope"),
            Refusal::Reused => Self::error(StatusCode::CONFLICT, "REPEAT_REQ_INCONSISTENT"),
        }
    }

    /// For those whose key is not known: there is nothing to sign with.
    pub(super) fn unsigned(self) -> Response<SandboxBody> {
        self.sent(Ending::Whole)
    }

    fn sign(&mut self, signer: &Signer, signature: Signature) {
        let mut secret = signer.secret.clone();
        match signature {
            Signature::Right | Signature::Forged(_) => {}
            Signature::Wrong => secret = Secret::new([secret.expose(), b"wrong"].concat()),
            Signature::None => return,
        }
        let parts = ResponseParts {
            key_id: &signer.key_id,
            timestamp_ms: clock::unix_ms(),
            request_nonce: &signer.request_nonce,
            status: self.status.as_u16(),
            trace_id: &signer.trace_id,
            model_version: MODEL_VERSION,
            body: &self.body,
        };
        // The parts come from a header that passed the grammar, so signing cannot fail; an answer without a signature is
        // refused on the other side anyway.
        let header = match signature {
            Signature::Forged(forgery) => forged(forgery, secret.expose(), parts),
            _ => di::sign_response(secret.expose(), &parts).ok(),
        };
        if let Some(value) = header.and_then(|header| HeaderValue::try_from(header).ok()) {
            if let Signature::Forged(Forgery::Twice) = signature {
                self.headers.append(di::RESPONSE_HEADER, value.clone());
            }
            self.headers.append(di::RESPONSE_HEADER, value);
        }
    }

    fn sent(self, ending: Ending) -> Response<SandboxBody> {
        let length = HeaderValue::from(self.body.len());
        // A cut or stall shows only if something is missing.
        let most = self.body.len().saturating_sub(1);
        let body = match ending {
            Ending::Whole => full(self.body),
            Ending::CutAfter(bytes) => {
                let rest = stream::iter([Err(io::ErrorKind::ConnectionAborted.into())]);
                partly(self.body.slice(..bytes.min(most)), rest)
            }
            Ending::StallAfter(bytes) => partly(self.body.slice(..bytes.min(most)), stream::pending()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(CONTENT_LENGTH, length);
        response
    }
}

/// A signature with one thing wrong.
fn forged(forgery: Forgery, secret: &[u8], parts: ResponseParts<'_>) -> Option<String> {
    let sign = |parts: &ResponseParts<'_>| di::sign_response(secret, parts).ok();
    let now = parts.timestamp_ms;
    match forgery {
        Forgery::OldTime => sign(&ResponseParts { timestamp_ms: now - di::WINDOW_MS - 1_000, ..parts }),
        Forgery::OtherRequest => sign(&ResponseParts { request_nonce: "AAAAAAAAAAAAAAAAAAAAAA", ..parts }),
        Forgery::OtherStatus => sign(&ResponseParts { status: 202, ..parts }),
        Forgery::NoAlgorithm => Some(format!("v=none,kid={},ts={now},sig=", parts.key_id)),
        Forgery::Downgrade => sign(&parts).map(|header| header.replacen("v=1", "v=0", 1)),
        Forgery::UnknownKey => sign(&ResponseParts { key_id: "nobody", ..parts }),
        Forgery::Twice => sign(&parts),
        Forgery::LowerCase => {
            let (scheme, rest) =
                di::response_string(&parts).split_once('\n').map(|(a, b)| (a.to_lowercase(), b.to_owned()))?;
            let tag = STANDARD.encode(mac(secret, &[scheme.as_bytes(), b"\n", rest.as_bytes()]));
            Some(format!("v=1,kid={},ts={now},sig={tag}", parts.key_id))
        }
    }
}

fn partly(first: Bytes, rest: impl stream::Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> SandboxBody {
    let first = stream::iter([Ok(Frame::data(first))]);
    BodyExt::boxed_unsync(StreamBody::new(first.chain(rest)))
}

/// Sends the answer the way the fault wants it.
///
/// # Errors
/// When the connection is to end without an answer.
pub(super) async fn act_out(fault: Option<Fault>, reply: Reply, signer: &Signer) -> io::Result<Response<SandboxBody>> {
    let (mut signature, mut ending) = (Signature::Right, Ending::Whole);
    let mut reply = reply;
    match fault {
        None => {}
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Refuse) => return Err(refused()),
        Some(Fault::Reset) => return Err(reset()),
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::BadSignature) => signature = Signature::Wrong,
        Some(Fault::Unsigned) => signature = Signature::None,
        Some(Fault::Forged(forgery)) => signature = Signature::Forged(forgery),
        Some(Fault::CutAfter(bytes)) => ending = Ending::CutAfter(bytes),
        Some(Fault::StallAfter(bytes)) => ending = Ending::StallAfter(bytes),
        Some(other) => reply = replaced(other),
    }
    for (name, value) in [(di::TRACE_HEADER, signer.trace_id.as_str()), (di::MODEL_HEADER, MODEL_VERSION)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers.insert(name, value);
        }
    }
    reply.sign(signer, signature);
    Ok(reply.sent(ending))
}

/// Faults that put another answer in the place of the right one. It is signed: only its content is wrong.
fn replaced(fault: Fault) -> Reply {
    match fault {
        Fault::Status { code, headers, body } => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = body.unwrap_or_else(|| json!({ "error": "sandbox_fault" }).to_string());
            let mut reply = Reply::new(status, body);
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    reply.headers.append(name, value);
                }
            }
            reply
        }
        Fault::ErrorIn200 { status } => {
            Reply::json(StatusCode::OK, &json!({ "error": "sandbox_fault", "status": status }))
        }
        Fault::Garbage => {
            let mut reply = Reply::new(StatusCode::OK, "<html><body>Bad gateway</body></html>");
            reply.headers.insert(CONTENT_TYPE, PAGE);
            reply
        }
        // Empty, and every fault that has been acted out before.
        _ => Reply::new(StatusCode::OK, Bytes::new()),
    }
}
