//! The `di-hmac` dialect as the proxy speaks it: token, signed call, verified answer, verdict.
//!
//! The body is serialised once: the bytes that are signed are the bytes that are sent. Nonce and time are fresh for
//! every attempt, the business id stays. An answer is believed only after its whole body was read and its signature,
//! bound to our nonce and to the status, was verified over the raw bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::time::Instant;

use crate::config::table::{Auth, Provider};
use crate::domain::clock;
use crate::domain::decision::{Decision, DecisionSource, ProviderReference, Reason, Verdict};
use crate::domain::id::DecisionId;
use crate::domain::operation::Operation;
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::policy::decide;
use crate::domain::secret::Secret;
use crate::flight::call::RiskFacts;
use crate::flight::error::AttemptError;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::sign::di::{self, ReceivedResponse, RequestParts};
use crate::sign::hmac::sha256_hex;
use crate::upstream::attempt::Attempt;
use crate::upstream::body::RequestBody;
use crate::upstream::exchange::{ReadError, exchange, read_whole};
use crate::upstream::live::{LiveProvider, LiveUpstream, credential};
use crate::upstream::pool::{Outgoing, UpstreamBody};
use crate::upstream::retry_after;
use crate::upstream::token::Fetched;
use crate::wire::alipay::di as wire;

/// An assessment is asked for once.
const NEVER_AGAIN: Option<fn() -> Outgoing> = None;

/// Largest answer read.
const ANSWER_BYTES: usize = 64 * 1024;
/// The provider's word for an access token it does not accept.
const STALE_TOKEN: &str = "the provider does not accept the access token";

/// An access token, fetched if need be.
///
/// # Errors
/// [`FailureClass::Unauthorised`] or whatever kept the token away; nothing of the call itself was sent.
pub async fn token(attempt: &Attempt, upstream: &Arc<LiveUpstream>) -> Result<Secret, AttemptError> {
    let provider = &upstream.provider;
    provider.token.get(|| fetch_token(Arc::clone(provider), attempt.clone())).await
}

async fn fetch_token(provider: Arc<LiveProvider>, attempt: Attempt) -> Fetched {
    // Whatever goes wrong here, the assessment itself was not sent.
    let unsent = |error: AttemptError| AttemptError { sent: Sent::No, ..error };
    let path = format!("{}/oauth2/token", provider.provider.base_url.path);
    let (mut request, _) = signed(&provider, &path, wire::token_request(), b"").map_err(unsent)?;
    let form = HeaderValue::from_static(wire::TOKEN_MEDIA_TYPE);
    request.headers_mut().insert(CONTENT_TYPE, form);
    // Asking for a token twice decides nothing twice.
    let spare = request.clone();
    let response =
        exchange(&provider, outgoing(request), attempt.connect, Some(|| outgoing(spare))).await.map_err(unsent)?;
    let (head, body) = response.into_parts();
    let body = read_whole(body, ANSWER_BYTES, attempt.idle).await.map_err(|err| unsent(err.into_attempt_error()))?;
    if head.status != StatusCode::OK {
        return Err(unsent(refusal(&provider.provider, head.status, &head.headers, &body)));
    }
    let token = wire::decode_token(&body).map_err(|_| unsent(bad_reply("the token answer is not one")))?;
    Ok((token.access_token, Duration::from_secs(token.expires_in_s)))
}

/// True if a fresh token may cure it.
pub fn is_stale_token(error: &AttemptError) -> bool {
    error.class == FailureClass::Unauthorised && error.detail == STALE_TOKEN
}

/// Asks for one decision.
///
/// # Errors
/// [`AttemptError`]; [`FailureClass::BadSignature`] for an answer that is not authentic, whatever it says.
pub async fn assess(attempt: &Attempt, upstream: &Arc<LiveUpstream>, token: &Secret) -> Result<Reply, AttemptError> {
    let Some(facts) = attempt.call.risk() else { return Err(bad_reply("not a risk call")) };
    let started = Instant::now();
    let provider = &upstream.provider;
    let body = wire::encode_assess(&facts.assessment);
    let (mut request, nonce) =
        signed(provider, upstream.uri(Operation::RiskAssess).map_or("", |uri| uri.path()), body, token.expose())?;
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, credential(b"Bearer ", token.expose()));
    if let Ok(key) = HeaderValue::from_str(&facts.assessment.out_trade_no) {
        headers.insert(HeaderName::from_static("idempotency-key"), key);
    }
    let response = exchange(provider, outgoing(request), attempt.connect, NEVER_AGAIN).await?;
    let (head, body) = read_answer(response, attempt).await?;
    if head.status != StatusCode::OK {
        return Err(refusal(&provider.provider, head.status, &head.headers, &body));
    }
    let verdict = verified(provider, &head, &body, &nonce)?;
    let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let verdict = complete(verdict, facts, upstream, latency_ms);
    decided(verdict, facts)
}

struct Head {
    status: StatusCode,
    headers: HeaderMap,
}

async fn read_answer(response: Response<UpstreamBody>, attempt: &Attempt) -> Result<(Head, Bytes), AttemptError> {
    let (head, body) = response.into_parts();
    let body = read_whole(body, ANSWER_BYTES, attempt.idle).await.map_err(ReadError::into_attempt_error)?;
    Ok((Head { status: head.status, headers: head.headers }, body))
}

