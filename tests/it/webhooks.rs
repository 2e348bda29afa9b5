//! Who was given a fallback learns of the verdict that came too late, if it is worse: at least once, signed, and never
//! for ever.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};
use weighbridge::sign::di::{ResponseParts, sign_response};

use crate::harness::*;

/// Where the shop's webhook is.
const HOOK: &str = "10.9.9.9";

fn world() -> World {
    World::with(&Plan { routes: routes(), ..Plan::default() })
}

fn routes() -> String {
    let webhook = format!(
        r#"[[webhook]]
tenant = "shop-eu"
url = "http://{HOOK}/hooks/risk"
allow_private = true
auth = {{ kind = "di-hmac", key_id = "hook-1", secret_env = "ALIPAY_KEY", secret_encoding = "hex" }}

[risk]"#
    );
    ROUTES.replace("[risk]", &webhook)
}

/// What the receiver read, and when.
type Read = Arc<Mutex<Vec<(Instant, String)>>>;

/// A receiver that answers its deliveries with these statuses, the last one for ever.
fn receiver(world: &World, statuses: &'static [&'static str]) -> Read {
    let read = Read::default();
    let kept = Arc::clone(&read);
    let link = peer(move |mut io| {
        let kept = Arc::clone(&kept);
        async move {
            let request = read_request(&mut io).await;
            let number = {
                let mut kept = kept.lock().unwrap();
                kept.push((Instant::now(), request));
                kept.len()
            };
            let status = statuses[number.min(statuses.len()) - 1];
            let _ = io.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
        }
    });
    world.net.always(HOOK, link);
    read
}

fn body(request: &str) -> Value {
    serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn header<'a>(request: &'a str, name: &str) -> &'a str {
    let line = request.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {request}"))
}

/// A payment whose verdict comes after two seconds; with this amount it is a REJECT.
async fn late(world: &World, out_trade_no: &str, amount: &str) -> Answer {
    world.faults("alipay", &["delay:2s"]);
    let answer = world.assess(&payment(out_trade_no, amount)).await;
    sleep(Duration::from_secs(2)).await;
    answer
}

fn notices(world: &World, outcome: &str) -> f64 {
    world.metric("weighbridge_webhook_notices_total", &[&format!("outcome=\"{outcome}\"")])
}

