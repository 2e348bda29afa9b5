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

    let spellings = [
        r#"{"model":"kept","temperature":0,"messages":[]}"#,
        r#"{"model":"kept","temperature":0.0,"messages":[]}"#,
        r#"{"model":"kept","messages":[],"temperature":0}"#,
        r#"{"model":"kept","messages":[],"temperature":0} "#,
        r#"{"model":"kept","messages":[],"user":"\u00e9"}"#,
        r#"{"model":"kept","messages":[],"user":"e\u0301"}"#,
        r#"{"model":"kept","messages":[],"n":1}"#,
    ];
    for body in spellings {
        let answer = world.call(post("/v1/chat/completions", SHOP, body)).await;
        assert_eq!((answer.status, answer.header("wb-cache")), (200, "miss"), "{body}");
    }
    let streamed = world.chat(&streamed("kept")).await;
    assert_eq!((streamed.status, streamed.header("wb-cache")), (200, "bypass"));
    assert_eq!(world.chat(&chat("duo")).await.header("wb-cache"), "bypass", "a route without a cache");
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

    for _ in 0..2 {
        world.chat(&streamed("kept")).await;
    }
    let mut whole = streamed("kept");
    whole["stream"] = json!(false);
    assert_eq!(world.chat(&whole).await.header("wb-cache"), "miss", "a stream leaves nothing behind");
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
    assert!(world.chat(&streamed("kept")).await.status >= 500);
}
