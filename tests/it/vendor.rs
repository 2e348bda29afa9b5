//! The vendor's side: whose word is believed, with which key, and what becomes of everything else.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;
use weighbridge::domain::clock;
use weighbridge::domain::secret::Secret;
use weighbridge::sandbox::alipay::Refusal;
use weighbridge::sandbox::fault::Forgery;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

fn is(answer: &Answer, action: &str, source: &str, code: &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let decision = answer.json();
    let reason = decision["reasons"][0]["code"].as_str().unwrap_or_default();
    assert_eq!((decision["action"].as_str(), decision["source"].as_str()), (Some(action), Some(source)), "{decision}");
    assert_eq!(reason, code, "{decision}");
}

/// The usual routes, small amounts passing when no verdict can be had.
fn lenient() -> Plan {
    Plan::replacing("on_exhausted = \"review\"", "on_exhausted = { accept_up_to = \"50.00 CNY\" }")
}

#[tokio::test(start_paused = true)]
async fn c7_a_door_that_a_forged_answer_closed_lets_no_payment_pass() {
    let world = World::with(&lenient());
    world.faults("alipay", &["bad-signature"]);
    is(&world.assess(&payment("T0", "1.00")).await, "REVIEW", "fallback", "response_not_authentic");
    assert_eq!(world.breaker("alipay"), State::Open);
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback", "response_not_authentic");
    assert_eq!(world.scorings(), 1, "nobody asked a second time");

    // A probe that finds nobody opens it again, and that changes nothing about why it was opened.
    sleep(Duration::from_secs(13)).await;
    world.faults("alipay", &["refuse", "refuse", "refuse"]);
    let _ = world.assess(&payment("T2", "1.00")).await;
    is(&world.assess(&payment("T3", "1.00")).await, "REVIEW", "fallback", "response_not_authentic");

    // Its first authentic answer makes it an ordinary provider again.
    sleep(Duration::from_secs(100)).await;
    world.faults("alipay", &[]);
    is(&world.assess(&payment("T4", "1.00")).await, "PASS", "live", "provider");
    world.fault("alipay", "refuse");
    for number in 0..6 {
        let _ = world.assess(&payment(&format!("U{number}"), "1.00")).await;
    }
    is(&world.assess(&payment("V", "1.00")).await, "PASS", "fallback", "provider_unavailable");
    world.assert_idle();
}

/// How many attempts at Alipay failed for this reason.
fn failed(world: &World, reason: &str) -> f64 {
    world.metric("weighbridge_upstream_attempts_total", &["provider=\"alipay\"", &format!("reason=\"{reason}\"")])
}

fn is_count(value: f64, expected: u32) {
    assert!((value - f64::from(expected)).abs() < f64::EPSILON, "{value} is not {expected}");
}

