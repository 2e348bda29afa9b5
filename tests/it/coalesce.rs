//! Equal questions in flight are asked once, and everybody is told the same, whoever comes late or leaves early.

use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::*;

fn patient(milliseconds: &str, body: &Value) -> Request<Full<bytes::Bytes>> {
    let mut request = chat_request(SHOP, body);
    request.headers_mut().insert("wb-timeout-ms", milliseconds.parse().unwrap());
    request
}

fn header<'a>(open: &'a Open, name: &str) -> &'a str {
    open.response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn row_46_a_hundred_equal_questions_are_one_request() {
    let world = World::new();
    world.fault("alpha", "delay:2s");
    let question = chat("kept");
    let answers = futures_util::future::join_all((0..100).map(|_| world.chat(&question))).await;
    assert_eq!(world.counts(), [1, 0, 0]);
    let notes = |note: &str| answers.iter().filter(|answer| answer.header("wb-cache") == note).count();
    assert_eq!((notes("miss"), notes("coalesced")), (1, 99));
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
    let joined = answers.iter().find(|answer| answer.header("wb-cache") == "coalesced").unwrap();
    assert_eq!(joined.header("cache-status"), "weighbridge; fwd=miss; collapsed");
    assert_eq!((joined.header("wb-cost"), joined.header("wb-attempts"), joined.header("wb-provider")), ("", "0", ""));
    let tokens = world.metric("weighbridge_tokens_total", &["type=\"output\""]);
    let said = answers[0].json()["usage"]["completion_tokens"].as_f64().unwrap();
    assert!((tokens - said).abs() < f64::EPSILON, "booked once: {tokens}");
    let counted = world.metric("weighbridge_cache_events_total", &["event=\"coalesced\""]);
    assert!((counted - 99.0).abs() < f64::EPSILON);
    assert_eq!(world.chat(&question).await.header("wb-cache"), "hit");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn who_comes_late_to_a_stream_is_told_what_was_said_and_then_what_is_said() {
    let mut world = World::new();
    let mut first = world.open(&streamed("kept")).await;
    let mut begun = String::new();
    for _ in 0..8 {
        begun.push_str(&first.next().await.unwrap());
    }
    let before = Instant::now();
    let mut second = world.open(&streamed("kept")).await;
    assert_eq!((header(&first, "wb-cache"), header(&second, "wb-cache")), ("miss", "coalesced"));
    let mut caught_up = String::new();
    while caught_up.len() < begun.len() {
        caught_up.push_str(&second.next().await.unwrap());
    }
    assert!(caught_up.starts_with(&begun));
    assert!(before.elapsed() < Duration::from_millis(5), "what was said needs no waiting");
    begun.push_str(&first.rest().await);
    caught_up.push_str(&second.rest().await);
    assert_eq!(begun, caught_up);
    assert!(begun.ends_with("data: [DONE]\n\n"));
    assert_eq!(world.counts(), [1, 0, 0]);
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "hit");
    world.assert_idle();
    drop((first, second));
    for line in world.log() {
        let leads = line["cache"] == "miss";
        assert_eq!((line["tokens_out"].is_u64(), line["cost"].is_string()), (leads, leads), "{line}");
        assert_eq!(line["stream.end"].as_str(), (line["cache"] != "hit").then_some("complete"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_is_told_the_token_counts_only_if_it_asked() {
    let world = World::new();
    for (user, counts_first) in [("a", false), ("b", true)] {
        let mut plain = streamed("kept");
        plain["user"] = json!(user);
        let mut counted = plain.clone();
        counted["stream_options"] = json!({"include_usage": true});
        let (one, two) = if counts_first { (&counted, &plain) } else { (&plain, &counted) };
        let (mut first, mut second) = (world.open(one).await, world.open(two).await);
        let texts = [first.rest().await, second.rest().await];
        let usage = texts.each_ref().map(|text| text.contains("\"usage\""));
        assert_eq!(usage, [counts_first, !counts_first]);
        assert_eq!(said(&events(&texts[0])), said(&events(&texts[1])));
        assert_eq!((header(&first, "wb-cache"), header(&second, "wb-cache")), ("miss", "coalesced"));
    }
    assert_eq!(world.counts(), [2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn the_client_that_came_first_may_leave_and_the_last_one_ends_it_at_once() {
    let world = World::with(&Plan { pace: Duration::from_millis(200), ..Plan::default() });
    let mut first = world.open(&streamed("kept")).await;
    first.next().await.unwrap();
    let mut second = world.open(&streamed("kept")).await;
    let mut third = world.open(&streamed("kept")).await;
    drop(first);
    sleep(Duration::from_secs(1)).await;
    assert!(!world.seen("alpha")[0].cancelled, "two are left");
    second.next().await.unwrap();
    drop(second);
    let text = third.rest().await;
    assert!(text.ends_with("data: [DONE]\n\n") && text.contains("\"role\":\"assistant\""));
    assert_eq!((world.counts(), world.seen("alpha")[0].cancelled), ([1, 0, 0], false));

    let mut other = streamed("kept");
    other["user"] = json!("another");
    let (mut one, two) = (world.open(&other).await, world.open(&other).await);
    one.next().await.unwrap();
    drop((one, two));
    sleep(Duration::from_millis(200)).await;
    assert!(world.seen("alpha")[1].cancelled, "nobody waits any more");
    assert_eq!(world.counts(), [2, 0, 0]);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_awaited_by_whoever_is_left_and_given_up_with_the_last() {
    let world = World::new();
    world.fault("alpha", "delay:4s");
    let question = chat("kept");
    let left = timeout(Duration::from_secs(1), world.chat(&question));
    let late = async {
        sleep(Duration::from_millis(500)).await;
        world.chat(&question).await
    };
    let (left, stayed) = tokio::join!(left, late);
    assert!(left.is_err());
    assert_eq!((stayed.status, stayed.header("wb-cache"), world.counts()), (200, "coalesced", [1, 0, 0]));

    let mut other = chat("kept");
    other["user"] = json!("another");
    assert!(timeout(Duration::from_secs(1), world.chat(&other)).await.is_err());
    sleep(Duration::from_millis(200)).await;
    assert!(world.seen("alpha")[1].cancelled);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn when_the_one_request_fails_the_others_share_one_more() {
    let world = World::new();
    for provider in ["alpha", "beta"] {
        world.fault(provider, "status:503");
    }
    let question = chat("kept");
    let answers = futures_util::future::join_all((0..20).map(|_| world.chat(&question))).await;
    assert!(answers.iter().all(|answer| answer.status == 503));
    let asked: usize = world.counts().iter().sum();
    assert!((2..=4).contains(&asked), "one try, and one more of all the others together: {asked}");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_breaks_off_for_everybody_in_the_same_place() {
    let world = World::new();
    world.fault("alpha", "cut:5");
    let (mut first, mut second) = (world.open(&streamed("kept")).await, world.open(&streamed("kept")).await);
    let (one, two) = (first.rest().await, second.rest().await);
    assert_eq!(world.counts(), [1, 0, 0]);
    assert_eq!(said(&events(&one)), said(&events(&two)));
    for (text, open) in [(&one, &first), (&two, &second)] {
        let last: Value = serde_json::from_str(events(text).last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "upstream_truncated");
        assert_eq!(last["error"]["request_id"], header(open, "x-request-id"), "each in its own name");
    }
    world.faults.clear("alpha");
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "miss", "nothing was kept");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn each_has_a_deadline_of_its_own() {
    let world = World::with(&Plan { pace: Duration::from_millis(100), ..Plan::default() });
    let mut first = world.open(&streamed("kept")).await;
    let hurried = world.call(patient("700", &streamed("kept"))).await;
    assert_eq!(hurried.header("wb-cache"), "coalesced");
    let last: Value = serde_json::from_str(hurried.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded");
    assert!(hurried.took <= Duration::from_millis(710), "{:?}", hurried.took);
    assert!(first.rest().await.ends_with("data: [DONE]\n\n"));

    world.fault("alpha", "delay:3s");
    let mut other = chat("kept");
    other["user"] = json!("another");
    let (slow, hurried) = tokio::join!(world.chat(&other), async {
        sleep(Duration::from_millis(100)).await;
        world.call(patient("1000", &other)).await
    });
    assert_eq!((slow.status, hurried.status), (200, 504));
    assert_eq!(world.counts(), [2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_hurried_client_that_came_first_takes_nobody_with_it() {
    let world = World::new();
    world.fault("alpha", "delay:3s");
    world.fault("beta", "delay:3s");
    let question = chat("kept");
    let (hurried, patient) = tokio::join!(world.call(patient("1000", &question)), async {
        sleep(Duration::from_millis(100)).await;
        world.chat(&question).await
    });
    assert_eq!((hurried.status, patient.status), (504, 200), "{}", patient.text());
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_another_tenant_another_question_or_a_call_that_wants_its_own() {
    let world = World::new();
    world.fault("alpha", "delay:2s");
    let question = chat("kept");
    let wishing = |wish: &str| {
        let mut request = chat_request(SHOP, &question);
        request.headers_mut().insert("wb-cache", wish.parse().unwrap());
        request
    };
    let mut other = question.clone();
    other["user"] = json!("another");
    let told = streamed("kept");
    let answers = tokio::join!(
        world.chat(&question),
        world.call(chat_request(OFFICE, &question)),
        world.chat(&other),
        world.call(wishing("no-cache")),
        world.call(wishing("no-store")),
        world.chat(&told),
        world.call(wishing("only-if-cached")),
    );
    let (one, office, third, fresh, apart, told, absent) = answers;
    for answer in [one, office, third, fresh, apart, told] {
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("wb-cache"), "coalesced");
    }
    assert_eq!((absent.status, world.counts()), (504, [6, 0, 0]));
    world.fault("alpha", "delay:1s");
    let duo = chat("duo");
    tokio::join!(world.chat(&duo), world.chat(&duo));
    assert_eq!(world.counts()[0], 8, "a route without a cache has no flights to share");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_slows_nobody() {
    let world = World::new();
    let idle = world.open(&streamed("kept")).await;
    let started = Instant::now();
    let told = world.chat(&streamed("kept")).await;
    assert_eq!((told.status, told.header("wb-cache")), (200, "coalesced"));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    drop(idle);
    world.assert_idle();
}
