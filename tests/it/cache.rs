//! Answers are reused only when they are whole, only for the same bytes, and never across tenants.

use std::time::Duration;

use http::Request;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::harness::*;

fn wishing(wish: &str, body: &Value) -> Request<http_body_util::Full<bytes::Bytes>> {
    let mut request = chat_request(SHOP, body);
    request.headers_mut().insert("wb-cache", wish.parse().unwrap());
    request
}

#[tokio::test(start_paused = true)]
async fn the_same_question_of_the_same_tenant_is_answered_from_memory_with_its_age() {
    let world = World::new();
    let first = world.chat(&chat("kept")).await;
    first.assert_served("alpha", 1);
    assert_eq!((first.header("wb-cache"), first.header("age")), ("miss", ""));
    sleep(Duration::from_secs(7)).await;
    let again = world.chat(&chat("kept")).await;
    assert_eq!((again.status, again.header("wb-cache"), again.header("age")), (200, "hit", "7"));
    assert_eq!((&again.body, again.header("content-type")), (&first.body, "application/json"));
    assert_eq!((again.header("wb-attempts"), again.header("wb-provider"), again.header("wb-cost")), ("0", "", ""));
    assert_eq!((again.header("wb-route"), again.header("cache-control")), ("kept", "private, no-store"));
    assert_eq!(world.counts(), [1, 0, 0]);
    for (event, times) in [("hit", 1.0), ("miss", 1.0)] {
        let counted =
            world.metric("weighbridge_cache_events_total", &["cache=\"response\"", &format!("event=\"{event}\"")]);
        assert!((counted - times).abs() < f64::EPSILON, "{event}: {counted}");
    }
    // Ten minutes, a tenth more or less.
    sleep(Duration::from_secs(532)).await;
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "hit");
    sleep(Duration::from_secs(122)).await;
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "miss");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn s8_nothing_is_shared_between_tenants_or_between_different_bytes() {
    let world = World::new();
    world.chat(&chat("kept")).await.assert_served("alpha", 1);
    let other = world.call(chat_request(OFFICE, &chat("kept"))).await;
    assert_eq!((other.header("wb-cache"), world.counts()), ("miss", [2, 0, 0]));

    let others = [
        r#"{"model":"kept","temperature":0,"messages":[]}"#,
        r#"{"model":"kept","temperature":0.0,"messages":[]}"#,
        r#"{"model":"kept","messages":[],"user":"\u00e9"}"#,
        r#"{"model":"kept","messages":[],"user":"e\u0301"}"#,
        r#"{"model":"kept","messages":[],"n":1}"#,
    ];
    for body in others {
        let answer = world.call(post("/v1/chat/completions", SHOP, body)).await;
        assert_eq!((answer.status, answer.header("wb-cache")), (200, "miss"), "{body}");
    }
    let same = [
        r#"{"model":"kept","messages":[],"temperature":0}"#,
        r#"{"model":"kept", "temperature":0, "messages":[]} "#,
        r#"{"model":"kept","temperature":0,"messages":[],"stream":false}"#,
    ];
    for body in same {
        let answer = world.call(post("/v1/chat/completions", SHOP, body)).await;
        assert_eq!((answer.status, answer.header("wb-cache")), (200, "hit"), "{body}");
    }
    assert_eq!(world.chat(&chat("duo")).await.header("wb-cache"), "bypass", "a route without a cache");
    assert_eq!(world.chat(&chat("duo")).await.header("cache-status"), "");
}