#[tokio::test(start_paused = true)]
async fn a_late_verdict_that_is_worse_is_told_once_and_signed() {
    let world = world();
    let read = receiver(&world, &["204 No Content"]);
    let served = late(&world, "T1", "1.91").await.json();
    assert_eq!((&served["action"], &served["source"]), (&json!("REVIEW"), &json!("fallback")));
    sleep(Duration::from_secs(7_200)).await;
    let read = read.lock().unwrap().clone();
    assert_eq!(read.len(), 1);
    let request = &read[0].1;
    assert!(request.starts_with("POST /hooks/risk HTTP/1.1\r\n"), "{request}");
    let event = body(request);
    assert_eq!((&event["type"], &event["tenant"]), (&json!("decision.revised"), &json!("shop-eu")));
    assert_eq!((&event["served"]["action"], &event["served"]["source"]), (&json!("REVIEW"), &json!("fallback")));
    assert_eq!(event["served"]["id"], served["id"]);
    let decision = &event["decision"];
    assert_eq!((&decision["action"], &decision["source"]), (&json!("REJECT"), &json!("late")));
    assert_eq!((&decision["out_trade_no"], &decision["risk_score"]), (&json!("T1"), &json!(0.91)));
    assert_eq!(event["id"], header(request, "wb-event-id"));

    let signature = header(request, "di-response-signature");
    let timestamp_ms = signature.split(',').find_map(|part| part.strip_prefix("ts=")).unwrap().parse().unwrap();
    let parts = ResponseParts {
        key_id: "hook-1",
        timestamp_ms,
        request_nonce: header(request, "wb-event-id"),
        status: 200,
        trace_id: header(request, "di-trace-id"),
        model_version: header(request, "di-model-version"),
        body: request.split_once("\r\n\r\n").unwrap().1.as_bytes(),
    };
    assert_eq!(sign_response(&[0x4f; 32], &parts).unwrap(), signature);
    assert!((notices(&world, "delivered") - 1.0).abs() < f64::EPSILON);
    assert_eq!((world.shared.notices.pending(), world.shared.notices.delivered()), (0, 1));
    let again = world.assess(&payment("T1", "1.91")).await.json();
    assert_eq!((&again["id"], &again["action"]), (&decision["id"], &json!("REJECT")), "the same decision");
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_under_the_same_id_with_longer_and_longer_pauses() {
    let world = world();
    let read = receiver(&world, &["500 Oops", "302 Found\r\nlocation: http://evil.test/", "503 Busy", "200 OK"]);
    late(&world, "T1", "1.91").await;
    sleep(Duration::from_secs(7_200)).await;
    let read = read.lock().unwrap();
    assert_eq!(read.len(), 4, "and no more once it was accepted");
    let ids: std::collections::BTreeSet<_> = read.iter().map(|(_, request)| body(request)["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    for (pair, usual) in read.windows(2).zip([1.0, 5.0, 30.0]) {
        let paused = (pair[1].0 - pair[0].0).as_secs_f64() / usual;
        assert!((0.79..1.21).contains(&paused), "{paused} of {usual} s");
    }
    assert!(!world.net.hosts().iter().any(|host| host.contains("evil")));
    assert!((notices(&world, "failed") - 3.0).abs() < f64::EPSILON);
}

#[tokio::test(start_paused = true)]
async fn a_notice_nobody_takes_is_given_up_after_an_hour_and_stays_to_be_seen() {
    for link in [Link::Refused, Link::BlackHole, says("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")] {
        let world = world();
        world.net.always(HOOK, link);
        let served = late(&world, "T1", "1.91").await;
        assert_eq!(served.status, 200, "the answer does not wait for it");
        assert_eq!(world.shared.notices.pending(), 1);
        sleep(Duration::from_secs(3_700)).await;
        assert_eq!((world.shared.notices.pending(), world.net.dialled(HOOK)), (0, 7));
        let dead = world.shared.notices.dead();
        assert_eq!((dead.len(), dead[0].tries, &*dead[0].tenant), (1, 7, "shop-eu"));
        assert!(dead[0].failure.starts_with("the receiver"), "{dead:?}");
        assert!((notices(&world, "dead") - 1.0).abs() < f64::EPSILON);
        world.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn verdicts_that_are_no_worse_or_on_time_or_of_others_are_not_told() {
    let world = world();
    let read = receiver(&world, &["200 OK"]);
    late(&world, "T1", "1.00").await;
    late(&world, "T2", "1.13").await;
    world.assess(&payment("T3", "1.91")).await;
    sleep(Duration::from_secs(60)).await;
    assert!(read.lock().unwrap().is_empty(), "PASS and REVIEW are no worse than REVIEW, and T3 was told in its answer");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_askers_of_one_payment_are_one_notice() {
    let world = world();
    let read = receiver(&world, &["200 OK"]);
    world.faults("alipay", &["delay:2s"]);
    let body = payment("T1", "1.91");
    join_all((0..100).map(|_| world.assess(&body))).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!((read.lock().unwrap().len(), world.scorings()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_that_is_worse_than_the_earlier_decision_that_stood_in_for_it_is_told() {
    let reuse = "reuse = { mode = \"when-late\", max_amount = \"200.00 CNY\", self_audit = 0.01 }";
    let plan = Plan { routes: routes().replace("on_exhausted", &format!("{reuse}\non_exhausted")), ..Plan::default() };
    let world = World::with(&plan);
    let read = receiver(&world, &["204 No Content"]);
    let of_a_known_payer = |number: &str, amount: &str| {
        let mut body = payment(number, amount);
        body["instrument"] = json!({ "type": "card", "fingerprint": "f1", "bin": "621234", "last4": "1234" });
        body["device"] = json!({ "id": "d1", "ip": "203.0.113.7", "known_since": "2025-06-01T00:00:00Z" });
        body
    };
    assert_eq!(world.assess(&of_a_known_payer("T1", "2.00")).await.json()["action"], "PASS");
    world.faults("alipay", &["delay:2s"]);
    // A REVIEW would be no news after the route's failure mode; after a PASS it is.
    let served = world.assess(&of_a_known_payer("T2", "1.13")).await.json();
    assert_eq!((&served["action"], &served["source"]), (&json!("PASS"), &json!("cached")));
    sleep(Duration::from_secs(60)).await;
    let read = read.lock().unwrap().clone();
    assert_eq!(read.len(), 1);
    let event = body(&read[0].1);
    assert_eq!((&event["served"]["action"], &event["served"]["source"]), (&json!("PASS"), &json!("cached")));
    assert_eq!((&event["served"]["id"], &event["decision"]["action"]), (&served["id"], &json!("REVIEW")));
}
