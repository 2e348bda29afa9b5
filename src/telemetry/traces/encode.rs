//! A finished request as spans of the OpenTelemetry protocol, in its binary form.
//!
//! One span of kind SERVER for the request, one of kind CLIENT below it for each attempt; a shadow's copy is one of the
//! latter, marked with `weighbridge.shadow`. Names follow the conventions for
//! HTTP (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>, stable, read Nov 2026) and for calls to models
//! ([`crate::telemetry::genai`]); ours begin with `weighbridge.`.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

use super::context::fresh;
use super::{Begun, Part, Served, Told, ToldAttempt};
use crate::domain::decision::DecisionSource;
use crate::domain::id::{CallerId, RouteId, TenantId};
use crate::domain::operation::Operation;
use crate::domain::outcome::{End, FailureClass};
use crate::telemetry::genai;
use crate::telemetry::labels::{AttemptOutcome, RequestOutcome};

/// What the message is called in HTTP.
pub const CONTENT_TYPE: &str = "application/x-protobuf";
const NAME: &str = "weighbridge";
/// Of the flags of a span: it is known whether its parent is in another process.
const PARENT_KNOWN: u32 = 0x100;
/// And it is.
const PARENT_REMOTE: u32 = 0x200;

/// This process among others of its kind.
pub struct Instance(String);

impl Default for Instance {
    fn default() -> Self {
        Self(fresh().0.to_string())
    }
}

