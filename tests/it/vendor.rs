//! The vendor's side: whose word is believed, with which key, and what becomes of everything else.

use std::time::Duration;

use tokio::time::sleep;
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
