use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::domain::secret::Secret;
use crate::sandbox::aggregator::{Aggregator, AggregatorConfig};
use crate::sandbox::serve_connection;
use crate::wire::messages::{EventFacts, Stop, Tokens, is_last_event, peek_event, peek_reply};
use crate::wire::sse::{Decoder, Event, Limits};

const PATH: &str = "/anthropic/v1/messages";
const KEY: [(&str, &str); 2] = [("x-api-key", "sk-sandbox"), ("anthropic-version", "2026-10-21")];

fn aggregator() -> Aggregator {
    Aggregator::new(AggregatorConfig::new(Secret::new(b"sk-sandbox".to_vec())))
}

async fn send(
    aggregator: &Aggregator,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Result<Response<Incoming>, hyper::Error> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let aggregator = aggregator.clone();
    tokio::spawn(serve_connection(far, move |request| {
        let aggregator = aggregator.clone();
        async move { aggregator.handle(request).await }
    }));
    let (mut sender, connection) = handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let request = headers
        .iter()
        .fold(Request::post(path).header("host", "sandbox"), |request, (name, value)| request.header(*name, *value));
    sender.send_request(request.body(Full::<Bytes>::from(body.to_string())).unwrap()).await
}

async fn ask(body: &Value) -> Response<Incoming> {
    send(&aggregator(), PATH, &KEY, body).await.unwrap()
}

