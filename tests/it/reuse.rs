//! Earlier decisions given again: to whom, for what, how often, and to whom never. The provider's own count of calls is
//! the witness.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::gateway::build::build;

use crate::harness::*;

const DEADLINE: Duration = Duration::from_millis(800);

/// The usual routes with decisions reused.
fn plan(mode: &str) -> Plan {
    plan_with(mode, "self_audit = 0.01", "")
}

fn plan_with(mode: &str, more: &str, counters: &str) -> Plan {
    let reuse =
        format!("reuse = {{ mode = \"{mode}\", max_amount = \"200.00 CNY\", max_sum = \"400.00 CNY\", {more} }}");
    let routes =
        ROUTES.replace("on_exhausted = \"review\"", &format!("on_exhausted = \"review\"\n{reuse}\n{counters}"));
    Plan { routes, ..Plan::default() }
}

/// A payment of a known payer.
fn from(number: impl std::fmt::Display, amount: &str) -> Value {
    let mut body = payment(&format!("T{number}"), amount);
    body["instrument"] = json!({ "type": "card", "fingerprint": "f1", "bin": "621234", "last4": "1234" });
    body["device"] = json!({ "id": "d1", "ip": "203.0.113.7", "known_since": "2025-06-01T00:00:00Z" });
    body
}

fn source(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["source"].as_str().unwrap().to_owned()
}

fn is(answer: &Answer, action: &str, from: &str) {
    assert_eq!((answer.json()["action"].as_str(), source(answer).as_str()), (Some(action), from), "{}", answer.text());
}

/// Everything but where it came from.
fn decision(answer: &Answer) -> Value {
    let mut decision = answer.json();
    decision["source"].take();
    decision
}

fn refused(world: &World, guard: &str) -> f64 {
    world.metric("weighbridge_reuse_refused_total", &[&format!("guard=\"{guard}\"")])
}

