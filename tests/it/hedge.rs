//! A second candidate beside a slow first one: when it is asked, who serves, and what becomes of the other.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use weighbridge::upstream::breaker::State;

use crate::harness::*;

const DUO: &str = "[model.duo]\ncandidates = [\"alpha/fast\", \"beta/fast\"]\n";

fn hedged(hedge: &str) -> World {
    world_of(&format!("{DUO}hedge = {{ {hedge} }}\n"))
}

fn world_of(duo: &str) -> World {
    World::with(&Plan::replacing(DUO, duo))
}

fn about(duration: Duration, ms: u64) -> bool {
    let expected = Duration::from_millis(ms);
    duration >= expected && duration < expected + Duration::from_millis(1_000)
}

/// The `reason` label of the attempts at an upstream that were given up for a faster one.
fn outpaced(world: &World, provider: &str) -> f64 {
    world.metric("weighbridge_upstream_attempts_total", &[&format!("provider=\"{provider}\""), "reason=\"outpaced\""])
}

fn hedges(world: &World, outcome: &str) -> f64 {
    world.metric("weighbridge_hedges_total", &["route=\"duo\"", &format!("outcome=\"{outcome}\"")])
}

/// Calls that are answered at once, so that the route may afford a hedge.
async fn save_up(world: &World, calls: usize) {
    for _ in 0..calls {
        world.chat(&chat("duo")).await.assert_served("alpha", 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_one_serves_when_the_first_is_silent_and_the_first_is_dropped_and_booked() {
    for body in [chat("duo"), streamed("duo")] {
        let mut world = hedged(r#"after = "1s", max_share = 0.5"#);
        save_up(&world, 2).await;
        world.fault("alpha", "stall");
        let answer = world.chat(&body).await;
        answer.assert_served("beta", 2);
        assert!(about(answer.took, 1_000), "{:?}", answer.took);
        assert_eq!(world.counts(), [3, 1, 0]);
        sleep(Duration::from_millis(10)).await;
        assert!(world.seen("alpha").last().unwrap().cancelled, "the loser's connection is closed");
        assert_eq!((outpaced(&world, "alpha"), outpaced(&world, "beta")), (1.0, 0.0));
        assert_eq!((hedges(&world, "won"), hedges(&world, "lost")), (1.0, 0.0));
        assert!(world.metric("weighbridge_extra_cost_micro_total", &["provider=\"alpha\"", "purpose=\"hedge\""]) > 0.0);
        assert_eq!(world.metric("weighbridge_unpriced_requests_total", &[]), 0.0);
        assert_eq!(world.breaker("alpha/fast"), State::Closed, "losing a race is no failure");
        world.assert_idle();
        let line = world.log().pop().unwrap();
        assert_eq!(line["attempts"], json!("beta/fast:ok,alpha/fast:outpaced"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_shown_only_its_role_is_outpaced_too() {
    let world = hedged(r#"after = "1s", max_share = 0.5"#);
    save_up(&world, 2).await;
    world.fault("alpha", "stall:0");
    let answer = world.chat(&streamed("duo")).await;
    answer.assert_served("beta", 2);
    assert!(about(answer.took, 1_000), "{:?}", answer.took);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn the_first_one_serves_if_it_is_sooner_after_all() {
    let world = hedged(r#"after = "1s", max_share = 0.5"#);
    save_up(&world, 2).await;
    world.faults("alpha", &["delay:1500ms"]);
    world.fault("beta", "delay:3s");
    let answer = world.chat(&chat("duo")).await;
    answer.assert_served("alpha", 2);
    assert!(about(answer.took, 1_500), "{:?}", answer.took);
    assert_eq!((outpaced(&world, "beta"), hedges(&world, "lost")), (1.0, 1.0));
    assert!(answer.header("wb-upstream-request-id").contains("alpha"), "{:?}", answer.headers);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn the_moment_is_the_routes_own_and_is_not_known_before_enough_calls() {
    let world = hedged(r#"after = "p95", max_share = 0.5"#);
    world.faults("alpha", &["stall"]);
    let early = world.chat(&streamed("duo")).await;
    early.assert_served("beta", 2);
    assert!(about(early.took, 5_000), "first_content, not a hedge: {:?}", early.took);
    world.faults("alpha", &["delay:300ms"; 48]);
    for _ in 0..48 {
        assert_eq!(world.chat(&streamed("duo")).await.header("wb-provider"), "alpha");
    }
    world.fault("alpha", "stall");
    let hedged = world.chat(&streamed("duo")).await;
    hedged.assert_served("beta", 2);
    assert!(about(hedged.took, 300), "{:?}", hedged.took);
    world.fault("alpha", "stall");
    let whole = world.chat(&chat("duo")).await;
    assert!(about(whole.took, 15_000), "whole answers have a moment of their own: {:?}", whole.took);
}

#[tokio::test(start_paused = true)]
async fn what_a_route_knows_of_its_calls_outlives_a_reload() {
    let plan = Plan::replacing(DUO, &format!("{DUO}hedge = {{ after = \"p95\", max_share = 0.5 }}\n"));
    let world = World::with(&plan);
    world.faults("alpha", &["delay:300ms"; 48]);
    for _ in 0..48 {
        assert_eq!(world.chat(&chat("duo")).await.header("wb-provider"), "alpha");
    }
    let next = weighbridge::gateway::build::build(table(&plan), Some(&world.live.load_full()), &world.shared);
    world.live.store(std::sync::Arc::new(next));
    world.fault("alpha", "stall");
    let hedged = world.chat(&chat("duo")).await;
    assert!(about(hedged.took, 300), "{:?}", hedged.took);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_its_share_of_the_calls_is_hedged() {
    let world = hedged(r#"after = "500ms", max_share = 0.1"#);
    world.fault("alpha", "delay:1s");
    for _ in 0..100 {
        assert_eq!(world.chat(&chat("duo")).await.status, 200);
    }
    let [alpha, beta, _] = world.counts();
    assert_eq!(alpha, 100);
    assert!((9..=10).contains(&beta), "{beta}");
    assert_eq!(hedges(&world, "capped") as usize, 100 - beta);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_its_share_of_the_money_is_spent_on_hedges() {
    let routes =
        Plan::replacing(DUO, &format!("{DUO}hedge = {{ after = \"500ms\", max_share = 0.5, max_spend = 0.5 }}\n"));
    // The second candidate is ten times as dear.
    let edit = |id: &str, file: String| {
        if id == "beta" { file.replace("1.00 USD", "10.00 USD").replace("2.00 USD", "20.00 USD") } else { file }
    };
    let world = World::with(&Plan { edit, ..routes });
    world.fault("alpha", "delay:1s");
    for _ in 0..100 {
        assert_eq!(world.chat(&chat("duo")).await.status, 200);
    }
    let beta = world.seen("beta").len();
    assert!(
        (4..=5).contains(&beta),
        "half of a hundred calls' money pays for five that cost ten times as much: {beta}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_first_one_that_fails_is_followed_at_once_and_not_after_the_moment() {
    let world = hedged(r#"after = "2s", max_share = 0.5"#);
    world.fault("alpha", "status:503");
    let answer = world.chat(&chat("duo")).await;
    answer.assert_served("beta", 2);
    assert!(about(answer.took, 0), "{:?}", answer.took);
    assert_eq!(world.metric("weighbridge_hedges_total", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn when_one_of_two_fails_the_other_one_decides() {
    let world = hedged(r#"after = "500ms", max_share = 0.5"#);
    save_up(&world, 4).await;
    world.faults("alpha", &["delay:2s"]);
    world.faults("beta", &["status:500"]);
    let answer = world.chat(&chat("duo")).await;
    answer.assert_served("alpha", 2);
    assert!(about(answer.took, 2_000), "{:?}", answer.took);
    assert_eq!(hedges(&world, "lost"), 1.0);
}

/// Takes a request and hangs up after a second.
fn hangs_up() -> Link {
    peer(|mut io| async move {
        read_request(&mut io).await;
        sleep(Duration::from_secs(1)).await;
    })
}

#[tokio::test(start_paused = true)]
async fn a_first_one_that_fails_while_the_second_is_on_its_way_has_been_moved_on_from() {
    let world = hedged(r#"after = "500ms", max_share = 0.5"#);
    world.net.script("alpha", [Link::Refused, Link::Refused], hangs_up());
    for _ in 0..2 {
        world.chat(&chat("duo")).await.assert_served("beta", 2);
    }
    world.faults("beta", &["delay:2s"]);
    let answer = world.chat(&chat("duo")).await;
    assert_eq!((answer.status, answer.header("wb-provider")), (200, "beta"), "{}", answer.text());
    assert!(about(answer.took, 2_500), "{:?}", answer.took);
    assert_eq!((answer.header("wb-attempts"), hedges(&world, "won")), ("2", 1.0));
    assert_eq!(world.metric("weighbridge_failovers_total", &["reason=\"connect\""]), 3.0);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_hedge_counts_as_an_attempt() {
    let trio = "[model.trio]\ncandidates = [\"alpha/fast\", \"beta/fast\", \"gamma/fast\"]\n";
    let world = World::with(&Plan::replacing(
        trio,
        &format!("{trio}max_attempts = 2\nhedge = {{ after = \"500ms\", max_share = 0.5 }}\n"),
    ));
    world.net.script("alpha", [Link::Refused, Link::Refused], hangs_up());
    for _ in 0..2 {
        world.chat(&chat("trio")).await.assert_served("beta", 2);
    }
    world.fault("beta", "status:500");
    let answer = world.chat(&chat("trio")).await;
    assert_eq!((answer.status, answer.header("wb-attempts")), (502, "2"));
    assert_eq!(world.seen("gamma").len(), 0);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_request_ends_both() {
    let world = hedged(r#"after = "500ms", max_share = 0.5"#);
    save_up(&world, 2).await;
    world.fault("alpha", "stall");
    world.fault("beta", "status:400");
    let answer = world.chat(&chat("duo")).await;
    assert_eq!(answer.status, 400);
    assert!(about(answer.took, 500), "{:?}", answer.took);
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn nobody_is_hedged_with_who_is_paused_or_closed() {
    let world = hedged(r#"after = "500ms", max_share = 0.5"#);
    save_up(&world, 4).await;
    world.faults("alpha", &["status:500"]);
    world.faults("beta", &["status:429;retry-after=60"]);
    assert_eq!(world.chat(&chat("duo")).await.status, 502);
    world.faults("alpha", &["delay:2s"]);
    let answer = world.chat(&chat("duo")).await;
    answer.assert_served("alpha", 1);
    assert_eq!(world.seen("beta").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_not_hedged() {
    let world = hedged(r#"after = "500ms", max_share = 0.5"#);
    save_up(&world, 10).await;
    world.fault("alpha", "status:500");
    while world.breaker("alpha/fast") == State::Closed {
        world.chat(&chat("duo")).await.assert_served("beta", 2);
    }
    world.faults.clear("alpha");
    world.fault("alpha", "delay:1s");
    sleep(Duration::from_millis(1_300)).await;
    let before = world.seen("beta").len();
    let probe = world.chat(&chat("duo")).await;
    probe.assert_served("alpha", 1);
    assert_eq!(world.seen("beta").len(), before, "the probe was left to find out");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_both() {
    let world = hedged(r#"after = "500ms", max_share = 0.5"#);
    save_up(&world, 2).await;
    world.fault("alpha", "stall");
    world.fault("beta", "stall");
    let started = Instant::now();
    let body = chat("duo");
    let call = tokio::time::timeout(Duration::from_secs(1), world.chat(&body));
    assert!(call.await.is_err());
    sleep(Duration::from_millis(10)).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(world.seen("alpha").last().unwrap().cancelled && world.seen("beta").last().unwrap().cancelled);
    assert_eq!((outpaced(&world, "alpha"), outpaced(&world, "beta")), (0.0, 0.0));
    world.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_its_provider_keeps_is_not_asked_twice_at_the_same_time() {
    let plan = Plan::replacing(DUO, &format!("{DUO}hedge = {{ after = \"500ms\", max_share = 0.5 }}\n"));
    let edit = |_: &str, file: String| file.replace(r#"["chat.completions"]"#, r#"["chat.completions", "responses"]"#);
    let world = World::with(&Plan { edit, ..plan });
    save_up(&world, 4).await;
    world.fault("alpha", "delay:2s");
    let ask = |extra: &str| {
        let body = format!(r#"{{"model": "duo", "input": "hello"{extra}}}"#);
        world.call(post("/v1/responses", SHOP, body))
    };
    let anchored = ask(r#", "previous_response_id": "resp_1""#).await;
    assert_eq!((anchored.status, anchored.header("wb-provider")), (200, "alpha"), "{}", anchored.text());
    assert_eq!(world.seen("beta").len(), 0);
    assert_eq!(ask("").await.header("wb-provider"), "beta");
}

/// What the shop's first budget has spent, and the estimated part of it, in micro-units.
fn spent(world: &World) -> (i64, i64) {
    let snapshot = world.live.load();
    let live = snapshot.live_callers().find(|live| live.caller.id.as_str() == "shop").unwrap();
    let sums = live.quota.as_ref().unwrap().spending(&live.caller)[0].sums;
    (sums.spent, sums.estimated)
}

#[tokio::test(start_paused = true)]
async fn a_callers_budget_pays_for_both_and_never_for_a_shadow() {
    let more = "hedge = { after = \"1s\", max_share = 1 }\nshadow = { use = \"gamma/fast\", percent = 100 }\n";
    let mut plan = Plan::replacing(DUO, &format!("{DUO}{more}"));
    let tenant = "tenant = \"shop-eu\"";
    plan.routes =
        plan.routes.replacen(tenant, &format!("{tenant}\nbudget = {{ amount = \"1.00 USD\", per = \"day\" }}"), 1);
    let world = World::with(&plan);
    world.chat(&chat("duo")).await.assert_served("alpha", 1);
    sleep(Duration::from_secs(5)).await;
    let (one, estimated) = spent(&world);
    assert!(one > 0 && estimated == 0 && world.seen("gamma").len() == 1);
    world.fault("alpha", "stall");
    world.chat(&chat("duo")).await.assert_served("beta", 2);
    let (both, estimated) = spent(&world);
    assert_eq!(both, 2 * one + estimated);
    assert!(estimated > 0, "what the loser may have cost");
    assert_eq!(world.metric("weighbridge_unpriced_requests_total", &[]), 0.0);
}
