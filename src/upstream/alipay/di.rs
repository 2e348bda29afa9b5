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

use crate::config::table::Auth;
use crate::domain::clock;
use crate::domain::decision::{Action, Decision, DecisionSource, Priced, ProviderReference, Reason, Verdict};
use crate::domain::id::DecisionId;
use crate::domain::operation::Operation;
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::policy::decide;
use crate::domain::secret::Secret;
use crate::flight::call::RiskFacts;
use crate::flight::error::AttemptError;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::sign::di::{self, Authentic, ReceivedResponse, RequestParts, SignError};
use crate::sign::hmac::sha256_hex;
use crate::telemetry::labels::OddAnswer;
use crate::upstream::attempt::Attempt;
use crate::upstream::body::RequestBody;
use crate::upstream::exchange::{ReadError, exchange, read_whole};
use crate::upstream::live::{LiveProvider, LiveUpstream, credential};
use crate::upstream::pool::{Outgoing, UpstreamBody};
use crate::upstream::retry_after;
use crate::upstream::skew::{Measured, Remark};
use crate::upstream::token::Fetched;
use crate::wire::alipay::di as wire;

/// An assessment is asked for once.
const NEVER_AGAIN: Option<fn() -> Outgoing> = None;

/// Largest answer read.
const ANSWER_BYTES: usize = 64 * 1024;
/// The provider's word for an access token it does not accept.
const STALE_TOKEN: &str = "the provider does not accept the access token";
/// The provider's code for a time it does not accept.
const STALE_TIME: &str = "stale_timestamp";

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
    let (request, first) = token_call(&provider).map_err(unsent)?;
    let spare = request.clone();
    let mut second = None;
    // Asking for a token twice decides nothing twice; each time it is signed anew, or it would be a replay.
    let again = || {
        let (request, nonce) = token_call(&provider).map_or((spare, None), |(request, nonce)| (request, Some(nonce)));
        second = nonce;
        outgoing(request)
    };
    let left = Instant::now();
    let response = exchange(&provider, outgoing(request), attempt.connect, Some(again)).await.map_err(unsent)?;
    let nonce = second.unwrap_or(first);
    let answer = Received::read(response, &nonce, left, &attempt).await.map_err(unsent)?;
    if answer.status != StatusCode::OK {
        return Err(unsent(refusal(&provider, &answer)));
    }
    // The form does not ask for a signature here, and a token decides nothing: it is only ever shown to this provider. One
    // that is there is right or a forgery.
    if answer.headers.contains_key(di::RESPONSE_HEADER) {
        authentic(&provider, &answer).map_err(unsent)?;
    }
    let token = wire::decode_token(&answer.body).map_err(|_| unsent(bad_reply("the token answer is not one")))?;
    Ok((token.access_token, Duration::from_secs(token.expires_in_s)))
}

fn token_call(provider: &LiveProvider) -> Result<(Request<Bytes>, String), AttemptError> {
    let path = format!("{}/oauth2/token", provider.provider.base_url.path);
    let (mut request, nonce) = signed(provider, &path, wire::token_request(), b"")?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(wire::TOKEN_MEDIA_TYPE));
    Ok((request, nonce))
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
    let left = Instant::now();
    let response = exchange(provider, outgoing(request), attempt.connect, NEVER_AGAIN).await?;
    let answer = Received::read(response, &nonce, left, attempt).await?;
    if answer.status != StatusCode::OK {
        return Err(refusal(provider, &answer));
    }
    let verdict = verified(provider, &answer)?;
    let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let verdict = complete(verdict, facts, upstream, latency_ms);
    decided(verdict, facts)
}

/// An answer as it came, believed or not.
struct Received<'n> {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// The nonce of the request.
    nonce: &'n str,
    /// What our clock said when its head was here, milliseconds since 1970, and how long that took.
    here_ms: u64,
    round_trip: Duration,
}

