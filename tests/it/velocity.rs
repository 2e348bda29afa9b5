//! Counters over payment attempts, through the whole product: who is stopped, who is not, and what a reload keeps.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::gateway::build::build;

use crate::harness::*;

const CARDS: &str = r#"
[[risk.velocity]]
name = "cards_per_device"
by = "device"
measure = "distinct"
of = "instrument"
window = "1h"
limit = 3
over = "REVIEW"
"#;

/// The usual routes with these counters.
fn plan(counters: &str) -> Plan {
    Plan { routes: format!("{ROUTES}{counters}"), ..Plan::default() }
}

/// A payment from this device with this card.
fn from(number: usize, device: &str, card: &str) -> Value {
    let mut body = payment(&format!("T{number}"), "1.00");
    body["device"] = json!({ "id": device, "ip": "203.0.113.7" });
    body["instrument"] = json!({ "type": "card", "fingerprint": card, "bin": "621234" });
    body
}

fn action(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["action"].as_str().unwrap().to_owned()
}

fn codes(answer: &Answer) -> Vec<String> {
    let reasons = answer.json()["reasons"].as_array().unwrap().clone();
    reasons.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_fourth_card_on_one_device_is_a_review_though_the_provider_says_pass() {
    let world = World::with(&plan(CARDS));
    for number in 1..=3 {
        let answer = world.assess(&from(number, "d1", &format!("c{number}"))).await;
        assert_eq!((action(&answer), codes(&answer)), ("PASS".into(), vec!["provider".to_owned()]));
    }
    let fourth = world.assess(&from(4, "d1", "c4")).await;
    assert_eq!(
        (action(&fourth), codes(&fourth)),
        ("REVIEW".into(), vec!["provider".to_owned(), "velocity.cards_per_device".to_owned()])
    );
    assert_eq!((fourth.json()["source"].clone(), fourth.json()["risk_score"].clone()), (json!("live"), json!(0.12)));
    assert_eq!(fourth.json()["reasons"][1]["text"], "counted 4 within 1h, the limit is 3");
    assert_eq!(action(&world.assess(&from(5, "d2", "c4")).await), "PASS", "another device");
    let counted = |event: &str| world.metric("weighbridge_velocity_events_total", &[&format!("event=\"{event}\"")]);
    assert_eq!((counted("counted"), counted("over"), counted("unknown")), (5.0, 1.0, 0.0));
    assert_eq!(world.metric("weighbridge_decisions_total", &["action=\"REVIEW\"", "source=\"live\""]), 1.0);
    // An hour and a slot later it is another day.
    sleep(Duration::from_secs(3661)).await;
    assert_eq!(action(&world.assess(&from(6, "d1", "c5")).await), "PASS");
}

#[tokio::test(start_paused = true)]
async fn the_same_attempt_asked_a_hundred_times_counts_once() {
    let counter = "[[risk.velocity]]\nname = \"attempts\"\nby = \"user\"\nmeasure = \"count\"\nwindow = \"1m\"\nlimit = 2\nover = \"REJECT\"\n";
    let world = World::with(&plan(counter));
    let first = from(1, "d", "c");
    for answer in join_all((0..100).map(|_| world.assess(&first))).await {
        assert_eq!(action(&answer), "PASS");
    }
    assert_eq!(action(&world.assess(&from(2, "d", "c")).await), "PASS");
    assert_eq!(action(&world.assess(&from(3, "d", "c")).await), "REJECT");
    // What was decided stays decided, and is not judged by what came after it.
    for _ in 0..3 {
        assert_eq!(action(&world.assess(&first).await), "PASS");
        assert_eq!(action(&world.assess(&from(3, "d", "c")).await), "REJECT");
    }
    assert_eq!(world.scorings(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_is_raised_too_and_a_retry_after_it_counts_no_more() {
    let counter = "[[risk.velocity]]\nname = \"spent\"\nby = \"user\"\nmeasure = \"sum\"\ncurrency = \"CNY\"\nwindow = \"1d\"\nlimit = 250\nover = \"REJECT\"\n";
    let mut plan = plan(counter);
    plan.routes = plan.routes.replace("on_exhausted = \"review\"", "on_exhausted = { accept_up_to = \"50.00 CNY\" }");
    let world = World::with(&plan);
    world.fault("alipay", "status:500");
    for _ in 0..2 {
        for number in 1..=2 {
            let answer = world.assess(&from(number, "d", "c")).await;
            assert_eq!((action(&answer), codes(&answer)), ("PASS".into(), vec!["provider_unavailable".to_owned()]));
        }
    }
    let third = world.assess(&from(3, "d", "c")).await;
    assert_eq!(action(&third), "REJECT");
    assert_eq!(codes(&third), ["provider_unavailable", "velocity.spent"]);
    let mut dollars = from(4, "d", "c");
    dollars["currency"] = json!("USD");
    dollars["user"] = json!({ "id": "u2" });
    assert_eq!(codes(&world.assess(&dollars).await), ["provider_unavailable"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_is_raised_as_it_would_have_been_in_time() {
    let world = World::with(&plan(&CARDS.replace("limit = 3", "limit = 1").replace("REVIEW", "REJECT")));
    assert_eq!(action(&world.assess(&from(1, "d", "c1")).await), "PASS");
    world.faults("alipay", &["delay:1200ms"]);
    assert_eq!(action(&world.assess(&from(2, "d", "c2")).await), "REJECT");
    sleep(Duration::from_secs(1)).await;
    let late = world.assess(&from(2, "d", "c2")).await;
    assert_eq!((late.json()["source"].clone(), action(&late)), (json!("late"), "REJECT".into()));
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_was_counted_and_another_limit_holds_at_once() {
    let world = World::with(&plan(CARDS));
    for number in 1..=2 {
        assert_eq!(action(&world.assess(&from(number, "d", &format!("c{number}"))).await), "PASS");
    }
    let stricter = table(&plan(&CARDS.replace("limit = 3", "limit = 2")));
    world.live.store(Arc::new(build(stricter, Some(&world.live.load()), &world.shared)));
    assert_eq!(action(&world.assess(&from(3, "d", "c2")).await), "PASS");
    assert_eq!(action(&world.assess(&from(4, "d", "c3")).await), "REVIEW");
}

#[tokio::test(start_paused = true)]
async fn when_there_is_no_room_a_new_device_is_looked_at_by_a_person_and_a_known_one_is_not() {
    let narrow = CARDS.replace("over = \"REVIEW\"", "over = \"REJECT\"\nmost = 100");
    let world = World::with(&plan(&narrow));
    for number in 0..100 {
        assert_eq!(action(&world.assess(&from(number, &format!("d{number}"), "c")).await), "PASS");
    }
    let stranger = world.assess(&from(100, "stranger", "c")).await;
    assert_eq!(
        (action(&stranger), codes(&stranger)),
        ("REVIEW".into(), vec!["provider".to_owned(), "velocity.cards_per_device".to_owned()])
    );
    assert_eq!(action(&world.assess(&from(101, "d7", "c")).await), "PASS");
    assert_eq!(world.metric("weighbridge_velocity_events_total", &["event=\"unknown\""]), 1.0);
    assert_eq!(world.metric("weighbridge_velocity_keys", &[]), 100.0);
}

#[tokio::test(start_paused = true)]
async fn what_the_request_does_not_say_is_not_counted() {
    let world = World::with(&plan(&CARDS.replace("limit = 3", "limit = 1")));
    for number in 0..5 {
        assert_eq!(action(&world.assess(&payment(&format!("T{number}"), "1.00")).await), "PASS");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_reads_a_counter_and_one_that_nobody_knows_is_for_a_person() {
    let rules = r#"
[[risk.velocity]]
name = "spent"
by = "device"
measure = "sum"
currency = "CNY"
window = "1d"
most = 100

[[risk.policy]]
name = "big spenders"
when = 'velocity.spent > 250'
action = "REVIEW"
"#;
    let world = World::with(&plan(rules));
    let rule = |answer: &Answer| answer.json()["policy"]["rule"].as_str().unwrap().to_owned();
    for (number, expected) in [(1, ("PASS", "default")), (2, ("PASS", "default")), (3, ("REVIEW", "big spenders"))] {
        let answer = world.assess(&from(number, "d0", "c")).await;
        assert_eq!((action(&answer).as_str(), rule(&answer).as_str()), expected, "{number}");
    }
    // Who does not say a device has spent nothing with it.
    assert_eq!(action(&world.assess(&payment("T4", "100.00")).await), "PASS");
    for number in 5..104 {
        assert_eq!(action(&world.assess(&from(number, &format!("d{number}"), "c")).await), "PASS");
    }
    let stranger = world.assess(&from(104, "stranger", "c")).await;
    assert_eq!((action(&stranger).as_str(), rule(&stranger).as_str()), ("REVIEW", "default"), "{}", stranger.text());
    assert_eq!(world.metric("weighbridge_policy_unclear_total", &[]), 1.0);
}