#[tokio::test(start_paused = true)]
async fn a_payment_like_the_last_one_is_answered_without_the_provider_and_says_so() {
    let world = World::with(&plan("first"));
    let live = world.assess(&from(1, "100.00")).await;
    is(&live, "PASS", "live");
    assert_eq!(live.json().get("reuse"), None);
    sleep(Duration::from_secs(60)).await;
    let cached = world.assess(&from(2, "110.00")).await;
    is(&cached, "PASS", "cached");
    assert_eq!((world.scorings(), world.alipay.billed()), (1, 1));
    let (first, second) = (live.json(), cached.json());
    assert_ne!(first["id"], second["id"], "a decision of its own");
    assert_eq!((&second["reuse"]["of"], &second["out_trade_no"]), (&first["id"], &json!("T2")));
    assert!((60_000..61_000).contains(&second["reuse"]["age_ms"].as_u64().unwrap()), "{second}");
    let left = second["reuse"]["expires_in_ms"].as_u64().unwrap();
    assert!((700_000..980_000).contains(&left), "{second}");
    assert_eq!((&second["degraded"], &second["late_verdict_expected"]), (&json!(false), &json!(false)));
    assert_eq!((&second["cost"]["amount"], &second["risk_score"]), (&json!("0.00"), &json!(0.12)));
    assert_eq!(second["provider"]["trace_id"], first["provider"]["trace_id"], "which call it goes back to");
    assert_eq!(second["reasons"][0]["code"], "decision_reused");
    assert_eq!((cached.header("wb-cache"), cached.header("age")), ("hit", "60"));
    assert_eq!((cached.header("wb-attempts"), cached.header("wb-cost")), ("0", ""));
    let hits = world.metric("weighbridge_cache_events_total", &["cache=\"decision\"", "event=\"hit\""]);
    assert_eq!(hits, 1.0);
    assert_eq!(world.metric("weighbridge_decisions_total", &["source=\"cached\""]), 1.0);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_repeated_attempt_gets_the_reused_decision_it_got_and_another_body_is_a_conflict() {
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    let cached = world.assess(&from(2, "100.00")).await;
    is(&cached, "PASS", "cached");
    // It would be refused by now, but it is decided.
    world.shared.decisions.bump("shop-eu", "m1", None);
    for _ in 0..3 {
        let again = world.assess(&from(2, "100.00")).await;
        is(&again, "PASS", "replayed");
        assert_eq!(decision(&again), decision(&cached));
    }
    assert_eq!(world.assess(&from(2, "101.00")).await.status, 409);
    assert_eq!(world.scorings(), 1);
    let first = from(1, "100.00");
    let many = join_all((0..50).map(|_| world.assess(&first))).await;
    assert!(many.iter().all(|answer| source(answer) == "replayed"));
}

#[tokio::test(start_paused = true)]
async fn what_differs_goes_live() {
    let change = |path: [&str; 2], value: Value| (path[0].to_owned(), path[1].to_owned(), value);
    let changes = [
        ("instrument", change(["instrument", "fingerprint"], json!("f2"))),
        ("instrument", change(["instrument", "last4"], json!("9999"))),
        ("instrument", change(["instrument", "fingerprint"], Value::Null)),
        ("device", change(["device", "id"], json!("d2"))),
        ("device", change(["device", "id"], Value::Null)),
        ("new_device", change(["device", "known_since"], Value::Null)),
        ("new_device", change(["device", "known_since"], json!("2126-01-01T00:00:00Z"))),
        ("network", change(["device", "ip"], json!("203.0.114.7"))),
        ("country", change(["user", "country"], json!("TH"))),
        ("country", change(["merchant", "country"], json!("TH"))),
        ("account", change(["user", "email"], json!("new@x.test"))),
        ("currency", change(["currency", ""], json!("USD"))),
        ("amount", change(["total_amount", ""], json!("200.01"))),
        ("growth", change(["total_amount", ""], json!("120.01"))),
        ("features", change(["features", ""], json!(["fx"]))),
    ];
    for (guard, (section, field, value)) in changes {
        let world = World::with(&plan("first"));
        is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
        let mut body = from(2, "100.00");
        if field.is_empty() {
            body[&section] = value
        } else {
            body[&section][&field] = value
        };
        assert_eq!(source(&world.assess(&body).await), "live", "{guard}");
        assert_eq!((world.scorings(), refused(&world, guard)), (2, 1.0), "{guard}: {body}");
    }
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    for (section, id) in [("merchant", "m2"), ("user", "u2")] {
        let mut body = from(id, "100.00");
        body[section]["id"] = json!(id);
        is(&world.assess(&body).await, "PASS", "live");
    }
    let mut neighbour = from(9, "100.00");
    neighbour["device"]["ip"] = json!("203.0.113.99");
    is(&world.assess(&neighbour).await, "PASS", "cached");
}

#[tokio::test(start_paused = true)]
async fn uses_sum_and_age_are_limited_and_a_live_verdict_begins_anew() {
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    for number in 2..=5 {
        is(&world.assess(&from(number, "100.00")).await, "PASS", "cached");
    }
    is(&world.assess(&from(6, "0.01")).await, "PASS", "live");
    assert_eq!(refused(&world, "sum"), 1.0);
    // The large one is still young, so it is the measure.
    for number in 7..=11 {
        is(&world.assess(&from(number, "1.00")).await, "PASS", "cached");
    }
    is(&world.assess(&from(12, "1.00")).await, "PASS", "live");
    assert_eq!((refused(&world, "uses"), world.scorings()), (1.0, 3));
    sleep(Duration::from_secs(1035)).await;
    is(&world.assess(&from(13, "1.00")).await, "PASS", "live");
    assert_eq!(refused(&world, "age"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_review_is_never_reused_and_makes_an_earlier_pass_worthless() {
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    let mut other_card = from(2, "10.13");
    other_card["instrument"]["fingerprint"] = json!("f2");
    is(&world.assess(&other_card).await, "REVIEW", "live");
    is(&world.assess(&from(3, "100.13")).await, "REVIEW", "live");
    is(&world.assess(&from(4, "100.13")).await, "REVIEW", "live");
    is(&world.assess(&from(5, "100.00")).await, "PASS", "live");
    is(&world.assess(&from(6, "100.00")).await, "PASS", "cached");
}

#[tokio::test(start_paused = true)]
async fn a_velocity_counter_over_its_limit_is_asked_before_memory() {
    let counter =
        "[[risk.velocity]]\nname = \"attempts\"\nby = \"device\"\nmeasure = \"count\"\nwindow = \"1m\"\nlimit = 2\n";
    let world = World::with(&plan_with("first", "self_audit = 0.01", counter));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    is(&world.assess(&from(2, "100.00")).await, "PASS", "cached");
    is(&world.assess(&from(3, "100.00")).await, "PASS", "live");
    assert_eq!((world.scorings(), refused(&world, "velocity")), (2, 1.0));
    sleep(Duration::from_secs(62)).await;
    is(&world.assess(&from(4, "100.00")).await, "PASS", "cached");
}

#[tokio::test(start_paused = true)]
async fn a_reload_and_a_bump_make_decisions_worthless() {
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    let other = table(&plan_with("first", "self_audit = 0.011", ""));
    world.live.store(Arc::new(build(other, Some(&world.live.load()), &world.shared)));
    is(&world.assess(&from(2, "100.00")).await, "PASS", "live");
    assert_eq!(refused(&world, "policy"), 1.0);
    world.shared.decisions.bump("shop-eu", "m1", Some("somebody"));
    is(&world.assess(&from(3, "100.00")).await, "PASS", "cached");
    world.shared.decisions.bump("shop-eu", "m1", Some("u1"));
    is(&world.assess(&from(4, "100.00")).await, "PASS", "live");
    world.shared.decisions.bump("shop-eu", "m1", None);
    is(&world.assess(&from(5, "100.00")).await, "PASS", "live");
    assert_eq!((world.scorings(), refused(&world, "epoch")), (4, 2.0));
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_changes_nothing_about_decisions_ends_no_reuse() {
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    let put = |plan: &Plan| {
        let next = build(table(plan), Some(&world.live.load()), &world.shared);
        world.live.store(Arc::new(next));
    };
    let beside = |text: &str| {
        let plan = plan("first");
        Plan { routes: format!("{}\n{text}\n", plan.routes), ..plan }
    };
    put(&beside("# a remark"));
    put(&beside("[model.another]\ncandidates = [\"beta/fast\"]"));
    is(&world.assess(&from(2, "100.00")).await, "PASS", "cached");
    let again = world.assess(&from(3, "100.00")).await;
    is(&again, "PASS", "cached");
    assert_eq!(again.json()["policy"]["version"], world.live.load().table().version().to_string(), "by today's rules");
    assert_eq!((world.scorings(), refused(&world, "policy")), (1, 0.0));
    // Other bands for a while: what was decided before them is not believed again.
    let plan = plan("first");
    let other = plan.routes.replace("review_from = 0.7", "review_from = 0.8");
    assert_ne!(other, plan.routes);
    put(&Plan { routes: other, ..plan });
    is(&world.assess(&from(4, "100.00")).await, "PASS", "live");
    assert_eq!(refused(&world, "policy"), 1.0);
    put(&beside("# a remark"));
    is(&world.assess(&from(5, "100.00")).await, "PASS", "live");
}

#[tokio::test(start_paused = true)]
async fn when_late_asks_the_provider_first_and_answers_from_memory_within_the_deadline() {
    let world = World::with(&plan("when-late"));
    for number in 1..=2 {
        is(&world.assess(&from(number, "100.00")).await, "PASS", "live");
    }
    world.faults("alipay", &["delay:1500ms"]);
    let stood_in = world.assess(&from(3, "100.00")).await;
    is(&stood_in, "PASS", "cached");
    assert!(stood_in.took <= DEADLINE, "{:?}", stood_in.took);
    let said = stood_in.json();
    assert_eq!((&said["degraded"], &said["late_verdict_expected"]), (&json!(true), &json!(true)));
    assert_eq!((stood_in.header("wb-cache"), stood_in.header("wb-attempts")), ("hit", "1"));
    // At once, and when the late verdict is there: one attempt, one decision.
    for _ in 0..2 {
        let again = world.assess(&from(3, "100.00")).await;
        is(&again, "PASS", "replayed");
        assert_eq!(decision(&again), decision(&stood_in));
        sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(world.metric("weighbridge_decisions_total", &["source=\"late\""]), 1.0);
    assert_eq!((world.scorings(), world.alipay.billed()), (3, 3));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_that_is_worse_ends_reuse_but_not_the_decision_that_was_given() {
    let world = World::with(&plan("when-late"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    world.faults("alipay", &["delay:1500ms"]);
    let stood_in = world.assess(&from(2, "100.13")).await;
    is(&stood_in, "PASS", "cached");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.metric("weighbridge_decisions_total", &["source=\"late\"", "action=\"REVIEW\""]), 1.0);
    assert_eq!(decision(&world.assess(&from(2, "100.13")).await), decision(&stood_in));
    world.faults("alipay", &["status:500"]);
    is(&world.assess(&from(3, "100.00")).await, "REVIEW", "fallback");
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_for_one_attempt_of_a_silent_provider_get_one_decision() {
    let world = World::with(&plan("when-late"));
    is(&world.assess(&from(1, "10.00")).await, "PASS", "live");
    world.fault("alipay", "stall");
    let (body, world) = (from(2, "10.00"), &world);
    let answers = join_all((0..40).map(|number| {
        let body = body.clone();
        async move {
            sleep(Duration::from_millis(number * 17)).await;
            world.assess(&body).await
        }
    }))
    .await;
    for answer in &answers {
        assert_eq!(answer.json()["id"], answers[0].json()["id"]);
        assert_eq!(answer.json()["action"], "PASS");
        assert!(answer.took <= DEADLINE);
    }
    assert_eq!(world.scorings(), 2);
    sleep(Duration::from_secs(5)).await;
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_away_is_stood_in_for_at_once_and_one_that_cannot_be_trusted_never() {
    for (fault, action, from_whom) in [
        ("status:500", "PASS", "cached"),
        ("refuse", "PASS", "cached"),
        ("reset", "PASS", "cached"),
        ("bad-signature", "REVIEW", "fallback"),
        ("unsigned", "REVIEW", "fallback"),
        ("garbage", "REVIEW", "fallback"),
        ("status:400", "REVIEW", "fallback"),
    ] {
        let world = World::with(&plan("when-late"));
        is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
        world.fault("alipay", fault);
        let answer = world.assess(&from(2, "100.00")).await;
        assert_eq!(answer.json()["action"], action, "{fault}: {}", answer.text());
        assert_eq!(source(&answer), from_whom, "{fault}");
        assert_eq!(
            (&answer.json()["degraded"], &answer.json()["late_verdict_expected"]),
            (&json!(true), &json!(false))
        );
        let mut other_device = from(3, "100.00");
        other_device["device"]["id"] = json!("d2");
        assert_eq!(source(&world.assess(&other_device).await), "fallback", "{fault}: the guards hold here as well");
    }
}

#[tokio::test(start_paused = true)]
async fn what_stood_in_stays_the_decision_when_the_provider_is_back() {
    let world = World::with(&plan("first"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    let mut unlike = from(2, "100.00");
    unlike["instrument"]["fingerprint"] = json!("f2");
    world.faults("alipay", &["status:500"]);
    is(&world.assess(&unlike).await, "REVIEW", "fallback");
    // A fallback is no decision: the provider is asked again.
    is(&world.assess(&unlike).await, "PASS", "live");
    let world = World::with(&plan("when-late"));
    is(&world.assess(&from(1, "100.00")).await, "PASS", "live");
    world.faults("alipay", &["status:500"]);
    let stood_in = world.assess(&from(2, "100.13")).await;
    is(&stood_in, "PASS", "cached");
    assert_eq!(decision(&world.assess(&from(2, "100.13")).await), decision(&stood_in));
    assert_eq!(world.scorings(), 2);
}

#[tokio::test(start_paused = true)]
async fn audited_calls_go_live_and_a_merchant_that_disagrees_is_switched_off() {
    let world = World::with(&plan_with("first", "self_audit = 1.0", ""));
    for number in 1..=4 {
        is(&world.assess(&from(number, "100.00")).await, "PASS", "live");
    }
    assert_eq!(world.scorings(), 4, "all of them are audited");
    let compared = |how: &str| world.metric("weighbridge_reuse_compared_total", &[&format!("result=\"{how}\"")]);
    assert_eq!((compared("agreed"), compared("disagreed")), (3.0, 0.0));
    is(&world.assess(&from(5, "100.13")).await, "REVIEW", "live");
    is(&world.assess(&from(6, "100.00")).await, "PASS", "live");
    assert_eq!(world.metric("weighbridge_reuse_merchants_off", &[]), 0.0, "one is no evidence");
    is(&world.assess(&from(7, "100.91")).await, "REJECT", "live");
    assert_eq!((compared("disagreed"), world.metric("weighbridge_reuse_merchants_off", &[])), (2.0, 1.0));
    is(&world.assess(&from(8, "100.00")).await, "PASS", "live");
    world.faults("alipay", &["status:500"]);
    is(&world.assess(&from(9, "100.00")).await, "REVIEW", "fallback");
    assert_eq!(refused(&world, "disagreement"), 2.0);
}

#[tokio::test(start_paused = true)]
async fn off_and_not_configured_never_reuse_anything() {
    for plan in [plan("off"), Plan::default()] {
        let world = World::with(&plan);
        for number in 1..=3 {
            is(&world.assess(&from(number, "100.00")).await, "PASS", "live");
        }
        world.faults("alipay", &["status:500"]);
        is(&world.assess(&from(4, "100.00")).await, "REVIEW", "fallback");
        let events = world.metric("weighbridge_cache_events_total", &["cache=\"decision\""]);
        assert_eq!((world.scorings(), events), (4, 0.0));
    }
}
