//! Traces as a collector gets them: what is told, that a trace goes on, and that a collector in trouble troubles nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Word;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::sleep;
use weighbridge::gateway::collector::Collector;

use crate::harness::forms::chunk;
use crate::harness::*;

/// Where the collector is.
const COLLECTOR: &str = "10.8.8.8";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// Nothing that a caller, a provider or a payer said may leave.
const CANARIES: [&str; 4] = ["CANARY", "hello there", "authorization", "evil.test"];

fn plan(more: &str) -> Plan {
    let traces = format!("[traces]\notlp = \"http://{COLLECTOR}:4318/otlp\"\n{more}\n\n[risk]");
    Plan::replacing("[risk]", &traces)
}

/// What the collector read: the head of each message, and its spans.
type Messages = Vec<(String, Vec<Span>)>;

/// Messages as they came.
#[derive(Clone, Default)]
struct Read(Arc<Mutex<Messages>>);

impl Read {
    fn heads(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(head, _)| head.clone()).collect()
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().iter().flat_map(|(_, spans)| spans.clone()).collect()
    }
}

/// A collector that answers with these statuses, the last one for ever.
fn collector(world: &World, statuses: &'static [&'static str]) -> Read {
    let read = Read::default();
    let kept = read.clone();
    world.net.always(
        COLLECTOR,
        peer(move |mut io| {
            let kept = kept.clone();
            async move {
                let mut all = Vec::new();
                let (head, body) = loop {
                    let mut piece = [0; 4096];
                    let many = io.read(&mut piece).await.unwrap();
                    all.extend_from_slice(&piece[..many]);
                    assert!(many > 0, "the message ends early");
                    let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8(all[..end].to_vec()).unwrap();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                    if all.len() - end - 4 == length.parse::<usize>().unwrap() {
                        break (head, all.split_off(end + 4));
                    }
                };
                let text = String::from_utf8_lossy(&body).to_string();
                for canary in CANARIES {
                    assert!(!text.contains(canary), "{canary} in {text}");
                }
                let message = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
                let scopes = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
                let number = {
                    let mut kept = kept.0.lock().unwrap();
                    kept.push((head, scopes.flat_map(|scope| scope.spans).collect()));
                    kept.len()
                };
                let status = statuses[number.min(statuses.len()) - 1];
                let _ = io.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        }),
    );
    read
}

/// Sends what waits, until it is dropped or told to stop.
fn sending(world: &World) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    (stop, tokio::spawn(Collector::new(&world.live, &world.shared).run(stopped)))
}

