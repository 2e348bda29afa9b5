//! A payment attempt gets one decision, on time, and "not evaluated" never reads as a pass.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;
use weighbridge::sandbox::alipay::Refusal;
use weighbridge::upstream::breaker::State;

use crate::harness::*;

/// Makes something go wrong.
type Prepare = Box<dyn Fn(&World)>;

/// The promise of the route.
const DEADLINE: Duration = Duration::from_millis(800);

fn decided(answer: &Answer) -> (String, String) {
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
    let decision = answer.json();
    (decision["action"].as_str().unwrap().to_owned(), decision["source"].as_str().unwrap().to_owned())
}

fn is(answer: &Answer, action: &str, source: &str) {
    assert_eq!(decided(answer), (action.to_owned(), source.to_owned()), "{}", answer.text());
}

/// A problem document of this status; returns it.
fn problem(answer: &Answer, status: u16) -> Value {
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (status, "application/problem+json"),
        "{}",
        answer.text()
    );
    let problem = answer.json();
    assert_eq!((&problem["status"], &problem["instance"]), (&json!(status), &json!(answer.header("x-request-id"))));
    for field in ["type", "title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
    }
    problem
}

/// No request was refused by the provider's own checks: every signature, nonce and token was right.
fn assert_nothing_refused(world: &World) {
    assert!(world.alipay.seen().iter().all(|seen| seen.refusal.is_none()), "{:?}", world.alipay.seen());
}

