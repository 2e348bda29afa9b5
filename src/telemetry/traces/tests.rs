use std::collections::HashMap;

use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::*;
use crate::domain::decision::FallbackReason;
use crate::domain::outcome::FailureClass;
use crate::telemetry::metrics::Metrics;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn told(queue: usize) -> Told {
    let mut headers = HeaderMap::new();
    headers.insert(TRACEPARENT, PARENT.parse().unwrap());
    headers.insert(TRACESTATE, "shop=1".parse().unwrap());
    let servers = BTreeMap::from([(ProviderId::new("agg"), ("agg.example".to_owned(), 443))]);
    let plan = Plan { share: 0, queue, forward_to: BTreeSet::new(), servers };
    let context = TraceContext::begin(&headers, 0);
    let (plan, at_ns) = (Arc::new(plan), 999_900_000_007);
    let begun = Begun { context, plan, at_ns, method: "POST", scheme: "http", answered: Answered::default() };
    Told {
        part: Part::Whole,
        begun: Arc::new(begun),
        duration: Duration::from_millis(100),
        overhead: Duration::from_micros(70),
        id: RequestId::parse("req_1").unwrap(),
        operation: Some(Operation::Messages),
        route: Some(RouteId::new("summary")),
        caller: Some(CallerId::new("checkout")),
        tenant: Some(TenantId::new("shop-eu")),
        status: Some(200),
        outcome: RequestOutcome::Ok,
        error: None,
        stream_end: None,
        cache: "miss",
        decision: None,
        cost: None,
        config: "0123456789ab".to_owned(),
        attempts: Vec::new(),
    }
}

fn attempt(number: u32, outcome: AttemptOutcome) -> ToldAttempt {
    ToldAttempt {
        number,
        upstream: "agg/m".to_owned(),
        provider: ProviderId::new("agg"),
        model: "m-1".to_owned(),
        after: Duration::from_millis(10),
        duration: Duration::from_millis(20),
        outcome,
        status: None,
        served: None,
    }
}

fn sent(told: Told) -> Vec<Span> {
    let message = encode(&[told], &Instance::default());
    let mut request = ExportTraceServiceRequest::decode(message.as_slice()).unwrap();
    request.resource_spans.remove(0).scope_spans.remove(0).spans
}

fn words(span: &Span) -> HashMap<String, String> {
    let word = |value: &opentelemetry_proto::tonic::common::v1::AnyValue| {
        use opentelemetry_proto::tonic::common::v1::any_value::Value;
        match value.value.as_ref().unwrap() {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            Value::DoubleValue(number) => number.to_string(),
            Value::BoolValue(flag) => flag.to_string(),
            other => panic!("{other:?}"),
        }
    };
    span.attributes.iter().map(|pair| (pair.key.clone(), word(pair.value.as_ref().unwrap()))).collect()
}

#[test]
fn a_request_is_a_server_span_below_its_callers_with_an_attempt_below_it_each() {
    let failed = attempt(1, AttemptOutcome::Failed(FailureClass::Open));
    let usage = Usage { input_tokens: Some(7), cached_input_tokens: None, output_tokens: Some(3) };
    let served = Some(Served { usage, first_content: Some(Duration::from_millis(500)) });
    let answered = ToldAttempt { served, status: Some(200), ..attempt(2, AttemptOutcome::Ok) };
    let told = Told { attempts: vec![failed, answered], ..told(1) };
    told.begun.answered.hear(2, "m-1-2026".to_owned());
    let context = told.begun.context.clone();
    let spans = sent(told);
    let [request, first, second] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((request.name.as_str(), request.kind), ("POST /v1/messages", 2));
    assert_eq!(request.parent_span_id, context.parent.unwrap().0);
    assert_eq!((request.start_time_unix_nano, request.end_time_unix_nano), (999_900_000_007, 1_000_000_000_007));
    assert_eq!(request.flags, 0x301, "sampled, and the parent is elsewhere");
    for span in [first, second] {
        assert_eq!((span.name.as_str(), span.kind, span.flags), ("chat m-1", 3, 0x101));
        assert_eq!((&span.parent_span_id, &span.trace_id), (&request.span_id, &request.trace_id));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (999_910_000_007, 999_930_000_007));
        assert_eq!(span.trace_state, "shop=1");
    }
    assert_eq!([&*first.span_id, &*second.span_id], [context.attempt(1).0, context.attempt(2).0]);
    let (first, status) = (words(first), first.status.as_ref().unwrap().code);
    assert!(!first.contains_key("gen_ai.response.model"), "nothing was heard of it");
    assert_eq!((first["error.type"].as_str(), first["weighbridge.breaker"].as_str(), status), ("open", "open", 2));
    let second = words(second);
    assert_eq!(
        (second["gen_ai.request.model"].as_str(), second["gen_ai.response.model"].as_str()),
        ("m-1", "m-1-2026")
    );
    assert_eq!(second["gen_ai.usage.input_tokens"], "7");
    assert_eq!(second["gen_ai.usage.output_tokens"], "3");
    assert_eq!(second["gen_ai.response.time_to_first_chunk"], "0.5");
    assert_eq!(second["server.address"], "agg.example");
    assert!(!second.contains_key("error.type") && !second.contains_key("gen_ai.usage.cache_read.input_tokens"));
    let request = words(request);
    assert_eq!(request["http.route"], "/v1/messages");
    assert_eq!((request["weighbridge.caller"].as_str(), request["weighbridge.attempts"].as_str()), ("checkout", "2"));
    assert!(!request.keys().any(|key| key.starts_with("gen_ai.")), "or its tokens would be counted twice");
}