fn words(span: &Span) -> HashMap<&str, String> {
    let word = |word: &Word| match word {
        Word::StringValue(text) => text.clone(),
        Word::IntValue(number) => number.to_string(),
        Word::DoubleValue(number) => number.to_string(),
        Word::BoolValue(flag) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    let pair = |pair: &'_ opentelemetry_proto::tonic::common::v1::KeyValue| {
        word(pair.value.as_ref().unwrap().value.as_ref().unwrap())
    };
    span.attributes.iter().map(|one| (one.key.as_str(), pair(one))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn dropped(world: &World, reason: &str) -> f64 {
    world.metric("weighbridge_traces_dropped_total", &[&format!("reason=\"{reason}\"")])
}

/// A chat call with these headers.
async fn chat_with(world: &World, headers: &[(&'static str, &'static str)]) -> Answer {
    let mut request = chat_request(SHOP, &chat("duo"));
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    world.call(request).await
}

#[tokio::test(start_paused = true)]
async fn a_callers_trace_goes_on_through_a_failover_and_is_told_whole() {
    let mut world = World::with(&plan("sample = 0"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    world.fault("alpha", "status:503");
    let answer = chat_with(&world, &[("traceparent", PARENT), ("tracestate", "shop=1")]).await;
    answer.assert_served("beta", 2);
    assert_eq!(answer.header("wb-trace-id"), "4bf92f3577b34da6a3ce929d0e0e4736");
    sleep(Duration::from_secs(2)).await;
    let spans = read.spans();
    let [request, first, second] = spans.as_slice() else { panic!("{spans:?}") };
    assert!(spans.iter().all(|span| hex(&span.trace_id) == PARENT[3..35] && span.trace_state == "shop=1"));
    assert_eq!((request.name.as_str(), request.kind), ("POST /v1/chat/completions", 2));
    assert_eq!(hex(&request.parent_span_id), PARENT[36..52]);
    assert!([first, second].iter().all(|span| span.parent_span_id == request.span_id && span.kind == 3));
    assert!(spans.iter().all(|span| span.flags & 1 == 1 && span.start_time_unix_nano <= span.end_time_unix_nano));
    assert!(first.end_time_unix_nano <= second.start_time_unix_nano);
    assert!(request.start_time_unix_nano <= first.start_time_unix_nano);
    assert!(second.end_time_unix_nano <= request.end_time_unix_nano);

    let (request, first, second) = (words(request), words(first), words(second));
    assert_eq!((&*first["weighbridge.attempt.outcome"], &*first["error.type"]), ("failed", "overloaded"));
    assert_eq!((&*first["http.response.status_code"], &*first["gen_ai.provider.name"]), ("503", "alpha"));
    assert_eq!((&*second["gen_ai.operation.name"], &*second["gen_ai.provider.name"]), ("chat", "beta"));
    assert!(second.contains_key("gen_ai.usage.input_tokens") && second.contains_key("server.address"));
    assert_eq!(second["gen_ai.response.model"], answer.json()["model"].as_str().unwrap());
    assert!(!first.contains_key("gen_ai.response.model"), "it gave no answer");
    assert_eq!((&*request["weighbridge.route"], &*request["weighbridge.caller"]), ("duo", "shop"));
    assert_eq!((&*request["http.response.status_code"], &*request["weighbridge.attempts"]), ("200", "2"));

    let heads = read.heads();
    assert_eq!(heads.len(), 1, "one message for all of it");
    assert!(heads[0].starts_with("POST /otlp/v1/traces HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[0].contains("content-type: application/x-protobuf"), "{heads:?}");
    let line = world.log().pop().unwrap();
    assert_eq!(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert!((world.metric("weighbridge_traces_exported_total", &[]) - 1.0).abs() < f64::EPSILON);
}

/// A provider whose first word takes a second and whose last takes four.
fn slow_stream() -> Link {
    peer(|mut io| async move {
        read_request(&mut io).await;
        sleep(Duration::from_secs(1)).await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let word =
            chunk(b"data: {\"model\":\"alpha-2026\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n");
        io.write_all(&[head.as_slice(), &word].concat()).await.unwrap();
        sleep(Duration::from_secs(4)).await;
        let usage = chunk(
            b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\n\
            data: [DONE]\n\n",
        );
        io.write_all(&[usage.as_slice(), b"0\r\n\r\n"].concat()).await.unwrap();
    })
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_told_at_its_end_with_its_tokens() {
    let world = World::with(&plan("sample = 1"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    world.net.always("alpha", slow_stream());
    let mut open = world.open(&streamed("duo")).await;
    open.next().await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(read.spans().is_empty(), "it is not over");
    open.rest().await;
    sleep(Duration::from_secs(2)).await;
    let spans = read.spans();
    let [request, attempt] = spans.as_slice() else { panic!("{spans:?}") };
    assert!(request.parent_span_id.is_empty() && request.flags & 3 == 3, "{request:?}");
    assert!(attempt.end_time_unix_nano - attempt.start_time_unix_nano >= 4_000_000_000);
    assert_eq!(words(request)["weighbridge.stream.end"], "complete");
    let attempt = words(attempt);
    assert_eq!((&*attempt["gen_ai.request.stream"], &*attempt["gen_ai.response.model"]), ("true", "alpha-2026"));
    assert_eq!((&*attempt["gen_ai.usage.input_tokens"], &*attempt["gen_ai.usage.output_tokens"]), ("5", "2"));
    assert_eq!(attempt["gen_ai.response.time_to_first_chunk"], "1");
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_told_without_a_word_of_the_payment() {
    let world = World::with(&plan("sample = 1"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    world.assess(&payment("T-CANARY", "1.12")).await;
    sleep(Duration::from_secs(2)).await;
    let spans = read.spans();
    let [request, attempt] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((request.name.as_str(), attempt.name.as_str()), ("POST /v1/risk/assessments", "risk.assess alipay"));
    assert_eq!((&*words(request)["weighbridge.decision.source"], attempt.kind), ("live", 3));
    assert!(words(request).contains_key("weighbridge.decision.action"));
}

#[tokio::test(start_paused = true)]
async fn only_the_share_is_told_and_whoever_decided_first_is_obeyed() {
    let world = World::with(&plan("sample = 0"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    assert_eq!(chat_with(&world, &[]).await.status, 200);
    let not_sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    assert_eq!(chat_with(&world, &[("traceparent", not_sampled)]).await.status, 200);
    let mut stranger = chat_request("nobody-knows-this-key", &chat("duo"));
    stranger.headers_mut().insert("traceparent", HeaderValue::from_static(PARENT));
    assert_eq!(world.call(stranger).await.status, 401);
    sleep(Duration::from_secs(30)).await;
    assert_eq!((read.spans().len(), world.net.dialled(COLLECTOR)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_told_to_the_providers_that_are_named_and_to_no_other() {
    let world = World::with(&plan("sample = 0\nforward_to = [\"beta\"]"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    world.fault("alpha", "status:503");
    chat_with(&world, &[("traceparent", PARENT), ("tracestate", "shop=1")]).await.assert_served("beta", 2);
    sleep(Duration::from_secs(2)).await;
    let told = |provider: &str| -> Vec<_> {
        let headers = world.seen(provider).remove(0).headers;
        headers.into_iter().filter(|(name, _)| name.starts_with("trace")).collect()
    };
    assert_eq!(told("alpha"), []);
    let parent = format!("{}-{}-01", &PARENT[..35], hex(&read.spans()[2].span_id));
    assert_eq!(told("beta"), [("traceparent".to_owned(), parent), ("tracestate".to_owned(), "shop=1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_down_harms_nobody_and_what_it_missed_is_counted() {
    for link in [Link::Refused, Link::BlackHole, says("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")] {
        let world = World::with(&plan("sample = 1\nqueue = 16\ntimeout = \"1s\""));
        world.net.always(COLLECTOR, link);
        let (_stop, _sending) = sending(&world);
        chat_with(&world, &[]).await.assert_served("alpha", 1);
        sleep(Duration::from_millis(1_500)).await;
        for _ in 0..20 {
            chat_with(&world, &[]).await.assert_served("alpha", 1);
        }
        assert!((dropped(&world, "queue_full") - 4.0).abs() < f64::EPSILON);
        sleep(Duration::from_secs(60)).await;
        assert!((dropped(&world, "unreachable") - 17.0).abs() < f64::EPSILON);
        assert_eq!(world.net.dialled(COLLECTOR), 8, "four tries of two messages");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_sent_again_until_it_is_taken_and_a_refused_one_is_not() {
    let world = World::with(&plan("sample = 1"));
    let read =
        collector(&world, &["503 Busy", "429 Slow", "200 OK", "400 Bad", "307 Go\r\nlocation: http://evil.test/"]);
    let (_stop, _sending) = sending(&world);
    chat_with(&world, &[]).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(read.heads().len(), 3);
    for _ in 0..2 {
        chat_with(&world, &[]).await;
        sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(read.heads().len(), 5);
    assert!((dropped(&world, "refused") - 2.0).abs() < f64::EPSILON);
    assert!(!world.net.hosts().iter().any(|host| host.contains("evil")));
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_when_the_process_ends_but_not_waited_for_for_ever() {
    let world = World::with(&plan("sample = 1"));
    let read = collector(&world, &["200 OK"]);
    let (stop, sending_task) = sending(&world);
    chat_with(&world, &[]).await;
    drop(stop);
    sending_task.await.unwrap();
    assert_eq!(read.spans().len(), 2);

    let world = World::with(&plan("sample = 1\ntimeout = \"60s\""));
    world.net.always(COLLECTOR, Link::BlackHole);
    let (stop, sending_task) = sending(&world);
    chat_with(&world, &[]).await;
    let begun = tokio::time::Instant::now();
    drop(stop);
    sending_task.await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert!((dropped(&world, "unreachable") - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(start_paused = true)]
async fn a_reload_turns_traces_on_sends_them_elsewhere_and_off() {
    let mut world = World::new();
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    let plain = chat_with(&world, &[("traceparent", PARENT)]).await;
    assert!(plain.headers.get("wb-trace-id").is_none());
    assert!(!world.log_text().contains("trace_id"));
    let auth = "auth = { kind = \"header\", name = \"x-api-key\", secret_env = \"ALPHA_KEY\" }";
    world.reload(&plan(&format!("sample = 1\n{auth}\nheaders = {{ x-scope = \"shop\" }}")));
    chat_with(&world, &[]).await;
    sleep(Duration::from_secs(6)).await;
    let head = read.heads().pop().unwrap();
    assert!(head.contains(&format!("x-api-key: {}", provider_key("alpha"))), "{head}");
    assert!(head.contains("x-scope: shop"), "{head}");
    chat_with(&world, &[]).await;
    world.reload(&Plan::default());
    sleep(Duration::from_secs(6)).await;
    assert_eq!(read.heads().len(), 1);
    assert!((dropped(&world, "turned_off") - 1.0).abs() < f64::EPSILON);
}

/// The usual traces, and `gamma` on trial for every call to `duo`.
fn on_trial(more: &str) -> Plan {
    let mut plan = plan(more);
    let shadow = "[model.duo]\nshadow = { use = \"gamma/fast\", percent = 100 }\n";
    plan.routes = plan.routes.replacen("[model.duo]\n", shadow, 1);
    plan
}

#[tokio::test(start_paused = true)]
async fn a_shadows_copy_is_a_span_of_its_own_that_is_marked_and_not_in_its_callers_outcome() {
    for body in [chat("duo"), streamed("duo")] {
        let world = World::with(&on_trial("sample = 1\nforward_to = [\"gamma\"]"));
        let read = collector(&world, &["200 OK"]);
        let (_stop, _sending) = sending(&world);
        world.chat(&body).await.assert_served("alpha", 1);
        sleep(Duration::from_secs(5)).await;
        let spans = read.spans();
        let shadows = |span: &&Span| words(span).get("weighbridge.shadow").is_some_and(|shadow| shadow == "true");
        let [copy] = spans.iter().filter(shadows).collect::<Vec<_>>()[..] else { panic!("{spans:?}") };
        let [request, attempt] = spans.iter().filter(|span| !shadows(span)).collect::<Vec<_>>()[..] else {
            panic!("{spans:?}")
        };
        assert_eq!((&copy.trace_id, &copy.parent_span_id, copy.kind), (&request.trace_id, &request.span_id, 3));
        assert!(copy.span_id != attempt.span_id && copy.start_time_unix_nano >= request.start_time_unix_nano);
        assert!(copy.end_time_unix_nano > copy.start_time_unix_nano || body["stream"] != true);
        let told = words(copy);
        assert_eq!((&*told["weighbridge.upstream"], &*told["weighbridge.route"]), ("gamma/fast", "duo"));
        assert_eq!((&*told["weighbridge.attempt.outcome"], &*told["http.response.status_code"]), ("ok", "200"));
        assert_eq!(told["weighbridge.request_id"], words(request)["weighbridge.request_id"]);
        assert!(told.contains_key("gen_ai.usage.input_tokens") && !told.contains_key("weighbridge.attempt"));
        assert!(told.contains_key("gen_ai.response.model"), "{told:?}");
        assert_eq!(words(request)["weighbridge.attempts"], "1");
        assert!(!words(attempt).contains_key("weighbridge.shadow"));
        let parent = world.seen("gamma").remove(0).header("traceparent").unwrap().to_owned();
        assert_eq!(parent[36..52], hex(&copy.span_id), "whoever is on trial is told the copy's span");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shadows_failure_is_its_spans_alone_and_without_sampling_there_is_none() {
    let mut world = World::with(&on_trial("sample = 1"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    world.fault("gamma", "status:503");
    chat_with(&world, &[]).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(5)).await;
    let spans = read.spans();
    assert_eq!(spans.len(), 3);
    let failed = spans.iter().find(|span| words(span).contains_key("weighbridge.shadow")).unwrap();
    assert_eq!(words(failed)["weighbridge.attempt.outcome"], "failed");
    assert_eq!((&*words(failed)["error.type"], &*words(failed)["http.response.status_code"]), ("overloaded", "503"));
    let request = spans.iter().find(|span| span.kind == 2).unwrap();
    assert_eq!(words(request)["weighbridge.outcome"], "ok");
    assert_eq!(world.log().pop().unwrap()["outcome"], "ok");

    let world = World::with(&on_trial("sample = 0"));
    let read = collector(&world, &["200 OK"]);
    let (_stop, _sending) = sending(&world);
    chat_with(&world, &[]).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(5)).await;
    assert_eq!((read.spans().len(), world.seen("gamma").len()), (0, 1));
}
