//! The simulated Alipay: the other side of the `di-hmac` dialect, as strict as the real one ought to be.
//!
//! It exists so that risk decisions can be tried, and the proxy tested, without a key or a network. It checks what it is
//! sent in the documented order, remembers nonces, tokens and payment attempts, decides by the amount
//! ([`MAGIC_AMOUNTS`]), signs what it answers, and misbehaves when told to. It shares `sign` and `wire::object` with the
//! proxy and nothing above them, or it would agree with our mistakes.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use super::SandboxBody;
use super::fault::{Fault, Faults};
use crate::domain::secret::Secret;

mod admit;
mod memory;
mod oauth;
mod reply;
mod rules;
mod scoring;

#[cfg(test)]
mod tests;

pub use admit::Refusal;
pub use memory::Seen;
pub use rules::{Effect, MAGIC_AMOUNTS, MagicAmount, USUAL};

use admit::Admitted;
use memory::Memory;
use reply::Reply;

/// The key of [`Faults`] for scoring calls.
pub const GATEWAY_FAULTS: &str = "alipay";
/// The key of [`Faults`] for calls that ask for a token.
pub const TOKEN_FAULTS: &str = "alipay.token";
/// What it reports as the model that scored.
pub const MODEL_VERSION: &str = "di-2026.01.0";

/// Largest request body, in bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Nonces remembered at once: 2,000 requests a second for the 630 seconds each is kept, and some.
const NONCE_ROOM: usize = 1_500_000;

/// What a simulated Alipay is made of.
#[derive(Clone, Debug)]
pub struct AlipayConfig {
    /// Who may call: key ids with their secrets.
    pub keys: Vec<(String, Secret)>,
    /// What goes wrong, under [`GATEWAY_FAULTS`] and [`TOKEN_FAULTS`].
    pub faults: Faults,
    /// For how long a token is valid.
    pub token_life: Duration,
}

/// One simulated Alipay; clones are the same one.
#[derive(Clone)]
pub struct Alipay {
    shared: Arc<Shared>,
}

struct Shared {
    /// Replaced whole when keys change.
    keys: Mutex<Arc<Known>>,
    faults: Faults,
    token_life: Duration,
    /// A blocking lock: held for map accesses and never across an await.
    memory: Mutex<Memory>,
    answers: AtomicU64,
}

impl fmt::Debug for Alipay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alipay").finish_non_exhaustive()
    }
}

/// The keys it knows now.
#[derive(Default)]
struct Known {
    by_id: HashMap<String, Secret>,
    /// What it signs with, if not with the key of the request.
    signs: Option<(String, Secret)>,
}

/// The two things it can be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Token,
    Gateway,
}

impl Alipay {
    /// One that has seen nothing yet.
    pub fn new(config: AlipayConfig) -> Self {
        Self::with_nonce_room(config, NONCE_ROOM)
    }

    /// As [`Alipay::new`], with room for this many nonces: the next one is answered with 503.
    pub fn with_nonce_room(config: AlipayConfig, room: usize) -> Self {
        let AlipayConfig { keys, faults, token_life } = config;
        let memory = Mutex::new(Memory::new(room));
        let keys = Mutex::new(Arc::new(Known { by_id: keys.into_iter().collect(), signs: None }));
        Self { shared: Arc::new(Shared { keys, faults, token_life, memory, answers: AtomicU64::new(0) }) }
    }