#[tokio::test(start_paused = true)]
async fn c7_every_way_of_forging_an_answer_is_one_review_and_an_open_breaker() {
    let forged = Forgery::WORDS.map(|(word, _)| format!("forged:{word}"));
    for fault in ["unsigned", "bad-signature"].into_iter().chain(forged.iter().map(String::as_str)) {
        let world = World::with(&lenient());
        world.faults("alipay", &[fault]);
        let answer = world.assess(&payment("T1", "1.00")).await;
        is(&answer, "REVIEW", "fallback", "response_not_authentic");
        assert_eq!(answer.json()["risk_score"], json!(null), "{fault}: nothing of what it said is used");
        assert_eq!((world.scorings(), world.breaker("alipay")), (1, State::Open), "{fault}: asked once");
        is_count(failed(&world, "bad_signature"), 1);
        is_count(world.metric("weighbridge_odd_answers_total", &[]), 0);
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn c7_a_token_that_is_not_authentic_is_not_used() {
    for fault in ["bad-signature", "forged:other-request"] {
        let world = World::with(&lenient());
        world.faults("alipay.token", &[fault]);
        is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback", "response_not_authentic");
        assert_eq!((world.scorings(), world.breaker("alipay")), (0, State::Open), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn c7_what_outlasts_a_call_is_believed_only_if_it_is_signed() {
    let world = World::new();
    world.faults("alipay", &["status:402"]);
    let _ = world.assess(&payment("T1", "1.00")).await;
    assert_eq!(world.breaker("alipay"), State::Open, "a signed 402 closes the door for minutes");

    let world = World::new();
    world.net.always("alipay", says(http_reply("402 Payment Required", "", "{}")));
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback", "provider_unavailable");
    assert_eq!(world.breaker("alipay"), State::Closed, "anybody can say that");

    let world = World::with(&lenient());
    let forged = format!("di-response-signature: v=1,kid=k1,ts={},sig={}=\r\n", clock::unix_ms(), "A".repeat(43));
    world.net.always("alipay", says(http_reply("503 Service Unavailable", &forged, "{}")));
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback", "response_not_authentic");
}

#[tokio::test(start_paused = true)]
async fn c10_what_nobody_agreed_on_is_a_review_and_is_counted() {
    let cases = [
        (r#"{"risk_score":0.05,"recommendation":"APPROVE"}"#, "unknown_recommendation"),
        (r#"{"risk_score":0.05,"recommendation":"PASS "}"#, "unknown_recommendation"),
        (r#"{"risk_score":0.05,"recommendation":"accept"}"#, "unknown_recommendation"),
        (r#"{"risk_score":0.05,"recommendation":["PASS"]}"#, "unknown_recommendation"),
        (r#"{"risk_score":1.0000001,"recommendation":"PASS"}"#, "invalid_score"),
        (r#"{"risk_score":-0.1,"recommendation":"PASS"}"#, "invalid_score"),
        (r#"{"risk_score":"0.05","recommendation":"PASS"}"#, "invalid_score"),
        (r#"{"risk_score":1e999,"recommendation":"PASS"}"#, "invalid_score"),
        (r#"{"risk_score":NaN,"recommendation":"PASS"}"#, "not_understood"),
    ];
    for (body, reason) in cases {
        let world = World::with(&lenient());
        world.faults("alipay", &[&format!("status:200;body={body}")]);
        let answer = world.assess(&payment("T1", "1.00")).await;
        assert_eq!(answer.json()["action"], "REVIEW", "{body}: {}", answer.text());
        let told = if reason == "invalid_score" { "no_score" } else { reason };
        let told = if reason == "not_understood" { "no_verdict" } else { told };
        assert_eq!(answer.json()["reasons"][0]["code"], told, "{body}");
        is_count(world.metric("weighbridge_odd_answers_total", &[&format!("reason=\"{reason}\"")]), 1);
        is_count(world.metric("weighbridge_odd_answers_total", &[]), 1);
    }
}

const K1: &str = r#"{ id = "k1", secret_env = "ALIPAY_KEY", secret_encoding = "hex", state = "STATE" }"#;
const K2: &str = r#"{ id = "k2", secret_env = "ALIPAY_NEXT_KEY", secret_encoding = "hex", state = "STATE" }"#;

fn keys(keys: &[(&str, &str)]) -> Plan {
    let keys: Vec<_> = keys.iter().map(|(key, state)| key.replace("STATE", state)).collect();
    Plan { alipay_auth: format!("{{ kind = \"di-hmac\", keys = [{}] }}", keys.join(", ")), ..lenient() }
}

fn alipay_key(id: &str) -> (String, Secret) {
    let byte = if id == "k1" { 0x4f } else { 0x5e };
    (id.to_owned(), Secret::new(vec![byte; 32]))
}

#[tokio::test(start_paused = true)]
async fn c11_an_answer_may_be_signed_with_any_key_in_use_and_with_no_pending_or_unknown_one() {
    let table = [
        ("k1", keys(&[(K1, "active"), (K2, "active")]), true),
        ("k2", keys(&[(K1, "active"), (K2, "active")]), true),
        ("k2", keys(&[(K1, "active"), (K2, "verify-only")]), true),
        ("k2", keys(&[(K2, "pending"), (K1, "active")]), false),
        ("k2", keys(&[(K1, "active")]), false),
    ];
    for (signs, plan, believed) in table {
        let world = World::with(&plan);
        world.alipay.sign_with(Some(alipay_key(signs)));
        let answer = world.assess(&payment("T1", "1.00")).await;
        if believed {
            is(&answer, "PASS", "live", "provider");
        } else {
            is(&answer, "REVIEW", "fallback", "response_not_authentic");
        }
        assert!(world.alipay.seen().iter().all(|seen| seen.key_id == "k1"), "the first active one signs");
    }
}

#[tokio::test(start_paused = true)]
async fn c11_keys_are_rotated_under_load_and_no_payment_notices() {
    let world = World::with(&keys(&[(K1, "active")]));
    world.fault("alipay", "delay:20ms");
    world.alipay.set_keys(vec![alipay_key("k1"), alipay_key("k2")]);
    let steps = [
        keys(&[(K1, "active"), (K2, "pending")]),
        keys(&[(K2, "active"), (K1, "active")]),
        keys(&[(K2, "active"), (K1, "verify-only")]),
        keys(&[(K2, "active")]),
    ];
    let rotation = async {
        for step in &steps {
            sleep(Duration::from_millis(100)).await;
            world.reload(step);
        }
    };
    let load = |number: u64| {
        let world = &world;
        async move {
            sleep(Duration::from_millis(number * 5)).await;
            world.assess(&payment(&format!("T{number}"), "1.00")).await
        }
    };
    let ((), answers) = tokio::join!(rotation, join_all((0..120).map(load)));
    for answer in &answers {
        is(answer, "PASS", "live", "provider");
    }
    let seen: Vec<_> = world.alipay.seen();
    assert!(seen.iter().all(|seen| seen.refusal.is_none()), "{seen:?}");
    let scored: Vec<&str> =
        seen.iter().filter(|seen| seen.path.ends_with("gateway.do")).map(|seen| seen.key_id.as_str()).collect();
    let turn = scored.iter().position(|key| *key == "k2").unwrap();
    assert!((30..60).contains(&turn) && scored[turn..].iter().all(|key| *key == "k2"), "{scored:?}");
    assert_eq!((scored.len(), world.alipay.tokens_issued()), (120, 2), "each key fetched one token");

    // The provider forgets the old key, and goes on knowing the new one.
    world.alipay.set_keys(vec![alipay_key("k2")]);
    is(&world.assess(&payment("U", "1.00")).await, "PASS", "live", "provider");
    assert_eq!(world.alipay.tokens_issued(), 2);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c11_a_token_outlives_a_reload_that_leaves_the_signing_key_alone() {
    let world = World::new();
    let mut number = 0;
    let mut pay = async || {
        number += 1;
        is(&world.assess(&payment(&format!("T{number}"), "1.00")).await, "PASS", "live", "provider");
        world.alipay.tokens_issued()
    };
    assert_eq!(pay().await, 1);
    world.reload(&keys(&[(K2, "pending"), (K1, "active")]));
    assert_eq!(pay().await, 1);
    world.reload(&keys(&[(K1, "active"), (K2, "verify-only")]));
    assert_eq!(pay().await, 1);
    world.reload(&keys(&[(K2, "active"), (K1, "active")]));
    assert_eq!(pay().await, 2);
}

#[tokio::test(start_paused = true)]
async fn c4_every_attempt_has_a_nonce_and_a_time_of_its_own_also_those_that_repeat_another() {
    let world = World::with(&lenient());
    world.faults("alipay", &["status:401;body={\"error\":\"invalid_token\"}", "refuse"]);
    for number in 0..20 {
        let _ = world.assess(&payment(&format!("T{number}"), "1.00")).await;
        world.alipay.revoke_tokens();
    }
    let seen = world.alipay.seen();
    let nonces: BTreeSet<&str> = seen.iter().map(|seen| seen.nonce.as_str()).collect();
    assert!(seen.len() > 50, "{}", seen.len());
    assert_eq!(nonces.len(), seen.len());
    assert!(nonces.iter().all(|nonce| nonce.len() == 22));
    assert_eq!(world.alipay.refused(Refusal::Replay), 0);
}

#[tokio::test(start_paused = true)]
async fn c4_a_token_request_that_is_sent_again_is_signed_again() {
    let world = World::new();
    is(&world.assess(&payment("T1", "1.00")).await, "PASS", "live", "provider");
    world.alipay.revoke_tokens();
    // The kept connection dies under the request, after the provider has seen it.
    world.faults("alipay.token", &["refuse"]);
    is(&world.assess(&payment("T2", "1.00")).await, "PASS", "live", "provider");
    assert_eq!((world.alipay.tokens_issued(), world.alipay.refused(Refusal::Replay)), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn c3_the_skew_is_known_from_authentic_answers_and_from_no_others() {
    let world = World::new();
    let skew = || world.live.load().providers()["alipay"].skew.measured();
    world.faults("alipay.token", &["bad-signature"]);
    let _ = world.assess(&payment("T0", "1.00")).await;
    assert_eq!(skew(), None);

    let world = World::new();
    let skew = || world.live.load().providers()["alipay"].skew.measured().unwrap().skew_ms;
    let shown = || world.metric("weighbridge_provider_clock_skew_seconds", &["provider=\"alipay\""]);
    let _ = world.assess(&payment("T1", "1.00")).await;
    assert!(skew().abs() < 2_000, "{}", skew());
    // Authentic and too old: it is not used, and it says why.
    world.faults("alipay", &["forged:old-time"]);
    is(&world.assess(&payment("T2", "1.00")).await, "REVIEW", "fallback", "response_not_authentic");
    assert!((skew() + 301_000).abs() < 2_000, "{}", skew());
    assert!((shown() + 301.0).abs() < 2.0, "{}", shown());
    world.reload(&Plan::default());
    assert!((skew() + 301_000).abs() < 2_000, "it outlives a reload");
}

/// Alipay takes so many at a time.
fn with_places(count: u32) -> Plan {
    let usual = Plan::default();
    Plan { alipay_auth: format!("{}\nlimits = {{ in_flight = {count} }}", usual.alipay_auth), ..usual }
}

#[tokio::test(start_paused = true)]
async fn row_35_a_payment_that_nobody_else_can_judge_waits_out_a_burst_at_a_full_provider() {
    let world = World::with(&with_places(2));
    world.fault("alipay", "delay:100ms");
    let orders = ["T0", "T1", "T2", "T3", "T4"].map(|order| payment(order, "1.00"));
    let one = async |(number, order): (usize, &_)| {
        sleep(Duration::from_millis(number as u64)).await;
        world.assess(order).await
    };
    let answers = join_all(orders.iter().enumerate().map(one)).await;
    for (answer, rounds) in answers.iter().zip([1, 1, 2, 2]) {
        is(answer, "PASS", "live", "provider");
        assert_eq!((answer.took.as_millis() + 10) / 100, rounds, "in the order they came");
    }
    // As many wait as there are places; who comes after that is told what it would be told later.
    is(&answers[4], "REVIEW", "fallback", "provider_unavailable");
    assert!(answers[4].took < Duration::from_millis(20), "{:?}", answers[4].took);
    assert_eq!(world.scorings(), 4);
    is_count(failed(&world, "full"), 1);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn row_35_nobody_waits_at_a_full_provider_for_longer_than_a_quarter_of_the_deadline() {
    let world = World::with(&with_places(1));
    world.fault("alipay", "delay:300ms");
    let (first, second) = (payment("T0", "1.00"), payment("T1", "1.00"));
    let (first, second) = tokio::join!(world.assess(&first), async {
        sleep(Duration::from_millis(1)).await;
        world.assess(&second).await
    });
    is(&first, "PASS", "live", "provider");
    is(&second, "REVIEW", "fallback", "provider_unavailable");
    assert_eq!(second.took.as_millis(), 200);
    assert_eq!(world.scorings(), 1);
    world.assert_idle();
}