async fn read(answer: Response<Incoming>) -> Value {
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// The events of a stream, and whether it ended cleanly.
async fn events(answer: Response<Incoming>) -> (Vec<Event>, bool) {
    let (mut body, mut decoder, mut events) = (answer.into_body(), Decoder::new(Limits::default()), Vec::new());
    let clean = loop {
        match body.frame().await {
            Some(Ok(frame)) => decoder.feed(frame.into_data().unwrap_or_else(|_| Bytes::new())),
            end => break end.is_none(),
        }
        while let Some(event) = decoder.next().unwrap() {
            events.push(event);
        }
    };
    (events, clean)
}

fn asking(model: &str) -> Value {
    json!({"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "why is the sky blue"}]})
}

fn with(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

#[tokio::test(start_paused = true)]
async fn a_message_names_who_answered_and_counts_its_words() {
    let answer = ask(&with(asking("claude"), "system", json!([{"type": "text", "text": "be brief"}]))).await;
    assert_eq!(answer.headers()["request-id"], "req_anthropic_000001");
    let body = read(answer).await;
    let facts = body.to_string();
    let facts = peek_reply(facts.as_bytes()).unwrap();
    assert!(facts.content && facts.stop == Some(Stop::Complete) && facts.error.is_none());
    assert!(body["content"][0]["text"].as_str().unwrap().contains("why is the sky blue"));
    assert_eq!((&body["usage"]["input_tokens"], &body["model"]), (&json!(7), &json!("claude")));
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_the_events_in_order_and_says_what_the_message_says() {
    let (events, clean) = events(ask(&with(asking("m"), "stream", json!(true))).await).await;
    assert!(clean && is_last_event(events.last().unwrap()));
    let mut kinds: Vec<_> = events.iter().map(|event| event.event_type().unwrap()).collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let facts: Vec<EventFacts> = events.iter().map(peek_event).collect();
    let mut tokens = Tokens::default();
    facts.iter().for_each(|facts| tokens.absorb(facts.tokens));
    let said: String = events
        .iter()
        .filter_map(|event| {
            serde_json::from_slice::<Value>(&event.data().unwrap()).unwrap()["delta"]["text"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    let whole = read(ask(&asking("m")).await).await;
    assert_eq!(json!(said), whole["content"][0]["text"]);
    assert_eq!(json!(tokens.output), whole["usage"]["output_tokens"]);
    assert_eq!(tokens.input, Some(5));
}

#[tokio::test(start_paused = true)]
async fn the_first_tool_is_used_and_once_it_answered_text_follows() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let body = with(asking("m"), "tools", json!([{"name": "weather", "input_schema": schema}]));
    let message = read(ask(&body).await).await;
    assert_eq!(
        (&message["stop_reason"], &message["content"][0]["input"]),
        (&json!("tool_use"), &json!({"city": "sandbox"}))
    );
    let (events, _) = events(ask(&with(body.clone(), "stream", json!(true))).await).await;
    assert!(events.iter().any(|event| peek_event(event).stop == Some(Stop::Complete)));
    assert!(events.iter().any(|event| event.raw().windows(16).any(|window| window == b"input_json_delta")));
    let result = json!([{"type": "tool_result", "tool_use_id": message["content"][0]["id"], "content": "cold"}]);
    let turns = json!([body["messages"][0], {"role": "assistant", "content": message["content"]}, {"role": "user", "content": result}]);
    let second = read(ask(&with(body.clone(), "messages", turns)).await).await;
    assert_eq!((&second["stop_reason"], &second["content"][0]["type"]), (&json!("end_turn"), &json!("text")));
    let none = read(ask(&with(body, "tool_choice", json!({"type": "none"}))).await).await;
    assert_eq!(none["content"][0]["type"], "text");
}

#[tokio::test(start_paused = true)]
async fn either_form_of_the_key_is_taken_and_errors_have_this_forms_body() {
    let version = ("anthropic-version", "2023-06-01");
    type Case<'a> = (&'a [(&'a str, &'a str)], u16, &'a str);
    let cases: [Case<'_>; 5] = [
        (&[("authorization", "Bearer sk-sandbox"), version], 200, ""),
        (&[("x-api-key", "sk-sandbox"), version], 200, ""),
        (&[("x-api-key", "sk-other"), version], 401, "authentication_error"),
        (&[version], 401, "authentication_error"),
        (&[("x-api-key", "sk-sandbox")], 400, "invalid_request_error"),
    ];
    for (headers, status, kind) in cases {
        let answer = send(&aggregator(), PATH, headers, &asking("m")).await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        let body = read(answer).await;
        assert_eq!(body["error"]["type"].as_str().unwrap_or_default(), kind);
        assert_eq!(body["type"], if status == 200 { "message" } else { "error" });
    }
    let chat = "/anthropic/v1/chat/completions";
    assert_eq!(send(&aggregator(), chat, &KEY, &asking("m")).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    for body in [
        json!([]),
        json!({"model": "m", "max_tokens": 1}),
        json!({"model": "m", "messages": []}),
        with(asking("m"), "messages", json!([{"role": "tool"}])),
    ] {
        assert_eq!(ask(&body).await.status(), StatusCode::BAD_REQUEST);
    }
}

#[tokio::test(start_paused = true)]
async fn magic_models_and_faults_fail_as_in_chat() {
    let limited = ask(&asking("fail-429")).await;
    assert_eq!((limited.status().as_u16(), &limited.headers()["retry-after"]), (429, &"2".parse().unwrap()));
    assert_eq!(read(limited).await["error"]["type"], "rate_limit_error");
    let dressed = ask(&asking("fail-error-in-200")).await;
    assert_eq!(dressed.status(), StatusCode::OK);
    assert!(peek_reply(read(dressed).await.to_string().as_bytes()).unwrap().error.is_some());
    let (dressed, _) = events(ask(&with(asking("fail-error-in-200"), "stream", json!(true))).await).await;
    assert!(peek_event(&dressed[0]).error.is_some());
    let (cut, clean) = events(ask(&with(asking("fail-cut"), "stream", json!(true))).await).await;
    assert!(!clean && cut.iter().filter(|event| peek_event(event).content).count() == 3);
    assert!(send(&aggregator(), PATH, &KEY, &asking("fail-refuse")).await.is_err());
    let stalled = ask(&with(asking("fail-stall"), "stream", json!(true))).await;
    assert!(tokio::time::timeout(Duration::from_secs(600), events(stalled)).await.is_err());
    assert_eq!(ask(&with(asking("m"), "sandbox_fault", json!("status:503"))).await.status().as_u16(), 503);
}

#[tokio::test(start_paused = true)]
async fn max_tokens_ends_a_message_early() {
    let body = read(ask(&with(asking("m"), "max_tokens", json!(3))).await).await;
    assert_eq!((&body["stop_reason"], &body["usage"]["output_tokens"]), (&json!("max_tokens"), &json!(3)));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_counted_without_an_answer() {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "why is the sky blue"}]});
    let answer = send(&aggregator(), "/anthropic/v1/messages/count_tokens", &KEY, &body).await.unwrap();
    assert_eq!(read(answer).await, json!({"input_tokens": 5}));
}