    /// Answers one request. Its path counts from the end, so that any base path works.
    ///
    /// # Errors
    /// When a fault says that the connection ends without an answer.
    ///
    /// # Cancel safety
    /// Dropping the future loses the answer; what was remembered of the request stays.
    pub async fn handle(&self, request: Request<Incoming>) -> io::Result<Response<SandboxBody>> {
        let (parts, body) = request.into_parts();
        let call = match parts.uri.path() {
            path if path.ends_with("/oauth2/token") => Call::Token,
            path if path.ends_with("/gateway.do") => Call::Gateway,
            _ => return Ok(Reply::error(StatusCode::NOT_FOUND, "not_found").unsigned()),
        };
        if parts.method != Method::POST {
            return Ok(Reply::error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed").unsigned());
        }
        let body = match tokio::time::timeout(BODY_TIME, Limited::new(body, LARGEST_BODY).collect()).await {
            Ok(Ok(whole)) => whole.to_bytes(),
            Ok(Err(_)) => return Ok(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large").unsigned()),
            Err(_) => return Ok(Reply::error(StatusCode::REQUEST_TIMEOUT, "body_too_slow").unsigned()),
        };
        self.answer(call, &parts, body).await
    }

    async fn answer(&self, call: Call, parts: &Parts, body: Bytes) -> io::Result<Response<SandboxBody>> {
        let admitted = match admit::authenticate(&self.shared, parts, &body) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.remember(parts, None, Some(refusal), body);
                return Ok(Reply::refusal(refusal).unsigned());
            }
        };
        let outcome = admit::authorise(&self.shared, call, &admitted);
        self.remember(parts, Some(&admitted), outcome.err(), body.clone());
        let (reply, fault) = match (outcome, call) {
            (Err(refusal), _) => (Reply::refusal(refusal), None),
            (Ok(()), Call::Token) => (oauth::issue(&self.shared, &admitted, &body), self.next_fault(TOKEN_FAULTS)),
            (Ok(()), Call::Gateway) => {
                let (reply, fault) = scoring::score(&self.shared, parts, &admitted, &body);
                (reply, self.next_fault(GATEWAY_FAULTS).or(fault))
            }
        };
        let number = self.shared.answers.fetch_add(1, Ordering::Relaxed);
        let signer = admitted.signer(number, self.shared.known().signs.clone());
        reply::act_out(fault, reply, &signer).await
    }

    fn next_fault(&self, key: &str) -> Option<Fault> {
        self.shared.faults.next(key)
    }

    fn remember(&self, parts: &Parts, admitted: Option<&Admitted>, refusal: Option<Refusal>, body: Bytes) {
        let header = admit::claimed(parts);
        let seen = Seen {
            path: parts.uri.path().to_owned(),
            out_trade_no: scoring::out_trade_no(&body),
            key_id: header.map(|header| header.key_id.to_owned()).unwrap_or_default(),
            nonce: header.map(|header| header.nonce.to_owned()).unwrap_or_default(),
            timestamp_ms: header.map(|header| header.timestamp_ms).unwrap_or_default(),
            token_ok: admitted.is_some_and(|admitted| self.shared.memory().token_is_valid(admitted)),
            refusal,
            body,
        };
        self.shared.memory().see(seen);
    }

    /// The newest 10,000 requests on its two paths, refused ones included, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.memory().seen()
    }

    /// How many requests it refused for this reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.shared.memory().refused(refusal)
    }

    /// How many tokens it has issued.
    pub fn tokens_issued(&self) -> u64 {
        self.shared.memory().tokens_issued()
    }

    /// Makes every token issued so far invalid, as if each had been withdrawn.
    pub fn revoke_tokens(&self) {
        self.shared.memory().revoke_tokens();
    }

    /// Knows these keys from now on and no others; a withdrawn one takes its tokens along.
    pub fn set_keys(&self, keys: Vec<(String, Secret)>) {
        self.shared.change(|known| known.by_id = keys.into_iter().collect());
    }

    /// Signs its answers with this key from now on, whatever key the request was signed with; `None` for the request's.
    pub fn sign_with(&self, key: Option<(String, Secret)>) {
        self.shared.change(|known| known.signs = key);
    }

    /// How many payment attempts it has scored, repeats of one attempt not counted: what it would bill.
    pub fn billed(&self) -> u64 {
        self.shared.memory().billed()
    }
}

impl Shared {
    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = Known { by_id: keys.by_id.clone(), signs: keys.signs.clone() };
        change(&mut known);
        *keys = Arc::new(known);
    }

    /// A panic of another holder leaves whole entries behind, so the poison says nothing here.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