#[tokio::test(start_paused = true)]
async fn s9_what_is_not_whole_and_good_is_never_kept() {
    let world = World::new();
    for faults in [
        ["status:500", "status:500"],
        ["refuse", "garbage"],
        ["error-in-200:500", "empty"],
        ["status:400", "status:400"],
    ] {
        world.faults("alpha", &[faults[0], faults[0]]);
        world.faults("beta", &[faults[1], faults[1]]);
        let failed = world.chat(&chat("kept")).await;
        assert!(failed.status >= 400, "{faults:?}");
        world.faults.clear("alpha");
        world.faults.clear("beta");
    }
    let fresh = world.chat(&chat("kept")).await;
    assert_eq!((fresh.status, fresh.header("wb-cache")), (200, "miss"));

    let mut short = chat("kept");
    short["max_tokens"] = json!(2);
    for _ in 0..2 {
        let cut = world.chat(&short).await;
        assert_eq!((&cut.json()["choices"][0]["finish_reason"], cut.header("wb-cache")), (&json!("length"), "miss"));
    }
    let refused = world.metric("weighbridge_cache_events_total", &["event=\"refused_by_guard\""]);
    assert!((refused - 2.0).abs() < f64::EPSILON, "{refused}");

    let mut short = streamed("kept");
    short["messages"][0]["content"] = json!("other");
    for fault in ["cut:3", "stall:3"] {
        world.fault("alpha", fault);
        world.chat(&short).await;
        world.faults.clear("alpha");
        short["stream"] = json!(false);
        let absent = wishing("only-if-cached", &short);
        assert_eq!(world.call(absent).await.status, 504, "a stream that broke off leaves nothing behind: {fault}");
        short["stream"] = json!(true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_kept_as_its_whole_answer_and_told_again_in_either_way() {
    let world = World::new();
    let first = world.chat(&streamed("kept")).await;
    first.assert_served("alpha", 1);
    assert_eq!((first.header("wb-cache"), first.header("cache-status")), ("miss", "weighbridge; fwd=miss"));
    assert!(!first.text().contains("usage"));
    sleep(Duration::from_secs(3)).await;

    let again = world.chat(&streamed("kept")).await;
    assert_eq!((again.header("wb-cache"), again.header("age"), again.header("wb-attempts")), ("hit", "3", "0"));
    assert!(again.header("cache-status").starts_with("weighbridge; hit; ttl="), "{}", again.header("cache-status"));
    assert_eq!(again.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!((again.said(), again.text().contains("usage")), (first.said(), false));
    assert!(again.events().last().is_some_and(|event| event == "[DONE]"));

    let mut counted = streamed("kept");
    counted["stream_options"] = json!({"include_usage": true});
    let counted = world.chat(&counted).await;
    let usage: Value = serde_json::from_str(&counted.events()[counted.events().len() - 2]).unwrap();
    assert_eq!((counted.header("wb-cache"), &usage["choices"]), ("hit", &json!([])));

    let whole = world.chat(&chat("kept")).await;
    assert_eq!((whole.header("wb-cache"), whole.header("content-type")), ("hit", "application/json"));
    assert_eq!((whole.said(), &whole.json()["usage"]), (first.said(), &usage["usage"]));
    assert_eq!((&whole.json()["object"], whole.json()["created"].is_u64()), (&json!("chat.completion"), true));
    assert_eq!(world.counts(), [1, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_told_as_a_stream_with_its_tool_calls() {
    let world = World::new();
    let mut body = chat("kept");
    body["tools"] = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]);
    body["tool_choice"] = json!("required");
    let whole = world.chat(&body).await;
    assert_eq!((whole.status, whole.header("cache-status")), (200, "weighbridge; fwd=miss; stored"));
    body["stream"] = json!(true);
    let told = world.chat(&body).await;
    assert_eq!((told.header("wb-cache"), world.counts()), ("hit", [1, 0, 0]));
    let message = &whole.json()["choices"][0]["message"];
    let chunks: Vec<Value> = told.events().iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let id = whole.json()["id"].clone();
    assert!(chunks.iter().all(|chunk| chunk["id"] == id && chunk["object"] == "chat.completion.chunk"));
    let arguments: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
        .collect();
    match message["tool_calls"][0]["function"]["arguments"].as_str() {
        Some(expected) => assert_eq!(arguments, expected),
        None => assert_eq!(told.said(), message["content"].as_str().unwrap()),
    }
    let reason = &chunks.last().unwrap()["choices"][0]["finish_reason"];
    assert_eq!(reason, &whole.json()["choices"][0]["finish_reason"]);
}

#[tokio::test(start_paused = true)]
async fn responses_and_messages_are_kept_and_told_in_their_own_words_native_or_carried() {
    let native = r#""chat.completions", "responses", "messages""#;
    for offers in [native, r#""chat.completions""#] {
        let world = World::with(&Plan { alpha_offers: offers, ..Plan::default() });
        let response = json!({"model": "kept", "stream": true, "input": "hello there"});
        let message = json!({"model": "kept", "stream": true, "max_tokens": 100,
            "messages": [{"role": "user", "content": "hello there"}]});
        for (path, body, last, text) in [
            ("/v1/responses", response, "event: response.completed", "/output/0/content/0/text"),
            ("/v1/messages", message, "event: message_stop", "/content/0/text"),
        ] {
            let kinds = |answer: &Answer| -> Vec<String> {
                let text = answer.text();
                let mut kinds: Vec<String> =
                    text.lines().filter(|line| line.starts_with("event: ")).map(str::to_owned).collect();
                kinds.retain(|kind| kind != "event: ping");
                kinds.dedup();
                kinds
            };
            let ask = |body: &Value| world.call(post(path, SHOP, body.to_string()));
            let first = ask(&body).await;
            assert_eq!((first.status, first.header("wb-cache")), (200, "miss"), "{path}");
            let again = ask(&body).await;
            assert_eq!((again.status, again.header("wb-cache")), (200, "hit"), "{path} {offers}");
            assert_eq!(kinds(&again), kinds(&first), "{path} {offers}");
            assert_eq!(kinds(&again).last().map(String::as_str), Some(last));
            let mut plain = body.clone();
            plain["stream"] = json!(false);
            let whole = ask(&plain).await;
            assert_eq!((whole.status, whole.header("wb-cache")), (200, "hit"), "{path} {offers}");
            assert!(whole.json().pointer(text).and_then(Value::as_str).unwrap().contains("alpha"), "{path} {offers}");
            assert!(whole.json()["usage"]["output_tokens"].as_u64().unwrap() > 0, "{path} {offers}");
        }
        assert_eq!(world.counts(), [2, 0, 0], "{offers}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_past_its_time_stands_in_for_providers_that_fail_and_for_nothing_else() {
    let world = World::with(&Plan::replacing(
        r#"cache = { ttl = "10m" }"#,
        r#"cache = { ttl = "10m", stale_if_error = "1h" }"#,
    ));
    let first = world.chat(&chat("kept")).await;
    sleep(Duration::from_secs(900)).await;
    for provider in ["alpha", "beta"] {
        world.fault(provider, "status:503");
    }
    let stale = world.chat(&chat("kept")).await;
    assert_eq!((stale.status, stale.header("wb-cache"), stale.header("age")), (200, "stale-error", "900"));
    assert!(
        stale.header("cache-status").starts_with("weighbridge; fwd=stale; ttl=-"),
        "{}",
        stale.header("cache-status")
    );
    assert!(stale.header("cache-status").ends_with("detail=stale-if-error"));
    assert_eq!((&stale.body, stale.header("wb-attempts")), (&first.body, "2"));
    let told = world.chat(&streamed("kept")).await;
    assert_eq!((told.status, told.header("wb-cache"), told.said()), (200, "stale-error", first.said()));
    assert!(world.call(wishing("no-cache", &chat("kept"))).await.status >= 500, "the caller wanted it fresh");
    for provider in ["alpha", "beta"] {
        world.faults.clear(provider);
        world.fault(provider, "status:400");
    }
    sleep(Duration::from_secs(70)).await;
    assert_eq!(world.chat(&chat("kept")).await.status, 400, "the request is at fault");
    for provider in ["alpha", "beta"] {
        world.faults.clear(provider);
    }
    let fresh = world.chat(&chat("kept")).await;
    assert_eq!((fresh.status, fresh.header("wb-cache")), (200, "miss"), "a fresh answer takes its place");
    assert_eq!(world.chat(&chat("kept")).await.body, fresh.body);
    let counted = world.metric("weighbridge_cache_events_total", &["event=\"stale\""]);
    assert!((counted - 2.0).abs() < f64::EPSILON, "{counted}");
}

#[tokio::test(start_paused = true)]
async fn answers_cut_by_length_are_kept_where_the_route_says_so() {
    let world = World::with(&Plan::replacing(
        r#"cache = { ttl = "10m" }"#,
        r#"cache = { ttl = "10m", cut_by_length = "store" }"#,
    ));
    let mut short = streamed("kept");
    short["max_tokens"] = json!(2);
    assert_eq!(world.chat(&short).await.header("wb-cache"), "miss");
    short["stream"] = json!(false);
    let cut = world.chat(&short).await;
    assert_eq!((cut.header("wb-cache"), &cut.json()["choices"][0]["finish_reason"]), ("hit", &json!("length")));
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_cannot_be_read_is_refused_and_none_is_the_default() {
    let world = World::new();
    for bad in ["nostore", "no-store, no-cache", "NO-STORE", ""] {
        let refused = world.call(wishing(bad, &chat("kept"))).await;
        assert_eq!(refused.status, 400, "{bad:?}");
        assert_eq!(refused.json()["error"]["param"], "wb-cache");
    }
    assert_eq!(world.call(wishing("default", &chat("kept"))).await.header("wb-cache"), "miss");
    assert_eq!(world.counts(), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_caller_decides_whether_memory_will_do() {
    let world = World::new();
    let nothing = world.call(wishing("only-if-cached", &chat("kept"))).await;
    assert_eq!((nothing.status, nothing.openai_error().as_str()), (504, "not_cached"));
    assert_eq!(nothing.header("x-should-retry"), "false");
    let never = world.call(wishing("no-store", &chat("kept"))).await;
    assert_eq!((never.status, never.header("wb-cache")), (200, "bypass"));
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "miss", "no-store kept nothing");

    let kept = world.call(wishing("only-if-cached", &chat("kept"))).await;
    assert_eq!((kept.status, kept.header("wb-cache")), (200, "hit"));
    let fresh = world.call(wishing("no-cache", &chat("kept"))).await;
    assert_eq!((fresh.status, fresh.header("wb-cache")), (200, "miss"));
    assert_ne!(fresh.body, kept.body);
    let newest = world.chat(&chat("kept")).await;
    assert_eq!((newest.header("wb-cache"), &newest.body), ("hit", &fresh.body), "the fresh answer took its place");
    assert_eq!(world.counts(), [3, 0, 0]);
    let elsewhere = world.call(wishing("only-if-cached", &chat("duo"))).await;
    assert_eq!(elsewhere.status, 504);
}

#[tokio::test(start_paused = true)]
async fn memory_answers_while_every_provider_is_away() {
    let world = World::new();
    world.chat(&chat("kept")).await.assert_served("alpha", 1);
    world.net.always("alpha", Link::Refused);
    world.net.always("beta", Link::Refused);
    for provider in LLMS {
        world.fault(provider, "refuse");
    }
    let kept = world.chat(&chat("kept")).await;
    assert_eq!((kept.status, kept.header("wb-cache")), (200, "hit"));
    assert_eq!(world.chat(&streamed("kept")).await.header("wb-cache"), "hit");
    let mut other = chat("kept");
    other["user"] = json!("another");
    assert!(world.chat(&other).await.status >= 500);
}