#[tokio::test(start_paused = true)]
async fn a_live_decision_says_everything_the_contract_promises() {
    let world = World::new();
    let mut body = payment("T0001", "88.13");
    body["features"] = json!(["fx"]);
    let answer = world.assess(&body).await;
    is(&answer, "REVIEW", "live");
    let decision = answer.json();
    assert!(decision["id"].as_str().unwrap().starts_with("ra_"));
    assert_eq!(decision["out_trade_no"], "T0001");
    assert_eq!((&decision["recommendation"], &decision["risk_score"]), (&json!("REVIEW"), &json!(0.42)));
    assert_eq!((&decision["degraded"], &decision["late_verdict_expected"]), (&json!(false), &json!(false)));
    assert_eq!(decision["explanation"]["staff"], "suspicious device fingerprint mismatch");
    assert_eq!(decision["policy"]["version"], answer.header("wb-config"));
    assert_eq!(decision["policy"]["bands"], json!({ "pass_below": 0.3, "review_from": 0.7, "reject_from": null }));
    assert_eq!(
        (&decision["provider"]["id"], &decision["provider"]["model_version"]),
        (&json!("alipay"), &json!("di-2026.01.0"))
    );
    assert!(decision["provider"]["trace_id"].as_str().unwrap().starts_with("tr-"));
    assert_eq!(decision["cost"], json!({ "amount": "0.05", "currency": "CNY" }));
    assert_eq!(
        (answer.header("wb-route"), answer.header("wb-provider"), answer.header("wb-attempts")),
        ("risk", "alipay", "1")
    );
    assert_eq!(answer.header("wb-cost"), "0.05 CNY");
    assert_nothing_refused(&world);
    let counted = world.metric("weighbridge_decisions_total", &["action=\"REVIEW\"", "source=\"live\""]);
    assert!((counted - 1.0).abs() < f64::EPSILON);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn the_bands_and_the_providers_word_make_the_action() {
    let world = World::new();
    let table = [
        ("88.88", "PASS"),
        ("1.30", "CHALLENGE"),
        ("1.49", "CHALLENGE"),
        ("1.70", "REVIEW"),
        ("1.79", "REVIEW"),
        ("1.13", "REVIEW"),
        ("1.91", "REJECT"),
    ];
    for (amount, action) in table {
        is(&world.assess(&payment(&amount.replace('.', "_"), amount)).await, action, "live");
    }
    assert_eq!((world.alipay.billed(), world.alipay.tokens_issued()), (7, 1));
    assert_nothing_refused(&world);
}

#[tokio::test(start_paused = true)]
async fn c7_c8_c10_no_odd_answer_of_a_provider_is_ever_a_pass() {
    for cents in 51..=60 {
        let world = World::new();
        let answer = world.assess(&payment("T1", &format!("88.{cents}"))).await;
        let (action, source) = decided(&answer);
        assert_eq!(action, "REVIEW", ".{cents}");
        let odd_but_authentic = [53, 57, 58].contains(&cents);
        assert_eq!(source, if odd_but_authentic { "live" } else { "fallback" }, ".{cents}");
        assert_eq!(answer.json()["degraded"], json!(!odd_but_authentic));
        assert!(answer.took <= DEADLINE, ".{cents}: {:?}", answer.took);
        assert_eq!((world.scorings(), world.alipay.billed()), (1, 1), ".{cents} was asked once");
    }
}

#[tokio::test(start_paused = true)]
async fn c7_faults_of_the_transport_never_become_a_pass_either() {
    let faults = [
        "status:500",
        "status:503",
        "status:429;retry-after=1",
        "status:401",
        "status:403",
        "status:402",
        "status:400",
        "status:302;location=http://evil.test/",
        "empty",
        "garbage",
        "refuse",
        "reset",
        "cut:10",
        "stall:10",
        "stall",
        "error-in-200:500",
        "unsigned",
        "bad-signature",
        "status:200;body={\"risk_score\":0.01,\"recommendation\":\"PASS\",\"recommendation\":\"REJECT\"}",
        "status:200;body=[]",
        "status:200;body={}",
        "status:201;body={\"risk_score\":0.01,\"recommendation\":\"PASS\"}",
    ];
    for fault in faults {
        let world = World::new();
        world.fault("alipay", fault);
        let answer = world.assess(&payment("T1", "1.00")).await;
        assert_ne!(decided(&answer).0, "PASS", "{fault}: {}", answer.text());
        assert!(answer.took <= DEADLINE, "{fault}: {:?}", answer.took);
        assert_eq!(world.scorings(), 1, "{fault}");
        assert_eq!(world.net.hosts(), ["alipay.test"]);
        sleep(Duration::from_secs(5)).await;
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_leaves_within_its_deadline_whatever_the_provider_does() {
    let slow = |name: &'static str, fault: &'static str| move |world: &World| world.fault(name, fault);
    let cases: [(&str, Prepare); 7] = [
        ("a slow answer", Box::new(slow("alipay", "delay:2s"))),
        ("no answer", Box::new(slow("alipay", "stall"))),
        ("half an answer", Box::new(slow("alipay", "stall:3"))),
        ("a slow token", Box::new(slow("alipay.token", "delay:2s"))),
        ("no token", Box::new(slow("alipay.token", "stall"))),
        ("a black hole", Box::new(|world| world.net.always("alipay", Link::BlackHole))),
        ("nobody there", Box::new(|world| world.net.always("alipay", Link::Refused))),
    ];
    for (what, prepare) in cases {
        let world = World::new();
        prepare(&world);
        for number in 0..8 {
            let answer = world.assess(&payment(&format!("T{number}"), "1.00")).await;
            // A token that came late is good for those who ask after it.
            if decided(&answer).1 != "live" {
                is(&answer, "REVIEW", "fallback");
            }
            assert!(answer.took <= DEADLINE, "{what}: {:?}", answer.took);
        }
        sleep(Duration::from_secs(10)).await;
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_stays_away_is_asked_five_times_and_then_left_alone() {
    let world = World::new();
    world.fault("alipay", "status:500");
    for number in 0..10 {
        is(&world.assess(&payment(&format!("T{number}"), "1.00")).await, "REVIEW", "fallback");
    }
    assert_eq!((world.scorings(), world.breaker("alipay")), (5, State::Open));
    let refused = world.assess(&payment("T10", "1.00")).await;
    assert!(refused.took <= Duration::from_millis(20), "{:?}", refused.took);
    world.faults.clear("alipay");
    sleep(Duration::from_secs(2)).await;
    is(&world.assess(&payment("T11", "1.00")).await, "PASS", "live");
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_is_counted_and_told_to_whoever_asks_again() {
    let world = World::new();
    let first = world.assess(&payment("T1", "88.50")).await;
    is(&first, "REVIEW", "fallback");
    assert_eq!(first.json()["late_verdict_expected"], true);
    assert_eq!(first.header("wb-attempts"), "1", "the provider was asked, though it has not answered");
    sleep(Duration::from_secs(2)).await;
    let late = world.metric("weighbridge_decisions_total", &["action=\"PASS\"", "source=\"late\""]);
    assert!((late - 1.0).abs() < f64::EPSILON, "{late}");
    let again = world.assess(&payment("T1", "88.50")).await;
    is(&again, "PASS", "late");
    assert_eq!(again.json()["risk_score"], json!(0.12));
    assert_eq!((world.scorings(), world.alipay.billed()), (1, 1));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_comes_just_after_the_fallback_left_is_late_too() {
    for delay in ["delay:796ms", "delay:799ms", "delay:801ms"] {
        let world = World::new();
        world.faults("alipay", &[delay]);
        is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
        sleep(Duration::from_secs(1)).await;
        is(&world.assess(&payment("T1", "1.00")).await, "PASS", "late");
    }
    let world = World::new();
    world.faults("alipay", &["delay:790ms"]);
    is(&world.assess(&payment("T1", "1.00")).await, "PASS", "live");
    is(&world.assess(&payment("T1", "1.00")).await, "PASS", "replayed");
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_that_never_comes_leaves_room_for_another_try() {
    let world = World::new();
    world.faults("alipay", &["stall"]);
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
    sleep(Duration::from_millis(500)).await;
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
    assert_eq!(world.scorings(), 1, "the second asker waits for the first call");
    sleep(Duration::from_secs(4)).await;
    is(&world.assess(&payment("T1", "1.00")).await, "PASS", "live");
    assert_eq!(world.scorings(), 2);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn c12_a_hundred_equal_requests_at_once_are_one_decision() {
    for fault in ["delay:1ms", "delay:300ms"] {
        let world = World::new();
        world.faults("alipay", &[fault]);
        let body = payment("T1", "88.13");
        let answers = join_all((0..100).map(|_| world.assess(&body))).await;
        assert_eq!((world.scorings(), world.alipay.billed()), (1, 1));
        let sources: Vec<_> = answers.iter().map(|answer| decided(answer).1).collect();
        assert_eq!(sources.iter().filter(|source| *source == "live").count(), 1);
        assert!(sources.iter().all(|source| source == "live" || source == "replayed"), "{sources:?}");
        let equal: BTreeSet<String> = answers
            .iter()
            .map(|answer| {
                let mut decision = answer.json();
                decision["source"].take();
                decision.to_string()
            })
            .collect();
        assert_eq!(equal.len(), 1, "one decision has one id and one moment");
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn c12_one_number_with_another_body_is_a_conflict_also_while_the_first_is_in_flight() {
    let world = World::new();
    world.faults("alipay", &["delay:300ms"]);
    let (first, second) = (payment("T1", "88.13"), payment("T1", "88.14"));
    let (answer, conflict) = tokio::join!(world.assess(&first), async {
        sleep(Duration::from_millis(100)).await;
        world.assess(&second).await
    });
    is(&answer, "REVIEW", "live");
    problem(&conflict, 409);
    problem(&world.assess(&second).await, 409);
    is(&world.assess(&first).await, "REVIEW", "replayed");
    assert_eq!((world.scorings(), world.alipay.billed()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn c12_two_tenants_may_use_the_same_number() {
    let plan = Plan::replacing("allow = [\"duo\", \"kept\"]", "allow = [\"risk\"]");
    let world = World::with(&plan);
    is(&world.assess(&payment("T1", "88.13")).await, "REVIEW", "live");
    let other = world.call(risk_request(OFFICE, &payment("T1", "88.13"))).await;
    is(&other, "REVIEW", "live");
    assert_eq!(world.scorings(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_is_never_kept_as_a_decision() {
    let world = World::new();
    world.faults("alipay", &["status:500"]);
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
    is(&world.assess(&payment("T1", "1.00")).await, "PASS", "live");
    assert_eq!(world.scorings(), 2);
}

#[tokio::test(start_paused = true)]
async fn c4_c5_every_attempt_is_signed_anew_over_exactly_what_is_sent() {
    let world = World::new();
    for number in 0..50 {
        let mut body = payment(&format!("T{number}"), "88.8");
        body["subject"] = json!("caf\u{e9} cafe\u{301} \u{1f600} \u{627} \"/\\ \u{2028}");
        body["metadata"] = json!({ "b": 1.0, "a": 1e0, "\u{e9}": "\u{1f600}" });
        is(&world.assess(&body).await, "PASS", "live");
    }
    assert_nothing_refused(&world);
    let seen = world.alipay.seen();
    let nonces: BTreeSet<_> = seen.iter().map(|seen| seen.nonce.clone()).collect();
    assert_eq!((seen.len(), nonces.len()), (51, 51), "one token call and fifty attempts, a nonce each");
    assert!(seen.iter().all(|seen| seen.nonce.len() >= 22 && seen.timestamp_ms > 1_700_000_000_000));
    assert_eq!(world.alipay.refused(Refusal::Replay), 0);
    let sent: Value = serde_json::from_slice(&seen[1].body).unwrap();
    assert_eq!(sent["total_amount"], "88.80", "all of the currency's decimals");
    assert_eq!(sent["subject"], "caf\u{e9} cafe\u{301} \u{1f600} \u{627} \"/\\ \u{2028}");
}

#[tokio::test(start_paused = true)]
async fn one_token_serves_a_hundred_callers_and_is_renewed_once_when_withdrawn() {
    let world = World::new();
    world.faults("alipay.token", &["delay:100ms"]);
    let bodies: Vec<_> = (0..100).map(|number| payment(&format!("T{number}"), "1.00")).collect();
    for answer in join_all(bodies.iter().map(|body| world.assess(body))).await {
        is(&answer, "PASS", "live");
    }
    assert_eq!(world.alipay.tokens_issued(), 1);
    world.alipay.revoke_tokens();
    let bodies: Vec<_> = (100..200).map(|number| payment(&format!("T{number}"), "1.00")).collect();
    for answer in join_all(bodies.iter().map(|body| world.assess(body))).await {
        is(&answer, "PASS", "live");
    }
    assert_eq!((world.alipay.tokens_issued(), world.alipay.billed()), (2, 200));
    assert_eq!(world.breaker("alipay"), State::Closed, "a withdrawn token is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_never_accepted_is_renewed_once_and_not_for_ever() {
    let world = World::new();
    world.fault("alipay", r#"status:401;body={"error":"invalid_token"}"#);
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
    assert_eq!((world.scorings(), world.alipay.tokens_issued()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_before_they_end_and_nobody_waits() {
    let world = World::new();
    for number in 0..30 {
        let answer = world.assess(&payment(&format!("T{number}"), "1.00")).await;
        is(&answer, "PASS", "live");
        assert_eq!(answer.took, Duration::ZERO);
        sleep(Duration::from_secs(300)).await;
    }
    let issued = world.alipay.tokens_issued();
    assert!((3..=4).contains(&issued), "{issued} in two and a half hours");
    assert_nothing_refused(&world);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_dies_after_sending_is_one_request_and_a_review() {
    for fault in ["refuse", "reset", "cut:5"] {
        let world = World::new();
        // The token call leaves a kept connection behind: the dangerous kind.
        is(&world.assess(&payment("T0", "1.00")).await, "PASS", "live");
        world.faults("alipay", &[fault]);
        is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
        assert_eq!(world.scorings(), 2, "{fault}: never sent twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_was_is_tried_again() {
    let world = World::new();
    world.net.script("alipay", [Link::Refused], Link::Simulator);
    let answer = world.assess(&payment("T1", "1.00")).await;
    is(&answer, "PASS", "live");
    assert_eq!((answer.header("wb-attempts"), world.net.dialled("alipay"), world.scorings()), ("2", 2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_decision_outlives_the_client_that_asked_for_it() {
    let world = World::new();
    world.faults("alipay", &["delay:300ms"]);
    let body = payment("T1", "88.13");
    let left = tokio::time::timeout(Duration::from_millis(100), world.assess(&body)).await;
    assert!(left.is_err());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(decided(&world.assess(&body).await).0, "REVIEW");
    assert_eq!((world.scorings(), world.alipay.billed()), (1, 1));
    assert_eq!(world.breaker("alipay"), State::Closed);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn every_bad_field_is_named_at_once() {
    let world = World::new();
    let body = json!({
        "out_trade_no": "has space", "total_amount": "1e3", "currency": "cny", "merchant": {}, "user": { "id": 7 },
        "surprise": "CANARY",
    });
    let answer = world.assess(&body).await;
    let problem = problem(&answer, 400);
    let pointers: BTreeSet<_> =
        problem["errors"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    let expected = ["/out_trade_no", "/total_amount", "/currency", "/subject", "/merchant/id", "/user/id", "/surprise"];
    for pointer in expected {
        assert!(pointers.contains(pointer), "{pointer} is not in {pointers:?}");
    }
    assert!(!answer.text().contains("CANARY"), "no value is repeated");
    assert_eq!(world.scorings(), 0);
}

#[tokio::test(start_paused = true)]
async fn c9_money_is_a_plain_decimal_string_of_its_currency() {
    let world = World::new();
    let amounts = [
        "-1",
        "+1",
        "0",
        "0.00",
        "01.00",
        "1,000.00",
        "1.234",
        " 1",
        "1e3",
        "1.",
        ".5",
        "",
        "٣",
        "NaN",
        "99999999999999999999999999999999999999999",
    ];
    for amount in amounts {
        problem(&world.assess(&payment("T1", amount)).await, 400);
    }
    let number = json!({ "total_amount": 88.88 });
    let mut body = payment("T1", "1.00");
    body["total_amount"] = number["total_amount"].clone();
    problem(&world.assess(&body).await, 400);
    let mut yen = payment("T1", "1.0");
    yen["currency"] = json!("JPY");
    problem(&world.assess(&yen).await, 400);
    yen["total_amount"] = json!("100");
    is(&world.assess(&yen).await, "PASS", "live");
    let unknown = |field: &str, value: Value| {
        let mut body = payment("T9", "1.00");
        body[field] = value;
        body
    };
    problem(&world.assess(&unknown("currency", json!("XYZ"))).await, 422);
    problem(&world.assess(&unknown("user", json!({ "id": "u1", "country": "ZZ" }))).await, 422);
    assert_eq!(world.scorings(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_refused_as_a_problem() {
    let world = World::new();
    let body = payment("T1", "1.00");
    problem(&world.call(risk_request("wb-nobody-knows-this-key", &body)).await, 401);
    problem(&world.call(risk_request(OFFICE, &body)).await, 403);
    problem(&world.call(post("/v1/risk/assessments", SHOP, "{")).await, 400);
    problem(&world.call(post("/v1/risk/assessments", SHOP, "[]")).await, 400);
    problem(&world.call(post("/v1/risk/assessments", SHOP, vec![b' '; 64 * 1024 + 1])).await, 413);
    problem(&world.call(post("/v1/risk/nothing", SHOP, "{}")).await, 404);
    let method = world.call(get("/v1/risk/assessments", SHOP)).await;
    problem(&method, 405);
    assert_eq!(method.header("allow"), "POST");
    let mut foreign = risk_request(SHOP, &body);
    foreign.headers_mut().insert("content-type", "text/xml".parse().unwrap());
    problem(&world.call(foreign).await, 415);
    let twice = r#"{"out_trade_no":"a","out_trade_no":"b","total_amount":"1","currency":"CNY","subject":"s","merchant":{"id":"m"},"user":{"id":"u"}}"#;
    problem(&world.call(post("/v1/risk/assessments", SHOP, twice)).await, 400);
    assert_eq!((world.alipay.seen().len(), world.net.hosts().len()), (0, 0));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn without_a_verdict_the_routes_failure_mode_answers() {
    let mode =
        |mode: &str| World::with(&Plan::replacing("on_exhausted = \"review\"", &format!("on_exhausted = {mode}")));
    is(&mode("\"reject\"").assess(&payment("T1", "1.55")).await, "REJECT", "fallback");

    let error = mode("\"error\"").assess(&payment("T1", "1.55")).await;
    problem(&error, 503);
    assert!(!error.header("retry-after").is_empty());
    let late = mode("\"error\"").assess(&payment("T1", "1.50")).await;
    problem(&late, 503);
    assert!(late.took <= DEADLINE);

    let table = [
        // Away or late: small amounts pass.
        ("49.55", "CNY", "PASS"),
        ("49.50", "CNY", "PASS"),
        ("50.55", "CNY", "REVIEW"),
        ("1.55", "USD", "REVIEW"),
        // Not authentic, not understandable: never.
        ("1.51", "CNY", "REVIEW"),
        ("1.52", "CNY", "REVIEW"),
        ("1.54", "CNY", "REVIEW"),
        ("1.60", "CNY", "REVIEW"),
    ];
    for (amount, currency, action) in table {
        let world = mode("{ accept_up_to = \"50.00 CNY\" }");
        let mut body = payment("T1", amount);
        body["currency"] = json!(currency);
        let answer = world.assess(&body).await;
        is(&answer, action, "fallback");
        assert_eq!(answer.json()["degraded"], true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_answer_is_reviewed_whatever_the_amount_and_closes_the_door_for_a_while() {
    let world =
        World::with(&Plan::replacing("on_exhausted = \"review\"", "on_exhausted = { accept_up_to = \"50.00 CNY\" }"));
    world.faults("alipay", &["bad-signature"]);
    is(&world.assess(&payment("T1", "1.00")).await, "REVIEW", "fallback");
    assert_eq!(world.breaker("alipay"), State::Open, "somebody is in between");
    sleep(Duration::from_secs(13)).await;
    is(&world.assess(&payment("T2", "1.00")).await, "PASS", "live");
}

#[tokio::test(start_paused = true)]
async fn the_log_line_says_what_was_decided_and_nothing_about_people() {
    let mut world = World::new();
    let mut body = payment("T1", "88.13");
    body["user"] = json!({ "id": "u1", "email": "CANARY@example.org", "phone": "+8613800138000" });
    is(&world.assess(&body).await, "REVIEW", "live");
    let line = world.log_text();
    assert!(line.contains("REVIEW") && line.contains("live"), "{line}");
    assert!(!line.contains("CANARY") && !line.contains("13800138000"), "{line}");
}
