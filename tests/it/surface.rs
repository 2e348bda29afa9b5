//! The operations beside chat, as applications meet them: asked in their own form where a provider has it, carried over
//! chat where it has not, and ended and refused in the words of their own dialect.

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use weighbridge::gateway::explain::{Question, explain};

use crate::harness::*;

const EVERYTHING: &str = r#""chat.completions", "completions", "embeddings", "responses", "messages",
    "messages.count_tokens", "moderations", "images.generations""#;

fn world(alpha_offers: &'static str) -> World {
    World::with(&Plan { alpha_offers, ..Plan::default() })
}

fn ask(path: &str, body: &Value) -> Request<Full<bytes::Bytes>> {
    post(path, SHOP, body.to_string())
}

fn response(stream: bool) -> Value {
    json!({"model": "duo", "stream": stream, "input": "hello there", "instructions": "be brief"})
}

fn message(stream: bool) -> Value {
    json!({"model": "duo", "stream": stream, "max_tokens": 100, "system": "be brief",
           "messages": [{"role": "user", "content": "hello there"}]})
}

/// The types in the `event:` lines, in order, without repeats.
fn kinds(text: &str) -> Vec<&str> {
    let mut kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    kinds.dedup();
    kinds
}

#[tokio::test(start_paused = true)]
async fn every_operation_reaches_its_path_with_the_providers_model_and_its_answer_comes_back() {
    let world = world(EVERYTHING);
    let cases = [
        ("/v1/completions", json!({"model": "duo", "prompt": "once"}), "/choices/0/text"),
        ("/v1/embeddings", json!({"model": "duo", "input": ["a", "b"]}), "/data/1/embedding"),
        ("/v1/moderations", json!({"model": "duo", "input": "a"}), "/results/0/flagged"),
        ("/v1/images/generations", json!({"model": "duo", "prompt": "a cat"}), "/data/0/b64_json"),
        ("/v1/responses", response(false), "/output/0/content/0/text"),
        ("/v1/messages", message(false), "/content/0/text"),
        ("/v1/messages/count_tokens", message(false), "/input_tokens"),
    ];
    for (path, body, place) in cases {
        let answer = world.call(ask(path, &body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(answer.header("wb-provider"), "alpha", "{path}");
        assert!(answer.json().pointer(place).is_some(), "{path}: {}", answer.text());
        let seen = world.seen("alpha").pop().unwrap();
        assert_eq!((seen.path.as_str(), seen.model.as_str()), (&*format!("/alpha{path}"), "alpha-fast-1"));
    }
    assert!(world.seen("beta").is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_have_an_operation_is_not_asked_for_it() {
    let world = world(EVERYTHING);
    world.faults("alpha", &["status:503"; 3]);
    let answer = world.call(ask("/v1/embeddings", &json!({"model": "duo", "input": "a"}))).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(world.seen("beta").is_empty(), "beta has no embeddings");
    let nobody = World::new().call(ask("/v1/embeddings", &json!({"model": "duo", "input": "a"}))).await;
    assert_eq!(nobody.status, 400);
    assert_eq!(nobody.json()["error"]["code"], "unsupported_operation");
}

/// What `weighbridge explain` says of counting.
fn counting_explained(world: &World) -> String {
    let question = br#"{"operation": "messages.count_tokens", "model": "duo"}"#;
    let told = explain(world.live.load().table(), None, &Question::read(question).unwrap());
    told.unwrap().to_string()
}

#[tokio::test(start_paused = true)]
async fn where_nobody_counts_tokens_the_answer_is_an_estimate_that_says_so_and_nobody_is_asked() {
    let mut world = World::new();
    let body = |words: usize| {
        let mut body = message(false);
        body["messages"][0]["content"] = json!("word ".repeat(words));
        body.as_object_mut().unwrap().remove("max_tokens");
        body
    };
    let count = async |world: &World, body: &Value| world.call(ask("/v1/messages/count_tokens", body)).await;
    for words in [100, 200_000] {
        let answer = count(&world, &body(words)).await;
        assert_eq!((answer.status, answer.header("wb-estimate")), (200, "true"), "{}", answer.text());
        let tokens = answer.json()["input_tokens"].as_u64().unwrap() as usize;
        assert!((words..words * 2).contains(&tokens), "{tokens} for {words} words");
        assert_eq!((answer.header("wb-route"), answer.header("request-id")), ("duo", answer.header("x-request-id")));
    }
    assert_eq!(world.counts(), [0, 0, 0]);
    let said = counting_explained(&world);
    assert!(said.contains("wb-estimate: true") && !said.contains("error"), "{said}");
    let odd = count(&world, &json!({"model": "duo", "max_tokens": "1"})).await;
    assert_eq!((odd.status, &odd.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    let unknown = count(&world, &json!({"model": "no-such", "messages": []})).await;
    assert_eq!((unknown.status, &unknown.json()["type"]), (404, &json!("error")));
    world.assert_idle();
    let log = world.log();
    let lines: Vec<_> = log.iter().map(|line| (&line["operation"], &line["outcome"])).collect();
    assert_eq!(lines[0], (&json!("messages.count_tokens"), &json!("ok")), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_count_that_a_provider_makes_is_exact_and_one_it_fails_to_make_is_not_replaced_by_an_estimate() {
    let world = world(EVERYTHING);
    let counted = world.call(ask("/v1/messages/count_tokens", &message(false))).await;
    assert_eq!((counted.status, counted.header("wb-estimate")), (200, ""));
    assert!(!counting_explained(&world).contains("wb-estimate"));
    let busy = self::world(EVERYTHING);
    busy.net.always("alpha", says(http_reply("503 Busy", "", "{}")));
    let failed = busy.call(ask("/v1/messages/count_tokens", &message(false))).await;
    assert_eq!((failed.status, failed.header("wb-estimate")), (503, ""), "{}", failed.text());
    assert!(failed.json()["error"]["message"].is_string(), "{}", failed.text());
    let embeds =
        World::with(&Plan { alpha_offers: r#""embeddings""#, beta_offers: r#""embeddings""#, ..Plan::default() });
    let nobody = embeds.call(ask("/v1/messages/count_tokens", &message(false))).await;
    assert_eq!((nobody.status, &nobody.json()["error"]["type"]), (400, &json!("invalid_request_error")));
    assert!(nobody.text().contains("unsupported_operation"), "{}", nobody.text());
    assert!(counting_explained(&embeds).contains("error: not_offered"));
}

#[tokio::test(start_paused = true)]
async fn a_response_is_carried_over_chat_whole_and_streamed() {
    let world = World::new();
    let answer = world.call(ask("/v1/responses", &response(false))).await;
    let body = answer.json();
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")), "{body}");
    assert!(body["output"][0]["content"][0]["text"].as_str().unwrap().contains("alpha"), "{body}");
    assert!(body["usage"]["output_tokens"].as_u64().unwrap() > 0);
    let seen = world.seen("alpha").pop().unwrap();
    assert_eq!(seen.path, "/alpha/v1/chat/completions");
    let sent: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(sent["messages"][0], json!({"role": "system", "content": "be brief"}));

    let text = world.call(ask("/v1/responses", &response(true))).await.text();
    let kinds = kinds(&text);
    assert_eq!(kinds.first(), Some(&"response.created"), "{text}");
    assert_eq!(kinds.last(), Some(&"response.completed"), "{text}");
    assert!(kinds.contains(&"response.output_text.delta"), "{text}");
    assert!(!text.contains("[DONE]"));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_message_is_carried_over_chat_whole_and_streamed() {
    let world = World::new();
    let answer = world.call(ask("/v1/messages", &message(false))).await;
    let body = answer.json();
    assert_eq!((&body["type"], &body["stop_reason"]), (&json!("message"), &json!("end_turn")), "{body}");
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
    assert_eq!(world.seen("alpha").pop().unwrap().path, "/alpha/v1/chat/completions");
    let text = world.call(ask("/v1/messages", &message(true))).await.text();
    let kinds = kinds(&text);
    assert_eq!(kinds.first(), Some(&"message_start"), "{text}");
    assert_eq!(kinds.last(), Some(&"message_stop"), "{text}");
    assert!(!text.contains("[DONE]"));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn f1_f11_a_failover_may_lead_from_one_form_to_the_other() {
    for fault in ["status:503", "empty", "error-in-200:500", "reset"] {
        for (path, body) in [
            ("/v1/responses", response(false)),
            ("/v1/responses", response(true)),
            ("/v1/messages", message(false)),
            ("/v1/messages", message(true)),
        ] {
            let world = world(EVERYTHING);
            world.fault("alpha", fault);
            let answer = world.call(ask(path, &body)).await;
            assert_eq!(answer.status, 200, "{path} {fault}: {}", answer.text());
            assert_eq!(answer.header("wb-provider"), "beta", "{path} {fault}");
            assert_eq!(world.seen("beta").pop().unwrap().path, "/beta/v1/chat/completions", "{path} {fault}");
            assert!(answer.text().contains("beta"), "{path} {fault}: {}", answer.text());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f7_a_stream_cut_midway_ends_in_one_error_event_of_its_own_dialect() {
    for offers in [EVERYTHING, r#""chat.completions""#] {
        for (path, body, end) in
            [("/v1/responses", response(true), "response.completed"), ("/v1/messages", message(true), "message_stop")]
        {
            let world = world(offers);
            world.fault("alpha", "cut:3");
            let text = world.call(ask(path, &body)).await.text();
            let kinds = kinds(&text);
            assert_eq!(kinds.last(), Some(&"error"), "{path}: {text}");
            assert_eq!(text.matches("event: error").count(), 1, "{path}: {text}");
            assert!(!kinds.contains(&end) && !text.contains("[DONE]"), "{path}: {text}");
            assert!(text.contains("upstream_truncated"), "{path}: {text}");
            if path == "/v1/responses" {
                let before = text.matches("event: ").count() - 1;
                assert!(text.contains(&format!("\"sequence_number\":{before},\"error\"")), "{text}");
            }
            assert!(world.seen("beta").is_empty(), "{path}: nothing is switched after content");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_the_providers_own_form_can_do_goes_there_or_is_refused() {
    let kept = json!({"model": "duo", "input": "go on", "previous_response_id": "resp_1"});
    let refused = World::new().call(ask("/v1/responses", &kept)).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["param"], "previous_response_id");
    let world = world(EVERYTHING);
    assert_eq!(world.call(ask("/v1/responses", &kept)).await.header("wb-provider"), "alpha");
    world.fault("alpha", "status:503");
    assert_eq!(world.call(ask("/v1/responses", &kept)).await.status, 503);
    assert!(world.seen("beta").is_empty());
}

#[tokio::test(start_paused = true)]
async fn g1_the_messages_path_takes_either_key_header_and_answers_in_its_own_form() {
    let world = world(EVERYTHING);
    let with = |headers: &[(&str, &str)]| {
        let mut request = Request::post("/v1/messages").header("host", "x").header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::from(message(false).to_string())).unwrap()
    };
    let bearer = format!("Bearer {SHOP}");
    for good in [
        &[("x-api-key", SHOP)][..],
        &[("authorization", &bearer)],
        &[("x-api-key", SHOP), ("authorization", &bearer)],
        &[("x-api-key", SHOP), ("anthropic-version", "2026-10-21"), ("anthropic-beta", "tools-1")],
    ] {
        assert_eq!(world.call(with(good)).await.status, 200, "{good:?}");
    }
    let seen = world.seen("alpha").pop().unwrap();
    assert_eq!(seen.header("anthropic-version"), Some("2026-10-21"));
    assert_eq!(seen.header("anthropic-beta"), Some("tools-1"));
    assert_eq!(seen.header("x-api-key"), None, "the caller's key stays here");
    for bad in [&[("x-api-key", "wb-wrong")][..], &[("x-api-key", SHOP), ("authorization", "Bearer wb-other")], &[]] {
        let answer = world.call(with(bad)).await;
        assert_eq!((answer.status, answer.json()["error"]["type"].clone()), (401, json!("authentication_error")));
        assert_eq!(answer.json()["request_id"], answer.header("request-id"));
    }
    let elsewhere = Request::post("/v1/embeddings").header("host", "x").header("x-api-key", SHOP);
    let elsewhere = elsewhere.header("content-type", "application/json").body(Full::from("{}")).unwrap();
    assert_eq!(world.call(elsewhere).await.status, 401, "only the messages path knows that header");
}

#[tokio::test(start_paused = true)]
async fn what_was_left_out_of_a_request_is_told() {
    let world = World::new();
    let body = json!({"model": "duo", "max_tokens": 9, "top_k": 3, "messages": [{"role": "user", "content": "hi"}]});
    let answer = world.call(ask("/v1/messages", &body)).await;
    assert_eq!(answer.header("wb-left-out"), "top_k");
    assert_eq!(world.call(ask("/v1/messages", &message(false))).await.headers.get("wb-left-out"), None);
}

#[tokio::test(start_paused = true)]
async fn f11_an_answer_without_data_is_no_answer() {
    for fault in [
        "empty",
        "garbage",
        "cut:1",
        "error-in-200:500",
        "status:200;body={}",
        "status:200;body={\"object\":\"list\",\"data\":[]}",
    ] {
        let world = world(EVERYTHING);
        world.faults("alpha", &[fault; 3]);
        let answer = world.call(ask("/v1/embeddings", &json!({"model": "duo", "input": "a"}))).await;
        assert_eq!(answer.status, 502, "{fault}: {}", answer.text());
    }
}

#[tokio::test(start_paused = true)]
async fn s8_an_answer_is_not_given_again_to_another_operation_or_another_version_of_the_form() {
    let world = world(EVERYTHING);
    let body = json!({"model": "kept", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]});
    let asked = |path: &str, beta: &str| {
        let mut request = post(path, SHOP, body.to_string());
        request.headers_mut().insert("anthropic-beta", beta.parse().unwrap());
        request
    };
    for (path, beta, cached) in [
        ("/v1/messages", "a", "miss"),
        ("/v1/messages", "a", "hit"),
        ("/v1/messages", "b", "miss"),
        ("/v1/chat/completions", "b", "miss"),
        ("/v1/chat/completions", "a", "hit"),
    ] {
        let answer = world.call(asked(path, beta)).await;
        assert_eq!((answer.status, answer.header("wb-cache")), (200, cached), "{path} {beta}");
    }
}