impl<'n> Received<'n> {
    async fn read(
        response: Response<UpstreamBody>,
        nonce: &'n str,
        left: Instant,
        attempt: &Attempt,
    ) -> Result<Self, AttemptError> {
        let (here_ms, round_trip) = (clock::unix_ms(), left.elapsed());
        let (head, body) = response.into_parts();
        let body = read_whole(body, ANSWER_BYTES, attempt.idle).await.map_err(ReadError::into_attempt_error)?;
        Ok(Self { status: head.status, headers: head.headers, body, nonce, here_ms, round_trip })
    }
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
    let Auth::DiHmac { keys } = &provider.provider.auth else {
        return Err(local("the provider has no signing key"));
    };
    let key = keys.signer();
    let nonce = di::fresh_nonce().map_err(|_| local("the system gave no random bytes"))?;
    let parts = RequestParts {
        key_id: &key.id,
        timestamp_ms: clock::unix_ms(),
        nonce: &nonce,
        method: Method::POST.as_str(),
        host: &provider.authority,
        path,
        query: "",
        token,
        body: &body,
    };
    let signature =
        di::sign_request(key.secret.expose(), &parts).map_err(|_| local("the request could not be signed"))?;
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

/// The signed headers of an answer, if it is one of the provider's to this very request, and of now.
fn authentic<'a>(provider: &LiveProvider, answer: &'a Received<'_>) -> Result<Authentic<'a>, AttemptError> {
    let forged = |error: SignError| {
        let detail = in_words(error);
        if provider.forged.is_due() {
            let id = provider.provider.id.as_str();
            tracing::error!(provider = id, "not authentic, so it was ignored: {detail}");
        }
        let status = Some(answer.status.as_u16());
        AttemptError { status, ..AttemptError::new(FailureClass::BadSignature, Sent::Yes, detail) }
    };
    let Auth::DiHmac { keys } = &provider.provider.auth else { return Err(forged(SignError::WrongKey)) };
    let Received { nonce: request_nonce, status, ref headers, ref body, .. } = *answer;
    let received = ReceivedResponse { request_nonce, status, headers, body };
    let signed = di::authenticate_response(keys, &received).map_err(forged)?;
    // Also if its time will not do: then this is what has to be known.
    measure(provider, signed.timestamp_ms, answer);
    signed.within(answer.here_ms).map_err(forged)
}

/// For the log: nothing of what came, only what was wrong with it.
fn in_words(error: SignError) -> &'static str {
    match error {
        SignError::Missing => "the answer is not signed",
        SignError::Repeated => "the answer has a signed header twice",
        SignError::Malformed | SignError::Version => "the answer's signature is not of the agreed form",
        SignError::WrongKey => "the answer is signed with a key that is not known or not yet in use",
        SignError::Stale => "the answer was signed more than 300 s from our clock",
        SignError::Mismatch | SignError::Separator | SignError::Randomness => "the answer's signature is wrong",
    }
}

fn measure(provider: &LiveProvider, signed_ms: u64, answer: &Received<'_>) {
    let remark = provider.skew.observe(signed_ms, answer.here_ms, answer.round_trip);
    if let (Some(measured), Some(series)) = (provider.skew.measured(), &provider.judged) {
        series.clock_skew.set(measured.skew_ms);
    }
    let id = provider.provider.id.as_str();
    match remark {
        Some(Remark::Apart(Measured { skew_ms, doubt_ms })) => tracing::warn!(
            provider = id,
            skew_ms,
            doubt_ms,
            "the provider's clock and ours are apart; from 300 s on neither believes the other: check both"
        ),
        Some(Remark::Mended(Measured { skew_ms, doubt_ms })) => {
            tracing::info!(provider = id, skew_ms, doubt_ms, "the provider's clock and ours agree again");
        }
        None => {}
    }
}

struct Answered {
    answer: wire::Answer,
    trace_id: Option<String>,
    model_version: Option<String>,
}

/// Authentic first, then understood.
fn verified(provider: &LiveProvider, received: &Received<'_>) -> Result<Answered, AttemptError> {
    let authentic = authentic(provider, received)?;
    let odd = |what| provider.judged.iter().for_each(|series| series.odd(what));
    let answer = wire::decode_answer(&received.body).map_err(|_| {
        odd(OddAnswer::NotUnderstood);
        bad_reply("the answer is authentic and not understandable")
    })?;
    if answer.score_was_invalid {
        odd(OddAnswer::Score);
    }
    if answer.recommendation.as_deref().is_some_and(|word| Action::parse(word).is_none()) {
        odd(OddAnswer::Recommendation);
    }
    let short = |text: Option<&str>| text.filter(|text| text.len() <= 128).map(str::to_owned);
    Ok(Answered { answer, trace_id: short(authentic.trace_id), model_version: short(authentic.model_version) })
}