fn outgoing(request: Request<Bytes>) -> Outgoing {
    Box::new(request.map(RequestBody::from))
}

/// A signed POST and the nonce it used.
fn signed(
    provider: &LiveProvider,
    path: &str,
    body: Bytes,
    token: &[u8],
) -> Result<(Request<Bytes>, String), AttemptError> {
    let local = |detail| AttemptError::new(FailureClass::Unauthorised, Sent::No, detail);
    let Auth::DiHmac { key_id, secret } = &provider.provider.auth else {
        return Err(local("the provider has no signing key"));
    };
    let nonce = di::fresh_nonce().map_err(|_| local("the system gave no random bytes"))?;
    let parts = RequestParts {
        key_id,
        timestamp_ms: clock::unix_ms(),
        nonce: &nonce,
        method: Method::POST.as_str(),
        host: &provider.authority,
        path,
        query: "",
        token,
        body: &body,
    };
    let signature = di::sign_request(secret.expose(), &parts).map_err(|_| local("the request could not be signed"))?;
    let header = |text: &str| HeaderValue::from_str(text).map_err(|_| local("the signature does not fit a header"));
    let mut headers = provider.headers.clone();
    headers.insert(HeaderName::from_static(di::REQUEST_HEADER), header(&signature.header_value())?);
    headers.insert(HeaderName::from_static(di::CONTENT_HEADER), header(&sha256_hex(&body))?);
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| local("the provider's path is not one"))?;
    *request.headers_mut() = headers;
    Ok((request, nonce))
}

struct Answered {
    answer: wire::Answer,
    trace_id: Option<String>,
    model_version: Option<String>,
}

/// Authentic first, then understood.
fn verified(provider: &LiveProvider, head: &Head, body: &[u8], nonce: &str) -> Result<Answered, AttemptError> {
    let forged = AttemptError::new(FailureClass::BadSignature, Sent::Yes, "the answer's signature is missing or wrong");
    let Auth::DiHmac { key_id, secret } = &provider.provider.auth else { return Err(forged) };
    let received = ReceivedResponse { request_nonce: nonce, status: head.status, headers: &head.headers, body };
    let authentic = di::verify_response(secret.expose(), key_id, &received, clock::unix_ms()).map_err(|_| forged)?;
    let answer = wire::decode_answer(body).map_err(|_| bad_reply("the answer is authentic and not understandable"))?;
    let short = |text: Option<&str>| text.filter(|text| text.len() <= 128).map(str::to_owned);
    Ok(Answered { answer, trace_id: short(authentic.trace_id), model_version: short(authentic.model_version) })
}

fn complete(answered: Answered, facts: &RiskFacts, upstream: &LiveUpstream, latency_ms: u64) -> Verdict {
    let price = upstream.candidate.provider.price.as_ref();
    Verdict {
        score: answered.answer.score,
        recommendation: answered.answer.recommendation,
        explanation: answered.answer.explanation,
        provider: ProviderReference {
            id: upstream.names.provider.clone(),
            trace_id: answered.trace_id,
            model_version: answered.model_version,
            latency_ms,
        },
        cost: price.and_then(|price| price.of(&facts.assessment.features)),
    }
}

fn decided(verdict: Verdict, facts: &RiskFacts) -> Result<Reply, AttemptError> {
    let ruling = &facts.ruling;
    let action = decide(ruling.applied.bands, ruling.vendor_action, verdict.score, verdict.recommendation.as_deref());
    let action = action.ok_or_else(|| bad_reply("the answer has neither a usable score nor a recommendation"))?;
    let reasons =
        verdict.explanation.iter().map(|text| Reason { code: "provider".to_owned(), text: text.clone() }).collect();
    let decision = Decision {
        id: DecisionId::fresh(),
        action,
        source: DecisionSource::Live,
        verdict: Some(verdict),
        reasons,
        applied: ruling.applied.clone(),
        late_verdict_expected: false,
        created_at_ms: clock::unix_ms(),
        reused: None,
    };
    Ok(Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: ReplyBody::whole(Bytes::new()),
        usage: UsageSlot::default(),
        complete: true,
        decision: Some(Arc::new(decision)),
    })
}

fn refusal(provider: &Provider, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> AttemptError {
    let code = wire::decode_error(body);
    let stale = status == StatusCode::UNAUTHORIZED && code.as_deref() == Some("invalid_token");
    let own = provider.errors.get(&status.as_u16()).copied();
    let class = own.unwrap_or(match status.as_u16() {
        401 | 403 => FailureClass::Unauthorised,
        402 => FailureClass::QuotaExhausted,
        429 => FailureClass::RateLimited,
        503 | 529 => FailureClass::Overloaded,
        408 | 425 => FailureClass::ProviderFault,
        400..500 => FailureClass::Refused,
        _ => FailureClass::ProviderFault,
    });
    AttemptError {
        status: Some(status.as_u16()),
        retry_after: retry_after::parse(headers),
        ..AttemptError::new(class, Sent::Yes, if stale { STALE_TOKEN } else { "the provider refused" })
    }
}

fn bad_reply(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::BadReply, Sent::Yes, detail)
}
