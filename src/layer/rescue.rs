//! The only place that turns an error into a status code, in the dialect of the path.
//!
//! An upstream or infrastructure fault is never a 401, 403 or 404 for the caller: it would rotate a key that is good.
//! Retry hints are those the official SDKs obey: `retry-after`, `retry-after-ms`, `x-should-retry`.

use std::convert::Infallible;
use std::time::Duration;

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tower::{Layer, Service};

use crate::domain::id::RequestId;
use crate::domain::jitter::Jitter;
use crate::domain::operation::Dialect;
use crate::domain::outcome::FailureClass;
use crate::flight::arrival::Arrival;
use crate::flight::error::{AttemptError, CallError};
use crate::flight::reply::{Reply, ReplyBody};
use crate::flight::trail::Trail;
use crate::layer::always_ready;
use crate::layer::answering::{Act, Answering};
use crate::wire::messages::{self, Failure};
use crate::wire::openai::{ErrorBody, error_body};
use crate::wire::risk::{FieldError, problem, status_of};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// SDKs take a longer wait for "retry at once"; say plainly that they should not.
const LONGEST_SDK_WAIT: Duration = Duration::from_secs(60);

/// Makes [`Rescue`].
#[derive(Clone, Copy)]
pub struct RescueLayer;

/// Answers for whatever failed below.
#[derive(Clone)]
pub struct Rescue<S>(S);

impl<S> Layer<S> for RescueLayer {
    type Service = Rescue<S>;