#[test]
fn a_decision_has_no_words_of_models() {
    let decision = Some((Action::Review, DecisionSource::Fallback(FallbackReason::Deadline)));
    let attempts = vec![attempt(1, AttemptOutcome::Abandoned)];
    let spans = sent(Told { operation: Some(Operation::RiskAssess), decision, attempts, ..told(1) });
    assert_eq!(spans[1].name, "risk.assess agg");
    assert!(spans[1].status.is_none());
    assert!(!words(&spans[1]).keys().any(|key| key.starts_with("gen_ai.")));
    let request = words(&spans[0]);
    assert_eq!(request["weighbridge.decision.action"], "REVIEW");
    assert_eq!(request["weighbridge.decision.fallback_reason"], "deadline_passed");
}

#[test]
fn only_what_is_our_fault_is_an_error_of_the_server() {
    let code = |outcome, status| {
        let spans = sent(Told { outcome, status, ..told(1) });
        (spans[0].status.as_ref().map(|status| status.code), words(&spans[0])["error.type"].clone())
    };
    assert_eq!(code(RequestOutcome::Unauthorised, Some(401)), (None, "unauthorised".to_owned()));
    assert_eq!(code(RequestOutcome::Timeout, Some(408)), (None, "timeout".to_owned()));
    assert_eq!(code(RequestOutcome::Timeout, Some(504)), (Some(2), "timeout".to_owned()));
    assert_eq!(code(RequestOutcome::UpstreamError, Some(200)), (Some(2), "upstream_error".to_owned()));
    assert_eq!(code(RequestOutcome::ClientGone, None), (None, "client_gone".to_owned()));
}

#[test]
fn what_finds_the_queue_full_is_dropped_and_counted() {
    let metrics = Metrics::new();
    let spans = Spans::new(metrics.traces.clone());
    (0..5).for_each(|_| spans.offer(Box::new(told(3))));
    assert_eq!((spans.take().len(), spans.take().len()), (3, 0));
    spans.offer(Box::new(told(3)));
    spans.clear(TraceDrop::Off);
    let text = metrics.render();
    assert!(text.contains("weighbridge_traces_dropped_total{reason=\"queue_full\"} 2"), "{text}");
    assert!(text.contains("weighbridge_traces_dropped_total{reason=\"turned_off\"} 1"), "{text}");
}

#[tokio::test]
async fn a_batch_wakes_whoever_sends() {
    let spans = Arc::new(Spans::new(Metrics::new().traces.clone()));
    (1..BATCH).for_each(|_| spans.offer(Box::new(told(BATCH))));
    let waiting = tokio::spawn({
        let spans = Arc::clone(&spans);
        async move { spans.crowded().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    spans.offer(Box::new(told(BATCH)));
    waiting.await.unwrap();
    spans.crowded().await;
}

#[test]
fn what_a_collector_did_not_take_is_read_from_its_answer() {
    let partial = ExportTracePartialSuccess { rejected_spans: 2, error_message: String::new() };
    let answer = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    assert_eq!((rejected(&answer), rejected(b""), rejected(b"\xff\xff")), (2, 0, 0));
}
