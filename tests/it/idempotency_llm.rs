//! `idempotency-key` on calls to a model, with and without a cache on the route.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::harness::*;

fn keyed(caller: &str, path: &str, key: &str, body: &Value) -> Request<Full<bytes::Bytes>> {
    let mut request = post(path, caller, body.to_string());
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

fn ask(key: &str, body: &Value) -> Request<Full<bytes::Bytes>> {
    keyed(SHOP, "/v1/chat/completions", key, body)
}

#[tokio::test(start_paused = true)]
async fn c12_the_same_key_and_body_get_the_same_answer_whole_or_streamed() {
    let world = World::new();
    for (number, body) in [chat("duo"), streamed("duo")].iter().enumerate() {
        let key = format!("key-{number}");
        let first = world.call(ask(&key, body)).await;
        first.assert_served("alpha", 1);
        assert_eq!(first.header("idempotent-replayed"), "");
        sleep(Duration::from_secs(3600)).await;
        let again = world.call(ask(&key, body)).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, "true"));
        assert_eq!((&again.body, again.header("content-type")), (&first.body, first.header("content-type")));
        assert_eq!((again.header("wb-cost"), again.header("wb-attempts")), ("", "0"));
        assert_eq!(world.counts()[0], number + 1);
    }
    assert_eq!(world.chat(&chat("duo")).await.header("idempotent-replayed"), "");
    assert_eq!(world.counts(), [3, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c12_a_hundred_at_once_are_one_request() {
    let world = World::new();
    for body in [chat("duo"), streamed("duo")] {
        let key = body.to_string().len().to_string();
        let before = world.counts()[0];
        let answers = futures_util::future::join_all((0..100).map(|_| world.call(ask(&key, &body)))).await;
        assert_eq!(world.counts()[0] - before, 1);
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
        let replayed = answers.iter().filter(|answer| answer.header("idempotent-replayed") == "true").count();
        assert_eq!(replayed, 99);
    }
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c12_another_body_under_the_same_key_is_a_conflict_in_the_callers_dialect() {
    let world = World::new();
    world.call(ask("k", &chat("duo"))).await.assert_served("alpha", 1);
    let other = world.call(ask("k", &streamed("duo"))).await;
    assert_eq!((other.status, other.openai_error().as_str()), (409, "idempotency_key_reused"));
    assert_eq!(other.header("x-should-retry"), "false", "SDKs would try a 409 again");
    let message = json!({"model": "duo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    let other = world.call(keyed(SHOP, "/v1/messages", "k", &message)).await;
    assert_eq!((other.status, &other.json()["type"]), (409, &json!("error")));
    assert_eq!(world.call(keyed(OFFICE, "/v1/chat/completions", "k", &streamed("duo"))).await.status, 200);
    assert_eq!(world.counts(), [2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn errors_are_not_kept_so_a_retry_really_tries() {
    let world = World::new();
    for provider in ["alpha", "beta"] {
        world.fault(provider, "status:503");
    }
    assert_eq!(world.call(ask("k", &chat("duo"))).await.status, 503);
    for provider in ["alpha", "beta"] {
        world.faults.clear(provider);
    }
    let retried = world.call(ask("k", &chat("duo"))).await;
    assert_eq!((retried.status, retried.header("idempotent-replayed")), (200, ""));
    world.fault("alpha", "cut:4");
    let cut = world.call(ask("l", &streamed("duo"))).await;
    assert!(cut.text().contains("upstream_truncated"));
    world.faults.clear("alpha");
    let retried = world.call(ask("l", &streamed("duo"))).await;
    assert!(retried.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(retried.header("idempotent-replayed"), "");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_lost_its_connection_finds_the_answer_being_made() {
    let world = World::new();
    world.fault("alpha", "delay:3s");
    let (lost, retried) = tokio::join!(timeout(Duration::from_secs(1), world.call(ask("k", &chat("duo")))), async {
        sleep(Duration::from_millis(900)).await;
        world.call(ask("k", &chat("duo"))).await
    });
    assert!(lost.is_err());
    assert_eq!((retried.status, retried.header("idempotent-replayed")), (200, "true"));
    assert_eq!(world.counts(), [1, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_key_holds_on_routes_with_a_cache_too_and_whatever_the_caller_wishes_of_that() {
    let world = World::new();
    let first = world.call(ask("k", &chat("kept"))).await;
    assert_eq!(first.header("wb-cache"), "miss");
    let mut fresh = ask("k", &chat("kept"));
    fresh.headers_mut().insert("wb-cache", "no-cache".parse().unwrap());
    let again = world.call(fresh).await;
    assert_eq!((&again.body, again.header("idempotent-replayed")), (&first.body, "true"));
    let other = world.call(ask("l", &chat("kept"))).await;
    assert_eq!((other.header("wb-cache"), other.header("idempotent-replayed")), ("hit", ""));
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn every_operation_takes_a_key() {
    let everything = r#""chat.completions", "completions", "embeddings", "responses", "messages", "moderations""#;
    let world = World::with(&Plan { alpha_offers: everything, ..Plan::default() });
    let cases = [
        ("/v1/completions", json!({"model": "duo", "prompt": "once"})),
        ("/v1/embeddings", json!({"model": "duo", "input": "a"})),
        ("/v1/moderations", json!({"model": "duo", "input": "a"})),
        ("/v1/responses", json!({"model": "duo", "input": "a", "stream": true})),
        ("/v1/messages", json!({"model": "duo", "max_tokens": 9, "stream": true, "messages": []})),
    ];
    for (number, (path, body)) in cases.iter().enumerate() {
        let first = world.call(keyed(SHOP, path, path, body)).await;
        let again = world.call(keyed(SHOP, path, path, body)).await;
        assert_eq!(
            (first.status, again.header("idempotent-replayed"), &again.body),
            (200, "true", &first.body),
            "{path}"
        );
        assert_eq!(world.counts()[0], number + 1, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_none_is_refused_and_payments_have_names_of_their_own() {
    let world = World::new();
    for bad in ["", "with space", "\u{e9}", &"x".repeat(256)] {
        let mut request = chat_request(SHOP, &chat("duo"));
        request.headers_mut().insert("idempotency-key", http::HeaderValue::from_bytes(bad.as_bytes()).unwrap());
        let refused = world.call(request).await;
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("idempotency-key")), "{bad:?}");
    }
    let mut twice = ask("a", &chat("duo"));
    twice.headers_mut().append("idempotency-key", "b".parse().unwrap());
    assert_eq!(world.call(twice).await.status, 400);
    assert_eq!(world.call(ask(&"x".repeat(255), &chat("duo"))).await.status, 200);
    for out_trade_no in ["T1", "T2"] {
        let decided = world.call(keyed(SHOP, "/v1/risk/assessments", "k", &payment(out_trade_no, "1.00"))).await;
        assert_eq!((decided.status, decided.header("idempotent-replayed")), (200, ""));
    }
    assert_eq!(world.counts(), [1, 0, 0]);
}