    fn layer(&self, inner: S) -> Rescue<S> {
        Rescue(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Rescue<S>
where
    S: Service<Arrival<P, B>, Response = Reply, Error = CallError>,
{
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Answering<S::Future, Lifeline>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, B>) -> Self::Future {
        let dialect = dialect(arrival.head.uri.path());
        let lifeline = Lifeline { dialect, id: arrival.id.clone(), trail: arrival.trail.clone() };
        Answering::new(self.0.call(arrival), lifeline)
    }
}

/// What is needed to answer for a failure.
pub struct Lifeline {
    dialect: Dialect,
    id: RequestId,
    trail: Trail,
}

impl Act<Result<Reply, CallError>> for Lifeline {
    type Output = Result<Response<ReplyBody>, Infallible>;

    fn act(self, answer: Result<Reply, CallError>) -> Self::Output {
        Ok(match answer {
            Ok(reply) => {
                let mut response = Response::new(reply.body);
                *response.status_mut() = reply.status;
                *response.headers_mut() = reply.headers;
                response
            }
            Err(error) => {
                self.trail.lock().error = Some(error.label());
                respond(&error, self.dialect, self.id.as_str())
            }
        })
    }
}

fn dialect(path: &str) -> Dialect {
    if path.starts_with("/v1/risk/") {
        Dialect::Problem
    } else if path.starts_with("/v1/messages") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}

/// What a caller is told: one row of the table in both dialects.
struct Told {
    status: StatusCode,
    /// OpenAI's `type`; the problem dialect derives its own from the status.
    kind: &'static str,
    code: Option<String>,
    /// The last part of a problem's type, where the status alone would not do.
    slug: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
    should_retry: Option<&'static str>,
}

impl Told {
    fn new(status: StatusCode, kind: &'static str, code: Option<&str>, message: impl Into<String>) -> Self {
        let (code, message) = (code.map(str::to_owned), message.into());
        Self { status, kind, code, slug: None, param: None, message, retry_after: None, should_retry: None }
    }

    fn retry(self, after: Option<Duration>) -> Self {
        let too_long = after.is_some_and(|after| after > LONGEST_SDK_WAIT);
        Self { retry_after: after, should_retry: too_long.then_some("false"), ..self }
    }

    fn final_word(self) -> Self {
        Self { should_retry: Some("false"), ..self }
    }
}

/// Makes the response for an error.
pub fn respond(error: &CallError, dialect: Dialect, id: &str) -> Response<ReplyBody> {
    let told = tell(error);
    let (media_type, body) = match dialect {
        Dialect::OpenAi | Dialect::Responses | Dialect::Audio => {
            let (param, code) = (told.param.as_deref(), told.code.as_deref());
            let body = error_body(&ErrorBody { message: &told.message, kind: told.kind, param, code });
            ("application/json", body)
        }
        Dialect::Anthropic => {
            let kind = messages::kind_of(told.status.as_u16());
            let failure = Failure { kind, message: &told.message, code: told.code.as_deref(), request_id: id };
            ("application/json", messages::error_body(&failure))
        }
        Dialect::Problem => {
            let fields: &[FieldError] = if let CallError::BadFields(fields) = error { fields } else { &[] };
            let title = told.status.canonical_reason().unwrap_or("Error");
            ("application/problem+json", problem((told.status, told.slug), title, &told.message, id, fields))
        }
    };
    let mut response = Response::new(ReplyBody::whole(body));
    *response.status_mut() = told.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    hints(headers, &told);
    match error {
        CallError::Method { allow } => drop(headers.insert(ALLOW, HeaderValue::from_static(allow))),
        // What follows on this connection may be the rest of something we did not understand.
        CallError::Framing(_) | CallError::Expectation | CallError::BodyIncomplete | CallError::BodyTooLarge { .. } => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        CallError::Tunnel => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, POST"));
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

fn hints(headers: &mut HeaderMap, told: &Told) {
    if let Some(after) = told.retry_after {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        headers.insert(RETRY_AFTER_MS, HeaderValue::from(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)));
    }
    if let Some(word) = told.should_retry {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static(word));
    }
}

const INVALID: &str = "invalid_request_error";
const API: &str = "api_error";

fn tell(error: &CallError) -> Told {
    let invalid = |status, code, message: String| Told::new(status, INVALID, code, message);
    match error {
        CallError::Framing(what) => invalid(StatusCode::BAD_REQUEST, None, (*what).to_owned()),
        CallError::Expectation => invalid(StatusCode::EXPECTATION_FAILED, None, error.to_string()),
        CallError::NotFound => invalid(StatusCode::NOT_FOUND, Some("unknown_path"), error.to_string()),
        CallError::Method { .. } | CallError::Tunnel => {
            invalid(StatusCode::METHOD_NOT_ALLOWED, None, error.to_string())
        }
        CallError::BadKey => {
            // Some clients know a wrong key by OpenAI's first words alone.
            let message = "Incorrect API key provided: the key is missing or not known; \
                           send authorization: Bearer <caller key>";
            invalid(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message.to_owned()).final_word()
        }
        CallError::BadSignature | CallError::StaleTimestamp { .. } | CallError::Replayed | CallError::NoNonceRoom => {
            of_signature(error)
        }
        CallError::NotAllowed(_) => Told::new(StatusCode::FORBIDDEN, "permission_error", None, error.to_string()),
        CallError::Shed { .. } => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Told::new(status, API, Some("overloaded"), error.to_string()).retry(Some(jittered()))
        }
        CallError::Throttled { retry_after, .. } => {
            let (status, code) = (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"));
            Told::new(status, "rate_limit_error", code, error.to_string()).retry(Some(*retry_after))
        }
        // No retry-after: SDKs would obey it, or take a long one for "at once", and nothing comes back within a wait.
        CallError::OverBudget { .. } => {
            let (status, kind) = (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota");
            Told::new(status, kind, Some(kind), error.to_string()).final_word()
        }
        CallError::Unpriced { .. } => Told {
            param: Some("model".to_owned()),
            ..Told::new(StatusCode::FORBIDDEN, "permission_error", Some("price_unknown"), error.to_string())
        },
        CallError::BodyTooLarge { .. } => invalid(StatusCode::PAYLOAD_TOO_LARGE, None, error.to_string()),
        CallError::BodyIncomplete => invalid(StatusCode::REQUEST_TIMEOUT, None, error.to_string()).final_word(),
        CallError::MediaType(what) => invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, (*what).to_owned()),
        CallError::BadRequest { message, param } => {
            Told { param: param.clone(), ..invalid(StatusCode::BAD_REQUEST, None, message.clone()) }
        }
        CallError::BadFields(fields) => invalid(status_of(fields), None, error.to_string()),
        CallError::UnknownModel { model } => Told {
            param: Some("model".to_owned()),
            ..invalid(StatusCode::NOT_FOUND, Some("model_not_found"), unknown_model(model))
        },
        CallError::NotOffered { .. } => Told {
            param: Some("model".to_owned()),
            ..invalid(StatusCode::BAD_REQUEST, Some("unsupported_operation"), error.to_string())
        },
        CallError::Conflict => invalid(StatusCode::CONFLICT, None, error.to_string()).final_word(),
        CallError::KeyReused => {
            invalid(StatusCode::CONFLICT, Some("idempotency_key_reused"), error.to_string()).final_word()
        }
        CallError::NotCached => {
            Told::new(StatusCode::GATEWAY_TIMEOUT, API, Some("not_cached"), error.to_string()).final_word()
        }
        CallError::Exhausted { last, retry_after } => exhausted(last, *retry_after),
        CallError::UploadLost { last, retry_after } => {
            let message = "the provider failed, and the upload is too large to be kept for another; send it again";
            Told { message: message.to_owned(), should_retry: None, ..exhausted(last, *retry_after) }
        }
        CallError::DeadlinePassed => timed_out("the call's deadline passed before a provider answered"),
        CallError::NoDecision(_) => {
            let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, Some("no_decision"));
            Told::new(status, API, code, error.to_string()).retry(Some(jittered()))
        }
        CallError::AuditUnavailable | CallError::RecordUnavailable => {
            let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, Some("audit_unavailable"));
            Told::new(status, API, code, error.to_string()).retry(Some(jittered()))
        }
        CallError::NoRecord => {
            Told::new(StatusCode::SERVICE_UNAVAILABLE, API, Some("no_record"), error.to_string()).final_word()
        }
        CallError::UnknownDecision => invalid(StatusCode::NOT_FOUND, Some("unknown_decision"), error.to_string()),
        CallError::Internal => Told::new(StatusCode::INTERNAL_SERVER_ERROR, API, Some("internal"), error.to_string()),
    }
}

