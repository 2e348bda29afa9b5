//! Old answers given at once while one fresh one is asked for (row 46), from the providers' side and the purse's.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::harness::*;

const MS: Duration = Duration::from_millis(1);

fn world(more: &str) -> World {
    let with = format!("cache = {{ ttl = \"10m\", stale_while_revalidate = \"10m\"{more} }}");
    World::with(&Plan::replacing("cache = { ttl = \"10m\" }", &with))
}

#[tokio::test(start_paused = true)]
async fn row_46_a_hundred_who_find_an_old_answer_wait_for_nobody_and_cause_one_request() {
    let world = world("");
    let question = chat("kept");
    world.chat(&question).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(661)).await;
    world.fault("alpha", "delay:2s");
    let mut streamed = question.clone();
    streamed["stream"] = json!(true);
    let (question, streamed) = (&question, &streamed);
    let answers = join_all((0..100).map(async |number: u32| {
        sleep(number * MS).await;
        world.chat(if number.is_multiple_of(2) { question } else { streamed }).await
    }));
    for answer in answers.await {
        assert_eq!((answer.status, answer.header("wb-cache"), answer.header("wb-attempts")), (200, "stale", "0"));
        assert_eq!((answer.header("age"), answer.header("wb-cost")), ("661", ""));
        let status = answer.header("cache-status").to_owned();
        assert!(status.contains("fwd=stale; ttl=-") && status.ends_with("detail=stale-while-revalidate"), "{status}");
        assert!(answer.took < 10 * MS, "{:?}", answer.took);
    }
    assert_eq!(world.counts(), [2, 0, 0], "one before, one beside");
    sleep(Duration::from_secs(3)).await;
    let fresh = world.chat(question).await;
    assert_eq!((fresh.header("wb-cache"), fresh.header("age")), ("hit", "1"));
    assert_eq!(world.counts(), [2, 0, 0]);
    let revalidated = world.metric("weighbridge_cache_events_total", &["cache=\"response\"", "event=\"revalidated\""]);
    assert!((revalidated - 1.0).abs() < f64::EPSILON, "{revalidated}");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_46_nobody_waits_for_a_provider_that_is_away_and_it_is_not_asked_by_everybody() {
    let world = world(", stale_if_error = \"2h\"");
    let question = chat("kept");
    world.chat(&question).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(661)).await;
    ["alpha", "beta", "gamma"].iter().for_each(|provider| world.fault(provider, "status:500"));
    for _ in 0..100 {
        assert_eq!(world.chat(&question).await.header("wb-cache"), "stale");
    }
    let asked: usize = world.counts().iter().sum();
    assert!(asked <= 4, "{asked} attempts for a hundred calls");
    sleep(Duration::from_secs(700)).await;
    assert_eq!(world.chat(&question).await.header("wb-cache"), "stale-error");
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_an_old_answers_sake_has_a_line_with_its_cause_and_its_cost_and_is_nobodys_request() {
    let mut world = world("");
    world.chat(&chat("kept")).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(661)).await;
    world.faults("alpha", &["status:500"]);
    let old = world.chat(&chat("kept")).await;
    assert_eq!(old.header("wb-cache"), "stale");
    sleep(Duration::from_secs(3)).await;
    let lines = world.log();
    let find = |cache: &str| lines.iter().find(|line| line["cache"] == cache).unwrap_or_else(|| panic!("{lines:?}"));
    let (first, stale, refresh) = (find("miss"), find("stale"), find("revalidate"));
    assert_eq!((lines.len(), &refresh["cause"]), (3, &stale["call.id"]), "{refresh}");
    assert_eq!(stale["call.id"], old.header("x-request-id"));
    assert_ne!(refresh["call.id"], stale["call.id"]);
    assert!(stale["cause"].is_null() && stale["cost"].is_null() && stale["attempts"].is_null(), "{stale}");
    for same in ["caller.id", "tenant.id", "route.id", "operation", "cost", "tokens_in", "tokens_out"] {
        assert_eq!((&refresh[same], refresh[same].is_null()), (&first[same], false), "{same}");
    }
    assert_eq!((&refresh["outcome"], &refresh["status"]), (&json!("ok"), &json!(0)), "nobody was sent anything");
    assert_eq!(refresh["attempts"], json!("alpha/fast:provider_fault,beta/fast:ok"));
    let requests = world.metric("weighbridge_requests_total", &["route=\"kept\""]);
    assert!((requests - 2.0).abs() < f64::EPSILON, "only clients' calls are requests: {requests}");
}

#[tokio::test(start_paused = true)]
async fn the_line_of_one_that_brings_nothing_says_why() {
    let mut world = world("");
    world.chat(&chat("kept")).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(661)).await;
    ["alpha", "beta", "gamma"].iter().for_each(|provider| world.fault(provider, "status:500"));
    assert_eq!(world.chat(&chat("kept")).await.header("wb-cache"), "stale");
    sleep(Duration::from_secs(3)).await;
    let lines = world.log();
    let refresh = lines.iter().find(|line| line["cache"] == "revalidate").unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!((&refresh["outcome"], &refresh["error.code"]), (&json!("upstream_error"), &json!("provider_fault")));
    assert!(refresh["cost"].is_null() && refresh["provider.id"].is_null(), "{refresh}");
}
