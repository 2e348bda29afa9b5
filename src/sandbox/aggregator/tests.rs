use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::sandbox::serve_connection;
use crate::wire::openai::{parse_error, peek_chunk, peek_reply};
use crate::wire::sse::{Decoder, Event, Limits};

const CHAT: &str = "/tokenmix/v1/chat/completions";

fn aggregator() -> Aggregator {
    Aggregator::new(AggregatorConfig::new(Secret::new(b"sk-sandbox".to_vec())))
}

async fn connect(aggregator: &Aggregator) -> SendRequest<Full<Bytes>> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let aggregator = aggregator.clone();
    tokio::spawn(serve_connection(far, move |request| {
        let aggregator = aggregator.clone();
        async move { aggregator.handle(request).await }
    }));
    let (sender, connection) = handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "sandbox").header("authorization", "Bearer sk-sandbox");
    request.body(Full::from(body.to_string())).unwrap()
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "why is the sky blue"}]})
}

fn streamed(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "why is the sky blue"}], "stream": true})
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

async fn ask(aggregator: &Aggregator, path: &str, body: &Value) -> Response<Incoming> {
    connect(aggregator).await.send_request(post(path, body)).await.unwrap()
}

async fn read(answer: Response<Incoming>) -> Bytes {
    answer.into_body().collect().await.unwrap().to_bytes()
}

async fn json_of(answer: Response<Incoming>) -> Value {
    serde_json::from_slice(&read(answer).await).unwrap()
}

/// The events of a stream with the milliseconds at which they came, and whether it ended cleanly.
async fn events(answer: Response<Incoming>) -> (Vec<(Event, u128)>, bool) {
    let start = Instant::now();
    let mut body = answer.into_body();
    let mut decoder = Decoder::new(Limits::default());
    let mut events = Vec::new();
    loop {
        match body.frame().await {
            Some(Ok(frame)) => decoder.feed(frame.into_data().unwrap()),
            Some(Err(_)) => return (events, false),
            None => return (events, true),
        }
        while let Some(event) = decoder.next().unwrap() {
            events.push((event, start.elapsed().as_millis()));
        }
    }
}

fn value(event: &Event) -> Value {
    serde_json::from_slice(&event.data().unwrap()).unwrap()
}