/// About a signature. An SDK that repeats the request repeats the signature, which cannot do better.
fn of_signature(error: &CallError) -> Told {
    let (status, code, slug) = match error {
        CallError::StaleTimestamp { .. } => (StatusCode::UNAUTHORIZED, "stale_timestamp", "stale-timestamp"),
        CallError::Replayed => (StatusCode::CONFLICT, "replay", "replay"),
        CallError::NoNonceRoom => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let told = Told::new(status, API, Some("overloaded"), error.to_string());
            return told.retry(Some(jittered())).final_word();
        }
        _ => (StatusCode::UNAUTHORIZED, "invalid_signature", "signature-not-accepted"),
    };
    Told { slug: Some(slug), ..Told::new(status, INVALID, Some(code), error.to_string()).final_word() }
}

fn unknown_model(model: &str) -> String {
    let plain = !model.is_empty() && model.len() <= 64 && model.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    let named = if plain { format!(" {model:?}") } else { String::new() };
    format!("there is no model{named}; GET /v1/models lists those this key may use")
}

fn exhausted(last: &AttemptError, retry_after: Option<Duration>) -> Told {
    let unavailable = |status, message| Told::new(status, API, Some("upstream_unavailable"), message);
    match last.class {
        FailureClass::Refused => refused(last),
        FailureClass::RateLimited | FailureClass::Paced => {
            let message = "every provider of this model is limiting its rate";
            let (status, code) = (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"));
            Told::new(status, "rate_limit_error", code, message).retry(retry_after)
        }
        FailureClass::QuotaExhausted => {
            unavailable(StatusCode::SERVICE_UNAVAILABLE, "the providers' quota for this model is used up").final_word()
        }
        FailureClass::Overloaded | FailureClass::Open | FailureClass::Full => {
            // When places will be free nobody knows, but not all who were refused one should come back together.
            let wait = retry_after.or_else(|| (last.class == FailureClass::Full).then(jittered));
            unavailable(StatusCode::SERVICE_UNAVAILABLE, "no provider of this model has room now").retry(wait)
        }
        FailureClass::HeadersTimeout => timed_out("no provider answered in time"),
        FailureClass::DeadlinePassed => timed_out("the call's deadline passed before a provider answered"),
        FailureClass::Unauthorised => {
            let message = "the proxy's own credential was refused by the provider";
            Told::new(StatusCode::BAD_GATEWAY, API, Some("upstream_credentials"), message).final_word()
        }
        FailureClass::Connect
        | FailureClass::NoContent
        | FailureClass::ProviderFault
        | FailureClass::BadReply
        | FailureClass::BadSignature
        | FailureClass::StreamCut => {
            let told = unavailable(StatusCode::BAD_GATEWAY, "no provider gave a usable answer");
            told.retry(Some(retry_after.unwrap_or_else(jittered))).final_word()
        }
    }
}

/// The provider's own status and words: the caller's request is at fault and only the provider can say how.
fn refused(last: &AttemptError) -> Told {
    // Refused content may come as a 403, which here would read as a word about the caller's key.
    let status = last.status.filter(|status| !matches!(status, 200 | 401..=403));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::BAD_REQUEST);
    let said = last.said.as_deref();
    let message = said.map(|said| said.message.clone()).filter(|message| !message.is_empty());
    let message = message.unwrap_or_else(|| "the provider refused the request".to_owned());
    let told = Told::new(status, INVALID, said.and_then(|said| said.code_for_callers()), message);
    Told { param: said.and_then(|said| said.param.clone()), ..told }
}