fn complete(answered: Answered, facts: &RiskFacts, upstream: &LiveUpstream, latency_ms: u64) -> Verdict {
    let (price, features) = (upstream.candidate.provider.price.as_ref(), &facts.assessment.features);
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
        cost: price.and_then(|price| price.of(&facts.assessment, features)),
        priced: price.map(|price| Priced { version: Arc::clone(&price.version), features: features.clone() }),
        features_dropped: facts.features_dropped.clone(),
    }
}

fn decided(verdict: Verdict, facts: &RiskFacts) -> Result<Reply, AttemptError> {
    let ruling = &facts.ruling;
    let action = decide(ruling, verdict.score, verdict.recommendation.as_deref());
    let action = action.ok_or_else(|| bad_reply("the answer has neither a usable score nor a recommendation"))?;
    let said = verdict.explanation.iter().map(|text| Reason { code: "provider".to_owned(), text: text.clone() });
    let reasons = said.chain(wanting(&verdict)).chain(ruling.reasons()).collect();
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

/// What makes a verdict weigh more than it says, so that nobody looks at a REVIEW without a reason.
fn wanting(verdict: &Verdict) -> impl Iterator<Item = Reason> + use<> {
    let reason = |code: &str, text: &str| Reason { code: code.to_owned(), text: text.to_owned() };
    let unknown = verdict.recommendation.as_deref().is_some_and(|word| Action::parse(word).is_none());
    let no_score = verdict.score.is_none().then(|| reason("no_score", "the provider gave no score from 0 to 1"));
    let no_word = unknown.then(|| {
        reason("unknown_recommendation", "the provider's recommendation is no known word and counts as REVIEW")
    });
    no_score.into_iter().chain(no_word)
}

/// What a status other than 200 comes to. It may come without a signature, from those who do not know us and from
/// whatever stands before the provider: an outage can be had by cutting the line, so nobody gains by pretending one. What
/// outlasts the call is believed only if it is signed, and a signature that is wrong is a forgery here too.
fn refusal(provider: &LiveProvider, answer: &Received<'_>) -> AttemptError {
    let signed = answer.headers.contains_key(di::RESPONSE_HEADER);
    if signed && let Err(forged) = authentic(provider, answer) {
        return forged;
    }
    let (status, code) = (answer.status, wire::decode_error(&answer.body));
    let code = code.as_deref();
    if code == Some(STALE_TIME) {
        tell_stale_time(provider);
    }
    let stale = status == StatusCode::UNAUTHORIZED && code == Some("invalid_token");
    let own = provider.provider.errors.get(&status.as_u16()).copied();
    let class = own.unwrap_or(match status.as_u16() {
        401 | 403 => FailureClass::Unauthorised,
        402 => FailureClass::QuotaExhausted,
        429 => FailureClass::RateLimited,
        503 | 529 => FailureClass::Overloaded,
        408 | 425 => FailureClass::ProviderFault,
        400..500 => FailureClass::Refused,
        _ => FailureClass::ProviderFault,
    });
    let class = if class == FailureClass::QuotaExhausted && !signed { FailureClass::ProviderFault } else { class };
    AttemptError {
        status: Some(status.as_u16()),
        retry_after: retry_after::parse(&answer.headers),
        ..AttemptError::new(class, Sent::Yes, if stale { STALE_TOKEN } else { "the provider refused" })
    }
}

fn tell_stale_time(provider: &LiveProvider) {
    if !provider.time_refused.is_due() {
        return;
    }
    let id = provider.provider.id.as_str();
    if let Some(Measured { skew_ms, doubt_ms }) = provider.skew.measured() {
        tracing::warn!(provider = id, skew_ms, doubt_ms, "the provider refused our time: check this machine's clock");
    } else {
        tracing::warn!(
            provider = id,
            "the provider refused our time, and none of its recent answers tells the skew: check this machine's clock"
        );
    }
}

fn bad_reply(detail: &'static str) -> AttemptError {
    AttemptError::new(FailureClass::BadReply, Sent::Yes, detail)
}