fn content(events: &[(Event, u128)]) -> usize {
    events.iter().filter(|(event, _)| peek_chunk(&event.data().unwrap()).content).count()
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_names_who_answered_and_counts_its_words() {
    let aggregator = aggregator();
    let answer = ask(&aggregator, CHAT, &chat("deepseek-chat")).await;
    assert_eq!(
        (answer.status(), &answer.headers()["x-request-id"]),
        (StatusCode::OK, &"req_tokenmix_000001".parse().unwrap())
    );
    let body = json_of(answer).await;
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("tokenmix") && text.contains("deepseek-chat") && text.contains("why is the sky blue"));
    assert_eq!((&body["usage"]["prompt_tokens"], &body["model"]), (&json!(5), &json!("deepseek-chat")));
    let facts = body.to_string();
    let facts = peek_reply(facts.as_bytes()).unwrap();
    assert!(facts.content && facts.all_stopped && facts.error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_starts_with_the_role_comes_word_by_word_and_ends_with_done() {
    let mut config = AggregatorConfig::new(Secret::new(b"sk-sandbox".to_vec()));
    config.first_token = Duration::from_millis(300);
    let aggregator = Aggregator::new(config);
    let answer = ask(&aggregator, CHAT, &streamed("m")).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    let (events, clean) = events(answer).await;
    assert!(clean && events.last().unwrap().0.is_done());
    let chunks: Vec<_> = events[..events.len() - 1].iter().map(|(event, at)| (value(event), *at)).collect();
    assert_eq!(chunks[0].0["choices"][0]["delta"]["role"], "assistant");
    assert!(!peek_chunk(&events[0].0.data().unwrap()).content);
    let times: Vec<_> = chunks.iter().map(|(_, at)| *at).collect();
    assert!(times[0] < 10 && times[1].abs_diff(300) < 10 && times[2].abs_diff(320) < 10 && times[3].abs_diff(340) < 10);
    assert!(chunks.iter().all(|(chunk, _)| chunk["id"] == chunks[0].0["id"] && chunk.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap().0["choices"][0]["finish_reason"], "stop");
    let said: String =
        chunks.iter().filter_map(|(chunk, _)| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    let whole = json_of(ask(&aggregator, CHAT, &chat("m")).await).await;
    assert_eq!(said, whole["choices"][0]["message"]["content"].as_str().unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_usage_chunk_comes_only_when_asked_for() {
    let body = with(streamed("m"), "stream_options", json!({"include_usage": true}));
    let (events, _) = events(ask(&aggregator(), CHAT, &body).await).await;
    let facts: Vec<_> = events.iter().map(|(event, _)| peek_chunk(&event.data().unwrap())).collect();
    let usage: Vec<_> = facts.iter().filter(|facts| facts.usage.is_some()).collect();
    assert!(usage.len() == 1 && usage[0].usage_only);
    assert!(value(&events[0].0).as_object().unwrap()["usage"].is_null());
}

#[tokio::test(start_paused = true)]
async fn max_tokens_ends_an_answer_early() {
    let body = json_of(ask(&aggregator(), CHAT, &with(chat("m"), "max_tokens", json!(3))).await).await;
    assert_eq!(body["choices"][0]["message"]["content"], "This is tokenmix,");
    assert_eq!(
        (&body["choices"][0]["finish_reason"], &body["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_tool_is_called_with_arguments_its_schema_accepts() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": schema}}]);
    let aggregator = aggregator();
    let whole = json_of(ask(&aggregator, CHAT, &with(chat("m"), "tools", tools.clone())).await).await;
    let call = &whole["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!((&call["name"], &call["arguments"]), (&json!("weather"), &json!(r#"{"city":"sandbox","days":1}"#)));

    let (events, _) = events(ask(&aggregator, CHAT, &with(streamed("m"), "tools", tools.clone())).await).await;
    let calls = events.iter().filter(|(event, _)| !event.is_done()).map(|(event, _)| value(event));
    let calls: Vec<_> = calls.filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls").cloned()).collect();
    let arguments: String = calls.iter().map(|call| call[0]["function"]["arguments"].as_str().unwrap()).collect();
    assert_eq!(
        (&calls[0][0]["function"]["name"], arguments.as_str()),
        (&json!("weather"), call["arguments"].as_str().unwrap())
    );
    assert!(calls.iter().all(|call| call[0]["index"] == 0));

    let answered = json!([{"role": "user", "content": "x"}, {"role": "tool", "content": "rain"}]);
    let body = with(with(chat("m"), "tools", tools), "messages", answered);
    assert!(json_of(ask(&aggregator, CHAT, &body).await).await["choices"][0]["message"]["content"].is_string());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_a_wrong_path_and_a_wrong_body_are_refused_in_the_protocols_words() {
    let aggregator = aggregator();
    let mut request = post(CHAT, &chat("m"));
    request.headers_mut().insert("authorization", "Bearer sk-other".parse().unwrap());
    let answer = connect(&aggregator).await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(parse_error(&read(answer).await).unwrap().code.as_deref(), Some("invalid_api_key"));
    assert!(!aggregator.seen()[0].authorization_ok);
    for (path, body, status) in
        [("/x/v1/files", chat("m"), 404), (CHAT, json!({"model": "m"}), 400), (CHAT, json!([]), 400)]
    {
        let answer = ask(&aggregator, path, &body).await;
        assert_eq!(answer.status(), status);
        assert!(parse_error(&read(answer).await).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_for_the_provider_asked() {
    let mut request = post("/openrouter/v1/models", &json!({}));
    *request.method_mut() = Method::GET;
    let body = json_of(connect(&aggregator()).await.send_request(request).await.unwrap()).await;
    assert_eq!(body["data"].as_array().unwrap().len(), MAGIC_MODELS.len());
    assert_eq!(body["data"][0], json!({"id": "steady", "object": "model", "created": 0, "owned_by": "openrouter"}));
}

#[tokio::test(start_paused = true)]
async fn a_status_fault_carries_its_headers_and_an_error_body() {
    let aggregator = aggregator();
    let faults = &aggregator.0.config.faults;
    faults.set(
        "tokenmix",
        vec![Fault::parse("status:429;retry-after=2").unwrap(), Fault::parse("status:503;body=<html>").unwrap()],
    );
    let answer = ask(&aggregator, CHAT, &chat("m")).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"2".parse().unwrap()));
    assert_eq!(parse_error(&read(answer).await).unwrap().status, Some(429));
    assert_eq!(ask(&aggregator, "/openrouter/v1/chat/completions", &chat("m")).await.status(), 200);
    assert_eq!(read(ask(&aggregator, CHAT, &chat("m")).await).await, "<html>");
    assert_eq!(ask(&aggregator, CHAT, &chat("m")).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_bring_its_own_fault_for_all_or_for_one_provider() {
    let aggregator = aggregator();
    let all = with(chat("m"), "sandbox_fault", json!("status:503"));
    assert_eq!(ask(&aggregator, CHAT, &all).await.status(), 503);
    let one = with(chat("m"), "sandbox_fault", json!({"tokenmix": "status:500"}));
    assert_eq!(ask(&aggregator, CHAT, &one).await.status(), 500);
    assert_eq!(ask(&aggregator, "/openrouter/v1/chat/completions", &one).await.status(), 200);
    let odd = with(chat("m"), "sandbox_fault", json!("explode"));
    assert_eq!(ask(&aggregator, CHAT, &odd).await.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn magic_names_fail_as_their_table_says() {
    let aggregator = aggregator();
    for (name, text, _) in MAGIC_MODELS {
        assert!(text.map(Fault::parse).transpose().is_ok(), "{name}");
    }
    let mut statuses = Vec::new();
    for model in ["steady", "fail-503", "fail-429", "fail-503-once", "fail-503-once", "fail-503-once"] {
        statuses.push(ask(&aggregator, CHAT, &chat(model)).await.status().as_u16());
    }
    assert_eq!(statuses, [200, 503, 429, 503, 200, 503]);
    let start = Instant::now();
    assert_eq!(ask(&aggregator, CHAT, &chat("slow")).await.status(), 200);
    assert!(start.elapsed() >= Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn a_200_can_be_empty_an_error_or_garbage() {
    let aggregator = aggregator();
    let fault = |text: &str, body: Value| with(body, "sandbox_fault", json!(text));
    for body in [chat("m"), streamed("m")] {
        let answer = ask(&aggregator, CHAT, &fault("empty", body.clone())).await;
        assert_eq!((answer.status(), read(answer).await.len()), (StatusCode::OK, 0));
        let answer = ask(&aggregator, CHAT, &fault("garbage", body)).await;
        assert_eq!(answer.status(), 200);
        assert!(peek_reply(&read(answer).await).is_none());
    }
    let answer = ask(&aggregator, CHAT, &fault("error-in-200:429", chat("m"))).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(peek_reply(&read(answer).await).unwrap().error.unwrap().status, Some(429));
    let (events, _) = events(ask(&aggregator, CHAT, &fault("error-in-200:502", streamed("m"))).await).await;
    let facts = peek_chunk(&events[0].0.data().unwrap());
    assert_eq!((events.len(), facts.error.unwrap().status, facts.content), (1, Some(502), false));
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_shows_its_events_and_then_breaks() {
    for count in [0, 3, 10_000] {
        let body = with(streamed("m"), "sandbox_fault", json!(format!("cut:{count}")));
        let aggregator = aggregator();
        let (events, clean) = events(ask(&aggregator, CHAT, &body).await).await;
        assert!(!clean && events.iter().all(|(event, _)| !event.is_done()));
        let shown = content(&events);
        assert!(shown == count || (count > 100 && shown > 10), "{shown}");
        assert!(!aggregator.seen()[0].cancelled);
    }
    let body = with(chat("m"), "sandbox_fault", json!("cut:1"));
    let answer = ask(&aggregator(), CHAT, &body).await;
    assert!(answer.headers().contains_key("content-length"));
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_connection_without_an_answer() {
    for text in ["refuse", "reset"] {
        let aggregator = aggregator();
        let body = with(chat("m"), "sandbox_fault", json!(text));
        let error = connect(&aggregator).await.send_request(post(CHAT, &body)).await.unwrap_err();
        assert!(error.is_incomplete_message(), "{error:?}");
        assert!(!aggregator.seen()[0].cancelled);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_goes_silent_and_notices_the_caller_leave() {
    let aggregator = aggregator();
    let body = with(streamed("m"), "sandbox_fault", json!("stall:2"));
    let answer = ask(&aggregator, CHAT, &body).await;
    let waited = tokio::time::timeout(Duration::from_secs(3_600), events(answer)).await;
    assert!(waited.is_err(), "neither an event nor an end for an hour");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let seen = &aggregator.seen()[0];
    assert!(seen.cancelled);
    assert_eq!(seen.chunks_sent, 3, "the role and two words");
}

#[tokio::test(start_paused = true)]
async fn a_caller_leaving_before_the_headers_or_midway_is_noticed() {
    let aggregator = aggregator();
    let mut sender = connect(&aggregator).await;
    let body = with(streamed("m"), "sandbox_fault", json!("stall"));
    let waited = tokio::time::timeout(Duration::from_secs(60), sender.send_request(post(CHAT, &body))).await;
    assert!(waited.is_err());
    let mut answer = ask(&aggregator, CHAT, &streamed("m")).await;
    answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    drop(ask(&aggregator, CHAT, &chat("m")).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cancelled: Vec<_> = aggregator.seen().iter().map(|seen| seen.cancelled).collect();
    assert_eq!(cancelled, [true, true, false]);
    assert!(aggregator.seen()[1].chunks_sent < 5);
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_is_kept_byte_for_byte_and_bounded() {
    let aggregator = aggregator();
    let body = with(chat("m"), "n", json!(1.0));
    let sent = Bytes::from(body.to_string());
    let mut sender = connect(&aggregator).await;
    read(sender.send_request(post(CHAT, &body)).await.unwrap()).await;
    let seen = &aggregator.seen()[0];
    assert_eq!((&seen.body, seen.model.as_str(), seen.provider.as_str()), (&sent, "m", "tokenmix"));
    assert_eq!((seen.path.as_str(), seen.header("host")), (CHAT, Some("sandbox")));
    assert!(seen.authorization_ok && !format!("{seen:?}").contains("sk-sandbox"));

    let entry = || Seen { body: Bytes::new(), ..seen.clone() };
    (0..MAX_SEEN + 5).for_each(|_| drop(aggregator.remember(entry())));
    assert_eq!(aggregator.seen().len(), MAX_SEEN);
    let large = Bytes::from(vec![0; MAX_SEEN_BYTES / 2]);
    (0..5).for_each(|_| drop(aggregator.remember(Seen { body: large.clone(), ..entry() })));
    assert_eq!(aggregator.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn responses_are_answered_whole_and_streamed_with_the_same_keys_faults_and_magic() {
    const RESPONSES: &str = "/tokenmix/v1/responses";
    let aggregator = aggregator();
    let asking = |model: &str| json!({"model": model, "input": "why is the sky blue"});
    let body = json_of(ask(&aggregator, RESPONSES, &asking("steady")).await).await;
    assert_eq!((&body["object"], &body["id"]), (&json!("response"), &json!("resp_tokenmix-000001")));
    let answer = ask(&aggregator, RESPONSES, &with(asking("steady"), "stream", json!(true))).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    let (told, clean) = events(answer).await;
    assert!(clean && told.last().unwrap().0.event_type() == Some("response.completed"));
    assert_eq!(ask(&aggregator, RESPONSES, &asking("fail-503")).await.status(), 503);
    let (told, clean) =
        events(ask(&aggregator, RESPONSES, &with(asking("fail-cut"), "stream", json!(true))).await).await;
    let deltas = told.iter().filter(|(event, _)| event.event_type() == Some("response.output_text.delta"));
    assert!(!clean && deltas.count() == 3);
    let mut request = post(RESPONSES, &asking("steady"));
    request.headers_mut().insert("authorization", "Bearer sk-other".parse().unwrap());
    assert_eq!(connect(&aggregator).await.send_request(request).await.unwrap().status(), 401);
    assert_eq!(ask(&aggregator, RESPONSES, &chat("steady")).await.status(), 400);
    let mut request = post(RESPONSES, &json!({}));
    *request.method_mut() = Method::GET;
    assert_eq!(connect(&aggregator).await.send_request(request).await.unwrap().status(), 405);
}