fn timed_out(message: &str) -> Told {
    Told::new(StatusCode::GATEWAY_TIMEOUT, API, Some("upstream_timeout"), message).final_word()
}

/// One to five seconds, so that those who were shed together do not come back together.
fn jittered() -> Duration {
    Jitter::of_process().between(Duration::from_secs(1), Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::domain::outcome::Sent;

    fn exhausted_by(class: FailureClass) -> CallError {
        CallError::Exhausted { last: AttemptError::new(class, Sent::Yes, "test"), retry_after: None }
    }

    #[test]
    fn no_upstream_fault_is_the_callers_key_or_path() {
        for class in FailureClass::ALL {
            let status = respond(&exhausted_by(class), Dialect::OpenAi, "req_1").status();
            let confusing = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND];
            assert!(!confusing.contains(&status), "{class:?} gives {status}");
        }
    }

    #[test]
    fn when_our_own_means_are_exhausted_the_sdk_is_told_not_to_multiply_them() {
        for class in
            [FailureClass::Connect, FailureClass::ProviderFault, FailureClass::NoContent, FailureClass::Unauthorised]
        {
            let response = respond(&exhausted_by(class), Dialect::OpenAi, "req_1");
            assert_eq!(response.headers()[SHOULD_RETRY], "false", "{class:?}");
        }
    }

    #[test]
    fn a_wait_is_told_in_seconds_rounded_up_and_in_milliseconds() {
        let limited = CallError::Throttled { what: "requests", retry_after: Duration::from_millis(1_200) };
        let response = respond(&limited, Dialect::OpenAi, "req_1");
        assert_eq!(
            (&response.headers()[RETRY_AFTER], &response.headers()[RETRY_AFTER_MS]),
            (&"2".parse().unwrap(), &"1200".parse().unwrap())
        );
        assert!(!response.headers().contains_key(SHOULD_RETRY));
        let long = CallError::Throttled { what: "requests", retry_after: Duration::from_secs(90) };
        assert_eq!(respond(&long, Dialect::OpenAi, "req_1").headers()[SHOULD_RETRY], "false");
    }

    #[tokio::test]
    async fn each_path_gets_its_own_kind_of_error_body() {
        let body = |dialect| async move {
            let bytes = respond(&CallError::BadKey, dialect, "req_1").into_body().collect().await.unwrap().to_bytes();
            serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
        };
        let openai = body(Dialect::OpenAi).await;
        assert_eq!(openai["error"]["code"], "invalid_api_key");
        assert!(openai["error"]["param"].is_null());
        let problem = body(Dialect::Problem).await;
        assert_eq!((&problem["status"], &problem["instance"]), (&401.into(), &"req_1".into()));
    }
}