/// One message with the spans of these requests.
pub fn encode(batch: &[Told], instance: &Instance) -> Vec<u8> {
    let mut resource = Attributes::default();
    resource.text("service.name", NAME);
    resource.text("service.version", env!("CARGO_PKG_VERSION"));
    resource.text("service.instance.id", &instance.0);
    let scope = InstrumentationScope {
        name: NAME.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let spans = batch.iter().flat_map(spans).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource = Some(Resource { attributes: resource.0, ..Resource::default() });
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// How many spans the collector says that it did not take, by its answer to [`encode`]'s message.
pub fn rejected(answer: &[u8]) -> usize {
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    answer.partial_success.map_or(0, |partial| usize::try_from(partial.rejected_spans).unwrap_or(0))
}

fn spans(told: &Told) -> impl Iterator<Item = Span> {
    let began_ns = told.begun.at_ns;
    let ended_ns = began_ns.saturating_add(nanos(told.duration));
    let attempts = told.attempts.iter().map(move |attempt| attempt_span(told, attempt, began_ns));
    let whole = (told.part == Part::Whole).then(|| request_span(told, [began_ns, ended_ns]));
    whole.into_iter().chain(attempts)
}

fn request_span(told: &Told, [began_ns, ended_ns]: [u64; 2]) -> Span {
    let Begun { context, method, .. } = &*told.begun;
    let remote = if context.parent.is_some() { PARENT_REMOTE } else { 0 };
    Span {
        span_id: context.span.0.to_vec(),
        parent_span_id: context.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        flags: u32::from(context.flags) | PARENT_KNOWN | remote,
        name: told.operation.map_or((*method).to_owned(), |operation| format!("{method} {}", operation.path())),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: began_ns,
        end_time_unix_nano: ended_ns,
        attributes: request_attributes(told).0,
        status: failed(is_fault(told)),
        ..of_trace(&told.begun)
    }
}

fn request_attributes(told: &Told) -> Attributes {
    let mut all = Attributes::default();
    all.text("http.request.method", told.begun.method);
    all.text("url.scheme", told.begun.scheme);
    all.maybe("http.route", told.operation.map(Operation::path));
    all.number("http.response.status_code", told.status.map(u64::from));
    if told.outcome != RequestOutcome::Ok {
        all.text("error.type", told.error.unwrap_or(told.outcome.label()));
    }
    all.text("weighbridge.request_id", told.id.as_str());
    all.maybe("weighbridge.operation", told.operation.map(Operation::label));
    all.maybe("weighbridge.route", told.route.as_ref().map(RouteId::as_str));
    all.maybe("weighbridge.caller", told.caller.as_ref().map(CallerId::as_str));
    all.maybe("weighbridge.tenant", told.tenant.as_ref().map(TenantId::as_str));
    all.text("weighbridge.outcome", told.outcome.label());
    all.text("weighbridge.cache", told.cache);
    all.number("weighbridge.attempts", Some(told.attempts.len() as u64));
    all.number("weighbridge.overhead_us", u64::try_from(told.overhead.as_micros()).ok());
    all.text("weighbridge.config", &told.config);
    all.maybe("weighbridge.stream.end", told.stream_end.map(End::label));
    all.maybe("weighbridge.cost", told.cost.map(|cost| cost.to_string()).as_deref());
    if let Some((action, source)) = told.decision {
        all.text("weighbridge.decision.action", action.as_str());
        all.text("weighbridge.decision.source", source.as_str());
        if let DecisionSource::Fallback(reason) = source {
            all.text("weighbridge.decision.fallback_reason", reason.code());
        }
    }
    all
}

fn attempt_span(told: &Told, attempt: &ToldAttempt, began_ns: u64) -> Span {
    let context = &told.begun.context;
    let start = began_ns.saturating_add(nanos(attempt.after));
    let asked = told.operation.and_then(genai::operation_name);
    let name = match (asked, told.operation) {
        (Some(asked), _) => format!("{asked} {}", attempt.model),
        (None, Some(operation)) => format!("{} {}", operation.label(), attempt.provider),
        (None, None) => attempt.provider.to_string(),
    };
    Span {
        span_id: context.attempt(attempt.number).0.to_vec(),
        parent_span_id: context.span.0.to_vec(),
        flags: u32::from(context.flags) | PARENT_KNOWN,
        name,
        kind: SpanKind::Client.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(nanos(attempt.duration)),
        attributes: attempt_attributes(told, attempt, asked).0,
        status: failed(matches!(attempt.outcome, AttemptOutcome::Failed(_))),
        ..of_trace(&told.begun)
    }
}

fn attempt_attributes(told: &Told, attempt: &ToldAttempt, asked: Option<&'static str>) -> Attributes {
    let mut all = Attributes::default();
    if let Some(asked) = asked {
        all.text(genai::OPERATION_NAME, asked);
        all.text(genai::PROVIDER_NAME, attempt.provider.as_str());
        all.text(genai::REQUEST_MODEL, &attempt.model);
        all.maybe(genai::RESPONSE_MODEL, told.begun.answered.of(attempt.number).as_deref());
    }
    if let Some((host, port)) = told.begun.plan.servers.get(&attempt.provider) {
        all.text("server.address", host);
        all.number("server.port", Some(u64::from(*port)));
    }
    all.number("http.response.status_code", attempt.status.map(u64::from));
    match told.part {
        Part::Whole => all.number("weighbridge.attempt", Some(u64::from(attempt.number))),
        // Its request may be told at another time, or never if the process ends in between.
        Part::Shadow => {
            all.put("weighbridge.shadow", Value::BoolValue(true));
            all.text("weighbridge.request_id", told.id.as_str());
            all.maybe("weighbridge.route", told.route.as_ref().map(RouteId::as_str));
        }
    }
    all.text("weighbridge.upstream", &attempt.upstream);
    all.text(
        "weighbridge.attempt.outcome",
        match attempt.outcome {
            AttemptOutcome::Outpaced => attempt.outcome.reason(),
            AttemptOutcome::Ok | AttemptOutcome::Failed(_) | AttemptOutcome::Abandoned => attempt.outcome.label(),
        },
    );
    if let AttemptOutcome::Failed(class) = attempt.outcome {
        all.text("error.type", class.label());
        if class == FailureClass::Open {
            all.text("weighbridge.breaker", "open");
        }
    }
    if let Some(Served { usage, first_content }) = &attempt.served {
        all.number(genai::INPUT_TOKENS, usage.input_tokens);
        all.number(genai::CACHE_READ_TOKENS, usage.cached_input_tokens);
        all.number(genai::OUTPUT_TOKENS, usage.output_tokens);
        if let Some(first) = first_content {
            all.put(genai::REQUEST_STREAM, Value::BoolValue(true));
            all.put(genai::TIME_TO_FIRST_CHUNK, Value::DoubleValue(first.as_secs_f64()));
        }
    }
    all
}

/// What all spans of a request have in common.
fn of_trace(begun: &Arc<Begun>) -> Span {
    Span { trace_id: begun.context.trace.0.to_vec(), trace_state: begun.context.state.to_string(), ..Span::default() }
}

/// A server's span is an error if it is the server's fault, whatever was answered.
fn is_fault(told: &Told) -> bool {
    match told.outcome {
        RequestOutcome::Ok
        | RequestOutcome::ClientGone
        | RequestOutcome::ClientError
        | RequestOutcome::Unauthorised
        | RequestOutcome::RateLimited => false,
        // Of a body that did not come in time it is the client's.
        RequestOutcome::Timeout => told.status != Some(408),
        RequestOutcome::Shed | RequestOutcome::UpstreamError | RequestOutcome::ShuttingDown | RequestOutcome::Error => {
            true
        }
    }
}

fn failed(failed: bool) -> Option<Status> {
    failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn put(&mut self, key: &str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
    }

    fn text(&mut self, key: &str, text: &str) {
        self.put(key, Value::StringValue(text.to_owned()));
    }

    fn maybe(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn number(&mut self, key: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.put(key, Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX)));
        }
    }
}
